"""Tie rules of leaderboard files: which of several best options the file answers with.

Runs keep the score of every option, so ties are decided by the year's rule, whatever rule the run's
own numbers follow.
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

TieRule = Literal["first", "random"]
"""The rules of metrics.TIE_RULES that leave one answer."""
TIE_RULE_DESCRIPTIONS: dict[TieRule, str] = {
    "first": "given to the first option",
    "random": "drawn by the item's id",
}
"""The official code of 2024 (numpy.argmax in collect_results.py) and 2025 (torch.max in
rank_and_evaluate) takes the first option, for every suite, and all suites list the right one first;
that of 2026 draws, unseeded."""


def choose_options(table: PredictionTable, rule: TieRule, reduction: str) -> Ints:
    """Return the option (n,) that is answered. An item that does not fit the model was not scored,
    and is answered with a wrong option."""
    chosen = choice_shares(table, rule, reduction).argmax(axis=1)
    wrong = (table.gold == 0).astype(int)  # of ratings no option is wrong, and any will do
    return np.asarray(np.where(table.get_flag("too-long"), wrong, chosen), np.int32)


def mark_correct(table: PredictionTable, answers: Ints) -> Bools:
    """Return whether each answer (n,) counts as right. Official scorers compare texts, so of two
    equal texts either is right."""
    twins = table.get_flag("identical") & (table.valid.sum(axis=1) == 2)
    return np.asarray(((answers == gold_indices(table)) | twins) & ~table.get_flag("too-long"))


def accuracy_by_group(table: PredictionTable, answers: Ints, level: str) -> dict[str, float]:
    """Return the share of right answers, 0..1, in each group of a level; with level "" that of all
    items under ""."""
    correct = mark_correct(table, answers)
    if not level:
        return {"": float(correct.mean())}
    codes, names = table.levels[level]
    return {name: float(correct[codes == code].mean()) for code, name in enumerate(names)}


def describe_ties(
    table: PredictionTable, rule: TieRule, reduction: str, macro: Sequence[str]
) -> str:
    """Return what a reader must know of the ties: how many, how they were decided, and the score
    under the other rule (0..100, the unweighted mean over the levels of `macro`). "" without
    ties."""
    ties = table.get_flag("tie")
    if not ties.any():
        return ""
    codes, paths = assign_strata(table, macro)
    weights, sizes = macro_weights(paths), np.bincount(codes, minlength=len(paths))

    def outcome(of: TieRule) -> str:
        correct: Floats = mark_correct(table, choose_options(table, of, reduction)).astype(float)
        score = 100 * float(weights @ (np.bincount(codes, correct, len(paths)) / sizes))
        return f"{TIE_RULE_DESCRIPTIONS[of]}: {int(correct[ties].sum())} right, {score:.2f} in all"

    other: TieRule = "random" if rule == "first" else "first"
    return f"{int(ties.sum())} ties, {outcome(rule)}; {outcome(other)}"
