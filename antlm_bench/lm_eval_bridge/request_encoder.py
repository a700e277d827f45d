"""A checkpoint that answers requests of the harness: the BOS that the harness would give, and too
long requests cut on the left if that was asked for.
"""

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
    """A checkpoint that says what its first choices were, and reads texts as the harness would.

    bos: "lm-eval" = before an empty context BOS or EOS, before any other what the tokenizer adds by
    itself (HFLM's rule for causal models, lm_eval 0.4.13, `TemplateLM.loglikelihood`); else the
    checkpoint's own policy, for all texts. truncate: whether what is too long loses its beginning.
    `cut`: how many texts were truncated so far.
    """

    def __init__(self, checkpoint: Checkpoint, bos: str, truncate: bool) -> None:
        super().__init__(checkpoint)
        self.truncate = truncate
        # No limit of their own: what is too long is found, and perhaps cut, here.
        self.no_context_encoders = {
            a: _without_length_limit(e, e.specials) for a, e in checkpoint.encoders.items()
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
        lengths: list[EncodedBatch] = []
        for encoder, members in self._group_by_context(spans, attention):
            found = encoder.encode([texts[i] for i in members], [spans[i] for i in members])
            unk[members] = found.unk
            for name, raised in found.flags.items():
                flags.setdefault(name, np.zeros(len(texts), np.bool_))[members] = raised
            for encoded in found.batches:
                encoded = replace(encoded, text_index=members[encoded.text_index])
                fits = self._fit_to_model(encoded, attention, len(encoder.specials.before))
                if fits is None:
                    too_long[encoded.text_index] = True
                else:
                    lengths.append(fits)
        return Encodings(tuple(lengths), unk, too_long, flags)

    def _group_by_context(
        self, spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Iterator[tuple[TextEncoder, Ints]]:
        """Texts without a context, and texts with one, by their numbers."""
        alone = np.array([span is None for span in spans], np.bool_)
        for encoder, chosen in (
            (self.no_context_encoders[attention], alone),
            (self.context_encoders[attention], ~alone),
        ):
            if chosen.any():
                yield encoder, np.flatnonzero(chosen).astype(np.int32)

    def _fit_to_model(
        self, encoded: EncodedBatch, attention: Attention, num_prefix_tokens: int
    ) -> EncodedBatch | None:
        """Rows that fit into the model, None if they do not and must not be cut.

        The last token of a causal row is only ever a target, so a row may be one longer than the
        model. Cut as the harness cuts (`HFLM._loglikelihood_tokens`): on the left, of a causal row
        even the BOS; a masked row keeps it. Raises DataError where that would cut what is scored,
        or leave nothing before it.
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
    return TextEncoder(
        encoder.tokenizer, special_tokens, max_length=None, vocab_size=encoder.vocab_size
    )
