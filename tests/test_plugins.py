"""A record of an installed package works on the command line without changes to this package."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prediction_rows import read_rows

from antlm_bench import runs
from antlm_bench.architectures import registration
from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.cli.app import run
from antlm_bench.metrics import METRICS
from antlm_bench.registry import Registry
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites.loader import load_suite
from antlm_bench.suites.task_types import TASK_TYPES

Install = Callable[[str, Registry[Any], str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(code, registry, entries): a package on the path whose entry points add to a registry.

    The registry forgets the package afterwards.
    """
    path = tmp_path / "site-packages"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))

    def write(code: str, registry: Registry[Any], entries: str) -> None:
        (path / "stranger.py").write_text(code)
        info = path / "stranger-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.group}]\n{entries}\n")
        for name in ("_targets", "_packages", "_records"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
        monkeypatch.setattr(registry, "_scanned", False)

    yield write
    sys.modules.pop("stranger", None)


def animals_scored_by(metric: str) -> str:
    """The documented suite with a metric of its own."""
    text = documented("# tasks/animals.toml")
    return text.replace("groups =", f'metric = "{metric}"\ngroups =', 1)


@pytest.mark.long
def test_a_metric_of_a_package(
    install: Install,
    suites_folder: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# brier.py"), METRICS, "brier = stranger:BRIER")
    (suites_folder / "animals.toml").write_text(animals_scored_by("brier"))
    rows = [
        {"good": f"the {a} sees the {b}.", "bad": f"the {a} see the {b}.", "animal": a}
        for a in ("cat", "dog")
        for b in ("bird", "boy", "girl", "tree")
    ]
    (suites_folder / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = [str(tmp_path / "run0"), str(tmp_path / "run1")]
    for seed, folder in enumerate(folders):
        model = make_checkpoint("causal", seed=seed)
        assert run(["score", "--model", str(model), "--suite", "animals", "--out", folder]) == 0
    shown = capsys.readouterr().out
    assert "brier, mean of 2 animals" in shown and "Brier score (less is better)" in shown

    means = []
    for folder in folders:
        (cell,) = runs.open_run(folder)
        scores = np.array([p.scores for p in read_rows(folder, cell)])
        wrong = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
        means.append(np.mean(wrong**2))
        assert cell.summary.metric == "brier"
        assert cell.summary.headline.value == pytest.approx(means[-1])

    assert run(["compare", *folders, "--json"]) == 0
    ((suite,),) = [c["comparisons"] for c in json.loads(capsys.readouterr().out)["comparisons"]]
    assert suite["headline"]["value"] == pytest.approx(means[1] - means[0])
    assert suite["headline"]["lower_is_better"]
    assert run(["compare", *folders]) == 0
    assert "lower is better" in capsys.readouterr().out
    assert run(["report", folders[0], "--csv"]) == 0
    assert f"{means[0]:.6f}"[:7] in capsys.readouterr().out
    assert run(["export", folders[0], "--format", "csv", "--out", str(tmp_path / "items.csv")]) == 0


def test_a_misspelt_metric_of_a_package_gets_a_suggestion(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# brier.py"), METRICS, "brier = stranger:BRIER")
    (tmp_path / "animals.toml").write_text(animals_scored_by("breir"))
    assert run(["show", str(tmp_path / "animals.toml")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "unknown metric 'breir'" in message and "did you mean 'brier'?" in message


# ---- suites, and kinds of suites: the examples of docs/extending.md

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"


def documented(first_line: str) -> str:
    """The code block of docs/extending.md that begins with this line."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(first_line))
    return block


@pytest.fixture
def suites_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder tasks/ of a folder of ANTLM_BENCH_PATH."""
    (tmp_path / "tasks").mkdir()
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    return tmp_path / "tasks"


def test_a_suite_is_a_toml_in_a_folder_of_ones_own(suites_folder: Path) -> None:
    (suites_folder / "animals.toml").write_text(documented("# tasks/animals.toml"))
    (suites_folder / "animals.jsonl").write_text(documented('{"good"'))
    suite = load_suite("animals")
    assert [[o.text for o in item.options] for item in suite.items] == [
        ["the cat sees the bird.", "the cat see the bird."],
        ["the dog sees the bird.", "the dog see the bird."],
    ]
    assert suite.macro == ("animal",)
    assert suite.origin == ()  # a suite of the catalog, under its name


@pytest.mark.long
def test_a_kind_of_suite_is_one_record_of_a_package(
    install: Install,
    suites_folder: Path,
    make_checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    model, out = str(make_checkpoint("causal")), str(tmp_path / "run")
    assert run(["list", "suites", "--csv"]) == 0
    assert "gaps,score,,accuracy,Words in gaps" in capsys.readouterr().out
    assert run(["show", "gaps"]) == 0
    assert "Words in gaps" in capsys.readouterr().out
    assert run(["score", "--model", model, "--suite", "gaps", "--out", out]) == 0
    (cell,) = runs.open_run(out)
    predictions = read_rows(out, cell)
    assert [p.id for p in predictions] == ["gaps_0", "gaps_1"]
    right = [p.scores[0] > p.scores[1] for p in predictions]
    assert cell.summary.headline.value == sum(right) / 2
    capsys.readouterr()
    assert run(["compare", out, out, "--json"]) == 0
    assert '"gaps"' in capsys.readouterr().out
    assert run(["report", out, "--csv"]) == 0
    assert "gaps" in capsys.readouterr().out


@pytest.mark.long
def test_a_wrong_key_of_such_a_suite_is_named(
    install: Install, suites_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(
        documented("# tasks/gaps.toml").replace("sentences", "sentence")
    )
    assert run(["show", "gaps"]) == 2
    assert "unknown key 'sentence'" in capsys.readouterr().err


def test_finetune_sends_such_a_suite_to_score(
    install: Install,
    suites_folder: Path,
    make_checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    assert run(["finetune", "--model", str(make_checkpoint("causal")), "--suite", "gaps"]) == 2
    assert "antlm-bench score --model CKPT --suite gaps" in " ".join(
        capsys.readouterr().err.split()
    )


# ---- scoring methods and architectures


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "agree.csv"
    lines = ["good,bad", "the cat sleeps,the cat never sleep", "a dog sees,a dog see"]
    path.write_text("\n".join([*lines, "every boy sees himself,every boy see"]))
    return path


@pytest.mark.long
def test_a_scoring_method_of_a_package(
    install: Install, make_checkpoint, pairs: Path, tmp_path: Path, capsys
) -> None:
    install(documented("# neighbour.py"), METHODS, "mlm-neighbour = stranger:NEIGHBOUR")
    assert run(["list", "methods", "--csv"]) == 0
    assert "mlm-neighbour,mlm with the token before it masked too,full" in capsys.readouterr().out
    assert run(["show", "mlm-neighbour"]) == 0

    folder, out = make_checkpoint("masked"), tmp_path / "run"
    command = ["score", "--model", str(folder), "--suite", str(pairs), "--out", str(out)]
    assert run([*command, "--method", "mlm-neighbour", "--device", "cpu"]) == 0
    [cell] = runs.open_run(out).cells
    assert cell.method == "mlm-neighbour"
    for prediction, line in zip(
        read_rows(out, cell), pairs.read_text().splitlines()[1:], strict=True
    ):
        expected = [two_hidden(folder, text) for text in line.split(",")]
        assert prediction.scores == pytest.approx(expected, abs=1e-4)
    assert run(["report", str(out)]) == 0


def two_hidden(folder: Path, text: str) -> float:
    """The sum over tokens of log P(token), itself and the one before it hidden, by transformers."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids, total = tokenizer(text)["input_ids"], 0.0
    for at in range(1, len(ids) - 1):
        row = torch.tensor([ids])
        row[0, max(at - 1, 1) : at + 1] = tokenizer.mask_token_id
        with torch.no_grad():
            total += model(input_ids=row).logits[0, at].log_softmax(-1)[ids[at]].item()
    return total


WIDE_RECIPE = """
title = "Wide"
sources = ["nobody"]
methods = ["causal"]
[model]
architecture = "wide-llama"
layers = 1
hidden = 16
heads = 2
ffn = 24
positions = 32
tied = true
norm_eps = 1e-6
[tokenizer]
vocabulary = 300
[corpus]
document = "line"
[[phase]]
steps = 3
causal = 1
[batch]
tokens = 64
length = 16
[optimizer]
name = "adamw"
lr = 1e-3
"""


@pytest.mark.long
def test_an_architecture_of_a_package(
    install: Install, pairs: Path, tmp_path: Path, capsys
) -> None:
    install(documented("# wide_record.py"), ARCHITECTURES, "wide-llama = stranger:WIDE_LLAMA")
    model_file = documented("# wide_llama.py")
    (tmp_path / "site-packages" / "wide_llama.py").write_text(model_file)
    registration.register_architectures.cache_clear()  # as in a new process
    registration.register_architectures()
    assert run(["list", "architectures", "--csv"]) == 0
    assert "wide-llama,wide_llama,Llama under another name" in capsys.readouterr().out

    recipe, text, out = tmp_path / "wide.toml", tmp_path / "text", tmp_path / "out"
    recipe.write_text(WIDE_RECIPE)
    text.mkdir()
    (text / "a.txt").write_text("the cat sees a dog\nno boy has ever seen the old house\n" * 30)
    assert run(["show", "models", str(recipe)]) == 0
    command = ["train", str(recipe), "--corpus", str(text), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    config = json.loads((out / "main" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "wide_llama.WideLlamaForCausalLM"
    assert (out / "main" / "wide_llama.py").read_text() == model_file

    command = ["score", "--model", str(out / "main"), "--suite", str(pairs), "--device", "cpu"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    [cell] = runs.open_run(tmp_path / "run").cells
    assert cell.settings["architecture"] == "WideLlamaForCausalLM"


def test_an_output_format_is_one_record_of_a_package(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# org_tables.py"), FORMATS, "org = stranger:ORG")
    assert run(["list", "methods", "--format", "org"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "| method | what it is | attention |"
    assert "| mntp | one token masked, read one position to its left | full |" in out
    assert run(["list", "--format", "orq"]) == 2
    assert "Did you mean 'org'?" in capsys.readouterr().err
