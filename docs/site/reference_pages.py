"""Write the pages of the reference that are derived from the code, as Markdown.

`generate_pages()` returns all of them. The hooks of mkdocs (hooks.py) add them to the site, and the
tests read them, so this module needs neither mkdocs nor torch.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the package of this checkout, whatever is installed
sys.path.insert(0, str(Path(__file__).parent))

from class_fields import read_class_docs, read_fields  # noqa: E402

import antlm_bench  # noqa: E402
from antlm_bench import errors, types  # noqa: E402
from antlm_bench.cli.app import build_command  # noqa: E402
from antlm_bench.comparison.margins import MarginPolicy  # noqa: E402
from antlm_bench.declarations import Declaration  # noqa: E402
from antlm_bench.prediction_schema import PredictionSchema  # noqa: E402
from antlm_bench.runs.run_json import SCHEMA_VERSION  # noqa: E402
from antlm_bench.suites.task_types import TASK_TYPES, TaskType  # noqa: E402
from antlm_bench.sweeps.declaration import SweepDeclaration  # noqa: E402
from antlm_bench.training.recipe import Recipe  # noqa: E402

CONSOLE_MARKUP = re.compile(r"\[/?(?:bold|dim|italic|cyan|green|red|yellow)\]")


def generate_pages() -> dict[str, str]:
    """Return page -> Markdown. Pages are named relative to docs/."""
    writers: dict[str, Callable[[], str]] = {
        "reference/cli.md": write_cli_page,
        "reference/api.md": write_api_page,
        "reference/run-json.md": write_run_json_page,
        "reference/suite-toml.md": write_suite_toml_page,
        "reference/recipe-toml.md": write_recipe_toml_page,
        "reference/sweep-toml.md": write_sweep_toml_page,
        "reference/margins-toml.md": write_margins_toml_page,
    }
    return {name: writer() for name, writer in writers.items()}


# ---- Markdown


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is. Code between backticks stays code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # an odd number of backticks marks no code
        return _escape(text)
    return "`".join(piece if number % 2 else _escape(piece) for number, piece in enumerate(pieces))


def _escape(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]])", r"\\\1", text)
    return escaped.replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. Cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def format_definition(term: str, definition: str) -> str:
    """Return one entry of a Markdown definition list."""
    indented = "\n".join(f"    {line}".rstrip() for line in definition.splitlines())
    return f"{term}\n:   {indented.lstrip()}\n\n"


# ---- the command line


def write_cli_page() -> str:
    """Return the page of all commands with their arguments, options and defaults."""
    commands = list(iter_commands())
    rows = [
        [f"[`{name}`](#{anchor(name)})", escape_markdown(first_sentence(command.help or ""))]
        for name, command in commands
    ]
    return (
        "# Command line\n\n"
        "Every command of `antlm-bench`, as `antlm-bench COMMAND --help` shows it. An option that "
        "is *repeatable* may be given several times. Exit codes have a page of their own: "
        "[exit codes](exit-codes.md).\n\n"
        + format_table(["command", "what it does"], rows)
        + "\n"
        + "".join(write_command(name, command) for name, command in commands)
    )


def iter_commands() -> Iterator[tuple[str, Any]]:
    """Yield (name, click command), "data fetch" for a command of a group."""
    for name, command in build_command().commands.items():
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            yield name, command
        else:
            yield from ((f"{name} {sub}", subcommand) for sub, subcommand in subcommands.items())


def anchor(name: str) -> str:
    """Return the id of a command's heading."""
    return f"antlm-bench-{name.replace(' ', '-')}"


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?!])\s", " ".join(text.split()), maxsplit=1)[0]


def write_command(name: str, command: Any) -> str:
    """Return the section of one command."""
    visible = [p for p in command.params if not p.hidden and "--help" not in p.opts]
    arguments = [p for p in visible if p.param_type_name == "argument"]
    options = [p for p in visible if p.param_type_name == "option"]
    shown = " ".join(
        f"{'' if p.required else '['}{name_argument(p)}{'' if p.required else ']'}"
        for p in arguments
    )
    usage = " ".join(filter(None, [f"antlm-bench {name}", shown, "[OPTIONS]" if options else ""]))
    parts = [f"## `{name}` {{ #{anchor(name)} }}\n\n", f"```text\n{usage}\n```\n\n"]
    parts += [f"{paragraph}\n\n" for paragraph in write_paragraphs(command.help)]
    signature = inspect.signature(command.callback, eval_str=True).parameters
    annotations = {name: parameter.annotation for name, parameter in signature.items()}
    for title, parameters in group_parameters(arguments, options):
        parts.append(f"**{title}**\n\n")
        parts += [write_parameter(p, annotations.get(p.name)) for p in parameters]
    parts += [f"{paragraph}\n\n" for paragraph in write_paragraphs(command.epilog)]
    return "".join(parts)


def write_paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a help text as Markdown."""
    plain = CONSOLE_MARKUP.sub("", text or "").replace("\b", "")
    return [escape_markdown(" ".join(p.split())) for p in plain.split("\n\n") if p.strip()]


def group_parameters(
    arguments: Sequence[Any], options: Sequence[Any]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield (title, parameters) of the panels of the help, in the order of the help."""
    if arguments:
        yield "Arguments", list(arguments)
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or "Options", []).append(option)
    yield from panels.items()


def name_argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"{name}..." if parameter.nargs == -1 else name


def write_parameter(parameter: Any, annotation: Any) -> str:
    """Return one entry: names, value, help and default."""
    if parameter.param_type_name == "argument":
        term = f"`{name_argument(parameter)}`"
    else:
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag else f" {describe_value(parameter, annotation)}"
        term = f"`{names}{value}`"
    notes = [describe_default(parameter)]
    if parameter.multiple and "epeatable" not in (parameter.help or ""):
        notes.append("Repeatable.")
    text = " ".join([*write_paragraphs(parameter.help), *filter(None, notes)])
    return format_definition(term, text or "–")


def describe_value(parameter: Any, annotation: Any) -> str:
    """Return what stands for an option's value: its metavar, or the values it can take."""
    if parameter.metavar:
        return str(parameter.metavar)
    choices = list_choices(annotation)
    return (
        "|".join(choices) if choices else {int: "N", float: "X"}.get(bare_type(annotation), "TEXT")
    )


def list_choices(annotation: Any) -> list[str]:
    """Return the strings of the Literal in an annotation, [] without one."""
    if get_origin(annotation) is not None and "Literal" in str(get_origin(annotation)):
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation)[:2] for choice in list_choices(part)]


def bare_type(annotation: Any) -> Any:
    """Return int for `Annotated[int | None, ...]`."""
    while get_args(annotation):
        annotation = get_args(annotation)[0]
    return annotation


def describe_default(parameter: Any) -> str:
    """Return the default of a parameter as a sentence, "" where nothing is to be said."""
    if parameter.required:
        return "*Required.*"
    if isinstance(parameter.show_default, str):
        return f"*Default: {escape_markdown(parameter.show_default)}.*"
    default = parameter.default
    if default is None or default is False or default == () or default == [] or callable(default):
        return ""
    shown = "yes" if default is True else str(default)
    return f"*Default: `{shown}`.*" if shown else ""


# ---- the Python API


def write_api_page() -> str:
    """Return the page on every public name. mkdocstrings fills in signatures and docstrings."""
    names = [name for name in antlm_bench.__all__ if name != "__version__"]
    functions = [name for name in names if name.islower()]
    classes = [name for name in names if not name.islower()]
    sections = [("Functions", functions), ("Classes", classes)]
    return (
        "# Python interface\n\n"
        "All names can be imported from `antlm_bench`; each is imported when it is first used. "
        "[Python](../how-to/python.md) shows how they work together. "
        f"This page describes version {antlm_bench.__version__}.\n\n"
        + "".join(
            f"## {title}\n\n" + "".join(f"::: antlm_bench.{name}\n\n" for name in members)
            for title, members in sections
        )
        + "## Errors\n\nAll are subclasses of `antlm_bench.BenchError`, and have a message, a "
        "location and a hint. [Exit codes](exit-codes.md) explains the codes of the command "
        "line.\n\n" + format_table(["exception", "exit code", "meaning"], list_errors())
    )


def list_errors() -> list[list[str]]:
    """Return the rows of the table of errors, as the tree at the top of errors.py lists them."""
    lines = re.findall(r"[├└]── (\w+) +(\d+) +(.*)", errors.__doc__ or "")
    return [[f"`{name}`", code, escape_markdown(meaning)] for name, code, meaning in lines]


# ---- run folders


def write_run_json_page() -> str:
    """Return the page on the fields of run.json and of predictions."""
    records = [
        ("Manifest", types.Manifest, "`manifest`: the checkpoint and the software."),
        ("Cell", types.Cell, "An entry of `cells`. `predictions` names the cell's file."),
        ("Summary", types.Summary, "`summary` of a cell."),
        ("Estimate", types.Estimate, "`headline`, each of `views`, and `estimate` of a group."),
        ("Group", types.Group, "An entry of `groups`."),
    ]
    run_json = "".join(
        f"### {title}\n\n{note}\n\n{write_dataclass(record)}\n" for title, record, note in records
    )
    return (
        "# Fields of a run folder\n\n"
        "A [run folder](run-folder.md) holds what was computed about one checkpoint. Every number "
        "of a table, a report or a leaderboard file is derived from these fields.\n\n"
        f"## `run.json`\n\nThe current schema is {SCHEMA_VERSION}: the key `schema`. Older "
        "runs are read; a newer schema is refused with a message. `manifest` is an object, "
        "`cells` a list. Numbers are finite, log-probabilities are in nats.\n\n"
        + run_json
        + "## Flags\n\nFacts about items that are counted beside a score.\n\n"
        + format_table(
            ["flag", "meaning"],
            [[f"`{name}`", escape_markdown(meaning)] for name, meaning in types.FLAGS.items()],
        )
        + "\n## `predictions/*.parquet`\n\nOne row per item, with ids and numbers and never a "
        "text. The column `labels` is a struct with one field per label level of the suite. The "
        "other columns depend on the kind of suite:\n\n"
        + "".join(write_prediction_columns(task_type) for task_type in TASK_TYPES)
    )


def write_dataclass(record: type) -> str:
    """Return the table of the fields of a dataclass that run.json holds."""
    assert is_dataclass(record)
    names = {field.name for field in fields(record)} - {"schema", "file"}
    rows = []
    for field in read_fields(record):
        if field.name in names:
            table = re.search(r"\b(Summary|Estimate|Group)\b", field.annotation)
            link = f" See [{table[1]}](#{table[1].lower()})." if table else ""
            meaning = escape_markdown(field.doc) + link
            rows.append([f"`{field.name}`", name_json_type(field.annotation), meaning])
    return format_table(["key", "type", "meaning"], rows)


JSON_TYPES = [
    (r" \| None", " or null"),
    (r"tuple\[(.+), \.\.\.\]", r"list of \1"),
    (r"Mapping\[str, Any\]", "object"),
    (r"Mapping\[str, (.+)\]", r"object of \1"),
    (r"\b(?:Summary|Estimate|Group)\b", "object"),
    (r"\bstr\b", "string"),
    (r"\bint\b", "integer"),
    (r"\bfloat\b", "number"),
]
"""Python's notation of a type -> JSON's, in order."""


def name_json_type(annotation: str) -> str:
    """Return a field's annotation in words of JSON: `int | None` is an integer or null."""
    return replace_all(JSON_TYPES, annotation)


def replace_all(replacements: Sequence[tuple[str, str]], text: str) -> str:
    for pattern, replacement in replacements:
        text = re.sub(pattern, replacement, text)
    return text


def write_prediction_columns(task_type: TaskType) -> str:
    """Return the columns of the predictions of one kind of suite, "" where it has none."""
    schema: PredictionSchema | None = task_type.prediction_schema
    if schema is None:
        return ""
    rows = [
        [
            f"`{column.name}`" + (" (optional)" if column.is_optional else ""),
            f"`{column.type}`",
            escape_markdown(column.meaning),
        ]
        for column in schema.columns
    ]
    return f"### {task_type.name}\n\n{format_table(['column', 'type', 'meaning'], rows)}\n"


# ---- TOML files


def write_suite_toml_page() -> str:
    """Return the page on the TOMLs of suites: a section per kind of declaration."""
    declarations: dict[type[Declaration], list[str]] = {}
    for task_type in TASK_TYPES:
        if task_type.declaration is not None:
            declarations.setdefault(task_type.declaration, []).append(task_type.name)
    return (
        "# TOML of a suite\n\n"
        "A suite is declared by one TOML. The shipped ones lie in `tasks/`; yours lie in a folder "
        "`tasks/` of a folder that `ANTLM_BENCH_PATH` names, or are given by their path. The key "
        "`kind` chooses one of the sections below. Your own TOML may leave out `name`, `title`, "
        "`version`, `licence` and `citation`. [Suites of your own](../how-to/own-suites.md) "
        "shows how to begin.\n\n" + write_declarations(list(declarations))
    )


def write_recipe_toml_page() -> str:
    """Return the page on the TOMLs of training recipes."""
    return (
        "# TOML of a recipe\n\n"
        "A recipe holds all settings of one training run. The shipped ones lie in `models/`; "
        "`train --set batch.tokens=4096` changes single keys. A recipe may begin with `extends`, "
        "the name of another recipe whose keys it takes over, and may have tables `[scale.NAME]` "
        "with the keys that `--scale NAME` replaces.\n\n" + write_declarations([Recipe])
    )


def write_sweep_toml_page() -> str:
    """Return the page on the TOMLs of sweeps."""
    from antlm_bench.sweeps.slurm_script import SlurmSettings

    return (
        "# TOML of a sweep\n\n"
        "A sweep trains, scores and finetunes many checkpoints: "
        "[many checkpoints, seeds and machines](../how-to/scale.md).\n\n"
        + write_declarations([SweepDeclaration])
        + "## `[executor.slurm]`\n\n"
        + write_declaration_fields(SlurmSettings)
    )


def write_margins_toml_page() -> str:
    """Return the page on the file of `check --policy`."""
    return (
        "# TOML of margins\n\n"
        "The file of `antlm-bench check --policy`: by how much a run may be worse than its "
        "baseline. [A check for checkpoints in CI](../how-to/ci.md) explains the rule.\n\n"
        + write_declarations([MarginPolicy])
    )


def write_declarations(roots: Sequence[type[Declaration]]) -> str:
    """Return a section per declaration, roots first, then the tables that they hold."""
    queue, sections = list(roots), []
    for declaration in queue:
        queue += [table for table in find_tables(declaration) if table not in queue]
        sections.append(
            f"## {name_table(declaration)} {{ #{declaration.__name__.lower()} }}\n\n"
            f"{escape_markdown(read_class_docs(declaration))}\n\n"
            + write_declaration_fields(declaration)
        )
    return "\n".join(sections)


def name_table(declaration: type[Declaration]) -> str:
    """Return the heading of a declaration: its table, `[item]`, or the key that chooses it."""
    table = re.match(r"The table (\[+[\w.]+\]+)", read_class_docs(declaration))
    if table:
        return f"`{table[1]}`"
    kind = declaration.model_fields.get("kind")
    if kind is not None:
        values = [f'"{value}"' for value in get_args(kind.annotation)]
        return f"`kind = {' or '.join(values)}`"
    return re.sub(r"(?<!^)(?=[A-Z])", " ", declaration.__name__.removesuffix("Spec")).capitalize()


def find_tables(declaration: type[Declaration]) -> list[type[Declaration]]:
    """Return the declarations that the fields of a declaration hold."""

    def walk(annotation: Any) -> Iterator[type[Declaration]]:
        if isinstance(annotation, type) and issubclass(annotation, Declaration):
            yield annotation
        for part in get_args(annotation):
            yield from walk(part)

    annotations = [field.annotation for field in declaration.model_fields.values()]
    return list(dict.fromkeys(table for a in annotations for table in walk(a)))


def write_declaration_fields(declaration: type[Declaration]) -> str:
    """Return the keys of a table: type, default, meaning."""
    entries = []
    for field in read_fields(declaration):
        if field.name not in declaration.model_fields:
            continue
        model_field = declaration.model_fields[field.name]
        default = "*Required.*" if model_field.is_required() else describe_toml_default(model_field)
        tables = [
            f"[{name_table(table)}](#{table.__name__.lower()})"
            for table in find_tables(declaration)
            if table.__name__ in field.annotation
        ]
        more = f"See {', '.join(tables)}." if tables else ""
        text = " ".join(filter(None, [escape_markdown(field.doc), more, default]))
        entries.append(
            format_definition(f"`{field.name}` · `{simplify_type(field.annotation)}`", text)
        )
    return "".join(entries)


def describe_toml_default(model_field: Any) -> str:
    """Return the default of a key as a sentence, "" for an empty or absent value."""
    default = model_field.default
    if default is None or default in ("", ()) or isinstance(default, dict | Declaration):
        return ""
    if isinstance(default, tuple) and any(isinstance(part, Declaration) for part in default):
        return ""
    if repr(default) == "PydanticUndefined":
        return ""
    shown = list(default) if isinstance(default, tuple) else default
    text = {True: "true", False: "false"}.get(shown) if isinstance(shown, bool) else None
    return f"*Default: `{text or repr(shown)}`.*".replace("'", '"')


TYPE_NAMES = [
    (r"Annotated\[(.+?), (?:Field|AfterValidator|BeforeValidator|Strict)\(.*\)\]", r"\1"),
    (r"TomlTuple\[(.+)\]", r"list of \1"),
    (r"Literal\[(.+?)\]", r"\1"),
    (r" \| None", ""),
    (r"dict\[(?:Text|str), (.+)\]", r"table of \1"),
    (r"dict\[(?:Text|str), (.+)\]", r"table of \1"),  # again, for tables of tables
    (r"\b(?:Text|Template|Name|MetricName|Sha256|str)\b", "string"),
    (r"\bint\b", "integer"),
    (r"\b(?:float|Points)\b", "number"),
    (r"\bbool\b", "boolean"),
    (r"\bTomlTable\b", "table"),
    (r"\b\w+(?:Spec|Stage)\b", "table"),
]
"""Python's notation of a type -> TOML's, in order."""


def simplify_type(annotation: str) -> str:
    """Return a field's annotation in words of TOML: `TomlTuple[Text]` is a list of string."""
    return replace_all(TYPE_NAMES, annotation)
