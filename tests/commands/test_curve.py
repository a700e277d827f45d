"""Learning curves: where a checkpoint stands, whose it is, what is missing, and what the table says
of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import large_runs
import numpy as np
import pytest
from scipy.stats import binomtest

from antlm_bench.cli.app import run as cli
from antlm_bench.errors import RunError, UsageError
from antlm_bench.reporting.curve_table import build_curve_table, collect_notes, sparkline
from antlm_bench.results.checkpoint_series import (
    CurvePoint,
    LearningCurve,
    build_curves,
    format_word_count,
    group_checkpoints,
    load_curves,
    words_seen,
)
from antlm_bench.results.training_log import POINTS_PER_RUN, read_training_log
from antlm_bench.types import Cell, Estimate, Manifest, Run, Summary

M = 1_000_000


def checkpoint(
    name: str, folder: str = "runs/a", weights: str = "", value: float = 0.5, **about: object
) -> Run:
    summary = Summary(
        "blimp", "causal", "accuracy", (), Estimate(value, 100, value - 0.1, value + 0.1), {}, ()
    )
    model = {"name": name, "weights": weights or f"{folder}{name}", **about}
    return Run(
        f"{folder}/{name}", Manifest(2, model, {}, ""), (Cell("blimp", "causal", "k", {}, summary),)
    )


def test_limited_checkpoints_are_left_out_and_named() -> None:
    limited, whole, last = (checkpoint(f"chck_{n}M") for n in (1, 2, 3))
    cell = replace(limited.cells[0], settings={"limit": 5})
    limited = replace(limited, cells=(cell,))
    (curve,) = build_curves([limited, whole, last])
    assert [point.checkpoint for point in curve.points] == ["chck_2M", "chck_3M"]
    assert curve.other_items == ("chck_1M",)
    (note,) = collect_notes([curve], ())
    assert "left out chck_1M, scored on other items" in note


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chck_1M", M),
        ("chck_900M", 900 * M),
        ("babylm/x@chck_20M", 20 * M),
        ("ckpt-1.5B", 1_500 * M),
        ("gpt-bert-10m", None),  # the corpus of a model, not the words of a checkpoint
        ("checkpoint-2000", None),  # steps
        ("chck_0M", None),
        ("main", None),
    ],
)
def test_words_seen_are_read_from_names_that_mean_them(name: str, words: int | None) -> None:
    assert words_seen(checkpoint(name)) == words


def test_what_the_card_says_goes_before_the_name() -> None:
    assert words_seen(checkpoint("chck_1M", words_seen=1_000_437)) == 1_000_437
    assert words_seen(checkpoint("main", words_seen=100 * M)) == 100 * M
    assert words_seen(checkpoint("main", words_seen=float("nan"))) is None


def test_a_series_is_a_hub_id_or_a_folder_and_architecture() -> None:
    opened = [
        checkpoint("chck_2M", "x/a"),
        checkpoint("chck_1M", "x/a"),
        checkpoint("chck_1M", "y/a"),
        checkpoint("chck_1M", "train/b/scores"),
        checkpoint("hub/c@chck_1M", "reports"),
        checkpoint("hub/c@chck_2M", "reports"),
        checkpoint("chck_1M", "reports", architecture="Llama"),
        checkpoint("chck_2M", "reports", architecture="LtgBert"),
    ]
    found = {
        name: [run.manifest.model["name"] for run in members]
        for name, members in group_checkpoints(opened).items()
    }
    assert sorted(found.values()) == [
        ["chck_1M"],
        ["chck_1M"],
        ["chck_1M"],
        ["chck_1M", "chck_2M"],
        ["chck_2M"],
        ["hub/c@chck_1M", "hub/c@chck_2M"],
    ]
    assert len(found) == 6


def test_missing_milestones_are_gaps_and_equal_weights_are_twins() -> None:
    opened = [
        checkpoint(f"chck_{n}M", weights="w9" if n == 10 else f"w{n}", value=n / 20)
        for n in (7, 8, 9, 10, 30)
    ]
    [found] = build_curves(opened)
    assert [mark // M for mark in found.milestones] == [7, 8, 9, 10, 20, 30]
    assert [[point.milestone // M for point in stretch] for stretch in found.segments] == [
        [7, 8, 9, 10],
        [30],
    ]
    assert [point.duplicate_of for point in found.points] == ["", "", "", "chck_9M", ""]
    assert sparkline(found, 0.35, 1.15) == "▁▁▂=·█"
    assert collect_notes([found], ["main"]) == [
        "a: chck_10M has the same weights as chck_9M.",
        "a: no result at 20M words.",
        "Left out, because the number of words seen is unknown: main.",
    ]


def test_a_gap_names_the_suite_that_has_it() -> None:
    opened = [checkpoint(f"chck_{n}M", weights=f"w{n}", value=0.5) for n in (1, 2, 3)]
    [whole] = build_curves(opened)
    partial = replace(whole, suite="other", points=whole.points[:1] + whole.points[2:])
    notes = collect_notes([whole, partial], [])
    assert notes == [f"{whole.series_name}, other: no result at 2M words."]


def test_equal_notes_are_one_sentence() -> None:
    """Of two series with a suite each, and with two suites."""
    opened = [
        checkpoint(f"chck_{n}M", folder, f"{folder}{n}", n / 20)
        for folder in ("x/a", "x/b")
        for n in (1, 2, 3)
    ]
    curves = [
        replace(
            curve, suite=suite, points=(curve.points[0], replace(curve.points[2], caveats=("c",)))
        )
        for curve in build_curves(opened)
        for suite in ("blimp", "comps")
    ]
    assert collect_notes(curves, []) == [
        "a, b: no result at 2M words.",
        "blimp, comps, chck_3M: c.",
    ]
    left_out = [replace(curve, other_items=("chck_2M",)) for curve in curves[:2]]
    assert collect_notes(left_out, [])[0].startswith("a, blimp, comps: left out chck_2M, scored on")
    notes = {row.cells[-1].notes for row in build_curve_table(curves, []).rows}
    assert len(notes) == 1


def test_the_end_of_a_training_is_no_gap_of_others() -> None:
    opened = [
        checkpoint("chck_1M", "x/a"),
        checkpoint("main", "x/a", words_seen=5 * M // 2),
        checkpoint("chck_1M", "x/b"),
        checkpoint("main", "x/b", words_seen=3 * M),
    ]
    notes = collect_notes(build_curves(opened), [])
    assert not [note for note in notes if "2.5M" in note]


def test_the_best_of_several_checkpoints_is_said_to_be_optimistic() -> None:
    [curve] = build_curves([checkpoint(f"chck_{n}M", value=n / 100) for n in (43, 44, 45)])

    [row] = build_curve_table([curve], []).rows

    # sqrt(2 ln 3) standard errors of .1 / 1.96
    assert curve.optimism == pytest.approx(1.4823 * 0.1 / 1.959964, rel=1e-4)
    assert "the best of 3 checkpoints is optimistic" in row.cells[-1].notes[0]
    assert "by up to 7.6 points" in row.cells[-1].notes[0]
    assert build_curves([checkpoint("chck_1M")])[0].optimism is None


def test_checkpoints_far_below_the_best_add_no_optimism() -> None:
    estimates = [Estimate(0.5, 100, 0.4, 0.6)] * 9  # wide, and far from the last two
    estimates += [Estimate(0.97, 100, 0.93, 0.99), Estimate(0.98, 100, 0.94, 1.0)]
    points = tuple(CurvePoint(n, n, f"c{n}", each) for n, each in enumerate(estimates))

    def optimism(*points: CurvePoint) -> float | None:
        return LearningCurve("a", "s", "causal", "accuracy", points, ()).optimism

    # sqrt(2 ln 2) standard errors of .03 / 1.96
    assert optimism(*points) == pytest.approx(1.1774 * 0.03 / 1.959964, rel=1e-4)
    assert optimism(points[0], points[-1]) == 0.0
    outside_of_its_interval = CurvePoint(10, 10, "c10", Estimate(0.9, 100, 0.7, 0.8))
    assert optimism(points[0], outside_of_its_interval) == 0.0


@pytest.mark.parametrize("highest", [0.7, 0.95, 0.995])
def test_the_stated_optimism_is_an_upper_bound(highest: float) -> None:
    rng, n = np.random.default_rng(0), 200
    truth = highest - (highest - 0.5) * np.exp(-np.arange(19) / 3)
    excess, bounds = [], []
    for _ in range(200):
        values = rng.binomial(n, truth) / n
        counts = (round(n * value) for value in values)
        ends = [binomtest(count, n).proportion_ci(method="wilson") for count in counts]
        points = tuple(
            CurvePoint(i, i, f"c{i}", Estimate(value, n, *pair))
            for i, (value, pair) in enumerate(zip(values.tolist(), ends, strict=True))
        )
        curve = LearningCurve("a", "s", "causal", "accuracy", points, ())
        excess.append(curve.best_point.estimate.value - truth[curve.best_point.milestone])
        bounds.append(curve.optimism)

    assert 0 < np.mean(excess) < np.mean(bounds) < 3 * np.mean(excess)


def test_the_best_checkpoint_in_surprisal_is_the_lowest() -> None:
    points = tuple(CurvePoint(n, n, f"c{n}", Estimate(n, 9, n - 1, n + 1)) for n in (1, 2))

    assert LearningCurve("a", "s", "causal", "surprisal", points, (1, 2)).best_point.milestone == 1
    assert LearningCurve("a", "s", "causal", "accuracy", points, (1, 2)).best_point.milestone == 2


def test_gaps_are_milestones_or_checkpoints_of_other_series() -> None:
    opened = [checkpoint(f"words_{n}", "x/a") for n in ("15k", "35k")] + [
        checkpoint("words_25k", "x/b")
    ]
    found = {one.series_name: one for one in build_curves(opened)}
    assert found["a"].milestones == (15_000, 25_000, 35_000)
    assert len(found["a"].segments) == 2
    assert found["b"].milestones == (25_000,)


def test_one_checkpoint_scored_into_two_folders_is_one_point() -> None:
    assert (
        len(
            build_curves([checkpoint("chck_1M", weights="w"), checkpoint("chck_1M", weights="w")])[
                0
            ].points
        )
        == 1
    )


def test_two_checkpoints_cannot_share_a_place() -> None:
    with pytest.raises(UsageError, match="two checkpoints of a have seen 1M words") as caught:
        build_curves([checkpoint("chck_1M", weights="v"), checkpoint("chck_1M", weights="w")])
    assert "--out" in caught.value.hint


def test_a_flat_curve_has_bars_of_one_height() -> None:
    point = CurvePoint(M, M, "chck_1M", Estimate(0.5, 1, 0.4, 0.6))
    assert sparkline(LearningCurve("a", "s", "causal", "accuracy", (point,), (M,)), 0.5, 0.5) == "▅"


@pytest.mark.parametrize(
    ("words", "said"), [(999, "999"), (300_000, "300k"), (M, "1M"), (1_500 * M, "1.5B")]
)
def test_amounts_are_short(words: int, said: str) -> None:
    assert format_word_count(words) == said


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "babyllama"
    large_runs.write_checkpoint_runs(folder, 0.8, [1, 2, 4, 10], twins=[2])
    return folder


@pytest.mark.long
def test_the_verb_prints_a_line_per_suite_and_draws(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg, png = tmp_path / "new" / "c.svg", tmp_path / "c.png"
    assert cli(["curve", str(family), "--svg", str(svg), "--png", str(png)]) == 0
    out = capsys.readouterr().out
    assert (
        "1M – 10M" in out
        and "chck_2M has the same weights as chck_1M" in out
        and "no result at 3M, 5M" in out
    )
    words = {text.text for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"blimp-fast", "supplement-fast", "babyllama", "words seen"} <= words
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_csv_and_json_hold_a_row_per_checkpoint(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["curve", str(family), "--suite", "blimp-fast", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["words"], row["twin"]) for row in rows] == [
        (str(M), ""),
        (str(2 * M), "chck_1M"),
        (str(4 * M), ""),
        (str(10 * M), ""),
    ]
    assert cli(["curve", str(family), "--suite", "blimp-fast", "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert [float(row["value"]) for row in rows] == [row["value"] for row in exact]


@pytest.mark.long
def test_mistakes_are_named(family: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint was scored on 'nope'"):
        load_curves([family], ["nope"])
    large_runs.write_model_run(tmp_path / "r", "plain", 0.7, items=1)
    with pytest.raises(UsageError, match="how many words"):
        load_curves([tmp_path / "r"])
    with pytest.raises(RunError, match="not a run folder"):
        load_curves([tmp_path / "nothing"])


@pytest.mark.long
def test_curves_need_no_torch(family: Path) -> None:
    code = "import sys\nfrom antlm_bench.cli.app import run\n"
    code += f"assert run(['curve', {str(family)!r}]) == 0\n"
    code += "print('loaded:', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert not {"torch", "transformers", "altair"} & set(
        done.stdout.rpartition("loaded:")[2].split()
    )


def test_a_log_is_thinned_to_means_and_cut_at_switches(tmp_path: Path) -> None:
    steps = 6 * POINTS_PER_RUN
    found = read_training_log(large_runs.write_training_log(tmp_path / "antlm", steps))
    assert (found.name, found.steps) == ("antlm", steps)
    assert [name for _, name in found.switches] == ["mlm", "clm"]
    assert {(loss.objective, loss.stretch) for loss in found.losses} == {
        ("clm", 0),
        ("mlm", 1),
        ("clm", 2),
    }
    assert POINTS_PER_RUN <= len(found.losses) <= POINTS_PER_RUN + 4
    lines = [json.loads(line) for line in (tmp_path / "antlm/train.jsonl").read_text().splitlines()]
    first = [line["loss"]["clm"] for line in lines[:5]]  # six steps a bin; the first begins at 1
    assert found.losses[0].value == pytest.approx(sum(first) / 5)


def test_a_log_may_end_in_half_a_line_but_not_hold_one(tmp_path: Path) -> None:
    log = large_runs.write_training_log(tmp_path / "t", 30) / "train.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 31, "wor')
    assert read_training_log(tmp_path / "t").steps == 30
    for bad, message in (
        ('{"step"\n', "not JSON"),
        ('{"words": "1", "loss": {}}\n', "not a training step"),
        ("3\n", "not a training step"),
    ):
        log.write_text(bad + whole)
        with pytest.raises(RunError, match=message) as caught:
            read_training_log(tmp_path / "t")
        assert caught.value.location == f"{log}:1"


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no training log") as caught:
        read_training_log(tmp_path)
    assert "antlm-bench train" in caught.value.hint
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(RunError, match="no step"):
        read_training_log(tmp_path)
