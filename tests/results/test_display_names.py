"""Names of models in tables: those that people gave, shortened where nothing gets ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from antlm_bench import score
from antlm_bench.checkpoints.metadata import describe_reference
from antlm_bench.cli.app import run
from antlm_bench.errors import UsageError
from antlm_bench.exports.leaderboard import build_run_model_arguments
from antlm_bench.results.checkpoint_series import group_checkpoints
from antlm_bench.results.display_names import full_model_names, model_name, model_names
from antlm_bench.types import Manifest, Run


def make_run(name: str, given: str = "", path: str = "reports/x", **model: object) -> Run:
    facts = {"name": name, **({"given": given} if given else {}), **model}
    return Run(path, Manifest(2, facts, {}, ""), ())


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        ([("main", "a/main")], ["main"]),
        ([("A", "x/A"), ("B", "y/B")], ["A", "B"]),
        ([("A", "x/A"), ("A", "y/A"), ("B", "x/B")], ["x/A", "y/A", "B"]),
        ([("A", "k/x/A"), ("A", "l/x/A")], ["k/x/A", "l/x/A"]),
        ([("lab/m@r1", "lab/m@r1"), ("lab/m@r2", "lab/m@r2")], ["m@r1", "m@r2"]),
        ([("A", "x/A"), ("A", "x/A")], ["A (x)", "A (x)"]),
        ([("/home/a/main", ""), ("lab/m@r1", "")], ["/home/a/main", "lab/m@r1"]),
        ([("A", "/x/A"), ("A", "x/A")], ["/x/A", "x/A"]),
    ],
)
def test_equal_names_get_the_folders_that_differ(
    runs: list[tuple[str, str]], names: list[str]
) -> None:
    assert model_names([make_run(*each) for each in runs]) == names


def test_files_keep_all_folders_of_a_name() -> None:
    runs = [make_run("out/a"), make_run("out/b"), make_run("A", "x/A"), make_run("A", "y/A")]
    assert full_model_names(runs) == ["out/a", "out/b", "x/A", "y/A"]


def test_a_label_is_the_name() -> None:
    assert model_name(make_run("main", "a/main", label="My model")) == "My model"


def test_a_reference_is_kept_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b" / "main").mkdir(parents=True)
    assert describe_reference("a b/main", None) == "a b/main"
    assert describe_reference(str(tmp_path / "a b" / "main"), None) == "a b/main"
    assert describe_reference("lab/model", "v1") == "lab/model@v1"


def test_a_command_names_the_checkpoint_as_it_was_given() -> None:
    assert build_run_model_arguments(make_run("main", "a b/main")) == ["--model", "a b/main"]
    hub = make_run("lab/m@v1", "lab/m@v1", revision="v1")
    assert build_run_model_arguments(hub) == ["--model", "lab/m", "--revision", "v1"]


def test_a_series_is_the_folder_of_its_checkpoints() -> None:
    runs = [
        make_run(f"chck_{n}M", f"out/{model}/chck_{n}M", f"reports/{model}{n}")
        for model in ("a", "b")
        for n in (1, 2)
    ]
    assert {name: len(members) for name, members in group_checkpoints(runs).items()} == {
        "a": 2,
        "b": 2,
    }


@pytest.mark.long
def test_name_is_kept_until_another_is_given(
    make_checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(make_checkpoint()), tmp_path / "run"
    ask = {"out": out, "limit": 1, "device": "cpu"}
    score(model, "nano", name="first [x]", **ask)
    [again] = score(model, "nano", **ask)
    assert model_name(again) == "first [x]"
    [other] = score(model, "nano", name="second", **ask)
    assert model_name(other) == "second"
    for argv in (["report", str(out)], ["compare", str(out), str(out)]):
        assert run(argv) == 0
        assert "second" in capsys.readouterr().out
    with pytest.raises(UsageError, match="names one checkpoint, not 2"):
        score([model, str(make_checkpoint(seed=1))], "nano", name="both", **ask)
