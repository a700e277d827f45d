"""Learning curves as text: a line of bars per suite on the terminal, a row per checkpoint in CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from antlm_bench.reporting import results_table
from antlm_bench.reporting.metric_units import unit
from antlm_bench.reporting.terminal import catalog, console

if TYPE_CHECKING:
    from antlm_bench.commands.curve import Curve

BARS, GAP, TWIN = "▁▂▃▄▅▆▇█", "·", "="
LEGEND = (
    f"One sign per checkpoint, from the suite's lowest value ({BARS[0]}) to its highest ({BARS[-1]}); {GAP} no such "
    f"checkpoint, {TWIN} the weights of an earlier one. The last value stands with half its 95% interval."
)


def sparkline(curve: Curve, low: float, high: float) -> str:
    """One sign per mark: the value's eighth of [low, high], a gap, or a twin."""
    points = {point.mark: point for point in curve.points}
    signs = []
    for mark in curve.marks:
        point = points.get(mark)
        level = (point.estimate.value - low) / (high - low) if point and high > low else 0.5
        bar = BARS[min(int(level * len(BARS)), len(BARS) - 1)]
        signs.append(GAP if point is None else TWIN if point.twin else bar)
    return "".join(signs)


def summary(curves: Sequence[Curve]) -> list[dict[str, object]]:
    """A row per curve, those of one suite together and under one scale."""
    several = len({curve.method for curve in curves}) > 1
    rows: list[dict[str, object]] = []
    for suite in dict.fromkeys(curve.suite for curve in curves):
        those = [curve for curve in curves if curve.suite == suite]
        values = [point.estimate.value for curve in those for point in curve.points]
        for curve in those:
            first, last = curve.points[0], curve.points[-1]
            best = max(curve.points, key=lambda point: point.estimate.value)
            row: dict[str, object] = {"suite": suite, "model": curve.family}
            row |= {"method": curve.method} if several else {}
            row |= {"words": f"{_amount(first.words)} – {_amount(last.words)}"}
            row |= {"curve": sparkline(curve, min(values), max(values))}
            row |= {"first": _number(curve, first.estimate.value), "last": _last(curve)}
            rows.append(row | {"best": f"{_number(curve, best.estimate.value)} at {_amount(best.words)}"})
    return rows


def tidy(curves: Sequence[Curve]) -> list[dict[str, object]]:
    """A row per checkpoint, suite and method, in full precision; `twin` names an earlier one of equal weights."""
    return [
        {
            "model": curve.family,
            "suite": curve.suite,
            "method": curve.method,
            "metric": curve.metric,
            "checkpoint": point.checkpoint,
            "words": point.words,
            "value": point.estimate.value,
            "low": point.estimate.low,
            "high": point.estimate.high,
            "n": point.estimate.n,
            "twin": point.twin,
        }
        for curve in curves
        for point in curve.points
    ]


def show_curves(curves: Sequence[Curve], lost: Sequence[str], form: str = "terminal") -> None:
    """Print curves on stdout. form: terminal, markdown (a row per curve), csv, json (a row per checkpoint)."""
    if form in ("csv", "json"):
        catalog(tidy(curves), form)
        return
    catalog(summary(curves), form)
    if form == "terminal":
        out = console()
        out.print()
        for line in (*remarks(curves, lost), LEGEND):
            for part in Text(line, style="dim").wrap(out, min(out.width, 100) - 2):
                part.rstrip()
                out.print(Text(" ") + part)


def remarks(curves: Sequence[Curve], lost: Sequence[str]) -> list[str]:
    """What a reader must know of checkpoints that are missing, twins, or without a place."""
    said = []
    twins = {(c.family, p.checkpoint, p.twin): None for c in curves for p in c.points if p.twin}
    said += [f"{family}: {one} has the same weights as {other}." for family, one, other in twins]
    gaps = {(c.family, m): None for c in curves for m in c.marks if m not in {p.mark for p in c.points}}
    for family in dict.fromkeys(family for family, _ in gaps):
        missing = ", ".join(_amount(mark) for of, mark in gaps if of == family)
        said.append(f"{family}: no result at {missing} words.")
    if lost:
        said.append(f"Left out, nothing says how many words they have seen: {', '.join(lost)}.")
    return said


def _number(curve: Curve, value: float) -> str:
    return unit(curve.metric).written(value)


def _last(curve: Curve) -> str:
    return " ".join(results_table.number(curve.points[-1].estimate, curve.metric).split())


def _amount(words: float) -> str:
    from antlm_bench.commands.curve import amount

    return amount(words)
