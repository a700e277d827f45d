"""Compute the loss of a language model without storing all logits.

The vocabulary of a small model is some thirty times as large as its hidden size, so the logits and
their gradients (N, V) would need most of a step's memory. Here the LM head runs on slices of the N
rows. The forward pass also computes the gradients of each slice, adds them to the gradients of the
inputs, and frees the slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from antlm_bench.errors import DeclarationError
from antlm_bench.printable import format_count

# On a CPU, fewer rows make matrix products slow, and more rows do not fit the caches (measured for
# V of 2,000 to 16,000). A GPU is faster with fewer, larger products.
SLICE_ROWS_BY_DEVICE = {"cpu": 512}
DEFAULT_SLICE_ROWS = 8192


class LazyLogits(NamedTuple):
    """The inputs of logits: hidden @ weight.T + bias."""

    hidden: Tensor
    """(N, d)."""
    weight: Tensor
    """(V, d)."""
    bias: Tensor | None
    """(V,)."""

    def to(self, dtype: torch.dtype) -> LazyLogits:
        bias = None if self.bias is None else self.bias.to(dtype)
        return LazyLogits(self.hidden.to(dtype), self.weight.to(dtype), bias)

    def compute(self, rows: slice, out: Tensor) -> Tensor:
        """Write the logits of some rows to `out` (rows, V). The product has the dtype of hidden."""
        hidden, weight = self.hidden[rows], self.weight.t()
        if out.dtype == hidden.dtype:
            torch.mm(hidden, weight, out=out)
        else:
            out.copy_(hidden @ weight)
        return out if self.bias is None else out.add_(self.bias)


@dataclass(frozen=True, slots=True)
class DistillationTargets:
    """The teachers' logits for distillation (Hinton et al. 2015, arXiv 1503.02531).

    The logits of several teachers are averaged (BabyLlama, arXiv 2308.02019).
    """

    teachers: Sequence[LazyLogits]
    """Logits at the student's N rows, in any (low) precision. They get no gradients."""
    temperature: float = 2.0
    """Divides the logits of teachers and student."""
    alpha: float = 0.5
    """Weight of the cross-entropy; the divergence has weight 1 - alpha."""
    divergence_weight: float = 1.0
    """Additional factor of the divergence, for a caller that divides the whole loss by the number
    of targets but wants the divergence divided by another number.
    """


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
    """Return the summed loss of N rows, and their summed cross-entropy (detached, for the log).

    The loss of a row is alpha CE + (1 - alpha) T^2 w KL(teachers || student) + z_loss lse^2:

    - CE = lse - logit[target] in nats; lse is the log-sum-exp of the row's logits.
    - KL is summed over the vocabulary. T^2 makes the size of its gradient independent of T (Hinton
      et al. 2015, section 2.1). w is `distillation.divergence_weight`. Without distillation there
      is no KL, and alpha is 1.
    - z_loss keeps lse near 0 (PaLM, arXiv 2204.02311, section 5; 1e-4 there and in GPT-BERT).

    hidden: (N, d). weight: (V, d) and bias: (V,) of the LM head. targets: (N,) ids; negative = no
    target, then the row's loss is the KL only. slice_rows: number of rows whose logits are in
    memory at a time.

    Both results are scalars in fp32 (fp64 for fp64 inputs). Under autocast, matrix products run in
    its precision and everything else in fp32. The loss supports one backward pass. Raises
    DeclarationError if a teacher has another vocabulary size.
    """
    for number, teacher in enumerate(distillation.teachers if distillation else (), 1):
        if len(teacher.weight) != len(weight):
            raise DeclarationError(
                f"teacher {number} has a vocabulary of "
                f"{format_count(len(teacher.weight), 'token')}, the student of {len(weight):,}",
                location="distil.teachers",
                hint="distil from teachers that were trained with the student's tokenizer",
            )
    device_type = hidden.device.type
    product_dtype = hidden.dtype
    if torch.is_autocast_enabled(device_type):
        product_dtype = torch.get_autocast_dtype(device_type)
    slice_rows = slice_rows or SLICE_ROWS_BY_DEVICE.get(device_type, DEFAULT_SLICE_ROWS)
    # Read here, because it is always False inside the forward of a torch.autograd.Function.
    needs_grad = torch.is_grad_enabled()
    settings = _LossSettings(z_loss, distillation, slice_rows, product_dtype, needs_grad)
    with torch.autocast(device_type, enabled=False):
        loss, entropy = _SlicedCrossEntropy.apply(hidden, weight, bias, targets, settings)
    return loss, entropy


@dataclass(frozen=True, slots=True)
class _LossSettings:
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
        head = LazyLogits(hidden, weight, bias).to(settings.product_dtype)
        distillation = settings.distillation
        sum_dtype = torch.promote_types(hidden.dtype, torch.float32)
        inputs = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        gradients = [
            torch.zeros_like(tensor, dtype=sum_dtype) if settings.needs_grad and needed else None
            for tensor, needed in inputs
        ]
        losses, entropies = hidden.new_zeros((2, len(hidden)), dtype=sum_dtype)
        # All slices reuse the same buffers: on a CPU fresh memory pages cost more than the sums.
        num_buffers = 4 if distillation else 1
        max_rows = min(settings.slice_rows, len(hidden))
        buffers = hidden.new_empty((num_buffers, max_rows, len(weight)), dtype=sum_dtype)

        for start in range(0, len(hidden), settings.slice_rows):
            rows = slice(start, min(start + settings.slice_rows, len(hidden)))
            logits, *work_buffers = buffers[:, : rows.stop - start]
            head.compute(rows, out=logits)
            if distillation:
                losses[rows] = _distillation_with_grad(distillation, rows, logits, *work_buffers)
            alpha = distillation.alpha if distillation else 1.0
            entropies[rows], target_losses = _cross_entropy_with_grad(
                logits, targets[rows], alpha, settings.z_loss
            )
            losses[rows] += target_losses
            if distillation:
                logits.add_(work_buffers[0])  # now the gradient of both losses
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
                "sliced_cross_entropy supports one backward pass, "
                "because it scales its gradients in place"
            )
        hidden_dtype, weight_dtype = ctx.dtypes
        dtypes = (hidden_dtype, weight_dtype, weight_dtype)
        input_grads = [
            None if gradient is None else gradient.mul_(grad).to(dtype)
            for gradient, dtype in zip(ctx.gradients, dtypes, strict=True)
        ]
        ctx.gradients = None
        return *input_grads, None, None


def _cross_entropy_with_grad(
    logits: Tensor, targets: Tensor, alpha: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return (CE, alpha CE + z_loss lse^2) of each row.

    Overwrites `logits` (n, V) with the gradient of the second result. d CE / d logits = softmax -
    onehot, and d lse / d logits = softmax. Results and gradients are 0 if the target is negative.
    """
    index = targets.clamp(min=0)[:, None]
    has_target = (targets >= 0).to(logits.dtype)[:, None]
    target_logits, largest = logits.gather(1, index), logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    lse = largest + total.log()
    logits.mul_((alpha + 2 * z_loss * lse) * has_target / total)
    logits.scatter_add_(1, index, -alpha * has_target)
    entropy = (lse - target_logits) * has_target
    return entropy[:, 0], (alpha * entropy + z_loss * lse**2 * has_target)[:, 0]


def _distillation_with_grad(
    distillation: DistillationTargets,
    rows: slice,
    logits: Tensor,
    grad_buffer: Tensor,
    teacher_buffer: Tensor,
    scratch_buffer: Tensor,
) -> Tensor:
    """Return (1 - alpha) T^2 w KL of each row, and write its gradient to `grad_buffer`.

    d KL / d logits = (softmax(logits / T) - teachers' softmax) / T. All tensors are (n, V); the
    other two buffers are overwritten, too.
    """
    temperature = distillation.temperature
    weight = (1 - distillation.alpha) * distillation.divergence_weight
    first, *others = distillation.teachers
    first.compute(rows, out=teacher_buffer)
    for other in others:
        teacher_buffer.add_(other.compute(rows, out=scratch_buffer))
    teacher_buffer.div_(temperature * len(distillation.teachers))
    torch.log_softmax(teacher_buffer, 1, out=teacher_buffer)
    torch.log_softmax(torch.div(logits, temperature, out=grad_buffer), 1, out=grad_buffer)
    teacher_probabilities = torch.exp(teacher_buffer, out=scratch_buffer)
    divergence = teacher_buffer.sub_(grad_buffer).mul_(teacher_probabilities).sum(1)
    grad_buffer.exp_().sub_(teacher_probabilities).mul_(weight * temperature)
    return divergence.mul_(weight * temperature**2)


def _accumulate_gradients(
    gradients: Sequence[Tensor | None], lazy_logits: LazyLogits, rows: slice, logits_grad: Tensor
) -> None:
    """Add the gradients of one slice to those of hidden, weight and bias.

    logits_grad: (n, V), the gradient with respect to the slice's logits.
    """
    hidden, weight, bias = gradients
    if hidden is not None:
        hidden[rows] = logits_grad @ lazy_logits.weight
    if weight is not None and weight.dtype == logits_grad.dtype:
        weight.addmm_(logits_grad.t(), lazy_logits.hidden[rows])
    elif weight is not None:
        # The products are in low precision, their sum is in fp32.
        weight.add_(logits_grad.t() @ lazy_logits.hidden[rows])
    if bias is not None:
        bias.add_(logits_grad.sum(0, dtype=bias.dtype))
