"""Bits per byte: the information of documents in bits, divided by how many bytes they have.

    bits per byte = sum_d -log2 P(d) / sum_d bytes(d)

A ratio of sums, not a mean of ratios, so that a document counts by its length; the size of a
vocabulary cancels out. Views: byte perplexity, 2 ** (bits per byte), and word perplexity likewise
with words for bytes. Source: The Pile (Gao et al. 2020) and lm-eval's `bits_per_byte`.

Corner cases: documents are resampled whole; their contributions are linearised (Cochran 1977,
Sampling Techniques, ch. 6); a task that counts no words has no word perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.prediction_table import PredictionTable
from antlm_bench.metrics.summary import Headline, Metric, rounded_estimate
from antlm_bench.metrics.task_metric import task_values
from antlm_bench.types import Bools, Estimate, Floats

BYTES_COLUMN, WORDS_COLUMN = 0, 1
"""Columns of `judged`: the lengths of a document."""


class BitsPerByte(Metric):
    """Information of documents in bits, divided by how many bytes they have."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the linearised contribution (n,) of each document; their mean is the ratio."""
        bits, size = _bits(table), task_values(table, BYTES_COLUMN)
        ratio = float(bits.sum() / size.sum())
        return np.asarray(ratio + (bits - ratio * size) / size.mean())

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        del macro  # documents are one text
        everything = np.ones(len(table.ids), bool)
        headline = self.estimate_members(table, everything)
        views = {"byte-perplexity": _as_perplexity(headline)}
        if not np.isnan(task_values(table, WORDS_COLUMN)).any():
            per_word = self._bits_per_unit(table, WORDS_COLUMN, everything)
            views["word-perplexity"] = _as_perplexity(per_word)
        numbers = [f"{name.replace('-', ' ')} {view.value:.6g}" for name, view in views.items()]
        return Headline(headline, views, (", ".join(numbers),))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self._bits_per_unit(table, BYTES_COLUMN, members)

    def _bits_per_unit(
        self, table: PredictionTable, length_column: int, members: Bools
    ) -> Estimate:
        """Return bits per unit of length. DataError where the documents have no length."""
        bits, size = _bits(table)[members], task_values(table, length_column)[members]
        if not size.sum() > 0:
            raise DataError("the documents have no length", hint="does the task count bytes?")
        return rounded_estimate(
            float(bits.sum() / size.sum()),
            len(bits),
            statistics.bootstrap_ratio_interval(bits, size),
            table.count_flags(members, without="tie"),
            self.spec.value_range,
        )


def _as_perplexity(bits: Estimate) -> Estimate:
    """Return bits per unit as a perplexity: 2 to their power, as are the ends of the interval."""
    value, low, high = (round(2**number, 12) for number in (bits.value, bits.low, bits.high))
    return replace(bits, value=value, low=low, high=high)


def _bits(table: PredictionTable) -> Floats:
    return np.asarray(-table.scores[:, 0] / math.log(2))
