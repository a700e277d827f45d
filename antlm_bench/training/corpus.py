"""Turn text into rows of token ids: train a tokenizer, encode the corpus, read windows of it.

The corpus is one memory-mapped stream of tokens. Either every line begins with <s> (and ends with
</s> if the recipe says so), so that a checkpoint knows the token that scoring puts before a
sentence; or files are encoded whole, as BabyLlama's are. A row is a window of the stream; the index
of lines and documents gives its attention and its number of words. A corpus is built once per
output folder, atomically.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from antlm_bench.errors import DataError
from antlm_bench.training.recipe import CorpusSpec, TokenizerSpec
from antlm_bench.training.text_sources import (
    TextFile,
    TextSource,
    batch_lines,
    count_words,
    hold_out_lines,
    iter_document_blocks,
    limit_words,
)

CORPUS_FORMAT_VERSION = 1  # raised whenever the same text and recipe give another stream
PAD_ID, BOS_ID, EOS_ID, MASK_ID, UNK_ID = range(5)
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
    "unk_token": "<unk>",
}
FIRST_TEXT_ID = len(SPECIAL_TOKENS)  # ids from here on are text
HELD_OUT_DIR = "held_out"  # subfolder of the corpus: the text that is not trained on

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream of n token ids with an index of its l lines and d documents."""

    tokens: NDArray[Any]
    """(n,)."""
    line_starts: Int64
    """(l + 1,) where each line begins, and n."""
    words_before_line: Int64
    """(l + 1,) words before each line, and in all."""
    document_starts: Int64
    """(d + 1,) where each document begins, and n."""
    tokenizer: Any
    digest: str
    """Of text, tokenizer and format."""
    held_out: Corpus | None = None
    """The text that is not trained on, if the recipe holds some out."""

    def __len__(self) -> int:
        return len(self.tokens)

    def read_rows(self, starts: Int64, length: int) -> tuple[Int64, Int64]:
        """Return the windows that begin at `starts` (r,): ids and documents, both (r, length)."""
        positions = starts[:, None] + np.arange(length)
        segments = np.searchsorted(self.document_starts, positions, side="right")
        return self.tokens[positions].astype(np.int64), segments

    def count_words(self, starts: Int64, length: int | Int64) -> float:
        """Count the words (as BabyLM does) in windows; a part of a line counts by its tokens."""
        borders = np.stack([starts, starts + length])
        words = np.interp(borders, self.line_starts, self.words_before_line)
        return float((words[1] - words[0]).sum())


def prepare_corpus(
    source: TextSource,
    spec: CorpusSpec,
    tokenizer_spec: TokenizerSpec,
    max_length: int,
    folder: Path,
) -> Corpus:
    """Open the corpus in `folder` if it is this one, else build it. Raises DataError for an empty
    text.
    """
    key = [
        CORPUS_FORMAT_VERSION,
        source.digest,
        spec.model_dump(mode="json"),
        tokenizer_spec.model_dump(mode="json"),
        max_length,
    ]
    digest = sha256(json.dumps(key).encode()).hexdigest()
    if not _is_up_to_date(folder, digest):
        # Always the same name: what a killed process left there is cleared here.
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _build_corpus(source, spec, tokenizer_spec, max_length, temporary)
            (temporary / "digest").write_text(digest, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return load_corpus(folder)


def load_corpus(folder: Path) -> Corpus:
    """Open a corpus that `prepare_corpus` has built. Raises DataError if its files are damaged."""
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        digest = (folder / "digest").read_text(encoding="utf-8")
        held_out = None
        if (folder / HELD_OUT_DIR).is_dir():
            held_out = _load_token_stream(folder / HELD_OUT_DIR, tokenizer, digest, None)
        return _load_token_stream(folder, tokenizer, digest, held_out)
    except (OSError, ValueError, EOFError) as error:
        hint = "delete that folder: it is built again from the text"
        raise DataError(f"cannot be read: {error}", location=str(folder), hint=hint) from error


def _load_token_stream(
    folder: Path, tokenizer: Any, digest: str, held_out: Corpus | None
) -> Corpus:
    tokens, lines, words, documents = (
        np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("tokens", "lines", "words", "documents")
    )
    return Corpus(tokens, lines, words, documents, tokenizer, digest, held_out)


def _is_up_to_date(folder: Path, digest: str) -> bool:
    try:
        return (folder / "digest").read_text(encoding="utf-8") == digest
    except OSError:
        return False


def _build_corpus(
    source: TextSource,
    spec: CorpusSpec,
    tokenizer_spec: TokenizerSpec,
    max_length: int,
    folder: Path,
) -> None:
    source = limit_words(source, spec.words)
    tokenizer = train_tokenizer(_tokenizer_training_lines(source, spec), tokenizer_spec, spec)
    train, held_out = hold_out_lines(source, spec.held_out) if spec.held_out else (source, None)
    _write_token_stream(train, tokenizer, spec, folder)
    if held_out:
        if not any(True for file in held_out.files for _ in file.iter_non_blank_lines()):
            raise DataError(
                f"no line is held out by a share of {spec.held_out:g}",
                location=source.name,
                hint="give a larger --corpus, or --set corpus.held_out=0",
            )
        (folder / HELD_OUT_DIR).mkdir()
        _write_token_stream(held_out, tokenizer, spec, folder / HELD_OUT_DIR)
    saved_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=strip_space_before_mask(tokenizer),  # the stream is encoded without this
        **SPECIAL_TOKENS,
        model_max_length=max_length,
    )
    saved_tokenizer.save_pretrained(folder)


def strip_space_before_mask(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy whose <mask> takes the space before it, as RoBERTa's does.

    In training the space before a word is part of the word's first token, so it is hidden with it.
    The library ignores a second definition of an added token, so its serialised form is changed.
    """
    settings = json.loads(tokenizer.to_str())
    for token in settings["added_tokens"]:
        if token["content"] == SPECIAL_TOKENS["mask_token"]:
            token["lstrip"] = True
    return Tokenizer.from_str(json.dumps(settings))


def tokenizers_match(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two of our tokenizers give every training text the same tokens.

    The space before a <mask>, which tokenizers of older versions keep, is not a difference.
    """
    return strip_space_before_mask(tokenizer).to_str() == strip_space_before_mask(other).to_str()


def _tokenizer_training_lines(source: TextSource, spec: CorpusSpec) -> Iterator[str]:
    """Yield the tokenizer's training lines, with line ends if files are encoded whole."""
    for file in source.files:
        if spec.layout == "lines":
            yield from (text for _, text in file.iter_non_blank_lines())
        else:
            for block in iter_document_blocks(file.iter_lines()):
                yield from block.lines


def _write_token_stream(
    source: TextSource, tokenizer: Tokenizer, spec: CorpusSpec, folder: Path
) -> None:
    id_type = np.uint16 if len(tokenizer.get_vocab()) <= 2**16 else np.uint32
    tokens: list[NDArray[Any]] = []
    lengths: list[int] = []
    words: list[int] = []
    starts_document: list[bool] = []
    encode = _encode_lines if spec.layout == "lines" else encode_file
    for file in source.files:
        for ids, block_lengths, block_words, starts in encode(tokenizer, file, spec.eos):
            tokens.append(np.asarray(ids, id_type))
            lengths += block_lengths
            words += block_words
            starts_document += [start or spec.document == "line" for start in starts]
    if not sum(words):
        raise DataError(
            "the corpus holds no text", location=source.name, hint="all of its lines are empty"
        )
    if spec.document == "corpus":
        starts_document = [index == 0 for index in range(len(starts_document))]
    lines = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    documents = np.append(lines[:-1][np.array(starts_document)], lines[-1])
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "lines.npy", lines)
    np.save(folder / "words.npy", np.concatenate([[0], np.cumsum(words, dtype=np.int64)]))
    np.save(folder / "documents.npy", documents)


EncodedBlock = tuple[list[int], list[int], list[int], list[bool]]
"""The ids of some lines, and per line: tokens, words, whether a document begins with it."""


def _encode_lines(tokenizer: Tokenizer, text_file: TextFile, eos: bool) -> Iterator[EncodedBlock]:
    """Encode every line by itself, after <s>."""
    suffix = [EOS_ID] if eos else []
    for block in batch_lines(text_file.iter_non_blank_lines()):
        texts = [text for _, text in block]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lines = [[BOS_ID, *encoding.ids, *suffix] for encoding in encodings]
        ids = [token for line in lines for token in line]
        starts = [starts_document for starts_document, _ in block]
        yield ids, [*map(len, lines)], [*map(count_words, texts)], starts


def encode_file(
    tokenizer: Tokenizer, text_file: TextFile, eos: bool = False
) -> Iterator[EncodedBlock]:
    """Encode a file as one text, with its line breaks, in blocks that change no token.

    The blocks save memory.
    """
    del eos  # recipes with eos and layout 'files' are rejected
    for block in iter_document_blocks(text_file.iter_lines()):
        encoding = tokenizer.encode("".join(block.lines), add_special_tokens=False)
        line_starts = np.cumsum([0, *map(len, block.lines)])[:-1]
        token_starts = np.array([start for start, _ in encoding.offsets], np.int64)
        line_of_token = np.searchsorted(line_starts, token_starts, side="right") - 1
        lengths = np.bincount(line_of_token, minlength=len(line_starts)).tolist()
        starts = [block.starts_document and index == 0 for index in range(len(line_starts))]
        yield encoding.ids, lengths, [*map(count_words, block.lines)], starts


def train_tokenizer(
    lines: Iterator[str], spec: TokenizerSpec, corpus_spec: CorpusSpec
) -> Tokenizer:
    """Train a byte-level BPE with the special tokens at ids 0 to 4.

    For a corpus of lines it puts a space before the first word and writes `<s> A`, for a pair `<s>
    A <s> B`: <s> is the only special token between two texts that the model has seen. If rows hold
    </s>, it writes `<s> A </s>` and `<s> A </s> B </s>`.

    For files that are encoded whole it adds nothing to a text, not even a space: it is trained with
    one before every line and used without, as BabyLlama's is (the library of that time switched it
    off). It separates the texts of a pair: `A <s> B`.
    """
    bpe = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    if spec.normalizer:
        bpe.normalizer = getattr(normalizers, spec.normalizer)()
    bpe.pre_tokenizer = _build_pre_tokenizer(spec, prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        min_frequency=spec.min_frequency,
        special_tokens=[*SPECIAL_TOKENS.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if spec.alphabet == "bytes" else [],
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    single, pair = "<s> $A", "<s> $A <s> $B:1"
    if corpus_spec.eos:
        single, pair = "<s> $A </s>", "<s> $A </s> $B:1 </s>:1"
    if corpus_spec.layout == "files":
        bpe.pre_tokenizer = _build_pre_tokenizer(spec, prefix_space=False)
        single, pair = "$A", "$A <s> $B:1"
    bpe.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", BOS_ID), ("</s>", EOS_ID)]
    )
    return bpe


def _build_pre_tokenizer(spec: TokenizerSpec, prefix_space: bool) -> Any:
    split: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if spec.single_digits else []
    return pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=prefix_space), *split]
    )
