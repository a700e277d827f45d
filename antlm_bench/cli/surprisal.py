"""The command `surprisal`: surprisal of words, regions or sentences of stimuli."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    OptionValues,
    build_options,
    parse_column_map,
    settings_option,
    with_open_options,
    with_table_format,
)

input_option = partial(typer.Option, rich_help_panel="Input and output")

STIMULI_HELP = (
    "Stimuli: .txt, a sentence per line; .csv, .tsv or .jsonl with a row per text (column "
    "sentence) or per region (columns text and region), optionally columns item and condition; "
    "SyntaxGym's .json. All other columns are copied to the result."
)


@with_table_format()
@with_open_options()
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
    words: Annotated[
        str | None,
        input_option(
            metavar="RULE",
            help="What a word is: spaces, characters, icu, jieba (Chinese), fugashi (Japanese), "
            "pythainlp (Thai). Needed for text without spaces.",
            show_default="spaces",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        input_option(metavar="sentence=A,item=B", help="Column names of your file."),
    ] = None,
    method: Annotated[
        str | None,
        settings_option(
            metavar="NAME",
            help="causal, mlm, mlm-l2r, mntp.",
            show_default="the checkpoint's first",
        ),
    ] = None,
    bow_correction: Annotated[
        bool,
        settings_option(
            "--bow-correction",
            help="Add the end of a word to its surprisal (Pimentel & Meister 2024).",
        ),
    ] = False,
    *,
    open_options: OptionValues,
    table_format: str,
) -> None:
    """Compute the surprisal, in bits, of every word, region or sentence of your stimuli.

    The result is a table for R or pandas.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.surprisal import surprisal
    from antlm_bench.reporting.results_table import FLAG_LABELS
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    options = build_options(OpenOptions, open_options)
    result = surprisal(
        model,
        source,
        out,
        method=method,
        by=by,
        words=words,
        columns=parse_column_map(columns),
        bow_correction=bow_correction,
        options=options,
    )
    facts: dict[str, object] = {
        f"{by}s": f"{len(result.rows):,} of {result.texts:,} texts",
        **({"words by": words} if words else {}),
        "method": result.method,
        "unit": "bits" + (", the end of a word counted to the word" if bow_correction else ""),
    }
    if result.unscored:
        facts["without a number"] = (
            f"{result.unscored:,}: nothing stands before their first token (see --bos)"
        )
    if result.too_long:
        facts["too long"] = f"{result.too_long:,}: their text does not fit into the model"
    if result.shares_token:
        facts["counted to the word before"] = (
            f"{result.shares_token:,} words: they share a token with it"
        )
    for flag, count in result.flags.items():
        facts[FLAG_LABELS[flag]] = f"in {count:,} different texts"
    if result.notes:
        facts["note"] = "\n".join(result.notes)
    print_table(build_facts_table(str(result.path), facts), table_format)
