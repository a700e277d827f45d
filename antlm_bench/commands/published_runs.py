"""Compute a run in a local folder, and publish it in an object store when it is done.

The local folder lies in the user's cache. It keeps what a stopped command has computed, so that the
same command continues. run.json is published last and in one request, and no file that it names is
ever overwritten: a reader sees the old run or the new one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench import runs, safe_files
from antlm_bench.atomic_files import replace_folder
from antlm_bench.errors import BenchError, IncompleteError, RunError, UsageError
from antlm_bench.runs.folder_io import check_is_writable, os_failure
from antlm_bench.runs.provenance import PROVENANCE_FILE, read_provenance
from antlm_bench.safe_json import parse_json
from antlm_bench.suites.sources import cache_dir
from antlm_bench.types import Cell, Run

STATE_FILE = "published.json"
"""What the local folder had in common with the store when they were last compared."""
MAX_STATE_BYTES = 16_000_000
"""Largest published.json that is read."""


def check_output(out: str | Path | None, unsupported: Mapping[str, str]) -> None:
    """Check, before anything is computed, that a run folder can be written, or that the object
    store of a URL can be read.

    unsupported: what cannot be combined with a URL, as option -> value; "" = not given. Raises
    UsageError and RunError.
    """
    url = safe_files.find_url(out)
    if not url:
        if out is not None:
            check_is_writable(Path(out))
        return
    for option, value in unsupported.items():
        if value:
            raise UsageError(
                f"{value} cannot be combined with --out {url}",
                location=option,
                hint="give a local folder with --out",
            )
    runs.ObjectStore(url).list_files()


@contextmanager
def open_output(run_dir: Path, weights: object) -> Iterator[Path]:
    """Yield the folder in which a run is computed: `run_dir`, or the local folder of a URL.

    weights: hash of the checkpoint's weights. The run at a URL is downloaded first. It is published
    at the end, and after an IncompleteError. Raises RunError if another process has written it.
    """
    url = safe_files.find_url(run_dir)
    if not url:
        yield run_dir
        return
    published = PublishedRun.locate(url, str(weights))
    try:
        runs.make_folder(published.folder)
        with runs.lock_folder(published.folder):
            published.prepare()
            runs.register_copy(url, published.run_dir)
            try:
                yield published.run_dir
            except IncompleteError:
                published.publish()
                raise
            published.publish()
    except BenchError as error:  # the user knows the URL, not the folder in the cache
        for path in (published.run_dir, published.folder):
            error.location = error.location.replace(str(path), url)
        raise


@dataclass(slots=True)
class PublishedRun:
    """A run in an object store, and the local folder in which it is computed."""

    store: runs.ObjectStore
    folder: Path
    """Holds the run folder, the state and the lock."""
    base: runs.StoredFile | None = None
    """The run.json in the store from which the local run began; None = there was none."""

    @staticmethod
    def locate(url: str, weights: str) -> PublishedRun:
        """Return the run of a checkpoint at a URL. Raises UsageError if the driver is missing."""
        key = hashlib.sha256(f"{url}\n{weights}".encode()).hexdigest()[:16]
        return PublishedRun(runs.ObjectStore(url), cache_dir() / "object-stores" / key)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def prepare(self) -> None:
        """Bring the run of the store into the local folder.

        Cells that were computed here and never published are kept, and so are chunks. Cells that
        were deleted from the store are dropped.
        """
        state = self._read_state()
        self.base = self.store.list_files().get("run.json")
        if state.get("run") == self._describe_base() and self.run_dir.exists():
            return  # also for a run that was stopped before it was first published
        downloaded = runs.download_runs(self.store.url) if self.base else None
        published_keys = set(map(str, state.get("keys", ())))
        unpublished = self._read_unpublished(published_keys)

        def write(new_dir: Path) -> None:
            if downloaded is not None:
                shutil.copytree(downloaded, new_dir, dirs_exist_ok=True)
            if (self.run_dir / "partial").is_dir():
                shutil.copytree(self.run_dir / "partial", new_dir / "partial", symlinks=True)
            if unpublished is not None:
                _add_cells(new_dir, *unpublished, self.run_dir)

        try:
            replace_folder(self.run_dir, write)
        except OSError as error:
            raise os_failure(self.run_dir, error, "written") from error
        keys = {cell.key for cell in runs.open_stored_run(downloaded)} if downloaded else set()
        self._write_state(self._describe_base(), keys)

    def publish(self) -> None:
        """Upload the predictions, then run.json, then delete files that it no longer names.

        Raises RunError, and nothing has changed for readers then; but if only provenance.json
        cannot be written, the run is published.
        """
        if not (self.run_dir / "run.json").exists():
            return
        run = runs.open_stored_run(self.run_dir)
        document, files = runs.encode_published_run(run)
        stored = self.store.list_files()
        if stored.get("run.json") != self.base:
            raise self.store.build_conflict()
        self.store.upload(
            {
                name: self.run_dir / file
                for name, file in files.items()
                if name not in stored or stored[name].size != (self.run_dir / file).stat().st_size
            }
        )
        self.store.replace_file("run.json", document, self.base)
        if (self.run_dir / PROVENANCE_FILE).exists():
            self.store.upload({PROVENANCE_FILE: self.run_dir / PROVENANCE_FILE})
        self.store.delete(
            name for name in stored if name.startswith("predictions/") and name not in files
        )
        # Another process may have written since, so the next command downloads in any case.
        self._write_state(None, {cell.key for cell in run})

    def _read_unpublished(self, published_keys: set[str]) -> tuple[Run, list[Cell]] | None:
        """Return the local run and its cells that the store never had; None if there are none."""
        with suppress(RunError):
            run = runs.open_stored_run(self.run_dir)
            cells = [cell for cell in run if cell.key not in published_keys]
            return (run, cells) if cells else None
        return None

    def _describe_base(self) -> dict[str, Any]:
        return self.base._asdict() if self.base else {}

    def _read_state(self) -> dict[str, Any]:
        """Return the state; {} for a missing or damaged file."""
        with suppress(OSError, ValueError):
            data = safe_files.read_regular_file(self.folder / STATE_FILE, MAX_STATE_BYTES)
            state = parse_json(data)
            if isinstance(state, dict) and isinstance(state.get("keys", []), list):
                return state
        return {}

    def _write_state(self, base: dict[str, Any] | None, keys: set[str]) -> None:
        """Write from which run.json of the store the local run began, and the keys of its cells
        that the store has.
        """
        state = {"run": base, "keys": sorted(keys)}
        runs.write_atomically(self.folder / STATE_FILE, json.dumps(state, indent=1).encode())


def _add_cells(run_dir: Path, source: Run, cells: list[Cell], source_dir: Path) -> None:
    """Add cells of another run folder of the same checkpoint, except those that are there.

    A folder with the run of another checkpoint is left as it is: scoring refuses it later.
    """
    with suppress(RunError):
        other = runs.open_stored_run(run_dir).manifest.model.get("weights")
        if other != source.manifest.model.get("weights"):
            return
    provenance = read_provenance(source_dir)
    with runs.RunWriter(run_dir, source.manifest) as writer:
        stored_keys = {cell.key for cell in writer.cells}
        new_cells = [cell for cell in cells if cell.key not in stored_keys]
        for cell in new_cells:
            writer.add_cell(cell, runs.read_predictions_bytes(source_dir, cell)[1])
        records = [provenance[cell.key] for cell in new_cells if cell.key in provenance]
        if records:
            writer.record_provenance(records)
