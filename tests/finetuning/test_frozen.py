"""`finetune --frozen` against scikit-learn on features that plain transformers computes here."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import leaderboard_runs
import numpy as np
import pytest
import torch
import transformers
from finetuning_helpers import make_backbone, make_task
from prediction_rows import read_rows, to_rows
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_models import WORDS, build_model

from antlm_bench.checkpoints import Backbone
from antlm_bench.cli.app import run
from antlm_bench.commands import report
from antlm_bench.commands.finetune import finetune
from antlm_bench.commands.submit import submit
from antlm_bench.errors import (
    CheckpointError,
    DataError,
    IncompleteError,
    MethodNotSupported,
    UsageError,
)
from antlm_bench.finetuning import frozen, loop
from antlm_bench.finetuning.frozen import ABSENT_CLASS_LOGPROB, C_GRID, fit_frozen
from antlm_bench.finetuning.loop import FinetuneSettings, split_examples
from antlm_bench.results.seeds import summarize_finetuned_tasks
from antlm_bench.suites import classification_loader

Make = Callable[..., Path]
CPU = FinetuneSettings(device="cpu")
CLASSES = ("cat", "dog", "nothing")


def toy_backbone() -> Backbone:
    return make_backbone(build_model("causal", 0), "causal")


@pytest.mark.long
def test_rows_without_a_label_and_cut_training_texts_are_flagged(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    train = write_texts(tmp_path / "train.csv", 30)
    valid = write_texts(tmp_path / "valid.csv", 12, start=100)
    with train.open("a", encoding="utf-8") as file:
        file.write("a cat sees,\n" * 3 + f"{'cat ' * 500},cat\n")
    result = finetune(
        [str(make_checkpoint("causal"))],
        [str(train)],
        valid=str(valid),
        frozen=True,
        device="cpu",
        out=tmp_path / "run",
    )[0]
    [summary] = summarize_finetuned_tasks(result)
    assert "1 training text cut" in summary.flags
    assert "incomplete: 3 of 34 train rows have no label and are left out" in summary.flags


def write_texts(path: Path, count: int, start: int = 0) -> Path:
    """Texts of three classes: the first animal in it, with some noise."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(start, start + count):
            rng = random.Random(number)
            words, label = rng.choices(WORDS[6:20], k=rng.randint(2, 8)), rng.choice(CLASSES)
            if label != "nothing":
                words[rng.randrange(len(words))] = label
            writer.writerow([" ".join(words), label if rng.random() < 0.9 else rng.choice(CLASSES)])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("texts")
    return write_texts(folder / "train.csv", 150), write_texts(folder / "valid.csv", 50, 1000)


@pytest.fixture
def run_frozen(make_checkpoint: Make, files: tuple[Path, Path], tmp_path: Path) -> Any:
    def run(model: Path | None = None, **options: Any) -> Any:
        settings = {"out": tmp_path / "run", "valid": str(files[1]), "device": "cpu"}
        [result] = finetune(
            str(model or make_checkpoint()),
            str(files[0]),
            **(settings | {"frozen": True} | options),
        )
        return result

    return run


def plain_features(checkpoint: Path, texts: list[str], pooling: str) -> np.ndarray:
    """Features (n, d) of texts, one by one: the last hidden state of the last or first token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    features = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state[0]
        pooled = {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[pooling]
        features.append(pooled.double().numpy())
    return np.stack(features)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "pooling", "expected_pooling"),
    [("causal", "auto", "last"), ("masked", "auto", "first"), ("causal", "mean", "mean")],
)
def test_predictions_equal_plain_scikit_learn(
    kind: str,
    pooling: str,
    expected_pooling: str,
    make_checkpoint: Make,
    files: tuple[Path, Path],
    run_frozen: Any,
) -> None:
    checkpoint = make_checkpoint(kind)
    result = run_frozen(checkpoint, seeds=[4], pooling=pooling)
    [cell] = result
    loaded = classification_loader.load_task(str(files[0]), "train", valid=str(files[1]))
    train, held_out = split_examples(loaded.train, 0.1, seed=4)
    x_train, x_held_out, x_valid = (
        plain_features(checkpoint, [example.first for example in split], expected_pooling)
        for split in (train, held_out, loaded.valid)
    )
    y_train, y_held_out = ([example.gold for example in split] for split in (train, held_out))
    ranks = {}
    for c in C_GRID:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        probabilities = pipeline.fit(x_train, y_train).predict_proba(x_held_out)
        accuracy = accuracy_score(y_held_out, probabilities.argmax(1))
        ranks[c] = (accuracy, -log_loss(y_held_out, probabilities, labels=[0, 1, 2]))
    best_c = max(C_GRID, key=ranks.__getitem__)
    best = make_pipeline(StandardScaler(), LogisticRegression(C=best_c, max_iter=1000))
    expected = best.fit(x_train, y_train).predict_proba(x_valid)

    predictions = read_rows(result.path, cell)
    assert cell.history["C"] == best_c and cell.history["pooling"] == expected_pooling
    np.testing.assert_allclose(np.exp([p.scores for p in predictions]), expected, atol=2e-3)
    assert [p.gold for p in predictions] == [example.gold for example in loaded.valid]
    accuracy = accuracy_score([e.gold for e in loaded.valid], expected.argmax(1))
    assert cell.summary.headline.value == pytest.approx(accuracy)


def test_c_is_the_best_on_the_held_out_split() -> None:
    history = fit_frozen(toy_backbone(), make_task(), 1, "causal", CPU).history
    ranks = {c["C"]: (c["selection"], -c["selection_loss"]) for c in history["candidates"]}
    assert tuple(ranks) == C_GRID
    assert history["C"] == max(ranks, key=ranks.__getitem__)
    assert len(set(ranks.values())) > 1


def test_a_word_can_be_read_from_frozen_features() -> None:
    result = fit_frozen(
        toy_backbone(), make_task(), 1, "causal", FinetuneSettings("cpu", pooling="mean")
    )
    correct = [p.pred == p.gold for p in to_rows(result.predictions)]
    assert np.mean(correct) > 0.9


def test_the_fit_is_deterministic_and_leaves_the_backbone() -> None:
    backbone = toy_backbone()
    weights = {name: p.clone() for name, p in backbone.model.named_parameters()}
    first, second = (fit_frozen(backbone, make_task(60, 20), 1, "causal", CPU) for _ in range(2))
    assert to_rows(first.predictions) == to_rows(second.predictions)
    assert first.history == second.history
    assert all(torch.equal(p, weights[name]) for name, p in backbone.model.named_parameters())


@pytest.mark.long
def test_batching_changes_rounding_only() -> None:
    results = [
        fit_frozen(toy_backbone(), make_task(60, 20), 1, "causal", settings)
        for settings in (CPU, FinetuneSettings("cpu", batch_tokens=8))
    ]
    scores = [np.array([p.scores for p in to_rows(result.predictions)]) for result in results]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_an_absent_class_gets_a_finite_score() -> None:
    toy = make_task(60, 20)
    toy.classes = ("no", "perhaps", "yes")
    toy.train = tuple(replace(example, gold=2 * example.gold) for example in toy.train)
    predictions = fit_frozen(toy_backbone(), toy, 1, "causal", CPU).predictions
    scores = np.array([p.scores for p in to_rows(predictions)])
    assert (scores[:, 1] == ABSENT_CLASS_LOGPROB).all() and np.isfinite(scores).all()
    assert np.exp(scores).sum(1) == pytest.approx(np.ones(20))


def test_a_training_split_of_one_class_is_refused() -> None:
    toy = make_task(60, 20)
    toy.train = tuple(replace(example, gold=1) for example in toy.train)
    with pytest.raises(DataError, match="every label of the training split is 'yes'"):
        fit_frozen(toy_backbone(), toy, 1, "causal", CPU)


def test_features_that_are_not_finite_are_an_error() -> None:
    backbone = toy_backbone()
    backbone.model.norm.weight.data[0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        fit_frozen(backbone, make_task(60, 20), 1, "causal", CPU)


def test_an_unavailable_attention_is_refused() -> None:
    with pytest.raises(MethodNotSupported, match="cannot run with full attention"):
        fit_frozen(toy_backbone(), make_task(60, 20), 1, "full", CPU)


def test_both_attentions_of_a_hybrid_give_their_own_features() -> None:
    model = build_model("causal", 0)
    backbone = make_backbone(model, "causal", both=True)
    causal, full = (
        fit_frozen(backbone, make_task(60, 20), 1, attention, CPU)
        for attention in ("causal", "full")
    )
    assert causal.history["attention"] == "causal" and full.history["attention"] == "full"
    assert [p.scores for p in to_rows(causal.predictions)] != [
        p.scores for p in to_rows(full.predictions)
    ]


# ---- the command


@pytest.mark.long
def test_any_number_of_seeds_makes_one_cell(run_frozen: Any) -> None:
    result = run_frozen(seeds=[1, 2, 3])
    assert [(c.suite, c.method, c.seed) for c in result] == [("train", "frozen-causal", 1)]
    [cell] = result
    assert cell.settings["training"] == {"max_length": cell.settings["training"]["max_length"]}
    assert any("frozen backbone" in note for note in cell.summary.notes)


@pytest.mark.long
def test_the_same_command_again_fits_nothing(
    run_frozen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_frozen()
    monkeypatch.setattr(frozen, "fit_frozen", None)
    assert run_frozen() == before


@pytest.mark.long
def test_another_setting_has_another_key(run_frozen: Any) -> None:
    keys = set()
    for options in ({}, {"pooling": "mean"}, {"seeds": [2]}, {"changes": ["max_length=9"]}):
        keys |= {cell.key for cell in run_frozen(**options)}
    assert len(keys) == 4


@pytest.mark.long
def test_finetuned_and_frozen_cells_are_not_averaged(run_frozen: Any) -> None:
    quick = ["epochs=1", "batch=64"]
    finetuned = run_frozen(frozen=False, seeds=[1, 2], changes=quick)
    both = run_frozen()
    assert list(both)[:2] == list(finetuned)
    rows = {row.attention: row for row in summarize_finetuned_tasks(both)}
    assert rows["causal"] == next(summarize_finetuned_tasks(finetuned))
    assert rows["frozen-causal"].num_seeds == 1 and rows["frozen-causal"].sd is None


@pytest.mark.long
def test_a_report_has_a_separate_column_for_frozen(run_frozen: Any) -> None:
    run_frozen(frozen=False, seeds=[1, 2], changes=["epochs=1", "batch=64"])
    result = run_frozen()
    by_method = {column.method: column for column in report.build_report([result.path]).columns}
    assert set(by_method) == {"finetune-causal", "frozen-causal"}
    [score] = [entry.score for entry in by_method["frozen-causal"].results]
    [cell] = [cell for cell in result if cell.is_frozen]
    assert score.value == pytest.approx(cell.summary.headline.value) and score.seeds == 1
    assert any("not finetuned" in caveat for caveat in score.caveats)


@pytest.mark.long
def test_a_collection_never_takes_frozen_for_finetuned(run_frozen: Any) -> None:
    result = run_frozen()
    [column] = report.build_report([result.path], collection="babylm-2025", partial=True).columns
    assert column.method == "finetune-causal"
    assert all(entry.score is None for entry in column.results)
    assert "also a classifier on the frozen backbone (frozen-causal), not shown" in column.caveats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 4}, "--lora: 4 cannot be combined with --frozen"),
        ({"preset": "babylm-2025"}, "--preset: babylm-2025 cannot be combined with --frozen"),
        ({"changes": ["lr=1e-3"]}, "lr has no effect on a frozen backbone"),
        ({"changes": ["learning_rate=1e-3"]}, "learning_rate"),
    ],
)
def test_options_without_an_effect_are_refused(
    options: dict[str, Any], message: str, run_frozen: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run_frozen(**options)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_leaderboard_file_takes_no_frozen_labels(tmp_path: Path) -> None:
    cells = [
        (
            leaderboard_runs.make_finetuned_cell("rte", seed, "frozen-causal"),
            leaderboard_runs.make_class_predictions("rte", 3),
        )
        for seed in (1, 42)
    ]
    run_dir = leaderboard_runs.write_run(tmp_path / "run", "m", cells)
    with pytest.raises(IncompleteError, match=r"has no glue-2025\.rte"):
        submit(
            [run_dir],
            year="2025",
            track="strict-small",
            method="causal",
            out=tmp_path / "file.json",
        )


@pytest.mark.long
def test_the_command_line_prints_a_row_named_frozen(
    make_checkpoint: Make,
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["finetune", "--model", str(make_checkpoint()), "--suite", str(files[0])]
    command += ["--valid", str(files[1]), "--frozen", "--device", "cpu", "--json"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    [row] = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert (row["task"], row["attention"], row["n"]) == ("train", "frozen-causal", 50)


@pytest.mark.long
def test_frozen_trains_nothing(run_frozen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "finetune", None)
    assert len(list(run_frozen())) == 1
