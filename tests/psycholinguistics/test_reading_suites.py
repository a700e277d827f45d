"""Reading times from the CSV to the measures, against plain fits of the official formulas."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from documented_pages import read_code
from prediction_rows import read_rows
from scipy import stats

from antlm_bench import runs
from antlm_bench.commands.compare import compare
from antlm_bench.commands.score import score
from antlm_bench.comparison import compare_runs as differences
from antlm_bench.errors import BenchError, DataError, DeclarationError, NotComparable, UsageError
from antlm_bench.exports.items_csv import format_items_csv
from antlm_bench.suites import loader as suites

TASKS = Path(__file__).parents[2] / "tasks"
WORD_LIST = "the a old small every some cat cats dog dogs boy girl house sees"
WORDS = WORD_LIST.split()
EYES = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
BASE = ("Subtlex_log10", "length", "context_length")


def make_rows(sentences: int = 24) -> list[dict[str, object]]:
    """Make rows of words with reading times that depend on their length; some are missing."""
    rng, table = np.random.default_rng(0), []
    for sentence in range(sentences):
        words = ["None", *rng.choice(WORDS, 6)] if sentence == 3 else list(rng.choice(WORDS, 7))
        for position in range(1, len(words)):
            context = " ".join(words[: position - 1])
            row = {
                "item": " ".join(words[:position]),
                "word": words[position],
                "sent_id": sentence,
                "context_length": position,
                "Subtlex_log10": round(rng.normal(10, 2), 3),
                "length": len(words[position]),
                "prev_item": context,
                "prev_word": words[position - 1] if position > 1 else "",
                "prev_length": len(words[position - 1]) if position > 1 else -1,
            }
            times = {
                name: round(100 + 9 * len(words[position]) + rng.normal(0, 20), 2)
                for name in (*EYES, SELF_PACED)
            }
            table.append(row | times)
    table[18]["item"] = ""  # the word None, as pandas writes it
    table[5]["Subtlex_log10"] = table[7]["RTgopast"] = ""
    return table


@pytest.fixture
def declare_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """declared(name, rows) -> the shipped declaration over a small CSV of its form."""

    def declare(name: str, content: Sequence[dict[str, object]]) -> str:
        folder = tmp_path / f"own-{name}"
        folder.mkdir(exist_ok=True)
        with (folder / "reading_data.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
        text = (TASKS / f"{name}.toml").read_text(encoding="utf-8")
        sha = text.split('sha256 = "')[1].split('"')[0]
        text = text.replace(f'{{ sha256 = "{sha}" }}', "{}").replace(
            "items = 1726", f"items = {len(content)}"
        )
        text = text.replace("where = [", 'where = ["{file}",')
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        return str(folder / f"{name}.toml")

    monkeypatch.delenv("ANTLM_BENCH_DATA", raising=False)
    return declare


def fit_partial_r2(
    table: dict[str, np.ndarray], outcome: str, predictors: Sequence[str]
) -> tuple[float, int]:
    """Return (R2 with surprisal - R2 without) / (1 - R2 without) and n, over complete rows."""
    keep = np.all([np.isfinite(table[name]) for name in (outcome, "pred", *predictors)], axis=0)
    x = {name: table[name][keep] for name in (outcome, "pred", *predictors)}
    base = [
        np.ones(keep.sum()),
        *(x[p] for p in predictors),
        *(x[p] * x[q] for p, q in combinations(predictors, 2)),
    ]

    def r2(columns):
        design = np.stack(columns, axis=1)
        residual = x[outcome] - design @ np.linalg.lstsq(design, x[outcome], rcond=None)[0]
        return 1 - residual.var() / x[outcome].var()

    without, with_surprisal = r2(base), r2([*base, x["pred"]])
    return (with_surprisal - without) / (1 - without), int(keep.sum())


def compute_measures(content, predictions):
    """Return the official measures, in 0..1, from the predictions of a run and the CSV rows."""
    table = {k: np.array([float(r[k] or "nan") if r[k] != "" else np.nan for r in content])
             for k in (*EYES, SELF_PACED, *BASE, "prev_length")}  # fmt: skip
    table["pred"] = np.array([-p.scores[0] for p in predictions])
    table["prev_pred"] = np.array(
        [-p.scores[1] if len(p.scores) > 1 else np.nan for p in predictions]
    )
    eye_tracking = [fit_partial_r2(table, outcome, BASE) for outcome in EYES]
    self_paced = fit_partial_r2(table, SELF_PACED, (*BASE, "prev_length", "prev_pred"))
    return float(np.mean([value for value, _ in eye_tracking])), self_paced, eye_tracking


@pytest.mark.long
@pytest.mark.parametrize("name", ["reading-2025", "reading"])
def test_the_measures_are_the_official_regressions(make_checkpoint, tmp_path, declare_suite, name):
    content = make_rows()
    (run,) = score(
        make_checkpoint("causal", adds=True), declare_suite(name, content), out=tmp_path / "run"
    )
    (cell,) = run
    predictions = read_rows(run.path, cell)
    assert [p.id for p in predictions[:2]] == [f"{name}_0", f"{name}_1"] and len(
        predictions
    ) == len(content)
    assert [len(p.scores) for p in predictions[:7]] == [1, 2, 2, 2, 2, 2, 1]
    eye_tracking, (self_paced, self_paced_n), outcomes = compute_measures(content, predictions)
    estimates = {group.name: group.estimate for group in cell.summary.groups}
    assert estimates["eye-tracking"].value == pytest.approx(eye_tracking, abs=1e-9)
    assert estimates["self-paced-reading"].value == pytest.approx(self_paced, abs=1e-9)
    assert [estimates[o].value for o in EYES] == pytest.approx(
        [value for value, _ in outcomes], abs=1e-9
    )
    assert [estimates[o].n for o in EYES] == [n for _, n in outcomes] and estimates[
        SELF_PACED
    ].n == self_paced_n
    assert cell.summary.headline.value == pytest.approx((eye_tracking + self_paced) / 2, abs=1e-9)
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in estimates.values())
    assert cell.summary.metric == "delta-r2"


@pytest.mark.long
def test_exported_items_give_the_documented_numbers(
    make_checkpoint, tmp_path, declare_suite, monkeypatch
):
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "reading.md").read_text(
        encoding="utf-8"
    )
    [code] = read_code(page, "python")
    declaration = declare_suite("reading", make_rows(40))
    (run,) = score(make_checkpoint("causal", adds=True), declaration, out=tmp_path / "run")
    (tmp_path / "items.csv").write_bytes(format_items_csv([run]))
    shutil.copy(Path(declaration).with_name("reading_data.csv"), tmp_path)
    monkeypatch.chdir(tmp_path)

    names: dict[str, float] = {}
    exec(code, names)

    (cell,) = run
    (value,) = (g.estimate.value for g in cell.summary.groups if g.name == "self-paced-reading")
    assert names["r"] ** 2 == pytest.approx(value, abs=1e-9)
    p = 2 * stats.t.sf(abs(names["r"] / names["error"]), names["k"] - 1)
    assert f"self-paced-reading {p:.2g}" in cell.summary.notes[-1]


def test_the_official_suite_drops_the_previous_word_none(
    declare_suite,
):
    content = make_rows()
    official, ours = (
        suites.load_suite(declare_suite(name, content)) for name in ("reading-2025", "reading")
    )
    word = content[18]["word"]
    assert (official.items[18].options[0].text, ours.items[18].options[0].text) == (
        f"None{word}",
        f"None {word}",
    )
    assert len(official.items[18].options) == 1
    assert content[20]["prev_item"] == f"None {word}" and content[19]["prev_item"] == "None"
    assert [len(official.items[n].options) for n in (19, 20)] == [1, 2]
    assert [len(ours.items[n].options) for n in (19, 20)] == [2, 2]


@pytest.mark.long
def test_a_killed_or_repeated_run_keeps_its_cell(make_checkpoint, tmp_path, declare_suite):
    suite, model = declare_suite("reading", make_rows()), make_checkpoint("causal", adds=True)
    (first,) = score(model, suite, out=tmp_path / "run")
    (again,) = score(model, suite, out=tmp_path / "run")
    assert first.cells == again.cells


@pytest.mark.long
def test_masked_models_score_reading_suites(make_checkpoint, tmp_path, declare_suite):
    model, suite = make_checkpoint("masked", adds=True), declare_suite("reading", make_rows())
    (run,) = score(model, suite, methods=["mlm", "mntp"], out=tmp_path / "run")
    assert {cell.method for cell in run} == {"mlm", "mntp"}
    with pytest.raises(BenchError, match="left context"):
        score(model, suite, methods="mlm-l2r", out=tmp_path / "other")
    with pytest.raises(UsageError, match="probabilities, not choices"):
        score(model, suite, precision="adaptive", out=tmp_path / "adaptive")


@pytest.mark.long
def test_too_few_words_for_a_regression_count_as_0(make_checkpoint, tmp_path, declare_suite):
    (run,) = score(
        make_checkpoint("causal", adds=True),
        declare_suite("reading", make_rows()),
        limit=8,
        out=tmp_path / "run",
    )
    (cell,) = run
    assert cell.summary.headline.value == 0 and (
        cell.summary.headline.low,
        cell.summary.headline.high,
    ) == (0, 1)
    assert any("too few rows for a regression" in note for note in cell.summary.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c[2].update(length="long"),
            "reading_data.csv:4: 'length' must be a number or empty, not 'long'",
        ),
        (lambda c: c[2].update(length="inf"), "must be a number or empty"),
        (lambda c: [r.pop("RTgopast") for r in c], "the field 'RTgopast' is missing"),
        (lambda c: [r.pop("item") for r in c], "the field 'item' is missing"),
        (lambda c: c[1].update(word=" "), "reading_data.csv:3: the text of"),
        (lambda c: c.pop(), "incomplete: 143 of 144 items"),
    ],
)
def test_errors_in_the_data_name_the_location(declare_suite, change, message):
    content = make_rows()
    reference = declare_suite("reading", content)
    change(content)
    path = Path(reference).with_name("reading_data.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    with pytest.raises(DataError) as caught:
        suites.load_suite(reference)
    assert message in str(caught.value)


def test_a_declaration_without_times_is_refused(tmp_path):
    text = (TASKS / "reading.toml").read_text(encoding="utf-8")
    for old, new, message in (
        ("[times]", "[time]", "unknown key 'time'"),
        ('metric = "delta-r2"', 'metric = "accuracy"', "must be used together"),
        ('"prev_length", "previous_surprisal"', '"surprisal"', "it is always added"),
    ):
        path = tmp_path / "own.toml"
        path.write_text(
            text.replace(old, new).replace("[[times.", "[[time.")
            if old == "[times]"
            else text.replace(old, new)
        )
        with pytest.raises(DeclarationError, match=message):
            suites.load_suite(str(path))


@pytest.mark.long
@pytest.mark.skipif(
    not os.environ.get("ANTLM_BENCH_DATA"),
    reason="needs the real data: set ANTLM_BENCH_DATA",
)
def test_the_real_words_give_the_official_numbers(make_checkpoint, tmp_path):
    file_path = Path(os.environ["ANTLM_BENCH_DATA"]) / "reading" / "reading_data.csv"
    if not file_path.is_file():
        pytest.skip("no reading/ in ANTLM_BENCH_DATA")
    with file_path.open(newline="", encoding="utf-8") as file:
        content = list(csv.DictReader(file))
    (run,) = score(
        make_checkpoint("causal", adds=True, max_position_embeddings=256),
        "reading-2025",
        out=tmp_path / "run",
    )
    (cell,) = run
    eye_tracking, (self_paced, n), _ = compute_measures(content, read_rows(run.path, cell))
    estimates = {group.name: group.estimate for group in cell.summary.groups}
    assert (estimates["eye-tracking"].n, estimates["self-paced-reading"].n) == (
        1696,
        n,
    ) and n == 1496
    assert estimates["eye-tracking"].value == pytest.approx(eye_tracking, abs=1e-8)
    assert estimates["self-paced-reading"].value == pytest.approx(self_paced, abs=1e-8)


@pytest.mark.long
def test_compare_skips_reading_times_without_data(make_checkpoint, tmp_path, declare_suite):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("good,bad\nthe cat sleeps,the cat sleep\nthe dogs see,the dogs sees\n")
    suite_refs, folders = [declare_suite("reading", make_rows()), str(pairs)], []
    for seed in (0, 1):
        folders.append(tmp_path / f"run-{seed}")
        score(make_checkpoint("causal", adds=True, seed=seed), suite_refs, out=folders[-1])
    (versus,) = compare(folders)  # the run records the path of a user's own file
    assert len(versus.comparisons) == 2 and not versus.unmatched
    Path(suite_refs[0]).parent.rename(tmp_path / "elsewhere")
    (versus,) = compare(folders)
    assert [comparison.suite for comparison in versus.comparisons] == ["pairs"]
    assert all("not compared because the data is not here" in note for note in versus.unmatched)
    with pytest.raises(NotComparable, match=r"cannot be loaded|differ from those that were scored"):
        compare(folders, suites=["own-reading/reading"])


@pytest.mark.long
def test_two_runs_are_compared_by_drawing_the_same_sentences(
    make_checkpoint, tmp_path, declare_suite, monkeypatch
):
    content, folders = make_rows(40), []
    declaration = Path(declare_suite("reading", content))
    declaration.parent.rename(tmp_path / "tasks")
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    for seed in (0, 1):
        folders.append(tmp_path / f"run-{seed}")
        score(make_checkpoint("causal", adds=True, seed=seed), "reading", out=folders[-1])
    (versus,) = compare(folders)
    (comparison,) = versus.comparisons
    cells = [next(iter(runs.open_run(folder))) for folder in folders]
    a, b = (cell.summary.headline.value for cell in cells)
    assert (
        comparison.headline.a,
        comparison.headline.b,
        comparison.headline.value,
    ) == pytest.approx((a, b, b - a), abs=1e-9)
    estimates = [{g.name: g.estimate.value for g in cell.summary.groups} for cell in cells]
    assert {g.name: (g.a, g.b) for g in comparison.groups} == {
        name: pytest.approx((estimates[0][name], estimates[1][name]), abs=1e-9)
        for name in estimates[0]
    }
    rng, drawn = np.random.default_rng(3), []
    predicted = [read_rows(folder, cell) for folder, cell in zip(folders, cells, strict=True)]
    sentences = {}
    for index, row in enumerate(content):
        sentences.setdefault(row["sent_id"], []).append(index)
    for _ in range(300):
        drawn_rows = [
            index
            for sentence in rng.choice(list(sentences), len(sentences))
            for index in sentences[sentence]
        ]
        measures = []
        for predictions in predicted:
            eye_tracking, (self_paced, _), _ = compute_measures(
                [content[index] for index in drawn_rows],
                [predictions[index] for index in drawn_rows],
            )
            measures.append((eye_tracking + self_paced) / 2)
        drawn.append(measures[1] - measures[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert comparison.headline.high - comparison.headline.low == pytest.approx(high - low, rel=0.3)
    assert (
        comparison.headline.p is not None
        and comparison.headline.low < comparison.headline.value < comparison.headline.high
    )
    error = abs(comparison.headline.value) / stats.t.isf(
        comparison.headline.p / 2, len(sentences) - 1
    )
    assert error == pytest.approx(np.std(drawn), rel=0.5)
    assert {group.family for group in comparison.groups} >= {"Holm over 2 measures"}
    first = runs.open_run(folders[0])
    (same,) = differences(first, first)
    assert all((d.value, d.low, d.high, d.p) == (0, 0, 0, 1) for d in (same.headline, *same.groups))
    (back,) = compare([folders[0]], against=folders[1])
    assert back.comparisons[0].headline.value == pytest.approx(a - b, abs=1e-9)
    assert back.comparisons[0].headline.p == pytest.approx(comparison.headline.p)
