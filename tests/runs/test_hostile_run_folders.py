"""Run folders of a stranger: links are not followed on writing, and only regular files are read."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from killable_run import KEY, MANIFEST, make_predictions, write_run

from antlm_bench import runs, safe_files
from antlm_bench.cli import app
from antlm_bench.errors import RunError
from antlm_bench.runs import predictions_parquet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX links and FIFOs")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder outside the run with a file that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "letter.txt").write_text("do not touch")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    assert (folder / "letter.txt").read_text() == "do not touch"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.parametrize("make_link", [Path.symlink_to, Path.hardlink_to])
def test_lock_is_not_written_through_a_link(run: Path, outside: Path, make_link) -> None:  # type: ignore[no-untyped-def]
    make_link(run / ".lock", outside / "letter.txt")

    with pytest.raises(RunError, match="link"), runs.RunWriter(run, MANIFEST):
        pass


@pytest.mark.parametrize(
    "name", [".run.json.tmp", "predictions/.alpha@{digest}.causal.parquet.tmp"]
)
def test_temporary_file_is_not_a_link(run: Path, outside: Path, name: str) -> None:
    cell = runs.open_run(run).cells[0]
    # Other predictions than those that they replace get another file.
    name = name.format(digest=str(cell.settings.get("suite_digest") or cell.key)[:8])
    (run / name).symlink_to(outside / "letter.txt")

    with runs.RunWriter(run, MANIFEST) as writer:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(outside / "letter.txt")  # made after the writer cleaned up
        writer.write_cell(cell, make_predictions("alpha", 1))

    assert not os.path.lexists(run / name)


@pytest.mark.parametrize("name", ["partial", "predictions"])
def test_subfolder_may_not_be_a_link(run: Path, outside: Path, tmp_path: Path, name: str) -> None:
    if (run / name).exists():
        (run / name).rename(tmp_path / "moved")
    (run / name).symlink_to(outside)

    with pytest.raises(RunError, match="link"), runs.RunWriter(run, MANIFEST):
        pass


def test_chunk_folder_may_not_be_a_link(run: Path, outside: Path) -> None:
    (run / "partial").mkdir()
    (run / "partial" / f"gamma.causal.{KEY}").symlink_to(outside)

    with pytest.raises(RunError, match="link"), runs.RunWriter(run, MANIFEST):
        pass


def test_writer_removes_only_its_own_temporary_files(run: Path) -> None:
    (run / "notes").mkdir()
    (run / "notes" / ".draft.tmp").write_text("mine")
    (run / ".run.json.tmp").write_text("left by a killed writer")

    with runs.RunWriter(run, MANIFEST):
        pass

    assert (run / "notes" / ".draft.tmp").exists()
    assert not (run / ".run.json.tmp").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop"])
@pytest.mark.parametrize("name", ["run.json", "predictions/alpha.causal.parquet"])
def test_only_regular_files_are_read(run: Path, name: str, kind: str) -> None:
    (run / name).unlink()
    if kind == "fifo":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    elif kind == "device":
        (run / name).symlink_to("/dev/zero")
    else:
        (run / name).symlink_to(run / name)

    assert app.run(["report", str(run)]) == RunError.exit_code


def test_huge_sparse_file_is_refused(run: Path) -> None:
    os.truncate(run / "run.json", 1 << 40)

    with pytest.raises(RunError, match="larger than"):
        runs.open_run(run)


def test_atomic_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()

    with pytest.raises(RunError):
        runs.write_atomically(target, b"data")

    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def make_special_file(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    else:
        path.symlink_to("/proc/self/fd/1")


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "standard output"])
def test_special_file_is_not_replaced_by_an_output(
    run: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, `--html /dev/null` would replace the device by a page."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    make_special_file(target := tmp_path / "out.html", kind)
    before = target.lstat()

    assert app.run(["report", str(run), "--html", str(target)]) == RunError.exit_code

    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "run"]


DAMAGES = {
    "400 digits": lambda doc: doc["cells"][0]["summary"]["headline"].update(value=10**400),
    "400 digits, n": lambda doc: doc["cells"][0]["summary"]["headline"].update(n=10**400),
    "negative n": lambda doc: doc["cells"][0]["summary"]["headline"].update(n=-1),
    "seed": lambda doc: doc["cells"][0].update(seed=10**400),
    "schema": lambda doc: doc.update(schema=10**400),
    "null suite": lambda doc: doc["cells"][0].update(suite=None),
    "empty suite": lambda doc: doc["cells"][0].update(suite="", method="", key=""),
    "cells as object": lambda doc: doc.update(cells={}),
    "cell as list": lambda doc: doc.update(cells=[[]]),
    "NUL in the name": lambda doc: doc["cells"][0].update(predictions="predictions/a\0.parquet"),
    "long name": lambda doc: doc["cells"][0].update(
        predictions=f"predictions/{'a' * 5000}.parquet"
    ),
    "path out": lambda doc: doc["cells"][0].update(predictions="predictions/../../x.parquet"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_wrong_value_is_named_with_its_field(
    run: Path, capsys: pytest.CaptureFixture[str], damage
) -> None:  # type: ignore[no-untyped-def]
    document = json.loads((run / "run.json").read_text())
    damage(document)
    (run / "run.json").write_text(json.dumps(document))

    assert app.run(["report", str(run)]) == RunError.exit_code
    assert str(run) in capsys.readouterr().err.replace("\n", "")


def test_deep_nesting_is_an_error_of_the_file(run: Path) -> None:
    (run / "run.json").write_text('{"schema": 2, "manifest": ' + "[" * 100_000)

    assert app.run(["report", str(run)]) == RunError.exit_code


def test_links_below_the_root_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")

    safe_files.reject_links(tmp_path, tmp_path / "a" / "absent")
    with pytest.raises(OSError, match="link"):
        safe_files.reject_links(tmp_path, tmp_path / "b" / "absent")


def test_table_of_too_many_rows_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = predictions_parquet.encode_predictions(make_predictions("alpha", 0), {"suite": "alpha"})
    monkeypatch.setattr(predictions_parquet, "MAX_ROWS", 24)

    with pytest.raises(RunError, match="25 rows, more than the 24"):
        predictions_parquet.decode_predictions(data, "x.parquet")
