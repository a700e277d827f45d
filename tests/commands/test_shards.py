"""`score --shard` and `merge`: shards, put together, are the run of one process, byte by byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import read_results
from score_helpers import make_agreement_rows, write_pairs, write_sentence_pairs

import antlm_bench
from antlm_bench import merge, runs, score
from antlm_bench.cli.app import run as run_cli
from antlm_bench.commands import score_session
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.commands.score_session import ScoreSession
from antlm_bench.errors import DataError, IncompleteError, RunError, UsageError
from antlm_bench.runs.provenance import read_provenance
from antlm_bench.scoring import multiple_choice
from antlm_bench.suites import loader
from antlm_bench.types import Run

Make = Callable[..., Path]
CHUNK_SIZE = 6


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut suites into chunks of six items."""
    monkeypatch.setattr(
        multiple_choice,
        "iter_chunks",
        lambda items, methods: (
            items[start : start + CHUNK_SIZE] for start in range(0, len(items), CHUNK_SIZE)
        ),
    )


@pytest.fixture(scope="module")
def session() -> ScoreSession:
    """A session for all tests, so that a checkpoint is opened once."""
    return ScoreSession()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A suite of 40 pairs: 7 chunks."""
    return write_pairs(tmp_path / "pairs.csv", make_agreement_rows())


def score_shards(
    session: ScoreSession, checkpoint: Path, suite: Path, folder: Path, count: int, **settings: Any
) -> list[Path]:
    """Score all shards of a suite. Return their folders."""
    methods = settings.pop("methods", ())
    folders = [folder / f"shard{index}" for index in range(1, count + 1)]
    for index, out in enumerate(folders, 1):
        options = ScoreOptions(device="cpu", shard=f"{index}/{count}", **settings)
        session.score(str(checkpoint), str(suite), methods, out, options)
    return folders


CASES: dict[str, dict[str, Any]] = {
    "causal": {"kind": "causal"},
    "causal with ties": {"kind": "causal", "ties": "random", "suite": "ties"},
    "clusters": {"kind": "causal", "suite": "clusters"},
    "limit": {"kind": "causal", "limit": 4},
    "masked": {"kind": "masked", "methods": "mlm"},
    "two methods": {"kind": "masked", "methods": ("mlm", "mntp")},
    "all": {"kind": "masked", "methods": "all"},
    "minicons": {"kind": "causal", "engine": "minicons"},
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_merged_shards_are_the_run_of_one_process(
    case: str, make_checkpoint: Make, session: ScoreSession, tmp_path: Path
) -> None:
    settings = dict(CASES[case])
    if settings.get("engine") == "minicons":
        pytest.importorskip("minicons")
    checkpoint = make_checkpoint(settings.pop("kind"))
    suite_kind = settings.pop("suite", "")
    rows = make_agreement_rows()
    if suite_kind == "clusters":
        rows = [{**row, "cluster": str(index // 4)} for index, row in enumerate(rows)]
    if suite_kind == "ties":  # equal texts have equal log-probabilities
        rows = [{**row, "bad": row["good"]} for row in rows]
    suite = write_pairs(tmp_path / "pairs.csv", rows)
    score(str(checkpoint), str(suite), out=tmp_path / "whole", device="cpu", **settings)

    for count in (1, 2, 5):
        parts = score_shards(
            session, checkpoint, suite, tmp_path / str(count), count, **dict(settings)
        )
        merge(parts, tmp_path / f"merged{count}")

        assert read_results(tmp_path / f"merged{count}") == read_results(tmp_path / "whole")


def test_one_session_opens_and_loads_once(
    make_checkpoint: Make, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        return counted

    from antlm_bench.commands import score_session

    monkeypatch.setattr(
        score_session, "open_checkpoint", count("open", score_session.open_checkpoint)
    )
    load = count("load", loader.load_requested_suite)
    monkeypatch.setattr(loader, "load_requested_suite", load)
    new_session = ScoreSession()

    score_shards(new_session, make_checkpoint(), pairs, tmp_path, 3)
    options = ScoreOptions(device="cpu")
    new_session.score(str(make_checkpoint()), str(pairs), (), tmp_path / "run", options)

    assert calls == ["open", "load"]


def test_missing_shard_is_refused_with_its_command(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    first, _second, third = score_shards(session, make_checkpoint(), pairs, tmp_path, 3)

    message = r"no part has shard 2/3 of pairs .causal.: 2 chunks"
    with pytest.raises(IncompleteError, match=message) as caught:
        merge([first, third], tmp_path / "run")

    assert "antlm-bench score" in caught.value.hint and "--shard 2/3 --out DIR" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_missing_suite_of_a_shard_is_named(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    other = write_pairs(tmp_path / "other.csv", make_agreement_rows())
    options = ScoreOptions(device="cpu", shard="1/2")
    session.score(str(make_checkpoint()), str(other), (), parts[0], options)

    with pytest.raises(IncompleteError, match=r"no part has shard 2/2 of other .causal.: 3 chunks"):
        merge(parts, tmp_path / "run")


def test_error_of_all_methods_of_a_suite_is_raised_as_it_is() -> None:
    def fail(method: Any) -> None:
        raise DataError("none of 2 items fits" if method != "mntp" else "another error")

    scorers: list[Any] = [lambda: "causal", lambda: "mlm"]
    with pytest.raises(DataError, match="none of 2 items fits"):
        score_session._score_each(scorers, fail)
    errors = score_session._score_each([*scorers, lambda: "mntp"], fail)
    assert errors == ["none of 2 items fits", "another error"]


def test_damaged_chunk_is_refused_and_scored_again(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    chunk = min((parts[1] / "partial").rglob("*.parquet"))
    chunk.write_bytes(chunk.read_bytes()[:-9])

    with pytest.raises(IncompleteError, match=r"shard 2/2 of pairs .causal. lacks 1 chunk "):
        merge(parts, tmp_path / "run")
    score_shards(session, make_checkpoint(), pairs, tmp_path, 2)

    assert merge(parts, tmp_path / "run")["pairs"].estimate.n == 40


def test_incomplete_parts_can_be_merged_as_far_as_they_go(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    first, _ = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    few = write_sentence_pairs(tmp_path / "few.csv", ("the cat sleeps.", "the cat sleep."))
    whole = session.score(str(make_checkpoint()), str(few), (), tmp_path / "whole")

    with pytest.raises(IncompleteError) as caught:
        merge([first, whole.path], tmp_path / "run", allow_incomplete=True)

    [run] = caught.value.runs
    assert [cell.suite for cell in run] == ["few"]


def test_overlap_is_refused(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    shutil.copytree(parts[0], tmp_path / "copy")

    with pytest.raises(RunError, match=r"chunk 0 of pairs \(causal\) is also in"):
        merge([*parts, tmp_path / "copy"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_of_two_counts_are_refused(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    [half, _] = score_shards(session, make_checkpoint(), pairs, tmp_path / "2", 2)
    [*_, third] = score_shards(session, make_checkpoint(), pairs, tmp_path / "3", 3)

    with pytest.raises(RunError, match="is shard 3/3 here, and shard 1/2 in"):
        merge([half, third], tmp_path / "run")


def test_shards_of_other_settings_are_refused(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    [first, _] = score_shards(session, make_checkpoint(), pairs, tmp_path / "a", 2)
    [_, second] = score_shards(session, make_checkpoint(), pairs, tmp_path / "b", 2, ties="strict")

    with pytest.raises(RunError, match=r"under other settings than in .*: ties"):
        merge([first, second], tmp_path / "run")


def test_shards_of_two_checkpoints_are_refused(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    [first, _] = score_shards(session, make_checkpoint(), pairs, tmp_path / "a", 2)
    [_, second] = score_shards(session, make_checkpoint(seed=1), pairs, tmp_path / "b", 2)

    with pytest.raises(RunError, match="is of another checkpoint"):
        merge([first, second], tmp_path / "run")


def test_changed_suite_file_is_refused(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    write_pairs(pairs, make_agreement_rows(39))

    with pytest.raises(DataError, match="the items of pairs are not those that were scored"):
        merge(parts, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_kinds_of_machines_are_recorded(
    make_checkpoint: Make,
    session: ScoreSession,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from antlm_bench.checkpoints import machine

    [first, _] = score_shards(session, make_checkpoint(), pairs, tmp_path / "a", 2)
    monkeypatch.setattr(machine, "describe_machine_kind", lambda device: {"cpu": "other"})
    [_, second] = score_shards(session, make_checkpoint(), pairs, tmp_path / "b", 2)

    run = merge([first, second], tmp_path / "run")

    machines = run["pairs"].history["machines"]
    assert len(machines) == 2 and machines[1] == {"cpu": "other"}


def test_provenance_of_shards_is_combined(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    shard_records = [record for part in parts for record in read_provenance(part).values()]

    run = merge(parts, tmp_path / "run")

    [record] = read_provenance(run.path).values()
    assert record["shards"] == shard_records and len(shard_records) == 2
    assert record["cpu_seconds"] == pytest.approx(
        sum(each["cpu_seconds"] for each in shard_records), abs=1e-3
    )


@pytest.mark.long
def test_whole_cells_of_several_runs_are_merged(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    """Scored and finetuned, two seeds, two limits: every cell keeps its bytes and its record."""
    checkpoint = str(make_checkpoint())
    options = ScoreOptions(device="cpu")
    train = tmp_path / "train.csv"
    texts = [f"the cat sleeps {number},{'ab'[number % 2]}" for number in range(24)]
    train.write_text("\n".join(["text,label", *texts]))
    parts = [
        session.score(checkpoint, str(pairs), (), tmp_path / "full", options),
        session.score(
            checkpoint, str(pairs), (), tmp_path / "limit", ScoreOptions(device="cpu", limit=4)
        ),
    ]
    for seed in (1, 2):
        parts += antlm_bench.finetune(
            checkpoint,
            str(train),
            valid=str(train),
            seeds=[seed],
            out=tmp_path / f"seed{seed}",
            changes=["epochs=1"],
            device="cpu",
        )

    merge([run.path for run in parts], tmp_path / "run")

    stored = runs.open_stored_run(tmp_path / "run")
    assert {(cell.key, cell.digest) for cell in stored.cells} == {
        (cell.key, cell.digest) for run in parts for cell in run
    }
    assert len(stored.cells) == 4 == len(read_provenance(stored.path))


def test_merging_twice_changes_nothing(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    merge(parts, tmp_path / "run")
    before = read_results(tmp_path / "run")

    merge(parts, tmp_path / "run")

    assert read_results(tmp_path / "run") == before


def test_other_result_in_the_run_folder_is_kept(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path, 2, ties="strict")
    options = ScoreOptions(device="cpu")
    session.score(str(make_checkpoint()), str(pairs), (), tmp_path / "run", options)
    before = read_results(tmp_path / "run")

    with pytest.raises(RunError, match="under other settings"):
        merge(parts, tmp_path / "run")
    assert read_results(tmp_path / "run") == before

    run = merge(parts, tmp_path / "run", replace_cells=True)
    assert run["pairs"].settings["ties"] == "strict"


def test_readers_say_what_a_shard_is(
    make_checkpoint: Make,
    session: ScoreSession,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = score_shards(session, make_checkpoint(), pairs, tmp_path / "parts", 2)

    for argv in (["report", str(parts[0])], ["compare", *map(str, parts)]):
        assert run_cli(argv) == 3
        output = " ".join(capsys.readouterr().err.split())
        assert "this is shard 1/2 of a run: some chunks of pairs (causal)" in output
        assert "antlm-bench merge" in output
    assert run_cli(["report", str(tmp_path / "parts")]) == 3
    output = " ".join(capsys.readouterr().err.split())
    assert "it holds 2 shards of a run" in output and "antlm-bench merge" in output


def test_shard_folder_and_run_folder_exclude_each_other(
    make_checkpoint: Make, session: ScoreSession, pairs: Path, tmp_path: Path
) -> None:
    checkpoint, options = str(make_checkpoint()), ScoreOptions(device="cpu")
    first, second = (ScoreOptions(device="cpu", shard=text) for text in ("1/2", "2/2"))
    [shard, _] = score_shards(session, make_checkpoint(), pairs, tmp_path, 2)
    run = session.score(checkpoint, str(pairs), (), tmp_path / "run", options)

    with pytest.raises(RunError, match="this is shard 1/2 of a run"):
        session.score(checkpoint, str(pairs), (), shard, options)
    with pytest.raises(RunError, match="a shard has a folder of its own"):
        session.score(checkpoint, str(pairs), (), run.path, first)
    with pytest.raises(RunError, match="the folder holds shard 1/2, not 2/2"):
        session.score(checkpoint, str(pairs), (), shard, second)


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_wrong_shards_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a shard"):
        score("no-such-model", "nano", shard=text, out=tmp_path / "run")


def test_commands_score_and_merge(
    make_checkpoint: Make,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["score", "--model", str(make_checkpoint()), "--suite", str(pairs), "--device", "cpu"]
    for index in (1, 2):
        assert run_cli([*words, "--shard", f"{index}/2", "--out", f"parts/{index}"]) == 0
        output = capsys.readouterr().out
        assert f"{index}/2" in output and "antlm-bench merge" in output

    assert run_cli(["merge", "parts", "--out", "run", "--json"]) == 0

    [record] = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert (record["suite"], record["method"], record["items"]) == ("pairs", "causal", 40)
    assert isinstance(antlm_bench.load_run("run"), Run)


def test_shard_without_out_lies_beside_the_run(
    make_checkpoint: Make, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    [run] = score(str(make_checkpoint()), str(pairs), device="cpu", shard="1/2")

    assert Path(run.path).parent == Path("reports")
    assert run.path.endswith(".shard-1-of-2") and not run.cells


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("request", {"ref": 5}),
        ("request", {"unknown": 1}),
        ("conventions", {"bos": 3}),
        ("chunks", [99]),
        ("num_chunks", 0),
        ("settings", []),
    ],
)
def test_wrong_field_of_a_shard_is_refused(
    field_name: str,
    value: object,
    make_checkpoint: Make,
    session: ScoreSession,
    pairs: Path,
    tmp_path: Path,
) -> None:
    [part] = score_shards(session, make_checkpoint(), pairs, tmp_path, 1)
    document = json.loads((part / "shard.json").read_text())
    document["cells"][0][field_name] = value
    (part / "shard.json").write_text(json.dumps(document))

    with pytest.raises(RunError):
        merge(part, tmp_path / "run")
    assert not (tmp_path / "run").exists()
