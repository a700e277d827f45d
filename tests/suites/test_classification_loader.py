"""Classification suites as examples: real files give the published counts, odd ones an error with
file and line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from classification_suites import DECLARATION, SHIPPED, write_declaration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antlm_bench.commands import data
from antlm_bench.declarations import find_declaration
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import classification_loader, sources

Record = dict[str, Any]
TRAIN: list[Record] = [{"text": f"wug {number}", "label": number % 2} for number in range(10)]
VALID: list[Record] = [{"text": "a dax", "label": "good"}, {"text": "a blick ", "label": 0}]


def written(
    folder: Path, train: list[Record] = TRAIN, valid: list[Record] = VALID, body: str = DECLARATION
) -> str:
    for split, rows in (("train", train), ("valid", valid)):
        (folder / f"mood.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(write_declaration(folder, body))


# ---- the real files
# ----------------------------------------------------------------------------------------------

HERE = [
    pytest.param(suite, task, id=f"{suite}-{task}")
    for suite in ("glue-2025", "glue-2024")
    for task in SHIPPED[suite].task
    if task != "qnli"
]
SMALLER = {
    ("boolq", "train"): 1635,
    ("mnli", "train"): 10_000,
    ("mnli-mm", "train"): 10_000,
    ("qqp", "train"): 10_000,
}


@pytest.mark.long
@pytest.mark.parametrize(("suite", "name"), HERE)
def test_a_task_loads_as_its_files_say(real_data: Path, suite: str, name: str) -> None:
    task, spec = classification_loader.load_task(suite, name), SHIPPED[suite]
    origin = task.trains_with or name
    for split, made in (("train", task.train), ("valid", task.valid)):
        of = spec.task[origin if split == "train" else name]
        file = str(of.train if split == "train" else of.valid)
        path = real_data / "glue" / f"{file}.gz"
        if not path.exists():
            path = real_data / "glue" / f"{name}.train_substitute.jsonl.gz"
        records = [
            json.loads(line)
            for line in gzip.decompress(path.read_bytes()).decode().split("\n")
            if line
        ]
        assert len(made) == len(records) == SMALLER.get((name, split), spec.data.files[file].rows)
        assert [one.gold for one in made] == [record["label"] for record in records]
        assert {one.gold for one in made} == set(range(len(task.classes)))
        start = f"{name}_" if split == "valid" else f"{origin}.train_"
        assert [one.id for one in made] == [f"{start}{number}" for number in range(len(made))]
        for template, which in ((of.first, "first"), (of.second, "second")):
            assert [getattr(one, which) for one in made] == [
                template.format_map(r).strip() for r in records
            ]
    assert (
        task.full_name == f"{suite}.{name}" and task.select == "held-out" and len(task.digest) == 64
    )


@pytest.mark.long
def test_every_file_at_hand_is_known_by_its_hash(real_data: Path) -> None:
    known = set()
    for name in ("glue-2025", "glue-2024"):
        spec = SHIPPED[name]
        known |= {file.sha256 for file in spec.data.files.values()}
        known |= {one.sha256 for task in spec.task.values() for one in task.substitutes}
    for path in (real_data / "glue").glob("*.jsonl.gz"):
        assert hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() in known, path.name


@pytest.mark.long
@pytest.mark.usefixtures("real_data")
def test_what_is_not_the_official_train_set_is_said() -> None:
    noted = {
        name: " ".join(classification_loader.load_task("glue-2025", name).notes)
        for name in SHIPPED["glue-2025"].task
    }
    assert noted["boolq"].startswith("boolq: trained on a substitute, the 1,635 rows")
    assert noted["boolq"].endswith("not the official train set (9,427 rows)")
    assert noted["multirc"].startswith("multirc: trained on a substitute, SuperGLUE's train set")
    assert not any(note for name, note in noted.items() if name not in ("boolq", "multirc"))
    assert "10,000 rows of BabyLM 2025" in " ".join(
        classification_loader.load_task("glue-2024", "mnli").notes
    )
    assert classification_loader.load_task("glue-2024", "cola").notes == (
        "5 of 522 scored texts also stand in the train set",
    )
    assert "genres are others" in classification_loader.load_task("glue-2024", "mnli-mm").notes[0]


@pytest.mark.usefixtures("real_data")
def test_a_train_set_that_nobody_has_is_asked_for() -> None:
    with pytest.raises(DataError, match=r"qnli.train.jsonl of 'glue-2024' is absent") as caught:
        classification_loader.load_task("glue-2024", "qnli")
    assert "osf.io/ad7qg" in caught.value.hint


@pytest.mark.long
@pytest.mark.usefixtures("real_data")
def test_the_answers_to_one_paragraph_are_one_group() -> None:
    task = classification_loader.load_task("glue-2025", "multirc")
    groups: dict[str, set[str]] = {}
    for one in task.train:
        groups.setdefault(one.group, set()).add(one.second)
    assert len(groups) > 400 and all(len(texts) == 1 for texts in groups.values())
    assert all(re.fullmatch("[0-9a-f]{16}", group) for group in groups)  # never the text itself
    assert not {one.group for one in task.valid} & set(groups)


@pytest.mark.long
@pytest.mark.usefixtures("real_data")
def test_mnli_mm_trains_on_mnli_and_is_scored_on_its_own() -> None:
    mm, mnli = (
        classification_loader.load_task("glue-2024", "mnli-mm"),
        classification_loader.load_task("glue-2024", "mnli"),
    )
    assert mm.train == mnli.train and mm.training == mnli.training and mm.trains_with == "mnli"
    assert mm.valid != mnli.valid and mm.digest != mnli.digest


@pytest.mark.long
@pytest.mark.usefixtures("real_data")
def test_the_files_are_found_and_verified_as_those_of_any_suite() -> None:
    rows = {row["file"]: row["state"] for row in data.list_file_status(["glue-2025"])}
    assert len(rows) == 14 and [file for file, state in rows.items() if state == "absent"] == [
        "boolq.train.jsonl"
    ]
    states = Counter(row.state for row in sources.verify_files(SHIPPED["glue-2024"]))
    # qnli's and boolq's train are absent; mnli's and qqp's are those of 2025; multirc's and sst2's
    # have no known hash
    assert states == {"verified": 15, "absent": 2, "incomplete": 2, "complete": 2}
    assert {row["suite"] for row in data.list_file_status(["babylm-2024"])} > {
        "glue-2024",
        "supplement",
    }
    with pytest.raises(
        DataError, match=r"qnli.train.jsonl of 'glue-2024' is absent and ANTLM_BENCH_OFFLINE"
    ):
        sources.fetch_files(SHIPPED["glue-2024"])


# ---- substitutes
# -------------------------------------------------------------------------------------------------


def test_a_substitute_replaces_only_an_absent_file(tmp_path: Path) -> None:
    raw = "".join(json.dumps(row) + "\n" for row in TRAIN).encode()
    sha256 = hashlib.sha256(raw).hexdigest()
    told = f'file = "stand-in.jsonl", sha256 = "{sha256}", rows = 10, says = "a stand-in"'
    body = DECLARATION.replace(
        'first = "{text}"', f'first = "{{text}}"\nsubstitutes = [{{ {told} }}]', 1
    )
    ref = written(
        tmp_path, body=body.replace('"mood.train.jsonl" = {}', '"mood.train.jsonl" = { rows = 11 }')
    )
    official = tmp_path / "mood.train.jsonl"

    assert classification_loader.load_task(ref, "mood").notes == (
        "a stand-in",
    )  # by the official name, known by its hash
    official.rename(tmp_path / "stand-in.jsonl")
    assert classification_loader.load_task(ref, "mood").notes == ("a stand-in",)
    official.write_bytes(raw + b'{"text": "one more", "label": 1}\n')
    task = classification_loader.load_task(ref, "mood")
    assert task.notes == () and len(task.train) == 11
    official.write_bytes(raw + raw)  # there, and bad: not hidden by what stands in
    with pytest.raises(DataError, match="20 rows, officially 11"):
        classification_loader.load_task(ref, "mood")
    official.unlink()
    (tmp_path / "stand-in.jsonl").write_bytes(raw + raw)
    with pytest.raises(DataError, match="wrong hash"):
        classification_loader.load_task(ref, "mood")
    (tmp_path / "stand-in.jsonl").unlink()
    with pytest.raises(DataError, match=r"mood.train.jsonl of 'mine' is absent"):
        classification_loader.load_task(ref, "mood")


# ---- one's own declaration
# ---------------------------------------------------------------------------------------


def test_labels_are_indices_or_names_and_texts_are_stripped(tmp_path: Path) -> None:
    task = classification_loader.load_task(written(tmp_path), "mood")
    assert [(one.id, one.first, one.gold) for one in task.valid] == [
        ("mood_0", "a dax", 1),
        ("mood_1", "a blick", 0),
    ]
    assert task.train[3].id == "mood.train_3" and task.train[3].labels == {"task": "mood"}
    assert (task.metric, task.select, task.held_out, task.notes) == ("f1", "held-out", 0.1, ())
    assert (
        classification_loader.load_task(written(tmp_path), "mood", preset="loud").select == "valid"
    )


BAD = [
    ({"text": "x", "label": 2}, r"mood.valid.jsonl:2: unknown label 2\n.*0 \(bad\), 1 \(good\)"),
    ({"text": "x", "label": -2}, "unknown label -2"),
    ({"text": "x", "label": True}, "unknown label True"),
    ({"text": "x", "label": "goood"}, "unknown label 'goood'"),
    ({"text": "x", "label": 0.5}, "unknown label 0.5"),
    (
        {"text": "x", "lable": 1},
        r"mood.valid.jsonl:2: the field 'label' is missing\n.*did you mean 'lable'",
    ),
    ({"text": "", "label": 1}, r"mood.valid.jsonl:2: the text of '\{text\}' is empty"),
    ({"text": " \n ", "label": 1}, "is empty"),
    ({"text": 3, "label": 1}, "'text' must be a text, not 3"),
    ({"text": "a\0b", "label": 1}, "NUL"),
    ({"text": "\ud800", "label": 1}, "half a surrogate pair"),
]


@pytest.mark.parametrize(("row", "says"), BAD)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: Record, says: str) -> None:
    with pytest.raises(DataError, match=says):
        classification_loader.load_task(written(tmp_path, valid=[VALID[0], row]), "mood")


@pytest.mark.parametrize("label", [-1, "-1", None, "", " ", float("nan")])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, label: object) -> None:
    """GLUE's files write -1. Ids stay those of the rows in their file."""
    hidden = {"text": "a wug", "label": label}
    train = [TRAIN[0], hidden, *TRAIN[1:]]
    task = classification_loader.load_task(written(tmp_path, train, [hidden, *VALID]), "mood")
    assert [one.id for one in task.valid] == ["mood_1", "mood_2"] and len(task.train) == len(TRAIN)
    assert task.notes == (
        "incomplete: 1 of 11 train rows have no label and are left out",
        "incomplete: 1 of 3 scored rows have no label and are left out",
    )


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_without_any_label_is_refused(tmp_path: Path, split: str) -> None:
    hidden = [{"text": "a wug", "label": -1}] * 3
    with pytest.raises(
        DataError, match=rf"mood.{split}.jsonl: none of 3 rows has a label\n.*test split"
    ):
        classification_loader.load_task(written(tmp_path, **{split: hidden}), "mood")


@pytest.mark.parametrize(
    ("label", "gold"), [(1, 1), ("1", 1), (0, 0), ("0", 0), ("2", None), (2, None), (-2, None)]
)
def test_names_that_are_numbers_are_names_and_no_positions(
    tmp_path: Path, label: object, gold: int | None
) -> None:
    """Label 1 is the class called 1, in whatever order the classes stand."""
    numbers = DECLARATION.replace(
        'classes = ["bad", "good"]',
        'classes = ["0", "1"]' if gold is not None else 'classes = ["1", "0"]',
    )
    ref = written(tmp_path, valid=[VALID[0] | {"label": label}], body=numbers)
    if gold is None:
        with pytest.raises(DataError, match=r"unknown label .*\n.*labels are 1, 0"):
            classification_loader.load_task(ref, "mood")
        return
    assert classification_loader.load_task(ref, "mood").valid[0].gold == gold
    turned = numbers.replace('classes = ["0", "1"]', 'classes = ["1", "0"]')
    assert (
        classification_loader.load_task(
            written(tmp_path, valid=[VALID[0] | {"label": label}], body=turned), "mood"
        )
        .valid[0]
        .gold
        == 1 - gold
    )


def test_what_cannot_be_learnt_of_or_scored_is_refused(tmp_path: Path) -> None:
    alike = [{"text": "x", "label": 1}] * 3
    with pytest.raises(DataError, match=r"mood.train.jsonl: one class only: every label is 'good'"):
        classification_loader.load_task(written(tmp_path, train=alike), "mood")
    with pytest.raises(DataError, match=r"mood.valid.jsonl: 0 rows"):
        classification_loader.load_task(written(tmp_path, valid=[]), "mood")
    with pytest.raises(UsageError, match=r"--limit-train: one class only.* in 1 of 10 rows"):
        classification_loader.load_task(written(tmp_path), "mood", limit_train=1)
    assert classification_loader.load_task(written(tmp_path, valid=alike), "mood").notes == (
        "all scored rows are of one class",
    )
    mine = DECLARATION.replace('first = "{text}"', 'first = "{text}"\nid = "{name}"')
    named = [{**row, "name": f"n{number}"} for number, row in enumerate(TRAIN)]
    assert (
        classification_loader.load_task(written(tmp_path, named, named, mine), "mood").valid[1].id
        == "n1"
    )
    with pytest.raises(DataError, match=r"mood.valid.jsonl:2: an earlier row has the id 'n0'"):
        classification_loader.load_task(written(tmp_path, named, [named[0]] * 2, mine), "mood")


ASKED = [
    ({"preset": "lowd"}, "--preset: mine has no preset 'lowd'\n.*did you mean 'loud'"),
    ({"overrides": ["lr"]}, "--set: 'lr' is not key=value"),
    ({"overrides": ["ler=1e-3"]}, "--set: unknown key 'ler': did you mean 'lr'"),
    ({"overrides": ["lr=fast"]}, "--set: lr: Input should be a valid number"),
    ({"overrides": ["lr=-1.0"]}, "--set: lr: Input should be greater than 0"),
    ({"overrides": ["batch=2.5"]}, "--set: batch: "),
    ({"limit_train": 0}, "--limit-train: limit is 0"),
    ({"limit_valid": -1}, "--limit-valid: limit is -1"),
    ({"valid": "other.csv"}, "--valid: .* declares the file that is scored"),
]


@pytest.mark.parametrize(("options", "says"), ASKED)
def test_what_cannot_be_asked_is_a_usage_error(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=f"(?s){says}"):
        classification_loader.load_task(written(tmp_path), "mood", **options)


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--task: mine has no task 'moot'\n  hint: did you mean 'mood'"
    ):
        classification_loader.load_task(written(tmp_path), "moot")


def test_changes_lie_on_top_of_the_preset(tmp_path: Path) -> None:
    changes = ["lr=3e-5", "schedule=cosine", "floor=0.1", "clip=0", "betas=[0.9, 0.98]"]
    training = classification_loader.load_task(
        written(tmp_path), "mood", preset="loud", overrides=changes
    ).training
    assert (training.lr, training.schedule, training.floor, training.clip) == (
        3e-5,
        "cosine",
        0.1,
        None,
    )
    assert training.betas == (0.9, 0.98) and training.batch == 4 and training.epochs == 3


@pytest.mark.long
@given(rows=st.integers(2, 60), limit=st.integers(2, 80))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_limit_takes_evenly_spaced_rows_under_their_own_ids(
    tmp_path: Path, rows: int, limit: int
) -> None:
    train = [{"text": f"wug {number}", "label": number % 2} for number in range(rows)]
    ref = written(tmp_path, train, train)
    task, full = (
        classification_loader.load_task(ref, "mood", limit_valid=limit),
        classification_loader.load_task(ref, "mood"),
    )
    expected = [i * rows // limit for i in range(limit)] if limit < rows else list(range(rows))
    assert [one.id for one in task.valid] == [f"mood_{row}" for row in expected]
    assert task.valid == tuple(full.valid[row] for row in expected) and len(set(expected)) == len(
        expected
    )
    gaps = {after - before for before, after in pairwise(expected)}
    assert max(gaps) - min(gaps) <= 1 and expected[0] == 0
    assert len(task.valid) == min(limit, rows)
    assert (task.digest != full.digest) == (limit < rows)
    assert (task.notes[0] == f"limit: {limit} of {rows} scored rows, evenly spaced") == (
        limit < rows
    )
    assert (
        f"{min(limit, rows)} of {min(limit, rows)} scored texts also stand in the train set"
        in task.notes
    )


CELL = st.text("ab \U0001f600\u00e9\u2028", min_size=1, max_size=4).filter(str.strip)
ROW = st.fixed_dictionaries({"text": CELL, "label": st.integers(0, 1)})


@pytest.mark.long
@given(
    one=st.lists(ROW, min_size=1, max_size=3),
    other=st.lists(ROW, min_size=1, max_size=3),
    spare=st.text(max_size=3),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_digests_are_equal_where_the_questions_are(
    tmp_path: Path, one: list[Record], other: list[Record], spare: str
) -> None:
    def digest(valid: list[Record], body: str = DECLARATION) -> str:
        return classification_loader.load_task(
            written(tmp_path, valid=valid, body=body), "mood"
        ).digest

    def asked(rows: list[Record]) -> list[tuple[str, int]]:
        return [(row["text"].strip(), row["label"]) for row in rows]

    assert (digest(one) == digest(other)) == (asked(one) == asked(other))
    assert digest([{**row, "unread": spare} for row in one]) == digest(
        one
    )  # what no template reads changes nothing
    assert digest(one, DECLARATION.replace("epochs = 10", "epochs = 11")) == digest(
        one
    )  # settings are no question
    assert digest(one, DECLARATION.replace('metric = "f1"', 'metric = "mcc"')) != digest(one)


def test_a_digest_sees_train_and_groups(tmp_path: Path) -> None:
    grouped = DECLARATION.replace('first = "{text}"', 'first = "{text}"\ngroup = "{text}"', 1)
    digests = [
        classification_loader.load_task(written(tmp_path, body=body), "mood").digest
        for body in (DECLARATION, grouped)
    ]
    digests.append(
        classification_loader.load_task(written(tmp_path, [*TRAIN, TRAIN[0]]), "mood").digest
    )
    assert len(set(digests)) == 3


# ---- the hub


def test_hub_rows_become_the_files_of_their_configuration_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rows(ref: str, split: str, revision: object, place: str, config: str) -> list[Record]:
        asked.append((ref, config, split))
        return [
            {"sentence1": f"s {i}", "sentence2": "t", "label": i % 2, "idx": i} for i in range(4)
        ]

    monkeypatch.setattr(sources, "load_hub_rows", rows)
    monkeypatch.delenv("ANTLM_BENCH_OFFLINE")
    body = Path(find_declaration("tasks", "glue")).read_text()
    body = re.sub(r'("rte\..*") = \{ rows = \d+ \}', r"\1 = { rows = 4 }", body)
    (tmp_path / "glue.toml").write_text(body)
    task = classification_loader.load_task(str(tmp_path / "glue.toml"), "rte")
    assert asked == [("nyu-mll/glue", "rte", "train"), ("nyu-mll/glue", "rte", "validation")]
    assert [one.first for one in task.valid] == ["s 0", "s 1", "s 2", "s 3"] and task.valid[
        0
    ].id == "rte_0"
    assert (
        classification_loader.load_task(str(tmp_path / "glue.toml"), "rte") == task
        and len(asked) == 2
    )  # kept in the cache
    with pytest.raises(DataError, match="not the official file: 4 rows, expected 3668"):
        classification_loader.load_task(str(tmp_path / "glue.toml"), "mrpc")


def test_numbers_as_labels_need_numbers_in_the_train_set(tmp_path: Path) -> None:
    train = [{"text": f"wug {n}", "label": ("bad", "good")[n % 2]} for n in range(6)]
    ref = written(tmp_path, train, [{"text": "a dax", "label": 1}])
    with pytest.raises(DataError, match="the label is a number, but") as caught:
        classification_loader.load_task(ref, "mood")
    assert caught.value.location.endswith("mood.valid.jsonl:1")


def test_a_limit_above_the_number_of_rows_is_none(tmp_path: Path) -> None:
    task = classification_loader.load_task(written(tmp_path), "mood", limit_train=10, limit_valid=1)
    assert task.limits == (None, 1)
