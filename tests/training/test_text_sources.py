"""Training text: lines and documents of every kind of file; errors name file and line."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.errors import DataError
from antlm_bench.suites import grammar
from antlm_bench.suites.loader import read_suite_spec
from antlm_bench.training import text_sources
from antlm_bench.training.text_sources import (
    batch_lines,
    count_words,
    describe_source,
    limit_words,
    load_text_source,
)


def lines(ref: object) -> list[tuple[bool, str]]:
    return [
        line for part in load_text_source(str(ref)).files for line in part.iter_non_blank_lines()
    ]


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("ending", ["txt", "train", "txt.gz", "train.gz"])
def test_a_text_file_is_one_document_without_its_empty_lines(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"a.{ending}", "\n one two \r\n\n \t\r\nthree")
    assert lines(tmp_path) == [(True, " one two "), (False, "three")]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_every_record_is_a_document(tmp_path: Path, ending: str) -> None:
    records = [{"text": "one\r\n\ntwo"}, {"text": "", "id": 7}, {"text": "three \u2028 four"}]
    write(tmp_path / f"a.{ending}", "\n".join(map(json.dumps, records)) + "\n\n")
    assert lines(tmp_path) == [(True, "one"), (False, "two"), (True, "three \u2028 four")]


def test_a_folder_is_all_of_its_text_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "deep" / "c.train.gz", "c")
    write(tmp_path / "a.jsonl", '{"text": "a"}')
    write(tmp_path / "README.md", "no text")
    result = load_text_source(str(tmp_path))
    assert [part.name for part in result.files] == ["a.jsonl", "b.txt", "deep/c.train.gz"]
    assert lines(tmp_path) == [(True, "a"), (True, "b"), (True, "c")]
    assert lines(tmp_path / "b.txt") == [(True, "b")], "a single file will do"


def test_lines_can_be_read_again(tmp_path: Path) -> None:
    (part,) = load_text_source(str(write(tmp_path / "a.txt", "one\ntwo"))).files
    assert (
        list(part.iter_non_blank_lines())
        == list(part.iter_non_blank_lines())
        == [(True, "one"), (False, "two")]
    )


@pytest.mark.long
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"))))
def test_any_text_comes_back_as_its_lines(
    tmp_path_factory: pytest.TempPathFactory, written: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    kept = [line.removesuffix("\r") for line in written if line.strip()]
    write(folder / "a.txt", "\n".join(written))
    write(folder / "b.jsonl.gz", json.dumps({"text": "\n".join(written)}))
    assert [line for _, line in lines(folder / "a.txt")] == kept
    assert [line for _, line in lines(folder / "b.jsonl.gz")] == kept


@pytest.mark.parametrize(
    ("name", "raw", "place", "message"),
    [
        ("a.txt", b"fine\nbad \xff\n", "a.txt:2", "not UTF-8: byte 0xff"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "a.jsonl:2", "not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1", "not JSON"),
        ("a.jsonl", b'\n{"content": "a"}\n', "a.jsonl:2", "under the key 'text'"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1", "under the key 'text'"),
        ("a.jsonl", b'["text"]\n', "a.jsonl:1", "under the key 'text'"),
        ("a.jsonl", b'{"text": "half \\ud83d a pair"}\n', "a.jsonl:1", "not valid Unicode"),
    ],
)
def test_bad_text_names_file_and_line(
    tmp_path: Path, name: str, raw: bytes, place: str, message: str
) -> None:
    write(tmp_path / name, raw)
    with pytest.raises(DataError, match=message) as error:
        lines(tmp_path)
    assert error.value.location == str(tmp_path / place)


@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_damaged_archive_is_named(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.txt.gz").write_bytes(
        gzip.compress(b"one two three" * 9)[:-1][:cut] + b"\x00\xff" * 3
    )
    with pytest.raises(DataError, match="damaged gzip file") as error:
        lines(tmp_path)
    assert error.value.location == str(tmp_path / "a.txt.gz")


def test_a_place_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "no text")
    with pytest.raises(DataError, match="no text files found") as error:
        load_text_source(str(tmp_path))
    assert ".jsonl" in error.value.hint
    for missing in (str(tmp_path / "absent"), "absent", "x" * 5000, "a/b/c", "nul\0"):
        with pytest.raises(DataError, match="no such file"):
            load_text_source(missing)


def test_files_for_evaluation_are_not_trained_on(tmp_path: Path) -> None:
    for name in ("train/a.txt", "dev/a.txt", "Test/b.train", "valid.jsonl", ".old/c.txt", "b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, '{"text": "one two"}')
    source = load_text_source(str(tmp_path))
    assert [file.name for file in source.files] == ["b.txt", "train/a.txt"]
    assert source.left_out == (".old/c.txt", "Test/b.train", "dev/a.txt", "valid.jsonl")
    assert describe_source(source, 1234) == (
        "trains on 1,234 words of 2 files (b.txt, train/a.txt); "
        "left out: .old/c.txt, Test/b.train, dev/a.txt, valid.jsonl"
    )
    assert [file.name for file in load_text_source(str(tmp_path / "dev")).files] == ["a.txt"]
    (tmp_path / "only" / "test").mkdir(parents=True)
    write(tmp_path / "only" / "test" / "a.txt", "x")
    with pytest.raises(DataError, match="no text files found") as error:
        load_text_source(str(tmp_path / "only"))
    assert "test/a.txt" in error.value.hint


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.txt", "one")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(text_sources, "read_regular_file", refuse)
    with pytest.raises(DataError, match="Permission denied") as error:
        load_text_source(str(file))
    assert error.value.location == str(file)


def test_the_digest_is_of_what_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", '{"text": "one two"}')
    first = load_text_source(str(tmp_path)).digest
    assert load_text_source(str(file)).digest == first, "of content, not of where it lies"
    file.rename(tmp_path / "a.jsonl")
    assert load_text_source(str(tmp_path)).digest != first, "the same bytes, read otherwise"
    write(tmp_path / "a.jsonl", '{"text": "one three"}')
    assert len({first, load_text_source(str(tmp_path)).digest}) == 2


@pytest.mark.long
def test_the_grammar_gives_sentences_that_no_pair_holds() -> None:
    result = load_text_source("nano")
    created = [line for _, line in result.files[0].iter_non_blank_lines()]
    rules = read_suite_spec("nano")[0].grammar
    assert rules is not None
    pairs = {
        record[side]
        for record in grammar.generate_pairs(rules)
        for side in ("sentence_good", "sentence_bad")
    }
    assert len(created) == text_sources.GRAMMAR_SENTENCES and not pairs.intersection(created)
    assert result.digest == load_text_source("nano").digest


def test_a_suite_without_a_grammar_is_no_corpus() -> None:
    with pytest.raises(DataError, match="no grammar"):
        load_text_source("blimp")


class TestLimit:
    def texts(self, tmp_path: Path) -> text_sources.TextSource:
        write(tmp_path / "a.txt", "one two three\n" * 300)
        write(tmp_path / "b.txt", "one\n" * 100)
        return load_text_source(str(tmp_path))

    def test_parts_keep_their_shares_from_the_front(self, tmp_path: Path) -> None:
        kept = limit_words(self.texts(tmp_path), 100)
        counts = [
            sum(count_words(line) for _, line in part.iter_non_blank_lines()) for part in kept.files
        ]
        assert counts == pytest.approx([90, 10], abs=3)
        assert next(kept.files[0].iter_non_blank_lines()) == (True, "one two three")

    @pytest.mark.parametrize("words", [None, 1000, 9999])
    def test_what_is_small_enough_stays(self, tmp_path: Path, words: int | None) -> None:
        whole = self.texts(tmp_path)
        assert limit_words(whole, words) is whole

    def test_each_limit_is_another_text(self, tmp_path: Path) -> None:
        whole = self.texts(tmp_path)
        assert (
            len({whole.digest, limit_words(whole, 100).digest, limit_words(whole, 101).digest}) == 3
        )


class TestHub:
    """A dataset on disk stands for one of the hub: datasets opens both."""

    def rows(self, tmp_path: Path, *records: dict[str, Any]) -> str:
        write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, records)))
        return str(tmp_path)

    @pytest.fixture(autouse=True)
    def private_cache(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets

        monkeypatch.setattr(
            datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets")
        )

    def test_every_row_is_a_document(self, tmp_path: Path) -> None:
        result = text_sources._source_from_hub(
            self.rows(tmp_path, {"text": "one\n\ntwo"}, {"text": "three"})
        )
        assert list(result.files[0].iter_non_blank_lines()) == [
            (True, "one"),
            (False, "two"),
            (True, "three"),
        ]

    def test_rows_without_text_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="its rows have content, title"):
            text_sources._source_from_hub(self.rows(tmp_path, {"content": "a", "title": "b"}))

    def test_owner_and_name_ask_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        has_target: list[tuple[str, str]] = []

        def rows(ref: str, split: str) -> list[dict[str, str]]:
            has_target.append((ref, split))
            return [{"text": "one"}]

        monkeypatch.setattr(text_sources, "load_hub_rows", rows)
        assert lines("owner/name") == [(True, "one")]
        assert set(has_target) == {("owner/name", "train")}


@given(st.lists(st.tuples(st.booleans(), st.text())), st.integers(1, 5))
def test_blocks_hold_every_line_once(written: list[tuple[bool, str]], size: int) -> None:
    created = list(batch_lines(iter(written), size))
    assert [line for block in created for line in block] == written
    assert Counter(map(len, created[:-1])) == Counter(
        {size: len(created) - 1} if len(created) > 1 else {}
    )


def test_words_stand_between_white_space() -> None:
    assert [count_words(line) for line in ("", "  ", "it's a-b  c.\t")] == [0, 0, 3]


def test_a_corpus_without_spaces_is_said_to_have_more_words(tmp_path: Path) -> None:
    write(tmp_path / "zh.txt", "我喜欢猫。\n")
    assert "does not separate those of '我喜欢猫'" in describe_source(
        load_text_source(str(tmp_path)), 1
    )
    write(tmp_path / "en.txt", "the cat\n" * 20)
    assert "separate" not in describe_source(load_text_source(str(tmp_path)), 41)
