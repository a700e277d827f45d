"""`list`: what can be scored and how, one row per name."""

from __future__ import annotations

from collections.abc import Callable

from antlm_bench.declarations import catalog
from antlm_bench.errors import UsageError
from antlm_bench.metrics.acquisition import ACQUISITION
from antlm_bench.suites import loader
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.spec import SuiteSpec, read_spec
from antlm_bench.training.flops import compute_model_size
from antlm_bench.training.recipe import PhaseSpec, Recipe, list_scales, read_recipe

CatalogRow = dict[str, object]


def list_catalog(kind: str = "suites") -> list[CatalogRow]:
    """The rows of KINDS[kind], sorted by name; all rows of a kind have the same columns. Raises
    DeclarationError.
    """
    if kind not in CATALOG_LISTINGS:
        raise UsageError(f"{kind!r} cannot be listed", hint=f"one of {', '.join(CATALOG_LISTINGS)}")
    return CATALOG_LISTINGS[kind]()


def count_items(spec: SuiteSpec) -> int | None:
    """Return how many items the complete suite holds, None where its declaration does not say."""
    if spec.expect:
        return spec.expect.items
    return spec.grammar.pairs * len(spec.grammar.paradigm) if spec.grammar else None


def count_scored_texts(spec: ClassificationSpec) -> int | None:
    """Return how many texts all its tasks score, None where its declaration does not say."""
    rows = [spec.data.files[task.valid].rows for task in spec.task.values()]
    return None if None in rows else sum(count or 0 for count in rows)


def _suite_rows() -> list[CatalogRow]:
    return [
        {"suite": spec.name, "by": by, "items": items, "metric": metric, "title": spec.title}
        for spec in map(read_spec, catalog("tasks").values())
        if not isinstance(spec, CollectionSpec)
        for by, items, metric in [_suite_columns(spec)]
    ]


def _suite_columns(
    spec: SuiteSpec | ClassificationSpec | AcquisitionSpec,
) -> tuple[str, int | None, str]:
    """(the verb that computes it, items, metrics)."""
    if isinstance(spec, SuiteSpec):
        return "score", count_items(spec), spec.metric
    if isinstance(spec, AcquisitionSpec):
        return "score", count_items(loader.read_suite_spec(spec.words)[0]), ACQUISITION
    return (
        "finetune",
        count_scored_texts(spec),
        ", ".join(dict.fromkeys(task.metric for task in spec.task.values())),
    )


def _collection_rows() -> list[CatalogRow]:
    return [
        {
            "collection": spec.name,
            "members": ", ".join(suite for member in spec.members for suite in member.suite_names),
            "title": spec.title,
        }
        for spec in map(read_spec, catalog("tasks").values())
        if isinstance(spec, CollectionSpec)
    ]


def describe_objective(recipe: Recipe) -> str:
    """What a run trains and for how long: `4 CLM + 16 MLM + 4 CLM epochs`, `7,812 CLM:MNTP 1:15
    steps`.
    """
    masked = recipe.objective.masked.upper()

    def block(phase: PhaseSpec) -> str:
        lasts = f"{phase.epochs or phase.steps or 0:,}"
        if phase.causal and phase.masked:
            return f"{lasts} CLM:{masked} {phase.causal:g}:{phase.masked:g}"
        return f"{lasts} {'CLM' if phase.causal else masked}"

    unit = "epochs" if recipe.phase[0].epochs else "steps"
    return f"{' + '.join(map(block, recipe.phase))} {unit}" + (
        ", distilled" if recipe.distil else ""
    )


def count_parameters(recipe: Recipe) -> int:
    """How many its model has, if the tokenizer finds as many tokens in the corpus as it is allowed
    to.
    """
    return compute_model_size(recipe.model, recipe.tokenizer.vocabulary).parameters


def _model_rows() -> list[CatalogRow]:
    rows = []
    for name in catalog("models"):
        recipe = read_recipe(name)
        count, scales = count_parameters(recipe), ", ".join(list_scales(name))
        row = {
            "model": name,
            "parameters": count,
            "objective": describe_objective(recipe),
            "scales": scales,
        }
        rows.append(row | {"title": recipe.title})
    return rows


def _method_rows() -> list[CatalogRow]:
    from antlm_bench.scoring.probes import METHODS

    return [
        {
            "method": name,
            "what it is": one.description,
            "attention": " and ".join(sorted(one.attends)),
        }
        for name, one in METHODS.items()
    ]


CATALOG_LISTINGS: dict[str, Callable[[], list[CatalogRow]]] = {
    "suites": _suite_rows,
    "collections": _collection_rows,
    "models": _model_rows,
    "methods": _method_rows,
}
