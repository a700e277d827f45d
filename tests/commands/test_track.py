"""`track`: numbers of finished runs in experiment trackers."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace

import pytest
from score_helpers import make_agreement_rows, write_pairs

import antlm_bench
from antlm_bench.commands import track as track_module
from antlm_bench.commands.track import track
from antlm_bench.errors import BenchError, UsageError


@pytest.fixture(scope="module")
def run(make_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("track")
    pairs = write_pairs(folder / "pairs.csv", make_agreement_rows(12))
    [run] = antlm_bench.score(make_checkpoint(), str(pairs), out=folder / "chck_10M")
    return run


def test_mlflow_has_the_numbers_of_the_run(run, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow's own
        mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())

        for _ in range(2):  # the second time updates the run
            track(run, to="mlflow", project="babylm")

        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("babylm")
        [logged] = client.search_runs([experiment.experiment_id])
    estimate = run["pairs"].estimate
    assert logged.data.metrics["pairs/causal/score"] == estimate.value
    assert logged.data.metrics["pairs/causal/low"] == estimate.low
    assert logged.data.params["weights"] == run.manifest.model["weights"]
    assert logged.info.status == "FINISHED"


def test_every_group_is_a_metric(run):
    tracked = track_module.build_tracked_run(run, "m")

    estimate, groups = run["pairs"].estimate, run["pairs"].summary.groups
    expected = [estimate.value, estimate.low, estimate.high]
    expected += [group.estimate.value for group in groups]
    assert sorted(tracked.metrics.values()) == sorted(expected)


def test_unknown_tracker_is_refused(run):
    with pytest.raises(UsageError, match="unknown tracker 'tensorboard'"):
        track(run, to="tensorboard")


def test_missing_package_names_the_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(UsageError, match="needs the package wandb") as error:
        track(run, to="wandb")
    assert error.value.hint == "pip install wandb"


def test_error_of_a_tracker_is_one_sentence(run, monkeypatch):
    def refuse(**_: object) -> None:
        raise RuntimeError("not logged in")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=refuse))

    with pytest.raises(BenchError, match="trackio refused the run") as error:
        track(run, to="trackio")
    assert "not logged in" in str(error.value)
