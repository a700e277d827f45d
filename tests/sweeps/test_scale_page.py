"""The commands of docs/how-to/scale.md do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from documented_pages import read_code

from antlm_bench.sweeps.declaration import read_sweep_file
from antlm_bench.sweeps.expansion import expand_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
RUN_SECTION = PAGE.partition("\n## Run it\n")[2].partition("\n## ")[0]


def read_block(language: str) -> str:
    """Return the first code block of the page in a language."""
    return read_code(PAGE, language)[0]


def read_counts(table: str) -> list[list[str]]:
    """Return the rows of the table of `run`: stage, units, done, ..."""
    return re.findall(r"^ +(\w+) +(\d+) +(\d+)$", table, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the page's sweep.toml, in which its commands run."""
    (tmp_path / "sweep.toml").write_text(read_block("toml"), encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run_line(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = line.split()
    program = [sys.executable, *(["-m", "antlm_bench"] if words[0] == "antlm-bench" else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(
        [*program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_walk_through_on_local_workers(folder: Path) -> None:
    outputs = []
    for line in read_block("sh").splitlines():
        done = run_line(line, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        outputs.append(done.stdout)
    documented = read_counts(RUN_SECTION)
    assert documented
    assert read_counts(outputs[1]) == documented == read_counts(outputs[2])
    assert "nano" in outputs[3]
    page = (folder / "small" / "report.html").read_text(encoding="utf-8")
    assert "Learning curves" in page
    assert run_line("antlm-bench resume sweep.toml", folder).returncode == 0


def count_units(path: Path) -> Counter[str]:
    """Return stage -> units of a sweep's file."""
    sweep = expand_sweep(read_sweep_file(path), str(path)).sweep
    return Counter(unit.stage for unit in sweep.units)


def test_the_documented_sweep_has_the_documented_units(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run_line("python examples/sweep-demo/write_sentences.py data", folder)
    counts = count_units(Path("sweep.toml"))
    documented = {stage: int(units) for stage, units, _ in read_counts(RUN_SECTION)}
    assert documented == {**counts, "total": counts.total()}


def test_the_demo_scores_every_milestone_of_nine_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run_line("python examples/sweep-demo/write_sentences.py .sweep-demo", folder)
    counts = count_units(Path("examples/sweep-demo/sweep.toml"))
    assert (counts["pretrain"], counts["finetune"], counts["report"]) == (9, 9, 1)
    # babyllama sees 0.5M words and reaches four of the milestones, the others see more: all five.
    assert counts["score"] == counts["collect"] == 3 * (4 + 5 + 5) + 9
