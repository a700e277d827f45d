"""Parameter groups, optimizers, gradient clipping, and the moving average of weights.

The training loop sets the learning rate in `param_groups` before each step (see schedule).
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

DECAY_EXEMPTIONS = ("embeddings", "positions")  # values of the recipe key optimizer.exempt
# Names of the weights with which a layer sums the outputs of earlier layers (ELC-BERT, GPT-BERT).
LAYER_MIX_PATTERN = re.compile(r"alphas?(\.\d+)?$")


def build_param_groups(
    model: nn.Module, weight_decay: float, exempt: Collection[str] = (), decay_mixing: bool = False
) -> list[ParamGroup]:
    """Return two groups {params, weight_decay}: parameters with weight decay, and without.

    Matrices decay; biases and norms (fewer than 2 dimensions) do not. decay_mixing: whether layer
    mixing weights decay, as in GPT-BERT (arXiv 2410.24159), or not, as in ELC-BERT (arXiv
    2311.02265). exempt: "positions" exempts relative position embeddings, "embeddings" exempts all
    embeddings, including one that is tied to the LM head. Each tied weight is listed once, and
    frozen parameters are left out. An empty group is left out. Raises DeclarationError for other
    names in `exempt`.
    """
    unknown = sorted(set(exempt) - set(DECAY_EXEMPTIONS))
    if unknown:
        hint = f"one of {', '.join(DECAY_EXEMPTIONS)}; biases and norms never decay"
        raise DeclarationError(
            f"unknown exemption {unknown[0]!r}", location="optimizer.exempt", hint=hint
        )
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: list[Tensor] = []
    exempted: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Relative position embeddings are a parameter without an nn.Embedding.
        is_embedding = id(parameter) in embeddings or "embedding" in name.rpartition(".")[2]
        is_relative = is_embedding and ("relative" in name or "positions" in name)
        if (is_embedding and "embeddings" in exempt) or (is_relative and "positions" in exempt):
            decays = False
        elif LAYER_MIX_PATTERN.search(name):
            decays = decay_mixing
        else:
            decays = parameter.dim() >= 2
        (decayed if decays else exempted).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempted, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Lamb(torch.optim.Optimizer):  # type: ignore[misc]
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), with LTG-BERT's rule for biases.

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
        """Update every parameter that has a gradient. closure: called first to compute the loss."""
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

        # divisor = (sqrt(v) / sqrt(1 - beta2^t) + eps) (1 - beta1^t), so that m / divisor is Adam's
        # u
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


def compute_gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, a scalar on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm(gradients, foreach=None)
    return norm


def clip_gradients(parameters: Iterable[Tensor], norm: float, max_norm: float | None) -> None:
    """Scale all gradients in place from the 2-norm `norm` to one of at most `max_norm`.

    max_norm: None = do not scale. If the norm is infinite or NaN, gradients stay unchanged, and the
    caller must stop.
    """
    if max_norm is not None and max_norm < norm < float("inf"):
        gradients = [p.grad for p in parameters if p.grad is not None]
        # 1e-6 as in torch.nn.utils.clip_grad_norm_
        torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))


class Ema:
    """Exponential moving average of a model's trainable weights, in fp32 (GPT-BERT: decay 0.999).

    It starts at the initial weights. After every step average += (1 - decay) (weights - average),
    with a constant decay as in GPT-BERT's code.
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
        """Return name -> average. The tensors are not copied."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the averages. Raises CheckpointError if names or shapes differ from the model's."""
        model_shapes = {name: tuple(tensor.shape) for name, tensor in self.average.items()}
        state_shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if model_shapes != state_shapes:
            name = sorted(dict(model_shapes.items() ^ state_shapes.items()))[0]
            raise CheckpointError(
                f"the saved average belongs to another model: {name} differs",
                location="ema",
                hint="resume with the recipe that the run began with",
            )
        for name, average in self.average.items():
            average.copy_(state[name])

    @contextmanager
    def averaged_weights(self, model: nn.Module) -> Iterator[None]:
        """Replace the model's weights by their averages inside this context, then restore them."""
        weights = dict(model.named_parameters())
        current = {name: weights[name].detach().clone() for name in self.average}
        try:
            _copy_tensors(weights, self.average)
            yield
        finally:
            _copy_tensors(weights, current)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _copy_tensors(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
