"""Predict the next token of a text, or compare sets of words in a blank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from antlm_bench.errors import DataError, MethodNotSupported, UsageError
from antlm_bench.scoring.methods import METHODS, Method
from antlm_bench.scoring.surprisal import single_part, span_logprobs
from antlm_bench.scoring.token_scores import NUM_FACTS, TokenModel
from antlm_bench.types import Attention, Floats, Ints, LanguageModel, Option, Probes


class TopTokens(NamedTuple):
    """The k most probable tokens after each of n prefixes, the most probable first."""

    ids: Ints
    """(n, k) token ids."""
    logprobs: Floats
    """(n, k) log-probabilities in nats."""


def predict_next_tokens(
    model: TokenModel, prefixes: Sequence[str], method: Method, top_k: int
) -> TopTokens:
    """Return the most probable tokens after each prefix.

    A causal method reads the distribution after the prefix. A masked method appends a mask and the
    special tokens that end a text, and reads the prediction of the mask.

    Raises MethodNotSupported for other methods, UsageError if the vocabulary has fewer than `top_k`
    tokens, DataError for a prefix that does not fit into the model, and for an empty one without
    BOS.
    """
    attention, _ = single_part(method)
    if not method.predicts_next_token:
        names = [m.name for m in METHODS if m.predicts_next_token]
        raise MethodNotSupported(
            f"{method.name} cannot predict a token after a prefix",
            location="method",
            hint=f"one of {', '.join(names)}",
        )
    vocab_size = model.encoders[attention].vocab_size
    if not 1 <= top_k <= vocab_size:
        hint = f"a number from 1 to {vocab_size}, the tokens of the model"
        raise UsageError(f"{top_k} is out of range", location="k", hint=hint)
    rows = _build_rows(model, prefixes, attention, method)
    probes = []
    for length in sorted({len(row) for row, _ in rows}):
        indices = [index for index, (row, _) in enumerate(rows) if len(row) == length]
        ids = np.array([rows[index][0] for index in indices], np.int32)
        positions = np.array([rows[index][1] for index in indices], np.int32)
        row_indices = np.arange(len(indices), dtype=np.int32)
        target = np.zeros(len(indices), np.int32)  # the distribution is read, whatever the target
        text_index = np.array(indices, np.int32)
        probes.append(Probes(ids, attention, row_indices, positions, target, text_index))
    values = np.zeros((0, NUM_FACTS + 2 * top_k))
    if rows:
        values = model.read_distributions(probes, len(rows), top_k, None)
    top = values[:, NUM_FACTS : NUM_FACTS + top_k]
    logprobs = values[:, NUM_FACTS + top_k : NUM_FACTS + 2 * top_k]
    return TopTokens(top.astype(np.int32), logprobs)


def _build_rows(
    model: TokenModel, prefixes: Sequence[str], attention: Attention, method: Method
) -> list[tuple[list[int], int]]:
    """Return (token ids, position to read) of each prefix."""
    encoder = model.encoders[attention]
    before, after = encoder.specials.before, encoder.specials.after
    is_causal = method.is_left_to_right
    ending = [] if is_causal else [model.mask_id or 0, *after]
    shift = 1 if is_causal else method.mask_shift or 0
    rows = []
    for index, ids in enumerate(encoder.tokenize(prefixes).ids):
        row = [*before, *ids, *ending]
        position = len(before) + len(ids) - shift
        location = f"prefixes[{index}]"
        if position < 0:
            hint = 'give a text, or bos="always"'
            raise DataError("nothing stands before the next token", location=location, hint=hint)
        if model.max_length is not None and len(row) > model.max_length:
            raise DataError(
                f"the prefix has {len(row)} tokens, the model reads {model.max_length}",
                location=location,
                hint="leave out its beginning",
            )
        rows.append((row, position))
    return rows


def word_set_logprobs(
    model: LanguageModel, templates: Sequence[str], words: Sequence[str], blank: str, method: Method
) -> Floats:
    """Return the log-probability (n,), in nats, that one of the words fills the blank of each
    template: the log of the sum of P(word) over the words. NaN if a word cannot be scored.

    P(word) is the product over the word's tokens, the white space before it included. A causal
    method reads only the text before the blank. A masked method masks each token in turn and reads
    the rest of the text; under `mlm` it also sees the word's other tokens, so that words of several
    tokens look too probable, under `mlm-l2r` only those before it.
    """
    options = [
        Option(template.replace(blank, word), _word_span(template, word, blank))
        for template in templates
        for word in words
    ]
    logprobs = span_logprobs(model, options, method).logp.reshape(len(templates), len(words))
    masses: Floats = np.logaddexp.reduce(logprobs, axis=1)
    return masses


def _word_span(template: str, word: str, blank: str) -> tuple[int, int]:
    """Return the span of a word in the blank of a template, with the white space before it."""
    start = template.index(blank)
    return len(template[:start].rstrip()), start + len(word)


def check_word_sets(
    templates: Sequence[str], word_sets: Sequence[Sequence[str]], blank: str
) -> None:
    """Raise UsageError for a template without one blank, an empty set, or a word given twice."""
    for index, template in enumerate(templates):
        if not blank or template.count(blank) != 1:
            raise UsageError(
                f"{template!r} contains the blank {blank!r} {template.count(blank)} times, not once"
                if blank
                else "the blank is empty",
                location=f"templates[{index}]",
                hint='write it as "The cat ___ here.", or name another blank=...',
            )
    for name, words in zip(("words", "other_words"), word_sets, strict=True):
        if not words or not all(word.strip() for word in words):
            raise UsageError("a word is missing", location=name, hint="give a list of words")
        repeated = next((word for word in words if words.count(word) > 1), None)
        if repeated is not None:
            message = f"{repeated!r} is in the list twice"
            raise UsageError(message, location=name, hint="its probability would count twice")
