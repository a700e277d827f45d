"""The commands `check` and `baseline`: test a run for a regression against a saved run.

The exit code tells a CI system the verdict.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.compare import (
    AllowMixedOption,
    MethodOption,
    SuiteOption,
    parse_method_pairs,
    run_option,
)
from antlm_bench.cli.shared_options import (
    run_folder_option,
    split_names,
    table_option,
    with_table_format,
)
from antlm_bench.errors import UsageError


@with_table_format(options=("format", "json", "csv", "latex"))
def check_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    against: Annotated[
        str, run_option(metavar="BASELINE", help="A run folder, or the name of a saved baseline.")
    ],
    margin: Annotated[
        float | None,
        run_option(
            metavar="POINTS",
            help="Tolerated loss per suite; in hundredths of a correlation or a nat.",
            show_default="policy, suite, 1.0",
        ),
    ] = None,
    group_margin: Annotated[
        float | None,
        run_option(
            metavar="POINTS", help="Tolerated loss per phenomenon.", show_default="not judged"
        ),
    ] = None,
    policy: Annotated[
        Path | None, run_option(metavar="FILE", help="TOML with margins by suite and group.")
    ] = None,
    suite: SuiteOption = None,
    method: MethodOption = None,
    allow_mixed: AllowMixedOption = False,
    strict: Annotated[
        bool,
        run_option(
            "--strict", help="Fail with exit code 4 if there are too few items for the margin."
        ),
    ] = False,
    junit: Annotated[
        Path | None, table_option(metavar="FILE", help="Also write JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None, table_option(metavar="FILE", help="Also write Markdown.")
    ] = None,
    github: Annotated[
        bool,
        table_option("--github", help="Annotations and the step's summary for GitHub Actions."),
    ] = False,
    table_format: str = "table",
) -> None:
    """Check whether a run is worse than its baseline by more than a margin.

    Exit code 0: no; 1: yes.
    """
    pairs = parse_method_pairs(method)
    if github and table_format != "table":
        raise UsageError(
            f"annotations and {table_format.upper()} are both for stdout",
            location=f"--{table_format}",
            hint="run two commands",
        )

    from antlm_bench.commands.check import check
    from antlm_bench.reporting.check_table import build_check_table, exit_error
    from antlm_bench.reporting.writers import print_table, write_markdown

    checked = check(
        run,
        against,
        margin=margin,
        group_margin=group_margin,
        policy=policy or "",
        suites=split_names(suite),
        methods=pairs,
        allow_mixed=allow_mixed,
    )
    error = exit_error(checked, strict)
    table = build_check_table(checked, error.exit_code if error else 0)
    print_table(table, table_format)
    if junit:
        from antlm_bench.reporting.junit import to_junit_xml

        _write_file(junit, to_junit_xml(checked, strict))
    if markdown:
        _write_file(markdown, write_markdown(table).encode())
    if github:
        from antlm_bench.reporting.github import append_summary, workflow_commands

        print(workflow_commands(checked), end="")
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            append_summary(summary, write_markdown(table))
    if error:
        raise error


def baseline_save_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
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
    """Save a small copy of a run (ids and numbers, no texts) as a baseline for `check`."""
    from antlm_bench.commands.baseline import save_baseline

    print(save_baseline(run, name, baselines_dir=to, overwrite=overwrite))


@with_table_format()
def baseline_list_command(
    folder: Annotated[
        Path, run_folder_option("--in", metavar="DIR", help="Folder of baselines.")
    ] = Path("reports/baselines"),
    table_format: str = "table",
) -> None:
    """List the saved baselines."""
    from antlm_bench.commands.baseline import list_baselines
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import print_table

    table = build_records_table(list_baselines(folder), empty="no baseline yet")
    print_table(table, table_format)


def _write_file(path: Path, data: bytes) -> None:
    from antlm_bench.runs import make_folder, write_atomically

    make_folder(path.parent)
    write_atomically(path, data)
