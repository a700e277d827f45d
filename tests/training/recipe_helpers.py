"""A recipe for tests, as tables that a test can change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from antlm_bench.declarations import validate_tables
from antlm_bench.training.recipe import Recipe, merge_tables

TABLES: dict[str, Any] = {
    "name": "toy",
    "title": "Toy",
    "sources": ["nobody"],
    "methods": ["causal"],
    "model": {
        "architecture": "llama",
        "layers": 2,
        "hidden": 32,
        "heads": 4,
        "ffn": 48,
        "positions": 64,
        "tied": False,
        "norm_eps": 1e-6,
    },
    "tokenizer": {"vocabulary": 300},
    "corpus": {"document": "line"},
    "phase": [{"epochs": 2, "causal": 1}],
    "batch": {"tokens": 64, "length": 16},
    "optimizer": {"name": "adamw", "lr": 1e-3},
}


def make_recipe(**changes: Any) -> Recipe:
    """Return the recipe with changed tables: make_recipe(batch={"tokens": 128})."""
    return validate_tables(merge_tables(copy.deepcopy(TABLES), changes), Recipe, Path("toy.toml"))


def make_phases(*phases: tuple[int, float, float], unit: str = "epochs") -> dict[str, Any]:
    """Return the tables of a recipe of (duration, causal, masked) phases, with its method."""
    tables = [{unit: lasts, "causal": causal, "masked": masked} for lasts, causal, masked in phases]
    return {
        "phase": tables,
        "methods": ["causal" if any(causal for _, causal, _ in phases) else "mlm"],
    }
