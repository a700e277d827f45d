"""The table of learning curves: a sparkline per suite and model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting.results_table import estimate_cell
from antlm_bench.reporting.table import Table, TableCell, build_records_table
from antlm_bench.results.checkpoint_series import CurvePoint, LearningCurve, format_word_count

BARS, GAP_SIGN, TWIN_SIGN = "▁▂▃▄▅▆▇█", "·", "="
LEGEND = (
    f"One sign per checkpoint, from the suite's lowest value ({BARS[0]}) to its highest "
    f"({BARS[-1]}); {GAP_SIGN} no such checkpoint, {TWIN_SIGN} the weights of an earlier one. "
    "The last value stands with half its 95% interval."
)


def sparkline(curve: LearningCurve, low: float, high: float) -> str:
    """Draw one sign per milestone: a bar of eight heights in [low, high], a gap, or a duplicate."""
    points = {point.milestone: point for point in curve.points}
    signs = []
    for milestone in curve.milestones:
        point = points.get(milestone)
        level = (point.estimate.value - low) / (high - low) if point and high > low else 0.5
        bar = BARS[min(int(level * len(BARS)), len(BARS) - 1)]
        signs.append(GAP_SIGN if point is None else TWIN_SIGN if point.duplicate_of else bar)
    return "".join(signs)


def build_curve_table(
    curves: Sequence[LearningCurve], unplaced_checkpoints: Sequence[str]
) -> Table:
    """Build the table of curves. Curves of one suite are grouped and share a scale.

    unplaced_checkpoints: names of runs without a number of words seen. The long form has a row per
    checkpoint.
    """
    return replace(
        build_records_table(list(_summarize_curves(curves))),
        legend=(*collect_notes(curves, unplaced_checkpoints), LEGEND),
        long=build_records_table(to_tidy_rows(curves)),
    )


def _summarize_curves(curves: Sequence[LearningCurve]) -> Iterator[dict[str, object]]:
    several_methods = len({curve.method for curve in curves}) > 1
    for suite in dict.fromkeys(curve.suite for curve in curves):
        same_scale = [curve for curve in curves if curve.suite == suite]
        values = [point.estimate.value for curve in same_scale for point in curve.points]
        for curve in same_scale:
            first, last = curve.points[0], curve.points[-1]
            best = max(curve.points, key=lambda point: point.estimate.value)
            words = [format_word_count(point.words_seen) for point in (first, last, best)]
            yield {
                "suite": suite,
                "model": curve.series_name,
                **({"method": curve.method} if several_methods else {}),
                "words": f"{words[0]} – {words[1]}",
                "curve": sparkline(curve, min(values), max(values)),
                "first": TableCell(first.estimate.value, _format_value(curve, first)),
                "last": estimate_cell(last.estimate, curve.metric),
                "best": TableCell(
                    best.estimate.value, f"{_format_value(curve, best)} at {words[2]}"
                ),
            }


def to_tidy_rows(curves: Sequence[LearningCurve]) -> list[dict[str, object]]:
    """Return a row per checkpoint, suite and method, in full precision.

    `twin` names an earlier checkpoint with equal weights.
    """
    return [
        {
            "model": curve.series_name,
            "suite": curve.suite,
            "method": curve.method,
            "metric": curve.metric,
            "checkpoint": point.checkpoint,
            "words": point.words_seen,
            "value": point.estimate.value,
            "low": point.estimate.low,
            "high": point.estimate.high,
            "n": point.estimate.n,
            "twin": point.duplicate_of,
        }
        for curve in curves
        for point in curve.points
    ]


def collect_notes(
    curves: Sequence[LearningCurve], unplaced_checkpoints: Sequence[str]
) -> list[str]:
    """Describe checkpoints that are duplicates, missing, or without a number of words seen."""
    notes = []
    twins = {
        (c.series_name, p.checkpoint, p.duplicate_of): None
        for c in curves
        for p in c.points
        if p.duplicate_of
    }
    notes += [f"{series}: {name} has the same weights as {other}." for series, name, other in twins]
    gaps = {
        (c.series_name, m): None
        for c in curves
        for m in c.milestones
        if m not in {p.milestone for p in c.points}
    }
    for series in dict.fromkeys(series for series, _ in gaps):
        missing = ", ".join(format_word_count(words) for name, words in gaps if name == series)
        notes.append(f"{series}: no result at {missing} words.")
    if unplaced_checkpoints:
        notes.append(
            "Left out, nothing says how many words they have seen: "
            f"{', '.join(unplaced_checkpoints)}."
        )
    return notes


def _format_value(curve: LearningCurve, point: CurvePoint) -> str:
    return get_metric_spec(curve.metric).format(point.estimate.value)
