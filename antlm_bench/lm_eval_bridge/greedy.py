"""Detect whether scored tokens are the model's argmax, in the same forward pass as the scores."""

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

# The target GREEDY_TARGET - t asks whether token t is the argmax: its score is 0 if it is, else -1.
GREEDY_TARGET = -2


class GreedyEngine(Engine):
    """An Engine that also accepts targets <= GREEDY_TARGET. They need no further forward pass."""

    def _forward_logprobs(
        self, ids: Any, read_positions: Any, read_index: Any, target: Any, extra_inputs: Any
    ) -> Floats:
        self._argmax_ids: list[Ints] = []
        is_greedy_target = target <= GREEDY_TARGET
        token = np.where(is_greedy_target, GREEDY_TARGET - target, target)
        logprobs = super()._forward_logprobs(ids, read_positions, read_index, token, extra_inputs)
        # One entry per position of the LM head, in the order of the calls of _lm_head_logits.
        argmax_ids = np.concatenate(self._argmax_ids)
        minus_misses = np.where(argmax_ids[read_index] == token, 0.0, -1.0)
        return np.where(is_greedy_target, minus_misses, logprobs)

    def _lm_head_logits(self, output: Any, hidden: Tensor) -> Tensor:
        logits = super()._lm_head_logits(output, hidden)
        self._argmax_ids.append(logits.argmax(-1).cpu().numpy())
        return logits


class GreedyTrackingModel:
    """A LanguageModel that scores like a checkpoint, and also counts non-greedy tokens."""

    num_non_greedy: Floats
    """(n,): number of scored tokens that were not the argmax, per text of the last `score_probes`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        engine = checkpoint.engine
        self.checkpoint = replace(
            checkpoint,
            engine=GreedyEngine(
                engine.model, engine.name, engine.forward_config, engine.batch_tokens
            ),
        )
        self.name, self.eos = checkpoint.name, checkpoint.eos
        self.attentions = checkpoint.attentions
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
        # Each target occurs twice: for its log-probability, and for whether it is greedy. The
        # latter are summed as the scores of `num_texts` additional texts.
        with_greedy_targets = [
            replace(
                p,
                row=np.tile(p.row, 2),
                position=np.tile(p.position, 2),
                target=np.concatenate([p.target, GREEDY_TARGET - p.target]),
                text_index=np.concatenate([p.text_index, p.text_index + np.int32(num_texts)]),
            )
            for p in probes
        ]
        sums = self.checkpoint.score_probes(with_greedy_targets, 2 * num_texts, tick)
        self.num_non_greedy = -sums[num_texts:]
        return sums[:num_texts]
