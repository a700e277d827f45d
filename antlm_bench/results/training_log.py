"""The log of a training run: write one record per step, and read the losses for figures."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.errors import RunError
from antlm_bench.printable import make_printable
from antlm_bench.safe_files import open_for_writing, read_regular_file
from antlm_bench.safe_json import parse_json

LOG_FILE = "train.jsonl"
POINTS_PER_RUN = 240
"""Points per training run and objective: about one per two pixels of a page."""


class TrainingLogWriter:
    """Write the log of a training folder: JSON Lines, one record per step or scored checkpoint."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG_FILE

    def rewind(self, steps_done: int) -> list[dict[str, Any]]:
        """Remove the records after step `steps_done`. Return the remaining records.

        A resumed training repeats these steps. Lines that are not JSON are removed, too: a kill may
        have truncated the last one.
        """
        records = []
        for line in self._read_lines():
            with suppress(ValueError, KeyError, TypeError):
                record = parse_json(line)
                if record["step"] <= steps_done:
                    records.append(record)
        text = "".join(json.dumps(record) + "\n" for record in records)
        runs.write_atomically(self.path, text.encode())
        return records

    def _read_lines(self) -> list[str]:
        """Return the lines of the file, [] without one. Raises RunError."""
        try:
            return read_regular_file(self.path).decode(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot be read: {error.strerror}", location=str(self.path)) from error

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. Raises RunError if the file cannot be written."""
        try:
            descriptor = open_for_writing(self.path, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
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
    """Mean number of words seen over these steps."""
    value: float
    """Mean loss over these steps, in nats per target."""
    stretch: int
    """Number of earlier switches between objectives. Points of different numbers are not joined."""


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The losses of one training run."""

    name: str
    losses: tuple[LossPoint, ...]
    switches: tuple[tuple[float, str], ...]
    """(words seen, objectives from there on) of each switch."""
    steps: int
    """Number of steps in the log."""


def read_training_log(run_dir: str | Path) -> TrainingLog:
    """Read the log of a training folder. Raises RunError if there is none, or a line is damaged."""
    path = Path(run_dir) / LOG_FILE
    try:
        lines = read_regular_file(path).decode(errors="replace").splitlines()
    except OSError as error:
        hint = f"give the folder that `antlm-bench train` wrote: it holds {LOG_FILE}"
        raise RunError(
            f"no training log: {error.strerror}", location=str(path), hint=hint
        ) from error
    steps = list(_parse_steps(lines, path))
    if not steps:
        raise RunError(
            "the log has no step",
            location=str(path),
            hint="wait for the first step of the training",
        )
    bin_width = steps[-1]["words"] / POINTS_PER_RUN or 1  # in words
    bins: dict[tuple[int, str, int], list[tuple[float, float]]] = defaultdict(list)
    switches = []
    for step in steps:
        words = step["words"]
        if "switch" in step:
            switches.append((words, make_printable(str(step["switch"]))))
        for objective, value in step["loss"].items():
            key = (len(switches), make_printable(str(objective)), int(words / bin_width))
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
    """Yield the records of steps. A damaged last line is left out: it may not be written yet."""
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise RunError(
                "not JSON", location=f"{path}:{number}", hint="the log was edited or damaged"
            ) from error
        if isinstance(record, dict) and "loss" not in record:
            continue  # scores of a checkpoint
        if not _is_step(record):
            hint = "a step has finite numbers: words, and a loss per objective"
            raise RunError("not a training step", location=f"{path}:{number}", hint=hint)
        yield record


def _is_step(record: object) -> bool:
    if not isinstance(record, dict) or not isinstance(record["loss"], dict):
        return False
    numbers = [record.get("words"), *record["loss"].values()]
    return all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers
    )
