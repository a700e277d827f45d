"""Metrics of classified texts: accuracy, F1, macro-F1 and Matthews' correlation.

Each is a function of the confusion table of k classes, with TP_c right answers of class c, gold_c
items of it, answered_c answers of it, and n items:

    accuracy  sum_c TP_c / n
    f1        2 TP_1 / (gold_1 + answered_1)            class 1 of two; GLUE's MRPC and QQP
    macro-f1  mean_c of 2 TP_c / (gold_c + answered_c)  over classes that occur at all
    mcc       (n sum_c TP_c - sum_c gold_c answered_c)
              / sqrt((n^2 - sum_c answered_c^2) (n^2 - sum_c gold_c^2))     Gorodkin 2004

One metric decides, the others are views, beside `majority`: the same metric of always answering the
most frequent class. Several seeds: `summarize_seeds`.

Corner cases: a metric that is undefined is shown as 0, and a note says why; of tied classes each
has a share, so counts need not be whole; perfect or constant answers vary in no bootstrap, and get
a posterior's interval.

The arithmetic is our own, on arrays of tables: resampling 40,000 items with scikit-learn, one table
at a time, would take minutes, and importing it takes a second of the two that a verdict has. Items
with the same gold class and the same answer are alike, so n items are at most k x k kinds. The
tests check every value against scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError, NotComparable, UsageError
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    build_table,
    choice_weights,
    gold_indices,
)
from antlm_bench.metrics.records import CLASS_REDUCTION, METRICS, MetricSpec
from antlm_bench.metrics.summary import (
    Headline,
    Metric,
    MetricSettings,
    load_metric,
    rounded_estimate,
)
from antlm_bench.registry import load_target
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.types import Bools, Estimate, Floats, Ints, Prediction

MAJORITY = "majority"
BINARY_VIEWS = ("accuracy", "f1", "mcc")
MULTICLASS_VIEWS = ("accuracy", "macro-f1", "mcc")
FEW_SEEDS_NOTES = {
    1: "one seed: the interval does not know how seeds differ",
    2: "2 seeds hardly tell how seeds differ, so the interval is wide: 3 would do, 5 for a report",
}
"""Number of seeds -> what a reader of their mean must know."""


class ConfusionTotals(NamedTuple):
    """All that the metrics need of confusion tables.

    Counts need not be whole: of ties every class has a share. They may be rates: no metric depends
    on scale.
    """

    correct: Floats
    """Right answers of each class (..., k)."""
    gold: Floats
    """Items of each class (..., k)."""
    predicted: Floats
    """Answers of each class (..., k)."""

    @classmethod
    def from_tables(cls, tables: Floats) -> ConfusionTotals:
        """Return the totals of tables (..., k, k), rows gold, columns answers."""
        return cls(
            np.diagonal(tables, axis1=-2, axis2=-1), tables.sum(axis=-1), tables.sum(axis=-2)
        )


def accuracy(totals: ConfusionTotals) -> Floats:
    """Return the share of items that are right (...)."""
    return np.asarray(totals.correct.sum(axis=-1) / totals.gold.sum(axis=-1))


def f1(totals: ConfusionTotals) -> Floats:
    """Return the F1 of class 1 (...); 0 where that class is neither gold nor answered."""
    return _f1_by_class(totals)[..., 1]


def macro_f1(totals: ConfusionTotals) -> Floats:
    """Return the mean F1 of the classes that are gold or answered at all (...)."""
    occurs = totals.gold + totals.predicted > 0
    return np.asarray(_f1_by_class(totals).sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1))


def mcc(totals: ConfusionTotals) -> Floats:
    """Return Matthews' correlation (...); 0 where gold or answers are all of one class."""
    correct, gold, predicted = totals
    n = gold.sum(axis=-1)
    covariance = correct.sum(axis=-1) * n - (gold * predicted).sum(axis=-1)
    spread = (n**2 - (predicted**2).sum(axis=-1)) * (n**2 - (gold**2).sum(axis=-1))
    defined = spread > 1e-9 * n**4
    return np.asarray(np.where(defined, covariance / np.sqrt(np.where(defined, spread, 1.0)), 0.0))


def _f1_by_class(totals: ConfusionTotals) -> Floats:
    """Return the F1 of every class (..., k); 0 where a class is neither gold nor answered."""
    either = totals.gold + totals.predicted
    return np.asarray(2 * totals.correct / np.where(either > 0, either, 1.0))


def _always_defined(totals: ConfusionTotals) -> str:
    del totals
    return ""


def _f1_undefined_reason(totals: ConfusionTotals) -> str:
    absent = totals.gold[1] + totals.predicted[1] == 0
    return "class 1 is neither gold nor ever answered" if absent else ""


def _mcc_undefined_reason(totals: ConfusionTotals) -> str:
    if np.count_nonzero(totals.predicted) < 2:
        return "all answers are of one class"
    return "all items are of one class" if np.count_nonzero(totals.gold) < 2 else ""


@dataclass(frozen=True, slots=True)
class ConfusionMetric:
    """A metric of classified texts, as a function of confusion tables."""

    compute: Callable[[ConfusionTotals], Floats]
    """Totals (..., k) -> values (...)."""
    undefined_reason: Callable[[ConfusionTotals], str] = _always_defined
    """Totals (k,) -> why there is no value, "" where there is one."""
    is_proportion: bool = False
    """Its interval is a score interval."""


ACCURACY = ConfusionMetric(accuracy, is_proportion=True)
F1 = ConfusionMetric(f1, _f1_undefined_reason)
MACRO_F1 = ConfusionMetric(macro_f1)
MCC = ConfusionMetric(mcc, _mcc_undefined_reason)


def load_confusion_metric(name: str) -> ConfusionMetric:
    """Return the function behind a metric of classified texts. UsageError for any other metric."""
    spec = METRICS[name]
    if spec.confusion is None:
        names = [other.name for other in METRICS if other.confusion]
        raise UsageError(
            f"{name} is not a metric of classified texts", hint=f"one of {', '.join(names)}"
        )
    loaded: ConfusionMetric = load_target(spec.confusion)
    return loaded


class ClassificationMetric(Metric):
    """A metric of texts that a finetuned model classified."""

    def __init__(self, spec: MetricSpec, settings: MetricSettings) -> None:
        super().__init__(spec, settings)
        load_confusion_metric(spec.name)

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the jackknifed contribution (n,) of each item; their mean is the metric."""
        return self.count_confusions(table).jackknife_pseudovalues(self.spec.name)

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        if macro:
            raise UsageError(
                "classified texts are scored as a whole",
                hint="leave `macro` empty in the suite's TOML",
            )
        name, counts, flags = self.spec.name, self.count_confusions(table), table.count_flags()
        shown = BINARY_VIEWS if counts.num_classes == 2 else MULTICLASS_VIEWS
        views = {view: counts.estimate(view, flags) for view in dict.fromkeys((*shown, name))}
        views[MAJORITY] = counts.with_majority_predictions().estimate(name, flags)
        reason = load_confusion_metric(name).undefined_reason(counts.observed_totals)
        note = f"{name} undefined ({reason}): shown as 0"
        return Headline(views[name], views, (note,) if reason else ())

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        counts = self.count_confusions(table, members)
        return counts.estimate(self.spec.name, table.count_flags(members))

    def count_confusions(
        self, table: PredictionTable, members: Bools | None = None
    ) -> ConfusionCounts:
        """Return the kinds of item of a table, or of some items (n,) of it.

        Raises DataError (classes differ in number, no answer), UsageError (the metric is not
        defined for so many classes).
        """
        classes = table.valid.sum(axis=1)
        odd = np.flatnonzero((classes != classes[0]) | (classes < 2))
        if len(odd):
            several = f"{classes[odd[0]]} classes, the others have {classes[0]}"
            raise DataError(
                several if classes[0] > 1 else "needs two classes",
                location=f"item {table.ids[int(odd[0])]}",
            )
        if self.spec.num_classes not in (None, classes[0]):
            others = [other.name for other in METRICS if other.confusion and not other.num_classes]
            raise UsageError(
                f"{self.spec.name} is of {self.spec.num_classes} classes, "
                f"these texts have {classes[0]}",
                hint=f"one of {', '.join(others)}",
            )
        gold, answer = gold_indices(table), choice_weights(table, self.settings.ties, "sum")
        unanswered = np.flatnonzero(answer.sum(axis=1) == 0)
        if len(unanswered):
            raise DataError(
                "no class is answered",
                location=f"item {table.ids[int(unanswered[0])]}",
                hint="a text is cut, not left out, and a tie is shared: "
                "no `too-long`, no strict ties",
            )
        keys = np.column_stack([gold, answer])
        keys = keys if members is None else keys[members]
        kinds, indices, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
        return ConfusionCounts(
            counts.astype(float),
            kinds[:, 0].astype(np.int32),
            kinds[:, 1:],
            indices.reshape(-1).astype(np.int32),
        )


@dataclass(frozen=True, slots=True)
class ConfusionCounts:
    """n items as m kinds: items of a kind have the same gold class and the same answer."""

    counts: Floats
    """How many items are of each kind (m,)."""
    gold: Ints
    """Gold class of each kind (m,)."""
    predicted: Floats
    """Answer of each kind (m, k): one class, or shares of those that tie."""
    kind_index: Ints
    """The kind of each item (n,)."""

    @property
    def num_classes(self) -> int:
        return int(self.predicted.shape[1])

    @property
    def observed_totals(self) -> ConfusionTotals:
        """The totals (k,) of the items themselves."""
        return self.totals(self.counts)

    def totals(self, counts: Floats) -> ConfusionTotals:
        """Return the totals (..., k) of other counts (..., m) of the same kinds."""
        gold = np.eye(self.num_classes)[self.gold]
        return ConfusionTotals(
            counts @ (gold * self.predicted), counts @ gold, counts @ self.predicted
        )

    def compute_metric(self, metric: str, counts: Floats) -> Floats:
        """Return a metric (r,) for counts (r, m)."""
        return load_confusion_metric(metric).compute(self.totals(counts))

    def metric_value(self, metric: str) -> float:
        return float(self.compute_metric(metric, self.counts[None])[0])

    def estimate(self, metric: str, flags: Mapping[str, int]) -> Estimate:
        """Return value and interval: a proportion's score interval, else a bootstrap over items.

        A bootstrap's interval is widened to hold the value: resamples lose rare classes, so that a
        macro-F1 of many classes may lie above nearly all of its replicates.
        """
        value, n = self.metric_value(metric), int(self.counts.sum())
        if load_confusion_metric(metric).is_proportion:
            credit = self.predicted[np.arange(len(self.gold)), self.gold][self.kind_index]
            one_stratum = np.zeros(n, np.int32)
            interval = statistics.score_interval(credit, one_stratum, np.ones(1))
            return rounded_estimate(value, n, interval, flags)
        interval = statistics.bootstrap_counts_interval(
            self.counts, lambda counts: self.compute_metric(metric, counts)
        )
        if interval.low == interval.high:
            interval = self._posterior_interval(metric)
        interval = Interval(min(value, interval.low), max(value, interval.high))
        return rounded_estimate(value, n, interval, flags, METRICS[metric].value_range)

    def _posterior_interval(self, metric: str) -> Interval:
        """Return an interval for perfect, constant or one-sided answers, which a bootstrap takes
        for certain.

        The k(k-1) cells off the diagonal share a prior weight of one item: the accuracy of a
        perfect run would so get the exact (Clopper-Pearson) bound.
        """
        k = self.num_classes
        table = np.einsum("m,mg,ma->ga", self.counts, np.eye(k)[self.gold], self.predicted)
        compute = load_confusion_metric(metric).compute
        return statistics.dirichlet_interval(
            table.ravel(),
            1 / (k * (k - 1)),
            lambda cells: compute(ConfusionTotals.from_tables(cells.reshape(-1, k, k))),
        )

    def jackknife_pseudovalues(self, metric: str) -> Floats:
        """Return the contribution (n,) of each item: value + (n - 1) (mean of the values without
        one item - the value without this one).

        Of an accuracy these are the items' credits themselves; their mean is the value exactly, and
        their variance divided by n the jackknife's (Efron & Tibshirani 1993, ch. 11). A single item
        contributes the value.
        """
        value, n = self.metric_value(metric), float(self.counts.sum())
        if n < 2:
            return np.full(len(self.kind_index), value)
        without = self.compute_metric(metric, self.counts - np.eye(len(self.counts)))
        by_kind = value + (n - 1) * (self.counts @ without / n - without)
        return np.asarray(by_kind[self.kind_index])

    def with_majority_predictions(self) -> ConfusionCounts:
        """Return the same items, each answered with the most frequent gold class (the first, if
        several are)."""
        majority = int(np.bincount(self.gold, self.counts).argmax())
        answers = np.eye(self.num_classes)[np.full(len(self.gold), majority)]
        return replace(self, predicted=answers)


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """A metric over seeds."""

    mean: Estimate
    """Its mean, with an interval over seeds and items (`statistics.crossed_design`); of one seed,
    over items alone."""
    sd: float
    """Standard deviation of the seeds, nan of one seed."""
    low: float
    """The worst seed."""
    high: float
    """The best seed."""
    num_seeds: int
    uncertain_mean: UncertainValue
    """Mean and variance, to be averaged further."""


def summarize_seeds(
    predictions_by_seed: Sequence[Sequence[Prediction]],
    metric: str,
    ties: str = "half",
    collapsed: Sequence[bool] = (),
) -> SeedSummary:
    """Return the metric over S seeds, each of which predicted the same n items in the same order.

    collapsed: whether each seed collapsed, () = none did. The mean is over all seeds; if only some
    collapsed, its interval is that of a mixture.

    Raises UsageError (no seed, unknown metric), NotComparable (items or gold differ), and as
    `summarize` does.
    """
    values = contributions_by_seed(predictions_by_seed, metric, ties)
    means, uncertain = values.mean(axis=1), statistics.two_level_mean(values)
    interval = uncertain.interval
    if len(means) == 1 or not uncertain.variance > 0:  # as of a single run
        table = build_table(predictions_by_seed[0], set())
        everything = np.ones(len(table.ids), bool)
        first = load_metric(metric, MetricSettings(ties, CLASS_REDUCTION)).estimate_members(
            table, everything
        )
        interval = Interval(first.low, first.high)
        if not uncertain.variance > 0:
            uncertain = statistics.uncertain_from_interval(uncertain.value, interval)
    if any(collapsed) and not all(collapsed):
        interval = statistics.mixture_interval(values, np.array(collapsed))
        uncertain = statistics.uncertain_from_interval(uncertain.value, interval)
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    mean = rounded_estimate(
        uncertain.value, values.shape[1], interval, {}, METRICS[metric].value_range
    )
    return SeedSummary(mean, sd, float(means.min()), float(means.max()), len(means), uncertain)


def contributions_by_seed(
    predictions_by_seed: Sequence[Sequence[Prediction]], metric: str, ties: str = "half"
) -> Floats:
    """Return what each item contributes under each seed (S, n); the means of rows are the metric.

    Raises as `summarize_seeds`.
    """
    if not predictions_by_seed:
        raise UsageError("no seed to take a mean of", hint="finetune first")
    loaded = load_metric(metric, MetricSettings(ties, CLASS_REDUCTION))
    first, rows = predictions_by_seed[0], []
    for predictions in predictions_by_seed:
        for ours, theirs in zip(first, predictions, strict=False):
            if (ours.id, ours.gold) != (theirs.id, theirs.gold):
                raise NotComparable(
                    "the seeds do not answer the same items in the same order",
                    location=f"item {ours.id} against {theirs.id}",
                    hint="finetune them again",
                )
        if len(predictions) != len(first):
            raise NotComparable(f"one seed answers {len(first)} items, another {len(predictions)}")
        rows.append(loaded.per_item(build_table(predictions, set())))
    return np.stack(rows)


def collapse_warnings(predictions: Sequence[Prediction], metric: str) -> tuple[str, ...]:
    """Return what shows that a run has learnt nothing, in words for a table; () where it seems to
    have learnt.

    "constant prediction": one class for all items. "no better than one class for all (100 F1
    54.3)": the task's metric is not above the best that it gives to answering all items with one
    class.
    """
    if not predictions:
        return ()
    if len(predictions) > 1 and len({p.pred for p in predictions}) == 1:
        return ("constant prediction",)
    spec, compute = METRICS[metric], load_confusion_metric(metric).compute
    num_classes = len(predictions[0].scores)
    gold = np.array([p.gold for p in predictions], np.int32)
    predicted = np.array([p.pred for p in predictions], np.int32)
    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (gold, predicted), 1)
    constant = table.sum(axis=1)[:, None] * np.eye(num_classes)[:, None, :]  # class, gold, answer
    best = float(compute(ConfusionTotals.from_tables(constant)).max())
    if float(compute(ConfusionTotals.from_tables(table))) > best:
        return ()
    return (f"no better than one class for all ({spec.heading} {spec.format(best)})",)
