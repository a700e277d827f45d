"""Dropout that belongs to a sample, not to a batch.

A mask depends on (seed, step, sample) and on which dropout of the model asks, never on the rows
that a sample happens to stand among: one process with four rows, two with two, and accumulation
learn the same weights, and to resume needs no generator's state. Masks of raw 16-bit draws are also
several times faster than torch's own on a CPU.

Attention dropout that a model hands to scaled_dot_product_attention as a number (Llama, GPT-2,
BERT) is reached by `attend` in its place: see build.use_keyed_dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHARED_STREAM_KEY = (
    2**32 - 1
)  # stands for a sample's index in the key of masks that all samples share
PROBABILITY_LEVELS = (
    2**16
)  # p is rounded to a multiple of 1 / LEVELS; the scale uses what it was rounded to


@dataclass(frozen=True, slots=True)
class _SampleStreams:
    """One stream of randomness per sample, and how many rows of a batch each sample fills now."""

    streams: tuple[np.random.SFC64, ...]
    rows_per_sample: tuple[int, ...]
    device_seed_key: tuple[int, ...]  # the key of the one generator that other devices use
    device_generators: dict[torch.device, torch.Generator]
    row_lengths: tuple[int, ...] | None  # of padded rows, in tokens
    shared_stream: np.random.SFC64  # one stream for what all samples of a step have in common

    def keep_mask(self, like: Tensor, dropped_levels: int) -> Tensor:
        """(rows, ...) of 0 and 1, uint8: each element is kept with probability 1 - dropped /
        LEVELS.
        """
        if like.device.type != "cpu":
            return self._device_keep_mask(like, dropped_levels)
        width = like.numel() // max(1, len(like))
        if self.row_lengths is not None and like.dim() > 2:
            return self._padded_keep_mask(like.shape, dropped_levels)
        out = np.empty(like.numel(), np.bool_)
        end = 0
        for stream, rows in zip(self.streams, self.rows_per_sample, strict=True):
            start, end = end, end + rows * width
            draws = stream.random_raw(-(-(end - start) // 4)).view(np.uint16)[: end - start]
            np.greater_equal(draws, dropped_levels, out=out[start:end])
        return torch.from_numpy(out).view(torch.uint8).view(like.shape)

    def _padded_keep_mask(self, shape: torch.Size, dropped_levels: int) -> Tensor:
        """As `kept`, of padded (rows, t, d) or (rows, heads, t, t): a text draws what it would draw
        alone.
        """
        out = np.zeros(shape, np.bool_)
        for row, stream, length in zip(out, self.streams, self.row_lengths or (), strict=True):
            part = row[:length] if row.ndim == 2 else row[:, :length, :length]
            draws = stream.random_raw(-(-part.size // 4)).view(np.uint16)[: part.size]
            np.greater_equal(draws.reshape(part.shape), dropped_levels, out=part)
        return torch.from_numpy(out).view(torch.uint8)

    def _device_keep_mask(self, like: Tensor, dropped_levels: int) -> Tensor:
        """A kernel per row would be slow: here one generator serves the batch, and its layout
        matters.
        """
        generator = self.device_generators.get(like.device)
        if generator is None:
            (seed,) = np.random.SeedSequence(self.device_seed_key).generate_state(1, np.uint64)
            generator = self.device_generators[like.device] = torch.Generator(
                like.device
            ).manual_seed(int(seed))
        return torch.empty(like.shape, dtype=torch.uint8, device=like.device).bernoulli_(
            1 - dropped_levels / PROBABILITY_LEVELS, generator=generator
        )


_current_samples: ContextVar[_SampleStreams] = ContextVar("samples")


@contextmanager
def keyed_samples(
    seed: int, step: int, sample_indices: Sequence[int], row_lengths: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside, row b (dim 0) of every batch is sample indices[b] of this step; all numbers are >= 0.

    lengths: of rows that are padded on the right to one length t, in tensors (b, t, d) and (b,
    heads, t, t); masks then do not depend on how far a row is padded.

    Each sample's masks are consumed in the order of the calls, so that a model's dropouts differ.
    On other devices than the CPU masks are keyed by (seed, step, indices[0]): repeatable, but the
    layout of the batch then matters.
    """
    streams = tuple(
        np.random.SFC64(np.random.SeedSequence((seed, step, int(index))))
        for index in sample_indices
    )
    elsewhere = (seed, step, *map(int, sample_indices[:1]))
    padded = None if row_lengths is None else tuple(row_lengths)
    shared = np.random.SFC64(np.random.SeedSequence((seed, step, SHARED_STREAM_KEY)))
    token = _current_samples.set(
        _SampleStreams(streams, (1,) * len(streams), elsewhere, {}, padded, shared)
    )
    try:
        yield
    finally:
        _current_samples.reset(token)


@contextmanager
def gathered_positions(rows_per_sample: Sequence[int]) -> Iterator[None]:
    """Inside `samples`, where positions were gathered into (N, d): sample b fills rows[b]
    consecutive rows.

    For a head that sees only the positions that have a target. Raises ValueError if there are other
    samples than rows.
    """
    current = _current_samples.get(None)
    if current is None:
        raise RuntimeError(_NO_SAMPLES_MESSAGE)
    if len(rows_per_sample) != len(current.streams):
        raise ValueError(
            f"{len(rows_per_sample)} counts of rows for {len(current.streams)} samples"
        )
    token = _current_samples.set(replace(current, rows_per_sample=tuple(map(int, rows_per_sample))))
    try:
        yield
    finally:
        _current_samples.reset(token)


_NO_SAMPLES_MESSAGE = "keyed dropout in training mode must run inside `with samples(seed, step, indices)`, or after model.eval()"


class KeyedDropout(nn.Dropout):  # type: ignore[misc]
    """nn.Dropout (Srivastava et al. 2014) with the masks of `samples`; without parameters or
    buffers, as ever.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (rows, ...) -> the same shape. Raises RuntimeError outside `samples`, or if dim 0 is
        not its rows.
        """
        dropped = round(self.p * PROBABILITY_LEVELS)
        if not self.training or not dropped:
            return x
        current = _current_samples.get(None)
        if current is None:
            raise RuntimeError(_NO_SAMPLES_MESSAGE)
        if x.dim() == 0 or len(x) != sum(current.rows_per_sample):
            raise RuntimeError(
                f"dropout on {tuple(x.shape)}, but the samples at hand fill {sum(current.rows_per_sample)} rows"
            )
        kept: Tensor = _DropoutFunction.apply(
            x,
            current.keep_mask(x, dropped),
            0.0
            if dropped == PROBABILITY_LEVELS
            else PROBABILITY_LEVELS / (PROBABILITY_LEVELS - dropped),
        )
        return kept


class SharedDropout(nn.Dropout):  # type: ignore[misc]
    """Dropout of a tensor without a dimension of samples: one mask for all samples of a step.

    The mask depends on (seed, step) and on the order of the calls, so that micro-batches and
    processes agree on it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape -> the same shape. Raises RuntimeError outside `samples`."""
        dropped = round(self.p * PROBABILITY_LEVELS)
        if not self.training or not dropped:
            return x
        current = _current_samples.get(None)
        if current is None:
            raise RuntimeError(_NO_SAMPLES_MESSAGE)
        draws = current.shared_stream.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
        kept = torch.from_numpy((draws >= dropped).view(np.uint8)).view(x.shape).to(x.device)
        dropped_out: Tensor = _DropoutFunction.apply(
            x,
            kept,
            0.0
            if dropped == PROBABILITY_LEVELS
            else PROBABILITY_LEVELS / (PROBABILITY_LEVELS - dropped),
        )
        return dropped_out


class _DropoutFunction(torch.autograd.Function):  # type: ignore[misc]
    """x * kept * scale; backward keeps one byte per element, not four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep_mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep_mask)
        ctx.scale = scale
        return keep_mask.to(x.dtype).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return kept.to(grad.dtype).mul_(ctx.scale).mul_(grad), None, None


def keyed_dropout_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    p: float,
    scaling: float | None,
    causal: bool,
) -> Tensor:
    """Attention (b, heads, t, d) with keyed dropout on its probabilities, written out.

    mask: bool, True = may attend, or additive; with `causal` nothing attends to what comes after
    it.
    """
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = (
        query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    )
    if causal:
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~ones.tril(), -torch.inf)
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        )
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return KeyedDropout(p)(probabilities) @ value


def replace_dropout_modules(model: nn.Module) -> int:
    """Replace every nn.Dropout(p > 0) of the model, in place; returns how many. What is saved does
    not change.

    One that is marked `shared = True` sees a tensor without samples, e.g. a table of positions.
    """
    keyed: dict[nn.Module, KeyedDropout | SharedDropout] = {}
    for parent in list(model.modules()):
        for name, child in list(
            parent._modules.items()
        ):  # named_children() would skip a dropout's second name
            if type(child) is nn.Dropout and child.p > 0:
                kind = SharedDropout if getattr(child, "shared", False) else KeyedDropout
                twin = keyed.setdefault(child, kind(child.p))
                setattr(parent, name, twin.train(child.training))
    return len(keyed)
