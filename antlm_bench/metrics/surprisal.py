"""Surprisal of words in nats, -log P(word | context).

    headline = mean over words of the mean over the word's contexts

The interval is for a sample of words (`t_interval_of_means`).
Source: Hale 2001, Levy 2008; over a child's words, Chang & Bergen 2022.
Corner cases: a context that does not fit the model is left out; the interval of a single word has
width 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata
from antlm_bench.metrics.records import WORD_LABEL
from antlm_bench.metrics.summary import Headline, Metric, rounded_estimate
from antlm_bench.statistics.known_coverage import few_values_notes
from antlm_bench.types import TOO_LONG_HINT, Bools, Estimate, Floats


class MeanSurprisal(Metric):
    """The mean surprisal of words."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the surprisal (n,) in nats of each word in its context; nan if it is too long."""
        return np.where(table.get_flag("too-long"), np.nan, -table.scores[:, 0])

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        del macro  # the groups are always words
        members = np.ones(len(table.ids), bool)
        num_words = len(word_means(table, self.per_item(table), members))
        return Headline(self.estimate_members(table, members), {}, few_values_notes(num_words))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        means = word_means(table, self.per_item(table), members)
        if not len(means):
            raise DataError(
                "every context is too long for the model",
                location=f"item {table.ids[0]} and others",
                hint=TOO_LONG_HINT,
            )
        value = float(means.mean())
        weights = np.full(len(means), 1 / len(means))
        interval = (
            statistics.t_interval_of_means(means, weights) if len(means) > 1 else (value, value)
        )
        flags = table.count_flags(members, exclude="tie")
        return rounded_estimate(value, int(members.sum()), interval, flags, self.spec.value_range)


def word_means(table: PredictionTable, values: Floats, members: Bools) -> Floats:
    """Return the mean value (w,) of each word over its contexts, in order of appearance.

    values (n,): value of each item, nan = none. Words without a value are left out. Raises
    DataError if an item has no label of its word.
    """
    used = members & ~np.isnan(values)
    codes, words = assign_strata(table, (WORD_LABEL,))
    num_contexts = np.bincount(codes[used], minlength=len(words))
    sums = np.bincount(codes[used], values[used], minlength=len(words))
    has_context = num_contexts > 0
    return np.asarray(sums[has_context] / num_contexts[has_context])
