"""Numbers that a suite's own judge gives of each item, averaged; and bits per byte of documents, a
ratio of sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata, build_table
from antlm_bench.metrics.surprisal import WORD_LABEL
from antlm_bench.statistics import Interval
from antlm_bench.types import Bools, Estimate, Floats, Ints, Prediction, Summary

TASK_SCORE, TASK_PENALTY = (
    "task-score",
    "task-penalty",
)  # the judge's first number: more is better, or less is
# The judge's first number where it is no mean: averaged is what documents contribute
# (lm_eval_bridge.jackknife).
WHOLE_SCORE, WHOLE_PENALTY = "whole-score", "whole-penalty"
TASK_METRIC_NAMES = (TASK_SCORE, TASK_PENALTY, WHOLE_SCORE, WHOLE_PENALTY)
BITS_PER_BYTE = "bits-per-byte"
NO_VALUES_HINT = "raise --max-length, or score its tasks one by one"
BYTES_COLUMN, WORDS_COLUMN = 0, 1  # what is judged of a whole document: its lengths


class MeanTaskMetric:
    """The mean of one of the judge's numbers, over the items of which it says one; n counts those.
    """

    def __init__(self, ties: str, reduction: str, column: int = 0) -> None:
        del ties, reduction  # the judge was given the scores as they are
        self.column = column

    def per_item(self, table: PredictionTable, reduction: str) -> Floats:
        """What the judge says (n,) of each item, nan where it says nothing."""
        del reduction
        return np.asarray(_task_metrics(table)[:, self.column])

    def headline(
        self, table: PredictionTable, macro: Sequence[str]
    ) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        codes, paths = assign_strata(table, macro)
        weights = statistics.macro_weights(paths)
        values = self.per_item(table, "")
        headline = _weighted_mean(table, values, codes, weights)
        views = {}
        if len(paths) > 1:
            means = np.array([np.nanmean(values[codes == code]) for code in range(len(paths))])
            views["clustered"] = _rounded_estimate(
                headline.value,
                headline.n,
                statistics.clustered_interval(means, weights),
                headline.flags,
            )
        silent = int((np.isnan(values) & ~table.get_flag("too-long")).sum())
        return (
            headline,
            views,
            (f"left out: {silent} items of which the task says nothing",) if silent else (),
        )

    def by_group(self, table: PredictionTable, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        values, one = self.per_item(table, ""), np.ones(1)
        return [
            _weighted_mean(table, values, np.where(codes == g, 0, -1).astype(np.int32), one)
            for g in range(len(names))
        ]


class BitsPerByte:
    """Information of documents in bits, divided by how many bytes they have; documents are
    resampled.
    """

    def __init__(self, ties: str, reduction: str) -> None:
        del ties, reduction

    def per_item(self, table: PredictionTable, reduction: str) -> Floats:
        """Contribution (n,) of each document, linearised: their mean is the ratio, their variance
        that of its estimation (Cochran 1977, Sampling Techniques, ch. 6).
        """
        del reduction
        bits, size = _bits(table), _task_metrics(table)[:, BYTES_COLUMN]
        ratio = float(bits.sum() / size.sum())
        return np.asarray(ratio + (bits - ratio * size) / size.mean())

    def headline(
        self, table: PredictionTable, macro: Sequence[str]
    ) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        del macro  # documents are one text
        headline = _bits_per_unit(table, BYTES_COLUMN, np.ones(len(table.ids), bool))
        views = {"byte-perplexity": _as_perplexity(headline)}
        if not np.isnan(_task_metrics(table)[:, WORDS_COLUMN]).any():
            views["word-perplexity"] = _as_perplexity(
                _bits_per_unit(table, WORDS_COLUMN, np.ones(len(table.ids), bool))
            )
        said = ", ".join(
            f"{name.replace('-', ' ')} {view.value:.6g}" for name, view in views.items()
        )
        return headline, views, (said,)

    def by_group(self, table: PredictionTable, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return [_bits_per_unit(table, BYTES_COLUMN, codes == g) for g in range(len(names))]


def add_views(summary: Summary, predictions: Sequence[Prediction], names: Sequence[str]) -> Summary:
    """A Summary with further views, the judge's numbers of these names ("" = no view), and a note
    of what they are.

    A number that is said of no item of a stratum has no view.
    """
    wanted = [(column, name) for column, name in enumerate(names) if name]
    if not wanted or not predictions[0].judged:
        said = ", ".join(name for _, name in wanted)
        return replace(
            summary,
            notes=(*summary.notes, *([f"not computed by this engine: {said}"] if wanted else [])),
        )
    macro = [
        level for level in summary.macro if level != WORD_LABEL
    ]  # each document is a word of its own
    table = build_table(predictions, set(macro))
    views, lost = {}, []
    for column, name in wanted:
        try:
            views[name] = MeanTaskMetric("", "", column).headline(table, macro)[0]
        except DataError:
            lost.append(name)
    notes = (
        [f"also: {', '.join(f'{name} {view.value:.4g}' for name, view in views.items())}"]
        if views
        else []
    )
    notes += [f"not computed, for no item has one: {', '.join(lost)}"] if lost else []
    return replace(summary, views={**summary.views, **views}, notes=(*summary.notes, *notes))


def _weighted_mean(
    table: PredictionTable, values: Floats, codes: Ints, weights: Floats
) -> Estimate:
    """The weighted mean of the means of strata, of what is known. Items are resampled within
    strata; where every value is 0 or 1 and one stratum all there is, the interval is a
    proportion's.
    """
    known = ~np.isnan(values) & (codes >= 0)
    parts = [values[known & (codes == code)] for code in range(len(weights))]
    if not all(map(len, parts)):
        empty = next(code for code, part in enumerate(parts) if not len(part))
        place = f"item {table.ids[int(np.flatnonzero(codes == empty)[0])]} and others"
        raise DataError(
            "no number of any of them: none fits, or the task says nothing",
            location=place,
            hint=NO_VALUES_HINT,
        )
    value = float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
    everything = np.concatenate(parts)
    if np.isin(everything, (0, 1)).all() and (
        len(parts) == 1 or all(np.ptp(part) == 0 for part in parts)
    ):
        interval = statistics.wilson_macro_interval(parts, weights)
    else:
        interval = statistics.bootstrap_interval(parts, weights)
    return _rounded_estimate(value, len(everything), interval, _count_flags(table, codes >= 0))


def _bits_per_unit(table: PredictionTable, length_column: int, members: Bools) -> Estimate:
    """Bits per unit of length of these documents. DataError where they have no length."""
    bits, size = _bits(table)[members], _task_metrics(table)[members, length_column]
    if not size.sum() > 0:
        raise DataError("the documents have no length", hint="does the task count bytes?")
    interval = statistics.bootstrap_ratio_interval(bits, size)
    return _rounded_estimate(
        float(bits.sum() / size.sum()), len(bits), interval, _count_flags(table, members)
    )


def _as_perplexity(bits: Estimate) -> Estimate:
    """Bits per unit as a perplexity: 2 to their power, as are the ends of their interval."""
    return replace(
        bits,
        value=round(2**bits.value, 12),
        low=round(2**bits.low, 12),
        high=round(2**bits.high, 12),
    )


def _bits(table: PredictionTable) -> Floats:
    return np.asarray(-table.scores[:, 0] / math.log(2))


def _task_metrics(table: PredictionTable) -> Floats:
    if not table.judged.shape[1]:
        raise DataError("the answers were not judged", hint="score them again with this version")
    return table.judged


def _count_flags(table: PredictionTable, members: Bools) -> dict[str, int]:
    """What was raised among these items; ties are no business of a judge."""
    counts = {name: int((on & members).sum()) for name, on in table.flags.items() if name != "tie"}
    return {name: count for name, count in counts.items() if count}


def _rounded_estimate(
    value: float, n: int, interval: Interval, flags: Mapping[str, int]
) -> Estimate:
    return Estimate(
        round(value, 12),
        n,
        round(float(interval.low), 12),
        round(float(interval.high), 12),
        dict(flags),
    )
