"""A folder of checkpoints against a track: a right one passes, every way to be wrong is named and
mended.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from antlm_bench.cli.app import run as cli
from antlm_bench.commands.preflight import is_complete_safetensors, preflight
from antlm_bench.errors import CheckpointError, IncompleteError, UsageError

STRICT_SMALL = [*range(1, 10), *range(10, 101, 10)]


def checkpoint(path: Path, number: int, words: int | None = None) -> None:
    path.mkdir(parents=True)
    card = {} if words is None else {"antlm_bench": {"words_seen": words}}
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **card}))
    (path / "tokenizer.json").write_text("{}")
    save_file({"w": np.full(3, number, np.float32)}, path / "model.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    checkpoint(tmp_path / "m" / "main", 1000)
    for number in STRICT_SMALL:
        checkpoint(tmp_path / "m" / f"chck_{number}M", number, number * 1_000_000 + 20_000)
    return tmp_path / "m"


def test_a_right_folder_passes(model: Path) -> None:
    found = preflight(model, track="strict-small", year="2026")
    assert found["milestones"] == 19 and found["weights"] == 20


def test_the_last_milestone_may_be_the_final_model(model: Path) -> None:
    shutil.copy(model / "chck_100M" / "model.safetensors", model / "main" / "model.safetensors")
    assert preflight(model, track="strict-small", year="2026")


def test_a_year_without_milestones_needs_the_final_model_only(model: Path) -> None:
    facts = preflight(model, track="strict", year="2024")
    assert (facts["milestones"], facts["weights"]) == (0, 1)


def test_a_longer_track_lacks_nine(model: Path) -> None:
    with pytest.raises(IncompleteError, match="9 problems") as caught:
        preflight(model, track="strict", year="2026")
    assert "chck_1000M: missing" in str(caught.value)


def in_config(key: str, value: Any) -> Callable[[Path], Any]:
    """What writes one more key into the configuration of chck_5M."""

    def write(m: Path) -> None:
        path = m / "chck_5M/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return write


def code(text: str) -> Callable[[Path], Any]:
    return lambda m: (m / "chck_5M/modeling.py").write_text(text)


NEWER = "which the official pipelines' transformers 4.51.3 does not"
# What transformers 4.51.3, which the official pipelines pin, cannot open.
UNOPENED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tokenizer class": (
        lambda m: (m / "chck_5M/tokenizer_config.json").write_text(
            '{"tokenizer_class": "TokenizersBackend"}'
        ),
        f"names the class TokenizersBackend, {NEWER} know",
    ),
    "prefix space": (
        lambda m: (m / "chck_5M/tokenizer.json").write_text(
            '{"pre_tokenizer": {"add_prefix_space": true}}'
        ),
        "tokenizer.json adds a space before a text",
    ),
    "model type": (
        in_config("model_type", "antlm_gpt_bert"),
        "does not know the model type 'antlm_gpt_bert'",
    ),
    "code elsewhere": (
        in_config("auto_map", {"AutoModel": "modeling_x.Model"}),
        "names code in modeling_x.py",
    ),
    "rotary base": (
        in_config("rope_parameters", {"rope_theta": 5e5}),
        "rope_theta 500000.0 is only in rope_parameters",
    ),
    "rotary scale": (
        in_config("rope_parameters", {"rope_type": "yarn"}),
        "rope_type is yarn in rope_parameters",
    ),
    "a name": (
        code("import torch\nfrom transformers import PreTrainedModel, initialization as init\n"),
        f"modeling.py:2 imports transformers.initialization, {NEWER} have",
    ),
    "a module": (
        code("from transformers.masking_utils import f\n"),
        f"imports transformers.masking_utils, {NEWER}",
    ),
    "no Python": (code("class Model(:\n"), "modeling.py cannot be read as Python"),
}
OPENED = {
    "old key": in_config("rope_parameters", {"rope_theta": 10000.0, "rope_type": "default"}),
    "both keys": lambda m: (
        in_config("rope_parameters", {"rope_theta": 5})(m),
        in_config("rope_theta", 5)(m),
    ),
    "caught": code(
        "try:\n    from transformers import initialization\nexcept ImportError:\n    pass\n"
    ),
    "others'": code("from elsewhere import initialization\nfrom transformers import LlamaModel\n"),
    "tokenizer": lambda m: (m / "chck_5M/tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer"}'
    ),
}


@pytest.mark.parametrize("name", UNOPENED)
def test_what_the_official_environment_cannot_open_is_named(model: Path, name: str) -> None:
    change, message = UNOPENED[name]
    change(model)
    with pytest.raises(IncompleteError) as caught:
        preflight(model, track="strict-small", year="2026")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", OPENED)
def test_what_the_official_environment_opens_passes(model: Path, name: str) -> None:
    OPENED[name](model)
    assert preflight(model, track="strict-small", year="2026")


WRONG: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "missing": (lambda m: shutil.rmtree(m / "chck_3M"), ["chck_3M: missing"]),
    "no final": (lambda m: shutil.rmtree(m / "main"), ["main: no final model"]),
    "case": (
        lambda m: (m / "chck_3M").rename(m / "chck_3m"),
        ["rename it to chck_3M", "chck_3M: missing"],
    ),
    "zeros": (
        lambda m: (m / "chck_3M").rename(m / "chck_03M"),
        ["chck_03M: not the name of a milestone"],
    ),
    "steps": (
        lambda m: shutil.copytree(m / "main", m / "step-2000"),
        ["step-2000: not the name of a milestone"],
    ),
    "thousands": (
        lambda m: shutil.copytree(m / "main", m / "chck_100k"),
        ["chck_100k: a milestone in thousands of words"],
    ),
    "too many": (
        lambda m: shutil.copytree(m / "main", m / "chck_200M"),
        ["not a milestone of this track"],
    ),
    "twice": (
        lambda m: shutil.copy(m / "chck_1M/model.safetensors", m / "chck_2M/model.safetensors"),
        ["chck_2M: the same weights as chck_1M"],
    ),
    "an early milestone as the final": (
        lambda m: shutil.copy(m / "chck_1M/model.safetensors", m / "main/model.safetensors"),
        ["final: the same weights as chck_1M"],
    ),
    "another architecture": (
        lambda m: (m / "chck_4M/config.json").write_text(json.dumps({"model_type": "gpt2"})),
        ["chck_4M: another model type (gpt2) than the final model (llama)"],
    ),
    "another vocabulary": (
        lambda m: (m / "chck_4M/config.json").write_text(
            json.dumps({"model_type": "llama", "vocab_size": 9})
        ),
        ["chck_4M: another vocabulary (9) than the final model (None)"],
    ),
    "another tokenizer": (
        lambda m: (m / "chck_4M/tokenizer.json").write_text('{"a": 1}'),
        ["chck_4M: another tokenizer than the final model's (tokenizer.json)"],
    ),
    "a link to nothing": (
        lambda m: (
            (m / "chck_5M/model.safetensors").unlink(),
            (m / "chck_5M/model.safetensors").symlink_to(m / "blobs" / "gone"),
        ),
        ["chck_5M: model.safetensors is truncated or not a safetensors file"],
    ),
    "a shard is missing": (
        lambda m: (m / "chck_5M/model.safetensors.index.json").write_text(
            '{"metadata": {}, "weight_map": '
            '{"w": "model.safetensors", "v": "model-00002-of-00002.safetensors"}}'
        ),
        ["chck_5M: a file of the weights is missing: model-00002-of-00002.safetensors"],
    ),
    "pickled": (
        lambda m: (m / "chck_5M/model.safetensors").rename(m / "chck_5M/pytorch_model.bin"),
        ["chck_5M: pickled weights, not safetensors"],
    ),
    "no weights": (lambda m: (m / "chck_5M/model.safetensors").unlink(), ["chck_5M: no weights"]),
    "cut short": (
        lambda m: (m / "chck_5M/model.safetensors").write_bytes(
            (m / "chck_5M/model.safetensors").read_bytes()[:-1]
        ),
        ["model.safetensors is truncated"],
    ),
    "pointer": (
        lambda m: (m / "chck_5M/model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        ),
        ["not a safetensors file"],
    ),
    "no tokenizer": (lambda m: (m / "chck_9M/tokenizer.json").unlink(), ["chck_9M: no tokenizer"]),
    "no config": (lambda m: (m / "chck_9M/config.json").unlink(), ["chck_9M: no config.json"]),
    "config": (
        lambda m: (m / "chck_9M/config.json").write_text("{"),
        ["config.json cannot be read"],
    ),
    "words": (
        lambda m: (m / "chck_9M/config.json").write_text('{"antlm_bench": {"words_seen": 900000}}'),
        ["chck_9M: its config.json records 900,000 words seen"],
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, model: Path) -> None:
    spoil, words = WRONG[wrong]
    spoil(model)
    with pytest.raises(IncompleteError) as caught:
        preflight(model, track="strict-small", year="2026")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_no_folder_no_track_no_year(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        preflight(tmp_path / "none", track="strict", year="2026")
    with pytest.raises(UsageError, match="unknown track"):
        preflight(tmp_path, track="small", year="2026")
    with pytest.raises(UsageError, match="unknown year '2019'"):
        preflight(tmp_path, track="strict", year="2019")


@pytest.mark.parametrize(
    "header", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2) + b"[]"]
)
def test_bytes_that_are_no_safetensors(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(header)
    assert not is_complete_safetensors(tmp_path / "x")


def test_the_verb(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["preflight", str(model), "--track", "strict-small"]) == 0
    assert "19" in capsys.readouterr().out
    (model / "chck_1M" / "tokenizer.json").unlink()
    assert cli(["preflight", str(model), "--track", "strict-small"]) == 5
