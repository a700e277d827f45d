"""A real `antlm-bench score`, killed and stopped at several moments, ends with the bytes of one
left in peace.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from score_helpers import ADJECTIVES, NOUNS, hash_files, write_pairs

from antlm_bench.cli import app

Make = Callable[..., Path]
METHODS = ("mlm", "mntp")  # so that one moment lies between two finished files
FILES = {"run.json", *(f"predictions/pairs.{method}.parquet" for method in METHODS)}
# Processes that are killed are forked from one that has imported torch and transformers.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    ["antlm_bench.commands.score", "transformers.models.bert.modeling_bert", "pyarrow.parquet"]
)


@pytest.fixture(scope="module")
def arguments(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that score 2,500 pairs, which are five chunks of a masked method."""
    sides = list(
        product(ADJECTIVES, NOUNS, ["near", "that"], ADJECTIVES, NOUNS, ["sleep", "see", "have"])
    )[:2500]
    sides += [(*side[:3], *side[3:5], "never sleep") for side in sides[: 2500 - len(sides)]]
    rows = [
        {"good": f"the {' '.join(side)}", "bad": f"the {' '.join(side)}s", "paradigm": side[2]}
        for side in sides
    ]
    pairs = write_pairs(tmp_path_factory.mktemp("killed") / "pairs.csv", rows)
    options = ["--device", "cpu", "--method", ",".join(METHODS)]
    return ["score", *options, "--model", str(make_checkpoint("masked")), "--suite", str(pairs)]


def score_here(arguments: list[str], out: Path) -> None:
    """Score in this process."""
    assert app.run([*arguments, "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    score_here(arguments, out)
    assert set(hash_files(out)) == FILES
    return out


def chunks(out: Path) -> list[Path]:
    """Chunks of the method that is stored last: those that are complete for both. Names alone, for
    while the process runs, files come and go.
    """
    return sorted(out.glob(f"partial/pairs.{METHODS[-1]}.*/*.parquet"))


def wait_for(moment: Callable[[], bool], is_running: Callable[[], bool]) -> None:
    """Wait until the moment has come to disturb a process."""
    while not moment():
        assert is_running(), "it finished before it could be disturbed"
        time.sleep(0.001)


def document(out: Path) -> dict[str, object]:
    """run.json without the one thing that differs: when it was begun."""
    read: dict[str, dict[str, object]] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert read["manifest"].pop("created")
    return dict(read)


def same(out: Path, whole: Path) -> bool:
    assert set(hash_files(out)) == FILES  # nothing is left behind
    assert document(out) == document(whole)
    return all(
        (out / name).read_bytes() == (whole / name).read_bytes()
        for name in FILES
        if "predictions" in name
    )


@pytest.mark.long
def test_a_run_killed_in_its_middle_and_at_its_end_ends_with_the_same_bytes(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    kept: dict[str, tuple[int, str]] = {}
    moments: list[Callable[[], bool]] = [
        # the first method's, not yet the second's
        lambda: bool(list(out.glob("partial/*/*.parquet"))),
        lambda: len(chunks(out)) >= 3,
        lambda: (out / "predictions").exists(),
    ]
    for moment in moments:
        process = forks.Process(target=app.run, args=([*arguments, "--out", str(out)],))
        process.start()
        try:
            wait_for(moment, process.is_alive)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL and moment()
        if not (out / "predictions").exists():
            now = {
                name: facts
                for name, facts in hash_files(out).items()
                if Path(out, name) in chunks(out)
            }
            assert kept.items() <= now.items()  # what was stored was not computed again
            assert not (out / "run.json").exists()
            kept = now
    score_here(arguments, out)
    assert same(out, whole)


@pytest.mark.long
def test_a_run_stopped_by_sigterm_says_so_and_resumes(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "antlm_bench", *arguments, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(lambda: len(chunks(out)) >= 2, lambda: process.poll() is None)
            process.terminate()
            message = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 75
    assert "SIGTERM" in message and "continues" in message and "Traceback" not in message
    assert (
        not (out / ".lock").exists()
        and not list(out.rglob("*.tmp"))
        and not (out / "run.json").exists()
        and not list(out.rglob("predictions/*.parquet"))
    )
    stored = chunks(out)
    assert 2 <= len(stored) < 5
    score_here(arguments, out)
    assert same(out, whole)
