"""Age of acquisition: predictions that are curves of words over checkpoints -> do model and
children agree in order?

The scores of a prediction are log-probabilities of its word in nats, checkpoint by checkpoint,
equally many for each; its gold is the age in months at which half of the children know the word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.metrics.measures import rounded_estimate
from antlm_bench.statistics import Interval
from antlm_bench.statistics import acquisition as curves
from antlm_bench.types import Prediction, Summary

ACQUISITION = "acquisition"


@dataclass(frozen=True, slots=True)
class AcquisitionCurves:
    """What the words' curves are read with. seen (k,): words seen by each checkpoint, increasing.
    chance, bounded: see suites.compute_acquisition.
    """

    words_seen: tuple[int, ...]
    vocabulary_size: int
    chance_surprisal: float | None
    bounded: bool

    def age_of_acquisition(self, prediction: Prediction) -> float | None:
        """log10 of the words seen when the model acquired the word; None where its curve has no
        answer.
        """
        surprisal = -np.array(prediction.scores)
        seen = np.repeat(np.array(self.words_seen, float), len(surprisal) // len(self.words_seen))
        chance = (
            prediction.tokens[-1] * math.log(self.vocabulary_size)
            if self.chance_surprisal is None
            else self.chance_surprisal
        )
        return curves.model_age_of_acquisition(seen, surprisal, chance, self.bounded)


def summarize_acquisition(
    predictions: Sequence[Prediction],
    model_ages: Sequence[float | None],
    *,
    significance: float | None,
    suite: str,
    method: str,
    notes: Sequence[str] = (),
) -> Summary:
    """Pearson's correlation of both ages over the words that have them, with Fisher's interval.

    ages: of the model, beside the predictions. The headline is 0 where p lies above `significance`,
    as BabyLM 2026 has it; the interval, and the view `pearson`, stay the correlation's. Undefined
    (too few words, or all equal): 0.
    """
    known = [
        (age, p.gold) for p, age in zip(predictions, model_ages, strict=True) if age is not None
    ]
    model, children = np.array(known, float).reshape(-1, 2).T
    of = f"{len(known)} of {len(predictions)} words have an age for both"
    found = curves.pearson_correlation(model, children)
    if found is None:
        nothing = rounded_estimate(0.0, len(known), Interval(-1.0, 1.0), {}, -1.0)
        remark = f"correlation undefined (too few words, or all equal): shown as 0; {of}"
        return Summary(suite, method, ACQUISITION, (), nothing, {}, (), (*notes, remark))
    r, p, interval = found
    pearson = rounded_estimate(r, len(known), interval, {}, -1.0)
    counts = significance is None or p <= significance
    headline = pearson if counts else rounded_estimate(0.0, len(known), interval, {}, -1.0)
    said = "" if counts else f" counts as 0, since p > {significance:g}"
    remark = f"Pearson's r = {r:.3f}{said}: p = {p:.2g}, {of}"
    return Summary(
        suite, method, ACQUISITION, (), headline, {"pearson": pearson}, (), (*notes, remark)
    )
