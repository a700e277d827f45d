"""The sliced loss against a plain one on full logits: values and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from antlm_bench.errors import DeclarationError
from antlm_bench.training.losses import DistillationTargets, LazyLogits, sliced_cross_entropy


def obvious(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, **how: Any
) -> tuple[Tensor, Tensor]:
    """The same sums by torch's own losses on all logits at once."""
    logits = functional.linear(hidden, weight, bias).double()
    entropy = functional.cross_entropy(logits, targets, reduction="sum")
    loss, teaching = entropy, how.get("distillation")
    if teaching:
        heat = teaching.temperature
        taught = torch.stack(
            [functional.linear(*teacher).double() for teacher in teaching.teachers]
        ).mean(0)
        student = functional.log_softmax(logits / heat, -1)
        kl = functional.kl_div(student, functional.softmax(taught / heat, -1), reduction="sum")
        loss = teaching.alpha * entropy + (1 - teaching.alpha) * heat**2 * kl
    return loss + how.get("z_loss", 0.0) * (logits.logsumexp(-1) ** 2).sum(), entropy


def drawn(
    n: int, d: int, v: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """hidden, weight, bias, targets; logits of a few nats."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(s, generator=generator, dtype=dtype) for s in ((n, d), (v, d), (v,))
    )
    return [hidden, weight, bias, torch.randint(v, (n,), generator=generator)]


def gradients(loss: Any, inputs: list[Any], **how: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(loss, entropy, gradients of 3 x loss); the 3 shows that the incoming gradient is heeded."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in inputs[:3]]
    value, entropy = loss(*leaves, inputs[3], **how)
    (3 * value).backward()
    return value.detach(), entropy.detach(), [leaf.grad for leaf in leaves if leaf is not None]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 20),
    d=st.integers(1, 9),
    v=st.integers(1, 12),
    size=st.integers(1, 25),
    z_loss=st.sampled_from((0.0, 1e-4, 0.3)),
    teachers=st.integers(0, 2),
    with_bias=st.booleans(),
)
def test_values_and_gradients_are_those_of_full_logits(
    n: int, d: int, v: int, size: int, z_loss: float, teachers: int, with_bias: bool
) -> None:
    inputs: list[Any] = drawn(n, d, v)
    inputs[2] = inputs[2] if with_bias else None
    heads = [LazyLogits(*drawn(n, d + i, v, seed=7 + i)[:3]) for i in range(teachers)]
    how = {
        "z_loss": z_loss,
        "distillation": DistillationTargets(heads, temperature=1.7, alpha=0.3) if heads else None,
    }
    ours, theirs = (
        gradients(sliced_cross_entropy, inputs, **how, slice_rows=size),
        gradients(obvious, inputs, **how),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_one_row_by_hand() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [0.0], [0.0]])
    loss, entropy = sliced_cross_entropy(hidden, weight, None, torch.tensor([2]), z_loss=0.5)
    log3 = 1.0986123
    assert entropy.item() == pytest.approx(log3, rel=1e-6)
    assert loss.item() == pytest.approx(log3 + 0.5 * log3**2, rel=1e-6)


def test_a_teacher_like_the_student_leaves_only_the_hard_targets() -> None:
    inputs = drawn(6, 4, 7)
    teaching = DistillationTargets([LazyLogits(*inputs[:3])], alpha=0.25)
    loss, entropy = sliced_cross_entropy(*inputs, distillation=teaching)
    torch.testing.assert_close(loss, 0.25 * entropy)


def test_evaluation_gives_the_same_numbers_without_gradients() -> None:
    inputs = [t.requires_grad_() if t.is_floating_point() else t for t in drawn(9, 4, 7)]
    with torch.no_grad():
        still = sliced_cross_entropy(*inputs, slice_rows=3)
    moving = sliced_cross_entropy(*inputs, slice_rows=3)
    assert not still[0].requires_grad and moving[0].requires_grad and not moving[1].requires_grad
    assert still[0] == moving[0] and still[1] == moving[1]


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    inputs = drawn(5, 4, 7)
    leaves = [t.clone().requires_grad_(i != frozen) for i, t in enumerate(inputs[:3])]
    full = gradients(obvious, inputs)[2]
    sliced_cross_entropy(*leaves, inputs[3], slice_rows=2)[0].mul(3).backward()
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is None) == (i == frozen)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, full[i])


def test_tied_weights_get_both_gradients() -> None:
    table, ids, targets = (
        drawn(11, 5, 11)[0],
        torch.tensor([1, 4, 4, 9]),
        torch.tensor([4, 4, 9, 10]),
    )
    grads = []
    for loss in (sliced_cross_entropy, obvious):
        tied = table.clone().requires_grad_()
        loss(functional.embedding(ids, tied), tied, None, targets)[0].backward()
        grads.append(tied.grad)
    torch.testing.assert_close(*grads)


def test_autocast_runs_products_in_bf16_and_the_rest_in_fp32() -> None:
    inputs = drawn(300, 32, 50, dtype=torch.float32)
    how = {
        "distillation": DistillationTargets(
            [LazyLogits(*(t.bfloat16() for t in drawn(300, 8, 50, seed=5)[:3]))]
        )
    }
    with torch.autocast("cpu", torch.bfloat16):
        value, entropy, grads = gradients(sliced_cross_entropy, inputs, **how, slice_rows=40)
    exact = gradients(obvious, inputs, **how)
    assert {t.dtype for t in (value, entropy, *grads)} == {torch.float32}
    torch.testing.assert_close(value.double(), exact[0], rtol=3e-3, atol=0)
    assert value != gradients(sliced_cross_entropy, inputs, **how)[0], "autocast did nothing"
    for ours, theirs in zip(grads, exact[2], strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_bf16_weights_get_bf16_gradients_and_an_fp32_loss() -> None:
    inputs = [t.bfloat16() if t.is_floating_point() else t for t in drawn(20, 8, 30)]
    value, _, grads = gradients(sliced_cross_entropy, inputs)
    assert value.dtype == torch.float32 and {g.dtype for g in grads} == {torch.bfloat16}


def test_large_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight = torch.tensor([[300.0]]), torch.tensor([[1.0], [-1.0]])
    loss, _ = sliced_cross_entropy(hidden, weight, None, torch.tensor([1]))
    assert loss.item() == pytest.approx(600.0)


def test_not_a_number_comes_out_as_it_is() -> None:
    inputs = drawn(3, 2, 4)
    inputs[0][1, 0] = torch.nan
    assert sliced_cross_entropy(*inputs)[0].isnan()


def test_no_tensor_of_all_logits_ever_lives() -> None:
    n, v, largest = 512, 400, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [
                    largest,
                    *(
                        t.numel()
                        for t in torch.utils._pytree.tree_leaves(out)
                        if torch.is_tensor(t)
                    ),
                ]
            )
            return out

    with Watch():
        gradients(sliced_cross_entropy, drawn(n, 16, v), slice_rows=10)
    assert largest == n * 16


def test_a_second_backward_is_refused() -> None:
    hidden, *others = drawn(3, 2, 4)
    loss, _ = sliced_cross_entropy(hidden.requires_grad_(), *others)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_a_teacher_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(
        DeclarationError, match="teacher 1 has a vocabulary of 9 tokens, the student of 4"
    ):
        sliced_cross_entropy(
            *drawn(3, 2, 4), distillation=DistillationTargets([LazyLogits(*drawn(3, 2, 9)[:3])])
        )
