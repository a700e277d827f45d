"""Sizes against real modules and published numbers; FLOPs against an independent count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recipe_helpers import make_phases, make_recipe

from antlm_bench.declarations import list_declarations
from antlm_bench.errors import DeclarationError
from antlm_bench.training.flops import compute_model_size, forward_flops, training_flops
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.recipe import Recipe, read_recipe
from antlm_bench.training.schedule import plan_steps

ENCODER = {"tied": True, "buckets": 8, "norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tied": True},
    "llama, grouped": {"kv_heads": 2},
    "gpt2": {"architecture": "gpt2", "tied": True},
    "gpt2, untied": {"architecture": "gpt2"},
    "ltg-bert": {"architecture": "ltg-bert", **ENCODER},
    "elc, base": {"architecture": "ltg-bert", "layer_mix": "base", **ENCODER},
    "elc, zero": {"architecture": "ltg-bert", "layer_mix": "zero", **ENCODER},
    "elc, normalized": {"architecture": "ltg-bert", "layer_mix": "normalized", **ENCODER},
    "elc, weighted": {"architecture": "ltg-bert", "layer_mix": "weighted_output", **ENCODER},
    "gpt-bert": {"architecture": "gpt-bert", **ENCODER},
    "gpt-bert, ungated": {"architecture": "gpt-bert", "attention_gate": False, **ENCODER},
    "gpt-bert, unweighted": {"architecture": "gpt-bert", "layer_weights": False, **ENCODER},
}


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_parameters_are_those_of_the_module(shape: str, masked: bool) -> None:
    spec = make_recipe(model={"layers": 3, **SHAPES[shape]}).model
    model = build_model(spec, 311, masked)
    assert compute_model_size(spec, 311).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.long
@pytest.mark.parametrize("name", list_declarations("models"))
def test_a_nano_recipe_is_the_module_it_says(name: str) -> None:
    recipe = read_recipe(name, "nano")
    model = build_model(recipe.model, 2000, "full" in recipe.attentions)
    assert compute_model_size(recipe.model, 2000).parameters == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize(
    ("name", "published", "within"),
    [
        ("babyllama", 58_343_936, 0),  # configuration of baby-llama-58m
        ("babyllama-2", 345_355_200, 0),  # configuration of baby-llama-2-345m-run2
        ("llama-360m", 360e6, 0.5e6),
        ("gpt2-705m", 705e6, 0.5e6),
        ("ltg-bert", 98e6, 0.5e6),
        ("elc-bert", 98e6, 0.5e6),
        ("gpt-bert-10m", 30e6, 0.5e6),
        ("gpt-bert-100m", 119e6, 0.5e6),
    ],
)
def test_parameters_are_as_published(name: str, published: float, within: float) -> None:
    recipe = read_recipe(name)
    assert (
        abs(compute_model_size(recipe.model, recipe.tokenizer.vocabulary).parameters - published)
        <= within
    )


def test_elc_bert_small_is_the_published_24_million() -> None:
    recipe = read_recipe(
        "ltg-bert-small", overrides=["tokenizer.vocabulary=6144", "model.layer_mix=zero"]
    )
    assert round(compute_model_size(recipe.model, 6144).parameters / 1e6) == 24


def counted(recipe: Recipe, rows: int, length: int) -> int:
    """FLOPs of a full-attention forward of the real module, as torch counts its products; it knows
    no fused ones.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = build_model(recipe.model, recipe.tokenizer.vocabulary, True), {}
    if recipe.model.architecture in ("llama", "gpt2"):
        model.set_attn_implementation("eager")
        inputs["attention_mask"] = torch.zeros(1, 1, length, length)
    with FlopCounterMode(
        display=False
    ) as counter:  # with gradients our encoders write their products out
        model(torch.zeros(rows, length, dtype=torch.long), **inputs)
    return counter.get_total_flops()


@pytest.mark.long
@pytest.mark.parametrize("shape", SHAPES)
def test_a_forward_costs_what_its_products_cost(shape: str) -> None:
    """All positions masked, so that the head runs everywhere, as it does in the module."""
    model = {**SHAPES[shape], "buckets": 4}
    full = make_recipe(
        **make_phases((1, 0, 1)),
        model=model,
        objective={"rate": 1.0},
        batch={"tokens": 16 * 512},
        corpus={"document": "line"},
    )
    (step,) = plan_steps(full, 16 * 512)
    assert (step.num_rows, step.row_length) == (512, 16)
    # The module projects its few position vectors too, once per batch: nothing next to 512 rows.
    assert forward_flops(full, [step]) == pytest.approx(counted(full, 512, 16), rel=2e-3)


def test_flops_follow_the_rule_of_six() -> None:
    """6 N D: a long causal run of a wide model on short rows, attention next to nothing."""
    recipe = read_recipe("babyllama")
    steps = plan_steps(recipe, 1_000_000)
    without_input = compute_model_size(recipe.model, 16000).parameters - 16000 * 512
    trained = sum(step.num_tokens for step in steps)
    assert training_flops(recipe, steps) == pytest.approx(6 * without_input * trained, rel=0.05)


def test_head_flops_count_targets_and_causal_attention_is_half() -> None:
    d, layers, vocabulary, length = 32, 2, 300, 16
    causal, masked = make_recipe(), make_recipe(**make_phases((1, 0, 1)), objective={"rate": 0.25})
    weights = layers * (4 * d * d + 3 * d * 48)
    per_token = 2 * weights + 2 * vocabulary * d + layers * 2 * d * length
    steps = plan_steps(causal, 64)
    assert forward_flops(causal, steps) == per_token * 128
    per_token = 2 * weights + 0.25 * 2 * vocabulary * d + layers * 4 * d * length
    assert forward_flops(masked, plan_steps(masked, 64)) == per_token * 64


def test_a_distilled_run_pays_for_its_teachers_forward_passes() -> None:
    plain, distilled = read_recipe("babyllama", "nano"), read_recipe("babyllama-distilled", "nano")
    teachers = [read_recipe(name, "nano") for name in ("llama-360m", "gpt2-705m")]
    steps = plan_steps(plain, 50_000)
    theirs = sum(forward_flops(teacher, steps) for teacher in teachers)
    assert training_flops(distilled, steps) == pytest.approx(
        3 * forward_flops(plain, steps) + theirs
    )
    nobody = make_recipe(distil={"teachers": ["nobody"], "temperature": 2.0, "alpha": 0.5})
    with pytest.raises(DeclarationError, match="unknown recipe 'nobody'"):
        training_flops(nobody, steps)
