"""Pieces of a block in fewer passes over memory: the same numbers, tried on the model itself before
they are used.

Beside its matrix products, a small model on a CPU mostly moves activations to and fro. Three pieces
are worth it: an activation that a packed linear layer applies while its output is still in cache,
RMSNorm, and rotary embeddings. Nothing is known here of architectures: whatever does not give the
plain piece's own numbers on a trial stays plain.


TODO Linear layers with weights laid out in advance for oneDNN: the same products, without repacking
at every call.

On CPUs the library's default path repacks a weight each time it is used and adds the bias in a pass
of its own; here neither the bias nor an activation that follows (`scoring.cpu_kernels`) needs one.
The operators are torch's, but not of its documented interface (its inductor compiler uses them):
where they are absent, or answer otherwise than the plain layer, the plain layer stays.

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
ROTARY_FUNCTION_NAME = (
    "apply_rotary_pos_emb"  # what the library's files call the function, each its own
)
ONEDNN_ACTIVATIONS: tuple[
    tuple[tuple[str, str], Callable[[Tensor], Tensor]], ...
] = (  # oneDNN's names, and what they compute
    (("gelu", "none"), functional.gelu),
    (("gelu", "tanh"), lambda x: functional.gelu(x, approximate="tanh")),
    (("swish", ""), functional.silu),
)


class FusedActivation(nn.Module):  # type: ignore[misc]
    """Stands where an activation stood that the layer before it applies now."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A copy starts from plain layers again, as PackedLinear's does."""
        return copy.deepcopy(self.plain, memo)

    def forward(self, x: Tensor) -> Tensor:
        return x


class FusedRMSNorm(nn.Module):  # type: ignore[misc]
    """y = w x / sqrt(mean(x^2) + eps), the mean in fp32 (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _RMSNormFunction.apply(x, self.weight, self.eps))


class _RMSNormFunction(torch.autograd.Function):  # type: ignore[misc]
    """With r = 1 / sqrt(mean(x^2) + eps): y = w x r, dw = sum g x r, dx = r (g w) - r^3 / d sum(g w
    x) x.
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
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (gradient * x).flatten(0, -2).mT @ scale.flatten().to(x.dtype)
        weighted = gradient * weight
        shared = (weighted * x).sum(-1, keepdim=True).mul_(scale**3).div_(-x.shape[-1])
        return weighted.mul_(scale).addcmul_(x, shared.to(x.dtype)), for_weight, None


def fuse_layers(model: nn.Module) -> int:
    """Replace norms, and activations of packed layers, of a model in place; returns how many. On
    CPUs, for that is where it was found to pay. A model to be trained has its plain layers, so that
    its norms alone are replaced.
    """
    if next(model.parameters()).device.type != "cpu":
        return 0
    with torch.no_grad():
        return sum(
            _replace_norms(parent) + _fuse_activations(parent) for parent in list(model.modules())
        )


def _replace_norms(parent: nn.Module) -> int:
    replaced = 0
    for name, child in list(parent.named_children()):
        eps = next(
            (
                v
                for v in (getattr(child, n, None) for n in ("variance_epsilon", "eps"))
                if v is not None
            ),
            None,
        )
        weight = getattr(child, "weight", None)
        if (
            type(child).__name__.endswith("RMSNorm")
            and isinstance(eps, float)
            and isinstance(weight, nn.Parameter)
        ):
            own = FusedRMSNorm(weight, eps)
            x = _trial_input(weight.shape[-1], weight)
            if (before := _try_forward(child, x)) is not None and outputs_match(before, own, x):
                setattr(parent, name, own)
                replaced += 1
    return replaced


def _fuse_activations(parent: nn.Module) -> int:
    """The activations of a block whose forward is a function of one tensor, if a linear layer comes
    right before.
    """
    children = dict(parent.named_children())
    linears = [child for child in children.values() if isinstance(child, PackedLinear)]
    replaced = 0
    for name, activation in children.items():
        known = (
            _match_activation(activation)
            if linears and not [*activation.parameters(), *activation.children()]
            else None
        )
        for linear in linears if known else ():
            x = _trial_input(linear.in_features, linear.weight)
            if (before := _try_forward(parent, x)) is None:
                break
            linear.activation = known
            setattr(parent, name, FusedActivation(activation))
            if outputs_match(before, parent, x):
                replaced += 1
                break
            linear.activation = None
            setattr(parent, name, activation)
    return replaced


def _match_activation(activation: nn.Module) -> tuple[str, str] | None:
    x = torch.linspace(-9, 9, 64)
    answer = _try_forward(activation, x)
    if answer is None:
        return None
    return next(
        (
            name
            for name, plain in ONEDNN_ACTIVATIONS
            if torch.allclose(answer, plain(x), rtol=1e-6, atol=1e-7)
        ),
        None,
    )


def _try_forward(module: nn.Module, x: Tensor) -> Tensor | None:
    """What a module says of one tensor; None where it wants more than that, or says something else."""
    try:
        answer = module(x)
    except Exception:
        return None
    return answer if isinstance(answer, Tensor) else None


def _trial_input(width: int, like: Tensor) -> Tensor:
    """A few rows of both signs and several sizes, (3, width)."""
    return torch.linspace(-4, 5, 3 * width).view(3, -1).to(like.dtype)


_fast_rotaries: ContextVar[Mapping[ApplyRotary, ApplyRotary]] = ContextVar(
    "fast_rotaries", default=MappingProxyType({})
)
"""Library function -> the fast one that this thread's running forward uses instead."""


class RotaryPatch:
    """Faster rotary embeddings for one model, in the forwards of the thread that asks for them.

    The library's attention looks its rotary function up in the file that defines it. When a model
    of such a file is first patched, that function gets a dispatcher around it, once and for good.
    Which function the dispatcher calls is a matter of the running forward (`active`), so that
    threads with other models, patched or not, do not see each other.
    """

    def __init__(self, replacements: Mapping[ApplyRotary, ApplyRotary]) -> None:
        self.replacements = replacements
        """Library function -> fast function with the same results."""

    @classmethod
    def for_model(cls, model: nn.Module) -> RotaryPatch:
        """Find the rotary functions of a model on a CPU that the fast one can replace."""
        replacements: dict[ApplyRotary, ApplyRotary] = {}
        if next(model.parameters()).device.type != "cpu":
            return cls(replacements)
        for name in sorted({type(module).__module__ for module in model.modules()}):
            library: Any = getattr(sys.modules[name], ROTARY_FUNCTION_NAME, None)
            plain: Any = getattr(library, "plain_rotary", library)
            if plain is None or not _matches_fast_rotary(plain):
                continue
            if library is plain:
                setattr(sys.modules[name], ROTARY_FUNCTION_NAME, _rotary_dispatcher(plain))
            replacements[plain] = _fast_rotary(plain)
        return cls(replacements)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, forwards of this thread pass over queries and keys three times instead of six."""
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
    """x cos + (-x2, x1) sin of x = (x1, x2) (Su et al. 2021, arXiv 2104.09864), added up in place."""

    def rotate(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if any(x.shape[-1] != cos.shape[-1] or x.dtype != cos.dtype for x in (q, k)):
            return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        c, s = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _FastRotaryFunction.apply(q, c, s), _FastRotaryFunction.apply(k, c, s)

    return rotate


class _FastRotaryFunction(torch.autograd.Function):  # type: ignore[misc]
    """x cos + (-x2, x1) sin; its gradient is turned back: the halves of the sine exchanged, and
    negative.
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
    """Whether a function of that name is the one that `_fast_rotary` computes, for any angles and
    more queries than keys.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 4, 5, 8), (2, 2, 5, 8), (2, 5, 8), (2, 5, 8))
    )
    try:
        expected = plain(q, k, cos, sin, unsqueeze_dim=1)
        found = _fast_rotary(plain)(q, k, cos, sin)
        return all(
            torch.allclose(one, other, atol=1e-5)
            for one, other in zip(expected, found, strict=True)
        )
    except Exception:
        return False


class PackedLinear(nn.Module):  # type: ignore[misc]
    """y = x W^T + b for inference on a CPU. Keeps the plain weight too: others look at it (tied
    embeddings, shapes).
    """

    def __init__(self, plain: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), rows)
        self.activation: tuple[str, str] | None = (
            None  # oneDNN's name and variant of one that follows
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """The layout is opaque and cannot be copied; a copy of the model starts from plain layers
        again.
        """
        plain = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        plain.weight = copy.deepcopy(self.weight, memo)
        plain.bias = copy.deepcopy(self.bias, memo)
        return plain.eval()

    def forward(self, x: Tensor) -> Tensor:
        """x in any dtype: an output embedding may stay fp32 on a bf16 body."""
        x = x.to(self.weight.dtype)
        name, variant = self.activation or ("none", "")
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, name, [], variant
        )
        return y


def pack_linears(model: Any, rows: int, head_rows: int) -> int:
    """Replace the nn.Linear layers of a CPU model in place, tuned for batches of `rows`, the output
    embedding for `head_rows`; returns how many. A layer is replaced only if its packed form gives
    its own numbers on a trial input.
    """
    if not can_pack_linears(model):
        return 0
    replaced, head = 0, model.get_output_embeddings()
    with torch.inference_mode():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear and not parent.training:
                    try:
                        packed = PackedLinear(child, head_rows if child is head else rows)
                    except (
                        RuntimeError
                    ):  # this CPU has no such product: half precision without avx512_fp16
                        continue
                    x = (
                        torch.linspace(-1, 1, 3 * child.in_features)
                        .view(3, -1)
                        .to(child.weight.dtype)
                    )
                    if outputs_match(child(x), packed, x):
                        setattr(parent, name, packed)
                        replaced += 1
    return replaced


def can_pack_linears(model: nn.Module) -> bool:
    """Whether oneDNN's operators are there, for this model's device."""
    device, operators = next(model.parameters()).device, torch.ops.mkldnn
    present = all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and present


def outputs_match(expected: Tensor, module: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a module says that of x, but for the rounding of its dtype. What does not run says
    nothing.
    """
    tolerance = 1e-5 if x.dtype == torch.float32 else 2e-2
    try:
        return bool(
            torch.allclose(
                expected, module(x), rtol=tolerance, atol=tolerance * float(expected.abs().max())
            )
        )
    except RuntimeError:
        return False
