"""How training and finetuning run on a GPU, tried on a CPU: the host waits once per update.

The model is on the device "meta", whose tensors have no values: whatever needs one (`.item()`,
`bool()`, `.cpu()`, indexing with a mask) raises. The one reading of an update is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from finetuning_helpers import make_backbone, make_task
from recipe_helpers import make_phases, make_recipe
from tiny_models import train_tokenizer
from training_text import build_corpus, write_text

from antlm_bench.checkpoints import Backbone
from antlm_bench.finetuning import loop
from antlm_bench.training import dropout, optim, pretrain
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.schedule import plan_steps

META = torch.device("meta")
ENCODER = {"architecture": "ltg-bert", "dropout": 0.1, "attention_dropout": 0.1, "buckets": 4}
RECIPES = {
    "causal": make_recipe(optimizer={"name": "lamb"}),
    "causal, micro-batches of documents": make_recipe(
        model={"architecture": "gpt2", "dropout": 0.1, "attention_dropout": 0.1},
        optimizer={"name": "lamb", "ema": 0.9, "weight_decay": 0.1},
    ),
    "causal and masked": make_recipe(
        model=ENCODER,
        optimizer={"name": "lamb"},
        batch={"short": 0.5},
        **make_phases((2, 1, 1), unit="steps"),
    ),
}  # fmt: skip


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many scalars each reading of device values asked for. Every value is read as 1."""
    counts: list[int] = []

    def read_scalars(values: Sequence[torch.Tensor]) -> list[float]:
        assert all(value.device == META for value in values)
        counts.append(len(values))
        return [1.0] * len(values)

    for module in (pretrain, loop):
        monkeypatch.setattr(module, "read_scalars", read_scalars)
    # The device has neither automatic dtypes nor random numbers.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(dropout._SampleStreams, "_device_keep_mask", draw_nothing)
    return counts


def draw_nothing(key: Any, like: torch.Tensor, dropped_levels: int) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.uint8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("corpus")
    return build_corpus(RECIPES["causal"], write_text(folder / "text"), folder / "corpus")


@pytest.mark.parametrize("name", RECIPES)
def test_training_waits_once_per_update(name, readings, corpus, monkeypatch) -> None:
    recipe = RECIPES[name]
    monkeypatch.setattr(pretrain.Accelerator, "device", property(lambda _: META))
    settings = pretrain.RuntimeSettings("cpu", micro_batch_tokens=32)
    trainer = pretrain.Trainer(recipe, corpus, settings)

    for step in plan_steps(recipe, len(corpus))[:2]:
        trainer.train_step(step)

    assert len(readings) == 2
    assert min(readings) > 2, "no update has several micro-batches"


def build_backbone(kind: str) -> Backbone:
    tokenizer = train_tokenizer("causal" if kind == "causal" else "masked", adds=True)
    size = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    if kind == "ltg-bert":
        model = build_model(RECIPES["causal and masked"].model, size["vocab_size"], masked=True)
        return make_backbone(model.base_model, "masked")
    if kind == "causal":
        return make_backbone(transformers.LlamaModel(transformers.LlamaConfig(**size)), kind)
    return make_backbone(transformers.BertModel(transformers.BertConfig(**size)), kind)


READS_MASK = pytest.mark.xfail(
    raises=RuntimeError, reason="transformers reads the values of the mask or positions it is given"
)


@pytest.mark.parametrize(
    "kind",
    [
        "ltg-bert",
        pytest.param("causal", marks=READS_MASK),
        pytest.param("masked", marks=READS_MASK),
    ],
)
def test_finetuning_waits_once_per_update(kind, readings, monkeypatch) -> None:
    monkeypatch.setattr(loop, "resolve_device", lambda _: META)
    monkeypatch.setattr(optim, "build_optimizer", lambda _, groups, lr, betas, eps: optim.Lamb(
        groups, lr=lr, betas=betas, eps=eps))  # fmt: skip  # the fused AdamW needs a real device
    task, backbone = make_task(train=64, valid=8), build_backbone(kind)
    attention = backbone.native_attention
    splits = loop.encode_splits(backbone, task, 1, attention)
    settings = loop.FinetuneSettings(batch_tokens=64)
    trainer = loop.ClassifierTrainer(backbone, task, 1, attention, settings)

    counts = loop.TrainingCounts(total_updates=4)
    trainer._train_epoch(splits.train, 1, counts, callback=None)

    assert len(readings) == counts.updates >= 3
    assert max(readings) > 2, "no update has several micro-batches"


def test_a_value_on_the_device_cannot_be_read_in_these_tests() -> None:
    with pytest.raises(RuntimeError, match="meta tensor"):
        pretrain.read_scalars([torch.zeros((), device=META)])
