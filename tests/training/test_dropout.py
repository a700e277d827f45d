"""Keyed dropout: a mask belongs to (seed, step, sample), never to the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from antlm_bench.training.dropout import (
    KeyedDropout,
    gathered_positions,
    keyed_samples,
    replace_dropout_modules,
)
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.recipe import ModelSpec


def masks(
    indices: list[int], calls: int = 1, p: float = 0.3, seed: int = 1, step: int = 2
) -> list[Tensor]:
    drop = KeyedDropout(p)
    with keyed_samples(seed, step, indices):
        return [drop(torch.ones(len(indices), 40, 5)) for _ in range(calls)]


def test_a_sample_has_its_mask_whatever_it_stands_among() -> None:
    together = masks([3, 7, 11, 5], calls=3)
    halves = [
        torch.cat(pair)
        for pair in zip(masks([3, 7], calls=3), masks([11, 5], calls=3), strict=True)
    ]
    for one, two in zip(together, halves, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(masks([5, 3])[0][1], together[0][0])


def test_masks_differ_by_call_sample_step_and_seed() -> None:
    (first, second), (other,), (later,), (reseeded,) = (
        masks([3], 2),
        masks([4]),
        masks([3], step=3),
        masks([3], seed=9),
    )
    drawn = [first, second, other, later, reseeded]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_the_rate_is_p_and_the_mean_is_kept(p: float) -> None:
    x = torch.ones(4, 100_000, requires_grad=True)
    with keyed_samples(0, 0, [0, 1, 2, 3]):
        out = KeyedDropout(p)(x)
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / 400_000) ** 0.5
    survivors = out[out != 0]
    torch.testing.assert_close(
        survivors, torch.full_like(survivors, 1 / (1 - p)), rtol=2e-3, atol=0
    )
    out.backward(torch.full_like(out, 2.0))
    assert x.grad is not None and torch.equal(x.grad, 2 * out.detach()), (
        "the same mask backward, and the same scale"
    )


def test_dropping_everything_gives_zeros_and_nothing_the_input() -> None:
    x = torch.randn(2, 3)
    with keyed_samples(0, 0, [0, 1]):
        assert not KeyedDropout(1.0)(x).any()
        assert KeyedDropout(1e-9)(x) is x


def test_low_precision_stays_low() -> None:
    with keyed_samples(0, 0, [0]):
        assert KeyedDropout(0.5)(torch.ones(1, 9, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gathered_rows_belong_to_their_samples() -> None:
    drop = KeyedDropout(0.5)
    with keyed_samples(1, 2, [3, 7, 9]), gathered_positions([2, 0, 3]):
        all_three = drop(torch.ones(5, 8))
    with keyed_samples(1, 2, [9]), gathered_positions([3]):
        alone = drop(torch.ones(3, 8))
    assert torch.equal(all_three[2:], alone)
    with (
        keyed_samples(1, 2, [3]),
        pytest.raises(ValueError, match="rows_per_sample has 2 entries"),
        gathered_positions([1, 1]),
    ):
        pass
    with pytest.raises(RuntimeError, match="samples"), gathered_positions([1]):
        pass


def test_training_needs_samples_and_evaluation_does_not() -> None:
    drop = KeyedDropout(0.1)
    with pytest.raises(RuntimeError, match="inside `with keyed_samples"):
        drop(torch.ones(2, 2))
    with keyed_samples(0, 0, [0]):
        drop(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="inside `with keyed_samples"):
        drop(torch.ones(1, 2))
    x = torch.ones(2, 2)
    assert drop.eval()(x) is x


def test_a_batch_of_other_rows_is_refused() -> None:
    with keyed_samples(0, 0, [0, 1]), pytest.raises(RuntimeError, match=r"\(4, 2\).* 2 rows"):
        KeyedDropout(0.1)(torch.ones(4, 2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.2)
        self.again = self.drop
        self.none = nn.Dropout(0.0)
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.4))


def test_keying_replaces_dropouts_and_keeps_saved_weights() -> None:
    block = Block()
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    assert replace_dropout_modules(block) == 2
    assert (
        isinstance(block.drop, KeyedDropout) and block.drop is block.again and block.drop.p == 0.2
    )
    assert isinstance(block.inner[1], KeyedDropout) and not isinstance(block.none, KeyedDropout)
    after = block.state_dict()
    assert list(after) == list(before) and all(
        torch.equal(after[name], before[name]) for name in before
    )
    assert replace_dropout_modules(block) == 0
    block.eval()
    assert not block.drop.training


def test_keying_keeps_the_mode() -> None:
    block = Block().eval()
    replace_dropout_modules(block)
    assert not block.drop.training


class TestSharedDropout:
    """Of a table that has no dimension of samples, e.g. relative positions."""

    def model(self) -> nn.Module:
        layer = nn.Dropout(0.25)
        layer.shared = True
        model = nn.Sequential(layer)
        assert replace_dropout_modules(model) == 1
        return model

    def test_all_samples_of_a_step_share_one_mask(self) -> None:
        model, table = self.model(), torch.ones(31, 64)
        masks = []
        for rows in ([0, 1, 2, 3], [2], [3, 0]):
            with keyed_samples(7, 5, rows):
                masks.append((model(table), model(table)))
        assert all(
            torch.equal(first, masks[0][0]) and torch.equal(second, masks[0][1])
            for first, second in masks
        )
        assert not torch.equal(*masks[0]), "two dropouts of a model differ"
        with keyed_samples(7, 6, [0]):
            assert not torch.equal(model(table), masks[0][0])
        kept = masks[0][0] != 0
        assert abs(kept.float().mean().item() - 0.75) < 0.04
        assert torch.allclose(masks[0][0][kept], torch.tensor(1 / 0.75))

    def test_gradients_pass_where_values_do(self) -> None:
        table = torch.ones(9, 8, requires_grad=True)
        with keyed_samples(1, 2, [0]):
            out = self.model()(table)
        out.sum().backward()
        assert torch.equal(table.grad, out.detach())

    def test_outside_of_samples_it_refuses(self) -> None:
        with pytest.raises(RuntimeError, match="must run inside"):
            self.model()(torch.ones(2, 2))
        assert torch.equal(self.model().eval()(torch.ones(2, 2)), torch.ones(2, 2))


@pytest.mark.parametrize("architecture", ["gpt-bert", "ltg-bert"])
def test_relative_positions_are_dropped_out_in_training_alone(architecture: str) -> None:
    """ELC-BERT's and GPT-BERT's code drop out the position vectors of every layer before they are
    projected.
    """
    shape = {"layers": 2, "hidden": 16, "heads": 2, "ffn": 24, "positions": 32, "buckets": 8,
             "tied": True,
             "norm_eps": 1e-5}  # fmt: skip
    spec = ModelSpec(architecture=architecture, dropout=0.0, attention_dropout=0.5, **shape)
    model = build_model(spec, 40, masked=True)
    attention = [module for name, module in model.named_modules() if name.endswith("attention")]
    seen: list[torch.Tensor] = []
    for module in attention:
        module.query_key.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    replace_dropout_modules(model)
    table = model.model.positions.norm(model.model.positions.table.weight).detach()
    ids = torch.arange(8)[None]
    for train in (True, False):
        seen.clear()
        with keyed_samples(1, 2, [0]):
            model.train(train)(ids)
        vectors = [x for x in seen if x.shape == table.shape]
        assert len(vectors) == 2
        for x in vectors:
            kept = x != 0
            assert torch.equal(kept, kept if train else torch.ones_like(kept))
            assert torch.allclose(x[kept], (table * (2 if train else 1))[kept], atol=1e-6)
            assert (0.3 < kept.float().mean() < 0.7) == train
        assert not train or not torch.equal(vectors[0], vectors[1])
