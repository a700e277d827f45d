"""Load configuration, tokenizer and weights of a folder with transformers, and check them."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import safetensors
import torch
import transformers
from transformers.models.auto import modeling_auto

from antlm_bench.arguments import describe_argument
from antlm_bench.checkpoints import conversion
from antlm_bench.checkpoints.adapter_files import without_adapter
from antlm_bench.checkpoints.build_limits import limit_model_size
from antlm_bench.checkpoints.config_diagnosis import name_wrong_key
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.checkpoints.size_limits import check_config_file
from antlm_bench.checkpoints.tensor_check import AllowedMismatches, check_loaded_tensors
from antlm_bench.errors import CheckpointError, MissingPackage, UsageError, first_line
from antlm_bench.scoring.plain_forward import plain_logits
from antlm_bench.weight_files import WeightSet, read_json, select_weights

ENCODER_DECODER = "encoder-decoder"
DIFFUSION_NAME = re.compile(
    r"(llada|dream|mdlm|sedd|bd3lm|diffugpt|diffullama|sdar)", re.IGNORECASE
)
"""Beginning of the model type or class of diffusion language models (Nie et al. 2025, arXiv
2502.09992; Ye et al. 2025, arXiv 2508.15487; Sahoo et al. 2024, arXiv 2406.07524)."""
DISCRIMINATOR_TYPES = ("electra", "funnel")
"""Types of models that tell replaced tokens from original ones. Their ...ForPreTraining class is no
masked LM."""
# Ending of a class name -> what such a model predicts instead of tokens.
NON_LM_HEADS = {
    "ForSequenceClassification": "classes of texts",
    "ForTokenClassification": "classes of tokens",
    "ForMultipleChoice": "the best of several texts",
    "ForQuestionAnswering": "spans that answer a question",
    "ForNextSentencePrediction": "whether one text follows another",
    "ForImageClassification": "classes of images",
}
CONFIG_HINT = (
    "this version of transformers does not take a value in config.json: compare it with the "
    "original's"
)
TRUNCATED_HINT = (
    "a file is truncated, or a file that the index or a link names is missing: compare with the "
    "original's files"
)
CODE_HINT = "; a model with its own code needs --trust-remote-code"
_loading_lock = RLock()
FILE_ERRORS = (safetensors.SafetensorError, OSError, EOFError, pickle.UnpicklingError)


def load_config(folder: Path, options: OpenOptions) -> Any:
    """Load config.json, converted if the weights are in an original layout (conversion)."""
    check_config_file(folder)
    _refuse_diffusion(folder / "config.json")
    original = conversion.detect_original(folder, options)
    if original is not None:
        return original.build_config()

    def read_config(folder: Path) -> Any:
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code
        )

    try:
        config = read_config(folder)
    except Exception as error:  # a wrong value raises one of a dozen types
        raise CheckpointError(
            "cannot read the configuration: "
            + name_wrong_key(describe_error(error), folder, read_config),
            location=str(folder / "config.json"),
            hint=CONFIG_HINT + ("" if options.trust_remote_code else CODE_HINT),
        ) from error
    names = getattr(config, "architectures", None)
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise CheckpointError(
            f'"architectures" is {names!r}, not a list of class names',
            location=str(folder / "config.json"),
            hint='write "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    if str(getattr(config, "_attn_implementation", "")).startswith("flash"):
        config._attn_implementation = None  # for speed only, and the engine replaces attention
    config.return_dict = True  # outputs are read by name; it changes no number
    return config


def _refuse_diffusion(config_file: Path) -> None:
    """Raise CheckpointError for a diffusion language model, whose code need not be here."""
    content = read_json(config_file) or {}
    architectures = content.get("architectures")
    names = [content.get("model_type"), *(architectures if isinstance(architectures, list) else ())]
    for name in names:
        if isinstance(name, str) and DIFFUSION_NAME.match(name):
            raise CheckpointError(
                f"{name} is a diffusion language model: it restores masks in any order, so that "
                "the log-probability of a text is no sum over its tokens, but only bounded by a "
                "mean over random masks, which no method here estimates",
                location=str(config_file),
                hint="score a ...ForCausalLM or ...ForMaskedLM checkpoint",
            )


def describe_error(error: BaseException) -> str:
    """Return an exception in one line, with its type if the message has few words."""
    message = first_line(error)
    if message.endswith(":"):  # the reason stands in the next line
        message = " ".join(str(error).split())[:300]
    return message if len(message.split()) > 3 else f"{type(error).__name__}: {message}"


def detect_kind(config: Any, folder: Path) -> str:
    """Return "causal", "masked" or "encoder-decoder", from the class names of config.json.

    Raises CheckpointError for a model that predicts no tokens.
    """
    names = list(getattr(config, "architectures", None) or [])
    location = str(folder / "config.json")
    if getattr(config, "is_encoder_decoder", False):
        _check_encoder_decoder(names, config, location)
        return ENCODER_DECODER
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
            f"config.json does not say whether {config.model_type!r} is causal or masked",
            location=location,
            hint='add "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    return "causal" if causal else "masked"


def _check_encoder_decoder(names: Sequence[str], config: Any, location: str) -> None:
    """Raise CheckpointError for an encoder-decoder that does not read and write text."""
    classes = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if any(name in classes.values() for name in names) or (
        not names and config.model_type in classes
    ):
        return
    name = names[0] if names else config.model_type
    reads_text = any(name.endswith(ending) for ending in (*NON_LM_HEADS, "Model", "Encoder"))
    raise CheckpointError(
        _why_unscorable(name, config)
        if reads_text
        else f"{name} is an encoder-decoder of other inputs than text",
        location=location,
        hint="score a checkpoint that writes text after a text: T5ForConditionalGeneration, "
        "BartForConditionalGeneration, ...",
    )


def _kind_from_class(name: str, config: Any, location: str) -> str:
    """Return "causal", "masked" or "" (neither) for a class name.

    Raises CheckpointError for an XLM with language embeddings.
    """
    # XLM and FlauBERT have one class for both kinds; a key of config.json tells them apart.
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
    # ...ForPreTraining is a masked LM with one more head.
    if name.endswith("ForPreTraining") and config.model_type in masked_types:
        return "" if config.model_type in DISCRIMINATOR_TYPES else "masked"
    if name.endswith("ForMaskedLM"):
        return "masked"
    if name.endswith(("ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ModelWithLMHead")):
        return "causal"
    # transformers lists a few causal LMs under other names, and some models of several modalities.
    is_causal = name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return "causal" if is_causal and not name.endswith("ForConditionalGeneration") else ""


def _why_unscorable(name: str, config: Any) -> str:
    """Return a sentence that says why a model of this class predicts no tokens."""
    if name.endswith("ForPreTraining") and config.model_type in DISCRIMINATOR_TYPES:
        return (
            f"{name} is a discriminator: it tells replaced tokens from original ones and predicts "
            "no tokens"
        )
    for ending, prediction in NON_LM_HEADS.items():
        if name.endswith(ending):
            return f"{name} predicts no tokens, but {prediction}"
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
    """Load the tokenizer of a folder.

    If transformers does not know its class, tokenizer.json is enough. BPE dropout, which is for
    training, is turned off, because with it the tokens of a text change from call to call.
    """
    tokenizer = _load_tokenizer_files(folder, options)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise CheckpointError(
            f'"model_max_length" is {tokenizer.model_max_length!r}, not a number',
            location=str(folder / "tokenizer_config.json"),
            hint="write the number without quotes",
        )
    _check_special_tokens(tokenizer, folder)
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None
    return tokenizer


def _check_special_tokens(tokenizer: Any, folder: Path) -> None:
    """Raise CheckpointError for special tokens that have no id.

    transformers looks for the id of the unknown token without end if the vocabulary lacks it.
    """
    for name in ("unk", "bos", "eos", "sep", "pad", "cls", "mask"):
        try:
            getattr(tokenizer, f"{name}_token_id", None)
        except Exception as error:  # a RecursionError, or what a wrong type raises
            raise CheckpointError(
                f"the vocabulary lacks {name}_token or unk_token ({type(error).__name__})",
                location=str(folder / "tokenizer_config.json"),
                hint="save the tokenizer again with tokenizer.save_pretrained(folder)",
            ) from error


def _load_tokenizer_files(folder: Path, options: OpenOptions) -> Any:
    try:
        try:
            return _load_auto_tokenizer(folder, options)
        except Exception:
            if not (folder / "tokenizer.json").is_file():
                raise
            return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise unrelated types
        raise CheckpointError(
            f"cannot read the tokenizer: {first_line(error)}",
            location=str(folder),
            hint="save it beside the weights with tokenizer.save_pretrained(folder), or give "
            "one with --tokenizer",
        ) from error


def _load_auto_tokenizer(folder: Path, options: OpenOptions) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, trust_remote_code=options.trust_remote_code
    )
    names = [str(name) for name in tokenizer.vocab_files_names.values()]
    # transformers 5.0 does not fail without a vocabulary; it builds an empty one.
    if names and not any((folder / name).is_file() for name in names):
        raise OSError(f"its vocabulary is missing: none of {', '.join(names)}")
    return tokenizer


def load_model(folder: Path, kind: str, config: Any, options: OpenOptions) -> Any:
    """Load the model as `load_checked_model` does, and return only the model."""
    return load_checked_model(folder, kind, config, options)[0]


def load_checked_model(
    folder: Path, kind: str, config: Any, options: OpenOptions
) -> tuple[Any, AllowedMismatches]:
    """Load the model in fp32 and evaluation mode. Also return the mismatches that --allow-unused
    and --allow-missing accepted.

    Raises CheckpointError if the files cannot be read, or do not match the configuration.
    """
    original = conversion.detect_original(folder, options)
    weights = select_weights(folder, options.allow_pickle)
    if original is not None:
        with limit_model_size(folder / "config.json", weights):
            return original.build_model(kind, config), AllowedMismatches()
    auto = _auto_class(kind, config)
    try:
        with without_adapter(folder) as model_folder, torch.random.fork_rng(devices=[]):
            # The random parameters under --allow-missing are the same in every run.
            torch.manual_seed(0)
            with limit_model_size(folder / "config.json", weights):
                model, info = auto.from_pretrained(
                    model_folder,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=None if options.allow_pickle else True,
                    trust_remote_code=options.trust_remote_code,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # check_loaded_tensors raises, with names
                )
    except CheckpointError:
        raise
    except ImportError as error:  # e.g. the package of a quantization
        needs_gpu = "GPU" in str(error)
        advice = "open it on such a device (--device)" if needs_gpu else "install the package"
        error_class = CheckpointError if needs_gpu else MissingPackage
        raise error_class(
            f"cannot load the weights: {describe_error(error)}",
            location=str(folder),
            hint=f"{advice}, or give the checkpoint before its quantization",
        ) from error
    except Exception as error:  # safetensors, json and torch raise unrelated types
        build_model = partial(_build_without_weights, kind=kind, weights=weights)
        raise CheckpointError(
            "cannot load the weights: "
            + name_wrong_key(describe_error(error), folder, build_model),
            location=str(folder),
            hint=(TRUNCATED_HINT if isinstance(error, FILE_ERRORS) else CONFIG_HINT)
            + ("" if options.trust_remote_code else CODE_HINT),
        ) from error
    return model.eval(), check_loaded_tensors(model, info, folder, options)


def _auto_class(kind: str, config: Any) -> Any:
    """Return the Auto class that opens a model of a kind."""
    if kind == ENCODER_DECODER:
        return transformers.AutoModelForSeq2SeqLM
    # transformers lists the one class of XLM and FlauBERT under masked models.
    causal = kind == "causal" and config.model_type not in ("xlm", "flaubert")
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM


def _build_without_weights(folder: Path, kind: str, weights: WeightSet | None) -> Any:
    """Build the model of a folder's config.json on the meta device."""
    with torch.device("meta"), limit_model_size(folder / "config.json", weights):
        config = transformers.AutoConfig.from_pretrained(folder)
        return _auto_class(kind, config).from_config(config)


def locate_forward_error(
    error: CheckpointError, folder: Path, kind: str, options: OpenOptions
) -> CheckpointError:
    """Return an error of a loaded model's forward with the file, and the key of config.json if a
    wrong value causes it.
    """

    def run_forward(folder: Path) -> None:
        model = _build_without_weights(folder, kind, select_weights(source, options.allow_pickle))
        plain_logits(model.eval(), input_ids=torch.zeros((1, 8), dtype=torch.long, device="meta"))

    source = folder
    return CheckpointError(
        name_wrong_key(error.message, folder, run_forward),
        location=str(folder / "config.json"),
        hint=error.hint,
    )


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast the tensors of a model's files, as transformers does when it loads in that dtype.

    Modules that transformers keeps in fp32 stay. So do computed buffers (rotary angles), because
    rounding the angles of distant positions would make them angles of other positions.
    """
    fp32_modules = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        fp32_modules |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    alternatives = "|".join(map(re.escape, fp32_modules))
    saved_names = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            stays_fp32 = fp32_modules and re.search(rf"(^|\.)({alternatives})(\.|$)", name)
            if name in saved_names and tensor.is_floating_point() and not stays_fp32:
                tensor.data = tensor.data.to(dtype)


def usable_vocab_size(model: Any) -> int:
    """Return the number of token ids that have an input embedding and a row of the LM head."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = [getattr(module, "weight", None) for module in embeddings]
    # An LM head without a weight of its own has no rows that limit the ids.
    sizes: list[int] = [weight.shape[0] for weight in weights if isinstance(weight, torch.Tensor)]
    return min(sizes)


def resolve_device(name: str | torch.device | int) -> torch.device:
    """Return the device of that name; "auto" takes the first available of cuda, mps and cpu."""
    if isinstance(name, str) and name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        shown = repr(name) if isinstance(name, str) else describe_argument(name)
        raise UsageError(
            f"unknown device {shown}", location="--device", hint="cpu, cuda, cuda:1, mps"
        ) from error
    if device.type not in ("cpu", "cuda", "mps"):  # torch also has devices without memory ("meta")
        raise UsageError(
            f"unsupported device {name!r}", location="--device", hint="cpu, cuda, cuda:1, mps"
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
    """Turn off warnings and progress bars of transformers while it loads.

    Missing weights raise an error here, instead of transformers' warning. Log level, progress bars
    and random seed belong to the process, so only one thread loads at a time.
    """
    logger, hf = logging.getLogger("transformers"), transformers.utils.logging
    with _loading_lock:
        level, shows_bars = logger.level, hf.is_progress_bar_enabled()
        logger.setLevel(logging.CRITICAL)
        hf.disable_progress_bar()
        try:
            yield
        finally:
            logger.setLevel(level)
            if shows_bars:
                hf.enable_progress_bar()
