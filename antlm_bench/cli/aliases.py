"""The peers' option names become ours: lm-eval's and BabyLM's command lines work here unchanged; a number that may be
left out is put in.

A pure function from argv to argv, so that the commands know one name per thing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from antlm_bench.errors import UsageError

# theirs (hyphenated) -> ours
RENAMED: dict[str, str] = {
    "--tasks": "--suite",
    "--suites": "--suite",
    "--output-path": "--out",
    "--backend": "--method",
    "--model-path-or-name": "--model",
    "--revision-name": "--revision",
}
# What lm-eval calls a model type is no checkpoint; the one thing it may say is how to score.
MODEL_TYPES: dict[str, list[str]] = {"hf": [], "hf-auto": [], "huggingface": [], "hf-mlm": ["--method", "mlm"]}
# Options whose number may be left out, which typer does not know how to say.
NUMBERS: dict[str, str] = {"--flips": "20"}
TRUE, FALSE = {"true", "1", "yes"}, {"false", "0", "no"}
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
TOKENS_PER_SEQUENCE = 128


def ours(argv: Sequence[str]) -> list[str]:
    """argv in our spelling. Raises UsageError for a model type without model_args and for unknown model_args."""
    words, out = list(argv), list[str]()
    typed = any(word.replace("_", "-").startswith("--model-args") for word in words)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*out, word, *words]
        if not word.startswith("--"):
            out.append(word)
            continue
        written, equals, value = word.partition("=")
        name = written.replace("_", "-")
        if name in NUMBERS and not equals and not (words and NUMBER.fullmatch(words[0])):
            out += [name, NUMBERS[name]]
            continue
        special = SPECIAL.get(name)
        if special is None:
            out.append(RENAMED.get(name, name) + equals + value)
            continue
        if not equals and not words:
            raise UsageError("the option needs a value", place=written)
        out += special(value if equals else words.pop(0), typed)
    return out


def _model(value: str, typed: bool) -> list[str]:
    return MODEL_TYPES[value] if typed and value in MODEL_TYPES else ["--model", value]


def _batch_size(value: str, _typed: bool = True) -> list[str]:
    """Peers count sequences, we count tokens; scores depend on neither. `auto:4` is lm-eval's for "try again"."""
    if value.partition(":")[0] == "auto":
        return ["--batch-tokens", "auto"]
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"{value!r} is no number of sequences", place="--batch_size", hint="a whole number, or auto")
    return ["--batch-tokens", str(int(value) * TOKENS_PER_SEQUENCE)]


def _model_args(text: str, _typed: bool) -> list[str]:
    """`pretrained=X,dtype=float32` -> our options."""
    out: list[str] = []
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in MODEL_ARGS:
            near = get_close_matches(key, MODEL_ARGS, 1)
            hint = f"did you mean {near[0]}=...?" if near else "understood here: " + ", ".join(MODEL_ARGS)
            raise UsageError(
                f"{pair!r} is not understood" if equals else f"{pair!r} is not key=value",
                place="--model_args",
                hint=hint,
            )
        out += MODEL_ARGS[key](value)
    return out


def _same(option: str) -> Callable[[str], list[str]]:
    return lambda value: [option, value]


def _switch(key: str, on: list[str], off: list[str]) -> Callable[[str], list[str]]:
    def read(value: str) -> list[str]:
        if value.lower() not in TRUE | FALSE:
            raise UsageError(f"{key}={value!r} is neither True nor False", place="--model_args")
        return on if value.lower() in TRUE else off

    return read


MODEL_ARGS: dict[str, Callable[[str], list[str]]] = {
    "pretrained": _same("--model"),
    "revision": _same("--revision"),
    "peft": _same("--peft"),
    "tokenizer": _same("--tokenizer"),
    "dtype": _same("--dtype"),
    "device": _same("--device"),
    "max_length": _same("--max-length"),
    "batch_size": _batch_size,
    # lm-eval stands a BOS (or EOS) before every sentence whatever this says; our `auto` is that rule.
    "add_bos_token": _switch("add_bos_token", ["--bos", "always"], ["--bos", "auto"]),
    "trust_remote_code": _switch("trust_remote_code", ["--trust-remote-code"], []),
}
SPECIAL: dict[str, Callable[[str, bool], list[str]]] = {
    "--model": _model,
    "--model-args": _model_args,
    "--batch-size": _batch_size,
}
