"""Age of acquisition: curves with a known solution, and checkpoints from scores to correlation."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from prediction_rows import assert_columns_declared, read_rows
from scipy import stats
from scipy.stats import pearsonr

from antlm_bench.cli.app import run
from antlm_bench.commands.acquisition import compute_acquisition
from antlm_bench.commands.data import _resolve_specs as specs
from antlm_bench.commands.score import score
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics.acquisition import summarize_acquisition
from antlm_bench.runs import base_suite_name, open_run, read_predictions
from antlm_bench.statistics import acquisition as curves
from antlm_bench.suites import loader as suites
from antlm_bench.suites import task_types
from antlm_bench.types import Run

TASKS = Path(__file__).parents[2] / "tasks"
AGES = np.arange(16.0, 31)
STEPS = np.array([1, 2, 3, 5, 8, 10, 20, 40, 60, 80, 100]) * 1e6


def sigmoid(x, height, slope, middle, bottom=0.0):
    return height / (1 + np.exp(-slope * (x - middle))) + bottom


@pytest.mark.parametrize("middle", [18.0, 22.5, 27.0])
def test_children_acquire_a_word_at_the_sigmoid_midpoint(middle):
    assert curves.child_age_of_acquisition(AGES, sigmoid(AGES, 1, 0.4, middle)) == pytest.approx(
        middle, abs=0.05
    )


def test_a_lower_ceiling_moves_the_half():
    """.8 / (1 + exp(-.5 (x - 22))) = .5 at x = 22 + 2 ln(.5 / .3)."""
    expected = 22 + 2 * math.log(0.5 / 0.3)
    assert curves.child_age_of_acquisition(AGES, sigmoid(AGES, 0.8, 0.5, 22)) == pytest.approx(
        expected, abs=0.05
    )


def test_missing_ages_are_skipped_and_some_words_have_no_age():
    shares = sigmoid(AGES, 1, 0.4, 22)
    shares[[2, 5]] = np.nan
    assert curves.child_age_of_acquisition(AGES, shares) == pytest.approx(22, abs=0.05)
    assert curves.child_age_of_acquisition(AGES, np.full(15, np.nan)) is None
    assert curves.child_age_of_acquisition(AGES, sigmoid(AGES, 0.3, 0.5, 22)) is None  # never half
    assert (
        curves.child_age_of_acquisition(AGES, sigmoid(AGES, 0.2, 0.5, 22, 0.75)) is None
    )  # always more


@pytest.mark.parametrize("middle", [6.5, 7.0, 7.6])
def test_a_model_acquires_a_word_halfway_below_chance(middle):
    chance, best = 2 * math.log(8000), 5.0
    surprisal = chance - sigmoid(np.log10(STEPS + 1), chance - best, 6.0, middle)
    level = 0.5 * (chance + surprisal.min())  # where the curve passes it, solved by hand
    expected = middle - math.log((chance - best) / (chance - level) - 1) / 6
    assert curves.model_age_of_acquisition(STEPS, surprisal, chance) == pytest.approx(
        expected, abs=0.02
    )


def test_a_word_that_is_never_or_always_known_has_no_age():
    assert curves.model_age_of_acquisition(STEPS, np.full(11, 17.0), 18.0) is None
    assert (
        curves.model_age_of_acquisition(STEPS, 4 - 0.1 * np.log10(STEPS), 18.0) is None
    )  # below the half from the first checkpoint on
    assert curves.model_age_of_acquisition(STEPS[:2], np.array([9.0, 5.0]), 9.0) is None
    assert curves.model_age_of_acquisition(STEPS, np.r_[np.full(9, np.nan), 9.0, 5.0], 9.0) is None


def test_chance_is_per_token_in_nats():
    """In base 2, or for one token, the same curve has another midpoint (the errors of 2025)."""
    surprisal = 18 - sigmoid(np.log10(STEPS + 1), 14, 4.0, 7.0)
    right = curves.model_age_of_acquisition(STEPS, surprisal, 2 * math.log(8000))
    assert right is not None
    assert (
        abs((curves.model_age_of_acquisition(STEPS, surprisal, math.log2(8000)) or 0) - right)
        > 0.05
    )


def test_correlation_is_pearsons_with_fishers_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = x + rng.normal(size=50)
    r, p, (low, high) = curves.pearson_correlation(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1]) and p < 1e-4
    t = stats.t.ppf(0.975, 48)
    significant_r = t / math.sqrt(48 + t**2)
    assert [math.atanh(high) - math.atanh(r), math.atanh(r) - math.atanh(low)] == pytest.approx(
        [math.atanh(significant_r)] * 2
    )
    assert math.atanh(high) - math.atanh(r) == pytest.approx(1.959964 / math.sqrt(47), rel=2e-3)
    assert low < r < high
    assert (
        curves.pearson_correlation(x[:2], y[:2]) is None
        and curves.pearson_correlation(x, np.ones(50)) is None
    )


# --- from checkpoints to the number ---


CONTEXTS = {
    "cat": ["the", "some old"],
    "dog": ["a", "who sees the"],
    "house": ["near the", "every"],
    "boy": ["the old"],
}
CONTEXTS |= {"girl": ["a small", "the"], "never": []}


@pytest.fixture
def own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped declarations over six words; returns the folder of their data."""
    folder = tmp_path / "own" / "tasks"
    folder.mkdir(parents=True)
    monkeypatch.delenv("ANTLM_BENCH_DATA", raising=False)
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(folder.parent))
    contexts = {
        word: [{"context": c, "word_in_context_stats": {"count": 1}} for c in texts]
        for word, texts in CONTEXTS.items()
    }
    (folder / "cdi_childes.json").write_text(json.dumps(contexts))
    with (folder / "cdi_human.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "word", *range(16, 31)])
        for number, word in enumerate(CONTEXTS):
            writer.writerow([number, word, *np.round(sigmoid(AGES, 1, 0.5, 19 + number), 2)])
    text = (
        (TASKS / "aoa-words-2026.toml")
        .read_text(encoding="utf-8")
        .replace("where = [", 'where = ["{file}", ')
    )
    lines = ["" if line.startswith("items =") else line for line in text.splitlines()]
    lines = [line.partition("= {")[0] + "= {}" if "sha256" in line else line for line in lines]
    text = "\n".join(lines).replace("[expect]", "[expect]\nitems = 9")
    (folder / "aoa-words-2026.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def checkpoints(make_checkpoint, tmp_path: Path) -> Path:
    """Four checkpoints that know more and more: their logits are scaled up."""
    source = make_checkpoint("causal", adds=True, tie_word_embeddings=False)
    folder = tmp_path / "model"
    for number, words in enumerate((1, 2, 3, 10)):
        scale_logits(source, folder / f"chck_{words}M", 0.05 + 0.3 * number)
    return folder


def scale_logits(source: Path, folder: Path, by: float) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= by
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def scored(checkpoints: Path, tmp_path: Path, own_words: Path) -> Path:
    """The runs of the checkpoints."""
    score(str(checkpoints), "aoa-words-2026", out=tmp_path / "runs")
    return tmp_path / "runs"


def open_run_of(runs_: Path, name: str) -> Run:
    return open_run(next(path for path in runs_.iterdir() if path.name.startswith(f"{name}-")))


def read_word_logprobs(runs_: Path, words: int, word: str) -> np.ndarray:
    """Return the log-probabilities of a word in its contexts at a checkpoint."""
    checkpoint_run = open_run_of(runs_, f"chck_{words}M")
    return np.array(
        [
            p.scores[0]
            for p in read_rows(checkpoint_run.path, checkpoint_run.cells[0])
            if p.labels["word"] == word
        ]
    )


@pytest.mark.usefixtures("own_words")
def test_contexts_are_items_and_words_without_any_are_none():
    suite = suites.load_suite("aoa-words-2026")
    assert [item.id for item in suite.items] == [
        "cat_0", "cat_1", "dog_0", "dog_1", "house_0", "house_1", "boy_0", "girl_0", "girl_1",
    ]  # fmt: skip
    first = suite.items[1].options[0]
    assert first.text == "some old cat" and first.text[slice(*first.span)] == "cat"


@pytest.mark.long
@pytest.mark.parametrize("suite", ["aoa-2026", "aoa-2025"])
def test_a_folder_of_checkpoints_becomes_a_curve_per_word(scored, suite):
    (result,) = compute_acquisition([scored], suite)
    assert (result.cell.suite, result.cell.method) == (suite, "causal")
    assert_columns_declared("acquisition", read_predictions(result.run_dir, result.cell))
    predictions = read_rows(result.run_dir, result.cell)
    assert [p.id for p in predictions] == ["cat", "dog", "house", "boy", "girl"]
    assert [p.gold for p in predictions] == pytest.approx([19, 20, 21, 22, 23], abs=0.1)
    words_seen = np.array([1, 2, 3, 10]) * 1e6
    ages = []
    for row, p in zip(result.word_rows(), predictions, strict=True):
        logprobs = [read_word_logprobs(scored, words, p.id) for words in (1, 2, 3, 10)]
        if suite == "aoa-2026":
            expected = [values.mean() for values in logprobs]
            age = curves.model_age_of_acquisition(
                words_seen, -np.array(expected), p.tokens[0] * math.log(400)
            )
        else:
            expected = [value for values in logprobs for value in values]
            steps = np.repeat(words_seen, [len(values) for values in logprobs])
            age = curves.model_age_of_acquisition(
                steps, -np.array(expected), math.log2(300_000), bounded=False
            )
        assert p.scores == pytest.approx(expected) and row["model_log10_words"] == age
        ages.append(age)
    pairs = [(a, p.gold) for a, p in zip(ages, predictions, strict=True) if a is not None]
    headline = result.cell.summary.headline
    assert headline.n == len(pairs)
    if len(pairs) >= 3:
        r, p_value = pearsonr(*zip(*pairs, strict=True))
        assert headline.value == pytest.approx(0 if suite == "aoa-2026" and p_value > 0.1 else r)


@pytest.mark.long
def test_the_cell_is_stored_in_the_last_run_and_reused(scored, monkeypatch):
    (result,) = compute_acquisition([scored])
    assert Path(result.run_dir) == Path(open_run_of(scored, "chck_10M").path)
    assert [base_suite_name(cell) for cell in open_run(result.run_dir)] == [
        "aoa-words-2026",
        "aoa-2026",
    ]
    before = (Path(result.run_dir) / "run.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(curves, "model_age_of_acquisition", None)  # nothing may be fitted again
        assert compute_acquisition([scored])[0].cell == result.cell
    assert (Path(result.run_dir) / "run.json").read_bytes() == before


@pytest.mark.long
def test_rescored_checkpoints_make_the_number_stale(scored, own_words):
    (old,) = compute_acquisition([scored])
    (own_words / "cdi_human.csv").write_text(
        (own_words / "cdi_human.csv").read_text().replace("0.5", "0.51")
    )
    (new,) = compute_acquisition([scored])
    assert (
        new.cell.key != old.cell.key
        and len([c for c in open_run(new.run_dir) if base_suite_name(c) == "aoa-2026"]) == 1
    )


@pytest.mark.long
def test_the_final_model_gets_the_cell_but_no_curve_point(scored, checkpoints):
    final = scale_logits(checkpoints / "chck_3M", checkpoints / "main", 1.5)
    score(str(final), "aoa-words-2026", out=scored / "main")
    (result,) = compute_acquisition([scored])
    assert Path(result.run_dir) == scored / "main"
    assert [checkpoint["words"] for checkpoint in result.cell.settings["checkpoints"]] == [
        10**6,
        2 * 10**6,
        3 * 10**6,
        10**7,
    ]
    score(
        str(scale_logits(final, checkpoints / "best", 1.1)),
        "aoa-words-2026",
        out=scored / "other",
    )
    with pytest.raises(UsageError, match="2 final models belong to"):
        compute_acquisition([scored])


@pytest.mark.long
@pytest.mark.usefixtures("own_words")
def test_one_command_scores_the_words_and_derives_the_number(checkpoints, tmp_path, capsys):
    out = tmp_path / "runs"
    assert (
        run(["score", "--model", str(checkpoints), "--suite", "aoa-2026", "--out", str(out)]) == 0
    )
    assert "aoa-2026" in capsys.readouterr().out
    assert [base_suite_name(cell) for cell in open_run_of(out, "chck_10M")] == [
        "aoa-words-2026",
        "aoa-2026",
    ]
    (words,) = open_run_of(out, "chck_1M")
    assert (
        base_suite_name(words) == "aoa-words-2026" and words.suite == "tasks/aoa-words-2026"
    )  # these are other words
    with pytest.raises(UsageError, match="3 or more checkpoints") as caught:
        score(str(checkpoints / "chck_1M"), "aoa-2026", out=tmp_path / "one")
    assert "--suite aoa-words-2026" in caught.value.hint and not (tmp_path / "one").exists()


@pytest.mark.long
def test_the_command_prints_the_score_and_writes_the_words(scored, tmp_path, capsys):
    out = tmp_path / "words.csv"
    assert run(["acquisition", str(scored), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "over 4 checkpoints, 1M to 10M words" in printed and "chck_10M" in printed
    # It is undefined over five words, so it has no interval.
    assert "aoa-2026  0.0  100 times Pearson's r\n" in printed
    with out.open(newline="") as file:
        assert [row["word"] for row in csv.DictReader(file)] == [
            "cat",
            "dog",
            "house",
            "boy",
            "girl",
        ]


@pytest.mark.long
def test_invalid_requests_are_refused(scored, own_words, tmp_path):
    run_dir = open_run_of(scored, "chck_10M").path
    with pytest.raises(UsageError, match="no model has 3 checkpoints"):
        compute_acquisition([run_dir])
    with pytest.raises(UsageError, match="not an age of acquisition"):
        compute_acquisition([scored], "blimp")
    score(
        str(tmp_path / "model" / "chck_2M"),
        "aoa-words-2026",
        out=open_run_of(scored, "chck_2M").path,
        limit=5,
        replace=True,  # else the full result would stay and be read
    )
    with pytest.raises(UsageError, match=r"scored with different .*--limit"):
        compute_acquisition([scored])
    (own_words / "cdi_human.csv").write_text(
        "word," + ",".join(map(str, range(16, 31))) + "\ncat" + ",2" * 15 + "\n"
    )
    score(str(tmp_path / "model"), "aoa-words-2026", out=tmp_path / "again")
    with pytest.raises(DataError, match=r"cdi_human.csv:2: a share of children must lie in 0..1"):
        compute_acquisition([tmp_path / "again"])
    (own_words / "cdi_childes.json").write_text('["cat"]')
    with pytest.raises(DataError, match="not an object of lists"):
        suites.load_suite("aoa-words-2026")


# --- from ages to the number ---


def test_an_insignificant_correlation_may_count_as_0():
    months, ages = [18.0, 20, 22, 24, 26], [6.0, 7.0, 6.2, 7.1, None]
    r, p = pearsonr(months[:4], ages[:4])
    assert p > 0.1
    summaries = {
        significance: summarize_acquisition(
            np.array(months), ages, significance=significance, suite="s", method="m"
        )
        for significance in (None, 0.1)
    }
    assert summaries[None].headline.value == pytest.approx(r) and summaries[0.1].headline.value == 0
    assert summaries[0.1].views["pearson"] == summaries[None].headline
    assert (summaries[0.1].headline.low, summaries[0.1].headline.n) == (
        summaries[None].headline.low,
        4,
    )
    assert (
        f"r = {r:.3f} counts as 0, since p > 0.1: p = {p:.2g}, 4 of 5 words"
        in summaries[0.1].notes[-1]
    )


def test_three_words_on_a_line_are_significant_and_exclude_0():
    r, p, (low, high) = curves.pearson_correlation(np.arange(3.0), 2 * np.arange(3.0))
    assert r == pytest.approx(1) and p < 0.05 and 0 < low <= r <= high


def test_too_few_ages_are_no_correlation():
    summary = summarize_acquisition(
        20.0 + np.arange(4), [6.0, None, None, 7.0], significance=0.1, suite="s", method="m"
    )
    assert (summary.headline.value, summary.headline.low, summary.headline.high) == (
        0,
        -1,
        1,
    ) and "undefined" in summary.notes[0]


def test_unbounded_fits_are_levenberg_marquardts_and_may_fail():
    """2025 on a clean curve: the same crossing as by hand; on three points there are fewer points
    than parameters.
    """
    surprisal = 18.2 - sigmoid(np.log10(STEPS + 1), 14, 4.0, 7.0)
    level = 0.5 * (18.2 + surprisal.min())
    expected = 7 - math.log(14 / (18.2 - level) - 1) / 4
    assert curves.model_age_of_acquisition(STEPS, surprisal, 18.2, bounded=False) == pytest.approx(
        expected, abs=1e-4
    )
    assert (
        curves.model_age_of_acquisition(STEPS[:3], np.array([9.0, 7, 5]), 9.0, bounded=False)
        is None
    )


@pytest.mark.parametrize(
    ("suite", "rule"), [("aoa-2026", "0 where p > 0.1"), ("aoa-2025", "18.19 nats")]
)
def test_a_suite_over_checkpoints_stands_for_its_words(suite, rule, capsys):
    assert run(["show", suite]) == 0
    assert rule in capsys.readouterr().out
    assert suites.list_suite_refs(suite) == ["aoa-words-2026"]
    assert [spec.name for spec, _ in specs([suite])] == ["aoa-words-2026"]
    with pytest.raises(UsageError, match="is an age of acquisition"):
        suites.load_suite(suite)


def test_the_chance_of_2025_is_in_bits_as_its_note_says():
    spec, _ = task_types.read_declaration("aoa-2025")
    assert spec.chance == math.log2(300_000)
