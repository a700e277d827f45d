"""The self-test of an opened checkpoint: our engine against the model's own plain forward.

The plain forward reads one row at a time: masked, each token hidden in turn; causal, each prefix by
itself. A difference above TOLERANCE turns off the engine's shortcuts (each by itself, then several)
until the two agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from antlm_bench.checkpoints.forward_trials import (
    CAUSALITY_TOLERANCE,
    FORWARD_ERRORS,
    logit_change_from_last_token,
)
from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.engine import (
    CPU_KERNELS,
    SHORTCUTS,
    Engine,
    attention_mask_inputs,
    plain_logits,
)
from antlm_bench.scoring.tokens import can_tokenize, probe_texts
from antlm_bench.types import Attention, Bools, Encodings, Floats, Ints, Probes

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}
"""Largest difference of one log-probability (nats) by dtype: rounding stays below it, and a wrong
position does not.
"""
TRIAL_TEXTS = (
    "The cats near the house sleep.",
    "Who has seen that the dogs never see the old house?",
)
MAX_PREDICTIONS = 12  # predictions that are compared per text and attention, spread over the text


class CheckpointLike(Protocol):
    """The attributes of a checkpoint that the self-test uses (see loader.Checkpoint)."""

    engine: Engine
    mask_id: int | None

    @property
    def name(self) -> str: ...
    @property
    def attentions(self) -> frozenset[str]: ...
    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Encodings: ...


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """The largest difference (nats) of one prediction, over `predictions` predictions in `texts`
    texts.
    """

    texts: int
    predictions: int
    largest_difference: float
    disabled: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return the entry of run.json. The difference is rounded up to a power of ten: the rest is
        noise of the machine.
        """
        above = float(10.0 ** np.ceil(np.log10(max(self.largest_difference, 1e-6))))
        return {
            "texts": self.texts,
            "predictions": self.predictions,
            "largest_nats_below": above,
            "disabled": list(self.disabled),
        }


def run_self_test(
    checkpoint: CheckpointLike,
    texts: Sequence[str],
    attentions: Iterable[str] | None = None,
    max_predictions: int = MAX_PREDICTIONS,
) -> SelfTestResult:
    """Compare the engine with the plain forward on `texts`, and turn off the shortcuts that make it
    differ.

    attentions: those to compare, by default all of the checkpoint. Texts that do not fit into the
    model are left out. Raises CheckpointError where no shortcut is to blame: the model gives
    different outputs for the same input, or sees later tokens.
    """
    engine = checkpoint.engine
    computed = engine.nodes_computed, engine.head_rows_computed
    try:
        return _compare_with_plain_forward(
            checkpoint, texts, sorted(attentions or checkpoint.attentions), max_predictions
        )
    finally:
        engine.nodes_computed, engine.head_rows_computed = computed  # they count what is scored


def _compare_with_plain_forward(
    checkpoint: CheckpointLike,
    texts: Sequence[str],
    attentions: Sequence[str],
    max_predictions: int,
) -> SelfTestResult:
    engine = checkpoint.engine
    trials = [
        (text, p)
        for text, p in _trial_probes(checkpoint, texts, attentions, max_predictions)
        if _has_plain_forward(engine, p.attention)
    ]
    probes = [p for _, p in trials]
    num_texts, num_predictions = len({text for text, _ in trials}), sum(len(p.row) for p in probes)
    if not num_predictions:
        return SelfTestResult(0, 0, 0.0)
    with engine.without_shortcuts([name for name in engine.shortcuts if name == CPU_KERNELS]):
        expected = _plain_logprobs(engine, probes)
    if np.isnan(expected).any():
        raise CheckpointError(
            f"{checkpoint.name} answers NaN",
            hint="the weights are damaged, or the dtype is too small: --dtype float32",
        )
    tolerance = TOLERANCE[next(engine.model.parameters()).dtype]

    def difference(disabled: Sequence[str]) -> float:
        with engine.without_shortcuts(disabled):
            try:
                scores = engine.score_probes(probes, len(expected))
            except FORWARD_ERRORS:
                return float("inf")
        with np.errstate(invalid="ignore"):  # ids that a model rules out: minus infinity twice
            return float(np.where(scores == expected, 0.0, np.abs(scores - expected)).max())

    largest = difference(())
    if largest <= tolerance:
        return SelfTestResult(num_texts, num_predictions, largest)
    for disabled in _shortcut_sets(engine.shortcuts):
        if (remaining := difference(disabled)) <= tolerance:
            _check_no_lookahead(engine, probes, disabled)
            for name in disabled:
                engine.disable_shortcut(name)
            return SelfTestResult(num_texts, num_predictions, remaining, tuple(disabled))
    raise CheckpointError(
        f"{checkpoint.name}: our engine and the own forward of {type(engine.model).__name__}, one "
        "row at a time, "
        f"differ by up to {largest:.2g} nats, with every shortcut turned off too",
        hint="a forward that depends on chance or on earlier calls cannot be scored: ask it the "
        "same twice",
    )


def _shortcut_sets(shortcuts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield sets of shortcuts to turn off: each by itself, then more and more of them."""
    yield from ([name] for name in shortcuts)
    yield from (shortcuts[:end] for end in range(2, len(shortcuts) + 1))
    yield list(SHORTCUTS)


def _check_no_lookahead(engine: Engine, probes: Sequence[Probes], disabled: Sequence[str]) -> None:
    """Raise CheckpointError for a model that agrees only prefix by prefix, because it sees later
    tokens in a whole row.
    """
    if "one row per text" not in disabled or engine.forward_config.native_attention != "causal":
        return
    longest = max((p.ids for p in probes if p.attention == "causal"), key=lambda ids: ids.shape[1])
    ids = torch.from_numpy(longest[:1].astype(np.int64)).to(engine.model.device)
    if (moved := logit_change_from_last_token(engine.model, ids)) > CAUSALITY_TOLERANCE:
        raise CheckpointError(
            f"{engine.name}: in rows of {ids.shape[1]} tokens a change of the last token moves the "
            "logits before it by "
            f"{moved:.1g} of the largest: the model sees later tokens",
            hint="it cannot be scored left to right at that length: see --max-length",
        )


def _has_plain_forward(engine: Engine, attention: str) -> bool:
    """Return whether the model's own forward can attend that way."""
    return attention == engine.forward_config.native_attention or engine.forward_config.obeys_masks


def _trial_probes(
    checkpoint: CheckpointLike,
    texts: Sequence[str],
    attentions: Sequence[str],
    max_predictions: int,
) -> Iterator[tuple[int, Probes]]:
    """Yield (index of the text, its rows) for each text and attention. Every read has a text index
    of its own.
    """
    number = 0
    for name in attentions:
        attention: Attention = "causal" if name == "causal" else "full"
        if attention == "full" and checkpoint.mask_id is None:
            continue
        for encoded in checkpoint.encode(texts, [None] * len(texts), attention).batches:
            for ids, scored, index in zip(
                encoded.ids, encoded.score_mask, encoded.text_index, strict=True
            ):
                positions = _spread_positions(scored, attention, max_predictions)
                count = len(positions)
                text = (number + np.arange(count)).astype(np.int32)
                number += count
                if attention == "full":
                    rows = np.repeat(ids[None], count, 0)
                    order = np.arange(count, dtype=np.int32)
                    rows[order, positions] = checkpoint.mask_id
                    yield int(index), Probes(rows, "full", order, positions, ids[positions], text)
                    continue
                row, before = np.zeros(count, np.int32), positions - 1
                yield (
                    int(index),
                    Probes(ids[None, :-1], "causal", row, before, ids[positions], text),
                )
                if number == count and count > 1:
                    # The first text once more, backwards: two rows of one length.
                    other = ids.copy()
                    other[scored] = other[scored][::-1]
                    number += count
                    text = text + np.int32(count)
                    target = other[positions]
                    yield int(index), Probes(other[None, :-1], "causal", row, before, target, text)


def _spread_positions(scored: Bools, attention: Attention, max_positions: int) -> Ints:
    """Return up to `max_positions` scored positions of a row, spread over it."""
    positions = np.nonzero(scored)[0]
    if attention == "causal":
        positions = positions[positions > 0]
    if len(positions):
        steps = np.linspace(0, len(positions) - 1, max_positions).round().astype(int)
        positions = positions[np.unique(steps)]
    return positions.astype(np.int32)


def _plain_logprobs(engine: Engine, probes: Sequence[Probes]) -> Floats:
    """Return log-probabilities by the model's own forward: one row, or one prefix, at a time."""
    answers = np.zeros(1 + max(int(text) for p in probes for text in p.text_index))
    engine.set_attention(engine.forward_config.native_implementation)
    device = next(engine.model.parameters()).device
    for p in probes:
        for row, position, target, text in zip(
            p.row, p.position, p.target, p.text_index, strict=True
        ):
            ids = p.ids[row] if p.attention == "full" else p.ids[row, : position + 1]
            inputs = {"input_ids": torch.from_numpy(ids[None].astype(np.int64)).to(device)}
            if p.attention != engine.forward_config.native_attention:
                inputs |= {
                    k: v.to(device) for k, v in attention_mask_inputs(len(ids), p.attention).items()
                }
            with torch.inference_mode():
                logits = plain_logits(engine.model, **inputs)[0, int(position)].float()
            if engine.model_state is not None:
                engine.model_state.restore()
            answers[text] = float(logits.log_softmax(-1)[int(target)])
    return answers


def trial_texts(tokenizer: Any) -> list[str]:
    """Return TRIAL_TEXTS, or words of the tokenizer's own vocabulary where it cannot read them; []
    where it reads nothing.
    """
    texts = [text for text in TRIAL_TEXTS if can_tokenize(tokenizer, text)]
    if not texts:
        words = list(
            islice((text for text in probe_texts(tokenizer) if can_tokenize(tokenizer, text)), 8)
        )
        joined = dict.fromkeys((" ".join(words[:3]), " ".join(words)))
        texts = [text for text in joined if text and can_tokenize(tokenizer, text)]
    return texts


def select_texts_by_length(texts: Sequence[str], count: int = 5) -> list[str]:
    """Return `count` different texts from the shortest to the longest, whatever the order of
    `texts`.
    """
    ordered = sorted(set(texts), key=lambda text: (len(text), text))
    steps = np.linspace(0, len(ordered) - 1, count).round().astype(int).tolist() if ordered else []
    return [ordered[step] for step in dict.fromkeys(steps)]
