"""A checkpoint that answers requests of the harness: the BOS that the harness would give, too long requests cut on the
left if that was asked for, and beside every score whether each token was the model's first choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.errors import DataError
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.text import Encoder, specials
from antlm_bench.types import Attention, Encoded, Encodings, Floats, Ints, Probes

if TYPE_CHECKING:
    from torch import Tensor

FIRST = -2  # a read of target FIRST - t: 0 where token t is the model's first choice, else -1


class FirstChoices(Engine):
    """An Engine that also answers reads of targets below WORD_START (see FIRST); such reads cost no forward."""

    def _forward(self, ids: Any, heads: Any, head: Any, target: Any, more: Any) -> Floats:
        self._best: list[Ints] = []
        asked = target <= FIRST
        token = np.where(asked, FIRST - target, target)
        logp = super()._forward(ids, heads, head, token, more)
        best = np.concatenate(self._best)  # per row of `heads`; `_head` was called on them in order
        return np.where(asked, np.where(best[head] == token, 0.0, -1.0), logp)

    def _head(self, output: Any, hidden: Tensor) -> Tensor:
        logits = super()._head(output, hidden)
        self._best.append(logits.argmax(-1).cpu().numpy())
        return logits


class Reader:
    """A LanguageModel (see types) around an opened checkpoint.

    bos: "lm-eval" = before an empty context BOS or EOS, before any other what the tokenizer adds by itself (HFLM's rule
    for causal models, lm_eval 0.4.13, `TemplateLM.loglikelihood`); else the checkpoint's own policy, for all texts.
    truncate: whether what is too long loses its beginning. `missed` (n,): after `read`, per text how many scored tokens
    were not the model's first choice. `cut`: how many texts were truncated so far.
    """

    def __init__(self, checkpoint: Checkpoint, bos: str, truncate: bool) -> None:
        own = checkpoint.engine
        engine = FirstChoices(own.model, own.name, own.geometry, own.budget)
        self.checkpoint = replace(checkpoint, engine=engine)
        self.name, self.attends, self.eos = checkpoint.name, checkpoint.attends, checkpoint.eos
        self.mask_id, self.max_length, self.truncate = checkpoint.mask_id, checkpoint.max_length, truncate
        # No limit of their own: what is too long is found, and perhaps cut, here.
        self.whole = {a: _unlimited(e, e.around) for a, e in checkpoint.encoders.items()}
        self.continued = dict(self.whole)
        if bos == "lm-eval" and (causal := self.whole.get("causal")):
            self.continued["causal"] = _unlimited(causal, specials(causal.tokenizer, "causal", "tokenizer"))
        self.missed: Floats = np.zeros(0)
        self.cut = 0

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention) -> Encodings:
        unk, too_long = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
        lengths: list[Encoded] = []
        for encoder, members in self._groups(spans, attention):
            found = encoder.encode([texts[i] for i in members], [spans[i] for i in members])
            unk[members] = found.unk
            for encoded in found.lengths:
                encoded = replace(encoded, text=members[encoded.text])
                fits = self._fit(encoded, attention, len(encoder.around.before))
                if fits is None:
                    too_long[encoded.text] = True
                else:
                    lengths.append(fits)
        return Encodings(tuple(lengths), unk, too_long)

    def read(self, probes: Iterable[Probes], texts: int, tick: Callable[[float], None] | None = None) -> Floats:
        twice = [
            replace(
                p,
                row=np.tile(p.row, 2),
                at=np.tile(p.at, 2),
                target=np.concatenate([p.target, FIRST - p.target]),
                text=np.concatenate([p.text, p.text + np.int32(texts)]),
            )
            for p in probes
        ]
        found = self.checkpoint.read(twice, 2 * texts, tick)
        self.missed = -found[texts:]
        return found[:texts]

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
        return Encoded(encoded.ids[:, columns], encoded.scored[:, columns], encoded.words[:, columns], encoded.text)


def _unlimited(encoder: Encoder, around: Any) -> Encoder:
    return Encoder(encoder.tokenizer, around, max_length=None, vocabulary=encoder.vocabulary)
