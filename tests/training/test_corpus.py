"""The token stream: it decodes to the text, its index counts correctly, it is built atomically."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_helpers import make_recipe
from training_text import build_corpus, write_text

from antlm_bench.errors import DataError
from antlm_bench.training import corpus as corpora
from antlm_bench.training.corpus import (
    BOS_ID,
    EOS_ID,
    FIRST_REGULAR_ID,
    MASK_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    Corpus,
    load_corpus,
    prepare_corpus,
)
from antlm_bench.training.recipe import CorpusSpec
from antlm_bench.training.text_sources import TextSource, iter_document_blocks, load_text_source


def built(folder: Path, *files: str, **corpus: Any) -> Corpus:
    """The corpus of such texts, each in a file of its own."""
    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(files):
        (text / f"{number}.txt").write_text(content, encoding="utf-8")
    return build_corpus(make_recipe(corpus=corpus), text, folder / "corpus")


def decoded(corpus: Corpus) -> list[str]:
    """Every line of the stream in words again; a byte-level BPE writes a space before the first."""
    ends = zip(corpus.line_starts[:-1], corpus.line_starts[1:], strict=True)
    return [
        corpus.tokenizer.decode(corpus.tokens[a:b], skip_special_tokens=True).removeprefix(" ")
        for a, b in ends
    ]


def test_specials_come_first(tmp_path: Path) -> None:
    tokenizer = built(tmp_path, "a b").tokenizer
    assert tokenizer.convert_ids_to_tokens(range(FIRST_REGULAR_ID)) == list(SPECIAL_TOKENS.values())
    named = {tokenizer.pad_token: PAD_ID, tokenizer.bos_token: BOS_ID, tokenizer.eos_token: EOS_ID}
    named |= {tokenizer.mask_token: MASK_ID, tokenizer.unk_token: UNK_ID}
    assert named == {"<pad>": 0, "<s>": 1, "</s>": 2, "<mask>": 3, "<unk>": 4}
    assert tokenizer.model_max_length == make_recipe().model.positions


MASKED = "has <mask> ever"


@pytest.mark.parametrize("layout", ["lines", "files"])
def test_a_mask_takes_the_space_before_it(tmp_path: Path, layout: str) -> None:
    """In training the space of a hidden word is hidden with it: ` seen` is one token."""
    text = "the cat has not ever seen it\nthe dog has never seen it\n" * 20
    corpus = built(tmp_path, text, layout=layout, document="file")
    tokenizer = corpus.tokenizer
    hidden = tokenizer("has not ever")["input_ids"]
    [position] = [
        n for n, token in enumerate(tokenizer.convert_ids_to_tokens(hidden)) if "not" in token
    ]
    hidden[position] = MASK_ID
    assert tokenizer(MASKED)["input_ids"] == tokenizer("has<mask> ever")["input_ids"] == hidden
    again = load_corpus(tmp_path / "corpus").tokenizer
    assert again(MASKED)["input_ids"] == hidden and again.mask_token_id == MASK_ID


def test_a_literal_mask_is_streamed_as_before(tmp_path: Path) -> None:
    """The stream of a text does not depend on what the saved tokenizer strips."""
    corpus = built(tmp_path, f"{MASKED}\nno\n")
    recipe = make_recipe()
    plain = corpora.train_tokenizer(iter([MASKED, "no"]), recipe.tokenizer, recipe.corpus)
    first = corpus.tokens[: corpus.line_starts[1]].tolist()
    assert first == [BOS_ID, *plain.encode(MASKED, add_special_tokens=False).ids]
    assert first != corpus.tokenizer(MASKED)["input_ids"]


def test_older_tokenizers_read_the_same_tokens(tmp_path: Path) -> None:
    recipe = make_recipe()
    plain = corpora.train_tokenizer(iter([MASKED, "no"]), recipe.tokenizer, recipe.corpus)
    other = corpora.train_tokenizer(iter(["some other text"]), recipe.tokenizer, recipe.corpus)
    stripped = corpora.strip_space_before_mask(plain)
    assert stripped.to_str() != plain.to_str() and corpora.tokenizers_match(stripped, plain)
    assert not corpora.tokenizers_match(stripped, other)


@pytest.mark.parametrize("eos", [False, True])
def test_lines_stand_between_specials_as_scoring_writes_them(tmp_path: Path, eos: bool) -> None:
    corpus = built(tmp_path, "the cat sleeps\nno dog\n", "naïve ☕\n", eos=eos)
    for begin, end, text in zip(
        corpus.line_starts[:-1],
        corpus.line_starts[1:],
        ["the cat sleeps", "no dog", "naïve ☕"],
        strict=True,
    ):
        line = corpus.tokens[begin:end].tolist()
        assert line == corpus.tokenizer(text)["input_ids"], (
            "what a checkpoint's tokenizer adds is what was trained"
        )
        assert line[0] == BOS_ID and (line[-1] == EOS_ID) == eos
        assert min(line[1 : -1 if eos else None]) >= FIRST_REGULAR_ID
    assert corpus.line_starts[0] == 0 and corpus.line_starts[-1] == len(corpus)


@pytest.mark.parametrize("eos", [False, True])
def test_a_pair_has_a_separator_that_was_trained(tmp_path: Path, eos: bool) -> None:
    """The stream is `<s> line <s> line`, or `<s> line </s> <s> line </s>`."""
    corpus = built(tmp_path, "the cat sleeps\nno dog\n", eos=eos)
    tokenizer = corpus.tokenizer
    first, second = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "no dog")
    )
    separator, end = ([EOS_ID], [EOS_ID]) if eos else ([BOS_ID], [])
    pair = tokenizer("the cat", "no dog")
    assert pair["input_ids"] == [BOS_ID, *first, *separator, *second, *end]
    assert set(separator) <= set(corpus.tokens.tolist())
    assert tokenizer("the cat")["input_ids"] == [BOS_ID, *first, *end], "a single text is as before"
    assert pair.encodings[0].type_ids == [0] * (2 + len(first)) + [1] * len([*second, *end])


def test_tokens_say_the_text_again(tmp_path: Path) -> None:
    lines = ["the old cat", "Zürich, naïve: 42 ☕!", "tabs\tand  spaces ", "�"]
    assert decoded(built(tmp_path, "\n".join(lines))) == lines


def test_the_tokenizer_reads_as_the_recipe_says(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("ﬁne 2024 2024 2024 2024\n" * 9, encoding="utf-8")
    kept = build_corpus(make_recipe(tokenizer={"normalizer": ""}), text, tmp_path / "kept")
    split = build_corpus(make_recipe(tokenizer={"single_digits": True}), text, tmp_path / "split")
    assert "ﬁne" in decoded(kept)[0] and "fine" in decoded(split)[0]
    assert "Ġ2024" in kept.tokenizer.tokenize("2024") and len(split.tokenizer.tokenize("2024")) >= 4
    large, small = ({"vocabulary": size} for size in (300, 261))
    assert (
        len(build_corpus(make_recipe(tokenizer=small), text, tmp_path / "small").tokenizer) == 261
    )
    assert (
        261
        < len(build_corpus(make_recipe(tokenizer=large), text, tmp_path / "large").tokenizer)
        <= 300
    )


@pytest.mark.parametrize(("document", "begin"), [("file", [0, 2]), ("line", [0, 1, 2])])
def test_documents_are_files_or_lines(tmp_path: Path, document: str, begin: list[int]) -> None:
    corpus = built(tmp_path, "one two\nthree\n", "four\n", document=document)
    assert corpus.document_starts.tolist() == [*corpus.line_starts[begin], len(corpus)]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(2, 12))
@settings(deadline=None, max_examples=20)
def test_windows_know_document_and_words(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], length: int
) -> None:
    files = ["\n".join("word " * (1 + n % 4) for n in range(count)) for count in counts]
    if not any(counts):
        files[0] = "word " * 20
    corpus = built(
        tmp_path_factory.mktemp("windows"), *files, document="line" if length % 2 else "file"
    )
    if len(corpus) < length:
        return
    starts = np.arange(0, len(corpus) - length + 1, length)
    ids, segments = corpus.read_rows(starts, length)
    line_of = np.concatenate([[n] * size for n, size in enumerate(np.diff(corpus.line_starts))])
    document_of = np.cumsum(np.isin(np.arange(len(corpus)), corpus.document_starts[:-1]))
    share = (
        np.diff(corpus.words_before_line)[line_of] / np.diff(corpus.line_starts)[line_of]
    )  # words of a token, one by one
    for row, start in enumerate(starts):
        assert ids[row].tolist() == corpus.tokens[start : start + length].tolist()
        same = document_of[start : start + length]
        assert np.array_equal(segments[row][:, None] == segments[row], same[:, None] == same)
        assert corpus.count_words(starts[[row]], length) == pytest.approx(
            share[start : start + length].sum()
        )
    assert corpus.count_words(starts, length) == pytest.approx(sum(share[: len(starts) * length]))


def test_the_words_of_everything_are_those_of_the_text(tmp_path: Path) -> None:
    files = ["one two  three\n\nit's four-fold\n", "\n five\n"]
    corpus = built(tmp_path, *files)
    assert corpus.words_before_line[-1] == sum(len(content.split()) for content in files) == 6
    assert corpus.count_words(np.array([0]), len(corpus)) == 6


def test_words_limit_the_corpus(tmp_path: Path) -> None:
    whole = built(tmp_path / "a", "one two three\n" * 30)
    assert whole.words_before_line[-1] == 90
    assert built(tmp_path / "b", "one two three\n" * 30, words=30).words_before_line[-1] == 30


def stream_of(corpus: Corpus) -> str:
    return str(corpus.tokenizer.decode(corpus.tokens, skip_special_tokens=False))


class TestWholeFiles:
    """BabyLlama's stream: a file is one text, with its line breaks and without specials."""

    WHOLE = {"layout": "files", "document": "corpus"}  # noqa: RUF012

    @pytest.mark.parametrize("end", ["", "\n", "\n\n", " \n"])
    def test_the_stream_says_the_file_again(self, tmp_path: Path, end: str) -> None:
        files = [f"The cat sleeps.\n\n  Two  dogs saw 42 ☕\n\tnaïve{end}", "Another file."]
        corpus = built(tmp_path, *files, **self.WHOLE)
        assert stream_of(corpus) == "".join(files)
        assert corpus.tokens.min() >= FIRST_REGULAR_ID
        assert corpus.document_starts.tolist() == [0, len(corpus)]
        assert corpus.words_before_line[-1] == sum(len(text.split()) for text in files)

    def test_a_checkpoint_reads_a_sentence_as_the_stream_does(self, tmp_path: Path) -> None:
        corpus = built(tmp_path, "The cat sleeps\n" * 5, **self.WHOLE)
        sentence = corpus.tokenizer("The cat sleeps")["input_ids"]
        assert corpus.tokens[: len(sentence)].tolist() == sentence

    def test_borders_of_files_can_be_kept(self, tmp_path: Path) -> None:
        corpus = built(tmp_path, "a b\n", "c d\n", layout="files", document="file")
        assert len(corpus.document_starts) == 3
        assert corpus.tokenizer.decode(corpus.tokens[: corpus.document_starts[1]]) == "a b\n"

    @given(
        st.lists(
            st.sampled_from(["a b", "", " ", "c ", " d", "e\t", "ﬁn e", "42 7"]),
            min_size=1,
            max_size=40,
        )
    )
    @settings(deadline=None, max_examples=30)
    def test_cutting_a_file_for_memorys_sake_changes_no_token(self, lines: list[str]) -> None:
        numbered = [(number == 0, line) for number, line in enumerate(lines)]
        whole = [*iter_document_blocks(iter(numbered), 10**6)]
        parts = [*iter_document_blocks(iter(numbered), 2)]
        assert len(whole) <= 1 and [part.starts_document for part in parts] == [
            n == 0 for n in range(len(parts))
        ]
        text = "\n".join(lines)
        assert "".join(line for part in parts for line in part.lines) == text
        learnt = iter([*map("{}\n".format, lines), "a  b\n\n  c"])
        tokenizer = corpora.train_tokenizer(
            learnt, make_recipe().tokenizer, CorpusSpec(**self.WHOLE)
        )
        ids_by_block = [tokenizer.encode("".join(part.lines)).ids for part in parts]
        assert [i for ids in ids_by_block for i in ids] == tokenizer.encode(text).ids

    def test_records_do_not_run_into_one_word(self, tmp_path: Path) -> None:
        (tmp_path / "text").mkdir()
        records = '{"text": "one\\ntwo"}\n{"text": "three\\n"}\n'
        (tmp_path / "text" / "a.jsonl").write_text(records, encoding="utf-8")
        recipe = make_recipe(corpus={"layout": "files", "document": "file"})
        corpus = build_corpus(recipe, tmp_path / "text", tmp_path / "corpus")
        assert stream_of(corpus) == "one\ntwo\nthree\n" and len(corpus.document_starts) == 3

    def test_lines_know_their_tokens_and_words(self, tmp_path: Path) -> None:
        corpus = built(tmp_path, "one two\n\nthree  four five\n six", **self.WHOLE)
        parts = zip(corpus.line_starts[:-1], corpus.line_starts[1:], strict=True)
        documents = [corpus.tokenizer.decode(corpus.tokens[a:b]) for a, b in parts]
        assert documents == ["one two\n", "\n", "three  four five\n", " six"]
        assert np.diff(corpus.words_before_line).tolist() == [2, 0, 3, 1]

    def test_an_unseen_byte_is_unknown_with_the_seen_alphabet(self, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.mkdir()
        (text / "a.txt").write_text("abc abd\n" * 9, encoding="utf-8")
        seen = build_corpus(
            make_recipe(tokenizer={"alphabet": "seen"}, corpus=self.WHOLE), text, tmp_path / "seen"
        )
        assert "<unk>" in seen.tokenizer.tokenize("xyz abc") and len(seen.tokenizer) < 261
        every = build_corpus(make_recipe(corpus=self.WHOLE), text, tmp_path / "every")
        assert "<unk>" not in every.tokenizer.tokenize("xyz ☕")


class TestHeldOut:
    def test_the_last_lines_of_every_file_are_not_trained_on(self, tmp_path: Path) -> None:
        """As notebooks/split_dataset.ipynb: the first round(0.95 x lines) stay."""
        files = [
            "\n".join(f"a{n} x" for n in range(30)) + "\n",
            "\n".join(["b y", "", *["c z"] * 29]),
        ]
        corpus = built(tmp_path, *files, held_out=0.05, layout="files", document="file")
        assert corpus.held_out is not None
        kept = [text.splitlines()[: round(0.95 * len(text.splitlines()))] for text in files]
        rest = [text.splitlines()[round(0.95 * len(text.splitlines())) :] for text in files]
        for part, lines in ((corpus, kept), (corpus.held_out, rest)):
            assert stream_of(part) == "".join("\n".join(one) for one in lines)
        assert corpus.words_before_line[-1] + corpus.held_out.words_before_line[-1] == sum(
            len(text.split()) for text in files
        )
        assert load_corpus(tmp_path / "corpus").held_out is not None

    def test_lines_are_held_out_behind_their_own_s(self, tmp_path: Path) -> None:
        corpus = built(tmp_path / "some", "one two\n" * 10, held_out=0.2)
        assert corpus.held_out is not None
        assert (len(corpus.line_starts) - 1, len(corpus.held_out.line_starts) - 1) == (8, 2)
        assert corpus.held_out.tokens[0] == BOS_ID
        assert built(tmp_path / "none", "one two\n" * 10).held_out is None


class TestPreparing:
    @pytest.fixture
    def text(self, tmp_path: Path) -> TextSource:
        return load_text_source(str(write_text(tmp_path / "text")))

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Folders in which a corpus was built."""
        build, folders = corpora._build_corpus, []

        def counting(*given: Any) -> None:
            folders.append(given[-1])
            build(*given)

        monkeypatch.setattr(corpora, "_build_corpus", counting)
        return folders

    def prepared(
        self, text: TextSource, folder: Path, positions: int = 64, **changes: Any
    ) -> Corpus:
        recipe = make_recipe(**changes)
        return prepare_corpus(text, recipe.corpus, recipe.tokenizer, positions, folder)

    def test_the_same_again_is_opened(
        self, text: TextSource, tmp_path: Path, counted: list[Path]
    ) -> None:
        first, second = (self.prepared(text, tmp_path / "corpus") for _ in range(2))
        assert len(counted) == 1
        assert first.digest == second.digest == load_corpus(tmp_path / "corpus").digest
        assert np.array_equal(first.tokens, second.tokens) and isinstance(second.tokens, np.memmap)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "text"]

    @pytest.mark.parametrize(
        "change",
        [
            {"corpus": {"eos": True}},
            {"corpus": {"words": 50}},
            {"tokenizer": {"vocabulary": 280}},
            {"positions": 32},
        ],
    )
    def test_another_setting_is_another_corpus(
        self, text: TextSource, tmp_path: Path, counted: list[Path], change: dict[str, Any]
    ) -> None:
        first = self.prepared(text, tmp_path / "corpus")
        assert self.prepared(text, tmp_path / "corpus", **change).digest != first.digest
        assert len(counted) == 2

    def test_another_text_is_another_corpus(
        self, text: TextSource, tmp_path: Path, counted: list[Path]
    ) -> None:
        self.prepared(text, tmp_path / "corpus")
        (tmp_path / "text" / "0.txt").write_text("entirely new", encoding="utf-8")
        created = self.prepared(load_text_source(str(tmp_path / "text")), tmp_path / "corpus")
        assert len(counted) == 2 and decoded(created)[0] == "entirely new"

    def test_what_a_kill_left_is_neither_read_nor_kept(
        self, text: TextSource, tmp_path: Path, counted: list[Path]
    ) -> None:
        whole = self.prepared(text, tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", counted[0].with_name(".corpus.new"))
        (tmp_path / ".corpus.new" / "tokens.npy").write_bytes(b"half")
        created = self.prepared(text, tmp_path / "corpus")
        assert np.array_equal(created.tokens, whole.tokens)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "text", "whole"]

    def test_an_error_in_the_middle_leaves_the_older_corpus(
        self, text: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.prepared(text, tmp_path / "corpus")
        (tmp_path / "text" / "1.txt").write_bytes(b"fine\n\xff\n")
        with pytest.raises(DataError, match="not UTF-8"):
            self.prepared(load_text_source(str(tmp_path / "text")), tmp_path / "corpus")
        assert load_corpus(tmp_path / "corpus").digest == first.digest
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "text"]

    @pytest.mark.parametrize("content", ["", "\n \n\t\n"])
    def test_nothing_but_empty_lines_is_no_corpus(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.txt").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match="holds no text"):
            self.prepared(load_text_source(str(tmp_path)), tmp_path / "corpus")
        assert not (tmp_path / "corpus").exists()


def test_a_damaged_corpus_says_where_and_what_to_do(tmp_path: Path) -> None:
    built(tmp_path, "the cat sleeps")
    (tmp_path / "corpus" / "lines.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="corpus: cannot be read") as caught:
        load_corpus(tmp_path / "corpus")
    assert "delete" in caught.value.hint
