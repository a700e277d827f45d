"""Build the table of `compare`: the paired difference of two runs per suite and group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from antlm_bench.comparison import Comparison, Difference, RunComparison
from antlm_bench.comparison.verdict import explanatory_level, is_significant
from antlm_bench.metrics import get_metric_spec
from antlm_bench.metrics.records import SEED_DIFFERENCE_INTERVAL
from antlm_bench.printable import format_count, format_decimals, pluralize
from antlm_bench.reporting import results_table
from antlm_bench.reporting.table import (
    MISSING,
    Table,
    TableCell,
    TableColumn,
    TableRow,
    Tone,
    build_records_table,
    build_row,
)
from antlm_bench.types import Estimate

TextsBySuite = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Suite -> id of an item -> its texts."""
WORSE, BETTER = "▼", "▲"
CHANGE_LEGEND = "▼ worse, ▲ better: p < .05, or an interval without 0 if there is no test."


def build_comparison_table(
    run_comparisons: Sequence[RunComparison],
    by: str = "phenomenon",
    flips: int = 0,
    texts: TextsBySuite | None = None,
) -> Table:
    """Build the table of runs against a reference, one part per run.

    by: "suite", or a level of labels. flips: number of flipped items to list per suite (JSON
    contains all). texts: texts of items, to print with the flipped items.
    """
    parts = [_build_part(comparison, by, flips, texts or {}) for comparison in run_comparisons]
    parts[-1] = replace(parts[-1], legend=(*parts[-1].legend, build_legend(run_comparisons, by)))
    table = parts[0] if len(parts) == 1 else Table((TableColumn("name"),), parts=tuple(parts))
    return replace(
        table,
        build_long=partial(_build_long_table, run_comparisons),
        document={"comparisons": run_comparisons},
    )


def build_legend(run_comparisons: Sequence[RunComparison], by: str) -> str:
    """Describe the values, intervals and tests of the comparisons shown.

    by: as in `build_comparison_table`.
    """
    comparisons = [c for run_comparison in run_comparisons for c in run_comparison.comparisons]
    methods = []
    for comparison in comparisons:
        spec = get_metric_spec(comparison.metric)
        label = "Finetuned tasks" if is_classified(comparison) else spec.label
        unit = f", differences in {spec.difference_unit}" if spec.difference_unit else ""
        method = describe_difference_interval(comparison)
        methods.append((label, unit, method))
    sentences = results_table.join_interval_methods(methods)
    families = [describe_families(comparison, by) for comparison in comparisons]
    if any(families):
        name = "; BH: Benjamini-Hochberg" if any("BH" in family for family in families) else ""
        sentences.append(
            "The p values of groups are adjusted within their family of tests (see the notes"
            f"{name}), the p value of a suite is not."
        )
    return " ".join([*sentences, CHANGE_LEGEND])


def describe_difference_interval(comparison: Comparison) -> str:
    """Return the method of the 95% interval of a comparison's differences."""
    if is_classified(comparison):
        return SEED_DIFFERENCE_INTERVAL
    return get_metric_spec(comparison.metric).difference_interval


def is_classified(comparison: Comparison) -> bool:
    """Return whether a comparison is of finetuned tasks, or of classifiers on frozen features."""
    return comparison.method_a.startswith(("finetune-", "frozen-"))


def _build_part(run_comparison: RunComparison, by: str, flips: int, texts: TextsBySuite) -> Table:
    """Build the table of one run against the reference, with its flipped items as parts."""
    columns = [TableColumn("name", label="")]
    columns += [
        TableColumn(key, align="right") for key in ("reference", "run", "difference", "95% CI", "p")
    ]
    rows: list[TableRow] = []
    for comparison in run_comparison.comparisons:
        notes = tuple(collect_notes(comparison, by))
        name = TableCell(comparison.suite, format_title(comparison), notes=notes)
        for depth, difference in select_differences(comparison, by):
            is_headline = depth == 0
            rows.append(
                build_row(
                    name if is_headline else difference.name,
                    *_comparison_cells(comparison, difference),
                    depth=depth,
                    emphasis="strong" if is_headline else "",
                    space_above=is_headline,
                )
            )
    return Table(
        tuple(columns),
        tuple(rows),
        title=f"{run_comparison.name_b} against {run_comparison.name_a}",
        legend=run_comparison.unmatched,
        parts=tuple(
            _build_flips_table(comparison, flips, texts.get(comparison.suite, {}))
            for comparison in run_comparison.comparisons
            if comparison.flipped[:flips]
        ),
    )


def difference_cells(difference: Difference, metric: str) -> tuple[TableCell, TableCell, TableCell]:
    """Build three cells: the value of the reference, that of the run, and their difference."""
    spec = get_metric_spec(metric)
    a, b = (
        TableCell(value, spec.format(value), unit=spec.raw_unit)
        for value in (difference.a, difference.b)
    )
    interval = spec.known_interval_of_difference(difference.low, difference.high)
    text = spec.format(difference.value, "+")
    return a, b, TableCell(difference.value, text, *interval, unit=spec.raw_unit)


def _comparison_cells(comparison: Comparison, difference: Difference) -> list[TableCell]:
    a, b, change = difference_cells(difference, comparison.metric)
    symbol = change_symbol(difference)
    tones: dict[str, Tone] = {"": "", WORSE: "bad", BETTER: "good"}
    p = difference.p if difference.adjusted is None else difference.adjusted
    return [
        *(a, b, replace(change, text=f"{symbol} {change.text}".strip(), tone=tones[symbol])),
        TableCell(text=format_interval(difference, comparison.metric)),
        TableCell(p, format_p_value(p)),
    ]


def _build_flips_table(
    comparison: Comparison, flips: int, texts: Mapping[str, tuple[str, ...]]
) -> Table:
    """Build the table of items that the two runs answer differently."""
    records = []
    for flip in comparison.flipped[:flips]:
        margin_text = None if flip.margin is None else format_decimals(flip.margin, "+.2f")
        record: dict[str, object] = {
            "item": flip.id,
            "reference": flip.a,
            "run": flip.b,
            "margin (nats)": TableCell(flip.margin, margin_text),
        }
        if texts:
            record["texts"] = "\n".join(texts.get(flip.id, ()))
        records.append(record)
    title = f"{comparison.suite}: items that the runs answer differently"
    return build_records_table(records, title=title)


def _build_long_table(run_comparisons: Sequence[RunComparison]) -> Table:
    """Build the long form: a row per difference, for headlines and groups of every level."""
    labels = ("reference", "run", "suite", "method_a", "method_b", "metric", "seeds_a", "seeds_b")
    numbers = (
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
        "lost",
        "detectable",
    )
    rows = []
    for run_comparison in run_comparisons:
        for c in run_comparison.comparisons:
            names = (run_comparison.name_a, run_comparison.name_b, c.suite, c.method_a, c.method_b)
            for d in (c.headline, *c.groups):
                values = {key: getattr(d, key) for key in numbers}
                change = difference_cells(d, c.metric)[2]
                values["low"], values["high"] = change.low, change.high
                values["value"] = TableCell(d.value, change.text, unit=change.unit)
                margin = (d.margin.value, d.margin.low, d.margin.high) if d.margin else [None] * 3
                rows.append(build_row(*names, c.metric, *c.seeds, *values.values(), *margin))
    keys = (*labels, *numbers, "margin", "margin_low", "margin_high")
    return Table(tuple(map(TableColumn, keys)), tuple(rows))


def select_differences(comparison: Comparison, by: str) -> list[tuple[int, Difference]]:
    """Return (depth, difference) to show: the headline, then the groups of level `by`.

    Each paradigm follows the group of the outer level that contains it.
    """
    levels = list(dict.fromkeys(group.level for group in comparison.groups))
    differences = [(0, comparison.headline)]
    if by == results_table.SUITE_LEVEL or not levels:
        return differences
    level = by if by in levels else explanatory_level(comparison)
    groups = [group for group in comparison.groups if group.level == level]
    outer_groups: list[Difference] = []
    if by == "paradigm" and level in levels[1:]:
        outer_level = levels[levels.index(level) - 1]
        outer_groups = [group for group in comparison.groups if group.level == outer_level]
    for outer in outer_groups:
        children = [group for group in groups if group.within == outer.name]
        differences += [(1, outer), *((2, child) for child in children)]
    outer_names = {outer.name for outer in outer_groups}
    return differences + [(1, group) for group in groups if group.within not in outer_names]


def format_number(value: float, metric: str, sign: str = "") -> str:
    """Return a value or difference in the metric's scale. sign: "+" also marks positive numbers."""
    return get_metric_spec(metric).format(value, sign)


def format_with_unit(value: float, metric: str) -> str:
    """Format a difference on the metric's scale, with its unit if it has one: `1.3 points`."""
    spec = get_metric_spec(metric)
    return f"{spec.format(value)} {spec.difference_unit}".rstrip()


def describe_detectable(value: float, metric: str) -> str:
    """Return a note on the smallest true difference that the items or seeds detect."""
    difference = format_with_unit(value, metric)
    return f"a true difference of {difference} is detected with a power of 80%"


def format_interval(
    difference: Difference | Estimate, metric: str, tested: Collection[float] = (0.0,)
) -> str:
    """Return the 95% interval of a difference: `[-4.9, -1.3]`, or `–` for the whole range.

    tested: see MetricSpec.format_interval.
    """
    spec = get_metric_spec(metric)
    low, high = spec.known_interval_of_difference(difference.low, difference.high)
    if low is None or high is None:
        return MISSING
    return spec.format_interval(low, high, "+", tested)


def format_p_value(p: float | None) -> str:
    """Return `.042`, `<.001`, `<.05` for .0497, `1`, or `–` for None."""
    if p is None:
        return MISSING
    if p < 0.001:
        return "<.001"
    text = f"{p:.3f}".lstrip("0")
    if p < 0.05 and text == ".050":  # significant, which .050 is not
        return "<.05"
    return text if p < 0.9995 else "1"


def change_symbol(difference: Difference) -> str:
    """Return WORSE or BETTER for a significant change, else ""."""
    if not is_significant(difference):
        return ""
    return WORSE if difference.gain < 0 else BETTER


def describe_families(comparison: Comparison, by: str) -> str:
    """Name the families of tests that the groups shown belong to."""
    groups = [difference for depth, difference in select_differences(comparison, by) if depth > 0]
    return "; ".join(dict.fromkeys(group.family for group in groups if group.family))


def format_title(comparison: Comparison) -> str:
    """Return `blimp · causal / mlm`: the suite and its methods, with seeds and unit if needed."""
    parts = [
        comparison.suite,
        " / ".join(dict.fromkeys((comparison.method_a, comparison.method_b))),
    ]
    if max(comparison.seeds) > 1:
        parts.append(f"seeds {comparison.seeds[0]} / {comparison.seeds[1]}")
    if comparison.headline.lower_is_better:
        unit = get_metric_spec(comparison.metric).difference_unit
        parts.append(", ".join(filter(None, (unit, "lower is better"))))
    return " · ".join(parts)


def collect_notes(comparison: Comparison, by: str) -> list[str]:
    """Return the notes on a headline: items, power, other intervals, tests, further notes."""
    head, metric = comparison.headline, comparison.metric
    counts = zip((head.gained, head.lost), get_metric_spec(metric).change_labels, strict=False)
    changes = ", ".join(f"{n:,} {label}" for n, label in counts)
    notes = [f"{format_count(head.n, 'item')}: {changes}".removesuffix(": ")]
    if head.detectable is not None:
        notes[0] += f"; {describe_detectable(head.detectable, metric)}"
    if head.design_effect is not None:
        notes.append(
            f"design effect of the clusters: {head.design_effect:.2f} (a plan of `power` with "
            "--design-effect)"
        )
    if clustered := head.views.get("clustered"):
        notes.append(
            f"if the {pluralize(comparison.macro[-1])} are themselves a sample: "
            f"95% CI {format_interval(clustered, metric)}"
        )
    if head.margin:
        m = head.margin
        value, low, high = (format_decimals(x, "+.3f") for x in (m.value, m.low, m.high))
        notes.append(
            f"change of the log-probability gap of the right option: {value} nats (95% CI "
            f"[{low}, {high}])"
        )
    if tests := describe_families(comparison, by):
        notes.append(f"p of groups: {tests}")
    if not is_significant(head) and any(is_significant(group) for group in comparison.groups):
        notes.append(
            "the headline is not significant: treat differences of single groups as exploratory"
        )
    return notes + list(comparison.notes)
