"""The log of a training run -> its losses over words seen, thinned to what an eye can tell apart."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.errors import RunError
from antlm_bench.results.display_names import make_printable

LOG_FILE = "train.jsonl"  # as `train` writes it: see commands.progress_log
POINTS_PER_RUN = 240  # points per training run: about one per two pixels of a page


@dataclass(frozen=True, slots=True)
class LossPoint:
    """The mean loss (nats per target) of an objective over some steps around `words`; stretch
    counts its phases.
    """

    objective: str
    words: float
    value: float
    stretch: int


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """The losses of one training run. switches: (words, objectives from here on). steps: how many
    were logged.
    """

    name: str
    losses: tuple[LossPoint, ...]
    switches: tuple[tuple[float, str], ...]
    steps: int


def read_training_log(run_dir: str | Path) -> TrainingLog:
    """Read the log in a training folder. Raises RunError where there is none, or a line of it is no
    step.
    """
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
        if "switch" in step:
            stretch += 1
            switches.append((step["words"], make_printable(str(step["switch"]))))
        for objective, value in step["loss"].items():
            bins[stretch, make_printable(str(objective)), int(step["words"] / width)].append(
                (step["words"], value)
            )
    losses = tuple(
        LossPoint(
            objective,
            sum(w for w, _ in found) / len(found),
            sum(v for _, v in found) / len(found),
            stretch,
        )
        for (stretch, objective, _), found in bins.items()
    )
    return TrainingLog(
        make_printable(path.absolute().parent.name), losses, tuple(switches), len(steps)
    )


def _parse_steps(lines: list[str], path: Path) -> Iterator[dict[str, Any]]:
    """The records that are steps. The last line may be half: the training runs, or its disk was
    full.
    """
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
