"""Results of lm-eval that are cut off, contradict themselves or are damaged: left out and named, or
an error.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_rows import read_rows

from antlm_bench.cli.app import run as cli
from antlm_bench.commands.export import import_results
from antlm_bench.errors import BenchError, DataError
from antlm_bench.lm_eval_bridge.results_import import read_results

STAMP = "2025-01-01T00-00-00"
Row = dict[str, Any]
Write = Callable[..., Path]


def sample(
    doc: object, scores: list[float], target: object, acc: float, choices: list[str] | None = None
) -> Row:
    """A sample as lm-eval 0.4.13 writes it."""
    choices = choices or [f"choice {n}" for n in range(len(scores))]
    return {
        "doc_id": doc,
        "target": target,
        "acc": acc,
        "arguments": {
            f"gen_args_{n}": {"arg_0": "c", "arg_1": f" {text}"} for n, text in enumerate(choices)
        },
        "filtered_resps": [[str(score), "False"] for score in scores],
        "filter": "none",
        "doc_hash": f"{doc}",
        "prompt_hash": "p",
        "target_hash": "t",
    }


RIGHT = [sample(n, [-1.0, -2.0], "0", 1.0) for n in range(5)]


def document(**tasks: list[Row]) -> Row:
    """A file of results in which every task is as its samples say."""
    return {
        "results": {
            name: {"acc,none": sum(r["acc"] for r in rows) / len(rows)}
            for name, rows in tasks.items()
        },
        "group_subtasks": {},
        "configs": {name: {"target_delimiter": " "} for name in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {
            name: {"original": len(rows), "effective": len(rows)} for name, rows in tasks.items()
        },
        "config": {"model": "hf", "model_args": "pretrained=m", "limit": None},
        "date": 1.7e9,
        "model_name": "m",
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(task=samples, results=...) -> the folder of a file of results with its samples."""

    def made(results: Any = None, **tasks: list[Row]) -> Path:
        folder = tmp_path / "results"
        folder.mkdir(exist_ok=True)
        results = document(**tasks) if results is None else results
        (folder / f"results_{STAMP}.json").write_text(json.dumps(results))
        for name, rows in tasks.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"samples_{name}_{STAMP}.jsonl").write_text(lines)
        return folder

    return made


def left_out(folder: Path) -> str:
    """What is said of the task `bad`, while the task `good` comes in."""
    imported = read_results(folder)
    assert [cell.suite for cell, _ in imported.cells] == ["lm-eval.good"]
    (line,) = imported.skipped_tasks
    assert line.startswith("bad: ")
    return line


def test_fewer_samples_than_the_results_say_are_left_out(write: Write) -> None:
    results = document(good=RIGHT, bad=RIGHT)
    assert "it has 2 samples, but n-samples is 5" in left_out(
        write(results, good=RIGHT, bad=RIGHT[:2])
    )


@pytest.mark.long
@pytest.mark.parametrize("reported", [0.2, 0, float("nan"), 1.1])
def test_a_mean_that_contradicts_the_results_is_left_out(reported: float, write: Write) -> None:
    results = document(good=RIGHT, bad=RIGHT)
    results["results"]["bad"]["acc,none"] = reported
    assert "samples is 1.0000, but" in left_out(write(results, good=RIGHT, bad=RIGHT))


@pytest.mark.long
def test_the_mean_is_that_of_the_samples_own_filter(write: Write) -> None:
    results = document(good=RIGHT, bad=RIGHT)
    results["results"]["bad"] = {"acc,none": 0.2, "acc,upper": 1.0}
    rows = [row | {"filter": "upper"} for row in RIGHT]
    assert len(read_results(write(results, good=RIGHT, bad=rows)).cells) == 2


def test_a_document_with_two_answers_is_an_error(write: Write) -> None:
    rows = [*RIGHT, sample(3, [-3.0, -2.0], "0", 0.0)]
    with pytest.raises(DataError, match="two samples of doc_id 3 have different answers") as caught:
        read_results(write(document(t=RIGHT), t=rows))
    assert caught.value.location.endswith(f"samples_t_{STAMP}.jsonl:6")


def test_a_sample_without_doc_id_is_an_error_with_its_line(write: Write) -> None:
    rows = [RIGHT[0], {key: value for key, value in RIGHT[1].items() if key != "doc_id"}]
    with pytest.raises(DataError, match=r"jsonl:2: a sample has no `doc_id`"):
        read_results(write(t=rows))


def test_a_target_that_is_a_number_may_be_a_text(write: Write) -> None:
    """lm-eval's own acc tells text from index: here the first option is best, and right once."""
    rows = [
        sample(n, [-1.0, -2.0, -3.0], "3" if n else "1", float(not n), ["1", "2", "3"])
        for n in range(4)
    ]
    [(_, predictions)] = read_results(write(t=rows)).cells
    assert predictions.gold.tolist() == [0, 2, 2, 2]


def test_a_target_that_is_an_index_stays_one_among_numbers(write: Write) -> None:
    """The second option, "1", is best; as a text the target 1 would be it, and every acc 1."""
    rows = [sample(n, [-2.0, -3.0, -1.0], "2", 1.0, ["2", "0", "1"]) for n in range(3)]
    [(_, predictions)] = read_results(write(t=rows)).cells
    assert predictions.gold.tolist() == [2, 2, 2]


@pytest.mark.long
@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            sample(0, [-1.0, -2.0, -3.0], "7", 0.0),
            "item 0: the target '7' is none of its 3 options",
        ),
        (sample(0, [-1.0, -2.0], -1, 0.0), "item 0: the target '-1' is none of its 2 options"),
        (sample(0, [-1.0, -2.0], [0, 1], 1.0), "the target '[0, 1]' is none of its 2 options"),
        (
            sample(0, [float("nan"), -2.0], "0", 0.0),
            "item 0: the log-probability of option 1 is nan",
        ),
        (
            sample(0, [-1.0, float("nan")], "0", 1.0),
            "item 0: the log-probability of option 2 is nan",
        ),
        (sample(0, [-1.0], "0", 1.0), "no choice (loglikelihood)"),
        (
            sample(0, [-1.0, -2.0], "0", 0.0),
            "item 0: its log-probabilities do not give lm-eval's acc",
        ),
    ],
)
def test_one_odd_task_is_left_out_and_the_others_come_in(
    row: Row, words: str, write: Write
) -> None:
    assert words in left_out(write(good=RIGHT, bad=[row]))


def test_tasks_without_samples_are_named_in_one_sentence(tmp_path: Path) -> None:
    names = [f"task_{number}" for number in range(60)]
    file = tmp_path / "results_1.json"
    file.write_text(json.dumps(document(**dict.fromkeys(names, RIGHT))))
    with pytest.raises(DataError, match="no samples: run with --log_samples") as caught:
        read_results(tmp_path)
    assert caught.value.message.count("no samples") == 1
    assert "task_0, task_1" in caught.value.message and len(caught.value.message) < 400


def test_an_odd_task_alone_is_not_told_to_log_samples(write: Write) -> None:
    with pytest.raises(DataError, match="nothing to import") as caught:
        read_results(write(t=[sample(0, [-1.0, -2.0], -1, 0.0)]))
    assert "log_samples" not in caught.value.hint and "one right option" in caught.value.hint


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group_subtasks": {"g": ["h"], "h": ["g"], "k": ["t", "h"]}}, "contains itself"),
        ({"group_subtasks": {"g": ["t", "g"]}}, "'g' contains itself"),
        ({"group_subtasks": {"g": "t"}}, "`group_subtasks` of 'g' is not a list of names"),
        ({"versions": [1]}, "`versions` is not a table"),
        ({"configs": [1]}, "`configs` is not a table"),
        ({"configs": {"t": [1]}}, "`configs` of 't' is not a table"),
        ({"n-shot": 3}, "`n-shot` is not a table"),
        ({"task_hashes": [1]}, "`task_hashes` is not a table"),
        ({"n-samples": {"t": 3}}, "`n-samples` of 't' is not a table"),
        ({"results": {"t": None}}, "`results` of 't' is not a table"),
    ],
)
def test_damaged_tables_are_named(
    changes: Row, words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(document(t=RIGHT) | changes, t=RIGHT)
    assert cli(["import", str(folder), "--out", str(folder / "run")]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and f"results_{STAMP}.json" in said
    assert not (folder / "run").exists()


@pytest.mark.long
def test_groups_that_nest_deep_and_share_tasks_come_in(write: Write) -> None:
    """A chain of two thousand groups, each holding the next one twice: no recursion, and no
    doubling.
    """
    groups = {f"g{n}": [f"g{n + 1}", f"g{n + 1}"] for n in range(2000)} | {"g2000": ["a", "b"]}
    (cell,) = read_results(
        write(document(a=RIGHT, b=RIGHT) | {"group_subtasks": groups}, a=RIGHT, b=RIGHT)
    ).cells
    assert cell[0].suite == "lm-eval.g0" and len(cell[1]) == 10


# ---- any damage
# --------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "t", "0", "nan", "\ud800"])
)
KEYS = st.sampled_from(["t", "u", "g", "h"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=6,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every part of a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [above, *(path for key, part in inner for path in places(part, (*above, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = changed(value[path[0]], path[1:], new)
    return value


WHOLE = [
    document(t=RIGHT[:2], u=RIGHT[:2])
    | {"group_subtasks": {"g": ["t", "u"]}, "groups": {"g": {"acc,none": 1.0}}},
    RIGHT[:2],
]


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(places(WHOLE)[1:]), VALUES), min_size=1, max_size=2))
def test_any_damage_is_an_error_of_ours_or_comes_in(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    changes: list[tuple[Any, Any]],
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # nothing waits for the disk
    results, rows = copy.deepcopy(WHOLE)
    for path, new in changes:
        with suppress(
            KeyError, IndexError, TypeError
        ):  # the first change took away what the second is about
            results, rows = changed([results, rows], path, new)
    folder = tmp_path_factory.mktemp("damaged")
    (folder / f"results_{STAMP}.json").write_text(json.dumps(results))
    lines = rows if isinstance(rows, list) else [rows]
    for task, some in (("t", lines), ("u", RIGHT[:2])):
        (folder / f"samples_{task}_{STAMP}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in some)
        )
    try:
        run, _ = import_results(folder, folder / "run")
    except BenchError as error:
        assert error.message
        return
    for cell in run:
        assert read_rows(run.path, cell)
