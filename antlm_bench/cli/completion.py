"""Shell completion: names of suites, recipes, methods, tasks and baselines, and folders of
checkpoints and runs.

The scripts and the protocol are typer's: the shell starts `antlm-bench` with the words of the
command line in environment variables.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import typer

from antlm_bench.commands.stop_requests import STOP_SIGNALS

COMPLETE_VARIABLE = "_ANTLM_BENCH_COMPLETE"
"""Environment variable that a shell sets to get completions."""
MAX_DEPTH, MAX_FOLDERS = 3, 2000
"""Limits of the search for checkpoints and runs: levels below the typed path, and folders."""
KINDS_NOT_SCORED = ("classification", "stimuli")
"""Kinds of suites that `score` does not take."""
PLAIN_WORD = re.compile(r"[\w@%+:,./~][\w@%+=:,./~-]*")
"""A word that no shell interprets. Only such words are offered: zsh runs what typer prints for it,
and bash inserts a folder's name as it is."""
Completer = Callable[[Any, str], list[str]]
"""(click context, incomplete word) -> words. Those that do not continue the word are left out."""


def complete_words(build_command: Callable[[], Any]) -> NoReturn:
    """Print completions for a shell, and exit. Errors print nothing."""
    for stop_signal in STOP_SIGNALS:  # our handler would print a message
        signal.signal(stop_signal, signal.SIG_DFL)
    _join_assignments()
    code = 1  # to fish: no words, complete files
    with Path(os.devnull).open("w") as devnull, redirect_stderr(devnull):
        try:
            from typer._completion_classes import completion_init

            completion_init()
            build_command()([], prog_name="antlm-bench", complete_var=COMPLETE_VARIABLE)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            pass
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _join_assignments() -> None:
    """Remove the `=` words of COMP_WORDS: bash splits `--model=X` into `--model`, `=`, `X`."""
    if "COMP_WORDS" not in os.environ:
        return
    words, index = os.environ["COMP_WORDS"].split("\n"), int(os.environ.get("COMP_CWORD") or 0)
    before = words[: index + 1]  # what follows the cursor does not matter
    joined = [word for word in before if word != "="]
    follows_equals = before[-1:] == ["="]  # and the incomplete word is empty
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(index - (len(before) - len(joined)) + follows_equals)


# ---- names


@cache
def _read_suites() -> Mapping[str, tuple[str, str]]:
    """Return name -> (kind, text of the TOML) of every suite. The text is searched, not parsed."""
    from antlm_bench.declarations import list_declarations

    texts = {}
    for name, path in list_declarations("tasks").items():
        with suppress(OSError, UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
            kind = re.search(r'^kind = "([a-z-]+)"', text, re.MULTILINE)
            texts[name] = kind[1] if kind else "", text
    return texts


def _list_suites(only: Sequence[str] = (), without: Sequence[str] = ()) -> list[str]:
    """Return the names of suites of some kinds; () = of all."""
    return [
        name
        for name, (kind, _) in _read_suites().items()
        if (not only or kind in only) and kind not in without
    ]


def complete_suites(
    _context: Any, incomplete: str, only: Sequence[str] = (), without: Sequence[str] = ()
) -> list[str]:
    """Complete names of suites and collections. `a,b` is two names."""
    return _complete_list(_list_suites(only, without), incomplete)


def complete_methods(_context: Any, incomplete: str, extra: Sequence[str] = ()) -> list[str]:
    """Complete names of scoring methods."""
    from antlm_bench.scoring.methods import METHODS

    return _complete_list([*METHODS.names(), *extra], incomplete)


def complete_recipes(_context: Any, _incomplete: str) -> list[str]:
    """Complete names of recipes."""
    from antlm_bench.declarations import list_declarations

    return list(list_declarations("models"))


def complete_classification(context: Any, incomplete: str, table: str) -> list[str]:
    """Complete names of the tables [task.NAME] or [preset.NAME] of the suites of the command line,
    or of all suites to finetune on.
    """
    suites = _read_suites()
    given_suites = [
        name for value in context.params.get("suite") or () for name in value.split(",")
    ]
    suite_names = [name for name in given_suites if name in suites] or _list_suites(
        ["classification"]
    )
    pattern = re.compile(rf"^\[{table}\.([\w-]+)\]", re.MULTILINE)
    names = [name for suite in suite_names for name in pattern.findall(suites[suite][1])]
    return _complete_list(list(dict.fromkeys(names)), incomplete)


def complete_entries(context: Any, incomplete: str) -> list[str]:
    """Complete the names that `show` takes."""
    from antlm_bench.architectures.records import ARCHITECTURES

    return [
        *_list_suites(),
        *complete_recipes(context, incomplete),
        *complete_methods(context, incomplete),
        *ARCHITECTURES.names(),
        *("suites", "collections", "models", "methods", "architectures"),
    ]


def _complete_list(names: Sequence[str], incomplete: str) -> list[str]:
    """Complete the name after the last comma, with the names that do not stand before it."""
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name not in before.split(",")]


# ---- folders


def complete_checkpoints(_context: Any, incomplete: str) -> list[str]:
    """Complete folders of checkpoints, GGUF files, and models of the hub's cache."""
    return [*find_paths(incomplete, _is_checkpoint), *_list_hub_models()]


def complete_runs(_context: Any, incomplete: str) -> list[str]:
    """Complete run folders."""
    return find_paths(incomplete, lambda name: name == "run.json")


def complete_baselines(context: Any, incomplete: str) -> list[str]:
    """Complete names of saved baselines, and run folders."""
    files = sorted(Path("reports/baselines").glob("[!.]*/run.json"))
    return [*(file.parent.name for file in files), *complete_runs(context, incomplete)]


def _is_checkpoint(file_name: str) -> bool:
    return file_name in ("config.json", "adapter_config.json") or file_name.endswith(".gguf")


def find_paths(incomplete: str, is_marker: Callable[[str], bool]) -> list[str]:
    """Return folders up to MAX_DEPTH levels below the incomplete path that hold a file whose name
    `is_marker` accepts. A folder of .gguf files is replaced by these files. Links are not followed.
    """
    before, slash, start = incomplete.rpartition("/")
    root = Path(before + slash or ".").expanduser()
    paths: list[str] = []
    for path in _walk_folders(root, start):
        with suppress(OSError):
            names = sorted(entry.name for entry in os.scandir(path) if is_marker(entry.name))
            shown = before + slash + path.relative_to(root).as_posix()
            gguf_files = [f"{shown}/{name}" for name in names if name.endswith(".gguf")]
            paths += gguf_files or ([shown] if names else [])
    return paths


def _walk_folders(root: Path, start: str) -> Iterator[Path]:
    """Yield the folders below `root`, level by level. Names in `root` must begin with `start`."""
    level, count = [root], 0
    for depth in range(MAX_DEPTH):
        following = []
        for folder in level:
            with suppress(OSError):
                for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                    is_hidden = entry.name.startswith(".") and not (depth == 0 and start)
                    if is_hidden or (depth == 0 and not entry.name.startswith(start)):
                        continue
                    if entry.is_dir(follow_symlinks=False) and count < MAX_FOLDERS:
                        count += 1
                        following.append(Path(entry.path))
        yield from following
        level = following


def _list_hub_models() -> list[str]:
    """Return the ids of models in the hub's cache on this machine."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return [path.name[len("models--") :].replace("--", "/") for path in folder.glob("models--*")]


# ---- the completer of each parameter

complete_score_suites = partial(complete_suites, without=KINDS_NOT_SCORED)
complete_presets = partial(complete_classification, table="preset")
COMPLETERS: dict[str, Completer] = {
    "model": complete_checkpoints,
    "teacher": complete_checkpoints,
    "peft": complete_checkpoints,
    "tokenizer": complete_checkpoints,
    "suite": complete_suites,
    "suites": complete_suites,
    "method": complete_methods,
    "collection": partial(complete_suites, only=["collection"]),
    "run": complete_runs,
    "runs": complete_runs,
    "parts": complete_runs,
    "against": complete_runs,
    "score suite": complete_score_suites,
    "score method": partial(complete_methods, extra=["all"]),
    "plan suite": complete_score_suites,
    "verify suite": complete_score_suites,
    "noise suite": complete_score_suites,
    "power suite": complete_score_suites,
    "acquisition suite": partial(complete_suites, only=["acquisition"]),
    "finetune suite": partial(complete_suites, only=["classification"]),
    "finetune task": partial(complete_classification, table="task"),
    "finetune preset": complete_presets,
    "finetune compat": complete_presets,
    "surprisal source": partial(complete_suites, only=["stimuli"]),
    "train recipe": complete_recipes,
    "check against": complete_baselines,
    "show name": complete_entries,
}
"""Parameter, or command and parameter -> its completer. Choices are completed by typer."""


def add_completers(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Attach COMPLETERS to the parameters of commands, before typer reads them."""
    for name, command in commands.items():
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            completer = COMPLETERS.get(f"{name} {parameter.name}", COMPLETERS.get(parameter.name))
            for info in get_args(parameter.annotation)[1:]:
                if completer and hasattr(info, "autocompletion"):
                    info.autocompletion = _as_typer_completer(completer)


def _as_typer_completer(completer: Completer) -> Callable[..., list[str]]:
    """Return a function whose signature tells typer what to pass. Errors complete nothing."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        with suppress(Exception):
            return list(filter(PLAIN_WORD.fullmatch, completer(ctx, incomplete)))
        return []

    complete.__annotations__ = {"ctx": typer.Context, "incomplete": str, "return": list[str]}
    return complete


# ---- the command `completion`


def completion_command(
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")
    ],
    install: Annotated[
        bool,
        typer.Option(
            "--install", help="Write the script to where the shell reads it at its start."
        ),
    ] = False,
) -> None:
    """Print the script that completes command lines in a shell, or install it.

    Completed are commands, options and their values: suites, checkpoints, runs, methods, ...
    """
    from typer._completion_shared import get_completion_script
    from typer._completion_shared import install as install_script

    if not install:
        print(
            get_completion_script(
                prog_name="antlm-bench", complete_var=COMPLETE_VARIABLE, shell=shell
            )
        )
        return
    _, path = install_script(shell, "antlm-bench", COMPLETE_VARIABLE)
    print(f"{path}\nIt takes effect in a new {shell}.")
