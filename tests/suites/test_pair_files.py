"""Files of pairs: text comes out as it went in, and whatever is odd is one error with file and
line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.suites import loader

MANY = settings(
    max_examples=700, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(ref: str, **options: Any) -> list[tuple[str, ...]]:
    return [
        tuple(option.text for option in item.options)
        for item in loader.load_suite(ref, **options).items
    ]


# ---- what is right
# -----------------------------------------------------------------------------------------------


def test_two_columns_are_enough(tmp_path: Path) -> None:
    suite = loader.load_suite(
        written(tmp_path, "my pairs.csv", "good,bad\nA wug sleeps.,A wug sleep.\n")
    )
    assert (suite.name, suite.metric, suite.groups, suite.macro) == ("my-pairs", "accuracy", (), ())
    (item,) = suite.items
    assert [option.text for option in item.options] == ["A wug sleeps.", "A wug sleep."]
    assert (item.id, item.gold, item.labels) == ("my-pairs_0", 0, {})


BLIMP_ROW = {"id": 7, "UID": "p", "linguistics_term": "q", "other": [1]}
BLIMP_ROW |= {"sentence_good": 'He said "x, y".\nYes.', "sentence_bad": "é "}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,paradigm,phenomenon,good,bad\n7,p,q,"He said ""x, y"".\nYes.","é "\n'),
        (
            "a.CSV",
            '\ufeffid,paradigm,phenomenon,good,bad\r\n7,p,q,"He said ""x, y"".\nYes.","é "\r\n\r\n',
        ),
        ("a.tsv", 'id\tparadigm\tphenomenon\tgood\tbad\n7\tp\tq\t"He said ""x, y"".\nYes."\t"é "'),
        ("a.jsonl", json.dumps(BLIMP_ROW) + "\n\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_text_is_taken_as_it_is(tmp_path: Path, name: str, content: str, packed: bool) -> None:
    raw = content.encode()
    suite = loader.load_suite(
        written(tmp_path, name + ".gz" * packed, gzip.compress(raw) if packed else raw)
    )
    (item,) = suite.items
    assert [option.text for option in item.options] == ['He said "x, y".\nYes.', "é "]
    assert (item.id, item.labels) == ("7", {"phenomenon": "q", "paradigm": "p"})
    assert (suite.groups, suite.macro) == (("phenomenon", "paradigm"), ("paradigm",))


def test_columns_have_the_names_of_their_owner(tmp_path: Path) -> None:
    ref = written(tmp_path, "a.csv", "ok {sentence},not ok,good.x\nA,B,C\n")
    assert texts(ref, columns={"good": "ok {sentence}", "bad": "not ok"}) == [("A", "B")]


def test_groups_number_their_items_and_limits_keep_groups(tmp_path: Path) -> None:
    rows = "".join(f"g{n},b{n},{'xy'[n % 2]}\n" for n in range(6))
    ref = written(tmp_path, "a.csv", "good,bad,paradigm\n" + rows)
    assert [item.id for item in loader.load_suite(ref).items] == [
        "x_0",
        "y_0",
        "x_1",
        "y_1",
        "x_2",
        "y_2",
    ]
    limited = loader.load_suite(ref, limit=1)
    assert [item.id for item in limited.items] == ["x_0", "y_0"]
    assert limited.notes == ("limit: the first 1 of each paradigm",)
    assert limited.digest != loader.load_suite(ref).digest == loader.load_suite(ref, limit=3).digest
    with pytest.raises(UsageError, match="limit is 0"):
        loader.load_suite(ref, limit=0)


def test_the_digest_sees_every_part_of_an_item(tmp_path: Path) -> None:
    contents = ["g,b,1,p", "G,b,1,p", "g,B,1,p", "g,b,2,p", "g,b,1,q"]
    digests = {
        loader.load_suite(written(tmp_path, "a.csv", f"good,bad,id,paradigm\n{row}\n")).digest
        for row in contents
    }
    assert len(digests) == len(contents)
    assert (
        loader.load_suite(
            written(tmp_path, "b.csv", f"good,bad,id,paradigm\n{contents[0]}\n")
        ).digest
        in digests
    )


# ---- what is wrong
# -----------------------------------------------------------------------------------------------

HEAD = "good,bad\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "says"),
    [
        ("a.csv", "", "", "0 rows"),
        ("a.csv", HEAD, "", "0 rows"),
        ("a.jsonl", "\n\n", "", "0 rows"),
        ("a.csv", "god,bad\nx,y\n", ":2", "the column 'good' is missing"),
        ("a.csv", "good;bad\nx;y\n", ":2", "the columns are separated by ';'"),
        ("a.csv", "good,good,bad\nx,y,z\n", ":1", "two columns are called 'good'"),
        (
            "a.csv",
            HEAD + "a,b\n\n'x',\"y\nz\"\nonly\n",
            ":6",
            "1 field, but the header has 2 columns",
        ),
        ("a.csv", HEAD + "a,b,c\n", ":2", "3 fields"),
        ("a.csv", HEAD + 'a,"b\n', ":2", "not a table"),
        ("a.csv", HEAD + 'a,"b" c\n', ":2", "not a table"),
        ("a.csv", HEAD + "a,b\n,b\n", ":3", "the text of '{good}' is empty"),
        ("a.csv", HEAD + "a, \n", ":2", "the text of '{bad}' is empty"),
        ("a.csv", HEAD + "a,b\n\0,b\n", ":3", "a NUL character"),
        ("a.csv", "good,bad,id\na,b,1\nc,d,1\n", ":3", "has the same id '1'"),
        (
            "a.csv",
            "good,bad,paradigm\na,b,\n",
            ":2",
            "'paradigm' must be a text or a whole number, not empty",
        ),
        ("a.csv", HEAD.encode() + b"a,b\ncaf\xe9,d\n", ":3", "not UTF-8: byte 0xe9 at offset 16"),
        ("a.csv", (HEAD + "a,b\n").encode("utf-16"), ":1", "not UTF-8"),
        ("a.tsv", HEAD + "a,b\n", ":2", "the column 'good' is missing"),
        ("a.jsonl", '{"good": "a", "bad": "b"}\n{"good": "a"', ":2", "not a line of JSON"),
        (
            "a.jsonl",
            '{"good": "a", "bad": "b"}\n["a", "b"]',
            ":2",
            "expected a JSON object, got list",
        ),
        ("a.jsonl", '{"good": "a", "bad": 3}', ":1", "'bad' must be a text, not 3 (int)"),
        ("a.jsonl", '{"good": "a", "bad": null}', ":1", "'bad' must be a text, not empty"),
        (
            "a.jsonl",
            '{"good": "a", "bad": "b"}\n\n{"good": "a"}',
            ":3",
            "the column 'bad' is missing",
        ),
        ("a.jsonl", '{"good": "a", "bad": "\\ud800"}', ":1", "half a surrogate pair"),
        ("a.jsonl", '{"good": "a", "bad": "\\u0000x"}', ":1", "NUL"),
        ("a.jsonl", '{"good": "a", "bad": ' + "[" * 100_000, ":1", "not a line of JSON"),
        ("a.jsonl", '{"good": "a", "bad": ' + "9" * 5_000 + "}", ":1", ""),
        (
            "a.jsonl",
            '{"good": "a", "bad": "b", "id": true}',
            ":1",
            "'id' must be a text or a whole number",
        ),
        ("a.csv.gz", b"not gzip", "", "damaged gzip"),
        ("a.csv.gz", gzip.compress(b"good,bad\na,b\n", mtime=0)[:-4], "", "damaged gzip"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, line: str, says: str
) -> None:
    ref = written(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        loader.load_suite(ref)
    assert caught.value.location == ref + line
    assert says in caught.value.message
    assert "fetch" not in caught.value.hint  # no server has a user's file


def test_a_file_that_is_not_there_or_no_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for ref in (
        tmp_path / "none.csv",
        tmp_path / "folder.csv",
        tmp_path / ("x" * 300 + ".csv"),
        "~nobody-here/a.csv",
        "a\0.csv",
    ):
        with pytest.raises(DataError, match="cannot be read"):
            loader.load_suite(str(ref))


def test_columns_that_are_not_ours_or_not_theirs_are_suggested(tmp_path: Path) -> None:
    ref = written(tmp_path, "a.csv", "grammatical,not\nx,y\n")
    with pytest.raises(UsageError, match="unknown column 'gud'"):
        loader.load_suite(ref, columns={"gud": "x"})
    with pytest.raises(DataError, match="the column 'gramatical' is missing") as caught:
        loader.load_suite(ref, columns={"good": "gramatical", "bad": "not"})
    assert caught.value.hint == "did you mean 'grammatical'?"
    with pytest.raises(UsageError, match="is not a file of pairs"):
        loader.load_suite("nano", columns={"good": "x"})


# ---- thousands of them
# -------------------------------------------------------------------------------------------

CELL = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
TRICKY = st.sampled_from(
    ['"', ",", "\t", "\n", "\r", "\r\n", "'", ";", "\ufeff", "é", "\u2028", " ", "\\", "{", "x"]
)
TEXT = CELL | st.lists(TRICKY, max_size=6).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("odd")


@pytest.mark.long
@MANY
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4),
    tabs=st.booleans(),
    quoting=st.sampled_from([0, 1]),
)
def test_any_table_of_texts_is_read_back_as_it_was_written(
    folder: Path, rows: list[tuple[str, str]], tabs: bool, quoting: int
) -> None:
    both = any("\t" in text and re.search("[\r\n]", text) for row in rows for text in row)
    assume(
        not (tabs and both and quoting == csv.QUOTE_MINIMAL)
    )  # it can look like rows with stray quotes, as GLUE's
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t" if tabs else ",", quoting=quoting).writerows(
        [("good", "bad"), *rows]
    )  # type: ignore[arg-type]
    ref = written(folder, "a.tsv" if tabs else "a.csv", out.getvalue())
    if all(text.strip() for row in rows for text in row):
        assert texts(ref) == rows
    else:
        with pytest.raises(DataError, match="is empty"):
            loader.load_suite(ref)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        "good",
        "bad",
        "sentence_good",
        "sentence_bad",
        "id",
        "paradigm",
        "UID",
        "field",
        "file",
        "stem",
    ]
)


@pytest.mark.long
@MANY
@given(st.lists(st.dictionaries(KEYS, TEXT | JSON, max_size=6), min_size=1, max_size=4))
def test_any_json_lines_are_pairs_or_an_error_with_their_line(
    folder: Path, rows: list[dict[str, Any]]
) -> None:
    ref = written(folder, "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    try:
        read = texts(ref)
    except DataError as error:
        assert error.location.startswith(ref + ":")
        return
    first = rows[0]
    good, bad = (
        ("good" if "good" in first else "sentence_good"),
        ("bad" if "bad" in first else "sentence_bad"),
    )
    assert read == [(row[good], row[bad]) for row in rows]


PLAIN = {
    "a.csv": 'good,bad,paradigm\n"The ""wug"" sleeps.",The wug sleep.,p\nA,B,q\n',
    "a.tsv": 'good\tbad\tid\n"The ""wug"" sleeps."\tThe wug sleep.\t1\nA\tB\t2\n',
    "a.jsonl": '{"good": "A", "bad": "B\\n\\u00e9", "id": "1"}\n'
    '{"good": "C", "bad": "D", "id": "2"}\n',
}
EDIT = st.tuples(
    st.integers(0, 60),
    st.integers(0, 4),
    st.binary(max_size=3) | st.sampled_from([b'"', b",", b"\n", b"\xff"]),
)


@pytest.mark.long
@MANY
@given(
    name=st.sampled_from(sorted(PLAIN)),
    edits=st.lists(EDIT, min_size=1, max_size=3),
    packed=st.booleans(),
)
def test_a_damaged_file_is_still_a_suite_or_one_error(
    folder: Path, name: str, edits: list[tuple[int, int, bytes]], packed: bool
) -> None:
    raw = PLAIN[name].encode()
    raw = gzip.compress(raw, mtime=0) if packed else raw
    for at, dropped, added in edits:
        raw = raw[:at] + added + raw[at + dropped :]
    ref = written(folder, name + ".gz" * packed, raw)
    try:
        suite = loader.load_suite(ref)
    except BenchError as error:
        assert error.location.startswith(ref)
    else:
        assert all(option.text.strip() for item in suite.items for option in item.options)
        assert len({item.id for item in suite.items}) == len(suite.items)


@pytest.mark.long
@MANY
@given(
    st.binary(max_size=80) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_a_suite_or_one_error(folder: Path, raw: bytes) -> None:
    for name in PLAIN:
        ref = written(folder, name, raw)
        with pytest.raises(DataError) as caught:  # `good` and `bad` do not come about by chance
            loader.load_suite(ref)
        assert caught.value.location.startswith(ref)
