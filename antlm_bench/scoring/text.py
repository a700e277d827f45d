"""Encode texts with special tokens and scored spans.

Special tokens ("specials") are added by an explicit BOS policy. Spans follow the rule of BabyLM
2025 (`dataset.py`): a token is scored if it ends after the start of the span and begins before its
end, so that a token across a border is scored in full. Specials are not scored. Texts are never
truncated; one that is too long for the model is flagged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.tokens import (
    PROBE_TEXT,
    Offsets,
    TextTokenizer,
    Tokenized,
    can_tokenize,
    probe_texts,
)
from antlm_bench.types import Attention, Bools, EncodedBatch, Encodings, Ints

EosRule = Literal["all", "context"]
"""Texts whose EOS is scored: all, or those with a context (see `resolve_eos_rule`)."""
BOS_POLICIES: dict[str, str] = {
    "auto": "causal: exactly one BOS, or an EOS in its place, if the tokenizer has one (as "
    "lm-eval); masked: the tokenizer's own template",
    "always": "as auto, but a tokenizer without any is an error",
    "never": "no special token before or after the text",
    "tokenizer": "only what the tokenizer adds by itself (as minicons and BabyLM 2025 do)",
}


@dataclass(frozen=True, slots=True)
class Specials:
    """Token ids put before and after every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def check_bos_policy(bos_policy: str) -> None:
    """Raise UsageError for an unknown policy."""
    if bos_policy not in BOS_POLICIES:
        raise UsageError(
            f"unknown policy {bos_policy!r}",
            location="--bos",
            hint=f"one of {', '.join(BOS_POLICIES)}",
        )


def detect_template(tokenizer: Any, as_target: bool = False) -> Specials:
    """Return the specials that the tokenizer adds by itself, or adds to the target of a source.

    They are read off a tokenized text, because settings mislead: Pythia adds no BOS even with
    `add_special_tokens=True`. Raises CheckpointError if specials change the tokens of a text, or if
    no text can be tokenized.
    """
    for text in probe_texts(tokenizer):
        if not can_tokenize(tokenizer, text):
            continue
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(**{"text_target" if as_target else "text": text})["input_ids"])
        for start in range(len(full) - len(bare) + 1) if bare else ():
            if full[start : start + len(bare)] == bare:
                return Specials(tuple(full[:start]), tuple(full[start + len(bare) :]))
        if bare:
            raise CheckpointError(
                f"the tokenizer reads {text!r} as {full} with special tokens and as {bare} without",
                hint="its post-processor changes the text; save it with a TemplateProcessing",
            )
    raise CheckpointError(
        f"the tokenizer reads neither {PROBE_TEXT!r} nor tokens of its own vocabulary",
        hint="its vocabulary lacks an unknown token, or belongs to another kind of tokenizer",
    )


def special_id(tokenizer: Any, name: str) -> int | None:
    """Return the id of the special token `name` (bos, eos, cls, sep, mask).

    None if the tokenizer has no such token, or if its vocabulary lacks the token. The tokenizer
    then gives it the id of the unknown token.
    """
    token: int | None = getattr(tokenizer, f"{name}_token_id")
    if token is not None and token == tokenizer.unk_token_id:
        spelled, unknown = getattr(tokenizer, f"{name}_token"), tokenizer.unk_token
        return token if str(spelled) == str(unknown) else None
    return token


def find_mask_token(tokenizer: Any, vocab_size: int) -> tuple[int | None, str]:
    """Return (id of the mask token, ""), or (None, the reason why there is none).

    vocab_size: number of embeddings of the model.
    """
    mask_id, mask_token = special_id(tokenizer, "mask"), tokenizer.mask_token
    if mask_id is None and mask_token is None:
        return None, "its tokenizer has no mask token"
    if mask_id is None:
        return None, f"the vocabulary of its tokenizer lacks the mask token {str(mask_token)!r}"
    if not 0 <= mask_id < vocab_size:
        return None, (
            f"its tokenizer's mask token {str(mask_token)!r} has the id {mask_id}, and the model "
            f"has {vocab_size} embeddings"
        )
    return mask_id, ""


def check_specials(tokenizer: Any, specials: Specials, vocab_size: int) -> None:
    """Raise CheckpointError if the model has no embedding for one of the specials."""
    for token in (*specials.before, *specials.after):
        if token >= vocab_size:
            raise CheckpointError(
                f"the special token {str(tokenizer.convert_ids_to_tokens(token))!r} has the id "
                f"{token}, and the model has {vocab_size} embeddings",
                location="tokenizer",
                hint="the model was trained without it: --bos never leaves special tokens out, "
                "--bos tokenizer adds those of the tokenizer's own template",
            )


def check_ids(tokenizer: Any, max_id: int, vocab_size: int) -> None:
    """Raise CheckpointError if the model has no embedding for `max_id`, the largest token id."""
    if max_id >= vocab_size:
        raise CheckpointError(
            f"the tokenizer gives id {max_id} ({str(tokenizer.convert_ids_to_tokens(max_id))!r}), "
            f"the model has {vocab_size} embeddings",
            hint="tokenizer and weights belong to different checkpoints, or tokens were added "
            "without resizing",
        )


def build_specials(tokenizer: Any, attention: Attention, bos_policy: str) -> Specials:
    """Return the specials of texts under a BOS policy.

    Causal texts get no EOS, because our conventions do not score it (`with_scored_eos` adds it).
    Masked texts keep the tokenizer's template. Raises UsageError for an unknown policy, and
    CheckpointError if the policy is "always" and the tokenizer has no special token.
    """
    check_bos_policy(bos_policy)
    template = detect_template(tokenizer)
    if bos_policy == "never":
        return Specials()
    if bos_policy == "tokenizer":
        return template if attention == "full" else Specials(template.before)
    if attention == "full" and (template.before or template.after):
        return template
    names = ("bos", "eos") if attention == "causal" else ("cls", "bos", "eos")
    ids = [special_id(tokenizer, name) for name in names]
    before = tuple(token_id for token_id in ids if token_id is not None)[:1] or template.before
    if not before and bos_policy == "always":
        raise CheckpointError(
            "the tokenizer has no BOS, EOS or CLS token",
            location="--bos always",
            hint="use --bos auto, which does not score the first token of a text and reports this",
        )
    sep_id = special_id(tokenizer, "sep") if attention == "full" else None
    return Specials(before, () if sep_id is None else (sep_id,))


class TextEncoder:
    """Encodes texts for one attention: a tokenizer with specials and limits."""

    def __init__(
        self, tokenizer: Any, specials: Specials, *, max_length: int | None, vocab_size: int
    ) -> None:
        self.tokenizer, self.specials = tokenizer, specials
        self.max_length, self.vocab_size = max_length, vocab_size
        self.text_tokenizer = TextTokenizer(tokenizer)
        self.num_skipped: int | None = None
        """None: specials are not scored. A number: specials after a text are scored, and if the
        text has a context, the first `num_skipped` tokens of its span are not (`with_scored_eos`).
        """
        self.overwrites_skipped = False
        """Whether the specials after a text also replace the skipped tokens."""

    def name_specials(self, attention: Attention) -> dict[str, Specials]:
        """Return the special tokens of each kind of row, by name."""
        return {attention: self.specials}

    def describe_settings(self) -> list[Any]:
        """Return all that decides how texts are encoded besides the tokenizer, as plain values."""
        settings = {
            name: value.describe_settings() if isinstance(value, TextEncoder) else value
            for name, value in vars(self).items()
            if name not in ("tokenizer", "text_tokenizer")
        }
        return [type(self).__name__, self.text_tokenizer.word_rule, settings]

    def with_bos_policy(self, attention: Attention, bos: str) -> TextEncoder:
        """Return an encoder with another BOS policy.

        Raises CheckpointError for special tokens without an embedding, UsageError for an unknown
        policy.
        """
        encoder = copy.copy(self)
        encoder.specials = build_specials(self.tokenizer, attention, bos)
        check_specials(self.tokenizer, encoder.specials, self.vocab_size)
        return encoder

    def with_word_rule(self, rule: str) -> TextEncoder:
        """Return a copy whose words are those of a rule of words.WORD_RULES."""
        encoder = copy.copy(self)
        encoder.text_tokenizer = TextTokenizer(self.tokenizer, rule)
        return encoder

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None]) -> Encodings:
        """Encode texts with their scored spans (None = the whole text).

        Raises CheckpointError for a token id without embedding, and the errors of
        `TextTokenizer.tokenize`.
        """
        tokens = self.tokenize(texts, self.max_length)
        num_specials = len(self.specials.before) + len(self.specials.after)
        too_long = np.zeros(len(texts), np.bool_)
        indices_by_length: dict[int, list[int]] = {}
        for index, ids in enumerate(tokens.ids):
            length = len(ids) + num_specials
            too_long[index] = self.max_length is not None and length > self.max_length
            if too_long[index] or not ids:
                continue
            if spans[index] is not None and tokens.offsets[index] is None:
                raise self.unknown_offsets_error(texts[index])
            indices_by_length.setdefault(length, []).append(index)
        batches = tuple(
            self._build_batch(tokens, texts, spans, indices, length)
            for length, indices in sorted(indices_by_length.items())
        )
        flags = dict(tokens.flags)
        return Encodings(batches, flags.pop("unk"), too_long, flags)

    def tokenize(self, texts: Sequence[str], max_offset_length: int | None = None) -> Tokenized:
        """Tokenize texts as `TextTokenizer.tokenize`, without a BOS that is part of a text if the
        encoder adds one.
        """
        tokens = self.text_tokenizer.tokenize(texts, max_offset_length)
        self._drop_spelled_bos(tokens)
        return tokens

    def unknown_offsets_error(self, text: str) -> CheckpointError:
        """Return the error for a text whose tokens have no character offsets."""
        kind = "tokenizer" if self.tokenizer.is_fast else "slow tokenizer"
        return CheckpointError(
            f"this {kind} does not decode {text!r} to the same text, so that the tokens of the "
            "scored span are unknown",
            hint="save the checkpoint with a fast tokenizer (tokenizer.json) that knows all "
            "characters",
        )

    def _drop_spelled_bos(self, tokens: Tokenized) -> None:
        """Remove a BOS that is part of a text, because the encoder adds one."""
        before = list(self.specials.before)
        for index, ids in enumerate(tokens.ids):
            if before and ids[: len(before)] == before:
                for column in (tokens.ids, tokens.words, tokens.last_words):
                    column[index] = column[index][len(before) :]
                tokens.offsets[index] = (tokens.offsets[index] or [])[len(before) :]

    def _build_batch(
        self,
        tokens: Tokenized,
        texts: Sequence[str],
        spans: Sequence[tuple[int, int] | None],
        indices: list[int],
        length: int,
    ) -> EncodedBatch:
        """Return a batch of the texts at `indices`, whose rows all have this length."""
        before, after = self.specials.before, self.specials.after
        text_length = length - len(before) - len(after)
        text_columns = slice(len(before), len(before) + text_length)
        ids = np.empty((len(indices), length), np.int32)
        ids[:, : text_columns.start] = before
        ids[:, text_columns] = _stack_rows(tokens.ids, indices, text_length)
        ids[:, text_columns.stop :] = after
        check_ids(self.tokenizer, int(ids[:, text_columns].max()), self.vocab_size)
        score_mask = np.zeros((len(indices), length), np.bool_)
        score_mask[:, text_columns] = _span_mask(tokens.offsets, spans, indices, text_length)
        if self.num_skipped is not None:
            self._score_eos(ids, score_mask, [(spans[index], texts[index]) for index in indices])
        first_word, last_word = (np.full((len(indices), length), -1, np.int32) for _ in range(2))
        first_word[:, text_columns] = _stack_rows(tokens.words, indices, text_length)
        last_word[:, text_columns] = _stack_rows(tokens.last_words, indices, text_length)
        text_index = np.array(indices, np.int32)
        return self.complete_batch(EncodedBatch(ids, score_mask, first_word, text_index, last_word))

    def complete_batch(self, batch: EncodedBatch) -> EncodedBatch:
        """Return a batch with the other inputs of the model: in an encoder-decoder, sources or a
        Restoration.
        """
        return batch

    def _score_eos(
        self,
        ids: Ints,
        score_mask: Bools,
        spans_and_texts: Sequence[tuple[tuple[int, int] | None, str]],
    ) -> None:
        """Change ids and score_mask, both (rows, length), in place, as `with_scored_eos` says."""
        after, num_skipped = self.specials.after, self.num_skipped or 0
        for row, mask, (span, text) in zip(ids, score_mask, spans_and_texts, strict=True):
            positions = np.flatnonzero(mask).tolist()
            if self.overwrites_skipped and span is not None and span[1] == len(text):
                for position, token in zip(positions, after, strict=False):
                    row[position] = token
            mask[:] = False
            positions = scored_positions_with_eos(
                positions, len(row), len(after), num_skipped, span, text
            )
            mask[positions] = True


class ContextEncoder(TextEncoder):
    """A TextEncoder that adds other specials to texts with a context (a span that begins later)."""

    def __init__(self, encoder: TextEncoder, context_specials: Specials) -> None:
        self.__dict__.update(vars(encoder))
        self.context_encoder = copy.copy(encoder)
        self.context_encoder.specials = context_specials

    def with_word_rule(self, rule: str) -> ContextEncoder:
        """Return a copy whose words are those of a rule of words.WORD_RULES."""
        encoder = copy.copy(self)
        encoder.text_tokenizer = TextTokenizer(self.tokenizer, rule)
        encoder.context_encoder = self.context_encoder.with_word_rule(rule)
        return encoder

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None]) -> Encodings:
        """Encode as TextEncoder.encode."""
        has_context = np.array([span is not None and span[0] > 0 for span in spans], np.bool_)
        no_flags = np.zeros(len(texts), np.bool_)
        merged = Encodings(batches=(), unk=no_flags, too_long=no_flags.copy(), flags={})
        batches: list[EncodedBatch] = []
        for encode, mask in (
            (super().encode, ~has_context),
            (self.context_encoder.encode, has_context),
        ):
            indices = np.flatnonzero(mask).astype(np.int32)
            if not len(indices):
                continue
            subset = encode([texts[int(i)] for i in indices], [spans[int(i)] for i in indices])
            merged = merge_flags(merged, subset, indices)
            batches += [
                replace(batch, text_index=indices[batch.text_index]) for batch in subset.batches
            ]
        return replace(merged, batches=tuple(batches))


def resolve_eos_rule(tokenizer: Any, rule: EosRule) -> tuple[tuple[int, ...], int]:
    """Return the specials after a text that a peer scores, and how many tokens it skips in return.

    Peers do not handle these specials after a context. They tokenize the context alone, and count
    its tokens to find where the continuation begins in the whole row. The specials after the
    context are in that count but not in the row, so that the first tokens of the continuation are
    skipped:

    - minicons 0.3.39 (`IncrementalLMScorer.prime_text`) does not count the padding token, which is
      EOS if the tokenizer has no padding token. The model reads the whole row.
    - lm-eval 0.4.13 (`_encode_pair`) counts all specials. The model reads the row of the context,
      then the continuation, so that the specials replace the skipped tokens.
    """
    after = detect_template(tokenizer).after
    if rule == "context":
        return after, len(after)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return after, sum(token != padding for token in after)


def with_scored_eos(encoder: TextEncoder, rule: EosRule) -> TextEncoder:
    """Return a causal encoder that adds and scores the template's specials after a text (mostly
    EOS), as a peer does.

    Raises CheckpointError for a special token without embedding.
    """
    after, num_skipped = resolve_eos_rule(encoder.tokenizer, rule)
    if not after:
        return encoder
    check_specials(encoder.tokenizer, Specials((), after), encoder.vocab_size)
    new_encoder = copy.copy(encoder)
    target = new_encoder
    if rule == "context":
        assert isinstance(new_encoder, ContextEncoder), "conventions set `bos_before_context`, too"
        target = new_encoder.context_encoder = copy.copy(new_encoder.context_encoder)
    target.specials = Specials(target.specials.before, after)
    target.num_skipped, target.overwrites_skipped = num_skipped, rule == "context"
    return new_encoder


def scored_positions_with_eos(
    positions: list[int],
    length: int,
    num_after: int,
    num_skipped: int,
    span: tuple[int, int] | None,
    text: str,
) -> list[int]:
    """Return the scored positions of a row whose last `num_after` of `length` tokens are scored,
    too.

    positions: those scored without the rule. num_skipped: number of them that a text with a context
    loses. Peers only score spans that end with the text; for other spans, `positions` stay.
    """
    if span is not None and span[1] < len(text):
        return positions
    has_context = span is not None and span[0] > 0
    return [*positions[num_skipped if has_context else 0 :], *range(length - num_after, length)]


def merge_flags(whole: Encodings, subset: Encodings, indices: Sequence[int] | Ints) -> Encodings:
    """Return the encodings of n texts with the flags of the texts at `indices` replaced.

    subset: encodings of the texts at `indices`; its batches are not used.
    """
    unk, too_long = whole.unk.copy(), whole.too_long.copy()
    unk[indices], too_long[indices] = subset.unk, subset.too_long
    flags = {name: mask.copy() for name, mask in whole.flags.items()}
    for name, mask in subset.flags.items():
        flags.setdefault(name, np.zeros(len(unk), np.bool_))[indices] = mask
    return replace(whole, unk=unk, too_long=too_long, flags=flags)


def _stack_rows(rows: Sequence[Sequence[int]], indices: list[int], length: int) -> Ints:
    """Return the rows at `indices`, which have one length, as an array (indices, length)."""
    values = chain.from_iterable(rows[index] for index in indices)
    return np.fromiter(values, np.int32, len(indices) * length).reshape(len(indices), length)


def _span_mask(
    offsets: Sequence[Offsets | None],
    spans: Sequence[tuple[int, int] | None],
    indices: list[int],
    length: int,
) -> Bools:
    """Return which tokens of the texts at `indices` are in the span, (indices, length)."""
    mask = np.ones((len(indices), length), np.bool_)
    for row, index in enumerate(indices):
        span = spans[index]
        if span is not None:
            token_start, token_end = np.array(offsets[index]).reshape(length, 2).T
            mask[row] = (token_end > span[0]) & (token_start < span[1])
    return mask
