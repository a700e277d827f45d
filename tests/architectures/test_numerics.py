"""Our architectures against the slow reference, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import reference_models as reference
import torch
from ltg_models import KINDS, build_ltg_model, build_reference_model, reference_settings

from antlm_bench.architectures import gpt_bert, ltg_bert

IDS = [3, 7, 19, 4, 4, 11, 2]
DIRECTIONS = {"ForMaskedLM": lambda i, j: True, "ForCausalLM": lambda i, j: j <= i}


def close(found, expected, tolerance=2e-5):
    return np.abs(np.asarray(found) - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.long
@pytest.mark.parametrize("suffix", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_reference(kind, suffix):
    model, weights = build_reference_model(kind, suffix)
    expected = reference.logits(weights, reference_settings(kind), IDS, DIRECTIONS[suffix])
    ids = torch.tensor([IDS, IDS[::-1]])
    assert close(
        model(input_ids=ids).logits[0].detach(), expected
    )  # explicit softmax, as in training
    with torch.no_grad():
        assert close(model(input_ids=ids).logits[0], expected)  # fused attention


@pytest.mark.parametrize("config", [{"attention_gate": False}, {"layer_weights": False}])
def test_gpt_bert_without_a_part_equals_the_reference_without_it(config):
    model, weights = build_reference_model("gpt", **config)
    assert close(
        model(input_ids=torch.tensor([IDS])).logits[0].detach(),
        reference.logits(weights, reference_settings("gpt"), IDS),
    )


def test_per_head_positions_equal_the_reference():
    model, weights = build_reference_model("", per_head_positions=True)
    found = model(input_ids=torch.tensor([IDS])).logits[0].detach()
    assert close(found, reference.logits(weights, reference_settings("", per_head=True), IDS))
    assert not close(found, reference.logits(weights, reference_settings(""), IDS), 1e-2)


@pytest.mark.parametrize("module", [ltg_bert, gpt_bert])
@pytest.mark.parametrize(
    ("buckets", "furthest", "length"), [(32, 512, 600), (8, 32, 40), (4, 5, 9)]
)
def test_buckets_equal_the_reference_also_beyond_the_furthest(module, buckets, furthest, length):
    found = module.bucket_index(length, buckets, furthest)
    row = [reference.bucket(i - 0, buckets, furthest) + buckets - 1 for i in range(length)]
    column = [reference.bucket(0 - j, buckets, furthest) + buckets - 1 for j in range(length)]
    assert found[:, 0].tolist() == row and found[0].tolist() == column
    assert all(
        torch.equal(found[1:, 1:].diagonal(k), found[:-1, :-1].diagonal(k)) for k in range(-3, 4)
    )
    assert found.min() >= 0 and found.max() <= 2 * buckets - 2


def test_published_buckets():
    """By hand for 32 buckets up to 512: distances up to 16 alone, then 16 + ceil(15 log(d / 16) /
    log(511 / 16)).
    """
    row = (ltg_bert.bucket_index(600, 32, 512)[:, 0] - 31).tolist()
    assert row[:18] == [*range(17), 17]
    assert [row[d] for d in (20, 21, 32, 64, 128, 256, 500, 511, 512, 599)] == [
        17,
        18,
        20,
        23,
        26,
        29,
        31,
        31,
        31,
        31,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_fp32(kind):
    model, ids = build_ltg_model(kind), torch.tensor([IDS])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = model(input_ids=ids).logits.detach()
    with torch.no_grad():
        cast = model.to(torch.bfloat16)(input_ids=ids, attention_mask=torch.ones(1, 7)).logits
    assert trained.dtype == cast.dtype == torch.bfloat16
    for found in (trained, cast):
        assert (found.float() - expected).square().mean().sqrt() < 0.05 * expected.std()
