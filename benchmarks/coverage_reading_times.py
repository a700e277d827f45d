"""Simulate intervals and tests of partial R2 on sentences like those of the reading suites.

`coverage.py` prints the results. A sample has 205 sentences with 1,726 words, four eye-tracking
times with correlated errors and one self-paced time; errors are skewed, and the words of a sentence
share a part of their errors and of their surprisal. Sizes and correlations are those of the suite's
data. Surprisal is independent of the other predictors given its linear part, so the true partial R2
is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.intervals import Interval
from antlm_bench.statistics.regression import (
    NestedRegression,
    PartialCorrelations,
    design_with_interactions,
    partial_correlations,
    partial_r2_difference,
    partial_r2_test,
)
from antlm_bench.types import Floats

MIN_COVERAGE, MAX_FALSE_POSITIVES = 0.93, 0.055
SENTENCE_LENGTHS = dict(zip(range(4, 15), (12, 21, 25, 24, 30, 16, 21, 28, 16, 7, 5), strict=True))
"""Scored words of a sentence -> number of sentences."""
EYE_CORRELATIONS = np.array(
    [[1, 0.91, 0.56, 0.85], [0.91, 1, 0.63, 0.94], [0.56, 0.63, 1, 0.78], [0.85, 0.94, 0.78, 1]]
)
"""Correlations of the errors of the four eye-tracking times."""
SENTENCE_SHARES = (0.02, 0.02, 0.02, 0.02, 0.2)
"""Share of each time's error variance that the words of a sentence share."""
SURPRISAL_SENTENCE_SHARE = 0.2
"""Share of the variance of surprisal that the words of a sentence share."""
WEIGHTS = {
    "headline": (0.125, 0.125, 0.125, 0.125, 0.5),
    "eye tracking": (0.25, 0.25, 0.25, 0.25, 0.0),
    "self-paced": (0.0, 0.0, 0.0, 0.0, 1.0),
}
"""Score -> weight of each time."""


@dataclass(frozen=True, slots=True)
class ReadingCase:
    """A population of words, and one or two runs."""

    name: str
    r2: float
    """True partial R2 of the signal, in every time."""
    signal: tuple[float, ...] = (1.0,)
    """Correlation of each run's surprisal with the signal."""
    shared_noise: float = 0.0
    """Correlation of the noise of two runs."""
    num_sentences: int = 205

    @property
    def truth(self) -> float:
        """True partial R2 of one run, or its difference between two runs."""
        values = [self.r2 * correlation**2 for correlation in self.signal]
        return values[-1] - (values[0] if len(values) > 1 else 0.0)


READING_CASES = (
    *(ReadingCase(f"partial R2 of {r2:g}", r2) for r2 in (0.0, 0.001, 0.005, 0.02)),
    *(ReadingCase(f"partial R2 of {r2:g}, 40 sentences", r2, num_sentences=40) for r2 in (0, 0.02)),
    ReadingCase("two runs of 0", 0.0, (0.8, 0.8)),
    ReadingCase("two runs of .005", 0.0078125, (0.8, 0.8)),
    ReadingCase("two near-equal runs of .02", 0.03125, (0.8, 0.8), shared_noise=0.95),
    ReadingCase("runs of .005 and .02", 0.02, (0.5, 1.0)),
    ReadingCase("two runs of .02, 40 sentences", 0.03125, (0.8, 0.8), num_sentences=40),
)


class ReadingResult(NamedTuple):
    """Coverage and tests of the intervals of a score."""

    coverage: float
    rejections: float
    """Share of tests with p < .05."""
    contradictions: int
    """Intervals that exclude 0 with p >= .05, or hold 0 with p < .05."""
    runs: int

    def misses_limits(self, truth: float) -> bool:
        """Return whether coverage, or the rate of false positives, misses its limit beyond chance,
        or an interval contradicts its p-value."""
        tolerance = 2 * (0.06 * 0.94 / self.runs) ** 0.5
        is_low = self.coverage < MIN_COVERAGE - tolerance
        has_false_positives = truth == 0 and self.rejections > MAX_FALSE_POSITIVES + tolerance
        return is_low or has_false_positives or self.contradictions > 0


def simulate_reading(case: ReadingCase, runs: int, seed: int = 0) -> dict[str, ReadingResult]:
    """Return the results of each score over `runs` samples."""
    rng = np.random.default_rng(seed)
    outcomes: dict[str, list[tuple[bool, bool, bool]]] = {name: [] for name in WEIGHTS}
    for _ in range(runs):
        samples = draw_correlations(case, rng)
        for name, weights in WEIGHTS.items():
            interval, p = _test(samples, np.array(weights))
            excludes_0 = interval.low > 0 or interval.high < 0
            is_covered = interval.low <= case.truth + 1e-9 and interval.high >= case.truth - 1e-9
            outcomes[name].append((is_covered, p < 0.05, excludes_0 != (p < 0.05)))
    results = {}
    for name, rows in outcomes.items():
        covered, rejected, contradicts = np.array(rows).T
        results[name] = ReadingResult(
            float(covered.mean()), float(rejected.mean()), int(contradicts.sum()), runs
        )
    return results


def print_reading_results(cases: Sequence[ReadingCase], runs: int) -> int:
    """Print a line per case and score. Return the number of lines that miss their limits."""
    print("coverage  p < .05  case")
    misses = 0
    for index, case in enumerate(cases):
        for score, result in simulate_reading(case, runs, seed=index).items():
            is_missed = result.misses_limits(case.truth)
            misses += is_missed
            remark = "  MISSED" if is_missed else ""
            print(
                f"{result.coverage:8.3f} {result.rejections:8.3f}  {case.name}, {score}{remark}",
                flush=True,
            )
    return misses


def _test(samples: list[PartialCorrelations], weights: Floats) -> tuple[Interval, float]:
    if len(samples) == 2:
        return partial_r2_difference(samples[0], samples[1], weights)
    interval, p = partial_r2_test(samples[0], weights)
    assert p is not None
    return interval, p


def draw_correlations(case: ReadingCase, rng: np.random.Generator) -> list[PartialCorrelations]:
    """Draw a sample. Return the partial correlations of each run."""
    lengths = np.repeat(list(SENTENCE_LENGTHS), list(SENTENCE_LENGTHS.values()))
    lengths = rng.permutation(lengths)[: case.num_sentences]
    sentence = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    n = len(sentence)
    position = np.arange(n) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1.0
    word_length = 1.0 + rng.poisson(3.2, n)
    frequency = 15 - 1.1 * word_length + rng.normal(0, 1.8, n)
    predictors = [frequency, word_length, position]

    own, shared = rng.gamma(1.5, size=n), rng.gamma(1.5, size=len(lengths))
    share = SURPRISAL_SENTENCE_SHARE
    signal = ((1 - share) ** 0.5 * (own - 1.5) + share**0.5 * (shared - 1.5)[sentence]) / 1.5**0.5
    errors = _draw_errors(rng, sentence)
    baseline = word_length - 0.4 * frequency + 0.1 * position + 0.03 * word_length * position
    slope = (case.r2 / (1 - case.r2)) ** 0.5
    times = baseline[:, None] + slope * signal[:, None] + errors
    common_noise = rng.normal(size=n)
    samples = []
    for correlation in case.signal:
        own_noise = (1 - case.shared_noise**2) ** 0.5 * rng.normal(size=n)
        noise = case.shared_noise * common_noise + own_noise
        model = correlation * signal + (1 - correlation**2) ** 0.5 * noise
        surprisal = 8 - 0.6 * frequency + 0.3 * word_length + 2.5 * model
        design = design_with_interactions(predictors)
        second_word_on = position > 1
        regressions = [NestedRegression(t, design, surprisal, sentence) for t in times.T[:4]]
        regressions.append(
            NestedRegression(
                times[second_word_on, 4],
                design[second_word_on],
                surprisal[second_word_on],
                sentence[second_word_on],
            )
        )
        correlations = partial_correlations(regressions, len(lengths))
        assert correlations is not None
        samples.append(correlations)
    return samples


def _draw_errors(rng: np.random.Generator, sentence: np.ndarray) -> Floats:
    """Return the errors (n, 5) of the five times: lognormal, with mean 0 and variance 1."""
    root = np.eye(5)
    root[:4, :4] = np.linalg.cholesky(EYE_CORRELATIONS + 1e-6 * np.eye(4))
    share = np.array(SENTENCE_SHARES)
    of_words = rng.normal(size=(len(sentence), 5)) @ root.T
    of_sentences = (rng.normal(size=(int(sentence.max()) + 1, 5)) @ root.T)[sentence]
    normal = np.sqrt(1 - share) * of_words + np.sqrt(share) * of_sentences
    sigma = 0.45
    mean, variance = np.exp(sigma**2 / 2), (np.exp(sigma**2) - 1) * np.exp(sigma**2)
    return np.asarray((np.exp(sigma * normal) - mean) / variance**0.5)
