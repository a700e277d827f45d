"""Score SyntaxGym items: evaluate a formula over region surprisals, as "(4;%a%) > (4;%b%)"."""

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
    """Return one list of Predictions per method. Option 0 is "the formula holds", option 1 "it does
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
) -> list[Prediction]:
    options = [option for item in items for option in item.options]
    spans = span_logprobs(model, options, method, tick)
    predictions, top = [], 0
    for item in items:
        regions = slice(top, top + len(item.options))
        top = regions.stop
        flags = spans.encodings.collect_flags(range(regions.start, regions.stop))
        formula = formulas[item.labels[PREDICTION_LEVEL]]
        if spans.too_long[regions].any():
            scores, num_tokens, flags = (-1.0, -1.0), 0, (*flags, "too-long")
        else:
            bits = (-spans.logp[regions] / NATS_PER_BIT).tolist()
            surprisals = dict(zip(formula.regions, bits, strict=True))
            for region, surprisal in surprisals.items():
                if math.isnan(surprisal):
                    raise DataError(
                        f"region {region.region_id} of {region.condition!r} cannot be scored",
                        location=f"item {item.id}",
                        hint="nothing stands before its first token (see --bos)",
                    )
            scores = (formula.evaluate_gap(surprisals.__getitem__) * NATS_PER_BIT, 0.0)
            num_tokens = int(spans.token_counts[regions].sum())
        num_characters = sum(len(o.text[slice(*(o.span or (0, None)))]) for o in item.options)
        predictions.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=int(scores[0] < 0),
                scores=scores,
                tokens=(num_tokens, num_tokens),
                characters=(num_characters, num_characters),
                labels=item.labels,
                flags=flags,
            )
        )
    return predictions
