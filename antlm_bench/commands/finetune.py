"""Finetune checkpoints on classification tasks, and write run folders as `score` does.

A cell is one task with one attention and one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import runs
from antlm_bench.arguments import apply_settings, check_arguments
from antlm_bench.checkpoints import (
    OpenOptions,
    expand_refs,
    loading_notes,
    open_backbone,
    select_content_key_metadata,
)
from antlm_bench.checkpoints.resolve import WeightOptions
from antlm_bench.commands.published_runs import check_output, open_output
from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import BenchError, IncompleteError, MethodNotSupported, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.progress import Progress, Workload
from antlm_bench.runs.layout import (
    build_manifest,
    check_single_name,
    content_key,
    log_replaced_scores,
    run_dir,
)
from antlm_bench.runs.provenance import ResourceMeter
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification import TrainingSpec
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.suites.names import deduplicate_suites
from antlm_bench.types import Attention, Cell, Names, Run, Summary, as_list, finetune_method

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.checkpoints import Backbone
    from antlm_bench.finetuning.loop import FinetuneResult, FinetuneSettings
    from antlm_bench.keywords import FinetuneKeywords

# Part of the content key. Increase it with every change that may move a score.
CONVENTIONS_VERSION = 3
FROZEN_CONVENTIONS_VERSION = 1
DEFAULT_SEEDS = (1, 2, 3)
ATTENTIONS: tuple[Attention, ...] = ("causal", "full")
ALL_ATTENTIONS = "all"
FROZEN_TRAINING_KEYS = ("max_length", "token_types", "pooling", "rows", "strip")
"""The settings of TrainingSpec that have an effect on a frozen backbone."""


@dataclass(frozen=True, slots=True)
class FinetuneOptions(WeightOptions):
    """Options of `finetune`, besides checkpoints, suites, tasks and seeds.

    Options without documentation here mean the same as for `score`.
    """

    name: str | None = None
    valid: str | None = None
    """The file to score, if the suite is a train file of the user."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column (text, text2, label, id, group, cluster) -> its name in the user's files."""
    limit_train: Mapping[str, int] = field(default_factory=dict)
    """Task -> number of rows to train on. The key "" stands for all other tasks."""
    limit_valid: Mapping[str, int] = field(default_factory=dict)
    """Task -> number of rows to score. The key "" stands for all other tasks."""
    preset: str = ""
    """Name of published settings of the suite; "" = our defaults."""
    changes: Sequence[str] = field(default_factory=tuple)
    """Changes of hyper-parameters, each as "lr=1e-4"."""
    pooling: str = "auto"
    """Which hidden states the head reads (finetuning.heads)."""
    lora: int = 0
    """Rank of adapters that are trained instead of the weights; 0 = train all weights."""
    frozen: bool = False
    """Train no weights: fit a logistic regression on the backbone's features."""
    dtype: str = "float32"
    """dtype of matrix products. Weights are opened and kept in fp32."""
    again: bool = False
    replace: bool = False

    def loading_arguments(self, task: str) -> dict[str, Any]:
        """Return the arguments of `classification_loader.load_task` for a task."""
        return {
            "preset": self.preset,
            "valid": self.valid,
            "limit_train": self.limit_train.get(task, self.limit_train.get("")),
            "limit_valid": self.limit_valid.get(task, self.limit_valid.get("")),
            "overrides": self.changes,
            "columns": self.columns,
        }

    def checkpoint_options(self) -> OpenOptions:
        """Return the options for opening a checkpoint."""
        return OpenOptions(
            **{each.name: getattr(self, each.name) for each in fields(WeightOptions)}
        )

    def loop_settings(self) -> FinetuneSettings:
        from antlm_bench.finetuning.loop import FinetuneSettings

        return FinetuneSettings(
            device=self.device,
            dtype=self.dtype,
            batch_tokens=self.batch_tokens,
            pooling=self.pooling,
            lora_rank=self.lora,
        )


@check_arguments(options=FinetuneOptions)
def finetune(
    models: Names,
    suites: Names,
    *,
    tasks: Names = (),
    seeds: Sequence[int] | int = DEFAULT_SEEDS,
    attentions: Names = (),
    out: str | Path | None = None,
    options: FinetuneOptions | None = None,
    **settings: Unpack[FinetuneKeywords],
) -> list[Run]:
    """Finetune every checkpoint on every task with every seed. Return one run per checkpoint.

    models, out: as for `score`. suites: classification suites (`glue-2025`), or a CSV, TSV or JSONL
    of texts and labels. tasks: some tasks of the suites; () = all. attentions: causal, full or
    "all"; () = the attention of the checkpoint's first method. seeds: numbers, or N for 1 to N.
    settings: options of the command line by their names; they override `options`.

    With `frozen` a logistic regression on the backbone's features is fitted, and no weight is
    trained. The fit is deterministic, so that each task and attention has one cell, and the first
    of `seeds` only decides which texts are held out to choose C.

    A cell that the run folder already has under the same content key is not computed again, so a
    call that was killed resumes.

        [run] = antlm_bench.finetune("gpt2", "glue-2025", tasks="rte", seeds=[1, 2, 3])
        run["glue-2025.rte", "finetune-causal", 1].estimate.value

    Raises as `score`. If some cells fail (data are missing, say), the others are computed first,
    and then an IncompleteError with the `runs` is raised.
    """
    options = apply_settings(options or FinetuneOptions(), settings)
    seeds = range(1, seeds + 1) if isinstance(seeds, int) else seeds
    check_finetune_options(options, seeds, as_list(attentions))
    refs = expand_refs(as_list(models), options.revision)
    check_single_name(options.name, refs)
    task_names = select_tasks(as_list(suites), as_list(tasks), options)
    check_output(out, {})
    finetuner = Finetuner(task_names, as_list(attentions), seeds, options)
    finished: list[Run] = []
    with Progress(unit="examples", parts=("checkpoint", len(refs))) as progress:
        for ref in refs:
            progress.next_part(f"opening {ref}")
            run = finetuner.finetune_checkpoint(ref, out, len(refs) > 1, progress)
            if run is not None:
                finished.append(run)
    finished = runs.distinguish_suites(finished)
    finetuner.raise_failures(finished)
    return finished


def check_finetune_options(
    options: FinetuneOptions, seeds: Sequence[int], attentions: Sequence[str]
) -> None:
    """Raise UsageError for options that are wrong for every checkpoint and task."""
    if not seeds:
        raise UsageError("no seed given", location="--seeds", hint="1 or more; 5 for a report")
    for name in attentions:
        if name not in (*ATTENTIONS, ALL_ATTENTIONS):
            raise UsageError(
                f"unknown attention {name!r}", location="--attention", hint="causal, full or all"
            )
    if options.frozen:
        check_frozen_options(options)


def check_frozen_options(options: FinetuneOptions) -> None:
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


def select_tasks(
    suites: Sequence[str], tasks: Sequence[str], options: FinetuneOptions
) -> list[tuple[str, str]]:
    """Return the chosen (suite, task) pairs. Raises UsageError for an unknown name.

    No data are read.
    """
    if not suites:
        raise UsageError(
            "no suite given",
            location="--suite",
            hint="glue-2025, glue-2024, or your own train.csv",
        )
    tasks_by_suite = {suite: classification_loader.list_tasks(suite) for suite in suites}
    all_tasks = [name for names in tasks_by_suite.values() for name in names]
    limits = {"--limit-train": options.limit_train, "--limit-valid": options.limit_valid}
    option_values = [("--task", name) for name in tasks]
    option_values += [(option, name) for option, limit in limits.items() for name in limit if name]
    for option, name in option_values:
        if name not in all_tasks:
            hint = suggest_name(name, all_tasks) or f"one of {', '.join(all_tasks)}"
            raise UsageError(
                f"{', '.join(suites)} has no task {name!r}", location=option, hint=hint
            )
    for suite in suites:
        presets = classification_loader.list_presets(suite)
        if options.preset and options.preset not in presets:
            hint = (
                "your own file has no presets: give settings one by one with --set "
                "(docs/explanation/finetuning.md)"
            )
            if presets:
                hint = suggest_name(options.preset, presets) or f"one of {', '.join(presets)}"
            raise UsageError(
                f"{suite} has no preset {options.preset!r}", location="--preset", hint=hint
            )
    return [
        (suite, name)
        for suite, names in tasks_by_suite.items()
        for name in names
        if not tasks or name in tasks
    ]


def _resolve_attentions(backbone: Backbone, names: Sequence[str]) -> list[Attention]:
    """Return the named attentions; without names, the attention of the checkpoint's first method.

    Raises MethodNotSupported for an attention that the checkpoint cannot run with.
    """
    available = [attention for attention in ATTENTIONS if attention in backbone.attentions]
    if not names:
        return [_default_attention(backbone, available)]
    attentions: list[Attention] = []
    for name in names:
        if name != ALL_ATTENTIONS and name not in available:
            raise MethodNotSupported(
                f"{backbone.name} cannot run with {name} attention",
                location="--attention",
                hint=f"it can run with {' and '.join(available)} attention",
            )
        attentions += [a for a in available if name in (a, ALL_ATTENTIONS)]
    return list(dict.fromkeys(attentions))


def _default_attention(backbone: Backbone, available: Sequence[Attention]) -> Attention:
    first_method = backbone.trained_methods[0] if backbone.trained_methods else ""
    prefers_full = first_method or backbone.kind == "masked"
    default: Attention = "full" if prefers_full and "full" in available else available[0]
    # The causal method has the name of its attention. All other methods use full attention.
    return next((attention for attention in available if attention == first_method), default)


@dataclass(frozen=True, slots=True)
class _PendingCell:
    """A cell that this call computes, unless the run folder has it."""

    task: ClassificationTask
    attention: Attention
    seed: int
    frozen: bool
    settings: Mapping[str, Any]
    """Everything that the predictions depend on; hashed to the content key."""

    @property
    def method(self) -> str:
        return finetune_method(self.attention, frozen=self.frozen)

    @property
    def key(self) -> str:
        return content_key(self.settings)

    @property
    def work(self) -> Workload:
        """Units: at most so many texts are trained on (frozen: read). Cost: characters. Those of
        predicted texts count a third, because they have no backward pass.
        """
        train, valid = (
            Workload(len(split), sum(len(each.first) + len(each.second) for each in split))
            for split in (self.task.train, self.task.valid)
        )
        if self.frozen:
            return Workload.sum([train, valid])
        epochs = self.task.training.epochs
        return Workload(train.units * epochs, train.cost * epochs + valid.cost / 3)


class Finetuner:
    """Finetunes checkpoints on the same tasks, attentions and seeds, and collects failures."""

    def __init__(
        self,
        task_names: Sequence[tuple[str, str]],
        attentions: Sequence[str],
        seeds: Sequence[int],
        options: FinetuneOptions,
    ) -> None:
        self.task_names, self.attentions = task_names, attentions
        self.seeds = seeds[:1] if options.frozen else seeds
        self.options = options
        self.tasks: list[ClassificationTask | BenchError] = []
        """The loaded tasks, or why one could not be loaded. Filled with the first checkpoint."""
        self.failures: list[str] = []
        """One line per failure."""
        self.open_checkpoint: Callable[[str, OpenOptions], Backbone] = open_backbone
        self.load_task: Callable[..., ClassificationTask] = classification_loader.load_task

    def finetune_checkpoint(
        self, ref: str, out: str | Path | None, several: bool, progress: Progress
    ) -> Run | None:
        """Compute the missing cells of a checkpoint. Return its run; None if it has no cell.

        several: there are other checkpoints, so that an error in this one is collected.
        """
        try:
            backbone = self.open_checkpoint(ref, self.options.checkpoint_options())
            attentions = _resolve_attentions(backbone, self.attentions)
        except BenchError as error:
            if not several:
                raise
            self.failures.append(f"  {ref}: {error}")
            return None
        folder = run_dir(backbone.metadata, out, several)
        with open_output(folder, backbone.metadata["weights"]) as local_folder:
            return self._finetune_opened(backbone, attentions, local_folder, progress)

    def _finetune_opened(
        self,
        backbone: Backbone,
        attentions: Sequence[Attention],
        folder: Path,
        progress: Progress,
    ) -> Run | None:
        """Compute the missing cells of an opened checkpoint in a local run folder."""
        with runs.RunWriter(folder, build_manifest(backbone.metadata, self.options.name)) as writer:
            if not self.tasks:
                self.tasks = [self._load_task(suite, task) for suite, task in self.task_names]
            for task in self.tasks:
                if isinstance(task, BenchError):
                    self.failures.append(f"  {backbone.name}: {task}")
            cells = list(self._list_cells(backbone, attentions))
            progress.plan(Workload.sum(cell.work for cell in cells))
            self._compute_cells(backbone, cells, writer, progress)
            keys = {cell.key for cell in cells}
            for key in keys if self.options.replace else ():
                writer.remove_other_limits(key)
        if not (folder / "run.json").exists():
            return None
        return open_verified_runs([folder], keys=keys)[0]

    def raise_failures(self, finished: Sequence[Run]) -> None:
        """Raise IncompleteError with the finished runs if a cell failed."""
        if self.failures:
            raise IncompleteError(
                "some cells failed:\n" + "\n".join(dict.fromkeys(self.failures)),
                hint="correct the cause and repeat: finished cells are kept",
                runs=finished,
            )

    def _load_task(self, suite: str, task: str) -> ClassificationTask | BenchError:
        """Load a task, or return the error, so that the other tasks are computed."""
        try:
            return self.load_task(suite, task, **self.options.loading_arguments(task))
        except UsageError:
            raise
        except BenchError as error:
            return error

    def _is_complete(self, cell: _PendingCell, writer: runs.RunWriter) -> bool:
        """Return whether the run folder has a cell. With `again`, no cell counts as complete."""
        return not self.options.again and writer.is_complete(
            cell.task.full_name, cell.method, cell.key, cell.seed, cell.task.origin
        )

    def _list_cells(
        self, backbone: Backbone, attentions: Sequence[Attention]
    ) -> Iterator[_PendingCell]:
        """Yield the cells of all tasks that could be loaded."""
        loaded_tasks = (task for task in self.tasks if isinstance(task, ClassificationTask))
        tasks = deduplicate_suites(loaded_tasks)
        for task, attention, seed in product(tasks, attentions, self.seeds):
            settings = _cell_settings(backbone, task, attention, seed, self.options)
            yield _PendingCell(task, attention, seed, self.options.frozen, settings)

    def _compute_cells(
        self,
        backbone: Backbone,
        cells: Sequence[_PendingCell],
        writer: runs.RunWriter,
        progress: Progress,
    ) -> None:
        """Compute the cells that the run folder lacks."""
        for cell in cells:
            name = f"{backbone.name} {cell.task.full_name}"
            fit = cell.method if cell.frozen else f"{cell.attention} seed {cell.seed}"
            callback = _CellProgress(progress, cell, f"{name} {fit}")
            if self._is_complete(cell, writer):
                progress.skip(cell.work.units)
                continue
            log_replaced_scores(progress.log, writer, cell.task.origin, [cell.settings])
            meter = ResourceMeter()
            try:
                result = _compute_cell(backbone, cell, self.options.loop_settings(), callback)
                clusters = [example.cluster for example in cell.task.valid]
                predictions = result.predictions.with_clusters(clusters)
                result = replace(result, predictions=predictions)
                new_cell = _build_cell(cell, result, loading_notes(backbone))
                writer.write_cell(new_cell, predictions)
                device = str(backbone.metadata.get("device", ""))
                writer.record_provenance([meter.build_record(cell.key, device=device)])
            except UsageError:
                raise
            except BenchError as error:
                self.failures.append(f"  {name} seed {cell.seed}: {error}")
            progress.end_piece()


def _compute_cell(
    backbone: Backbone,
    cell: _PendingCell,
    settings: FinetuneSettings,
    callback: _CellProgress,
) -> FinetuneResult:
    arguments = (backbone, cell.task, cell.seed, cell.attention, settings)
    if cell.frozen:
        from antlm_bench.finetuning.frozen import fit_frozen

        return fit_frozen(*arguments, callback.on_batch)
    from antlm_bench.finetuning import loop

    return loop.finetune(*arguments, callback)


class _CellProgress:
    """A FinetuneCallback that moves the progress bar."""

    def __init__(self, progress: Progress, cell: _PendingCell, label: str) -> None:
        self.progress, self.label = progress, label
        work = cell.work
        self.total_examples, self.examples_done = work.units, 0
        progress.start_piece(label, work)

    def on_batch(self, num_examples: int) -> None:
        self._advance_to(self.examples_done + num_examples)

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None:
        self._advance_to(self.total_examples * updates_done // max(total_updates, 1))
        self.progress.describe(f"{self.label} loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, selection_score: float) -> None:
        self.progress.describe(
            f"{self.label} epoch {epoch}: {selection_score:.3f} on the selection split"
        )

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
        pending.key,
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
    """Return everything that the predictions of a cell depend on. It is stored, and hashed to the
    content key.
    """
    training = task.training.settings_for_key()
    if options.frozen:
        training = {key: training[key] for key in FROZEN_TRAINING_KEYS if key in training}
    return {
        **select_content_key_metadata(backbone),
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
        "limit": task.limits,
        "pooling": options.pooling,
        "lora": options.lora,
        "dtype": options.dtype,
        "conventions": FROZEN_CONVENTIONS_VERSION if options.frozen else CONVENTIONS_VERSION,
    }
