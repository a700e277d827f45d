"""Adaptive precision: score every item in bf16, and rescore doubtful ones in fp32.

An item is doubtful if its log-probability gap (best score minus second best) is within a bound of
the bf16 error. Errors grow with the number of tokens in which the options of an item differ, so
each item has its own bound: `factor` times the scale sqrt(base + per_token * tokens). All three
numbers are fitted to a sample of CALIBRATION_SIZE items of the suite (`ErrorBound.fit`).

The bound is an estimate and no guarantee. An item that is not rescored and whose error exceeds the
bound can get another choice than in fp32. docs/explanation/benchmarks.md has the measured rates.

A rescored item whose error exceeds its bound raises the bounds, and its chunk is searched for
doubtful items again.
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
# factor = max(2 x the largest error, 8 x the root mean square error), both in units of the scale
MAX_ERROR_FACTOR, RMS_ERROR_FACTOR = 2.0, 8.0


@dataclass(frozen=True, slots=True)
class ErrorBound:
    """A bound of the bf16 error of a log-probability gap (nats), for each item."""

    base: float
    """Part of the squared scale that all items share (nats^2)."""
    per_token: float
    """Squared scale per token in which the options differ (nats^2)."""
    factor: float
    """Bound in units of the scale."""

    @classmethod
    def fit(cls, errors: Floats, num_tokens: Floats) -> ErrorBound:
        """Return the bound that fits a sample of errors (n,), by least squares of their squares.

        num_tokens (n,): `count_differing_tokens`. The squares of larger errors scatter more, so an
        item weighs 1 / (num_tokens + their mean)^2.
        """
        x, squares = num_tokens, errors**2
        weights = 1 / np.maximum(x + x.mean(), 1) ** 2
        columns = np.stack([np.ones_like(x), x], axis=1) * np.sqrt(weights)[:, None]
        base, per_token = np.linalg.lstsq(columns, squares * np.sqrt(weights))[0]
        if per_token < 0:  # errors do not grow with the tokens
            base, per_token = np.average(squares, weights=weights), 0.0
        elif base < 0:
            base, per_token = 0.0, (weights * x * squares).sum() / (weights * x * x).sum()
        bound = cls(float(base), float(per_token), 1.0)
        return replace(bound, factor=bound.find_factor(errors, num_tokens))

    def find_factor(self, errors: Floats, num_tokens: Floats) -> float:
        """Return the factor for a sample of errors (n,)."""
        scaled = self._divide_by_scale(errors, num_tokens)
        rms_error = np.sqrt(np.mean(scaled**2))
        return float(max(MAX_ERROR_FACTOR * scaled.max(), RMS_ERROR_FACTOR * rms_error))

    def raise_to(self, errors: Floats, num_tokens: Floats) -> ErrorBound:
        """Return a bound with a factor of at least MAX_ERROR_FACTOR times these errors (n,)."""
        largest = float(self._divide_by_scale(errors, num_tokens).max(initial=0.0))
        return replace(self, factor=max(self.factor, MAX_ERROR_FACTOR * largest))

    def of_items(self, num_tokens: Floats) -> Floats:
        """Return the bound (n,) of each item in nats."""
        return self.factor * self._scale(num_tokens)

    def _scale(self, num_tokens: Floats) -> Floats:
        return np.sqrt(self.base + self.per_token * num_tokens)

    def _divide_by_scale(self, errors: Floats, num_tokens: Floats) -> Floats:
        scale = np.maximum(self._scale(num_tokens), np.finfo(float).tiny)
        return np.asarray(errors / scale)


@dataclass(frozen=True, slots=True)
class AdaptiveScorer:
    """A checkpoint opened in two precisions."""

    bf16_model: LanguageModel
    fp32_model: LanguageModel
    bounds: tuple[ErrorBound, ...] = ()
    """The estimated bounds of each method."""

    def calibrate(self, items: Sequence[Item], methods: Sequence[Method]) -> AdaptiveScorer:
        """Return a scorer with bounds measured on CALIBRATION_SIZE items spread over the suite."""
        sample = items[:: max(1, len(items) // CALIBRATION_SIZE)][:CALIBRATION_SIZE]
        bf16, fp32 = (
            predict(model, sample, methods) for model in (self.bf16_model, self.fp32_model)
        )
        bounds = tuple(
            ErrorBound.fit(_logprob_gap_errors(a, b), count_differing_tokens(sample, b))
            for a, b in zip(bf16, fp32, strict=True)
        )
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

        The bounds hold for sums of log-probabilities. With another reduction, all items are scored
        in fp32.
        """
        if reduction != "sum":
            results = predict(self.fp32_model, items, methods, tick, reduction)
            return [_with_fp32_flag(predictions) for predictions in results]
        results = predict(self.bf16_model, items, methods, tick)
        bounds = list(self.bounds)
        num_tokens = [count_differing_tokens(items, predictions) for predictions in results]
        in_bf16 = np.ones(len(items), bool)
        while True:
            masks = [
                _needs_rescoring(predictions, bound.of_items(tokens))
                for predictions, bound, tokens in zip(results, bounds, num_tokens, strict=True)
            ]
            doubtful = np.flatnonzero(np.any(masks, axis=0) & in_bf16)
            if not len(doubtful):
                return results
            fp32_results = predict(self.fp32_model, [items[n] for n in doubtful.tolist()], methods)
            for m, (predictions, fp32) in enumerate(zip(results, fp32_results, strict=True)):
                errors = _logprob_gap_errors(predictions.take(doubtful), fp32)
                bounds[m] = bounds[m].raise_to(errors, num_tokens[m][doubtful])
                results[m] = _replace_rows(predictions, doubtful, _with_fp32_flag(fp32))
            in_bf16[doubtful] = False


def count_differing_tokens(items: Sequence[Item], predictions: Predictions) -> Floats:
    """Return about how many scored tokens follow the characters that all options of an item share,
    (n,), of the option with the most.

    It is estimated from the characters, as if all tokens of an option had the same length.
    """
    tokens = predictions.padded("tokens")
    share = np.zeros(tokens.shape)
    share[predictions.valid] = [
        1 - shared / max(len(option.text), 1)
        for item in items
        for shared in [_count_shared_characters([option.text for option in item.options])]
        for option in item.options
    ]
    return np.asarray((tokens * share).max(axis=1))


def _count_shared_characters(texts: Sequence[str]) -> int:
    """Return the length of the longest common prefix."""
    first, last = min(texts), max(texts)
    pairs = zip(first, last, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))


def _with_fp32_flag(predictions: Predictions) -> Predictions:
    return predictions.with_flag("float32", np.ones(len(predictions), bool))


def _replace_rows(
    predictions: Predictions, rows: NDArray[np.integer], replacements: Predictions
) -> Predictions:
    """Return predictions with other rows in place of some. rows: where the replacements belong."""
    order = np.arange(len(predictions))
    order[rows] = len(predictions) + np.arange(len(rows))
    return concat_predictions([predictions, replacements]).take(order)


def _needs_rescoring(predictions: Predictions, bounds: Floats) -> Bools:
    """Return where fp32 may prefer another option (n,): the gap is within its bound (n,)."""
    if predictions.has_ratings:  # a correlation needs exact scores
        return np.ones(len(predictions), bool)
    scores = np.where(predictions.valid, predictions.padded("scores"), -np.inf)
    second, best = np.sort(scores, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):  # -inf - -inf: options of probability 0
        return np.asarray((best - second <= bounds) & ~predictions.has_flag("too-long"))


def _logprob_gap_errors(bf16_predictions: Predictions, fp32_predictions: Predictions) -> Floats:
    """Return per item the largest bf16 error (nats) of a gap between two of its options."""
    bf16, fp32 = (p.padded("scores") for p in (bf16_predictions, fp32_predictions))
    valid = fp32_predictions.valid
    finite = np.isfinite(fp32)  # a published wrapper gives some ids probability 0
    error = np.subtract(bf16, fp32, out=np.zeros(fp32.shape), where=finite & valid)
    largest = error.max(axis=1, where=valid, initial=-np.inf)
    smallest = error.min(axis=1, where=valid, initial=np.inf)
    return np.asarray(largest - smallest)
