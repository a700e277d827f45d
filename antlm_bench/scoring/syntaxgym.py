"""SyntaxGym scoring: does a formula over region surprisals, "(4;%a%) > (4;%b%)", hold, and by how
much?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from antlm_bench.errors import DataError
from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.surprisal import span_logprobs
from antlm_bench.suites.formula import Formula
from antlm_bench.suites.syntaxgym import PREDICTION_LEVEL
from antlm_bench.types import Item, LanguageModel, Prediction, ProgressCallback

NATS_PER_BIT = math.log(2)


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None = None,
    *,
    formulas: Mapping[str, Formula],
) -> list[list[Prediction]]:
    """Return one list of Predictions per method, with the options "it holds" and "it does not".

    The score of the first is the surprisal gap of the formula in nats, that of the second 0, so
    that a gap of exactly 0 is a tie (SyntaxGym: wrong, --ties strict). formulas: by the label
    PREDICTION_LEVEL of an item, whose options are the formula's regions in order. Raises DataError
    for a region of which a token cannot be scored.
    """
    return [_predict_with_method(model, items, method, formulas, tick) for method in methods]


def _predict_with_method(
    model: LanguageModel,
    items: Sequence[Item],
    method: Method,
    formulas: Mapping[str, Formula],
    tick: ProgressCallback | None,
) -> list[Prediction]:
    options = [option for item in items for option in item.options]
    spans = span_logprobs(model, options, method, tick)
    predictions, top = [], 0
    for item in items:
        texts = slice(top, top + len(item.options))
        flags = spans.encodings.collect_flags(range(top, texts.stop))
        top = texts.stop
        formula = formulas[item.labels[PREDICTION_LEVEL]]
        fits = not spans.too_long[texts].any()
        bits = (-spans.logp[texts] / NATS_PER_BIT).tolist()
        surprisal = dict(zip(formula.regions, bits, strict=True))
        unscored = [region for region, value in surprisal.items() if math.isnan(value)]
        if fits and unscored:
            raise DataError(
                f"region {unscored[0].number} of {unscored[0].condition!r} cannot be scored",
                location=f"item {item.id}",
                hint="nothing stands before its first token (see --bos)",
            )
        gap = formula.surprisal_gap(surprisal.__getitem__) * NATS_PER_BIT if fits else -1.0
        num_tokens = int(spans.token_counts[texts].sum()) if fits else 0
        characters = sum(len(o.text[slice(*(o.span or (0, None)))]) for o in item.options)
        predictions.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=int(gap < 0),
                scores=(gap, 0.0 if fits else -1.0),
                tokens=(num_tokens, num_tokens),
                characters=(characters, characters),
                labels=item.labels,
                flags=flags if fits else (*flags, "too-long"),
            )
        )
    return predictions
