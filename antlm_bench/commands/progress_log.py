"""What is seen of a training run: a line of the log per step, the bar, scores of milestones,
trackers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import runs
from antlm_bench.errors import RunError
from antlm_bench.reporting.progress import Progress, format_duration
from antlm_bench.training.recipe import Recipe

if TYPE_CHECKING:
    from antlm_bench.training.pretrain import RuntimeSettings, Trainer

LOG_FILE = "train.jsonl"


class ProgressLog:
    """Writes the log, moves the bar, scores milestones, tells the trackers. A context manager."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        stop_signals: list[int],
        settings: RuntimeSettings,
        trainer: Trainer,
    ) -> None:
        self.folder, self.recipe, self.stop_signals, self.trainer = (
            folder,
            recipe,
            stop_signals,
            trainer,
        )
        self.trackers = settings.trackers
        self.log_path = folder / LOG_FILE
        self.label = f"{recipe.name} {recipe.scale}".strip()
        self.progress_bar: Progress | None = None
        self.smoothed_losses: dict[str, float] = {}

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self.progress_bar:
            self.progress_bar.__exit__(*exc_info)
        if self.trackers:
            self.trainer.accelerator.end_training()

    def on_train_begin(self, total_tokens: int, steps_done: int, tokens_seen: int) -> None:
        """The log of steps that a kill has undone is taken back, so that no step stands in it
        twice.
        """
        kept = [record for record in _read_log(self.log_path) if record["step"] <= steps_done]
        runs.write_atomically(
            self.log_path, "".join(json.dumps(record) + "\n" for record in kept).encode()
        )
        self.smoothed_losses = next(
            (dict(record["loss"]) for record in reversed(kept) if "loss" in record), {}
        )
        self.progress_bar = Progress(total_tokens, self.label, "tokens")
        self.progress_bar.__enter__()
        self.progress_bar.skip(tokens_seen)
        if steps_done:
            self.progress_bar.log(f"{self.label}: continues after step {steps_done:,}")
        if self.trackers:
            self.trainer.accelerator.init_trackers(
                self.recipe.name, config={"recipe": self.recipe.model_dump_json()}
            )

    def on_step_end(self, record: dict[str, Any]) -> None:
        assert self.progress_bar
        objectives = "+".join(record["loss"])
        if record.pop("switch"):
            record["switch"] = objectives
            self.progress_bar.log(
                f"{self.label}: step {record['step']:,} switches from {'+'.join(self.smoothed_losses)} to {objectives}"
            )
            self.smoothed_losses = {}
        self._append(record)
        if "held_out" in record:
            self.progress_bar.log(
                f"{self.label}: held-out loss {record['held_out']:.4f} after step {record['step']:,}"
            )
        for name, loss in record[
            "loss"
        ].items():  # what is shown is smoothed, what is logged is not
            self.smoothed_losses[name] = 0.95 * self.smoothed_losses.get(name, loss) + 0.05 * loss
        shown = ", ".join(f"{name} {loss:.3f}" for name, loss in self.smoothed_losses.items())
        self.progress_bar.describe(f"{self.label} {shown}, {record['words'] / 1e6:.2f}M words")
        self.progress_bar.advance(record["tokens"] - self.progress_bar.num_done)
        if self.trackers:
            flat = {f"loss/{name}": loss for name, loss in record["loss"].items()}
            self.trainer.accelerator.log(
                flat | {"lr": record["lr"], "norm": record["norm"]}, step=record["step"]
            )

    def on_save(self, checkpoint: Path, step: int) -> None:
        spec = self.recipe.evaluate
        if spec is None:
            return
        from antlm_bench.commands.score import score

        started = time.monotonic()
        place = self.folder / "scores" / checkpoint.name
        [run] = score(
            str(checkpoint),
            list(spec.suites),
            methods=self.recipe.methods,
            out=place,
            limit=spec.limit,
        )
        found: list[dict[str, Any]] = [{"suite": c.suite, "method": c.method, "score": c.summary.headline.value}
                                       for c in run]  # fmt: skip
        self._append({"step": step, "checkpoint": checkpoint.name, "scores": found})
        if self.progress_bar:
            said = ", ".join(
                f"{one['suite']} {one['method']} {100 * one['score']:.1f}" for one in found
            )
            self.progress_bar.log(
                f"{self.label}: {checkpoint.name}: {said} ({format_duration(time.monotonic() - started)})"
            )

    def stop_requested(self) -> bool:
        return bool(self.stop_signals)

    def _append(self, record: dict[str, Any]) -> None:
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror}", location=str(self.log_path)
            ) from error


def _read_log(log_path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log. Its last line may be half: the disk was full."""
    for line in log_path.read_text(encoding="utf-8").splitlines() if log_path.exists() else ():
        with suppress(ValueError):
            yield json.loads(line)
