"""Age of acquisition: do a model and children acquire words in the same order?

    r = Pearson(age of the model, age of the children) over the words that have both

The children's age is the month at which half of them know the word. For the model, a sigmoid is
fitted to the word's surprisals at several checkpoints; its age is log10 of the number of words seen
where the sigmoid is halfway between chance and its minimum (statistics.acquisition).
Source: BabyLM 2026, after Chang & Bergen 2022.

The scores of a prediction are log-probabilities of its word in nats: first those at the first
checkpoint, then as many at each later one. Its gold is the children's age in months.
Corner cases: a word without an age is left out; a correlation that is not significant counts as 0
(BabyLM 2026); a correlation of too few words, or of equal ages, is undefined and shown as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.metrics.records import ACQUISITION
from antlm_bench.metrics.summary import rounded_estimate
from antlm_bench.printable import format_decimals
from antlm_bench.statistics import Interval
from antlm_bench.statistics import acquisition as curves
from antlm_bench.types import Estimate, Floats, Summary


@dataclass(frozen=True, slots=True)
class AcquisitionSettings:
    """Settings that decide a model's age of acquisition."""

    words_seen: tuple[int, ...]
    """Words seen by each checkpoint (k,), increasing."""
    vocabulary_size: int
    chance_surprisal: float | None
    """Surprisal of a word at chance, in nats. None = tokens of the word * ln(vocabulary)."""
    bounded: bool
    """Whether the sigmoid's parameters are bounded, as in BabyLM 2026 (statistics.acquisition)."""

    def age_of_acquisition(self, surprisal: Floats, num_tokens: int) -> float | None:
        """Return log10 of the number of words seen when the model acquired a word.

        None if no sigmoid fits, or it does not rise to that level (statistics.acquisition).

        surprisal: at each checkpoint (k,), or k times as many points, checkpoint by checkpoint.
        num_tokens: tokens of the word.
        """
        points_per_checkpoint = len(surprisal) // len(self.words_seen)
        words_seen = np.repeat(np.array(self.words_seen, float), points_per_checkpoint)
        chance = (
            num_tokens * math.log(self.vocabulary_size)
            if self.chance_surprisal is None
            else self.chance_surprisal
        )
        return curves.model_age_of_acquisition(words_seen, surprisal, chance, self.bounded)


def summarize_acquisition(
    children_ages: Floats,
    model_ages: Sequence[float | None],
    *,
    significance: float | None,
    suite: str,
    method: str,
    notes: Sequence[str] = (),
) -> Summary:
    """Return Pearson's correlation of both ages over the words that have both, with Fisher's
    interval.

    children_ages (n,), model_ages (n): of the same n words. If p > `significance`, the headline is
    0, as in BabyLM 2026; its interval and the view `pearson` remain those of the correlation.
    """
    pairs = [
        (age, child_age)
        for child_age, age in zip(children_ages, model_ages, strict=True)
        if age is not None
    ]
    model_age, child_age = np.array(pairs, float).reshape(-1, 2).T
    coverage = f"{len(pairs)} of {len(children_ages)} words have an age for both"

    def estimate(value: float, interval: Interval) -> Estimate:
        return rounded_estimate(value, len(pairs), interval, {}, ACQUISITION.value_range)

    correlation = curves.pearson_correlation(model_age, child_age)
    if correlation is None:
        headline, views = estimate(0.0, Interval(-1.0, 1.0)), {}
        note = f"correlation undefined (too few words, or all equal): shown as 0; {coverage}"
    else:
        r, p, interval = correlation
        is_significant = significance is None or p <= significance
        views = {"pearson": estimate(r, interval)}
        headline = views["pearson"] if is_significant else estimate(0.0, interval)
        outcome = "" if is_significant else f" counts as 0, since p > {significance:g}"
        note = f"Pearson's r = {format_decimals(r, '.3f')}{outcome}: p = {p:.2g}, {coverage}"
    return Summary(
        suite,
        method,
        ACQUISITION.name,
        macro=(),
        headline=headline,
        views=views,
        groups=(),
        notes=(*notes, note),
    )
