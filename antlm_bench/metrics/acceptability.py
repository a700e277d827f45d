"""Acceptability of single sentences: how well a score separates acceptable sentences from others.

    auc       P(score of an acceptable sentence > score of an unacceptable one), ties count half
    accuracy  share of sentences whose label equals the decision "score > threshold"
    mcc       Matthews' correlation of these decisions with the labels

The score is one of ACCEPTABILITY_MEASURES: LP, mean LP, PenLP, SLOR
(`PredictionTable.reduced_scores` has the formulas). The headline is the AUC of the suite's measure;
AUC, accuracy and Matthews' correlation of every measure are views.

Thresholds are chosen out of sample, by cross-validation: the items are dealt into NUM_FOLDS folds
(`assign_folds`), and those of a fold are decided by the threshold that is best on all others, for
accuracy and Matthews' correlation separately. So a score without information has an accuracy of
about the majority's share, and a correlation of about 0. Both are computed from the decisions of
all folds together; their intervals (a score interval, and the posterior of the confusion table)
treat the thresholds as given. Notes state their coverage (`THRESHOLD_COVERAGE`).

Sentences that do not fit the model are left out and not counted in n. If all others are of one
class, the AUC is undefined: the suite is refused, and a group is left out with a note. Without a
unigram model there is no SLOR.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics.classification import (
    MAJORITY,
    ConfusionCounts,
    ConfusionTotals,
    load_confusion_metric,
)
from antlm_bench.metrics.prediction_table import PredictionTable
from antlm_bench.metrics.records import (
    ACCEPTABILITY_MEASURES,
    ACCURACY,
    MCC,
    MetricSpec,
)
from antlm_bench.metrics.summary import Headline, Metric, rounded_estimate
from antlm_bench.statistics.known_coverage import THRESHOLD_ACCURACY, THRESHOLD_CORRELATION
from antlm_bench.types import TOO_LONG_HINT, Bools, Estimate, Floats, Ints

NUM_FOLDS = 10
"""Folds of the cross-validation that chooses thresholds."""
THRESHOLD_METRICS = (ACCURACY, MCC)
"""Metrics of decisions by a threshold."""
THRESHOLD_COVERAGE = dict(
    zip(THRESHOLD_METRICS, (THRESHOLD_ACCURACY, THRESHOLD_CORRELATION), strict=True)
)
"""Metric -> the coverage of its intervals, which take thresholds as given."""
NO_SLOR_NOTE = (
    "no SLOR: it needs a unigram model (--unigrams FILE, or --unigrams training for a checkpoint "
    "that antlm-bench train wrote)"
)


class Auc(Metric):
    """Area under the ROC curve of an acceptability measure."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the contribution (n,) of each sentence; their mean is the AUC. nan for a sentence
        that is too long, and for all if the AUC is undefined."""
        used, contributions = fitting_items(table), np.full(len(table.ids), np.nan)
        scores, labels = measure_scores(table, self.settings.reduction), read_labels(table)
        if statistics.compute_auc(scores[used], labels[used]) is not None:
            contributions[used] = statistics.auc_contributions(scores[used], labels[used])
        return contributions

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        if macro:
            raise UsageError(
                f"{self.spec.name} is computed over all items, not averaged over groups: "
                f"{', '.join(macro)}",
                hint="leave `macro` empty in the suite's TOML",
            )
        used, views, notes = fitting_items(table), {}, []
        read_labels(table)
        self.require_defined(table)
        main_measure = self.settings.reduction
        headline = self._estimate(table, used, main_measure)
        measures = {r: name for r, name in ACCEPTABILITY_MEASURES.items() if has_measure(table, r)}
        for reduction in measures:
            if reduction != main_measure:
                views[_view_name(self.spec, reduction)] = self._estimate(table, used, reduction)
        views |= estimate_decisions(table, used, tuple(measures))
        values = {
            name: views.get(_view_name(self.spec, r), headline) for r, name in measures.items()
        }
        notes.append(_list_values(self.spec, values))
        for metric in THRESHOLD_METRICS:
            values = {name: views[_view_name(metric, r)] for r, name in measures.items()}
            coverage = THRESHOLD_COVERAGE[metric].range_text
            notes.append(
                f"{_list_values(metric, values)} (thresholds chosen out of sample; 95% intervals, "
                f"in CSV and JSON, take them as given and cover {coverage} in simulations)"
            )
        majority = ACCURACY.format(views[MAJORITY].value)
        notes[1] += f"; {majority} if all are of the more frequent class"
        if table.unigram_scores is None:
            notes.append(NO_SLOR_NOTE)
        return Headline(headline, views, tuple(notes))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self._estimate(table, members & fitting_items(table), self.settings.reduction)

    def closing_notes(self, estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
        names = [name for name, e in estimates.items() if (e.low, e.high) == self.spec.value_range]
        reason = f"no interval: fewer than {statistics.MIN_CLASS_ITEMS} items of a class"
        return (f"{', '.join(names)}: {reason}",) if names else ()

    def _estimate(self, table: PredictionTable, used: Bools, reduction: str) -> Estimate:
        scores, labels = measure_scores(table, reduction)[used], read_labels(table)[used]
        clusters = None if table.clusters is None else table.clusters[used]
        flags = table.count_flags(used | table.get_flag("too-long"), exclude="tie")
        value = statistics.compute_auc(scores, labels)
        assert value is not None  # both classes occur: `require_defined`, `by_group`
        interval = statistics.auc_interval(scores, labels, clusters)
        return rounded_estimate(value, len(scores), interval, flags)


def fitting_items(table: PredictionTable) -> Bools:
    """Return the items (n,) that fit the model. Raises DataError if none does."""
    fitting = ~table.get_flag("too-long")
    if not fitting.any():
        raise DataError(
            "every sentence is too long for the model",
            location=f"item {table.ids[0]} and others",
            hint=TOO_LONG_HINT,
        )
    return fitting


def read_labels(table: PredictionTable) -> Bools:
    """Return the labels (n,), True = acceptable. Raises DataError for another label."""
    wrong = np.flatnonzero(~np.isin(table.gold, (0, 1)))
    if len(wrong):
        raise DataError(
            f"the label {table.gold[wrong[0]]:g} is neither 1 (acceptable) nor 0",
            location=f"item {table.ids[int(wrong[0])]}",
        )
    return np.asarray(table.gold == 1)


def has_measure(table: PredictionTable, reduction: str) -> bool:
    """Return whether a measure can be computed: SLOR needs a unigram model."""
    return not np.isnan(measure_scores(table, reduction)[fitting_items(table)]).any()


def measure_scores(table: PredictionTable, reduction: str) -> Floats:
    """Return an acceptability measure (n,) of each sentence, nan without a unigram model."""
    return np.asarray(table.reduced_scores(reduction)[:, 0])


# ---- decisions by a threshold


def estimate_decisions(
    table: PredictionTable, used: Bools, reductions: Sequence[str]
) -> dict[str, Estimate]:
    """Return view name -> estimate: accuracy and Matthews' correlation of each measure, and
    MAJORITY, the accuracy of calling all sentences what most of them are.

    used (n,): the items that count; both classes are among them.
    """
    labels = read_labels(table)[used]
    clusters = None if table.clusters is None else table.clusters[used]
    ids = [item_id for item_id, is_used in zip(table.ids, used, strict=True) if is_used]
    folds, flags = assign_folds(ids, labels, clusters), table.count_flags(used, exclude="tie")
    views = {}
    for metric in THRESHOLD_METRICS:
        for reduction in reductions:
            scores = measure_scores(table, reduction)[used]
            decisions = decide_out_of_sample(scores, labels, folds, metric)
            counts = _count_decisions(labels, decisions, clusters)
            views[_view_name(metric, reduction)] = counts.estimate(metric.name, flags)
    majority_class = np.full(len(labels), 2 * labels.sum() >= len(labels))
    majority = _count_decisions(labels, majority_class, clusters)
    return views | {MAJORITY: majority.estimate(ACCURACY.name, flags)}


def assign_folds(ids: Sequence[str], labels: Bools, clusters: Ints | None = None) -> Ints:
    """Return the fold (n,) of each item, in 0..NUM_FOLDS - 1.

    The items of a cluster are in one fold. The units (clusters, or items) are sorted by their share
    of acceptable items, then by a hash of their smallest id, and dealt in turn. So the folds have
    nearly equal shares, and depend neither on the order of the items nor on the machine.
    """
    if clusters is None:
        clusters = np.arange(len(ids), dtype=np.int32)
    _, units = np.unique(clusters, return_inverse=True)
    shares = np.bincount(units, labels) / np.bincount(units)
    smallest: dict[int, str] = {}
    for unit, item_id in zip(units.tolist(), ids, strict=True):
        smallest[unit] = min(smallest.get(unit, item_id), item_id)
    hashes = [hashlib.sha256(smallest[unit].encode()).hexdigest() for unit in range(len(shares))]
    order = sorted(range(len(shares)), key=lambda unit: (shares[unit], hashes[unit]))
    fold_of_unit = np.empty(len(order), np.int32)
    fold_of_unit[order] = np.arange(len(order)) % NUM_FOLDS
    return np.asarray(fold_of_unit[units])


def decide_out_of_sample(scores: Floats, labels: Bools, folds: Ints, metric: MetricSpec) -> Bools:
    """Return the decision (n,) on each item, True = acceptable, by the threshold that is best for
    the metric on the items of all other folds."""
    decisions = np.zeros(len(scores), bool)
    for fold in np.unique(folds):
        members = folds == fold
        threshold = choose_threshold(scores[~members], labels[~members], metric)
        decisions[members] = scores[members] > threshold
    return decisions


def choose_threshold(scores: Floats, labels: Bools, metric: MetricSpec) -> float:
    """Return the threshold with the best decisions "score > threshold"; of equally good ones, the
    lowest. It lies in the middle between two neighbouring scores, or is infinite. No threshold
    accepts a score of -inf.
    """
    if not len(scores):
        return -np.inf
    distinct, codes = np.unique(scores, return_inverse=True)
    num_acceptable = np.bincount(codes, labels, minlength=len(distinct))
    num_others = np.bincount(codes, ~labels, minlength=len(distinct))
    rejected_acceptable = np.concatenate([[0.0], np.cumsum(num_acceptable)])
    rejected_others = np.concatenate([[0.0], np.cumsum(num_others)])
    accepted_acceptable = rejected_acceptable[-1] - rejected_acceptable
    num_rejected = rejected_acceptable + rejected_others
    gold = np.array([rejected_others[-1], rejected_acceptable[-1]])
    totals = ConfusionTotals(
        correct=np.column_stack([rejected_others, accepted_acceptable]),
        gold=np.broadcast_to(gold, (len(num_rejected), 2)),
        predicted=np.column_stack([num_rejected, len(scores) - num_rejected]),
    )
    values = load_confusion_metric(metric.name).compute_many(totals)
    lowest = int(np.isneginf(distinct[0]))
    best = lowest + int(np.argmax(np.round(values[lowest:], 12)))
    if best in (0, len(distinct)):
        return -np.inf if best == 0 else np.inf
    below, above = float(distinct[best - 1]), float(distinct[best])
    return below + (above - below) / 2 if np.isfinite(below) else below


def _count_decisions(labels: Bools, decisions: Bools, clusters: Ints | None) -> ConfusionCounts:
    predicted = np.column_stack([~decisions, decisions]).astype(float)
    return ConfusionCounts.from_items(labels.astype(np.int32), predicted, clusters)


def _view_name(metric: MetricSpec, reduction: str) -> str:
    """Return the name of a view: `mcc-mean-lp`."""
    return f"{metric.name}-{ACCEPTABILITY_MEASURES[reduction].lower().replace(' ', '-')}"


def _list_values(metric: MetricSpec, values: Mapping[str, Estimate]) -> str:
    """Return `100 AUC: LP 61.2, mean LP 63.0`. values: name of a measure -> estimate."""
    pairs = ", ".join(f"{name} {metric.format(each.value)}" for name, each in values.items())
    return f"{metric.axis_title or metric.heading}: {pairs}"
