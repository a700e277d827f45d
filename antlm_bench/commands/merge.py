"""`merge`: put shards of cells, and whole cells of several runs, together into one run folder.

No model is opened. A cell that was scored in shards is summarized by the same code as in `score`,
for which the suite's data are needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.arguments import check_arguments
from antlm_bench.commands.finished_cells import build_finished_cell, build_from_fields
from antlm_bench.commands.published_runs import check_output, open_output
from antlm_bench.commands.requested_suites import SuiteCache
from antlm_bench.comparison.summary_check import open_verified_runs, open_verified_stored_run
from antlm_bench.errors import BenchError, DataError, IncompleteError, RunError, UsageError
from antlm_bench.predictions import Predictions, check_ids, concat_predictions
from antlm_bench.printable import format_count
from antlm_bench.runs import Shard, ShardRun, UnfinishedCell
from antlm_bench.runs.provenance import combine_records, read_provenance
from antlm_bench.runs.suite_names import base_suite_name, is_same_result
from antlm_bench.suites.task_types import Suite, SuiteRequest
from antlm_bench.types import Cell, Manifest, Names, Run, as_list

Part = Run | ShardRun
AssembledCell = tuple["CellParts", Cell, bytes]
"""(its parts, the cell, the bytes of its predictions file)"""


@dataclass
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

    @cached_property
    def chunk_holders(self) -> list[list[ShardRun]]:
        """Per chunk, the shards that hold it intact."""
        num_chunks = self.shards[0][1].num_chunks if self.shards else 0
        return [
            [run for run, cell in self.shards if _read_chunk(run, cell, index) is not None]
            for index in range(num_chunks)
        ]

    def list_missing(self) -> dict[Shard, list[int]]:
        """Return shard -> its chunks that no part holds; {} for a cell that is whole somewhere."""
        missing: dict[Shard, list[int]] = {}
        for index, holders in enumerate([] if self.whole else self.chunk_holders):
            if not holders:
                count = self.shards[0][0].shard.count
                missing.setdefault(Shard(index % count + 1, count), []).append(index)
        return missing

    def check(self) -> None:
        """Raise RunError for other settings, another division into chunks or shards, a chunk that
        two parts hold, and whole cells that differ.
        """
        (first_path, first), *others = self.cells
        for path, cell in others:
            if cell.key != first.key:
                raise _other_settings_error(self.name, (first_path, first), (path, cell))
        digests = {cell.digest: run.path for run, cell in self.whole}
        if len(digests) > 1:
            raise _other_bytes_error(self.name, *list(digests.values())[:2])
        for run, cell in self.shards[1:]:
            self._check_division(run, cell)
        for index, holders in enumerate(self.chunk_holders):
            if len(holders) > 1:
                raise RunError(
                    f"chunk {index} of {self.name} is also in {holders[0].path}",
                    location=str(holders[1].path),
                    hint="leave one of the two folders out",
                )

    def _check_division(self, run: ShardRun, cell: UnfinishedCell) -> None:
        """Raise RunError if a shard divides the cell in another way than the first one."""
        first_run, first = self.shards[0]
        if run.shard.count != first_run.shard.count:
            raise RunError(
                f"{self.name} is shard {run.shard} here, and shard {first_run.shard} in "
                f"{first_run.path}",
                location=str(run.path),
                hint="merge shards of one number: 1/N to N/N",
            )
        if cell.num_chunks != first.num_chunks:
            raise RunError(
                f"{self.name} has {cell.num_chunks} chunks here, and {first.num_chunks} in "
                f"{first_run.path}: it was scored together with other methods",
                location=str(run.path),
                hint="score every shard with the same --method options",
            )

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
        computed = self._concat_chunks()
        check_ids(computed, [item.id for item in suite.items], f"{unfinished.name} in {first.path}")
        finished, predictions = build_finished_cell(unfinished, suite, computed)
        machines: list[dict[str, Any]] = []
        for shard_run, _ in self.shards:
            if dict(shard_run.machine) not in machines:
                machines.append(dict(shard_run.machine))
        if len(machines) > 1:
            history = {**finished.history, "machines": machines}
            finished = replace(finished, history=history)
        return runs.encode_cell(finished, predictions)

    def _concat_chunks(self) -> Predictions:
        """Return the predictions of all chunks. Raises RunError for one that is gone by now."""
        cells = {run.path: cell for run, cell in self.shards}
        batches = []
        for index, (run, *_) in enumerate(self.chunk_holders):
            batch = _read_chunk(run, cells[run.path], index)
            if batch is None:
                raise RunError(
                    f"chunk {index} of {self.name} has changed while it was merged",
                    location=str(run.path),
                    hint="wait for the process that writes it, and merge again",
                )
            batches.append(batch)
        return concat_predictions(batches)

    def build_provenance(self) -> list[dict[str, Any]]:
        """Return the record of how the cell came about; [] if no part has one."""
        sources: list[Path] = [Path(run.path) for run, _ in self.whole[:1]]
        sources = sources or [
            run.path for run, _ in sorted(self.shards, key=lambda each: each[0].shard.index)
        ]
        key = self.cells[0][1].key
        records = [
            record for path in sources if (record := read_provenance(path).get(key)) is not None
        ]
        return [combine_records(records)] if records else []


def _read_chunk(run: ShardRun, cell: UnfinishedCell, index: int) -> Predictions | None:
    chunk = runs.read_chunk(run.path, cell.suite, cell.method, cell.key, index)
    return None if chunk is None else chunk[1]


@check_arguments("merge")
def merge_runs(
    parts: Names,
    out: str | Path,
    *,
    allow_incomplete: bool = False,
    replace_cells: bool = False,
) -> Run:
    """Put parts of runs of one checkpoint together. Return the run.

    parts: folders of shards (`score` with `shard`), run folders, or folders of them. out: the run
    folder, or a URL such as s3://bucket/run; if it exists, cells are added to it. allow_incomplete:
    write the other cells if some lack chunks, and raise IncompleteError then. replace_cells: cells
    of the parts replace those of `out` that differ.

        for shard in ("1/2", "2/2"):  # on two machines
            antlm_bench.score("gpt2", "blimp", out=f"parts/{shard[0]}", shard=shard)
        run = antlm_bench.merge("parts", "reports/gpt2")

    Raises IncompleteError for chunks that no part holds (with the commands that compute them);
    RunError for another checkpoint, for other settings of the same cell, for a chunk that two parts
    hold, for whole cells that differ, and for damaged folders; DataError if the data of a suite are
    missing. Nothing is written then.
    """
    check_output(out, {})
    opened = [_open_part(path) for path in _list_part_dirs(as_list(parts))]
    manifest = _merge_manifests(opened)
    cells = _group_cells(opened)
    for cell in cells:
        cell.check()
    missing = {id(cell): chunks for cell in cells if (chunks := cell.list_missing())}
    errors: list[BenchError] = []
    if problem := _describe_missing(opened, cells, missing):
        errors.append(problem)
    assembled: list[AssembledCell] = []
    suites = SuiteCache()
    for cell in cells if allow_incomplete or not errors else ():
        if id(cell) not in missing:
            try:
                assembled.append((cell, *cell.assemble(suites, manifest)))
            except DataError as error:
                errors.append(error)
    if errors and not (allow_incomplete and assembled):
        raise errors[0]
    if not assembled:
        raise RunError(
            "no result in these parts",
            location=", ".join(str(part.path) for part in opened),
            hint="score a suite first",
        )
    with open_output(Path(out), manifest.model.get("weights")) as run_dir:
        _write_cells(run_dir, manifest, assembled, replace_cells=replace_cells)
        run = open_verified_runs([run_dir], keys={cell.key for _, cell, _ in assembled})[0]
        if errors:
            lines = [f"{error.location}: {error.message}".removeprefix(": ") for error in errors]
            raise IncompleteError("\n".join(lines), hint=errors[0].hint, runs=[run])
        return run


def _write_cells(
    out: str | Path, manifest: Manifest, assembled: Sequence[AssembledCell], *, replace_cells: bool
) -> None:
    """Write cells and their provenance into a run folder. Raises RunError for cells that the folder
    has already and that differ, unless they are replaced; nothing is written then.
    """
    with runs.RunWriter(out, manifest) as writer:
        new_cells = [each for each in assembled if replace_cells or _is_new(each, writer)]
        for _, cell, data in new_cells:
            writer.add_cell(cell, data)
            writer.discard_chunks(cell.suite, cell.method)
        if new_cells:
            writer.record_provenance(
                record for parts, _, _ in new_cells for record in parts.build_provenance()
            )


def _is_new(assembled: AssembledCell, writer: runs.RunWriter) -> bool:
    """Return whether a run folder lacks a cell. Raises RunError for one that differs there."""
    parts, cell, _ = assembled
    old = next((old for old in writer.cells if runs.replaces(old, cell)), None)
    if old is None:
        return True
    path = parts.cells[0][0]
    if old.key != cell.key:
        raise _other_settings_error(parts.name, (str(writer.path), old), (path, cell))
    if old.digest != cell.digest:
        raise _other_bytes_error(parts.name, str(writer.path), path)
    return False


def _list_part_dirs(paths: Sequence[str]) -> list[Path]:
    """Return the folders of runs and shards. A folder of them is replaced by those in it."""
    folders: list[Path] = []
    for path in map(Path, paths):
        is_part = (path / "run.json").exists() or runs.is_shard_folder(path)
        run_dirs = [] if is_part else [file.parent for file in path.glob("[!.]*/run.json")]
        inside = [] if is_part else [*run_dirs, *runs.list_shard_folders(path)]
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
            chunks = f"{format_count(len(indices), 'chunk')} ({numbers})"
            holder = next((run for run, _ in cell.shards if run.shard == shard), None)
            if holder is None:
                lines.append(f"  no part has shard {shard} of {cell.name}: {chunks}")
            else:
                lines.append(f"  {holder.path}: shard {shard} of {cell.name} lacks {chunks}")
            commands[(holder or cell.shards[0][0]).rescore_command(shard)] = None
    if not lines:
        return None
    return IncompleteError(
        "the parts are not complete:\n" + "\n".join(dict.fromkeys(lines)),
        hint=f"score what is missing, and merge again: {'; '.join(commands)}",
    )


def _load_suite(suites: SuiteCache, cell: UnfinishedCell) -> Suite:
    """Load the suite of a cell. Raises DataError if its items are not those that were scored."""
    request = build_from_fields(SuiteRequest, cell.request, cell.name)
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
