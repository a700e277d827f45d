"""Unigram models over a checkpoint's own tokens, for SLOR (metrics.acceptability).

The log-probability of a token that occurs c times in a corpus of N tokens is

    log((c + 1) / (N + V)),

with a vocabulary of V tokens (add-one smoothing; the papers on SLOR state none). Every line of the
corpus is a text. If a convention scores EOS after a text, EOS counts once per line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from antlm_bench.errors import DataError, UsageError
from antlm_bench.scoring.methods import Method
from antlm_bench.training.text_sources import TextSource, load_text_source
from antlm_bench.types import Floats, Item

TRAINING_TEXT = "training"
"""Value of --unigrams: the text that a checkpoint of `antlm-bench train` was trained on."""
LINES_AT_ONCE = 10_000
"""Lines that are tokenized in one call."""
TRAINING_FILES = ("tokens", "lines")
"""Arrays of an encoded corpus (training.corpus): ids of all tokens, first token of each line."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Counts of the tokens of a corpus."""

    counts: Floats
    """(V,) number of occurrences of each token, without special tokens around a text."""
    num_lines: int


@dataclass(slots=True)
class UnigramModel:
    """A unigram model of a corpus. Its tokens are counted when the first text is scored."""

    digest: str
    """sha256 of its content."""
    count_tokens: Callable[[Any], TokenCounts]
    """TextEncoder of a checkpoint -> counts of its tokens."""
    _logprobs: dict[str, Floats] = field(default_factory=dict, init=False, repr=False)
    """Attention -> log-probability of each token id."""

    def score_items(self, model: Any, items: Sequence[Item], method: Method) -> Floats:
        """Return the unigram log-probability (n,) of the scored tokens of each item's option; 0 for
        a text that is too long. model: a Checkpoint.
        """
        attention = method.parts[0][0]
        options = [item.options[0] for item in items]
        encodings = model.encode([o.text for o in options], [o.span for o in options], attention)
        logprobs = self._token_logprobs(model.encoders[attention], attention)
        scores = np.zeros(len(items))
        for batch in encodings.batches:
            scores[batch.text_index] = np.where(batch.score_mask, logprobs[batch.ids], 0.0).sum(1)
        return scores

    def _token_logprobs(self, encoder: Any, attention: str) -> Floats:
        """Return the log-probability of each token id (V,)."""
        if attention not in self._logprobs:
            corpus = self.count_tokens(encoder)
            counts = np.zeros(max(encoder.vocab_size, len(corpus.counts)))
            counts[: len(corpus.counts)] = corpus.counts
            for special in encoder.specials.after:
                counts[special] += corpus.num_lines
            self._logprobs[attention] = np.log((counts + 1) / (counts.sum() + len(counts)))
        return self._logprobs[attention]


def open_unigrams(ref: str, checkpoint_dir: Path | None) -> UnigramModel:
    """Return the unigram model of a corpus: a file or folder of text, a suite with a grammar, a hub
    dataset, or TRAINING_TEXT.

    checkpoint_dir: folder of the checkpoint; None = it is on the hub. Raises DataError (no text),
    UsageError (no training folder).
    """
    if ref == TRAINING_TEXT:
        return _open_training_text(checkpoint_dir)
    source = load_text_source(ref)
    return UnigramModel(source.digest, partial(_count_source, source))


def _count_source(source: TextSource, encoder: Any) -> TokenCounts:
    """Count the tokens of all lines that are not blank, each tokenized as a text of its own."""
    counts, num_lines = np.zeros(max(encoder.vocab_size, len(encoder.tokenizer))), 0
    for file in source.files:
        lines = (text for _, text in file.iter_non_blank_lines())
        while batch := list(islice(lines, LINES_AT_ONCE)):
            encoded = encoder.tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            ids = np.concatenate([np.asarray(line, np.int64) for line in encoded])
            counts += np.bincount(ids, minlength=len(counts))
            num_lines += len(batch)
    if not counts.any():
        raise DataError(
            "the text has no tokens", location=f"--unigrams {source.name}", hint="is it empty?"
        )
    return TokenCounts(counts, num_lines)


def _open_training_text(checkpoint_dir: Path | None) -> UnigramModel:
    """Return the unigram model of the tokens that `train` keeps beside its checkpoints."""
    corpus_dir = None if checkpoint_dir is None else checkpoint_dir.resolve().parent / "corpus"
    files = ("digest", *(f"{name}.npy" for name in TRAINING_FILES))
    if corpus_dir is None or not all((corpus_dir / name).is_file() for name in files):
        raise UsageError(
            "the checkpoint does not lie in a folder that antlm-bench train wrote, with its corpus",
            location=f"--unigrams {TRAINING_TEXT}",
            hint="name the text: --unigrams FILE",
        )
    digest = hashlib.sha256((corpus_dir / "digest").read_bytes()).hexdigest()
    return UnigramModel(digest, partial(_count_training_tokens, corpus_dir))


def _count_training_tokens(corpus_dir: Path, encoder: Any) -> TokenCounts:
    """Count the tokens of a corpus that `train` has encoded, without special tokens."""
    size = max(encoder.vocab_size, len(encoder.tokenizer))
    try:
        tokens, lines = (
            np.load(corpus_dir / f"{name}.npy", mmap_mode="r") for name in TRAINING_FILES
        )
        counts = np.bincount(tokens, minlength=size).astype(float)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise DataError(
            f"the tokens of the training text cannot be read: {error}",
            location=str(corpus_dir),
            hint="name the text: --unigrams FILE",
        ) from error
    counts[list(encoder.tokenizer.all_special_ids)] = 0
    return TokenCounts(counts, len(lines) - 1)
