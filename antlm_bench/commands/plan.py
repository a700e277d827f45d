"""`plan`, and --dry-run of `score` and `finetune`: what would be computed, and what it costs.

Nothing is started. Only caches are written: measured speeds, token counts, and the small files of
hub ids, which are downloaded without weights.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.commands.published_runs import check_output
from antlm_bench.commands.sweep import RunSweepOptions, open_executor
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.runs import Shard
from antlm_bench.runs.layout import reports_dir
from antlm_bench.sweeps.calibration import (
    DEVICE_KINDS,
    DeviceSpeed,
    guess_device_kind,
    list_speeds,
    load_speed,
    measure_speed,
)
from antlm_bench.sweeps.declaration import (
    FinetuneStage,
    ScoreStage,
    SweepDeclaration,
)
from antlm_bench.sweeps.estimates import Estimator
from antlm_bench.sweeps.expansion import ExpandedSweep, expand_sweep, load_sweep
from antlm_bench.sweeps.finished_units import find_units_done_by_journals, find_units_with_results
from antlm_bench.sweeps.plans import SweepPlan, build_plan, list_dtypes
from antlm_bench.sweeps.units import Sweep, UnitGroup
from antlm_bench.types import Names, as_list

if TYPE_CHECKING:
    from antlm_bench.commands.finetune import FinetuneOptions
    from antlm_bench.commands.score_options import ScoreOptions

COMMAND_LINE = "command line"
"""Location of a sweep without a file, in errors."""
FLAGS = {
    "models": "--model",
    "suites": "--suite",
    "methods": "--method",
    "tasks": "--task",
    "attentions": "--attention",
    "seeds": "--seed",
}
"""Key of a stage -> the option of the command line."""
COMMAND_OPTIONS = ("revision", "name", "again", "replace", "require_all", "shard")
"""Options of commands that a stage has as keys of its own, or that decide no cost."""


def plan_sweep(
    path: Path,
    device: str = "",
    *,
    calibrate: bool = False,
    run_options: RunSweepOptions | None = None,
) -> SweepPlan:
    """Return the plan of a sweep's TOML.

    device: cpu, cuda, mps, or a part of the name of a device or machine that was measured; "" =
    that of this machine. calibrate: measure this machine first. run_options: check also that `run`
    could start workers with these options. Raises the errors of everything that a unit could
    stumble over, and UsageError for an unknown device.
    """
    if path.is_dir():
        raise UsageError(
            "a plan needs the sweep's .toml, not a folder",
            location=str(path),
            hint=f"how far the sweep of a folder is: antlm-bench status {shlex.quote(str(path))}",
        )
    expanded, folder = load_sweep(path)
    if run_options is not None:
        open_executor(expanded.sweep, folder, run_options)
    done = find_units_done_by_journals(expanded.sweep, folder)
    return _estimate(expanded, str(folder), done, device, calibrate)


def plan_score(
    models: Names,
    suites: Names,
    methods: Names,
    options: ScoreOptions,
    out: str | Path | None = None,
    *,
    device: str = "",
    calibrate: bool = False,
) -> SweepPlan:
    """Return the plan of a call of `score`. device, calibrate: as for `plan_sweep`."""
    check_output(out, {"--shard": options.shard or ""})
    shard = None if options.shard is None else Shard.parse(options.shard)
    suite_names = as_list(suites)
    with _name_flags("score"):
        stage = ScoreStage(
            models=tuple(as_list(models)),
            revisions=_split_revisions(options.revision),
            suites=tuple(suite_names),
            methods=tuple(as_list(methods)),
            shards=shard.count if shard else 1,
            options=_list_options(options),
        )
        keeps_others = len(suite_names) > 1 and not options.require_all
        declaration = SweepDeclaration(
            name="score", score=(stage,), allow_missing_data=keeps_others
        )
        expanded = _select_units(expand_sweep(declaration, COMMAND_LINE), shard)
    done = set() if options.again else find_units_with_results(expanded, out)
    return _estimate(expanded, str(out or reports_dir()), done, device, calibrate)


def plan_finetune(
    models: Names,
    suites: Names,
    *,
    options: FinetuneOptions,
    tasks: Names = (),
    seeds: Sequence[int] | int = (1, 2, 3),
    attentions: Names = (),
    out: str | Path | None = None,
) -> SweepPlan:
    """Return the plan of a call of `finetune`."""
    check_output(out, {})
    with _name_flags("finetune"):
        stage = FinetuneStage(
            models=tuple(as_list(models)),
            revisions=_split_revisions(options.revision),
            suites=tuple(as_list(suites)),
            tasks=tuple(as_list(tasks)),
            attentions=tuple(as_list(attentions)),
            seeds=tuple(range(1, seeds + 1) if isinstance(seeds, int) else seeds),
            options=_list_options(options),
        )
        declaration = SweepDeclaration(name="finetune", finetune=(stage,), allow_missing_data=True)
        expanded = _select_units(expand_sweep(declaration, COMMAND_LINE))
    done = set() if options.again else find_units_with_results(expanded, out)
    return _estimate(expanded, str(out or reports_dir()), done)


def calibrate_device(device: str, dtypes: Sequence[str]) -> list[DeviceSpeed]:
    """Measure a device of this machine in some dtypes, and keep the speeds in the user's cache.

    device: "" = the best of this machine. Raises UsageError for a device that is not here.
    """
    return [measure_speed(device or "auto", dtype) for dtype in dtypes or ("float32",)]


def _estimate(
    expanded: ExpandedSweep,
    folder: str,
    done: Collection[str] = (),
    device: str = "",
    calibrate: bool = False,
) -> SweepPlan:
    if calibrate:
        calibrate_device(device, list_dtypes(expanded.sweep))
    kind = _find_device_kind(device)

    def find_speed(dtype: str) -> DeviceSpeed | None:
        return load_speed(device or kind, dtype)

    return build_plan(expanded, folder, Estimator(expanded, find_speed, kind), done)


def _find_device_kind(device: str) -> str:
    """Return cpu, cuda or mps. Raises UsageError for a device that was not measured."""
    if not device:
        return guess_device_kind()
    kind = device.partition(":")[0]
    if kind in DEVICE_KINDS:
        return kind
    speeds = list_speeds(device)
    if not speeds:
        names = ", ".join(f"{each.device} of {each.machine}" for each in list_speeds("")) or "none"
        raise UsageError(
            f"no device {device!r} was measured",
            location="--device",
            hint=f"{', '.join(DEVICE_KINDS)}, or a part of a name that was measured: {names}",
        )
    return speeds[0].kind


def _list_options(options: ScoreOptions | FinetuneOptions) -> dict[str, Any]:
    """Return the options that differ from their defaults, by name."""
    defaults = asdict(type(options)())
    return {
        name: value
        for name, value in asdict(options).items()
        if value != defaults[name] and name not in COMMAND_OPTIONS
    }


def _split_revisions(revision: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (revision or "").split(",")))


def _select_units(expanded: ExpandedSweep, shard: Shard | None = None) -> ExpandedSweep:
    """Return the sweep without the units that collect runs, and with those of one shard only."""
    shards = (None, str(shard))  # a whole suite has no shard
    groups = []
    for group in expanded.sweep.groups:
        units = tuple(
            unit
            for unit in group.units
            if unit.kind in ("score", "finetune") and unit.arguments.get("shard") in shards
        )
        if units:
            groups.append(UnitGroup(group.id, units))
    return replace(expanded, sweep=Sweep(expanded.sweep.name, tuple(groups)))


@contextmanager
def _name_flags(kind: str) -> Iterator[None]:
    """Let errors of a stage name the options of the command line."""
    try:
        yield
    except BenchError as error:
        if error.location.startswith(COMMAND_LINE):
            keys = error.location.removeprefix(f"{COMMAND_LINE}: {kind} {kind!r}").split(": ")
            error.location = _name_flag([key for key in keys if key not in ("", COMMAND_LINE)])
        raise


def _name_flag(keys: Sequence[str]) -> str:
    """Return the location of an error on the command line: `--limit` for ("options", "limit")."""
    if keys[:2] == ["options"]:
        return ""
    if keys[:1] == ["options"]:
        name = keys[1].replace("_", "-").replace("changes", "set")
        return ": ".join([f"--{name}", *keys[2:]])
    return ": ".join([*(FLAGS.get(key, key) for key in keys[:1]), *keys[1:]])
