"""The area under the ROC curve: its value by scikit-learn, its intervals by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from antlm_bench import statistics
from antlm_bench.statistics.auc import PRIOR_ITEMS
from antlm_bench.types import Bools, Floats


def draw(seed: int, n: int = 60, steps: int = 12, shift: float = 2.0) -> tuple[Floats, Bools]:
    """Return scores (n,) with ties, and labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) < 2 * n // 3
    return rng.integers(0, steps, n) + shift * labels, labels


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_that_of_scikit_learn(seed: int) -> None:
    scores, labels = draw(seed)

    auc = statistics.compute_auc(scores, labels)
    contributions = statistics.auc_contributions(scores, labels)

    assert auc == pytest.approx(roc_auc_score(labels, scores))
    assert contributions.mean() == pytest.approx(roc_auc_score(labels, scores))


def test_auc_counts_pairs_with_ties_as_half() -> None:
    scores, labels = np.array([3.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])

    # (3 > 1), (3 > 0), (1 = 1), (1 > 0): 3.5 of 4 pairs
    assert statistics.compute_auc(scores, labels) == 3.5 / 4
    assert statistics.compute_auc(scores, np.ones(4, bool)) is None


def test_interval_is_delongs_on_the_logit_scale_by_brute_force() -> None:
    scores, labels = draw(1)
    wins = (scores[labels][:, None] > scores[~labels]) + (
        scores[labels][:, None] == scores[~labels]
    ) / 2
    auc, terms, degrees = wins.mean(), [], []
    model = (auc / (2 - auc) + 2 * auc**2 / (1 + auc)) / 2 - auc**2
    for placements in (wins.mean(axis=1), wins.mean(axis=0)):
        df = len(placements) - 1
        pooled = (df * placements.var(ddof=1) + PRIOR_ITEMS * model) / (df + PRIOR_ITEMS)
        terms.append(pooled / len(placements))
        degrees.append(df)
    df = sum(terms) ** 2 / sum(term**2 / each for term, each in zip(terms, degrees, strict=True))
    half_width = stats.t.ppf(0.975, df) * sum(terms) ** 0.5 / (auc * (1 - auc))
    logit = np.log(auc / (1 - auc))

    low, high = statistics.auc_interval(scores, labels)

    assert low == pytest.approx(1 / (1 + np.exp(half_width - logit)))
    assert high == pytest.approx(1 / (1 + np.exp(-half_width - logit)))


def test_separated_classes_have_the_interval_of_a_share() -> None:
    scores = np.arange(20.0)

    low, high = statistics.auc_interval(scores, scores > 9)

    wilson = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, 1.0))


def test_interval_needs_two_items_of_each_class() -> None:
    scores, labels = np.arange(6.0), np.arange(6) > 0

    assert statistics.auc_interval(scores, labels) == (0, 1)
    assert statistics.auc_difference(scores, scores[::-1], labels) == ((-1, 1), None, None)


@pytest.mark.parametrize("seed", range(6))
def test_difference_and_its_p_value_agree(seed: int) -> None:
    a, labels = draw(seed, shift=1.0)
    b, _ = draw(seed + 100, shift=4.0)

    (low, high), p, _ = statistics.auc_difference(a, b, labels)

    assert p is not None
    assert (p < 0.05) == (low > 0 or high < 0)
    assert (low + high) / 2 == pytest.approx(roc_auc_score(labels, b) - roc_auc_score(labels, a))


def test_scores_in_the_same_order_do_not_differ() -> None:
    scores, labels = draw(3)

    assert statistics.auc_difference(scores, np.exp(scores), labels) == ((0, 0), 1.0, None)


def test_copied_clusters_count_as_one_item() -> None:
    scores, labels = draw(4, n=90)
    copies = np.repeat(np.arange(90, dtype=np.int32), 3)

    single = statistics.auc_interval(scores, labels)
    copied = statistics.auc_interval(np.repeat(scores, 3), np.repeat(labels, 3), copies)

    assert np.subtract(*copied) == pytest.approx(np.subtract(*single), rel=0.03)
