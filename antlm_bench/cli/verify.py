"""The commands `verify` and `noise`: compare our scores with those of other tools, and with our own
under other batch sizes and dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from antlm_bench.cli.shared_options import (
    ModelOption,
    OptionValues,
    Tables,
    build_options,
    model_option,
    output_option,
    prints_tables,
    settings_option,
    split_names,
    with_open_options,
    with_pair_format,
)

if TYPE_CHECKING:
    from antlm_bench.reporting.table import Table

NOISE_LEGEND = (
    "at most: upper bound of the rate on other items (one-sided 95%, Clopper-Pearson); about 3 / n "
    "for 0 flips of n items."
)


@prints_tables()
@with_open_options(without=("device", "dtype", "batch_tokens", "original_layout"))
@with_pair_format
def verify_command(
    model: ModelOption,
    suite: Annotated[
        list[str],
        model_option(
            metavar="NAME",
            help="Suite, collection, .csv .tsv .jsonl .txt of pairs or a folder of them, or .toml. "
            "Repeatable, or a,b.",
        ),
    ],
    limit: Annotated[
        int,
        model_option(metavar="N", min=1, help="Items per suite, evenly spaced."),
    ] = 100,
    method: Annotated[
        list[str] | None,
        settings_option(
            metavar="NAME",
            help="causal, mlm, mlm-l2r, seq2seq. Repeatable, or a,b.",
            show_default="the checkpoint's first",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        output_option(metavar="NATS", help="Largest score difference that counts as agreement."),
    ] = 1e-3,
    *,
    open_options: OptionValues,
    pair_format: OptionValues,
) -> Tables:
    """Score a sample of items with our engine, minicons and lm-eval, and list all differences.

    All three run on the CPU in float32.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.verify import verify
    from antlm_bench.reporting.verification_table import build_verification_table

    options = build_options(OpenOptions, open_options, device="cpu")
    verification = verify(
        model,
        split_names(suite),
        limit=limit,
        methods=split_names(method),
        **pair_format,
        tolerance=tolerance,
        options=options,
    )
    yield build_verification_table(verification)
    verification.raise_on_disagreement()


@prints_tables()
@with_open_options(without=("bos", "max_length", "dtype", "batch_tokens"))
def noise_command(
    model: ModelOption,
    suite: Annotated[
        list[str],
        model_option(metavar="NAME", help="Suite or collection of pairs. Repeatable, or a,b."),
    ],
    limit: Annotated[int, model_option(metavar="N", min=1, help="Items per paradigm.")] = 50,
    method: Annotated[
        str,
        settings_option(
            metavar="NAME", help="Scoring method.", show_default="the checkpoint's first"
        ),
    ] = "",
    condition: Annotated[
        list[str] | None,
        settings_option(
            metavar="NAME",
            help="Some of: 'float32, small batches', 'float32, large batches', adaptive, bfloat16.",
        ),
    ] = None,
    *,
    open_options: OptionValues,
) -> Tables:
    """Score the same weights with other batch sizes and dtypes.

    A difference between two models means nothing if it is smaller than these.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.noise import CONDITIONS, measure_noise

    rows = measure_noise(
        model,
        split_names(suite),
        method=method,
        limit=limit,
        conditions=condition or tuple(CONDITIONS),
        options=build_options(OpenOptions, open_options),
    )
    yield _build_noise_table(rows)


def _build_noise_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    from antlm_bench.reporting.table import TableCell, build_records_table

    formats = {
        "rate": "{:.2%}",
        "at most": "{:.2%}",
        "largest move (nats)": "{:.2g}",
        "points": "{:+.2f}",
    }
    records = [
        {
            **row,
            **{key: TableCell(row[key], text.format(row[key])) for key, text in formats.items()},
        }
        for row in rows
    ]
    units = {"rate": "fraction", "at most": "fraction"}
    units |= {"largest move (nats)": "nats", "points": "points"}
    table = build_records_table(records, units=units, legend=(NOISE_LEGEND,))
    labels = {"largest move (nats)": "largest\nmove\n(nats)"}
    columns = tuple(replace(c, label=labels.get(c.key)) for c in table.columns)
    return replace(table, columns=columns)
