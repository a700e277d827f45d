"""Comparing two runs: values, tests and families against slow ways to get them; planted changes are
found.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pair_runs import (
    PARADIGMS_BY_PHENOMENON,
    PHENOMENON_BY_PARADIGM,
    draw_logprob_gaps,
    make_cell,
    make_predictions,
    write_run,
    write_toy_run,
)
from prediction_rows import PredictionRow
from scipy import stats
from statsmodels.stats.multitest import multipletests

from antlm_bench import check, statistics
from antlm_bench.commands.report import build_report
from antlm_bench.comparison import Comparison, Difference, compare_runs
from antlm_bench.comparison.multiple_testing import MAX_HOLM_TESTS, adjust_p_values
from antlm_bench.comparison.results import HEADLINE
from antlm_bench.comparison.summary_check import open_verified_run
from antlm_bench.comparison.verdict import judge
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import METRICS
from antlm_bench.types import Cell, Estimate, Run, Summary


def only(found: list[Comparison]) -> Comparison:
    (one,) = found
    return one


def pair(
    tmp_path: Path, items: int = 60
) -> tuple[Run, Run, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two runs of one test, the second slightly worse, and their margins."""
    first = draw_logprob_gaps(items, 0.8, seed=1)
    second = {
        name: each + np.random.default_rng(2).normal(-0.2, 1, items) for name, each in first.items()
    }
    return (
        write_toy_run(tmp_path / "a", first),
        write_toy_run(tmp_path / "b", second),
        first,
        second,
    )


@pytest.mark.long
def test_every_level_is_what_counting_by_hand_gives(tmp_path: Path) -> None:
    a, b, first, second = pair(tmp_path)
    found = only(compare_runs(a, b))
    rates = {name: ((first[name] >= 0).mean(), (second[name] >= 0).mean()) for name in first}
    head = found.headline
    assert (head.level, head.name, head.n) == (HEADLINE, "toy", 360)
    assert head.a == pytest.approx(np.mean([x for x, _ in rates.values()]))
    assert head.b == pytest.approx(np.mean([y for _, y in rates.values()]))
    assert head.value == pytest.approx(head.b - head.a)
    assert (head.a, head.b) == pytest.approx(
        tuple(run.cells[0].summary.headline.value for run in (a, b))
    )
    groups = {(g.level, g.name): g for g in found.groups}
    assert set(groups) == {("phenomenon", name) for name in PARADIGMS_BY_PHENOMENON} | {
        ("paradigm", name) for name in PHENOMENON_BY_PARADIGM
    }
    for (level, name), g in groups.items():
        inside = PARADIGMS_BY_PHENOMENON[name] if level == "phenomenon" else [name]
        x, y = (np.concatenate([side[p] for p in inside]) for side in (first, second))
        assert (g.a, g.b, g.n) == pytest.approx(((x >= 0).mean(), (y >= 0).mean(), len(x)))
        assert g.gained == ((x < 0) & (y >= 0)).sum() and g.lost == ((x >= 0) & (y < 0)).sum()
        assert g.margin and g.margin.value == pytest.approx((y - x).mean())
        assert g.low < g.value < g.high
        assert g.within == ("" if level == "phenomenon" else PHENOMENON_BY_PARADIGM[name])
        fewer, both = min(g.gained, g.lost), g.gained + g.lost
        mid_p = 2 * stats.binom.cdf(fewer, both, 0.5) - stats.binom.pmf(fewer, both, 0.5)
        assert g.p == pytest.approx(min(1.0, mid_p), abs=0.06)
        assert (g.p < 0.05) == (g.low > 0 or g.high < 0)
    assert head.margin and head.margin.value == pytest.approx(
        np.mean([(second[p] - first[p]).mean() for p in first])
    )


@pytest.mark.long
def test_the_headline_interval_is_over_items_of_these_paradigms(tmp_path: Path) -> None:
    a, b, first, second = pair(tmp_path)
    head = only(compare_runs(a, b)).headline
    rng = np.random.default_rng(5)
    changes = [(second[p] >= 0).astype(float) - (first[p] >= 0) for p in first]
    drawn = [np.mean([rng.choice(each, len(each)).mean() for each in changes]) for _ in range(3000)]
    assert (head.low, head.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.01
    )
    assert "clustered" not in head.views  # six paradigms
    flips = float(np.mean([np.mean(each != 0) for each in changes]))
    normal = 2.801585 * statistics.standard_error(changes, np.full(6, 1 / 6))
    assert head.flip_rate == pytest.approx(flips)
    assert head.detectable == pytest.approx(normal, rel=0.1)
    assert head.p is not None and (head.p < 0.05) == (head.low > 0 or head.high < 0)


def test_on_3_items_no_difference_is_called_detectable(tmp_path: Path) -> None:
    gaps = {"anaphor": np.array([1.0, 1.0, -1.0])}
    a = write_toy_run(tmp_path / "a", gaps)
    b = write_toy_run(tmp_path / "b", {"anaphor": np.array([1.0, -1.0, -1.0])})

    comparison = only(compare_runs(a, b))

    assert comparison.headline.detectable is None
    assert comparison.headline.flip_rate == pytest.approx(1 / 3)
    [note] = [note for note in comparison.notes if "power of 80%" in note]
    assert note.startswith("too few items: no true difference would be detected")


@pytest.mark.long
def test_the_other_way_round_everything_changes_sign(tmp_path: Path) -> None:
    a, b, *_ = pair(tmp_path)
    there, back = only(compare_runs(a, b)), only(compare_runs(b, a))
    for x, y in zip((there.headline, *there.groups), (back.headline, *back.groups), strict=True):
        assert (x.a, x.b, x.value, x.gained, x.lost) == pytest.approx(
            (y.b, y.a, -y.value, y.lost, y.gained)
        )
        assert (x.low, x.high) == pytest.approx((-y.high, -y.low), abs=0.006)
        assert x.margin and y.margin and x.margin.value == pytest.approx(-y.margin.value)
    assert {flip.id for flip in there.flipped} == {flip.id for flip in back.flipped}


@pytest.mark.long
def test_flips_are_the_items_answered_differently_the_worst_first(tmp_path: Path) -> None:
    a, b, first, second = pair(tmp_path)
    flipped = only(compare_runs(a, b)).flipped
    moved = {
        f"{p}_{i}" for p in first for i in range(60) if (first[p][i] >= 0) != (second[p][i] >= 0)
    }
    assert {flip.id for flip in flipped} == moved
    lost = [flip for flip in flipped if flip.b < flip.a]
    assert list(flipped[: len(lost)]) == lost == sorted(lost, key=lambda flip: flip.margin or 0.0)
    for flip in flipped:
        paradigm, _, i = flip.id.rpartition("_")
        assert flip.labels == {"paradigm": paradigm, "phenomenon": PHENOMENON_BY_PARADIGM[paradigm]}
        assert flip.margin == pytest.approx(second[paradigm][int(i)] - first[paradigm][int(i)])


def test_a_run_against_itself_is_certain_to_be_equal(tmp_path: Path) -> None:
    a = write_toy_run(tmp_path / "a", draw_logprob_gaps(20))
    found = only(compare_runs(a, a))
    for d in (found.headline, *found.groups):
        assert (d.value, d.low, d.high, d.p, d.adjusted, d.gained, d.lost) == (0, 0, 0, 1, 1, 0, 0)
    assert not found.flipped


@pytest.mark.long
def test_equal_decisions_of_unequal_models_are_not_certainty(tmp_path: Path) -> None:
    first = draw_logprob_gaps(20)
    a, b = (
        write_toy_run(tmp_path / "a", first),
        write_toy_run(tmp_path / "b", {name: 2 * each for name, each in first.items()}),
    )
    found = only(compare_runs(a, b))
    assert found.headline.value == 0 and found.headline.low < 0 < found.headline.high
    assert all(g.low < 0 < g.high for g in found.groups)
    assert found.headline.low == pytest.approx(-found.headline.high)


@pytest.mark.long
def test_ties_share_credit(tmp_path: Path) -> None:
    first = {"adjunct_island": np.array([1.0, 1, 1, -1, 0, 1, 1, 1])}
    second = {"adjunct_island": np.array([0.0, 0, 0, -1, 0, 1, 0, -1])}
    found = only(
        compare_runs(write_toy_run(tmp_path / "a", first), write_toy_run(tmp_path / "b", second))
    )
    assert (found.headline.a, found.headline.b) == (6.5 / 8, 3.5 / 8)
    assert (found.headline.gained, found.headline.lost) == (0, 5)
    # Flipping the five signs gives 2 / 2^5; the score test of 8 items is more careful.
    assert 0.0625 < (found.headline.p or 0) < 0.15
    strict = only(
        compare_runs(
            write_toy_run(tmp_path / "c", first, ties="strict"),
            write_toy_run(tmp_path / "d", second, ties="strict"),
        )
    )
    assert (strict.headline.a, strict.headline.b) == (6 / 8, 1 / 8)


@pytest.mark.long
def test_only_the_phenomenon_that_got_worse_is_blamed(tmp_path: Path) -> None:
    first = draw_logprob_gaps(400, 0.85, seed=3)
    second = {
        name: each + np.random.default_rng(4).normal(0, 0.05, 400) for name, each in first.items()
    }
    for name in PARADIGMS_BY_PHENOMENON["islands"]:
        second[name] = second[name] - 0.5
    found = only(
        compare_runs(write_toy_run(tmp_path / "a", first), write_toy_run(tmp_path / "b", second))
    )
    blamed = [g.name for g in found.groups if g.level == "phenomenon" and (g.adjusted or 1) < 0.05]
    assert blamed == ["islands"]
    assert found.headline.adjusted is not None and found.headline.adjusted < 0.001


@pytest.mark.long
def test_small_families_use_holm_and_large_ones_bh() -> None:
    rng = np.random.default_rng(0)

    def level(name: str, count: int) -> list[Difference]:
        ps = rng.random(count) ** 3
        return [
            Difference(name, f"{name}{i}", "", 9, 0.5, 0.5, 0.0, -1, 1, p=float(p))
            for i, p in enumerate(ps)
        ]

    few, many, fine = (
        level("phenomenon", MAX_HOLM_TESTS),
        level("domain", MAX_HOLM_TESTS + 1),
        level("paradigm", 3),
    )
    head, groups = adjust_p_values(replace(few[0], level=HEADLINE), [*few, *many, *fine])
    assert head.adjusted == head.p and "first" in head.family
    assert [g.name for g in groups] == [g.name for g in (*few, *many, *fine)]
    assert {g.family for g in groups} == {
        f"Holm over {MAX_HOLM_TESTS} phenomena",
        f"BH over {MAX_HOLM_TESTS + 1} domains",
        "BH over 3 paradigms",
    }
    holm = multipletests([g.p for g in few], method="holm")[1]
    bh = [
        p
        for family in (many, fine)
        for p in multipletests([g.p for g in family], method="fdr_bh")[1]
    ]
    assert [g.adjusted for g in groups] == pytest.approx([*holm, *bh])


@pytest.mark.long
def test_what_was_not_scored_counts_as_wrong_and_has_no_margin(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(10, 1.0), PHENOMENON_BY_PARADIGM)
    long = replace(made[0], scores=(), tokens=(), characters=(), flags=("too-long",))
    found = only(
        compare_runs(
            write_run(tmp_path / "a", make_cell(made)),
            write_run(tmp_path / "b", make_cell([long, *made[1:]])),
        )
    )
    paradigm = next(g for g in found.groups if g.name == "adjunct_island")
    assert paradigm.n == 10 and paradigm.margin and paradigm.margin.n == 9
    (flip,) = found.flipped
    assert flip.id == made[0].id and flip.margin is None


def rated(values: np.ndarray, ratings: np.ndarray) -> list[PredictionRow]:
    labels = {"kind": "x"}
    return [
        PredictionRow(f"w{i}", float(r), 0, (float(v), 0.0), (1, 1), (3, 3), labels)
        for i, (v, r) in enumerate(zip(values, ratings, strict=True))
    ]


@pytest.mark.long
def test_correlations_are_compared_on_the_same_items(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ratings = rng.random(80)
    x, y = 3 * ratings + rng.normal(0, 1, 80), 3 * ratings + rng.normal(0, 3, 80)
    runs = [
        write_run(
            tmp_path / name,
            make_cell(
                rated(v, ratings), suite="wug", metric="spearman", macro=(), groups=("kind",)
            ),
        )
        for name, v in (("a", x), ("b", y))
    ]
    found = only(compare_runs(*runs))
    rho = [float(stats.spearmanr(v, ratings).statistic) for v in (x, y)]
    assert (found.headline.a, found.headline.b) == pytest.approx(tuple(rho))
    drawn = []
    for _ in range(1500):
        pick = rng.integers(80, size=80)
        drawn.append(
            stats.spearmanr(y[pick], ratings[pick]).statistic
            - stats.spearmanr(x[pick], ratings[pick]).statistic
        )
    assert (found.headline.low, found.headline.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.05
    )
    assert found.headline.p == found.headline.adjusted < 0.01
    assert found.headline.p == pytest.approx(statistics.spearman_difference(x, y, ratings)[1])
    assert [(group.adjusted, group.family) for group in found.groups] == [
        (found.headline.p, "Holm over 1 kinds")
    ]
    same = only(compare_runs(runs[0], runs[0])).headline
    assert (same.low, same.high, same.p, same.detectable) == (0, 0, 1, None)
    drop = statistics.detectable_correlation_drop(
        found.headline.a,
        found.headline.b,
        statistics.Interval(found.headline.low, found.headline.high),
        80,
    )
    assert found.headline.detectable == pytest.approx(drop)


def test_an_undefined_correlation_knows_nothing(tmp_path: Path) -> None:
    flat, ratings = np.zeros(20), np.random.default_rng(0).random(20)
    options = {"suite": "wug", "metric": "spearman", "macro": (), "groups": ()}
    a = write_run(tmp_path / "a", make_cell(rated(flat, ratings), **options))
    b = write_run(tmp_path / "b", make_cell(rated(ratings, ratings), **options))
    head = only(compare_runs(a, b)).headline
    assert (head.a, head.b, head.low, head.high, head.p) == (0, pytest.approx(1), -2, 2, None)
    assert head.detectable is None
    few = np.where(np.arange(20) < 5, ratings, 0.0)
    c = write_run(tmp_path / "c", make_cell(rated(few, ratings), **options))
    found = only(compare_runs(b, c))
    assert (found.headline.low, found.headline.high, found.headline.p) == (
        -2,
        2,
        None,
    ) and found.headline.value < 0
    assert found.notes == (
        "wug: no interval of a difference is known with fewer than 40 items beside the largest tie",
    )
    assert not only(compare_runs(c, c)).notes


@pytest.mark.parametrize(
    ("metric", "golds", "words"),
    [
        ("auc", [1.0] * 8, "all 8 sentences are acceptable, none is unacceptable"),
        ("spearman", [0.5] * 8, "all 8 items have the rating 0.5"),
    ],
)
def test_an_older_run_of_an_undefined_metric_is_read_but_not_compared(
    metric: str, golds: list[float], words: str, tmp_path: Path
) -> None:
    value_range = METRICS[metric].value_range
    summary = Summary("toy", "causal", metric, (), Estimate(0.0, 8, *value_range), {}, ())
    cell = Cell("toy", "causal", "k", {"ties": "half", "reduction": "sum"}, summary)
    rows = [
        PredictionRow(f"i{i}", gold, 0, (-float(i),), (4,), (9,), {})
        for i, gold in enumerate(golds)
    ]
    a, b = (write_run(tmp_path / name, (cell, rows)) for name in "ab")

    [opened] = open_verified_run(a.path)
    assert opened.summary.headline.value == 0.0
    assert opened.summary.notes == (
        f"{METRICS[metric].heading} undefined ({words}): 0.0 is not a score",
    )
    report = build_report([a.path])
    assert opened.summary.notes[0] in str(report.columns[0].results[0].score)
    assert compare_runs(a, b) == []
    with pytest.raises(NotComparable, match=f"nothing to compare, .* is undefined: {words}"):
        compare_runs(a, b, suites=["toy"])
    with pytest.raises(NotComparable, match="nothing to compare"):
        check(b.path, against=a.path)


def finetuned(
    task: str, seeds: int, shift: float = 0.0, **history: object
) -> list[tuple[Cell, list[PredictionRow]]]:
    """Cells of a task of two classes: 40 texts, three in four right plus `shift`, seed by seed."""
    cells = []
    for seed in range(seeds):
        rng = np.random.default_rng([len(task), seed, round(100 * shift)])
        made = []
        for i in range(40):
            gold = i % 2
            right = rng.random() < 0.75 + shift
            scores = (-0.2, -1.7) if (gold == 0) == right else (-1.7, -0.2)
            made.append(
                PredictionRow(
                    f"t{i}", gold, int(np.argmax(scores)), scores, (9, 9), (30, 30), {"task": task}
                )
            )
        one, _ = make_cell(
            made,
            suite=f"glue-2025.{task}",
            method="finetune-causal",
            macro=(),
            groups=(),
            reduction="class",
            collection="glue-2025",
            task=task,
            select="held-out",
            held_out=0.1,
        )
        cells.append((replace(one, seed=seed, history=history), made))
    return cells


@pytest.mark.long
def test_tasks_are_compared_over_seeds_and_items_and_averaged(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", *finetuned("rte", 3), *finetuned("boolq", 3))
    b = write_run(
        tmp_path / "b", *finetuned("rte", 2, 0.2), *finetuned("boolq", 2, 0.2), *finetuned("wsc", 2)
    )
    found = only(compare_runs(a, b))
    assert (found.suite, found.method_a, found.seeds, found.macro) == (
        "glue-2025",
        "finetune-causal",
        (2, 2),
        ("task",),
    )
    assert [(g.level, g.name, g.n) for g in found.groups] == [
        ("task", "rte", 40),
        ("task", "boolq", 40),
    ]
    for task, group in zip(("rte", "boolq"), found.groups, strict=True):
        sides = []
        for seeds, shift in ((3, 0.0), (2, 0.2)):
            each = finetuned(task, seeds, shift)
            sides.append(np.array([[float(p.pred == p.gold) for p in made] for _, made in each]))
        change = statistics.two_level_change(sides[0][:2], sides[1], paired=True)
        assert (group.value, group.low, group.high, group.p) == pytest.approx(
            (change.value, *change.interval, change.p)
        )
        change = sides[1].mean(axis=0) - sides[0][:2].mean(axis=0)
        assert (group.gained, group.lost) == ((change > 0).sum(), (change < 0).sum())
    assert found.headline.value == pytest.approx(np.mean([g.value for g in found.groups]))
    assert found.headline.high - found.headline.low < max(g.high - g.low for g in found.groups)
    assert found.groups[0].family == "Holm over 2 tasks"
    assert {flip.labels["task"] for flip in found.flipped} == {"rte", "boolq"}
    assert any("2 seeds" in note for note in found.notes)
    left_out = "only seeds 0, 1 are in both runs and are compared, not 2 of the first run"
    assert f"rte: {left_out}" in found.notes and any("are paired" in note for note in found.notes)
    assert [c.suite for c in compare_runs(a, b, suites=["glue-2025"])] == ["glue-2025"]
    assert [g.name for g in only(compare_runs(a, b, suites=["glue-2025.rte"])).groups] == ["rte"]


def test_a_task_whose_items_all_moved_alike_is_not_certain(tmp_path: Path) -> None:
    sides = []
    for scores in ((-0.2, -1.7), (-1.7, -0.2)):
        (one, made), *_ = finetuned("rte", 1)
        sides.append((one, [replace(p, gold=0, pred=0, scores=scores) for p in made]))
    found = only(
        compare_runs(write_run(tmp_path / "a", sides[0]), write_run(tmp_path / "b", sides[1]))
    ).groups[0]
    assert (found.value, found.low) == (-1, -1) and -1 < found.high < -0.8
    assert found.p is not None and found.p < 0.001


def test_one_seed_and_collapsed_seeds_are_said(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", *finetuned("rte", 1))
    b = write_run(tmp_path / "b", *finetuned("rte", 1, 0.1, collapsed=["constant prediction"]))
    found = only(compare_runs(a, b))
    assert any("one seed: the interval is over items only" in note for note in found.notes)
    assert "rte: 1 of 1 seeds of the second run collapsed" in found.notes
    same = only(compare_runs(a, a)).headline
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_seeds_that_collapsed_give_the_interval_of_a_mixture(tmp_path: Path) -> None:
    (first, *others) = finetuned("rte", 4)
    collapsed = (replace(first[0], history={"collapsed": ["constant prediction"]}), first[1])
    a = write_run(tmp_path / "a", *finetuned("rte", 4, 0.1))
    b = write_run(tmp_path / "b", collapsed, *others)
    plain = write_run(tmp_path / "plain", first, *others)

    comparison = only(compare_runs(a, b))
    of_plain_seeds = only(compare_runs(a, plain))

    mixture = "rte: the interval is that of a mixture of seeds that collapse and others"
    assert mixture in comparison.notes and not any("paired" in note for note in comparison.notes)
    group, plain_group = comparison.groups[0], of_plain_seeds.groups[0]
    assert group.value == pytest.approx(plain_group.value)
    assert (group.low, group.high) != (plain_group.low, plain_group.high)
    assert any("are paired" in note for note in of_plain_seeds.notes)


def test_a_single_seed_without_collapse_leaves_the_difference_open(tmp_path: Path) -> None:
    (first, second) = finetuned("rte", 2)
    collapsed = (replace(first[0], history={"collapsed": ["constant prediction"]}), first[1])
    a = write_run(tmp_path / "a", *finetuned("rte", 2, 0.2))
    b = write_run(tmp_path / "b", collapsed, second)

    comparison = only(compare_runs(a, b))

    assert (comparison.headline.low, comparison.headline.high) == (-1, 1)
    assert comparison.headline.p is None and comparison.headline.detectable is None
    assert judge(comparison).headline.items_to_decide is None
    assert "rte: no interval: a single seed did not collapse" in comparison.notes


def test_seeds_that_are_not_shared_are_independent(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", *finetuned("rte", 2))
    other_seeds = [
        (replace(cell, seed=cell.seed + 7), rows)
        for cell, rows in finetuned("rte", 2, 0.1)
        if cell.seed is not None
    ]
    comparison = only(compare_runs(a, write_run(tmp_path / "b", *other_seeds)))

    assert comparison.seeds == (2, 2)
    assert not any("paired" in note for note in comparison.notes)


@pytest.mark.long
@pytest.mark.parametrize("metric", ["accuracy", "f1", "mcc"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_p_of_finetuned_tasks_agrees_with_the_interval(
    tmp_path: Path, metric: str, seeds: int
) -> None:
    for trial, shift in enumerate(np.linspace(0.02, 0.24, 12)):
        folders = []
        for name, change in (("a", 0.0), ("b", float(shift))):
            cells = [
                (replace(cell, summary=replace(cell.summary, metric=metric)), rows)
                for cell, rows in finetuned("rte", seeds, change)
            ]
            folders.append(write_run(tmp_path / f"{name}{trial}", *cells))
        comparison = only(compare_runs(*folders))
        for difference in (comparison.headline, *comparison.groups):
            excludes_0 = difference.low > 0 or difference.high < 0
            assert difference.p is not None and (difference.p < 0.05) == excludes_0
