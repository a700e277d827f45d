"""`finetune`: checkpoints on tasks of classification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AgainOption,
    AllowMissingOption,
    AllowPickleOption,
    AllowUnusedOption,
    BatchTokensOption,
    CsvOption,
    DeviceOption,
    JsonOption,
    MarkdownOption,
    ModelsOption,
    OriginalLayoutOption,
    OutOption,
    RevisionOption,
    TokenizerOption,
    TrustRemoteCodeOption,
    build_options,
    choose_output_format,
    model_option,
    parse_row_limits,
    scoring_option,
    split_names,
)
from antlm_bench.errors import IncompleteError, UsageError


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
            metavar="NAME", help="Some of its tasks. Repeatable, or a,b.", show_default="all"
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        model_option(metavar="FILE", help="The scored file that goes with a train.csv."),
    ] = None,
    revision: RevisionOption = None,
    limit_train: Annotated[
        list[str] | None,
        model_option(
            metavar="N", help="Train on N rows, evenly spaced; TASK=N of one task. Repeatable."
        ),
    ] = None,
    limit_valid: Annotated[
        list[str] | None, model_option(metavar="N", help="Score N rows, likewise.")
    ] = None,
    seeds: Annotated[
        int, scoring_option(metavar="N", min=1, help="Seeds 1 to N; 5 for a report.")
    ] = 3,
    seed: Annotated[
        list[int] | None, scoring_option(metavar="N", help="This very seed instead. Repeatable.")
    ] = None,
    attention: Annotated[
        list[str] | None,
        scoring_option(
            metavar="WAY",
            help="causal, full; all: both of a hybrid.",
            show_default="the checkpoint's first method's",
        ),
    ] = None,
    preset: Annotated[
        str,
        scoring_option(
            metavar="NAME",
            help="Published settings: babylm-2025, babyllama, ...",
            show_default="none",
        ),
    ] = "",
    compat: Annotated[
        str,
        scoring_option(metavar="NAME", help="The same, as `score` calls it.", show_default="none"),
    ] = "",
    change: Annotated[
        list[str] | None,
        scoring_option(
            "--set", metavar="KEY=VALUE", help="Change a hyper-parameter: lr=1e-4. Repeatable."
        ),
    ] = None,
    pooling: Annotated[
        Literal["auto", "first", "last", "mean"],
        scoring_option(metavar="NAME", help="What the head reads of a text."),
    ] = "auto",
    lora: Annotated[
        int,
        scoring_option(
            metavar="RANK", min=0, help="Train low-rank adapters of this rank (needs peft)."
        ),
    ] = 0,
    frozen: Annotated[
        bool,
        scoring_option(
            "--frozen",
            help="Train no weights: a logistic regression on the checkpoint's features. Takes "
            "seconds; a row of its own. Deterministic: the first seed only splits the train set.",
        ),
    ] = False,
    device: DeviceOption = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        scoring_option(metavar="NAME", help="Of matrix products: float32, bfloat16."),
    ] = "float32",
    batch_tokens: BatchTokensOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    allow_pickle: AllowPickleOption = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnusedOption = False,
    allow_missing: AllowMissingOption = False,
    original_layout: OriginalLayoutOption = None,
    out: OutOption = None,
    again: AgainOption = False,
    json: JsonOption = False,
    csv: CsvOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Finetune checkpoints on classification tasks, several seeds each, into the same run folder as
    `score`.
    """
    form = choose_output_format(json=json, csv=csv, markdown=markdown)
    if seed is not None and any(one < 0 for one in seed):
        raise UsageError("a seed is 0 or more", location="--seed")

    if preset and compat and preset != compat:
        message = f"two presets are named: --preset {preset} and --compat {compat}"
        raise UsageError(
            message, location="--preset", hint="they are one option with two names: give one"
        )
    typed, preset = "--compat" if compat and not preset else "--preset", preset or compat

    from antlm_bench.commands.finetune import FinetuneOptions, finetune
    from antlm_bench.reporting import print_rows
    from antlm_bench.results.seeds import build_finetune_rows

    rows_of = {
        "limit_train": parse_row_limits(limit_train, "--limit-train"),
        "limit_valid": parse_row_limits(limit_valid, "--limit-valid"),
    }
    options = build_options(
        FinetuneOptions, locals(), valid=valid and str(valid), changes=change, **rows_of
    )
    chosen = seed or list(range(1, seeds + 1))
    names, ways = split_names(task), split_names(attention)
    try:
        runs = finetune(
            model,
            split_names(suite),
            tasks=names,
            seeds=chosen,
            attentions=ways,
            out=out,
            options=options,
        )
    except UsageError as error:
        if error.location == "--preset":
            error.location = typed
        raise
    except IncompleteError as error:  # what did finish is shown before the error is
        print_rows(build_finetune_rows(error.runs), form, empty="nothing finetuned yet")
        raise
    print_rows(build_finetune_rows(runs), form, empty="nothing finetuned yet")
