"""Runs and suites for a leaderboard, of official or reduced size, without a model or data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import synthetic_suites
from prediction_rows import PredictionRow, from_rows

from antlm_bench import runs
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import DataError
from antlm_bench.exports import leaderboard
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.spec import SuiteSpec
from antlm_bench.suites.task_types import Suite, read_declaration_file
from antlm_bench.types import Cell, Estimate, Group, Item, Manifest, Option, Summary

SUITE_SPECS = {
    name: spec
    for name, path in list_declarations("tasks").items()
    if isinstance(spec := read_declaration_file(path), SuiteSpec)
}
TEXT_SUITE_SPECS = {
    name: spec for name, spec in SUITE_SPECS.items() if not spec.times and not spec.item.alone
}  # choices of texts
HALF = Estimate(0.5, 2, 0.0, 1.0)
load_shipped_schema = leaderboard.load_schema  # tests replace the name
# Settings of a causal run by a year's conventions, as `score --compat babylm-YEAR` records them.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "2024": {"bos": "auto", "bos_before_context": "never", "context": "", "delimiter": " "},
    "2025": {"bos": "tokenizer", "context": "", "lengths": "positions", "softmax": "float32"},
    "2026": {"bos": "tokenizer", "context": "", "lengths": "positions", "softmax": "float32"},
}


def group_sizes(suite: str, most: int | None = None) -> dict[str, int]:
    spec = TEXT_SUITE_SPECS[suite]
    assert spec.expect
    return {name: min(n, most or n) for name, n in spec.expect.counts.items()}


def make_suite(name: str, most: int | None = None) -> Suite:
    """Make a suite with the official number of items per group (at most `most`).

    Texts are synthetic; the first option is right.
    """
    if name not in TEXT_SUITE_SPECS:
        raise DataError(f"no synthetic suite of {name}", location=name)
    spec = TEXT_SUITE_SPECS[name]
    if not spec.groups:
        return make_ungrouped_suite(name, most)
    with_context = any(option.context for option in spec.item.options)
    items = []
    for group, n in group_sizes(name, most).items():
        for i in range(n):
            text = [f"{group} {i} {which}." for which in ("right", "wrong", "odd")][
                : 3 if spec.item.each else 2
            ]
            options = [
                Option(f"Context. {t}", (8, 9 + len(t))) if with_context else Option(t)
                for t in text
            ]
            gold = i / n if spec.metric == "spearman" else 0
            items.append(
                Item(
                    f"{group}_{i}",
                    tuple(options),
                    gold,
                    dict.fromkeys((*spec.macro, spec.groups[-1]), group),
                )
            )
    return Suite(
        name, "1", "", "", spec.metric, spec.groups, spec.macro, tuple(items), f"digest of {name}"
    )


def make_ungrouped_suite(name: str, most: int | None = None) -> Suite:
    """Make a suite without groups with the official number of examples (at most `most`)."""
    spec = TEXT_SUITE_SPECS[name]
    assert spec.expect
    items = []
    for i in range(min(spec.expect.items, most or spec.expect.items)):
        text = [f"Prompt {i} of {k}." for k in range(len(spec.item.options))]
        items.append(
            Item(
                f"example {i}_0",
                tuple(Option(t, (6, len(t))) for t in text),
                0,
                {"example": f"example {i}"},
            )
        )
    return Suite(name, "1", "", "", spec.metric, (), (), tuple(items), f"digest of {name}")


def make_prediction(item: Item, pred: int = 1, **changes: Any) -> PredictionRow:
    k = len(item.options)
    fields: dict[str, Any] = {
        "scores": tuple(-1.0 if i == pred else -2.0 for i in range(k)),
        "tokens": (3,) * k,
        "characters": (9,) * k,
        "labels": item.labels,
        **changes,
    }
    return PredictionRow(item.id, item.gold, pred, **fields)


def make_cell(
    suite: str, predictions: list[PredictionRow], groups: tuple[Group, ...] = (), **settings: Any
) -> Cell:
    metric = TEXT_SUITE_SPECS[suite].metric if suite in TEXT_SUITE_SPECS else "accuracy"
    summary = Summary(
        suite, "causal", metric, (), Estimate(0.5, max(len(predictions), 1), 0, 1), {}, groups
    )
    reduction = TEXT_SUITE_SPECS[suite].reduction if suite in TEXT_SUITE_SPECS else "sum"
    defaults = {
        "ties": "half",
        "reduction": reduction,
        "suite_digest": f"digest of {suite}",
        "limit": None,
    }
    return Cell(suite, "causal", "k", defaults | CONVENTIONS["2025"] | settings, summary)


def make_word_prediction(i: int) -> PredictionRow:
    """Make the prediction of a word of a reading suite; every tenth has no previous word."""
    k = 1 if i % 10 == 0 else 2
    return PredictionRow(
        f"reading_{i}", 0, 0, (-3.5, -1.25)[:k], (1,) * k, (4,) * k, {"sentence": str(i // 10)}
    )


def make_finetuned_cell(
    task: str,
    seed: int,
    method: str = "finetune-causal",
    history: Mapping[str, Any] | None = None,
    suite: str = "glue-2025",
    **more: Any,
) -> Cell:
    summary = Summary(f"{suite}.{task}", method, "accuracy", (), HALF, {}, ())
    settings = {
        "task": task,
        "limit": [None, None],
        "pooling": "auto",
        "lora": 0,
        "dtype": "float32",
    } | preset_settings(suite, task, "babylm-2024" if suite == "glue-2024" else "babylm-2025")
    return Cell(
        f"{suite}.{task}", method, "k", settings | more, summary, seed=seed, history=history or {}
    )


def preset_settings(suite: str, task: str, preset: str) -> dict[str, Any]:
    """Return the settings of a cell that was finetuned by a preset."""
    spec = read_declaration_file(list_declarations("tasks")[suite])
    assert isinstance(spec, ClassificationSpec)
    return {
        "training": spec.resolve_training(task, preset).model_dump(mode="json"),
        "select": spec.preset[preset].select,
    }


def make_class_predictions(task: str, n: int) -> list[PredictionRow]:
    row = {"scores": (-1.0, -0.5), "tokens": (4, 4), "characters": (9, 9)}
    return [
        PredictionRow(f"{task}:{i}", i % 2, (i + 1) % 2, labels={"task": task}, **row)
        for i in range(n)
    ]


def write_run(
    path: Path, name: str, cells: list[tuple[Cell, list[PredictionRow]]], weights: str = ""
) -> Path:
    """Write the run folder of a checkpoint called `name`."""
    with runs.RunWriter(
        path,
        Manifest(
            runs.SCHEMA_VERSION,
            {"name": name, "weights": weights or name},
            {},
            "2026-01-01T00:00:00",
        ),
    ) as writer:
        for cell, predictions in cells:
            writer.write_cell(cell, from_rows(predictions))
    return path


def write_final_run(
    path: Path,
    year: str,
    most: int | None = None,
    name: str = "out/llama/main",
    without: str = "",
    **settings: Any,
) -> Path:
    """Write the run of a final model: every part of the year that we score but `without`.

    GLUE has seed 42.
    """
    board = leaderboard.load_leaderboard(year)
    settings = CONVENTIONS[year] | settings
    cells: list[tuple[Cell, list[PredictionRow]]] = []
    for part in board.parts_of_track("strict-small"):
        if part.answer_format == "class":
            sizes = leaderboard.count_expected_answers(board.name, part.key)
            cells += [
                (make_finetuned_cell(task, 42, suite=part.suite), make_class_predictions(task, n))
                for task, n in sizes.items()
            ]
        elif part.answer_format == "surprisal":
            words = [make_word_prediction(i) for i in range(count_reading_words(year))]
            cells.append((make_cell(part.suite, words, **settings), words))
        elif part.suite in TEXT_SUITE_SPECS and part.suite != without:
            predictions = [
                make_prediction(item, i % 2)
                for i, item in enumerate(make_suite(part.suite, most).items)
            ]
            cells.append((make_cell(part.suite, predictions, **settings), predictions))
    return write_run(path, name, cells)


def write_milestone_run(path: Path, year: str, milestone: int, name: str = "") -> Path:
    """Write the run of a milestone: summaries of the fast suites, with one prediction each."""
    cells = []
    for part in leaderboard.load_leaderboard(year).milestone_parts:
        if part.suite in TEXT_SUITE_SPECS:
            value = milestone / 1000
            estimate = Estimate(value, 2, 0, 1)
            level = TEXT_SUITE_SPECS[part.suite].finest_level or ""
            groups = tuple(Group(level, group, estimate) for group in group_sizes(part.suite))
            cell = make_cell(part.suite, [], groups)
            cell = replace(cell, summary=replace(cell.summary, headline=estimate))
            cells.append((cell, [make_prediction(make_suite(part.suite, 1).items[0])]))
        elif part.subkeys:
            groups = tuple(Group("measure", name, Estimate(0.01, 2, 0, 1)) for name in part.subkeys)
            cells.append((make_cell(part.suite, [], groups), [make_word_prediction(0)]))
    return write_run(path, name or f"out/llama/chck_{milestone}M", cells)


def write_acquisition_files(folder: Path, year: str) -> dict[str, str]:
    """Write the official files of the age of acquisition for one word; part -> path."""
    word = {"target_word": "dog", "context": "a", "context_id": 0, "surprisal": 1.5}
    milestones = leaderboard.load_leaderboard(year).milestones_of_track("strict-small")
    rows = [
        word | {"step": f"chck_{number}M", "word_count": number * 10**6} for number in milestones
    ]
    surprisals = {"metadata": {"model_name": "x"}, "results": rows}
    documents: dict[str, Any] = {}
    if year == "2025":
        documents["aoa"] = surprisals
    else:
        documents |= {"aoa_surprisals": surprisals, "aoa": {"aoa": 0.5}}
    folder.mkdir(exist_ok=True)
    for key, value in documents.items():
        (folder / f"{key}.json").write_text(json.dumps(value))
    return {key: str(folder / f"{key}.json") for key in documents}


def count_reading_words(year: str) -> int:
    return leaderboard.count_expected_answers(f"babylm-{year}", "reading")["reading"]


def shrink_schema(name: str, most: int) -> dict[str, Any]:
    """Return the shipped schema with at most `most` predictions per key, one word per milestone."""
    document = deepcopy(load_shipped_schema(name))

    def shrink(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "array" and "minItems" in node and "maxItems" in node:
                node["minItems"] = node["maxItems"] = min(node["minItems"], most)
            if "minProperties" in node:
                node["minProperties"] = node["maxProperties"] = min(node["minProperties"], most)
            for inner in node.values():
                shrink(inner)

    shrink(document["properties"])
    for part in document["properties"].values():
        if "results" in part.get("properties", {}):
            part["properties"]["results"] |= {"minItems": 19, "maxItems": 19}
    return document


def shrink_whole_schema(name: str, curves: str, most: int, milestones: int) -> dict[str, Any]:
    """Return the shipped schema for `synthetic_suites.serve_synthetic_data`.

    Args:
        curves: the key of the words' surprisals at the milestones; "" if the year has none.
        most: predictions per key; reading times keep all.
    """
    document = shrink_schema(name, most)
    if not curves:
        return document
    parts = document["properties"]
    parts["reading"] = load_shipped_schema(name)["properties"]["reading"]
    words = milestones * synthetic_suites.NUM_WORDS * synthetic_suites.CONTEXTS_PER_WORD
    parts[curves]["properties"]["results"] |= {"minItems": words, "maxItems": words}
    for part in parts["fast_eval_results"]["properties"].values():
        part["anyOf"] = [{"minItems": milestones, "maxItems": milestones}]
    return document
