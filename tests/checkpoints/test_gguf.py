"""GGUF files: transformers dequantises them, and the scores are those of the original weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antlm_bench.checkpoints import OpenOptions, expand_refs, open_checkpoint
from antlm_bench.checkpoints.gguf_files import convert_gguf, find_gguf_file
from antlm_bench.errors import CheckpointError, MissingPackage
from antlm_bench.scorer import Scorer

TEXTS = ["The cats near the house sleep.", "the dog sees the small house"]
# Names of llama.cpp -> names of transformers, from the list in llama.cpp's gguf-py.
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def interleave_heads(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return q or k weights in llama.cpp's order, in which the two halves of a head alternate."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(folder: Path, file: Path) -> None:
    """Write a Llama of transformers as a GGUF file in F32, with its BPE."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    config, tensors = model.config, {k: v.numpy() for k, v in model.state_dict().items()}
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, AutoTokenizer.from_pretrained(folder), config.vocab_size)
    for name, original in GLOBAL_NAMES.items():
        writer.add_tensor(name, tensors[original])
    for layer in range(config.num_hidden_layers):
        for name, original in LAYER_NAMES.items():
            tensor = tensors[f"model.layers.{layer}.{original}.weight"]
            if name in ("attn_q", "attn_k"):
                tensor = interleave_heads(tensor, config.num_attention_heads)
            writer.add_tensor(f"blk.{layer}.{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    tokens += [f"<unused{i}>" for i in range(vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(4)
    writer.add_pad_token_id(0)


@pytest.fixture(scope="module")
def gguf_file(make_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(make_checkpoint("causal", mask=False), file)
    return file


def test_scores_are_those_of_the_same_weights_in_safetensors(
    gguf_file: Path, make_checkpoint: Any
) -> None:
    folder = make_checkpoint("causal", mask=False)
    scorer = Scorer(gguf_file, tokenizer=folder, device="cpu")
    expected = Scorer(folder, device="cpu").logprobs(TEXTS)
    np.testing.assert_allclose(scorer.logprobs(TEXTS), expected, atol=1e-4)
    assert scorer.checkpoint.metadata["architecture"] == "LlamaForCausalLM"
    [note] = scorer.checkpoint.metadata["notes"]
    assert note.startswith("transformers dequantised the weights of tiny.gguf (sha256 ")


def test_the_file_holds_its_own_tokenizer(gguf_file: Path) -> None:
    assert np.isfinite(Scorer(gguf_file, device="cpu").logprobs(TEXTS)).all()


def test_a_folder_with_one_file_is_a_checkpoint(gguf_file: Path) -> None:
    assert expand_refs([str(gguf_file.parent)]) == [str(gguf_file.parent)]
    opened = open_checkpoint(str(gguf_file.parent), OpenOptions(device="cpu"))
    assert opened.metadata["weights"] == open_checkpoint(
        str(gguf_file), OpenOptions(device="cpu")
    ).metadata["weights"]  # fmt: skip


def test_the_converted_folder_follows_the_content_of_the_file(
    gguf_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    data = bytearray(gguf_file.read_bytes())
    other = tmp_path / "tiny.gguf"
    other.write_bytes(data)
    assert convert_gguf(other) == convert_gguf(gguf_file)
    data[-1] ^= 1  # of the last weight
    other.write_bytes(data)
    assert convert_gguf(other) != convert_gguf(gguf_file)


def test_several_files_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF files: a\.gguf, b\.gguf") as caught:
        find_gguf_file(tmp_path)
    assert caught.value.hint == f"name one: --model {tmp_path / 'a.gguf'}"


def test_a_damaged_file_is_named_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs the extra gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(CheckpointError, match="transformers cannot convert this GGUF file"):
        open_checkpoint(str(tmp_path / "a.gguf"), OpenOptions(device="cpu"))


def test_without_the_package_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_version(name: str) -> str:
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", no_version)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingPackage, match="package gguf, which is not installed") as caught:
        convert_gguf(tmp_path / "a.gguf")
    assert caught.value.hint == "pip install 'antlm-bench[gguf]'"
