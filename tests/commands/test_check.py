"""`check` and `baseline` as a CI system meets them: exit codes, one red line, files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_runs import (
    PHENOMENON_BY_PARADIGM,
    draw_logprob_gaps,
    make_cell,
    make_predictions,
    write_gate_runs,
    write_run,
    write_toy_run,
)
from prediction_rows import PredictionRow, read_rows

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.commands.check import find_run_or_baseline, save_baseline
from antlm_bench.errors import RunError, UsageError
from antlm_bench.types import Manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a baseline run, a run with one phenomenon worse, and one that is only noisier.
    Tests get copies of it.
    """
    return write_gate_runs(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def place(toy_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of the toy runs."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(toy_runs, tmp_path, dirs_exist_ok=True)


@pytest.mark.long
def test_an_identical_run_passes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("base", "copy")
    assert run(["check", "copy", "--against", "base", "--margin", "0.1", "--strict"]) == 0
    captured = capsys.readouterr()
    assert "pass" in captured.out and not captured.err


@pytest.mark.long
def test_a_planted_regression_is_found_and_named_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "worse", "--against", "base"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(r"toy · causal: regression: \d+\.\d -> \d+\.\d, -\d+\.\d \(95% CI \[-", error)
    assert re.search(r"; islands -\d+\.\d \(95% CI \[-\d+\.\d, -\d+\.\d\]\)", error)
    assert "agreement" not in error and "binding" not in error
    assert run(["check", "worse", "--against", "base", "--margin", "20"]) == 0
    assert "significantly worse in islands" in capsys.readouterr().out


@pytest.mark.long
def test_a_noisy_run_is_undecided_and_fails_only_when_strict(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["check", "noisy", "--against", "base", "--margin", "0.5"]
    assert run(asked) == 0
    out = capsys.readouterr().out
    assert "undecided" in out and "is detected with a power of 80%" in out
    assert run([*asked, "--strict"]) == 4
    assert "--strict" in capsys.readouterr().err


@pytest.mark.long
def test_fail_on_drop_also_fails_a_significant_drop_within_the_margin(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["check", "worse", "--against", "base", "--margin", "20"]
    assert run(argv) == 0
    capsys.readouterr()
    assert run([*argv, "--fail-on", "drop", "--junit", "x.xml", "--github"]) == 1
    captured = capsys.readouterr()
    assert "drop: no regression, but the interval lies above 0" in " ".join(captured.out.split())
    assert "::error title=antlm-bench%3A drop::" in captured.out
    assert "toy · causal: drop:" in captured.err and "within the margin" in captured.err
    assert 'type="drop"' in Path("x.xml").read_text()
    assert run(["check", "noisy", "--against", "base", "--fail-on", "drop"]) == 0


@pytest.mark.long
def test_what_the_run_lacks_is_incomplete(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_predictions(draw_logprob_gaps(300, 0.85, seed=3), PHENOMENON_BY_PARADIGM)
    write_run(place / "both", make_cell(made), make_cell(made, suite="other"))
    assert run(["check", "base", "--against", "both"]) == 5
    captured = capsys.readouterr()
    assert (
        "other · causal" in captured.err
        and re.search("^ other · causal +missing$", captured.out, re.M)
        and "pass" in captured.out
    )
    assert run(["check", "base", "--against", "both", "--suite", "toy"]) == 0
    assert run(["check", "worse", "--against", "both"]) == 1  # a regression is graver than a hole
    assert run(["check", "base", "--against", "both", "--suite", "blimp"]) == 2
    write_run(place / "masked", make_cell(made, method="mlm"))
    assert run(["check", "masked", "--against", "base"]) == 5
    assert run(["check", "masked", "--against", "base", "--method", "causal=mlm"]) == 0


@pytest.mark.long
def test_other_rules_are_not_comparable(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy_run(place / "other", draw_logprob_gaps(300), bos="never")
    assert run(["check", "other", "--against", "base"]) == 6
    assert "--bos: auto / never" in capsys.readouterr().err


@pytest.mark.long
def test_a_phenomenon_has_a_margin_only_if_it_is_given_one(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["check", "worse", "--against", "base", "--margin", "20"]
    assert run(asked) == 0
    assert run([*asked, "--group-margin", "2"]) == 1
    assert "groups beyond their own margins: 1; islands" in " ".join(
        capsys.readouterr().err.split()
    )
    Path("check.toml").write_text("margin = 20\n[groups]\nislands = 2\n")
    assert run(["check", "worse", "--against", "base", "--policy", "check.toml"]) == 1
    Path("check.toml").write_text("margin = 20\n[groups]\nislands = 60\n")
    assert run(["check", "worse", "--against", "base", "--policy", "check.toml"]) == 0


@pytest.mark.long
def test_a_suite_declares_its_margin_and_the_verdict_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(place))
    (place / "tasks").mkdir()
    (place / "tasks" / "toy.toml").write_text("[check]\nmargin = 20\n")
    asked = ["check", "worse", "--against", "base"]
    assert run(asked) == 0
    assert "margin of toy by toy.toml" in capsys.readouterr().out
    assert run([*asked, "--margin", "1"]) == 1
    assert "margin of toy by --margin" in capsys.readouterr().out
    Path("check.toml").write_text("margin = 2\n")
    assert run([*asked, "--policy", "check.toml"]) == 1
    Path("check.toml").write_text("every_group = 90\n")
    assert run([*asked, "--policy", "check.toml"]) == 0


@pytest.mark.long
def test_the_verdict_as_json_has_stdout_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["check", "worse", "--against", "base", "--json"]) == 1
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (said["status"], said["exit_code"]) == ("regression", 1) and "regression" in captured.err
    assert "antlm-bench compare base worse --by paradigm" in captured.err
    (suite,) = said["suites"]
    assert (suite["suite"], [group["name"] for group in suite["worse"]]) == ("toy", ["islands"])
    assert suite["headline"]["margin"] == 0.01 and suite["headline"]["margin_by"] == "default"
    assert run(["check", "base", "--against", "base", "--json", "--github"]) == 2
    assert "--json: --github and json" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        ("check base --against nowhere", 2, "no run folder and no baseline 'nowhere'"),
        ("check nowhere --against base", 3, "not a run folder"),
        ("check base --against base --margin 0", 2, "a margin is above 0"),
        (
            "check base --against base --policy nowhere.toml",
            2,
            "nowhere.toml: there is no such file",
        ),
        ("check base", 2, "--against"),
        ("baseline save base --name ../x", 2, "cannot be the name of a folder"),
        ("baseline save nowhere", 3, "not a run folder"),
    ],
)
def test_slips_are_named(
    line: str, code: int, complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(line)) == code
    assert complaint in " ".join(capsys.readouterr().err.split())


@pytest.mark.long
def test_a_damaged_run_is_no_verdict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (place / "worse" / "predictions").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert run(["check", "worse", "--against", "base"]) == 3
    assert "cut short or edited" in capsys.readouterr().err
    (place / "worse" / "run.json").write_text("{")
    assert run(["check", "worse", "--against", "base"]) == 3


@pytest.mark.long
def test_files_are_written_whatever_the_verdict(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "summary.md"))
    Path("summary.md").write_text("before\n")
    files = ["--junit", "deep/er/x.xml", "--markdown", "x.md", "--github"]
    assert run(["check", "worse", "--against", "base", *files]) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"^::error title=antlm-bench%3A regression::toy · causal: regression: .*95%25 CI", out, re.M
    )
    assert "<failure" in Path("deep/er/x.xml").read_text()
    assert Path("summary.md").read_text() == "before\n" + Path("x.md").read_text()
    assert "**regression: worse against baseline base" in Path("x.md").read_text()


@pytest.mark.long
def test_a_baseline_is_a_run_without_the_machine(place: Path) -> None:
    full = runs.open_run("worse")
    model = {**full.manifest.model, "source": "/home/me/x", "device": "cuda:1", "layout": "tree"}
    with runs.RunWriter(
        "seen", Manifest(runs.SCHEMA_VERSION, model, {"torch": "2"}, "2026-01-01")
    ) as writer:
        for one in full:
            writer.write_cell(
                replace(one, history={"epochs": [1], "collapsed": ["x"]}),
                runs.read_predictions("worse", one),
            )
    (Path("seen") / "partial").mkdir()
    saved = save_baseline("seen", "main")
    assert saved == Path("reports/baselines/main")
    read = runs.open_run(saved)
    assert not {"source", "device", "layout"} & read.manifest.model.keys()
    assert read.manifest.model["name"] == "worse" and read.cells[0].history == {"collapsed": ["x"]}
    assert read_rows(saved, read.cells[0]) == read_rows("worse", full.cells[0])
    assert {p.name for p in saved.iterdir()} == {"run.json", "predictions"}
    assert "/home/me" not in (saved / "run.json").read_text()
    assert find_run_or_baseline("main") == saved
    with pytest.raises(UsageError, match="there is a baseline 'main' already"):
        save_baseline("base", "main")
    save_baseline("base", "main", overwrite=True)
    assert runs.open_run(saved).manifest.model["name"] == "base"
    assert not list(Path("reports/baselines").glob(".*"))
    with pytest.raises(UsageError, match="baselines are main"):
        find_run_or_baseline("mian")


@pytest.mark.long
def test_baselines_are_listed_and_a_damaged_one_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["baseline", "list"]) == 0 and "no baseline yet" in capsys.readouterr().out
    for name in ("good", "bad"):
        save_baseline("base", name)
    (Path("reports/baselines/bad/run.json")).write_text("{}")
    assert run(["baseline", "list", "--json"]) == 0
    bad, good = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert (good["baseline"], good["model"], good["suites"]) == ("good", "base", "toy")
    assert bad["model"].startswith("unreadable")
    with pytest.raises(RunError, match="no finished cell"):
        with runs.RunWriter("empty", Manifest(runs.SCHEMA_VERSION, {}, {}, "")):
            pass
        (Path("empty") / "run.json").write_text(
            '{"schema": 2, "manifest": {"model": {}, "software": {}, "created": ""}, "cells": []}'
        )
        save_baseline("empty")


@pytest.mark.long
def test_no_torch_no_pandas_on_the_way_to_a_verdict(place: Path) -> None:
    code = (
        "import sys\nfrom antlm_bench.cli.app import run\n"
        "assert run(['check', 'base', '--against', 'base', '--junit', 'j.xml', '--github']) == 0\n"
        "assert run(['compare', 'base', 'worse']) == 0\n"
        "slow = {'torch', 'transformers', 'pandas', 'statsmodels', 'sklearn', 'scipy.stats'}\n"
        "slow &= set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


ODD = [
    None,
    True,
    -1,
    0.5,
    1e308,
    "",
    "x\x00y",
    "../..",
    [],
    ["x"],
    {},
    {"a": []},
    "paradigm",
    10**30,
]


@pytest.mark.long
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_forged_run_ends_in_a_verdict_or_a_typed_error(data: st.DataObject, place: Path) -> None:
    """Any one value of run.json replaced by any odd one: no traceback, no exit code 70."""
    document = json.loads((place / "base" / "run.json").read_text())
    spot, name = document, ""
    while True:
        keys = sorted(spot, key=str) if isinstance(spot, dict) else list(range(len(spot)))
        name = data.draw(st.sampled_from(keys))
        inside = spot[name]
        if not (isinstance(inside, dict | list) and inside) or data.draw(st.integers(0, 5)) == 0:
            break
        spot = inside
    spot[name] = data.draw(st.sampled_from(ODD))
    forged = place / "forged"
    shutil.copytree(place / "base", forged, dirs_exist_ok=True)
    (forged / "run.json").write_text(json.dumps(document))
    for argv in (
        ["check", str(forged), "--against", "base"],
        ["compare", str(forged), "base", "--json"],
    ):
        assert run(argv) in (0, 1, 2, 3, 5, 6), (name, spot[name])


def finetuned(rate: float, tasks: tuple[str, ...], seeds: int) -> list:
    """Cells of tasks of two classes, 200 texts each, right at that rate."""
    cells = []
    for task in tasks:
        for seed in range(seeds):
            rng = np.random.default_rng([seed, len(task), round(1000 * rate)])
            right = rng.random(200) < rate
            scores = [
                (-0.2, -1.7) if right[i] == (i % 2 == 0) else (-1.7, -0.2) for i in range(200)
            ]
            made = [
                PredictionRow(f"t{i}", i % 2, 0, each, (9, 9), (30, 30))
                for i, each in enumerate(scores)
            ]
            one, _ = make_cell(
                made,
                suite=f"glue-2025.{task}",
                method="finetune-full",
                macro=(),
                groups=(),
                reduction="class",
                collection="glue-2025",
                task=task,
                select="held-out",
            )
            cells.append((replace(one, seed=seed), made))
    return cells


@pytest.mark.long
def test_finetuned_tasks_are_judged_as_a_collection(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(place / "glue", *finetuned(0.8, ("rte", "boolq"), 4))
    write_run(place / "glue-worse", *finetuned(0.6, ("rte", "boolq"), 4))
    write_run(place / "glue-half", *finetuned(0.8, ("rte",), 2))
    assert run(["check", "glue", "--against", "glue", "--strict"]) == 0
    capsys.readouterr()
    assert run(["check", "glue-worse", "--against", "glue"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "glue-2025 · finetune-full · seeds 4 / 4: regression" in error and "rte -" in error
    assert run(["check", "glue-half", "--against", "glue", "--margin", "20"]) == 5
    captured = capsys.readouterr()
    assert "glue-2025.boolq · finetune-full" in captured.err and "2 seeds estimate" in captured.out
    assert run(["compare", "glue", "glue-half"]) == 0
    assert "only in toy (glue): glue-2025.boolq · finetune-full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ("[suites]\ntoyy = 2\n", "suites: neither run has a suite 'toyy'"),
        ("[suites]\nbabylm-2024 = 2\n", "suites: neither run has a suite 'babylm-2024'"),
        ("[groups]\nisland = 60\n", "groups: neither run has a group 'island'"),
    ],
)
def test_an_unknown_name_in_a_policy_is_an_error(
    policy: str, complaint: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("check.toml").write_text(policy)
    assert run(["check", "worse", "--against", "base", "--policy", "check.toml"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"check.toml: {complaint}" in error
    assert "the suites are toy" in error or "islands" in error


def test_a_policy_may_name_suites_of_other_runs(place: Path) -> None:
    Path("check.toml").write_text("[suites]\nblimp = 2\n")
    assert run(["check", "base", "--against", "base", "--policy", "check.toml"]) == 0


def test_an_unknown_group_in_a_suite_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(place))
    (place / "tasks").mkdir()
    (place / "tasks" / "toy.toml").write_text("[check]\ngroups = {island = 20}\n")
    assert run(["check", "base", "--against", "base"]) == 2
    assert "toy.toml: groups: neither run has a group 'island'" in capsys.readouterr().err
