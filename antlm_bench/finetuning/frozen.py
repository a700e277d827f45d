"""Fit a logistic regression on the pooled features of a frozen backbone (a linear probe).

The backbone stays as it is: every text is read once, and scikit-learn's LogisticRegression learns
the classes from one vector per text. The result says how well the classes can be read from the
checkpoint's own features; it is not a finetuning result.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from antlm_bench.checkpoints import Backbone
from antlm_bench.errors import CheckpointError, DataError
from antlm_bench.finetuning.data import EncodedExamples
from antlm_bench.finetuning.heads import PooledBackbone, resolve_pooling
from antlm_bench.finetuning.loop import (
    BatchReader,
    FinetuneResult,
    FinetuneSettings,
    build_result,
    encode_splits,
    evaluate_selection,
    explain_out_of_memory,
    log_softmax,
)
from antlm_bench.types import Attention, Floats

if TYPE_CHECKING:
    from antlm_bench.suites.classification_loader import ClassificationTask

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # inverse strengths of the L2 penalty
MAX_ITERATIONS = 1000  # of lbfgs, scikit-learn's deterministic default solver
ABSENT_CLASS_LOGPROB = float(
    np.log(np.finfo(np.float64).tiny)
)  # finite, as files of scores must be


def fit_frozen(
    backbone: Backbone,
    task: ClassificationTask,
    seed: int,
    attention: Attention,
    settings: FinetuneSettings,
    on_batch: Callable[[int], None] | None = None,
) -> FinetuneResult:
    """Fit a classifier on the features of task.train and predict `task.valid`.

    Features are standardised on the training split. C is chosen out of C_GRID on the held-out
    split: the best score of the task's metric, then the lowest loss, then the smallest C. The fit
    on the training split with that C predicts. `seed` only decides which texts are held out; the
    fit itself is deterministic. on_batch: called with the number of texts of each batch.

    Raises as `loop.finetune`; CheckpointError if a feature is not finite, DataError if the training
    split holds one class only.
    """
    splits = encode_splits(backbone, task, seed, attention)
    pooling = resolve_pooling(backbone, attention, settings.pooling, task.training.pooling)
    reader = BatchReader.for_task(backbone, task.training, settings)
    with explain_out_of_memory(f"{backbone.name} {task.full_name}"):
        model = PooledBackbone(
            copy.deepcopy(backbone.model).to(reader.device),
            native_attention=backbone.native_attention,
            attention=attention,
            pooling=pooling,
        ).eval()
        train, selection, valid = (
            _compute_features(model, reader, rows, backbone.name, on_batch)
            for rows in (splits.train, splits.selection, splits.valid)
        )
    gold = splits.train.gold
    if len(np.unique(gold)) < 2:
        raise DataError(
            f"one class only: every label of the training split is {task.classes[gold[0]]!r}",
            location=task.full_name,
            hint="give more rows to train on",
        )
    scaler = StandardScaler(copy=False).fit(train)
    train, selection, valid = (scaler.transform(features) for features in (train, selection, valid))
    best: tuple[tuple[float, float], float, LogisticRegression] | None = None
    candidates: list[dict[str, Any]] = []
    for c in C_GRID:
        model_of_c, converged = _fit_logistic_regression(train, gold, c)
        logprobs = _predict_logprobs(model_of_c, selection, len(task.classes))
        score, loss = evaluate_selection(task.metric, logprobs, splits.selection.gold)
        candidates.append(
            {"C": c, "selection": score, "selection_loss": loss, "converged": converged}
        )
        if best is None or (score, -loss) > best[0]:
            best = (score, -loss), c, model_of_c
    assert best
    history = {
        "C": best[1],
        "candidates": candidates,
        "features": train.shape[1],
        "attention": attention,
        "pooling": pooling,
        "collapsed": [],
    }
    return build_result(task, splits, _predict_logprobs(best[2], valid, len(task.classes)), history)


def _compute_features(
    model: PooledBackbone,
    reader: BatchReader,
    rows: EncodedExamples,
    name: str,
    on_batch: Callable[[int], None] | None,
) -> Floats:
    """Return the pooled hidden states (n, d) of all rows. Raises CheckpointError."""
    features = reader.map_rows(model, rows, on_batch)
    if bad := int((~np.isfinite(features).all(axis=1)).sum()):
        raise CheckpointError(
            f"the hidden states of {bad} of {len(features)} texts are not finite",
            location=name,
            hint="--dtype float32, or check the checkpoint's weights: antlm-bench doctor",
        )
    return features


def _fit_logistic_regression(
    features: Floats, gold: Any, c: float
) -> tuple[LogisticRegression, bool]:
    """Fit with inverse penalty `c`; return the model, and whether the solver converged."""
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, gold)
    return model, bool((model.n_iter_ < MAX_ITERATIONS).all())


def _predict_logprobs(model: LogisticRegression, features: Floats, num_classes: int) -> Floats:
    """Return log-probabilities (n, num_classes), natural log.

    They are taken from the logits, because the logarithm of a probability that is rounded to 0 is
    not finite. A class without a training text gets ABSENT_CLASS_LOGPROB.
    """
    logits = np.asarray(model.decision_function(features))
    if logits.ndim == 1:  # two classes: the logit of the second, where the first has 0
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    logprobs = np.full((len(features), num_classes), ABSENT_CLASS_LOGPROB)
    logprobs[:, model.classes_] = log_softmax(logits)
    return logprobs
