"""`noise`: measure how scores change with batch size and dtype, for the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from antlm_bench.checkpoints.opening import open_checkpoint
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import UsageError
from antlm_bench.metrics import summarize
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.predictions import Predictions, concat_predictions
from antlm_bench.progress import Progress
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.methods import default_method, get_method, resolve_method
from antlm_bench.statistics import rate_upper_bound
from antlm_bench.suites import loader as suites
from antlm_bench.suites.task_types import TASK_TYPES, Suite
from antlm_bench.types import Bools, Names

if TYPE_CHECKING:
    from antlm_bench.checkpoints import Checkpoint

NoiseRow = dict[str, object]
DEFAULT_LIMIT = 50
"""Items per paradigm."""
CONDITIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, small batches": {"batch_tokens": 256},
    "float32, large batches": {"batch_tokens": 16_384},
    "adaptive": {},
    "bfloat16": {"dtype": "bfloat16"},
}
"""Condition -> options for opening the checkpoint. The first condition is the reference."""


def measure_noise(
    model: str,
    suite_names: Names,
    *,
    method: str = "",
    limit: int = DEFAULT_LIMIT,
    conditions: Sequence[str] = tuple(CONDITIONS),
    options: OpenOptions | None = None,
) -> list[NoiseRow]:
    """Return a row per suite and condition: how many decisions flip, and how far scores move.

    The column `at most` is the one-sided 95% upper bound of the rate: 0 flips of n items do not
    show that no item flips, but that at most about 3/n do.

    suite_names: suites of minimal pairs or multiple choice. method: a scoring method of the
    checkpoint; "" = its first. limit: items per paradigm. The column `points` is the difference of
    the headlines from those of the reference; a margin of `check` should not be smaller than its
    largest value. Raises UsageError for an unknown condition, and all errors of `score`.
    """
    for name in conditions:
        if name not in CONDITIONS:
            hint = f"some of {', '.join(map(repr, CONDITIONS))}"
            raise UsageError(f"unknown condition {name!r}", location="--condition", hint=hint)
    if method:
        get_method(method)
    refs = suites.list_suite_refs(suite_names)
    reference = next(iter(CONDITIONS))
    rows: list[NoiseRow] = []
    loaded_suites: list[Suite] = []
    reference_predictions: dict[str, Predictions] = {}
    for name in dict.fromkeys([reference, *conditions]):
        checkpoint = open_checkpoint(model, replace(options or OpenOptions(), **CONDITIONS[name]))
        if not loaded_suites:  # loaded after the model, so that a wrong --model costs no time
            loaded_suites = [
                suites.load_suite(ref, limit=limit, allow_incomplete=True) for ref in refs
            ]
        method_name = method or default_method(checkpoint, checkpoint.methods)
        for suite in loaded_suites:
            if not TASK_TYPES[suite.task_type].depends_on_ranks_only:
                message = f"the items of {suite.name} are no choices between options"
                raise UsageError(message, location="--suite", hint="use a suite of pairs")
            texts = [option.text for item in suite.items for option in item.options]
            checkpoint.run_self_test(texts, [resolve_method(method_name, checkpoint)])
            predictions = _predict(checkpoint, suite, method_name, adaptive=name == "adaptive")
            if name == reference:
                reference_predictions[suite.name] = predictions
                continue
            row: NoiseRow = {"suite": suite.name, "method": method_name, "condition": name}
            rows.append(
                row | _compare_predictions(suite, reference_predictions[suite.name], predictions)
            )
    return rows


def _predict(checkpoint: Checkpoint, suite: Suite, method_name: str, adaptive: bool) -> Predictions:
    methods = [resolve_method(method_name, checkpoint)]
    scorer: AdaptiveScorer | None = None
    if adaptive:
        from antlm_bench.checkpoints import with_bf16_body

        scorer = AdaptiveScorer(with_bf16_body(checkpoint), checkpoint)
        scorer = scorer.calibrate(suite.items, methods)
    chunks: list[Predictions] = []
    label = f"{checkpoint.name} {suite.name} {method_name}"
    with Progress(len(suite.items), label) as progress:
        for chunk in multiple_choice.iter_chunks(suite.items, methods):
            if scorer:
                [chunk_predictions] = scorer.predict(chunk, methods, reduction=suite.reduction)
            else:
                [chunk_predictions] = multiple_choice.predict(checkpoint, chunk, methods)
            progress.advance(len(chunk))
            chunks.append(chunk_predictions)
    return concat_predictions(chunks)


def _compare_predictions(suite: Suite, before: Predictions, after: Predictions) -> NoiseRow:
    """Compare two predictions of the same items.

    A flip is a change of the set of options that share the best score, such as a tie that breaks.
    """
    best_before = _find_best_options(before, suite.reduction)
    best_after = _find_best_options(after, suite.reduction)
    flips = int((best_before != best_after).any(axis=1).sum())
    moves = np.abs(before.flat("scores") - after.flat("scores"))
    return {
        "items": len(after),
        "flips": flips,
        "rate": flips / len(after),
        "at most": rate_upper_bound(flips, len(after)),
        "largest move (nats)": float(moves.max()),
        "points": 100 * (_headline(suite, after) - _headline(suite, before)),
    }


def _find_best_options(predictions: Predictions, reduction: str) -> Bools:
    """Return a mask (items, options) of the options with the best score of their item."""
    return build_table(predictions, set(), reduction).best_options(reduction)


def _headline(suite: Suite, predictions: Predictions) -> float:
    summary = summarize(
        predictions,
        suite=suite.name,
        method="",
        metric=suite.metric,
        macro=suite.macro,
        groups=(),
        reduction=suite.reduction,
    )
    return summary.headline.value
