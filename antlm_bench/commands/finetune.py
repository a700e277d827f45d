"""finetune: checkpoints and tasks in, the same run folders out as `score` writes: one cell per task
and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import runs
from antlm_bench.checkpoints import (
    Backbone,
    OpenOptions,
    expand_refs,
    key_settings,
    loading_notes,
    open_backbone,
)
from antlm_bench.commands.cells import (
    Names,
    announce_replaced_scores,
    as_list,
    build_manifest,
    content_key,
    deduplicate_suites,
    run_dir,
)
from antlm_bench.compare.summary_check import read_run
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import BenchError, IncompleteError, MethodNotSupported, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.reporting.progress import Progress
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.types import Attention, Cell, Run, Summary

if TYPE_CHECKING:
    from antlm_bench.finetuning.loop import FinetuneResult, FinetuneSettings

# raised whenever a finetuned number of an unchanged checkpoint and task may move; part of the key
CONVENTIONS_VERSION = 3
NO_PRESETS_HINT = (
    "a file of one's own has none: give its settings one by one with --set (docs/finetuning.md)"
)
DEFAULT_SEEDS = (1, 2, 3)
ATTENTIONS = ("causal", "full")
ALL_ATTENTIONS = "all"


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Everything that `finetune` can be told beside checkpoints, suite, tasks, seeds. See the
    command line's help.

    valid: the scored file of a set of one's own. limit_train, limit_valid: rows, task -> how many
    ("" = every task). changes: hyper-parameters, as "lr=1e-4". lora: rank, 0 = all weights.
    """

    revision: str | None = None
    valid: str | None = None
    limit_train: Mapping[str, int] = field(default_factory=dict)
    limit_valid: Mapping[str, int] = field(default_factory=dict)
    preset: str = ""
    changes: Sequence[str] = field(default_factory=tuple)
    pooling: str = "auto"
    lora: int = 0
    device: str = "auto"
    dtype: str = "float32"
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    peft: str | None = None
    tokenizer: str | None = None
    allow_unused: bool = False
    allow_missing: bool = False
    original_layout: str | None = None
    again: bool = False

    def row_limits(self, task: str) -> tuple[int | None, int | None]:
        """Rows to train on and to score of a task, None = all."""
        train, valid = (
            limit.get(task, limit.get("")) for limit in (self.limit_train, self.limit_valid)
        )
        return train, valid

    def checkpoint_options(self) -> OpenOptions:
        """Weights are opened, and kept, in fp32; `dtype` is that of the matrix products."""
        shared = {f.name for f in fields(OpenOptions)} & {f.name for f in fields(self)} - {"dtype"}
        return OpenOptions(**{name: getattr(self, name) for name in shared})

    def loop_settings(self) -> FinetuneSettings:
        from antlm_bench.finetuning.loop import FinetuneSettings

        return FinetuneSettings(
            device=self.device,
            dtype=self.dtype,
            batch_tokens=self.batch_tokens,
            pooling=self.pooling,
            lora_rank=self.lora,
        )


def finetune(
    models: Names,
    suites: Names,
    *,
    tasks: Names = (),
    seeds: Sequence[int] = DEFAULT_SEEDS,
    attentions: Names = (),
    out: str | Path | None = None,
    options: FinetuneOptions | None = None,
    **option_values: Any,
) -> list[Run]:
    """Finetune every checkpoint on every task with every seed; one run folder per checkpoint, as
    `score`.

    models: as for `score`. suites: classification suites (`glue-2025`), or a CSV, TSV or JSONL of
    texts and labels. tasks: some of the suite's, () = all. attentions: causal, full or "all", () =
    that of the checkpoint's first method. out: as for `score`. Keyword settings are
    FinetuneOptions.

    A cell (task, attention, seed) that is already there under the same content key is not computed
    again, so a killed call resumes. A cell that fails (its data absent, a misfit) leaves the others
    to go on; IncompleteError follows.
    """
    options = replace(options or FinetuneOptions(), **option_values)
    if not seeds:
        raise UsageError("no seed given", location="--seeds", hint="1 or more; 5 for a report")
    for name in as_list(attentions):
        if name not in (*ATTENTIONS, ALL_ATTENTIONS):
            raise UsageError(
                f"unknown attention {name!r}", location="--attention", hint="causal, full or all"
            )
    refs = expand_refs(as_list(models))
    wanted = _select_tasks(as_list(suites), as_list(tasks), options)
    finished: list[Run] = []
    failed: list[str] = []
    loaded: dict[tuple[str, str], ClassificationTask | BenchError] = {}
    for ref in refs:
        try:
            body = open_backbone(ref, options.checkpoint_options())
            ways = _resolve_attentions(body, as_list(attentions))
        except BenchError as error:
            if len(refs) == 1:
                raise
            failed.append(f"  {ref}: {error}")
            continue
        folder = run_dir(body.metadata, out, len(refs) > 1)
        with runs.RunWriter(folder, build_manifest(body.metadata)) as writer:
            for pair in wanted:
                if pair not in loaded:
                    loaded[pair] = _load_task(*pair, options)
            failed += _finetune_checkpoint(
                body, [loaded[pair] for pair in wanted], ways, seeds, writer, options
            )
        if (folder / "run.json").exists():
            finished.append(read_run(folder))
    finished = runs.distinguish_suites(finished)
    if failed:
        message = "some of it was not finetuned:\n" + "\n".join(dict.fromkeys(failed))
        raise IncompleteError(
            message, hint="mend it and repeat: what is finished is kept", runs=finished
        )
    return finished


def _select_tasks(
    suites: Sequence[str], tasks: Sequence[str], options: FinetuneOptions
) -> list[tuple[str, str]]:
    """(suite, task) in order. A slip in a name costs a second, not an hour."""
    if not suites:
        raise UsageError(
            "no suite given",
            location="--suite",
            hint="glue-2025, glue-2024, or a train.csv of yours",
        )
    known = {suite: classification_loader.list_tasks(suite) for suite in suites}
    for task in tasks:
        if not any(task in names for names in known.values()):
            everything = [name for names in known.values() for name in names]
            hint = suggest_name(task, everything) or f"one of {', '.join(everything)}"
            raise UsageError(
                f"{', '.join(suites)} has no task {task!r}", location="--task", hint=hint
            )
    for option, limits in (
        ("--limit-train", options.limit_train),
        ("--limit-valid", options.limit_valid),
    ):
        for name in limits:
            if name and not any(name in names for names in known.values()):
                raise UsageError(f"{', '.join(suites)} has no task {name!r}", location=option)
    for suite in suites:
        if options.preset and options.preset not in classification_loader.list_presets(suite):
            there = classification_loader.list_presets(suite)
            hint = suggest_name(options.preset, there) or (
                f"one of {', '.join(there)}" if there else NO_PRESETS_HINT
            )
            raise UsageError(
                f"{suite} has no preset {options.preset!r}", location="--preset", hint=hint
            )
    return [
        (suite, task)
        for suite, names in known.items()
        for task in names
        if not tasks or task in tasks
    ]


def _load_task(suite: str, task: str, options: FinetuneOptions) -> ClassificationTask | BenchError:
    """A task, or why it cannot be had: that is one failed cell, and no reason not to compute the
    others.
    """
    limit_train, limit_valid = options.row_limits(task)
    try:
        return classification_loader.load_task(
            suite,
            task,
            preset=options.preset,
            valid=options.valid,
            limit_train=limit_train,
            limit_valid=limit_valid,
            overrides=options.changes,
        )
    except UsageError:
        raise
    except BenchError as error:
        return error


def _resolve_attentions(backbone: Backbone, names: Sequence[str]) -> list[Attention]:
    """How the checkpoint is read: as asked, else as its first method reads it."""
    able = [attention for attention in ATTENTIONS if attention in backbone.attends]
    if not names:
        first = backbone.trained_methods[0] if backbone.trained_methods else ""
        names = [
            first
            if first in able
            else "full"
            if "full" in able and (first or backbone.kind == "masked")
            else able[0]
        ]
    chosen = list(
        dict.fromkeys(way for name in names for way in (able if name == ALL_ATTENTIONS else [name]))
    )
    for way in chosen:
        if way not in able:
            hint = f"it attends {' and '.join(able)}"
            raise MethodNotSupported(
                f"{backbone.name} cannot attend {way}", location="--attention", hint=hint
            )
    return ["causal" if way == "causal" else "full" for way in chosen]


@dataclass(frozen=True, slots=True)
class _PendingCell:
    """A cell to be computed, and what its key was made of."""

    task: ClassificationTask
    attention: Attention
    seed: int
    settings: Mapping[str, Any]

    @property
    def method(self) -> str:
        return f"finetune-{self.attention}"

    @property
    def num_examples(self) -> int:
        """How many texts are shown at most: the unit of progress."""
        return len(self.task.train) * self.task.training.epochs


def _finetune_checkpoint(
    backbone: Backbone,
    tasks: Sequence[ClassificationTask | BenchError],
    attentions: Sequence[Attention],
    seeds: Sequence[int],
    writer: runs.RunWriter,
    options: FinetuneOptions,
) -> list[str]:
    """The cells of one checkpoint that are not there yet; what failed, in words."""
    failed = [f"  {backbone.name}: {task}" for task in tasks if isinstance(task, BenchError)]
    cells = []
    for task, way, seed in product(
        deduplicate_suites(task for task in tasks if isinstance(task, ClassificationTask)),
        attentions,
        seeds,
    ):
        todo = _PendingCell(task, way, seed, _cell_settings(backbone, task, way, seed, options))
        if options.again or not writer.is_complete(
            task.full_name, todo.method, content_key(todo.settings), seed, task.origin
        ):
            cells.append(todo)
    from antlm_bench.finetuning.loop import finetune as train

    with Progress(sum(todo.num_examples for todo in cells), backbone.name, "examples") as progress:
        for todo in cells:
            announce_replaced_scores(progress, writer, todo.task.origin, [todo.settings])
            told = _ProgressCallback(
                progress,
                todo,
                f"{backbone.name} {todo.task.full_name} {todo.attention} seed {todo.seed}",
            )
            try:
                outcome = train(
                    backbone, todo.task, todo.seed, todo.attention, options.loop_settings(), told
                )
                writer.write_cell(
                    _build_cell(todo, outcome, loading_notes(backbone)), outcome.predictions
                )
            except UsageError:
                raise
            except BenchError as error:
                failed.append(f"  {backbone.name} {todo.task.full_name} seed {todo.seed}: {error}")
            told.on_train_end()
    return failed


class _ProgressCallback:
    """What the loop says, as examples of a progress bar."""

    def __init__(self, progress: Progress, pending: _PendingCell, label: str) -> None:
        self.progress, self.label, self.total_examples, self.examples_done = (
            progress,
            label,
            pending.num_examples,
            0,
        )
        progress.describe(label)

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None:
        self._advance_to(self.total_examples * updates_done // max(total_updates, 1))
        self.progress.describe(f"{self.label} loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, selection_score: float) -> None:
        self.progress.describe(
            f"{self.label} epoch {epoch}: {selection_score:.3f} on the selection split"
        )

    def on_train_end(self) -> None:
        """Epochs that early stopping saved were no work: skipped, so that the rate stays true."""
        self.progress.skip(self.total_examples - self.examples_done)

    def _advance_to(self, examples_done: int) -> None:
        self.progress.advance(examples_done - self.examples_done)
        self.examples_done = examples_done


def _build_cell(
    pending: _PendingCell, result: FinetuneResult, checkpoint_notes: Sequence[str]
) -> Cell:
    summary = _build_summary(pending, result, checkpoint_notes)
    facts = dict(pending.settings)
    return Cell(
        pending.task.full_name,
        pending.method,
        content_key(facts),
        facts,
        summary,
        seed=pending.seed,
        history=dict(result.history),
        origin=pending.task.origin,
    )


def _build_summary(
    pending: _PendingCell, result: FinetuneResult, checkpoint_notes: Sequence[str]
) -> Summary:
    task = pending.task
    notes = [*task.notes, *checkpoint_notes]
    if task.select == "valid":
        notes.append(
            "epochs were selected on the scored examples, as the official recipe does: optimistic"
        )
    if pending.attention == "causal" and result.history.get("pooling") == "first":
        notes.append(
            "the head read position 0, which in a causal model has seen the first token only"
        )
    notes += [f"collapsed: {words}" for words in result.history.get("collapsed", ())]
    return summarize(
        result.predictions,
        suite=task.full_name,
        method=pending.method,
        metric=task.metric,
        macro=(),
        groups=(),
        reduction="class",
        notes=notes,
    )


def _cell_settings(
    backbone: Backbone,
    task: ClassificationTask,
    attention: Attention,
    seed: int,
    options: FinetuneOptions,
) -> dict[str, Any]:
    """All that the predictions of a cell depend on; stored beside them, and hashed into the key."""
    return {
        **key_settings(backbone),
        "suite": task.full_name,
        "suite_version": task.version,
        "suite_digest": task.digest,
        "collection": task.suite,
        "task": task.name,
        "classes": list(task.classes),
        "method": f"finetune-{attention}",
        "seed": seed,
        "select": task.select,
        "held_out": task.held_out,
        "preset": options.preset,
        "training": task.training.settings_for_key(),
        "limit": options.row_limits(task.name),
        "pooling": options.pooling,
        "lora": options.lora,
        "dtype": options.dtype,
        "conventions": CONVENTIONS_VERSION,
    }
