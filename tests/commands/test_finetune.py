"""finetune: which cells there are, which are computed again, what fails."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prediction_rows import assert_columns_declared, read_rows
from tiny_models import WORDS, train_tokenizer

from antlm_bench import runs
from antlm_bench.architectures.gpt_bert import GptBertConfig, GptBertForMaskedLM
from antlm_bench.checkpoints import TRAINING_KEY
from antlm_bench.cli.app import run
from antlm_bench.commands.finetune import finetune
from antlm_bench.errors import DataError, IncompleteError, MethodNotSupported, RunError, UsageError
from antlm_bench.finetuning import loop
from antlm_bench.results.seeds import summarize_finetuned_tasks

Make = Callable[..., Path]
QUICK = ["epochs=2", "lr=1e-3", "batch=16", "max_length=32"]


def table(path: Path, count: int, start: int = 0) -> Path:
    """Texts that are "reflexive" where they hold a certain word, else "plain"."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(start, start + count):
            rng = random.Random(number)
            words = rng.choices(WORDS[:12], k=rng.randint(3, 8))
            if number % 2:
                words[rng.randrange(len(words))] = "himself"
            writer.writerow([" ".join(words), "reflexive" if number % 2 else "plain"])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("texts")
    return table(folder / "train.csv", 120), table(folder / "valid.csv", 40, 1000)


@pytest.fixture
def run_finetune(
    make_checkpoint: Make, files: tuple[Path, Path], tmp_path: Path
) -> Callable[..., Any]:
    def run_once(model: Path | None = None, **settings: Any) -> Any:
        given = {
            "seeds": [1, 2],
            "out": tmp_path / "run",
            "valid": str(files[1]),
            "changes": QUICK,
            "device": "cpu",
        }
        [result] = finetune(str(model or make_checkpoint()), str(files[0]), **(given | settings))
        return result

    return run_once


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """(task, seed, attention) of everything that is really trained from now on."""
    original, done = loop.finetune, []

    def counted(body: Any, task: Any, seed: int, attention: Any, *rest: Any) -> Any:
        done.append((task.full_name, seed, attention))
        return original(body, task, seed, attention, *rest)

    monkeypatch.setattr(loop, "finetune", counted)
    return done


@pytest.mark.long
def test_a_cell_per_seed_holds_predictions_settings_and_history(
    run_finetune: Callable[..., Any],
) -> None:
    result = run_finetune()
    assert [(cell.suite, cell.method, cell.seed) for cell in result] == [
        ("train", "finetune-causal", 1),
        ("train", "finetune-causal", 2),
    ]
    for cell in result:
        assert_columns_declared("classification", runs.read_predictions(result.path, cell))
        predictions = read_rows(result.path, cell)
        right = sum(p.pred == p.gold for p in predictions) / len(predictions)
        assert len(predictions) == 40 and right == pytest.approx(cell.summary.headline.value)
        assert np.exp([p.scores for p in predictions]).sum(axis=1) == pytest.approx(np.ones(40))
        assert cell.settings["training"]["epochs"] == 2 and cell.settings["classes"] == [
            "plain",
            "reflexive",
        ]
        assert len(cell.history["epochs"]) == 2 and cell.history["pooling"] == "last"
    first, second = (read_rows(result.path, cell) for cell in result)
    assert [p.scores for p in first] != [p.scores for p in second]


@pytest.mark.long
def test_the_same_command_again_trains_nothing(
    run_finetune: Callable[..., Any], trained: list[Any]
) -> None:
    before = run_finetune()
    trained.clear()
    assert run_finetune() == before and not trained


@pytest.mark.long
def test_more_seeds_train_only_the_new_ones_and_again_trains_all(
    run_finetune: Callable[..., Any], trained: list[Any]
) -> None:
    run_finetune()
    trained.clear()
    run_finetune(seeds=[1, 2, 3])
    assert [seed for _, seed, _ in trained] == [3]
    run_finetune(again=True)
    assert [seed for _, seed, _ in trained] == [3, 1, 2]


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "anew"),
    [({"changes": [*QUICK, "lr=2e-3"]}, True), ({"pooling": "mean"}, True),
     ({"limit_train": {"": 100}}, True),
     ({"dtype": "bfloat16"}, True), ({"batch_tokens": 64}, False)],
)  # fmt: skip
def test_settings_that_move_a_score_are_in_the_key(
    run_finetune: Callable[..., Any], trained: list[Any], changed: dict[str, Any], anew: bool
) -> None:
    run_finetune(seeds=[1])
    trained.clear()
    run_finetune(seeds=[1], **changed)
    assert bool(trained) == anew


@pytest.mark.long
def test_stopped_between_two_seeds_it_continues(
    run_finetune: Callable[..., Any], trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.finetune

    def stopping(body: Any, task: Any, seed: int, *rest: Any) -> Any:
        if seed == 2:
            raise KeyboardInterrupt
        return original(body, task, seed, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finetune", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_finetune()
    trained.clear()
    assert [cell.seed for cell in run_finetune()] == [1, 2]
    assert [seed for _, seed, _ in trained] == [2]


@pytest.mark.long
def test_a_failed_cell_is_reported_after_the_others(
    run_finetune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.finetune

    def failing(body: Any, task: Any, seed: int, *rest: Any) -> Any:
        if seed == 1:
            raise DataError("planted")
        return original(body, task, seed, *rest)

    monkeypatch.setattr(loop, "finetune", failing)
    with pytest.raises(IncompleteError, match="seed 1: planted") as caught:
        run_finetune()
    [finished] = caught.value.runs
    assert [cell.seed for cell in finished] == [2]


def test_a_task_without_data_fails_alone(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_OFFLINE", "1")
    monkeypatch.delenv("ANTLM_BENCH_DATA", raising=False)
    with pytest.raises(IncompleteError, match=r"rte\.train\.jsonl"):
        finetune(
            str(make_checkpoint()), "glue-2025", tasks=["rte"], out=tmp_path / "run", device="cpu"
        )


@pytest.fixture
def hybrid(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = GptBertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48,
        position_bucket_size=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    setattr(config, TRAINING_KEY, {"attends": ["causal", "full"], "methods": ["mntp", "causal"]})
    GptBertForMaskedLM(config).save_pretrained(tmp_path / "hybrid")
    train_tokenizer("causal", adds=True).save_pretrained(tmp_path / "hybrid")
    return tmp_path / "hybrid"


@pytest.mark.long
def test_a_hybrid_is_finetuned_with_one_attention_or_both(
    run_finetune: Callable[..., Any], trained: list[Any], hybrid: Path
) -> None:
    run_finetune(hybrid, seeds=[1])
    assert [attention for *_, attention in trained] == ["full"]
    result = run_finetune(hybrid, seeds=[1], attentions="all")
    assert [attention for *_, attention in trained] == ["full", "causal"]
    assert {cell.method: cell.history["pooling"] for cell in result} == {
        "finetune-full": "first",
        "finetune-causal": "last",
    }


@pytest.mark.long
def test_the_table_shows_seeds_majority_and_collapses(run_finetune: Callable[..., Any]) -> None:
    """A learning rate of nothing: the head says what it said at random, which is no better than the
    majority.
    """
    [fine] = summarize_finetuned_tasks(run_finetune())
    assert (fine.num_seeds, fine.mean.n, fine.majority) == (2, 40, 0.5)
    assert [flag.partition(",")[0] for flag in fine.flags] == [
        "2 seeds estimate their variation badly"
    ]
    [row] = summarize_finetuned_tasks(run_finetune(changes=[*QUICK, "lr=1e-12"]))
    assert "seeds collapsed" in row.flags[0]


@pytest.mark.long
def test_a_learnable_task_is_learned(run_finetune: Callable[..., Any]) -> None:
    result = run_finetune(seeds=[1], changes=[*QUICK, "epochs=12"])
    assert next(iter(result)).summary.headline.value == 1.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"tasks": ["rte"]}, UsageError, "no task 'rte'"),
        ({"preset": "babylm-2025"}, UsageError, "no preset"),
        ({"attentions": ["sideways"]}, UsageError, "sideways"),
        ({"limit_train": {"rte": 5}}, UsageError, "no task 'rte'"),
        ({"seeds": []}, UsageError, "no seed"),
        ({"changes": ["lr=fast"]}, UsageError, "lr"),
        ({"changes": ["learning_rate=1"]}, UsageError, "learning_rate"),
        ({"pooling": "max"}, UsageError, "max"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    run_finetune: Callable[..., Any],
    tmp_path: Path,
    given: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        run_finetune(**given)
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_unavailable_attention_is_refused(
    run_finetune: Callable[..., Any], make_checkpoint: Make
) -> None:
    with pytest.raises(MethodNotSupported, match="cannot run with full attention"):
        run_finetune(make_checkpoint(mask=False), attentions=["full"])


@pytest.mark.long
def test_another_checkpoints_folder_is_refused(
    run_finetune: Callable[..., Any], make_checkpoint: Make
) -> None:
    run_finetune(seeds=[1])
    with pytest.raises(RunError, match="another checkpoint"):
        run_finetune(make_checkpoint(seed=5), seeds=[1])


@pytest.fixture
def argv(make_checkpoint: Make, files: tuple[Path, Path], tmp_path: Path) -> Iterator[list[str]]:
    line = [
        "finetune",
        "--model",
        str(make_checkpoint()),
        "--suite",
        str(files[0]),
        "--valid",
        str(files[1]),
    ]
    yield [
        *line,
        "--seed",
        "7",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "run"),
        "--set",
        "epochs=1",
        "--json",
    ]


@pytest.mark.long
def test_the_command_prints_a_row_per_task(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 0
    [row] = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert (row["task"], row["attention"], row["seeds"], row["sd"]) == ("train", "causal", 1, None)


@pytest.mark.long
def test_a_limit_applies_to_every_task_or_to_one(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*argv, "--limit-train", "60,train=50", "--limit-valid", "30"]) == 0
    [row] = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert row["n"] == 30
    [cell] = runs.open_run(argv[argv.index("--out") + 1])
    assert cell.history["train"] + cell.history["selection"] == 50
    assert any("50 of 120 train rows" in note for note in cell.summary.notes)
    assert (
        run([*argv, "--limit-train", "train=many"]) == 2
        and "--limit-train" in capsys.readouterr().err
    )


def test_a_missing_file_is_an_incomplete_run_that_names_it(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv[argv.index("--valid") + 1] = "nowhere.csv"
    assert run(argv) == IncompleteError.exit_code
    assert "nowhere.csv" in capsys.readouterr().err


@pytest.mark.long
def test_scored_texts_in_the_training_set_are_flagged(
    run_finetune: Callable[..., Any], files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with files[0].open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))[1:]
    message = f"{len(lines)} of {len(lines)} scored texts also stand in the train set"
    result = run_finetune(valid=str(files[0]), seeds=[1], changes=[*QUICK, "epochs=1"])
    assert message in next(summarize_finetuned_tasks(result)).flags
    for form in ([], ["--csv"], ["--markdown"]):
        assert run(["report", result.path, *form]) == 0
        assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.long
def test_scored_texts_of_their_own_are_not_flagged(
    run_finetune: Callable[..., Any], files: tuple[Path, Path]
) -> None:
    texts = []
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            texts.append({row["text"] for row in csv.DictReader(file)})
    shared = len(texts[0] & texts[1])
    [summary] = summarize_finetuned_tasks(run_finetune(seeds=[1], changes=[*QUICK, "epochs=1"]))
    flags = "; ".join(summary.flags)
    assert ("also stand in the train set" in flags) == bool(shared)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "babyllama", "--compat", "babylm-2025"], "two presets are given"),
        (["--compat", "babylm-2025", "--preset", "babyllama"], "two presets are given"),
        (["--compat", "babylm-2025"], "--compat: train.csv has no preset 'babylm-2025'"),
        (["--preset", "babylm-2025"], "--preset: train.csv has no preset 'babylm-2025'"),
        (
            ["--preset", "babylm-2025", "--compat", "babylm-2025"],
            "--preset: train.csv has no preset",
        ),
    ],
)
def test_presets_are_refused_by_the_option_that_was_typed(
    options: list[str], words: str, files: tuple[Path, Path], make_checkpoint: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(files[0].parent)
    command = [
        "finetune",
        "--model",
        str(make_checkpoint()),
        "--suite",
        "train.csv",
        "--valid",
        "valid.csv",
        *options,
    ]
    assert run([*command, "--out", str(tmp_path / "run")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert words in message and ("--set" in message or "give one" in message)
    assert not (tmp_path / "run").exists()
