"""The variance of a mean over seeds and items, and its confidence interval.

Scores of finetuned models vary over seeds and over items. The interval says how far their mean
would move if both were drawn again. Every seed answers the same items, so the design is crossed.
Let y_si be the contribution of item i (of n) under seed s (of S):

    y_si = mu + a_s + b_i + c_si,    Var(mean of y) = var_a / S + var_b / n + var_c / (S n).

MS_a, MS_b and MS_c are the mean squares of seeds, items and residuals in a two-way table without
replication. Their expectations are n var_a + var_c, S var_b + var_c and var_c (Searle, Casella &
McCulloch 1992, ch. 4). Therefore

    Var = MS_a / (S n) + (MS_b - MS_c) / (S n)
        = var(seed means) / S + (var(item means) / n - MS_c / (S n)).

This is the variance over seeds plus the variance over items, less the interaction, which both
contain. The interaction is subtracted from the item component, which is at least 0. The seed
component stays a sum of squares, with exactly S - 1 degrees of freedom.

Few seeds estimate a variance badly, and the interval must account for this. Let r be the seed
component's share of the variance. The t quantile of the interval is

    q = t_items + (t_seeds - t_items) max(0, r - 1/20) / (1 - 1/20).

This is Cochran's (1964, Biometrics 20, 191-195) mean of the components' quantiles, weighted by the
components, except that a share below 1/20 (NEGLIGIBLE_SEED_SHARE) does not widen the interval. With
2 seeds (t = 12.7), a 95% interval covers 93.3-96.6% over all true shares (by integration, not
simulation). Cochran's quantile itself covers 93.9-97.8%. Satterthwaite's degrees of freedom cover
87%, because two seeds that happen to be close give a small seed component and many degrees of
freedom at once.

A mean over tasks or a difference of runs has a component per task or run. If each has at least 3
seeds, the components are added with Welch and Satterthwaite's degrees of freedom, (sum_k p_k)^2 /
sum_k (p_k^2 / d_k). DF_CORRECTION is subtracted from each d_k and added to the result, because
the shares of the components are uncertain, too. This does not hold for components with one degree
of freedom: with 7 of them, 90% are covered if one has nearly all of the variance, 98% if all are
equal. Therefore, if any component has 2 seeds, each component is replaced by one contrast of two
seeds, (y_1 - y_2) / sqrt(2 S), which varies as the mean does. The sum of the contrasts has the
variance of the sum, so its square has exactly one degree of freedom, whatever the shares (Scheffe
1943, Ann. Math. Stat. 14, 35-44), and also if tasks share seeds. The interval is then as wide as
that of a single pair of seeds, which a note must say.

By simulation, a 95% interval covers 93-97%. With 2 seeds: see above. With 3, 4, 5 and 10 seeds:
92.9-97.2%, and 93.9-96.6% if no run has fewer than 4. The simulations had one run, or two with
equal and unequal numbers of seeds; 1 to 14 tasks; and seed components with none to all of the
variance, equal in all tasks or nearly all in one. (The pigeonhole bootstrap, Owen 2007, resamples
rows and columns of the table and counts the interaction up to three times; 3 to 5 seeds are hardly
enough to resample.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtridf, stdtrit

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.stratified_score import score_interval
from antlm_bench.types import Bools, Floats

NEGLIGIBLE_SEED_SHARE = 0.05
"""Share of the variance up to which a seed component does not widen the interval."""
DF_CORRECTION = 0.4
"""Correction of degrees of freedom for the uncertainty of the shares; see the module docstring."""


class VarianceComponent(NamedTuple):
    """A component of a variance; the components are added."""

    variance: float
    df: float = np.inf
    """Degrees of freedom; infinite = the variance is treated as known."""
    contrast: float = 0.0
    """For a seed component: the contrast of two seeds, with mean 0 and the variance of the mean."""


@dataclass(frozen=True, slots=True)
class UncertainValue:
    """An estimate and the independent components of its variance."""

    value: float
    item_components: tuple[VarianceComponent, ...] = ()
    """Variance over items."""
    seed_components: tuple[VarianceComponent, ...] = ()
    """Variance over seeds; () if there is one seed."""

    @property
    def variance(self) -> float:
        """Variance of the estimate; 0 without components."""
        items, seeds = self._variance_components
        return items.variance + seeds.variance

    @property
    def df(self) -> float:
        """Degrees of freedom of the interval: their t quantile is q of the module docstring."""
        (items, seeds), total = self._variance_components, self.variance
        share = 0.0
        if total > 0:
            excess = max(seeds.variance / total - NEGLIGIBLE_SEED_SHARE, 0.0)
            share = excess / (1 - NEGLIGIBLE_SEED_SHARE)
        t_items, t_seeds = _t_quantile(items.df), _t_quantile(seeds.df)
        t = t_items + (t_seeds - t_items) * share
        return float(stdtridf((1 + CONFIDENCE_LEVEL) / 2, t)) if t > Z * (1 + 1e-9) else np.inf

    @property
    def interval(self) -> Interval:
        """The t interval at CONFIDENCE_LEVEL."""
        half_width = _t_quantile(self.df) * self.variance**0.5
        return Interval(self.value - half_width, self.value + half_width)

    @property
    def p(self) -> float:
        """Two-sided p-value that the true value is 0.

        It is below 1 - CONFIDENCE_LEVEL if and only if the interval excludes 0.
        """
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * stdtr(self.df, -abs(self.value) / self.variance**0.5))

    @property
    def _variance_components(self) -> tuple[VarianceComponent, VarianceComponent]:
        """The summed item component and the summed seed component."""
        return _sum_components(self.item_components), _sum_seed_components(self.seed_components)


def uncertain_from_interval(value: float, interval: Interval) -> UncertainValue:
    """Return a value with the variance of a normal interval of the same width.

    For intervals that are not t intervals (bootstrap, Wilson).
    """
    standard_error = (interval.high - interval.low) / (2 * Z)
    return UncertainValue(value, (VarianceComponent(standard_error**2),))


def two_level_mean(values: Floats) -> UncertainValue:
    """Return the mean of values (S, n), the contributions of n items under each of S seeds, with
    its variance over seeds and items.

    The mean of a row is the metric of a seed. With one seed, the variance is over items only, which
    a note must say. With one item, it is over seeds only; with one of each, it is nan.
    """
    if values.size == 1:
        return UncertainValue(float(values.mean()), (VarianceComponent(float("nan"), 1.0),))
    return _crossed_mean([values], values.mean(axis=0))


def mixture_interval(values: Floats, collapsed: Bools) -> Interval:
    """Return the interval of the mean of values (S, n) if some of the seeds collapsed.

    collapsed (S,): which seeds did. These are two populations of seeds, so a t interval over all
    seeds would be wrong. The mean is m - share * gap: m is the mean of the seeds that did not
    collapse, share is the share of collapsed seeds, gap is the difference of the two means. The
    intervals of m (over seeds and items) and of the share (a score interval) are combined by adding
    the squares of their distances to the mean (MOVER: Zou & Donner 2008).
    """
    not_collapsed, share = two_level_mean(values[~collapsed]), float(collapsed.mean())
    gap = not_collapsed.value - float(values[collapsed].mean())
    one_stratum = np.zeros(len(collapsed), np.int32)
    lowest_share, highest_share = score_interval(collapsed.astype(float), one_stratum, np.ones(1))
    changes_by_share = sorted((-gap * (highest_share - share), gap * (share - lowest_share)))
    half_width = (1 - share) * (not_collapsed.interval.high - not_collapsed.value)
    value = float(values.mean())
    below, above = (float(np.hypot(half_width, change)) for change in changes_by_share)
    return Interval(value - below, value + above)


def two_level_change(a: Floats, b: Floats) -> UncertainValue:
    """Return mean(b) - mean(a) of values (S1, n) and (S2, n) on the same n items, with its
    variance.

    The seeds of the two runs are independent, but their items are the same. Therefore Var =
    var_a(seeds)/S1 + var_b(seeds)/S2 + var(differences of item means)/n, less the interactions. A
    run of one seed has no variance over seeds here, which a note must say. Raises ValueError if the
    numbers of items differ.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} items cannot be paired")
    return _crossed_mean([-a, b], b.mean(axis=0) - a.mean(axis=0))


def two_level_test(a: Floats, b: Floats) -> tuple[float, Interval, float]:
    """Return value, interval and two-sided p-value of `two_level_change`.

    If all items changed by the same amount, the p-value is that of a sign test.
    """
    change = two_level_change(a, b)
    if change.variance == 0 and change.value:
        return change.value, change.interval, float(min(1.0, 2.0 ** (1 - a.shape[1])))
    return change.value, change.interval, change.p


def weighted_mean(
    estimates: Sequence[UncertainValue],
    weights: Sequence[float] | Floats | None = None,
    trainings: Sequence[str] = (),
) -> UncertainValue:
    """Return sum_k w_k value_k of K estimates of different items.

    The default weights are 1/K (a macro-average over tasks). trainings: name of the training of
    each estimate's models; () = each has its own. Item components are independent: Var =
    sum_k w_k^2 var_k. So are seed components of different trainings. Estimates of one training
    (mnli and mnli-mm) vary together over its seeds: their standard deviations are added, which is
    the largest variance that their sum can have. Components keep their degrees of freedom, those of
    one training get the lowest of theirs.
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
    return UncertainValue(value, tuple(items), tuple(seeds))


def _add_correlated(components: Sequence[VarianceComponent]) -> VarianceComponent:
    """Return the component of a sum of values that vary together."""
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


def _crossed_mean(runs: Sequence[Floats], item_means: Floats) -> UncertainValue:
    """Return the mean of item_means (n,) with its variance.

    runs: values (S, n) of one or two independent runs; item_means is the sum of their item means.
    """
    runs_with_seeds, n = [values for values in runs if len(values) > 1], len(item_means)
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
    items = VarianceComponent(max(variance, 0.0), n - 1)
    return UncertainValue(float(item_means.mean()), (items,), tuple(seeds))


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
