"""Commands under torchrun: `score` divides its work, others run in one process or refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from run_files import read_results
from sweeps.sweep_files import write_pairs

from antlm_bench import score
from antlm_bench.cli.app import run
from antlm_bench.commands.process_group import ProcessGroup
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.commands.score_processes import score_in_processes
from antlm_bench.runs import open_run

TIMEOUT = 300
FAULTY_PROGRAM = """
import os, signal, sys
from antlm_bench.cli.app import main
from antlm_bench.commands.score_session import ScoreSession
from antlm_bench.errors import CheckpointError

score_opened = ScoreSession.score_opened

def fail(*args):
    if os.environ["FAULT"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise CheckpointError("out of memory", location="cuda:1")

if os.environ["RANK"] == "1":
    ScoreSession.score_opened = fail
main()
"""


def start_torchrun(program: Sequence[str], *words: str, **variables: str) -> tuple[int, str]:
    """Run a program in two processes. Return torchrun's exit code and the output of all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *program]
    finished = subprocess.run(
        [*command, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    return finished.returncode, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def whole_run(make_checkpoint: Callable[..., Path], tmp_path_factory) -> tuple[list[str], Path]:
    """Return the words of a command whose suite has two chunks, and the run of one process."""
    checkpoint, out = str(make_checkpoint("masked")), tmp_path_factory.mktemp("torchrun") / "run"
    score(checkpoint, "nano", methods="mlm", limit=33, out=out, device="cpu")
    words = ["score", "--model", checkpoint, "--suite", "nano", "--method", "mlm"]
    return [*words, "--limit", "33", "--device", "cpu", "--out"], out


@pytest.mark.long
def test_score_in_two_processes_is_score_in_one(whole_run, tmp_path: Path) -> None:
    words, expected = whole_run

    code, output = start_torchrun(["-m", "antlm_bench"], *words, str(tmp_path / "run"))

    assert code == 0, output
    assert read_results(tmp_path / "run") == read_results(expected)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(re.findall(r"mean of 16 paradigms", output)) == 1
    records = json.loads((tmp_path / "run" / "provenance.json").read_text())["records"]
    assert [len(record["shards"]) for record in records] == [2]


@pytest.mark.slow
def test_first_process_computes_what_another_cannot(whole_run, tmp_path: Path) -> None:
    words, expected = whole_run
    program = tmp_path / "program.py"
    program.write_text(FAULTY_PROGRAM)

    code, output = start_torchrun([str(program)], *words, str(tmp_path / "run"), FAULT="raise")

    assert code == 0, output
    assert "process 1 of torchrun: cuda:1: out of memory" in output
    assert read_results(tmp_path / "run") == read_results(expected)


@pytest.mark.slow
def test_killed_process_ends_all_and_the_command_continues(whole_run, tmp_path: Path) -> None:
    words, expected = whole_run
    program = tmp_path / "program.py"
    program.write_text(FAULTY_PROGRAM)

    code, output = start_torchrun([str(program)], *words, str(tmp_path / "run"), FAULT="kill")
    assert code != 0 and "bug in antlm-bench" not in output, output
    assert not (tmp_path / "run" / "run.json").exists()

    code, output = start_torchrun(["-m", "antlm_bench"], *words, str(tmp_path / "run"))
    assert code == 0, output
    assert read_results(tmp_path / "run") == read_results(expected)


@pytest.mark.slow
def test_leftovers_of_a_killed_command_replace_nothing(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """The command has computed a whole cell of another suite, under older settings."""
    checkpoint, out = make_checkpoint("masked"), tmp_path / "run"
    settings = {"methods": "mlm", "limit": 1, "device": "cpu"}
    for shard in ("1/2", "2/2"):
        folder = tmp_path / ".run.shards" / shard.replace("/", "-of-")
        score(checkpoint, "nano", out=folder, shard=shard, ties="strict", **settings)
    [newer] = score(checkpoint, "nano", out=out, **settings)
    pairs = write_pairs(tmp_path / "pairs.csv")
    words = ["score", "--model", str(checkpoint), "--suite", str(pairs), "--method", "mlm"]

    code, output = start_torchrun(
        ["-m", "antlm_bench"], *words, "--device", "cpu", "--out", str(out)
    )

    assert code == 0, output
    keys = {cell.suite: cell.key for cell in open_run(out).cells}
    assert keys["nano"] == newer.cells[0].key
    assert sorted(keys) == ["nano", "pairs"]
    assert not (tmp_path / ".run.shards").exists()


class LoneProcess(ProcessGroup):
    """The only process of a torchrun, without one."""

    def __init__(self) -> None:
        self.rank = self.local_rank = 0
        self.size = 1

    def __enter__(self) -> LoneProcess:
        return self

    def __exit__(self, *_: object) -> bool:
        return False

    def exchange(self, text: str) -> list[str]:
        return [text]


@pytest.mark.long
@pytest.mark.parametrize("leftover", ["masked", "causal"])
def test_only_cells_of_the_command_are_merged(
    make_checkpoint: Callable[..., Path], tmp_path: Path, leftover: str
) -> None:
    """A leftover of the same checkpoint, and of another one."""
    settings = {"limit": 1, "device": "cpu"}
    folder = tmp_path / ".run.shards" / "1-of-1"
    score(make_checkpoint(leftover), "nano", out=folder, shard="1/1", **settings)
    pairs = write_pairs(tmp_path / "pairs.csv")

    [run] = score_in_processes(
        LoneProcess(),
        str(make_checkpoint("masked")),
        str(pairs),
        "mlm",
        tmp_path / "run",
        ScoreOptions(device="cpu"),
    )

    assert [(cell.suite, cell.method) for cell in run.cells] == [("pairs", "mlm")]
    assert len(open_run(tmp_path / "run").cells) == 1
    assert not (tmp_path / ".run.shards").exists()


@pytest.mark.slow
def test_error_is_printed_once(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    words = ["score", "--model", str(make_checkpoint()), "--suite", "blimb"]

    code, output = start_torchrun(["-m", "antlm_bench"], *words, "--out", str(tmp_path / "run"))

    assert code == 1
    assert len(re.findall("unknown suite 'blimb'", output)) == 1, output


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set the variables of the first of torchrun's two processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    "words",
    [["finetune", "--model", "m", "--suite", "glue"], ["list"], ["baseline", "list"]],
)
def test_other_commands_refuse_torchrun(
    words: list[str], two_processes: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"`{words[-1] if words[0] == 'baseline' else words[0]}` runs in one process" in error
    assert "antlm-bench run" in error

    two_processes.setenv("RANK", "1")
    assert run(words) == 0
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_is_printed_by_the_first_process(
    two_processes: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", "--model", "./no-such-model", "--suite", "nano", "--dry-run"]
    assert run(words) == 3
    assert "no such folder" in capsys.readouterr().err

    two_processes.setenv("RANK", "1")
    assert run(words) == 0
    assert capsys.readouterr() == ("", "")


def test_shard_of_a_torchrun_is_refused(
    two_processes: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ProcessGroup, "__enter__", lambda group: group)
    monkeypatch.setattr(ProcessGroup, "__exit__", lambda *_: False)

    assert run(["score", "--model", "m", "--suite", "nano", "--shard", "1/2"]) == 2
    assert "torchrun divides the work" in " ".join(capsys.readouterr().err.split())
