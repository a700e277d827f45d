"""Was each scored token the model's first choice? Answered beside its score, by the same forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.scoring.engine import Engine
from antlm_bench.types import Attention, Encodings, Floats, Ints, Probes

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


class Choosing:
    """A LanguageModel (see types) around an opened checkpoint, its texts as the checkpoint has them.

    `missed` (n,): after `read`, per text how many scored tokens were not the model's first choice.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        own = checkpoint.engine
        self.checkpoint = replace(checkpoint, engine=FirstChoices(own.model, own.name, own.geometry, own.budget))
        self.name, self.attends, self.eos = checkpoint.name, checkpoint.attends, checkpoint.eos
        self.mask_id, self.no_mask = checkpoint.mask_id, checkpoint.no_mask
        self.max_length = checkpoint.max_length
        self.missed: Floats = np.zeros(0)

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention) -> Encodings:
        return self.checkpoint.encode(texts, spans, attention)

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
