"""A suite is what it holds, not what it is called: every file has its own cell, and none passes for
another suite.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from prediction_rows import PredictionRow, from_rows, read_rows

from antlm_bench import runs
from antlm_bench.cli.app import run as cli
from antlm_bench.commands.check import check, save_baseline
from antlm_bench.commands.compare import compare
from antlm_bench.commands.finetune import finetune
from antlm_bench.commands.report import build_report
from antlm_bench.commands.score import score
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import IncompleteError, NotComparable, UsageError
from antlm_bench.results.checkpoint_series import load_curves
from antlm_bench.suites import loader
from antlm_bench.types import Cell, Estimate, Run, Summary

TASKS = Path(__file__).resolve().parents[2] / "tasks"
MODEL = {"name": "m", "weights": "w", "words_seen": 1_000_000}
MANIFEST = runs.store.Manifest(runs.SCHEMA_VERSION, MODEL, {}, "2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What survives a power cut is not asked here."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def pairs(path: Path, *rows: tuple[str, str]) -> str:
    """Write a file of pairs, by default of the one pair (path, "x"); return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
            [("good", "bad"), *rows]
        )
    return str(path)


def keep(folder: Path, ref: str, value: float, method: str = "causal", **more: Any) -> Run:
    """Enter a cell of a suite into a run as `score` does, with an accuracy of its own instead of a
    model's.
    """
    suite = loader.load_suite(ref, allow_incomplete=True)
    known = {
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_digest": suite.digest,
        "method": method,
    }
    summary = Summary(suite.name, method, "accuracy", (), Estimate(value, 1, 0.0, 1.0), {}, ())
    cell = Cell(suite.name, method, f"k{suite.digest}", known | more, summary, origin=suite.origin)
    predictions = [
        PredictionRow(item.id, 0, 0, (-1.0, -2.0), (1, 1), (1, 1)) for item in suite.items
    ]
    with runs.RunWriter(folder, MANIFEST) as writer:
        writer.write_cell(cell, from_rows(predictions))
    return runs.open_run(folder)


def values(run: Run) -> dict[str, float]:
    """Name -> headline of each suite; a name that occurs twice fails."""
    assert len({cell.suite for cell in run}) == len(run.cells)
    return {cell.suite: cell.summary.headline.value for cell in run}


# ---- files of one name
# -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("together", [True, False])
def test_two_files_of_one_name_keep_their_own_scores(
    make_checkpoint, tmp_path: Path, together: bool
) -> None:
    first = pairs(tmp_path / "de" / "simple_agrmt.csv", ("the cat sleeps", "the cat sleep"))
    second = pairs(
        tmp_path / "fr" / "simple_agrmt.csv", ("the dog sees", "the dog see"), ("a dog", "an dog")
    )
    model = str(make_checkpoint())
    for refs in [[first, second]] if together else [[first], [second]]:
        score(model, refs, out=tmp_path / "run")
    run = runs.open_run(tmp_path / "run")
    assert list(values(run)) == ["de/simple_agrmt", "fr/simple_agrmt"]
    for cell, ref in zip(run, (first, second), strict=True):
        [alone] = score(model, ref, out=tmp_path / cell.suite)
        assert read_rows(run.path, cell) == read_rows(alone.path, alone.cells[0])


@pytest.mark.long
def test_a_finished_file_is_not_scored_again_even_when_moved(
    make_checkpoint, tmp_path: Path
) -> None:
    ref = pairs(tmp_path / "de" / "a.csv", ("the cat sleeps", "the cat sleep"))
    model = str(make_checkpoint())
    [before] = score(model, ref, out=tmp_path / "run")
    shutil.move(tmp_path / "de", tmp_path / "moved")
    [after] = score(model, str(tmp_path / "moved" / "a.csv"), out=tmp_path / "run")
    assert [cell.digest for cell in after] == [cell.digest for cell in before]
    assert after.cells[0].origin == (str(tmp_path / "moved" / "a.csv"),)


@pytest.mark.long
def test_a_changed_file_replaces_its_score_and_says_so(
    make_checkpoint, tmp_path: Path, capsys
) -> None:
    ref, model = tmp_path / "a.csv", str(make_checkpoint())
    pairs(ref, ("the cat sleeps", "the cat sleep"))
    score(model, str(ref), out=tmp_path / "run")
    assert "replaces" not in capsys.readouterr().err
    pairs(ref, ("the cat sleeps", "the cat sleep"), ("a dog", "an dog"))
    [run] = score(model, str(ref), out=tmp_path / "run")
    assert [cell.summary.headline.n for cell in run] == [2]
    assert "the new score replaces the old one" in " ".join(capsys.readouterr().err.split())
    assert len(list((tmp_path / "run" / "predictions").iterdir())) == 1


@pytest.mark.long
def test_equal_files_of_one_name_are_refused_in_one_call(make_checkpoint, tmp_path: Path) -> None:
    refs = [pairs(tmp_path / folder / "a.csv", ("x y", "y x")) for folder in ("de", "fr")]
    with pytest.raises(UsageError, match="have the same name and items") as caught:
        score(str(make_checkpoint()), refs, out=tmp_path / "run")
    assert all(ref in str(caught.value) for ref in refs) and "rename a file" in caught.value.hint
    [run] = score(
        str(make_checkpoint()), [refs[0], f"{tmp_path}/fr/../de/a.csv"], out=tmp_path / "run"
    )
    assert len(run.cells) == 1  # the same file twice


NAME = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6
)
FILES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "a/b", "é"]),
        NAME | st.sampled_from(["x", "名前", "テスト", "blimp"]),
        st.sampled_from([".csv", ".tsv"]),
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


@pytest.mark.long
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(FILES)
@example([("a", "0", ".csv"), ("a", "0", ".tsv"), ("b", "0", ".csv")])
def test_any_files_have_as_many_cells_each_with_its_own_score(tmp_path: Path, files) -> None:
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    paths = dict.fromkeys(folder / where / f"{name}{ending}" for where, name, ending in files)
    expected = []
    for n, path in enumerate(paths):
        ref = pairs(path, (f"good {n}", "bad"))
        run = keep(folder / "run", ref, n / 10)
        expected.append(n / 10)
    assert list(values(run).values()) == expected
    assert [cell.origin[0] for cell in run] == list(map(str, paths))
    for cell in run:  # each has its own predictions
        assert [p.id for p in read_rows(run.path, cell)] == [f"{runs.base_suite_name(cell)}_0"]
        assert cell.suite not in list_declarations("tasks") and not any(
            cell.suite.startswith(f"{n}.") for n in list_declarations("tasks")
        )
    saved = runs.open_run(save_baseline(run.path, "slim", baselines_dir=folder / "base"))
    assert values(saved) == values(run)  # told apart by ends of paths alone


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["de/x.csv"], ["x"]),
        (["de/x.csv", "fr/x.csv"], ["de/x", "fr/x"]),
        (["a/de/x.csv", "b/de/x.csv", "fr/x.csv"], ["a/de/x", "b/de/x", "fr/x"]),
        (["de/x.csv", "de/x.tsv"], ["x.csv", "x.tsv"]),
        (["de/a b.csv", "de/a-b.csv"], ["a b.csv", "a-b.csv"]),
        (["de/名前.csv", "de/テスト.csv", "de/größe.csv"], ["名前", "テスト", "größe"]),
        (["de/🙂.csv", "de/🙃.csv"], ["🙂.csv", "🙃.csv"]),
        (["de/blimp.csv", "de/glue-2025.rte.csv"], ["de/blimp", "de/glue-2025.rte"]),
        (["de/" + "長" * 80 + ".csv"], ["長" * 80]),
    ],
)
def test_files_are_shown_by_the_shortest_path_that_differs(tmp_path: Path, files, names) -> None:
    for n, file in enumerate(files):
        run = keep(tmp_path / "run", pairs(tmp_path / file, (f"good {n}", "bad")), 0.5)
    assert [cell.suite for cell in run] == names


@pytest.mark.long
def test_a_file_name_that_is_no_text_is_scored(make_checkpoint, tmp_path: Path) -> None:
    for name in (b".x.csv", b"\xff.csv", b"\xfe.csv", b"a\\b.csv"):
        path = Path(str(tmp_path)) / name.decode("utf-8", "surrogateescape")
        pairs(path, (f"good {name!r}", "bad"))
        run = score(str(make_checkpoint()), str(path), out=tmp_path / "run")[0]
    assert len(values(run)) == 4


@pytest.mark.long
def test_finetuned_files_of_one_name_are_tasks_of_their_own(
    make_checkpoint, tmp_path: Path
) -> None:
    def texts(name: str, rows: int) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "text,label\n" + "".join(f"the cat {n} {name},{n % 2}\n" for n in range(rows))
        )
        return str(path)

    cases = [
        ("de/train.csv", "de/a.csv"),
        ("fr/train.csv", "fr/a.csv"),
        ("fr/train.csv", "fr/b.csv"),
    ]
    for n, (train, valid) in enumerate(cases):
        [run] = finetune(
            str(make_checkpoint()),
            texts(train, 24),
            valid=texts(valid, 6 + n),
            seeds=[1],
            out=tmp_path / "run",
            changes=["epochs=1", "batch=8"],
        )
    assert [(cell.suite, cell.summary.headline.n) for cell in run] == [
        ("de/train", 6), ("fr/train (a.csv)", 7), ("train (b.csv)", 8)
    ]  # fmt: skip
    assert [member.suite for member in build_report([run.path]).members] == [
        cell.suite for cell in run
    ]
    [versus] = compare([run.path, save_baseline(run.path, "slim", baselines_dir=tmp_path / "base")])
    assert [one.suite for one in versus.comparisons] == [cell.suite for cell in run]


# ---- names of the catalog
# -----------------------------------------------------------------------------------


def nano(tmp_path: Path, name: str, **changes: str) -> Path:
    """A copy of the shipped suite `nano` as the user's own TOML, with some text replaced."""
    text = (TASKS / "nano.toml").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert text.count(old.replace("_", " ")) == 1
        text = text.replace(old.replace("_", " "), new)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_shipped_suite_stays_where_it_was(tmp_path: Path) -> None:
    run = keep(tmp_path / "run", "nano", 0.5)
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["cells"][0]["predictions"] == "predictions/nano.causal.parquet"
    assert "origin" not in document["cells"][0] and [cell.suite for cell in run] == ["nano"]


def test_a_file_named_like_a_shipped_suite_is_not_that_suite(tmp_path: Path) -> None:
    own = pairs(tmp_path / "mine" / "nano.csv", ("good", "bad"))
    for order in ([own, "nano"], ["nano", own]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for ref in order:
            run = keep(folder, ref, 0.25 if ref == own else 0.75)
        assert values(run) == {"mine/nano": 0.25, "nano": 0.75}


def test_a_toml_with_a_shipped_name_needs_the_same_items(tmp_path: Path, monkeypatch) -> None:
    same = nano(tmp_path, "copy/nano.toml", **{'licence_=_"': 'licence = "our '})
    other = nano(tmp_path, "other/nano.toml", **{"pairs_=_50": "pairs = 5"})
    assert (
        loader.load_suite(str(TASKS / "nano.toml")).origin
        == loader.load_suite(str(same)).origin
        == ()
    )
    assert loader.load_suite(str(other), allow_incomplete=True).origin == (str(other),)
    keep(tmp_path / "run", "nano", 0.5)
    run = keep(tmp_path / "run", str(other), 0.25)
    assert values(run) == {"nano": 0.5, "other/nano": 0.25}
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(tmp_path))
    (tmp_path / "other").rename(
        tmp_path / "tasks"
    )  # a declaration that hides ours is not ours either
    assert values(keep(tmp_path / "hidden", "nano", 0.25)) == {"tasks/nano": 0.25}


def test_a_collection_takes_no_file_of_the_same_name(tmp_path: Path) -> None:
    own = pairs(tmp_path / "mine" / "blimp-filtered.csv", ("good", "bad"))
    keep(tmp_path / "run", own, 1.0)
    with pytest.raises(IncompleteError) as caught:
        build_report([tmp_path / "run"], collection="zero-shot-2025")
    said = "mine/blimp-filtered is a file of the user and not the suite blimp-filtered: not counted"
    assert said in str(caught.value)
    (column,) = build_report([tmp_path / "run"], collection="zero-shot-2025", partial=True).columns
    assert (
        column.macro_average is None
        and said in column.caveats
        and not any(entry.score for entry in column.results)
    )


def test_a_collection_takes_no_other_version_of_its_suite(tmp_path: Path) -> None:
    summary = Summary(
        "blimp-filtered", "causal", "accuracy", (), Estimate(1.0, 1, 0.0, 1.0), {}, ()
    )
    for version, counted in (("2025", True), ("2031", False)):
        about = {"suite": "blimp-filtered", "suite_version": version, "suite_digest": "d"}
        with runs.RunWriter(tmp_path / version, MANIFEST) as writer:
            writer.write_cell(Cell("blimp-filtered", "causal", "k", about, summary), from_rows([]))
        (column,) = build_report(
            [tmp_path / version], collection="zero-shot-2025", partial=True
        ).columns
        assert (column.macro_average is not None) == counted
        assert (
            any("version 2031, the catalog has version 2025" in mark for mark in column.caveats)
            != counted
        )


def test_runs_of_older_versions_keep_reading(tmp_path: Path) -> None:
    """Cells without an origin: a bare file of the user's is known by its version, a shipped suite
    by its name.
    """
    own = pairs(tmp_path / "mine" / "nano.csv", ("good", "bad"))
    for ref, value in (("nano", 0.75), (own, 0.25)):
        keep(tmp_path / f"{value}", ref, value)
        file = tmp_path / f"{value}" / "run.json"
        document = json.loads(file.read_text())
        [cell] = document["cells"]
        cell.pop("origin", None)
        old = "predictions/nano.causal.parquet"
        (tmp_path / f"{value}" / cell["predictions"]).rename(tmp_path / f"{value}" / old)
        cell["predictions"] = old
        file.write_text(json.dumps(document))
    assert values(runs.open_run(tmp_path / "0.75")) == {"nano": 0.75}
    assert values(runs.open_run(tmp_path / "0.25")) == {"./nano": 0.25}
    run = keep(tmp_path / "0.25", "nano", 0.75)  # the place of its file is taken
    assert values(run) == {"./nano": 0.25, "nano": 0.75}
    assert [len(read_rows(run.path, cell)) for cell in run] == [
        1,
        len(loader.load_suite("nano").items),
    ]
    run = keep(
        tmp_path / "0.25", own, 0.3
    )  # the same items: the same suite, which now says where it stands
    assert values(run) == {"mine/nano": 0.3, "nano": 0.75}


# ---- several runs
# -----------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Run a holds de/x and fr/x, run b (on another machine) only fr/x."""
    for folder, name, text in (
        ("a", "de/x", "eins"),
        ("a", "fr/x", "un"),
        ("b", "elsewhere/fr/x", "un"),
    ):
        keep(
            tmp_path / "runs" / folder,
            pairs(tmp_path / f"{name}.csv", (text, "bad")),
            len(text) / 10,
        )
    return tmp_path / "runs" / "a", tmp_path / "runs" / "b"


def test_equal_files_have_one_name_in_all_runs(
    two: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    [versus] = compare(list(two))
    assert [one.suite for one in versus.comparisons] == ["fr/x"]
    assert [member.suite for member in build_report(two).members] == ["de/x", "fr/x"]
    assert [one.suite for one in check(two[0], two[1]).run_comparison.comparisons] == ["fr/x"]
    assert {one.suite for one in load_curves(two[:1])[0]} == {"de/x", "fr/x"}
    assert cli(["compare", *map(str, two), "--suite", str(tmp_path / "fr" / "x.csv")]) == 0
    assert "fr/x" in capsys.readouterr().out
    assert (
        cli(["export", *map(str, two), "--format", "csv", "--out", str(tmp_path / "items.csv")])
        == 0
    )
    with (tmp_path / "items.csv").open() as file:
        assert [row["suite"] for row in csv.DictReader(file)] == ["de/x", "fr/x", "fr/x"]
    assert [cell.suite for cell in runs.open_run(two[1])] == ["x"]


def test_other_files_of_one_name_are_not_compared(tmp_path: Path) -> None:
    for folder, name in (("a", "de"), ("b", "fr")):
        keep(tmp_path / "runs" / folder, pairs(tmp_path / name / "x.csv", (name, "bad")), 0.5)
    with pytest.raises(NotComparable, match=r"no suite is in both runs: de/x / fr/x"):
        compare([tmp_path / "runs" / "a", tmp_path / "runs" / "b"])


def test_a_file_that_changed_between_runs_is_one_suite_of_other_items(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    keep(tmp_path / "a", pairs(path, ("one", "bad")), 0.5)
    save_baseline(tmp_path / "a", "old", baselines_dir=tmp_path / "base")
    keep(tmp_path / "b", pairs(path, ("two", "bad")), 0.5)
    for reference in (tmp_path / "a", tmp_path / "base" / "old"):
        with pytest.raises(NotComparable, match=r"items of the suite \(digest\)"):
            compare([reference, tmp_path / "b"])
    assert (
        str(tmp_path) not in (tmp_path / "base" / "old" / "run.json").read_text()
    )  # no path of one machine


def test_texts_are_found_where_the_run_says(two: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    other = tmp_path / "runs" / "c"
    with runs.RunWriter(other, MANIFEST) as writer:
        for cell in runs.open_run(two[0]):
            flipped = [
                PredictionRow(f"{runs.base_suite_name(cell)}_0", 0, 1, (-2.0, -1.0), (1, 1), (1, 1))
            ]
            base = runs.shorten_cell_paths(runs.open_run(two[0]))
            writer.write_cell(
                next(one for one in base if one.digest == cell.digest), from_rows(flipped)
            )
    assert cli(["compare", str(two[0]), str(other), "--show-texts"]) == 0
    shown = capsys.readouterr().out
    assert "+ eins" in shown and "+ un" in shown
