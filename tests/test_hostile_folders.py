"""Commands that write into a stranger's folder leave everything outside it as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_runs import make_cell, write_run
from safetensors.torch import save_file
from torch import zeros

from antlm_bench.cli import app
from antlm_bench.commands.check import BASELINES_DIR
from antlm_bench.errors import DataError, RunError
from antlm_bench.results.training_log import TrainingLogWriter
from antlm_bench.suites import files
from antlm_bench.training import checkpoint_io

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX links and FIFOs")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder outside the input, whose file and subfolder must stay as they are."""
    folder = tmp_path / "outside"
    (folder / "00000007").mkdir(parents=True)
    (folder / "letter.txt").write_text("do not touch")
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == ["00000007", "letter.txt"]
    assert (folder / "letter.txt").read_text() == "do not touch"


@pytest.mark.long
@pytest.mark.parametrize("name", ["state", "corpus", "best", "teachers"])
def test_training_folder_may_not_hold_a_link(tmp_path: Path, outside: Path, name: str) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / name).symlink_to(outside)
    argv = ["train", "babyllama", "--scale", "nano", "--corpus", "nano", "--out", str(run_dir)]

    assert app.run(argv) == RunError.exit_code


def test_state_is_not_saved_through_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "state").symlink_to(outside)

    with pytest.raises(RunError, match="link"):
        checkpoint_io.save_state(tmp_path / "state", 8, {}, {})


@pytest.mark.parametrize("metadata", ["[]", "null", "[" * 900, '{"done": 1e999}'])
def test_damaged_state_is_one_error(tmp_path: Path, metadata: str) -> None:
    folder = tmp_path / "00000008"
    folder.mkdir()
    (folder / "facts.json").write_text(metadata)
    save_file({"a": zeros(1)}, folder / "tensors")

    with pytest.raises(RunError, match="cannot be read"):
        checkpoint_io.load_state(tmp_path)


@pytest.mark.parametrize("name", ["facts.json", "tensors"])
def test_state_with_a_fifo_does_not_block(tmp_path: Path, name: str) -> None:
    checkpoint_io.save_state(
        tmp_path, 8, {"a": zeros(1)}, {"done": 8, "words": 1, "tokens": 1, "optimizer": {}}
    )
    (tmp_path / "00000008" / name).unlink()
    os.mkfifo(tmp_path / "00000008" / name)

    with pytest.raises(RunError, match="FIFO"):
        checkpoint_io.load_state(tmp_path)


def test_training_log_is_not_written_through_a_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "train.jsonl").symlink_to(outside / "letter.txt")

    with pytest.raises(RunError, match="link"):
        TrainingLogWriter(tmp_path).append({"step": 1})


def test_baseline_is_not_written_through_a_link(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", [make_cell("toy", "causal", 6, 10)])
    BASELINES_DIR.mkdir(parents=True)
    (BASELINES_DIR / ".run.new").symlink_to(outside)

    assert app.run(["baseline", "save", "run"]) == 0
    assert not os.path.lexists(BASELINES_DIR / ".run.new")


def test_download_is_not_stored_through_a_link(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    (root / "blimp").symlink_to(outside)

    with pytest.raises(DataError, match="link"):
        files.write_atomically(root / "blimp" / "new.jsonl", b"x", root)


def test_import_reads_no_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results_1.json")

    assert app.run(["import", str(tmp_path), "--out", str(tmp_path / "run")]) == 3


def test_import_of_huge_numbers_is_one_error(tmp_path: Path) -> None:
    results = {"results": {"toy": {"acc,none": 10**400}}, "config": {}}
    (tmp_path / "results.json").write_text(json.dumps(results))

    assert app.run(["import", str(tmp_path), "--out", str(tmp_path / "run")]) == 3


RECIPES = {
    "number as a table": ('difference = [{number = {a = 1}, paper = "x"}]', 2),
    "400 digits": (f"seed = 1{'0' * 400}", 2),
    "many steps": ("phase = [{steps = 1_000_000_000, causal = 1}]", DataError.exit_code),
}


@pytest.mark.parametrize(("line", "code"), RECIPES.values(), ids=RECIPES)
def test_recipe_with_a_wrong_value_is_one_error(tmp_path: Path, line: str, code: int) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'extends = "babyllama"\n{line}\n')

    assert app.run(["show", str(path)]) == code
