"""The interval of an accuracy over seeds with few errors."""

import numpy as np
import pytest

from antlm_bench import statistics
from antlm_bench.metrics.classification import widen_near_top

WIDE = statistics.Interval(0.5, 1.0)


def draw_credits(num_errors: int, num_items: int) -> np.ndarray:
    """Return credits (3, n) of seeds with the same errors, except for one item of one seed."""
    credits = np.ones((3, num_items))
    credits[:, :num_errors] = 0
    credits[0, -1] = 0
    return credits


def test_few_errors_have_the_lower_end_of_the_score_interval():
    credits = draw_credits(2, 104)
    means = credits.mean(axis=0)
    score = statistics.score_interval(means, np.zeros(104, np.int32), np.ones(1))
    interval = statistics.two_level_mean(credits).interval

    widened = widen_near_top(interval, credits, None)

    assert widened == (pytest.approx(score.low), interval.high)
    assert score.low < interval.low
    assert widen_near_top(WIDE, credits, None) == WIDE


@pytest.mark.parametrize(("num_errors", "num_items"), [(20, 400), (10, 40)])
def test_many_errors_keep_the_t_interval(num_errors, num_items):
    credits = draw_credits(num_errors, num_items)
    interval = statistics.two_level_mean(credits).interval

    assert widen_near_top(interval, credits, None) == interval
