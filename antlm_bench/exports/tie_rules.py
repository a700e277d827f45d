"""Which option a leaderboard's file answers with: the best, and where several are best, what the
year's own code takes.

Runs keep the score of every option, so ties are decided here, whatever rule the run's own numbers
follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    assign_strata,
    choice_shares,
    gold_indices,
)
from antlm_bench.statistics import macro_weights
from antlm_bench.types import Bools, Floats, Ints

TieRule = Literal["first", "random"]  # the rules of metrics.TIES that leave one answer
# How a reader is told. The official code of 2024 (numpy.argmax in collect_results.py) and 2025
# (torch.max in rank_and_evaluate) takes the first option, for every suite, and all of them list the
# right one first; that of 2026 draws, unseeded.
TIE_RULE_DESCRIPTIONS: dict[TieRule, str] = {
    "first": "given to the first option",
    "random": "drawn by the item's id",
}


def choose_options(table: PredictionTable, rule: TieRule, reduction: str) -> Ints:
    """The option (n,) that is answered. An item that does not fit the model was not scored: a wrong
    one, if any.
    """
    decided = choice_shares(table, rule, reduction).argmax(axis=1)
    unscored = (table.gold == 0).astype(
        int
    )  # ratings, whose gold is no option, have no wrong answer either
    return np.asarray(np.where(table.get_flag("too-long"), unscored, decided), np.int32)


def mark_correct(table: PredictionTable, answers: Ints) -> Bools:
    """Whether each answer (n,) counts as right. Official scorers compare texts: of two that are
    equal, either does.
    """
    twins = table.get_flag("identical") & (table.valid.sum(axis=1) == 2)
    return np.asarray(((answers == gold_indices(table)) | twins) & ~table.get_flag("too-long"))


def accuracy_by_group(table: PredictionTable, answers: Ints, level: str) -> dict[str, float]:
    """The share of right answers, 0..1, in each group of a level, or of all items under "" where
    level is "".
    """
    counted = mark_correct(table, answers)
    if not level:
        return {"": float(counted.mean())}
    codes, names = table.levels[level]
    return {name: float(counted[codes == code].mean()) for code, name in enumerate(names)}


def describe_ties(
    table: PredictionTable, rule: TieRule, reduction: str, macro: Sequence[str]
) -> str:
    """What a file's reader must know of its ties: how many, who got them, and what the other rule
    would have made of the score (0..100, the unweighted mean over the levels of `macro`). "" where
    there are none.
    """
    ties = table.get_flag("tie")
    if not ties.any():
        return ""
    codes, paths = assign_strata(table, macro)
    weights, sizes = macro_weights(paths), np.bincount(codes, minlength=len(paths))

    def outcome(of: TieRule) -> str:
        counted: Floats = mark_correct(table, choose_options(table, of, reduction)).astype(float)
        score = 100 * float(weights @ (np.bincount(codes, counted, len(paths)) / sizes))
        return f"{TIE_RULE_DESCRIPTIONS[of]}: {int(counted[ties].sum())} right, {score:.2f} in all"

    other: TieRule = "random" if rule == "first" else "first"
    return f"{int(ties.sum())} ties, {outcome(rule)}; {outcome(other)}"
