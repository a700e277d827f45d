"""The configuration file: where it is found, what it sets, and what it cannot do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_runs import write_toy_run
from typer.main import get_command

import antlm_bench
from antlm_bench.cli.app import build_app, run
from antlm_bench.cli.configuration import (
    ANY_COMMAND,
    CHECK_KEY,
    KEYS,
    ConfigurationKey,
    ConfiguredDefaults,
    describe_option,
    use_sweep_configuration,
)
from antlm_bench.configuration import use_configuration
from antlm_bench.errors import IncompleteError
from antlm_bench.runs.layout import run_dir
from antlm_bench.runs.provenance import ResourceMeter, read_provenance
from antlm_bench.sweeps.store import FolderStore, decode_sweep
from antlm_bench.sweeps.units import Sweep, Unit, encode_sweep, group_units

ROOT = Path(__file__).resolve().parents[2]
COMMAND: Any = get_command(build_app())
"""Built anew, because click keeps the options of a context without a parent."""
REQUIRED_ARGS: dict[str, list[str]] = {
    "score": ["--model", "m", "--suite", "s"],
    "surprisal": ["--model", "m", "--in", "f.txt", "--out", "o.csv"],
    "finetune": ["--model", "m", "--suite", "s"],
    "noise": ["--model", "m", "--suite", "s"],
    "check": ["run", "--against", "base"],
    "submit": ["run", "--year", "2024", "--track", "strict", "--out", "o.json"],
    "preflight": ["folder", "--track", "strict"],
    "run": ["sweep.toml"],
    "resume": ["sweep.toml"],
    "list": [],
}
"""Command -> its required arguments."""
CHOICES: dict[str, tuple[str, ...]] = {
    "ties": ("half", "strict", "first", "random"),
    "compat": ("lm-eval", "minicons", "babylm-2024"),
    "precision": ("exact", "adaptive"),
    "bos": ("auto", "always", "never", "tokenizer"),
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "fail_on": ("regression", "drop"),
    "format": ("table", "json", "csv", "markdown", "latex"),
}
TEXTS = st.text("abcXYZ019-_./ =:\"'é", min_size=1, max_size=12)
CASES = [
    (key, command)
    for key in KEYS
    if key.option
    for command in (("list",) if key.commands == ANY_COMMAND else key.commands)
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory below a folder for configuration files."""
    for name in ("ANTLM_BENCH_DATA", "ANTLM_BENCH_REPORTS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ANTLM_BENCH_CONFIG", raising=False)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    return tmp_path


def write_configuration(path: Path, **values: Any) -> None:
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8")


def parse(command: str, args: list[str]) -> dict[str, Any]:
    """Return the arguments that a command gets from a command line."""
    context = COMMAND.commands[command].make_context(command, list(args))
    return {k: v for k, v in context.params.items() if k not in ("config", "no_config")}


def read_settings(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, tuple[str, str]]:
    """Return key -> (value, origin) as `doctor` prints them."""
    assert run(["doctor", "--csv", *args]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    return {row[0]: (row[1], row[2]) for row in rows}


def without_option(command: str, option: str) -> list[str]:
    """Return the command line of REQUIRED_ARGS without an option."""
    args = REQUIRED_ARGS[command]
    if option not in args:
        return args
    index = args.index(option)
    return args[:index] + args[index + 2 :]


# ---- every key


@pytest.mark.parametrize(("key", "command"), CASES, ids=lambda x: getattr(x, "name", x))
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_sets_what_the_flag_sets(
    key: ConfigurationKey, command: str, data: st.DataObject
) -> None:
    file = Path("antlm-bench.toml")
    values = st.sampled_from(CHOICES[key.name]) if key.name in CHOICES else TEXTS
    value: Any = data.draw(st.integers(1, 10**6) if key.kind == "number" else values)
    if key.kind == "names" and data.draw(st.booleans()):
        value = [value, data.draw(TEXTS)]
    words = [f"{key.option}={each}" for each in (value if isinstance(value, list) else [value])]
    args = without_option(command, key.option)
    write_configuration(file, **{key.name: value})
    by_file = parse(command, args)
    by_flag = parse(command, [*args, *words, "--no-config"])
    assert by_file == by_flag

    other: Any = "other"
    if key.name in CHOICES:
        other = next(each for each in CHOICES[key.name] if each != value)
    other = value + 1 if key.kind == "number" else other
    both = parse(command, [*args, f"{key.option}={other}"])
    assert both == parse(command, [*args, f"{key.option}={other}", "--no-config"]) != by_file


@pytest.mark.parametrize("key", [key for key in KEYS if key.variable], ids=lambda key: key.name)
def test_a_variable_of_the_user_beats_the_file(
    key: ConfigurationKey, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = 3 if key.kind == "number" else "there"
    write_configuration(folder / "antlm-bench.toml", **{key.name: value})
    from_file = ConfiguredDefaults("score", [], {})
    expected = "3" if key.kind == "number" else os.path.normpath(folder / "there")
    assert {name: os.path.normpath(text) for name, text in from_file.variables.items()} == {
        key.variable: expected
    }
    with from_file.use():
        assert os.path.normpath(os.environ[key.variable]) == expected
    assert key.variable not in os.environ
    monkeypatch.setenv(key.variable, "mine")
    assert ConfiguredDefaults("score", [], {}).variables == {}


def test_a_format_yields_to_every_other_output(folder: Path) -> None:
    write_configuration(folder / "antlm-bench.toml", format="json")
    assert parse("list", [])["format_format"] == "json"
    for args in (["--csv"], ["--markdown"], ["--format", "csv"]):
        assert parse("list", args)["format_format"] != "json"
    for args in (["r", "--html", "p.html"], ["r", "--model-index"]):
        assert parse("report", args)["format_format"] is None
    assert parse("check", ["r", "--against", "b", "--github"])["format_format"] is None


def test_paths_are_those_of_the_file(folder: Path) -> None:
    (folder / "pairs.csv").touch()
    (folder / "blimp").mkdir()
    write_configuration(
        folder / "antlm-bench.toml", suites=["pairs.csv", "blimp", "gone.csv", "lm-eval:sciq"]
    )
    assert parse("score", ["--model", "m"])["suite"] == [
        "../pairs.csv",
        "blimp",
        "gone.csv",
        "lm-eval:sciq",
    ]


# ---- which file


def test_the_nearest_file_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_configuration(folder / "antlm-bench.toml", dtype="float64", ties="first")
    assert read_settings(capsys)["dtype"] == ("float64", "../antlm-bench.toml")
    Path("pyproject.toml").write_text("[project]\nname = 'antlm-bench'\n[tool.ruff]\n")
    assert read_settings(capsys)["dtype"] == ("float64", "../antlm-bench.toml")
    Path("pyproject.toml").write_text("[tool.antlm-bench]\ndtype = 'bfloat16'\n")
    assert read_settings(capsys)["dtype"] == ("bfloat16", "pyproject.toml")
    assert read_settings(capsys)["ties"] == ("", "default")  # files are not merged


def test_two_files_in_one_folder_are_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configuration(folder / "antlm-bench.toml", ties="half")
    (folder / "pyproject.toml").write_text("[tool.antlm-bench]\nties = 'half'\n")
    assert run(["list", "methods"]) == 2
    assert "there are two configurations" in capsys.readouterr().err


def test_a_file_can_be_chosen_or_ignored(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_configuration(folder / "antlm-bench.toml", dtype="float64")
    write_configuration(folder / "a.toml", dtype="float16")
    write_configuration(folder / "b.toml", dtype="bfloat16")
    monkeypatch.setenv("ANTLM_BENCH_CONFIG", str(folder / "a.toml"))
    assert read_settings(capsys)["dtype"][0] == "float16"
    assert read_settings(capsys, "--config", "../b.toml")["dtype"][0] == "bfloat16"
    assert read_settings(capsys, "--no-config")["dtype"] == ("", "default")
    monkeypatch.setenv("ANTLM_BENCH_CONFIG", "none")
    assert read_settings(capsys)["dtype"] == ("", "default")
    assert run(["doctor", "--config", "a.toml", "--no-config"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_help_needs_no_valid_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "antlm-bench.toml").write_text("not toml")
    assert run(["score", "--help"]) == 0
    assert "--config" in capsys.readouterr().out


# ---- errors


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("suite = 'blimp'", "unknown key 'suite' hint: did you mean 'suites'?"),
        ("trust_remote_code = true", "unknown key 'trust_remote_code'"),
        ("suites = []", "suites: [] is not a text or a list of texts"),
        ("suites = [1]", "suites: [1] is not a text or a list of texts"),
        ("dtype = 32", "dtype: 32 is not a text"),
        ("dtype = 'f32'", "dtype: 'f32' is not one of 'float32'"),
        ("batch_tokens = true", "batch_tokens: True is not a whole number of 1 or more"),
        ("threads = 0", "threads: 0 is not a whole number"),
        ("format = 'pdf'", "format: unknown output format 'pdf'"),
        ("check = 3", "check: not a table of margins"),
        ("[check]\nmargin = -1", "check.margin"),
        ("[check]\nmargins = 1", "unknown key 'margins': did you mean 'margin'?"),
        ("ties = half", "antlm-bench.toml:1: not valid TOML"),
        ("ties = 'half'\nties = 'first'\n", "not valid TOML: Cannot overwrite a value"),
        (f"suites = {'[' * 900}{']' * 900}", "antlm-bench.toml"),
        ("x = 9" + "9" * 30, "more than 64 bits"),
        ("ties = '" + "x" * 1_000_000 + "'", "larger than the 1,000,000 that are read"),
    ],
)
def test_a_wrong_value_is_named(
    text: str, complaint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "antlm-bench.toml").write_text(text)
    assert run(["doctor"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "antlm-bench.toml" in error and complaint in error


def test_a_command_names_the_key_of_a_wrong_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configuration(folder / "antlm-bench.toml", suites=["blimb"], data="gone")
    assert run(["score", "--model", "m"]) == 2
    assert "antlm-bench.toml: suites: unknown suite 'blimb'" in capsys.readouterr().err
    assert run(["data", "list"]) == 2
    assert "antlm-bench.toml: data: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["antlm-bench.toml", "pyproject.toml"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling", "loop", "latin"])
def test_what_is_no_file_is_an_error(
    name: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / name
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "latin":
        path.write_bytes(b"[tool.antlm-bench]\n# \xe9\n")
    else:
        path.symlink_to(folder / ("gone" if kind == "dangling" else name))
    assert run(["list", "methods"]) == 2
    assert f"{name}" in capsys.readouterr().err


# ---- margins


def test_margins_of_the_file_decide_and_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gaps = {"wh_island": [1.0] * 90 + [-1.0] * 10}
    write_toy_run(folder / "base", gaps)
    write_toy_run(folder / "new", {"wh_island": [1.0] * 80 + [-1.0] * 20})
    policy = "margin = 1\n[{}suites]\ntoy = 50\n"
    (folder / "policy.toml").write_text(policy.format(""))
    args = ["check", "../new", "--against", "../base", "--csv"]
    assert run([*args, "--policy", "../policy.toml"]) == 0
    by_policy = capsys.readouterr().out
    (folder / "pyproject.toml").write_text(
        "[tool.antlm-bench.check]\n" + policy.format("tool.antlm-bench.check.")
    )
    assert run(args) == 0
    by_file = capsys.readouterr().out
    source = "../pyproject.toml: check"
    assert by_file == by_policy.replace("../policy.toml", source) != by_policy
    assert run([*args, "--margin", "2"]) == 1  # an option comes first
    assert run(["check", "../new", "--against", "../base"]) == 0
    assert f"margin of toy by {source}" in capsys.readouterr().out
    result = antlm_bench.check("../new", "../base")  # the API reads no file
    assert result.status == "regression"


# ---- records


def test_provenance_records_what_came_from_the_file(folder: Path) -> None:
    assert "configuration" not in ResourceMeter().build_record("k")
    facts = {"file": "antlm-bench.toml", "values": {"dtype": "float64"}}
    with use_configuration(facts):
        assert ResourceMeter().build_record("k")["configuration"] == facts


def test_reports_names_the_folder_of_new_runs(folder: Path) -> None:
    facts = {"name": "m", "weights": "0123456789"}
    assert run_dir(facts, None, False) == Path("reports/m-01234567")
    write_configuration(folder / "antlm-bench.toml", reports="results")
    with ConfiguredDefaults("score", [], {}).use():
        written = run_dir(facts, None, False)
        assert run_dir(facts, "x", False) == Path("x")
    assert os.path.normpath(written) == str(folder / "results" / "m-01234567")


def test_a_file_and_flags_write_the_same_run(
    folder: Path, make_checkpoint: Callable[[], Path]
) -> None:
    Path("pairs.csv").write_text("good,bad\nthe cat is,the cat are\na dog is,a dog are\n")
    model = str(make_checkpoint())
    flags = [
        "--suite",
        "pairs.csv",
        "--ties",
        "first",
        "--bos",
        "never",
        "--dtype",
        "float64",
        "--no-config",
    ]
    assert run(["score", "--model", model, "--out", "by_flag", *flags]) == 0
    write_configuration(
        Path("antlm-bench.toml"), suites="pairs.csv", ties="first", bos="never", dtype="float64"
    )
    assert run(["score", "--model", model, "--out", "by_file"]) == 0
    by_flag, by_file = (
        json.loads(Path(d, "run.json").read_bytes()) for d in ("by_flag", "by_file")
    )
    assert by_flag["manifest"].pop("created") and by_file["manifest"].pop("created")
    assert by_flag == by_file
    assert "configuration" not in read_provenance("by_flag").popitem()[1]
    assert read_provenance("by_file").popitem()[1]["configuration"] == {
        "file": "antlm-bench.toml",
        "values": {"suites": "pairs.csv", "ties": "first", "bos": "never", "dtype": "float64"},
    }


# ---- sweeps


def test_sweep_json_carries_the_values_to_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep("s", group_units(iter([Unit("score", "score", "m")])))
    started: list[tuple[Sweep, str, int | None]] = []

    def run_sweep(sweep: Sweep, path: Path, options: Any) -> None:
        FolderStore(path).create()
        FolderStore(path).write_sweep(sweep)
        started.append((sweep, os.environ["ANTLM_BENCH_DATA"], options.threads))
        raise IncompleteError("stopped")

    monkeypatch.setattr("antlm_bench.commands.sweep.run_sweep", run_sweep)
    monkeypatch.setattr(
        "antlm_bench.sweeps.expansion.load_sweep",
        lambda path: (type("Expanded", (), {"sweep": sweep}), folder / "sweep"),
    )
    write_configuration(folder / "antlm-bench.toml", data="first", threads=3)
    assert run(["run", "sweep.toml"]) == 5
    # The driver continues with another file in reach; workers read none.
    write_configuration(folder / "antlm-bench.toml", data="second")
    assert run(["resume", "../sweep"]) == 5
    data = [(os.path.normpath(data), threads) for _, data, threads in started]
    assert data == [(str(folder / "first"), 3), (str(folder / "first"), None)]
    configuration = FolderStore(folder / "sweep").read_sweep().configuration
    assert configuration == started[0][0].configuration
    assert os.path.normpath(configuration["file"]) == str(folder / "antlm-bench.toml")
    with use_sweep_configuration(configuration):
        assert os.path.normpath(os.environ["ANTLM_BENCH_DATA"]) == str(folder / "first")
    monkeypatch.setenv("ANTLM_BENCH_DATA", "of this node")
    with use_sweep_configuration(configuration):
        assert os.environ["ANTLM_BENCH_DATA"] == "of this node"
    assert ConfiguredDefaults("worker", [], {}).configuration.file is None


def test_a_sweep_without_a_file_is_written_as_before() -> None:
    sweep = Sweep("s", group_units(iter([Unit("score", "score", "m")])))
    encoded = encode_sweep(sweep)
    assert "configuration" not in json.loads(encoded)
    assert decode_sweep(encoded, "sweep.json") == sweep


# ---- the documentation


def test_the_page_lists_the_keys() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    expected = []
    for key in (*KEYS, CHECK_KEY):
        option = f"`{describe_option(key)}`" if key.option else ""
        variable = f"`{key.variable}`" if key.variable else ""
        target = "; else ".join(filter(None, [option, variable]))
        expected.append(f"| `{key.name}` | {key.help} | {target} |")
    assert rows[: len(expected)] == expected
