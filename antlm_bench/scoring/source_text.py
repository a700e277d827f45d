"""Encode the texts of encoder-decoders.

"cross": the encoder reads a source and the decoder a text after it. The decoder's row begins as in
training: with the token that the model's own shift of the labels puts first (its start token; in
mBART-25 the language), then what the tokenizer puts before a target (BART: <s>; mBART-50: the
language). The tokens behind a text are not scored (</s>, a language), as in causal models. The
source stands in the tokenizer's own template; a text without a source follows the template of an
empty text (T5: </s>; BART: <s> </s>), because an encoder must read something.

"denoising": the encoder reads the text with a token masked, and the decoder restores it. T5 has
sentinels; others have a mask token, and write the whole text again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from antlm_bench.errors import UsageError
from antlm_bench.scoring.text import (
    Specials,
    TextEncoder,
    check_bos_policy,
    check_ids,
    check_specials,
    detect_template,
    find_mask_token,
)
from antlm_bench.types import Attention, Bools, EncodedBatch, Encodings, Ints, Restoration

SENTINEL = "<extra_id_0>"
"""The first sentinel of T5's vocabulary."""
BYT5_TOKENIZER, BYT5_SENTINEL = "ByT5Tokenizer", 258
"""ByT5 was trained with its last byte as the first sentinel, not with <extra_id_0>: it reuses the
last byte ids as sentinels (Xue et al. 2022, TACL 10, section 3.1)."""


@dataclass(frozen=True, slots=True)
class Denoiser:
    """How a model was trained to restore masked text."""

    mask_id: int | None
    """The sentinel, or the mask token; None = it has none."""
    repeats_text: bool
    """As in Restoration."""
    no_mask_reason: str
    """Why `mask_id` is None; "" if it is not None."""


def find_denoiser(tokenizer: Any, vocab_size: int) -> Denoiser:
    """Find out how a model restores masked text: from its sentinels, or from its mask token.

    vocab_size: number of embeddings of the model. Pegasus has a mask token for sentences, which are
    what it restores, so that a token cannot be scored.
    """
    if type(tokenizer).__name__ == BYT5_TOKENIZER:
        return Denoiser(BYT5_SENTINEL, repeats_text=False, no_mask_reason="")
    sentinel_id = tokenizer.get_vocab().get(SENTINEL)
    if sentinel_id is not None and 0 <= sentinel_id < vocab_size:
        return Denoiser(sentinel_id, repeats_text=False, no_mask_reason="")
    if getattr(tokenizer, "mask_token_sent", None) is not None:
        reason = f"it restores whole sentences ({tokenizer.mask_token_sent}), never a token"
        return Denoiser(None, repeats_text=False, no_mask_reason=reason)
    mask_id, reason = find_mask_token(tokenizer, vocab_size)
    if mask_id is None:
        reason = f"its vocabulary has no sentinel {SENTINEL}, and {reason}"
    return Denoiser(mask_id, repeats_text=True, no_mask_reason=reason)


@dataclass(frozen=True, slots=True)
class EncodedSources:
    """What the encoder reads before each of n texts."""

    rows: tuple[Ints, ...]
    """Token ids of each source, special tokens included."""
    too_long: Bools
    """(n,) whether the source does not fit into the model."""
    flags: Mapping[str, Bools]
    """Name of types.FLAGS -> (n,)."""

    def attach_to(
        self, batch: EncodedBatch, texts: Sequence[int] | None = None
    ) -> Iterator[EncodedBatch]:
        """Yield the batch in parts whose sources have one length, without rows whose source is too
        long.

        texts: index of the source of each row; None = batch.text_index.
        """
        indices = np.asarray(batch.text_index if texts is None else texts)
        lengths = np.array([len(self.rows[index]) for index in indices])
        lengths[self.too_long[indices]] = 0
        last_words = batch.last_word_ids
        for length in np.unique(lengths[lengths > 0]):
            part = np.flatnonzero(lengths == length)
            yield EncodedBatch(
                batch.ids[part],
                batch.score_mask[part],
                batch.word_ids[part],
                batch.text_index[part],
                None if last_words is None else last_words[part],
                np.stack([self.rows[index] for index in indices[part]]),
            )


class PairEncoder(TextEncoder):
    """Encodes texts for a decoder, each with a source for the encoder."""

    def __init__(
        self, tokenizer: Any, start_id: int, bos: str, *, max_length: int | None, vocab_size: int
    ) -> None:
        """Create an encoder.

        start_id: the decoder's first token. bos: BOS policy; "never" leaves out all other special
        tokens. Raises CheckpointError for special tokens without an embedding, UsageError for an
        unknown policy.
        """
        check_bos_policy(bos)
        target, source = Specials(), Specials()
        if bos != "never":
            source, target = detect_template(tokenizer), detect_target_template(tokenizer)
        specials = Specials((start_id, *target.before))
        for each in (specials, source):
            check_specials(tokenizer, each, vocab_size)
        super().__init__(tokenizer, specials, max_length=max_length, vocab_size=vocab_size)
        self.start_id, self.source_specials = start_id, source
        self._text_encoder = TextEncoder(
            tokenizer, specials, max_length=max_length, vocab_size=vocab_size
        )

    def name_specials(self, attention: Attention) -> dict[str, Specials]:
        """Return the special tokens of the decoder's row and of the source, by name."""
        return {attention: self.specials, "source": self.source_specials}

    def with_bos_policy(self, attention: Attention, bos: str) -> PairEncoder:
        """Return an encoder with another BOS policy."""
        del attention
        return PairEncoder(
            self.tokenizer,
            self.start_id,
            bos,
            max_length=self.max_length,
            vocab_size=self.vocab_size,
        )

    def encode(
        self,
        texts: Sequence[str],
        spans: Sequence[tuple[int, int] | None],
        sources: Sequence[str] | None = None,
    ) -> Encodings:
        """Encode as TextEncoder.encode, with a source for each text; None = empty ones."""
        if sources is None:
            return super().encode(texts, spans)
        encodings = self._text_encoder.encode(texts, spans)
        encoded_sources = self.encode_sources(sources)
        batches = [part for batch in encodings.batches for part in encoded_sources.attach_to(batch)]
        flags = {
            name: mask | encoded_sources.flags[name]
            for name, mask in {"unk": encodings.unk, **encodings.flags}.items()
        }
        return Encodings(
            tuple(batches), flags.pop("unk"), encodings.too_long | encoded_sources.too_long, flags
        )

    def encode_sources(self, sources: Sequence[str]) -> EncodedSources:
        """Encode n sources. Raises UsageError for a source without tokens, CheckpointError for an
        id without embedding.
        """
        different = list(dict.fromkeys(sources))
        tokens = self.text_tokenizer.tokenize(different, 0)
        rows = [self._build_source(*pair) for pair in zip(different, tokens.ids, strict=True)]
        number = {source: index for index, source in enumerate(different)}
        indices = np.array([number[source] for source in sources], np.int64)
        too_long = [self.max_length is not None and len(r) > self.max_length for r in rows]
        return EncodedSources(
            tuple(rows[index] for index in indices),
            np.array(too_long, np.bool_)[indices],
            {name: mask[indices] for name, mask in tokens.flags.items()},
        )

    def complete_batch(self, batch: EncodedBatch) -> EncodedBatch:
        """Return a batch whose texts follow an empty source."""
        source = self._build_source("", [])
        return replace(batch, source_ids=np.tile(source, (len(batch.ids), 1)))

    def _build_source(self, source: str, ids: Sequence[int]) -> Ints:
        """Return the row of a source with these token ids.

        Raises UsageError for a row without tokens, CheckpointError for an id without embedding.
        """
        check_ids(self.tokenizer, max(ids, default=0), self.vocab_size)
        row = [*self.source_specials.before, *ids, *self.source_specials.after]
        if not row:
            raise UsageError(
                f"the encoder reads no token of the source {source!r}",
                location="--bos never",
                hint="leave --bos out: an empty source is then the tokenizer's special tokens",
            )
        return np.array(row, np.int32)


class DenoisingEncoder(TextEncoder):
    """Encodes texts for the encoder of a denoiser."""

    def __init__(
        self,
        tokenizer: Any,
        start_id: int,
        denoiser: Denoiser,
        *,
        max_length: int | None,
        vocab_size: int,
    ) -> None:
        """Create an encoder. Raises CheckpointError for special tokens without an embedding."""
        specials, target = detect_template(tokenizer), detect_target_template(tokenizer)
        assert denoiser.mask_id is not None  # a model without one has no such encoder
        prefix = (start_id, *(target.before if denoiser.repeats_text else [denoiser.mask_id]))
        for each in (specials, Specials(prefix)):
            check_specials(tokenizer, each, vocab_size)
        super().__init__(tokenizer, specials, max_length=max_length, vocab_size=vocab_size)
        self.restoration = Restoration(prefix, denoiser.repeats_text, len(specials.before))

    def name_specials(self, attention: Attention) -> dict[str, Specials]:
        """Return the special tokens of the encoder's row, and what the decoder reads first."""
        return {attention: self.specials, "restored": Specials(self.restoration.prefix)}

    def with_bos_policy(self, attention: Attention, bos: str) -> DenoisingEncoder:
        """Return an encoder with another BOS policy: "never" leaves out the text's specials."""
        del attention
        check_bos_policy(bos)
        encoder = copy.copy(self)
        encoder.specials = Specials() if bos == "never" else detect_template(self.tokenizer)
        start = len(encoder.specials.before)
        encoder.restoration = replace(self.restoration, text_start=start)
        return encoder

    def complete_batch(self, batch: EncodedBatch) -> EncodedBatch:
        """Return a batch with what the decoder reads."""
        return replace(batch, restoration=self.restoration)


def detect_target_template(tokenizer: Any) -> Specials:
    """Return the specials around a target: those of a text, unless it has a language of its own."""
    has_target_language = getattr(tokenizer, "tgt_lang", None) is not None
    return detect_template(tokenizer, as_target=has_target_language)
