"""What CI systems read: JSON as documented, XML that parses whatever the names, commands nothing
breaks out of.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.comparison import Comparison, Difference, RunComparison
from antlm_bench.comparison.verdict import CheckResult, Margins, judge
from antlm_bench.errors import UsageError
from antlm_bench.reporting.check_table import build_check_table, summarize_verdict
from antlm_bench.reporting.github import (
    MAX_ANNOTATIONS,
    MAX_SUMMARY_BYTES,
    append_summary,
    append_verdict,
    escape_message,
    escape_property,
    workflow_commands,
)
from antlm_bench.reporting.junit import to_junit_xml
from antlm_bench.reporting.writers import write_json, write_markdown


def checked(
    *suites: tuple[str, float, float], missing: tuple[str, ...] = (), group: str = ""
) -> CheckResult:
    """A check of suites (name, difference, half of its interval), each with a phenomenon twice as
    bad.
    """
    verdicts = []
    for name, value, half in suites:
        head, worse = (
            Difference(level, label, within, 900, 0.8, 0.8 + v, v, v - half, v + half, 0.01, 0.01)
            for level, label, within, v in (
                ("headline", name, "", value),
                ("phenomenon", group or "islands", "syn,tax", 2 * value),
            )
        )
        other = Difference(
            "phenomenon", "other", "syn,tax", 90, 0.8, 0.8, 0.0, -0.01, 0.01, 1.0, 1.0
        )
        made = Comparison(
            name, "causal", "causal", "accuracy", (1, 1), head, (worse, other), (), ("a note",)
        )
        verdicts.append(
            judge(made, Margins(groups={group: 0.02} if group else {}, source="check.toml"))
        )
    return CheckResult(
        RunComparison("old", "new", "a", "b", tuple(v.comparison for v in verdicts)),
        tuple(verdicts),
        missing,
    )


def test_the_verdict_as_json_is_the_one_of_the_docs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "ci.md").read_text(
        encoding="utf-8"
    )
    shown = re.search(r"```json\n(.*?)```", text, re.S)
    made = checked(("bad", -0.05, 0.01), missing=("ewok · causal",), group="islands")
    rounded = json.loads(
        write_json(build_check_table(made, 1)), parse_float=lambda number: round(float(number), 9)
    )
    rows = rounded.pop("table")["rows"]
    assert [row["status"] for row in rows] == ["regression", "regression"]
    assert shown and rounded == json.loads(shown[1])
    assert list(rounded) == list(json.loads(shown[1]))  # in this order
    assert (
        json.loads(write_json(build_check_table(checked(("good", 0.0, 0.001), missing=("x",)), 5)))[
            "status"
        ]
        == "incomplete"
    )


THREE = (("good", 0.01, 0.005), ("bad", -0.05, 0.01), ("vague", -0.005, 0.02))


def test_every_outcome_has_its_element() -> None:
    root = Xml.fromstring(
        to_junit_xml(checked(*THREE, missing=("ewok · causal",), group="islands"))
    )
    cases = {
        (case.get("classname"), case.get("name")): [child.tag for child in case]
        for case in root.iter("testcase")
    }
    assert cases == {
        ("good.causal", "good"): [],
        ("good.causal.syn,tax", "islands"): [],
        ("bad.causal", "bad"): ["failure"],
        ("bad.causal.syn,tax", "islands"): ["failure"],
        ("vague.causal", "vague"): ["skipped"],
        ("vague.causal.syn,tax", "islands"): ["skipped"],
        ("missing", "ewok · causal"): ["error"],
    }
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "7",
        "failures": "2",
        "errors": "1",
        "skipped": "2",
    }
    for suite in root.findall("testsuite"):
        assert suite.get("tests") == str(len(suite.findall("testcase")))
        assert suite.get("failures") == str(len(suite.findall(".//failure")))
    failure = root.find(".//testsuite[@name='bad.causal']/testcase/failure")
    assert failure is not None and failure.get("type") == "regression"
    assert failure.get("message") == "-5.0 (95% CI [-6.0, -4.0]), margin 1.0"
    assert "islands -10.0" in (failure.text or "")


def test_too_little_data_fails_under_strict_but_not_a_group() -> None:
    root = Xml.fromstring(
        to_junit_xml(checked(("vague", -0.005, 0.02), group="islands"), strict=True)
    )
    assert [[child.tag for child in case] for case in root.iter("testcase")] == [
        ["failure"],
        ["skipped"],
    ]


@pytest.mark.long
@given(name=st.text(min_size=1, max_size=40), group=st.text(min_size=1, max_size=40))
def test_any_name_gives_xml_that_parses_to_it(name: str, group: str) -> None:
    found = checked((name, -0.05, 0.01), missing=(name,), group=group)
    root = Xml.fromstring(to_junit_xml(found).decode("utf-8"))
    assert len(list(root.iter("testcase"))) == 3 and len(list(root.iter("failure"))) == 2
    shown = [case.get("name") for case in root.iter("testcase")]
    assert shown[0] == "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    lines = workflow_commands(found).splitlines()
    assert [line.split("%3A ")[0] for line in lines] == [
        "::error title=antlm-bench",
        "::error title=antlm-bench",
        "::notice title=antlm-bench",
    ]
    table = [
        line
        for line in write_markdown(build_check_table(found, 0)).splitlines()
        if line.startswith("| ")
    ]
    assert len({line.replace("\\\\", "").replace("\\|", "").count("|") for line in table}) == 1


@given(text=st.text())
def test_escapes_are_those_of_the_toolkit_and_can_be_undone(text: str) -> None:
    for escaped, marks in ((escape_message(text), "\r\n"), (escape_property(text), "\r\n:,")):
        assert not set(escaped) & set(marks)
        undone = (
            escaped.replace("%0A", "\n")
            .replace("%0D", "\r")
            .replace("%3A", ":")
            .replace("%2C", ",")
        )
        assert undone.replace("%25", "%") == text


def test_at_most_ten_of_a_kind_and_none_is_lost() -> None:
    many = [(f"suite{i}", -0.05, 0.01) for i in range(25)]
    lines = workflow_commands(checked(*many, ("vague", -0.005, 0.02))).splitlines()
    errors = [line for line in lines if line.startswith("::error")]
    assert len(errors) == MAX_ANNOTATIONS
    assert [line.partition(" ")[0] for line in lines[MAX_ANNOTATIONS:]] == ["::warning", "::notice"]
    assert all(f"suite{i} " in "".join(errors) for i in range(25))
    assert "16 more" in errors[-1]


def test_a_pass_is_silent_unless_something_dropped() -> None:
    assert workflow_commands(checked(("good", 0.01, 0.005))) == ""
    assert workflow_commands(checked(("fine", -0.004, 0.003))).startswith(
        "::warning title=antlm-bench%3A pass%2C with a drop::"
    )
    assert "within the margin" in summarize_verdict(checked(("fine", -0.004, 0.003)).verdicts[0])


def test_the_summary_grows_and_is_cut_before_github_drops_it(tmp_path: Path) -> None:
    place = tmp_path / "summary.md"
    append_summary(place, "one\n")
    append_summary(place, "two\n")
    assert place.read_text() == "one\ntwo\n"
    append_summary(place, "é long line\n" * 200_000)
    data = place.read_bytes()
    assert MAX_SUMMARY_BYTES - 100 < len(data) <= MAX_SUMMARY_BYTES
    assert data.decode().endswith("é long line\n\n\n_(cut: a summary holds 1 MiB)_\n")
    append_summary(place, "three\n")
    assert len(place.read_bytes()) <= MAX_SUMMARY_BYTES
    with pytest.raises(UsageError, match="GITHUB_STEP_SUMMARY"):
        append_summary(tmp_path, "x")


def test_the_verdict_is_added_to_the_outputs_of_the_step(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    outputs.write_text("before=1\n")
    append_verdict(outputs, checked(("good", 0.01, 0.005)))
    assert outputs.read_text() == "before=1\nverdict=pass\n"
    with pytest.raises(UsageError, match="GITHUB_OUTPUT"):
        append_verdict(tmp_path, checked(("good", 0.01, 0.005)))
