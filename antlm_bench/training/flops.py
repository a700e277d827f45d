"""Compute the size of a model and the cost of its training from the declaration, without building
it.

FLOPs are those of the necessary matrix products (Kaplan et al. 2020, arXiv 2001.08361, section 2.1;
PaLM, arXiv 2204.02311, appendix B): 2 per weight and token forward, twice that backward, and
attention. Not counted: norms, activations, softmax, embeddings, the optimizer, and what is computed
twice or masked away.
"""

from __future__ import annotations

from collections.abc import Sequence

from antlm_bench.architectures.records import ARCHITECTURES, ModelSize
from antlm_bench.training.recipe import ModelSpec, Recipe, read_recipe
from antlm_bench.training.schedule import Step


def compute_model_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """Return the exact size of the model that `training.model_factory` builds from a shape."""
    return ARCHITECTURES[spec.architecture].compute_size(spec, vocab_size)


def training_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """Return the FLOPs of a run, with the forward passes of its teachers if it is distilled.

    Raises DeclarationError or UsageError if a teacher is not a recipe with the student's scale.
    """
    names = recipe.distil.teachers if recipe.distil else ()
    teachers = [read_recipe(name, recipe.scale) for name in names]
    return 3 * forward_flops(recipe, steps) + sum(forward_flops(t, steps) for t in teachers)


def forward_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """Return the FLOPs of the forward passes of a recipe's model over these steps.

    Attention: query times key and probabilities times value, 4 x hidden x length per token and
    layer; half of that if it is causal. Relative positions add two products with their 2 x buckets
    - 1 vectors. In masked rows the masking rate is the share of tokens with a target.
    """
    spec, weights = recipe.model, compute_model_size(recipe.model, recipe.tokenizer.vocabulary)
    architecture = ARCHITECTURES[spec.architecture]
    vectors = 2 * spec.buckets - 1 if architecture.relative_positions else 0
    total = 0.0
    for step in steps:
        length = step.row_length
        causal = step.num_causal_rows * length
        masked = (step.num_rows - step.num_causal_rows) * length
        attended = causal * (length / 2 + vectors) + masked * (length + vectors)
        targets = causal + masked * step.mask_rate
        products = (
            weights.weights_per_token * step.num_tokens
            + weights.weights_per_target * targets
            + 2 * spec.layers * spec.hidden * attended
        )
        total += 2 * products
    return total
