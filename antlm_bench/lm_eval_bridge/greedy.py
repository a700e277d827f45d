"""Whether each scored token is the model's argmax, computed by the same forward as its score."""

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

# A read of target GREEDY_TARGET - t gives 0 where token t is the model's argmax, else -1.
GREEDY_TARGET = -2


class GreedyEngine(Engine):
    """An Engine that also answers reads of targets <= GREEDY_TARGET, which cost no forward."""

    def _forward_logprobs(
        self, ids: Any, read_positions: Any, read_index: Any, target: Any, extra_inputs: Any
    ) -> Floats:
        self._argmax_ids: list[Ints] = []
        is_greedy_read = target <= GREEDY_TARGET
        token = np.where(is_greedy_read, GREEDY_TARGET - target, target)
        logp = super()._forward_logprobs(ids, read_positions, read_index, token, extra_inputs)
        # One per position that the LM head saw: _lm_head_logits was called on them in order.
        argmax_ids = np.concatenate(self._argmax_ids)
        misses = np.where(argmax_ids[read_index] == token, 0.0, -1.0)
        return np.where(is_greedy_read, misses, logp)

    def _lm_head_logits(self, output: Any, hidden: Tensor) -> Tensor:
        logits = super()._lm_head_logits(output, hidden)
        self._argmax_ids.append(logits.argmax(-1).cpu().numpy())
        return logits


class GreedyTracker:
    """A LanguageModel (types) around an opened checkpoint that also counts non-greedy tokens."""

    num_non_greedy: Floats
    """(n,): per text of the last `score_probes`, how many scored tokens were not the argmax."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        engine = checkpoint.engine
        self.checkpoint = replace(
            checkpoint,
            engine=GreedyEngine(
                engine.model, engine.name, engine.forward_config, engine.batch_tokens
            ),
        )
        self.name, self.attentions, self.eos = (
            checkpoint.name,
            checkpoint.attentions,
            checkpoint.eos,
        )
        self.mask_id, self.no_mask_reason = checkpoint.mask_id, checkpoint.no_mask_reason
        self.max_length = checkpoint.max_length
        self.num_non_greedy = np.zeros(0)

    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Encodings:
        return self.checkpoint.encode(texts, spans, attention)

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: Callable[[float], None] | None = None
    ) -> Floats:
        doubled = [
            replace(
                p,
                row=np.tile(p.row, 2),
                position=np.tile(p.position, 2),
                target=np.concatenate([p.target, GREEDY_TARGET - p.target]),
                text_index=np.concatenate([p.text_index, p.text_index + np.int32(num_texts)]),
            )
            for p in probes
        ]
        sums = self.checkpoint.score_probes(doubled, 2 * num_texts, tick)
        self.num_non_greedy = -sums[num_texts:]
        return sums[:num_texts]
