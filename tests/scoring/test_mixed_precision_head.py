"""A head in bf16: what it says of a target is fp32 but for what cancels in the sum; where that
cannot be, it is not.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from prediction_rows import predict_rows
from test_cpu_kernels import made

from antlm_bench.checkpoints import open_checkpoint, with_bf16_body
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.forward_config import ForwardConfig
from antlm_bench.scoring.logit_readers import fast_logsumexp
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.scoring.mixed_precision_head import Bf16HeadEngine, Bf16LMHead, has_plain_lm_head
from antlm_bench.types import Item, Option


@pytest.mark.parametrize(
    ("shift", "share"), [(0.0, 0.8), (200.0, 0.1)]
)  # what all logits share rounds none of them
def test_what_is_said_of_targets_is_better_than_rounded_logits(shift: float, share: float) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 2000)
    with torch.no_grad():
        plain.weight.mul_(6).add_(shift / 64)
    hidden, targets = torch.randn(50, 64).abs().bfloat16(), torch.randint(0, 2000, (50,))
    rows = torch.arange(50)
    with torch.inference_mode():
        want = plain(hidden.float()).log_softmax(-1)[rows, targets]
        rough = copy.deepcopy(plain).bfloat16()(hidden).float().log_softmax(-1)[rows, targets]
        engine = Engine.__new__(Bf16HeadEngine)
        head = Bf16LMHead(plain, 64)
        engine.model = type("Model", (), {"get_output_embeddings": lambda _: head})()
        found = engine._target_logprobs(head(hidden), rows, targets, {})
    plain_error, own_error = (float((x - want).square().mean().sqrt()) for x in (rough, found))
    assert own_error < 0.01 and own_error < share * plain_error


def test_a_sum_that_fp32_cannot_hold_is_added_up_with_care() -> None:
    rows = torch.tensor(
        [[90.0, 1.0, 0.0], [-100.0, -101.0, -99.0], [1.0, 2.0, 3.0], [-80.0, -300.0, 5e4]]
    )
    assert torch.allclose(fast_logsumexp(rows), rows.double().logsumexp(-1).float(), rtol=1e-6)
    assert fast_logsumexp(torch.tensor([[float("nan"), 0.0]])).isnan().all()


@pytest.mark.parametrize(
    ("name", "says"), [("Llama", True), ("Bert", True), ("Gemma2", False), ("Cohere", False)]
)
def test_a_model_that_changes_its_logits_keeps_an_fp32_head(name: str, says: bool) -> None:
    engine = Engine(made(name).eval(), name, ForwardConfig("eager", "causal"), 64)
    assert has_plain_lm_head(engine) is says


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_quick_model_of_a_checkpoint_is_close_to_the_exact_one(
    make_checkpoint, sentences, kind
) -> None:
    opened = open_checkpoint(str(make_checkpoint(kind)))
    quick = with_bf16_body(opened)
    assert isinstance(quick.engine, Bf16HeadEngine)
    items = [Item(str(n), (Option(text),), 0) for n, text in enumerate(sentences[:40])]
    methods = [resolve_method("causal" if kind == "causal" else "mlm", opened)]
    exact, rough = (
        np.array([p.scores[0] for p in predict_rows(m, items, methods)[0]]) for m in (opened, quick)
    )
    assert 0 < np.abs(exact - rough).max() < 0.02 * np.abs(exact).max()
