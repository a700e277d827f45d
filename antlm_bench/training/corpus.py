"""Text to rows of token ids: a tokenizer trained on the corpus, the whole corpus as one memory-mapped stream, and
windows of it.

Every line begins with <s> (and ends with </s> where the recipe says so), so that a checkpoint knows the token that
scoring puts before a sentence. A row is a window of the stream; the index of lines and documents says where it may
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
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from antlm_bench.errors import DataError
from antlm_bench.training.recipe import CorpusSpec, TokenizerSpec
from antlm_bench.training.text import Line, Source, blocks, count_words, limited

FORMAT = 1  # raised whenever the same text and recipe give another stream
PAD, BOS, EOS, MASK, UNK = range(5)
SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
FIRST_WORD = len(SPECIALS)  # ids from here on are text

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A stream of n token ids with its index.

    tokens (n,); lines (l + 1,) where each line begins, and n; words (l + 1,) words before each line; documents
    (d + 1,) where each document begins, and n. digest: of text, tokenizer and format.
    """

    tokens: NDArray[Any]
    lines: Int64
    words: Int64
    documents: Int64
    tokenizer: Any
    digest: str

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, first: Int64, length: int) -> tuple[Int64, Int64]:
        """Windows that begin at `first` (r,): ids (r, length), and the document that each token belongs to."""
        place = first[:, None] + np.arange(length)
        segments = np.searchsorted(self.documents, place, side="right")
        return self.tokens[place].astype(np.int64), segments

    def words_in(self, first: Int64, length: int) -> float:
        """Words (as BabyLM counts them) in such windows; a cut line counts by its share of tokens."""
        ends = np.interp(np.stack([first, first + length]), self.lines, self.words)
        return float((ends[1] - ends[0]).sum())


def prepare(text: Source, spec: CorpusSpec, vocabulary: TokenizerSpec, positions: int, folder: Path) -> Corpus:
    """The corpus in `folder`: opened if it holds this very one, else built. Raises DataError for an empty text."""
    recorded = [FORMAT, text.digest, spec.model_dump(mode="json"), vocabulary.model_dump(mode="json"), positions]
    digest = sha256(json.dumps(recorded).encode()).hexdigest()
    if not _holds(folder, digest):
        temporary = folder.with_name(f".{folder.name}.tmp")  # one name, so that what a kill left is cleared here
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _build(limited(text, spec.words), spec, vocabulary, positions, temporary)
            (temporary / "digest").write_text(digest, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return read(folder)


def read(folder: Path) -> Corpus:
    """A corpus that `prepare` has built. Raises DataError where something has happened to it since."""
    try:
        tokens, lines, words, documents = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("tokens", "lines", "words", "documents")
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, EOFError) as error:
        hint = "delete that folder: it is built again from the text"
        raise DataError(f"cannot be read: {error}", place=str(folder), hint=hint) from error
    return Corpus(tokens, lines, words, documents, tokenizer, (folder / "digest").read_text(encoding="utf-8"))


def _holds(folder: Path, digest: str) -> bool:
    try:
        return (folder / "digest").read_text(encoding="utf-8") == digest
    except OSError:
        return False


def _build(text: Source, spec: CorpusSpec, vocabulary: TokenizerSpec, positions: int, folder: Path) -> None:
    tokenizer = train_tokenizer((line for part in text.parts for _, line in part.lines()), vocabulary, spec.eos)
    wide = np.uint16 if len(tokenizer.get_vocab()) <= 2**16 else np.uint32
    tokens: list[NDArray[Any]] = []
    lengths: list[int] = []
    words: list[int] = []
    opens: list[bool] = []
    for part in text.parts:
        for block in blocks(part.lines()):
            ids = _encode(tokenizer, block, spec.eos)
            tokens.append(np.fromiter((i for line in ids for i in line), wide))
            lengths += map(len, ids)
            words += (count_words(line) for _, line in block)
            opens += (begins or spec.document == "line" for begins, _ in block)
    if not lengths:
        raise DataError("the corpus holds no text", place=text.name, hint="all of its lines are empty")
    lines = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    np.save(folder / "tokens.npy", np.concatenate(tokens))
    np.save(folder / "lines.npy", lines)
    np.save(folder / "words.npy", np.concatenate([[0], np.cumsum(words, dtype=np.int64)]))
    np.save(folder / "documents.npy", np.append(lines[:-1][np.array(opens)], lines[-1]))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIALS, model_max_length=positions)
    wrapped.save_pretrained(folder)


def _encode(tokenizer: Tokenizer, block: list[Line], eos: bool) -> list[list[int]]:
    ends = [EOS] if eos else []
    encoded = tokenizer.encode_batch_fast([text for _, text in block], add_special_tokens=False)
    return [[BOS, *one.ids, *ends] for one in encoded]


def train_tokenizer(lines: Iterator[str], spec: TokenizerSpec, eos: bool) -> Tokenizer:
    """Train a byte-level BPE with the specials at ids 0 to 4 and the template of the training rows.

    eos: rows hold </s>. A text is then `<s> A </s>` and a pair `<s> A </s> B </s>`. Else a text is
    `<s> A` and a pair `<s> A <s> B`: <s> is the only special between two texts that the model has
    seen, and </s> would be untrained.
    """
    bpe = Tokenizer(models.BPE(unk_token=SPECIALS["unk_token"]))
    if spec.normalizer:
        bpe.normalizer = getattr(normalizers, spec.normalizer)()
    split: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if spec.single_digits else []
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=True), *split])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocabulary,
        min_frequency=spec.min_frequency,
        special_tokens=[*SPECIALS.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    single, pair = ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1") if eos else ("<s> $A", "<s> $A <s> $B:1")
    bpe.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return bpe
