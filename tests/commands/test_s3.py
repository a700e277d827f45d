"""Runs on S3: a real local server (moto) and the real driver (s3fs)."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from pair_runs import (
    publish_toy_cell,
)

from antlm_bench import runs, score
from antlm_bench.cli.app import run as run_cli
from antlm_bench.errors import RunError

MISSING = [name for name in ("s3fs", "moto", "flask_cors") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {', '.join(MISSING)} (pip install s3fs 'moto[s3]' flask flask-cors)",
)
URL = "s3://bucket/a run"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start an S3 server, and return its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("moto's server does not answer")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def _bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.mkdir("bucket")
    yield
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    store.rm("bucket", recursive=True)


def list_suites() -> list[str]:
    return [cell.suite for cell in runs.open_run(URL)]


@pytest.mark.long
def test_commands_add_to_a_run_on_s3_and_delete_unused_files() -> None:
    publish_toy_cell(URL, "a", (1, -1))
    publish_toy_cell(URL, "b")
    publish_toy_cell(URL, "a", (1, 1))
    assert list_suites() == ["a", "b"]
    files = fsspec.filesystem("s3", skip_instance_cache=True).find("bucket")
    assert len([file for file in files if file.endswith(".parquet")]) == 2


@pytest.mark.long
@pytest.mark.parametrize("first", [True, False])
def test_s3_refuses_a_run_json_that_another_process_replaced(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process writes between our comparison and our upload of run.json."""
    if not first:
        publish_toy_cell(URL, "a")
    upload = runs.ObjectStore.upload
    others = ["c"]

    def upload_while_another_publishes(store: runs.ObjectStore, files: dict[str, Path]) -> None:
        upload(store, files)
        if others:
            with monkeypatch.context() as context:
                context.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "other cache"))
                publish_toy_cell(URL, others.pop())

    monkeypatch.setattr(runs.ObjectStore, "upload", upload_while_another_publishes)
    with pytest.raises(RunError, match="another process has written this run"):
        publish_toy_cell(URL, "b")
    assert list_suites() == (["c"] if first else ["a", "c"])
    publish_toy_cell(URL, "b")
    assert list_suites() == (["c", "b"] if first else ["a", "c", "b"])


@pytest.mark.long
def test_score_and_report_use_s3(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    suite = tmp_path / "pairs.csv"
    suite.write_text("good,bad\nthe cat sleeps,the cat sleep\n")
    argv = ["--model", str(make_checkpoint()), "--suite", str(suite), "--device", "cpu"]
    assert run_cli(["score", *argv, "--out", URL]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run_cli(["report", URL, "--csv"]) == 0
    from_s3 = capsys.readouterr().out
    score(str(make_checkpoint()), str(suite), out=tmp_path / "a run", device="cpu")
    assert run_cli(["report", str(tmp_path / "a run"), "--csv"]) == 0
    assert from_s3.replace("s3://bucket", str(tmp_path)) == capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no bucket", "s3://nothing/run: cannot be read: The specified bucket does not exist"),
        ("no credentials", "s3://nothing/run: cannot be read: Unable to locate credentials"),
        ("no server", "s3://nothing/run: cannot be read: Could not connect to the endpoint URL"),
    ],
)
@pytest.mark.parametrize("command", ["score --model gpt2 --suite nano --out", "report"])
def test_a_store_that_cannot_be_read_is_one_sentence(
    problem: str,
    message: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    if problem == "no credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    elif problem == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert run_cli([*command.split(), "s3://nothing/run"]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
