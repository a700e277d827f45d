"""PEFT adapters and separate tokenizers: merged, recorded, and refused if they do not fit."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys

import pytest
import torch
from prediction_rows import predict_rows
from safetensors.torch import load_file, save_file
from tiny_models import build_model, train_tokenizer

from antlm_bench.checkpoints import (
    OpenOptions,
    expand_refs,
    open_backbone,
    open_checkpoint,
    select_content_key_metadata,
)
from antlm_bench.commands.catalog import inspect_checkpoints
from antlm_bench.commands.score import score
from antlm_bench.errors import BenchError, CheckpointError, UsageError
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.types import Item, Option

peft = pytest.importorskip("peft")
# peft asks transformers for a property that it is about to rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
V = 400  # vocabulary of tiny_models.build_model
TEXT = "the cat sees the old house"


@pytest.fixture
def folders(tmp_path, make_checkpoint):
    """(base, adapter): copies that a test may break; the adapter changes scores and has no
    tokenizer of its own.
    """
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(make_checkpoint("causal"), base)
    make_adapter(base, adapter)
    return base, adapter


def make_adapter(base, folder, seed=0, alpha=8, named=None, targets=("q_proj", "up_proj")):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=2, lora_alpha=alpha, target_modules=[*targets], task_type="CAUSAL_LM"
    )
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.peft_config["default"].base_model_name_or_path = str(named or base)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def opened(folder, **options):
    return open_checkpoint(str(folder), OpenOptions(device="cpu", **options))


def our_score(checkpoint):
    item = Item("a", (Option(TEXT),), 0)
    return predict_rows(checkpoint, [item], [resolve_method("causal", checkpoint)])[0][0].scores[0]


def plain_score(base, adapter):
    """Prefix by prefix with peft's own unmerged forward."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    ids = transformers.AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    with torch.inference_mode():
        return sum(
            float(model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]])
            for i in range(1, len(ids))
        )


@pytest.mark.long
def test_an_adapter_scores_as_peft_s_own_forward_does(folders):
    base, adapter = folders
    expected = plain_score(base, adapter)
    assert abs(expected - our_score(opened(base))) > 0.1
    for checkpoint in (opened(adapter), opened(base, peft=str(adapter))):
        assert math.isclose(our_score(checkpoint), expected, abs_tol=1e-4)
    assert open_backbone(str(adapter), OpenOptions(device="cpu")).metadata["adapter"] == "adapter"


@pytest.mark.long
def test_both_hashes_are_recorded_and_in_the_content_key(folders):
    base, adapter = folders
    plain, merged = opened(base), opened(adapter)
    facts = merged.metadata
    sha = {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in adapter.iterdir() if f.is_file()
    }
    assert facts["base_weights"] == plain.metadata["weights"] != facts["weights"]
    assert facts["adapter_weights"] == sha["adapter_model.safetensors"]
    assert facts["adapter_config"] == sha["adapter_config.json"]
    assert facts["name"] == "adapter" and opened(base, peft=str(adapter)).name == "base+adapter"
    assert select_content_key_metadata(merged) == select_content_key_metadata(
        opened(base, peft=str(adapter))
    )
    assert select_content_key_metadata(merged).keys() - select_content_key_metadata(
        plain
    ).keys() == {
        "base_weights",
        "adapter_weights",
        "adapter_config",
    }
    edited = json.loads((adapter / "adapter_config.json").read_text()) | {"lora_alpha": 16}
    (adapter / "adapter_config.json").write_text(json.dumps(edited))
    assert opened(adapter).metadata["weights"] != facts["weights"]  # another scale, another model


def test_adapters_of_one_base_are_several_checkpoints_of_a_folder(folders, tmp_path):
    _, adapter = folders
    root = tmp_path / "trained"
    for step in (20, 3):
        shutil.copytree(adapter, root / f"checkpoint-{step}")
    assert expand_refs([str(root)]) == [str(root / "checkpoint-3"), str(root / "checkpoint-20")]


@pytest.mark.long
def test_a_base_is_found_beside_the_adapter(folders):
    base, adapter = folders
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "base"})
    )
    assert opened(adapter).metadata["base_weights"] == opened(base).metadata["weights"]


@pytest.mark.long
def test_an_adapter_beside_its_base_is_merged_with_a_note(folders):
    base, adapter = folders
    expected = plain_score(base, adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, base / name)
    checkpoint = opened(base)
    assert math.isclose(our_score(checkpoint), expected, abs_tol=1e-4)
    assert checkpoint.metadata["notes"] == [
        "base holds weights and an adapter, which is merged into them"
    ]


def test_an_adapter_beside_the_weights_of_another_base_is_refused(folders, tmp_path):
    base, adapter = folders
    elsewhere = shutil.copytree(base, tmp_path / "elsewhere")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, elsewhere / name)
    with pytest.raises(
        CheckpointError, match="a whole model and an adapter of another model"
    ) as refused:
        opened(elsewhere)
    assert "--peft" in refused.value.hint


def unfit(
    adapter, name="base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", change=None
):
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensor = tensors.pop(name)
    if change:
        tensors[change] = tensor.clone()
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})


def without_base(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )


def base_gone(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "./gone"})
    )


def pickled(adapter):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()


BROKEN = [
    (unfit, "0 of its tensors have no place in it, 1 are missing"),
    (
        lambda a: unfit(a, change="base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"),
        "1 of its tensors",
    ),
    (without_base, "does not name its base model"),
    (base_gone, "the adapter's base model './gone' cannot be opened: no such folder"),
    (pickled, "the weights of the adapter are pickled"),
    (
        lambda a: (a / "adapter_model.safetensors").unlink(),
        "no weights: no adapter_model.safetensors",
    ),
    (lambda a: (a / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
    (
        lambda a: (a / "adapter_model.safetensors").write_bytes(b"x" * 40),
        "does not fit LlamaForCausalLM",
    ),
]


@pytest.mark.long
@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_an_adapter_that_does_not_fit_is_refused(folders, damage, message):
    damage(folders[1])
    with pytest.raises(CheckpointError, match=message):
        opened(folders[1])


@pytest.mark.long
def test_a_pickled_adapter_opens_when_allowed(folders):
    _, adapter = folders
    expected = our_score(opened(adapter))
    pickled(adapter)
    assert our_score(opened(adapter, allow_pickle=True)) == expected


def test_an_adapter_of_another_shape_is_refused(folders, tmp_path):
    _, adapter = folders
    build_model("causal", 0, hidden_size=40).save_pretrained(tmp_path / "wide")
    train_tokenizer("causal", True).save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match="does not fit LlamaForCausalLM"):
        opened(tmp_path / "wide", peft=str(adapter))


def test_two_adapters_and_no_adapter_are_refused(folders):
    base, adapter = folders
    with pytest.raises(UsageError, match="already holds a PEFT adapter"):
        opened(adapter, peft=str(adapter))
    with pytest.raises(CheckpointError, match="no PEFT adapter here"):
        opened(base, peft=str(base))
    with pytest.raises(CheckpointError, match="no such folder"):
        opened(base, peft="./nowhere")


def test_without_peft_the_hint_names_the_package(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BenchError, match="needs the package peft") as refused:
        opened(folders[1])
    assert "antlm-bench[lora]" in refused.value.hint


@pytest.mark.long
def test_a_tokenizer_from_elsewhere_is_used_and_changes_the_key(folders, tmp_path):
    base, _ = folders
    other = tmp_path / "tokenizer"
    train_tokenizer("causal", False).save_pretrained(other)  # adds no BOS by itself
    plain = opened(base, bos="tokenizer")
    changed = opened(base, bos="tokenizer", tokenizer=str(other))
    assert (
        plain.metadata["specials"]["causal"] == "<s> ..."
        and changed.metadata["specials"]["causal"] == "..."
    )
    assert (
        changed.metadata["tokenizer_source"] == "tokenizer"
        and changed.metadata["weights"] == plain.metadata["weights"]
    )
    assert (
        select_content_key_metadata(changed)["tokenizer"]
        != select_content_key_metadata(plain)["tokenizer"]
    )
    for file in base.glob("*token*"):
        file.unlink()
    assert opened(base, tokenizer=str(other)).kind == "causal"
    with pytest.raises(CheckpointError, match="--tokenizer"):
        opened(base)
    with pytest.raises(CheckpointError, match="no tokenizer here"):
        opened(base, tokenizer=str(base))


@pytest.mark.long
def test_an_adapter_s_own_tokenizer_goes_before_the_base_s(folders):
    _, adapter = folders
    train_tokenizer("causal", False).save_pretrained(adapter)
    assert opened(adapter, bos="tokenizer").metadata["specials"]["causal"] == "..."


def test_every_command_that_opens_a_checkpoint_takes_both_flags():
    import inspect

    from antlm_bench.cli import catalog, finetune, surprisal, verify
    from antlm_bench.cli import score as scoring

    verbs = (catalog.doctor_command, finetune.finetune_command, verify.noise_command,
    surprisal.surprisal_command,
             verify.verify_command, scoring.score_command)  # fmt: skip
    for verb in verbs:
        assert {"peft", "tokenizer", "allow_unused", "allow_missing"} <= set(
            inspect.signature(verb).parameters
        )


@pytest.mark.long
def test_doctor_and_score_record_adapter_and_tokenizer(folders, tmp_path, monkeypatch):
    base, adapter = folders
    options = OpenOptions(device="cpu", peft=str(adapter), tokenizer=str(base))
    [facts] = inspect_checkpoints([str(base)], options=options)
    assert facts["adapter"] == "adapter" and facts["tokenizer_source"] == "base"
    (tmp_path / "pairs.csv").write_text("good,bad\nthe cat sees,the cat see\n")
    [run] = score(
        str(base),
        str(tmp_path / "pairs.csv"),
        out=tmp_path / "run",
        peft=str(adapter),
        device="cpu",
    )
    assert run.manifest.model["adapter_weights"] == run.cells[0].settings["adapter_weights"]
    with pytest.raises(BenchError, match="another checkpoint"):
        score(str(base), str(tmp_path / "pairs.csv"), out=tmp_path / "run", device="cpu")


@pytest.mark.long
def test_verify_gives_the_peers_the_same_adapter_and_tokenizer(folders, tmp_path):
    pytest.importorskip("lm_eval")
    pytest.importorskip("minicons")
    from antlm_bench.commands.verify import verify

    base, adapter = folders
    tokenizer = train_tokenizer("causal", True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    build_model("causal", 0, vocab_size=len(tokenizer)).save_pretrained(base)
    (tmp_path / "pairs.csv").write_text("good,bad\nthe cat sees,the cat see\n")
    options = OpenOptions(device="cpu", peft=str(adapter), tokenizer=str(tmp_path / "tokenizer"))
    found = verify(str(base), str(tmp_path / "pairs.csv"), options=options)
    [agreement] = found.agreements
    assert agreement.peer.startswith("lm-eval") and agreement.largest < 1e-4
    assert found.refused == (("minicons", "causal", "it cannot open a PEFT adapter"),)
    build_model("causal", 0).save_pretrained(
        base
    )  # more embeddings than tokens: lm-eval would cut them
    with pytest.raises(BenchError, match=rf"to the tokenizer's {len(tokenizer)} of {V} tokens"):
        verify(str(base), str(tmp_path / "pairs.csv"), options=options)
    for file in base.glob("*token*"):
        file.unlink()
    found = verify(
        str(base),
        str(tmp_path / "pairs.csv"),
        options=OpenOptions(device="cpu", tokenizer=str(tmp_path / "tokenizer")),
    )
    assert len(found.agreements) == 2 and all(
        agreement.largest < 1e-4 for agreement in found.agreements
    )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft tells of tied embeddings
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_of_one_tied_embedding_leaves_the_other(tmp_path, target):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    build_model("causal", 0, tie_word_embeddings=True).save_pretrained(base)
    train_tokenizer("causal", True).save_pretrained(base)
    make_adapter(base, adapter, targets=[target])
    assert our_score(opened(base, peft=str(adapter))) == pytest.approx(
        plain_score(base, adapter), rel=1e-5
    )


def test_an_adapter_that_merges_into_other_numbers_is_refused(folders, monkeypatch):
    from peft.tuners.lora import LoraModel

    merge = LoraModel.merge_and_unload

    def wrong(self):
        model = merge(self)
        model.model.norm.weight.data.mul_(1.01)
        return model

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrong)
    with pytest.raises(CheckpointError, match="cannot be merged"):
        opened(folders[0], peft=str(folders[1]))
