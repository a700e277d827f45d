"""`score --limit` and `finetune --limit-valid`: results of several limits in one run folder."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from pair_runs import make_cell, make_predictions
from prediction_rows import from_rows
from score_helpers import count_work, make_agreement_rows, write_pairs

from antlm_bench import load_run, runs, score
from antlm_bench.cli.app import run
from antlm_bench.commands.check import save_baseline
from antlm_bench.commands.finetune import finetune
from antlm_bench.results.checkpoint_series import load_curves
from antlm_bench.types import Manifest

Make = Callable[..., Path]
OTHERS = "also in this run, and not shown: "


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "agree.csv", make_agreement_rows())


def describe(opened: runs.Run) -> list[tuple[int, str]]:
    """Return (number of items, note on other limits) of each cell."""
    return [
        (cell.estimate.n, "".join(n for n in cell.summary.notes if n.startswith(OTHERS)))
        for cell in opened
    ]


@pytest.mark.long
@pytest.mark.parametrize("order", [(None, 2), (2, None)])
def test_a_limited_result_stands_beside_the_full_one(
    make_checkpoint: Make, suite: Path, tmp_path: Path, order: tuple[int | None, int | None]
) -> None:
    out = tmp_path / "run"
    for limit in order:
        [shown] = score(make_checkpoint(), [str(suite), "nano"], out=out, device="cpu", limit=limit)
        full, limited = ([40, 800], [6, 32])
        assert [cell.estimate.n for cell in shown] == (limited if limit else full)
    assert describe(load_run(out)) == [
        (40, f"{OTHERS}limit 2 (6 items)"),
        (800, f"{OTHERS}limit 2 (32 items)"),
    ]
    assert len(runs.open_stored_run(out).cells) == 4
    assert load_run(out)["agree"].origin == (str(suite),)


@pytest.mark.long
def test_a_limit_above_the_size_is_no_limit(
    make_checkpoint: Make, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    [[full]] = score(make_checkpoint(), str(suite), out=out, device="cpu")
    work = count_work(monkeypatch)
    [[limited]] = score(make_checkpoint(), str(suite), out=out, device="cpu", limit=1000)
    assert limited == full and not work.calls
    assert not any("limit" in note for note in limited.summary.notes)


@pytest.mark.long
def test_replace_leaves_the_result_of_this_limit_alone(
    make_checkpoint: Make, suite: Path, tmp_path: Path
) -> None:
    ask = {"out": tmp_path / "run", "device": "cpu"}
    score(make_checkpoint(), str(suite), **ask)
    score(make_checkpoint(), str(suite), limit=3, **ask)
    [shown] = score(make_checkpoint(), str(suite), limit=2, replace=True, **ask)
    assert describe(shown) == describe(load_run(shown.path)) == [(6, "")]
    files = list((tmp_path / "run" / "predictions").iterdir())
    assert len(files) == 1


@pytest.mark.long
def test_other_settings_replace_a_result_and_are_named(
    make_checkpoint: Make, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = {"out": tmp_path / "run", "device": "cpu"}
    score(make_checkpoint(), str(suite), **ask)
    score(make_checkpoint(), str(suite), limit=2, ties="strict", **ask)
    assert "replaces" not in capsys.readouterr().err
    score(make_checkpoint(), str(suite), ties="strict", **ask)
    err = " ".join(capsys.readouterr().err.split())
    assert "agree (causal): the new score replaces one with other settings: ties" in err


def write_limited_run(folder: Path, words: int = 0) -> Path:
    """Write a run of the suite toy: 20 items, and the first 5 of them under a limit."""
    predictions = make_predictions({"adjunct": [1.0] * 15 + [-1.0] * 5})
    model = {"name": folder.name, "weights": f"w{words}", "words_seen": words}
    with runs.RunWriter(folder, Manifest(2, model, {}, "")) as writer:
        for cell, rows in (make_cell(predictions), make_cell(predictions[:5], limit=5)):
            writer.write_cell(cell, from_rows(rows))
    return folder


def test_readers_take_the_full_result_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_limited_run(tmp_path / "run")
    note = f"{OTHERS}limit 5 (5 items)"
    for argv in (
        ["report", str(folder)],
        ["compare", str(folder), str(folder)],
        ["check", str(folder), "--against", str(folder)],
    ):
        assert run(argv) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert note in out and "75.0" in out, argv


def test_a_baseline_keeps_the_results_of_all_limits(tmp_path: Path) -> None:
    folder = write_limited_run(tmp_path / "run")
    saved = save_baseline(folder, "base", baselines_dir=tmp_path / "baselines")
    assert sorted(str(cell.limit) for cell in runs.open_stored_run(saved)) == ["5", "None"]


@pytest.mark.long
def test_a_finished_limited_suite_keeps_the_chunks_of_a_full_one(tmp_path: Path) -> None:
    cell, rows = make_cell(make_predictions({"adjunct": [1.0] * 4}), limit=2)
    with runs.RunWriter(tmp_path / "run", Manifest(2, {"weights": "w"}, {}, "")) as writer:
        writer.save_chunk("toy", "causal", "full", 0, from_rows(rows))
        writer.save_chunk("toy", "causal", cell.key, 0, from_rows(rows))
        writer.finish_cell(cell, 1)
        assert writer.load_chunk("toy", "causal", "full", 0) is not None
        assert writer.load_chunk("toy", "causal", cell.key, 0) is None


@pytest.mark.long
def test_a_limited_task_stands_beside_the_full_one(make_checkpoint: Make, tmp_path: Path) -> None:
    for name, count in (("train", 24), ("valid", 8)):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            rows = [(f"the {'cat dog'.split()[i % 2]} sees {i}", "ab"[i % 2]) for i in range(count)]  # noqa: SIM905
            csv.writer(file).writerows([("text", "label"), *rows])
    ask = {
        "out": tmp_path / "run", "device": "cpu", "valid": str(tmp_path / "valid.csv"),
        "changes": ["epochs=1", "max_length=16"],
    }  # fmt: skip
    model, train = str(make_checkpoint()), str(tmp_path / "train.csv")
    finetune(model, train, seeds=[1, 2], **ask)
    [limited] = finetune(model, train, seeds=[1], limit_valid={"": 3}, **ask)
    assert describe(limited) == [(3, f"{OTHERS}all 8 items")]
    [same] = finetune(model, train, seeds=[1], limit_valid={"": 100}, **ask)
    assert describe(same) == [(8, f"{OTHERS}limits none / 3 (3 items)")] * 2


def test_a_curve_names_limits(tmp_path: Path) -> None:
    folders = [write_limited_run(tmp_path / f"r{n}", words=n * 10**6) for n in (1, 2)]
    [curve], _ = load_curves(folders)
    assert [point.estimate.n for point in curve.points] == [20, 20]
    assert curve.points[0].caveats == (f"{OTHERS}limit 5 (5 items)",)
