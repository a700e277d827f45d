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
    """train(arguments): train in this process, or copy what the same command has written."""
    outputs: dict[tuple[str, ...], str] = {}
    root = tmp_path_factory.mktemp("trained")

    def train(arguments: Sequence[str]) -> str:
        key, out = tuple(arguments), arguments[arguments.index("--out") + 1]
        if key in outputs:
            shutil.copytree(root / out, out)
            return outputs[key]
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            assert run(["train", *arguments]) == 0
        shutil.copytree(out, root / out)
        return outputs.setdefault(key, printed.getvalue())

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
