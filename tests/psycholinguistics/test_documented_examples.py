"""The examples of the pages surprisal, effects and reading, run unchanged on a checkpoint."""

from __future__ import annotations

import csv
import io
import os
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from documented_pages import STIMULI_TABLE, read_blocks

from antlm_bench import runs
from antlm_bench.cli.app import run

DOCS = Path(__file__).parents[2] / "docs"


def read_code_blocks(name: str) -> list[tuple[str, str]]:
    """Return (language, content) of the code blocks of a document."""
    [page] = DOCS.glob(f"*/{name}")
    return [(block.language, block.text) for block in read_blocks(page.read_text("utf-8"))]


def read_commands(name: str) -> list[str]:
    """Return the blocks of a document that are command lines."""
    return [text for language, text in read_code_blocks(name) if language != "python"]


@pytest.fixture
def run_example(make_checkpoint, tmp_path, monkeypatch):
    """try_out(line): run a command of a document in an empty folder, on a real checkpoint."""
    monkeypatch.chdir(tmp_path)
    models = {
        "CKPT": str(make_checkpoint("causal", adds=True, max_position_embeddings=256)),
        "MASKED": str(make_checkpoint("masked", adds=True)),
    }

    def run_line(line: str, *options: str) -> None:
        assert run([models.get(word, word) for word in shlex.split(line)[1:]] + list(options)) == 0

    return run_line


@pytest.mark.long
def test_the_documented_surprisal_tables_are_reproduced(run_example):
    (_, stimuli), *blocks = read_code_blocks("surprisal.md")
    Path("stimuli.csv").write_text(stimuli, encoding="utf-8")
    Path("story.txt").write_text("The old man sleeps.", encoding="utf-8")
    examples = [(a[1].strip(), b[1]) for a, b in pairwise(blocks) if (a[0], b[0]) == ("sh", "csv")]
    assert len(examples) == 3
    model_columns = {"model", "n_tokens", "token_index", "token", "surprisal_bits"}
    for line, expected in examples:
        run_example(line)
        path = Path(shlex.split(line)[-1])
        computed, documented = (
            list(csv.DictReader(io.StringIO(text)))
            for text in (path.read_text(encoding="utf-8"), expected)
        )
        assert list(computed[0]) == list(documented[0])
        if "--by token" in line:
            continue  # another tokenizer has other tokens
        for a, b in zip(computed, documented, strict=True):
            assert {k: v for k, v in a.items() if k not in model_columns} == {
                k: v for k, v in b.items() if k not in model_columns
            }
            assert float(a["surprisal_bits"]) > 0 and float(b["surprisal_bits"]) > 0


@pytest.mark.long
def test_the_syntaxgym_suite_of_the_document_is_scored(run_example, capsys):
    blocks = read_code_blocks("surprisal.md")
    [content] = [text for language, text in blocks if language == "json"]
    line = [text for language, text in blocks if language == "sh"][-1]
    Path("agreement.json").write_text(content, encoding="utf-8")
    run_example(line.strip(), "--out", "run")
    (cell,) = runs.open_run("run")
    assert (cell.suite, cell.summary.headline.n, cell.summary.groups[0].level) == (
        "agreement",
        1,
        "prediction",
    )
    assert "(2;%match%) < (2;%mismatch%)" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.skipif(
    not os.environ.get("ANTLM_BENCH_DATA"),
    reason="needs the real data: set ANTLM_BENCH_DATA",
)
def test_both_reading_suites_stand_side_by_side(run_example, capsys):
    if not (Path(os.environ["ANTLM_BENCH_DATA"]) / "reading").is_dir():
        pytest.skip("no reading/ in ANTLM_BENCH_DATA")
    line = read_commands("reading.md")[0]
    run_example(line.strip(), "--out", "run")
    assert [cell.suite for cell in runs.open_run("run")] == ["reading-2025", "reading"]
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert rows.count("eye-tracking") == rows.count("self-paced-reading") == 2


def test_the_commands_about_acquisition_are_understood(capsys):
    for line in read_commands("reading.md")[1].strip().splitlines():
        assert run([shlex.split(line)[1], "--help"]) == 0
        printed = capsys.readouterr().out
        assert all(f"{word} " in printed for word in shlex.split(line) if word.startswith("--"))


def test_the_documented_effects_are_reproduced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (_, table), (_, line), (_, expected), (_, long) = read_code_blocks("effects.md")[:4]
    Path("surprisal.csv").write_text(table, encoding="utf-8")
    assert run(shlex.split(line)[1:]) == 0
    assert expected.strip() in capsys.readouterr().out
    assert Path("items.csv").read_text(encoding="utf-8").startswith(long)


@pytest.mark.long
def test_the_documented_stimuli_and_python_give_effects(make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(make_checkpoint("causal", adds=True))
    Path("items.csv").write_text(
        "item,ambiguous,unambiguous,at_ambiguous,at_unambiguous\n"
        "1,the cat sees,the old cat sees,2,3\n2,the dog sees,the old dog sees,2,3\n"
    )
    Path("stimuli.csv").write_text(STIMULI_TABLE, encoding="utf-8")
    blocks = read_code_blocks("effects.md")
    [commands] = [text for _, text in blocks if "--conditions ambiguous" in text]
    for line in commands.strip().splitlines():
        assert run([model if word == "CKPT" else word for word in shlex.split(line)[1:]]) == 0
    [toml] = [text for language, text in blocks if language == "toml"]
    Path("mine.toml").write_text(toml, encoding="utf-8")
    assert run(["effects", "mine.toml", "--model", model]) == 0
    [figures] = [text for _, text in blocks if "--plot sentence" in text]
    for line in figures.strip().splitlines():
        assert run(shlex.split(line)[1:]) == 0
    [code] = [text for language, text in blocks if language == "python"]
    names: dict[str, object] = {}
    exec(compile(code.replace("CKPT", model), "effects.md", "exec"), names)
    assert len(names["result"].effects) == 3  # type: ignore[attr-defined]
