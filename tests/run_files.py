"""The files of a run folder, to compare two runs byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

from antlm_bench.runs.provenance import PROVENANCE_FILE


def read_results(run_dir: Path) -> dict[str, bytes]:
    """Return file -> bytes of a run, without the time in run.json and the
    provenance.
    """
    files = {
        str(path.relative_to(run_dir)): path.read_bytes()
        for path in run_dir.rglob("*")
        if path.is_file() and path.name != PROVENANCE_FILE
    }
    created = json.loads(files["run.json"])["manifest"]["created"]
    files["run.json"] = files["run.json"].replace(created.encode(), b"TIME")
    return files
