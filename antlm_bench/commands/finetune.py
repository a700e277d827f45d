"""finetune: checkpoints and tasks in, the same run folders out as `score` writes: one cell per task and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import runs
from antlm_bench.checkpoints import Body, OpenOptions, expand, open_body, opening_notes, settings
from antlm_bench.commands.cells import Names, distinct, key, listed, manifest, place, say_replaced
from antlm_bench.compare.summary_check import read_run
from antlm_bench.declarations import nearest
from antlm_bench.errors import BenchError, IncompleteError, MethodNotSupported, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.reporting.progress import Progress
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification_loader import Task
from antlm_bench.types import Attention, Cell, Run, Summary

if TYPE_CHECKING:
    from antlm_bench.finetuning.loop import Conditions, Outcome

CONVENTIONS = 3  # raised whenever a finetuned number of an unchanged checkpoint and task may move; part of the key
NO_PRESETS = "a file of one's own has none: give its settings one by one with --set (docs/finetuning.md)"
SEEDS = (1, 2, 3)
ATTENTIONS = ("causal", "full")
ALL = "all"


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Everything that `finetune` can be told beside checkpoints, suite, tasks, seeds. See the command line's help.

    valid: the scored file of a set of one's own. limit_train, limit_valid: rows, task -> how many ("" = every task).
    changes: hyper-parameters, as "lr=1e-4". lora: rank, 0 = all weights.
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

    def limits(self, task: str) -> tuple[int | None, int | None]:
        """Rows to train on and to score of a task, None = all."""
        train, valid = (limit.get(task, limit.get("")) for limit in (self.limit_train, self.limit_valid))
        return train, valid

    def opening(self) -> OpenOptions:
        """Weights are opened, and kept, in fp32; `dtype` is that of the matrix products."""
        shared = {f.name for f in fields(OpenOptions)} & {f.name for f in fields(self)} - {"dtype"}
        return OpenOptions(**{name: getattr(self, name) for name in shared})

    def conditions(self) -> Conditions:
        from antlm_bench.finetuning.loop import Conditions

        return Conditions(
            device=self.device, dtype=self.dtype, batch_tokens=self.batch_tokens, pooling=self.pooling, lora=self.lora
        )


def finetune(
    models: Names,
    suites: Names,
    *,
    tasks: Names = (),
    seeds: Sequence[int] = SEEDS,
    attentions: Names = (),
    out: str | Path | None = None,
    options: FinetuneOptions | None = None,
    **more: Any,
) -> list[Run]:
    """Finetune every checkpoint on every task with every seed; one run folder per checkpoint, as `score`.

    models: as for `score`. suites: classification suites (`glue-2025`), or a CSV, TSV or JSONL of texts and labels.
    tasks: some of the suite's, () = all. attentions: causal, full or "all", () = that of the checkpoint's first method.
    out: as for `score`. Keyword settings are FinetuneOptions.

    A cell (task, attention, seed) that is already there under the same content key is not computed again, so a killed
    call resumes. A cell that fails (its data absent, a misfit) leaves the others to go on; IncompleteError follows.
    """
    options = replace(options or FinetuneOptions(), **more)
    if not seeds:
        raise UsageError("no seed given", place="--seeds", hint="1 or more; 5 for a report")
    for name in listed(attentions):
        if name not in (*ATTENTIONS, ALL):
            raise UsageError(f"unknown attention {name!r}", place="--attention", hint="causal, full or all")
    refs = expand(listed(models))
    wanted = _wanted(listed(suites), listed(tasks), options)
    finished: list[Run] = []
    failed: list[str] = []
    loaded: dict[tuple[str, str], Task | BenchError] = {}
    for ref in refs:
        try:
            body = open_body(ref, options.opening())
            ways = _attentions(body, listed(attentions))
        except BenchError as error:
            if len(refs) == 1:
                raise
            failed.append(f"  {ref}: {error}")
            continue
        folder = place(body.describe, out, len(refs) > 1)
        with runs.Writer(folder, manifest(body.describe)) as writer:
            for pair in wanted:
                if pair not in loaded:
                    loaded[pair] = _load(*pair, options)
            failed += _finetune_one(body, [loaded[pair] for pair in wanted], ways, seeds, writer, options)
        if (folder / "run.json").exists():
            finished.append(read_run(folder))
    finished = runs.distinguish_suites(finished)
    if failed:
        message = "some of it was not finetuned:\n" + "\n".join(dict.fromkeys(failed))
        raise IncompleteError(message, hint="mend it and repeat: what is finished is kept", runs=finished)
    return finished


def _wanted(suites: Sequence[str], tasks: Sequence[str], options: FinetuneOptions) -> list[tuple[str, str]]:
    """(suite, task) in order. A slip in a name costs a second, not an hour."""
    if not suites:
        raise UsageError("no suite given", place="--suite", hint="glue-2025, glue-2024, or a train.csv of yours")
    known = {suite: classification_loader.tasks(suite) for suite in suites}
    for task in tasks:
        if not any(task in names for names in known.values()):
            everything = [name for names in known.values() for name in names]
            hint = nearest(task, everything) or f"one of {', '.join(everything)}"
            raise UsageError(f"{', '.join(suites)} has no task {task!r}", place="--task", hint=hint)
    for option, limits in (("--limit-train", options.limit_train), ("--limit-valid", options.limit_valid)):
        for name in limits:
            if name and not any(name in names for names in known.values()):
                raise UsageError(f"{', '.join(suites)} has no task {name!r}", place=option)
    for suite in suites:
        if options.preset and options.preset not in classification_loader.presets(suite):
            there = classification_loader.presets(suite)
            hint = nearest(options.preset, there) or (f"one of {', '.join(there)}" if there else NO_PRESETS)
            raise UsageError(f"{suite} has no preset {options.preset!r}", place="--preset", hint=hint)
    return [(suite, task) for suite, names in known.items() for task in names if not tasks or task in tasks]


def _load(suite: str, task: str, options: FinetuneOptions) -> Task | BenchError:
    """A task, or why it cannot be had: that is one failed cell, and no reason not to compute the others."""
    limit_train, limit_valid = options.limits(task)
    try:
        return classification_loader.load(
            suite,
            task,
            preset=options.preset,
            valid=options.valid,
            limit_train=limit_train,
            limit_valid=limit_valid,
            changes=options.changes,
        )
    except UsageError:
        raise
    except BenchError as error:
        return error


def _attentions(body: Body, asked: Sequence[str]) -> list[Attention]:
    """How the checkpoint is read: as asked, else as its first method reads it."""
    able = [attention for attention in ATTENTIONS if attention in body.attends]
    if not asked:
        first = body.trained_for[0] if body.trained_for else ""
        asked = [first if first in able else "full" if "full" in able and (first or body.kind == "masked") else able[0]]
    chosen = list(dict.fromkeys(way for name in asked for way in (able if name == ALL else [name])))
    for way in chosen:
        if way not in able:
            hint = f"it attends {' and '.join(able)}"
            raise MethodNotSupported(f"{body.name} cannot attend {way}", place="--attention", hint=hint)
    return ["causal" if way == "causal" else "full" for way in chosen]


@dataclass(frozen=True, slots=True)
class _Todo:
    """A cell to be computed, and what its key was made of."""

    task: Task
    attention: Attention
    seed: int
    facts: Mapping[str, Any]

    @property
    def method(self) -> str:
        return f"finetune-{self.attention}"

    @property
    def examples(self) -> int:
        """How many texts are shown at most: the unit of progress."""
        return len(self.task.train) * self.task.training.epochs


def _finetune_one(
    body: Body,
    tasks: Sequence[Task | BenchError],
    ways: Sequence[Attention],
    seeds: Sequence[int],
    writer: runs.Writer,
    options: FinetuneOptions,
) -> list[str]:
    """The cells of one checkpoint that are not there yet; what failed, in words."""
    failed = [f"  {body.name}: {task}" for task in tasks if isinstance(task, BenchError)]
    cells = []
    for task, way, seed in product(distinct(task for task in tasks if isinstance(task, Task)), ways, seeds):
        todo = _Todo(task, way, seed, _settings(body, task, way, seed, options))
        if options.again or not writer.done(task.full_name, todo.method, key(todo.facts), seed, task.origin):
            cells.append(todo)
    from antlm_bench.finetuning.loop import finetune as train

    with Progress(sum(todo.examples for todo in cells), body.name, "examples") as progress:
        for todo in cells:
            say_replaced(progress, writer, todo.task.origin, [todo.facts])
            told = _Told(progress, todo, f"{body.name} {todo.task.full_name} {todo.attention} seed {todo.seed}")
            try:
                outcome = train(body, todo.task, todo.seed, todo.attention, options.conditions(), told)
                writer.enter(_cell(todo, outcome, opening_notes(body)), outcome.predictions)
            except UsageError:
                raise
            except BenchError as error:
                failed.append(f"  {body.name} {todo.task.full_name} seed {todo.seed}: {error}")
            told.ended()
    return failed


class _Told:
    """What the loop says, as examples of a progress bar."""

    def __init__(self, progress: Progress, todo: _Todo, label: str) -> None:
        self.progress, self.label, self.total, self.counted = progress, label, todo.examples, 0
        progress.describe(label)

    def stepped(self, done: int, total: int, loss: float) -> None:
        self._reach(self.total * done // max(total, 1))
        self.progress.describe(f"{self.label} loss {loss:.3f}")

    def scored(self, epoch: int, selection: float) -> None:
        self.progress.describe(f"{self.label} epoch {epoch}: {selection:.3f} on the selection split")

    def ended(self) -> None:
        """Epochs that early stopping saved were no work: skipped, so that the rate stays true."""
        self.progress.skip(self.total - self.counted)

    def _reach(self, examples: int) -> None:
        self.progress.advance(examples - self.counted)
        self.counted = examples


def _cell(todo: _Todo, outcome: Outcome, remarks: Sequence[str]) -> Cell:
    summary = _summary(todo, outcome, remarks)
    facts = dict(todo.facts)
    return Cell(
        todo.task.full_name,
        todo.method,
        key(facts),
        facts,
        summary,
        seed=todo.seed,
        history=dict(outcome.history),
        origin=todo.task.origin,
    )


def _summary(todo: _Todo, outcome: Outcome, remarks: Sequence[str]) -> Summary:
    task = todo.task
    notes = [*task.notes, *remarks]
    if task.select == "valid":
        notes.append("epochs were selected on the scored examples, as the official recipe does: optimistic")
    if todo.attention == "causal" and outcome.history.get("pooling") == "first":
        notes.append("the head read position 0, which in a causal model has seen the first token only")
    notes += [f"collapsed: {words}" for words in outcome.history.get("collapsed", ())]
    return summarize(
        outcome.predictions,
        suite=task.full_name,
        method=todo.method,
        metric=task.metric,
        macro=(),
        groups=(),
        reduction="class",
        notes=notes,
    )


def _settings(body: Body, task: Task, attention: Attention, seed: int, options: FinetuneOptions) -> dict[str, Any]:
    """All that the predictions of a cell depend on; stored beside them, and hashed into the key."""
    return {
        **settings(body),
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
        "training": task.training.recorded(),
        "limit": options.limits(task.name),
        "pooling": options.pooling,
        "lora": options.lora,
        "dtype": options.dtype,
        "conventions": CONVENTIONS,
    }
