"""The log of a training run: write one record per step, read losses over the words seen.

Losses are thinned to as many points as an eye can tell apart.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.errors import RunError
from antlm_bench.printable import make_printable

LOG_FILE = "train.jsonl"
POINTS_PER_RUN = 240  # points per training run: about one per two pixels of a page


class TrainingLogWriter:
    """Writes the log of a training folder: one JSON record per line, of a step or of scores."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG_FILE

    def rewind(self, steps_done: int) -> list[dict[str, Any]]:
        """Remove the records after step `steps_done`, which a kill has undone; return the others.

        Else these steps would be in the log twice. Lines that are not JSON are removed too: the
        last one may be half.
        """
        kept = []
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ()
        for line in lines:
            with suppress(ValueError):
                record = json.loads(line)
                if record["step"] <= steps_done:
                    kept.append(record)
        text = "".join(json.dumps(record) + "\n" for record in kept)
        runs.write_atomically(self.path, text.encode())
        return kept

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. Raises RunError if the file cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror}", location=str(self.path)
            ) from error


@dataclass(frozen=True, slots=True)
class LossPoint:
    """The mean loss of an objective over neighbouring steps."""

    objective: str
    words: float
    """Words seen: the mean over these steps."""
    value: float
    """Nats per target."""
    stretch: int
    """How many switches of objective came before."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The losses of one training run."""

    name: str
    losses: tuple[LossPoint, ...]
    switches: tuple[tuple[float, str], ...]
    """(words seen, objectives from here on)."""
    steps: int
    """How many steps the log holds."""


def read_training_log(run_dir: str | Path) -> TrainingLog:
    """Read the log of a training folder. Raises RunError if there is none, or a line is damaged."""
    path = Path(run_dir) / LOG_FILE
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        hint = f"give the folder that `antlm-bench train` wrote: it holds {LOG_FILE}"
        raise RunError(
            f"no training log: {error.strerror}", location=str(path), hint=hint
        ) from error
    steps = list(_parse_steps(lines, path))
    if not steps:
        raise RunError(
            "no step in this log", location=str(path), hint="the training has not begun yet"
        )
    width = steps[-1]["words"] / POINTS_PER_RUN or 1
    bins: dict[tuple[int, str, int], list[tuple[float, float]]] = defaultdict(list)
    switches, stretch = [], 0
    for step in steps:
        words = step["words"]
        if "switch" in step:
            stretch += 1
            switches.append((words, make_printable(str(step["switch"]))))
        for objective, value in step["loss"].items():
            key = (stretch, make_printable(str(objective)), int(words / width))
            bins[key].append((words, value))
    losses = tuple(
        LossPoint(
            objective,
            sum(words for words, _ in points) / len(points),
            sum(value for _, value in points) / len(points),
            stretch,
        )
        for (stretch, objective, _), points in bins.items()
    )
    name = make_printable(path.absolute().parent.name)
    return TrainingLog(name, losses, tuple(switches), len(steps))


def _parse_steps(lines: list[str], path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of steps. A half last line is left out: the run may still write it."""
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise RunError(
                "no JSON", location=f"{path}:{number}", hint="the log was edited or damaged"
            ) from error
        if isinstance(record, dict) and "loss" not in record:
            continue  # scores of a checkpoint
        if not (
            isinstance(record, dict)
            and isinstance(record["loss"], dict)
            and _has_finite_numbers(record)
        ):
            hint = "a step has numbers: words, and a loss per objective"
            raise RunError("not a step of a training", location=f"{path}:{number}", hint=hint)
        yield record


def _has_finite_numbers(record: dict[str, Any]) -> bool:
    numbers = [record.get("words"), *record["loss"].values()]
    return all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers
    )
