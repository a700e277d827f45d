"""The command `verify`: compare our scores with those of minicons and lm-eval."""

from __future__ import annotations

from typing import Annotated

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissingOption,
    AllowPickleOption,
    AllowUnusedOption,
    BosOption,
    ColumnsOption,
    MaxLengthOption,
    RevisionOption,
    TokenizerOption,
    TrustRemoteCodeOption,
    build_options,
    model_option,
    parse_column_map,
    scoring_option,
    split_names,
    table_option,
    with_table_format,
)


@with_table_format()
def verify_command(
    model: Annotated[str, model_option(metavar="CKPT", help="Folder or hub id.")],
    suite: Annotated[
        list[str],
        model_option(
            metavar="NAME",
            help="Suite, collection, .csv .tsv .jsonl of pairs, or .toml. Repeatable, or a,b.",
        ),
    ],
    limit: Annotated[
        int,
        model_option(metavar="N", min=1, help="Items per suite, evenly spaced."),
    ] = 100,
    revision: RevisionOption = None,
    columns: ColumnsOption = None,
    method: Annotated[
        list[str] | None,
        scoring_option(
            metavar="NAME",
            help="causal, mlm, mlm-l2r. Repeatable, or a,b.",
            show_default="the checkpoint's own",
        ),
    ] = None,
    bos: BosOption = None,
    max_length: MaxLengthOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    allow_pickle: AllowPickleOption = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnusedOption = False,
    allow_missing: AllowMissingOption = False,
    tolerance: Annotated[
        float,
        table_option(metavar="NATS", help="Largest score difference that counts as agreement."),
    ] = 1e-3,
    table_format: str = "table",
) -> None:
    """Score a sample with our engine, minicons and lm-eval, and list all differences.

    All three run on the CPU in float32.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.verify import verify
    from antlm_bench.reporting.verification_table import build_verification_table
    from antlm_bench.reporting.writers import print_table

    options = build_options(OpenOptions, locals(), device="cpu")
    verification = verify(
        model,
        split_names(suite),
        limit=limit,
        methods=split_names(method),
        columns=parse_column_map(columns),
        tolerance=tolerance,
        options=options,
    )
    print_table(build_verification_table(verification), table_format)
    verification.raise_on_disagreement()
