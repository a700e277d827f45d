"""The command `surprisal`: surprisal of words, regions or sentences of stimuli."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    OptionValues,
    Tables,
    build_options,
    parse_column_map,
    prints_tables,
    settings_option,
    split_names,
    with_open_options,
)

if TYPE_CHECKING:
    from antlm_bench.suites.stimuli_spec import StimuliLayout

input_option = partial(typer.Option, rich_help_panel="Input and output")

STIMULI_HELP = (
    "Stimuli: .txt, a sentence per line; .csv, .tsv or .jsonl with a row per text (column "
    "sentence) or per region (columns text and region), optionally columns item, condition and "
    "prefix; SyntaxGym's .json. All other columns are copied to the result."
)
WordsOption = Annotated[
    str | None,
    input_option(
        "--words",
        metavar="RULE",
        help="What a word is: spaces, characters, icu, jieba (Chinese), fugashi (Japanese), "
        "pythainlp (Thai). Needed for text without spaces.",
        show_default="spaces",
    ),
]
ConditionsOption = Annotated[
    list[str] | None,
    input_option(
        "--conditions",
        metavar="A,B",
        help="Columns that each hold a text per row; the name of the column is the condition.",
    ),
]
PositionOption = Annotated[
    list[str] | None,
    input_option(
        "--position",
        metavar="COLUMN,...",
        help="Column with the number of the critical word, from 1: one, or one per condition.",
    ),
]
SpilloverOption = Annotated[
    int | None,
    input_option(
        "--spillover",
        metavar="N",
        min=0,
        help="Words after the critical one that are regions, too.",
        show_default="2",
    ),
]


def build_layout(
    conditions: list[str] | None, positions: list[str] | None, spillover: int | None
) -> StimuliLayout:
    """Build the layout of a file with a critical word from the values of its options."""
    from antlm_bench.suites.stimuli_spec import StimuliLayout

    return StimuliLayout(tuple(split_names(conditions)), tuple(split_names(positions)), spillover)


@prints_tables()
@with_open_options()
def surprisal_command(
    model: Annotated[
        list[str],
        input_option(
            metavar="CKPT",
            help="Folder, hub id, glob, folder of checkpoints. Repeatable: the result then has a "
            "column model.",
        ),
    ],
    source: Annotated[
        Path,
        input_option(
            "--in",
            metavar="FILE",
            help="Stimuli: .txt .csv .tsv .jsonl .json, or a name of the catalog (sap-classicgp).",
        ),
    ],
    out: Annotated[Path, input_option("--out", metavar="FILE", help="Result: .csv .tsv .parquet")],
    by: Annotated[
        Literal["token", "word", "region", "sentence"],
        input_option(metavar="UNIT", help="A row per token, word, region or sentence."),
    ] = "word",
    words: WordsOption = None,
    columns: Annotated[
        list[str] | None,
        input_option(metavar="sentence=A,item=B", help="Column names of your file."),
    ] = None,
    conditions: ConditionsOption = None,
    position: PositionOption = None,
    spillover: SpilloverOption = None,
    context: Annotated[
        str | None,
        input_option(
            metavar="TEXT",
            help="Text that the model reads before each text, not scored. Or a column prefix.",
        ),
    ] = None,
    join: Annotated[
        str,
        input_option(
            metavar="TEXT", help="Characters between --context (or prefix) and the text: a space."
        ),
    ] = " ",
    add: Annotated[
        list[str] | None,
        input_option(
            metavar="COLUMN,...",
            help="Further columns: rank, entropy, top-5 (the 5 most probable tokens).",
        ),
    ] = None,
    base: Annotated[
        Literal["2", "e", "10"],
        input_option(
            metavar="BASE", help="Base of the logarithm: 2 (bits), e (nats), 10 (hartleys)."
        ),
    ] = "2",
    method: Annotated[
        str | None,
        settings_option(
            metavar="NAME",
            help="causal, mlm, mlm-l2r, mntp, seq2seq, infill.",
            show_default="the checkpoint's first",
        ),
    ] = None,
    correction: Annotated[
        Literal["none", "word-boundary", "pimentel-meister", "oh-schuler"] | None,
        settings_option(
            metavar="NAME",
            help="Correction for the end of a word, causal only (docs/how-to/surprisal.md): none, "
            "word-boundary, pimentel-meister, oh-schuler.",
            show_default="none",
        ),
    ] = None,
    bow_correction: Annotated[
        bool,
        settings_option("--bow-correction", help="Short for --correction word-boundary."),
    ] = False,
    long_texts: Annotated[
        Literal["window", "leave"],
        settings_option(
            metavar="RULE",
            help="Texts longer than the model: window (overlapping windows), leave (no values).",
        ),
    ] = "window",
    *,
    open_options: OptionValues,
) -> Tables:
    """Compute the surprisal of every token, word, region or sentence of your stimuli.

    The result is a table for R or pandas, in bits unless --base names another unit.
    """
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.surprisal import surprisal
    from antlm_bench.commands.surprisal_rows import UNITS_BY_BASE
    from antlm_bench.printable import format_count

    options = build_options(OpenOptions, open_options)
    result = surprisal(
        model,
        source,
        out,
        method=method,
        by=by,
        words=words,
        columns=parse_column_map(columns),
        text_layout=build_layout(conditions, position, spillover),
        correction=correction,
        bow_correction=bow_correction,
        add=split_names(add),
        base=base,
        context=context,
        join=join,
        long_texts=long_texts,
        options=options,
    )
    from antlm_bench.reporting.results_table import FLAG_LABELS
    from antlm_bench.reporting.table import build_facts_table

    facts: dict[str, object] = {
        f"{by}s": f"{len(result.rows):,} of {format_count(result.texts, 'text')}",
        **({"words by": words} if words else {}),
        "method": result.method,
        "unit": UNITS_BY_BASE[base][0],
    }
    if len(result.models) > 1:
        facts["models"] = ", ".join(result.models)
    if bow_correction or correction not in (None, "none"):
        facts["correction"] = correction or "word-boundary"
    if result.unscored:
        facts["without a number"] = (
            f"{result.unscored:,}: nothing stands before their first token (see --bos)"
        )
    if result.too_long:
        facts["too long"] = f"{result.too_long:,}: their text does not fit into the model"
    if result.windowed:
        texts = format_count(result.windowed, "text")
        facts["windows"] = f"{texts} longer than the model, read in overlapping windows"
    if result.shares_token:
        facts["counted to the word before"] = (
            f"{result.shares_token:,} words: they share a token with it"
        )
    for flag, count in result.flags.items():
        facts[FLAG_LABELS[flag]] = f"in {count:,} different texts"
    if result.notes:
        facts["note"] = "\n".join(result.notes)
    yield build_facts_table(str(result.path), facts)
