"""`list`: what can be scored and how, one row per name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.declarations import catalog
from antlm_bench.errors import UsageError
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration
from antlm_bench.training.flops import compute_model_size
from antlm_bench.training.recipe import PhaseSpec, Recipe, list_scales, read_recipe

CatalogRow = dict[str, object]
"""A row of `list` or `data`: numbers are numbers."""


def list_catalog(kind: str = "suites") -> list[CatalogRow]:
    """Return the rows of CATALOG_LISTINGS[kind], sorted by name, all with the same columns.

    Raises DeclarationError, and UsageError for an unknown kind.
    """
    if kind not in CATALOG_LISTINGS:
        raise UsageError(f"{kind!r} cannot be listed", hint=f"one of {', '.join(CATALOG_LISTINGS)}")
    return CATALOG_LISTINGS[kind]()


def _declaration_rows(listing: str) -> list[CatalogRow]:
    """Return a row per declaration in tasks/ whose task type stands in a listing."""
    specs = (read_declaration(name)[0] for name in catalog("tasks"))
    pairs = ((TASK_TYPES[spec.task_type], spec) for spec in specs)
    return [record.list_row(spec) for record, spec in pairs if record.listing == listing]


def describe_objective(recipe: Recipe) -> str:
    """Return the objective and length of a recipe: `4 CLM + 16 MLM + 4 CLM epochs`, `7,812 CLM:MNTP
    1:15 steps`.
    """
    masked = recipe.objective.masked.upper()

    def describe_phase(phase: PhaseSpec) -> str:
        length = f"{phase.epochs or phase.steps or 0:,}"
        if phase.causal and phase.masked:
            return f"{length} CLM:{masked} {phase.causal:g}:{phase.masked:g}"
        return f"{length} {'CLM' if phase.causal else masked}"

    unit = "epochs" if recipe.phase[0].epochs else "steps"
    distilled = ", distilled" if recipe.distil else ""
    return f"{' + '.join(map(describe_phase, recipe.phase))} {unit}{distilled}"


def count_parameters(recipe: Recipe) -> int:
    """Return the parameters of a recipe's model with the largest vocabulary of its tokenizer."""
    return compute_model_size(recipe.model, recipe.tokenizer.vocabulary).parameters


def _model_rows() -> list[CatalogRow]:
    rows = []
    for name in catalog("models"):
        recipe = read_recipe(name)
        row = {
            "model": name,
            "parameters": count_parameters(recipe),
            "objective": describe_objective(recipe),
            "scales": ", ".join(list_scales(name)),
        }
        rows.append(row | {"title": recipe.title})
    return rows


def _method_rows() -> list[CatalogRow]:
    from antlm_bench.scoring.methods import METHODS

    return [
        {
            "method": method.name,
            "what it is": method.description,
            "attention": " and ".join(sorted(method.attentions)),
        }
        for method in METHODS
    ]


def _architecture_rows() -> list[CatalogRow]:
    return [
        {
            "architecture": architecture.name,
            "model type": architecture.model_type,
            "what it is": architecture.title,
        }
        for architecture in ARCHITECTURES
    ]


CATALOG_LISTINGS: dict[str, Callable[[], list[CatalogRow]]] = {
    "suites": partial(_declaration_rows, "suites"),
    "collections": partial(_declaration_rows, "collections"),
    "models": _model_rows,
    "methods": _method_rows,
    "architectures": _architecture_rows,
}
