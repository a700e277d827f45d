"""Score a checkpoint with minicons, for models that our engine cannot run.

The model is loaded by checkpoints.loader, with the same errors and the same metadata. minicons
only computes the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from antlm_bench.checkpoints.loader import load_runnable_model
from antlm_bench.checkpoints.metadata import add_scored_specials, describe_checkpoint
from antlm_bench.checkpoints.pretrained import ENCODER_DECODER
from antlm_bench.checkpoints.resolve import CheckpointSources, OpenOptions
from antlm_bench.errors import CheckpointError
from antlm_bench.predictions import Predictions
from antlm_bench.scoring import peers
from antlm_bench.scoring.methods import METHODS, Method, peer_methods, supported_methods
from antlm_bench.scoring.multiple_choice import build_predictions
from antlm_bench.scoring.peers import MINICONS, MiniconsScorer, PeerScores
from antlm_bench.scoring.shared_encodings import EncodingCache
from antlm_bench.scoring.text import EosRule, build_specials, merge_flags, resolve_eos_rule
from antlm_bench.types import Encodings, Item, ProgressCallback, Span


@dataclass(frozen=True, slots=True)
class MiniconsCheckpoint:
    """A checkpoint whose predictions minicons computes.

    checkpoint.Checkpoint documents the fields and methods that both classes have.
    """

    name: str
    attentions: frozenset[str]
    eos: str
    mask_id: int | None
    max_length: int | None
    minicons_scorer: MiniconsScorer
    trained_methods: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    no_mask_reason: str = ""
    context_scorer: MiniconsScorer | None = None
    """Scores causal texts that have a context; None = `minicons_scorer` scores them, too."""

    def notes(self, method: str) -> tuple[str, ...]:
        """Return no notes: minicons takes word boundaries from the tokenizer, or raises."""
        del method
        return ()

    def share_encodings(self, cache: EncodingCache) -> None:
        """Do nothing: minicons tokenizes by itself."""
        del cache

    @property
    def methods(self) -> list[str]:
        """Names of the scoring methods that minicons has and the model supports."""
        return [name for name in supported_methods(self) if name in peer_methods(MINICONS)]

    def with_context_bos_policy(self, bos: str) -> MiniconsCheckpoint:
        """Return a copy with another BOS policy for causal texts that have a context."""
        if self.minicons_scorer.kind != "causal":
            return self
        specials = build_specials(self.minicons_scorer.scorer.tokenizer, "causal", bos)
        return replace(self, context_scorer=replace(self.minicons_scorer, specials=specials))

    def with_scored_eos(self, rule: EosRule) -> MiniconsCheckpoint:
        """Return a copy that also scores the special tokens that the tokenizer appends to causal
        texts.
        """
        tokenizer = self.minicons_scorer.scorer.tokenizer
        appended_ids, _ = resolve_eos_rule(tokenizer, rule)
        if self.minicons_scorer.kind != "causal" or not appended_ids:
            return self
        metadata = add_scored_specials(self.metadata, tokenizer, rule)
        if rule == "context":
            # lm-eval's conventions, which have this rule, also set a BOS policy for contexts.
            assert self.context_scorer is not None
            context_scorer = replace(self.context_scorer, eos=rule)
            return replace(self, context_scorer=context_scorer, metadata=metadata)
        minicons_scorer = replace(self.minicons_scorer, eos=rule)
        return replace(self, minicons_scorer=minicons_scorer, metadata=metadata)

    def predict(
        self,
        items: Sequence[Item],
        methods: Sequence[Method],
        tick: ProgressCallback | None = None,
        reduction: str = "sum",
    ) -> list[Predictions]:
        """Return the predictions of each method, as `multiple_choice.predict`.

        Raises MethodNotSupported (a method that minicons does not have) and CheckpointError.
        """
        texts = [option.text for item in items for option in item.options]
        spans = [option.span for item in items for option in item.options]

        def tick_method(share: float) -> None:
            if tick is not None:
                tick(share / len(methods))

        predictions_by_method = []
        for method in methods:
            peer_scores = self._score_spans(texts, spans, method.name, tick_method)
            encodings = [method.with_relevant_flags(peer_scores.encodings)]
            predictions_by_method.append(
                build_predictions(
                    items,
                    peer_scores.logp,
                    peer_scores.token_counts,
                    peer_scores.target_bytes,
                    encodings,
                    reduction,
                )
            )
        return predictions_by_method

    def _score_spans(
        self, texts: Sequence[str], spans: Sequence[Span], method: str, tick: ProgressCallback
    ) -> PeerScores:
        """Return the scores of all texts, in their order. Each is scored by one of two scorers."""
        if self.context_scorer is None:
            return self.minicons_scorer.score_spans(texts, spans, method, tick)
        n = len(texts)
        no_flags = np.zeros(n, np.bool_)
        encodings = Encodings(batches=(), unk=no_flags, too_long=no_flags.copy(), flags={})
        merged = PeerScores(np.zeros(n), np.zeros(n, np.int64), [b""] * n, encodings)
        has_context = np.array([span is not None and span[0] > 0 for span in spans], np.bool_)
        for scorer, mask in (
            (self.minicons_scorer, ~has_context),
            (self.context_scorer, has_context),
        ):
            indices = np.flatnonzero(mask).tolist()
            if not indices:
                continue

            def tick_subset(share: float, subset_share: float = len(indices) / n) -> None:
                tick(share * subset_share)

            scores = scorer.score_spans(
                [texts[i] for i in indices], [spans[i] for i in indices], method, tick_subset
            )
            merged.logp[indices] = scores.logp
            merged.token_counts[indices] = scores.token_counts
            encodings = merge_flags(encodings, scores.encodings, indices)
            for index, target in zip(indices, scores.target_bytes, strict=True):
                merged.target_bytes[index] = target
        return replace(merged, encodings=encodings)


def open_for_minicons(
    ref: str, sources: CheckpointSources, options: OpenOptions
) -> MiniconsCheckpoint:
    """Open a checkpoint whose files were located. Raises as `opening.open_minicons_checkpoint`."""
    with peers.suppress_output():
        loaded = load_runnable_model(ref, sources, options, for_native_engine=False)
        if loaded.kind == ENCODER_DECODER:
            raise CheckpointError(
                f"{loaded.name} is an encoder-decoder, which minicons reads without the special "
                "tokens of its source",
                location="--engine minicons",
                hint="use --engine native",
            )
        kind: peers.ModelKind = "causal" if loaded.kind == "causal" else "masked"
        # The native attention only, because minicons passes no 4-D mask.
        (specials,) = loaded.specials.values()
        device = str(next(loaded.model.parameters()).device)
        try:
            scorer = peers.make_minicons_scorer(kind, loaded.model, loaded.tokenizer, device)
        except peers.PEER_ERRORS as error:
            raise CheckpointError(
                f"minicons cannot take this checkpoint: {error}", location=ref
            ) from error
    metadata = describe_checkpoint(ref, loaded, options) | {"layout": "minicons"}
    methods = tuple(
        name
        for name in loaded.trained_methods
        if name in peer_methods(MINICONS) and METHODS[name].attentions <= set(loaded.specials)
    )
    return MiniconsCheckpoint(
        name=loaded.name,
        attentions=frozenset(loaded.specials),
        eos=str(loaded.tokenizer.eos_token),
        mask_id=loaded.mask_id,
        no_mask_reason=loaded.no_mask_reason,
        max_length=loaded.max_length,
        minicons_scorer=MiniconsScorer(scorer, kind, specials, loaded.max_length),
        trained_methods=methods,
        metadata=metadata,
    )
