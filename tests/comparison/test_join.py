"""Joining two runs: columns as the slow reader makes them, items found wherever they stand,
differing rules refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_runs import (
    PHENOMENON_BY_PARADIGM,
    SETTINGS,
    draw_logprob_gaps,
    make_cell,
    make_predictions,
    write_run,
    write_toy_run,
)
from prediction_rows import PredictionRow, from_rows

from antlm_bench import runs
from antlm_bench.comparison import compare_runs
from antlm_bench.comparison.join import (
    DECISIVE_SETTINGS,
    MIXED_PREFIX,
    NOTED_SETTINGS,
    join_tables,
    load_table,
    match_cells,
)
from antlm_bench.errors import DataError, NotComparable, RunError, UsageError
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.types import Cell, Estimate, Run, Summary

SUMMARY = Summary("toy", "causal", "accuracy", (), Estimate(0.5, 1, 0, 1), {}, ())


@st.composite
def predicted(draw: st.DrawFn) -> list[PredictionRow]:
    """Items of 1 to 4 options, some of them not scored, with any labels or none, and flags."""
    score = st.floats(-50, 0)
    made = []
    for i in range(draw(st.integers(1, 12))):
        options = draw(st.integers(1, 4))
        flags = tuple(sorted(draw(st.sets(st.sampled_from(["unk", "blind", "cut"])))))
        labels = draw(
            st.dictionaries(
                st.sampled_from(["field", "paradigm"]), st.sampled_from(["x", "y", "é\n"])
            )
        )
        scores = tuple(draw(st.lists(score, min_size=options, max_size=options)))
        counts = tuple(range(1, options + 1))
        made.append(
            PredictionRow(
                f"i{i}", draw(st.integers(0, options - 1)), 0, scores, counts, counts, labels, flags
            )
        )
    if draw(st.booleans()):
        made.append(PredictionRow("lost", 0, 0, (), (), (), {}, ("too-long",)))
    return made


@pytest.mark.long
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=predicted())
def test_columns_say_what_the_predictions_say(
    made: list[PredictionRow], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = write_run(tmp_path_factory.mktemp("run"), (Cell("toy", "causal", "k", {}, SUMMARY), made))
    fast, slow = load_table(run, run.cells[0]), build_table(from_rows(made), {"field", "paradigm"})
    assert fast.ids == tuple(slow.ids)
    for name in ("gold", "scores", "tokens", "characters", "valid"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))
    assert fast.flags.keys() == slow.flags.keys() - {"tie"}
    for name, raised in fast.flags.items():
        np.testing.assert_array_equal(raised, slow.flags[name])
    for level, (codes, names) in fast.levels.items():
        assert names == slow.levels[level][1]
        np.testing.assert_array_equal(codes, slow.levels[level][0])


def joined(a: Run, b: Run, allow_mixed: bool = False):  # type: ignore[no-untyped-def]
    ((cells_a, cells_b),) = match_cells(a, b)
    return join_tables(a, b, cells_a, cells_b, allow_mixed)


@pytest.mark.long
def test_items_are_found_in_whatever_order_they_stand(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(5), PHENOMENON_BY_PARADIGM)
    shuffled = [made[i] for i in np.random.default_rng(0).permutation(len(made))]
    one = joined(
        write_run(tmp_path / "a", make_cell(made)), write_run(tmp_path / "b", make_cell(shuffled))
    )
    assert one.tables_a[0].ids == one.tables_b[0].ids == tuple(p.id for p in made)
    np.testing.assert_array_equal(one.tables_a[0].scores, one.tables_b[0].scores)
    for level in ("phenomenon", "paradigm"):
        told = [
            [names[code] for code in codes]
            for codes, names in (one.tables_a[0].levels[level], one.tables_b[0].levels[level])
        ]
        assert told[0] == told[1]


@pytest.mark.long
@pytest.mark.parametrize("setting", DECISIVE_SETTINGS)
def test_a_rule_that_differs_is_named_with_both_values(setting: str, tmp_path: Path) -> None:
    a = write_toy_run(tmp_path / "a", draw_logprob_gaps(4))
    first = a.cells[0]
    other = replace(first, settings={**SETTINGS, setting: "strict"})
    b = write_run(
        tmp_path / "b", (other, make_predictions(draw_logprob_gaps(4), PHENOMENON_BY_PARADIGM))
    )
    with pytest.raises(NotComparable) as refused:
        joined(a, b)
    said = str(first.settings[setting]) if first.settings.get(setting) else ""
    assert DECISIVE_SETTINGS[setting] in refused.value.message and "strict" in refused.value.message
    assert said in refused.value.message and refused.value.exit_code == 6
    assert "--allow-mixed" in refused.value.hint
    mixed = joined(a, b, allow_mixed=True)
    assert [
        note
        for note in mixed.notes
        if note.startswith(MIXED_PREFIX) and DECISIVE_SETTINGS[setting] in note
    ]


@pytest.mark.long
def test_the_metric_and_the_averaging_are_rules_too(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(4), PHENOMENON_BY_PARADIGM)
    a, b = (
        write_run(tmp_path / "a", make_cell(made)),
        write_run(tmp_path / "b", make_cell(made, macro=("phenomenon",))),
    )
    with pytest.raises(NotComparable, match=r"metric: .*paradigm.* / .*phenomenon"):
        joined(a, b)


@pytest.mark.long
@pytest.mark.parametrize("setting", NOTED_SETTINGS)
def test_numerical_noise_and_treatments_are_noted_only(setting: str, tmp_path: Path) -> None:
    a, b = (
        write_toy_run(tmp_path / "a", draw_logprob_gaps(4)),
        write_toy_run(tmp_path / "b", draw_logprob_gaps(4), **{setting: "other"}),
    )
    assert [
        note
        for note in joined(a, b).notes
        if note.startswith(NOTED_SETTINGS[setting]) and "other" in note
    ]


@pytest.mark.long
def test_missing_items_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(4), PHENOMENON_BY_PARADIGM)
    a, b = (
        write_run(tmp_path / "a", make_cell(made)),
        write_run(tmp_path / "b", make_cell(made[3:])),
    )
    with pytest.raises(
        NotComparable, match=f"items: {len(made) - 3} shared of {len(made)} / {len(made) - 3}"
    ):
        joined(a, b)
    one = joined(a, b, allow_mixed=True)
    assert one.tables_a[0].ids == tuple(p.id for p in made[3:])
    codes, names = one.tables_a[0].levels["paradigm"]
    assert [names[code] for code in codes] == [p.labels["paradigm"] for p in made[3:]]


@pytest.mark.long
def test_no_shared_item_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(2), PHENOMENON_BY_PARADIGM)
    other = [replace(p, id=f"x{p.id}") for p in made]
    with pytest.raises(NotComparable, match="0 shared"):
        joined(
            write_run(tmp_path / "a", make_cell(made)),
            write_run(tmp_path / "b", make_cell(other)),
            allow_mixed=True,
        )


@pytest.mark.long
def test_another_right_answer_is_another_question(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(2), PHENOMENON_BY_PARADIGM)
    other = [replace(made[0], gold=1), *made[1:]]
    with pytest.raises(
        NotComparable, match="right answer differs in 1 item, first 'adjunct_island_0'"
    ):
        joined(
            write_run(tmp_path / "a", make_cell(made)),
            write_run(tmp_path / "b", make_cell(other)),
            allow_mixed=True,
        )


@pytest.mark.long
def test_equal_methods_go_together_and_others_only_when_asked(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(2), PHENOMENON_BY_PARADIGM)
    a = write_run(
        tmp_path / "a",
        make_cell(made),
        make_cell(made, method="mntp"),
        make_cell(made, suite="other"),
    )
    b = write_run(tmp_path / "b", make_cell(made, method="mlm"), make_cell(made, method="mntp"))
    names = [(x[0].suite, x[0].method, y[0].method) for x, y in match_cells(a, b)]
    assert names == [("toy", "mntp", "mntp")]
    names = [
        (x[0].method, y[0].method)
        for x, y in match_cells(a, b, methods=[("causal", "mlm"), ("mntp", "mntp")])
    ]
    assert names == [("causal", "mlm"), ("mntp", "mntp")]
    c = write_run(tmp_path / "c", make_cell(made, method="mlm"))
    with pytest.raises(NotComparable, match="causal, mntp / mlm") as refused:
        match_cells(a, c)
    assert "--method causal=mlm" in refused.value.hint
    with pytest.raises(UsageError, match="has no suite 'blimp'"):
        match_cells(a, b, suites=["blimp"])
    with pytest.raises(NotComparable, match="no suite is in both"):
        match_cells(a, write_run(tmp_path / "d", make_cell(made, suite="fourth")))


def forged(folder: Path, change) -> Run:  # type: ignore[no-untyped-def]
    """A run whose predictions were changed by somebody who also mended the digest in run.json."""
    write_toy_run(folder, draw_logprob_gaps(3))
    (file,) = (folder / "predictions").iterdir()
    table = pq.read_table(file)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), file)
    document = json.loads((folder / "run.json").read_text())
    document["cells"][0]["digest"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps(document))
    return runs.open_run(folder)


def with_column(
    table: pa.Table, name: str, values: list, kind: pa.DataType | None = None
) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, kind or table.schema.field(name).type))


FORGERIES = {
    "an id occurs twice": lambda t: with_column(t, "id", ["x"] * t.num_rows),
    "column id has empty cells": lambda t: with_column(t, "id", [None, *t["id"].to_pylist()[1:]]),
    "column gold has empty cells": lambda t: with_column(t, "gold", [None] * t.num_rows),
    "column scores has empty cells": lambda t: with_column(t, "scores", [None] * t.num_rows),
    "different numbers of options": lambda t: with_column(t, "tokens", [[1]] * t.num_rows),
    "is not a number": lambda t: with_column(t, "scores", [[float("nan"), 0.0]] * t.num_rows),
    "has no scores": lambda t: with_column(
        with_column(with_column(t, "scores", [[]] * t.num_rows), "tokens", [[]] * t.num_rows),
        "characters",
        [[]] * t.num_rows,
    ),
    "a gold answer is not a number": lambda t: with_column(t, "gold", [float("nan")] * t.num_rows),
    "no predictions": lambda t: t.slice(0, 0),
    "label 'paradigm' should hold texts": lambda t: with_column(
        t,
        "labels",
        [{"paradigm": 3, "phenomenon": "x"}] * t.num_rows,
        pa.struct({"paradigm": pa.int64(), "phenomenon": pa.string()}),
    ),
    "labels should be": lambda t: with_column(t, "labels", ["x"] * t.num_rows, pa.string()),
    "should hold list": lambda t: with_column(t, "scores", [1.0] * t.num_rows, pa.float64()),
}


@pytest.mark.long
@pytest.mark.parametrize("complaint", FORGERIES)
def test_what_no_model_says_is_an_error_that_names_the_run(complaint: str, tmp_path: Path) -> None:
    run = forged(tmp_path / "forged", FORGERIES[complaint])
    with pytest.raises(RunError, match=complaint) as refused:
        joined(run, run)
    assert "forged" in str(refused.value)


def test_a_label_that_the_headline_averages_over_is_needed(tmp_path: Path) -> None:
    made = make_predictions(draw_logprob_gaps(3), PHENOMENON_BY_PARADIGM)
    (one, _) = make_cell(made)
    run = write_run(tmp_path / "a", (one, [replace(p, labels={"phenomenon": "x"}) for p in made]))
    with pytest.raises(DataError, match="no label 'paradigm', which the headline averages over"):
        compare_runs(run, run)


def test_a_table_beyond_all_memory_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_toy_run(tmp_path / "a", draw_logprob_gaps(3))
    monkeypatch.setattr("antlm_bench.predictions.MAX_SCORES", 35)  # 18 items of 2 options
    with pytest.raises(RunError, match="2 options of one item are too many"):
        joined(run, run)


def test_a_file_cut_short_or_gone_is_an_error(tmp_path: Path) -> None:
    run = write_toy_run(tmp_path / "a", draw_logprob_gaps(3))
    (file,) = (tmp_path / "a" / "predictions").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(RunError, match="cut short or edited"):
        joined(run, run)
    file.unlink()
    with pytest.raises(RunError, match="missing"):
        joined(run, run)
