"""Scoring methods: which rows a model is shown and where its answer is read. Pure numpy, one short
function each.

Zero-shot methods differ in three decisions only: what is hidden, where the log-probability is read,
which way the model attends. Every function maps Encoded (n, t) to Probes; a text's score is the sum
over its reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.types import Attention, Bools, EncodedBatch, Encodings, Ints, ModelInfo, Probes


def causal(encoded: EncodedBatch, mask_id: int | None = None) -> Probes:
    """log P(w_i | w_<i), read at i-1. The first token of a row is never scored: nothing stands
    before it.

    The last token is only ever a target, so rows end before it (what lm-eval does, and what lets
    two sentences that differ in their last token share every row).
    """
    del mask_id
    row, at = np.nonzero(encoded.score_mask[:, 1:])
    return _make_probes(
        encoded.ids[:, :-1], "causal", row, at, encoded.ids[row, at + 1], encoded.text_index[row]
    )


def mlm(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Pseudo-log-likelihood: every scored token hidden once, alone (Salazar et al. 2020, arXiv
    1910.14659, eq. 2).
    """
    return _masked_probes(encoded, mask_id, _hide_nothing, shift=0)


def mlm_l2r(encoded: EncodedBatch, mask_id: int) -> Probes:
    """As mlm, but the rest of the token's word to its right is hidden too (Kauf & Ivanova 2023,
    arXiv 2305.10588).

    The rest of a token that spans words is the rest of its last word; it is itself in the rest of
    its first word.
    """
    first, last = (
        encoded.word_ids,
        encoded.word_ids if encoded.last_word_ids is None else encoded.last_word_ids,
    )

    def rest_of_word(rows: Ints, at: Ints) -> Bools:
        if (first[encoded.score_mask] < 0).any():
            raise MethodNotSupported(
                "this tokenizer does not tell words from tokens",
                location="--method mlm-l2r",
                hint="use --method mlm, or save the checkpoint with a fast tokenizer (tokenizer.json)",
            )
        word = first[rows[:, 0]]
        end = last[rows[:, 0]][np.arange(len(at)), at][:, None]
        later: Bools = np.arange(word.shape[1]) >= at[:, None]
        same: Bools = (word <= end) & (word >= 0)  # words are numbered from left to right
        return same & later

    return _masked_probes(encoded, mask_id, rest_of_word, shift=0)


def mntp(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Masked next-token prediction: hidden at i, read at i-1 (Charpentier & Samuel 2024, arXiv
    2410.24159).
    """
    return _masked_probes(encoded, mask_id, _hide_nothing, shift=1)


def _hide_nothing(rows: Ints, at: Ints) -> Bools:
    del at
    return np.zeros(rows.shape, np.bool_)


def _masked_probes(
    encoded: EncodedBatch, mask_id: int, also_hidden: Callable[[Ints, Ints], Bools], shift: int
) -> Probes:
    """One row per scored token i >= shift, with i and the tokens that `also` names replaced by the
    mask.
    """
    row, at = np.nonzero(encoded.score_mask[:, shift:])
    at = at + shift
    ids = encoded.ids[row]
    order = np.arange(len(row))
    target = ids[order, at]
    hidden = also_hidden(
        np.broadcast_to(row[:, None], ids.shape).astype(np.int32), at.astype(np.int32)
    )
    ids[hidden] = mask_id
    ids[order, at] = mask_id
    return _make_probes(ids, "full", order, at - shift, target, encoded.text_index[row])


def _make_probes(ids: Ints, attention: Attention, *reads: NDArray[Any]) -> Probes:
    row, at, target, text = (np.asarray(array, np.int32) for array in reads)
    return Probes(ids, attention, row, at, target, text)


@dataclass(frozen=True, slots=True)
class Method:
    """A named way to score: the probe functions whose reads are summed, and what the model must be
    able to do.

    words: whether it asks which word a token belongs to.
    """

    parts: tuple[tuple[Attention, Callable[..., Probes]], ...]
    needs_mask: bool
    description: str
    needs_words: bool = False

    def with_relevant_flags(self, encodings: Encodings) -> Encodings:
        """The facts of texts that matter under this method: tokens that span words, only where
        words are hidden.
        """
        flags = {
            name: raised
            for name, raised in encodings.flags.items()
            if self.needs_words or name != "spans-words"
        }
        return replace(encodings, flags=flags)

    @property
    def attends(self) -> frozenset[str]:
        return frozenset(attention for attention, _ in self.parts)


# GPT-BERT's `fused` reads both heads of one hybrid; the sum of the two log-probabilities is the log
# of their product.
METHODS: dict[str, Method] = {
    "causal": Method((("causal", causal),), False, "left-to-right log-probability"),
    "mlm": Method((("full", mlm),), True, "pseudo-log-likelihood, one token hidden at a time"),
    "mlm-l2r": Method(
        (("full", mlm_l2r),), True, "mlm with the rest of the word hidden too", needs_words=True
    ),
    "mntp": Method((("full", mntp),), True, "one token hidden, read one position to its left"),
    "fused": Method((("causal", causal), ("full", mntp)), True, "causal plus mntp"),
}


def get_method(name: str) -> Method:
    """The method of that name, whatever the model. Raises UsageError."""
    if name not in METHODS:
        raise UsageError(
            f"unknown method {name!r}", location="--method", hint=f"one of {', '.join(METHODS)}"
        )
    return METHODS[name]


def resolve_method(name: str, model: ModelInfo) -> Method:
    """The method of that name, if this model can be scored with it.

    Raises UsageError for an unknown name and MethodNotSupported (before any data is loaded) where
    the model cannot.
    """
    chosen = get_method(name)
    if chosen.needs_mask and model.mask_id is None:
        others = supported_methods(model)
        raise MethodNotSupported(
            f"{model.name} cannot be scored with {name!r}: {model.no_mask_reason}",
            location="--method",
            hint=(f"score it with --method {' or '.join(others)}, or " if others else "")
            + "save it with a tokenizer whose mask token the model has an embedding for",
        )
    lacks = sorted(chosen.attends - model.attends)
    if lacks:
        raise MethodNotSupported(
            f"{model.name} cannot be scored with {name!r}: it does not attend {' and '.join(lacks)}",
            location="--method",
            hint=f"methods that fit: {', '.join(supported_methods(model))}",
        )
    return chosen


def default_method(model: ModelInfo, methods: Sequence[str]) -> str:
    """The first of a checkpoint's methods. Raises MethodNotSupported, with the reason, where it has
    none.
    """
    if methods:
        return methods[0]
    why = model.no_mask_reason or f"it attends {' and '.join(sorted(model.attends))}"
    raise MethodNotSupported(
        f"{model.name} cannot be scored with any method: {why}",
        location="--model",
        hint="save it with a tokenizer whose mask token the model has an embedding for",
    )


def supported_methods(model: ModelInfo) -> list[str]:
    """The methods this model can be scored with, in the order of METHODS."""
    return [
        n
        for n, m in METHODS.items()
        if m.attends <= model.attends and (model.mask_id is not None or not m.needs_mask)
    ]
