"""The report's numbers against hand computation and scikit-learn, its refusals, and every doubt
that it must mark.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from prediction_rows import PredictionRow
from report_runs import (
    METRIC_BY_TASK,
    TASKS_2024,
    make_cell,
    make_class_predictions,
    make_finetuned_cell,
    make_glue_cells,
    make_zero_shot_cells,
    write_run,
)
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from antlm_bench import compare
from antlm_bench.commands.report import build_report
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import (
    DeclarationError,
    IncompleteError,
    NotComparable,
    RunError,
    UsageError,
)
from antlm_bench.reporting.results_table import build_finetune_table
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.results.reports import Report, ReportColumn
from antlm_bench.results.seeds import merge_seed_notes
from antlm_bench.runs import open_run
from antlm_bench.statistics import Z, two_level_mean, weighted_mean
from antlm_bench.suites import loader
from antlm_bench.suites.classification_loader import read_trainings
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.task_types import read_declaration_file
from antlm_bench.types import Cell, Estimate, Summary

PIQA = (
    ("parallel", 32, 104),
    ("nonparallel", 62, 100),
)  # right, of: two halves of equal accuracy, see report_runs

OURS = """
kind = "collection"
name = "ours"
version = "1"
title = "Ours"
"""


def own(folder: Path, members: str) -> str:
    file = folder / "ours.toml"
    file.write_text(OURS + members, encoding="utf-8")
    return str(file)


def only(made: Report) -> ReportColumn:
    (column,) = made.columns
    return column


def marks(column: ReportColumn) -> str:
    """Everything that is said of a column, member by member and task by task."""
    entries = [(entry.score, *entry.task_scores.values()) for entry in column.results]
    numbers = [column.macro_average, *itertools.chain(*entries)]
    return "\n".join(
        [*column.caveats, *(mark for number in numbers if number for mark in number.caveats)]
    )


@pytest.mark.long
def test_the_macro_average_is_that_of_the_leaderboard(tmp_path: Path) -> None:
    column = only(
        build_report(
            [write_run(tmp_path / "m", make_zero_shot_cells("causal") + make_glue_cells())],
            collection="babylm-2024",
        )
    )
    measure = {"f1": f1_score, "mcc": matthews_corrcoef, "accuracy": accuracy_score}
    tasks = []
    for task in TASKS_2024:
        seeds = [make_class_predictions(task, 28 + seed, 40, seed) for seed in (1, 2, 3)]
        per_seed = [
            measure[METRIC_BY_TASK.get(task, "accuracy")]([p.gold for p in s], [p.pred for p in s])
            for s in seeds
        ]
        tasks.append(statistics.mean(per_seed))
        part = column.results[3].task_scores[task]
        assert (part.value, part.sd, part.seeds, part.n) == (
            pytest.approx(tasks[-1]),
            pytest.approx(statistics.stdev(per_seed)),
            3,
            40,
        )
    assert [e.score.value for e in column.results if e.score] == pytest.approx(
        [0.7, 0.6, 0.5, statistics.mean(tasks)]
    )
    assert column.macro_average
    assert column.macro_average.value == pytest.approx(
        statistics.mean([0.7, 0.6, 0.5, statistics.mean(tasks)])
    )
    assert not column.missing_members and not marks(column)


@pytest.mark.long
def test_intervals_of_independent_members_add_up_in_squares(tmp_path: Path) -> None:
    column = only(
        build_report(
            [write_run(tmp_path / "m", make_zero_shot_cells("causal"))], collection="zero-shot-2024"
        )
    )
    scores = [
        result.score for result in column.results if result.score and result.score.low is not None
    ]
    mean = column.macro_average
    assert mean and mean.low is not None and mean.high is not None
    below, above = (
        [abs(score.value - getattr(score, end)) for score in scores] for end in ("low", "high")
    )
    assert mean.value - mean.low == pytest.approx(sum(d**2 for d in below) ** 0.5 / 3)
    assert mean.high - mean.value == pytest.approx(sum(d**2 for d in above) ** 0.5 / 3)
    binomial = [Z * (p * (1 - p) / 100) ** 0.5 for p in (0.7, 0.6, 0.5)]
    assert below == pytest.approx(binomial, abs=0.01)


@pytest.mark.long
def test_weights_are_the_collection_s(tmp_path: Path) -> None:
    members = (
        '[[members]]\nsuite = "blimp-filtered"\nweight = 3\n[[members]]\nsuite = "supplement"\n'
    )
    column = only(
        build_report(
            [write_run(tmp_path / "m", make_zero_shot_cells("causal"))],
            collection=own(tmp_path, members),
        )
    )
    assert column.macro_average and column.macro_average.value == pytest.approx((3 * 0.7 + 0.6) / 4)


def test_a_member_may_be_a_view_or_the_mean_over_groups(tmp_path: Path) -> None:
    run = write_run(tmp_path / "m", [make_cell("blimp-filtered", "causal", 71, 101)])
    members = '[[members]]\nsuite = "blimp-filtered"\nlabel = "{}"\n{}\n'
    both = members.format("micro", 'metric = "micro"') + members.format(
        "groups", 'over = "paradigm"'
    )
    micro, groups = only(build_report([run], collection=own(tmp_path, both))).results
    assert micro.score and micro.score.value == pytest.approx(71 / 101)
    assert groups.score and groups.score.value == pytest.approx((36 / 51 + 35 / 50) / 2)
    with pytest.raises(UsageError, match="no 'phenomenon' of blimp-filtered") as caught:
        build_report([run], collection=own(tmp_path, members.format("x", 'over = "phenomenon"')))
    assert "paradigm" in caught.value.hint


def test_a_member_of_two_suites_is_their_unweighted_mean(tmp_path: Path) -> None:
    """Global PIQA: however many items, each part counts one half, and the row of the leaderboard
    stands beside it.
    """
    parts = [make_cell(f"global-piqa-{part}-2026", "causal", n, of) for part, n, of in PIQA]
    made = build_report(
        [write_run(tmp_path / "m", parts)],
        collection="babylm-2026",
        published=["looped"],
        partial=True,
    )
    at = [member.name for member in made.members].index("Global PIQA")
    number, printed = (column.results[at].score for column in made.columns)
    assert number and number.value == pytest.approx((32 / 104 + 62 / 100) / 2) and number.n == 204
    assert number.low is not None and number.high is not None and not number.caveats
    spread = (0.25 * (32 * 72 / 104**3 + 62 * 38 / 100**3)) ** 0.5  # two binomials, halved
    assert (number.high - number.low) / 2 == pytest.approx(Z * spread, abs=0.003)
    assert printed and printed.value == pytest.approx(0.3467)


def test_a_member_without_one_suite_names_the_command_for_it(
    tmp_path: Path,
) -> None:
    ((part, n, of), _) = PIQA
    run = write_run(tmp_path / "m", [make_cell(f"global-piqa-{part}-2026", "causal", n, of)])
    ref = own(
        tmp_path, '[[members]]\nsuite = "g"\nsuites = ["global-piqa-parallel-2026", "supplement"]\n'
    )
    with pytest.raises(IncompleteError, match=r"lacks g \(supplement\)") as caught:
        build_report([run], collection=ref)
    assert (
        f"antlm-bench score --model m --suite supplement --method causal --out {run}"
        in caught.value.message
    )
    column = only(build_report([run], collection=ref, partial=True))
    assert column.results[0].score and column.results[0].score.value == pytest.approx(32 / 104)
    assert "g: the mean of 1 of 2 suites, without supplement" in column.results[0].score.caveats
    whole = only(build_report([run], collection=ref, stand_ins={"g": "global-piqa-parallel-2026"}))
    assert whole.macro_average and whole.macro_average.value == pytest.approx(32 / 104)


@pytest.mark.long
def test_nothing_is_averaged_over_a_hole(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", make_zero_shot_cells("causal") + make_glue_cells())
    holes = write_run(
        tmp_path / "a b",
        make_zero_shot_cells("mlm")[:2] + make_glue_cells("full", (1,), ("rte", "mrpc")),
    )
    with pytest.raises(IncompleteError, match="so there is no macro-average") as caught:
        build_report([whole, holes], collection="babylm-2024")
    (made,) = caught.value.runs
    assert made.columns[0].macro_average and not made.columns[1].macro_average
    missing = ", ".join(task for task in TASKS_2024 if task not in ("rte", "mrpc"))
    assert made.columns[1].missing_members == ("EWoK", f"GLUE ({missing})")
    assert made.columns[1].results[3].score is None and set(
        made.columns[1].results[3].task_scores
    ) == {
        "rte",
        "mrpc",
    }
    score = f"antlm-bench score --model 'a b' --suite ewok-2025 --method mlm --out '{holes}'"
    assert score in caught.value.message
    finetune = (
        f"antlm-bench finetune --model 'a b' --suite glue-2024 --task {missing.replace(', ', ',')}"
    )
    assert f"{finetune} --attention full" in caught.value.message
    assert "--partial" in caught.value.hint


@pytest.mark.long
def test_partial_averages_what_is_there_and_says_so_everywhere(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "m",
        make_zero_shot_cells("causal")[:2] + make_glue_cells("causal", (1,), ("rte", "sst2")),
    )
    column = only(build_report([run], collection="babylm-2024", partial=True))
    rte = column.results[3].task_scores["rte"].value
    assert column.results[3].score and column.results[3].score.value == pytest.approx(rte)
    assert column.macro_average and column.macro_average.value == pytest.approx(
        (0.7 + 0.6 + rte) / 3
    )
    assert any(
        mark.startswith("partial: averaged without EWoK, GLUE (")
        for mark in column.macro_average.caveats
    )
    assert any("the mean of 2 of 11 tasks" in mark for mark in column.results[3].score.caveats)


@pytest.mark.long
def test_averages_over_different_members_are_no_race(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", make_zero_shot_cells("causal")[:2])
    two = write_run(tmp_path / "two", make_zero_shot_cells("causal")[1:])
    same = write_run(tmp_path / "same", make_zero_shot_cells("causal")[:2])
    marked = [
        marks(c)
        for c in build_report([one, two], collection="zero-shot-2024", partial=True).columns
    ]
    assert all("do not compare" in said for said in marked)
    marked = [
        marks(c)
        for c in build_report([one, same], collection="zero-shot-2024", partial=True).columns
    ]
    assert not any("do not compare" in said for said in marked)


def test_a_collection_without_a_member_to_score_is_finetuned(tmp_path: Path) -> None:
    ref = own(tmp_path, '[[members]]\nsuite = "glue-2024"\nmade_by = "finetune"\ntasks = ["rte"]\n')
    with pytest.raises(UsageError, match="is scored") as caught:
        loader.list_suite_refs(ref)
    assert "finetune --model CKPT --suite glue-2024" in caught.value.hint
    column = only(
        build_report(
            [
                write_run(
                    tmp_path / "m",
                    [make_finetuned_cell("rte", 1, 30), make_finetuned_cell("rte", 2, 32)],
                )
            ],
            collection=ref,
        )
    )
    assert column.macro_average and column.macro_average.value == pytest.approx(31 / 40)


@pytest.mark.long
def test_what_nothing_computes_is_missing_and_said(tmp_path: Path) -> None:
    ref = own(tmp_path, '[[members]]\nsuite = "hidden"\nmade_by = "nothing"\n')
    with pytest.raises(
        IncompleteError, match="hidden: antlm-bench cannot compute hidden yet"
    ) as caught:
        build_report([write_run(tmp_path / "m", make_zero_shot_cells("causal"))], collection=ref)
    assert caught.value.runs[0].columns[0].missing_members == ("hidden",)


def test_an_age_of_acquisition_is_a_member_made_of_several_runs(tmp_path: Path) -> None:
    """Its number is r itself, weighed as the others; missing, it names both commands."""
    ref = own(
        tmp_path,
        '[[members]]\nsuite = "aoa-2026"\nlabel = "AoA"\nmade_by = "acquisition"\n'
        '[[members]]\nsuite = "blimp"\n',
    )
    there = make_cell("blimp", "causal", 70, 100)
    with pytest.raises(IncompleteError, match="lacks AoA") as caught:
        build_report([write_run(tmp_path / "runs" / "main", [there])], collection=ref)
    runs_of_all = tmp_path / "runs"
    command = "score --model FOLDER_OF_CHECKPOINTS --suite aoa-2026 --method causal"
    assert f"{command} --out {runs_of_all}\n" in str(
        caught.value
    ) and f"antlm-bench acquisition {runs_of_all} --suite aoa-2026" in str(caught.value)
    estimate = Estimate(-0.2, 240, -0.3, -0.1)
    note = "Pearson's r = 0.05 counts as 0, since p > 0.1: p = 0.2"
    summary = Summary("aoa-2026", "causal", "acquisition", (), estimate, {}, (), (note,))
    cell = Cell("aoa-2026", "causal", "k", {}, summary)
    curve = PredictionRow("cat", 20.0, 0, (-3.0, -2.0, -1.0), (1,) * 3, (3,) * 3)
    column = only(
        build_report([write_run(tmp_path / "whole", [there, (cell, [curve])])], collection=ref)
    )
    assert column.macro_average and column.macro_average.value == pytest.approx((-0.2 + 0.7) / 2)
    assert column.results[0].score and any(
        "counts as 0" in mark for mark in column.results[0].score.caveats
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("methods", "ways", "pairs"),
    [
        (("causal",), ("causal",), [("causal", "causal", False)]),
        (("mlm", "mlm-l2r"), ("full",), [("mlm", "full", False), ("mlm-l2r", "full", False)]),
        (
            ("causal", "mntp"),
            ("causal", "full"),
            [("causal", "causal", False), ("mntp", "full", False)],
        ),
        (("causal", "mntp"), ("full",), [("causal", "full", True), ("mntp", "full", False)]),
        (("mntp", "fused"), ("causal",), [("mntp", "causal", True), ("fused", "causal", True)]),
        (("fused",), ("causal", "full"), [("fused", "full", True)]),
        (
            (),
            ("causal", "full"),
            [("finetune-causal", "causal", False), ("finetune-full", "full", False)],
        ),
    ],
)
def test_glue_stands_beside_scores_of_the_same_attention(
    tmp_path: Path,
    methods: tuple[str, ...],
    ways: tuple[str, ...],
    pairs: list[tuple[str, str, bool]],
) -> None:
    right = {"causal": 30, "full": 35}
    cells = [make_cell("blimp-filtered", method, 70, 100) for method in methods]
    cells += [make_finetuned_cell("rte", 1, right[way], way=way) for way in ways]
    members = '[[members]]\nsuite = "blimp-filtered"\n'
    members += '[[members]]\nsuite = "glue-2024"\nmade_by = "finetune"\ntasks = ["rte"]\n'
    made = build_report(
        [write_run(tmp_path / "m", cells)], collection=own(tmp_path, members), partial=True
    )
    found = []
    for column in made.columns:
        number = column.results[1].score
        assert number
        way = next(way for way, count in right.items() if number.value == pytest.approx(count / 40))
        found.append((column.method, way, f"finetuned with {way} attention" in marks(column)))
    assert found == pairs
    unused = set(ways) - {way for _, way, _ in pairs}
    assert all((f"also finetuned with {way} attention" in marks(made.columns[0])) for way in unused)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"collapsed": ["constant prediction"]},
            "rte: 1 of 2 seeds collapsed (constant prediction)",
        ),
        ({"select": "valid"}, "selected on the scored split"),
        ({"preset": "babylm-2025"}, "settings of babylm-2025"),
        ({"lr": 1e-3}, "seeds of different settings: lr 0.001 / 5e-05"),
        ({"notes": ["limit: 20 of 40 train rows, evenly spaced"]}, "limit: 20 of 40"),
        ({"notes": ["boolq: trained on a substitute"]}, "trained on a substitute"),
    ],
)
def test_doubts_of_a_seed_are_marked_at_task_member_and_average(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    cells = make_zero_shot_cells("causal") + make_glue_cells(
        seeds=(1, 2), tasks=[t for t in TASKS_2024 if t != "rte"]
    )
    cells += [
        make_finetuned_cell("rte", 1, 30, **change),
        make_finetuned_cell(
            "rte", 2, 30, **({"preset": "babylm-2025"} if "preset" in change else {})
        ),
    ]
    column = only(build_report([write_run(tmp_path / "m", cells)], collection="babylm-2024"))
    glue_entry = column.results[3]
    assert glue_entry.score and column.macro_average
    for number in (glue_entry.task_scores["rte"], glue_entry.score, column.macro_average):
        assert any(sentence in mark for mark in number.caveats)
        assert any(mark.startswith("2 seeds estimate") for mark in number.caveats)
    assert len(glue_entry.task_scores["wsc"].caveats) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (
            make_cell("blimp-filtered", "causal", 7, 9, ["incomplete: 9 of 99 pairs (short)"]),
            "incomplete: 9 of 99",
        ),
        (
            make_cell("blimp-filtered", "causal", 7, 9, ["limit: the first 9 of each paradigm"]),
            "limit: the first 9",
        ),
        (make_cell("blimp-filtered", "causal", 7, 9, compat="lm-eval"), "conventions of lm-eval"),
        (
            make_cell("blimp-filtered", "causal", 7, 9, ties="first"),
            "A tie goes to the first option",
        ),
        (
            make_cell("blimp-filtered", "causal", 7, 9, suite_digest="other"),
            "not the items of a (causal)",
        ),
    ],
)
def test_doubts_of_a_scored_suite_are_marked(
    tmp_path: Path, cell: tuple[object, ...], sentence: str
) -> None:
    runs = [
        write_run(tmp_path / "a", make_zero_shot_cells("causal")),
        write_run(tmp_path / "b", [cell, *make_zero_shot_cells("causal")[1:]]),
    ]
    first, second = build_report(runs, collection="zero-shot-2024").columns
    assert sentence in marks(second) and not marks(first)
    assert second.macro_average and any(sentence in mark for mark in second.macro_average.caveats)


@pytest.mark.long
def test_one_seed_is_said(tmp_path: Path) -> None:
    column = only(
        build_report(
            [
                write_run(
                    tmp_path / "m", make_zero_shot_cells("causal") + make_glue_cells(seeds=(1,))
                )
            ],
            collection="babylm-2024",
        )
    )
    assert "one seed: the interval is over items only, not over seeds" in marks(column)


@pytest.mark.long
def test_a_stand_in_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "m", make_zero_shot_cells("causal", ewok="ewok-fast-2025"))
    with pytest.raises(IncompleteError):  # never silently
        build_report([run], collection="zero-shot-2024")
    made = build_report(
        [run],
        collection="babylm-2024",
        stand_ins={"ewok": "ewok-fast-2025"},
        partial=True,
        published=(),
    )
    assert made.members[2].name == "EWoK (ewok-fast-2025)"
    assert made.columns[0].results[2].score
    assert all(
        column.results[2].score is None for column in made.columns[1:]
    )  # they are of the other suite
    with pytest.raises(UsageError, match="no member 'ewk'") as caught:
        build_report([run], collection="babylm-2024", stand_ins={"ewk": "ewok-fast-2025"})
    assert "did you mean" in caught.value.hint


@pytest.mark.long
def test_published_rows_stand_beside_with_their_source_and_no_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path / "m", make_zero_shot_cells("causal") + make_glue_cells())
    made = build_report([run], collection="babylm-2024", published=["ltg-bert 10m, org"])
    row = made.columns[1]
    assert [100 * e.score.value for e in row.results if e.score] == pytest.approx(
        [60.6, 60.8, 48.9, 60.3]
    )
    assert (
        row.macro_average
        and row.macro_average.value == pytest.approx(0.577)
        and row.macro_average.low is None
    )
    assert "evaluation-pipeline-2024" in row.source and "doubtful" in marks(row)
    assert len(build_report([run], collection="babylm-2024", published=()).columns) == 1 + 10
    assert len(build_report([run], collection="babylm-2024").columns) == 1
    with pytest.raises(
        UsageError, match="no name of a published row of babylm-2024 contains 'palm'"
    ):
        build_report([run], collection="babylm-2024", published=["palm"])


@pytest.mark.long
def test_without_a_collection_the_suites_stand_side_by_side(tmp_path: Path) -> None:
    one = write_run(
        tmp_path / "one",
        [
            make_cell("nano", "causal", 3, 4),
            make_finetuned_cell("rte", 1, 30),
            make_finetuned_cell("rte", 2, 32),
        ],
    )
    two = write_run(
        tmp_path / "two",
        [make_cell("mine", "causal", 1, 4), make_finetuned_cell("wsc", 1, 30, way="full")],
    )
    made = build_report([tmp_path])
    assert [member.name for member in made.members] == ["nano", "glue-2024", "mine"]
    assert sorted(made.members[1].tasks) == sorted(TASKS_2024)
    assert {column.run for column in made.columns} == {str(one), str(two)}
    assert all(
        column.macro_average is None and not column.missing_members for column in made.columns
    )
    assert made.columns[0].results[1].task_scores["rte"].value == pytest.approx(31 / 40)
    score = made.columns[0].results[1].score
    assert score and any("the mean of 1 of 11 tasks" in caveat for caveat in score.caveats)


def test_a_metric_undefined_for_one_seed_counts_as_0_in_the_mean() -> None:
    note = "mcc undefined (only one class is predicted): shown as 0"
    undefined, other = (
        make_finetuned_cell("cola", seed, 30, notes=notes)[0]
        for seed, notes in ((1, [note]), (2, []))
    )
    shown = note.replace("shown as 0", "counts as 0 in the mean") + " (seed 1)"
    assert merge_seed_notes([undefined]) == [note]
    assert merge_seed_notes([undefined, other]) == [shown]


def test_tasks_of_one_training_do_not_count_as_independent_seeds() -> None:
    values = np.array([[0.6] * 50, [0.8] * 50, [0.7] * 50])  # only seeds vary
    task = two_level_mean(values)
    shared = weighted_mean([task, task], trainings=["mnli", "mnli"])
    apart = weighted_mean([task, task], trainings=["mnli", "rte"])
    assert shared.variance == pytest.approx(task.variance)  # the mean of equal values
    assert apart.variance == pytest.approx(task.variance / 2)
    assert shared.df == pytest.approx(2)
    assert read_trainings("glue-2024")["mnli-mm"] == "mnli"


@pytest.mark.long
def test_without_a_collection_both_attentions_have_columns(tmp_path: Path) -> None:
    cells = [
        make_cell("nano", "causal", 3, 4),
        make_finetuned_cell("rte", 1, 30),
        make_finetuned_cell("rte", 1, 32, way="full"),
    ]
    assert [c.method for c in build_report([write_run(tmp_path / "m", cells)]).columns] == [
        "causal",
        "finetune-full",
    ]


@pytest.mark.long
def test_bad_input_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "m", make_zero_shot_cells("causal") + make_glue_cells(seeds=(1,)))
    with pytest.raises(RunError, match="not a run folder"):
        build_report([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no run folder"):
        build_report([])
    with pytest.raises(UsageError, match="not a collection"):
        build_report([run], collection="nano")
    with pytest.raises(DeclarationError, match="unknown suite"):
        build_report([run], collection="babylm-2042")
    for asked in ({"partial": True}, {"published": ()}, {"stand_ins": {"a": "b"}}):
        with pytest.raises(UsageError, match="only a collection"):
            build_report([run], **asked)  # type: ignore[arg-type]
    (run / "predictions" / "glue-2024.rte.finetune-causal.seed1.parquet").write_bytes(b"")
    with pytest.raises(RunError, match=r"not the bytes that run\.json describes"):
        build_report([run], collection="babylm-2024")


def test_seeds_that_answered_other_items_are_refused(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "m", [make_finetuned_cell("rte", 1, 30), make_finetuned_cell("rte", 2, 30, n=41)]
    )
    with pytest.raises(NotComparable, match="40 items"):
        build_report([run])


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ('suite = "glue-2024"\nmade_by = "finetune"', "`tasks` and made_by"),
        ('suite = "blimp"\ntasks = ["rte"]', "`tasks` and made_by"),
        ('suite = "g"\nsuites = ["a"]\nmade_by = "nothing"', "`suites` needs made_by"),
        ('suite = "blimp"\nover = "field"\nmetric = "micro"', "`over` needs made_by"),
        ('suite = "blimp"\nweight = 0', "greater than 0"),
        ('suite = "blimp"\nwieght = 2', "did you mean 'weight'?"),
        ('suite = "blimp"\n[[members]]\nsuite = "blimp"', "two members are called 'blimp'"),
        (
            'suite = "blimp"\n[[published]]\nname = "A"\nsource = "B"\nvalues = { blmp = 1 }',
            "did you mean 'blimp'?",
        ),
    ],
)
def test_a_slip_in_a_collection_names_its_place(
    tmp_path: Path, member: str, complaint: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        build_report([tmp_path], collection=own(tmp_path, f"[[members]]\n{member}\n"))
    assert complaint in str(caught.value) and "ours.toml" in caught.value.location


def collection(name: str) -> CollectionSpec:
    spec = read_declaration_file(list_declarations("tasks")[name])
    assert isinstance(spec, CollectionSpec)
    return spec


def test_published_averages_of_2024_reproduce_from_their_members() -> None:
    rows = [row for row in collection("babylm-2024").published if row.macro_average is not None]
    assert len(rows) == 6
    for row in rows:
        assert statistics.mean(row.values.values()) == pytest.approx(
            row.macro_average, abs=0.0501
        ), row.name


def test_published_averages_of_2026_reproduce_as_its_notes_say() -> None:
    """NLP average = mean of seven tasks, a missing one counted as 0; overall = those, reading and
    AoA by weight.
    """
    spec = collection("babylm-2026")
    text = [m.name for m in spec.members if m.weight == 1 and m.name != "Age of acquisition"]
    assert len(text) == 7 and sum(member.weight for member in spec.members) == 9
    nlp = {
        "GPT-2 (124M) 10M": 48.99,
        "GPT-BERT causal-focus 10M": 35.64,
        "Looped GPT-BERT 10M": 48.48,
    }
    for row in spec.published[:3]:
        assert sum(row.values.values()) / 7 == pytest.approx(nlp[row.name], abs=0.006)
    causal = spec.published[1]
    reading = {
        "Eye tracking": 9.89,
        "Self-paced reading": 3.45,
    }  # the same model in the README of 2025
    weights = {member.name: member.weight for member in spec.members}
    whole = sum(weights[name] * score for name, score in {**causal.values, **reading}.items()) / 9
    assert whole == pytest.approx(causal.macro_average, abs=0.006)


@pytest.mark.parametrize("year", ["2025", "2026"])
def test_reading_counts_once_and_so_does_the_age_of_acquisition(year: str) -> None:
    """Of reading times the suite that BabyLM publishes; `reading` attaches words otherwise, and is
    in no average.
    """
    spec = collection(f"babylm-{year}")
    weights = {(member.suite, member.view): member.weight for member in spec.members}
    assert (
        weights["reading-2025", "eye-tracking"]
        == weights["reading-2025", "self-paced-reading"]
        == 0.5
    )
    assert weights[f"aoa-{year}", ""] == 1 and "reading" not in {
        member.suite for member in spec.members
    }
    assert sum(weights.values()) == len(spec.members) - 1


@pytest.mark.long
def test_the_table_is_printed_before_the_missing_members(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "m", make_zero_shot_cells("causal"))
    argv = ["report", str(run), "--collection", "babylm-2024", "--json"]
    code = "import sys; from antlm_bench.cli.app import run; rc = run(sys.argv[1:]); "
    code += "print(*sys.modules, file=sys.stderr); "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(rc)", *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert json.loads(done.stdout)["columns"][0]["missing"] == ["GLUE"]
    assert "antlm-bench finetune --model m --suite glue-2024" in done.stderr
    assert not {"torch", "transformers", "sklearn", "statsmodels", "altair"} & set(
        done.stderr.split()
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ([], "RUN..."),
        (["x", "--member", "ewok"], "is not MEMBER=SUITE"),
        (["x", "--json", "--latex"], "exclude each other"),
        (["x", "--collection", "babylm-2O24"], "did you mean 'babylm-2024'?"),
    ],
)
def test_a_slip_on_the_command_line_is_exit_code_2(
    line: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from antlm_bench.cli.app import run

    assert run(["report", *line]) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.long
def test_two_kinds_of_finetuning_in_one_folder_are_marked(tmp_path: Path) -> None:
    """Seed 1 by our settings, seed 42 by --compat babylm-2025: table, JSON and comparison."""
    mixed = [
        make_finetuned_cell("rte", 1, 30),
        make_finetuned_cell("rte", 42, 30, preset="babylm-2025", select="valid"),
    ]
    pure = [make_finetuned_cell("rte", seed, 30) for seed in (1, 42)]
    runs = [
        open_run(write_run(tmp_path / name, cells))
        for name, cells in (("mixed", mixed), ("pure", pure))
    ]
    mark = "seeds of different settings: "

    for name in ("table", "json"):
        text = " ".join(FORMATS[name].write(build_finetune_table(runs[:1])).split())
        assert mark in text
        assert mark not in " ".join(FORMATS[name].write(build_finetune_table(runs[1:])).split())
    [comparison] = compare(runs, allow_mixed=True)
    assert any(mark in note for each in comparison.comparisons for note in each.notes)
