"""Find, verify and download the data files of suites.

Files are searched in ANTLM_BENCH_DATA, then in the folder of a user's TOML, then in the cache
(ANTLM_BENCH_CACHE, else the platform's cache folder), and otherwise downloaded. The unpacked bytes
of a file must have the published sha256. If none is published, rows are counted, and the sha256 of
the first download is stored beside the file. A download is verified before it is stored.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from antlm_bench import safe_files
from antlm_bench.declarations import decode_utf8, expand_user_path
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.progress import Progress
from antlm_bench.suites import derivation, downloads, files
from antlm_bench.suites.declaration_types import DataSpec, FileSpec, SourceSpec
from antlm_bench.suites.templates import split_file_name

OFFLINE_VARIABLES = ("ANTLM_BENCH_OFFLINE", "HF_HUB_OFFLINE")
WRONG_HASH = "wrong hash"  # begins the error message about a file with another sha256


class SuiteWithData(Protocol):
    """The declaration of a suite. `data` is None if a grammar generates the items."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> DataSpec | None: ...


@dataclass(frozen=True, slots=True)
class DataFile:
    """The content of a file."""

    raw: bytes
    """Decompressed bytes."""
    location: str
    """The file, for error messages."""


@dataclass(frozen=True, slots=True)
class FileStatus:
    """The state of one file of a suite."""

    file: str
    state: str
    """One of "absent", "here" (present, but not read), "verified" (has the published sha256),
    "complete" (has all rows; no sha256 is published), "incomplete", "differs" and "damaged".
    """
    path: Path | None = None
    size: int | None = None
    """Bytes on disk."""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _FileQuery:
    """A file to find: a file of a suite, or the vocabulary of its derivation."""

    suite: str
    file: str
    where: tuple[str, ...]
    sources: tuple[SourceSpec, ...]
    expected: FileSpec
    password: str | None = None

    def fill(self, template: str) -> str:
        """Return a template of a path or an address, filled for this file."""
        return template.format_map(split_file_name(self.file))

    def candidate_paths(self, root: Path) -> Iterator[tuple[Path, str]]:
        """Yield (path, member of that zip or "") below a root, in the order of search."""
        for pattern in self.where:
            path, _, member = self.fill(pattern).partition("!")
            yield root / path, member


def get_file(spec: SuiteWithData, file: str, folder: Path | None = None) -> DataFile:
    """Return the content of a file of a suite, downloaded into the cache if it is missing.

    folder: folder of the suite's TOML. Raises DataError if the file cannot be downloaded (with a
    hint where to put it), is damaged, is not the official file, or cannot be stored.
    """
    query = _build_query(spec, file)
    return _find_file(query, data_roots(folder)) or _download_file(spec, query, cache_dir())


def find_local_file(
    spec: SuiteWithData, file: str, expected: FileSpec, folder: Path | None = None
) -> DataFile | None:
    """Return the content of another file in the folders of a suite; None if it is absent.

    It is never downloaded. Raises DataError if it is damaged or differs from `expected`.
    """
    return _find_file(_build_query(spec, file, expected), data_roots(folder))


def locate_file(spec: SuiteWithData, file: str, folder: Path | None = None) -> Path | None:
    """Return the path of a file in the folders of a suite, which need not list it; None if it is
    absent. It is not read.
    """
    return _locate(_build_query(spec, file, FileSpec()), data_roots(folder))[0]


def hash_local_files(
    spec: SuiteWithData, folder: Path | None = None
) -> dict[str, list[str]] | None:
    """Return file -> its path, member of a zip, sha256 as it lies on disk, and published sha256.

    These decide the content of the files of a suite. None = a file is absent. Raises OSError for a
    file that cannot be read.
    """
    hashes = {}
    for file in spec.data.files if spec.data else ():
        path, member = _locate(_build_query(spec, file), data_roots(folder))
        if path is None:
            return None
        first_download = _sha256_path(path)
        expected = first_download.read_bytes() if first_download.is_file() else b""
        sha256 = hashlib.sha256(safe_files.read_regular_file(path)).hexdigest()
        hashes[file] = [str(path.absolute()), member, sha256, repr(expected)]
    return hashes


def list_files(spec: SuiteWithData, folder: Path | None = None) -> list[FileStatus]:
    """Return the status of each file without reading it ("here" or "absent")."""
    return _list_files(spec, data_roots(folder))


def describe_files(spec: SuiteWithData, folder: Path | None = None) -> str:
    """Return how many files are here, and the folders that hold them."""
    if spec.data is None:
        return "generated from the declaration; nothing to fetch"
    rows = list_files(spec, folder)
    paths = [row.path for row in rows if row.path]
    folders = sorted({str(path.parent) for path in paths})
    return f"{len(paths)} of {len(rows)} files here" + "".join(f"\n{path}" for path in folders)


def verify_files(spec: SuiteWithData, folder: Path | None = None) -> list[FileStatus]:
    """Return the status of each file after reading it.

    Never downloads; a damaged file is a status, not an error.
    """
    return _verify_files(spec, data_roots(folder))


def fetch_files(
    spec: SuiteWithData, target_dir: Path | None = None, progress: Progress | None = None
) -> list[FileStatus]:
    """Download missing or damaged files, and return the status of all files.

    target_dir: folder for the downloads, which can be used as ANTLM_BENCH_DATA. None = the cache.
    progress: its units are files. Raises DataError as get_file.
    """
    progress = progress or Progress()
    root = target_dir or cache_dir()
    roots = [target_dir] if target_dir else data_roots()
    for file in spec.data.files if spec.data else ():
        query = _build_query(spec, file)
        try:
            data_file = _find_file(query, roots)
        except DataError as error:
            if not error.location.startswith(str(root)):
                raise  # never replace a file in the user's folder
            data_file = None
        if data_file:
            progress.skip(1)
            continue
        label = f"{spec.name} {file}"
        progress.describe(label)

        def show_bytes(count: int, label: str = label) -> None:
            progress.describe(f"{label} {count / 1e6:,.1f} MB")

        _download_file(spec, query, root, show_bytes)
        progress.advance(1)
    return _verify_files(spec, roots)


def data_roots(folder: Path | None = None) -> list[Path]:
    """Return the folders in which files are searched, in order.

    folder: folder of a user's TOML. Raises UsageError if ANTLM_BENCH_DATA is not a folder.
    """
    roots = []
    data_dir = os.environ.get("ANTLM_BENCH_DATA")
    if data_dir:
        roots.append(expand_user_path(data_dir))
        if not roots[0].is_dir():
            hint = "set it to an existing folder, or unset it"
            raise UsageError(
                f"{data_dir!r} is not a folder", location="ANTLM_BENCH_DATA", hint=hint
            )
    if folder:
        roots.append(folder)
    return [*roots, cache_dir()]


def cache_dir() -> Path:
    """Return the cache folder, which may not exist yet: ANTLM_BENCH_CACHE, or the platform's."""
    if folder := os.environ.get("ANTLM_BENCH_CACHE"):
        return expand_user_path(folder)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "antlm-bench"


def offline_variable() -> str:
    """Return the name of the environment variable that forbids downloads; "" if none does."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}:
            return name
    return ""


# ---- finding and verifying


def _build_query(spec: SuiteWithData, file: str, expected: FileSpec | None = None) -> _FileQuery:
    """Return the query for a file of a suite.

    expected: facts of a file that the suite does not list; such a file is never downloaded. None =
    the suite lists the file.
    """
    data = spec.data
    assert data is not None  # a grammar has no files
    if expected is None:
        expected, file_sources = data.files[file], data.sources
    else:
        file_sources = ()
    return _FileQuery(spec.name, file, data.where, file_sources, expected, data.password)


def _iter_present_files(
    query: _FileQuery, search_roots: Iterable[Path]
) -> Iterator[tuple[Path, str]]:
    for root in search_roots:
        for path, member in query.candidate_paths(root):
            for candidate in (path, path.with_name(f"{path.name}.gz")):
                with suppress(OSError, ValueError):
                    if candidate.is_file():
                        yield candidate, member


def _locate(query: _FileQuery, search_roots: Iterable[Path]) -> tuple[Path | None, str]:
    """Return the path of a file and its member of that zip; (None, "") if it is absent."""
    return next(_iter_present_files(query, search_roots), (None, ""))


def _find_file(query: _FileQuery, search_roots: Iterable[Path]) -> DataFile | None:
    for path, member in _iter_present_files(query, search_roots):
        hint = files.REFETCH_HINT if query.sources else files.REPACK_HINT
        raw, location = files.read_bytes(path, hint), str(path)
        if member:
            raw = files.read_zip_member(raw, member, query.password, location)
            location = f"{path}!{member}"
        data_file = DataFile(raw, location)
        _check_sha256(data_file, query.expected, path)
        return data_file
    return None


def _check_sha256(data_file: DataFile, expected: FileSpec, path: Path) -> None:
    """Raise DataError if the sha256 of a file differs from the published one or, if none is
    published, from the sha256 of the first download to `path`.
    """
    sha256, reference = expected.sha256, "the published file"
    first_download = _sha256_path(path)
    if not sha256 and first_download.is_file():
        text = first_download.read_text(encoding="ascii", errors="replace")
        sha256, reference = text.split(" ")[0], "the first download"
    if not sha256:
        return
    actual = hashlib.sha256(data_file.raw).hexdigest()
    if actual != sha256:
        message = (
            f"{WRONG_HASH}, not the bytes of {reference}: "
            f"sha256 {actual[:12]}..., expected {sha256[:12]}..."
        )
        raise DataError(message, location=data_file.location, hint=files.REFETCH_HINT)


def _sha256_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _list_files(spec: SuiteWithData, search_roots: list[Path]) -> list[FileStatus]:
    rows = []
    for file in spec.data.files if spec.data else ():
        path, _ = _locate(_build_query(spec, file), search_roots)
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
        state = "differs" if error.message.startswith(WRONG_HASH) else "damaged"
        return replace(file_status, state=state, detail=error.message)
    assert data_file is not None  # callers check that it is present
    if query.expected.sha256:
        return replace(file_status, state="verified")
    num_rows, expected = files.count_rows(data_file.raw), query.expected.rows
    if expected and num_rows != expected:
        state = "incomplete" if num_rows < expected else "differs"
        return replace(file_status, state=state, detail=f"{num_rows} of {expected} rows")
    return replace(file_status, state="complete", detail="no sha256 is published")


# ---- downloading


def _download_file(
    spec: SuiteWithData,
    query: _FileQuery,
    root: Path,
    on_bytes: Callable[[int], None] | None = None,
) -> DataFile:
    """Download a file from the first source that works, and store it below `root`."""
    variable = offline_variable()
    if variable:
        raise _missing_file_error(query, f"and {variable} forbids downloads")
    if not query.sources:
        raise _missing_file_error(query, "and the suite's TOML names no source")
    errors: list[BenchError] = []
    for source in query.sources:
        try:
            if source.hub and not source.config:
                return _derive_files(spec, query, source, root)
            if source.hub:
                raw = _fetch_hub_file(query, source)
            elif source.http:
                raw = downloads.fetch_url(query.fill(source.http), source.max_bytes, on_bytes)
            else:
                path = query.fill(str(source.path))
                raw = downloads.fetch_osf_file(str(source.osf), path, source.max_bytes, on_bytes)
            return _store_download(query, raw, root, query.fill(source.location))
        except DataError as error:
            errors.append(error)
    manual_hint = _missing_file_error(query, "").hint
    if len(errors) == 1:
        hint = "; ".join(hint for hint in (errors[0].hint, manual_hint) if hint)
        message = f"cannot download {query.file}: {errors[0].location}: {errors[0].message}"
        raise DataError(message, location=query.suite, hint=hint)
    reasons = "; ".join(f"{error.location}: {error.message}" for error in errors)
    message = f"cannot download {query.file} from any of {len(errors)} sources: {reasons}"
    raise DataError(message, location=query.suite, hint=manual_hint)


def _store_download(query: _FileQuery, raw: bytes, root: Path, origin: str) -> DataFile:
    """Verify a download, then store it.

    Archives are stored unchanged. Other files are compressed, because EWoK and entity tracking ask
    for no plain-text copies. If no sha256 is published, the sha256 of the download is stored, too.
    """
    path, member = next(query.candidate_paths(root))
    if member:
        unpacked = files.read_zip_member(raw, member, query.password, origin)
        _check_sha256(DataFile(unpacked, origin), query.expected, path)
        files.write_atomically(path, raw, root)
        return DataFile(unpacked, f"{path}!{member}")
    is_archive = files.is_tar_file(path.name)
    if not is_archive:
        path = path.with_name(f"{path.name}.gz")
    _check_sha256(DataFile(raw, origin), query.expected, path)
    if not query.expected.sha256:
        num_rows = files.count_rows(raw)
        if query.expected.rows not in (None, num_rows):
            rows = format_count(num_rows, "row")
            message = f"not the official file: {rows}, expected {query.expected.rows}"
            raise DataError(message, location=origin)
        line = f"{hashlib.sha256(raw).hexdigest()}  {query.file}\n"
        files.write_atomically(_sha256_path(path), line.encode(), root)
    packed = raw if is_archive else gzip.compress(raw, mtime=0)
    files.write_atomically(path, packed, root)
    return DataFile(raw, str(path))


def _fetch_hub_file(query: _FileQuery, source: SourceSpec) -> bytes:
    """Return the rows of one configuration and split of a hub dataset, as JSONL."""
    fields = split_file_name(query.file)
    fields["config"], _, fields["split"] = fields["stem"].partition(".")
    config, split = str(source.config).format_map(fields), str(source.split).format_map(fields)
    rows = load_hub_rows(str(source.hub), split, source.revision, source.location, config)
    return "".join(f"{json.dumps(dict(row))}\n" for row in rows).encode()


def _derive_files(
    spec: SuiteWithData, query: _FileQuery, source: SourceSpec, root: Path
) -> DataFile:
    """Derive all files of a suite from a hub dataset, store them, and return the queried file."""
    # DataSpec requires `derive` for such a source.
    assert spec.data is not None and spec.data.derive is not None
    vocabulary_spec = spec.data.derive.vocabulary
    vocabulary_query = _FileQuery(
        spec.name,
        vocabulary_spec.file,
        vocabulary_spec.where,
        vocabulary_spec.sources,
        FileSpec(sha256=vocabulary_spec.sha256),
    )
    vocabulary_file = _find_file(vocabulary_query, [*data_roots(), root])
    if vocabulary_file is None:
        vocabulary_file = _download_file(spec, vocabulary_query, root)
    text = decode_utf8(vocabulary_file.raw, vocabulary_file.location, DataError)
    vocabulary = (line.strip() for line in text.split("\n"))
    rows = load_hub_rows(str(source.hub), source.split, source.revision, source.location)
    derived = derivation.derive_files(rows, spec.data.derive, vocabulary, source.location)
    if derived.keys() != spec.data.files.keys():
        difference = ", ".join(sorted(derived.keys() ^ spec.data.files.keys()))
        message = f"the hub's rows and the suite's TOML have different files: {difference}"
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
    """Return the rows of a split of a hub dataset. Raises DataError with the location.

    location: the dataset, for error messages; "" = its URL.
    """
    import datasets

    location = location or f"https://huggingface.co/datasets/{ref}"
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            ref, config, split=split, revision=revision
        )
    except Exception as error:  # the hub's clients raise dozens of types
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        message = f"the hub dataset cannot be loaded ({reason})"
        hint = f"if it is gated, accept the terms at {location} and set HF_TOKEN"
        raise DataError(message, location=location, hint=hint) from None
    return rows


def _missing_file_error(query: _FileQuery, reason: str) -> DataError:
    path, _ = next(query.candidate_paths(data_roots()[0]))
    locations = " or ".join(query.fill(source.location) for source in query.sources)
    hint = f"put it at {path} (.gz may be appended)"
    if locations:
        hint += f"; its source is {locations}"
    message = f"{query.file} of {query.suite!r} is absent {reason}"
    return DataError(message, location=query.suite, hint=hint)
