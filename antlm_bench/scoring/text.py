"""Text to token ids: specials built by us under an explicit policy, spans by character offsets, all texts in bulk.

Conventions that move a score live here. Span rule (BabyLM 2025, `dataset.py`): a token counts iff it ends after the
start of the scored span (and begins before its end); a token that straddles the border counts in full. Specials
never count. Nothing is ever cut: a text that does not fit is reported.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from antlm_bench.errors import CheckpointError, MethodNotSupported, UsageError
from antlm_bench.types import Attention, Encoded, Encodings, Ints

BOS_POLICIES: dict[str, str] = {
    "auto": "causal: exactly one BOS, or an EOS that stands for it, wherever the tokenizer knows one (as lm-eval); "
    "masked: the tokenizer's own template",
    "always": "as auto, but a tokenizer without any is an error",
    "never": "no special token before or after the text",
    "tokenizer": "only what the tokenizer adds by itself (as minicons and BabyLM 2025 do)",
}
# What a token that begins a word begins with, and the other white space that ends the word before, as tokens spell it.
SPACES: dict[str, tuple[str, ...]] = {
    "\u0120": ("\u0120", "\u010a", "\u0109", "\u010d"),
    "\u2581": ("\u2581", "\n", "\t", "\r", "<0x0A>", "<0x09>", "<0x0D>"),
}
PROBE = "The cat sat on the mat."  # tokenised with and without specials to see what a tokenizer really adds


@dataclass(frozen=True, slots=True)
class Specials:
    """Token ids put before and after every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def template(tokenizer: Any) -> Specials:
    """What the tokenizer adds by itself, found by trying: `add_special_tokens=True` adds no BOS for some (Pythia).

    Raises CheckpointError if the text itself is tokenised differently with specials than without.
    """
    bare = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(PROBE)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return Specials(tuple(full[:start]), tuple(full[start + len(bare) :]))
    raise CheckpointError(
        f"the tokenizer reads {PROBE!r} as {full} with special tokens and as {bare} without",
        hint="its post-processor changes the text; save it with a TemplateProcessing",
    )


def specials(tokenizer: Any, attention: Attention, bos: str) -> Specials:
    """The specials of a text under a BOS policy.

    Causal rows carry no EOS: it would be a target of nothing (every peer leaves it unscored). Masked rows keep the
    template of their training. Raises UsageError for an unknown policy, CheckpointError where `always` cannot be met.
    """
    if bos not in BOS_POLICIES:
        raise UsageError(f"unknown policy {bos!r}", place="--bos", hint=f"one of {', '.join(BOS_POLICIES)}")
    own = template(tokenizer)
    if bos == "never":
        return Specials()
    if bos == "tokenizer":
        return own if attention == "full" else Specials(own.before)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if attention == "full":
        if own.before or own.after:
            return own
        first = first if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        last = () if tokenizer.sep_token_id is None else (tokenizer.sep_token_id,)
    else:
        last = ()
    if first is None and own.before:
        return Specials(own.before)
    if first is None and bos == "always":
        raise CheckpointError(
            "the tokenizer knows no BOS, EOS or CLS token",
            place="--bos always",
            hint="use --bos auto: the first token of every text then stays unscored, and is reported",
        )
    return Specials(() if first is None else (first,), last)


def word_beginnings(tokenizer: Any) -> Ints:
    """The ids (k,) after which a word is over: tokens that begin with white space, and the end of the text.

    Raises MethodNotSupported where tokens do not carry the space before them: byte-level BPE (GPT-2) and SentencePiece
    do, WordPiece and tokens that end in </w> do not, and need no correction.
    """
    spelled = tokenizer.convert_ids_to_tokens(tokenizer("a a", add_special_tokens=False)["input_ids"])
    marks = next((marks for mark, marks in SPACES.items() if any(t.startswith(mark) for t in spelled[1:])), ())
    if not marks:
        raise MethodNotSupported(
            "this tokenizer does not mark where words begin: there is nothing to correct",
            place="--bow-correction",
            hint="leave it out",
        )
    found = {i for token, i in tokenizer.get_vocab().items() if token.startswith(marks)}
    found |= set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    return np.array(sorted(found), np.int32)


class Encoder:
    """A tokenizer with its specials and limits, for one attention. Fast and slow tokenizers give the same ids."""

    def __init__(self, tokenizer: Any, around: Specials, *, max_length: int | None, vocabulary: int) -> None:
        self.tokenizer, self.around = tokenizer, around
        self.max_length, self.vocabulary = max_length, vocabulary
        self.unk_id: int | None = tokenizer.unk_token_id

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None]) -> Encodings:
        """See types.Encodings. Raises CheckpointError for an id that the model has no embedding for."""
        ids, ends, words = self._tokenize(list(texts), [span is not None for span in spans])
        before, after = self.around.before, self.around.after
        unk, too_long = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
        by_length: dict[int, list[int]] = {}
        for number, row in enumerate(ids):
            if before and row[: len(before)] == list(before):  # the text spells its BOS out: exactly one, not two
                row = ids[number] = row[len(before) :]
                ends[number], words[number] = ends[number][len(before) :], words[number][len(before) :]
            unk[number] = self.unk_id is not None and self.unk_id in row
            length = len(before) + len(row) + len(after)
            too_long[number] = self.max_length is not None and length > self.max_length
            if not too_long[number] and row:
                by_length.setdefault(length, []).append(number)
        lengths = []
        for length, members in sorted(by_length.items()):
            inner = length - len(before) - len(after)
            block = _block(ids, members, inner)
            if block.max() >= self.vocabulary:
                raise CheckpointError(
                    f"the tokenizer gives id {block.max()}, the model has {self.vocabulary} embeddings",
                    hint="tokenizer and weights belong to different checkpoints, or tokens were added without resizing",
                )
            scored = np.zeros((len(members), length), np.bool_)
            scored[:, len(before) : len(before) + inner] = _counts(ends, spans, members, inner)
            full = np.empty((len(members), length), np.int32)
            full[:, : len(before)], full[:, len(before) + inner :] = before, after
            full[:, len(before) : len(before) + inner] = block
            word = np.full((len(members), length), -1, np.int32)
            word[:, len(before) : len(before) + inner] = _block(words, members, inner)
            lengths.append(Encoded(full, scored, word, np.array(members, np.int32)))
        return Encodings(tuple(lengths), unk, too_long)

    def _tokenize(
        self, texts: list[str], spanned: list[bool]
    ) -> tuple[list[list[int]], list[list[tuple[int, int]]], list[list[int]]]:
        """Per text: ids, character offsets and word numbers of its tokens. One call for the whole bulk."""
        if self.tokenizer.is_fast:
            found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            encodings = found.encodings
            offsets = [e.offsets if s else [] for e, s in zip(encodings, spanned, strict=True)]
            words = [[-1 if w is None else w for w in e.word_ids] for e in encodings]
            return found["input_ids"], offsets, words
        ids = [list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
        limit = max(map(len, ids), default=0) if self.max_length is None else self.max_length
        offsets = [  # of rows that may fit: the work grows with the square of their length
            _decoded_offsets(self.tokenizer, row, text) if len(row) <= limit else []
            for row, text in zip(ids, texts, strict=True)
        ]
        for text, place, needed in zip(texts, offsets, spanned, strict=True):
            if needed and place is None:
                raise CheckpointError(
                    f"this slow tokenizer does not give {text!r} back: its tokens cannot be told from the scored span",
                    hint="save the checkpoint with a fast tokenizer (tokenizer.json)",
                )
        words = [
            [-1] * len(row) if place is None else [len(text[:end].split()) for _, end in place]
            for row, place, text in zip(ids, offsets, texts, strict=True)
        ]
        return ids, [place or [] for place in offsets], words


class ContextEncoder(Encoder):
    """An Encoder that puts other specials around texts that have a context (a span that begins later)."""

    def __init__(self, encoder: Encoder, around_with_context: Specials) -> None:
        self.__dict__.update(vars(encoder))
        self.with_context = copy.copy(encoder)
        self.with_context.around = around_with_context

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None]) -> Encodings:
        """See types.Encodings. Raises as Encoder.encode."""
        has_context = np.array([span is not None and span[0] > 0 for span in spans], np.bool_)
        unk, too_long = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
        lengths: list[Encoded] = []
        for encode, chosen in ((super().encode, ~has_context), (self.with_context.encode, has_context)):
            members = np.flatnonzero(chosen).astype(np.int32)
            if not len(members):
                continue
            encodings = encode([texts[int(i)] for i in members], [spans[int(i)] for i in members])
            unk[members], too_long[members] = encodings.unk, encodings.too_long
            lengths += [replace(encoded, text=members[encoded.text]) for encoded in encodings.lengths]
        return Encodings(tuple(lengths), unk, too_long)


def _decoded_offsets(tokenizer: Any, ids: list[int], text: str) -> list[tuple[int, int]] | None:
    """Character offsets for a slow tokenizer, which keeps none: where the text decoded so far ends in the original.

    White space and case are matched loosely (decoders drop and fold them); None if the text does not come back.
    """
    offsets, at, seen, before = [], 0, "", ""
    for stop in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False)
        wanted = "".join(decoded.split())
        start = at
        if len(seen) == len(wanted) and len(decoded) > len(before) and text[at : at + 1].isspace():
            at += 1  # a token of white space alone
        while at < len(text) and len(seen) < len(wanted):
            seen += "" if text[at].isspace() else text[at]
            at += 1
        if not wanted.casefold().startswith(seen.casefold()):
            return None
        offsets.append((start, at))
        before = decoded
    for i in reversed(range(len(offsets) - 1)):
        if offsets[i][0] == offsets[i][1]:  # a part of a character lies where the whole does, as in fast tokenizers
            offsets[i] = (offsets[i][0], offsets[i + 1][1])
    return offsets if at >= len(text.rstrip()) else None


def _block(rows: Sequence[Sequence[int]], members: list[int], length: int) -> Ints:
    flat = np.fromiter(chain.from_iterable(rows[m] for m in members), np.int32, len(members) * length)
    return flat.reshape(len(members), length)


def _counts(
    offsets: list[list[tuple[int, int]]], spans: Sequence[tuple[int, int] | None], members: list[int], length: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(members, length) the span rule of this module's first lines."""
    counts = np.ones((len(members), length), np.bool_)
    for row, member in enumerate(members):
        span = spans[member]
        if span is not None:
            place = np.array(offsets[member]).reshape(length, 2)
            counts[row] = (place[:, 1] > span[0]) & (place[:, 0] < span[1])
    return counts
