"""A task of the installed lm-evaluation-harness as a suite of ours: its own documents, prompts and
shots become items.

The harness builds every request (few-shot examples drawn with its default seeds); we only say where
the scored part of each text begins. Choices become accuracies, a single continuation its surprisal,
whole documents bits per byte; where a task's first metric is another one (or it judges answers by
code of its own, or several options are right), its own code is the judge here, too. Generation is
refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from antlm_bench.declarations import expand_user_path, suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge.documents import (
    GROUP_LEVELS,
    LOGLIKELIHOOD,
    MULTIPLE_CHOICE,
    ROLLING,
    DocumentItem,
    LmEvalTask,
    build_document_items,
    lm_eval_context,
)
from antlm_bench.lm_eval_bridge.task_metrics import (
    LENGTH_EXTRACTORS,
    LM_EVAL_METRICS_MODULE,
    TaskMetrics,
    find_mean_metrics,
    missing,
    read_source_code,
)
from antlm_bench.metrics import ItemKind, LmEvalFormat, MetricSpec
from antlm_bench.metrics.records import (
    ACCURACY,
    BITS_PER_BYTE,
    SURPRISAL,
    TASK_PENALTY,
    TASK_SCORE,
    WHOLE_PENALTY,
    WHOLE_SCORE,
)
from antlm_bench.suites.names import absolute_path, slugify_title
from antlm_bench.types import Item

PREFIX = "lm-eval:"
# the kind that is refused: it is also what a configuration means that says none
GENERATE_UNTIL = "generate_until"
DEFAULT_METRICS = {MULTIPLE_CHOICE: ACCURACY, LOGLIKELIHOOD: SURPRISAL}
"""Output type -> the metric whose first equivalent lm-eval reports by default."""
TASK_TYPE_OF_ITEMS = {
    ItemKind.CHOICE: "suite",
    ItemKind.TEXT: "surprisal",
    ItemKind.TASK_VALUE: "lm-eval",
    ItemKind.DOCUMENT: "lm-eval-documents",
}
# our engine in the harness judges as the task says
HARNESS_COMMAND = "python -m antlm_bench.lm_eval_bridge run --model antlm-bench"


def is_lm_eval_ref(ref: str) -> bool:
    return ref.startswith(PREFIX)


def list_suite_refs(ref: str) -> list[str]:
    """`lm-eval:a,b` is two suites. UsageError for a name that the installed harness does not know."""
    names = [name for name in ref.removeprefix(PREFIX).split(",") if name]
    if not names:
        raise UsageError(
            f"no task in {ref!r}",
            location="--suite",
            hint="lm-eval:NAME, or lm-eval:path/to/task.yaml",
        )
    for name in names:
        if _is_yaml_file(name):
            if not expand_user_path(name).is_file():
                raise UsageError("there is no such file", location=name)
        elif name not in (known := _builtin_index().all_tasks):
            hint = suggest_name(name, known) or "see `lm_eval ls tasks`"
            raise UsageError(f"lm-eval has no task {name!r}", location="--suite", hint=hint)
    return [PREFIX + name for name in dict.fromkeys(names)]


def build_suite_fields(ref: str, limit: int | None) -> dict[str, Any]:
    """The fields of a Suite for one task, group or tag, or the YAML file of one. limit: documents
    per task.

    Raises UsageError (not a choice), DataError (the harness cannot build it, or a document that is
    none).
    """
    one, *more = list_suite_refs(ref)
    if more:
        raise UsageError(
            f"{ref!r} is several suites", location="--suite", hint=f"one at a time: {one}"
        )
    name, index = _resolve_task_name(one.removeprefix(PREFIX), ref)
    if _configured_output_types(name, index) == {
        GENERATE_UNTIL
    }:  # said before any data are looked for
        raise _refusal_error(name, GENERATE_UNTIL, ref)
    tasks, weighted = _build_tasks(name, index, ref)
    places = [f"{ref}: {task.name}" for task in tasks]
    documents = [
        task.build_requests(limit, place) for task, place in zip(tasks, places, strict=True)
    ]
    kinds = {
        _check_output_type(task, each, ref) for task, each in zip(tasks, documents, strict=True)
    }
    if len(kinds) > 1:
        message = f"{name!r} holds {' and '.join(sorted(kinds))}, which have no common number"
        raise UsageError(message, location=ref, hint="score its tasks one by one")
    asked = zip(tasks, documents, places, strict=True)
    rows = [
        row
        for task, each, place in asked
        for row in build_document_items(task, each, len(tasks) > 1, place)
    ]
    metric, judge = _build_task_metrics(kinds.pop(), tasks, rows, ref)
    items = [row.item for row in rows]
    flat = len(tasks) == 1 or metric.item_kind in (ItemKind.TEXT, ItemKind.DOCUMENT)
    groups = (
        ()
        if flat
        else GROUP_LEVELS
        if len({task.group for task in tasks}) > 1
        else GROUP_LEVELS[1:]
    )
    notes = [
        note
        for task in tasks
        for note in _task_notes(task, metric, judge.metric_names if judge else ())
    ]
    if limit is not None:
        notes.append(f"limit: the first {limit} of each task")
    return {
        "name": slugify_title(f"lm-eval.{name}"),
        "version": ", ".join(dict.fromkeys(str(task.task_object.VERSION) for task in tasks)),
        "title": f"{name}, built by lm-evaluation-harness {version('lm-eval')}",
        "licence": "not stated",
        "metric": metric.name,
        "task_type": TASK_TYPE_OF_ITEMS[metric.item_kind],
        "groups": groups,
        "macro": groups[-1:]
        if not weighted
        else (),  # a group's own word: its tasks count equally, or its documents
        "items": tuple(items),
        "digest": _digest(
            tasks,
            items,
            judge.key_parts()
            if judge and metric.item_kind in (ItemKind.TASK_VALUE, ItemKind.DOCUMENT)
            else (),
        ),
        "notes": tuple(dict.fromkeys(notes)),
        "verbatim": True,
        "judge": judge,
        "origin": (absolute_path(expand_user_path(task)),)
        if _is_yaml_file(task := one.removeprefix(PREFIX))
        else (),
    }


def requests_documents(ref: str) -> bool:
    """Does it ask for whole documents, as far as is known before any data are looked for?"""
    return any(
        ROLLING in _configured_output_types(*_resolve_task_name(name, ref))
        for name in ref.removeprefix(PREFIX).split(",")
    )


def _configured_output_types(name: str, index: Any) -> set[str]:
    """What the tasks behind a name ask for, as far as their configurations say it ("" = only a
    class's code knows).
    """
    found: set[str] = set()
    todo: list[Any] = [name]
    while todo:
        child = todo.pop()
        entry = index.task_index.get(child) if isinstance(child, str) else None
        config = (entry.cfg or {}) if entry else {}
        inside = (
            entry.tags if entry and entry.cfg is None else config.get("task")
        )  # a tag has no configuration
        if isinstance(inside, list | set):
            todo += inside
            found.update(
                {config["output_type"]} if "output_type" in config else ()
            )  # a group's is its tasks'
        else:
            unsaid = GENERATE_UNTIL if entry and "class" not in config else ""
            found.add(str(config.get("output_type", unsaid)))
    return found


def _build_tasks(name: str, index: Any, location: str) -> tuple[list[LmEvalTask], bool]:
    """The tasks behind a name, and whether a group's mean weighs them by their documents."""
    from lm_eval.api.group import Group

    with lm_eval_context(location):
        loaded = index.load(name)
        tasks = [_wrap_task(title, built) for title, built in loaded["tasks"].items()]
    groups = loaded.get("groups") or {}
    inside = {
        child.task_name: "" if len(groups) == 1 else group.name
        for group in groups.values()
        for child in group
        if not isinstance(child, Group)
    }
    tasks = [replace(task, group=inside.get(task.name, "")) for task in tasks]
    if not tasks:
        raise DataError("lm-eval builds no task from it", location=location)
    top = next(iter(groups), None)
    averages = (groups[top].aggregate_metric_list or []) if top else []
    return tasks, any(average.weight_by_size for average in averages)


def _wrap_task(name: str, task_object: Any) -> LmEvalTask:
    aggregations = {
        str(metric): aggregation for metric, aggregation in task_object.aggregation().items()
    }
    readings = find_mean_metrics(aggregations)
    return LmEvalTask(
        name,
        "",
        task_object,
        readings,
        {n: a for n, a in aggregations.items() if n not in readings},
    )


def _resolve_task_name(name: str, location: str) -> tuple[str, Any]:
    """A name and the index that knows it: the harness's own, or of a YAML file its folder's, where
    what the file calls its task or group leads back to it.
    """
    from lm_eval.tasks import TaskManager

    if not _is_yaml_file(name):
        return name, _builtin_index()
    file = expand_user_path(name).resolve()
    with lm_eval_context(location):
        index = TaskManager(include_path=str(file.parent), include_defaults=False)
    names = [name for name, entry in index.task_index.items() if entry.yaml_path == file]
    if not names:
        raise DataError(
            "no task or group of lm-eval",
            location=location,
            hint="it needs the key `task` or `group`",
        )
    return names[0], index


def _check_output_type(
    task: LmEvalTask, requests_by_document: Sequence[Sequence[Any]], location: str
) -> str:
    """CHOICE, ALONE or WHOLE (see Task.kind). UsageError for other kinds."""
    kind = task.infer_output_type(requests_by_document)
    if kind not in (MULTIPLE_CHOICE, LOGLIKELIHOOD, ROLLING):
        raise _refusal_error(task.name, kind, location)
    return kind


def _refusal_error(name: str, output_type: str, location: str) -> UsageError:
    if GENERATE_UNTIL in output_type:
        why, where = f"asks for generated text ({output_type})", "lm_eval run --model hf"
    else:
        why, where = f"asks for what is not known here ({output_type})", HARNESS_COMMAND
    return UsageError(f"the task {name!r} {why}", location=location, hint=f"{where} --tasks {name}")


def _build_task_metrics(
    output_type: str, tasks: list[LmEvalTask], document_items: list[DocumentItem], location: str
) -> tuple[MetricSpec, TaskMetrics | None]:
    """The suite's metric, and who judges its answers where their scores alone do not say it, or not
    all of it.

    The first metric of the tasks decides. Choices of tasks that have none in common are choices all
    the same. UsageError where tasks that judge by themselves have no number in common.
    """
    common = set.intersection(*(set(task.mean_metrics) for task in tasks))
    common |= set.intersection(*(set(task.corpus_metrics) for task in tasks))
    names = [name for name in tasks[0].metric_names if name in common]
    firsts = {name for task in tasks for name in task.metric_names[:1]}
    judging = any(task.custom_process_results for task in tasks) or any(
        row.has_multiple_golds for row in document_items
    )
    if output_type == ROLLING:
        metric, names = BITS_PER_BYTE, list(LENGTH_EXTRACTORS)
    elif judging or (
        len(firsts) == 1 and firsts != {_equivalents(DEFAULT_METRICS[output_type])[0]}
    ):
        metric = _select_metric(tasks, names, location)
    else:
        metric = DEFAULT_METRICS[output_type]
        names = [name for name in names if name not in _equivalents(metric)]
    wholes = {
        task.name: {
            name: task.corpus_metrics[name] for name in names if name in task.corpus_metrics
        }
        for task in tasks
    }
    code = [
        *(task.custom_process_results for task in tasks),
        *(each for of in wholes.values() for each in of.values()),
    ]
    own = [
        read_source_code(each)
        for each in code
        if each and getattr(each, "__module__", "") != LM_EVAL_METRICS_MODULE
    ]
    about = hashlib.sha256("\n".join([version("lm-eval"), *own]).encode()).hexdigest()
    cases = {}
    for row in document_items:
        readings = {name: row.scorer.extractors.get(name, missing) for name in names}
        cases[row.item.id] = replace(
            row.scorer, extractors=readings, raw_value_names=tuple(wholes[row.scorer.task])
        )
    return metric, TaskMetrics(
        tuple(names), cases, about, wholes if any(wholes.values()) else {}
    ) if names else None


def _equivalents(metric: MetricSpec) -> tuple[str, ...]:
    """Return the metrics of lm-eval that our metric says by itself."""
    return (metric.lm_eval or LmEvalFormat()).equivalents


def _select_metric(tasks: list[LmEvalTask], metric_names: list[str], location: str) -> MetricSpec:
    """Is more better in the first number of tasks that judge by themselves, and is it a mean?
    UsageError where they do not agree.
    """
    better = {
        task.task_object.higher_is_better().get(name) is not False
        for task in tasks
        for name in metric_names[:1]
    }
    if len(better) != 1:
        message = "its tasks judge answers by code of their own, and have no number in common"
        raise UsageError(message, location=location, hint="score its tasks one by one")
    metrics = (
        (TASK_PENALTY, TASK_SCORE)
        if metric_names[0] in tasks[0].mean_metrics
        else (WHOLE_PENALTY, WHOLE_SCORE)
    )
    return metrics[better.pop()]


def _task_notes(
    task: LmEvalTask, metric: MetricSpec, task_metric_names: Sequence[str]
) -> Iterator[str]:
    """What a reader of the number needs to know of its task. judged: the numbers that the task's
    own code gives.
    """
    if shots := task.task_object.config.num_fewshot:
        yield f"{task.name}: {shots} shots" if shots != 1 else f"{task.name}: 1 shot"
    metrics = task.metric_names
    if metric.item_kind is ItemKind.TEXT:
        yield f"{task.name}: nats per continuation; lm-eval's perplexity is e to their power"
    elif metric.item_kind is ItemKind.TASK_VALUE:
        yield f"{task.name}: {task_metric_names[0]}, as the task judges its answers"
    elif metric.item_kind is ItemKind.CHOICE and metrics and "acc" not in metrics:
        normed = " (acc_norm is the view per-character)" if "acc_norm" in metrics else ""
        yield f"{task.name}: lm-eval reports {', '.join(metrics)}; this is the accuracy of the same choices{normed}"
    covered = (*task_metric_names, *_equivalents(metric))
    left = [name for name in metrics if name not in covered]
    if left:
        yield f"{task.name}: not computed: {', '.join(left)}"


def _digest(tasks: list[LmEvalTask], items: list[Item], metric_key_parts: Sequence[str]) -> str:
    """sha256 over every task's version and shots, every item's id, texts, spans, lengths, gold and
    labels, and what the number depends on beside their scores.
    """
    about: list[Any] = [
        [task.name, str(task.task_object.VERSION), task.task_object.config.num_fewshot]
        for task in tasks
    ]
    asked_for = [
        [i.id, [[o.text, o.span, o.length] for o in i.options], i.gold, dict(i.labels)]
        for i in items
    ]
    parts = [about, asked_for, *([list(metric_key_parts)] if metric_key_parts else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _builtin_index() -> Any:
    """The index of the harness's own tasks: some ten seconds, for it reads 14,000 files."""
    from lm_eval.tasks import TaskManager

    with lm_eval_context("lm-eval"):
        return TaskManager()


def _is_yaml_file(name: str) -> bool:
    return name.endswith(".yaml")
