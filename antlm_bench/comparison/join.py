"""Join two runs: pair their cells, and load the predictions of a pair as tables with the same rows.

A cell is one suite scored by one method, with one seed if it was finetuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from antlm_bench import runs
from antlm_bench.declarations import list_declarations, parse_toml
from antlm_bench.errors import (
    DataError,
    DeclarationError,
    NotComparable,
    RunError,
    UsageError,
)
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    decode_table,
    find_broken_scores,
    find_clusters,
)
from antlm_bench.predictions import find_damage
from antlm_bench.printable import format_count
from antlm_bench.runs.folder_io import RESCORE_HINT
from antlm_bench.runs.suite_names import OTHER_LIMITS_PREFIX
from antlm_bench.suites.classification_loader import SEEN_IN_TRAINING
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
    "words": "words of mlm-l2r in scripts with marks or without spaces",
    "conventions": "conventions of scoring",
    "select": "split that epochs are selected on",
    "held_out": "share held out of the training set",
}
"""Settings of a cell that decide what its score means -> their name in messages.

If such a setting differs, the same model can have two different scores."""
NOTED_SETTINGS: dict[str, str] = {
    "dtype": "--dtype",
    "precision": "--precision",
    "engine": "--engine",
    "preset": "--preset",
    "training": "hyper-parameters",
    "pooling": "--pooling",
    "unigrams": "text of the unigram model",
    "lora": "--lora",
}
"""Settings whose difference is only noted -> their name in messages. They change scores by
numerical noise, or are part of what is compared.
"""
UNCLUSTERED_NOTE = (
    "an earlier version wrote this: intervals treat items that belong together as independent, and "
    "are too narrow (repeat the command with --again)"
)
MIXED_PREFIX = "mixed"
"""Start of a note on a difference of two cells that were compared because of `allow_mixed`."""

SeedCells = tuple[Cell, ...]
LoadTable = Callable[[Run, Cell], PredictionTable]


@dataclass(frozen=True, slots=True)
class JoinedTables:
    """One suite in two runs: the same n items in the same order."""

    suite: str
    cells_a: SeedCells
    """Cells of the first run: one per seed for a finetuned task, otherwise one."""
    cells_b: SeedCells
    tables_a: tuple[PredictionTable, ...]
    """One table per cell of `cells_a`."""
    tables_b: tuple[PredictionTable, ...]
    notes: tuple[str, ...]
    """Sentences that qualify the join."""

    @property
    def clusters(self) -> Ints | None:
        """(n,): number of each item's cluster; None if no run says which items belong together."""
        return find_clusters((*self.tables_a, *self.tables_b))


def group_cells(run: Run) -> dict[tuple[str, str], SeedCells]:
    """Return (suite, method) -> cells, sorted by seed."""
    cells_by_key: dict[tuple[str, str], list[Cell]] = {}
    for cell in run:
        cells_by_key.setdefault((cell.suite, cell.method), []).append(cell)
    return {
        key: tuple(sorted(cells, key=lambda cell: cell.seed or 0))
        for key, cells in cells_by_key.items()
    }


def match_cells(
    a: Run, b: Run, suites: Sequence[str] = (), methods: Sequence[tuple[str, str]] = ()
) -> list[tuple[SeedCells, SeedCells]]:
    """Return the pairs (cells of a, cells of b) of one suite and method.

    suites: only these; a collection that was finetuned ("glue-2025") stands for its tasks. () = all
    suites of both runs. methods: (method of a, method of b) pairs; () = the same method in both.
    Raises UsageError for a suite that one of the runs lacks, NotComparable if the runs have no
    common suite or no common method.
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
    shared_suites = [
        suite
        for suite, _ in cells_a
        if suite in names_b
        and (not suites or any(suite_matches(suite, requested) for requested in suites))
    ]
    if not shared_suites:
        message = f"no suite is in both runs: {_format_names(names_a)} / {_format_names(names_b)}"
        raise NotComparable(
            message, location=f"{a.path} / {b.path}", hint="score both on the same suites"
        )
    pairs = [
        (cells_a[suite, method_a], cells_b[suite, method_b])
        for suite in dict.fromkeys(shared_suites)
        for method_a, method_b in _pair_methods(suite, cells_a, cells_b, methods)
    ]
    if not pairs:
        suite = shared_suites[0]
        methods_a, methods_b = (
            sorted(method for name, method in cells if name == suite)
            for cells in (cells_a, cells_b)
        )
        message = f"no method is in both runs: {', '.join(methods_a)} / {', '.join(methods_b)}"
        hint = f"name two methods to compare: --method {methods_a[0]}={methods_b[0]}"
        raise NotComparable(message, location=f"{a.path} / {b.path}: {suite}", hint=hint)
    return pairs


def suite_matches(suite: str, requested: str) -> bool:
    """Return whether a cell's suite is the requested one, or a task of that collection."""
    return suite == requested or suite.startswith(f"{requested}.")


def join_tables(
    a: Run,
    b: Run,
    cells_a: SeedCells,
    cells_b: SeedCells,
    allow_mixed: bool = False,
    load_reference_table: LoadTable | None = None,
) -> JoinedTables:
    """Join the items of two groups of cells, in the order of the first run.

    load_reference_table: loads the tables of the first run; default `load_table`.
    Raises NotComparable if a decisive setting or the items differ; the message names each setting
    with both values. With `allow_mixed`, the shared items are joined and each difference becomes a
    note. Always raises NotComparable if an item has different right answers.
    """
    suite = cells_a[0].suite
    location = f"{a.path} / {b.path}: {suite}"
    differing = _diff_cells(cells_a, cells_b, DECISIVE_SETTINGS)
    noted = _diff_cells(cells_a, cells_b, NOTED_SETTINGS)
    if differing and not allow_mixed:
        raise NotComparable(
            "; ".join(differing),
            location=location,
            hint="score both with the same settings; or compare the shared items in spite of this, "
            "with a note: --allow-mixed",
        )
    tables_a = [(load_reference_table or load_table)(a, cell) for cell in cells_a]
    tables_b = [load_table(b, cell) for cell in cells_b]
    ids = _intersect_ids([tuple(table.ids) for table in (*tables_a, *tables_b)])
    if len(ids) < max(len(table.ids) for table in (*tables_a, *tables_b)):
        counts = f"{len(tables_a[0].ids)} / {len(tables_b[0].ids)}"
        line = f"items: {len(ids)} shared of {counts}"
        if not allow_mixed or not ids:
            suggestion = "; --allow-mixed compares the shared items" if ids else ""
            hint = f"score both on the same data{suggestion}"
            raise NotComparable(line, location=location, hint=hint)
        differing.append(line)
    joined_a, joined_b = (
        [_select_rows(table, ids) for table in tables] for tables in (tables_a, tables_b)
    )
    rows = np.flatnonzero(joined_a[0].gold != joined_b[0].gold)
    if len(rows):
        items = format_count(len(rows), "item")
        message = f"the right answer differs in {items}, first {ids[int(rows[0])]!r}"
        hint = "the two runs have different items with the same ids"
        raise NotComparable(message, location=location, hint=hint)
    notes = (
        *(f"{MIXED_PREFIX}: {line}" for line in differing),
        *noted,
        *_data_notes("first", cells_a),
        *_data_notes("second", cells_b),
    )
    joined = JoinedTables(suite, cells_a, cells_b, tuple(joined_a), tuple(joined_b), notes)
    if joined.clusters is None and declares_clusters(*catalog_name(cells_a[0])):
        joined = replace(joined, notes=(*notes, UNCLUSTERED_NOTE))
    return joined


def describe_mixed_seeds(cells: Sequence[Cell]) -> str:
    """Return how the settings of a task's seeds differ, `different settings: epochs 1 / 2`.

    Returns "" if they do not differ.
    """
    all_settings = [_flatten_settings(cell) for cell in cells]
    labels = {**DECISIVE_SETTINGS, **NOTED_SETTINGS}
    differences = []
    for name in dict.fromkeys(name for settings in all_settings for name in settings):
        values = [_format_setting(settings.get(name)) for settings in all_settings]
        if any(settings.get(name) != all_settings[0].get(name) for settings in all_settings):
            differences.append(f"{labels.get(name, name)} {' / '.join(dict.fromkeys(values))}")
    return f"seeds of different settings: {', '.join(differences)}" if differences else ""


def _flatten_settings(cell: Cell) -> dict[str, Any]:
    """Return the settings of a finetuned cell without its seed, with a key per hyper-parameter."""
    settings = {k: value for k, value in cell.settings.items() if k not in ("seed", "training")}
    return settings | _training_settings(cell)


def _training_settings(cell: Cell) -> dict[str, Any]:
    """Return the hyper-parameters of a finetuned cell; {} of a scored one."""
    training = cell.settings.get("training") or {}
    return dict(training) if isinstance(training, dict) else {NOTED_SETTINGS["training"]: training}


def _data_notes(run: str, cells: SeedCells) -> list[str]:
    """Return the notes of cells that qualify what was scored: other limits, overlap with training,
    seeds of different settings.

    run: "first" or "second".
    """
    notes = [
        note
        for cell in cells
        for note in cell.summary.notes
        if note.startswith(OTHER_LIMITS_PREFIX) or SEEN_IN_TRAINING in note
    ]
    mixed = describe_mixed_seeds(cells)
    return [f"{run} run: {note}" for note in dict.fromkeys([*notes, *([mixed] if mixed else [])])]


def load_table(run: Run, cell: Cell) -> PredictionTable:
    """Return a cell's predictions with all their labels.

    Raises RunError if the file is damaged, or if an item has no scores or a score or gold answer
    that is nan.
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


def cache_tables() -> LoadTable:
    """Return a `load_table` that loads each cell once, for a run that is compared with several."""
    tables: dict[tuple[object, ...], PredictionTable] = {}

    def load_cached_table(run: Run, cell: Cell) -> PredictionTable:
        key = (run.path, cell.suite, cell.method, cell.seed)
        if key not in tables:
            tables[key] = load_table(run, cell)
        return tables[key]

    return load_cached_table


def catalog_name(cell: Cell) -> tuple[str, str]:
    """Return the suite of a cell in the catalog and its task, ("", "") for a user's file."""
    if cell.origin:
        return "", ""
    return (cell.suite, "") if cell.seed is None else cell.finetuned_task


def declares_clusters(suite: str, task: str) -> bool:
    """Return whether the TOML of a suite, or of one of its tasks, declares clusters today.

    The TOML is not validated, to keep `check` fast.
    """
    path = list_declarations("tasks").get(suite)
    try:
        table: Any = parse_toml(path) if path else {}
    except DeclarationError:  # a user's TOML that is wrong today
        return False
    if task:
        tasks = table.get("task")
        table = tasks.get(task) if isinstance(tasks, dict) else None
    return isinstance(table, dict) and bool(table.get("cluster") or table.get("group"))


def _pair_methods(
    suite: str,
    cells_a: Mapping[tuple[str, str], SeedCells],
    cells_b: Mapping[tuple[str, str], SeedCells],
    pairs: Sequence[tuple[str, str]],
) -> list[tuple[str, str]]:
    """Return the (method of a, method of b) pairs that both runs have for a suite.

    pairs: the requested ones; () = the same method in both.
    """
    candidates = pairs or [(method, method) for name, method in cells_a if name == suite]
    return [
        (method_a, method_b)
        for method_a, method_b in candidates
        if (suite, method_a) in cells_a and (suite, method_b) in cells_b
    ]


def _diff_cells(cells_a: SeedCells, cells_b: SeedCells, names: Mapping[str, str]) -> list[str]:
    """Return a line per setting that differs between any two cells, with both values."""
    lines = []
    for a, b in product(cells_a, cells_b):
        values: list[tuple[str, Any, Any]] = [
            (label, a.settings.get(name), b.settings.get(name))
            for name, label in names.items()
            if name != "training"
        ]
        if names is DECISIVE_SETTINGS:
            metric_a, metric_b = ((cell.summary.metric, cell.summary.macro) for cell in (a, b))
            values.append(("metric", metric_a, metric_b))
        if "training" in names:
            flat_a, flat_b = _training_settings(a), _training_settings(b)
            values += [(key, flat_a.get(key), flat_b.get(key)) for key in {**flat_a, **flat_b}]
        lines += [
            f"{label}: {_format_setting(value_a)} / {_format_setting(value_b)}"
            for label, value_a, value_b in values
            if value_a != value_b
        ]
    return list(dict.fromkeys(lines))


def _format_setting(value: object) -> str:
    """Return a setting as text of at most 40 characters."""
    if value is None:
        text = "none"
    elif isinstance(value, str) and value:
        text = value
    else:
        text = repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _format_names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _intersect_ids(id_lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the ids that are in all lists, in the order of the first list."""
    if all(ids == id_lists[0] for ids in id_lists):
        return id_lists[0]
    shared_ids = set(id_lists[0]).intersection(*id_lists[1:])
    return tuple(item_id for item_id in id_lists[0] if item_id in shared_ids)


def _select_rows(table: PredictionTable, ids: tuple[str, ...]) -> PredictionTable:
    """Return the rows of a table with these ids, in the order of `ids`."""
    if table.ids == ids:
        return table
    row_by_id = {item_id: row for row, item_id in enumerate(table.ids)}
    rows = np.array([row_by_id[item_id] for item_id in ids], int)
    columns = {
        name: getattr(table, name)[rows]
        for name in ("gold", "scores", "tokens", "characters", "valid", "task_values")
    }
    flags = {name: is_set[rows] for name, is_set in table.flags.items()}
    levels = {
        level: _compact_codes(codes[rows], names) for level, (codes, names) in table.levels.items()
    }
    clusters = None if table.clusters is None else table.clusters[rows]
    return replace(table, ids=ids, **columns, flags=flags, levels=levels, clusters=clusters)


def _compact_codes(codes: Ints, names: tuple[str, ...]) -> tuple[Ints, tuple[str, ...]]:
    """Number the names that occur from 0. Return the new codes (-1 stays -1), and these names."""
    used_codes = sorted(set(codes.tolist()) - {-1})
    new_code = np.full(len(names) + 1, -1, np.int32)  # code -1 indexes the last entry, which is -1
    new_code[used_codes] = np.arange(len(used_codes))
    return new_code[codes], tuple(names[code] for code in used_codes)
