"""What `score` and `finetune` share: where the run of a checkpoint lies, who made it, and what
names a cell.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from antlm_bench import __version__, runs
from antlm_bench.errors import UsageError
from antlm_bench.reporting.progress import Progress
from antlm_bench.types import Manifest

if TYPE_CHECKING:
    from antlm_bench.suites.classification_loader import ClassificationTask
    from antlm_bench.suites.task_types import Suite

S = TypeVar("S", "Suite", "ClassificationTask")

Names = Sequence[str | Path] | str | Path  # one or several


def as_list(names: Names) -> list[str]:
    return [str(name) for name in ([names] if isinstance(names, str | Path) else names)]


def run_dir(
    model_facts: Mapping[str, Any], out: str | Path | None, multiple_checkpoints: bool
) -> Path:
    """The run folder of a checkpoint: `out` itself, or a readable name in it (in reports/) that its
    weights make unique.
    """
    folder = Path("reports") if out is None else Path(out)
    if out is None or multiple_checkpoints:
        folder /= f"{str(model_facts['name']).replace('/', '--')}-{str(model_facts['weights'])[:8]}"
    return folder


def build_manifest(model_facts: Mapping[str, Any]) -> Manifest:
    """Of a run that is begun now with the software that is installed now."""
    software = {
        name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "scipy")
    }
    software |= {"antlm-bench": __version__, "python": platform.python_version()}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Manifest(runs.SCHEMA_VERSION, dict(model_facts), software, created)


def content_key(settings: Mapping[str, Any]) -> str:
    """The content key of a cell: equal for equal facts, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def deduplicate_suites(suites: Iterable[S]) -> list[S]:
    """Return the suites (or tasks) of a call, a file that was named twice once.

    Raises UsageError for suites that one cell would have to hold: two of one name that are no files
    of the user's, or two files that hold the same questions under one name.
    """
    kept: dict[tuple[str, str], S] = {}
    for suite in suites:
        name = getattr(suite, "full_name", suite.name)
        first = kept.setdefault((name, suite.digest if suite.origin else ""), suite)
        if first is suite or (
            first.digest == suite.digest and _same_files(first.origin, suite.origin)
        ):
            continue
        if suite.origin:
            message = f"{suite.origin[0]} holds the same questions as {first.origin[0]}, under the same name"
            raise UsageError(
                message, location="--suite", hint="name one of them only, or rename a file"
            )
        hint = "score them in two commands, with an --out of its own for each"
        raise UsageError(f"two suites are called {name!r}", location="--suite", hint=hint)
    return list(kept.values())


def announce_replaced_scores(
    progress: Progress,
    writer: runs.RunWriter,
    origin: tuple[str, ...],
    settings: Iterable[Mapping[str, Any]],
) -> None:
    """Print that the score of a user's file is replaced, where the items of that file have changed
    since.
    """
    if any(writer.suite_file_changed(origin, one, one.get("seed")) for one in settings):
        progress.log(
            f"{origin[0]}: its items have changed since it was scored; the new score replaces the old one"
        )


def _same_files(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Do two origins name the same files, perhaps through links?"""
    return [Path(path).resolve() for path in first] == [Path(path).resolve() for path in second]
