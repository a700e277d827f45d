"""Suites that declare which items belong together: from the TOML or a column to a hash per item."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from antlm_bench.errors import DataError, DeclarationError
from antlm_bench.suites import loader
from antlm_bench.suites.classification_loader import load_task
from antlm_bench.suites.templates import drop_single_clusters, hash_cluster

BODY = """
kind = "suite"
name = "mine"
version = "1"
title = "Mine"
licence = "CC0"
citation = "me"
[item]
options = [{ scored = "{good}" }, { scored = "{bad}" }]
[data]
where = ["{file}"]
[data.files]
"all.jsonl" = {}
"""
ROWS = [
    {"good": "A.", "bad": "B.", "story": 7, "first": "x", "second": "y"},
    {"good": "B.", "bad": "A.", "story": 7, "first": "y", "second": "x"},
    {"good": "C.", "bad": "D.", "story": 8, "first": "x", "second": "z"},
    {"good": "E.", "bad": "F.", "story": None, "first": "", "second": ""},
]


def load(folder: Path, cluster: str = "", rows: list[dict[str, object]] | None = None):
    lines = (json.dumps(row) + "\n" for row in rows or ROWS)
    (folder / "all.jsonl").write_text("".join(lines))
    line = f"cluster = {cluster}\n" if cluster else ""
    (folder / "mine.toml").write_text(BODY.replace("[item]", f"{line}[item]"))
    return loader.load_suite(str(folder / "mine.toml"))


def test_items_of_one_story_share_a_hash_and_an_empty_one_is_alone(tmp_path: Path) -> None:
    clusters = [item.cluster for item in load(tmp_path, '["{stem} {story}"]').items]

    assert clusters[0] == clusters[1] != clusters[2]
    assert len(clusters[0]) == 16 and clusters[0] != "7"
    assert load(tmp_path, '["{story}"]').items[3].cluster == ""


def test_exchanged_texts_are_one_cluster(tmp_path: Path) -> None:
    clusters = [item.cluster for item in load(tmp_path, '["{first}", "{second}"]').items]

    assert clusters[0] == clusters[1] != clusters[2]
    assert clusters[3] == ""


def test_clusters_leave_the_digest_as_it_is(tmp_path: Path) -> None:
    without = load(tmp_path)

    assert load(tmp_path, '["{story}"]').digest == without.digest
    assert {item.cluster for item in without.items} == {""}


def test_a_field_that_is_neither_text_nor_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'story' must be a text or a whole number"):
        load(tmp_path, '["{story}"]', [{**ROWS[0], "story": [1]}])
    with pytest.raises(DataError, match="the field 'tale' is missing"):
        load(tmp_path, '["{tale}"]')


def test_clusters_are_refused_for_a_correlation(tmp_path: Path) -> None:
    body = BODY.replace("[item]", 'metric = "spearman"\ncluster = ["{story}"]\n[item]')
    (tmp_path / "mine.toml").write_text(body)

    with pytest.raises(DeclarationError, match="`cluster` has no effect on the metric spearman"):
        loader.load_suite(str(tmp_path / "mine.toml"))


def test_a_column_of_pairs_declares_clusters(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("good,bad,cluster\nA.,B.,p\nC.,D.,p\nE.,F.,\n")

    clusters = [item.cluster for item in loader.load_suite(str(pairs)).items]

    assert clusters[0] == clusters[1] != ""
    assert clusters[2] == ""


def test_a_column_of_texts_declares_clusters_and_groups_are_the_default(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    for column in ("cluster", "group"):
        (tmp_path / "train.csv").write_text(f"text,label,{column}\na,x,1\nb,y,2\n")
        valid = tmp_path / "valid.csv"
        valid.write_text(f"text,label,{column}\nc,x,1\nd,y,1\ne,x,2\n")

        task = load_task(str(tmp_path / "train.csv"), "train", valid=str(valid))

        clusters = [example.cluster for example in task.valid]
        assert clusters[0] == clusters[1] != clusters[2]


def test_documents_of_one_task_only_are_alone() -> None:
    assert drop_single_clusters(["a", "b", "a", ""]) == ["a", "", "a", ""]


def test_the_hash_does_not_depend_on_the_order_of_fields() -> None:
    templates = {"{a}": ["a"], "{b}": ["b"]}

    hashes = [hash_cluster(templates, {"a": a, "b": b}, "x:1") for a, b in (("1 ", "2"), (2, 1))]

    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("suite", "sizes"),
    [
        ("ewok-fast-2025", {1: 763, 2: 165, 3: 1, 4: 1}),
        ("entity-tracking-fast-2026", None),
    ],
)
def test_shipped_suites_have_their_clusters(real_data: Path, suite: str, sizes) -> None:
    counts = Counter(item.cluster for item in loader.load_suite(suite).items)

    if sizes:
        assert Counter(counts.values()) == sizes
    else:
        assert len(counts) == 198


@pytest.mark.parametrize(("task", "number"), [("boolq", 1539), ("multirc", 83), ("wsc", 33)])
def test_shipped_tasks_have_their_passages(real_data: Path, task: str, number: int) -> None:
    assert len({example.cluster for example in load_task("glue-2025", task).valid}) == number
