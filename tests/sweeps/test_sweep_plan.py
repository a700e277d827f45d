"""`plan` and --dry-run: the table, its JSON, what is done, and that nothing is written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from sweeps.sweep_files import write_pairs, write_texts

from antlm_bench.cli.app import run as run_command_line
from antlm_bench.reporting.plan_table import abbreviate_count, build_plan_table
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.runs import write_atomically
from antlm_bench.sweeps import calibration
from antlm_bench.sweeps.calibration import DeviceSpeed, list_speeds, load_speed
from antlm_bench.sweeps.estimates import UnitCost
from antlm_bench.sweeps.journal import Event, encode_event
from antlm_bench.sweeps.plans import SweepPlan
from antlm_bench.sweeps.units import Sweep, Unit, encode_sweep, group_units

SPEED = DeviceSpeed(
    machine="laptop 2 CPUs",
    device="cpu",
    dtype="float32",
    hidden=(128, 384),
    parameters=(10**6, 10**7),
    forward=(1e9, 2e9),
    training=(1e9, 2e9),
    opening=(1.0, 2.0),
)
TABLE = """
 demo (reports/demo)

 stage                units  done    rows  tokens    FLOPs        time  memory a
 pretrain  babyllama      1     1   11k b  700k b  2.5e+12  2 min 10 s    183 MB
 score                    3     0  4.0k     60k    6.0e+09         9 s    1.5 GB
   babyllama-1            2     0  3.0k     40k    4.0e+09         7 s     37 MB
   gpt2                   1     0  1.0k     20k    2.0e+09         3 s    1.5 GB
 collect  2 models        2     0

 total                    6     1   15k b  760k b  2.5e+12  2 min 19 s    1.5 GB
 left                     5        4.0k     60k    6.0e+09         9 s    1.5 GB

 a  largest peak of a unit: weights and one batch, without Python and its
 libraries
 b  estimated from words: a tokenizer that is trained first does not exist yet
 time: of one worker, as measured on cpu of laptop 2 CPUs, float32
 left out: comps (1 of 1 files are absent: comps.jsonl)
 done: not computed again
"""


def make_plan() -> SweepPlan:
    train = Unit("train", "pretrain", "babyllama", {"changes": ["seed=1"], "options": {}})
    first = [
        Unit("score", "score", "a", {"suite": suite, "methods": ["causal"], "options": {}})
        for suite in ("blimp", "ewok")
    ]
    second = Unit("score", "score", "gpt2", {"suite": "blimp", "methods": [], "options": {}})
    collect = [Unit("collect", "collect", model) for model in ("a", "gpt2")]
    sweep = Sweep("demo", group_units(iter([train, *first, second, *collect])))
    scored = UnitCost(1500, 20_000, 2e9, 3.0, 37_000_000)
    costs = {
        train.id: UnitCost(11_000, 700_000, 2.5e12, 130.0, 183_000_000, is_exact=False),
        first[0].id: scored,
        first[1].id: scored,
        second.id: UnitCost(1000, 20_000, 2e9, 2.0, 1_500_000_000),
        **{unit.id: UnitCost() for unit in collect},
    }
    models_opened = {"a": 0.6, "gpt2": 0.6}
    return SweepPlan(
        folder="reports/demo",
        sweep=sweep,
        costs=costs,
        openings={
            group.id: models_opened[group.units[0].model] if group.units[0].kind == "score" else 0.0
            for group in sweep.groups
        },
        labels={"babyllama": "babyllama", "a": "babyllama-1", "gpt2": "gpt2"},
        device_kind="cpu",
        speeds={"float32": SPEED},
        done={train.id},
        missing_data={"comps": "1 of 1 files are absent: comps.jsonl"},
    )


def test_the_table_has_a_row_per_stage_and_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    text = FORMATS["table"].write(build_plan_table(make_plan()))

    assert "\n".join(map(str.rstrip, text.splitlines())) == TABLE.rstrip("\n")


def test_json_has_raw_numbers_and_the_sums() -> None:
    document = json.loads(FORMATS["json"].write(build_plan_table(make_plan())))

    assert document["total"] == {
        "units": 6,
        "done": 1,
        "rows": 15_000,
        "tokens": 760_000,
        "flops": 2.506e12,
        "seconds": pytest.approx(139.2),
        "seconds_left": pytest.approx(9.2),
        "memory": 1_500_000_000,
    }
    assert document["speeds"] == {"float32": "cpu of laptop 2 CPUs"}
    assert document["missing_data"] == {"comps": "1 of 1 files are absent: comps.jsonl"}


def test_units_have_a_row_each() -> None:
    text = FORMATS["csv"].write(build_plan_table(make_plan(), units=True))

    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["stage"], row["what"], row["done"], row["tokens"]) for row in rows] == [
        ("pretrain", "seed=1", "true", "700000"),
        ("score", "blimp, causal", "false", "20000"),
        ("score", "ewok, causal", "false", "20000"),
        ("score", "blimp", "false", "20000"),
        ("collect", "", "false", ""),
        ("collect", "", "false", ""),
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9951, "10k"), (999_600, "1.0M")],
)
def test_counts_have_three_digits_at_most(count: int, text: str) -> None:
    assert abbreviate_count(count) == text


# ---- the command


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give plans a cache of speeds of their own."""
    path = tmp_path / "speeds.json"
    monkeypatch.setattr(calibration, "_speeds_file", lambda: path)
    return path


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_plan_shows_a_sweep_and_writes_nothing(
    tmp_path: Path,
    make_checkpoint,
    speeds: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del speeds
    monkeypatch.chdir(tmp_path)
    model = make_checkpoint("causal")
    (tmp_path / "s.toml").write_text(f"[[score]]\nmodels = ['{model}']\nsuites = ['nano']\n")
    files = list_files(tmp_path)

    assert run_command_line(["plan", "s.toml"]) == 0

    out = capsys.readouterr().out
    assert f"score  {model.name}" in out
    assert "was not measured in float32: antlm-bench plan --calibrate" in " ".join(out.split())
    assert list_files(tmp_path) == files


def test_units_that_the_journals_call_done_are_done(
    tmp_path: Path, make_checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "s.toml", tmp_path / "out"
    path.write_text(
        f"out = '{folder}'\n[[score]]\nmodels = ['{make_checkpoint('causal')}']\n"
        "suites = ['nano']\nshards = 2\n"
    )
    run_command_line(["plan", str(path), "--units", "--json"])
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    (folder / "journals").mkdir(parents=True)
    write_atomically(folder / "sweep.json", encode_sweep(Sweep("s", ())))
    event = Event("done", rows[0]["unit"], 1, part="parts/x.1")
    (folder / "journals" / "w.jsonl").write_bytes(encode_event(event))

    assert run_command_line(["plan", str(path), "--units", "--json"]) == 0

    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert [row["done"] for row in rows] == [True, False, False]


def test_plan_calibrates_once_and_estimates_times(
    tmp_path: Path, make_checkpoint, speeds: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def measure(hidden: int, *_: object) -> tuple[int, float, float, float]:
        return hidden * 1000, 1e9, 1e9, 0.5

    monkeypatch.setattr(calibration, "_measure_shape", measure)
    arguments = ["--model", str(make_checkpoint("causal")), "--suite", "nano", "--device", "cpu"]

    assert run_command_line(["plan", *arguments, "--json", "--calibrate"]) == 0

    estimate = json.loads(capsys.readouterr().out)["total"]["seconds"]
    assert estimate > 0.5  # the stand-in for the measurement opens a checkpoint in 0.5 s
    assert speeds.exists()
    assert run_command_line(["plan", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["seconds"] is not None


def test_speeds_are_found_by_device_and_machine(speeds: Path) -> None:
    here = calibration.name_machine()
    for machine, device in ((here, "cpu"), ("node7 64 CPUs", "cuda (NVIDIA H200)")):
        calibration._store_speed(
            DeviceSpeed(machine, device, "float32", (1,), (1,), (1.0,), (1.0,), (1.0,))
        )

    assert speeds.exists()
    assert [each.machine for each in list_speeds("cpu")] == [here]
    assert [each.kind for each in list_speeds("h200")] == ["cuda"]
    assert list_speeds("cuda") == []  # this machine has none that was measured
    assert load_speed("cpu", "bfloat16") is None


@pytest.mark.parametrize("content", ['{"version": 2}', '{"version": 2, "speeds": [1, null]}'])
def test_damaged_speeds_are_not_there(content: str, speeds: Path) -> None:
    speeds.parent.mkdir(parents=True, exist_ok=True)
    speeds.write_text(content)

    assert list_speeds("") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to plan"),
        (["."], "needs the sweep's .toml, not a folder"),
        (["--model", "x"], "nothing to plan"),
        (["s.toml", "--suite", "nano"], "--suite cannot be combined with a file"),
        (["--model", "./x", "--suite", "nano"], "--model: ./x: no such folder"),
        (["--model", "./x", "--suite", "nanoo"], "--suite: unknown suite 'nanoo'"),
    ],
)
def test_mistakes_of_the_command_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command_line(["plan", *arguments])

    assert code in (2, 3)
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_device_is_refused(
    make_checkpoint, speeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del speeds
    arguments = ["--model", str(make_checkpoint("causal")), "--suite", "nano"]

    assert run_command_line(["plan", *arguments, "--device", "H300"]) == 2

    assert "no device 'H300' was measured" in capsys.readouterr().err


# ---- --dry-run


@pytest.mark.long
def test_a_dry_run_of_score_knows_what_is_done(
    tmp_path: Path, make_checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pairs = make_checkpoint("masked"), write_pairs(tmp_path / "pairs.csv")
    out = tmp_path / "run"
    command = ["score", "--model", str(model), "--suite", str(pairs), "--device", "cpu"]
    command += ["--method", "mlm", "--out", str(out)]

    def count_done(*more: str) -> int:
        assert run_command_line([*command, *more, "--dry-run", "--json"]) == 0
        return int(json.loads(capsys.readouterr().out)["total"]["done"])

    assert count_done() == 0
    assert not out.exists()
    run_command_line(command)
    capsys.readouterr()
    assert count_done() == 1
    assert count_done("--again") == 0
    assert count_done("--limit", "1") == 0
    assert count_done("--method", "mlm-l2r") == 0
    assert count_done("--dtype", "bfloat16") == 0
    assert count_done("--max-length", "20") == 0
    write_pairs(pairs, [("a cat sleeps.", "a cat sleep.")])
    assert count_done() == 0


@pytest.mark.long
def test_a_dry_run_of_finetune_knows_what_is_done(
    tmp_path: Path, make_checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = write_texts(tmp_path / "texts.csv", 20), tmp_path / "run"
    command = ["finetune", "--model", str(make_checkpoint("masked")), "--suite", str(texts)]
    command += ["--valid", str(texts), "--out", str(out), "--device", "cpu", "--set", "epochs=1"]

    def count_done(*more: str) -> tuple[int, int]:
        assert run_command_line([*command, *more, "--dry-run", "--json"]) == 0
        total = json.loads(capsys.readouterr().out)["total"]
        return total["units"], total["done"]

    assert count_done() == (3, 0)
    assert not out.exists()
    run_command_line([*command, "--seed", "2"])
    capsys.readouterr()
    assert count_done() == (3, 1)
    assert count_done("--seed", "2") == (1, 1)
    assert count_done("--lora", "2") == (3, 0)


@pytest.mark.parametrize("shard", ["2/3", "02/3"])
def test_a_dry_run_of_a_shard_has_its_units_only(
    shard: str, tmp_path: Path, make_checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    from antlm_bench.commands.plan import plan_score
    from antlm_bench.commands.score_options import ScoreOptions

    del capsys
    plan = plan_score(
        str(make_checkpoint("causal")), "nano", (), ScoreOptions(shard=shard), tmp_path / "run"
    )

    assert [unit.arguments["shard"] for unit in plan.sweep.units] == ["2/3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nano", "--method", "mlmm"], "--method: unknown method 'mlmm'"),
        (["--suite", "nano", "--precision", "adaptive", "--dtype", "float16"], "--dtype: adaptive"),
        (["--suite", "nowhere.csv"], "nowhere.csv: there is no such file"),
    ],
)
def test_errors_of_a_dry_run_name_the_option(
    arguments: list[str], message: str, make_checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command_line(
        ["score", "--model", str(make_checkpoint("causal")), "--dry-run", *arguments]
    )

    assert code in (2, 3)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_names_the_option_that_was_typed(
    tmp_path: Path, make_checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--model", str(make_checkpoint("masked")), "--suite"]
    texts = str(write_texts(tmp_path / "texts.csv", 8))

    assert run_command_line([*words, texts, "--valid", texts, "--compat", "x", "--dry-run"]) == 2

    error = " ".join(capsys.readouterr().err.split())
    assert "--compat: " in error and "no preset 'x'" in error


@pytest.mark.parametrize(("command", "suite"), [("score", "nano"), ("finetune", "glue-2025")])
@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_an_output_that_is_a_file_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, suite: str, options: list[str]
) -> None:
    (tmp_path / "file").touch()
    words = [command, "--model", "./absent", "--suite", suite, "--out", str(tmp_path / "file")]

    assert run_command_line([*words, *options]) == 3

    assert "this is a file, not a folder" in " ".join(capsys.readouterr().err.split())
