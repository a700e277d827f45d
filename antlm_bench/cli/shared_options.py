"""What is typed after options, as the values that a verb takes; a slip is named with the option it stands in.

TODO The parts that several verbs share: panels of their help, and the options that choose an output format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from antlm_bench.errors import UsageError

Options = TypeVar("Options")


def said(options: type[Options], values: Mapping[str, Any], **read: Any) -> Options:
    """A dataclass of options out of a verb's values of the same names, `read` before them.

    None is what was not said, and stays the dataclass's own default: only there is it written.
    """
    found = {**values, **read}
    names = [field.name for field in fields(options)]  # type: ignore[arg-type]
    return options(**{name: found[name] for name in names if found.get(name) is not None})


def split(values: Sequence[str] | None) -> list[str]:
    """`a,b` is two names, unless a file is really called that, or they are tasks of lm-eval (`lm-eval:a,b`)."""
    whole = [(value, value.startswith("lm-eval:") or exists(value)) for value in values or ()]
    return [part for value, one in whole for part in ([value] if one else value.split(",")) if part]


def exists(name: str) -> bool:
    """Whether something is there; a name that no file system could hold is not."""
    with suppress(OSError, ValueError):
        return Path(name).exists()
    return False


def renamed_columns(values: Sequence[str] | None) -> dict[str, str] | None:
    """`good=A,bad=B` -> {"good": "A", "bad": "B"}."""
    if not values:
        return None
    pairs = [pair.partition("=") for value in values for pair in value.split(",")]
    if wrong := [name for name, _, column in pairs if not column]:
        raise UsageError(f"{wrong[0]!r} is not ours=theirs", place="--columns", hint="e.g. --columns good=ok,bad=wrong")
    return {name: column for name, _, column in pairs}


def limits(values: Sequence[str] | None, option: str) -> dict[str, int]:
    """`500` is of every task ("" -> 500), `qqp=2000` of one; repeatable, or with commas."""
    found = {}
    for value in ",".join(values or ()).split(",") if values else ():
        name, _, count = value.rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(f"{value!r} is no number of rows", place=option, hint="e.g. 500, or qqp=2000,mnli=2000")
        found[name] = int(count)
    return found


def token_budget(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{text!r} is no number of tokens", place="--batch-tokens", hint="a whole number, or auto")
    return int(text)


def one_format(**asked: bool) -> str:
    """The one output format that was asked for, else "terminal"."""
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} exclude each other", hint="each prints the same rows")
    return chosen[0] if chosen else "terminal"


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
