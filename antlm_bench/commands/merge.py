"""`merge`: put shards of cells, and whole cells of several runs, together into one run folder.

No model is opened. A cell that was scored in shards is summarized by the same code as in `score`,
for which the suite's data are needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.commands.finished_cells import build_finished_cell
from antlm_bench.commands.requested_suites import SuiteCache
from antlm_bench.comparison.summary_check import open_verified_runs, open_verified_stored_run
from antlm_bench.errors import BenchError, DataError, IncompleteError, RunError, UsageError
from antlm_bench.predictions import check_ids, concat_predictions
from antlm_bench.printable import format_count
from antlm_bench.runs import Shard, ShardRun, UnfinishedCell
from antlm_bench.runs.suite_names import base_suite_name, is_same_result
from antlm_bench.suites.task_types import Suite, SuiteRequest
from antlm_bench.types import Cell, Manifest, Names, Run, as_list

Part = Run | ShardRun


@dataclass(frozen=True, slots=True)
class CellParts:
    """Everything that the parts hold of one (suite, method, seed, limit)."""

    whole: list[tuple[Run, Cell]] = field(default_factory=list)
    shards: list[tuple[ShardRun, UnfinishedCell]] = field(default_factory=list)

    @property
    def cells(self) -> list[tuple[str, Cell | UnfinishedCell]]:
        """(folder, cell) of all of them."""
        whole = [(run.path, cell) for run, cell in self.whole]
        return [*whole, *((str(run.path), cell) for run, cell in self.shards)]

    @property
    def name(self) -> str:
        cell = self.cells[0][1]
        seed = "" if cell.seed is None else f", seed {cell.seed}"
        return f"{cell.suite} ({cell.method}{seed})"

    def list_missing(self) -> dict[Shard, list[int]]:
        """Return shard -> its chunks that no part holds; {} for a cell that is whole somewhere."""
        if self.whole:
            return {}
        missing: dict[Shard, list[int]] = {}
        num_chunks, count = self.shards[0][1].num_chunks, self.shards[0][0].shard.count
        for index in range(num_chunks):
            if not any(True for _ in self.read_chunks(index)):
                missing.setdefault(Shard(index % count + 1, count), []).append(index)
        return missing

    def read_chunks(self, index: int) -> Iterator[tuple[ShardRun, tuple[str, Any]]]:
        """Yield (shard, (name with the hash, predictions)) of every intact copy of a chunk."""
        for run, cell in self.shards:
            chunk = runs.read_chunk(run.path, cell.suite, cell.method, cell.key, index)
            if chunk is not None:
                yield run, chunk

    def check(self) -> None:
        """Raise RunError for other settings, and for the same predictions with other bytes."""
        (first_path, first), *others = self.cells
        for path, cell in others:
            if cell.key != first.key:
                raise _other_settings_error(self.name, (first_path, first), (path, cell))
        digests = {cell.digest: run.path for run, cell in self.whole}
        if len(digests) > 1:
            raise _other_bytes_error(self.name, *list(digests.values())[:2])
        for index in range(self.shards[0][1].num_chunks if self.shards else 0):
            files = {name: str(run.path) for run, (name, _) in self.read_chunks(index)}
            if len(files) > 1:
                raise _other_bytes_error(f"chunk {index} of {self.name}", *list(files.values())[:2])

    def assemble(self, suites: SuiteCache, manifest: Manifest) -> tuple[Cell, bytes]:
        """Return the cell, and the bytes of its predictions file.

        manifest: of the merged run. Raises DataError if the suite's data are missing or others.
        """
        if self.whole:
            run, cell = self.whole[0]
            _, data = runs.read_predictions_bytes(run.path, cell)
            return _note_software(run, cell, manifest), data
        first, unfinished = self.shards[0]
        suite = _load_suite(suites, unfinished)
        batches, machines = [], []
        for index in range(unfinished.num_chunks):
            source, (_, predictions) = next(self.read_chunks(index))
            batches.append(predictions)
            machines.append(source.machine)
        computed = concat_predictions(batches)
        check_ids(computed, [item.id for item in suite.items], f"{unfinished.name} in {first.path}")
        finished, predictions = build_finished_cell(unfinished, suite, computed)
        distinct = [each for n, each in enumerate(machines) if each not in machines[:n]]
        if len(distinct) > 1:
            history = {**finished.history, "machines": [dict(each) for each in distinct]}
            finished = replace(finished, history=history)
        return runs.encode_cell(finished, predictions)


def merge_runs(
    parts: Names,
    out: str | Path,
    *,
    allow_incomplete: bool = False,
    replace_cells: bool = False,
    suites: SuiteCache | None = None,
) -> Run:
    """Put parts of runs of one checkpoint together. Return the run.

    parts: folders of shards, run folders, or folders of them. out: the run folder; if it exists,
    cells are added to it. allow_incomplete: write the other cells if some lack chunks, and raise
    IncompleteError then. replace_cells: cells of the parts replace those of `out`. suites: where
    suites are loaded.

    Raises IncompleteError for chunks that no part holds (with the commands that compute them), and
    RunError for another checkpoint, for other settings of the same cell, for two copies of a cell
    or a chunk that differ, and for damaged folders. Nothing is written then.
    """
    opened = [_open_part(path) for path in _list_part_dirs(as_list(parts))]
    manifest = _merge_manifests(opened)
    cells = _group_cells(opened)
    for cell in cells:
        cell.check()
    incomplete = {id(cell): missing for cell in cells if (missing := cell.list_missing())}
    problems = _describe_missing(opened, cells, incomplete)
    complete = [cell for cell in cells if id(cell) not in incomplete]
    if problems and not allow_incomplete:
        raise problems
    suite_cache = suites or SuiteCache(max_items=0)
    errors: list[BenchError] = [problems] if problems else []
    keys: set[str] = set()
    with runs.RunWriter(out, manifest) as writer:
        for cell in complete if replace_cells else _list_new_cells(complete, writer, suite_cache):
            try:
                assembled, data = cell.assemble(suite_cache, writer.manifest)
            except DataError as error:
                if not allow_incomplete:
                    raise
                errors.append(error)
                continue
            writer.add_cell(assembled, data)
            writer.discard_chunks(assembled.suite, assembled.method)
            keys.add(assembled.key)
    if not (Path(out) / "run.json").exists():
        raise errors[0] if errors else RunError("no cell in these parts", location=str(parts))
    run = open_verified_runs([out], keys=keys)[0]
    if errors:
        message = "\n".join(error.message for error in errors)
        raise IncompleteError(message, hint=errors[0].hint, runs=[run])
    return run


def _list_part_dirs(paths: Sequence[str]) -> list[Path]:
    """Return the folders of runs and shards. A folder of them is replaced by those in it."""
    folders: list[Path] = []
    for path in map(Path, paths):
        is_part = (path / "run.json").exists() or runs.is_shard_folder(path)
        subfolders = () if is_part or not path.is_dir() else sorted(path.glob("[!.]*"))
        inside = [each for each in subfolders if (each / "run.json").exists()]
        inside += [each for each in subfolders if runs.is_shard_folder(each)]
        folders += sorted(inside) or [path]
    if not folders:
        raise UsageError("no part given", location="PART", hint="give the folders of the shards")
    return list(dict.fromkeys(folders))


def _open_part(path: Path) -> Part:
    if runs.is_shard_folder(path):
        return runs.open_shard(path)
    return open_verified_stored_run(path)


def _merge_manifests(parts: Sequence[Part]) -> Manifest:
    """Return the first manifest, with the earliest time. Raises RunError for two checkpoints."""
    first = parts[0]
    for part in parts[1:]:
        if part.manifest.model.get("weights") != first.manifest.model.get("weights"):
            raise RunError(
                f"{part.path} is of another checkpoint ({part.manifest.model.get('name')}) than "
                f"{first.path} ({first.manifest.model.get('name')}): their weights differ",
                location=str(part.path),
                hint="merge the parts of each checkpoint by themselves",
            )
    created = min(part.manifest.created for part in parts)
    labels = [label for part in parts if (label := part.manifest.model.get("label"))]
    model = {**first.manifest.model, **({"label": labels[0]} if labels else {})}
    return replace(first.manifest, created=created, model=model)


def _group_cells(parts: Sequence[Part]) -> list[CellParts]:
    """Return the cells of all parts, in the order in which they occur first."""
    groups: list[CellParts] = []
    # Users' files of one name are told apart within a bucket (is_same_result).
    buckets: dict[tuple[object, ...], list[CellParts]] = {}
    for part in parts:
        for cell in part.cells:
            key = base_suite_name(cell), cell.method, cell.seed, json.dumps(cell.limit)
            bucket = buckets.setdefault(key, [])
            group = next((g for g in bucket if is_same_result(g.cells[0][1], cell)), None)
            if group is None:
                group = CellParts()
                bucket.append(group)
                groups.append(group)
            if isinstance(part, ShardRun) and isinstance(cell, UnfinishedCell):
                group.shards.append((part, cell))
            elif isinstance(part, Run) and isinstance(cell, Cell):
                group.whole.append((part, cell))
    return groups


def _list_new_cells(
    cells: Sequence[CellParts], writer: runs.RunWriter, suites: SuiteCache
) -> list[CellParts]:
    """Return the cells that the run folder lacks. Raises RunError for those that differ there."""
    new_cells = []
    for cell in cells:
        path, first = cell.cells[0]
        old = next(
            (
                old
                for old in writer.cells
                if is_same_result(old, first) and json.dumps(old.limit) == json.dumps(first.limit)
            ),
            None,
        )
        if old is None:
            new_cells.append(cell)
        elif old.key != first.key:
            raise _other_settings_error(cell.name, (str(writer.path), old), (path, first))
        elif cell.assemble(suites, writer.manifest)[0].digest != old.digest:
            raise _other_bytes_error(cell.name, str(writer.path), path)
    return new_cells


def _describe_missing(
    parts: Sequence[Part], cells: Sequence[CellParts], incomplete: dict[int, dict[Shard, list[int]]]
) -> IncompleteError | None:
    """Return an error that names the missing chunks and the commands that compute them, or None.

    incomplete: id of a cell -> shard -> its missing chunks.
    """
    lines, commands = [], dict[str, None]()
    for part in parts:
        if isinstance(part, ShardRun) and not part.is_finished:
            lines.append(f"  {part.path}: shard {part.shard} was stopped before its end")
            commands[part.rescore_command(part.shard)] = None
    for cell in cells:
        for shard, indices in incomplete.get(id(cell), {}).items():
            numbers = ", ".join(map(str, indices[:5])) + ", ..." * (len(indices) > 5)
            chunks = f"{format_count(len(indices), 'chunk')} of {cell.name} ({numbers})"
            holder = next((run for run, _ in cell.shards if run.shard == shard), None)
            if holder is None:
                lines.append(f"  no part is shard {shard}, which has {chunks}")
            else:
                lines.append(f"  {holder.path}: shard {shard} lacks {chunks}")
            commands[(holder or cell.shards[0][0]).rescore_command(shard)] = None
    if not lines:
        return None
    return IncompleteError(
        "the parts are not complete:\n" + "\n".join(dict.fromkeys(lines)),
        hint=f"score what is missing, and merge again: {'; '.join(commands)}",
    )


def _load_suite(suites: SuiteCache, cell: UnfinishedCell) -> Suite:
    """Load the suite of a cell. Raises DataError if its items are not those that were scored."""
    try:
        request = SuiteRequest(**cell.request)
    except TypeError as error:
        raise RunError(
            f"its suite cannot be loaded: {error}",
            location=cell.name,
            hint="merge with the version of antlm-bench that scored the shards",
        ) from error
    suite = suites.load(request)
    if suite.digest != cell.settings.get("suite_digest"):
        raise DataError(
            f"the items of {cell.suite} are not those that were scored",
            location=request.ref,
            hint="restore the file that was scored, or score the shards again",
        )
    return suite


def _note_software(run: Run, cell: Cell, manifest: Manifest) -> Cell:
    """Return a cell with its software in its history, if that of the merged run differs."""
    own = {"device": run.manifest.model.get("device"), **run.manifest.software}
    merged = {"device": manifest.model.get("device"), **manifest.software}
    if own == merged or "machines" in cell.history:
        return cell
    return replace(cell, history={**cell.history, "machines": [own]})


def _other_settings_error(
    name: str, first: tuple[str, Cell | UnfinishedCell], other: tuple[str, Cell | UnfinishedCell]
) -> RunError:
    first_settings, other_settings = first[1].settings, other[1].settings
    differing = [
        key
        for key in {**first_settings, **other_settings}
        if json.dumps(first_settings.get(key)) != json.dumps(other_settings.get(key))
    ]
    return RunError(
        f"{name} was scored under other settings than in {first[0]}: {', '.join(differing)}",
        location=other[0],
        hint="merge parts of the same settings; other settings go to another --out",
    )


def _other_bytes_error(name: str, first: str, other: str) -> RunError:
    return RunError(
        f"{name} is also in {first}, with other bytes",
        location=other,
        hint="leave one of the two folders out",
    )
