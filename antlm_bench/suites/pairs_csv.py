"""Users' files of minimal pairs (CSV, TSV, JSONL) as suites, without a TOML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from antlm_bench.errors import DataError
from antlm_bench.suites import files, records
from antlm_bench.suites.declaration_types import DataSpec, FileSpec
from antlm_bench.suites.names import slugify_title, to_valid_unicode
from antlm_bench.suites.spec import ItemSpec, OptionSpec, SuiteSpec

# Column -> its recognised names in a file, among them BLiMP's.
COLUMNS: dict[str, tuple[str, ...]] = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "id": ("id",),
    "field": ("field",),
    "phenomenon": ("phenomenon", "linguistics_term"),
    "paradigm": ("paradigm", "UID"),
    "cluster": ("cluster",),
}
GROUP_LEVELS = ("field", "phenomenon", "paradigm")
FILE_EXTENSIONS = tuple(f".{name}{gz}" for name in records.PARSERS for gz in ("", ".gz"))


def is_pairs_file(ref: str) -> bool:
    """Return whether a reference to a suite is a CSV, TSV or JSONL file, by its extension."""
    return ref.lower().endswith(FILE_EXTENSIONS)


def columns_for_ref(
    ref: str, refs: Iterable[str], columns: Mapping[str, str] | None
) -> Mapping[str, str] | None:
    """Return the value of --columns for one of several references; None if it is no file of pairs.

    If none of the references is one, all get the value, so that loading them raises an error.
    """
    has_pairs_file = any(is_pairs_file(other) for other in refs)
    return columns if is_pairs_file(ref) or not has_pairs_file else None


def read_pairs(path: Path, columns: Mapping[str, str]) -> tuple[SuiteSpec, records.RecordFiles]:
    """Return a declaration of the pairs in a file, and its records for `loader.build_items`.

    columns: key of COLUMNS -> name in the file. Raises UsageError (an unknown key), DataError (the
    file is missing or unreadable, has no rows, or lacks a column).
    """
    records.check_column_names(columns, COLUMNS)
    file = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    rows = records.read_records(files.read_bytes(path), path.name.lower(), str(path))
    first = next(rows, None)
    if first is None:
        hint = "a file of pairs needs the columns good and bad"
        raise DataError("0 rows", location=str(path), hint=hint)
    line, record = first
    names = _match_columns(record, columns, f"{path}:{line}")
    spec = _build_spec(file, path.name, set(names))
    return spec, [(file, str(path), _rename_columns(chain([first], rows), names, str(path)))]


def suite_name_from_file(file: str) -> str:
    """Return the name of a user's file as a suite; "" if it has no letter and no digit."""
    return slugify_title(file.rpartition(".")[0])


def _match_columns(
    record: records.Record, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """Return key of COLUMNS -> name in the file, for the columns that the file has."""
    names = {}
    for column, recognised_names in COLUMNS.items():
        candidates = (columns[column],) if column in columns else recognised_names
        matches = [name for name in candidates if name in record]
        if matches:
            names[column] = matches[0]
        elif column in columns or column in ("good", "bad"):
            advice = f"; name it with --columns {column}=..."
            raise records.missing_column_error(candidates[0], record, location, advice)
    return names


def _rename_columns(
    rows: Iterable[tuple[int, records.Record]], column_names: Mapping[str, str], location: str
) -> records.Records:
    for line, record in rows:
        for name in column_names.values():
            if name not in record:
                raise records.missing_column_error(name, record, f"{location}:{line}")
        yield line, {column: record[name] for column, name in column_names.items()}


def _build_spec(file: str, title: str, columns: set[str]) -> SuiteSpec:
    groups = tuple(level for level in GROUP_LEVELS if level in columns)
    return SuiteSpec(
        kind="suite",
        name=suite_name_from_file(file) or "pairs",
        version="user",
        title=f"pairs of {to_valid_unicode(title)}",
        licence="not stated",
        citation="not stated",
        groups=groups,
        macro=groups[-1:],
        item=ItemSpec(
            options=(OptionSpec(scored="{good}"), OptionSpec(scored="{bad}")),
            id="{id}" if "id" in columns else None,
        ),
        labels={level: f"{{{level}}}" for level in groups},
        cluster=("{cluster}",) if "cluster" in columns else (),
        data=DataSpec(where=("{file}",), files={"pairs": FileSpec()}),
    )
