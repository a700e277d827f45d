"""Suites of surprisal: how much better does the second run foresee each word? Words are paired, and
are the sample.
"""

from __future__ import annotations

import numpy as np

from antlm_bench import statistics
from antlm_bench.compare.join import JoinedTables
from antlm_bench.compare.paired_accuracy import PairedResult
from antlm_bench.compare.results import HEADLINE, Difference
from antlm_bench.errors import NotComparable
from antlm_bench.metrics.surprisal import WORD_LABEL
from antlm_bench.statistics import Interval
from antlm_bench.types import Floats


def compare_surprisal(joined: JoinedTables) -> PairedResult:
    """The mean over words of their change in nats, each word's the mean over the contexts that fit
    both models.

    The interval is that of words like these, as a run's own; the test flips their signs. There are
    no groups, and no item flips. Raises NotComparable where fewer than two words are left.
    """
    tables = (joined.tables_a[0], joined.tables_b[0])
    fit = ~(tables[0].get_flag("too-long") | tables[1].get_flag("too-long"))
    _, word, contexts = np.unique(
        tables[0].levels[WORD_LABEL][0][fit], return_inverse=True, return_counts=True
    )
    if len(contexts) < 2:
        hint = "raise --max-length, or score more words"
        raise NotComparable(
            f"a difference needs two words, here are {len(contexts)}",
            location=joined.suite,
            hint=hint,
        )
    a, b = (np.bincount(word, -table.scores[fit, 0]) / contexts for table in tables)
    change: Floats = b - a
    weights = np.full(len(change), 1 / len(change))
    interval = (
        statistics.clustered_interval(change, weights) if change.any() else Interval(0.0, 0.0)
    )
    headline = Difference(
        level=HEADLINE,
        name=joined.suite,
        within="",
        n=int(fit.sum()),
        a=float(a.mean()),
        b=float(b.mean()),
        value=float(change.mean()),
        low=interval.low,
        high=interval.high,
        p=statistics.permutation_test(change),
        gained=int((change < 0).sum()),
        lost=int((change > 0).sum()),
        detectable=statistics.min_detectable_difference([change], np.ones(1))
        if change.any()
        else None,
    )
    return headline, (), ()
