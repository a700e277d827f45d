"""What a run folder must survive: damage, leavings of killed writers, a full disk, a wrong place;
and what it keeps.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from killable_run import CHUNKS, KEY, MANIFEST, make_predictions, write_run
from prediction_rows import read_rows, to_rows

from antlm_bench import runs
from antlm_bench.errors import RunError
from antlm_bench.predictions import Predictions
from antlm_bench.types import Cell, Estimate, Run, Summary

SUMMARY = Summary(
    "alpha", "causal", "accuracy", (), Estimate(0.5, 10, 0.4, 0.6, {"tie": 1}), {}, ()
)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    write_run(str(tmp_path / "run"))
    return tmp_path / "run"


def add(
    path: Path, suite: str, key: str, predictions: Predictions, summary: Summary = SUMMARY
) -> Cell:
    with runs.RunWriter(path, MANIFEST) as writer:
        writer.save_chunk(suite, "causal", key, 0, predictions)
        return writer.finish_cell(Cell(suite, "causal", key, {}, summary), 1)


def test_what_was_written_is_read(finished: Path) -> None:
    run = runs.open_run(finished)
    assert isinstance(run, Run) and run.manifest == MANIFEST
    assert [(cell.suite, cell.method, cell.key) for cell in run] == [
        ("alpha", "causal", KEY),
        ("beta", "causal", KEY),
    ]
    everything = [
        row for index in range(CHUNKS) for row in to_rows(make_predictions("alpha", index))
    ]
    assert read_rows(run.path, run.cells[0]) == everything
    assert runs.read_predictions_table(run.path, run.cells[0])["id"].to_pylist() == [
        p.id for p in everything
    ]


def test_predictions_are_plain_parquet_for_pandas(finished: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(finished / "predictions" / "alpha.causal.parquet")
    columns = ["id", "gold", "pred", "scores", "tokens", "characters", "flags", "labels"]
    assert list(frame.columns) == columns
    assert list(frame.scores[0]) == list(to_rows(make_predictions("alpha", 0))[0].scores)
    assert frame.labels[0] == {"phenomenon": "alpha", "paradigm": "p0"}


def test_bytes_do_not_depend_on_the_chunks(tmp_path: Path) -> None:
    predictions = make_predictions("alpha", 0)
    with runs.RunWriter(tmp_path / "a", MANIFEST) as writer:
        for index in range(5):
            writer.save_chunk(
                "alpha", "causal", "k", index, predictions.take(range(5 * index, 5 * index + 5))
            )
        several = writer.finish_cell(Cell("alpha", "causal", "k", {}, SUMMARY), 5)
    assert add(tmp_path / "b", "alpha", "k", predictions).digest == several.digest


def test_a_stale_cell_is_replaced_in_its_place_and_others_stay(finished: Path) -> None:
    add(finished, "alpha", "new", make_predictions("alpha", 1), replace(SUMMARY, notes=("new",)))
    run = runs.open_run(finished)
    assert [(cell.suite, cell.key) for cell in run] == [("alpha", "new"), ("beta", KEY)]
    assert read_rows(finished, run.cells[0]) == to_rows(make_predictions("alpha", 1))
    with runs.RunWriter(finished, MANIFEST) as writer:
        assert not writer.is_complete("alpha", "causal", KEY)
        assert writer.is_complete("beta", "causal", KEY)


def test_discard_forgets_the_chunks_of_one_cell_only(tmp_path: Path) -> None:
    with runs.RunWriter(tmp_path, MANIFEST) as writer:
        for method in ("mlm", "mlm-l2r"):
            writer.save_chunk("alpha", method, "k", 0, make_predictions("alpha", 0))
        writer.discard_chunks("alpha", "mlm")
        assert writer.load_chunk("alpha", "mlm", "k", 0) is None
        assert writer.load_chunk("alpha", "mlm-l2r", "k", 0).table.equals(
            make_predictions("alpha", 0).table
        )


def damage_cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flip(data: bytes) -> bytes:
    return data[:60] + bytes([data[60] ^ 1]) + data[61:]


def damage_empty(_: bytes) -> bytes:
    return b""


DAMAGES = [damage_cut, damage_flip, damage_empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_never_trusted(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with runs.RunWriter(tmp_path, MANIFEST) as writer:
        writer.save_chunk("alpha", "causal", "k", 0, make_predictions("alpha", 0))
        (path,) = (tmp_path / "partial").rglob("*.parquet")
        path.write_bytes(damage(path.read_bytes()))
        assert writer.load_chunk("alpha", "causal", "k", 0) is None
        assert not path.exists()
        with pytest.raises(RunError, match="chunk 0 of alpha is missing"):
            writer.finish_cell(Cell("alpha", "causal", "k", {}, SUMMARY), 1)


def test_a_chunk_of_another_key_or_place_is_never_trusted(tmp_path: Path) -> None:
    with runs.RunWriter(tmp_path, MANIFEST) as writer:
        writer.save_chunk("alpha", "causal", "old", 0, make_predictions("alpha", 0))
        writer.save_chunk("alpha", "causal", "new", 1, make_predictions("alpha", 1))
        (old,) = (tmp_path / "partial" / "alpha.causal.old").iterdir()
        old.rename(tmp_path / "partial" / "alpha.causal.new" / old.name)
        assert (
            writer.load_chunk("alpha", "causal", "new", 0) is None
        )  # says it was written for another key
        assert writer.load_chunk("alpha", "causal", "new", 1).table.equals(
            make_predictions("alpha", 1).table
        )
        assert writer.load_chunk("alpha", "causal", "new", 2) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_predictions_fail_to_read_and_are_written_again(
    finished: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = finished / "predictions" / "alpha.causal.parquet"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.raises(RunError, match=r"alpha\.causal\.parquet"):
        read_rows(finished, runs.open_run(finished).cells[0])
    assert write_run(str(finished)) == CHUNKS  # only this suite is computed again
    assert file.read_bytes() == whole


def test_missing_predictions_are_an_error_that_says_so(finished: Path) -> None:
    (finished / "predictions" / "alpha.causal.parquet").unlink()
    with pytest.raises(RunError, match="missing"):
        read_rows(finished, runs.open_run(finished).cells[0])


def test_a_folder_keeps_its_checkpoint_and_its_creation_time(finished: Path) -> None:
    with (
        pytest.raises(RunError, match="another checkpoint"),
        runs.RunWriter(finished, replace(MANIFEST, model={"name": "other", "weights": "def"})),
    ):
        pass
    with runs.RunWriter(
        finished, replace(MANIFEST, created="2030-01-01", software={"torch": "9"})
    ) as writer:
        writer.save_chunk("gamma", "causal", "k", 0, make_predictions("gamma", 0))
        writer.finish_cell(Cell("gamma", "causal", "k", {}, SUMMARY), 1)
    manifest = runs.open_run(finished).manifest
    assert (manifest.created, manifest.software) == (MANIFEST.created, {"torch": "9"})


def test_hostile_names_stay_inside_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.mkdir()
    for suite in ("../../precious", "..", ".", "a/b", "lm-eval:piqa", "ä\n", "*", "[x]", "C:\\x"):
        cell = add(tmp_path / "runs" / "run", suite, "../..", make_predictions("alpha", 0))
        assert read_rows(tmp_path / "runs" / "run", cell) == to_rows(make_predictions("alpha", 0))
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "runs"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert len(runs.open_run(tmp_path / "runs" / "run").cells) == 9


def test_a_leftover_of_a_killed_write_is_swept_away(finished: Path) -> None:
    (finished / "predictions" / ".alpha.causal.parquet.tmp").write_bytes(b"half")
    assert write_run(str(finished)) == 0
    assert not list(finished.rglob("*.tmp"))


# ---- places that cannot be written
# ------------------------------------------------------------------------------


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for place in (file, file / "below"):
        with (
            pytest.raises(RunError, match="not a folder") as caught,
            runs.RunWriter(place, MANIFEST),
        ):
            pass
        assert "--out" in caught.value.hint
    assert file.read_text() == "precious"


@pytest.mark.long
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("moment", [1, 2, 5, 8, 9, 10])
def test_a_failing_disk_is_a_clear_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str, moment: int
) -> None:
    real, calls = os.fsync, iter(range(1, 1000))

    def failing(handle: int) -> None:
        if next(calls) >= moment:
            raise OSError(code, os.strerror(code))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(RunError, match=words):
            write_run(str(tmp_path))
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / ".lock").exists()
    stored = len(list((tmp_path / "partial").rglob("*.parquet")))
    assert write_run(str(tmp_path)) == 2 * CHUNKS - stored
    assert len(runs.open_run(tmp_path).cells) == 2


LIMITED = """
import resource, sys
sys.path.insert(0, {here!r})
from killable_run import write_run
from antlm_bench.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write_run({folder!r})
except RunError as error:
    print(error)
"""


@pytest.mark.long
@pytest.mark.parametrize("limit", [0, 100, 4000])
def test_a_write_that_the_system_really_cuts_short(tmp_path: Path, limit: int) -> None:
    script = LIMITED.format(here=str(Path(__file__).parent), limit=limit, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "file-size limit" in done.stdout
    assert not list(tmp_path.rglob("*.tmp"))
    write_run(str(tmp_path))
    assert len(runs.open_run(tmp_path).cells) == 2


NOBODY = """
import fcntl, os, sys
sys.path.insert(0, {here!r})
from killable_run import write_run
from antlm_bench.errors import RunError
os.setuid({user})
try:
    write_run({folder!r})
except RunError as error:
    print(error)
"""


@pytest.mark.long
def test_a_read_only_folder_is_refused() -> None:
    user = 65534 if os.getuid() == 0 else os.getuid()  # root may write anywhere: become nobody
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o555)
        for target in (place, f"{place}/below"):
            script = NOBODY.format(here=str(Path(__file__).parent), user=user, folder=target)
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=True
            )
            assert "permission denied" in done.stdout and "--out" in done.stdout
        assert not list(Path(place).iterdir())
        Path(place).chmod(0o755)


# ---- folders that cannot be read
# --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("empty", "give the folder that holds run.json"),
        ("file", "give the folder that holds run.json"),
        ("absent", "there is no such folder"),
        ("emtpy", "there is no such folder; did you mean 'empty'?"),
        ("absent/run", "there is no folder '{tmp_path}/absent'"),
    ],
)
def test_what_is_no_run_folder_is_said_to_be_none(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="not a run folder") as error:
        runs.open_run(tmp_path / name)
    assert error.value.hint == hint.format(tmp_path=tmp_path)


def test_a_name_with_a_nul_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the name has a NUL character"):
        runs.open_run(tmp_path / "a\0b")


def test_a_run_that_was_only_begun_is_said_to_be_resumable(tmp_path: Path) -> None:
    with runs.RunWriter(tmp_path, MANIFEST) as writer:
        writer.save_chunk("alpha", "causal", "k", 0, make_predictions("alpha", 0))
    with pytest.raises(RunError, match="goes on where it stopped"):
        runs.open_run(tmp_path)


def test_a_damaged_document_is_refused_by_the_writer_and_kept(finished: Path) -> None:
    (finished / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json"), runs.RunWriter(finished, MANIFEST):
        pass
    assert (finished / "run.json").read_text() == "{" and not (finished / ".lock").exists()


def test_a_parquet_file_of_other_columns_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"id": ["a"], "gold": ["text"]}), sink)
    with pytest.raises(RunError, match="column gold should hold double, holds string"):
        runs.predictions_parquet.decode_predictions(bytes(sink.getvalue()), "here")


def test_discarding_chunks_keeps_those_of_longer_names(tmp_path: Path) -> None:
    """A file x.mlm.csv is the suite x.mlm."""
    with runs.RunWriter(tmp_path / "run", MANIFEST) as writer:
        for suite, method in (("x", "mlm"), ("x.mlm", "causal")):
            writer.save_chunk(suite, method, KEY, 0, make_predictions("alpha", 0))

        writer.discard_chunks("x", "mlm")

        assert writer.load_chunk("x", "mlm", KEY, 0) is None
        assert writer.load_chunk("x.mlm", "causal", KEY, 0) is not None
