"""Arguments of the functions of `antlm_bench`: names of the command line, one or several, types."""

from __future__ import annotations

import csv
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pair_runs import (
    PHENOMENON_BY_PARADIGM,
    draw_logprob_gaps,
    make_cell,
    make_predictions,
    write_run,
    write_toy_run,
)
from tiny_models import build_model, train_tokenizer
from typer.main import get_command

import antlm_bench
from antlm_bench.arguments import _convert, describe_type
from antlm_bench.cli.app import build_app, run
from antlm_bench.commands.finetune import FinetuneOptions
from antlm_bench.commands.score import ScoreOptions
from antlm_bench.commands.train import TrainOptions
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.keywords import COMMAND_LINE_NAMES, OUTPUT_OPTIONS
from antlm_bench.types import MethodPairs, Names

OPTIONS = {"score": ScoreOptions, "finetune": FinetuneOptions, "train": TrainOptions}
NAMES = ("score", "finetune", "train", "compare", "check", "report", "load_run", "load_suite")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    first, second = draw_logprob_gaps(20, 0.9, seed=1), draw_logprob_gaps(20, 0.6, seed=2)
    return write_toy_run(folder / "a", first).path, write_toy_run(folder / "b", second).path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint") / "main"
    train_tokenizer("causal", True).save_pretrained(folder)
    build_model("causal", 0).save_pretrained(folder)
    return str(folder)


def list_keywords(name: str) -> set[str]:
    """Return the keywords of a function, those of its options included."""
    fields = OPTIONS[name].__dataclass_fields__ if name in OPTIONS else ()
    return {*inspect.signature(getattr(antlm_bench, name)).parameters, *fields}


# ---- names


@pytest.mark.parametrize("name", ["score", "finetune", "train", "compare", "check", "report"])
def test_options_of_the_command_line_are_keywords(name: str) -> None:
    parameters = get_command(build_app()).commands[name].params  # type: ignore[attr-defined]
    options = {
        flag.lstrip("-").replace("-", "_")
        for parameter in parameters
        for flag in parameter.opts
        if flag.startswith("--")
    }
    options -= {*OUTPUT_OPTIONS, "help", "config", "no_config"}  # Python reads no such file
    keywords = list_keywords(name)
    unknown = [
        option
        for option in options
        if option not in keywords and COMMAND_LINE_NAMES.get(option) not in keywords
    ]
    assert options and not unknown


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_keyword_is_named_with_the_nearest(name: str) -> None:
    keyword = next(k for k in reversed(list(inspect.signature(ALL[name]).parameters)) if k != "_")
    keyword = {"settings": "options"}.get(keyword, keyword)
    with pytest.raises(
        UsageError, match=rf"{name}\(\): there is no keyword '{keyword}x'"
    ) as raised:
        ALL[name](**{f"{keyword}x": 1})
    assert str(raised.value) == (
        f"{name}(): there is no keyword '{keyword}x'\n  hint: did you mean {keyword!r}?"
    )


ALL: dict[str, Callable[..., Any]] = {name: getattr(antlm_bench, name) for name in NAMES}


def test_an_option_of_the_output_is_no_keyword() -> None:
    with pytest.raises(UsageError, match="the function returns data"):
        ALL["score"]("model", "nano", format="json")


def test_a_missing_and_a_double_argument_are_usage_errors(two: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"score\(\): missing a required argument: 'suites'"):
        ALL["score"]("model")
    with pytest.raises(UsageError, match="methods and method are the same"):
        ALL["compare"](*two, methods="causal", method="causal")
    with pytest.raises(UsageError, match=r"check\(\): too many positional arguments"):
        ALL["check"](*two, "more")


@pytest.mark.long
@pytest.mark.parametrize("method", ["causal", ["causal"], ("causal",), "causal,causal"])
def test_score_takes_method_as_the_command_line_does(
    checkpoint: str, tmp_path: Path, method: Any
) -> None:
    arguments: dict[str, Any] = {"limit": np.int64(1), "out": tmp_path / "run"}
    [scored] = antlm_bench.score(checkpoint, "nano", method=method, **arguments)
    [same] = antlm_bench.score(checkpoint, ["nano"], methods=method, **arguments)
    assert scored == same and [cell.method for cell in scored] == ["causal"]


@pytest.mark.long
@pytest.mark.parametrize("method", ["causal", "causal=causal", ["causal"], [("causal", "causal")]])
def test_compare_and_check_take_method_pairs(two: tuple[str, str], method: Any) -> None:
    [compared] = antlm_bench.compare(*two, method=method, suite="toy")
    checked = antlm_bench.check(two[1], two[0], method=method, suites=["toy"])
    assert [c.suite for c in compared.comparisons] == ["toy"]
    assert checked.verdicts[0].comparison == compared.comparisons[0]


def test_a_method_of_neither_run_is_an_error(two: tuple[str, str]) -> None:
    with pytest.raises(BenchError, match="no method is in both runs"):
        antlm_bench.compare(*two, method="mlm=causal", suites="toy")
    with pytest.raises(UsageError, match="'mlm=' needs a method before and after ="):
        antlm_bench.compare(*two, method="mlm=")


def test_seeds_may_be_a_number_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no seed given"):
        antlm_bench.finetune("model", "glue-2025", seeds=0)
    with pytest.raises(UsageError, match="seeds is 'one'"):
        ALL["finetune"]("model", "glue-2025", seeds="one")


# ---- one or several


@pytest.mark.long
def test_one_run_or_several_in_every_form(two: tuple[str, str]) -> None:
    opened = [antlm_bench.load_run(folder) for folder in two]
    forms = [two, [list(two)], [Path(two[0]), opened[1]], [iter(two)], [np.array(two)]]
    expected = antlm_bench.compare(list(two))
    assert all(ALL["compare"](*form) == expected for form in forms)
    assert ALL["compare"](folders=two) == expected
    assert antlm_bench.compare(two[1], against=opened[0]) == expected
    report = antlm_bench.report(list(two))
    assert antlm_bench.report(*two) == ALL["report"](runs=opened) == report
    assert (
        len(antlm_bench.report(two[0]).columns) == len(antlm_bench.report(opened[0]).columns) == 1
    )


@pytest.mark.parametrize("value", ["", [], (), iter(())])
@pytest.mark.parametrize(
    ("name", "argument"),
    [("score", "models"), ("score", "suites"), ("finetune", "suites"), ("load_run", "path")],
)
def test_an_empty_argument_is_named(name: str, argument: str, value: Any) -> None:
    arguments = {"models": "m", "suites": "nano"} if name != "load_run" else {}
    with pytest.raises(UsageError, match=f"{argument} is "):
        ALL[name](**{**arguments, argument: value})


# ---- types


@pytest.mark.parametrize(
    ("name", "args", "keywords", "message"),
    [
        (
            "score",
            ("m", "s"),
            {"limit": 1.5},
            "limit is 1.5 (float); it must be an integer or None",
        ),
        ("score", ("m", "s"), {"limit": "3"}, "limit is '3' (str); it must be an integer or None"),
        ("score", ("m", "s"), {"limit": True}, "limit is True (bool)"),
        ("score", ("m", "s"), {"options": ScoreOptions(limit=1.5)}, "limit is 1.5 (float)"),  # type: ignore[arg-type]
        ("score", (None, "s"), {}, "models is None (NoneType); it must be a sequence (each"),
        ("score", ({"m": 1}, "s"), {}, "models is {'m': 1} (dict)"),
        ("check", ("a", "b"), {"margin": "1.0"}, "margin is '1.0' (str); it must be a number or N"),
        ("compare", (None,), {}, "folders is None"),
        ("report", ({"a", "b"},), {}, "runs is {"),
        ("train", ("r", "c", None), {}, "out is None (NoneType); it must be a string or a path"),
        ("load_run", (None,), {}, "path is None (NoneType); it must be a string or a path"),
        ("load_suite", (None,), {}, "ref is None (NoneType); it must be a string"),
    ],
)
def test_a_wrong_type_is_named_with_value_and_type(
    name: str, args: tuple[Any, ...], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        ALL[name](*args, **keywords)
    assert message in str(raised.value) and raised.value.location == f"{name}()"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (np.int32(3), int | None, 3),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        (Path("a"), str | None, "a"),
        (Path("a"), str | Path, Path("a")),
        ({"a": 1}.keys(), Names, ["a"]),
        ([["a", "b"]], MethodPairs, [("a", "b")]),
    ],
)
def test_values_of_numpy_and_paths_are_converted(value: Any, hint: Any, expected: Any) -> None:
    converted = _convert(value, hint)
    assert converted == expected and type(converted) is type(expected)


def test_types_are_described_in_words() -> None:
    assert describe_type(int | None) == "an integer or None"
    assert describe_type(MethodPairs) == (
        "a sequence (each a string or a tuple (a string, a string)) or a string"
    )


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=2)), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([{1}, object(), int, np.zeros(2), Path("x"), 1j, len]),
)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_random_values_end_in_a_bench_error_or_a_result(
    name: str, data: st.DataObject, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model exists, so that nothing is downloaded, scored or trained."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    positional: dict[str, tuple[Any, ...]] = {
        "score": ("/no/model", "nano"),
        "finetune": ("/no/model", "glue-2025"),
        "train": ("no-recipe", "/no/corpus", "/dev/null/out"),
        "compare": two,
        "check": two,
        "report": two,
        "load_run": (two[0],),
        "load_suite": ("nano",),
    }
    keywords = sorted(list_keywords(name) - {"_", "settings", "folders", "runs"})
    parameters = list(inspect.signature(ALL[name]).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    drawn = data.draw(
        st.dictionaries(st.sampled_from(keywords), VALUES, min_size=1, max_size=2), label="keywords"
    )
    args = list(positional[name])
    if name in ("compare", "report"):
        args = data.draw(st.sampled_from([args, [data.draw(VALUES)]]), label="runs")
        arguments: dict[str, Any] = drawn
    else:
        arguments = {**dict(zip(required, args, strict=True)), **drawn}
        args = []
    drawn.pop("out", None)  # a valid path would be a folder to write to
    try:
        ALL[name](*args, **arguments)
    except BenchError as error:
        assert str(error)


# ---- what is shown


def test_reprs_are_one_short_line(two: tuple[str, str]) -> None:
    opened = antlm_bench.load_run(two[0])
    assert repr(opened).startswith("<Run ") and "toy (causal)" in repr(opened)
    assert repr(opened["toy"]) == f"<Cell toy (causal): {opened['toy'].estimate.value:.4f}>"
    report = antlm_bench.report(two)
    assert repr(report).startswith("<Report of runs: ") and "toy" in repr(report)
    [compared] = antlm_bench.compare(two)
    suite = antlm_bench.load_suite("nano")
    checked = antlm_bench.check(two[1], two[0])
    for value in (opened, opened["toy"], report, compared, checked, suite, *compared.comparisons):
        assert "\n" not in repr(value) and len(repr(value)) < 300


def test_control_characters_of_a_name_are_not_shown(tmp_path: Path) -> None:
    hostile = "a\x1b[31m\u202e\nb"
    cell = make_cell(make_predictions(draw_logprob_gaps(5), PHENOMENON_BY_PARADIGM))
    folder = write_run(tmp_path / "a", cell, name=hostile).path
    opened = antlm_bench.load_run(folder)
    shown = [repr(opened), opened._repr_html_(), antlm_bench.report(folder)._repr_html_()]
    assert all(text.isprintable() and "a\N{REPLACEMENT CHARACTER}[31m" in text for text in shown)


@pytest.mark.long
def test_check_prints_the_values_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number_right in range(6):
        gaps = {
            paradigm: np.where(np.arange(5) < max(number_right - i % 2, 0), 1.0, -1.0)
            for i, paradigm in enumerate(draw_logprob_gaps(1))
        }
        folder = tmp_path / str(number_right)
        opened = antlm_bench.load_run(write_toy_run(folder, gaps).path)
        run(["check", str(folder), "--against", str(folder), "--group-margin", "1", "--csv"])
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        values = {"headline": opened["toy"].estimate.value} | {
            group.name: group.estimate.value for group in opened["toy"].summary.groups
        }
        for row in rows:
            key = "headline" if row["level"] == "headline" else row["name"]
            assert float(row["baseline"]) == float(row["run"]) == values[key]
