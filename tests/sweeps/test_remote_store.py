"""Workers that do not see the sweep's folder: what they read and write goes through the driver."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
from sweeps.fake_units import FAKE_KINDS, make_store, make_unit

from antlm_bench.atomic_files import remove_path
from antlm_bench.commands.sweep import read_sweep_status
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, RunError
from antlm_bench.sweeps import remote_store, scratch_folders, store_server
from antlm_bench.sweeps.input_files import (
    InputFile,
    InputRequest,
    iter_files,
    list_input_files,
)
from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.process_identity import current_process
from antlm_bench.sweeps.references import check_relative_path, resolve_model
from antlm_bench.sweeps.remote_store import RemoteStore, StoreConnections, take_snapshot
from antlm_bench.sweeps.scratch_folders import open_worker_folder
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.store_server import Piece, StoreServer
from antlm_bench.sweeps.unit_kinds import UNIT_KINDS, UnitKind
from antlm_bench.sweeps.units import Unit, UnitFiles
from antlm_bench.sweeps.worker import Worker, WorkerOptions


@pytest.fixture(autouse=True)
def _quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", "0.1")


class Driver:
    """A server, and workers' stores that are connected to it."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.server = StoreServer(folder)
        self.calls: list[str] = []
        """Methods that were called, by all workers."""
        self.num_messages = 0

    def open_store(self, name: str) -> RemoteStore:
        root = self.scratch / name
        (root / "cache").parent.mkdir(parents=True)
        (self.scratch / "cache").mkdir(exist_ok=True)
        (root / "cache").symlink_to(self.scratch / "cache")
        self.server.open_session(name, current_process())
        pairs = [Pipe() for _ in range(4)]
        for ours, _ in pairs:
            threading.Thread(target=self.serve, args=(ours, name), daemon=True).start()
        return RemoteStore(root, StoreConnections([theirs for _, theirs in pairs]))

    def serve(self, connection, name: str) -> None:
        while True:
            calls = connection.recv()
            self.calls += [method for method, _ in calls]
            self.num_messages += 1
            connection.send(self.server.call(name, calls))


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    (tmp_path / "driver").mkdir()
    return Driver(tmp_path / "driver" / "sweep", tmp_path / "scratch")


def run(store: RemoteStore, kinds=FAKE_KINDS, retries: int = 0):
    return Worker(store, store.root.name, kinds, WorkerOptions(retries)).run()


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- units


def test_a_worker_without_the_folder_carries_out_a_sweep(driver: Driver) -> None:
    units = [make_unit("sleep", number, model=f"m{number}") for number in range(5)]
    ids = [unit.id for unit in units]
    last = make_unit("collect", 0, waits_for=ids, parts=ids)
    driver.folder.parent.mkdir(exist_ok=True)
    make_store(driver.folder, *units, last)
    store = driver.open_store("w-0")
    summary = run(store)
    assert (summary.num_done, summary.num_failed) == (6, 0)
    assert (driver.folder / "runs" / "all").read_text() == "0 1 2 3 4"
    assert read_sweep_status(driver.folder).is_complete
    assert list_files(store.folder) == []


def test_a_second_attempt_has_what_the_first_one_left(driver: Driver) -> None:
    make_store(driver.folder, make_unit("fail_once", 1))
    assert run(driver.open_store("w-0"), retries=1).num_done == 1
    [part] = driver.folder.glob("parts/*.2")
    assert list_files(part) == ["first", "number"]


def test_what_an_unfinished_unit_has_written_is_sent_now_and_then(driver: Driver) -> None:
    unit = make_unit("write", 1)
    make_store(driver.folder, unit)
    part = driver.folder / "parts" / f"{unit.id}.1"

    def write_and_wait(unit, context) -> None:
        (context.part_dir / "chunk").write_text("x")
        for _ in range(2000):
            if (part / "chunk").exists():
                return
            threading.Event().wait(0.01)
        raise AssertionError("the chunk was not sent")

    assert run(driver.open_store("w-0"), {"write": UnitKind("write", write_and_wait)}).num_done


def test_a_worker_that_lost_its_claim_publishes_nothing(driver: Driver) -> None:
    unit = make_unit("sleep", 1)
    make_store(driver.folder, unit)
    store = driver.open_store("w-0")
    store.read_sweep()
    store.join("w-0")
    claim = store.claim("g")
    started, part_dir = store.start_attempt(Event("started", unit.id), 0)
    (part_dir / "number").write_text("1")
    (driver.folder / "claims" / "g.2").touch()
    threading.Event().wait(store.heartbeat_seconds)  # a renewal is not repeated for a moment
    assert claim is not None and not store.renew(claim)
    with pytest.raises(RunError, match="another worker took over"):
        store.end_attempt(replace(started, event="done"))
    assert list_files(driver.folder / "parts") == []
    [event] = FolderStore(driver.folder).read_new_events()
    assert event.event == "started"


def test_a_unit_takes_three_messages(driver: Driver) -> None:
    units = [make_unit("sleep", number) for number in range(20)]
    make_store(driver.folder, *units)
    assert run(driver.open_store("w-0")).num_done == 20
    # Its start, its inputs, and its results with its end; heartbeats are few.
    assert driver.num_messages < 3 * 20 + 15


def test_a_driver_that_has_gone_is_a_run_error() -> None:
    ours, theirs = Pipe()
    ours.close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        StoreConnections([theirs]).call(("read_sweep", ()))


# ---- inputs


def read_inputs(unit, context) -> None:
    """Write the texts of the unit's inputs, and the paths under which they were read."""
    paths = [unit.model, *unit.arguments["files"]]
    texts = [Path(path).read_text() for path in paths]
    (context.part_dir / "texts").write_text(" ".join(texts))
    (context.part_dir / "run.json").write_text(json.dumps(paths))


def test_inputs_are_copied_once_per_machine(driver: Driver, tmp_path: Path) -> None:
    inputs = tmp_path / "driver" / "inputs"
    inputs.mkdir(parents=True)
    for number, name in enumerate(("model", "a", "b")):
        (inputs / name).write_text(str(number))
    files = [str(inputs / name) for name in ("a", "b")]
    units = [make_unit("read", n, model=str(inputs / "model"), files=files) for n in range(4)]
    make_store(driver.folder, *units, max_size=1)
    stores = [driver.open_store(name) for name in ("w-0", "w-1")]
    kinds = {"read": UnitKind("read", read_inputs)}
    threads = [threading.Thread(target=run, args=(store, kinds)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts = [driver.folder / "parts" / f"{unit.id}.1" for unit in units]
    assert [(part / "texts").read_text() for part in parts] == ["0 1 2"] * 4
    paths = [str(inputs / "model"), *files]  # as the driver knows them
    assert [json.loads((part / "run.json").read_text()) for part in parts] == [paths] * 4
    assert driver.calls.count("read_piece") == 3


def test_relative_paths_stay_and_hidden_files_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "ckpt" / ".cache").mkdir(parents=True)
    for name in ("ckpt/config.json", "ckpt/.cache/x", "ckpt/.y", "recipe.toml", "teacher.toml"):
        (work / name).touch()
    (work / "recipe.toml").write_text('teacher = "teacher.toml"')
    monkeypatch.chdir(work)
    request = InputRequest(("ckpt", "recipe.toml", "blimp", ".", "../work", "org/model"), ())
    listing = list_input_files(request, tmp_path / "work" / "sweep")
    targets = sorted(file.target for file in listing.files)
    names = ("ckpt/config.json", "recipe.toml", "teacher.toml")
    assert targets == [f"files{work}/{name}" for name in names]
    assert listing.targets == {
        str(work / name): f"files{work}/{name}" for name in ("ckpt", "recipe.toml")
    }


def test_inputs_that_change_are_copied_again(driver: Driver, tmp_path: Path) -> None:
    model = tmp_path / "driver" / "model"
    model.write_text("old")
    store = driver.open_store("w-0")
    local = store.localize(make_unit("read", 1, model=str(model)), UnitFiles())
    assert Path(local.model).read_text() == "old"
    model.unlink()
    model.write_text("new")
    other = store.localize(make_unit("read", 1, model=str(model), more="x"), UnitFiles())
    assert Path(other.model).read_text() == "new"
    assert local.model == other.model == f"{store.root}/files{model}"


def test_the_data_of_a_suite_are_copied_with_it(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "driver" / "data"
    folder = tmp_path / "driver" / "mine"
    for path in (data, folder):
        path.mkdir()
    (data / "a.jsonl").write_text("{}")
    (folder / "b.jsonl").write_text("{}")
    text = list_declarations("tasks")["comps"].read_text().partition("[expect]")[0]
    files = '[data]\nwhere = ["{file}"]\n[data.files]\n"a.jsonl" = {}\n"b.jsonl" = {}\n'
    (folder / "mine.toml").write_text(text.replace('"comps"', '"mine"') + files)
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(data))
    store = driver.open_store("w-0")
    suite = str(folder / "mine.toml")
    unit = store.localize(make_unit("score", 1, suite=suite), UnitFiles())
    assert unit.arguments["suite"] == f"{store.root}/files{suite}"
    files = [path for path in list_files(store.root) if not path.startswith("cache")]
    assert files == [
        "data/a.jsonl",
        f"files{folder}/b.jsonl",
        f"files{folder}/mine.toml",
    ]


def test_trained_checkpoints_go_to_other_machines(driver: Driver) -> None:
    training = Unit("train", "pretrain", "recipe", {"out": "models/pretrain/recipe-1"})
    ref = "stage:pretrain/recipe-1/main"
    scoring = Unit("score", "score", ref, {"suite": "nano"}, needs=(training.id,))
    make_store(driver.folder, training, scoring)

    def train(unit, context) -> None:
        folder = context.sweep_dir / unit.arguments["out"]
        if not folder.exists():
            (folder / "state").mkdir(parents=True)
            (folder / "state" / "step").write_text("7")
            raise RunError("stopped on the way")
        step = (folder / "state" / "step").read_text()  # of another machine
        shutil.rmtree(folder / "state")
        (folder / "main").mkdir()
        (folder / "main" / "weights").write_text(f"trained from {step}")

    def score(unit, context) -> None:
        weights = Path(resolve_model(unit.model, context.sweep_dir)) / "weights"
        (context.part_dir / "score").write_text(weights.read_text())

    kinds = {
        "train": replace(UNIT_KINDS["train"], carry_out=train),
        "score": replace(UNIT_KINDS["score"], carry_out=score),
    }
    first = Worker(driver.open_store("w-0"), "w-0", kinds, WorkerOptions(retries=1))
    [group, _] = first.state.sweep.groups
    first._claim = first._heartbeat.claim = first.store.claim(group.id)
    first._run_unit(first.state.units[training.id])
    first.leave()
    assert list_files(driver.folder / "models") == ["pretrain/recipe-1/state/step"]
    assert list_files(first.store.folder) == []
    assert run(driver.open_store("w-1"), kinds, retries=1).num_failed == 0
    assert list_files(driver.folder / "models") == ["pretrain/recipe-1/main/weights"]
    [part] = driver.folder.glob("parts/*/score")
    assert part.read_text() == "trained from 7"


# ---- files in pieces


def test_files_of_any_size_arrive_whole(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (remote_store, store_server):
        monkeypatch.setattr(module, "PIECE_BYTES", 10)
    model = tmp_path / "driver" / "model"
    contents = {name: os.urandom(size) for name, size in (("a", 0), ("b", 10), ("d/c", 95))}
    (model / "d").mkdir(parents=True)
    for name, data in contents.items():
        (model / name).write_bytes(data)

    def copy(unit, context) -> None:
        for name in contents:
            target = context.part_dir / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((Path(unit.model) / name).read_bytes())

    unit = make_unit("copy", 1, model=str(model))
    make_store(driver.folder, unit)
    assert run(driver.open_store("w-0"), {"copy": UnitKind("copy", copy)}).num_done == 1
    part = driver.folder / "parts" / f"{unit.id}.1"
    assert {name: (part / name).read_bytes() for name in list_files(part)} == contents
    assert not list(driver.folder.glob("parts/.*"))


def test_what_is_sent_appears_whole(driver: Driver) -> None:
    make_store(driver.folder)
    driver.server.open_session("w-0", current_process())
    session = driver.server._sessions["w-0"]
    session.join("w-0")
    claim = session.claim("g")
    old = driver.folder / "runs" / "x"
    old.mkdir()
    for name in ("kept", "removed"):
        (old / name).write_text(name)
    session.write_pieces("runs/x", [Piece("new", 0, b"abc")])
    assert list_files(old) == ["kept", "removed"]
    session.commit("runs/x", ["kept"], [Piece("new", 3, b"de")], claim)
    assert list_files(old) == ["kept", "new"]
    assert (old / "new").read_bytes() == b"abcde"


@pytest.mark.parametrize(
    "target", ["../x", "/x", "claims/g.1", "sweep.json", "parts/x", "runs/../claims/g.1", ""]
)
def test_results_are_written_below_the_sweeps_folder_only(driver: Driver, target: str) -> None:
    make_store(driver.folder)
    driver.server.open_session("w-0", current_process())
    before = list_files(driver.folder.parent)
    is_ok, error = driver.server.call("w-0", [("write_pieces", (target, [Piece("f", 0, b"x")]))])
    assert not is_ok and isinstance(error, BenchError)
    assert list_files(driver.folder.parent) == before


def test_only_listed_files_are_read(driver: Driver) -> None:
    make_store(driver.folder)
    driver.server.open_session("w-0", current_process())
    state = Path("/etc/passwd").stat()
    file = InputFile("/etc/passwd", "x", 1, f"{state.st_mtime_ns}-{state.st_ino}")
    is_ok, error = driver.server.call("w-0", [("read_piece", (file, 0))])
    assert not is_ok and "was not listed" in str(error)
    assert not driver.server.call("w-0", [("close_session", ())])[0]
    assert not driver.server.call("w-9", [("read_sweep", ())])[0]


def test_links_to_folders_above_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "model" / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "weights").touch()
    (tmp_path / "model" / "a" / "up").symlink_to(tmp_path / "model")
    (tmp_path / "model" / "b").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "model")
    assert list(iter_files(tmp_path / "model")) == [tmp_path / "model" / "b" / "weights"]


@pytest.mark.parametrize("path", ["", "/a", "a//b", "./a", "a/..", "..", "a\\b", "a\0"])
def test_paths_that_lead_out_are_refused(path: str) -> None:
    with pytest.raises(BenchError, match="not a path below a folder"):
        check_relative_path(path)


# ---- snapshots and temporary folders


def test_a_snapshot_has_a_folder_as_it_was_at_one_moment(tmp_path: Path) -> None:
    folder, ended = tmp_path / "state", threading.Event()
    folder.mkdir()

    def write(number: int) -> None:
        for name in ("a", "b"):
            temporary = tmp_path / "temporary"
            temporary.write_text(str(number))
            temporary.replace(folder / name)

    def write_for_ever() -> None:
        number = 0
        while not ended.wait(0.002):
            number += 1
            write(number)

    write(0)
    writer = threading.Thread(target=write_for_ever)
    writer.start()
    try:
        taken = [take_snapshot(folder, tmp_path / f"copy{index}") for index in range(50)]
    finally:
        ended.set()
        writer.join()
    assert any(taken)
    for index in range(50):
        if taken[index]:
            texts = [(tmp_path / f"copy{index}" / name).read_text() for name in ("a", "b")]
            assert int(texts[0]) - int(texts[1]) in (0, 1)  # "a" is written first


def test_a_snapshot_is_a_copy_where_files_have_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_text("x")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    assert take_snapshot(tmp_path / "state", tmp_path / "copy")
    assert (tmp_path / "copy" / "a").read_text() == "x"


def test_folders_of_killed_workers_are_removed(tmp_path: Path) -> None:
    parent = tmp_path / f"antlm-bench-{os.getuid()}"
    abandoned = parent / "node" / "killed"
    abandoned.mkdir(parents=True)
    (abandoned / "lock").touch()
    (abandoned / "file").touch()
    with open_worker_folder(tmp_path, "node", "w-0") as first:
        assert not abandoned.exists()
        with open_worker_folder(tmp_path, "node", "w-1") as second:
            (second / "cache" / "x").write_text("shared")
            assert (first / "cache" / "x").read_text() == "shared"
        assert first.exists() and not second.exists()
        assert (first / "cache" / "x").exists()
    assert not parent.exists()


def test_an_interrupt_while_folders_are_removed_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupts = [KeyboardInterrupt()]

    def interrupt_once(path: Path) -> None:
        if interrupts:
            raise interrupts.pop()
        remove_path(path)

    with pytest.raises(KeyboardInterrupt), open_worker_folder(tmp_path, "node", "w-0"):
        monkeypatch.setattr(scratch_folders, "remove_path", interrupt_once)
    assert not list(tmp_path.iterdir())


def test_a_link_in_place_of_the_scratch_folder_is_left_alone(tmp_path: Path) -> None:
    treasure = tmp_path / "home" / "project"
    treasure.mkdir(parents=True)
    (treasure / "lock").touch()
    (tmp_path / f"antlm-bench-{os.getuid()}").symlink_to(tmp_path / "home")
    with pytest.raises(RunError, match="another user"), open_worker_folder(tmp_path, "n", "w"):
        pass
    assert (treasure / "lock").exists()


def test_the_worker_is_the_owner_of_its_claims(driver: Driver) -> None:
    make_store(driver.folder)
    driver.open_store("w-0").claim("g")
    owner = FolderStore(driver.folder).read_owner("g.1")
    assert owner is not None and owner.process == current_process()
