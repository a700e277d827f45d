"""Load tasks of the installed lm-evaluation-harness as suites.

lm-eval builds every request (few-shot examples drawn with its default seeds); we only locate the
scored part of each text. Choices become accuracies, a single continuation its surprisal, whole
documents bits per byte. Where a task's first metric is another one (or it has code of its own that
scores responses, or several options are right), that code computes it here, too. Tasks that
generate text are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
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
from antlm_bench.lm_eval_bridge.jackknife import Aggregation
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
from antlm_bench.suites.task_types import Suite, SuiteRequest
from antlm_bench.types import Item

PREFIX = "lm-eval:"
# The output type that is refused. It is also the default of configurations.
GENERATE_UNTIL = "generate_until"
DEFAULT_METRICS = {MULTIPLE_CHOICE: ACCURACY, LOGLIKELIHOOD: SURPRISAL}
"""Output type -> the metric whose first equivalent lm-eval reports by default."""
TASK_TYPE_OF_ITEMS = {
    ItemKind.CHOICE: "suite",
    ItemKind.TEXT: "surprisal",
    ItemKind.TASK_VALUE: "lm-eval",
    ItemKind.DOCUMENT: "lm-eval-documents",
}
# Runs lm-eval itself on our engine.
HARNESS_COMMAND = "python -m antlm_bench.lm_eval_bridge run --model antlm-bench"


def is_lm_eval_ref(ref: str) -> bool:
    return ref.startswith(PREFIX)


def list_suite_refs(ref: str) -> list[str]:
    """Return the suites of a reference: `lm-eval:a,b` is two.

    Raises UsageError for a task that the installed lm-eval does not have.
    """
    names = [name for name in ref.removeprefix(PREFIX).split(",") if name]
    if not names:
        hint = "lm-eval:NAME, or lm-eval:path/to/task.yaml"
        raise UsageError(f"no task in {ref!r}", location="--suite", hint=hint)
    for name in names:
        if _is_yaml_file(name):
            if not expand_user_path(name).is_file():
                raise UsageError("there is no such file", location=name)
        elif name not in (known := _builtin_index().all_tasks):
            hint = suggest_name(name, known) or "see `lm_eval ls tasks`"
            raise UsageError(f"lm-eval has no task {name!r}", location="--suite", hint=hint)
    return [PREFIX + name for name in dict.fromkeys(names)]


def load_suite(request: SuiteRequest) -> Suite:
    """Load a task, group or tag, or the YAML file of one. request.limit: documents per task.

    Raises UsageError (it generates text, or its tasks have no common number), DataError (lm-eval
    cannot build it, or a document is invalid).
    """
    ref, limit = request.ref, request.limit
    first, *more = list_suite_refs(ref)
    if more:
        hint = f"one at a time: {first}"
        raise UsageError(f"{ref!r} is several suites", location="--suite", hint=hint)
    task_name = first.removeprefix(PREFIX)
    name, index = _resolve_task_name(task_name, ref)
    if _configured_output_types(name, index) == {GENERATE_UNTIL}:  # before any data are looked for
        raise _refusal_error(name, GENERATE_UNTIL, ref)
    tasks, weighted = _build_tasks(name, index, ref)
    output_types, documents = set(), []
    for task in tasks:
        location = f"{ref}: {task.name}"
        requests = task.build_requests(limit, location)
        output_types.add(_check_output_type(task, requests, ref))
        documents.append((task, requests, location))
    if len(output_types) > 1:
        types = " and ".join(sorted(output_types))
        message = f"{name!r} holds {types}, which have no common number"
        raise UsageError(message, location=ref, hint="score its tasks one by one")
    rows = [
        row
        for task, requests, location in documents
        for row in build_document_items(task, requests, len(tasks) > 1, location)
    ]
    metric, task_metrics = _build_task_metrics(output_types.pop(), tasks, rows, ref)
    metric_names = task_metrics.metric_names if task_metrics else ()
    items = tuple(row.item for row in rows)
    groups: tuple[str, ...] = ()
    if len(tasks) > 1 and metric.item_kind not in (ItemKind.TEXT, ItemKind.DOCUMENT):
        groups = GROUP_LEVELS if len({task.group for task in tasks}) > 1 else GROUP_LEVELS[1:]
    notes = [note for task in tasks for note in _task_notes(task, metric, metric_names)]
    if limit is not None:
        notes.append(f"limit: the first {limit} of each task")
    is_own_metric = metric.item_kind in (ItemKind.TASK_VALUE, ItemKind.DOCUMENT)
    key_parts = task_metrics.key_parts() if task_metrics and is_own_metric else ()
    is_own_file = _is_yaml_file(task_name)
    return Suite(
        name=slugify_title(f"lm-eval.{name}"),
        version=", ".join(dict.fromkeys(str(task.task_object.VERSION) for task in tasks)),
        title=f"{name}, built by lm-evaluation-harness {version('lm-eval')}",
        licence="not stated",
        metric=metric.name,
        groups=groups,
        # A group declares whether its tasks count equally, or its documents.
        macro=() if weighted else groups[-1:],
        items=items,
        digest=_digest(tasks, items, key_parts),
        task_type=TASK_TYPE_OF_ITEMS[metric.item_kind],
        notes=tuple(dict.fromkeys(notes)),
        verbatim=True,
        task_metrics=task_metrics,
        origin=(absolute_path(expand_user_path(task_name)),) if is_own_file else (),
    )


def requests_documents(ref: str) -> bool:
    """Return whether a reference requests whole documents, as far as configurations declare it."""
    return any(
        ROLLING in _configured_output_types(*_resolve_task_name(name, ref))
        for name in ref.removeprefix(PREFIX).split(",")
    )


def _configured_output_types(name: str, index: Any) -> set[str]:
    """Return the output types that the tasks behind a name declare; "" = only a class knows it."""
    types: set[str] = set()
    todo: list[Any] = [name]
    while todo:
        child = todo.pop()
        entry = index.task_index.get(child) if isinstance(child, str) else None
        config = (entry.cfg or {}) if entry else {}
        children = entry.tags if entry and entry.cfg is None else config.get("task")  # of a tag
        if isinstance(children, list | set):
            todo += children
            if "output_type" in config:  # a group's holds for its tasks
                types.add(config["output_type"])
        else:
            default = GENERATE_UNTIL if entry and "class" not in config else ""
            types.add(str(config.get("output_type", default)))
    return types


def _build_tasks(name: str, index: Any, location: str) -> tuple[list[LmEvalTask], bool]:
    """Build the tasks behind a name; also return whether a group weighs them by their documents."""
    from lm_eval.api.group import Group

    with lm_eval_context(location):
        loaded = index.load(name)
        tasks = [_wrap_task(name, task) for name, task in loaded["tasks"].items()]
    groups = loaded.get("groups") or {}
    group_of_task = {
        child.task_name: "" if len(groups) == 1 else group.name
        for group in groups.values()
        for child in group
        if not isinstance(child, Group)
    }
    tasks = [replace(task, group=group_of_task.get(task.name, "")) for task in tasks]
    if not tasks:
        raise DataError("lm-eval builds no task from it", location=location)
    top = next(iter(groups), None)
    averages = (groups[top].aggregate_metric_list or []) if top else []
    return tasks, any(average.weight_by_size for average in averages)


def _wrap_task(name: str, task_object: Any) -> LmEvalTask:
    aggregations = {
        str(metric): aggregation for metric, aggregation in task_object.aggregation().items()
    }
    mean_metrics = find_mean_metrics(aggregations)
    others = {name: a for name, a in aggregations.items() if name not in mean_metrics}
    return LmEvalTask(name, "", task_object, mean_metrics, others)


def _resolve_task_name(name: str, location: str) -> tuple[str, Any]:
    """Return a task's name and the index that has it: lm-eval's own, or that of a YAML's folder."""
    from lm_eval.tasks import TaskManager

    if not _is_yaml_file(name):
        return name, _builtin_index()
    file = expand_user_path(name).resolve()
    with lm_eval_context(location):
        index = TaskManager(include_path=str(file.parent), include_defaults=False)
    names = [name for name, entry in index.task_index.items() if entry.yaml_path == file]
    if not names:
        hint = "it needs the key `task` or `group`"
        raise DataError("no task or group of lm-eval", location=location, hint=hint)
    return names[0], index


def _check_output_type(
    task: LmEvalTask, requests_by_document: Sequence[Sequence[Any]], location: str
) -> str:
    """Return the output type of a task. Raises UsageError where it cannot be scored here."""
    output_type = task.infer_output_type(requests_by_document)
    if output_type not in (MULTIPLE_CHOICE, LOGLIKELIHOOD, ROLLING):
        raise _refusal_error(task.name, output_type, location)
    return output_type


def _refusal_error(name: str, output_type: str, location: str) -> UsageError:
    if GENERATE_UNTIL in output_type:
        reason, command = f"asks for generated text ({output_type})", "lm_eval run --model hf"
    else:
        reason, command = f"asks for what is not known here ({output_type})", HARNESS_COMMAND
    hint = f"{command} --tasks {name}"
    return UsageError(f"the task {name!r} {reason}", location=location, hint=hint)


def _build_task_metrics(
    output_type: str, tasks: list[LmEvalTask], document_items: list[DocumentItem], location: str
) -> tuple[MetricSpec, TaskMetrics | None]:
    """Return the suite's metric, and the task metrics that its scores alone do not give.

    The first metric of the tasks decides. Choices of tasks without a common metric are scored by
    accuracy. Raises UsageError where tasks with code of their own have no metric in common.
    """
    common = set.intersection(*(set(task.mean_metrics) for task in tasks))
    common |= set.intersection(*(set(task.corpus_metrics) for task in tasks))
    names = [name for name in tasks[0].metric_names if name in common]
    first_names = {name for task in tasks for name in task.metric_names[:1]}
    has_own_code = any(task.custom_process_results for task in tasks)
    if output_type == ROLLING:
        metric, names = BITS_PER_BYTE, list(LENGTH_EXTRACTORS)
    elif (
        has_own_code
        or any(row.has_multiple_golds for row in document_items)
        or (
            len(first_names) == 1 and first_names != {_equivalents(DEFAULT_METRICS[output_type])[0]}
        )
    ):
        metric = _select_metric(tasks, names, location)
    else:
        metric = DEFAULT_METRICS[output_type]
        names = [name for name in names if name not in _equivalents(metric)]
    if not names:
        return metric, None
    corpus_metrics = {
        task.name: {n: task.corpus_metrics[n] for n in names if n in task.corpus_metrics}
        for task in tasks
    }
    scorers = {
        row.item.id: replace(
            row.scorer,
            extractors={name: row.scorer.extractors.get(name, missing) for name in names},
            raw_value_names=tuple(corpus_metrics[row.scorer.task]),
        )
        for row in document_items
    }
    digest = _hash_code(tasks, corpus_metrics)
    corpus_metrics = corpus_metrics if any(corpus_metrics.values()) else {}
    return metric, TaskMetrics(tuple(names), scorers, digest, corpus_metrics)


def _hash_code(
    tasks: list[LmEvalTask], corpus_metrics: Mapping[str, Mapping[str, Aggregation]]
) -> str:
    """Return the sha256 of lm-eval's version and of the source code that computes task metrics."""
    functions = [
        *(task.custom_process_results for task in tasks),
        *(each for aggregations in corpus_metrics.values() for each in aggregations.values()),
    ]
    sources = [
        read_source_code(function)
        for function in functions
        if function and getattr(function, "__module__", "") != LM_EVAL_METRICS_MODULE
    ]
    return hashlib.sha256("\n".join([version("lm-eval"), *sources]).encode()).hexdigest()


def _equivalents(metric: MetricSpec) -> tuple[str, ...]:
    """Return the metrics of lm-eval that our metric includes."""
    return (metric.lm_eval or LmEvalFormat()).equivalents


def _select_metric(tasks: list[LmEvalTask], metric_names: list[str], location: str) -> MetricSpec:
    """Return the record of a task metric, by its direction and by whether it is a mean.

    Raises UsageError where the tasks do not agree on the direction.
    """
    directions = {
        task.task_object.higher_is_better().get(name) is not False
        for task in tasks
        for name in metric_names[:1]
    }
    if len(directions) != 1:
        message = "its tasks judge answers by code of their own, and have no number in common"
        raise UsageError(message, location=location, hint="score its tasks one by one")
    higher_is_better = directions.pop()
    if metric_names[0] in tasks[0].mean_metrics:
        return TASK_SCORE if higher_is_better else TASK_PENALTY
    return WHOLE_SCORE if higher_is_better else WHOLE_PENALTY


def _task_notes(
    task: LmEvalTask, metric: MetricSpec, task_metric_names: Sequence[str]
) -> Iterator[str]:
    """Yield the sentences that a reader of the number needs.

    task_metric_names: metrics that lm-eval's code computes.
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
        yield (
            f"{task.name}: lm-eval reports {', '.join(metrics)}; "
            f"this is the accuracy of the same choices{normed}"
        )
    covered = (*task_metric_names, *_equivalents(metric))
    if rest := [name for name in metrics if name not in covered]:
        yield f"{task.name}: not computed: {', '.join(rest)}"


def _digest(tasks: list[LmEvalTask], items: Sequence[Item], metric_key_parts: Sequence[str]) -> str:
    """Return the sha256 of tasks (version, shots), items (id, texts, spans, lengths, gold, labels)
    and what the number depends on besides scores.
    """
    versions: list[Any] = [
        [task.name, str(task.task_object.VERSION), task.task_object.config.num_fewshot]
        for task in tasks
    ]
    questions = [
        [i.id, [[o.text, o.span, o.length] for o in i.options], i.gold, dict(i.labels)]
        for i in items
    ]
    parts = [versions, questions, *([list(metric_key_parts)] if metric_key_parts else [])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _builtin_index() -> Any:
    """Return the index of lm-eval's own tasks; building it takes ten seconds (14,000 files)."""
    from lm_eval.tasks import TaskManager

    with lm_eval_context("lm-eval"):
        return TaskManager()


def _is_yaml_file(name: str) -> bool:
    return name.endswith(".yaml")
