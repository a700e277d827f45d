"""Dropout whose masks belong to a sample, not to a batch.

A mask depends on (seed, step, sample) and on which dropout of the model draws it, never on the
other rows of the batch. So one process with four rows, two processes with two, and accumulation
learn the same weights, and resuming needs no generator's state. Masks from raw 16-bit draws are
also several times faster than torch's own on a CPU.

Some models hand attention dropout to scaled_dot_product_attention as a number (Llama, GPT-2, BERT):
`keyed_dropout_attention` replaces it there, see model_factory.use_keyed_dropout.
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

SHARED_STREAM_KEY = 2**32 - 1  # in place of a sample's index: the masks that all samples share
PROBABILITY_LEVELS = 2**16  # p is rounded to a multiple of 1 / PROBABILITY_LEVELS


@dataclass(frozen=True, slots=True)
class _SampleStreams:
    """The streams of randomness of the samples in a batch."""

    streams: tuple[np.random.SFC64, ...]
    """One per sample."""
    rows_per_sample: tuple[int, ...]
    """How many rows of the current tensors each sample fills."""
    device_seed_key: tuple[int, ...]
    """Key of the one generator that devices other than the CPU use."""
    device_generators: dict[torch.device, torch.Generator]
    row_lengths: tuple[int, ...] | None
    """Tokens of rows that are padded."""
    shared_stream: np.random.SFC64
    """For tensors that all samples of a step share."""

    def keep_mask(self, like: Tensor, dropped_levels: int) -> Tensor:
        """Return a mask of 0 and 1, uint8, in the shape of `like` (rows, ...).

        Each element is kept with probability 1 - dropped_levels / PROBABILITY_LEVELS.
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
        """As `keep_mask` for padded (rows, t, d) or (rows, heads, t, t); padding draws nothing."""
        out = np.zeros(shape, np.bool_)
        for row, stream, length in zip(out, self.streams, self.row_lengths or (), strict=True):
            part = row[:length] if row.ndim == 2 else row[:, :length, :length]
            draws = stream.random_raw(-(-part.size // 4)).view(np.uint16)[: part.size]
            np.greater_equal(draws.reshape(part.shape), dropped_levels, out=part)
        return torch.from_numpy(out).view(torch.uint8)

    def _device_keep_mask(self, like: Tensor, dropped_levels: int) -> Tensor:
        """Draw from one generator for the whole batch, so its layout matters: one kernel per row
        would be slow.
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
    """Set the samples of a batch: inside, row b (dim 0) of every tensor is sample
    `sample_indices[b]`.

    All numbers are >= 0. row_lengths: of rows that are padded on the right to one length t, in
    tensors (b, t, d) and (b, heads, t, t); masks then do not depend on the padding.

    Each sample's masks are drawn in the order of the calls, so the dropouts of a model differ. On
    devices other than the CPU, masks are keyed by (seed, step, sample_indices[0]): repeatable, but
    dependent on the layout of the batch.
    """
    streams = tuple(
        np.random.SFC64(np.random.SeedSequence((seed, step, int(index))))
        for index in sample_indices
    )
    shared = np.random.SFC64(np.random.SeedSequence((seed, step, SHARED_STREAM_KEY)))
    samples = _SampleStreams(
        streams,
        rows_per_sample=(1,) * len(streams),
        device_seed_key=(seed, step, *map(int, sample_indices[:1])),
        device_generators={},
        row_lengths=None if row_lengths is None else tuple(row_lengths),
        shared_stream=shared,
    )
    token = _current_samples.set(samples)
    try:
        yield
    finally:
        _current_samples.reset(token)


@contextmanager
def gathered_positions(rows_per_sample: Sequence[int]) -> Iterator[None]:
    """Set the rows per sample of tensors (N, d) with gathered positions, inside `keyed_samples`.

    Sample b fills rows_per_sample[b] consecutive rows: a head computes only positions with a
    target. Raises ValueError if the number of samples differs.
    """
    current = _get_current_samples()
    if len(rows_per_sample) != len(current.streams):
        raise ValueError(
            f"{len(rows_per_sample)} counts of rows for {len(current.streams)} samples"
        )
    token = _current_samples.set(replace(current, rows_per_sample=tuple(map(int, rows_per_sample))))
    try:
        yield
    finally:
        _current_samples.reset(token)


def _get_current_samples() -> _SampleStreams:
    current = _current_samples.get(None)
    if current is None:
        raise RuntimeError(
            "keyed dropout in training mode must run inside "
            "`with keyed_samples(seed, step, indices)`, or after model.eval()"
        )
    return current


class KeyedDropout(nn.Dropout):  # type: ignore[misc]
    """nn.Dropout (Srivastava et al. 2014) with the masks of `keyed_samples`.

    It has no parameters or buffers, as the original.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop out elements of x (rows, ...).

        Raises RuntimeError outside `keyed_samples`, or if dim 0 is not its rows.
        """
        dropped_levels = round(self.p * PROBABILITY_LEVELS)
        if not self.training or not dropped_levels:
            return x
        current = _get_current_samples()
        if x.dim() == 0 or len(x) != sum(current.rows_per_sample):
            raise RuntimeError(
                f"dropout on {tuple(x.shape)}, but the samples at hand fill "
                f"{sum(current.rows_per_sample)} rows"
            )
        return _drop_out(x, current.keep_mask(x, dropped_levels), dropped_levels)


class SharedDropout(nn.Dropout):  # type: ignore[misc]
    """Dropout of a tensor without a dimension of samples: one mask for all samples of a step.

    The mask depends on (seed, step) and on the order of the calls, so that micro-batches and
    processes agree on it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop out elements of x, of any shape. Raises RuntimeError outside `keyed_samples`."""
        dropped_levels = round(self.p * PROBABILITY_LEVELS)
        if not self.training or not dropped_levels:
            return x
        stream = _get_current_samples().shared_stream
        draws = stream.random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
        kept = torch.from_numpy((draws >= dropped_levels).view(np.uint8))
        return _drop_out(x, kept.view(x.shape).to(x.device), dropped_levels)


def _drop_out(x: Tensor, keep_mask: Tensor, dropped_levels: int) -> Tensor:
    """Apply a mask, and scale what is kept by the inverse of the rounded probability."""
    kept_levels = PROBABILITY_LEVELS - dropped_levels
    scale = PROBABILITY_LEVELS / kept_levels if kept_levels else 0.0
    output: Tensor = _DropoutFunction.apply(x, keep_mask, scale)
    return output


class _DropoutFunction(torch.autograd.Function):  # type: ignore[misc]
    """x * keep_mask * scale; backward keeps one byte per element, not four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep_mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep_mask)
        ctx.scale = scale
        return keep_mask.to(x.dtype).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (keep_mask,) = ctx.saved_tensors
        return keep_mask.to(grad.dtype).mul_(ctx.scale).mul_(grad), None, None


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
    """Compute attention (b, heads, t, d) with keyed dropout on its probabilities.

    mask: bool, True = may attend, or additive. causal: no position attends to later ones.
    """
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scale
    if causal:
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~ones.tril(), -torch.inf)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return KeyedDropout(p)(probabilities) @ value


def replace_dropout_modules(model: nn.Module) -> int:
    """Replace every nn.Dropout(p > 0) of the model in place; return how many.

    Saved weights do not change. A dropout with `shared = True` acts on a tensor without samples,
    e.g. embeddings of positions.
    """
    replacements: dict[nn.Module, KeyedDropout | SharedDropout] = {}
    for parent in list(model.modules()):
        # named_children() would skip the second name of a dropout.
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Dropout and child.p > 0:
                kind = SharedDropout if getattr(child, "shared", False) else KeyedDropout
                replacement = replacements.setdefault(child, kind(child.p))
                setattr(parent, name, replacement.train(child.training))
    return len(replacements)
