"""Checkpoints whose tokenizer and weights do not fit together: a right score, counted flags, or one
clear sentence.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import small_tokenizers
import torch
from prediction_rows import PredictionRow, read_rows
from tiny_models import build_model
from tokenizers import processors

from antlm_bench import runs
from antlm_bench.cli.app import run

PAIRS = [
    ("the cat sat on the mat .", "a cat sat on the mat ."),
    ("The dog can't sit.", "The dog can't sat ."),
]


def checkpoint(
    folder: Path, tokenizer: Any, vocabulary: int, architecture: str = "", **config: Any
) -> Path:
    kind = "masked" if "Masked" in architecture else "causal"
    build_model(kind, 0, architecture, vocab_size=vocabulary, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def suite(folder: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("good", "bad"), *pairs])
    return folder / "pairs.csv"


def score(
    tmp_path: Path, model: Path, pairs: Sequence[tuple[str, str]], *more: str
) -> tuple[int, list[PredictionRow]]:
    out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
    code = run(
        [
            "score",
            "--model",
            str(model),
            "--suite",
            str(suite(tmp_path, pairs)),
            "--out",
            str(out),
            *more,
        ]
    )
    if code:
        assert not list(out.rglob("*.parquet"))
        return code, []
    [cell] = runs.open_run(out).cells
    return code, read_rows(out, cell)


def library(model: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    causal = "CausalLM" in AutoConfig.from_pretrained(model).architectures[0]
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_pretrained(model).eval()


def masked_by_hand(model: Any, ids: list[int], mask: int) -> float:
    total = 0.0
    for at in range(1, len(ids)):
        row = torch.tensor([ids])
        row[0, at] = mask
        with torch.inference_mode():
            total += model(input_ids=row).logits[0, at].log_softmax(-1)[ids[at]].item()
    return total


def causal_by_hand(model: Any, ids: list[int]) -> float:
    with torch.inference_mode():
        return sum(
            model(input_ids=torch.tensor([ids[:at]])).logits[0, -1].log_softmax(-1)[ids[at]].item()
            for at in range(1, len(ids))
        )


@pytest.mark.long
@pytest.mark.parametrize("named", [True, False])
def test_a_model_without_a_usable_mask_token_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    tokenizer = small_tokenizers.build_word_level("<unk>")
    vocabulary = len(tokenizer)
    if named:
        tokenizer.add_special_tokens({"mask_token": "[HIDE]"})
    model = checkpoint(tmp_path / "model", tokenizer, vocabulary, "BertForMaskedLM")
    why = (
        f"mask token '[HIDE]' has the id {vocabulary}"
        if named
        else "its tokenizer has no mask token"
    )
    assert run(["doctor", "--model", str(model)]) == 0
    assert why in " ".join(capsys.readouterr().out.split())
    table = tmp_path / "out.csv"
    for more in ([], ["--method", "mlm"]):
        assert score(tmp_path, model, PAIRS, *more)[0] == 2
        assert why in capsys.readouterr().err
        source = str(suite(tmp_path, PAIRS))
        asked = [
            "surprisal",
            "--model",
            str(model),
            "--in",
            source,
            "--columns",
            "sentence=good",
            "--out",
            str(table),
        ]
        assert run([*asked, *more]) == 2 and not table.exists()
        assert why in capsys.readouterr().err


@pytest.mark.long
def test_a_bos_without_an_embedding_is_refused_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = small_tokenizers.train_byte_level()
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    model = checkpoint(tmp_path / "model", tokenizer, vocabulary)
    assert score(tmp_path, model, PAIRS)[0] == 3
    assert f"'[BOS]' has the id {vocabulary}" in capsys.readouterr().err
    code, predictions = score(tmp_path, model, PAIRS, "--bos", "never")
    assert code == 0
    for prediction, pair in zip(predictions, PAIRS, strict=True):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
        assert prediction.scores == pytest.approx(
            [causal_by_hand(library(model), row) for row in ids], abs=1e-4
        )


@pytest.mark.long
def test_a_tokenizer_without_an_unknown_token_scores_what_it_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = small_tokenizers.build_word_level(
        words=["the", "cat", "sat", "on", "mat", ".", "a"]
    )
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    model = checkpoint(tmp_path / "model", tokenizer, len(tokenizer))
    assert score(tmp_path, model, PAIRS)[0] == 3
    assert 'cannot read "The dog can\'t sit."' in capsys.readouterr().err
    code, [prediction] = score(tmp_path, model, PAIRS[:1])
    ids = [[bos, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in PAIRS[0]]
    assert code == 0 and prediction.flags == ()
    assert prediction.scores == pytest.approx(
        [causal_by_hand(library(model), row) for row in ids], abs=1e-4
    )


@pytest.mark.long
def test_lost_characters_are_counted_beside_the_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = small_tokenizers.train_gemma_like()
    model = checkpoint(tmp_path / "model", tokenizer, len(tokenizer))
    code, predictions = score(tmp_path, model, [*PAIRS, ("the ☕ cat", "the ☕ dog")])
    assert code == 0 and [p.flags for p in predictions] == [(), (), ("lost",)]
    assert "characters lost by the tokenizer" in capsys.readouterr().out
    assert score(tmp_path, model, [("☕", "the cat")])[0] == 3
    assert "drops every character" in capsys.readouterr().err


@pytest.mark.long
def test_mlm_l2r_of_a_tokenizer_that_tells_no_words_says_where_they_come_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = small_tokenizers.train_superword()
    model = checkpoint(tmp_path / "model", tokenizer, len(tokenizer), "BertForMaskedLM")
    code, predictions = score(tmp_path, model, PAIRS, "--method", "mlm-l2r")
    out = " ".join(capsys.readouterr().out.split())
    assert code == 0 and "spans-words" in predictions[0].flags
    assert "does not say which word a token belongs to" in out and "tokens that span words" in out
    assert score(tmp_path, model, PAIRS, "--method", "mlm-l2r", "--engine", "minicons")[0] == 2
    assert "minicons needs to know which word" in capsys.readouterr().err


@pytest.mark.long
def test_rows_up_to_the_last_position_are_scored_and_longer_ones_flagged(tmp_path: Path) -> None:
    tokenizer = small_tokenizers.train_byte_level()
    model = checkpoint(
        tmp_path / "model",
        tokenizer,
        len(tokenizer),
        "Data2VecTextForMaskedLM",
        max_position_embeddings=20,
    )
    texts = [("the " * n).strip() for n in range(14, 22)]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts]
    code, predictions = score(tmp_path, model, [(text, f"a{text[3:]}") for text in texts])
    assert code == 0 and {"too-long" in p.flags for p in predictions} == {True, False}
    for text, length, prediction in zip(texts, lengths, predictions, strict=True):
        assert ("too-long" in prediction.flags) == (
            length > 19
        )  # positions 1 to 19 follow the padding id 0
        if length <= 19:
            ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            by_hand = masked_by_hand(library(model), ids, tokenizer.mask_token_id)
            assert prediction.scores[0] == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.long
def test_the_lm_eval_model_warns_of_what_the_tokenizer_loses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm_eval = pytest.importorskip("lm_eval.api.instance")
    from antlm_bench.lm_eval_bridge.model import AntlmBench

    tokenizer = small_tokenizers.train_gemma_like()
    model = AntlmBench(str(checkpoint(tmp_path / "model", tokenizer, len(tokenizer))))
    asked = [
        lm_eval.Instance("loglikelihood", {}, pair, 0)
        for pair in (("on a dog,", " cat"), ("on a ☕ dog,", " cat"))
    ]
    with caplog.at_level(logging.WARNING, logger="antlm_bench"):
        model.loglikelihood(asked)
    assert "1 requests: an option holds a character that no token stands for" in caplog.text
