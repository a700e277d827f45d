"""A run killed at any moment goes on where it stopped and ends with the same bytes; two writers
never meet.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killable_run import MANIFEST, write_run

from antlm_bench import runs
from antlm_bench.errors import RunError

SCORER = Path(__file__).with_name("killable_run.py")
# Counted in killable_run.kill_at; they fall before, inside and after chunks, final files, run.json
# and the clearing up.
MOMENTS = (1, 3, 6, 11, 24, 33, 36, 41, 45, 49, 52, 57, 58, 90, 95)


def scorer(folder: Path, *moment: int, wait: bool = True) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCORER), str(folder), *map(str, moment)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        process.wait(60)
    return process


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def files(folder: Path) -> dict[str, str]:
    every = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in every
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    assert output(scorer(folder)) == "8"
    return files(folder)


@pytest.mark.long
def test_an_undisturbed_run_leaves_only_what_it_should(whole: dict[str, str]) -> None:
    assert list(whole) == [
        "predictions/alpha.causal.parquet",
        "predictions/beta.causal.parquet",
        "run.json",
    ]


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_repeated_ends_with_the_same_bytes(
    moment: int, tmp_path: Path, whole: dict[str, str]
) -> None:
    killed = scorer(tmp_path, moment)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    computed = write_run(str(tmp_path))
    assert computed < 8 or moment < 8  # what was finished is not computed again
    assert files(tmp_path) == whole


@pytest.mark.long
def test_killed_again_and_again_it_still_ends(tmp_path: Path, whole: dict[str, str]) -> None:
    for _ in range(4):
        killed = scorer(tmp_path, 19)
        killed.communicate()
    write_run(str(tmp_path))
    assert files(tmp_path) == whole


def test_repeated_it_does_nothing(tmp_path: Path) -> None:
    write_run(str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert write_run(str(tmp_path)) == 0
    assert {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    } == before


HOLD = """
import sys
sys.path.insert(0, {here!r})
from killable_run import MANIFEST
from antlm_bench import runs
with runs.RunWriter({folder!r}, MANIFEST):
    print("holding", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.long
def test_a_second_process_is_refused_at_once_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    script = HOLD.format(here=str(SCORER.parent), folder=str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
        with pytest.raises(RunError, match=f"pid {holder.pid}"), runs.RunWriter(tmp_path, MANIFEST):
            pass
        holder.kill()
        holder.wait()
        with runs.RunWriter(tmp_path, MANIFEST):
            pass
    assert not list(tmp_path.iterdir())
