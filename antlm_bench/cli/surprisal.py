"""`surprisal`: words and regions of stimuli, one row each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissingOption,
    AllowPickleOption,
    AllowUnusedOption,
    BatchTokensOption,
    BosOption,
    DeviceOption,
    DtypeOption,
    MaxLengthOption,
    OriginalLayoutOption,
    RevisionOption,
    TokenizerOption,
    TrustRemoteCodeOption,
    build_options,
    parse_column_map,
    scoring_option,
    with_table_format,
)

input_option = partial(typer.Option, rich_help_panel="What is read")

STIMULI_HELP = (
    "Stimuli: .txt, a sentence per line; .csv, .tsv or .jsonl with a row per text (sentence) or "
    "per region (text and "
    "region), item and condition if there are any; SyntaxGym's .json. All other columns are "
    "carried over."
)


@with_table_format()
def surprisal_command(
    model: Annotated[str, input_option(metavar="CKPT", help="Folder or hub id.")],
    source: Annotated[
        Path, input_option("--in", metavar="FILE", help="Stimuli: .txt .csv .tsv .jsonl .json")
    ],
    out: Annotated[Path, input_option("--out", metavar="FILE", help="Result: .csv .tsv .parquet")],
    by: Annotated[
        Literal["word", "region", "sentence"],
        input_option(metavar="UNIT", help="A row per word, region or sentence."),
    ] = "word",
    columns: Annotated[
        list[str] | None,
        input_option(metavar="sentence=A,item=B", help="How the file names its columns."),
    ] = None,
    revision: RevisionOption = None,
    method: Annotated[
        str | None,
        scoring_option(
            metavar="NAME", help="causal, mlm, mlm-l2r, mntp.", show_default="the checkpoint's own"
        ),
    ] = None,
    bow_correction: Annotated[
        bool,
        scoring_option(
            "--bow-correction",
            help="Count the end of a word to the word (Pimentel & Meister 2024).",
        ),
    ] = False,
    bos: BosOption = None,
    max_length: MaxLengthOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_tokens: BatchTokensOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    allow_pickle: AllowPickleOption = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnusedOption = False,
    allow_missing: AllowMissingOption = False,
    original_layout: OriginalLayoutOption = None,
    table_format: str = "table",
) -> None:
    """Surprisal of every word, region or sentence of your stimuli, in bits, as a table for R or
    pandas.
    """
    renamed = parse_column_map(columns)

    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.surprisal import surprisal
    from antlm_bench.reporting.results_table import FLAG_LABELS
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    options = build_options(OpenOptions, locals())
    found = surprisal(
        model,
        source,
        out,
        method=method,
        by=by,
        columns=renamed,
        bow_correction=bow_correction,
        options=options,
    )
    shown: dict[str, object] = {
        f"{by}s": f"{len(found.rows):,} of {found.texts:,} texts",
        "method": found.method,
    }
    shown["unit"] = "bits" + (", the end of a word counted to the word" if bow_correction else "")
    if found.unscored:
        shown["without a number"] = (
            f"{found.unscored:,}: nothing stands before their first token (see --bos)"
        )
    if found.too_long:
        shown["too long"] = f"{found.too_long:,}: their text does not fit into the model"
    for flag, count in found.flags.items():
        shown[FLAG_LABELS[flag]] = f"in {count:,} different texts"
    if found.notes:
        shown["note"] = "\n".join(found.notes)
    print_table(build_facts_table(str(found.path), shown), table_format)
