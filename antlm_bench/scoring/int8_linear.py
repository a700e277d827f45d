"""Linear layers of a CPU model in int8, for `--precision adaptive`.

Weights have one scale per output channel, inputs one per row. All else (residual stream, attention,
norms) stays in fp32, so that scores are about as exact as those of a model in bf16.

The oneDNN operators are part of torch but undocumented, like those of `cpu_kernels`. On a CPU
without int8 instructions (VNNI), int8 products are slower than bf16 products, so `int8_is_faster`
measures both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antlm_bench.scoring.cpu_kernels import PackedLinear

MAX_CODE = 127
ZERO_POINT = 128  # inputs are unsigned: oneDNN has no fast kernel for signed ones
MIN_PACKED_SHARE = 0.9  # least share of a model's matrices in PackedLinear layers for int8
MIN_SPEED = 1.5  # least speed of int8 products, relative to bf16 products, at which they are used
ACTIVATIONS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "gelu": lambda y, variant: functional.gelu(y, approximate=variant),
    "swish": lambda y, _variant: functional.silu(y, inplace=True),
}
"""oneDNN's name of an activation (`cpu_kernels.ONEDNN_ACTIVATIONS`) -> function of (outputs of the
layer, variant). It may change the outputs in place."""


class QuantizedInput:
    """The last input of some layers in int8. Layers that share an input quantize it once."""

    def __init__(self) -> None:
        self.is_kept = True
        """Whether the same tensor is quantized once; see `check_kept_inputs`."""
        self._source: Tensor | None = None
        self._quantized = (torch.empty(0), torch.empty(0))

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `quantize_rows` of the rows of x (..., k)."""
        if not self.is_kept or self._source is not x:
            self._quantized = quantize_rows(x.reshape(-1, x.shape[-1]).float())
            self._source = x  # held, so that no other tensor can be taken for it
        return self._quantized


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (m, k) in uint8 and scales (m, 1): x (m, k) is about (codes - 128) * scales."""
    largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
    largest.clamp_(min=torch.finfo(torch.float32).tiny * MAX_CODE)
    # Converting to int8 and flipping the sign bit is faster than converting to uint8.
    codes = (x * (MAX_CODE / largest)).round_().to(torch.int8)
    return codes.view(torch.uint8).bitwise_xor_(ZERO_POINT), largest.div_(MAX_CODE)


class Int8Linear(nn.Module):  # type: ignore[misc]
    """y = x W^T + b with int8 products, followed by an activation if there is one; y is fp32."""

    def __init__(
        self,
        plain: nn.Linear | PackedLinear,
        rows: int,
        shared_input: QuantizedInput,
        activation: tuple[str, str] | None = None,
    ) -> None:
        """Quantize a layer with fp32 weights.

        rows: number of input rows for which oneDNN chooses the memory format of the weights.
        shared_input: the same object for layers that may have the same input. activation: oneDNN's
        (name, variant), as in PackedLinear.
        """
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.activation = activation
        self.shared_input = shared_input
        weight = plain.weight.detach()
        scales = weight.abs().amax(1).clamp_(min=torch.finfo(torch.float32).tiny * MAX_CODE)
        self._scales = scales.div_(MAX_CODE)
        codes = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._zero_points = torch.zeros(len(codes), dtype=torch.int64)
        self._packed = torch.ops.onednn.qlinear_prepack(codes, [rows, codes.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., out_features) for x (..., in_features)."""
        codes, row_scales = self.shared_input.quantize(x)
        y = self.multiply(codes).float().mul_(row_scales)
        if self.bias is not None:
            y += self.bias
        if self.activation is not None:
            name, variant = self.activation
            y = ACTIVATIONS[name](y, variant)
        return y.view(*x.shape[:-1], self.out_features)

    def multiply(self, codes: Tensor) -> Tensor:
        """Return the products (m, out_features) in bf16 of codes (m, in_features), which still lack
        the scales of the rows.
        """
        # The kernel is fast only with outputs in bf16, and takes one scale for all rows: 1.
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, ZERO_POINT, self._packed, self._scales, self._zero_points, None,
            1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return products


def use_int8_linears(model: nn.Module, rows: int) -> int:
    """Replace the PackedLinear layers of a model by Int8Linear layers, in place.

    rows: as in Int8Linear. Return the number of replaced layers.
    """
    shared_input, num_replaced = QuantizedInput(), 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, Int8Linear(child, rows, shared_input, child.activation))
                num_replaced += 1
    return num_replaced


def check_kept_inputs(model: nn.Module, run: Callable[[], Tensor]) -> None:
    """Quantize the input of each Int8Linear anew if this changes what `run` returns.

    A model may change a tensor in place between two layers that read it. Inference mode counts no
    versions of a tensor, so only outputs show it.
    """
    inputs = [layer.shared_input for layer in model.modules() if isinstance(layer, Int8Linear)]
    output = run()
    for each in inputs:
        each.is_kept = False
    is_same = torch.equal(output, run())
    for each in inputs:
        each.is_kept = is_same


def applies_gelu(model: nn.Module) -> bool:
    """Return whether a PackedLinear layer of a model applies a GELU.

    Such models are not run in int8: the GELU cannot be part of the int8 product and takes about as
    long as it, so that a BERT of width 384 was not faster in int8 than in bf16.
    """
    layers = (module for module in model.modules() if isinstance(module, PackedLinear))
    return any((layer.activation or ("", ""))[0] == "gelu" for layer in layers)


def packs_matrices(model: Any) -> bool:
    """Return whether PackedLinear layers hold MIN_PACKED_SHARE of a model's matrices, embeddings
    and LM head left out.

    Other matrices (Conv1D in GPT-2, subclasses of Linear, experts) stay in fp32 in an int8 model,
    but are bf16 in a bf16 model: int8 took 2.5 times as long as bf16 in a Falcon and 2.1 times in a
    Mixtral.
    """
    sizes = {id(weight): weight.numel() for weight in model.parameters() if weight.dim() > 1}
    head = model.get_output_embeddings()
    for module in model.modules():
        if module is head or isinstance(module, nn.Embedding):
            sizes.pop(id(module.weight), None)
    packed = {id(layer.weight) for layer in model.modules() if isinstance(layer, PackedLinear)}
    num_packed = sum(size for key, size in sizes.items() if key in packed)
    return bool(num_packed >= MIN_PACKED_SHARE * sum(sizes.values()) > 0)


@cache
def int8_is_faster() -> bool:
    """Return whether int8 products are MIN_SPEED times as fast as bf16 products on this CPU.

    They are measured once per process. Only products are measured, because a busy machine changes
    their ratio least. The ratio is at least 1.9 with VNNI and below 1 without it, so that every
    process on a machine gets the same result. With AMX, the answer is False without a measurement:
    bf16 products are so fast there that quantizing inputs may cost more than int8 saves.
    """
    names = ("qlinear_prepack", "qlinear_pointwise")
    if not all(hasattr(torch.ops.onednn, name) for name in names) or _has_amx():
        return False
    try:
        # A few rows first: if oneDNN has only its reference kernel, many rows would take seconds.
        return _measure_speed(rows=16) > 0.1 and _measure_speed(rows=1024) >= MIN_SPEED
    except RuntimeError:  # an operator lacks these types, or has other arguments in this torch
        return False


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _measure_speed(rows: int, width: int = 512, repeats: int = 10) -> float:
    """Return the speed of int8 products relative to bf16 products; above 1 = int8 is faster."""
    x = torch.linspace(-1, 1, rows * width).view(rows, width)
    with torch.inference_mode():
        layer = Int8Linear(nn.Linear(width, width, bias=False), rows, QuantizedInput())
        bf16_layer = PackedLinear(nn.Linear(width, width, False, dtype=torch.bfloat16), rows)
        codes, bf16_x = quantize_rows(x)[0], x.bfloat16()
        # In turns, so that other processes on the machine slow down both alike.
        seconds = [
            (
                _measure_seconds(lambda: layer.multiply(codes)),
                _measure_seconds(lambda: bf16_layer(bf16_x)),
            )
            for _ in range(repeats)
        ]
    int8_seconds = min(int8 for int8, _ in seconds)
    return min(bf16 for _, bf16 in seconds) / int8_seconds


def _measure_seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
