"""Load a folder with transformers: configuration, tokenizer, weights."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import safetensors
import torch
import transformers
from transformers.models.auto import modeling_auto

from antlm_bench.checkpoints import conversion
from antlm_bench.checkpoints.adapters import without_adapter
from antlm_bench.checkpoints.positions import can_run_length, position_limit
from antlm_bench.checkpoints.resolve import OpenOptions, first_line
from antlm_bench.checkpoints.tensor_check import AllowedMismatches, check_loaded_tensors
from antlm_bench.errors import CheckpointError, UsageError

# Models trained to tell replaced tokens from original ones: their ...ForPreTraining holds no masked
# LM.
DISCRIMINATOR_TYPES = ("electra", "funnel")
# Endings of classes that answer another question than "which token is it?", and what they answer.
NON_LM_HEADS = {
    "ForSequenceClassification": "classes of texts",
    "ForTokenClassification": "classes of tokens",
    "ForMultipleChoice": "the best of several texts",
    "ForQuestionAnswering": "spans that answer a question",
    "ForNextSentencePrediction": "whether one text follows another",
    "ForImageClassification": "classes of images",
}


CONFIG_HINT = (
    "a value in config.json is not one that this version of transformers takes: compare it with "
    "the original's"
)
TRUNCATED_HINT = (
    "a file is truncated, or one that the index or a link names is missing: compare with the "
    "original's files"
)
_loading = RLock()
FILE_ERRORS = (safetensors.SafetensorError, OSError, EOFError, pickle.UnpicklingError)


def load_config(folder: Path, options: OpenOptions) -> Any:
    original = conversion.detect_original(folder, options)
    if original is not None:
        return original.build_config()
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # a value of the wrong kind fails in a dozen ways
        raise CheckpointError(
            f"cannot read the configuration: {describe_error(error)}",
            location=str(folder / "config.json"),
            hint=CONFIG_HINT
            + ("" if options.trust_remote_code else "; code of its own needs --trust-remote-code"),
        ) from error
    names = getattr(config, "architectures", None)
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise CheckpointError(
            f'"architectures" is {names!r}, no list of class names',
            location=str(folder / "config.json"),
            hint='write "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    if str(getattr(config, "_attn_implementation", "")).startswith("flash"):
        config._attn_implementation = None  # a wish about speed; ours replaces attention anyway
    return config


def describe_error(error: BaseException) -> str:
    """Return an exception in a line, with its type where the message has few words."""
    message = first_line(error)
    return message if len(message.split()) > 3 else f"{type(error).__name__}: {message}"


def detect_kind(config: Any, folder: Path) -> str:
    """Return causal or masked, from the class that the checkpoint was saved as.

    Raises CheckpointError for a model that predicts no tokens, and for encoder-decoders.
    """
    names = list(getattr(config, "architectures", None) or [])
    location = str(folder / "config.json")
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{', '.join(names) or config.model_type} is an encoder-decoder: its decoder predicts "
            "a text from another "
            "one that its encoder reads, and no method here scores that",
            location=location,
            hint="score a ...ForCausalLM or ...ForMaskedLM checkpoint",
        )
    for name in names:
        if kind := _kind_from_class(name, config, location):
            return kind
    if names:
        raise CheckpointError(
            _why_unscorable(names[0], config),
            location=location,
            hint=_suggest_checkpoint(names[0], config),
        )
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal == masked:
        raise CheckpointError(
            f"does not say whether {config.model_type!r} is causal or masked",
            location=location,
            hint='add "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    return "causal" if causal else "masked"


def _kind_from_class(name: str, config: Any, location: str) -> str:
    """Return causal or masked, "" for a class that is neither. Raises CheckpointError for an XLM
    with language embeddings.
    """
    # XLM, FlauBERT: one class for both, and a field that says which.
    if name.endswith("WithLMHeadModel"):
        if getattr(config, "use_lang_emb", False) and getattr(config, "n_langs", 1) > 1:
            raise CheckpointError(
                f"{name} needs the language of each text (n_langs = {config.n_langs}, "
                "use_lang_emb), and scoring does not give it",
                location=location,
                hint="score a checkpoint of one language, or one without language embeddings",
            )
        return "causal" if getattr(config, "causal", False) else "masked"
    masked_types = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    # A masked LM with one more head.
    if name.endswith("ForPreTraining") and config.model_type in masked_types:
        return "" if config.model_type in DISCRIMINATOR_TYPES else "masked"
    if name.endswith("ForMaskedLM"):
        return "masked"
    if name.endswith(("ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ModelWithLMHead")):
        return "causal"
    others = [
        n for n in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if isinstance(n, str)
    ]
    return "causal" if name in others and not name.endswith("ForConditionalGeneration") else ""


def _why_unscorable(name: str, config: Any) -> str:
    """Return in a sentence what the checkpoint was saved as, and why it predicts no tokens."""
    if name.endswith("ForPreTraining") and config.model_type in DISCRIMINATOR_TYPES:
        return (
            f"{name} is a discriminator: it tells replaced tokens from original ones and predicts "
            "no tokens"
        )
    for ending, answers in NON_LM_HEADS.items():
        if name.endswith(ending):
            return f"{name} predicts no tokens, but {answers}"
    if name.endswith("ForConditionalGeneration"):
        return (
            f"{name} generates text from images, sounds or other inputs, and is not scored on text "
            "alone"
        )
    if name.endswith(("Model", "Encoder")):
        return f"{name} is a model without a language-model head, so it predicts no tokens"
    return (
        f"saved as {name}, which is neither a ...ForCausalLM nor a ...ForMaskedLM, so it predicts "
        "no tokens"
    )


def _suggest_checkpoint(name: str, config: Any) -> str:
    if config.model_type in DISCRIMINATOR_TYPES:
        return "score its generator, which was trained beside it"
    if any(name.endswith(ending) for ending in NON_LM_HEADS):
        return "score the ...ForCausalLM or ...ForMaskedLM checkpoint that it was finetuned from"
    return "score a ...ForCausalLM or ...ForMaskedLM checkpoint, saved with its head"


def load_tokenizer(folder: Path, options: OpenOptions) -> Any:
    """Load the tokenizer of a folder. A tokenizer.json is enough: transformers 5 no longer knows
    some class names.
    """
    tokenizer = _load_tokenizer_files(folder, options)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise CheckpointError(
            f'"model_max_length" is {tokenizer.model_max_length!r}, no number',
            location=str(folder / "tokenizer_config.json"),
            hint="write the number without quotes",
        )
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        # BPE dropout is for training: with it, a text has other tokens every time.
        model.dropout = None
    return tokenizer


def _load_tokenizer_files(folder: Path, options: OpenOptions) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code
        )
        names = [str(name) for name in tokenizer.vocab_files_names.values()]
        # Without a vocabulary transformers 5.0 makes up an empty one.
        if names and not any((folder / name).is_file() for name in names):
            raise OSError(f"its vocabulary is missing: none of {', '.join(names)}")
        return tokenizer
    except Exception as first:
        try:
            if (folder / "tokenizer.json").is_file():
                return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
            raise first
        except Exception as error:
            raise CheckpointError(
                f"cannot read the tokenizer: {first_line(error)}",
                location=str(folder),
                hint="save it beside the weights with tokenizer.save_pretrained(folder), or give "
                "one with --tokenizer",
            ) from error


def load_model(folder: Path, kind: str, config: Any, options: OpenOptions) -> Any:
    """Load the model in fp32, evaluation mode; see `load_checked_model`."""
    return load_checked_model(folder, kind, config, options)[0]


def load_checked_model(
    folder: Path, kind: str, config: Any, options: OpenOptions
) -> tuple[Any, AllowedMismatches]:
    """Load the model in fp32, evaluation mode, with what --allow-unused and --allow-missing had to
    let pass.

    Raises CheckpointError where the files cannot be read, or hold another model than the
    configuration describes.
    """
    original = conversion.detect_original(folder, options)
    if original is not None:
        return original.build_model(kind, config), AllowedMismatches()
    # XLM and FlauBERT have one class for both kinds, which is listed under masked models.
    causal = kind == "causal" and config.model_type not in ("xlm", "flaubert")
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    try:
        with without_adapter(folder) as bare, torch.random.fork_rng(devices=[]):
            # Parameters that --allow-missing allows are the same in every run.
            torch.manual_seed(0)
            model, info = auto.from_pretrained(
                bare,
                config=config,
                dtype=torch.float32,
                use_safetensors=None if options.allow_pickle else True,
                trust_remote_code=options.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with names
            )
    except Exception as error:  # safetensors, json and torch each have their own
        raise CheckpointError(
            f"cannot load the weights: {describe_error(error)}",
            location=str(folder),
            hint=(TRUNCATED_HINT if isinstance(error, FILE_ERRORS) else CONFIG_HINT)
            + ("" if options.trust_remote_code else "; code of its own needs --trust-remote-code"),
        ) from error
    return model.eval(), check_loaded_tensors(model, info, folder, options)


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast what a model's files hold, as transformers does when it loads in that dtype.

    Buffers that are computed (rotary angles) and modules that the library keeps in float32 stay:
    rounded angles of distant positions are other positions.
    """
    kept = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        kept |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    parts = (
        re.compile("|".join(rf"(^|\.){re.escape(part)}(\.|$)" for part in kept)) if kept else None
    )
    saved = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved and tensor.is_floating_point() and not (parts and parts.search(name)):
                tensor.data = tensor.data.to(dtype)


def usable_vocab_size(model: Any) -> int:
    """Return how many token ids a text may hold: those with a row in the embedding, and in the LM
    head if it has rows.
    """
    weights = [
        getattr(head, "weight", None)
        for head in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    rows: list[int] = [weight.shape[0] for weight in weights if isinstance(weight, torch.Tensor)]
    return min(rows)


def resolve_max_length(model: Any, tokenizer: Any, requested: int | None) -> int | None:
    """Return the longest row in tokens: the least of what model (on the CPU), tokenizer and user
    allow; None = any.
    """
    tokenizer_limit = tokenizer.model_max_length
    limits = [
        position_limit(model),
        int(tokenizer_limit)
        if isinstance(tokenizer_limit, int | float) and tokenizer_limit < 10**9
        else None,
    ]
    positive = [limit for limit in limits if limit is not None and limit > 0]
    if requested is not None:
        if requested < 1 or (positive and requested > min(positive)):
            raise UsageError(
                f"{requested} is not in 1..{min(positive, default='?')}", location="--max-length"
            )
        positive.append(requested)
    return min(positive, default=None)


MAX_TRIAL_LENGTH = 2048  # tokens; the longest shipped text has 1,300 bytes


def max_runnable_length(model: Any, declared: int | None) -> int | None:
    """Return the longest row (tokens) that a model on the CPU runs, whatever its files declare;
    None = any.

    Code that never looks at the declared limit (BabyLM 2025's) runs rotary and relative positions
    beyond it, and fails where positions are learned. One row that is a token longer than the limit
    is tried. Limits beyond LONGEST_TRIAL are kept untried.
    """
    limit = position_limit(model)
    if declared is None or limit is None or limit > MAX_TRIAL_LENGTH:
        return declared
    return None if can_run_length(model, limit + 1) else limit


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"unknown device {name!r}", location="--device", hint="cpu, cuda, cuda:1, mps"
        ) from error
    if device.type not in ("cpu", "cuda", "mps"):  # torch knows some that compute nothing
        raise UsageError(
            f"nothing is scored on {name!r}", location="--device", hint="cpu, cuda, cuda:1, mps"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"no CUDA device {device.index or 0} here", location="--device", hint="--device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("no MPS device here", location="--device", hint="--device cpu")
    return device


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence the library while it loads: what it would warn of (missing weights) is checked and
    raised here. Log level, progress bars and seed belong to the process, so that threads load one
    after the other.
    """
    logger, hf = logging.getLogger("transformers"), transformers.utils.logging
    with _loading:
        level, bars = logger.level, hf.is_progress_bar_enabled()
        logger.setLevel(logging.CRITICAL)
        hf.disable_progress_bar()
        try:
            yield
        finally:
            logger.setLevel(level)
            if bars:
                hf.enable_progress_bar()
