"""A checkpoint that answers requests of the harness: the BOS that the harness would give, and too long requests cut on
the left if that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.greedy import Choosing
from antlm_bench.scoring.text import Encoder, check_specials, specials
from antlm_bench.types import Attention, Bools, Encoded, Encodings, Ints


class Reader(Choosing):
    """A checkpoint that says what its first choices were, and reads texts as the harness would.

    bos: "lm-eval" = before an empty context BOS or EOS, before any other what the tokenizer adds by itself (HFLM's rule
    for causal models, lm_eval 0.4.13, `TemplateLM.loglikelihood`); else the checkpoint's own policy, for all texts.
    truncate: whether what is too long loses its beginning. `cut`: how many texts were truncated so far.
    """

    def __init__(self, checkpoint: Checkpoint, bos: str, truncate: bool) -> None:
        super().__init__(checkpoint)
        self.truncate = truncate
        # No limit of their own: what is too long is found, and perhaps cut, here.
        self.whole = {a: _unlimited(e, e.around) for a, e in checkpoint.encoders.items()}
        self.continued = dict(self.whole)
        if bos == "lm-eval" and (causal := self.whole.get("causal")):
            around = specials(causal.tokenizer, "causal", "tokenizer")
            check_specials(causal.tokenizer, around, causal.vocabulary)
            self.continued["causal"] = _unlimited(causal, around)
        self.cut = 0

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention) -> Encodings:
        unk, too_long = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
        flags: dict[str, Bools] = {}
        lengths: list[Encoded] = []
        for encoder, members in self._groups(spans, attention):
            found = encoder.encode([texts[i] for i in members], [spans[i] for i in members])
            unk[members] = found.unk
            for name, raised in found.flags.items():
                flags.setdefault(name, np.zeros(len(texts), np.bool_))[members] = raised
            for encoded in found.lengths:
                encoded = replace(encoded, text=members[encoded.text])
                fits = self._fit(encoded, attention, len(encoder.around.before))
                if fits is None:
                    too_long[encoded.text] = True
                else:
                    lengths.append(fits)
        return Encodings(tuple(lengths), unk, too_long, flags)

    def _groups(self, spans: Sequence[tuple[int, int] | None], attention: Attention) -> Iterator[tuple[Encoder, Ints]]:
        """Texts without a context, and texts with one, by their numbers."""
        alone = np.array([span is None for span in spans], np.bool_)
        for encoder, chosen in ((self.whole[attention], alone), (self.continued[attention], ~alone)):
            if chosen.any():
                yield encoder, np.flatnonzero(chosen).astype(np.int32)

    def _fit(self, encoded: Encoded, attention: Attention, before: int) -> Encoded | None:
        """Rows that fit into the model, None if they do not and must not be cut.

        The last token of a causal row is only ever a target, so a row may be one longer than the model. Cut as the
        harness cuts (`HFLM._loglikelihood_tokens`): on the left, of a causal row even the BOS; a masked row keeps it.
        Raises DataError where that would cut what is scored, or leave nothing before it.
        """
        length = encoded.ids.shape[1]
        limit = length if self.max_length is None else self.max_length + (attention == "causal")
        if length <= limit:
            return encoded
        if not self.truncate:
            return None
        keep = 0 if attention == "causal" else before
        first_kept = keep + length - limit
        if encoded.scored[:, : max(first_kept, length - limit + 1)].any():
            raise DataError(
                f"a continuation alone is longer than the {self.max_length} tokens of {self.name}",
                place="--model_args truncate=left",
                hint="leave this task out, or take a model with a longer context",
            )
        self.cut += len(encoded.ids)
        columns = np.r_[:keep, first_kept:length]
        last = None if encoded.last_words is None else encoded.last_words[:, columns]
        return Encoded(
            encoded.ids[:, columns], encoded.scored[:, columns], encoded.words[:, columns], encoded.text, last
        )


def _unlimited(encoder: Encoder, around: Any) -> Encoder:
    return Encoder(encoder.tokenizer, around, max_length=None, vocabulary=encoder.vocabulary)
