"""Adaptive precision: score every item in bf16, and rescore doubtful ones in fp32.

An item is doubtful if its log-probability gap (best score minus second best) is within a bound of
the bf16 error. The error is measured on a sample of the suite at the start, and on every rescored
item. Predictions equal those of fp32 as long as no error exceeds the bound. A rescored item whose
error exceeds it raises the bound, and its chunk is searched for doubtful items again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.multiple_choice import predict
from antlm_bench.types import Item, LanguageModel, Prediction, ProgressCallback

CALIBRATION_SIZE = 256  # items scored in both precisions before a suite starts
# bound = max(2 x the largest error, 8 x the root mean square error)
MAX_ERROR_FACTOR, RMS_ERROR_FACTOR = 2.0, 8.0


@dataclass(frozen=True, slots=True)
class AdaptiveScorer:
    """A checkpoint opened in two precisions."""

    bf16_model: LanguageModel
    fp32_model: LanguageModel
    bounds: tuple[float, ...] = ()
    """Per method, the bound (nats) of the bf16 error of a log-probability gap."""

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
    ) -> list[list[Prediction]]:
        """Return predictions as `multiple_choice.predict`. Rescored items have fp32 scores and the
        flag float32, the others bf16 scores.

        The bounds hold for sums of log-probabilities. With another reduction, all items are scored
        in fp32.
        """
        if reduction != "sum":
            results = predict(self.fp32_model, items, methods, tick, reduction)
            return [[_with_fp32_flag(p) for p in predictions] for predictions in results]
        results = predict(self.bf16_model, items, methods, tick)
        bounds = list(self.bounds)
        in_bf16 = set(range(len(items)))
        while True:
            doubtful = [
                n
                for n in sorted(in_bf16)
                if any(_needs_rescoring(r[n], b) for r, b in zip(results, bounds, strict=True))
            ]
            if not doubtful:
                return results
            fp32_results = predict(self.fp32_model, [items[n] for n in doubtful], methods)
            for m, (predictions, fp32) in enumerate(zip(results, fp32_results, strict=True)):
                error = _logprob_gap_errors([predictions[n] for n in doubtful], fp32).max()
                bounds[m] = max(bounds[m], MAX_ERROR_FACTOR * error)
                for n, fp32_prediction in zip(doubtful, fp32, strict=True):
                    predictions[n] = _with_fp32_flag(fp32_prediction)
            in_bf16.difference_update(doubtful)


def _with_fp32_flag(prediction: Prediction) -> Prediction:
    return replace(prediction, flags=(*prediction.flags, "float32"))


def _needs_rescoring(prediction: Prediction, bound: float) -> bool:
    """Return whether fp32 may prefer another option, because the gap is within the bound."""
    if isinstance(prediction.gold, float):  # a rating: a correlation needs exact scores
        return True
    if "too-long" in prediction.flags:
        return False
    best, second = sorted(prediction.scores, reverse=True)[:2]
    return best - second <= bound


def _logprob_gap_errors(
    bf16_predictions: Sequence[Prediction], fp32_predictions: Sequence[Prediction]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return per item the largest bf16 error (nats) of a gap between two of its options."""
    errors = []
    for bf16, fp32 in zip(bf16_predictions, fp32_predictions, strict=True):
        finite = np.isfinite(fp32.scores)  # a published wrapper gives some ids probability 0
        error = np.subtract(bf16.scores, fp32.scores, out=np.zeros(len(finite)), where=finite)
        errors.append(float(error.max() - error.min()))
    return np.array(errors)


def _error_bound(
    bf16_predictions: Sequence[Prediction], fp32_predictions: Sequence[Prediction]
) -> float:
    errors = _logprob_gap_errors(bf16_predictions, fp32_predictions)
    rms_error = np.sqrt(np.mean(errors**2))
    return float(max(MAX_ERROR_FACTOR * errors.max(), RMS_ERROR_FACTOR * rms_error))
