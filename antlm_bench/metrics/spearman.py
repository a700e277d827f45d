"""Spearman's rho of the first option's probability with a human rating.

    p = softmax(scores of the item's options)[0],    rho = Pearson(rank(p), rank(rating))

over all items of a suite. Source: BabyLM's score of WUG (evaluation-pipeline-2025,
sentence_zero_shot/compute_results.py). Interval: `statistics.spearman`.

Corner cases: items that do not fit the model are left out and not counted in n; with softmax =
"float32", as in BabyLM's pipeline, probabilities near 1 are equal and share a rank; the correlation
of fewer than three items, or of equal ratings, is undefined: the suite is refused, and a group is
left out with a note; a model whose probabilities are all equal gets 0, with a note and the whole
range as interval; an item whose options all have probability 0 is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.metrics.accuracy import other_reductions
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata
from antlm_bench.metrics.summary import Headline, Metric, rounded_estimate
from antlm_bench.statistics.spearman import MIN_UNTIED_ITEMS, has_narrow_interval
from antlm_bench.statistics.special_functions import softmax
from antlm_bench.types import Bools, Estimate, Floats


class Spearman(Metric):
    """Rank correlation of the first option's probability with the human rating."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the probability (n,) of the first option. CheckpointError if all options of an
        item have probability 0."""
        return self._probabilities(table, self.settings.reduction)

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        if len(assign_strata(table, macro)[1]) > 1:
            raise UsageError(
                f"{self.spec.name} is computed over all items, not averaged over groups: "
                f"{', '.join(macro)}",
                hint="leave `macro` empty in the suite's TOML",
            )
        everything = np.ones(len(table.ids), bool)
        reduction = self.settings.reduction
        views = {
            other: self._correlate(table, everything, other)
            for other in other_reductions(reduction)
        }
        headline = self._correlate(table, everything, reduction)
        self.require_defined(table)
        pairs = self._probabilities_and_ratings(table, everything, reduction)
        notes = []
        if statistics.spearman_correlation(*pairs) is None:
            notes.append("correlation undefined (all predictions equal): shown as 0")
        elif has_narrow_interval(*pairs):
            notes.append(
                "the interval covers 89 to 93%: the correlation is above .9, many items tie"
            )
        return Headline(headline, views, tuple(notes))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self._correlate(table, members, self.settings.reduction)

    def closing_notes(self, estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
        names = [name for name, e in estimates.items() if (e.low, e.high) == self.spec.value_range]
        return no_interval_note(names, "correlation", MIN_UNTIED_ITEMS)

    def _probabilities(self, table: PredictionTable, reduction: str) -> Floats:
        precision = np.dtype(self.settings.softmax)
        scores = np.where(table.valid, table.reduced_scores(reduction), -np.inf).astype(precision)
        with np.errstate(invalid="ignore"):
            probability = softmax(scores, axis=1)[:, 0].astype(np.float64)
        undefined = np.isnan(probability) & ~table.get_flag("too-long")
        if undefined.any():
            raise CheckpointError(
                "every option has probability 0",
                location=f"item {table.ids[int(np.flatnonzero(undefined)[0])]}",
                hint="score again with --dtype float32",
            )
        return np.asarray(probability)

    def _probabilities_and_ratings(
        self, table: PredictionTable, members: Bools, reduction: str
    ) -> tuple[Floats, Floats]:
        used = members & ~table.get_flag("too-long")
        return self._probabilities(table, reduction)[used], table.gold[used]

    def _correlate(self, table: PredictionTable, members: Bools, reduction: str) -> Estimate:
        pairs = self._probabilities_and_ratings(table, members, reduction)
        flags, value_range = table.count_flags(members), self.spec.value_range
        value, n = statistics.spearman_correlation(*pairs), len(pairs[0])
        if value is None:
            return rounded_estimate(0.0, n, value_range, flags, value_range)
        interval = statistics.spearman_interval(*pairs)
        return rounded_estimate(value, n, interval, flags, value_range)


def no_interval_note(names: Sequence[str], statistic: str, min_items: int) -> tuple[str, ...]:
    """Return a note that these suites or groups have no interval; () for no names."""
    reason = (
        f"no interval of a {statistic} is known with fewer than {min_items} items "
        "beside the largest tie"
    )
    return (f"{', '.join(dict.fromkeys(names))}: {reason}",) if names else ()
