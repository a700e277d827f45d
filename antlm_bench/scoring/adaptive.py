"""Adaptive precision: score every item in low precision, and rescore doubtful ones in fp32.

Low precision is int8 in linear layers where that is faster, else bf16
(`checkpoints.build_adaptive_scorer`). An item is doubtful if its log-probability gap (best score
minus second best) is within a bound of the error of low precision. The bound is an estimate: twice
the largest error, or eight root mean square errors, of a sample of CALIBRATION_SIZE items of the
suite. It is no guarantee. An item that is not rescored and whose error exceeds the bound can get
another choice than in fp32. docs/explanation/benchmarks.md has the measured rates.

A rescored item whose error exceeds the bound raises it, and its chunk is searched for doubtful
items again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antlm_bench.predictions import Predictions, concat_predictions
from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.multiple_choice import predict
from antlm_bench.types import Bools, Floats, Item, LanguageModel, ProgressCallback

CALIBRATION_SIZE = 256  # items scored in both precisions before a suite starts
# bound = max(2 x the largest error, 8 x the root mean square error)
MAX_ERROR_FACTOR, RMS_ERROR_FACTOR = 2.0, 8.0


@dataclass(frozen=True, slots=True)
class AdaptiveScorer:
    """A checkpoint opened in two precisions."""

    fast_model: LanguageModel
    """The model in low precision."""
    fp32_model: LanguageModel
    bounds: tuple[float, ...] = ()
    """Per method, the estimated bound (nats) of the fast model's error of a log-probability gap."""
    is_int8: bool = False
    """Whether the fast model computes in int8. If so, items with its scores have the flag int8."""

    def calibrate(self, items: Sequence[Item], methods: Sequence[Method]) -> AdaptiveScorer:
        """Return a scorer with bounds measured on CALIBRATION_SIZE items spread over the suite."""
        sample = items[:: max(1, len(items) // CALIBRATION_SIZE)][:CALIBRATION_SIZE]
        fast, fp32 = (
            predict(model, sample, methods) for model in (self.fast_model, self.fp32_model)
        )
        bounds = tuple(_error_bound(a, b) for a, b in zip(fast, fp32, strict=True))
        return replace(self, bounds=bounds)

    def predict(
        self,
        items: Sequence[Item],
        methods: Sequence[Method],
        tick: ProgressCallback | None = None,
        reduction: str = "sum",
    ) -> list[Predictions]:
        """Return predictions as `multiple_choice.predict`. Rescored items have fp32 scores and the
        flag float32. The others have scores of the fast model, and the flag int8 if that model
        computes in int8.

        The bounds hold for sums of log-probabilities. With another reduction, all items are scored
        in fp32.
        """
        if reduction != "sum":
            results = predict(self.fp32_model, items, methods, tick, reduction)
            return [_with_fp32_flag(predictions) for predictions in results]
        results = predict(self.fast_model, items, methods, tick)
        bounds = list(self.bounds)
        is_fast = np.ones(len(items), bool)
        while True:
            masks = [_needs_rescoring(r, bound) for r, bound in zip(results, bounds, strict=True)]
            doubtful = np.flatnonzero(np.any(masks, axis=0) & is_fast)
            if not len(doubtful):
                if not self.is_int8:
                    return results
                return [r.with_flag("int8", is_fast & ~r.has_flag("too-long")) for r in results]
            fp32_results = predict(self.fp32_model, [items[n] for n in doubtful.tolist()], methods)
            for m, (predictions, fp32) in enumerate(zip(results, fp32_results, strict=True)):
                error = _logprob_gap_errors(predictions.take(doubtful), fp32).max()
                bounds[m] = max(bounds[m], MAX_ERROR_FACTOR * error)
                results[m] = _replace_rows(predictions, doubtful, _with_fp32_flag(fp32))
            is_fast[doubtful] = False


def _with_fp32_flag(predictions: Predictions) -> Predictions:
    return predictions.with_flag("float32", np.ones(len(predictions), bool))


def _replace_rows(
    predictions: Predictions, rows: NDArray[np.integer], replacements: Predictions
) -> Predictions:
    """Return predictions with other rows in place of some. rows: where the replacements belong."""
    order = np.arange(len(predictions))
    order[rows] = len(predictions) + np.arange(len(rows))
    return concat_predictions([predictions, replacements]).take(order)


def _needs_rescoring(predictions: Predictions, bound: float) -> Bools:
    """Return where fp32 may prefer another option (n,), because the gap is within the bound."""
    if predictions.has_ratings:  # a correlation needs exact scores
        return np.ones(len(predictions), bool)
    scores = np.where(predictions.valid, predictions.padded("scores"), -np.inf)
    second, best = np.sort(scores, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):  # -inf - -inf: options of probability 0
        return np.asarray((best - second <= bound) & ~predictions.has_flag("too-long"))


def _logprob_gap_errors(fast_predictions: Predictions, fp32_predictions: Predictions) -> Floats:
    """Return per item the fast model's largest error (nats) of a gap between two of its options."""
    fast, fp32 = (p.padded("scores") for p in (fast_predictions, fp32_predictions))
    valid = fp32_predictions.valid
    finite = np.isfinite(fp32)  # a published wrapper gives some ids probability 0
    error = np.subtract(fast, fp32, out=np.zeros(fp32.shape), where=finite & valid)
    largest = error.max(axis=1, where=valid, initial=-np.inf)
    smallest = error.min(axis=1, where=valid, initial=np.inf)
    return np.asarray(largest - smallest)


def _error_bound(fast_predictions: Predictions, fp32_predictions: Predictions) -> float:
    errors = _logprob_gap_errors(fast_predictions, fp32_predictions)
    rms_error = np.sqrt(np.mean(errors**2))
    return float(max(MAX_ERROR_FACTOR * errors.max(), RMS_ERROR_FACTOR * rms_error))
