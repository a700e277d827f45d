"""Predict and summarize the suites of each task type (suites/task_types.py).

Each function takes one request, so that `score` calls it without knowing which kind of suite it
has.
"""

from __future__ import annotations

from antlm_bench.checkpoints.minicons_backend import MiniconsCheckpoint
from antlm_bench.lm_eval_bridge import task_scoring
from antlm_bench.metrics import reading_times as reading_times_metric
from antlm_bench.metrics import summarize
from antlm_bench.metrics.task_metric import add_views
from antlm_bench.prediction_schema import UNIGRAM
from antlm_bench.predictions import Predictions
from antlm_bench.scoring import multiple_choice, surprisal, syntaxgym
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.suites.task_types import PredictRequest, SummarizeRequest
from antlm_bench.types import Summary

# ---- predict: a chunk of items -> the predictions of each method


def predict_choices(request: PredictRequest) -> list[Predictions]:
    """Score every option of every item; the best one is predicted.

    A suite with metrics of lm-eval gets their values as well, where the scorer is our engine.
    """
    r, reduction = request, request.conventions.reduction
    if isinstance(r.scorer, AdaptiveScorer | MiniconsCheckpoint):
        return r.scorer.predict(r.items, r.methods, r.tick, reduction)
    if r.suite.task_metrics:
        return task_scoring.predict_choices(
            r.scorer, r.items, r.methods, r.tick, r.suite.task_metrics, reduction
        )
    return multiple_choice.predict(r.scorer, r.items, r.methods, r.tick, reduction)


def predict_judgements(request: PredictRequest) -> list[Predictions]:
    """Score single sentences; with a unigram model, the same tokens under it, too."""
    r = request
    if isinstance(r.scorer, MiniconsCheckpoint):
        return r.scorer.predict(r.items, r.methods, r.tick)
    batches = multiple_choice.predict(r.scorer, r.items, r.methods, r.tick)
    if r.unigrams is None:
        return batches
    scores = [r.unigrams.score_items(r.scorer, r.items, method) for method in r.methods]
    return [b.with_column(UNIGRAM, s) for b, s in zip(batches, scores, strict=True)]


def predict_words(request: PredictRequest) -> list[Predictions]:
    """Score words within their texts (reading times)."""
    r = request
    decode = r.scorer.decode_token if r.suite.tokenized_separately else None
    return surprisal.predict(r.scorer, r.items, r.methods, r.tick, decode)


def predict_formulas(request: PredictRequest) -> list[Predictions]:
    """Evaluate SyntaxGym's formulas on the surprisal of regions."""
    r = request
    return syntaxgym.predict(r.scorer, r.items, r.methods, r.tick, formulas=r.suite.formulas or {})


def predict_documents(request: PredictRequest) -> list[Predictions]:
    """Score whole documents in windows, as lm-eval's rolling log-likelihood does."""
    r = request
    assert r.suite.task_metrics is not None  # the loader of such suites sets it
    return task_scoring.predict_documents(
        r.scorer, r.items, r.methods, r.tick, r.suite.task_metrics
    )


# ---- summarize: the predictions of one method -> a summary


def summarize_choices(request: SummarizeRequest) -> Summary:
    """Summarize in the suite's own metric. Metrics of lm-eval become views beside it."""
    summary = summarize_metric(request)
    task_metrics = request.suite.task_metrics
    if task_metrics is None:
        return summary
    return add_views(summary, request.predictions, task_metrics.metric_names)


def summarize_task_metrics(request: SummarizeRequest) -> Summary:
    """Summarize a suite whose first metric of lm-eval is the headline; the others are views."""
    task_metrics = request.suite.task_metrics
    assert task_metrics is not None  # the loader of such suites sets it
    names = ["", *task_metrics.metric_names[1:]]
    return add_views(summarize_metric(request), request.predictions, names)


def summarize_reading_times(request: SummarizeRequest) -> Summary:
    """Regress the suite's reading times on surprisal."""
    suite = request.suite
    assert suite.reading_times is not None  # the loader of such suites sets it
    return reading_times_metric.summarize_reading_times(
        request.predictions,
        suite.reading_times,
        suite=suite.name,
        method=request.method,
        notes=request.notes,
    )


def summarize_metric(request: SummarizeRequest) -> Summary:
    """Summarize in the suite's own metric, without further views."""
    suite, conventions = request.suite, request.conventions
    return summarize(
        request.predictions,
        suite=suite.name,
        method=request.method,
        metric=suite.metric,
        macro=suite.macro,
        groups=suite.groups,
        ties=conventions.ties,
        reduction=conventions.reduction,
        softmax=conventions.softmax,
        notes=request.notes,
    )
