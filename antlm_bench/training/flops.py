"""How large a model is and what its training costs, from the declaration alone: counted, not built.

FLOPs are those of the matrix products that the mathematics asks for (Kaplan et al. 2020, arXiv
2001.08361, section 2.1; PaLM, arXiv 2204.02311, appendix B): 2 per weight and token forward, twice
that backward, and attention. Not counted: norms, activations, softmax, embeddings, the optimizer,
and what is computed twice or masked away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antlm_bench.training.recipe import ENCODERS, ModelSpec, Recipe, read_recipe
from antlm_bench.training.schedule import Step


@dataclass(frozen=True, slots=True)
class ModelSize:
    """parameters: all of a model's, tied ones once. layers: weights that every token is multiplied
    with. head: those that only a position with a target is multiplied with, the output embedding
    included.
    """

    parameters: int
    weights_per_token: int
    weights_per_target: int


def compute_model_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """The exact size of the model that `training.model_factory` makes of this."""
    return {
        "llama": _llama_size,
        "gpt2": _gpt2_size,
        "ltg-bert": _ltg_bert_size,
        "gpt-bert": _gpt_bert_size,
    }[spec.architecture](spec, vocab_size)


def training_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """FLOPs of a whole run; a distilled one includes its teachers' forward passes.

    Raises DeclarationError or UsageError where a teacher is no recipe with the student's scale.
    """
    teachers = [
        read_recipe(name, recipe.scale)
        for name in (recipe.distil.teachers if recipe.distil else ())
    ]
    return 3 * forward_flops(recipe, steps) + sum(
        forward_flops(teacher, steps) for teacher in teachers
    )


def forward_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """FLOPs of the forward passes of a recipe's model over these steps.

    Attention: query times key and probabilities times value, 4 x hidden x length per token and
    layer; half of that where it is causal. Relative positions add two products with their 2 x
    buckets - 1 vectors. Masked rows have a target at the masking rate's share of tokens.
    """
    spec, weights = recipe.model, compute_model_size(recipe.model, recipe.tokenizer.vocabulary)
    vectors = 2 * spec.buckets - 1 if spec.architecture in ENCODERS else 0
    total = 0.0
    for step in steps:
        causal, masked = (
            step.num_causal_rows * step.row_length,
            (step.num_rows - step.num_causal_rows) * step.row_length,
        )
        attended = causal * (step.row_length / 2 + vectors) + masked * (step.row_length + vectors)
        targets = causal + masked * step.mask_rate
        products = (
            weights.weights_per_token * step.num_tokens
            + weights.weights_per_target * targets
            + 2 * spec.layers * spec.hidden * attended
        )
        total += 2 * products
    return total


def _llama_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """Norms are RMS, no biases."""
    d = spec.hidden
    keys = d // spec.heads * (spec.kv_heads or spec.heads)
    layer = 2 * d * d + 2 * d * keys + 3 * d * spec.ffn
    embeddings = vocab_size * d * (1 if spec.tied else 2)
    return ModelSize(
        embeddings + spec.layers * (layer + 2 * d) + d, spec.layers * layer, vocab_size * d
    )


def _gpt2_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """Biases everywhere but in the output embedding, norms with weight and bias, learned positions.
    """
    d = spec.hidden
    layer = 4 * d * d + 2 * d * spec.ffn
    biases = 3 * d + d + spec.ffn + d + 4 * d
    embeddings = (vocab_size * (1 if spec.tied else 2) + spec.positions) * d
    return ModelSize(
        embeddings + spec.layers * (layer + biases) + 2 * d, spec.layers * layer, vocab_size * d
    )


def _ltg_bert_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """Attention's projections have biases and a norm with weights behind them, feed-forward parts
    have neither.
    """
    d = spec.hidden
    layer = 4 * d * d + 3 * d * spec.ffn
    mixes = sum(range(1, spec.layers + 1)) if spec.layer_mix else 0
    mixes += spec.layers + 1 if spec.layer_mix == "weighted_output" else 0
    return _encoder_size(spec, vocab_size, layer, spec.layers * (4 * d + 2 * d) + mixes)


def _gpt_bert_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """As LTG-BERT, with a gate beside the values, norms without weights, and a sum over all states
    per sub-layer.
    """
    d = spec.hidden
    attention = (5 if spec.attention_gate else 4) * d
    sums = sum(range(2, 2 * spec.layers + 2)) if spec.layer_weights else 0
    return _encoder_size(
        spec, vocab_size, attention * d + 3 * d * spec.ffn, spec.layers * attention + sums
    )


def _encoder_size(
    spec: ModelSpec, vocab_size: int, weights_per_layer: int, other_parameters: int
) -> ModelSize:
    """Layers, the table of relative positions with its norm, and a head of a linear layer and an
    output bias.
    """
    d = spec.hidden
    outside = vocab_size * d * (1 if spec.tied else 2) + (2 * spec.buckets - 1) * d + 2 * d
    head = d * d + d + vocab_size
    return ModelSize(
        parameters=spec.layers * weights_per_layer + other_parameters + outside + head,
        weights_per_token=spec.layers * weights_per_layer,
        weights_per_target=d * d + vocab_size * d,
    )
