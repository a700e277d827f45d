"""How large a model is and what its training costs, from the declaration alone: counted, not built.

FLOPs are those of the matrix products that the mathematics asks for (Kaplan et al. 2020, arXiv 2001.08361, section
2.1; PaLM, arXiv 2204.02311, appendix B): 2 per weight and token forward, twice that backward, and attention. Not
counted: norms, activations, softmax, embeddings, the optimizer, and what is computed twice or masked away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from antlm_bench.training.recipe import ENCODERS, ModelSpec, Recipe, read_recipe
from antlm_bench.training.schedule import Step


@dataclass(frozen=True, slots=True)
class Size:
    """parameters: all of a model's, tied ones once. layers: weights that every token is multiplied with. head: those
    that only a position with a target is multiplied with, the output embedding included.
    """

    parameters: int
    layers: int
    head: int


def size(spec: ModelSpec, vocabulary: int) -> Size:
    """The exact size of the model that `training.build` makes of this."""
    return {"llama": _llama, "gpt2": _gpt2, "ltg-bert": _ltg_bert, "gpt-bert": _gpt_bert}[spec.architecture](
        spec, vocabulary
    )


def training_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """FLOPs of a whole run; a distilled one includes its teachers' forward passes.

    Raises DeclarationError or UsageError where a teacher is no recipe with the student's scale.
    """
    teachers = [read_recipe(name, recipe.scale) for name in (recipe.distil.teachers if recipe.distil else ())]
    return 3 * forward_flops(recipe, steps) + sum(forward_flops(teacher, steps) for teacher in teachers)


def forward_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """FLOPs of the forward passes of a recipe's model over these steps.

    Attention: query times key and probabilities times value, 4 x hidden x length per token and layer; half of that
    where it is causal. Relative positions add two products with their 2 x buckets - 1 vectors. Masked rows have a
    target at the masking rate's share of tokens.
    """
    spec, weights = recipe.model, size(recipe.model, recipe.tokenizer.vocabulary)
    vectors = 2 * spec.buckets - 1 if spec.architecture in ENCODERS else 0
    total = 0.0
    for step in steps:
        causal, masked = step.causal * step.length, (step.rows - step.causal) * step.length
        attended = causal * (step.length / 2 + vectors) + masked * (step.length + vectors)
        targets = causal + masked * step.mask_rate
        products = weights.layers * step.tokens + weights.head * targets + 2 * spec.layers * spec.hidden * attended
        total += 2 * products
    return total


def _llama(spec: ModelSpec, vocabulary: int) -> Size:
    """Norms are RMS, no biases."""
    d = spec.hidden
    keys = d // spec.heads * (spec.kv_heads or spec.heads)
    layer = 2 * d * d + 2 * d * keys + 3 * d * spec.ffn
    embeddings = vocabulary * d * (1 if spec.tied else 2)
    return Size(embeddings + spec.layers * (layer + 2 * d) + d, spec.layers * layer, vocabulary * d)


def _gpt2(spec: ModelSpec, vocabulary: int) -> Size:
    """Biases everywhere but in the output embedding, norms with weight and bias, learned positions."""
    d = spec.hidden
    layer = 4 * d * d + 2 * d * spec.ffn
    biases = 3 * d + d + spec.ffn + d + 4 * d
    embeddings = (vocabulary * (1 if spec.tied else 2) + spec.positions) * d
    return Size(embeddings + spec.layers * (layer + biases) + 2 * d, spec.layers * layer, vocabulary * d)


def _ltg_bert(spec: ModelSpec, vocabulary: int) -> Size:
    """Attention's projections have biases and a norm with weights behind them, feed-forward parts have neither."""
    d = spec.hidden
    layer = 4 * d * d + 3 * d * spec.ffn
    mixes = sum(range(1, spec.layers + 1)) if spec.layer_mix else 0
    mixes += spec.layers + 1 if spec.layer_mix == "weighted_output" else 0
    return _encoder(spec, vocabulary, layer, spec.layers * (4 * d + 2 * d) + mixes)


def _gpt_bert(spec: ModelSpec, vocabulary: int) -> Size:
    """As LTG-BERT, with a gate beside the values, norms without weights, and a sum over all states per sub-layer."""
    d = spec.hidden
    attention = (5 if spec.attention_gate else 4) * d
    sums = sum(range(2, 2 * spec.layers + 2)) if spec.layer_weights else 0
    return _encoder(spec, vocabulary, attention * d + 3 * d * spec.ffn, spec.layers * attention + sums)


def _encoder(spec: ModelSpec, vocabulary: int, layer: int, others: int) -> Size:
    """Layers, the table of relative positions with its norm, and a head of a linear layer and an output bias."""
    d = spec.hidden
    outside = vocabulary * d * (1 if spec.tied else 2) + (2 * spec.buckets - 1) * d + 2 * d
    head = d * d + d + vocabulary
    return Size(
        parameters=spec.layers * layer + others + outside + head,
        layers=spec.layers * layer,
        head=d * d + vocabulary * d,
    )
