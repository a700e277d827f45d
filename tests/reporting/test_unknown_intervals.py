"""An unknown interval is null in outputs; estimates have the whole range of the metric for it."""

from __future__ import annotations

import json

import pytest

from antlm_bench.lm_eval_bridge.results_export import standard_error
from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting.curve_table import to_tidy_rows
from antlm_bench.reporting.results_table import build_results_table, estimate_cell
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.results.checkpoint_series import CurvePoint, LearningCurve
from antlm_bench.types import Cell, Estimate, Manifest, Run, Summary

UNKNOWN = Estimate(0.4, 3, 0.0, 1.0)
KNOWN = Estimate(0.4, 3, 0.1, 0.8)


def make_cell(estimate: Estimate) -> Cell:
    summary = Summary("x", "causal", "accuracy", (), estimate, {}, ())
    return Cell("x", "causal", "k", {}, summary)


def test_unknown_intervals_are_none() -> None:
    spec = get_metric_spec("accuracy")
    assert spec.known_interval(0.0, 1.0) == (None, None)
    assert spec.known_interval(0.1, 1.0) == (0.1, 1.0)
    assert spec.known_interval_of_difference(-1.0, 1.0) == (None, None)
    assert spec.known_interval_of_difference(0.0, 1.0) == (0.0, 1.0)
    assert get_metric_spec("spearman").known_interval(-1.0, 1.0) == (None, None)


@pytest.mark.parametrize(("estimate", "low"), [(UNKNOWN, None), (KNOWN, 0.1)])
def test_json_has_null_for_an_unknown_interval(estimate: Estimate, low: float | None) -> None:
    run = Run("reports/a", Manifest(2, {"name": "m"}, {}, ""), (make_cell(estimate),))
    table = build_results_table([run], by="suite")
    [row] = json.loads(FORMATS["json"].write(table))["table"]["rows"]
    assert row["low"] == low
    assert estimate_cell(estimate, "accuracy").low == low


def test_curves_and_exports_have_no_unknown_interval() -> None:
    curve = LearningCurve(
        *("a", "x", "causal", "accuracy"), (CurvePoint(1, 1, "c", UNKNOWN),), (1,)
    )
    assert [row["high"] for row in to_tidy_rows([curve])] == [None]
    assert standard_error(make_cell(UNKNOWN)) is None
    assert standard_error(make_cell(KNOWN)) == pytest.approx(0.7 / 2 / 1.959964)
