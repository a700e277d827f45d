"""Ends of intervals and p-values near a tested value show on which side of it they are."""

import pytest

from antlm_bench.metrics import METRICS
from antlm_bench.printable import format_decimals
from antlm_bench.reporting.comparison_table import format_p_value
from antlm_bench.reporting.effects_table import format_mean_interval
from antlm_bench.statistics import MeanOverItems

ACCURACY, DELTA_R2 = METRICS["accuracy"], METRICS["delta-r2"]


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.0003, 0.007, "[+0.03, +0.7]"),
        (0.0000004, 0.007, "[>0.0, +0.7]"),
        (-0.007, -0.0003, "[-0.7, -0.03]"),
        (-0.007, -0.0000004, "[-0.7, <0.0]"),
        (-0.0003, 0.007, "[0.0, +0.7]"),  # holds 0
        (0.0, 0.007, "[0.0, +0.7]"),
    ],
)
def test_an_interval_that_excludes_zero_does_not_show_it(low, high, shown):
    assert ACCURACY.format_interval(low, high, "+", tested=(0.0,)) == shown


def test_an_interval_that_excludes_the_margin_does_not_show_it():
    tested = (0.0, -0.01)

    assert ACCURACY.format_interval(-0.0099, 0.001, "+", tested) == "[-0.99, +0.1]"
    assert ACCURACY.format_interval(-0.0101, 0.001, "+", tested) == "[-1.0, +0.1]"
    assert ACCURACY.format_interval(-0.03, -0.0104, "+", tested) == "[-3.0, -1.04]"


def test_scores_with_a_test_of_zero_show_whether_they_exclude_it():
    assert DELTA_R2.format_estimate(0.003, 0.0002, 0.007) == "0.3 [0.02, 0.7]"
    assert DELTA_R2.format_estimate(0.003, 0.0, 0.007) == "0.3 [0.0, 0.7]"
    assert ACCURACY.format_estimate(0.003, 0.0002, 0.007) == "0.3 [0.0, 0.7]"


@pytest.mark.parametrize(
    ("p", "shown"), [(0.0496, "<.05"), (0.05, ".050"), (0.0494, ".049"), (0.0004, "<.001")]
)
def test_a_significant_p_is_not_shown_as_the_level(p, shown):
    assert format_p_value(p) == shown


@pytest.mark.parametrize(
    ("value", "spec", "shown"),
    [
        (-0.004, "+.2f", "0.00"),
        (0.004, "+.2f", "0.00"),
        (-0.006, "+.2f", "-0.01"),
        (-0.0, ".1f", "0.0"),
    ],
)
def test_zero_has_no_sign(value, spec, shown):
    assert format_decimals(value, spec) == shown


def test_an_effect_that_excludes_zero_does_not_show_it():
    mean = MeanOverItems(0.4, 0.0021, 0.8, 30, 2.1, 0.048)

    assert format_mean_interval(mean, is_difference=True) == "[+0.002, +0.80]"
    assert format_mean_interval(mean._replace(low=-0.0021), is_difference=True) == "[0.00, +0.80]"
    assert format_mean_interval(MeanOverItems(0.4, None, None, 1, None, None)) == ""
