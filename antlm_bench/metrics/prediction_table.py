"""Predictions of a suite as a table of arrays: what every metric is computed from."""

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
    """Predictions of one suite: n items with at most k options."""

    ids: tuple[str, ...]
    gold: Floats
    """(n,): the index of the right option, or a rating."""
    scores: Floats
    """(n, k): summed log-probability of each option, in nats."""
    tokens: Floats
    """(n, k): tokens that the score sums over."""
    characters: Floats
    """(n, k): characters that the score sums over."""
    valid: Bools
    """(n, k): False beyond an item's options."""
    flags: Mapping[str, Bools]
    """Name -> (n,) True where raised; "tie" is one of them."""
    levels: Mapping[str, tuple[Ints, tuple[str, ...]]]
    """Label level -> codes (n,), -1 = no such label, and names in order of appearance."""
    judged: Floats
    """(n, m): numbers that the task's own code makes of an item, nan = none. m = 0: there is no
    such code."""

    def reduced_scores(self, reduction: str) -> Floats:
        """Return scores (n, k) as summed, or divided by the tokens or characters that they sum
        over."""
        lengths = {"per-token": self.tokens, "per-character": self.characters}.get(reduction)
        return self.scores if lengths is None else self.scores / np.maximum(lengths, 1)

    def best_options(self, reduction: str) -> Bools:
        """Return (n, k), True at the options that share the best score. Two options with the same
        text tie by definition."""
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
    """Return predictions as a table. levels: the labels to encode. reduction: which scores tie.

    Raises DataError when there are no predictions, CheckpointError where a score is nan or +inf.
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
            hint="NaN weights or an overflow; try --dtype float32, and look at the checkpoint's "
            "training loss",
        )
    tie = (table.best_options(reduction).sum(axis=1) > 1) & ~table.get_flag("too-long")
    return replace(table, flags={"tie": tie, **flags})


def gold_indices(table: PredictionTable) -> Ints:
    """Return the index (n,) of the right option, 0 for items that were not scored.

    Raises DataError where a gold is not the index of an option.
    """
    unscored = table.get_flag("too-long")  # such an item may have no options at all
    given = np.where(unscored, 0, table.gold)
    gold = given.astype(np.int32)
    beyond = (gold >= table.valid.sum(axis=1)) & ~unscored
    wrong = (gold != given) | (gold < 0) | beyond
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"gold {table.gold[row]:g} is no option",
            location=f"item {table.ids[row]}",
            hint="accuracy needs the index of the right option; ratings go with metric = spearman",
        )
    return gold


def choice_shares(table: PredictionTable, ties: str, reduction: str) -> Floats:
    """Return the answer (n, k) to each item: 1 at the chosen option, or shares of those that tie.

    ties: one of TIE_RULES. Zeros where nothing is chosen: a tie under `strict`, an item that was
    not scored.
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
            drawn = _draw_option(table.ids[i], np.flatnonzero(best[i]))
            shares[i] = np.arange(best.shape[1]) == drawn
    return np.asarray(np.where(table.get_flag("too-long")[:, None], 0.0, shares))


def gold_credits(table: PredictionTable, ties: str, reduction: str) -> Floats:
    """Return the credit (n,) of each item, in 0..1: its right option's share of the answer."""
    gold = gold_indices(table)
    return np.asarray(choice_shares(table, ties, reduction)[np.arange(len(gold)), gold])


def assign_strata(
    table: PredictionTable, macro: Sequence[str]
) -> tuple[Ints, list[tuple[str, ...]]]:
    """Return the stratum of each item (n,), and each stratum's labels.

    macro: the levels whose labels make a stratum. Raises DataError where an item lacks one.
    """
    for level in macro:
        missing = np.flatnonzero(table.levels[level][0] < 0)
        if len(missing):
            raise DataError(
                f"no label {level!r}, which the headline averages over",
                location=f"item {table.ids[int(missing[0])]}",
                hint="see `macro` and `groups` in the suite's TOML",
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
    """Return for each group the one label that all its items have one level up, or ""."""
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
    for name in ("scores", "tokens", "characters"):
        rows = [getattr(p, name) for p in predictions]
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
    for prediction in predictions:
        if len(prediction.judged) != len(predictions[0].judged):
            raise DataError(
                "the judge says more of one item than of another",
                location=f"item {prediction.id}",
            )
    return np.array([p.judged for p in predictions], float).reshape(len(predictions), -1)


def _encode_labels(labels: Sequence[str | None]) -> tuple[Ints, tuple[str, ...]]:
    seen: dict[str, int] = {}
    codes = [-1 if label is None else seen.setdefault(label, len(seen)) for label in labels]
    return np.array(codes, np.int32), tuple(seen)


def _draw_option(item_id: str, options: NDArray[np.integer]) -> int:
    """Return one of these options, the same for the same id in any order and on any platform."""
    number = int.from_bytes(hashlib.blake2b(item_id.encode()).digest()[:8], "big")
    return int(options[number % len(options)])
