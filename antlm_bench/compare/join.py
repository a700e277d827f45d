"""Two runs, item by item: which cells answer the same questions, and their predictions as columns
side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from antlm_bench import runs
from antlm_bench.errors import NotComparable, RunError, UsageError
from antlm_bench.metrics.prediction_table import PredictionTable
from antlm_bench.runs.predictions_parquet import RESCORE_HINT
from antlm_bench.types import Cell, Ints, Run

# Settings of a cell that decide what its score means -> their name for a reader. Where they differ,
# so may the scores of one and the same model.
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
# Settings that move a score by numerical noise, or are part of what is compared.
NOTED_SETTINGS: dict[str, str] = {
    "dtype": "--dtype",
    "precision": "--precision",
    "engine": "--engine",
    "preset": "--preset",
    "training": "hyper-parameters",
    "pooling": "--pooling",
    "lora": "--lora",
}
MAX_SCORES = 100_000_000  # items x options of one suite; beyond it the file is no benchmark's
MIXED_PREFIX = "mixed"  # how a note begins that says what was compared although it differs

SeedCells = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class JoinedTables:
    """One suite in two runs: the same n items in the same order, one Table per seed (scored cells
    have one).

    cells_a, cells_b: what was joined, seed by seed. notes: what a reader must know of the join.
    """

    suite: str
    cells_a: SeedCells
    cells_b: SeedCells
    tables_a: tuple[PredictionTable, ...]
    tables_b: tuple[PredictionTable, ...]
    notes: tuple[str, ...]


def group_cells(run: Run) -> dict[tuple[str, str], SeedCells]:
    """(suite, method) -> its cells, in order of seed."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in run:
        found.setdefault((cell.suite, cell.method), []).append(cell)
    return {
        name: tuple(sorted(each, key=lambda cell: cell.seed or 0)) for name, each in found.items()
    }


def match_cells(
    a: Run, b: Run, suites: Sequence[str] = (), methods: Sequence[tuple[str, str]] = ()
) -> list[tuple[SeedCells, SeedCells]]:
    """The cells of both runs that go together: of one suite, under one method or one of the pairs
    `methods`.

    suites: only these; a collection that was finetuned ("glue-2025") stands for its tasks. () = all
    that both hold. Raises UsageError for a suite that not both runs hold, NotComparable where no
    suite or no method is in both.
    """
    of_a, of_b = group_cells(a), group_cells(b)
    names_a, names_b = ({suite for suite, _ in of} for of in (of_a, of_b))
    for asked in suites:
        for run, names in ((a, names_a), (b, names_b)):
            if not any(suite_matches(name, asked) for name in names):
                hint = f"it holds {', '.join(sorted(names)) or 'nothing'}"
                raise UsageError(
                    f"{run.path} has no suite {asked!r}", location="--suite", hint=hint
                )
    shared = [
        s
        for s, _ in of_a
        if s in names_b and (not suites or any(suite_matches(s, asked) for asked in suites))
    ]
    if not shared:
        message = f"no suite is in both runs: {_format_names(names_a)} / {_format_names(names_b)}"
        raise NotComparable(
            message, location=f"{a.path} / {b.path}", hint="score both on the same suites"
        )
    both = {suite: _pair_methods(suite, of_a, of_b, methods) for suite in dict.fromkeys(shared)}
    paired = [(of_a[s, ma], of_b[s, mb]) for s, pairs in both.items() for ma, mb in pairs]
    if not paired:
        suite = shared[0]
        ways = [sorted(method for name, method in of if name == suite) for of in (of_a, of_b)]
        message = f"no method is in both runs: {', '.join(ways[0])} / {', '.join(ways[1])}"
        hint = f"say which go together: --method {ways[0][0]}={ways[1][0]}"
        raise NotComparable(message, location=f"{a.path} / {b.path}: {suite}", hint=hint)
    return paired


def suite_matches(suite: str, requested: str) -> bool:
    """Is a cell's suite the one asked for, or a task of that collection?"""
    return suite == requested or suite.startswith(f"{requested}.")


def join_tables(
    a: Run, b: Run, cells_a: SeedCells, cells_b: SeedCells, allow_mixed: bool = False
) -> JoinedTables:
    """The items that two groups of cells share, in the order of the first run.

    Raises NotComparable, naming each setting that differs with both values, or the items; with
    `allow_mixed` what differs becomes a note and the shared items are joined. An item whose right
    answer differs is refused always.
    """
    suite = cells_a[0].suite
    place = f"{a.path} / {b.path}: {suite}"
    differing = [
        line for x in cells_a for y in cells_b for line in _diff_settings(x, y, DECISIVE_SETTINGS)
    ]
    differing = list(dict.fromkeys(differing))
    noted = list(
        dict.fromkeys(
            line for x in cells_a for y in cells_b for line in _diff_settings(x, y, NOTED_SETTINGS)
        )
    )
    if differing and not allow_mixed:
        hint = "score both alike; --allow-mixed compares the items that they share all the same, and says so"
        raise NotComparable("; ".join(differing), location=place, hint=hint)
    tables_a = [load_table(a, cell) for cell in cells_a]
    tables_b = [load_table(b, cell) for cell in cells_b]
    ids = _intersect_ids([table.ids for table in (*tables_a, *tables_b)])
    whole = max(len(table.ids) for table in (*tables_a, *tables_b))
    if len(ids) < whole:
        line = f"items: {len(ids)} shared of {' / '.join(str(len(t.ids)) for t in (tables_a[0], tables_b[0]))}"
        if not allow_mixed or not ids:
            hint = "score both on the same data" + (
                "; --allow-mixed compares those that they share" if ids else ""
            )
            raise NotComparable(line, location=place, hint=hint)
        differing.append(line)
    joined_a, joined_b = (
        [_select_rows(table, ids) for table in tables] for tables in (tables_a, tables_b)
    )
    other = np.flatnonzero(joined_a[0].gold != joined_b[0].gold)
    if len(other):
        message = f"the right answer differs in {len(other)} items, first {ids[int(other[0])]!r}"
        raise NotComparable(
            message, location=place, hint="these are other questions under the same ids"
        )
    notes = (*(f"{MIXED_PREFIX}: {line}" for line in differing), *noted)
    return JoinedTables(suite, cells_a, cells_b, tuple(joined_a), tuple(joined_b), notes)


def load_table(run: Run, cell: Cell) -> PredictionTable:
    """A cell's predictions as a Table with all its labels, straight from the columns of its file.

    Raises RunError where the file is damaged or holds what no model says (an empty cell, NaN).
    """
    columns = runs.read_predictions_table(run.path, cell)
    place = f"{run.path}: {cell.suite}.{cell.method}"
    arrays = {name: columns[name].combine_chunks() for name in columns.column_names}
    if empty := [name for name, array in arrays.items() if name != "labels" and array.null_count]:
        raise RunError(f"column {empty[0]} has empty cells", location=place, hint=RESCORE_HINT)
    ids = tuple(arrays["id"].to_pylist())
    if not ids or len(set(ids)) < len(ids):
        raise RunError(
            "an id occurs twice" if ids else "no predictions", location=place, hint=RESCORE_HINT
        )
    sizes = np.diff(_to_numpy(arrays["scores"].offsets))
    if len(sizes) * int(sizes.max()) > MAX_SCORES:
        raise RunError(
            f"{int(sizes.max())} options of one item are too many",
            location=place,
            hint=RESCORE_HINT,
        )
    valid = np.arange(max(int(sizes.max()), 1)) < sizes[:, None]
    flags = _decode_flags(arrays["flags"], len(ids))
    padded = {
        name: _pad_lists(arrays[name], valid, place) for name in ("scores", "tokens", "characters")
    }
    broken = (np.isnan(padded["scores"]) | (padded["scores"] == np.inf)) & valid
    if broken.any():
        raise RunError(
            f"the score of {ids[int(broken.any(axis=1).argmax())]!r} is no number", location=place
        )
    if int(sizes.min()) < 1 and not np.all(
        (sizes > 0) | flags.get("too-long", np.zeros(len(ids), bool))
    ):
        raise RunError(
            f"{ids[int(sizes.argmin())]!r} has no scores", location=place, hint=RESCORE_HINT
        )
    gold = _to_numpy(arrays["gold"])
    if np.isnan(gold).any():
        raise RunError("a right answer is no number", location=place, hint=RESCORE_HINT)
    absent = {
        level: (np.full(len(ids), -1, np.int32), ()) for level in cell.summary.macro
    }  # strata() will say so
    levels = absent | (_decode_labels(arrays["labels"], place) if "labels" in arrays else {})
    judged = (
        _decode_task_metrics(arrays["judged"], len(ids), place)
        if "judged" in arrays
        else np.empty((len(ids), 0))
    )
    return PredictionTable(
        ids, gold, **padded, valid=valid, flags=flags, levels=levels, judged=judged
    )


def _pair_methods(
    suite: str,
    of_a: Mapping[tuple[str, str], Any],
    of_b: Mapping[tuple[str, str], Any],
    pairs: Sequence[Any],
) -> list[tuple[str, str]]:
    """The methods of a suite that go together: the same ones, or the pairs asked for as far as they
    are there.
    """
    wanted = pairs or [(method, method) for name, method in of_a if name == suite]
    return [(x, y) for x, y in wanted if (suite, x) in of_a and (suite, y) in of_b]


def _diff_settings(a: Cell, b: Cell, names: Mapping[str, str]) -> list[str]:
    found = ((said, a.settings.get(name), b.settings.get(name)) for name, said in names.items())
    lines = [
        f"{said}: {_format_setting(x)} / {_format_setting(y)}" for said, x, y in found if x != y
    ]
    if names is DECISIVE_SETTINGS:
        x, y = ((cell.summary.metric, cell.summary.macro) for cell in (a, b))
        lines += [f"metric: {_format_setting(x)} / {_format_setting(y)}"] if x != y else []
    return lines


def _format_setting(value: object) -> str:
    """A setting, short enough for one line."""
    text = "none" if value is None else value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _format_names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _intersect_ids(id_lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The ids that all have, in the order of the first."""
    if all(ids == id_lists[0] for ids in id_lists):
        return id_lists[0]
    everywhere = set(id_lists[0]).intersection(*id_lists[1:])
    return tuple(name for name in id_lists[0] if name in everywhere)


def _select_rows(table: PredictionTable, ids: tuple[str, ...]) -> PredictionTable:
    """The rows of these ids, in their order."""
    if table.ids == ids:
        return table
    at = {name: row for row, name in enumerate(table.ids)}
    rows = np.array([at[name] for name in ids], int)
    parts = {
        name: getattr(table, name)[rows]
        for name in ("gold", "scores", "tokens", "characters", "valid", "judged")
    }
    flags = {name: raised[rows] for name, raised in table.flags.items()}
    levels = {
        level: _compact_codes(codes[rows], names) for level, (codes, names) in table.levels.items()
    }
    return replace(table, ids=ids, **parts, flags=flags, levels=levels)


def _compact_codes(codes: Ints, names: tuple[str, ...]) -> tuple[Ints, tuple[str, ...]]:
    """Codes of the names that are still there."""
    kept = sorted(set(codes.tolist()) - {-1})
    table = np.full(len(names) + 1, -1, np.int32)  # the last one answers for -1
    table[kept] = np.arange(len(kept))
    return table[codes], tuple(names[code] for code in kept)


def _pad_lists(array: Any, valid: Any, location: str) -> Any:
    """A list column as (n, k), 0 beyond an item's options."""
    values = array.flatten()
    if values.null_count or not np.array_equal(
        np.diff(_to_numpy(array.offsets)), valid.sum(axis=1)
    ):
        raise RunError(
            "scores, tokens and characters differ in length", location=location, hint=RESCORE_HINT
        )
    column = np.zeros(valid.shape)
    column[valid] = _to_numpy(values)
    return column


def _decode_task_metrics(array: Any, n: int, location: str) -> Any:
    """What a suite's judge says (n, m): as much of every item."""
    if len(set(np.diff(_to_numpy(array.offsets)).tolist())) > 1:
        raise RunError(
            "the judge says more of one item than of another", location=location, hint=RESCORE_HINT
        )
    return _to_numpy(array.flatten()).reshape(n, -1)


def _decode_flags(array: Any, n: int) -> dict[str, Any]:
    """name -> (n,) True where raised."""
    encoded = array.flatten().dictionary_encode()
    rows, codes = (
        np.repeat(np.arange(n), np.diff(_to_numpy(array.offsets))),
        _to_numpy(encoded.indices),
    )
    return {
        name: np.isin(np.arange(n), rows[codes == code])
        for code, name in enumerate(encoded.dictionary.to_pylist())
    }


def _decode_labels(labels: Any, location: str) -> dict[str, tuple[Ints, tuple[str, ...]]]:
    """level -> codes (n,) and names in order of appearance, as metrics.prediction_table has them."""
    if not str(labels.type).startswith("struct<"):
        raise RunError(
            f"labels should be a struct of texts, are {labels.type}",
            location=location,
            hint=RESCORE_HINT,
        )
    found = {}
    for field, column in zip(labels.type, labels.flatten(), strict=True):
        if str(field.type) != "string":
            raise RunError(
                f"label {field.name!r} should hold texts, holds {field.type}",
                location=location,
                hint=RESCORE_HINT,
            )
        encoded = column.dictionary_encode()
        codes = _to_numpy(encoded.indices)
        found[field.name] = (codes, tuple(encoded.dictionary.to_pylist()))
    return found


def _to_numpy(array: Any) -> Any:
    """The numbers of an Arrow array (n,), -1 where it is empty; read from its memory, because
    pyarrow's own `to_numpy` imports pandas first, which takes half of the time that a verdict has.
    """
    if array.null_count:
        return np.array([-1 if value is None else value for value in array.to_pylist()], np.int32)
    kind = np.dtype({"double": "f8", "int32": "i4"}[str(array.type)])
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
