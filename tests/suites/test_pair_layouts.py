"""Layouts of files of pairs: every layout gives the pairs that were written, or an error with file
and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.errors import DataError, DeclarationError, UsageError
from antlm_bench.suites import loader
from antlm_bench.suites.pair_layouts import LAYOUTS

Pairs = Sequence[tuple[str, str]]
LABELLED = "True\tThe cat sleeps.\nFalse\tThe cat sleep.\n"
KEYED = {"key": "item", "label": "status"}
"""Columns of the long tables below."""


def write_file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read_texts(ref: str, **settings: Any) -> list[tuple[str, ...]]:
    return [
        tuple(option.text for option in item.options)
        for item in loader.load_suite(ref, **settings).items
    ]


# ---- what is written is read

SENTENCE = st.text(
    st.characters(exclude_characters="\0\r\n\t", exclude_categories=["Cs", "Zl", "Zp"]),
    min_size=1,
    max_size=12,
).filter(lambda text: bool(text.strip()) and not text.startswith("\ufeff"))
GROUPS = st.lists(
    st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3)), min_size=1, max_size=4
)
"""(good sentence, its bad ones) of several pairs."""


def write_table(rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()


def write_layouts(groups: Sequence[tuple[str, list[str]]]) -> dict[str, tuple[str, Mapping]]:
    """Return file name -> (content, settings) of the same pairs in every layout."""
    pairs = [(good, bad) for good, bads in groups for bad in bads]
    labels = [(1, good, bads, n) for n, (good, bads) in enumerate(groups)]
    long = [
        (text, label, str(n))
        for _, good, bads, n in labels
        for label, text in [*(("no", bad) for bad in bads), ("yes", good)]
    ]
    return {
        "columns.csv": (write_table([("good", "bad"), *pairs]), {}),
        "columns.jsonl": (
            "\n".join(json.dumps({"ok": good, "not": bad}) for good, bad in pairs),
            {"columns": {"good": "ok", "bad": "not"}},
        ),
        "first.txt": ("\n".join(f"{g}\n{b}\n" for g, b in pairs), {"good": "first"}),
        "second.txt": ("\r\n".join(f"{b}\r\n{g}" for g, b in pairs), {"good": "second"}),
        "labelled.txt": (
            "".join(f"True\t{g}\n" + "".join(f"False\t{b}\n" for b in bs) for g, bs in groups),
            {},
        ),
        "unmarked.txt": (
            "".join(f"\t{g}\n" + "".join(f"*\t{b}\n" for b in bs) for g, bs in groups),
            {"layout": "labelled"},
        ),
        "long.tsv": (
            write_table([("text", "status", "item"), *long], "\t"),
            {"columns": KEYED, "good": "yes"},
        ),
        "labelled.csv": (
            write_table(
                [("label", "sentence")]
                + [row for g, bs in groups for row in [("1", g), *(("0", b) for b in bs)]]
            ),
            {"layout": "labelled"},
        ),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@given(groups=GROUPS)
def test_every_layout_gives_the_pairs_that_were_written(folder: Path, groups: Any) -> None:
    expected = [(good, bad) for good, bads in groups for bad in bads]
    for name, (content, settings) in write_layouts(groups).items():
        assert read_texts(write_file(folder, name, content), **settings) == expected, name


def test_a_star_without_a_tab_marks_a_wrong_sentence(tmp_path: Path) -> None:
    ref = write_file(tmp_path, "a.txt", "The cat sleeps.\n*The cat sleep.\n* The cat slept it.\n")
    assert read_texts(ref) == [
        ("The cat sleeps.", "The cat sleep."),
        ("The cat sleeps.", "The cat slept it."),
    ]


def test_pairs_with_the_same_good_sentence_form_a_cluster(tmp_path: Path) -> None:
    lines = "True\tA\nFalse\tB\nFalse\tC\nTrue\tD\nFalse\tE\n"
    first, second, other = loader.load_suite(write_file(tmp_path, "a.txt", lines)).items
    assert first.cluster == second.cluster != other.cluster
    assert [first.id, second.id, other.id] == ["a_0", "a_1", "a_2"]


def test_columns_of_the_good_row_are_levels(tmp_path: Path) -> None:
    table = "item,status,sentence,paradigm\n1,*,B,p\n2,,C,q\n1,,A,p\n2,*,D,q\n"
    suite = loader.load_suite(write_file(tmp_path, "a.csv", table), columns=KEYED)
    assert (suite.groups, suite.macro) == (("paradigm",), ("paradigm",))
    assert [item.labels["paradigm"] for item in suite.items] == ["p", "q"]


def test_a_column_without_a_name_can_be_named(tmp_path: Path) -> None:
    ref = write_file(tmp_path, "a.csv", ",bad\nA,B\n")
    assert read_texts(ref, columns={"good": ""}) == [("A", "B")]


def test_layouts_have_different_digests_and_columns_keep_theirs(tmp_path: Path) -> None:
    table = write_file(tmp_path, "a.csv", "good,bad\nA,B\n")
    lines = write_file(tmp_path, "a.txt", "A\nB\n")
    labelled = write_file(tmp_path, "de/a.txt", "True\tA\nFalse\tB\n")
    suites = [
        loader.load_suite(table),
        loader.load_suite(lines, good="first"),
        loader.load_suite(labelled),
    ]
    assert len({suite.digest for suite in suites}) == 3
    assert len({suite.items[0].options for suite in suites}) == 1
    assert loader.load_suite(table, layout="columns").digest == suites[0].digest
    # written before there were layouts
    assert suites[0].digest.startswith("e832f41c3db09f3f")


@pytest.mark.parametrize(
    ("name", "content", "good", "message"),
    [
        ("a.csv", "label,sentence\n1,a\n,b\n0,c\n", "", "a.csv:3: the label is empty, but line 2"),
        ("a.csv", "label,sentence\ng,a\n*,b\n,c\n", "g", "a.csv:4: the label is empty, but line"),
        ("a.jsonl", '{"label": null, "sentence": "a"}\n{"label": 0, "sentence": "b"}\n', "", ":1:"),
        ("a.csv", "label,sentence\n1,a\n1,b\n", "", "all sentences are right"),
        ("a.csv", "label,sentence\n1,a\n0,b\n", "ok", "no sentence has the label 'ok'"),
        ("a.txt", "a cat\n*a dog\n??a cow\n", "", "a.txt:3: the mark of '??a cow'"),
    ],
)
def test_judgements_that_say_nothing_are_refused(
    tmp_path: Path, name: str, content: str, good: str, message: str
) -> None:
    ref = write_file(tmp_path, name, content)
    with pytest.raises(DataError, match=re.escape(message)):
        loader.load_suite(ref, layout="judgements", good=good)


def test_sentences_without_a_mark_are_right_beside_stars(tmp_path: Path) -> None:
    ref = write_file(tmp_path, "a.csv", "label,sentence\n,a\n*,b\n")
    suite = loader.load_suite(ref, layout="judgements")
    assert [item.gold for item in suite.items] == [1, 0]


def test_different_spaces_around_a_pair_are_noted(tmp_path: Path) -> None:
    ref = write_file(tmp_path, "a.csv", "good,bad\na cat,a cats\na dog, a dogs\n b , c \n")
    assert loader.load_suite(ref).notes == (
        "1 pair with different white space around the sentences, first a.csv:3",
    )


def test_the_layout_is_a_note(tmp_path: Path) -> None:
    lines = write_file(tmp_path, "a.txt", "A\nB\n")
    assert loader.load_suite(lines, good="second").notes == (
        "read with the layout alternating; 'second' is right",
    )


# ---- folders


def test_files_of_a_folder_are_paradigms(tmp_path: Path) -> None:
    write_file(tmp_path, "zorro/b-c.txt", "B\nA\n")
    write_file(tmp_path, "zorro/a.txt.gz", gzip.compress(b"D\nC\nF\nE\n"))
    write_file(tmp_path, "zorro/README.txt", "One line.")
    write_file(tmp_path, "zorro/.hidden.txt", "One line.")
    suite = loader.load_suite(str(tmp_path / "zorro"), good="second")
    assert (suite.name, suite.groups, suite.macro) == ("zorro", ("paradigm",), ("paradigm",))
    assert [(item.id, item.options[0].text) for item in suite.items] == [
        ("a_0", "C"),
        ("a_1", "E"),
        ("b-c_0", "A"),
    ]
    assert suite.origin == (str(tmp_path / "zorro"),)


def test_subfolders_are_the_level_above(tmp_path: Path) -> None:
    for language in ("de", "fr"):
        write_file(tmp_path, f"clams/{language}/simple.txt", LABELLED)
    suite = loader.load_suite(str(tmp_path / "clams"))
    assert suite.groups == ("phenomenon", "paradigm")
    assert [item.labels for item in suite.items] == [
        {"phenomenon": "de", "paradigm": "de/simple"},
        {"phenomenon": "fr", "paradigm": "fr/simple"},
    ]


def test_folders_of_tables_keep_levels_that_all_files_have(tmp_path: Path) -> None:
    for name, field in (("x", "syntax"), ("y", "morphology")):
        row = {"sentence_good": "A", "sentence_bad": "B", "field": field, "UID": "no", "id": "1"}
        write_file(tmp_path, f"blimp/{name}.jsonl", json.dumps(row))
    suite = loader.load_suite(str(tmp_path / "blimp"))
    assert suite.groups == ("field", "paradigm")
    assert [(item.id, item.labels["field"]) for item in suite.items] == [
        ("x_0", "syntax"),
        ("y_0", "morphology"),
    ]


@pytest.mark.parametrize("other", ["config.json", "run.json"])
def test_checkpoints_and_runs_are_no_folders_of_pairs(tmp_path: Path, other: str) -> None:
    write_file(tmp_path, "x/merges.txt", "a b\n")
    write_file(tmp_path, f"x/{other}", "{}")
    with pytest.raises(DeclarationError, match="a folder is not a suite"):
        loader.load_suite(str(tmp_path / "x"))


def test_lists_and_tables_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_file(tmp_path, "x/a.txt", LABELLED)
    write_file(tmp_path, "x/b.csv", "good,bad\nA,B\n")
    with pytest.raises(DataError, match="both lists of sentences"):
        loader.load_suite(str(tmp_path / "x"))


# ---- what is wrong


@pytest.mark.parametrize(
    ("content", "settings", "line", "message"),
    [
        ("A\nB\n\nC\n", {"good": "first"}, 4, "3 sentences, an odd number"),
        ("False\tA\n", {}, 1, "a wrong sentence without a right one before it"),
        ("True\tA\nTrue\tB\nFalse\tC\n", {}, 1, "a right sentence without a wrong one"),
        ("True\tA\nFalse\tB\nTrue\tC\n", {}, 3, "a right sentence without a wrong one"),
        ("True\tA\nperhaps\tB\n", {}, 2, "the label 'perhaps' does not say"),
        ("True\tA\tx\n", {}, 1, "more than one tab"),
        ("True\tA\nFalse\t \n", {}, 2, "the text of '{bad}' is empty"),
        ("A\nB\n", {"layout": "columns"}, None, "a .txt has no columns"),
        ("A\nB\n", {"columns": KEYED}, None, "a .txt has no columns for the layout 'long'"),
        ("\n \n", {}, None, "0 rows"),
        (b"A\nB\xff\n", {"good": "first"}, 2, "not UTF-8"),
    ],
)
def test_lines_that_form_no_pairs_are_named(
    tmp_path: Path, content: str | bytes, settings: Any, line: int | None, message: str
) -> None:
    ref = write_file(tmp_path, "a.txt", content)
    with pytest.raises(DataError) as caught:
        loader.load_suite(ref, **settings)
    assert caught.value.location == (f"{ref}:{line}" if line else ref)
    assert message in caught.value.message
    if "suggest" in caught.value.hint:
        assert caught.value.hint.endswith(f"antlm-bench suggest {ref}")


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ("1,,A\n1,,B\n1,*,C\n", 3, "the key '1' has two right sentences: line 2"),
        ("1,,A\n1,*,B\n2,*,C\n", 4, "the key '2' has no right sentence"),
        ("1,,A\n1,*,B\n2,,C\n", 4, "the key '2' has no wrong sentence"),
        ("1,,A\n,*,B\n", 3, "the key of the pair is empty"),
        ("1,?,A\n", 2, "the label '?' does not say"),
    ],
)
def test_rows_of_long_tables_that_form_no_pairs_are_named(
    tmp_path: Path, rows: str, line: int, message: str
) -> None:
    ref = write_file(tmp_path, "a.csv", f"item,status,sentence\n{rows}")
    with pytest.raises(DataError) as caught:
        loader.load_suite(ref, columns=KEYED)
    assert (caught.value.location, caught.value.message[: len(message)]) == (
        f"{ref}:{line}",
        message,
    )


@pytest.mark.parametrize(
    ("settings", "option", "message"),
    [
        ({"layout": "alternating"}, "--good", "which of two lines is right?"),
        ({"layout": "alternating", "good": "third"}, "--good", "'third' is neither"),
        ({"layout": "columns", "good": "yes"}, "--good", "the columns good and bad say"),
        ({"layout": "alternate"}, "--layout", "unknown layout 'alternate'"),
        ({"columns": {"good": "bad", "bad": "bad"}}, "--columns", "'bad' has two meanings"),
        ({"columns": {"good": "x"}, "layout": "long"}, "--columns", "unknown column 'good'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: Any, option: str, message: str
) -> None:
    ref = write_file(tmp_path, "a.csv", "good,bad\nA,B\n")
    with pytest.raises(UsageError) as caught:
        loader.load_suite(ref, **settings)
    assert caught.value.location == option
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["layout", "good"])
def test_suites_of_the_catalog_have_no_layout(name: str) -> None:
    with pytest.raises(UsageError, match="is not a file of pairs"):
        loader.load_suite("nano", **{name: "long"})


# ---- declarations


def declare_suite(folder: Path, data: str, more: str = "") -> str:
    return write_file(folder, "mine.toml", f'kind = "suite"\n{more}\n[data]\n{data}\n')


def test_a_declaration_of_a_user_needs_a_kind_and_data(tmp_path: Path) -> None:
    write_file(tmp_path, "a.txt", LABELLED)
    suite = loader.load_suite(declare_suite(tmp_path, 'files = ["a.txt"]\nlayout = "labelled"'))
    assert (suite.name, suite.title, suite.version, suite.licence) == (
        "mine",
        "mine",
        "user",
        "not stated",
    )
    assert [option.text for option in suite.items[0].options] == [
        "The cat sleeps.",
        "The cat sleep.",
    ]


def test_declared_layouts_read_files_as_flags_do(tmp_path: Path) -> None:
    groups = [("A b", ["a b", "c"]), ("D", ["E"])]
    for name, (content, settings) in write_layouts(groups).items():
        ref = write_file(tmp_path, name, content)
        by_flags = loader.load_suite(ref, **settings)
        columns = ", ".join(
            f'{key} = "{value}"' for key, value in settings.get("columns", {}).items()
        )
        layout = settings.get("layout") or name.partition(".")[0]
        layout = "alternating" if layout in ("first", "second") else layout
        data = (
            f'files = ["{name}"]\nlayout = "{layout}"\ncolumns = {{ {columns} }}\n'
            f'good = "{settings.get("good", "")}"'
        )
        declared = loader.load_suite(declare_suite(tmp_path, data, f'name = "{by_flags.name}"'))
        assert declared.items == tuple(
            type(item)(item.id, item.options, item.gold, item.labels, "") for item in by_flags.items
        )
        assert declared.digest == by_flags.digest


def test_declared_files_of_two_folders_may_have_one_name(tmp_path: Path) -> None:
    for language, verb in (("de_evalset", "schläft"), ("fr_evalset", "dort")):
        write_file(tmp_path, f"clams/{language}/simple.txt", f"True\tA {verb}\nFalse\tB\n")
    ref = declare_suite(
        tmp_path,
        'where = ["clams/{file}"]\nlayout = "labelled"\n'
        'files = ["de_evalset/simple.txt", "fr_evalset/simple.txt"]',
        'groups = ["language", "paradigm"]\nmacro = ["language", "paradigm"]\n'
        'labels = { language = "{folder}", paradigm = "{stem}-{folder}" }\n'
        'rename = { language = { de_evalset = "German" } }',
    )
    assert [(item.labels, item.options[0].text) for item in loader.load_suite(ref).items] == [
        ({"language": "German", "paradigm": "simple-de_evalset"}, "A schläft"),
        ({"language": "fr_evalset", "paradigm": "simple-fr_evalset"}, "A dort"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('layout = "alternating"', "which of two lines is right?"),
        ('layout = "pairs"', "unknown layout 'pairs'"),
        ('good = "first"', "`columns` and `good` need `layout`"),
        ('layout = "long"\ncolumns = { gud = "x" }', "unknown column 'gud'"),
    ],
)
def test_wrong_layouts_of_declarations_are_named(tmp_path: Path, data: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=r"mine\.toml: data") as caught:
        loader.load_suite(declare_suite(tmp_path, f'files = ["a.txt"]\n{data}'))
    assert message in caught.value.message


@pytest.mark.parametrize("file", ["/a.txt", "a//b.txt", "../a.txt", "x/.git/a.txt", "a\\\\b.txt"])
def test_declared_files_stay_below_the_folder(tmp_path: Path, file: str) -> None:
    with pytest.raises(DeclarationError, match="must be a relative path"):
        loader.load_suite(declare_suite(tmp_path, f'files = ["{file}"]'))


def test_each_layout_has_a_sentence() -> None:
    assert all(layout.description for layout in LAYOUTS.values())
