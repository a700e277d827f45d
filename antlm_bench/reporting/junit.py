"""Write the result of `check` as JUnit XML: a test suite per suite, a test case per verdict."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from antlm_bench.comparison.results import HEADLINE
from antlm_bench.comparison.verdict import FAILURES, GATE_RULE, CheckResult, Judgement, Verdict
from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.reporting.check_table import (
    format_change,
    list_judgements,
    summarize_verdict,
    tested_values,
)
from antlm_bench.reporting.comparison_table import format_number


def to_junit_xml(checked: CheckResult, strict: bool = False) -> bytes:
    """Return the XML document (UTF-8).

    A regression or drop is a failure, a missing cell an error, an undecided case is skipped (a
    failure if `strict`). Names are made printable, because XML 1.0 forbids control characters.
    """
    root = Xml.Element("testsuites", name="antlm-bench check")
    for verdict in checked.verdicts:
        _add_suite(root, verdict, strict)
    if checked.missing_cells:
        suite = Xml.SubElement(root, "testsuite", name="missing")
        for cell in checked.missing_cells:
            case = Xml.SubElement(
                suite, "testcase", classname="missing", name=make_printable(cell), time="0"
            )
            Xml.SubElement(
                case, "error", type="incomplete", message="the run lacks this cell of its baseline"
            )
    for element in (*root.findall("testsuite"), root):
        counts = {
            tag: len(element.findall(f".//{tag}"))
            for tag in ("testcase", "failure", "error", "skipped")
        }
        element.set("tests", str(counts["testcase"]))
        element.set("failures", str(counts["failure"]))
        element.set("errors", str(counts["error"]))
        element.set("skipped", str(counts["skipped"]))
        element.set("time", "0")
    Xml.indent(root)
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _add_suite(root: Xml.Element, verdict: Verdict, strict: bool) -> None:
    comparison = verdict.comparison
    name = make_printable(f"{comparison.suite}.{comparison.method_b}")
    suite = Xml.SubElement(root, "testsuite", name=name)
    properties = Xml.SubElement(suite, "properties")
    head = comparison.headline
    facts = {
        "n": head.n,
        "baseline": head.a,
        "run": head.b,
        "difference": head.value,
    }
    spec = get_metric_spec(comparison.metric)
    low, high = spec.known_interval_of_difference(head.low, head.high)
    if low is not None and high is not None:
        facts |= {"low": low, "high": high}
    for key, value in facts.items():
        Xml.SubElement(properties, "property", name=key, value=repr(value))
    Xml.SubElement(properties, "property", name="rule", value=GATE_RULE)
    for judgement in list_judgements(verdict):
        d = judgement.difference
        class_name = f"{name}.{make_printable(d.within)}" if d.within else name
        case = Xml.SubElement(
            suite, "testcase", classname=class_name, name=make_printable(d.name), time="0"
        )
        _add_outcome(case, judgement, verdict, strict)


def _add_outcome(case: Xml.Element, judgement: Judgement, verdict: Verdict, strict: bool) -> None:
    metric = verdict.comparison.metric
    change = format_change(judgement.difference, metric, tested_values(judgement))
    message = f"{change}, margin {format_number(judgement.tolerance, metric)}"
    is_headline = judgement.difference.level == HEADLINE
    if judgement.status in FAILURES:
        failure = Xml.SubElement(case, "failure", type=judgement.status, message=message)
        failure.text = make_printable(summarize_verdict(verdict)) if is_headline else None
    elif judgement.status == "undecided":
        # An undecided group never fails, because it may be too small for its margin.
        if strict and is_headline:
            Xml.SubElement(case, "failure", type="undecided", message=message)
        else:
            Xml.SubElement(case, "skipped", message=f"undecided: {message}")
