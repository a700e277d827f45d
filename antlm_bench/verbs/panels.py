"""The parts that several verbs share: panels of their help, and the options that choose an output format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.options import token_budget

what = partial(typer.Option, rich_help_panel="What is scored")
how = partial(typer.Option, rich_help_panel="How it is scored")
run_folder = partial(typer.Option, rich_help_panel="The run")
table = partial(typer.Option, rich_help_panel="What is shown")

# What is opened, and how: the same words in every verb that opens a checkpoint.
Checkpoints = Annotated[
    list[str], what("--model", metavar="CKPT", help="Folder, hub id, glob, folder of checkpoints. Repeatable.")
]
Revision = Annotated[str | None, what(metavar="REV", help="Revision of a hub model.")]
Columns = Annotated[list[str] | None, what("--columns", metavar="good=A,bad=B", help="How a file names its columns.")]
TrustRemoteCode = Annotated[bool, how("--trust-remote-code", help="Run the checkpoint's own Python.")]
AllowPickle = Annotated[bool, how("--allow-pickle", help="Open weights that can run code.")]
AdapterOption = Annotated[
    str | None, what("--peft", metavar="CKPT", help="PEFT adapter to merge into the weights: folder or hub id.")
]
TokenizerOption = Annotated[
    str | None,
    what("--tokenizer", metavar="CKPT", help="Folder or hub id of the tokenizer.", show_default="the checkpoint's"),
]
AllowUnused = Annotated[bool, how("--allow-unused", help="Open files with tensors that the model does not use.")]
AllowMissing = Annotated[bool, how("--allow-missing", help="Open files that lack parameters: these are random.")]
OriginalLayout = Annotated[
    str | None,
    how(
        "--original-layout",
        metavar="NAME",
        help="Code that wrote a published LTG- or ELC-BERT, where its files do not tell: ltg-bert-bnc, ...",
    ),
]
TokensPerForward = Annotated[
    int | None,
    how(
        "--batch-tokens",
        metavar="N",
        help="Tokens per forward: speed and memory only.",
        show_default="auto",
        parser=token_budget,
    ),
]
Bos = Annotated[
    Literal["auto", "always", "never", "tokenizer"] | None,
    how(metavar="RULE", help="A BOS before each text: auto, always, never, tokenizer.", show_default="auto"),
]
MaxLength = Annotated[
    int | None, how(metavar="N", min=1, help="Tokens per text; longer ones are counted and not scored, never cut.")
]
Device = Annotated[str | None, how(metavar="NAME", help="cpu, cuda, cuda:1, mps.", show_default="the best there is")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    how(metavar="NAME", help="float32, bfloat16, float16.", show_default="float32"),
]
Again = Annotated[bool, run_folder("--again", help="Compute even what the run already holds.")]
RunFolder = Annotated[
    Path | None, run_folder("--out", metavar="DIR", help="Run folder.", show_default="a readable name in reports/")
]

Json = Annotated[bool, table("--json", help="JSON instead of a table.")]
Csv = Annotated[bool, table("--csv", help="CSV instead of a table.")]
Markdown = Annotated[bool, table("--markdown", help="Markdown instead of a table.")]
