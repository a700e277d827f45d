"""Build the table of learning curves: a sparkline per suite and model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.reporting.comparison_table import format_with_unit
from antlm_bench.reporting.results_table import estimate_cell
from antlm_bench.reporting.table import Table, TableCell, build_records_table
from antlm_bench.results.checkpoint_series import CurvePoint, LearningCurve, format_word_count

BARS = "▁▂▃▄▅▆▇█"
MISSING_SIGN = "·"
DUPLICATE_SIGN = "="
LEGEND = (
    f"One sign per checkpoint, from the suite's lowest value ({BARS[0]}) to its highest "
    f"({BARS[-1]}); {MISSING_SIGN} a missing checkpoint, {DUPLICATE_SIGN} a checkpoint with the "
    "weights of an earlier one. The last value is followed by its [95% interval]."
)


def sparkline(curve: LearningCurve, low: float, high: float) -> str:
    """Draw one sign per milestone: a bar whose height shows where the value lies in [low, high], or
    the sign of a missing or duplicate checkpoint."""
    points = {point.milestone: point for point in curve.points}
    signs = ""
    for milestone in curve.milestones:
        point = points.get(milestone)
        if point is None:
            signs += MISSING_SIGN
        elif point.duplicate_of:
            signs += DUPLICATE_SIGN
        else:
            height = (point.estimate.value - low) / (high - low) if high > low else 0.5
            signs += BARS[min(int(height * len(BARS)), len(BARS) - 1)]
    return signs


def build_curve_table(
    curves: Sequence[LearningCurve], unplaced_checkpoints: Sequence[str]
) -> Table:
    """Build the table of curves. Curves of one suite are next to each other and share a scale.

    unplaced_checkpoints: names of runs of which the number of words seen is unknown. The long form
    has a row per checkpoint.
    """
    return replace(
        build_records_table(list(_summarize_curves(curves))),
        legend=(*collect_notes(curves, unplaced_checkpoints), LEGEND),
        build_long=lambda: build_records_table(to_tidy_rows(curves)),
    )


def _summarize_curves(curves: Sequence[LearningCurve]) -> Iterator[dict[str, object]]:
    has_several_methods = len({curve.method for curve in curves}) > 1
    optimism_notes = {
        metric: describe_optimism([curve for curve in curves if curve.metric == metric])
        for metric in dict.fromkeys(curve.metric for curve in curves)
    }
    for suite in dict.fromkeys(curve.suite for curve in curves):
        suite_curves = [curve for curve in curves if curve.suite == suite]
        values = [point.estimate.value for curve in suite_curves for point in curve.points]
        for curve in suite_curves:
            first, last = curve.points[0], curve.points[-1]
            best = curve.best_point
            first_words, last_words, best_words = (
                format_word_count(point.words_seen) for point in (first, last, best)
            )
            best_text = f"{_format_value(curve, best)} at {best_words}"
            words = first_words if first is last else f"{first_words} – {last_words}"
            yield {
                "suite": suite,
                "model": curve.series_name,
                **({"method": curve.method} if has_several_methods else {}),
                "words": words,
                "curve": sparkline(curve, min(values), max(values)),
                "first": TableCell(first.estimate.value, _format_value(curve, first)),
                "last": estimate_cell(last.estimate, curve.metric),
                "best": TableCell(
                    best.estimate.value,
                    best_text,
                    notes=optimism_notes[curve.metric] if curve.optimism else (),
                ),
            }


def describe_optimism(curves: Sequence[LearningCurve]) -> tuple[str, ...]:
    """Return a sentence on how far chance raises the best values of these curves of one metric; ()
    if the bound rounds to 0.
    """
    optimistic = [curve for curve in curves if curve.optimism]
    optimism = max((curve.optimism or 0.0 for curve in optimistic), default=0.0)
    spec = get_metric_spec(curves[0].metric)
    if spec.format(optimism) == spec.format(0.0):
        return ()
    counts = sorted({sum(not point.duplicate_of for point in curve.points) for curve in optimistic})
    num_checkpoints = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"the best of {num_checkpoints} checkpoints is optimistic, because chance selects it, too: "
        f"by up to {format_with_unit(optimism, curves[0].metric)} on average; report the last, or "
        "select on other items",
    )


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
            "low": low,
            "high": high,
            "n": point.estimate.n,
            "twin": point.duplicate_of,
        }
        for curve in curves
        for point in curve.points
        for low, high in [get_metric_spec(curve.metric).known_interval(*point.estimate.interval)]
    ]


def collect_notes(
    curves: Sequence[LearningCurve], unplaced_checkpoints: Sequence[str]
) -> list[str]:
    """Describe checkpoints that are duplicates, missing, left out, without a number of words seen,
    or whose score has a caveat.
    """
    duplicate_notes: list[str] = []
    # (series, milestones without a result) -> curves, as "suite" or "suite · method"
    curves_by_gaps: dict[tuple[str, tuple[int, ...]], dict[str, None]] = {}
    methods = {curve.method for curve in curves}
    labels = [f"{c.suite} · {c.method}" if len(methods) > 1 else c.suite for c in curves]
    for curve, label in zip(curves, labels, strict=True):
        for point in curve.points:
            if point.duplicate_of:
                duplicate_notes.append(
                    f"{curve.series_name}: {point.checkpoint} has the same weights as "
                    f"{point.duplicate_of}."
                )
        present = {point.milestone for point in curve.points}
        if curve.other_items:
            continue  # their checkpoints are not missing
        gaps = tuple(milestone for milestone in curve.milestones if milestone not in present)
        if gaps:
            curves_by_gaps.setdefault((curve.series_name, gaps), {})[label] = None
    notes = list(dict.fromkeys([*duplicate_notes, *describe_other_items(curves)]))
    series_by_gaps: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for (series, gaps), gapped in curves_by_gaps.items():
        where = "" if gapped.keys() == set(labels) else f", {', '.join(gapped)}"
        series_by_gaps.setdefault((gaps, where), []).append(series)
    for (gaps, where), series_names in series_by_gaps.items():
        words = ", ".join(map(format_word_count, gaps))
        notes.append(f"{', '.join(series_names)}{where}: no result at {words} words.")
    notes += _describe_caveats(curves)
    if unplaced_checkpoints:
        names = ", ".join(unplaced_checkpoints)
        notes.append(f"Left out, because the number of words seen is unknown: {names}.")
    return notes


def describe_other_items(curves: Sequence[LearningCurve]) -> list[str]:
    """Name the checkpoints that a curve leaves out, because they were scored on other items."""
    suites: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for curve in curves:
        if curve.other_items:
            suites.setdefault((curve.series_name, curve.other_items), {})[curve.suite] = None
    return [
        f"{series}, {', '.join(names)}: left out {', '.join(checkpoints)}, scored on other items "
        "than the last checkpoint (--limit, or another version of the suite)."
        for (series, checkpoints), names in suites.items()
    ]


def _describe_caveats(curves: Sequence[LearningCurve]) -> list[str]:
    """Return a sentence per caveat, with its suites, and its checkpoints unless all have it."""
    suites: dict[tuple[str, str], dict[str, None]] = {}
    for curve in curves:
        for caveat in dict.fromkeys(caveat for point in curve.points for caveat in point.caveats):
            names = [point.checkpoint for point in curve.points if caveat in point.caveats]
            has_all = len(names) == len(curve.points)
            checkpoints = "" if has_all else f", {', '.join(names)}"
            suites.setdefault((checkpoints, caveat), {})[curve.suite] = None
    return [
        make_printable(f"{', '.join(names)}{checkpoints}: {caveat}.")
        for (checkpoints, caveat), names in suites.items()
    ]


def _format_value(curve: LearningCurve, point: CurvePoint) -> str:
    return get_metric_spec(curve.metric).format(point.estimate.value)
