"""Legends and captions say what computed the numbers above them."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import make_glue_cells, make_zero_shot_cells, write_run
from table_runs import ONE_RUN, READING_RUN

from antlm_bench.commands.report import build_report
from antlm_bench.comparison import Comparison, Difference, RunComparison
from antlm_bench.metrics import METRICS, get_metric_spec
from antlm_bench.metrics.records import SEED_INTERVAL
from antlm_bench.reporting import results_table
from antlm_bench.reporting.comparison_table import build_legend, format_interval
from antlm_bench.reporting.figures import _describe_differences, build_figures
from antlm_bench.reporting.html import render_page
from antlm_bench.reporting.report_data import ReportData
from antlm_bench.reporting.report_table import build_report_table


def compare_once(metric: str, method: str = "causal", **fields: float) -> Comparison:
    difference = Difference("headline", "toy", "", 90, 0.8, 0.7, -0.1, -0.2, -0.01, 0.01)
    headline = replace(difference, **fields)
    return Comparison("toy", method, method, metric, (1, 1), headline, (), (), ())


def legend_of(comparison: Comparison) -> str:
    return build_legend([RunComparison("a", "b", "a", "b", (comparison,))], "phenomenon")


@pytest.mark.parametrize("metric", [spec.name for spec in METRICS if spec.comparison])
def test_compare_names_the_interval_of_the_metric_only(metric: str) -> None:
    legend = legend_of(compare_once(metric))
    assert legend.count("95% interval") == 1
    assert get_metric_spec(metric).difference_interval in legend
    other = get_metric_spec("surprisal" if metric != "surprisal" else "accuracy")
    assert other.difference_interval not in legend


def test_bits_per_byte_are_compared_by_welch() -> None:
    assert "Welch's t over documents" in legend_of(compare_once("bits-per-byte"))


def test_finetuned_tasks_have_the_interval_of_seeds() -> None:
    assert "t over seeds and items" in legend_of(compare_once("accuracy", "finetune-causal"))
    cell = replace(ONE_RUN[0].cells[0], method="finetune-causal")
    legend = results_table.build_legend(
        [results_table.ResultsColumn("m", "finetune-causal", {"t": cell})]
    )
    assert SEED_INTERVAL in legend
    assert "stratified" not in legend


def test_an_interval_that_says_nothing_is_not_shown() -> None:
    unknown = compare_once("spearman", low=-2.0, high=2.0).headline
    assert format_interval(unknown, "spearman") == "–"
    assert format_interval(compare_once("spearman").headline, "spearman") == "[-20.0, -1.0]"


def test_the_page_describes_only_its_own_metrics() -> None:
    columns = tuple(results_table.build_columns(READING_RUN))
    page = render_page(ReportData("a page", tuple(READING_RUN), ("a model",), columns), {})
    text = html.unescape(re.sub("<[^>]*>", "", page))
    for metric in ("delta-r2", "surprisal"):
        assert get_metric_spec(metric).interval in text
    for words in ("Wilson", "10,000", "choice between texts", "right text"):
        assert words not in text


@pytest.mark.parametrize(
    ("chance", "words"),
    [(0.2, "blue above chance (20), orange below"), (0.5, "blue above chance (50)"), (None, "")],
)
def test_tiles_say_which_chance_they_are_coloured_against(chance: float | None, words: str) -> None:
    columns = tuple(results_table.build_columns(ONE_RUN))
    levels = {} if chance is None else {"blimp": chance}
    data = ReportData("a page", tuple(ONE_RUN), ("a model",), columns, chance_levels=levels)
    (figure,) = (figure for figure in build_figures(data) if figure.section == "paradigms")
    assert words in figure.caption
    assert ("chance" in figure.caption) == (chance is not None)
    value = next(iter(ONE_RUN[0].cells[0].summary.groups)).estimate.value + 0.01
    strengths = [cell.strength for row in figure.table.rows for cell in row]
    expected = [] if chance is None else [(value - chance) / (1 - chance)] * 3
    assert [s for s in strengths if s is not None] == pytest.approx(expected)


def test_the_page_states_the_interval_of_finetuned_rows() -> None:
    cell = replace(ONE_RUN[0].cells[0], method="finetune-causal")
    columns = (results_table.ResultsColumn("m", "finetune-causal", {"t": cell}),)
    page = render_page(ReportData("a page", (), (), columns), {})
    text = html.unescape(re.sub("<[^>]*>", "", page))
    assert SEED_INTERVAL in text
    assert "stratified" not in text


def test_tasks_of_one_training_are_named_in_the_legend(tmp_path: Path) -> None:
    cells = make_zero_shot_cells("causal") + make_glue_cells(tasks=("mnli", "mnli-mm", "rte"))
    run = write_run(tmp_path / "run", cells)
    legend = " ".join(
        build_report_table(build_report([run], collection="babylm-2024", partial=True)).legend
    )
    assert "same finetuned models (mnli, mnli-mm) vary together over seeds" in legend


def test_differences_name_all_families_of_their_groups() -> None:
    groups = [
        replace(compare_once("accuracy").headline, level="phenomenon", name=name, family=family)
        for name, family in (("x", "Holm over 2 phenomena"), ("y", "BH over 30 phenomena"))
    ]
    one = replace(compare_once("accuracy"), groups=tuple(groups))

    caption = _describe_differences("a", [one])

    assert "adjusted for groups (Holm over 2 phenomena, BH over 30 phenomena)" in caption
    assert "adjusted" not in _describe_differences("a", [compare_once("accuracy")])


def test_a_partial_average_is_of_the_members_that_are_there(tmp_path: Path) -> None:
    cells = make_zero_shot_cells("causal")[:2]
    whole = write_run(tmp_path / "whole", make_zero_shot_cells("causal") + make_glue_cells())
    part = write_run(tmp_path / "part", cells)
    collection = {"collection": "babylm-2024"}
    legend = build_report_table(build_report([whole], **collection)).legend[-1]
    assert "mean of the 4 members" in legend
    report = build_report([whole, part], partial=True, **collection)
    legend = build_report_table(report).legend[-1]
    assert "mean of the members that a column has, of 4" in legend
    average = report.columns[1].macro_average
    assert average and any("partial: averaged without" in caveat for caveat in average.caveats)
