"""The rule of the gate: three outcomes in a fixed order, groups judged only by margins of their
own, causes named.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from antlm_bench.comparison import Comparison, Difference
from antlm_bench.comparison.margins import load_margins, load_suite_margins
from antlm_bench.comparison.verdict import (
    Margins,
    adjust_for_multiple_suites,
    explanatory_level,
    judge,
    mark_drops,
)
from antlm_bench.errors import DeclarationError, UsageError
from antlm_bench.statistics import detectable_drops, pass_probability, planned_flip_rates
from antlm_bench.statistics.stratified_score import StratifiedCounts, score_intervals


def difference(
    value: float, half: float, level: str = "headline", name: str = "toy", p: float | None = None
) -> Difference:
    return Difference(
        level, name, "", 100, 0.8, 0.8 + value, value, value - half, value + half, p, p
    )


def comparison(headline: Difference, *groups: Difference) -> Comparison:
    return Comparison("toy", "causal", "causal", "accuracy", (1, 1), headline, groups, (), ())


@pytest.mark.parametrize(
    ("value", "half", "status", "dropped"),
    [
        (0.000, 0.005, "pass", False),
        (0.050, 0.005, "pass", False),
        (-0.005, 0.004, "pass", True),  # significant, and tolerable
        (-0.020, 0.005, "regression", True),
        (-0.011, 0.0005, "regression", True),
        (-0.011, 0.0105, "undecided", True),  # worse for sure, but perhaps tolerably
        (-0.009, 0.008, "undecided", True),  # worse for sure, but perhaps tolerably
        (-0.012, 0.013, "undecided", False),
        (0.000, 0.011, "undecided", False),
        (0.020, 0.040, "undecided", False),
    ],
)
def test_the_order_of_the_rule(value: float, half: float, status: str, dropped: bool) -> None:
    verdict = judge(comparison(difference(value, half)), Margins(default=0.01))
    assert (verdict.status, verdict.headline.is_significantly_worse) == (status, dropped)


@given(
    value=st.floats(-0.5, 0.5),
    half=st.floats(0, 0.3),
    margin=st.floats(0.001, 0.2),
    more=st.floats(0, 0.1),
)
def test_a_wider_margin_never_turns_a_pass_into_a_failure(
    value: float, half: float, margin: float, more: float
) -> None:
    order = ["regression", "undecided", "pass"]
    narrow, wide = (
        judge(comparison(difference(value, half)), Margins(default=m))
        for m in (margin, margin + more)
    )
    assert order.index(wide.status) >= order.index(narrow.status)


@pytest.mark.long
def test_five_suites_at_their_margin_have_hardly_ever_a_regression() -> None:
    trials, margin, error = 2000, 0.01, 0.004
    drawn = -margin + error * np.random.default_rng(1).normal(size=(trials, 5))
    alone = together = 0
    for values in drawn:
        verdicts = [
            judge(comparison(difference(float(value), 1.96 * error)), Margins(margin))
            for value in values
        ]
        alone += any(v.status == "regression" for v in verdicts)
        together += any(v.status == "regression" for v in adjust_for_multiple_suites(verdicts))
    assert alone / trials > 0.09
    assert together / trials <= 0.035


def test_a_regression_of_several_suites_is_adjusted_by_holm() -> None:
    clear, close = difference(-0.05, 0.01), difference(-0.0205, 0.01)
    verdicts = [judge(comparison(d), Margins(0.01)) for d in (clear, close, difference(0, 0.005))]
    assert [v.status for v in verdicts] == ["regression", "regression", "pass"]

    corrected = adjust_for_multiple_suites(verdicts)

    p = stats.norm.sf(1.959964 * 0.0105 / 0.01)
    assert verdicts[1].headline.p == pytest.approx(p, rel=1e-4) and 2 * p > 0.025
    assert [v.status for v in corrected] == ["regression", "undecided", "pass"]
    assert [v.headline.correction for v in corrected] == ["", "Holm over 3 suites", ""]


def test_p_of_a_regression_is_that_of_the_t_test_behind_the_interval() -> None:
    changes = np.array([-0.30, -0.22, -0.27])
    t_test = stats.ttest_1samp(changes, -0.05, alternative="less")
    half = float(stats.t.ppf(0.975, 2) * stats.sem(changes))
    measured = replace(difference(float(changes.mean()), half), df=2)

    judgement = judge(comparison(measured), Margins(0.05)).headline

    assert judgement.p == pytest.approx(t_test.pvalue)
    assert judgement.status == "regression" and judgement.p < 0.025


@pytest.mark.parametrize(
    ("value", "half", "status"),
    [
        (-0.005, 0.004, "drop"),  # passes the margin of .01
        (-0.011, 0.0105, "drop"),  # undecided
        (-0.020, 0.005, "regression"),
        (-0.005, 0.006, "undecided"),
        (-0.003, 0.004, "pass"),
        (0.020, 0.005, "pass"),
        (0.000, 0.000, "pass"),
    ],
)
def test_a_drop_is_a_significant_loss_of_any_size(value: float, half: float, status: str) -> None:
    verdict = mark_drops([judge(comparison(difference(value, half)), Margins(0.01))])[0]
    assert (verdict.status, verdict.headline.status) == (status, status)


def test_drops_of_several_suites_are_adjusted_by_holm() -> None:
    close, steady = difference(-0.0053, 0.005), difference(0, 0.005)
    verdicts = [judge(comparison(d), Margins(0.02)) for d in (close, steady, steady)]

    marked = mark_drops(verdicts)

    p = stats.norm.sf(1.959964 * 0.0053 / 0.005)
    assert p < 0.025 < 3 * p
    assert [v.status for v in mark_drops(verdicts[:1])] == ["drop"]
    assert [v.status for v in marked] == ["pass", "pass", "pass"]
    assert [v.headline.correction for v in marked] == ["Holm over 3 suites", "", ""]


def test_items_to_decide_shrink_the_interval_to_the_distance_from_the_margin() -> None:
    judged = judge(comparison(difference(-0.004, 0.012, p=0.5)), Margins(default=0.01)).headline
    # Half the interval must shrink from .012 to .006 / 1.43: (2.86)^2 times 100 items.
    assert judged.items_to_decide == 820


def test_items_to_decide_with_few_flips_are_those_that_pass_in_80_percent() -> None:
    flips, margin = 0.02, 0.01
    [detectable] = detectable_drops(planned_flip_rates(np.array([100]), np.ones(1), flips))
    equal = replace(difference(0.0, 0.03, p=1.0), detectable=float(detectable), flip_rate=flips)

    items = judge(comparison(equal), Margins(default=margin)).headline.items_to_decide

    enlarged = planned_flip_rates(np.array([items]), np.ones(1), flips)
    assert pass_probability(enlarged, margin) == pytest.approx(0.8, abs=0.02)


@pytest.mark.long
@pytest.mark.parametrize(("share", "most"), [(0.8, 0.02), (1.0, 0.035)])
def test_a_drop_within_the_margin_is_hardly_ever_a_regression(share: float, most: float) -> None:
    items, trials, margin = 1500, 1500, 0.02
    drop = share * margin
    rng = np.random.default_rng(0)
    table = rng.multinomial(items, (0.03 + drop, 0.94 - drop, 0.03), size=trials).astype(float)
    means = (table[:, 2] - table[:, 0]) / items
    values, ones, starts = np.array([-1.0, 0.0, 1.0]), np.ones(trials), np.arange(trials)
    counts = StratifiedCounts(values, table, means, ones, starts)

    lows, highs = score_intervals(counts)
    judged = [
        judge(comparison(replace(difference(0, 0), value=v, low=low, high=high)), Margins(margin))
        for v, low, high in zip(means, lows, highs, strict=True)
    ]
    regressions = sum(verdict.status == "regression" for verdict in judged)

    assert regressions / trials <= most


def test_groups_explain_and_fail_only_by_a_margin_of_their_own() -> None:
    made = comparison(
        difference(-0.002, 0.003),
        difference(-0.03, 0.01, "phenomenon", "islands", p=0.001),
        difference(-0.06, 0.05, "phenomenon", "binding", p=0.2),
        difference(-0.04, 0.01, "phenomenon", "npi", p=0.001),
        difference(0.05, 0.01, "phenomenon", "agreement", p=0.001),
        difference(-0.30, 0.01, "paradigm", "wh_island", p=0.0001),
    )
    verdict = judge(made, Margins())
    assert verdict.status == "pass" and not verdict.groups
    assert [d.name for d in verdict.worse_groups] == ["npi", "islands"]
    named = judge(made, Margins(groups={"islands": 0.01, "wh_island": 0.5}))
    assert named.status == "regression" and [g.difference.name for g in named.groups] == [
        "islands",
        "wh_island",
    ]
    assert judge(made, Margins(groups={"islands": 0.05})).status == "pass"
    every = judge(made, Margins(every_group=0.02))
    assert [g.status for g in every.groups] == [
        "undecided",
        "undecided",
        "regression",
        "pass",
    ]
    assert every.status == "regression"


def test_a_group_too_small_to_be_sure_of_does_not_fail_the_suite() -> None:
    unsure = difference(
        -0.03, 0.01, "phenomenon", "islands", p=0.06
    )  # after adjustment for the others
    assert (
        judge(comparison(difference(0, 0.001), unsure), Margins(every_group=0.01)).status == "pass"
    )


def test_margins_of_suites_overrule_the_default() -> None:
    made = comparison(difference(-0.02, 0.005))
    assert judge(made, Margins(default=0.01, suites={"toy": 0.05})).status == "pass"
    assert judge(made, Margins(default=0.05, suites={"toy": 0.01})).status == "regression"


def test_the_level_that_explains() -> None:
    headline = difference(0, 0.1)
    one = [difference(0, 0.1, "field", "syntax")]
    two = [difference(0, 0.1, "domain", name) for name in "ab"]
    three = [difference(0, 0.1, "phenomenon", name) for name in "ab"]
    assert explanatory_level(comparison(headline)) == "headline"
    assert explanatory_level(comparison(headline, *one, *two)) == "domain"
    assert explanatory_level(comparison(headline, *one, *two, *three)) == "phenomenon"


def test_a_policy_is_read_in_points(tmp_path: Path) -> None:
    file = tmp_path / "check.toml"
    file.write_text("margin = 2\n[suites]\nblimp = 0.5\n[groups]\nisland_effects = 3.0\n")
    typed, read = load_margins(file, 1.5, 4)
    assert (read.default, read.every_group, read.source) == (pytest.approx(0.02), None, str(file))
    assert read.suites == {"blimp": pytest.approx(0.005)} and read.groups == {
        "island_effects": pytest.approx(0.03)
    }
    assert (typed.default, typed.every_group) == (pytest.approx(0.015), pytest.approx(0.04))
    assert load_margins() == (Margins(source="--margin"),)


def test_a_margin_is_that_of_whoever_says_it_first() -> None:
    names = ("islands", "binding")
    made = comparison(
        difference(0, 0.001), *(difference(0, 0.001, "phenomenon", name, p=1.0) for name in names)
    )
    typed, policy, own = (
        Margins(0.02, source="--margin"),
        Margins(0.03, {"toy": 0.04}, {"islands": 0.05}, source="check.toml"),
        Margins(0.06, groups={"islands": 0.07}, source="toy.toml"),
    )

    def said(*layers: Margins) -> list[tuple[float, str]]:
        verdict = judge(made, *layers)
        return [(one.tolerance, one.source) for one in (verdict.headline, *verdict.groups)]

    assert said(typed, policy, own) == [(0.02, "--margin"), (0.05, "check.toml")]
    assert said(Margins(), policy, own) == [(0.04, "check.toml"), (0.05, "check.toml")]
    assert said(replace(policy, suites={}), own)[0] == (0.03, "check.toml")
    assert said(replace(policy, suites={}, default=None, groups={}), own) == [
        (0.06, "toy.toml"),
        (0.07, "toy.toml"),
    ]
    assert said() == [(0.01, "default")]
    assert said(Margins(every_group=0.08, source="--margin"), policy)[1] == (0.08, "--margin")


def test_a_suites_own_toml_has_margins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    file = tmp_path / "tasks" / "toy.toml"
    file.parent.mkdir()
    file.write_text('kind = "suite"\n[check]\nmargin = 2.0\ngroups = {islands = 5}\n')
    own = load_suite_margins("toy")
    assert (own.default, own.groups, own.source) == (
        pytest.approx(0.02),
        {"islands": pytest.approx(0.05)},
        "toy.toml",
    )
    assert (
        load_suite_margins("blimp")
        == load_suite_margins("nobody")
        == load_suite_margins("../../etc/passwd")
        == Margins()
    )
    file.write_text("[check]\nmargn = 2.0\n")
    with pytest.raises(
        DeclarationError, match=r"toy.toml: check: unknown key 'margn': did you mean 'margin'"
    ):
        load_suite_margins("toy")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("margn = 1", "unknown key 'margn': did you mean 'margin'"),
        ("margin = 0", "check.toml: margin"),
        ("margin = -1", "greater than 0"),
        ("margin = 'wide'", "check.toml: margin"),
        ("[suites]\nblimp = 0", "check.toml: suites.blimp"),
        ("[groups]\nx = nan", "groups.x"),
        ("margin =\n", "check.toml:1"),
        ("[suites\n", "check.toml:1"),
    ],
)
def test_a_wrong_policy_names_its_place(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "check.toml"
    file.write_text(text)
    with pytest.raises(DeclarationError) as refused:
        load_margins(file)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0, float("nan")])
def test_a_margin_is_above_zero(value: float) -> None:
    with pytest.raises(UsageError, match="--margin"):
        load_margins(margin=value)
    with pytest.raises(UsageError, match="--group-margin"):
        load_margins(every_group=value)
