"""Options that several commands share: their types, help panels and parsers.

Every UsageError names its option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from antlm_bench.errors import UsageError

Options = TypeVar("Options")


def build_options(
    options_class: type[Options], values: Mapping[str, Any], **parsed: Any
) -> Options:
    """Build an options dataclass from command-line values of the same names.

    `parsed` values replace raw ones. None means "not given" and keeps the dataclass's default.
    """
    given = {name: value for name, value in {**values, **parsed}.items() if value is not None}
    names = [field.name for field in fields(options_class)]  # type: ignore[arg-type]
    return options_class(**{name: given[name] for name in names if name in given})


def split_names(values: Sequence[str] | None) -> list[str]:
    """Split `a,b` into two names, except for an existing file and for `lm-eval:a,b`."""
    names: list[str] = []
    for value in values or ():
        is_one_name = value.startswith("lm-eval:") or _path_exists(value)
        names += [value] if is_one_name else value.split(",")
    return list(filter(None, names))


def _path_exists(name: str) -> bool:
    """Return whether the path exists; False for a name that the file system does not allow."""
    with suppress(OSError, ValueError):
        return Path(name).exists()
    return False


def parse_column_map(values: Sequence[str] | None) -> dict[str, str] | None:
    """Parse `good=A,bad=B` into {"good": "A", "bad": "B"}. Raises UsageError."""
    if not values:
        return None
    pairs = [pair.partition("=") for value in values for pair in value.split(",")]
    if wrong := [name for name, _, column in pairs if not column]:
        raise UsageError(
            f"{wrong[0]!r} is not ours=theirs",
            location="--columns",
            hint="e.g. --columns good=ok,bad=wrong",
        )
    return {name: column for name, _, column in pairs}


def parse_row_limits(values: Sequence[str] | None, option: str) -> dict[str, int]:
    """Parse limits of rows: `500` is for every task ("" -> 500), `qqp=2000` for one task.

    Limits are repeated or separated by commas. Raises UsageError.
    """
    limits = {}
    for value in ",".join(values or ()).split(",") if values else ():
        name, _, count = value.rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(
                f"{value!r} is not a number of rows",
                location=option,
                hint="e.g. 500, or qqp=2000,mnli=2000",
            )
        limits[name] = int(count)
    return limits


def parse_token_budget(text: str) -> int | None:
    """Parse a number of tokens. "auto" is None. Raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"{text!r} is not a number of tokens",
            location="--batch-tokens",
            hint="a whole number, or auto",
        )
    return int(text)


model_option = partial(typer.Option, rich_help_panel="What is scored")
scoring_option = partial(typer.Option, rich_help_panel="How it is scored")
run_folder_option = partial(typer.Option, rich_help_panel="The run")
table_option = partial(typer.Option, rich_help_panel="What is shown")

# Options of every command that opens a checkpoint.
ModelsOption = Annotated[
    list[str],
    model_option(
        "--model", metavar="CKPT", help="Folder, hub id, glob, folder of checkpoints. Repeatable."
    ),
]
RevisionOption = Annotated[str | None, model_option(metavar="REV", help="Revision of a hub model.")]
ColumnsOption = Annotated[
    list[str] | None,
    model_option("--columns", metavar="good=A,bad=B", help="Column names of your file."),
]
TrustRemoteCodeOption = Annotated[
    bool, scoring_option("--trust-remote-code", help="Run Python code of the checkpoint.")
]
AllowPickleOption = Annotated[
    bool, scoring_option("--allow-pickle", help="Open pickled weights, which can run code.")
]
AdapterOption = Annotated[
    str | None,
    model_option(
        "--peft", metavar="CKPT", help="PEFT adapter to merge into the weights: folder or hub id."
    ),
]
TokenizerOption = Annotated[
    str | None,
    model_option(
        "--tokenizer",
        metavar="CKPT",
        help="Folder or hub id of the tokenizer.",
        show_default="the checkpoint's",
    ),
]
AllowUnusedOption = Annotated[
    bool,
    scoring_option("--allow-unused", help="Open files with tensors that the model does not use."),
]
AllowMissingOption = Annotated[
    bool,
    scoring_option(
        "--allow-missing", help="Open files that lack parameters, initialized at random."
    ),
]
OriginalLayoutOption = Annotated[
    str | None,
    scoring_option(
        "--original-layout",
        metavar="NAME",
        help="Code that wrote a published LTG- or ELC-BERT, where its files do not tell: "
        "ltg-bert-bnc, ...",
    ),
]
BatchTokensOption = Annotated[
    int | None,
    scoring_option(
        "--batch-tokens",
        metavar="N",
        help="Tokens per forward pass; changes speed and memory only.",
        show_default="auto",
        parser=parse_token_budget,
    ),
]
BosOption = Annotated[
    Literal["auto", "always", "never", "tokenizer"] | None,
    scoring_option(
        metavar="RULE",
        help="A BOS before each text: auto, always, never, tokenizer.",
        show_default="auto",
    ),
]
MaxLengthOption = Annotated[
    int | None,
    scoring_option(
        metavar="N",
        min=1,
        help="Longest text in tokens; longer texts are counted and not scored.",
    ),
]
DeviceOption = Annotated[
    str | None,
    scoring_option(
        metavar="NAME", help="cpu, cuda, cuda:1, mps.", show_default="the best available"
    ),
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    scoring_option(metavar="NAME", help="float32, bfloat16, float16.", show_default="float32"),
]
AgainOption = Annotated[
    bool, run_folder_option("--again", help="Recompute cells that the run folder already has.")
]
OutOption = Annotated[
    Path | None,
    run_folder_option(
        "--out", metavar="DIR", help="Run folder.", show_default="a readable name in reports/"
    ),
]

FormatOption = Annotated[
    str | None,
    table_option(
        "--format",
        metavar="NAME",
        help="table, markdown, csv, json, latex, or one that a package adds.",
        show_default="table",
    ),
]
SHORT_FORMATS = ("json", "csv", "markdown", "latex")


def with_table_format(
    *, options: Sequence[str] = ("format", *SHORT_FORMATS)
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options --format, --json, --csv, --markdown and --latex, or some of them.

    The command takes the name of the chosen format as its argument `table_format`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            chosen = {name: values.pop(f"{name}_format") for name in options}
            command(**values, table_format=_choose_format(chosen))

        signature = inspect.signature(command, eval_str=True)
        parameters = [p for name, p in signature.parameters.items() if name != "table_format"]
        parameters += map(_format_parameter, options)
        # typer reads the signature; annotations of the command itself would be evaluated again
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def _format_parameter(name: str) -> inspect.Parameter:
    """Return the parameter of --format, or of a short form of it."""
    short = Annotated[bool, table_option(f"--{name}", help=f"Short for --format {name}.")]
    annotation, default = (FormatOption, None) if name == "format" else (short, False)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f"{name}_format", kind, default=default, annotation=annotation)


def _choose_format(chosen: Mapping[str, Any]) -> str:
    """Return the one format that was given, else "table". Raises UsageError for several."""
    options = {name: f"--{name}" for name, value in chosen.items() if value and name != "format"}
    if long_form := chosen.get("format"):
        options = {long_form: f"--format {long_form}", **options}
    if len(options) > 1:
        first, second, *_ = options.values()
        raise UsageError(
            f"{first} and {second} exclude each other", hint="each prints the same rows"
        )
    return next(iter(options), "table")
