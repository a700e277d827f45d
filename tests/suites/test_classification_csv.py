"""A set of one's own, a train and a scored file, as a task; every way such a table can be odd is an
error.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from antlm_bench.declarations import find_declaration
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.suites.task_types import read_declaration_file


def own(
    folder: Path,
    train: str,
    valid: str = "text,label\nfine,a\n",
    ending: str = "csv",
    columns: dict[str, str] | None = None,
) -> ClassificationTask:
    for name, text in (("train", train), ("valid", valid)):
        (folder / f"{name}.{ending}").write_text(text)
    return classification_loader.load_task(
        str(folder / f"train.{ending}"),
        "train",
        valid=str(folder / f"valid.{ending}"),
        columns=columns,
    )


def test_a_table_of_texts_and_labels_is_a_task(tmp_path: Path) -> None:
    task = own(tmp_path, "text,text2,label\nA,B,yes\nC,D,no\n", "text,text2,label\nE,F,no\n")
    assert (
        classification_loader.list_tasks(str(tmp_path / "train.csv")) == ["train"]
        and classification_loader.list_presets("train.csv") == {}
    )
    assert (task.full_name, task.metric, task.classes) == ("train", "accuracy", ("no", "yes"))
    assert [(one.first, one.second, one.gold) for one in task.train] == [
        ("A", "B", 1),
        ("C", "D", 0),
    ]
    assert (task.valid[0].id, task.valid[0].gold, task.train[0].id) == (
        "train_0",
        0,
        "train.train_0",
    )
    shipped = read_declaration_file(find_declaration("tasks", "glue-2025"))
    assert isinstance(shipped, ClassificationSpec) and task.training == shipped.training


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["b", "B", "10"], ("10", "B", "b")),
        (["x", "y"], ("x", "y")),
    ],
)
def test_classes_are_the_labels_in_order(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...]
) -> None:
    rows = "".join(f"t,{label}\n" for label in labels * 3)
    task = own(tmp_path, "text,label\n" + rows, f"text,label\nv,{labels[0]}\n")
    assert task.classes == classes and task.classes[task.valid[0].gold] == labels[0]


def test_json_labels_are_words_numbers_or_truth(tmp_path: Path) -> None:
    def lines(*labels: object) -> str:
        return "".join(
            json.dumps({"text": "t", "label": label, "id": i}) + "\n"
            for i, label in enumerate(labels)
        )

    with pytest.raises(DataError, match="'id' must be a text, not 0"):
        own(tmp_path, lines(True, False), lines(True), "jsonl")
    rows = lines(True, False).replace('"id": 0', '"id": "p"').replace('"id": 1', '"id": "q"')
    task = own(tmp_path, rows, rows, "jsonl")
    assert task.classes == ("false", "true") and [one.id for one in task.valid] == ["p", "q"]
    with pytest.raises(
        DataError, match=r"train.jsonl:2: the label must be a word or a whole number, not 0.5"
    ):
        own(tmp_path, lines(1, 0.5), lines(1), "jsonl")


def test_packed_and_tab_separated_files_are_read(tmp_path: Path) -> None:
    for name, text in (
        ("t.tsv.gz", "text\tlabel\na\tx\nb\ty\n"),
        ("v.tsv.gz", "text\tlabel\nc\ty\n"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    ref = str(tmp_path / "t.tsv.gz")
    assert classification_loader.list_tasks(ref) == ["t"]
    assert (
        classification_loader.load_task(ref, "t", valid=str(tmp_path / "v.tsv.gz")).valid[0].gold
        == 1
    )


OWN_BAD = [
    (
        "text,label\na,x\nb,y\n",
        "text,label\nc,z\n",
        r"valid.csv:2: unknown label 'z'\n.*labels of train.csv are x, y",
    ),
    (
        "text,label\na,x\nb,x\n",
        "text,label\nc,x\n",
        r"train.csv: one class only: every label is 'x'",
    ),
    ("text,label\n", "text,label\nc,x\n", "train.csv: 0 rows"),
    ("text,label\na,x\nb,y\n", "text,label\n", "valid.csv: 0 rows"),
    ("", "", "train.csv: 0 rows"),
    (
        "text,lable\na,x\n",
        "text,label\nc,x\n",
        r"train.csv:2: the column 'label' is missing\n.*did you mean 'lable'",
    ),
    ("txt,label\na,x\n", "text,label\nc,x\n", "the column 'text' is missing\n.*did you mean 'txt'"),
    ("text,label\na,x\n,y\n", "text,label\nc,x\n", r"train.csv:3: the text of '\{text\}' is empty"),
    (
        "text,text2,label\na,b,x\nc,,y\n",
        "text,text2,label\nc,d,x\n",
        r"train.csv:3: the text of '\{text2\}' is empty",
    ),
    ("text,text2,label\na,b,x\nc,d,y\n", "text,label\nc,x\n", "the field 'text2' is missing"),
    (
        "text,label\na,2\nb,1\n",
        "text,label\nc,0\n",
        r"valid.csv:2: unknown label '0'\n.*labels of train.csv are 1, 2",
    ),
    (
        "text,label\na,no\nb,yes\n",
        "text,label\nc,1\n",
        r"valid.csv:2: unknown label '1'\n.*are no, yes",
    ),
    ("text,label\na,\nb,\n", "text,label\nc,0\n", "train.csv: no row has a label"),
    (
        "text,label\na,0\nb,1\n",
        "text,label\nc,-1\nd,-1\n",
        r"valid.csv: none of 2 rows has a label\n.*test split",
    ),
    ("text,label\na,x,y\n", "text,label\nc,x\n", "train.csv:2: 3 fields, but the header has 2"),
    (
        "text,label\n" + "".join(f"t,0.{i}\n" for i in range(10, 30)),
        "text,label\nc,x\n",
        "20 classes in 20 rows",
    ),
]


@pytest.mark.parametrize(("train", "valid", "says"), OWN_BAD)
def test_a_bad_table_is_named_by_file_and_line(
    tmp_path: Path, train: str, valid: str, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        own(tmp_path, train, valid)


@pytest.mark.parametrize("decimals", ["", ".5"])
def test_ratings_are_no_classes(tmp_path: Path, decimals: str) -> None:
    """Twenty different numbers may be classes, twenty-one are ratings; words may be as many as
    there are.
    """
    rows = [f"t,{number}{decimals}\n" for number in range(21)] * 3
    with pytest.raises(DataError, match="21 distinct numbers as labels, more than 20"):
        own(tmp_path, "text,label\n" + "".join(rows), "text,label\nc,1\n")
    twenty = [row for row in rows if not row.startswith("t,20")]
    assert (
        len(own(tmp_path, "text,label\n" + "".join(twenty), f"text,label\nc,1{decimals}\n").classes)
        == 20
    )
    words = [row.replace(",", ",class_") for row in rows]
    assert (
        len(
            own(
                tmp_path, "text,label\n" + "".join(words), f"text,label\nc,class_1{decimals}\n"
            ).classes
        )
        == 21
    )


@pytest.mark.parametrize(
    ("labels", "label", "gold"), [("21", "1", 0), ("21", "2", 1), ("10", "1", 1), ("35", "5", 1)]
)
def test_a_label_of_a_table_is_a_name_and_no_position(
    tmp_path: Path, labels: str, label: str, gold: int
) -> None:
    rows = "".join(f"t,{name}\n" for name in labels)
    task = own(tmp_path, "text,label\n" + rows, f"text,label\nv,{label}\n")
    assert (task.valid[0].gold, task.classes[gold]) == (gold, label)


def test_minus_one_is_a_class_only_if_train_has_it(tmp_path: Path) -> None:
    task = own(tmp_path, "text,label\na,0\nb,1\n", "text,label\nc,-1\nd,1\n")
    assert task.classes == ("0", "1") and [one.id for one in task.valid] == ["train_1"]
    assert task.notes[0] == "incomplete: 1 of 2 scored rows have no label and are left out"
    task = own(
        tmp_path, "text,label\n" + "a,-1\nb,0\nc,1\n" * 2 + "d,\n", "text,label\nc,-1\nd,1\n"
    )
    assert task.classes == ("-1", "0", "1") and [one.gold for one in task.valid] == [0, 2]
    assert task.notes[0].startswith("the label -1 is read as a class")
    assert task.notes[1] == "incomplete: 1 of 7 train rows have no label and are left out"


STRAY = [
    ('"Yes", he said.', '"Yes", he said.'),
    ('He said "no".', 'He said "no".'),
    ('"Quite so', '"Quite so'),
    ('"Quite so."', '"Quite so."'),
    ("it''s \"", "it''s \""),
]


@pytest.mark.parametrize(("written", "text"), STRAY)
def test_quotes_of_an_unquoted_tsv_are_text(tmp_path: Path, written: str, text: str) -> None:
    """GLUE's files are not quoted, and a quote may stand anywhere in a field."""
    rows = (
        f'text\tlabel\na dog\tx\n{written}\ty\nends here"\tx\n'
        if written == '"Quite so'
        else f"text\tlabel\na\tx\n{written}\ty\n"
    )
    task = own(tmp_path, rows, rows, "tsv")
    assert [one.first for one in task.train][1] == text


def test_a_tsv_that_is_quoted_is_read_so(tmp_path: Path) -> None:
    """As pandas (minimal), R (all texts), and spreadsheets write it."""
    minimal = 'text\tlabel\n"He said ""no""."\tx\n"a\ttab"\ty\n'
    assert [one.first for one in own(tmp_path, minimal, minimal, "tsv").train] == [
        'He said "no".',
        "a\ttab",
    ]
    quoted = '"text"\t"label"\n"a dog"\t"x"\n"a cat"\t"y"\n'
    assert [one.first for one in own(tmp_path, quoted, quoted, "tsv").train] == ["a dog", "a cat"]


def test_a_csv_stays_quoted(tmp_path: Path) -> None:
    task = own(tmp_path, 'text,label\n"a, b",x\n"He said ""no"".",y\n', "text,label\nc,x\n")
    assert [one.first for one in task.train] == ["a, b", 'He said "no".']
    with pytest.raises(DataError, match=r"train.csv:2: not a table"):
        own(tmp_path, 'text,label\n"a" b,x\nc,y\n', "text,label\nc,x\n")


def test_a_table_alone_cannot_be_scored(tmp_path: Path) -> None:
    ref = str(tmp_path / "train.csv")
    with pytest.raises(UsageError, match=r"--valid: .* the file that is scored is missing"):
        classification_loader.load_task(ref, "train")
    with pytest.raises(UsageError, match=r"--valid: 'valid.txt' has an unknown extension"):
        classification_loader.load_task(ref, "train", valid="valid.txt")
    with pytest.raises(DataError, match="cannot be read"):
        classification_loader.load_task(ref, "train", valid=ref)
    with pytest.raises(UsageError, match="has no task 'other'"):
        own(tmp_path, "text,label\na,x\nb,y\n", "text,label\nc,x\n")
        classification_loader.load_task(ref, "other", valid=str(tmp_path / "valid.csv"))


def test_a_column_of_groups_keeps_rows_together(tmp_path: Path) -> None:
    task = own(tmp_path, "text,label,group\na,x,p\nb,y,p\nc,x,q\n", "text,label,group\nd,x,r\n")
    assert sorted(Counter(one.group for one in task.train).values()) == [1, 2]


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    train = "Sentence,verdict,label\nA,yes,1\nB,no,2\nC,yes,3\n"
    columns = {"text": "Sentence", "label": "verdict"}
    task = own(tmp_path, train, "Sentence,verdict\nE,no\n", columns=columns)
    assert task.classes == ("no", "yes")
    assert [(row.first, row.gold) for row in (*task.train, *task.valid)] == [
        ("A", 1),
        ("B", 0),
        ("C", 1),
        ("E", 0),
    ]


def test_a_wrong_name_of_a_column_is_an_error(tmp_path: Path) -> None:
    train = "sentence,label\nA,yes\nB,no\n"
    with pytest.raises(DataError, match=r"train.csv:2: .*'text' is missing\n.*--columns text="):
        own(tmp_path, train)
    with pytest.raises(DataError, match="'Sentence' is missing"):
        own(tmp_path, train, columns={"text": "Sentence"})
    with pytest.raises(UsageError, match="unknown column 'txt'"):
        own(tmp_path, train, columns={"txt": "sentence"})
    with pytest.raises(UsageError, match="declares its columns"):
        classification_loader.load_task("glue-2025", "rte", columns={"text": "sentence"})
