"""Translate options of lm-eval and BabyLM into ours, so that their command lines work here.

`normalize_argv` maps argv to argv. It also inserts the default number of options whose number is
optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from antlm_bench.errors import UsageError

OPTION_ALIASES: dict[str, str] = {
    "--tasks": "--suite",
    "--suites": "--suite",
    "--output-path": "--out",
    "--backend": "--method",
    "--model-path-or-name": "--model",
    "--revision-name": "--revision",
}
"""Option of lm-eval or BabyLM, hyphenated -> our option."""
LM_EVAL_MODEL_TYPES: dict[str, list[str]] = {
    "hf": [],
    "hf-auto": [],
    "huggingface": [],
    "hf-mlm": ["--method", "mlm"],
}
"""Model type, lm-eval's value of `--model` -> our options. Its checkpoint is in --model_args."""
# fmt: off
OTHER_LM_EVAL_MODEL_TYPES = (
    "anthropic-chat", "anthropic-chat-completions", "anthropic-completions", "dummy", "ggml",
    "gguf", "habana", "hf-audiolm-qwen", "hf-mistral3", "hf-multimodal", "ipex", "litellm",
    "litellm-chat", "litellm-chat-completions", "local-chat-completions", "local-completions",
    "mamba_ssm", "megatron_lm", "nemo_lm", "neuronx", "onnxruntime", "onnxruntime-genai",
    "openai-chat-completions", "openai-completions", "openvino", "sglang", "sglang-generate",
    "steered", "textsynth", "trtllm", "vllm", "vllm-vlm", "watsonx_llm", "winml",
)
# fmt: on
"""Other model types of lm-eval 0.4.13: backends that this package does not have."""
DEFAULT_NUMBERS: dict[str, str] = {"--flips": "20"}
"""Option whose number is optional -> its default number. typer has no such options."""
TRUE, FALSE = {"true", "1", "yes"}, {"false", "0", "no"}
NUMBER_PATTERN = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)%?")
TOKENS_PER_SEQUENCE = 128
"""Factor from lm-eval's --batch_size (sequences) to our --batch-tokens."""


def normalize_argv(argv: Sequence[str]) -> list[str]:
    """Return argv with our option names. Raises UsageError for unknown --model_args."""
    words, out = list(argv), list[str]()
    model_args = _find_model_args(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*out, word, *words]
        if not word.startswith("--"):
            out.append(word)
            continue
        option, equals, value = word.partition("=")
        name = option.replace("_", "-")
        has_number = bool(equals) or bool(words and NUMBER_PATTERN.fullmatch(words[0]))
        if name in DEFAULT_NUMBERS and not has_number:
            out += [name, DEFAULT_NUMBERS[name]]
            continue
        convert = OPTION_CONVERTERS.get(name)
        if convert is None:
            out.append(OPTION_ALIASES.get(name, name) + equals + value)
            continue
        if not equals and not words:
            raise UsageError("the option needs a value", location=option)
        out += convert(value if equals else words.pop(0), model_args)
    return out


def iter_options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (option, value) for each word of a command line before `--`.

    For a word without `=`, the value is the next word. Callers select the options that they know,
    because words that are values or flags are yielded, too.
    """
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        if word == "--":
            return
        option, equals, value = word.partition("=")
        yield option, value if equals else following


def _find_model_args(argv: Sequence[str]) -> str:
    """Return the values of all options --model_args, joined by commas."""
    options = ((option.replace("_", "-"), value) for option, value in iter_options(argv))
    return ",".join(value for option, value in options if option == "--model-args")


def _convert_model(value: str, model_args: str) -> list[str]:
    if model_args and value in LM_EVAL_MODEL_TYPES:
        return LM_EVAL_MODEL_TYPES[value]
    if value in LM_EVAL_MODEL_TYPES and not Path(value).exists():
        raise UsageError(
            f"{value!r} is a model type of lm-eval, not a checkpoint",
            location="--model",
            hint=f"--model CKPT, or --model {value} --model_args pretrained=CKPT",
        )
    if value in OTHER_LM_EVAL_MODEL_TYPES and not Path(value).exists():
        raise UsageError(
            f"{value!r} is not a backend of antlm-bench",
            location="--model",
            hint=f"give the checkpoint: --model CKPT; of lm-eval, {', '.join(LM_EVAL_MODEL_TYPES)} "
            "are read, with --model_args pretrained=CKPT",
        )
    if any(pair.startswith("pretrained=") for pair in model_args.split(",")):
        raise UsageError(
            f"{value!r} is not a model type of lm-eval, and --model_args names a checkpoint, too",
            location="--model",
            hint=f"one of {', '.join(LM_EVAL_MODEL_TYPES)}; or repeat --model for each checkpoint",
        )
    return ["--model", value]


def _convert_batch_size(value: str, _model_args: str = "") -> list[str]:
    """Convert a batch size in sequences into one in tokens. Scores depend on neither.

    `auto:N`, with which lm-eval repeats its search N times, is `auto` here.
    """
    if value.partition(":")[0] == "auto":
        return ["--batch-tokens", "auto"]
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(
            f"{value!r} is not a number of sequences",
            location="--batch_size",
            hint="a whole number, or auto",
        )
    return ["--batch-tokens", str(int(value) * TOKENS_PER_SEQUENCE)]


def _convert_model_args(text: str, _model_args: str) -> list[str]:
    """Convert `pretrained=X,dtype=float32` into our options."""
    out: list[str] = []
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key not in MODEL_ARG_CONVERTERS:
            near = get_close_matches(key, MODEL_ARG_CONVERTERS, 1)
            supported = "supported: " + ", ".join(MODEL_ARG_CONVERTERS)
            raise UsageError(
                f"{pair!r} is not supported" if equals else f"{pair!r} is not key=value",
                location="--model_args",
                hint=f"did you mean {near[0]}=...?" if near else supported,
            )
        out += MODEL_ARG_CONVERTERS[key](value)
    return out


def _renamed_option(option: str) -> Callable[[str], list[str]]:
    return lambda value: [option, value]


def _boolean_option(key: str, on: list[str], off: list[str]) -> Callable[[str], list[str]]:
    def convert(value: str) -> list[str]:
        if value.lower() not in TRUE | FALSE:
            raise UsageError(f"{key}={value!r} is neither True nor False", location="--model_args")
        return on if value.lower() in TRUE else off

    return convert


MODEL_ARG_CONVERTERS: dict[str, Callable[[str], list[str]]] = {
    "pretrained": _renamed_option("--model"),
    "revision": _renamed_option("--revision"),
    "peft": _renamed_option("--peft"),
    "tokenizer": _renamed_option("--tokenizer"),
    "dtype": _renamed_option("--dtype"),
    "device": _renamed_option("--device"),
    "max_length": _renamed_option("--max-length"),
    "batch_size": _convert_batch_size,
    # With False lm-eval still puts a BOS (or EOS) before every sentence, as our `auto` does.
    "add_bos_token": _boolean_option("add_bos_token", ["--bos", "always"], ["--bos", "auto"]),
    "trust_remote_code": _boolean_option("trust_remote_code", ["--trust-remote-code"], []),
}
OPTION_CONVERTERS: dict[str, Callable[[str, str], list[str]]] = {
    "--model": _convert_model,
    "--model-args": _convert_model_args,
    "--batch-size": _convert_batch_size,
}
