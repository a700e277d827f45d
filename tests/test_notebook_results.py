"""Comparisons, checks and reports as notebooks show them: escaped tables of the stored numbers."""

from __future__ import annotations

from antlm_bench.comparison.results import Comparison, Difference, RunComparison
from antlm_bench.comparison.verdict import FALLBACK_MARGINS, CheckResult, judge
from antlm_bench.notebook import to_html_table
from antlm_bench.results.collections import MemberResult, ReportedScore
from antlm_bench.results.reports import Report, ReportColumn
from antlm_bench.suites.collection import MemberSpec

HOSTILE = "<b>a & b</b>"
HEADLINE = Difference(
    "headline", "all", "", 1200, a=0.8125, b=0.75, value=-0.0625, low=-0.08, high=-0.045, p=0.001
)
COMPARISON = Comparison("blimp", "causal", "mlm", "accuracy", (1, 1), HEADLINE, (), (), ())
RUNS = RunComparison(HOSTILE, "new", "runs/a", "runs/b", (COMPARISON,), ("only in new: nano",))


def test_a_comparison_shows_both_values_and_their_difference() -> None:
    page = RUNS._repr_html_()
    for text in ("blimp", "causal / mlm", "0.8125", "0.7500", "-0.0625", "0.0010", "1,200"):
        assert f">{text}<" in page
    assert (
        '<th scope="col">&lt;b&gt;a &amp; b&lt;/b&gt;</th>' in page
        and "<li>only in new: nano</li>" in page
    )


def test_a_check_shows_its_status_and_what_is_missing() -> None:
    verdict = judge(COMPARISON, FALLBACK_MARGINS)
    page = CheckResult(RUNS, (verdict,), ("ewok · causal",))._repr_html_()
    assert "<caption>regression</caption>" in page and "<td>regression</td>" in page
    assert "0.0100" in page and "<li>missing: ewok · causal</li>" in page


def test_a_report_shows_scores_gaps_and_caveats() -> None:
    score = ReportedScore(0.625, "accuracy", 0.6, 0.65, n=100, caveats=("limit 100",))
    column = ReportColumn(HOSTILE, "causal", (MemberResult(score), MemberResult()))
    members = (MemberSpec(suite="blimp"), MemberSpec(suite="ewok-2026"))
    page = Report(None, members, (column,))._repr_html_()
    assert ">0.6250<" in page and "<td></td>" in page
    assert '<th scope="col">&lt;b&gt;a &amp; b&lt;/b&gt; causal</th>' in page
    assert "limit 100</li>" in page and HOSTILE not in page


def test_right_to_left_text_is_isolated() -> None:
    page = to_html_table(["word"], [["שלום, (1)"], ["naïve"]])
    assert "<td><bdi>שלום, (1)</bdi></td>" in page and "<td>naïve</td>" in page


def test_tiny_numbers_are_not_shown_as_zero() -> None:
    cells = [f">{text}</td>" for text in ("0.0000", "1.5e-08", "0.0001", "-0.2500")]
    page = to_html_table(["p"], [[0.0], [1.5e-8], [0.0001], [-0.25]])
    assert [cell in page for cell in cells] == [True] * 4
