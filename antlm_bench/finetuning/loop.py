"""Finetune a classifier: train, select an epoch on held-out texts, predict the scored texts.

All randomness is keyed, as in pre-training: the split and the head by seed, the order by (seed,
epoch), dropout by (seed, update, example). A loss is a sum over texts divided by the number of
texts in the update, so the cut into micro-batches changes it by rounding only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    collapse_warnings,
    load_confusion_metric,
    unmoved_loss_warnings,
)
from antlm_bench.predictions import OptionColumns, Predictions
from antlm_bench.scoring.devices import read_back, read_scalars, to_device
from antlm_bench.training import dropout, optim
from antlm_bench.types import FLAGS, Attention, Example, Floats

if TYPE_CHECKING:
    from antlm_bench.suites.classification import TrainingSpec
    from antlm_bench.suites.classification_loader import ClassificationTask

# Default number of tokens per forward with gradients.
CPU_TOKENS_PER_THREAD = 1024  # few enough for the caches
GPU_BATCH_TOKENS = 32_768
INFERENCE_TOKENS_FACTOR = 4  # times as many tokens in a forward without gradients


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Where and how a task is finetuned."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps. Changes the result by rounding only."""
    dtype: str = "float32"
    """dtype of matrix products: float32 or bfloat16. Weights stay fp32."""
    batch_tokens: int | None = None
    """Tokens per forward; None = the device's default. Changes the result by rounding only."""
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
    """The predictions of one task, and the history of the training."""

    predictions: Predictions
    """One per example of task.valid, in its order."""
    history: dict[str, Any]
    """Epochs, counts and warnings, for run.json."""


def finetune(
    backbone: Backbone,
    task: ClassificationTask,
    seed: int,
    attention: Attention,
    settings: FinetuneSettings,
    callback: FinetuneCallback | None = None,
) -> FinetuneResult:
    """Train a copy of the backbone with a new head, keep the best epoch, predict `task.valid`.

    Raises MethodNotSupported (an attention that the backbone cannot run with), TrainingError (out
    of memory), and UsageError, DataError or CheckpointError for impossible texts or options (see
    data.encode_examples, batches.split_examples, heads.resolve_pooling, heads.build_classifier).
    """
    splits = encode_splits(backbone, task, seed, attention)
    with explain_out_of_memory(f"{backbone.name} {task.full_name}"):
        trainer = ClassifierTrainer(backbone, task, seed, attention, settings)
        history = trainer.train(splits.train, splits.selection, callback)
        logprobs = trainer.predict_logprobs(splits.valid)
    return build_result(task, splits, logprobs, history)


@dataclass(frozen=True, slots=True)
class EncodedSplits:
    """The examples of a task as rows of token ids."""

    train: EncodedExamples
    selection: EncodedExamples
    """The texts that choose the epoch (or C); the scored texts if task.select is "valid"."""
    valid: EncodedExamples
    """The texts that are scored."""


def encode_splits(
    backbone: Backbone, task: ClassificationTask, seed: int, attention: Attention
) -> EncodedSplits:
    """Hold out texts of task.train, and encode all splits. Raises as `finetune`."""
    if attention not in backbone.attentions:
        raise MethodNotSupported(
            f"{backbone.name} cannot run with {attention} attention",
            location="--attention",
            hint=f"it can run with {' and '.join(sorted(backbone.attentions))} attention",
        )
    if not task.train or not task.valid:
        raise DataError(
            "no rows",
            location=task.full_name,
            hint="train and valid must have at least one row each",
        )
    keep_freed_memory()
    train: Sequence[Example] = task.train
    selection: Sequence[Example] = task.valid
    if task.select != "valid":
        train, selection = split_examples(task.train, task.held_out, seed)
    splits = (train, selection, task.valid)
    if task.training.rows == "tokenizer":
        max_length = official_max_row_length(backbone, task.training.max_length)
        rows = [encode_with_tokenizer(backbone, split, max_length) for split in splits]
    else:
        max_length = max_row_length(backbone, task.training.max_length)
        rows = [encode_examples(backbone, attention, split, max_length) for split in splits]
    return EncodedSplits(*rows)


@contextmanager
def explain_out_of_memory(location: str) -> Iterator[None]:
    """Raise TrainingError with a hint if torch runs out of memory inside."""
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
    """Build predictions from log-probabilities (n, classes). Add counts and warnings to history."""
    predictions = _build_predictions(task, splits.valid, logprobs)
    sizes = {name: len(getattr(splits, name)) for name in ("train", "selection", "valid")}
    truncated = {name: int(getattr(splits, name).truncated.sum()) for name in ("train", "valid")}
    collapsed = [*history["collapsed"], *collapse_warnings(predictions, task.metric)]
    history = history | {"collapsed": collapsed, **sizes, "cut": truncated}
    return FinetuneResult(predictions, history)


@dataclass(frozen=True, slots=True)
class BatchReader:
    """Pads rows to batches on a device, and maps a function over all rows without gradients."""

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
        use_bf16 = settings.dtype == "bfloat16"
        default_tokens = GPU_BATCH_TOKENS
        if device.type == "cpu":
            default_tokens = CPU_TOKENS_PER_THREAD * torch.get_num_threads()
        return cls(
            device=device,
            batch_tokens=settings.batch_tokens or default_tokens,
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=use_bf16),
            pad_id=resolve_pad_id(backbone),
            with_token_type_ids=backbone.has_token_type_ids and spec.token_types,
        )

    def read_batch(self, rows: EncodedExamples, indices: Int64) -> PaddedBatch:
        return pad_batch(rows, indices, self.pad_id, self.with_token_type_ids, self.device)

    def map_rows(
        self,
        function: Callable[[PaddedBatch], Tensor],
        rows: EncodedExamples,
        on_batch: Callable[[int], None] | None = None,
    ) -> Floats:
        """Apply a function to all rows in batches. Return its values (n, k) in fp64, in row order.

        function: a batch of b rows -> (b, k). on_batch: called with the number of rows of each
        batch.
        """
        values_by_batch, indices_by_batch = [], []
        max_tokens = INFERENCE_TOKENS_FACTOR * self.batch_tokens
        with torch.inference_mode(), self.autocast:
            for indices in micro_batches(rows.lengths, np.arange(len(rows)), max_tokens):
                values = function(self.read_batch(rows, indices))
                values_by_batch.append(values.float())
                indices_by_batch.append(indices)
                if on_batch:
                    on_batch(len(indices))
        sorted_values = np.concatenate(read_back(values_by_batch))
        values_by_row = np.empty_like(sorted_values)
        values_by_row[np.concatenate(indices_by_batch)] = sorted_values
        return values_by_row


@dataclass(slots=True)
class BestEpoch:
    """The best epoch so far. Of equally good epochs it is the first."""

    weights: dict[str, Tensor]
    """A copy on the CPU."""
    epoch: int = 0
    rank: tuple[float, float] = (-math.inf, -math.inf)
    """(selection score, tie breaker); higher is better."""

    def update_if_better(
        self, epoch: int, rank: tuple[float, float], weights: Mapping[str, Tensor]
    ) -> None:
        if rank > self.rank:
            self.epoch, self.rank = epoch, rank
            for name, best_weight in self.weights.items():
                best_weight.copy_(weights[name])


@dataclass(slots=True)
class TrainingCounts:
    """Counts over all epochs of one training."""

    total_updates: int
    updates: int = 0
    examples: int = 0
    seconds: float = 0.0


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
            parameters = [parameter for group in groups for parameter in group["params"]]
            groups = [{"params": parameters, "weight_decay": spec.weight_decay}]
        self.optimizer = optim.build_optimizer("adamw", groups, spec.lr, spec.betas, spec.eps)

    def train(
        self, rows: EncodedExamples, selection: EncodedExamples, callback: FinetuneCallback | None
    ) -> dict[str, Any]:
        """Train until the last epoch or until patience runs out; restore the best epoch's weights.

        Return the history: epochs, the best epoch, updates, examples per second, warnings.
        """
        spec = self.task.training
        weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        best = BestEpoch({name: p.to("cpu", copy=True) for name, p in weights.items()})
        counts = TrainingCounts(spec.epochs * updates_per_epoch(len(rows), spec))
        epochs: list[dict[str, Any]] = []
        warnings: list[str] = []
        for epoch in range(1, spec.epochs + 1):
            loss, seconds = self._train_epoch(rows, epoch, counts, callback)
            if not math.isfinite(loss):
                warnings.append(f"the loss became NaN at update {counts.updates + 1}")
                break
            score, selection_loss = self._evaluate_selection(selection)
            if not math.isfinite(selection_loss):
                warnings.append(f"the loss became NaN at update {counts.updates}")
                break
            epochs.append(
                {
                    "epoch": epoch,
                    "loss": loss,
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
        for name, best_weight in best.weights.items():
            weights[name].copy_(best_weight)
        warnings += unmoved_loss_warnings(
            [
                ([epoch["loss"] for epoch in epochs], rows.gold.astype(np.int32)),
                ([epoch["selection_loss"] for epoch in epochs], selection.gold.astype(np.int32)),
            ]
        )
        return {
            "epochs": epochs,
            "best": best.epoch,
            "updates": counts.updates,
            "examples_per_second": round(counts.examples / counts.seconds, 2),
            "attention": self.model.attention,
            "pooling": self.pooling,
            "collapsed": warnings,
        }

    def _train_epoch(
        self,
        rows: EncodedExamples,
        epoch: int,
        counts: TrainingCounts,
        callback: FinetuneCallback | None,
    ) -> tuple[float, float]:
        """Train for one epoch, and add to the counts.

        Return the mean loss per example (nats) and the seconds. A loss that is not finite ends the
        epoch and is returned.
        """
        spec = self.task.training
        loss_sum, num_examples, start_time = 0.0, 0, time.perf_counter()
        for indices in epoch_batches(rows.lengths, spec, self.seed, epoch):
            lr = learning_rate(spec, counts.updates, counts.total_updates)
            loss = self._train_step(rows, indices, counts.updates, lr)
            if not math.isfinite(loss):
                loss_sum = loss
                break
            counts.updates += 1
            num_examples += len(indices)
            loss_sum += loss * len(indices)
            if callback:
                callback.on_step_end(counts.updates, counts.total_updates, loss)
        seconds = time.perf_counter() - start_time
        counts.examples += num_examples
        counts.seconds += seconds
        return loss_sum / max(num_examples, 1), seconds

    def _train_step(
        self, rows: EncodedExamples, indices: Int64, update_index: int, lr: float
    ) -> float:
        """Make one update with the examples at `indices`. Return their mean loss in nats.

        If the loss or the gradient is not finite, the weights do not change, and the result is not
        finite either.
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
            gold = to_device(rows.gold[part], self.reader.device)
            loss = functional.cross_entropy(logits, gold, reduction="sum") / len(indices)
            loss.backward()
            losses.append(loss.detach())
        parameters = list(self.model.parameters())
        # The only values of an update that the host waits for.
        norm, *part_losses = read_scalars([optim.compute_gradient_norm(parameters), *losses])
        mean_loss = sum(part_losses)
        optim.clip_gradients(parameters, norm, self.task.training.clip)
        if math.isfinite(norm) and math.isfinite(mean_loss):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss if math.isfinite(norm) else math.nan

    def predict_logprobs(self, rows: EncodedExamples) -> Floats:
        """Return log-probabilities (n, classes), natural log."""
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
    score = load_confusion_metric(metric).score(confusion)
    return score, float(-logprobs[np.arange(len(logprobs)), gold].mean())


def learning_rate(spec: TrainingSpec, updates_done: int, total_updates: int) -> float:
    """Return the learning rate of the next update: a linear warm-up, then the schedule's decay, to
    0 (linear) or to the floor (cosine).
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
) -> Predictions:
    n, num_classes = len(task.valid), len(task.classes)
    labelled = [
        replace(example, gold=int(example.gold), labels={"task": task.name, **example.labels})
        for example in task.valid
    ]
    options = OptionColumns(
        counts=np.full(n, num_classes, np.int32),
        scores=logprobs.reshape(-1),
        tokens=np.repeat([len(ids) for ids in rows.ids], num_classes),
        characters=np.repeat(rows.characters_read, num_classes),
    )
    # The flags of an example stand in the order of its texts.
    flags = [
        (name, np.array([names[position : position + 1] == (name,) for names in rows.flags]))
        for position in range(max(map(len, rows.flags), default=0))
        for name in FLAGS
    ]
    flags.append(("cut", np.array(rows.truncated, bool)))
    return Predictions.build(labelled, logprobs.argmax(axis=1), options, flags)
