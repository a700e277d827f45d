"""`compare` as it is typed: every form of the same lines, hostile names, texts only on request,
runs that misfit.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from pair_runs import (
    PHENOMENON_BY_PARADIGM,
    draw_logprob_gaps,
    make_cell,
    make_predictions,
    write_run,
    write_toy_run,
)
from prediction_rows import PredictionRow

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.commands.compare import compare
from antlm_bench.errors import UsageError
from antlm_bench.suites import loader

HOSTILE = 'x|`<b>\n\x1b[31m</td>"&\u202e[a](b)é\U0001f600'


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    first = draw_logprob_gaps(80, 0.9, seed=1)
    second = draw_logprob_gaps(80, 0.6, seed=2)
    return write_toy_run(tmp_path / "one", first).path, write_toy_run(tmp_path / "two", second).path


@pytest.mark.long
def test_the_table_says_who_where_how_much_and_how_sure(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *two]) == 0
    out = capsys.readouterr().out
    for said in (
        "two against one",
        "toy · causal",
        "islands",
        "▼ -",
        "Holm over 3 phenomena",
        "<.001",
        "480 items",
        "nats",
        "95% CI",
    ):
        assert said in out, said
    assert "wh_island" not in out
    assert run(["compare", *two, "--by", "paradigm", "--flips", "3"]) == 0
    out = capsys.readouterr().out
    assert "wh_island" in out and len(re.findall(r"  1\.0  0\.0  +-\d", out)) == 3
    assert run(["compare", *two, "--by", "suite"]) == 0
    assert "islands" not in capsys.readouterr().out


@pytest.mark.long
def test_numbers_are_never_cut_and_names_wrap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {name: f"{name}_of_a_rather_long_name_for_a_table" for name in PHENOMENON_BY_PARADIGM}
    tree = {long[name]: outer for name, outer in PHENOMENON_BY_PARADIGM.items()}
    made = []
    for name, rate in (("one", 0.9), ("two", 0.6)):
        values = {
            long[paradigm]: each
            for paradigm, each in draw_logprob_gaps(80, rate, seed=len(name)).items()
        }
        made.append(
            write_run(tmp_path / name, make_cell(make_predictions(values, tree)), name=name).path
        )
    compared = ["compare", *made, "--by", "paradigm"]
    checked = ["check", made[1], "--against", made[0], "--group-margin", "5", "--margin", "90"]
    for argv, narrow, code in ((compared, 64, 0), (checked, 80, 1)):
        numbers = []
        for width in (narrow, 200):
            monkeypatch.setenv("COLUMNS", str(width))
            assert run(argv) == code
            out = capsys.readouterr().out
            assert max(map(len, out.splitlines())) <= width and "…" not in out
            table = out[: out.index("\n\n a  ")].replace("\n", " ")
            numbers.append(re.findall(r"(?:^| )([-+]?\d+\.\d\S*)", table))
        assert sorted(numbers[0]) == sorted(numbers[1]) and len(numbers[0]) >= 20


@pytest.mark.long
def test_csv_and_json_hold_every_level_in_full_precision(
    two: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *two, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["level"] for row in rows] == ["headline", *["phenomenon"] * 3, *["paradigm"] * 6]
    assert run(["compare", *two, "--json"]) == 0
    (versus,) = json.loads(capsys.readouterr().out)["comparisons"]
    (comparison,) = versus["comparisons"]
    found = [comparison["headline"], *comparison["groups"]]
    assert [float(row["value"]) for row in rows] == [d["value"] for d in found]
    assert [float(row["adjusted"]) for row in rows] == [d["adjusted"] for d in found]
    (expected,) = compare(two)
    assert len(comparison["flipped"]) == len(expected.comparisons[0].flipped) > 100


@pytest.mark.long
def test_hostile_names_stay_text_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {"adjunct_island": HOSTILE, "anaphor": "plain|"}
    made = [
        make_predictions(
            {name: each for name, each in draw_logprob_gaps(20, 0.5, s).items() if name in tree},
            tree,
        )
        for s in (1, 2)
    ]
    places = [
        write_run(tmp_path / f"r{i}", make_cell(p, suite=HOSTILE), name=f"{i}{HOSTILE}").path
        for i, p in enumerate(made)
    ]
    assert run(["compare", *places, "--flips", "2"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert run(["compare", *places, "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "<b>" not in out.replace("\\<b\\>", "")
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert run(["compare", *places, "--csv"]) == 0
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 1 + 1 + 2 + 2
    assert run(["compare", *places, "--json"]) == 0
    assert (
        json.loads(capsys.readouterr().out)["comparisons"][0]["comparisons"][0]["suite"] == HOSTILE
    )


@pytest.mark.long
def test_several_runs_are_each_compared_with_the_reference(
    two: tuple[str, str], tmp_path: Path
) -> None:
    third = write_toy_run(tmp_path / "three", draw_logprob_gaps(80, 0.7, seed=3)).path
    assert [(v.name_a, v.name_b) for v in compare([*two, third])] == [
        ("one", "two"),
        ("one", "three"),
    ]
    assert [(v.name_a, v.name_b) for v in compare([*two, third], against=two[1])] == [
        ("two", "one"),
        ("two", "three"),
    ]
    with pytest.raises(UsageError, match="one run cannot be compared"):
        compare([two[0]])
    with pytest.raises(UsageError, match="one run cannot be compared"):
        compare([two[0]], against=two[0])


@pytest.mark.long
def test_what_only_one_run_holds_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_predictions(draw_logprob_gaps(9), PHENOMENON_BY_PARADIGM)
    a = write_run(tmp_path / "a", make_cell(made), make_cell(made, suite="supplement"), name="A")
    b = write_run(tmp_path / "b", make_cell(made), make_cell(made, method="mntp"), name="B")
    assert run(["compare", a.path, b.path]) == 0
    out = capsys.readouterr().out
    assert "only in A: supplement · causal" in out and "only in B: toy · mntp" in out


def test_a_suite_in_both_runs_is_not_said_to_be_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, value in (("a", 0.3), ("b", 0.2)):
        row = PredictionRow("i", 0, 0, (-1.0,), (1,), (1,), judged=(value,))
        cell = make_cell([row], "lm-eval.toy", metric="task-score", macro=(), groups=())
        paths.append(write_run(tmp_path / name, cell, name=name).path)

    assert run(["compare", *paths]) == 0

    output = " ".join(capsys.readouterr().out.split())
    assert output.count("lm-eval.toy") == 1 and "in both runs, but not compared" in output


@pytest.mark.long
@pytest.mark.parametrize(
    ("more", "code", "complaint"),
    [
        ([], 6, "--ties: half / strict"),
        (["--suite", "blimp"], 2, "has no suite 'blimp'"),
        (["--method", "mlm,=mlm"], 2, "'=mlm' needs a method"),
        (["--method", "causal="], 2, "'causal=' needs a method"),
        (["--method", "mlm"], 6, "no method is in both runs"),
        (["--json", "--csv"], 2, "exclude each other"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    more: list[str], code: int, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        write_toy_run(tmp_path / "a", draw_logprob_gaps(5)),
        write_toy_run(tmp_path / "b", draw_logprob_gaps(5), ties="strict"),
    )
    assert run(["compare", a.path, b.path, *more]) == code
    captured = capsys.readouterr()
    assert complaint in captured.err and "hint" in captured.err and not captured.out


@pytest.mark.long
def test_allowed_mixtures_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        write_toy_run(tmp_path / "a", draw_logprob_gaps(5)),
        write_toy_run(tmp_path / "b", draw_logprob_gaps(5), ties="strict"),
    )
    assert run(["compare", a.path, b.path, "--allow-mixed"]) == 0
    assert "mixed: --ties: half / strict" in capsys.readouterr().out


@pytest.mark.long
def test_methods_of_one_run_against_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        make_predictions(draw_logprob_gaps(30, 0.8, seed), PHENOMENON_BY_PARADIGM)
        for seed in (1, 2)
    ]
    hybrid = write_run(tmp_path / "hybrid", make_cell(made[0]), make_cell(made[1], method="mntp"))
    again = write_run(tmp_path / "again", make_cell(made[0]), make_cell(made[1], method="mntp"))
    assert run(["compare", hybrid.path, again.path, "--method", "causal=mntp"]) == 0
    assert "toy · causal / mntp" in capsys.readouterr().out


def nano(folder: Path, shift: int) -> str:
    """A run of the shipped toy suite, every `shift`-th item wrong; the texts are not in it."""
    suite = loader.load_suite("nano")
    made = [
        PredictionRow(
            item.id,
            0,
            int(i % shift == 0),
            (-1.0 - (i % shift == 0), -1.5),
            (3, 3),
            (9, 9),
            item.labels,
        )
        for i, item in enumerate(suite.items)
    ]
    return write_run(
        folder,
        make_cell(
            made, suite="nano", macro=suite.macro, groups=suite.groups, suite_digest=suite.digest
        ),
    ).path


@pytest.mark.long
def test_texts_are_looked_up_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = nano(tmp_path / "a", 5), nano(tmp_path / "b", 3)
    options = {option.text for item in loader.load_suite("nano").items for option in item.options}
    assert run(["compare", a, b, "--flips", "5"]) == 0
    assert not any(text in capsys.readouterr().out for text in options)
    assert run(["compare", a, b, "--show-texts"]) == 0
    shown = capsys.readouterr().out.splitlines()
    texts = tuple(f" {sign} {text}" for sign in "+-" for text in options)
    assert sum(line.endswith(texts) for line in shown) == 20  # ten items of two options
    other = [nano(tmp_path / name, shift) for name, shift in (("c", 5), ("d", 3))]
    for place in other:
        text = (
            (Path(place) / "run.json")
            .read_text()
            .replace(loader.load_suite("nano").digest, "x" * 64)
        )
        (Path(place) / "run.json").write_text(text)
    assert run(["compare", *other, "--show-texts"]) == 3
    assert "is not what was scored" in capsys.readouterr().err


@pytest.mark.long
def test_texts_of_the_users_own_pairs_are_in_the_file_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("good,bad\nthe cat sleeps,the cat sleep\nthe dogs bark,the dogs barks\n")
    suite = loader.load_suite(str(file))
    runs = []
    for name, better in (("a", -1.0), ("b", -2.0)):
        made = [
            PredictionRow(item.id, 0, 0, (-1.5, better), (3, 3), (9, 9), item.labels)
            for item in suite.items
        ]
        told = make_cell(
            made, suite="mine", macro=suite.macro, groups=suite.groups, suite_digest=suite.digest
        )
        runs.append(write_run(tmp_path / name, told).path)
    assert run(["compare", *runs, "--show-texts"]) == 2
    assert "name it, as for score: --suite FILE" in " ".join(capsys.readouterr().err.split())
    assert run(["compare", *runs, "--suite", str(file), "--show-texts"]) == 0
    out = capsys.readouterr().out
    assert "+ the cat sleeps" in out and "- the dogs barks" in out
    file.write_text("good,bad\nthe cat sleeps,the cat slept\nthe dogs bark,the dogs barks\n")
    assert run(["compare", *runs, "--suite", str(file), "--show-texts"]) == 3
    assert "find the file that was scored" in capsys.readouterr().err


@pytest.mark.long
def test_a_folder_that_is_no_run_is_named(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", two[0], str(tmp_path / "nowhere")]) == 3
    assert "nowhere: not a run folder" in " ".join(capsys.readouterr().err.split())
    assert runs.open_run(two[0]).cells
