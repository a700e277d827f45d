"""A gate's verdict in words: the line that names what got worse, the table on the terminal, Markdown and JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from antlm_bench.compare import Difference
from antlm_bench.compare.results import HEADLINE
from antlm_bench.compare.verdict import EVERYWHERE, Judgement, Verdict
from antlm_bench.reporting import results_table
from antlm_bench.reporting.comparison import grid, interval, number, points, title
from antlm_bench.reporting.terminal import console, paragraph

if TYPE_CHECKING:
    from antlm_bench.commands.check import Checked

STYLES = {"pass": "green", "regression": "bold red", "inconclusive": "yellow"}
HEADS = ("base", "run", "diff", "95% CI", "margin", "verdict")
NAMED = 3  # groups that a sentence names
RULE = (
    "pass: the 95% interval of the difference holds no loss as large as the margin. regression: it holds losses only, "
    "and the difference is the margin or more. inconclusive: too few items to tell."
)


def sentence(verdict: Verdict) -> str:
    """One printable line: the suite, what happened to it, and the groups that explain a drop."""
    judged, metric = verdict.headline, verdict.comparison.metric
    head = judged.difference
    change = f"{number(head.a, metric)} -> {number(head.b, metric)}, {drop(head, metric)}"
    line = f"{title(verdict.comparison)}: {verdict.status}: {change}, margin {number(judged.margin, metric)}"
    failed = [one.difference for one in verdict.groups if one.status == "regression"]
    if judged.status != "regression" and failed:
        line += f"; {len(failed)} with margins of their own failed"
    elif judged.status == "pass" and judged.dropped:
        line += "; significantly worse, within the margin"
    failed = sorted(failed, key=lambda d: d.gain)
    named = [*failed, *(culprit for culprit in verdict.culprits if culprit not in failed)][:NAMED]
    line += f"; {', '.join(f'{d.name} {drop(d, metric)}' for d in named)}" if named else ""
    return results_table.printable(line)


def drop(difference: Difference, metric: str) -> str:
    """`-3.1 (95% CI -4.9..-1.3)`"""
    low, high = interval(difference, metric).split("..")
    return f"{number(difference.value, metric, '+')} (95% CI {low}..{high})"


def judgements(verdict: Verdict) -> list[Judgement]:
    """The headline and what else was judged."""
    return [verdict.headline, *verdict.groups]


def show_check(checked: Checked) -> None:
    """Print the verdict on stdout."""
    draw(console(), checked)


def draw(out: Console, checked: Checked) -> None:
    out.print()
    versus = checked.versus
    paragraph(
        out,
        f"{results_table.printable(versus.name_b)} against baseline {results_table.printable(versus.name_a)}",
        "bold",
    )
    out.print()
    rows = []
    for verdict in checked.verdicts:
        for one in judgements(verdict):
            headline = one.difference.level == HEADLINE
            label = title(verdict.comparison) if headline else f"  {one.difference.name}"
            cells = [Text(value) for value in _values(one, verdict.comparison.metric)]
            rows.append((label, [*cells, Text(one.status, style=STYLES[one.status])], ""))
    if rows:
        grid(out, "", HEADS, rows)
    for line, style in remarks(checked):
        paragraph(out, results_table.printable(line), style, 3)
    out.print()
    paragraph(out, RULE, "dim")


def remarks(checked: Checked) -> list[tuple[str, str]]:
    """(a line, its style): what the verdicts must be read with."""
    found = []
    for verdict in checked.verdicts:
        suite, metric = verdict.comparison.suite, verdict.comparison.metric
        if verdict.culprits:
            named = ", ".join(f"{d.name} {drop(d, metric)}" for d in verdict.culprits[:NAMED])
            rest = f" and {len(verdict.culprits) - NAMED} more" if len(verdict.culprits) > NAMED else ""
            found.append((f"{suite}: significantly worse in {named}{rest}", "yellow"))
        if verdict.headline.status == "pass" and verdict.headline.dropped:
            found.append((f"{suite}: significantly worse, within the margin", "yellow"))
        if verdict.status == "inconclusive" and (needed := verdict.headline.difference.detectable):
            least = f"{number(needed, metric)}{points(metric)}"
            found.append((f"{suite}: so many items resolve differences from {least} on", "yellow"))
        found += [(f"{suite}: {note}", "dim") for note in verdict.comparison.notes]
    found += [(f"missing: {cell}", "red") for cell in checked.missing]
    found += [
        (f"not judged, because single items contribute nothing to it: {cell}", "dim") for cell in checked.unjudged
    ]
    sources: dict[str, dict[str, None]] = {}
    for verdict in checked.verdicts:
        sources.setdefault(verdict.headline.source, {})[verdict.comparison.suite] = None
    said = [f"{', '.join(suites)} by {source}" for source, suites in sources.items() if source != EVERYWHERE.source]
    return found + [(f"margin of {'; of '.join(said)}", "dim")] * bool(said)


def outcome(checked: Checked) -> str:
    """The gravest of it in a word; what is missing is graver than what is inconclusive."""
    return "incomplete" if checked.missing and checked.status != "regression" else checked.status


def markdown(checked: Checked) -> str:
    """GitHub-flavoured Markdown: the verdict, a table of what was judged, and the remarks."""
    versus = checked.versus
    parts = [f"### {outcome(checked)}: {_cell(versus.name_b)} against baseline {_cell(versus.name_a)}"]
    rows: list[Sequence[str]] = [("", *HEADS)]
    rows.append(("---", *["---:"] * 5, "---"))
    for verdict in checked.verdicts:
        for one in judgements(verdict):
            headline = one.difference.level == HEADLINE
            name = f"**{_cell(title(verdict.comparison))}**" if headline else f"&emsp;{_cell(one.difference.name)}"
            rows.append((name, *_values(one, verdict.comparison.metric), one.status))
    parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    parts.append("\n".join(f"- {_cell(line)}" for line, _ in remarks(checked)))
    return "\n\n".join(part for part in [*parts, f"_{RULE}_"] if part) + "\n"


def json(checked: Checked, exit_code: int) -> str:
    """JSON: the verdict with all that was judged; fractions in full precision (correlations and nats as they are)."""
    versus = checked.versus
    suites = [
        {
            "suite": verdict.comparison.suite,
            "method": {"baseline": verdict.comparison.method_a, "run": verdict.comparison.method_b},
            "metric": verdict.comparison.metric,
            "lower_is_better": verdict.comparison.headline.lower_is_better,
            "status": verdict.status,
            "headline": _judged(verdict.headline),
            "groups": [_judged(one) for one in verdict.groups],
            "worse": [_difference(culprit) for culprit in verdict.culprits],
            "notes": verdict.comparison.notes,
        }
        for verdict in checked.verdicts
    ]
    document = {
        "status": outcome(checked),
        "exit_code": exit_code,
        "baseline": {"name": versus.name_a, "path": versus.path_a},
        "run": {"name": versus.name_b, "path": versus.path_b},
        "suites": suites,
        "missing": checked.missing,
        "unjudged": checked.unjudged,
    }
    return json_module.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _judged(one: Judgement) -> dict[str, Any]:
    return _difference(one.difference) | {"margin": one.margin, "margin_by": one.source, "status": one.status}


def _difference(d: Difference) -> dict[str, Any]:
    about = {"level": d.level, "name": d.name, "n": d.n, "baseline": d.a, "run": d.b, "difference": d.value}
    return about | {"low": d.low, "high": d.high, "p": d.p if d.adjusted is None else d.adjusted}


def _values(one: Judgement, metric: str) -> list[str]:
    d = one.difference
    values = [number(d.a, metric), number(d.b, metric), number(d.value, metric, "+"), interval(d, metric)]
    return [*values, number(one.margin, metric)]


def _cell(text: str) -> str:
    return results_table.escape(results_table.printable(text))
