"""The command `plan`: what a sweep will compute, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import (
    Tables,
    model_option,
    output_option,
    prints_tables,
    settings_option,
    split_names,
)
from antlm_bench.errors import UsageError

DryRunOption = Annotated[
    bool,
    output_option("--dry-run", help="Print what would be computed, and its cost; start nothing."),
]


@prints_tables()
def plan_command(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A sweep's .toml.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        model_option(metavar="CKPT", help="Without a FILE: checkpoints to score. Repeatable."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        model_option(metavar="NAME", help="Without a FILE: suites to score. Repeatable, or a,b."),
    ] = None,
    method: Annotated[
        list[str] | None,
        settings_option(
            metavar="NAME", help="Scoring methods.", show_default="the checkpoint's first"
        ),
    ] = None,
    device: Annotated[
        str,
        settings_option(
            metavar="NAME",
            help="Device of the times: cpu, cuda, mps, or part of a name that was measured.",
            show_default="that of this machine",
        ),
    ] = "",
    calibrate: Annotated[
        bool,
        settings_option(
            "--calibrate", help="Measure this machine first, in seconds; plans keep the result."
        ),
    ] = False,
    units: Annotated[bool, output_option("--units", help="A row per unit.")] = False,
) -> Tables:
    """Show what a sweep will compute: units, tokens, FLOPs, time, memory, and what is done.

    Every name and option is checked, so that nothing fails for a typo after hours. Nothing starts.
    """
    from antlm_bench.commands.plan import calibrate_device, plan_score, plan_sweep
    from antlm_bench.commands.score_options import ScoreOptions
    from antlm_bench.reporting.plan_table import build_plan_table, build_speeds_table

    models, suites, methods = model or [], split_names(suite), split_names(method)
    if sweep is not None:
        for option, values in (("--model", models), ("--suite", suites), ("--method", methods)):
            if values:
                raise UsageError(
                    f"{option} cannot be combined with a file",
                    location=option,
                    hint="edit the file",
                )
        plan = plan_sweep(sweep, device, calibrate=calibrate)
    elif models and suites:
        plan = plan_score(
            models, suites, methods, ScoreOptions(), device=device, calibrate=calibrate
        )
    elif calibrate and not (models or suites or methods):
        yield build_speeds_table(calibrate_device(device, ()))
        return
    else:
        raise UsageError(
            "nothing to plan",
            hint="give a sweep's .toml, or --model and --suite (docs/how-to/scale.md)",
        )
    yield build_plan_table(plan, units=units)
