"""config.json of a stranger cannot make transformers build more than the weights hold."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import transformers

from antlm_bench.checkpoints import OpenOptions, build_limits
from antlm_bench.checkpoints.loader import RunnableModel, load_runnable_model
from antlm_bench.checkpoints.resolve import locate_sources
from antlm_bench.errors import CheckpointError


@pytest.fixture
def checkpoint(make_checkpoint, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    return shutil.copytree(make_checkpoint("causal"), tmp_path / "model")


def load(folder: Path, **options: str) -> RunnableModel:
    open_options = OpenOptions(device="cpu", **options)
    return load_runnable_model(str(folder), locate_sources(str(folder), open_options), open_options)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000"),
        ("num_hidden_layers", -1000, "num_hidden_layers is -1,000"),
        ("num_attention_heads", -1, "num_attention_heads is -1"),
        ("num_hidden_layers", 9_999, "a model of more than .* modules"),
        ("hidden_size", 10**9, "hidden_size is 1,000,000,000"),
        ("hidden_size", 10**7, "a model of more than .* parameters"),
        ("vocab_size", 10**8, "a model of more than .* parameters"),
        ("intermediate_size", 10**8, "a model of more than .* parameters"),
        ("rope_theta", 10**400, "rope_theta: should be a finite number"),
    ],
)
def test_size_beyond_the_weights_is_refused(
    checkpoint: Path, key: str, value: object, message: str
) -> None:
    change_config(checkpoint, **{key: value})

    with pytest.raises(CheckpointError, match=message) as caught:
        load(checkpoint)
    assert caught.value.location == str(checkpoint / "config.json")


def test_buffers_count_too(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_limits, "FREE_BUFFER_BYTES", -(10**9))

    with pytest.raises(CheckpointError, match="bytes of buffers"):
        load(checkpoint)


@pytest.mark.skipif(os.name != "posix", reason="needs FIFOs")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_fifo_does_not_block(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)

    with pytest.raises(CheckpointError):
        load(checkpoint)


def test_huge_header_of_weights_is_not_read(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    os.truncate(path, 1 << 31)
    with path.open("r+b") as file:
        file.write((1 << 30).to_bytes(8, "little"))

    with pytest.raises(CheckpointError):
        load(checkpoint)


def test_unknown_token_outside_the_vocabulary_is_an_error(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"unk_token": "", "cls_token": "<absent>"}))

    with pytest.raises(CheckpointError, match="the vocabulary lacks"):
        load(checkpoint)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_rank_of_an_adapter_beyond_its_weights_is_refused(make_checkpoint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    peft = pytest.importorskip("peft")
    base = make_checkpoint("causal")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(model, lora).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**7}))

    with pytest.raises(CheckpointError, match=r"adapter_config\.json describes a model of more"):
        load(base, peft=str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", {}),
        ("_attn_implementation", 7),
        ("rms_norm_eps", -0.5),
        ("rms_norm_eps", float("nan")),
        ("id2label", 1e308),
        ("num_labels", []),
        ("quantization_config", 7),
        ("dtype", "x"),
        ("hidden_act", ""),
        ("vocab_size", -1),
    ],
)
def test_a_wrong_value_is_named_with_its_key(checkpoint: Path, key: str, value: object) -> None:
    change_config(checkpoint, **{key: value})

    with pytest.raises(CheckpointError, match=rf"\b{key} is {re.escape(repr(value)[:4])}"):
        load(checkpoint)


def test_outputs_as_tuples_change_nothing(checkpoint: Path) -> None:
    change_config(checkpoint, return_dict=False)

    assert load(checkpoint).model.config.return_dict


def test_value_that_only_a_forward_refuses_is_named(  # type: ignore[no-untyped-def]
    make_checkpoint, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(make_checkpoint("masked"), tmp_path / "model")
    change_config(checkpoint, chunk_size_feed_forward=3)

    with pytest.raises(CheckpointError, match="feed_forward is 3: the forward") as caught:
        load(checkpoint)
    assert caught.value.location == str(checkpoint / "config.json")
