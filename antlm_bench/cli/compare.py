"""The commands `compare`, `check` and `baseline`: compare run folders with a reference."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.aliases import DEFAULT_NUMBERS
from antlm_bench.cli.shared_options import (
    LevelOption,
    Tables,
    output_option,
    prints_tables,
    run_folder_option,
    split_names,
    with_table_format,
)
from antlm_bench.errors import UsageError

FLIPS_WITH_TEXTS = 10
"""Number of items per suite that --show-texts lists without --flips: fewer than --flips alone,
because each has several lines."""
comparison_option = partial(typer.Option, rich_help_panel="What is compared")


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
SuiteOption = Annotated[
    list[str] | None,
    comparison_option("--suite", metavar="NAME", help="Only these suites. Repeatable, or a,b."),
]
MethodOption = Annotated[
    list[str] | None,
    comparison_option(
        "--method",
        metavar="NAME",
        help="Only this method; causal=mlm: the reference's causal with the run's mlm. Repeatable.",
    ),
]
AllowMixedOption = Annotated[
    bool,
    comparison_option(
        "--allow-mixed",
        help="Allow runs with different settings: compare the items that both have, and say so.",
    ),
]


@prints_tables()
def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; the first is the reference."),
    ],
    against: Annotated[
        Path | None, comparison_option(metavar="RUN", help="The reference, instead of the first.")
    ] = None,
    suite: SuiteOption = None,
    method: MethodOption = None,
    allow_mixed: AllowMixedOption = False,
    by: LevelOption = "phenomenon",
    flips: Annotated[
        int,
        output_option(
            metavar="[N]",
            min=0,
            help="List N items per suite that the runs answer differently. --flips alone lists "
            f"{DEFAULT_NUMBERS['--flips']}.",
            show_default="none",
        ),
    ] = 0,
    show_texts: Annotated[
        bool,
        output_option(
            "--show-texts",
            help="Show the texts of the items of --flips, read from local data. Without --flips, "
            f"{FLIPS_WITH_TEXTS} items per suite.",
        ),
    ] = False,
) -> Tables:
    """Compare runs item by item: paired differences with intervals and tests."""
    from antlm_bench.commands.compare import (
        compare,
        load_item_texts,
        parse_method_pairs,
        resolve_suite_files,
    )
    from antlm_bench.reporting.comparison_table import build_comparison_table

    pairs = parse_method_pairs(method or ())
    suite_files = resolve_suite_files(split_names(suite), [*([against] if against else []), *runs])
    run_comparisons = compare(
        runs,
        against=against or "",
        suites=list(suite_files),
        methods=pairs,
        allow_mixed=allow_mixed,
    )
    texts = {}
    if show_texts:
        flips = flips or FLIPS_WITH_TEXTS
        reference_dir = run_comparisons[0].path_a
        run_dirs = [reference_dir, *(each.path_b for each in run_comparisons)]
        comparisons = [c for each in run_comparisons for c in each.comparisons]
        texts = {
            c.suite: load_item_texts(run_dirs, c.suite, suite_files.get(c.suite, ""))
            for c in comparisons
            if c.flipped
        }
    yield build_comparison_table(run_comparisons, by, flips, texts)


@with_table_format(options=("format", "json", "csv", "latex"))
def check_command(
    run: RunArgument,
    against: Annotated[
        str,
        comparison_option(
            metavar="BASELINE", help="A run folder, or the name of a saved baseline."
        ),
    ],
    margin: Annotated[
        float | None,
        comparison_option(
            metavar="POINTS",
            help="How much worse each suite may be; 1 point is 0.01 of the metric.",
            show_default="from --policy, else from the suite, else 1.0",
        ),
    ] = None,
    group_margin: Annotated[
        float | None,
        comparison_option(
            metavar="POINTS",
            help="How much worse each phenomenon may be.",
            show_default="not checked",
        ),
    ] = None,
    policy: Annotated[
        Path | None, comparison_option(metavar="FILE", help="TOML with margins by suite and group.")
    ] = None,
    suite: SuiteOption = None,
    method: MethodOption = None,
    allow_mixed: AllowMixedOption = False,
    fail_on: Annotated[
        Literal["regression", "drop"],
        comparison_option(
            "--fail-on",
            help="Exit code 1 for a drop larger than the margin, or for any significant drop.",
        ),
    ] = "regression",
    strict: Annotated[
        bool,
        comparison_option("--strict", help="Exit code 4 if there are too few items to decide."),
    ] = False,
    junit: Annotated[
        Path | None, output_option(metavar="FILE", help="Also write JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None, output_option(metavar="FILE", help="Also write Markdown.")
    ] = None,
    github: Annotated[
        bool,
        output_option(
            "--github", help="Annotations, summary and output 'verdict' for GitHub Actions."
        ),
    ] = False,
    *,
    table_format: str,
) -> None:
    """Check whether a run is worse than its baseline by more than a margin.

    A drop is baseline - run, or run - baseline if lower is better.

    pass: the two-sided 95% interval of the drop lies below the margin; regression: the interval
    lies above the margin; undecided: the interval holds the margin, so there are too few items to
    decide; drop: no regression, but the interval lies above 0 (only with --fail-on drop). With
    several suites, a regression or drop must also hold after Holm's correction. Exit codes: 0 pass
    or undecided, 1 regression or drop, 4 undecided with --strict. Exit code 5: the run lacks
    results of the baseline.
    """
    if github and table_format != "table":
        raise UsageError(
            f"--github and {table_format} are both written to stdout",
            location=f"--{table_format}",
            hint="run two commands",
        )

    from antlm_bench.commands.check import check
    from antlm_bench.reporting.check_table import build_check_table, build_exit_error
    from antlm_bench.reporting.writers import print_table, write_markdown
    from antlm_bench.runs import write_file

    result = check(
        run,
        against,
        margin=margin,
        group_margin=group_margin,
        policy=policy or "",
        suites=split_names(suite),
        methods=method or (),
        allow_mixed=allow_mixed,
        fail_on=fail_on,
    )
    error = build_exit_error(result, strict)
    table = build_check_table(result, error.exit_code if error else 0)
    print_table(table, table_format)
    if junit:
        from antlm_bench.reporting.junit import to_junit_xml

        write_file(junit, to_junit_xml(result, strict))
    if markdown:
        write_file(markdown, write_markdown(table).encode())
    if github:
        from antlm_bench.reporting.github import append_summary, append_verdict, workflow_commands

        print(workflow_commands(result), end="")
        if summary_file := os.environ.get("GITHUB_STEP_SUMMARY"):
            append_summary(summary_file, write_markdown(table))
        if output_file := os.environ.get("GITHUB_OUTPUT"):
            append_verdict(output_file, result)
    if error:
        raise error


def baseline_save_command(
    run: RunArgument,
    name: Annotated[
        str,
        run_folder_option(
            metavar="NAME", help="Name of the baseline.", show_default="the run folder's"
        ),
    ] = "",
    to: Annotated[Path, run_folder_option(metavar="DIR", help="Folder of baselines.")] = Path(
        "reports/baselines"
    ),
    overwrite: Annotated[
        bool, run_folder_option("--overwrite", help="Replace an existing baseline.")
    ] = False,
) -> None:
    """Save a small copy of a run (ids and numbers, no texts) as a baseline of `check`."""
    from antlm_bench.commands.check import save_baseline

    print(save_baseline(run, name, baselines_dir=to, overwrite=overwrite))


@prints_tables()
def baseline_list_command(
    folder: Annotated[
        Path, run_folder_option("--in", metavar="DIR", help="Folder of baselines.")
    ] = Path("reports/baselines"),
) -> Tables:
    """List the saved baselines."""
    from antlm_bench.commands.check import list_baselines
    from antlm_bench.reporting.table import build_records_table

    table = build_records_table(list_baselines(folder), empty="no baseline yet")
    yield table
