"""The command `power`: plan a comparison before anything is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from antlm_bench.cli.shared_options import (
    Tables,
    model_option,
    prints_tables,
    settings_option,
    split_names,
)
from antlm_bench.errors import UsageError

if TYPE_CHECKING:
    from antlm_bench.commands.power import PowerPlan
    from antlm_bench.reporting.table import Table

LEGEND = (
    "detects: the smallest true drop, in every stratum, that is significant (p < .05) in 80% of "
    "repetitions with other items or seeds. passes: how often `check` with this margin passes a "
    "run without a true difference. needs: items or seeds with which it passes such a run in 80%."
)

CLUSTER_NOTE = (
    "items of {} belong together, but are planned as if independent: a comparison counts clusters, "
    "and may detect less, pass less often and need more (--design-effect: as `compare` states it)"
)


@prints_tables()
def power_command(
    suite: Annotated[
        list[str],
        model_option(
            metavar="NAME",
            help="Suite, collection, .csv .tsv .jsonl of pairs, or .toml. Repeatable, or a,b.",
        ),
    ],
    flips: Annotated[
        str,
        settings_option(
            metavar="SHARE",
            help="Items that two runs answer differently: 2% or 0.02.",
            show_default="none",
        ),
    ] = "",
    accuracy: Annotated[
        str,
        settings_option(
            metavar="SHARE",
            help="Instead of --flips: accuracy of two runs whose errors are independent.",
            show_default="none",
        ),
    ] = "",
    design_effect: Annotated[
        float | None,
        settings_option(
            metavar="D",
            help="Factor by which clusters of items change the variance, as `compare` states it.",
            show_default="none",
        ),
    ] = None,
    margin: Annotated[float, settings_option(metavar="POINTS", help="Margin of `check`.")] = 1.0,
    correction: Annotated[
        Literal["none", "holm"],
        settings_option(
            metavar="NAME",
            help="holm: significant after a correction for the number of suites, as in `check`.",
        ),
    ] = "none",
    seeds: Annotated[
        int, settings_option(metavar="N", min=2, help="Seeds of each run on finetuned suites.")
    ] = 5,
    seed_sd: Annotated[
        float | None,
        settings_option(
            metavar="POINTS",
            min=0,
            help="Standard deviation of a finetuned task's score over seeds.",
            show_default="none",
        ),
    ] = None,
) -> Tables:
    """Plan a comparison: the drop that a suite detects, and what a margin needs.

    Nothing is scored, and no model is opened. Suites of right and wrong answers need --flips or
    --accuracy, finetuned suites need --seed-sd.
    """
    from antlm_bench.commands.power import PowerOptions, plan_power

    options = PowerOptions(
        flips=_parse_share(flips, "--flips"),
        accuracy=_parse_share(accuracy, "--accuracy"),
        design_effect=design_effect,
        margin=margin / 100,
        correction=correction,
        seeds=seeds,
        seed_sd=None if seed_sd is None else seed_sd / 100,
    )
    yield build_power_table(plan_power(split_names(suite), options))


def _parse_share(text: str, option: str) -> float | None:
    """Parse `2%` or `0.02`; None for "". Raises UsageError."""
    if not text:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise UsageError(
            f"{text!r} is not a share", location=option, hint=f"e.g. {option} 2%, or 0.02"
        )
    return value


def build_power_table(plans: Sequence[PowerPlan]) -> Table:
    """Build the table of plans, a row per suite."""
    from antlm_bench.reporting.table import TableCell, build_records_table

    records = [
        {
            "suite": plan.suite,
            "strata": plan.strata,
            "has": TableCell(plan.count, f"{plan.count:,} {plan.unit}"),
            "detects": TableCell(
                plan.detectable,
                "no drop" if plan.detectable is None else f"{100 * plan.detectable:.2f}",
                unit="fraction",
            ),
            "margin": TableCell(plan.margin, f"{100 * plan.margin:g}", unit="fraction"),
            "passes": TableCell(plan.passes, f"{plan.passes:.0%}", unit="fraction"),
            "needs": TableCell(
                plan.needed, "too many" if plan.needed is None else f"{plan.needed:,} {plan.unit}"
            ),
        }
        for plan in plans
    ]
    clustered = ", ".join(plan.suite for plan in plans if plan.is_clustered)
    notes = (CLUSTER_NOTE.format(clustered),) if clustered else ()
    return build_records_table(records, legend=(*notes, LEGEND))
