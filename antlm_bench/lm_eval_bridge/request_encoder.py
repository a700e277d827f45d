"""Encode requests of lm-eval: with the BOS of lm-eval, and cut on the left on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.greedy import GreedyTracker
from antlm_bench.scoring.text import TextEncoder, build_specials, check_specials
from antlm_bench.types import Attention, Bools, EncodedBatch, Encodings, Ints


class RequestEncoder(GreedyTracker):
    """A GreedyTracker that encodes texts as lm-eval would.

    bos: "lm-eval" = before an empty context BOS or EOS, before any other what the tokenizer adds by
    itself (HFLM's rule for causal models, lm_eval 0.4.13, `TemplateLM.loglikelihood`); else the
    checkpoint's own policy, for all texts. truncate: whether texts that are too long lose their
    beginning.
    """

    num_truncated: int
    """How many texts were truncated so far."""

    def __init__(self, checkpoint: Checkpoint, bos: str, truncate: bool) -> None:
        super().__init__(checkpoint)
        self.truncate = truncate
        # Without length limits: long texts are detected, and perhaps cut, in `encode`.
        self.no_context_encoders = {
            attention: _without_length_limit(encoder, encoder.specials)
            for attention, encoder in checkpoint.encoders.items()
        }
        self.context_encoders = dict(self.no_context_encoders)
        if bos == "lm-eval" and (causal := self.no_context_encoders.get("causal")):
            around = build_specials(causal.tokenizer, "causal", "tokenizer")
            check_specials(causal.tokenizer, around, causal.vocab_size)
            self.context_encoders["causal"] = _without_length_limit(causal, around)
        self.num_truncated = 0

    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Encodings:
        unk, too_long = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
        flags: dict[str, Bools] = {}
        batches: list[EncodedBatch] = []
        for encoder, indices in self._group_by_context(spans, attention):
            encodings = encoder.encode([texts[i] for i in indices], [spans[i] for i in indices])
            unk[indices] = encodings.unk
            for name, raised in encodings.flags.items():
                flags.setdefault(name, np.zeros(len(texts), np.bool_))[indices] = raised
            for batch in encodings.batches:
                batch = replace(batch, text_index=indices[batch.text_index])
                fitting = self._fit_to_model(batch, attention, len(encoder.specials.before))
                if fitting is None:
                    too_long[batch.text_index] = True
                else:
                    batches.append(fitting)
        return Encodings(tuple(batches), unk, too_long, flags)

    def _group_by_context(
        self, spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Iterator[tuple[TextEncoder, Ints]]:
        """Yield (encoder, indices) of the texts without a context, and of those with one."""
        no_context = np.array([span is None for span in spans], np.bool_)
        for encoder, selected in (
            (self.no_context_encoders[attention], no_context),
            (self.context_encoders[attention], ~no_context),
        ):
            if selected.any():
                yield encoder, np.flatnonzero(selected).astype(np.int32)

    def _fit_to_model(
        self, encoded: EncodedBatch, attention: Attention, num_prefix_tokens: int
    ) -> EncodedBatch | None:
        """Return rows that fit the model; None where they do not and must not be cut.

        The last token of a causal row is only ever a target, so that a row may be one longer than
        the model. Rows are cut as in lm-eval (`HFLM._loglikelihood_tokens`): on the left, including
        the BOS of a causal row; a masked row keeps it. Raises DataError where that would cut scored
        tokens, or leave nothing before them.
        """
        length = encoded.ids.shape[1]
        limit = length if self.max_length is None else self.max_length + (attention == "causal")
        if length <= limit:
            return encoded
        if not self.truncate:
            return None
        keep = 0 if attention == "causal" else num_prefix_tokens
        first_kept = keep + length - limit
        if encoded.score_mask[:, : max(first_kept, length - limit + 1)].any():
            raise DataError(
                f"a continuation alone is longer than the {self.max_length} tokens of {self.name}",
                location="--model_args truncate=left",
                hint="leave this task out, or take a model with a longer context",
            )
        self.num_truncated += len(encoded.ids)
        columns = np.r_[:keep, first_kept:length]
        last = None if encoded.last_word_ids is None else encoded.last_word_ids[:, columns]
        return EncodedBatch(
            encoded.ids[:, columns],
            encoded.score_mask[:, columns],
            encoded.word_ids[:, columns],
            encoded.text_index,
            last,
        )


def _without_length_limit(encoder: TextEncoder, special_tokens: Any) -> TextEncoder:
    size = encoder.vocab_size
    return TextEncoder(encoder.tokenizer, special_tokens, max_length=None, vocab_size=size)
