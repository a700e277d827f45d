"""Find, verify and download the data files of suites.

Order: ANTLM_BENCH_DATA, the folder of a user's own TOML, the cache (ANTLM_BENCH_CACHE, else the
platform's), download. A file is accepted only if its unpacked bytes have the published sha256.
Where none is published, its rows are counted and the sha256 of the first download is kept beside
it. A download is verified before it is stored.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from antlm_bench.declarations import decode_utf8, expand_user_path
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.suites import derivation, files
from antlm_bench.suites.declaration_types import DataSpec, FileSpec, SourceSpec

OFFLINE_VARIABLES = ("ANTLM_BENCH_OFFLINE", "HF_HUB_OFFLINE")


class SuiteWithData(Protocol):
    """A declaration of a suite with files; `data` is None where it generates its items."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> DataSpec | None: ...


@dataclass(frozen=True, slots=True)
class DataFile:
    """The unpacked bytes of a file, and its location for error messages."""

    raw: bytes
    location: str


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The state of one file of a suite."""

    file: str
    state: str
    """absent | here (present, not read) | verified (has the published sha256) | complete (no sha256
    is published; all rows are there) | incomplete | differs | damaged
    """
    path: Path | None = None
    size: int | None = None
    """Bytes on disk."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _FileQuery:
    """A file to find: of the suite itself, or the word list of a derivation."""

    suite: str
    file: str
    where: tuple[str, ...]
    sources: tuple[SourceSpec, ...]
    expected: FileSpec
    password: str | None = None

    def candidate_paths(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Yield (path, member of the zip there or "") under a root, in the order of search."""
        stem = self.file.rpartition(".")[0]
        for pattern in self.where:
            path, _, member = pattern.format(file=self.file, stem=stem).partition("!")
            yield root / path, member


def get_file(spec: SuiteWithData, file: str, folder: Path | None = None) -> DataFile:
    """Return the bytes of one file, downloaded into the cache if need be.

    folder: that of the suite's TOML. Raises DataError: absent (which file, from where, where to put
    it), damaged, not the official bytes, not storable.
    """
    wanted = _build_query(spec, file)
    return _find_file(wanted, data_roots(folder)) or _download_file(spec, wanted, cache_dir())


def find_local_file(
    spec: SuiteWithData, file: str, expected: FileSpec, folder: Path | None = None
) -> DataFile | None:
    """Return the bytes of a file in the suite's folders that is not one of its official files.

    None where it is absent; it is never downloaded. Raises DataError as get_file.
    """
    assert spec.data is not None  # as in _build_query
    query = _FileQuery(spec.name, file, spec.data.where, (), expected, spec.data.password)
    return _find_file(query, data_roots(folder))


def list_files(spec: SuiteWithData, folder: Path | None = None) -> list[FileStatus]:
    """Return which files are present where, without reading them; [] for a generated suite."""
    return _list_files(spec, data_roots(folder))


def verify_files(spec: SuiteWithData, folder: Path | None = None) -> list[FileStatus]:
    """Read every file and compare it with what is published.

    Never downloads, and raises nothing for a bad file.
    """
    return _verify_files(spec, data_roots(folder))


def fetch_files(spec: SuiteWithData, target_dir: Path | None = None) -> list[FileStatus]:
    """Download what is missing or bad into a folder (default: the cache), and verify all files.

    target_dir: can then serve as ANTLM_BENCH_DATA. Raises DataError as get_file.
    """
    root, roots = (target_dir, [target_dir]) if target_dir else (cache_dir(), data_roots())
    for file in spec.data.files if spec.data else ():
        query = _build_query(spec, file)
        try:
            present = _find_file(query, roots)
        except DataError as error:
            if not error.location.startswith(str(root)):
                raise  # a bad file in the user's own folder is not replaced
            present = None
        if not present:
            _download_file(spec, query, root)
    return _verify_files(spec, roots)


def data_roots(folder: Path | None = None) -> list[Path]:
    """Return the folders that are searched, in order.

    Raises UsageError where ANTLM_BENCH_DATA is not a folder.
    """
    roots = [folder] if folder else []
    if own := os.environ.get("ANTLM_BENCH_DATA"):
        roots.insert(0, expand_user_path(own))
        if not roots[0].is_dir():
            raise UsageError(f"{own!r} is not a folder", location="ANTLM_BENCH_DATA")
    return [*roots, cache_dir()]


def cache_dir() -> Path:
    """Return the cache folder, which need not exist: ANTLM_BENCH_CACHE, else the platform's."""
    if own := os.environ.get("ANTLM_BENCH_CACHE"):
        return expand_user_path(own)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "antlm-bench"


def offline_variable() -> str:
    """Return the environment variable that forbids downloads, "" where none does."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}:
            return name
    return ""


# ---- finding and verifying


def _build_query(spec: SuiteWithData, file: str) -> _FileQuery:
    assert spec.data is not None  # callers come from spec.data.files
    data = spec.data
    return _FileQuery(spec.name, file, data.where, data.sources, data.files[file], data.password)


def _iter_present_files(
    query: _FileQuery, search_roots: Iterable[Path]
) -> Iterator[tuple[Path, str]]:
    for root in search_roots:
        for path, member in query.candidate_paths(root):
            for candidate in (path, path.with_name(f"{path.name}.gz")):
                with suppress(OSError, ValueError):
                    if candidate.is_file():
                        yield candidate, member


def _find_file(query: _FileQuery, search_roots: Iterable[Path]) -> DataFile | None:
    for path, member in _iter_present_files(query, search_roots):
        raw, location = files.read_bytes(path), str(path)
        if member:
            raw = files.read_zip_member(raw, member, query.password, location)
            location = f"{path}!{member}"
        data_file = DataFile(raw, location)
        _check_sha256(data_file, query.expected, path)
        return data_file
    return None


def _check_sha256(data_file: DataFile, expected: FileSpec, path: Path) -> None:
    """Raise DataError where bytes are not the published ones, or not those of the first download
    to `path`.
    """
    sha256, reference = expected.sha256, "the published file"
    first_download = _sha256_path(path)
    if not sha256 and first_download.is_file():
        text = first_download.read_text(encoding="ascii", errors="replace")
        sha256, reference = text.split(" ")[0], "the first download"
    if sha256 and (actual := hashlib.sha256(data_file.raw).hexdigest()) != sha256:
        message = (
            f"wrong hash, not the bytes of {reference}: "
            f"sha256 {actual[:12]}..., expected {sha256[:12]}..."
        )
        raise DataError(message, location=data_file.location, hint=files.REFETCH_HINT)


def _sha256_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _list_files(spec: SuiteWithData, search_roots: list[Path]) -> list[FileStatus]:
    rows = []
    for file in spec.data.files if spec.data else ():
        present = _iter_present_files(_build_query(spec, file), search_roots)
        path, _ = next(present, (None, ""))
        size = path.stat().st_size if path else None
        rows.append(FileStatus(file, "here" if path else "absent", path, size))
    return rows


def _verify_files(spec: SuiteWithData, search_roots: list[Path]) -> list[FileStatus]:
    rows = _list_files(spec, search_roots)
    return [
        _verify_file(_build_query(spec, row.file), row, search_roots) if row.path else row
        for row in rows
    ]


def _verify_file(
    query: _FileQuery, file_status: FileStatus, search_roots: list[Path]
) -> FileStatus:
    try:
        data_file = _find_file(query, search_roots)
    except BenchError as error:
        state = "differs" if error.message.startswith("wrong hash") else "damaged"
        return replace(file_status, state=state, detail=error.message)
    assert data_file is not None  # _list_files saw it
    if query.expected.sha256:
        return replace(file_status, state="verified")
    num_rows, expected = files.count_rows(data_file.raw), query.expected.rows
    if expected and num_rows != expected:
        state = "incomplete" if num_rows < expected else "differs"
        return replace(file_status, state=state, detail=f"{num_rows} of {expected} rows")
    return replace(file_status, state="complete", detail="no sha256 is published")


# ---- downloading


def _download_file(spec: SuiteWithData, query: _FileQuery, root: Path) -> DataFile:
    """Download a file from the first source that gives it, and store it under `root`."""
    if variable := offline_variable():
        raise _missing_file_error(query, f"and {variable} forbids to fetch it")
    if not query.sources:
        raise _missing_file_error(query, "and its declaration names no source")
    errors: list[BenchError] = []
    for source in query.sources:
        try:
            if source.hub and not source.config:
                return _derive_files(spec, query, source, root)
            if source.hub:
                raw = _fetch_hub_file(query, source)
            elif source.http:
                raw = files.fetch_url(source.http.format(file=query.file))
            else:
                path = str(source.path).format(file=query.file)
                raw = files.fetch_osf_file(str(source.osf), path)
            return _store_download(query, raw, root, source.location.format(file=query.file))
        except DataError as error:
            errors.append(error)
    by_hand = _missing_file_error(query, "").hint
    if len(errors) == 1:
        hint = "; ".join(hint for hint in (errors[0].hint, by_hand) if hint)
        raise DataError(errors[0].message, location=errors[0].location, hint=hint)
    reasons = "; ".join(f"{error.location}: {error.message}" for error in errors)
    message = f"{query.file} could not be fetched from any of {len(errors)} places: {reasons}"
    raise DataError(message, location=query.suite, hint=by_hand)


def _store_download(query: _FileQuery, raw: bytes, root: Path, origin: str) -> DataFile:
    """Verify a download, then store it.

    An archive is stored as it is, any other file packed (EWoK and entity tracking ask that no plain
    copies lie about), with its sha256 beside it where none is published.
    """
    path, member = next(query.candidate_paths(root))
    if member:
        unpacked = files.read_zip_member(raw, member, query.password, origin)
        _check_sha256(DataFile(unpacked, origin), query.expected, path)
        files.write_atomically(path, raw)
        return DataFile(unpacked, f"{path}!{member}")
    path = path.with_name(f"{path.name}.gz")
    _check_sha256(DataFile(raw, origin), query.expected, path)
    if not query.expected.sha256:
        num_rows = files.count_rows(raw)
        if query.expected.rows not in (None, num_rows):
            message = f"{num_rows} rows of {query.expected.rows}: not the official file"
            raise DataError(message, location=origin)
        line = f"{hashlib.sha256(raw).hexdigest()}  {query.file}\n"
        files.write_atomically(_sha256_path(path), line.encode())
    files.write_atomically(path, gzip.compress(raw, mtime=0))
    return DataFile(raw, str(path))


def _fetch_hub_file(query: _FileQuery, source: SourceSpec) -> bytes:
    """Return the rows of one configuration and split of a hub data set, as JSONL."""
    config, _, split = query.file.rpartition(".")[0].partition(".")
    config, split = (
        str(template).format(config=config, split=split)
        for template in (source.config, source.split)
    )
    rows = load_hub_rows(str(source.hub), split, source.revision, source.location, config)
    return "".join(f"{json.dumps(dict(row))}\n" for row in rows).encode()


def _derive_files(
    spec: SuiteWithData, query: _FileQuery, source: SourceSpec, root: Path
) -> DataFile:
    """Derive all files of a suite from a hub data set, store them, return the wanted one."""
    assert spec.data is not None and spec.data.derive is not None  # DataSpec: hub goes with derive
    rule = spec.data.derive.vocabulary
    words = _FileQuery(spec.name, rule.file, rule.where, rule.sources, FileSpec(sha256=rule.sha256))
    word_list = _find_file(words, [*data_roots(), root]) or _download_file(spec, words, root)
    text = decode_utf8(word_list.raw, word_list.location, DataError)
    vocabulary = (line.strip() for line in text.split("\n"))
    rows = load_hub_rows(str(source.hub), source.split, source.revision, source.location)
    derived = derivation.derive_files(rows, spec.data.derive, vocabulary, source.location)
    if derived.keys() != spec.data.files.keys():
        difference = ", ".join(sorted(derived.keys() ^ spec.data.files.keys()))
        message = f"the hub's rows do not give the files that are declared: {difference}"
        raise DataError(message, location=source.location)
    stored = {
        file: _store_download(_build_query(spec, file), raw, root, source.location)
        for file, raw in derived.items()
    }
    return stored[query.file]


def load_hub_rows(
    ref: str,
    split: str | None,
    revision: str | None = None,
    location: str = "",
    config: str | None = None,
) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a hub dataset's split. Raises DataError, naming the location."""
    import datasets

    location = location or f"https://huggingface.co/datasets/{ref}"
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            ref, config, split=split, revision=revision
        )
    except Exception as error:  # the hub's clients raise dozens of types
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        message = f"the hub does not give it ({reason})"
        hint = f"if it is gated: accept the terms at {location}, and set HF_TOKEN"
        raise DataError(message, location=location, hint=hint) from None
    return rows


def _missing_file_error(query: _FileQuery, reason: str) -> DataError:
    path, _ = next(query.candidate_paths(data_roots()[0]))
    locations = " or ".join(source.location.format(file=query.file) for source in query.sources)
    hint = f"put it at {path} (or that with .gz)"
    hint += f"; it comes from {locations}" if locations else ""
    message = f"{query.file} of {query.suite!r} is absent {reason}"
    return DataError(message, location=query.suite, hint=hint)
