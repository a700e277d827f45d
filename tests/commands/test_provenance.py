"""provenance.json: how each cell of a run came about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from score_helpers import make_agreement_rows, write_pairs
from train_helpers import STEPS, write_recipe
from typer.testing import CliRunner

import antlm_bench
from antlm_bench import runs
from antlm_bench.cli.app import build_app
from antlm_bench.commands.check import save_baseline
from antlm_bench.runs.provenance import (
    PROVENANCE_FILE,
    ResourceMeter,
    read_commit,
    read_provenance,
)


@pytest.fixture(scope="module")
def run_dir(make_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("provenance")
    pairs = write_pairs(folder / "pairs.csv", make_agreement_rows(8))
    [run] = antlm_bench.score(make_checkpoint(), str(pairs), out=folder / "run")
    return Path(run.path)


def test_score_records_machine_and_resources(run_dir):
    [record] = read_provenance(run_dir).values()

    assert record["key"] == runs.open_run(run_dir).cells[0].key
    assert record["node"] == os.uname().nodename
    # The build (+cpu, +cu130) is in the metadata of some wheels only.
    assert record["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert 0 < record["cpu_seconds"] < 600 and 0 < record["wall_seconds"] < 600
    assert 50e6 < record["peak_memory_bytes"] < 24e9


def test_second_suite_keeps_first_record(run_dir, make_checkpoint, tmp_path):
    out = tmp_path / "run"
    first = write_pairs(tmp_path / "first.csv", make_agreement_rows(4))
    second = write_pairs(tmp_path / "second.csv", make_agreement_rows(6))
    for pairs in (first, second):
        antlm_bench.score(make_checkpoint(), str(pairs), out=out)

    assert set(read_provenance(out)) == {cell.key for cell in runs.open_run(out)}


def test_replaced_cell_loses_its_record(make_checkpoint, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.csv", make_agreement_rows(4))
    for ties in ("half", "strict"):
        antlm_bench.score(make_checkpoint(), str(pairs), out=tmp_path / "run", ties=ties)

    assert len(read_provenance(tmp_path / "run")) == 1


def test_finetune_records_provenance(make_checkpoint, tmp_path):
    train = tmp_path / "train.csv"
    rows = [f"the cat sleeps {i},{'ab'[i % 2]}" for i in range(24)]
    train.write_text("\n".join(["text,label", *rows]))
    [run] = antlm_bench.finetune(
        make_checkpoint(),
        str(train),
        valid=str(train),
        seeds=2,
        out=tmp_path / "run",
        changes=["epochs=1"],
    )

    assert set(read_provenance(run.path)) == {cell.key for cell in run}


def test_baseline_has_no_provenance(run_dir, tmp_path):
    save_baseline(run_dir, "b", baselines_dir=tmp_path)

    assert not list(tmp_path.rglob(PROVENANCE_FILE))


def test_report_prints_provenance(run_dir):
    result = CliRunner().invoke(build_app(), ["report", str(run_dir), "--provenance", "--json"])

    [entry] = json.loads(result.stdout)["provenance"]
    assert (entry["suite"], entry["method"]) == ("pairs", "causal")
    assert entry["record"] == next(iter(read_provenance(run_dir).values()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"schema": 99, "records": []}',
        b'{"schema": 1, "records": 3}',
        b'{"schema": 1, "records": [1, {"key": 2}, {}]}',
    ],
)
def test_damaged_provenance_is_no_provenance(tmp_path, content):
    (tmp_path / PROVENANCE_FILE).write_bytes(content)

    assert read_provenance(tmp_path) == {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    program = (
        "import subprocess, sys\n"
        "ballast = bytearray(400 * 2**20)\n"
        "code = 'from antlm_bench.runs import provenance; '\n"
        "code += 'print(provenance.peak_memory_bytes())'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)

    assert 5e6 < int(result.stdout) < 300e6


def test_record_of_a_stranger_is_printed_as_text(run_dir, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run_dir, copy], check=True)
    [key] = read_provenance(run_dir)
    fields = ("started", "wall_seconds", "cpu_seconds", "peak_memory_bytes", "attempt", "executor")
    hostile = {name: {"a": [None]} for name in (*fields, "node", "device", "command", "methods")}
    document = {"schema": 1, "records": [{"key": key, **hostile}]}
    (copy / PROVENANCE_FILE).write_text(json.dumps(document))

    result = CliRunner().invoke(build_app(), ["report", str(copy), "--provenance"])

    assert result.exit_code == 0 and "pairs (causal)" in result.stdout


def test_commit_is_the_one_that_git_names(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path / "repo"), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "repo" / "package").mkdir(parents=True)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("worktree", "add", "-q", str(tmp_path / "worktree"), "-b", "other")
    first = git("rev-parse", "HEAD")
    git("commit", "-q", "--allow-empty", "-m", "second")
    git("pack-refs", "--all")

    assert read_commit(tmp_path / "repo" / "package") == git("rev-parse", "HEAD") != first
    assert read_commit(tmp_path / "worktree") == first


def test_folder_outside_git_has_no_commit(tmp_path):
    assert read_commit(tmp_path) == ""


def test_worker_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("ANTLM_BENCH_EXECUTOR", "slurm")
    monkeypatch.setenv("ANTLM_BENCH_ATTEMPT", "2")

    record = ResourceMeter().build_record("k")

    assert (record["executor"], record["attempt"]) == ("slurm", 2)


def test_a_training_has_a_record_of_each_call_that_made_steps(tmp_path):
    recipe = write_recipe(tmp_path)
    (tmp_path / "text.txt").write_text("the old cat sees a small house\n" * 50)

    for stop_after in (5, None, None):
        antlm_bench.train(
            str(recipe), tmp_path / "text.txt", tmp_path / "out", stop_after=stop_after
        )

    first, second = read_provenance(tmp_path / "out").values()
    assert (first["first_step"], first["last_step"]) == (1, 5)
    assert (second["first_step"], second["last_step"]) == (6, STEPS)
    assert first["node"] == os.uname().nodename
