"""Bits per byte: the information content of documents in bits, divided by their bytes.

    bits per byte = sum_d -log2 P(d) / sum_d bytes(d)

This is a ratio of sums, not a mean of ratios: long documents count more. Models with different
vocabularies are comparable. Views: byte perplexity = 2 ** (bits per byte), and word perplexity =
2 ** (bits per word). Source: The Pile (Gao et al. 2020) and lm-eval's `bits_per_byte`.

The interval is a jackknife t interval over documents on a logarithmic scale
(`statistics.ratio_interval`). Comparisons are t tests over the contributions of documents, which
come from leaving out each document in turn (jackknife; Cochran 1977, Sampling Techniques, ch. 6).
Without a count of words there is no word perplexity.
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
from antlm_bench.printable import format_count
from antlm_bench.types import Bools, Estimate, Floats

BYTES_COLUMN, WORDS_COLUMN = 0, 1
"""Columns of `PredictionTable.task_values` with the lengths of a document."""

MAX_EXPONENT = 1000.0
"""Largest bits per unit that are written as a perplexity: a float ends at 2 ** 1024."""


class BitsPerByte(Metric):
    """Information content of documents in bits, divided by their bytes."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the contribution (n,) of each document; their mean is the ratio."""
        return document_contributions(_bits(table), task_values(table, BYTES_COLUMN))

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        del macro  # documents have no groups
        everything = np.ones(len(table.ids), bool)
        headline = self.estimate_members(table, everything)
        views = {"byte-perplexity": _as_perplexity(headline)}
        if not np.isnan(task_values(table, WORDS_COLUMN)).any():
            per_word = self._bits_per_unit(table, WORDS_COLUMN, everything)
            views["word-perplexity"] = _as_perplexity(per_word)
        values = [f"{name.replace('-', ' ')} {view.value:.6g}" for name, view in views.items()]
        notes = [", ".join(values)]
        lengths = task_values(table, BYTES_COLUMN)
        if len(lengths) == 1:
            notes.append("no interval: there is one document")
        elif lengths.max() == lengths.sum():
            notes.append("no interval: there is one document, the others are empty")
        return Headline(headline, views, tuple(notes))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self._bits_per_unit(table, BYTES_COLUMN, members)

    def _bits_per_unit(
        self, table: PredictionTable, length_column: int, members: Bools
    ) -> Estimate:
        """Return bits per unit of length. DataError if the lengths do not add up to more than 0."""
        bits, lengths = _bits(table)[members], task_values(table, length_column)[members]
        if not lengths.sum() > 0:
            raise DataError(
                f"the lengths of {format_count(len(lengths), 'document')} add up to "
                f"{lengths.sum():g}",
                location=f"item {table.ids[int(np.flatnonzero(members)[0])]} and others",
                hint="the task must count the bytes (words) of each document",
            )
        return rounded_estimate(
            float(bits.sum() / lengths.sum()),
            len(bits),
            statistics.ratio_interval(bits, lengths),
            table.count_flags(members, exclude="tie"),
            self.spec.value_range,
        )


def _as_perplexity(bits: Estimate) -> Estimate:
    """Return bits per unit as a perplexity: 2 ** value, with the bounds of the interval alike."""
    exponents = (min(number, MAX_EXPONENT) for number in (bits.value, bits.low, bits.high))
    value, low, high = (round(2**exponent, 12) for exponent in exponents)
    return replace(bits, value=value, low=low, high=high)


def document_contributions(bits: Floats, lengths: Floats) -> Floats:
    """Return the contribution (n,) of each document to sum(bits) / sum(lengths).

    Their mean is the ratio, and the variance of their mean is the jackknife's. Linearised
    contributions divide by the mean length of all documents, not of the others; their intervals
    are too narrow if a few documents are long. Empty documents contribute nothing: nan.
    """
    has_text = (lengths > 0) | (bits != 0)
    if not has_text.all():
        contributions = np.full(len(bits), np.nan)
        contributions[has_text] = document_contributions(bits[has_text], lengths[has_text])
        return contributions
    n, total = len(bits), float(lengths.sum())
    ratio = float(bits.sum()) / total
    others = total - lengths
    mean_of_others = np.where(others > 0, others / max(n - 1, 1), total / n)
    effects = (bits - ratio * lengths) / mean_of_others
    return np.asarray(ratio + effects - effects.mean())


def _bits(table: PredictionTable) -> Floats:
    return np.asarray(-table.scores[:, 0] / math.log(2))
