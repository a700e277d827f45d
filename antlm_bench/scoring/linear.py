"""Linear layers with weights laid out in advance for oneDNN: the same products, without repacking at every call.

On CPUs the library's default path repacks a weight each time it is used and adds the bias in a pass of its own; here
neither the bias nor an activation that follows (`scoring.fused`) needs one. The operators are torch's, but not of its
documented interface (its inductor compiler uses them): where they are absent, or answer otherwise than the plain layer,
the plain layer stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):  # type: ignore[misc]
    """y = x W^T + b for inference on a CPU. Keeps the plain weight too: others look at it (tied embeddings, shapes)."""

    def __init__(self, plain: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), rows)
        self.activation: tuple[str, str] | None = None  # oneDNN's name and variant of one that follows

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """The layout is opaque and cannot be copied; a copy of the model starts from plain layers again."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = copy.deepcopy(self.weight, memo)
        plain.bias = copy.deepcopy(self.bias, memo)
        return plain.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x in any dtype: an output embedding may stay fp32 on a bf16 body."""
        x = x.to(self.weight.dtype)
        name, variant = self.activation or ("none", "")
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, name, [], variant)
        return y


def pack_linears(model: Any, rows: int, head_rows: int) -> int:
    """Replace the nn.Linear layers of a CPU model in place, tuned for batches of `rows`, the output embedding for
    `head_rows`; returns how many. A layer is replaced only if its packed form gives its own numbers on a trial input.
    """
    if not can_pack(model):
        return 0
    replaced, head = 0, model.get_output_embeddings()
    with torch.inference_mode():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and not parent.training:
                    try:
                        packed = PackedLinear(child, head_rows if child is head else rows)
                    except RuntimeError:  # this CPU has no such product: half precision without avx512_fp16
                        continue
                    x = torch.linspace(-1, 1, 3 * child.in_features).view(3, -1).to(child.weight.dtype)
                    if alike(child(x), packed, x):
                        setattr(parent, name, packed)
                        replaced += 1
    return replaced


def can_pack(model: nn.Module) -> bool:
    """Whether oneDNN's operators are there, for this model's device."""
    device, operators = next(model.parameters()).device, torch.ops.mkldnn
    present = all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and present


def alike(expected: Tensor, own: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a module says that of x, but for the rounding of its dtype. What does not run says nothing."""
    tolerance = 1e-5 if x.dtype == torch.float32 else 2e-2
    try:
        return bool(torch.allclose(expected, own(x), rtol=tolerance, atol=tolerance * float(expected.abs().max())))
    except RuntimeError:
        return False
