"""Options that several commands share: their types, help panels and parsers.

Decorators add options to a command: `with_open_options`, `with_pair_format`, `with_table_format`,
and `prints_tables`, which also prints what the command yields. Every UsageError names its option.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import typer

from antlm_bench.errors import DeclarationError, UsageError

if TYPE_CHECKING:
    from antlm_bench.reporting.table import Table

Options = TypeVar("Options")
Command = Callable[..., Any]
Tables = Iterator["Table"]
"""The tables that a command yields, which `prints_tables` prints."""
OptionValues = Mapping[str, Any]
"""Name of an option -> its value; None = not given."""


def build_options(options_class: type[Options], values: OptionValues, **parsed: Any) -> Options:
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


def parse_assignments(
    values: Sequence[str] | None, option: str, form: str, example: str
) -> dict[str, str]:
    """Parse `name=value` texts into {name: value}.

    option, form, example: for the message of the UsageError, e.g. `--member`, `MEMBER=SUITE` and
    `ewok=ewok-fast-2025`.
    """
    assignments: dict[str, str] = {}
    for text in values or ():
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(
                f"{text!r} is not {form}", location=option, hint=f"e.g. {option} {example}"
            )
        if assignments.setdefault(name, value) != value:
            raise UsageError(
                f"{name!r} has two values: {assignments[name]!r}, {value!r}",
                location=option,
                hint="give each name one value",
            )
    return assignments


def parse_executor_options(values: Sequence[str] | None) -> dict[str, Any]:
    """Parse texts `KEY=VALUE` of --executor-option. Values are TOML, or texts without quotes.

    Raises UsageError, and DeclarationError for a list, table or quoted text that is not TOML.
    """
    from antlm_bench.declarations import parse_toml_value

    option = "--executor-option"
    texts = parse_assignments(values, option, "KEY=VALUE", "partition=gpu")
    parsed: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            parsed[name] = parse_toml_value(text, option)
        except DeclarationError:
            if text.startswith(("[", "{", '"', "'")):
                raise
            parsed[name] = text  # gpu:1
    return parsed


def check_overrides(texts: Sequence[str] | None) -> None:
    """Raise UsageError if two texts `KEY=VALUE` of --set give one key different values.

    The last one would win in silence. Malformed texts are left to their readers.
    """
    pairs = [text.partition("=") for text in texts or ()]
    assignments = [f"{key.strip()}={value.strip()}" for key, _, value in pairs if key and value]
    parse_assignments(assignments, "--set", "KEY=VALUE", "lr=1e-4")


def parse_column_map(values: Sequence[str] | None) -> dict[str, str] | None:
    """Parse `good=A,bad=B` into {"good": "A", "bad": "B"}. Raises UsageError."""
    if not values:
        return None
    texts = [text for value in values for text in value.split(",")]
    return parse_assignments(texts, "--columns", "OUR_COLUMN=YOUR_COLUMN", "good=ok,bad=wrong")


def parse_row_limits(values: Sequence[str] | None, option: str) -> dict[str, int]:
    """Parse limits of rows into {task: limit}: `500` is for every task (""), `qqp=2000` for one.

    Limits are repeated or separated by commas. Raises UsageError.
    """
    limits: dict[str, int] = {}
    for text in [text for value in values or () for text in value.split(",")]:
        task, _, count = text.rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(
                f"{text!r} is not a number of rows",
                location=option,
                hint="e.g. 500, or qqp=2000,mnli=2000",
            )
        if limits.setdefault(task, int(count)) != int(count):
            raise UsageError(
                f"{task or 'every task'} has two limits: {limits[task]}, {count}",
                location=option,
                hint="give each task one number of rows",
            )
    return limits


def refuse_options(values: OptionValues, message: str, hint: str) -> None:
    """Raise UsageError if one of these options was given; it names the first one.

    values: `--name` -> its value. A false value means "not given".
    """
    for option, value in values.items():
        if value:
            raise UsageError(message, location=option, hint=hint)


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


model_option = partial(typer.Option, rich_help_panel="Model and data")
settings_option = partial(typer.Option, rich_help_panel="Settings")
run_folder_option = partial(typer.Option, rich_help_panel="Run folder")
output_option = partial(typer.Option, rich_help_panel="Output")

ModelOption = Annotated[str, model_option(metavar="CKPT", help="Folder or hub id.")]
ModelsOption = Annotated[
    list[str],
    model_option(
        "--model", metavar="CKPT", help="Folder, hub id, glob, folder of checkpoints. Repeatable."
    ),
]
BatchTokensOption = Annotated[
    int | None,
    settings_option(
        "--batch-tokens",
        metavar="N",
        help="Tokens per forward pass; changes speed and memory only.",
        show_default="auto",
        parser=parse_token_budget,
    ),
]
ScaleOption = Annotated[
    str,
    model_option(
        "--scale", metavar="NAME", help="A smaller version that the recipe declares: nano, small."
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    model_option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe. Repeatable."),
]
ExecutorOptionsOption = Annotated[
    list[str] | None,
    settings_option(
        "--executor-option", metavar="KEY=VALUE", help="Setting of the executor. Repeatable."
    ),
]
AgainOption = Annotated[
    bool, run_folder_option("--again", help="Recompute cells that the run folder already has.")
]
NameOption = Annotated[
    str | None,
    run_folder_option(
        "--name",
        metavar="NAME",
        help="Name of the model in tables.",
        show_default="its folder or hub id",
    ),
]
ReplaceOption = Annotated[
    bool,
    run_folder_option(
        "--replace",
        help="Remove results of the same suites under other limits, which else stay beside the "
        "new ones.",
    ),
]
LevelOption = Annotated[
    Literal["suite", "field", "phenomenon", "paradigm"],
    output_option("--by", metavar="LEVEL", help="Depth: suite, field, phenomenon, paradigm."),
]
OutOption = Annotated[
    Path | None,
    run_folder_option(
        "--out",
        metavar="DIR",
        help="Run folder, or a URL of an object store: s3://bucket/run.",
        show_default="a readable name in reports/",
    ),
]
OPEN_OPTIONS: dict[str, Any] = {
    "revision": Annotated[
        str | None,
        model_option(
            metavar="REV",
            help="Revision of a hub model; score, finetune, doctor: also a,b or 'chck_*M'.",
        ),
    ],
    "bos": Annotated[
        Literal["auto", "always", "never", "tokenizer"] | None,
        settings_option(
            metavar="RULE",
            help="A BOS before each text: auto, always, never, tokenizer.",
            show_default="auto",
        ),
    ],
    "max_length": Annotated[
        int | None,
        settings_option(
            metavar="N",
            min=1,
            help="Longest text in tokens, special tokens included. Longer ones are never cut: they "
            "are wrong in an accuracy, and left out of other numbers.",
        ),
    ],
    "device": Annotated[
        str | None,
        settings_option(
            metavar="NAME", help="cpu, cuda, cuda:1, mps.", show_default="the best available"
        ),
    ],
    "dtype": Annotated[
        Literal["float32", "bfloat16", "float16", "float64"] | None,
        settings_option(
            metavar="NAME", help="float32, bfloat16, float16, float64.", show_default="float32"
        ),
    ],
    "batch_tokens": BatchTokensOption,
    "trust_remote_code": Annotated[
        bool, settings_option("--trust-remote-code", help="Run Python code of the checkpoint.")
    ],
    "allow_pickle": Annotated[
        bool, settings_option("--allow-pickle", help="Open pickled weights, which can run code.")
    ],
    "peft": Annotated[
        str | None,
        model_option(
            metavar="CKPT", help="PEFT adapter to merge into the weights: folder or hub id."
        ),
    ],
    "tokenizer": Annotated[
        str | None,
        model_option(
            metavar="CKPT",
            help="Folder or hub id of the tokenizer.",
            show_default="the checkpoint's",
        ),
    ],
    "allow_unused": Annotated[
        bool,
        settings_option(
            "--allow-unused", help="Open files with tensors that the model does not use."
        ),
    ],
    "allow_missing": Annotated[
        bool,
        settings_option(
            "--allow-missing", help="Open files that lack parameters, initialized at random."
        ),
    ],
    "original_layout": Annotated[
        str | None,
        settings_option(
            metavar="NAME",
            help="Code that wrote a published LTG- or ELC-BERT, if its files do not determine it: "
            "ltg-bert-bnc, ...",
        ),
    ],
}
"""Options for opening a checkpoint: field of `checkpoints.OpenOptions` -> the option's type."""
PAIR_FORMAT_OPTIONS: dict[str, Any] = {
    "columns": Annotated[
        list[str] | None,
        model_option(
            "--columns",
            metavar="good=A,bad=B",
            help="Column names of your file; of a long table key=A,label=B,sentence=C.",
        ),
    ],
    "layout": Annotated[
        str | None,
        model_option(
            metavar="NAME",
            help="Layout of your file: columns, alternating, labelled, long, judgements "
            "(antlm-bench suggest FILE).",
            show_default="by the file",
        ),
    ],
    "good": Annotated[
        str | None, model_option(metavar="LABEL", help="Label of right sentences in your file.")
    ],
    "good_first": Annotated[
        bool, model_option("--good-first", help="The first of two lines is right.")
    ],
    "bad_first": Annotated[
        bool, model_option("--bad-first", help="The second of two lines is right.")
    ],
}
"""Options that say how a user's file of pairs is read (suites.pair_files)."""
FormatOption = Annotated[
    str | None,
    output_option(
        "--format",
        metavar="NAME",
        help="table, markdown, csv, json, latex, or one that a package adds.",
        show_default="table",
    ),
]
SHORT_FORMATS = ("json", "csv", "markdown", "latex")


def with_open_options(*, without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """Give a command the options for opening a checkpoint, except those in `without`.

    The command takes their values as its argument `open_options`, by names of OPEN_OPTIONS.
    """
    options = {name: option for name, option in OPEN_OPTIONS.items() if name not in without}
    return lambda command: _add_options(command, options, "open_options", dict)


def with_pair_format(command: Command) -> Command:
    """Give a command the options PAIR_FORMAT_OPTIONS.

    The command takes them as its argument `pair_format`, with the names of the fields of
    `suites.task_types.SuiteRequest`.
    """
    return _add_options(command, PAIR_FORMAT_OPTIONS, "pair_format", _parse_pair_format)


def _parse_pair_format(values: OptionValues) -> OptionValues:
    """Return the values of columns, layout and good that were given. Raises UsageError."""
    orders = {"--good-first": values["good_first"], "--bad-first": values["bad_first"]}
    given = [flag for flag, is_set in orders.items() if is_set] + ["--good"] * bool(values["good"])
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other", hint="give one of them")
    good = values["good"] or {"--good-first": "first", "--bad-first": "second"}.get("".join(given))
    parsed = {
        "columns": parse_column_map(values["columns"]),
        "layout": values["layout"],
        "good": good,
    }
    return {name: value for name, value in parsed.items() if value}


def with_table_format(
    *, options: Sequence[str] = ("format", *SHORT_FORMATS)
) -> Callable[[Command], Command]:
    """Give a command the options --format, --json, --csv, --markdown and --latex, or some of them.

    The command takes the name of the chosen format as its argument `table_format`.
    """
    short_options = {
        name: Annotated[bool, output_option(f"--{name}", help=f"Short for --format {name}.")]
        for name in SHORT_FORMATS
    }
    types: dict[str, Any] = {"format": FormatOption, **short_options}
    # The suffix keeps them apart from other arguments of a command, such as a file for Markdown.
    format_options = {f"{name}_format": types[name] for name in options}
    return lambda command: _add_options(command, format_options, "table_format", _choose_format)


def prints_tables(
    *, options: Sequence[str] = ("format", *SHORT_FORMATS)
) -> Callable[[Callable[..., Tables]], Command]:
    """Add the options of `with_table_format` to a command, and print the tables that it yields.

    Tables that the command yields before it raises an error are printed, too.
    """

    def decorate(command: Callable[..., Tables]) -> Command:
        @wraps(command)
        def run(*, table_format: str, **values: Any) -> None:
            from antlm_bench.reporting.writers import print_tables

            tables = command(**values)
            first = next(tables, None)
            if first is not None:  # the other processes of torchrun yield no table
                print_tables(chain([first], tables), table_format)

        return with_table_format(options=options)(run)

    return decorate


def _add_options(
    command: Command,
    options: Mapping[str, Any],
    argument: str,
    convert: Callable[[OptionValues], Any],
) -> Command:
    """Return `command` with more options, whose values it receives as one argument.

    options: name -> type. convert: turns their values, by name, into that argument.
    """

    @wraps(command)
    def run(**values: Any) -> Any:
        option_values = {name: values.pop(name) for name in options}
        return command(**values, **{argument: convert(option_values)})

    signature = inspect.signature(command, eval_str=True)
    parameters = [p for name, p in signature.parameters.items() if name != argument]
    for name, option in options.items():
        default = False if get_args(option)[0] is bool else None
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=option))
    # typer reads the signature; annotations of the command itself would be evaluated again
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _choose_format(values: OptionValues) -> str:
    """Return the one format that was given, else "table".

    Raises UsageError for several, and for one that does not exist, before the command computes.
    """
    from antlm_bench.reporting.writers import FORMATS

    flags_by_format = {}
    if long_form := values.get("format_format"):
        flags_by_format[long_form] = f"--format {long_form}"
    for name in SHORT_FORMATS:
        if values.get(f"{name}_format"):
            flags_by_format.setdefault(name, f"--{name}")
    if len(flags_by_format) > 1:
        first, second, *_ = flags_by_format.values()
        raise UsageError(
            f"{first} and {second} exclude each other", hint="each prints the same rows"
        )
    return FORMATS[next(iter(flags_by_format), "table")].name
