"""Suites whose items earn credit (right, wrong, shares of ties): paired differences of macro-averages and of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench import statistics
from antlm_bench.compare.difference import FIRST, HEADLINE, Difference, Flip
from antlm_bench.compare.join import Joined
from antlm_bench.metrics import resolve
from antlm_bench.metrics.table import Table, gold_options, parents, strata
from antlm_bench.statistics import Interval
from antlm_bench.types import Estimate, Floats, Ints

Found = tuple[Difference, tuple[Difference, ...], tuple[Flip, ...]]  # the headline, the groups, what flipped


@dataclass(frozen=True, slots=True)
class Paired:
    """Credits and margins of n items under both runs. moved (n,): change of margin, nan where there is none. same: do
    the runs agree in every score, as two runs of one model do?"""

    a: Floats
    b: Floats
    moved: Floats
    same: bool

    @property
    def change(self) -> Floats:
        return self.b - self.a


def credited(joined: Joined) -> Found:
    """Headline, groups and flips of a suite whose items earn credit."""
    settings, summary = joined.cells_a[0].settings, joined.cells_a[0].summary
    table, other = joined.a[0], joined.b[0]
    ties, reduction = str(settings.get("ties", "half")), str(settings.get("reduction", "sum"))
    measure = resolve(summary.metric, ties, reduction)
    paired = Paired(
        a=measure.values(table, reduction),
        b=measure.values(other, reduction),
        moved=margins(other, reduction) - margins(table, reduction),
        same=table.scores.shape == other.scores.shape and bool(np.all(table.scores == other.scores)),
    )
    codes, paths = strata(table, summary.macro)
    headline = _headline(joined.suite, paired, codes, statistics.macro_weights(paths))
    groups: list[Difference] = []
    levels = [level for level in dict.fromkeys(group.level for group in summary.groups) if level in table.levels]
    for above, level in zip((None, *levels), levels, strict=False):
        groups += _level(level, table, paired, above)
    return headline, tuple(groups), _flips(table, paired)


def _headline(suite: str, paired: Paired, codes: Ints, weights: Floats) -> Difference:
    """The weighted mean over strata. Items are resampled within strata; "clustered": were strata a sample."""
    parts = _split(paired.change, codes, len(weights))
    means = np.array([part.mean() for part in parts])
    n, value = len(paired.change), float(weights @ means)
    if paired.same:
        interval = Interval(0.0, 0.0)
    elif len(parts) == 1 or all(np.ptp(part) == 0 for part in parts):
        interval = statistics.adjusted_macro(parts, weights)
    else:
        interval = statistics.bootstrap(parts, weights)
    views = {"closed-form": Estimate(value, n, *statistics.closed_form(parts, weights))}
    if len(parts) > 1:
        views["clustered"] = Estimate(value, n, *statistics.clustered(means, weights))
    a, b = (
        float(weights @ [part.mean() for part in _split(side, codes, len(weights))]) for side in (paired.a, paired.b)
    )
    return Difference(
        level=HEADLINE,
        name=suite,
        within="",
        n=n,
        a=a,
        b=b,
        value=value,
        low=interval.low,
        high=interval.high,
        family=FIRST,
        views=views,
        gained=int((paired.change > 0).sum()),
        lost=int((paired.change < 0).sum()),
        margin=_mean_margin(_split(paired.moved, codes, len(weights)), weights),
    )


def _level(level: str, table: Table, paired: Paired, above: str | None) -> list[Difference]:
    """Every group of a label level: differences over its items, as its two values are."""
    codes, names = table.levels[level]
    within = parents(table, above, codes, len(names))
    parts = [_split(side, codes, len(names)) for side in (paired.a, paired.b, paired.change, paired.moved)]
    made = []
    for name, outer, a, b, change, moved in zip(names, within, *parts, strict=True):
        low, high = (
            (0.0, 0.0)
            if paired.same
            else map(float, statistics.adjusted_wald(change.sum(), change @ change, len(change)))
        )
        made.append(
            Difference(
                level=level,
                name=name,
                within=outer,
                n=len(change),
                a=float(a.mean()),
                b=float(b.mean()),
                value=float(change.mean()),
                low=low,
                high=high,
                gained=int((change > 0).sum()),
                lost=int((change < 0).sum()),
                margin=_mean_margin([moved], np.ones(1)),
            )
        )
    return made


def _split(values: Floats, codes: Ints, count: int) -> list[Floats]:
    """The values of each of `count` groups; items of no group (-1) are left out."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes + 1, minlength=count + 1)
    return np.split(values[order], np.cumsum(sizes)[:-1])[1:]


def margins(table: Table, reduction: str) -> Floats:
    """log P(right option) - log P(best other) (n,) in nats, of the scores that decide; nan where one is missing."""
    scores = np.where(table.valid, table.reduced(reduction), -np.inf)
    rows, gold = np.arange(len(scores)), gold_options(table)
    right = scores[rows, gold]
    others = scores.copy()
    others[rows, gold] = -np.inf
    with np.errstate(invalid="ignore"):
        margin = right - others.max(axis=1)
    return np.where(np.isfinite(margin) & ~table.flag("too-long"), margin, np.nan)


def _mean_margin(parts: Sequence[Floats], weights: Floats) -> Estimate | None:
    """The weighted mean of mean margins with its normal interval; None where a stratum has none or too few items."""
    known = [part[~np.isnan(part)] for part in parts]
    n = sum(map(len, known))
    if n < 2 or not all(map(len, known)):
        return None
    value = float(sum(w * part.mean() for w, part in zip(weights, known, strict=True)))
    return Estimate(value, n, *statistics.closed_form(known, weights))


def _flips(table: Table, paired: Paired) -> tuple[Flip, ...]:
    """Items whose credit moved: lost ones first, and of those the ones whose margin fell most."""
    rows = np.flatnonzero(paired.change)
    rows = rows[np.lexsort((np.nan_to_num(paired.moved[rows]), paired.change[rows]))]
    levels = {level: (codes[rows].tolist(), names) for level, (codes, names) in table.levels.items()}
    margins = [None if np.isnan(moved) else float(moved) for moved in paired.moved[rows]]
    return tuple(
        Flip(
            id=table.ids[row],
            labels={level: names[codes[i]] for level, (codes, names) in levels.items() if codes[i] >= 0},
            a=float(paired.a[row]),
            b=float(paired.b[row]),
            margin=margins[i],
        )
        for i, row in enumerate(rows.tolist())
    )
