"""The report as rows and remarks, once for every form; Markdown, LaTeX, CSV, JSON, model card are written here."""

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

from antlm_bench.commands.report import Column, Report
from antlm_bench.errors import UsageError
from antlm_bench.exports.model_index import Result, model_index
from antlm_bench.reporting.metric_units import unit
from antlm_bench.reporting.results_table import escape, printable
from antlm_bench.results.collections import Entry, Number
from antlm_bench.suites.collection import MemberSpec
from antlm_bench.types import task_full_name

MACRO, MISSING = "Macro-average", "–"
# Metrics that no table turns into percent.
AS_THEY_ARE = ("surprisal", "task-score", "task-penalty", "whole-score", "whole-penalty", "bits-per-byte")


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a cell: text, and the letters of the remarks below."""

    text: str
    letters: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """kind: member, task (of the member above), aside (about the member above) or macro. cells: one per column."""

    kind: str
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """heads: model and reading per column, with letters. remarks: letter -> sentence. legend: what the numbers are."""

    title: str
    heads: tuple[tuple[str, Cell], ...]
    rows: tuple[Row, ...]
    remarks: dict[str, str]
    sources: tuple[str, ...]
    legend: str
    notes: tuple[str, ...]


def sheet(report: Report) -> Sheet:
    """The report laid out; equal sentences share a letter, given in the order in which a reader meets them."""
    letters = _Letters()
    columns = report.columns
    heads = tuple((printable(c.model), Cell(printable(c.reading), letters.of(c.marks))) for c in columns)
    rows: list[Row] = []
    for at, member in enumerate(report.members):
        entries = [column.entries[at] for column in columns]
        cells = tuple(Cell(value(e.number), letters.of(e.number.marks if e.number else ())) for e in entries)
        rows.append(Row("member", printable(member.name), cells))
        rows += [
            Row("task", printable(task), tuple(_part(entry, task, letters) for entry in entries))
            for task in _subtasks(member)
            if any(task in entry.parts for entry in entries)
        ]
        rows += list(_asides(entries))
    if report.collection:
        cells = tuple(Cell(value(c.macro), letters.of(c.macro.marks if c.macro else ())) for c in columns)
        rows.append(Row("macro", MACRO, cells))
    return Sheet(
        title=printable(report.collection.title) if report.collection else "",
        heads=heads,
        rows=tuple(rows),
        remarks={letter: printable(sentence) for sentence, letter in letters.given.items()},
        sources=tuple(_sources(columns)),
        legend=legend(report),
        notes=tuple(map(printable, report.collection.notes)) if report.collection else (),
    )


def _sources(columns: Sequence[Column]) -> Iterator[str]:
    """One line per source, with the columns that are its."""
    for source in dict.fromkeys(column.source for column in columns if column.source):
        named = [printable(column.model) for column in columns if column.source == source]
        every = len(named) > 1 and len(named) == sum(bool(column.source) for column in columns)
        yield f"{'all published rows' if every else '; '.join(named)}: {printable(source)}"


class _Letters:
    """Sentences get letters a..z, aa..zz in order of appearance."""

    def __init__(self) -> None:
        self.names = ["".join(name) for size in (1, 2, 3) for name in product(string.ascii_lowercase, repeat=size)]
        self.given: dict[str, str] = {}

    def of(self, sentences: tuple[str, ...]) -> str:
        """`a,c-f`: the letters of these sentences, three neighbours or more as a range."""
        for sentence in sentences:
            self.given.setdefault(sentence, self.names[len(self.given)])
        places = sorted(list(self.given).index(sentence) for sentence in set(sentences))
        together: list[list[str]] = []
        for at, place in enumerate(places):
            if at == 0 or place != places[at - 1] + 1:
                together.append([])
            together[-1].append(self.names[place])
        return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(run) for run in together)


def value(number: Number | None) -> str:
    """`63.4 ±0.4`: percent, a correlation times 100, nats, and half the width of the interval where it is known."""
    if number is None:
        return MISSING
    written = unit(number.metric if number.metric in AS_THEY_ARE else "accuracy").written
    if number.low is None or number.high is None:
        return written(number.value)
    return f"{written(number.value)} ±{written((number.high - number.low) / 2)}"


def _subtasks(member: MemberSpec) -> tuple[str, ...]:
    """Return the tasks that a member averages. A user's own file is the member itself: no task below it."""
    return tuple(task for task in member.tasks if task != member.suite)


def _part(entry: Entry, task: str, letters: _Letters) -> Cell:
    number = entry.parts.get(task)
    return Cell(value(number) if entry.parts else "", letters.of(number.marks if number else ()))


def _asides(entries: list[Entry]) -> Iterator[Row]:
    """Below what was finetuned: how many seeds, and how far they differ."""
    if not any(entry.parts for entry in entries):
        return
    counts = [sorted({part.seeds for part in entry.parts.values()}) for entry in entries]
    several = [f"{found[0]}–{found[-1]}" if len(found) > 1 else f"{found[0]}" if found else "" for found in counts]
    yield Row("aside", "seeds", tuple(map(Cell, several)))
    spreads = [[part.sd for part in entry.parts.values() if not math.isnan(part.sd)] for entry in entries]
    if any(spreads):
        yield Row("aside", "sd of seeds, at most", tuple(Cell(f"{100 * max(sd):.1f}" if sd else "") for sd in spreads))


def legend(report: Report) -> str:
    """What the numbers, their intervals and their average are, in a few words."""
    numbers = [entry.number for column in report.columns for entry in column.entries if entry.number]
    tuned = any(entry.parts for column in report.columns for entry in column.entries)
    over = "items, and over seeds where there are several" if tuned else "items"
    like = "correlations and ΔR²" if any(number.metric == "delta-r2" for number in numbers) else "a correlation"
    units = [unit(metric).what for metric in dict.fromkeys(n.metric for n in numbers) if metric in AS_THEY_ARE]
    others = "".join(f", {what[0].lower()}{what[1:]}" for what in units)
    said = [f"Percent ({like} times 100{others}) ± half the 95% interval over {over}."]
    if any(number.low is None for number in numbers):
        said.append("Published numbers have no interval.")
    if report.collection:
        weights = {member.weight for member in report.members}
        odd = [f"{printable(m.name)} {m.weight:g}" for m in report.members if m.weight != 1]
        kind = f"weighted ({', '.join(odd)}, else 1)" if len(weights) > 1 else "unweighted"
        said.append(f"{MACRO}: {kind} mean of the {len(report.members)} members, taken as independent.")
    return " ".join(said)


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown: the table, then remarks, sources and the legend."""
    made = sheet(report)
    heads = ["<br>".join(filter(None, (plain(m), plain(c.text)))) + _raised(c.letters) for m, c in made.heads]
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    for row in made.rows:
        name, bold = plain(row.name), "**" if row.kind == "macro" else ""
        shown = f"&emsp;{name}" if row.kind == "task" else f"&emsp;_{name}_" if row.kind == "aside" else name
        lines.append([f"{bold}{shown}{bold}", *(f"{cell.text}{_raised(cell.letters)}" for cell in row.cells)])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    said = [f"- {letter}: {plain(sentence)}" for letter, sentence in made.remarks.items()]
    said += [f"- {plain(text)}" for text in (*made.sources, *made.notes)]
    title = f"**{plain(made.title)}**" if made.title else ""
    return "\n\n".join(part for part in (title, table, "\n".join(said), plain(made.legend)) if part) + "\n"


def plain(text: str) -> str:
    """The text in Markdown; GitHub's own marks ($ for formulas, ~ for strokes) and entities mean nothing in it."""
    marked = "".join(f"\\{c}" if c in "$~&" else c for c in escape(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", marked)  # inside a word it means nothing


def _raised(letters: str) -> str:
    return f"<sup>{letters}</sup>" if letters else ""


def latex(report: Report) -> str:
    """A tabular with booktabs' rules, remarks below it; pdflatex reads it, whatever a name holds."""
    made = sheet(report)
    models = " & ".join(["", *(tex(model) for model, _ in made.heads)])
    readings = " & ".join(["", *(tex(cell.text) + _power(cell.letters) for _, cell in made.heads)])
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * len(made.heads)}}}", "\\toprule"]
    lines += [f"{models} \\\\", f"{readings} \\\\", "\\midrule"]
    for row in made.rows:
        lead = "\\quad " if row.kind in ("task", "aside") else ""
        cells = [tex(cell.text) + _power(cell.letters) for cell in row.cells]
        lines += ["\\midrule"] if row.kind == "macro" else []
        lines.append(f"{' & '.join([lead + tex(row.name), *cells])} \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", ""]
    said = [f"{_power(letter)} {tex(sentence)}" for letter, sentence in made.remarks.items()]
    said += [tex(text) for text in (*made.sources, *made.notes, made.legend)]
    return "\n".join([*lines, "{\\footnotesize", "\\\\\n".join(said), "\\par}"]) + "\n"


def _power(letters: str) -> str:
    return f"$^{{{letters}}}$" if letters else ""


# LaTeX's own words for what it would read as a command, a ligature, or not at all.
WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
WORDS |= {"–": "endash", "“": "quotedblleft", "”": "quotedblright", '"': "quotedblright", "’": "quoteright"}
WORDS |= {"`": "quoteleft", "'": "quoteright"}
TEX = {c: f"\\text{word}{{}}" for c, word in WORDS.items()} | {c: f"\\{c}" for c in "{}$&#_%"}
TEX |= {"±": "$\\pm$", "[": "{[}", "]": "{]}"}


def tex(text: str) -> str:
    """The text as LaTeX source; what is beyond Latin letters is spelled as its code point, which pdflatex can set."""
    spelled = "".join(TEX.get(c, c if c < "\u0180" and c.isprintable() else f"U+{ord(c):04X}") for c in text)
    return re.sub("-(?=-)", "-{}", spelled)  # two hyphens stay two


CSV = ["model", "reading", "run", "member", "suite", "task", "metric", "weight", "value", "low", "high", "n"]
CSV += ["seeds", "sd", "remarks", "source"]


def csv(report: Report) -> str:
    """Tidy CSV: a row per column and member, task and macro-average; fractions in full precision, "" = not known."""
    sink = io.StringIO()
    writer = csv_module.DictWriter(sink, CSV, lineterminator="\n")
    writer.writeheader()
    for line in _flat(report):
        remarks = "; ".join(line.pop("remarks"))
        writer.writerow({key: "" if cell is None else cell for key, cell in {**line, "remarks": remarks}.items()})
    return sink.getvalue()


def json(report: Report) -> str:
    """JSON: what CSV holds, and per column what is missing and the commands that make it."""
    return json_module.dumps(document(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def document(report: Report) -> dict[str, Any]:
    """What `json` writes."""
    spec = report.collection
    return {
        "collection": {"name": spec.name, "version": spec.version, "notes": spec.notes} if spec else None,
        "members": [
            {"name": m.name, "suite": m.suite, "made_by": m.made_by, "tasks": m.tasks, "weight": m.weight}
            for m in report.members
        ],
        "columns": [
            {"model": c.model, "reading": c.reading, "run": c.run, "source": c.source, "remarks": c.marks}
            | {"missing": c.lacks, "commands": c.commands, "complete": not c.lacks and not c.source}
            for c in report.columns
        ],
        "numbers": list(_flat(report)),
    }


def _flat(report: Report) -> Iterator[dict[str, Any]]:
    for column in report.columns:
        for member, entry in zip(report.members, column.entries, strict=True):
            weight = member.weight if report.collection else None
            about = {"member": member.name, "suite": member.suite, "weight": weight}
            if entry.number:
                yield _line(column, entry.number, about)
            for task in _subtasks(member):
                if number := entry.parts.get(task):
                    part = {"suite": task_full_name(member.suite, task), "task": task, "weight": None}
                    yield _line(column, number, about | part)
        if column.macro:
            suite = report.collection.name if report.collection else ""
            yield _line(column, column.macro, {"member": MACRO, "suite": suite})


def _line(column: Column, number: Number, about: dict[str, Any]) -> dict[str, Any]:
    line = {"model": printable(column.model), "reading": printable(column.reading), "run": printable(column.run)}
    line |= {key: printable(cell) if isinstance(cell, str) else cell for key, cell in about.items()}
    figures = {"value": number.value, "low": number.low, "high": number.high, "sd": number.sd}
    known = {name: figure for name, figure in figures.items() if figure is not None and not math.isnan(figure)}
    found: dict[str, Any] = {name: round(figure, 12) for name, figure in known.items()}  # as metrics round theirs
    found |= {"metric": number.metric, "n": number.n or None, "seeds": number.seeds or None}
    found |= {"remarks": [printable(mark) for mark in number.marks], "source": printable(column.source)}
    return {key: {**line, **found}.get(key) for key in CSV}


def card(report: Report) -> str:
    """The model card's front matter of one checkpoint, all its methods. UsageError where the runs are of several."""
    own = [column for column in report.columns if not column.source]
    if len({column.run for column in own}) > 1:
        hint = "one run folder at a time: a card is of one model"
        raise UsageError(f"{len({c.run for c in own})} checkpoints", place="--model-index", hint=hint)
    results = []
    for column in own:
        for member, entry in zip(report.members, column.entries, strict=True):
            named = [(member.suite, member.name, entry.number)]
            named += [
                (task_full_name(member.suite, task), f"{member.name}: {task}", entry.parts.get(task))
                for task in _subtasks(member)
            ]
            results += [_result(column, *one) for one in named if one[2]]
        if column.macro and report.collection:
            whole = replace(column.macro, seeds=0)  # no classification, whatever is in it
            results.append(_result(column, report.collection.name, report.collection.title, whole))
    missing = [f"missing ({column.reading}): {', '.join(column.lacks)}" for column in own if column.lacks]
    return model_index(own[0].model if own else "", results, missing)


def _result(column: Column, suite: str, title: str, number: Number | None) -> Result:
    assert number is not None  # the caller's
    interval = (number.low, number.high, number.n, number.seeds)
    return Result(suite, title, column.reading, number.metric, number.value, *interval, number.marks)


FORMS: dict[str, Callable[[Report], str]] = {
    "markdown": markdown,
    "latex": latex,
    "csv": csv,
    "json": json,
    "model-index": card,
}
