"""From a folder to the library's objects: configuration, tokenizer, weights; and how the model takes its rows."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import transformers
from transformers.models.auto import modeling_auto

from antlm_bench.checkpoints import conversion
from antlm_bench.checkpoints.adapters import without_adapter
from antlm_bench.checkpoints.positions import position_limit, runs_row
from antlm_bench.checkpoints.resolve import OpenOptions, first_line
from antlm_bench.checkpoints.tensor_check import Allowed, check_loaded
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.attention import PACKED, CannotPackError, attend
from antlm_bench.scoring.engine import Engine, Geometry, plain_logits, vocabulary_size, whole_rows
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.types import Attention, Floats, Probes

# Models trained to tell replaced tokens from original ones: their ...ForPreTraining holds no masked LM.
DISCRIMINATORS = ("electra", "funnel")
# Endings of classes that answer another question than "which token is it?", and what they answer.
OTHER_HEADS = {
    "ForSequenceClassification": "classes of texts",
    "ForTokenClassification": "classes of tokens",
    "ForMultipleChoice": "the best of several texts",
    "ForQuestionAnswering": "spans that answer a question",
    "ForNextSentencePrediction": "whether one text follows another",
    "ForImageClassification": "classes of images",
}


CONFIG_HINT = (
    "a value in config.json is not one that this version of transformers takes: compare it with the original's"
)
TRUNCATED_HINT = (
    "a file is truncated, or one that the index or a link names is missing: compare with the original's files"
)
DAMAGE = (safetensors.SafetensorError, OSError, EOFError, pickle.UnpicklingError)


def configuration_of(folder: Path, options: OpenOptions) -> Any:
    original = conversion.recognise(folder, options)
    if original is not None:
        return original.configuration()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # a value of the wrong kind fails in a dozen ways
        raise CheckpointError(
            f"cannot read the configuration: {said_by(error)}",
            place=str(folder / "config.json"),
            hint=CONFIG_HINT + ("" if options.trust_remote_code else "; code of its own needs --trust-remote-code"),
        ) from error
    names = getattr(config, "architectures", None)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise CheckpointError(
            f'"architectures" is {names!r}, no list of class names',
            place=str(folder / "config.json"),
            hint='write "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    if str(getattr(config, "_attn_implementation", "")).startswith("flash"):
        config._attn_implementation = None  # a wish about speed; ours replaces attention anyway
    return config


def said_by(error: BaseException) -> str:
    """An exception in a line, with its type where the message alone says little."""
    message = first_line(error)
    return message if len(message.split()) > 3 else f"{type(error).__name__}: {message}"


def kind_of(config: Any, folder: Path) -> str:
    """causal or masked, from the architecture that the checkpoint was saved as.

    Raises CheckpointError for a model that predicts no tokens, and for encoder-decoders.
    """
    names = list(getattr(config, "architectures", None) or [])
    location = str(folder / "config.json")
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{', '.join(names) or config.model_type} is an encoder-decoder: its decoder predicts a text from another "
            "one that its encoder reads, and no method here scores that",
            place=location,
            hint="score a ...ForCausalLM or ...ForMaskedLM checkpoint",
        )
    for name in names:
        if kind := _kind_of_class(name, config, location):
            return kind
    if names:
        raise CheckpointError(
            _why_unscorable(names[0], config),
            place=location,
            hint=_what_to_score(names[0], config),
        )
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal == masked:
        raise CheckpointError(
            f"does not say whether {config.model_type!r} is causal or masked",
            place=location,
            hint='add "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    return "causal" if causal else "masked"


def _kind_of_class(name: str, config: Any, location: str) -> str:
    """causal or masked, or "" for a class that is neither. CheckpointError for XLM with embeddings of languages."""
    if name.endswith("WithLMHeadModel"):  # XLM, FlauBERT: one class for both, and a field that says which
        if getattr(config, "use_lang_emb", False) and getattr(config, "n_langs", 1) > 1:
            raise CheckpointError(
                f"{name} wants to know the language of each text (n_langs = {config.n_langs}, use_lang_emb), "
                "and scoring does not tell it",
                place=location,
                hint="score a checkpoint of one language, or one without language embeddings",
            )
        return "causal" if getattr(config, "causal", False) else "masked"
    masked_types = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if name.endswith("ForPreTraining") and config.model_type in masked_types:  # a masked LM with one more head
        return "" if config.model_type in DISCRIMINATORS else "masked"
    if name.endswith("ForMaskedLM"):
        return "masked"
    if name.endswith(("ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ModelWithLMHead")):
        return "causal"
    others = [n for n in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if isinstance(n, str)]
    return "causal" if name in others and not name.endswith("ForConditionalGeneration") else ""


def _why_unscorable(name: str, config: Any) -> str:
    """One sentence: what the checkpoint was saved as, and why it has no log-probability of a token."""
    if name.endswith("ForPreTraining") and config.model_type in DISCRIMINATORS:
        return f"{name} is a discriminator: it tells replaced tokens from original ones and predicts no tokens"
    for ending, answers in OTHER_HEADS.items():
        if name.endswith(ending):
            return f"{name} predicts no tokens, but {answers}"
    if name.endswith("ForConditionalGeneration"):
        return f"{name} generates text from images, sounds or other inputs, and is not scored on text alone"
    if name.endswith(("Model", "Encoder")):
        return f"{name} is a model without a language-model head, so it predicts no tokens"
    return f"saved as {name}, which is neither a ...ForCausalLM nor a ...ForMaskedLM, so it predicts no tokens"


def _what_to_score(name: str, config: Any) -> str:
    if config.model_type in DISCRIMINATORS:
        return "score its generator, which was trained beside it"
    if any(name.endswith(ending) for ending in OTHER_HEADS):
        return "score the ...ForCausalLM or ...ForMaskedLM checkpoint that it was finetuned from"
    return "score a ...ForCausalLM or ...ForMaskedLM checkpoint, saved with its head"


def tokenizer_of(folder: Path, options: OpenOptions) -> Any:
    """The tokenizer in a folder; a tokenizer.json alone will do (transformers 5 no longer knows some class names)."""
    tokenizer = _tokenizer_of(folder, options)
    if not isinstance(tokenizer.model_max_length, int | float):
        raise CheckpointError(
            f'"model_max_length" is {tokenizer.model_max_length!r}, no number',
            place=str(folder / "tokenizer_config.json"),
            hint="write the number without quotes",
        )
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None  # BPE dropout is for training: with it, a text has other tokens every time
    return tokenizer


def _tokenizer_of(folder: Path, options: OpenOptions) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
        names = [str(name) for name in tokenizer.vocab_files_names.values()]
        if names and not any((folder / name).is_file() for name in names):  # transformers 5.0 makes up an empty one
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
                place=str(folder),
                hint="save it beside the weights with tokenizer.save_pretrained(folder), or give one with --tokenizer",
            ) from error


def weights_of(folder: Path, kind: str, config: Any, options: OpenOptions) -> Any:
    """The model in fp32, evaluation mode; see `load_weights`."""
    return load_weights(folder, kind, config, options)[0]


def load_weights(folder: Path, kind: str, config: Any, options: OpenOptions) -> tuple[Any, Allowed]:
    """Load the model in fp32, evaluation mode, with what --allow-unused and --allow-missing had to let pass.

    Raises CheckpointError where the files cannot be read, or hold another model than the configuration describes.
    """
    original = conversion.recognise(folder, options)
    if original is not None:
        return original.model(kind, config), Allowed()
    # XLM and FlauBERT have one class for both kinds, which is listed under masked models.
    causal = kind == "causal" and config.model_type not in ("xlm", "flaubert")
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
    try:
        with without_adapter(folder) as bare, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # parameters that --allow-missing lets pass are the same in every run
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
            f"cannot load the weights: {said_by(error)}",
            place=str(folder),
            hint=(TRUNCATED_HINT if isinstance(error, DAMAGE) else CONFIG_HINT)
            + ("" if options.trust_remote_code else "; code of its own needs --trust-remote-code"),
        ) from error
    return model.eval(), check_loaded(model, info, folder, options)


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast what a model's files hold, as transformers does when it loads in that dtype.

    Buffers that are computed (rotary angles) and modules that the library keeps in float32 stay: rounded angles of
    distant positions are other positions.
    """
    kept = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        kept |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    parts = re.compile("|".join(rf"(^|\.){re.escape(part)}(\.|$)" for part in kept)) if kept else None
    saved = model.state_dict().keys()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved and tensor.is_floating_point() and not (parts and parts.search(name)):
                tensor.data = tensor.data.to(dtype)


def vocabulary_of(model: Any) -> int:
    """How many token ids a text may hold: those with a row in the embedding, and in the LM head if it has rows."""
    weights = [getattr(head, "weight", None) for head in (model.get_input_embeddings(), model.get_output_embeddings())]
    rows: list[int] = [weight.shape[0] for weight in weights if isinstance(weight, torch.Tensor)]
    return min(rows)


def max_length_of(model: Any, tokenizer: Any, wanted: int | None) -> int | None:
    """The longest row: the least of what model (on the CPU), tokenizer and user allow."""
    said = tokenizer.model_max_length
    limits = [position_limit(model), int(said) if isinstance(said, int | float) and said < 10**9 else None]
    known = [limit for limit in limits if limit is not None and limit > 0]
    if wanted is not None:
        if wanted < 1 or (known and wanted > min(known)):
            raise UsageError(f"{wanted} is not in 1..{min(known, default='?')}", place="--max-length")
        known.append(wanted)
    return min(known, default=None)


UNFIT = (
    CannotPackError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError, KeyError,
    AssertionError, CheckpointError,
)  # fmt: skip
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")  # rotary angles that follow from the longest row of a forward
CAUSALITY_TOLERANCE = 1e-5  # of the largest logit; equal shapes give equal numbers, so that rounding moves less
LONGEST_TRIAL = 2048  # tokens; the longest shipped text has 1,300 bytes


def last_position(model: Any, declared: int | None) -> int | None:
    """Return the longest row (tokens) that a model on the CPU runs, whatever its files declare; None = any.

    Code that never looks at the declared limit (BabyLM 2025's) runs rotary and relative positions beyond it, and fails
    where positions are learned. One row that is a token longer than the limit is tried. Limits beyond LONGEST_TRIAL
    are kept untried.
    """
    limit = position_limit(model)
    if declared is None or limit is None or limit > LONGEST_TRIAL:
        return declared
    return None if runs_row(model, limit + 1) else limit


def check_causality(model: Any, folder: Path) -> None:
    """Refuse a model that sees later tokens: its log-probabilities would be those of no left-to-right model.

    Two rows that differ in their last token must have the same logits before it. Raises CheckpointError.
    """
    vocabulary = vocabulary_size(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary - 1, (1, 8))).to(model.device)
    with torch.inference_mode():
        first, again = (plain_logits(model, input_ids=ids) for _ in range(2))
        if not torch.allclose(first, again, atol=1e-4, equal_nan=True):  # NaN is named where it is read
            raise CheckpointError(
                f"{type(model).__name__} answers differently when it is asked the same again",
                place=str(folder),
                hint="a forward that depends on chance or on earlier calls cannot be scored",
            )
    moved = logit_change_from_last_token(model, ids)
    if moved > CAUSALITY_TOLERANCE:
        raise CheckpointError(
            f"{type(model).__name__} is no causal model as it was saved: a change of the last token moved the logits "
            f"before it by {moved:.1g} of the largest, so that every prediction sees what it predicts",
            place=str(folder),
            hint='an encoder is causal with "is_decoder": true in config.json; if it was trained with masks, save it '
            "as ...ForMaskedLM",
        )


def logit_change_from_last_token(model: Any, ids: torch.Tensor) -> float:
    """Largest move of a logit before the last token of (1, t) ids when that token changes, relative to the largest."""
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary_size(model)
    with torch.inference_mode():
        logits, moved = (plain_logits(model, input_ids=rows)[0, :-1].float() for rows in (ids, other))
    return float((logits - moved).abs().max() / logits.abs().max().clamp(min=1e-6))


def geometry_of(model: Any, kind: str, name: str, special_ids: Sequence[int] = ()) -> Geometry:
    """Packed if packed rows give this model's own numbers, else plain rows: tried, not assumed.

    Positions may begin after a padding id, and tokens with that id may not count. Likewise tried is whether the last
    layer can be run at the read positions only, and whether a forward changes the model.
    """
    before = ModelState.of(model)
    try:
        return _choose_geometry(model, kind, name, special_ids, before)
    finally:
        before.restore()


def _choose_geometry(model: Any, kind: str, name: str, special_ids: Sequence[int], before: ModelState) -> Geometry:
    transformers.AttentionInterface.register(PACKED, attend)
    own = Geometry(model.config._attn_implementation, "causal" if kind == "causal" else "full")
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    padding = padding if isinstance(padding, int) and 0 <= padding < vocabulary_size(model) else None
    probes = _trial_probes(model, own.attends, [*special_ids, *([] if padding is None else [padding])])
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    length_dependent = rope.get("rope_type") in LENGTH_DEPENDENT_ROPE
    plain, own = _plain_answers(model, name, own, probes)
    restores = before.changed() or length_dependent
    before.restore()
    own = replace(own, restores=restores)
    longest = rope.get("original_max_position_embeddings") or getattr(model.config, "max_position_embeddings", None)
    own = replace(own, packed_length=longest if length_dependent else None)
    candidates = [] if padding is None else [(padding, padding), (1 + padding, None)]
    for first, skipped in [(0, None), *candidates, (2, None)] if own.split_head else []:
        packed = replace(own, layout="packed", first_position=first, padding_id=skipped)
        try:
            found = Engine(model, name, packed, 64).read(probes, 18)
        except UNFIT:
            continue  # this architecture's attention cannot be replaced, or has no such position
        finally:
            before.restore()
        if np.allclose(plain, found, rtol=1e-5, atol=1e-4):
            packed = replace(packed, narrow=_narrows(model, name, packed))
            model.set_attn_implementation(own.native)
            return replace(packed, masks=obeys_attention_masks(model, own.attends))
    model.set_attn_implementation(own.native)
    return replace(own, masks=obeys_attention_masks(model, own.attends))


def _plain_answers(model: Any, name: str, own: Geometry, probes: Sequence[Probes]) -> tuple[Floats, Geometry]:
    """What plain rows answer, and the geometry that reads them: with the head split off where it can be."""
    whole = replace(own, split_head=False)
    expected = Engine(model, name, whole, 64).read(probes, 18)
    try:
        if np.allclose(Engine(model, name, own, 64).read(probes, 18), expected, rtol=1e-5, atol=1e-4):
            return expected, own
    except UNFIT:
        pass
    return expected, whole


def obeys_attention_masks(model: Any, attends: Attention) -> bool:
    """Whether a 4-D mask decides which way rows attend: tried on two rows that differ in their last token."""
    vocabulary = vocabulary_size(model)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary - 1, (1, 6))).repeat(2, 1)
    ids[1, -1] += 1
    ids = ids.to(model.device)

    def before_it(**inputs: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = model.base_model(input_ids=ids, **inputs)[0][:, :-1]
        return states

    try:
        own, full, causal = (before_it(**inputs) for inputs in ({}, whole_rows(6, "full"), whole_rows(6, "causal")))
    except UNFIT:
        return False
    sees = [not torch.allclose(states[0], states[1], atol=1e-5) for states in (full, causal)]
    return sees == [True, False] and torch.allclose(own, full if attends == "full" else causal, atol=1e-4)


def _narrows(model: Any, name: str, packed: Geometry) -> bool:
    """Whether the last layer at the read positions alone gives the same numbers as the whole of it."""
    engine = Engine(model, name, replace(packed, narrow=True), 64)
    probes = [replace(p, row=p.row[2::4], at=p.at[2::4], target=p.target[2::4], text=p.text[2::4])
              for p in _trial_probes(model, "full")]  # fmt: skip
    try:
        whole, found = Engine(model, name, packed, 64).read(probes, 18), engine.read(probes, 18)
        return engine.last is not None and np.allclose(whole, found, rtol=1e-5, atol=1e-4)
    except UNFIT:
        return False


def _trial_probes(model: Any, attention: Attention, special_ids: Sequence[int] = ()) -> list[Probes]:
    """Random rows of three lengths, every position read; text = its place among 18.

    The rows of one length share a beginning; the second holds special ids where a text has its tokens.
    """
    rng = np.random.default_rng(0)
    vocabulary = vocabulary_size(model)
    usable = [i for i in special_ids if i < vocabulary]
    stem, probes = rng.integers(0, vocabulary, 9), []
    for length in (4, 6, 9):
        ids = np.stack([stem[:length], np.concatenate([stem[:2], rng.integers(0, vocabulary, length - 2)])])
        if usable:
            ids[1, 2:-1:2] = rng.choice(usable, len(ids[1, 2:-1:2]))
            ids[1, 2] = usable[-1]  # the padding id, where there is one
        row, at = (x.ravel() for x in np.meshgrid(np.arange(2), np.arange(length), indexing="ij"))
        reads = (x.astype(np.int32) for x in (row, at, rng.integers(0, vocabulary, len(row)), row * 9 + at))
        probes.append(Probes(ids.astype(np.int32), attention, *reads))
    return probes


def device_of(wanted: str) -> torch.device:
    if wanted == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"unknown device {wanted!r}", place="--device", hint="cpu, cuda, cuda:1, mps") from error
    if device.type not in ("cpu", "cuda", "mps"):  # torch knows some that compute nothing
        raise UsageError(f"nothing is scored on {wanted!r}", place="--device", hint="cpu, cuda, cuda:1, mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"no CUDA device {device.index or 0} here", place="--device", hint="--device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("no MPS device here", place="--device", hint="--device cpu")
    return device


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library while it loads: what it would warn of (missing weights) is checked and raised here."""
    logger, hf = logging.getLogger("transformers"), transformers.utils.logging
    level, bars = logger.level, hf.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    hf.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            hf.enable_progress_bar()
