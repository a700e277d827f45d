"""Finetune checkpoints on classification tasks into the run folders that `score` writes.

A task, an attention and a seed are one cell.
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
from antlm_bench.comparison.summary_check import read_run
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import BenchError, IncompleteError, MethodNotSupported, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.progress import Progress
from antlm_bench.runs.layout import build_manifest, content_key, log_replaced_scores, run_dir
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification import TrainingSpec
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.suites.names import deduplicate_suites
from antlm_bench.types import Attention, Cell, Names, Run, Summary, as_list, finetune_method

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.finetuning.loop import FinetuneResult, FinetuneSettings
    from antlm_bench.keywords import FinetuneKeywords

# Raised whenever a score of an unchanged checkpoint and task may move; part of the content key.
CONVENTIONS_VERSION = 3
FROZEN_CONVENTIONS_VERSION = 1
DEFAULT_SEEDS = (1, 2, 3)
ATTENTIONS = ("causal", "full")
ALL_ATTENTIONS = "all"
FROZEN_TRAINING_KEYS = ("max_length", "token_types", "pooling", "rows", "strip")
"""The settings of TrainingSpec that a frozen backbone reads."""


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Options of `finetune`, beside checkpoints, suites, tasks and seeds.

    Those without a line here are the same as of `score`.
    """

    revision: str | None = None
    valid: str | None = None
    """The scored file of the user's own train file."""
    limit_train: Mapping[str, int] = field(default_factory=dict)
    """Task -> rows to train on; "" = every task."""
    limit_valid: Mapping[str, int] = field(default_factory=dict)
    """Task -> rows to score; "" = every task."""
    preset: str = ""
    """Published settings of the suite, by name."""
    changes: Sequence[str] = field(default_factory=tuple)
    """Hyper-parameters, as "lr=1e-4"."""
    pooling: str = "auto"
    """Which hidden states the head reads (finetuning.heads)."""
    lora: int = 0
    """Rank of adapters that are trained instead of the weights; 0 = train all weights."""
    frozen: bool = False
    """Train no weights: fit a logistic regression on the backbone's features."""
    device: str = "auto"
    dtype: str = "float32"
    """dtype of matrix products. Weights are opened and kept in fp32."""
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
        """Return the numbers of rows of a task to train on and to score; None = all."""
        limits = (self.limit_train, self.limit_valid)
        train, valid = (limit.get(task, limit.get("")) for limit in limits)
        return train, valid

    def checkpoint_options(self) -> OpenOptions:
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
    **settings: Unpack[FinetuneKeywords],
) -> list[Run]:
    """Finetune every checkpoint on every task with every seed. Return one run per checkpoint.

    models: as for `score`. suites: classification suites (`glue-2025`), or a CSV, TSV or JSONL of
    texts and labels. tasks: some of the suites'; () = all. attentions: causal, full or "all"; () =
    the attention of the checkpoint's first method. out: as for `score`. settings: options of the
    command line by their names, on top of `options`.

    With `frozen` nothing is trained but a logistic regression on the backbone's features. Its fit
    is deterministic: each task and attention has one cell, and the first of `seeds` only decides
    which texts are held out to choose C.

    A cell (task, attention, seed) that the run folder already has under the same content key is not
    computed again, so a call that was killed resumes.

        [run] = antlm_bench.finetune("gpt2", "glue-2025", tasks="rte", seeds=[1, 2, 3])
        run["glue-2025.rte", "finetune-causal", 1].estimate.value

    Raises as `score`. Where some cells fail (their data are absent, say), the others are computed
    first, and an IncompleteError with the `runs` follows.
    """
    options = replace(options or FinetuneOptions(), **settings)
    _check_options(options, seeds, as_list(attentions))
    if options.frozen:
        seeds = seeds[:1]
    refs = expand_refs(as_list(models))
    task_names = _select_tasks(as_list(suites), as_list(tasks), options)
    finished: list[Run] = []
    failures: list[str] = []
    loaded: dict[tuple[str, str], ClassificationTask | BenchError] = {}
    for ref in refs:
        try:
            backbone = open_backbone(ref, options.checkpoint_options())
            chosen_attentions = _resolve_attentions(backbone, as_list(attentions))
        except BenchError as error:
            if len(refs) == 1:
                raise
            failures.append(f"  {ref}: {error}")
            continue
        folder = run_dir(backbone.metadata, out, len(refs) > 1)
        with runs.RunWriter(folder, build_manifest(backbone.metadata)) as writer:
            for suite_and_task in task_names:
                if suite_and_task not in loaded:
                    loaded[suite_and_task] = _load_task(*suite_and_task, options)
            chosen_tasks = [loaded[suite_and_task] for suite_and_task in task_names]
            failures += _finetune_checkpoint(
                backbone, chosen_tasks, chosen_attentions, seeds, writer, options
            )
        if (folder / "run.json").exists():
            finished.append(read_run(folder))
    finished = runs.distinguish_suites(finished)
    if failures:
        message = "some of it was not finetuned:\n" + "\n".join(dict.fromkeys(failures))
        raise IncompleteError(
            message, hint="mend it and repeat: what is finished is kept", runs=finished
        )
    return finished


def _check_options(
    options: FinetuneOptions, seeds: Sequence[int], attentions: Sequence[str]
) -> None:
    """Raise UsageError for what no checkpoint and no task could be finetuned with."""
    if not seeds:
        raise UsageError("no seed given", location="--seeds", hint="1 or more; 5 for a report")
    for name in attentions:
        if name not in (*ATTENTIONS, ALL_ATTENTIONS):
            raise UsageError(
                f"unknown attention {name!r}", location="--attention", hint="causal, full or all"
            )
    if options.frozen:
        _check_frozen_options(options)


def _check_frozen_options(options: FinetuneOptions) -> None:
    """Raise UsageError for options that have no effect on a frozen backbone."""
    for option, value in (("--preset", options.preset), ("--lora", options.lora)):
        if value:
            raise UsageError(
                f"{value} cannot be combined with --frozen",
                location=option,
                hint="it concerns the training of weights, and a frozen backbone trains none",
            )
    for change in options.changes:
        key = change.partition("=")[0].strip()
        if key in TrainingSpec.model_fields and key not in FROZEN_TRAINING_KEYS:
            raise UsageError(
                f"{key} has no effect on a frozen backbone",
                location="--set",
                hint=f"with --frozen it takes {', '.join(FROZEN_TRAINING_KEYS)}",
            )


def _select_tasks(
    suites: Sequence[str], tasks: Sequence[str], options: FinetuneOptions
) -> list[tuple[str, str]]:
    """Return (suite, task) in order. Raise UsageError for an unknown name; no data are read."""
    if not suites:
        raise UsageError(
            "no suite given",
            location="--suite",
            hint="glue-2025, glue-2024, or a train.csv of yours",
        )
    tasks_by_suite = {suite: classification_loader.list_tasks(suite) for suite in suites}
    all_tasks = [name for names in tasks_by_suite.values() for name in names]
    limits = {"--limit-train": options.limit_train, "--limit-valid": options.limit_valid}
    named = [("--task", name) for name in tasks]
    named += [(option, name) for option, limit in limits.items() for name in limit if name]
    for option, name in named:
        if name not in all_tasks:
            hint = suggest_name(name, all_tasks) or f"one of {', '.join(all_tasks)}"
            raise UsageError(
                f"{', '.join(suites)} has no task {name!r}", location=option, hint=hint
            )
    for suite in suites:
        presets = classification_loader.list_presets(suite)
        if options.preset and options.preset not in presets:
            hint = (
                suggest_name(options.preset, presets) or f"one of {', '.join(presets)}"
                if presets
                else "a file of yours has none: give its settings one by one with --set "
                "(docs/finetuning.md)"
            )
            raise UsageError(
                f"{suite} has no preset {options.preset!r}", location="--preset", hint=hint
            )
    return [
        (suite, name)
        for suite, names in tasks_by_suite.items()
        for name in names
        if not tasks or name in tasks
    ]


def _load_task(suite: str, task: str, options: FinetuneOptions) -> ClassificationTask | BenchError:
    """Load a task, or return the error: it fails this cell only, and the others are computed."""
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
    """Return the attentions to use: as named, else that of the checkpoint's first method."""
    available = [attention for attention in ATTENTIONS if attention in backbone.attentions]
    if not names:
        first = backbone.trained_methods[0] if backbone.trained_methods else ""
        prefers_full = bool(first) or backbone.kind == "masked"
        default = "full" if "full" in available and prefers_full else available[0]
        names = [first if first in available else default]
    expanded = (available if name == ALL_ATTENTIONS else [name] for name in names)
    attentions = list(dict.fromkeys(attention for group in expanded for attention in group))
    for attention in attentions:
        if attention not in available:
            raise MethodNotSupported(
                f"{backbone.name} cannot attend {attention}",
                location="--attention",
                hint=f"it attends {' and '.join(available)}",
            )
    return ["causal" if attention == "causal" else "full" for attention in attentions]


@dataclass(frozen=True, slots=True)
class _PendingCell:
    """A cell that is to be computed."""

    task: ClassificationTask
    attention: Attention
    seed: int
    frozen: bool
    settings: Mapping[str, Any]
    """All that the predictions depend on: the content key is made of it."""

    @property
    def method(self) -> str:
        return finetune_method(self.attention, frozen=self.frozen)

    @property
    def num_examples(self) -> int:
        """How many texts the model reads, at most: the unit of progress."""
        if self.frozen:
            return len(self.task.train) + len(self.task.valid)
        return len(self.task.train) * self.task.training.epochs


def _finetune_checkpoint(
    backbone: Backbone,
    tasks: Sequence[ClassificationTask | BenchError],
    attentions: Sequence[Attention],
    seeds: Sequence[int],
    writer: runs.RunWriter,
    options: FinetuneOptions,
) -> list[str]:
    """Compute the cells of one checkpoint that are missing; return a line per failure."""
    failures = [f"  {backbone.name}: {task}" for task in tasks if isinstance(task, BenchError)]
    usable = deduplicate_suites(task for task in tasks if isinstance(task, ClassificationTask))
    cells = []
    for task, attention, seed in product(usable, attentions, seeds):
        settings = _cell_settings(backbone, task, attention, seed, options)
        cell = _PendingCell(task, attention, seed, options.frozen, settings)
        key = content_key(settings)
        if options.again or not writer.is_complete(
            task.full_name, cell.method, key, seed, task.origin
        ):
            cells.append(cell)
    total = sum(cell.num_examples for cell in cells)
    with Progress(total, backbone.name, "examples") as progress:
        for cell in cells:
            log_replaced_scores(progress.log, writer, cell.task.origin, [cell.settings])
            name = f"{backbone.name} {cell.task.full_name}"
            label = f"{name} {cell.method if cell.frozen else f'{cell.attention} seed {cell.seed}'}"
            callback = _ProgressCallback(progress, cell, label)
            try:
                result = _compute_cell(backbone, cell, options.loop_settings(), callback)
                writer.write_cell(
                    _build_cell(cell, result, loading_notes(backbone)), result.predictions
                )
            except UsageError:
                raise
            except BenchError as error:
                failures.append(f"  {name} seed {cell.seed}: {error}")
            callback.on_train_end()
    return failures


def _compute_cell(
    backbone: Backbone,
    cell: _PendingCell,
    settings: FinetuneSettings,
    callback: _ProgressCallback,
) -> FinetuneResult:
    task = (backbone, cell.task, cell.seed, cell.attention, settings)
    if cell.frozen:
        from antlm_bench.finetuning.frozen import fit_frozen

        return fit_frozen(*task, callback.on_batch)
    from antlm_bench.finetuning import loop

    return loop.finetune(*task, callback)


class _ProgressCallback:
    """Shows the progress of a cell on the bar, in examples."""

    def __init__(self, progress: Progress, cell: _PendingCell, label: str) -> None:
        self.progress, self.label = progress, label
        self.total_examples, self.examples_done = cell.num_examples, 0
        progress.describe(label)

    def on_batch(self, num_examples: int) -> None:
        self._advance_to(self.examples_done + num_examples)

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None:
        self._advance_to(self.total_examples * updates_done // max(total_updates, 1))
        self.progress.describe(f"{self.label} loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, selection_score: float) -> None:
        self.progress.describe(
            f"{self.label} epoch {epoch}: {selection_score:.3f} on the selection split"
        )

    def on_train_end(self) -> None:
        """Skip the examples that early stopping saved, so that the rate stays true."""
        self.progress.skip(self.total_examples - self.examples_done)

    def _advance_to(self, examples_done: int) -> None:
        self.progress.advance(examples_done - self.examples_done)
        self.examples_done = examples_done


def _build_cell(
    pending: _PendingCell, result: FinetuneResult, checkpoint_notes: Sequence[str]
) -> Cell:
    settings = dict(pending.settings)
    return Cell(
        pending.task.full_name,
        pending.method,
        content_key(settings),
        settings,
        _build_summary(pending, result, checkpoint_notes),
        seed=pending.seed,
        history=dict(result.history),
        origin=pending.task.origin,
    )


def _build_summary(
    pending: _PendingCell, result: FinetuneResult, checkpoint_notes: Sequence[str]
) -> Summary:
    task = pending.task
    notes = [*task.notes, *checkpoint_notes]
    if pending.frozen:
        notes.append(
            "frozen backbone: a logistic regression on its features, not finetuned; "
            f"one deterministic fit, C chosen on the texts that seed {pending.seed} holds out"
        )
    if task.select == "valid":
        notes.append(
            "epochs were selected on the scored examples, as the official recipe does: optimistic"
        )
    if pending.attention == "causal" and result.history.get("pooling") == "first":
        notes.append(
            "the head read position 0, which in a causal model has seen the first token only"
        )
    notes += [f"collapsed: {warning}" for warning in result.history.get("collapsed", ())]
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
    """Return all that the predictions of a cell depend on: stored, and hashed into its key."""
    training = task.training.settings_for_key()
    if options.frozen:
        training = {key: training[key] for key in FROZEN_TRAINING_KEYS if key in training}
    return {
        **key_settings(backbone),
        "suite": task.full_name,
        "suite_version": task.version,
        "suite_digest": task.digest,
        "collection": task.suite,
        "task": task.name,
        "classes": list(task.classes),
        "method": finetune_method(attention, frozen=options.frozen),
        "seed": seed,
        "select": task.select,
        "held_out": task.held_out,
        "preset": options.preset,
        "training": training,
        "limit": options.row_limits(task.name),
        "pooling": options.pooling,
        "lora": options.lora,
        "dtype": options.dtype,
        "conventions": FROZEN_CONVENTIONS_VERSION if options.frozen else CONVENTIONS_VERSION,
    }
