"""Suites scored by rank correlation with human ratings: how much better does the second run
correlate?
"""

from __future__ import annotations

from antlm_bench import statistics
from antlm_bench.compare.join import JoinedTables
from antlm_bench.compare.paired_accuracy import PairedResult
from antlm_bench.compare.paired_seeds import POWER_FACTOR
from antlm_bench.compare.results import HEADLINE, Difference
from antlm_bench.metrics import resolve_metric
from antlm_bench.metrics.measures import no_interval_note
from antlm_bench.metrics.prediction_table import PredictionTable, parent_names
from antlm_bench.statistics import Interval
from antlm_bench.statistics.spearman import MIN_UNTIED_ITEMS_DIFFERENCE
from antlm_bench.types import Bools, Floats


def compare_correlations(joined: JoinedTables) -> PairedResult:
    """Headline and groups of a suite of ratings; by the influence of its items on both
    correlations.
    """
    table, other = joined.tables_a[0], joined.tables_b[0]
    settings, summary = joined.cells_a[0].settings, joined.cells_a[0].summary
    reduction = str(settings.get("reduction", "sum"))
    softmax = str(settings.get("softmax", "float64"))
    measure = resolve_metric(summary.metric, str(settings.get("ties", "half")), reduction, softmax)
    x, z = measure.per_item(table, reduction), measure.per_item(other, reduction)
    use = ~(table.get_flag("too-long") | other.get_flag("too-long"))
    groups = []
    levels = [
        level
        for level in dict.fromkeys(group.level for group in summary.groups)
        if level in table.levels
    ]
    for above, level in zip((None, *levels), levels, strict=False):
        codes, names = table.levels[level]
        for code, (name, within) in enumerate(
            zip(names, parent_names(table, above, codes, len(names)), strict=True)
        ):
            groups.append(
                _build_difference(level, name, within, table, (x, z), use & (codes == code))
            )
    return _build_difference(HEADLINE, joined.suite, "", table, (x, z), use), tuple(groups), ()


def no_test_note(result: PairedResult) -> tuple[str, ...]:
    """The remark on differences that have no test."""
    return no_interval_note(
        [d.name for d in (result[0], *result[1]) if d.p is None],
        "difference",
        MIN_UNTIED_ITEMS_DIFFERENCE,
    )


def _build_difference(
    level: str,
    name: str,
    within: str,
    table: PredictionTable,
    run_values: tuple[Floats, Floats],
    item_mask: Bools,
) -> Difference:
    x, z, y = (values[item_mask] for values in (*run_values, table.gold))
    a, b = statistics.spearman_correlation(x, y), statistics.spearman_correlation(z, y)
    if (
        a is None or b is None
    ):  # undefined, and shown as 0, as a Summary does: we know nothing, the whole range
        interval, p = Interval(-2.0, 2.0), None
    elif bool((x == z).all()):
        interval, p = Interval(0.0, 0.0), 1.0
    else:
        interval, p = statistics.spearman_difference(x, z, y)
    a, b = a or 0.0, b or 0.0
    seen = POWER_FACTOR * (interval.high - interval.low) / 2 if p is not None else None
    return Difference(
        level,
        name,
        within,
        len(y),
        a,
        b,
        b - a,
        interval.low,
        interval.high,
        p,
        detectable=seen or None,
    )
