"""Age of acquisition: curves whose answer is known, and a folder of checkpoints from score to correlation."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from antlm_bench.cli import run
from antlm_bench.commands.acquisition import acquisition
from antlm_bench.commands.score import score
from antlm_bench.errors import DataError, UsageError
from antlm_bench.runs import predictions, read
from antlm_bench.statistics import acquisition as curves
from antlm_bench.suites import items as suites

TASKS = Path(__file__).parents[2] / "tasks"
AGES = np.arange(16.0, 31)
STEPS = np.array([1, 2, 3, 5, 8, 10, 20, 40, 60, 80, 100]) * 1e6


def sigmoid(x, height, slope, middle, bottom=0.0):
    return height / (1 + np.exp(-slope * (x - middle))) + bottom


@pytest.mark.parametrize("middle", [18.0, 22.5, 27.0])
def test_half_of_the_children_know_a_word_in_the_middle_of_a_whole_sigmoid(middle):
    assert curves.of_children(AGES, sigmoid(AGES, 1, 0.4, middle)) == pytest.approx(middle, abs=0.05)


def test_a_lower_ceiling_moves_the_half():
    """.8 / (1 + exp(-.5 (x - 22))) = .5 at x = 22 + 2 ln(.5 / .3)."""
    expected = 22 + 2 * math.log(0.5 / 0.3)
    assert curves.of_children(AGES, sigmoid(AGES, 0.8, 0.5, 22)) == pytest.approx(expected, abs=0.05)


def test_ages_that_were_not_asked_are_left_out_and_curves_without_a_half_have_none():
    shares = sigmoid(AGES, 1, 0.4, 22)
    shares[[2, 5]] = np.nan
    assert curves.of_children(AGES, shares) == pytest.approx(22, abs=0.05)
    assert curves.of_children(AGES, np.full(15, np.nan)) is None
    assert curves.of_children(AGES, sigmoid(AGES, 0.3, 0.5, 22)) is None  # never half
    assert curves.of_children(AGES, sigmoid(AGES, 0.2, 0.5, 22, 0.75)) is None  # always more


@pytest.mark.parametrize("middle", [6.5, 7.0, 7.6])
def test_a_model_acquires_a_word_halfway_between_chance_and_its_best(middle):
    chance, best = 2 * math.log(8000), 5.0
    surprisal = chance - sigmoid(np.log10(STEPS + 1), chance - best, 6.0, middle)
    level = 0.5 * (chance + surprisal.min())  # where the curve passes it, solved by hand
    expected = middle - math.log((chance - best) / (chance - level) - 1) / 6
    assert curves.of_model(STEPS, surprisal, chance) == pytest.approx(expected, abs=0.02)


def test_a_word_that_is_never_or_always_known_has_no_age():
    assert curves.of_model(STEPS, np.full(11, 17.0), 18.0) is None
    assert (
        curves.of_model(STEPS, 4 - 0.1 * np.log10(STEPS), 18.0) is None
    )  # below the half from the first checkpoint on
    assert curves.of_model(STEPS[:2], np.array([9.0, 5.0]), 9.0) is None
    assert curves.of_model(STEPS, np.r_[np.full(9, np.nan), 9.0, 5.0], 9.0) is None


def test_chance_is_per_token_in_nats():
    """Against base 2, or one token, the same curve has another half: 2025's mistakes."""
    surprisal = 18 - sigmoid(np.log10(STEPS + 1), 14, 4.0, 7.0)
    right = curves.of_model(STEPS, surprisal, 2 * math.log(8000))
    assert right is not None
    assert abs((curves.of_model(STEPS, surprisal, math.log2(8000)) or 0) - right) > 0.05


def test_correlation_is_pearsons_with_fishers_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    r, p, (low, high) = curves.correlation(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1]) and p < 1e-4
    assert math.atanh(high) - math.atanh(r) == pytest.approx(1.959964 / math.sqrt(47), rel=1e-5)
    assert low < r < high
    assert curves.correlation(x[:2], y[:2]) is None and curves.correlation(x, np.ones(50)) is None


# ---- from checkpoints to the number ---------------------------------------------------------------------------------


CONTEXTS = {
    "cat": ["the", "some old"],
    "dog": ["a", "who sees the"],
    "house": ["near the", "every"],
    "boy": ["the old"],
}
CONTEXTS |= {"girl": ["a small", "the"], "never": []}


@pytest.fixture
def own_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shipped declaration over a handful of words."""
    monkeypatch.delenv("ANTLM_BENCH_DATA", raising=False)
    folder = tmp_path / "own"
    folder.mkdir()
    whole = {
        word: [{"context": c, "word_in_context_stats": {"count": 1}} for c in some] for word, some in CONTEXTS.items()
    }
    (folder / "cdi_childes.json").write_text(json.dumps(whole))
    with (folder / "cdi_human.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "word", *range(16, 31)])
        for number, word in enumerate(CONTEXTS):
            writer.writerow([number, word, *np.round(sigmoid(AGES, 1, 0.5, 19 + number), 2)])
    text = (TASKS / "aoa-words-2026.toml").read_text(encoding="utf-8").replace("where = [", 'where = ["{file}", ')
    lines = ["" if line.startswith("items =") else line for line in text.splitlines()]
    lines = [line.partition("= {")[0] + "= {}" if "sha256" in line else line for line in lines]
    text = "\n".join(lines).replace("[expect]", "[expect]\nitems = 9")
    (folder / "aoa-words-2026.toml").write_text(text, encoding="utf-8")
    return str(folder / "aoa-words-2026.toml")


@pytest.fixture
def scored(make_checkpoint, tmp_path: Path, own_suite: str) -> Path:
    """Runs of four checkpoints that know more and more (their logits are scaled up)."""
    import shutil

    from safetensors.torch import load_file, save_file

    source = make_checkpoint("causal", adds=True, tie_word_embeddings=False)
    checkpoints = tmp_path / "model"
    for number, words in enumerate((1, 2, 3, 10)):
        folder = checkpoints / f"chck_{words}M"
        shutil.copytree(source, folder)
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] *= 0.05 + 0.3 * number
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    score(str(checkpoints), own_suite, out=tmp_path / "runs")
    return tmp_path / "runs"


def test_contexts_are_items_and_words_without_any_are_none(own_suite):
    suite = suites.load(own_suite)
    assert [item.id for item in suite.items] == [
        "cat_0", "cat_1", "dog_0", "dog_1", "house_0", "house_1", "boy_0", "girl_0", "girl_1",
    ]  # fmt: skip
    first = suite.items[1].options[0]
    assert first.text == "some old cat" and first.text[slice(*first.span)] == "cat"


def test_a_folder_of_checkpoints_becomes_a_curve_per_word(scored, own_suite):
    (found,) = acquisition([scored], own_suite)
    assert (found.method, found.checkpoints) == ("causal", 4)
    assert [row["word"] for row in found.rows] == ["cat", "dog", "house", "boy", "girl"]
    assert [row["children_months"] for row in found.rows] == pytest.approx([19, 20, 21, 22, 23], abs=0.1)
    last = read(next(p for p in scored.iterdir() if "10M" in p.name))
    by_hand = [-p.scores[0] for p in predictions(last.path, last.cells[0]) if p.id.startswith("cat_")]
    assert found.rows[0]["last_surprisal_nats"] == pytest.approx(np.mean(by_hand))
    steps, nats = np.array([1, 2, 3, 10]) * 1e6, math.log(400)
    for row in found.rows:
        mean = []
        for words in (1, 2, 3, 10):
            opened = read(next(p for p in scored.iterdir() if f"chck_{words}M" in p.name))
            some = [p for p in predictions(opened.path, opened.cells[0]) if p.labels["word"] == row["word"]]
            mean.append(np.mean([-p.scores[0] for p in some]))
        assert row["model_log10_words"] == curves.of_model(steps, np.array(mean), row["n_tokens"] * nats)
    assert found.score == (0.0 if found.correlation is None or found.p > 0.1 else found.correlation.value)


def test_the_verb_prints_the_score_and_writes_the_words(scored, own_suite, tmp_path, capsys):
    out = tmp_path / "words.csv"
    assert run(["acquisition", str(scored), "--suite", own_suite, "--out", str(out)]) == 0
    assert "as BabyLM 2026 publishes it" in capsys.readouterr().out
    with out.open(newline="") as file:
        assert [row["word"] for row in csv.DictReader(file)] == ["cat", "dog", "house", "boy", "girl"]


def test_what_cannot_be_is_said(scored, own_suite, tmp_path):
    one = next(path for path in scored.iterdir() if "10M" in path.name)
    with pytest.raises(UsageError, match="no model has 3 checkpoints"):
        acquisition([one], own_suite)
    with pytest.raises(UsageError, match="says nothing of children"):
        acquisition([scored], "blimp")
    place = Path(own_suite).parent
    (place / "cdi_human.csv").write_text("word," + ",".join(map(str, range(16, 31))) + "\ncat" + ",2" * 15 + "\n")
    with pytest.raises(DataError, match=r"cdi_human.csv:2: a share of children must lie in 0..1"):
        acquisition([scored], own_suite)
    (place / "cdi_childes.json").write_text('["cat"]')
    with pytest.raises(DataError, match="not an object of lists"):
        suites.load(own_suite)
