"""The numbers in run.json are those of the predictions, or the run is refused with both."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pair_runs import draw_logprob_gaps, write_toy_run
from prediction_rows import PredictionRow, from_rows

from antlm_bench import runs
from antlm_bench.comparison.summary_check import open_verified_run
from antlm_bench.errors import RunError
from antlm_bench.runs import predictions_parquet, store
from antlm_bench.types import Cell, Estimate, Manifest, Summary

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return Path(write_toy_run(tmp_path / "run", draw_logprob_gaps(20)).path)


def edit(run_dir: Path, change: Change) -> None:
    file = run_dir / "run.json"
    document = json.loads(file.read_text())
    change(document["cells"][0])
    file.write_text(json.dumps(document))


def unbind(run_dir: Path) -> None:
    """Rewrite the predictions as older versions did: without the digest of the summary."""
    run = runs.open_run(run_dir)
    cell = run.cells[0]
    about = predictions_parquet.stored_metadata(runs.read_predictions(run_dir, cell))
    about.pop("summary")
    data = predictions_parquet.encode_predictions(runs.read_predictions(run_dir, cell), about)
    next((run_dir / "predictions").iterdir()).write_bytes(data)
    edit(run_dir, lambda found: found.update(digest=store.hashlib.sha256(data).hexdigest()))


def headline(found: dict[str, Any]) -> dict[str, Any]:
    return found["summary"]["headline"]  # type: ignore[no-any-return]


EDITS: dict[str, Change] = {
    "the headline": lambda c: headline(c).update(value=0.99),
    "an interval of 400 points": lambda c: headline(c).update(low=-4.0, high=4.0),
    "the number of items": lambda c: headline(c).update(n=10**6),
    "a group": lambda c: c["summary"]["groups"][2]["estimate"].update(value=0.999),
}


@pytest.mark.long
@pytest.mark.parametrize("old", [False, True], ids=["bound", "old"])
@pytest.mark.parametrize("what", EDITS)
def test_an_edited_summary_is_refused(run_dir: Path, what: str, old: bool) -> None:
    if old:
        unbind(run_dir)
    true = open_verified_run(run_dir).cells[0].summary.headline
    edit(run_dir, EDITS[what])
    with pytest.raises(
        RunError, match=r"toy \(causal\) does not match its predictions: .* recomputed"
    ) as refused:
        open_verified_run(run_dir)
    assert "--again" in refused.value.hint and refused.value.location.endswith("run.json")
    if what == "the headline":
        assert f"headline 0.99 [{true.low:.4g}, {true.high:.4g}]" in refused.value.message
        assert f"{true.value:.6g} [" in refused.value.message


@pytest.mark.long
def test_views_and_the_metric_s_name_are_bound_too(run_dir: Path) -> None:
    original = (run_dir / "run.json").read_text()
    for change in (
        lambda c: c["summary"].update(metric="acquisition"),
        lambda c: c["summary"].update(macro=[]),
        lambda c: c["summary"]["views"].update(other=headline(c)),
    ):
        edit(run_dir, change)
        with pytest.raises(RunError, match="does not match its predictions"):
            open_verified_run(run_dir)
        (run_dir / "run.json").write_text(original)
    assert open_verified_run(run_dir) == runs.open_run(run_dir)


def test_old_runs_and_edited_notes_still_read(run_dir: Path) -> None:
    edit(run_dir, lambda c: c["summary"]["notes"].append("a remark"))
    assert open_verified_run(run_dir).cells[0].summary.notes[-1] == "a remark"
    unbind(run_dir)
    assert runs.summary_matches(run_dir, runs.open_run(run_dir).cells[0]) is None
    assert open_verified_run(run_dir) == runs.open_run(run_dir)


@pytest.mark.long
def test_an_old_interval_by_another_formula_still_reads(run_dir: Path) -> None:
    unbind(run_dir)
    for low, high, reads in (
        (0.0, 1.0, True),
        (0.6, 0.95, True),
        (0.0, 0.999, False),
        (0.9, 0.7, False),
    ):
        edit(run_dir, lambda c, low=low, high=high: headline(c).update(low=low, high=high))  # type: ignore[misc]
        if reads:
            assert open_verified_run(run_dir).cells[0].summary.headline.low == low
        else:
            with pytest.raises(RunError):
                open_verified_run(run_dir)


def test_a_number_that_predictions_do_not_give_is_bound_to_them(tmp_path: Path) -> None:
    age = Estimate(0.4, 3, 0.1, 0.7)
    predictions = [
        PredictionRow(f"w{n}", 20.0 + n, 0, (-3.0, -2.0), (1, 1), (3, 3)) for n in range(3)
    ]
    cell = Cell(
        "aoa", "causal", "k", {}, Summary("aoa", "causal", "acquisition", (), age, {}, (), ())
    )
    with runs.RunWriter(
        tmp_path, Manifest(runs.SCHEMA_VERSION, {"weights": "w"}, {}, "2026")
    ) as writer:
        writer.write_cell(cell, from_rows(predictions))
    assert math.isclose(open_verified_run(tmp_path).cells[0].summary.headline.value, 0.4)
    edit(tmp_path, lambda c: headline(c).update(value=0.9))
    with pytest.raises(RunError, match=r"aoa \(causal\) does not match its predictions\n"):
        open_verified_run(tmp_path)


def test_score_computes_an_edited_cell_again(run_dir: Path) -> None:
    run = runs.open_run(run_dir)
    cell = run.cells[0]
    with runs.RunWriter(run_dir, run.manifest) as writer:
        assert writer.is_complete(cell.suite, cell.method, cell.key)
    edit(run_dir, EDITS["the headline"])
    with runs.RunWriter(run_dir, run.manifest) as writer:
        assert not writer.is_complete(cell.suite, cell.method, cell.key)


def test_the_bytes_of_predictions_follow_their_numbers_alone(tmp_path: Path) -> None:
    one, other = (write_toy_run(tmp_path / name, draw_logprob_gaps(20)) for name in "ab")
    assert one.cells[0].digest == other.cells[0].digest
    summary = replace(one.cells[0].summary, notes=("another remark",))
    with runs.RunWriter(tmp_path / "c", one.manifest) as writer:
        noted = writer.write_cell(
            replace(one.cells[0], summary=summary), runs.read_predictions(one.path, one.cells[0])
        )
    assert noted.digest == one.cells[0].digest


@pytest.mark.long
@pytest.mark.parametrize("reader", ["report", "export", "curve", "baseline", "webpage"])
def test_every_command_that_shows_a_run_checks_it(
    reader: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from antlm_bench.cli.app import run

    edit(run_dir, EDITS["the headline"])
    commands = {
        "report": ["report", str(run_dir)],
        "webpage": ["report", str(run_dir), "--html", str(tmp_path / "page.html")],
        "export": ["export", str(run_dir), "--format", "csv", "--out", str(tmp_path / "out.csv")],
        "curve": ["curve", str(run_dir)],
        "baseline": ["baseline", "save", str(run_dir), "--to", str(tmp_path / "baselines")],
    }
    assert run(commands[reader]) == RunError.exit_code
    assert "does not match its predictions" in " ".join(capsys.readouterr().err.split())
