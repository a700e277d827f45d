"""`noise`: measure how scores change with batch size and dtype, for the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from antlm_bench.checkpoints.opening import open_checkpoint
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.commands.work_estimates import build_token_counter, estimate_work
from antlm_bench.errors import UsageError
from antlm_bench.metrics import summarize
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.predictions import Predictions, concat_predictions
from antlm_bench.progress import Progress, ShareCounter, Workload
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.methods import Method, default_method, get_method, resolve_method
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
    reference, *others = dict.fromkeys([next(iter(CONDITIONS)), *conditions])
    rows: list[NoiseRow] = []
    loaded_suites: list[Suite] = []
    reference_predictions: dict[str, Predictions] = {}
    with Progress(parts=("condition", 1 + len(others))) as progress:
        for name in (reference, *others):
            progress.next_part(f"{model} {name}")
            opening = replace(options or OpenOptions(), **CONDITIONS[name])
            checkpoint = open_checkpoint(model, opening)
            if not loaded_suites:  # loaded after the model, so that a wrong --model costs no time
                loaded_suites = _load_suites(refs, limit)
            method_name = method or default_method(checkpoint, checkpoint.methods)
            methods = [resolve_method(method_name, checkpoint)]
            progress.plan(Workload.sum(estimate_work(s.items, methods) for s in loaded_suites))
            for suite in loaded_suites:
                progress.start_piece(
                    f"{checkpoint.name} {suite.name} {name}", estimate_work(suite.items, methods)
                )
                texts = [option.text for item in suite.items for option in item.options]
                checkpoint.run_self_test(texts, methods)
                predictions = _predict(checkpoint, suite, methods, name == "adaptive", progress)
                if name == reference:
                    reference_predictions[suite.name] = predictions
                    continue
                row: NoiseRow = {"suite": suite.name, "method": method_name, "condition": name}
                before = reference_predictions[suite.name]
                rows.append(row | _compare_predictions(suite, before, predictions))
    return rows


def _load_suites(refs: Sequence[str], limit: int) -> list[Suite]:
    """Return the suites. Raises UsageError for one whose items are not choices."""
    loaded_suites = []
    for ref in refs:
        suite = suites.load_suite(ref, limit=limit, allow_incomplete=True)
        if not TASK_TYPES[suite.task_type].depends_on_ranks_only:
            message = f"the items of {suite.name} are no choices between options"
            raise UsageError(message, location="--suite", hint="use a suite of pairs")
        loaded_suites.append(suite)
    return loaded_suites


def _predict(
    checkpoint: Checkpoint,
    suite: Suite,
    methods: Sequence[Method],
    adaptive: bool,
    progress: Progress,
) -> Predictions:
    """Return the predictions of a suite under one method."""
    scorer: Checkpoint | AdaptiveScorer = checkpoint
    if adaptive:
        from antlm_bench.checkpoints import build_adaptive_scorer

        scorer = build_adaptive_scorer(checkpoint).calibrate(suite.items, methods)
    chunks: list[Predictions] = []
    for chunk in multiple_choice.iter_chunks(suite.items, methods):
        counter = ShareCounter(progress, len(chunk), build_token_counter(scorer))
        if isinstance(scorer, AdaptiveScorer):
            chunks += scorer.predict(chunk, methods, counter, suite.reduction)
        else:
            chunks += multiple_choice.predict(scorer, chunk, methods, counter)
        counter.finish()
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
