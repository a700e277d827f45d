"""From a folder to the library's objects: configuration, tokenizer, weights; and how the model takes its rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

from antlm_bench.checkpoints import conversion
from antlm_bench.checkpoints.folders import OpenOptions, first_line
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.attention import PACKED, CannotPackError, attend
from antlm_bench.scoring.engine import Engine, Geometry, whole_rows
from antlm_bench.types import Attention, Probes

PRETRAINING = ("BertForPreTraining", "AlbertForPreTraining")  # a masked LM with one more head


def configuration_of(folder: Path, options: OpenOptions) -> Any:
    original = conversion.recognise(folder, options)
    if original is not None:
        return original.configuration()
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read the configuration: {first_line(error)}", place=str(folder)) from error


def kind_of(config: Any, folder: Path) -> str:
    """causal or masked, from the architecture that the checkpoint was saved as."""
    names = list(getattr(config, "architectures", None) or [])
    for name in names:
        if name.endswith("ForMaskedLM") or name in PRETRAINING:
            return "masked"
        if name.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
    if names:
        raise CheckpointError(
            f"saved as {', '.join(names)}, which predicts no tokens",
            place=str(folder / "config.json"),
            hint="score a ...ForCausalLM or ...ForMaskedLM checkpoint (for ELECTRA: the generator)",
        )
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal == masked:
        raise CheckpointError(
            f"does not say whether {config.model_type!r} is causal or masked",
            place=str(folder / "config.json"),
            hint='add "architectures": ["...ForCausalLM"] or ["...ForMaskedLM"]',
        )
    return "causal" if causal else "masked"


def tokenizer_of(folder: Path, options: OpenOptions) -> Any:
    """The checkpoint's tokenizer; a tokenizer.json alone will do (transformers 5 no longer knows some class names)."""
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except Exception as first:
        try:
            if (folder / "tokenizer.json").is_file():
                return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
            raise first
        except Exception as error:
            raise CheckpointError(
                f"cannot read the tokenizer: {first_line(error)}",
                place=str(folder),
                hint="save it beside the weights with tokenizer.save_pretrained(folder)",
            ) from error


def weights_of(folder: Path, kind: str, config: Any, options: OpenOptions) -> Any:
    """The model in fp32, evaluation mode. Weights that are not in the file would be random: an error, not a warning."""
    original = conversion.recognise(folder, options)
    if original is not None:
        return original.model(kind, config)
    auto = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForMaskedLM
    try:
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=None if options.allow_pickle else True,
            trust_remote_code=options.trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, json and torch each have their own
        raise CheckpointError(
            f"cannot load the weights: {first_line(error)}",
            place=str(folder),
            hint="the file may be truncated: compare its size with the original's"
            + ("" if options.trust_remote_code else "; code of its own needs --trust-remote-code"),
        ) from error
    problems = sorted(info["missing_keys"]) + sorted(str(k) for k in info.get("mismatched_keys", ()))
    if problems:
        raise CheckpointError(
            f"{len(problems)} weights of {type(model).__name__} are missing or misshapen (e.g. {problems[0]}); "
            "they would be random numbers",
            place=str(folder),
            hint="the checkpoint was saved without its language-model head, or for another architecture",
        )
    return model.eval()


def max_length_of(config: Any, tokenizer: Any, wanted: int | None) -> int | None:
    """The longest row: the least of what configuration, tokenizer (None = whatever it says) and user allow."""
    limits: list[Any] = [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limits[0] = limits[0] - 1 - config.pad_token_id  # positions begin after the padding id
    if tokenizer is not None and tokenizer.model_max_length < 10**9:
        limits.append(tokenizer.model_max_length)
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    if wanted is not None:
        if wanted < 1 or (known and wanted > min(known)):
            raise UsageError(f"{wanted} is not in 1..{min(known, default='?')}", place="--max-length")
        known.append(wanted)
    return min(known, default=None)


LONGEST_TRIAL = 2048  # tokens; the longest shipped text has 1,300 bytes


def last_position(model: Any, config: Any, declared: int | None) -> int | None:
    """Return the longest row (tokens) that a model on the CPU runs, whatever its files declare; None = any.

    Code that never looks at the declared limit (BabyLM 2025's) runs rotary and relative positions beyond it, and fails
    where positions are learned. One row that is a token longer than the configuration says is tried. Limits beyond
    LONGEST_TRIAL are kept untried.
    """
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    if declared is None or not known or min(known) > LONGEST_TRIAL:
        return declared
    pad, learned = getattr(config, "pad_token_id", None), min(known)
    row = torch.full((1, learned + 1), 1 if pad == 0 else 0)  # no padding, which some positions skip
    try:
        with torch.inference_mode():
            model(input_ids=row, attention_mask=torch.ones_like(row))
    except UNFIT:
        return max_length_of(config, None, None)
    return None


UNFIT = (CannotPackError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError)


def geometry_of(model: Any, kind: str, name: str) -> Geometry:
    """Packed if packed rows give this model's own numbers, else plain rows: tried, not assumed.

    Learned positions may begin after a padding id. Likewise whether the last layer can do with the read positions.
    """
    transformers.AttentionInterface.register(PACKED, attend)
    own = Geometry(model.config._attn_implementation, "causal" if kind == "causal" else "full")
    probes = _trial(model, own.attends)
    plain = Engine(model, name, own, 64).read(probes, 18)
    pad = model.config.pad_token_id
    for first in dict.fromkeys([0, 1 + pad if pad is not None else 0, 2]):
        packed = replace(own, layout="packed", first_position=first)
        try:
            found = Engine(model, name, packed, 64).read(probes, 18)
        except UNFIT:
            continue  # this architecture's attention cannot be replaced, or has no such position
        if np.allclose(plain, found, rtol=1e-5, atol=1e-4):
            return replace(packed, narrow=_narrows(model, name, packed))
    model.set_attn_implementation(own.native)
    return replace(own, masks=takes_masks(model, own.attends))


def takes_masks(model: Any, attends: Attention) -> bool:
    """Whether a 4-D mask decides which way rows attend: tried on two rows that differ in their last token."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
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
              for p in _trial(model, "full")]  # fmt: skip
    try:
        whole, found = Engine(model, name, packed, 64).read(probes, 18), engine.read(probes, 18)
        return engine.last is not None and np.allclose(whole, found, rtol=1e-5, atol=1e-4)
    except UNFIT:
        return False


def _trial(model: Any, attention: Attention) -> list[Probes]:
    """Random rows of three lengths, some with a shared beginning, every position read; text = its place among 18."""
    rng = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    stem, probes = rng.integers(0, vocabulary, 9), []
    for length in (4, 6, 9):
        ids = np.stack([stem[:length], np.concatenate([stem[:2], rng.integers(0, vocabulary, length - 2)])])
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
