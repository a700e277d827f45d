"""What replaces something finished, killed before every call that changes files: the old or the new
is there, whole, and the same call afterwards ends as if nothing had happened.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
from prediction_rows import from_rows
from report_runs import make_cell, make_finetuned_cell, write_run

from antlm_bench import atomic_files, runs
from antlm_bench.commands.check import save_baseline
from antlm_bench.commands.export import ExportFormat, export
from antlm_bench.commands.submit import submit
from antlm_bench.exports import leaderboard
from antlm_bench.runs.store import RunWriter
from antlm_bench.suites import loader

KILLED = 99
CHANGING_EVENTS = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.truncate",
    "shutil.rmtree",
    "shutil.copytree",
    "ctypes.dlsym",  # comes before the exchange of two folders
}
Operation = Callable[[Path], Any]
Content = dict[str, bytes]


def call_killed_at(operation: Operation, folder: Path, call: int) -> bool:
    """Run the operation in a forked process that ends before its n-th call that changes files.

    Return whether it ended there; False if there are fewer calls.
    """
    pid = os.fork()
    if not pid:
        remaining = call

        def count_call(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal remaining
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or event in CHANGING_EVENTS:
                remaining -= 1
                if not remaining:
                    os._exit(KILLED)

        def count_sync(descriptor: int) -> None:
            count_call("os.remove", ())

        code = 1
        try:
            sys.addaudithook(count_call)
            os.fsync = count_sync
            operation(folder)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def read_content(folder: Path) -> Content:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Scenario:
    """Something finished, and an operation that replaces it."""

    prepare: Operation
    replace: Operation
    read: Callable[[Path], Any]
    """Returns what a reader sees; fails if that is not whole."""


def read_run(folder: Path) -> list[Any]:
    """Return the numbers of the cells of a run, with their predictions."""
    run = runs.open_stored_run(folder)
    return [
        (cell.suite, cell.seed, cell.summary, runs.read_predictions_table(folder, cell).to_pylist())
        for cell in run
    ]


def write_cells(*cells: tuple[Any, ...], name: str = "") -> Operation:
    return lambda folder: write_run(folder / name, cells, name="model", weights="w")


def rescore_with_chunks(folder: Path) -> None:
    """Replace a cell as `score --again` does."""
    cell, rows = make_cell("blimp", "causal", 9, 20)
    manifest = runs.open_stored_run(folder).manifest
    with RunWriter(folder, manifest) as writer:
        writer.discard_chunks("blimp", "causal")
        writer.save_chunk("blimp", "causal", cell.key, 0, from_rows(rows))
        writer.finish_cell(cell, 1)


def write_two_runs(folder: Path) -> None:
    for name, right in (("first", 5), ("second", 15)):
        write_cells(make_cell("blimp", "causal", right, 20), name=name)(folder)


def prepare_baseline(folder: Path) -> None:
    write_two_runs(folder)
    save_baseline(folder / "first", "main", baselines_dir=folder / "baselines")


def overwrite_baseline(folder: Path) -> None:
    save_baseline(folder / "second", "main", baselines_dir=folder / "baselines", overwrite=True)


def prepare_export(folder: Path) -> None:
    write_two_runs(folder)
    export([folder / "first"], "lm-eval", folder / "out")
    (folder / "out" / "model" / "notes.txt").write_text("the user's", encoding="utf-8")


def export_again(folder: Path) -> None:
    export([folder / "second"], "lm-eval", folder / "out")


def file_scenario(
    write: Callable[[Path, Path], Any], prepare: Operation, name: str = "out"
) -> Scenario:
    """Return a scenario of a file that holds the first run, and then the second.

    name: a glob for a file whose name the operation chooses.
    """

    def write_first(folder: Path) -> None:
        prepare(folder)
        write(folder / "first", folder / "out")

    return Scenario(
        write_first,
        lambda folder: write(folder / "second", folder / "out"),
        lambda folder: [path.read_bytes() for path in folder.glob(name)],
    )


def export_scenario(export_format: ExportFormat, name: str = "out") -> Scenario:
    return file_scenario(lambda run, out: export([run], export_format, out), write_two_runs, name)


def write_submitted_runs(folder: Path) -> None:
    leaderboard_runs.write_final_run(folder / "first", "2025", 3, without="blimp-filtered")
    leaderboard_runs.write_final_run(folder / "second", "2025", 3)


def write_submission(run: Path, out: Path) -> None:
    submit([run], year="2025", track="strict-small", out=out, allow_partial=True)


def write_model(folder: Path, text: str) -> None:
    def write(new: Path) -> None:
        for name in ("config.json", "model.safetensors"):
            (new / name).write_text(text, encoding="utf-8")

    atomic_files.replace_folder(folder / "main", write)


SCENARIOS = {
    "cell": Scenario(
        write_cells(make_cell("blimp", "causal", 5, 20), make_cell("other", "causal", 1, 4)),
        write_cells(make_cell("blimp", "causal", 9, 20)),
        read_run,
    ),
    "limited cell": Scenario(
        write_cells(make_cell("blimp", "causal", 5, 20)),
        write_cells(make_cell("blimp", "causal", 2, 4, ties="wrong")),
        read_run,
    ),
    "cell in chunks": Scenario(
        write_cells(make_cell("blimp", "causal", 5, 20)), rescore_with_chunks, read_run
    ),
    "finetuned cell": Scenario(
        write_cells(make_finetuned_cell("rte", 1, 20), make_finetuned_cell("rte", 2, 21)),
        write_cells(make_finetuned_cell("rte", 1, 30)),
        read_run,
    ),
    "baseline": Scenario(
        prepare_baseline,
        overwrite_baseline,
        lambda folder: read_run(folder / "baselines" / "main"),
    ),
    "export of several files": Scenario(
        prepare_export, export_again, lambda folder: read_content(folder / "out" / "model")
    ),
    "export as csv": export_scenario("csv"),
    "export as model-index": export_scenario("model-index"),
    "export as every-eval-ever": export_scenario("every-eval-ever", "out/*.json"),
    "submission": file_scenario(write_submission, write_submitted_runs),
    "file": Scenario(
        lambda folder: runs.write_atomically(folder / "page.html", b"old" * 1000),
        lambda folder: runs.write_atomically(folder / "page.html", b"new" * 2000),
        lambda folder: (folder / "page.html").read_bytes(),
    ),
    "checkpoint": Scenario(
        lambda folder: write_model(folder, "old"),
        lambda folder: write_model(folder, "new"),
        lambda folder: read_content(folder / "main"),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_call_leaves_the_old_or_the_new(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, 3)
    )
    monkeypatch.setattr(
        loader, "load_suite", lambda name, **_: leaderboard_runs.make_suite(name, 3)
    )
    scenario = SCENARIOS[name]
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    scenario.prepare(prepared)
    whole = shutil.copytree(prepared, tmp_path / "whole")
    old = scenario.read(whole)
    scenario.replace(whole)
    new = scenario.read(whole)
    assert old != new
    calls, outcomes = 0, []
    while True:
        folder = shutil.copytree(prepared, tmp_path / f"{calls}")
        calls += 1
        if not call_killed_at(scenario.replace, folder, calls):
            break
        content = scenario.read(folder)
        assert content in (old, new), f"call {calls}"
        outcomes.append(content == new)
        scenario.replace(folder)
        assert scenario.read(folder) == new
        assert read_content(folder).keys() == read_content(whole).keys(), f"call {calls}"
    assert outcomes == sorted(outcomes) and False in outcomes and len(outcomes) > 3
    assert scenario.read(folder) == new


@pytest.mark.long
def test_without_an_exchange_the_old_folder_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic_files, "_exchange_folders", lambda a, b: False)
    contents = {"old": {"config.json": b"old", "model.safetensors": b"old"}}
    contents["new"] = dict.fromkeys(contents["old"], b"new")
    call = 0
    while True:
        call += 1
        folder = tmp_path / f"{call}"
        folder.mkdir()
        write_model(folder, "old")
        killed = call_killed_at(lambda folder: write_model(folder, "new"), folder, call)
        folders = [path.name for path in folder.iterdir()]
        assert "main" in folders or {".main.old", ".main.new"} <= {*folders}
        with pytest.raises(ZeroDivisionError):  # the next writer fails before it has written
            atomic_files.replace_folder(folder / "main", lambda new: 1 / 0)
        assert read_content(folder / "main") in contents.values()
        assert [path.name for path in folder.iterdir()] == ["main"]
        if not killed:
            break
    assert call > 5


def test_a_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "main").write_text("a file", encoding="utf-8")
    with pytest.raises(NotADirectoryError):
        write_model(tmp_path, "new")
    assert (tmp_path / "main").read_text(encoding="utf-8") == "a file"


def test_equal_predictions_keep_their_file(tmp_path: Path) -> None:
    cell = make_cell("blimp", "causal", 5, 20)
    write_run(tmp_path, [cell])
    before = read_content(tmp_path)
    write_run(tmp_path, [cell])
    assert read_content(tmp_path) == before
