"""Compute the size and the training FLOPs of a model from its recipe, without building it.

FLOPs count the necessary matrix products (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; PaLM,
arXiv 2204.02311, appendix B): 2 per weight and token in the forward pass, twice as many in the
backward pass, and the products of attention. Not counted: norms, activations, softmax, embeddings,
the optimizer, recomputed values and masked attention scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from antlm_bench.architectures.records import ARCHITECTURES, ModelSize
from antlm_bench.training.recipe import ModelSpec, Recipe, read_recipe
from antlm_bench.training.schedule import Step


def compute_model_size(spec: ModelSpec, vocab_size: int) -> ModelSize:
    """Return the parameter counts of the model that `model_factory.build_model` builds."""
    return ARCHITECTURES[spec.architecture].compute_size(spec, vocab_size)


def training_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """Return the FLOPs of a run, including forward passes of its teachers.

    Raises DeclarationError or UsageError if a teacher is not a recipe with the student's scale.
    """
    teacher_names = recipe.distil.teachers if recipe.distil else ()
    teachers = [read_recipe(name, recipe.scale) for name in teacher_names]
    teacher_flops = sum(forward_flops(teacher, steps) for teacher in teachers)
    return 3 * forward_flops(recipe, steps) + teacher_flops


def forward_flops(recipe: Recipe, steps: Sequence[Step]) -> float:
    """Return the FLOPs of the forward passes of a recipe's model over these steps.

    Attention costs two products (query x key, probabilities x value): 4 x hidden x length FLOPs per
    token and layer, half of that if it is causal. Relative positions add two products with their
    2 x buckets - 1 vectors. The LM head runs at every token of causal rows, and at a share
    `mask_rate` of the tokens of masked rows.
    """
    spec = recipe.model
    size = compute_model_size(spec, recipe.tokenizer.vocabulary)
    has_relative_positions = ARCHITECTURES[spec.architecture].relative_positions
    num_position_vectors = 2 * spec.buckets - 1 if has_relative_positions else 0
    total = 0.0
    for step in steps:
        length = step.row_length
        causal_tokens = step.num_causal_rows * length
        masked_tokens = step.num_tokens - causal_tokens
        attended_positions = causal_tokens * (length / 2 + num_position_vectors) + masked_tokens * (
            length + num_position_vectors
        )
        num_targets = causal_tokens + masked_tokens * step.mask_rate
        multiply_adds = (
            size.weights_per_token * step.num_tokens
            + size.weights_per_target * num_targets
            + 2 * spec.layers * spec.hidden * attended_positions
        )
        total += 2 * multiply_adds
    return total
