"""`track`: log the numbers of finished runs to an experiment tracker.

Trackers are not needed to score. Each run folder becomes one run of the tracker, and logging it
again updates that run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.packages import require_packages
from antlm_bench.results.checkpoint_series import expand_run_dirs, words_seen
from antlm_bench.results.display_names import model_names
from antlm_bench.runs.provenance import read_provenance
from antlm_bench.types import Run, RunLike, list_run_folders

DEFAULT_PROJECT = "antlm-bench"
RUN_TAG = "antlm_bench.run"
"""Tag that identifies a run folder's content in MLflow."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker gets of one run folder."""

    id: str
    """16 hex digits: model, weights and absolute path. A tracker has one run of each."""
    name: str
    step: int
    """Words that the checkpoint has seen; 0 = unknown. It is the x axis of learning curves."""
    parameters: Mapping[str, str]
    """Facts about the checkpoint and the software."""
    metrics: Mapping[str, float]
    """"suite/method/score" -> headline, with "low" and "high" as the ends of its interval, and
    "suite/method/level.group" -> a group. Accuracies are fractions."""


def track(
    *runs: Sequence[RunLike] | RunLike, to: str, project: str = DEFAULT_PROJECT
) -> list[TrackedRun]:
    """Log every run to a tracker, and return what was logged.

    to: a name of TRACKERS. project: the tracker's project (in MLflow the experiment). The tracker's
    own environment variables say where it is: MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR, ...

    Raises UsageError for an unknown tracker or a missing package, RunError for a damaged run, and
    BenchError with the tracker's message if it refuses.
    """
    if to not in TRACKERS:
        raise UsageError(
            f"unknown tracker {to!r}", location="--to", hint=f"one of {', '.join(TRACKERS)}"
        )
    all_runs = open_verified_runs(expand_run_dirs(list_run_folders(runs)))
    if not all_runs:
        raise UsageError("no run folder given", location="track", hint="antlm-bench track RUN...")
    tracked_runs = [
        build_tracked_run(run, name)
        for run, name in zip(all_runs, model_names(all_runs), strict=True)
    ]
    with require_packages(f"--to {to}", to):
        package = import_module(to)
    for tracked_run in tracked_runs:
        try:
            TRACKERS[to](package, tracked_run, project)
        except Exception as error:  # every tracker has errors of its own
            raise BenchError(
                f"{to} refused the run {tracked_run.name}: {error}",
                location=f"--to {to}",
                hint="check its address and login, then repeat: a run is updated, not added twice",
            ) from error
    return tracked_runs


def build_tracked_run(run: Run, name: str) -> TrackedRun:
    """Return what a tracker gets of a run that is shown under this name."""
    model = run.manifest.model
    identity = f"{model.get('name')}\n{model.get('weights')}\n{Path(run.path).resolve()}"
    parameters = {key: str(value) for key, value in model.items() if isinstance(value, str | int)}
    parameters |= {f"version.{key}": value for key, value in run.manifest.software.items()}
    for record in read_provenance(run.path).values():
        parameters |= {
            key: str(record[key]) for key in ("node", "cpu", "commit") if record.get(key)
        }
    return TrackedRun(
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        name=name,
        step=words_seen(run) or 0,
        parameters=parameters,
        metrics=dict(_iter_metrics(run)),
    )


def _iter_metrics(run: Run) -> Iterator[tuple[str, float]]:
    """Yield (name, value) of every cell: headline, ends of its interval, groups."""
    for cell in run:
        parts = [cell.suite, cell.method, *([] if cell.seed is None else [f"seed{cell.seed}"])]
        prefix = "/".join(map(_clean_name, parts))
        yield f"{prefix}/score", float(cell.estimate.value)
        spec = get_metric_spec(cell.summary.metric)
        low, high = spec.known_interval(*cell.estimate.interval)
        if low is not None and high is not None:
            yield f"{prefix}/low", float(low)
            yield f"{prefix}/high", float(high)
        for group in cell.summary.groups:
            path = [part for part in (group.level, group.within, group.name) if part]
            yield f"{prefix}/{_clean_name('.'.join(path))}", float(group.estimate.value)


def _clean_name(text: str) -> str:
    """Replace the characters that MLflow refuses in names, and those that make paths."""
    return re.sub(r"[^\w .-]|^\.+", "_", text) or "_"


def _log_to_mlflow(mlflow: Any, run: TrackedRun, project: str) -> None:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(project)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(project)
    existing = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.id}'")
    if existing:
        run_id = existing[0].info.run_id
    else:
        tags = {RUN_TAG: run.id}
        run_id = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        for key, value in run.parameters.items():
            client.log_param(run_id, _clean_name(key), value[:500])
    for metric_name, metric_value in run.metrics.items():
        client.log_metric(run_id, metric_name, metric_value, step=run.step)
    client.set_terminated(run_id)


def _log_to_wandb(wandb: Any, run: TrackedRun, project: str) -> None:
    tracker_run = wandb.init(
        project=project,
        name=run.name,
        id=run.id,
        resume="allow",
        config=dict(run.parameters),
        settings=wandb.Settings(silent=True),
    )
    tracker_run.summary.update({**run.metrics, "words_seen": run.step})
    tracker_run.log({**run.metrics, "words_seen": run.step})
    tracker_run.finish()


def _log_to_trackio(trackio: Any, run: TrackedRun, project: str) -> None:
    tracker_run = trackio.init(
        project=project,
        name=f"{run.name} {run.id[:8]}",
        config=dict(run.parameters),
        resume="allow",
        embed=False,
    )
    tracker_run.log({**run.metrics, "words_seen": run.step})
    tracker_run.finish()


TRACKERS: dict[str, Callable[[Any, TrackedRun, str], None]] = {
    "mlflow": _log_to_mlflow,
    "wandb": _log_to_wandb,
    "trackio": _log_to_trackio,
}
"""Name of a tracker and of its package -> function that logs one run: (package, run, project)."""
