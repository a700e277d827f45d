"""Texts and pairs of texts to rows of token ids, specials built by us; too long a text loses its end, and is counted.

Conventions that move a score live here. A pair is one row: before + first + between + second + after. `between` is what
the tokenizer's own template for pairs puts there, else its separator, else its EOS, else a line end (GPT's delimiter
token, Radford et al. 2018, section 3.3; BERT's [SEP], arXiv 1810.04805, section 3.2). Causal rows begin as in
scoring; they end with what the tokenizer's own template ends with, because the last token is what is read.
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

from antlm_bench.checkpoints import Body
from antlm_bench.errors import DataError, UsageError
from antlm_bench.scoring.text import check_ids, special_id, template
from antlm_bench.scoring.tokens import TextTokenizer, probe_texts, readable
from antlm_bench.types import Attention, Bools, Example, Ints

Int64 = NDArray[np.int64]
SECOND = "It was asleep."  # beside the first, to see what the tokenizer puts between two texts
BULK = 10_000  # texts tokenised by one call


@dataclass(frozen=True, slots=True)
class Rows:
    """n texts as a model reads them.

    ids: n rows (t,), lengths (n,): their t. second (n,): where the second text begins, t where there is none. gold
    (n,): index of the class. cut (n,): whether the text was too long. characters (n,): how many of its characters were
    read. flags: per row, names out of types.FLAGS that its tokens raise.
    """

    ids: tuple[Ints, ...]
    lengths: Int64
    second: Ints
    gold: Int64
    cut: Bools
    characters: Ints
    flags: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Frame:
    """Token ids put around a text, and between two."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def frame(body: Body, attention: Attention) -> Frame:
    """What this body's rows are made of under that attention."""
    around = body.around[attention]
    after = around.after or template(body.tokenizer).after
    return Frame(around.before, _between(body.tokenizer), after)


def _between(tokenizer: Any) -> tuple[int, ...]:
    """Found by trying, as all of a tokenizer's template."""
    one, two = (next((t for t in texts if readable(tokenizer, t)), "") for texts in _probes(tokenizer))
    first, second = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (one, two))
    pair = list(tokenizer(one, two)["input_ids"])
    start, stop = _find(first, pair, 0), -1
    if start >= 0:
        stop = _find(second, pair, start + len(first))
    if stop > start + len(first):
        return tuple(pair[start + len(first) : stop])
    for token in (special_id(tokenizer, "sep"), special_id(tokenizer, "eos")):
        if token is not None:
            return (token,)
    return tuple(tokenizer("\n", add_special_tokens=False)["input_ids"]) if readable(tokenizer, "\n") else ()


def _probes(tokenizer: Any) -> Iterator[Iterable[str]]:
    """Candidates for the first and for the second text of a pair."""
    yield probe_texts(tokenizer)
    yield chain([SECOND], probe_texts(tokenizer))


def _find(part: list[int], whole: list[int], start: int) -> int:
    places = range(start, len(whole) - len(part) + 1)
    return next((place for place in places if whole[place : place + len(part)] == part), -1)


def padding(body: Body) -> int:
    """The id that fills a batch up; any will do, but for RoBERTa's positions, which are counted off it."""
    known = (body.model.config.pad_token_id, body.tokenizer.pad_token_id)
    return next((one for one in known if isinstance(one, int) and 0 <= one < body.vocabulary), 0)


def longest(body: Body, wanted: int) -> int:
    """Tokens of the longest row: what the task asks for, or less where the model cannot."""
    return wanted if body.max_length is None else min(wanted, body.max_length)


def longest_tried(body: Body, wanted: int) -> int:
    """Return the tokens of the longest row under the official law: `wanted` if the model takes it.

    A model with relative or rotary positions reads rows that are longer than those of its training.
    One that cannot (learned positions) gets its own limit; the official code ends in an error there.
    """
    if body.max_length is None or wanted <= body.max_length:
        return wanted
    token = next(i for i in range(1, body.vocabulary) if i != padding(body))
    model = copy.deepcopy(body.model).to("cpu").eval()  # on a GPU a position too far would end the process
    try:
        with torch.inference_mode():
            model(input_ids=torch.full((1, wanted), token))
    except (IndexError, RuntimeError, ValueError):
        return body.max_length
    return wanted


def encode(body: Body, attention: Attention, examples: Sequence[Example], max_length: int) -> Rows:
    """Rows of at most `max_length` tokens, specials included.

    Raises UsageError (a max_length that leaves no room for text), DataError (a text without any token), CheckpointError
    (an id that the model has no embedding for).
    """
    around = frame(body, attention)
    known = _tokenized(body, examples)
    rows = []
    for example in examples:
        a, pair = known[example.first], bool(example.second)
        b = known[example.second] if pair else Text((), (), ())
        specials = len(around.before) + len(around.after) + (len(around.between) if pair else 0)
        room = max_length - specials
        if room < 1 + pair:
            raise _no_room(max_length, specials)
        left, right = fitted(len(a), len(b), room)
        middle = around.between if pair else ()
        row = np.array([*around.before, *a.ids[:left], *middle, *b.ids[:right], *around.after], np.int32)
        if not len(row) or not left + right:
            raise _no_token(example)
        second = len(around.before) + left + len(middle) if pair else len(row)
        characters = a.read(left, len(example.first)) + b.read(right, len(example.second))
        rows.append(_Row(row, second, left + right < len(a) + len(b), characters))
    return _rows(body, examples, rows, known)


def encode_by_tokenizer(body: Body, examples: Sequence[Example], max_length: int) -> Rows:
    """Return rows as the tokenizer makes them: its template, its separator (or none), its way to cut.

    This is the law of BabyLM 2025's finetuning: the tokenizer is called with truncation=True on each
    text or pair. A causal tokenizer that adds no BOS gets none, and a template without a separator
    glues two texts. Raises as `encode`.
    """
    made: dict[int, _Row] = {}
    for paired in (False, True):
        those = [number for number, example in enumerate(examples) if bool(example.second) == paired]
        specials = body.tokenizer.num_special_tokens_to_add(pair=paired)
        if those and max_length - specials < 1 + paired:
            raise _no_room(max_length, specials)
        for start in range(0, len(those), BULK):
            part = those[start : start + BULK]
            made |= zip(part, _called(body.tokenizer, [examples[i] for i in part], max_length), strict=True)
    rows = [made[number] for number in range(len(examples))]
    for example, row in zip(examples, rows, strict=True):
        if not len(row.ids):
            raise _no_token(example)
    return _rows(body, examples, rows, _tokenized(body, examples))


class _Row(NamedTuple):
    """One of Rows."""

    ids: Ints
    second: int
    cut: bool
    characters: int


def _called(tokenizer: Any, examples: Sequence[Example], max_length: int) -> Iterator[_Row]:
    """Yield the rows of texts, or of pairs if the first is one, by one call of the tokenizer."""
    texts = [[example.first for example in examples], [example.second for example in examples]]
    texts = texts if examples[0].second else texts[:1]
    found = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
    for number, (example, ids) in enumerate(zip(examples, found["input_ids"], strict=True)):
        row, whole = np.array(ids, np.int32), len(example.first) + len(example.second)
        if not tokenizer.is_fast:  # it says neither where a text begins nor how much of it was read
            uncut = len(tokenizer(*(text[number] for text in texts), verbose=False)["input_ids"])
            yield _Row(row, len(ids), uncut > len(ids), whole * len(ids) // max(uncut, 1))
            continue
        encoding = found.encodings[number]
        places = list(zip(encoding.sequence_ids, encoding.offsets, strict=True))
        second = next((at for at, (text, _) in enumerate(places) if text == 1), len(ids))
        spans = [[span for which, span in places if which == text] for text in (0, 1)]
        read = sum(span[-1][1] - span[0][0] for span in spans if span)
        cut = bool(encoding.overflowing)
        yield _Row(row, second, cut, read if cut else whole)


def _no_room(max_length: int, specials: int) -> UsageError:
    hint = f"more than {specials} tokens, which are specials"
    return UsageError(f"{max_length} tokens have no room for text", place="max_length", hint=hint)


def _no_token(example: Example) -> DataError:
    return DataError("the text has no token", place=example.id, hint="an empty text cannot be classified")


def _rows(body: Body, examples: Sequence[Example], rows: Sequence[_Row], known: Mapping[str, Text]) -> Rows:
    """Return Rows of rows, with the flags of their texts. Raises CheckpointError for an id without an embedding."""
    check_ids(body.tokenizer, max((int(row.ids.max()) for row in rows), default=0), body.vocabulary)
    ids, second, cut, characters = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Rows(
        ids,
        np.fromiter(map(len, ids), np.int64, len(ids)),
        np.array(second, np.int32),
        np.array([example.gold for example in examples], np.int64),
        np.array(cut, np.bool_),
        np.array(characters, np.int32),
        tuple(tuple(dict.fromkeys(known[e.first].flags + known[e.second].flags)) for e in examples),
    )


@dataclass(frozen=True, slots=True)
class Text:
    """A text's token ids, where each token ends in it, in characters (empty if the tokenizer does not say), and the
    names out of types.FLAGS that its tokens raise."""

    ids: tuple[int, ...] | Sequence[int]
    ends: Sequence[int]
    flags: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, tokens: int, characters: int) -> int:
        """Characters that the first `tokens` tokens hold of so many; in proportion where the ends are unknown."""
        if tokens >= len(self.ids):
            return characters
        return self.ends[tokens - 1] if self.ends and tokens else characters * tokens // len(self.ids)


def _tokenized(body: Body, examples: Iterable[Example]) -> dict[str, Text]:
    """Every different text once: paragraphs come with many questions."""
    texts = list(dict.fromkeys(text for one in examples for text in (one.first, one.second)))
    tokenizer = TextTokenizer(body.tokenizer)
    known = {}
    for start in range(0, len(texts), BULK):
        part = texts[start : start + BULK]
        found = tokenizer.tokenize(part, limit=0)
        for number, (text, ids, places) in enumerate(zip(part, found.ids, found.offsets, strict=True)):
            flags = tuple(name for name in ("unk", "lost") if found.flags[name][number])
            known[text] = Text(ids, [end for _, end in places or ()], flags)
    return known


def fitted(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of either text are kept: the longer one loses its end until both fit, the second if they are
    equally long."""
    kept = min(first, max(room - second, (room + 1) // 2))
    return kept, min(second, room - kept)
