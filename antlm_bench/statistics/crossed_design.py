"""The variance of a mean over seeds and items, and its confidence interval.

Scores of finetuned models vary over seeds and over items, and the interval of their mean covers
both. Every seed answers the same items, so the design is crossed.
Let y_si be the contribution of item i (of n) under seed s (of S):

    y_si = mu + a_s + b_i + c_si,    Var(mean of y) = var_a / S + var_b / n + var_c / (S n).

MS_a, MS_b and MS_c are the mean squares of seeds, items and residuals in a two-way table without
replication. Their expectations are n var_a + var_c, S var_b + var_c and var_c (Searle, Casella &
McCulloch 1992, ch. 4). Therefore

    Var = MS_a / (S n) + (MS_b - MS_c) / (S n)
        = var(seed means) / S + (var(item means) / n - MS_c / (S n)).

This is the variance over seeds plus the variance over items, less the interaction, which is part of
both. The interaction is subtracted from the item component, which is at least 0. The seed component
is left a sum of squares, with exactly S - 1 degrees of freedom.

Few seeds estimate a variance badly, and the t quantile accounts for this. Let r be the seed
component's share of the variance. The t quantile of the interval is

    q = t_items + (t_seeds - t_items) max(0, r - 1/20) / (1 - 1/20).

This is Cochran's (1964, Biometrics 20, 191-195) mean of the components' quantiles, weighted by the
components, except that a share below 1/20 (NEGLIGIBLE_SEED_SHARE) does not widen the interval. With
2 seeds (t = 12.7), a 95% interval covers 93.3-96.6% for all true shares (by numerical
integration). Cochran's quantile itself covers 93.9-97.8%. Satterthwaite's degrees of freedom cover
87%, because two seeds that happen to be close give a small seed component and many degrees of
freedom at once.

A mean over tasks or a difference of runs has a component per task or run. If each has at least 3
seeds, the components are added with Welch and Satterthwaite's degrees of freedom, (sum_k p_k)^2 /
sum_k (p_k^2 / d_k). DF_CORRECTION is subtracted from each d_k and added to the result, because
the shares of the components are uncertain, too. This fails for components with one degree of
freedom: 7 of them cover 90% if one has nearly all of the variance, and 98% if all are equal.
Therefore, if any component has 2 seeds, each component is replaced by one contrast of two
seeds, (y_1 - y_2) / sqrt(2 S), which varies as the mean does. The sum of the contrasts has the
variance of the sum, so its square has exactly one degree of freedom, whatever the shares (Scheffe
1943, Ann. Math. Stat. 14, 35-44), even if tasks share seeds. The interval is then as wide as
that of a single pair of seeds; callers add a note.

In simulations, 95% intervals cover 92.9-97.2% with 3, 4, 5 and 10 seeds, and 93.9-96.6% if no run
has fewer than 4. The simulations had one run, or two with
equal and unequal numbers of seeds; 1 to 14 tasks; and seed components with none to all of the
variance, equal in all tasks or nearly all in one. (The pigeonhole bootstrap, Owen 2007, resamples
rows and columns of the table and counts the interaction up to three times; 3 to 5 seeds are hardly
enough to resample.)

Differences of two runs with the same seeds are paired: d_si = y_si of run b - y_si of run a is one
two-way table, so everything above holds for it.

If some of a run's seeds collapsed, its seeds are two populations, and a t interval over all of them
would be wrong. The mean of the run is m - share * gap: m is the mean of the seeds that did not
collapse, share is the share of collapsed seeds, and gap is m less the mean of the collapsed seeds.
m has its t interval over seeds and items, the share has the score interval of its count, and the
distances of their ends from the mean are added as squares (MOVER: Zou & Donner 2008). The distance
of m is multiplied by 1 - (lower end of the share's interval), the largest weight that m may have.
In a difference of two runs, each has a share and a gap. If no seed of one of them collapsed, its
share has an interval from 0, and its gap is that to the collapsed seeds of the other run. If a
single seed did not collapse, nothing shows how much such seeds vary: the interval is infinite, and
callers show the range of the metric with a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.special_functions import stdtr, stdtridf, stdtrit
from antlm_bench.statistics.stratified_score import score_interval
from antlm_bench.types import Bools, Floats

NEGLIGIBLE_SEED_SHARE = 0.05
"""Share of the variance up to which a seed component does not widen the interval."""
DF_CORRECTION = 0.4
"""Correction of degrees of freedom for the uncertainty of the shares; see the module docstring."""


class VarianceComponent(NamedTuple):
    """An additive component of the variance of an estimate."""

    variance: float
    df: float = np.inf
    """Degrees of freedom; infinite = the variance is treated as known."""
    contrast: float = 0.0
    """For two seeds: (y_1 - y_2) / sqrt(2 S), with mean 0 and the variance of the seeds' mean."""


@dataclass(frozen=True, slots=True)
class UncertainValue:
    """An estimate and the independent components of its variance."""

    value: float
    item_components: tuple[VarianceComponent, ...] = ()
    """Variance over items."""
    seed_components: tuple[VarianceComponent, ...] = ()
    """Variance over seeds; () if there is one seed."""
    squared_below: float = 0.0
    """Squared distance that is added to that of the lower end of the t interval (MOVER)."""
    squared_above: float = 0.0
    """The same for the upper end."""

    @property
    def variance(self) -> float:
        """Variance of the estimate; 0 if the interval has no width."""
        return self._t_variance + (self.squared_below + self.squared_above) / (2 * Z**2)

    @property
    def df(self) -> float:
        """Degrees of freedom whose t quantile is q of the module docstring."""
        (items, seeds), total = self._variance_components, self._t_variance
        share = 0.0
        if total > 0:
            excess = max(seeds.variance / total - NEGLIGIBLE_SEED_SHARE, 0.0)
            share = excess / (1 - NEGLIGIBLE_SEED_SHARE)
        t_items, t_seeds = _t_quantile(items.df), _t_quantile(seeds.df)
        t = t_items + (t_seeds - t_items) * share
        return float(stdtridf((1 + CONFIDENCE_LEVEL) / 2, t)) if t > Z * (1 + 1e-9) else np.inf

    @property
    def tail_df(self) -> float:
        """Degrees of freedom of p-values far below 5%, for corrections of several tests.

        They are at most those of the seeds, however small the share of the seeds is. Two seeds that
        agree by chance do not show that seeds vary little, and far tails depend on it: with `df`,
        five checks of two seeds have a regression in 7.4% of simulations in place of 2.5%
        (`benchmarks/family_wise.py`).
        """
        return min(self.df, self._variance_components[1].df)

    @property
    def interval(self) -> Interval:
        """The interval at CONFIDENCE_LEVEL: a t interval, widened by the squared distances."""
        squared_half_width = _t_quantile(self.df) ** 2 * self._t_variance
        below = (squared_half_width + self.squared_below) ** 0.5
        above = (squared_half_width + self.squared_above) ** 0.5
        return Interval(self.value - below, self.value + above)

    @property
    def p(self) -> float:
        """Two-sided p-value that the true value is 0.

        It is below 1 - CONFIDENCE_LEVEL if and only if the interval excludes 0: the distance from 0
        is divided by the width of the interval on the side of 0.
        """
        low, high = self.interval
        distance = self.value - low if self.value > 0 else high - self.value
        if distance == 0:
            return float(self.value == 0)
        return float(2 * stdtr(self.df, -_t_quantile(self.df) * abs(self.value) / distance))

    @property
    def _t_variance(self) -> float:
        """Variance of the components."""
        items, seeds = self._variance_components
        return items.variance + seeds.variance

    @property
    def _variance_components(self) -> tuple[VarianceComponent, VarianceComponent]:
        """The summed item component and the summed seed component."""
        return _sum_components(self.item_components), _sum_seed_components(self.seed_components)


def uncertain_from_interval(value: float, interval: Interval) -> UncertainValue:
    """Return a value with an interval that is not a t interval (score or posterior interval).

    In a mean, the squared distances of its ends are added (MOVER).
    """
    return UncertainValue(
        value,
        squared_below=(value - interval.low) ** 2,
        squared_above=(interval.high - value) ** 2,
    )


def two_level_mean(values: Floats, collapsed: Bools | None = None) -> UncertainValue:
    """Return the mean of values (S, n), the contributions of n items under each of S seeds, with
    its variance over seeds and items.

    The mean of a row is the metric of a seed. With one seed, the variance is over items only, and
    callers add a note. With one item, it is over seeds only; with one of each, it is nan. collapsed
    (S,): which seeds collapsed; if only some did, the interval is that of a mixture of seeds.
    """
    if values.size == 1:
        return UncertainValue(float(values.mean()), (VarianceComponent(float("nan"), 1.0),))
    return _sum_runs(_Run(1.0, values, _fill_collapsed(values, collapsed)))


def two_level_change(
    a: Floats,
    b: Floats,
    *,
    paired: bool = False,
    collapsed_a: Bools | None = None,
    collapsed_b: Bools | None = None,
) -> UncertainValue:
    """Return mean(b) - mean(a) of values (S1, n) and (S2, n) on the same n items, with its
    variance.

    paired: row s of both is the same seed, so that the differences of S seeds and n items form one
    two-way table. Otherwise the seeds of the two runs are independent, but their items are the
    same. Therefore Var = var_a(seeds)/S1 + var_b(seeds)/S2 + var(differences of item means)/n, less
    the interactions. A run of one seed adds no variance over seeds, and callers add a note.
    collapsed_a (S1,), collapsed_b (S2,): which seeds collapsed; for seeds that are not paired.

    Raises ValueError if the numbers of items differ, or those of paired seeds.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} items cannot be paired")
    if paired:
        if len(a) != len(b):
            raise ValueError(f"{len(a)} and {len(b)} seeds cannot be paired")
        return two_level_mean(b - a)
    return _sum_runs(
        _Run(-1.0, a, _fill_collapsed(a, collapsed_a)),
        _Run(1.0, b, _fill_collapsed(b, collapsed_b)),
    )


def weighted_mean(
    estimates: Sequence[UncertainValue],
    weights: Sequence[float] | Floats | None = None,
    trainings: Sequence[str] = (),
) -> UncertainValue:
    """Return sum_k w_k value_k of K estimates of different items.

    weights (K,): None = 1/K (a macro-average over tasks). trainings (K,): name of the training of
    each estimate's models; () = each has its own. Item components are independent: Var =
    sum_k w_k^2 var_k. So are seed components of different trainings. Estimates of one training
    (mnli and mnli-mm) vary together over its seeds: their standard deviations are added, which
    gives the largest variance that their sum can have; the sum gets the lowest of their degrees of
    freedom.
    """
    if weights is None:
        weights = np.full(len(estimates), 1 / len(estimates))
    pairs = [(float(w), estimate) for w, estimate in zip(weights, estimates, strict=True)]
    items = [_scale(component, w) for w, e in pairs for component in e.item_components]
    seeds_by_training: dict[tuple[str | int, int], list[VarianceComponent]] = {}
    for index, (w, estimate) in enumerate(pairs):
        training = trainings[index] if trainings else index
        for run_index, component in enumerate(estimate.seed_components):
            key = (training, run_index)
            seeds_by_training.setdefault(key, []).append(_scale(component, w))
    seeds = map(_add_correlated, seeds_by_training.values())
    value = sum(w * estimate.value for w, estimate in pairs)
    below, above = 0.0, 0.0
    for w, estimate in pairs:
        is_reversed = w < 0  # a negative weight swaps the ends
        below += w**2 * (estimate.squared_above if is_reversed else estimate.squared_below)
        above += w**2 * (estimate.squared_below if is_reversed else estimate.squared_above)
    return UncertainValue(value, tuple(items), tuple(seeds), below, above)


def _add_correlated(components: Sequence[VarianceComponent]) -> VarianceComponent:
    """Return the component of a sum of values that vary together."""
    if len(components) == 1:
        return components[0]
    standard_deviation = sum(component.variance**0.5 for component in components)
    return VarianceComponent(
        standard_deviation**2,
        min(component.df for component in components),
        sum(component.contrast for component in components),
    )


def _scale(component: VarianceComponent, weight: float) -> VarianceComponent:
    return VarianceComponent(
        weight**2 * component.variance, component.df, weight * component.contrast
    )


def _fill_collapsed(values: Floats, collapsed: Bools | None) -> Bools:
    """Return `collapsed` (S,), or all False for values (S, n) if it is None."""
    return np.zeros(len(values), bool) if collapsed is None else collapsed


class _Run(NamedTuple):
    """The values of a run, and its sign in a sum of means."""

    sign: float
    values: Floats
    """Contributions (S, n)."""
    collapsed: Bools
    """Which seeds collapsed (S,)."""

    @property
    def is_mixture(self) -> bool:
        """Whether some of the seeds collapsed, but not all."""
        return 0 < int(self.collapsed.sum()) < len(self.collapsed)


def _sum_runs(*runs: _Run) -> UncertainValue:
    """Return the sum of sign * mean of one or two runs of independent seeds on the same items."""
    is_mixture = any(run.is_mixture for run in runs)
    collapsed_means = [float(run.values[run.collapsed].mean()) for run in runs if run.is_mixture]
    value, below, above = 0.0, 0.0, 0.0
    component_values = []
    for run in runs:
        value += run.sign * float(run.values.mean())
        uncollapsed = run.values[~run.collapsed]
        if not is_mixture or not len(uncollapsed):
            component_values.append(run.sign * run.values)
            continue
        collapsed_mean = float(np.mean(collapsed_means))
        if run.is_mixture:
            collapsed_mean = float(run.values[run.collapsed].mean())
        share = float(run.collapsed.mean())
        share_interval = _share_interval(int(run.collapsed.sum()), len(run.collapsed))
        gap = run.sign * (float(uncollapsed.mean()) - collapsed_mean)
        distance_below, distance_above = sorted(
            float(gap * (share - end)) for end in share_interval
        )
        has_interval = len(uncollapsed) > 1 or not run.collapsed.any()
        below += distance_below**2 if has_interval else np.inf
        above += distance_above**2 if has_interval else np.inf
        component_values.append(run.sign * (1 - share_interval.low) * uncollapsed)
    components = _crossed_components(component_values)
    total = UncertainValue(value, *components, squared_below=below, squared_above=above)
    # As squared distances: else a task with two seeds left would widen the mean over all tasks.
    return uncertain_from_interval(value, total.interval) if is_mixture else total


@cache
def _share_interval(count: int, total: int) -> Interval:
    """Return the score interval of the share count / total."""
    credits = (np.arange(total) < count).astype(float)
    return score_interval(credits, np.zeros(total, np.int32), np.ones(1))


def _crossed_components(
    runs: Sequence[Floats],
) -> tuple[tuple[VarianceComponent, ...], tuple[VarianceComponent, ...]]:
    """Return the item component and the seed components of the sum of the means of runs.

    runs: values (S, n) of one or two independent runs.
    """
    runs_with_seeds = [values for values in runs if len(values) > 1]
    item_means = np.sum([values.mean(axis=0) for values in runs], axis=0)
    n = len(item_means)
    seeds = []
    for values in runs_with_seeds:
        means, num_seeds = values.mean(axis=1), len(values)
        contrast = float(means[0] - means[1]) / (2 * num_seeds) ** 0.5
        variance = float(means.var(ddof=1)) / num_seeds
        seeds.append(VarianceComponent(variance, num_seeds - 1, contrast))
    variance = 0.0
    if n > 1:
        interaction = sum(map(_interaction_variance, runs_with_seeds))
        variance = float(item_means.var(ddof=1)) / n - interaction
    return (VarianceComponent(max(variance, 0.0), n - 1),), tuple(seeds)


def _interaction_variance(values: Floats) -> float:
    """Return MS_c / (S n): the variance of a mean over S >= 2 seeds and n >= 2 items that is due to
    their interaction.
    """
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((residuals**2).sum() / ((len(values) - 1) * (values.shape[1] - 1) * values.size))


def _sum_seed_components(components: Sequence[VarianceComponent]) -> VarianceComponent:
    """Return the sum of seed components; if any has only two seeds, that of their contrasts."""
    if any(component.df == 1 for component in components):
        return VarianceComponent(sum(component.contrast for component in components) ** 2, 1)
    return _sum_components(components, DF_CORRECTION)


def _sum_components(
    components: Sequence[VarianceComponent], df_correction: float = 0.0
) -> VarianceComponent:
    """Return the sum of independent components, with Satterthwaite's degrees of freedom."""
    if len(components) == 1:
        return components[0]
    variance = sum(component.variance for component in components)
    denominator = sum(
        component.variance**2 / (component.df - df_correction)
        for component in components
        if component.variance
    )
    df = variance**2 / denominator + df_correction if denominator > 0 else np.inf
    return VarianceComponent(variance, df)


def _t_quantile(df: float) -> float:
    return float(stdtrit(max(df, 1.0), (1 + CONFIDENCE_LEVEL) / 2)) if df < np.inf else Z
