"""Commands in errors, notes, footers and help texts: they exist, and can be followed."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pair_runs import draw_logprob_gaps, write_toy_run
from score_helpers import make_agreement_rows, write_pairs

import antlm_bench
from antlm_bench.cli import aliases
from antlm_bench.cli.app import build_app, run
from antlm_bench.commands.catalog import CATALOG_LISTINGS

Make = Callable[..., Path]
PACKAGE = Path(antlm_bench.__file__).parent
COMMANDS: Any = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]


def list_texts() -> Iterator[tuple[str, str]]:
    """Yield (file, text) of every string in the package but docstrings; values become X."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        docstrings = {id(node.value) for node in statements}
        parts = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                values = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
                yield file.name, "".join(map(str, values))
            elif isinstance(node, ast.Constant) and id(node) not in docstrings | parts:
                yield file.name, re.sub(r"\{\w+\}", "X", str(node.value))


def list_options(command: Any) -> set[str]:
    """Return the names of the options of a command and of its subcommands."""
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return options.union(*map(list_options, getattr(command, "commands", {}).values()))


def find_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a text, without the prose after it."""
    for match in re.finditer(r"antlm-bench (--help|[A-Za-z]+(?:(?!antlm-bench)[^\n])*)", text):
        words: list[str] = []
        for word in re.findall(r"'[^']*'|\S+", match[1]):
            is_quoted = word.startswith("'")
            argument = word.strip("'") if is_quoted else word.rstrip(",;.)`")
            subcommands = [*getattr(COMMANDS.get(words[0]), "commands", {})] if words else []
            subcommands += CATALOG_LISTINGS if words[:1] == ["list"] else []
            is_value = bool(words) and words[-1].startswith("--")
            is_placeholder = argument.upper() == argument
            is_part = argument.startswith("-") or is_value or is_placeholder or is_quoted
            if words and not is_part and argument.partition("|")[0] not in subcommands:
                break
            words += filter(None, [argument])
            if argument != word and not word.endswith("...") and not is_quoted:
                break
        yield words


TEXTS = list(list_texts())
OPTIONS = {"--help", "--version"}.union(*map(list_options, COMMANDS.values()))
FOREIGN_OPTIONS = {
    "--force-reinstall",  # of pip
    *(*aliases.OPTION_ALIASES, *aliases.OPTION_CONVERTERS),
    *("--log-samples", "--output-path", "--upgrade"),  # of lm-eval and pip
    *(
        "--array",
        "--constraint",
        "--me",
        "--noheader",
        "--parsable",
        "--signal",
        "--states",
    ),  # Slurm
    *("--cpus-per-task", "--kill-on-bad-exit", "--wait"),  # of srun
    "--head",  # of ray
}
PROSE = {"cannot", "scores"}
"""Words after the name of the package that are not commands."""


def test_every_command_in_a_text_exists() -> None:
    commands = [(file, words) for file, text in TEXTS for words in find_commands(text)]
    assert len(commands) > 40
    for file, words in commands:
        if words[0] in PROSE or words == ["X"]:
            continue
        assert words[0] == "--help" or words[0] in {"COMMAND", *COMMANDS}, (file, words)
        options = {word for word in words if word.startswith("--")} - {"--help"}
        assert options <= list_options(COMMANDS[words[0]]) if options else True, (file, words)
        subcommands = getattr(COMMANDS.get(words[0]), "commands", {})
        assert not subcommands or words[1] in {*subcommands, "X"}, (file, words)


def test_every_option_in_a_text_exists() -> None:
    for file, text in TEXTS:
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*\w", text):
            assert option.replace("_", "-") in OPTIONS | FOREIGN_OPTIONS, (file, text)


@pytest.fixture
def values(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Placeholder in a hint -> its value. The names of the files need quotes in a shell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    write_pairs(Path("my pairs.csv"), make_agreement_rows(6))
    for name, share in (("run a", 0.9), ("run b", 0.1)):
        write_toy_run(Path(name), draw_logprob_gaps(40, share))
    return {
        **dict.fromkeys(("RUN_A", "BASELINE"), "run a"),
        **dict.fromkeys(("RUN", "RUN_B", "RUN..."), "run b"),
        "CKPT": str(make_checkpoint()),
        "FILE": "my pairs.csv",
        "NAME": "nano",
        "[KIND]": "suites",
        "COMMAND": "score",
    }


@pytest.mark.parametrize(
    ("argv", "num_commands"),
    [
        ("--nonsense", 2),
        ("report RUN --collection nothing", 1),
        ("compare RUN", 1),
        ("check RUN --against nothing", 1),
        ("check RUN --against BASELINE --margin 1", 1),
        ("show a b c", 1),
        ("show nothing", 1),
        ("score --model CKPT --suite nothing", 1),
        ("train nothing --corpus nano --out out", 1),
        ("data fetch FILE", 1),
        ("surprisal --model CKPT --in nano --out words.csv", 1),
    ],
)
def test_a_hint_can_be_followed(
    argv: str, num_commands: int, values: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run([values.get(word, word) for word in argv.split()]) != 0
    output = capsys.readouterr()
    commands = [words for words in find_commands(output.err) if words]
    assert len(commands) == num_commands, output.err
    for words in commands:
        for alternative in words[-1].split("|"):
            extra = ["--limit", "1", "--out", "scored"] if words[0] == "score" else []
            extra = extra if alternative != "--help" else []
            command = shlex.join(values.get(word, word) for word in [*words[:-1], alternative])
            assert run([*shlex.split(command), *extra]) == 0, capsys.readouterr().err
