"""From predictions to the numbers that get published: credit per item, macro-average, interval, flags.

A metric is two ideas over a Table: what each item contributes, and how contributions become an Estimate. Everything
here is recomputed from stored predictions at will; nothing needs the model or the texts.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from antlm_bench import statistics
from antlm_bench.errors import CheckpointError, DataError, UsageError
from antlm_bench.statistics import Interval
from antlm_bench.types import Bools, Estimate, Floats, Group, Ints, Prediction, Summary

METRICS: dict[str, str] = {
    "accuracy": "antlm_bench.metrics:Accuracy",
    "spearman": "antlm_bench.metrics:Spearman",
}
TIES: dict[str, str] = {
    "half": "an item whose best score is shared by k options gives 1/k if the right one is among them",
    "strict": "a shared best score is wrong",
    "first": "the first of the best is chosen, as argmax does in lm-eval and BabyLM 2024-2025, where index 0 is right",
    "random": "one of the best is drawn, as in BabyLM 2026, but seeded by the item's id",
}
REDUCTIONS = ("sum", "per-token", "per-character")


@dataclass(frozen=True, slots=True)
class Table:
    """Predictions of one suite as columns. n items, at most k options; cells beyond an item's options are not `valid`.

    gold (n,). scores, tokens, characters, valid (n, k). flags: name -> (n,) True where raised, "tie" included.
    levels: label level -> (codes (n,), -1 = the item has no such label; names in order of appearance).
    """

    ids: tuple[str, ...]
    gold: Floats
    scores: Floats
    tokens: Floats
    characters: Floats
    valid: Bools
    flags: Mapping[str, Bools]
    levels: Mapping[str, tuple[Ints, tuple[str, ...]]]

    def reduced(self, reduction: str) -> Floats:
        """Scores (n, k) as summed, or divided by the tokens or characters that they sum over."""
        lengths = {"per-token": self.tokens, "per-character": self.characters}.get(reduction)
        return self.scores if lengths is None else self.scores / np.maximum(lengths, 1)

    def best(self, reduction: str = "sum") -> Bools:
        """(n, k) True at the options that share the best score. Two options of one text tie by definition."""
        scores = self.reduced(reduction)
        best = (scores == scores.max(axis=1, where=self.valid, initial=-np.inf, keepdims=True)) & self.valid
        twins = self.flag("identical") & (self.valid.sum(axis=1) == 2)
        return np.where(twins[:, None], self.valid, best)

    def flag(self, name: str) -> Bools:
        return self.flags.get(name, np.zeros(len(self.ids), bool))


class Metric(Protocol):
    """`values` (n,) is what each item contributes; `whole` the headline with its views; `part` one group of items."""

    def values(self, table: Table, reduction: str) -> Floats: ...

    def whole(self, table: Table, macro: Sequence[str]) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]: ...

    def parts(self, table: Table, codes: Ints, names: Sequence[str]) -> list[Estimate]: ...


def summarize(
    predictions: Sequence[Prediction],
    *,
    suite: str,
    method: str,
    metric: str,
    macro: Sequence[str],
    groups: Sequence[str],
    ties: str = "half",
    notes: Sequence[str] = (),
) -> Summary:
    """The Summary of one suite under one method.

    macro: levels that the headline averages over without weights, outermost first; () = over items. groups: the levels
    reported, coarse to fine; a group's estimate is over its items (as BabyLM prints fields and phenomena), its interval
    Wilson's. ties: one of TIES. Items flagged `too-long` were not scored and count as wrong; `flags` counts them.

    Raises UsageError (unknown metric or tie rule), DataError (no predictions, a label that `macro` needs is missing, a
    gold that is no option), CheckpointError (a NaN or +inf score).
    """
    measure = _resolve(metric, ties)
    table = tabulate(predictions, {*macro, *groups})
    headline, views, remarks = measure.whole(table, macro)
    lines = []
    for above, level in zip((None, *groups), groups, strict=False):
        codes, names = table.levels[level]
        within = _parents(table, above, codes, len(names))
        estimates = measure.parts(table, codes, names)
        lines += [Group(level, n, e, w) for n, e, w in zip(names, estimates, within, strict=True)]
    return Summary(suite, method, metric, tuple(macro), headline, views, tuple(lines), (*notes, *remarks))


class Accuracy:
    """Share of items whose right option has the best score."""

    def __init__(self, ties: str) -> None:
        self.ties = ties

    def values(self, table: Table, reduction: str) -> Floats:
        """Credit (n,) in 0..1 of each item."""
        gold, best = self._gold(table), table.best(reduction)
        shared = best.sum(axis=1)
        rows = np.arange(len(gold))
        if self.ties == "first":
            credit = (best.argmax(axis=1) == gold).astype(float)
        elif self.ties == "random":
            credit = (best.argmax(axis=1) == gold).astype(float)
            for i in np.flatnonzero(shared > 1):
                credit[i] = float(_draw(table.ids[i], np.flatnonzero(best[i])) == gold[i])
        else:
            credit = best[rows, gold] / np.maximum(shared, 1)
            if self.ties == "strict":
                credit[shared > 1] = 0.0
        return np.where(table.flag("too-long"), 0.0, credit)

    def _gold(self, table: Table) -> Ints:
        given = np.where(table.flag("too-long"), 0, table.gold)  # not scored: may have no options at all
        gold = given.astype(np.int32)
        wrong = (gold != given) | (gold < 0) | ((gold >= table.valid.sum(axis=1)) & ~table.flag("too-long"))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            hint = "accuracy needs the index of the right option; ratings go with metric = spearman"
            raise DataError(f"gold {table.gold[at]:g} is no option", place=f"item {table.ids[at]}", hint=hint)
        return gold

    def whole(self, table: Table, macro: Sequence[str]) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        codes, paths = strata(table, macro)
        weights = statistics.macro_weights(paths)
        order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(paths)))[:-1]

        def estimate(credit: Floats, interval: Callable[[list[Floats], Floats], Interval]) -> Estimate:
            parts = np.split(credit[order], ends)
            value = float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
            if len(parts) == 1 or all(np.ptp(part) == 0 for part in parts):
                interval = statistics.wilson_macro  # one stratum, or nothing varies: see there
            return _estimate(value, len(credit), interval(parts, weights), flags)

        flags = {name: int(raised.sum()) for name, raised in table.flags.items() if raised.any()}
        credit = self.values(table, "sum")
        headline = estimate(credit, statistics.bootstrap)
        views = {"closed-form": estimate(credit, statistics.closed_form)}
        if len(paths) > 1:
            means = np.array([part.mean() for part in np.split(credit[order], ends)])
            views["clustered"] = _estimate(headline.value, headline.n, statistics.clustered(means, weights), flags)
        everything = np.zeros(len(credit), np.int32)
        views["micro"] = self._counted(credit, everything, 1, table)[0]
        for reduction in REDUCTIONS[1:]:
            views[reduction] = estimate(self.values(table, reduction), statistics.bootstrap)
        return headline, views, ()

    def parts(self, table: Table, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return self._counted(self.values(table, "sum"), codes, len(names), table)

    def _counted(self, credit: Floats, codes: Ints, count: int, table: Table) -> list[Estimate]:
        """Mean and Wilson interval of each of `count` groups of items."""
        known = codes >= 0
        n = np.bincount(codes[known], minlength=count).astype(np.float64)
        right = np.bincount(codes[known], credit[known], minlength=count)
        low, high = statistics.wilson(right.astype(np.float64), n)
        raised = {name: np.bincount(codes[known & on], minlength=count) for name, on in table.flags.items()}
        flags = [{name: int(counts[g]) for name, counts in raised.items() if counts[g]} for g in range(count)]
        return [_estimate(right[g] / n[g], int(n[g]), Interval(low[g], high[g]), flags[g]) for g in range(count)]


class Spearman:
    """Rank correlation of the first option's probability with the human rating, as BabyLM scores WUG.

    The probability is the softmax over the options' summed log-probabilities, the correlation over all of the suite
    (evaluation-pipeline-2025, sentence_zero_shot/compute_results.py). Items that are too long are left out; n says so.
    """

    def __init__(self, ties: str) -> None:
        del ties  # ranks take care of equal values

    def values(self, table: Table, reduction: str) -> Floats:
        """Probability (n,) of the first option."""
        scores = np.where(table.valid, table.reduced(reduction), -np.inf)
        with np.errstate(invalid="ignore"):
            probability = np.exp(scores[:, 0] - logsumexp(scores, axis=1))
        lost = np.isnan(probability) & ~table.flag("too-long")
        if lost.any():
            place = f"item {table.ids[int(np.flatnonzero(lost)[0])]}"
            raise CheckpointError("every option has probability 0", place=place, hint="score in float32")
        return np.asarray(probability)

    def whole(self, table: Table, macro: Sequence[str]) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        if len(strata(table, macro)[1]) > 1:
            raise UsageError("spearman runs over all items of a suite", hint="leave `macro` empty in the suite's TOML")
        everything = np.ones(len(table.ids), bool)
        headline = self._correlate(table, everything, "sum")
        views = {reduction: self._correlate(table, everything, reduction) for reduction in REDUCTIONS[1:]}
        vague = (headline.low, headline.high) == (-1.0, 1.0)
        return headline, views, ("correlation undefined (too few items, or all equal): shown as 0",) if vague else ()

    def parts(self, table: Table, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return [self._correlate(table, codes == g, "sum") for g in range(len(names))]

    def _correlate(self, table: Table, members: Bools, reduction: str) -> Estimate:
        use = members & ~table.flag("too-long")
        x, y = self.values(table, reduction)[use], table.gold[use]
        flags = {name: int((on & members).sum()) for name, on in table.flags.items() if (on & members).any()}
        value = statistics.spearman(x, y)
        if value is None:  # we know nothing: the whole range
            return _estimate(0.0, len(x), Interval(-1.0, 1.0), flags)
        return _estimate(value, len(x), statistics.bootstrap_spearman(x, y), flags)


def tabulate(predictions: Sequence[Prediction], levels: set[str]) -> Table:
    """Predictions as a Table. Raises DataError when there are none, CheckpointError where a score is NaN or +inf."""
    if not predictions:
        raise DataError("no predictions to summarise", hint="the suite has no items")
    valid, (scores, tokens, characters) = _pad(predictions)
    names = {flag for p in predictions for flag in p.flags}
    flags = {name: np.array([name in p.flags for p in predictions]) for name in sorted(names)}
    table = Table(
        ids=tuple(p.id for p in predictions),
        gold=np.array([p.gold for p in predictions], float),
        scores=scores,
        tokens=tokens,
        characters=characters,
        valid=valid,
        flags=flags,
        levels={level: _codes([p.labels.get(level) for p in predictions]) for level in levels},
    )
    broken = ((np.isnan(scores) | (scores == np.inf)) & valid).any(axis=1) | ~valid.any(axis=1)
    broken &= ~table.flag("too-long")
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise CheckpointError(
            f"the model gives no finite score to {int(broken.sum())} of {len(predictions)} items",
            place=f"item {table.ids[first]}",
            hint="NaN weights or an overflow; try --dtype float32, and look at the checkpoint's training loss",
        )
    tie = (table.best().sum(axis=1) > 1) & ~table.flag("too-long")
    return Table(table.ids, table.gold, scores, tokens, characters, valid, {"tie": tie, **flags}, table.levels)


def strata(table: Table, macro: Sequence[str]) -> tuple[Ints, list[tuple[str, ...]]]:
    """Stratum of each item (n,), and each stratum's label path. DataError where an item lacks a label of `macro`."""
    for level in macro:
        absent = np.flatnonzero(table.levels[level][0] < 0)
        if len(absent):
            place, hint = f"item {table.ids[int(absent[0])]}", "see `macro` and `groups` in the suite's TOML"
            raise DataError(f"no label {level!r}, which the headline averages over", place=place, hint=hint)
    if not macro:
        return np.zeros(len(table.ids), np.int32), [()]
    columns = np.stack([table.levels[level][0] for level in macro], axis=1)
    distinct, codes = np.unique(columns, axis=0, return_inverse=True)
    paths = [tuple(table.levels[lv][1][code] for lv, code in zip(macro, row, strict=True)) for row in distinct]
    return codes.reshape(-1).astype(np.int32), paths


def _resolve(metric: str, ties: str) -> Metric:
    for what, name, known in (("metric", metric, METRICS), ("tie rule", ties, TIES)):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"unknown {what} {name!r}", hint=hint)
    module, _, attribute = METRICS[metric].partition(":")
    made: Metric = getattr(import_module(module), attribute)(ties)
    return made


def _pad(predictions: Sequence[Prediction]) -> tuple[Bools, tuple[Floats, Floats, Floats]]:
    sizes = np.array([len(p.scores) for p in predictions])
    valid = np.arange(max(int(sizes.max()), 1)) < sizes[:, None]
    padded = []
    for rows in ([p.scores for p in predictions], [p.tokens for p in predictions], [p.characters for p in predictions]):
        column = np.zeros(valid.shape)
        flat = [number for row in rows for number in row]
        if len(flat) != valid.sum():
            odd = next(p.id for p, row in zip(predictions, rows, strict=True) if len(row) != len(p.scores))
            raise DataError("scores, tokens and characters differ in length", place=f"item {odd}")
        column[valid] = flat
        padded.append(column)
    return valid, (padded[0], padded[1], padded[2])


def _codes(labels: Sequence[str | None]) -> tuple[Ints, tuple[str, ...]]:
    seen: dict[str, int] = {}
    codes = [-1 if label is None else seen.setdefault(label, len(seen)) for label in labels]
    return np.array(codes, np.int32), tuple(seen)


def _parents(table: Table, above: str | None, codes: Ints, count: int) -> list[str]:
    """For each group, the one value that all its items have one level up, or ""."""
    if above is None:
        return [""] * count
    outer, names = table.levels[above]
    pairs = np.unique(np.stack([codes, outer], axis=1)[codes >= 0], axis=0)
    return [names[o[0]] if len(o := pairs[pairs[:, 0] == g, 1]) == 1 and o[0] >= 0 else "" for g in range(count)]


def _draw(item: str, among: NDArray[np.integer]) -> int:
    """One of `among`, the same for the same id whatever the order, platform or number of items."""
    return int(among[int.from_bytes(hashlib.blake2b(item.encode()).digest()[:8], "big") % len(among)])


def _estimate(value: float, n: int, interval: Interval, flags: Mapping[str, int]) -> Estimate:
    return Estimate(float(value), int(n), float(interval.low), float(interval.high), dict(flags))
