"""Texts and pairs of texts to rows of token ids, specials built by us; too long a text loses its
end, and is counted.

Conventions that move a score live here. A pair is one row: before + first + between + second +
after. `between` is what the tokenizer's own template for pairs puts there, else its separator, else
its EOS, else a line end (GPT's delimiter token, Radford et al. 2018, section 3.3; BERT's [SEP],
arXiv 1810.04805, section 3.2). Causal rows begin as in scoring; they end with what the tokenizer's
own template ends with, because the last token is what is read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from antlm_bench.checkpoints import Backbone
from antlm_bench.errors import DataError, UsageError
from antlm_bench.scoring.text import check_ids, detect_template, special_id
from antlm_bench.scoring.tokens import TextTokenizer, can_tokenize, probe_texts
from antlm_bench.types import Attention, Bools, Example, Ints

Int64 = NDArray[np.int64]
SECOND_PROBE_TEXT = (
    "It was asleep."  # beside the first, to see what the tokenizer puts between two texts
)
TOKENIZER_BATCH_SIZE = 10_000  # texts tokenised by one call


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """n texts as a model reads them.

    ids: n rows (t,), lengths (n,): their t. second (n,): where the second text begins, t where
    there is none. gold (n,): index of the class. cut (n,): whether the text was too long.
    characters (n,): how many of its characters were read. flags: per row, names out of types.FLAGS
    that its tokens raise.
    """

    ids: tuple[Ints, ...]
    lengths: Int64
    second_starts: Ints
    gold: Int64
    truncated: Bools
    characters_read: Ints
    flags: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids put around a text, and between two."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def resolve_special_tokens(backbone: Backbone, attention: Attention) -> SpecialTokens:
    """What this body's rows are made of under that attention."""
    around = backbone.specials[attention]
    after = around.after or detect_template(backbone.tokenizer).after
    return SpecialTokens(around.before, _separator_ids(backbone.tokenizer), after)


def _separator_ids(tokenizer: Any) -> tuple[int, ...]:
    """Found by trying, as all of a tokenizer's template."""
    one, two = (
        next((t for t in texts if can_tokenize(tokenizer, t)), "")
        for texts in _pair_probe_texts(tokenizer)
    )
    first, second = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (one, two)
    )
    pair = list(tokenizer(one, two)["input_ids"])
    start, stop = _find_sublist(first, pair, 0), -1
    if start >= 0:
        stop = _find_sublist(second, pair, start + len(first))
    if stop > start + len(first):
        return tuple(pair[start + len(first) : stop])
    for token in (special_id(tokenizer, "sep"), special_id(tokenizer, "eos")):
        if token is not None:
            return (token,)
    return (
        tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])
        if can_tokenize(tokenizer, "\n")
        else ()
    )


def _pair_probe_texts(tokenizer: Any) -> Iterator[Iterable[str]]:
    """Candidates for the first and for the second text of a pair."""
    yield probe_texts(tokenizer)
    yield chain([SECOND_PROBE_TEXT], probe_texts(tokenizer))


def _find_sublist(sublist: list[int], sequence: list[int], start: int) -> int:
    places = range(start, len(sequence) - len(sublist) + 1)
    return next(
        (place for place in places if sequence[place : place + len(sublist)] == sublist), -1
    )


def resolve_pad_id(backbone: Backbone) -> int:
    """The id that fills a batch up; any will do, but for RoBERTa's positions, which are counted off
    it.
    """
    known = (backbone.model.config.pad_token_id, backbone.tokenizer.pad_token_id)
    return next(
        (one for one in known if isinstance(one, int) and 0 <= one < backbone.vocab_size), 0
    )


def max_row_length(backbone: Backbone, task_max_length: int) -> int:
    """Tokens of the longest row: what the task asks for, or less where the model cannot."""
    return (
        task_max_length
        if backbone.max_length is None
        else min(task_max_length, backbone.max_length)
    )


def official_max_row_length(backbone: Backbone, task_max_length: int) -> int:
    """Return the tokens of the longest row under the official law: `wanted` if the model takes it.

    A model with relative or rotary positions reads rows that are longer than those of its training.
    One that cannot (learned positions) gets its own limit; the official code ends in an error
    there.
    """
    if backbone.max_length is None or task_max_length <= backbone.max_length:
        return task_max_length
    token = next(i for i in range(1, backbone.vocab_size) if i != resolve_pad_id(backbone))
    model = (
        copy.deepcopy(backbone.model).to("cpu").eval()
    )  # on a GPU a position too far would end the process
    try:
        with torch.inference_mode():
            model(input_ids=torch.full((1, task_max_length), token))
    except (IndexError, RuntimeError, ValueError):
        return backbone.max_length
    return task_max_length


def encode_examples(
    backbone: Backbone, attention: Attention, examples: Sequence[Example], max_length: int
) -> EncodedExamples:
    """Rows of at most `max_length` tokens, specials included.

    Raises UsageError (a max_length that leaves no room for text), DataError (a text without any
    token), CheckpointError (an id that the model has no embedding for).
    """
    around = resolve_special_tokens(backbone, attention)
    known = _tokenize_texts(backbone, examples)
    rows = []
    for example in examples:
        a, pair = known[example.first], bool(example.second)
        b = known[example.second] if pair else TokenizedText((), (), ())
        specials = len(around.before) + len(around.after) + (len(around.between) if pair else 0)
        room = max_length - specials
        if room < 1 + pair:
            raise _no_room_error(max_length, specials)
        left, right = truncate_pair(len(a), len(b), room)
        middle = around.between if pair else ()
        row = np.array(
            [*around.before, *a.ids[:left], *middle, *b.ids[:right], *around.after], np.int32
        )
        if not len(row) or not left + right:
            raise _no_token_error(example)
        second = len(around.before) + left + len(middle) if pair else len(row)
        characters = a.count_characters(left, len(example.first)) + b.count_characters(
            right, len(example.second)
        )
        rows.append(_EncodedExample(row, second, left + right < len(a) + len(b), characters))
    return _collect_rows(backbone, examples, rows, known)


def encode_with_tokenizer(
    backbone: Backbone, examples: Sequence[Example], max_length: int
) -> EncodedExamples:
    """Return rows as the tokenizer makes them: its template, its separator (or none), its way to
    cut.

    This is the law of BabyLM 2025's finetuning: the tokenizer is called with truncation=True on
    each text or pair. A causal tokenizer that adds no BOS gets none, and a template without a
    separator glues two texts. Raises as `encode`.
    """
    made: dict[int, _EncodedExample] = {}
    for paired in (False, True):
        those = [
            number for number, example in enumerate(examples) if bool(example.second) == paired
        ]
        specials = backbone.tokenizer.num_special_tokens_to_add(pair=paired)
        if those and max_length - specials < 1 + paired:
            raise _no_room_error(max_length, specials)
        for start in range(0, len(those), TOKENIZER_BATCH_SIZE):
            part = those[start : start + TOKENIZER_BATCH_SIZE]
            made |= zip(
                part,
                _call_tokenizer(backbone.tokenizer, [examples[i] for i in part], max_length),
                strict=True,
            )
    rows = [made[number] for number in range(len(examples))]
    for example, row in zip(examples, rows, strict=True):
        if not len(row.ids):
            raise _no_token_error(example)
    return _collect_rows(backbone, examples, rows, _tokenize_texts(backbone, examples))


class _EncodedExample(NamedTuple):
    """One of Rows."""

    ids: Ints
    second_start: int
    truncated: bool
    characters_read: int


def _call_tokenizer(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> Iterator[_EncodedExample]:
    """Yield the rows of texts, or of pairs if the first is one, by one call of the tokenizer."""
    texts = [[example.first for example in examples], [example.second for example in examples]]
    texts = texts if examples[0].second else texts[:1]
    found = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
    for number, (example, ids) in enumerate(zip(examples, found["input_ids"], strict=True)):
        row, whole = np.array(ids, np.int32), len(example.first) + len(example.second)
        if not tokenizer.is_fast:  # it says neither where a text begins nor how much of it was read
            uncut = len(tokenizer(*(text[number] for text in texts), verbose=False)["input_ids"])
            yield _EncodedExample(
                row, len(ids), uncut > len(ids), whole * len(ids) // max(uncut, 1)
            )
            continue
        encoding = found.encodings[number]
        places = list(zip(encoding.sequence_ids, encoding.offsets, strict=True))
        second = next((at for at, (text, _) in enumerate(places) if text == 1), len(ids))
        spans = [[span for which, span in places if which == text] for text in (0, 1)]
        read = sum(span[-1][1] - span[0][0] for span in spans if span)
        cut = bool(encoding.overflowing)
        yield _EncodedExample(row, second, cut, read if cut else whole)


def _no_room_error(max_length: int, num_specials: int) -> UsageError:
    hint = f"more than {num_specials} tokens, which are specials"
    return UsageError(
        f"{max_length} tokens have no room for text", location="max_length", hint=hint
    )


def _no_token_error(example: Example) -> DataError:
    return DataError(
        "the text has no token", location=example.id, hint="an empty text cannot be classified"
    )


def _collect_rows(
    backbone: Backbone,
    examples: Sequence[Example],
    rows: Sequence[_EncodedExample],
    tokenized_texts: Mapping[str, TokenizedText],
) -> EncodedExamples:
    """Return Rows of rows, with the flags of their texts. Raises CheckpointError for an id without
    an embedding.
    """
    check_ids(
        backbone.tokenizer,
        max((int(row.ids.max()) for row in rows), default=0),
        backbone.vocab_size,
    )
    ids, second, cut, characters = zip(*rows, strict=True) if rows else ((), (), (), ())
    return EncodedExamples(
        ids,
        np.fromiter(map(len, ids), np.int64, len(ids)),
        np.array(second, np.int32),
        np.array([example.gold for example in examples], np.int64),
        np.array(cut, np.bool_),
        np.array(characters, np.int32),
        tuple(
            tuple(dict.fromkeys(tokenized_texts[e.first].flags + tokenized_texts[e.second].flags))
            for e in examples
        ),
    )


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text's token ids, where each token ends in it, in characters (empty if the tokenizer does
    not say), and the names out of types.FLAGS that its tokens raise.
    """

    ids: tuple[int, ...] | Sequence[int]
    token_ends: Sequence[int]
    flags: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def count_characters(self, num_tokens: int, num_characters: int) -> int:
        """Characters that the first `tokens` tokens hold of so many; in proportion where the ends
        are unknown.
        """
        if num_tokens >= len(self.ids):
            return num_characters
        return (
            self.token_ends[num_tokens - 1]
            if self.token_ends and num_tokens
            else num_characters * num_tokens // len(self.ids)
        )


def _tokenize_texts(backbone: Backbone, examples: Iterable[Example]) -> dict[str, TokenizedText]:
    """Every different text once: paragraphs come with many questions."""
    texts = list(dict.fromkeys(text for one in examples for text in (one.first, one.second)))
    tokenizer = TextTokenizer(backbone.tokenizer)
    known = {}
    for start in range(0, len(texts), TOKENIZER_BATCH_SIZE):
        part = texts[start : start + TOKENIZER_BATCH_SIZE]
        found = tokenizer.tokenize(part, max_offset_length=0)
        for number, (text, ids, places) in enumerate(
            zip(part, found.ids, found.offsets, strict=True)
        ):
            flags = tuple(name for name in ("unk", "lost") if found.flags[name][number])
            known[text] = TokenizedText(ids, [end for _, end in places or ()], flags)
    return known


def truncate_pair(first_length: int, second_length: int, max_tokens: int) -> tuple[int, int]:
    """How many tokens of either text are kept: the longer one loses its end until both fit, the
    second if they are equally long.
    """
    kept = min(first_length, max(max_tokens - second_length, (max_tokens + 1) // 2))
    return kept, min(second_length, max_tokens - kept)
