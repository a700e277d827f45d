"""Predictions of a suite as a table of arrays, from which every metric is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import CheckpointError, DataError
from antlm_bench.metrics.records import UNIGRAM_MEASURE
from antlm_bench.types import Bools, Floats, Ints

if TYPE_CHECKING:
    from antlm_bench.predictions import LabelCodes, Predictions

LENGTH_OFFSET = 5
"""Tokens that the length penalty of "penalised" adds to a text."""


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """Predictions of one suite: n items with at most k options."""

    ids: Sequence[str]
    gold: Floats
    """(n,): index of the right option, or a rating."""
    scores: Floats
    """(n, k): summed log-probability of each option, in nats."""
    tokens: Floats
    """(n, k): number of tokens that each score sums over."""
    characters: Floats
    """(n, k): number of characters that each score sums over."""
    valid: Bools
    """(n, k): False where an item has no such option."""
    flags: Mapping[str, Bools]
    """Name -> (n,), True where the flag is raised; "tie" is among them."""
    levels: Mapping[str, LabelCodes]
    """Label level -> label of each item, as codes."""
    task_values: Floats
    """(n, m): values of the lm-eval task's own m metrics, nan where an item has none. m = 0 for
    other suites. (The column `judged` of stored predictions.)"""
    clusters: Ints | None = None
    """(n,): number of each item's cluster; None = items are treated as independent."""
    unigram_scores: Floats | None = None
    """(n,): log-probability of each item's tokens under a unigram model, in nats; None = there is
    no unigram model."""

    def reduced_scores(self, reduction: str) -> Floats:
        """Return scores (n, k) of texts of T tokens, normalised by `reduction`.

        "sum": as they are. "per-token", "per-character": divided by the number of tokens or
        characters. "penalised": divided by ((5 + T) / (5 + 1))^0.8 (Lau et al. 2020, TACL 8,
        296-310, after the length penalty of Wu et al. 2016). "slor": (score - unigram score) / T
        (Pauls & Klein 2012, ACL; Lau, Clark & Lappin 2017), nan without a unigram model.
        """
        num_tokens = np.maximum(self.tokens, 1)
        if reduction == "per-token":
            return self.scores / num_tokens
        if reduction == "per-character":
            return self.scores / np.maximum(self.characters, 1)
        if reduction == "penalised":
            return self.scores / ((LENGTH_OFFSET + self.tokens) / (LENGTH_OFFSET + 1)) ** 0.8
        if reduction == UNIGRAM_MEASURE:
            if self.unigram_scores is None:
                return np.full_like(self.scores, np.nan)
            return (self.scores - self.unigram_scores[:, None]) / num_tokens
        return self.scores

    def best_options(self, reduction: str) -> Bools:
        """Return (n, k), True at all options with the best score. Two options with the same text
        tie by definition; among more it is unknown which are the same."""
        scores = self.reduced_scores(reduction)
        best = (
            scores == scores.max(axis=1, where=self.valid, initial=-np.inf, keepdims=True)
        ) & self.valid
        identical_pair = self.get_flag("identical") & (self.valid.sum(axis=1) == 2)
        return np.where(identical_pair[:, None], self.valid, best)

    def get_flag(self, name: str) -> Bools:
        """Return where a flag is raised (n,)."""
        return self.flags.get(name, np.zeros(len(self.ids), bool))

    def count_flags(self, members: Bools | None = None, exclude: str = "") -> dict[str, int]:
        """Return flag -> number of items that raise it, for flags that any item raises.

        members (n,): only these items. exclude: a flag to leave out.
        """
        counts = {
            name: int((has_flag if members is None else has_flag & members).sum())
            for name, has_flag in self.flags.items()
            if name != exclude
        }
        return {name: count for name, count in counts.items() if count}


def build_table(
    predictions: Predictions, levels: Collection[str], reduction: str = "sum"
) -> PredictionTable:
    """Return predictions as arrays of equal length.

    levels: label levels to encode. reduction: how scores are normalised before ties are found.

    Raises DataError if there are no predictions, CheckpointError if a score is nan or +inf.
    """
    if not len(predictions):
        raise DataError("no predictions to summarise", hint="the suite has no items")
    table = decode_table(predictions, levels)
    broken = find_broken_scores(table) | ~table.valid.any(axis=1)
    broken &= ~table.get_flag("too-long")
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise CheckpointError(
            f"the model gives no finite score to {int(broken.sum())} of {len(predictions)} items",
            location=f"item {table.ids[first]}",
            hint="NaN weights or an overflow; try --dtype float32, and look at the checkpoint's "
            "training loss",
        )
    tie = (table.best_options(reduction).sum(axis=1) > 1) & ~table.get_flag("too-long")
    flags = {name: table.flags[name] for name in sorted(table.flags)}
    return replace(table, flags={"tie": tie, **flags})


def decode_table(predictions: Predictions, levels: Collection[str]) -> PredictionTable:
    """Return predictions as arrays of equal length, without the flag "tie" and unchecked.

    Raises DataError where an item has lists of different lengths.
    """
    return PredictionTable(
        ids=predictions.id_column,
        gold=predictions.gold,
        scores=predictions.padded("scores"),
        tokens=predictions.padded("tokens"),
        characters=predictions.padded("characters"),
        valid=predictions.valid,
        flags=predictions.flags(),
        levels={level: predictions.encode_labels(level) for level in levels},
        task_values=predictions.task_values,
        clusters=predictions.clusters,
        unigram_scores=predictions.unigram_scores,
    )


def find_clusters(runs: Sequence[Predictions | PredictionTable]) -> Ints | None:
    """Return the clusters (n,) of the items that several runs or seeds predicted in the same order.

    Runs of earlier versions have none: those of the first run that has them are used.
    """
    clusters = (run.clusters for run in runs)
    return next((each for each in clusters if each is not None), None)


def find_broken_scores(table: PredictionTable) -> Bools:
    """Return the items (n,) of which a score is nan or +inf."""
    broken = (np.isnan(table.scores) | (table.scores == np.inf)) & table.valid
    return np.asarray(broken.any(axis=1))


def gold_indices(table: PredictionTable) -> Ints:
    """Return the index (n,) of the right option, 0 for items that were not scored.

    Raises DataError where a gold is not the index of an option.
    """
    unscored = table.get_flag("too-long")  # such an item may have no options at all
    gold_or_zero = np.where(unscored, 0, table.gold)
    gold = gold_or_zero.astype(np.int32)
    out_of_range = (gold >= table.valid.sum(axis=1)) & ~unscored
    # The first term finds golds that are not integers.
    wrong = (gold != gold_or_zero) | (gold < 0) | out_of_range
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"gold {table.gold[row]:g} is not the index of an option",
            location=f"item {table.ids[row]}",
            hint='accuracy needs the index of the right option; ratings need metric = "spearman"',
        )
    return gold


def choice_weights(table: PredictionTable, ties: str, reduction: str) -> Floats:
    """Return the chosen option of each item as weights (n, k) that sum to 1.

    ties: one of TIE_RULES. `half` gives 1/t to each of t tied options. All weights are 0 where
    nothing is chosen: at a tie under `strict`, and for an item that was not scored.
    """
    best = table.best_options(reduction)
    num_best = best.sum(axis=1)
    if ties == "half":
        weights = best / np.maximum(num_best, 1)[:, None]
    elif ties == "strict":
        weights = (best & (num_best == 1)[:, None]).astype(float)
    else:
        weights = np.eye(best.shape[1])[best.argmax(axis=1)]
        if ties == "random":
            for i in np.flatnonzero(num_best > 1):
                drawn = _draw_option(table.ids[int(i)], np.flatnonzero(best[i]))
                weights[i] = np.arange(best.shape[1]) == drawn
    return np.asarray(np.where(table.get_flag("too-long")[:, None], 0.0, weights))


def gold_credits(table: PredictionTable, ties: str, reduction: str) -> Floats:
    """Return the credit (n,) of each item, in 0..1: the weight of its right option."""
    gold = gold_indices(table)
    return np.asarray(choice_weights(table, ties, reduction)[np.arange(len(gold)), gold])


def assign_strata(
    table: PredictionTable, macro_levels: Sequence[str]
) -> tuple[Ints, list[tuple[str, ...]]]:
    """Return the stratum of each item (n,), and each stratum's labels.

    macro_levels: items with the same labels of these levels form a stratum. Raises DataError if an
    item lacks such a label.
    """
    for level in macro_levels:
        missing = np.flatnonzero(table.levels[level][0] < 0)
        if len(missing):
            raise DataError(
                f"no label {level!r}, which the headline averages over",
                location=f"item {table.ids[int(missing[0])]}",
                hint="see `macro` and `groups` in the suite's TOML",
            )
    if not macro_levels:
        return np.zeros(len(table.ids), np.int32), [()]
    columns = np.stack([table.levels[level][0] for level in macro_levels], axis=1)
    distinct, codes = np.unique(columns, axis=0, return_inverse=True)
    stratum_labels = [
        tuple(table.levels[lv][1][code] for lv, code in zip(macro_levels, row, strict=True))
        for row in distinct
    ]
    return codes.reshape(-1).astype(np.int32), stratum_labels


def parent_names(
    table: PredictionTable, parent_level: str | None, codes: Ints, num_groups: int
) -> list[str]:
    """Return each group's parent: the label at `parent_level` of all its items, "" if they differ.

    codes (n,): the group of each item, -1 = none.
    """
    if parent_level is None:
        return [""] * num_groups
    parent_codes, names = table.levels[parent_level]
    pairs = np.unique(np.stack([codes, parent_codes], axis=1)[codes >= 0], axis=0)
    parents = []
    for group in range(num_groups):
        distinct_parents = pairs[pairs[:, 0] == group, 1]
        is_unique = len(distinct_parents) == 1 and distinct_parents[0] >= 0
        parents.append(names[distinct_parents[0]] if is_unique else "")
    return parents


def _draw_option(item_id: str, options: NDArray[np.integer]) -> int:
    """Draw a tied option by a hash of the item's id: the same in any run and on any platform."""
    number = int.from_bytes(hashlib.blake2b(item_id.encode()).digest()[:8], "big")
    return int(options[number % len(options)])
