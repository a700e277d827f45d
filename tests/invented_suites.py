"""Invented data for every suite of a leaderboard, as files of the official layout: of official size, or a few items."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import WORDS

from antlm_bench.suites import items, sources
from antlm_bench.suites.spec import ExpectSpec, SuiteSpec

TEXTS = (
    "sentence_",
    "Context",
    "Target",
    "prefix_",
    "property_phrase",
    "input_prefix",
    "options",
    "prompt",
    "solution",
)


def serve(patch: pytest.MonkeyPatch, most: int | None = None) -> None:
    """Every suite but reading times is made up, with as many items per group as officially (or `most`)."""
    declared, located = items.suite, sources.locate

    def suite(ref: str) -> tuple[SuiteSpec, Path]:
        spec, folder = declared(ref)
        assert spec.expect
        counts = {group: min(n, most or n) for group, n in spec.expect.counts.items()}
        total = sum(counts.values()) or min(spec.expect.items, most or spec.expect.items)
        expect = ExpectSpec(items=total, counts=counts)
        return (spec if spec.times else spec.model_copy(update={"expect": expect})), folder

    def locate(spec: SuiteSpec, file: str, folder: Path | None = None) -> sources.Found:
        if spec.times:
            return located(spec, file, folder)
        return sources.Found("".join(f"{json.dumps(row)}\n" for row in rows(spec, file)).encode(), f"invented {file}")

    patch.setattr(items, "suite", suite)
    patch.setattr(sources, "locate", locate)


def rows(spec: SuiteSpec, file: str) -> Iterator[dict[str, Any]]:
    """The rows of one file: the record of the suite's own example, with other words, in the groups that it expects."""
    assert spec.expect
    rng = random.Random(f"{spec.name} {file}")
    for group, n in (spec.expect.counts or {"": spec.expect.items}).items():
        record = dict(next(example.record for example in spec.example if not example.skipped))
        if "numops" in record:
            stem, number, _ = group.rsplit("_", 2)
            record["numops"] = int(number)
        else:
            renamed = spec.rename.get(spec.groups[-1], {}) if group else {}
            stem = next((ours for ours, name in renamed.items() if name == group), group)
            record |= {key: group for key in ("UID", "Domain") if key in record}
        if group and file != f"{stem}.jsonl":
            continue
        for i in range(n):
            worded = {key: reworded(value, rng) for key, value in record.items() if key.startswith(TEXTS)}
            yield record | worded | ({"example_id": f"example {i}"} if not group else {})


def reworded(value: str | list[str], rng: random.Random) -> str | list[str]:
    if isinstance(value, list):
        return [str(reworded(one, rng)) for one in value]
    return " ".join(rng.choices(WORDS, k=rng.randint(2, 5))) + " " * value.endswith(" ")
