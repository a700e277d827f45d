"""Every output and page that states the rule of `check` states the one of `comparison.verdict`."""

from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from table_runs import ONE_RUN

from antlm_bench.cli.app import run
from antlm_bench.comparison import Comparison, Difference, RunComparison
from antlm_bench.comparison.verdict import (
    GATE_RULE,
    STATUS_RULES,
    CheckResult,
    Margins,
    judge,
    mark_drops,
)
from antlm_bench.reporting import results_table
from antlm_bench.reporting.check_table import build_check_table, build_exit_error
from antlm_bench.reporting.github import escape_message, workflow_commands
from antlm_bench.reporting.html import render_page
from antlm_bench.reporting.junit import to_junit_xml
from antlm_bench.reporting.report_data import ReportData
from antlm_bench.reporting.writers import write_terminal

ROOT = Path(__file__).resolve().parents[2]


def check_drop(low: float, high: float, *, fail_on_drop: bool = False) -> CheckResult:
    """Check one suite whose drop has the interval low..high, with a margin of .01."""
    value = -(low + high) / 2
    difference = Difference("headline", "toy", "", 900, 0.8, 0.8 + value, value, -high, -low, 0.01)
    comparison = Comparison("toy", "causal", "causal", "accuracy", (1, 1), difference, (), (), ())
    verdicts = (judge(comparison, Margins(0.01)),)
    if fail_on_drop:
        verdicts = mark_drops(verdicts)
    return CheckResult(RunComparison("old", "new", "a", "b", (comparison,)), verdicts, ())


def join_lines(text: str) -> str:
    """Return text on one line, without the marks of a quotation."""
    return " ".join(re.sub("^> ", "", text, flags=re.MULTILINE).split())


def test_the_table_states_the_rule() -> None:
    table = build_check_table(check_drop(0.02, 0.03), 1)
    assert GATE_RULE in join_lines(write_terminal(table))


def test_junit_states_the_rule() -> None:
    root = ElementTree.fromstring(to_junit_xml(check_drop(0.02, 0.03)))
    rules = [node.get("value") for node in root.iter("property") if node.get("name") == "rule"]
    assert rules == [GATE_RULE]


def test_github_states_the_rule() -> None:
    notices = [
        line
        for line in workflow_commands(check_drop(0.02, 0.03)).splitlines()
        if line.startswith("::notice")
    ]
    assert len(notices) == 1
    assert notices[0].endswith(escape_message(GATE_RULE))


def test_the_page_states_the_rule_and_that_it_has_no_verdicts() -> None:
    columns = tuple(results_table.build_columns(ONE_RUN))
    page = render_page(ReportData("a page", tuple(ONE_RUN), ("a model",), columns), {})
    text = join_lines(html.unescape(re.sub("<[^>]*>", "", page)))
    assert GATE_RULE in text
    assert "states differences and no verdicts" in text


def test_the_help_states_the_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run(["check", "--help"])
    assert GATE_RULE in join_lines(capsys.readouterr().out)


@pytest.mark.parametrize("page", ["docs/how-to/ci.md"])
def test_the_pages_state_the_rule(page: str) -> None:
    assert GATE_RULE in join_lines((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("low", "high", "fail_on_drop", "strict", "status", "exit_code"),
    [
        (-0.005, 0.005, False, False, "pass", 0),
        (0.002, 0.008, False, False, "pass", 0),  # significant, and within the margin
        (0.015, 0.03, False, False, "regression", 1),
        (0.005, 0.02, False, False, "undecided", 0),
        (0.005, 0.02, False, True, "undecided", 4),
        (0.002, 0.008, True, False, "drop", 1),
        (-0.005, 0.02, True, True, "undecided", 4),
    ],
)
def test_the_rule_is_the_one_that_is_applied(
    low: float, high: float, fail_on_drop: bool, strict: bool, status: str, exit_code: int
) -> None:
    result = check_drop(low, high, fail_on_drop=fail_on_drop)
    error = build_exit_error(result, strict)
    assert result.status == status
    assert (error.exit_code if error else 0) == exit_code
    assert status in STATUS_RULES
