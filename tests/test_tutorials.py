"""The tutorials: each command runs in an empty folder and prints what the page shows."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from documented_pages import ROOT, PageRunner, read_blocks

from antlm_bench.cli.app import run

TUTORIALS = ROOT / "docs" / "tutorials"
REAL_SUITES = "\n## 5. "
"""From this heading on, the page needs the data of BabyLM."""
Train = Callable[[Sequence[str]], str]


def read_page(name: str) -> str:
    return (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def train_once(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train(arguments): train in this process, or copy the checkpoints of the same command."""
    outputs: dict[tuple[str, ...], tuple[Path, str]] = {}

    def train(arguments: Sequence[str]) -> str:
        index = arguments.index("--out") + 1
        out, key = arguments[index], (*arguments[:index], *arguments[index + 1 :])
        if key not in outputs:
            folder = tmp_path_factory.mktemp("trained") / "model"
            printed = io.StringIO()
            with redirect_stdout(printed), redirect_stderr(printed):
                argv = [*arguments[:index], str(folder), *arguments[index + 1 :]]
                assert run(["train", *argv]) == 0
            outputs[key] = folder, printed.getvalue()
        folder, printed_text = outputs[key]
        shutil.copytree(folder, out)
        return printed_text.replace(str(folder), out)

    return train


@pytest.fixture
def runner(train_once: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PageRunner:
    """Runs pages in an empty folder, on a terminal of 100 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return PageRunner(tmp_path, train_once)


@pytest.mark.long
def test_the_participant_scores_nineteen_checkpoints(runner: PageRunner) -> None:
    runner.run(read_blocks(read_page("participant").partition(REAL_SUITES)[0]))


@pytest.mark.long
def test_the_gate_passes_and_fails_as_shown(runner: PageRunner) -> None:
    runner.run(read_blocks(read_page("ci-engineer")))


@pytest.mark.long
def test_the_linguist_measures_attraction(runner: PageRunner) -> None:
    pytest.importorskip("pandas")
    runner.run(read_blocks(read_page("linguist")))


@pytest.mark.slow
def test_the_participant_writes_a_file(
    runner: PageRunner, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(data_root))
    runner.run(read_blocks(read_page("participant")))
