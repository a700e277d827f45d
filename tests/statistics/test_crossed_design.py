"""Seeds x items: the variance by a slow two-way table, the intervals by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from antlm_bench import statistics
from antlm_bench.statistics.crossed_design import UncertainValue, VarianceComponent
from antlm_bench.types import Floats


def crossed(
    rng: np.random.Generator, seeds: int, items: int, sd: tuple[float, float, float]
) -> Floats:
    """Normal effects of seeds, items, and their interaction around 0."""
    s, i, both = sd
    return (
        rng.normal(0, s, (seeds, 1))
        + rng.normal(0, i, (1, items))
        + rng.normal(0, both, (seeds, items))
    )


def two_way(y: Floats) -> tuple[float, float, float]:
    """Mean squares of seeds, items and the rest, summed cell by cell."""
    s, n = y.shape
    grand = sum(y[a, b] for a in range(s) for b in range(n)) / (s * n)
    rows, columns = [y[a].sum() / n for a in range(s)], [y[:, b].sum() / s for b in range(n)]
    seeds = n * sum((r - grand) ** 2 for r in rows) / (s - 1)
    items = s * sum((c - grand) ** 2 for c in columns) / (n - 1)
    rest = sum((y[a, b] - rows[a] - columns[b] + grand) ** 2 for a in range(s) for b in range(n))
    return seeds, items, rest / ((s - 1) * (n - 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(2, 9), st.floats(0, 3), st.integers(0, 1000))
def test_the_variance_is_that_of_the_two_way_table(s: int, n: int, luck: float, seed: int) -> None:
    y = crossed(np.random.default_rng(seed), s, n, (luck, 1, 1))
    seeds, items, rest = two_way(y)
    found = statistics.two_level_mean(y)
    assert found.value == pytest.approx(y.mean())
    assert found.variance == pytest.approx((seeds + max(items - rest, 0)) / (s * n))


def test_the_quantile_is_cochrans_but_for_a_twentieth() -> None:
    y = crossed(np.random.default_rng(0), 3, 40, (1, 1, 0.5))
    seeds, items, rest = two_way(y)
    found = statistics.two_level_mean(y)
    share = seeds / (seeds + items - rest)
    t = (
        stats.t.ppf(0.975, 39)
        + (stats.t.ppf(0.975, 2) - stats.t.ppf(0.975, 39)) * (share - 0.05) / 0.95
    )
    half = t * ((seeds + items - rest) / 120) ** 0.5
    assert share > 0.1
    assert tuple(found.interval) == pytest.approx((found.value - half, found.value + half))
    assert found.p == pytest.approx(
        2 * stats.t.sf(abs(found.value) / found.variance**0.5, found.df)
    )
    assert 2 < found.df < 41


def test_seeds_that_hardly_contribute_do_not_widen_the_interval() -> None:
    for seeds in (
        VarianceComponent(0.0, 1),
        VarianceComponent(0.05, 1, 0.05**0.5),
        VarianceComponent(0.05, 4),
    ):
        assert UncertainValue(
            0.0, (VarianceComponent(0.95 if seeds.variance else 1.0, 30),), (seeds,)
        ).df == pytest.approx(30)


@pytest.mark.long
@pytest.mark.parametrize("df", [1, 2, 4])
def test_few_seeds_cover_93_to_97_percent(
    df: int,
) -> None:
    """Integrated over what the seeds' variance is seen as: nothing is drawn. share: what it truly
    is of the whole.
    """
    seen = stats.chi2.ppf((np.arange(600) + 0.5) / 600, df) / df
    for share in (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999, 1):
        halves = [
            UncertainValue(
                0.0,
                (VarianceComponent(1 - share),),
                (VarianceComponent(share * u, df, (share * u) ** 0.5),),
            ).interval.high
            for u in seen
        ]
        assert 0.93 <= (2 * stats.norm.cdf(halves) - 1).mean() <= 0.97


def test_one_seed_or_one_item_gives_a_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=30)
    theirs = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
    assert tuple(statistics.two_level_mean(values[None]).interval) == pytest.approx(theirs)
    assert tuple(statistics.two_level_mean(values[:, None]).interval) == pytest.approx(theirs)
    assert math.isnan(statistics.two_level_mean(values[:1, None]).variance)


TRIALS = 1500
NOISE = 3 * (0.05 * 0.95 / TRIALS) ** 0.5  # of a share of 5% that is counted in so many trials


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("luck", [0, 1, 10, 100])
@pytest.mark.parametrize(("items", "interaction"), [(50, 1.0), (200, 0.4)])
def test_interval_covers_95_percent_for_any_seed_variance(
    seeds: int, luck: float, items: int, interaction: float
) -> None:
    """luck: the variance that seeds add to a mean, in that of the rest."""
    rng = np.random.default_rng(1)
    sd = (luck * (1 + interaction**2 / seeds) * seeds / items) ** 0.5
    hits = 0
    for _ in range(TRIALS):
        low, high = statistics.two_level_mean(
            crossed(rng, seeds, items, (sd, 1, interaction))
        ).interval
        hits += low <= 0 <= high
    assert 0.93 - NOISE <= hits / TRIALS <= 0.97 + NOISE


@pytest.mark.long
def test_binary_outcomes_are_covered_too() -> None:
    rng, trials = np.random.default_rng(2), 2000
    x, w = np.polynomial.hermite_e.hermegauss(
        41
    )  # items and seeds add up to one normal of variance 1 + 0.3^2
    truth = float((w / (1 + np.exp(-0.5 - x * 1.09**0.5))).sum() / w.sum())
    hits = 0
    for _ in range(trials):
        rate = 1 / (1 + np.exp(-0.5 - rng.normal(0, 1, (1, 150)) - rng.normal(0, 0.3, (4, 1))))
        low, high = statistics.two_level_mean(
            (rng.random(rate.shape) < rate).astype(float)
        ).interval
        hits += low <= truth <= high
    assert 0.93 <= hits / trials <= 0.975


def test_between_single_seeds_the_difference_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=50), rng.normal(0.4, 1, size=50)
    change = statistics.two_level_change(a[None], b[None])
    theirs = stats.ttest_rel(b, a)
    assert (change.value, change.p) == pytest.approx((b.mean() - a.mean(), theirs.pvalue))
    assert tuple(change.interval) == pytest.approx(tuple(theirs.confidence_interval()))


def test_one_item_is_nearly_welchs_test_of_seeds() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=5), rng.normal(1, 2, size=4)
    change = statistics.two_level_change(a[:, None], b[:, None])
    theirs = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    assert change.value == pytest.approx(b.mean() - a.mean())
    assert change.variance == pytest.approx(theirs.std_meandiff_separatevar**2)
    interval = theirs.tconfint_diff(usevar="unequal")
    assert tuple(change.interval) == pytest.approx(interval, rel=0.05)
    assert change.p == pytest.approx(theirs.ttest_ind(usevar="unequal")[1], rel=0.05)


def test_two_seeds_of_each_run_are_a_paired_t_test() -> None:
    """However much the two runs' seeds differ in how much they differ (Scheffe 1943)."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 1)), rng.normal(1, 5, size=(2, 1))
    change = statistics.two_level_change(a, b)
    theirs = stats.ttest_rel(b[:, 0], a[:, 0])
    assert (change.value, change.p) == pytest.approx(((b - a).mean(), theirs.pvalue))
    assert tuple(change.interval) == pytest.approx(tuple(theirs.confidence_interval()))
    more = rng.normal(0, 5, size=(5, 1))  # three seeds of five say nothing beside two
    contrast = (a[1] - a[0])[0] / 2 + (more[0] - more[1])[0] / 10**0.5
    assert statistics.two_level_change(a, more).variance == pytest.approx(contrast**2)


@pytest.mark.long
@pytest.mark.parametrize("counts", [(2, 2), (3, 3), (5, 5), (5, 3), (2, 5), (2, 10)])
@pytest.mark.parametrize("luck", [(0.08, 0.08), (1.0, 0.5)])
def test_equal_models_differ_5_times_in_100(
    counts: tuple[int, int], luck: tuple[float, float]
) -> None:
    rng = np.random.default_rng(5)
    lost, wide = 0, 0
    for _ in range(TRIALS):
        items = rng.normal(0, 1, (1, 100))
        a, b = (
            items + crossed(rng, count, 100, (sd, 0.3, 0.6))
            for count, sd in zip(counts, luck, strict=True)
        )
        change = statistics.two_level_change(a, b)
        lost += change.p < 0.05
        wide += change.interval.low <= 0 <= change.interval.high
    assert 0.03 - NOISE <= lost / TRIALS <= 0.07 + NOISE
    assert lost + wide == TRIALS


def test_same_run_has_no_difference() -> None:
    a = (np.random.default_rng(0).random((1, 40)) < 0.5).astype(float)
    change = statistics.two_level_change(a, a)
    assert (change.value, change.interval, change.p) == (0, (0, 0), 1)
    with pytest.raises(ValueError, match="40 and 39 items"):
        statistics.two_level_change(a, a[:, 1:])
    with pytest.raises(ValueError, match="1 and 2 seeds"):
        statistics.two_level_change(a, np.tile(a, (2, 1)), paired=True)


def test_paired_seeds_are_the_two_way_table_of_their_differences() -> None:
    rng = np.random.default_rng(3)
    a, b = crossed(rng, 4, 30, (1, 1, 1)), crossed(rng, 4, 30, (1, 1, 1))
    paired = statistics.two_level_change(a, b, paired=True)
    assert paired == statistics.two_level_mean(b - a)


def test_seed_effects_that_both_runs_share_cancel_if_paired() -> None:
    rng = np.random.default_rng(4)
    seed_effects = rng.normal(0, 1, (4, 1))
    a, b = (seed_effects + crossed(rng, 4, 200, (0.01, 0.1, 0.1)) for _ in range(2))
    paired = statistics.two_level_change(a, b, paired=True)
    assert paired.variance < 0.01 * statistics.two_level_change(a, b).variance


def test_one_item_and_paired_seeds_are_the_paired_t_test_over_seeds() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(5, 1)), rng.normal(1, 1, size=(5, 1))
    change = statistics.two_level_change(a, b, paired=True)
    theirs = stats.ttest_rel(b[:, 0], a[:, 0])
    assert change.p == pytest.approx(theirs.pvalue)
    assert tuple(change.interval) == pytest.approx(tuple(theirs.confidence_interval()))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(2, 30),
    st.floats(-0.5, 0.5),
    st.sampled_from(["paired", "independent", "collapsed", "mean of tasks"]),
    st.integers(0, 1000),
)
def test_p_is_below_5_percent_exactly_where_the_interval_excludes_0(
    seeds_a: int, seeds_b: int, items: int, shift: float, design: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if design == "paired":
        seeds_b = seeds_a
    a, b = (
        (rng.random((seeds, items)) < np.clip(0.5 + gain + rng.normal(0, 0.1, (seeds, 1)), 0, 1))
        for seeds, gain in ((seeds_a, 0.0), (seeds_b, shift))
    )
    a, b = a.astype(float), b.astype(float)
    collapsed = {"collapsed_a": rng.random(seeds_a) < 0.3, "collapsed_b": rng.random(seeds_b) < 0.3}
    if design in ("paired", "independent"):
        change = statistics.two_level_change(a, b, paired=design == "paired")
    else:
        change = statistics.two_level_change(a, b, **collapsed)
    if design == "mean of tasks":
        asymmetric = statistics.Interval(shift - 0.2, shift + 0.1)
        change = statistics.weighted_mean(
            [change, statistics.uncertain_from_interval(shift, asymmetric)]
        )
    low, high = change.interval
    assert (change.p < 0.05) == (low > 0 or high < 0)


def test_a_macro_average_adds_variances() -> None:
    parts = [
        UncertainValue(0.6, seed_components=(VarianceComponent(0.01, 4, 0.1),)),
        UncertainValue(0.8, seed_components=(VarianceComponent(0.04, 9, -0.2),)),
    ]
    found = statistics.weighted_mean(parts)
    assert found.value == pytest.approx(0.7)
    assert found.variance == pytest.approx(0.05 / 4)
    assert found.df == pytest.approx(0.05**2 / (0.01**2 / 3.6 + 0.04**2 / 8.6) + 0.4)
    over_items = statistics.weighted_mean(
        [UncertainValue(0.0, part.seed_components) for part in parts]
    )
    assert over_items.df == pytest.approx(0.05**2 / (0.01**2 / 4 + 0.04**2 / 9))
    weighted = statistics.weighted_mean(parts, [3, -1])
    assert (weighted.value, weighted.variance) == pytest.approx((1.0, 0.09 + 0.04))
    pair = statistics.weighted_mean(
        [*parts, UncertainValue(0.1, seed_components=(VarianceComponent(0.09, 1, 0.3),))]
    )
    assert (pair.variance, pair.df) == pytest.approx((((0.1 - 0.2 + 0.3) / 3) ** 2, 1))
    alone = statistics.weighted_mean(parts[:1])
    assert (alone.value, alone.variance, alone.df) == pytest.approx(
        (parts[0].value, parts[0].variance, parts[0].df)
    )


def test_an_interval_is_taken_for_its_variance() -> None:
    found = statistics.uncertain_from_interval(0.5, statistics.Interval(0.4, 0.6))
    assert tuple(found.interval) == pytest.approx((0.4, 0.6))
    assert statistics.weighted_mean([found] * 4).variance == pytest.approx(found.variance / 4)
    assert UncertainValue(1.959963984540054, (VarianceComponent(1.0),)).p == pytest.approx(0.05)
    assert UncertainValue(0.0).p == 1 and UncertainValue(1.0).p == 0


@pytest.mark.long
@pytest.mark.parametrize("counts", [(2,), (3,), (5,), (2, 5), (3, 3), (3, 10)])
@pytest.mark.parametrize("tasks", [1, 3, 7])
@pytest.mark.parametrize(("luckless", "items"), [(1.0, 0.0), (1.0, 0.5), (0.01, 0.03), (0.1, 0.3)])
def test_means_over_tasks_and_runs_are_covered(
    counts: tuple[int, ...], tasks: int, luckless: float, items: float
) -> None:
    """luckless: the variance over seeds of all parts but one (the first run's in the first task),
    in that of the one. items: their share in the whole. What is drawn are the seeds' means; whether
    the true value lies inside is not.
    """
    rng, several = np.random.default_rng(7), counts * tasks
    true = np.array([1.0] + [luckless] * (len(several) - 1))
    true *= (1 - items) / true.sum()
    found = np.empty(TRIALS)
    for trial in range(TRIALS):
        parts = []
        for count, variance in zip(several, true, strict=True):
            means = rng.normal(0, (variance * count) ** 0.5, count)
            parts.append(
                VarianceComponent(
                    means.var(ddof=1) / count, count - 1, (means[0] - means[1]) / (2 * count) ** 0.5
                )
            )
        found[trial] = UncertainValue(
            0.0, (VarianceComponent(items, 400),), tuple(parts)
        ).interval.high
    inside = 2 * stats.norm.cdf(found) - 1
    noise = 3 * inside.std() / TRIALS**0.5
    assert 0.93 - noise <= inside.mean() <= 0.97 + noise


def test_numbers_with_and_without_seeds_are_averaged() -> None:
    """What has no seeds adds no seed component, also where two seeds agree and nothing varies."""
    rng = np.random.default_rng(6)
    scored = statistics.uncertain_from_interval(0.8, statistics.Interval(0.7, 0.9))
    tuned = statistics.two_level_mean(crossed(rng, 2, 50, (1, 1, 0.3)))
    once = statistics.two_level_mean(crossed(rng, 1, 50, (1, 1, 0.3)))
    found = statistics.weighted_mean([scored, tuned, once, UncertainValue(0.3)])
    assert found.variance == pytest.approx((scored.variance + tuned.variance + once.variance) / 16)
    assert len(found.seed_components) == 1 and len(found.item_components) == 2
    alike = statistics.two_level_mean(np.tile(rng.normal(size=50), (2, 1)))
    assert alike.seed_components[0].variance == 0 and alike.df == pytest.approx(49)
    both = statistics.weighted_mean([scored, alike])
    assert both.variance == pytest.approx((scored.variance + alike.variance) / 4)
    nothing = statistics.weighted_mean(
        [statistics.two_level_mean(np.ones((2, 9))), UncertainValue(0.0)]
    )
    assert tuple(nothing.interval) == (0.5, 0.5) and nothing.p == 0


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3])
def test_a_macro_average_over_tasks_of_few_seeds_covers(seeds: int) -> None:
    rng, hits = np.random.default_rng(6), 0
    for _ in range(TRIALS):
        tasks = [
            statistics.two_level_mean(crossed(rng, seeds, n, (0.2, 1, 0.7)))
            for n in (60, 100, 200, 40)
        ]
        low, high = statistics.weighted_mean(tasks).interval
        hits += low <= 0 <= high
    assert 0.93 - NOISE <= hits / TRIALS <= 0.97 + NOISE


def test_pigeonhole_bootstrap_agrees_up_to_the_interaction() -> None:
    """Owen 2007: resampling seeds and items of the same table has var_a/S + var_b/n + 3 var_c/(S n)
    on average.
    """
    rng = np.random.default_rng(9)
    y = crossed(rng, 12, 80, (0.3, 1, 1))
    rows, columns = rng.integers(12, size=(6000, 12, 1)), rng.integers(80, size=(6000, 1, 80))
    theirs = y[rows, columns].mean(axis=(1, 2)).var()
    interaction = two_way(y)[2] / y.size
    assert statistics.two_level_mean(y).variance + 2 * interaction == pytest.approx(theirs, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("runs", [1, 2])
def test_the_interval_of_a_mixture_covers_its_mean(seeds: int, runs: int) -> None:
    """runs: one, or the difference of two with the same mean; some seeds of the first collapsed."""
    rng, trials, share, hits, drawn = np.random.default_rng(0), 300, 0.2, 0, 0
    truth = 0.75 * (1 - share) + 0.5 * share if runs == 1 else 0.0
    while drawn < trials:
        collapsed = rng.random((runs, seeds)) < share
        if not collapsed[0].any() or collapsed[0].all():
            continue
        difficulty = rng.normal(0, 0.15, 300)
        values = []
        for run in collapsed:
            learnt = 0.75 + rng.normal(0, 0.02, (seeds, 1)) + difficulty
            rates = np.where(run[:, None], 0.5, np.clip(learnt, 0, 1))
            values.append((rng.random((seeds, 300)) < rates).astype(float))
        if runs == 1:
            mean = statistics.two_level_mean(values[0], collapsed[0])
        else:
            mean = statistics.two_level_change(
                *values, collapsed_a=collapsed[0], collapsed_b=collapsed[1]
            )
        low, high = mean.interval
        hits += low <= truth <= high
        drawn += 1
    assert hits / trials >= 0.93


def test_a_mixture_without_a_gap_is_as_certain_as_its_seeds() -> None:
    values = np.repeat([[1.0, 0.0, 1.0, 1.0, 0.0]], 3, axis=0)
    mixture = statistics.two_level_mean(values, np.array([True, False, False]))
    kept = statistics.two_level_mean(values[1:]).interval
    one_of_three = np.array([1.0, 0.0, 0.0])
    low, _ = statistics.score_interval(one_of_three, np.zeros(3, np.int32), np.ones(1))
    half = (1 - low) * (kept.high - 0.6)
    assert tuple(mixture.interval) == pytest.approx((0.6 - half, 0.6 + half))


def test_a_mixture_adds_the_interval_of_the_share_that_collapsed() -> None:
    """Seeds that do not vary: only the share does, between the ends of its score interval."""
    values = np.array([[0.9], [0.9], [0.9], [0.5]]) * np.ones((1, 50))
    collapsed = np.array([False, False, False, True])
    low, high = statistics.score_interval(
        collapsed.astype(float), np.zeros(4, np.int32), np.ones(1)
    )
    mixture = statistics.two_level_mean(values, collapsed)
    assert tuple(mixture.interval) == pytest.approx((0.9 - 0.4 * high, 0.9 - 0.4 * low))


def test_distances_of_a_mean_are_added_as_squares_and_turned_by_a_sign() -> None:
    parts = [
        statistics.uncertain_from_interval(0.5, statistics.Interval(0.2, 0.6)),
        statistics.uncertain_from_interval(0.3, statistics.Interval(0.26, 0.7)),
    ]
    difference = statistics.weighted_mean(parts, [-1, 1])
    assert tuple(difference.interval) == pytest.approx(
        (-0.2 - math.hypot(0.1, 0.04), -0.2 + math.hypot(0.3, 0.4))
    )
