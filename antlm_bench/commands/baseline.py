"""`baseline`: slim copies of runs that are committed and found by name."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.comparison.summary_check import read_run
from antlm_bench.errors import RunError, UsageError
from antlm_bench.types import Manifest

BASELINES_DIR = Path("reports/baselines")
# Facts of the manifest about the machine, which do not identify the model.
MACHINE_KEYS = ("source", "device", "layout", "path", "hostname")
Facts = Mapping[str, Any]


def save_baseline(
    run: str | Path,
    name: str = "",
    *,
    baselines_dir: str | Path = BASELINES_DIR,
    overwrite: bool = False,
) -> Path:
    """Write a slim copy of a run and return its folder.

    It has every cell with its predictions (ids and numbers, no texts), without facts about the
    machine and without histories. Of the paths of the user's files it keeps only the ends that tell
    them apart. name: of the folder in `baselines_dir`; default the run folder's.

    Raises RunError (no run, damaged predictions, a full disk), UsageError (an impossible name, an
    existing baseline).
    """
    opened = read_run(run)
    name = name or Path(run).resolve().name
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"{name!r} is no name of a folder", location="--name", hint="letters, digits, - and _"
        )
    if not opened.cells:
        raise RunError("the run has no finished cell", location=str(run), hint="score it first")
    folder = Path(baselines_dir) / name
    if folder.exists() and not overwrite:
        raise UsageError(
            f"there is a baseline {name!r} already",
            location=str(folder),
            hint="--overwrite replaces it",
        )
    manifest = opened.manifest
    model = {key: value for key, value in manifest.model.items() if key not in MACHINE_KEYS}
    slim = folder.with_name(f".{name}.new")
    shutil.rmtree(slim, ignore_errors=True)
    with runs.RunWriter(
        slim, Manifest(runs.SCHEMA_VERSION, model, manifest.software, manifest.created)
    ) as writer:
        for cell in runs.portable_cells(opened):
            kept = {key: cell.history[key] for key in ("collapsed",) if key in cell.history}
            writer.write_cell(replace(cell, history=kept), runs.read_predictions(opened.path, cell))
    try:
        if folder.exists():
            shutil.rmtree(folder)
        slim.rename(folder)
    except OSError as error:
        raise RunError(
            f"cannot be replaced: {error.strerror}", location=str(folder), hint="is it in use?"
        ) from error
    return folder


def list_baselines(baselines_dir: str | Path = BASELINES_DIR) -> list[Facts]:
    """Return one row per baseline. The row of a damaged one names the damage."""
    rows: list[Facts] = []
    for path in sorted(Path(baselines_dir).glob("*/run.json")):
        row = {"baseline": path.parent.name, "model": "", "suites": "", "created": ""}
        try:
            run = runs.open_run(path.parent)
            suites = dict.fromkeys(cell.suite for cell in run)
            row |= {"model": str(run.manifest.model.get("name", "")), "suites": ", ".join(suites)}
            rows.append(row | {"created": run.manifest.created[:10]})
        except RunError as error:
            rows.append(row | {"model": f"unreadable: {error.message}"})
    return rows


def find_baseline(ref: str | Path, baselines_dir: str | Path = BASELINES_DIR) -> Path:
    """Return the run folder behind a path or the name of a baseline.

    Raises UsageError, with the names of the baselines, if there is none.
    """
    for folder in (Path(ref), Path(baselines_dir) / ref):
        if (folder / "run.json").exists():
            return folder
    names = [str(row["baseline"]) for row in list_baselines(baselines_dir)]
    hint = (
        f"baselines are {', '.join(names)}" if names else "antlm-bench baseline save RUN makes one"
    )
    raise UsageError(
        f"no run folder and no baseline: {str(ref)!r}", location="--against", hint=hint
    )
