"""Two threads score at once: every score is the one that a single thread computes, to the last
bit.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from prediction_rows import predict_rows

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint, with_bf16_body
from antlm_bench.checkpoints.pretrained import silence_transformers
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
