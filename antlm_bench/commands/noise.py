"""noise: the same weights scored under other conditions. What moves then is arithmetic; no margin
may be smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint, with_bf16_body
from antlm_bench.commands.cells import Names, as_list
from antlm_bench.errors import UsageError
from antlm_bench.metrics import summarize
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.reporting.progress import Progress
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.methods import default_method
from antlm_bench.scoring.methods import resolve_method as find_method
from antlm_bench.suites import loader as suites
from antlm_bench.suites.task_types import TASK_TYPES, Suite
from antlm_bench.types import Bools, Prediction

NoiseRow = dict[str, object]
DEFAULT_LIMIT = 50  # items per paradigm: enough flips to see, few enough to wait for
# condition -> what `checkpoints` is told; the first is what everything is compared with
CONDITIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, small batches": {"batch_tokens": 256},
    "float32, large batches": {"batch_tokens": 16_384},
    "adaptive": {},
    "bfloat16": {"dtype": "bfloat16"},
}


def measure_noise(
    model: str,
    suite_names: Names,
    *,
    method: str = "",
    limit: int = DEFAULT_LIMIT,
    conditions: Sequence[str] = tuple(CONDITIONS),
    options: OpenOptions | None = None,
) -> list[NoiseRow]:
    """One row per suite and condition: decisions that differ from the first condition's, and by how
    much scores move.

    names: suites of pairs. method: one of the checkpoint's, "" = its first. limit: items per finest
    group. `points`: difference of the headlines, in points; a margin of `check` below its largest
    value tests nothing. Raises UsageError (an unknown condition), and as `commands.score.score`.
    """
    for name in conditions:
        if name not in CONDITIONS:
            hint = f"some of {', '.join(map(repr, CONDITIONS))}"
            raise UsageError(f"unknown condition {name!r}", location="--condition", hint=hint)
    wanted = list(
        dict.fromkeys(
            member for ref in as_list(suite_names) for member in suites.list_suite_refs(ref)
        )
    )
    first = next(iter(CONDITIONS))
    rows: list[NoiseRow] = []
    loaded: list[Suite] = []
    before: dict[str, list[Prediction]] = {}
    for name in dict.fromkeys([first, *conditions]):
        opened = open_checkpoint(model, replace(options or OpenOptions(), **CONDITIONS[name]))
        loaded = loaded or [
            suites.load_suite(ref, limit=limit, allow_incomplete=True) for ref in wanted
        ]  # same items twice
        chosen = method or default_method(opened, opened.methods)
        for suite in loaded:
            if not TASK_TYPES[suite.task_type].compares_options:
                hint = "a suite of pairs or options"
                raise UsageError(
                    f"{suite.name} holds no choices that could flip", location="--suite", hint=hint
                )
            opened.run_self_test(
                [o.text for item in suite.items for o in item.options],
                [find_method(chosen, opened)],
            )
            made = _predict(opened, suite, chosen, adaptive=name == "adaptive")
            if name == first:
                before[suite.name] = made
            else:
                rows.append({"suite": suite.name, "method": chosen, "condition": name}
                            | _compare_predictions(suite, before[suite.name], made))  # fmt: skip
    return rows


def _predict(
    checkpoint: Checkpoint, suite: Suite, method_name: str, adaptive: bool
) -> list[Prediction]:
    methods = [find_method(method_name, checkpoint)]
    scorer = (
        AdaptiveScorer(with_bf16_body(checkpoint), checkpoint).calibrate(suite.items, methods)
        if adaptive
        else None
    )

    def made() -> Iterator[Prediction]:
        with Progress(
            len(suite.items), f"{checkpoint.name} {suite.name} {method_name}"
        ) as progress:
            for chunk in multiple_choice.iter_chunks(suite.items, methods):
                if scorer:
                    [some] = scorer.predict(chunk, methods, reduction=suite.reduction)
                else:
                    [some] = multiple_choice.predict(checkpoint, chunk, methods)
                progress.advance(len(chunk))
                yield from some

    return list(made())


def _compare_predictions(
    suite: Suite, before: Sequence[Prediction], after: Sequence[Prediction]
) -> NoiseRow:
    """Of the same items twice. A decision is which options share the best score, so a tie that
    breaks is a flip.
    """
    best = [_find_best_options(found, suite.reduction) for found in (before, after)]
    flips = int((best[0] != best[1]).any(axis=1).sum())
    moved = [
        np.abs(np.subtract(a.scores, b.scores)).max() for a, b in zip(before, after, strict=True)
    ]
    return {
        "items": len(after),
        "flips": flips,
        "rate": f"{100 * flips / len(after):.2f}%",
        "largest move (nats)": f"{max(moved):.2g}",
        "points": f"{100 * (_headline(suite, after) - _headline(suite, before)):+.2f}",
    }


def _find_best_options(predictions: Sequence[Prediction], reduction: str) -> Bools:
    return build_table(predictions, set(), reduction).best_options(reduction)


def _headline(suite: Suite, predictions: Sequence[Prediction]) -> float:
    made = summarize(
        predictions,
        suite=suite.name,
        method="",
        metric=suite.metric,
        macro=suite.macro,
        groups=(),
        reduction=suite.reduction,
    )
    return made.headline.value
