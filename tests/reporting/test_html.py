"""The page: whatever models call themselves, it has the same elements, asks for nothing, and holds
every number.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import large_runs
import pytest
import table_runs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from antlm_bench import runs
from antlm_bench.errors import RunError, UsageError
from antlm_bench.printable import make_printable
from antlm_bench.reporting import html_data, results_table
from antlm_bench.reporting.figures import build_figures
from antlm_bench.reporting.html import render_page
from antlm_bench.reporting.report_data import ReportData
from antlm_bench.results.display_names import model_name
from antlm_bench.types import Cell, Group, Manifest, Run, Summary

METHODS = {"causal": "left-to-right log-probability"}
VOID = {"meta", "br", "wbr", "link", "img", "input"}


class Parsed(HTMLParser):
    """A page's elements, attributes, text, and what stands in each <script>."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def one(
    name: str, suite: str = "blimp", group: str = "binding", note: str = "complete"
) -> ReportData:
    estimate = table_runs.make_estimate(0.7, 100, 0.05, tie=1)
    groups = [Group("phenomenon", label, estimate) for label in (group, f"{group} 2")]
    groups += [Group("paradigm", f"{group} {n}", estimate, group) for n in (1, 2)]
    summary = Summary(suite, "causal", "accuracy", (), estimate, {}, tuple(groups), (note,))
    manifest = Manifest(
        2, {"name": name, note: name, "specials": {name: [note]}}, {"antlm-bench": name}, note
    )
    run = Run(
        f"reports/{name}",
        manifest,
        (Cell(suite, "causal", "k", {"bos": note, "suite_digest": name}, summary),),
    )
    called = (model_name(run),)
    return ReportData(
        f"About {name}", (run,), called, tuple(results_table.build_columns([run])), remarks=(note,)
    )


def counted(contents: ReportData) -> Counter[str]:
    elements = Parsed(render_page(contents, METHODS)).elements
    return Counter({tag: n for tag, n in elements.items() if tag not in ("wbr", "text", "tspan")})


PLAIN = counted(one("babyllama"))
ODD = [
    *large_runs.HOSTILE_NAMES,
    "]]>",
    "<!--",
    "-->",
    "{{ 7*7 }}{% raw %}",
    "\u2028\x00\x1b[31m",
    "&lt;b&gt;",
    "a_b__c",
    "\\u003c",
]
names = st.one_of(
    st.sampled_from(ODD),
    st.text(min_size=1, max_size=30),
    st.text(alphabet="<>\"'&/=`{}%!- a", min_size=1),
)


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(names, names, names, names)
@example(
    ODD[0], ODD[0], "000000@@\x1f\x1f\x97Ìëÿ\U0002c014\U000d8cc2", ODD[0]
)  # Vega cut it through a character
@example("if", "if", "if", "if")  # a function of Vega's, which took the name for it
def test_no_name_adds_an_element(name: str, suite: str, group: str, note: str) -> None:
    assert counted(one(name, suite, group, note)) == PLAIN


@pytest.mark.long
@pytest.mark.parametrize("name", large_runs.HOSTILE_NAMES)
def test_hostile_names_are_shown_and_survive_in_the_data(name: str) -> None:
    parsed = Parsed(render_page(one(name), METHODS))
    assert make_printable(name) in parsed.text
    assert json.loads(parsed.scripts[0])["runs"][0]["manifest"]["model"]["name"] == name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    for name, method, skill in (("babyllama", "causal", 0.68), ("ltg-bert", "mlm", 0.74)):
        large_runs.write_model_run(root / "runs" / name, name, skill, method, seeds=2, items=4)
    large_runs.write_checkpoint_runs(root / "runs", 0.8, [1, 2, 4, 5], twins=[2])
    large_runs.write_training_log(root / "train")
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[str, Parsed]:
    text = html_data.write_page(
        [folder / "runs"], folder / "out.html", training_dirs=[folder / "train"]
    ).read_text(encoding="utf-8")
    return text, Parsed(text)


@pytest.mark.long
def test_every_section_is_there_and_linked(made: tuple[str, Parsed]) -> None:
    ids = {value for _, name, value in made[1].attributes if name == "id"}
    links = {
        value.removeprefix("#")
        for tag, name, value in made[1].attributes
        if (tag, name) == ("a", "href")
    }
    wanted = {
        "results",
        "phenomena",
        "paradigms",
        "differences",
        "curves",
        "training",
        "seeds",
        "methods",
        "manifest",
    }
    assert wanted | {"data"} <= links <= ids


@pytest.mark.long
def test_ids_are_unique_and_charts_labelled(made: tuple[str, Parsed]) -> None:
    ids = Counter(value for _, name, value in made[1].attributes if name == "id")
    assert max(ids.values()) == 1
    labels = [
        value for tag, name, value in made[1].attributes if (tag, name) == ("svg", "aria-label")
    ]
    assert len(labels) == made[1].elements["svg"] > 10 and all("table" in label for label in labels)
    assert made[1].elements["figure"] < made[1].elements["table"]


def test_screen_readers_get_names_for_tables_and_regions(made: tuple[str, Parsed]) -> None:
    text, parsed = made
    assert parsed.elements["caption"] == parsed.elements["table"] > 10
    headers = re.findall(r"<th\b([^>]*)>(.*?)</th>", text, re.DOTALL)
    assert all("scope=" in attributes for attributes, _ in headers)
    assert all(re.sub(r"<[^>]*>", "", content).strip() for _, content in headers)
    regions = re.findall(r'role="region" aria-label="([^"]*)"', text)
    assert len(set(regions)) == len(regions) > 10
    # Marks have no role, so they have no ARIA label; their texts are in the tables.
    labelled = {tag for tag, name, _ in parsed.attributes if name == "aria-label"}
    assert labelled <= {"svg", "div", "nav", "button"}
    assert ("html", "lang", "en") in parsed.attributes


def test_headings_skip_no_level(made: tuple[str, Parsed]) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])>", made[0])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.long
def test_a_curve_has_the_colour_of_its_last_checkpoint(folder: Path) -> None:
    contents = html_data.gather_report_data([folder / "runs"])
    [index] = [i for i, c in enumerate(contents.columns) if c.model == "runs (5M words)"]
    curve = next(f for f in build_figures(contents) if f.section == "curves")
    assert curve.series[index] == "runs" and curve.present_series == {"runs"}


@pytest.mark.parametrize(
    ("models", "title"),
    [
        (["a", "b"], "a and b"),
        (["a", "b", "c", "d"], "a, b and 2 more"),
        (["organisation/" + "x" * 60], "organisation/" + "x" * 60),
        (["x" * 40, "y" * 40, "z", "w"], "4 models"),
    ],
)
def test_the_title_names_the_models_if_it_stays_short(models: list[str], title: str) -> None:
    assert html_data._default_title(models) == title


def test_a_setting_of_several_seeds_is_listed_by_value() -> None:
    contents = one("babyllama")
    [cell] = contents.runs[0].cells
    cell = replace(cell, settings={"limit": [None, 2, 2]})
    contents = replace(contents, runs=(replace(contents.runs[0], cells=(cell,)),))
    row = re.search(
        r"only the first items of each paradigm</th><td>(.*?)</td>", render_page(contents, METHODS)
    )
    assert row and row[1] == "<bdi>2</bdi>"


@pytest.mark.long
def test_runs_of_one_model_have_different_names_everywhere(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with runs.RunWriter(tmp_path / name, large_runs.make_manifest("babyllama")) as writer:
            answers = large_runs.draw_pairs(0.7, name, large_runs.PARADIGMS[:2], 5)
            large_runs.write_suite(writer, "blimp", "causal", answers, digest=name)
    contents = html_data.gather_report_data([tmp_path])
    assert contents.display_names == ("babyllama (first)", "babyllama (second)")
    assert contents.remarks[0].startswith("babyllama (first) and babyllama (second) are not")


@pytest.mark.long
def test_nothing_points_outside(made: tuple[str, Parsed]) -> None:
    text, parsed = made
    for _, name, value in parsed.attributes:
        assert not name.startswith("on"), name
        if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
            assert value.startswith("#")
    urls = set(re.findall(r"https?://[^\s\"'<)]+", "".join(parsed.text) + parsed.scripts[1]))
    assert not urls and "@import" not in text
    assert set(re.findall(r"url\(([^)]*)", text)) <= {
        f"#{i}" for i in re.findall(r'id="([^"]+)"', text)
    }


def test_only_our_own_script_may_run(made: tuple[str, Parsed]) -> None:
    _, parsed = made
    [policy] = [
        v
        for tag, name, v in parsed.attributes
        if (tag, name) == ("meta", "content") and "default-src" in v
    ]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert len(parsed.scripts) == 2


def test_the_data_are_the_runs_in_full_precision(made: tuple[str, Parsed], folder: Path) -> None:
    data: dict[str, Any] = json.loads(made[1].scripts[0])
    stored = {run["manifest"]["model"]["name"]: run for run in data["runs"]}
    opened = runs.open_run(folder / "runs" / "ltg-bert")
    for cell, found in zip(opened, stored["ltg-bert"]["cells"], strict=True):
        assert found["summary"]["headline"]["value"] == cell.summary.headline.value
    assert str(folder) not in made[0]
    assert [row["words"] for row in data["curves"]] == [10**6 * n for n in (1, 2, 4, 5)] * 2
    assert data["training"][0]["steps"] == 600
    assert {one["suite"] for one in data["comparisons"]} >= {"blimp-filtered", "supplement"}


def test_the_first_table_holds_the_headlines(made: tuple[str, Parsed], folder: Path) -> None:
    shown = [text.strip() for text in made[1].text]
    for name in ("babyllama", "ltg-bert"):
        for cell in runs.open_run(folder / "runs" / name):
            if cell.seed is None:
                value, _, interval = results_table.format_estimate(
                    cell.summary.headline, "accuracy"
                ).partition(" ")
                assert value in shown and interval in shown
    assert "collapsed with seed 2" in shown


@pytest.mark.long
def test_a_page_is_small_and_the_same_each_time(made: tuple[str, Parsed], folder: Path) -> None:
    again = html_data.write_page(
        [folder / "runs"], folder / "again.html", training_dirs=[folder / "train"]
    )
    assert again.read_text(encoding="utf-8") == made[0]
    assert len(made[0]) < 3_000_000


@pytest.mark.long
def test_of_a_curve_only_the_last_checkpoint_stands_beside_others(folder: Path) -> None:
    contents = html_data.gather_report_data([folder / "runs"])
    assert [column.model for column in contents.columns] == [
        "babyllama",
        "runs (5M words)",
        "ltg-bert",
    ]
    assert len(contents.curves) == 2 and "(4 checkpoints)" in contents.remarks[0]


@pytest.mark.long
def test_seeds_are_averaged_and_compared_with_the_method_that_each_model_has(folder: Path) -> None:
    contents = html_data.gather_report_data(
        [folder / "runs" / "babyllama", folder / "runs" / "ltg-bert"]
    )
    [babyllama, ltg] = contents.columns
    assert babyllama.method == "causal + finetune-causal" and ltg.method == "mlm + finetune-causal"
    values = [
        s.estimate.value
        for s in contents.seeds
        if (s.task, s.series) == ("glue-2025.boolq", "ltg-bert")
    ]
    assert ltg.cells["glue-2025.boolq"].summary.headline.value == pytest.approx(sum(values) / 2)
    assert [seed.seed for seed in contents.seeds if seed.collapsed] == [2]
    [pair] = contents.pairs
    assert (pair.reference, pair.other) == ("babyllama", "ltg-bert")
    blimp = next(c for c in pair.comparisons if c.suite == "blimp-filtered")
    scored = [column.cells["blimp-filtered"].summary.headline.value for column in contents.columns]
    assert blimp.headline.value == pytest.approx(scored[1] - scored[0])


@pytest.mark.long
def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    for name, version in (("one", "1"), ("two", "2")):
        with runs.RunWriter(tmp_path / name, large_runs.make_manifest(name)) as writer:
            answers = large_runs.draw_pairs(0.7, name, large_runs.PARADIGMS[:2], 5)
            large_runs.write_suite(writer, "blimp", "causal", answers, digest=version)
    contents = html_data.gather_report_data([tmp_path])
    assert not contents.pairs
    assert "one and two are not compared: blimp" in contents.remarks[0]


@pytest.mark.long
def test_figures_are_files_for_a_paper(folder: Path, tmp_path: Path) -> None:
    paths = html_data.write_figures(
        [folder / "runs" / "babyllama"],
        tmp_path / "figures",
        "svg",
        training_dirs=[folder / "train"] * 2,
    )
    assert {path.name for path in paths} == {
        "training.train.2.svg",
        "phenomena.blimp-filtered.svg",
        "phenomena.supplement.svg",
        "paradigms.blimp-filtered.svg",
        "paradigms.supplement.svg",
        "training.train.svg",
        "seeds.glue-2025.svg",
    }
    assert all(
        path.read_text(encoding="utf-8").startswith("<svg") and "var(--" not in path.read_text()
        for path in paths
    )
    with pytest.raises(UsageError, match="'gif'"):
        html_data.write_figures([folder / "runs"], tmp_path, "gif")


def test_what_is_no_run_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        html_data.write_page([tmp_path / "nothing"], tmp_path / "out.html")
    assert not list(tmp_path.iterdir())


def test_a_run_without_cells_makes_a_page() -> None:
    run = Run("reports/x", Manifest(2, {"name": "x"}, {}, ""), ())
    assert "Nothing was scored yet" in render_page(ReportData("x", (run,), ("x",), ()), {})
