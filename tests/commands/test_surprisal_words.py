"""`surprisal --words`: what a word is, from argv to the table."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers

from antlm_bench.cli.app import run
from antlm_bench.commands.surprisal import surprisal
from antlm_bench.errors import UsageError
from antlm_bench.suites.stimuli import read_stimuli, split_into_units


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def list_words(path: Path, words: str | None = None) -> list[object]:
    return [unit.row["word"] for unit in split_into_units(read_stimuli(path), "word", words=words)]


def test_chinese_without_a_rule_is_refused_before_the_model(tmp_path, capsys):
    stimuli = write(tmp_path / "zh.txt", "the cat\n我喜欢猫。\n")
    out = tmp_path / "out.csv"
    argv = ["surprisal", "--model", "no-such-model", "--in", str(stimuli), "--out", str(out)]
    assert run(argv) == UsageError.exit_code == 2
    error = capsys.readouterr().err
    assert "item 2 has no spaces between words: '我喜欢猫'" in error
    assert "--words characters, icu, jieba" in error and not out.exists()


def test_effects_with_models_take_a_rule_for_words(make_checkpoint, tmp_path, capsys):
    rows = ["1,a,c,猫。", "1,b,c,狗。", "2,a,c,我猫。", "2,b,c,我狗。"]
    stimuli = write(tmp_path / "zh.csv", "\n".join(["item,condition,region,text", *rows]) + "\n")
    argv = ["effects", str(stimuli), "--model", str(make_checkpoint("causal", adds=True))]
    assert run(argv) == 2 and "--words characters" in capsys.readouterr().err
    assert run([*argv, "--words", "characters"]) == 0
    assert run(["effects", str(stimuli), "--words", "characters"]) == 2
    assert "--words" in capsys.readouterr().err


@pytest.mark.long
def test_a_row_per_character(make_checkpoint, tmp_path, capsys):
    stimuli = write(tmp_path / "zh.txt", "我喜欢猫。\n")
    out = tmp_path / "out.csv"
    model = str(make_checkpoint("causal", adds=True))
    argv = ["surprisal", "--model", model, "--in", str(stimuli), "--out", str(out)]
    assert run([*argv, "--words", "characters"]) == 0
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["word"] for row in rows] == list("我喜欢猫。")
    assert [row["word_index"] for row in rows] == list("12345")
    assert "words by  characters" in capsys.readouterr().out


def masked_bits(folder: Path, text: str, word_ends: list[int]) -> float:
    """The pseudo-surprisal of a text, by a plain loop: a token and the rest of its word masked.

    word_ends: index after the last token of each word; <s> has the index 0.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    ids = tokenizer(text)["input_ids"]
    total = 0.0
    for start, end in pairwise([1, *word_ends]):
        for position in range(start, end):
            row = torch.tensor([ids])
            row[0, position:end] = tokenizer.mask_token_id
            with torch.inference_mode():
                logp = model(row).logits[0, position].log_softmax(-1)
            total -= logp[ids[position]].item() / math.log(2)
    return total


@pytest.mark.long
def test_a_rule_decides_what_mlm_l2r_masks(make_checkpoint):
    """The tokens are a space and three bytes of either character."""
    folder, text = make_checkpoint("masked", adds=True), "我喜"
    bits = {
        words: math.fsum(
            row["surprisal_bits"]
            for row in surprisal(str(folder), [text], method="mlm-l2r", words=words).rows
        )
        for words in ("characters", "spaces")
    }
    assert bits["characters"] == pytest.approx(masked_bits(folder, text, [5, 8]), abs=1e-3)
    assert bits["spaces"] == pytest.approx(masked_bits(folder, text, [8]), abs=1e-3)


def test_pre_segmented_text_is_split_at_its_spaces(tmp_path):
    stimuli = write(tmp_path / "zh.txt", "我 喜欢 猫 。\n")
    assert list_words(stimuli, "spaces") == ["我", "喜欢", "猫", "。"]


def test_regions_without_spaces_are_joined_without_them(tmp_path):
    rows = "1,a,我喜欢 1,b,猫 1,c,。 2,a,The 2,b,cat 3,a,我用 3,b,Python".replace(" ", "\n")
    stimuli = read_stimuli(write(tmp_path / "regions.csv", f"item,region,text\n{rows}\n"))
    assert [stimulus.text for stimulus in stimuli] == ["我喜欢猫。", "The cat", "我用 Python"]
    units = split_into_units(stimuli, "region")
    assert [unit.row["region_text"] for unit in units[:3]] == ["我喜欢", "猫", "。"]


def test_words_belong_to_the_region_of_their_first_character(tmp_path):
    rows = "item,region,text\n1,a,ខ្ញុំ\u200bស្រឡាញ់\n1,b,\u200bឆ្មា\n"
    units = split_into_units(read_stimuli(write(tmp_path / "km.csv", rows)), "word", words="spaces")
    assert [(unit.row["region"], unit.row["word"]) for unit in units] == [
        ("a", "ខ្ញុំ"),
        ("a", "ស្រឡាញ់"),
        ("b", "ឆ្មា"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "mecab"}, "unknown rule 'mecab'"),
        ({"words": 3}, "is not a string"),
        ({"words": "characters", "by": "sentence"}, "the rows are not words"),
    ],
)
def test_unusable_rules_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        surprisal("no-such-model", ["a b"], **options)
