"""What changes the weights: which of them decay, the optimizers, clipping, and the average kept of
them.

Learning rates are the schedule's: the loop writes them into `param_groups` before each step.
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

DECAY_EXEMPTIONS = (
    "embeddings",
    "positions",
)  # what a recipe may exempt from decay, beside what never decays
LAYER_MIX_PATTERN = re.compile(
    r"alphas?(\.\d+)?$"
)  # weights of layer mixes: ELC-BERT's never decay, GPT-BERT's do


def build_param_groups(
    model: nn.Module, weight_decay: float, exempt: Collection[str] = (), decay_mixing: bool = False
) -> list[ParamGroup]:
    """Parameter groups {params, weight_decay}: those that decay, then those that never do; tied
    weights once.

    Matrices decay, biases and norms (fewer than 2 dimensions) never do. Weights of layer mixes
    decay with `decay_mixing` (GPT-BERT, arXiv 2410.24159) and not without (ELC-BERT, arXiv
    2311.02265). `exempt`: "positions" spares the table of relative positions, "embeddings" all
    tables of embeddings, also where a head is tied to one. Frozen parameters are in no group.
    Raises DeclarationError for other names in `exempt`.
    """
    unknown = sorted(set(exempt) - set(DECAY_EXEMPTIONS))
    if unknown:
        hint = f"one of {', '.join(DECAY_EXEMPTIONS)}; biases and norms never decay"
        raise DeclarationError(
            f"nothing is called {unknown[0]!r} here", location="optimizer.exempt", hint=hint
        )
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decays: list[Tensor] = []
    never: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        table = (
            id(parameter) in tables or "embedding" in name.rpartition(".")[2]
        )  # relative positions are a bare one
        relative = table and ("relative" in name or "positions" in name)
        spared = (table and "embeddings" in exempt) or (relative and "positions" in exempt)
        spared |= not decay_mixing if LAYER_MIX_PATTERN.search(name) else parameter.dim() < 2
        (never if spared else decays).append(parameter)
    both = {"params": decays, "weight_decay": weight_decay}, {"params": never, "weight_decay": 0.0}
    return [group for group in both if group["params"]]


class Lamb(torch.optim.Optimizer):  # type: ignore[misc]
    """LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), the trust ratio only where weights
    decay.

    m, v: Adam's moments, bias-corrected. u = m / (sqrt(v) + eps) + weight_decay w. w -= lr r u,
    with r = |w| / |u| per tensor (1 where either norm is 0), and r = 1 in groups without weight
    decay, as LTG-BERT does.
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
        """One update of every parameter that has a gradient. closure: evaluated first, with
        gradients, if given.
        """
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
        (one, two), decay = group["betas"], group["weight_decay"]
        states = [self.state[w] for w in weights]
        for state, w in zip(states, weights, strict=True):
            if not state:
                state.update(step=0, mean=torch.zeros_like(w), square=torch.zeros_like(w))
            state["step"] += 1
        slopes = [w.grad for w in weights]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, slopes, 1 - one)
        torch._foreach_mul_(squares, two)
        torch._foreach_addcmul_(squares, slopes, slopes, 1 - two)

        # m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), the corrections drawn to one side
        roots = [(1 - two ** state["step"]) ** 0.5 for state in states]
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, roots)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_mul_(below, [1 - one ** state["step"] for state in states])
        updates = torch._foreach_div(means, below)
        if decay > 0:
            torch._foreach_add_(updates, weights, alpha=decay)
            sizes, lengths = torch._foreach_norm(weights), torch._foreach_norm(updates)
            ratios = [
                torch.where((size > 0) & (length > 0), size / length, 1.0)
                for size, length in zip(sizes, lengths, strict=True)
            ]
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])


def build_optimizer(
    name: str, param_groups: list[ParamGroup], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """The optimizer of that name, "adamw" (arXiv 1711.05101) or "lamb". Raises DeclarationError for
    another.
    """
    if name == "adamw":
        return torch.optim.AdamW(param_groups, lr=lr, betas=betas, eps=eps, fused=True)
    if name == "lamb":
        return Lamb(param_groups, lr=lr, betas=betas, eps=eps)
    raise DeclarationError(
        f"unknown optimizer {name!r}", location="optimizer.name", hint="adamw or lamb"
    )


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> float:
    """The 2-norm of all gradients together; above `max_norm` they are scaled down to it in place
    (None: never).

    An infinite norm or one that is not a number is returned as it is, and touches no gradient: the
    loop must stop.
    """
    slopes = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(slopes, foreach=None))
    if max_norm is not None and max_norm < norm < float("inf"):
        torch._foreach_mul_(
            slopes, max_norm / (norm + 1e-6)
        )  # as torch.nn.utils.clip_grad_norm_ does
    return norm


class Ema:
    """An exponential moving average of a model's trainable weights, in fp32 (GPT-BERT keeps one at
    0.999).

    It starts from the initial weights. After every step average += (1 - decay) (weights - average):
    the decay is constant, as in GPT-BERT's code, and the averages are all its state.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {
            name: p.detach().to(torch.float32, copy=True) for name, p in self.weights.items()
        }

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        weights = [p.detach().float() for p in self.weights.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """name -> average; the tensors themselves, not copies."""
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError unless `state` is of a model with the same names and shapes."""
        mine, theirs = (
            {name: tuple(t.shape) for name, t in s.items()} for s in (self.average, state)
        )
        if mine != theirs:
            odd = sorted(dict(mine.items() ^ theirs.items()))[0]
            hint = "resume with the recipe that the run began with"
            raise CheckpointError(
                f"an average of another model: {odd} differs", location="ema", hint=hint
            )
        for name, average in self.average.items():
            average.copy_(state[name])

    @contextmanager
    def averaged_weights(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` (the one averaged) has the averaged weights; after it, its own, bit for
        bit.
        """
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
