"""`score` and the disk: the files that a run leaves, numbers recomputed from them, and who refuses
to write where.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from score_helpers import hash_files, make_agreement_rows, write_pairs, write_sentence_pairs

from antlm_bench import runs, score
from antlm_bench.cli.app import run
from antlm_bench.errors import CheckpointError, RunError

Make = Callable[..., Path]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "agree.csv", make_agreement_rows())


# ---- what a run leaves
# -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_files_are_those_that_the_readme_describes(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    score(
        make_checkpoint(), str(suite), methods=["causal", "mlm"], out=tmp_path / "run", device="cpu"
    )
    names = sorted(
        str(path.relative_to(tmp_path / "run"))
        for path in (tmp_path / "run").rglob("*")
        if path.is_file()
    )
    assert names == [
        "predictions/agree.causal.parquet",
        "predictions/agree.mlm.parquet",
        "provenance.json",
        "run.json",
    ]
    frame = pandas.read_parquet(tmp_path / "run" / names[0])
    assert list(frame.columns) == [
        "id",
        "gold",
        "pred",
        "scores",
        "tokens",
        "characters",
        "flags",
        "labels",
    ]
    rows = make_agreement_rows()
    assert len(frame) == len(rows) and frame.id.is_unique and (frame.gold == 0).all()
    assert [list(c) for c in frame.characters] == [[len(r["good"]), len(r["bad"])] for r in rows]
    assert list(frame.pred) == [int(np.argmax(s)) for s in frame.scores]
    assert all(
        (s < 0).all() and (t > 0).all() for s, t in zip(frame.scores, frame.tokens, strict=True)
    )
    assert [label["paradigm"] for label in frame.labels] == [r["paradigm"] for r in rows]
    everything = b"".join(
        path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    assert b"sleeps" not in everything
    origin = json.dumps(
        runs.open_run(tmp_path / "run").cells[0].origin[0]
    ).encode()  # where the user's file lies: what tells equal names apart
    assert str(tmp_path).encode() not in everything.replace(origin, b"")
    document = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (
        document["schema"] == runs.SCHEMA_VERSION
        and [c["predictions"] for c in document["cells"]] == names[:2]
    )
    assert {"torch", "transformers", "antlm-bench", "python"} <= set(
        document["manifest"]["software"]
    )
    assert (
        document["manifest"]["model"]["parameters"] > 0
        and len(document["manifest"]["model"]["weights"]) == 64
    )


@pytest.mark.long
def test_the_numbers_of_run_json_are_those_of_the_predictions(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    twins = write_sentence_pairs(
        tmp_path / "twins.csv", ("the cat sleeps", "the cat sleep"), ("the dog", "the dog")
    )
    [found] = score(
        make_checkpoint(seed=2), [str(suite), str(twins)], out=tmp_path / "run", device="cpu"
    )
    for cell in found:
        frame = pandas.read_parquet(
            tmp_path / "run" / "predictions" / f"{cell.suite}.causal.parquet"
        )
        good, bad = (frame.scores.str[k] for k in (0, 1))
        frame["credit"] = (good > bad) + 0.5 * (
            (good == bad) | frame["flags"].map(lambda f: "identical" in f)
        )
        if cell.suite == "twins":
            assert cell.summary.headline.value == pytest.approx(frame.credit.mean(), abs=1e-12)
            assert (
                cell.summary.headline.flags["identical"] == cell.summary.headline.flags["tie"] == 1
            )
            continue
        for level in ("phenomenon", "paradigm"):
            expected = frame.groupby(frame.labels.str[level]).credit.agg(["mean", "size"])
            groups = {g.name: g.estimate for g in cell.summary.groups if g.level == level}
            assert set(groups) == set(expected.index)
            for name, row in expected.iterrows():
                assert (
                    groups[name].value == pytest.approx(row["mean"], abs=1e-12)
                    and groups[name].n == row["size"]
                )
        paradigms = frame.groupby(frame.labels.str["paradigm"]).credit.mean()
        assert (
            0 < paradigms.mean() < 1 and paradigms.nunique() > 1
        )  # else the comparison would be empty
        assert cell.summary.headline.value == pytest.approx(paradigms.mean(), abs=1e-12)
        assert cell.summary.views["micro"].value == pytest.approx(frame.credit.mean(), abs=1e-12)
        means = frame.scores.map(np.array) / frame.tokens.map(np.array)
        per_token = (
            (means.str[0] > means.str[1]).groupby(frame.labels.str["paradigm"]).mean().mean()
        )
        assert cell.summary.views["per-token"].value == pytest.approx(per_token, abs=1e-12)


# ---- who refuses
# -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_nan_fails_and_leaves_no_finished_cell_but_keeps_what_was_finished(
    make_checkpoint: Make, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder, out = shutil.copytree(make_checkpoint(), tmp_path / "model"), tmp_path / "run"
    [word] = AutoTokenizer.from_pretrained(folder)("himself", add_special_tokens=False)["input_ids"]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][word] = float("nan")  # a model that fails at one word only
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    bad = write_sentence_pairs(
        tmp_path / "bad.csv",
        *[(f"the cat {n}", f"a cat {n}") for n in range(9)],
        ("himself a", "the a"),
    )
    argv = ["score", "--model", str(folder), "--device", "cpu", "--out", str(out)]
    assert run([*argv, "--suite", str(bad)]) == 3
    assert "returns NaN" in capsys.readouterr().err and not (out / "run.json").exists()
    assert run([*argv, "--suite", str(suite), "--suite", str(bad)]) == 3
    assert [cell.suite for cell in runs.open_run(out)] == ["agree"]
    with pytest.raises(CheckpointError, match="NaN"):
        score(folder, str(bad), out=out, device="cpu")


HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(handle, fcntl.LOCK_EX)
os.write(handle, b"%d" % os.getpid())
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_a_second_process_that_writes_the_same_run_is_refused(
    make_checkpoint: Make, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    score(make_checkpoint(), str(suite), limit=2, out=out, device="cpu")
    before = hash_files(out)
    argv = [
        "score",
        "--model",
        str(make_checkpoint()),
        "--suite",
        str(suite),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out / ".lock")], **pipes) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert run(argv) == 3
        said = capsys.readouterr().err
        assert f"another process (pid {other.pid}) is writing this run" in said and "--out" in said
        assert {name: value for name, value in hash_files(out).items() if name != ".lock"} == before
    assert run(argv) == 0


@pytest.mark.long
def test_out_is_a_file(make_checkpoint: Make, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="file, not a folder") as caught:
            score(make_checkpoint(), str(suite), out=out, device="cpu")
        assert "--out" in caught.value.hint
    assert (tmp_path / "file").read_text() == "mine"


class Unprivileged(runs.RunWriter):
    """Root may write anywhere: opening the folder becomes nobody's business."""

    def __enter__(self) -> runs.RunWriter:
        before = os.geteuid()
        os.seteuid(before or 65534)
        try:
            return super().__enter__()
        finally:
            os.seteuid(before)


@pytest.mark.long
@pytest.mark.parametrize("below", ["", "run"])
def test_a_read_only_place_is_refused(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    place = tmp_path / "frozen"
    place.mkdir()
    place.chmod(0o555)
    monkeypatch.setattr(runs, "RunWriter", Unprivileged)
    with pytest.raises(RunError, match="permission denied") as caught:
        score(make_checkpoint(), str(suite), out=place / below, device="cpu")
    assert "--out" in caught.value.hint and not list(place.iterdir())
    place.chmod(0o755)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from antlm_bench.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.long
def test_a_disk_that_fills_up_is_said_and_nothing_finished_is_lost(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    """The system's own limit on the size of a file stands for a full disk: a write really stops in
    its middle.
    """
    out, whole = tmp_path / "run", tmp_path / "whole"
    small = write_sentence_pairs(tmp_path / "small.csv", ("the cat sleeps", "the cat sleep"))
    score(make_checkpoint(), str(small), out=out, device="cpu")
    before = hash_files(out)
    argv = [
        "score",
        "--model",
        str(make_checkpoint()),
        "--device",
        "cpu",
        "--suite",
        f"{small},{suite}",
    ]
    script = LIMITED.format(limit=2500)
    full = subprocess.run(
        [sys.executable, "-c", script, *argv, "--out", str(out)], capture_output=True, text=True
    )
    assert full.returncode == 3, full.stderr
    assert "file-size limit is reached" in full.stderr and "Traceback" not in full.stderr
    assert hash_files(out) == before  # what was finished, and no half-written file beside it
    assert run([*argv, "--out", str(out)]) == run([*argv, "--out", str(whole)]) == 0
    assert (out / "predictions/agree.causal.parquet").read_bytes() == (
        whole / "predictions/agree.causal.parquet"
    ).read_bytes()


def test_train_refuses_an_object_store_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "babyllama", "--corpus", "nano", "--out", "s3://bucket/run"]) == 2
    assert "--out: s3://bucket/run is not a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
