"""The tutorials: each command runs in an empty folder and prints what the page shows."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from documented_pages import ROOT, PageRunner, read_blocks
from sweeps.ray_cluster import start_cluster as start_ray
from sweeps.slurm_sweeps import start_cluster as start_slurm

from antlm_bench.cli.app import run

TUTORIALS = ROOT / "docs" / "tutorials"
Train = Callable[[Sequence[str]], str]


def read_page(name: str) -> str:
    return (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")


def read_sections(name: str, *headings: str) -> str:
    """Return the sections of a page whose headings begin with these words."""
    sections = read_page(name).split("\n## ")[1:]
    return "".join(section for section in sections if section.startswith(headings))


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
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the workers that a sweep starts
    return PageRunner(tmp_path, train_once)


@pytest.mark.long
def test_the_participant_scores_nineteen_checkpoints(runner: PageRunner) -> None:
    """The other sections need the data of BabyLM."""
    runner.run(read_blocks(read_sections("participant", "1.", "2.", "3.", "4.", "What can")))


@pytest.mark.long
def test_the_gate_passes_and_fails_as_shown(runner: PageRunner) -> None:
    runner.run(read_blocks(read_page("ci-engineer")))


def test_the_workflow_of_the_gate_has_inputs_of_the_action() -> None:
    [workflow] = [
        yaml.safe_load(block.text)
        for block in read_blocks(read_page("ci-engineer"))
        if block.language == "yaml"
    ]
    inputs = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["inputs"]
    given = workflow["jobs"]["gate"]["steps"][-1]["with"]
    assert given.keys() <= inputs.keys()
    assert {name for name, record in inputs.items() if record.get("required")} <= given.keys()


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


def test_the_lab_plans_and_finds_a_typo(runner: PageRunner) -> None:
    runner.run(read_blocks(read_sections("lab", "1.", "2.", "What can")))


@pytest.mark.slow
def test_the_lab_runs_its_sweep_on_this_machine(runner: PageRunner) -> None:
    runner.run(read_blocks(read_page("lab")))


@pytest.mark.slow
def test_the_lab_adds_a_seed_on_slurm(
    runner: PageRunner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runner.shells = frozenset({"sh", "bash"})
    with start_slurm(tmp_path_factory.mktemp("slurm")):
        runner.run(read_blocks(read_sections("lab", "1.", "4.", "6.")))


@pytest.mark.slow
def test_the_lab_adds_a_seed_on_ray(runner: PageRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    runner.shells = frozenset({"sh", "bash"})
    with start_ray(2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        runner.run(read_blocks(read_sections("lab", "1.", "4.", "7.")))
