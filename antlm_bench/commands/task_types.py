"""What kind of questions a suite asks: how a model's answers become predictions, and predictions a
summary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.checkpoints.minicons_backend import MiniconsCheckpoint
from antlm_bench.lm_eval_bridge import task_scoring
from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
from antlm_bench.metrics import summarize
from antlm_bench.metrics.reading_times import summarize_reading_times
from antlm_bench.metrics.surprisal import SURPRISAL, summarize_surprisal
from antlm_bench.metrics.task_metric import BITS_PER_BYTE, TASK_METRIC_NAMES, add_views
from antlm_bench.scoring import multiple_choice, surprisal, syntaxgym
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.multiple_choice import ProgressCallback, ScoringConventions
from antlm_bench.scoring.probes import Method
from antlm_bench.suites.loader import Suite
from antlm_bench.types import Item, Prediction, Summary

Scorer = Checkpoint | AdaptiveScorer | MiniconsCheckpoint


@dataclass(frozen=True, slots=True)
class TaskType:
    """asks: for choices, which survive rounding; for probabilities of texts, which every engine
    knows; of words within them, or of choices token by token ("judgements"), which only ours does;
    or of whole documents, which one method of ours does. predict: a chunk of items -> Predictions
    per method. summarize: those of one method -> its Summary (suite, method and notes by name).
    """

    output_type: Literal["choices", "texts", "words", "judgements", "documents"]
    predict: Callable[
        [Scorer, Sequence[Item], Sequence[Method], ProgressCallback | None], list[list[Prediction]]
    ]
    summarize: Callable[..., Summary]


def get_task_type(suite: Suite, conventions: ScoringConventions) -> TaskType:
    """The kind of a suite under a policy: the one place that tells them apart."""
    credited = partial(
        summarize,
        metric=suite.metric,
        macro=suite.macro,
        groups=suite.groups,
        ties=conventions.ties,
        reduction=conventions.reduction,
        softmax=conventions.softmax,
    )
    if suite.times:
        return TaskType(
            "words",
            partial(_predict_word_surprisal, tokenized_separately=suite.tokenized_separately),
            partial(summarize_reading_times, times=suite.times),
        )
    if suite.formulas:
        return TaskType("words", partial(syntaxgym.predict, formulas=suite.formulas), credited)
    if suite.metric == BITS_PER_BYTE and suite.judge:
        return TaskType(
            "documents", partial(task_scoring.predict_documents, judge=suite.judge), credited
        )
    whole = partial(_predict_options, task_metrics=suite.judge, reduction=conventions.reduction)
    decides = suite.metric in TASK_METRIC_NAMES
    summed = summarize_surprisal if suite.metric == SURPRISAL else credited
    if suite.judge:
        summed = partial(
            _summarize_with_views,
            summed,
            metric_names=suite.judge.metric_names,
            is_headline=decides,
        )
    return TaskType(
        "judgements" if decides else "texts" if suite.metric == SURPRISAL else "choices",
        whole,
        summed,
    )


def _predict_options(
    scorer: Scorer,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    task_metrics: TaskMetrics | None,
    reduction: str,
) -> list[list[Prediction]]:
    if isinstance(scorer, AdaptiveScorer | MiniconsCheckpoint):
        return scorer.predict(items, methods, tick, reduction)
    if task_metrics:
        return task_scoring.predict_choices(scorer, items, methods, tick, task_metrics, reduction)
    return multiple_choice.predict(scorer, items, methods, tick, reduction)


def _summarize_with_views(
    base_summarize: Callable[..., Summary],
    predictions: Sequence[Prediction],
    metric_names: Sequence[str],
    is_headline: bool,
    **summary_fields: Any,
) -> Summary:
    """A summary, and what the judge says beside the number that decides."""
    return add_views(
        base_summarize(predictions, **summary_fields),
        predictions,
        ["" if is_headline else metric_names[0], *metric_names[1:]],
    )


def _predict_word_surprisal(
    checkpoint: Checkpoint,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None,
    tokenized_separately: bool,
) -> list[list[Prediction]]:
    return surprisal.predict(
        checkpoint, items, methods, tick, checkpoint.decode_token if tokenized_separately else None
    )
