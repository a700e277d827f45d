"""The loss of a language model, without ever holding its logits.

A vocabulary is some thirty times as wide as a small model, so logits and their gradients, (N, V)
each, are most of a step's memory. Here rows go through the head in slices, and the forward pass
computes each slice's gradients; only gradients of the shapes of the inputs outlive the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from antlm_bench.errors import DeclarationError

# Rows at a time. On a CPU fewer make matrix products slow and more leave the caches (measured: V of
# 2,000 to 16,000); a GPU wants fewer, larger products.
SLICE_ROWS_BY_DEVICE = {"cpu": 512}
DEFAULT_SLICE_ROWS = 8192


class LazyLogits(NamedTuple):
    """Logits before they are computed: hidden (N, d) times weight (V, d), plus bias (V,) or
    nothing.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def to(self, dtype: torch.dtype) -> LazyLogits:
        bias = None if self.bias is None else self.bias.to(dtype)
        return LazyLogits(self.hidden.to(dtype), self.weight.to(dtype), bias)

    def compute(self, rows: slice, out: Tensor) -> Tensor:
        """Those rows' logits, computed in the head's own dtype, written into `out` (rows, V)."""
        hidden, weight = self.hidden[rows], self.weight.t()
        if out.dtype == hidden.dtype:
            torch.mm(hidden, weight, out=out)
        else:
            out.copy_(hidden @ weight)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True, slots=True)
class DistillationTargets:
    """Distillation (Hinton et al. 2015, arXiv 1503.02531) from averaged teachers (BabyLlama, arXiv
    2308.02019).

    teachers: one Head each, its hidden states at the student's N rows, in any (low) precision;
    their logits are averaged, never differentiated. temperature: T of teachers and student. alpha:
    the share of the hard targets. weight: a factor of the divergence, for a caller that divides it
    by another number than the cross-entropy.
    """

    teachers: Sequence[LazyLogits]
    temperature: float = 2.0
    alpha: float = 0.5
    divergence_weight: float = 1.0


def sliced_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    distillation: DistillationTargets | None = None,
    slice_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over N rows of alpha CE + (1 - alpha) T^2 w KL(teachers || student) + z_loss lse^2;
    beside it the sum of CE.

    hidden: (N, d). weight: (V, d) and bias: (V,), the head. targets: (N,) ids, or negative where a
    row has no target: such a row has neither CE nor z_loss, only the teachers' divergence. w is
    `teaching.weight`. CE = lse - logit[target] in nats, lse = log sum exp of a row's logits;
    without `teaching` alpha is 1. z_loss keeps lse near 0 (PaLM, arXiv 2204.02311, section 5; 1e-4
    there and in GPT-BERT). KL is summed over the vocabulary; T^2 keeps the size of its gradient
    (Hinton et al. 2015, section 2.1). slice_rows: how many rows' logits live at a time.

    Returns two scalars in fp32 (fp64 for fp64 inputs): the loss, and the cross-entropy for the log,
    detached. Matrix products run in autocast's precision where it is on, all else in fp32. The loss
    can be differentiated once. Raises DeclarationError if a teacher has another vocabulary.
    """
    for number, teacher in enumerate(distillation.teachers if distillation else ()):
        if len(teacher.weight) != len(weight):
            raise DeclarationError(
                f"teacher {number + 1} has {len(teacher.weight)} words, the student {len(weight)}",
                location="distil.teachers",
                hint="distil from teachers that were trained with the student's tokenizer",
            )
    kind = hidden.device.type
    product_dtype = (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    )
    rows = slice_rows or SLICE_ROWS_BY_DEVICE.get(kind, DEFAULT_SLICE_ROWS)
    needs_grad = torch.is_grad_enabled()  # inside a Function's forward it never is
    with torch.autocast(kind, enabled=False):
        loss, entropy = _SlicedCrossEntropy.apply(
            hidden,
            weight,
            bias,
            targets,
            _LossSettings(z_loss, distillation, rows, product_dtype, needs_grad),
        )
    return loss, entropy


@dataclass(frozen=True, slots=True)
class _LossSettings:
    """What is summed, over how many rows at a time, in which dtype the products run, whether
    gradients are due.
    """

    z_loss: float
    distillation: DistillationTargets | None
    slice_rows: int
    product_dtype: torch.dtype
    needs_grad: bool


class _SlicedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: _LossSettings,
    ) -> tuple[Tensor, Tensor]:
        head, teaching = (
            LazyLogits(hidden, weight, bias).to(settings.product_dtype),
            settings.distillation,
        )
        sum_dtype = torch.promote_types(hidden.dtype, torch.float32)
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        gradients = [
            torch.zeros_like(t, dtype=sum_dtype) if settings.needs_grad and need else None
            for t, need in wanted
        ]
        losses, entropies = hidden.new_zeros((2, len(hidden)), dtype=sum_dtype)
        # The same memory for every slice: on a CPU fresh pages cost more than the arithmetic on
        # them.
        logit_buffers = hidden.new_empty(
            (4 if teaching else 1, min(settings.slice_rows, len(hidden)), len(weight)),
            dtype=sum_dtype,
        )

        for start in range(0, len(hidden), settings.slice_rows):
            rows = slice(start, min(start + settings.slice_rows, len(hidden)))
            logits, *spare = logit_buffers[:, : rows.stop - start]
            head.compute(rows, out=logits)
            if teaching:
                losses[rows] = _distillation_with_grad(teaching, rows, logits, *spare)
            entropies[rows], hard = _cross_entropy_with_grad(
                logits, targets[rows], teaching.alpha if teaching else 1.0, settings.z_loss
            )
            losses[rows] += hard
            if teaching:
                logits.add_(spare[0])
            if settings.needs_grad:
                _accumulate_gradients(gradients, head, rows, logits.to(settings.product_dtype))

        entropy = entropies.sum()
        ctx.gradients, ctx.dtypes = gradients, (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(entropy)
        return losses.sum(), entropy

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "sliced_cross_entropy can be differentiated once: its gradients were scaled in place"
            )
        scaled, ctx.gradients = [None if g is None else g.mul_(grad) for g in ctx.gradients], None
        hidden, weight, bias = scaled
        state, table = ctx.dtypes
        return _cast(hidden, state), _cast(weight, table), _cast(bias, table), None, None


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _cross_entropy_with_grad(
    logits: Tensor, targets: Tensor, alpha: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """(CE, alpha CE + z_loss lse^2) of each row; `logits` (n, V) become the gradient of the second.

    d CE / d logits = softmax - onehot, and d lse / d logits = softmax. Both are 0 where the target
    is negative.
    """
    at = targets.clamp(min=0)[:, None]
    asked = (targets >= 0).to(logits.dtype)[:, None]
    right, top = logits.gather(1, at), logits.amax(1, keepdim=True)
    total = logits.sub_(top).exp_().sum(1, keepdim=True)
    lse = top + total.log()
    logits.mul_((alpha + 2 * z_loss * lse) * asked / total).scatter_add_(1, at, -alpha * asked)
    entropy = (lse - right) * asked
    return entropy[:, 0], (alpha * entropy + z_loss * lse**2 * asked)[:, 0]


def _distillation_with_grad(
    distillation: DistillationTargets,
    rows: slice,
    logits: Tensor,
    grad_buffer: Tensor,
    teacher_buffer: Tensor,
    scratch_buffer: Tensor,
) -> Tensor:
    """(1 - alpha) T^2 w KL of each row; its gradient in `logits` (n, V), which stay, is left in
    `soft`.

    d KL / d logits = (softmax(logits / T) - teachers' softmax) / T.
    """
    temperature, share = (
        distillation.temperature,
        (1 - distillation.alpha) * distillation.divergence_weight,
    )
    first, *others = distillation.teachers
    first.compute(rows, out=teacher_buffer)
    for other in others:
        teacher_buffer.add_(other.compute(rows, out=scratch_buffer))
    torch.log_softmax(
        teacher_buffer.div_(temperature * len(distillation.teachers)), 1, out=teacher_buffer
    )
    torch.log_softmax(torch.div(logits, temperature, out=grad_buffer), 1, out=grad_buffer)
    taught = torch.exp(teacher_buffer, out=scratch_buffer)
    divergence = teacher_buffer.sub_(grad_buffer).mul_(taught).sum(1)
    grad_buffer.exp_().sub_(taught).mul_(share * temperature)
    return divergence.mul_(share * temperature**2)


def _accumulate_gradients(
    gradients: Sequence[Tensor | None], lazy_logits: LazyLogits, rows: slice, logits_grad: Tensor
) -> None:
    """Add one slice to the gradients of hidden, weight and bias; `logits_grad` (n, V) is the
    gradient of its logits.
    """
    hidden, weight, bias = gradients
    if hidden is not None:
        hidden[rows] = logits_grad @ lazy_logits.weight
    if weight is not None and weight.dtype == logits_grad.dtype:
        weight.addmm_(logits_grad.t(), lazy_logits.hidden[rows])
    elif weight is not None:
        weight.add_(
            logits_grad.t() @ lazy_logits.hidden[rows]
        )  # products in low precision, their sum in fp32
    if bias is not None:
        bias.add_(logits_grad.sum(0, dtype=bias.dtype))
