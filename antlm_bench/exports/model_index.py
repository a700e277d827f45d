"""The `model-index` of a Hugging Face model card: results as the front matter of a README.md.

Every text is quoted as in JSON, which YAML reads in the same way, so that no name can end its
field. Fields are those that huggingface_hub's `EvalResult` reads (hub-docs, modelcard.md). Values
are fractions with four decimals: YAML 1.1 reads a smaller number in short form (5e-05) as a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from antlm_bench.scoring.methods import METHODS

FINETUNED_TASK, DEFAULT_TASK = "text-classification", "fill-mask"  # the hub's names


@dataclass(frozen=True, slots=True)
class ModelIndexResult:
    """One number of a model card."""

    suite: str
    """The suite's stable name."""
    title: str
    """Its name for people."""
    method: str
    metric: str
    value: float
    low: float | None = None
    """Lower end of the 95% interval."""
    high: float | None = None
    n: int = 0
    """Items."""
    seeds: int = 0
    """0 = not finetuned."""
    notes: tuple[str, ...] = ()
    """What the number must be read with."""


def build_model_index(
    model: str, results: Sequence[ModelIndexResult], comments: Sequence[str] = ()
) -> str:
    """Return the front matter with its two lines of dashes; `comments` become YAML comments, one
    line each."""
    index = [
        {
            "name": _replace_unprintable(model),
            "results": [_result_entry(result) for result in results],
        }
    ]
    comment_lines = [f"# {_replace_unprintable(' '.join(comment.split()))}" for comment in comments]
    return "\n".join(["---", *comment_lines, "model-index:", *_yaml_lines(index), "---"]) + "\n"


def _result_entry(result: ModelIndexResult) -> dict[str, Any]:
    """Return one result with its one metric; results of one dataset by several methods differ in
    `config`."""
    task = METHODS[result.method].hub_task if result.method in METHODS else DEFAULT_TASK
    task = FINETUNED_TASK if result.seeds else task
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
        "task": {"type": task},
        "dataset": {
            "name": _replace_unprintable(result.title),
            "type": _replace_unprintable(result.suite),
            "config": _replace_unprintable(result.method),
        },
        "metrics": [metric | {"value": round(result.value, 4), "args": args}],
    }


def _yaml_lines(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a list or mapping in block style; scalars as in JSON."""
    entries = (
        [("-", inner) for inner in value]
        if isinstance(value, list)
        else [(f"{k}:", v) for k, v in value.items()]
    )
    for lead, inner in entries:
        if not isinstance(inner, list | dict):
            yield f"{indent}{lead} {json.dumps(inner, ensure_ascii=False, allow_nan=False)}"
        elif lead == "-":  # the first line of what it holds stands beside the dash
            first, *rest = _yaml_lines(inner, f"{indent}  ")
            yield from (f"{indent}- {first.lstrip()}", *rest)
        else:
            yield f"{indent}{lead}"
            yield from _yaml_lines(inner, f"{indent}  ")


def _replace_unprintable(text: str) -> str:
    """Replace what YAML does not allow in a document: control characters, halves of surrogates,
    non-characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
