"""The shipped scoring methods: what a model is shown, and where its answer is read. Pure numpy.

Zero-shot methods differ in three decisions only: which tokens are hidden, at which position a
log-probability is read, and which way the model attends. A probe function maps an EncodedBatch
(n, t) to Probes; the score of a text is the sum over its reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import MethodNotSupported
from antlm_bench.scoring.methods import Method
from antlm_bench.types import Attention, Bools, EncodedBatch, Ints, Probes

HiddenTokens = Callable[[Ints, Ints], Bools]


def causal(encoded: EncodedBatch, mask_id: int | None = None) -> Probes:
    """Read log P(w_i | w_<i) at i-1.

    The first token of a row is never scored, because nothing precedes it. The last token is only
    ever a target, so rows end before it (as in lm-eval): sentences that differ in their last token
    share every row.
    """
    del mask_id
    row, position = np.nonzero(encoded.score_mask[:, 1:])
    target = encoded.ids[row, position + 1]
    return _make_probes(
        encoded.ids[:, :-1], "causal", row, position, target, encoded.text_index[row]
    )


def mlm(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read the pseudo-log-likelihood: each scored token is hidden once, by itself (Salazar et al.
    2020, arXiv 1910.14659, eq. 2).
    """
    return _masked_probes(encoded, mask_id, _hide_nothing, shift=0)


def mlm_l2r(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read as `mlm`, with the rest of the token's word to its right hidden too (Kauf & Ivanova
    2023, arXiv 2305.10588).

    The rest of a token that spans words is the rest of its last word; it is itself in the rest of
    its first word. Raises MethodNotSupported where the tokenizer tells no words.
    """
    first_word = encoded.word_ids
    last_word = first_word if encoded.last_word_ids is None else encoded.last_word_ids

    def rest_of_word(rows: Ints, position: Ints) -> Bools:
        if (first_word[encoded.score_mask] < 0).any():
            raise MethodNotSupported(
                "this tokenizer does not tell words from tokens",
                location="--method mlm-l2r",
                hint="use --method mlm, or save the checkpoint with a fast tokenizer "
                "(tokenizer.json)",
            )
        word = first_word[rows[:, 0]]
        end = last_word[rows[:, 0]][np.arange(len(position)), position][:, None]
        later: Bools = np.arange(word.shape[1]) >= position[:, None]
        same: Bools = (word <= end) & (word >= 0)  # words are numbered from left to right
        return same & later

    return _masked_probes(encoded, mask_id, rest_of_word, shift=0)


def mntp(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read masked next-token predictions: hidden at i, read at i-1 (Charpentier & Samuel 2024,
    arXiv 2410.24159).
    """
    return _masked_probes(encoded, mask_id, _hide_nothing, shift=1)


def _hide_nothing(rows: Ints, position: Ints) -> Bools:
    del position
    return np.zeros(rows.shape, np.bool_)


def _masked_probes(
    encoded: EncodedBatch, mask_id: int, also_hidden: HiddenTokens, shift: int
) -> Probes:
    """Make one row per scored token i >= shift, read at i - shift.

    Token i and the tokens of `also_hidden` are replaced by the mask. `also_hidden` takes the row
    indices (r, t) and the positions i (r,), and returns (r, t).
    """
    row, position = np.nonzero(encoded.score_mask[:, shift:])
    position = position + shift
    ids = encoded.ids[row]
    order = np.arange(len(row))
    target = ids[order, position]
    hidden = also_hidden(
        np.broadcast_to(row[:, None], ids.shape).astype(np.int32), position.astype(np.int32)
    )
    ids[hidden] = mask_id
    ids[order, position] = mask_id
    return _make_probes(ids, "full", order, position - shift, target, encoded.text_index[row])


def _make_probes(ids: Ints, attention: Attention, *reads: NDArray[Any]) -> Probes:
    row, position, target, text_index = (np.asarray(array, np.int32) for array in reads)
    return Probes(ids, attention, row, position, target, text_index)


CAUSAL = Method(
    name="causal",
    description="left-to-right log-probability",
    parts=(("causal", causal),),
    hub_task="text-generation",
    peer_names={"minicons": "", "lm-eval": ""},
)
MLM = Method(
    name="mlm",
    description="pseudo-log-likelihood, one token hidden at a time",
    parts=(("full", mlm),),
    needs_mask=True,
    mask_shift=0,
    objective="mlm",
    peer_names={"minicons": "original"},
)
MLM_L2R = Method(
    name="mlm-l2r",
    description="mlm with the rest of the word hidden too",
    parts=(("full", mlm_l2r),),
    needs_mask=True,
    needs_words=True,
    objective="mlm",
    peer_names={"minicons": "within_word_l2r"},
)
MNTP = Method(
    name="mntp",
    description="one token hidden, read one position to its left",
    parts=(("full", mntp),),
    needs_mask=True,
    mask_shift=1,
    objective="mntp",
)
# Both heads of a hybrid (GPT-BERT): the sum of two log-probabilities is the log of their product.
FUSED = Method(
    name="fused",
    description="causal plus mntp",
    parts=(("causal", causal), ("full", mntp)),
    needs_mask=True,
    objective="mntp",
)
