"""Where the bytes of a suite are: the user's data folder, else the cache, else the official place;
always checked.

Order: ANTLM_BENCH_DATA, the folder of a user's own TOML, the cache (ANTLM_BENCH_CACHE, else the
platform's), download. A file counts only if its unpacked bytes have the published sha256; where
none is published, its rows are counted and the sha256 of the first download is kept beside it. A
download is checked before it is stored, and stored at once.
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
from antlm_bench.suites import derivation, download, files
from antlm_bench.suites.declaration_types import DataSpec, FileSpec, SourceSpec

OFFLINE_VARIABLES = ("ANTLM_BENCH_OFFLINE", "HF_HUB_OFFLINE")


class SuiteWithData(Protocol):
    """A suite of any kind, as far as its files go; one that generates its own items has no data."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> DataSpec | None: ...


@dataclass(frozen=True, slots=True)
class DataFile:
    """The unpacked bytes of a file, and where they lie (as an error names it)."""

    raw: bytes
    location: str


@dataclass(frozen=True, slots=True)
class FileStatus:
    """One file of a suite. size: bytes on disk. state: absent | here (present, not read) | verified
    (has the published sha256) | complete (none is published; the rows are all there) | incomplete |
    differs | damaged.
    """

    file: str
    state: str
    path: Path | None = None
    size: int | None = None
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
        """(path, member of the zip there or "") under a root, in the order of search."""
        for pattern in self.where:
            path, _, member = pattern.format(
                file=self.file, stem=self.file.rpartition(".")[0]
            ).partition("!")
            yield root / path, member


# ---- what commands use
# -------------------------------------------------------------------------------------------


def get_file(spec: SuiteWithData, file: str, folder: Path | None = None) -> DataFile:
    """The bytes of one file; downloaded into the cache if need be. `folder`: that of the suite's
    TOML.

    Raises DataError: absent (which file, from where, where to put it), damaged, not the official
    bytes, not storable.
    """
    wanted = _build_query(spec, file)
    return _find_file(wanted, data_roots(folder)) or _download_file(spec, wanted, cache_dir())


def find_local_file(
    spec: SuiteWithData, file: str, expected: FileSpec, folder: Path | None = None
) -> DataFile | None:
    """The bytes of a file that lies where those of the suite lie, but is none of them; never
    fetched. As `locate`.
    """
    assert spec.data is not None  # as in _wanted
    return _find_file(
        _FileQuery(spec.name, file, spec.data.where, (), expected, spec.data.password),
        data_roots(folder),
    )


def list_files(spec: SuiteWithData, folder: Path | None = None) -> list[FileStatus]:
    """Which files are present where; reads none of them. A generated suite has none."""
    return _list_files(spec, data_roots(folder))


def verify_files(spec: SuiteWithData, folder: Path | None = None) -> list[FileStatus]:
    """Every file read and compared with what is published; never downloads, never raises for a bad
    file.
    """
    return _verify_files(spec, data_roots(folder))


def fetch_files(spec: SuiteWithData, target_dir: Path | None = None) -> list[FileStatus]:
    """Download what is missing or bad into `to` (else the cache); `to` then serves as
    ANTLM_BENCH_DATA. As `locate`.
    """
    root, places = (target_dir, [target_dir]) if target_dir else (cache_dir(), data_roots())
    for file in spec.data.files if spec.data else ():
        wanted = _build_query(spec, file)
        try:
            good = _find_file(wanted, places)
        except DataError as error:
            if not error.location.startswith(str(root)):
                raise  # the user's own folder is the user's
            good = None
        if not good:
            _download_file(spec, wanted, root)
    return _verify_files(spec, places)


def data_roots(folder: Path | None = None) -> list[Path]:
    """The data roots that are searched, in order. UsageError where ANTLM_BENCH_DATA names no
    folder.
    """
    found = []
    if own := os.environ.get("ANTLM_BENCH_DATA"):
        found.append(expand_user_path(own))
        if not found[0].is_dir():
            raise UsageError(f"{own!r} is not a folder", location="ANTLM_BENCH_DATA")
    return [*found, *([folder] if folder else []), cache_dir()]


def cache_dir() -> Path:
    """The cache folder (it need not exist): ANTLM_BENCH_CACHE, else the platform's place for
    caches.
    """
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
    """The environment variable that forbids the net, or nothing."""
    return next(
        (
            name
            for name in OFFLINE_VARIABLES
            if os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        ),
        "",
    )


# ---- looking
# -----------------------------------------------------------------------------------------------------


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
        raw = files.read_bytes(path)
        if member:
            found = DataFile(
                files.read_zip_member(raw, member, query.password, str(path)), f"{path}!{member}"
            )
        else:
            found = DataFile(raw, str(path))
        _check_sha256(found, query.expected, path)
        return found
    return None


def _check_sha256(data_file: DataFile, expected: FileSpec, path: Path) -> None:
    """DataError where the bytes are not those that are published, or not those of the first
    download to `path`.
    """
    want, of = expected.sha256, "the published file"
    pin = _sha256_path(path)
    if not want and pin.is_file():
        want, of = (
            pin.read_text(encoding="ascii", errors="replace").split(" ")[0],
            "the first download",
        )
    if want and (have := hashlib.sha256(data_file.raw).hexdigest()) != want:
        message = (
            f"wrong hash, not the bytes of {of}: sha256 {have[:12]}..., expected {want[:12]}..."
        )
        raise DataError(message, location=data_file.location, hint=files.REFETCH_HINT)


def _sha256_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _list_files(spec: SuiteWithData, search_roots: list[Path]) -> list[FileStatus]:
    rows = []
    for file in spec.data.files if spec.data else ():
        path = next(
            (path for path, _ in _iter_present_files(_build_query(spec, file), search_roots)), None
        )
        rows.append(
            FileStatus(file, "here", path, path.stat().st_size)
            if path
            else FileStatus(file, "absent")
        )
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
        found = _find_file(query, search_roots)
    except BenchError as error:
        state = "differs" if error.message.startswith("wrong hash") else "damaged"
        return replace(file_status, state=state, detail=error.message)
    assert found is not None  # _status saw it
    if query.expected.sha256:
        return replace(file_status, state="verified")
    have, want = files.count_rows(found.raw), query.expected.rows
    if want and have != want:
        return replace(
            file_status,
            state="incomplete" if have < want else "differs",
            detail=f"{have} of {want} rows",
        )
    return replace(file_status, state="complete", detail="no sha256 is published")


# ---- fetching
# ----------------------------------------------------------------------------------------------------


def _download_file(spec: SuiteWithData, query: _FileQuery, root: Path) -> DataFile:
    if forbidden := offline_variable():
        raise _missing_file_error(query, f"and {forbidden} forbids to fetch it")
    if not query.sources:
        raise _missing_file_error(query, "and its declaration names no source")
    failed: list[BenchError] = []
    for source in query.sources:
        try:
            if source.hub and source.config:
                return _store_download(query, _fetch_hub_file(query, source), root, source.location)
            if source.hub:
                return _derive_files(spec, query, source, root)
            if source.http:
                raw = download.fetch_url(source.http.format(file=query.file))
            else:
                raw = download.fetch_osf_file(
                    str(source.osf), str(source.path).format(file=query.file)
                )
            return _store_download(query, raw, root, source.location.format(file=query.file))
        except DataError as error:
            failed.append(error)
    by_hand = _missing_file_error(query, "").hint
    if len(failed) == 1:
        [only] = failed
        raise DataError(
            only.message,
            location=only.location,
            hint="; ".join(h for h in (only.hint, by_hand) if h),
        )
    why = "; ".join(f"{error.location}: {error.message}" for error in failed)
    message = f"{query.file} could not be fetched from any of {len(failed)} places: {why}"
    raise DataError(message, location=query.suite, hint=by_hand)


def _store_download(query: _FileQuery, raw: bytes, root: Path, origin: str) -> DataFile:
    """Check a download, then store it: an archive as it is, any other file packed (EWoK and entity
    tracking ask that no plain copies lie about), with its sha256 beside it where none is published.
    """
    path, member = next(query.candidate_paths(root))
    if member:
        found = DataFile(
            files.read_zip_member(raw, member, query.password, origin), f"{path}!{member}"
        )
        _check_sha256(DataFile(found.raw, origin), query.expected, path)
        files.write_atomically(path, raw)
        return found
    path = path.with_name(f"{path.name}.gz")
    _check_sha256(DataFile(raw, origin), query.expected, path)
    if not query.expected.sha256:
        if query.expected.rows not in (None, files.count_rows(raw)):
            raise DataError(
                f"{files.count_rows(raw)} rows of {query.expected.rows}: not the official file",
                location=origin,
            )
        files.write_atomically(
            _sha256_path(path), f"{hashlib.sha256(raw).hexdigest()}  {query.file}\n".encode()
        )
    files.write_atomically(path, gzip.compress(raw, mtime=0))
    return DataFile(raw, str(path))


def _fetch_hub_file(query: _FileQuery, source: SourceSpec) -> bytes:
    """A file as the hub has it: the rows of one configuration and split, as JSON."""
    config, _, split = query.file.rpartition(".")[0].partition(".")
    named = [
        str(template).format(config=config, split=split)
        for template in (source.config, source.split)
    ]
    rows = load_hub_rows(str(source.hub), named[1], source.revision, source.location, named[0])
    return "".join(f"{json.dumps(dict(row))}\n" for row in rows).encode()


def _derive_files(
    spec: SuiteWithData, query: _FileQuery, source: SourceSpec, root: Path
) -> DataFile:
    """Make all files of a hub suite at once, store them, return the wanted one."""
    assert spec.data is not None and spec.data.derive is not None  # DataSpec: hub goes with derive
    rule = spec.data.derive.vocabulary
    words = _FileQuery(spec.name, rule.file, rule.where, rule.sources, FileSpec(sha256=rule.sha256))
    listed = _find_file(words, [*data_roots(), root]) or _download_file(spec, words, root)
    text = decode_utf8(listed.raw, listed.location, DataError)
    vocabulary = (line.strip() for line in text.split("\n"))
    rows = load_hub_rows(str(source.hub), source.split, source.revision, source.location)
    made = derivation.derive_files(rows, spec.data.derive, vocabulary, source.location)
    if made.keys() != spec.data.files.keys():
        odd = ", ".join(sorted(made.keys() ^ spec.data.files.keys()))
        raise DataError(
            f"the hub's rows do not give the files that are declared: {odd}",
            location=source.location,
        )
    kept = {
        file: _store_download(_build_query(spec, file), raw, root, source.location)
        for file, raw in made.items()
    }
    return kept[query.file]


def load_hub_rows(
    ref: str,
    split: str | None,
    revision: str | None = None,
    location: str = "",
    config: str | None = None,
) -> Iterable[Mapping[str, Any]]:
    """The rows of a hub dataset's split. DataError, naming `place`, where it cannot be had."""
    import datasets

    location = location or f"https://huggingface.co/datasets/{ref}"
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            ref, config, split=split, revision=revision
        )
    except Exception as error:  # the hub's clients raise dozens of types; whatever it is, this file is not to be had
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        hint = f"if it is gated: accept the terms at {location}, and set HF_TOKEN"
        raise DataError(
            f"the hub does not give it ({reason})", location=location, hint=hint
        ) from None
    return rows


def _missing_file_error(query: _FileQuery, reason: str) -> DataError:
    here, _ = next(query.candidate_paths(data_roots()[0]))
    places = " or ".join(source.location.format(file=query.file) for source in query.sources)
    hint = f"put it at {here} (or that with .gz)" + (f"; it comes from {places}" if places else "")
    return DataError(
        f"{query.file} of {query.suite!r} is absent {reason}", location=query.suite, hint=hint
    )
