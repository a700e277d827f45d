"""The stratified score rule against Wilson, Tango, McNemar and a general optimizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from antlm_bench.statistics import stratified_score
from antlm_bench.statistics.stratified_score import ScoreRule, StratifiedCounts

PLAIN = ScoreRule(pseudo_items=0, end_items=0, corrects_skewness=False, continuity=0)
CREDITS, CHANGES = (0.0, 1.0), (-1.0, 1.0)


def count(strata, weights=None, value_range=CREDITS, clusters=None):
    codes = np.repeat(np.arange(len(strata)), [len(values) for values in strata])
    weights = np.full(len(strata), 1 / len(strata)) if weights is None else np.asarray(weights)
    values = np.concatenate([np.asarray(values, float) for values in strata])
    return stratified_score.count_average(values, codes, weights, value_range, clusters)


def changes(lost, gained, n):
    return np.r_[-np.ones(lost), np.ones(gained), np.zeros(n - lost - gained)]


def interval(counts, rule=None):
    low, high = stratified_score.score_intervals(counts, rule or ScoreRule())
    return float(low[0]), float(high[0])


@pytest.mark.parametrize(("right", "n"), [(37, 40), (1, 40), (20, 40), (999, 1000), (3, 5)])
def test_one_plain_stratum_of_credits_is_wilson(right, n):
    credits_ = count([np.r_[np.ones(right), np.zeros(n - right)]])

    expected = proportion_confint(right, n, alpha=0.05, method="wilson")

    assert interval(credits_, PLAIN) == pytest.approx(expected, abs=1e-9)


def tango_interval(lost, gained, n):
    """Tango (1998), equations for the constrained estimate of the smaller cell."""

    def z(delta):
        a = 2 * n
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        q21 = (np.sqrt(b * b - 4 * a * c) - b) / (2 * a)
        return (gained - lost - n * delta) / np.sqrt(n * (2 * q21 + delta * (1 - delta)))

    ends = [
        optimize.brentq(lambda d, t=t: z(d) - t, -0.999999, 0.999999, xtol=1e-13)
        for t in (stratified_score.Z, -stratified_score.Z)
    ]
    return tuple(ends)


@pytest.mark.parametrize(("lost", "gained", "n"), [(9, 3, 100), (1, 2, 20), (30, 30, 80)])
def test_one_plain_stratum_of_changes_is_tango(lost, gained, n):
    counts = count([changes(lost, gained, n)], value_range=CHANGES)

    assert interval(counts, PLAIN) == pytest.approx(tango_interval(lost, gained, n), abs=1e-9)


@pytest.mark.parametrize(("lost", "gained", "n"), [(9, 3, 100), (1, 6, 20), (30, 45, 80)])
def test_plain_test_of_no_change_is_mcnemar(lost, gained, n):
    counts = count([changes(lost, gained, n)], value_range=CHANGES)
    table = [[n - lost - gained, lost], [gained, 0]]

    z = stratified_score.score_z(counts, rule=PLAIN)
    expected = mcnemar(table, exact=False, correction=False)

    assert z[0] ** 2 == pytest.approx(expected.statistic, rel=1e-9)
    assert stratified_score.two_sided_p(z)[0] == pytest.approx(expected.pvalue, rel=1e-9)


def optimized_z(strata, weights, values, null, pseudo=4.0, ends=0.5):
    """Return z of a hypothesis, by the definition and with scipy's general optimizer."""
    values = np.asarray(values, float)
    table = np.array([[np.sum(np.asarray(s) == v) for v in values] for s in strata], float)
    n = table.sum(axis=1)
    pooled = weights @ (table / n[:, None]) * n.sum()
    pooled[[0, -1]] += ends
    cells = table + pseudo * pooled / pooled.sum()
    shape = cells.shape

    def loss(flat):
        return -np.sum(cells * np.log(np.maximum(flat.reshape(shape), 1e-12)))

    def gradient(flat):
        return -(cells / np.maximum(flat.reshape(shape), 1e-12)).ravel()

    constraints = [
        {"type": "eq", "fun": lambda f: f.reshape(shape).sum(axis=1) - 1},
        {"type": "eq", "fun": lambda f: weights @ (f.reshape(shape) @ values) - null},
    ]
    start = (cells / cells.sum(axis=1, keepdims=True)).ravel()
    fit = optimize.minimize(
        loss,
        start,
        jac=gradient,
        bounds=[(1e-9, 1)] * cells.size,
        constraints=constraints,
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-14},
    ).x.reshape(shape)
    mean = fit @ values
    deviation = values - mean[:, None]
    variance = (fit * deviation**2).sum(axis=1)
    third = (fit * deviation**3).sum(axis=1)
    v = np.sum(weights**2 * variance / n * (n + pseudo) / (n + pseudo - 1))
    estimate = weights @ [np.mean(s) for s in strata]
    absolute_third = (fit * np.abs(deviation) ** 3).sum(axis=1)
    step = np.sum(weights**3 * absolute_third / n**2) / v
    gap = estimate - null
    z0 = np.sign(gap) * max(abs(gap) - 0.2 * step, 0) / np.sqrt(v)
    a = np.sum(weights**3 * third / n**2) / v**1.5 / 6
    return (-1 + np.sqrt(1 + 4 * a * (z0 + a))) / (2 * a)


@pytest.mark.parametrize("null", [-0.1, 0.0, 0.12])
def test_z_of_changes_is_that_of_a_general_optimizer(null):
    strata = [changes(1, 2, 5), changes(3, 0, 20), np.r_[0.5, -0.5, 0, 0, 1.0]]
    weights = np.array([0.5, 0.2, 0.3])
    counts = count(strata, weights, CHANGES)

    z = stratified_score.score_z(counts, null)

    expected = optimized_z(strata, weights, [-1, -0.5, 0, 0.5, 1], null)
    assert z[0] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("null", [0.5, 0.8, 0.97])
def test_z_of_credits_is_that_of_a_general_optimizer(null):
    strata = [np.r_[1, 1, 0.0], np.r_[np.ones(9), 0], np.r_[0.5, np.ones(6)]]
    weights = np.full(3, 1 / 3)

    z = stratified_score.score_z(count(strata, weights), null)

    assert z[0] == pytest.approx(optimized_z(strata, weights, [0, 0.5, 1], null), abs=2e-4)


def test_interval_ends_are_where_z_is_critical():
    counts = count([changes(1, 2, 5), changes(3, 0, 20)], value_range=CHANGES)

    low, high = interval(counts)

    assert stratified_score.score_z(counts, low)[0] == pytest.approx(stratified_score.Z, abs=1e-6)
    assert stratified_score.score_z(counts, high)[0] == pytest.approx(-stratified_score.Z, abs=1e-6)


def test_perfect_strata_do_not_claim_certainty():
    low, high = interval(count([np.ones(5), np.ones(5), np.ones(1000)]))

    assert low < 0.9
    assert high == pytest.approx(1.0, abs=1e-9)


def test_groups_are_strata_one_by_one():
    strata = [np.r_[1, 1, 0.0], np.r_[np.ones(9), 0], np.ones(4)]

    codes = np.repeat(np.arange(3, dtype=np.int32), [3, 10, 4])
    groups = stratified_score.count_groups(np.concatenate(strata), codes, 3, CREDITS)
    low, high = stratified_score.score_intervals(groups)

    expected = [interval(count([values])) for values in strata]
    assert np.column_stack([low, high]) == pytest.approx(np.array(expected), abs=1e-9)


def test_weights_of_an_empty_share_leave_a_stratum_out():
    strata = [np.r_[1, 1, 0.0], np.r_[np.ones(9), 0]]

    both = count(strata, [1.0, 0.0])

    assert both.estimates[0] == pytest.approx(2 / 3)
    assert interval(both, PLAIN) == pytest.approx(interval(count(strata[:1]), PLAIN), abs=1e-9)


def test_a_mirrored_range_mirrors_the_interval():
    strata = [changes(1, 4, 9), changes(0, 2, 30)]

    low, high = interval(count(strata, value_range=CHANGES))
    mirrored = interval(count([-values for values in strata], value_range=CHANGES))

    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_clusters_of_one_are_items():
    strata = [np.r_[1, 1, 0.0, 0.5], np.r_[np.ones(9), 0]]

    counts = count(strata, clusters=np.arange(14))

    assert interval(counts) == pytest.approx(interval(count(strata)), abs=1e-9)


def test_copies_of_an_item_in_one_cluster_add_nothing():
    answers = np.r_[np.ones(15), np.zeros(5)]

    counts = count([np.repeat(answers, 4)], clusters=np.repeat(np.arange(20), 4))

    (low, high), (low_once, high_once) = interval(counts), interval(count([answers]))
    assert low < low_once and high_once < high  # twenty clusters estimate a variance badly
    assert high - low == pytest.approx(high_once - low_once, rel=0.1)


def test_unequal_clusters_count_with_their_effective_number():
    counts = count([np.ones(6)], clusters=np.r_[0, 0, 0, 1, 1, 2])

    assert counts.counts.sum() == pytest.approx(36 / (9 + 4 + 1))


def test_many_distinct_values_keep_their_mean_and_a_like_interval():
    values = np.random.default_rng(0).random(500)

    counts = count([values])
    low, high = interval(counts)

    half = stratified_score.Z * values.std() / 500**0.5
    assert counts.counts @ counts.values / 500 == pytest.approx(values.mean(), abs=1e-12)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=2e-3)


@st.composite
def strata_of_changes(draw):
    """Draw strata of 1 to 400 items with losses and gains, few or many, and their weights."""
    tables = draw(
        st.lists(
            st.tuples(*(st.sampled_from((0, 0, 1, 2, 3, 10, 40, 120)) for _ in range(3))).filter(
                sum
            ),
            min_size=1,
            max_size=6,
        )
    )
    table = np.array([(lost, same, gained) for lost, same, gained in tables], float)
    weights = np.array(draw(st.lists(st.integers(1, 9), min_size=len(table), max_size=len(table))))
    return table, weights / weights.sum()


def counts_of_changes(table, weights):
    values = np.array([-1.0, 0.0, 1.0])
    means = table @ values / table.sum(axis=1)
    return StratifiedCounts(values, table, means, weights, np.zeros(1, int))


@pytest.mark.long
@settings(max_examples=60, deadline=None, derandomize=True)
@given(strata_of_changes())
def test_p_is_below_05_where_the_interval_excludes_0(drawn):
    counts = counts_of_changes(*drawn)

    low, high = interval(counts)
    p = stratified_score.two_sided_p(stratified_score.score_z(counts))[0]

    assert (p < 0.05) == (low > 0 or high < 0)
    assert low - 1e-9 <= counts.estimates[0] <= high + 1e-9


@pytest.mark.long
@settings(max_examples=60, deadline=None, derandomize=True)
@given(strata_of_changes(), st.floats(0, 0.3))
def test_keeping_a_lost_item_worsens_no_verdict(drawn, margin):
    table, weights = drawn
    lost = np.flatnonzero(table[:, 0])
    before = interval(counts_of_changes(table, weights))
    for stratum in lost:
        kept = table.copy()
        kept[stratum] += (-1, 1, 0)
        after = interval(counts_of_changes(kept, weights))

        assert after[0] >= before[0] - 1e-9
        assert after[1] >= min(before[1], 0.0) - 1e-9
        if before[1] >= -margin:  # no regression
            assert after[1] >= -margin - 1e-9


@pytest.mark.long
@pytest.mark.parametrize("n", [4, 20, 300, 20_000])
def test_intervals_fall_with_each_lost_item(n):
    ends = [interval(count([changes(lost, 0, n)], value_range=CHANGES)) for lost in range(4)]

    lows, highs = zip(*ends, strict=True)
    assert list(lows) == sorted(lows, reverse=True)
    assert list(highs) == sorted(highs, reverse=True)


@pytest.mark.parametrize("n", [10, 20, 100, 5000])
def test_one_stratum_covers_93_percent_at_every_rate(n):
    errors = np.arange(min(n, 60) + 1)
    table = np.column_stack([errors, n - errors]).astype(float)
    ones = np.ones(len(errors))
    starts = np.arange(len(errors))
    counts = StratifiedCounts(np.array(CREDITS), table, 1 - errors / n, ones, starts)
    rates = np.linspace(0.0001, min(0.5, 25 / n), 300)

    low, high = stratified_score.score_intervals(counts)
    holds = (low <= 1 - rates[:, None]) & (1 - rates[:, None] <= high)
    coverage = (holds * stats.binom.pmf(errors, n, rates[:, None])).sum(axis=1)

    assert coverage.min() > 0.93


def test_groups_as_a_sample_are_items_of_one_stratum_with_a_t_quantile():
    means = np.array([0.9, 0.8, 1.0, 0.7, 0.9, 0.6, 0.8, 1.0])

    interval, reason = stratified_score.sampled_groups_interval(
        means, np.full(8, 1 / 8), value_range=CREDITS
    )

    values = [0.4, 0.6, 0.7, 0.8, 0.9, 1.0]  # half of the observed range of .4 lies below .6
    assert interval is not None and not reason
    for end, sign in zip(interval, (1, -1), strict=True):
        z = optimized_z([means], np.ones(1), values, end)
        assert z == pytest.approx(sign * stats.t.ppf(0.975, 7), abs=1e-3)


def test_groups_of_unequal_weights_are_fewer_effective_groups():
    means = np.random.default_rng(0).uniform(0.5, 0.9, 12)
    equal = np.full(12, 1 / 12)
    unequal = np.r_[np.full(6, 1.6), np.full(6, 0.4)] / 12

    of_equal, _ = stratified_score.sampled_groups_interval(means, equal)
    of_unequal, _ = stratified_score.sampled_groups_interval(means, unequal)

    assert of_equal.high - of_equal.low < of_unequal.high - of_unequal.low
    assert of_unequal.low < unequal @ means < of_unequal.high
