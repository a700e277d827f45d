"""What is seen of a training run: a line of the log per step, the bar, scores of milestones, trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import runs
from antlm_bench.errors import RunError
from antlm_bench.reporting.progress import Progress, duration
from antlm_bench.training.recipe import Recipe

if TYPE_CHECKING:
    from antlm_bench.training.pretrain import Conditions, Training

LOG = "train.jsonl"


class Watching:
    """Writes the log, moves the bar, scores milestones, tells the trackers. A context manager."""

    def __init__(
        self, folder: Path, recipe: Recipe, asked: list[int], conditions: Conditions, training: Training
    ) -> None:
        self.folder, self.recipe, self.asked, self.training = folder, recipe, asked, training
        self.trackers = conditions.trackers
        self.log = folder / LOG
        self.label = f"{recipe.name} {recipe.scale}".strip()
        self.bar: Progress | None = None
        self.losses: dict[str, float] = {}

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *why: Any) -> None:
        if self.bar:
            self.bar.__exit__(*why)
        if self.trackers:
            self.training.accelerator.end_training()

    def begins(self, tokens: int, done: int, seen: int) -> None:
        """The log of steps that a kill has undone is taken back, so that no step stands in it twice."""
        kept = [record for record in _read(self.log) if record["step"] <= done]
        runs.write_whole(self.log, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self.losses = next((dict(record["loss"]) for record in reversed(kept) if "loss" in record), {})
        self.bar = Progress(tokens, self.label, "tokens")
        self.bar.__enter__()
        self.bar.skip(seen)
        if done:
            self.bar.say(f"{self.label}: continues after step {done:,}")
        if self.trackers:
            self.training.accelerator.init_trackers(self.recipe.name, config={"recipe": self.recipe.model_dump_json()})

    def stepped(self, record: dict[str, Any]) -> None:
        assert self.bar
        objectives = "+".join(record["loss"])
        if record.pop("switch"):
            record["switch"] = objectives
            self.bar.say(f"{self.label}: step {record['step']:,} switches from {'+'.join(self.losses)} to {objectives}")
            self.losses = {}
        self._write(record)
        if "held_out" in record:
            self.bar.say(f"{self.label}: held-out loss {record['held_out']:.4f} after step {record['step']:,}")
        for name, loss in record["loss"].items():  # what is shown is smoothed, what is logged is not
            self.losses[name] = 0.95 * self.losses.get(name, loss) + 0.05 * loss
        shown = ", ".join(f"{name} {loss:.3f}" for name, loss in self.losses.items())
        self.bar.describe(f"{self.label} {shown}, {record['words'] / 1e6:.2f}M words")
        self.bar.advance(record["tokens"] - self.bar.done)
        if self.trackers:
            flat = {f"loss/{name}": loss for name, loss in record["loss"].items()}
            self.training.accelerator.log(flat | {"lr": record["lr"], "norm": record["norm"]}, step=record["step"])

    def saved(self, checkpoint: Path, step: int) -> None:
        spec = self.recipe.evaluate
        if spec is None:
            return
        from antlm_bench.commands.score import score

        started = time.monotonic()
        place = self.folder / "scores" / checkpoint.name
        [run] = score(str(checkpoint), list(spec.suites), methods=self.recipe.methods, out=place, limit=spec.limit)
        found: list[dict[str, Any]] = [{"suite": c.suite, "method": c.method, "score": c.summary.headline.value}
                                       for c in run]  # fmt: skip
        self._write({"step": step, "checkpoint": checkpoint.name, "scores": found})
        if self.bar:
            said = ", ".join(f"{one['suite']} {one['method']} {100 * one['score']:.1f}" for one in found)
            self.bar.say(f"{self.label}: {checkpoint.name}: {said} ({duration(time.monotonic() - started)})")

    def asked_to_stop(self) -> bool:
        return bool(self.asked)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", place=str(self.log)) from error


def _read(log: Path) -> Iterator[dict[str, Any]]:
    """The records of a log. Its last line may be half: the disk was full."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)
