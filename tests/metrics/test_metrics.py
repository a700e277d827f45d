"""Numbers from predictions, checked by hand, by brute force, and by scipy and scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_rows import PredictionRow, from_rows
from scipy import stats
from scipy.special import softmax
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import accuracy_score

from antlm_bench.errors import CheckpointError, DataError, UsageError
from antlm_bench.metrics import METRICS, TIE_RULES, ItemKind, summarize
from antlm_bench.metrics import summary as summary_module
from antlm_bench.types import Summary


def made(
    id: str, *scores: float, gold: float = 0, flags: tuple[str, ...] = (), **labels: str
) -> PredictionRow:
    n = len(scores)
    pred = int(np.argmax(scores)) if n else -1
    return PredictionRow(id, gold, pred, scores, (2,) * n, (8,) * n, labels, flags)


def summary(predictions: Sequence[PredictionRow], **options: Any) -> Summary:
    defaults: dict[str, Any] = {"metric": "accuracy", "macro": [], "groups": []}
    return summarize(
        from_rows(predictions), suite="toy", method="causal", **{**defaults, **options}
    )


PAIRS = [
    made("a0", -1, -2, paradigm="a", phenomenon="x"),
    made("a1", -1, -2, paradigm="a", phenomenon="x"),
    made("b0", -1, -2, paradigm="b", phenomenon="x"),
    made("b1", -3, -2, paradigm="b", phenomenon="x"),
    made("c0", -3, -2, paradigm="c", phenomenon="y"),
]


def test_headline_averages_paradigms_and_micro_averages_items() -> None:
    found = summary(PAIRS, macro=["paradigm"], groups=["phenomenon", "paradigm"])
    assert found.headline.value == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.headline.n == 5
    assert found.views["micro"].value == pytest.approx(3 / 5)
    assert "clustered" not in found.views
    assert found.notes == ("“like these”: not estimated from 3 groups, 8 are needed",)


def test_groups_go_coarse_to_fine_and_know_their_parent() -> None:
    groups = summary(PAIRS, macro=["paradigm"], groups=["phenomenon", "paradigm"]).groups
    assert [(g.level, g.name, g.within) for g in groups] == [
        ("phenomenon", "x", ""),
        ("phenomenon", "y", ""),
        ("paradigm", "a", "x"),
        ("paradigm", "b", "x"),
        ("paradigm", "c", "y"),
    ]
    assert [g.estimate.value for g in groups] == [3 / 4, 0, 1, 1 / 2, 0]
    assert [g.estimate.n for g in groups] == [4, 1, 2, 2, 1]


def test_a_group_that_spans_two_parents_names_none() -> None:
    spread = [
        made("1", 0, -1, field="f", phenomenon="p"),
        made("2", 0, -1, field="g", phenomenon="p"),
    ]
    assert summary(spread, groups=["field", "phenomenon"]).groups[-1].within == ""


def test_items_without_a_label_stand_in_no_group_of_that_level() -> None:
    found = summary([made("1", 0, -1, field="f"), made("2", 0, -1)], groups=["field"])
    assert [(g.name, g.estimate.n) for g in found.groups] == [("f", 1)]


def test_a_nested_macro_average_is_a_mean_of_means() -> None:
    right, wrong = (-1.0, -2.0), (-2.0, -1.0)
    predictions = [
        made("1", *right, file="r", ops="0"),
        made("2", *wrong, file="r", ops="1"),
        made("3", *wrong, file="r", ops="2"),
        made("4", *right, file="a", ops="0"),
    ]
    found = summary(predictions, macro=["file", "ops"], groups=["file"])
    assert found.headline.value == pytest.approx((1 / 3 + 1) / 2)
    assert summary(predictions, macro=["ops"]).headline.value == pytest.approx((1 + 0 + 0) / 3)


TIED = [made("t", -1, -1), made("u", -1, -1, -1, gold=2), made("v", -2, -1, -1), made("w", -1, -2)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("ties", "credit"), [("half", 1 / 2 + 1 / 3 + 0 + 1), ("strict", 1), ("first", 2)]
)
def test_tie_rules(ties: str, credit: float) -> None:
    found = summary(TIED, ties=ties)
    assert found.headline.value == pytest.approx(credit / 4)
    assert found.headline.flags == {"tie": 3}


@pytest.mark.long
def test_random_ties_are_fair_and_depend_on_the_id_alone() -> None:
    many = [made(f"item {i}", -1, -1) for i in range(4000)]
    found = summary(many, ties="random")
    assert abs(found.headline.value - 0.5) < 0.03
    back = summary([*many[::-1], made("other", -1, -2)], ties="random")
    assert back.headline.value * 4001 == pytest.approx(found.headline.value * 4000 + 1)


def test_a_collapsed_model_is_at_chance_unless_first_wins() -> None:
    collapsed = [made(str(i), -7, -7) for i in range(100)]
    assert summary(collapsed).headline.value == 0.5
    assert summary(collapsed, ties="first").headline.value == 1


def test_identical_texts_tie_even_where_scores_differ_by_rounding() -> None:
    found = summary([made("i", -1.0, -1.0000001, flags=("identical",))])
    assert found.headline.value == 0.5
    assert found.headline.flags == {"tie": 1, "identical": 1}


@pytest.mark.long
@pytest.mark.parametrize(
    "scores", [(), (float("nan"), float("nan")), (-3.0, float("-inf")), (-1.0, -2.0)]
)
def test_too_long_items_count_as_wrong_and_are_counted(scores: tuple[float, ...]) -> None:
    found = summary(
        [made("a", -1, -2, p="x"), made("b", *scores, p="x", flags=("too-long",), gold=1)],
        groups=["p"],
    )
    assert found.headline.value == 0.5
    assert found.headline.flags == {"too-long": 1} == found.groups[0].estimate.flags


def test_flags_are_counted_per_group() -> None:
    predictions = [
        made("a", -1, -2, p="x", flags=("unk", "blind")),
        made("b", -1, -2, p="y", flags=("unk",)),
    ]
    found = summary(predictions, macro=["p"], groups=["p"])
    assert found.headline.flags == {"unk": 2, "blind": 1}
    assert [g.estimate.flags for g in found.groups] == [{"unk": 1, "blind": 1}, {"unk": 1}]


def test_per_token_and_per_character_views_reduce_the_sums() -> None:
    longer = PredictionRow("l", 0, 1, (-6.0, -5.0), (3, 2), (9, 10), {}, ())
    found = summary([longer])
    assert found.headline.value == 0  # -6 < -5
    assert found.views["per-token"].value == 1  # -2 > -2.5
    assert found.views["per-character"].value == 0  # -0.67 < -0.5


def test_the_reduction_that_decides_is_the_one_that_ties() -> None:
    tied = PredictionRow("l", 0, 1, (-6.0, -4.0), (3, 2), (9, 10), {}, ())  # -2 per token each
    assert summary([tied]).headline.flags == {}
    per_token = summary([tied], reduction="per-token")
    assert (per_token.headline.value, per_token.headline.flags) == (0.5, {"tie": 1})
    assert (per_token.views["sum"].value, per_token.views["sum"].flags) == (0, {})


def test_eight_groups_that_differ_have_an_interval_of_groups_like_these() -> None:
    rights = (9, 8, 10, 7, 9, 6, 8, 10)
    pairs = [
        made(f"{name}{i}", -1, -2 if i < right else 0, p=name)
        for name, right in zip("abcdefgh", rights, strict=True)
        for i in range(10)
    ]
    found = summary(pairs, macro=["p"]).views["clustered"]
    means = np.array(rights) / 10
    low, _ = stats.t.interval(0.95, 7, loc=means.mean(), scale=stats.sem(means))
    assert found.low < low  # means near 1 hardly show how low a group can be
    assert means.mean() < found.high < 1


def test_few_groups_near_1_have_no_interval_of_groups_like_these() -> None:
    pairs = [
        made(f"{name}{i}", -1, -2 if i < right else 0, p=name)
        for name, right in zip("abcdefgh", (10, 10, 10, 10, 9, 10, 9, 10), strict=True)
        for i in range(10)
    ]
    found = summary(pairs, macro=["p"])
    assert "clustered" not in found.views
    assert "not estimated from 8 groups so near an end of the range" in found.notes[0]


def test_eight_equal_groups_do_not_show_that_groups_do_not_vary() -> None:
    perfect = [made(f"{p}{i}", -1, -2, p=p) for p in "abcdefgh" for i in range(10)]
    found = summary(perfect, macro=["p"])
    assert "clustered" not in found.views
    assert found.notes == ("“like these”: not estimated, because all groups are equal",)


def test_nothing_varies_yet_nothing_is_certain() -> None:
    perfect = [made(f"{p}{i}", -1, -2, p=p) for p in "abc" for i in range(10)]
    found = summary(perfect, macro=["p"])
    assert found.headline.value == found.headline.high == 1
    assert 0.7 < found.headline.low < 0.9
    assert found.views["closed-form"].low == found.headline.low
    assert "clustered" not in found.views


def test_one_level_has_nearly_wilsons_interval() -> None:
    found = summary(PAIRS)
    theirs = binomtest(3, 5).proportion_ci(method="wilson")
    expected = (theirs.low, theirs.high)
    assert (found.headline.low, found.headline.high) == pytest.approx(expected, abs=0.07)
    assert "clustered" not in found.views


@pytest.mark.long
@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 1)),
        min_size=1,
        max_size=40,
    )
)
def test_strict_accuracy_is_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    predictions = [made(str(i), a, b, gold=gold) for i, (a, b, gold) in enumerate(rows)]
    chosen = [2 if a == b else int(b > a) for a, b, _ in rows]
    expected = accuracy_score([gold for *_, gold in rows], chosen)
    assert summary(predictions, ties="strict").headline.value == pytest.approx(expected)


@pytest.mark.long
@settings(max_examples=30)
@given(
    st.lists(
        st.lists(st.sampled_from([-1.0, -2.0, float("-inf")]), min_size=2, max_size=5),
        min_size=1,
        max_size=30,
    )
)
def test_credit_by_brute_force_with_any_number_of_options(rows: list[list[float]]) -> None:
    predictions = [made(str(i), *scores) for i, scores in enumerate(rows)]
    credit = [(scores[0] == max(scores)) / scores.count(max(scores)) for scores in rows]
    assert summary(predictions).headline.value == pytest.approx(np.mean(credit))


def test_spearman_correlates_first_option_softmax_and_rating() -> None:
    rng = np.random.default_rng(0)
    scores, ratings = rng.normal(size=(60, 3)) * 3 - 20, rng.random(60)
    predictions = [
        made(str(i), *s, gold=float(r))
        for i, (s, r) in enumerate(zip(scores, ratings, strict=True))
    ]
    found = summary(predictions, metric="spearman")
    assert found.headline.value == pytest.approx(
        spearmanr(softmax(scores, axis=1)[:, 0], ratings).statistic
    )
    assert (
        found.headline.n == 60 and found.headline.low < found.headline.value < found.headline.high
    )


@pytest.mark.parametrize(
    ("ratings", "words"),
    [
        ([0.2, 0.4], "100 rho is undefined: spearman needs 3 items or more, not 2"),
        ([0.5] * 4, "100 rho is undefined: all 4 items have the rating 0.5"),
    ],
)
def test_a_correlation_with_no_ranks_is_refused(ratings: list[float], words: str) -> None:
    predictions = [made(str(i), -i, -1, gold=rating) for i, rating in enumerate(ratings)]

    with pytest.raises(DataError) as error:
        summary(predictions, metric="spearman")

    assert error.value.message == words


def test_a_group_of_equal_ratings_is_left_out() -> None:
    predictions = [
        made(str(i), -i, -1, gold=i / 10 if i < 5 else 0.5, kind="ab"[i // 5]) for i in range(10)
    ]

    found = summary(predictions, metric="spearman", groups=["kind"])

    assert [group.name for group in found.groups] == ["a"]
    assert "b: 100 rho undefined (too few items, or equal ratings), left out" in found.notes


def test_a_correlation_that_is_undefined_is_said_to_be() -> None:
    constant = summary([made(str(i), -1, -1, gold=i / 10) for i in range(10)], metric="spearman")
    assert (constant.headline.value, constant.headline.low, constant.headline.high) == (0, -1, 1)
    assert any("undefined" in note for note in constant.notes)


def test_a_correlation_without_interval_has_a_note() -> None:
    three = summary([made(str(i), -i, -1, gold=i / 10) for i in range(3)], metric="spearman")
    tied = summary(
        [made(str(i), -max(i - 42, 0), -1, gold=i / 50) for i in range(50)], metric="spearman"
    )
    small = summary(
        [made(str(i), -i, -1, gold=i / 50, kind="few" if i < 20 else "many") for i in range(50)],
        metric="spearman",
        groups=["kind"],
    )
    assert small.headline.high < 1 and "few: no interval" in " ".join(small.notes)
    for found, value in ((three, -1), (tied, -0.6)):
        assert (found.headline.low, found.headline.high) == (
            -1,
            1,
        ) and found.headline.value < value + 0.2
        assert [note for note in found.notes if "no interval" in note]
        assert not any("undefined" in note for note in found.notes)


def test_spearman_leaves_out_items_that_are_too_long() -> None:
    predictions = [made(str(i), -i, -3, gold=-i / 10) for i in range(10)]
    found = summary([*predictions, made("x", gold=0.5, flags=("too-long",))], metric="spearman")
    assert found.headline.n == 10 and found.headline.value == pytest.approx(1)
    assert found.headline.flags["too-long"] == 1


@pytest.mark.parametrize(
    ("predictions", "options", "error", "words"),
    [
        ([], {}, DataError, "no predictions"),
        ([made("q7", float("nan"), -1)], {}, CheckpointError, "item q7"),
        ([made("q7", float("inf"), -1)], {}, CheckpointError, "item q7"),
        ([made("q7")], {}, CheckpointError, "item q7"),
        ([made("q7", -1, -2, gold=2)], {}, DataError, "item q7"),
        ([made("q7", -1, -2, gold=0.5)], {}, DataError, "gold 0.5"),
        ([made("q7", -1, -2)], {"macro": ["paradigm"]}, DataError, "item q7: no label 'paradigm'"),
        ([made("q7", -1, -2)], {"metric": "acuracy"}, UsageError, "Did you mean 'accuracy'"),
        ([made("q7", -1, -2)], {"reduction": "per-tokens"}, UsageError, "did you mean per-token"),
        ([made("q7", -1, -2)], {"ties": "strikt"}, UsageError, "did you mean strict"),
        ([PredictionRow("q7", 0, 0, (-1.0, -2.0), (1,), (1, 1))], {}, DataError, "item q7"),
        (
            [made("a", 0, -1, p="x"), made("b", 0, -1, p="y")],
            {"metric": "spearman", "macro": ["p"]},
            UsageError,
            "all",
        ),
        (
            [made("q7", *[float("-inf")] * 2, gold=0.5)],
            {"metric": "spearman"},
            CheckpointError,
            "item q7",
        ),
    ],
)
def test_bad_input_is_a_typed_error_that_names_the_place(
    predictions: list[PredictionRow], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        summary(predictions, **options)


@pytest.mark.long
def test_every_metric_and_tie_rule_in_the_tables_exists() -> None:
    for spec in METRICS:
        if not (spec.aggregation or spec.confusion):
            continue  # computed by a command of its own
        rated = spec.item_kind is ItemKind.RATING
        judged = spec.item_kind is ItemKind.JUDGEMENT
        golds = [i / 9 if rated else int(judged) * i % 2 for i in range(9)]
        items = [made(str(i), -i, -2.5, gold=golds[i], word=f"w{i}") for i in range(9)]
        items = [replace(item, judged=(1.0, 2.0)) for item in items]  # as a task's code has it
        reduction = "class" if spec.item_kind is ItemKind.CLASS else "sum"
        for ties in TIE_RULES:
            made_of = summary(items, metric=spec.name, ties=ties, reduction=reduction)
            assert made_of.metric == spec.name


def test_one_prediction_table_serves_all_groups_of_blimp(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(67, 10, 2)).tolist()
    predictions = [
        made(
            f"{k}_{i}", *scores[k][i], paradigm=f"p{k}", phenomenon=f"h{k % 12}", field=f"f{k % 4}"
        )
        for k in range(67)
        for i in range(10)
    ]
    build_table = Mock(wraps=summary_module.build_table)
    monkeypatch.setattr(summary_module, "build_table", build_table)
    found = summary(predictions, macro=["paradigm"], groups=["field", "phenomenon", "paradigm"])
    assert build_table.call_count == 1
    assert len(found.groups) == 4 + 12 + 67
