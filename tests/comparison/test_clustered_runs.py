"""Runs with clusters: stored, summarized, compared, and what is said about runs without them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pair_runs import make_cell, write_run
from prediction_rows import PredictionRow

from antlm_bench import runs, statistics
from antlm_bench.commands.export import export, import_results
from antlm_bench.comparison import compare_runs
from antlm_bench.comparison.join import UNCLUSTERED_NOTE
from antlm_bench.comparison.paired import FEW_CLUSTERS_NOTE, few_clusters_notes
from antlm_bench.comparison.summary_check import open_verified_run
from antlm_bench.exports.items_csv import format_items_csv
from antlm_bench.reporting.comparison_table import collect_notes

SIZE, NUMBER = 5, 40


def make_rows(seed: int, with_clusters: bool = True) -> list[PredictionRow]:
    """Make clusters of SIZE items in two paradigms, all of a cluster right or all wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    for cluster in range(NUMBER):
        gap = rng.normal(0.5, 1)
        for index in range(SIZE):
            rows.append(
                PredictionRow(
                    id=f"i{cluster}.{index}",
                    gold=0,
                    pred=int(gap < 0),
                    scores=(gap, 0.0),
                    tokens=(1, 1),
                    characters=(1, 1),
                    labels={"paradigm": f"p{index % 2}"},
                    cluster=f"c{cluster}" if with_clusters else "",
                )
            )
    return rows


def write(folder: Path, seed: int, with_clusters: bool = True, suite: str = "toy"):
    cell = make_cell(make_rows(seed, with_clusters), suite=suite, groups=("paradigm",))
    return write_run(folder, cell, name=folder.name)


def test_a_summary_counts_clusters_and_is_wider(tmp_path: Path) -> None:
    clustered = write(tmp_path / "a", 1)["toy"].summary
    independent = write(tmp_path / "b", 1, with_clusters=False)["toy"].summary

    assert (clustered.num_clusters, independent.num_clusters) == (NUMBER, 0)
    assert clustered.headline.value == independent.headline.value
    wide, narrow = (s.headline.high - s.headline.low for s in (clustered, independent))
    assert wide / narrow == pytest.approx(SIZE**0.5, rel=0.15)
    assert "intervals count 40 clusters of items that belong together" in clustered.notes
    assert independent.notes == tuple(n for n in clustered.notes if "clusters" not in n)


def test_clusters_survive_the_run_folder(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 1)

    clusters = runs.read_predictions(run.path, run["toy"]).clusters

    assert clusters is not None
    assert np.array_equal(clusters, np.repeat(np.arange(NUMBER), SIZE))
    assert open_verified_run(run.path)["toy"].summary == run["toy"].summary


def test_a_difference_counts_clusters_and_agrees_with_its_p(tmp_path: Path) -> None:
    [found] = compare_runs(write(tmp_path / "a", 1), write(tmp_path / "b", 2))

    head = found.headline
    before, after = (np.array([row.pred == 0 for row in make_rows(seed)]) for seed in (1, 2))
    codes = np.tile(np.arange(SIZE) % 2, NUMBER).astype(np.int32)
    interval, p = statistics.score_test(
        after.astype(float) - before,
        codes,
        np.full(2, 0.5),
        clusters=np.repeat(np.arange(NUMBER), SIZE),
    )
    assert (head.low, head.high) == pytest.approx(tuple(interval))
    assert head.p == pytest.approx(p)
    group = found.groups[0]
    assert (group.p < 0.05) == (group.low > 0 or group.high < 0)


def test_a_comparison_states_the_design_effect_of_its_clusters(tmp_path: Path) -> None:
    [clustered] = compare_runs(write(tmp_path / "a", 1), write(tmp_path / "b", 2))
    [plain] = compare_runs(
        write(tmp_path / "c", 1, with_clusters=False), write(tmp_path / "d", 2, with_clusters=False)
    )

    # All items of a cluster are alike, so that clusters of SIZE are worth one item each.
    assert clustered.headline.design_effect == pytest.approx(SIZE, rel=0.15)
    assert plain.headline.design_effect is None
    assert any("design effect of the clusters" in note for note in collect_notes(clustered, ""))


def test_clusters_of_one_run_are_enough(tmp_path: Path) -> None:
    old, new = write(tmp_path / "a", 1, with_clusters=False), write(tmp_path / "b", 2)

    [mixed] = compare_runs(old, new)
    [both] = compare_runs(write(tmp_path / "c", 1), new)

    assert replace(mixed.headline, views={}) == replace(both.headline, views={})


def test_a_run_of_an_earlier_version_says_that_items_count_as_independent(tmp_path: Path) -> None:
    old = write(tmp_path / "a", 1, with_clusters=False, suite="ewok-2025")
    other = write(tmp_path / "b", 2, with_clusters=False, suite="ewok-2025")

    [found] = compare_runs(old, other)

    assert UNCLUSTERED_NOTE in found.notes
    assert UNCLUSTERED_NOTE in open_verified_run(old.path)["ewok-2025"].summary.notes


@pytest.mark.parametrize(("suite", "with_clusters"), [("ewok-2025", True), ("blimp", False)])
def test_other_runs_say_nothing(tmp_path: Path, suite: str, with_clusters: bool) -> None:
    run = write(tmp_path / "a", 1, with_clusters, suite)
    other = write(tmp_path / "b", 2, with_clusters, suite)

    [found] = compare_runs(run, other)

    assert UNCLUSTERED_NOTE not in found.notes
    assert UNCLUSTERED_NOTE not in open_verified_run(run.path)[suite].summary.notes


def test_a_run_without_clusters_is_written_as_before(tmp_path: Path) -> None:
    run = write(tmp_path / "a", 1, with_clusters=False)
    predictions = runs.read_predictions(run.path, run["toy"])

    assert "num_clusters" not in Path(run.path, "run.json").read_text()
    assert "cluster" not in predictions.table.column_names
    assert predictions.with_clusters([""] * len(predictions)) is predictions


def test_one_cluster_has_no_interval_of_the_gap(tmp_path: Path) -> None:
    cells = [
        make_cell([replace(row, cluster="all") for row in make_rows(seed)], suite="toy")
        for seed in (1, 2)
    ]
    a, b = (
        write_run(tmp_path / name, cell, name=name) for name, cell in zip("ab", cells, strict=True)
    )

    [comparison] = compare_runs(a, b)

    assert comparison.headline.margin is None
    assert comparison.headline.p > 0.05 and comparison.headline.high > 0.5


def test_an_interval_of_clusters_follows_from_exported_items(tmp_path: Path) -> None:
    clustered = write(tmp_path / "a", 1)

    rows = list(csv.DictReader(format_items_csv([clustered]).decode().splitlines()))

    assert [row["cluster"] for row in rows[: SIZE + 1]] == [rows[0]["cluster"]] * SIZE + [
        rows[SIZE]["cluster"]
    ]
    credits = np.array([float(row["correct"]) for row in rows])
    _, clusters = np.unique([row["cluster"] for row in rows], return_inverse=True)
    paradigms = np.array([int(row["paradigm"][1:]) for row in rows], np.int32)
    interval = statistics.score_interval(credits, paradigms, np.full(2, 0.5), clusters=clusters)
    headline = clustered["toy"].summary.headline
    assert tuple(interval) == pytest.approx((headline.low, headline.high))
    plain = format_items_csv([write(tmp_path / "b", 1, with_clusters=False)])
    assert b"cluster" not in plain.splitlines()[0]


def test_clusters_survive_lm_eval_s_format(tmp_path: Path) -> None:
    clustered = write(tmp_path / "a", 1)
    export([clustered.path], "lm-eval", tmp_path / "out")

    again, _ = import_results(tmp_path / "out", tmp_path / "again")

    assert again.cells[0].summary.num_clusters == NUMBER
    assert again.cells[0].summary.headline == clustered["toy"].summary.headline


def test_a_comparison_over_few_clusters_has_a_note() -> None:
    clusters = np.repeat(np.arange(60), 2)

    assert few_clusters_notes(clusters[:98]) == (FEW_CLUSTERS_NOTE,)  # 49 clusters
    assert few_clusters_notes(clusters[:100]) == ()  # 50
    assert few_clusters_notes(clusters[:14]) == ()  # 7, whose items count as alike
    assert few_clusters_notes(None) == ()
