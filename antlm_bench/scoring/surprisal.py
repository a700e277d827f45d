"""Words in texts as questions to a LanguageModel: how surprising is this stretch of text, this word
after this context?

Two ways to ask, with one answer each. `stretches`: parts of whole texts under any method of
scoring.probes. `predict`: words after nothing but their left context, as studies of reading ask,
which for masked models means MASKS masks after the context, read at the first of them (BabyLM 2025,
reading/evaluation_functions.py).

Beginning-of-word correction (Pimentel & Meister 2024, arXiv 2406.14561; Oh & Schuler 2024, arXiv
2406.10851): where tokens carry the space before them, that a word ends is only said by the token
after it. A word's probability is then
    P(its tokens) * P(a word begins or the text ends | text up to its end) / P(the same | text up to its beginning),
without the denominator for the first word of a text, which always begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.scoring.methods import METHODS, Method
from antlm_bench.types import (
    WORD_START_TARGET,
    Attention,
    Bools,
    EncodedBatch,
    Encodings,
    Floats,
    Ints,
    Item,
    LanguageModel,
    Option,
    Prediction,
    Probes,
    ProgressCallback,
)

# masks that stand for the unknown rest of the text (BabyLM 2025's
# --number_of_mask_tokens_to_append)
NUM_MASKS = 3
TokenDecoder = Callable[[int], str]  # a token id as text


@dataclass(frozen=True, slots=True)
class SpanScores:
    """What a model says of n stretches of text.

    logp (n,): natural log-probability, NaN where a token of it cannot be scored. tokens (n,): how
    many it has. encodings: the facts of its text (too_long, unk, flags).
    """

    logp: Floats
    token_counts: NDArray[np.int64]
    encodings: Encodings

    @property
    def too_long(self) -> Bools:
        """(n,): its text does not fit into the model."""
        return self.encodings.too_long


def single_part(method: Method) -> tuple[Attention, Callable[..., Probes]]:
    """The one reading that a method makes. MethodNotSupported for `fused`, a product of two
    predictions.
    """
    if len(method.parts) != 1:
        hint = "ask for one of its parts: --method causal, --method mntp"
        raise MethodNotSupported(
            "a product of two predictions is no probability of a word",
            location="--method",
            hint=hint,
        )
    return method.parts[0]


def span_logprobs(
    model: LanguageModel,
    options: Sequence[Option],
    method: Method,
    tick: ProgressCallback | None = None,
    bow_correction: bool = False,
) -> SpanScores:
    """How probable each span of its text is. A stretch of no characters has no tokens, and
    log-probability 0.

    correct: with the beginning-of-word correction (causal alone; the engine must know the
    beginnings).
    """
    attention, probe = single_part(method)
    n = len(options)
    encodings = model.encode(
        [a.text for a in options], [a.span or (0, len(a.text)) for a in options], attention
    )
    tokens, reads = np.zeros(n, np.int64), np.zeros(n, np.int64)
    read: list[Probes] = []
    for encoded in encodings.batches:
        tokens[encoded.text_index] = encoded.score_mask.sum(1)
        plain = probe(encoded, model.mask_id)
        reads += np.bincount(plain.text_index, minlength=n)
        read += [
            plain,
            *(
                _word_boundary_probes(encoded, [bool(a.span and a.span[0]) for a in options])
                if bow_correction
                else ()
            ),
        ]
    read = [p for p in read if len(p.row)]
    sums = model.score_probes(read, 3 * n, tick) if read else np.zeros(3 * n)
    logp = sums[:n] + sums[n : 2 * n] - sums[2 * n :]
    empty = np.array([a.span is not None and a.span[0] == a.span[1] for a in options], bool)
    logp[((reads < tokens) | (tokens == 0)) & ~empty | encodings.too_long] = np.nan
    return SpanScores(logp, tokens, method.with_relevant_flags(encodings))


def _word_boundary_probes(
    encoded: EncodedBatch, has_left_context: Sequence[bool]
) -> Iterator[Probes]:
    """That a word begins after each of n stretches (texts n..2n), and that it begins where the
    stretch does (texts 2n..3n) if it lies `inside` its text.
    """
    n = len(has_left_context)
    some = np.flatnonzero(encoded.score_mask.any(1))
    first = encoded.score_mask[some].argmax(1)
    last = encoded.score_mask.shape[1] - 1 - encoded.score_mask[some, ::-1].argmax(1)
    later = np.array([has_left_context[text] for text in encoded.text_index[some]], bool) & (
        first > 0
    )
    for rows, at, shift in ((some, last, n), (some[later], first[later] - 1, 2 * n)):
        starts = np.full(len(rows), WORD_START_TARGET, np.int32)
        row, place = rows.astype(np.int32), at.astype(np.int32)
        yield Probes(
            encoded.ids, "causal", row, place, starts, encoded.text_index[rows] + np.int32(shift)
        )


class NextTokenRequest(NamedTuple):
    """A token after a row of ids: which, and of which text; `after` are the specials that end a
    masked row.
    """

    prefix: Ints
    suffix: Ints
    target: int
    text: int


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None = None,
    decode_token: TokenDecoder | None = None,
) -> list[list[Prediction]]:
    """Log-probability of each option's span after the text before it; one list of Predictions per
    method.

    An item's options are questions of their own, not alternatives: `pred` is 0 and says nothing.
    Without `glued`, text and span are tokenised as one. With it (a function from token id to text)
    as BabyLM 2025 does: the span is tokenised alone, so that its first token follows the context
    without the space that byte-level tokenizers want; every further token is spelled out, tokenised
    again, its first token wanted after context and tokens so far.

    Raises MethodNotSupported for methods that read more than the left context, DataError for a span
    without tokens.
    """
    made = []
    for method in methods:
        attention, _ = single_part(method)
        if not method.is_left_to_right and method.mask_shift is None:
            readable = [m.name for m in METHODS if m.is_left_to_right or m.mask_shift is not None]
            raise MethodNotSupported(
                f"{method.name} cannot read a word after its left context",
                location="--method",
                hint=f"--method {', '.join(readable[:-1])} or {readable[-1]}",
            )
        options = [option for item in items for option in item.options]
        asked, facts = (
            _tokenize_separately(model, options, attention, decode_token)
            if decode_token
            else _tokenize_whole(model, options, attention)
        )
        made.append(
            _build_predictions(
                model,
                items,
                asked,
                method.with_relevant_flags(facts),
                (attention, method.mask_shift),
                tick,
            )
        )
    return made


def _tokenize_whole(
    model: LanguageModel, options: Sequence[Option], attention: Attention
) -> tuple[list[NextTokenRequest], Encodings]:
    """The tokens of every span, in order, and the facts of the texts."""
    encodings, asked = (
        model.encode([o.text for o in options], [o.span for o in options], attention),
        [],
    )
    for encoded in encodings.batches:
        end = encoded.score_mask.shape[1] - encoded.score_mask[:, ::-1].argmax(
            1
        )  # after the last token of the text
        for row, at in zip(*np.nonzero(encoded.score_mask), strict=True):
            ids = encoded.ids[row]
            asked.append(
                NextTokenRequest(
                    ids[:at], ids[end[row] :], int(ids[at]), int(encoded.text_index[row])
                )
            )
    return asked, encodings


def _tokenize_separately(
    model: LanguageModel,
    options: Sequence[Option],
    attention: Attention,
    decode_token: TokenDecoder,
) -> tuple[list[NextTokenRequest], Encodings]:
    """As `_whole`, span and context tokenised apart."""
    words = [option.text[slice(*(option.span or (0, None)))] for option in options]
    contexts: list[str] = []
    spelled: list[str] = []
    texts: list[int] = []
    for text, (option, pieces) in enumerate(
        zip(options, _text_token_ids(model, words, attention), strict=True)
    ):
        said = option.text[: option.span[0]] if option.span else ""
        for number, piece in enumerate(pieces):
            contexts.append(said)
            spelled.append(words[text] if number == 0 else decode_token(piece))
            texts.append(text)
            said += decode_token(piece)
    targets = [pieces[:1] for pieces in _text_token_ids(model, spelled, attention)]
    encodings, asked = model.encode(contexts, [None] * len(contexts), attention), []
    for encoded in encodings.batches:
        end = encoded.score_mask.shape[1] - encoded.score_mask[:, ::-1].argmax(1)
        for row, number in enumerate(encoded.text_index):
            if not targets[number]:
                raise DataError(
                    f"the tokenizer does not read {spelled[number]!r}, a piece of {words[texts[number]]!r}, by itself",
                    hint="a suite whose words are attached by their space has no such step: --suite reading",
                )
            ids = encoded.ids[row]
            asked.append(
                NextTokenRequest(
                    ids[: end[row]], ids[end[row] :], targets[number][0], texts[number]
                )
            )
    long = np.zeros(len(options), np.bool_)
    long[[texts[n] for n in np.flatnonzero(encodings.too_long)]] = True
    whole = model.encode([option.text for option in options], [None] * len(options), attention)
    return asked, replace(whole, too_long=long)


def _text_token_ids(
    model: LanguageModel, texts: Sequence[str], attention: Attention
) -> list[list[int]]:
    """The tokens of each text without specials."""
    found: list[list[int]] = [[] for _ in texts]
    for encoded in model.encode(texts, [None] * len(texts), attention).batches:
        for row, text in enumerate(encoded.text_index):
            found[text] = [int(i) for i in encoded.ids[row][encoded.score_mask[row]]]
    return found


def _build_predictions(
    model: LanguageModel,
    items: Sequence[Item],
    requests: list[NextTokenRequest],
    encodings: Encodings,
    attention_and_shift: tuple[Attention, int | None],
    tick: ProgressCallback | None,
) -> list[Prediction]:
    attention, shift = attention_and_shift
    long = encodings.too_long.copy()
    added = 0 if shift is None else NUM_MASKS
    for one in requests:
        if (
            model.max_length is not None
            and len(one.prefix) + added + len(one.suffix) > model.max_length
        ):
            long[one.text] = True
    readable = [one for one in requests if not long[one.text] and (len(one.prefix) or shift == 0)]
    read = list(_request_probes(readable, attention, shift, model.mask_id))
    scores = model.score_probes(read, len(long), tick) if read else np.zeros(len(long))
    want, have = (
        np.bincount([one.text for one in some], minlength=len(long))
        for some in (requests, readable)
    )
    made, top = [], 0
    for item in items:
        here = range(top, top + len(item.options))
        top = here.stop
        fits = not any(long[i] for i in here)
        if fits and any(have[i] < max(want[i], 1) for i in here):
            hint = "it is empty for this tokenizer, or nothing stands before its first token (see --bos)"
            raise DataError("a word cannot be scored", location=f"item {item.id}", hint=hint)
        made.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=0,
                scores=tuple(float(scores[i]) if fits else -1.0 for i in here),
                tokens=tuple(int(have[i]) if fits else 0 for i in here),
                characters=tuple(len(o.text[slice(*(o.span or (0, None)))]) for o in item.options),
                labels=item.labels,
                flags=(*encodings.collect_flags(here), *(() if fits else ("too-long",))),
            )
        )
    return made


def _request_probes(
    requests: list[NextTokenRequest], attention: Attention, shift: int | None, mask_id: int | None
) -> Iterator[Probes]:
    """The rows of each length as Probes: context alone, or context, masks and what ends a text."""

    def shown(one: NextTokenRequest) -> Any:
        return (
            one.prefix
            if shift is None
            else np.concatenate([one.prefix, [mask_id] * NUM_MASKS, one.suffix])
        )

    rows = sorted(((shown(one), one) for one in requests), key=lambda pair: len(pair[0]))
    for _, group in groupby(rows, key=lambda pair: len(pair[0])):
        ids, ones = zip(*group, strict=True)
        at = [len(one.prefix) - (1 if shift is None else shift) for one in ones]
        reads = (np.arange(len(ones)), at, [one.target for one in ones], [one.text for one in ones])
        row, place, target, text = (np.array(array, np.int32) for array in reads)
        yield Probes(np.stack(ids).astype(np.int32), attention, row, place, target, text)
