"""The command `noise`: measure how far batch size and dtype move a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissingOption,
    AllowPickleOption,
    AllowUnusedOption,
    OriginalLayoutOption,
    RevisionOption,
    TokenizerOption,
    TrustRemoteCodeOption,
    build_options,
    model_option,
    scoring_option,
    split_names,
    with_table_format,
)

if TYPE_CHECKING:
    from antlm_bench.reporting.table import Table


@with_table_format()
def noise_command(
    model: Annotated[str, model_option(metavar="CKPT", help="Folder or hub id.")],
    suite: Annotated[
        list[str],
        model_option(metavar="NAME", help="Suite or collection of pairs. Repeatable, or a,b."),
    ],
    revision: RevisionOption = None,
    limit: Annotated[int, model_option(metavar="N", min=1, help="Items per paradigm.")] = 50,
    method: Annotated[
        str,
        scoring_option(
            metavar="NAME", help="Scoring method.", show_default="the checkpoint's first"
        ),
    ] = "",
    condition: Annotated[
        list[str] | None,
        scoring_option(
            metavar="NAME",
            help="Some of: 'float32, small batches', 'float32, large batches', adaptive, bfloat16.",
        ),
    ] = None,
    device: Annotated[str, scoring_option(metavar="NAME", help="cpu, cuda, cuda:1, mps.")] = "auto",
    trust_remote_code: TrustRemoteCodeOption = False,
    allow_pickle: AllowPickleOption = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnusedOption = False,
    allow_missing: AllowMissingOption = False,
    original_layout: OriginalLayoutOption = None,
    table_format: str = "table",
) -> None:
    """Score the same weights with other batch sizes and dtypes.

    Differences between models that are smaller than this mean nothing.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.noise import CONDITIONS, measure_noise
    from antlm_bench.reporting.writers import print_table

    rows = measure_noise(
        model,
        split_names(suite),
        method=method,
        limit=limit,
        conditions=condition or tuple(CONDITIONS),
        options=build_options(OpenOptions, locals()),
    )
    print_table(_build_noise_table(rows), table_format)


def _build_noise_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    from antlm_bench.reporting.table import TableCell, build_records_table

    formats = {"rate": "{:.2%}", "largest move (nats)": "{:.2g}", "points": "{:+.2f}"}
    records = [
        {
            **row,
            **{key: TableCell(row[key], text.format(row[key])) for key, text in formats.items()},
        }
        for row in rows
    ]
    units = {"rate": "fraction", "largest move (nats)": "nats", "points": "points"}
    return build_records_table(records, units=units)
