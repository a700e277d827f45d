"""Write the front matter of a Hugging Face model card: a report as its `model-index`.

The fields are those that huggingface_hub's `EvalResult` reads (hub-docs, modelcard.md). Strings are
quoted as in JSON, which is valid YAML, so that no name can break the syntax. Scores are fractions
with four decimals, because YAML 1.1 reads a number like 5e-05 as a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from antlm_bench.errors import UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.results.collections import ReportedScore, subtasks
from antlm_bench.results.reports import Report, ReportColumn
from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import task_full_name

# Names of task types on the Hub.
FINETUNED_TASK_TYPE = "text-classification"
DEFAULT_TASK_TYPE = "fill-mask"


def build_model_card(report: Report) -> str:
    """Return the front matter of one checkpoint's model card, with the results of all methods.

    Members of the collection without a score are named in YAML comments. Raises UsageError for
    several runs.
    """
    columns = [column for column in report.columns if not column.source]
    num_runs = len({column.run for column in columns})
    if num_runs > 1:
        raise UsageError(
            f"a model card describes one model, and there are {num_runs} runs",
            location="--model-index",
            hint="give one run",
        )
    model = _replace_unprintable(columns[0].model if columns else "")
    results = [entry for column in columns for entry in _build_entries(report, column)]
    missing = [
        f"missing ({column.method}): {', '.join(column.missing_members)}"
        for column in columns
        if column.missing_members
    ]
    comments = [f"# {_replace_unprintable(' '.join(text.split()))}" for text in missing]
    index = _format_yaml_lines([{"name": model, "results": results}])
    return "\n".join(["---", *comments, "model-index:", *index, "---"]) + "\n"


def _build_entries(report: Report, column: ReportColumn) -> Iterator[dict[str, Any]]:
    """Yield the results of a column: its members, their tasks, and the macro-average."""
    for member, result in zip(report.members, column.results, strict=True):
        if result.score:
            yield _build_entry(member.suite, member.name, column.method, result.score)
        for task in subtasks(member):
            if score := result.task_scores.get(task):
                suite = task_full_name(member.suite, task)
                yield _build_entry(suite, f"{member.name}: {task}", column.method, score)
    if column.macro_average and report.collection:
        # A mean over members is not a classification, even where some of them were finetuned.
        score = replace(column.macro_average, seeds=0)
        yield _build_entry(report.collection.name, report.collection.title, column.method, score)


def _build_entry(suite: str, title: str, method: str, score: ReportedScore) -> dict[str, Any]:
    """Build one result with one metric. Its `config` is the method, because the hub distinguishes
    results on one dataset by `config`.
    """
    suite, title, method, metric = map(_replace_unprintable, (suite, title, method, score.metric))
    if score.seeds:
        task_type = FINETUNED_TASK_TYPE
    elif method in METHODS:
        task_type = METHODS[method].hub_task
    else:
        task_type = DEFAULT_TASK_TYPE
    args: dict[str, Any] = {"method": method, "n": score.n}
    low, high = get_metric_spec(score.metric).known_interval(score.low, score.high)
    if low is not None and high is not None:
        args |= {"low": round(low, 4), "high": round(high, 4), "interval": "95%"}
    if score.seeds:
        args["seeds"] = score.seeds
    if score.caveats:
        args["notes"] = list(map(_replace_unprintable, score.caveats))
    result = {"type": metric, "name": f"{metric} ({method})", "value": round(score.value, 4)}
    return {
        "task": {"type": task_type},
        "dataset": {"name": title, "type": suite, "config": method},
        "metrics": [{**result, "args": args}],
    }


def _format_yaml_lines(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a list or mapping in block style, with scalars as in JSON."""
    if isinstance(value, list):
        entries = [("-", child) for child in value]
    else:
        entries = [(f"{key}:", child) for key, child in value.items()]
    for prefix, child in entries:
        if not isinstance(child, list | dict) or not child:  # an empty list is []
            yield f"{indent}{prefix} {json.dumps(child, ensure_ascii=False, allow_nan=False)}"
        elif prefix == "-":  # the first line of the child is on the line of the dash
            first, *rest = _format_yaml_lines(child, f"{indent}  ")
            yield from (f"{indent}- {first.lstrip()}", *rest)
        else:
            yield f"{indent}{prefix}"
            yield from _format_yaml_lines(child, f"{indent}  ")


def _replace_unprintable(text: str) -> str:
    """Replace characters that YAML forbids: control characters, surrogates, non-characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
