"""Metrics of classified texts against scikit-learn, their intervals against simulation, degenerate
cases by hand.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_rows import PredictionRow, from_rows, to_rows
from scipy.stats import binomtest
from sklearn import metrics as sklearn

from antlm_bench.errors import DataError, NotComparable, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.metrics.classification import (
    ConfusionTotals,
    collapse_warnings,
    contributions_by_seed,
    load_confusion_metric,
    summarize_seeds,
    unmoved_loss_warnings,
)
from antlm_bench.types import Floats, Ints, Summary


def make_predictions(
    gold: Sequence[int] | Ints, predicted: Sequence[int] | Ints, k: int = 2
) -> list[PredictionRow]:
    """Texts of a gold class and a class that a model answered."""
    scores = np.full((k, k), -3.0) + 2.5 * np.eye(k)
    return [
        PredictionRow(
            str(i), int(g), int(s), tuple(scores[s]), (5,) * k, (20,) * k, {"task": "toy"}
        )
        for i, (g, s) in enumerate(zip(gold, predicted, strict=True))
    ]


def summary(
    predictions: Sequence[PredictionRow], metric: str = "accuracy", **options: Any
) -> Summary:
    arguments: dict[str, Any] = {"macro": (), "groups": (), "reduction": "class", **options}
    return summarize(
        from_rows(predictions),
        suite="toy.task",
        method="finetune-full",
        metric=metric,
        **arguments,
    )


def scikit(name: str, gold: Sequence[int], predicted: Sequence[int]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined is 0 there too, with a warning
        if name == "f1":
            return float(
                sklearn.f1_score(gold, predicted, pos_label=1, labels=[0, 1], zero_division=0)
            )
        if name == "macro-f1":
            return float(sklearn.f1_score(gold, predicted, average="macro", zero_division=0))
        return float(
            sklearn.matthews_corrcoef(gold, predicted)
            if name == "mcc"
            else sklearn.accuracy_score(gold, predicted)
        )


def compute_resampled(metric: str, k: int, cells: Floats) -> Floats:
    return load_confusion_metric(metric).compute_many(
        ConfusionTotals.from_tables(cells.reshape(-1, k, k))
    )


def draw_classes(rng: np.random.Generator, n: int, k: int, right: float) -> tuple[Ints, Ints]:
    gold = rng.choice(k, size=n, p=np.arange(1, k + 1) / np.arange(1, k + 1).sum())
    return gold, np.where(rng.random(n) < right, gold, rng.integers(k, size=n))


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda k: st.tuples(
            st.just(k), st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1, max_size=40)
        )
    )
)
def test_every_metric_is_scikit_learns(case: tuple[int, list[tuple[int, int]]]) -> None:
    k, pairs = case
    gold, predicted = [g for g, _ in pairs], [s for _, s in pairs]
    result = summary(make_predictions(gold, predicted, k))
    assert set(result.views) == {"accuracy", "f1" if k == 2 else "macro-f1", "mcc", "majority"}
    for name in set(result.views) - {"majority"}:
        assert result.views[name].value == pytest.approx(scikit(name, gold, predicted), abs=1e-9)
        assert result.views[name].n == len(gold)
        assert result.views[name].low <= result.views[name].value <= result.views[name].high


def score_with_scikit(name: str, table: Floats) -> float:
    """Return scikit-learn's value of a table of weights (k, k)."""
    gold, predicted = np.nonzero(table)
    function = {"accuracy": sklearn.accuracy_score, "mcc": sklearn.matthews_corrcoef}.get(
        name, sklearn.f1_score
    )
    options: dict[str, Any] = {}
    if function is sklearn.f1_score:
        options = {"zero_division": 0, "average": "binary" if name == "f1" else "macro"}
    return float(function(gold, predicted, sample_weight=table[gold, predicted], **options))


@pytest.mark.long
@pytest.mark.parametrize(
    ("counts", "tolerance"),
    [([0, 0, 0, 1, 7, 60_000], 0), ([0, 0, 0, 1, 0.5, 1 / 3, 7, 60_000], 1e-9)],
    ids=["whole counts, to the last digit", "ties"],
)
def test_weighted_tables_have_scikit_learns_values(counts: list[float], tolerance: float) -> None:
    rng = np.random.default_rng(0)
    for k in (2, 3, 4) * 40:
        table = rng.choice(counts, (k, k)).astype(float)
        for name in ("accuracy", "macro-f1", "mcc", *(["f1"] if k == 2 else [])):
            metric = load_confusion_metric(name)
            if table.any() and not metric.undefined_reason(ConfusionTotals.from_tables(table)):
                expected = score_with_scikit(name, table)
                assert abs(metric.score(table) - expected) <= tolerance, (name, table)


@pytest.mark.parametrize(
    ("name", "cells"),
    [("f1", [[5, 0], [0, 0]]), ("mcc", [[5, 2], [0, 0]]), ("mcc", [[5, 0], [2, 0]])],
)
def test_an_undefined_metric_is_0(name: str, cells: list[list[int]]) -> None:
    table, metric = np.array(cells, float), load_confusion_metric(name)
    assert metric.undefined_reason(ConfusionTotals.from_tables(table))
    assert metric.score(table) == 0 == compute_resampled(name, 2, table)


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", 0.6), ("f1", 2 * 0.6 / 1.6), ("mcc", 0.0)]
)
def test_majority_is_the_metric_of_the_most_frequent_class(metric: str, expected: float) -> None:
    gold = [1] * 60 + [0] * 40
    assert summary(make_predictions(gold, gold), metric).views["majority"].value == pytest.approx(
        expected
    )


def test_the_headline_is_the_requested_metric_with_flags() -> None:
    predictions = make_predictions([0, 1, 1, 0, 1], [0, 1, 0, 1, 1])
    cut = [
        PredictionRow(p.id, p.gold, p.pred, p.scores, p.tokens, p.characters, p.labels, ("cut",))
        for p in predictions
    ]
    result = summary([*predictions[:3], *cut[3:]], "f1")
    assert result.headline.value == pytest.approx(2 / 3) == result.views["f1"].value
    assert result.headline.flags == {"cut": 2}
    assert result.metric == "f1" and not result.notes


def test_an_accuracy_has_nearly_wilsons_interval() -> None:
    expected = binomtest(30, 40).proportion_ci(method="wilson")
    result = summary(make_predictions([1] * 40, [1] * 30 + [0] * 10)).headline
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.015)


@pytest.mark.long
def test_the_posterior_interval_is_nearly_the_bootstrap_of_items() -> None:
    rng = np.random.default_rng(0)
    gold, predicted = draw_classes(rng, 80, 2, 0.5)
    picks = rng.integers(80, size=(1000, 80))
    naive = [scikit("mcc", list(gold[pick]), list(predicted[pick])) for pick in picks]
    result = summary(make_predictions(gold, predicted), "mcc").headline
    assert (result.low, result.high) == pytest.approx(
        tuple(np.quantile(naive, [0.025, 0.975])), abs=0.04
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("gold", "predicted", "metric", "value"),
    [
        ([0, 1] * 50, [0, 1] * 50, "f1", 1),
        ([0, 1] * 50, [0, 1] * 50, "mcc", 1),
        ([0, 1] * 50, [0, 0] * 50, "f1", 0),
        ([0, 1] * 50, [1, 1] * 50, "mcc", 0),
        ([0, 0] * 50, [0, 0] * 50, "f1", 0),
    ],
)
def test_where_nothing_varies_nothing_is_certain(
    gold: list[int], predicted: list[int], metric: str, value: float
) -> None:
    result = summary(make_predictions(gold, predicted), metric).headline
    assert result.value == value and result.low <= value <= result.high
    assert result.high - result.low > 0.01
    more_items = summary(make_predictions(gold * 9, predicted * 9), metric).headline
    assert (
        more_items.high - more_items.low < result.high - result.low or value == 0
    )  # nothing was learnt about F1 there


@pytest.mark.parametrize(
    ("gold", "predicted", "metric", "message"),
    [
        ([0, 0], [0, 0], "f1", "class 1 is neither"),
        ([0, 1], [1, 1], "mcc", "all predictions"),
        ([1, 1], [0, 1], "mcc", "all items"),
    ],
)
def test_a_metric_that_is_undefined_is_said_to_be(
    gold: list[int], predicted: list[int], metric: str, message: str
) -> None:
    result = summary(make_predictions(gold, predicted), metric)
    assert result.headline.value == 0 and message in result.notes[0]


def test_ties_share_an_answer() -> None:
    tied = [PredictionRow(str(i), i % 2, 0, (-0.7, -0.7), (5, 5), (9, 9)) for i in range(10)]
    result = summary(tied)
    assert result.headline.value == 0.5 and result.headline.flags == {"tie": 10}
    assert summary(tied, "f1").headline.value == pytest.approx(0.5)
    assert summary(tied, "f1", ties="first").headline.value == 0


def test_groups_have_the_metric_of_their_items() -> None:
    labelled = [
        PredictionRow(
            p.id, p.gold, p.pred, p.scores, p.tokens, p.characters, {"genre": "a" if i < 3 else "b"}
        )
        for i, p in enumerate(make_predictions([1, 1, 0, 0, 1], [1, 0, 0, 1, 1]))
    ]
    groups = summary(labelled, "f1", groups=("genre",)).groups
    assert [(g.name, g.estimate.n) for g in groups] == [("a", 3), ("b", 2)]
    assert [g.estimate.value for g in groups] == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("predictions", "metric", "options", "error", "message"),
    [
        (make_predictions([0, 2], [1, 2], 3), "f1", {}, UsageError, "macro-f1"),
        (
            make_predictions([0, 1], [1, 0]),
            "spearman",
            {},
            UsageError,
            "not a metric of classified",
        ),
        (
            make_predictions([0, 1], [1, 0]),
            "f1",
            {"reduction": "sum"},
            UsageError,
            "metric of classified",
        ),
        (make_predictions([0, 1], [1, 0]), "f1", {"macro": ("task",)}, UsageError, "macro"),
        (
            [
                *make_predictions([0], [1]),
                PredictionRow("q", 0, 0, (-1.0, -2.0, -3.0), (1,) * 3, (1,) * 3),
            ],
            "mcc",
            {},
            DataError,
            "item q",
        ),
        ([PredictionRow("q", 0, 0, (-1.0,), (1,), (1,))], "accuracy", {}, DataError, "two classes"),
        ([PredictionRow("q", 2, 0, (-1.0, -2.0), (1, 1), (1, 1))], "mcc", {}, DataError, "item q"),
        (
            [PredictionRow("q", 1, 0, (-1.0, -1.0), (1, 1), (1, 1))],
            "mcc",
            {"ties": "strict"},
            DataError,
            "item q",
        ),
    ],
)
def test_a_misfit_is_a_typed_error(
    predictions: list[PredictionRow],
    metric: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        summary(predictions, metric, **options)


def test_collapse_is_named() -> None:
    def warnings(gold: list[int], pred: list[int], metric: str = "accuracy") -> tuple[str, ...]:
        return collapse_warnings(from_rows(make_predictions(gold, pred)), metric)

    assert warnings([0, 1, 1, 0], [1, 1, 1, 1]) == ("constant prediction",)
    assert warnings([0, 1, 1, 1], [0, 1, 0, 1]) == (
        "no better than one class for all (accuracy 75.0)",
    )
    assert warnings([0, 1, 1, 1], [0, 1, 1, 1]) == ()
    assert collapse_warnings(from_rows([]), "accuracy") == ()


def test_a_perfect_score_on_one_class_is_no_collapse() -> None:
    assert collapse_warnings(from_rows(make_predictions([1, 1, 1], [1, 1, 1])), "accuracy") == ()
    assert collapse_warnings(from_rows(make_predictions([1], [1])), "accuracy") == ()
    assert collapse_warnings(from_rows(make_predictions([1], [0])), "accuracy")


def test_collapse_is_judged_by_the_tasks_own_metric() -> None:
    gold = [1] * 3 + [0] * 5  # always 1: F1 = 2 * 3 / (3 + 8)
    pred = [1, 0, 0] + [0] * 4 + [1]  # F1 = 2 / (3 + 2)
    predictions = from_rows(make_predictions(gold, pred))
    assert collapse_warnings(predictions, "f1") == (
        "no better than one class for all (100 F1 54.5)",
    )
    assert collapse_warnings(predictions, "mcc") == ()
    worse_than_chance = from_rows(make_predictions([1, 1, 0, 0], [0, 1, 1, 1]))
    assert collapse_warnings(worse_than_chance, "mcc") == (
        "no better than one class for all (100 MCC 0.0)",
    )


@pytest.mark.parametrize(
    ("train_losses", "selection_losses", "warns"),
    [
        ([0.72, 0.70], [0.71, 0.69], True),
        ([0.72, 0.60], [0.71, 0.70], False),  # learnt by heart
        ([0.80], [0.60], False),  # learnt within its only epoch
        ([], [], False),  # no epoch ended
    ],
)
def test_a_loss_has_moved_if_it_fell_below_a_constant_answers(
    train_losses: list[float], selection_losses: list[float], warns: bool
) -> None:
    gold = np.array([0, 1] * 10)  # ln 2 = 0.693 nats

    warnings = unmoved_loss_warnings([(train_losses, gold), (selection_losses, gold)])

    assert bool(warnings) == warns
    assert not warns or "(0.693 nats)" in warnings[0]


def test_a_mixture_of_seeds_has_no_t_interval() -> None:
    rng = np.random.default_rng(5)
    runs = list(map(from_rows, make_seeds(rng, 4, 100, 0.3)))
    constant = from_rows([replace(row, pred=0, scores=(-0.1, -2)) for row in to_rows(runs[0])])
    collapsed = [False, False, False, True]

    mixture = summarize_seeds([*runs[:3], constant], "accuracy", collapsed=collapsed)
    plain = summarize_seeds([*runs[:3], constant], "accuracy")

    assert mixture.mean.value == plain.mean.value
    above, below = (
        mixture.mean.high - mixture.mean.value,
        mixture.mean.value - mixture.mean.low,
    )
    assert below > 1.05 * above  # more seeds may collapse, hardly fewer
    assert (mixture.mean.low, mixture.mean.high) != (plain.mean.low, plain.mean.high)


def test_a_single_seed_that_did_not_collapse_has_no_interval() -> None:
    runs = list(map(from_rows, make_seeds(np.random.default_rng(5), 3, 100, 0.3)))

    summary_of_seeds = summarize_seeds(runs, "mcc", collapsed=[True, False, True])

    assert (summary_of_seeds.mean.low, summary_of_seeds.mean.high) == (-1, 1)
    assert summary_of_seeds.uncertain_mean.variance > 0.1


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=12),
    st.sampled_from(["accuracy", "f1", "macro-f1", "mcc"]),
)
def test_contributions_are_jackknifed_and_average_to_the_metric(
    pairs: list[tuple[int, int]], metric: str
) -> None:
    gold, predicted, n = [g for g, _ in pairs], [s for _, s in pairs], len(pairs)
    result = contributions_by_seed([from_rows(make_predictions(gold, predicted))], metric)[0]
    value = scikit(metric, gold, predicted)
    without = [
        scikit(metric, gold[:i] + gold[i + 1 :], predicted[:i] + predicted[i + 1 :])
        for i in range(n)
    ]
    assert result == pytest.approx(
        value + (n - 1) * (np.mean(without) - np.array(without)), abs=1e-9
    )
    assert result.mean() == pytest.approx(value, abs=1e-9)
    if metric == "accuracy":
        assert result == pytest.approx([float(g == s) for g, s in pairs])


def make_seeds(
    rng: np.random.Generator, count: int, n: int, seed_sd: float
) -> list[list[PredictionRow]]:
    """Seeds that answer the same items: items differ in difficulty, seeds in how good they are by
    chance.
    """
    gold, ease = (rng.random(n) < 0.6).astype(int), rng.normal(0.8, 1, n)
    runs = []
    for seed_effect in rng.normal(0, seed_sd, count):
        right = rng.random(n) < 1 / (1 + np.exp(-ease - seed_effect))
        runs.append(make_predictions(gold, np.where(right, gold, 1 - gold)))
    return runs


@pytest.mark.long
def test_a_spread_is_over_the_metrics_of_the_seeds() -> None:
    runs = make_seeds(np.random.default_rng(0), 4, 200, 0.5)
    values = [summary(run, "f1").headline.value for run in runs]
    spread = summarize_seeds(list(map(from_rows, runs)), "f1")
    assert spread.mean.value == pytest.approx(np.mean(values))
    assert (spread.low, spread.high) == pytest.approx((min(values), max(values)))
    assert spread.sd == pytest.approx(np.std(values, ddof=1))
    assert (spread.num_seeds, spread.mean.n) == (4, 200)
    assert spread.mean.low < spread.mean.value < spread.mean.high
    assert tuple(spread.uncertain_mean.interval) == pytest.approx(
        (spread.mean.low, spread.mean.high)
    )


def test_one_seed_keeps_its_own_interval() -> None:
    (run,) = make_seeds(np.random.default_rng(0), 1, 200, 0.5)
    spread = summarize_seeds([from_rows(run)], "mcc")
    single_run = summary(run, "mcc").headline
    assert spread.num_seeds == 1 and math.isnan(spread.sd)
    assert (spread.mean.value, spread.mean.low, spread.mean.high) == (
        single_run.value,
        single_run.low,
        single_run.high,
    )
    assert spread.uncertain_mean.variance > 0


def test_equal_seeds_have_the_interval_of_one_seed() -> None:
    runs = make_seeds(np.random.default_rng(0), 1, 60, 0.95) * 3
    spread = summarize_seeds(list(map(from_rows, runs)), "accuracy")
    single_run = summary(runs[0], "accuracy").headline
    assert (spread.mean.low, spread.mean.high) == (single_run.low, single_run.high)
    assert spread.sd == pytest.approx(0) and spread.mean.high < 1


def test_seeds_of_one_cluster_hardly_have_an_interval() -> None:
    runs = make_seeds(np.random.default_rng(0), 3, 60, 0.5)
    clustered = [
        from_rows([replace(row, cluster="all") for row in predictions]) for predictions in runs
    ]
    spread = summarize_seeds(clustered, "accuracy").mean
    assert spread.low < spread.value - 0.3 and spread.high > spread.value + 0.1


def test_a_single_item_is_anything() -> None:
    for runs in ([make_predictions([1], [1])], [make_predictions([1], [1])] * 3):
        spread = summarize_seeds(list(map(from_rows, runs)), "accuracy")
        assert (
            spread.mean.value == spread.mean.high == 1
            and spread.mean.low < 0.3
            and spread.uncertain_mean.variance > 0
        )


def test_seeds_that_all_collapsed_alike_are_not_certain() -> None:
    spread = summarize_seeds([from_rows(make_predictions([0, 1] * 20, [1] * 40))] * 3, "mcc")
    assert spread.mean.value == 0 and spread.mean.low < -0.02 and spread.mean.high > 0.02
    assert spread.uncertain_mean.variance > 0


@pytest.mark.long
def test_interval_over_seeds_and_items_covers_the_truth() -> None:
    rng, hits = np.random.default_rng(4), 0
    x, w = np.polynomial.hermite_e.hermegauss(
        41
    )  # right answers of a seed: a mean over items, normal around 0.8
    right = (w / (1 + np.exp(-0.8 - x - 0.4 * x[:, None]))).sum(axis=1) / w.sum()
    truth = float((w * 1.2 * right / (1 + 0.2 * right)).sum() / w.sum())  # 60% are of class 1
    for _ in range(300):
        spread = summarize_seeds(list(map(from_rows, make_seeds(rng, 5, 120, 0.4))), "f1")
        hits += spread.mean.low <= truth <= spread.mean.high
    assert 0.92 <= hits / 300 <= 0.98


def test_seeds_of_other_items_cannot_be_averaged() -> None:
    run = make_predictions([0, 1, 1], [0, 1, 0])
    with pytest.raises(NotComparable, match="item 0 against 1"):
        summarize_seeds([from_rows(run), from_rows(run[1:])], "accuracy")
    with pytest.raises(NotComparable, match="3 items, another 2"):
        summarize_seeds([from_rows(run), from_rows(run[:2])], "accuracy")
    with pytest.raises(UsageError, match="no seed"):
        summarize_seeds([], "accuracy")
    with pytest.raises(UsageError, match="not a metric"):
        summarize_seeds([from_rows(run)], "spearman")


def test_the_posterior_draws_cells_of_the_confusion_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost grows with the cells of the confusion matrix, not with the number of items."""
    run = make_predictions(*draw_classes(np.random.default_rng(0), 3000, 3, 0.7), 3)
    generator = Mock(wraps=np.random.default_rng(0))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: generator)
    summary(run, "macro-f1")
    assert {name for name, *_ in generator.method_calls} == {"standard_gamma"}
    assert all(len(args[0]) == 3 * 3 for _, args, _ in generator.method_calls)
