"""Text to rows of token ids: a tokenizer trained on the corpus, the whole corpus as one
memory-mapped stream, and windows of it.

Either every line begins with <s> (and ends with </s> where the recipe says so), so that a
checkpoint knows the token that scoring puts before a sentence; or files are encoded whole, as
BabyLlama's are. A row is a window of the stream; the index of lines and documents says where it may
attend and how many words it holds. Built once per output folder, whole or not at all.
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
HELD_OUT_DIR = "held_out"  # the folder of the text that is not trained on, inside the corpus
FIRST_TEXT_ID = len(SPECIAL_TOKENS)  # ids from here on are text

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream of n token ids with its index.

    tokens (n,); lines (l + 1,) where each line begins, and n; words (l + 1,) words before each
    line; documents (d + 1,) where each document begins, and n. digest: of text, tokenizer and
    format. held_out: the text that is not trained on, None if there is none.
    """

    tokens: NDArray[Any]
    line_starts: Int64
    words_before_line: Int64
    document_starts: Int64
    tokenizer: Any
    digest: str
    held_out: Corpus | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def read_rows(self, starts: Int64, length: int) -> tuple[Int64, Int64]:
        """Windows that begin at `first` (r,): ids (r, length), and the document that each token
        belongs to.
        """
        place = starts[:, None] + np.arange(length)
        segments = np.searchsorted(self.document_starts, place, side="right")
        return self.tokens[place].astype(np.int64), segments

    def count_words(self, starts: Int64, length: int | Int64) -> float:
        """Words (as BabyLM counts them) in such windows; a cut line counts by its share of tokens.
        """
        ends = np.interp(
            np.stack([starts, starts + length]), self.line_starts, self.words_before_line
        )
        return float((ends[1] - ends[0]).sum())


def prepare_corpus(
    source: TextSource,
    spec: CorpusSpec,
    tokenizer_spec: TokenizerSpec,
    max_length: int,
    folder: Path,
) -> Corpus:
    """The corpus in `folder`: opened if it holds this very one, else built. Raises DataError for an
    empty text.
    """
    recorded = [
        CORPUS_FORMAT_VERSION,
        source.digest,
        spec.model_dump(mode="json"),
        tokenizer_spec.model_dump(mode="json"),
        max_length,
    ]
    digest = sha256(json.dumps(recorded).encode()).hexdigest()
    if not _is_up_to_date(folder, digest):
        temporary = folder.with_name(
            f".{folder.name}.tmp"
        )  # one name, so that what a kill left is cleared here
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
    """A corpus that `prepare` has built. Raises DataError if its files are damaged."""
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        digest = (folder / "digest").read_text(encoding="utf-8")
        held_out = folder / HELD_OUT_DIR
        rest = _load_token_stream(held_out, tokenizer, digest, None) if held_out.is_dir() else None
        return _load_token_stream(folder, tokenizer, digest, rest)
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
    kept, rest = hold_out_lines(source, spec.held_out) if spec.held_out else (source, None)
    _write_token_stream(kept, tokenizer, spec, folder)
    if rest:
        if not any(True for part in rest.files for _ in part.iter_non_blank_lines()):
            hint = "give a larger --corpus, or --set corpus.held_out=0"
            raise DataError(
                f"no line is held out by a share of {spec.held_out:g}",
                location=source.name,
                hint=hint,
            )
        (folder / HELD_OUT_DIR).mkdir()
        _write_token_stream(rest, tokenizer, spec, folder / HELD_OUT_DIR)
    published = strip_space_before_mask(tokenizer)  # the stream above is encoded without this
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=published, **SPECIAL_TOKENS, model_max_length=max_length
    )
    wrapped.save_pretrained(folder)


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
    """Tell whether two of our tokenizers give every training text the same tokens.

    Tokenizers that older versions saved keep the space before a <mask>. That is no difference.
    """
    return strip_space_before_mask(tokenizer).to_str() == strip_space_before_mask(other).to_str()


def _tokenizer_training_lines(source: TextSource, spec: CorpusSpec) -> Iterator[str]:
    """What the tokenizer is trained on, line by line; where files are encoded whole, lines keep
    their ends.
    """
    for part in source.files:
        if spec.layout == "lines":
            yield from (line for _, line in part.iter_non_blank_lines())
        else:
            yield from (
                line for block in iter_document_blocks(part.iter_lines()) for line in block.lines
            )


def _write_token_stream(
    source: TextSource, tokenizer: Tokenizer, spec: CorpusSpec, folder: Path
) -> None:
    wide = np.uint16 if len(tokenizer.get_vocab()) <= 2**16 else np.uint32
    tokens: list[NDArray[Any]] = []
    lengths: list[int] = []
    words: list[int] = []
    opens: list[bool] = []
    encode = _encode_lines if spec.layout == "lines" else encode_file
    for part in source.files:
        for ids, counts, word_counts, begins in encode(tokenizer, part, spec.eos):
            tokens.append(np.asarray(ids, wide))
            lengths += counts
            words += word_counts
            opens += [begin or spec.document == "line" for begin in begins]
    if not sum(words):
        raise DataError(
            "the corpus holds no text", location=source.name, hint="all of its lines are empty"
        )
    if spec.document == "corpus":
        opens = [number == 0 for number in range(len(opens))]
    lines = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "lines.npy", lines)
    np.save(folder / "words.npy", np.concatenate([[0], np.cumsum(words, dtype=np.int64)]))
    np.save(folder / "documents.npy", np.append(lines[:-1][np.array(opens)], lines[-1]))


# ids of a block of lines, and per line: tokens, words, whether a document begins with it
EncodedBlock = tuple[list[int], list[int], list[int], list[bool]]


def _encode_lines(tokenizer: Tokenizer, text_file: TextFile, eos: bool) -> Iterator[EncodedBlock]:
    """Every line by itself, behind <s>."""
    ends = [EOS_ID] if eos else []
    for block in batch_lines(text_file.iter_non_blank_lines()):
        encoded = tokenizer.encode_batch_fast([text for _, text in block], add_special_tokens=False)
        ids = [[BOS_ID, *one.ids, *ends] for one in encoded]
        words = [count_words(text) for _, text in block]
        yield (
            [i for line in ids for i in line],
            [*map(len, ids)],
            words,
            [begins for begins, _ in block],
        )


def encode_file(
    tokenizer: Tokenizer, text_file: TextFile, eos: bool = False
) -> Iterator[EncodedBlock]:
    """A file as one text, line breaks and all; it is cut for memory's sake where that changes no
    token.
    """
    del eos  # recipes with eos and layout 'files' are rejected
    for block in iter_document_blocks(text_file.iter_lines()):
        encoded = tokenizer.encode("".join(block.lines), add_special_tokens=False)
        starts = np.cumsum([0, *map(len, block.lines)])[:-1]
        at = np.array([begin for begin, _ in encoded.offsets], np.int64)
        counts = np.bincount(np.searchsorted(starts, at, side="right") - 1, minlength=len(starts))
        begins = [block.starts_document and number == 0 for number in range(len(starts))]
        yield encoded.ids, counts.tolist(), [*map(count_words, block.lines)], begins


def train_tokenizer(
    lines: Iterator[str], spec: TokenizerSpec, corpus_spec: CorpusSpec
) -> Tokenizer:
    """A byte-level BPE with the specials at ids 0 to 4.

    For a corpus of lines it puts a space before the first word and writes `<s> A`, of a pair
    `<s> A <s> B`: <s> is the only special between two texts that the model has seen. If rows hold
    </s>, it writes `<s> A </s>` and `<s> A </s> B </s>`.

    For files that are encoded whole it adds nothing to a text, no space either: it is trained with
    one before every line and used without, as BabyLlama's is (the library of that time switched it
    off). Of a pair it separates the texts: `A <s> B`.
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
    single, pair = (
        ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
        if corpus_spec.eos
        else ("<s> $A", "<s> $A <s> $B:1")
    )
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
