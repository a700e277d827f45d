"""Optimizers against slow scalar arithmetic, averages and clipping against their formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from antlm_bench.errors import CheckpointError, DeclarationError
from antlm_bench.training.optim import (
    Ema,
    Lamb,
    build_optimizer,
    build_param_groups,
    clip_gradients,
    compute_gradient_norm,
)


class Toy(nn.Module):
    """A tied embedding, a matrix, a norm, mixing weights, relative positions, something frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.alphas = nn.ParameterList([nn.Parameter(torch.ones(1, 2))])
        self.relative_embedding = nn.Parameter(torch.randn(3, 4))
        self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(
            self.linear(self.embed(ids)) + self.alphas[0].sum() * self.relative_embedding.mean(0)
        )
        return nn.functional.cross_entropy(self.head(x), ids.roll(1))


def named(model: nn.Module, group: dict[str, object]) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}  # type: ignore[attr-defined]


def test_matrices_decay_and_small_things_never() -> None:
    model = Toy()
    decays, never = build_param_groups(model, 0.1)
    assert named(model, decays) == {"embed.weight", "linear.weight", "relative_embedding"}
    assert named(model, never) == {
        "linear.bias",
        "norm.weight",
        "norm.bias",
        "alphas.0",
        "head.bias",
    }
    assert (decays["weight_decay"], never["weight_decay"]) == (0.1, 0.0)


def test_embeddings_can_be_exempt() -> None:
    model = Toy()
    decays, never = build_param_groups(model, 0.1, ["embeddings"])
    assert named(model, decays) == {"linear.weight"}
    assert {"embed.weight", "relative_embedding"} < named(model, never)


def test_relative_positions_alone_can_be_exempt() -> None:
    model = Toy()
    decays, never = build_param_groups(model, 0.1, ["positions"])
    assert named(model, decays) == {"embed.weight", "linear.weight"}
    assert "relative_embedding" in named(model, never)


def test_weights_of_a_layer_mix_decay_if_asked() -> None:
    model = Toy()
    decays, never = build_param_groups(model, 0.1, decay_mixing=True)
    assert "alphas.0" in named(model, decays) and "alphas.0" not in named(model, never)
    assert named(model, never) == {"linear.bias", "norm.weight", "norm.bias", "head.bias"}


def test_an_unknown_exemption_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"optimizer\.exempt: unknown exemption 'embedings'"):
        build_param_groups(Toy(), 0.1, ["embedings"])


def slow_lamb(
    weights: list[np.ndarray],
    slopes: list[list[np.ndarray]],
    decays: list[float],
    lr: float,
    eps: float,
) -> list[np.ndarray]:
    """Algorithm 2 of the paper, one number at a time."""
    out = []
    for index, start in enumerate(weights):
        w, m, v = list(start.flat), [0.0] * start.size, [0.0] * start.size
        for t, step in enumerate(slopes, 1):
            u = []
            for i, g in enumerate(step[index].flat):
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.98 * v[i] + 0.02 * g * g
                u.append(
                    m[i] / (1 - 0.9**t) / (math.sqrt(v[i] / (1 - 0.98**t)) + eps)
                    + decays[index] * w[i]
                )
            size, length = math.sqrt(sum(x * x for x in w)), math.sqrt(sum(x * x for x in u))
            ratio = size / length if decays[index] > 0 and size > 0 and length > 0 else 1.0
            w = [x - lr * ratio * y for x, y in zip(w, u, strict=True)]
        out.append(np.reshape(w, start.shape))
    return out


def test_lamb_steps_as_the_paper_says() -> None:
    random = np.random.default_rng(0)
    shapes, decays = [(3, 4), (5,), (2, 2)], [0.1, 0.0, 0.1]
    start = [random.normal(size=shape) for shape in shapes]
    start[2][:] = 0  # no size: no trust ratio
    slopes = [[random.normal(size=shape) for shape in shapes] for _ in range(6)]
    weights = [nn.Parameter(torch.tensor(w)) for w in start]
    lamb = build_optimizer(
        "lamb",
        [
            {"params": [weights[0], weights[2]], "weight_decay": 0.1},
            {"params": [weights[1]], "weight_decay": 0.0},
        ],
        lr=0.03,
        betas=(0.9, 0.98),
        eps=1e-3,
    )
    for done, step in enumerate(slopes, 1):
        for weight, slope in zip(weights, step, strict=True):
            weight.grad = torch.tensor(slope)
        lamb.step()
        expected = slow_lamb(start, slopes[:done], decays, 0.03, 1e-3)
        for weight, by_hand in zip(weights, expected, strict=True):
            np.testing.assert_allclose(weight.detach().numpy(), by_hand, rtol=1e-12, atol=1e-12)


def test_lamb_counts_the_steps_of_each_weight() -> None:
    one, two = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    lamb = Lamb([one, two], lr=0.1)
    one.grad = torch.ones(2, 2)
    lamb.step()
    assert torch.equal(two, torch.ones(2, 2))
    two.grad = torch.ones(2, 2)
    lamb.step()
    assert lamb.state[one]["step"] == 2 and lamb.state[two]["step"] == 1


def test_lamb_evaluates_a_closure_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(2))

    def closure() -> torch.Tensor:
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert Lamb([weight], lr=0.1).step(closure) == 2.0  # type: ignore[arg-type]
    assert (weight < 1).all()


def train(name: str, steps: int, halt: int | None = None) -> Toy:
    """`steps` steps; at `halt` everything goes through a saved state into new objects."""
    model = Toy()
    ids = torch.tensor([1, 2, 3, 4, 5])

    def prepared(model: Toy) -> torch.optim.Optimizer:
        return build_optimizer(
            name, build_param_groups(model, 0.1), lr=0.05, betas=(0.9, 0.98), eps=1e-6
        )

    chosen = prepared(model)
    for step in range(steps):
        if step == halt:
            state, model = copy.deepcopy(chosen.state_dict()), copy.deepcopy(model)
            chosen = prepared(model)
            chosen.load_state_dict(state)
        chosen.zero_grad()
        model.loss(ids).backward()
        chosen.step()
    return model


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_optimizers_learn_and_resume_bit_for_bit(name: str) -> None:
    ids = torch.tensor([1, 2, 3, 4, 5])
    through, resumed = train(name, 20), train(name, 20, halt=9)
    assert through.loss(ids) < 0.5 * Toy().loss(ids)
    for one, two in zip(through.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"optimizer\.name: unknown optimizer 'sgd'"):
        build_optimizer("sgd", [], 0.1, (0.9, 0.98), 1e-6)


def test_clipping_scales_to_the_norm_and_leaves_what_is_below() -> None:
    weights = [
        nn.Parameter(torch.zeros(2)),
        nn.Parameter(torch.zeros(1)),
        nn.Parameter(torch.zeros(1)),
    ]
    weights[0].grad, weights[1].grad = torch.tensor([0.0, 3.0]), torch.tensor([4.0])
    assert compute_gradient_norm(weights).item() == 5.0
    for max_norm in (6.0, None):
        clip_gradients(weights, 5.0, max_norm)
        assert weights[1].grad.item() == 4.0
    clip_gradients(weights, 5.0, 1.0)
    assert weights[0].grad.tolist() == pytest.approx([0.0, 0.6]) and weights[
        1
    ].grad.item() == pytest.approx(0.8)


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_a_norm_that_is_not_finite_touches_no_gradient(odd: float) -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, odd])
    norm = compute_gradient_norm([weight]).item()
    clip_gradients([weight], norm, 1.0)
    assert str(norm) == str(odd) and weight.grad[0] == 1.0
    assert compute_gradient_norm([nn.Parameter(torch.zeros(2))]) == 0.0


def test_the_average_starts_at_initial_weights_with_constant_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 100.0)
    ema, by_hand = Ema(model, 0.9), 100.0
    for value in (1.0, 2.0, 4.0, 8.0):
        nn.init.constant_(model.weight, value)
        ema.update()
        by_hand = 0.9 * by_hand + 0.1 * value
        assert ema.average["weight"].item() == pytest.approx(by_hand, rel=1e-6)


def test_averaged_weights_are_swapped_in_and_out_exactly() -> None:
    model = Toy()
    ema = Ema(model, 0.9)
    own = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own[name] = parameter.add_(0.1).clone()
    ema.update()
    with pytest.raises(KeyError), ema.averaged_weights(model):
        assert torch.equal(model.embed.weight, ema.average["embed.weight"])
        assert model.head.weight is model.embed.weight
        assert not torch.equal(model.linear.weight, own["linear.weight"])
        raise KeyError
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())


def test_the_average_resumes_exactly_and_checks_the_model() -> None:
    model = Toy()
    one = Ema(model, 0.9)
    one.update()
    two = Ema(Toy(), 0.9)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    assert all(torch.equal(one.average[name], two.average[name]) for name in one.average)
    with pytest.raises(
        CheckpointError, match=r"ema: the saved average belongs to another model: alphas\.0 differs"
    ):
        two.load_state_dict({"linear.weight": torch.zeros(4, 4)})


def test_an_average_of_low_precision_weights_is_kept_in_fp32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, 0.999)
    nn.init.constant_(model.weight, 1.0078125)  # the next number of bf16
    ema.update()
    assert ema.average["weight"].item() == pytest.approx(1 + 0.0078125 * 0.001, rel=1e-6)
