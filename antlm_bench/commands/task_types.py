"""What kind of questions a suite asks: how a model's answers become predictions, and predictions a summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.checkpoints.minicons_backend import Foreign
from antlm_bench.lm_eval_bridge import task_scoring
from antlm_bench.lm_eval_bridge.task_metrics import Judge
from antlm_bench.metrics import summarize
from antlm_bench.metrics.reading_times import summarize_times
from antlm_bench.metrics.surprisal import SURPRISAL, summarize_surprisal
from antlm_bench.metrics.task_metric import BITS_PER_BYTE, DECIDED, beside
from antlm_bench.scoring import multiple_choice, surprisal, syntaxgym
from antlm_bench.scoring.adaptive import Adaptive
from antlm_bench.scoring.multiple_choice import Policy, Tick
from antlm_bench.scoring.probes import Method
from antlm_bench.suites.loader import Suite
from antlm_bench.types import Item, Prediction, Summary

Scorer = Checkpoint | Adaptive | Foreign


@dataclass(frozen=True, slots=True)
class Kind:
    """asks: for choices, which survive rounding; for probabilities of texts, which every engine knows; of words within
    them, or of choices token by token ("judgements"), which only ours does; or of whole documents, which one method of
    ours does. predict: a chunk of items -> Predictions per method. summarize: those of one
    method -> its Summary (suite, method and notes by name)."""

    asks: Literal["choices", "texts", "words", "judgements", "documents"]
    predict: Callable[[Scorer, Sequence[Item], Sequence[Method], Tick | None], list[list[Prediction]]]
    summarize: Callable[..., Summary]


def kind_of(suite: Suite, policy: Policy) -> Kind:
    """The kind of a suite under a policy: the one place that tells them apart."""
    credited = partial(
        summarize,
        metric=suite.metric,
        macro=suite.macro,
        groups=suite.groups,
        ties=policy.ties,
        reduction=policy.reduction,
        softmax=policy.softmax,
    )
    if suite.times:
        return Kind("words", partial(_after_context, glued=suite.glued), partial(summarize_times, times=suite.times))
    if suite.formulas:
        return Kind("words", partial(syntaxgym.predict, formulas=suite.formulas), credited)
    if suite.metric == BITS_PER_BYTE and suite.judge:
        return Kind("documents", partial(task_scoring.predict_whole, judge=suite.judge), credited)
    whole = partial(_options, judge=suite.judge, reduction=policy.reduction)
    decides = suite.metric in DECIDED
    summed = summarize_surprisal if suite.metric == SURPRISAL else credited
    if suite.judge:
        summed = partial(_with_views, summed, names=suite.judge.names, decides=decides)
    return Kind("judgements" if decides else "texts" if suite.metric == SURPRISAL else "choices", whole, summed)


def _options(
    scorer: Scorer,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: Tick | None,
    judge: Judge | None,
    reduction: str,
) -> list[list[Prediction]]:
    if isinstance(scorer, Adaptive | Foreign):
        return scorer.predict(items, methods, tick, reduction)
    if judge:
        return task_scoring.predict(scorer, items, methods, tick, judge, reduction)
    return multiple_choice.predict(scorer, items, methods, tick, reduction)


def _with_views(
    summed: Callable[..., Summary], predictions: Sequence[Prediction], names: Sequence[str], decides: bool, **about: Any
) -> Summary:
    """A summary, and what the judge says beside the number that decides."""
    return beside(summed(predictions, **about), predictions, ["" if decides else names[0], *names[1:]])


def _after_context(
    checkpoint: Checkpoint, items: Sequence[Item], methods: Sequence[Method], tick: Tick | None, glued: bool
) -> list[list[Prediction]]:
    return surprisal.predict(checkpoint, items, methods, tick, checkpoint.spell if glued else None)
