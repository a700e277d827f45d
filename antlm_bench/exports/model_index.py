"""The `model-index` of a Hugging Face model card: results as the front matter that goes on top of a
README.md.

Every text is quoted as in JSON, which YAML reads alike, so that no name can break out of its place.
Fields as huggingface_hub's `EvalResult` reads them (hub-docs, modelcard.md); values are fractions
of four decimals: YAML 1.1 takes a shorter spelling of a smaller number (5e-05) for a text.
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
    """One number. suite: its stable name; title: how people call it. method: how the checkpoint was
    read.

    low, high: the 95% interval. n: items; seeds: 0 = not finetuned. notes: what it must be read
    with.
    """

    suite: str
    title: str
    method: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    notes: tuple[str, ...] = ()


def build_model_index(
    model: str, results: Sequence[ModelIndexResult], comments: Sequence[str] = ()
) -> str:
    """The front matter, with its two lines of dashes; `comments` become YAML comments, one line
    each.
    """
    index = [
        {
            "name": _replace_unprintable(model),
            "results": [_result_entry(result) for result in results],
        }
    ]
    said = [f"# {_replace_unprintable(' '.join(comment.split()))}" for comment in comments]
    return "\n".join(["---", *said, "model-index:", *_yaml_lines(index), "---"]) + "\n"


def _result_entry(result: ModelIndexResult) -> dict[str, Any]:
    """One result with its one metric; results of equal task and dataset but another method stay
    apart by `config`.
    """
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
    """The lines of a list or mapping in block style; scalars as in JSON."""
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
    """Without what YAML does not allow in a document: control characters, halves of surrogates,
    non-characters.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
