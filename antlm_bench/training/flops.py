"""How large a model is and what its training costs, from the declaration alone: counted, not built.

FLOPs are those of the matrix products that the mathematics asks for (Kaplan et al. 2020, arXiv
2001.08361, section 2.1; PaLM, arXiv 2204.02311, appendix B): 2 per weight and token forward, twice
that backward, and attention. Not counted: norms, activations, softmax, embeddings, the optimizer,
and what is computed twice or masked away.
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
    architecture = ARCHITECTURES[spec.architecture]
    vectors = 2 * spec.buckets - 1 if architecture.relative_positions else 0
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
