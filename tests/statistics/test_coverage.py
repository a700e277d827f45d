"""A reduced run of benchmarks/coverage.py with fixed seeds."""

import coverage
import pytest
from coverage_small_samples import SMALL_SAMPLES, simulate_small_sample

CASES = {case.name: case for case in coverage.iterate_cases()}
QUICK_CASES = (
    "strata 5/5/5/200/1000 at 0.95",
    "strata 5/5/5/200/1000 at 0.99",
    "strata 5/5/5/200/1000, .5 to .98",
    "supplement at 0.99",
    "50 strata of 2 at 0.8",
    "20 strata of 1 at 0.8",
    "nano (16 of 50) at 0.95",
    "nano (16 of 50) at .6, 50% tied",
    "entity tracking, .9 to .4",
    "one stratum of 5000 at 0.999",
    "difference, strata 5/5/5/200/1000 +0.02 -0.02",
    "difference, strata 5/5/5/200/1000, mixed rates",
    "difference, 50 strata of 2 +.1 -.1",
    "difference, nano +0.02 -0.02",
    "difference, one of 1000 +0 -0.05",
    "20 clusters of 5 at 0.6, correlation 0.3",
    "60 unequal clusters at 0.98, correlation 0.9",
)


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK_CASES)
def test_intervals_hold_the_truth_in_93_percent(name):
    case = CASES[name]

    result = coverage.simulate(case, runs=300, seed=1)

    assert not result.misses_limits(case.effective_errors), result


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "ages of 3 words, r = 0.6",
        "ages of 50 words, r = 0.9, skewed",
        "difference in 30 documents",
        "surprisal of 20 words",
    ],
)
def test_t_intervals_of_few_items_hold_the_truth_in_91_percent(name):
    covered = simulate_small_sample(SMALL_SAMPLES[name], runs=300, seed=1)

    assert covered >= 0.91 - 2 * (0.91 * 0.09 / 300) ** 0.5


@pytest.mark.parametrize(
    "name",
    [
        "bits per byte of 20 documents, log-lengths with sd 1",
        "f1 of 408 (mrpc) at .99",
        "3 seeds (unlike) of 300",
        "paired 3 seeds (unlike) of 300",
        "two runs of 5 seeds (alike), a fifth collapsed",
        "AUC of 50, 50% acceptable, at 0.97",
        "AUC of 200, 85% acceptable, at 0.8 spread",
        "AUC of 100 clusters of 4, correlation 0.5, at 0.5",
        "difference of AUC, 200, 50% acceptable, at 0.8 and 0.9, correlation 0.3",
    ],
)
def test_intervals_of_other_values_hold_the_truth_in_93_percent(name):
    case = CASES[name]

    result = coverage.simulate(case, runs=round(200 / case.share_of_runs), seed=1)

    assert not result.misses_limits(case.effective_errors), result


def test_names_of_cases_are_distinct():
    assert len(CASES) == len(list(coverage.iterate_cases()))


def test_a_rule_that_covers_90_percent_misses_the_limits():
    result = coverage.Result(coverage=0.9, too_high=0.05, too_low=0.05, width=0.1, runs=2000)

    assert result.misses_limits(effective_errors=1.0)


def test_a_rule_that_always_covers_misses_the_limits_with_many_errors():
    result = coverage.Result(coverage=1.0, too_high=0.0, too_low=0.0, width=0.1, runs=2000)

    assert result.misses_limits(effective_errors=5.0)
    assert not result.misses_limits(effective_errors=4.0)


def test_effective_errors_of_one_stratum_are_the_expected_errors():
    assert CASES["one stratum of 300 at 0.95"].effective_errors == pytest.approx(15)
