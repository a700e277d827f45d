"""Dropout whose random masks depend on the sample and not on the batch (keyed dropout).

A mask depends on the seed, the step, the sample and the dropout module, never on the other rows of
the batch. So the learned weights do not depend on how a step is split into micro-batches and
processes, and a resumed run needs no saved state of a random generator. On a CPU, masks from raw
16-bit draws are also several times faster than those of torch.

Llama, GPT-2 and BERT have no nn.Dropout in their attention: they pass its rate to
scaled_dot_product_attention. `keyed_dropout_attention` replaces that function (see
model_factory.use_keyed_dropout).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antlm_bench.scoring.devices import to_device

SHARED_STREAM_KEY = 2**32 - 1  # replaces the sample index in the key of the shared stream
PROBABILITY_LEVELS = 2**16  # the dropout rate is rounded to a multiple of 1 / 2**16


@dataclass(frozen=True, slots=True)
class _SampleStreams:
    """The random generators of the samples in a batch."""

    streams: tuple[np.random.SFC64, ...]
    """One generator per sample."""
    rows_per_sample: tuple[int, ...]
    """How many rows each sample has in the tensors that reach a dropout module."""
    device_seed_key: tuple[int, ...]
    """Seed of the generators for devices other than the CPU."""
    device_generators: dict[torch.device, torch.Generator]
    """One generator per such device, created at its first use."""
    row_lengths: tuple[int, ...] | None
    """Tokens per row without padding; None = no row is padded."""
    shared_stream: np.random.SFC64
    """Generator for `SharedDropout`."""

    def keep_mask(self, like: Tensor, dropped_levels: int) -> Tensor:
        """Return a uint8 mask with the shape of `like` (rows, ...): 1 = keep, 0 = drop.

        Each element is 1 with probability 1 - dropped_levels / PROBABILITY_LEVELS.
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
            np.greater_equal(_draw_uint16(stream, end - start), dropped_levels, out=out[start:end])
        return torch.from_numpy(out).view(torch.uint8).view(like.shape)

    def _padded_keep_mask(self, shape: torch.Size, dropped_levels: int) -> Tensor:
        """Return a `keep_mask` (rows, t, d) or (rows, heads, t, t); padding uses no draws."""
        out = np.zeros(shape, np.bool_)
        for row, stream, length in zip(out, self.streams, self.row_lengths or (), strict=True):
            unpadded = row[:length] if row.ndim == 2 else row[:, :length, :length]
            draws = _draw_uint16(stream, unpadded.size).reshape(unpadded.shape)
            np.greater_equal(draws, dropped_levels, out=unpadded)
        return torch.from_numpy(out).view(torch.uint8)

    def _device_keep_mask(self, like: Tensor, dropped_levels: int) -> Tensor:
        """Return a `keep_mask` from one generator for the whole batch.

        The mask depends on the batch, because one kernel launch per row would be slow.
        """
        generator = self.device_generators.get(like.device)
        if generator is None:
            (seed,) = np.random.SeedSequence(self.device_seed_key).generate_state(1, np.uint64)
            generator = torch.Generator(like.device).manual_seed(int(seed))
            self.device_generators[like.device] = generator
        return torch.empty(like.shape, dtype=torch.uint8, device=like.device).bernoulli_(
            1 - dropped_levels / PROBABILITY_LEVELS, generator=generator
        )


def _draw_uint16(stream: np.random.SFC64, count: int) -> NDArray[np.uint16]:
    """Draw `count` uniform 16-bit integers, four from each 64-bit draw."""
    draws: NDArray[np.uint64] = stream.random_raw(-(-count // 4))
    return draws.view(np.uint16)[:count]


_current_samples: ContextVar[_SampleStreams] = ContextVar("samples")


@contextmanager
def keyed_samples(
    seed: int, step: int, sample_indices: Sequence[int], row_lengths: Sequence[int] | None = None
) -> Iterator[None]:
    """Declare the samples of the batch that runs inside this context.

    sample_indices: row b (dim 0) of every tensor belongs to sample `sample_indices[b]`.
    row_lengths: number of tokens per row if rows are padded on the right, for tensors (b, t, d) and
    (b, heads, t, t); masks then do not depend on the padding. All numbers are >= 0.

    Each dropout module takes the next draws of a sample's generator, so their masks differ. On
    devices other than the CPU the key is (seed, step, sample_indices[0]): masks are reproducible,
    but depend on the batch.
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
    """Declare tensors (N, d) that hold only some positions, inside `keyed_samples`.

    An LM head runs only at positions with a target: sample b has rows_per_sample[b] consecutive
    rows. Raises ValueError if the number of samples differs.
    """
    current = _get_current_samples()
    if len(rows_per_sample) != len(current.streams):
        raise ValueError(
            f"rows_per_sample has {len(rows_per_sample)} entries for {len(current.streams)} samples"
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
    """nn.Dropout (Srivastava et al. 2014) with the masks of `keyed_samples`."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x (rows, ...).

        Raises RuntimeError outside `keyed_samples`, or if the samples have another number of rows.
        """
        dropped_levels = round(self.p * PROBABILITY_LEVELS)
        if not self.training or not dropped_levels:
            return x
        current = _get_current_samples()
        if x.dim() == 0 or len(x) != sum(current.rows_per_sample):
            raise RuntimeError(
                f"dropout on a tensor {tuple(x.shape)}, but the current samples have "
                f"{sum(current.rows_per_sample)} rows"
            )
        return _drop_out(x, current.keep_mask(x, dropped_levels), dropped_levels)


class SharedDropout(nn.Dropout):  # type: ignore[misc]
    """Dropout with one mask for all samples of a step, for tensors without a batch dimension.

    The mask depends on the seed, the step and the order of the calls only, so that all
    micro-batches and processes use the same mask.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of x, of any shape. Raises RuntimeError outside `keyed_samples`."""
        dropped_levels = round(self.p * PROBABILITY_LEVELS)
        if not self.training or not dropped_levels:
            return x
        draws = _draw_uint16(_get_current_samples().shared_stream, x.numel())
        keep_mask = torch.from_numpy((draws >= dropped_levels).view(np.uint8))
        return _drop_out(x, to_device(keep_mask.view(x.shape), x.device), dropped_levels)


def _drop_out(x: Tensor, keep_mask: Tensor, dropped_levels: int) -> Tensor:
    """Apply a mask, and divide by the (rounded) probability of keeping an element."""
    kept_levels = PROBABILITY_LEVELS - dropped_levels
    scale = PROBABILITY_LEVELS / kept_levels if kept_levels else 0.0
    output: Tensor = _DropoutFunction.apply(x, keep_mask, scale)
    return output


class _DropoutFunction(torch.autograd.Function):  # type: ignore[misc]
    """Compute x * keep_mask * scale. The backward pass stores only the mask (1 byte/element)."""

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
    """Return attention outputs (b, heads, t, d), with keyed dropout of attention probabilities.

    mask: bool (True = may attend) or additive. causal: no position attends to later positions.
    p: 0 = no dropout.
    """
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale) @ key.transpose(-1, -2)
    # Finite, so that a query that may attend to nothing gets no NaN.
    lowest = torch.finfo(scores.dtype).min / 4
    if causal:
        scores += scores.new_full(scores.shape[-2:], lowest).triu(1)
    if mask is not None and mask.dtype == torch.bool:
        scores += scores.new_zeros(mask.shape).masked_fill(~mask, lowest)
    elif mask is not None:
        scores += mask.to(scores.dtype).clamp(min=lowest)
    with torch.autocast(scores.device.type, enabled=False):
        # Autocast would run it in fp32. In bf16 it sums in fp32, too, and only rounds its results.
        probabilities = torch.softmax(scores, dim=-1)
    return KeyedDropout(p)(probabilities) @ value


def replace_dropout_modules(model: nn.Module) -> int:
    """Replace every nn.Dropout(p > 0) of a model in place; return the number of modules replaced.

    A dropout with the attribute `shared = True` becomes a SharedDropout (e.g. after position
    embeddings, which have no batch dimension). The state dict does not change.
    """
    replacements: dict[nn.Module, KeyedDropout | SharedDropout] = {}
    for parent in list(model.modules()):
        # named_children() skips a module that has a second name.
        for name, child in list(parent._modules.items()):
            if type(child) is nn.Dropout and child.p > 0:
                dropout_class = SharedDropout if getattr(child, "shared", False) else KeyedDropout
                replacement = replacements.setdefault(child, dropout_class(child.p))
                setattr(parent, name, replacement.train(child.training))
    return len(replacements)
