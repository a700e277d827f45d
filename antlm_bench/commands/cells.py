"""What `score` and `finetune` share: where the run of a checkpoint lies, who made it, and what names a cell."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from antlm_bench import __version__, runs
from antlm_bench.types import Manifest

Names = Sequence[str | Path] | str | Path  # one or several


def listed(names: Names) -> list[str]:
    return [str(name) for name in ([names] if isinstance(names, str | Path) else names)]


def place(describe: Mapping[str, Any], out: str | Path | None, several: bool) -> Path:
    """The run folder of a checkpoint: `out` itself, or a readable name in it (in reports/) that its weights make
    unique."""
    folder = Path("reports") if out is None else Path(out)
    if out is None or several:
        folder /= f"{str(describe['name']).replace('/', '--')}-{str(describe['weights'])[:8]}"
    return folder


def manifest(describe: Mapping[str, Any]) -> Manifest:
    """Of a run that is begun now with the software that is installed now."""
    software = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "scipy")}
    software |= {"antlm-bench": __version__, "python": platform.python_version()}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Manifest(runs.SCHEMA, dict(describe), software, created)


def key(facts: Mapping[str, Any]) -> str:
    """The content key of a cell: equal for equal facts, whatever their order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
