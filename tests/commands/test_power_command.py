"""The command power: strata from declarations or data, plans, and errors. No model is opened."""

import json

import numpy as np
import pytest

from antlm_bench.cli.app import run
from antlm_bench.commands.power import PowerOptions, plan_power, read_strata
from antlm_bench.errors import DataError, UsageError
from antlm_bench.statistics import detectable_drops, planned_flip_rates


def test_strata_are_read_from_the_declaration(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))

    assert read_strata("supplement").sizes.tolist() == [842, 64, 165, 3867, 280]
    assert len(read_strata("blimp").sizes) == 67
    assert read_strata("nano").weights == pytest.approx(np.full(16, 1 / 16))


def test_strata_of_a_file_are_counted(tmp_path):
    rows = ["good,bad,paradigm", "a b,b a,x", "a c,c a,x", "b c,c b,y"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))

    strata = read_strata(str(tmp_path / "pairs.csv"))

    assert (strata.sizes.tolist(), strata.weights.tolist()) == ([2, 1], [0.5, 0.5])


def test_a_note_says_that_clusters_are_planned_as_items(tmp_path, capsys):
    rows = ["good,bad,cluster", "a b,b a,x", "a c,c a,x", "b c,c b,y"]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    (tmp_path / "single.csv").write_text("\n".join(row.replace("x", row[:3]) for row in rows))

    for name in ("pairs", "single"):
        arguments = ["power", "--suite", str(tmp_path / f"{name}.csv"), "--flips", "2%"]
        assert run(arguments) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert ("belong together" in output) == (name == "pairs")


def test_absent_data_name_the_command_that_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))

    monkeypatch.setenv("HOME", str(tmp_path))

    with pytest.raises(DataError) as error:
        read_strata("entity-tracking-2025")

    assert error.value.hint == "antlm-bench data fetch entity-tracking-2025"


def test_accuracy_gives_the_flips_of_independent_runs():
    [by_accuracy] = plan_power("nano", PowerOptions(accuracy=0.8))
    [by_flips] = plan_power("nano", PowerOptions(flips=0.32))

    assert by_accuracy.detectable == pytest.approx(by_flips.detectable)
    rates = planned_flip_rates(np.full(16, 50.0), np.full(16, 1 / 16), 0.32)
    assert by_flips.detectable == pytest.approx(detectable_drops(rates)[0])


def test_what_is_needed_passes_and_holm_detects_less():
    [plan] = plan_power("nano", PowerOptions(flips=0.02))
    first, _ = plan_power(["nano", "supplement"], PowerOptions(flips=0.02, correction="holm"))

    assert plan.passes < 0.8 and plan.needed > plan.count == 800
    assert first.detectable > plan.detectable


def test_a_design_effect_divides_the_number_of_items(tmp_path):
    rows = ["good,bad,cluster", *(f"a {i},b {i},{i // 4}" for i in range(400))]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    rates = planned_flip_rates(np.array([100.0]), np.ones(1), 0.1)

    [plan] = plan_power(str(tmp_path / "pairs.csv"), PowerOptions(flips=0.1, design_effect=4.0))
    [independent] = plan_power(str(tmp_path / "pairs.csv"), PowerOptions(flips=0.1))

    assert plan.detectable == pytest.approx(detectable_drops(rates)[0])
    assert plan.needed == pytest.approx(4 * independent.needed, rel=0.01)
    assert (plan.is_clustered, independent.is_clustered) == (False, True)


@pytest.mark.parametrize("effect", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_design_effect_is_refused(effect):
    with pytest.raises(UsageError, match="is not a design effect"):
        plan_power("nano", PowerOptions(flips=0.1, design_effect=effect))


def test_more_seeds_are_needed_for_a_smaller_margin():
    options = {"seed_sd": 0.015, "seeds": 5}
    [wide] = plan_power("glue-2025", PowerOptions(margin=0.02, **options))
    [narrow] = plan_power("glue-2025", PowerOptions(margin=0.005, **options))

    assert (wide.unit, wide.strata) == ("seeds", 7)
    assert wide.needed < narrow.needed and wide.passes > narrow.passes


@pytest.mark.parametrize(
    ("suite", "options", "location"),
    [
        ("nano", {}, "--flips"),
        ("nano", {"flips": 0.1, "accuracy": 0.5}, "--accuracy"),
        ("nano", {"flips": 1.5}, "--flips"),
        ("nano", {"flips": 0.1, "margin": 0.0}, "--margin"),
        ("glue-2025", {"flips": 0.1}, "--seed-sd"),
        ("glue-2025", {"seed_sd": 0.01, "seeds": 1}, "--seeds"),
        ("wug-adj", {"flips": 0.1}, "--suite"),
    ],
)
def test_a_plan_without_its_assumptions_is_refused(suite, options, location):
    with pytest.raises(UsageError) as error:
        plan_power(suite, PowerOptions(**options))

    assert error.value.location == location


def test_the_command_prints_a_row_per_suite(capsys):
    argv = ["power", "--suite", "nano,supplement", "--flips", "2%", "--margin", "1"]

    assert run([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert [row["suite"] for row in rows] == ["nano", "supplement"]
    assert rows[0]["has"] == 800 and rows[0]["margin"] == 0.01
    assert run(argv) == 0
    assert "800 items" in capsys.readouterr().out


def test_a_share_is_percent_or_a_fraction(capsys):
    outputs = []
    for share in ("2%", "0.02", ".02"):
        assert run(["power", "--suite", "nano", "--flips", share]) == 0
        outputs.append(capsys.readouterr().out)

    assert len(set(outputs)) == 1
    assert run(["power", "--suite", "nano", "--flips", "2"]) == 2
