"""`effects` from a table of surprisals to means, contrasts, a table for R, and figures."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import antlm_bench
from antlm_bench.cli.app import run
from antlm_bench.errors import BenchError, DataError, UsageError
from antlm_bench.keywords import DesignKeywords
from antlm_bench.reporting.effects_figures import write_plots
from antlm_bench.reporting.effects_table import build_effects_table
from antlm_bench.reporting.writers import print_table
from antlm_bench.results.effects import DesignResult
from antlm_bench.results.experiment_table import DesignOptions

HEADER = ("model", "item", "condition", "region", "word_index", "word", "surprisal_bits")


def make_frame(
    conditions: tuple[str, ...] = ("ambiguous", "unambiguous"),
    items: int = 8,
    models: tuple[str, ...] = ("small",),
    seed: int = 0,
) -> pd.DataFrame:
    """Draw surprisals of texts of five words: two before, a critical region of two, one after."""
    rng = np.random.default_rng(seed)
    rows = [
        (model, str(item), condition, region, number, f"w{number}", rng.gamma(2, 3))
        for model in models
        for item in range(1, items + 1)
        for condition in conditions
        for number, region in enumerate(("", "", "critical", "critical", "spill"), start=1)
    ]
    return pd.DataFrame(rows, columns=HEADER)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return make_frame(models=("small", "large"))


def sums(frame: pd.DataFrame, region: str, condition: str, model: str = "small") -> np.ndarray:
    chosen = frame[
        (frame.region == region) & (frame.condition == condition) & (frame.model == model)
    ]
    return chosen.groupby("item").surprisal_bits.sum().to_numpy()


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


# ---- numbers


def test_effects_are_paired_t_tests_of_sums_over_words(frame: pd.DataFrame) -> None:
    result = antlm_bench.effects(frame)
    effects = {(e.group["model"], e.region): e for e in result.effects}
    assert list(effects) == [
        (model, region) for model in ("small", "large") for region in ("critical", "spill")
    ]
    for (model, region), effect in effects.items():
        first = sums(frame, region, "ambiguous", model)
        second = sums(frame, region, "unambiguous", model)
        test = stats.ttest_rel(first, second)
        assert effect.name == "ambiguous - unambiguous"
        assert effect.mean.value == pytest.approx((first - second).mean())
        assert (effect.mean.t, effect.mean.p) == pytest.approx((test.statistic, test.pvalue))


def test_means_are_those_of_the_items(frame: pd.DataFrame) -> None:
    [cell] = [
        each
        for each in antlm_bench.effects(frame).means
        if (each.group["model"], each.region, each.condition) == ("large", "spill", "ambiguous")
    ]
    values = sums(frame, "spill", "ambiguous", "large")
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert cell.mean[:4] == pytest.approx((values.mean(), low, high, len(values)))


def test_tests_of_one_model_are_corrected_together(frame: pd.DataFrame) -> None:
    from statsmodels.stats.multitest import multipletests

    result = antlm_bench.effects(frame, factors="condition")
    for model in ("small", "large"):
        effects = [effect for effect in result.effects if effect.group["model"] == model]
        expected = multipletests([effect.mean.p for effect in effects], method="holm")[1]
        assert [effect.adjusted for effect in effects] == pytest.approx(list(expected))
        assert {effect.family for effect in effects} == {"Holm over 2 tests"}


def test_the_baseline_is_subtracted(frame: pd.DataFrame) -> None:
    plain = antlm_bench.effects(frame, regions="spill").effects[0]
    flipped = antlm_bench.effects(frame, regions="spill", baseline="ambiguous").effects[0]
    assert flipped.name == "unambiguous - ambiguous"
    assert flipped.mean.value == pytest.approx(-plain.mean.value)


def test_factors_are_the_parts_of_the_condition() -> None:
    frame = make_frame(("gap_wh", "gap_that", "none_wh", "none_that"))
    result = antlm_bench.effects(frame, factors=["gap", "filler"], regions="critical")
    assert [effect.name for effect in result.effects] == [
        "gap: gap - none",
        "filler: wh - that",
        "gap × filler: (gap - none) × (wh - that)",
    ]
    a, b, c, d = (
        sums(frame, "critical", condition)
        for condition in ("gap_wh", "gap_that", "none_wh", "none_that")
    )
    expected = stats.ttest_1samp((a - b) - (c - d), 0)
    assert result.effects[2].mean.value == pytest.approx(((a - b) - (c - d)).mean())
    assert result.effects[2].mean.p == pytest.approx(expected.pvalue)


def test_factors_are_columns_and_may_include_the_model(frame: pd.DataFrame) -> None:
    result = antlm_bench.effects(frame, factors=["model", "condition"], regions="critical")
    difference = {
        model: sums(frame, "critical", "ambiguous", model)
        - sums(frame, "critical", "unambiguous", model)
        for model in ("small", "large")
    }
    interaction = result.effects[2]
    assert not interaction.group
    assert interaction.mean.value == pytest.approx(
        (difference["small"] - difference["large"]).mean()
    )


def test_a_contrast_is_a_weighted_sum_of_conditions() -> None:
    frame = make_frame(("a", "b", "c"))
    result = antlm_bench.effects(frame, contrasts="a - 0.5*b - 0.5*c", regions="spill")
    a, b, c = (sums(frame, "spill", condition) for condition in "abc")
    assert result.effects[0].mean.value == pytest.approx((a - (b + c) / 2).mean())


def test_effects_per_value_of_a_column() -> None:
    frame = make_frame()
    frame["construction"] = np.where(frame.item.astype(int) <= 4, "MV/RR", "NP/S")
    result = antlm_bench.effects(frame, per="construction", regions="critical")
    assert [(e.group["construction"], e.mean.n) for e in result.effects] == [
        ("MV/RR", 4),
        ("NP/S", 4),
    ]


def test_keywords_are_the_options_and_their_singular_forms() -> None:
    names = {field.name for field in fields(DesignOptions)}
    assert set(DesignKeywords.__annotations__) == names | {"region", "contrast"}


def test_files_frames_and_parquet_give_the_same(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "t.parquet")
    write_csv(frame, tmp_path / "t.csv")
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    expected = antlm_bench.effects(frame).table().to_rows()
    for name in ("t.parquet", "t.csv", "t.tsv"):
        rows = antlm_bench.effects(tmp_path / name).table().to_rows()
        for row, other in zip(rows, expected, strict=True):
            assert row == pytest.approx(other)


def test_a_polars_like_frame_is_read_by_arrow(frame: pd.DataFrame) -> None:
    class Frame:
        columns = HEADER

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return frame.__arrow_c_stream__(requested_schema)

    rows = antlm_bench.effects(Frame()).table().to_rows()
    assert rows == antlm_bench.effects(frame).table().to_rows()


def test_a_frame_of_an_older_pandas_and_one_with_an_index_are_read(frame: pd.DataFrame) -> None:
    class Frame:
        columns = HEADER

        def to_dict(self, orient: str) -> object:
            return frame.to_dict(orient)

    rows = antlm_bench.effects(frame).table().to_rows()
    assert antlm_bench.effects(Frame()).table().to_rows() == rows
    shuffled = frame.set_index(frame.index + 100)
    assert antlm_bench.effects(shuffled).table().to_rows() == rows


# ---- what is missing


def test_items_without_a_condition_are_left_out_and_counted() -> None:
    frame = make_frame()
    frame = frame[~((frame.item == "3") & (frame.condition == "ambiguous"))]
    result = antlm_bench.effects(frame)
    assert {(effect.mean.n, effect.num_left_out) for effect in result.effects} == {(7, 1)}
    assert any(note.startswith("1 of 8 items lack a value of ambiguous") for note in result.notes)


def test_a_word_without_surprisal_leaves_its_item_out() -> None:
    frame = make_frame()
    index = frame.index[(frame.item == "2") & (frame.word_index == 3)][0]
    frame.loc[index, "surprisal_bits"] = np.nan
    critical, spill = antlm_bench.effects(frame).effects
    assert (critical.mean.n, spill.mean.n) == (7, 8)


def test_one_item_has_effects_without_intervals() -> None:
    result = antlm_bench.effects(make_frame(items=1))
    assert result.effects[0].mean.low is None and result.effects[0].adjusted is None
    assert "one item has no interval and no test" in result.notes


def test_a_misspelt_condition_is_noticed() -> None:
    frame = make_frame(items=12)
    frame.loc[(frame.item == "5") & (frame.condition == "ambiguous"), "condition"] = "ambigous"
    result = antlm_bench.effects(frame, contrasts="ambiguous - unambiguous")
    assert any(
        "'ambigous' is that of 1 of 12 items, which lack 'ambiguous': is it misspelt?" in note
        for note in result.notes
    )


def drop(column: str) -> pd.DataFrame:
    return make_frame().drop(columns=column)


@pytest.mark.parametrize(
    ("table", "settings", "error", "message"),
    [
        (drop("item"), {}, DataError, "the column 'item' is missing"),
        (drop("condition"), {}, DataError, "the column 'condition' is missing"),
        (drop("surprisal_bits"), {}, DataError, "the column 'surprisal_bits' is missing"),
        (make_frame(("a",)), {}, DataError, "one level, 'a': there is nothing to compare"),
        (make_frame(items=0), {}, DataError, "0 rows"),
        (make_frame().assign(surprisal_bits=np.nan), {}, DataError, "'surprisal_bits' are missing"),
        (make_frame(), {"baseline": "unambigous"}, UsageError, "unknown level 'unambigous'"),
        (make_frame(), {"regions": "crit"}, UsageError, "unknown region 'crit'"),
        (make_frame(), {"per": "constr"}, UsageError, "'constr' is not a column"),
        (make_frame(), {"factors": ["model", "x"]}, UsageError, "'x' is not a column, but"),
        (make_frame(), {"factors": ["x", "y"]}, DataError, "has 1 part between '_', but there"),
        (make_frame(), {"contrasts": "ambiguous - b"}, UsageError, "unknown condition 'b'"),
        (make_frame(), {"contrasts": "ambiguous"}, UsageError, "sum to 1, not to 0"),
        (make_frame(), {"contrasts": "ambiguous - ambiguous"}, UsageError, "cancel out"),
        (make_frame(), {"contrasts": "nan*ambiguous - unambiguous"}, UsageError, "'nan'"),
        (
            make_frame(("a_x", "a_y", "b_x")),
            {"factors": ["f", "g"]},
            DataError,
            "the design lacks 1 cell: f b, g y",
        ),
        (
            pd.concat([make_frame(), make_frame()]),
            {},
            DataError,
            "item '1' has two values for condition 'ambiguous'",
        ),
        (
            make_frame().assign(item=lambda f: f.item + f.condition),
            {},
            DataError,
            "none of 16 items has all conditions of ambiguous - unambiguous in the same region",
        ),
        (make_frame().assign(surprisal_bits="x"), {}, DataError, "must be a number, not 'x'"),
        (make_frame().assign(surprisal_bits=-1e300), {}, DataError, "beyond the 1e+100"),
        (["a text"], {}, UsageError, "is not a table"),
        (make_frame(), {"region": 3}, UsageError, "is neither a name nor a list of names"),
        (make_frame(), {"regoins": "a"}, UsageError, "unknown option"),
    ],
)
def test_what_cannot_be_compared_is_said(table, settings, error, message) -> None:
    with pytest.raises(error) as raised:
        antlm_bench.effects(table, **settings)
    assert message in str(raised.value)
    assert isinstance(raised.value, BenchError) and raised.value.exit_code < 70


# ---- output


def test_the_table_for_r_has_a_row_per_item_condition_and_region(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    antlm_bench.effects(frame, tmp_path / "long.csv")
    long = pd.read_csv(tmp_path / "long.csv", dtype={"item": str}, keep_default_na=False)
    assert list(long) == [
        "model", "item", "condition", "region", "num_words", "surprisal_bits",
    ]  # fmt: skip
    assert len(long) == 2 * 8 * 2 * 3
    expected = frame.groupby(["model", "item", "condition", "region"]).surprisal_bits.sum()
    got = long.set_index(["model", "item", "condition", "region"]).surprisal_bits.astype(float)
    assert np.allclose(got, expected.loc[got.index], atol=1e-6)


def test_factors_are_columns_of_the_table_for_r(tmp_path: Path) -> None:
    frame = make_frame(("gap_wh", "gap_that", "none_wh", "none_that"))
    antlm_bench.effects(frame, tmp_path / "long.csv", factors=["gap", "filler"])
    first = next(csv.DictReader((tmp_path / "long.csv").read_text().splitlines()))
    assert (first["condition"], first["gap"], first["filler"]) == ("gap, wh", "gap", "wh")


def test_the_command_prints_effects_and_means(frame, tmp_path, capsys) -> None:
    path = write_csv(frame, tmp_path / "t.csv")
    assert run(["effects", str(path), "--baseline", "unambiguous", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert [row["kind"] for row in rows] == ["effect"] * 4 + ["mean"] * 8
    assert rows[0]["value"] == pytest.approx(antlm_bench.effects(frame).effects[0].mean.value)
    assert run(["effects", str(path)]) == 0
    assert "Holm over 2 tests of a model" in " ".join(capsys.readouterr().out.split())


def test_results_are_frames(frame: pd.DataFrame) -> None:
    result = antlm_bench.effects(frame)
    assert list(result.to_pandas().columns)[:3] == ["model", "region", "effect"]
    assert len(pd.DataFrame.from_arrow(result)) == len(result.effects)
    assert len(result.table("means")) == len(result.means)
    assert "ambiguous - unambiguous" in result._repr_html_()
    with pytest.raises(UsageError, match="there is no table 'mean'"):
        result.table("mean")


# ---- figures


@pytest.fixture(scope="module")
def result(frame: pd.DataFrame) -> DesignResult:
    return antlm_bench.effects(frame)


@pytest.mark.parametrize("kind", ["sentence", "regions", "critical", "effects"])
def test_figures_are_svg_with_their_conditions(result: DesignResult, kind: str) -> None:
    drawing = antlm_bench.plot(result, kind)
    svg = drawing._repr_mimebundle_()["image/svg+xml"]
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.text}
    names = {"small", "large"} if kind == "effects" else {"ambiguous", "unambiguous", "small"}
    assert names <= {text.strip() for text in texts}


def test_words_are_aligned_at_the_critical_region(frame: pd.DataFrame) -> None:
    shifted = frame[~((frame.condition == "ambiguous") & (frame.word_index == 1))].copy()
    shifted.loc[shifted.condition == "ambiguous", "word_index"] -= 1
    means = antlm_bench.effects(shifted).word_means("critical")
    at_0 = [m for m in means if m.position == 0 and m.group["model"] == "small"]
    for mean in at_0:
        chosen = frame[(frame.condition == mean.condition) & (frame.word_index == 3)]
        values = chosen[chosen.model == "small"].surprisal_bits
        assert mean.mean.value == pytest.approx(values.mean())
    assert {mean.words for mean in at_0} == {("w3",)}


def test_one_item_labels_the_axis_with_its_words(result: DesignResult) -> None:
    [panel, _] = antlm_bench.plot(result, "sentence", item="2").panels
    assert [row[0].text for row in panel.table.rows[::2]] == ["w1", "w2", "w3", "w4", "w5"]


def test_captions_of_effects_name_the_families_of_all_models() -> None:
    small, large = make_frame(), make_frame(models=("large",))
    large = large[large.region != "spill"]

    result = antlm_bench.effects(pd.concat([small, large]))
    [panel] = antlm_bench.plot(result, "effects").panels

    families = {effect.family for effect in result.effects}
    assert families == {"Holm over 2 tests", "Holm over 1 test"}
    assert "Holm over 2 tests or Holm over 1 test, per model" in panel.caption


def test_captions_of_a_single_item_mention_no_interval() -> None:
    result = antlm_bench.effects(make_frame())
    alone = antlm_bench.effects(make_frame(items=1))

    [of_item] = antlm_bench.plot(result, "sentence", item="2").panels
    [of_mean] = antlm_bench.plot(result, "sentence").panels
    [untested] = antlm_bench.plot(alone, "effects").panels

    assert of_item.caption == "Values, item 2."
    assert of_mean.caption == "Means with 95% intervals over items, word by word."
    assert untested.caption.endswith("No effect is tested: one item has no interval and no test.")


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_a_figure_is_written_in_each_format(frame, tmp_path, suffix, capsys) -> None:
    path, figure = write_csv(frame, tmp_path / "t.csv"), tmp_path / "new" / f"figure.{suffix}"
    assert run(["effects", str(path), "--figure", str(figure)]) == 0
    start = {"png": b"\x89PNG", "svg": b"<svg", "html": b"<!doctype html>"}[suffix]
    assert figure.read_bytes().startswith(start)
    if suffix == "html":
        page = figure.read_text()
        assert page.count("<figure>") == 2 + 2 + 2 + 1  # a panel per model; one figure of effects
        assert page.count("<script") == 1  # its own, which the policy allows by its hash


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--figure", "a.pdf"], "what kind of figure?"),
        (["--plot", "regions"], "there is no figure"),
        (["--figure", "a.png", "--plot", "sentence", "--item", "99"], "unknown item '99'"),
        (["--figure", "a.png", "--item", "1"], "a single item has no interval"),
        (["--device", "cpu"], "no model is opened: the table holds surprisals"),
        (["--method", "mlm"], "no model is opened: the table holds surprisals"),
        (["--position", "p"], "they describe stimuli, but the table holds surprisals"),
        (["--region", "x", "--figure", "a.png"], "unknown region 'x'"),
    ],
)
def test_options_without_effect_are_refused(frame, tmp_path, argv, message, capsys) -> None:
    path = write_csv(frame, tmp_path / "t.csv")
    argv = [str(tmp_path / each) if each.startswith("a.") else each for each in argv]
    assert run(["effects", str(path), *argv]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("a.*"))


def test_names_of_strangers_are_only_text(tmp_path: Path) -> None:
    frame = make_frame(("<b>x</b>", "a'b"), models=("if", "<script>"))
    path = tmp_path / "page.html"
    antlm_bench.plot(antlm_bench.effects(frame)).save(path)
    text = path.read_text()
    # The page has one script, its own, and forbids every other.
    assert text.count("<script") == 1 and "script-src &#39;sha256-" in text
    assert "<b>x" not in text


def test_the_page_of_effects_has_figures_tables_and_both_colour_schemes(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = antlm_bench.effects(make_frame(models=("a" * 40, "b" * 40)))
    plots = [antlm_bench.plot(result, kind) for kind in ("regions", "effects")]
    write_plots(plots, path, result)
    text = path.read_text()
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert text.count("<caption") == text.count("<table") >= 5
    assert 'stroke="var(--series-2)"' in text and "http://www.w3.org" not in text
    levels = [int(level) for level in re.findall(r"<h([1-6])>", text)]
    assert levels[:2] == [1, 2] and all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_a_narrow_terminal_gets_a_heading_per_group(monkeypatch, capsys) -> None:
    """Each name stands once, and no column is torn off its rows."""
    model = "organisation/babylm-baseline-of-100m-words@chck_100M"
    table = build_effects_table(antlm_bench.effects(make_frame(models=(model, "b"))))
    monkeypatch.setenv("COLUMNS", "80")
    print_table(table)
    lines = capsys.readouterr().out.split("\n")
    assert max(map(len, lines)) <= 80
    effect_lines = lines[: next(i for i, line in enumerate(lines) if "means" in line)]
    assert sum("organisation/babylm-" in line for line in effect_lines) == 1
    assert next(line for line in lines if "difference" in line).rstrip().endswith("p adj.")
    effects = [line for line in lines if re.search(r"[-+]\d+\.\d\d +\[", line)]
    assert len(effects) == 2 * 2  # two models, two regions: value and interval on one line


# ---- with a model


def test_effects_of_models_equal_a_plain_loop(make_checkpoint, tmp_path, capsys) -> None:
    """Surprisals by one forward pass per text with transformers, differences by pandas."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [str(make_checkpoint("causal", adds=True, seed=seed)) for seed in (0, 1)]
    stimuli = tmp_path / "items.csv"
    rows = [("the cat sees the dog", 3, "the old cat sees the dog", 4),
            ("the dog sees a cat", 3, "the old dog sees a cat", 4)]  # fmt: skip
    stimuli.write_text(
        "item,long,long_at,short,short_at\n"
        + "".join(f"{n},{b},{q},{a},{p}\n" for n, (a, p, b, q) in enumerate(rows))
    )
    argv = ["effects", str(stimuli), "--conditions", "long,short", "--position", "long_at,short_at"]
    argv += [word for model in models for word in ("--model", model)]
    assert run([*argv, "--spillover", "1", "--json"]) == 0
    got = {
        (row["model"], row["region"]): row["value"]
        for row in json.loads(capsys.readouterr().out)["table"]["rows"]
        if row["kind"] == "effect"
    }
    expected = {}
    for path in models:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path).eval()

        def bits(text: str, number: int) -> float:
            words = text.split()
            start = len(" ".join(words[: number - 1]))
            end = len(" ".join(words[:number]))
            encoded = tokenizer(text, return_offsets_mapping=True)  # noqa: B023
            ids = torch.tensor([encoded["input_ids"]])
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)  # noqa: B023
            return sum(
                -float(logprobs[i - 1, ids[0, i]]) / math.log(2)
                for i, (first, last) in enumerate(encoded["offset_mapping"])
                if last > first and start < last <= end
            )

        for shift, region in enumerate(("critical", "critical+1")):
            differences = [bits(b, q + shift) - bits(a, p + shift) for a, p, b, q in rows]
            expected[Path(path).name, region] = sum(differences) / len(differences)
    assert got == pytest.approx(expected, abs=1e-4)
