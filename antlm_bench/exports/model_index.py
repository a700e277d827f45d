"""Write the `model-index` of a Hugging Face model card: results in the front matter of README.md.

The fields are those that huggingface_hub's `EvalResult` reads (hub-docs, modelcard.md). Strings are
quoted as in JSON, which is valid YAML, so that no name can break the syntax. Scores are fractions
with four decimals, because YAML 1.1 reads a number like 5e-05 as a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from antlm_bench.scoring.methods import METHODS

# Names of task types on the Hub.
FINETUNED_TASK_TYPE = "text-classification"
DEFAULT_TASK_TYPE = "fill-mask"


@dataclass(frozen=True, slots=True)
class ModelIndexResult:
    """One score on a model card."""

    suite: str
    """Name of the suite in commands."""
    title: str
    """Name of the suite to display."""
    method: str
    metric: str
    value: float
    low: float | None = None
    """Lower end of the 95% confidence interval."""
    high: float | None = None
    n: int = 0
    """Number of items."""
    seeds: int = 0
    """Number of finetuning seeds; 0 = not finetuned."""
    notes: tuple[str, ...] = ()
    """Sentences about the score, e.g. what it leaves out."""


def build_model_index(
    model: str, results: Sequence[ModelIndexResult], comments: Sequence[str] = ()
) -> str:
    """Return the front matter, including its two lines of dashes.

    comments: written as YAML comments, one line each.
    """
    index = [
        {
            "name": _replace_unprintable(model),
            "results": [_build_result_entry(result) for result in results],
        }
    ]
    comment_lines = [f"# {_replace_unprintable(' '.join(comment.split()))}" for comment in comments]
    lines = ["---", *comment_lines, "model-index:", *_format_yaml_lines(index), "---"]
    return "\n".join(lines) + "\n"


def _build_result_entry(result: ModelIndexResult) -> dict[str, Any]:
    """Build one result with one metric. `config` tells apart several methods on one dataset."""
    if result.seeds:
        task_type = FINETUNED_TASK_TYPE
    elif result.method in METHODS:
        task_type = METHODS[result.method].hub_task
    else:
        task_type = DEFAULT_TASK_TYPE
    args: dict[str, Any] = {"method": _replace_unprintable(result.method), "n": result.n}
    if result.low is not None and result.high is not None:
        args |= {"low": round(result.low, 4), "high": round(result.high, 4), "interval": "95%"}
    if result.seeds:
        args["seeds"] = result.seeds
    if result.notes:
        args["notes"] = [_replace_unprintable(note) for note in result.notes]
    metric = {
        "type": _replace_unprintable(result.metric),
        "name": f"{_replace_unprintable(result.metric)} ({_replace_unprintable(result.method)})",
    }
    return {
        "task": {"type": task_type},
        "dataset": {
            "name": _replace_unprintable(result.title),
            "type": _replace_unprintable(result.suite),
            "config": _replace_unprintable(result.method),
        },
        "metrics": [metric | {"value": round(result.value, 4), "args": args}],
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
