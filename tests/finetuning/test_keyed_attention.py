"""Attention with keyed dropout: the library's without dropout, masks per text with it."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build_model
from torch.nn import functional

from antlm_bench.training import model_factory
from antlm_bench.training.dropout import KeyedDropout, keyed_dropout_attention, keyed_samples
from antlm_bench.training.model_factory import KEYED_ATTENTION, use_keyed_dropout

NEXT_TO_NOTHING = 2**-16  # the smallest share there is: of these few numbers it drops none, or one


def states(heads: int, seed: int = 0, rows: int = 2, t: int = 7):
    return torch.randn(rows, heads, t, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("causal", "mask"), [(True, None), (False, None), (False, "bool"), (False, "added")]
)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_with_tiny_dropout_attention_equals_the_library(causal, mask, kv_heads):
    q, k, v = states(4), states(kv_heads, 1), states(kv_heads, 2)
    hidden = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    hidden[1, ..., 5:] = False
    chosen = {
        None: None,
        "bool": hidden,
        "added": torch.zeros(2, 1, 7, 7).masked_fill(~hidden, -3e4),
    }[mask]
    with keyed_samples(1, 2, [3, 4]):
        result = keyed_dropout_attention(
            q, k, v, chosen, p=NEXT_TO_NOTHING, scaling=None, causal=causal
        )
    plain = functional.scaled_dot_product_attention(
        q, k, v, chosen, is_causal=causal, enable_gqa=True
    )
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["bool", "added"])
def test_a_query_that_may_attend_to_nothing_gets_no_nan(dtype, kind):
    q, k, v = (states(4, seed).to(dtype) for seed in range(3))
    may_attend = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    may_attend[0, ..., 3, :] = False
    lowest = torch.finfo(torch.float32).min  # -inf in bf16
    added = torch.zeros(2, 1, 7, 7).masked_fill(~may_attend, lowest)
    mask = may_attend if kind == "bool" else added
    result = keyed_dropout_attention(q, k, v, mask, p=0.0, scaling=None, causal=True)
    assert torch.isfinite(result).all()


def test_attention_dropout_keeps_the_mean_of_probabilities():
    rows = 400
    ones = torch.ones(rows, 2, 7, 4)
    with keyed_samples(1, 2, range(rows)):
        result = keyed_dropout_attention(
            torch.zeros_like(ones),
            torch.zeros_like(ones),
            ones,
            None,
            p=0.25,
            scaling=1.0,
            causal=False,
        )
    assert result.mean().item() == pytest.approx(1, abs=0.02)
    assert result[..., 0].var().item() == pytest.approx(
        0.25 / 0.75 / 7, rel=0.1
    )  # of the mean of 7 kept at 3/4


def test_a_text_drops_the_same_however_far_it_is_padded():
    drop = KeyedDropout(0.5)
    ones = torch.ones
    for shape, cut in (((6, 8), (slice(4),)), ((3, 6, 6), (slice(None), slice(4), slice(4)))):
        wide = [6 if n == 6 else n for n in shape]
        alone = [4 if n == 6 else n for n in shape]
        with keyed_samples(1, 2, [5, 9], [4, 6]):
            first, second = drop(ones(2, *wide)), drop(ones(2, *wide))
        with keyed_samples(1, 2, [5], [4]):
            assert torch.equal(drop(ones(1, *alone))[0], first[0][cut])
            assert torch.equal(drop(ones(1, *alone))[0], second[0][cut])
        assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_keyed_dropout_does_not_change_evaluation(kind):
    model = build_model(kind, 0).base_model
    ids, mask = torch.arange(5, 25).view(2, 10), torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    with torch.no_grad():
        before = [model(ids)[0], model(ids, attention_mask=mask)[0][mask]]
        use_keyed_dropout(model)
        after = [model(ids)[0], model(ids, attention_mask=mask)[0][mask]]
    assert model.config._attn_implementation == KEYED_ATTENTION
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_bf16_on_a_cpu_multiplies_instead_of_fused_attention(kind, monkeypatch):
    model = build_model(kind, 0).base_model
    ids, mask = torch.arange(5, 25).view(2, 10), torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    weight = model.get_input_embeddings().weight
    upstream = torch.randn(2, 10, weight.shape[1], generator=torch.Generator().manual_seed(1))

    def outputs() -> list[torch.Tensor]:
        hidden = [model(ids)[0], model(ids, attention_mask=mask)[0] * mask[..., None]]
        (gradient,) = torch.autograd.grad(((hidden[0] + hidden[1]) * upstream).sum(), weight)
        return [*hidden, gradient]

    expected = outputs()
    use_keyed_dropout(model)
    calls = []
    fused = model_factory.sdpa_attention_forward
    monkeypatch.setattr(
        model_factory, "sdpa_attention_forward", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    with torch.autocast("cpu", torch.bfloat16):
        actual = outputs()
    assert not calls
    for one, other in zip(expected, actual, strict=True):
        scale = one.abs().max().item()
        torch.testing.assert_close(other.float(), one, atol=0.03 * scale, rtol=0)
    outputs()
    assert calls  # in fp32, the fused attention is as fast
