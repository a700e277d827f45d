"""The command `finetune`: finetune checkpoints on classification tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from antlm_bench.cli.plan import DryRunOption
from antlm_bench.cli.shared_options import (
    AgainOption,
    ModelsOption,
    NameOption,
    OptionValues,
    OutOption,
    ReplaceOption,
    Tables,
    build_options,
    check_overrides,
    model_option,
    parse_column_map,
    parse_row_limits,
    prints_tables,
    settings_option,
    split_names,
    with_open_options,
)
from antlm_bench.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from antlm_bench.reporting.table import Table
    from antlm_bench.types import Run


@prints_tables()
@with_open_options(without=("bos", "max_length", "dtype"))
def finetune_command(
    model: ModelsOption,
    suite: Annotated[
        list[str],
        model_option(
            metavar="NAME", help="glue-2025, glue-2024, glue, superglue, a .toml, or a train.csv."
        ),
    ],
    task: Annotated[
        list[str] | None,
        model_option(
            metavar="NAME",
            help="Only these tasks of the suite. Repeatable, or a,b.",
            show_default="all",
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        model_option(metavar="FILE", help="File to evaluate on, if the suite is a train.csv."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        model_option("--columns", metavar="text=A,label=B", help="Column names of your files."),
    ] = None,
    limit_train: Annotated[
        list[str] | None,
        model_option(
            metavar="N", help="Train on N rows, evenly spaced; TASK=N for one task. Repeatable."
        ),
    ] = None,
    limit_valid: Annotated[
        list[str] | None,
        model_option(metavar="N", help="Evaluate on N rows; TASK=N for one task. Repeatable."),
    ] = None,
    seeds: Annotated[
        int | None,
        settings_option(metavar="N", min=1, help="Seeds 1 to N; 5 for a report.", show_default="3"),
    ] = None,
    seed: Annotated[
        list[int] | None, settings_option(metavar="N", help="Only this seed. Repeatable.")
    ] = None,
    attention: Annotated[
        list[str] | None,
        settings_option(
            metavar="NAME",
            help="causal, full, or all: both, for a hybrid.",
            show_default="of the checkpoint's first method",
        ),
    ] = None,
    preset: Annotated[
        str,
        settings_option(
            metavar="NAME",
            help="Published settings: babylm-2025, babyllama, ...",
            show_default="none",
        ),
    ] = "",
    compat: Annotated[
        str,
        settings_option(metavar="NAME", help="The same as --preset.", show_default="none"),
    ] = "",
    overrides: Annotated[
        list[str] | None,
        settings_option(
            "--set", metavar="KEY=VALUE", help="Change a hyper-parameter: lr=1e-4. Repeatable."
        ),
    ] = None,
    pooling: Annotated[
        Literal["auto", "first", "last", "mean"],
        settings_option(
            metavar="NAME",
            help="Tokens whose hidden states are classified: auto, first, last, mean.",
        ),
    ] = "auto",
    lora: Annotated[
        int,
        settings_option(
            metavar="RANK", min=0, help="Train low-rank adapters of this rank (needs peft)."
        ),
    ] = 0,
    frozen: Annotated[
        bool,
        settings_option(
            "--frozen",
            help="Train no weights: fit a logistic regression on the checkpoint's features. "
            "Deterministic: one cell per task; the first seed only splits the training set.",
        ),
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        settings_option(metavar="NAME", help="dtype of matrix products: float32, bfloat16."),
    ] = "float32",
    out: OutOption = None,
    name: NameOption = None,
    again: AgainOption = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    *,
    open_options: OptionValues,
) -> Tables:
    """Finetune checkpoints on classification tasks, several seeds each; write the run folder."""
    if seed is not None and any(number < 0 for number in seed):
        raise UsageError("a seed is 0 or more", location="--seed")
    if seed and seeds:
        raise UsageError(
            f"--seed {seed[0]} and --seeds {seeds} are both given",
            location="--seed",
            hint=f"--seeds {seeds} is seeds 1 to {seeds}; or repeat --seed for each",
        )
    check_overrides(overrides)
    if preset and compat and preset != compat:
        raise UsageError(
            f"two presets are given: --preset {preset} and --compat {compat}",
            location="--preset",
            hint="give one: the two options are the same",
        )

    from antlm_bench.commands.finetune import DEFAULT_SEEDS, FinetuneOptions, finetune

    # The arguments of this function have the names of the options' fields.
    values = {**locals(), **open_options}
    options = build_options(
        FinetuneOptions,
        values,
        valid=valid and str(valid),
        columns=parse_column_map(columns),
        preset=preset or compat,
        changes=overrides,
        limit_train=parse_row_limits(limit_train, "--limit-train"),
        limit_valid=parse_row_limits(limit_valid, "--limit-valid"),
    )
    arguments: dict[str, Any] = {
        "tasks": split_names(task),
        "seeds": seed or seeds or DEFAULT_SEEDS,
        "attentions": split_names(attention),
        "out": out,
        "options": options,
    }
    try:
        if dry_run:
            from antlm_bench.commands.plan import plan_finetune
            from antlm_bench.reporting.plan_table import build_plan_table

            yield build_plan_table(plan_finetune(model, split_names(suite), **arguments))
            return
        runs = finetune(model, split_names(suite), **arguments)
    except UsageError as error:
        if error.location == "--preset" and not preset:
            error.location = "--compat"
        raise
    except IncompleteError as error:  # print the finished tasks before the error
        yield _build_table(error.runs)
        raise
    yield _build_table(runs)


def _build_table(runs: Sequence[Run]) -> Table:
    """Build the table of finetuned runs."""
    from antlm_bench.reporting.results_table import build_finetune_table

    return build_finetune_table(runs)
