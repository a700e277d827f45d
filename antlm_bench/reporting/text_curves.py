"""Learning curves as text: a line of bars per suite on the terminal, a row per checkpoint in CSV
and JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting import results_table
from antlm_bench.reporting.terminal import make_console, print_rows

if TYPE_CHECKING:
    from antlm_bench.commands.curve import LearningCurve

BARS, GAP_SIGN, TWIN_SIGN = "▁▂▃▄▅▆▇█", "·", "="
LEGEND = (
    f"One sign per checkpoint, from the suite's lowest value ({BARS[0]}) to its highest ({BARS[-1]}); {GAP_SIGN} no such "
    f"checkpoint, {TWIN_SIGN} the weights of an earlier one. The last value stands with half its 95% interval."
)


def sparkline(curve: LearningCurve, low: float, high: float) -> str:
    """One sign per mark: the value's eighth of [low, high], a gap, or a twin."""
    points = {point.milestone: point for point in curve.points}
    signs = []
    for mark in curve.milestones:
        point = points.get(mark)
        level = (point.estimate.value - low) / (high - low) if point and high > low else 0.5
        bar = BARS[min(int(level * len(BARS)), len(BARS) - 1)]
        signs.append(GAP_SIGN if point is None else TWIN_SIGN if point.duplicate_of else bar)
    return "".join(signs)


def summarize_curves(curves: Sequence[LearningCurve]) -> list[dict[str, object]]:
    """A row per curve, those of one suite together and under one scale."""
    several = len({curve.method for curve in curves}) > 1
    rows: list[dict[str, object]] = []
    for suite in dict.fromkeys(curve.suite for curve in curves):
        those = [curve for curve in curves if curve.suite == suite]
        values = [point.estimate.value for curve in those for point in curve.points]
        for curve in those:
            first, last = curve.points[0], curve.points[-1]
            best = max(curve.points, key=lambda point: point.estimate.value)
            row: dict[str, object] = {"suite": suite, "model": curve.series_name}
            row |= {"method": curve.method} if several else {}
            row |= {
                "words": f"{_format_words(first.words_seen)} – {_format_words(last.words_seen)}"
            }
            row |= {"curve": sparkline(curve, min(values), max(values))}
            row |= {
                "first": _format_value(curve, first.estimate.value),
                "last": _format_last(curve),
            }
            rows.append(
                row
                | {
                    "best": f"{_format_value(curve, best.estimate.value)} at {_format_words(best.words_seen)}"
                }
            )
    return rows


def to_tidy_rows(curves: Sequence[LearningCurve]) -> list[dict[str, object]]:
    """A row per checkpoint, suite and method, in full precision; `twin` names an earlier one of
    equal weights.
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


def show_curves(
    curves: Sequence[LearningCurve],
    unplaced_checkpoints: Sequence[str],
    output_format: str = "terminal",
) -> None:
    """Print curves on stdout. form: terminal, markdown (a row per curve), csv, json (a row per
    checkpoint).
    """
    if output_format in ("csv", "json"):
        print_rows(to_tidy_rows(curves), output_format)
        return
    print_rows(summarize_curves(curves), output_format)
    if output_format == "terminal":
        out = make_console()
        out.print()
        for line in (*collect_notes(curves, unplaced_checkpoints), LEGEND):
            for part in Text(line, style="dim").wrap(out, min(out.width, 100) - 2):
                part.rstrip()
                out.print(Text(" ") + part)


def collect_notes(
    curves: Sequence[LearningCurve], unplaced_checkpoints: Sequence[str]
) -> list[str]:
    """What a reader must know of checkpoints that are missing, twins, or without a place."""
    said = []
    twins = {
        (c.series_name, p.checkpoint, p.duplicate_of): None
        for c in curves
        for p in c.points
        if p.duplicate_of
    }
    said += [f"{family}: {one} has the same weights as {other}." for family, one, other in twins]
    gaps = {
        (c.series_name, m): None
        for c in curves
        for m in c.milestones
        if m not in {p.milestone for p in c.points}
    }
    for family in dict.fromkeys(family for family, _ in gaps):
        missing = ", ".join(_format_words(mark) for of, mark in gaps if of == family)
        said.append(f"{family}: no result at {missing} words.")
    if unplaced_checkpoints:
        said.append(
            f"Left out, nothing says how many words they have seen: {', '.join(unplaced_checkpoints)}."
        )
    return said


def _format_value(curve: LearningCurve, value: float) -> str:
    return get_metric_spec(curve.metric).format(value)


def _format_last(curve: LearningCurve) -> str:
    return " ".join(results_table.format_estimate(curve.points[-1].estimate, curve.metric).split())


def _format_words(words: float) -> str:
    from antlm_bench.commands.curve import format_word_count

    return format_word_count(words)
