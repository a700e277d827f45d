"""What a token may see: full, causal, padded, packed; and what a mask that allows nothing does."""

from __future__ import annotations

import pytest
import torch
from ltg_models import KINDS, build_reference_model

IDS = torch.tensor([[3, 7, 19, 4, 4, 11, 2]])
MODES = [torch.enable_grad, torch.no_grad]  # explicit softmax, fused attention


def logits(model, **inputs):
    return model(**inputs).logits.detach()


def close(a, b):
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_only_full_attention_sees_the_right_context(kind):
    changed = IDS.clone()
    changed[0, -1] = 5
    for suffix, sees in (("ForMaskedLM", True), ("ForCausalLM", False)):
        model = build_reference_model(kind, suffix)[0]
        moved = (logits(model, input_ids=IDS) - logits(model, input_ids=changed)).abs().amax(-1)[0]
        assert bool((moved[:-1] > 1e-4).all()) if sees else float(moved[:-1].max()) == 0.0
        assert moved[-1] > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_future_of_a_causal_position(kind):
    model = build_reference_model(kind, "ForCausalLM")[0]
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=embedded).logits[0, 3].sum().backward()
    assert embedded.grad[0, :4].abs().amax(-1).min() > 0 and embedded.grad[0, 4:].abs().max() == 0


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_base_model_is_causal_with_equal_weights(kind):
    masked, causal = build_reference_model(kind)[0], build_reference_model(kind, "ForCausalLM")[0]
    assert causal.base_model.causal and not masked.base_model.causal
    assert [n for n, _ in masked.named_parameters()] == [n for n, _ in causal.named_parameters()]
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    direct = causal.base_model(input_ids=IDS).last_hidden_state
    assert close(
        direct, masked.base_model(input_ids=IDS, attention_mask=triangle).last_hidden_state
    )
    everything = torch.ones(1, 1, 7, 7)
    assert close(
        logits(causal, input_ids=IDS, attention_mask=everything.bool()),
        logits(masked, input_ids=IDS),
    )
    assert close(
        logits(causal, input_ids=IDS, attention_mask=0 * everything), logits(masked, input_ids=IDS)
    )  # additive


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", ["ForMaskedLM", "ForCausalLM"])
@pytest.mark.parametrize("kind", ["", "weighted_output", "gpt"])
def test_padding_on_either_side_changes_nothing_at_real_positions(kind, suffix, mode):
    model, pad = build_reference_model(kind, suffix)[0], torch.tensor([[0, 0]])
    ones, none = torch.ones(1, 7), torch.zeros(1, 2)
    with mode():
        alone = logits(model, input_ids=IDS)
        right = logits(
            model, input_ids=torch.cat([IDS, pad], 1), attention_mask=torch.cat([ones, none], 1)
        )
        left = logits(
            model,
            input_ids=torch.cat([pad, IDS], 1),
            attention_mask=torch.cat([none, ones], 1).long(),
        )
    assert close(alone, right[:, :7]) and close(alone, left[:, 2:])
    assert right.isfinite().all() and left.isfinite().all()


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["bool", "additive", "infinite"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_separate_rows(kind, form, mode):
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    for suffix in ("ForMaskedLM", "ForCausalLM"):
        model = build_reference_model(kind, suffix)[0]
        allowed = document[:, None] == document[None, :]
        if suffix == "ForCausalLM":
            allowed = allowed.tril()
        mask = allowed[None, None]
        if form != "bool":
            mask = torch.zeros(mask.shape).masked_fill(
                ~mask, torch.finfo(torch.float32).min if form == "additive" else -torch.inf
            )
        with mode():
            packed = logits(model, input_ids=IDS, attention_mask=mask)
            assert close(packed[:, :3], logits(model, input_ids=IDS[:, :3]))
            assert close(packed[:, 3:], logits(model, input_ids=IDS[:, 3:]))


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["", "gpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_may_attend_nothing_is_finite(kind, mode, dtype):
    model, nothing = build_reference_model(kind)[0].to(dtype), torch.zeros(1, 1, 7, 7)
    with mode():
        for mask in (nothing.bool(), nothing - torch.inf, torch.zeros(1, 7)):
            assert logits(model, input_ids=IDS, attention_mask=mask).isfinite().all()


@pytest.mark.parametrize("kind", ["", "gpt"])
def test_texts_of_any_length_in_any_order_are_possible(
    kind,
):
    model = build_reference_model(kind)[0]
    long = torch.arange(3, 19).repeat(3)[None]
    with torch.inference_mode():
        first = logits(model, input_ids=long)
    assert first.shape == (1, 48, 20) and first.isfinite().all()
    short = model(
        input_ids=IDS
    )  # the index built under inference mode serves a forward with gradients
    short.logits.sum().backward()
    assert close(short.logits.detach(), logits(build_reference_model(kind)[0], input_ids=IDS))
