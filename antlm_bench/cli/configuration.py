"""Defaults of options from a configuration file: the keys, and the option that each of them sets.

A value of the file is put before the arguments of the command line, unless its option is given. So
both are parsed and checked in the same way. Some keys set an environment variable, unless the
variable is already set.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from antlm_bench.cli.aliases import iter_options
from antlm_bench.configuration import (
    CHECK_TABLE,
    describe_used_configuration,
    find_configuration,
    read_configuration,
    use_configuration,
)
from antlm_bench.errors import BenchError, DeclarationError, UsageError

CONFIG_VARIABLE = "ANTLM_BENCH_CONFIG"
NO_FILE = "none"
"""Value of CONFIG_VARIABLE with which no file is read."""
ValueKind = Literal["text", "names", "number", "folder", "name or path"]
VALUE_TEXTS: dict[ValueKind, str] = {
    "text": "a text",
    "names": "a text or a list of texts",
    "number": "a whole number of 1 or more",
    "folder": "the path of a folder",
    "name or path": "a text",
}
"""Kind of a value -> its description in messages and in docs/reference/configuration.md."""
FORMAT_CONFLICTS = (
    "format_format",
    "json_format",
    "csv_format",
    "markdown_format",
    "latex_format",
    "github",
    "html",
    "svg",
    "png",
    "model_index",
)
"""Arguments that choose another output. If one of them is given, `format` has no effect."""
ANY_COMMAND = ("every command",)


@dataclass(frozen=True)
class ConfigurationKey:
    """A key of the file, and the option or environment variable that it sets."""

    name: str
    kind: ValueKind
    help: str
    option: str = ""
    commands: tuple[str, ...] = ()
    """The commands whose option it sets."""
    variable: str = ""
    """Environment variable that it sets for all other commands."""
    argument: str = ""
    """The function's argument for `option`, if options with this name have different ones."""
    yields_to: tuple[str, ...] = ()
    """Arguments that are given instead: with one of them the key has no effect."""


SCORING_COMMANDS = ("score", "surprisal")
MODEL_COMMANDS = ("score", "finetune", "surprisal")
KEYS: tuple[ConfigurationKey, ...] = (
    ConfigurationKey("suites", "names", "Suites.", "--suite", ("score",)),
    ConfigurationKey(
        "finetune_suites", "names", "Suites to finetune on.", "--suite", ("finetune",)
    ),
    ConfigurationKey("method", "names", "Scoring methods.", "--method", ("score",)),
    ConfigurationKey("ties", "text", "Value of a tie.", "--ties", ("score",)),
    ConfigurationKey("compat", "text", "A peer's conventions.", "--compat", ("score",)),
    ConfigurationKey("precision", "text", "exact or adaptive.", "--precision", ("score",)),
    ConfigurationKey("bos", "text", "A BOS before each text.", "--bos", SCORING_COMMANDS),
    ConfigurationKey("dtype", "text", "dtype of the model.", "--dtype", SCORING_COMMANDS),
    ConfigurationKey("device", "text", "Device.", "--device", (*MODEL_COMMANDS, "noise")),
    ConfigurationKey(
        "batch_tokens", "number", "Tokens per forward pass.", "--batch-tokens", MODEL_COMMANDS
    ),
    ConfigurationKey(
        "threads",
        "number",
        "CPU threads: per worker of a sweep, else of the command.",
        "--threads",
        ("run", "resume"),
        variable="OMP_NUM_THREADS",
    ),
    ConfigurationKey("data", "folder", "Folder of the suites' data.", variable="ANTLM_BENCH_DATA"),
    ConfigurationKey(
        "reports",
        "folder",
        "Folder in which score and finetune write run folders without --out.",
        variable="ANTLM_BENCH_REPORTS",
    ),
    ConfigurationKey("against", "name or path", "The baseline.", "--against", ("check",)),
    ConfigurationKey("fail_on", "text", "What fails: regression, drop.", "--fail-on", ("check",)),
    ConfigurationKey("year", "text", "Year of the challenge.", "--year", ("submit", "preflight")),
    ConfigurationKey("track", "text", "Its track.", "--track", ("submit", "preflight")),
    ConfigurationKey(
        "format",
        "text",
        "Format of tables on stdout.",
        "--format",
        ANY_COMMAND,
        argument="format_format",
        yields_to=FORMAT_CONFLICTS,
    ),
)
CHECK_KEY = ConfigurationKey(
    CHECK_TABLE,
    "text",
    "Margins, with the keys of a policy file.",
    "--policy",
    ("check",),
)
"""The table [check]: `--policy` gets the configuration file itself."""
DEFAULTS_KEY = "antlm_bench.defaults"
"""Key of a command's ConfiguredDefaults in click's context."""
COMMANDS_WITHOUT_FILE = ("worker", "completion")
"""Commands that read no configuration file: a worker takes its settings from sweep.json, and shells
start `completion` in any folder."""

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        rich_help_panel="Configuration",
        help="Configuration file with defaults of options.",
        show_default="antlm-bench.toml or pyproject.toml, here or above",
    ),
]
NoConfigOption = Annotated[
    bool,
    typer.Option(
        "--no-config", rich_help_panel="Configuration", help="Read no configuration file."
    ),
]


@dataclass(frozen=True)
class Configuration:
    """The values of a configuration file."""

    file: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """Name of a key -> its value. Paths are relative to the working directory, as options are."""

    def locate(self, key: str) -> str:
        """Return the location of a key, for errors."""
        return f"{shorten_path(self.file)}: {key}" if self.file else key


def add_configuration_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --config and --no-config. `ConfiguredDefaults` reads them from argv."""

    @wraps(command)
    def run(**values: Any) -> None:
        command(**{name: values[name] for name in values if name not in ("config", "no_config")})

    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *signature.parameters.values(),
        inspect.Parameter("config", kind, default=None, annotation=ConfigOption),
        inspect.Parameter("no_config", kind, default=False, annotation=NoConfigOption),
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def shorten_path(path: Path) -> str:
    """Return a path relative to the working directory, as a user would write it."""
    with suppress(ValueError, OSError):  # another drive of Windows
        return os.path.relpath(path)
    return str(path)


# ---- the file and its values


def load_configuration(args: Sequence[str]) -> Configuration:
    """Read the configuration of a command line.

    --config and --no-config win over ANTLM_BENCH_CONFIG, which wins over the nearest file.
    Raises DeclarationError for a file that cannot be read, an unknown key or a wrong type.
    """
    path = _choose_file(args)
    if path is None:
        return Configuration()
    tables = read_configuration(path)
    return Configuration(path, _check_values(tables, path))


def _choose_file(args: Sequence[str]) -> Path | None:
    files = [value for option, value in iter_options(args) if option == "--config"]
    option_value = files[-1] if files else ""
    if option_value and "--no-config" in args:
        raise UsageError(
            "--config and --no-config exclude each other", hint="leave one of them out"
        )
    if "--no-config" in args:
        return None
    chosen = option_value or os.environ.get(CONFIG_VARIABLE, "")
    if chosen:
        if not option_value and chosen == NO_FILE:
            return None
        return _expand_user(chosen)
    try:
        folder = Path.cwd()
    except OSError:  # the working directory was removed
        return None
    return find_configuration(folder)


def _check_values(tables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    keys = {key.name: key for key in KEYS}
    values: dict[str, Any] = {}
    for name, value in tables.items():
        location = f"{shorten_path(path)}: {name}"
        if name == CHECK_TABLE:
            if not isinstance(value, dict):
                raise DeclarationError("not a table of margins", location=location)
            values[name] = value
            continue
        if name not in keys:
            from antlm_bench.declarations import suggest_name

            names = [*keys, CHECK_TABLE]
            raise DeclarationError(
                f"unknown key {name!r}",
                location=shorten_path(path),
                hint=suggest_name(name, names) or f"the keys are {', '.join(names)}",
            )
        kind = keys[name].kind
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and "\0" in text for text in texts):
            raise DeclarationError(f"{value!r:.100} has a NUL character", location=location)
        if not _has_kind(value, kind):
            raise DeclarationError(f"{value!r:.100} is not {VALUE_TEXTS[kind]}", location=location)
        values[name] = _resolve_paths(value, kind, path.parent)
    return values


def _has_kind(value: Any, kind: ValueKind) -> bool:
    if kind == "number":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind == "names" and isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and each for each in value)
    return isinstance(value, str) and bool(value)


def _resolve_paths(value: Any, kind: ValueKind, folder: Path) -> Any:
    """Make paths that are relative to the file's folder relative to the working directory.

    A "name or path" is a path if it has a / or an extension, and exists in the file's folder.
    """
    if isinstance(value, list):
        return [_resolve_paths(each, kind, folder) for each in value]
    if kind in ("text", "number") or "://" in str(value):
        return value
    path = _expand_user(value)
    is_path = kind == "folder" or (("/" in value or path.suffix) and (folder / path).exists())
    return (
        shorten_path(folder / path)
        if is_path and not path.is_absolute()
        else str(path if is_path else value)
    )


def _expand_user(text: str) -> Path:
    from antlm_bench.declarations import expand_user_path  # imports pydantic

    return expand_user_path(text)


# ---- the values that a command uses


class ConfiguredDefaults:
    """The defaults that one command takes from the configuration."""

    def __init__(
        self, command: str, args: Sequence[str], arguments_by_option: Mapping[str, Any]
    ) -> None:
        """Read the configuration of a command line. Raises DeclarationError, UsageError.

        arguments_by_option: option of the command -> name of its argument.
        """
        self.configuration = Configuration()
        self.used: dict[str, Any] = {}
        """Name of each key that has an effect -> its value."""
        self.default_args: list[str] = []
        """Arguments to put before those of the command line."""
        self.variables: dict[str, str] = {}
        """Environment variables to set."""
        self._keys_by_location: dict[str, str] = {}
        if command in COMMANDS_WITHOUT_FILE or {"--help", "-h"} & set(args):
            return
        self.configuration = load_configuration(args)
        given_arguments = _list_given_arguments(args, arguments_by_option)
        for key in (*KEYS, CHECK_KEY):
            if key.name in self.configuration.values:
                self._apply(key, command, given_arguments, arguments_by_option)

    def _apply(
        self,
        key: ConfigurationKey,
        command: str,
        given_arguments: Collection[str],
        arguments_by_option: Mapping[str, Any],
    ) -> None:
        value, file = self.configuration.values[key.name], self.configuration.file
        is_for_command = command in key.commands or key.commands == ANY_COMMAND
        if key.variable and not is_for_command and key.variable not in os.environ:
            text = str(Path(value).absolute()) if key.kind == "folder" else str(value)
            self.variables[key.variable] = text
            self.used[key.name] = value
            self._keys_by_location[key.variable] = key.name
        argument = arguments_by_option.get(key.option)
        # An option of the same name can set another argument, such as --format of `export`.
        is_same_option = argument is not None and key.argument in ("", argument)
        if not is_same_option or not is_for_command:
            return
        if argument in given_arguments or any(name in given_arguments for name in key.yields_to):
            return
        if key is CHECK_KEY and file:
            self.default_args.append(f"{key.option}={shorten_path(file)}")
        else:
            values = value if isinstance(value, list) else [value]
            self.default_args += [f"{key.option}={each}" for each in values]
        self.used[key.name] = value
        self._keys_by_location[key.option] = key.name

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Add the file and the key to errors about values of the file."""
        try:
            yield
        except BenchError as error:
            self._locate(error)
            raise
        except Exception as error:
            # The error classes of typer differ between versions; these attributes do not.
            for option in getattr(getattr(error, "param", None), "opts", ()):
                if option in self._keys_by_location and hasattr(error, "format_message"):
                    message = str(getattr(error, "message", "") or error.format_message())
                    raise DeclarationError(
                        message.replace("Value error, ", ""),
                        location=self.configuration.locate(self._keys_by_location[option]),
                    ) from None
            raise

    def _locate(self, error: BenchError) -> None:
        """Add the file and the key to the location of an error about a value of the file."""
        if key := self._keys_by_location.get(error.location):
            error.location = self.configuration.locate(key)
            return
        for key, value in self.used.items():
            for text in value if isinstance(value, list) else [value]:
                is_named = not error.location and repr(text) in error.message
                if is_named or error.location == text:
                    location = self.configuration.locate(key)
                    error.location = f"{location}: {error.location}" if error.location else location
                    return

    @contextmanager
    def use(self) -> Iterator[None]:
        """Set the environment variables and record the used values within the block."""
        with use_configuration(self.describe()), set_variables(self.variables):
            yield

    def describe(self) -> dict[str, Any]:
        """Return the file and the used values, as JSON values; {} if none is used."""
        if not self.used or self.configuration.file is None:
            return {}
        return {"file": shorten_path(self.configuration.file), "values": self.used}


def _list_given_arguments(args: Sequence[str], arguments_by_option: Mapping[str, Any]) -> set[str]:
    """Return the names of the arguments whose options are on a command line."""
    names = (arguments_by_option.get(option) for option, _ in iter_options(args))
    return {name for name in names if name is not None}


@contextmanager
def set_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, within the block."""
    added = {name: text for name, text in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


# ---- the table of `doctor`


def list_settings(
    defaults: ConfiguredDefaults, commands: Mapping[str, Any], context: Any
) -> list[dict[str, str]]:
    """Return a row per key: its value, its origin, and the option or variable that it sets.

    commands: name -> click command. context: of click. Raises DeclarationError for a value that
    one of the key's commands refuses.
    """
    values, file = defaults.configuration.values, defaults.configuration.file
    from_file = shorten_path(file) if file else ""
    rows = []
    for key in KEYS:
        value = values.get(key.name, "")
        origin = from_file if key.name in values else "default"
        for command in _list_commands(key, commands) if key.name in values else ():
            _check_option_value(key, value, commands[command], defaults, context)
        row = {"key": key.name, "value": _join_texts(value), "from": origin}
        if key.option:
            rows.append({**row, "sets": describe_option(key)})
        if key.variable in os.environ and key.variable not in defaults.variables:
            row |= {"value": os.environ[key.variable], "from": "environment"}
        if key.variable:
            rows.append({**row, "sets": key.variable})
    for name, margin in _flatten(values.get(CHECK_TABLE, {}), CHECK_TABLE):
        rows.append({"key": name, "value": f"{margin}", "from": from_file, "sets": "check"})
    return rows


def describe_option(key: ConfigurationKey) -> str:
    """Return the commands and the option that a key sets: `score --suite`."""
    return f"{', '.join(key.commands)} {key.option}"


def _join_texts(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _list_commands(key: ConfigurationKey, commands: Mapping[str, Any]) -> Sequence[str]:
    """Return the commands with the key's option; for an option of all commands, one of them."""
    return (
        ("list",)
        if key.commands == ANY_COMMAND
        else [name for name in key.commands if name in commands]
    )


def _check_option_value(
    key: ConfigurationKey, value: Any, command: Any, defaults: ConfiguredDefaults, context: Any
) -> None:
    option = next(each for each in command.params if key.option in each.opts)
    values = value if isinstance(value, list) else [str(value)]
    try:
        option.process_value(context, values if option.multiple else values[0])
    except Exception as error:
        message = getattr(error, "message", str(error))
        raise DeclarationError(
            str(message).replace("Value error, ", ""),
            location=defaults.configuration.locate(key.name),
            hint=getattr(error, "hint", ""),
        ) from None


def _flatten(table: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.{key}")
        else:
            yield f"{name}.{key}", value


# ---- sweeps, whose workers read no configuration file

FOLDER_KEYS = {key.name: key for key in KEYS if key.kind == "folder"}


def describe_sweep_configuration() -> dict[str, Any]:
    """Return what sweep.json records of the configuration in use, with absolute paths."""
    facts = describe_used_configuration()
    if not facts:
        return {}
    values = {
        name: str(Path(value).absolute()) if name in FOLDER_KEYS else value
        for name, value in facts["values"].items()
    }
    return {"file": str(Path(facts["file"]).absolute()), "values": values}


@contextmanager
def use_sweep_configuration(facts: Mapping[str, Any]) -> Iterator[None]:
    """Use the configuration that sweep.json records within the block.

    It replaces the configuration of this command. Variables that the user has set stay.
    """
    used = describe_used_configuration().get("values", {})
    for name in set(used) & set(FOLDER_KEYS):
        os.environ.pop(FOLDER_KEYS[name].variable, None)
    values = facts.get("values", {})
    folders = {
        key.variable: values[name]
        for name, key in FOLDER_KEYS.items()
        if isinstance(values.get(name), str)
    }
    with use_configuration(facts), set_variables(folders):
        yield
