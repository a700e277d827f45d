"""Adaptive precision: score every item in bf16, and again in fp32 where bf16 may decide otherwise.

The bf16 error of a log-probability gap (best score minus second best) is measured: on a sample of
the suite before it starts, and on every item that is rescored. Decisions are those of fp32 as long
as no error exceeds the bound. A rescored item that exceeds it raises the bound for its chunk, which
is then searched again.
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
# bound = the larger of 2 x the largest error and 8 x the root mean square error
MAX_ERROR_FACTOR, RMS_ERROR_FACTOR = 2.0, 8.0


@dataclass(frozen=True, slots=True)
class AdaptiveScorer:
    """One checkpoint in two precisions."""

    bf16_model: LanguageModel
    fp32_model: LanguageModel
    bounds: tuple[float, ...] = ()
    """Per method, the bound (nats) of the bf16 error of a gap."""

    def calibrate(self, items: Sequence[Item], methods: Sequence[Method]) -> AdaptiveScorer:
        """Return a scorer with bounds measured on CALIBRATION_SIZE items spread over the suite."""
        sample = items[:: max(1, len(items) // CALIBRATION_SIZE)][:CALIBRATION_SIZE]
        bf16, fp32 = (
            predict(model, sample, methods) for model in (self.bf16_model, self.fp32_model)
        )
        bounds = tuple(_error_bound(a, b) for a, b in zip(bf16, fp32, strict=True))
        return replace(self, bounds=bounds)

    def predict(
        self,
        items: Sequence[Item],
        methods: Sequence[Method],
        tick: ProgressCallback | None = None,
        reduction: str = "sum",
    ) -> list[Predictions]:
        """Return predictions as `multiple_choice.predict`. Rescored items have fp32 scores and the
        flag float32, the others bf16 scores.

        The bounds are bounds of sums: where a mean decides, every item is scored in fp32.
        """
        if reduction != "sum":
            exact = predict(self.fp32_model, items, methods, tick, reduction)
            return [_with_fp32_flag(predictions) for predictions in exact]
        results = predict(self.bf16_model, items, methods, tick)
        bounds, rescored = list(self.bounds), np.zeros(len(items), bool)
        while True:
            masks = [_needs_rescoring(r, bound) for r, bound in zip(results, bounds, strict=True)]
            doubtful = np.flatnonzero(np.any(masks, axis=0) & ~rescored)
            if not len(doubtful):
                return results
            exact = predict(self.fp32_model, [items[n] for n in doubtful.tolist()], methods)
            for method_index, (fp32, result) in enumerate(zip(exact, results, strict=True)):
                error = _logprob_gap_errors(result.take(doubtful), fp32).max()
                bounds[method_index] = max(bounds[method_index], MAX_ERROR_FACTOR * error)
                results[method_index] = _replace_rows(result, doubtful, _with_fp32_flag(fp32))
            rescored[doubtful] = True


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
    """Return where fp32 may decide otherwise (n,): the gap is within the bound, or the golds are
    ratings (a correlation needs exact scores).
    """
    if predictions.has_ratings:
        return np.ones(len(predictions), bool)
    scores = np.where(predictions.valid, predictions.padded("scores"), -np.inf)
    second, best = np.sort(scores, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):  # -inf - -inf: options of probability 0
        return np.asarray((best - second <= bound) & ~predictions.has_flag("too-long"))


def _logprob_gap_errors(bf16_predictions: Predictions, fp32_predictions: Predictions) -> Floats:
    """Return per item the largest error (nats) of a difference between two of its options."""
    bf16, fp32 = (p.padded("scores") for p in (bf16_predictions, fp32_predictions))
    valid = fp32_predictions.valid
    finite = np.isfinite(fp32)  # a published wrapper gives some ids probability 0
    error = np.subtract(bf16, fp32, out=np.zeros(fp32.shape), where=finite & valid)
    largest = error.max(axis=1, where=valid, initial=-np.inf)
    smallest = error.min(axis=1, where=valid, initial=np.inf)
    return np.asarray(largest - smallest)


def _error_bound(bf16_predictions: Predictions, fp32_predictions: Predictions) -> float:
    errors = _logprob_gap_errors(bf16_predictions, fp32_predictions)
    return float(
        max(MAX_ERROR_FACTOR * errors.max(), RMS_ERROR_FACTOR * np.sqrt(np.mean(errors**2)))
    )
