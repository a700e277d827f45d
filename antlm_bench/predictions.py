"""Predictions as an Arrow table: built by scorers, stored as they are, read by metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antlm_bench.errors import DataError, RunError
from antlm_bench.prediction_schema import CLUSTER, UNIGRAM, PredictionColumn, PredictionSchema
from antlm_bench.printable import format_count
from antlm_bench.types import FLAGS, Bools, Encodings, Example, Floats, Ints, Item

GOLD_OPTION, GOLD_RATING = "option", "rating"
"""What the column `gold` holds: the index of an option, or a number such as a human rating."""
ARROW_TYPES = {"string": pa.string(), "float64": pa.float64(), "int32": pa.int32()}
MAX_SCORES = 100_000_000
"""Items x options of one suite; a file with more is damaged."""

LabelCodes = tuple[Ints, tuple[str, ...]]
"""(codes, names). codes (n,): index into the names, -1 = no label. The names are in order of
appearance."""
FlagColumn = tuple[str, Bools]
"""(key of types.FLAGS, (n,) True where an item raises the flag)."""


UNSCORED_VALUE = -1.0
"""Stored as the score of every option of an item with the flag "too-long". No metric uses it: such
an item is wrong, or left out of a correlation."""


class OptionColumns(NamedTuple):
    """Scores and lengths of all options of n items, one option after the other."""

    counts: Ints
    """(n,) number of options of each item."""
    scores: Floats
    """(sum of counts,) summed log-probability, nats."""
    tokens: NDArray[Any]
    """(sum of counts,) number of tokens that a score sums over."""
    characters: NDArray[Any]
    """(sum of counts,) number of characters."""


class IdColumn(Sequence[str]):
    """Ids of n items. An id becomes a Python string when it is read, because most never are."""

    def __init__(self, array: Any) -> None:
        """Wrap an Arrow array of strings."""
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return IdColumn(self._array[index])
        return str(self._array[index].as_py())


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions of n items under one method, one row per item: ids and numbers, never texts."""

    table: Any
    """`pyarrow.Table` with the columns of a PredictionSchema and perhaps `labels`. Its metadata
    say in "gold" whether golds are GOLD_OPTION or GOLD_RATING."""

    @classmethod
    def build(
        cls,
        items: Sequence[Item | Example],
        pred: NDArray[Any],
        options: OptionColumns,
        flags: Sequence[FlagColumn] = (),
    ) -> Predictions:
        """Build the predictions of items from columns.

        pred (n,): index of the preferred options. flags: the flags of an item stand in this order.
        Raises RunError for an id or label that is not valid Unicode.
        """
        offsets = np.concatenate([[0], np.cumsum(options.counts)])
        lists = {
            "scores": _list_array(offsets, _to_arrow(options.scores, "float64")),
            "tokens": _list_array(offsets, _to_arrow(options.tokens, "int32")),
            "characters": _list_array(offsets, _to_arrow(options.characters, "int32")),
        }
        is_index = all(isinstance(item.gold, Integral) for item in items)
        levels = sorted({level for item in items for level in item.labels})
        try:
            columns = {
                "id": pa.array([item.id for item in items], pa.string()),
                "gold": pa.array([item.gold for item in items], pa.float64()),
                "pred": _to_arrow(pred, "int32"),
                **lists,
                "flags": _flags_array(flags, len(items)),
            }
            labels = {
                level: pa.array([item.labels.get(level) for item in items], pa.string())
                for level in levels
            }
        except (UnicodeEncodeError, pa.ArrowException, OverflowError) as error:
            raise RunError(
                f"cannot be stored: {error}",
                location=f"items {items[0].id!r} to {items[-1].id!r}",
                hint="ids and labels must be valid Unicode, numbers must fit their column",
            ) from error
        return _assemble(columns, labels, GOLD_OPTION if is_index else GOLD_RATING)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.table["id"].to_pylist())

    @property
    def id_column(self) -> IdColumn:
        """The ids, for readers that need few of them."""
        return IdColumn(self._array("id"))

    @property
    def gold(self) -> Floats:
        """(n,) index of the right option, or a rating."""
        return self._numbers("gold")

    @property
    def has_ratings(self) -> bool:
        """Whether golds are numbers such as human ratings, and not the indices of options."""
        return bool(self.table.schema.metadata[b"gold"] == GOLD_RATING.encode())

    @property
    def pred(self) -> Ints:
        """(n,) index of the preferred option."""
        return self._numbers("pred")

    @property
    def option_counts(self) -> Ints:
        """(n,) number of options."""
        return self._list_lengths("scores")

    @property
    def label_levels(self) -> tuple[str, ...]:
        """Names of the label levels, in alphabetical order."""
        if "labels" not in self.table.column_names:
            return ()
        return tuple(field.name for field in self.table.schema.field("labels").type)

    def flat(self, name: str) -> NDArray[Any]:
        """Return a list column such as `scores` as one array, one item after the other."""
        return _to_numpy(self._array(name).flatten())

    def first(self, name: str) -> NDArray[Any]:
        """Return the number (n,) of each item's first option. Every item must have an option."""
        starts = np.cumsum(self.option_counts) - self.option_counts
        return np.asarray(self.flat(name)[starts])

    def padded(self, name: str) -> Floats:
        """Return a list column as (n, k), 0 beyond an item's options.

        Raises DataError where an item has another number of values than scores.
        """
        counts, lengths = self.option_counts, self._list_lengths(name)
        if not np.array_equal(counts, lengths):
            row = int(np.flatnonzero(counts != lengths)[0])
            raise DataError(
                "scores, tokens and characters are of different numbers of options",
                location=f"item {self.table['id'][row].as_py()}",
            )
        valid = self.valid
        column = np.zeros(valid.shape)
        column[valid] = self.flat(name)
        return column

    @property
    def valid(self) -> Bools:
        """(n, k) False where an item has no such option."""
        counts = self.option_counts
        return np.asarray(np.arange(max(int(counts.max(initial=0)), 1)) < counts[:, None])

    def flags(self) -> dict[str, Bools]:
        """Return flag -> (n,) True where raised, for the flags that any item raises."""
        rows = np.repeat(np.arange(len(self)), self._list_lengths("flags"))
        encoded = self._array("flags").flatten().dictionary_encode()
        codes = _to_numpy(encoded.indices)
        flags = {}
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            is_flagged = np.zeros(len(self), bool)
            is_flagged[rows[codes == code]] = True
            flags[name] = is_flagged
        return flags

    def has_flag(self, name: str) -> Bools:
        """Return where a flag is raised, (n,)."""
        return self.flags().get(name, np.zeros(len(self), bool))

    def flag_lists(self) -> list[list[str]]:
        """Return the flags of each item, for a writer of texts."""
        flags: list[list[str]] = self.table["flags"].to_pylist()
        return flags

    def labels(self, level: str) -> list[str | None]:
        """Return the label of each item at a level; None = no label."""
        if level not in self.label_levels:
            return [None] * len(self)
        labels: list[str | None] = self._label_array(level).to_pylist()
        return labels

    def encode_labels(self, level: str) -> LabelCodes:
        """Return the labels of a level as codes."""
        if level not in self.label_levels:
            return np.full(len(self), -1, np.int32), ()
        encoded = self._label_array(level).dictionary_encode()
        return _to_numpy(encoded.indices), tuple(encoded.dictionary.to_pylist())

    @property
    def clusters(self) -> Ints | None:
        """(n,) number of each item's cluster; None if the run does not say which items belong
        together."""
        if CLUSTER.name not in self.table.column_names:
            return None
        encoded = self._array(CLUSTER.name).dictionary_encode()
        codes, names = _to_numpy(encoded.indices), encoded.dictionary.to_pylist()
        is_alone = np.isin(codes, [code for code, name in enumerate(names) if not name])
        return np.where(is_alone, len(names) + np.arange(len(codes)), codes).astype(np.int32)

    @property
    def task_values(self) -> Floats:
        """(n, m) values of the lm-eval task's own m metrics, nan = none; m = 0 without metrics.

        Raises DataError where items have different numbers of values.
        """
        if "judged" not in self.table.column_names:
            return np.empty((len(self), 0))
        counts = self._list_lengths("judged")
        if len(other := np.flatnonzero(counts != counts[:1])):
            row = int(other[0])
            raise DataError(
                f"the task's own code gave {counts[row]} values for this item, {counts[0]} for the "
                "first",
                location=f"item {self.table['id'][row].as_py()}",
            )
        return np.asarray(self.flat("judged").reshape(len(self), -1))

    @property
    def unigram_scores(self) -> Floats | None:
        """(n,) log-probability of each text under a unigram model; None = there is none."""
        has_column = UNIGRAM.name in self.table.column_names
        return self._numbers(UNIGRAM.name) if has_column else None

    def raw_values(self) -> list[list[str]]:
        """Return the raw results (JSON) of the items, which corpus metrics need; [] = none."""
        if "kept" not in self.table.column_names:
            return [[] for _ in range(len(self))]
        raw_values: list[list[str]] = self.table["kept"].to_pylist()
        return raw_values

    def with_task_values(
        self, values: Floats, raw_values: Sequence[Sequence[str]] | None = None
    ) -> Predictions:
        """Return the predictions with values (n, m) of the task's own metrics.

        raw_values: raw results of each item; None keeps those that the predictions have.
        """
        columns = self._columns()
        columns.pop("judged", None)
        kept = columns.pop("kept", None)
        if raw_values is not None and any(raw_values):
            kept = pa.array(raw_values, pa.list_(pa.string()))
        if values.shape[1]:
            offsets = np.arange(len(self) + 1) * values.shape[1]
            columns["judged"] = _list_array(offsets, _to_arrow(values.reshape(-1), "float64"))
        if kept is not None:
            columns["kept"] = kept
        return _assemble(columns, self._label_columns(), self._gold_kind)

    def with_clusters(self, clusters: Sequence[str]) -> Predictions:
        """Return the predictions with the cluster (n,) of each item, "" = it is alone. They stay as
        they are if no item has a cluster."""
        return self.with_column(CLUSTER, clusters) if any(clusters) else self

    def with_column(self, column: PredictionColumn, values: Sequence[object]) -> Predictions:
        """Return the predictions with one more column. values (n,): its cells."""
        columns = {**self._columns(), column.name: pa.array(values, arrow_type(column.type))}
        return _assemble(columns, self._label_columns(), self._gold_kind)

    def with_flag(self, name: str, is_flagged: Bools) -> Predictions:
        """Return the predictions with a flag after the others of an item, where raised (n,)."""
        flags = [
            [*flags, name] if has_flag else flags
            for flags, has_flag in zip(self.flag_lists(), is_flagged.tolist(), strict=True)
        ]
        columns = self._columns()
        columns["flags"] = pa.array(flags, pa.list_(pa.string()))
        return _assemble(columns, self._label_columns(), self._gold_kind)

    def take(self, rows: NDArray[np.integer] | Sequence[int]) -> Predictions:
        """Return some rows, in the order of `rows`."""
        indices = _to_arrow(np.asarray(rows), "int32")
        columns = {name: array.take(indices) for name, array in self._columns().items()}
        labels = {level: array.take(indices) for level, array in self._label_columns().items()}
        return _assemble(columns, labels, self._gold_kind)

    def iter_options(self, name: str) -> Iterator[list[float]]:
        """Yield the numbers of each item's options, for a writer of texts."""
        yield from self.table[name].to_pylist()

    @property
    def _gold_kind(self) -> str:
        return GOLD_RATING if self.has_ratings else GOLD_OPTION

    def _array(self, name: str) -> Any:
        return _one_array(self.table[name])

    def _numbers(self, name: str) -> NDArray[Any]:
        return _to_numpy(self._array(name))

    def _list_lengths(self, name: str) -> NDArray[Any]:
        return np.diff(_to_numpy(self._array(name).offsets))

    def _label_array(self, level: str) -> Any:
        return self._array("labels").flatten()[self.label_levels.index(level)]

    def _columns(self) -> dict[str, Any]:
        """Return name -> Arrow array of all columns except the labels."""
        return {name: self._array(name) for name in self.table.column_names if name != "labels"}

    def _label_columns(self) -> dict[str, Any]:
        return {level: self._label_array(level) for level in self.label_levels}


def concat_predictions(batches: Sequence[Predictions]) -> Predictions:
    """Return the rows of all batches, one batch after the other.

    A batch without some label level or optional column gets empty cells there. Raises DataError
    without batches.
    """
    if not batches:
        raise DataError("no predictions to summarise", hint="the suite has no items")
    if len(batches) == 1:
        return batches[0]
    all_columns = [batch._columns() for batch in batches]
    all_labels = [batch._label_columns() for batch in batches]
    types = {name: array.type for columns in all_columns for name, array in columns.items()}
    levels = sorted({level for labels in all_labels for level in labels})
    for batch, columns, labels in zip(batches, all_columns, all_labels, strict=True):
        for name in types.keys() - columns.keys():
            empty = [] if pa.types.is_list(types[name]) else ""
            columns[name] = pa.array([empty] * len(batch), types[name])
        for level in set(levels) - labels.keys():
            labels[level] = pa.nulls(len(batch), pa.string())
    return _assemble(
        {name: pa.concat_arrays([columns[name] for columns in all_columns]) for name in types},
        {level: pa.concat_arrays([labels[level] for labels in all_labels]) for level in levels},
        GOLD_RATING if any(batch.has_ratings for batch in batches) else GOLD_OPTION,
    )


def any_option(mask: Bools, option_counts: Ints) -> Bools:
    """Return whether an option of an item is marked, (n,). mask: one mark per option."""
    rows = np.repeat(np.arange(len(option_counts)), option_counts)
    return np.asarray(np.bincount(rows[mask], minlength=len(option_counts)) > 0)


def item_flags(encodings: Sequence[Encodings], option_counts: Ints) -> list[FlagColumn]:
    """Return the flags of n items whose options were tokenized, each flag of an item once.

    encodings: tokenizations of the same texts, one text per option.
    """
    columns: list[FlagColumn] = []
    for each in encodings:
        masks = {"unk": each.unk, **each.flags}
        for name in [name for name in FLAGS if name in masks]:
            is_flagged = any_option(masks[name], option_counts)
            for earlier_name, earlier in columns:
                if earlier_name == name:
                    is_flagged = is_flagged & ~earlier
            columns.append((name, is_flagged))
    return columns


def find_wrong_column(table: Any, columns: Sequence[PredictionColumn]) -> str:
    """Return how the first wrong column of an Arrow table differs from its declaration.

    Returns "" for a table that has all these columns with their types.
    """
    types = {field.name: field.type for field in table.schema}
    for column in columns:
        expected, actual = arrow_type(column.type), types.get(column.name, "nothing")
        if actual != expected and not (column.is_optional and column.name not in types):
            return f"column {column.name} should hold {expected}, holds {actual}"
    return ""


def check_predictions(predictions: Predictions, schema: PredictionSchema, location: str) -> None:
    """Raise DataError, naming `location`, for predictions that do not match their schema."""
    problem = ""
    table = getattr(predictions, "table", None)
    if not isinstance(table, pa.Table):
        problem = f"predictions should be a Predictions, are a {type(predictions).__name__}"
    else:
        declared = {column.name for column in schema.columns} | {"labels"}
        undeclared = [name for name in table.column_names if name not in declared]
        empty = [n for n in table.column_names if n != "labels" and table[n].null_count]
        problem = find_wrong_column(table, schema.columns) or _find_wrong_labels(table)
        if not problem and undeclared:
            problem = f"column {undeclared[0]} is not in the schema of the task type"
        if not problem and empty:
            expected = arrow_type(schema[empty[0]].type)
            problem = f"column {empty[0]} should hold {expected}, has empty cells"
    if problem:
        raise DataError(
            problem, location=location, hint="see `prediction_schema` of the task type's record"
        )


def check_ids(predictions: Predictions, item_ids: Sequence[str], location: str) -> None:
    """Raise DataError, naming `location`, unless there is a row per item, in the same order."""
    ids = predictions.ids
    if ids == tuple(item_ids):
        return
    if len(ids) != len(item_ids):
        problem = (
            f"{format_count(len(ids), 'prediction')} for {format_count(len(item_ids), 'item')}"
        )
    else:
        pairs = enumerate(zip(ids, item_ids, strict=True), 1)
        row, (actual, expected) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        problem = f"prediction {row} has the id {actual!r}, item {row} has {expected!r}"
    raise DataError(
        problem, location=location, hint="`predict` must return a row per item, in their order"
    )


def find_damage(predictions: Predictions) -> str:
    """Return what is wrong with the cells of a predictions file, "" if nothing is.

    Types are checked where a file is read (runs.predictions_parquet).
    """
    table = predictions.table
    if problem := _find_wrong_labels(table):
        return problem
    for name in table.column_names:
        if name == "labels":
            continue
        array = predictions._array(name)
        if array.null_count:
            return f"column {name} has empty cells"
        if pa.types.is_list(table.schema.field(name).type) and array.flatten().null_count:
            return f"column {name} has empty values"
    if not len(predictions):
        return "no predictions"
    if len(table["id"].unique()) < len(predictions):
        return "an id occurs twice"
    most_options = int(predictions.option_counts.max())
    if len(predictions) * most_options > MAX_SCORES:
        return f"{most_options} options of one item are too many"
    return ""


def _find_wrong_labels(table: Any) -> str:
    if "labels" not in table.column_names:
        return ""
    labels = table.schema.field("labels").type
    if not pa.types.is_struct(labels):
        return f"labels should be a struct of texts, are {labels}"
    wrong = [field for field in labels if field.type != pa.string()]
    return f"label {wrong[0].name!r} should hold texts, holds {wrong[0].type}" if wrong else ""


def arrow_type(name: str) -> Any:
    """Return the Arrow type of a PredictionColumn. Raises KeyError for an unknown name."""
    if name.startswith("list<"):
        return pa.list_(ARROW_TYPES[name[len("list<") : -1]])
    return ARROW_TYPES[name]


def _assemble(columns: Mapping[str, Any], labels: Mapping[str, Any], gold_kind: str) -> Predictions:
    """Return predictions of these columns, the labels last. labels: in alphabetical order."""
    arrays = dict(columns)
    if labels:
        arrays["labels"] = pa.StructArray.from_arrays(list(labels.values()), list(labels))
    return Predictions(pa.table(arrays).replace_schema_metadata({"gold": gold_kind}))


def _flags_array(flags: Sequence[FlagColumn], n: int) -> Any:
    """Return the flags of n items as a list column, each list in the order of `flags`."""
    is_flagged = (
        np.stack([column for _, column in flags], axis=1) if flags else np.zeros((n, 0), bool)
    )
    offsets = np.concatenate([[0], np.cumsum(is_flagged.sum(axis=1))])
    names = [flags[code][0] for code in np.nonzero(is_flagged)[1].tolist()]
    return _list_array(offsets, pa.array(names, pa.string()))


def _list_array(offsets: NDArray[Any], values: Any) -> Any:
    return pa.ListArray.from_arrays(_to_arrow(offsets, "int32"), values)


def _to_arrow(numbers: NDArray[Any], type_name: str) -> Any:
    """Return numbers as an Arrow array. `pyarrow.array` would import pandas first, see below."""
    data = np.ascontiguousarray(numbers, np.dtype(type_name))
    return pa.Array.from_buffers(ARROW_TYPES[type_name], len(data), [None, pa.py_buffer(data)])


def _to_numpy(array: Any) -> NDArray[Any]:
    """Return the numbers of an Arrow array (n,), -1 where it is empty.

    They are read from the memory of the array, because `to_numpy` of pyarrow imports pandas, which
    takes half of the time in which a whole `check` must finish.
    """
    if array.null_count:
        return np.array([-1 if value is None else value for value in array.to_pylist()], np.int32)
    kind = np.dtype({"double": "f8", "int32": "i4"}[str(array.type)])
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


def _one_array(column: Any) -> Any:
    """Return a column as one array without chunks."""
    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else column.combine_chunks()
