"""Log-probabilities of spans and words in texts.

- `span_logprobs`: parts of whole texts, under any scoring method of one part.
- `predict`: words after their left context only, as studies of reading ask. A masked model gets
  NUM_MASKS masks after the context, and its first mask is read (BabyLM 2025,
  reading/evaluation_functions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.predictions import (
    UNSCORED_VALUE,
    OptionColumns,
    Predictions,
    any_option,
    item_flags,
)
from antlm_bench.scoring.methods import METHODS, Method
from antlm_bench.types import (
    Attention,
    Bools,
    EncodedBatch,
    Encodings,
    Floats,
    Ints,
    Item,
    LanguageModel,
    Option,
    Probes,
    ProgressCallback,
)

NUM_MASKS = 3  # BabyLM 2025's --number_of_mask_tokens_to_append
TokenDecoder = Callable[[int], str]  # a token id as text


@dataclass(frozen=True, slots=True)
class SpanScores:
    """Log-probabilities of n spans of text."""

    logp: Floats
    """(n,) natural log-probability, NaN where a token of the span cannot be scored."""
    token_counts: NDArray[np.int64]
    """(n,) tokens of the span."""
    encodings: Encodings
    """The facts of the texts."""

    @property
    def too_long(self) -> Bools:
        """(n,) whether the text does not fit into the model."""
        return self.encodings.too_long


def single_part(method: Method) -> tuple[Attention, Callable[..., Probes]]:
    """Return the one (attention, probe function) of a method. Raises MethodNotSupported where it
    has several parts (`fused`), whose product is not a probability.
    """
    if len(method.parts) != 1:
        raise MethodNotSupported(
            "a product of two predictions is not a probability of a word",
            location="--method",
            hint="ask for one of its parts: --method causal, --method mntp",
        )
    return method.parts[0]


def span_logprobs(
    model: LanguageModel,
    options: Sequence[Option],
    method: Method,
    tick: ProgressCallback | None = None,
) -> SpanScores:
    """Compute the log-probability of each option's span in its text. An empty span has no tokens
    and log-probability 0.
    """
    attention, make_probes = single_part(method)
    n = len(options)
    encodings = model.encode(
        [option.text for option in options],
        [option.span or (0, len(option.text)) for option in options],
        attention,
    )
    token_counts, read_counts = np.zeros(n, np.int64), np.zeros(n, np.int64)
    probes: list[Probes] = []
    for encoded in encodings.batches:
        token_counts[encoded.text_index] = encoded.score_mask.sum(1)
        plain = make_probes(encoded, model.mask_id)
        read_counts += np.bincount(plain.text_index, minlength=n)
        probes.append(plain)
    probes = [p for p in probes if len(p.row)]
    logp = model.score_probes(probes, n, tick) if probes else np.zeros(n)
    is_empty = np.array(
        [option.span is not None and option.span[0] == option.span[1] for option in options], bool
    )
    unscored = (read_counts < token_counts) | (token_counts == 0)
    logp[unscored & ~is_empty | encodings.too_long] = np.nan
    return SpanScores(logp, token_counts, method.with_relevant_flags(encodings))


class NextTokenRequest(NamedTuple):
    """One token to be scored after a context."""

    prefix: Ints
    """Token ids of the context, specials included."""
    suffix: Ints
    """The specials that end a masked row."""
    target: int
    """The token."""
    text: int
    """The index of the text whose score it adds to."""


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None = None,
    decode_token: TokenDecoder | None = None,
) -> list[Predictions]:
    """Compute the log-probability of each option's span after the text before it, per method.

    The options of an item are separate questions, not alternatives: `pred` is 0 and has no meaning.
    Without `decode_token`, text and span are tokenised together. With it, as BabyLM 2025 does: the
    span is tokenised by itself, so that its first token follows the context without the space that
    byte-level tokenizers expect; each further token is decoded and tokenised again, and the first
    token of that is scored after the context and the tokens so far.

    Raises MethodNotSupported for methods that read more than the left context, and DataError for a
    span without tokens.
    """
    options = [option for item in items for option in item.options]
    results = []
    for method in methods:
        attention, _ = single_part(method)
        if not method.predicts_next_token:
            names = [m.name for m in METHODS if m.predicts_next_token]
            raise MethodNotSupported(
                f"{method.name} cannot read a word after its left context",
                location="--method",
                hint=f"--method {', '.join(names[:-1])} or {names[-1]}",
            )
        requests, encodings = (
            _tokenize_separately(model, options, attention, decode_token)
            if decode_token
            else _tokenize_whole(model, options, attention)
        )
        encodings = method.with_relevant_flags(encodings)
        results.append(_build_predictions(model, items, requests, encodings, method, tick))
    return results


def _tokenize_whole(
    model: LanguageModel, options: Sequence[Option], attention: Attention
) -> tuple[list[NextTokenRequest], Encodings]:
    """Return the tokens of every span, in order, and the facts of the texts."""
    encodings = model.encode([o.text for o in options], [o.span for o in options], attention)
    requests = []
    for encoded in encodings.batches:
        end = _span_ends(encoded)
        for row, position in zip(*np.nonzero(encoded.score_mask), strict=True):
            ids, text = encoded.ids[row], int(encoded.text_index[row])
            requests.append(
                NextTokenRequest(ids[:position], ids[end[row] :], int(ids[position]), text)
            )
    return requests, encodings


def _tokenize_separately(
    model: LanguageModel,
    options: Sequence[Option],
    attention: Attention,
    decode_token: TokenDecoder,
) -> tuple[list[NextTokenRequest], Encodings]:
    """Return the same as `_tokenize_whole`, with spans tokenised apart from their contexts."""
    words = [option.text[slice(*(option.span or (0, None)))] for option in options]
    contexts: list[str] = []
    pieces: list[str] = []
    text_of_piece: list[int] = []
    for text, ids in enumerate(_text_token_ids(model, words, attention)):
        span = options[text].span
        context = options[text].text[: span[0]] if span else ""
        for token_index, token in enumerate(ids):
            contexts.append(context)
            pieces.append(words[text] if token_index == 0 else decode_token(token))
            text_of_piece.append(text)
            context += decode_token(token)
    targets = [ids[:1] for ids in _text_token_ids(model, pieces, attention)]
    encodings = model.encode(contexts, [None] * len(contexts), attention)
    requests = []
    for encoded in encodings.batches:
        end = _span_ends(encoded)
        for row, piece_index in enumerate(encoded.text_index):
            text = text_of_piece[piece_index]
            if not targets[piece_index]:
                raise DataError(
                    f"the tokenizer does not read {pieces[piece_index]!r}, "
                    f"a piece of {words[text]!r}, by itself",
                    hint="a suite whose words are attached by their space has no such step: "
                    "--suite reading",
                )
            ids = encoded.ids[row]
            requests.append(
                NextTokenRequest(ids[: end[row]], ids[end[row] :], targets[piece_index][0], text)
            )
    too_long = np.zeros(len(options), np.bool_)
    too_long[[text_of_piece[index] for index in np.flatnonzero(encodings.too_long)]] = True
    whole = model.encode([option.text for option in options], [None] * len(options), attention)
    return requests, replace(whole, too_long=too_long)


def _span_ends(encoded: EncodedBatch) -> NDArray[np.int64]:
    """Return the position after the last scored token of each row, (n,)."""
    ends: NDArray[np.int64] = encoded.score_mask.shape[1] - encoded.score_mask[:, ::-1].argmax(1)
    return ends


def _text_token_ids(
    model: LanguageModel, texts: Sequence[str], attention: Attention
) -> list[list[int]]:
    """Return the token ids of each text, without specials."""
    ids_by_text: list[list[int]] = [[] for _ in texts]
    for encoded in model.encode(texts, [None] * len(texts), attention).batches:
        for row, text in enumerate(encoded.text_index):
            ids_by_text[text] = [int(i) for i in encoded.ids[row][encoded.score_mask[row]]]
    return ids_by_text


def _build_predictions(
    model: LanguageModel,
    items: Sequence[Item],
    requests: Sequence[NextTokenRequest],
    encodings: Encodings,
    method: Method,
    tick: ProgressCallback | None,
) -> Predictions:
    shift, num_texts = method.mask_shift, len(encodings.too_long)
    too_long = encodings.too_long.copy()
    num_added = 0 if shift is None else NUM_MASKS
    for request in requests:
        length = len(request.prefix) + num_added + len(request.suffix)
        if model.max_length is not None and length > model.max_length:
            too_long[request.text] = True
    readable = [
        request
        for request in requests
        if not too_long[request.text] and (len(request.prefix) or shift == 0)
    ]
    probes = list(_request_probes(readable, method, model.mask_id))
    scores = model.score_probes(probes, num_texts, tick) if probes else np.zeros(num_texts)
    num_tokens, num_read = (
        np.bincount([request.text for request in group], minlength=num_texts)
        for group in (requests, readable)
    )
    counts = np.array([len(item.options) for item in items], np.int32)
    item_too_long = any_option(too_long, counts)
    text_fits = np.repeat(~item_too_long, counts)
    unscored = any_option((num_read < np.maximum(num_tokens, 1)) & text_fits, counts)
    if unscored.any():
        raise DataError(
            "a word cannot be scored",
            location=f"item {items[int(unscored.argmax())].id}",
            hint="it is empty for this tokenizer, or nothing stands before its first token "
            "(see --bos)",
        )
    options = OptionColumns(
        counts,
        np.where(text_fits, scores, UNSCORED_VALUE),
        np.where(text_fits, num_read, 0),
        count_scored_characters([option for item in items for option in item.options]),
    )
    flags = [*item_flags([encodings], counts), ("too-long", item_too_long)]
    return Predictions.build(items, np.zeros(len(items), np.int32), options, flags)


def count_scored_characters(options: Sequence[Option]) -> Ints:
    """Return the number of characters (n,) of each option's span; without a span of its text."""
    return np.array([len(o.text[slice(*(o.span or (0, None)))]) for o in options], np.int32)


def _request_probes(
    requests: Sequence[NextTokenRequest], method: Method, mask_id: int | None
) -> Iterator[Probes]:
    """Yield the rows of each length: the context, followed for a masked method by the masks and the
    specials that end a text.
    """
    attention, _ = single_part(method)
    shift = method.mask_shift

    def build_row(request: NextTokenRequest) -> NDArray[Any]:
        if shift is None:
            return request.prefix
        return np.concatenate([request.prefix, [mask_id] * NUM_MASKS, request.suffix])

    rows = sorted(((build_row(r), r) for r in requests), key=lambda pair: len(pair[0]))
    for _, group in groupby(rows, key=lambda pair: len(pair[0])):
        ids, same_length = zip(*group, strict=True)
        offset = 1 if shift is None else shift
        columns = (
            np.arange(len(same_length)),
            [len(request.prefix) - offset for request in same_length],
            [request.target for request in same_length],
            [request.text for request in same_length],
        )
        row, position, target, text = (np.array(array, np.int32) for array in columns)
        yield Probes(np.stack(ids).astype(np.int32), attention, row, position, target, text)
