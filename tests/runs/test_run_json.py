"""run.json: its format is a promise (golden file), and whatever else stands in its place is an
error with a place.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antlm_bench.errors import RunError
from antlm_bench.runs.run_json import SCHEMA_VERSION, decode_run_json, encode_run_json
from antlm_bench.types import Cell, Estimate, Group, Manifest, Summary

GOLDEN = Path(__file__).parent.parent / "golden" / "run.json"
MANIFEST = Manifest(
    SCHEMA_VERSION,
    {
        "name": "out/babyllama",
        "weights": "ab12",
        "parameters": 58_000_000,
        "tied": True,
        "mask": None,
    },
    {"antlm-bench": "0.1.0", "torch": "2.13.0"},
    "2026-01-01T00:00:00+00:00",
)
HEADLINE = Estimate(0.625, 8, 0.3, 0.86, {"tie": 1, "unk": 2})
SUMMARY = Summary(
    suite="blimp",
    method="causal",
    metric="accuracy",
    macro=("paradigm",),
    headline=HEADLINE,
    views={"clustered": Estimate(0.625, 8, 0.0, 1.0, {"tie": 1})},
    groups=(
        Group("phenomenon", "island_effects", Estimate(0.5, 4, 0.15, 0.85)),
        Group("paradigm", "wh_island", Estimate(0.75, 4, 0.3, 0.95, {"tie": 1}), "island_effects"),
    ),
    notes=("incomplete: 8 of 67000 pairs",),
)
SCORED = Cell(
    "blimp", "causal", "k1", {"bos": "auto", "ties": "half", "limit": None}, SUMMARY, "d" * 64
)
CELL = Cell(
    "glue-2025.rte",
    "finetune-full",
    "k2",
    {"lr": 3e-5},
    SUMMARY,
    "e" * 64,
    2,
    {"best": 3, "loss": [0.7, 0.5]},
)
FILES = [
    "predictions/blimp.causal.parquet",
    "predictions/glue-2025.rte.finetune-full.seed2.parquet",
]
BYTES = encode_run_json(MANIFEST, [SCORED, CELL], FILES)


def test_the_format_is_the_golden_one() -> None:
    assert BYTES.decode() == GOLDEN.read_text(encoding="utf-8")


def test_round_trip() -> None:
    assert decode_run_json(BYTES, "run.json") == (MANIFEST, (SCORED, CELL))


def test_a_run_of_schema_1_is_read_as_one_without_seeds() -> None:
    """Runs written before finetuning stay readable."""
    old = (GOLDEN.parent / "run.schema1.json").read_bytes()
    assert decode_run_json(old, "run.json") == (replace(MANIFEST, schema=1), (SCORED,))


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ESTIMATES = st.builds(
    Estimate,
    NUMBERS,
    st.integers(0, 10**9),
    NUMBERS,
    NUMBERS,
    st.dictionaries(st.text(), st.integers(0, 2**63 - 1)),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SUMMARIES = st.builds(
    Summary,
    TEXT,
    TEXT,
    TEXT,
    st.lists(TEXT, max_size=3).map(tuple),
    ESTIMATES,
    st.dictionaries(TEXT, ESTIMATES, max_size=3),
    st.lists(st.builds(Group, TEXT, TEXT, ESTIMATES, TEXT), max_size=3).map(tuple),
    st.lists(TEXT, max_size=3).map(tuple),
)


@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(SUMMARIES)
def test_any_summary_survives(summary: Summary) -> None:
    cell = replace(CELL, summary=summary)
    assert decode_run_json(encode_run_json(MANIFEST, [cell], FILES[1:]), "run.json")[1] == (cell,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_never_written(bad: float) -> None:
    cell = replace(CELL, summary=replace(SUMMARY, headline=replace(HEADLINE, value=bad)))
    with pytest.raises(RunError, match=r"run\.json"):
        encode_run_json(MANIFEST, [cell], FILES[1:])


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    newer = BYTES.replace(b'"schema": 2', b'"schema": 3', 1)
    with pytest.raises(RunError, match="newer antlm-bench") as caught:
        decode_run_json(newer, "run.json")
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"schema": NaN}', "not JSON"),
        (b"[]", "should be an object"),
        (b"{}", "run.json: schema: should be int, is missing"),
        (b'{"schema": true}', "schema: should be int"),
        (b'{"schema": 1}', "manifest: should be an object"),
        (
            BYTES.replace(b"0.625", b"1e999", 1),
            "cells.0.summary.headline.value: should be a finite number",
        ),
        (BYTES.replace(b'"n": 8', b'"n": "8"', 1), "headline: n: should be int, is str"),
        (BYTES.replace(b'"paradigm"\n', b"3\n", 1), "macro: should be a list of strings"),
        (
            BYTES.replace(b"predictions/blimp", b"predictions/../blimp", 1),
            "should be the name of a file in predictions",
        ),
    ],
)
def test_damage_is_an_error_that_names_the_field(data: bytes, words: str) -> None:
    with pytest.raises(RunError, match=words):
        decode_run_json(data, "run.json")


def every_path(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        path,
        *(deeper for key, child in children for deeper in every_path(child, (*path, key))),
    ]


DOCUMENT = json.loads(BYTES)
JUNK = st.sampled_from([None, True, "text", -1, 1.5, [], {}, [None], {"": None}])


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(every_path(DOCUMENT)[1:]), JUNK, st.booleans())
def test_junk_in_any_field_is_read_or_a_typed_error(
    path: tuple[Any, ...], junk: Any, remove: bool
) -> None:
    document = copy.deepcopy(DOCUMENT)
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    if remove:
        del parent[path[-1]]
    else:
        parent[path[-1]] = junk
    try:
        decode_run_json(json.dumps(document).encode(), "run.json")
    except RunError as error:
        assert error.location.startswith("run.json")
