"""The command `score`: score checkpoints on suites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from antlm_bench.cli.plan import DryRunOption
from antlm_bench.cli.shared_options import (
    AgainOption,
    LevelOption,
    ModelsOption,
    NameOption,
    OptionValues,
    OutOption,
    ReplaceOption,
    Tables,
    build_options,
    model_option,
    prints_tables,
    run_folder_option,
    settings_option,
    split_names,
    with_open_options,
    with_pair_format,
)
from antlm_bench.cli.torchrun import count_processes, is_first_process, silence_other_processes
from antlm_bench.errors import IncompleteError
from antlm_bench.scoring.methods import SHIPPED

if TYPE_CHECKING:
    from antlm_bench.commands.score_options import ScoreOptions
    from antlm_bench.reporting.table import Table
    from antlm_bench.types import Run

OTHER_TOOLS_OPTIONS_HELP = (
    "Options of lm-eval and BabyLM work too: --model hf --model_args pretrained=X,dtype=float32, "
    "--tasks, --batch_size, --output_path, --backend, --model_path_or_name, --revision_name; with "
    "underscores or hyphens."
)


@prints_tables()
@with_open_options()
@with_pair_format
def score_command(
    model: ModelsOption,
    suite: Annotated[
        list[str],
        model_option(
            metavar="NAME",
            help="Suite, collection, .csv .tsv .jsonl .txt of pairs or a folder of them, .toml, "
            ".json, lm-eval:TASK. Or a,b.",
        ),
    ],
    limit: Annotated[
        int | None,
        model_option(metavar="N", min=1, help="Only the first N items of every paradigm."),
    ] = None,
    unigrams: Annotated[
        str | None,
        model_option(
            metavar="TEXT",
            help="Text whose tokens are counted for SLOR; training: that of the checkpoint.",
        ),
    ] = None,
    allow_incomplete: Annotated[
        bool, model_option("--allow-incomplete", help="Score a suite that lacks items.")
    ] = False,
    require_all: Annotated[
        bool,
        model_option(
            "--require-all",
            help="Score nothing if one of several suites lacks data; default: score the others.",
        ),
    ] = False,
    method: Annotated[
        list[str] | None,
        settings_option(
            metavar="NAME",
            help=f"{', '.join(SHIPPED)}; all: those it was trained for. Repeatable, or a,b.",
            show_default="the checkpoint's first",
        ),
    ] = None,
    words: Annotated[
        str | None,
        settings_option(
            metavar="RULE",
            help="What a word is for mlm-l2r, which masks the rest of it: spaces, characters, icu, "
            "jieba (Chinese), fugashi (Japanese), pythainlp (Thai).",
            show_default="the tokenizer's",
        ),
    ] = None,
    ties: Annotated[
        Literal["half", "strict", "first", "random"] | None,
        settings_option(
            metavar="RULE",
            help="Value of a tie: half (1/k), strict (0), first, random.",
            show_default="half",
        ),
    ] = None,
    compat: Annotated[
        Literal["lm-eval", "minicons", "babylm-2024", "babylm-2025", "babylm-2026"] | None,
        settings_option(
            metavar="PEER",
            help="A peer's conventions: lm-eval, minicons, babylm-2024, babylm-2025, babylm-2026.",
        ),
    ] = None,
    precision: Annotated[
        Literal["exact", "adaptive"] | None,
        settings_option(
            metavar="NAME",
            help="exact, or adaptive: bfloat16 or int8, and float32 where two options are close; "
            "some choices may differ from float32.",
            show_default="exact",
        ),
    ] = None,
    engine: Annotated[
        Literal["native", "minicons"] | None,
        settings_option(
            metavar="NAME",
            help="native, or minicons: for models that native cannot run.",
            show_default="native",
        ),
    ] = None,
    out: OutOption = None,
    name: NameOption = None,
    again: AgainOption = False,
    replace: ReplaceOption = False,
    shard: Annotated[
        str | None,
        run_folder_option(
            metavar="I/N",
            help="Compute only part I of N, into a folder of its own; then antlm-bench merge.",
        ),
    ] = None,
    by: LevelOption = "phenomenon",
    dry_run: DryRunOption = False,
    *,
    open_options: OptionValues,
    pair_format: OptionValues,
) -> Tables:
    """Score checkpoints on suites, print a table, write all predictions into a run folder."""
    # The arguments of this function have the names of the options' fields.
    values = {**locals(), **open_options, **pair_format}
    from antlm_bench.commands.score_options import ScoreOptions

    suites, methods = split_names(suite), split_names(method)
    options = build_options(ScoreOptions, values)
    if dry_run:
        if is_first_process():
            from antlm_bench.commands.plan import plan_score
            from antlm_bench.reporting.plan_table import build_plan_table

            yield build_plan_table(plan_score(model, suites, methods, options, out))
        return

    from antlm_bench.commands.score import score

    try:
        if count_processes() > 1:
            runs = _score_in_processes(model, suites, methods, out, options)
        else:
            runs = score(model, suites, methods=methods, out=out, options=options)
    except IncompleteError as error:  # print the finished cells before the error
        yield _build_table(error.runs, bool(shard), by)
        raise
    if not is_first_process():
        return
    # What prints results is imported when there are some, so that a wrong name costs no time.
    from antlm_bench.console import print_warning
    from antlm_bench.results.collections import describe_unscored_members

    yield _build_table(runs, bool(shard), by)
    for line in describe_unscored_members(model, suites):
        print_warning(line)


def _build_table(runs: Sequence[Run], are_shards: bool, by: str) -> Table:
    """Build the table of the runs, or of the shards."""
    from antlm_bench.reporting.results_table import build_results_table
    from antlm_bench.reporting.shards_table import build_shards_table

    return build_shards_table(runs) if are_shards else build_results_table(runs, by=by)


def _score_in_processes(
    models: list[str],
    suites: list[str],
    methods: list[str],
    out: Path | None,
    options: ScoreOptions,
) -> list[Run]:
    """Score in all processes of torchrun. Return the runs in the first, [] in the others."""
    from antlm_bench.commands.process_group import ProcessGroup
    from antlm_bench.commands.score_processes import score_in_processes

    with silence_other_processes():
        return score_in_processes(ProcessGroup(), models, suites, methods, out, options)
