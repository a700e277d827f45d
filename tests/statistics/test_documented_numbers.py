"""Numbers that a reader re-derives from docs/explanation/statistics.md and exported items
with scipy and statsmodels alone.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from documented_pages import read_code
from pair_runs import make_cell, write_run
from prediction_rows import PredictionRow
from scipy import optimize, stats
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

import antlm_bench
from antlm_bench import statistics
from antlm_bench.commands.export import export
from antlm_bench.comparison import compare_runs
from antlm_bench.results.seeds import average_seeds
from antlm_bench.statistics.acquisition import pearson_correlation
from antlm_bench.statistics.regression import PartialCorrelations, partial_r2_test
from antlm_bench.types import Floats, Run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "statistics.md"
CRITICAL = stats.norm.ppf(0.975)


# ---- what a reader has: exported items


class Items:
    """The rows of `antlm-bench export --format csv`."""

    def __init__(self, folder: Path, *opened_runs: Run) -> None:
        path = folder / "items.csv"
        export([run.path for run in opened_runs], "csv", path)
        with path.open(encoding="utf-8", newline="") as file:
            self._rows = list(csv.DictReader(file))

    def column(self, name: str, **keys: str) -> Floats:
        """Return a column (n,) of the rows with these values of other columns."""
        return np.array(
            [
                float(row[name])
                for row in self._rows
                if all(row[key] == value for key, value in keys.items())
            ]
        )


def choice_rows(credits: Sequence[float], task: str = "") -> list[PredictionRow]:
    """Return items of two options, the first of which is right."""
    labels = {"task": task} if task else {"paradigm": "p"}
    return [
        PredictionRow(
            f"i{i}", 0, 0 if credit else 1, (-1.0, -2.0 if credit else -0.5), (3, 3), (9, 9), labels
        )
        for i, credit in enumerate(credits)
    ]


def rating_rows(scores: Floats, ratings: Floats) -> list[PredictionRow]:
    """Return rated items, the first option of which has a score."""
    return [
        PredictionRow(f"w{i}", float(rating), 0, (float(score), 0.0), (1, 1), (3, 3), {"kind": "x"})
        for i, (score, rating) in enumerate(zip(scores, ratings, strict=True))
    ]


def finetuned_cells(credits_by_task: dict[str, Floats]) -> list:
    """Return the cells of tasks with credits (S, n)."""
    cells = []
    for task, credits in credits_by_task.items():
        for seed, of_seed in enumerate(credits):
            cell, rows = make_cell(
                choice_rows(of_seed, task),
                suite=f"glue-2025.{task}",
                method="finetune-causal",
                macro=(),
                groups=(),
                reduction="class",
                collection="glue-2025",
                task=task,
            )
            cells.append((replace(cell, seed=seed), rows))
    return cells


# ---- 1: an accuracy


def documented_z(right: int, n: int, t: float) -> float:
    """Return z of one stratum of credits by steps 1 to 4: the fit is t itself."""
    variance = t * (1 - t)
    v = variance / n * (n + 4) / (n + 3)
    absolute_third = variance * (t**2 + (1 - t) ** 2)
    step = absolute_third / n**2 / v
    gap = right / n - t
    z0 = np.sign(gap) * max(abs(gap) - 0.2 * step, 0) / v**0.5
    a = variance * (1 - 2 * t) / n**2 / v**1.5 / 6
    root = optimize.brentq(lambda z: a * z**2 + z - z0 - a, -4, 4)
    return float(root)


def test_an_interval_of_an_accuracy_follows_from_exported_items(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", make_cell(choice_rows([1] * 37 + [0] * 3)))

    correct = Items(tmp_path, run).column("correct")
    right, n = int(correct.sum()), len(correct)
    low = optimize.brentq(lambda t: documented_z(right, n, t) - CRITICAL, 0.7, 0.92)
    high = optimize.brentq(lambda t: documented_z(right, n, t) + CRITICAL, 0.93, 0.999)

    headline = run.cells[0].summary.headline
    assert headline.value == pytest.approx(right / n)
    assert (headline.low, headline.high) == pytest.approx((low, high), abs=1e-8)


# ---- 2: a difference of accuracies


def documented_p(lost: int, gained: int, n: int) -> float:
    """Return p of no difference in one stratum: the fit splits losses and gains evenly."""
    moved = np.array([lost, gained]) / n
    pooled = (moved * n + 0.5) / (n + 1)
    cells = np.array([lost, gained]) + 4 * pooled
    # Under a mean of 0 both moves have the same probability, that of their mean.
    variance = cells.sum() / (n + 4)
    v = variance / n * (n + 4) / (n + 3)
    step = variance / n**2 / v  # |x|^3 = x^2 for -1, 0 and 1
    gap = abs(gained - lost) / n
    return float(2 * stats.norm.sf((gap - 0.2 * step) / v**0.5))  # symmetric: no skewness


def test_p_of_a_difference_follows_from_exported_items(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", make_cell(choice_rows([1] * 9 + [0] * 3 + [1] * 88)), name="a")
    b = write_run(tmp_path / "b", make_cell(choice_rows([0] * 9 + [1] * 91)), name="b")

    items = Items(tmp_path, a, b)
    change = items.column("correct", model="b") - items.column("correct", model="a")
    p = documented_p(int((change < 0).sum()), int((change > 0).sum()), len(change))

    [comparison] = compare_runs(a, b)
    assert comparison.headline.value == pytest.approx(change.mean())
    assert comparison.headline.p == pytest.approx(p, abs=1e-9)


# ---- 3: a mean over seeds and a paired difference of seeds


def documented_seed_interval(values: Floats) -> tuple[float, float]:
    """Return the interval of the mean of values (S, n) by "Seeds and items"."""
    s, n = values.shape
    seed_part = values.mean(axis=1).var(ddof=1) / s
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    mean_square = (residuals**2).sum() / ((s - 1) * (n - 1))
    item_part = max(values.mean(axis=0).var(ddof=1) / n - mean_square / (s * n), 0.0)
    share = max(seed_part / (seed_part + item_part) - 0.05, 0.0) / 0.95
    t_items, t_seeds = stats.t.ppf(0.975, [n - 1, s - 1])
    half = (t_items + (t_seeds - t_items) * share) * (seed_part + item_part) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def draw_credits(rate: float, seed: int, shape: tuple[int, int] = (3, 60)) -> Floats:
    rng = np.random.default_rng(seed)
    rates = np.clip(rate + rng.normal(0, 0.05, (shape[0], 1)) + rng.normal(0, 0.2, shape[1]), 0, 1)
    return (rng.random(shape) < rates).astype(float)


def read_seeds(items: Items, **keys: str) -> Floats:
    return np.stack([items.column("correct", seed=str(seed), **keys) for seed in range(3)])


def test_a_mean_over_seeds_follows_from_exported_items(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", *finetuned_cells({"rte": draw_credits(0.7, 1)}))

    credits = read_seeds(Items(tmp_path, run))

    headline = average_seeds(run).cells[0].summary.headline
    assert headline.value == pytest.approx(credits.mean())
    assert (headline.low, headline.high) == pytest.approx(documented_seed_interval(credits))


def test_holm_adjusted_differences_of_tasks_follow_from_exported_items(tmp_path: Path) -> None:
    tasks = {"rte": 0.08, "boolq": 0.2, "wsc": 0.0}
    a = {task: draw_credits(0.65, len(task)) for task in tasks}
    b = {task: draw_credits(0.65 + gain, 9 + len(task)) for task, gain in tasks.items()}
    runs = [
        write_run(tmp_path / name, *finetuned_cells(credits), name=name)
        for name, credits in (("a", a), ("b", b))
    ]

    items = Items(tmp_path, *runs)
    changes = {
        task: read_seeds(items, model="b", task=task) - read_seeds(items, model="a", task=task)
        for task in tasks
    }
    intervals = [documented_seed_interval(change) for change in changes.values()]

    [comparison] = compare_runs(*runs)
    assert [(group.low, group.high) for group in comparison.groups] == [
        pytest.approx(interval) for interval in intervals
    ]
    expected = multipletests([group.p for group in comparison.groups], method="holm")[1]
    assert [group.adjusted for group in comparison.groups] == pytest.approx(expected)
    for (low, high), group in zip(intervals, comparison.groups, strict=True):
        assert group.p is not None and (group.p < 0.05) == (low > 0 or high < 0)


# ---- 4: Spearman's correlation


def jackknife(statistic: Callable[[Floats, Floats], float], x: Floats, y: Floats) -> float:
    """Return the jackknife's standard error of a statistic of pairs."""
    n = len(x)
    values = [statistic(np.delete(x, i), np.delete(y, i)) for i in range(n)]
    return float(((n - 1) / n * np.sum((values - np.mean(values)) ** 2)) ** 0.5)


def test_a_correlation_follows_from_exported_items(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ratings = rng.random(400)
    scores = 3 * ratings + rng.normal(0, 1, 400)
    cell = make_cell(
        rating_rows(scores, ratings), suite="wug", metric="spearman", macro=(), groups=("kind",)
    )
    run = write_run(tmp_path / "a", cell)

    items = Items(tmp_path, run)
    share, rating = items.column("share"), items.column("gold")
    rho = stats.spearmanr(share, rating).statistic
    # The page's influences are those of leaving out an item, up to 1/n.
    error = jackknife(
        lambda x, y: float(np.arctanh(stats.spearmanr(x, y).statistic)), share, rating
    )
    half = stats.t.ppf(0.975, 399) * error

    headline = run.cells[0].summary.headline
    assert headline.value == pytest.approx(rho)
    assert (headline.low, headline.high) == pytest.approx(
        (np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)), abs=0.002
    )


# ---- 5: surprisal


def test_surprisals_have_the_t_interval_and_test_over_words() -> None:
    change = np.array([0.3, -0.1, 0.2, 0.4, 0.05])
    theirs = stats.ttest_1samp(change, 0)

    interval, p = statistics.t_test_of_means(change, np.full(5, 1 / 5))

    assert p == pytest.approx(theirs.pvalue)
    assert tuple(interval) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


# ---- 6: an AUC, and the difference of two


def judgement_rows(labels: Floats, scores: Floats) -> list[PredictionRow]:
    """Return judged sentences with a log-probability."""
    return [
        PredictionRow(f"s{i}", float(label), 0, (float(score),), (4,), (9,), {})
        for i, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


def documented_placements(labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Return the placements of acceptable sentences and of others by comparing all pairs."""
    gaps = scores[labels == 1][:, None] - scores[labels == 0]
    wins = (gaps > 0) + (gaps == 0) / 2
    return wins.mean(axis=1), wins.mean(axis=0)


def documented_model_variance(auc: float) -> float:
    """Return the variance that two more items of each class have."""
    return (auc / (2 - auc) + 2 * auc**2 / (1 + auc)) / 2 - auc**2


def documented_auc_error(
    placements: tuple[Floats, Floats], model_variance: float
) -> tuple[float, float]:
    """Return the standard error by "AUC", and Satterthwaite's degrees of freedom."""
    terms = [
        ((len(x) - 1) * x.var(ddof=1) + 2 * model_variance) / (len(x) + 1) / len(x)
        for x in placements
    ]
    squares = [term**2 / (len(x) - 1) for term, x in zip(terms, placements, strict=True)]
    return sum(terms) ** 0.5, sum(terms) ** 2 / sum(squares)


def test_an_auc_and_a_difference_follow_from_exported_items(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(80) < 50).astype(float)
    by_name = {"a": 3 * labels, "b": labels}
    runs = [
        write_run(
            tmp_path / name,
            make_cell(
                judgement_rows(labels, shift + rng.normal(0, 2, 80)),
                metric="auc",
                macro=(),
                groups=(),
            ),
            name=name,
        )
        for name, shift in by_name.items()
    ]

    items = Items(tmp_path, *runs)
    gold = items.column("gold", model="a")
    aucs, sides = {}, {}
    for name in by_name:
        sides[name] = documented_placements(gold, items.column("score", model=name))
        aucs[name] = roc_auc_score(gold, items.column("score", model=name))
    error, df = documented_auc_error(sides["a"], documented_model_variance(aucs["a"]))
    logit = np.log(aucs["a"] / (1 - aucs["a"]))
    half = stats.t.ppf(0.975, df) * error / (aucs["a"] * (1 - aucs["a"]))
    headline = runs[0].cells[0].summary.headline
    assert headline.value == pytest.approx(aucs["a"])
    assert (headline.low, headline.high) == pytest.approx(
        (1 / (1 + np.exp(half - logit)), 1 / (1 + np.exp(-half - logit)))
    )

    changes = tuple(b - a for a, b in zip(sides["a"], sides["b"], strict=True))
    model_variance = np.mean([documented_model_variance(auc) for auc in aucs.values()])
    error, df = documented_auc_error(changes, model_variance)
    parts = [(x.var() / len(x), stats.kurtosis(x, fisher=False), len(x)) for x in changes]
    badly = 2 * sum(v for v, _, _ in parts) ** 2 / sum(v**2 * (k - 1) / n for v, k, n in parts)
    change, df = aucs["b"] - aucs["a"], min(df, badly)
    [comparison] = compare_runs(*runs)
    half = stats.t.ppf(0.975, df) * error
    assert comparison.headline.value == pytest.approx(change)
    assert (comparison.headline.low, comparison.headline.high) == pytest.approx(
        (change - half, change + half)
    )
    assert comparison.headline.p == pytest.approx(2 * stats.t.sf(abs(change) / error, df))


# ---- 7: effects of an experiment


def test_effects_follow_from_the_table_of_surprisals() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    values = {"gap": [4.1, 5.0, 6.3, 3.8], "noun": [9.8, 8.1, 9.0, 10.4]}
    frame = pd.DataFrame(
        [
            {"item": f"{item}", "condition": condition, "word_index": 1, "surprisal_bits": value}
            for condition, column in values.items()
            for item, value in enumerate(column)
        ]
    )
    frame["word"] = "w"

    [effect] = antlm_bench.effects(frame).effects

    theirs = stats.ttest_rel(*values.values())
    low, high = theirs.confidence_interval(0.95)
    assert (effect.mean.t, effect.mean.p) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert (effect.mean.low, effect.mean.high) == pytest.approx((low, high))
    mean = np.mean(np.subtract(*values.values()))
    stated = f"{mean:.3f}, interval {low:.3f} to {high:.3f}, t = {theirs.statistic:.3f}, p = "
    assert stated + f"{theirs.pvalue:.3f}".lstrip("0") in text


# ---- the page itself


def test_the_examples_of_the_page_are_true() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    credits_ = np.repeat([1.0, 0.0], [37, 3])
    changes = np.repeat([-1.0, 1.0, 0.0], [9, 3, 88])
    low, high = statistics.score_interval(credits_, np.zeros(40, np.int32), np.ones(1))
    (worst, best), p = statistics.score_test(changes, np.zeros(100, np.int32), np.ones(1))
    wilson = proportion_confint(37, 40, method="wilson")
    theirs = mcnemar([[88, 9], [3, 0]], exact=False, correction=False).pvalue

    assert f"interval {100 * low:.1f} to {100 * high:.1f}." in text
    assert f"(Wilson: {100 * wilson[0]:.1f} to {100 * wilson[1]:.1f}.)" in text
    assert f"interval {100 * worst:.1f} to {100 * best:.1f}, p = {p:.3f}".replace("0.", ".") in (
        text.replace("0.", ".")
    )
    assert f"(McNemar: p = {theirs:.3f}.)".replace("0.", ".") in text


def test_the_example_code_of_the_page_runs() -> None:
    blocks = read_code(PAGE.read_text(encoding="utf-8"), "python")

    assert len(blocks) >= 2
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), {})


def folded_normal_p(s: float, r: float, error: float) -> float:
    """Return the exact p of a true correlation of s: r^2 is the square of a normal variable."""
    distance = abs(r - s)
    far = stats.norm.sf(distance / error) + stats.norm.cdf(-(2 * s + distance) / error)
    near = stats.norm.cdf(-distance / error) - stats.norm.cdf((distance - 2 * s) / error)
    return float(far + (near if s > distance else 0))


def test_a_partial_r2_follows_from_the_documented_steps() -> None:
    text = PAGE.read_text(encoding="utf-8")
    code = read_code(text, "python")[1]
    names: dict[str, Any] = {}
    exec(code.rpartition("partial_r2_test(")[0], names)
    correlations = PartialCorrelations(np.array([0.1]), names["left_out"][:, None])
    limit = 2 * stats.norm.sf(stats.t.ppf(0.975, 204))
    low = optimize.brentq(lambda s: folded_normal_p(s, 0.1, 0.04) - limit, 0, 0.0999)
    high = optimize.brentq(lambda s: folded_normal_p(s, 0.1, 0.04) - limit, 0.1, 0.5)

    interval, p = partial_r2_test(correlations, np.ones(1))

    assert p == pytest.approx(2 * stats.t.sf(2.5, 204), rel=1e-6)
    assert tuple(interval) == pytest.approx((low**2, high**2), rel=0.05)
    shown = f"p = {p:.3f} (2 T(-2.5)), interval {interval.low:.4f} to {interval.high:.4f}."
    assert shown.replace("0.", ".") in " ".join(text.split())


def test_a_correlation_of_ages_follows_from_the_documented_steps() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    x, noise = np.random.default_rng(0).normal(size=(2, 30))
    x = (x - x.mean()) / x.std()
    noise -= noise.mean() + x * (x @ noise) / 30
    y = 0.6 * x + 0.8 * noise / noise.std()
    t = stats.t.ppf(0.975, 28)
    half_width = np.arctanh(t / (28 + t**2) ** 0.5)
    expected = np.tanh(np.arctanh(0.6) + half_width * np.array([-1, 1]))

    correlation = pearson_correlation(x, y)

    assert correlation is not None
    r, p, interval = correlation
    assert (r, p) == pytest.approx(stats.pearsonr(x, y))
    assert tuple(interval) == pytest.approx(expected)
    shown = f"r = {r:.2f} of 30 words: p = {p:.4f}, interval {interval.low:.2f} to "
    assert f"{shown}{interval.high:.2f}.".replace("0.", ".") in text


def test_the_examples_of_other_intervals_are_true() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    lengths, rates = np.array([100.0, 200, 300, 400]), np.array([1.0, 1.2, 1.1, 1.3])
    without = [
        np.average(np.delete(rates, i), weights=np.delete(lengths, i)) for i in range(len(rates))
    ]
    error = (3 / 4 * np.sum((without - np.mean(without)) ** 2)) ** 0.5
    value, df = np.average(rates, weights=lengths), 1000**2 / np.sum(lengths**2) - 1
    factor = np.exp(stats.t.ppf(0.975, df) * error / value)
    assert f"{value:.3f}, interval {value / factor:.3f} to {value * factor:.3f}" in text

    means = np.array([0.9, 0.8, 1, 0.7, 0.9, 0.6, 0.8, 1])
    interval, _ = statistics.sampled_groups_interval(means, np.full(8, 1 / 8), (0.0, 1.0))
    plain = stats.t.interval(0.95, 7, loc=means.mean(), scale=stats.sem(means))
    assert interval is not None
    assert f"interval of {100 * interval.low:.1f} to {100 * interval.high:.1f}" in text
    assert f"(Plain t: {100 * plain[0]:.1f} to {100 * plain[1]:.1f}.)" in text

    gold, predicted = (
        np.repeat([0, 0, 1, 1], [30, 10, 4, 36]),
        np.repeat([0, 1, 0, 1], [30, 10, 4, 36]),
    )
    rng = np.random.default_rng(1)
    ends = []
    for prior, share in (
        (np.array([0.25, 0.5, 0.5, 0.25]), 0.025),
        ([0.5, 0.25, 0.25, 0.5], 0.975),
    ):
        rates = rng.dirichlet(np.array([30, 10, 4, 36]) + prior, 100_000)
        f1 = 2 * rates[:, 3] / (2 * rates[:, 3] + rates[:, 1] + rates[:, 2])
        ends.append(float(np.quantile(f1, share)))
    value = f1_score(gold, predicted)
    stated = re.search(r"F1 is ([\d.]+), interval ([\d.]+) to ([\d.]+)", text)
    assert stated is not None
    assert [float(x) for x in stated.groups()] == pytest.approx(
        [100 * value, 100 * ends[0], 100 * ends[1]],
        abs=0.5,  # of random draws
    )


def test_the_example_of_decisions_by_a_threshold_is_true() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    gold, decided = np.repeat([1, 0], 20), np.repeat([1, 0, 1, 0], [18, 2, 4, 16])
    low = optimize.brentq(lambda t: documented_z(34, 40, t) - CRITICAL, 0.65, 0.82)
    high = optimize.brentq(lambda t: documented_z(34, 40, t) + CRITICAL, 0.88, 0.97)
    rng = np.random.default_rng(1)
    ends = []
    for prior, share in (([0.25, 0.5, 0.5, 0.25], 0.025), ([0.5, 0.25, 0.25, 0.5], 0.975)):
        tn, fp, fn, tp = rng.dirichlet(np.array([16, 4, 2, 18]) + prior, 100_000).T
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        ends.append(float(np.quantile((tp * tn - fp * fn) / product**0.5, share)))

    assert f"accuracy 85.0, interval {100 * low:.1f} to {100 * high:.1f};" in text
    stated = re.search(r"MCC (\d+\.\d), interval (\d+\.\d) to (\d+\.\d)", text)
    assert stated is not None
    mcc = matthews_corrcoef(gold, decided)
    assert [float(x) for x in stated.groups()] == pytest.approx(
        [100 * mcc, 100 * ends[0], 100 * ends[1]],
        abs=0.6,  # of random draws
    )
