"""A task of the installed lm-evaluation-harness as a suite of ours: its own documents, prompts and shots become items.

The harness builds every request (few-shot examples drawn with its default seeds); we only say where the scored part of
each text begins. Choices become accuracies, a single continuation its surprisal; generation and the perplexity of whole
documents are refused by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from antlm_bench.declarations import nearest, user_path
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics.surprisal import SURPRISAL, WORD
from antlm_bench.suites.templates import clean
from antlm_bench.types import Item, Option

PREFIX = "lm-eval:"
LEVELS = ("group", "task")  # labels of an item of a group, coarse to fine
SEED, NUMPY_SEED, SHOTS_SEED = 0, 1234, 1234  # what lm_eval fixes when it is told nothing (lm_eval/defaults)
REFUSED: dict[str, str] = {
    "generate_until": "asks for generated text",
    "loglikelihood_rolling": "asks for the perplexity of whole documents",
}
CHOICE, ALONE = "multiple_choice", "loglikelihood"  # the kinds that are scored
ELSEWHERE = "python -m antlm_bench.harness run --model antlm-bench"  # our engine in the harness judges as the task says


@dataclass(frozen=True, slots=True)
class _Task:
    """A task as it was built, and the group it stands in ("" where it was asked for by its own name)."""

    name: str
    group: str
    built: Any


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
    name, tasks, weighted = _build(one.removeprefix(PREFIX), ref)
    items: list[Item] = []
    notes: list[str] = []
    kinds = {_kind(task, ref) for task in tasks}
    if len(kinds) > 1:
        message = f"{name!r} holds choices and single continuations, which have no common number"
        raise UsageError(message, place=ref, hint="score its tasks one by one")
    alone = ALONE in kinds
    for task in tasks:
        items += _items(task, limit, len(tasks) > 1, f"{ref}: {task.name}", alone)
        notes += _notes(task, alone)
    groups = () if len(tasks) == 1 or alone else LEVELS if len({task.group for task in tasks}) > 1 else LEVELS[1:]
    if limit is not None:
        notes.append(f"limit: the first {limit} of each task")
    return {
        "name": "lm-eval." + re.sub(r"[^A-Za-z0-9._-]+", "-", name),  # it names files
        "version": ", ".join(dict.fromkeys(str(task.built.VERSION) for task in tasks)),
        "title": f"{name}, built by lm-evaluation-harness {version('lm-eval')}",
        "licence": "not stated",
        "metric": SURPRISAL if alone else "accuracy",
        "groups": groups,
        "macro": groups[-1:] if not weighted else (),  # a group's own word: its tasks count equally, or its documents
        "items": tuple(items),
        "digest": _digest(tasks, items),
        "notes": tuple(dict.fromkeys(notes)),
        "verbatim": True,
    }


def asked(context: str, continuation: str) -> Option:
    """A request of the harness as one text: white space that ends the context is scored with the continuation.

    The convention is the harness's (`TemplateLM._encode_pair`, 0.4.13): tokens carry the space before them. Where a
    token straddles the border, our span rule counts it whole; the harness drops as many as the context alone has.
    """
    start = len(context.rstrip())
    text = context + continuation
    return Option(text, (start, len(text)) if start else None)


def _build(name: str, place: str) -> tuple[str, list[_Task], bool]:
    """The name, the tasks, and whether a group's mean weighs them by their documents."""
    from lm_eval.api.group import Group

    own, index = _found(user_path(name).resolve(), place) if _is_file(name) else (name, _shipped())
    with _harness(place):
        loaded = index.load(own)
    groups = loaded.get("groups") or {}
    inside = {
        child.task_name: "" if len(groups) == 1 else group.name
        for group in groups.values()
        for child in group
        if not isinstance(child, Group)
    }
    tasks = [_Task(title, inside.get(title, ""), built) for title, built in loaded["tasks"].items()]
    if not tasks:
        raise DataError("lm-eval builds no task from it", place=place)
    top = next(iter(groups), None)
    means = (groups[top].aggregate_metric_list or []) if top else []
    return own, tasks, any(mean.weight_by_size for mean in means)


def _found(file: Path, place: str) -> tuple[str, Any]:
    """What a YAML file calls its task or group, and the index of its folder, where that name leads back to it."""
    from lm_eval.tasks import TaskManager

    with _harness(place):
        index = TaskManager(include_path=str(file.parent), include_defaults=False)
    names = [name for name, entry in index.task_index.items() if entry.yaml_path == file]
    if not names:
        raise DataError("no task or group of lm-eval", place=place, hint="it needs the key `task` or `group`")
    return names[0], index


def _kind(task: _Task, place: str) -> str:
    """CHOICE (which of several texts is the best?) or ALONE (how probable is one?); UsageError for other kinds."""
    kind = str(getattr(task.built, "OUTPUT_TYPE", None))
    if kind not in (CHOICE, ALONE):
        why = REFUSED.get(kind, f"is of a kind that is not known here ({kind})")
        other = "lm_eval run --model hf" if kind == "generate_until" else ELSEWHERE
        raise UsageError(f"the task {task.name!r} {why}", place=place, hint=f"{other} --tasks {task.name}")
    if callable(task.built.config.process_results):
        message = f"the task {task.name!r} judges answers with code of its own"
        raise UsageError(message, place=place, hint=f"{ELSEWHERE} --tasks {task.name}")
    return kind


def _items(task: _Task, limit: int | None, grouped: bool, place: str, alone: bool) -> Iterator[Item]:
    """The documents of a task as items; ids are those under which results of lm-eval are imported."""
    with _harness(place):
        task.built.set_fewshot_seed(seed=SHOTS_SEED)
        task.built.build_all_requests(limit=limit, rank=0, world_size=1)
        instances = list(task.built.instances)
    labels = dict(zip(LEVELS, (task.group, task.name), strict=True)) if grouped else {}
    labels = {level: name for level, name in labels.items() if name}
    for number, requests in groupby(instances, key=lambda instance: instance.doc_id):
        here, pairs, name = f"{place}, document {number}", list(requests), f"{task.name}_{number}"
        if alone:  # every document is a word of its own: the headline is the mean over documents
            yield Item(name, (_option(pairs[0].args, None, here),), 0, {**labels, WORD: name})
            continue
        with _harness(here):
            choices = task.built.doc_to_choice(pairs[0].doc)
            gold = (task.built.doc_to_text if task.built.multiple_input else task.built.doc_to_target)(pairs[0].doc)
        # For mutual information the harness asks for every continuation twice; the first half has the context.
        options = tuple(_option(pair.args, choice, here) for pair, choice in zip(pairs, choices, strict=False))
        yield Item(name, options, _right(gold, choices, here), labels)


def _option(request: tuple[Any, ...], choice: str | None, place: str) -> Option:
    """A request, with the length that acc_norm divides by: of the choice as the task spells it, without a delimiter."""
    context, continuation = request[:2]
    option = asked(clean(context, "context", place), clean(continuation, "continuation", place))
    if not continuation:
        raise DataError("a continuation is empty", place=place, hint="mend the task's doc_to_choice or doc_to_target")
    return option if choice is None else replace(option, length=len(choice))


def _right(gold: Any, choices: list[str], place: str) -> int:
    """The index of the right option: the target itself, or the place of its text among the choices."""
    if isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, list):
        raise DataError(f"{len(gold)} options are right; a choice here has one", place=place)
    found = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    if isinstance(found, bool) or not isinstance(found, int | np.integer) or not 0 <= found < len(choices):
        hint = "is it a split without answers, or does doc_to_target not give an index or one of doc_to_choice?"
        raise DataError(f"the right answer {gold!r} is none of its {len(choices)} options", place=place, hint=hint)
    return int(found)


def _notes(task: _Task, alone: bool) -> Iterator[str]:
    """What a reader of the number needs to know of its task."""
    if shots := task.built.config.num_fewshot:
        yield f"{task.name}: {shots} shots" if shots != 1 else f"{task.name}: 1 shot"
    metrics = [str(metric.get("metric")) for metric in task.built.config.metric_list or []]
    if alone:
        yield f"{task.name}: nats per continuation; lm-eval's perplexity is e to their power, its acc is not computed"
    elif metrics and "acc" not in metrics:
        normed = " (acc_norm is the view per-character)" if "acc_norm" in metrics else ""
        yield f"{task.name}: lm-eval reports {', '.join(metrics)}; this is the accuracy of the same choices{normed}"


def _digest(tasks: list[_Task], items: list[Item]) -> str:
    """sha256 over every task's version and shots, and every item's id, texts, spans, lengths, gold and labels."""
    about = [[task.name, str(task.built.VERSION), task.built.config.num_fewshot] for task in tasks]
    asked_for = [[i.id, [[o.text, o.span, o.length] for o in i.options], i.gold, dict(i.labels)] for i in items]
    return hashlib.sha256(json.dumps([about, asked_for], sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def _shipped() -> Any:
    """The index of the harness's own tasks: some ten seconds, for it reads 14,000 files."""
    from lm_eval.tasks import TaskManager

    with _harness("lm-eval"):
        return TaskManager()


@contextmanager
def _harness(place: str) -> Iterator[None]:
    """The harness at work: its seeds set and given back, its progress bars silent, its errors with their place."""
    states = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except Exception as error:
        message = f"lm-eval cannot build it: {type(error).__name__}: {error}"
        hint = "does `lm_eval run --tasks` take it? Its data set must be at hand, or the hub in reach"
        raise DataError(message, place=place, hint=hint) from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _is_file(name: str) -> bool:
    return name.endswith(".yaml")
