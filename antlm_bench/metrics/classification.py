"""Metrics of classified texts: accuracy, F1, macro-F1 and Matthews' correlation (MCC).

All of them are functions of the confusion table, in which n items are counted by gold class
(rows) and predicted class (columns). With TP_c correct items, gold_c items and predicted_c
predictions of class c:

    accuracy  sum_c TP_c / n
    f1        2 TP_1 / (gold_1 + predicted_1)            class 1 of two; GLUE's MRPC and QQP
    macro-f1  mean_c of 2 TP_c / (gold_c + predicted_c)  over classes that are gold or predicted
    mcc       (n sum_c TP_c - sum_c gold_c predicted_c)
              / sqrt((n^2 - sum_c predicted_c^2) (n^2 - sum_c gold_c^2))     Gorodkin 2004

The headline is the metric of the suite; the other metrics are views. The view `majority` is the
metric of the suite if every item is predicted to be of the most frequent class. `summarize_seeds`
averages several seeds.

The functions take many tables at once, because posterior and jackknife evaluate thousands. The
tests compare them with scikit-learn, whose values of whole counts are equal to the last digit.
scikit-learn itself is not needed here, so a machine that only compares runs can do without it.

An undefined metric is shown as 0, and a note says why. Tied classes share a prediction, so counts
need not be whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError, NotComparable, UsageError
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    build_table,
    choice_weights,
    find_clusters,
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
from antlm_bench.printable import format_count
from antlm_bench.registry import load_target
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.statistics.known_coverage import (
    TWO_SEEDS_NOTE,
    has_few_errors,
    seed_mean_notes,
)
from antlm_bench.types import Bools, Estimate, Floats, Ints

if TYPE_CHECKING:
    from antlm_bench.predictions import Predictions

MAJORITY = "majority"
BINARY_VIEWS = ("accuracy", "f1", "mcc")
MULTICLASS_VIEWS = ("accuracy", "macro-f1", "mcc")
FEW_SEEDS_NOTES = {
    1: "one seed: the interval is over items only, not over seeds",
    2: TWO_SEEDS_NOTE,
}
"""Number of seeds -> note on a mean over so few seeds."""
UNMOVED_SHARE = 0.99
"""A loss has moved if it is below this share of the loss of a constant answer."""
ONE_UNCOLLAPSED_NOTE = "no interval: a single seed did not collapse"
"""Note on a mean of several seeds of which all but one collapsed."""


class ConfusionTotals(NamedTuple):
    """The sums of confusion tables from which the metrics are computed.

    They need not be whole numbers. They may be relative frequencies, because no metric depends on
    their scale.
    """

    correct: Floats
    """Correct items of each class (..., k)."""
    gold: Floats
    """Items of each class (..., k)."""
    predicted: Floats
    """Predictions of each class (..., k)."""

    @classmethod
    def from_tables(cls, tables: Floats) -> ConfusionTotals:
        """Return the totals of confusion tables (..., k, k): rows gold, columns predicted."""
        return cls(
            np.diagonal(tables, axis1=-2, axis2=-1), tables.sum(axis=-1), tables.sum(axis=-2)
        )


def accuracies(totals: ConfusionTotals) -> Floats:
    """Return the share of correct items (...)."""
    return np.asarray(totals.correct.sum(axis=-1) / totals.gold.sum(axis=-1))


def f1_scores(totals: ConfusionTotals) -> Floats:
    """Return the F1 of class 1 (...); 0 where that class is neither gold nor predicted."""
    return _f1_by_class(totals)[..., 1]


def macro_f1_scores(totals: ConfusionTotals) -> Floats:
    """Return the mean F1 of the classes that are gold or predicted (...)."""
    num_classes = (totals.gold + totals.predicted > 0).sum(axis=-1)
    return np.asarray(_f1_by_class(totals).sum(axis=-1) / np.maximum(num_classes, 1))


def matthews_correlations(totals: ConfusionTotals) -> Floats:
    """Return Matthews' correlation (...); 0 where all gold or all predictions are one class."""
    correct, gold, predicted = totals
    n = gold.sum(axis=-1)
    covariance = correct.sum(axis=-1) * n - (gold * predicted).sum(axis=-1)
    variances = (n**2 - (predicted**2).sum(axis=-1)) * (n**2 - (gold**2).sum(axis=-1))
    # Rounding can leave a variance of 0 a little above it, so the classes are counted, too.
    has_variance = ((gold > 0).sum(axis=-1) > 1) & ((predicted > 0).sum(axis=-1) > 1)
    is_defined = has_variance & (variances > 0)
    return np.asarray(
        np.where(is_defined, covariance / np.sqrt(np.where(is_defined, variances, 1.0)), 0.0)
    )


def _f1_by_class(totals: ConfusionTotals) -> Floats:
    """Return the F1 of every class (..., k); 0 where a class is neither gold nor predicted."""
    denominator = totals.gold + totals.predicted
    return np.asarray(2 * totals.correct / np.where(denominator > 0, denominator, 1.0))


def _no_undefined_reason(totals: ConfusionTotals) -> str:
    del totals
    return ""


def _f1_undefined_reason(totals: ConfusionTotals) -> str:
    is_absent = totals.gold[1] + totals.predicted[1] == 0
    return "class 1 is neither gold nor ever predicted" if is_absent else ""


def _mcc_undefined_reason(totals: ConfusionTotals) -> str:
    if np.count_nonzero(totals.predicted) < 2:
        return "all predictions are of one class"
    return "all items are of one class" if np.count_nonzero(totals.gold) < 2 else ""


@dataclass(frozen=True, slots=True)
class ConfusionMetric:
    """A metric of classified texts, as a function of confusion tables."""

    compute_many: Callable[[ConfusionTotals], Floats]
    """The totals (..., k) of many tables -> their values (...), 0 where undefined."""
    undefined_reason: Callable[[ConfusionTotals], str] = _no_undefined_reason
    """Totals (k,) -> why the value is undefined, "" if it is defined."""
    is_proportion: bool = False
    """Whether its interval is a score interval."""

    def score(self, table: Floats) -> float:
        """Return the value of a table (k, k), rows gold; 0 where it is undefined."""
        return float(self.compute_many(ConfusionTotals.from_tables(table)))


ACCURACY = ConfusionMetric(accuracies, is_proportion=True)
F1 = ConfusionMetric(f1_scores, _f1_undefined_reason)
MACRO_F1 = ConfusionMetric(macro_f1_scores)
MCC = ConfusionMetric(matthews_correlations, _mcc_undefined_reason)


def load_confusion_metric(name: str) -> ConfusionMetric:
    """Return the functions of a metric of classified texts. UsageError for any other metric."""
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
        load_confusion_metric(spec.name)  # raises for a metric of anything else

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the jackknife pseudo-value (n,) of each item; their mean is the metric."""
        return self.count_confusions(table).jackknife_pseudovalues(self.spec.name)

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        if macro:
            raise UsageError(
                f"{self.spec.name} of classified texts is not averaged over groups: "
                f"{', '.join(macro)}",
                hint="leave `macro` empty in the suite's TOML",
            )
        name, counts, flags = self.spec.name, self.count_confusions(table), table.count_flags()
        view_names = BINARY_VIEWS if counts.num_classes == 2 else MULTICLASS_VIEWS
        views = {view: counts.estimate(view, flags) for view in dict.fromkeys((*view_names, name))}
        views[MAJORITY] = counts.with_majority_predictions().estimate(name, flags)
        totals = ConfusionTotals.from_tables(counts.table)
        reason = load_confusion_metric(name).undefined_reason(totals)
        note = f"{name} undefined ({reason}): shown as 0"
        return Headline(views[name], views, (note,) if reason else ())

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        counts = self.count_confusions(table, members)
        return counts.estimate(self.spec.name, table.count_flags(members))

    def count_confusions(
        self, table: PredictionTable, members: Bools | None = None
    ) -> ConfusionCounts:
        """Count the items of a table, or those where members (n,) is True.

        Raises DataError (items have different numbers of classes, or no prediction), UsageError
        (the metric is not defined for so many classes).
        """
        num_classes = table.valid.sum(axis=1)
        invalid = np.flatnonzero((num_classes != num_classes[0]) | (num_classes < 2))
        if len(invalid):
            difference = f"{num_classes[invalid[0]]} classes, the first item has {num_classes[0]}"
            raise DataError(
                difference if num_classes[0] > 1 else "needs two classes",
                location=f"item {table.ids[int(invalid[0])]}",
            )
        if self.spec.num_classes not in (None, num_classes[0]):
            others = [other.name for other in METRICS if other.confusion and not other.num_classes]
            raise UsageError(
                f"{self.spec.name} needs {self.spec.num_classes} classes, "
                f"these texts have {num_classes[0]}",
                hint=f"use one of {', '.join(others)}",
            )
        gold, weights = gold_indices(table), choice_weights(table, self.settings.ties, "sum")
        unpredicted = np.flatnonzero(weights.sum(axis=1) == 0)
        if len(unpredicted):
            raise DataError(
                "no class is predicted",
                location=f"item {table.ids[int(unpredicted[0])]}",
                hint="classified texts have no flag `too-long`; use --ties half, not strict",
            )
        pairs, clusters = np.column_stack([gold, weights]), table.clusters
        if members is not None:
            pairs = pairs[members]
            clusters = None if clusters is None else clusters[members]
        return ConfusionCounts.from_items(pairs[:, 0], pairs[:, 1:], clusters)


@dataclass(frozen=True, slots=True)
class ConfusionCounts:
    """n items, counted by m distinct pairs of gold class and prediction.

    Without ties, the pairs are the cells of the confusion table that are not empty.
    """

    counts: Floats
    """Number of items of each pair (m,)."""
    gold: Ints
    """Gold class of each pair (m,)."""
    predicted: Floats
    """Prediction of each pair (m, k): weights of the classes, which sum to 1."""
    pair_index: Ints
    """The pair of each item (n,)."""
    clusters: Ints | None = None
    """The cluster of each item (n,); None = items are independent."""

    @classmethod
    def from_items(
        cls, gold: Floats | Ints, predicted: Floats, clusters: Ints | None = None
    ) -> ConfusionCounts:
        """Count items. gold (n,): classes. predicted (n, k): weights of the classes."""
        distinct, indices, counts = np.unique(
            np.column_stack([gold, predicted]), axis=0, return_inverse=True, return_counts=True
        )
        return cls(
            counts.astype(float),
            distinct[:, 0].astype(np.int32),
            distinct[:, 1:],
            indices.reshape(-1).astype(np.int32),
            clusters,
        )

    @property
    def num_classes(self) -> int:
        return int(self.predicted.shape[1])

    @property
    def table(self) -> Floats:
        """The confusion table (k, k): rows gold, columns predicted."""
        gold = np.eye(self.num_classes)[self.gold]
        return np.asarray(gold.T @ (self.counts[:, None] * self.predicted))

    def score(self, metric: str) -> float:
        return load_confusion_metric(metric).score(self.table)

    def score_resampled(self, metric: str, counts: Floats) -> Floats:
        """Return a metric (r,) for other counts (r, m) of the same pairs."""
        gold = np.eye(self.num_classes)[self.gold]
        totals = ConfusionTotals(
            counts @ (gold * self.predicted), counts @ gold, counts @ self.predicted
        )
        return load_confusion_metric(metric).compute_many(totals)

    def estimate(self, metric: str, flags: Mapping[str, int]) -> Estimate:
        """Return the value with its interval: a score interval for a proportion, else the
        posterior's.

        The posterior interval is widened to include a value at an end of the range.
        """
        value, n = self.score(metric), int(self.counts.sum())
        if load_confusion_metric(metric).is_proportion:
            credit = self.predicted[np.arange(len(self.gold)), self.gold][self.pair_index]
            one_stratum = np.zeros(n, np.int32)
            interval = statistics.score_interval(
                credit, one_stratum, np.ones(1), (0.0, 1.0), self.clusters
            )
            return rounded_estimate(value, n, interval, flags)
        low, high = self._posterior_interval(metric)
        interval = Interval(min(value, low), max(value, high))
        return rounded_estimate(value, n, interval, flags, METRICS[metric].value_range)

    def _posterior_interval(self, metric: str) -> Interval:
        """Return the interval from Dirichlet posteriors of the rates of the table's cells.

        The prior of the lower end has one wrong item and half a correct one; the prior of the upper
        end has half a wrong item and one correct one. Each is spread evenly over the k(k-1) wrong
        or the k correct cells. (For a proportion, they lie between Clopper & Pearson's exact bounds
        and the middle of these.)
        Unlike in a bootstrap, empty cells have rates above 0. With clusters, the counts are divided
        by the design effect of the items' pseudo-values.
        """
        k, table = self.num_classes, self.table
        if self.clusters is not None:
            table = table / statistics.design_effect(
                self.jackknife_pseudovalues(metric),
                np.zeros(len(self.pair_index), np.int32),
                np.ones(1),
                self.clusters,
                statistics.END_ITEMS,
                METRICS[metric].value_range,
            )
        compute_many = load_confusion_metric(metric).compute_many
        correct = np.eye(k)
        wrong = (1 - correct) / (k - 1)
        return statistics.dirichlet_interval(
            table.ravel(),
            ((wrong + correct / 2).ravel() / k, (wrong / 2 + correct).ravel() / k),
            lambda cells: compute_many(ConfusionTotals.from_tables(cells.reshape(-1, k, k))),
        )

    def jackknife_pseudovalues(self, metric: str) -> Floats:
        """Return the pseudo-value (n,) of each item: value + (n - 1) (mean of the values without
        one item - the value without this one).

        Their mean is the value, and their variance divided by n is the jackknife's estimate of its
        variance (Efron & Tibshirani 1993, ch. 11). The pseudo-values of an accuracy are the items'
        credits. A single item gets the value itself.
        """
        value, n = self.score(metric), float(self.counts.sum())
        if n < 2:
            return np.full(len(self.pair_index), value)
        without_one = self.score_resampled(metric, self.counts - np.eye(len(self.counts)))
        by_pair = value + (n - 1) * (self.counts @ without_one / n - without_one)
        return np.asarray(by_pair[self.pair_index])

    def with_majority_predictions(self) -> ConfusionCounts:
        """Return the same items, each predicted to be of the most frequent gold class (the first of
        several)."""
        majority = int(np.bincount(self.gold, self.counts).argmax())
        predicted = np.eye(self.num_classes)[np.full(len(self.gold), majority)]
        return replace(self, predicted=predicted)


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """A metric over seeds."""

    mean: Estimate
    """Mean over seeds. Its interval is over seeds and items (`statistics.crossed_design`), with one
    seed over items only."""
    sd: float
    """Standard deviation between seeds; nan with one seed."""
    low: float
    """Value of the worst seed."""
    high: float
    """Value of the best seed."""
    num_seeds: int
    uncertain_mean: UncertainValue
    """Mean and variance, for averages over tasks."""
    notes: tuple[str, ...] = ()
    """Notes on the interval of the mean."""


def summarize_seeds(
    predictions_by_seed: Sequence[Predictions],
    metric: str,
    ties: str = "half",
    collapsed: Sequence[bool] = (),
) -> SeedSummary:
    """Return the metric over S seeds, each of which predicted the same n items in the same order.

    collapsed: whether each seed collapsed, () = none did. The mean is over all seeds. If only some
    collapsed, its interval is that of a mixture of seeds; if all but one did, it is the whole range
    of the metric.

    Raises UsageError (no seed, unknown metric), NotComparable (items or gold differ), and the
    errors of `summarize`.
    """
    values = contributions_by_seed(predictions_by_seed, metric, ties)
    num_items, clusters = values.shape[1], find_clusters(predictions_by_seed)
    only_items_vary = np.ptp(values, axis=0).max() == 0  # also a single seed
    credits, is_proportion = values, load_confusion_metric(metric).is_proportion
    values = statistics.contributions_of_clusters(values, clusters)
    uncertain = statistics.two_level_mean(values, np.array(collapsed) if collapsed else None)
    means, interval = values.mean(axis=1), uncertain.interval
    value_range = METRICS[metric].value_range
    if np.isinf(interval.low):  # a single seed did not collapse
        uncertain = statistics.uncertain_from_interval(uncertain.value, Interval(*value_range))
    elif (
        only_items_vary
        or not uncertain.variance > 0
        or statistics.has_one_large_cluster(clusters)  # the widest part of the uncertainty
    ):
        table = replace(build_table(predictions_by_seed[0], set()), clusters=clusters)
        first_seed = load_metric(metric, MetricSettings(ties, CLASS_REDUCTION)).estimate_members(
            table, np.ones(len(table.ids), bool)
        )
        low, high = min(first_seed.low, means.min()), max(first_seed.high, means.max())
        interval = Interval(float(low), float(high))
        uncertain = statistics.uncertain_from_interval(uncertain.value, interval)
    elif is_proportion:
        interval = widen_near_top(interval, credits, clusters)
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    mean = rounded_estimate(uncertain.value, num_items, interval, {}, value_range)
    has_t_interval = not (is_proportion or only_items_vary)
    is_too_high = has_t_interval and has_few_errors(num_items, value_range[1] - mean.value)
    notes = seed_mean_notes(len(means), is_too_high)
    ends = float(means.min()), float(means.max())
    return SeedSummary(mean, sd, *ends, len(means), uncertain, notes)


def widen_near_top(interval: Interval, credits: Floats, clusters: Ints | None) -> Interval:
    """Return the interval of a mean over credits (S, n), with a lower end that few errors allow.

    With few errors (`has_few_errors`), t intervals over seeds and items begin too high, because
    errors are rare and skewed. The lower end is then at most that of the score interval over the
    items' mean credits.
    """
    num_items = credits.shape[1]
    if not has_few_errors(num_items, float(1 - credits.mean())):
        return interval
    score = statistics.score_interval(
        credits.mean(axis=0), np.zeros(num_items, np.int32), np.ones(1), (0.0, 1.0), clusters
    )
    return Interval(min(interval.low, score.low), interval.high)


def contributions_by_seed(
    predictions_by_seed: Sequence[Predictions], metric: str, ties: str = "half"
) -> Floats:
    """Return the contribution of each item under each seed (S, n); a row's mean is the metric.

    Raises the errors of `summarize_seeds`.
    """
    if not predictions_by_seed:
        raise UsageError("no seed to average over", hint="finetune first")
    loaded = load_metric(metric, MetricSettings(ties, CLASS_REDUCTION))
    first_seed = predictions_by_seed[0]
    rows = []
    for predictions in predictions_by_seed:
        expected, actual = (zip(p.ids, p.gold, strict=True) for p in (first_seed, predictions))
        for (expected_id, expected_gold), (actual_id, actual_gold) in zip(
            expected, actual, strict=False
        ):
            if (expected_id, expected_gold) != (actual_id, actual_gold):
                raise NotComparable(
                    "the seeds do not predict the same items in the same order",
                    location=f"item {expected_id} against {actual_id}",
                    hint="finetune them again",
                )
        if len(predictions) != len(first_seed):
            raise NotComparable(
                f"one seed predicts {format_count(len(first_seed), 'item')}, another "
                f"{len(predictions):,}",
                hint="finetune them again",
            )
        rows.append(loaded.per_item(build_table(predictions, set())))
    return np.stack(rows)


def collapse_warnings(predictions: Predictions, metric: str) -> tuple[str, ...]:
    """Return the reasons to call a run collapsed, in words for a table; () = not collapsed.

    "constant prediction": all items get one class. "no better than one class for all (100 F1
    54.3)": the task's metric is at most the best value of a constant answer.
    """
    if not len(predictions):
        return ()
    pred, gold = predictions.pred, predictions.gold
    if len(np.unique(gold)) == 1 and (pred == gold).all():
        return ()  # no answer could be better than the majority class
    if len(pred) > 1 and len(np.unique(pred)) == 1:
        return ("constant prediction",)
    spec, compute_many = METRICS[metric], load_confusion_metric(metric).compute_many
    num_classes = int(predictions.option_counts[0])
    table = np.zeros((num_classes, num_classes))
    np.add.at(table, (gold.astype(np.int32), pred), 1)
    # Tables (answered class, gold, predicted) of the k constant answers.
    constant_tables = table.sum(axis=1)[:, None] * np.eye(num_classes)[:, None, :]
    best_constant = float(compute_many(ConfusionTotals.from_tables(constant_tables)).max())
    if float(compute_many(ConfusionTotals.from_tables(table))) > best_constant:
        return ()
    return (f"no better than one class for all ({spec.heading} {spec.format(best_constant)})",)


def unmoved_loss_warnings(
    losses_by_split: Sequence[tuple[Sequence[float], Ints]],
) -> tuple[str, ...]:
    """Return the reason to call a training collapsed whose loss never moved; () if it moved.

    losses_by_split: for the training and for the held-out texts, the mean losses in nats and the
    gold classes (n,) of the texts. Losses of training texts are means during each epoch, those of
    held-out texts come after it. A loss has moved if it is below UNMOVED_SHARE of the lowest loss
    of a constant answer, which is the entropy of the gold classes. If all texts have one class, the
    entropy is 0, and the result is ().
    """
    entropies = []
    for losses, gold in losses_by_split:
        _, counts = np.unique(gold, return_counts=True)
        shares = counts / counts.sum()
        entropy = float(-(shares * np.log(shares)).sum())
        if not losses or entropy == 0 or min(losses) < UNMOVED_SHARE * entropy:
            return ()
        entropies.append(entropy)
    return (f"the loss never fell below that of a constant answer ({entropies[0]:.3f} nats)",)
