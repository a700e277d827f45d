"""Command lines written for lm-eval and BabyLM's pipelines, in our words."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.cli.aliases import (
    LM_EVAL_MODEL_TYPES,
    OTHER_LM_EVAL_MODEL_TYPES,
    normalize_argv,
)
from antlm_bench.errors import UsageError


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (
            "score --model hf --model_args pretrained=gpt2,revision=main,dtype=float32 --tasks "
            "blimp --batch_size 4",
            "score --model gpt2 --revision main --dtype float32 --suite blimp --batch-tokens 512",
        ),
        ("score --model_args pretrained=x --model hf", "score --model x"),
        ("score --model hf-mlm --model_args pretrained=x", "score --method mlm --model x"),
        (
            "score --model_args pretrained=x,peft=y,tokenizer=z",
            "score --model x --peft y --tokenizer z",
        ),
        ("score --model=hf --model-args=pretrained=a=b", "score --model a=b"),
        ("compare a b --flips", "compare a b --flips 20"),
        ("compare --flips a b --json", "compare --flips 20 a b --json"),
        ("compare a b --flips 5 --by=paradigm", "compare a b --flips 5 --by=paradigm"),
        ("compare a b --flips=5", "compare a b --flips=5"),
        ("compare a b --flips -1", "compare a b --flips -1"),
        ("score --batch_size auto:4", "score --batch-tokens auto"),
        ("score --output_path=o --limit 5", "score --out=o --limit 5"),
        (
            "score --model_path_or_name m --backend mntp --revision_name chck_1M",
            "score --model m --method mntp --revision chck_1M",
        ),
        (
            "score --model_args pretrained=x,add_bos_token=1,max_length=9",
            "score --model x --bos always --max-length 9",
        ),
        ("score --model_args pretrained=x,add_bos_token=False", "score --model x --bos auto"),
        (
            "score --model_args pretrained=x,trust_remote_code=true",
            "score --model x --trust-remote-code",
        ),
        ("score --model_args pretrained=x,trust_remote_code=False", "score --model x"),
        ("score --allow_incomplete --batch-tokens 9", "score --allow-incomplete --batch-tokens 9"),
        ("show -- --tasks", "show -- --tasks"),
        ("show a_b", "show a_b"),
    ],
)
def test_their_command_line_in_our_words(theirs: str, expected: str) -> None:
    assert normalize_argv(shlex.split(theirs)) == shlex.split(expected)


@pytest.mark.parametrize(
    ("theirs", "complaint"),
    [
        ("score --model_args pretrained=x,dtyp=float32", "did you mean dtype=...?"),
        ("score --model_args pretrained", "is not key=value"),
        ("score --model_args pretrained=x,trust_remote_code=perhaps", "neither True nor False"),
        ("score --model_args parallelize=y", "is not supported"),
        ("score --model_args", "needs a value"),
        ("score --batch_size many", "is not a number of sequences"),
        ("score --batch_size 0", "is not a number of sequences"),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_the_option(
    theirs: str, complaint: str
) -> None:
    with pytest.raises(UsageError, match=r"--model_args|--batch_size") as caught:
        normalize_argv(shlex.split(theirs))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("backend", ["vllm", "openai-completions", "sglang"])
def test_other_backends_of_lm_eval_are_refused_by_name(backend: str) -> None:
    for args in ("--model_args pretrained=x", ""):
        with pytest.raises(UsageError, match=f"'{backend}' is not a backend") as caught:
            normalize_argv(shlex.split(f"score --model {backend} {args}"))
        assert caught.value.location == "--model"


def test_a_model_type_without_its_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match="'hf' is a model type of lm-eval, not a checkpoint"):
        normalize_argv(["score", "--model", "hf", "--suite", "nano"])


def test_a_folder_may_have_the_name_of_a_model_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf").mkdir()
    argv = ["score", "--model", "hf", "--suite", "nano"]
    assert normalize_argv(argv) == argv


def test_an_unknown_model_type_is_no_second_checkpoint() -> None:
    with pytest.raises(UsageError, match="'anthropic' is not a model type") as caught:
        normalize_argv(shlex.split("score --model anthropic --model_args pretrained=x"))
    assert caught.value.location == "--model"


def test_the_backends_are_those_of_lm_eval() -> None:
    models = pytest.importorskip("lm_eval.models")
    ours = {*LM_EVAL_MODEL_TYPES, *OTHER_LM_EVAL_MODEL_TYPES}
    assert models.MODEL_MAPPING.keys() <= ours


WORDS = st.lists(st.one_of(st.text(max_size=12), st.text(max_size=8).map("--".__add__)), max_size=8)


@given(WORDS)
def test_any_argv_is_translated_or_refused(argv: list[str]) -> None:
    try:
        assert all(isinstance(word, str) for word in normalize_argv(argv))
    except UsageError as error:
        assert error.location


@given(WORDS)
def test_our_own_spelling_stays_as_it_is(argv: list[str]) -> None:
    try:
        once = normalize_argv(argv)
    except UsageError:
        return
    if "--" not in once:
        assert normalize_argv(once) == once
