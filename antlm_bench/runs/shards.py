"""Shards: folders with some chunks of unfinished cells, which `merge` puts together.

    DIR/shard.json                        the shard, the checkpoint, a description of each cell
    DIR/partial/<suite>.<method>.<key>/   the chunks of this shard, as in a run folder

A cell is cut into chunks of items. Shard i of n holds the chunks i, i + n, i + 2n, ...
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from antlm_bench import safe_files
from antlm_bench.errors import RunError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.runs.chunks import ChunkFolder
from antlm_bench.runs.folder_io import os_failure, write_atomically
from antlm_bench.runs.provenance import PROVENANCE_FILE, encode_provenance
from antlm_bench.runs.run_json import JsonNode, decode_document, decode_manifest, encode_json
from antlm_bench.runs.suite_names import is_same_result
from antlm_bench.types import Manifest

SHARD_FILE = "shard.json"
SHARD_SCHEMA_VERSION = 1
"""Version of shard.json."""
MAX_SHARD_JSON_BYTES = 64_000_000
"""Largest shard.json that is read."""
MAX_CHUNKS = 1_000_000
"""Largest number of chunks of a cell that is read."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard `index` of `count`, both counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse "2/4". Raises UsageError."""
        first, slash, second = text.partition("/")
        is_valid = slash and first.isdecimal() and second.isdecimal()
        if not is_valid or not 1 <= int(first) <= int(second):
            raise UsageError(
                f"{text!r} is not a shard",
                location="--shard",
                hint="e.g. --shard 2/4: the second of four, counted from 1",
            )
        return cls(int(first), int(second))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def chunk_indices(self, num_chunks: int) -> range:
        """Return the indices (from 0) of the chunks of this shard."""
        return range(self.index - 1, num_chunks, self.count)


@dataclass(frozen=True, slots=True)
class UnfinishedCell:
    """A cell that is not finished: what its summary depends on, besides the items of the suite."""

    suite: str
    method: str
    key: str
    """Content key, as in Cell."""
    settings: Mapping[str, Any]
    num_chunks: int
    chunks: tuple[int, ...]
    """Indices (from 0) of the chunks that this folder holds when it is finished."""
    request: Mapping[str, Any]
    """The fields of the SuiteRequest that loads the suite."""
    conventions: Mapping[str, Any]
    """The fields of the ScoringConventions of the cell."""
    notes: tuple[str, ...] = ()
    """Sentences on the checkpoint for a reader of the score."""
    history: Mapping[str, Any] = field(default_factory=dict)
    """As in Cell: result of the self-test."""
    origin: tuple[str, ...] = ()
    """As in Cell: absolute paths of the user's files."""

    @property
    def seed(self) -> None:
        """None: a scored cell has no seed."""

    @property
    def limit(self) -> Any:
        """Number of items per group; None = all."""
        return self.settings.get("limit")

    @property
    def name(self) -> str:
        """The suite and the method, for messages."""
        return f"{self.suite} ({self.method})"


@dataclass(frozen=True, slots=True)
class ShardRun:
    """A shard's folder, opened."""

    path: Path
    shard: Shard
    manifest: Manifest
    machine: Mapping[str, Any]
    """Facts about the machine that can change the rounding of the chunks."""
    command: tuple[str, ...]
    """The command that computes this shard, without --shard and --out."""
    is_finished: bool
    """False = the last command on this folder was stopped, and may have described fewer cells."""
    cells: tuple[UnfinishedCell, ...]

    def rescore_command(self, shard: Shard) -> str:
        """Return the command line that computes this shard, or another one of the same cells."""
        words = [*self.command, "--shard", str(shard)]
        own_folder = shlex.quote(str(self.path)) if shard == self.shard else "DIR"
        return f"{shlex.join(words)} --out {own_folder}"


class ShardWriter(ChunkFolder):
    """The only way to write a shard's folder. A context manager that holds the folder's lock."""

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        shard: Shard,
        machine: Mapping[str, Any],
        command: Sequence[str],
    ) -> None:
        """Name the folder, which is created on entering. Arguments: see ShardRun.

        Entering raises RunError for the folder of a run, another shard or another checkpoint.
        """
        self.path = Path(path)
        self.run = ShardRun(self.path, shard, manifest, machine, tuple(command), False, ())

    def take_over(self) -> None:
        """Keep the cells of an earlier command. Raises RunError for the folder of a run, another
        shard or another checkpoint.
        """
        if (self.path / "run.json").exists():
            raise RunError(
                "this is a run folder, and a shard has a folder of its own",
                location=str(self.path),
                hint="choose another --out, and merge the shards into the run",
            )
        if is_shard_folder(self.path):
            self._keep_cells(open_shard(self.path))
        self._write()

    def describe_cells(self, cells: Iterable[UnfinishedCell]) -> None:
        """Add cells, or replace those of the same suite, method and limit, before their chunks are
        computed. Chunks under another key are removed.
        """
        new_cells = list(cells)
        kept = []
        for old in self.run.cells:
            new = next((new for new in new_cells if is_same_unfinished(old, new)), None)
            if new is None:
                kept.append(old)
            elif old.key != new.key:
                self.discard_chunks(old.suite, old.method)
        self._set(cells=(*kept, *new_cells))

    def record_provenance(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write how chunks came about (`ResourceMeter.build_record`), by content keys of cells."""
        data = encode_provenance(self.path, records, {cell.key for cell in self.run.cells})
        write_atomically(self.path / PROVENANCE_FILE, data)

    def finish(self) -> None:
        """Record that the command was not stopped: each cell is described and computed, or its
        error was reported.
        """
        self._set(is_finished=True)

    def _keep_cells(self, old: ShardRun) -> None:
        if old.shard != self.run.shard:
            raise RunError(
                f"the folder holds shard {old.shard}, not {self.run.shard}",
                location=str(self.path),
                hint="give each shard its own --out",
            )
        if old.manifest.model.get("weights") != self.run.manifest.model.get("weights"):
            raise RunError(
                f"the folder holds a shard of another checkpoint "
                f"({old.manifest.model.get('name', 'unknown')})",
                location=str(self.path),
                hint="choose another --out, or move that folder away",
            )
        manifest = replace(self.run.manifest, created=old.manifest.created)
        self.run = replace(self.run, manifest=manifest, cells=old.cells)

    def _set(self, **changes: Any) -> None:
        self.run = replace(self.run, **changes)
        self._write()

    def _write(self) -> None:
        write_atomically(self.path / SHARD_FILE, _encode_shard(self.run))


def is_same_unfinished(a: UnfinishedCell, b: UnfinishedCell) -> bool:
    """Whether two descriptions are of the same suite, method and limit."""
    return is_same_result(a, b) and json.dumps(a.limit) == json.dumps(b.limit)


def is_shard_folder(path: str | Path) -> bool:
    """Return whether a folder holds a shard, and no run."""
    return (Path(path) / SHARD_FILE).exists() and not (Path(path) / "run.json").exists()


def forget_cells(path: Path) -> None:
    """Remove the descriptions of a shard's cells. Its chunks stay: a command that computes them is
    to find them by their content keys. Raises RunError.
    """
    try:
        (path / SHARD_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise os_failure(path / SHARD_FILE, error, "removed") from error


def list_shard_folders(path: str | Path) -> list[Path]:
    """Return the folders of shards in a folder, without hidden ones."""
    folders = (file.parent for file in Path(path).glob(f"[!.]*/{SHARD_FILE}"))
    return sorted(folder for folder in folders if is_shard_folder(folder))


def build_folder_of_shards_error(path: str | Path) -> RunError:
    """Return the error for a folder of shards that is opened as a run: how they become one."""
    num_shards = format_count(len(list_shard_folders(path)), "shard")
    return RunError(
        f"no run folder: it holds {num_shards} of a run",
        location=str(path),
        hint=f"when all are scored: antlm-bench merge {shlex.quote(str(path))} --out RUN",
    )


def build_shard_error(path: str | Path) -> RunError:
    """Return the error for the folder of a shard that is opened as a run: how it becomes one."""
    run = open_shard(path)
    names = ", ".join(cell.name for cell in run.cells[:3]) or "no suite yet"
    if len(run.cells) > 3:
        names += f" and {len(run.cells) - 3} more"
    shards = f"all {run.shard.count} shards are" if run.shard.count > 1 else "it is"
    return RunError(
        f"this is shard {run.shard} of a run: some chunks of {names}",
        location=str(path),
        hint=f"when {shards} scored: {merge_command(run)}",
    )


def merge_command(run: ShardRun) -> str:
    """Return the command line that puts this shard and the others together."""
    others = " OTHER_SHARDS..." if run.shard.count > 1 else ""
    return f"antlm-bench merge {shlex.quote(str(run.path))}{others} --out RUN"


def open_shard(path: str | Path) -> ShardRun:
    """Open the folder of a shard. Raises RunError for another folder, and a damaged one."""
    file = Path(path) / SHARD_FILE
    try:
        data = safe_files.read_regular_file(file, MAX_SHARD_JSON_BYTES)
    except OSError as error:
        raise os_failure(file, error, "read") from error
    hint = "move the folder away, and score the shard again"
    root = decode_document(data, str(file), SHARD_SCHEMA_VERSION, " of shards", hint)
    try:
        shard = Shard.parse(root.get("shard", str))
    except UsageError as error:
        root.fail(error.message, "shard")
    return ShardRun(
        Path(path),
        shard,
        decode_manifest(root.get_object("manifest")),
        root.get("machine", dict),
        root.get_list("command", str),
        root.value.get("finished") is True,
        tuple(_parse_cell(cell) for cell in root.get_objects("cells")),
    )


def _encode_shard(run: ShardRun) -> bytes:
    document = {
        "schema": SHARD_SCHEMA_VERSION,
        "shard": str(run.shard),
        "finished": run.is_finished,
        "manifest": asdict(run.manifest),
        "machine": run.machine,
        "command": run.command,
        "cells": [asdict(cell) for cell in run.cells],
    }
    return encode_json(document, SHARD_FILE)


def _parse_cell(node: JsonNode) -> UnfinishedCell:
    for name in ("suite", "method", "key"):
        if not node.get(name, str):  # names of files are built from them
            node.fail("should not be empty", name)
    num_chunks = node.get("num_chunks", int)
    if not 1 <= num_chunks <= MAX_CHUNKS:
        node.fail(f"should be a number from 1 to {MAX_CHUNKS}", "num_chunks")
    chunks = node.get_list("chunks", int)
    if not all(0 <= index < num_chunks for index in chunks):
        node.fail(f"should be indices below {num_chunks}", "chunks")
    return UnfinishedCell(
        suite=node.get("suite", str),
        method=node.get("method", str),
        key=node.get("key", str),
        settings=node.get("settings", dict),
        num_chunks=num_chunks,
        chunks=chunks,
        request=node.get("request", dict),
        conventions=node.get("conventions", dict),
        notes=node.get_list("notes", str),
        history=node.get("history", dict),
        origin=node.get_list("origin", str),
    )
