"""Runs in object stores (s3://, gs://, ...), through fsspec: list, download, upload, replace.

A run in a store is run.json, provenance.json and the predictions. Nothing else is read or written.
"""

from __future__ import annotations

import atexit
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from antlm_bench.atomic_files import temporary_path
from antlm_bench.errors import BenchError, MissingPackage, RunError, UsageError
from antlm_bench.packages import missing_package
from antlm_bench.runs.chunks import MAX_PREDICTIONS_BYTES
from antlm_bench.safe_files import find_url

RUN_FILE = re.compile(
    r"(?:[^./\\\0][^/\\\0]*/)?(?:run\.json|provenance\.json|predictions/[^/\\\0]+\.parquet)"
)
"""Names of files below a URL that are downloaded: those of a run, or of runs in a folder."""
MAX_DOWNLOADS = 3
"""Number of attempts to download a run that others replace at that moment."""
NO_OBJECT_STORES = ("file", "local", "http", "https", "ftp")
S3_REQUEST_BYTES = 2**30
"""Files up to twice this size are sent in one request, which is atomic."""
VERSION_FIELDS = ("ETag", "etag", "generation", "LastModified", "created", "mtime")
"""Fields of fsspec's file information that change with the content, the most precise first."""
HINTS = {
    "FileNotFoundError": "create the bucket, or correct the URL",
    "PermissionError": "give credentials that may read and write there",
    "NoCredentialsError": "set the store's variables, such as AWS_ACCESS_KEY_ID, or log in with "
    "its own tool",
}
"""Class of an error of a driver -> how to fix it."""


class StoredFile(NamedTuple):
    """A file in an object store."""

    version: str
    """Changes whenever the file is written."""
    size: int
    """Bytes."""


class ObjectStore:
    """The files below a URL. Every failure is a RunError with the URL."""

    def __init__(self, url: str) -> None:
        """Load the driver. Raises UsageError if it is not installed or the URL has no store."""
        self.url = url.rstrip("/")
        protocol = url.partition(":")[0]
        is_relative = any(part in (".", "..") for part in url.split("/"))
        if protocol in NO_OBJECT_STORES or "::" in url or is_relative:
            raise UsageError(
                "this is not an object store",
                location=url,
                hint="give the path of a folder, or a URL such as s3://bucket/run",
            )
        import fsspec

        try:
            with self._translate_errors("opened"):
                # Other processes write too, so a listing of some seconds ago is of no use.
                self._files, root = fsspec.url_to_fs(
                    self.url, use_listings_cache=False, skip_instance_cache=True
                )
        except RunError as error:
            if isinstance(error.__cause__, ImportError):
                raise _missing_driver(protocol, self.url) from error
            if isinstance(error.__cause__, ValueError):
                raise UsageError(
                    f"unknown protocol {protocol!r}", location=self.url, hint="e.g. s3://bucket/run"
                ) from error
            raise
        self._root = str(root).rstrip("/")
        self._has_conditions = "s3" in self._files.protocol

    def list_files(self) -> dict[str, StoredFile]:
        """Return name below the URL -> file, for the files of runs."""
        with self._translate_errors("read"):
            entries: Mapping[str, Mapping[str, Any]] = self._files.find(self._root, detail=True)
        files = {}
        for path, entry in sorted(entries.items()):
            name = path.removeprefix(f"{self._root}/")
            if RUN_FILE.fullmatch(name):
                version = next((entry[key] for key in VERSION_FIELDS if entry.get(key)), "")
                files[name] = StoredFile(str(version), int(entry["size"]))
        return files

    def download(self, files: Mapping[str, StoredFile], folder: Path) -> None:
        """Download files into a local folder, which is created."""
        for name, file in files.items():
            if file.size > MAX_PREDICTIONS_BYTES:
                raise RunError(
                    f"{file.size:,} bytes, larger than the {MAX_PREDICTIONS_BYTES:,} that are read",
                    location=f"{self.url}/{name}",
                    hint="is this a file of a run?",
                )
        with self._translate_errors("read"):
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._files.get(self._list_paths(files), [str(folder / name) for name in files])

    def upload(self, files: Mapping[str, Path]) -> None:
        """Upload files. files: name below the URL -> local file."""
        with self._translate_errors("written"):
            if files:
                self._files.put(list(map(str, files.values())), self._list_paths(files))

    def replace_file(self, name: str, data: bytes, old: StoredFile | None) -> None:
        """Write a file, unless another process has written it.

        old: the file that is replaced; None = there is none. S3 compares and writes in one step.
        Raises RunError for a file that is not `old`.
        """
        options: dict[str, Any] = {}
        if self._has_conditions:
            options = {"IfMatch": old.version} if old else {"IfNoneMatch": "*"}
            options["chunksize"] = S3_REQUEST_BYTES
        elif self.list_files().get(name) != old:
            raise self.build_conflict()
        with self._translate_errors("written"):
            try:
                self._files.pipe_file(f"{self._root}/{name}", data, **options)
            except OSError as error:
                causes = f"{error!r} {error.__cause__!r}"
                if "PreconditionFailed" in causes or "ConditionalRequestConflict" in causes:
                    raise self.build_conflict() from error
                raise

    def delete(self, names: Iterable[str]) -> None:
        """Delete files. Those that cannot be deleted stay: no run.json names them."""
        paths = self._list_paths(names)
        with suppress(RunError), self._translate_errors("deleted"):
            if paths:
                self._files.rm(paths)

    def _list_paths(self, names: Iterable[str]) -> list[str]:
        return [f"{self._root}/{name}" for name in names]

    def build_conflict(self) -> RunError:
        """Return the error for a run that another process has written."""
        return RunError(
            "another process has written this run since this command began",
            location=self.url,
            hint="repeat the command: its finished cells are kept, and added to the new run",
        )

    @contextmanager
    def _translate_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except BenchError:
            raise
        except Exception as error:  # each driver has exceptions of its own
            lines = str(error).splitlines() or [type(error).__name__]
            hints = [HINTS[base.__name__] for base in type(error).__mro__ if base.__name__ in HINTS]
            raise RunError(
                f"cannot be {action}: {lines[0]}",
                location=self.url,
                hint=hints[0] if hints else "is the store reachable? Then repeat the command",
            ) from error


def _missing_driver(protocol: str, url: str) -> MissingPackage:
    """Return the error for a driver that is not installed, with the command that installs it."""
    from fsspec.registry import known_implementations

    package = known_implementations[protocol]["class"].partition(".")[0]
    return missing_package(package, url, package)


_copies: dict[str, tuple[dict[str, StoredFile], Path]] = {}
"""URL -> its local copy in this process: the files that were downloaded, and the folder."""


def download_runs(path: str | Path) -> Path:
    """Return a local copy of the runs at a URL. A path of files is returned unchanged.

    The copy lies in a temporary folder, which is removed when the process ends. Raises RunError
    for a URL without runs.
    """
    url = find_url(path)
    if not url:
        return Path(path)
    store = ObjectStore(url)
    files = store.list_files()
    for _ in range(MAX_DOWNLOADS):
        if not any(name.endswith("run.json") for name in files):
            raise RunError("no run here", location=url, hint="give the URL that holds run.json")
        if store.url in _copies and _copies[store.url][0] == files:
            return _copies[store.url][1]
        folder = _make_temporary_folder() / store.url.replace("://", "/")
        error: RunError | None = None
        try:
            store.download(files, folder)
        except RunError as caught:  # a file may be gone, because a new run.json has replaced it
            error = caught
        latest = store.list_files()
        if _list_run_versions(latest, files) == _list_run_versions(files, files):
            if error:
                raise error
            _copies[store.url] = files, folder
            return folder
        files = latest
    raise RunError("the run changes while it is read", location=url, hint="repeat the command")


def register_copy(url: str, folder: Path) -> None:
    """Make a local folder the copy of a URL that is read, until the URL is downloaded again."""
    _copies[url.rstrip("/")] = {}, folder


def locate_copy(path: str | Path) -> Path:
    """Return the local copy of a run at a URL, as it was opened in this process; else download it.

    A path of files is returned unchanged.
    """
    url = find_url(path).rstrip("/")
    parent, _, name = url.rpartition("/")
    if url in _copies:
        return _copies[url][1]
    if parent in _copies:
        return _copies[parent][1] / name
    return download_runs(path)


def name_run(folder: Path) -> str:
    """Return the URL of which a folder is the local copy, else the path of the folder."""
    for url, (_, copy) in _copies.items():
        if folder == copy:
            return url
        if folder.parent == copy:
            return f"{url}/{folder.name}"
    return str(folder)


def _list_run_versions(
    files: Mapping[str, StoredFile], names: Iterable[str]
) -> list[StoredFile | None]:
    return [files.get(name) for name in names if name.endswith("run.json")]


def _make_temporary_folder() -> Path:
    """Create a folder that is removed when the process ends, by itself or by a signal."""
    stack = ExitStack()
    folder = stack.enter_context(temporary_path(Path(tempfile.mkdtemp(prefix="antlm-bench-"))))
    atexit.register(stack.close)
    return folder
