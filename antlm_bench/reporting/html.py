"""Render a report as one HTML file that works offline, on a phone and without scripts.

Charts are static SVG, drawn for two widths (laptop and phone). The style sheet sets their colours.
A chart library in the page would weigh 0.9 MB, need `eval` and draw nothing without scripts. It
would add hovering only, which a short script does here. Names come from outside: Jinja escapes
everything, and a Content-Security-Policy forbids requests and every script but ours.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree

import jinja2
import vl_convert
from markupsafe import Markup, escape

from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.reporting import charts, palette, results_table
from antlm_bench.reporting.curve_table import to_tidy_rows
from antlm_bench.reporting.figures import build_figures
from antlm_bench.reporting.report_data import Figure, ReportData, series_names
from antlm_bench.reporting.report_table import build_report_table, report_to_dict
from antlm_bench.reporting.table import NoteMarks, Table
from antlm_bench.runs import cell_to_dict
from antlm_bench.types import Run

TEMPLATES = Path(__file__).parent / "templates"
WIDE_WIDTH, NARROW_WIDTH, SMALL_WIDTH = 880, 340, 290
"""Widths of figures in px: on a laptop, on a phone, and of a small one beside others."""
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
ALLOWED_ELEMENTS = frozenset(
    ["svg", "g", "path", "line", "rect", "text", "tspan", "circle", "defs", "clipPath", "title"]
)
DROPPED_ATTRIBUTES = frozenset(
    ["role", "aria-roledescription", "aria-hidden", "class", "pointer-events"]
)
"""Attributes that Vega writes. The page sets its own."""
SECTIONS: dict[str, tuple[str, str]] = {
    "phenomena": ("Phenomena", "Where models differ: one line per phenomenon, one mark per model."),
    "paradigms": ("Paradigms", "Every paradigm, by phenomenon."),
    "differences": (
        "Differences",
        "Whether a difference is more than chance: each item is its own control.",
    ),
    "curves": (
        "Learning curves",
        "What a suite says of a model's checkpoints, over the words they have seen.",
    ),
    "training": ("Training", "The loss of the run that made the checkpoints."),
    "seeds": ("Finetuning, seed by seed", "How far the seeds of one task lie apart."),
}
"""Section of the page -> (its title, its introduction)."""


def render_page(report_data: ReportData, methods: Mapping[str, str]) -> str:
    """Return the HTML document. methods: name -> description of each scoring method used."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["breakable"] = add_break_points
    names = series_names(report_data.columns)
    script = Markup((TEMPLATES / "report.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    figures = list(build_figures(report_data))
    sections = [
        {
            "key": key,
            "title": title,
            "lead": lead,
            "figures": [_figure_context(f) for f in figures if f.section == key],
        }
        for key, (title, lead) in SECTIONS.items()
    ]
    text = environment.get_template("report.html.j2").render(
        contents=report_data,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
        f"'sha256-{digest}'",
        script=script,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        light=palette.LIGHT,
        dark=palette.DARK,
        names=names,
        keys=[_legend_key(index, name) for index, name in enumerate(names)],
        collected=_collection_context(report_data),
        blocks=[
            _headline_context(block)
            for block in results_table.build_blocks(report_data.columns, results_table.SUITE_LEVEL)
        ],
        sections=[section for section in sections if section["figures"]],
        legend=results_table.build_legend(report_data.columns),
        rules=_settings_in_force(report_data),
        methods=methods,
        manifests=[
            _manifest_context(run, name)
            for run, name in zip(report_data.runs, report_data.display_names, strict=True)
        ],
        data=build_page_data(report_data),
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def add_break_points(text: str) -> Markup:
    """Escape text and allow a line break after each underscore: names of paradigms are long."""
    return escape(text).replace("_", Markup("_<wbr>"))


def build_page_data(report_data: ReportData) -> dict[str, Any]:
    """Return all numbers of the page for reuse: values as fractions, in full precision."""
    return {
        "runs": [
            {
                "run": PurePath(run.path).name,
                "manifest": asdict(run.manifest),
                "cells": [cell_to_dict(cell) for cell in run],
            }
            for run in report_data.runs
        ],
        "comparisons": [
            {"reference": pair.reference, "other": pair.other, **asdict(replace(each, flipped=()))}
            for pair in report_data.pairs
            for each in pair.comparisons
        ],
        "collection": report_to_dict(report_data.report) if report_data.report else None,
        "curves": to_tidy_rows(report_data.curves),
        "training": [asdict(training) for training in report_data.trainings],
    }


def _figure_context(figure: Figure) -> dict[str, Any]:
    """Return what the template needs of a figure: its keys, and (width, SVG) of its drawings."""
    widths = (SMALL_WIDTH,) if figure.small else (WIDE_WIDTH, NARROW_WIDTH)
    styles = [charts.ChartStyle(width, palette.PAGE) for width in widths]
    keys = [
        _legend_key(i, name)
        for i, name in enumerate(figure.series)
        if name in figure.present_series
    ]
    label = f"{figure.title}: {figure.caption} The numbers follow as a table."
    return {
        "figure": figure,
        "keys": keys if len(figure.series) > 1 else [],
        "drawings": [
            (
                style.width,
                render_svg(
                    charts.vega_lite_spec(figure.draw(style), style),
                    f"{figure.name}.{style.width}",
                    label,
                ),
            )
            for style in ([] if figure.is_heatmap else styles)
        ],
    }


def render_svg(specification: Mapping[str, Any], name: str, label: str) -> Markup:
    """Render Vega-Lite as an <svg> element with unique ids, a label, and shapes and text only.

    Vega's SVG is parsed and serialized again, so that the page is well-formed whatever names it
    shows. Raises ValueError for an element that is not allowed.
    """
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(dict(specification)))
    id_prefix = f"d{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG_NAMESPACE}}}")
        if element.tag not in ALLOWED_ELEMENTS:
            raise ValueError(f"a chart with <{element.tag}>")
        for key, value in list(element.attrib.items()):
            is_axis_label = key == "aria-label" and element.tag == "g"
            if key in DROPPED_ATTRIBUTES or is_axis_label:
                del element.attrib[key]
            elif key == "id":
                element.attrib[key] = id_prefix + value
            elif key != "aria-label":
                element.attrib[key] = _round_coordinates(
                    value.replace("url(#", f"url(#{id_prefix}")
                )
    root.attrib |= {"role": "img", "aria-label": label, "class": "chart"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _round_coordinates(value: str) -> str:
    """Round the coordinates in an attribute to a hundredth of a pixel."""
    return re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value)


def _legend_key(index: int, name: str) -> dict[str, str]:
    return {"name": name, "role": palette.colour_role(index), "glyph": palette.glyph(index)}


def _collection_context(report_data: ReportData) -> dict[str, Any] | None:
    """Return what the template needs of a collection: table, headers with keys of series, gaps."""
    report = report_data.report
    if report is None:
        return None
    context = _table_context(build_report_table(report))
    heads = []
    for column, (model, reading) in zip(report.columns, context.pop("heads"), strict=True):
        indices = [
            index
            for index, series in enumerate(report_data.columns)
            if column.model == series.model and column.method in series.method.split(" + ")
        ]
        key = _legend_key(indices[0], model) if indices and not column.source else None
        heads.append({"name": model, "reading": reading, "key": key})
    gaps = [
        f"{make_printable(c.model)} ({c.method}) lacks {', '.join(c.missing_members)}: no average "
        "is taken over a hole"
        for c in report.columns
        if c.missing_members and not c.macro
    ]
    return {"sheet": context, "heads": heads, "holes": gaps}


def _table_context(table: Table) -> dict[str, Any]:
    """Return what the template needs of a report's table: printable, with letters for its notes."""
    marks = NoteMarks()
    heads = []
    for column in table.columns[1:]:
        model, method = map(make_printable, column.label_lines)
        heads.append((model, {"text": method, "letters": marks.mark(column.notes)}))
    kinds = {"strong": "macro", "faint": "aside"}
    rows = [
        {
            "kind": kinds.get(row.emphasis) or ("task" if row.depth else "member"),
            "name": make_printable(row.cells[0].shown),
            "cells": [
                {"text": make_printable(cell.shown), "letters": marks.mark(cell.notes)}
                for cell in row.cells[1:]
            ],
        }
        for row in table.rows
    ]
    *sentences, legend = map(make_printable, table.legend)
    return {
        "title": make_printable(table.title),
        "heads": heads,
        "rows": rows,
        "remarks": {mark: make_printable(sentence) for mark, sentence in marks},
        "sentences": sentences,
        "legend": legend,
    }


def _headline_context(block: results_table.SuiteBlock) -> dict[str, Any]:
    """Return a row of the first table: per column its value, half its interval, and a bar in %."""
    headline = block.rows[0]
    cells = []
    for estimate in headline.estimates:
        value, _, half = results_table.format_estimate(estimate, block.metric).partition(" ")
        bar = None
        if estimate and get_metric_spec(block.metric).scale == 100:
            bar = {
                "low": 100 * estimate.low,
                "width": 100 * (estimate.high - estimate.low),
                "at": 100 * estimate.value,
            }
        cells.append({"value": value, "half": half.strip(), "bar": bar})
    asides = [
        f"{label}: {' / '.join(cell.shown for cell in cells_of_label)}"
        for label, cells_of_label in results_table.headline_annotations(block)
    ]
    return {
        "suite": headline.name,
        "average": block.average,
        "count": results_table.format_item_count(headline),
        "cells": cells,
        "notes": (*block.notes, *asides),
    }


def _settings_in_force(report_data: ReportData) -> list[tuple[str, list[str]]]:
    """Return the settings that numbers depend on: (label, values used in any cell)."""
    labels = {
        "suite_digest": "suite (version, digest)",
        "bos": "BOS before a text",
        "ties": "ties",
        "reduction": "score of a text",
        "precision": "precision",
        "dtype": "dtype",
        "context": "text before each sentence",
        "delimiter": "text before a sentence without context",
        "joiner": "text between context and scored part",
        "bos_before_context": "BOS before a context",
        "lengths": "rule for long texts",
        "softmax": "precision of probabilities",
        "compat": "conventions of",
        "limit": "only the first items of each paradigm",
        "select": "epochs chosen on",
        "preset": "preset",
    }
    values_by_label: dict[str, dict[str, None]] = {label: {} for label in labels.values()}
    for run in report_data.runs:
        for cell in run:
            for key, label in labels.items():
                value = cell.settings.get(key)
                if value in (None, ""):
                    continue
                text = str(value)
                if key == "suite_digest":
                    text = f"{cell.suite} {cell.settings.get('suite_version', '')} {text[:12]}"
                values_by_label[label][make_printable(text)] = None
    return [(label, list(values)) for label, values in values_by_label.items() if values]


def _manifest_context(run: Run, name: str) -> dict[str, Any]:
    """Return a run's checkpoint and software as rows of text."""
    facts = {**run.manifest.model, "scored": run.manifest.created, **run.manifest.software}
    rows = [
        (make_printable(str(key)), _plain_text(value))
        for key, value in facts.items()
        if value not in (None, "", {})
    ]
    return {"name": name, "rows": rows}


def _plain_text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain_text(key)}: {_plain_text(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain_text, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return make_printable(str(value))
