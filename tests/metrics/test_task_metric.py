"""What a suite's judge says, averaged; bits per byte as a ratio of sums: by hand, by brute
force, by leaving out documents.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from prediction_rows import PredictionRow, from_rows
from scipy import stats

from antlm_bench.errors import DataError
from antlm_bench.metrics import MetricSettings, load_metric, summarize
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.metrics.task_metric import add_views
from antlm_bench.types import Floats, Summary

NAN = math.nan


def judged(*numbers: tuple[float, ...], tasks: str = "", lost: str = "") -> list[PredictionRow]:
    """Items by what is said of them; tasks: the label of each; lost: which do not fit."""
    return [
        PredictionRow(
            f"i{n}",
            -1,
            0,
            (-1.0, -2.0),
            (1, 1),
            (3, 3),
            {"task": tasks[n]} if tasks else {},
            ("too-long",) if str(n) in lost else (),
            said,
        )
        for n, said in enumerate(numbers)
    ]


def summary(
    predictions: list[PredictionRow], metric: str = "task-score", macro: tuple[str, ...] = ()
) -> Summary:
    return summarize(
        from_rows(predictions), suite="s", method="causal", metric=metric, macro=macro, groups=macro
    )


def test_the_mean_is_over_the_items_of_which_something_is_said() -> None:
    found = summary(judged((0.25,), (NAN,), (0.75,), (0.5,), lost="1"))
    assert (found.headline.value, found.headline.n, found.headline.flags) == (
        0.5,
        3,
        {"too-long": 1},
    )
    expected = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem([0.25, 0.5, 0.75]))
    assert (found.headline.low, found.headline.high) == pytest.approx(expected)
    assert found.notes == ()
    assert summary(judged((0.25,), (NAN,))).notes == (
        "left out: 1 item for which the task has no value",
    )


def test_right_and_wrong_have_the_score_interval_of_credits() -> None:
    found = summary(judged(*[(float(n % 4 == 0),) for n in range(20)]))
    assert (found.headline.low, found.headline.high) == pytest.approx(
        [float(end) for end in stats.binomtest(5, 20).proportion_ci(method="wilson")], abs=0.025
    )
    perfect = summary(judged((1.0,), (1.0,)))
    assert perfect.headline.high == 1.0 and perfect.headline.low < 0.9


def test_the_interval_is_that_of_items_drawn_again() -> None:
    values = np.random.default_rng(0).normal(3, 2, 80)
    found = summary(judged(*[(value,) for value in values]), "task-penalty")
    drawn = np.random.default_rng(1).choice(values, (20_000, 80)).mean(axis=1)
    assert found.headline.value == pytest.approx(values.mean())
    assert (found.headline.low, found.headline.high) == pytest.approx(
        np.quantile(drawn, [0.025, 0.975]), abs=0.03
    )


def test_a_group_s_tasks_count_equally_where_the_headline_says_so() -> None:
    found = summary(judged((1.0,), (0.0,), (0.5,), (0.25,), tasks="aaab"), macro=("task",))
    assert found.headline.value == pytest.approx((0.5 + 0.25) / 2)
    assert [(g.name, g.estimate.value, g.estimate.n) for g in found.groups] == [
        ("a", 0.5, 3),
        ("b", 0.25, 1),
    ]
    assert "clustered" not in found.views
    with pytest.raises(DataError, match="none of the items has a value") as caught:
        summary(judged((1.0,), (NAN,), tasks="ab"), macro=("task",))
    assert "i1" in caught.value.location


def test_further_numbers_are_views_and_what_is_not_there_is_said() -> None:
    made = judged((1.0, 2.0, NAN), (0.0, 4.0, NAN))
    found = add_views(summary(made), from_rows(made), ["", "length", "never"])
    assert (found.views["length"].value, found.views["length"].n) == (
        3.0,
        2,
    ) and "never" not in found.views
    assert found.notes == ("also: length 3", "not computed, because no item has a value: never")
    unjudged = [replace(one, judged=()) for one in made]
    assert (
        add_views(found, from_rows(unjudged), ["", "length"]).notes[-1]
        == "not computed by this engine: length"
    )
    with pytest.raises(DataError, match="no values of the metrics that the task's code"):
        summary(unjudged)


def documents(nats: list[float], sizes: list[int], words: list[float]) -> list[PredictionRow]:
    return [
        PredictionRow(f"d{n}", 0, 0, (-one,), (9,), (9,), judged=(float(size), float(word)))
        for n, (one, size, word) in enumerate(zip(nats, sizes, words, strict=True))
    ]


def test_bits_per_byte_and_perplexities_are_ratios_of_sums() -> None:
    found = summary(documents([10.0, 90.0], [5, 45], [2, 8]), "bits-per-byte")
    assert found.headline.value == pytest.approx(100 / 50 / math.log(2))
    assert found.views["byte-perplexity"].value == pytest.approx(math.exp(100 / 50))
    assert found.views["word-perplexity"].value == pytest.approx(math.exp(100 / 10))
    assert "word-perplexity" not in summary(documents([1.0], [2], [NAN]), "bits-per-byte").views
    with pytest.raises(DataError, match="1 document add up to 0"):
        summary(documents([0.0], [0], [1]), "bits-per-byte")


def jackknife_error(nats: Floats, sizes: Floats) -> float:
    """Return the standard error of nats per byte from leaving out each document."""
    n = len(nats)
    ratios = (nats.sum() - nats) / (sizes.sum() - sizes)
    return float(((n - 1) / n * np.sum((ratios - ratios.mean()) ** 2)) ** 0.5)


def test_the_interval_of_a_ratio_is_nearly_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 900, 60)
    nats = sizes * rng.normal(1.2, 0.2, 60)
    found = summary(documents(nats.tolist(), sizes.tolist(), [1.0] * 60), "bits-per-byte").headline
    pick = np.random.default_rng(4).integers(60, size=(20_000, 60))
    drawn = nats[pick].sum(axis=1) / sizes[pick].sum(axis=1) / math.log(2)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015
    )


def test_document_contributions_have_the_ratios_mean_and_variance() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(20, 900, 200)
    nats = sizes * rng.normal(1.2, 0.2, 200)
    made = documents(nats.tolist(), sizes.tolist(), [1.0] * 200)
    values = load_metric("bits-per-byte", MetricSettings()).per_item(
        build_table(from_rows(made), set())
    )
    assert values.mean() == pytest.approx(nats.sum() / sizes.sum() / math.log(2))
    error = jackknife_error(nats, sizes) / math.log(2)
    assert values.std(ddof=1) / 200**0.5 == pytest.approx(error, rel=1e-9)


def test_a_document_without_bytes_does_not_break_the_interval() -> None:
    headline = summary(documents([3.0, 1.0], [2, 0], [1.0, 1.0]), "bits-per-byte").headline
    assert headline.low <= headline.value <= headline.high


def test_intervals_of_ratios_of_few_documents_hold_the_truth() -> None:
    rng, trials, covered = np.random.default_rng(6), 400, 0
    for _ in range(trials):
        sizes = np.exp(rng.normal(7, 0.8, 10)).astype(int)
        bits = sizes * rng.normal(1.2, 0.2, 10)
        made = documents((bits * math.log(2)).tolist(), sizes.tolist(), [1.0] * 10)
        headline = summary(made, "bits-per-byte").headline
        covered += headline.low <= 1.2 <= headline.high
    assert covered >= 0.91 * trials  # 93% in 3000 trials
