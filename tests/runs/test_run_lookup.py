"""A run is indexed by suite, method and seed, and gives its predictions as columns."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from killable_run import CHUNKS, make_predictions, write_run
from prediction_rows import to_rows

from antlm_bench import runs
from antlm_bench.errors import MissingPackage, RunError, UnknownCell, UsageError
from antlm_bench.notebook import ArrowTable, to_html_table
from antlm_bench.types import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    write_run(str(tmp_path / "run"))
    return runs.open_run(tmp_path / "run")


def with_seeds(run: Run) -> Run:
    """The suite `alpha` by two methods, and finetuned with two seeds."""
    cell = run["alpha"]
    others = [replace(cell, method="mlm")]
    others += [replace(cell, method="finetune-full", seed=seed) for seed in (1, 2)]
    return replace(run, cells=(*run.cells, *others))


def test_a_suite_is_found_by_its_name(run: Run) -> None:
    assert run["alpha"] is run.cells[0]
    assert run["alpha"].estimate is run.cells[0].summary.headline
    assert run["beta"].estimate.interval == (run["beta"].estimate.low, run["beta"].estimate.high)
    assert "alpha" in run and ("alpha", "causal") in run and run.cells[0] in run
    assert "gamma" not in run and ("alpha", "mlm") not in run and 3 not in run


def test_methods_and_seeds_tell_cells_apart(run: Run) -> None:
    several = with_seeds(run)
    assert several["alpha", "mlm"].method == "mlm"
    assert several["alpha", "finetune-full", 2].seed == 2


def test_an_ambiguous_name_lists_the_choices(run: Run) -> None:
    with pytest.raises(UnknownCell, match=r"run\['alpha', 'causal'\], run\['alpha', 'mlm'\]"):
        with_seeds(run)["alpha"]
    with pytest.raises(UnknownCell, match=r"run\['alpha', 'finetune-full', 1\]"):
        with_seeds(run)["alpha", "finetune-full"]


def test_an_unknown_name_lists_what_there_is(run: Run) -> None:
    with pytest.raises(UnknownCell, match=r"(?s)no cell 'gamma'.*there are 'alpha'") as caught:
        run["gamma"]
    assert isinstance(caught.value, KeyError) and isinstance(caught.value, UsageError)
    with pytest.raises(UnknownCell, match="score it first"):
        replace(run, cells=())["alpha"]


def test_predictions_have_one_row_per_item(run: Run) -> None:
    chunks = [to_rows(make_predictions("alpha", index)) for index in range(CHUNKS)]
    items = [row for rows in chunks for row in rows]
    table = run.predictions("alpha")
    assert len(table) == len(items)
    assert table.column("id") == [item.id for item in items]
    assert table.column("scores") == [list(item.scores) for item in items]
    assert table.to_rows()[0]["pred"] == items[0].pred
    assert run.predictions("alpha", "causal").to_arrow() == table.to_arrow()
    with pytest.raises(UsageError, match=r"(?s)no column 'text'.*there are id, gold"):
        table.column("text")


def test_other_libraries_take_predictions_as_they_are(run: Run) -> None:
    table = run.predictions("alpha")
    assert pa.table(table) == table.to_arrow()  # by __arrow_c_stream__, as polars does


def test_pandas_reads_predictions(run: Run) -> None:
    pytest.importorskip("pandas")
    frame = run.predictions("alpha").to_pandas()
    assert list(frame.id) == run.predictions("alpha").column("id")


def test_a_missing_pandas_is_one_sentence_with_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        MissingPackage, match=r"pandas, which is not installed\n.*pip install pandas"
    ):
        run.predictions("alpha").to_pandas()


def test_edited_predictions_are_refused(run: Run) -> None:
    (Path(run.path) / "predictions/alpha.causal.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="not the bytes"):
        run.predictions("alpha")


def test_a_run_without_a_folder_has_no_predictions(run: Run) -> None:
    with pytest.raises(RunError, match="no folder"):
        replace(run, read_table=None).predictions("alpha")


def test_notebooks_show_a_run_as_a_table(run: Run) -> None:
    hostile = replace(run.cells[0], suite="<script>alert(1)</script>")
    page = replace(run, cells=(hostile,))._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    estimate = hostile.estimate
    assert f"{estimate.value:.4f}" in page and f"{estimate.n:,}" in page


def test_notebooks_show_the_first_rows_of_a_table() -> None:
    table = ArrowTable(pa.table({"x": list(range(30)), "y": ["a&b"] * 30}))
    page = table._repr_html_()
    assert page.count("<tr>") == 21 and "a&amp;b" in page and "10 more rows" in page


def test_html_tables_escape_and_align() -> None:
    page = to_html_table(["a<b"], [[1.5], [2], ["<i>"], [None], [True]], title="t&t")
    assert '<th scope="col">a&lt;b</th>' in page and "<caption>t&amp;t</caption>" in page
    assert '<td style="text-align: right">1.5000</td>' in page
    assert "<td>&lt;i&gt;</td>" in page and "<td></td>" in page and "<td>True</td>" in page
