"""Metrics of classified texts: functions of the confusion table, one run or several seeds of it.

Everything is computed on kinds: items of the same gold class and the same answer are alike to each
of these metrics, so n items are at most k x k kinds. Own lines and not scikit-learn's, which is the
oracle of the tests: importing it takes a second, one table at a time would take minutes of
bootstrap, and a verdict must be there in two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError, NotComparable, UsageError
from antlm_bench.metrics.measures import rounded_estimate
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    build_table,
    choice_shares,
    gold_indices,
)
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.types import Bools, Estimate, Floats, Ints, Prediction

MAJORITY = "majority"


class ConfusionTotals(NamedTuple):
    """All that the metrics need of confusion tables: how many items of each class (..., k) are
    right, gold, answered.

    Counts need not be whole: of ties every class has a share. They may be rates: no metric depends
    on scale.
    """

    correct: Floats
    gold: Floats
    predicted: Floats

    @classmethod
    def from_tables(cls, tables: Floats) -> ConfusionTotals:
        """Of tables (..., k, k), rows gold, columns answers."""
        return cls(
            np.diagonal(tables, axis1=-2, axis2=-1), tables.sum(axis=-1), tables.sum(axis=-2)
        )


def accuracy(totals: ConfusionTotals) -> Floats:
    """Share of items that are right."""
    return np.asarray(totals.correct.sum(axis=-1) / totals.gold.sum(axis=-1))


def f1(totals: ConfusionTotals) -> Floats:
    """F1 of class 1, 2 TP / (2 TP + FP + FN), as GLUE scores MRPC and QQP; 0 where that class is
    not there at all.
    """
    return _f1_by_class(totals)[..., 1]


def macro_f1(totals: ConfusionTotals) -> Floats:
    """Mean over classes of F1. As in scikit-learn a class that is neither gold nor ever answered is
    no class.
    """
    there = totals.gold + totals.predicted > 0
    return np.asarray(_f1_by_class(totals).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))


def mcc(totals: ConfusionTotals) -> Floats:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 where gold or answers are
    all of one class.
    """
    right, gold, said = totals
    n = gold.sum(axis=-1)
    covariance = right.sum(axis=-1) * n - (gold * said).sum(axis=-1)
    spread = (n**2 - (said**2).sum(axis=-1)) * (n**2 - (gold**2).sum(axis=-1))
    known = spread > 1e-9 * n**4
    return np.asarray(np.where(known, covariance / np.sqrt(np.where(known, spread, 1.0)), 0.0))


def _f1_by_class(totals: ConfusionTotals) -> Floats:
    """F1 of every class (..., k); 0 where a class is neither gold nor answered."""
    either = totals.gold + totals.predicted
    return np.asarray(2 * totals.correct / np.where(either > 0, either, 1.0))


FEW_SEEDS_NOTES = {  # what a number of so many seeds must be read with
    1: "one seed: the interval does not know how seeds differ",
    2: "2 seeds hardly tell how seeds differ, so the interval is wide: 3 would do, 5 for a report",
}
METRIC_FUNCTIONS: dict[str, Callable[[ConfusionTotals], Floats]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro-f1": macro_f1,
    "mcc": mcc,
}


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """A metric over seeds: its mean with a two-level interval (seeds x items:
    `statistics.crossed_design`), and its extremes.

    sd: standard deviation of the seeds, low and high the worst and the best of them. Of one seed
    nothing is known about seeds: sd is nan, and the interval is over items alone. uncertain: mean
    and variance, to be averaged further.
    """

    mean: Estimate
    sd: float
    low: float
    high: float
    num_seeds: int
    uncertain_mean: UncertainValue


class ClassificationMetric:
    """What `summarize` asks of a metric, for texts that were classified. One metric decides, the
    others are views.
    """

    def __init__(self, metric: str, ties: str) -> None:
        self.metric, self.ties = metric, ties

    def per_item(self, table: PredictionTable, reduction: str) -> Floats:
        """Contribution (n,) of each item: their mean is the metric, their variance that of its
        estimation.
        """
        del reduction  # a class has one score
        return _count_confusions(table, self.ties, self.metric).jackknife_pseudovalues(self.metric)

    def headline(
        self, table: PredictionTable, macro: Sequence[str]
    ) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        if macro:
            raise UsageError(
                "classified texts are scored as a whole",
                hint="leave `macro` empty in the suite's TOML",
            )
        cells = _count_confusions(table, self.ties, self.metric)
        flags = {name: int(on.sum()) for name, on in table.flags.items() if on.any()}
        shown = ("accuracy", "f1" if cells.num_classes == 2 else "macro-f1", "mcc")
        views = {name: cells.estimate(name, flags) for name in dict.fromkeys((*shown, self.metric))}
        views[MAJORITY] = cells.with_majority_predictions().estimate(self.metric, flags)
        undefined = cells.undefined_reason(self.metric)
        return (
            views[self.metric],
            views,
            (f"{self.metric} undefined ({undefined}): shown as 0",) if undefined else (),
        )

    def by_group(self, table: PredictionTable, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        found = []
        for group in range(len(names)):
            flags = {name: int((on & (codes == group)).sum()) for name, on in table.flags.items()}
            cells = _count_confusions(table, self.ties, self.metric, codes == group)
            found.append(
                cells.estimate(self.metric, {name: count for name, count in flags.items() if count})
            )
        return found


@dataclass(frozen=True, slots=True)
class ConfusionCounts:
    """n items as m kinds: counts (m,) of them, their gold class (m,), their answer (m, k), which
    (n,): an item's kind.

    An answer is one class, or shares of those that tie.
    """

    counts: Floats
    gold: Ints
    predicted: Floats
    pair_index: Ints

    @property
    def num_classes(self) -> int:
        return int(self.predicted.shape[1])

    def totals(self, counts: Floats) -> ConfusionTotals:
        """Of r ways (r, m) to fill the kinds."""
        gold = np.eye(self.num_classes)[self.gold]
        return ConfusionTotals(
            counts @ (gold * self.predicted), counts @ gold, counts @ self.predicted
        )

    def compute_metric(self, metric: str, counts: Floats) -> Floats:
        """The measure (r,) for counts (r, m)."""
        return METRIC_FUNCTIONS[metric](self.totals(counts))

    def metric_value(self, metric: str) -> float:
        return float(self.compute_metric(metric, self.counts[None])[0])

    def estimate(self, metric: str, flags: Mapping[str, int]) -> Estimate:
        """Value and interval: Wilson's for an accuracy, else a bootstrap over items, widened to
        hold the value.

        (Resamples lose rare classes, so that a macro-F1 of many classes may lie above nearly all of
        its replicates.)
        """
        value, n = self.metric_value(metric), int(self.counts.sum())
        if metric == "accuracy":
            low, high = statistics.wilson_interval(value * n, n)
            return rounded_estimate(value, n, Interval(float(low), float(high)), flags)
        interval = statistics.bootstrap_counts_interval(
            self.counts, lambda counts: self.compute_metric(metric, counts)
        )
        if interval.low == interval.high:
            interval = self._posterior_interval(metric)
        interval = Interval(min(value, interval.low), max(value, interval.high))
        return rounded_estimate(value, n, interval, flags, _lower_bound(metric))

    def _posterior_interval(self, metric: str) -> Interval:
        """Perfect, constant or one-sided answers: a bootstrap sees no variation, which is not
        certainty.

        The k(k-1) cells off the diagonal share a prior weight of one item: the accuracy of a
        perfect run would so get the exact (Clopper-Pearson) bound.
        """
        k = self.num_classes
        table = np.einsum("m,mg,ma->ga", self.counts, np.eye(k)[self.gold], self.predicted)
        return statistics.dirichlet_interval(
            table.ravel(),
            1 / (k * (k - 1)),
            lambda cells: METRIC_FUNCTIONS[metric](
                ConfusionTotals.from_tables(cells.reshape(-1, k, k))
            ),
        )

    def jackknife_pseudovalues(self, metric: str) -> Floats:
        """Contribution (n,) of each item, jackknifed: value + (n - 1) (mean of values without an
        item - without it).

        Of an accuracy these are the items' credits themselves; their mean is the value exactly, and
        their variance divided by n the jackknife's (Efron & Tibshirani 1993, ch. 11). A single item
        contributes the value.
        """
        value, n = self.metric_value(metric), float(self.counts.sum())
        if n < 2:
            return np.full(len(self.pair_index), value)
        without = self.compute_metric(metric, self.counts - np.eye(len(self.counts)))
        return np.asarray(
            (value + (n - 1) * (self.counts @ without / n - without))[self.pair_index]
        )

    def with_majority_predictions(self) -> ConfusionCounts:
        """The same items, each answered with the most frequent gold class (the first, if several
        are).
        """
        most = int(np.bincount(self.gold, self.counts).argmax())
        return replace(self, predicted=np.eye(self.num_classes)[np.full(len(self.gold), most)])

    def undefined_reason(self, metric: str) -> str:
        """Why the measure has no value here, or ""."""
        _, gold, said = self.totals(self.counts)
        if metric == "f1" and gold[1] + said[1] == 0:
            return "class 1 is neither gold nor ever answered"
        if metric == "mcc" and np.count_nonzero(said) < 2:
            return "all answers are of one class"
        if metric == "mcc" and np.count_nonzero(gold) < 2:
            return "all items are of one class"
        return ""


def summarize_seeds(
    predictions_by_seed: Sequence[Sequence[Prediction]], metric: str, ties: str = "half"
) -> SeedSummary:
    """The metric over S seeds, each of which predicted the same n items in the same order.

    Raises UsageError (no seed, unknown metric), NotComparable (items or gold differ), and as
    `summarize` does.
    """
    values = contributions_by_seed(predictions_by_seed, metric, ties)
    means, uncertain = values.mean(axis=1), statistics.two_level_mean(values)
    interval = uncertain.interval
    if (
        len(means) == 1 or not uncertain.variance > 0
    ):  # one seed, or all alike and none varies: as of a single run
        one = _count_confusions(build_table(predictions_by_seed[0], set()), ties, metric).estimate(
            metric, {}
        )
        interval = Interval(one.low, one.high)
        if not uncertain.variance > 0:
            uncertain = statistics.uncertain_from_interval(uncertain.value, interval)
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    mean = rounded_estimate(uncertain.value, values.shape[1], interval, {}, _lower_bound(metric))
    return SeedSummary(mean, sd, float(means.min()), float(means.max()), len(means), uncertain)


def contributions_by_seed(
    predictions_by_seed: Sequence[Sequence[Prediction]], metric: str, ties: str = "half"
) -> Floats:
    """What each item contributes under each seed (S, n): the means of rows are the metric. Errors:
    see across_seeds.
    """
    if not predictions_by_seed:
        raise UsageError("no seed to take a mean of", hint="finetune first")
    found = []
    for predictions in predictions_by_seed:
        for ours, theirs in zip(predictions_by_seed[0], predictions, strict=False):
            if (ours.id, ours.gold) != (theirs.id, theirs.gold):
                message = "the seeds do not answer the same items in the same order"
                raise NotComparable(
                    message,
                    location=f"item {ours.id} against {theirs.id}",
                    hint="finetune them again",
                )
        if len(predictions) != len(predictions_by_seed[0]):
            raise NotComparable(
                f"one seed answers {len(predictions_by_seed[0])} items, another {len(predictions)}"
            )
        found.append(
            _count_confusions(build_table(predictions, set()), ties, metric).jackknife_pseudovalues(
                metric
            )
        )
    return np.stack(found)


def collapse_warnings(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """What is wrong with a run that has learnt nothing, in words for a table; () where it seems to
    have learnt.

    "constant prediction": one class for all items. "no better than the majority class (52.7%)": an
    accuracy not above that of always answering the most frequent gold class of the same items.
    """
    gold, answers = Counter(p.gold for p in predictions), {p.pred for p in predictions}
    if not predictions:
        return ()
    if len(answers) == 1 and len(predictions) > 1:
        return ("constant prediction",)
    most = max(gold.values())
    if sum(p.pred == p.gold for p in predictions) <= most:
        return (f"no better than the majority class ({100 * most / len(predictions):.1f}%)",)
    return ()


def _count_confusions(
    table: PredictionTable, ties: str, metric: str, members: Bools | None = None
) -> ConfusionCounts:
    """The kinds of item of a table. Raises DataError (classes differ in number, no answer),
    UsageError (a misfit).
    """
    if metric not in METRIC_FUNCTIONS:
        raise UsageError(
            f"{metric} is no metric of classified texts",
            hint=f"one of {', '.join(METRIC_FUNCTIONS)}",
        )
    classes = table.valid.sum(axis=1)
    odd = np.flatnonzero((classes != classes[0]) | (classes < 2))
    if len(odd):
        message = (
            f"{classes[odd[0]]} classes, the others have {classes[0]}"
            if classes[0] > 1
            else "needs two classes"
        )
        raise DataError(message, location=f"item {table.ids[int(odd[0])]}")
    if metric == "f1" and classes[0] != 2:
        raise UsageError(
            f"f1 is of two classes, these texts have {classes[0]}", hint="macro-f1, accuracy or mcc"
        )
    gold, answer = gold_indices(table), choice_shares(table, ties, "sum")
    mute = np.flatnonzero(answer.sum(axis=1) == 0)
    if len(mute):
        hint = "a text is cut, not left out, and a tie is shared: no `too-long`, no strict ties"
        raise DataError(
            "no class is answered", location=f"item {table.ids[int(mute[0])]}", hint=hint
        )
    keys = np.column_stack([gold, answer])
    keys = keys if members is None else keys[members]
    kinds, which, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    return ConfusionCounts(
        counts.astype(float),
        kinds[:, 0].astype(np.int32),
        kinds[:, 1:],
        which.reshape(-1).astype(np.int32),
    )


def _lower_bound(metric: str) -> float:
    return -1.0 if metric == "mcc" else 0.0
