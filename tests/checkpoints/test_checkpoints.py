"""Opening a checkpoint: its metadata, and errors that name the location and the fix."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import build_model, train_tokenizer

from antlm_bench.checkpoints import OpenOptions, expand_refs, open_checkpoint, with_bf16_body
from antlm_bench.checkpoints.resolve import _milestone_key
from antlm_bench.errors import CheckpointError, MissingPackage, UsageError
from antlm_bench.scorer import Scorer
from antlm_bench.weight_files import hash_weights


def opened(folder, **options):
    return open_checkpoint(str(folder), OpenOptions(device="cpu", **options))


@pytest.fixture
def copy(make_checkpoint, tmp_path):
    """copy(kind) -> a folder of its own that a test may break."""

    def made(kind="causal", **config):
        return shutil.copytree(make_checkpoint(kind, **config), tmp_path / kind)

    return made


@pytest.mark.long
def test_doctor_describes_the_checkpoint(make_checkpoint):
    facts = opened(make_checkpoint("causal")).describe_for_doctor()
    assert facts["architecture"] == "LlamaForCausalLM" and facts["kind"] == "causal"
    assert facts["specials"] == {"causal": "<s> ...", "full": "<s> ..."}
    assert facts["max_length"] == 64 and facts["vocabulary"] == 400 and facts["layout"] == "packed"
    assert facts["methods"] == "causal, mlm, mlm-l2r, mntp, fused (default: causal)"
    masked = opened(make_checkpoint("masked")).describe_for_doctor()
    assert masked["specials"] == {"full": "<s> ... </s>"} and masked["methods"].endswith(
        "(default: mlm)"
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("adds", "bos", "spelled"),
    [
        (True, "auto", "<s> ..."), (False, "auto", "<s> ..."), (False, "always", "<s> ..."),
        (True, "never", "..."), (True, "tokenizer", "<s> ..."), (False, "tokenizer", "..."),
    ],
)  # fmt: skip
def test_bos_policies_give_these_special_tokens(make_checkpoint, adds, bos, spelled):
    assert (
        opened(make_checkpoint("causal", adds=adds), bos=bos).metadata["specials"]["causal"]
        == spelled
    )


@pytest.mark.long
def test_eos_replaces_a_missing_bos_and_always_needs_one(copy):
    folder = copy("causal", adds=False)
    tokenizer = train_tokenizer("causal", False)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    assert opened(folder).metadata["specials"]["causal"] == "</s> ..."
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert opened(folder).metadata["specials"]["causal"] == "..."
    with pytest.raises(CheckpointError, match="has no BOS"):
        opened(folder, bos="always")


def test_no_mask_token_means_no_masked_method(make_checkpoint):
    assert opened(make_checkpoint("causal", mask=False)).methods == ["causal"]


def test_the_weight_hash_follows_the_weights_and_nothing_else(copy, make_checkpoint):
    folder = copy("causal")
    before = hash_weights(folder)
    assert before == hash_weights(make_checkpoint("causal")) == opened(folder).metadata["weights"]
    (folder / "README.md").write_text("a card")
    assert hash_weights(folder) == before
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values()))[0] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert hash_weights(folder) != before


def test_missing_weights_are_an_error_and_not_random_numbers(copy):
    folder = copy("masked")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if "transform" not in k},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(CheckpointError, match=r"no file gives 4 parameters \(cls\.predictions"):
        opened(folder)


def test_a_truncated_file_of_weights_is_named(copy):
    folder = copy("causal")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        opened(folder)


def test_a_quantization_without_its_package_is_named(copy):
    folder = copy("causal")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingPackage, match="pip install optimum") as caught:
        opened(folder)
    assert caught.value.hint.startswith("install the package")


def test_pickled_weights_are_opened_only_when_allowed(copy):
    folder = copy("causal")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unpickling can run code") as refused:
        opened(folder)
    assert "--allow-pickle" in refused.value.hint
    assert opened(folder, allow_pickle=True).kind == "causal"


def test_custom_code_runs_only_when_allowed(copy, tmp_path):
    folder = copy("causal")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(CheckpointError):
        opened(folder)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_beyond_the_embedding_is_refused(copy):
    folder = copy("causal")
    build_model("causal", 0, vocab_size=300).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="the model has 300 embeddings"):
        opened(folder).encode(["houses themselves"], [None], "causal")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read the configuration"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "cannot read the configuration"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: [x.unlink() for x in f.glob("*token*")], "cannot read the tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("[]"), "cannot read the tokenizer"),
    ],
)
def test_a_damaged_folder_is_a_typed_error(copy, break_it, message):
    folder = copy("causal")
    break_it(folder)
    with pytest.raises(CheckpointError, match=message):
        opened(folder)


def test_an_architecture_that_predicts_no_tokens_is_refused(copy):
    folder = copy("causal")
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["LlamaForSequenceClassification"]
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="predicts no tokens"):
        opened(folder)


def test_options_that_cannot_apply_are_refused(make_checkpoint):
    folder = make_checkpoint("causal")
    for options, message in (
        ({"revision": "main"}, "has no revision 'main'"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"bos": "perhaps"}, "unknown policy"),
        ({"max_length": 65}, "(?s)not in 1..64.*reads no longer texts"),
    ):
        with pytest.raises(UsageError, match=message):
            opened(folder, **options)
    with pytest.raises(UsageError, match="unknown device"):
        open_checkpoint(str(folder), OpenOptions(device="abacus"))


def test_an_unknown_hub_id_is_refused_offline():
    with pytest.raises(CheckpointError, match="hub"):
        opened("nobody/nothing")


NUMBERED_FOLDERS = {
    "chck_1M": 1e6,
    "chck_100M": 1e8,
    "chck_1.5m": 1.5e6,
    "chck_1B": 1e9,
    "checkpoint-500k": 5e5,
    "checkpoint-500k-best": 5e5,
    "step-2000": 2000,
    "step-1000-best": 1000,
    "step-1000-mlm": 1000,
    "1000-base": 1000,
    "1000mlm": 1000,
    "v1.2.3": 3,
    "main": 0,
}


@given(st.permutations(sorted(NUMBERED_FOLDERS)))
def test_milestones_sort_by_the_last_number_and_its_unit(names):
    expected = sorted(names, key=lambda name: (NUMBERED_FOLDERS[name], name))
    assert sorted(names, key=lambda name: _milestone_key(Path(name))) == expected


@given(
    st.integers(0, 10**6),
    st.sampled_from([("", 1), ("K", 1e3), ("k", 1e3), ("M", 1e6), ("b", 1e9)]),
    st.sampled_from(["", "-best", "_mlm", "-K", ".M"]),
)
def test_only_a_letter_directly_behind_the_number_is_its_unit(number, unit, suffix):
    letter, scale = unit
    assert _milestone_key(Path(f"step-{number}{letter}{suffix}"))[0] == number * scale


def test_folders_and_globs_expand_by_words_seen(tmp_path, make_checkpoint):
    for name in ("chck_10M", "chck_2M", "chck_1M", "chck_1B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    names = ["chck_1M", "chck_2M", "chck_10M", "chck_1B"]
    assert expand_refs([str(tmp_path)]) == [str(tmp_path / name) for name in names]
    assert expand_refs([str(tmp_path / "chck_1*")]) == [
        str(tmp_path / n) for n in ("chck_1M", "chck_10M", "chck_1B")
    ]
    assert expand_refs(["gpt2", "gpt2"]) == ["gpt2"]
    path = tmp_path / "chck_1M"
    assert expand_refs([str(path), f"{tmp_path}/./chck_1M"]) == [str(path)]
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        expand_refs([str(tmp_path / "nothing*")])


def test_texts_that_do_not_fit_are_reported_and_never_cut(make_checkpoint):
    model = opened(make_checkpoint("causal"), max_length=8)
    found = model.encode(["the cat", "the cat sees " * 10], [None, None], "causal")
    assert found.too_long.tolist() == [False, True]
    assert [e.text_index.tolist() for e in found.batches] == [[0]]


def test_a_bos_that_the_text_contains_is_not_doubled(make_checkpoint):
    model = opened(make_checkpoint("causal", adds=False))
    plain, spelled = (
        model.encode(["the cat"], [None], "causal"),
        model.encode(["<s> the cat"], [None], "causal"),
    )
    assert plain.batches[0].ids.tolist() == spelled.batches[0].ids.tolist()


@pytest.mark.long
def test_a_bf16_copy_keeps_an_fp32_head_and_the_original(make_checkpoint):
    for kind in ("causal", "masked"):
        model = opened(make_checkpoint(kind))
        quick = with_bf16_body(model)
        assert quick.engine.model.get_output_embeddings().weight.dtype == torch.float32
        assert quick.engine.model.get_input_embeddings().weight.dtype == torch.bfloat16
        assert {p.dtype for p in model.engine.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_position_embeddings", "64", "cannot read the configuration"),
        ("pad_token_id", "0", "cannot read the configuration"),
        ("num_attention_heads", 0, "cannot read the configuration"),
        ("num_attention_heads", 3, "cannot"),
        ("dtype", "float99", "cannot"),
        ("hidden_act", "foo", "cannot load the weights: hidden_act is 'foo'"),
        ("architectures", [3], "not a list of class names"),
        ("architectures", "LlamaForCausalLM", "not a list of class names"),
    ],
)
def test_an_invalid_value_of_config_json_is_named(copy, field, value, message):
    folder = copy("causal")
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as refused:
        opened(folder)
    assert "config.json" in str(refused.value) and "truncated" not in str(refused.value)


@pytest.mark.long
def test_a_configured_flash_attention_is_ignored(copy):
    folder = copy("causal")
    before = opened(folder).metadata["weights"]
    config = json.loads((folder / "config.json").read_text()) | {
        "_attn_implementation": "flash_attention_2"
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert opened(folder).metadata["weights"] == before


def test_a_length_limit_that_is_not_a_number_is_named(copy):
    folder = copy("causal")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "model_max_length": "64"
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="is '64', not a number"):
        opened(folder)


def test_what_a_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("main", ".main.old", ".chck_1M.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    main, old = str(tmp_path / "main"), str(tmp_path / ".main.old")
    assert expand_refs([str(tmp_path)]) == [main]
    assert expand_refs([f"{tmp_path}/*"]) == [main]
    assert expand_refs([f"{tmp_path}/.m*"]) == expand_refs([old]) == [old]


@pytest.mark.parametrize(
    "names",
    [{"model_type": "llada", "architectures": ["LLaDAModelLM"]}, {"architectures": ["DreamModel"]}],
)
def test_a_diffusion_language_model_is_refused_without_its_code(copy, names):
    folder = copy("causal")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | names))
    with pytest.raises(CheckpointError, match="is a diffusion language model"):
        opened(folder)


def test_fp8_weights_are_scored_as_what_they_stand_for(copy, tmp_path):
    folder = copy("causal")
    plain = shutil.copytree(folder, tmp_path / "plain")
    stored, restored = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = restored[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.abs().max() / 448  # the largest number of float8_e4m3
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
            restored[name] = stored[name].float() * scale
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(restored, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    texts = ["The cats near the house sleep."]
    score, expected = (Scorer(path, device="cpu").logprobs(texts) for path in (folder, plain))
    assert score == pytest.approx(expected, abs=1e-4)
