"""Compute the cells of one suite: methods with the same conventions share the model's forwards.

A suite is cut into chunks, and the chunks of one shard, or all, are computed. A chunk is computed
for all methods or none, so that a resumed run has the same batches as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.checkpoints import Checkpoint, build_adaptive_scorer
from antlm_bench.checkpoints.minicons_backend import MiniconsCheckpoint
from antlm_bench.commands.cell_settings import SuiteCells, SuiteToScore, choose_word_rule
from antlm_bench.commands.finished_cells import build_finished_cell
from antlm_bench.commands.work_estimates import build_token_counter
from antlm_bench.errors import DataError
from antlm_bench.predictions import Predictions, check_ids, check_predictions
from antlm_bench.progress import Progress, ShareCounter
from antlm_bench.runs import Shard, UnfinishedCell
from antlm_bench.runs.chunks import ChunkFolder
from antlm_bench.runs.layout import log_replaced_scores
from antlm_bench.runs.provenance import ResourceMeter
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.conventions import apply_conventions
from antlm_bench.scoring.methods import Method, resolve_method
from antlm_bench.suites.task_types import PredictRequest, Suite
from antlm_bench.types import Item, Run

AnyCheckpoint = Checkpoint | MiniconsCheckpoint


class SuiteScorer(SuiteCells[AnyCheckpoint, Suite]):
    """Computes the cells of one suite with one checkpoint."""

    def __init__(self, checkpoint: AnyCheckpoint, target: SuiteToScore[Suite]) -> None:
        """Raise UsageError or MethodNotSupported if the options cannot score the suite."""
        super().__init__(checkpoint, target)
        rule = choose_word_rule(target)
        if rule and isinstance(self.checkpoint, Checkpoint):
            self.checkpoint = self.checkpoint.with_word_rule(rule)
        self.num_computed_chunks = 0

    def score(self, writer: runs.RunWriter, progress: Progress) -> list[str]:
        """Compute the missing cells, and write them into a run folder.

        Return the content keys of all cells, those that were there included.
        """
        if self.options.again:
            for name in self.keys:
                writer.discard_chunks(self.suite.name, name)
        pending_names = [
            name for name in self.keys if self.options.again or not self.is_complete(writer, name)
        ]
        self._skip_finished(pending_names, progress)
        if pending_names:
            with _undo_disabled_shortcuts(self.checkpoint):
                self._score_pending(pending_names, writer, progress)
        return list(self.keys.values())

    def score_shard(
        self,
        shard: Shard,
        writer: runs.ShardWriter,
        finished_run: Run | None,
        progress: Progress,
    ) -> None:
        """Compute the chunks of a shard, and write them into its folder.

        finished_run: the cells that it holds under the same keys are left out.
        """
        names = [name for name in self.keys if not self._is_in(finished_run, name)]
        if self.options.again:
            for name in names:
                writer.discard_chunks(self.suite.name, name)
        self._skip_finished(names, progress)
        if names:
            meter = ResourceMeter()
            with _undo_disabled_shortcuts(self.checkpoint):
                pending = self._plan_cells(names, shard)
                writer.describe_cells(pending.cells.values())
                label = f"{self._label(names)} shard {shard}"
                progress.start_piece(label, self.target.estimate_work(names))
                self._compute_chunks(pending, writer, progress)
                if self.num_computed_chunks:
                    writer.record_provenance(self._build_records(meter, names))

    def _is_in(self, run: Run | None, name: str) -> bool:
        if run is None or self.options.again:
            return False
        arguments = self.suite.name, name, self.keys[name]
        return runs.find_complete_cell(Path(run.path), run.cells, *arguments) is not None

    def _skip_finished(self, pending_names: Sequence[str], progress: Progress) -> None:
        """Count the methods whose cells are not computed again."""
        names = [name for name in self.keys if name not in pending_names]
        if names:
            work = self.target.estimate_work(names)
            progress.start_piece(self._label(names), work)
            progress.skip(work.units)

    def _score_pending(
        self, names: Sequence[str], writer: runs.RunWriter, progress: Progress
    ) -> None:
        meter = ResourceMeter()
        pending = self._plan_cells(names)
        progress.start_piece(self._label(names), self.target.estimate_work(names))
        new_settings = [self.settings[name] for name in names]
        log_replaced_scores(progress.log, writer, self.suite.origin, new_settings)
        self._compute_chunks(pending, writer, progress)
        for name, unfinished in pending.cells.items():
            num_chunks = unfinished.num_chunks
            computed = writer.join_chunks(self.suite.name, name, self.keys[name], num_chunks)
            try:
                cell, predictions = build_finished_cell(unfinished, self.suite, computed)
            except DataError:
                writer.discard_chunks(self.suite.name, name)
                raise
            writer.finish_cell(cell, num_chunks, predictions)
        writer.record_provenance(self._build_records(meter, names))

    def _build_records(self, meter: ResourceMeter, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return how the cells of these methods, which were computed together, came about."""
        facts = {
            "device": self.checkpoint.metadata.get("device", ""),
            "computed_together": len(names),
        }
        return [meter.build_record(self.keys[name], **facts) for name in names]

    def _label(self, names: Sequence[str]) -> str:
        return f"{self.checkpoint.name} {self.suite.name} {'+'.join(names)}"

    def _plan_cells(self, names: Sequence[str], shard: Shard | None = None) -> _PendingCells:
        """Cut the suite into chunks, compare the engine with the plain forward on its texts, and
        describe the cells. shard: compute only its chunks.
        """
        checkpoint, suite = self.checkpoint, self.suite
        methods = [resolve_method(name, checkpoint) for name in names]
        items = apply_conventions(suite.items, self.conventions, checkpoint)
        history = _self_test(checkpoint, items, methods)
        chunks = list(multiple_choice.iter_chunks(items, methods))
        indices = range(len(chunks)) if shard is None else shard.chunk_indices(len(chunks))
        cells = {
            name: UnfinishedCell(
                suite=suite.name,
                method=name,
                key=self.keys[name],
                settings=self.settings[name],
                num_chunks=len(chunks),
                chunks=tuple(indices),
                request=asdict(self.target.request),
                conventions=asdict(self.conventions),
                notes=(*checkpoint.notes(name), *self.target.notes),
                history=history,
                origin=suite.origin,
            )
            for name in names
        }
        return _PendingCells(items, methods, chunks, indices, cells)

    def _compute_chunks(
        self, pending: _PendingCells, store: ChunkFolder, progress: Progress
    ) -> None:
        """Compute the chunks that the store lacks, and store them."""
        scorer: AnyCheckpoint | AdaptiveScorer | None = None
        for index in pending.indices:
            chunk = pending.chunks[index]
            if all(_has_chunk(store, cell, index, chunk) for cell in pending.cells.values()):
                progress.skip(len(chunk) * len(pending.cells))
                continue
            scorer = scorer or self._build_scorer(pending)
            num_units = len(chunk) * len(pending.cells)
            counter = ShareCounter(progress, num_units, build_token_counter(scorer))
            request = PredictRequest(
                scorer,
                self.suite,
                chunk,
                pending.methods,
                self.conventions,
                counter,
                self.unigrams,
            )
            batches = dict(zip(pending.cells, self.task_type.predict(request), strict=True))
            counter.finish()
            for name, batch in batches.items():
                self._check_predictions(batch, name, chunk)
                store.save_chunk(self.suite.name, name, self.keys[name], index, batch)
            self.num_computed_chunks += 1

    def _build_scorer(self, pending: _PendingCells) -> AnyCheckpoint | AdaptiveScorer:
        """Return the checkpoint, or for adaptive precision a calibrated scorer around it."""
        checkpoint = self.checkpoint
        if self.options.precision != "adaptive" or not isinstance(checkpoint, Checkpoint):
            return checkpoint
        return build_adaptive_scorer(checkpoint).calibrate(pending.items, pending.methods)

    def _check_predictions(
        self, predictions: Predictions, method_name: str, items: Sequence[Item]
    ) -> None:
        """Raise DataError for predictions without the columns that the task type declares, or
        without a row for each item, in the order of the items.
        """
        location = f"{self.suite.name}.{method_name}, predicted by {self.task_type.name!r}"
        schema = self.task_type.prediction_schema
        if schema is not None:
            check_predictions(predictions, schema, location)
        check_ids(predictions, [item.id for item in items], location)


@dataclass(frozen=True, slots=True)
class _PendingCells:
    """The cells of one suite that are computed together."""

    items: Sequence[Item]
    """The suite's items under the conventions."""
    methods: Sequence[Method]
    chunks: Sequence[Sequence[Item]]
    indices: Sequence[int]
    """Indices of the chunks that are computed."""
    cells: Mapping[str, UnfinishedCell]
    """Method name -> cell, in the order of `methods`."""


def _undo_disabled_shortcuts(checkpoint: AnyCheckpoint) -> AbstractContextManager[None]:
    """Return a context that restores the engine's shortcuts and batch size when it ends.

    A suite's self-test may turn shortcuts off, and full memory makes batches smaller. So a score
    does not depend on the suites that were scored before.
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint.engine.without_shortcuts(())
    return nullcontext()


def _self_test(
    checkpoint: AnyCheckpoint, items: Sequence[Item], methods: Sequence[Method]
) -> dict[str, Any]:
    """Compare our engine with the model's plain forward on texts of these items.

    Returns the result, as the cell's history stores it.
    """
    if isinstance(checkpoint, MiniconsCheckpoint):
        return {}
    texts = [option.text for item in items for option in item.options]
    result = checkpoint.run_self_test(texts, methods)
    return {"self_test": result.to_record(), "shortcuts": checkpoint.engine.shortcuts}


def _has_chunk(store: ChunkFolder, cell: UnfinishedCell, index: int, chunk: Sequence[Item]) -> bool:
    """Return whether an earlier call stored the predictions of a chunk.

    A call with other methods may have had chunks of another size; they are not used.
    """
    stored = store.load_chunk(cell.suite, cell.method, cell.key, index)
    return stored is not None and stored.ids == tuple(item.id for item in chunk)
