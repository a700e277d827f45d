"""Files of minimal pairs (CSV, TSV, JSONL) as suites, without a TOML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from antlm_bench.errors import DataError
from antlm_bench.suites import files, records
from antlm_bench.suites.declaration_types import DataSpec, FileSpec
from antlm_bench.suites.names import slugify_title, to_valid_unicode
from antlm_bench.suites.spec import ItemSpec, OptionSpec, SuiteSpec

# Our columns -> the names that are recognised (BLiMP's and lm-eval's, too).
COLUMNS: dict[str, tuple[str, ...]] = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "id": ("id",),
    "field": ("field",),
    "phenomenon": ("phenomenon", "linguistics_term"),
    "paradigm": ("paradigm", "UID"),
}
GROUP_LEVELS = ("field", "phenomenon", "paradigm")
FILE_EXTENSIONS = tuple(f".{name}{gz}" for name in records.PARSERS for gz in ("", ".gz"))


def is_pairs_file(ref: str) -> bool:
    """Return whether a reference to a suite is a CSV, TSV or JSONL file, by its ending."""
    return ref.lower().endswith(FILE_EXTENSIONS)


def columns_for_ref(
    ref: str, refs: Iterable[str], columns: Mapping[str, str] | None
) -> Mapping[str, str] | None:
    """Return the --columns for one of several references: they are for files of pairs.

    Where no reference is a file, all get them, so that the loader refuses them.
    """
    return columns if is_pairs_file(ref) or not any(map(is_pairs_file, refs)) else None


def read_pairs(path: Path, columns: Mapping[str, str]) -> tuple[SuiteSpec, records.RecordFiles]:
    """Return a declaration of the pairs in a file, and its records for `loader.build_items`.

    columns: our column -> the file's. Raises UsageError (an unknown column of ours), DataError
    (absent, unreadable, no rows, a column missing).
    """
    records.check_column_names(columns, COLUMNS)
    file = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    rows = records.read_records(files.read_bytes(path), path.name.lower(), str(path))
    first = next(rows, None)
    if first is None:
        hint = "a file of pairs needs the columns good and bad"
        raise DataError("0 rows", location=str(path), hint=hint)
    names = _match_columns(first[1], columns, f"{path}:{first[0]}")
    spec = _build_spec(file, path.name, set(names))
    return spec, [(file, str(path), _rename_columns(chain([first], rows), names, str(path)))]


def suite_name_from_file(file: str) -> str:
    """Return the name of a suite that is a user's file; "" where its name has no letter."""
    return slugify_title(file.rpartition(".")[0])


def _match_columns(
    record: records.Record, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """Return our column -> the file's, for those that the file has."""
    names = {}
    for ours, spellings in COLUMNS.items():
        candidates = (columns[ours],) if ours in columns else spellings
        present = [name for name in candidates if name in record]
        if present:
            names[ours] = present[0]
        elif ours in columns or ours in ("good", "bad"):
            advice = f"; say which with --columns {ours}=..."
            raise records.missing_column_error(candidates[0], record, location, advice)
    return names


def _rename_columns(
    rows: Iterable[tuple[int, records.Record]], column_names: Mapping[str, str], location: str
) -> records.Records:
    for line, record in rows:
        if missing := [name for name in column_names.values() if name not in record]:
            raise DataError(f"the field {missing[0]!r} is missing", location=f"{location}:{line}")
        yield line, {ours: record[name] for ours, name in column_names.items()}


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
        data=DataSpec(where=("{file}",), files={"pairs": FileSpec()}),
    )
