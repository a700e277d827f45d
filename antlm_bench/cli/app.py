"""The command line application: the tables of commands, and the entry point `main`.

Modules of antlm_bench.cli import no slow library at the top, so that `--help` answers at once. Each
command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from antlm_bench import __version__
from antlm_bench.cli import (
    catalog,
    compare,
    completion,
    effects,
    export,
    finetune,
    learning_curves,
    merge,
    plan,
    power,
    score,
    suggest,
    surprisal,
    sweep,
    train,
    verify,
)
from antlm_bench.cli.aliases import iter_options, normalize_argv
from antlm_bench.cli.configuration import (
    COMMANDS_WITHOUT_FILE,
    DEFAULTS_KEY,
    ConfiguredDefaults,
    add_configuration_options,
)
from antlm_bench.cli.exit_codes import run_command
from antlm_bench.cli.process import prepare_process
from antlm_bench.cli.report import report_command
from antlm_bench.cli.torchrun import check_command
from antlm_bench.cpu_tuning import limit_thread_spinning
from antlm_bench.errors import BenchError, UsageError

EXIT_CODES_HELP = (
    "Exit codes: 0 finished · 1 regression, or disagreement with minicons or lm-eval · 2 usage, "
    "or a missing package · "
    "3 error in model or data · 4 undecided · 5 incomplete · 6 not comparable · 70 bug in "
    "antlm-bench · 74 full or closed stdout or stderr · 75 stopped by a signal, the same command "
    "resumes · 130 Ctrl-C · 141 the reader of a pipe closed it"
)
GREETING = f"""\
This is antlm-bench, version {__version__}. It scores small language models, comparably.

Four commands to try, offline:

  antlm-bench list suites              # what a model can be scored on
  antlm-bench show blimp               # a suite: what it measures, its source, an example
  antlm-bench train babyllama --scale nano --corpus nano --out runs/first   # minutes on a CPU
  antlm-bench score --model runs/first/main --suite nano                    # seconds

All commands: antlm-bench --help. One command: antlm-bench score --help.
Names complete with the tab key after: antlm-bench completion bash --install (or zsh, fish)."""
COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "score": (score.score_command, score.OTHER_TOOLS_OPTIONS_HELP),
    "finetune": (finetune.finetune_command, ""),
    "merge": (merge.merge_command, ""),
    "surprisal": (surprisal.surprisal_command, surprisal.STIMULI_HELP),
    "effects": (effects.effects_command, effects.EFFECTS_HELP),
    "train": (train.train_command, ""),
    "plan": (plan.plan_command, ""),
    "run": (sweep.run_sweep_command, ""),
    "resume": (sweep.run_sweep_command, ""),
    "status": (sweep.status_command, ""),
    "worker": (sweep.worker_command, ""),
    "verify": (verify.verify_command, ""),
    "noise": (verify.noise_command, ""),
    "compare": (compare.compare_command, ""),
    "check": (compare.check_command, ""),
    "power": (power.power_command, ""),
    "acquisition": (learning_curves.acquisition_command, ""),
    "curve": (learning_curves.curve_command, ""),
    "report": (report_command, ""),
    "submit": (export.submit_command, ""),
    "preflight": (export.preflight_command, ""),
    "export": (export.export_command, ""),
    "import": (export.import_command, ""),
    "track": (export.track_command, ""),
    "list": (catalog.list_command, ""),
    "show": (catalog.show_command, ""),
    "suggest": (suggest.suggest_command, ""),
    "doctor": (catalog.doctor_command, ""),
    "completion": (completion.completion_command, ""),
}
"""Name -> (function, text below its help)."""
COMMAND_GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "baseline": (
        "Save and list baselines: runs that `check` compares new runs with.",
        {"save": compare.baseline_save_command, "list": compare.baseline_list_command},
    ),
    "data": (
        "List, download and verify the data files of suites.",
        {
            "list": catalog.data_list_command,
            "fetch": catalog.data_fetch_command,
            "verify": catalog.data_verify_command,
            "where": catalog.data_where_command,
        },
    ),
}
"""Name of a group -> (its help, name -> function)."""


class Command(TyperCommand):
    """A command whose options have defaults in a configuration file.

    It refuses an option of one value that is given twice with different values.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse argv. Raises UsageError; click itself would keep the last value in silence."""
        self._refuse_repeated_options(args)
        if ctx.resilient_parsing:  # completion of a command line
            return super().parse_args(ctx, args)
        options = {name: str(p.name) for p in self.params for name in p.opts}
        defaults = ConfiguredDefaults(ctx.info_name, args, options)
        ctx.meta[DEFAULTS_KEY] = defaults
        with defaults.locate_errors():
            return super().parse_args(ctx, [*defaults.default_args, *args])

    def _refuse_repeated_options(self, args: list[str]) -> None:
        options = [p for p in self.params if isinstance(p, TyperOption) and not p.multiple]
        names = {name: option for option in options for name in option.opts}
        values: dict[str, set[str]] = {}
        for name, value in iter_options(args):
            if name in names and not names[name].is_flag:
                values.setdefault(name, set()).add(value)
        for name, different_values in values.items():
            if len(different_values) > 1:
                raise UsageError(
                    f"given with {len(different_values)} values: "
                    f"{', '.join(map(repr, sorted(different_values)))}",
                    location=name,
                    hint="the option takes one value; repeat the command for each",
                )

    def invoke(self, ctx: Any) -> Any:
        """Run the command, unless it is one of several processes and not meant for them."""
        if not check_command(ctx.info_name):
            return None
        defaults: ConfiguredDefaults = ctx.meta[DEFAULTS_KEY]
        with defaults.locate_errors(), defaults.use():
            return super().invoke(ctx)


def print_version(value: bool) -> None:
    if value:
        print(f"antlm-bench {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
]


def root_callback(version: VersionOption = False) -> None:
    pass


def join_lines(docstring: str) -> str:
    """Return a docstring with one line per paragraph. typer keeps line ends within a paragraph."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))


def build_app() -> typer.Typer:
    """Build the typer application from COMMANDS and COMMAND_GROUPS."""
    if completion.COMPLETE_VARIABLE in os.environ:
        completion.add_completers({name: command for name, (command, _) in COMMANDS.items()})
        for _, subcommands in COMMAND_GROUPS.values():
            completion.add_completers(subcommands)
    app = typer.Typer(
        name="antlm-bench",
        help="Honest, fast, comparable evaluation of small language models.",
        epilog=EXIT_CODES_HELP,
        add_completion=False,  # the command `completion` needs no detection of the shell
        context_settings={"help_option_names": ["--help", "-h"]},
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )
    app.callback()(root_callback)
    for name, (command, epilog) in COMMANDS.items():
        help_text = join_lines(command.__doc__ or "")
        if name not in COMMANDS_WITHOUT_FILE:
            command = add_configuration_options(command)
        app.command(name, cls=Command, help=help_text, epilog=epilog or None)(command)
    for name, (group_help, subcommands) in COMMAND_GROUPS.items():
        group = typer.Typer(help=group_help)
        for subcommand_name, command in subcommands.items():
            help_text = join_lines(command.__doc__ or "")
            group.command(subcommand_name, cls=Command, help=help_text)(
                add_configuration_options(command)
            )
        app.add_typer(group, name=name)
    return app


@cache
def build_command() -> Any:
    """Build the click command of the application, once per process: it takes a while."""
    return typer.main.get_command(build_app())


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    if not argv:
        return run_command(lambda: print(GREETING), report_error)
    return run_command(
        lambda: build_command()(
            normalize_argv(argv), prog_name="antlm-bench", standalone_mode=False
        ),
        report_error,
    )


def report_error(error: BenchError) -> None:
    from antlm_bench.console import print_error  # rich is slow to import

    print_error(error)


def main() -> None:
    """Run the command line of this process, and exit."""
    if completion.COMPLETE_VARIABLE in os.environ:
        completion.complete_words(build_command)
    prepare_process()
    # OpenMP threads that wait for work sleep sooner. To be set before torch is imported.
    limit_thread_spinning()
    sys.exit(run(sys.argv[1:]))
