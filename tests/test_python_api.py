"""The names of `antlm_bench`: lazy, typed and documented; the examples of the documents run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from documented_pages import read_code
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import build_model, train_tokenizer

import antlm_bench
from antlm_bench import keywords
from antlm_bench.checkpoints import OpenOptions
from antlm_bench.commands.finetune import FinetuneOptions
from antlm_bench.commands.score import ScoreOptions
from antlm_bench.commands.train import TrainOptions
from antlm_bench.errors import UsageError
from antlm_bench.suites.stimuli_spec import StimuliLayout

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = [
    (document, number, code)
    for document in ("README.md", "docs/how-to/python.md", "docs/how-to/surprisal.md")
    for number, code in enumerate(
        read_code((ROOT / document).read_text(encoding="utf-8"), "python")
    )
]


def test_every_name_is_there_and_documented() -> None:
    for name in antlm_bench.__all__:
        value = getattr(antlm_bench, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert set(antlm_bench.__all__) <= set(dir(antlm_bench))


def test_no_name_is_hidden_by_a_module() -> None:
    values = [getattr(antlm_bench, name) for name in antlm_bench.__all__]
    assert not [value for value in values if inspect.ismodule(value)]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evaluate'"):
        _ = antlm_bench.evaluate


@pytest.mark.parametrize(
    ("typed", "options", "left_out"),
    [
        (keywords.CheckpointKeywords, OpenOptions, {"lengths"}),
        (keywords.ScoreKeywords, ScoreOptions, set()),
        (keywords.FinetuneKeywords, FinetuneOptions, set()),
        (keywords.TrainKeywords, TrainOptions, set()),
    ],
)
def test_keywords_are_the_fields_of_the_options(
    typed: type, options: type, left_out: set[str]
) -> None:
    hints = get_type_hints(options)
    names = {field.name for field in fields(options)} - left_out
    typed_hints = get_type_hints(typed)
    other_names = {
        name for name in typed_hints if keywords.COMMAND_LINE_NAMES.get(name) and name not in names
    }
    assert {n: typed_hints[n] for n in typed_hints if n not in other_names} == {
        name: hints[name] for name in names
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random checkpoint where `make demo` trains one."""
    folder = tmp_path_factory.mktemp("demo")
    checkpoint = folder / ".demo" / "babyllama" / "main"
    train_tokenizer("causal", True).save_pretrained(checkpoint)
    build_model("causal", 0).save_pretrained(checkpoint)
    return folder


WORDS = st.sampled_from(["", " ", "the cat", "a\0b", "\ud800", "caf\u00e9"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=3) | WORDS
WRONG_VALUES = (
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(WORDS, inner, max_size=2)
        ),
        max_leaves=5,
    )
    | st.sets(WORDS, max_size=2)
    | st.sampled_from([object(), 10**5000, np.array("the cat"), np.array(["the cat"]), np.zeros(2)])
)


@pytest.fixture(scope="module")
def scorer() -> antlm_bench.Scorer:
    return antlm_bench.Scorer(build_model("causal", 0), train_tokenizer("causal", True))


def is_list_of(values: object, is_element: Callable[[object], bool]) -> bool:
    return isinstance(values, list | tuple | np.ndarray) and all(map(is_element, list(values)))


def is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and is_list_of(value, is_text) and len(value) == 2


def is_text(value: object) -> bool:
    return isinstance(value, str)


@pytest.mark.long
@given(values=WRONG_VALUES)
def test_texts_are_scored_or_refused(scorer: antlm_bench.Scorer, values: object) -> None:
    calls: list[tuple[Callable[[Any], Any], Callable[[object], bool]]] = [
        (scorer.logprobs, is_text),
        (scorer.token_logprobs, is_text),
        (lambda texts: antlm_bench.surprisal(scorer, texts), is_text),
        (scorer.compare, is_pair),
    ]
    for call, is_element in calls:
        try:
            result = call(values)
        except antlm_bench.BenchError as error:
            assert error.location and error.message
        else:
            assert is_list_of(values, is_element), values
            assert call != scorer.logprobs or result.shape == (len(list(values)),)


OPTION_CALLS = {
    "logprobs": ("method", "bos"),
    "token_logprobs": ("method", "bos"),
    "compare": ("method", "bos", "ties", "reduction"),
    "surprisal": (
        *("method", "by", "columns", "out", "options", "bos", "max_length", "correction", "add"),
        *("base", "context", "join", "long_texts"),
    ),
    "Scorer": ("max_length", "batch_tokens", "bos", "device", "dtype", "peft", "max_len"),
    "score": ("methods", "limit", "columns", "ties", "compat", "device", "options", "max_len"),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "name"), [(key, name) for key, names in OPTION_CALLS.items() for name in names]
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=WRONG_VALUES)
def test_options_are_used_or_refused(
    scorer: antlm_bench.Scorer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    name: str,
    value: object,
) -> None:
    monkeypatch.chdir(tmp_path)
    option: dict[str, Any] = {name: value}
    model, tokenizer = scorer.checkpoint.engine.model, train_tokenizer("causal", True)
    calls: dict[str, Callable[[], object]] = {
        "logprobs": lambda: scorer.logprobs(["the cat"], **option),
        "token_logprobs": lambda: scorer.token_logprobs(["the cat"], **option),
        "compare": lambda: scorer.compare([("the cat", "a dog")], **option),
        "surprisal": lambda: antlm_bench.surprisal(scorer, ["the cat"], **option),
        "Scorer": lambda: antlm_bench.Scorer(model, tokenizer, **option),
        "score": lambda: antlm_bench.score("no-such-folder", "nano", **option),
    }
    with suppress(antlm_bench.BenchError):
        calls[function]()


@pytest.mark.long
@given(value=WRONG_VALUES)
def test_models_of_another_type_are_refused(scorer: antlm_bench.Scorer, value: Any) -> None:
    tokenizer = scorer.checkpoint.encoders["causal"].tokenizer
    for call in (
        lambda: antlm_bench.Scorer(value),
        lambda: antlm_bench.Scorer(value, tokenizer),
        lambda: antlm_bench.Scorer(scorer.checkpoint.engine.model, value),
        lambda: antlm_bench.surprisal(value, ["the cat"]),
        lambda: antlm_bench.score(value, "nano"),
        lambda: antlm_bench.score("no-such-folder", value),
    ):
        with pytest.raises(antlm_bench.BenchError):
            call()


@pytest.mark.parametrize("call", ["logprobs", "token_logprobs", "compare", "surprisal"])
def test_dicts_and_lists_of_dicts_are_refused(scorer: antlm_bench.Scorer, call: str) -> None:
    functions = {"surprisal": partial(antlm_bench.surprisal, scorer)}
    function = functions.get(call) or getattr(scorer, call)
    with pytest.raises(UsageError, match=r"is not a list of .*\n.*hint: give a list, as list\("):
        function({"good": ["the cat"], "bad": ["a cat"]})
    with pytest.raises(UsageError, match=r"\[0\]: .*\(dict\) is not a"):
        function([{"good": "the cat", "bad": "a cat"}])


@pytest.mark.parametrize(
    ("call", "settings", "message"),
    [
        ("logprobs", {}, r"no column 'text' or 'sentence'\n.*give a column, as table\['fine'\]"),
        ("compare", {}, r"no column 'good' or 'sentence_good'"),
        ("compare", {"columns": {"good": "fine", "bad": "b"}}, "no column 'b'"),
        ("compare", {"columns": {"godo": "fine"}}, "unknown column 'godo'"),
        ("surprisal", {}, "the column 'sentence' is missing"),
        ("surprisal", {"columns": {"sentence": "fin"}}, "the column 'fin' is missing"),
    ],
)
def test_a_frame_without_the_column_is_refused(
    scorer: antlm_bench.Scorer, call: str, settings: dict[str, Any], message: str
) -> None:
    pandas = pytest.importorskip("pandas")
    functions = {"surprisal": partial(antlm_bench.surprisal, scorer)}
    function = functions.get(call) or getattr(scorer, call)
    with pytest.raises(antlm_bench.BenchError, match=message):
        function(pandas.DataFrame({"fine": ["the cat"]}), **settings)


def test_frames_are_scored_like_lists(scorer: antlm_bench.Scorer) -> None:
    pandas = pytest.importorskip("pandas")
    texts = ["the cat", "no dogs"]
    frame = pandas.DataFrame({"sentence": texts, "n": [1, 2]})
    assert scorer.logprobs(frame).tolist() == scorer.logprobs(texts).tolist()
    pairs = pandas.DataFrame({"ok": texts, "bad": ["a cat", "dogs no"]})
    by_frame = scorer.compare(pairs, columns={"good": "ok"})
    assert by_frame.estimate == scorer.compare([*zip(texts, pairs["bad"], strict=True)]).estimate
    rows = antlm_bench.surprisal(scorer, frame).rows
    plain = antlm_bench.surprisal(scorer, texts).rows
    assert [row["surprisal_bits"] for row in rows] == [row["surprisal_bits"] for row in plain]
    assert [row["n"] for row in rows] == ["1", "1", "2", "2"]
    assert repr(by_frame).startswith("<PairScores: ") and "of 2 pairs" in repr(by_frame)


def test_keywords_describe_a_table_with_critical_words(scorer: antlm_bench.Scorer) -> None:
    rows = {"a": ["the cat sees"], "b": ["no dogs"], "at_a": [2], "at_b": [1]}
    frame = pytest.importorskip("pandas").DataFrame(rows)
    layout = StimuliLayout(("a", "b"), ("at_a", "at_b"), 0)
    result = antlm_bench.surprisal(
        scorer, frame, conditions=["a", "b"], position=["at_a", "at_b"], spillover=0
    )
    assert result.rows == antlm_bench.surprisal(scorer, frame, text_layout=layout).rows
    assert [row["word"] for row in result.rows if row["region"]] == ["cat", "no"]
    assert repr(result).startswith("<SurprisalTable: 5 rows of 2 texts, ")
    for wrong in ({"spillover": 1.5}, {"position": 3}, {"text_layout": layout}):
        with pytest.raises(antlm_bench.BenchError, match=str(next(iter(wrong)))):
            antlm_bench.surprisal(scorer, frame, conditions="a", **wrong)


@pytest.mark.long
def test_columns_of_a_table_are_scored(scorer: antlm_bench.Scorer) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"good": ["the cat", "no dogs"], "bad": ["a cat", "dogs no"]})
    expected = scorer.compare([("the cat", "a cat"), ("no dogs", "dogs no")]).estimate
    assert scorer.compare(zip(table["good"], table["bad"], strict=True)).estimate == expected
    assert scorer.compare(table.to_numpy()).estimate == expected
    texts = ["the cat", "no dogs"]
    assert scorer.logprobs(table["good"]).tolist() == scorer.logprobs(texts).tolist()


@pytest.mark.long
@pytest.mark.parametrize("device", [torch.device("cpu"), "cpu"])
def test_a_device_is_a_name_or_an_object(demo: Path, device: Any) -> None:
    checkpoint = demo / ".demo" / "babyllama" / "main"
    assert antlm_bench.Scorer(checkpoint, device=device).methods[0] == "causal"


@pytest.mark.long
@pytest.mark.parametrize(("document", "number", "code"), EXAMPLES)
def test_the_examples_of_the_documents_run(
    demo: Path, document: str, number: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    if "minicons" in code:
        pytest.importorskip("minicons")
    monkeypatch.chdir(demo)
    names: dict[str, Any] = {}
    exec(compile(code, f"{document} {number}", "exec"), names)
    if "theirs" in names:  # the same job in another library
        assert list(names["ours"]) == pytest.approx(list(names["theirs"]), abs=1e-4)
