"""Load tasks of the installed lm-evaluation-harness as suites.

lm-eval builds every request, with few-shot examples from its default seeds. This package only finds
the scored part of each text. Multiple choice is summarised by accuracy, single continuations by
surprisal, whole documents by bits per byte. The task's own metric is computed with lm-eval's code
if it is the task's first metric, if the task has its own code for responses, or if several options
are right. Tasks that generate text raise UsageError.
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
    extract_nan,
    find_mean_metrics,
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
from antlm_bench.suites.templates import drop_single_clusters
from antlm_bench.types import Item

PREFIX = "lm-eval:"
# The output type that cannot be scored. It is lm-eval's default.
GENERATE_UNTIL = "generate_until"
DEFAULT_METRICS = {MULTIPLE_CHOICE: ACCURACY, LOGLIKELIHOOD: SURPRISAL}
"""Output type -> our metric. The first of its equivalents is lm-eval's default metric."""
# Item kind of the suite's metric -> task type of the suite.
TASK_TYPE_OF_ITEMS = {
    ItemKind.CHOICE: "suite",
    ItemKind.TEXT: "surprisal",
    ItemKind.TASK_VALUE: "lm-eval",
    ItemKind.DOCUMENT: "lm-eval-documents",
}
# The command that runs lm-eval with this package's engine.
HARNESS_COMMAND = "python -m antlm_bench.lm_eval_bridge run --model antlm-bench"


def is_lm_eval_ref(ref: str) -> bool:
    return ref.startswith(PREFIX)


def list_suite_refs(ref: str) -> list[str]:
    """Split a reference into one per suite, e.g. `lm-eval:a,b` into two.

    Raises UsageError for a task that the installed lm-eval does not have.
    """
    names = [name for name in ref.removeprefix(PREFIX).split(",") if name]
    if not names:
        hint = "lm-eval:NAME, or lm-eval:path/to/task.yaml"
        raise UsageError(f"{ref!r} names no task", location="--suite", hint=hint)
    for name in names:
        if _is_yaml_file(name):
            if not expand_user_path(name).is_file():
                raise UsageError("there is no such file", location=name)
            continue
        task_names = _builtin_index().all_tasks
        if name not in task_names:
            hint = suggest_name(name, task_names) or "see `lm_eval ls tasks`"
            raise UsageError(f"lm-eval has no task {name!r}", location="--suite", hint=hint)
    return [PREFIX + name for name in dict.fromkeys(names)]


def _drop_single_clusters(items: Sequence[Item]) -> tuple[Item, ...]:
    clusters = drop_single_clusters([item.cluster for item in items])
    return tuple(
        replace(item, cluster=cluster) for item, cluster in zip(items, clusters, strict=True)
    )


def load_suite(request: SuiteRequest) -> Suite:
    """Load a task, group or tag by its name or YAML file. request.limit: documents per task.

    Raises UsageError for tasks that generate text or have no common metric, and DataError if
    lm-eval cannot build a task or a document is invalid.
    """
    ref, limit = request.ref, request.limit
    first, *more = list_suite_refs(ref)
    if more:
        hint = f"load one at a time: {first}"
        raise UsageError(f"{ref!r} names several suites", location="--suite", hint=hint)
    task_name = first.removeprefix(PREFIX)
    name, index = _resolve_task_name(task_name, ref)
    if _configured_output_types(name, index) == {GENERATE_UNTIL}:  # checked before any download
        raise _output_type_error(name, GENERATE_UNTIL, ref)
    tasks, weighted_by_size = _build_tasks(name, index, ref)
    document_items: list[DocumentItem] = []
    output_types = set()
    for task in tasks:
        location = f"{ref}: {task.name}"
        requests = task.build_requests(limit, location)
        output_types.add(_check_output_type(task, requests, ref))
        document_items += build_document_items(task, requests, len(tasks) > 1, location)
    if len(output_types) > 1:
        types = " and ".join(sorted(output_types))
        message = f"{name!r} has tasks of output type {types}, which have no common metric"
        raise UsageError(message, location=ref, hint="score its tasks one by one")
    metric, task_metrics = _build_task_metrics(output_types.pop(), tasks, document_items, ref)
    metric_names = task_metrics.metric_names if task_metrics else ()
    items = _drop_single_clusters([document_item.item for document_item in document_items])
    groups: tuple[str, ...] = ()
    if len(tasks) > 1 and metric.item_kind not in (ItemKind.TEXT, ItemKind.DOCUMENT):
        groups = GROUP_LEVELS if len({task.group for task in tasks}) > 1 else GROUP_LEVELS[1:]
    notes = [note for task in tasks for note in _task_notes(task, metric, metric_names)]
    num_left_out = _count_left_out(tasks, limit, ref)
    if num_left_out:
        notes.append(f"limit: the first {limit} of each task")
    uses_task_values = metric.item_kind in (ItemKind.TASK_VALUE, ItemKind.DOCUMENT)
    key_parts = task_metrics.key_parts() if task_metrics and uses_task_values else ()
    origin = (absolute_path(expand_user_path(task_name)),) if _is_yaml_file(task_name) else ()
    return Suite(
        name=slugify_title(f"lm-eval.{name}"),
        version=", ".join(dict.fromkeys(str(task.task_object.VERSION) for task in tasks)),
        title=f"{name}, built by lm-evaluation-harness {version('lm-eval')}",
        licence="not stated",
        metric=metric.name,
        groups=groups,
        # lm-eval's group declares whether its tasks are weighted by their size.
        macro=() if weighted_by_size else groups[-1:],
        items=items,
        digest=_digest(tasks, items, key_parts),
        task_type=TASK_TYPE_OF_ITEMS[metric.item_kind],
        notes=tuple(dict.fromkeys(notes)),
        has_delimiters=True,
        task_metrics=task_metrics,
        origin=origin,
        num_left_out=num_left_out,
    )


def _count_left_out(tasks: Sequence[LmEvalTask], limit: int | None, ref: str) -> int:
    """Return the number of documents that a limit per task leaves out."""
    if limit is None:
        return 0
    num_documents = [task.count_documents(f"{ref}: {task.name}") for task in tasks]
    return sum(max(0, count - limit) for count in num_documents)


def requests_documents(ref: str) -> bool:
    """Return whether the configurations of a reference declare loglikelihood_rolling."""
    return any(
        ROLLING in _configured_output_types(*_resolve_task_name(name, ref))
        for name in ref.removeprefix(PREFIX).split(",")
    )


def _configured_output_types(name: str, index: Any) -> set[str]:
    """Return the output types that the tasks of a name declare; "" = not in a configuration.

    name: of a task, group or tag. A task that is a Python class declares its type in code.
    """
    types: set[str] = set()
    pending: list[Any] = [name]
    while pending:
        member = pending.pop()
        entry = index.task_index.get(member) if isinstance(member, str) else None
        config = (entry.cfg or {}) if entry else {}
        members = config.get("task")
        if entry and entry.cfg is None:
            members = entry.tags  # of a tag
        if isinstance(members, list | set):
            pending += members
            if "output_type" in config:  # a group may declare the type of its tasks
                types.add(config["output_type"])
        else:
            default = GENERATE_UNTIL if entry and "class" not in config else ""
            types.add(str(config.get("output_type", default)))
    return types


def _build_tasks(name: str, index: Any, location: str) -> tuple[list[LmEvalTask], bool]:
    """Return the tasks of a name, and whether its group weights them by their size."""
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
        raise DataError("lm-eval builds no task from this reference", location=location)
    top_group = next(iter(groups), None)
    averages = (groups[top_group].aggregate_metric_list or []) if top_group else []
    return tasks, any(average.weight_by_size for average in averages)


def _wrap_task(name: str, task_object: Any) -> LmEvalTask:
    aggregations = {
        str(metric): aggregation for metric, aggregation in task_object.aggregation().items()
    }
    mean_metrics = find_mean_metrics(aggregations)
    corpus_metrics = {
        metric: aggregation
        for metric, aggregation in aggregations.items()
        if metric not in mean_metrics
    }
    return LmEvalTask(name, "", task_object, mean_metrics, corpus_metrics)


def _resolve_task_name(name: str, location: str) -> tuple[str, Any]:
    """Return a task's name, and lm-eval's task index that has it.

    name: of a built-in task, or a YAML file, for which the index of its folder is returned.
    """
    from lm_eval.tasks import TaskManager

    if not _is_yaml_file(name):
        return name, _builtin_index()
    file = expand_user_path(name).resolve()
    with lm_eval_context(location):
        index = TaskManager(include_path=str(file.parent), include_defaults=False)
    names = [name for name, entry in index.task_index.items() if entry.yaml_path == file]
    if not names:
        hint = "the file needs the key `task` or `group`"
        raise DataError("not a task or group of lm-eval", location=location, hint=hint)
    return names[0], index


def _check_output_type(
    task: LmEvalTask, requests_by_document: Sequence[Sequence[Any]], location: str
) -> str:
    """Return the output type of a task. Raises UsageError if it cannot be scored."""
    output_type = task.infer_output_type(requests_by_document)
    if output_type not in (MULTIPLE_CHOICE, LOGLIKELIHOOD, ROLLING):
        raise _output_type_error(task.name, output_type, location)
    return output_type


def _output_type_error(name: str, output_type: str, location: str) -> UsageError:
    if GENERATE_UNTIL in output_type:
        reason, command = f"needs generated text ({output_type})", "lm_eval run --model hf"
    else:
        reason, command = f"has requests that cannot be scored ({output_type})", HARNESS_COMMAND
    hint = f"run {command} --tasks {name}"
    return UsageError(f"the task {name!r} {reason}", location=location, hint=hint)


def _build_task_metrics(
    output_type: str, tasks: list[LmEvalTask], document_items: list[DocumentItem], location: str
) -> tuple[MetricSpec, TaskMetrics | None]:
    """Return the suite's metric, and the task metrics that need the tasks' code, if any.

    The suite's metric is the first task metric if this needs the tasks' code, else the default of
    the output type. Tasks without a common first metric have the default, too. Raises UsageError if
    tasks with their own code have no metric in common.
    """
    common_names = set.intersection(*(set(task.mean_metrics) for task in tasks))
    common_names |= set.intersection(*(set(task.corpus_metrics) for task in tasks))
    names = [name for name in tasks[0].metric_names if name in common_names]
    if output_type == ROLLING:
        metric, names = BITS_PER_BYTE, list(LENGTH_EXTRACTORS)
    elif _needs_task_code(DEFAULT_METRICS[output_type], tasks, document_items):
        metric = _select_metric(tasks, names, location)
    else:
        metric = DEFAULT_METRICS[output_type]
        names = [name for name in names if name not in _equivalents(metric)]
    if not names:
        return metric, None
    corpus_metrics = {
        task.name: {
            name: task.corpus_metrics[name] for name in names if name in task.corpus_metrics
        }
        for task in tasks
    }
    document_metrics = {
        row.item.id: replace(
            row.metrics,
            extractors={name: row.metrics.extractors.get(name, extract_nan) for name in names},
            raw_value_names=tuple(corpus_metrics[row.metrics.task]),
        )
        for row in document_items
    }
    digest = _hash_code(tasks, corpus_metrics)
    corpus_metrics = corpus_metrics if any(corpus_metrics.values()) else {}
    return metric, TaskMetrics(tuple(names), document_metrics, digest, corpus_metrics)


def _needs_task_code(
    default: MetricSpec, tasks: list[LmEvalTask], document_items: list[DocumentItem]
) -> bool:
    """Return whether the first metric of the tasks differs from the default metric."""
    if any(task.custom_process_results for task in tasks):
        return True
    if any(document_item.has_multiple_golds for document_item in document_items):
        return True
    first_names = {name for task in tasks for name in task.metric_names[:1]}
    return len(first_names) == 1 and first_names != {_equivalents(default)[0]}


def _hash_code(
    tasks: list[LmEvalTask], corpus_metrics: Mapping[str, Mapping[str, Aggregation]]
) -> str:
    """Return the sha256 of lm-eval's version and of the source code that computes task metrics."""
    functions = [
        *(task.custom_process_results for task in tasks),
        *(
            aggregation
            for aggregations in corpus_metrics.values()
            for aggregation in aggregations.values()
        ),
    ]
    sources = [
        read_source_code(function)
        for function in functions
        if function and getattr(function, "__module__", "") != LM_EVAL_METRICS_MODULE
    ]
    return hashlib.sha256("\n".join([version("lm-eval"), *sources]).encode()).hexdigest()


def _equivalents(metric: MetricSpec) -> tuple[str, ...]:
    """Return lm-eval's names of our metric and of its views."""
    return (metric.lm_eval or LmEvalFormat()).equivalents


def _select_metric(tasks: list[LmEvalTask], metric_names: list[str], location: str) -> MetricSpec:
    """Return our metric for the first task metric: by its direction, and whether it is a mean.

    Raises UsageError if there is no metric, or the tasks disagree about its direction.
    """
    directions = {
        task.task_object.higher_is_better().get(name) is not False
        for task in tasks
        for name in metric_names[:1]
    }
    if len(directions) != 1:
        message = "the tasks compute metrics with their own code, and have no metric in common"
        raise UsageError(message, location=location, hint="score its tasks one by one")
    higher_is_better = directions.pop()
    if metric_names[0] in tasks[0].mean_metrics:
        return TASK_SCORE if higher_is_better else TASK_PENALTY
    return WHOLE_SCORE if higher_is_better else WHOLE_PENALTY


def _task_notes(
    task: LmEvalTask, metric: MetricSpec, task_metric_names: Sequence[str]
) -> Iterator[str]:
    """Yield notes about the score of a task.

    task_metric_names: metrics that the task's code computes.
    """
    num_shots = task.task_object.config.num_fewshot
    if num_shots:
        yield f"{task.name}: {num_shots} shots" if num_shots != 1 else f"{task.name}: 1 shot"
    metrics = task.metric_names
    if metric.item_kind is ItemKind.TEXT:
        yield f"{task.name}: nats per continuation; lm-eval's perplexity is e to their power"
    elif metric.item_kind is ItemKind.TASK_VALUE:
        yield f"{task.name}: {task_metric_names[0]}, computed by the task's own code"
    elif metric.item_kind is ItemKind.CHOICE and metrics and "acc" not in metrics:
        normed = " (acc_norm is the view per-character)" if "acc_norm" in metrics else ""
        yield (
            f"{task.name}: lm-eval reports {', '.join(metrics)}; "
            f"this is the accuracy of the same choices{normed}"
        )
    computed = (*task_metric_names, *_equivalents(metric))
    not_computed = [name for name in metrics if name not in computed]
    if not_computed:
        yield f"{task.name}: not computed: {', '.join(not_computed)}"


def _digest(tasks: list[LmEvalTask], items: Sequence[Item], metric_key_parts: Sequence[str]) -> str:
    """Return the sha256 of the tasks (version, shots) and all content of the items.

    metric_key_parts: added to the hash if the metric depends on the tasks' code.
    """
    task_versions = [
        [task.name, str(task.task_object.VERSION), task.task_object.config.num_fewshot]
        for task in tasks
    ]
    item_contents = [
        [i.id, [[o.text, o.span, o.length] for o in i.options], i.gold, dict(i.labels)]
        for i in items
    ]
    content: list[Any] = [task_versions, item_contents]
    if metric_key_parts:
        content.append(list(metric_key_parts))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _builtin_index() -> Any:
    """Return the index of lm-eval's built-in tasks. This takes ten seconds (14,000 files)."""
    from lm_eval.tasks import TaskManager

    with lm_eval_context("lm-eval"):
        return TaskManager()


def _is_yaml_file(name: str) -> bool:
    return name.endswith(".yaml")
