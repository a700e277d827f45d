"""Trials of an opened model: is it causal, and which shortcuts of the engine keep its numbers?

Each is tried on random token ids against the model's plain forward; nothing is assumed from the
name of an architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.attention import (
    PACKED_ATTENTION,
    CannotPackError,
    packed_attention_forward,
)
from antlm_bench.scoring.engine import (
    Engine,
    ForwardConfig,
    attention_mask_inputs,
    plain_logits,
    vocabulary_size,
)
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.types import Attention, Floats, Probes

FORWARD_ERRORS = (
    CannotPackError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError,
    IndexError, KeyError, AssertionError, CheckpointError,
)  # fmt: skip
# Types of rotary embeddings whose angles depend on the longest row of a forward.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# Share of the largest logit. Equal shapes give equal numbers, so that rounding moves less.
CAUSALITY_TOLERANCE = 1e-5
NUM_TRIAL_TEXTS = 18


def check_causality(model: Any, folder: Path) -> None:
    """Raise CheckpointError for a model that sees later tokens: two rows that differ in their last
    token must have the same logits before it.
    """
    vocabulary = vocabulary_size(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary - 1, (1, 8))).to(
        model.device
    )
    with torch.inference_mode():
        first, again = (plain_logits(model, input_ids=ids) for _ in range(2))
        # NaN is reported where it is read.
        if not torch.allclose(first, again, atol=1e-4, equal_nan=True):
            raise CheckpointError(
                f"{type(model).__name__} answers differently when it is asked the same again",
                location=str(folder),
                hint="a forward that depends on chance or on earlier calls cannot be scored",
            )
    moved = logit_change_from_last_token(model, ids)
    if moved > CAUSALITY_TOLERANCE:
        raise CheckpointError(
            f"{type(model).__name__} is not a causal model as it was saved: a change of the last "
            "token moved the logits "
            f"before it by {moved:.1g} of the largest, so that every prediction sees what it "
            "predicts",
            location=str(folder),
            hint='an encoder is causal with "is_decoder": true in config.json; if it was trained '
            "with masks, save it as ...ForMaskedLM",
        )


def logit_change_from_last_token(model: Any, ids: torch.Tensor) -> float:
    """Return how far a logit before the last token of ids (1, t) moves when that token changes,
    relative to the largest logit.
    """
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary_size(model)
    with torch.inference_mode():
        logits, moved = (
            plain_logits(model, input_ids=rows)[0, :-1].float() for rows in (ids, other)
        )
    return float((logits - moved).abs().max() / logits.abs().max().clamp(min=1e-6))


def detect_forward_config(
    model: Any, kind: str, name: str, special_ids: Sequence[int] = ()
) -> ForwardConfig:
    """Find how to run a model: packed rows if they give its own numbers, else plain rows.

    Positions may begin after a padding id, and tokens with that id may not count. It is also tried
    whether the last layer can run at the read positions only, and whether a forward changes the
    model.
    """
    before = ModelState.capture(model)
    try:
        return _choose_forward_config(model, kind, name, special_ids, before)
    finally:
        before.restore()


def _choose_forward_config(
    model: Any, kind: str, name: str, special_ids: Sequence[int], initial_state: ModelState
) -> ForwardConfig:
    transformers.AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
    config = ForwardConfig(
        model.config._attn_implementation, "causal" if kind == "causal" else "full"
    )
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    padding = (
        padding if isinstance(padding, int) and 0 <= padding < vocabulary_size(model) else None
    )
    probes = _trial_probes(
        model, config.native_attention, [*special_ids, *([] if padding is None else [padding])]
    )
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    length_dependent = rope.get("rope_type") in LENGTH_DEPENDENT_ROPE
    plain, config = _plain_scores(model, name, config, probes)
    restores = initial_state.has_changed() or length_dependent
    initial_state.restore()
    config = replace(config, restores_state=restores)
    longest = rope.get("original_max_position_embeddings") or getattr(
        model.config, "max_position_embeddings", None
    )
    config = replace(config, max_packed_length=longest if length_dependent else None)
    candidates = [] if padding is None else [(padding, padding), (1 + padding, None)]
    for first, skipped in [(0, None), *candidates, (2, None)] if config.lm_head_at_reads else []:
        packed = replace(config, layout="packed", first_position=first, padding_id=skipped)
        try:
            scores = Engine(model, name, packed, 64).score_probes(probes, NUM_TRIAL_TEXTS)
        except FORWARD_ERRORS:
            continue  # this architecture's attention cannot be replaced, or has no such position
        finally:
            initial_state.restore()
        if np.allclose(plain, scores, rtol=1e-5, atol=1e-4):
            packed = replace(
                packed, last_layer_at_reads=_can_narrow_last_layer(model, name, packed)
            )
            model.set_attn_implementation(config.native_implementation)
            return replace(
                packed, obeys_masks=obeys_attention_masks(model, config.native_attention)
            )
    model.set_attn_implementation(config.native_implementation)
    return replace(config, obeys_masks=obeys_attention_masks(model, config.native_attention))


def _plain_scores(
    model: Any, name: str, forward_config: ForwardConfig, probes: Sequence[Probes]
) -> tuple[Floats, ForwardConfig]:
    """Return the scores of plain rows, and the configuration that computes them: with the LM head
    at read positions only, where that works.
    """
    whole = replace(forward_config, lm_head_at_reads=False)
    expected = Engine(model, name, whole, 64).score_probes(probes, NUM_TRIAL_TEXTS)
    try:
        scores = Engine(model, name, forward_config, 64).score_probes(probes, NUM_TRIAL_TEXTS)
    except FORWARD_ERRORS:
        return expected, whole
    same = np.allclose(scores, expected, rtol=1e-5, atol=1e-4)
    return expected, forward_config if same else whole


def obeys_attention_masks(model: Any, attention: Attention) -> bool:
    """Return whether a 4-D mask decides which way rows attend, tried on two rows that differ in
    their last token.
    """
    vocabulary = vocabulary_size(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary - 1, (1, 6))).repeat(
        2, 1
    )
    ids[1, -1] += 1
    ids = ids.to(model.device)

    def states_before(**inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = model.base_model(input_ids=ids, **inputs)[0][:, :-1]
        return states

    try:
        own, full, causal = (
            states_before(**inputs)
            for inputs in ({}, attention_mask_inputs(6, "full"), attention_mask_inputs(6, "causal"))
        )
    except FORWARD_ERRORS:
        return False
    sees = [not torch.allclose(states[0], states[1], atol=1e-5) for states in (full, causal)]
    return sees == [True, False] and torch.allclose(
        own, full if attention == "full" else causal, atol=1e-4
    )


def _can_narrow_last_layer(model: Any, name: str, forward_config: ForwardConfig) -> bool:
    """Return whether the last layer at the read positions only gives the same numbers."""
    engine = Engine(model, name, replace(forward_config, last_layer_at_reads=True), 64)
    subset = slice(2, None, 4)
    probes = [
        Probes(
            p.ids,
            p.attention,
            p.row[subset],
            p.position[subset],
            p.target[subset],
            p.text_index[subset],
        )
        for p in _trial_probes(model, "full")
    ]
    try:
        whole = Engine(model, name, forward_config, 64).score_probes(probes, NUM_TRIAL_TEXTS)
        narrow = engine.score_probes(probes, NUM_TRIAL_TEXTS)
    except FORWARD_ERRORS:
        return False
    return engine.last_layer is not None and np.allclose(whole, narrow, rtol=1e-5, atol=1e-4)


def _trial_probes(
    model: Any, attention: Attention, special_ids: Sequence[int] = ()
) -> list[Probes]:
    """Return random rows of three lengths with every position read, each as one of NUM_TRIAL_TEXTS.

    The two rows of one length share a beginning; the second holds special ids where a text has its
    tokens.
    """
    rng = np.random.default_rng(0)
    vocabulary = vocabulary_size(model)
    usable = [i for i in special_ids if i < vocabulary]
    stem, probes = rng.integers(0, vocabulary, 9), []
    for length in (4, 6, 9):
        ids = np.stack(
            [stem[:length], np.concatenate([stem[:2], rng.integers(0, vocabulary, length - 2)])]
        )
        if usable:
            ids[1, 2:-1:2] = rng.choice(usable, len(ids[1, 2:-1:2]))
            ids[1, 2] = usable[-1]  # the padding id, where there is one
        row, position = (
            x.ravel() for x in np.meshgrid(np.arange(2), np.arange(length), indexing="ij")
        )
        reads = (
            x.astype(np.int32)
            for x in (row, position, rng.integers(0, vocabulary, len(row)), row * 9 + position)
        )
        probes.append(Probes(ids.astype(np.int32), attention, *reads))
    return probes
