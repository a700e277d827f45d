"""Encoder-decoders: every score equals a plain loop over the library's own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from encoder_decoders import MODELS, save_encoder_decoder

from antlm_bench.checkpoints import OpenOptions, open_backbone, open_checkpoint, with_bf16_body
from antlm_bench.commands.surprisal import surprisal
from antlm_bench.errors import CheckpointError, MethodNotSupported, UsageError
from antlm_bench.lm_eval_bridge.greedy import GreedyTrackingModel
from antlm_bench.scorer import Scorer
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.multiple_choice import predict
from antlm_bench.types import Item, Option

TEXTS = ["The cats near the house sleep.", "the dog", "every girl who has seen the old dogs sleeps"]
SOURCES = ["", "what the boy sees", "no cat"]
# What a decoder reads before a text, and what follows the text in a source; both by hand.
DECODER_STARTS = {
    "t5": ["<pad>"], "mt5": ["<pad>"], "byt5": ["<pad>"], "pegasus": ["<pad>"],
    "bart": ["</s>", "<s>"], "mbart": ["en_XX"],
}  # fmt: skip
SENTINELS = {"t5": "<extra_id_0>", "mt5": "<extra_id_0>", "byt5": "\xff"}


@pytest.fixture(scope="module", params=MODELS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any, Any]:
    """(name, our checkpoint, the library's model, the library's tokenizer)."""
    folder = save_encoder_decoder(request.param, tmp_path_factory.mktemp(request.param))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    checkpoint = open_checkpoint(str(folder), OpenOptions(device="cpu", batch_tokens=60))
    return request.param, checkpoint, model, tokenizer


def decoder_start_ids(name: str, tokenizer: Any) -> list[int]:
    return tokenizer.convert_tokens_to_ids(DECODER_STARTS[name])


def next_logprob(model: Any, source: list[int], row: list[int], target: int) -> float:
    with torch.no_grad():
        ids, decoder_ids = torch.tensor([source]), torch.tensor([row])
        logits = model(input_ids=ids, decoder_input_ids=decoder_ids).logits[0, -1]
    return float(logits.double().log_softmax(-1)[target])


def loop_seq2seq(opened: Any, source: str, text: str) -> float:
    name, _, model, tokenizer = opened
    row, total = decoder_start_ids(name, tokenizer), 0.0
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        total += next_logprob(model, tokenizer(source)["input_ids"], row, token)
        row = [*row, token]
    return total


def loop_infill(opened: Any, text: str) -> float:
    name, _, model, tokenizer = opened
    start = decoder_start_ids(name, tokenizer)
    source = tokenizer(text)["input_ids"]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    offset, total = source.index(tokens[0]), 0.0
    for position, token in enumerate(tokens):
        mask = tokenizer.convert_tokens_to_ids(SENTINELS.get(name, "<mask>"))
        masked = [*source[: offset + position], mask, *source[offset + position + 1 :]]
        row = [*start[:1], mask] if name in SENTINELS else [*start, *tokens[:position]]
        total += next_logprob(model, masked, row, token)
    return total


def score(checkpoint: Any, method: str, sources: list[str]) -> np.ndarray:
    """Score TEXTS after sources, which stand before them as the context of a choice does."""
    options = [
        Option(f"{source} {text}", (len(source), len(source) + 1 + len(text)))
        if source
        else Option(text)
        for source, text in zip(sources, TEXTS, strict=True)
    ]
    items = [Item(str(i), (option,), 0) for i, option in enumerate(options)]
    return predict(checkpoint, items, [METHODS[method]])[0].flat("scores")


def test_seq2seq_is_the_loop_over_the_decoder_after_a_source(opened: Any) -> None:
    expected = [loop_seq2seq(opened, *pair) for pair in zip(SOURCES, TEXTS, strict=True)]
    np.testing.assert_allclose(score(opened[1], "seq2seq", SOURCES), expected, atol=2e-3, rtol=1e-5)


def test_infill_is_the_loop_over_masked_tokens(opened: Any) -> None:
    name, checkpoint, *_ = opened
    if name == "pegasus":
        assert checkpoint.methods == ["seq2seq"]
        assert "no sentinel <extra_id_0>" in checkpoint.no_mask_reason
        return
    expected = [loop_infill(opened, text) for text in TEXTS]
    scores = score(checkpoint, "infill", [""] * len(TEXTS))
    np.testing.assert_allclose(scores, expected, atol=2e-3, rtol=1e-5)


def test_no_score_depends_on_a_shortcut(opened: Any) -> None:
    checkpoint = opened[1]
    shortcuts = checkpoint.engine.shortcuts
    assert {"LM head at read positions", "padded rows", "batches"} <= set(shortcuts)
    for method in checkpoint.methods:
        fast = score(checkpoint, method, SOURCES)
        for disabled in ([name] for name in shortcuts):
            with checkpoint.engine.without_shortcuts(disabled):
                slow = score(checkpoint, method, SOURCES)
            np.testing.assert_allclose(slow, fast, atol=2e-3, rtol=1e-5, err_msg=str(disabled))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder_decoder("t5", tmp_path_factory.mktemp("models") / "t5")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder_decoder("bart", tmp_path_factory.mktemp("models") / "bart")


def test_the_run_records_what_encoder_and_decoder_read(bart: Path) -> None:
    specials = open_checkpoint(str(bart), OpenOptions(device="cpu")).metadata["specials"]
    assert specials == {
        "cross": "</s> <s> ...", "source": "<s> ... </s>",
        "denoising": "<s> ... </s>", "restored": "</s> <s> ...",
    }  # fmt: skip


def test_words_of_a_text_stand_in_the_decoder(t5: Path) -> None:
    scorer = Scorer(t5, device="cpu")
    words = surprisal(scorer, TEXTS[:1], method="seq2seq").table.to_pandas()
    total = -words["surprisal_bits"].sum() * np.log(2)
    assert total == pytest.approx(scorer.logprobs(TEXTS[:1], method="seq2seq")[0], abs=1e-3)
    tokens = scorer.token_logprobs(TEXTS[:1], method="infill").to_pandas()
    assert tokens["logprob"].sum() == pytest.approx(
        scorer.logprobs(TEXTS[:1], method="infill")[0], abs=1e-3
    )


@pytest.mark.parametrize("max_length", [None, 9])
def test_a_prefix_is_the_source(t5: Path, max_length: int | None) -> None:
    scorer = Scorer(t5, device="cpu", max_length=max_length)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(t5)
    loop = ("t5", None, model, tokenizer)
    expected = [loop_seq2seq(loop, "no cat", text) for text in TEXTS[:2]]
    fits = [len(tokenizer(text)["input_ids"]) <= (max_length or 99) for text in TEXTS[:2]]

    table = surprisal(scorer, TEXTS[:2], method="seq2seq", context="no cat").to_pandas()
    tokens = surprisal(
        scorer, TEXTS[:2], method="seq2seq", context="no cat", by="token", add=["rank"]
    ).to_pandas()

    texts = [table[table["item"] == item] for item in ("1", "2")]
    assert [list(text["word"]) for text in texts] == [text.split() for text in TEXTS[:2]]
    for index, text in enumerate(texts):
        bits = tokens[tokens["item"] == str(index + 1)]["surprisal_bits"]
        assert bits.sum() == pytest.approx(text["surprisal_bits"].sum(), abs=1e-5)
        if fits[index]:
            assert -text["surprisal_bits"].sum() * np.log(2) == pytest.approx(
                expected[index], abs=1e-3
            )
    logprobs = scorer.logprobs(TEXTS[:2], method="seq2seq", prefixes=["no cat"] * 2)
    for value, text_fits, total in zip(logprobs, fits, expected, strict=True):
        assert (value == pytest.approx(total, abs=1e-3)) if text_fits else np.isnan(value)


def test_bos_never_leaves_out_special_tokens_and_needs_a_source(bart: Path) -> None:
    checkpoint = open_checkpoint(str(bart), OpenOptions(device="cpu"))
    encoder = checkpoint.encoders["cross"].with_bos_policy("cross", "never")
    [batch] = encoder.encode(["the dog"], [None], ["no cat"]).batches
    tokens = encoder.tokenizer.convert_ids_to_tokens
    assert tokens(batch.ids[0]) == ["</s>", "Ġthe", "Ġdog"]
    assert tokens(batch.source_ids[0]) == ["Ġno", "Ġcat"]
    with pytest.raises(UsageError, match="the encoder reads no token of the source ''"):
        encoder.encode(["the dog"], [None])


def test_source_and_text_have_the_same_longest_row(bart: Path) -> None:
    checkpoint = open_checkpoint(str(bart), OpenOptions(device="cpu", max_length=6))
    encodings = checkpoint.encode(
        ["the dog", "the dog", "the dog sees the cat"], [None] * 3, "cross",
        ["no cat", "no cat sees the dog", "no cat"],
    )  # fmt: skip
    assert encodings.too_long.tolist() == [False, True, True]
    assert [batch.text_index.tolist() for batch in encodings.batches] == [[0]]


def test_adaptive_precision_keeps_the_choices(t5: Path) -> None:
    checkpoint = open_checkpoint(str(t5), OpenOptions(device="cpu"))
    pairs = [(text, source) for text in TEXTS for source in SOURCES[1:]]
    items = [Item(str(i), tuple(map(Option, pair)), 0) for i, pair in enumerate(pairs)]
    methods = [METHODS["seq2seq"]]
    scorer = AdaptiveScorer(with_bf16_body(checkpoint), checkpoint).calibrate(items, methods)
    [adaptive], [exact] = scorer.predict(items, methods), predict(checkpoint, items, methods)
    assert adaptive.pred.tolist() == exact.pred.tolist()
    in_bf16 = ~adaptive.has_flag("float32")
    assert in_bf16.any()
    np.testing.assert_allclose(
        adaptive.padded("scores")[in_bf16], exact.padded("scores")[in_bf16], rtol=0.02
    )


def test_what_an_encoder_decoder_cannot_do_is_refused(t5: Path) -> None:
    with pytest.raises(CheckpointError, match="can be scored but not finetuned"):
        open_backbone(str(t5), OpenOptions(device="cpu"))
    with pytest.raises(MethodNotSupported, match="does not run with causal attention"):
        Scorer(t5, device="cpu").logprobs(TEXTS, method="causal")


@pytest.mark.parametrize("method", ["seq2seq", "infill"])
def test_lm_evals_greedy_mark_is_the_argmax_of_every_token(bart: Path, method: str) -> None:
    model = GreedyTrackingModel(open_checkpoint(str(bart), OpenOptions(device="cpu")))
    items = [Item(str(i), (Option(text),), 0) for i, text in enumerate(TEXTS)]
    [predictions] = predict(model, items, [METHODS[method]])
    [expected] = predict(model.checkpoint, items, [METHODS[method]])
    np.testing.assert_allclose(predictions.flat("scores"), expected.flat("scores"), atol=1e-4)
    table = Scorer(bart, device="cpu").token_logprobs(TEXTS, method=method).to_pandas()
    is_likely = table.assign(likely=table["logprob"] > np.log(0.5)).groupby("text_index")["likely"]
    sure = is_likely.sum().to_numpy()  # tokens of more than one half are the argmax
    assert (model.num_non_greedy <= predictions.flat("tokens") - sure).all()


def test_minicons_agrees_without_the_special_tokens_of_the_source(t5: Path) -> None:
    from minicons.scorer import Seq2SeqScorer

    tokenizer = transformers.AutoTokenizer.from_pretrained(t5)
    tokenizer.bos_token = "</s>"  # else minicons adds a token that the model has no embedding for
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5).eval()
    peer = Seq2SeqScorer(model, "cpu", tokenizer=tokenizer)
    texts, sources = ["the dog sees", "every cat sleeps"], ["no cat", "what the boy sees"]
    theirs = [
        peer.conditional_score(source, text, reduction=lambda scores: scores.sum(0).item())[0]
        for source, text in zip(sources, texts, strict=True)
    ]
    checkpoint = open_checkpoint(str(t5), OpenOptions(device="cpu", bos="never"))
    encodings = checkpoint.encode(texts, [None] * 2, "cross", sources)
    probes = [METHODS["seq2seq"].parts[0][1](batch, None) for batch in encodings.batches]
    np.testing.assert_allclose(checkpoint.score_probes(probes, 2), theirs, atol=1e-3)
