"""One loop for every system: causal, masked, alternating (AntLM), mixed (GPT-BERT) and distilled.

The loop holds weights and optimizer state, and nothing else: what a step does follows from its
number (schedule), and all randomness is keyed by (seed, step, sample). So a killed run continues
bit for bit, and how a step is spread over processes and micro-batches changes its sums by rounding
only: each loss is divided by the number of its targets in the whole step, gradients are added up,
and nothing is averaged that was not averaged before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from antlm_bench.cpu_tuning import keep_freed_memory
from antlm_bench.errors import DataError, TrainingError
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
from antlm_bench.training.schedule import Step, count_rows, plan_steps

MICRO_BATCH_TOKENS_BY_DEVICE = {"cpu": 4096}  # per forward; a GPU wants more at a time
DEFAULT_MICRO_BATCH_TOKENS = 65_536
MAX_LOSS_RATIO = 3.0  # times the loss of guessing, ln(vocabulary)
MILLION = 1_000_000
# BabyLM's milestones in words seen: every million up to ten, every ten up to a hundred, every
# hundred up to a billion.
MILESTONES = (
    *(n * scale for scale in (MILLION, 10 * MILLION, 100 * MILLION) for n in range(1, 10)),
    1000 * MILLION,
)
# ours: a run that ends so near before a milestone has reached it; ten passes of "10M words" are
# 99.9M
MILESTONE_TOLERANCE = 0.02


ROW_LENGTHS_KEY = 2**32 - 1  # in the key of a step's row lengths: no sample has this number


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """Where and how a recipe is run: nothing here changes what is learned by more than rounding.

    micro_tokens: tokens per forward, None = by device. save_every: minutes between two states.
    stop_after: end after so many steps, as if killed there. trackers: names that Accelerate knows;
    tracked_in: a folder for their files.
    """

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_batch_tokens: int | None = None
    compile_model: bool = False
    save_every_minutes: float = 10.0
    stop_after: int | None = None
    trackers: tuple[str, ...] = ()
    tracker_dir: str | None = None


class PretrainCallback(Protocol):
    """Who is told how training goes; only ever in the main process."""

    def on_train_begin(self, total_tokens: int, steps_done: int, tokens_seen: int) -> None: ...
    def on_step_end(self, record: dict[str, Any]) -> None: ...
    def on_save(self, checkpoint: Path, step: int) -> None: ...
    def stop_requested(self) -> bool: ...


class MaskCounts:
    """How often each token of a stream was hidden. Within a pass no token stands in two rows.

    counts: (n,) of this process; `share` adds what the other processes have counted since the last
    call.
    """

    def __init__(
        self, num_tokens: int, sum_across_processes: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> None:
        self.counts, self._synchronized = (
            np.zeros(num_tokens, np.int16),
            np.zeros(num_tokens, np.int16),
        )
        self._sum_across_processes = sum_across_processes

    def synchronize(self) -> None:
        """Must be called by all processes at once."""
        self.load(self._synchronized + self._sum_across_processes(self.counts - self._synchronized))

    def load(self, counts: NDArray[Any]) -> None:
        self.counts, self._synchronized = counts.astype(np.int16), counts.astype(np.int16)


class Trainer:
    """A model being trained: weights, optimizer, averaged weights, and what has been seen so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        settings: RuntimeSettings,
        teachers: Sequence[Any] = (),
    ) -> None:
        keep_freed_memory()
        self.recipe, self.corpus = recipe, corpus
        bf16 = settings.precision == "bfloat16"
        self.accelerator = Accelerator(
            cpu=settings.device == "cpu",
            mixed_precision="bf16" if bf16 else "no",
            log_with=list(settings.trackers) or None,
            project_dir=settings.tracker_dir,
        )
        self.device = self.accelerator.device
        torch.manual_seed(recipe.seed)
        self.vocab_size = len(corpus.tokenizer)
        self.model = (
            build_model(recipe.model, self.vocab_size, masked="full" in recipe.attentions)
            .to(self.device)
            .train()
        )
        use_keyed_dropout(
            self.model
        ) if recipe.model.attention_dropout else dropout.replace_dropout_modules(self.model)
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
        self._epoch_row_starts: tuple[int, Int64] = (-1, np.empty(0, np.int64))

    def train_step(self, step: Step) -> dict[str, Any]:
        """One optimizer step; what the log keeps of it. Raises TrainingError for a loss out of
        bounds or stuck.
        """
        first = self._row_starts(step)
        if step.objective_switch and self.recipe.optimizer.at_switch == "reset":
            self.optimizer.state.clear()
        batches = self._make_batches(step, first)
        counts = self._sum_across_processes(
            {batch.objective: batch.num_targets for batch in batches}
        )
        shares = self._objective_weights(step, counts)
        nats = dict.fromkeys(counts, 0.0)
        for batch in batches:
            name = batch.objective
            for part in self._micro_batches(batch) if counts[name] else ():
                nats[name] += self._backward(part, step, counts[name], shares[name])
        losses = {
            name: total / counts[name]
            for name, total in self._sum_across_processes(nats).items()
            if counts[name]
        }
        self._sum_gradients()
        norm = optim.clip_gradients(self.model.parameters(), self.recipe.optimizer.clip)
        self._check_stability(step, losses, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        self.steps_done, self.tokens_seen = step.index + 1, step.tokens_before + step.num_tokens
        self.words_seen += self.corpus.count_words(first, self._row_lengths(step))
        return {"step": self.steps_done, "words": round(self.words_seen), "tokens": self.tokens_seen, "lr": step.lr, "norm": norm,
                "loss": losses}  # fmt: skip

    def _row_starts(self, step: Step) -> Int64:
        """Where the rows of a step begin in the stream: a pass's rows in an order of its own."""
        if self._epoch_row_starts[0] != step.epoch_index:
            if self.mask_counts:
                self.mask_counts.synchronize()
            dice, rule = (
                np.random.default_rng([self.recipe.seed, step.epoch_index]),
                self.recipe.corpus.offset,
            )
            offset = int(dice.integers(step.row_length)) if rule == "random" else 0
            order = dice.permutation(count_rows(len(self.corpus), step.row_length, rule))
            begins = offset + order * step.row_length
            self._epoch_row_starts = (
                step.epoch_index,
                begins + (dice.integers(step.row_length, size=len(order)) if rule == "row" else 0),
            )
        return self._epoch_row_starts[1][step.first_row : step.first_row + step.num_rows]

    def _row_lengths(self, step: Step) -> Int64:
        """How many tokens of each row of a step are text; the others are padding."""
        lengths = np.full(step.num_rows, step.row_length)
        if short := self.recipe.batch.short:
            dice = np.random.default_rng([self.recipe.seed, step.index, ROW_LENGTHS_KEY])
            cut = dice.random(step.num_rows) < short
            lengths = np.where(cut, dice.integers(1, step.row_length, size=step.num_rows), lengths)
        return lengths

    def _make_batches(self, step: Step, row_starts: Int64) -> list[TrainingBatch]:
        """This process's part of a step: one batch per objective, of every so many-th row."""
        mine = np.arange(
            self.accelerator.process_index, step.num_rows, self.accelerator.num_processes
        )
        made = []
        for causal, samples in (
            (True, mine[mine < step.num_causal_rows]),
            (False, mine[mine >= step.num_causal_rows]),
        ):
            if step.num_causal_rows == (0 if causal else step.num_rows):
                continue
            ids, segments = self.corpus.read_rows(row_starts[samples], step.row_length)
            if self.recipe.batch.short:
                ids, segments = truncate_rows(ids, segments, self._row_lengths(step)[samples])
            if causal:
                made.append(make_clm_batch(ids, segments, samples))
                continue
            places = row_starts[samples][:, None] + np.arange(step.row_length)
            before = self.mask_counts.counts[places] if self.mask_counts else None
            seed = (self.recipe.seed, step.index)
            law = StepMasking(self.recipe.objective, step.mask_rate, seed, self.vocab_size, before)
            made.append(make_masked_batch(ids, segments, samples, law))
            if self.mask_counts:
                self.mask_counts.counts[places] += made[-1].masked_positions
        return made

    def _objective_weights(self, step: Step, target_counts: dict[str, float]) -> dict[str, float]:
        """Weight of each objective's mean loss; an objective without a single target leaves its
        weight to the other.
        """
        shares = {
            name: step.loss_weights[name != "clm"] if count else 0.0
            for name, count in target_counts.items()
        }
        return {name: share / (sum(shares.values()) or 1.0) for name, share in shares.items()}

    def _micro_batches(self, batch: TrainingBatch) -> Iterator[TrainingBatch]:
        """Parts of a batch that fit into memory, without those that nothing is asked of."""
        size = max(1, self.micro_batch_tokens // batch.input_ids.shape[1])
        parts = (batch[start : start + size] for start in range(0, len(batch), size))
        return (part for part in parts if part.num_targets or self._distils_all_positions)

    @property
    def _distils_all_positions(self) -> bool:
        """Whether teachers are followed at every position, and not only where a target stands."""
        return bool(self.recipe.distil and self.recipe.distil.divergence == "per-sequence")

    def _backward(
        self, batch: TrainingBatch, step: Step, num_targets: float, loss_weight: float
    ) -> float:
        """Add the gradients of `share` x the mean loss over the step's `targets`; returns its
        summed nats.
        """
        with ExitStack() as stack:
            stack.enter_context(self.accelerator.autocast())
            stack.enter_context(
                dropout.keyed_samples(self.recipe.seed, step.index, batch.sample_indices.tolist())
            )
            loss, nats = self._compute_loss(batch, num_targets, step.num_rows)
            (loss * (loss_weight / num_targets)).backward()
        return float(nats)

    def _compute_loss(
        self, batch: TrainingBatch, num_targets: float, num_rows: int
    ) -> tuple[Tensor, Tensor]:
        """Summed loss of a part of a step of so many targets and rows, and its summed cross-entropy
        in nats.
        """
        hidden, asked = hidden_states_at_targets(self.model, batch, self._distils_all_positions)
        teaching = (
            self._distillation_targets(batch, num_targets, num_rows) if self.teachers else None
        )
        z_loss = self.recipe.objective.z_loss
        return sliced_cross_entropy(
            hidden, *lm_head_parameters(self.model), asked, z_loss=z_loss, distillation=teaching
        )

    def _distillation_targets(
        self, batch: TrainingBatch, num_targets: float, num_rows: int
    ) -> DistillationTargets:
        """The divergence is divided by the number of rows (per-sequence), all else by the number of
        targets.
        """
        assert self.recipe.distil is not None
        with torch.no_grad():
            heads = [
                LazyLogits(
                    hidden_states_at_targets(teacher, batch, self._distils_all_positions)[0],
                    *lm_head_parameters(teacher),
                )
                for teacher in self.teachers
            ]
        weight = num_targets / num_rows if self._distils_all_positions else 1.0
        return DistillationTargets(
            heads, self.recipe.distil.temperature, self.recipe.distil.alpha, weight
        )

    def compute_held_out_loss(self) -> float:
        """Mean loss on the held-out text by the law that is trained, without dropout."""
        assert self.corpus.held_out
        text, length = self.corpus.held_out, self.recipe.batch.length
        first = np.arange(count_rows(len(text), length, "fixed")) * length
        mine = np.arange(self.accelerator.process_index, len(first), self.accelerator.num_processes)
        batch = make_clm_batch(*text.read_rows(first[mine], length), mine)
        targets = self._sum_across_processes({"targets": batch.num_targets})["targets"]
        total = 0.0
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for part in self._micro_batches(batch):
                total += float(self._compute_loss(part, targets, len(first))[0])
        self.model.train()
        return self._sum_across_processes({"loss": total})["loss"] / targets

    def _sum_across_processes(self, values: dict[str, float] | dict[str, int]) -> dict[str, float]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return {name: float(value) for name, value in values.items()}
        local = torch.tensor([*values.values()], dtype=torch.float64, device=self.device)
        total = self.accelerator.reduce(local, "sum").tolist()
        return dict(zip(values, total, strict=True))

    def _sum_array_across_processes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        local = torch.from_numpy(values.astype(np.int32)).to(self.device)
        total: NDArray[Any] = (
            self.accelerator.reduce(local, "sum").cpu().numpy().astype(values.dtype)
        )
        return total

    def _sum_gradients(self) -> None:
        """Over all processes, as one flat tensor; a parameter that some process had no use for
        counts as zeros.
        """
        if self.accelerator.num_processes == 1:
            return
        learned = [p for p in self.model.parameters() if p.requires_grad]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learned]
        total: Tensor = self.accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
        for parameter, grad in zip(learned, total.split([g.numel() for g in grads]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def _check_stability(self, step: Step, losses: dict[str, float], norm: float) -> None:
        bound = MAX_LOSS_RATIO * math.log(self.vocab_size)
        worst = max(losses.values(), default=0.0)
        if math.isfinite(norm) and worst <= bound and (norm or not losses):  # NaN is neither
            return
        what = (
            "the loss left all bounds"
            if norm
            else "the gradient is zero: the weights have overflown"
        )
        said = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        raise TrainingError(
            f"{what} ({said}; gradient norm {norm:.4g}); nothing of this step was learned",
            location=f"step {step.index + 1}, rows {step.first_row} to {step.first_row + step.num_rows - 1} of pass {step.epoch_index + 1}",
            hint="begin anew in another --out with a lower learning rate "
            f"(--set optimizer.lr={self.recipe.optimizer.lr / 3:.2g}), a longer warm-up or --precision float32; "
            "the last state and all checkpoints are kept",
        )

    def model_card(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
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
        with ExitStack() as stack:
            if self.ema:
                stack.enter_context(self.ema.averaged_weights(self.model))
            checkpoint_io.save_checkpoint(
                folder, self.model, self.corpus.tokenizer, self.model_card()
            )

    def save_state(self, folder: Path) -> None:
        """With what all processes have hidden: `hidden.share` must have been called since the last
        step.
        """
        moments, rest = checkpoint_io.flatten_optimizer_state(self.optimizer)
        tensors = checkpoint_io.add_prefix("model.", self.model.named_parameters())
        tensors |= checkpoint_io.add_prefix("optimizer.", moments.items())
        tensors |= (
            checkpoint_io.add_prefix("ema.", self.ema.state_dict().items()) if self.ema else {}
        )
        tensors |= {"hidden": torch.from_numpy(self.mask_counts.counts)} if self.mask_counts else {}
        checkpoint_io.save_state(
            folder, self.steps_done, tensors, self._progress_metadata() | {"optimizer": rest}
        )

    def load_state(self, folder: Path) -> bool:
        """Continue from the newest state, if there is one."""
        found = checkpoint_io.load_state(folder)
        if found is None:
            return False
        tensors, facts = found
        self._restore(tensors, facts)
        checkpoint_io.restore_optimizer_state(
            self.optimizer, checkpoint_io.select_prefix("optimizer.", tensors), facts["optimizer"]
        )
        if self.ema:
            self.ema.load_state_dict(checkpoint_io.select_prefix("ema.", tensors))
        if self.mask_counts:
            self.mask_counts.load(tensors["hidden"].numpy())
        return True

    def save_if_best(self, folder: Path, loss: float) -> None:
        """Save the weights in `folder` unless it holds weights with a held-out loss as low."""
        found = checkpoint_io.load_state(folder)
        if found is None or loss < found[1]["held_out"]:
            tensors = checkpoint_io.add_prefix("model.", self.model.named_parameters())
            checkpoint_io.save_state(
                folder, self.steps_done, tensors, self._progress_metadata() | {"held_out": loss}
            )

    def load_best(self, folder: Path) -> None:
        """Put the weights that `save_if_best` kept into the model, which then cannot be trained on.
        """
        found = checkpoint_io.load_state(folder)
        assert found is not None
        self._restore(*found)

    def _progress_metadata(self) -> dict[str, Any]:
        return {"done": self.steps_done, "words": self.words_seen, "tokens": self.tokens_seen}

    def _restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        weights = checkpoint_io.select_prefix("model.", tensors)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        self.steps_done, self.words_seen, self.tokens_seen = (
            metadata["done"],
            metadata["words"],
            metadata["tokens"],
        )


def pretrain(
    trainer: Trainer, out: Path, callback: PretrainCallback, settings: RuntimeSettings
) -> Path | None:
    """Train to the end, or until asked to stop; the final checkpoint, None if there is none yet.

    Leaves in `out`: state/, chck_1M ... by words seen, main, and best/ where a recipe selects a
    pass by held-out loss. Raises DataError, TrainingError and RunError.
    """
    steps = plan_steps(trainer.recipe, len(trainer.corpus))
    held_out, length = trainer.corpus.held_out, trainer.recipe.batch.length
    if held_out and not count_rows(len(held_out), length, "fixed"):
        raise DataError(
            f"the held-out text has {len(held_out):,} tokens, less than one row of {length}",
            hint="give a larger --corpus, or a larger share: --set corpus.held_out=0.1",
        )
    main = trainer.accelerator.is_main_process
    trainer.load_state(out / "state")
    if main:
        callback.on_train_begin(
            steps[-1].tokens_before + steps[-1].num_tokens, trainer.steps_done, trainer.tokens_seen
        )
    saved = time.monotonic()
    for step in steps[trainer.steps_done :]:
        before, started = trainer.words_seen, time.monotonic()
        record = trainer.train_step(step)
        pass_ends = step is steps[-1] or steps[step.index + 1].epoch_index != step.epoch_index
        if pass_ends and held_out:
            record["held_out"] = trainer.compute_held_out_loss()
            if main:
                trainer.save_if_best(out / "best", record["held_out"])
        if main:
            callback.on_step_end(
                record | {"seconds": time.monotonic() - started, "switch": step.objective_switch}
            )
        seen = (
            trainer.words_seen / (1 - MILESTONE_TOLERANCE)
            if step is steps[-1]
            else trainer.words_seen
        )
        reached = [words for words in MILESTONES if before < words <= seen]
        if main and reached:
            for folder in (out / f"chck_{words // MILLION}M" for words in reached):
                trainer.save_checkpoint(folder)
                callback.on_save(folder, trainer.steps_done)
        stop = (
            _any_process(trainer, callback.stop_requested())
            or trainer.steps_done == settings.stop_after
        )
        late = time.monotonic() - saved > 60 * settings.save_every_minutes
        if _any_process(trainer, main and (stop or bool(reached) or late)):
            _save_state(trainer, out)
            saved = time.monotonic()
        if stop and trainer.steps_done < len(steps):
            return None
    _save_state(trainer, out)
    if main:
        if held_out:
            trainer.load_best(out / "best")
        trainer.save_checkpoint(out / "main")
        callback.on_save(out / "main", trainer.steps_done)
    trainer.accelerator.wait_for_everyone()
    return out / "main"


def _save_state(trainer: Trainer, out: Path) -> None:
    """Called by all processes; the main one writes."""
    if trainer.mask_counts:
        trainer.mask_counts.synchronize()
    if trainer.accelerator.is_main_process:
        trainer.save_state(out / "state")


def _any_process(trainer: Trainer, flag: bool) -> bool:
    return bool(trainer._sum_across_processes({"stop": float(flag)})["stop"])
