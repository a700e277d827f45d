"""The command line: argv to a verb, a verb's result to the terminal, an error to a message and an exit code.

Nothing heavy is imported here or in `verbs`: each verb imports what it needs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from antlm_bench import __version__
from antlm_bench.cli import (
    acquisition,
    catalog,
    check,
    compare,
    curve,
    data,
    export,
    finetune,
    noise,
    score,
    submit,
    surprisal,
    train,
    verify,
)
from antlm_bench.cli.aliases import ours
from antlm_bench.cli.exit_codes import exit_code
from antlm_bench.cli.report import report_verb
from antlm_bench.cpu_tuning import spin_briefly
from antlm_bench.errors import BenchError

EXIT_CODES = (
    "Exit codes: 0 finished · 1 worse, or disagreeing · 2 usage · 3 model or data · 4 inconclusive · 5 incomplete · "
    "6 not comparable · 70 a bug of ours · 75 stopped by a signal, the same command resumes · 130 Ctrl-C"
)
# name -> (the verb, what stands below its help)
VERBS: dict[str, tuple[Callable[..., Any], str]] = {
    "score": (score.score_verb, score.PEERS),
    "finetune": (finetune.finetune_verb, ""),
    "surprisal": (surprisal.surprisal_verb, surprisal.FORMS),
    "train": (train.train_verb, ""),
    "verify": (verify.verify_verb, ""),
    "noise": (noise.noise_verb, ""),
    "compare": (compare.compare_verb, ""),
    "check": (check.check_verb, ""),
    "acquisition": (acquisition.acquisition_verb, ""),
    "curve": (curve.curve_verb, ""),
    "report": (report_verb, ""),
    "submit": (submit.submit_verb, ""),
    "preflight": (submit.preflight_verb, ""),
    "export": (export.export_verb, ""),
    "import": (export.import_verb, ""),
    "list": (catalog.list_verb, ""),
    "show": (catalog.show_verb, ""),
    "doctor": (catalog.doctor_verb, ""),
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "baseline": (
        "Runs that others are checked against.",
        {"save": check.baseline_save, "list": check.baseline_list},
    ),
    "data": (
        "Where the benchmark files are, where they come from, and whether they are intact.",
        {"list": data.data_list, "fetch": data.data_fetch, "verify": data.data_verify, "where": data.data_where},
    ),
}


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"antlm-bench {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")]


def before_any_verb(version: Version = False) -> None:
    pass


def application() -> typer.Typer:
    """The verbs and groups of verbs of the tables above."""
    app = typer.Typer(
        name="antlm-bench",
        help="Honest, fast, comparable evaluation of small language models.",
        epilog=EXIT_CODES,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback()(before_any_verb)
    for name, (verb, epilog) in VERBS.items():
        app.command(name, epilog=epilog or None)(verb)
    for name, (says, verbs) in GROUPS.items():
        group = typer.Typer(help=says)
        for inner, verb in verbs.items():
            group.command(inner)(verb)
        app.add_typer(group, name=name)
    return app


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    return exit_code(
        lambda: application()(ours(argv) or ["--help"], prog_name="antlm-bench", standalone_mode=False), report
    )


def report(error: BenchError) -> None:
    from antlm_bench.reporting.terminal import problem

    problem(error)


def main() -> None:
    spin_briefly()
    sys.exit(run(sys.argv[1:]))
