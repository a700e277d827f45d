"""`Scorer`: the numbers of the command line, of minicons and of a plain loop."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peer_helpers import load_transformers
from tiny_models import build_model, train_tokenizer

from antlm_bench import Scorer, score, surprisal
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.scoring import peers

TEXTS = [
    "the cat sees.",
    "the cat sleeps.",
    "no dogs",
    "every boy that sees himself has ever seen the old house near.",
]
PAIRS = [(TEXTS[0], TEXTS[1]), (TEXTS[3], TEXTS[2]), (TEXTS[2], TEXTS[2])]


def plain_token_logprobs(model, tokenizer, text: str, kind: str) -> list[float]:
    """The library's own forward, one unpadded row per token. The tokenizer adds <s> (and </s>)."""
    ids = tokenizer(text)["input_ids"]
    logprobs = []
    for position in range(1, len(ids) if kind == "causal" else len(ids) - 1):
        row = torch.tensor([ids])
        if kind == "masked":
            row[0, position] = tokenizer.mask_token_id
        with torch.inference_mode():
            logits = model(input_ids=row).logits[0, position - (kind == "causal")].float()
        logprobs.append(logits.log_softmax(-1)[ids[position]].item())
    return logprobs


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_tokens_equal_a_plain_loop(make_checkpoint, kind):
    model, tokenizer = load_transformers(make_checkpoint(kind))
    scorer = Scorer(model, tokenizer)
    expected = [plain_token_logprobs(model, tokenizer, text, kind) for text in TEXTS]
    rows = scorer.token_logprobs(TEXTS).to_rows()
    assert [row["logprob"] for row in rows] == pytest.approx(
        [logprob for logprobs in expected for logprob in logprobs], abs=1e-4
    )
    assert [row["text_index"] for row in rows] == [
        i for i, logprobs in enumerate(expected) for _ in logprobs
    ]
    assert [row["token_index"] for row in rows] == [
        n for logprobs in expected for n in range(len(logprobs))
    ]
    first_text = [row for row in rows if row["text_index"] == 0]
    assert [row["token_id"] for row in first_text] == tokenizer(
        TEXTS[0], add_special_tokens=False
    ).input_ids
    assert "".join(row["token"] for row in first_text).strip() == TEXTS[0]
    assert scorer.logprobs(TEXTS).dtype == np.float64
    assert scorer.logprobs(TEXTS) == pytest.approx([sum(part) for part in expected], abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "kind", "layout", "config"),
    [
        ("GPT2LMHeadModel", "causal", "packed", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("Gemma2ForCausalLM", "causal", "rows", {"num_key_value_heads": 2, "head_dim": 8}),
        ("RobertaForMaskedLM", "masked", "packed", {"max_position_embeddings": 66}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_architectures_in_memory_keep_their_numbers(name, kind, layout, config, dtype):
    model = build_model(kind, 0, name, **config).to(dtype)
    tokenizer = train_tokenizer(kind, True)
    scorer = Scorer(model, tokenizer)
    assert scorer.checkpoint.engine.forward_config.layout == layout
    expected = [sum(plain_token_logprobs(model, tokenizer, text, kind)) for text in TEXTS]
    tolerance = 1e-4 if dtype == torch.float32 else 0.1  # bfloat16 has 8 bits of mantissa
    assert scorer.logprobs(TEXTS) == pytest.approx(expected, abs=tolerance)
    assert model.dtype == dtype


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric"), [("causal", None), ("masked", "original")])
@pytest.mark.filterwarnings("ignore")
def test_logprobs_equal_minicons(make_checkpoint, kind, metric):
    model, tokenizer = load_transformers(make_checkpoint(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peers.score_with_minicons(
            peers.make_minicons_scorer(kind, model, tokenizer),
            TEXTS,
            8,
            **({"PLL_metric": metric} if metric else {}),
        )
    assert Scorer(model, tokenizer).logprobs(TEXTS) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("method", ["causal", "mlm", "mlm-l2r", "mntp"])
def test_pairs_equal_score_to_the_bit(make_checkpoint, tmp_path, method):
    folder = make_checkpoint("causal" if method == "causal" else "masked")
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("good", "bad"), *PAIRS])
    [run] = score(str(folder), str(path), methods=method, out=tmp_path / "run", device="cpu")
    result = Scorer(folder, device="cpu").compare(PAIRS, method=method)
    table = run.predictions("pairs")
    for column in ("gold", "pred", "scores", "tokens", "characters", "flags"):
        assert result.predictions.column(column) == table.column(column)
    assert result.estimate == run["pairs"].estimate
    assert result.interval == run["pairs"].estimate.interval
    scores = [logprob for pair in table.column("scores") for logprob in pair]
    logprobs = Scorer(folder, device="cpu").logprobs(sum(PAIRS, ()), method=method)
    assert logprobs.tolist() == scores


@pytest.mark.long
def test_an_opened_checkpoint_and_its_objects_agree(make_checkpoint):
    folder = make_checkpoint("masked")
    opened_scorer, in_memory = Scorer(folder, device="cpu"), Scorer(*load_transformers(folder))
    assert in_memory.methods == opened_scorer.methods
    for method in opened_scorer.methods:
        assert in_memory.logprobs(TEXTS, method=method) == pytest.approx(
            opened_scorer.logprobs(TEXTS, method=method), abs=1e-4
        )


@pytest.mark.long
def test_sentences_equal_surprisal(make_checkpoint, tmp_path):
    folder = make_checkpoint("causal")
    scorer = Scorer(folder, device="cpu")
    nats = scorer.logprobs(TEXTS)
    by_path = surprisal(folder, TEXTS, tmp_path / "out.csv", by="sentence", device="cpu")
    by_scorer = surprisal(scorer, TEXTS, by="sentence")
    bits = [row["surprisal_bits"] for row in by_path.rows]
    assert bits == pytest.approx((-nats / math.log(2)).tolist(), abs=1e-6)
    assert [row["surprisal_bits"] for row in by_scorer.rows] == bits
    assert by_scorer.table.column("surprisal_bits") == bits and by_scorer.path is None
    assert (tmp_path / "out.csv").exists()


def test_fused_is_the_product_of_two_predictions(make_checkpoint):
    model = build_model("causal", 0)
    scorer = Scorer(model, train_tokenizer("causal", True))
    parts = [scorer.logprobs(TEXTS, method=name) for name in ("causal", "mntp")]
    assert scorer.logprobs(TEXTS, method="fused") == pytest.approx(sum(parts), abs=1e-6)
    tokens = scorer.token_logprobs(TEXTS, method="fused").column("logprob")
    assert sum(tokens) == pytest.approx(sum(parts).sum(), abs=1e-6)


@pytest.mark.long
def test_the_bos_policy_is_chosen_per_call(make_checkpoint):
    model, tokenizer = load_transformers(make_checkpoint("causal", adds=False))
    scorer = Scorer(model, tokenizer)
    without = scorer.token_logprobs(TEXTS, bos="never")
    assert without.column("logprob")[0] is None  # nothing stands before the first token
    assert scorer.token_logprobs(TEXTS).column("logprob")[0] is not None
    opened_without = Scorer(model, tokenizer, bos="never")
    assert scorer.logprobs(TEXTS, bos="never").tolist() == opened_without.logprobs(TEXTS).tolist()
    known = [logprob for logprob in without.column("logprob") if logprob is not None]
    assert sum(known) == pytest.approx(scorer.logprobs(TEXTS, bos="never").sum(), abs=1e-6)
    with pytest.raises(UsageError, match="unknown policy 'maybe'"):
        scorer.logprobs(TEXTS, bos="maybe")


def test_what_cannot_be_scored_is_nan_and_null():
    model = build_model("causal", 0)
    scorer = Scorer(model, train_tokenizer("causal", True), max_length=8)
    logprobs = scorer.logprobs([TEXTS[0], TEXTS[3], ""])
    assert np.isnan(logprobs).tolist() == [False, True, True]
    rows = scorer.token_logprobs([TEXTS[3], "", TEXTS[0]]).to_rows()
    assert {row["text_index"] for row in rows if row["logprob"] is not None} == {2}
    result = scorer.compare([(TEXTS[0], TEXTS[3])])
    assert result.estimate.value == 0 and result.estimate.flags["too-long"] == 1
    with pytest.raises(DataError, match="item 0"):
        scorer.compare([(TEXTS[0], "")])


def test_nothing_to_score_gives_nothing():
    scorer = Scorer(build_model("causal", 0), train_tokenizer("causal", True))
    assert scorer.logprobs([]).shape == (0,)
    assert len(scorer.token_logprobs([])) == 0
    with pytest.raises(DataError, match="pairs: 0 pairs"):
        scorer.compare([])


def test_a_model_in_memory_stays_as_it_was():
    model = build_model("causal", 0, attention_dropout=0.5).train()
    model.model.layers[0].eval()
    training = {name: module.training for name, module in model.named_modules()}
    modules = [id(module) for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    implementation = model.config._attn_implementation
    scorer = Scorer(model, train_tokenizer("causal", True))
    logprobs = scorer.logprobs(TEXTS)
    assert logprobs.tolist() == scorer.logprobs(TEXTS).tolist()  # without dropout
    assert {name: module.training for name, module in model.named_modules()} == training
    assert [id(module) for module in model.modules()] == modules
    assert model.config._attn_implementation == implementation
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    model(input_ids=torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss.backward()


def test_training_between_two_calls_changes_the_scores():
    model, tokenizer = build_model("causal", 0), train_tokenizer("causal", True)
    scorer = Scorer(model, tokenizer)
    before = scorer.logprobs(TEXTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    expected = [sum(plain_token_logprobs(model, tokenizer, text, "causal")) for text in TEXTS]
    assert scorer.logprobs(TEXTS) == pytest.approx(expected, abs=1e-4)
    assert abs(scorer.logprobs(TEXTS) - before).max() > 0.01


def test_a_model_in_memory_passes_the_self_test_or_is_refused():
    model, tokenizer = build_model("causal", 0), train_tokenizer("causal", True)
    scorer = Scorer(model, tokenizer)
    assert scorer.checkpoint.metadata["self_test"]["predictions"] > 0
    assert scorer.checkpoint.metadata["self_test"]["largest_nats_below"] <= 1e-3
    masked = build_model("masked", 0)
    with torch.no_grad():
        next(masked.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        Scorer(masked, train_tokenizer("masked", True))


def test_longer_texts_are_tested_again(monkeypatch):
    scorer = Scorer(build_model("causal", 0), train_tokenizer("causal", True))
    tested = []
    original = type(scorer.checkpoint).run_self_test
    monkeypatch.setattr(
        type(scorer.checkpoint),
        "run_self_test",
        lambda self, texts, methods: tested.append(list(texts)) or original(self, texts, methods),
    )
    for texts in (TEXTS[:1], TEXTS[:1], TEXTS[3:], TEXTS[:3]):
        scorer.logprobs(texts)
    assert tested == [TEXTS[:1], TEXTS[3:]]


def test_float64_models_are_scored_in_float64():
    config = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    model = build_model("causal", 0, "GPT2LMHeadModel", **config).double()
    tokenizer = train_tokenizer("causal", True)
    expected = []
    for text in TEXTS:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        with torch.inference_mode():
            logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        expected.append(logprobs[torch.arange(len(ids) - 1), ids[1:]].sum().item())
    assert Scorer(model, tokenizer).logprobs(TEXTS) == pytest.approx(expected, abs=1e-10)


def test_dtypes_without_a_tolerance_are_refused():
    model = build_model("causal", 0).to(torch.float8_e4m3fn)
    with pytest.raises(UsageError, match="the weights are float8_e4m3fn, not float32"):
        Scorer(model, train_tokenizer("causal", True))


def test_repr_names_model_methods_and_bos():
    model, tokenizer = build_model("causal", 0, mask=False), train_tokenizer("causal", True, False)
    scorer = Scorer(model, tokenizer, bos="never")
    assert repr(scorer) == "Scorer('LlamaForCausalLM', methods=['causal'], bos='never')"


def test_later_changes_of_the_tokenizer_do_not_matter():
    model, tokenizer = build_model("causal", 0), train_tokenizer("causal", True)
    scorer = Scorer(model, tokenizer)
    expected = scorer.logprobs(TEXTS)
    tokenizer.add_tokens(["the cat"])
    assert scorer.logprobs(TEXTS).tolist() == expected.tolist()


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("model", {}, "needs its tokenizer as an object in memory"),
        ("model tokenizer", {"dtype": "bfloat16"}, "dtype is an option of a checkpoint"),
        ("path tokenizer", {}, "the tokenizer is an object in memory"),
        ("linear tokenizer", {}, "a model of transformers is needed, not Linear"),
        ("model rust", {}, "a tokenizer of transformers is needed, not Tokenizer"),
        ("model dropping", {}, "drops merges at random"),
        ("linear", {}, "a model of transformers is needed, not Linear"),
        (
            "model tokenizer",
            {"max_length": "64"},
            r"max_length is '64' \(str\); it must be an integer or None",
        ),
        ("model tokenizer", {"batch_tokens": -1}, "-1 is negative"),
        ("model tokenizer", {"maxlength": 64}, "maxlength: unknown option\n .*'max_length'"),
    ],
)
def test_objects_of_another_kind_are_refused(arguments, options, message, tmp_path):
    dropping = train_tokenizer("causal", True)
    dropping.backend_tokenizer.model.dropout = 0.1
    objects = {
        "model": build_model("causal", 0),
        "tokenizer": train_tokenizer("causal", True),
        "path": tmp_path,
        "linear": torch.nn.Linear(2, 2),
        "rust": train_tokenizer("causal", True).backend_tokenizer,
        "dropping": dropping,
    }
    with pytest.raises(UsageError, match=message):
        Scorer(*(objects[name] for name in arguments.split()), **options)


def test_wrong_arguments_name_the_fix():
    scorer = Scorer(
        build_model("causal", 0, mask=False), train_tokenizer("causal", True, mask=False)
    )
    with pytest.raises(UsageError, match=r"\(str\) is not a list of texts\n  hint: give \[text\]"):
        scorer.logprobs(TEXTS[0])
    with pytest.raises(UsageError, match=r"pairs\[1\]: .* is not a pair of texts"):
        scorer.compare([("a cat", "a dog"), ("a cat",)])
    with pytest.raises(UsageError, match=r"texts\[0\]: 3 \(int\) is not a string"):
        scorer.logprobs([3])
    with pytest.raises(UsageError, match="unknown reduction 'max'"):
        scorer.compare(PAIRS, reduction="max")
    with pytest.raises(UsageError, match="unknown method 'clm'"):
        scorer.logprobs(TEXTS, method="clm")
    with pytest.raises(MethodNotSupported, match="mask token"):
        scorer.logprobs(TEXTS, method="mlm")
    with pytest.raises(UsageError, match="options of an open Scorer"):
        surprisal(scorer, TEXTS, bos="never")


def test_notebooks_show_the_accuracy():
    result = Scorer(build_model("causal", 0), train_tokenizer("causal", True)).compare(PAIRS)
    page = result._repr_html_()
    assert f"{result.estimate.value:.4f}" in page and "<td>causal</td>" in page


def test_paths_may_be_path_objects(make_checkpoint):
    assert Scorer(Path(make_checkpoint("causal")), device="cpu").methods[0] == "causal"
