"""The commands of docs/how-to/scale.md, section "Slurm", on a real Slurm of two nodes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented_pages import read_code
from sweeps.slurm_cluster import SlurmCluster
from sweeps.slurm_sweeps import list_tasks, start_cluster, wait_until
from tiny_models import WORDS

from antlm_bench.cli.app import run as run_command_line
from antlm_bench.commands.score import score
from antlm_bench.commands.slurm_training import FLAGS, build_train_command, count_gpus
from antlm_bench.commands.train import TrainOptions
from antlm_bench.errors import DeclarationError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "scale.md"
SECTION = PAGE.read_text(encoding="utf-8").split("\n## Slurm\n")[1].split("\n## ")[0]
SWEEP_SECTION, TRAIN_SECTION = SECTION.split("\n### Train on several nodes\n")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with start_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def run_commands(section: str, folder: Path) -> str:
    """Run the commands of the sh blocks of a section, and return what they print."""
    output = ""
    for line in "".join(read_code(section, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "antlm-bench":
            words[:1] = [sys.executable, "-m", "antlm_bench"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        output += done.stdout + done.stderr
    return output


@pytest.mark.long
def test_a_sweep_scores_what_score_does(
    cluster: SlurmCluster, tmp_path: Path, make_checkpoint
) -> None:
    checkpoint = make_checkpoint()
    (tmp_path / "ckpts").mkdir()
    (tmp_path / "ckpts" / "a").symlink_to(checkpoint)
    [toml] = read_code(SWEEP_SECTION, "toml")
    short = toml.replace("shards = 2\n", "shards = 2\noptions = { limit = 10 }\n")
    (tmp_path / "sweep.toml").write_text(short)
    output = run_commands(SWEEP_SECTION, tmp_path)
    assert "has 2 workers" in output
    assert not [task for task, state in list_tasks(cluster) if state in ("PENDING", "RUNNING")]
    [run] = (tmp_path / "reports" / "strict-small" / "runs").iterdir()
    score(str(checkpoint), "nano", methods="all", limit=10, out=tmp_path / "single")
    files = {file.name: file.read_bytes() for file in (run / "predictions").iterdir()}
    single = (tmp_path / "single" / "predictions").iterdir()
    assert files == {file.name: file.read_bytes() for file in single}
    assert files


# ---- training


def write_texts(folder: Path) -> None:
    folder.mkdir()
    lines = [" ".join(WORDS[start : start + 6]) for start in range(len(WORDS) - 6)]
    (folder / "a.txt").write_text("\n".join(lines * 40) + "\n")


@pytest.mark.long
def test_a_training_runs_on_two_nodes_and_survives_its_time_limit(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    write_texts(tmp_path / "text")
    run_commands(TRAIN_SECTION, tmp_path)
    out = tmp_path / "runs" / "babyllama"
    log = out / "train.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size, "the first step")
    [(job, state)] = [each for each in list_tasks(cluster) if each[1] != "COMPLETED"][-1:]
    assert state == "RUNNING"
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the limit
    wait_until(lambda: (out / "state").exists(), "the state is saved")
    wait_until(lambda: dict(list_tasks(cluster))[job] == "COMPLETED", "the training ends")
    messages = (out / f"slurm-{job}.out").read_text()
    assert messages.count("stopped by SIGUSR1") == 2  # both processes
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert json.loads((out / "train.json").read_text())["finished"]
    text, single = str(tmp_path / "text"), str(tmp_path / "single")
    arguments = ["train", "babyllama", "--scale", "nano", "--corpus", text, "--device", "cpu"]
    assert run_command_line([*arguments, "--out", single]) == 0
    losses = [
        [
            json.loads(line)["loss"]["clm"]
            for line in (folder / "train.jsonl").read_text().splitlines()
        ]
        for folder in (out, tmp_path / "single")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_script_is_written_without_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    command = ["train", "babyllama", "--corpus", "nano", "--out", str(tmp_path / "out")]
    command += ["--executor", "slurm", "--script-only", "--set", "seed=2"]
    settings = ["nodes=2", "gres=gpu:a100:4", "time=1-00:00:00", 'lines=["--exclusive"]']
    for setting in settings:
        command += ["--executor-option", setting]
    assert run_command_line(command) == 0
    assert "sbatch" in capsys.readouterr().out
    lines = (tmp_path / "out" / "slurm.sh").read_text().splitlines()
    for option in ("nodes=2", "ntasks-per-node=4", "time=1-00:00:00", "exclusive"):
        assert f"#SBATCH --{option}" in lines
    assert any("train babyllama --corpus nano" in line and "--set=seed=2" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor-option", "nodes=2"], "--executor-option: a training in this process has no"),
        (["--script-only"], "--script-only: a training in this process has no executor"),
        (["--executor", "slurm", "--executor-option", "node=2"], "did you mean 'nodes'?"),
        (["--executor", "slurm", "--set", "optimizer.lrr=1"], "lrr"),
    ],
)
def test_wrong_options_of_a_training_are_refused(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["train", "babyllama", "--corpus", "nano", "--out", str(out), *arguments]
    assert run_command_line(command) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_every_option_of_train_reaches_the_job() -> None:
    options = TrainOptions(
        scale="nano", changes=["seed=2", "optimizer.lr=1e-3"], teachers=["a", "b"], resume=True,
        device="cpu", precision="bfloat16", micro_tokens=64, compiled=True, save_every=2.5,
        trackers=["wandb"],
    )  # fmt: skip
    command = build_train_command("babyllama", "text", Path("out"), options)
    flags = """
        --scale=nano --set=seed=2 --set=optimizer.lr=1e-3 --teacher=a --teacher=b --resume
        --device=cpu --precision=bfloat16 --batch-tokens=64 --compile --save-every=2.5 --track=wandb
    """
    expected = ["train", "babyllama", "--corpus", "text", "--out", "out", *flags.split()]
    assert command[3:] == expected
    assert set(FLAGS) == set(TrainOptions.__slots__) - {"stop_after"}  # no flag of the command
    plain = build_train_command("babyllama", "text", Path("out"), TrainOptions())
    assert plain[3:] == ["train", "babyllama", "--corpus", "text", "--out", "out"]
    zero = build_train_command("babyllama", "text", Path("out"), TrainOptions(save_every=0))
    assert zero[len(plain) :] == ["--save-every=0"]


@pytest.mark.parametrize(
    ("gres", "count"),
    [("", 1), ("gpu:4", 4), ("gpu:a100:8", 8), ("gpu", 1), ("lustre:3,gpu:2", 2), ("gpu:h100", 1)],
)
def test_gpus_of_a_node_are_counted(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


def test_values_of_executors_need_no_quotes() -> None:
    from antlm_bench.cli.shared_options import parse_executor_options

    options = parse_executor_options(["gres=gpu:1", "cpus=4", 'lines=["--x=1"]', "mem=2G"])
    assert options == {"gres": "gpu:1", "cpus": 4, "lines": ["--x=1"], "mem": "2G"}
    with pytest.raises(DeclarationError, match="--executor-option"):
        parse_executor_options(['lines=["a'])
