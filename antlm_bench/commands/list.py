"""`list`: what can be scored and how, one row per name."""

from __future__ import annotations

from collections.abc import Callable

from antlm_bench.declarations import catalog, parse
from antlm_bench.errors import UsageError
from antlm_bench.suites.spec import CollectionSpec, SuiteSpec, read

Row = dict[str, str]


def listing(kind: str = "suites") -> list[Row]:
    """The rows of KINDS[kind], sorted by name; all rows of a kind have the same columns. Raises DeclarationError."""
    if kind not in KINDS:
        raise UsageError(f"{kind!r} cannot be listed", hint=f"one of {', '.join(KINDS)}")
    return KINDS[kind]()


def item_count(spec: SuiteSpec) -> str:
    """How many items the complete suite holds, "" where its declaration does not say."""
    if spec.expect:
        return f"{spec.expect.items:,}"
    return f"{spec.grammar.pairs * len(spec.grammar.paradigm):,}" if spec.grammar else ""


def _suites() -> list[Row]:
    return [
        {"suite": spec.name, "items": item_count(spec), "metric": spec.metric, "title": spec.title}
        for spec in map(read, catalog("tasks").values())
        if isinstance(spec, SuiteSpec)
    ]


def _collections() -> list[Row]:
    return [
        {"collection": spec.name, "members": ", ".join(spec.members), "title": spec.title}
        for spec in map(read, catalog("tasks").values())
        if isinstance(spec, CollectionSpec)
    ]


def _models() -> list[Row]:
    return [
        {"model": name, "title": str(parse(path).get("title", "")), "file": str(path)}
        for name, path in catalog("models").items()
    ]


def _methods() -> list[Row]:
    from antlm_bench.scoring.probes import METHODS

    return [
        {"method": name, "what it is": one.says, "attention": " and ".join(sorted(one.attends))}
        for name, one in METHODS.items()
    ]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "suites": _suites,
    "collections": _collections,
    "models": _models,
    "methods": _methods,
}
