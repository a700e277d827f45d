"""Try a loaded model on random ids: is it causal, and which shortcuts of the engine are exact?

The reference is always the model's plain forward. The name of an architecture decides nothing.
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
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.forward_config import ForwardConfig
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.scoring.plain_forward import (
    attention_mask_inputs,
    is_encoder_decoder,
    plain_logits,
    vocabulary_size,
)
from antlm_bench.types import Attention, Floats, Probes

FORWARD_ERRORS = (
    CannotPackError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError,
    IndexError, KeyError, AssertionError, CheckpointError,
)  # fmt: skip
"""Errors of a trial forward which show that the model cannot run that way."""
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Types of rotary embeddings whose angles depend on the longest row of a forward."""
CAUSALITY_TOLERANCE = 1e-5
"""Share of the largest logit. The compared rows have equal shapes, so rounding stays below it."""
TRIAL_BATCH_TOKENS = 26
TRIAL_LENGTHS = (4, 8, 9)
"""Two rows of each length make two batches with full attention: one of two lengths, which is packed
on a CPU, and one of rows of one length (scoring.attention)."""
NUM_TRIAL_TEXTS = 2 * max(TRIAL_LENGTHS)


def check_causality(model: Any, folder: Path) -> None:
    """Raise CheckpointError for a model whose logits depend on later tokens.

    Two rows that differ in their last token must have the same logits before it. Also raises for a
    model whose logits differ between two forwards of the same row.
    """
    ids = _random_ids(model, 8)
    with torch.inference_mode():
        first, second = (_row_logits(model, ids, ids) for _ in range(2))
    # NaN is reported by the self-test.
    if not torch.allclose(first, second, atol=1e-4, equal_nan=True):
        raise CheckpointError(
            f"{type(model).__name__} gives different logits for the same row",
            location=str(folder),
            hint="a forward that depends on chance or on earlier calls cannot be scored",
        )
    change = logit_change_from_last_token(model, ids)
    if change > CAUSALITY_TOLERANCE:
        raise CheckpointError(
            f"{type(model).__name__} is not a causal model as it was saved: a change of the last "
            f"token moved the logits before it by {change:.1g} of the largest, so that every "
            "prediction sees the token that it predicts",
            location=str(folder),
            hint="its decoder reads the whole row, so that it cannot be scored left to right"
            if is_encoder_decoder(model)
            else 'an encoder is causal with "is_decoder": true in config.json; if it was trained '
            "with masks, save it as ...ForMaskedLM",
        )


def logit_change_from_last_token(model: Any, ids: torch.Tensor) -> float:
    """Return how far a logit before the last token of ids (1, t) moves when that token changes,
    relative to the largest logit.
    """
    changed_ids = ids.clone()
    changed_ids[0, -1] = (changed_ids[0, -1] + 1) % vocabulary_size(model)
    with torch.inference_mode():
        logits, changed_logits = (
            _row_logits(model, rows, ids)[0, :-1].float() for rows in (ids, changed_ids)
        )
    return float((logits - changed_logits).abs().max() / logits.abs().max().clamp(min=1e-6))


def _row_logits(model: Any, rows: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Return the logits of rows (r, t); an encoder-decoder reads them after `sources`."""
    if is_encoder_decoder(model):
        return plain_logits(model, input_ids=sources, decoder_input_ids=rows)
    return plain_logits(model, input_ids=rows)


def detect_forward_config(
    model: Any, kind: str, name: str, special_ids: Sequence[int] = ()
) -> ForwardConfig:
    """Find how to run a model fast with the same numbers as its plain forward.

    Tries packed rows under several rules for position ids, the LM head and the last layer at the
    read positions only, and 4-D attention masks. Also finds whether a forward changes the model.
    """
    initial_state = ModelState.capture(model)
    try:
        return _detect_forward_config(model, kind, name, special_ids, initial_state)
    finally:
        initial_state.restore()


def _detect_forward_config(
    model: Any, kind: str, name: str, special_ids: Sequence[int], initial_state: ModelState
) -> ForwardConfig:
    transformers.AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
    text_config = model.config.get_text_config()
    padding_id = getattr(text_config, "pad_token_id", None)
    if not isinstance(padding_id, int) or not 0 <= padding_id < vocabulary_size(model):
        padding_id = None
    config = ForwardConfig(
        model.config._attn_implementation, "causal" if kind == "causal" else "full"
    )
    trial_ids = [*special_ids] if padding_id is None else [*special_ids, padding_id]
    probes = _trial_probes(model, config.native_attention, trial_ids)
    config = replace(config, lm_head_at_reads=False)
    expected = _score_trial(model, name, config, probes)
    if _gives_scores(model, name, replace(config, lm_head_at_reads=True), probes, expected):
        config = replace(config, lm_head_at_reads=True)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
        max_positions = getattr(model.config, "max_position_embeddings", None)
        original_length = rope.get("original_max_position_embeddings") or max_positions
        config = replace(config, restores_state=True, max_packed_length=original_length)
    elif initial_state.has_changed():
        config = replace(config, restores_state=True)
    initial_state.restore()
    for packed in _list_packed_configs(config, padding_id):
        is_exact = _gives_scores(model, name, packed, probes, expected)
        initial_state.restore()
        if is_exact:
            config = replace(
                packed, last_layer_at_reads=_can_narrow_last_layer(model, name, packed)
            )
            break
    model.set_attn_implementation(config.native_implementation)
    return replace(config, obeys_masks=obeys_attention_masks(model, config.native_attention))


def _list_packed_configs(config: ForwardConfig, padding_id: int | None) -> list[ForwardConfig]:
    """Return configurations with packed rows, one per rule for position ids.

    Positions begin at 0 (most models), at the padding id (RoBERTa, which does not count padding),
    after it, or at 2 (OPT). Packed rows need the LM head at the read positions.
    """
    if not config.lm_head_at_reads:
        return []
    rules: list[tuple[int, int | None]] = [(0, None), (2, None)]
    if padding_id is not None:
        rules[1:1] = [(padding_id, padding_id), (1 + padding_id, None)]
    return [
        replace(config, layout="packed", first_position=first, padding_id=uncounted_id)
        for first, uncounted_id in rules
    ]


def _score_trial(
    model: Any, name: str, forward_config: ForwardConfig, probes: Sequence[Probes]
) -> Floats:
    engine = Engine(model, name, forward_config, TRIAL_BATCH_TOKENS)
    return engine.score_probes(probes, NUM_TRIAL_TEXTS)


def _gives_scores(
    model: Any, name: str, forward_config: ForwardConfig, probes: Sequence[Probes], expected: Floats
) -> bool:
    """Return whether the model can run with this configuration and gives the expected scores."""
    try:
        scores = _score_trial(model, name, forward_config, probes)
    except FORWARD_ERRORS:
        return False
    return np.allclose(expected, scores, rtol=1e-5, atol=1e-4)


def obeys_attention_masks(model: Any, native_attention: Attention) -> bool:
    """Return whether a 4-D mask decides which tokens the model attends to.

    The trial runs two rows that differ only in their last token. The hidden states of the other
    tokens must differ under a full mask and not under a causal mask. Without a mask, they must be
    the states under the mask of the native attention.
    """
    length = 6
    ids = _random_ids(model, length).repeat(2, 1)
    ids[1, -1] += 1

    def states_before_last_token(masked: Attention | None = None) -> torch.Tensor:
        masks = attention_mask_inputs(length, masked) if masked else {}
        masks = {key: mask.to(ids.device) for key, mask in masks.items()}
        with torch.inference_mode():
            states: torch.Tensor = model.base_model(input_ids=ids, **masks)[0][:, :-1]
        return states

    try:
        native = states_before_last_token()
        full = states_before_last_token("full")
        causal = states_before_last_token("causal")
    except FORWARD_ERRORS:
        return False
    if torch.allclose(full[0], full[1], atol=1e-5):
        return False
    if not torch.allclose(causal[0], causal[1], atol=1e-5):
        return False
    expected = full if native_attention == "full" else causal
    return bool(torch.allclose(native, expected, atol=1e-4))


def _can_narrow_last_layer(model: Any, name: str, forward_config: ForwardConfig) -> bool:
    """Return whether the last layer at the read positions only gives the same numbers."""
    engine = Engine(
        model, name, replace(forward_config, last_layer_at_reads=True), TRIAL_BATCH_TOKENS
    )
    every_fourth = slice(2, None, 4)
    probes = [
        Probes(
            p.ids,
            p.attention,
            p.row[every_fourth],
            p.position[every_fourth],
            p.target[every_fourth],
            p.text_index[every_fourth],
        )
        for p in _trial_probes(model, "full")
    ]
    try:
        expected = _score_trial(model, name, forward_config, probes)
        scores = engine.score_probes(probes, NUM_TRIAL_TEXTS)
    except FORWARD_ERRORS:
        return False
    return engine.last_layer is not None and np.allclose(expected, scores, rtol=1e-5, atol=1e-4)


def _random_ids(model: Any, length: int) -> torch.Tensor:
    """Return random token ids (1, length) on the model's device, each below the largest id."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocabulary_size(model) - 1, (1, length))
    return torch.from_numpy(ids).to(model.device)


def _trial_probes(
    model: Any, attention: Attention, special_ids: Sequence[int] = ()
) -> list[Probes]:
    """Return two random rows of each trial length, with every position read.

    The two rows begin with the same two tokens. The second row also holds special ids. Each row
    and position is a text of its own, out of NUM_TRIAL_TEXTS.
    """
    rng = np.random.default_rng(0)
    vocabulary = vocabulary_size(model)
    usable_ids = [i for i in special_ids if i < vocabulary]
    first_row = rng.integers(0, vocabulary, max(TRIAL_LENGTHS))
    probes = []
    for length in TRIAL_LENGTHS:
        second_row = np.concatenate([first_row[:2], rng.integers(0, vocabulary, length - 2)])
        if usable_ids:
            second_row[2:-1:2] = rng.choice(usable_ids, len(second_row[2:-1:2]))
            second_row[2] = usable_ids[-1]  # the padding id, if the model has one
        ids = np.stack([first_row[:length], second_row]).astype(np.int32)
        rows, positions = np.repeat(np.arange(2), length), np.tile(np.arange(length), 2)
        targets = rng.integers(0, vocabulary, len(rows))
        text_indices = rows * max(TRIAL_LENGTHS) + positions
        reads = [x.astype(np.int32) for x in (rows, positions, targets, text_indices)]
        probes.append(Probes(ids, attention, *reads))
    return probes
