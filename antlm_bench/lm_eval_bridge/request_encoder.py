"""Encode requests of lm-eval with the BOS rule and the truncation of lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.greedy import GreedyTrackingModel
from antlm_bench.scoring.text import (
    ContextEncoder,
    TextEncoder,
    build_specials,
    check_specials,
)
from antlm_bench.types import Attention, EncodedBatch, Encodings, Span


class RequestEncoder(GreedyTrackingModel):
    """A GreedyTrackingModel that encodes texts as lm-eval does.

    bos: "lm-eval" = HFLM's rule for causal models (lm_eval 0.4.13, `TemplateLM.loglikelihood`): BOS
    or EOS before a text without context, and before other texts the special tokens that the
    tokenizer adds by default. Else the checkpoint's BOS policy holds for all texts. truncate:
    whether texts that are too long are cut on the left.
    """

    num_truncated: int
    """Number of texts that were cut so far."""

    def __init__(self, checkpoint: Checkpoint, bos: str, truncate: bool) -> None:
        super().__init__(checkpoint)
        self.truncate = truncate
        # Without length limits, because `encode` detects long texts and may cut them.
        self.encoders = {
            attention: TextEncoder(
                encoder.tokenizer, encoder.specials, max_length=None, vocab_size=encoder.vocab_size
            )
            for attention, encoder in checkpoint.encoders.items()
        }
        if bos == "lm-eval" and "causal" in self.encoders:
            causal = self.encoders["causal"]
            specials = build_specials(causal.tokenizer, "causal", "tokenizer")
            check_specials(causal.tokenizer, specials, causal.vocab_size)
            self.encoders["causal"] = ContextEncoder(causal, specials)
        self.num_truncated = 0

    def encode(
        self,
        texts: Sequence[str],
        spans: Sequence[Span],
        attention: Attention,
        sources: Sequence[str] | None = None,
    ) -> Encodings:
        del sources  # of encoder-decoders, which lm-eval scores itself
        encoder = self.encoders[attention]
        encodings = encoder.encode(texts, spans)
        too_long = encodings.too_long.copy()
        batches: list[EncodedBatch] = []
        for batch in encodings.batches:
            fitted = self._fit_to_model(batch, attention, len(encoder.specials.before))
            if fitted is None:
                too_long[batch.text_index] = True
            else:
                batches.append(fitted)
        return replace(encodings, batches=tuple(batches), too_long=too_long)

    def _fit_to_model(
        self, encoded: EncodedBatch, attention: Attention, num_prefix_tokens: int
    ) -> EncodedBatch | None:
        """Return rows that fit the model, cut if allowed; None if they do not fit.

        The last token of a causal row is a target but no input, so a row may have one token more
        than the model's maximum. Rows are cut on the left as in lm-eval
        (`HFLM._loglikelihood_tokens`): causal rows lose their BOS, masked rows keep it. Raises
        DataError if this would cut scored tokens, or leave no token before them.
        """
        if self.max_length is None:
            return encoded
        length = encoded.ids.shape[1]
        limit = self.max_length + 1 if attention == "causal" else self.max_length
        if length <= limit:
            return encoded
        if not self.truncate:
            return None
        num_prefix_kept = 0 if attention == "causal" else num_prefix_tokens
        num_cut = length - limit
        end_of_cut = num_prefix_kept + num_cut
        if encoded.score_mask[:, : max(end_of_cut, num_cut + 1)].any():
            raise DataError(
                f"a continuation alone is longer than the {self.max_length} tokens of {self.name}",
                location="--model_args truncate=left",
                hint="leave out this task, or use a model with a longer context",
            )
        self.num_truncated += len(encoded.ids)
        columns = np.r_[:num_prefix_kept, end_of_cut:length]
        last_word_ids = encoded.last_word_ids
        return replace(
            encoded,
            ids=encoded.ids[:, columns],
            score_mask=encoded.score_mask[:, columns],
            word_ids=encoded.word_ids[:, columns],
            last_word_ids=None if last_word_ids is None else last_word_ids[:, columns],
        )
