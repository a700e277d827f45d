"""The rule of the gate: three outcomes in a fixed order, groups judged only by margins of their own, causes named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.compare import Comparison, Difference
from antlm_bench.compare.policy import margins
from antlm_bench.compare.verdict import Margins, explaining, judge
from antlm_bench.errors import DeclarationError, UsageError


def difference(
    value: float, half: float, level: str = "headline", name: str = "toy", p: float | None = None
) -> Difference:
    return Difference(level, name, "", 100, 0.8, 0.8 + value, value, value - half, value + half, p, p)


def comparison(headline: Difference, *groups: Difference) -> Comparison:
    return Comparison("toy", "causal", "causal", "accuracy", (1, 1), headline, groups, (), ())


@pytest.mark.parametrize(
    ("value", "half", "status", "dropped"),
    [
        (0.000, 0.005, "pass", False),
        (0.050, 0.005, "pass", False),
        (-0.005, 0.004, "pass", True),  # significant, and tolerable
        (-0.020, 0.005, "regression", True),
        (-0.011, 0.0105, "regression", True),
        (-0.009, 0.008, "inconclusive", True),  # worse for sure, but perhaps tolerably
        (-0.012, 0.013, "inconclusive", False),
        (0.000, 0.011, "inconclusive", False),
        (0.020, 0.040, "inconclusive", False),
    ],
)
def test_the_order_of_the_rule(value: float, half: float, status: str, dropped: bool) -> None:
    verdict = judge(comparison(difference(value, half)), Margins(default=0.01))
    assert (verdict.status, verdict.headline.dropped) == (status, dropped)


@given(value=st.floats(-0.5, 0.5), half=st.floats(0, 0.3), margin=st.floats(0.001, 0.2), more=st.floats(0, 0.1))
def test_a_wider_margin_never_turns_a_pass_into_a_failure(
    value: float, half: float, margin: float, more: float
) -> None:
    order = ["regression", "inconclusive", "pass"]
    narrow, wide = (judge(comparison(difference(value, half)), Margins(default=m)) for m in (margin, margin + more))
    assert order.index(wide.status) >= order.index(narrow.status)


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
    assert [d.name for d in verdict.culprits] == ["npi", "islands"]
    named = judge(made, Margins(groups={"islands": 0.01, "wh_island": 0.5}))
    assert named.status == "regression" and [g.difference.name for g in named.groups] == ["islands", "wh_island"]
    assert judge(made, Margins(groups={"islands": 0.05})).status == "pass"
    every = judge(made, Margins(every_group=0.02))
    assert [g.status for g in every.groups] == ["regression", "inconclusive", "regression", "pass"]
    assert every.status == "regression"


def test_a_group_too_small_to_be_sure_of_does_not_fail_the_suite() -> None:
    unsure = difference(-0.03, 0.01, "phenomenon", "islands", p=0.06)  # after adjustment for the others
    assert judge(comparison(difference(0, 0.001), unsure), Margins(every_group=0.01)).status == "pass"


def test_margins_of_suites_overrule_the_default() -> None:
    made = comparison(difference(-0.02, 0.005))
    assert judge(made, Margins(default=0.01, suites={"toy": 0.05})).status == "pass"
    assert judge(made, Margins(default=0.05, suites={"toy": 0.01})).status == "regression"


def test_the_level_that_explains() -> None:
    headline = difference(0, 0.1)
    one = [difference(0, 0.1, "field", "syntax")]
    two = [difference(0, 0.1, "domain", name) for name in "ab"]
    three = [difference(0, 0.1, "phenomenon", name) for name in "ab"]
    assert explaining(comparison(headline)) == "headline"
    assert explaining(comparison(headline, *one, *two)) == "domain"
    assert explaining(comparison(headline, *one, *two, *three)) == "phenomenon"


def test_a_policy_is_read_in_points(tmp_path: Path) -> None:
    file = tmp_path / "check.toml"
    file.write_text("margin = 2\n[suites]\nblimp = 0.5\n[groups]\nisland_effects = 3.0\n")
    read = margins(file)
    assert (read.default, read.every_group) == (pytest.approx(0.02), None)
    assert read.suites == {"blimp": pytest.approx(0.005)} and read.groups == {"island_effects": pytest.approx(0.03)}
    assert margins(file, 1.5, 4).default == pytest.approx(0.015)
    assert margins(file, 1.5, 4).every_group == pytest.approx(0.04)
    assert margins().default == Margins().default


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
        margins(file)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("value", [0.0, -1.0, 101.0, float("nan")])
def test_a_margin_is_above_zero(value: float) -> None:
    with pytest.raises(UsageError, match="--margin"):
        margins(margin=value)
    with pytest.raises(UsageError, match="--group-margin"):
        margins(every_group=value)
