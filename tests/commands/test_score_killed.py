"""A real `antlm-bench score`, killed and stopped at several moments, ends with the bytes of one
left in peace.
"""

from __future__ import annotations

import json
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

Make = Callable[..., Path]
Start = Callable[[Path], subprocess.Popen[str]]
METHODS = ("mlm", "mntp")  # so that one moment lies between two finished files
FILES = {"run.json", *(f"predictions/pairs.{method}.parquet" for method in METHODS)}


@pytest.fixture(scope="module")
def start(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """start(out) -> a process that scores 2,500 pairs, which are five chunks of a masked method."""
    sides = list(
        product(ADJECTIVES, NOUNS, ["near", "that"], ADJECTIVES, NOUNS, ["sleep", "see", "have"])
    )[:2500]
    sides += [(*side[:3], *side[3:5], "never sleep") for side in sides[: 2500 - len(sides)]]
    rows = [
        {"good": f"the {' '.join(side)}", "bad": f"the {' '.join(side)}s", "paradigm": side[2]}
        for side in sides
    ]
    pairs = write_pairs(tmp_path_factory.mktemp("killed") / "pairs.csv", rows)
    command = [
        sys.executable,
        "-m",
        "antlm_bench",
        "score",
        "--device",
        "cpu",
        "--method",
        ",".join(METHODS),
    ]
    command += ["--model", str(make_checkpoint("masked")), "--suite", str(pairs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def started(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--out", str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    finish(start(out))
    assert set(hash_files(out)) == FILES
    return out


def chunks(out: Path) -> list[Path]:
    """Chunks of the method that is stored last: those that are complete for both. Names alone, for
    while the process runs, files come and go.
    """
    return sorted(out.glob(f"partial/pairs.{METHODS[-1]}.*/*.parquet"))


def stop(process: subprocess.Popen[str], signum: int, moment: Callable[[], bool]) -> str:
    """Send the signal when the moment has come; what the process had to say."""
    try:
        while not moment():
            assert process.poll() is None, "it finished before it could be disturbed"
            time.sleep(0.001)
        process.send_signal(signum)
        return process.communicate(timeout=60)[1]
    finally:
        # nothing to one that is gone; whatever went wrong, the next test meets no child of this one
        process.kill()
        process.communicate()


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
def test_killed_at_its_start_in_its_middle_and_at_its_end_it_still_ends_with_the_same_bytes(
    start: Start, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    kept: dict[str, tuple[int, str]] = {}
    moments: list[Callable[[], bool]] = [
        lambda: (out / ".lock").exists(),
        lambda: (
            len(list(out.glob("partial/*/*.parquet"))) >= 1
        ),  # the first method's, not yet the second's
        lambda: len(chunks(out)) >= 3,
        lambda: (out / "predictions").exists(),
    ]
    for moment in moments:
        process = start(out)
        stop(process, signal.SIGKILL, moment)
        assert process.returncode == -signal.SIGKILL and moment()
        if not (out / "predictions").exists():
            now = {
                name: facts
                for name, facts in hash_files(out).items()
                if Path(out, name) in chunks(out)
            }
            assert kept.items() <= now.items()  # what was stored was not computed again
            assert not (out / "run.json").exists()
            kept = now
    finish(start(out))
    assert same(out, whole)


@pytest.mark.long
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_politely_it_says_so_and_resumes(
    start: Start, whole: Path, tmp_path: Path, signum: int, code: int
) -> None:
    out = tmp_path / "run"
    process = start(out)
    said = stop(process, signum, lambda: len(chunks(out)) >= 2)
    assert process.returncode == code
    assert signal.Signals(signum).name in said and "continues" in said and "Traceback" not in said
    assert (
        not (out / ".lock").exists()
        and not list(out.rglob("*.tmp"))
        and not (out / "run.json").exists()
        and not list(out.rglob("predictions/*.parquet"))
    )
    stored = chunks(out)
    assert 2 <= len(stored) < 5
    finish(start(out))
    assert same(out, whole)
