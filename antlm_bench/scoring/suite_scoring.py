"""Predict and summarize the suites of each task type (suites/task_types.py).

Every function of a task type has one signature, so that `score` calls them without knowing which
kind of suite it has.
"""

from __future__ import annotations

from collections.abc import Sequence

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.checkpoints.minicons_backend import MiniconsCheckpoint
from antlm_bench.lm_eval_bridge import task_scoring
from antlm_bench.metrics import reading_times as reading_times_metric
from antlm_bench.metrics import summarize
from antlm_bench.metrics.task_metric import add_views
from antlm_bench.scoring import multiple_choice, surprisal, syntaxgym
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.conventions import ScoringConventions
from antlm_bench.scoring.methods import Method
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Item, Prediction, ProgressCallback, Summary

Scorer = Checkpoint | AdaptiveScorer | MiniconsCheckpoint
Predictions = list[list[Prediction]]


# ---- predict: a chunk of items -> one list of predictions per method


def predict_options(
    scorer: Scorer,
    suite: Suite,
    items: Sequence[Item],
    methods: Sequence[Method],
    conventions: ScoringConventions,
    tick: ProgressCallback | None = None,
) -> Predictions:
    """Score every option of every item; the best one is predicted.

    A suite with metrics of lm-eval gets their values as well, where the scorer is our engine.
    """
    reduction = conventions.reduction
    if isinstance(scorer, AdaptiveScorer | MiniconsCheckpoint):
        return scorer.predict(items, methods, tick, reduction)
    if suite.task_metrics:
        return task_scoring.predict_choices(
            scorer, items, methods, tick, suite.task_metrics, reduction
        )
    return multiple_choice.predict(scorer, items, methods, tick, reduction)


def predict_words(
    checkpoint: Checkpoint,
    suite: Suite,
    items: Sequence[Item],
    methods: Sequence[Method],
    conventions: ScoringConventions,
    tick: ProgressCallback | None = None,
) -> Predictions:
    """Score words within their texts (reading times)."""
    del conventions
    decode = checkpoint.decode_token if suite.tokenized_separately else None
    return surprisal.predict(checkpoint, items, methods, tick, decode)


def predict_formulas(
    checkpoint: Checkpoint,
    suite: Suite,
    items: Sequence[Item],
    methods: Sequence[Method],
    conventions: ScoringConventions,
    tick: ProgressCallback | None = None,
) -> Predictions:
    """Evaluate SyntaxGym's formulas on the surprisal of regions."""
    del conventions
    return syntaxgym.predict(checkpoint, items, methods, tick, formulas=suite.formulas or {})


def predict_documents(
    checkpoint: Checkpoint,
    suite: Suite,
    items: Sequence[Item],
    methods: Sequence[Method],
    conventions: ScoringConventions,
    tick: ProgressCallback | None = None,
) -> Predictions:
    """Score whole documents in windows, as lm-eval's rolling log-likelihood does."""
    del conventions
    assert suite.task_metrics is not None  # the loader of such suites sets it
    return task_scoring.predict_documents(checkpoint, items, methods, tick, suite.task_metrics)


# ---- summarize: the predictions of one method -> a summary


def summarize_options(
    suite: Suite,
    predictions: Sequence[Prediction],
    *,
    method: str,
    conventions: ScoringConventions,
    notes: Sequence[str],
) -> Summary:
    """Summarize in the suite's own metric. Metrics of lm-eval become views beside it."""
    summary = _summarize_metric(suite, predictions, method, conventions, notes)
    return (
        add_views(summary, predictions, suite.task_metrics.metric_names)
        if suite.task_metrics
        else summary
    )


def summarize_task_metrics(
    suite: Suite,
    predictions: Sequence[Prediction],
    *,
    method: str,
    conventions: ScoringConventions,
    notes: Sequence[str],
) -> Summary:
    """Summarize a suite whose first metric of lm-eval is the headline; the others are views."""
    assert suite.task_metrics is not None  # the loader of such suites sets it
    summary = _summarize_metric(suite, predictions, method, conventions, notes)
    return add_views(summary, predictions, ["", *suite.task_metrics.metric_names[1:]])


def summarize_documents(
    suite: Suite,
    predictions: Sequence[Prediction],
    *,
    method: str,
    conventions: ScoringConventions,
    notes: Sequence[str],
) -> Summary:
    """Summarize the bits per byte of documents; lm-eval's other lengths are views already."""
    return _summarize_metric(suite, predictions, method, conventions, notes)


def summarize_reading_times(
    suite: Suite,
    predictions: Sequence[Prediction],
    *,
    method: str,
    conventions: ScoringConventions,
    notes: Sequence[str],
) -> Summary:
    """Regress the suite's reading times on surprisal."""
    del conventions
    assert suite.times is not None  # the loader of such suites sets it
    return reading_times_metric.summarize_reading_times(
        predictions, suite.times, suite=suite.name, method=method, notes=notes
    )


def _summarize_metric(
    suite: Suite,
    predictions: Sequence[Prediction],
    method: str,
    conventions: ScoringConventions,
    notes: Sequence[str],
) -> Summary:
    return summarize(
        predictions,
        suite=suite.name,
        method=method,
        metric=suite.metric,
        macro=suite.macro,
        groups=suite.groups,
        ties=conventions.ties,
        reduction=conventions.reduction,
        softmax=conventions.softmax,
        notes=notes,
    )
