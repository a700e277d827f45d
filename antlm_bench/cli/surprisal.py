"""`surprisal`: words and regions of stimuli, one row each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissing,
    AllowPickle,
    AllowUnused,
    Bos,
    Device,
    Dtype,
    MaxLength,
    OriginalLayout,
    Revision,
    TokenizerOption,
    TokensPerForward,
    TrustRemoteCode,
    how,
    renamed_columns,
    said,
)

what = partial(typer.Option, rich_help_panel="What is read")

FORMS = (
    "Stimuli: .txt, a sentence per line; .csv, .tsv or .jsonl with a row per text (sentence) or per region (text and "
    "region), item and condition if there are any; SyntaxGym's .json. All other columns are carried over."
)


def surprisal_verb(
    model: Annotated[str, what(metavar="CKPT", help="Folder or hub id.")],
    source: Annotated[Path, what("--in", metavar="FILE", help="Stimuli: .txt .csv .tsv .jsonl .json")],
    out: Annotated[Path, what("--out", metavar="FILE", help="Result: .csv .tsv .parquet")],
    by: Annotated[
        Literal["word", "region", "sentence"], what(metavar="UNIT", help="A row per word, region or sentence.")
    ] = "word",
    columns: Annotated[
        list[str] | None, what(metavar="sentence=A,item=B", help="How the file names its columns.")
    ] = None,
    revision: Revision = None,
    method: Annotated[
        Literal["causal", "mlm", "mlm-l2r", "mntp"] | None,
        how(metavar="NAME", help="causal, mlm, mlm-l2r, mntp.", show_default="the checkpoint's own"),
    ] = None,
    bow_correction: Annotated[
        bool, how("--bow-correction", help="Count the end of a word to the word (Pimentel & Meister 2024).")
    ] = False,
    bos: Bos = None,
    max_length: MaxLength = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_tokens: TokensPerForward = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnused = False,
    allow_missing: AllowMissing = False,
    original_layout: OriginalLayout = None,
) -> None:
    """Surprisal of every word, region or sentence of your stimuli, in bits, as a table for R or pandas."""
    renamed = renamed_columns(columns)

    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.surprisal import surprisal
    from antlm_bench.reporting import facts
    from antlm_bench.reporting.results_table import COUNTED

    options = said(OpenOptions, locals())
    found = surprisal(
        model, source, out, method=method, by=by, columns=renamed, bow_correction=bow_correction, options=options
    )
    shown: dict[str, object] = {f"{by}s": f"{len(found.rows):,} of {found.texts:,} texts", "method": found.method}
    shown["unit"] = "bits" + (", the end of a word counted to the word" if bow_correction else "")
    if found.unscored:
        shown["without a number"] = f"{found.unscored:,}: nothing stands before their first token (see --bos)"
    if found.too_long:
        shown["too long"] = f"{found.too_long:,}: their text does not fit into the model"
    for flag, count in found.flags.items():
        shown[COUNTED[flag]] = f"in {count:,} different texts"
    if found.notes:
        shown["note"] = "\n".join(found.notes)
    facts(str(found.path), shown)
