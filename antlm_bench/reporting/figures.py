"""The figures of a report, once for the page and for files: what each shows, how it is drawn, its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from antlm_bench.reporting import charts, results_table
from antlm_bench.reporting.metric_units import unit
from antlm_bench.reporting.report_data import Contents, Figure, Grid, Pair, Seed, Tile, series
from antlm_bench.types import Estimate

if TYPE_CHECKING:
    from antlm_bench.commands.curve import Curve
    from antlm_bench.compare.comparison import Comparison, Difference
    from antlm_bench.results.training_log import Training

SIGNIFICANT = 0.05


def figures(contents: Contents) -> Iterator[Figure]:
    """Every figure that the contents give something to show for, in reading order, each under a name of its own."""
    taken: Counter[str] = Counter()
    for figure in _all(contents):
        taken[figure.name] += 1
        again = taken[figure.name]
        yield figure if again == 1 else replace(figure, name=f"{figure.name}.{again}")


def _all(contents: Contents) -> Iterator[Figure]:
    yield from _phenomena(contents.beside)
    yield from _paradigms(contents.beside)
    yield from _differences(contents.pairs, tuple(series(contents.beside)))
    yield from learning(contents.curves)
    yield from map(_training, contents.trainings)
    yield from _seeds(contents.seeds, tuple(series(contents.beside)))


def _phenomena(found: Sequence[results_table.Column]) -> Iterator[Figure]:
    names = tuple(series(found))
    for block in results_table.blocks(found, "phenomenon"):
        lines = sorted((line for line in block.lines if line.depth), key=lambda line: -_mean(line))
        if len(lines) < 2:
            continue
        rows = _of_lines(lines, block.metric, names)
        yield Figure(
            section="phenomena",
            name=f"phenomena.{block.suite}",
            title=results_table.printable(block.suite),
            caption=f"{_unit(block.metric)}, with 95% intervals over its items; the hardest stands last.",
            series=names,
            present=_present(rows),
            draw=partial(charts.dots, rows, names, title=_unit(block.metric)),
            grid=_grid(rows, names),
        )


def _paradigms(found: Sequence[results_table.Column]) -> Iterator[Figure]:
    names = tuple(series(found))
    for block in results_table.blocks(found, "paradigm"):
        lines = [line for line in block.lines if line.depth]
        rows = _of_lines([line for line in lines if line.depth == 2], block.metric, names)
        if block.metric != "accuracy" or not rows:
            continue
        present = [index for index, name in enumerate(names) if name in _present(rows)]
        tiled = []
        for line in lines:
            head = line.depth == 1
            cells = [_tile(line.estimates[index], block.metric, head) for index in present]
            tiled.append((Tile(line.name, head=head), *cells))
        yield Figure(
            section="paradigms",
            name=f"paradigms.{block.suite}",
            title=results_table.printable(block.suite),
            caption="% right per paradigm: blue above 50, orange below. A phenomenon's line is over all its items.",
            series=names,
            present=_present(rows),
            draw=partial(charts.tiles, rows, [names[index] for index in present]),
            grid=Grid(("", *(names[index] for index in present)), tuple(tiled)),
            tiled=True,
        )


def _differences(pairs: Sequence[Pair], names: tuple[str, ...]) -> Iterator[Figure]:
    for reference in dict.fromkeys(pair.reference for pair in pairs):
        those = [pair for pair in pairs if pair.reference == reference]
        for suite in dict.fromkeys(one.suite for pair in those for one in pair.comparisons):
            rows = [
                _difference(difference, pair.other, one)
                for pair in those
                for one in pair.comparisons
                if one.suite == suite
                for difference in (one.headline, *_shown(one.groups))
            ]
            yield Figure(
                section="differences",
                name=f"differences.{suite}",
                title=results_table.printable(suite),
                caption=f"Difference from {reference}, paired by item, with 95% intervals. Filled: p below 5% after "
                "correction for the number of rows; an outline may be chance.",
                series=names,
                present=_present(rows),
                draw=partial(charts.dots, rows, names, title=_points(rows), zero=True),
                grid=_grid(rows, names),
            )


def learning(curves: Sequence[Curve]) -> Iterator[Figure]:
    """One small figure per suite: every family and method over the words it has seen."""
    several = len({curve.method for curve in curves}) > 1
    called = {(c.family, c.method): f"{c.family} · {c.method}" if several else c.family for c in curves}
    names = tuple(called.values())
    for suite in dict.fromkeys(curve.suite for curve in curves):
        those = [curve for curve in curves if curve.suite == suite]
        metric = those[0].metric
        rows = [
            _numbers(point.estimate, metric)
            | {"row": point.checkpoint, "series": called[c.family, c.method], "words": point.words}
            | {"stretch": stretch, "hollow": bool(point.twin), "faint": False}
            | {"text": _value(point.estimate, metric) + (f", the weights of {point.twin}" if point.twin else "")}
            for c in those
            for stretch, points in enumerate(c.stretches)
            for point in points
        ]
        for row in rows:
            row["says"] = f"{row['series']}, {row['row']}: {row['text']}"
        told = [(row["series"], row["row"], f"{row['words']:,}", row["text"]) for row in rows]
        yield Figure(
            section="curves",
            name=f"curve.{suite}",
            title=results_table.printable(suite),
            caption=_unit(metric),
            series=names,
            present=_present(rows),
            draw=partial(charts.lines, rows, names, title=_unit(metric)),
            grid=_cells(("model", "checkpoint", "words seen", "value"), told),
            small=True,
        )


def _training(training: Training) -> Figure:
    names = tuple(dict.fromkeys(loss.objective for loss in training.losses))
    rows = [
        {"series": loss.objective, "stretch": loss.stretch, "words": loss.words, "value": loss.value}
        | {"says": f"{loss.objective}, {loss.words:,.0f} words: {loss.value:.3f}"}
        for loss in training.losses
    ]
    switches = [{"words": words, "label": f"→ {name}"} for words, name in training.switches]
    ends = [[loss for loss in training.losses if loss.objective == name][-1] for name in names]
    cells = [(loss.objective, f"{loss.words:,.0f}", f"{loss.value:.3f}") for loss in ends]
    cells += [(f"switch to {name}", f"{words:,.0f}", "") for words, name in training.switches]
    return Figure(
        section="training",
        name=f"training.{training.name}",
        title=training.name,
        caption=f"Each point is the mean of neighbouring steps ({training.steps:,} were logged). A dashed rule is a "
        "switch of objectives; losses of different objectives cannot be compared with one another.",
        series=names,
        present=_present(rows),
        draw=partial(charts.losses, rows, switches, names),
        grid=_cells(("objective", "words seen", "loss"), cells),
    )


def _seeds(seeds: Sequence[Seed], names: tuple[str, ...]) -> Iterator[Figure]:
    for suite in dict.fromkeys(seed.suite for seed in seeds):
        those = [seed for seed in seeds if seed.suite == suite]
        rows = []
        for seed in those:
            fallen = f"; collapsed: {', '.join(seed.collapsed)}" if seed.collapsed else ""
            task = f"{seed.task.removeprefix(f'{suite}.')} ({seed.metric})"
            number = _numbers(seed.estimate, seed.metric) | {"low": None, "high": None}
            rows.append(
                number
                | {
                    "row": results_table.printable(task),
                    "series": seed.series,
                    "hollow": bool(fallen),
                    "faint": not fallen,
                }
                | {"text": f"{number['value']:.1f}{'×' if fallen else ''}"}
                | {"says": f"{task}, {seed.series}, seed {seed.seed}: {number['value']:.1f}{fallen}"}
            )
        yield Figure(
            section="seeds",
            name=f"seeds.{suite}",
            title=results_table.printable(suite),
            caption="One mark per seed. An outline (× in the table) is a run that collapsed: one constant answer, or "
            "no better than the most frequent class. Collapsed runs are counted in every mean.",
            series=names,
            present=_present(rows),
            draw=partial(charts.dots, rows, names, title="score"),
            grid=_grid(rows, names),
        )


def _present(rows: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(row["series"] for row in rows)


def _of_lines(lines: Sequence[results_table.Line], metric: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per line and column that has a value there."""
    return [
        _numbers(estimate, metric)
        | {"row": line.name, "series": name, "hollow": False, "faint": False}
        | {"text": f"{unit(metric).times * estimate.value:.0f}"}
        | {"says": f"{line.name}, {name}: {_value(estimate, metric)}, n {estimate.n:,}"}
        for line in lines
        for name, estimate in zip(names, line.estimates, strict=True)
        if estimate
    ]


def _tile(estimate: Estimate | None, metric: str, head: bool) -> Tile:
    if estimate is None:
        return Tile("–", head=head)
    said = f"{_value(estimate, metric)}, n {estimate.n:,}"
    return Tile(f"{100 * estimate.value:.1f}", None if head else estimate.value, head, said)


def _difference(one: Difference, other: str, comparison: Comparison) -> dict[str, Any]:
    """A row of the forest: value and interval in points (a correlation: as it is)."""
    scale, digits = unit(comparison.metric).times, unit(comparison.metric).decimals
    p = one.adjusted if one.adjusted is not None else one.p
    name = "headline" if one.level == "headline" else results_table.printable(one.name)
    value, low, high = (scale * number for number in (one.value, one.low, one.high))
    chance = "" if p is None else f", p {'< .001' if p < 0.001 else f'= {p:.3f}'}"
    text = f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}{chance})"
    return {
        "row": name,
        "series": other,
        "value": value,
        "low": low,
        "high": high,
        "hollow": p >= SIGNIFICANT if p is not None else low <= 0 <= high,
        "faint": False,
        "text": text,
        "says": f"{name}, {other}: {text}",
        "of": unit(comparison.metric).of or "correlations",
    }


def _shown(groups: Sequence[Difference]) -> list[Difference]:
    """The groups of one level: phenomena where there are any, else the coarsest."""
    levels = list(dict.fromkeys(group.level for group in groups))
    level = "phenomenon" if "phenomenon" in levels else (levels or [""])[0]
    return [group for group in groups if group.level == level]


def _points(rows: Sequence[Mapping[str, Any]]) -> str:
    of = rows[0]["of"]
    return "difference of correlations" if of == "correlations" else f"difference in {of}"


def _grid(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Grid:
    """Rows by series; several values of one cell (seeds) stand side by side."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row["row"], row["series"]), []).append(_text(row))
    present = [name for name in names if name in _present(rows)]
    lines = dict.fromkeys(row["row"] for row in rows)
    body = [(line, *(", ".join(cells.get((line, name), ["–"])) for name in present)) for line in lines]
    return _cells(("", *present), body)


def _cells(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Grid:
    return Grid(heads, tuple(tuple(map(Tile, row)) for row in rows))


def _text(row: Mapping[str, Any]) -> str:
    if row.get("low") is None or "correlation" in row:
        return str(row["text"])
    return f"{row['value']:.1f} ({row['low']:.1f}–{row['high']:.1f})"


def _numbers(estimate: Estimate, metric: str) -> dict[str, Any]:
    scale = unit(metric).times
    return {"value": scale * estimate.value, "low": scale * estimate.low, "high": scale * estimate.high}


def _value(estimate: Estimate | None, metric: str) -> str:
    """`63.4 (63.0–63.8)`."""
    if estimate is None:
        return "–"
    written = unit(metric).written
    return f"{written(estimate.value)} ({written(estimate.low)}–{written(estimate.high)})"


def _unit(metric: str) -> str:
    return "% right" if metric == "accuracy" else unit(metric).head


def _mean(line: results_table.Line) -> float:
    values = [estimate.value for estimate in line.estimates if estimate]
    return sum(values) / len(values) if values else 0.0
