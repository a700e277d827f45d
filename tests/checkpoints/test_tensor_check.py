"""Unused and missing tensors: published files open, files of another model are refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from prediction_rows import predict_rows
from safetensors.torch import load_file, save_file
from tiny_models import build_model, train_tokenizer

from antlm_bench.checkpoints import OpenOptions, open_backbone, open_checkpoint
from antlm_bench.checkpoints.metadata import loading_notes, select_content_key_metadata
from antlm_bench.errors import CheckpointError

V, D = 400, 32  # vocabulary and width of tiny_models.build_model


@pytest.fixture
def build(tmp_path):
    """build(architecture, rename, add, **config) -> folder of a checkpoint with tensors renamed and
    added.
    """

    def make(architecture, rename=lambda name: name, add=None, kind="masked", **config):
        folder = tmp_path / architecture
        train_tokenizer(kind, True).save_pretrained(folder)
        build_model(kind, 0, architecture, **config).save_pretrained(folder)
        edit_weights(
            folder, lambda tensors: {rename(n): t for n, t in tensors.items()} | (add or {})
        )
        return folder

    return make


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, {"format": "pt"})


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def opened(folder, **options):
    return open_checkpoint(str(folder), OpenOptions(device="cpu", **options))


def old_layer_norm(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )


TRIANGLE = torch.ones(1, 1, 64, 64).tril()
POOLER = {"dense.weight": torch.ones(D, D), "dense.bias": torch.ones(D)}
POSITIONS = torch.arange(64)[None]
PUBLISHED = [
    ("BertForPreTraining", old_layer_norm, {"bert.embeddings.position_ids": POSITIONS}, {}),
    ("BertForMaskedLM", str, {f"bert.pooler.{n}": t for n, t in POOLER.items()}, {}),
    ("BertForMaskedLM", str, {"cls.seq_relationship.weight": torch.ones(2, D)}, {}),
    ("BertForMaskedLM", str, {"classifier.weight": torch.ones(2, D),
     "classifier.bias": torch.ones(2)}, {}),
    ("AlbertForMaskedLM", str, {"albert.pooler.weight": torch.ones(D, D),
     "albert.pooler.bias": torch.ones(D)},
     {"embedding_size": D}),
    ("RobertaForMaskedLM", str, {"roberta.embeddings.position_ids": POSITIONS}
     | {f"roberta.pooler.{n}": t for n, t in POOLER.items()}, {}),
    ("ElectraForMaskedLM", str, {"discriminator_predictions.dense.weight": torch.ones(D, D)},
     {"embedding_size": D}),
    ("BigBirdForPreTraining", str, {}, {"attention_type": "original_full"}),
    ("DebertaV2ForMaskedLM", str, {"deberta.embeddings.position_embeddings.weight": torch.ones(64,
     D)},
     {"position_biased_input": False}),
    ("GPT2LMHeadModel", lambda n: n.removeprefix("transformer."),
     {"h.0.attn.bias": TRIANGLE, "h.1.attn.masked_bias": torch.tensor(-1e4)}, {"n_embd": D,
      "n_layer": 2, "n_head": 4}),
    ("GPT2LMHeadModel", str, {"v_head.summary.weight": torch.ones(1, D)}, {"n_embd": D,
     "n_layer": 2, "n_head": 4}),
    ("GPT2DoubleHeadsModel", str, {}, {"n_embd": D, "n_layer": 2, "n_head": 4, "num_labels": 1}),
    ("GPTNeoForCausalLM", str, {"transformer.h.0.attn.attention.bias": TRIANGLE,
     "transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9)},
     {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}),
    ("GPTNeoXForCausalLM", str, {"gpt_neox.layers.0.attention.bias": TRIANGLE,
     "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}, {}),
    ("LlamaForCausalLM", str, {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}, {}),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "rename", "add", "config"), PUBLISHED)
def test_published_shapes_open_and_score(build, architecture, rename, add, config):
    kind = "causal" if architecture.startswith(("GPT", "Llama")) else "masked"
    plain = build_model(kind, 0, architecture, **config)
    checkpoint = opened(build(architecture, rename, add, kind=kind, **config))
    assert "allowed" not in checkpoint.metadata and "notes" not in checkpoint.metadata
    stored, loaded = plain.state_dict(), checkpoint.engine.model.state_dict()
    assert len(loaded) >= 20
    differing = [n for n, t in loaded.items() if n in stored and not torch.equal(t, stored[n])]
    assert not differing and not [n for n in loaded if n not in stored]


def test_a_tied_head_stored_under_its_own_name_is_used(build):
    folder = build("RobertaForMaskedLM")
    embedding = load_file(folder / "model.safetensors")["roberta.embeddings.word_embeddings.weight"]
    edit_weights(folder, lambda tensors: tensors | {"lm_head.decoder.weight": embedding})
    assert "allowed" not in opened(folder).metadata


def fewer_layers(folder):
    edit_config(folder, num_hidden_layers=1)


def biases_switched_off(folder):
    names = [f"model.layers.{n}.self_attn.{p}_proj.bias" for n in range(2) for p in "qkvo"]
    edit_weights(folder, lambda tensors: tensors | {name: torch.ones(D) for name in names})


def name_of_a_head_inside_a_layer(folder):
    edit_weights(
        folder, lambda tensors: tensors | {"model.layers.1.score.weight": torch.ones(D, D)}
    )


def prefix_of_a_wrapper(folder):
    edit_weights(folder, lambda tensors: {f"module.{name}": t for name, t in tensors.items()})


def more_layers(folder):
    edit_config(folder, num_hidden_layers=3)


def untied_without_head(folder):
    edit_config(folder, tie_word_embeddings=False)
    edit_weights(
        folder, lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    )


REFUSED = [
    (
        fewer_layers,
        r"LlamaForCausalLM does not use 9 tensors \(model\.layers\.1\.",
        "1 layers, and the files hold 2",
    ),
    (
        biases_switched_off,
        r"does not use 8 tensors \(model\.layers\.0\.self_attn\.k_proj\.bias",
        "turns off biases",
    ),
    (
        name_of_a_head_inside_a_layer,
        r"does not use 1 tensor \(model\.layers\.1\.score",
        "another architecture",
    ),
    (prefix_of_a_wrapper, r"no file gives 21 parameters \(lm_head\.weight", "the prefix 'module.'"),
    (
        more_layers,
        r"no file gives 9 parameters \(model\.layers\.2\.",
        "another architecture, or config.json belongs",
    ),
    (
        untied_without_head,
        r"no file gives 1 parameter \(lm_head\.weight\)",
        "without its language-model head",
    ),
]


@pytest.mark.long
@pytest.mark.parametrize(("damage", "message", "cause"), REFUSED)
def test_other_weights_than_the_model_s_are_refused(build, damage, message, cause):
    folder = build("LlamaForCausalLM", kind="causal")
    damage(folder)
    for opener in (open_checkpoint, open_backbone):
        with pytest.raises(CheckpointError, match=message) as refused:
            opener(str(folder), OpenOptions(device="cpu"))
        assert cause in refused.value.hint and "--allow-" in refused.value.hint


def test_names_that_the_library_ignores_do_not_hide_weights(build):
    # transformers drops every unused name with `attn.bias` in it, so `c_attn.bias` too, without a
    # word.
    folder = build("GPT2LMHeadModel", kind="causal", n_embd=D, n_layer=2, n_head=4)
    edit_weights(
        folder, lambda tensors: tensors | {"transformer.h.7.attn.c_attn.bias": torch.ones(3 * D)}
    )
    _, info = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    with pytest.raises(
        CheckpointError, match=r"does not use 1 tensor \(transformer\.h\.7\.attn\.c_attn\.bias\)"
    ):
        opened(folder)


def test_configured_absolute_positions_are_not_harmless(build):
    folder = build("DebertaV2ForMaskedLM", position_biased_input=True)
    edit_config(folder, position_biased_input=False)
    assert opened(folder).kind == "masked"  # as Microsoft's own files are
    edit_config(folder, position_biased_input=True)
    edit_weights(
        folder, lambda tensors: {n: t for n, t in tensors.items() if "position_embeddings" not in n}
    )
    with pytest.raises(CheckpointError, match="no file gives 1 parameter"):
        opened(folder)


def test_a_tensor_of_another_shape_names_both_shapes(build):
    folder = build("LlamaForCausalLM", kind="causal")
    edit_config(folder, intermediate_size=40)
    with pytest.raises(
        CheckpointError, match=r"6 tensors .*down_proj\.weight is \[32, 48\] there and \[32, 40\]"
    ):
        opened(folder, allow_missing=True, allow_unused=True)


@pytest.mark.long
def test_unused_tensors_that_are_allowed_are_recorded(build):
    folder = build("LlamaForCausalLM", kind="causal")
    whole = select_content_key_metadata(opened(folder, allow_unused=True, allow_missing=True))
    assert "allowed" not in whole  # the flags alone change no key
    biases_switched_off(folder)
    checkpoint = opened(folder, allow_unused=True)
    first = [f"model.layers.0.self_attn.{p}_proj.bias" for p in "koqv"]
    assert select_content_key_metadata(checkpoint)["allowed"] == {
        "unused": {"count": 8, "first": first}
    }
    assert loading_notes(checkpoint) == [
        f"8 tensors ({', '.join(first)}, ...) of the files are not used by the model"
    ]


@pytest.mark.long
def test_allowed_missing_parameters_are_the_same_each_time(build):
    folder = build("LlamaForCausalLM", kind="causal")
    more_layers(folder)
    models = [opened(folder, allow_missing=True) for _ in range(2)]
    weights = [
        model.engine.model.state_dict()["model.layers.2.mlp.up_proj.weight"] for model in models
    ]
    assert torch.equal(*weights) and float(weights[0].std()) > 0
    assert select_content_key_metadata(models[0])["allowed"]["missing"]["count"] == 9
    assert loading_notes(models[0])[0].endswith("were in no file and are random")


SENTENCES = [
    ("ElectraForPreTraining", {"embedding_size": D}, "a discriminator: it tells replaced",
     "score its generator"),
    ("BertModel", {}, "BertModel is a model without a language-model head", "saved with its head"),
    ("BertForSequenceClassification", {}, "predicts no tokens, but classes of texts",
     "it was finetuned from"),
    ("T5EncoderModel", {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_model": D},
     "T5EncoderModel is a model without a language-model head", "saved with its head"),
    ("BartForSequenceClassification", {"d_model": D, "encoder_layers": 1, "decoder_layers": 1},
     "predicts no tokens, but classes of texts", "writes text after a text"),
    ("XLMWithLMHeadModel", {"emb_dim": D, "n_layers": 1, "n_heads": 4, "n_words": V, "n_langs": 3,
     "use_lang_emb": True}, "needs the language of each text", "of one language"),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "config", "message", "hint"), SENTENCES)
def test_the_message_says_why_a_model_cannot_be_scored(build, architecture, config, message, hint):
    with pytest.raises(CheckpointError, match=message) as refused:
        opened(build(architecture, **config))
    assert hint in refused.value.hint


MASKED = [
    ("BigBirdForPreTraining", {"attention_type": "original_full"}, "prediction_logits"),
    ("XLMWithLMHeadModel", {"emb_dim": D, "n_layers": 2, "n_heads": 4, "n_words": V}, "logits"),
    (
        "FlaubertWithLMHeadModel",
        {"emb_dim": D, "n_layers": 2, "n_heads": 4, "n_words": V},
        "logits",
    ),
]


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "config", "logits"), MASKED)
def test_masked_models_with_unusual_names_score_right(build, architecture, config, logits):
    from antlm_bench.scoring.methods import resolve_method
    from antlm_bench.types import Item, Option

    folder, text = build(architecture, **config), "the cat sees the old house"
    checkpoint = opened(folder)
    [[prediction]] = predict_rows(
        checkpoint, [Item("a", (Option(text),), 0)], [resolve_method("mlm", checkpoint)]
    )
    model, tokenizer = (
        build_model("masked", 0, architecture, **config),
        train_tokenizer("masked", True),
    )
    ids = tokenizer(text)["input_ids"]
    expected = 0.0
    for position in range(1, len(ids) - 1):
        row = torch.tensor([ids])
        row[0, position] = tokenizer.mask_token_id
        with torch.inference_mode():
            scores = getattr(model(input_ids=row), logits)[0, position].log_softmax(-1)
        expected += float(scores[ids[position]])
    assert math.isclose(prediction.scores[0], expected, abs_tol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["XLMWithLMHeadModel", "FlaubertWithLMHeadModel"])
def test_xlm_is_causal_where_its_configuration_says_so(build, architecture):
    from antlm_bench.scoring.methods import resolve_method
    from antlm_bench.types import Item, Option

    config = {"emb_dim": D, "n_layers": 2, "n_heads": 4, "n_words": V, "causal": True}
    checkpoint, text = (
        opened(build(architecture, kind="causal", **config)),
        "the cat sees the old house",
    )
    assert checkpoint.methods[0] == "causal"
    [[prediction]] = predict_rows(
        checkpoint, [Item("a", (Option(text),), 0)], [resolve_method("causal", checkpoint)]
    )
    model, ids = (
        build_model("causal", 0, architecture, **config),
        train_tokenizer("causal", True)(text)["input_ids"],
    )
    with torch.inference_mode():
        steps = [
            float(model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].log_softmax(-1)[ids[i]])
            for i in range(1, len(ids))
        ]
    assert math.isclose(prediction.scores[0], sum(steps), abs_tol=1e-4)


def test_a_learned_buffer_that_no_file_holds_is_missing():
    """DeepSeek-V3 learns a buffer; those that a configuration gives (rotary angles) need no
    file.
    """
    import transformers

    from antlm_bench.checkpoints.tensor_check import _computed_tensors

    config = transformers.DeepseekV3Config(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16, moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2,
        n_group=2,
        topk_group=1, first_k_dense_replace=0, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    needless = _computed_tensors(transformers.DeepseekV3ForCausalLM(config))
    assert "model.rotary_emb.inv_freq" in needless
    assert not any("e_score_correction_bias" in name for name in needless)
