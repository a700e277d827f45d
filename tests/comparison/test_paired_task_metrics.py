"""Numbers that items have of their own, two runs against each other."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pair_runs import make_cell, write_run
from prediction_rows import PredictionRow
from scipy import stats

from antlm_bench.comparison import Comparison, compare_runs
from antlm_bench.comparison.verdict import Margins, judge
from antlm_bench.errors import NotComparable
from antlm_bench.types import Run


def run(folder: Path, values: list[float], metric: str, tasks: list[str] | None = None) -> Run:
    made = [
        PredictionRow(
            f"i{n}", 0, 0, (-1.0,), (1,), (1,), {"task": tasks[n]} if tasks else {}, judged=(value,)
        )
        for n, value in enumerate(values)
    ]
    levels = ("task",) if tasks else ()
    return write_run(
        folder, make_cell(made, "lm-eval.toy", metric=metric, macro=levels, groups=levels)
    )


def only(a: Run, b: Run) -> Comparison:
    (found,) = compare_runs(a, b)
    return found


VALUES = np.random.default_rng(0).normal(0.6, 0.2, 90)
CHANGED = VALUES - np.random.default_rng(1).normal(0.05, 0.1, 90)


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "sign"),
    [("task-score", 1), ("task-penalty", -1), ("whole-score", 1), ("whole-penalty", -1)],
)
def test_task_values_are_paired_in_the_metrics_direction(
    tmp_path: Path, metric: str, sign: int
) -> None:
    found = only(
        run(tmp_path / "a", list(VALUES), metric), run(tmp_path / "b", list(CHANGED), metric)
    )
    head, change = found.headline, sign * (CHANGED - VALUES)
    assert (head.a, head.b, head.n) == (
        pytest.approx(VALUES.mean()),
        pytest.approx(CHANGED.mean()),
        90,
    )
    assert (head.value, head.gain) == (
        pytest.approx(sign * change.mean()),
        pytest.approx(change.mean()),
    )
    drawn = np.random.default_rng(2).choice(change, (20_000, 90)).mean(axis=1)
    assert head.gain_interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.003)
    assert head.p == pytest.approx(stats.ttest_1samp(change, 0).pvalue, abs=0.01)
    assert (head.gained, head.lost) == ((change > 0).sum(), (change < 0).sum())
    worse = judge(found, Margins(0.02)).status
    assert worse == ("regression" if sign == 1 else "pass")


def test_answers_that_are_right_or_wrong_are_tested_as_such(tmp_path: Path) -> None:
    first, second = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0] * 5, [1.0, 0.0, 0.0, 1.0, 0.0, 1.0] * 5
    head = only(
        run(tmp_path / "a", first, "task-score"), run(tmp_path / "b", second, "task-score")
    ).headline
    mid_p = stats.binom.pmf(0, 5, 0.5)
    assert head.p == pytest.approx(mid_p, abs=0.02)
    assert (head.p < 0.05) == (head.high < 0)
    assert -1 <= head.low < head.value < head.high <= 0.1


def test_items_without_a_number_in_one_run_are_left_out_of_both(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [0.5, math.nan, 0.7, 0.1], "task-score")
    b = run(tmp_path / "b", [0.6, 0.9, math.nan, 0.1], "task-score")
    head = only(a, b).headline
    assert (head.n, head.a, head.b) == (2, pytest.approx(0.3), pytest.approx(0.35))
    nothing = run(tmp_path / "c", [math.nan, 0.5, math.nan, math.nan], "task-score")
    with pytest.raises(NotComparable, match="no item has a value in both runs"):
        compare_runs(a, nothing, suites=["lm-eval.toy"])


def test_tasks_of_a_group_count_equally_and_have_lines(tmp_path: Path) -> None:
    tasks = ["x"] * 60 + ["y"] * 30
    found = only(
        run(tmp_path / "a", list(VALUES), "task-score", tasks),
        run(tmp_path / "b", list(CHANGED), "task-score", tasks),
    )
    change = CHANGED - VALUES
    groups = {group.name: group.value for group in found.groups}
    assert groups == {
        "x": pytest.approx(change[:60].mean()),
        "y": pytest.approx(change[60:].mean()),
    }
    assert found.headline.value == pytest.approx((change[:60].mean() + change[60:].mean()) / 2)
    assert "clustered" not in found.headline.views


def test_one_value_is_no_evidence_of_a_difference(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [0.3], "task-score")

    with pytest.raises(NotComparable, match="needs two items"):
        compare_runs(a, run(tmp_path / "b", [0.2], "task-score"), suites=["lm-eval.toy"])


def test_a_group_of_one_value_is_left_out_with_a_note(tmp_path: Path) -> None:
    tasks = ["x", "x", "y"]
    a = run(tmp_path / "a", [0.3, 0.5, 0.4], "task-score", tasks)

    found = only(a, run(tmp_path / "b", [0.2, 0.6, 0.1], "task-score", tasks))

    assert [group.name for group in found.groups] == ["x"]
    assert "one item or cluster has no interval, left out: y" in found.notes


def documents(folder: Path, nats: np.ndarray, sizes: np.ndarray) -> Run:
    made = [
        PredictionRow(f"d{n}", 0, 0, (-one,), (9,), (9,), judged=(float(size), math.nan))
        for n, (one, size) in enumerate(zip(nats.tolist(), sizes.tolist(), strict=True))
    ]
    return write_run(
        folder, make_cell(made, "lm-eval.whole", metric="bits-per-byte", macro=(), groups=())
    )


def test_fewer_bits_per_byte_are_better_and_documents_are_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(20, 900, 120)
    first = sizes * rng.normal(1.2, 0.2, 120)
    second = first * rng.normal(
        0.97, 0.01, 120
    )  # what differs is a small part of what documents differ by
    a, b = documents(tmp_path / "a", first, sizes), documents(tmp_path / "b", second, sizes)
    found = only(a, b)
    head = found.headline
    assert (head.a, head.b) == pytest.approx(
        tuple(each.cells[0].summary.headline.value for each in (a, b))
    )
    assert (
        head.value == pytest.approx(head.b - head.a)
        and head.gain == -head.value > 0
        and head.lower_is_better
    )
    pick = np.random.default_rng(4).integers(120, size=(20_000, 120))
    drawn = (second - first)[pick].sum(axis=1) / sizes[pick].sum(axis=1) / math.log(2)
    assert (head.low, head.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.001)
    assert judge(found, Margins(0.01)).status == "pass"
    assert judge(only(b, a), Margins(0.01)).status == "regression"


def test_empty_documents_are_no_evidence(tmp_path: Path) -> None:
    nats, sizes = np.array([5.0, 30, 11]), np.array([10, 50, 20])
    first, second = nats, np.array([7.0, 33, 16])
    a, b = documents(tmp_path / "a", first, sizes), documents(tmp_path / "b", second, sizes)
    c, d = (
        documents(tmp_path / name, np.append(values, 0.0), np.append(sizes, 0))
        for name, values in (("c", first), ("d", second))
    )

    without, with_empty = only(a, b).headline, only(c, d).headline

    assert (with_empty.value, with_empty.low, with_empty.p) == pytest.approx(
        (without.value, without.low, without.p)
    )


def test_one_document_with_text_has_no_interval(tmp_path: Path) -> None:
    sizes = np.array([10, 0])
    a = documents(tmp_path / "a", np.array([5.0, 0.0]), sizes)
    b = documents(tmp_path / "b", np.array([7.0, 0.0]), sizes)

    assert any("the others are empty" in note for note in a.cells[0].summary.notes)
    with pytest.raises(NotComparable, match="needs two items"):
        compare_runs(a, b, suites=["lm-eval.whole"])


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    a = run(tmp_path / "a", list(VALUES), "task-score")
    head = only(a, a).headline
    assert (head.value, head.low, head.high, head.p) == (0.0, 0.0, 0.0, 1.0)
