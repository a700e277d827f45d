"""A finished score loads no items, and no change of what decides them is missed."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench import score
from antlm_bench.checkpoints.checkpoint_records import describe_software
from antlm_bench.commands import suite_records
from antlm_bench.commands.suite_records import RecordedSuite, find_suite_record, load_and_record
from antlm_bench.errors import DataError
from antlm_bench.suites import loader
from antlm_bench.suites.task_types import SuiteRequest

TOML = """
kind = "suite"
groups = ["part"]
macro = ["part"]
labels = { part = "{part}" }
item = { options = [{ scored = "{good}" }, { scored = "{bad}" }] }
expect = { items = 4 }
data = { where = ["first/{file}", "second/{file}"], files = ["rows.jsonl"] }
"""
GYM = {
    "meta": {"name": "gym", "metric": "sum"},
    "region_meta": {"1": "subject", "2": "verb"},
    "predictions": [{"type": "formula", "formula": "(2;%good%) < (2;%bad%)"}],
    "items": [
        {
            "item_number": number,
            "conditions": [
                {
                    "condition_name": name,
                    "regions": [
                        {"region_number": 1, "content": "the cat"},
                        {"region_number": 2, "content": verb},
                    ],
                }
                for name, verb in (("good", "sleeps"), ("bad", "sleep"))
            ],
        }
        for number in (1, 2)
    ],
}


def rows_of(*verbs: str) -> bytes:
    rows = [
        {"good": f"the cat {verb}s.", "bad": f"the cat {verb}.", "part": f"p{number % 2}"}
        for number, verb in enumerate(verbs)
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


ROWS = rows_of("see", "eat", "run", "hit")
OTHER_ROWS = rows_of("see", "eat", "run", "bit")


class SuiteFolder:
    """Suites of several kinds in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "second").mkdir()
        (folder / "pairs").mkdir()
        self.write("own.toml", TOML.encode())
        self.write("second/rows.jsonl", ROWS)
        self.write("gym.json", json.dumps(GYM).encode())
        write_pairs(folder / "pairs" / "one.csv", make_agreement_rows(4))

    def write(self, name: str, data: bytes) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def replace(self, name: str, before: bytes, after: bytes) -> None:
        """Replace bytes by as many others, and keep the time of the last change."""
        file = self.folder / name
        facts, data = file.stat(), file.read_bytes()
        assert len(before) == len(after) and before in data
        file.write_bytes(data.replace(before, after, 1))
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    def request(self, name: str, **options: Any) -> SuiteRequest:
        return SuiteRequest(str(self.folder / name), **options)


@pytest.fixture
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuiteFolder:
    monkeypatch.delenv("ANTLM_BENCH_DATA", raising=False)
    return SuiteFolder(tmp_path)


def describe_loaded(request: SuiteRequest) -> RecordedSuite:
    """Describe a suite by its items."""
    suite = loader.load_requested_suite(request)
    names = [field.name for field in fields(RecordedSuite)][:-1]
    values = {name: getattr(suite, name) for name in names}
    return RecordedSuite(**values, has_corrected_words=suite_records.any_words_corrected(suite))


def check_change(
    request: SuiteRequest, changed: SuiteRequest, change: Callable[[], object]
) -> None:
    """Check that what is remembered of a request is not returned after a change."""
    load_and_record(request)
    assert find_suite_record(request) == describe_loaded(request)
    change()
    assert find_suite_record(changed) is None
    load_and_record(changed)
    assert find_suite_record(changed) == describe_loaded(changed)


@pytest.mark.parametrize(
    ("suite", "file", "before", "after"),
    [
        ("own.toml", "second/rows.jsonl", b"hit", b"bit"),
        ("own.toml", "second/rows.jsonl", b"p1", b"p2"),
        ("own.toml", "own.toml", b'"{good}" }, {', b'"{part}" }, {'),
        ("own.toml", "own.toml", b"macro = [", b"#acro = ["),
        ("pairs", "pairs/one.csv", b"cat", b"dog"),
        ("pairs/one.csv", "pairs/one.csv", b"number", b"gender"),
        ("gym.json", "gym.json", b"cat", b"dog"),
        ("gym.json", "gym.json", b") < (", b") > ("),
    ],
)
def test_a_byte_changed_under_the_same_time_is_seen(
    suites: SuiteFolder, suite: str, file: str, before: bytes, after: bytes
) -> None:
    request = suites.request(suite)
    check_change(request, request, lambda: suites.replace(file, before, after))


@given(position=st.integers(0, len(ROWS) - 1), byte=st.integers(0, 255))
@settings(max_examples=40)
def test_no_changed_byte_yields_old_facts(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    suites = SuiteFolder(tmp_path_factory.mktemp("suites"))
    request = suites.request("own.toml")
    load_and_record(request)
    before, after = ROWS[: position + 1], ROWS[:position] + bytes([byte])
    suites.replace("second/rows.jsonl", before, after)
    assert (find_suite_record(request) is None) == (before != after)


@pytest.mark.parametrize(
    ("suite", "options"),
    [
        ("own.toml", {"limit": 1}),
        ("own.toml", {"limit": 2}),
        ("own.toml", {"allow_incomplete": True}),
        ("pairs/one.csv", {"columns": {"good": "bad", "bad": "good"}}),
        ("pairs/one.csv", {"layout": "columns"}),
        ("pairs", {"limit": 1}),
        ("gym.json", {"limit": 1}),
    ],
    ids=str,
)
def test_each_setting_of_a_request_matters(
    suites: SuiteFolder, suite: str, options: dict[str, Any]
) -> None:
    check_change(suites.request(suite), suites.request(suite, **options), lambda: None)


def test_a_file_in_an_earlier_folder_is_seen(suites: SuiteFolder) -> None:
    request = suites.request("own.toml")
    check_change(request, request, lambda: suites.write("first/rows.jsonl", OTHER_ROWS))


def test_another_data_folder_is_seen(suites: SuiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    request = suites.request("own.toml")
    suites.write("elsewhere/second/rows.jsonl.gz", gzip.compress(OTHER_ROWS))
    folder = str(suites.folder / "elsewhere")
    check_change(request, request, lambda: monkeypatch.setenv("ANTLM_BENCH_DATA", folder))


def test_a_member_of_a_zip_is_hashed_with_it(suites: SuiteFolder) -> None:
    def pack(rows: bytes) -> None:
        with zipfile.ZipFile(suites.folder / "all.zip", "w") as archive:
            archive.writestr("rows.jsonl", rows)

    suites.write("own.toml", TOML.replace("first/{file}", "all.zip!{file}").encode())
    pack(ROWS)
    request = suites.request("own.toml")
    check_change(request, request, lambda: pack(OTHER_ROWS))


def test_a_new_file_of_a_folder_of_pairs_is_seen(suites: SuiteFolder) -> None:
    request = suites.request("pairs")
    rows = (suites.folder / "pairs" / "one.csv").read_bytes()
    check_change(request, request, lambda: suites.write("pairs/two.csv", rows))


def test_a_renamed_file_is_seen(suites: SuiteFolder) -> None:
    request, changed = suites.request("pairs/one.csv"), suites.request("pairs/two.csv")
    files = suites.folder / "pairs" / "one.csv", suites.folder / "pairs" / "two.csv"
    check_change(request, changed, lambda: files[0].replace(files[1]))


def test_a_declaration_that_hides_another_is_seen(
    suites: SuiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, rows in (("a", ROWS), ("b", OTHER_ROWS)):
        suites.write(f"{name}/tasks/own.toml", TOML.encode())
        suites.write(f"{name}/tasks/second/rows.jsonl", rows)
    paths = [str(suites.folder / name) for name in "ab"]
    monkeypatch.setenv("ANTLM_BENCH_PATH", paths[0])
    request, both = SuiteRequest("own"), os.pathsep.join(reversed(paths))
    check_change(request, request, lambda: monkeypatch.setenv("ANTLM_BENCH_PATH", both))


def test_a_data_file_that_lost_its_first_hash_is_not_used(suites: SuiteFolder) -> None:
    request = suites.request("own.toml")
    load_and_record(request)
    suites.write("second/rows.jsonl.sha256", b"0" * 64 + b"  rows.jsonl\n")
    assert find_suite_record(request) is None
    with pytest.raises(DataError, match="wrong hash"):
        load_and_record(request)
    assert find_suite_record(request) is None


@pytest.mark.parametrize("fact", ["libraries", "source", "packages", "python"])
def test_other_software_is_seen(
    suites: SuiteFolder, monkeypatch: pytest.MonkeyPatch, fact: str
) -> None:
    facts = {**describe_software(), fact: "other"}
    request = suites.request("own.toml")
    check_change(
        request,
        request,
        lambda: monkeypatch.setattr(suite_records, "describe_software", lambda: facts),
    )


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    suites: SuiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = loader.load_requested_suite

    def load_and_change(request: SuiteRequest) -> Any:
        suite = load(request)
        suites.replace("second/rows.jsonl", b"hit", b"bit")
        return suite

    monkeypatch.setattr(loader, "load_requested_suite", load_and_change)
    request = suites.request("own.toml")
    load_and_record(request)
    assert find_suite_record(request) is None


def test_a_damaged_record_is_not_used(suites: SuiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    record, request = suites.folder / "record.json", suites.request("own.toml")
    monkeypatch.setattr(suite_records, "_record_file", lambda _: record)
    load_and_record(request)
    data = record.read_bytes()
    digest = describe_loaded(request).digest.encode()
    for content in (b"", b"{}", data[:-1], data.replace(digest[:4], b"0000")):
        record.write_bytes(content)
        assert find_suite_record(request) is None


def test_suites_of_lm_eval_are_not_remembered() -> None:
    assert suite_records.hash_suite_inputs(SuiteRequest("lm-eval:blimp_causative")) == ""


def test_a_declaration_of_another_package_is_not_remembered(
    suites: SuiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_records, "SPECS", ())
    assert suite_records.hash_suite_inputs(suites.request("own.toml")) == ""


@pytest.mark.parametrize("name", ["own.toml", "pairs", "pairs/one.csv", "gym.json"])
def test_a_finished_score_loads_no_items(
    make_checkpoint: Callable[..., Path],
    suites: SuiteFolder,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    arguments: Any = str(make_checkpoint("causal")), str(suites.folder / name)
    out = suites.folder / "run"
    [first] = score(*arguments, out=out)
    with monkeypatch.context() as patch:
        patch.setattr(loader, "load_requested_suite", lambda _: pytest.fail("items were loaded"))
        [second] = score(*arguments, out=out)
    assert second == first
    for file in ("second/rows.jsonl", "pairs/one.csv", "gym.json"):
        suites.replace(file, b"cat", b"dog")
    [changed] = score(*arguments, out=out)
    [expected] = score(*arguments, out=suites.folder / "fresh")
    keys = [{cell.key for cell in run} for run in (first, changed, expected)]
    assert keys[1] == keys[2] and not keys[0] & keys[1]
