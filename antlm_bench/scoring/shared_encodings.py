"""Encodings that checkpoints with equal tokenizers share, so that texts are tokenized once.

Checkpoints of one training run have the same tokenizer, and are scored on the same chunks of texts.
A chunk's encodings are kept under a hash of everything that they depend on: the loaded tokenizer
and its files, the encoder's special tokens and limits, the texts, their spans and sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from antlm_bench.scoring.source_text import PairEncoder
from antlm_bench.scoring.text import TextEncoder
from antlm_bench.types import EncodedBatch, Encodings, Span

MAX_BYTES = 128 * 1024**2
"""Memory of the encodings that are kept. The zero-shot suites of a BabyLM year need 100 MB."""
ARRAY_OVERHEAD = 170
"""Bytes of an array besides its numbers: more than those of a batch of one short text."""


@dataclass(slots=True)
class _Entry:
    encodings: Encodings
    num_bytes: int
    last_checkpoint: int
    """Number of the checkpoint that used it last."""


class EncodingCache:
    """Keeps up to `max_bytes` of encodings.

    Every checkpoint asks for the same chunks in the same order, so dropping the oldest encodings
    would drop each just before it is asked for again. Instead, a full cache drops the encodings
    that neither this checkpoint nor the one before it used. If that makes no room, new encodings
    are not kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: dict[str, _Entry] = {}
        self._num_checkpoints = 0

    def for_checkpoint(self, tokenizer: Any, files_hash: str) -> CheckpointEncodings:
        """Return the cache for the next checkpoint. Arguments as in `hash_tokenizer`."""
        self._num_checkpoints += 1
        return CheckpointEncodings(self, hash_tokenizer(tokenizer, files_hash))

    def get(self, key: str) -> Encodings | None:
        """Return the encodings under a key; None = they are not kept."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.last_checkpoint = self._num_checkpoints
        return entry.encodings

    def add(self, key: str, encodings: Encodings) -> None:
        """Keep encodings if there is room. Their arrays become read-only."""
        arrays = list(_list_arrays(encodings))
        size = sum(array.nbytes + ARRAY_OVERHEAD for array in arrays)
        if self.num_bytes + size > self.max_bytes:
            self._drop_unused()
        if self.num_bytes + size > self.max_bytes:
            return
        for array in arrays:
            array.flags.writeable = False
        self._entries[key] = _Entry(encodings, size, self._num_checkpoints)
        self.num_bytes += size

    def _drop_unused(self) -> None:
        """Drop what neither this checkpoint nor the one before it used."""
        for key, entry in list(self._entries.items()):
            if entry.last_checkpoint < self._num_checkpoints - 1:
                del self._entries[key]
                self.num_bytes -= entry.num_bytes


@dataclass(frozen=True, slots=True)
class CheckpointEncodings:
    """A cache as one checkpoint uses it: the keys contain the hash of its tokenizer."""

    cache: EncodingCache
    tokenizer_hash: str

    def encode(
        self,
        encoder: TextEncoder,
        texts: Sequence[str],
        spans: Sequence[Span],
        sources: Sequence[str] | None = None,
    ) -> Encodings:
        """Return `encode_texts` of the arguments, from the cache if it has them."""
        settings = encoder.describe_settings()
        content = [self.tokenizer_hash, settings, list(texts), list(spans), sources]
        key = hashlib.sha256(repr(content).encode()).hexdigest()
        encodings = self.cache.get(key)
        if encodings is None:
            encodings = encode_texts(encoder, texts, spans, sources)
            self.cache.add(key, encodings)
        return encodings


def encode_texts(
    encoder: TextEncoder,
    texts: Sequence[str],
    spans: Sequence[Span],
    sources: Sequence[str] | None = None,
) -> Encodings:
    """Encode texts with their scored spans. sources: only a PairEncoder reads them."""
    if isinstance(encoder, PairEncoder):
        return encoder.encode(texts, spans, sources)
    return encoder.encode(texts, spans)


def hash_tokenizer(tokenizer: Any, files_hash: str) -> str:
    """Return a hash of a loaded tokenizer. Tokenizers with the same hash tokenize all texts alike.

    files_hash: hash of its files, which do not decide everything: config.json chooses the class.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = [
        files_hash,
        type(tokenizer).__module__,
        type(tokenizer).__qualname__,
        None if backend is None else backend.to_str(),
        tokenizer.unk_token_id,
        tokenizer.all_special_ids,
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _list_arrays(encodings: Encodings) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the arrays of the flags and of all batches."""
    yield from (encodings.unk, encodings.too_long, *encodings.flags.values())
    for batch in encodings.batches:
        for name in EncodedBatch.__dataclass_fields__:
            value = getattr(batch, name)
            if isinstance(value, np.ndarray):
                yield value
