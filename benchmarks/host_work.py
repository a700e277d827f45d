"""Measure the host's CPU time per scored batch, and that of a plain forward of the same model.

    python benchmarks/host_work.py

While a GPU computes, the host queues the next operators. This script measures that work alone: on
a CPU, with models of 6 layers that are so small (8 dimensions, batches of 256 tokens) that their
arithmetic takes next to no time. Rows are padded or packed as on a GPU (scoring.attention). "plain
forward" is a forward of the same model on 16 rows of 16 tokens, and a log-softmax. Planning
(sorting rows, choosing batches, computing their indices) grows with the tokens, so it is also
measured for batches as large as a GPU's. Milliseconds are CPU time of the process, medians of 9
rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from score import format_table
from torch.utils._python_dispatch import TorchDispatchMode

from antlm_bench.checkpoints.resolve import GPU_BATCH_TOKENS
from antlm_bench.scoring import attention, engine, logit_readers
from antlm_bench.scoring.attention import GPU_PADDING, PACKED_ATTENTION, PackedLayout
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.forward_config import ForwardConfig
from antlm_bench.scoring.plan import build_plans
from antlm_bench.types import Attention, Probes

LENGTHS = range(8, 17)  # tokens per row
VOCABULARY = 64
BATCH_TOKENS, NUM_BATCHES, ROUNDS = 256, 20, 9
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 6,
    "num_attention_heads": 1,
    "attn_implementation": "sdpa",
}


class OperatorCalls(TorchDispatchMode):  # type: ignore[misc]
    """Counts the calls of torch's operators within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def run_plain_forward(model: Any, rows: int, length: int) -> None:
    """Run a model on rows of one length, and a log-softmax, without this package."""
    no_cache = {"use_cache": False} if model.config.model_type == "llama" else {}
    ids = torch.ones(rows, length, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(input_ids=ids, **no_cache).logits.log_softmax(-1)


def count_operator_calls(
    scorer: Engine, plain_model: Any, score: Callable[[], Any]
) -> dict[str, float]:
    """Return the operator calls per batch of `score`, which runs `scorer`, and their ratio to the
    calls of a plain forward of `plain_model`.
    """
    before = scorer.batches_computed
    with OperatorCalls() as scoring:
        score()
    num_batches = scorer.batches_computed - before
    with OperatorCalls() as plain:
        run_plain_forward(plain_model, 8, 12)
    calls = scoring.calls.total() / num_batches
    return {
        "batches": num_batches,
        "operator calls per batch": round(calls),
        "x plain forward": calls / plain.calls.total(),
    }


def build_model(kind: str) -> Any:
    """Build a model whose arithmetic takes next to no time."""
    torch.manual_seed(0)
    if kind == "causal":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).eval()


def make_probes(kind: str, num_tokens: int) -> tuple[list[Probes], int]:
    """Return probes of about num_tokens random tokens, and the number of texts.

    Each row is a text. Causal rows share their first two tokens and are read at all positions, the
    others at one position.
    """
    rng, probes, first_text = np.random.default_rng(0), [], 0
    num_rows = -(-num_tokens // sum(LENGTHS))
    native: Attention = "causal" if kind == "causal" else "full"
    for length in LENGTHS:
        ids = rng.integers(0, VOCABULARY, (num_rows, length)).astype(np.int32)
        row, position = np.arange(num_rows), np.full(num_rows, length // 2)
        if kind == "causal":
            ids[:, :2] = 7
            row = np.repeat(row, length - 1)
            position = np.tile(np.arange(length - 1), num_rows)
        reads = row, position, ids[row, position], first_text + row
        probes.append(Probes(ids, native, *(column.astype(np.int32) for column in reads)))
        first_text += num_rows
    return probes, first_text


def median_milliseconds(function: Callable[[], Any]) -> float:
    """Return the median CPU milliseconds of several calls, after one that is not counted."""
    function()
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        function()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def plan_batches(probes: list[Probes], batch_tokens: int) -> int:
    """Plan all batches of probes as the engine does. Return the number of batches."""
    num_batches = 0
    for plan in build_plans(probes, GPU_PADDING):
        start = 0
        while start < len(plan):
            batch, start = plan.next_batch(start, batch_tokens)
            PackedLayout.from_batch(batch, GPU_PADDING)
            num_batches += 1
    return num_batches


def measure_kind(kind: str) -> dict[str, Any]:
    """Return the result row of causal or masked models."""
    native: Attention = "causal" if kind == "causal" else "full"
    config = ForwardConfig("sdpa", native, "packed", last_layer_at_reads=kind == "masked")
    scorer = Engine(build_model(kind), kind, config, BATCH_TOKENS)
    plain_model = build_model(kind)
    probes, num_texts = make_probes(kind, NUM_BATCHES * BATCH_TOKENS)
    score = partial(scorer.score_probes, probes, num_texts)
    milliseconds = median_milliseconds(score)
    before = scorer.batches_computed
    score()
    num_batches = scorer.batches_computed - before
    large_probes, _ = make_probes(kind, 4 * GPU_BATCH_TOKENS)
    num_large = plan_batches(large_probes, GPU_BATCH_TOKENS)
    planning = median_milliseconds(lambda: plan_batches(large_probes, GPU_BATCH_TOKENS))
    small_planning = median_milliseconds(lambda: plan_batches(probes, BATCH_TOKENS))
    return {
        "model": kind,
        "ms per batch": milliseconds / num_batches,
        "of it planning": small_planning / num_batches,
        "plain forward, ms": median_milliseconds(lambda: run_plain_forward(plain_model, 16, 16)),
        f"planning {GPU_BATCH_TOKENS:,} tokens, ms": planning / num_large,
    }


def main() -> None:
    torch.set_num_threads(1)
    transformers.AttentionInterface.register(PACKED_ATTENTION, attention.packed_attention_forward)
    with (
        patch.object(engine, "padding_limits", lambda _device: GPU_PADDING),
        patch.dict(logit_readers.ROWS_PER_REDUCTION, clear=True),
    ):
        print(format_table([measure_kind(kind) for kind in ("causal", "masked")]))


if __name__ == "__main__":
    main()
