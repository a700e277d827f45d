"""Predictions as columns: what every metric computes on, checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import CheckpointError, DataError
from antlm_bench.types import Bools, Floats, Ints, Prediction


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """Predictions of one suite as columns. n items, at most k options; cells beyond an item's
    options are not `valid`.

    gold (n,). scores, tokens, characters, valid (n, k). flags: name -> (n,) True where raised,
    "tie" included. levels: label level -> (codes (n,), -1 = the item has no such label; names in
    order of appearance). judged (n, m): what the suite's judge says, nan = nothing; m is 0 where
    there is no judge.
    """

    ids: tuple[str, ...]
    gold: Floats
    scores: Floats
    tokens: Floats
    characters: Floats
    valid: Bools
    flags: Mapping[str, Bools]
    levels: Mapping[str, tuple[Ints, tuple[str, ...]]]
    judged: Floats

    def reduced_scores(self, reduction: str) -> Floats:
        """Scores (n, k) as summed, or divided by the tokens or characters that they sum over."""
        lengths = {"per-token": self.tokens, "per-character": self.characters}.get(reduction)
        return self.scores if lengths is None else self.scores / np.maximum(lengths, 1)

    def best_options(self, reduction: str) -> Bools:
        """(n, k) True at the options that share the best score. Two options of one text tie by
        definition.
        """
        scores = self.reduced_scores(reduction)
        best = (
            scores == scores.max(axis=1, where=self.valid, initial=-np.inf, keepdims=True)
        ) & self.valid
        twins = self.get_flag("identical") & (self.valid.sum(axis=1) == 2)
        return np.where(twins[:, None], self.valid, best)

    def get_flag(self, name: str) -> Bools:
        """Return where a flag is raised (n,)."""
        return self.flags.get(name, np.zeros(len(self.ids), bool))

    def count_flags(self, members: Bools | None = None, without: str = "") -> dict[str, int]:
        """Return how many items raise each flag; flags that none raises are left out.

        members (n,): only these items. without: a flag that is not counted.
        """
        counts = {
            name: int((raised if members is None else raised & members).sum())
            for name, raised in self.flags.items()
            if name != without
        }
        return {name: count for name, count in counts.items() if count}


def build_table(
    predictions: Sequence[Prediction], levels: set[str], reduction: str = "sum"
) -> PredictionTable:
    """Predictions as a Table; `reduction` says which scores can tie.

    Raises DataError when there are no predictions, CheckpointError where a score is NaN or +inf.
    """
    if not predictions:
        raise DataError("no predictions to summarise", hint="the suite has no items")
    valid, (scores, tokens, characters) = _pad_options(predictions)
    names = {flag for p in predictions for flag in p.flags}
    flags = {name: np.array([name in p.flags for p in predictions]) for name in sorted(names)}
    table = PredictionTable(
        ids=tuple(p.id for p in predictions),
        gold=np.array([p.gold for p in predictions], float),
        scores=scores,
        tokens=tokens,
        characters=characters,
        valid=valid,
        flags=flags,
        levels={
            level: _encode_labels([p.labels.get(level) for p in predictions]) for level in levels
        },
        judged=_stack_judged(predictions),
    )
    broken = ((np.isnan(scores) | (scores == np.inf)) & valid).any(axis=1) | ~valid.any(axis=1)
    broken &= ~table.get_flag("too-long")
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise CheckpointError(
            f"the model gives no finite score to {int(broken.sum())} of {len(predictions)} items",
            location=f"item {table.ids[first]}",
            hint="NaN weights or an overflow; try --dtype float32, and look at the checkpoint's training loss",
        )
    tie = (table.best_options(reduction).sum(axis=1) > 1) & ~table.get_flag("too-long")
    return replace(table, flags={"tie": tie, **flags})


def gold_indices(table: PredictionTable) -> Ints:
    """Index (n,) of the right option. DataError where a gold is none; 0 for items that were not
    scored.
    """
    given = np.where(
        table.get_flag("too-long"), 0, table.gold
    )  # not scored: may have no options at all
    gold = given.astype(np.int32)
    wrong = (
        (gold != given)
        | (gold < 0)
        | ((gold >= table.valid.sum(axis=1)) & ~table.get_flag("too-long"))
    )
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        hint = "accuracy needs the index of the right option; ratings go with metric = spearman"
        raise DataError(
            f"gold {table.gold[at]:g} is no option", location=f"item {table.ids[at]}", hint=hint
        )
    return gold


def choice_shares(table: PredictionTable, ties: str, reduction: str) -> Floats:
    """The answer (n, k) to each item: 1 at the option chosen, or shares of those that tie, by one
    of summary.TIES.

    Zeros where nothing is chosen: a tie under `strict`, an item that was not scored.
    """
    best = table.best_options(reduction)
    shared = best.sum(axis=1)
    if ties == "half":
        shares = best / np.maximum(shared, 1)[:, None]
    elif ties == "strict":
        shares = (best & (shared == 1)[:, None]).astype(float)
    else:
        shares = np.eye(best.shape[1])[best.argmax(axis=1)]
        for i in np.flatnonzero(shared > 1) if ties == "random" else ():
            shares[i] = np.arange(best.shape[1]) == _draw_option(
                table.ids[i], np.flatnonzero(best[i])
            )
    return np.asarray(np.where(table.get_flag("too-long")[:, None], 0.0, shares))


def gold_credits(table: PredictionTable, ties: str, reduction: str) -> Floats:
    """Return the credit (n,) of each item, in 0..1: its right option's share of the answer."""
    gold = gold_indices(table)
    return np.asarray(choice_shares(table, ties, reduction)[np.arange(len(gold)), gold])


def assign_strata(
    table: PredictionTable, macro: Sequence[str]
) -> tuple[Ints, list[tuple[str, ...]]]:
    """Stratum of each item (n,), and each stratum's label path. DataError where an item lacks a
    label of `macro`.
    """
    for level in macro:
        absent = np.flatnonzero(table.levels[level][0] < 0)
        if len(absent):
            place, hint = (
                f"item {table.ids[int(absent[0])]}",
                "see `macro` and `groups` in the suite's TOML",
            )
            raise DataError(
                f"no label {level!r}, which the headline averages over", location=place, hint=hint
            )
    if not macro:
        return np.zeros(len(table.ids), np.int32), [()]
    columns = np.stack([table.levels[level][0] for level in macro], axis=1)
    distinct, codes = np.unique(columns, axis=0, return_inverse=True)
    paths = [
        tuple(table.levels[lv][1][code] for lv, code in zip(macro, row, strict=True))
        for row in distinct
    ]
    return codes.reshape(-1).astype(np.int32), paths


def parent_names(
    table: PredictionTable, parent_level: str | None, codes: Ints, num_groups: int
) -> list[str]:
    """For each group, the one value that all its items have one level up, or ""."""
    if parent_level is None:
        return [""] * num_groups
    outer, names = table.levels[parent_level]
    pairs = np.unique(np.stack([codes, outer], axis=1)[codes >= 0], axis=0)
    return [
        names[o[0]] if len(o := pairs[pairs[:, 0] == g, 1]) == 1 and o[0] >= 0 else ""
        for g in range(num_groups)
    ]


def _pad_options(predictions: Sequence[Prediction]) -> tuple[Bools, tuple[Floats, Floats, Floats]]:
    sizes = np.array([len(p.scores) for p in predictions])
    valid = np.arange(max(int(sizes.max()), 1)) < sizes[:, None]
    padded = []
    for rows in (
        [p.scores for p in predictions],
        [p.tokens for p in predictions],
        [p.characters for p in predictions],
    ):
        column = np.zeros(valid.shape)
        flat = [number for row in rows for number in row]
        if len(flat) != valid.sum():
            odd = next(
                p.id for p, row in zip(predictions, rows, strict=True) if len(row) != len(p.scores)
            )
            raise DataError(
                "scores, tokens and characters differ in length", location=f"item {odd}"
            )
        column[valid] = flat
        padded.append(column)
    return valid, (padded[0], padded[1], padded[2])


def _stack_judged(predictions: Sequence[Prediction]) -> Floats:
    for one in predictions:
        if len(one.judged) != len(predictions[0].judged):
            raise DataError(
                "the judge says more of one item than of another", location=f"item {one.id}"
            )
    return np.array([p.judged for p in predictions], float).reshape(len(predictions), -1)


def _encode_labels(labels: Sequence[str | None]) -> tuple[Ints, tuple[str, ...]]:
    seen: dict[str, int] = {}
    codes = [-1 if label is None else seen.setdefault(label, len(seen)) for label in labels]
    return np.array(codes, np.int32), tuple(seen)


def _draw_option(item_id: str, options: NDArray[np.integer]) -> int:
    """One of `among`, the same for the same id whatever the order, platform or number of items."""
    return int(
        options[
            int.from_bytes(hashlib.blake2b(item_id.encode()).digest()[:8], "big") % len(options)
        ]
    )
