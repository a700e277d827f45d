"""`power`: compute the drop that a suite's items or seeds detect, and how many a margin needs.

It needs no model, and no data if the suite's declaration states the number of items of each
stratum.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from antlm_bench import statistics
from antlm_bench.comparison.verdict import DEFAULT_MARGIN
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import METRICS, ItemKind
from antlm_bench.statistics import CONFIDENCE_LEVEL
from antlm_bench.suites import loader, sources
from antlm_bench.suites.task_types import TASK_TYPES, find_task_type, read_declaration
from antlm_bench.types import Floats, Names, as_list

Correction = Literal["none", "holm"]
MAX_SEEDS = 1000
"""Largest number of seeds that is considered."""


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """The power of one suite, and the items or seeds that a margin needs.

    Drops and margins are fractions.
    """

    suite: str
    unit: Literal["items", "seeds"]
    """The unit of `count` and `needed`: items, or seeds of each run."""
    count: int
    """Number of items, or of seeds."""
    strata: int
    """Number of strata (paradigms, domains), or of finetuned tasks."""
    detectable: float | None
    """Smallest true drop that is significant with a power of 80%. None = no drop is."""
    margin: float
    passes: float
    """Probability that a run without a true difference passes a check with this margin."""
    needed: int | None
    """Number of items or seeds for which `passes` is 80%. None = more than a million times the
    items, or more than MAX_SEEDS seeds."""
    is_clustered: bool = False
    """Whether items belong together, but are planned as independent, because no design effect is
    given. A comparison, which counts clusters as units, may then detect less."""


class SuiteStrata(NamedTuple):
    """The strata that a suite's headline averages."""

    sizes: Floats
    """Items of each stratum (R,)."""
    weights: Floats
    """Weight of each stratum (R,); they sum to 1."""
    is_clustered: bool = False
    """Whether items belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOptions:
    """Assumptions of a plan."""

    flips: float | None = None
    """Share of the items that two runs answer differently."""
    accuracy: float | None = None
    """Alternative to `flips`: the accuracy a of two runs whose errors are independent. Such runs
    answer 2 a (1 - a) of the items differently; runs of one recipe differ in fewer."""
    design_effect: float | None = None
    """Factor by which clusters change the variance of a difference, as `compare` observes it. None
    = items are independent."""
    margin: float = DEFAULT_MARGIN
    """Margin of `check`, as a fraction."""
    correction: Correction = "none"
    """"holm": a drop must be significant after a correction for all suites, as in `check`."""
    seeds: int = 5
    """Seeds of each run on finetuned tasks."""
    seed_sd: float | None = None
    """Standard deviation of a task's score over seeds, as a fraction."""

    def flip_rate(self) -> float | None:
        """Return the share of items that flip. Raises UsageError if two options state it."""
        if self.flips is not None and self.accuracy is not None:
            raise UsageError(
                "--flips and --accuracy exclude each other",
                location="--accuracy",
                hint="--accuracy computes the flips of two independent runs",
            )
        if self.accuracy is not None:
            return 2 * self.accuracy * (1 - self.accuracy)
        return self.flips


def plan_power(suites: Names, options: PowerOptions) -> list[PowerPlan]:
    """Return a plan per suite. A collection is replaced by its members that can be planned.

    Suites of right and wrong answers need `flips` or `accuracy`, finetuned suites need `seed_sd`.
    Raises UsageError, DeclarationError, and DataError if strata are neither declared nor in local
    data.
    """
    for name, value, limit in (
        ("--flips", options.flips, 1.0),
        ("--accuracy", options.accuracy, 1.0),
        ("--seed-sd", options.seed_sd, 0.5),
    ):
        if value is not None and not 0 <= value <= limit:
            raise UsageError(
                f"{100 * value:g}% is not a share", location=name, hint=f"0% to {100 * limit:g}%"
            )
    effect = options.design_effect
    if effect is not None and not 0 < effect < np.inf:
        raise UsageError(
            f"{effect:g} is not a design effect",
            location="--design-effect",
            hint="a number above 0, as `compare` states it for suites with clusters",
        )
    if not 0 < options.margin <= 1:
        raise UsageError(
            f"{100 * options.margin:g} points is not a margin",
            location="--margin",
            hint="more than 0, at most 100 points",
        )
    refs = list(dict.fromkeys(ref for name in as_list(suites) for ref in _list_members(name)))
    num_tests = len(refs) if options.correction == "holm" else 1
    alpha = (1 - CONFIDENCE_LEVEL) / num_tests
    return [
        _plan_seeds(ref, options, alpha)
        if _find_planned_unit(ref) == "seeds"
        else _plan_items(ref, options, alpha)
        for ref in refs
    ]


def _list_members(ref: str) -> Iterator[str]:
    """Yield the suites of a collection that can be planned, or the suite itself."""
    if find_task_type(ref).matches(ref):
        yield ref
        return
    spec, _ = read_declaration(ref)
    members = TASK_TYPES[spec.task_type].members(spec, "")
    if members:
        yield from (member for member in members if _find_planned_unit(member))
    elif _find_planned_unit(ref):
        yield ref
    else:
        raise UsageError(
            f"the power of {ref!r} cannot be planned: its items are not right or wrong",
            location="--suite",
            hint="`compare` states which difference two of its runs detect",
        )


def _find_planned_unit(ref: str) -> str:
    """Return what is planned for a suite: "items", "seeds", or "" = nothing."""
    if find_task_type(ref).matches(ref):
        return "items"
    spec, _ = read_declaration(ref)
    unit = TASK_TYPES[spec.task_type].planned_unit
    metric = getattr(spec, "metric", None)
    has_choices = metric is not None and METRICS[metric].item_kind is ItemKind.CHOICE
    return unit if unit != "items" or has_choices else ""


# ---- items


def _plan_items(ref: str, options: PowerOptions, alpha: float) -> PowerPlan:
    """Plan a suite of right and wrong answers. alpha: level of a significant drop."""
    flips = options.flip_rate()
    if flips is None:
        raise UsageError(
            f"the power of {ref!r} depends on the share of items that flip, which is not given",
            location="--flips",
            hint="e.g. --flips 2% (`compare` lists the flips of two runs), or --accuracy 80%",
        )
    strata = read_strata(ref)
    num_independent = strata.sizes / (options.design_effect or 1.0)
    rates = statistics.planned_flip_rates(num_independent, strata.weights, flips)
    [detectable] = statistics.detectable_drops(rates, alpha)
    factor = statistics.items_factor(rates, options.margin)
    return PowerPlan(
        suite=ref,
        unit="items",
        count=int(strata.sizes.sum()),
        strata=len(strata.sizes),
        detectable=None if np.isnan(detectable) else float(detectable),
        margin=options.margin,
        passes=statistics.pass_probability(rates, options.margin),
        needed=None if np.isnan(factor) else int(np.ceil(strata.sizes * factor - 1e-6).sum()),
        is_clustered=strata.is_clustered and options.design_effect is None,
    )


def read_strata(ref: str) -> SuiteStrata:
    """Return the strata of a suite's headline from its declaration, else from local data.

    Raises DataError if the declaration does not state them and the data is absent.
    """
    task_type = find_task_type(ref)
    if not task_type.matches(ref):
        declaration, folder = read_declaration(ref)
        spec: Any = declaration  # those that are planned have `macro` and `data`
        declared = _declared_strata(spec)
        if declared:
            return declared
        statuses = sources.list_files(spec, folder) if spec.data else []
        if any(file_status.state == "absent" for file_status in statuses):
            raise DataError(
                "the declaration does not state the items of each "
                f"{spec.macro[-1] if spec.macro else 'suite'}, and its data is absent",
                location=ref,
                hint=f"antlm-bench data fetch {shlex.quote(ref)}",
            )
    suite = loader.load_suite(ref, allow_incomplete=True)
    paths = [tuple(item.labels[level] for level in suite.macro) for item in suite.items]
    counts = Counter(paths)
    weights = statistics.macro_weights(list(counts))
    clusters = [item.cluster for item in suite.items if item.cluster]
    is_clustered = len(set(clusters)) < len(clusters)
    return SuiteStrata(np.array(list(counts.values()), float), weights, is_clustered)


def _declared_strata(spec: Any) -> SuiteStrata | None:
    """Return the strata that a declaration states, or None."""
    # SyntaxGym's declarations state neither items nor a grammar.
    expect, grammar = getattr(spec, "expect", None), getattr(spec, "grammar", None)
    if not spec.macro and expect:
        sizes = np.array([expect.items], float)
        return SuiteStrata(sizes, np.ones(1), bool(spec.cluster))
    counts = expect.counts if expect else {}
    if grammar:
        counts = {paradigm.name: grammar.pairs for paradigm in grammar.paradigm}
    if not counts or spec.macro != (spec.finest_level,):
        return None
    sizes = np.array(list(counts.values()), float)
    return SuiteStrata(sizes, np.full(len(sizes), 1 / len(sizes)), bool(spec.cluster))


# ---- seeds


def _plan_seeds(ref: str, options: PowerOptions, alpha: float) -> PowerPlan:
    """Plan the mean over the tasks of a finetuned suite. alpha: level of a significant drop."""
    sd, seeds, margin = options.seed_sd, options.seeds, options.margin
    if not sd:
        raise UsageError(
            f"the power of {ref!r} depends on the spread of its seeds, which is not given",
            location="--seed-sd",
            hint="e.g. --seed-sd 1.5, in points (`report` shows the largest over tasks)",
        )
    if seeds < 2:
        raise UsageError(f"{seeds} seeds are too few", location="--seeds", hint="2 or more")
    spec, _ = read_declaration(ref)
    num_tasks = len(getattr(spec, "task", ())) or 1
    needed = [
        count
        for count in range(2, MAX_SEEDS + 1)
        if statistics.seeds_power(margin, sd, count, num_tasks) >= statistics.POWER
    ]
    return PowerPlan(
        suite=ref,
        unit="seeds",
        count=seeds,
        strata=num_tasks,
        detectable=statistics.seeds_detectable(sd, seeds, num_tasks, alpha),
        margin=margin,
        passes=statistics.seeds_power(margin, sd, seeds, num_tasks),
        needed=min(needed, default=None),
    )
