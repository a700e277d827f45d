"""From a folder to the library's objects: configuration, tokenizer, weights; and how the model
takes its rows.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
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
from antlm_bench.scoring.attention import (
    PACKED_ATTENTION,
    CannotPackError,
    packed_attention_forward,
)
from antlm_bench.scoring.engine import (
    Engine,
    ForwardConfig,
    attention_mask_inputs,
    plain_logits,
    vocabulary_size,
)
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.types import Attention, Floats, Probes

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


CONFIG_HINT = "a value in config.json is not one that this version of transformers takes: compare it with the original's"
TRUNCATED_HINT = "a file is truncated, or one that the index or a link names is missing: compare with the original's files"
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
    """An exception in a line, with its type where the message alone says little."""
    message = first_line(error)
    return message if len(message.split()) > 3 else f"{type(error).__name__}: {message}"


def detect_kind(config: Any, folder: Path) -> str:
    """causal or masked, from the architecture that the checkpoint was saved as.

    Raises CheckpointError for a model that predicts no tokens, and for encoder-decoders.
    """
    names = list(getattr(config, "architectures", None) or [])
    location = str(folder / "config.json")
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{', '.join(names) or config.model_type} is an encoder-decoder: its decoder predicts a text from another "
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
    """causal or masked, or "" for a class that is neither. CheckpointError for XLM with embeddings
    of languages.
    """
    if name.endswith(
        "WithLMHeadModel"
    ):  # XLM, FlauBERT: one class for both, and a field that says which
        if getattr(config, "use_lang_emb", False) and getattr(config, "n_langs", 1) > 1:
            raise CheckpointError(
                f"{name} wants to know the language of each text (n_langs = {config.n_langs}, use_lang_emb), "
                "and scoring does not tell it",
                location=location,
                hint="score a checkpoint of one language, or one without language embeddings",
            )
        return "causal" if getattr(config, "causal", False) else "masked"
    masked_types = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if (
        name.endswith("ForPreTraining") and config.model_type in masked_types
    ):  # a masked LM with one more head
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
    """One sentence: what the checkpoint was saved as, and why it has no log-probability of a token."""
    if name.endswith("ForPreTraining") and config.model_type in DISCRIMINATOR_TYPES:
        return f"{name} is a discriminator: it tells replaced tokens from original ones and predicts no tokens"
    for ending, answers in NON_LM_HEADS.items():
        if name.endswith(ending):
            return f"{name} predicts no tokens, but {answers}"
    if name.endswith("ForConditionalGeneration"):
        return f"{name} generates text from images, sounds or other inputs, and is not scored on text alone"
    if name.endswith(("Model", "Encoder")):
        return f"{name} is a model without a language-model head, so it predicts no tokens"
    return f"saved as {name}, which is neither a ...ForCausalLM nor a ...ForMaskedLM, so it predicts no tokens"


def _suggest_checkpoint(name: str, config: Any) -> str:
    if config.model_type in DISCRIMINATOR_TYPES:
        return "score its generator, which was trained beside it"
    if any(name.endswith(ending) for ending in NON_LM_HEADS):
        return "score the ...ForCausalLM or ...ForMaskedLM checkpoint that it was finetuned from"
    return "score a ...ForCausalLM or ...ForMaskedLM checkpoint, saved with its head"


def load_tokenizer(folder: Path, options: OpenOptions) -> Any:
    """The tokenizer in a folder; a tokenizer.json alone will do (transformers 5 no longer knows
    some class names).
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
        model.dropout = (
            None  # BPE dropout is for training: with it, a text has other tokens every time
        )
    return tokenizer


def _load_tokenizer_files(folder: Path, options: OpenOptions) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=options.trust_remote_code
        )
        names = [str(name) for name in tokenizer.vocab_files_names.values()]
        if names and not any(
            (folder / name).is_file() for name in names
        ):  # transformers 5.0 makes up an empty one
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
                hint="save it beside the weights with tokenizer.save_pretrained(folder), or give one with --tokenizer",
            ) from error


def load_model(folder: Path, kind: str, config: Any, options: OpenOptions) -> Any:
    """The model in fp32, evaluation mode; see `load_checked_model`."""
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
            torch.manual_seed(
                0
            )  # parameters that --allow-missing lets pass are the same in every run
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
    """How many token ids a text may hold: those with a row in the embedding, and in the LM head if
    it has rows.
    """
    weights = [
        getattr(head, "weight", None)
        for head in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    rows: list[int] = [weight.shape[0] for weight in weights if isinstance(weight, torch.Tensor)]
    return min(rows)


def resolve_max_length(model: Any, tokenizer: Any, requested: int | None) -> int | None:
    """The longest row: the least of what model (on the CPU), tokenizer and user allow."""
    said = tokenizer.model_max_length
    limits = [
        position_limit(model),
        int(said) if isinstance(said, int | float) and said < 10**9 else None,
    ]
    known = [limit for limit in limits if limit is not None and limit > 0]
    if requested is not None:
        if requested < 1 or (known and requested > min(known)):
            raise UsageError(
                f"{requested} is not in 1..{min(known, default='?')}", location="--max-length"
            )
        known.append(requested)
    return min(known, default=None)


FORWARD_ERRORS = (
    CannotPackError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError, KeyError,
    AssertionError, CheckpointError,
)  # fmt: skip
LENGTH_DEPENDENT_ROPE = (
    "dynamic",
    "longrope",
)  # rotary angles that follow from the longest row of a forward
CAUSALITY_TOLERANCE = (
    1e-5  # of the largest logit; equal shapes give equal numbers, so that rounding moves less
)
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


def check_causality(model: Any, folder: Path) -> None:
    """Refuse a model that sees later tokens: its log-probabilities would be those of no
    left-to-right model.

    Two rows that differ in their last token must have the same logits before it. Raises
    CheckpointError.
    """
    vocabulary = vocabulary_size(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary - 1, (1, 8))).to(
        model.device
    )
    with torch.inference_mode():
        first, again = (plain_logits(model, input_ids=ids) for _ in range(2))
        if not torch.allclose(
            first, again, atol=1e-4, equal_nan=True
        ):  # NaN is named where it is read
            raise CheckpointError(
                f"{type(model).__name__} answers differently when it is asked the same again",
                location=str(folder),
                hint="a forward that depends on chance or on earlier calls cannot be scored",
            )
    moved = logit_change_from_last_token(model, ids)
    if moved > CAUSALITY_TOLERANCE:
        raise CheckpointError(
            f"{type(model).__name__} is no causal model as it was saved: a change of the last token moved the logits "
            f"before it by {moved:.1g} of the largest, so that every prediction sees what it predicts",
            location=str(folder),
            hint='an encoder is causal with "is_decoder": true in config.json; if it was trained with masks, save it '
            "as ...ForMaskedLM",
        )


def logit_change_from_last_token(model: Any, ids: torch.Tensor) -> float:
    """Largest move of a logit before the last token of (1, t) ids when that token changes, relative
    to the largest.
    """
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary_size(model)
    with torch.inference_mode():
        logits, moved = (
            plain_logits(model, input_ids=rows)[0, :-1].float() for rows in (ids, other)
        )
    return float((logits - moved).abs().max() / logits.abs().max().clamp(min=1e-6))


def detect_forward_config(
    model: Any, kind: str, name: str, special_ids: Sequence[int] = ()
) -> ForwardConfig:
    """Packed if packed rows give this model's own numbers, else plain rows: tried, not assumed.

    Positions may begin after a padding id, and tokens with that id may not count. Likewise tried is
    whether the last layer can be run at the read positions only, and whether a forward changes the
    model.
    """
    before = ModelState.capture(model)
    try:
        return _choose_forward_config(model, kind, name, special_ids, before)
    finally:
        before.restore()


def _choose_forward_config(
    model: Any, kind: str, name: str, special_ids: Sequence[int], initial_state: ModelState
) -> ForwardConfig:
    transformers.AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
    own = ForwardConfig(model.config._attn_implementation, "causal" if kind == "causal" else "full")
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    padding = (
        padding if isinstance(padding, int) and 0 <= padding < vocabulary_size(model) else None
    )
    probes = _trial_probes(
        model, own.native_attention, [*special_ids, *([] if padding is None else [padding])]
    )
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    length_dependent = rope.get("rope_type") in LENGTH_DEPENDENT_ROPE
    plain, own = _plain_scores(model, name, own, probes)
    restores = initial_state.has_changed() or length_dependent
    initial_state.restore()
    own = replace(own, restores=restores)
    longest = rope.get("original_max_position_embeddings") or getattr(
        model.config, "max_position_embeddings", None
    )
    own = replace(own, packed_length=longest if length_dependent else None)
    candidates = [] if padding is None else [(padding, padding), (1 + padding, None)]
    for first, skipped in [(0, None), *candidates, (2, None)] if own.split_head else []:
        packed = replace(own, layout="packed", first_position=first, padding_id=skipped)
        try:
            found = Engine(model, name, packed, 64).score_probes(probes, 18)
        except FORWARD_ERRORS:
            continue  # this architecture's attention cannot be replaced, or has no such position
        finally:
            initial_state.restore()
        if np.allclose(plain, found, rtol=1e-5, atol=1e-4):
            packed = replace(packed, narrow=_can_narrow_last_layer(model, name, packed))
            model.set_attn_implementation(own.native_implementation)
            return replace(packed, masks=obeys_attention_masks(model, own.native_attention))
    model.set_attn_implementation(own.native_implementation)
    return replace(own, masks=obeys_attention_masks(model, own.native_attention))


def _plain_scores(
    model: Any, name: str, forward_config: ForwardConfig, probes: Sequence[Probes]
) -> tuple[Floats, ForwardConfig]:
    """What plain rows answer, and the geometry that reads them: with the head split off where it
    can be.
    """
    whole = replace(forward_config, split_head=False)
    expected = Engine(model, name, whole, 64).score_probes(probes, 18)
    try:
        if np.allclose(
            Engine(model, name, forward_config, 64).score_probes(probes, 18),
            expected,
            rtol=1e-5,
            atol=1e-4,
        ):
            return expected, forward_config
    except FORWARD_ERRORS:
        pass
    return expected, whole


def obeys_attention_masks(model: Any, attends: Attention) -> bool:
    """Whether a 4-D mask decides which way rows attend: tried on two rows that differ in their last
    token.
    """
    vocabulary = vocabulary_size(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary - 1, (1, 6))).repeat(
        2, 1
    )
    ids[1, -1] += 1
    ids = ids.to(model.device)

    def before_it(**inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = model.base_model(input_ids=ids, **inputs)[0][:, :-1]
        return states

    try:
        own, full, causal = (
            before_it(**inputs)
            for inputs in ({}, attention_mask_inputs(6, "full"), attention_mask_inputs(6, "causal"))
        )
    except FORWARD_ERRORS:
        return False
    sees = [not torch.allclose(states[0], states[1], atol=1e-5) for states in (full, causal)]
    return sees == [True, False] and torch.allclose(
        own, full if attends == "full" else causal, atol=1e-4
    )


def _can_narrow_last_layer(model: Any, name: str, forward_config: ForwardConfig) -> bool:
    """Whether the last layer at the read positions alone gives the same numbers as the whole of it."""
    engine = Engine(model, name, replace(forward_config, narrow=True), 64)
    probes = [replace(p, row=p.row[2::4], position=p.position[2::4], target=p.target[2::4], text_index=p.text_index[2::4])
              for p in _trial_probes(model, "full")]  # fmt: skip
    try:
        whole, found = (
            Engine(model, name, forward_config, 64).score_probes(probes, 18),
            engine.score_probes(probes, 18),
        )
        return engine.last_layer is not None and np.allclose(whole, found, rtol=1e-5, atol=1e-4)
    except FORWARD_ERRORS:
        return False


def _trial_probes(
    model: Any, attention: Attention, special_ids: Sequence[int] = ()
) -> list[Probes]:
    """Random rows of three lengths, every position read; text = its place among 18.

    The rows of one length share a beginning; the second holds special ids where a text has its
    tokens.
    """
    rng = np.random.default_rng(0)
    vocabulary = vocabulary_size(model)
    usable = [i for i in special_ids if i < vocabulary]
    stem, probes = rng.integers(0, vocabulary, 9), []
    for length in (4, 6, 9):
        ids = np.stack(
            [stem[:length], np.concatenate([stem[:2], rng.integers(0, vocabulary, length - 2)])]
        )
        if usable:
            ids[1, 2:-1:2] = rng.choice(usable, len(ids[1, 2:-1:2]))
            ids[1, 2] = usable[-1]  # the padding id, where there is one
        row, at = (x.ravel() for x in np.meshgrid(np.arange(2), np.arange(length), indexing="ij"))
        reads = (
            x.astype(np.int32)
            for x in (row, at, rng.integers(0, vocabulary, len(row)), row * 9 + at)
        )
        probes.append(Probes(ids.astype(np.int32), attention, *reads))
    return probes


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
