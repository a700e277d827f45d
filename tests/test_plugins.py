"""A record of an installed package works on the command line without changes to this package."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.metrics import METRICS
from antlm_bench.registry import Registry
from antlm_bench.suites.loader import load_suite
from antlm_bench.suites.task_types import TASK_TYPES

Install = Callable[[str, Registry, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(code, registry, entries): a package on the path whose entry points add to a registry.

    The registry forgets the package afterwards.
    """
    path = tmp_path / "site-packages"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))

    def write(code: str, registry: Registry, entries: str) -> None:
        (path / "stranger.py").write_text(code)
        info = path / "stranger-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{registry.group}]\n{entries}\n")
        for name in ("_targets", "_packages", "_records"):
            monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
        monkeypatch.setattr(registry, "_scanned", False)

    yield write
    sys.modules.pop("stranger", None)


BRIER = '''
"""Brier score: (1 - P(right option))^2, P among the options."""
import numpy as np
from antlm_bench.metrics import MetricSpec

def values(table, settings):
    scores = np.where(table.valid, table.reduced_scores(settings.reduction), -np.inf)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return (1 - shares[np.arange(len(shares)), table.gold.astype(int)]) ** 2

RECORD = MetricSpec(
    "brier", "Brier score (less is better)", item_values=values,
    lower_is_better=True, value_range=(0.0, 1.0),
)
'''
SUITE = """
kind = "suite"
name = "animals"
version = "1"
title = "Animals"
licence = "CC0"
citation = "made up"
metric = "brier"
groups = ["kind"]
macro = ["kind"]

[item]
options = [{ scored = "{good}" }, { scored = "{bad}" }]

[labels]
kind = "{kind}"

[data]
where = ["tasks/{file}"]
files = { "animals.jsonl" = {} }
"""


def test_a_metric_of_a_package(
    install: Install,
    make_checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(BRIER, METRICS, "brier = stranger:RECORD")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "animals.toml").write_text(SUITE)
    rows = [
        {"good": f"the {a} sees the {b}.", "bad": f"the {a} see the {b}.", "kind": a}
        for a in ("cat", "dog")
        for b in ("bird", "boy", "girl", "tree")
    ]
    (tasks / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    folders = [str(tmp_path / "run0"), str(tmp_path / "run1")]
    for seed, folder in enumerate(folders):
        model = make_checkpoint("causal", seed=seed)
        assert run(["score", "--model", str(model), "--suite", "animals", "--out", folder]) == 0
    shown = capsys.readouterr().out
    assert "brier, mean of 2 kinds" in shown and "Brier score (less is better)" in shown

    means = []
    for folder in folders:
        (cell,) = runs.open_run(folder)
        scores = np.array([p.scores for p in runs.read_predictions(folder, cell)])
        wrong = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
        means.append(np.mean(wrong**2))
        assert cell.summary.metric == "brier"
        assert cell.summary.headline.value == pytest.approx(means[-1])

    assert run(["compare", *folders, "--json"]) == 0
    ((suite,),) = [c["comparisons"] for c in json.loads(capsys.readouterr().out)["comparisons"]]
    assert suite["headline"]["value"] == pytest.approx(means[1] - means[0])
    assert suite["headline"]["lower_is_better"]
    assert run(["compare", *folders]) == 0
    assert "lower is better" in capsys.readouterr().out
    assert run(["report", folders[0], "--csv"]) == 0
    assert f"{means[0]:.6f}"[:7] in capsys.readouterr().out
    assert run(["export", folders[0], "--format", "csv", "--out", str(tmp_path / "items.csv")]) == 0


def test_a_misspelt_metric_of_a_package_gets_a_suggestion(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(BRIER, METRICS, "brier = stranger:RECORD")
    (tmp_path / "animals.toml").write_text(SUITE.replace('"brier"', '"breir"'))
    assert run(["show", str(tmp_path / "animals.toml")]) == 2
    assert "'breir'; did you mean 'brier'?" in " ".join(capsys.readouterr().err.split())


# ---- suites, and kinds of suites: the examples of docs/extending.md

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"


def documented(first_line: str) -> str:
    """The code block of docs/extending.md that begins with this line."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(first_line))
    return block


@pytest.fixture
def suites_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder tasks/ of a folder of ANTLM_BENCH_PATH."""
    (tmp_path / "tasks").mkdir()
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    return tmp_path / "tasks"


def test_a_suite_is_a_toml_in_a_folder_of_ones_own(suites_folder: Path) -> None:
    (suites_folder / "animals.toml").write_text(documented("# tasks/animals.toml"))
    (suites_folder / "animals.jsonl").write_text(documented('{"good"'))
    suite = load_suite("animals")
    assert [[o.text for o in item.options] for item in suite.items] == [
        ["the cat sees the bird.", "the cat see the bird."],
        ["the dog sees the bird.", "the dog see the bird."],
    ]
    assert suite.macro == ("animal",)
    assert suite.origin == ()  # a suite of the catalog, under its name


def test_a_kind_of_suite_is_one_record_of_a_package(
    install: Install,
    suites_folder: Path,
    make_checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    model, out = str(make_checkpoint("causal")), str(tmp_path / "run")
    assert run(["list", "suites", "--csv"]) == 0
    assert "gaps,score,,accuracy,Words in gaps" in capsys.readouterr().out
    assert run(["show", "gaps"]) == 0
    assert "Words in gaps" in capsys.readouterr().out
    assert run(["score", "--model", model, "--suite", "gaps", "--out", out]) == 0
    (cell,) = runs.open_run(out)
    predictions = runs.read_predictions(out, cell)
    assert [p.id for p in predictions] == ["gaps_0", "gaps_1"]
    right = [p.scores[0] > p.scores[1] for p in predictions]
    assert cell.summary.headline.value == sum(right) / 2
    capsys.readouterr()
    assert run(["compare", out, out, "--json"]) == 0
    assert '"gaps"' in capsys.readouterr().out
    assert run(["report", out, "--csv"]) == 0
    assert "gaps" in capsys.readouterr().out


def test_a_wrong_key_of_such_a_suite_is_named(
    install: Install, suites_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(
        documented("# tasks/gaps.toml").replace("sentences", "sentence")
    )
    assert run(["show", "gaps"]) == 2
    assert "unknown key 'sentence'" in capsys.readouterr().err


def test_finetune_sends_such_a_suite_to_score(
    install: Install,
    suites_folder: Path,
    make_checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(documented("# cloze.py"), TASK_TYPES, "cloze = stranger:CLOZE")
    (suites_folder / "gaps.toml").write_text(documented("# tasks/gaps.toml"))
    assert run(["finetune", "--model", str(make_checkpoint("causal")), "--suite", "gaps"]) == 2
    assert "antlm-bench score --model CKPT --suite gaps" in " ".join(
        capsys.readouterr().err.split()
    )
