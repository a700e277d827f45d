"""One loop for every body, task and seed: train, select an epoch on texts that were held out, predict the scored ones.

As in pre-training all randomness is keyed: the split and the head by seed, the order by (seed, epoch), dropout by
(seed, update, example). A loss is a sum over texts divided by the update's number of them, so that how an update is
cut into parts under a budget of tokens changes sums by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from antlm_bench.checkpoints import Body
from antlm_bench.checkpoints.pretrained import device_of
from antlm_bench.cpu_tuning import keep_pages
from antlm_bench.errors import DataError, MethodNotSupported, TrainingError
from antlm_bench.finetuning.batches import epoch_updates, padded, parts, split, updates_per_epoch
from antlm_bench.finetuning.data import Int64, Rows, encode, encode_by_tokenizer, longest, longest_tried, padding
from antlm_bench.finetuning.heads import classifier, pooling_of
from antlm_bench.metrics.classification import MEASURES, Totals, collapsed
from antlm_bench.training import dropout, optim
from antlm_bench.types import Attention, Floats, Prediction

if TYPE_CHECKING:
    from antlm_bench.suites.classification import TrainingSpec
    from antlm_bench.suites.classification_loader import Task

THREAD_TOKENS = 1024  # per forward with gradients and thread of a CPU: they stay near its cache
TOKENS_ELSEWHERE = 32_768
READ = 4  # times as many without


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where and how a task is finetuned. device and batch_tokens change what is learned by rounding only.

    dtype: of matrix products; weights are fp32. batch_tokens: tokens per forward, None = by device. pooling: see
    heads.pooling_of. lora: rank of adapters, trained instead of the body's weights; 0 = all weights.
    """

    device: str = "auto"
    dtype: str = "float32"
    batch_tokens: int | None = None
    pooling: str = "auto"
    lora: int = 0


class Watcher(Protocol):
    """Who is told how it goes: after every update, and after every epoch."""

    def stepped(self, done: int, total: int, loss: float) -> None: ...
    def scored(self, epoch: int, selection: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """predictions: of task.valid, in order. history: how they came about, ready for JSON."""

    predictions: list[Prediction]
    history: dict[str, Any]


def finetune(
    body: Body, task: Task, seed: int, attention: Attention, conditions: Conditions, watcher: Watcher | None = None
) -> Outcome:
    """Train a copy of the body with a new head on the task, keep the best epoch, and predict `task.valid`.

    Raises MethodNotSupported (an attention the body does not have), UsageError, DataError, CheckpointError (texts and
    options that cannot be: see data.encode, batches.split, heads.pooling_of, heads.classifier), TrainingError (memory).
    """
    if attention not in body.attends:
        hint = f"it attends {' and '.join(sorted(body.attends))}"
        raise MethodNotSupported(f"{body.name} cannot attend {attention}", place="--attention", hint=hint)
    if not task.train or not task.valid:
        raise DataError("no rows", place=task.full_name, hint="train and valid must have at least one row each")
    keep_pages()
    train, held = (task.train, task.valid) if task.select == "valid" else split(task.train, task.held_out, seed)
    by_tokenizer = task.training.rows == "tokenizer"
    size = (longest_tried if by_tokenizer else longest)(body, task.training.max_length)
    rows, selection, valid = (
        encode_by_tokenizer(body, part, size) if by_tokenizer else encode(body, attention, part, size)
        for part in (train, held, task.valid)
    )
    try:
        learner = Learner(body, task, seed, attention, conditions)
        history = learner.learn(rows, selection, watcher)
        logp = learner.read(valid)
    except torch.OutOfMemoryError as error:
        hint = "fewer tokens per forward (--batch-tokens), --dtype bfloat16, --lora, or a bigger device"
        raise TrainingError("does not fit into memory", place=f"{body.name} {task.full_name}", hint=hint) from error
    predictions = _predictions(task, valid, logp)
    history["collapsed"] += collapsed(predictions)
    history |= {"train": len(rows), "selection": len(selection), "valid": len(valid)}
    history["cut"] = {name: int(part.cut.sum()) for name, part in (("train", rows), ("valid", valid))}
    return Outcome(predictions, history)


@dataclass(slots=True)
class Best:
    """The best epoch so far: of equal ranks the first. Its weights lie on the CPU."""

    weights: dict[str, Tensor]
    epoch: int = 0
    rank: tuple[float, float] = (-math.inf, -math.inf)

    def offer(self, epoch: int, rank: tuple[float, float], weights: Mapping[str, Tensor]) -> None:
        if rank > self.rank:
            self.epoch, self.rank = epoch, rank
            for name, kept in self.weights.items():
                kept.copy_(weights[name])


class Learner:
    """A classifier being trained on one task with one seed. Raises as `finetune`."""

    def __init__(self, body: Body, task: Task, seed: int, attention: Attention, conditions: Conditions) -> None:
        self.task, self.seed = task, seed
        self.device = device_of(conditions.device)
        spec = task.training
        self.pooling = pooling_of(body, attention, conditions.pooling, spec.pooling)
        uniform = spec.head_init == "uniform"
        self.model = classifier(
            body, attention, self.pooling, len(task.classes), spec.dropout, seed, conditions.lora, uniform
        )
        self.model.to(self.device)
        self.tokens = conditions.batch_tokens or _auto_budget(self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=conditions.dtype == "bfloat16")
        self.pad, self.typed = padding(body), body.typed and spec.token_types
        groups = optim.groups(self.model, spec.weight_decay)
        if spec.decay == "all":
            groups = [{"params": [p for group in groups for p in group["params"]], "weight_decay": spec.weight_decay}]
        self.optimizer = optim.optimizer("adamw", groups, spec.lr, spec.betas, spec.eps)

    def learn(self, rows: Rows, selection: Rows, watcher: Watcher | None) -> dict[str, Any]:
        """Train to the end, or until nothing has got better for so many epochs; leaves the best epoch's weights."""
        spec = self.task.training
        total = spec.epochs * updates_per_epoch(len(rows), spec)
        learned = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        best = Best({name: p.to("cpu", copy=True) for name, p in learned.items()})
        epochs: list[dict[str, Any]] = []
        wrong: list[str] = []
        done, seen, spent = 0, 0, 0.0
        for epoch in range(1, spec.epochs + 1):
            nats, before, started = 0.0, seen, time.perf_counter()
            for chosen in epoch_updates(rows.lengths, spec, self.seed, epoch):
                loss = self._update(rows, chosen, done, rate(spec, done, total))
                if not math.isfinite(loss):
                    wrong.append(f"the loss became NaN at update {done + 1}")
                    break
                done, seen, nats = done + 1, seen + len(chosen), nats + loss * len(chosen)
                if watcher:
                    watcher.stepped(done, total, loss)
            seconds = time.perf_counter() - started
            spent += seconds
            if wrong:
                break
            score, loss = self._selection(selection)
            if not math.isfinite(loss):
                wrong.append(f"the loss became NaN at update {done}")
                break
            epochs.append(
                {"epoch": epoch, "loss": nats / (seen - before), "selection": score, "selection_loss": loss,
                 "seconds": round(seconds, 3)}
            )  # fmt: skip
            best.offer(epoch, (score, -loss if spec.equal_epochs == "lowest-loss" else 0.0), learned)
            if watcher:
                watcher.scored(epoch, score)
            if spec.patience and epoch - best.epoch >= spec.patience:
                break
        for name, kept in best.weights.items():
            learned[name].copy_(kept)
        return {"epochs": epochs, "best": best.epoch, "updates": done, "examples_per_second": round(seen / spent, 2),
                "attention": self.model.attention, "pooling": self.pooling, "collapsed": wrong}  # fmt: skip

    def _update(self, rows: Rows, chosen: Int64, number: int, lr: float) -> float:
        """One update from the examples `chosen`; their mean loss in nats. A loss that is no number changes nothing."""
        self.model.train()
        losses = []
        for part in parts(rows.lengths, chosen, self.tokens):
            with dropout.samples(self.seed, number, part.tolist(), rows.lengths[part].tolist()), self.autocast:
                logits = self.model(padded(rows, part, self.pad, self.typed, self.device)).float()
            loss = functional.cross_entropy(logits, torch.from_numpy(rows.gold[part]).to(self.device), reduction="sum")
            loss = loss / len(chosen)
            loss.backward()
            losses.append(loss.detach())
        norm = optim.clip(self.model.parameters(), self.task.training.clip)
        mean = float(sum(losses))
        if math.isfinite(norm) and math.isfinite(mean):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean if math.isfinite(norm) else math.nan

    def read(self, rows: Rows) -> Floats:
        """Log-probabilities (n, classes) of every row, natural log."""
        self.model.eval()
        found = np.empty((len(rows), len(self.task.classes)))
        with torch.inference_mode(), self.autocast:
            for part in parts(rows.lengths, np.arange(len(rows)), READ * self.tokens):
                logits = self.model(padded(rows, part, self.pad, self.typed, self.device))
                found[part] = functional.log_softmax(logits.float().cpu().double(), -1).numpy()
        return found

    def _selection(self, rows: Rows) -> tuple[float, float]:
        """The task's metric, and the mean loss in nats."""
        logp = self.read(rows)
        table = np.zeros((logp.shape[1],) * 2)
        np.add.at(table, (rows.gold, logp.argmax(1)), 1)
        return float(MEASURES[self.task.metric](Totals.of(table))), float(-logp[np.arange(len(logp)), rows.gold].mean())


def _auto_budget(device: torch.device) -> int:
    return THREAD_TOKENS * torch.get_num_threads() if device.type == "cpu" else TOKENS_ELSEWHERE


def rate(spec: TrainingSpec, done: int, total: int) -> float:
    """The learning rate of the update after `done`: linear warm-up, then to 0 (linear) or the floor (cosine)."""
    warm = spec.warmup * total
    if spec.warmup_start == "zero":
        warm = int(warm)
        if done < warm:
            return spec.lr * done / warm
    elif done + 1 < warm:
        return spec.lr * (done + 1) / warm
    left = min(1.0, (total - done) / (total - warm))  # 1 where the warm-up ends
    share = {"linear": left, "cosine": spec.floor + (1 - spec.floor) * (1 - math.cos(math.pi * left)) / 2}
    return spec.lr * share.get(spec.schedule, 1.0)


def _predictions(task: Task, rows: Rows, logp: Floats) -> list[Prediction]:
    k = len(task.classes)
    return [
        Prediction(
            id=example.id,
            gold=int(example.gold),
            pred=int(scores.argmax()),
            scores=tuple(scores.tolist()),
            tokens=(len(ids),) * k,
            characters=(int(characters),) * k,
            labels={"task": task.name, **example.labels},
            flags=(*flags, "cut") if cut else flags,
        )
        for example, scores, ids, characters, cut, flags in zip(
            task.valid, logp, rows.ids, rows.characters, rows.cut, rows.flags, strict=True
        )
    ]


__all__ = ["Conditions", "Outcome", "Watcher", "finetune", "split"]
