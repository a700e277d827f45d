"""How a process ends: full, closed and broken outputs, and signals at any moment."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from report_runs import make_zero_shot_cells, write_run

from antlm_bench.cli.stop_signals import end_process

PROGRAM = [sys.executable, "-m", "antlm_bench"]
NEEDS_DEV_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, of which the second is worse."""
    root = tmp_path_factory.mktemp("ends")
    better = write_run(root / "better", make_zero_shot_cells("causal", more=20))
    return better, write_run(root / "worse", make_zero_shot_cells("causal", more=-40))


def run_in_shell(command: Sequence[str | Path], redirection: str) -> tuple[int, str, str]:
    """Return the exit code, stdout and stderr of a command line with a redirection."""
    line = f"{shlex.join(map(str, [*PROGRAM, *command]))} {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


OUTPUTS = {
    "help": ["--help"],
    "version": ["--version"],
    "table": ["list", "suites"],
    "json": ["list", "--json"],
    "model card": ["report", "{better}", "--model-index"],
    "verdict worse": ["check", "{worse}", "--against", "{better}"],
}


@NEEDS_DEV_FULL
@pytest.mark.long
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_stdout_that_cannot_be_written_is_exit_74(
    output: str, redirection: str, run_dirs: tuple[Path, Path]
) -> None:
    better, worse = run_dirs
    command = [text.format(better=better, worse=worse) for text in OUTPUTS[output]]
    code, _, stderr = run_in_shell(command, redirection)
    assert code == 74
    assert "error: stdout: cannot be written" in stderr and "Traceback" not in stderr


@NEEDS_DEV_FULL
@pytest.mark.long
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
@pytest.mark.parametrize(
    "command", [["check", "nonexist", "--against", "{better}"], ["nosuch"], ["show", "blmp"]]
)
def test_an_error_that_cannot_be_written_is_exit_74(
    command: list[str], redirection: str, run_dirs: tuple[Path, Path]
) -> None:
    command = [text.format(better=run_dirs[0]) for text in command]
    assert run_in_shell(command, redirection) == (74, "", "")


@pytest.mark.long
def test_a_closed_stderr_that_nobody_writes_to_is_no_error() -> None:
    code, stdout, _ = run_in_shell(["list", "suites"], "2>&-")
    assert code == 0 and "blimp" in stdout


@pytest.mark.long
def test_a_file_never_gets_the_number_of_a_closed_stdout(
    run_dirs: tuple[Path, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, _, _ = run_in_shell(["report", run_dirs[0], "--html", page], "0<&- >&- 2>&-")
    text = page.read_text(encoding="utf-8")
    assert code == 74 and text.startswith("<!") and text.rstrip().endswith("</html>")


@pytest.mark.long
@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["--help"], ["score", "--help"]])
def test_a_closed_pipe_ends_quietly_with_141(command: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed_pipe:
        done = subprocess.run(
            [*PROGRAM, *command], stdout=closed_pipe, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.long
def test_errors_into_a_closed_pipe_end_with_141() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed_pipe:
        done = subprocess.run([*PROGRAM, "nosuch"], stderr=closed_pipe, check=False)
    assert done.returncode == 141


@pytest.mark.long
def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    code = (
        "from antlm_bench.cli.standard_streams import replace_standard_streams\n"
        "replace_standard_streams()\n"
        "print('x' * 300_000, end='', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=write_end) as child:
        os.close(write_end)
        time.sleep(0.1)
        with os.fdopen(read_end, "rb") as pipe:
            assert len(pipe.read()) == 300_000
    assert child.returncode == 0


# ---- signals


@pytest.fixture(scope="module")
def start_score(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], subprocess.Popen[str]]:
    """start_score(out) -> a process that scores a thousand pairs."""
    pairs = tmp_path_factory.mktemp("signals") / "pairs.csv"
    rows = [f"the cat sleeps {'near ' * (i % 7)}{i},the cat sleep {i}" for i in range(1000)]
    pairs.write_text("\n".join(["good,bad", *rows]), encoding="utf-8")
    model = str(make_checkpoint("masked"))
    options = ["--device", "cpu", "--method", "mlm", "--model", model, "--suite", str(pairs)]

    def start(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, "score", *options, "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def score_seconds(
    start_score: Callable[[Path], subprocess.Popen[str]], tmp_path_factory: pytest.TempPathFactory
) -> float:
    """Wall time of `score` when nobody stops it."""
    started = time.monotonic()
    process = start_score(tmp_path_factory.mktemp("signals") / "whole")
    assert (process.communicate(timeout=120), process.returncode)[1] == 0
    return time.monotonic() - started


def stop_after(process: subprocess.Popen[str], signum: int, seconds: float) -> str:
    """Send a signal after a time, and return what the process wrote to stderr."""
    time.sleep(seconds)
    process.send_signal(signum)
    return process.communicate(timeout=120)[1]


@pytest.mark.long
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_a_command_at_any_moment(
    start_score: Callable[[Path], subprocess.Popen[str]],
    score_seconds: float,
    tmp_path: Path,
    signum: int,
    code: int,
) -> None:
    """Moments from the start of Python, which ends by the signal itself, to the scoring."""
    rng = random.Random(signum)
    for number in range(4):
        out = tmp_path / str(number)
        process = start_score(out)
        stderr = stop_after(process, signum, score_seconds * (number + rng.random()) / 5)
        if process.returncode == 0:
            continue  # it was faster this time
        if process.returncode == 1 and "antlm_bench" not in stderr:
            continue  # Python's own start was interrupted
        assert process.returncode in (code, -signum), stderr
        if process.returncode == code:
            assert f"stopped by {signal.Signals(signum).name}" in stderr
            assert "continues" in stderr and "Traceback" not in stderr
        assert not [*out.rglob("*.tmp"), *out.glob(".lock")]


@pytest.mark.long
def test_ctrl_c_is_quiet_at_every_moment_of_the_start() -> None:
    """Twelve moments within a second, most of them early.

    Before our code runs, Python ends by the signal itself or with its own traceback.
    """
    codes = []
    for number in range(12):
        process = subprocess.Popen(
            [*PROGRAM, "show", "blimp"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        stderr = stop_after(process, signal.SIGINT, (number / 12) ** 2)
        if process.returncode == -signal.SIGINT and "__main__.py" not in stderr:
            continue
        if process.returncode == 1 and "antlm_bench" not in stderr:
            continue
        assert process.returncode in (0, 130) and "Traceback" not in stderr, stderr
        codes.append(process.returncode)
    assert 130 in codes


MODULES_BEFORE_THE_HANDLER = """
import _signal, os, sys, runpy

def print_modules(signum, handler):
    print(*sorted(set(sys.modules) - before))
    os._exit(0 if signum == _signal.SIGINT else 1)

before = {*sys.modules, "antlm_bench.__main__"}
_signal.signal = print_modules
sys.stdout.reconfigure(line_buffering=True)
runpy.run_module("antlm_bench", run_name="__main__")
"""


def test_ctrl_c_is_handled_before_slow_imports() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MODULES_BEFORE_THE_HANDLER],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        "__future__",
        "antlm_bench",
        "antlm_bench.architectures",
        "antlm_bench.architectures.import_hook",
    ]


HANG_IN_DESTRUCTOR = """
import sys, time
from antlm_bench.cli.process import prepare_process

class Slow:
    def __del__(self):
        print("ready", flush=True)
        try:
            time.sleep(60)
        except BaseException:
            pass

prepare_process()
Slow()
"""


@pytest.mark.long
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_in_a_destructor_is_not_lost(signum: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANG_IN_DESTRUCTOR], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n"
        child.send_signal(signum)
        child.communicate(timeout=60)
    assert child.returncode == code


WORKER = """
import os, signal, sys, time
from pathlib import Path
from antlm_bench.atomic_files import temporary_path
from antlm_bench.cli.process import prepare_process

prepare_process()
with temporary_path(Path(sys.argv[1])) as path:
    path.touch()
    worker = os.fork()
    while not worker:
        time.sleep(0.01)
    status = 0
    while not status:  # Python drops a signal that comes during the fork
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.01)
        status = os.waitpid(worker, os.WNOHANG)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert path.exists()
    os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.long
def test_a_signal_removes_the_temporary_files_of_its_process_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "t")], capture_output=True, check=False
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (75, []), done.stderr


@pytest.mark.parametrize(("term", "is_cleared"), [("xterm", True), ("dumb", False)])
def test_signal_clears_the_bar_of_a_terminal(
    term: str, is_cleared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(os, "isatty", lambda _descriptor: True)
    monkeypatch.setattr(os, "write", lambda _descriptor, data: written.append(data))
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit):
        end_process("stopped by SIGINT", 130)
    assert written[0].startswith(b"\x1b[?25h\r\x1b[2Kerror: ") == is_cleared
