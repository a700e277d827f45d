"""Encode texts: special tokens by an explicit policy, scored spans by character offsets, all texts
in bulk.

Span rule (BabyLM 2025, `dataset.py`): a token counts iff it ends after the start of the scored span
and begins before its end; a token that straddles the border counts in full. Specials never count.
No text is cut: one that does not fit is flagged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from antlm_bench.errors import CheckpointError, MethodNotSupported, UsageError
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
BOS_POLICIES: dict[str, str] = {
    "auto": "causal: exactly one BOS, or an EOS that stands for it, wherever the tokenizer has one "
    "(as lm-eval); masked: the tokenizer's own template",
    "always": "as auto, but a tokenizer without any is an error",
    "never": "no special token before or after the text",
    "tokenizer": "only what the tokenizer adds by itself (as minicons and BabyLM 2025 do)",
}
# What a token that begins a word begins with, and the other white space that ends the word before,
# as tokens spell it.
WORD_START_MARKS: dict[str, tuple[str, ...]] = {
    "\u0120": ("\u0120", "\u010a", "\u0109", "\u010d"),
    "\u2581": ("\u2581", "\n", "\t", "\r", "<0x0A>", "<0x09>", "<0x0D>"),
}


@dataclass(frozen=True, slots=True)
class Specials:
    """Token ids put before and after every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def detect_template(tokenizer: Any) -> Specials:
    """Return the specials that the tokenizer adds by itself, found by trying (Pythia adds no BOS
    with `add_special_tokens=True`).

    Raises CheckpointError if a text is tokenised differently with specials than without, or if no
    text can be tokenised.
    """
    for text in probe_texts(tokenizer):
        if not can_tokenize(tokenizer, text):
            continue
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(text)["input_ids"])
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

    None where the tokenizer has no such token, or where the token is not in the vocabulary, so that
    its id is the unknown token's.
    """
    token: int | None = getattr(tokenizer, f"{name}_token_id")
    if token is not None and token == tokenizer.unk_token_id:
        spelled, unknown = getattr(tokenizer, f"{name}_token"), tokenizer.unk_token
        return token if str(spelled) == str(unknown) else None
    return token


def find_mask_token(tokenizer: Any, vocab_size: int) -> tuple[int | None, str]:
    """Return (id of the mask token, ""), or (None, the reason) where a model with so many
    embeddings has none.
    """
    token = special_id(tokenizer, "mask")
    if token is None:
        named = tokenizer.mask_token
        reason = "" if named is None else f" in its vocabulary: {str(named)!r} is unknown to it"
        return None, f"its tokenizer has no mask token{reason}"
    if not 0 <= token < vocab_size:
        named = f"{str(tokenizer.mask_token)!r} has the id {token}"
        return (
            None,
            f"its tokenizer's mask token {named}, and the model has {vocab_size} embeddings",
        )
    return token, ""


def check_specials(tokenizer: Any, specials: Specials, vocab_size: int) -> None:
    """Raise CheckpointError for a special token around a text that the model has no embedding
    for.
    """
    for token in (*specials.before, *specials.after):
        if token >= vocab_size:
            raise CheckpointError(
                f"the special token {str(tokenizer.convert_ids_to_tokens(token))!r} has the id "
                f"{token}, and the model "
                f"has {vocab_size} embeddings",
                location="tokenizer",
                hint="the model was trained without it: --bos never leaves special tokens out, "
                "--bos tokenizer adds "
                "those of the tokenizer's own template",
            )


def check_ids(tokenizer: Any, max_id: int, vocab_size: int) -> None:
    """Raise CheckpointError if the highest id of some texts is beyond the model's vocabulary."""
    if max_id >= vocab_size:
        raise CheckpointError(
            f"the tokenizer gives id {max_id} ({str(tokenizer.convert_ids_to_tokens(max_id))!r}), "
            "the model has "
            f"{vocab_size} embeddings",
            hint="tokenizer and weights belong to different checkpoints, or tokens were added "
            "without resizing",
        )


def build_specials(tokenizer: Any, attention: Attention, bos_policy: str) -> Specials:
    """Return the specials of a text under a BOS policy.

    Causal rows have no EOS unless `with_scored_eos` adds it: our conventions do not score it.
    Masked rows keep the template of their training. Raises UsageError for an unknown policy,
    CheckpointError where `always` cannot be met.
    """
    if bos_policy not in BOS_POLICIES:
        raise UsageError(
            f"unknown policy {bos_policy!r}",
            location="--bos",
            hint=f"one of {', '.join(BOS_POLICIES)}",
        )
    template = detect_template(tokenizer)
    if bos_policy == "never":
        return Specials()
    if bos_policy == "tokenizer":
        return template if attention == "full" else Specials(template.before)
    bos_id, cls_id, sep_id = (special_id(tokenizer, name) for name in ("bos", "cls", "sep"))
    first = bos_id if bos_id is not None else special_id(tokenizer, "eos")
    if attention == "full":
        if template.before or template.after:
            return template
        first = first if cls_id is None else cls_id
        last = () if sep_id is None else (sep_id,)
    else:
        last = ()
    if first is None and template.before:
        return Specials(template.before)
    if first is None and bos_policy == "always":
        raise CheckpointError(
            "the tokenizer knows no BOS, EOS or CLS token",
            location="--bos always",
            hint="use --bos auto: the first token of every text then stays unscored, and is "
            "reported",
        )
    return Specials(() if first is None else (first,), last)


def word_start_ids(tokenizer: Any) -> Ints:
    """Return the ids (k,) that end the word before them: tokens that begin with white space, and
    the end of the text.

    Raises MethodNotSupported where tokens do not carry the space before them: byte-level BPE
    (GPT-2) and SentencePiece do; WordPiece and tokens that end in </w> do not, and need no
    correction.
    """
    pairs = (f"{text} {text}" for text in chain(["a"], probe_texts(tokenizer)))
    pair = next((pair for pair in pairs if can_tokenize(tokenizer, pair)), "")
    spelled = tokenizer.convert_ids_to_tokens(
        tokenizer(pair, add_special_tokens=False)["input_ids"]
    )
    marks = next(
        (
            marks
            for mark, marks in WORD_START_MARKS.items()
            if any(t.startswith(mark) for t in spelled[1:])
        ),
        (),
    )
    if not marks:
        raise MethodNotSupported(
            "this tokenizer does not mark where words begin: there is nothing to correct",
            location="--bow-correction",
            hint="leave it out",
        )
    ids = {i for token, i in tokenizer.get_vocab().items() if token.startswith(marks)}
    ids |= set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    return np.array(sorted(ids), np.int32)


class TextEncoder:
    """A tokenizer with its specials and limits, for one attention. Fast and slow tokenizers give
    the same ids.
    """

    def __init__(
        self, tokenizer: Any, specials: Specials, *, max_length: int | None, vocab_size: int
    ) -> None:
        self.tokenizer, self.specials = tokenizer, specials
        self.max_length, self.vocab_size = max_length, vocab_size
        self.text_tokenizer = TextTokenizer(tokenizer)
        self.num_skipped: int | None = None
        """None: specials are not scored. Else those after a text are (see `with_scored_eos`), and
        of a text with a context, this many tokens at the start of its scored span are not.
        """
        self.overwrites_skipped = False
        """Whether the specials after a text also stand in the place of the skipped tokens."""

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None]) -> Encodings:
        """Encode texts with their scored spans; see types.Encodings. Raises CheckpointError for an
        id without an embedding, and as `TextTokenizer.tokenize`.
        """
        tokens = self.text_tokenizer.tokenize(texts, self.max_length)
        self._drop_spelled_bos(tokens)
        num_specials = len(self.specials.before) + len(self.specials.after)
        too_long = np.zeros(len(texts), np.bool_)
        by_length: dict[int, list[int]] = {}
        for number, ids in enumerate(tokens.ids):
            length = len(ids) + num_specials
            too_long[number] = self.max_length is not None and length > self.max_length
            if too_long[number] or not ids:
                continue
            if spans[number] is not None and tokens.offsets[number] is None:
                kind = "tokenizer" if self.tokenizer.is_fast else "slow tokenizer"
                raise CheckpointError(
                    f"this {kind} does not give {texts[number]!r} back: its tokens cannot be told "
                    "from the scored span",
                    hint="save the checkpoint with a fast tokenizer (tokenizer.json) that knows "
                    "all characters",
                )
            by_length.setdefault(length, []).append(number)
        batches = tuple(
            self._build_batch(tokens, texts, spans, members, length)
            for length, members in sorted(by_length.items())
        )
        flags = dict(tokens.flags)
        return Encodings(batches, flags.pop("unk"), too_long, flags)

    def _drop_spelled_bos(self, tokens: Tokenized) -> None:
        """Drop the first tokens of texts that spell their BOS out: there is one BOS, not two."""
        before = list(self.specials.before)
        for number, ids in enumerate(tokens.ids):
            if before and ids[: len(before)] == before:
                for column in (tokens.ids, tokens.words, tokens.last_words):
                    column[number] = column[number][len(before) :]
                tokens.offsets[number] = (tokens.offsets[number] or [])[len(before) :]

    def _build_batch(
        self,
        tokens: Tokenized,
        texts: Sequence[str],
        spans: Sequence[tuple[int, int] | None],
        members: list[int],
        length: int,
    ) -> EncodedBatch:
        """Return the texts with indices `members`, whose rows all have this length."""
        before, after = self.specials.before, self.specials.after
        inner = length - len(before) - len(after)
        own = slice(len(before), len(before) + inner)
        ids = np.empty((len(members), length), np.int32)
        ids[:, : len(before)], ids[:, len(before) + inner :] = before, after
        ids[:, own] = _stack_rows(tokens.ids, members, inner)
        check_ids(self.tokenizer, int(ids[:, own].max()), self.vocab_size)
        scored = np.zeros((len(members), length), np.bool_)
        scored[:, own] = _scored_mask(tokens.offsets, spans, members, inner)
        if self.num_skipped is not None:
            self._score_eos(ids, scored, [(spans[member], texts[member]) for member in members])
        first, last = (np.full((len(members), length), -1, np.int32) for _ in range(2))
        first[:, own] = _stack_rows(tokens.words, members, inner)
        last[:, own] = _stack_rows(tokens.last_words, members, inner)
        return EncodedBatch(ids, scored, first, np.array(members, np.int32), last)

    def _score_eos(
        self,
        ids: Ints,
        scored: Bools,
        spans_and_texts: Sequence[tuple[tuple[int, int] | None, str]],
    ) -> None:
        """Change ids and scored, both (rows, length), as `with_scored_eos` describes."""
        after, skipped = self.specials.after, self.num_skipped or 0
        for row, mask, (span, text) in zip(ids, scored, spans_and_texts, strict=True):
            positions = np.flatnonzero(mask).tolist()
            if self.overwrites_skipped and span is not None and span[1] == len(text):
                for position, token in zip(positions, after, strict=False):
                    row[position] = token
            mask[:] = False
            positions = scored_positions_with_eos(
                positions, len(row), len(after), skipped, span, text
            )
            mask[positions] = True


class ContextEncoder(TextEncoder):
    """A TextEncoder with other specials around texts that have a context (a span that begins
    later).
    """

    def __init__(self, encoder: TextEncoder, context_specials: Specials) -> None:
        self.__dict__.update(vars(encoder))
        self.context_encoder = copy.copy(encoder)
        self.context_encoder.specials = context_specials

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None]) -> Encodings:
        """Encode as TextEncoder.encode."""
        has_context = np.array([span is not None and span[0] > 0 for span in spans], np.bool_)
        merged = Encodings((), np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_), {})
        batches: list[EncodedBatch] = []
        for encode, chosen in (
            (super().encode, ~has_context),
            (self.context_encoder.encode, has_context),
        ):
            members = np.flatnonzero(chosen).astype(np.int32)
            if not len(members):
                continue
            part = encode([texts[int(i)] for i in members], [spans[int(i)] for i in members])
            merged = merge_flags(merged, part, members)
            batches += [
                replace(encoded, text_index=members[encoded.text_index]) for encoded in part.batches
            ]
        return replace(merged, batches=tuple(batches))


def resolve_eos_rule(tokenizer: Any, rule: EosRule) -> tuple[tuple[int, ...], int]:
    """Return the specials that the template puts after a text, and how many tokens a peer skips
    because of them.

    With a context, a peer also tokenises the context alone, counts its tokens including the
    specials after it, and takes what follows in the whole row for the continuation, which thus
    begins that many tokens late. minicons 0.3.39 (`IncrementalLMScorer.prime_text`) does not count
    the padding token, which is EOS where the tokenizer has none, and reads the whole row. lm-eval
    0.4.13 (`_encode_pair`) counts all, and reads the context's own row before the continuation, so
    that its specials replace the skipped tokens.
    """
    after = detect_template(tokenizer).after
    if rule == "context":
        return after, len(after)
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return after, sum(token != padding for token in after)


def with_scored_eos(encoder: TextEncoder, rule: EosRule) -> TextEncoder:
    """Return a causal encoder that scores what the tokenizer's template puts after a text, as a
    peer does.

    rule: "all" texts, or only those with a "context". Raises CheckpointError for a special without
    an embedding.
    """
    after, skipped = resolve_eos_rule(encoder.tokenizer, rule)
    if not after:
        return encoder
    check_specials(encoder.tokenizer, Specials((), after), encoder.vocab_size)
    changed = copy.copy(encoder)
    target = changed
    if rule == "context":
        assert isinstance(changed, ContextEncoder), (
            "lm-eval has a rule of its own for texts with a context"
        )
        target = changed.context_encoder = copy.copy(changed.context_encoder)
    target.specials = Specials(target.specials.before, after)
    target.num_skipped, target.overwrites_skipped = skipped, rule == "context"
    return changed


def scored_positions_with_eos(
    positions: list[int],
    length: int,
    num_after: int,
    num_skipped: int,
    span: tuple[int, int] | None,
    text: str,
) -> list[int]:
    """Return the positions of a row that count when the last `after` of its `length` tokens are
    scored too.

    positions: those that count otherwise. A span that ends inside its text is not a peer's request,
    and stays as it is.
    """
    if span is not None and span[1] < len(text):
        return positions
    has_context = span is not None and span[0] > 0
    return [*positions[num_skipped if has_context else 0 :], *range(length - num_after, length)]


def merge_flags(whole: Encodings, part: Encodings, indices: Sequence[int] | Ints) -> Encodings:
    """Return the facts of n texts with those of some of them, at indices `members`, filled in."""
    unk, too_long = whole.unk.copy(), whole.too_long.copy()
    unk[indices], too_long[indices] = part.unk, part.too_long
    flags = {name: raised.copy() for name, raised in whole.flags.items()}
    for name, raised in part.flags.items():
        flags.setdefault(name, np.zeros(len(unk), np.bool_))[indices] = raised
    return replace(whole, unk=unk, too_long=too_long, flags=flags)


def _stack_rows(rows: Sequence[Sequence[int]], indices: list[int], length: int) -> Ints:
    flat = np.fromiter(
        chain.from_iterable(rows[m] for m in indices), np.int32, len(indices) * length
    )
    return flat.reshape(len(indices), length)


def _scored_mask(
    offsets: Sequence[Offsets | None],
    spans: Sequence[tuple[int, int] | None],
    indices: list[int],
    length: int,
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which tokens count, (members, length), by the span rule above."""
    counts = np.ones((len(indices), length), np.bool_)
    for row, member in enumerate(indices):
        span = spans[member]
        if span is not None:
            start_end = np.array(offsets[member]).reshape(length, 2)
            counts[row] = (start_end[:, 1] > span[0]) & (start_end[:, 0] < span[1])
    return counts
