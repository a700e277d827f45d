"""The examples of docs/extending.md work as they stand there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.suites.loader import load_suite
from antlm_bench.suites.task_types import TASK_TYPES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"


def example(first_line: str) -> str:
    """The code block of the page that begins with this line."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(first_line))
    return block


@pytest.fixture
def suites_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tasks").mkdir()
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    return tmp_path / "tasks"


@pytest.fixture
def cloze_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the page is installed; the registry forgets it afterwards."""
    path = tmp_path / "site-packages"
    info = path / "cloze-1.0.dist-info"
    info.mkdir(parents=True)
    (path / "cloze.py").write_text(example("# cloze.py"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cloze\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{TASK_TYPES.group}]\ncloze = cloze:CLOZE\n")
    assert 'cloze = "cloze:CLOZE"' in example("# pyproject.toml")
    monkeypatch.syspath_prepend(str(path))
    for name in ("_targets", "_packages", "_records"):
        monkeypatch.setattr(TASK_TYPES, name, dict(getattr(TASK_TYPES, name)))
    monkeypatch.setattr(TASK_TYPES, "_scanned", False)
    yield
    sys.modules.pop("cloze", None)


def test_a_suite_is_a_toml_in_a_folder_of_ones_own(suites_folder: Path) -> None:
    (suites_folder / "animals.toml").write_text(example("# tasks/animals.toml"))
    (suites_folder / "animals.jsonl").write_text(example('{"good"'))
    suite = load_suite("animals")
    assert [[o.text for o in item.options] for item in suite.items] == [
        ["the cat sees the bird.", "the cat see the bird."],
        ["the dog sees the bird.", "the dog see the bird."],
    ]
    assert suite.macro == ("animal",)
    assert suite.origin == ()  # a suite of the catalog, under its name


def test_a_kind_of_suite_is_one_record_of_a_package(
    suites_folder: Path,
    cloze_package: None,
    make_checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (suites_folder / "gaps.toml").write_text(example("# tasks/gaps.toml"))
    model, out = str(make_checkpoint("causal")), str(tmp_path / "run")
    assert run(["list", "suites", "--csv"]) == 0
    assert "gaps,score,,accuracy,Words in gaps" in capsys.readouterr().out
    assert run(["show", "gaps"]) == 0
    assert "Words in gaps" in capsys.readouterr().out
    assert run(["score", "--model", model, "--suite", "gaps", "--out", out]) == 0
    (cell,) = runs.open_run(out)
    predictions = runs.read_predictions(out, cell)
    assert [p.id for p in predictions] == ["gaps_0", "gaps_1"]
    right = [p.scores[0] > p.scores[1] for p in predictions]
    assert cell.summary.headline.value == sum(right) / 2
    capsys.readouterr()
    assert run(["compare", out, out, "--json"]) == 0
    (suite,) = json.loads(capsys.readouterr().out)["suites"]
    assert (suite["suite"], suite["headline"]["difference"]) == ("gaps", 0.0)
    assert run(["report", out, "--csv"]) == 0
    assert "gaps" in capsys.readouterr().out


def test_a_wrong_key_of_such_a_suite_is_named(
    suites_folder: Path, cloze_package: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (suites_folder / "gaps.toml").write_text(
        example("# tasks/gaps.toml").replace("sentences", "sentence")
    )
    assert run(["show", "gaps"]) == 2
    assert "unknown key 'sentence'" in capsys.readouterr().err


def test_finetune_sends_such_a_suite_to_score(
    suites_folder: Path,
    cloze_package: None,
    make_checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (suites_folder / "gaps.toml").write_text(example("# tasks/gaps.toml"))
    assert run(["finetune", "--model", str(make_checkpoint("causal")), "--suite", "gaps"]) == 2
    assert "antlm-bench score --model CKPT --suite gaps" in " ".join(
        capsys.readouterr().err.split()
    )
