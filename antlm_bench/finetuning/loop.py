"""Finetune a classifier: train, select an epoch on held-out texts, predict the scored texts.

One loop serves every backbone, task and seed. As in pre-training all randomness is keyed: the split
and the head by seed, the order by (seed, epoch), dropout by (seed, update, example). A loss is a
sum over texts divided by the number of texts in the update, so the cut into micro-batches changes
sums by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    PaddedBatch,
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
from antlm_bench.metrics.classification import (
    ConfusionTotals,
    collapse_warnings,
    load_confusion_metric,
)
from antlm_bench.training import dropout, optim
from antlm_bench.types import Attention, Floats, Prediction

if TYPE_CHECKING:
    from antlm_bench.suites.classification import TrainingSpec
    from antlm_bench.suites.classification_loader import ClassificationTask

CPU_TOKENS_PER_THREAD = 1024  # per forward with gradients: activations stay near the cache
DEFAULT_BATCH_TOKENS = 32_768  # per forward with gradients on a GPU
INFERENCE_TOKENS_FACTOR = 4  # a forward without gradients takes so many times as many


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Where and how a task is finetuned."""

    device: str = "auto"
    """Changes what is learned by rounding only."""
    dtype: str = "float32"
    """dtype of matrix products: float32 or bfloat16. Weights stay fp32."""
    batch_tokens: int | None = None
    """Tokens per forward, None = by device. Changes what is learned by rounding only."""
    pooling: str = "auto"
    """Which hidden states the head reads (heads.resolve_pooling)."""
    lora_rank: int = 0
    """Rank of adapters that are trained instead of the weights; 0 = train all weights."""


class FinetuneCallback(Protocol):
    """Receives progress: after every update and after every epoch."""

    def on_step_end(self, updates_done: int, total_updates: int, loss: float) -> None: ...
    def on_epoch_end(self, epoch: int, selection_score: float) -> None: ...


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The predictions of one task, and how they came about."""

    predictions: list[Prediction]
    """Predictions of task.valid, in its order."""
    history: dict[str, Any]
    """Epochs, counts and warnings, ready for JSON."""


def finetune(
    backbone: Backbone,
    task: ClassificationTask,
    seed: int,
    attention: Attention,
    settings: FinetuneSettings,
    callback: FinetuneCallback | None = None,
) -> FinetuneResult:
    """Train a copy of the backbone with a new head, keep the best epoch, predict `task.valid`.

    Raises MethodNotSupported (an attention that the backbone cannot have), UsageError, DataError,
    CheckpointError (impossible texts or options: see data.encode_examples, batches.split_examples,
    heads.resolve_pooling, heads.build_classifier), TrainingError (out of memory).
    """
    splits = encode_splits(backbone, task, seed, attention)
    with explain_out_of_memory(f"{backbone.name} {task.full_name}"):
        trainer = ClassifierTrainer(backbone, task, seed, attention, settings)
        history = trainer.train(splits.train, splits.selection, callback)
        logprobs = trainer.predict_logprobs(splits.valid)
    return build_result(task, splits, logprobs, history)


@dataclass(frozen=True, slots=True)
class EncodedSplits:
    """The encoded rows of a task."""

    train: EncodedExamples
    selection: EncodedExamples
    """Chooses the epoch (or C). The scored texts themselves if task.select is "valid"."""
    valid: EncodedExamples
    """The texts that are scored."""


def encode_splits(
    backbone: Backbone, task: ClassificationTask, seed: int, attention: Attention
) -> EncodedSplits:
    """Hold out texts of task.train as `seed` says, and encode all splits. Raises as `finetune`."""
    if attention not in backbone.attentions:
        raise MethodNotSupported(
            f"{backbone.name} cannot attend {attention}",
            location="--attention",
            hint=f"it attends {' and '.join(sorted(backbone.attentions))}",
        )
    if not task.train or not task.valid:
        raise DataError(
            "no rows",
            location=task.full_name,
            hint="train and valid must have at least one row each",
        )
    keep_freed_memory()
    train, selection = (
        (task.train, task.valid)
        if task.select == "valid"
        else split_examples(task.train, task.held_out, seed)
    )
    splits = (train, selection, task.valid)
    if task.training.rows == "tokenizer":
        length = official_max_row_length(backbone, task.training.max_length)
        return EncodedSplits(*(encode_with_tokenizer(backbone, s, length) for s in splits))
    length = max_row_length(backbone, task.training.max_length)
    return EncodedSplits(*(encode_examples(backbone, attention, s, length) for s in splits))


@contextmanager
def explain_out_of_memory(location: str) -> Iterator[None]:
    """Raise TrainingError, with what to do, if torch runs out of memory inside."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "does not fit into memory",
            location=location,
            hint="fewer tokens per forward (--batch-tokens), --dtype bfloat16, --lora, "
            "or a bigger device",
        ) from error


def build_result(
    task: ClassificationTask, splits: EncodedSplits, logprobs: Floats, history: dict[str, Any]
) -> FinetuneResult:
    """Build predictions from log-probabilities (n, classes); complete the history."""
    predictions = _build_predictions(task, splits.valid, logprobs)
    sizes = {name: len(getattr(splits, name)) for name in ("train", "selection", "valid")}
    truncated = {name: int(getattr(splits, name).truncated.sum()) for name in ("train", "valid")}
    collapsed = [*history["collapsed"], *collapse_warnings(predictions, task.metric)]
    history = history | {"collapsed": collapsed, **sizes, "cut": truncated}
    return FinetuneResult(predictions, history)


@dataclass(frozen=True, slots=True)
class BatchReader:
    """Pads rows to batches on the device, and runs functions on all rows without gradients."""

    device: torch.device
    batch_tokens: int
    """Tokens per forward with gradients."""
    autocast: Any
    """Context manager of the matrix products' dtype."""
    pad_id: int
    with_token_type_ids: bool

    @classmethod
    def for_task(
        cls, backbone: Backbone, spec: TrainingSpec, settings: FinetuneSettings
    ) -> BatchReader:
        device = resolve_device(settings.device)
        default = DEFAULT_BATCH_TOKENS
        if device.type == "cpu":
            default = CPU_TOKENS_PER_THREAD * torch.get_num_threads()
        return cls(
            device,
            settings.batch_tokens or default,
            torch.autocast(device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"),
            resolve_pad_id(backbone),
            backbone.has_token_type_ids and spec.token_types,
        )

    def read_batch(self, rows: EncodedExamples, indices: Int64) -> PaddedBatch:
        return pad_batch(rows, indices, self.pad_id, self.with_token_type_ids, self.device)

    def map_rows(
        self,
        function: Callable[[PaddedBatch], Tensor],
        rows: EncodedExamples,
        on_batch: Callable[[int], None] | None = None,
    ) -> Floats:
        """Return `function` of all rows, (n, k) in double precision.

        function: (b rows) -> (b, k). on_batch: called with the number of rows of each batch.
        """
        parts, order = [], []
        max_tokens = INFERENCE_TOKENS_FACTOR * self.batch_tokens
        with torch.inference_mode(), self.autocast:
            for indices in micro_batches(rows.lengths, np.arange(len(rows)), max_tokens):
                values = function(self.read_batch(rows, indices))
                parts.append(values.float().cpu().double().numpy())
                order.append(indices)
                if on_batch:
                    on_batch(len(indices))
        stacked = np.concatenate(parts)
        result = np.empty_like(stacked)
        result[np.concatenate(order)] = stacked
        return result


@dataclass(slots=True)
class BestEpoch:
    """The best epoch so far; the first of equally good ones. Its weights are kept on the CPU."""

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
    """Trains a classifier on one task with one seed. Raises as `finetune`."""

    def __init__(
        self,
        backbone: Backbone,
        task: ClassificationTask,
        seed: int,
        attention: Attention,
        settings: FinetuneSettings,
    ) -> None:
        self.task, self.seed = task, seed
        spec = task.training
        self.pooling = resolve_pooling(backbone, attention, settings.pooling, spec.pooling)
        self.reader = BatchReader.for_task(backbone, spec, settings)
        self.model = build_classifier(
            backbone,
            attention,
            self.pooling,
            len(task.classes),
            spec.dropout,
            seed,
            settings.lora_rank,
            uniform_init=spec.head_init == "uniform",
        )
        self.model.to(self.reader.device)
        groups = optim.build_param_groups(self.model, spec.weight_decay)
        if spec.decay == "all":
            everything = [parameter for group in groups for parameter in group["params"]]
            groups = [{"params": everything, "weight_decay": spec.weight_decay}]
        self.optimizer = optim.build_optimizer("adamw", groups, spec.lr, spec.betas, spec.eps)

    def train(
        self, rows: EncodedExamples, selection: EncodedExamples, callback: FinetuneCallback | None
    ) -> dict[str, Any]:
        """Train until the last epoch or until patience runs out; restore the best epoch's weights.

        Return the history: epochs, the best one, updates, examples per second, warnings.
        """
        spec = self.task.training
        total = spec.epochs * updates_per_epoch(len(rows), spec)
        weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        best = BestEpoch({name: p.to("cpu", copy=True) for name, p in weights.items()})
        epochs: list[dict[str, Any]] = []
        warnings: list[str] = []
        updates, examples, total_seconds = 0, 0, 0.0
        for epoch in range(1, spec.epochs + 1):
            loss_sum, epoch_examples, start_time = 0.0, 0, time.perf_counter()
            for indices in epoch_batches(rows.lengths, spec, self.seed, epoch):
                loss = self._train_step(rows, indices, updates, learning_rate(spec, updates, total))
                if not math.isfinite(loss):
                    warnings.append(f"the loss became NaN at update {updates + 1}")
                    break
                updates, epoch_examples = updates + 1, epoch_examples + len(indices)
                loss_sum += loss * len(indices)
                if callback:
                    callback.on_step_end(updates, total, loss)
            seconds = time.perf_counter() - start_time
            examples, total_seconds = examples + epoch_examples, total_seconds + seconds
            if warnings:
                break
            score, selection_loss = self._evaluate_selection(selection)
            if not math.isfinite(selection_loss):
                warnings.append(f"the loss became NaN at update {updates}")
                break
            epochs.append(
                {
                    "epoch": epoch,
                    "loss": loss_sum / epoch_examples,
                    "selection": score,
                    "selection_loss": selection_loss,
                    "seconds": round(seconds, 3),
                }
            )
            tie_breaker = -selection_loss if spec.equal_epochs == "lowest-loss" else 0.0
            best.update_if_better(epoch, (score, tie_breaker), weights)
            if callback:
                callback.on_epoch_end(epoch, score)
            if spec.patience and epoch - best.epoch >= spec.patience:
                break
        for name, kept in best.weights.items():
            weights[name].copy_(kept)
        return {
            "epochs": epochs,
            "best": best.epoch,
            "updates": updates,
            "examples_per_second": round(examples / total_seconds, 2),
            "attention": self.model.attention,
            "pooling": self.pooling,
            "collapsed": warnings,
        }

    def _train_step(
        self, rows: EncodedExamples, indices: Int64, update_index: int, lr: float
    ) -> float:
        """Make one update from the chosen examples; return their mean loss in nats.

        A loss or gradient that is not finite leaves the weights as they are.
        """
        self.model.train()
        losses = []
        for part in micro_batches(rows.lengths, indices, self.reader.batch_tokens):
            lengths = rows.lengths[part].tolist()
            with (
                dropout.keyed_samples(self.seed, update_index, part.tolist(), lengths),
                self.reader.autocast,
            ):
                logits = self.model(self.reader.read_batch(rows, part)).float()
            gold = torch.from_numpy(rows.gold[part]).to(self.reader.device)
            loss = functional.cross_entropy(logits, gold, reduction="sum") / len(indices)
            loss.backward()
            losses.append(loss.detach())
        norm = optim.clip_gradients(self.model.parameters(), self.task.training.clip)
        mean_loss = float(sum(losses))
        if math.isfinite(norm) and math.isfinite(mean_loss):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss if math.isfinite(norm) else math.nan

    def predict_logprobs(self, rows: EncodedExamples) -> Floats:
        """Return the log-probabilities (n, classes) of every row, natural log."""
        self.model.eval()
        return log_softmax(self.reader.map_rows(self.model, rows))

    def _evaluate_selection(self, rows: EncodedExamples) -> tuple[float, float]:
        return evaluate_selection(self.task.metric, self.predict_logprobs(rows), rows.gold)


def log_softmax(logits: Floats) -> Floats:
    """Return the log-probabilities of logits (n, classes)."""
    return np.asarray(functional.log_softmax(torch.from_numpy(logits), -1).numpy())


def evaluate_selection(metric: str, logprobs: Floats, gold: Int64) -> tuple[float, float]:
    """Return the task's metric and the mean loss in nats. logprobs (n, classes), gold (n,)."""
    confusion = np.zeros((logprobs.shape[1],) * 2)
    np.add.at(confusion, (gold, logprobs.argmax(1)), 1)
    score = float(load_confusion_metric(metric).compute(ConfusionTotals.from_tables(confusion)))
    return score, float(-logprobs[np.arange(len(logprobs)), gold].mean())


def learning_rate(spec: TrainingSpec, updates_done: int, total_updates: int) -> float:
    """Return the learning rate of the next update: linear warm-up, then decay to 0 (linear) or the
    floor (cosine).
    """
    warmup = spec.warmup * total_updates
    if spec.warmup_start == "zero":
        warmup = int(warmup)
        if updates_done < warmup:
            return spec.lr * updates_done / warmup
    elif updates_done + 1 < warmup:
        return spec.lr * (updates_done + 1) / warmup
    remaining = min(1.0, (total_updates - updates_done) / (total_updates - warmup))
    factors = {
        "linear": remaining,
        "cosine": spec.floor + (1 - spec.floor) * (1 - math.cos(math.pi * remaining)) / 2,
    }
    return spec.lr * factors.get(spec.schedule, 1.0)


def _build_predictions(
    task: ClassificationTask, rows: EncodedExamples, logprobs: Floats
) -> list[Prediction]:
    num_classes = len(task.classes)
    predictions = []
    for index, example in enumerate(task.valid):
        flags = rows.flags[index]
        predictions.append(
            Prediction(
                id=example.id,
                gold=int(example.gold),
                pred=int(logprobs[index].argmax()),
                scores=tuple(logprobs[index].tolist()),
                tokens=(len(rows.ids[index]),) * num_classes,
                characters=(int(rows.characters_read[index]),) * num_classes,
                labels={"task": task.name, **example.labels},
                flags=(*flags, "cut") if rows.truncated[index] else flags,
            )
        )
    return predictions
