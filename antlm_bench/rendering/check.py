"""A gate's verdict in words: the line that names what got worse, the table on the terminal, Markdown for a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from antlm_bench.compare import Difference
from antlm_bench.compare.difference import HEADLINE
from antlm_bench.compare.verdict import Judgement, Verdict
from antlm_bench.rendering import tables
from antlm_bench.rendering.comparison import SCORES, grid, interval, number, title
from antlm_bench.rendering.terminal import console, paragraph

if TYPE_CHECKING:
    from antlm_bench.commands.check import Checked

STYLES = {"pass": "green", "regression": "bold red", "inconclusive": "yellow"}
HEADS = ("base", "run", "diff", "95% CI", "margin", "verdict")
NAMED = 3  # groups that a sentence names
RULE = (
    "pass: the 95% interval of the difference lies above minus the margin. regression: it lies below 0, and the "
    "difference is the margin or more. inconclusive: too few items to tell."
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
    failed = sorted(failed, key=lambda d: d.value)
    named = [*failed, *(culprit for culprit in verdict.culprits if culprit not in failed)][:NAMED]
    line += f"; {', '.join(f'{d.name} {drop(d, metric)}' for d in named)}" if named else ""
    return tables.printable(line)


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
    paragraph(out, f"{tables.printable(versus.name_b)} against baseline {tables.printable(versus.name_a)}", "bold")
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
        paragraph(out, tables.printable(line), style, 3)
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
            unit = "" if metric in SCORES else " points"
            found.append(
                (f"{suite}: so many items resolve differences from {number(needed, metric)}{unit} on", "yellow")
            )
        found += [(f"{suite}: {note}", "dim") for note in verdict.comparison.notes]
    found += [(f"missing: {cell}", "red") for cell in checked.missing]
    return found


def markdown(checked: Checked) -> str:
    """GitHub-flavoured Markdown: the verdict, a table of what was judged, and the remarks."""
    versus = checked.versus
    worst = "incomplete" if checked.missing and checked.status != "regression" else checked.status
    parts = [f"### {worst}: {_cell(versus.name_b)} against baseline {_cell(versus.name_a)}"]
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


def _values(one: Judgement, metric: str) -> list[str]:
    d = one.difference
    values = [number(d.a, metric), number(d.b, metric), number(d.value, metric, "+"), interval(d, metric)]
    return [*values, number(one.margin, metric)]


def _cell(text: str) -> str:
    return tables.escape(tables.printable(text))
