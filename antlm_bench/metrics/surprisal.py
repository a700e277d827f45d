"""Surprisal of words in nats, averaged over the contexts of a word and then over words; nothing is
right or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.measures import count_flags
from antlm_bench.types import Estimate, Floats, Prediction, Summary

SURPRISAL = "surprisal"
WORD_LABEL = "word"  # the label of an item's word


def group_by_word(predictions: Sequence[Prediction]) -> dict[str, dict[str, Prediction]]:
    """word -> id of each of its contexts -> its prediction; contexts that were too long are left
    out.
    """
    found: dict[str, dict[str, Prediction]] = {}
    for one in predictions:
        if "too-long" not in one.flags:
            found.setdefault(one.labels[WORD_LABEL], {})[one.id] = one
    return found


def summarize_surprisal(
    predictions: Sequence[Prediction], *, suite: str, method: str, notes: Sequence[str] = ()
) -> Summary:
    """The mean over words, with the interval of words like these. DataError where no context fits
    the model.
    """
    contexts = group_by_word(predictions).values()
    means: Floats = np.array([np.mean([-p.scores[0] for p in some.values()]) for some in contexts])
    if not len(means):
        raise DataError(
            "every context is too long for the model", location=suite, hint="raise --max-length"
        )
    weights = np.full(len(means), 1 / len(means))
    value = float(means.mean())
    low, high = statistics.clustered_interval(means, weights) if len(means) > 1 else (value, value)
    flags = count_flags(predictions)
    headline = Estimate(round(value, 12), len(predictions), round(low, 12), round(high, 12), flags)
    return Summary(suite, method, SURPRISAL, (WORD_LABEL,), headline, {}, (), tuple(notes))
