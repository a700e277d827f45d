"""`show`: one declaration as a reader needs it: what it asks, what it counts, where its data lies, whom to cite."""

from __future__ import annotations

from antlm_bench.commands.list import item_count
from antlm_bench.declarations import find
from antlm_bench.suites import pairs, sources
from antlm_bench.suites.spec import CollectionSpec, ExampleSpec, SuiteSpec, read

Facts = dict[str, str]


def details(name: str) -> tuple[str, Facts]:
    """(name, facts in reading order) of a suite, a collection or a method. Raises DeclarationError, DataError."""
    from antlm_bench.scoring.probes import METHODS

    if name in METHODS:
        one = METHODS[name]
        needs = " and ".join(sorted(one.attends)) + " attention" + (", a mask token" if one.masks else "")
        return f"{name} (method)", {"score": one.says, "needs": needs}
    if pairs.is_pairs_file(name):
        return name, {"kind": "a file of pairs: score it with --suite, name its columns with --columns"}
    spec = read(find("tasks", name))
    facts = _collection(spec) if isinstance(spec, CollectionSpec) else _suite(spec)
    return spec.name, {"title": spec.title} | {key: value for key, value in facts.items() if value}


def _collection(spec: CollectionSpec) -> Facts:
    return {
        "version": spec.version,
        "members": "\n".join(spec.members),
        "headline": "unweighted mean of the members' headlines",
        "homepage": spec.homepage,
        "notes": "\n".join(spec.notes),
    }


def _suite(spec: SuiteSpec) -> Facts:
    return {
        "version": spec.version,
        "licence": spec.licence,
        "citation": spec.citation,
        "homepage": spec.homepage,
        "items": item_count(spec),
        "metric": spec.metric,
        "headline": averaging(spec),
        "groups": " > ".join(spec.groups),
        "example": _example(spec.example[0]) if spec.example else "",
        "data": _data(spec),
        "notes": "\n".join(spec.notes),
    }


def averaging(spec: SuiteSpec) -> str:
    """What the headline averages, as a sentence."""
    over = "all items" if not spec.macro else f"the items of each {spec.macro[-1]}"
    inner = f"{spec.metric} over {over}"
    for level in reversed(spec.macro):
        inner += f", then the unweighted mean over {level}s" if level == spec.macro[-1] else f", then over {level}s"
    return inner


def _example(example: ExampleSpec) -> str:
    """The options of the suite's first self-test, the right one marked."""
    return "\n".join(f"{'+' if index == example.gold else '-'} {text}" for index, text in enumerate(example.options))


def _data(spec: SuiteSpec) -> str:
    if spec.data is None:
        return "generated from the declaration; nothing to fetch"
    rows = sources.status(spec)
    here = [row for row in rows if row.path]
    places = sorted({str(row.path.parent) for row in here if row.path})
    return f"{len(here)} of {len(rows)} files here" + "".join(f"\n{place}" for place in places)
