"""The command line as a user meets it: help, names, spellings, formats, errors. No model is loaded
here.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
from documented_pages import read_code
from typer.main import get_command

from antlm_bench import __version__
from antlm_bench.cli.app import COMMAND_GROUPS, COMMANDS, GREETING, build_app, run
from antlm_bench.cli.score import score_command
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.errors import IncompleteError
from antlm_bench.metrics import TIE_RULES
from antlm_bench.scoring.conventions import PEER_CONVENTIONS
from antlm_bench.scoring.methods import METHODS, SHIPPED, Method
from antlm_bench.scoring.text import BOS_POLICIES
from antlm_bench.training.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
BIN = [sys.executable, "-m", "antlm_bench"]


class Recorder(ModuleType):
    """Stands for commands.score: keeps what it is called with, returns `runs` or raises."""

    def __init__(self) -> None:
        super().__init__("antlm_bench.commands.score")
        self.calls: list[tuple[list[str], list[str], list[str], Any]] = []
        self.options: dict[str, Any] = {}
        self.error: Exception | None = None

    def score(
        self,
        models: Sequence[str],
        suites: Sequence[str],
        *,
        methods: Sequence[str],
        out: Any,
        options: Any,
    ) -> list[Any]:
        self.calls.append((list(models), list(suites), list(methods), out))
        self.options = {
            each.name: getattr(options, each.name)
            for each in fields(options)
            if getattr(options, each.name) != getattr(ScoreOptions(), each.name)
        }
        if self.error:
            raise self.error
        return []


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "antlm_bench.commands.score", recorder)
    return recorder


FLAGS = (
    "allow_incomplete",
    "allow_pickle",
    "allow_unused",
    "allow_missing",
    "trust_remote_code",
    "again",
    "require_all",
    "replace",
)


def test_help_fills_its_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["power", "--help"]) == 0
    sentence = "Suites of right and wrong answers need --flips or --accuracy, finetuned suites need"
    assert sentence in capsys.readouterr().out


@pytest.mark.long
def test_help_loads_nothing_heavy() -> None:
    """So that it answers at once."""
    code = (
        "import sys; from antlm_bench.cli.app import main\n"
        "try: main()\n"
        "finally: print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], check=True, capture_output=True, text=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {
        "torch",
        "transformers",
        "numpy",
        "scipy",
        "pandas",
        "pyarrow",
        "pydantic",
        "lm_eval",
        "minicons",
    }
    assert "typer" in loaded and not loaded & heavy


def greeting_commands() -> list[str]:
    """The commands that `antlm-bench` alone suggests, without their comments."""
    lines = [line.strip() for line in GREETING.splitlines() if line.startswith("  antlm-bench")]
    return [line.partition("  #")[0] for line in lines]


def test_without_arguments_it_suggests_four_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert len(greeting_commands()) == 4 and all(line in out for line in greeting_commands())
    assert "antlm-bench --help" in out and len(out.splitlines()) <= 15


@pytest.mark.parametrize("line", greeting_commands()[:2])
def test_first_suggestions_run_offline(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(shlex.split(line)[1:]) == 0
    assert "blimp" in capsys.readouterr().out


@pytest.mark.slow
def test_suggestions_run_offline_as_pasted(tmp_path: Path) -> None:
    for line in greeting_commands():
        finished = subprocess.run(
            [*BIN, *shlex.split(line)[1:]],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
    assert "nano" in finished.stdout


def list_command_lines() -> list[list[str]]:
    """The words before the options of every command, subcommand and group, and of the root."""
    groups = [[name, sub] for name, (_, subs) in COMMAND_GROUPS.items() for sub in subs]
    return [[], *([name] for name in (*COMMANDS, *COMMAND_GROUPS)), *groups]


@pytest.mark.long
def test_h_is_help_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    def print_help(words: list[str]) -> str:
        assert run(words) == 0
        return capsys.readouterr().out

    for words in list_command_lines():
        help_text = print_help([*words, "--help"])
        assert "Usage: antlm-bench" in help_text and print_help([*words, "-h"]) == help_text


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*COMMANDS, *COMMAND_GROUPS, "Exit codes"))


@pytest.mark.long
def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"antlm-bench {__version__}\n"


def test_every_score_option_has_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["score", "--help"]) == 0
    shown = capsys.readouterr().out
    missing = [
        each.name
        for each in fields(ScoreOptions)
        if f"--{each.name.replace('_', '-')} " not in shown
    ]
    assert not missing


def test_choices_are_those_that_the_code_knows() -> None:
    known = {"bos": BOS_POLICIES, "ties": TIE_RULES, "compat": PEER_CONVENTIONS}
    parameters = inspect.signature(score_command).parameters
    for name, table in known.items():
        option_type, _info = get_args(parameters[name].annotation)
        literal, _none = get_args(option_type)
        assert set(get_args(literal)) == set(table), name


@pytest.mark.parametrize(
    ("command", "is_accepted"),
    [
        ("surprisal", lambda method: len(method.parts) == 1),
        ("verify", lambda method: bool(method.peer_names)),
    ],
)
def test_help_lists_the_methods_that_a_command_accepts(
    command: str, is_accepted: Callable[[Method], bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    names = [name for name in SHIPPED if is_accepted(METHODS[name])]
    assert f"--method NAME {', '.join(names)}." in text


def test_score_passes_on_what_was_said_and_nothing_else(scorer: Recorder) -> None:
    assert (
        run(
            ["score", "--model", "a", "--model", "b", "--suite", "blimp,nano", "--suite", "wug-adj"]
        )
        == 0
    )
    assert scorer.calls == [(["a", "b"], ["blimp", "nano", "wug-adj"], [], None)]
    assert scorer.options == {}


def test_all_options_arrive_typed(scorer: Recorder) -> None:
    line = (
        "score --model a --suite s --revision r --limit 3 --columns good=ok,bad=no --columns "
        "id=key "
        "--method mlm,mlm-l2r "
        "--bos never --ties strict --compat lm-eval --max-length 9 --device cpu --dtype bfloat16 "
        "--precision adaptive "
        "--batch-tokens 512 --trust-remote-code --allow-pickle --allow-incomplete --again "
        "--require-all --replace --out runs "
        "--peft p --tokenizer t --allow-unused --allow-missing --original-layout ltg-bert-bnc"
    )
    assert run(shlex.split(line)) == 0
    assert scorer.calls == [(["a"], ["s"], ["mlm", "mlm-l2r"], Path("runs"))]
    assert scorer.options == {
        **dict.fromkeys(FLAGS, True),
        "revision": "r",
        "limit": 3,
        "columns": {"good": "ok", "bad": "no", "id": "key"},
        "bos": "never",
        "ties": "strict",
        "compat": "lm-eval",
        "max_length": 9,
        "original_layout": "ltg-bert-bnc",
        "device": "cpu",
        "dtype": "bfloat16",
        "precision": "adaptive",
        "batch_tokens": 512,
        "peft": "p",
        "tokenizer": "t",
    }


def test_a_command_line_of_lm_eval_runs(scorer: Recorder) -> None:
    line = "score --model hf --model_args pretrained=gpt2,dtype=bfloat16 --tasks blimp,supplement"
    assert (
        run([*shlex.split(line), *shlex.split("--batch_size auto --limit 5 --output_path o")]) == 0
    )
    assert scorer.calls == [(["gpt2"], ["blimp", "supplement"], [], Path("o"))]
    assert scorer.options == {"dtype": "bfloat16", "limit": 5}


def test_a_command_line_of_babylm_runs(scorer: Recorder) -> None:
    line = (
        "score --model_path_or_name babylm/m --backend mntp --revision_name chck_1M "
        "--suite blimp-fast"
    )
    assert run(shlex.split(line)) == 0
    assert scorer.calls == [(["babylm/m"], ["blimp-fast"], ["mntp"], None)]
    assert scorer.options == {"revision": "chck_1M"}


def test_a_file_whose_name_holds_a_comma_is_one_suite(scorer: Recorder, tmp_path: Path) -> None:
    file = tmp_path / "a,b.csv"
    file.write_text("good,bad\nx,y\n", encoding="utf-8")
    assert run(["score", "--model", "m", "--suite", str(file)]) == 0
    assert scorer.calls[0][1] == [str(file)]


def test_what_did_finish_is_shown_before_the_error(
    scorer: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer.error = IncompleteError("1 of 2 checkpoints were not scored", runs=[])
    assert run(["score", "--model", "m", "--suite", "nano", "--json"]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runs"] == []
    assert "1 of 2 checkpoints" in captured.err


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("scor", "Did you mean 'score'"),
        ("score --suite nano", "--model"),
        ("score --model m", "--suite"),
        ("score --model m --suite nano --limit 0", "limit"),
        ("score --model m --suite nano --bos sometimes", "sometimes"),
        ("score --model m --suite nano --batch-tokens lots", "is not a number of tokens"),
        ("score --model m --suite nano --columns good", "is not OUR_COLUMN=YOUR_COLUMN"),
        ("score --model m --suite nano --json --csv", "exclude each other"),
        ("score --model m --suite nano --bacth-tokens 3", "--bacth-tokens"),
        ("score --model_args pretraned=m --suite nano", "did you mean pretrained"),
        ("list cakes", "cakes"),
        ("show blmp", "did you mean 'blimp'?"),
        ("show", "'[KIND] NAME'"),
        ("show babylama", "did you mean 'babyllama'?"),
        ("show models blimp", "unknown recipe 'blimp'"),
        ("show architectures lama", "Did you mean 'llama'?"),
        ("show llama --words 9", "only for recipes"),
        ("show cakes nano", "cannot be shown"),
        ("show suites nano blimp", "one at a time"),
        ("show blimp --scale nano", "only for recipes"),
        ("show babyllama --scale huge", "it has small, nano"),
        ("show babyllama --set model.layer=3", "did you mean 'layers'?"),
        ("data", "command"),
        ("data fetch", "SUITE"),
        ("data list pairs.csv", "a file of yours"),
    ],
)
def test_bad_usage_is_exit_code_2_and_names_the_culprit(
    line: str, complaint: str, scorer: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(line)) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.startswith("error: ") and "Traceback" not in captured.err
    assert not captured.out
    assert not scorer.calls


@pytest.mark.long
@pytest.mark.parametrize("kind", ["suites", "collections", "models", "methods", "architectures"])
def test_list_says_the_same_in_every_format(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*form: str) -> str:
        assert run(["list", kind, *form]) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("--json"))["table"]["rows"]
    assert printed("--format", "json") == printed("--json")
    names = [next(iter(row.values())) for row in rows]
    assert names and names == [line[0] for line in csv.reader(io.StringIO(printed("--csv")))][1:]
    plain, markdown = printed(), printed("--markdown")
    assert all(f"| {name} |" in markdown for name in names)
    # On a terminal, the suites of a large collection are one row (tests/commands/test_list.py).
    assert all(name in plain for name in names if not name.startswith("multiblimp-"))


def test_help_of_compare_states_how_many_items_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["compare", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--flips alone lists 20" in words.replace("[x>=0] ", "")
    assert "Without --flips, 10 items per suite." in words


def test_list_counts_the_suites_it_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--json"]) == 0
    items = {
        row["suite"]: row["items"] for row in json.loads(capsys.readouterr().out)["table"]["rows"]
    }
    assert (items["blimp"], items["blimp-filtered"], items["nano"]) == (67_000, 59_875, 800)


def test_show_tells_what_a_reader_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "blimp"]) == 0
    out = capsys.readouterr().out
    for part in (
        "CC BY 4.0",
        "Warstadt",
        "67,000",
        "unweighted mean over paradigms",
        "+ Who should Derek hug after",
    ):
        assert part in out


def test_show_knows_collections_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "zero-shot-2025"]) == 0
    assert "blimp-filtered" in capsys.readouterr().out
    assert run(["show", "mlm"]) == 0
    assert "mask token" in capsys.readouterr().out


def test_show_tells_the_classes_and_recipes_of_an_architecture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["show", "architectures", "gpt-bert", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "AutoModelForMaskedLM: " in shown and "gpt-bert-100m" in shown
    assert "elc-bert" not in shown and "babyllama" not in shown
    assert run(["show", "gpt-bert", "--json"]) == 0
    assert capsys.readouterr().out == shown


def test_list_tells_what_a_recipe_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "models", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)["table"]["rows"]}
    assert rows["antlm-babyllama"]["parameters"] == 58_343_936
    assert rows["antlm-babyllama"]["objective"] == "4 CLM + 16 MLM + 4 CLM epochs"
    assert rows["gpt-bert-10m"]["objective"] == "7,812 CLM:MNTP 1:15 steps"
    assert rows["babyllama-distilled"]["objective"] == "6 CLM epochs, distilled"
    assert "nano" in rows["babyllama"]["scales"]


def test_show_resolves_a_recipe_and_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["babyllama", "--scale", "nano", "--set", "seed=7", "--words", "100000"]
    assert run(["show", *asked]) == 0
    long = capsys.readouterr().out
    assert run(["show", "models", *asked]) == 0
    assert capsys.readouterr().out == long
    short = re.sub(" +", " ", long)
    for said in (
        "840,320",
        "100,000 words, assumed",
        "seed 7",
        "FLOPs",
        "vocabulary 2,000",
        "2308.02019",
    ):
        assert said in short


@pytest.mark.long
def test_show_knows_a_recipe_of_the_users_by_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "babyllama"\n[model]\nlayers = 3\n')
    assert run(["show", str(mine)]) == 0
    assert "layers             3" in capsys.readouterr().out


@pytest.mark.long
def test_data_verify_finds_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    assert run(["data", "verify"]) == 0
    assert "no data files here" in capsys.readouterr().out
    assert run(["data", "verify", "wug-adj"]) == 5
    assert "hint: antlm-bench data fetch wug-adj\n" in capsys.readouterr().err
    (tmp_path / "wug_adj").mkdir()
    for name in ("wug_adj_nominalization.jsonl", "wug_adj.jsonl"):
        (tmp_path / "wug_adj" / name).write_text(
            '{"sentences": "a\\tb", "ratio": 0.5}\n', encoding="utf-8"
        )
    assert run(["data", "verify", "wug-adj"]) == 3
    captured = capsys.readouterr()
    assert "differs" in captured.out and "not as published: 1 file" in captured.err
    assert run(["data", "verify"]) == 3  # without names the hint names the suites with such files
    assert "download them again: antlm-bench data fetch wug-adj\n" in capsys.readouterr().err


def test_data_where_names_the_folders_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    assert run(["data", "where"]) == 0
    out = capsys.readouterr().out
    assert out.index(f"{tmp_path} ") < out.index(str(tmp_path / "cache"))


@pytest.mark.long
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{shlex.join(BIN)} list --json | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.returncode in (
        0,
        141,
    )  # 0: all was in the pipe before it closed


def on_a_terminal(argv: Sequence[str], **environment: str) -> str:
    """What the command writes when both its streams are a terminal."""
    pty = pytest.importorskip("pty", reason="terminals of Unix")
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"TERM": "xterm-256color", "COLUMNS": "100", **environment}
    child = subprocess.Popen([*BIN, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is gone
            part = b""
        if not part:
            break
        written += part
    os.close(ours)
    child.wait()
    return written.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


@pytest.mark.long
def test_colours_on_a_terminal_only_and_never_under_no_color() -> None:
    assert COLOUR.search(on_a_terminal(["show", "blmp"]))
    assert not COLOUR.search(on_a_terminal(["show", "blmp"], NO_COLOR="1"))
    piped = subprocess.run([*BIN, "show", "blmp"], capture_output=True, text=True, check=False)
    assert piped.returncode == 2 and "\x1b" not in piped.stderr


PAGES = [
    "README.md",
    *(f"docs/how-to/{n}.md" for n in ["score", "finetune", "report", "train", "data"]),
]


def documented_commands() -> list[str]:
    """Every antlm-bench line in the code blocks of the pages, continuation lines joined."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    lines = "\n".join(read_code(text, "sh", "bash")).replace("\\\n", " ").splitlines()
    commands = (line.partition(" #")[0].strip() for line in lines)
    return list(dict.fromkeys(line for line in commands if line.startswith("antlm-bench ")))


def parsed(argv: Sequence[str]) -> None:
    """Every word of a command line has its place: names of verbs and options, their types and
    choices.
    """
    command: Any = get_command(build_app())
    words, context = list(argv), None
    while hasattr(command, "commands"):
        context = command.make_context(words[0], words[:0], parent=context, resilient_parsing=True)
        command = command.commands[words.pop(0)]
    command.make_context(argv[0], words, parent=context)


@pytest.mark.long
@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_are_understood(
    line: str, scorer: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(recipe: str, _corpus: str, out: Path, options: Any) -> Path:
        read_recipe(recipe, options.scale, options.changes)
        return out / "main"

    monkeypatch.setattr("antlm_bench.commands.train.train", trained)
    argv = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)][1:]
    if argv[0] in ("list", "show", "score", "train") or argv[:2] in (
        ["data", "list"],
        ["data", "where"],
    ):
        assert run(argv) == 0
    else:
        parsed(argv)  # the others need the net, a checkpoint or runs
    assert argv[0] != "score" or scorer.calls


@pytest.mark.parametrize(
    "command",
    [
        "surprisal --model A --in x.csv --in=z.csv --out y.csv",
        "score --model A --suite nano --limit 2 --limit=3",
        "check A --against B --against C",
        "finetune --model A --suite glue --revision x --revision_name y",
        "data fetch blimp --to a --to b",
    ],
)
def test_an_option_with_two_values_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command.split()) == 2
    assert "given with 2 values" in capsys.readouterr().err
