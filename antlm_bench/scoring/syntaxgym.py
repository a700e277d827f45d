"""Score SyntaxGym items: evaluate a formula over region surprisals, as "(4;%a%) > (4;%b%)"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.predictions import (
    UNSCORED_VALUE,
    OptionColumns,
    Predictions,
    any_option,
    item_flags,
)
from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.surprisal import count_scored_characters, span_logprobs
from antlm_bench.suites.formula import Formula
from antlm_bench.suites.syntaxgym import PREDICTION_LEVEL
from antlm_bench.types import Floats, Item, LanguageModel, ProgressCallback

NATS_PER_BIT = math.log(2)


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None = None,
    *,
    formulas: Mapping[str, Formula],
) -> list[Predictions]:
    """Return the predictions of each method. Option 0 is "the formula holds", option 1 "it does
    not".

    The score of option 0 is the surprisal gap of the formula in nats, that of option 1 is 0, so
    that a gap of exactly 0 is a tie (SyntaxGym counts it as wrong, as --ties strict does). The
    options of an item are the regions of its formula, in order. formulas: by the items' label
    PREDICTION_LEVEL. Raises DataError for a region with a token that cannot be scored.
    """
    return [_predict_with_method(model, items, method, formulas, tick) for method in methods]


def _predict_with_method(
    model: LanguageModel,
    items: Sequence[Item],
    method: Method,
    formulas: Mapping[str, Formula],
    tick: ProgressCallback | None,
) -> Predictions:
    options = [option for item in items for option in item.options]
    spans = span_logprobs(model, options, method, tick)
    counts = np.array([len(item.options) for item in items], np.int32)
    too_long = any_option(spans.too_long, counts)
    gaps = np.full(len(items), UNSCORED_VALUE)
    for index, end in enumerate(np.cumsum(counts)):
        if not too_long[index]:
            logp = spans.logp[end - counts[index] : end]
            gaps[index] = _evaluate_gap(items[index], logp, formulas)
    # Two options per item: the gap of the formula, and the 0 that it is compared with.
    scores = np.stack([gaps, np.where(too_long, UNSCORED_VALUE, 0.0)], axis=1)
    rows = np.repeat(np.arange(len(items)), counts)
    tokens = np.bincount(rows, spans.token_counts, minlength=len(items))
    characters = np.bincount(rows, count_scored_characters(options), minlength=len(items))
    return Predictions.build(
        items,
        gaps < 0,
        OptionColumns(
            np.full(len(items), 2, np.int32),
            scores.reshape(-1),
            np.repeat(np.where(too_long, 0, tokens), 2),
            np.repeat(characters, 2),
        ),
        [*item_flags([spans.encodings], counts), ("too-long", too_long)],
    )


def _evaluate_gap(item: Item, logp: Floats, formulas: Mapping[str, Formula]) -> float:
    """Return by how many nats an item's formula holds. logp: of the formula's regions, in order."""
    formula = formulas[item.labels[PREDICTION_LEVEL]]
    if np.isnan(logp).any():
        region = formula.regions[int(np.isnan(logp).argmax())]
        raise DataError(
            f"region {region.region_id} of {region.condition!r} cannot be scored",
            location=f"item {item.id}",
            hint="nothing stands before its first token (see --bos)",
        )
    surprisals = dict(zip(formula.regions, (-logp / NATS_PER_BIT).tolist(), strict=True))
    return formula.evaluate_gap(surprisals.__getitem__) * NATS_PER_BIT
