"""Detect whether scored tokens are the model's argmax, in the same forward pass as the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.scoring.encoder_decoder_engine import EncoderDecoderEngine
from antlm_bench.scoring.engine import Engine
from antlm_bench.types import Attention, Encodings, Floats, Probes, Span

if TYPE_CHECKING:
    from torch import Tensor

# The target GREEDY_TARGET - t asks whether token t is the argmax: its score is 0 if it is, else -1.
GREEDY_TARGET = -2


class GreedyTargets(Engine):
    """An Engine that also accepts targets <= GREEDY_TARGET. They need no further forward pass."""

    def _token_sets_of(self, target: NDArray[np.int64]) -> dict[int, Tensor]:
        return super()._token_sets_of(target[target > GREEDY_TARGET])

    def _target_logprobs(
        self,
        logits: Tensor,
        read_index: Tensor,
        target: Tensor,
        token_sets: Mapping[int, Tensor],
    ) -> Tensor:
        is_greedy_target = target <= GREEDY_TARGET
        token = (GREEDY_TARGET - target).where(is_greedy_target, target)
        logprobs = super()._target_logprobs(logits, read_index, token, token_sets)
        minus_misses = (logits.argmax(-1)[read_index] == token).to(logprobs.dtype) - 1
        return minus_misses.where(is_greedy_target, logprobs)


class EncoderDecoderGreedyTargets(GreedyTargets, EncoderDecoderEngine):
    """The same for an encoder-decoder."""


class GreedyTrackingModel:
    """A LanguageModel that scores like a checkpoint, and also counts non-greedy tokens."""

    num_non_greedy: Floats
    """(n,): number of scored tokens that were not the argmax, per text of the last `score_probes`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        engine = checkpoint.engine
        is_encoder_decoder = isinstance(engine, EncoderDecoderEngine)
        engine_class = EncoderDecoderGreedyTargets if is_encoder_decoder else GreedyTargets
        self.checkpoint = replace(
            checkpoint,
            engine=engine_class(
                engine.model, engine.name, engine.forward_config, engine.batch_tokens
            ),
        )
        self.name, self.eos = checkpoint.name, checkpoint.eos
        self.attentions = checkpoint.attentions
        self.mask_id, self.no_mask_reason = checkpoint.mask_id, checkpoint.no_mask_reason
        self.max_length = checkpoint.max_length
        self.num_non_greedy = np.zeros(0)

    def encode(
        self,
        texts: Sequence[str],
        spans: Sequence[Span],
        attention: Attention,
        sources: Sequence[str] | None = None,
    ) -> Encodings:
        return self.checkpoint.encode(texts, spans, attention, sources)

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
