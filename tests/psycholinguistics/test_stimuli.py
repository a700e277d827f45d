"""Stimuli files of every format: texts, words and regions, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.suites import stimuli


def write_file(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read_units(path: Path, by: str = "word", **columns: str):
    return [
        (a.option.text[slice(*a.option.span)], a.row)
        for a in stimuli.split_into_units(stimuli.read_stimuli(path, columns), by)
    ]


LONG = """item,condition,region,text,list
1,gp,noun,The horse,A
1,gp,verb,raced past,B
1,gp,empty,,B
1,gp,crit,fell.,C
1,ok,crit,It fell.,A
"""


def test_a_text_file_holds_a_sentence_per_line(tmp_path):
    path = write_file(tmp_path, "s.txt", "\ufeffThe cat sleeps.\n\n  No  dog \n")
    assert read_units(path) == [
        ("The", {"item": "1", "word_index": 1, "word": "The"}),
        (" cat", {"item": "1", "word_index": 2, "word": "cat"}),
        (" sleeps.", {"item": "1", "word_index": 3, "word": "sleeps."}),
        ("No", {"item": "3", "word_index": 1, "word": "No"}),
        ("  dog", {"item": "3", "word_index": 2, "word": "dog"}),
    ]


def test_rows_of_regions_make_texts_and_carry_their_columns(tmp_path):
    rows = [row for _, row in read_units(write_file(tmp_path, "r.csv", LONG))]
    assert [
        (r["item"], r["condition"], r["region"], r["word_index"], r["word"], r["list"])
        for r in rows
    ] == [
        ("1", "gp", "noun", 1, "The", "A"),
        ("1", "gp", "noun", 2, "horse", "A"),
        ("1", "gp", "verb", 3, "raced", "B"),
        ("1", "gp", "verb", 4, "past", "B"),
        ("1", "gp", "crit", 5, "fell.", "C"),
        ("1", "ok", "crit", 1, "It", "A"),
        ("1", "ok", "crit", 2, "fell.", "A"),
    ]
    regions = read_units(write_file(tmp_path, "r.csv", LONG), "region")
    assert [(text, row["region"]) for text, row in regions] == [
        ("The horse", "noun"), (" raced past", "verb"), (" fell.", "crit"), ("It fell.", "crit"),
    ]  # fmt: skip
    sentences = read_units(write_file(tmp_path, "r.csv", LONG), "sentence")
    assert [(text, row["list"]) for text, row in sentences] == [
        ("The horse raced past fell.", None),
        ("It fell.", "A"),
    ]


def test_a_row_per_sentence_may_name_its_critical_part(tmp_path):
    path = write_file(
        tmp_path,
        "w.tsv",
        "stimulus\tregion\tfreq\nThe cat has slept here.\thas slept\t3\nA dog.\t\t4\n",
    )
    rows = read_units(path, sentence="stimulus")
    assert [(text, row["region"], row["freq"]) for text, row in rows] == [
        ("The", "", "3"),
        (" cat", "", "3"),
        (" has", "has slept", "3"),
        (" slept", "has slept", "3"),
        (" here.", "", "3"),
        ("A", "", "4"),
        (" dog.", "", "4"),
    ]
    assert [text for text, _ in read_units(path, "region", sentence="stimulus")] == [" has slept"]


def test_syntaxgym_names_its_regions(tmp_path):
    suite = {
        "region_meta": {"1": "np"},
        "predictions": [],
        "items": [
            {
                "item_number": 7,
                "conditions": [
                    {
                        "condition_name": "a",
                        "regions": [
                            {"region_number": 1, "content": "The cat"},
                            {"region_number": 2, "content": ""},
                            {"region_number": 3, "content": "sleeps ."},
                        ],
                    }
                ],
            }
        ],
    }
    rows = [row for _, row in read_units(write_file(tmp_path, "g.json", json.dumps(suite)))]
    assert [(r["item"], r["condition"], r["region"], r["word"]) for r in rows] == [
        ("7", "a", "np", "The"),
        ("7", "a", "np", "cat"),
        ("7", "a", "3", "sleeps"),
        ("7", "a", "3", "."),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "item,stimulus\n1,x y\n", "a.csv:2: the column 'sentence' is missing"),
        ("a.csv", "sentence\n", "0 texts"),
        ("a.txt", "\n \n", "0 texts"),
        ("a.txt", b"caf\xe9\n", "a.txt:1: not UTF-8"),
        ("a.csv", "sentence,item\n  ,1\n", "a.csv:2: 'sentence' is empty"),
        (
            "a.csv",
            "sentence,region\nA cat.,dog\n",
            "a.csv:2: the sentence contains the region 'dog' 0 times",
        ),
        ("a.csv", "sentence,region\nA cat a cat.,cat\n", "the region 'cat' 2 times, not once"),
        ("a.csv", "item,region,text\n1,a,\n1,b, \n", "'text' is empty in all rows"),
        (
            "a.csv",
            "item,region,text\n1,a,x\n1,b,y\n1,a,z\n",
            "a.csv:4: item '1' has the region 'a' again",
        ),
        (
            "a.csv",
            "item,region,text\n1,a,x\n2,a,y\n1,b,z\n",
            "a.csv:4: item '1' has other rows at",
        ),
        ("a.csv", "sentence,word\nA cat.,x\n", "the result has a column 'word', too"),
        ("a.csv", 'sentence\n"A cat.\n', "not a table"),
        ("a.docx", "x", "unknown file format"),
        ("a.json", "[1", "not JSON"),
        ("a.json", "{}", "the list `items` is missing"),
    ],
)
def test_errors_in_a_file_name_the_location(tmp_path, name, text, message):
    with pytest.raises(DataError) as caught:
        stimuli.read_stimuli(write_file(tmp_path, name, text))
    assert message in str(caught.value)


def test_options_that_cannot_apply_are_usage_errors(tmp_path):
    path = write_file(tmp_path, "a.csv", "sentence\nA cat.\n")
    for call in (
        lambda: stimuli.read_stimuli(path, {"phrase": "x"}),
        lambda: stimuli.split_into_units(stimuli.read_stimuli(path), "region"),
        lambda: stimuli.split_into_units(stimuli.read_stimuli(path), "letter"),
    ):
        with pytest.raises(UsageError):
            call()
    with pytest.raises(BenchError, match="the column 'x' is missing"):
        stimuli.read_stimuli(path, {"sentence": "x"})
