"""Predictions about regions, "(4;%a%) > (4;%b%)", asked of a LanguageModel: does the formula hold,
and by how much?
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
    """One list of Predictions per method. Their two options are "it holds" and "it does not": the
    score of the first is the margin in nats, that of the second 0, so that a margin of exactly 0 is
    a tie (SyntaxGym: wrong, --ties strict).

    formulas: what the label LEVEL of an item says about its options, which are the formula's
    regions in order. Raises DataError for a region of which a token cannot be scored.
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
    read = span_logprobs(model, options, method, tick)
    made, top = [], 0
    for item in items:
        here = slice(top, top + len(item.options))
        flags = read.encodings.collect_flags(range(top, here.stop))
        top = here.stop
        formula = formulas[item.labels[PREDICTION_LEVEL]]
        fits = not read.too_long[here].any()
        surprisal = dict(
            zip(formula.regions, (-read.logp[here] / NATS_PER_BIT).tolist(), strict=True)
        )
        if fits and (unknown := [region for region, bits in surprisal.items() if math.isnan(bits)]):
            hint = "nothing stands before its first token (see --bos)"
            message = f"region {unknown[0].number} of {unknown[0].condition!r} cannot be scored"
            raise DataError(message, location=f"item {item.id}", hint=hint)
        margin = formula.surprisal_gap(surprisal.__getitem__) * NATS_PER_BIT if fits else -1.0
        read_of = int(read.token_counts[here].sum()) if fits else 0
        characters = sum(len(o.text[slice(*(o.span or (0, None)))]) for o in item.options)
        made.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=int(margin < 0),
                scores=(margin, 0.0 if fits else -1.0),
                tokens=(read_of, read_of),
                characters=(characters, characters),
                labels=item.labels,
                flags=flags if fits else (*flags, "too-long"),
            )
        )
    return made
