"""Write and read run folders: one writer, whole files, and runs that resume after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from antlm_bench import safe_files
from antlm_bench.declarations import list_declarations, suggest_name
from antlm_bench.errors import RunError
from antlm_bench.predictions import Predictions, concat_predictions
from antlm_bench.runs import predictions_parquet
from antlm_bench.runs.chunks import (
    MAX_PREDICTIONS_BYTES,
    ChunkFolder,
    chunk_folder,
    file_metadata,
    file_stem,
)
from antlm_bench.runs.folder_io import (
    RESCORE_HINT,
    make_folder,
    os_failure,
    write_atomically,
)
from antlm_bench.runs.object_stores import download_runs, locate_copy, name_run
from antlm_bench.runs.provenance import PROVENANCE_FILE, encode_provenance
from antlm_bench.runs.run_json import (
    SCHEMA_VERSION,
    decode_run_json,
    encode_run_json,
    summary_digest,
)
from antlm_bench.runs.shards import (
    build_folder_of_shards_error,
    build_shard_error,
    is_shard_folder,
    list_shard_folders,
)
from antlm_bench.runs.suite_names import (
    base_suite_name,
    distinguish_suites,
    is_same_result,
    is_user_suite,
    select_fullest_cells,
)
from antlm_bench.types import Cell, Manifest, Run

MAX_RUN_JSON_BYTES = 64_000_000
"""Largest run.json that is read; those of whole studies have a few megabytes."""


class RunWriter(ChunkFolder):
    """The only way to write a run folder. A context manager that holds the folder's lock.

    A suite is scored in chunks of items. `save_chunk` stores a finished chunk whole, and
    `load_chunk` returns it after a restart, if its bytes are those that were written for the same
    suite, method and key. `finish_cell` joins the chunks into the final file, whose bytes do not
    depend on how often the run was killed.

    Every failure of the disk or the folder is a RunError.
    """

    def __init__(self, path: str | Path, manifest: Manifest) -> None:
        """Name the folder, which is created on entering.

        manifest: of this run. A folder with the run of another checkpoint (other weights) is
        refused on entering.
        """
        self.path, self.manifest = Path(path), manifest
        self.cells: list[Cell] = []

    def take_over(self) -> None:
        """Read the cells of an existing run. Raises RunError for a shard, or another checkpoint."""
        if is_shard_folder(self.path):
            raise build_shard_error(self.path)
        if not (self.path / "run.json").exists():
            return
        run = open_stored_run(self.path)
        self._check_manifest(run.manifest)
        self.cells = list(run.cells)
        for cell in self.cells:  # killed between entering the cell and clearing up
            self.remove_chunk_folders(chunk_folder(self.path, cell.suite, cell.method, cell.key))
            self._remove_unused_files(cell)
        if self.manifest.model.get("label") != run.manifest.model.get("label"):
            self._write_cells(self.cells, ())  # --name may be all that is new

    def is_complete(
        self,
        suite: str,
        method: str,
        key: str,
        seed: int | None = None,
        origin: tuple[str, ...] = (),
    ) -> bool:
        """Whether this cell is finished under this key, with intact predictions and their summary.

        origin: where the user's file lies now. The cell of a file that was moved is kept, and its
        origin updated.
        """
        cell = find_complete_cell(self.path, self.cells, suite, method, key, seed)
        if cell is not None and origin and cell.origin != origin:
            self._replace_cell(replace(cell, origin=origin))
        return cell is not None

    def suite_file_changed(
        self, origin: tuple[str, ...], settings: Mapping[str, Any], seed: int | None = None
    ) -> bool:
        """Whether the folder has a cell of this user's file with other items, of the same limit."""
        wanted = settings["suite"], settings["method"], seed
        limit = json.dumps(settings.get("limit"))
        return any(
            (base_suite_name(old), old.method, old.seed) == wanted
            and old.settings.get("suite_digest") != settings["suite_digest"]
            and json.dumps(old.settings.get("limit")) == limit
            for old in self.cells
            if origin and old.origin == origin
        )

    def differing_settings(
        self, settings: Mapping[str, Any], origin: tuple[str, ...] = ()
    ) -> list[str]:
        """Return the names of the settings in which the cell that a new one replaces differs.

        settings, origin: of the new cell. [] = it replaces none, or one under the same key.
        """
        method, seed = settings["method"], settings.get("seed")
        return [
            name
            for old in self.cells
            if replaces(
                old, replace(old, method=method, seed=seed, settings=settings, origin=origin)
            )
            for name in {**old.settings, **settings}
            if json.dumps(old.settings.get(name)) != json.dumps(settings.get(name))
        ]

    def join_chunks(self, suite: str, method: str, key: str, num_chunks: int) -> Predictions:
        """Return the predictions of all stored chunks of a cell. Raises RunError if one is missing.

        They are read from files, because no chunk stays in memory while a suite is scored.
        """
        chunks: list[Predictions] = []
        for index in range(num_chunks):
            stored = self.load_chunk(suite, method, key, index)
            if stored is None:
                raise RunError(
                    f"chunk {index} of {suite} is missing",
                    location=str(self.path),
                    hint=RESCORE_HINT,
                )
            chunks.append(stored)
        return concat_predictions(chunks)

    def finish_cell(
        self, cell: Cell, num_chunks: int, final_predictions: Predictions | None = None
    ) -> Cell:
        """Join the chunks of a cell, write the cell, and remove the chunks.

        final_predictions: the result of `join_chunks`, perhaps with columns that need all items;
        None = call `join_chunks`. Raises RunError if a chunk is missing.
        """
        complete = final_predictions
        if complete is None:
            complete = self.join_chunks(cell.suite, cell.method, cell.key, num_chunks)
        written = self.write_cell(cell, complete)
        if cell.limit is None:
            self.discard_chunks(cell.suite, cell.method)
        else:  # the chunks of a fuller run that was stopped stay
            self.remove_chunk_folders(chunk_folder(self.path, cell.suite, cell.method, cell.key))
        return written

    def write_cell(self, cell: Cell, predictions: Predictions) -> Cell:
        """Write a cell's predictions, then run.json. Return the cell with its digest and file.

        A cell of the same suite, method, seed and limit is replaced.
        """
        return self.add_cell(*encode_cell(cell, predictions))

    def add_cell(self, cell: Cell, data: bytes) -> Cell:
        """Write the bytes of a predictions file, then run.json. Return the cell with its file.

        cell: with the digest of `data` (encode_cell). A cell of the same suite, method, seed and
        limit is replaced.
        """
        cell = replace(cell, file=self._choose_predictions_file(cell, cell.digest))
        make_folder((self.path / cell.file).parent)
        self._replace_cell(cell, data)
        return cell

    def _replace_cell(self, cell: Cell, data: bytes | None = None) -> None:
        """Write predictions (`data`) and run.json, with the cell in place of those it replaces.

        The rename of run.json is the moment of the replacement: until then the old predictions are
        kept beside the new ones, and after it they are removed.
        """
        replaced = [old for old in self.cells if replaces(old, cell)]
        index = self.cells.index(replaced[0]) if replaced else len(self.cells)
        cells = [old for old in self.cells if old not in replaced]
        cells.insert(index, cell)
        self._write_cells(cells, replaced, None if data is None else (cell.file, data))

    def _write_cells(
        self,
        cells: list[Cell],
        removed: Sequence[Cell],
        predictions: tuple[str, bytes] | None = None,
    ) -> None:
        """Write run.json with these cells, after a predictions file (name, bytes) of one of them.

        The files of the removed cells are deleted last.
        """
        files = [_predictions_file(each) for each in cells]
        document = encode_run_json(self.manifest, cells, files)
        if predictions is not None:
            write_atomically(self.path / predictions[0], predictions[1])
        write_atomically(self.path / "run.json", document)
        self.cells = cells
        for old in removed:
            self._remove_unused_files(old)

    def _remove_unused_files(self, cell: Cell) -> None:
        """Remove files with names of this cell's predictions that run.json does not name."""
        names = {_predictions_file(cell), *islice(_candidate_files(cell), 3)}
        for name in names - {_predictions_file(each) for each in self.cells}:
            with suppress(OSError):
                (self.path / name).unlink(missing_ok=True)

    def record_provenance(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write how cells came about (`ResourceMeter.build_record`), beside the records of others.

        Records of cells that the run no longer has are dropped.
        """
        data = encode_provenance(self.path, records, {cell.key for cell in self.cells})
        write_atomically(self.path / PROVENANCE_FILE, data)

    def remove_other_limits(self, key: str) -> None:
        """Remove the cells that differ from the cell of this key in their limit only."""
        for cell in [cell for cell in self.cells if cell.key == key]:
            others = [
                old for old in self.cells if is_same_result(old, cell) and old.limit != cell.limit
            ]
            if others:
                self._write_cells([old for old in self.cells if old not in others], others)

    def _choose_predictions_file(self, cell: Cell, digest: str) -> str:
        """Return a file name that no other cell has, not even the one that this cell replaces.

        Only equal bytes (`digest`) keep the file of the replaced cell.
        """
        for old in self.cells:
            if replaces(old, cell) and old.digest == digest:
                return _predictions_file(old)
        taken = set(map(_predictions_file, self.cells))
        return next(name for name in _candidate_files(cell) if name not in taken)

    def _check_manifest(self, existing: Manifest) -> None:
        """Refuse the run of another checkpoint. Keep the time at which this run began, and the
        name that the user gave the model, unless there is a new one.
        """
        if existing.model.get("weights") != self.manifest.model.get("weights"):
            name = existing.model.get("name", "unknown")
            raise RunError(
                f"the folder holds the run of another checkpoint ({name})",
                location=str(self.path),
                hint="choose another --out, or move that run away",
            )
        label = existing.model.get("label")
        model = {**({"label": label} if label else {}), **self.manifest.model}
        self.manifest = Manifest(SCHEMA_VERSION, model, self.manifest.software, existing.created)


def encode_published_run(run: Run) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of run.json in an object store, and name of each predictions file there ->
    its name in the run folder.

    The names there have the hash of the file, so that a file is never replaced by another one.
    """
    names = [_default_predictions_file(cell, f"@{cell.digest[:16]}") for cell in run.cells]
    document = encode_run_json(run.manifest, run.cells, names)
    return document, dict(zip(names, map(_predictions_file, run.cells), strict=True))


def encode_cell(cell: Cell, predictions: Predictions) -> tuple[Cell, bytes]:
    """Return the cell with the digest of its predictions file, and the bytes of that file."""
    metadata = file_metadata(cell.suite, cell.method, cell.key, cell.seed)
    metadata["summary"] = summary_digest(cell.summary)
    data = predictions_parquet.encode_predictions(predictions, metadata)
    return replace(cell, digest=hashlib.sha256(data).hexdigest()), data


def find_complete_cell(
    path: Path,
    cells: Iterable[Cell],
    suite: str,
    method: str,
    key: str,
    seed: int | None = None,
) -> Cell | None:
    """Return the cell under this key, if its predictions are intact and match its summary."""
    for cell in cells:
        if (cell.suite, cell.method, cell.key, cell.seed) == (suite, method, key, seed):
            with suppress(RunError):
                read_predictions_table(path, cell)
                return None if summary_matches(path, cell) is False else cell
    return None


def replaces(old: Cell, new: Cell) -> bool:
    """Whether writing the new cell replaces the old one. Cells with other limits stay."""
    return is_same_result(old, new) and old.limit == new.limit


def open_run(path: str | Path) -> Run:
    """Open a run folder. Suites of equal names are told apart (`suite_names`).

    Raises as `open_stored_run`.
    """
    return open_runs([path])[0]


def open_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Open run folders that are shown together: a suite has the same name in all of them.

    Of a suite that was scored with several limits, a run has the fullest cell. Raises as
    `open_stored_run`.
    """
    return distinguish_suites([select_fullest_cells(open_stored_run(path)) for path in paths])


def open_stored_run(path: str | Path) -> Run:
    """Open a run folder, with its suites under the names that were stored.

    path: a folder, or a URL of an object store, which is downloaded. Raises RunError if it is no
    run folder, is damaged, or was written by a newer version.
    """
    path = download_runs(path)
    file = path / "run.json"
    try:
        data = safe_files.read_regular_file(file, MAX_RUN_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        begun = (path / "partial").exists()
        if is_shard_folder(path):
            raise build_shard_error(path) from error
        if list_shard_folders(path):
            raise build_folder_of_shards_error(path) from error
        hint = _suggest_run_folder(path)
        if begun:
            hint = "repeat the score command: it goes on where it stopped"
        raise RunError(
            "no finished suite here" if begun else "not a run folder", location=str(path), hint=hint
        ) from error
    except OSError as error:
        raise os_failure(file, error, "read") from error
    manifest, cells = decode_run_json(data, str(file))
    return Run(name_run(path), manifest, cells, read_predictions_table)


def _suggest_run_folder(path: Path) -> str:
    """Return a hint for a path without run.json: whether it exists, and a similar name."""
    if path.exists():
        return "give the folder that holds run.json"
    try:
        siblings = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f"there is no folder {str(path.parent)!r}"
    suggestion = suggest_name(path.name, siblings)
    return f"there is no such folder{'; ' if suggestion else ''}{suggestion}"


def summary_matches(path: str | Path, cell: Cell) -> bool | None:
    """Return whether a cell's summary is the one that its predictions were written with.

    None = unknown, for files of older versions. Raises RunError for predictions that are missing,
    or not the bytes that run.json describes.
    """
    file, data = read_predictions_bytes(path, cell)
    digest = predictions_parquet.read_metadata(data, str(file)).get("summary")
    return None if digest is None else digest == summary_digest(cell.summary)


def read_predictions_table(path: str | Path, cell: Cell) -> pa.Table:
    """Read the predictions of a cell as a `pyarrow.Table`. Raises as `read_predictions`."""
    return read_predictions(path, cell).table


def read_predictions_bytes(path: str | Path, cell: Cell) -> tuple[Path, bytes]:
    """Return the predictions file of a cell and its bytes, checked against run.json."""
    file = locate_copy(path) / _predictions_file(cell)
    try:
        data = safe_files.read_regular_file(file, MAX_PREDICTIONS_BYTES)
    except OSError as error:
        raise os_failure(file, error, "read") from error
    if hashlib.sha256(data).hexdigest() != cell.digest:
        raise RunError(
            "not the bytes that run.json describes: cut short or edited",
            location=str(file),
            hint=RESCORE_HINT,
        )
    return file, data


def read_predictions(path: str | Path, cell: Cell) -> Predictions:
    """Read the predictions of a cell, in the order of the suite.

    Raises RunError for predictions that are missing, or not the bytes that run.json describes.
    """
    file, data = read_predictions_bytes(path, cell)
    return predictions_parquet.decode_predictions(data, str(file))


def _predictions_file(cell: Cell) -> str:
    """Return the predictions file of a cell, relative to the run folder."""
    return cell.file or _default_predictions_file(cell)


def _default_predictions_file(cell: Cell, tag: str = "") -> str:
    seed = "" if cell.seed is None else f".seed{cell.seed}"
    return f"predictions/{file_stem(cell.suite, cell.method, tag)}{seed}.parquet"


def _candidate_files(cell: Cell) -> Iterator[str]:
    """Yield the names that the predictions file of a cell can have, the first choice first.

    A part of the suite's digest is added if the name is taken, and for a user's file with the name
    of a suite of the catalog.
    """
    digest = str(cell.settings.get("suite_digest") or cell.key)
    if not (is_user_suite(cell) and cell.suite in list_declarations("tasks")):
        yield _default_predictions_file(cell)
    yield _default_predictions_file(cell, f"@{digest[:8]}")
    yield _default_predictions_file(cell, f"@{digest}")
    for number in count(2):
        yield _default_predictions_file(cell, f"@{digest[:8]}-{number}")
