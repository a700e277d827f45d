"""Encode texts and pairs of texts as rows of token ids, with special tokens added here.

These conventions move a score. A pair is one row: before + first + between + second + after.
`between` is what the tokenizer's own pair template puts there, else its separator, else its EOS,
else a line end (GPT's delimiter token, Radford et al. 2018, section 3.3; BERT's [SEP], arXiv
1810.04805, section 3.2). Causal rows begin as in scoring and end as in the tokenizer's own
template, because the last token is read. A text that is too long loses its end, and is counted.
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
SECOND_PROBE_TEXT = "It was asleep."  # second text of the pair that probes the tokenizer's template
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
    """Per row, the names out of types.FLAGS that its tokens raise."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids that are put before, between and after the texts of a row."""

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def resolve_special_tokens(backbone: Backbone, attention: Attention) -> SpecialTokens:
    """Return the special tokens of this backbone's rows under `attention`."""
    specials = backbone.specials[attention]
    after = specials.after or detect_template(backbone.tokenizer).after
    return SpecialTokens(specials.before, _separator_ids(backbone.tokenizer), after)


def _separator_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids between the texts of a pair, detected by tokenizing a pair of probe texts."""
    first_text, second_text = (
        next((text for text in candidates if can_tokenize(tokenizer, text)), "")
        for candidates in (
            probe_texts(tokenizer),
            chain([SECOND_PROBE_TEXT], probe_texts(tokenizer)),
        )
    )
    first, second = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (first_text, second_text)
    )
    pair = list(tokenizer(first_text, second_text)["input_ids"])
    start, stop = _find_sublist(first, pair, 0), -1
    if start >= 0:
        stop = _find_sublist(second, pair, start + len(first))
    if stop > start + len(first):
        return tuple(pair[start + len(first) : stop])
    for token in (special_id(tokenizer, "sep"), special_id(tokenizer, "eos")):
        if token is not None:
            return (token,)
    if not can_tokenize(tokenizer, "\n"):
        return ()
    return tuple(tokenizer("\n", add_special_tokens=False)["input_ids"])


def _find_sublist(sublist: list[int], sequence: list[int], start: int) -> int:
    """Return the first index >= start where `sublist` stands in `sequence`; -1 if nowhere."""
    indices = range(start, len(sequence) - len(sublist) + 1)
    matches = (i for i in indices if sequence[i : i + len(sublist)] == sublist)
    return next(matches, -1)


def resolve_pad_id(backbone: Backbone) -> int:
    """Return the id that pads rows: the model's or the tokenizer's, else 0.

    Any id would do, except for RoBERTa, which counts positions from its padding id.
    """
    candidates = (backbone.model.config.pad_token_id, backbone.tokenizer.pad_token_id)
    valid = (i for i in candidates if isinstance(i, int) and 0 <= i < backbone.vocab_size)
    return next(valid, 0)


def max_row_length(backbone: Backbone, task_max_length: int) -> int:
    """Return the tokens of the longest row: the task's limit, or the model's if that is lower."""
    return min(task_max_length, backbone.max_length or task_max_length)


def official_max_row_length(backbone: Backbone, task_max_length: int) -> int:
    """Return the tokens of the longest row under BabyLM's recipe: the task's, if the model takes
    them.

    A model with relative or rotary positions reads rows that are longer than those of its training.
    A model with learned positions cannot, and keeps its own limit; the official code fails there.
    """
    if backbone.max_length is None or task_max_length <= backbone.max_length:
        return task_max_length
    token = next(i for i in range(1, backbone.vocab_size) if i != resolve_pad_id(backbone))
    # On the CPU: a position beyond the table would end the process on a GPU.
    model = copy.deepcopy(backbone.model).to("cpu").eval()
    try:
        with torch.inference_mode():
            model(input_ids=torch.full((1, task_max_length), token))
    except (IndexError, RuntimeError, ValueError):
        return backbone.max_length
    return task_max_length


def encode_examples(
    backbone: Backbone, attention: Attention, examples: Sequence[Example], max_length: int
) -> EncodedExamples:
    """Encode examples as rows of at most `max_length` tokens, special tokens included.

    Raises UsageError (a max_length without room for text), DataError (a text without a token),
    CheckpointError (an id for which the model has no embedding).
    """
    specials = resolve_special_tokens(backbone, attention)
    tokenized_texts = _tokenize_texts(backbone, examples)
    rows = []
    for example in examples:
        first, is_pair = tokenized_texts[example.first], bool(example.second)
        second = tokenized_texts[example.second] if is_pair else TokenizedText((), (), ())
        between = specials.between if is_pair else ()
        num_specials = len(specials.before) + len(specials.after) + len(between)
        if max_length - num_specials < 1 + is_pair:
            raise _no_room_error(max_length, num_specials)
        left, right = truncate_pair(len(first), len(second), max_length - num_specials)
        texts = [*first.ids[:left], *between, *second.ids[:right]]
        row = np.array([*specials.before, *texts, *specials.after], np.int32)
        if not len(row) or not left + right:
            raise _no_token_error(example)
        second_start = len(specials.before) + left + len(between) if is_pair else len(row)
        characters = first.count_characters(left, len(example.first))
        characters += second.count_characters(right, len(example.second))
        truncated = left + right < len(first) + len(second)
        rows.append(_EncodedExample(row, second_start, truncated, characters))
    return _collect_rows(backbone, examples, rows, tokenized_texts)


def encode_with_tokenizer(
    backbone: Backbone, examples: Sequence[Example], max_length: int
) -> EncodedExamples:
    """Encode examples by the tokenizer's own call: its template, separator and truncation.

    BabyLM 2025's finetuning does this: the tokenizer is called with truncation=True on each text or
    pair. A causal tokenizer that adds no BOS gets none, and a template without a separator joins
    two texts directly. Raises as `encode_examples`.
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
    """Yield the rows of texts, or of pairs if the first example is a pair, from one call."""
    texts = [[example.first for example in examples], [example.second for example in examples]]
    texts = texts if examples[0].second else texts[:1]
    encodings = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
    for index, (example, ids) in enumerate(zip(examples, encodings["input_ids"], strict=True)):
        row, num_characters = np.array(ids, np.int32), len(example.first) + len(example.second)
        if not tokenizer.is_fast:  # it reports no offsets: estimate what was read in proportion
            untruncated = tokenizer(*(column[index] for column in texts), verbose=False)
            num_tokens = len(untruncated["input_ids"])
            characters = num_characters * len(ids) // max(num_tokens, 1)
            yield _EncodedExample(row, len(ids), num_tokens > len(ids), characters)
            continue
        encoding = encodings.encodings[index]
        tokens = list(zip(encoding.sequence_ids, encoding.offsets, strict=True))
        second_start = next((at for at, (text, _) in enumerate(tokens) if text == 1), len(ids))
        spans = [[span for which, span in tokens if which == text] for text in (0, 1)]
        characters_read = sum(span[-1][1] - span[0][0] for span in spans if span)
        truncated = bool(encoding.overflowing)
        characters = characters_read if truncated else num_characters
        yield _EncodedExample(row, second_start, truncated, characters)


def _no_room_error(max_length: int, num_specials: int) -> UsageError:
    return UsageError(
        f"{max_length} tokens have no room for text",
        location="max_length",
        hint=f"more than {num_specials}, the number of special tokens",
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
    """Collect rows with the flags of their texts. Raises CheckpointError for an id without an
    embedding.
    """
    largest_id = max((int(row.ids.max()) for row in rows), default=0)
    check_ids(backbone.tokenizer, largest_id, backbone.vocab_size)
    ids, second, truncated, characters = zip(*rows, strict=True) if rows else ((), (), (), ())
    flags = (tokenized_texts[e.first].flags + tokenized_texts[e.second].flags for e in examples)
    return EncodedExamples(
        ids,
        np.fromiter(map(len, ids), np.int64, len(ids)),
        np.array(second, np.int32),
        np.array([example.gold for example in examples], np.int64),
        np.array(truncated, np.bool_),
        np.array(characters, np.int32),
        tuple(tuple(dict.fromkeys(names)) for names in flags),
    )


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text's tokens, without special tokens."""

    ids: Sequence[int]
    token_ends: Sequence[int]
    """Where each token ends, in characters; empty if the tokenizer reports no offsets."""
    flags: tuple[str, ...]
    """Names out of types.FLAGS that the tokens raise."""

    def __len__(self) -> int:
        return len(self.ids)

    def count_characters(self, num_tokens: int, num_characters: int) -> int:
        """Return how many of the text's `num_characters` its first `num_tokens` tokens hold.

        In proportion, if the tokenizer reports no offsets.
        """
        if num_tokens >= len(self.ids):
            return num_characters
        if self.token_ends and num_tokens:
            return self.token_ends[num_tokens - 1]
        return num_characters * num_tokens // len(self.ids)


def _tokenize_texts(backbone: Backbone, examples: Iterable[Example]) -> dict[str, TokenizedText]:
    """Tokenize every distinct text once: one paragraph comes with many questions."""
    texts = list(dict.fromkeys(text for e in examples for text in (e.first, e.second)))
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
    """Return how many tokens of either text are kept.

    The longer text loses its end until both fit; the second, if they are equally long.
    """
    kept = min(first_length, max(max_tokens - second_length, (max_tokens + 1) // 2))
    return kept, min(second_length, max_tokens - kept)
