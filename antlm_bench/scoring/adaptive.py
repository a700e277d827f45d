"""Adaptive precision: bf16 for every item, fp32 again for those whose margin bf16 cannot be trusted with.

The error of a margin (best score minus second best) is measured, not assumed: on a sample of the suite before it
starts, and again on every item that is rescored. Decisions are those of fp32 as long as no error exceeds the bound;
a rescored item that does exceed it widens the bound for its chunk, which is then searched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from antlm_bench.scoring.multiple_choice import Tick, predict
from antlm_bench.scoring.probes import Method
from antlm_bench.types import Item, LanguageModel, Prediction

SAMPLE = 256  # items scored both ways before a suite starts
OVER_MAX, OVER_RMS = 2.0, 8.0  # bound = the larger of 2 x the largest and 8 x the root mean square error seen


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A quick and an exact model of one checkpoint, and the measured bound (nats) of a margin's error per method."""

    quick: LanguageModel
    exact: LanguageModel
    bounds: tuple[float, ...] = ()

    def calibrated(self, items: Sequence[Item], methods: Sequence[Method]) -> Adaptive:
        """With bounds measured on up to SAMPLE items spread over the suite."""
        sample = items[:: max(1, len(items) // SAMPLE)][:SAMPLE]
        quick, exact = (predict(model, sample, methods) for model in (self.quick, self.exact))
        return replace(self, bounds=tuple(_bound(q, e) for q, e in zip(quick, exact, strict=True)))

    def predict(
        self, items: Sequence[Item], methods: Sequence[Method], tick: Tick | None = None, reduction: str = "sum"
    ) -> list[list[Prediction]]:
        """As choice.predict; rescored items carry the flag float32 and their fp32 scores, the others bf16 ones.

        The bounds are of sums: where a mean decides, every item is scored in fp32.
        """
        if reduction != "sum":
            found = predict(self.exact, items, methods, tick, reduction)
            return [[replace(p, flags=(*p.flags, "float32")) for p in some] for some in found]
        results = predict(self.quick, items, methods, tick)
        bounds, exact = list(self.bounds), [False] * len(items)
        while True:
            doubtful = [
                number
                for number in range(len(items))
                if not exact[number] and any(_doubtful(r[number], b) for r, b in zip(results, bounds, strict=True))
            ]
            if not doubtful:
                return results
            again = predict(self.exact, [items[n] for n in doubtful], methods)
            for column, (rescored, result) in enumerate(zip(again, results, strict=True)):
                bounds[column] = max(bounds[column], OVER_MAX * _errors([result[n] for n in doubtful], rescored).max())
                for number, prediction in zip(doubtful, rescored, strict=True):
                    result[number] = replace(prediction, flags=(*prediction.flags, "float32"))
            for number in doubtful:
                exact[number] = True


def _doubtful(prediction: Prediction, bound: float) -> bool:
    """Graded gold (a correlation, not a choice) always wants exact scores; so does a margin within the bound."""
    if isinstance(prediction.gold, float):
        return True
    if "too-long" in prediction.flags:
        return False
    best, second = sorted(prediction.scores, reverse=True)[:2]
    return best - second <= bound


def _errors(quick: Sequence[Prediction], exact: Sequence[Prediction]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Per item, the largest error of any difference between two of its options, in nats."""
    errors = []
    for q, e in zip(quick, exact, strict=True):
        finite = np.isfinite(e.scores)  # a published wrapper gives some ids no probability at all
        off = np.subtract(q.scores, e.scores, out=np.zeros(len(finite)), where=finite)
        errors.append(float(off.max() - off.min()))
    return np.array(errors)


def _bound(quick: Sequence[Prediction], exact: Sequence[Prediction]) -> float:
    errors = _errors(quick, exact)
    return float(max(OVER_MAX * errors.max(), OVER_RMS * np.sqrt(np.mean(errors**2))))
