"""Where the run of a checkpoint lies, which software made it, and what identifies a cell."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from antlm_bench import __version__
from antlm_bench.declarations import expand_user_path
from antlm_bench.errors import UsageError
from antlm_bench.runs.provenance import RECORDED_PACKAGES
from antlm_bench.runs.run_json import SCHEMA_VERSION
from antlm_bench.runs.store import RunWriter
from antlm_bench.types import Manifest

REPORTS_DIR = Path("reports")
REPORTS_VARIABLE = "ANTLM_BENCH_REPORTS"
"""Environment variable with the folder in which run folders are written if no `--out` is given;
default: REPORTS_DIR."""


def reports_dir() -> Path:
    """Return the folder of run folders without `--out`."""
    text = os.environ.get(REPORTS_VARIABLE, "")
    return expand_user_path(text) if text else REPORTS_DIR


def run_dir(
    model_facts: Mapping[str, Any], out: str | Path | None, multiple_checkpoints: bool
) -> Path:
    """Return the run folder of a checkpoint.

    That is `out` itself. Without `out`, or with several checkpoints, it is a folder in `out` (or in
    `reports_dir()`) that is named after the checkpoint and the hash of its weights.
    """
    folder = reports_dir() if out is None else Path(out)
    if out is None or multiple_checkpoints:
        folder /= f"{str(model_facts['name']).replace('/', '--')}-{str(model_facts['weights'])[:8]}"
    return folder


def check_single_name(name: str | None, refs: Sequence[str]) -> None:
    """Raise UsageError for an empty name, and for one name of several checkpoints."""
    if name is not None and (len(refs) > 1 or not name.strip()):
        problem = f"names one checkpoint, not {len(refs)}" if name.strip() else "is empty"
        raise UsageError(
            f"{name!r} {problem}", location="--name", hint="score each checkpoint with its own name"
        )


def build_manifest(model_facts: Mapping[str, Any], label: str | None = None) -> Manifest:
    """Build the manifest of a run that begins now, with the software that is installed now.

    label: the name that the user gave the model (--name).
    """
    software = {name: version(name) for name in RECORDED_PACKAGES}
    software |= {"antlm-bench": __version__, "python": platform.python_version()}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = dict(model_facts) | ({"label": label} if label else {})
    return Manifest(SCHEMA_VERSION, facts, software, created)


def content_key(settings: Mapping[str, Any]) -> str:
    """Hash the settings of a cell. Equal settings have equal keys, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def log_replaced_scores(
    log: Callable[[str], None],
    writer: RunWriter,
    origin: tuple[str, ...],
    settings: Iterable[Mapping[str, Any]],
) -> None:
    """Log which scores are replaced: of a user's file whose items have changed since, or under
    other settings.
    """
    all_settings = list(settings)
    if any(writer.suite_file_changed(origin, each, each.get("seed")) for each in all_settings):
        log(
            f"{origin[0]}: its items have changed since it was scored; the new score replaces the"
            " old one"
        )
        return
    for each in all_settings:
        if differing := writer.differing_settings(each, origin):
            log(
                f"{each['suite']} ({each['method']}): the new score replaces one with other "
                f"settings: {', '.join(differing)}"
            )
