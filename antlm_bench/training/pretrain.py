"""Train a model. One loop covers causal, masked, alternating (AntLM) and mixed (GPT-BERT)
objectives, and distillation.

A step is determined by its index (see schedule), and all randomness is keyed by (seed, step,
sample). So a killed run continues from saved weights and optimizer state with bit-identical
results. Splitting a step into processes and micro-batches changes results by rounding only, because
each loss is divided by its number of targets in the whole step, and gradients are summed over
processes, not averaged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from antlm_bench.cpu_tuning import keep_freed_memory
from antlm_bench.errors import DataError, RunError, TrainingError
from antlm_bench.printable import format_count
from antlm_bench.scoring.devices import read_scalars
from antlm_bench.training import checkpoint_io, dropout, optim
from antlm_bench.training.corpus import Corpus, Int64
from antlm_bench.training.losses import DistillationTargets, LazyLogits, sliced_cross_entropy
from antlm_bench.training.model_factory import (
    build_model,
    hidden_states_at_targets,
    lm_head_parameters,
    use_keyed_dropout,
)
from antlm_bench.training.objectives import (
    StepMasking,
    TrainingBatch,
    make_clm_batch,
    make_masked_batch,
    truncate_rows,
)
from antlm_bench.training.recipe import Recipe
from antlm_bench.training.schedule import (
    Step,
    count_rows,
    list_milestones,
    milestone_name,
    plan_steps,
)

MICRO_BATCH_TOKENS_BY_DEVICE = {"cpu": 4096}  # tokens per forward pass
DEFAULT_MICRO_BATCH_TOKENS = 65_536
MAX_LOSS_RATIO = 3.0  # largest accepted loss, as a multiple of a uniform guess, ln(vocabulary)
ROW_LENGTHS_KEY = 2**32 - 1  # replaces the sample index in the random key of row lengths


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """How a recipe is run. These settings change the learned weights by rounding only."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    """dtype of matrix products. Weights are float32."""
    micro_batch_tokens: int | None = None
    """Tokens per forward pass; None = depends on the device."""
    compile_model: bool = False
    """Whether to run torch.compile on the model."""
    save_every_minutes: float = 10.0
    """Minutes between two saved states."""
    stop_after: int | None = None
    """Save the state and stop after this step; None = train to the end."""
    trackers: tuple[str, ...] = ()
    """Names of Accelerate's experiment trackers."""
    tracker_dir: str | None = None
    """Folder for the files of trackers."""


class PretrainCallback(Protocol):
    """What `pretrain` calls during training, in the main process only."""

    def on_train_begin(self, total_tokens: int, steps_done: int, tokens_seen: int) -> None: ...
    def on_step_end(self, record: dict[str, Any]) -> None: ...
    def on_save(self, checkpoint: Path, step: int) -> None: ...
    def stop_requested(self) -> bool: ...


class MaskCounts:
    """Counts how often each token of the corpus was masked."""

    def __init__(
        self, num_tokens: int, sum_across_processes: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> None:
        self.counts = np.zeros(num_tokens, np.int16)
        """(n,) counts of all processes up to the last `synchronize`, then of this process only.

        Other processes count other tokens, because the rows of a pass do not overlap (unless
        corpus.offset = "row").
        """
        self._synchronized = self.counts.copy()
        self._sum_across_processes = sum_across_processes

    def synchronize(self) -> None:
        """Add the counts of the other processes since the last call. All processes must call it."""
        self.load(self._synchronized + self._sum_across_processes(self.counts - self._synchronized))

    def load(self, counts: NDArray[Any]) -> None:
        self.counts = counts.astype(np.int16)
        self._synchronized = self.counts.copy()


class Trainer:
    """Makes optimizer steps. Holds the model, its averaged weights, the optimizer and counters."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        settings: RuntimeSettings,
        teachers: Sequence[Any] = (),
    ) -> None:
        keep_freed_memory()
        self.recipe, self.corpus = recipe, corpus
        self.accelerator = Accelerator(
            cpu=settings.device == "cpu",
            mixed_precision="bf16" if settings.precision == "bfloat16" else "no",
            log_with=list(settings.trackers) or None,
            project_dir=settings.tracker_dir,
        )
        self.device = self.accelerator.device
        torch.manual_seed(recipe.seed)
        self.vocab_size = len(corpus.tokenizer)
        model = build_model(recipe.model, self.vocab_size, masked="full" in recipe.attentions)
        self.model = model.to(self.device).train()
        if recipe.model.attention_dropout:
            use_keyed_dropout(self.model)
        else:
            dropout.replace_dropout_modules(self.model)
        if settings.compile_model:
            self.model.base_model.compile()
        self.micro_batch_tokens = settings.micro_batch_tokens or MICRO_BATCH_TOKENS_BY_DEVICE.get(
            self.device.type, DEFAULT_MICRO_BATCH_TOKENS
        )
        spec = recipe.optimizer
        groups = optim.build_param_groups(
            self.model, spec.weight_decay, spec.exempt, spec.decay_mixing
        )
        self.optimizer = optim.build_optimizer(
            spec.name, groups, spec.lr, (spec.betas[0], spec.betas[1]), spec.eps
        )
        self.ema = optim.Ema(self.model, spec.ema) if spec.ema else None
        self.teachers = [
            teacher.to(self.device, torch.bfloat16).eval().requires_grad_(False)
            for teacher in teachers
        ]
        self.steps_done, self.words_seen, self.tokens_seen = 0, 0.0, 0
        self.mask_counts = (
            MaskCounts(len(corpus), self._sum_array_across_processes)
            if recipe.objective.even
            else None
        )
        self._pass_row_starts: tuple[int, Int64] = (-1, np.empty(0, np.int64))
        """Index of the current pass, and where its rows begin in the stream."""

    def train_step(self, step: Step) -> dict[str, Any]:
        """Make one optimizer step and return its log record.

        Raises TrainingError if the loss is out of bounds or the gradient is zero.
        """
        row_starts = self._row_starts(step)
        if step.objective_switch and self.recipe.optimizer.at_switch == "reset":
            self.optimizer.state.clear()
        batches = self._make_batches(step, row_starts)
        target_counts = self._sum_across_processes(
            {batch.objective: batch.num_targets for batch in batches}
        )
        weights = self._objective_weights(step, target_counts)
        nats_by_objective: list[tuple[str, Tensor]] = []
        for batch in batches:
            name = batch.objective
            if target_counts[name]:
                nats_by_objective += (
                    (name, self._backward(micro_batch, step, target_counts[name], weights[name]))
                    for micro_batch in self._micro_batches(batch)
                )
        self._sum_gradients()
        parameters = list(self.model.parameters())
        # The only values of a step that the host waits for.
        norm, *all_nats = read_scalars(
            [optim.compute_gradient_norm(parameters), *(nats for _, nats in nats_by_objective)]
        )
        nats = dict.fromkeys(target_counts, 0.0)
        for (name, _), value in zip(nats_by_objective, all_nats, strict=True):
            nats[name] += value
        losses = {
            name: total / target_counts[name]
            for name, total in self._sum_across_processes(nats).items()
            if target_counts[name]
        }
        optim.clip_gradients(parameters, norm, self.recipe.optimizer.clip)
        self._check_stability(step, losses, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        self.steps_done, self.tokens_seen = step.index + 1, step.tokens_before + step.num_tokens
        self.words_seen += self.corpus.count_words(row_starts, self._row_lengths(step))
        return {
            "step": self.steps_done,
            "words": round(self.words_seen),
            "tokens": self.tokens_seen,
            "lr": step.lr,
            "norm": norm,
            "loss": losses,
        }

    def _row_starts(self, step: Step) -> Int64:
        """Return where the rows of a step begin in the stream. Each pass shuffles the rows anew."""
        if self._pass_row_starts[0] != step.pass_index:
            if self.mask_counts:
                self.mask_counts.synchronize()
            rng = np.random.default_rng([self.recipe.seed, step.pass_index])
            offset_rule = self.recipe.corpus.offset
            offset = int(rng.integers(step.row_length)) if offset_rule == "random" else 0
            order = rng.permutation(count_rows(len(self.corpus), step.row_length, offset_rule))
            starts = offset + order * step.row_length
            if offset_rule == "row":
                starts = starts + rng.integers(step.row_length, size=len(order))
            self._pass_row_starts = step.pass_index, starts
        return self._pass_row_starts[1][step.first_row : step.first_row + step.num_rows]

    def _row_lengths(self, step: Step) -> Int64:
        """Return the number of tokens of each row of a step, without padding."""
        lengths = np.full(step.num_rows, step.row_length)
        short_share = self.recipe.batch.short
        if short_share:
            rng = np.random.default_rng([self.recipe.seed, step.index, ROW_LENGTHS_KEY])
            is_short = rng.random(step.num_rows) < short_share
            shortened = rng.integers(1, step.row_length, size=step.num_rows)
            lengths = np.where(is_short, shortened, lengths)
        return lengths

    def _make_batches(self, step: Step, row_starts: Int64) -> list[TrainingBatch]:
        """Return the batches of this process, one per objective.

        Of n processes, each trains on every n-th row of the step.
        """
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        samples = np.arange(process, step.num_rows, num_processes)
        batches = []
        # All processes make the same objectives; a batch may be empty in one of them.
        if step.num_causal_rows:
            causal = samples[samples < step.num_causal_rows]
            batches.append(make_clm_batch(*self._read_rows(step, row_starts, causal), causal))
        if step.num_causal_rows < step.num_rows:
            masked = samples[samples >= step.num_causal_rows]
            batches.append(self._make_masked_batch(step, row_starts, masked))
        return batches

    def _read_rows(self, step: Step, row_starts: Int64, samples: Int64) -> tuple[Int64, Int64]:
        """Return (ids, document_ids) of some rows of a step, cut and padded if the recipe asks."""
        ids, document_ids = self.corpus.read_rows(row_starts[samples], step.row_length)
        if self.recipe.batch.short:
            ids, document_ids = truncate_rows(ids, document_ids, self._row_lengths(step)[samples])
        return ids, document_ids

    def _make_masked_batch(self, step: Step, row_starts: Int64, samples: Int64) -> TrainingBatch:
        """Return a masked batch of some rows of a step, and update the mask counts."""
        positions = row_starts[samples][:, None] + np.arange(step.row_length)
        masking = StepMasking(
            self.recipe.objective,
            step.mask_rate,
            seed_key=(self.recipe.seed, step.index),
            vocab_size=self.vocab_size,
            mask_counts=self.mask_counts.counts[positions] if self.mask_counts else None,
        )
        batch = make_masked_batch(*self._read_rows(step, row_starts, samples), samples, masking)
        if self.mask_counts:
            self.mask_counts.counts[positions] += batch.chosen_positions
        return batch

    def _objective_weights(self, step: Step, target_counts: dict[str, float]) -> dict[str, float]:
        """Return the weight of each objective's mean loss.

        They sum to 1. An objective without targets has weight 0.
        """
        causal_weight, masked_weight = step.loss_weights
        weights = {
            name: (causal_weight if name == "clm" else masked_weight) if count else 0.0
            for name, count in target_counts.items()
        }
        total = sum(weights.values()) or 1.0
        return {name: weight / total for name, weight in weights.items()}

    def _micro_batches(self, batch: TrainingBatch) -> Iterator[TrainingBatch]:
        """Yield the batch in parts that fit into memory. Parts without a loss are skipped."""
        size = max(1, self.micro_batch_tokens // batch.input_ids.shape[1])
        parts = (batch[start : start + size] for start in range(0, len(batch), size))
        return (part for part in parts if part.num_targets or self._distils_all_positions)

    @property
    def _distils_all_positions(self) -> bool:
        """Whether the divergence from the teachers is computed at all positions."""
        return bool(self.recipe.distil and self.recipe.distil.divergence == "per-sequence")

    def _backward(
        self, batch: TrainingBatch, step: Step, num_targets: float, loss_weight: float
    ) -> Tensor:
        """Add the gradients of a micro-batch; return its summed cross-entropy in nats, a scalar.

        Its loss is `loss_weight` x (summed loss) / `num_targets`. num_targets: of the whole step.
        """
        samples = batch.row_indices.tolist()
        keyed = dropout.keyed_samples(self.recipe.seed, step.index, samples)
        with self.accelerator.autocast(), keyed:
            loss, nats = self._compute_loss(batch, num_targets, step.num_rows)
            (loss * (loss_weight / num_targets)).backward()
        return nats

    def _compute_loss(
        self, batch: TrainingBatch, num_targets: float, num_rows: int
    ) -> tuple[Tensor, Tensor]:
        """Return the summed loss of a micro-batch, and its summed cross-entropy in nats.

        num_targets, num_rows: of the whole step.
        """
        hidden, targets = hidden_states_at_targets(self.model, batch, self._distils_all_positions)
        distillation = None
        if self.teachers:
            distillation = self._distillation_targets(batch, num_targets, num_rows)
        return sliced_cross_entropy(
            hidden,
            *lm_head_parameters(self.model),
            targets,
            z_loss=self.recipe.objective.z_loss,
            distillation=distillation,
        )

    def _distillation_targets(
        self, batch: TrainingBatch, num_targets: float, num_rows: int
    ) -> DistillationTargets:
        """Run the teachers on a micro-batch and return their logits (lazily).

        num_targets, num_rows: of the whole step. The caller divides the loss by the number of
        targets; `weight` makes a per-sequence divergence a mean over rows.
        """
        assert self.recipe.distil is not None
        with torch.no_grad():
            teacher_logits = [
                LazyLogits(
                    hidden_states_at_targets(teacher, batch, self._distils_all_positions)[0],
                    *lm_head_parameters(teacher),
                )
                for teacher in self.teachers
            ]
        weight = num_targets / num_rows if self._distils_all_positions else 1.0
        return DistillationTargets(
            teacher_logits, self.recipe.distil.temperature, self.recipe.distil.alpha, weight
        )

    def compute_held_out_loss(self) -> float:
        """Return the mean training loss on the held-out text, without dropout."""
        assert self.corpus.held_out
        text, length = self.corpus.held_out, self.recipe.batch.length
        row_starts = np.arange(count_rows(len(text), length, "fixed")) * length
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        samples = np.arange(process, len(row_starts), num_processes)
        batch = make_clm_batch(*text.read_rows(row_starts[samples], length), samples)
        num_targets = self._sum_across_processes({"targets": batch.num_targets})["targets"]
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            losses = [
                self._compute_loss(micro_batch, num_targets, len(row_starts))[0]
                for micro_batch in self._micro_batches(batch)
            ]
        total = sum(read_scalars(losses)) if losses else 0.0
        self.model.train()
        return self._sum_across_processes({"loss": total})["loss"] / num_targets

    def _sum_across_processes(self, values: dict[str, float] | dict[str, int]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return {name: float(value) for name, value in values.items()}
        local = torch.tensor([*values.values()], dtype=torch.float64, device=self.device)
        total = self.accelerator.reduce(local, "sum").tolist()
        return dict(zip(values, total, strict=True))

    def _sum_array_across_processes(self, values: NDArray[Any]) -> NDArray[Any]:
        if self.accelerator.num_processes == 1:
            return values
        local = torch.from_numpy(values.astype(np.int32)).to(self.device)
        total = self.accelerator.reduce(local, "sum").cpu().numpy()
        return np.asarray(total.astype(values.dtype))

    def _sum_gradients(self) -> None:
        """Sum gradients over all processes. A parameter without a gradient counts as zeros."""
        if self.accelerator.num_processes == 1:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        total: Tensor = self.accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
        sizes = [g.numel() for g in grads]
        for parameter, grad in zip(parameters, total.split(sizes), strict=True):
            parameter.grad = grad.view_as(parameter)

    def _check_stability(self, step: Step, losses: dict[str, float], norm: float) -> None:
        """Raise TrainingError if the loss is out of bounds or the gradient is zero."""
        max_loss = MAX_LOSS_RATIO * math.log(self.vocab_size)
        if losses and norm == 0:
            problem = "the gradient is zero: the weights have overflowed"
        elif math.isfinite(norm) and all(loss <= max_loss for loss in losses.values()):
            return  # not for NaN, which is not <= max_loss
        else:
            problem = f"the loss is out of bounds (at most {max_loss:.4g} nats)"
        numbers = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        last_row = step.first_row + step.num_rows - 1
        raise TrainingError(
            f"{problem}: {numbers}; gradient norm {norm:.4g}. The weights were not updated",
            location=f"step {step.index + 1}, rows {step.first_row} to {last_row} "
            f"of pass {step.pass_index + 1}",
            hint="train anew in another --out with a lower learning rate "
            f"(--set optimizer.lr={self.recipe.optimizer.lr / 3:.2g}), a longer warm-up "
            "or --precision float32; the last state and all checkpoints are kept",
        )

    def training_metadata(self) -> dict[str, Any]:
        """Return the training metadata that is written into the checkpoint's config.json."""
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "scale": recipe.scale,
            "attends": list(recipe.attentions),
            "methods": list(recipe.methods),
            "words_seen": round(self.words_seen),
            "tokens_seen": self.tokens_seen,
            "steps": self.steps_done,
            "seed": recipe.seed,
        }

    def save_checkpoint(self, folder: Path) -> None:
        """Save the model, with averaged weights if the recipe averages them."""
        with self.ema.averaged_weights(self.model) if self.ema else nullcontext():
            checkpoint_io.save_checkpoint(
                folder, self.model, self.corpus.tokenizer, self.training_metadata()
            )

    def save_state(self, folder: Path) -> None:
        """Save everything that a resumed run needs. Call `mask_counts.synchronize` before."""
        moments, non_tensors = checkpoint_io.flatten_optimizer_state(self.optimizer)
        tensors = checkpoint_io.add_prefix("model.", self.model.named_parameters())
        tensors |= checkpoint_io.add_prefix("optimizer.", moments.items())
        if self.ema:
            tensors |= checkpoint_io.add_prefix("ema.", self.ema.state_dict().items())
        if self.mask_counts:
            tensors["hidden"] = torch.from_numpy(self.mask_counts.counts)
        metadata = self._progress_metadata() | {"optimizer": non_tensors}
        checkpoint_io.save_state(folder, self.steps_done, tensors, metadata)

    def load_state(self, folder: Path) -> bool:
        """Load the newest state; return False if there is none."""
        state = checkpoint_io.load_state(folder)
        if state is None:
            return False
        try:
            self._restore_state(*state)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"the state does not fit the recipe: {type(error).__name__}: {error}"[:300],
                location=str(folder),
                hint="delete the folder to train from the beginning",
            ) from error
        return True

    def _restore_state(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        self._restore(tensors, metadata)
        moments = checkpoint_io.select_prefix("optimizer.", tensors)
        checkpoint_io.restore_optimizer_state(self.optimizer, moments, metadata["optimizer"])
        if self.ema:
            self.ema.load_state_dict(checkpoint_io.select_prefix("ema.", tensors))
        if self.mask_counts:
            self.mask_counts.load(tensors["hidden"].numpy())

    def save_if_best(self, folder: Path, loss: float) -> None:
        """Save the weights in `folder`, unless weights with a loss up to `loss` are saved there."""
        state = checkpoint_io.load_state(folder)
        if state is None or loss < state[1]["held_out"]:
            tensors = checkpoint_io.add_prefix("model.", self.model.named_parameters())
            metadata = self._progress_metadata() | {"held_out": loss}
            checkpoint_io.save_state(folder, self.steps_done, tensors, metadata)

    def load_best(self, folder: Path) -> None:
        """Load the weights of `save_if_best`, without the optimizer state that training needs."""
        state = checkpoint_io.load_state(folder)
        assert state is not None
        self._restore(*state)

    def _progress_metadata(self) -> dict[str, Any]:
        return {"done": self.steps_done, "words": self.words_seen, "tokens": self.tokens_seen}

    def _restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        for name in ("done", "words", "tokens"):
            value = metadata[name]
            is_count = isinstance(value, int) if name == "done" else isinstance(value, int | float)
            if not is_count or isinstance(value, bool) or not value >= 0:
                raise ValueError(f"{name} should be a number from 0, not {value!r}")
        weights = checkpoint_io.select_prefix("model.", tensors)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        self.steps_done, self.words_seen = metadata["done"], metadata["words"]
        self.tokens_seen = metadata["tokens"]


def pretrain(
    trainer: Trainer, out: Path, callback: PretrainCallback, settings: RuntimeSettings
) -> Path | None:
    """Train to the end and return the final checkpoint, or None if training was stopped before.

    Writes to `out`: state/ (to resume), checkpoints by words seen (chck_1M, ...), the final
    checkpoint main, and best/ (weights of the best pass) if the recipe selects a pass by held-out
    loss. Raises DataError, TrainingError and RunError.
    """
    steps = plan_steps(trainer.recipe, len(trainer.corpus))
    held_out, length = trainer.corpus.held_out, trainer.recipe.batch.length
    if held_out and not count_rows(len(held_out), length, "fixed"):
        raise DataError(
            f"the held-out text has {format_count(len(held_out), 'token')}, less than one row of "
            f"{length}",
            hint="give a larger --corpus, or a larger share: --set corpus.held_out=0.1",
        )
    is_main = trainer.accelerator.is_main_process
    trainer.load_state(out / "state")
    _check_steps_done(trainer.steps_done, len(steps), out / "state")
    if is_main:
        total_tokens = steps[-1].tokens_before + steps[-1].num_tokens
        callback.on_train_begin(total_tokens, trainer.steps_done, trainer.tokens_seen)
    last_save = time.monotonic()
    for step in steps[trainer.steps_done :]:
        words_before, start_time = trainer.words_seen, time.monotonic()
        record = trainer.train_step(step)
        is_last = step is steps[-1]
        pass_ends = is_last or steps[step.index + 1].pass_index != step.pass_index
        if pass_ends and held_out:
            record["held_out"] = trainer.compute_held_out_loss()
            if is_main:
                trainer.save_if_best(out / "best", record["held_out"])
        if is_main:
            seconds = time.monotonic() - start_time
            callback.on_step_end(record | {"seconds": seconds, "switch": step.objective_switch})
        milestones = list_milestones(trainer.recipe, words_before, trainer.words_seen, is_last)
        if is_main:
            for words in milestones:
                trainer.save_checkpoint(out / milestone_name(words))
                callback.on_save(out / milestone_name(words), trainer.steps_done)
        stop = _any_process(trainer, callback.stop_requested())
        stop = stop or trainer.steps_done == settings.stop_after
        is_save_due = time.monotonic() - last_save > 60 * settings.save_every_minutes
        if _any_process(trainer, is_main and (stop or bool(milestones) or is_save_due)):
            _save_state(trainer, out)
            last_save = time.monotonic()
        if stop and trainer.steps_done < len(steps):
            return None
    _save_state(trainer, out)
    if is_main:
        if held_out:
            trainer.load_best(out / "best")
        trainer.save_checkpoint(out / "main")
        callback.on_save(out / "main", trainer.steps_done)
    trainer.accelerator.wait_for_everyone()
    return out / "main"


def _check_steps_done(steps_done: int, num_steps: int, folder: Path) -> None:
    """Raise RunError for a state from a step that this training does not have."""
    if steps_done > num_steps:
        raise RunError(
            f"the state is from step {steps_done} of {num_steps}",
            location=str(folder),
            hint="delete the folder to train from the beginning",
        )


def _save_state(trainer: Trainer, out: Path) -> None:
    """Save the state. All processes must call this; the main process writes."""
    if trainer.mask_counts:
        trainer.mask_counts.synchronize()
    if trainer.accelerator.is_main_process:
        trainer.save_state(out / "state")


def _any_process(trainer: Trainer, flag: bool) -> bool:
    """Return whether `flag` is true in any process."""
    return bool(trainer._sum_across_processes({"flag": float(flag)})["flag"])
