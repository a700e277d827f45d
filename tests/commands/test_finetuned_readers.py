"""Every command that reads run folders, on finetuned runs of a user's file, in every format."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prediction_rows import read_rows
from tiny_models import WORDS

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.commands.check import save_baseline
from antlm_bench.commands.finetune import finetune

Make = Callable[..., Path]
TASK = "my.texts"  # a dot in the file's name must not be read as SUITE.TASK
QUICK = ["epochs=1", "lr=1e-3", "batch=16", "max_length=32"]


def write_texts(path: Path, count: int, first: int = 0) -> Path:
    """Write `count` rows of text and label; a row is "yes" if its text holds the word "himself"."""
    lines = ["text,label"]
    for number in range(first, first + count):
        words = random.Random(number).choices(WORDS[:12], k=5)
        lines.append(
            " ".join([*words, "himself"]) + ",yes" if number % 2 else " ".join(words) + ",no"
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Make) -> Path:
    """Run folders one, three (so many seeds of a causal model), other (3 seeds of another), masked
    (1 seed). A folder out, with a saved baseline of three.
    """
    root = tmp_path_factory.mktemp("readers")
    train, valid = write_texts(root / f"{TASK}.csv", 64), write_texts(root / "valid.csv", 20, 1000)
    models = {
        "one": make_checkpoint(),
        "three": make_checkpoint(),
        "other": make_checkpoint(seed=7),
    }
    models["masked"] = make_checkpoint("masked")
    for name, model in models.items():
        seeds = [1, 2, 3] if name in ("three", "other") else [1]
        options = {"valid": str(valid), "changes": QUICK, "device": "cpu"}
        finetune(str(model), str(train), seeds=seeds, out=root / name, **options)
    save_baseline(root / "three", "saved", baselines_dir=root / "out" / "baselines")
    return root


def accuracies(folder: Path, name: str) -> list[float]:
    """The share of right answers of each seed, counted from the predictions."""
    result = runs.open_run(folder / name)
    per_seed = [read_rows(result.path, cell) for cell in result]
    return [sum(p.pred == p.gold for p in seed) / len(seed) for seed in per_seed]


def mean_accuracy(folder: Path, name: str) -> float:
    result = accuracies(folder, name)
    return sum(result) / len(result)


FORMS = ("", "--json", "--csv", "--markdown")
COMMANDS = [
    *(
        f"report {name} {form}"
        for name in ("one", "three")
        for form in (*FORMS, "--latex", "--model-index")
    ),
    *(f"report one three other masked {form}" for form in (*FORMS, "--latex")),
    *(f"report three --collection babylm-2025 --partial {form}" for form in FORMS),
    *(
        f"export three --format {form} --out out/{form}"
        for form in ("csv", "model-index", "every-eval-ever")
    ),
    *(f"compare three other {form}" for form in FORMS),
    *(f"compare one three --flips {form}" for form in FORMS),
    f"compare three other --suite {TASK}",
    "compare one masked --method finetune-causal=finetune-full",
    "check three --against other --margin 50 --junit out/j.xml --markdown out/m.md --github",
    "check one --against one --json",
    "baseline save three --name kept --to out/baselines",
    "check other --against out/baselines/saved --margin 90",
    "report one three other --html out/page.html",
]
# command -> (exit code, words of its message)
REFUSED = {
    "report three other --model-index": (2, "one model"),
    "report three --collection babylm-2025": (5, "--partial"),
    "export three --format lm-eval --out out/harness": (2, "nothing can be written"),
    "export three other --format model-index --out out/card": (2, "one model"),
    "compare three masked": (6, "--method"),
    "compare three other --flips --show-texts": (2, "finetuning task"),
    "curve three": (2, "words"),
    "curve three other --csv": (2, "words"),
    "check three --against masked": (5, "lacks"),
    "acquisition three other": (2, "checkpoints"),
    "show three": (2, "a folder is not a suite"),
    "submit three --year 2025 --track strict-small --out out/s.json": (2, "scored"),
    "preflight three --track strict-small": (5, "config.json"),
}


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_shows_a_finetuned_file(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code = run(command.split())
    printed = capsys.readouterr()
    assert code == 0 and printed.err == "", printed.err
    if (
        not command.startswith(("export", "baseline"))
        and "--html" not in command
        and "--collection" not in command
    ):
        assert TASK in printed.out


@pytest.mark.long
@pytest.mark.parametrize("command", REFUSED)
def test_a_reader_refuses_with_one_sentence(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    code, words = REFUSED[command]
    assert run(command.split()) == code
    assert words in capsys.readouterr().err
    assert not Path("out", command.rpartition("out/")[2]).exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["one", "three"])
def test_the_report_shows_the_mean_over_seeds(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(["report", name, "--csv"]) == 0
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["suite"], row["task"], row["metric"], row["n"]) == (TASK, "", "accuracy", "20")
    assert float(row["value"]) == pytest.approx(mean_accuracy(folder, name))
    assert int(row["seeds"]) == len(accuracies(folder, name))


def test_the_model_index_is_of_the_task(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(["report", "three", "--model-index"]) == 0
    front_matter = yaml.safe_load(capsys.readouterr().out.strip().strip("-"))
    [entry] = front_matter["model-index"][0]["results"]
    assert entry["task"]["type"] == "text-classification" and entry["dataset"]["type"] == TASK
    assert entry["metrics"][0]["type"] == "accuracy"
    assert entry["metrics"][0]["value"] == pytest.approx(mean_accuracy(folder, "three"), abs=5e-5)


def test_compare_names_the_task_and_both_means(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(["compare", "three", "other", "--json"]) == 0
    [[result]] = [
        pair["comparisons"] for pair in json.loads(capsys.readouterr().out)["comparisons"]
    ]
    assert result["suite"] == TASK and [group["name"] for group in result["groups"]] == [TASK]
    assert result["headline"]["a"] == pytest.approx(mean_accuracy(folder, "three"))
    assert result["headline"]["b"] == pytest.approx(mean_accuracy(folder, "other"))


@pytest.mark.long
def test_the_page_draws_the_seeds_of_the_task(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(["report", "three", "other", "--svg", "out/figures"]) == 0
    assert (folder / "out" / "figures" / f"seeds.{TASK}.svg").exists()
