"""The self-test and the trial forwards: positions, causality, side effects, broken shortcuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_rows import predict_rows
from tiny_models import build_model, train_tokenizer

from antlm_bench import runs
from antlm_bench.checkpoints import OpenOptions, open_checkpoint, open_model, self_test
from antlm_bench.commands.score import score
from antlm_bench.errors import CheckpointError
from antlm_bench.scoring import attention, cpu_kernels
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.forward_config import CPU_KERNELS, SHORTCUTS
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.types import Item, Option

TEXTS = ["the cat sees the dog.", "no boy has ever seen himself near the old house.", "who sleeps?"]
SPECIALS = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]


def opened(folder, **options):
    return open_checkpoint(str(folder), OpenOptions(device="cpu", **options))


def scores(checkpoint, method, texts=TEXTS):
    items = [Item(str(n), (Option(text),), 0) for n, text in enumerate(texts)]
    [found] = predict_rows(checkpoint, items, [METHODS[method]])
    return [p.scores[0] for p in found]


def plain(folder, method, texts=TEXTS, dtype=torch.float32):
    """The library's forward by itself: each prefix, or each hidden token, in a row of its own."""
    causal = method == "causal"
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    totals = []
    for text in texts:
        ids, total = tokenizer(text)["input_ids"], 0.0
        model = auto.from_pretrained(
            folder, dtype=dtype
        ).eval()  # anew: a forward may change a model
        for at in range(1, len(ids) if causal else len(ids) - 1):
            row = torch.tensor([ids[:at] if causal else ids])
            if not causal:
                row[0, at] = tokenizer.mask_token_id
            with torch.inference_mode():
                logits = model(input_ids=row).logits[0, at - causal].float()
            total += logits.log_softmax(-1)[ids[at]].item()
        totals.append(total)
    return totals


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "RobertaForMaskedLM",
        "XLMRobertaForMaskedLM",
        "CamembertForMaskedLM",
        "Data2VecTextForMaskedLM",
        "MPNetForMaskedLM",
        "RobertaForCausalLM",
    ],
)
@pytest.mark.parametrize("padding", ["<pad>", "<s>", "</s>", "<unk>"])
def test_positions_skip_tokens_with_the_padding_id(make_checkpoint, name, padding):
    """RoBERTa's positions count the tokens that are not padding; a text may hold the padding id of
    the config.
    """
    causal = name.endswith("CausalLM")
    folder = make_checkpoint(
        "causal" if causal else "masked", architecture=name, max_position_embeddings=66,
        pad_token_id=SPECIALS.index(padding), is_decoder=causal,
    )  # fmt: skip
    method = "causal" if causal else "mlm"
    texts = [*TEXTS, "the <unk> cat <pad> sees</s> him"]
    np.testing.assert_allclose(
        scores(opened(folder), method, texts), plain(folder, method, texts), rtol=1e-5, atol=1e-4
    )


@pytest.mark.long
@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, 7, 9]), min_size=1, max_size=9), min_size=1, max_size=7
    ),
    st.booleans(),
)
def test_positions_in_a_prefix_tree_are_those_of_each_row(rows, causal):
    from antlm_bench.scoring.forward_config import ForwardConfig
    from antlm_bench.scoring.plan import build_plans
    from antlm_bench.types import Probes

    attention = "causal" if causal else "full"
    engine = Engine.__new__(Engine)
    engine.forward_config = ForwardConfig("eager", attention, "packed", padding_id=1)
    probes = [
        Probes(
            np.array([row], np.int32),
            attention,
            *np.array([[0], [len(row) - 1], [0], [n]], np.int32),
        )
        for n, row in enumerate(rows)
    ]
    [plan] = build_plans(probes)
    batch, _ = plan.next_batch(0, 1000)
    positions = engine._position_ids(batch)
    gathered = positions if batch.gather_index is None else positions[batch.gather_index]
    ids = batch.ids if batch.gather_index is None else batch.ids[batch.gather_index]
    top = 0
    for count, length in batch.blocks:
        for _ in range(count):
            row, found = ids[top : top + length].tolist(), gathered[top : top + length].tolist()
            seen, expected = 0, []
            for token in row:
                seen += token != 1
                expected.append(1 if token == 1 else 1 + seen)
            assert found == expected
            top += length


@pytest.mark.parametrize(("name", "config"), [
    ("BertLMHeadModel", {"is_decoder": False}),
    ("RobertaForCausalLM", {"is_decoder": False, "max_position_embeddings": 66}),
])  # fmt: skip
def test_a_model_that_sees_later_tokens_is_not_causal(make_checkpoint, name, config):
    folder = make_checkpoint("causal", architecture=name, **config)
    with pytest.raises(CheckpointError, match="not a causal model as it was saved"):
        opened(folder)


def look_ahead_from(first):
    """Return a Llama that sees the next token from position `first` on."""

    class LookAheadModel(transformers.LlamaModel):
        def forward(self, input_ids=None, **options):
            output = super().forward(input_ids=input_ids, **options)
            later = self.embed_tokens(input_ids[:, first + 1 :])
            output.last_hidden_state[:, first:-1] += 2 * later
            return output

    model = build_model("causal", 1)
    model.model.__class__ = LookAheadModel
    return model


@pytest.mark.parametrize("first", [10, 11])
def test_a_model_that_sees_later_tokens_of_long_rows_is_refused(first):
    """The trials of `check_causality` have 8 tokens. The longest text here has 14, so that few
    predictions see later tokens.
    """
    tokenizer = train_tokenizer("causal", True)
    with pytest.raises(CheckpointError, match="the model sees later tokens"):
        checkpoint = open_model(look_ahead_from(first), tokenizer)
        checkpoint.run_self_test(TEXTS, [METHODS["causal"]])


def test_a_permutation_model_is_not_causal(tmp_path):
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=400, d_model=32, n_layer=2, n_head=4, d_inner=48)
    transformers.XLNetLMHeadModel(config).save_pretrained(tmp_path)
    train_tokenizer("causal", True).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a causal model as it was saved"):
        opened(tmp_path)


@pytest.mark.long
def test_an_encoder_saved_as_a_decoder_is_causal(make_checkpoint):
    folder = make_checkpoint("causal", architecture="BertLMHeadModel", is_decoder=True)
    np.testing.assert_allclose(
        scores(opened(folder), "causal"), plain(folder, "causal"), rtol=1e-5, atol=1e-4
    )


ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = ROPE | {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [8.0, 4.0, 2.0, 1.5],
}


@pytest.mark.long
@pytest.mark.parametrize(
    "rope", [LONGROPE, ROPE | {"rope_type": "dynamic"}], ids=["longrope", "dynamic"]
)
def test_long_rows_do_not_move_the_scores_of_short_ones(make_checkpoint, rope):
    folder = make_checkpoint("causal", rope_parameters=rope)
    model = opened(folder)
    alone = scores(model, "causal")
    np.testing.assert_allclose(alone, plain(folder, "causal"), rtol=1e-5, atol=1e-4)
    beside = scores(model, "causal", [*TEXTS, "the cat sees " * 9])[: len(TEXTS)]
    np.testing.assert_allclose(beside, alone, rtol=1e-5, atol=1e-4)
    assert scores(model, "causal") == alone


@pytest.mark.long
def test_texts_beyond_the_original_length_run_by_prefix(make_checkpoint):
    """With longrope a prefix has other angles than the whole text: then each prefix is a row of its
    own.
    """
    folder = make_checkpoint("causal", rope_parameters=LONGROPE)
    model, long = opened(folder), ["the cat sees " * 9, "the dog sees the old house " * 4]
    found = self_test.run_self_test(model, long)
    assert "one row per text" in found.disabled_shortcuts and found.largest_difference < 1e-3
    np.testing.assert_allclose(
        scores(model, "causal", long), plain(folder, "causal", long), rtol=1e-5, atol=1e-3
    )


@pytest.mark.long
def test_a_forward_that_changes_the_model_is_undone(make_checkpoint):
    """BigBird gives its sparse attention up for good at the first short row."""
    config = {
        "block_size": 4,
        "num_random_blocks": 1,
        "attention_type": "block_sparse",
        "max_position_embeddings": 130,
    }
    folder = make_checkpoint("masked", architecture="BigBirdForMaskedLM", **config)
    model = opened(folder)
    texts = ["the cat.", "the cat sees the dog near the old house " * 7]
    assert model.engine.forward_config.restores_state
    for order in (texts, texts[::-1]):
        np.testing.assert_allclose(
            scores(model, "mlm", order),
            plain(folder, "mlm", order),
            rtol=1e-4,
            atol=1e-3,
            err_msg=str(order),
        )


def test_the_state_of_a_model_is_restored():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = ModelState.capture(model)
    first = model[0]
    model.train()(torch.randn(4, 2))
    model[0], model.note = torch.nn.Identity(), "new"
    assert before.has_changed()
    before.restore()
    assert not before.has_changed() and model[0] is first and not hasattr(model, "note")
    assert torch.equal(model[1].running_mean, torch.zeros(2)) and model[1].num_batches_tracked == 0


def wrong_norm(monkeypatch):
    """An RMSNorm that is right on the trial's rows and wrong elsewhere."""
    plain_forward = cpu_kernels.FusedRMSNorm.forward
    monkeypatch.setattr(
        cpu_kernels.FusedRMSNorm,
        "forward",
        lambda self, x: plain_forward(self, x) * (1 if x.dim() == 2 else 1.1),
    )


def wrong_packing(monkeypatch):
    """Attention of packed rows that is right for short rows and forgets the first token of longer
    ones.
    """
    plain_attention = attention.scaled_dot_product_attention

    def forgetful(q, k, v, **options):
        if k.shape[2] > 9:
            v = v.clone()
            v[:, :, 0] = 0
        return plain_attention(q, k, v, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", forgetful)


@pytest.mark.long
@pytest.mark.parametrize(
    ("break_it", "name"), [(wrong_norm, CPU_KERNELS), (wrong_packing, "packed rows")]
)
def test_a_broken_shortcut_is_turned_off_and_recorded(make_checkpoint, monkeypatch, break_it, name):
    folder = make_checkpoint("causal")
    assert opened(folder).metadata["self_test"]["disabled"] == []
    break_it(monkeypatch)
    model = opened(folder)
    assert (
        model.metadata["self_test"]["disabled"] == [name]
        and name not in model.metadata["shortcuts"]
    )
    np.testing.assert_allclose(
        scores(model, "causal"), plain(folder, "causal"), rtol=1e-5, atol=1e-4
    )


@pytest.mark.long
def test_a_forward_that_mixes_rows_runs_one_at_a_time(make_checkpoint, monkeypatch):
    """Mixtures of experts with capacities do so. Bloom's attention cannot be packed: it reads plain
    rows.
    """
    mlp = transformers.models.bloom.modeling_bloom.BloomMLP
    forward = mlp.forward
    monkeypatch.setattr(
        mlp, "forward", lambda self, x, rest: forward(self, x + x - x.mean(0, keepdim=True), rest)
    )
    folder = make_checkpoint("causal", architecture="BloomForCausalLM", n_layer=2, n_head=4)
    model = opened(folder)
    assert "batches" in model.metadata["self_test"]["disabled"]
    texts = [*TEXTS, "the dog sees the cat."]
    np.testing.assert_allclose(
        scores(model, "causal", texts), plain(folder, "causal", texts), rtol=1e-5, atol=1e-4
    )


def test_a_model_that_sees_later_tokens_of_long_rows_only_is_refused(make_checkpoint, monkeypatch):
    """The trial of causality has short rows; the self-test reads its references off whole rows."""
    mlp = transformers.models.llama.modeling_llama.LlamaMLP
    forward = mlp.forward
    monkeypatch.setattr(
        mlp,
        "forward",
        lambda self, x: forward(self, x + x.mean(1, keepdim=True) if x.shape[1] > 10 else x),
    )
    with pytest.raises(CheckpointError, match="the model sees later tokens"):
        opened(make_checkpoint("causal"))


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_references_need_few_forwards(make_checkpoint, monkeypatch, kind):
    model = opened(make_checkpoint(kind))
    num_forwards, plain_logits = 0, self_test.plain_logits

    def count(*args, **inputs):
        nonlocal num_forwards
        num_forwards += 1
        return plain_logits(*args, **inputs)

    monkeypatch.setattr(self_test, "plain_logits", count)
    text = "no boy has ever seen himself near the old house, and the dogs never see the cat."
    attention = "causal" if kind == "causal" else "full"
    result = self_test.run_self_test(model, [text], [attention])
    assert result.num_predictions == (24 if kind == "causal" else 12)
    # A causal text is also read backwards. Each row: by itself, and three prefixes. A masked text:
    # all rows, the first one and the last one.
    assert num_forwards == (8 if kind == "causal" else 3)


@pytest.mark.long
def test_surprisal_tests_its_own_texts(make_checkpoint, tmp_path):
    from antlm_bench.commands.surprisal import surprisal

    folder, text = (
        make_checkpoint("causal", rope_parameters=LONGROPE),
        "the cat sees " * 9 + "the dog",
    )
    (tmp_path / "in.csv").write_text(f"text\n{text}\n")
    found = surprisal(
        str(folder), tmp_path / "in.csv", tmp_path / "out.csv", options=OpenOptions(device="cpu")
    )
    bits = sum(row["surprisal_bits"] for row in found.rows)
    assert bits * np.log(2) == pytest.approx(-plain(folder, "causal", [text])[0], rel=1e-5)


def test_tensors_in_attributes_of_a_model_are_restored():
    model = torch.nn.Linear(2, 2)
    model.cache, model.nothing = (torch.ones(2), torch.ones(3)), float("nan")
    before = ModelState.capture(model)
    assert not before.has_changed()
    model.in_features = 3
    assert before.has_changed()


def test_a_forward_without_logits_of_every_position_is_named(make_checkpoint):
    from antlm_bench.scoring.plain_forward import plain_logits

    class Last(torch.nn.Module):
        config = transformers.LlamaConfig()

        def forward(self, input_ids, **_):
            return transformers.modeling_outputs.CausalLMOutput(logits=torch.zeros(1, 1, 5))

    class Tuple(Last):
        def forward(self, input_ids, **_):
            return (torch.zeros(1, 4, 5),)

    for model, message in ((Last(), "logits of shape"), (Tuple(), "AttributeError")):
        with pytest.raises(CheckpointError, match=message):
            plain_logits(model, input_ids=torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.long
def test_a_model_that_answers_by_chance_is_refused(make_checkpoint, monkeypatch):
    folder = make_checkpoint("causal", attention_dropout=0.5)
    model = opened(folder)
    model.engine.model.train()
    with pytest.raises(CheckpointError, match="with every shortcut turned off too"):
        self_test.run_self_test(model, TEXTS)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_each_shortcut_alone_and_all_together_can_be_off(make_checkpoint, kind):
    model, method = opened(make_checkpoint(kind)), "causal" if kind == "causal" else "mlm"
    expected = scores(model, method)
    for off in [[name] for name in SHORTCUTS] + [list(SHORTCUTS)]:
        with model.engine.without_shortcuts(off):
            assert not set(off) & set(model.engine.shortcuts)
            np.testing.assert_allclose(
                scores(model, method), expected, rtol=1e-5, atol=1e-4, err_msg=str(off)
            )
    assert scores(model, method) == expected


@pytest.mark.long
def test_half_precision_needs_no_particular_cpu(make_checkpoint, monkeypatch):
    """oneDNN refuses float16 layers where the CPU has no such product; the plain layers stay
    then.
    """

    def refuse(self, *_args):
        raise RuntimeError("fp16 is not supported on this CPU")

    folder = make_checkpoint("causal")
    exact = scores(opened(folder), "causal")
    monkeypatch.setattr(cpu_kernels.PackedLinear, "__init__", refuse)
    for dtype, largest in (("float16", 0.2), ("bfloat16", 2.0)):
        np.testing.assert_allclose(
            scores(opened(folder, dtype=dtype), "causal"), exact, atol=largest
        )


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_lower_precision_casts_what_the_library_casts(make_checkpoint, dtype):
    """Rotary angles are computed, and stay fp32: rounded, they would be those of other
    positions.
    """
    folder = make_checkpoint("causal")
    library = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    expected = {name: value.dtype for name, value in library.state_dict().items()}
    expected |= {name: value.dtype for name, value in library.named_buffers()}
    ours = opened(folder, dtype=dtype).engine.model
    found = {
        name: value.dtype for name, value in [*ours.state_dict().items(), *ours.named_buffers()]
    }
    assert {
        name: found[name] for name in expected
    } == expected and torch.float32 in expected.values()


@pytest.mark.long
def test_a_run_records_the_self_test_on_its_own_texts(make_checkpoint, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "good,bad\nthe cat sees,the cat see\nno boy has ever seen him,some boy has ever seen him\n"
    )
    [run] = score(make_checkpoint("causal"), str(pairs), out=tmp_path / "run", device="cpu")
    [cell] = runs.open_run(tmp_path / "run")
    record = cell.history["self_test"]
    assert (record["texts"], record["disabled"]) == (4, []) and record["largest_nats_below"] <= 1e-4
    assert record["predictions"] >= 12 and CPU_KERNELS in cell.history["shortcuts"]
    assert run.manifest.model["self_test"]["disabled"] == [] and run.manifest.model["shortcuts"]


@settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.lists(st.text("ab ", min_size=1, max_size=30), min_size=1, max_size=20), st.integers(1, 6)
)
def test_texts_for_the_self_test_are_spread_over_lengths(texts, count):
    chosen = self_test.select_texts_by_length(texts, count)
    ordered = sorted(set(texts), key=lambda text: (len(text), text))
    assert len(chosen) <= count and chosen == sorted(chosen, key=lambda text: (len(text), text))
    assert chosen[0] == ordered[0] and (count == 1 or len(chosen[-1]) == len(ordered[-1]))
    assert chosen == self_test.select_texts_by_length(texts[::-1], count)


def test_a_tokenizer_that_reads_few_words_is_tried_on_those():
    """A word-level tokenizer without an unknown token raises for any other text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"</s>": 0, "zebra": 1, "sees": 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert self_test.trial_texts(tokenizer) == ["zebra sees"]
    assert self_test.trial_texts(train_tokenizer("causal", True)) == list(self_test.TRIAL_TEXTS)


def test_a_tokenizer_of_the_tests_knows_its_specials():
    assert train_tokenizer("masked", True).convert_tokens_to_ids(SPECIALS) == list(range(5))
    assert build_model("causal", 0).config.pad_token_id == 0
