"""Join two runs item by item: which cells answer the same questions, and the predictions of both as
tables with the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from antlm_bench import runs
from antlm_bench.errors import DataError, NotComparable, RunError, UsageError
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    decode_table,
    find_broken_scores,
)
from antlm_bench.predictions import find_damage
from antlm_bench.runs.predictions_parquet import RESCORE_HINT
from antlm_bench.types import Cell, Ints, Run

DECISIVE_SETTINGS: dict[str, str] = {
    "suite_version": "version of the suite",
    "suite_digest": "items of the suite (digest)",
    "limit": "--limit",
    "bos": "--bos",
    "ties": "--ties",
    "reduction": "reduction of scores",
    "context": "text before every sentence",
    "delimiter": "text before a sentence without context",
    "joiner": "text between context and scored part",
    "bos_before_context": "BOS before a context",
    "lengths": "rule for long texts",
    "softmax": "precision of probabilities",
    "conventions": "conventions of scoring",
    "select": "split that epochs are selected on",
    "held_out": "share held out of the training set",
}
"""Settings of a cell that decide what its score means -> their name for a reader.

Where they differ, the scores of one and the same model can differ."""
NOTED_SETTINGS: dict[str, str] = {
    "dtype": "--dtype",
    "precision": "--precision",
    "engine": "--engine",
    "preset": "--preset",
    "training": "hyper-parameters",
    "pooling": "--pooling",
    "lora": "--lora",
}
"""Settings that move a score by numerical noise, or are part of what is compared."""
MIXED_PREFIX = "mixed"
"""How a note begins that names a difference in spite of which cells were compared."""

SeedCells = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class JoinedTables:
    """One suite in two runs: the same n items in the same order."""

    suite: str
    cells_a: SeedCells
    """The first run's cells, one per seed; scored suites have one."""
    cells_b: SeedCells
    tables_a: tuple[PredictionTable, ...]
    """A table per cell."""
    tables_b: tuple[PredictionTable, ...]
    notes: tuple[str, ...]
    """Sentences that qualify the join."""


def group_cells(run: Run) -> dict[tuple[str, str], SeedCells]:
    """Return (suite, method) -> its cells, in order of seed."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in run:
        groups.setdefault((cell.suite, cell.method), []).append(cell)
    return {
        key: tuple(sorted(cells, key=lambda cell: cell.seed or 0)) for key, cells in groups.items()
    }


def match_cells(
    a: Run, b: Run, suites: Sequence[str] = (), methods: Sequence[tuple[str, str]] = ()
) -> list[tuple[SeedCells, SeedCells]]:
    """Return the cells of both runs that go together: of one suite, under one method or one of the
    pairs `methods`.

    suites: only these; a collection that was finetuned ("glue-2025") stands for its tasks. () = all
    that both hold. Raises UsageError for a suite that one of the runs lacks, NotComparable where no
    suite or no method is in both.
    """
    cells_a, cells_b = group_cells(a), group_cells(b)
    names_a, names_b = ({suite for suite, _ in cells} for cells in (cells_a, cells_b))
    for requested in suites:
        for run, names in ((a, names_a), (b, names_b)):
            if not any(suite_matches(name, requested) for name in names):
                raise UsageError(
                    f"{run.path} has no suite {requested!r}",
                    location="--suite",
                    hint=f"it holds {', '.join(sorted(names)) or 'nothing'}",
                )
    shared = [
        suite
        for suite, _ in cells_a
        if suite in names_b
        and (not suites or any(suite_matches(suite, requested) for requested in suites))
    ]
    if not shared:
        message = f"no suite is in both runs: {_format_names(names_a)} / {_format_names(names_b)}"
        raise NotComparable(
            message, location=f"{a.path} / {b.path}", hint="score both on the same suites"
        )
    paired = [
        (cells_a[suite, method_a], cells_b[suite, method_b])
        for suite in dict.fromkeys(shared)
        for method_a, method_b in _pair_methods(suite, cells_a, cells_b, methods)
    ]
    if not paired:
        suite = shared[0]
        methods_a, methods_b = (
            sorted(method for name, method in cells if name == suite)
            for cells in (cells_a, cells_b)
        )
        message = f"no method is in both runs: {', '.join(methods_a)} / {', '.join(methods_b)}"
        hint = f"say which go together: --method {methods_a[0]}={methods_b[0]}"
        raise NotComparable(message, location=f"{a.path} / {b.path}: {suite}", hint=hint)
    return paired


def suite_matches(suite: str, requested: str) -> bool:
    """Return whether a cell's suite is the requested one, or a task of that collection."""
    return suite == requested or suite.startswith(f"{requested}.")


def join_tables(
    a: Run, b: Run, cells_a: SeedCells, cells_b: SeedCells, allow_mixed: bool = False
) -> JoinedTables:
    """Join the items that two groups of cells share, in the order of the first run.

    Raises NotComparable, naming each setting that differs with both values, or the items; with
    `allow_mixed` what differs becomes a note and the shared items are joined. Items whose right
    answers differ are always refused.
    """
    suite = cells_a[0].suite
    location = f"{a.path} / {b.path}: {suite}"
    differing = _diff_cells(cells_a, cells_b, DECISIVE_SETTINGS)
    noted = _diff_cells(cells_a, cells_b, NOTED_SETTINGS)
    if differing and not allow_mixed:
        raise NotComparable(
            "; ".join(differing),
            location=location,
            hint="score both alike; --allow-mixed compares the items that they share all the same, "
            "and says so",
        )
    tables_a = [load_table(a, cell) for cell in cells_a]
    tables_b = [load_table(b, cell) for cell in cells_b]
    ids = _intersect_ids([tuple(table.ids) for table in (*tables_a, *tables_b)])
    if len(ids) < max(len(table.ids) for table in (*tables_a, *tables_b)):
        counts = f"{len(tables_a[0].ids)} / {len(tables_b[0].ids)}"
        line = f"items: {len(ids)} shared of {counts}"
        if not allow_mixed or not ids:
            suggestion = "; --allow-mixed compares those that they share" if ids else ""
            hint = f"score both on the same data{suggestion}"
            raise NotComparable(line, location=location, hint=hint)
        differing.append(line)
    joined_a, joined_b = (
        [_select_rows(table, ids) for table in tables] for tables in (tables_a, tables_b)
    )
    other = np.flatnonzero(joined_a[0].gold != joined_b[0].gold)
    if len(other):
        message = f"the right answer differs in {len(other)} items, first {ids[int(other[0])]!r}"
        hint = "these are other questions under the same ids"
        raise NotComparable(message, location=location, hint=hint)
    notes = (*(f"{MIXED_PREFIX}: {line}" for line in differing), *noted)
    return JoinedTables(suite, cells_a, cells_b, tuple(joined_a), tuple(joined_b), notes)


def load_table(run: Run, cell: Cell) -> PredictionTable:
    """Return a cell's predictions with all their labels, straight from the columns of its file.

    Raises RunError where the file is damaged or holds what no model says (an empty cell, nan).
    """
    predictions = runs.read_predictions(run.path, cell)
    location = f"{run.path}: {cell.suite}.{cell.method}"
    if problem := find_damage(predictions):
        raise RunError(problem, location=location, hint=RESCORE_HINT)
    try:
        table = decode_table(predictions, predictions.label_levels)
    except DataError as error:
        raise RunError(
            error.message, location=f"{location}: {error.location}", hint=RESCORE_HINT
        ) from error
    broken = find_broken_scores(table)
    if broken.any():
        raise RunError(
            f"the score of {table.ids[int(broken.argmax())]!r} is not a number",
            location=location,
        )
    empty = ~table.valid.any(axis=1) & ~table.get_flag("too-long")
    if empty.any():
        raise RunError(
            f"{table.ids[int(empty.argmax())]!r} has no scores",
            location=location,
            hint=RESCORE_HINT,
        )
    if np.isnan(table.gold).any():
        raise RunError("a gold answer is not a number", location=location, hint=RESCORE_HINT)
    # A level that is missing is reported where it is used (assign_strata).
    missing = {level: (np.full(len(table.ids), -1, np.int32), ()) for level in cell.summary.macro}
    return replace(table, ids=predictions.ids, levels={**missing, **table.levels})


def _pair_methods(
    suite: str,
    cells_a: Mapping[tuple[str, str], SeedCells],
    cells_b: Mapping[tuple[str, str], SeedCells],
    pairs: Sequence[tuple[str, str]],
) -> list[tuple[str, str]]:
    """Return the methods of a suite that go together: the same ones, or the requested pairs that
    both runs have."""
    wanted = pairs or [(method, method) for name, method in cells_a if name == suite]
    return [(x, y) for x, y in wanted if (suite, x) in cells_a and (suite, y) in cells_b]


def _diff_cells(cells_a: SeedCells, cells_b: SeedCells, names: Mapping[str, str]) -> list[str]:
    """Return a line per setting that differs between any two cells, with both values."""
    lines = []
    for a, b in product(cells_a, cells_b):
        values: list[tuple[str, Any, Any]] = [
            (label, a.settings.get(name), b.settings.get(name)) for name, label in names.items()
        ]
        if names is DECISIVE_SETTINGS:
            metric_a, metric_b = ((cell.summary.metric, cell.summary.macro) for cell in (a, b))
            values.append(("metric", metric_a, metric_b))
        lines += [
            f"{label}: {_format_setting(x)} / {_format_setting(y)}"
            for label, x, y in values
            if x != y
        ]
    return list(dict.fromkeys(lines))


def _format_setting(value: object) -> str:
    """Return a setting, short enough for one line."""
    text = "none" if value is None else value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _format_names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _intersect_ids(id_lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the ids that all lists have, in the order of the first."""
    if all(ids == id_lists[0] for ids in id_lists):
        return id_lists[0]
    everywhere = set(id_lists[0]).intersection(*id_lists[1:])
    return tuple(name for name in id_lists[0] if name in everywhere)


def _select_rows(table: PredictionTable, ids: tuple[str, ...]) -> PredictionTable:
    """Return the rows of these ids, in their order."""
    if table.ids == ids:
        return table
    row_of = {name: row for row, name in enumerate(table.ids)}
    rows = np.array([row_of[name] for name in ids], int)
    parts = {
        name: getattr(table, name)[rows]
        for name in ("gold", "scores", "tokens", "characters", "valid", "task_values")
    }
    flags = {name: raised[rows] for name, raised in table.flags.items()}
    levels = {
        level: _compact_codes(codes[rows], names) for level, (codes, names) in table.levels.items()
    }
    return replace(table, ids=ids, **parts, flags=flags, levels=levels)


def _compact_codes(codes: Ints, names: tuple[str, ...]) -> tuple[Ints, tuple[str, ...]]:
    """Return codes of the names that are left, and those names."""
    kept = sorted(set(codes.tolist()) - {-1})
    table = np.full(len(names) + 1, -1, np.int32)  # index -1 is the last one, and stays -1
    table[kept] = np.arange(len(kept))
    return table[codes], tuple(names[code] for code in kept)
