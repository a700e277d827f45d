"""The shipped scoring methods. Pure numpy.

Zero-shot methods differ in three decisions: which tokens are masked, at which position each
log-probability is read, and whether attention is causal or full. A probe function maps an
EncodedBatch (n, t) to Probes: rows of token ids and the log-probabilities to read from them. In an
encoder-decoder, these rows are what the decoder reads, and each has a source for the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import MethodNotSupported
from antlm_bench.scoring.methods import Method
from antlm_bench.types import Attention, Bools, EncodedBatch, Ints, Probes

MaskRule = Callable[[Ints, Ints], Bools]
"""(row indices (r, t), positions (r,)) -> which other tokens to mask (r, t)."""


def causal(encoded: EncodedBatch, mask_id: int | None = None) -> Probes:
    """Read log P(w_i | w_<i) at position i - 1.

    The first token of a row is never scored, because nothing precedes it. The model never needs to
    see the last token, so rows end before it, as in lm-eval. Texts that differ only in their last
    token then share a row.
    """
    del mask_id
    row, position = np.nonzero(encoded.score_mask[:, 1:])
    target = encoded.ids[row, position + 1]
    return _make_probes(
        encoded.ids[:, :-1], "causal", row, position, target, encoded.text_index[row]
    )


def mlm(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read the pseudo-log-likelihood: mask each scored token in turn (Salazar et al. 2020, arXiv
    1910.14659, eq. 2).
    """
    return _masked_probes(encoded, mask_id, _mask_no_others, shift=0)


def mlm_l2r(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read as `mlm`, but also mask the tokens to the right in the same word (Kauf & Ivanova 2023,
    arXiv 2305.10588).

    A token that spans several words masks the rest of its last word, and is masked with the rest of
    its first word. Raises MethodNotSupported if the tokenizer does not know words.
    """
    first_word = encoded.word_ids
    last_word = first_word if encoded.last_word_ids is None else encoded.last_word_ids

    def rest_of_word(rows: Ints, position: Ints) -> Bools:
        if (first_word[encoded.score_mask] < 0).any():
            raise MethodNotSupported(
                "this tokenizer does not know which word a token belongs to",
                location="--method mlm-l2r",
                hint="use --method mlm, or save the checkpoint with a fast tokenizer "
                "(tokenizer.json)",
            )
        word = first_word[rows[:, 0]]
        end_word = last_word[rows[:, 0]][np.arange(len(position)), position][:, None]
        is_later: Bools = np.arange(word.shape[1]) >= position[:, None]
        # Words are numbered from left to right; special tokens have the number -1.
        in_word: Bools = (word <= end_word) & (word >= 0)
        return in_word & is_later

    return _masked_probes(encoded, mask_id, rest_of_word, shift=0)


def mntp(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read masked next-token predictions: mask token i, read at i - 1 (Charpentier & Samuel 2024,
    arXiv 2410.24159).
    """
    return _masked_probes(encoded, mask_id, _mask_no_others, shift=1)


def seq2seq(encoded: EncodedBatch, mask_id: int | None = None) -> Probes:
    """Read log P(w_i | source, w_<i) in the decoder, at position i - 1.

    The decoder's row begins with its start token, so that every token of a text is scored.
    """
    probes = causal(encoded, mask_id)
    return replace(probes, attention="cross", source_ids=encoded.source_ids)


def infill(encoded: EncodedBatch, mask_id: int) -> Probes:
    """Read a denoiser's pseudo-log-likelihood: mask each scored token in turn in the encoder, and
    read it where the decoder restores it.

    T5 (Raffel et al. 2020, JMLR 21(140), section 3.1.4) answers with the sentinel and what it
    stands for: P(w_i | text with a sentinel at i; decoder: start, sentinel). BART (Lewis et al.
    2020, arXiv 1910.13461, section 2.2) writes the whole text again: P(w_i | text with a mask at i;
    decoder: start, specials, w_<i). `encoded.restoration` says which.
    """
    assert encoded.restoration is not None  # encodings for "denoising" have one
    text, position = np.nonzero(encoded.score_mask)
    source_ids = encoded.ids[text]
    row = np.arange(len(text))
    target = source_ids[row, position]
    source_ids[row, position] = mask_id
    prefix = np.array(encoded.restoration.prefix, np.int32)
    decoder_ids = np.broadcast_to(prefix, (len(text), len(prefix)))
    read_at = np.full(len(text), len(prefix) - 1)
    if encoded.restoration.repeats_text:
        # A decoder sees nothing of what follows the position that is read.
        first = encoded.restoration.text_start
        decoder_ids = np.concatenate([decoder_ids, encoded.ids[text][:, first:]], axis=1)
        read_at = read_at + position - first
    probes = _make_probes(decoder_ids, "cross", row, read_at, target, encoded.text_index[text])
    return replace(probes, source_ids=source_ids)


def find_wrong_probes(probes: object, encoded: EncodedBatch, _: int | None) -> str:
    """Return what is wrong with the result of a probe function, "" = nothing."""
    if not isinstance(probes, Probes):
        return f"a {type(probes).__name__}, not Probes"
    arrays = {"ids": probes.ids} | {
        name: getattr(probes, name) for name in ("row", "position", "target", "text_index")
    }
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.integer):
            return f"Probes whose {name} is no array of integers"
    if probes.ids.ndim != 2 or any(
        array.shape != (len(probes.row),) for name, array in arrays.items() if name != "ids"
    ):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        return f"Probes of shapes {shapes}; they should be (r, t) and four times (k,)"
    num_rows, num_positions = probes.ids.shape
    for name, limit in (("row", num_rows), ("position", num_positions)):
        wrong = arrays[name][(arrays[name] < 0) | (arrays[name] >= limit)]
        if len(wrong):
            return f"Probes with a {name} of {wrong[0]}; ids has the shape {probes.ids.shape}"
    texts = np.setdiff1d(probes.text_index, encoded.text_index)
    if len(texts):
        return f"Probes with a text_index of {texts[0]}, which is no text of the batch"
    return ""


def _mask_no_others(rows: Ints, position: Ints) -> Bools:
    del position
    return np.zeros(rows.shape, np.bool_)


def _masked_probes(encoded: EncodedBatch, mask_id: int, mask_rule: MaskRule, shift: int) -> Probes:
    """Make one row per scored token i >= shift, in which token i and the tokens of `mask_rule` are
    masked; read at i - shift.
    """
    text, position = np.nonzero(encoded.score_mask[:, shift:])
    position = position + shift
    ids = encoded.ids[text]
    row = np.arange(len(text))
    target = ids[row, position]
    also_masked = mask_rule(
        np.broadcast_to(text[:, None], ids.shape).astype(np.int32), position.astype(np.int32)
    )
    ids[also_masked] = mask_id
    ids[row, position] = mask_id
    return _make_probes(ids, "full", row, position - shift, target, encoded.text_index[text])


def _make_probes(ids: Ints, attention: Attention, *columns: NDArray[Any]) -> Probes:
    row, position, target, text_index = (np.asarray(array, np.int32) for array in columns)
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
    description="pseudo-log-likelihood, one token masked at a time",
    parts=(("full", mlm),),
    needs_mask=True,
    mask_shift=0,
    objective="mlm",
    peer_names={"minicons": "original"},
)
MLM_L2R = Method(
    name="mlm-l2r",
    description="mlm with the rest of the word masked too",
    parts=(("full", mlm_l2r),),
    needs_mask=True,
    needs_words=True,
    objective="mlm",
    peer_names={"minicons": "within_word_l2r"},
)
MNTP = Method(
    name="mntp",
    description="one token masked, read one position to its left",
    parts=(("full", mntp),),
    needs_mask=True,
    mask_shift=1,
    objective="mntp",
)
SEQ2SEQ = Method(
    name="seq2seq",
    description="log-probability by the decoder, after a source",
    parts=(("cross", seq2seq),),
    hub_task="text2text-generation",
    peer_names={"lm-eval": ""},
)
INFILL = Method(
    name="infill",
    description="pseudo-log-likelihood of a denoiser, one token masked at a time",
    parts=(("denoising", infill),),
    needs_mask=True,
)
# The product of a causal and a masked prediction, for models trained with both (GPT-BERT).
FUSED = Method(
    name="fused",
    description="causal plus mntp",
    parts=(("causal", causal), ("full", mntp)),
    needs_mask=True,
    objective="mntp",
)
