"""benchmarks/challenge.py: its parts, and a run beside a stand-in for the official pipeline."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import challenge
import pytest
import score_profile

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """\
MODEL_PATH=$1
BACKEND=$2
EVAL_DIR=${3:-"evaluation_data/full_eval"}
"""
COMMAND = (
    "python -m evaluation_pipeline.sentence_zero_shot.run --model_path_or_name $MODEL_PATH"
    ' --backend $BACKEND --task TASK --data_path "${EVAL_DIR}/DATA" --save_predictions\n'
)
TASKS = {
    "blimp_filtered": "blimp",
    "supplement_filtered": "blimp",
    "ewok_filtered": "ewok",
    "entity_tracking": "entity_tracking",
    "wug_adj_nominalization": "wug",
    "wug_past_tense": "wug",
}
STAND_IN = """\
import pathlib, sys
words = [word for word in sys.argv[1:] if word != "--save_predictions"]
words = dict(zip(words[::2], words[1::2]))
rows = [line for file in pathlib.Path(words["--data_path"]).iterdir() for line in file.open()]
assert rows and pathlib.Path(words["--model_path_or_name"], "config.json").exists()
with open("calls.txt", "a") as calls:
    calls.write(f"{words['--task']} {words['--backend']} {len(rows)}\\n")
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder in the layout of the official checkout. Its program only notes what it is given."""
    folder = tmp_path / "checkout"
    module = folder / "evaluation_pipeline" / "sentence_zero_shot" / "run.py"
    module.parent.mkdir(parents=True)
    module.write_text(STAND_IN)
    commands = [COMMAND.replace("TASK", t).replace("DATA", d) for d, t in TASKS.items()]
    (folder / "eval_zero_shot.sh").write_text(SCRIPT + "".join(commands))
    return folder


def make_data(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def test_commands_of_the_script_whose_data_are_at_hand(checkout, tmp_path):
    data = make_data(tmp_path / "data", "supplement_filtered", "wug_past_tense")

    commands = challenge.list_official_commands(checkout, Path("ckpt"), "mlm", data)

    assert [words[words.index("--task") + 1] for words in commands] == ["blimp", "wug"]
    assert commands[0] == [
        sys.executable,
        *("-m", "evaluation_pipeline.sentence_zero_shot.run"),
        *("--model_path_or_name", "ckpt", "--backend", "mlm", "--task", "blimp"),
        *("--data_path", f"{data}/supplement_filtered", "--save_predictions"),
    ]


def test_another_folder_than_a_checkout_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="BABYLM_EVAL_2025 must name a checkout"):
        challenge.make_sample(1, tmp_path / "data", tmp_path)


def test_official_files_hold_the_first_rows_of_each_paradigm(monkeypatch, tmp_path):
    rows = [("regular.jsonl", {"numops": n % 2, "row": n}) for n in range(6)]
    rows += [("ambiref.jsonl.gz", {"numops": 0, "row": 6})]
    monkeypatch.setattr(challenge, "iterate_records", lambda suite: iter(rows))

    count = challenge.write_official_files("entity-tracking-2025", 2, tmp_path / "data")

    texts = {path.name: path.read_text() for path in (tmp_path / "data").iterdir()}
    assert count == 5
    assert texts["regular.jsonl"].count("\n") == 4 and '"row": 4' not in texts["regular.jsonl"]
    assert texts["ambiref.jsonl"] == '{"numops": 0, "row": 6}\n'


def test_ratios_are_of_the_official_seconds_to_ours():
    sample = challenge.Sample(2, ("nano",), 30, Path())
    ours = {1: challenge.Usage(2, 1.5, 600), 19: challenge.Usage(10, 8, 700)}
    official = {1: challenge.Usage(5, 3, 500)}

    lines = challenge.format_speeds(ours, official, sample, "there is none")

    assert lines[2] == "| 1 | 30 | 2.0 | 1.5 | 5.0 | 3.0 | 2.5 | 2.0 |"
    assert lines[3] == "| 19 | 570 | 10.0 | 8.0 |  |  |  |  |"
    assert lines[4] == "official: empty, because there is none"


def test_seconds_count_for_the_innermost_phase(monkeypatch):
    clock = iter([1.0, 3.0, 6.0, 7.0, 9.0])
    monkeypatch.setattr(score_profile.time, "process_time", lambda: next(clock))
    timer = score_profile.PhaseTimer()

    with timer.measure("open checkpoint"), timer.measure("import"):
        pass
    timer.add_elapsed()

    assert timer.seconds == {"other": 3.0, "open checkpoint": 3.0, "import": 3.0}
    assert timer.calls == {"open checkpoint": 1, "import": 1}


def test_a_self_test_keeps_the_seconds_of_its_forwards(monkeypatch):
    clock = iter([1.0, 5.0])
    monkeypatch.setattr(score_profile.time, "process_time", lambda: next(clock))
    timer = score_profile.PhaseTimer()

    with timer.measure("self-test"), timer.measure("compute"):
        pass

    assert timer.seconds == {"other": 1.0, "self-test": 4.0}
    assert timer.calls == {"self-test": 1}


@pytest.mark.slow
def test_a_run_beside_a_stand_in_for_the_official_pipeline(checkout, tmp_path):
    data = Path(os.environ.get("ANTLM_BENCH_DATA", ROOT / "../shared/data")).resolve()
    if not (data / "supplement").is_dir():
        pytest.skip("no data: set ANTLM_BENCH_DATA")
    few_data = tmp_path / "data"
    for name in ("supplement", "wug_past"):  # BLiMP takes seconds to load
        shutil.copytree(data / name, few_data / name)
    environment = os.environ | {
        "ANTLM_BENCH_DATA": str(few_data),
        "ANTLM_BENCH_CACHE": str(tmp_path / "cache"),
        "BABYLM_EVAL_2025": str(checkout),
        "PYTHONPATH": str(ROOT),
    }
    options = ["--limit", "3", "--checkpoints", "1,2", "--more-items", "2"]

    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "challenge.py", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    speeds = [row for row in rows if len(row) == 8 and row[0] in ("1", "2")]
    assert [row[:2] for row in speeds] == [["1", "18"], ["2", "36"]]
    assert all(float(row[3]) > 0 for row in speeds)
    # The stand-in takes hardly any time: its seconds and ratios are numbers that may round to 0.
    assert all(float(cell) >= 0 for row in speeds for cell in row[4:])
    memory = [row for row in rows if len(row) == 4 and row[0] in ("1", "2")]
    assert [row[:2] for row in memory] == [["1", "18"], ["2", "18"], ["1", "36"]]
    phases = {row[0]: row[1:] for row in rows if len(row) == 5}
    assert set(score_profile.PHASES) <= set(phases)
    # Suites are loaded once for all checkpoints, each of which is opened and tested.
    assert [phases["load data"][i] for i in (1, 3)] == ["2", "2"]
    assert [phases["open checkpoint"][i] for i in (1, 3)] == ["1", "2"]
    # The second checkpoint has the same tokenizer: only the texts of its own trial are tokenized.
    counts = re.findall(r"checkpoints: ([\d,]+) texts tokenized", done.stdout)
    one, two = (int(count.replace(",", "")) for count in counts)
    assert two - one <= 4
    calls = (checkout / "calls.txt").read_text().splitlines()
    # 1 + 2 checkpoints of 15 + 3 items, and one of 30 + 6.
    assert sorted(calls) == sorted(
        ["blimp causal 15", "wug causal 3"] * 3 + ["blimp causal 30", "wug causal 6"]
    )
