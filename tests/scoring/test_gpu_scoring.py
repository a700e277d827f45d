"""How the engine scores on a GPU, tried on a CPU: padded rows give the same scores, several
batches are queued before their values are read, and nothing in between waits for the device.

A tensor on the device "meta" has no values: whatever needs one (`.item()`, `bool()`, `.cpu()`,
indexing with a mask) raises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from host_work import OperatorCalls

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.scoring import attention, engine
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.forward_config import ForwardConfig
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.scoring.multiple_choice import predict
from antlm_bench.scoring.plan import PaddingLimits
from antlm_bench.types import Item, Option, Probes

SMALL = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
         "num_attention_heads": 4, "attn_implementation": "sdpa"}  # fmt: skip


def make_probes(kind: str, num_rows: int = 10) -> tuple[list[Probes], int]:
    """Probes of random rows of 5 to 14 tokens, num_rows of each length; causal ones share a
    prefix.
    """
    rng, probes = np.random.default_rng(0), []
    for length in range(5, 15):
        ids = rng.integers(3, 50, (num_rows, length)).astype(np.int32)
        row, position = np.arange(num_rows), np.full(num_rows, length // 2)
        read = position
        if kind == "causal":
            ids[:, :2] = 7
            row = np.repeat(row, length - 1)
            position = np.tile(np.arange(length - 1), num_rows)
            read = position + 1
        text_index = (row + num_rows * (length - 5)).astype(np.int32)
        target = ids[row, read].astype(np.int64)
        attention_kind = "causal" if kind == "causal" else "full"
        probes.append(Probes(ids, attention_kind, row, position, target, text_index))
    return probes, 10 * num_rows


def build_model(kind: str) -> Any:
    if kind == "causal":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).eval()
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()


@pytest.fixture
def meta_engine(monkeypatch: pytest.MonkeyPatch):
    """meta_engine(kind) -> an engine whose model is on the device "meta"."""
    transformers.AttentionInterface.register(
        attention.PACKED_ATTENTION, attention.packed_attention_forward
    )
    monkeypatch.setattr(
        engine, "read_back", lambda values: [np.zeros(tuple(v.shape)) for v in values]
    )

    def build(kind: str, batch_tokens: int) -> Engine:
        native = "causal" if kind == "causal" else "full"
        config = ForwardConfig("sdpa", native, "packed", last_layer_at_reads=kind == "masked")
        return Engine(build_model(kind).to("meta"), kind, config, batch_tokens)

    return build


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_scoring_loop_never_waits_for_the_device(meta_engine, kind) -> None:
    scorer = meta_engine(kind, batch_tokens=64)
    probes, num_texts = make_probes(kind)
    ticks: list[float] = []

    scores = scorer.score_probes(probes, num_texts, ticks.append)

    assert scores.shape == (num_texts,)
    assert sum(ticks) == pytest.approx(1) and len(ticks) > 5


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_values_of_a_batch_without_reads_are_on_the_device(
    meta_engine, monkeypatch, kind
) -> None:
    scorer = meta_engine(kind, batch_tokens=1)
    [first, second, *_], num_texts = make_probes(kind)
    nothing = np.array([], np.int64)
    unread = Probes(
        second.ids, second.attention, nothing, nothing, nothing, nothing.astype(np.int32)
    )
    devices: list[str] = []

    def record_devices(values):
        devices.extend(value.device.type for value in values)
        return [np.zeros(tuple(value.shape)) for value in values]

    monkeypatch.setattr(engine, "read_back", record_devices)
    scorer.score_probes([first, unread], num_texts)

    assert set(devices) == {"meta"}


def test_a_value_on_the_device_cannot_be_read_in_these_tests(meta_engine) -> None:
    scorer = meta_engine("causal", batch_tokens=64)
    model = scorer.model
    model.model.layers[0].register_forward_hook(lambda _m, _i, output: bool((output > 0).all()))
    probes, num_texts = make_probes("causal")

    with pytest.raises(RuntimeError, match="meta tensors"):
        scorer.score_probes(probes, num_texts)


@pytest.mark.parametrize("num_rows", [10, 300])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_batch_calls_few_operators_more_than_a_plain_forward(meta_engine, kind, num_rows) -> None:
    """Measured: 1.17 times as many (causal) and 1.19 times (masked)."""
    plain_model = build_model(kind)
    with torch.inference_mode(), OperatorCalls() as plain:
        no_cache = {"use_cache": False} if kind == "causal" else {}
        model_output = plain_model(input_ids=torch.ones(8, 12, dtype=torch.long), **no_cache)
        model_output.logits.log_softmax(-1)
    scorer = meta_engine(kind, batch_tokens=16_384)
    probes, num_texts = make_probes(kind, num_rows)
    scorer.score_probes(probes, num_texts)  # finds the last layer
    ticks: list[float] = []

    with OperatorCalls() as ours:
        scorer.score_probes(probes, num_texts, ticks.append)

    num_batches = len(ticks)
    assert num_batches == (1 if num_rows == 10 else {"causal": 2, "masked": 4}[kind])
    assert ours.calls["aten.scaled_dot_product_attention.default"] == 6 * num_batches
    assert ours.calls.total() <= 1.2 * num_batches * plain.calls.total()


PADDINGS = {
    "little padding": PaddingLimits(inputs=1.1, free_tokens=0, attention=1.5),
    "much padding": PaddingLimits(inputs=1.1, free_tokens=10_000, attention=100.0),
}


@pytest.mark.parametrize(("kind", "method"), [("causal", "causal"), ("masked", "mlm")])
@pytest.mark.parametrize("padding", PADDINGS.values(), ids=list(PADDINGS))
def test_padded_rows_and_queued_batches_change_no_score(
    make_checkpoint, sentences, monkeypatch, kind, method, padding
) -> None:
    halves = zip(sentences[::2], sentences[1::2], strict=True)
    items = [Item(str(n), (Option(a), Option(b)), 0) for n, (a, b) in enumerate(halves)]
    checkpoint = open_checkpoint(str(make_checkpoint(kind)), OpenOptions(device="cpu"))
    checkpoint.engine.batch_tokens = 300
    methods = [resolve_method(method, checkpoint)]
    [expected] = predict(checkpoint, items, methods)
    build_layout = attention.PackedLayout.from_batch
    num_padding: list[int] = []

    def record_padding(batch, *arguments):
        layout = build_layout(batch, *arguments)
        num_tokens = sum(rows * length for rows, length in batch.blocks)
        num_padding.append(sum(rows * length for rows, length in layout.groups) - num_tokens)
        return layout

    monkeypatch.setattr(engine, "padding_limits", lambda device: padding)
    monkeypatch.setitem(engine.MAX_PENDING_BATCHES, "cpu", 7)
    monkeypatch.setattr(attention.PackedLayout, "from_batch", record_padding)
    [padded] = predict(checkpoint, items, methods)

    assert max(num_padding) > 0, "no rows of different lengths were padded"
    assert np.abs(padded.padded("scores") - expected.padded("scores")).max() < 1e-4
