"""The same rows in every form: golden files for what people paste into papers and read into R."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from table_runs import CHECKPOINT_RUNS, HYBRID_RUN, ONE_RUN, READING_RUN, TWO_RUNS, make_run

from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting import results_table
from antlm_bench.reporting.results_table import build_results_table
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.results.display_names import model_names
from antlm_bench.types import Estimate, Run

GOLDEN = Path(__file__).parent.parent / "golden"


def show(runs: list[Run], by: str, form: str) -> str:
    return FORMATS[form].write(build_results_table(runs, by))


@pytest.mark.parametrize("form", ["markdown", "csv", "json"])
def test_golden(form: str) -> None:
    assert show(TWO_RUNS, "paradigm", form) == (GOLDEN / f"table.{form}").read_text(
        encoding="utf-8"
    )


def test_markdown_has_one_table_of_even_width() -> None:
    lines = [
        line
        for line in show(HYBRID_RUN, "paradigm", "markdown").splitlines()
        if line.startswith("|")
    ]
    assert {line.count("|") for line in lines} == {6}


def test_csv_is_tidy_and_exact() -> None:
    rows = list(csv.DictReader(io.StringIO(show(TWO_RUNS, "paradigm", "csv"))))
    headline = next(
        row
        for row in rows
        if (row["suite"], row["method"], row["level"]) == ("blimp", "mlm", "headline")
    )
    assert (headline["model"], headline["value"], headline["n"], headline["tie"]) == (
        "out/ltg-bert",
        "0.71",
        "3000",
        "7",
    )
    paradigms = [row for row in rows if row["level"] == "paradigm"]
    assert {row["within"] for row in paradigms} == {"anaphor_agreement", "irregular_forms"}
    assert len(rows) == 2 * (1 + 2 + 2 + 3) + 2 + 2


def test_json_holds_everything_at_any_depth() -> None:
    document = json.loads(show(ONE_RUN, "suite", "json"))
    assert len(document["runs"][0]["cells"][0]["summary"]["groups"]) == 5
    assert document["runs"][0]["manifest"]["model"]["name"] == "out/babyllama"


@pytest.mark.parametrize(
    ("by", "levels"),
    [
        ("suite", ()),
        ("field", ("paradigm",)),
        ("phenomenon", ("phenomenon",)),
        ("paradigm", ("phenomenon", "paradigm")),
    ],
)
def test_depth_falls_back_to_what_the_headline_averages_over(
    by: str, levels: tuple[str, ...]
) -> None:
    assert results_table.select_levels(ONE_RUN[0].cells[0].summary, by) == levels


def test_paradigms_stand_under_their_phenomenon() -> None:
    block = results_table.build_blocks(results_table.build_columns(ONE_RUN), "paradigm")[0]
    assert [(line.depth, line.name) for line in block.rows] == [
        (0, "blimp"),
        (1, "anaphor_agreement"),
        (2, "anaphor_gender_agreement"),
        (2, "anaphor_number_agreement"),
        (1, "irregular_forms"),
        (2, "irregular_plural_subject_verb_agreement_2"),
    ]


def test_a_suite_that_one_checkpoint_lacks_has_a_gap() -> None:
    short = make_run("out/short", "causal")
    without = type(short)(short.path, short.manifest, short.cells[:1])
    blocks = results_table.build_blocks(results_table.build_columns([*ONE_RUN, without]), "suite")
    assert blocks[1].rows[0].estimates[1] is None
    assert results_table.format_estimate(None, "accuracy") == "–"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["gpt2"], ["gpt2"]),
        (["/data/out/gpt2"], ["gpt2"]),
        (["EleutherAI/pythia-70m"], ["EleutherAI/pythia-70m"]),
        (["out/run/chck_1M", "out/run/chck_2M"], ["chck_1M", "chck_2M"]),
        (["out/a/last", "out/b/last"], ["a/last", "b/last"]),
        (["gpt2", "gpt2"], ["gpt2 (gpt2)", "gpt2 (gpt2)"]),
        (["out", "out/deeper"], ["out", "out/deeper"]),
        (["bad\x1b[31m|name"], ["bad\N{REPLACEMENT CHARACTER}[31m|name"]),
    ],
)
def test_models_are_named_by_what_tells_them_apart(names: list[str], shown: list[str]) -> None:
    assert model_names([make_run(name, "causal") for name in names]) == shown


def test_names_cannot_break_the_markdown_table() -> None:
    text = show([make_run("a|b`<script>\n*x*", "causal")], "suite", "markdown")
    assert r"a\|b\`\<script\>" in text and "\n*x*" not in text


@pytest.mark.parametrize(
    ("estimate", "metric", "text"),
    [
        (Estimate(1.0, 10, 0.9, 1.0), "accuracy", "100.0 [90.0, 100.0]"),
        (Estimate(0.6342, 10, 0.3, 0.9), "accuracy", "63.4 [30.0, 90.0]"),
        (Estimate(-0.084, 10, -0.2, 0.1), "spearman", "-8.4 [-20.0, 10.0]"),
        (Estimate(0.31, 3, -1.0, 1.0), "spearman", "31.0"),  # the whole range says nothing
        (Estimate(-0.0002, 9, -0.0004, 0.01), "delta-r2", "0.0 [0.0, 1.0]"),  # never -0.0
    ],
)
def test_a_number_stands_before_its_interval(estimate: Estimate, metric: str, text: str) -> None:
    assert results_table.format_estimate(estimate, metric) == text


def test_only_what_can_be_wrong_is_counted_wrong() -> None:
    def said(block: results_table.SuiteBlock) -> list[str]:
        return [
            words
            for words, _ in results_table.headline_annotations(block)
            if words.startswith("too long")
        ]

    assert said(results_table.build_blocks(results_table.build_columns(ONE_RUN), "suite")[0]) == [
        "too long, counted wrong"
    ]
    assert [
        said(block)
        for block in results_table.build_blocks(results_table.build_columns(READING_RUN), "suite")
    ] == 2 * [["too long, left out"]]


def test_reading_times_and_surprisals_are_in_their_own_units() -> None:
    reading, words = results_table.build_blocks(results_table.build_columns(READING_RUN), "suite")
    assert (reading.average, words.average) == ("100 ΔR², mean of 2 measures", "nats, mean by word")
    assert (
        results_table.format_estimate(Estimate(0.0123, 9, 0.004, 0.02), "delta-r2")
        == "1.2 [0.4, 2.0]"
    )
    assert (
        results_table.format_estimate(Estimate(7.25, 9, 7.0, 7.5), "surprisal")
        == "7.25 [7.00, 7.50]"
    )
    legend = results_table.build_legend(results_table.build_columns(READING_RUN))
    assert "jackknife over sentences" in legend and "Surprisal in nats" in legend
    assert not any(words in legend for words in ("right", "tie", "Options are compared"))


def test_a_metric_of_a_newer_version_is_named() -> None:
    assert results_table.format_estimate(Estimate(0.5, 9, 0.4, 0.6), "brier") == "50.0 [40.0, 60.0]"
    assert get_metric_spec("brier").heading == "100 brier"


def test_the_legend_says_which_tie_rules_hold() -> None:
    assert "counts 1/k" in results_table.build_legend(results_table.build_columns(CHECKPOINT_RUNS))


def test_the_legend_says_when_means_decide() -> None:
    cell = ONE_RUN[0].cells[0]
    mean = replace(
        ONE_RUN[0], cells=(replace(cell, settings={"ties": "first", "reduction": "per-token"}),)
    )
    assert (
        "compared by log-probability per token. A tie goes to the first"
        in results_table.build_legend(results_table.build_columns([mean]))
    )
