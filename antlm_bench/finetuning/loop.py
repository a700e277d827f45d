"""One loop for every body, task and seed: train, select an epoch on texts that were held out,
predict the scored ones.

As in pre-training all randomness is keyed: the split and the head by seed, the order by (seed,
epoch), dropout by (seed, update, example). A loss is a sum over texts divided by the update's
number of them, so that how an update is cut into parts under a budget of tokens changes sums by
rounding only.
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

from antlm_bench.checkpoints import Backbone
from antlm_bench.checkpoints.pretrained import resolve_device
from antlm_bench.cpu_tuning import keep_freed_memory
from antlm_bench.errors import DataError, MethodNotSupported, TrainingError
from antlm_bench.finetuning.batches import (
    epoch_batches,
    micro_batches,
    pad_batch,
    split_examples,
    updates_per_epoch,
)
from antlm_bench.finetuning.data import (
    EncodedExamples,
    Int64,
    encode_examples,
    encode_with_tokenizer,
    max_row_length,
    official_max_row_length,
    resolve_pad_id,
)
from antlm_bench.finetuning.heads import build_classifier, resolve_pooling
from antlm_bench.metrics.classification import METRIC_FUNCTIONS, ConfusionTotals, collapse_warnings
from antlm_bench.training import dropout, optim
from antlm_bench.types import Attention, Floats, Prediction

if TYPE_CHECKING:
    from antlm_bench.suites.classification import TrainingSpec
    from antlm_bench.suites.classification_loader import ClassificationTask

CPU_TOKENS_PER_THREAD = (
    1024  # per forward with gradients and thread of a CPU: they stay near its cache
)
DEFAULT_BATCH_TOKENS = 32_768
INFERENCE_TOKENS_FACTOR = 4  # times as many without


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Where and how a task is finetuned. device and batch_tokens change what is learned by rounding
    only.

    dtype: of matrix products; weights are fp32. batch_tokens: tokens per forward, None = by device.
    pooling: see heads.resolve_pooling. lora: rank of adapters, trained instead of the body's
    weights; 0 = all weights.
    """

    device: str = "auto"
    dtype: str = "float32"
    batch_tokens: int | None = None
    pooling: str = "auto"
    lora_rank: int = 0


class FinetuneCallback(Protocol):
    """Who is told how it goes: after every update, and after every epoch."""

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None: ...
    def on_epoch_end(self, epoch: int, selection_score: float) -> None: ...


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """predictions: of task.valid, in order. history: how they came about, ready for JSON."""

    predictions: list[Prediction]
    history: dict[str, Any]


def finetune(
    backbone: Backbone,
    task: ClassificationTask,
    seed: int,
    attention: Attention,
    settings: FinetuneSettings,
    callback: FinetuneCallback | None = None,
) -> FinetuneResult:
    """Train a copy of the body with a new head on the task, keep the best epoch, and predict
    `task.valid`.

    Raises MethodNotSupported (an attention the body does not have), UsageError, DataError,
    CheckpointError (texts and options that cannot be: see data.encode, batches.split,
    heads.resolve_pooling, heads.build_classifier), TrainingError (memory).
    """
    if attention not in backbone.attends:
        hint = f"it attends {' and '.join(sorted(backbone.attends))}"
        raise MethodNotSupported(
            f"{backbone.name} cannot attend {attention}", location="--attention", hint=hint
        )
    if not task.train or not task.valid:
        raise DataError(
            "no rows",
            location=task.full_name,
            hint="train and valid must have at least one row each",
        )
    keep_freed_memory()
    train, held = (
        (task.train, task.valid)
        if task.select == "valid"
        else split_examples(task.train, task.held_out, seed)
    )
    by_tokenizer = task.training.rows == "tokenizer"
    size = (official_max_row_length if by_tokenizer else max_row_length)(
        backbone, task.training.max_length
    )
    rows, selection, valid = (
        encode_with_tokenizer(backbone, part, size)
        if by_tokenizer
        else encode_examples(backbone, attention, part, size)
        for part in (train, held, task.valid)
    )
    try:
        learner = ClassifierTrainer(backbone, task, seed, attention, settings)
        history = learner.train(rows, selection, callback)
        logp = learner.predict_logprobs(valid)
    except torch.OutOfMemoryError as error:
        hint = "fewer tokens per forward (--batch-tokens), --dtype bfloat16, --lora, or a bigger device"
        raise TrainingError(
            "does not fit into memory", location=f"{backbone.name} {task.full_name}", hint=hint
        ) from error
    predictions = _build_predictions(task, valid, logp)
    history["collapsed"] += collapse_warnings(predictions)
    history |= {"train": len(rows), "selection": len(selection), "valid": len(valid)}
    history["cut"] = {
        name: int(part.truncated.sum()) for name, part in (("train", rows), ("valid", valid))
    }
    return FinetuneResult(predictions, history)


@dataclass(slots=True)
class BestEpoch:
    """The best epoch so far: of equal ranks the first. Its weights lie on the CPU."""

    weights: dict[str, Tensor]
    epoch: int = 0
    rank: tuple[float, float] = (-math.inf, -math.inf)

    def update_if_better(
        self, epoch: int, rank: tuple[float, float], weights: Mapping[str, Tensor]
    ) -> None:
        if rank > self.rank:
            self.epoch, self.rank = epoch, rank
            for name, kept in self.weights.items():
                kept.copy_(weights[name])


class ClassifierTrainer:
    """A classifier being trained on one task with one seed. Raises as `finetune`."""

    def __init__(
        self,
        backbone: Backbone,
        task: ClassificationTask,
        seed: int,
        attention: Attention,
        settings: FinetuneSettings,
    ) -> None:
        self.task, self.seed = task, seed
        self.device = resolve_device(settings.device)
        spec = task.training
        self.pooling = resolve_pooling(backbone, attention, settings.pooling, spec.pooling)
        uniform = spec.head_init == "uniform"
        self.model = build_classifier(
            backbone,
            attention,
            self.pooling,
            len(task.classes),
            spec.dropout,
            seed,
            settings.lora_rank,
            uniform,
        )
        self.model.to(self.device)
        self.batch_tokens = settings.batch_tokens or _default_batch_tokens(self.device)
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"
        )
        self.pad_id, self.with_token_type_ids = (
            resolve_pad_id(backbone),
            backbone.has_token_type_ids and spec.token_types,
        )
        groups = optim.build_param_groups(self.model, spec.weight_decay)
        if spec.decay == "all":
            groups = [
                {
                    "params": [p for group in groups for p in group["params"]],
                    "weight_decay": spec.weight_decay,
                }
            ]
        self.optimizer = optim.build_optimizer("adamw", groups, spec.lr, spec.betas, spec.eps)

    def train(
        self, rows: EncodedExamples, selection: EncodedExamples, callback: FinetuneCallback | None
    ) -> dict[str, Any]:
        """Train to the end, or until nothing has got better for so many epochs; leaves the best
        epoch's weights.
        """
        spec = self.task.training
        total = spec.epochs * updates_per_epoch(len(rows), spec)
        learned = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        best = BestEpoch({name: p.to("cpu", copy=True) for name, p in learned.items()})
        epochs: list[dict[str, Any]] = []
        wrong: list[str] = []
        done, seen, spent = 0, 0, 0.0
        for epoch in range(1, spec.epochs + 1):
            nats, before, started = 0.0, seen, time.perf_counter()
            for chosen in epoch_batches(rows.lengths, spec, self.seed, epoch):
                loss = self._train_step(rows, chosen, done, learning_rate(spec, done, total))
                if not math.isfinite(loss):
                    wrong.append(f"the loss became NaN at update {done + 1}")
                    break
                done, seen, nats = done + 1, seen + len(chosen), nats + loss * len(chosen)
                if callback:
                    callback.on_step_end(done, total, loss)
            seconds = time.perf_counter() - started
            spent += seconds
            if wrong:
                break
            score, loss = self._evaluate_selection(selection)
            if not math.isfinite(loss):
                wrong.append(f"the loss became NaN at update {done}")
                break
            epochs.append(
                {"epoch": epoch, "loss": nats / (seen - before), "selection": score, "selection_loss": loss,
                 "seconds": round(seconds, 3)}
            )  # fmt: skip
            best.update_if_better(
                epoch, (score, -loss if spec.equal_epochs == "lowest-loss" else 0.0), learned
            )
            if callback:
                callback.on_epoch_end(epoch, score)
            if spec.patience and epoch - best.epoch >= spec.patience:
                break
        for name, kept in best.weights.items():
            learned[name].copy_(kept)
        return {
            "epochs": epochs,
            "best": best.epoch,
            "updates": done,
            "examples_per_second": round(seen / spent, 2),
            # fmt: skip
            "attention": self.model.attention,
            "pooling": self.pooling,
            "collapsed": wrong,
        }

    def _train_step(
        self, rows: EncodedExamples, indices: Int64, update_index: int, lr: float
    ) -> float:
        """One update from the examples `chosen`; their mean loss in nats. A loss that is no number
        changes nothing.
        """
        self.model.train()
        losses = []
        for part in micro_batches(rows.lengths, indices, self.batch_tokens):
            with (
                dropout.keyed_samples(
                    self.seed, update_index, part.tolist(), rows.lengths[part].tolist()
                ),
                self.autocast,
            ):
                logits = self.model(
                    pad_batch(rows, part, self.pad_id, self.with_token_type_ids, self.device)
                ).float()
            loss = functional.cross_entropy(
                logits, torch.from_numpy(rows.gold[part]).to(self.device), reduction="sum"
            )
            loss = loss / len(indices)
            loss.backward()
            losses.append(loss.detach())
        norm = optim.clip_gradients(self.model.parameters(), self.task.training.clip)
        mean = float(sum(losses))
        if math.isfinite(norm) and math.isfinite(mean):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean if math.isfinite(norm) else math.nan

    def predict_logprobs(self, rows: EncodedExamples) -> Floats:
        """Log-probabilities (n, classes) of every row, natural log."""
        self.model.eval()
        found = np.empty((len(rows), len(self.task.classes)))
        with torch.inference_mode(), self.autocast:
            for part in micro_batches(
                rows.lengths, np.arange(len(rows)), INFERENCE_TOKENS_FACTOR * self.batch_tokens
            ):
                logits = self.model(
                    pad_batch(rows, part, self.pad_id, self.with_token_type_ids, self.device)
                )
                found[part] = functional.log_softmax(logits.float().cpu().double(), -1).numpy()
        return found

    def _evaluate_selection(self, rows: EncodedExamples) -> tuple[float, float]:
        """The task's metric, and the mean loss in nats."""
        logp = self.predict_logprobs(rows)
        table = np.zeros((logp.shape[1],) * 2)
        np.add.at(table, (rows.gold, logp.argmax(1)), 1)
        return float(METRIC_FUNCTIONS[self.task.metric](ConfusionTotals.from_tables(table))), float(
            -logp[np.arange(len(logp)), rows.gold].mean()
        )


def _default_batch_tokens(device: torch.device) -> int:
    return (
        CPU_TOKENS_PER_THREAD * torch.get_num_threads()
        if device.type == "cpu"
        else DEFAULT_BATCH_TOKENS
    )


def learning_rate(spec: TrainingSpec, updates_done: int, total_updates: int) -> float:
    """The learning rate of the update after `done`: linear warm-up, then to 0 (linear) or the floor
    (cosine).
    """
    warm = spec.warmup * total_updates
    if spec.warmup_start == "zero":
        warm = int(warm)
        if updates_done < warm:
            return spec.lr * updates_done / warm
    elif updates_done + 1 < warm:
        return spec.lr * (updates_done + 1) / warm
    left = min(
        1.0, (total_updates - updates_done) / (total_updates - warm)
    )  # 1 where the warm-up ends
    share = {
        "linear": left,
        "cosine": spec.floor + (1 - spec.floor) * (1 - math.cos(math.pi * left)) / 2,
    }
    return spec.lr * share.get(spec.schedule, 1.0)


def _build_predictions(
    task: ClassificationTask, rows: EncodedExamples, logprobs: Floats
) -> list[Prediction]:
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
            task.valid,
            logprobs,
            rows.ids,
            rows.characters_read,
            rows.truncated,
            rows.flags,
            strict=True,
        )
    ]


__all__ = ["FinetuneCallback", "FinetuneResult", "FinetuneSettings", "finetune", "split_examples"]
