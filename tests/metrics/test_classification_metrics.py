"""Metrics of classified texts against scikit-learn, their intervals against simulation, degenerate
cases by hand.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sklearn

from antlm_bench import statistics
from antlm_bench.errors import DataError, NotComparable, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.metrics.classification import (
    ConfusionTotals,
    collapse_warnings,
    contributions_by_seed,
    load_confusion_metric,
    summarize_seeds,
)
from antlm_bench.types import Floats, Ints, Prediction, Summary


def answered(
    gold: Sequence[int] | Ints, said: Sequence[int] | Ints, k: int = 2
) -> list[Prediction]:
    """Texts of a gold class and a class that a model answered."""
    scores = np.full((k, k), -3.0) + 2.5 * np.eye(k)
    return [
        Prediction(str(i), int(g), int(s), tuple(scores[s]), (5,) * k, (20,) * k, {"task": "toy"})
        for i, (g, s) in enumerate(zip(gold, said, strict=True))
    ]


def summary(predictions: Sequence[Prediction], metric: str = "accuracy", **options: Any) -> Summary:
    made: dict[str, Any] = {"macro": (), "groups": (), "reduction": "class", **options}
    return summarize(predictions, suite="toy.task", method="finetune-full", metric=metric, **made)


def scikit(name: str, gold: Sequence[int], said: Sequence[int]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined is 0 there too, with a warning
        if name == "f1":
            return float(sklearn.f1_score(gold, said, pos_label=1, labels=[0, 1], zero_division=0))
        if name == "macro-f1":
            return float(sklearn.f1_score(gold, said, average="macro", zero_division=0))
        return float(
            sklearn.matthews_corrcoef(gold, said)
            if name == "mcc"
            else sklearn.accuracy_score(gold, said)
        )


def of_cells(metric: str, k: int, cells: Floats) -> Floats:
    return load_confusion_metric(metric).compute(
        ConfusionTotals.from_tables(cells.reshape(-1, k, k))
    )


def noisy(rng: np.random.Generator, n: int, k: int, right: float) -> tuple[Ints, Ints]:
    gold = rng.choice(k, size=n, p=np.arange(1, k + 1) / np.arange(1, k + 1).sum())
    return gold, np.where(rng.random(n) < right, gold, rng.integers(k, size=n))


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
    gold, said = [g for g, _ in pairs], [s for _, s in pairs]
    found = summary(answered(gold, said, k))
    assert set(found.views) == {"accuracy", "f1" if k == 2 else "macro-f1", "mcc", "majority"}
    for name in set(found.views) - {"majority"}:
        assert found.views[name].value == pytest.approx(scikit(name, gold, said), abs=1e-9)
        assert found.views[name].n == len(gold)
        assert found.views[name].low <= found.views[name].value <= found.views[name].high


@pytest.mark.parametrize(
    ("metric", "expected"), [("accuracy", 0.6), ("f1", 2 * 0.6 / 1.6), ("mcc", 0.0)]
)
def test_majority_is_the_metric_of_the_most_frequent_class(metric: str, expected: float) -> None:
    gold = [1] * 60 + [0] * 40
    assert summary(answered(gold, gold), metric).views["majority"].value == pytest.approx(expected)


def test_the_headline_is_the_requested_metric_with_flags() -> None:
    predictions = answered([0, 1, 1, 0, 1], [0, 1, 0, 1, 1])
    cut = [
        Prediction(p.id, p.gold, p.pred, p.scores, p.tokens, p.characters, p.labels, ("cut",))
        for p in predictions
    ]
    found = summary([*predictions[:3], *cut[3:]], "f1")
    assert found.headline.value == pytest.approx(2 / 3) == found.views["f1"].value
    assert found.headline.flags == {"cut": 2}
    assert found.metric == "f1" and not found.notes


def test_an_accuracy_has_nearly_wilsons_interval() -> None:
    theirs = binomtest(30, 40).proportion_ci(method="wilson")
    found = summary(answered([1] * 40, [1] * 30 + [0] * 10)).headline
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_the_bootstrap_of_cells_is_the_bootstrap_of_items() -> None:
    rng = np.random.default_rng(0)
    gold, said = noisy(rng, 80, 2, 0.5)
    picks = rng.integers(80, size=(1000, 80))
    naive = [scikit("mcc", list(gold[pick]), list(said[pick])) for pick in picks]
    found = summary(answered(gold, said), "mcc").headline
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(naive, [0.025, 0.975])), abs=0.04
    )


@pytest.mark.parametrize(("metric", "k"), [("f1", 2), ("mcc", 2), ("macro-f1", 3), ("mcc", 3)])
def test_intervals_of_f1_and_mcc_cover_the_truth_95_times_in_100(metric: str, k: int) -> None:
    rng, hits = np.random.default_rng(11), 0
    truth = scikit(metric, *(list(x) for x in noisy(rng, 400_000, k, 0.55)))
    for trial in range(800):
        gold, said = noisy(rng, 300, k, 0.55)
        counts = np.bincount(gold * k + said, minlength=k * k).astype(float)
        measure = partial(of_cells, metric, k)
        found = statistics.bootstrap_counts_interval(counts, measure, draws=800, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 800 <= 0.97


@pytest.mark.parametrize(
    ("gold", "said", "metric", "value"),
    [
        ([0, 1] * 50, [0, 1] * 50, "f1", 1),
        ([0, 1] * 50, [0, 1] * 50, "mcc", 1),
        ([0, 1] * 50, [0, 0] * 50, "f1", 0),
        ([0, 1] * 50, [1, 1] * 50, "mcc", 0),
        ([0, 0] * 50, [0, 0] * 50, "f1", 0),
    ],
)
def test_where_nothing_varies_nothing_is_certain(
    gold: list[int], said: list[int], metric: str, value: float
) -> None:
    found = summary(answered(gold, said), metric).headline
    assert found.value == value and found.low <= value <= found.high
    assert found.high - found.low > 0.01
    narrower = summary(answered(gold * 9, said * 9), metric).headline
    assert (
        narrower.high - narrower.low < found.high - found.low or value == 0
    )  # nothing was learnt about F1 there


@pytest.mark.parametrize(
    ("gold", "said", "metric", "words"),
    [
        ([0, 0], [0, 0], "f1", "class 1 is neither"),
        ([0, 1], [1, 1], "mcc", "all answers"),
        ([1, 1], [0, 1], "mcc", "all items"),
    ],
)
def test_a_metric_that_is_undefined_is_said_to_be(
    gold: list[int], said: list[int], metric: str, words: str
) -> None:
    found = summary(answered(gold, said), metric)
    assert found.headline.value == 0 and words in found.notes[0]


def test_ties_share_an_answer() -> None:
    tied = [Prediction(str(i), i % 2, 0, (-0.7, -0.7), (5, 5), (9, 9)) for i in range(10)]
    found = summary(tied)
    assert found.headline.value == 0.5 and found.headline.flags == {"tie": 10}
    assert summary(tied, "f1").headline.value == pytest.approx(0.5)
    assert summary(tied, "f1", ties="first").headline.value == 0


def test_groups_have_the_metric_of_their_items() -> None:
    labelled = [
        Prediction(
            p.id, p.gold, p.pred, p.scores, p.tokens, p.characters, {"genre": "a" if i < 3 else "b"}
        )
        for i, p in enumerate(answered([1, 1, 0, 0, 1], [1, 0, 0, 1, 1]))
    ]
    groups = summary(labelled, "f1", groups=("genre",)).groups
    assert [(g.name, g.estimate.n) for g in groups] == [("a", 3), ("b", 2)]
    assert [g.estimate.value for g in groups] == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("predictions", "metric", "options", "error", "words"),
    [
        (answered([0, 2], [1, 2], 3), "f1", {}, UsageError, "macro-f1"),
        (answered([0, 1], [1, 0]), "spearman", {}, UsageError, "not a metric of classified"),
        (answered([0, 1], [1, 0]), "f1", {"reduction": "sum"}, UsageError, "metric of classified"),
        (answered([0, 1], [1, 0]), "f1", {"macro": ("task",)}, UsageError, "macro"),
        (
            [*answered([0], [1]), Prediction("q", 0, 0, (-1.0, -2.0, -3.0), (1,) * 3, (1,) * 3)],
            "mcc",
            {},
            DataError,
            "item q",
        ),
        ([Prediction("q", 0, 0, (-1.0,), (1,), (1,))], "accuracy", {}, DataError, "two classes"),
        ([Prediction("q", 2, 0, (-1.0, -2.0), (1, 1), (1, 1))], "mcc", {}, DataError, "item q"),
        (
            [Prediction("q", 1, 0, (-1.0, -1.0), (1, 1), (1, 1))],
            "mcc",
            {"ties": "strict"},
            DataError,
            "item q",
        ),
    ],
)
def test_a_misfit_is_a_typed_error(
    predictions: list[Prediction],
    metric: str,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        summary(predictions, metric, **options)


def test_collapse_is_named() -> None:
    def warnings(gold: list[int], said: list[int], metric: str = "accuracy") -> tuple[str, ...]:
        return collapse_warnings(answered(gold, said), metric)

    assert warnings([0, 1, 1, 0], [1, 1, 1, 1]) == ("constant prediction",)
    assert warnings([0, 1, 1, 1], [0, 1, 0, 1]) == (
        "no better than one class for all (accuracy 75.0)",
    )
    assert warnings([0, 1, 1, 1], [0, 1, 1, 1]) == ()
    assert collapse_warnings([], "accuracy") == ()


def test_collapse_is_judged_by_the_tasks_own_metric() -> None:
    gold = [1] * 3 + [0] * 5  # always 1: F1 = 2 * 3 / (3 + 8)
    said = [1, 0, 0] + [0] * 4 + [1]  # F1 = 2 / (3 + 2)
    predictions = answered(gold, said)
    assert collapse_warnings(predictions, "f1") == (
        "no better than one class for all (100 F1 54.5)",
    )
    assert collapse_warnings(predictions, "mcc") == ()
    worse_than_chance = answered([1, 1, 0, 0], [0, 1, 1, 1])
    assert collapse_warnings(worse_than_chance, "mcc") == (
        "no better than one class for all (100 MCC 0.0)",
    )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=12),
    st.sampled_from(["accuracy", "f1", "macro-f1", "mcc"]),
)
def test_contributions_are_jackknifed_and_average_to_the_metric(
    pairs: list[tuple[int, int]], metric: str
) -> None:
    gold, said, n = [g for g, _ in pairs], [s for _, s in pairs], len(pairs)
    found = contributions_by_seed([answered(gold, said)], metric)[0]
    value = scikit(metric, gold, said)
    without = [scikit(metric, gold[:i] + gold[i + 1 :], said[:i] + said[i + 1 :]) for i in range(n)]
    assert found == pytest.approx(
        value + (n - 1) * (np.mean(without) - np.array(without)), abs=1e-9
    )
    assert found.mean() == pytest.approx(value, abs=1e-9)
    if metric == "accuracy":
        assert found == pytest.approx([float(g == s) for g, s in pairs])


def seeds(rng: np.random.Generator, count: int, n: int, luck: float) -> list[list[Prediction]]:
    """Seeds that answer the same items: items differ in difficulty, seeds in how good they are by
    chance.
    """
    gold, ease = (rng.random(n) < 0.6).astype(int), rng.normal(0.8, 1, n)
    runs = []
    for better in rng.normal(0, luck, count):
        right = rng.random(n) < 1 / (1 + np.exp(-ease - better))
        runs.append(answered(gold, np.where(right, gold, 1 - gold)))
    return runs


def test_a_spread_is_over_the_metrics_of_the_seeds() -> None:
    runs = seeds(np.random.default_rng(0), 4, 200, 0.5)
    each = [summary(run, "f1").headline.value for run in runs]
    spread = summarize_seeds(runs, "f1")
    assert spread.mean.value == pytest.approx(np.mean(each))
    assert (spread.low, spread.high) == pytest.approx((min(each), max(each)))
    assert spread.sd == pytest.approx(np.std(each, ddof=1))
    assert (spread.num_seeds, spread.mean.n) == (4, 200)
    assert spread.mean.low < spread.mean.value < spread.mean.high
    assert tuple(spread.uncertain_mean.interval) == pytest.approx(
        (spread.mean.low, spread.mean.high)
    )


def test_one_seed_keeps_its_own_interval() -> None:
    (run,) = seeds(np.random.default_rng(0), 1, 200, 0.5)
    spread, alone = summarize_seeds([run], "mcc"), summary(run, "mcc").headline
    assert spread.num_seeds == 1 and math.isnan(spread.sd)
    assert (spread.mean.value, spread.mean.low, spread.mean.high) == (
        alone.value,
        alone.low,
        alone.high,
    )
    assert spread.uncertain_mean.variance > 0


def test_a_single_item_is_anything() -> None:
    for runs in ([answered([1], [1])], [answered([1], [1])] * 3):
        spread = summarize_seeds(runs, "accuracy")
        assert (
            spread.mean.value == spread.mean.high == 1
            and spread.mean.low < 0.3
            and spread.uncertain_mean.variance > 0
        )


def test_seeds_that_all_collapsed_alike_are_not_certain() -> None:
    spread = summarize_seeds([answered([0, 1] * 20, [1] * 40)] * 3, "mcc")
    assert spread.mean.value == 0 and spread.mean.low < -0.02 and spread.mean.high > 0.02
    assert spread.uncertain_mean.variance > 0


def test_interval_over_seeds_and_items_covers_the_truth() -> None:
    rng, hits = np.random.default_rng(4), 0
    x, w = np.polynomial.hermite_e.hermegauss(
        41
    )  # right answers of a seed: a mean over items, normal around 0.8
    right = (w / (1 + np.exp(-0.8 - x - 0.4 * x[:, None]))).sum(axis=1) / w.sum()
    truth = float((w * 1.2 * right / (1 + 0.2 * right)).sum() / w.sum())  # 60% are of class 1
    for _ in range(500):
        spread = summarize_seeds(seeds(rng, 5, 120, 0.4), "f1")
        hits += spread.mean.low <= truth <= spread.mean.high
    assert 0.93 <= hits / 500 <= 0.97


def test_seeds_of_other_items_cannot_be_averaged() -> None:
    run = answered([0, 1, 1], [0, 1, 0])
    with pytest.raises(NotComparable, match="item 0 against 1"):
        summarize_seeds([run, run[1:]], "accuracy")
    with pytest.raises(NotComparable, match="3 items, another 2"):
        summarize_seeds([run, run[:2]], "accuracy")
    with pytest.raises(UsageError, match="no seed"):
        summarize_seeds([], "accuracy")
    with pytest.raises(UsageError, match="not a metric"):
        summarize_seeds([run], "spearman")


def test_the_bootstrap_draws_counts_of_confusions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost grows with the cells of the confusion matrix, not with the number of items."""
    run = answered(*noisy(np.random.default_rng(0), 3000, 3, 0.7), 3)
    generator = Mock(wraps=np.random.default_rng(0))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: generator)
    summary(run, "macro-f1")
    assert {name for name, *_ in generator.method_calls} == {"multinomial"}
    assert all(len(args[1]) <= 3 * 3 for _, args, _ in generator.method_calls)
