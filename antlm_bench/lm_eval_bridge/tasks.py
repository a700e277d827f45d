"""A task of the installed lm-evaluation-harness as a suite of ours: its own documents, prompts and shots become items.

The harness builds every request (few-shot examples drawn with its default seeds); we only say where the scored part of
each text begins. Choices become accuracies, a single continuation its surprisal, whole documents bits per byte; where a
task's first metric is another one (or it judges answers by code of its own, or several options are right), its own code
is the judge here, too. Generation is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from antlm_bench.declarations import nearest, user_path
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge.documents import ALONE, CHOICE, LEVELS, WHOLE, Row, Task, at_work, rows_of
from antlm_bench.lm_eval_bridge.task_metrics import LENGTHS, REGISTERED, Judge, means, silence, source
from antlm_bench.metrics.surprisal import SURPRISAL
from antlm_bench.metrics.task_metric import BITS_PER_BYTE, DECIDED, TASK_PENALTY, TASK_SCORE, WHOLE_PENALTY, WHOLE_SCORE
from antlm_bench.suites.names import absolute, name_of_title
from antlm_bench.types import Item

PREFIX = "lm-eval:"
GENERATED = "generate_until"  # the kind that is refused: it is also what a configuration means that says none
# What lm-eval reports of a task that our metric says by itself.
KNOWN: dict[str, tuple[str, ...]] = {
    "accuracy": ("acc", "acc_norm"),
    SURPRISAL: ("perplexity",),
    BITS_PER_BYTE: ("bits_per_byte", "byte_perplexity", "word_perplexity"),
    **dict.fromkeys(DECIDED, ()),
}
USUAL = {CHOICE: ("accuracy", "acc"), ALONE: (SURPRISAL, "perplexity")}  # our metric of a kind, and lm-eval's
ELSEWHERE = (
    "python -m antlm_bench.lm_eval_bridge run --model antlm-bench"  # our engine in the harness judges as the task says
)


def is_task(ref: str) -> bool:
    return ref.startswith(PREFIX)


def members(ref: str) -> list[str]:
    """`lm-eval:a,b` is two suites. UsageError for a name that the installed harness does not know."""
    names = [name for name in ref.removeprefix(PREFIX).split(",") if name]
    if not names:
        raise UsageError(f"no task in {ref!r}", place="--suite", hint="lm-eval:NAME, or lm-eval:path/to/task.yaml")
    for name in names:
        if _is_file(name):
            if not user_path(name).is_file():
                raise UsageError("there is no such file", place=name)
        elif name not in (known := _shipped().all_tasks):
            hint = nearest(name, known) or "see `lm_eval ls tasks`"
            raise UsageError(f"lm-eval has no task {name!r}", place="--suite", hint=hint)
    return [PREFIX + name for name in dict.fromkeys(names)]


def suite(ref: str, limit: int | None) -> dict[str, Any]:
    """The fields of a Suite for one task, group or tag, or the YAML file of one. limit: documents per task.

    Raises UsageError (not a choice), DataError (the harness cannot build it, or a document that is none).
    """
    one, *more = members(ref)
    if more:
        raise UsageError(f"{ref!r} is several suites", place="--suite", hint=f"one at a time: {one}")
    name, index = _found(one.removeprefix(PREFIX), ref)
    if _asks(name, index) == {GENERATED}:  # said before any data are looked for
        raise _refused(name, GENERATED, ref)
    tasks, weighted = _build(name, index, ref)
    places = [f"{ref}: {task.name}" for task in tasks]
    documents = [task.asked(limit, place) for task, place in zip(tasks, places, strict=True)]
    kinds = {_kind(task, each, ref) for task, each in zip(tasks, documents, strict=True)}
    if len(kinds) > 1:
        message = f"{name!r} holds {' and '.join(sorted(kinds))}, which have no common number"
        raise UsageError(message, place=ref, hint="score its tasks one by one")
    asked = zip(tasks, documents, places, strict=True)
    rows = [row for task, each, place in asked for row in rows_of(task, each, len(tasks) > 1, place)]
    metric, judge = _judged(kinds.pop(), tasks, rows, ref)
    items = [row.item for row in rows]
    flat = len(tasks) == 1 or metric in (SURPRISAL, BITS_PER_BYTE)
    groups = () if flat else LEVELS if len({task.group for task in tasks}) > 1 else LEVELS[1:]
    notes = [note for task in tasks for note in _notes(task, metric, judge.names if judge else ())]
    if limit is not None:
        notes.append(f"limit: the first {limit} of each task")
    return {
        "name": name_of_title(f"lm-eval.{name}"),
        "version": ", ".join(dict.fromkeys(str(task.built.VERSION) for task in tasks)),
        "title": f"{name}, built by lm-evaluation-harness {version('lm-eval')}",
        "licence": "not stated",
        "metric": metric,
        "groups": groups,
        "macro": groups[-1:] if not weighted else (),  # a group's own word: its tasks count equally, or its documents
        "items": tuple(items),
        "digest": _digest(tasks, items, judge.facts() if judge and metric not in ("accuracy", SURPRISAL) else ()),
        "notes": tuple(dict.fromkeys(notes)),
        "verbatim": True,
        "judge": judge,
        "origin": (absolute(user_path(task)),) if _is_file(task := one.removeprefix(PREFIX)) else (),
    }


def whole(ref: str) -> bool:
    """Does it ask for whole documents, as far as is known before any data are looked for?"""
    return any(WHOLE in _asks(*_found(name, ref)) for name in ref.removeprefix(PREFIX).split(","))


def _asks(name: str, index: Any) -> set[str]:
    """What the tasks behind a name ask for, as far as their configurations say it ("" = only a class's code knows)."""
    found: set[str] = set()
    todo: list[Any] = [name]
    while todo:
        child = todo.pop()
        entry = index.task_index.get(child) if isinstance(child, str) else None
        config = (entry.cfg or {}) if entry else {}
        inside = entry.tags if entry and entry.cfg is None else config.get("task")  # a tag has no configuration
        if isinstance(inside, list | set):
            todo += inside
            found.update({config["output_type"]} if "output_type" in config else ())  # a group's is its tasks'
        else:
            unsaid = GENERATED if entry and "class" not in config else ""
            found.add(str(config.get("output_type", unsaid)))
    return found


def _build(own: str, index: Any, place: str) -> tuple[list[Task], bool]:
    """The tasks behind a name, and whether a group's mean weighs them by their documents."""
    from lm_eval.api.group import Group

    with at_work(place):
        loaded = index.load(own)
        tasks = [_task(title, built) for title, built in loaded["tasks"].items()]
    groups = loaded.get("groups") or {}
    inside = {
        child.task_name: "" if len(groups) == 1 else group.name
        for group in groups.values()
        for child in group
        if not isinstance(child, Group)
    }
    tasks = [replace(task, group=inside.get(task.name, "")) for task in tasks]
    if not tasks:
        raise DataError("lm-eval builds no task from it", place=place)
    top = next(iter(groups), None)
    averages = (groups[top].aggregate_metric_list or []) if top else []
    return tasks, any(average.weight_by_size for average in averages)


def _task(name: str, built: Any) -> Task:
    aggregations = {str(metric): aggregation for metric, aggregation in built.aggregation().items()}
    readings = means(aggregations)
    return Task(name, "", built, readings, {n: a for n, a in aggregations.items() if n not in readings})


def _found(name: str, place: str) -> tuple[str, Any]:
    """A name and the index that knows it: the harness's own, or of a YAML file its folder's, where what the file calls
    its task or group leads back to it."""
    from lm_eval.tasks import TaskManager

    if not _is_file(name):
        return name, _shipped()
    file = user_path(name).resolve()
    with at_work(place):
        index = TaskManager(include_path=str(file.parent), include_defaults=False)
    names = [name for name, entry in index.task_index.items() if entry.yaml_path == file]
    if not names:
        raise DataError("no task or group of lm-eval", place=place, hint="it needs the key `task` or `group`")
    return names[0], index


def _kind(task: Task, documents: Sequence[Sequence[Any]], place: str) -> str:
    """CHOICE, ALONE or WHOLE (see Task.kind). UsageError for other kinds."""
    kind = task.kind(documents)
    if kind not in (CHOICE, ALONE, WHOLE):
        raise _refused(task.name, kind, place)
    return kind


def _refused(name: str, kind: str, place: str) -> UsageError:
    if GENERATED in kind:
        why, where = f"asks for generated text ({kind})", "lm_eval run --model hf"
    else:
        why, where = f"asks for what is not known here ({kind})", ELSEWHERE
    return UsageError(f"the task {name!r} {why}", place=place, hint=f"{where} --tasks {name}")


def _judged(kind: str, tasks: list[Task], rows: list[Row], place: str) -> tuple[str, Judge | None]:
    """The suite's metric, and who judges its answers where their scores alone do not say it, or not all of it.

    The first metric of the tasks decides. Choices of tasks that have none in common are choices all the same.
    UsageError where tasks that judge by themselves have no number in common.
    """
    common = set.intersection(*(set(task.readings) for task in tasks))
    common |= set.intersection(*(set(task.wholes) for task in tasks))
    names = [name for name in tasks[0].metrics if name in common]
    firsts = {name for task in tasks for name in task.metrics[:1]}
    judging = any(task.own for task in tasks) or any(row.several for row in rows)
    if kind == WHOLE:
        metric, names = BITS_PER_BYTE, list(LENGTHS)
    elif judging or (len(firsts) == 1 and firsts != {USUAL[kind][1]}):
        metric = _direction(tasks, names, place)
    else:
        metric = USUAL[kind][0]
        names = [name for name in names if name not in KNOWN[metric]]
    wholes = {task.name: {name: task.wholes[name] for name in names if name in task.wholes} for task in tasks}
    code = [*(task.own for task in tasks), *(each for of in wholes.values() for each in of.values())]
    own = [source(each) for each in code if each and getattr(each, "__module__", "") != REGISTERED]
    about = hashlib.sha256("\n".join([version("lm-eval"), *own]).encode()).hexdigest()
    cases = {}
    for row in rows:
        readings = {name: row.case.readings.get(name, silence) for name in names}
        cases[row.item.id] = replace(row.case, readings=readings, kept=tuple(wholes[row.case.task]))
    return metric, Judge(tuple(names), cases, about, wholes if any(wholes.values()) else {}) if names else None


def _direction(tasks: list[Task], names: list[str], place: str) -> str:
    """Is more better in the first number of tasks that judge by themselves, and is it a mean? UsageError where they do
    not agree."""
    better = {task.built.higher_is_better().get(name) is not False for task in tasks for name in names[:1]}
    if len(better) != 1:
        message = "its tasks judge answers by code of their own, and have no number in common"
        raise UsageError(message, place=place, hint="score its tasks one by one")
    metrics = (TASK_PENALTY, TASK_SCORE) if names[0] in tasks[0].readings else (WHOLE_PENALTY, WHOLE_SCORE)
    return metrics[better.pop()]


def _notes(task: Task, metric: str, judged: Sequence[str]) -> Iterator[str]:
    """What a reader of the number needs to know of its task. judged: the numbers that the task's own code gives."""
    if shots := task.built.config.num_fewshot:
        yield f"{task.name}: {shots} shots" if shots != 1 else f"{task.name}: 1 shot"
    metrics = task.metrics
    if metric == SURPRISAL:
        yield f"{task.name}: nats per continuation; lm-eval's perplexity is e to their power"
    elif metric in DECIDED:
        yield f"{task.name}: {judged[0]}, as the task judges its answers"
    elif metric == "accuracy" and metrics and "acc" not in metrics:
        normed = " (acc_norm is the view per-character)" if "acc_norm" in metrics else ""
        yield f"{task.name}: lm-eval reports {', '.join(metrics)}; this is the accuracy of the same choices{normed}"
    left = [name for name in metrics if name not in (*judged, *KNOWN[metric])]
    if left:
        yield f"{task.name}: not computed: {', '.join(left)}"


def _digest(tasks: list[Task], items: list[Item], judge: Sequence[str]) -> str:
    """sha256 over every task's version and shots, every item's id, texts, spans, lengths, gold and labels, and what the
    number depends on beside their scores."""
    about: list[Any] = [[task.name, str(task.built.VERSION), task.built.config.num_fewshot] for task in tasks]
    asked_for = [[i.id, [[o.text, o.span, o.length] for o in i.options], i.gold, dict(i.labels)] for i in items]
    parts = [about, asked_for, *([list(judge)] if judge else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _shipped() -> Any:
    """The index of the harness's own tasks: some ten seconds, for it reads 14,000 files."""
    from lm_eval.tasks import TaskManager

    with at_work("lm-eval"):
        return TaskManager()


def _is_file(name: str) -> bool:
    return name.endswith(".yaml")
