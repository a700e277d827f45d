"""Adaptive precision: bf16 for every item, fp32 again for those whose margin bf16 cannot be trusted
with.

The error of a margin (best score minus second best) is measured, not assumed: on a sample of the
suite before it starts, and again on every item that is rescored. Decisions are those of fp32 as
long as no error exceeds the bound; a rescored item that does exceed it widens the bound for its
chunk, which is then searched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.multiple_choice import predict
from antlm_bench.types import Item, LanguageModel, Prediction, ProgressCallback

CALIBRATION_SIZE = 256  # items scored both ways before a suite starts
MAX_ERROR_FACTOR, RMS_ERROR_FACTOR = (
    2.0,
    8.0,
)  # bound = the larger of 2 x the largest and 8 x the root mean square error seen


@dataclass(frozen=True, slots=True)
class AdaptiveScorer:
    """A quick and an exact model of one checkpoint, and the measured bound (nats) of a margin's
    error per method.
    """

    bf16_model: LanguageModel
    fp32_model: LanguageModel
    bounds: tuple[float, ...] = ()

    def calibrate(self, items: Sequence[Item], methods: Sequence[Method]) -> AdaptiveScorer:
        """With bounds measured on up to SAMPLE items spread over the suite."""
        sample = items[:: max(1, len(items) // CALIBRATION_SIZE)][:CALIBRATION_SIZE]
        quick, exact = (
            predict(model, sample, methods) for model in (self.bf16_model, self.fp32_model)
        )
        return replace(
            self, bounds=tuple(_error_bound(q, e) for q, e in zip(quick, exact, strict=True))
        )

    def predict(
        self,
        items: Sequence[Item],
        methods: Sequence[Method],
        tick: ProgressCallback | None = None,
        reduction: str = "sum",
    ) -> list[list[Prediction]]:
        """As choice.predict; rescored items carry the flag float32 and their fp32 scores, the
        others bf16 ones.

        The bounds are of sums: where a mean decides, every item is scored in fp32.
        """
        if reduction != "sum":
            found = predict(self.fp32_model, items, methods, tick, reduction)
            return [[replace(p, flags=(*p.flags, "float32")) for p in some] for some in found]
        results = predict(self.bf16_model, items, methods, tick)
        bounds, exact = list(self.bounds), [False] * len(items)
        while True:
            doubtful = [
                number
                for number in range(len(items))
                if not exact[number]
                and any(
                    _needs_rescoring(r[number], b) for r, b in zip(results, bounds, strict=True)
                )
            ]
            if not doubtful:
                return results
            again = predict(self.fp32_model, [items[n] for n in doubtful], methods)
            for column, (rescored, result) in enumerate(zip(again, results, strict=True)):
                bounds[column] = max(
                    bounds[column],
                    MAX_ERROR_FACTOR
                    * _logprob_gap_errors([result[n] for n in doubtful], rescored).max(),
                )
                for number, prediction in zip(doubtful, rescored, strict=True):
                    result[number] = replace(prediction, flags=(*prediction.flags, "float32"))
            for number in doubtful:
                exact[number] = True


def _needs_rescoring(prediction: Prediction, bound: float) -> bool:
    """Graded gold (a correlation, not a choice) always wants exact scores; so does a margin within
    the bound.
    """
    if isinstance(prediction.gold, float):
        return True
    if "too-long" in prediction.flags:
        return False
    best, second = sorted(prediction.scores, reverse=True)[:2]
    return best - second <= bound


def _logprob_gap_errors(
    bf16_predictions: Sequence[Prediction], fp32_predictions: Sequence[Prediction]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Per item, the largest error of any difference between two of its options, in nats."""
    errors = []
    for q, e in zip(bf16_predictions, fp32_predictions, strict=True):
        finite = np.isfinite(e.scores)  # a published wrapper gives some ids no probability at all
        off = np.subtract(q.scores, e.scores, out=np.zeros(len(finite)), where=finite)
        errors.append(float(off.max() - off.min()))
    return np.array(errors)


def _error_bound(
    bf16_predictions: Sequence[Prediction], fp32_predictions: Sequence[Prediction]
) -> float:
    errors = _logprob_gap_errors(bf16_predictions, fp32_predictions)
    return float(
        max(MAX_ERROR_FACTOR * errors.max(), RMS_ERROR_FACTOR * np.sqrt(np.mean(errors**2)))
    )
