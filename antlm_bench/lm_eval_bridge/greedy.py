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

GREEDY_TARGET = (
    -2
)  # a read of target FIRST - t: 0 where token t is the model's first choice, else -1


class GreedyEngine(Engine):
    """An Engine that also answers reads of targets below WORD_START (see FIRST); such reads cost no
    forward.
    """

    def _forward_logprobs(
        self, ids: Any, read_positions: Any, read_index: Any, target: Any, extra_inputs: Any
    ) -> Floats:
        self._argmax_ids: list[Ints] = []
        asked = target <= GREEDY_TARGET
        token = np.where(asked, GREEDY_TARGET - target, target)
        logp = super()._forward_logprobs(ids, read_positions, read_index, token, extra_inputs)
        best = np.concatenate(
            self._argmax_ids
        )  # per row of `heads`; `_head` was called on them in order
        return np.where(asked, np.where(best[read_index] == token, 0.0, -1.0), logp)

    def _lm_head_logits(self, output: Any, hidden: Tensor) -> Tensor:
        logits = super()._lm_head_logits(output, hidden)
        self._argmax_ids.append(logits.argmax(-1).cpu().numpy())
        return logits


class GreedyTracker:
    """A LanguageModel (see types) around an opened checkpoint, its texts as the checkpoint has
    them.

    `missed` (n,): after `read`, per text how many scored tokens were not the model's first choice.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        own = checkpoint.engine
        self.checkpoint = replace(
            checkpoint, engine=GreedyEngine(own.model, own.name, own.forward_config, own.budget)
        )
        self.name, self.attends, self.eos = checkpoint.name, checkpoint.attends, checkpoint.eos
        self.mask_id, self.no_mask_reason = checkpoint.mask_id, checkpoint.no_mask_reason
        self.max_length = checkpoint.max_length
        self.num_non_greedy: Floats = np.zeros(0)

    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Encodings:
        return self.checkpoint.encode(texts, spans, attention)

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: Callable[[float], None] | None = None
    ) -> Floats:
        twice = [
            replace(
                p,
                row=np.tile(p.row, 2),
                position=np.tile(p.position, 2),
                target=np.concatenate([p.target, GREEDY_TARGET - p.target]),
                text_index=np.concatenate([p.text_index, p.text_index + np.int32(num_texts)]),
            )
            for p in probes
        ]
        found = self.checkpoint.score_probes(twice, 2 * num_texts, tick)
        self.num_non_greedy = -found[num_texts:]
        return found[:num_texts]
