"""Commands over many runs read each file once, and pages of many runs stay small."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from report_runs import make_zero_shot_cells, write_run

from antlm_bench import declarations, runs
from antlm_bench.commands.compare import compare
from antlm_bench.exports import every_eval_ever
from antlm_bench.reporting import html, html_data
from antlm_bench.runs import predictions_parquet
from antlm_bench.suites import task_types

NUM_RUNS = 4


@pytest.fixture(scope="module")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of three suites of the catalog."""
    root = tmp_path_factory.mktemp("many")
    return [
        write_run(root / f"model-{n}", make_zero_shot_cells("causal", more=n))
        for n in range(NUM_RUNS)
    ]


def test_compare_reads_predictions_once_per_run(
    run_dirs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    decode = predictions_parquet.decode_predictions

    def count(data: bytes, location: str) -> object:
        reads[location] += 1
        return decode(data, location)

    monkeypatch.setattr(predictions_parquet, "decode_predictions", count)
    comparisons = compare(run_dirs)
    assert len(comparisons) == NUM_RUNS - 1
    files = [str(file) for run_dir in run_dirs for file in run_dir.glob("predictions/*")]
    assert reads == dict.fromkeys(files, 1)


def test_a_shipped_declaration_is_parsed_once(
    run_dirs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed_files: Counter[Path] = Counter()
    parse = declarations._parse_toml

    def count(path: Path) -> dict[str, object]:
        parsed_files[path] += 1
        return parse(path)

    monkeypatch.setattr(declarations, "_parse_toml", count)
    declarations._parse_shipped_toml.cache_clear()
    task_types._read_shipped_file.cache_clear()
    for run_dir in run_dirs:
        every_eval_ever.build_record(runs.open_run(run_dir))
    compare(run_dirs)
    shipped = declarations.list_declarations("tasks")
    suites = ("blimp-filtered", "supplement", "ewok-2025")
    assert parsed_files == {shipped[suite]: 1 for suite in suites}


def test_changing_parsed_tables_changes_no_declaration() -> None:
    path = declarations.list_declarations("tasks")["blimp"]
    declarations.parse_toml(path).clear()
    assert declarations.parse_toml(path)["name"] == "blimp"


def test_a_page_of_many_runs_compares_and_draws_few(
    run_dirs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_data, "MAX_COMPARED_RUNS", 2)
    data = html_data.gather_report_data(run_dirs)
    assert {pair.other for pair in data.pairs} == {"model-1", "model-2"}
    assert "model-0 is compared with the next 2 of 3 others only" in " ".join(data.remarks)
    assert "<svg" in html.render_page(data, {})
    monkeypatch.setattr(html, "MAX_DRAWN_SERIES", 1)
    page = html.render_page(data, {})
    assert "<svg" not in page and all(f"model-{n}" in page for n in range(NUM_RUNS))
