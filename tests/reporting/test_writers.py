"""One table in every format: nothing is cut, nothing breaks out, and numbers stay numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import string
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pylatexenc import latexwalker, macrospec
from rich.cells import cell_len

from antlm_bench.errors import UsageError
from antlm_bench.reporting.table import (
    NoteMarks,
    Table,
    TableCell,
    TableColumn,
    build_facts_table,
    build_records_table,
    build_row,
    index_to_letters,
)
from antlm_bench.reporting.writers import FORMATS, OutputFormat, latex_text

EVIL = 'a|b\\c$d&e_f#g%h{i}j~k^l<b>m</b>"n`o`\n---\n*\x1b[31m\u202e\x9b2J😀[q](r) --s ,,t'
HOSTILE = st.text(
    alphabet=st.one_of(st.sampled_from(list(EVIL)), st.characters()), max_size=20
) | st.just(EVIL)
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def write(name: str, table: Table) -> str:
    return FORMATS[name].write(table)


def write_at_width(table: Table, width: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.delenv("FORCE_COLOR", raising=False)
        return write("table", table)


def estimate(value: float, half: float, *notes: str) -> TableCell:
    text = f"{100 * value:.1f} ±{100 * half:.1f}"
    return TableCell(value, text, value - half, value + half, unit="fraction", notes=notes)


SMALL = Table(
    columns=(
        TableColumn("suite", ""),
        TableColumn("a", "model a\ncausal", align="right", notes=("a column's note",)),
        TableColumn("b", "model b\nmlm", align="right"),
    ),
    rows=(
        build_row(
            TableCell("blimp", detail="mean of 3 paradigms"),
            estimate(0.634, 0.004, "incomplete"),
            estimate(0.5, 0.15),
            emphasis="strong",
            space_above=True,
        ),
        build_row("anaphor_agreement", estimate(0.6, 0.01), None, depth=1),
        build_row("ties", 7, TableCell(text=""), depth=1, emphasis="faint"),
        build_row(
            "Mean", estimate(0.7, 0.01, "incomplete", "a column's note"), 1234, space_above=True
        ),
    ),
    title="Title",
    legend=("Percent ± half the interval.",),
)


# Terminal


def test_terminal_output_by_hand() -> None:
    assert write_at_width(SMALL, 80).splitlines() == [
        "",
        " Title",
        "",
        "                                   model a     model b",
        "                                  causal a         mlm",
        "",
        " blimp  mean of 3 paradigms  63.4 ±0.4 b    50.0 ±15.0",
        "   anaphor_agreement         60.0 ±1.0               –",
        "   ties                              7",
        "",
        " Mean                        70.0 ±1.0 a,b       1,234",
        "",
        " a  a column's note",
        " b  incomplete",
        " Percent ± half the interval.",
    ]


NUMBERS = st.floats(-1e6, 1e6).map(lambda x: TableCell(x, f"{x:.1f}")) | st.integers(0, 10**9).map(
    lambda n: TableCell(n)
)
ESTIMATES = st.builds(
    estimate, st.floats(0, 1), st.floats(0, 0.5), st.sampled_from(["n", "m", "o"])
)
TEXTS = st.text(string.ascii_letters + " _-", max_size=60).map(TableCell)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    kinds = draw(st.lists(st.sampled_from(["number", "text"]), min_size=1, max_size=8))
    columns = [TableColumn("name")]
    for index, kind in enumerate(kinds):
        label = draw(st.text(string.ascii_letters + " /\n", max_size=40))
        columns.append(
            TableColumn(f"{index}", label, align="right" if kind == "number" else "left")
        )
    cells = {"number": NUMBERS | ESTIMATES | st.just(TableCell()), "text": TEXTS | NUMBERS}
    rows = [
        build_row(
            draw(TEXTS), *(draw(cells[kind]) for kind in kinds), depth=draw(st.integers(0, 3))
        )
        for _ in range(draw(st.integers(1, 5)))
    ]
    return Table(tuple(columns), tuple(rows), header=draw(st.booleans()))


@pytest.mark.long
@given(tables(), st.integers(20, 200))
@fuzzed
def test_no_number_is_cut_at_any_width(table: Table, width: int) -> None:
    lines = write_at_width(table, width).splitlines()
    text = re.sub(" +±", " ±", "\n".join(lines))
    numbers = [cell.shown for row in table.rows for cell in row.cells if cell.is_number]
    for number in set(numbers):
        assert text.count(number) >= numbers.count(number)


@pytest.mark.long
@given(tables(), st.integers(20, 200))
@fuzzed
def test_no_line_is_wider_than_the_terminal(table: Table, width: int) -> None:
    assert all(
        cell_len(line) <= width and line == line.rstrip()
        for line in write_at_width(table, width).splitlines()
    )


@pytest.mark.long
@given(tables(), st.integers(20, 200))
@fuzzed
def test_notes_are_lettered_in_reading_order(table: Table, width: int) -> None:
    text = write_at_width(table, width)
    body, _, below = text.partition("\n\n a  ")
    marks = re.findall(r"±[\d.]+ ([a-c])\b", body)
    notes = {cell.notes[0] for row in table.rows for cell in row.cells if cell.notes}
    assert list(dict.fromkeys(marks)) == [index_to_letters(index) for index in range(len(notes))]
    assert len(below.splitlines()) == len(notes)


def test_columns_fold_into_blocks_where_they_do_not_fit() -> None:
    rows = tuple(build_row(name, *(100 * n for n in range(9))) for name in ("first", "second"))
    columns = [TableColumn(f"column {n}", align="right") for n in range(9)]
    lines = write_at_width(Table((TableColumn("name", ""), *columns), rows), 40).splitlines()
    assert lines[:4] == [
        "         column 0  column 1  column 2",
        " first          0       100       200",
        " second         0       100       200",
        "",
    ]
    assert lines.count("") == 2 and lines[-1].split() == ["second", "600", "700", "800"]


def test_cells_are_stacked_where_no_column_fits() -> None:
    table = Table(
        (TableColumn("name"), TableColumn("score", align="right")),
        (build_row("a very long name", TableCell(0.5, "50.0000000 ±1.0000000")),),
    )
    assert write_at_width(table, 20).splitlines() == [
        " a very long name",
        "   score:",
        "   50.0000000 ±1.0000000",
    ]


def test_a_narrow_form_takes_the_place_of_a_wide_table() -> None:
    wide = Table(
        (
            TableColumn("name", ""),
            *(TableColumn(f"model number {n}", align="right") for n in range(6)),
        ),
        (build_row("suite", *range(6)),),
        narrow=Table(
            (TableColumn("model"), TableColumn("suite", align="right")),
            tuple(build_row(f"model number {n}", n) for n in range(6)),
        ),
    )
    assert "model           suite" in write_at_width(wide, 40)
    assert write_at_width(wide, 200).splitlines()[0].count("model number") == 6


def test_an_empty_table_says_so() -> None:
    assert write("table", build_records_table([], empty="no suites yet")) == " no suites yet\n"
    assert write("markdown", build_records_table([], empty="no suites yet")) == "no suites yet\n"
    assert write("csv", build_records_table([], keys=["suite"])) == "suite\n"
    assert json.loads(write("json", build_records_table([])))["table"]["rows"] == []


@pytest.mark.long
@given(HOSTILE)
@fuzzed
def test_no_name_steers_the_terminal(name: str) -> None:
    for width in (20, 40, 120):
        for line in write_at_width(hostile(name), width).split("\n"):
            # Our own isolates around right-to-left text are closed in their line.
            assert re.sub("\u2068([^\u2068\u2069]*)\u2069", r"\1", line).isprintable()


# Notes


def test_notes_have_letters_then_pairs_of_letters() -> None:
    assert [index_to_letters(n) for n in (0, 25, 26, 51, 52, 26 + 26**2)] == [
        "a",
        "z",
        "aa",
        "az",
        "ba",
        "aaa",
    ]


def test_three_neighbouring_notes_are_a_range() -> None:
    marks = NoteMarks()
    assert marks.mark(["x", "y"]) == "a,b"
    assert marks.mark(["z", "y"]) == "b,c"
    assert marks.mark(["z", "x", "y", "w", "x"]) == "a-d"
    assert list(marks) == [("a", "x"), ("b", "y"), ("c", "z"), ("d", "w")]


# Every format


def hostile(name: str) -> Table:
    """A table in which every text is `name`."""
    cell = TableCell(0.5, "50.0 ±1.0", 0.4, 0.6, notes=(name,))
    rows = (
        build_row(TableCell(name, detail=name), cell, name, depth=1),
        build_row(name, cell, name, emphasis="faint"),
    )
    columns = (TableColumn("name", name), TableColumn("x", name, align="right"), TableColumn("y"))
    part = Table((TableColumn("z"),), (build_row(name),), title=name)
    return Table(columns, rows, title=name, legend=(name,), parts=(part,))


def test_markdown_by_hand() -> None:
    assert write("markdown", SMALL) == (
        "**Title**\n\n"
        "|  | model a<br>causal<sup>a</sup> | model b<br>mlm |\n"
        "| --- | ---: | ---: |\n"
        "| **blimp** (mean of 3 paradigms) | 63.4 ±0.4<sup>b</sup> | 50.0 ±15.0 |\n"
        "| &emsp;anaphor_agreement | 60.0 ±1.0 | – |\n"
        "| &emsp;_ties_ | 7 |  |\n"
        "| Mean | 70.0 ±1.0<sup>a,b</sup> | 1,234 |\n\n"
        "- a: a column's note\n"
        "- b: incomplete\n\n"
        "Percent ± half the interval.\n"
    )


@given(HOSTILE)
@fuzzed
def test_no_name_breaks_out_of_a_markdown_cell(name: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(write("markdown", hostile(name)))
    assert sum(token.type == "table_open" for token in tokens) == 2
    pairs = pairwise(tokens)
    cells = [inline for opening, inline in pairs if opening.type in ("td_open", "th_open")]
    assert len(cells) == 3 * 3 + 2
    inside = [child for cell in cells for child in cell.children or ()]
    html = {child.content for child in inside if child.type == "html_inline"}
    assert html <= {"<br>", "<sup>", "</sup>"}
    assert not {child.type for child in inside} & {
        "link_open",
        "image",
        "code_inline",
        "strong_open",
    }


def test_csv_has_raw_numbers_and_intervals() -> None:
    assert write("csv", SMALL).splitlines() == [
        "suite,a,a_low,a_high,b,b_low,b_high",
        "blimp,0.634,0.63,0.638,0.5,0.35,0.65",
        "anaphor_agreement,0.6,0.59,0.61,,,",
        "ties,7,,,,,",
        "Mean,0.7,0.69,0.71,1234,,",
    ]


@given(HOSTILE)
@fuzzed
def test_no_name_breaks_out_of_a_csv_field(name: str) -> None:
    text = write("csv", hostile(name))
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["name", "x", "x_low", "x_high", "y"] and len(rows) == 2
    assert all(len(row) == 5 for row in rows)
    assert all(c.isprintable() or c == "\n" for c in text)


def test_json_is_typed_and_holds_the_text_beside() -> None:
    table = replace(SMALL, document={"runs": [{"x": math.nan, "set": {"b", "a"}}]})
    document = json.loads(write("json", table))
    assert document.pop("schema_version") == 1
    assert document.pop("runs") == [{"x": None, "set": ["a", "b"]}]
    document = document["table"]
    assert document["columns"][1] == {"key": "a", "label": "model a causal", "unit": None}
    assert document["rows"][0] == {
        "suite": "blimp",
        "a": 0.634,
        "a_low": 0.63,
        "a_high": 0.638,
        "a_text": "63.4 ±0.4",
        "a_unit": "fraction",
        "a_notes": ["incomplete"],
        "b": 0.5,
        "b_low": 0.35,
        "b_high": 0.65,
        "b_text": "50.0 ±15.0",
        "b_unit": "fraction",
    }
    assert document["rows"][3]["b"] == 1234 and "b_text" not in document["rows"][3]
    assert document["notes"] == [
        {"mark": "a", "text": "a column's note"},
        {"mark": "b", "text": "incomplete"},
    ]
    assert document["legend"] == ["Percent ± half the interval."]


@given(HOSTILE)
@fuzzed
def test_json_gives_every_text_back_and_steers_nothing(name: str) -> None:
    text = write("json", hostile(name))
    assert all(c.isprintable() or c == "\n" for c in text)
    document = json.loads(text)["table"]
    assert document["rows"][0]["name"] == name and document["legend"] == [name]
    assert document["parts"][0]["rows"] == [{"z": name}]


def test_csv_and_json_hold_the_long_form() -> None:
    long = build_records_table([{"suite": "blimp", "value": 0.634}])
    table = replace(SMALL, build_long=lambda: long)
    assert write("csv", table) == "suite,value\nblimp,0.634\n"
    assert json.loads(write("json", table))["table"]["rows"] == [{"suite": "blimp", "value": 0.634}]
    assert "63.4 ±0.4" in write("markdown", table)


def test_latex_by_hand() -> None:
    assert write("latex", SMALL) == "\n".join(
        [
            "% \\usepackage{booktabs}",
            "\\begin{tabular}{lrr}",
            "\\toprule",
            " & model a & model b \\\\",
            " & causal$^{a}$ & mlm \\\\",
            "\\midrule",
            "blimp (mean of 3 paradigms) & 63.4 $\\pm$0.4$^{b}$ & 50.0 $\\pm$15.0 \\\\",
            "\\quad anaphor\\_agreement & 60.0 $\\pm$1.0 & \\textendash{} \\\\",
            "\\quad ties & 7 &  \\\\",
            "\\midrule",
            "Mean & 70.0 $\\pm$1.0$^{a,b}$ & 1,234 \\\\",
            "\\bottomrule",
            "\\end{tabular}",
            "",
            "{\\footnotesize",
            "$^{a}$ a column\\textquoteright{}s note\\\\",
            "$^{b}$ incomplete\\\\",
            "Percent $\\pm$ half the interval.",
            "\\par}",
            "",
        ]
    )


# What LaTeX with booktabs knows and the writer may use, with the number of arguments.
MACROS = {
    "toprule": 0,
    "midrule": 0,
    "bottomrule": 0,
    "quad": 0,
    "footnotesize": 0,
    "par": 0,
    "paragraph": 1,
}
MACROS |= dict.fromkeys(["pm", "bigtriangleup", "bigtriangledown", "Delta", *"&%$#_{}"], 0)
TEXT_MACROS = "backslash asciitilde asciicircum less greater bar endash"
TEXT_MACROS += " quotedblleft quotedblright quoteright quoteleft"
MACROS |= {f"text{name}": 0 for name in TEXT_MACROS.split()}
MACROS["\\"] = 0


def parse_latex(source: str) -> list[object]:
    """Parse strictly: unbalanced braces, unknown macros or environments, a stray & or ^ raise."""
    known = macrospec.LatexContextDb()
    known.add_context_category(
        "booktabs",
        macros=[
            macrospec.std_macro(name, "*[" if name == "\\" else "{" * count)
            for name, count in MACROS.items()
        ],
        environments=[macrospec.std_environment("tabular", "{")],
        specials=[macrospec.SpecialsSpec("&")],
    )
    walker = latexwalker.LatexWalker(source, latex_context=known, tolerant_parsing=False)
    nodes, _, _ = walker.get_latex_nodes()
    return list(check_nodes(nodes, in_tabular=False, in_math=False))


def check_nodes(nodes, *, in_tabular: bool, in_math: bool):
    """Yield the text of every node. Fail where LaTeX would."""
    for node in nodes or ():
        if isinstance(node, latexwalker.LatexMacroNode):
            assert node.macroname in MACROS, f"unknown macro {node.macroname!r}"
            arguments = [
                a for a in (node.nodeargd.argnlist if node.nodeargd else []) if a is not None
            ]
            assert node.macroname != "\\" or not arguments, (
                "text was read as an argument of a row's end"
            )
            yield from check_nodes(arguments, in_tabular=in_tabular, in_math=in_math)
        elif isinstance(node, latexwalker.LatexEnvironmentNode):
            assert node.environmentname == "tabular"
            columns = len(node.nodeargd.argnlist[-1].latex_verbatim().strip("{}"))
            body = "".join(child.latex_verbatim() for child in node.nodelist)
            rows = re.split(r"(?<!\\)\\\\", body)[:-1]
            assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
            yield from check_nodes(node.nodelist, in_tabular=True, in_math=in_math)
        elif isinstance(node, latexwalker.LatexGroupNode):
            yield from check_nodes(node.nodelist, in_tabular=in_tabular, in_math=in_math)
        elif isinstance(node, latexwalker.LatexMathNode):
            yield from check_nodes(node.nodelist, in_tabular=in_tabular, in_math=True)
        elif isinstance(node, latexwalker.LatexSpecialsNode):
            assert in_tabular and not in_math, "an & outside a table"
        elif isinstance(node, latexwalker.LatexCharsNode):
            outside = "_#&%$" if in_math else "^_#&%$~"
            assert not set(outside) & set(node.chars), node.chars
            assert all(c < "\u0180" and (c.isprintable() or c == "\n") for c in node.chars)
            yield node.chars
        else:
            assert (
                isinstance(node, latexwalker.LatexCommentNode)
                and node.comment == " \\usepackage{booktabs}"
            )


def test_the_strict_parser_refuses_what_latex_refuses() -> None:
    for wrong in (
        "{",
        "}",
        "\\unknown",
        "a & b",
        "a_b",
        "50% of",
        "\\begin{tabular}{l}x",
        "\\\\\n*x",
    ):
        with pytest.raises((AssertionError, latexwalker.LatexWalkerParseError)):
            parse_latex(wrong)


@pytest.mark.long
@given(HOSTILE)
@fuzzed
def test_latex_parses_whatever_a_name_holds(name: str) -> None:
    assert parse_latex(write("latex", hostile(name)))


def untex(source: str) -> str:
    """Read LaTeX source back, independently of the writer."""
    words = {
        "backslash": "\\",
        "asciitilde": "~",
        "asciicircum": "^",
        "less": "<",
        "greater": ">",
        "bar": "|",
    }
    words |= {
        "endash": "–",
        "quotedblleft": "“",
        "quotedblright": '"',
        "quoteright": "'",
        "quoteleft": "`",
    }
    assert not re.search("--|''|``|,,", source)  # ligatures: other characters
    source = source.replace("-{}", "-").replace(",{}", ",")
    pattern = r"\\text([a-z]+)\{\}|\\([{}$&#_%])|\{([\[\]*])\}|(\$\\pm\$)"
    return re.sub(pattern, lambda m: words[m[1]] if m[1] else m[2] or m[3] or "±", source)


@given(st.text(alphabet=string.printable.replace("\t", "").strip() + " éÅß", max_size=30))
@fuzzed
def test_latex_sets_what_the_text_says(text: str) -> None:
    assert untex(latex_text(text)) == text


def test_facts_are_nested_by_indentation_and_one_json_object() -> None:
    facts = {
        "parameters": 58000000,
        "tied": True,
        "mask": None,
        "special": {"bos": "<s>"},
        "m": ("a", "b"),
    }
    table = build_facts_table("checkpoint x", facts)
    assert write_at_width(table, 80).splitlines() == [
        "",
        " checkpoint x",
        " parameters  58,000,000",
        " tied        yes",
        " mask        –",
        " special",
        "   bos       <s>",
        " m           a, b",
    ]
    assert json.loads(write("json", table))["facts"] == {**facts, "m": ["a", "b"]}


def test_a_package_adds_a_format() -> None:
    yaml = OutputFormat("yaml-test", lambda table: f"rows: {len(table.rows)}\n")
    FORMATS.add(yaml)
    assert write("yaml-test", SMALL) == "rows: 4\n"
    with pytest.raises(UsageError, match="unknown output format 'jsn'"):
        FORMATS["jsn"]
