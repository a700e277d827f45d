"""One loop for every system: causal, masked, alternating (AntLM), mixed (GPT-BERT) and distilled.

The loop holds weights and optimizer state, and nothing else: what a step does follows from its number (schedule), and
all randomness is keyed by (seed, step, sample). So a killed run continues bit for bit, and how a step is spread over
processes and micro-batches changes its sums by rounding only: each loss is divided by the number of its targets in
the whole step, gradients are added up, and nothing is averaged that was not averaged before.
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

from antlm_bench.cpu_tuning import keep_pages
from antlm_bench.errors import DataError, TrainingError
from antlm_bench.training import checkpoint_io, dropout, optim
from antlm_bench.training.corpus import Corpus, Int64
from antlm_bench.training.losses import DistillationTargets, Head, sliced_cross_entropy
from antlm_bench.training.model_factory import build, key_dropout, output_head, targets_of
from antlm_bench.training.objectives import Batch, Masking, clm, masked, shortened
from antlm_bench.training.recipe import Recipe
from antlm_bench.training.schedule import Step, rows_in, timeline

MICRO_TOKENS = {"cpu": 4096}  # per forward; a GPU wants more at a time
MICRO_TOKENS_ELSEWHERE = 65_536
EXPLODED = 3.0  # times the loss of guessing, ln(vocabulary)
MILLION = 1_000_000
# BabyLM's milestones in words seen: every million up to ten, every ten up to a hundred, every hundred up to a billion.
MILESTONES = (*(n * scale for scale in (MILLION, 10 * MILLION, 100 * MILLION) for n in range(1, 10)), 1000 * MILLION)
SHORT = 0.02  # ours: a run that ends so near before a milestone has reached it; ten passes of "10M words" are 99.9M


SHORT_ROWS = 2**32 - 1  # in the key of a step's row lengths: no sample has this number


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where and how a recipe is run: nothing here changes what is learned by more than rounding.

    micro_tokens: tokens per forward, None = by device. save_every: minutes between two states. stop_after: end after
    so many steps, as if killed there. trackers: names that Accelerate knows; tracked_in: a folder for their files.
    """

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    micro_tokens: int | None = None
    compiled: bool = False
    save_every: float = 10.0
    stop_after: int | None = None
    trackers: tuple[str, ...] = ()
    tracked_in: str | None = None


class Watcher(Protocol):
    """Who is told how training goes; only ever in the main process."""

    def begins(self, tokens: int, done: int, seen: int) -> None: ...
    def stepped(self, record: dict[str, Any]) -> None: ...
    def saved(self, checkpoint: Path, step: int) -> None: ...
    def asked_to_stop(self) -> bool: ...


class HiddenCounts:
    """How often each token of a stream was hidden. Within a pass no token stands in two rows.

    counts: (n,) of this process; `share` adds what the other processes have counted since the last call.
    """

    def __init__(self, tokens: int, add_up: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        self.counts, self._shared = np.zeros(tokens, np.int16), np.zeros(tokens, np.int16)
        self._add_up = add_up

    def share(self) -> None:
        """Must be called by all processes at once."""
        self.set(self._shared + self._add_up(self.counts - self._shared))

    def set(self, counts: NDArray[Any]) -> None:
        self.counts, self._shared = counts.astype(np.int16), counts.astype(np.int16)


class Training:
    """A model being trained: weights, optimizer, averaged weights, and what has been seen so far."""

    def __init__(self, recipe: Recipe, corpus: Corpus, conditions: Conditions, teachers: Sequence[Any] = ()) -> None:
        keep_pages()
        self.recipe, self.corpus = recipe, corpus
        bf16 = conditions.precision == "bfloat16"
        self.accelerator = Accelerator(
            cpu=conditions.device == "cpu",
            mixed_precision="bf16" if bf16 else "no",
            log_with=list(conditions.trackers) or None,
            project_dir=conditions.tracked_in,
        )
        self.device = self.accelerator.device
        torch.manual_seed(recipe.seed)
        self.vocabulary = len(corpus.tokenizer)
        self.model = build(recipe.model, self.vocabulary, masked="full" in recipe.attends).to(self.device).train()
        key_dropout(self.model) if recipe.model.attention_dropout else dropout.key(self.model)
        if conditions.compiled:
            self.model.base_model.compile()
        self.micro_tokens = conditions.micro_tokens or MICRO_TOKENS.get(self.device.type, MICRO_TOKENS_ELSEWHERE)
        spec = recipe.optimizer
        groups = optim.groups(self.model, spec.weight_decay, spec.exempt, spec.decay_mixing)
        self.optimizer = optim.optimizer(spec.name, groups, spec.lr, (spec.betas[0], spec.betas[1]), spec.eps)
        self.ema = optim.Ema(self.model, spec.ema) if spec.ema else None
        self.teachers = [teacher.to(self.device, torch.bfloat16).eval().requires_grad_(False) for teacher in teachers]
        self.done, self.words, self.tokens = 0, 0.0, 0
        self.hidden = HiddenCounts(len(corpus), self._summed_array) if recipe.objective.even else None
        self._sweep: tuple[int, Int64] = (-1, np.empty(0, np.int64))

    def step(self, step: Step) -> dict[str, Any]:
        """One optimizer step; what the log keeps of it. Raises TrainingError for a loss out of bounds or stuck."""
        first = self._rows(step)
        if step.switch and self.recipe.optimizer.at_switch == "reset":
            self.optimizer.state.clear()
        batches = self._batches(step, first)
        counts = self._summed({batch.objective: batch.count for batch in batches})
        shares = self._shares(step, counts)
        nats = dict.fromkeys(counts, 0.0)
        for batch in batches:
            name = batch.objective
            for part in self._micro(batch) if counts[name] else ():
                nats[name] += self._backward(part, step, counts[name], shares[name])
        losses = {name: total / counts[name] for name, total in self._summed(nats).items() if counts[name]}
        self._add_up_gradients()
        norm = optim.clip(self.model.parameters(), self.recipe.optimizer.clip)
        self._check(step, losses, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        self.done, self.tokens = step.number + 1, step.start + step.tokens
        self.words += self.corpus.words_in(first, self._lengths(step))
        return {"step": self.done, "words": round(self.words), "tokens": self.tokens, "lr": step.lr, "norm": norm,
                "loss": losses}  # fmt: skip

    def _rows(self, step: Step) -> Int64:
        """Where the rows of a step begin in the stream: a pass's rows in an order of its own."""
        if self._sweep[0] != step.sweep:
            if self.hidden:
                self.hidden.share()
            dice, rule = np.random.default_rng([self.recipe.seed, step.sweep]), self.recipe.corpus.offset
            offset = int(dice.integers(step.length)) if rule == "random" else 0
            order = dice.permutation(rows_in(len(self.corpus), step.length, rule))
            begins = offset + order * step.length
            self._sweep = step.sweep, begins + (dice.integers(step.length, size=len(order)) if rule == "row" else 0)
        return self._sweep[1][step.first : step.first + step.rows]

    def _lengths(self, step: Step) -> Int64:
        """How many tokens of each row of a step are text; the others are padding."""
        lengths = np.full(step.rows, step.length)
        if short := self.recipe.batch.short:
            dice = np.random.default_rng([self.recipe.seed, step.number, SHORT_ROWS])
            cut = dice.random(step.rows) < short
            lengths = np.where(cut, dice.integers(1, step.length, size=step.rows), lengths)
        return lengths

    def _batches(self, step: Step, first: Int64) -> list[Batch]:
        """This process's part of a step: one batch per objective, of every so many-th row."""
        mine = np.arange(self.accelerator.process_index, step.rows, self.accelerator.num_processes)
        made = []
        for causal, samples in ((True, mine[mine < step.causal]), (False, mine[mine >= step.causal])):
            if step.causal == (0 if causal else step.rows):
                continue
            ids, segments = self.corpus.rows(first[samples], step.length)
            if self.recipe.batch.short:
                ids, segments = shortened(ids, segments, self._lengths(step)[samples])
            if causal:
                made.append(clm(ids, segments, samples))
                continue
            places = first[samples][:, None] + np.arange(step.length)
            before = self.hidden.counts[places] if self.hidden else None
            seed = (self.recipe.seed, step.number)
            law = Masking(self.recipe.objective, step.mask_rate, seed, self.vocabulary, before)
            made.append(masked(ids, segments, samples, law))
            if self.hidden:
                self.hidden.counts[places] += made[-1].hidden
        return made

    def _shares(self, step: Step, counts: dict[str, float]) -> dict[str, float]:
        """Weight of each objective's mean loss; an objective without a single target leaves its weight to the other."""
        shares = {name: step.shares[name != "clm"] if count else 0.0 for name, count in counts.items()}
        return {name: share / (sum(shares.values()) or 1.0) for name, share in shares.items()}

    def _micro(self, batch: Batch) -> Iterator[Batch]:
        """Parts of a batch that fit into memory, without those that nothing is asked of."""
        size = max(1, self.micro_tokens // batch.inputs.shape[1])
        parts = (batch[start : start + size] for start in range(0, len(batch), size))
        return (part for part in parts if part.count or self._everywhere)

    @property
    def _everywhere(self) -> bool:
        """Whether teachers are followed at every position, and not only where a target stands."""
        return bool(self.recipe.distil and self.recipe.distil.divergence == "per-sequence")

    def _backward(self, batch: Batch, step: Step, targets: float, share: float) -> float:
        """Add the gradients of `share` x the mean loss over the step's `targets`; returns its summed nats."""
        with ExitStack() as stack:
            stack.enter_context(self.accelerator.autocast())
            stack.enter_context(dropout.samples(self.recipe.seed, step.number, batch.samples.tolist()))
            loss, nats = self._loss(batch, targets, step.rows)
            (loss * (share / targets)).backward()
        return float(nats)

    def _loss(self, batch: Batch, targets: float, rows: int) -> tuple[Tensor, Tensor]:
        """Summed loss of a part of a step of so many targets and rows, and its summed cross-entropy in nats."""
        hidden, asked = targets_of(self.model, batch, self._everywhere)
        teaching = self._teaching(batch, targets, rows) if self.teachers else None
        z_loss = self.recipe.objective.z_loss
        return sliced_cross_entropy(hidden, *output_head(self.model), asked, z_loss=z_loss, teaching=teaching)

    def _teaching(self, batch: Batch, targets: float, rows: int) -> DistillationTargets:
        """The divergence is divided by the number of rows (per-sequence), all else by the number of targets."""
        assert self.recipe.distil is not None
        with torch.no_grad():
            heads = [
                Head(targets_of(teacher, batch, self._everywhere)[0], *output_head(teacher))
                for teacher in self.teachers
            ]
        weight = targets / rows if self._everywhere else 1.0
        return DistillationTargets(heads, self.recipe.distil.temperature, self.recipe.distil.alpha, weight)

    def held_out_loss(self) -> float:
        """Mean loss on the held-out text by the law that is trained, without dropout."""
        assert self.corpus.held_out
        text, length = self.corpus.held_out, self.recipe.batch.length
        first = np.arange(rows_in(len(text), length, "fixed")) * length
        mine = np.arange(self.accelerator.process_index, len(first), self.accelerator.num_processes)
        batch = clm(*text.rows(first[mine], length), mine)
        targets = self._summed({"targets": batch.count})["targets"]
        total = 0.0
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for part in self._micro(batch):
                total += float(self._loss(part, targets, len(first))[0])
        self.model.train()
        return self._summed({"loss": total})["loss"] / targets

    def _summed(self, values: dict[str, float] | dict[str, int]) -> dict[str, float]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return {name: float(value) for name, value in values.items()}
        local = torch.tensor([*values.values()], dtype=torch.float64, device=self.device)
        total = self.accelerator.reduce(local, "sum").tolist()
        return dict(zip(values, total, strict=True))

    def _summed_array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        local = torch.from_numpy(values.astype(np.int32)).to(self.device)
        total: NDArray[Any] = self.accelerator.reduce(local, "sum").cpu().numpy().astype(values.dtype)
        return total

    def _add_up_gradients(self) -> None:
        """Over all processes, as one flat tensor; a parameter that some process had no use for counts as zeros."""
        if self.accelerator.num_processes == 1:
            return
        learned = [p for p in self.model.parameters() if p.requires_grad]
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learned]
        total: Tensor = self.accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
        for parameter, grad in zip(learned, total.split([g.numel() for g in grads]), strict=True):
            parameter.grad = grad.view_as(parameter)

    def _check(self, step: Step, losses: dict[str, float], norm: float) -> None:
        bound = EXPLODED * math.log(self.vocabulary)
        worst = max(losses.values(), default=0.0)
        if math.isfinite(norm) and worst <= bound and (norm or not losses):  # NaN is neither
            return
        what = "the loss left all bounds" if norm else "the gradient is zero: the weights have overflown"
        said = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
        raise TrainingError(
            f"{what} ({said}; gradient norm {norm:.4g}); nothing of this step was learned",
            place=f"step {step.number + 1}, rows {step.first} to {step.first + step.rows - 1} of pass {step.sweep + 1}",
            hint="begin anew in another --out with a lower learning rate "
            f"(--set optimizer.lr={self.recipe.optimizer.lr / 3:.2g}), a longer warm-up or --precision float32; "
            "the last state and all checkpoints are kept",
        )

    def card(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "scale": recipe.scale,
            "attends": list(recipe.attends),
            "methods": list(recipe.methods),
            "words_seen": round(self.words),
            "tokens_seen": self.tokens,
            "steps": self.done,
            "seed": recipe.seed,
        }

    def save_checkpoint(self, folder: Path) -> None:
        with ExitStack() as stack:
            if self.ema:
                stack.enter_context(self.ema.applied(self.model))
            checkpoint_io.save_checkpoint(folder, self.model, self.corpus.tokenizer, self.card())

    def save_state(self, folder: Path) -> None:
        """With what all processes have hidden: `hidden.share` must have been called since the last step."""
        moments, rest = checkpoint_io.flat(self.optimizer)
        tensors = checkpoint_io.prefixed("model.", self.model.named_parameters())
        tensors |= checkpoint_io.prefixed("optimizer.", moments.items())
        tensors |= checkpoint_io.prefixed("ema.", self.ema.state_dict().items()) if self.ema else {}
        tensors |= {"hidden": torch.from_numpy(self.hidden.counts)} if self.hidden else {}
        checkpoint_io.save_state(folder, self.done, tensors, self._progress() | {"optimizer": rest})

    def load_state(self, folder: Path) -> bool:
        """Continue from the newest state, if there is one."""
        found = checkpoint_io.load_state(folder)
        if found is None:
            return False
        tensors, facts = found
        self._take(tensors, facts)
        checkpoint_io.restore(self.optimizer, checkpoint_io.part("optimizer.", tensors), facts["optimizer"])
        if self.ema:
            self.ema.load_state_dict(checkpoint_io.part("ema.", tensors))
        if self.hidden:
            self.hidden.set(tensors["hidden"].numpy())
        return True

    def keep_if_best(self, folder: Path, loss: float) -> None:
        """Save the weights in `folder` unless it holds weights with a held-out loss as low."""
        found = checkpoint_io.load_state(folder)
        if found is None or loss < found[1]["held_out"]:
            tensors = checkpoint_io.prefixed("model.", self.model.named_parameters())
            checkpoint_io.save_state(folder, self.done, tensors, self._progress() | {"held_out": loss})

    def take_best(self, folder: Path) -> None:
        """Put the weights that `keep_if_best` kept into the model, which then cannot be trained on."""
        found = checkpoint_io.load_state(folder)
        assert found is not None
        self._take(*found)

    def _progress(self) -> dict[str, Any]:
        return {"done": self.done, "words": self.words, "tokens": self.tokens}

    def _take(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        weights = checkpoint_io.part("model.", tensors)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        self.done, self.words, self.tokens = facts["done"], facts["words"], facts["tokens"]


def pretrain(training: Training, out: Path, watcher: Watcher, conditions: Conditions) -> Path | None:
    """Train to the end, or until asked to stop; the final checkpoint, None if there is none yet.

    Leaves in `out`: state/, chck_1M ... by words seen, main, and best/ where a recipe selects a pass by held-out loss.
    Raises DataError, TrainingError and RunError.
    """
    steps = timeline(training.recipe, len(training.corpus))
    held_out, length = training.corpus.held_out, training.recipe.batch.length
    if held_out and not rows_in(len(held_out), length, "fixed"):
        raise DataError(
            f"the held-out text has {len(held_out):,} tokens, less than one row of {length}",
            hint="give a larger --corpus, or a larger share: --set corpus.held_out=0.1",
        )
    main = training.accelerator.is_main_process
    training.load_state(out / "state")
    if main:
        watcher.begins(steps[-1].start + steps[-1].tokens, training.done, training.tokens)
    saved = time.monotonic()
    for step in steps[training.done :]:
        before, started = training.words, time.monotonic()
        record = training.step(step)
        pass_ends = step is steps[-1] or steps[step.number + 1].sweep != step.sweep
        if pass_ends and held_out:
            record["held_out"] = training.held_out_loss()
            if main:
                training.keep_if_best(out / "best", record["held_out"])
        if main:
            watcher.stepped(record | {"seconds": time.monotonic() - started, "switch": step.switch})
        seen = training.words / (1 - SHORT) if step is steps[-1] else training.words
        reached = [words for words in MILESTONES if before < words <= seen]
        if main and reached:
            for folder in (out / f"chck_{words // MILLION}M" for words in reached):
                training.save_checkpoint(folder)
                watcher.saved(folder, training.done)
        stop = _any(training, watcher.asked_to_stop()) or training.done == conditions.stop_after
        late = time.monotonic() - saved > 60 * conditions.save_every
        if _any(training, main and (stop or bool(reached) or late)):
            _save_state(training, out)
            saved = time.monotonic()
        if stop and training.done < len(steps):
            return None
    _save_state(training, out)
    if main:
        if held_out:
            training.take_best(out / "best")
        training.save_checkpoint(out / "main")
        watcher.saved(out / "main", training.done)
    training.accelerator.wait_for_everyone()
    return out / "main"


def _save_state(training: Training, out: Path) -> None:
    """Called by all processes; the main one writes."""
    if training.hidden:
        training.hidden.share()
    if training.accelerator.is_main_process:
        training.save_state(out / "state")


def _any(training: Training, asked: bool) -> bool:
    return bool(training._summed({"stop": float(asked)})["stop"])
