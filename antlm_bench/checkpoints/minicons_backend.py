"""A checkpoint that minicons reads instead of our engine: for models that ours cannot run, with the same predictions.

The folder is opened as `opening` opens it (the same refusals, the same facts), only the arithmetic is the peer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from antlm_bench.checkpoints.loader import describe, describe_scored_eos, find
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import CheckpointError, MethodNotSupported, UsageError
from antlm_bench.scoring import peers
from antlm_bench.scoring.multiple_choice import Tick, predictions
from antlm_bench.scoring.peers import MINICONS, Answers, MiniconsReader, Span
from antlm_bench.scoring.probes import METHODS, Method, supported
from antlm_bench.scoring.text import EosRule, eos_rule, merge_facts, specials
from antlm_bench.types import Encodings, Item, Prediction

ENGINES = ("native", "minicons")


@dataclass(frozen=True, slots=True)
class Foreign:
    """What `score` needs to know of a checkpoint (see opening.Checkpoint), and predictions by minicons."""

    name: str
    attends: frozenset[str]
    eos: str
    mask_id: int | None
    max_length: int | None
    reader: MiniconsReader
    trained_for: tuple[str, ...] = ()
    describe: dict[str, Any] = field(default_factory=dict)
    no_mask: str = ""
    context_reader: MiniconsReader | None = None  # of causal texts that have a context, where it differs

    def notes(self, method: str) -> tuple[str, ...]:
        """See opening.Checkpoint: minicons takes words from the tokenizer, or does not score."""
        del method
        return ()

    @property
    def methods(self) -> list[str]:
        """What minicons can score it with; the first is the default."""
        return [name for name in supported(self) if name in MINICONS]

    def with_bos_before_context(self, bos: str) -> Foreign:
        """Return the same checkpoint with another BOS policy for causal texts that have a context."""
        if self.reader.kind != "causal":
            return self
        around = specials(self.reader.scorer.tokenizer, "causal", bos)
        return replace(self, context_reader=replace(self.reader, around=around))

    def with_scored_eos(self, rule: EosRule) -> Foreign:
        """See opening.Checkpoint."""
        tokenizer = self.reader.scorer.tokenizer
        if self.reader.kind != "causal" or not eos_rule(tokenizer, rule)[0]:
            return self
        facts = describe_scored_eos(self.describe, tokenizer, rule)
        if rule == "context":
            assert self.context_reader is not None, "lm-eval has a rule of its own for texts with a context"
            return replace(self, context_reader=replace(self.context_reader, eos=rule), describe=facts)
        return replace(self, reader=replace(self.reader, eos=rule), describe=facts)

    def predict(
        self, items: Sequence[Item], methods: Sequence[Method], tick: Tick | None = None, reduction: str = "sum"
    ) -> list[list[Prediction]]:
        """As choice.predict. Raises MethodNotSupported for what minicons does not know, and CheckpointError."""
        texts = [option.text for item in items for option in item.options]
        spans = [option.span for item in items for option in item.options]

        def share(done: float) -> None:
            if tick is not None:
                tick(done / len(methods))

        made = []
        for method in methods:
            name = next(name for name, known in METHODS.items() if known == method)
            said = self._answers(texts, spans, name, share)
            used = [method.relevant(said.facts)]
            made.append(predictions(items, said.logp, said.tokens, said.targets, used, reduction))
        return made

    def _answers(self, texts: Sequence[str], spans: Sequence[Span], name: str, tick: Tick) -> Answers:
        """The answers of both readers, in the order of the texts."""
        if self.context_reader is None:
            return self.reader.answers(texts, spans, name, tick)
        n = len(texts)
        facts = Encodings((), np.zeros(n, np.bool_), np.zeros(n, np.bool_), {})
        merged = Answers(np.zeros(n), np.zeros(n, np.int64), [b""] * n, facts)
        has_context = np.array([span is not None and span[0] > 0 for span in spans], np.bool_)
        for reader, chosen in ((self.reader, ~has_context), (self.context_reader, has_context)):
            if not len(members := np.flatnonzero(chosen).tolist()):
                continue

            def share(done: float, of: float = len(members) / n) -> None:
                tick(done * of)

            part = reader.answers([texts[i] for i in members], [spans[i] for i in members], name, share)
            merged.logp[members], merged.tokens[members] = part.logp, part.tokens
            facts = merge_facts(facts, part.facts, members)
            for number, target in zip(members, part.targets, strict=True):
                merged.targets[number] = target
        return replace(merged, facts=facts)


def open_foreign(ref: str, options: OpenOptions) -> Foreign:
    """Open a folder or hub id for minicons. Raises as `open_checkpoint`, and CheckpointError where minicons fails."""
    with peers.hushed():
        found = find(ref, options, tried=False)
        kind: peers.Kind = "causal" if found.kind == "causal" else "masked"
        (around,) = found.around.values()  # one way only: minicons passes no 4-D mask
        device = str(next(found.model.parameters()).device)
        try:
            scorer = peers.minicons_scorer(kind, found.model, found.tokenizer, device)
        except peers.FAILS as error:
            raise CheckpointError(f"minicons cannot take this checkpoint: {error}", place=ref) from error
    facts = describe(ref, found, options) | {"layout": "minicons"}
    methods = tuple(
        name for name in found.trained_for if name in MINICONS and METHODS[name].attends <= set(found.around)
    )
    return Foreign(
        name=found.name,
        attends=frozenset(found.around),
        eos=str(found.tokenizer.eos_token),
        mask_id=found.mask_id,
        no_mask=found.no_mask,
        max_length=found.max_length,
        reader=MiniconsReader(scorer, kind, around, found.max_length),
        trained_for=methods,
        describe=facts,
    )


def refuse(engine: str, methods: Sequence[str], dtype: str, precision: str, batch_tokens: int | None) -> None:
    """UsageError or MethodNotSupported for what an engine cannot be told, before anything is opened."""
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}", place="--engine", hint=" or ".join(ENGINES))
    if engine == "native":
        return
    if precision != "exact":
        raise UsageError(f"{engine} has one precision", place="--precision", hint="leave --precision out")
    if dtype != "float32":  # its log softmax is computed in the model's dtype
        raise UsageError(f"{engine} would add {dtype} logits up in {dtype}", place="--dtype", hint="leave --dtype out")
    if batch_tokens is not None:
        raise UsageError(f"{engine} batches in its own way", place="--batch-tokens", hint="leave --batch-tokens out")
    if unknown := [name for name in methods if name not in MINICONS and name in METHODS]:
        raise MethodNotSupported(
            f"minicons does not know {unknown[0]!r}",
            place="--method",
            hint=f"one of {', '.join(MINICONS)}, or --engine native",
        )
