"""Our architectures as transformers models: configuration, initial weights, gradients, heads,
saving and loading.
"""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from ltg_models import KINDS, SIZES, build_ltg_model, build_reference_model
from peer_helpers import sum_logprobs
from tiny_models import train_tokenizer

import antlm_bench  # noqa: F401 - registers the architectures
from antlm_bench.architectures.gpt_bert import GptBertConfig, GptBertModel
from antlm_bench.architectures.ltg_bert import LtgBertConfig, LtgBertModel

IDS = torch.tensor([[3, 7, 19, 4, 4, 11, 2], [5, 9, 3, 3, 8, 2, 0]])


@pytest.mark.parametrize("config_class", [LtgBertConfig, GptBertConfig])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 5),
        ("num_attention_heads", 0),
        ("position_bucket_size", 2),
        ("max_position_embeddings", 8),
    ],
)
def test_an_impossible_configuration_names_its_key(config_class, key, value):
    with pytest.raises(
        ValueError, match="num_attention_heads" if "heads" in key else "position_bucket_size"
    ):
        config_class(**SIZES | {key: value})


@pytest.mark.parametrize("config_class", [LtgBertConfig, GptBertConfig])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", "4"),
        ("hidden_size", -1),
        ("num_hidden_layers", True),
        ("layer_norm_eps", None),
        ("layer_norm_eps", -0.5),
        ("hidden_dropout_prob", float("nan")),
        ("is_decoder", 0),
        ("pad_token_id", "x"),
    ],
)
def test_a_value_of_a_wrong_type_names_its_key(config_class, key, value):
    with pytest.raises(ValueError, match=f"^{key}: "):
        config_class(**SIZES | {key: value})


def test_an_unknown_layer_mix_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"layer_mix: 'bse' is not one of .*'weighted_output'"):
        LtgBertConfig(layer_mix="bse")


def test_published_sizes():
    """Counted by hand: 98.2M for LTG-BERT base of a 16384 vocabulary, 119M for GPT-BERT (their
    papers).
    """
    with torch.device("meta"):
        ltg, gpt = LtgBertModel(LtgBertConfig()), GptBertModel(GptBertConfig())
        small = GptBertModel(
            GptBertConfig(
                hidden_size=384, num_attention_heads=6, intermediate_size=1280, vocab_size=8192
            )
        )
    d, ff, layers = 768, 2048, 12
    per_layer = 4 * d * d + 4 * d + 2 * d + 3 * d * ff
    assert (
        sum(p.numel() for p in ltg.parameters()) == 16384 * d + 63 * d + 2 * d + layers * per_layer
    )
    assert abs(sum(p.numel() for p in gpt.parameters()) - 119e6) < 1.5e6
    assert abs(sum(p.numel() for p in small.parameters()) - 30e6) < 1.5e6


@pytest.mark.parametrize("kind", ["", "base", "gpt"])
def test_initial_weights_are_the_papers_truncated_normals(kind):
    model = build_ltg_model(
        kind, hidden_size=96, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
    std = math.sqrt(2 / (5 * 96))
    seen = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 2:
            layer = int(name.split(".")[2]) if "feed_forward" in name else None
            expected = std if layer is None else std * math.sqrt(1 / (2 * (1 + layer)))
            assert parameter.abs().max() <= 2 * expected + 1e-6, name
            # The deviation of a normal cut at two deviations is 0.8796 of the uncut one.
            assert parameter.std().item() == pytest.approx(0.8796 * expected, rel=0.04), name
            seen += 1
    assert seen > 15


def test_layer_mixing_starts_as_published():
    for kind, last in (("base", 1.0), ("zero", 0.0), ("normalized", 0.0), ("weighted_output", 0.0)):
        model = build_ltg_model(kind)
        for n, layer in enumerate(model.model.layers):
            assert layer.mix.alpha.tolist() == [0.0] * n + [last]
    assert model.model.mix.alpha.tolist() == [0.0] * 4
    for n, layer in enumerate(build_ltg_model("gpt").model.layers):
        assert [mix.alpha.tolist() for mix in layer.mixes] == [
            [0.0] * (2 * n + i) + [1.0] for i in (1, 2)
        ]


def test_weighted_layers_are_at_first_the_plain_residual_stream():
    weighted, plain = build_ltg_model("gpt"), build_ltg_model("gpt", layer_weights=False)
    plain.load_state_dict(weighted.state_dict() | {}, strict=False)
    assert torch.allclose(weighted(IDS).logits, plain(IDS).logits, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("suffix", ["ForMaskedLM", "ForCausalLM"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind, suffix):
    model = build_reference_model(kind, suffix)[0].train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    # The first layer of an ELC-BERT mixes the embedding alone: its soft-maxed weight is 1, whatever
    # alpha is.
    still = {
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    }
    assert still == ({"model.layers.0.mix.alpha"} if kind not in ("", "gpt") else set())


@pytest.mark.parametrize("kind", ["", "gpt"])
def test_losses_are_cross_entropies_at_own_or_next_position(kind):
    labels = IDS.masked_fill(torch.arange(7) % 3 == 0, -100)
    for suffix, shift in (("ForMaskedLM", 0), ("ForCausalLM", 1)):
        model = build_reference_model(kind, suffix)[0]
        output = model(input_ids=IDS, labels=labels)
        logp = output.logits.log_softmax(-1)
        rows = [(b, t) for b in range(2) for t in range(shift, 7) if labels[b, t] != -100]
        by_hand = -sum(logp[b, t - shift, labels[b, t]] for b, t in rows) / len(rows)
        assert output.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["", "gpt"])
def test_dropout_runs_in_modules_whose_input_begins_with_the_batch(kind):
    """All but the one of the table of relative positions, which is marked as shared by all
    texts.
    """
    model = build_ltg_model(kind, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    shapes, shared = [], []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            seen = shared if getattr(module, "shared", False) else shapes
            module.register_forward_hook(
                lambda _m, inputs, _o, seen=seen: seen.append(tuple(inputs[0].shape))
            )
    first, second = model(input_ids=IDS).logits, model(input_ids=IDS).logits
    assert (
        not torch.equal(first, second) and {s[0] for s in shapes} == {2} and (2, 3, 7, 7) in shapes
    )
    assert set(shared) == {tuple(model.model.positions.table.weight.shape)}
    assert len(shared) == 2 * model.config.num_hidden_layers
    torch.manual_seed(1)
    still = build_ltg_model(kind, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    assert torch.equal(still(input_ids=IDS).logits, still(input_ids=IDS).logits)


def test_the_head_is_a_transform_and_a_tied_decoder():
    for kind in ("", "gpt"):
        model = build_reference_model(kind)[0]
        hidden = model.base_model(input_ids=IDS).last_hidden_state
        assert torch.equal(
            model.head.decoder(model.head.transform(hidden)), model(input_ids=IDS).logits
        )
        assert model.get_output_embeddings() is model.head.decoder
        assert model.head.decoder.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["", "weighted_output", "gpt"])
def test_usual_arguments_are_understood(kind):
    model = build_reference_model(kind)[0]
    output = model(
        input_ids=IDS,
        position_ids=torch.arange(7)[None],
        use_cache=False,
        output_hidden_states=True,
    )
    assert len(output.hidden_states) == 4 and output.hidden_states[0].shape == (2, 7, 12)
    as_tuple = model(input_ids=IDS, return_dict=False, labels=IDS)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], output.logits)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(IDS)).logits, output.logits)
    with pytest.raises(ValueError, match="either"):
        model()


@pytest.mark.parametrize("kind", ["", "gpt"])
def test_classification_reads_the_first_or_causally_last_token(kind):
    text, pad = IDS[:1], torch.zeros(1, 2, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0]])
    for decoder, place in ((False, 0), (True, 6)):
        model = build_ltg_model(kind, "ForSequenceClassification", num_labels=3, is_decoder=decoder)
        hidden = model.base_model(input_ids=text).last_hidden_state
        expected = model.classifier(hidden[:, place])
        assert expected.shape == (1, 3)
        right, left = torch.cat([text, pad], 1), torch.cat([pad, text], 1)
        for inputs in ({"input_ids": text}, {"input_ids": right, "attention_mask": mask},
                       {"input_ids": left, "attention_mask": mask.flip(1)}):  # fmt: skip
            assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
        loss = model(input_ids=IDS, labels=torch.tensor([2, 0])).loss
        loss.backward()
        assert loss.isfinite()
    one = build_ltg_model(kind, "ForSequenceClassification", num_labels=1)
    assert one(input_ids=IDS, labels=torch.tensor([0.5, 1.0])).loss.isfinite()


@pytest.mark.parametrize("kind", ["", "gpt"])
def test_classification_has_the_loss_of_its_problem_type(kind):
    def sigmoid_loss(logit, label):
        return math.log1p(math.exp(-logit)) if label else math.log1p(math.exp(logit))

    several, numbers = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], [[0.5, -1.0, 2.0], [0.0, 3.0, 0.1]]
    cases = {
        "regression": (torch.tensor(numbers), lambda x, y: (x - y) ** 2, 6),
        "multi_label_classification": (torch.tensor(several), sigmoid_loss, 6),
    }
    for named in (True, False):
        for problem_type, (labels, term, count) in cases.items():
            if not named and problem_type == "regression":
                continue  # of three numbers per text, only the name tells
            more = {"problem_type": problem_type} if named else {}
            model = build_ltg_model(kind, "ForSequenceClassification", num_labels=3, **more)
            output = model(input_ids=IDS, labels=labels)
            pairs = zip(output.logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
            assert output.loss.item() == pytest.approx(
                sum(term(x, y) for x, y in pairs) / count, rel=1e-4
            )
        more = {"problem_type": "single_label_classification"} if named else {}
        output = build_ltg_model(kind, "ForSequenceClassification", num_labels=3, **more)(
            input_ids=IDS, labels=torch.tensor([2, 0])
        )
        rows = zip(output.logits.tolist(), [2, 0], strict=True)
        by_hand = [math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in rows]
        assert output.loss.item() == pytest.approx(sum(by_hand) / 2, rel=1e-4)
        more = {"problem_type": "regression"} if named else {}
        output = build_ltg_model(kind, "ForSequenceClassification", num_labels=1, **more)(
            input_ids=IDS, labels=torch.tensor([2, 0])
        )
        errors = [
            (row[0] - label) ** 2 for row, label in zip(output.logits.tolist(), [2, 0], strict=True)
        ]
        assert output.loss.item() == pytest.approx(sum(errors) / 2, rel=1e-4)


@pytest.mark.long
def test_a_llama_hybrid_reads_as_our_engine_does(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        antlm_bench={"attends": ["causal", "full"], "methods": ["mlm", "causal"]},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer = train_tokenizer("causal", adds=True)
    tokenizer.save_pretrained(tmp_path)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert type(model).__name__ == "LlamaForMaskedLM"
    texts, by_hand = ["the old cat sees no dogs.", "who sleeps?"], []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        total = 0.0
        for place in range(1, ids.shape[1]):
            hidden = ids.clone()
            hidden[0, place] = tokenizer.mask_token_id
            with torch.no_grad():
                total += model(hidden).logits[0, place].log_softmax(-1)[ids[0, place]].item()
        by_hand.append(total)
    assert sum_logprobs(tmp_path, texts, "mlm") == pytest.approx(by_hand, abs=1e-3)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        alone = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0] for text in texts]
    for row, single in zip(padded, alone, strict=True):
        assert torch.allclose(row[: len(single)], single, atol=1e-5)
    loss = model(
        batch["input_ids"],
        labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100),
    ).loss
    assert loss.isfinite() and isinstance(model(batch["input_ids"], return_dict=False), tuple)


def test_a_causal_llama_is_not_opened_as_a_masked_one(make_checkpoint):
    with pytest.raises(ValueError, match="trained with causal attention"):
        transformers.AutoModelForMaskedLM.from_pretrained(make_checkpoint("causal"))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_open_through_auto_classes_as_either_kind(kind, tmp_path):
    model = build_reference_model(kind)[0]
    model.save_pretrained(tmp_path)
    masked, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(masked) is type(model) and not any(info.values())
    assert torch.equal(masked(IDS).logits, model(IDS).logits)
    causal, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()) and causal.model.causal
    assert torch.equal(
        causal(IDS).logits, build_reference_model(kind, "ForCausalLM")[0](IDS).logits
    )
    assert causal.head.decoder.weight is causal.model.embedding.weight
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3
    )
    assert torch.equal(classifier.model(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    assert transformers.AutoModel.from_pretrained(tmp_path).causal is False
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert again.to_dict() == masked.config.to_dict() and again.position_bucket_size == 8


@pytest.mark.parametrize("kind", ["base", "gpt"])
def test_a_causal_model_generates(kind):
    model = build_reference_model(kind, "ForCausalLM")[0]
    made = model.generate(
        IDS[:1], max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    for t in range(7, 11):
        assert made[0, t] == model(made[:, :t]).logits[0, -1].argmax()
