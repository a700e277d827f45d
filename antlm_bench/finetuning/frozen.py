"""Fit a logistic regression on the pooled hidden states of a frozen backbone (a linear probe).

The backbone is not trained. It computes one feature vector per text, and scikit-learn's
LogisticRegression learns the classes from these. The result says how well the classes can be read
from the checkpoint's hidden states; it is not a finetuning result.
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
MAX_ITERATIONS = 1000  # of lbfgs, scikit-learn's default solver, which is deterministic
ABSENT_CLASS_LOGPROB = float(np.log(np.finfo(np.float64).tiny))
"""Log-probability of a class without a training text. It is finite, as prediction files require."""


def fit_frozen(
    backbone: Backbone,
    task: ClassificationTask,
    seed: int,
    attention: Attention,
    settings: FinetuneSettings,
    on_batch: Callable[[int], None] | None = None,
) -> FinetuneResult:
    """Fit a logistic regression on the features of task.train, and predict `task.valid`.

    Features are standardised on the training split. The C out of C_GRID whose fit is best on the
    held-out split is used: highest task metric, then lowest loss, then smallest C. `seed` only
    decides which texts are held out; the fit is deterministic. on_batch: called with the number of
    texts of each batch.

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
    classifiers: list[LogisticRegression] = []
    candidates: list[dict[str, Any]] = []
    for c in C_GRID:
        classifier, converged = _fit_logistic_regression(train, gold, c)
        logprobs = _predict_logprobs(classifier, selection, len(task.classes))
        score, loss = evaluate_selection(task.metric, logprobs, splits.selection.gold)
        classifiers.append(classifier)
        candidates.append(
            {"C": c, "selection": score, "selection_loss": loss, "converged": converged}
        )
    # `max` returns the first of equally good candidates, which has the smallest C.
    ranks = [(candidate["selection"], -candidate["selection_loss"]) for candidate in candidates]
    best = max(range(len(C_GRID)), key=ranks.__getitem__)
    history = {
        "C": C_GRID[best],
        "candidates": candidates,
        "features": train.shape[1],
        "attention": attention,
        "pooling": pooling,
        "collapsed": [],
    }
    logprobs = _predict_logprobs(classifiers[best], valid, len(task.classes))
    return build_result(task, splits, logprobs, history)


def _compute_features(
    model: PooledBackbone,
    reader: BatchReader,
    rows: EncodedExamples,
    name: str,
    on_batch: Callable[[int], None] | None,
) -> Floats:
    """Return the pooled hidden states (n, d). Raises CheckpointError if one is not finite."""
    features = reader.map_rows(model, rows, on_batch)
    num_bad = int((~np.isfinite(features).all(axis=1)).sum())
    if num_bad:
        raise CheckpointError(
            f"the hidden states of {num_bad} of {len(features)} texts are not finite",
            location=name,
            hint="--dtype float32, or check the checkpoint's weights: antlm-bench doctor",
        )
    return features


def _fit_logistic_regression(
    features: Floats, gold: Any, c: float
) -> tuple[LogisticRegression, bool]:
    """Fit with inverse penalty `c`. Return the model, and whether the solver converged."""
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, gold)
    return model, bool((model.n_iter_ < MAX_ITERATIONS).all())


def _predict_logprobs(model: LogisticRegression, features: Floats, num_classes: int) -> Floats:
    """Return log-probabilities (n, num_classes), natural log.

    They are computed from the logits, because the logarithm of a probability that is rounded to 0
    is not finite. A class without a training text gets ABSENT_CLASS_LOGPROB.
    """
    logits = np.asarray(model.decision_function(features))
    if logits.ndim == 1:  # of two classes scikit-learn gives the second logit; the first is 0
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    logprobs = np.full((len(features), num_classes), ABSENT_CLASS_LOGPROB)
    logprobs[:, model.classes_] = log_softmax(logits)
    return logprobs
