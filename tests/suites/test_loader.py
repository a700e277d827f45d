"""A user's own TOML: from its tables and data to items, and every mistake in either named with its
place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, DataError, DeclarationError, UsageError
from antlm_bench.suites import loader
from antlm_bench.suites.task_types import read_declaration_file

HEAD = """
kind = "suite"
name = "mine"
version = "1"
title = "Mine"
licence = "CC0"
citation = "me"
"""
LISTED = """
groups = ["half"]
macro = ["half"]
[item]
each = "answers"
options = [{ context = "{question} ", scored = "{each}" }]
gold = "right"
[labels]
half = "{stem}-{part}"
[rename.half]
all-1 = "first"
[data]
where = ["mine/{file}"]
[data.files]
"all.jsonl" = {}
"""
ROWS = [
    {"question": "Two?", "answers": ["One.", "Two."], "right": 1, "part": 1},
    {"question": "Three?", "answers": ["Three.", "Four.", "Five."], "right": 0, "part": 2},
]


def written(
    folder: Path, body: str = LISTED, rows: list[Any] | None = None, head: str = HEAD
) -> str:
    (folder / "mine").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows))
    (folder / "mine" / "all.jsonl").write_text(lines, encoding="utf-8")
    (folder / "mine.toml").write_text(head + body, encoding="utf-8")
    return str(folder / "mine.toml")


def test_lists_of_answers_become_items_scored_after_their_context(tmp_path: Path) -> None:
    suite = loader.load_suite(written(tmp_path))
    one, two = suite.items
    assert [(o.text, o.span) for o in one.options] == [("Two? One.", (5, 9)), ("Two? Two.", (5, 9))]
    assert (one.gold, one.id, one.labels) == (1, "first_0", {"half": "first"})
    assert (two.gold, two.id, len(two.options)) == (0, "all-2_0", 3)
    assert (suite.groups, suite.macro, suite.metric) == (("half",), ("half",), "accuracy")
    assert loader.list_suite_refs(str(tmp_path / "mine.toml")) == [str(tmp_path / "mine.toml")]


def test_ratings_are_gold_where_the_metric_is_a_correlation(tmp_path: Path) -> None:
    body = LISTED.replace('macro = ["half"]', 'metric = "spearman"')
    suite = loader.load_suite(
        written(tmp_path, body, [{**ROWS[0], "right": 0.25}, {**ROWS[1], "right": 1}])
    )
    assert [item.gold for item in suite.items] == [0.25, 1.0]
    assert all(isinstance(item.gold, float) for item in suite.items)
    for wrong in (1.5, -0.1, "x", None, True, float("nan")):
        with pytest.raises(DataError, match=r"must be a number in 0\.\.1"):
            loader.load_suite(written(tmp_path, body, [{**ROWS[0], "right": wrong}]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"right": 2}, "the index of the right option must be 0..1, not 2"),
        ({"right": "1"}, "must be 0..1, not '1'"),
        ({"right": True}, "must be 0..1, not True"),
        ({"answers": "One."}, "'answers' must be a list"),
        ({"answers": ["One."]}, "gives 1 option;"),
        ({"answers": ["One.", 2]}, "'each' must be a text, not 2 (int)"),
        ({"answers": ["One.", " "]}, "is empty"),
        ({"question": None}, "'question' must be a text"),
        ({"part": 1.5}, "'part' must be a text or a whole number"),
        ({"part": None}, "'part' must be a text or a whole number"),
    ],
)
def test_a_record_that_does_not_fit_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    ref = written(tmp_path, rows=[ROWS[1], {**ROWS[0], **change}])
    with pytest.raises(DataError) as caught:
        loader.load_suite(ref)
    assert caught.value.location == f"{tmp_path / 'mine' / 'all.jsonl'}:2"
    assert says in caught.value.message


def test_a_field_that_is_missing_is_suggested(tmp_path: Path) -> None:
    row = {"qestion" if key == "question" else key: value for key, value in ROWS[0].items()}
    with pytest.raises(DataError, match="the field 'question' is missing") as caught:
        loader.load_suite(written(tmp_path, rows=[row]))
    assert caught.value.hint == "did you mean 'qestion'?"


def test_skipped_rows_do_not_shift_ids(tmp_path: Path) -> None:
    body = LISTED.replace("[labels]", 'skip = { field = "answers", containing = "Four" }\n[labels]')
    suite = loader.load_suite(
        written(tmp_path, body, [ROWS[0], ROWS[1], {**ROWS[0], "question": "2?"}])
    )
    assert [item.id for item in suite.items] == ["first_0", "first_1"]
    with pytest.raises(DataError, match="no items"):
        loader.load_suite(written(tmp_path, body, [ROWS[1]]))
    with pytest.raises(DataError, match="no items"):
        loader.load_suite(written(tmp_path, body, []))


def test_ids_of_one_s_own_are_unique(tmp_path: Path) -> None:
    body = LISTED.replace("[labels]", 'id = "q{part}"\n[labels]')
    assert [item.id for item in loader.load_suite(written(tmp_path, body)).items] == ["q1", "q2"]
    with pytest.raises(DataError, match=r"all\.jsonl:1 has the same id 'q1'"):
        loader.load_suite(written(tmp_path, body, [ROWS[0], ROWS[0]]))


EXPECT = "[expect]\nitems = 3\n[expect.counts]\nfirst = 2\nall-2 = 1\n"


def test_an_incomplete_suite_is_refused_or_noted(tmp_path: Path) -> None:
    ref = written(tmp_path, LISTED + EXPECT)
    with pytest.raises(DataError) as caught:
        loader.load_suite(ref)
    assert caught.value.message == "incomplete: 2 of 3 items (1 of 2 halfs short)"
    assert "first 1/2" in caught.value.hint and "--allow-incomplete" in caught.value.hint
    assert loader.load_suite(ref, allow_incomplete=True).notes == (caught.value.message,)
    assert loader.load_suite(written(tmp_path, LISTED + EXPECT, [*ROWS, ROWS[0]])).notes == ()
    total = (
        LISTED.replace('groups = ["half"]', "").replace('macro = ["half"]', "")
        + "[expect]\nitems = 5\n"
    )
    with pytest.raises(DataError, match=r"incomplete: 2 of 5 items \(short\)"):
        loader.load_suite(written(tmp_path, total))


def test_more_than_the_published_items_is_another_suite(tmp_path: Path) -> None:
    for rows in ([*ROWS, ROWS[1]], [*ROWS, {**ROWS[0], "part": "new"}]):
        with pytest.raises(DataError, match="officially"):
            loader.load_suite(written(tmp_path, LISTED + EXPECT, rows), allow_incomplete=True)


def test_a_collection_is_named_by_its_members() -> None:
    assert loader.list_suite_refs("zero-shot-2024") == ["blimp-filtered", "supplement", "ewok-2025"]
    assert loader.list_suite_refs("some/pairs.csv") == ["some/pairs.csv"]
    with pytest.raises(UsageError, match="is a collection"):
        loader.load_suite("zero-shot-2024")
    with pytest.raises(DeclarationError, match="did you mean 'nano'"):
        loader.list_suite_refs("nanoo")


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ('kind = "suite"', 'kind = "suit"', "kind", "did you mean 'suite'?"),
        ('kind = "suite"', "", "kind", "missing"),
        ('kind = "suite"', "kind = 1", "kind", "unknown kind 1"),
        ('name = "mine"', 'name = "../mine"', "name", "is not a valid name"),
        ("[rename.half]", "[renam.half]", "", "did you mean 'rename'?"),
        ("[rename.half]", "[rename.whole]", "", "`rename` names 'whole'"),
        ('groups = ["half"]', 'groups = ["whole"]', "", "`groups` names 'whole'"),
        ('groups = ["half"]', 'groups = "half"', "groups", "no array"),
        ('macro = ["half"]', 'macro = ["whole"]', "", "`macro` names 'whole'"),
        ('gold = "right"', "gold = -1", "item.gold", "greater than or equal to 0"),
        ('each = "answers"', "", "item", "two options or more"),
        ('each = "answers"', 'split = ";"', "item", "`split` needs `each`"),
        (
            'scored = "{each}" }',
            'scored = "{each}" }, { scored = "x" }',
            "item",
            "must have one entry",
        ),
        ('scored = "{each}"', 'scored = "{each"', "item.options.0.scored", "expected '}'"),
        (
            'scored = "{each}"',
            'scored = "{each.x}"',
            "item.options.0.scored",
            "the name of a field",
        ),
        ('scored = "{each}"', 'scored = "{0}"', "item.options.0.scored", "the name of a field"),
        (
            'scored = "{each}"',
            'scored = "{each!r}"',
            "item.options.0.scored",
            "the name of a field",
        ),
        ('half = "{stem}-{part}"', 'half = "{"', "labels.half", ""),
        ('where = ["mine/{file}"]', 'where = ["../{file}"]', "data.where", "a relative path"),
        (
            'where = ["mine/{file}"]',
            'where = ["/etc/{file}"]',
            "data.where",
            "a relative path",
        ),
        ('where = ["mine/{file}"]', 'where = ["{part}"]', "data.where", "{file}, {stem}, {folder}"),
        ('where = ["mine/{file}"]', "where = []", "data.where", "at least 1"),
        ('"all.jsonl" = {}', '"../all.jsonl" = {}', "data", "must be a relative path"),
        (
            '"all.jsonl" = {}',
            '"all.jsonl" = { sha256 = "abc" }',
            "data.files.all.jsonl.sha256",
            "pattern",
        ),
        ('"all.jsonl" = {}', "", "data.files", "at least 1"),
        (
            "[data]",
            '[data]\nsources = [{ http = "file:///etc/passwd" }]',
            "data.sources.0.http",
            "pattern",
        ),
        (
            "[data]",
            '[data]\nsources = [{ http = "http://x/{part}" }]',
            "data.sources.0",
            "only the field {file}",
        ),
        (
            "[data]",
            "[data]\nsources = [{}]",
            "data.sources.0",
            "a source needs exactly one of",
        ),
        ("[data]", '[data]\nsources = [{ osf = "abcde" }]', "data.sources.0", "used together"),
        ("[data]", '[data]\nsources = [{ hub = "a/b", split = "test" }]', "data", "[data.derive]"),
        ('kind = "suite"', 'kind = "suite"\nreduction = "per-word"', "reduction", "per-token"),
        ("[data]", "[expect]\nitems = 3\ncounts = { a = 1 }\n[data]", "expect", "add up to 1"),
        (
            "[data]",
            "[grammar]\nseed = 1\npairs = 1\nlexicon = {}\nparadigm = []\n[data]",
            "grammar.paradigm",
            "at least 1",
        ),
    ],
)
def test_a_mistake_in_the_tables_is_named(
    tmp_path: Path, old: str, new: str, place: str, says: str
) -> None:
    path = written(tmp_path, *[LISTED.replace(old, new)], head=HEAD.replace(old, new))
    assert (HEAD + LISTED).count(old) == 1
    with pytest.raises(DeclarationError) as caught:
        loader.load_suite(path)
    assert caught.value.location == (f"{path}: {place}" if place else path)
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_a_reduction_is_of_choices(tmp_path: Path) -> None:
    declared = list_declarations("tasks")["reading"].read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(f'reduction = "per-token"\n{declared}')
    with pytest.raises(DeclarationError, match="`reduction` has no effect on the metric delta-r2"):
        read_declaration_file(tmp_path / "mine.toml")


def test_a_correlation_averages_no_groups(tmp_path: Path) -> None:
    declared = list_declarations("tasks")["wug-adj"].read_text(encoding="utf-8")
    assert declared.count("macro = []") == 1
    (tmp_path / "mine.toml").write_text(declared.replace("macro = []", 'macro = ["paradigm"]'))
    with pytest.raises(
        DeclarationError, match="`macro` must be empty: spearman is computed over all items"
    ):
        read_declaration_file(tmp_path / "mine.toml")


def test_a_suite_has_data_or_a_grammar(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"either a \[data\] or a \[grammar\]"):
        loader.load_suite(written(tmp_path, LISTED[: LISTED.index("[data]")]))


# ---- thousands of them
# -------------------------------------------------------------------------------------------

LINES = (HEAD + LISTED + EXPECT).strip().split("\n")
VALUES = '1 -1 1.5 nan true "" "x" "{" "{x}" "a/b" [] ["x"] [1] [[]] {} {x=1} 1979-05-27'
VALUE = st.sampled_from(VALUES.split())
EDIT = st.one_of(
    st.tuples(st.just("drop"), st.integers(0, len(LINES) - 1), st.just("")),
    st.tuples(st.just("twice"), st.integers(0, len(LINES) - 1), st.just("")),
    st.tuples(st.just("value"), st.integers(0, len(LINES) - 1), VALUE),
    st.tuples(st.just("add"), st.integers(0, len(LINES) - 1), st.text(max_size=8)),
)


@pytest.mark.long
@settings(
    max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(EDIT, min_size=1, max_size=3))
def test_a_damaged_declaration_is_a_suite_or_one_error(
    tmp_path: Path, edits: list[tuple[str, int, str]]
) -> None:
    lines = list(LINES)
    for how, at, new in edits:
        key = lines[at].partition("=")[0]
        lines[at] = {
            "drop": "",
            "twice": f"{lines[at]}\n{lines[at]}",
            "value": f"{key}= {new}",
            "add": lines[at] + new,
        }[how]
    path = Path(written(tmp_path, "", [*ROWS, ROWS[0]], head=""))
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        suite = loader.load_suite(str(path), allow_incomplete=True)
    except BenchError as error:
        assert error.location
    else:
        assert suite.items and all(len(item.options) >= 2 for item in suite.items)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_line_gives_a_declaration_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = list_declarations("tasks")[
        data.draw(st.sampled_from(["wug-past", "comps", "ewok-2026", "nano", "zero-shot-fast"]))
    ]
    lines = source.read_text(encoding="utf-8").split("\n")
    at = data.draw(st.integers(0, len(lines) - 1))
    key = lines[at].partition("=")[0]
    lines[at] = data.draw(
        st.sampled_from(
            ["", lines[at].replace('"', "", 1), f"{key} = 1", f"{key}x = [1]", "[data]"]
        )
    )
    path = tmp_path_factory.getbasetemp() / "changed.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        read_declaration_file(path)
    except DeclarationError as error:
        assert error.location.startswith(str(path))
