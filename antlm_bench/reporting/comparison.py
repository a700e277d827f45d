"""Comparisons as people and programs read them: the terminal's table, Markdown, CSV and JSON, all
of the same lines.
"""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from antlm_bench.compare import Comparison, Difference, Flip, RunComparison
from antlm_bench.compare.verdict import explanatory_level, is_significant
from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting import results_table
from antlm_bench.reporting.terminal import HEADER_RULE_BOX, make_console, print_paragraph

TextsBySuite = Mapping[str, Mapping[str, tuple[str, ...]]]  # suite -> id -> texts
MIN_NAME_WIDTH = 12  # characters of a name, however narrow the terminal
LEGEND = (
    "Values in percent, differences in points (correlations, nats, bits and tasks' own scores as they are) with their "
    "95% interval: items resampled within each group for an unweighted mean of groups, Bonett and Price's interval for "
    "one group, sentences resampled for 100 ΔR², words as a sample for surprisal, t over seeds and items where tasks "
    "were finetuned. Groups are tested as families (Holm; BH, Benjamini-Hochberg, where they are many), a suite is "
    "tested first and alone. ▼ worse, ▲ better: p < .05, or, where none is tested, an interval without 0."
)


def show_comparisons(
    run_comparisons: Sequence[RunComparison],
    output_format: str = "terminal",
    by: str = "phenomenon",
    flips: int = 0,
    texts: TextsBySuite | None = None,
) -> None:
    """Print comparisons on stdout. form: terminal, markdown, csv, json. by: suite, or a level of
    labels. flips: how many of the items that moved are listed per suite (JSON: all of them). texts:
    of the items, shown beside them.
    """
    if output_format == "terminal":
        print_comparisons(make_console(), run_comparisons, by, flips, texts or {})
    else:
        sys.stdout.write(FORMATTERS[output_format](run_comparisons, by))


def select_differences(comparison: Comparison, by: str) -> list[tuple[int, Difference]]:
    """The differences to show with their depth: the headline, then groups of `by` under those of
    the level above.
    """
    levels = list(dict.fromkeys(group.level for group in comparison.groups))
    made = [(0, comparison.headline)]
    if by == results_table.SUITE_LEVEL or not levels:
        return made
    level = by if by in levels else explanatory_level(comparison)
    inner = [group for group in comparison.groups if group.level == level]
    above = levels[levels.index(level) - 1] if by == "paradigm" and level in levels[1:] else ""
    for outer in [group for group in comparison.groups if group.level == above]:
        made += [(1, outer), *((2, group) for group in inner if group.within == outer.name)]
    shown = {id(group) for _, group in made}
    return made + [(1, group) for group in inner if id(group) not in shown]


def format_number(value: float, metric: str, sign: str = "") -> str:
    """A value in percent or a difference in points with its `sign` ("+" asks for one); others as
    they are.
    """
    of = get_metric_spec(metric)
    made = f"{of.scale * value:{sign}.{of.decimals}f}"
    return made if made.strip("+-0.") else made.lstrip("+-")  # no "-0.0"


def unit_suffix(metric: str) -> str:
    """What stands behind a difference of this metric."""
    return f" {get_metric_spec(metric).difference_unit}".rstrip()


def format_interval(difference: Difference, metric: str) -> str:
    return f"{format_number(difference.low, metric, '+')}..{format_number(difference.high, metric, '+')}"


def format_p_value(p: float | None) -> str:
    return (
        "–"
        if p is None
        else "<.001"
        if p < 0.001
        else f"{p:.3f}".lstrip("0")
        if p < 0.9995
        else "1"
    )


def change_symbol(difference: Difference) -> str:
    return "" if not is_significant(difference) else "▼" if difference.gain < 0 else "▲"


def describe_families(comparison: Comparison, by: str) -> str:
    """The families of tests behind the lines shown, named once."""
    return "; ".join(
        dict.fromkeys(
            d.family for depth, d in select_differences(comparison, by) if depth and d.family
        )
    )


def format_title(comparison: Comparison) -> str:
    ways = dict.fromkeys((comparison.method_a, comparison.method_b))
    seeds = comparison.seeds
    several = f" · seeds {seeds[0]} / {seeds[1]}" if max(seeds) > 1 else ""
    of = ", ".join(
        filter(None, (get_metric_spec(comparison.metric).difference_unit, "lower is better"))
    )
    less = f" · {of}" if comparison.headline.lower_is_better else ""
    return f"{comparison.suite} · {' / '.join(ways)}{several}{less}"


def collect_notes(comparison: Comparison, by: str) -> list[str]:
    """What the headline must be read with, in sentences."""
    head, metric = comparison.headline, comparison.metric
    counts = zip((head.gained, head.lost), get_metric_spec(metric).change_labels, strict=False)
    said = [
        f"{head.n:,} items: {', '.join(f'{n:,} {what}' for n, what in counts)}".removesuffix(": ")
    ]
    if head.detectable is not None:
        least = f"{format_number(head.detectable, metric)}{unit_suffix(metric)}"
        said[0] += f"; a true difference of {least} would be seen in 4 of 5 such comparisons"
    if clustered := head.views.get("clustered"):
        low, high = (
            format_number(clustered.low, metric, "+"),
            format_number(clustered.high, metric, "+"),
        )
        said.append(
            f"were the {results_table.pluralize(comparison.macro[-1])} themselves a sample: 95% CI {low}..{high}"
        )
    if head.margin:
        m = head.margin
        said.append(
            f"margin of the right option: {m.value:+.3f} nats (95% CI {m.low:+.3f}..{m.high:+.3f})"
        )
    if tests := describe_families(comparison, by):
        said.append(f"p of groups: {tests}")
    if not is_significant(head) and any(is_significant(group) for group in comparison.groups):
        said.append(
            "the headline shows no difference: differences of single groups are for exploration"
        )
    return said + list(comparison.notes)


def print_comparisons(
    console: Console,
    run_comparisons: Sequence[RunComparison],
    by: str,
    flips: int,
    texts: TextsBySuite,
) -> None:
    for versus in run_comparisons:
        console.print()
        print_paragraph(
            console,
            f"{results_table.make_printable(versus.name_b)} against {results_table.make_printable(versus.name_a)}",
            "bold",
        )
        for comparison in versus.comparisons:
            console.print()
            _print_table(console, comparison, by)
            for line in collect_notes(comparison, by):
                print_paragraph(console, results_table.make_printable(line), "dim", 3)
            for flip in comparison.flipped[:flips]:
                _print_flip(console, flip, texts.get(comparison.suite, {}))
        for line in versus.unmatched:
            print_paragraph(console, results_table.make_printable(line), "yellow")
    console.print()
    print_paragraph(console, LEGEND, "dim")


def _print_table(console: Console, comparison: Comparison, by: str) -> None:
    metric, rows = comparison.metric, []
    for depth, d in select_differences(comparison, by):
        style = {"▼": "red", "▲": "green"}.get(change_symbol(d), "")
        change = Text(f"{change_symbol(d)} {format_number(d.value, metric, '+')}", style=style)
        numbers = [
            Text(format_number(d.a, metric)),
            Text(format_number(d.b, metric)),
            change,
            Text(format_interval(d, metric)),
        ]
        p = format_p_value(d.p if d.adjusted is None else d.adjusted)
        rows.append(("  " * depth + d.name, [*numbers, Text(p)], "" if depth else "bold"))
    print_aligned_table(
        console, format_title(comparison), ("ref", "run", "diff", "95% CI", "p"), rows
    )


def print_aligned_table(
    console: Console,
    title: str,
    headers: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Text], str]],
) -> None:
    """A table of rows (name, cells, style) whose numbers are never cut: where the width is short,
    names are.
    """
    widths = [
        max(cell_len(head), *(row[1][i].cell_len for row in rows)) for i, head in enumerate(headers)
    ]
    left = (
        console.width - 1 - sum(width + 3 for width in widths)
    )  # a space of padding on each side, one between
    table = Table(
        box=HEADER_RULE_BOX, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim"
    )
    table.add_column(
        Text(results_table.make_printable(title)),
        no_wrap=True,
        overflow="ellipsis",
        max_width=max(left, MIN_NAME_WIDTH),
    )
    for head, width in zip(headers, widths, strict=True):
        table.add_column(head, justify="right", no_wrap=True, min_width=width)
    for label, cells, style in rows:
        table.add_row(Text(results_table.make_printable(label)), *cells, style=style)
    console.print(Padding(table, (0, 0, 0, 1)), soft_wrap=False)


def _print_flip(console: Console, flip: Flip, texts: Mapping[str, tuple[str, ...]]) -> None:
    margin = "" if flip.margin is None else f", margin {flip.margin:+.2f} nats"
    print_paragraph(
        console, results_table.make_printable(f"{flip.id}: {flip.a:g} -> {flip.b:g}{margin}"), "", 3
    )
    for text in texts.get(flip.id, ()):
        print_paragraph(console, results_table.make_printable(text), "dim", 5)


def to_markdown(run_comparisons: Sequence[RunComparison], by: str) -> str:
    """GitHub-flavoured Markdown: a table per suite, what it must be read with below."""
    parts = []
    for versus in run_comparisons:
        parts.append(
            f"### {results_table.escape_markdown(versus.name_b)} against {results_table.escape_markdown(versus.name_a)}"
        )
        for comparison in versus.comparisons:
            metric = comparison.metric
            heads = ["", "reference", "run", "difference", "95% CI", "p"]
            rows = [heads, ["---", *["---:"] * 5]]
            for depth, d in select_differences(comparison, by):
                name = "&emsp;" * depth + results_table.escape_markdown(
                    results_table.make_printable(d.name)
                )
                values = [
                    format_number(d.a, metric),
                    format_number(d.b, metric),
                    f"{format_number(d.value, metric, '+')} {change_symbol(d)}".strip(),
                ]
                values += [
                    format_interval(d, metric),
                    format_p_value(d.p if d.adjusted is None else d.adjusted),
                ]
                rows.append(
                    [
                        name
                        if depth
                        else f"**{results_table.escape_markdown(results_table.make_printable(format_title(comparison)))}**",
                        *values,
                    ]
                )
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
            parts.append(
                "\n".join(
                    f"- {results_table.escape_markdown(results_table.make_printable(line))}"
                    for line in collect_notes(comparison, by)
                )
            )
        parts += [
            f"- {results_table.escape_markdown(results_table.make_printable(line))}"
            for line in versus.unmatched
        ]
    return "\n\n".join([*parts, f"_{LEGEND}_"]) + "\n"


def to_csv(run_comparisons: Sequence[RunComparison], by: str) -> str:
    """Tidy CSV: a row per difference, fractions in full precision, every level."""
    del by
    columns = [
        "level",
        "name",
        "within",
        "n",
        "a",
        "b",
        "value",
        "low",
        "high",
        "p",
        "adjusted",
        "family",
        "gained",
    ]
    columns += ["lost", "detectable"]
    sink = io.StringIO()
    writer = csv_module.writer(sink, lineterminator="\n")
    head = ["reference", "run", "suite", "method_a", "method_b", "metric", "seeds_a", "seeds_b"]
    writer.writerow([*head, *columns, "margin", "margin_low", "margin_high"])
    for versus in run_comparisons:
        for c in versus.comparisons:
            about = [
                versus.name_a,
                versus.name_b,
                c.suite,
                c.method_a,
                c.method_b,
                c.metric,
                *c.seeds,
            ]
            for d in (c.headline, *c.groups):
                m = (d.margin.value, d.margin.low, d.margin.high) if d.margin else ("", "", "")
                writer.writerow([*about, *(getattr(d, name) for name in columns), *m])
    return sink.getvalue()


def to_json(run_comparisons: Sequence[RunComparison], by: str) -> str:
    """JSON of everything, every level and every item that moved."""
    del by
    return (
        json_module.dumps(
            {"comparisons": [asdict(v) for v in run_comparisons]},
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )
        + "\n"
    )


FORMATTERS: dict[str, Callable[[Sequence[RunComparison], str], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json,
}
