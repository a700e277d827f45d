"""Compare the acceptability judgements of two runs: a paired difference of AUCs.

Interval and p-value come from one t statistic (`statistics.auc`).
"""

from __future__ import annotations

from antlm_bench import statistics
from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.paired import (
    GroupKey,
    require_defined_in_both,
    split_defined_groups,
)
from antlm_bench.comparison.results import HEADLINE, Difference, PairedResult
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import load_cell_metric
from antlm_bench.metrics.acceptability import measure_scores, read_labels
from antlm_bench.types import TOO_LONG_HINT, Bools

MAX_DIFFERENCE = 1.0


def compare_auc(joined: JoinedTables) -> PairedResult:
    """Compare the AUCs of two runs over the sentences that fit both models. Lists no flips.

    Groups with sentences of one class are left out, with a note. Raises NotComparable if no
    sentence fits both models, or if all that do are of one class.
    """
    tables = joined.tables_a[0], joined.tables_b[0]
    metric = load_cell_metric(joined.cells_a[0])
    reduction = metric.settings.reduction
    in_both = ~(tables[0].get_flag("too-long") | tables[1].get_flag("too-long"))
    if not in_both.any():
        raise NotComparable(
            "no sentence fits both models", location=joined.suite, hint=TOO_LONG_HINT
        )
    scores = [measure_scores(table, reduction) for table in tables]
    labels = read_labels(tables[0])
    require_defined_in_both(joined, metric, in_both)

    def compare_group(key: GroupKey, members: Bools) -> Difference:
        a, b, group_labels = scores[0][members], scores[1][members], labels[members]
        clusters = None if joined.clusters is None else joined.clusters[members]
        value_a, value_b = (statistics.compute_auc(each, group_labels) for each in (a, b))
        assert value_a is not None and value_b is not None  # both classes occur
        test = statistics.auc_difference(a, b, group_labels, clusters)
        detectable = None
        if test.df is not None:
            detectable = statistics.detectable_by_t(test.interval, test.df, largest=MAX_DIFFERENCE)
        return Difference(
            *key,
            len(a),
            value_a,
            value_b,
            value_b - value_a,
            *test.interval,
            test.p,
            detectable=detectable,
            df=test.df,
        )

    headline = compare_group(GroupKey(HEADLINE, joined.suite), in_both)
    keys, undefined_notes = split_defined_groups(joined, metric, in_both)
    groups = tuple(compare_group(key, members) for key, members in keys)
    untested = [each.name for each in (headline, *groups) if each.p is None]
    reason = f"no test: fewer than {statistics.MIN_CLASS_ITEMS} items of a class"
    notes = (f"{', '.join(untested)}: {reason}",) if untested else ()
    return PairedResult(headline, groups, notes=undefined_notes + notes)
