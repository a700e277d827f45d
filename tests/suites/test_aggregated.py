"""What documents contribute to a number of all of them: its value exactly, and the variance that
theory says.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.jackknife import (
    NUM_JACKKNIFE_GROUPS,
    jackknife_contributions,
    to_json,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # scikit-learn's, of classes that are not there


def by_name(name):
    def aggregate(items):
        gold, said = zip(*items, strict=True)
        return (
            matthews_corrcoef(gold, said) if name == "mcc" else f1_score(gold, said, average=name)
        )

    return aggregate


def texts(values):
    return [to_json(value) for value in values]


pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=25)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(pairs, st.sampled_from(["macro", "micro", "weighted", "mcc"]))
def test_every_document_is_left_out_in_turn(answers, name):
    aggregate, n = by_name(name), len(answers)
    whole = aggregate(answers)
    rests = np.array([aggregate(answers[:i] + answers[i + 1 :]) for i in range(n)])
    found = jackknife_contributions(aggregate, texts(answers), "toy")
    assert found == pytest.approx(whole + (n - 1) * (rests.mean() - rests), abs=1e-9)
    assert found.mean() == pytest.approx(whole, abs=1e-9)


def test_contributions_to_a_mean_are_the_values_themselves():
    counted, real = [1, 0, 0, 1, 1], list(np.random.default_rng(0).normal(size=50))
    for values in (counted, real):
        assert jackknife_contributions(np.mean, texts(values), "toy") == pytest.approx(
            np.array(values), abs=1e-12
        )
    # as mmlu_early_training has it: (right option, log-probabilities), and a difference per
    # document
    items = [
        (n % 3, [float(x) for x in row])
        for n, row in enumerate(np.random.default_rng(1).normal(size=(30, 3)))
    ]

    def ahead(items):
        return np.mean(
            [
                lls[right] - np.mean([x for i, x in enumerate(lls) if i != right])
                for right, lls in items
            ]
        )

    assert jackknife_contributions(ahead, texts(items), "toy") == pytest.approx(
        [ahead([item]) for item in items]
    )


def slope(items):
    x, y = zip(*items, strict=True)
    return np.polyfit(x, y, 1)[0]


@pytest.mark.long
def test_distinct_documents_are_left_out_in_groups():
    calls, found, wanted = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=200)
        items = list(zip(x.tolist(), (0.3 * x + rng.normal(size=200)).tolist(), strict=True))

        def counting(kept):
            calls.append(len(kept))
            return slope(kept)

        each = jackknife_contributions(counting, texts(items), "toy")
        assert each.mean() == pytest.approx(slope(items), abs=1e-9)
        assert len(np.unique(each)) == NUM_JACKKNIFE_GROUPS
        found.append(each.var(ddof=1) / 200)
        wanted.append(1 / (200 * x.var()))  # of residuals of variance 1: ordinary least squares
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.15)
    assert calls.count(180) == 40 * NUM_JACKKNIFE_GROUPS and set(calls) == {1, 180, 200}


@pytest.mark.parametrize("real", [False, True])
def test_the_mean_of_the_others_replaces_a_document(real):
    """tinyBenchmarks' form: weights of a hundred documents, right or wrong, or how right."""
    rng = np.random.default_rng(0)
    weights, values = (
        rng.dirichlet(np.ones(100)),
        rng.random(100) if real else rng.integers(0, 2, 100),
    )

    def weighted(items):
        if len(items) != 100:
            raise IndexError("a hundred documents")
        return weights @ np.array(items)

    found = jackknife_contributions(weighted, texts(values.tolist()), "toy")
    assert found.mean() == pytest.approx(weights @ values)
    moved = weights * (values - values.mean())  # of a weighted sum, by hand
    assert found - found.mean() == pytest.approx(100 * (moved - moved.mean()))
    with pytest.raises(DataError, match="a hundred documents"):
        jackknife_contributions(weighted, texts([1, 0]), "toy")
    pairs = [(int(value), 1) for value in rng.integers(0, 2, 100)]
    with pytest.raises(DataError, match="a hundred documents"):
        jackknife_contributions(lambda items: weighted([a for a, _ in items]), texts(pairs), "toy")


def test_what_was_said_comes_back_as_it_was():
    value = (
        np.bool_(True),
        np.float64(0.1),
        np.int64(3),
        "ä",
        None,
        [1, (2.5, float("nan"))],
        {"k": np.arange(2)},
    )
    seen = []

    def aggregate(items):
        seen.extend(items)
        return 0.0

    jackknife_contributions(aggregate, [to_json(value)], "toy")
    (found,) = seen
    assert (
        found[:5] == (True, 0.1, 3, "ä", None)
        and found[5][:1] == (1,)
        and math.isnan(found[5][1][1])
    )
    assert found[6] == {"k": (0, 1)}
    assert json.loads(to_json(1 / 3)) == 1 / 3
    with pytest.raises(TypeError, match="has no JSON form"):
        to_json({1, 2})


def test_no_number_is_none_and_a_failure_has_its_place():
    assert np.isnan(jackknife_contributions(lambda _: float("nan"), texts([1, 2]), "toy")).all()
    rare = [(1, 1), (0, 0), (0, 0)]  # without its only marked document a share is none

    def share(items):
        marked = [right for right, mark in items if mark]
        return np.mean(marked) if marked else float("nan")

    assert jackknife_contributions(share, texts(rare), "toy").mean() == 1.0
    for broken in (lambda _: 1 / 0, lambda _: "none", lambda _: float("inf")):
        with pytest.raises(DataError, match="own aggregation fails") as caught:
            jackknife_contributions(broken, texts([1, 2]), "a task: a number")
        assert caught.value.location == "a task: a number"
