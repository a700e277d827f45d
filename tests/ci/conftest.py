"""Fixtures of the tests of CI systems: runs, and machines on which jobs run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gate_jobs import make_job, write_commands
from pair_runs import (
    PHENOMENON_BY_PARADIGM,
    draw_logprob_gaps,
    make_cell,
    make_predictions,
    write_gate_runs,
    write_run,
    write_toy_run,
)
from workflow_runner import Job


@pytest.fixture(scope="session")
def gate_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs that `write_gate_runs` writes, "two-suites" and "other-rules"."""
    folder = write_gate_runs(tmp_path_factory.mktemp("gate"), suite="blimp")
    predictions = make_predictions(draw_logprob_gaps(300, 0.85, seed=3), PHENOMENON_BY_PARADIGM)
    cells = [make_cell(predictions, suite=suite) for suite in ("blimp", "supplement")]
    write_run(folder / "two-suites", *cells)
    write_toy_run(folder / "other-rules", draw_logprob_gaps(300), suite="blimp", bos="never")
    return folder


@pytest.fixture
def job(gate_runs: Path, tmp_path: Path) -> Job:
    """A machine with copies of the runs in its workspace, and a pip that only logs."""
    job = make_job(tmp_path, write_commands(tmp_path / "commands"))
    shutil.copytree(gate_runs, job.workspace, dirs_exist_ok=True)
    return job
