"""The command `compare`: compare run folders with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import split_names, table_option, with_table_format
from antlm_bench.errors import UsageError

run_option = partial(typer.Option, rich_help_panel="What is compared")


def parse_method_pairs(values: Sequence[str] | None) -> list[tuple[str, str]]:
    """Parse `causal=mlm` into ("causal", "mlm"): the reference's method and the run's.

    A single name stands for both. Raises UsageError.
    """
    pairs = [value.partition("=") for value in split_names(values)]
    if wrong := [first for first, equals, second in pairs if not first or (equals and not second)]:
        raise UsageError(
            f"{wrong[0]!r} is not a method",
            location="--method",
            hint="mlm, or REFERENCE'S=RUN'S: causal=mlm",
        )
    return [(first, second or first) for first, _, second in pairs]


SuiteOption = Annotated[
    list[str] | None,
    run_option("--suite", metavar="NAME", help="Only these suites. Repeatable, or a,b."),
]
MethodOption = Annotated[
    list[str] | None,
    run_option(
        "--method",
        metavar="NAME",
        help="Only this method; causal=mlm: the reference's and the run's. Repeatable.",
    ),
]
AllowMixedOption = Annotated[
    bool,
    run_option(
        "--allow-mixed", help="Compare shared items of runs with different settings, with a note."
    ),
]


@with_table_format()
def compare_command(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders; the first is the reference."),
    ],
    against: Annotated[
        Path | None, run_option(metavar="RUN", help="The reference, instead of the first.")
    ] = None,
    suite: SuiteOption = None,
    method: MethodOption = None,
    allow_mixed: AllowMixedOption = False,
    by: Annotated[
        Literal["suite", "field", "phenomenon", "paradigm"],
        table_option(metavar="LEVEL", help="Depth: suite, field, phenomenon, paradigm."),
    ] = "phenomenon",
    flips: Annotated[
        int,
        table_option(
            metavar="[N]",
            min=0,
            help="List N items (20) per suite that the runs answer differently.",
        ),
    ] = 0,
    show_texts: Annotated[
        bool,
        table_option("--show-texts", help="Show the texts of these items, read from local data."),
    ] = False,
    table_format: str = "table",
) -> None:
    """Compare runs item by item: paired differences with intervals and tests."""
    pairs = parse_method_pairs(method)

    from antlm_bench.commands.compare import compare, load_item_texts, resolve_suite_files
    from antlm_bench.reporting.comparison_table import build_comparison_table
    from antlm_bench.reporting.writers import print_table

    suite_files = resolve_suite_files(split_names(suite), [*([against] if against else []), *run])
    run_comparisons = compare(
        run, against=against or "", suites=list(suite_files), methods=pairs, allow_mixed=allow_mixed
    )
    texts = {}
    if show_texts:
        flips = flips or 10
        run_dirs = [run_comparisons[0].path_a, *(each.path_b for each in run_comparisons)]
        flipped = [c.suite for each in run_comparisons for c in each.comparisons if c.flipped]
        texts = {
            name: load_item_texts(run_dirs, name, suite_files.get(name, "")) for name in flipped
        }
    print_table(build_comparison_table(run_comparisons, by, flips, texts), table_format)
