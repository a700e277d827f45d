"""A checkpoint that minicons scores instead of our engine, for models that ours cannot run.

The folder is opened as checkpoints.loader opens it, with the same errors and the same facts; only
the arithmetic is the peer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from antlm_bench.checkpoints.loader import describe_checkpoint, load_checkpoint
from antlm_bench.checkpoints.metadata import add_scored_eos
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import CheckpointError, MethodNotSupported, UsageError
from antlm_bench.predictions import Predictions
from antlm_bench.scoring import peers
from antlm_bench.scoring.methods import METHODS, Method, peer_methods, supported_methods
from antlm_bench.scoring.multiple_choice import build_predictions
from antlm_bench.scoring.peers import MINICONS, MiniconsScorer, PeerScores, Span
from antlm_bench.scoring.text import EosRule, build_specials, merge_flags, resolve_eos_rule
from antlm_bench.types import Encodings, Item, ProgressCallback

ENGINES = ("native", "minicons")


@dataclass(frozen=True, slots=True)
class MiniconsCheckpoint:
    """A checkpoint (see loader.Checkpoint) whose predictions minicons computes."""

    name: str
    attentions: frozenset[str]
    eos: str
    mask_id: int | None
    max_length: int | None
    scorer: MiniconsScorer
    trained_methods: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    no_mask_reason: str = ""
    # Scorer of causal texts that have a context, where it differs.
    context_scorer: MiniconsScorer | None = None

    def notes(self, method: str) -> tuple[str, ...]:
        """Return (): minicons takes words from the tokenizer, or does not score."""
        del method
        return ()

    @property
    def methods(self) -> list[str]:
        """The names of the methods that minicons can score it with, the default first."""
        return [name for name in supported_methods(self) if name in peer_methods(MINICONS)]

    def with_context_bos_policy(self, bos: str) -> MiniconsCheckpoint:
        """Return the same checkpoint with another BOS policy for causal texts that have a
        context.
        """
        if self.scorer.kind != "causal":
            return self
        specials = build_specials(self.scorer.scorer.tokenizer, "causal", bos)
        return replace(self, context_scorer=replace(self.scorer, specials=specials))

    def with_scored_eos(self, rule: EosRule) -> MiniconsCheckpoint:
        """See loader.Checkpoint.with_scored_eos."""
        tokenizer = self.scorer.scorer.tokenizer
        if self.scorer.kind != "causal" or not resolve_eos_rule(tokenizer, rule)[0]:
            return self
        metadata = add_scored_eos(self.metadata, tokenizer, rule)
        if rule == "context":
            assert self.context_scorer is not None, (
                "lm-eval has a rule of its own for texts with a context"
            )
            return replace(
                self, context_scorer=replace(self.context_scorer, eos=rule), metadata=metadata
            )
        return replace(self, scorer=replace(self.scorer, eos=rule), metadata=metadata)

    def predict(
        self,
        items: Sequence[Item],
        methods: Sequence[Method],
        tick: ProgressCallback | None = None,
        reduction: str = "sum",
    ) -> list[Predictions]:
        """Return predictions as `multiple_choice.predict`. Raises MethodNotSupported for what
        minicons does not know, and CheckpointError.
        """
        texts = [option.text for item in items for option in item.options]
        spans = [option.span for item in items for option in item.options]

        def share(done: float) -> None:
            if tick is not None:
                tick(done / len(methods))

        results = []
        for method in methods:
            peer_scores = self._score_spans(texts, spans, method.name, share)
            encodings = [method.with_relevant_flags(peer_scores.facts)]
            results.append(
                build_predictions(
                    items,
                    peer_scores.logp,
                    peer_scores.token_counts,
                    peer_scores.target_bytes,
                    encodings,
                    reduction,
                )
            )
        return results

    def _score_spans(
        self, texts: Sequence[str], spans: Sequence[Span], name: str, tick: ProgressCallback
    ) -> PeerScores:
        """Return the scores of both scorers, in the order of the texts."""
        if self.context_scorer is None:
            return self.scorer.score_spans(texts, spans, name, tick)
        n = len(texts)
        encodings = Encodings((), np.zeros(n, np.bool_), np.zeros(n, np.bool_), {})
        merged = PeerScores(np.zeros(n), np.zeros(n, np.int64), [b""] * n, encodings)
        has_context = np.array([span is not None and span[0] > 0 for span in spans], np.bool_)
        for reader, chosen in ((self.scorer, ~has_context), (self.context_scorer, has_context)):
            if not len(members := np.flatnonzero(chosen).tolist()):
                continue

            def share(done: float, of: float = len(members) / n) -> None:
                tick(done * of)

            part = reader.score_spans(
                [texts[i] for i in members], [spans[i] for i in members], name, share
            )
            merged.logp[members], merged.token_counts[members] = part.logp, part.token_counts
            encodings = merge_flags(encodings, part.facts, members)
            for number, target in zip(members, part.target_bytes, strict=True):
                merged.target_bytes[number] = target
        return replace(merged, facts=encodings)


def open_minicons_checkpoint(ref: str, options: OpenOptions) -> MiniconsCheckpoint:
    """Open a folder or hub id for minicons. Raises as `open_checkpoint`, and CheckpointError where
    minicons fails.
    """
    with peers.suppress_output():
        loaded = load_checkpoint(ref, options, try_engine=False)
        kind: peers.ModelKind = "causal" if loaded.kind == "causal" else "masked"
        (specials,) = loaded.specials.values()  # one way only: minicons passes no 4-D mask
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
        scorer=MiniconsScorer(scorer, kind, specials, loaded.max_length),
        trained_methods=methods,
        metadata=metadata,
    )


def validate_options(
    engine: str, methods: Sequence[str], dtype: str, precision: str, batch_tokens: int | None
) -> None:
    """Raise UsageError or MethodNotSupported for options that an engine does not have, before
    anything is opened.
    """
    if engine not in ENGINES:
        raise UsageError(
            f"unknown engine {engine!r}", location="--engine", hint=" or ".join(ENGINES)
        )
    if engine == "native":
        return
    if precision != "exact":
        raise UsageError(
            f"{engine} has one precision", location="--precision", hint="leave --precision out"
        )
    if dtype != "float32":  # its log softmax is computed in the model's dtype
        raise UsageError(
            f"{engine} would add {dtype} logits up in {dtype}",
            location="--dtype",
            hint="leave --dtype out",
        )
    if batch_tokens is not None:
        raise UsageError(
            f"{engine} batches in its own way",
            location="--batch-tokens",
            hint="leave --batch-tokens out",
        )
    supported = peer_methods(MINICONS)
    if unknown := [name for name in methods if name not in supported and name in METHODS]:
        raise MethodNotSupported(
            f"minicons does not know {unknown[0]!r}",
            location="--method",
            hint=f"one of {', '.join(supported)}, or --engine native",
        )
