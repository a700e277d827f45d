"""A bare CSV, TSV or JSONL of pairs as a suite: the declaration that its owner did not have to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from antlm_bench.declarations import nearest
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import files, records
from antlm_bench.suites.names import name_of_title, readable
from antlm_bench.suites.spec import DataSpec, FileSpec, ItemSpec, OptionSpec, SuiteSpec

# Our columns, and the spellings that are recognised without being told (BLiMP's and lm-eval's).
COLUMNS: dict[str, tuple[str, ...]] = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "id": ("id",),
    "field": ("field",),
    "phenomenon": ("phenomenon", "linguistics_term"),
    "paradigm": ("paradigm", "UID"),
}
LEVELS = ("field", "phenomenon", "paradigm")
ENDINGS = tuple(f".{ending}{packed}" for ending in records.READERS for packed in ("", ".gz"))


def is_pairs_file(ref: str) -> bool:
    """Whether a reference is a file of pairs rather than a suite's name or TOML: its ending says so."""
    return ref.lower().endswith(ENDINGS)


def columns_of(ref: str, refs: Iterable[str], columns: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """The renamed columns of one of several references: of files of pairs alone; without any, `items.load` refuses."""
    return columns if is_pairs_file(ref) or not any(map(is_pairs_file, refs)) else None


def read(path: Path, columns: Mapping[str, str]) -> tuple[SuiteSpec, records.Files]:
    """A suite of the pairs in a file, and its records as `items.build` takes them. `columns`: our column -> theirs.

    Raises UsageError (a column that is not ours), DataError (absent, unreadable, no rows, a column missing).
    """
    for ours in columns:
        if ours not in COLUMNS:
            hint = nearest(ours, COLUMNS) or f"ours are {', '.join(COLUMNS)}"
            raise UsageError(f"unknown column {ours!r}", place="--columns", hint=hint)
    file = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    rows = records.read(files.read(path), path.name.lower(), str(path))
    first = next(rows, None)
    if first is None:
        raise DataError("0 rows", place=str(path), hint="a file of pairs needs the columns good and bad")
    theirs = _match(first[1], columns, f"{path}:{first[0]}")
    spec = _spec(file, path.name, set(theirs))
    return spec, [(file, str(path), _renamed(first, rows, theirs, str(path)))]


def named(file: str) -> str:
    """What a suite is called that is a file of the user's, "" where its name has no letter."""
    return name_of_title(file.rpartition(".")[0])


def _match(record: records.Record, columns: Mapping[str, str], place: str) -> dict[str, str]:
    """Our column -> theirs, for those that the file has."""
    known = ", ".join(map(repr, list(record)[:20]))
    found = {}
    for ours, spellings in COLUMNS.items():
        wanted = (columns[ours],) if ours in columns else spellings
        present = [name for name in wanted if name in record]
        if present:
            found[ours] = present[0]
        elif ours in columns or ours in ("good", "bad"):
            hint = nearest(wanted[0], record) or f"there are {known}; say which with --columns {ours}=..."
            raise DataError(f"the column {wanted[0]!r} is missing", place=place, hint=hint)
    return found


def _renamed(
    first: tuple[int, records.Record], rest: records.Records, theirs: Mapping[str, str], place: str
) -> Iterator[tuple[int, records.Record]]:
    for rows in ([first], rest):
        for line, record in rows:
            if missing := [name for name in theirs.values() if name not in record]:
                raise DataError(f"the field {missing[0]!r} is missing", place=f"{place}:{line}")
            yield line, {ours: record[name] for ours, name in theirs.items()}


def _spec(file: str, title: str, columns: set[str]) -> SuiteSpec:
    groups = tuple(level for level in LEVELS if level in columns)
    return SuiteSpec(
        kind="suite",
        name=named(file) or "pairs",
        version="user",
        title=f"pairs of {readable(title)}",
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
