"""Faster layers for models on a CPU, with the outputs of the plain layers.

- `pack_linears` stores the weights of linear layers in oneDNN's format. By default, torch converts
  a weight each time it is used, and adds the bias in a separate pass.
- `fuse_layers` lets a packed linear layer apply the activation while its output is in cache, and
  computes RMSNorm in fewer passes over memory.
- `RotaryPatch` computes rotary embeddings in fewer passes over memory.

Architectures are not listed: each replacement is tested on the model's own layers, and a layer is
only replaced if the outputs match. The oneDNN operators belong to torch but are undocumented (its
inductor compiler uses them); if they are missing, nothing is packed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

ApplyRotary = Callable[..., tuple[Tensor, Tensor]]
ROTARY_FUNCTION_NAME = "apply_rotary_pos_emb"  # in each of transformers' model files
# oneDNN's (name, variant) of an activation -> the activation.
ONEDNN_ACTIVATIONS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("gelu", "none"): functional.gelu,
    ("gelu", "tanh"): lambda x: functional.gelu(x, approximate="tanh"),
    ("swish", ""): functional.silu,
}


# ---- linear layers -------------------------------------------------------------------------------


class PackedLinear(nn.Module):  # type: ignore[misc]
    """y = x W^T + b for inference on a CPU, followed by an activation if `activation` is set.

    The plain weight is kept, too, because tied embeddings use it.
    """

    def __init__(self, plain: nn.Linear, rows: int) -> None:
        """Pack the weight of a plain layer. rows: batch size for which oneDNN tunes the format."""
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), rows)
        self.activation: tuple[str, str] | None = None
        """oneDNN's (name, variant) of the activation that the layer applies to its output."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """Return a plain layer, because packed weights cannot be copied."""
        plain = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        plain.weight = copy.deepcopy(self.weight, memo)
        plain.bias = copy.deepcopy(self.bias, memo)
        return plain.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (..., out_features) for x (..., in_features) of any dtype."""
        x = x.to(self.weight.dtype)  # differs if only the LM head is fp32
        name, variant = self.activation or ("none", "")
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, name, [], variant
        )
        return y


def pack_linears(model: Any, rows: int, head_rows: int) -> int:
    """Replace the nn.Linear layers of a CPU model by packed ones in place, if outputs match.

    rows, head_rows: batch sizes for which layers and the output embedding are tuned. Returns the
    number of replaced layers.
    """
    if not can_pack_linears(model):
        return 0
    num_replaced, head = 0, model.get_output_embeddings()
    with torch.inference_mode():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is not nn.Linear or parent.training:
                    continue
                try:
                    packed = PackedLinear(child, head_rows if child is head else rows)
                except RuntimeError:  # oneDNN lacks it: half precision without avx512_fp16
                    continue
                x = torch.linspace(-1, 1, 3 * child.in_features).view(3, -1)
                x = x.to(child.weight.dtype)
                if outputs_match(child(x), packed, x):
                    setattr(parent, name, packed)
                    num_replaced += 1
    return num_replaced


def can_pack_linears(model: nn.Module) -> bool:
    """Return whether the model is on a CPU and torch has oneDNN's operators."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    has_operators = all(hasattr(torch.ops.mkldnn, name) for name in names)
    on_cpu = next(model.parameters()).device.type == "cpu"
    return on_cpu and torch.backends.mkldnn.is_available() and has_operators


def outputs_match(expected: Tensor, module: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether a module maps x to `expected`, up to rounding; False if it does not run."""
    tolerance = 2e-2 if x.dtype in (torch.float16, torch.bfloat16) else 1e-5
    atol = tolerance * float(expected.abs().max())
    try:
        return bool(torch.allclose(expected, module(x), rtol=tolerance, atol=atol))
    except RuntimeError:
        return False


# ---- activations and norms -----------------------------------------------------------------------


class FusedActivation(nn.Module):  # type: ignore[misc]
    """The identity. It replaces an activation that the preceding PackedLinear applies."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """Return the plain activation, because a copy of the PackedLinear is a plain layer."""
        return copy.deepcopy(self.plain, memo)

    def forward(self, x: Tensor) -> Tensor:
        return x


class FusedRMSNorm(nn.Module):  # type: ignore[misc]
    """y = w x / sqrt(mean(x^2) + eps), with the mean in fp32 (Zhang & Sennrich 2019, arXiv
    1910.07467).
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _RMSNormFunction.apply(x, self.weight, self.eps))


class _RMSNormFunction(torch.autograd.Function):  # type: ignore[misc]
    """RMSNorm and its gradients for an output gradient g, with r = 1 / sqrt(mean(x^2) + eps):

    y = w x r, dw = sum(g x r), dx = r (g w) - (r^3 / d) sum(g w x) x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return x.mul(scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (gradient * x).flatten(0, -2).mT @ scale.flatten().to(x.dtype)
        weighted = gradient * weight
        factor = (weighted * x).sum(-1, keepdim=True).mul_(scale**3).div_(-x.shape[-1])
        return weighted.mul_(scale).addcmul_(x, factor.to(x.dtype)), weight_gradient, None


def fuse_layers(model: nn.Module) -> int:
    """Replace RMSNorms, and activations after packed layers, of a CPU model in place.

    Returns the number of replaced layers. Without packed layers (in training), only norms are
    replaced.
    """
    if next(model.parameters()).device.type != "cpu":
        return 0
    with torch.no_grad():
        return sum(
            _replace_norms(parent) + _fuse_activations(parent) for parent in list(model.modules())
        )


def _replace_norms(parent: nn.Module) -> int:
    num_replaced = 0
    for name, child in list(parent.named_children()):
        eps = getattr(child, "variance_epsilon", getattr(child, "eps", None))
        weight = getattr(child, "weight", None)
        if (
            type(child).__name__.endswith("RMSNorm")
            and isinstance(eps, float)
            and isinstance(weight, nn.Parameter)
        ):
            fused = FusedRMSNorm(weight, eps)
            x = _trial_input(weight.shape[-1], weight)
            plain_output = _try_forward(child, x)
            if plain_output is not None and outputs_match(plain_output, fused, x):
                setattr(parent, name, fused)
                num_replaced += 1
    return num_replaced


def _fuse_activations(parent: nn.Module) -> int:
    """Let packed linear layers apply the activations that follow them; return how many they apply.

    parent: a block whose forward takes one tensor. Each packed layer of the block is tried as the
    one before the activation.
    """
    children = dict(parent.named_children())
    linears = [child for child in children.values() if isinstance(child, PackedLinear)]
    if not linears:
        return 0
    num_replaced = 0
    for name, activation in children.items():
        if [*activation.parameters(), *activation.children()]:
            continue
        onednn_name = _match_activation(activation)
        if onednn_name is None:
            continue
        for linear in linears:
            x = _trial_input(linear.in_features, linear.weight)
            plain_output = _try_forward(parent, x)
            if plain_output is None:
                break
            linear.activation = onednn_name
            setattr(parent, name, FusedActivation(activation))
            if outputs_match(plain_output, parent, x):
                num_replaced += 1
                break
            linear.activation = None
            setattr(parent, name, activation)
    return num_replaced


def _match_activation(activation: nn.Module) -> tuple[str, str] | None:
    """Return oneDNN's (name, variant) of an activation, or None if oneDNN lacks it."""
    x = torch.linspace(-9, 9, 64)
    output = _try_forward(activation, x)
    if output is None:
        return None
    for onednn_name, function in ONEDNN_ACTIVATIONS.items():
        if torch.allclose(output, function(x), rtol=1e-6, atol=1e-7):
            return onednn_name
    return None


def _try_forward(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return the output of a module for one tensor, or None if it fails or returns no tensor."""
    try:
        output = module(x)
    except Exception:
        return None
    return output if isinstance(output, Tensor) else None


def _trial_input(width: int, like: Tensor) -> Tensor:
    """Return an input (3, width) with values from -4 to 5."""
    return torch.linspace(-4, 5, 3 * width).view(3, -1).to(like.dtype)


# ---- rotary embeddings ---------------------------------------------------------------------------


_fast_rotaries: ContextVar[Mapping[ApplyRotary, ApplyRotary]] = ContextVar(
    "fast_rotaries", default=MappingProxyType({})
)
"""Rotary function of transformers -> the fast function that this thread calls instead."""


class RotaryPatch:
    """Faster rotary embeddings for one model, while the patch is `active` in a thread.

    Each model file of transformers has a rotary function as a global name. The first patch of a
    file replaces the global by a dispatcher, permanently. The dispatcher calls the plain function
    unless a patch is active in the current thread. Other models and threads are not affected.
    """

    def __init__(self, replacements: Mapping[ApplyRotary, ApplyRotary]) -> None:
        self.replacements = replacements
        """Rotary function of transformers -> fast function with the same results."""

    @classmethod
    def for_model(cls, model: nn.Module) -> RotaryPatch:
        """Return the patch of a model, which is empty if the model is not on a CPU or its rotary
        functions compute something else than the fast one.
        """
        replacements: dict[ApplyRotary, ApplyRotary] = {}
        if next(model.parameters()).device.type != "cpu":
            return cls(replacements)
        for name in sorted({type(module).__module__ for module in model.modules()}):
            current: Any = getattr(sys.modules[name], ROTARY_FUNCTION_NAME, None)
            plain: Any = getattr(current, "plain_rotary", current)  # of a dispatcher
            if plain is None or not _matches_fast_rotary(plain):
                continue
            if current is plain:
                setattr(sys.modules[name], ROTARY_FUNCTION_NAME, _rotary_dispatcher(plain))
            replacements[plain] = _fast_rotary(plain)
        return cls(replacements)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use the fast functions in forwards of this thread, within the context."""
        token = _fast_rotaries.set(self.replacements)
        try:
            yield
        finally:
            _fast_rotaries.reset(token)


def _rotary_dispatcher(plain: ApplyRotary) -> ApplyRotary:
    @wraps(plain)
    def apply_rotary(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return _fast_rotaries.get().get(plain, plain)(*args, **kwargs)

    apply_rotary.plain_rotary = plain  # type: ignore[attr-defined]
    return apply_rotary


def _fast_rotary(plain: ApplyRotary) -> ApplyRotary:
    """Return a fast rotary function, which calls `plain` for shapes that it does not support."""

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        # Autocast gives bf16 queries and keys but fp32 angles. The plain function returns fp32.
        if cos.dtype == torch.float32:
            q, k = (x.float() if x.dtype == torch.bfloat16 else x for x in (q, k))
        if any(x.shape[-1] != cos.shape[-1] or x.dtype != cos.dtype for x in (q, k)):
            return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        c, s = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _FastRotaryFunction.apply(q, c, s), _FastRotaryFunction.apply(k, c, s)

    return rotate


class _FastRotaryFunction(torch.autograd.Function):  # type: ignore[misc]
    """x cos + (-x2, x1) sin for x = (x1, x2) (Su et al. 2021, arXiv 2104.09864).

    The gradient is rotated by the opposite angles: the halves of the sine are exchanged and
    negated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate_halves(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate_halves(gradient, cos, -sin.roll(sin.shape[-1] // 2, -1)), None, None


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


@cache
def _matches_fast_rotary(plain: ApplyRotary) -> bool:
    """Return whether `_fast_rotary` equals a rotary function of transformers on random angles, with
    more query heads than key heads.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 4, 5, 8), (2, 2, 5, 8), (2, 5, 8), (2, 5, 8))
    )
    try:
        expected = plain(q, k, cos, sin, unsqueeze_dim=1)
        rotated = _fast_rotary(plain)(q, k, cos, sin)
        return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, rotated, strict=True))
    except Exception:
        return False
