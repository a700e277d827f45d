"""Acceptability measures by hand, decisions by a plain loop and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prediction_rows import PredictionRow, from_rows
from sklearn.metrics import accuracy_score, matthews_corrcoef, roc_auc_score

from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.metrics.acceptability import (
    NO_SLOR_NOTE,
    NUM_FOLDS,
    assign_folds,
    choose_threshold,
    decide_out_of_sample,
)
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.metrics.records import ACCURACY, MCC
from antlm_bench.prediction_schema import UNIGRAM
from antlm_bench.statistics.known_coverage import THRESHOLD_ACCURACY, THRESHOLD_CORRELATION
from antlm_bench.suites.acceptability import JudgementSpec
from antlm_bench.types import Bools, Floats, Summary


def judgement(
    number: int, gold: int, score: float, tokens: int = 4, flags: tuple[str, ...] = ()
) -> PredictionRow:
    return PredictionRow(f"i{number}", gold, 0, (score,), (tokens,), (9,), {}, flags)


def summarize_judgements(
    rows: Sequence[PredictionRow], unigram: Sequence[float] | None = None, reduction: str = "sum"
) -> Summary:
    predictions = from_rows(rows)
    if unigram is not None:
        predictions = predictions.with_column(UNIGRAM, list(unigram))
    return summarize(
        predictions, suite="toy", method="causal", metric="auc", macro=[], groups=[],
        reduction=reduction,
    )  # fmt: skip


def draw_rows(n: int = 70, seed: int = 0) -> tuple[list[PredictionRow], Floats]:
    """Return sentences of several lengths, and their unigram log-probabilities."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 15, n)
    gold = (rng.random(n) < 0.7).astype(int)
    scores = -4.0 * lengths + 3 * gold + rng.normal(size=n) * 3
    rows = [judgement(i, int(gold[i]), float(scores[i]), int(lengths[i])) for i in range(n)]
    return rows, -6.0 * lengths + rng.normal(size=n)


@pytest.mark.parametrize(
    ("reduction", "value"),
    [
        ("sum", -12.0),
        ("per-token", -3.0),
        ("penalised", -12.0 / 1.5**0.8),  # ((5 + 4) / (5 + 1))^0.8
        ("slor", 2.0),  # (-12 - -20) / 4
    ],
)
def test_measures_of_a_sentence_by_hand(reduction: str, value: float) -> None:
    predictions = from_rows([judgement(0, 1, -12.0)]).with_column(UNIGRAM, [-20.0])

    table = build_table(predictions, ())

    assert table.reduced_scores(reduction)[0, 0] == pytest.approx(value)


def test_views_hold_the_auc_of_every_measure() -> None:
    rows, unigram = draw_rows()
    gold = [row.gold for row in rows]
    scores = np.array([row.scores[0] for row in rows])
    lengths = np.array([row.tokens[0] for row in rows])

    found = summarize_judgements(rows, unigram, "penalised")

    expected = {
        "auc-lp": scores,
        "auc-mean-lp": scores / lengths,
        "auc-slor": (scores - unigram) / lengths,
    }
    for name, values in expected.items():
        assert found.views[name].value == pytest.approx(roc_auc_score(gold, values))
    penalised = scores / ((5 + lengths) / 6) ** 0.8
    assert found.headline.value == pytest.approx(roc_auc_score(gold, penalised))
    assert "auc-penlp" not in found.views  # the headline
    assert found.headline.low < found.headline.value < found.headline.high


@pytest.mark.parametrize(
    ("metric", "score"), [(ACCURACY, accuracy_score), (MCC, matthews_corrcoef)]
)
def test_decisions_are_those_of_a_plain_cross_validation(metric, score) -> None:
    rows, _ = draw_rows()
    labels = np.array([row.gold == 1 for row in rows])
    scores = np.round([row.scores[0] for row in rows])  # with ties
    folds = assign_folds([row.id for row in rows], labels)
    expected = np.zeros(len(rows), bool)
    for fold in range(NUM_FOLDS):
        train = folds != fold
        cuts = np.unique(scores[train])
        thresholds = [-np.inf, *(cuts[:-1] + cuts[1:]) / 2, np.inf]
        values = [score(labels[train], scores[train] > cut) for cut in thresholds]
        best = thresholds[int(np.argmax(np.round(values, 12)))]
        expected[~train] = scores[~train] > best

    decisions = decide_out_of_sample(scores, labels, folds, metric)
    rows = [replace(row, scores=(float(s),)) for row, s in zip(rows, scores, strict=True)]

    assert np.array_equal(decisions, expected)
    view = summarize_judgements(rows).views[f"{metric.name}-lp"]
    assert view.value == pytest.approx(score(labels, expected))


def test_the_threshold_is_the_best_one_also_with_scores_of_minus_infinity() -> None:
    scores = np.array([-np.inf, -np.inf, -3.0, -2.0])
    labels = np.array([True, True, False, True])

    threshold = choose_threshold(scores, labels, MCC)

    # Decisions "score > threshold" by hand: none, all but -inf, the last one.
    correlations = {-np.inf: -0.5774, -2.5: 0.3333, np.inf: 0.0}
    for cut, value in correlations.items():
        assert matthews_corrcoef(labels, scores > cut) == pytest.approx(value, abs=1e-4)
    assert threshold == -2.5
    assert choose_threshold(scores[:3], labels[:3], MCC) == np.inf


def test_scores_without_information_have_no_correlation() -> None:
    rng = np.random.default_rng(1)
    majority, n = 0.8, 200
    labels = np.arange(n) < majority * n
    folds = assign_folds([str(i) for i in range(n)], labels)

    def decide(metric) -> Bools:
        return decide_out_of_sample(rng.normal(size=n), labels, folds, metric)

    correlations = [matthews_corrcoef(labels, decide(MCC)) for _ in range(150)]
    accuracies = [accuracy_score(labels, decide(ACCURACY)) for _ in range(150)]
    in_sample = []
    for _ in range(50):
        scores = rng.normal(size=n)
        threshold = choose_threshold(scores, labels, MCC)
        in_sample.append(matthews_corrcoef(labels, scores > threshold))

    error = np.std(correlations) / len(correlations) ** 0.5
    assert abs(np.mean(correlations)) < 0.01 + 3 * error
    assert majority - 0.02 < np.mean(accuracies) < majority
    assert np.mean(in_sample) > 0.1  # what a threshold chosen in sample would report


def test_notes_on_thresholds_state_the_coverage_of_their_intervals() -> None:
    rows, _ = draw_rows(40)

    notes = summarize_judgements(rows).notes

    [accuracies] = [note for note in notes if note.startswith("% right")]
    [correlations] = [note for note in notes if note.startswith("100 MCC")]
    assert f"cover {THRESHOLD_ACCURACY.range_text} in simulations" in accuracies
    assert f"cover {THRESHOLD_CORRELATION.range_text} in simulations" in correlations


def test_a_cluster_lies_in_one_fold_whatever_the_order() -> None:
    ids = [f"i{number}" for number in range(60)]
    labels, clusters = np.arange(60) % 3 > 0, np.arange(60, dtype=np.int32) // 2
    order = np.random.default_rng(0).permutation(60)

    folds = assign_folds(ids, labels, clusters)
    shuffled = assign_folds([ids[i] for i in order], labels[order], clusters[order])

    assert np.array_equal(folds[::2], folds[1::2])
    assert np.array_equal(shuffled, folds[order])
    assert np.ptp(np.bincount(folds)) <= 2


def test_without_unigrams_there_is_no_slor_and_a_note_says_why() -> None:
    rows, _ = draw_rows(40)

    found = summarize_judgements(rows)

    assert not any("slor" in name for name in found.views)
    assert NO_SLOR_NOTE in found.notes


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        (1, "100 AUC is undefined: all 8 sentences are acceptable, none is unacceptable"),
        (0, "100 AUC is undefined: all 8 sentences are unacceptable, none is acceptable"),
    ],
)
def test_judgements_of_one_class_are_refused(gold: int, words: str) -> None:
    with pytest.raises(DataError) as error:
        summarize_judgements([judgement(i, gold, -i) for i in range(8)])

    assert error.value.message == words


def test_one_class_that_fits_the_model_is_refused() -> None:
    rows = [judgement(0, 1, -1.0), judgement(1, 0, 0.0, 0, flags=("too-long",))]

    with pytest.raises(DataError, match="the only sentence is acceptable") as error:
        summarize_judgements(rows)

    assert error.value.message.endswith("(1 more do not fit the model)")


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.sampled_from("xyz"))))
def test_a_group_has_an_auc_if_it_has_both_classes(rows: list[tuple[int, int, str]]) -> None:
    rows = [(0, 0, "both"), (1, 0, "both"), *rows]
    predictions = from_rows(
        [
            replace(judgement(i, gold, score), labels={"group": group})
            for i, (gold, score, group) in enumerate(rows)
        ]
    )

    found = summarize(
        predictions, suite="toy", method="causal", metric="auc", macro=[], groups=["group"]
    )

    names = dict.fromkeys(group for _, _, group in rows)
    golds = {name: [gold for gold, _, group in rows if group == name] for name in names}
    scores = {name: [score for _, score, group in rows if group == name] for name in names}
    defined = [name for name in names if len(set(golds[name])) == 2]
    assert {group.name: group.estimate.value for group in found.groups} == {
        name: pytest.approx(roc_auc_score(golds[name], scores[name])) for name in defined
    }
    notes = [note for note in found.notes if "undefined" in note]
    assert bool(notes) == (len(defined) < len(names))
    for name in set(names) - set(defined):
        assert name in notes[0].partition(":")[0].split(", ")


def test_a_sentence_that_is_too_long_is_left_out() -> None:
    rows, unigram = draw_rows(40)
    rows.append(judgement(99, 0, 0.0, 0, flags=("too-long",)))

    found = summarize_judgements(rows, [*unigram, 0.0])

    assert found.headline.n == 40
    assert found.headline.flags == {"too-long": 1}
    assert found.headline.value == summarize_judgements(rows[:-1], unigram).headline.value


def test_wrong_judgements_are_refused() -> None:
    with pytest.raises(DataError, match="neither 1"):
        summarize_judgements([judgement(0, 2, -1.0)])
    with pytest.raises(DataError, match="too long") as error:
        summarize_judgements([judgement(0, 1, 0.0, 0, flags=("too-long",))])
    assert error.value.hint.startswith("shorten the texts, or raise --max-length if you gave it")
    with pytest.raises(UsageError, match="not averaged over groups"):
        summarize(
            from_rows([replace(judgement(0, 1, -1.0), labels={"a": "b"})]), suite="toy",
            method="causal", metric="auc", macro=["a"], groups=["a"],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("label", "expected"),
    [(True, 1), (False, 0), (1, 1), (0.0, 0), (1.0, 1), (" 1 ", 1), ("0", 0)],
)
def test_a_label_is_read_in_every_type(label: object, expected: int) -> None:
    assert JudgementSpec().read_label(label, "judgements.jsonl:2") == expected


@pytest.mark.parametrize("rating", [0.5, 1.5, -0.3, float("nan"), float("inf"), None])
def test_a_rating_is_no_label(rating: object) -> None:
    with pytest.raises(DataError, match=r"judgements.jsonl:2: the label 'label' must be one of"):
        JudgementSpec().read_label(rating, "judgements.jsonl:2")
