"""Parameter groups, optimizers, gradient clipping, and the moving average of weights.

The schedule decides learning rates: the loop writes them into `param_groups` before each step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from antlm_bench.errors import CheckpointError, DeclarationError

ParamGroup = dict[str, Any]

DECAY_EXEMPTIONS = ("embeddings", "positions")  # what a recipe may exempt from weight decay
LAYER_MIX_PATTERN = re.compile(r"alphas?(\.\d+)?$")  # names of the weights of layer mixes


def build_param_groups(
    model: nn.Module, weight_decay: float, exempt: Collection[str] = (), decay_mixing: bool = False
) -> list[ParamGroup]:
    """Return groups {params, weight_decay}: parameters that decay, then those that do not.

    Matrices decay; biases and norms (fewer than 2 dimensions) do not. Weights of layer mixes decay
    with `decay_mixing` (GPT-BERT, arXiv 2410.24159) and not without (ELC-BERT, arXiv 2311.02265).
    exempt: "positions" exempts the embeddings of relative positions, "embeddings" all embeddings,
    also if a head is tied to one. Tied weights occur once, frozen parameters not at all. Raises
    DeclarationError for other names in `exempt`.
    """
    unknown = sorted(set(exempt) - set(DECAY_EXEMPTIONS))
    if unknown:
        hint = f"one of {', '.join(DECAY_EXEMPTIONS)}; biases and norms never decay"
        raise DeclarationError(
            f"nothing is called {unknown[0]!r} here", location="optimizer.exempt", hint=hint
        )
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: list[Tensor] = []
    exempted: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # The embeddings of relative positions are a bare parameter.
        is_embedding = id(parameter) in embeddings or "embedding" in name.rpartition(".")[2]
        is_relative = is_embedding and ("relative" in name or "positions" in name)
        is_exempt = is_embedding and "embeddings" in exempt
        is_exempt |= is_relative and "positions" in exempt
        if LAYER_MIX_PATTERN.search(name):
            is_exempt = is_exempt or not decay_mixing
        else:
            is_exempt = is_exempt or parameter.dim() < 2
        (exempted if is_exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempted, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Lamb(torch.optim.Optimizer):  # type: ignore[misc]
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), with the trust ratio only for weights
    that decay.

    With Adam's bias-corrected moments m and v: u = m / (sqrt(v) + eps) + weight_decay w, then w -=
    lr r u. The trust ratio is r = |w| / |u| per tensor (1 if either norm is 0). In groups without
    weight decay r = 1, as in LTG-BERT.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient. closure: evaluated first, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._update(group, weights)
        return loss

    def _update(self, group: ParamGroup, weights: list[Tensor]) -> None:
        (beta1, beta2), decay = group["betas"], group["weight_decay"]
        states = [self.state[w] for w in weights]
        for state, w in zip(states, weights, strict=True):
            if not state:
                state.update(step=0, mean=torch.zeros_like(w), square=torch.zeros_like(w))
            state["step"] += 1
        gradients = [w.grad for w in weights]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        # m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), with both corrections in the divisor
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_div_(divisors, [(1 - beta2 ** state["step"]) ** 0.5 for state in states])
        torch._foreach_add_(divisors, group["eps"])
        torch._foreach_mul_(divisors, [1 - beta1 ** state["step"] for state in states])
        updates = torch._foreach_div(means, divisors)
        if decay > 0:
            torch._foreach_add_(updates, weights, alpha=decay)
            norms = zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True)
            ratios = [torch.where((w > 0) & (u > 0), w / u, 1.0) for w, u in norms]
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def build_optimizer(
    name: str, param_groups: list[ParamGroup], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Build "adamw" (arXiv 1711.05101) or "lamb". Raises DeclarationError for another name."""
    if name == "adamw":
        return torch.optim.AdamW(param_groups, lr=lr, betas=betas, eps=eps, fused=True)
    if name == "lamb":
        return Lamb(param_groups, lr=lr, betas=betas, eps=eps)
    raise DeclarationError(
        f"unknown optimizer {name!r}", location="optimizer.name", hint="adamw or lamb"
    )


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> float:
    """Return the 2-norm of all gradients; scale them down to `max_norm` in place if it is larger.

    max_norm None: never scale. A norm that is infinite or NaN is returned as it is, and no gradient
    is touched: the loop must stop.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients, foreach=None))
    if max_norm is not None and max_norm < norm < float("inf"):
        # as torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
    return norm


class Ema:
    """Exponential moving average of a model's trainable weights, in fp32 (GPT-BERT: decay 0.999).

    It starts at the initial weights. After every step average += (1 - decay) (weights - average),
    with a constant decay as in GPT-BERT's code. The averages are all its state.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {
            name: p.detach().to(torch.float32, copy=True) for name, p in self.weights.items()
        }

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Update the average after an optimizer step."""
        weights = [p.detach().float() for p in self.weights.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return name -> average: the tensors themselves, not copies."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the averages. Raises CheckpointError if names or shapes differ from the model's."""
        own, loaded = (
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for tensors in (self.average, state)
        )
        if own != loaded:
            name = sorted(dict(own.items() ^ loaded.items()))[0]
            hint = "resume with the recipe that the run began with"
            raise CheckpointError(
                f"an average of another model: {name} differs", location="ema", hint=hint
            )
        for name, average in self.average.items():
            average.copy_(state[name])

    @contextmanager
    def averaged_weights(self, model: nn.Module) -> Iterator[None]:
        """Give `model` the averaged weights inside; restore its own afterwards, bit for bit."""
        weights = dict(model.named_parameters())
        kept = {name: weights[name].detach().clone() for name in self.average}
        try:
            _copy_tensors(weights, self.average)
            yield
        finally:
            _copy_tensors(weights, kept)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _copy_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
