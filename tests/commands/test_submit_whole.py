"""From a text to leaderboards' files by the commands of docs/how-to/submit.md: trained, scored and
finetuned in earnest.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
import synthetic_suites
from prediction_rows import read_rows
from tiny_models import WORDS

from antlm_bench import runs
from antlm_bench.cli.app import run as cli
from antlm_bench.commands import preflight
from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard import TrackSpec

ITEMS, MILESTONES = 3, (1, 2, 3)  # items per group; millions of words
READ = 1726  # words of the reading data, which stay whole
YEARS = {"2024": "", "2025": "aoa", "2026": "aoa_surprisals"}  # and their part of words in contexts
SHAPE = "model.layers=1 model.hidden=16 model.heads=1 model.ffn=16 model.positions=512"
SHAPE += " tokenizer.vocabulary=450"
RECIPE = [
    *SHAPE.split(),
    "corpus.document=file",
    "batch.tokens=32768",
    "phase=[{epochs=31, causal=1}]",
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> None:
    """Leaderboards with three milestones and three items per group; reading times as they are."""
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(data_root))
    track = TrackSpec(names=("strict-small",), milestones=MILESTONES)
    boards = {year: leaderboard.load_leaderboard(year) for year in YEARS}
    boards |= {
        year: boards[year].model_copy(update={"track_specs": (track,)})
        for year, curves in YEARS.items()
        if curves
    }
    schemas = {
        boards[year].name: leaderboard_runs.shrink_whole_schema(
            boards[year].name, key, ITEMS, len(MILESTONES)
        )
        for year, key in YEARS.items()
    }
    monkeypatch.setattr(leaderboard, "load_leaderboard", boards.__getitem__)
    monkeypatch.setattr(preflight, "load_leaderboard", boards.__getitem__)
    monkeypatch.setattr(leaderboard, "load_schema", schemas.__getitem__)
    synthetic_suites.serve_synthetic_data(monkeypatch, ITEMS)


def text(path: Path) -> Path:
    """A hundred thousand words, a few per line."""
    rng = random.Random(0)
    path.write_text("".join(f"{' '.join(rng.choices(WORDS, k=8))}\n" for _ in range(12_500)))
    return path


@pytest.mark.long
def test_a_text_becomes_whole_submissions(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reports = tmp_path / "out", tmp_path / "reports"
    main, final = str(out / "main"), reports / "main"

    def call(*argv: str, code: int = 0) -> None:
        assert cli([*argv]) == code

    corpus = str(text(tmp_path / "text.txt"))
    changes = [f"--set={change}" for change in RECIPE]
    call(
        "train",
        "babyllama",
        "--scale",
        "nano",
        "--corpus",
        corpus,
        "--out",
        str(out),
        "--device",
        "cpu",
        *changes,
    )
    for year in YEARS:
        call("preflight", str(out), "--track", "strict-small", "--year", year)
    # A run folder holds one cell per suite and method, so 2024's conventions have a folder of their
    # own. 2025's file takes what was scored by 2026's, which only break ties in another way.
    options = ["--model", main, "--device", "cpu", "--out"]
    alone = tmp_path / "reports-2024" / "main"
    call("score", "--suite", "zero-shot-2024", "--compat", "babylm-2024", *options, str(alone))
    suites = "zero-shot-2025,zero-shot-2026,reading-2025"
    call("score", "--suite", suites, "--compat", "babylm-2026", *options, str(final))
    for suite, seed, compat, place in (
        ("glue-2024", "12", "babylm-2024", alone),
        ("glue-2025", "42", "babylm-2025", final),
    ):
        glue = ["--suite", suite, "--seed", seed, "--compat", compat, "--set", "epochs=1"]
        call("finetune", *glue, *options, str(place))
    suites = "zero-shot-fast,zero-shot-fast-2026,reading-2025,aoa-words-2026"
    fast = ["--model", str(out / "chck_*"), "--suite", suites, "--compat", "babylm-2026"]
    call("score", *fast, "--out", str(reports), "--device", "cpu")
    call("acquisition", str(reports), "--suite", "aoa-2026")
    for year, curves in YEARS.items():
        file, folder = tmp_path / f"{year}.json", final if curves else alone
        submit = [
            "submit",
            str(folder.parent),
            "--year",
            year,
            "--track",
            "strict-small",
            "--out",
            str(file),
        ]
        call(*submit, code=6)  # one epoch is not the official finetuning, and the only deviation
        assert capsys.readouterr().err.count("officially") == len(
            leaderboard.count_expected_answers(f"babylm-{year}", "glue")
        )
        call(*submit, "--allow-conventions")
        raw = file.read_bytes()
        document = json.loads(raw if curves else gzip.decompress(raw))
        assert None not in document.values() and set(document) >= {
            "blimp",
            "blimp_supplement",
            "ewok",
            "glue",
        }
        labels = {
            (cell.suite, cell.seed): read_rows(str(folder), cell) for cell in runs.open_run(folder)
        }
        suite, seed = ("glue-2024", 12) if year == "2024" else ("glue-2025", 42)
        assert len(document["glue"]) == (11 if year == "2024" else 7)
        for task, told in document["glue"].items():
            assert [row["pred"] for row in told["predictions"]] == [
                p.pred for p in labels[f"{suite}.{task}", seed]
            ]
        if not curves:
            continue
        assert None not in document["fast_eval_results"].values()
        assert len(document["reading"]["reading"]["predictions"]) == READ
        steps = {row["step"]: row["surprisal"] for row in document[curves]["results"]}
        assert len(set(steps.values())) == len(steps) == len(MILESTONES), (
            "every checkpoint says something else"
        )
    [acquired] = [cell for cell in runs.open_run(final) if cell.suite == "aoa-2026"]
    assert document["aoa"] == {"aoa": acquired.summary.headline.value}
    assert_global_piqa(document, final)


def assert_global_piqa(document: dict[str, Any], final: Path) -> None:
    """One answer per example, under its id, and a number per milestone."""
    for kind, solutions in (("parallel", 4), ("nonparallel", 2)):
        cell = next(
            cell for cell in runs.open_run(final) if cell.suite == f"global-piqa-{kind}-2026"
        )
        told = document[f"global_piqa_{kind}"]
        for prediction in read_rows(str(final), cell):
            [row] = told[prediction.labels["example"]]["predictions"]
            assert (
                row["id"] == prediction.id
                and row["pred"].startswith(" ")
                and len(prediction.scores) == solutions
            )
        fast_scores = document["fast_eval_results"][f"global_piqa_{kind}"]
        assert len(fast_scores) == len(MILESTONES) and all(
            0 <= s[f"global_piqa_{kind}"] <= 1 for s in fast_scores
        )
