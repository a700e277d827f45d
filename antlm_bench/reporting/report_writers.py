"""The report as rows and remarks, once for every form; Markdown, LaTeX, CSV, JSON, model card are
written here.
"""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import math
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from antlm_bench.commands.report import Report, ReportColumn
from antlm_bench.errors import UsageError
from antlm_bench.exports.model_index import ModelIndexResult, build_model_index
from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting.results_table import escape_markdown, make_printable
from antlm_bench.results.collections import MemberResult, ReportedScore
from antlm_bench.suites.collection import MemberSpec
from antlm_bench.types import task_full_name

MACRO, MISSING = "Macro-average", "–"


@dataclass(frozen=True, slots=True)
class ReportCell:
    """What stands in a cell: text, and the letters of the remarks below."""

    text: str
    letters: str = ""


@dataclass(frozen=True, slots=True)
class ReportRow:
    """kind: member, task (of the member above), aside (about the member above) or macro. cells: one
    per column.
    """

    kind: str
    name: str
    cells: tuple[ReportCell, ...]


@dataclass(frozen=True, slots=True)
class ReportTable:
    """heads: model and reading per column, with letters. remarks: letter -> sentence. legend: what
    the numbers are.
    """

    title: str
    heads: tuple[tuple[str, ReportCell], ...]
    rows: tuple[ReportRow, ...]
    remarks: dict[str, str]
    sources: tuple[str, ...]
    legend: str
    notes: tuple[str, ...]


def build_report_table(report: Report) -> ReportTable:
    """The report laid out; equal sentences share a letter, given in the order in which a reader
    meets them.
    """
    letters = _FootnoteLetters()
    columns = report.columns
    heads = tuple(
        (
            make_printable(c.model),
            ReportCell(make_printable(c.method), letters.letters_for(c.caveats)),
        )
        for c in columns
    )
    rows: list[ReportRow] = []
    for at, member in enumerate(report.members):
        entries = [column.results[at] for column in columns]
        cells = tuple(
            ReportCell(
                format_value(e.score), letters.letters_for(e.score.caveats if e.score else ())
            )
            for e in entries
        )
        rows.append(ReportRow("member", make_printable(member.name), cells))
        rows += [
            ReportRow(
                "task",
                make_printable(task),
                tuple(_subtask_cell(entry, task, letters) for entry in entries),
            )
            for task in _subtasks(member)
            if any(task in entry.task_scores for entry in entries)
        ]
        rows += list(_seed_rows(entries))
    if report.collection:
        cells = tuple(
            ReportCell(
                format_value(c.macro), letters.letters_for(c.macro.caveats if c.macro else ())
            )
            for c in columns
        )
        rows.append(ReportRow("macro", MACRO, cells))
    return ReportTable(
        title=make_printable(report.collection.title) if report.collection else "",
        heads=heads,
        rows=tuple(rows),
        remarks={
            letter: make_printable(sentence)
            for sentence, letter in letters.letter_by_sentence.items()
        },
        sources=tuple(_sources(columns)),
        legend=build_legend(report),
        notes=tuple(map(make_printable, report.collection.notes)) if report.collection else (),
    )


def _sources(columns: Sequence[ReportColumn]) -> Iterator[str]:
    """One line per source, with the columns that are its."""
    for source in dict.fromkeys(column.source for column in columns if column.source):
        named = [make_printable(column.model) for column in columns if column.source == source]
        every = len(named) > 1 and len(named) == sum(bool(column.source) for column in columns)
        yield f"{'all published rows' if every else '; '.join(named)}: {make_printable(source)}"


class _FootnoteLetters:
    """Sentences get letters a..z, aa..zz in order of appearance."""

    def __init__(self) -> None:
        self.labels = [
            "".join(name)
            for size in (1, 2, 3)
            for name in product(string.ascii_lowercase, repeat=size)
        ]
        self.letter_by_sentence: dict[str, str] = {}

    def letters_for(self, sentences: tuple[str, ...]) -> str:
        """`a,c-f`: the letters of these sentences, three neighbours or more as a range."""
        for sentence in sentences:
            self.letter_by_sentence.setdefault(sentence, self.labels[len(self.letter_by_sentence)])
        places = sorted(
            list(self.letter_by_sentence).index(sentence) for sentence in set(sentences)
        )
        together: list[list[str]] = []
        for at, place in enumerate(places):
            if at == 0 or place != places[at - 1] + 1:
                together.append([])
            together[-1].append(self.labels[place])
        return ",".join(
            f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(run) for run in together
        )


def format_value(number: ReportedScore | None) -> str:
    """`63.4 ±0.4`: percent, a correlation times 100, nats, and half the width of the interval where
    it is known.
    """
    if number is None:
        return MISSING
    written = get_metric_spec(number.metric).format_beside_percent
    if number.low is None or number.high is None:
        return written(number.value)
    return f"{written(number.value)} ±{written((number.high - number.low) / 2)}"


def _subtasks(member: MemberSpec) -> tuple[str, ...]:
    """Return the tasks that a member averages. A user's own file is the member itself: no task
    below it.
    """
    return tuple(task for task in member.tasks if task != member.suite)


def _subtask_cell(entry: MemberResult, task: str, letters: _FootnoteLetters) -> ReportCell:
    number = entry.task_scores.get(task)
    return ReportCell(
        format_value(number) if entry.task_scores else "",
        letters.letters_for(number.caveats if number else ()),
    )


def _seed_rows(entries: list[MemberResult]) -> Iterator[ReportRow]:
    """Below what was finetuned: how many seeds, and how far they differ."""
    if not any(entry.task_scores for entry in entries):
        return
    counts = [sorted({part.seeds for part in entry.task_scores.values()}) for entry in entries]
    several = [
        f"{found[0]}–{found[-1]}" if len(found) > 1 else f"{found[0]}" if found else ""
        for found in counts
    ]
    yield ReportRow("aside", "seeds", tuple(map(ReportCell, several)))
    spreads = [
        [part.sd for part in entry.task_scores.values() if not math.isnan(part.sd)]
        for entry in entries
    ]
    if any(spreads):
        yield ReportRow(
            "aside",
            "sd of seeds, at most",
            tuple(ReportCell(f"{100 * max(sd):.1f}" if sd else "") for sd in spreads),
        )


def build_legend(report: Report) -> str:
    """What the numbers, their intervals and their average are, in a few words."""
    numbers = [entry.score for column in report.columns for entry in column.results if entry.score]
    tuned = any(entry.task_scores for column in report.columns for entry in column.results)
    over = "items, and over seeds where there are several" if tuned else "items"
    specs = [get_metric_spec(metric) for metric in dict.fromkeys(n.metric for n in numbers)]
    percent_names = [spec.percent_name for spec in specs if spec.percent_name]
    like = f"correlations and {', '.join(percent_names)}" if percent_names else "a correlation"
    units = [spec.label for spec in specs if not spec.is_bounded]
    others = "".join(f", {what[0].lower()}{what[1:]}" for what in units)
    said = [f"Percent ({like} times 100{others}) ± half the 95% interval over {over}."]
    if any(number.low is None for number in numbers):
        said.append("Published numbers have no interval.")
    if report.collection:
        weights = {member.weight for member in report.members}
        odd = [f"{make_printable(m.name)} {m.weight:g}" for m in report.members if m.weight != 1]
        kind = f"weighted ({', '.join(odd)}, else 1)" if len(weights) > 1 else "unweighted"
        said.append(
            f"{MACRO}: {kind} mean of the {len(report.members)} members, taken as independent."
        )
    return " ".join(said)


def to_markdown(report: Report) -> str:
    """GitHub-flavoured Markdown: the table, then remarks, sources and the legend."""
    made = build_report_table(report)
    heads = [
        "<br>".join(filter(None, (escape_github_markdown(m), escape_github_markdown(c.text))))
        + _superscript(c.letters)
        for m, c in made.heads
    ]
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    for row in made.rows:
        name, bold = escape_github_markdown(row.name), "**" if row.kind == "macro" else ""
        shown = (
            f"&emsp;{name}"
            if row.kind == "task"
            else f"&emsp;_{name}_"
            if row.kind == "aside"
            else name
        )
        lines.append(
            [
                f"{bold}{shown}{bold}",
                *(f"{cell.text}{_superscript(cell.letters)}" for cell in row.cells),
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    said = [
        f"- {letter}: {escape_github_markdown(sentence)}"
        for letter, sentence in made.remarks.items()
    ]
    said += [f"- {escape_github_markdown(text)}" for text in (*made.sources, *made.notes)]
    title = f"**{escape_github_markdown(made.title)}**" if made.title else ""
    return (
        "\n\n".join(
            part
            for part in (title, table, "\n".join(said), escape_github_markdown(made.legend))
            if part
        )
        + "\n"
    )


def escape_github_markdown(text: str) -> str:
    """The text in Markdown; GitHub's own marks ($ for formulas, ~ for strokes) and entities mean
    nothing in it.
    """
    marked = "".join(f"\\{c}" if c in "$~&" else c for c in escape_markdown(text))
    return re.sub(
        r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", marked
    )  # inside a word it means nothing


def _superscript(letters: str) -> str:
    return f"<sup>{letters}</sup>" if letters else ""


def to_latex(report: Report) -> str:
    """A tabular with booktabs' rules, remarks below it; pdflatex reads it, whatever a name holds."""
    made = build_report_table(report)
    models = " & ".join(["", *(escape_latex(model) for model, _ in made.heads)])
    readings = " & ".join(
        [
            "",
            *(escape_latex(cell.text) + _latex_superscript(cell.letters) for _, cell in made.heads),
        ]
    )
    lines = [
        "% \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(made.heads)}}}",
        "\\toprule",
    ]
    lines += [f"{models} \\\\", f"{readings} \\\\", "\\midrule"]
    for row in made.rows:
        lead = "\\quad " if row.kind in ("task", "aside") else ""
        cells = [escape_latex(cell.text) + _latex_superscript(cell.letters) for cell in row.cells]
        lines += ["\\midrule"] if row.kind == "macro" else []
        lines.append(f"{' & '.join([lead + escape_latex(row.name), *cells])} \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", ""]
    said = [
        f"{_latex_superscript(letter)} {escape_latex(sentence)}"
        for letter, sentence in made.remarks.items()
    ]
    said += [escape_latex(text) for text in (*made.sources, *made.notes, made.legend)]
    return "\n".join([*lines, "{\\footnotesize", "\\\\\n".join(said), "\\par}"]) + "\n"


def _latex_superscript(letters: str) -> str:
    return f"$^{{{letters}}}$" if letters else ""


# LaTeX's own words for what it would read as a command, a ligature, or not at all.
LATEX_COMMANDS = {
    "\\": "backslash",
    "~": "asciitilde",
    "^": "asciicircum",
    "<": "less",
    ">": "greater",
    "|": "bar",
}
LATEX_COMMANDS |= {
    "–": "endash",
    "“": "quotedblleft",
    "”": "quotedblright",
    '"': "quotedblright",
    "’": "quoteright",
}
LATEX_COMMANDS |= {"`": "quoteleft", "'": "quoteright"}
LATEX_ESCAPES = {c: f"\\text{word}{{}}" for c, word in LATEX_COMMANDS.items()} | {
    c: f"\\{c}" for c in "{}$&#_%"
}
LATEX_ESCAPES |= {"±": "$\\pm$", "[": "{[}", "]": "{]}"}


def escape_latex(text: str) -> str:
    """The text as LaTeX source; what is beyond Latin letters is spelled as its code point, which
    pdflatex can set.
    """
    spelled = "".join(
        LATEX_ESCAPES.get(c, c if c < "\u0180" and c.isprintable() else f"U+{ord(c):04X}")
        for c in text
    )
    return re.sub("-(?=-)", "-{}", spelled)  # two hyphens stay two


CSV_COLUMNS = [
    "model",
    "reading",
    "run",
    "member",
    "suite",
    "task",
    "metric",
    "weight",
    "value",
    "low",
    "high",
    "n",
]
CSV_COLUMNS += ["seeds", "sd", "remarks", "source"]


def to_csv(report: Report) -> str:
    """Tidy CSV: a row per column and member, task and macro-average; fractions in full precision,
    "" = not known.
    """
    sink = io.StringIO()
    writer = csv_module.DictWriter(sink, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in _iter_rows(report):
        remarks = "; ".join(line.pop("remarks"))
        writer.writerow(
            {
                key: "" if cell is None else cell
                for key, cell in {**line, "remarks": remarks}.items()
            }
        )
    return sink.getvalue()


def to_json(report: Report) -> str:
    """JSON: what CSV holds, and per column what is missing and the commands that make it."""
    return json_module.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_dict(report: Report) -> dict[str, Any]:
    """What `json` writes."""
    spec = report.collection
    return {
        "collection": {"name": spec.name, "version": spec.version, "notes": spec.notes}
        if spec
        else None,
        "members": [
            {
                "name": m.name,
                "suite": m.suite,
                "made_by": m.made_by,
                "tasks": m.tasks,
                "weight": m.weight,
            }
            for m in report.members
        ],
        "columns": [
            {
                "model": c.model,
                "reading": c.method,
                "run": c.run,
                "source": c.source,
                "remarks": c.caveats,
            }
            | {
                "missing": c.missing_members,
                "commands": c.commands,
                "complete": not c.missing_members and not c.source,
            }
            for c in report.columns
        ],
        "numbers": list(_iter_rows(report)),
    }


def _iter_rows(report: Report) -> Iterator[dict[str, Any]]:
    for column in report.columns:
        for member, entry in zip(report.members, column.results, strict=True):
            weight = member.weight if report.collection else None
            about = {"member": member.name, "suite": member.suite, "weight": weight}
            if entry.score:
                yield _row_fields(column, entry.score, about)
            for task in _subtasks(member):
                if number := entry.task_scores.get(task):
                    part = {
                        "suite": task_full_name(member.suite, task),
                        "task": task,
                        "weight": None,
                    }
                    yield _row_fields(column, number, about | part)
        if column.macro:
            suite = report.collection.name if report.collection else ""
            yield _row_fields(column, column.macro, {"member": MACRO, "suite": suite})


def _row_fields(
    column: ReportColumn, number: ReportedScore, about: dict[str, Any]
) -> dict[str, Any]:
    line = {
        "model": make_printable(column.model),
        "reading": make_printable(column.method),
        "run": make_printable(column.run),
    }
    line |= {
        key: make_printable(cell) if isinstance(cell, str) else cell for key, cell in about.items()
    }
    figures = {"value": number.value, "low": number.low, "high": number.high, "sd": number.sd}
    known = {
        name: figure
        for name, figure in figures.items()
        if figure is not None and not math.isnan(figure)
    }
    found: dict[str, Any] = {
        name: round(figure, 12) for name, figure in known.items()
    }  # as metrics round theirs
    found |= {"metric": number.metric, "n": number.n or None, "seeds": number.seeds or None}
    found |= {
        "remarks": [make_printable(mark) for mark in number.caveats],
        "source": make_printable(column.source),
    }
    return {key: {**line, **found}.get(key) for key in CSV_COLUMNS}


def to_model_card(report: Report) -> str:
    """The model card's front matter of one checkpoint, all its methods. UsageError where the runs
    are of several.
    """
    own = [column for column in report.columns if not column.source]
    if len({column.run for column in own}) > 1:
        hint = "one run folder at a time: a card is of one model"
        raise UsageError(
            f"{len({c.run for c in own})} checkpoints", location="--model-index", hint=hint
        )
    results = []
    for column in own:
        for member, entry in zip(report.members, column.results, strict=True):
            named = [(member.suite, member.name, entry.score)]
            named += [
                (
                    task_full_name(member.suite, task),
                    f"{member.name}: {task}",
                    entry.task_scores.get(task),
                )
                for task in _subtasks(member)
            ]
            results += [_model_index_result(column, *one) for one in named if one[2]]
        if column.macro and report.collection:
            whole = replace(column.macro, seeds=0)  # no classification, whatever is in it
            results.append(
                _model_index_result(column, report.collection.name, report.collection.title, whole)
            )
    missing = [
        f"missing ({column.method}): {', '.join(column.missing_members)}"
        for column in own
        if column.missing_members
    ]
    return build_model_index(own[0].model if own else "", results, missing)


def _model_index_result(
    column: ReportColumn, suite: str, title: str, number: ReportedScore | None
) -> ModelIndexResult:
    assert number is not None  # the caller's
    interval = (number.low, number.high, number.n, number.seeds)
    return ModelIndexResult(
        suite, title, column.method, number.metric, number.value, *interval, number.caveats
    )


FORMATTERS: dict[str, Callable[[Report], str]] = {
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "json": to_json,
    "model-index": to_model_card,
}
