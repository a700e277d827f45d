"""Llama and GPT-2, transformers' own classes, attend fully under a 4-D mask and causally without,
same weights.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import build_model

IDS = torch.tensor([[5, 17, 230, 41, 7, 399, 88]])
SHAPES = {
    "LlamaForCausalLM": {},
    "GPT2LMHeadModel": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}


@pytest.fixture(params=[(name, how) for name in SHAPES for how in ("sdpa", "eager")], ids="-".join)
def model(request):
    name, how = request.param
    made = build_model("causal", 0, name, **SHAPES[name])
    made.set_attn_implementation(how)
    if how == "eager" and name.startswith("GPT2") and hasattr(made.transformer.h[0].attn, "bias"):
        pytest.skip(
            "this transformers (5.0) hides the future from GPT-2's eager attention, whatever the "
            "mask says"
        )
    return made


def mask_of(allowed):
    """(T, T) or (B, T, T) booleans -> the additive 4-D mask that both libraries' implementations
    take.
    """
    allowed = allowed.expand(1, *allowed.shape) if allowed.dim() == 2 else allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def hidden(model, ids, allowed=None, positions=None, **more):
    mask = {} if allowed is None else {"attention_mask": mask_of(allowed)}
    place = {} if positions is None else {"position_ids": positions}
    with torch.no_grad():
        return model.base_model(
            input_ids=ids, use_cache=False, **mask, **place, **more
        ).last_hidden_state


def changed(place):
    ids = IDS.clone()
    ids[0, place] = 11
    return ids


def test_under_a_mask_of_ones_every_position_sees_the_last_token(model):
    full = torch.ones(7, 7, dtype=torch.bool)
    moved = (hidden(model, IDS, full) - hidden(model, changed(-1), full)).abs().amax(-1)[0]
    assert moved.min() > 1e-4


def test_no_mask_or_a_triangle_hides_the_future(model):
    for allowed in (None, torch.ones(7, 7, dtype=torch.bool).tril()):
        for place in range(1, 7):
            moved = (
                (hidden(model, IDS, allowed) - hidden(model, changed(place), allowed))
                .abs()
                .amax(-1)[0]
            )
            assert moved[:place].max() == 0 and moved[place] > 1e-4
    triangle = hidden(model, IDS, torch.ones(7, 7, dtype=torch.bool).tril())
    assert torch.allclose(hidden(model, IDS), triangle, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing_at_real_positions(model, causal):
    alone = hidden(
        model,
        IDS,
        torch.ones(7, 7, dtype=torch.bool).tril() if causal else torch.ones(7, 7, dtype=torch.bool),
    )
    padded = torch.cat([IDS, torch.zeros(1, 3, dtype=torch.long)], 1)
    allowed = torch.ones(10, 10, dtype=torch.bool)
    allowed[:, 7:] = False
    found = hidden(model, padded, allowed.tril() if causal else allowed)
    assert torch.allclose(found[:, :7], alone, atol=1e-5) and found.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
def test_packed_documents_equal_separate_rows(model, causal):
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    allowed = document[:, None] == document[None, :]
    positions = torch.tensor(
        [[0, 1, 2, 0, 1, 2, 3]]
    )  # GPT-2's are learned: they begin anew with each document
    packed = hidden(model, IDS, allowed.tril() if causal else allowed, positions)
    for part in (slice(0, 3), slice(3, 7)):
        size = part.stop - part.start
        own = torch.ones(size, size, dtype=torch.bool)
        assert torch.allclose(
            packed[:, part], hidden(model, IDS[:, part], own.tril() if causal else own), atol=1e-5
        )


def test_rows_of_a_batch_may_attend_differently(model):
    full = torch.ones(7, 7, dtype=torch.bool)
    both = hidden(model, IDS.repeat(2, 1), torch.stack([full, full.tril()]))
    assert torch.allclose(both[:1], hidden(model, IDS, full), atol=1e-5)
    assert torch.allclose(both[1:], hidden(model, IDS), atol=1e-5)


def test_gradients_follow_the_mask(model):
    for full in (True, False):
        embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
        allowed = torch.ones(7, 7, dtype=torch.bool)
        mask = mask_of(allowed if full else allowed.tril())
        output = model.base_model(
            inputs_embeds=embedded, attention_mask=mask, use_cache=False
        ).last_hidden_state
        (output[0, 2] * torch.linspace(-1, 2, 32)).sum().backward()
        reached = embedded.grad[0].abs().amax(-1) > 0
        assert (
            reached.tolist() == [True] * 7 if full else reached.tolist() == [True] * 3 + [False] * 4
        )
