"""Encode texts and pairs of texts as rows of token ids with special tokens.

These conventions move a score. A pair is one row: before + first + between + second + after.
`between` is the separator in the tokenizer's template of pairs, else its SEP token, else its EOS,
else a line end (GPT's delimiter token, Radford et al. 2018, section 3.3; BERT's [SEP], arXiv
1810.04805, section 3.2). A causal row begins as in scoring. It ends with the tokens that the
tokenizer's template appends, because the head reads the last token. A text that is too long loses
its end, and is flagged.
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
from antlm_bench.printable import format_count
from antlm_bench.scoring.text import check_ids, detect_template, special_id
from antlm_bench.scoring.tokens import TextTokenizer, can_tokenize, probe_texts
from antlm_bench.types import Attention, Bools, Example, Ints

Int64 = NDArray[np.int64]
SECOND_PROBE_TEXT = "It was asleep."  # second text of the pair that shows the tokenizer's template
TOKENIZER_BATCH_SIZE = 10_000  # texts per call of the tokenizer


@dataclass(frozen=True, slots=True)
class EncodedExamples:
    """n texts (or pairs) as rows of token ids."""

    ids: tuple[Ints, ...]
    """n rows (t,), special tokens included."""
    lengths: Int64
    """(n,) tokens per row."""
    second_starts: Ints
    """(n,) position where the second text begins; the row's length if there is none."""
    gold: Int64
    """(n,) index of the class."""
    truncated: Bools
    """(n,) whether the text was too long."""
    characters_read: Ints
    """(n,) characters of the text that were kept."""
    flags: tuple[tuple[str, ...], ...]
    """Per row, the flags (types.FLAGS) of its tokens."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the special tokens before, between and after the texts of a row."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def resolve_special_tokens(backbone: Backbone, attention: Attention) -> SpecialTokens:
    """Return the special tokens of the backbone's rows under `attention`."""
    specials = backbone.specials[attention]
    after = specials.after or detect_template(backbone.tokenizer).after
    return SpecialTokens(specials.before, _detect_separator(backbone.tokenizer), after)


def _detect_separator(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids between the texts of a pair: what the tokenizer puts between two probe texts,
    else its SEP, its EOS or a line end.
    """

    def first_readable(texts: Iterable[str]) -> str:
        return next((text for text in texts if can_tokenize(tokenizer, text)), "")

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    first_text = first_readable(probe_texts(tokenizer))
    second_text = first_readable(chain([SECOND_PROBE_TEXT], probe_texts(tokenizer)))
    first, second = encode(first_text), encode(second_text)
    pair = list(tokenizer(first_text, second_text)["input_ids"])
    first_start = _find_sublist(first, pair, 0)
    if first_start >= 0:
        first_end = first_start + len(first)
        second_start = _find_sublist(second, pair, first_end)
        if second_start > first_end:
            return tuple(pair[first_end:second_start])
    for token in (special_id(tokenizer, "sep"), special_id(tokenizer, "eos")):
        if token is not None:
            return (token,)
    if not can_tokenize(tokenizer, "\n"):
        return ()
    return tuple(encode("\n"))


def _find_sublist(sublist: list[int], sequence: list[int], start: int) -> int:
    """Return the first index >= start at which `sublist` is in `sequence`; -1 if there is none."""
    indices = range(start, len(sequence) - len(sublist) + 1)
    matches = (i for i in indices if sequence[i : i + len(sublist)] == sublist)
    return next(matches, -1)


def resolve_pad_id(backbone: Backbone) -> int:
    """Return the id that pads rows: the model's or the tokenizer's padding id, else 0.

    Most models may be padded with any id, but RoBERTa counts positions from its padding id.
    """
    candidates = (backbone.model.config.pad_token_id, backbone.tokenizer.pad_token_id)
    valid = (i for i in candidates if isinstance(i, int) and 0 <= i < backbone.vocab_size)
    return next(valid, 0)


def max_row_length(backbone: Backbone, task_max_length: int) -> int:
    """Return the maximum tokens per row: the lower of the limits of task and model."""
    return min(task_max_length, backbone.max_length or task_max_length)


def official_max_row_length(backbone: Backbone, task_max_length: int) -> int:
    """Return the maximum tokens per row under BabyLM's recipe: the task's limit, if the model can
    run such a row.

    A model with relative or rotary positions runs rows that are longer than those of its training.
    A model with learned positions cannot, so that its own limit holds. The official code fails
    there.
    """
    if backbone.max_length is None or task_max_length <= backbone.max_length:
        return task_max_length
    pad_id = resolve_pad_id(backbone)
    token_id = next(i for i in range(1, backbone.vocab_size) if i != pad_id)
    # On the CPU, because an index beyond the position table ends the process on a GPU.
    model = copy.deepcopy(backbone.model).to("cpu").eval()
    try:
        with torch.inference_mode():
            model(input_ids=torch.full((1, task_max_length), token_id))
    except (IndexError, RuntimeError, ValueError):
        return backbone.max_length
    return task_max_length


def encode_examples(
    backbone: Backbone, attention: Attention, examples: Sequence[Example], max_length: int
) -> EncodedExamples:
    """Encode examples as rows of at most `max_length` tokens, special tokens included.

    Raises UsageError (max_length leaves no room for text), DataError (a text without a token) and
    CheckpointError (a token id without an embedding).
    """
    specials = resolve_special_tokens(backbone, attention)
    tokenized_texts = _tokenize_texts(backbone, examples)
    rows = []
    for example in examples:
        is_pair = bool(example.second)
        first = tokenized_texts[example.first]
        second = tokenized_texts[example.second] if is_pair else TokenizedText((), (), ())
        between = specials.between if is_pair else ()
        num_specials = len(specials.before) + len(specials.after) + len(between)
        if max_length - num_specials < 1 + is_pair:
            raise _no_room_error(max_length, num_specials)
        num_first, num_second = truncate_pair(len(first), len(second), max_length - num_specials)
        if not num_first + num_second:
            raise _no_token_error(example)
        texts = [*first.ids[:num_first], *between, *second.ids[:num_second]]
        row = np.array([*specials.before, *texts, *specials.after], np.int32)
        second_start = len(specials.before) + num_first + len(between) if is_pair else len(row)
        characters = first.count_characters(num_first, len(example.first))
        characters += second.count_characters(num_second, len(example.second))
        truncated = num_first + num_second < len(first) + len(second)
        rows.append(_EncodedExample(row, second_start, truncated, characters))
    return _collect_rows(backbone, examples, rows, tokenized_texts)


def encode_with_tokenizer(
    backbone: Backbone, examples: Sequence[Example], max_length: int
) -> EncodedExamples:
    """Encode examples with the tokenizer's template, separator and truncation, as BabyLM 2025 does.

    The tokenizer is called with truncation=True on each text or pair. If it adds no BOS, the row
    has none; if its template has no separator, the texts of a pair are joined directly. Raises as
    `encode_examples`.
    """
    encoded: dict[int, _EncodedExample] = {}
    for is_pair in (False, True):
        indices = [i for i, example in enumerate(examples) if bool(example.second) == is_pair]
        num_specials = backbone.tokenizer.num_special_tokens_to_add(pair=is_pair)
        if indices and max_length - num_specials < 1 + is_pair:
            raise _no_room_error(max_length, num_specials)
        for start in range(0, len(indices), TOKENIZER_BATCH_SIZE):
            batch = indices[start : start + TOKENIZER_BATCH_SIZE]
            rows = _call_tokenizer(backbone.tokenizer, [examples[i] for i in batch], max_length)
            encoded |= zip(batch, rows, strict=True)
    for index, example in enumerate(examples):
        if not len(encoded[index].ids):
            raise _no_token_error(example)
    ordered = [encoded[index] for index in range(len(examples))]
    return _collect_rows(backbone, examples, ordered, _tokenize_texts(backbone, examples))


class _EncodedExample(NamedTuple):
    """One row of EncodedExamples."""

    ids: Ints
    second_start: int
    truncated: bool
    characters_read: int


def _call_tokenizer(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> Iterator[_EncodedExample]:
    """Encode texts, or pairs if the first example is a pair, in one call of the tokenizer."""
    columns = [[example.first for example in examples]]
    if examples[0].second:
        columns.append([example.second for example in examples])
    encodings = tokenizer(*columns, truncation=True, max_length=max_length, verbose=False)
    for index, (example, ids) in enumerate(zip(examples, encodings["input_ids"], strict=True)):
        row = np.array(ids, np.int32)
        num_characters = len(example.first) + len(example.second)
        if not tokenizer.is_fast:  # without offsets, characters are estimated from tokens
            untruncated = tokenizer(*(column[index] for column in columns), verbose=False)
            num_tokens = len(untruncated["input_ids"])
            characters = num_characters * len(ids) // max(num_tokens, 1)
            yield _EncodedExample(row, len(ids), num_tokens > len(ids), characters)
            continue
        encoding = encodings.encodings[index]
        text_of_token = encoding.sequence_ids  # 0 or 1; None for special tokens
        second_start = text_of_token.index(1) if 1 in text_of_token else len(ids)
        truncated = bool(encoding.overflowing)
        if truncated:
            num_characters = _count_characters_read(text_of_token, encoding.offsets)
        yield _EncodedExample(row, second_start, truncated, num_characters)


def _count_characters_read(
    text_of_token: Sequence[int | None], offsets: Sequence[tuple[int, int]]
) -> int:
    """Return how many characters of the first and second text the tokens cover."""
    num_characters = 0
    for text in (0, 1):
        spans = [offsets[i] for i, number in enumerate(text_of_token) if number == text]
        if spans:
            num_characters += spans[-1][1] - spans[0][0]
    return num_characters


def _no_room_error(max_length: int, num_specials: int) -> UsageError:
    return UsageError(
        f"no room for text in {format_count(max_length, 'token')}, beside "
        f"{format_count(num_specials, 'special token')}",
        location="max_length",
        hint="give more: --set max_length=N",
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
    """Collect rows, classes and flags. Raises CheckpointError for an id without an embedding."""
    largest_id = max((int(row.ids.max()) for row in rows), default=0)
    check_ids(backbone.tokenizer, largest_id, backbone.vocab_size)
    flags = (
        tokenized_texts[example.first].flags + tokenized_texts[example.second].flags
        for example in examples
    )
    return EncodedExamples(
        ids=tuple(row.ids for row in rows),
        lengths=np.array([len(row.ids) for row in rows], np.int64),
        second_starts=np.array([row.second_start for row in rows], np.int32),
        gold=np.array([example.gold for example in examples], np.int64),
        truncated=np.array([row.truncated for row in rows], np.bool_),
        characters_read=np.array([row.characters_read for row in rows], np.int32),
        flags=tuple(tuple(dict.fromkeys(names)) for names in flags),
    )


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text's tokens, without special tokens."""

    ids: Sequence[int]
    token_ends: Sequence[int]
    """Character at which each token ends; empty if the tokenizer reports no offsets."""
    flags: tuple[str, ...]
    """Flags (types.FLAGS) of the tokens."""

    def __len__(self) -> int:
        return len(self.ids)

    def count_characters(self, num_tokens: int, num_characters: int) -> int:
        """Return how many characters the first `num_tokens` tokens cover.

        num_characters: length of the text. Without offsets the result is an estimate, proportional
        to the number of tokens.
        """
        if num_tokens >= len(self.ids):
            return num_characters
        if self.token_ends and num_tokens:
            return self.token_ends[num_tokens - 1]
        return num_characters * num_tokens // len(self.ids)


def _tokenize_texts(backbone: Backbone, examples: Iterable[Example]) -> dict[str, TokenizedText]:
    """Return text -> tokens. Equal texts are tokenized once (a paragraph has many questions)."""
    texts = list(
        dict.fromkeys(text for example in examples for text in (example.first, example.second))
    )
    tokenizer = TextTokenizer(backbone.tokenizer)
    tokenized_texts = {}
    for start in range(0, len(texts), TOKENIZER_BATCH_SIZE):
        batch = texts[start : start + TOKENIZER_BATCH_SIZE]
        tokens = tokenizer.tokenize(batch, max_offset_length=0)
        for index, text in enumerate(batch):
            flags = tuple(name for name in ("unk", "lost") if tokens.flags[name][index])
            ends = [end for _, end in tokens.offsets[index] or ()]
            tokenized_texts[text] = TokenizedText(tokens.ids[index], ends, flags)
    return tokenized_texts


def truncate_pair(first_length: int, second_length: int, max_tokens: int) -> tuple[int, int]:
    """Return how many tokens of the first and the second text are kept.

    The longer text loses tokens at its end until both fit; if they are equally long, the second.
    """
    num_first = min(first_length, max(max_tokens - second_length, (max_tokens + 1) // 2))
    return num_first, min(second_length, max_tokens - num_first)
