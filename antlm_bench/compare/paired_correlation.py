"""Suites scored by rank correlation with human ratings: how much better does the second run correlate?"""

from __future__ import annotations

from antlm_bench import statistics
from antlm_bench.compare.join import Joined
from antlm_bench.compare.paired_accuracy import Found
from antlm_bench.compare.paired_seeds import POWERED
from antlm_bench.compare.results import HEADLINE, Difference
from antlm_bench.metrics import resolve
from antlm_bench.metrics.measures import untold
from antlm_bench.metrics.prediction_table import Table, parents
from antlm_bench.statistics import Interval
from antlm_bench.statistics.spearman import OUTSIDE_BOTH
from antlm_bench.types import Bools, Floats


def correlated(joined: Joined) -> Found:
    """Headline and groups of a suite of ratings; by the influence of its items on both correlations."""
    table, other = joined.a[0], joined.b[0]
    settings, summary = joined.cells_a[0].settings, joined.cells_a[0].summary
    reduction = str(settings.get("reduction", "sum"))
    softmax = str(settings.get("softmax", "float64"))
    measure = resolve(summary.metric, str(settings.get("ties", "half")), reduction, softmax)
    x, z = measure.values(table, reduction), measure.values(other, reduction)
    use = ~(table.flag("too-long") | other.flag("too-long"))
    groups = []
    levels = [level for level in dict.fromkeys(group.level for group in summary.groups) if level in table.levels]
    for above, level in zip((None, *levels), levels, strict=False):
        codes, names = table.levels[level]
        for code, (name, within) in enumerate(zip(names, parents(table, above, codes, len(names)), strict=True)):
            groups.append(_difference(level, name, within, table, (x, z), use & (codes == code)))
    return _difference(HEADLINE, joined.suite, "", table, (x, z), use), tuple(groups), ()


def without_test(found: Found) -> tuple[str, ...]:
    """The remark on differences that have no test."""
    return untold([d.name for d in (found[0], *found[1]) if d.p is None], "difference", OUTSIDE_BOTH)


def _difference(
    level: str, name: str, within: str, table: Table, sides: tuple[Floats, Floats], members: Bools
) -> Difference:
    x, z, y = (values[members] for values in (*sides, table.gold))
    a, b = statistics.spearman(x, y), statistics.spearman(z, y)
    if a is None or b is None:  # undefined, and shown as 0, as a Summary does: we know nothing, the whole range
        interval, p = Interval(-2.0, 2.0), None
    elif bool((x == z).all()):
        interval, p = Interval(0.0, 0.0), 1.0
    else:
        interval, p = statistics.spearman_difference(x, z, y)
    a, b = a or 0.0, b or 0.0
    seen = POWERED * (interval.high - interval.low) / 2 if p is not None else None
    return Difference(level, name, within, len(y), a, b, b - a, interval.low, interval.high, p, detectable=seen or None)
