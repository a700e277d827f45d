"""The training callback: log, progress, experiment trackers, and scores of milestones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.progress import Progress, format_duration
from antlm_bench.results.training_log import TrainingLogWriter
from antlm_bench.training.recipe import Recipe

if TYPE_CHECKING:
    from antlm_bench.training.pretrain import RuntimeSettings, Trainer

LOSS_SMOOTHING = 0.95
"""Weight of the earlier steps in the loss that the progress shows."""


class ProgressLog:
    """Write the log of `pretrain`, update the progress and trackers, and score milestones.

    A context manager: it closes the trackers.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        stop_signals: list[int],
        settings: RuntimeSettings,
        trainer: Trainer,
        progress: Progress,
    ) -> None:
        """progress: its part is planned, and its units are tokens."""
        self.folder = folder
        self.recipe = recipe
        self.trainer = trainer
        self.progress = progress
        self.stop_signals = stop_signals
        self.trackers = settings.trackers
        self.log_writer = TrainingLogWriter(folder)
        self.label = f"{recipe.name} {recipe.scale}".strip()
        self.steps_before = 0
        """Steps that earlier calls have made."""
        self.tokens_done = 0
        self.smoothed_losses: dict[str, float] = {}

    def __enter__(self) -> ProgressLog:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self.trackers:
            self.trainer.accelerator.end_training()

    def on_train_begin(self, total_tokens: int, steps_done: int, tokens_seen: int) -> None:
        del total_tokens  # planned with the recipe
        self.steps_before, self.tokens_done = steps_done, tokens_seen
        step_records = [r for r in self.log_writer.rewind(steps_done) if "loss" in r]
        self.smoothed_losses = dict(step_records[-1]["loss"]) if step_records else {}
        self.progress.skip(tokens_seen)
        if steps_done:
            self.progress.log(f"{self.label}: continues after step {steps_done:,}")
        if self.trackers:
            self.trainer.accelerator.init_trackers(
                self.recipe.name, config={"recipe": self.recipe.model_dump_json()}
            )

    def on_step_end(self, record: dict[str, Any]) -> None:
        """Log a step. record["switch"]: whether its objectives differ from the last step's."""
        step, objectives = f"step {record['step']:,}", "+".join(record["loss"])
        if record.pop("switch"):
            record["switch"] = objectives
            earlier = "+".join(self.smoothed_losses)
            self.progress.log(f"{self.label}: {step} switches from {earlier} to {objectives}")
            self.smoothed_losses = {}
        self.log_writer.append(record)
        if "held_out" in record:
            self.progress.log(f"{self.label}: held-out loss {record['held_out']:.4f} after {step}")
        for name, loss in record["loss"].items():  # the log has the losses without smoothing
            earlier_loss = self.smoothed_losses.get(name, loss)
            self.smoothed_losses[name] = LOSS_SMOOTHING * earlier_loss + (1 - LOSS_SMOOTHING) * loss
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in self.smoothed_losses.items())
        count = record["words"]
        words = f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count:,.0f}"
        self.progress.describe(f"{self.label} {losses}, {words} words")
        num_tokens = record["tokens"] - self.tokens_done
        self.progress.advance(num_tokens, num_tokens)
        self.tokens_done = record["tokens"]
        if self.trackers:
            values = {f"loss/{name}": loss for name, loss in record["loss"].items()}
            values |= {"lr": record["lr"], "norm": record["norm"]}
            self.trainer.accelerator.log(values, step=record["step"])

    def on_save(self, checkpoint: Path, step: int) -> None:
        """Score a milestone on the suites of the recipe's [evaluate] table, if it has one."""
        spec = self.recipe.evaluate
        if spec is None:
            return
        from antlm_bench.commands.score import score

        start_time = time.monotonic()
        [run] = score(
            str(checkpoint),
            list(spec.suites),
            methods=self.recipe.methods,
            out=self.folder / "scores" / checkpoint.name,
            limit=spec.limit,
        )
        scores: list[dict[str, Any]] = [
            {"suite": cell.suite, "method": cell.method, "score": cell.summary.headline.value}
            for cell in run
        ]
        self.log_writer.append({"step": step, "checkpoint": checkpoint.name, "scores": scores})
        duration = format_duration(time.monotonic() - start_time)
        text = ", ".join(
            f"{entry['suite']} {entry['method']} {100 * entry['score']:.1f}" for entry in scores
        )
        self.progress.log(f"{self.label}: {checkpoint.name}: {text} ({duration})")

    def stop_requested(self) -> bool:
        return bool(self.stop_signals)
