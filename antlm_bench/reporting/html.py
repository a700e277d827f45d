"""Render a report as one HTML file that works offline, on a phone and without scripts.

Charts are static SVG, drawn in two widths (for a laptop and a phone) and coloured by the style
sheet. A chart library would add 0.9 MB to the page, need `eval` and draw nothing without scripts;
tooltips, its only advantage, are shown by a short script. Names of models and suites come from
outside, so Jinja escapes everything, and a Content-Security-Policy forbids requests and every
script but ours.
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

from antlm_bench.comparison.verdict import GATE_RULE
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
"""Widths in px: of a figure on a laptop, of a figure on a phone, of a small figure."""
MAX_DRAWN_SERIES = 50
"""Most series in a drawing of the page. Figures of more have a table only."""
MOST_COLUMNS = 3
"""Most models side by side in a table of results. More are listed below each other."""
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
ALLOWED_ELEMENTS = frozenset(
    ["svg", "g", "path", "line", "rect", "text", "tspan", "circle", "defs", "clipPath", "title"]
)
DROPPED_ATTRIBUTES = frozenset(
    ["role", "aria-roledescription", "aria-hidden", "class", "pointer-events"]
)
"""Attributes that Vega writes and the page replaces by others."""
SECTIONS: dict[str, tuple[str, str]] = {
    "phenomena": ("Phenomena", "Where models differ: one line per phenomenon, one mark per model."),
    "paradigms": ("Paradigms", "Every paradigm, by phenomenon."),
    "differences": (
        "Differences",
        "Whether models differ by more than chance. Models are compared item by item.",
    ),
    "curves": (
        "Learning curves",
        "The results of a model's checkpoints, over the words that they have seen. The best of "
        "several checkpoints is optimistic, because chance selects it, too.",
    ),
    "training": ("Training", "The loss of the training run, over the words seen."),
    "seeds": ("Finetuning, seed by seed", "How much the results of one task vary between seeds."),
}
"""Key of a section of the page -> (title, introduction)."""


def render_page(report_data: ReportData, methods: Mapping[str, str]) -> str:
    """Return the HTML document. methods: name -> description of each scoring method used."""
    names = series_names(report_data.columns)
    figures = list(build_figures(report_data))
    sections = [
        {
            "key": key,
            "title": title,
            "lead": lead,
            "figures": [build_figure_context(f) for f in figures if f.section == key],
        }
        for key, (title, lead) in SECTIONS.items()
    ]
    return render_template(
        "report.html.j2",
        kicker="antlm-bench report",
        title=report_data.title,
        sections_start="results",
        contents=report_data,
        most_columns=MOST_COLUMNS,
        names=names,
        keys=[_legend_key(index, name) for index, name in enumerate(names)],
        collected=_build_collection_context(report_data),
        blocks=[
            _build_headline_context(block, report_data.chance_levels.get(block.suite))
            for block in results_table.build_blocks(report_data.columns, results_table.SUITE_LEVEL)
        ],
        sections=[section for section in sections if section["figures"]],
        legend=results_table.build_legend(report_data.columns),
        rules=_collect_settings(report_data),
        methods=methods,
        metrics=_describe_metrics(report_data),
        intervals=results_table.describe_intervals(
            cell for column in report_data.columns for cell in column.cells.values()
        ),
        gate_rule=GATE_RULE,
        manifests=[
            _build_manifest_context(run, name)
            for run, name in zip(report_data.runs, report_data.display_names, strict=True)
        ],
        data=build_page_data(report_data),
    )


def render_template(name: str, **values: Any) -> str:
    """Return a page from a template that extends page.html.j2: its style and script are added."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["breakable"] = add_break_points
    script = Markup((TEMPLATES / "report.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(name).render(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src "
        f"'sha256-{digest}'",
        script=script,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        light=palette.LIGHT,
        dark=palette.DARK,
        paper=palette.PAPER,
        **values,
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def _describe_metrics(report_data: ReportData) -> dict[str, str]:
    """Return label of each metric -> what its items are."""
    specs = [
        get_metric_spec(cell.summary.metric)
        for column in report_data.columns
        for cell in column.cells.values()
    ]
    return {spec.label: f"An item is {spec.item_kind.value}." for spec in specs}


def add_break_points(text: str) -> Markup:
    """Escape text and allow a line break after each underscore, because paradigm names are long."""
    return escape(text).replace("_", Markup("_<wbr>"))


def build_page_data(report_data: ReportData) -> dict[str, Any]:
    """Return the results of the page as JSON for reuse: unscaled, in full precision."""
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
            {"reference": pair.reference, "other": pair.other}
            | asdict(replace(comparison, flipped=()))
            for pair in report_data.pairs
            for comparison in pair.comparisons
        ],
        "collection": report_to_dict(report_data.report) if report_data.report else None,
        "curves": to_tidy_rows(report_data.curves),
        "training": [asdict(training) for training in report_data.trainings],
    }


def build_figure_context(figure: Figure) -> dict[str, Any]:
    """Return the template's values for a figure: legend keys, and (width, SVG) per drawing."""
    widths = (SMALL_WIDTH,) if figure.small else (WIDE_WIDTH, NARROW_WIDTH)
    styles = [charts.ChartStyle(width, palette.PAGE) for width in widths]
    keys = [
        _legend_key(index, name)
        for index, name in enumerate(figure.series)
        if name in figure.present_series
    ]
    description = f"{figure.title}: {figure.caption}".removesuffix(": ").rstrip(".")
    label = f"{description}. A table with the values follows."
    has_drawing = not figure.is_heatmap and len(figure.present_series) <= MAX_DRAWN_SERIES
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
            for style in (styles if has_drawing else [])
        ],
    }


def render_svg(specification: Mapping[str, Any], name: str, label: str) -> Markup:
    """Render Vega-Lite as an <svg> element that contains only shapes and text.

    Vega's SVG is parsed and serialized again, so that the page is well-formed for any name.
    name: unique in the page; prefixes the ids. label: description for screen readers, to which the
    drawing is one image; the descriptions of its marks become `data-label`, for tooltips. Raises
    ValueError for an element that is not allowed.
    """
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(dict(specification)))
    id_prefix = f"d{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG_NAMESPACE}}}")
        if element.tag not in ALLOWED_ELEMENTS:
            raise ValueError(f"Vega's SVG contains <{element.tag}>, which is not allowed")
        for key, value in list(element.attrib.items()):
            is_axis_label = key == "aria-label" and element.tag == "g"
            if key in DROPPED_ATTRIBUTES or is_axis_label:
                del element.attrib[key]
            elif key == "id":
                element.attrib[key] = id_prefix + value
            elif key == "aria-label":
                element.attrib["data-label"] = element.attrib.pop(key)
            else:
                element.attrib[key] = _round_coordinates(
                    value.replace("url(#", f"url(#{id_prefix}")
                )
    root.attrib |= {"role": "img", "aria-label": label, "class": "chart"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _round_coordinates(value: str) -> str:
    """Round the coordinates in an attribute to a hundredth of a pixel."""
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", value)


def _legend_key(index: int, name: str) -> dict[str, str]:
    return {"name": name, "role": palette.colour_role(index), "glyph": palette.glyph(index)}


def _build_collection_context(report_data: ReportData) -> dict[str, Any] | None:
    """Return the template's values for a collection: table, headers with legend keys, gaps."""
    report = report_data.report
    if report is None:
        return None
    context = _build_table_context(build_report_table(report))
    headers = []
    for column, (model, method) in zip(report.columns, context.pop("headers"), strict=True):
        indices = [
            index
            for index, series in enumerate(report_data.columns)
            if column.model == series.model and column.method in series.method.split(" + ")
        ]
        key = _legend_key(indices[0], model) if indices and not column.source else None
        headers.append({"name": model, "method": method, "key": key})
    gaps = [
        f"{make_printable(c.model)} ({c.method}) lacks {', '.join(c.missing_members)}, so it has "
        "no average"
        for c in report.columns
        if c.missing_members and not c.macro_average
    ]
    return {"table": context, "headers": headers, "gaps": gaps}


def _build_table_context(table: Table) -> dict[str, Any]:
    """Return the template's values for a report's table, with letters that mark its notes."""
    marks = NoteMarks()
    headers = []
    for column in table.columns[1:]:
        model, method = map(make_printable, column.label_lines)
        headers.append((model, {"text": method, "letters": marks.mark(column.notes)}))
    css_classes = {"strong": "macro", "faint": "aside"}
    rows = [
        {
            "css_class": css_classes.get(row.emphasis) or ("task" if row.depth else "member"),
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
        "headers": headers,
        "rows": rows,
        "remarks": {mark: make_printable(sentence) for mark, sentence in marks},
        "sentences": sentences,
        "legend": legend,
    }


def _build_headline_context(
    block: results_table.SuiteBlock, chance: float | None
) -> dict[str, Any]:
    """Return the template's values for a suite: its headline per column, with a bar in %.

    chance: accuracy at chance, marked on the bar.
    """
    headline = block.rows[0]
    cells = []
    for estimate in headline.estimates:
        value, _, interval = results_table.format_estimate(estimate, block.metric).partition(" ")
        bar = None
        if estimate and get_metric_spec(block.metric).value_range == (0, 1):
            low, high = estimate.interval if interval else (estimate.value, estimate.value)
            bar = {
                "low": 100 * low,
                "width": 100 * (high - low),
                "at": 100 * estimate.value,
                "chance": None if chance is None else 100 * chance,
            }
        cells.append({"value": value, "interval": interval, "bar": bar})
    annotations = [
        f"{label}: {' / '.join(cell.shown for cell in cells_of_label)}"
        for label, cells_of_label in results_table.headline_annotations(block)
    ]
    return {
        "suite": headline.name,
        "average": block.average,
        "count": results_table.format_item_count(headline),
        "cells": cells,
        "notes": (*block.notes, *annotations),
    }


def _collect_settings(report_data: ReportData) -> list[tuple[str, list[str]]]:
    """Return (label, values) of the settings that affect results; values of all cells."""
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
        "words": "words of mlm-l2r",
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
                for text in map(str, value if isinstance(value, list) else [value]):
                    if text in ("None", ""):
                        continue
                    if key == "suite_digest":
                        text = f"{cell.suite} {cell.settings.get('suite_version', '')} {text[:12]}"
                    values_by_label[label][make_printable(text)] = None
    return [(label, list(values)) for label, values in values_by_label.items() if values]


def _build_manifest_context(run: Run, name: str) -> dict[str, Any]:
    """Return the template's values for a run: its checkpoint and software as rows of text."""
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
