"""Runs in object stores: computed in a local folder, published whole, read from a URL.

fsspec's memory:// stands for the store; test_s3.py uses a real server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from pair_runs import (
    TOY_MANIFEST,
    add_toy_cell,
    make_cell,
    make_predictions,
    publish_toy_cell,
    write_run,
)
from prediction_rows import from_rows
from score_helpers import count_work, make_agreement_rows, write_pairs, write_sentence_pairs

import antlm_bench
from antlm_bench import runs, score
from antlm_bench.cli.app import run as run_cli
from antlm_bench.commands.published_runs import open_output
from antlm_bench.errors import IncompleteError, RunError, UsageError
from antlm_bench.results.checkpoint_series import expand_run_dirs
from antlm_bench.runs.object_stores import ObjectStore

Make = Callable[..., Path]
URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def _empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def list_store() -> list[str]:
    return sorted(fsspec.filesystem("memory").store)


def list_suites() -> list[str]:
    return [cell.suite for cell in runs.open_run(URL)]


def test_a_path_is_the_folder_itself(tmp_path: Path) -> None:
    with open_output(tmp_path, "w") as run_dir:
        assert run_dir == tmp_path


def test_a_published_run_reads_like_the_local_one(tmp_path: Path) -> None:
    publish_toy_cell(URL, "a")
    add_toy_cell(tmp_path / "local", "a")
    published, local = runs.open_run(URL), runs.open_run(tmp_path / "local")
    [cell], [local_cell] = published.cells, local.cells
    assert published.manifest == local.manifest
    assert cell.summary == local_cell.summary
    assert (
        runs.read_predictions_bytes(published.path, cell)[1]
        == (runs.read_predictions_bytes(local.path, local_cell)[1])
    )


def test_a_second_command_adds_to_the_published_run() -> None:
    publish_toy_cell(URL, "a")
    publish_toy_cell(URL, "b")
    assert list_suites() == ["a", "b"]


def test_another_machine_adds_to_the_published_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_toy_cell(URL, "a")
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "other cache"))
    publish_toy_cell(URL, "b")
    assert list_suites() == ["a", "b"]


def test_files_that_run_json_no_longer_names_are_deleted() -> None:
    publish_toy_cell(URL, "a", (1, -1))
    [old] = [name for name in list_store() if "predictions" in name]
    publish_toy_cell(URL, "a", (1, 1))
    names = [name for name in list_store() if "predictions" in name]
    assert len(names) == 1
    assert names != [old]


def test_nothing_is_visible_until_run_json_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    publish_toy_cell(URL, "a", (1, -1))

    def fail(*args: object, **options: object) -> None:
        raise OSError("connection lost")

    with monkeypatch.context() as context:
        context.setattr(fsspec.get_filesystem_class("memory"), "pipe_file", fail)
        with pytest.raises(RunError, match="bucket/run: cannot be written: connection lost"):
            publish_toy_cell(URL, "a", (1, 1))
    run = runs.open_run(URL)
    assert runs.read_predictions(run.path, run.cells[0]).table.num_rows == 2
    assert run.cells[0].key == "a(1, -1)"


def test_a_command_that_was_stopped_continues() -> None:
    with pytest.raises(KeyboardInterrupt), open_output(Path(URL), "w") as run_dir:
        add_toy_cell(run_dir, "a")
        raise KeyboardInterrupt
    assert list_store() == []
    with open_output(Path(URL), "w") as run_dir:
        assert [cell.suite for cell in runs.open_run(run_dir)] == ["a"]
    assert list_suites() == ["a"]


def test_chunks_of_a_stopped_command_survive_another_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = from_rows(make_predictions({"p": (1, -1)}))
    with pytest.raises(KeyboardInterrupt), open_output(Path(URL), "w") as run_dir:
        with runs.RunWriter(run_dir, TOY_MANIFEST) as writer:
            writer.save_chunk("a", "causal", "k", 0, predictions)
        raise KeyboardInterrupt
    with monkeypatch.context() as context:
        context.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "other cache"))
        publish_toy_cell(URL, "b")
    with (
        open_output(Path(URL), "w") as run_dir,
        runs.RunWriter(run_dir, TOY_MANIFEST) as writer,
    ):
        chunk = writer.load_chunk("a", "causal", "k", 0)
        assert chunk is not None
        assert chunk.table.equals(predictions.table)
        assert [cell.suite for cell in writer.cells] == ["b"]


def test_the_finished_cells_of_an_incomplete_run_are_published() -> None:
    with pytest.raises(IncompleteError), open_output(Path(URL), "w") as run_dir:
        add_toy_cell(run_dir, "a")
        raise IncompleteError("b failed")
    assert list_suites() == ["a"]


def test_a_run_that_changed_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_toy_cell(URL, "a")
    with (
        pytest.raises(RunError, match="another process has written this run") as caught,
        open_output(Path(URL), "w") as run_dir,
    ):
        add_toy_cell(run_dir, "b")
        with monkeypatch.context() as context:
            context.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "other cache"))
            publish_toy_cell(URL, "c")
    assert caught.value.location == URL
    assert list_suites() == ["a", "c"]
    with open_output(Path(URL), "w"):
        pass  # the same command again, which finds b complete
    assert list_suites() == ["a", "c", "b"]


def test_two_first_publications_damage_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(RunError, match="another process has written this run"),
        open_output(Path(URL), "w") as run_dir,
    ):
        add_toy_cell(run_dir, "a", (1, 1, 1))
        with monkeypatch.context() as context:
            context.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "other cache"))
            publish_toy_cell(URL, "a", (1, -1))
    run = runs.open_run(URL)
    assert len(runs.read_predictions(run.path, run.cells[0]).table) == 2


def test_a_deleted_run_is_not_brought_back_by_the_cache() -> None:
    publish_toy_cell(URL, "a")
    fsspec.filesystem("memory").rm("/bucket/run", recursive=True)
    publish_toy_cell(URL, "b")
    assert list_suites() == ["b"]


def test_another_process_of_this_machine_is_refused() -> None:
    with (
        open_output(Path(URL), "w"),
        pytest.raises(RunError, match="is writing this run") as caught,
        open_output(Path(URL), "w"),
    ):
        pass
    assert caught.value.location == URL


def test_the_run_of_another_checkpoint_is_refused_by_its_url() -> None:
    publish_toy_cell(URL, "a")
    with (
        pytest.raises(RunError, match="run of another checkpoint") as caught,
        open_output(Path(URL), "other") as run_dir,
        runs.RunWriter(run_dir, replace(TOY_MANIFEST, model={"name": "b", "weights": "other"})),
    ):
        pass
    assert caught.value.location == URL
    assert list_suites() == ["a"]


def test_a_reader_sees_what_was_published_last() -> None:
    publish_toy_cell(URL, "a")
    assert list_suites() == ["a"]
    publish_toy_cell(URL, "b")
    assert list_suites() == ["a", "b"]


def test_a_url_of_a_folder_of_runs_is_expanded() -> None:
    for name in ("chck_2M", "chck_10M"):
        with open_output(Path(f"memory://bucket/runs/{name}"), "w") as run_dir:
            add_toy_cell(run_dir, "a")
    run_dirs = expand_run_dirs(["memory://bucket/runs"])
    assert [path.name for path in run_dirs] == ["chck_2M", "chck_10M"]


def test_only_files_of_runs_are_downloaded() -> None:
    publish_toy_cell(URL, "a")
    store = fsspec.filesystem("memory")
    for name in ("notes.txt", "../escape/run.json", "a/../../run.json", "predictions/x/y.parquet"):
        store.store[f"/bucket/run/{name}"] = store.store["/bucket/run/run.json"]
    names = ObjectStore(URL).list_files()
    assert [name for name in names if not name.startswith("predictions/a@")] == ["run.json"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nostore://bucket/run", "unknown protocol 'nostore'"),
        ("https://example.org/run", "this is not an object store"),
        ("file:///tmp/run", "this is not an object store"),
        ("memory://bucket/../run", "this is not an object store"),
        ("zip://x::memory://bucket/run", "this is not an object store"),
    ],
)
def test_a_url_without_an_object_store_is_a_usage_error(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ObjectStore(url)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    protocol: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ImportError(f"Install {package}")

    monkeypatch.setattr(fsspec, "url_to_fs", fail)
    with pytest.raises(
        UsageError, match=f"{protocol}://bucket/run: .* package {package}"
    ) as caught:
        ObjectStore(f"{protocol}://bucket/run")
    assert caught.value.hint == f"pip install {package}"


def test_a_url_without_a_run_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert run_cli(["report", "memory://bucket/empty"]) == 3
    assert "memory://bucket/empty: no run here" in capsys.readouterr().err


def test_report_compare_check_and_export_read_urls(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    urls = []
    for name, gaps in (("a", (1.0, 2.0, -1.0, 3.0)), ("b", (1.0, -2.0, -1.0, 3.0))):
        cell = make_cell(make_predictions({"p": gaps}))
        local = write_run(tmp_path / name, cell, name=name)
        urls.append(f"memory://bucket/{name}")
        with (
            open_output(Path(urls[-1]), name) as run_dir,
            runs.RunWriter(run_dir, local.manifest) as writer,
        ):
            writer.write_cell(cell[0], from_rows(cell[1]))
    commands = (
        ["report", *urls, "--csv"],
        ["compare", *urls, "--csv"],
        ["check", urls[1], "--against", urls[0], "--csv"],
        ["export", urls[0], "--format", "csv", "--out", str(tmp_path / "items.csv")],
    )
    for command in commands:
        outputs = []
        for argv in (command, [word.replace("memory://bucket", str(tmp_path)) for word in command]):
            assert run_cli(argv) == 0, capsys.readouterr().err
            outputs.append(capsys.readouterr().out)
        assert outputs[0].replace("memory://bucket", str(tmp_path)) == outputs[1]


# ---- with a model
# -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_score_publishes_the_run_that_it_would_write(
    make_checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    suite = write_pairs(tmp_path / "agree.csv", make_agreement_rows())
    argv = ["score", "--model", str(make_checkpoint()), "--suite", str(suite), "--device", "cpu"]
    assert run_cli([*argv, "--out", URL]) == run_cli([*argv, "--out", str(tmp_path / "run")]) == 0
    published, local = runs.open_run(URL), runs.open_run(tmp_path / "run")
    assert [replace(cell, file="") for cell in published] == [
        replace(cell, file="") for cell in local
    ]
    work = count_work(monkeypatch)
    assert run_cli([*argv, "--out", URL]) == 0
    assert work.calls == 0
    capsys.readouterr()
    assert run_cli(["report", URL, "--provenance", "--csv"]) == 0
    assert "causal-0,agree (causal)," in capsys.readouterr().out


@pytest.mark.long
def test_several_checkpoints_are_published_one_by_one(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    pairs = write_sentence_pairs(tmp_path / "pairs.csv", ("the cat sleeps", "the cat sleep"))
    models = [make_checkpoint(seed=seed) for seed in (0, 1)]
    score(models, str(pairs), out="memory://bucket/runs", device="cpu")
    assert len(expand_run_dirs(["memory://bucket/runs"])) == 2


@pytest.mark.long
def test_finetune_publishes_its_run(make_checkpoint: Make, tmp_path: Path) -> None:
    rows = [("the cat sees himself", "reflexive"), ("the cat sees the dog", "plain")]
    for name in ("train.csv", "valid.csv"):
        lines = ["text,label", *(f"{text},{label}" for text, label in rows * 10)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    settings = {"valid": str(tmp_path / "valid.csv"), "frozen": True, "device": "cpu"}
    antlm_bench.finetune(str(make_checkpoint()), str(tmp_path / "train.csv"), out=URL, **settings)
    assert [(cell.suite, cell.method) for cell in runs.open_run(URL)] == [
        ("train", "frozen-causal")
    ]


@pytest.mark.long
def test_shards_are_merged_into_an_object_store(make_checkpoint: Make, tmp_path: Path) -> None:
    suite = write_pairs(tmp_path / "agree.csv", make_agreement_rows())
    for shard in ("1/2", "2/2"):
        part = tmp_path / "parts" / shard[0]
        score(make_checkpoint(), str(suite), out=part, shard=shard, device="cpu")
    antlm_bench.merge(str(tmp_path / "parts"), URL)
    score(make_checkpoint(), str(suite), out=tmp_path / "run", device="cpu")
    [published], [local] = runs.open_run(URL), runs.open_run(tmp_path / "run")
    assert (published.key, published.digest) == (local.key, local.digest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "1/2"], "--shard: 1/2 cannot be combined with --out memory://bucket/run"),
        (["--out", "nostore://b/x"], "unknown protocol 'nostore'"),
    ],
)
def test_score_refuses_wrong_outputs_before_it_opens_a_model(
    options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    out = [] if "--out" in options else ["--out", URL]
    assert run_cli(["score", "--model", "gpt2", "--suite", "nano", *out, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
