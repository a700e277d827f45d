"""Read users' files of minimal pairs or judgements, and folders of them, without a TOML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from antlm_bench.declarations import expand_user_path, is_file, is_folder, list_declarations
from antlm_bench.errors import DataError
from antlm_bench.printable import format_count
from antlm_bench.suites import files, pair_layouts, records
from antlm_bench.suites.acceptability import AcceptabilitySpec, JudgementSpec
from antlm_bench.suites.declaration_types import FileSpec
from antlm_bench.suites.names import slugify_title, to_valid_unicode
from antlm_bench.suites.pair_layouts import (
    DEFAULT_LAYOUT,
    GROUP_LEVELS,
    LAYOUTS,
    ORDERS,
    PairFormat,
)
from antlm_bench.suites.spec import GOOD_AND_BAD, ItemSpec, SuiteDataSpec, SuiteSpec
from antlm_bench.suites.task_types import USER_DEFAULTS, SuiteRequest

TABLE_EXTENSIONS = tuple(f".{name}{gz}" for name in records.PARSERS for gz in ("", ".gz"))
FILE_EXTENSIONS = (*TABLE_EXTENSIONS, ".txt", ".txt.gz")
OTHER_FOLDER_FILES = ("config.json", "run.json", "shard.json", "sweep.json")
"""A folder with one of these files is a checkpoint, a run or a sweep, not a suite."""
FORMAT_FIELDS = ("columns", "layout", "good")
"""Fields of a SuiteRequest that say how a file of pairs is read."""


def is_table_file(ref: str) -> bool:
    """Return whether a reference is a CSV, TSV or JSONL file, by its extension."""
    return ref.lower().endswith(TABLE_EXTENSIONS)


def is_pairs_ref(ref: str) -> bool:
    """Return whether a reference to a suite is a file of pairs, by its extension, or a folder with
    such files that has no name of the catalog.
    """
    path = expand_user_path(ref)
    if ref.lower().endswith(FILE_EXTENSIONS):
        return True
    is_catalog_name = ref in list_declarations("tasks")
    return is_folder(path) and not is_catalog_name and bool(list_pair_files(path))


def pairs_exist(ref: str) -> bool:
    """Return whether a file or folder of pairs exists."""
    path = expand_user_path(ref)
    return is_file(path) or is_folder(path)


def list_pair_files(path: Path) -> list[Path]:
    """Return the files of pairs of a folder and its subfolders, sorted; [path] for a file.

    Hidden files, those called README or LICENSE, and deeper folders are left out. Returns [] for a
    folder with a file in OTHER_FOLDER_FILES.
    """
    if not is_folder(path):
        return [path]
    if any(is_file(path / name) for name in OTHER_FOLDER_FILES):
        return []
    return sorted(
        file
        for file in chain(path.glob("*"), path.glob("*/*"))
        if file.name.lower().endswith(FILE_EXTENSIONS)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not file.name.upper().startswith(("README", "LICENSE"))
        and is_file(file)
    )


def select_format(ref: str, refs: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in FORMAT_FIELDS that apply to `ref`, which is one of `refs`.

    They apply to files of pairs only. If no reference is a file of pairs, they apply to all, so
    that loading one raises an error.
    """
    has_pairs = any(map(is_pairs_ref, refs))
    if has_pairs and not is_pairs_ref(ref):
        return {}
    return {name: settings[name] for name in FORMAT_FIELDS if settings.get(name)}


def read_pairs(path: Path, request: SuiteRequest) -> tuple[SuiteSpec, records.RecordFiles]:
    """Return a declaration of the pairs in a file or folder, and its records for
    `loader.build_items`.

    In a folder, each file is a paradigm with the file's name; subfolders are the level above.
    Raises UsageError (an unknown column or layout, or nothing says which sentence is right),
    DataError (a file is missing or unreadable, has no rows, lacks a column, or a sentence has no
    partner).
    """
    paths = list_pair_files(path) or [path]
    formats = {file: choose_format(file.name, request) for file in paths}
    if len({each.layout for each in formats.values()}) > 1:
        raise DataError(
            "a folder with both lists of sentences (.txt) and tables",
            location=str(path),
            hint="put them into two folders, or name the layout of all: --layout NAME",
        )
    data_files = [_read_file(file, path, formats[file]) for file in paths]
    spec = _build_spec(path, formats[paths[0]], _list_columns(data_files))
    if not LAYOUTS[formats[paths[0]].layout].is_paired:
        _check_both_labels(path, data_files, request.good)
    else:
        spec = spec.model_copy(update={"notes": (*spec.notes, *_note_different_spaces(data_files))})
    return spec, [(each.name, each.location, _take_rows(each.rows)) for each in data_files]


def choose_format(name: str, request: SuiteRequest) -> PairFormat:
    """Return how a file is read. Without `layout`, a column `key` means "long", an order
    "alternating"; otherwise the extension decides. name: the file's name.
    """
    layout = request.layout
    if not layout and "key" in request.columns:
        layout = "long"
    elif not layout and request.good in ORDERS:
        layout = "alternating"
    elif not layout:
        layout = "labelled" if pair_layouts.is_lines_file(name) else DEFAULT_LAYOUT
    return PairFormat(layout, request.columns, request.good)


def remove_extension(path: Path) -> str:
    """Return the name of a file of pairs without its extension and .gz."""
    return name_in_folder(path, path).rpartition(".")[0]


def name_in_folder(file: Path, root: Path) -> str:
    """Return the name of a file of pairs without .gz: its path below the folder `root`, or its own
    name if it is itself the root.
    """
    name = file.name if file == root else file.relative_to(root).as_posix()
    return name[:-3] if name.lower().endswith(".gz") else name


def suite_name_from_file(file: str) -> str:
    """Return the name of a user's file as a suite; "" if it has no letter and no digit."""
    return slugify_title(file.rpartition(".")[0])


@dataclass(frozen=True, slots=True)
class _PairFile:
    """A file of pairs, of which the first pair was read."""

    name: str
    """Its path below the folder, or its name, without .gz."""
    location: str
    columns: frozenset[str]
    """Fields of the first pair."""
    rows: list[tuple[int, records.Record]]
    """(line, pair) of each pair."""


def _read_file(file: Path, root: Path, pair_format: PairFormat) -> _PairFile:
    raw = files.read_bytes(file)
    rows = list(pair_layouts.read_pairs(raw, file.name.lower(), str(file), pair_format))
    if not rows:
        hint = f"layout {pair_format.layout}: {LAYOUTS[pair_format.layout].description}"
        raise DataError("0 rows", location=str(file), hint=hint)
    return _PairFile(name_in_folder(file, root), str(file), frozenset(rows[0][1]), rows)


def _take_rows(rows: list[tuple[int, records.Record]]) -> Iterator[tuple[int, records.Record]]:
    """Yield the rows and remove each from the list, so that memory never holds all rows together
    with all items.
    """
    rows.reverse()
    while rows:
        yield rows.pop()


def _check_both_labels(path: Path, data_files: Sequence[_PairFile], good: str) -> None:
    """Raise DataError if all sentences with judgements are right, or all are wrong."""
    labels = {pair["label"] for each in data_files for _, pair in each.rows}
    if len(labels) > 1:
        return
    if good and labels == {0}:
        message, hint = f"no sentence has the label {good!r}", "--good LABEL names a label"
    else:
        message = f"all sentences are {'right' if labels == {1} else 'wrong'}"
        hint = "judgements need both, to be told apart; sentences alone: antlm-bench surprisal"
    raise DataError(message, location=str(path), hint=hint)


def _note_different_spaces(data_files: Sequence[_PairFile]) -> tuple[str, ...]:
    """Return a note on pairs whose sentences differ in the white space around them, as in the row
    `The cat sleeps., The cat sleep.`; () if there are none.

    The texts are scored as they are, and tokens differ with the space before them.
    """
    locations = [
        f"{each.name}:{line}"
        for each in data_files
        for line, pair in each.rows
        if len({_outer_spaces(pair.get(name)) for name in ("good", "bad")}) > 1
    ]
    if not locations:
        return ()
    count = format_count(len(locations), "pair")
    return (f"{count} with different white space around the sentences, first {locations[0]}",)


def _outer_spaces(text: object) -> tuple[int, int]:
    """Return the number of white space characters before and after a text."""
    text = str(text)
    return len(text) - len(text.lstrip()), len(text) - len(text.rstrip())


def _list_columns(data_files: Sequence[_PairFile]) -> set[str]:
    """Return the columns of OPTIONAL_COLUMNS that all files have."""
    common = frozenset.intersection(*(each.columns for each in data_files))
    return set(common & pair_layouts.OPTIONAL_COLUMNS.keys())


def _build_spec(path: Path, pair_format: PairFormat, columns: set[str]) -> SuiteSpec:
    labels = {level: f"{{{level}}}" for level in GROUP_LEVELS if level in columns}
    name = slugify_title(remove_extension(path))
    if is_folder(path):
        name = slugify_title(path.resolve().name)
        columns.discard("id")  # ids of different files may be equal
        labels["paradigm"] = "{stem}"
        if any(each.parent != path for each in list_pair_files(path)):
            labels |= {"phenomenon": "{folder}", "paradigm": "{folder}/{stem}"}
    groups = tuple(level for level in GROUP_LEVELS if level in labels)
    has_keys = LAYOUTS[pair_format.layout].has_keys
    clusters = ("{cluster}",) if "cluster" in columns else ("{file} {key}",) * has_keys
    is_default = pair_format.layout == DEFAULT_LAYOUT
    item_id = "{id}" if "id" in columns else None
    keys: dict[str, Any] = {
        **USER_DEFAULTS,
        "name": name or "pairs",
        "notes": () if is_default else (f"read with the layout {pair_format}",),
        "groups": groups,
        "labels": labels,
        "cluster": clusters,
        "data": SuiteDataSpec(files={"pairs": FileSpec()}, **asdict(pair_format)),
    }
    title = to_valid_unicode(path.name)
    if not LAYOUTS[pair_format.layout].is_paired:
        item = JudgementSpec(id=item_id)
        keys |= {"title": f"judgements of {title}", "item": item}
        return AcceptabilitySpec(kind="acceptability", **keys)
    pairs = ItemSpec(options=GOOD_AND_BAD, id=item_id)
    keys |= {"title": f"pairs of {title}", "item": pairs, "macro": groups[-1:]}
    return SuiteSpec(kind="suite", **keys)
