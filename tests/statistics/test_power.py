"""Detectable drops: a reduced run of benchmarks/power.py with fixed seeds, and exact oracles."""

import numpy as np
import power
import pytest
from scipy import stats

from antlm_bench import statistics
from antlm_bench.statistics.power import FlipRates, detectable_drops, observed_flip_rates
from antlm_bench.statistics.stratified_score import StratifiedCounts, score_z

CASES = {case.name: case for case in power.iterate_cases()}
QUICK_CASES = (
    "one stratum of 1000, 0.0% flip",
    "one stratum of 1000, 2.0% flip",
    "one stratum of 20, 10% flip",
    "strata 5/5/5/200/1000, 0% flip",
    "50 strata of 2, 10% flip",
    "20 normal values",
    "correlations of .5, 200 items",
    "5 seeds with an sd of 2 points, 300 items",
)


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK_CASES)
def test_detectable_drops_are_found_in_75_to_85_percent(name, monkeypatch):
    monkeypatch.setattr(power, "REPETITIONS", 25)

    result = power.simulate_case(CASES[name], runs=20, seed=1)

    assert not result.misses_limits, result


def test_a_power_of_15_percent_misses_the_limits():
    result = power.Result(power=0.15, planned_power=0.8, drop=0.01, undetectable=0, error=0.01)

    assert result.misses_limits


def single_stratum(n, flips):
    return statistics.planned_flip_rates(np.array([n]), np.ones(1), flips)


def exact_power(n, flips, drop):
    """Return the power of the test in one stratum, by the multinomial distribution."""
    flips = max(flips, drop)
    lost, gained = (x.ravel() for x in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    lost, gained = lost[lost + gained <= n], gained[lost + gained <= n]
    counts = np.column_stack([lost, n - lost - gained, gained])
    chance = stats.multinomial.pmf(counts, n, [(flips + drop) / 2, 1 - flips, (flips - drop) / 2])
    values, num = np.array([-1.0, 0.0, 1.0]), len(counts)
    averages = np.arange(num, dtype=np.int32)
    z = score_z(StratifiedCounts(values, counts * 1.0, counts @ values / n, np.ones(num), averages))
    return chance[z < -1.959964].sum()


@pytest.mark.parametrize(("n", "flips"), [(20, 0.0), (40, 0.1), (60, 0.4)])
def test_a_detectable_drop_has_an_exact_power_near_80_percent(n, flips):
    [drop] = detectable_drops(single_stratum(n, flips))

    assert exact_power(n, flips, drop) == pytest.approx(0.8, abs=0.05)


def test_many_flips_give_the_sample_size_formula_of_mcnemar():
    [drop] = detectable_drops(single_stratum(100_000, 0.2))

    # Connor (1987): n d^2 = (z_a sqrt(m) + z_b sqrt(m - d^2))^2
    formula = (1.959964 * 0.2**0.5 + 0.841621 * (0.2 - drop**2) ** 0.5) / 100_000**0.5
    assert drop == pytest.approx(formula, rel=0.01)


def test_no_drop_can_be_detected_on_3_items():
    assert np.isnan(detectable_drops(single_stratum(3, 0.0))).all()


def test_without_flips_7_lost_items_are_needed_however_many_there_are():
    drops = [detectable_drops(single_stratum(n, 0.0))[0] * n for n in (1000, 100_000)]

    # Five lost items are significant: P(Poisson(6.72) >= 5) = .8.
    assert drops == pytest.approx([6.72, 6.72], rel=0.02)


def test_groups_in_closed_form_agree_with_the_score_test():
    rng = np.random.default_rng(0)
    rates = FlipRates(
        np.full(5, 200.0), np.ones(1), rng.uniform(0, 0.3, (5, 1)), np.ones(5), np.arange(5)
    )
    counts = rates.expected_counts(np.full(5, 0.02))

    closed_form = statistics.power._z_of_no_difference(counts)

    assert closed_form == pytest.approx(score_z(counts), abs=1e-9)


def test_losses_and_gains_are_the_same_flips():
    values = np.array([-1.0, 0.0, 1.0])
    tables = np.array([[9.0, 88, 3], [3.0, 88, 9]])
    starts = np.arange(2, dtype=np.int32)
    counts = StratifiedCounts(values, tables, tables @ values / 100, np.ones(2), starts)

    drops = detectable_drops(observed_flip_rates(counts))

    assert drops[0] == pytest.approx(drops[1])


def test_an_equal_run_passes_as_often_as_computed():
    rng, n, flips, margin = np.random.default_rng(0), 1000, 0.02, 0.01
    table = rng.multinomial(n, [flips / 2, 1 - flips, flips / 2], size=2000).astype(float)
    values, averages = np.array([-1.0, 0.0, 1.0]), np.arange(2000, dtype=np.int32)
    counts = StratifiedCounts(values, table, table @ values / n, np.ones(2000), averages)

    passes = np.mean(score_z(counts, -margin) > 1.959964)

    assert statistics.pass_probability(single_stratum(n, flips), margin) == pytest.approx(
        passes, abs=0.04
    )


@pytest.mark.parametrize("margin", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [50, 1000])
def test_an_equal_run_nearly_always_passes_a_wide_margin(n, margin):
    assert 0.98 <= statistics.pass_probability(single_stratum(n, 0.02), margin) <= 1


def test_the_factor_of_items_gives_a_pass_in_80_percent():
    factor = statistics.items_factor(single_stratum(1000, 0.02), 0.01)

    enlarged = single_stratum(1000 * factor, 0.02)
    assert statistics.pass_probability(enlarged, 0.01) == pytest.approx(0.8, abs=0.01)


def test_no_mean_beyond_the_largest_one_is_detectable():
    interval = statistics.Interval(-0.9, 0.5)

    assert statistics.detectable_by_t(interval, 10) > 1
    assert statistics.detectable_by_t(interval, 10, largest=1.0) is None


def test_many_degrees_of_freedom_give_the_normal_factor():
    interval = statistics.Interval(-1.959964, 1.959964)

    assert statistics.detectable_by_t(interval, np.inf) == pytest.approx(2.801585, rel=1e-5)
    assert statistics.detectable_by_t(interval, 1e5) == pytest.approx(2.801585, rel=1e-2)
    assert statistics.detectable_by_t(interval, 3) is None
    assert statistics.detectable_by_t(statistics.Interval(1.0, 1.0), 30) is None


def test_power_of_seeds_is_that_of_a_noncentral_t():
    error = 0.02 * (2 / 5) ** 0.5
    df = 2 * (4 - 0.4) + 0.4
    expected = stats.nct.sf(stats.t.ppf(0.975, df), df, 0.03 / error)

    assert statistics.seeds_power(0.03, 0.02, seeds=5, tasks=1) == pytest.approx(expected)
    detectable = statistics.seeds_detectable(0.02, 5, 1)
    assert statistics.seeds_power(detectable, 0.02, 5, 1) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(("count", "n"), [(0, 100), (1, 10), (3, 3)])
def test_the_upper_bound_of_a_rate_is_clopper_pearson(count, n):
    expected = stats.binomtest(count, n, alternative="less").proportion_ci(0.95, "exact").high

    assert statistics.rate_upper_bound(count, n) == pytest.approx(expected)
