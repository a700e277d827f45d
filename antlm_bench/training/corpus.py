"""Turn text into rows of token ids: train a tokenizer, encode the corpus, read windows of it.

The corpus is one memory-mapped stream of tokens. A row is a window of this stream. With layout
"lines" every line begins with <s> (and ends with </s> if the recipe has `eos = true`), so that the
model is trained with the token that scoring puts before a sentence. With layout "files" every file
is encoded as one text, as in BabyLlama. An index of documents tells which tokens may attend to each
other, and an index of lines tells how many words a row has. A corpus is built once per output
folder, atomically.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

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

from antlm_bench.atomic_files import replace_folder
from antlm_bench.errors import DataError
from antlm_bench.progress import Progress
from antlm_bench.runs.folder_io import suggest_reading
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

CORPUS_FORMAT_VERSION = 1  # increase it if the same text and recipe give another token stream
PAD_ID, BOS_ID, EOS_ID, MASK_ID, UNK_ID = range(5)
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
    "unk_token": "<unk>",
}
FIRST_REGULAR_ID = len(SPECIAL_TOKENS)  # smaller ids are special tokens
HELD_OUT_DIR = "held_out"  # subfolder with the text that is not trained on

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream of n token ids with an index of its l lines and d documents."""

    tokens: NDArray[Any]
    """(n,) token ids."""
    line_starts: Int64
    """(l + 1,) index of each line's first token; the last entry is n."""
    words_before_line: Int64
    """(l + 1,) number of words before each line; the last entry is the total."""
    document_starts: Int64
    """(d + 1,) index of each document's first token; the last entry is n."""
    tokenizer: Any
    digest: str
    """Hash of text, tokenizer and format."""
    held_out: Corpus | None = None
    """The text that is not trained on, if the recipe holds some out."""

    def __len__(self) -> int:
        return len(self.tokens)

    def read_rows(self, starts: Int64, length: int) -> tuple[Int64, Int64]:
        """Return windows of the stream as (ids, document_ids), both (r, length).

        starts: (r,) index of each window's first token. document_ids: number of each token's
        document in the corpus.
        """
        positions = starts[:, None] + np.arange(length)
        document_ids = np.searchsorted(self.document_starts, positions, side="right")
        return self.tokens[positions].astype(np.int64), document_ids

    def count_words(self, starts: Int64, length: int | Int64) -> float:
        """Count the words (as BabyLM does) in windows that begin at `starts`.

        Part of a line counts in proportion to its tokens.
        """
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
    """Load the corpus in `folder`, after (re)building it unless it fits all arguments.

    max_length: written into the tokenizer. Raises DataError for an empty text.
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

        def write(temporary: Path) -> None:
            _build_corpus(source, spec, tokenizer_spec, max_length, temporary)
            (temporary / "digest").write_text(digest, encoding="utf-8")

        replace_folder(folder, write)
    return load_corpus(folder)


def load_corpus(folder: Path) -> Corpus:
    """Open a corpus that `prepare_corpus` has built. Raises DataError if its files are damaged."""
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        digest = (folder / "digest").read_text(encoding="utf-8")
        held_out = None
        if (folder / HELD_OUT_DIR).is_dir():
            held_out = _load_token_stream(folder / HELD_OUT_DIR, tokenizer, digest, held_out=None)
        return _load_token_stream(folder, tokenizer, digest, held_out)
    except (OSError, ValueError, EOFError) as error:
        repair = "delete the folder; the next run builds it again from the text"
        hint = suggest_reading(error, repair)
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
                f"no line is held out: corpus.held_out = {spec.held_out:g} is too small",
                location=source.name,
                hint="give a larger --corpus, or --set corpus.held_out=0",
            )
        (folder / HELD_OUT_DIR).mkdir()
        _write_token_stream(held_out, tokenizer, spec, folder / HELD_OUT_DIR)
    saved_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=strip_space_before_mask(tokenizer),  # only for users of the checkpoint
        **SPECIAL_TOKENS,
        model_max_length=max_length,
    )
    saved_tokenizer.save_pretrained(folder)


def strip_space_before_mask(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy in which <mask> absorbs the space before it, as in RoBERTa.

    In training the space before a word is part of the word's first token, so masking hides both.
    `tokenizers` cannot redefine an added token, so this function edits the serialised tokenizer.
    """
    settings = json.loads(tokenizer.to_str())
    for token in settings["added_tokens"]:
        if token["content"] == SPECIAL_TOKENS["mask_token"]:
            token["lstrip"] = True
    return Tokenizer.from_str(json.dumps(settings))


def tokenizers_match(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two tokenizers of this package give every training text the same tokens.

    Older versions did not call `strip_space_before_mask`; this difference is ignored.
    """
    return strip_space_before_mask(tokenizer).to_str() == strip_space_before_mask(other).to_str()


def _tokenizer_training_lines(source: TextSource, spec: CorpusSpec) -> Iterator[str]:
    """Yield the tokenizer's training lines; they keep their line breaks with layout 'files'."""
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
    line_lengths: list[int] = []
    line_words: list[int] = []
    starts_document: list[bool] = []
    num_tokens = 0
    with Progress() as progress:
        for block in _encode_source(source, tokenizer, spec):
            tokens.append(np.asarray(block.ids, id_type))
            line_lengths += block.line_lengths
            line_words += block.line_words
            starts_document += [
                starts or spec.document == "line" for starts in block.starts_document
            ]
            num_tokens += len(block.ids)
            progress.describe(f"{num_tokens:,} tokens encoded")
    if not sum(line_words):
        raise DataError(
            "the corpus holds no text", location=source.name, hint="all lines are empty"
        )
    if spec.document == "corpus":
        starts_document = [index == 0 for index in range(len(starts_document))]
    line_starts = np.concatenate([[0], np.cumsum(line_lengths, dtype=np.int64)])
    words_before_line = np.concatenate([[0], np.cumsum(line_words, dtype=np.int64)])
    document_starts = np.append(line_starts[:-1][np.array(starts_document)], line_starts[-1])
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "lines.npy", line_starts)
    np.save(folder / "words.npy", words_before_line)
    np.save(folder / "documents.npy", document_starts)


class EncodedBlock(NamedTuple):
    """Encoded lines of a file."""

    ids: list[int]
    """Token ids of all lines, one after another."""
    line_lengths: list[int]
    """Number of tokens per line."""
    line_words: list[int]
    """Number of words per line."""
    starts_document: list[bool]
    """Whether a document begins with the line."""


def _encode_source(
    source: TextSource, tokenizer: Tokenizer, spec: CorpusSpec
) -> Iterator[EncodedBlock]:
    """Encode all files by the rule of the corpus."""
    for file in source.files:
        if spec.layout == "lines":
            yield from _encode_lines(tokenizer, file, spec.eos)
        else:
            yield from encode_file(tokenizer, file)


def _encode_lines(tokenizer: Tokenizer, text_file: TextFile, eos: bool) -> Iterator[EncodedBlock]:
    """Encode every line separately, with <s> before it and, if `eos`, </s> after it."""
    suffix = [EOS_ID] if eos else []
    for block in batch_lines(text_file.iter_non_blank_lines()):
        texts = [text for _, text in block]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lines = [[BOS_ID, *encoding.ids, *suffix] for encoding in encodings]
        ids = [token for line in lines for token in line]
        starts = [starts_document for starts_document, _ in block]
        yield EncodedBlock(ids, [*map(len, lines)], [*map(count_words, texts)], starts)


def encode_file(tokenizer: Tokenizer, text_file: TextFile) -> Iterator[EncodedBlock]:
    """Encode a file as one text, with its line breaks.

    The file is read in blocks to save memory; their borders do not change the tokens.
    """
    for block in iter_document_blocks(text_file.iter_lines()):
        encoding = tokenizer.encode("".join(block.lines), add_special_tokens=False)
        line_starts = np.cumsum([0, *map(len, block.lines)])[:-1]
        token_starts = np.array([start for start, _ in encoding.offsets], np.int64)
        line_of_token = np.searchsorted(line_starts, token_starts, side="right") - 1
        lengths = np.bincount(line_of_token, minlength=len(line_starts)).tolist()
        starts = [block.starts_document and index == 0 for index in range(len(line_starts))]
        yield EncodedBlock(encoding.ids, lengths, [*map(count_words, block.lines)], starts)


def train_tokenizer(
    lines: Iterator[str], spec: TokenizerSpec, corpus_spec: CorpusSpec
) -> Tokenizer:
    """Train a byte-level BPE with the special tokens at ids 0 to 4.

    With layout "lines" the tokenizer puts a space before the first word, encodes a text A as `<s>
    A`, and a pair as `<s> A <s> B`, because <s> is the only special token between two texts in
    training. With `eos` it gives `<s> A </s>` and `<s> A </s> B </s>`.

    With layout "files" it adds neither a space nor a special token to a text, and encodes a pair as
    `A <s> B`. Only its training puts a space before every line, because BabyLlama's tokenizer was
    trained with one and used without (its version of `tokenizers` switched the space off).
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
