"""Two threads score at once: every score is the one that a single thread computes, to the last
bit.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from prediction_rows import predict_rows
from tiny_models import build_model, train_tokenizer

from antlm_bench import Scorer, surprisal
from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint, with_bf16_body
from antlm_bench.checkpoints.pretrained import silence_transformers
from antlm_bench.scoring.engine import _locks_by_config, lock_model
from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import Item, Option

Make = Callable[..., Path]
LLAMA = {"architecture": "LlamaForCausalLM", "num_key_value_heads": 2}
REPEATS = 4


@pytest.fixture
def items(sentences: list[str]) -> list[Item]:
    pairs = zip(sentences[0:16:2], sentences[1:16:2], strict=True)
    return [Item(str(n), (Option(a), Option(b)), 0) for n, (a, b) in enumerate(pairs)]


def open_model(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder), OpenOptions(device="cpu", batch_tokens=64))


def score(checkpoint: Checkpoint, items: Sequence[Item]) -> list[tuple[float, ...]]:
    [predictions] = predict_rows(checkpoint, items, [METHODS[checkpoint.methods[0]]])
    return [prediction.scores for prediction in predictions]


def score_in_threads(checkpoints: Sequence[Checkpoint], items: Sequence[Item]) -> None:
    expected = [score(checkpoint, items) for checkpoint in checkpoints]
    start = Barrier(len(checkpoints))

    def run(checkpoint: Checkpoint) -> list[list[tuple[float, ...]]]:
        start.wait()
        return [score(checkpoint, items) for _ in range(REPEATS)]

    with ThreadPoolExecutor(len(checkpoints)) as pool:
        results = list(pool.map(run, checkpoints))
    for first, repeats in zip(expected, results, strict=True):
        assert all(scores == first for scores in repeats)


@pytest.mark.long
def test_two_models_of_one_architecture(make_checkpoint: Make, items: list[Item]) -> None:
    folders = [make_checkpoint("causal", seed=seed, **LLAMA) for seed in (0, 1)]
    first, second = map(open_model, folders)
    second.engine.disable_shortcut("CPU kernels")  # the plain rotary function, in the same file
    score_in_threads([first, second], items)


@pytest.mark.long
def test_models_of_two_architectures(make_checkpoint: Make, items: list[Item]) -> None:
    causal = open_model(make_checkpoint("causal", **LLAMA))
    masked = open_model(make_checkpoint("masked"))
    score_in_threads([causal, masked, with_bf16_body(causal)], items)


@pytest.mark.long
def test_one_model_in_two_threads(make_checkpoint: Make, items: list[Item]) -> None:
    for kind in ("causal", "masked"):
        checkpoint = open_model(make_checkpoint(kind))
        score_in_threads([checkpoint, checkpoint], items)


def call_in_threads(calls: Sequence[Callable[[], list[float]]]) -> None:
    """Check that calls in threads of their own return what they return one after the other."""
    expected = [call() for call in calls]
    start = Barrier(len(calls))

    def repeat(call: Callable[[], list[float]]) -> list[list[float]]:
        start.wait()
        return [call() for _ in range(REPEATS)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that a call is interrupted often
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            results = list(pool.map(repeat, calls))
    finally:
        sys.setswitchinterval(interval)
    for first, repeats in zip(expected, results, strict=True):
        assert all(scores == first for scores in repeats)


@pytest.mark.long
def test_scorers_of_one_model_in_memory(sentences: list[str]) -> None:
    model, tokenizer = build_model("causal", 0).train(), train_tokenizer("causal", True)
    texts = sentences[:8]
    first, second = Scorer(model, tokenizer), Scorer(model, tokenizer)
    call_in_threads(
        [
            lambda: first.logprobs(texts).tolist(),
            lambda: first.logprobs(texts, method="mlm").tolist(),
            lambda: first.token_logprobs(texts, bos="never").column("token_id"),
            lambda: second.logprobs(texts).tolist(),
            lambda: second.compare([(texts[0], texts[1])]).predictions.column("scores"),
            lambda: Scorer(model, tokenizer).logprobs(texts, method="mlm").tolist(),
            lambda: [row["surprisal_bits"] for row in surprisal(second, texts).rows],
        ]
    )
    assert all(module.training for module in model.modules())


def test_models_with_one_configuration_object_share_a_lock() -> None:
    model = build_model("causal", 0)
    other = type(model)(model.config)
    assert other.config is model.config and lock_model(other) is lock_model(model)
    assert lock_model(build_model("causal", 0)) is not lock_model(model)


@pytest.mark.long
def test_the_caller_tokenizes_while_a_model_is_scored(sentences: list[str]) -> None:
    tokenizer = train_tokenizer("causal", True)
    scorers = [Scorer(build_model("causal", seed), tokenizer) for seed in (0, 1)]
    texts = sentences[:16] * 4

    def truncate() -> list[float]:
        return [float(len(tokenizer(text, truncation=True, max_length=4)[0])) for text in texts]

    call_in_threads(
        [truncate, *(lambda scorer=scorer: scorer.logprobs(texts).tolist() for scorer in scorers)]
    )


def test_two_models_run_at_the_same_time() -> None:
    first, second = build_model("causal", 0), build_model("causal", 1)
    both_hold = Barrier(2, timeout=60)

    def hold(model: torch.nn.Module) -> int:
        with lock_model(model):
            return both_hold.wait()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(hold, (first, second))) == [0, 1]


@pytest.mark.long
def test_a_lock_goes_with_its_model() -> None:
    model = build_model("causal", 0)
    assert lock_model(model) is lock_model(model)
    key = id(model.config)
    assert key in _locks_by_config
    del model
    gc.collect()
    assert key not in _locks_by_config


@pytest.mark.long
def test_a_forward_changes_no_module_of_the_library(
    make_checkpoint: Make, items: list[Item]
) -> None:
    checkpoint = open_model(make_checkpoint("causal", **LLAMA))
    model = checkpoint.engine.model
    modules = [sys.modules[name] for name in sorted({type(m).__module__ for m in model.modules()})]
    before = [dict(vars(module)) for module in modules]
    during: list[bool] = []

    def compare(*_: object) -> None:
        during.append(all(vars(m) == old for m, old in zip(modules, before, strict=True)))

    model.base_model.layers[0].register_forward_pre_hook(compare)
    score(checkpoint, items)
    assert during and all(during)


def test_threads_that_load_leave_the_log_level_as_it_was() -> None:
    logger = logging.getLogger("transformers")
    before, entered = logger.level, Barrier(2)

    def load(_: int) -> int:
        entered.wait()
        with silence_transformers():
            torch.manual_seed(0)
            return logger.level

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(load, range(2))) == [logging.CRITICAL] * 2
    assert logger.level == before
