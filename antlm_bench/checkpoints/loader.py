"""Load the model and tokenizer of a checkpoint, and find out by trial forwards how the model runs.

The name of an architecture decides nothing here. Maximum length, causality, attentions and the
shortcuts of the engine are tried on the model itself. Weights come from safetensors only and code
from transformers only, unless the user allows more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from antlm_bench.checkpoints import forward_trials, max_length, pretrained
from antlm_bench.checkpoints.adapters import merge_adapter
from antlm_bench.checkpoints.pretrained import ENCODER_DECODER
from antlm_bench.checkpoints.resolve import (
    DTYPE_NAMES,
    TRAINING_KEY,
    CheckpointSources,
    OpenOptions,
    display_name,
)
from antlm_bench.checkpoints.tensor_check import AllowedMismatches, check_other_weight_sets
from antlm_bench.cpu_tuning import keep_freed_memory
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.forward_config import ForwardConfig
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.scoring.source_text import (
    Denoiser,
    DenoisingEncoder,
    PairEncoder,
    detect_target_template,
    find_denoiser,
)
from antlm_bench.scoring.text import (
    Specials,
    TextEncoder,
    build_specials,
    check_specials,
    find_mask_token,
)
from antlm_bench.types import Attention

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
ATTENTIONS: tuple[Attention, ...] = ("causal", "full")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in fp32 and its tokenizer, before any trial forward."""

    name: str
    sources: CheckpointSources
    """Folders of the model, the tokenizer and the adapter."""
    kind: str
    """causal or masked."""
    model: Any
    tokenizer: Any
    allowed_mismatches: AllowedMismatches
    """Tensors that did not match, and that the options allow."""


@dataclass(frozen=True, slots=True)
class RunnableModel(LoadedModel):
    """A loaded model on its device, with the results of the trial forwards."""

    forward_config: ForwardConfig
    max_length: int | None
    """Tokens per row, special tokens included; None = unlimited."""
    encoders: Mapping[Attention, TextEncoder]
    """Attention that the model can run with -> the tokenizer with its special tokens and limits."""
    trained_attentions: frozenset[str]
    """The native attention, and those that config.json records for the training."""
    trained_methods: tuple[str, ...]
    """Scoring methods that config.json records for the training, the default first."""
    mask_id: int | None
    no_mask_reason: str
    """Why `mask_id` is None; "" if it is not None."""

    @property
    def specials(self) -> dict[Attention, Specials]:
        """Attention that the model can run with -> the special tokens around a text."""
        return {attention: encoder.specials for attention, encoder in self.encoders.items()}


def load_runnable_model(
    ref: str, sources: CheckpointSources, options: OpenOptions, for_native_engine: bool = True
) -> RunnableModel:
    """Load what scoring and finetuning both need. Raises as `opening.open_checkpoint`.

    for_native_engine: find out which shortcuts of our engine work for the model. False for another
    engine.
    """
    device = pretrained.resolve_device(options.device)
    if device.type == "mps" and options.dtype == "float64":
        raise UsageError("MPS has no float64", location="--dtype", hint="--device cpu")
    keep_freed_memory()
    # Raises if two sets of weight files disagree; returns notes on which was chosen.
    weight_notes = check_other_weight_sets(sources.base, options)
    sources = replace(sources, notes=sources.notes + weight_notes)
    config = pretrained.load_config(sources.base, options)
    kind = pretrained.detect_kind(config, sources.base)
    tokenizer = pretrained.load_tokenizer(sources.tokenizer, options)
    model, allowed_mismatches = pretrained.load_checked_model(sources.base, kind, config, options)
    if sources.adapter is not None:
        model = merge_adapter(model, sources.adapter, options)
    loaded = LoadedModel(
        display_name(ref, options), sources, kind, model, tokenizer, allowed_mismatches
    )
    try:
        return detect_capabilities(loaded, options, device, for_native_engine)
    except CheckpointError as error:
        if error.location:
            raise
        raise pretrained.locate_forward_error(error, sources.base, kind, options) from error


def detect_capabilities(
    loaded: LoadedModel, options: OpenOptions, device: torch.device, for_native_engine: bool = True
) -> RunnableModel:
    """Move a model to its device and find out by trial forwards how it can be run.

    Of `options`, only bos, max_length and lengths are used. Raises CheckpointError for a causal
    model whose logits depend on later tokens or differ between two equal forwards, and for special
    tokens without an embedding.
    """
    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    row_limit = _resolve_max_length(loaded, options)
    if model.device != device:
        model = model.to(device)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    mask_id, no_mask_reason = find_mask_token(tokenizer, num_embeddings)
    if loaded.kind == ENCODER_DECODER:
        return _detect_encoder_decoder(loaded, options, row_limit)
    native_attention: Attention = "causal" if loaded.kind == "causal" else "full"
    forward_config = ForwardConfig(config._attn_implementation, native_attention)
    if for_native_engine:
        ids = _special_token_ids(tokenizer)
        forward_config = forward_trials.detect_forward_config(model, loaded.kind, loaded.name, ids)
    training = _training_metadata(config)
    trained_attentions = frozenset({native_attention, *training.get("attends", [])})
    usable_attentions = _list_usable_attentions(forward_config, training, mask_id is not None)
    specials_by_attention = _specials_by_attention(
        tokenizer, usable_attentions, trained_attentions, options.bos, num_embeddings
    )
    vocab_size = pretrained.usable_vocab_size(model)
    return RunnableModel(
        **_fields_of(loaded),
        forward_config=forward_config,
        max_length=row_limit,
        encoders={
            attention: TextEncoder(tokenizer, specials, max_length=row_limit, vocab_size=vocab_size)
            for attention, specials in specials_by_attention.items()
        },
        trained_attentions=trained_attentions,
        trained_methods=tuple(training.get("methods", [])),
        mask_id=mask_id,
        no_mask_reason=no_mask_reason,
    )


def _detect_encoder_decoder(
    loaded: LoadedModel, options: OpenOptions, row_limit: int | None
) -> RunnableModel:
    """Return the facts of an encoder-decoder, whose shortcuts the self-test tries."""
    vocab_size = pretrained.usable_vocab_size(loaded.model)
    start_id = find_decoder_start(loaded.model, loaded.tokenizer, loaded.sources.base)
    denoiser = find_denoiser(loaded.tokenizer, vocab_size)
    encoders = build_encoder_decoder_encoders(
        loaded.tokenizer,
        start_id,
        denoiser,
        options.bos,
        max_length=row_limit,
        vocab_size=vocab_size,
    )
    return RunnableModel(
        **_fields_of(loaded),
        forward_config=ForwardConfig(
            loaded.model.config._attn_implementation, "cross", padded=True
        ),
        max_length=row_limit,
        encoders=encoders,
        trained_attentions=frozenset({"cross"}),
        trained_methods=(),
        mask_id=denoiser.mask_id,
        no_mask_reason=denoiser.no_mask_reason,
    )


def build_encoder_decoder_encoders(
    tokenizer: Any, start_id: int, denoiser: Denoiser, bos: str, **limits: Any
) -> dict[Attention, TextEncoder]:
    """Return attention -> encoder of an encoder-decoder.

    start_id: the decoder's first token. limits: max_length and vocab_size of the encoders.
    """
    encoders: dict[Attention, TextEncoder] = {
        "cross": PairEncoder(tokenizer, start_id, bos, **limits)
    }
    if denoiser.mask_id is not None:
        encoder = DenoisingEncoder(tokenizer, start_id, denoiser, **limits)
        encoders["denoising"] = encoder.with_bos_policy("denoising", bos)
    return encoders


def find_decoder_start(model: Any, tokenizer: Any, folder: Path) -> int:
    """Return the first token of the decoder: what the model's own shift of labels puts first.

    Raises CheckpointError if the model does not say with which token its decoder begins.
    """
    template = detect_target_template(tokenizer)
    specials = {*template.before, *template.after, getattr(model.config, "pad_token_id", None)}
    token_id = next(i for i in range(pretrained.usable_vocab_size(model)) if i not in specials)
    labels = torch.tensor([[*template.before, token_id, *template.after]], device=model.device)
    start_id = getattr(model.config, "decoder_start_token_id", None)
    try:
        start_id = int(model.prepare_decoder_input_ids_from_labels(labels)[0, 0])
    except (AttributeError, TypeError, ValueError) as error:
        if not isinstance(start_id, int):
            raise CheckpointError(
                f"{type(model).__name__} does not say with which token its decoder begins",
                location=str(folder / "config.json"),
                hint='write "decoder_start_token_id": its id',
            ) from error
    return int(start_id)


def _fields_of(loaded: LoadedModel) -> dict[str, Any]:
    return {each.name: getattr(loaded, each.name) for each in fields(LoadedModel)}


def _resolve_max_length(loaded: LoadedModel, options: OpenOptions) -> int | None:
    """Return the maximum length of a row in tokens, and check that a causal model is causal.

    The model's state is restored after the trial forwards, because some models change: BigBird
    turns off sparse attention after one short row.
    """
    model = loaded.model
    state = ModelState.capture(model)
    row_limit = max_length.resolve_max_length(model, loaded.tokenizer, options.max_length)
    # "positions": BabyLM's code ignores the declared limit.
    if options.lengths == "positions" and options.max_length is None:
        row_limit = max_length.max_runnable_length(model, row_limit)
    if loaded.kind != "masked":
        forward_trials.check_causality(model, loaded.sources.base)
    state.restore()
    return row_limit


def _list_usable_attentions(
    forward_config: ForwardConfig, training: Mapping[str, Sequence[str]], has_mask_token: bool
) -> list[Attention]:
    """Return the attentions to run the model with: the native one, and others if it can run them.

    The others are those that config.json records for the training. If it records nothing, a causal
    model with a mask token also gets full attention, because it may have been trained with both
    objectives (as GPT-BERT).
    """
    native = forward_config.native_attention
    if forward_config.layout != "packed" and not forward_config.obeys_masks:
        return [native]
    others = training.get("attends", [])
    if not training and has_mask_token and native == "causal":
        others = ["full"]
    return [attention for attention in ATTENTIONS if attention in (native, *others)]


def _specials_by_attention(
    tokenizer: Any,
    attentions: Iterable[Attention],
    trained_attentions: frozenset[str],
    bos_policy: str,
    num_embeddings: int,
) -> dict[Attention, Specials]:
    """Return the special tokens of a text under each attention.

    An attention whose special tokens have no embedding is left out. Raises CheckpointError if the
    model was trained with that attention.
    """
    specials_by_attention: dict[Attention, Specials] = {}
    for attention in attentions:
        specials = build_specials(tokenizer, attention, bos_policy)
        try:
            check_specials(tokenizer, specials, num_embeddings)
        except CheckpointError:
            if attention in trained_attentions:
                raise
            continue
        specials_by_attention[attention] = specials
    return specials_by_attention


def _special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens that the tokenizer defines."""
    names = ("pad", "mask", "bos", "eos", "cls", "sep", "unk")
    ids = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return sorted(i for i in ids if i is not None)


def _training_metadata(config: Any) -> dict[str, list[str]]:
    """Return the lists that `train` stored in config.json ("attends", "methods"); {} for
    checkpoints that `train` did not write.
    """
    stored = getattr(config, TRAINING_KEY, None)
    entries = stored.items() if isinstance(stored, dict) else ()
    return {str(key): list(map(str, value)) for key, value in entries if isinstance(value, list)}
