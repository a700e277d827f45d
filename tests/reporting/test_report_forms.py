"""The report in every form: golden files for what people paste, and names that try to break out of
them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from report_runs import (
    TASKS_2024,
    make_cell,
    make_finetuned_cell,
    make_glue_cells,
    make_zero_shot_cells,
    write_run,
)

from antlm_bench.cli.app import run as command
from antlm_bench.commands.report import build_report
from antlm_bench.errors import UsageError
from antlm_bench.printable import make_printable, to_csv_text
from antlm_bench.reporting.report_table import (
    LONG_KEYS,
    MACRO,
    build_report_table,
    describe_comparisons,
)
from antlm_bench.reporting.results_table import format_estimate
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.results.collections import ReportedScore
from antlm_bench.results.model_card import build_model_card
from antlm_bench.results.reports import Report

GOLDEN = Path(__file__).parent.parent / "golden"
EVIL = (
    'a|b\\c$d&e_f#g%h{i}j~k^l<script>m</script>"n`o`\n'
    "---\nmodel-index: []\n\x1b[31m\u202e😀*p* [q](r) --s"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A causal and a hybrid checkpoint, one collapsed seed, one seed elsewhere, one published
    row.
    """
    root = tmp_path_factory.mktemp("runs")
    rest = [task for task in TASKS_2024 if task != "rte"]
    fallen = [
        make_finetuned_cell("rte", seed, 30, collapsed=["constant prediction"] if seed == 2 else [])
        for seed in (1, 2, 3)
    ]
    write_run(
        root / "babyllama", make_zero_shot_cells("causal") + make_glue_cells(tasks=rest) + fallen
    )
    write_run(
        root / "gpt-bert",
        make_zero_shot_cells("causal", more=9)
        + make_zero_shot_cells("mntp", more=12)
        + make_glue_cells("full", (1,)),
    )
    folders = [root / "babyllama", root / "gpt-bert"]
    found = build_report(folders, collection="babylm-2024", published=["LTG-BERT 10M, org"])
    return replace(found, columns=tuple(replace(c, run=Path(c.run).name) for c in found.columns))


FORMS = ("markdown", "latex", "csv", "json")


def show(made: Report, form: str) -> str:
    if form == "model-index":
        return build_model_card(made)
    return FORMATS[form].write(build_report_table(made))


def drawn(made: Report, width: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        patch.delenv("FORCE_COLOR", raising=False)
        return show(made, "table")


@pytest.mark.long
@pytest.mark.parametrize("form", [*FORMS, "model-index", "80.txt", "120.txt"])
def test_golden(form: str, made: Report) -> None:
    one = replace(made, columns=made.columns[1:3]) if form == "model-index" else made
    width = form.partition(".")[0]
    text = drawn(made, int(width)) if width.isdecimal() else show(one, form)
    assert text == (GOLDEN / f"report.{form}").read_text(encoding="utf-8")


def test_a_reader_of_3_values_in_2_rows_compares_6_pairs() -> None:
    assert "best of 3 in each of 2 rows compares 6 pairs of values" in describe_comparisons([3, 3])
    assert "best of 2 to 3 in each of 2 rows compares 4 pairs" in describe_comparisons([3, 2, 1])
    assert "best of 2 in the row compares 1 pair of values. " in describe_comparisons([2])
    assert describe_comparisons([1, 0]) == ""


@pytest.mark.long
@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(width: int, made: Report) -> None:
    assert max(map(len, drawn(made, width).splitlines())) <= width


@pytest.mark.long
def test_a_collapsed_seed_is_noted_wherever_it_counts(made: Report) -> None:
    flagged = {
        row.cells[0].value
        for row in build_report_table(made).rows
        if any("collapsed" in note for note in row.cells[1].notes)
    }
    assert flagged == {"rte", "GLUE", MACRO}


def test_csv_and_json_hold_the_same_numbers_in_full(made: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(show(made, "csv"))))
    numbers = json.loads(show(made, "json"))["numbers"]
    assert [float(row["value"]) for row in rows] == [number["value"] for number in numbers]
    macro = [row for row in rows if row["member"] == MACRO]
    assert [float(row["value"]) for row in macro] == [
        round(c.macro_average.value, 12) for c in made.columns if c.macro_average
    ]
    assert [row["source"] != "" for row in macro] == [False, False, False, True]
    assert macro[-1]["low"] == macro[-1]["seeds"] == ""
    rte = next(row for row in rows if row["task"] == "rte" and row["model"] == "babyllama")
    assert "collapsed" in rte["remarks"] and rte["seeds"] == "3" and rte["weight"] == ""


def test_the_hub_reads_the_model_card(made: Report) -> None:
    one = replace(made, columns=made.columns[1:])
    card = ModelCard(show(one, "model-index") + "\n# gpt-bert\n")
    assert card.data.model_name == "gpt-bert"
    found = {(r.dataset_type, r.dataset_config): r for r in card.data.eval_results or ()}
    assert {config for _, config in found} == {
        "causal",
        "mntp",
    }  # the published row is not this model's
    blimp = found["blimp-filtered", "mntp"]
    assert (blimp.metric_type, blimp.metric_value, blimp.task_type) == (
        "accuracy",
        0.82,
        "fill-mask",
    )
    assert found["blimp-filtered", "causal"].task_type == "text-generation"
    assert found["glue-2024.cola", "mntp"].metric_type == "mcc"
    assert found["glue-2024.cola", "mntp"].task_type == "text-classification"
    assert {"babylm-2024", "glue-2024"} <= {name for name, _ in found}
    assert blimp.metric_args and blimp.metric_args["n"] == 100 and blimp.metric_args["low"] < 0.82
    with pytest.raises(UsageError, match="one model, and there are 2 runs"):
        show(made, "model-index")


@pytest.mark.long
def test_a_card_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "m", make_zero_shot_cells("causal")[:2])
    assert command(["report", str(run), "--collection", "babylm-2024", "--model-index"]) == 5
    text = capsys.readouterr().out
    assert "# missing (causal): EWoK, GLUE" in text
    results = ModelCard(text).data.eval_results or []
    assert {result.dataset_type for result in results} == {"blimp-filtered", "supplement"}


def test_a_card_without_results_is_one_that_the_hub_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "m", [make_cell("mine", "causal", 3, 4)])
    assert command(["report", str(run), "--collection", "babylm-2024", "--model-index"]) == 5
    [entry] = yaml.safe_load(capsys.readouterr().out.strip("-\n"))["model-index"]
    assert entry == {"name": "m", "results": []}


def named(name: str) -> Report:
    """A report whose model, suite, task and remark are called so."""
    base = named.base  # type: ignore[attr-defined]
    column = base.columns[0]
    first = column.results[0]
    entries = (replace(first, score=first.score.with_caveats(name)), *column.results[1:])
    members = (base.members[0].model_copy(update={"label": name or "x"}), *base.members[1:])
    return replace(
        base,
        columns=(replace(column, model=name, run=name, results=entries, source=""),),
        members=members,
    )


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> None:
    cells = [make_cell("nano", "causal", 3, 4), make_cell("mine", "causal", 1, 4)]
    named.base = build_report([write_run(tmp_path_factory.mktemp("base") / "m", cells)])  # type: ignore[attr-defined]


HOSTILE = st.text(
    alphabet=st.one_of(st.sampled_from(list(EVIL)), st.characters()), max_size=20
) | st.just(EVIL)
fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(HOSTILE)
@fuzzed
def test_no_name_breaks_out_of_a_csv_field_or_a_json_string(name: str) -> None:
    rows = list(csv.DictReader(io.StringIO(show(named(name), "csv"))))
    assert [row["member"] for row in rows] == [to_csv_text(make_printable(name)) or "x", "mine"]
    assert rows[0]["model"] == to_csv_text(make_printable(name)) and len(rows[0]) == len(LONG_KEYS)
    document = json.loads(show(named(name), "json"))
    assert document["numbers"][0]["remarks"] == ([make_printable(name)] if name else [])


@given(HOSTILE)
@fuzzed
def test_no_name_breaks_out_of_a_markdown_cell(name: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(show(named(name), "markdown"))
    assert sum(token.type == "table_open" for token in tokens) == 1
    cells = [
        tokens[at + 1] for at, token in enumerate(tokens) if token.type in ("td_open", "th_open")
    ]
    assert len(cells) == 2 * 3
    inside = [child for cell in cells for child in cell.children or ()]
    html = {child.content for child in inside if child.type == "html_inline"}
    assert html <= {"<br>", "<sup>", "</sup>"}
    assert not {child.type for child in inside} & {
        "link_open",
        "image",
        "code_inline",
        "strong_open",
    }
    shown = "".join(child.content for child in cells[2].children or () if child.type == "text")
    assert shown == "".join(make_printable(line).strip() for line in (name or "x").splitlines())


@given(HOSTILE)
@fuzzed
def test_no_name_breaks_out_of_a_latex_row(name: str) -> None:
    text = show(named(name), "latex")
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if not line.endswith("rule")]
    assert len(rows) == 2 + 2 and all(row.endswith("\\\\") for row in rows)
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    bare = re.sub(
        r"\\[{}$&#_%]|\\text[a-z]+\{\}|\$\^\{[a-z,-]+\}\$|\$\\pm\$|\{[\[\]*]\}|[-,]\{\}"
        r"|\$\^\{2\}\$|\$\\(?:Delta|bigtriangle(?:up|down))\$",
        "",
        body,
    )
    bare = (
        bare.replace("\\toprule", "")
        .replace("\\midrule", "")
        .replace("\\quad ", "")
        .replace("\\\\", "")
    )
    assert not set(re.sub(r"(?<!\\)&", "", bare)) & set("\\{}$#_%&~^")
    assert all(ord(c) < 0x180 for c in text)


@pytest.mark.long
@given(HOSTILE)
@fuzzed
def test_no_name_breaks_out_of_the_model_card(name: str) -> None:
    results = ModelCard(show(named(name), "model-index") + "\ntext\n").data.eval_results or []
    assert [result.dataset_type for result in results] == ["nano", "mine"]
    assert results[0].dataset_name == make_printable(name or "x")


@pytest.mark.long
@given(HOSTILE)
@fuzzed
def test_no_name_steers_the_terminal(name: str) -> None:
    for width in (40, 80):
        text = drawn(named(name), width)
        # Names from right to left stand between isolates, in pairs per line.
        assert all(line.count("\u2068") == line.count("\u2069") for line in text.split("\n"))
        assert all(c.isprintable() or c in "\n\u2068\u2069" for c in text)


def test_surprisal_is_written_in_nats_and_everything_else_in_hundredths() -> None:
    scores = {
        "6.89 [6.80, 7.00]": ReportedScore(6.893, "surprisal", 6.8, 7.0),
        "63.4 [63.0, 63.8]": ReportedScore(0.634, "accuracy", 0.63, 0.638),
        "63.4": ReportedScore(0.634, "spearman"),
    }
    for text, score in scores.items():
        assert format_estimate(score, score.metric) == text
