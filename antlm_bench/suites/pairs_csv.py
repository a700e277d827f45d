"""A bare CSV, TSV or JSONL of pairs as a suite: the declaration that its owner did not have to
write.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import files, records
from antlm_bench.suites.declaration_types import DataSpec, FileSpec
from antlm_bench.suites.names import slugify_title, to_valid_unicode
from antlm_bench.suites.spec import ItemSpec, OptionSpec, SuiteSpec

# Our columns, and the spellings that are recognised without being told (BLiMP's and lm-eval's).
COLUMNS: dict[str, tuple[str, ...]] = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "id": ("id",),
    "field": ("field",),
    "phenomenon": ("phenomenon", "linguistics_term"),
    "paradigm": ("paradigm", "UID"),
}
GROUP_LEVELS = ("field", "phenomenon", "paradigm")
FILE_EXTENSIONS = tuple(
    f".{ending}{packed}" for ending in records.PARSERS for packed in ("", ".gz")
)


def is_pairs_file(ref: str) -> bool:
    """Whether a reference is a file of pairs rather than a suite's name or TOML: its ending says
    so.
    """
    return ref.lower().endswith(FILE_EXTENSIONS)


def columns_for_ref(
    ref: str, refs: Iterable[str], columns: Mapping[str, str] | None
) -> Mapping[str, str] | None:
    """The renamed columns of one of several references: of files of pairs alone; without any,
    `items.load` refuses.
    """
    return columns if is_pairs_file(ref) or not any(map(is_pairs_file, refs)) else None


def read_pairs(path: Path, columns: Mapping[str, str]) -> tuple[SuiteSpec, records.RecordFiles]:
    """A suite of the pairs in a file, and its records as `items.build` takes them. `columns`: our
    column -> theirs.

    Raises UsageError (a column that is not ours), DataError (absent, unreadable, no rows, a column
    missing).
    """
    for ours in columns:
        if ours not in COLUMNS:
            hint = suggest_name(ours, COLUMNS) or f"ours are {', '.join(COLUMNS)}"
            raise UsageError(f"unknown column {ours!r}", location="--columns", hint=hint)
    file = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    rows = records.read_records(files.read_bytes(path), path.name.lower(), str(path))
    first = next(rows, None)
    if first is None:
        raise DataError(
            "0 rows", location=str(path), hint="a file of pairs needs the columns good and bad"
        )
    theirs = _match_columns(first[1], columns, f"{path}:{first[0]}")
    spec = _build_spec(file, path.name, set(theirs))
    return spec, [(file, str(path), _rename_columns(first, rows, theirs, str(path)))]


def suite_name_from_file(file: str) -> str:
    """What a suite is called that is a file of the user's, "" where its name has no letter."""
    return slugify_title(file.rpartition(".")[0])


def _match_columns(
    record: records.Record, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """Our column -> theirs, for those that the file has."""
    known = ", ".join(map(repr, list(record)[:20]))
    found = {}
    for ours, spellings in COLUMNS.items():
        wanted = (columns[ours],) if ours in columns else spellings
        present = [name for name in wanted if name in record]
        if present:
            found[ours] = present[0]
        elif ours in columns or ours in ("good", "bad"):
            hint = (
                suggest_name(wanted[0], record)
                or f"there are {known}; say which with --columns {ours}=..."
            )
            raise DataError(f"the column {wanted[0]!r} is missing", location=location, hint=hint)
    return found


def _rename_columns(
    first: tuple[int, records.Record],
    rest: records.Records,
    column_names: Mapping[str, str],
    location: str,
) -> Iterator[tuple[int, records.Record]]:
    for rows in ([first], rest):
        for line, record in rows:
            if missing := [name for name in column_names.values() if name not in record]:
                raise DataError(
                    f"the field {missing[0]!r} is missing", location=f"{location}:{line}"
                )
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
