"""Open a folder or hub id as a LanguageModel, with a record of everything found out about it.

Opening is: load the model (`load_checkpoint`), put it on an engine (`build_checkpoint`), run the
self-test. The loader tests the model and does not assume: which special tokens the tokenizer adds,
whether the weights fill the whole model, whether rows that share prefixes give the same scores as
separate rows. Weights come from safetensors only and code from transformers only, unless the user
allows more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from antlm_bench.checkpoints import forward_trials, pretrained, resolve
from antlm_bench.checkpoints.adapters import adapter_metadata, merge_adapter
from antlm_bench.checkpoints.metadata import add_scored_eos
from antlm_bench.checkpoints.resolve import (
    TRAINING_KEY,
    CheckpointSources,
    OpenOptions,
    hash_weights,
    locate_sources,
)
from antlm_bench.checkpoints.self_test import (
    SelfTestResult,
    run_self_test,
    select_texts_by_length,
    trial_texts,
)
from antlm_bench.checkpoints.tensor_check import AllowedMismatches, check_other_weight_sets
from antlm_bench.cpu_tuning import keep_freed_memory
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.cpu_kernels import can_pack_linears
from antlm_bench.scoring.engine import Engine, ForwardConfig
from antlm_bench.scoring.methods import METHODS, Method, supported_methods
from antlm_bench.scoring.mixed_precision_head import Bf16HeadEngine, Bf16LMHead, has_plain_lm_head
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.scoring.text import (
    ContextEncoder,
    EosRule,
    Specials,
    TextEncoder,
    build_specials,
    check_specials,
    find_mask_token,
    with_scored_eos,
)
from antlm_bench.scoring.tokens import WORDS_FROM_OFFSETS_NOTE
from antlm_bench.types import Attention, Encodings, Floats, Probes
from antlm_bench.weight_files import select_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class Checkpoint:
    """A LanguageModel (types.LanguageModel) that runs on an engine."""

    name: str
    kind: str
    """causal or masked."""
    attentions: frozenset[str]
    """The attentions ("causal", "full") that the model can run with."""
    eos: str
    """The EOS token as text; "None" without one."""
    mask_id: int | None
    max_length: int | None
    """Tokens per row; None = unlimited."""
    engine: Engine
    encoders: Mapping[str, TextEncoder]
    """Attention -> the tokenizer with its special tokens and limits."""
    trained_methods: tuple[str, ...] = ()
    """Scoring methods that config.json records for the training, the default first."""
    metadata: dict[str, Any] = field(default_factory=dict)
    no_mask_reason: str = ""
    """Why `mask_id` is None; "" where it is not."""

    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Encodings:
        return self.encoders[attention].encode(texts, spans)

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: Callable[[float], None] | None = None
    ) -> Floats:
        return self.engine.score_probes(probes, num_texts, tick)

    def run_self_test(self, texts: Sequence[str], methods: Sequence[Method]) -> SelfTestResult:
        """Compare the engine with the model's plain forward on a handful of these texts, from the
        shortest to the longest; see self_test.
        """
        return run_self_test(
            self,
            select_texts_by_length(texts),
            {attention for method in methods for attention in method.attentions},
        )

    def decode_token(self, token: int) -> str:
        """Return a token as text."""
        return str(next(iter(self.encoders.values())).tokenizer.decode(token))

    @property
    def methods(self) -> list[str]:
        """Names of the scoring methods that the checkpoint supports. The methods of its training
        come first; the first of all is the default.
        """
        names = supported_methods(self)
        trained = [name for name in self.trained_methods if name in names]
        return [*trained, *(name for name in names if name not in trained)]

    def with_context_bos_policy(self, bos: str) -> Checkpoint:
        """Return a copy with another BOS policy for causal texts that have a context."""
        encoders = dict(self.encoders)
        if (causal := encoders.get("causal")) is not None:
            encoders["causal"] = ContextEncoder(
                causal, build_specials(causal.tokenizer, "causal", bos)
            )
        return replace(self, encoders=encoders)

    def with_scored_eos(self, rule: EosRule) -> Checkpoint:
        """Return a copy that also scores the special tokens that the tokenizer appends to causal
        texts (scoring.text.with_scored_eos).
        """
        causal = self.encoders.get("causal")
        if causal is None or (changed := with_scored_eos(causal, rule)) is causal:
            return self
        return replace(
            self,
            encoders={**self.encoders, "causal": changed},
            metadata=add_scored_eos(self.metadata, causal.tokenizer, rule),
        )

    def doctor_facts(self) -> Mapping[str, object]:
        """Return the metadata that `doctor` shows."""
        notes = [note for method in self.methods for note in self.notes(method)]
        if not self.methods:
            return {**self.metadata, "methods": f"none: {self.no_mask_reason}"}
        methods = f"{', '.join(self.methods)} (default: {self.methods[0]})"
        if self.no_mask_reason and "full" in self.attentions:
            methods += f"; no masked method: {self.no_mask_reason}"
        return {**self.metadata, **({"words": notes[0]} if notes else {}), "methods": methods}

    def notes(self, method: str) -> tuple[str, ...]:
        """Return notes about the tokenizer that qualify scores under this method."""
        if not METHODS[method].needs_words or self.encoders["full"].text_tokenizer.has_word_ids:
            return ()
        return (WORDS_FROM_OFFSETS_NOTE,)


def open_checkpoint(ref: str, options: OpenOptions | None = None) -> Checkpoint:
    """Open a local folder or a hub id.

    Raises CheckpointError (absent, damaged, incomplete or pickled weights, no tokenizer, an
    architecture that is neither causal nor masked) and UsageError (an option that cannot apply).
    """
    with pretrained.silence_transformers():
        return _open_checkpoint(ref, options or OpenOptions())


def _open_checkpoint(ref: str, options: OpenOptions) -> Checkpoint:
    loaded = load_checkpoint(ref, options)
    checkpoint = build_checkpoint(loaded, options.batch_tokens, DTYPES[options.dtype])
    checkpoint.metadata |= describe_checkpoint(ref, loaded, options)
    self_test_on_opening(checkpoint, loaded)
    return checkpoint


def build_checkpoint(
    loaded: LoadedCheckpoint, batch_tokens: int | None, dtype: torch.dtype | None = None
) -> Checkpoint:
    """Put a loaded model on an engine.

    dtype: cast the weights to it, and replace CPU layers by faster ones, which copy the weights.
    None = do not modify the model, because the caller owns it.
    """
    model, tokenizer, limit = loaded.model, loaded.tokenizer, loaded.max_length
    vocab_size = pretrained.usable_vocab_size(model)
    if dtype is not None:
        pretrained.cast_weights(model, dtype)
    num_batch_tokens = batch_tokens or _default_batch_tokens(model.device)
    engine = Engine(model, loaded.name, loaded.forward_config, num_batch_tokens)
    if dtype is not None:
        engine.enable_cpu_kernels()
    return Checkpoint(
        name=loaded.name,
        kind=loaded.kind,
        attentions=frozenset(loaded.specials),
        eos=str(tokenizer.eos_token),
        mask_id=loaded.mask_id,
        no_mask_reason=loaded.no_mask_reason,
        max_length=limit,
        trained_methods=loaded.trained_methods,
        engine=engine,
        encoders={
            attention: TextEncoder(tokenizer, specials, max_length=limit, vocab_size=vocab_size)
            for attention, specials in loaded.specials.items()
        },
    )


def self_test_on_opening(checkpoint: Checkpoint, loaded: LoadedCheckpoint) -> None:
    """Run the self-test and record it. Raises CheckpointError as `run_self_test`.

    If it fails only with an attention that the model was not trained with, that attention is
    removed from `checkpoint.attentions`, and nothing is raised.
    """
    texts = trial_texts(loaded.tokenizer)
    trained_attentions = {
        loaded.forward_config.native_attention,
        *_training_metadata(checkpoint.engine.model.config).get("attends", []),
    }
    result = run_self_test(
        checkpoint, texts, trained_attentions & checkpoint.attentions, max_predictions=6
    )
    if others := checkpoint.attentions - trained_attentions:
        try:
            run_self_test(checkpoint, texts, others, max_predictions=6)
        except CheckpointError:
            checkpoint.attentions &= trained_attentions
    checkpoint.metadata |= {
        "shortcuts": checkpoint.engine.shortcuts,
        "self_test": result.to_record(),
    }


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A model in fp32 on its device, with what opening found out about it."""

    name: str
    sources: CheckpointSources
    """Folders of the model, the tokenizer and the adapter."""
    kind: str
    """causal or masked."""
    model: Any
    tokenizer: Any
    forward_config: ForwardConfig
    max_length: int | None
    specials: Mapping[str, Specials]
    """Attention that the model can run with -> the special tokens around a text."""
    trained_methods: tuple[str, ...]
    """Scoring methods that config.json records for the training, the default first."""
    allowed: AllowedMismatches
    """Tensors that did not fit and were allowed."""
    mask_id: int | None
    no_mask_reason: str
    """Why `mask_id` is None; "" where it is not."""


class LoadedModel(NamedTuple):
    """A model and its tokenizer before any trial forward."""

    name: str
    sources: CheckpointSources
    kind: str
    model: Any
    tokenizer: Any
    allowed: AllowedMismatches = AllowedMismatches()


def load_checkpoint(ref: str, options: OpenOptions, try_engine: bool = True) -> LoadedCheckpoint:
    """Load what scoring and finetuning both need. Raises as `open_checkpoint`.

    try_engine: find out by trial forwards how our engine can run the model. False for another
    engine.
    """
    if options.dtype not in DTYPES:
        raise UsageError(
            f"unknown dtype {options.dtype!r}",
            location="--dtype",
            hint=f"one of {', '.join(DTYPES)}",
        )
    device = pretrained.resolve_device(options.device)
    keep_freed_memory()
    sources = locate_sources(ref, options)
    # Raises if two sets of weight files disagree; returns notes on which was chosen.
    weight_notes = check_other_weight_sets(sources.base, options)
    sources = replace(sources, notes=sources.notes + weight_notes)
    name = display_name(ref, options)
    config = pretrained.load_config(sources.base, options)
    kind = pretrained.detect_kind(config, sources.base)
    tokenizer = pretrained.load_tokenizer(sources.tokenizer, options)
    model, allowed = pretrained.load_checked_model(sources.base, kind, config, options)
    if sources.adapter is not None:
        model = merge_adapter(model, sources.adapter, options)
    loaded = LoadedModel(name, sources, kind, model, tokenizer, allowed)
    return detect_capabilities(loaded, options, device, try_engine)


def detect_capabilities(
    loaded: LoadedModel, options: OpenOptions, device: torch.device, try_engine: bool = True
) -> LoadedCheckpoint:
    """Move a model to its device and find out by trial forwards how it can be run.

    Of `options`, only bos, max_length and lengths are used. Raises CheckpointError for a causal
    model that sees later tokens or whose forward depends on chance, and for special tokens without
    an embedding.
    """
    model, tokenizer, config = loaded.model, loaded.tokenizer, loaded.model.config
    limit = _resolve_max_length(loaded, options)
    if model.device != device:
        model = model.to(device)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    mask_id, no_mask_reason = find_mask_token(tokenizer, num_embeddings)
    native_attention: Attention = "causal" if loaded.kind == "causal" else "full"
    forward_config = ForwardConfig(config._attn_implementation, native_attention)
    if try_engine:
        ids = special_ids(tokenizer)
        forward_config = forward_trials.detect_forward_config(model, loaded.kind, loaded.name, ids)
    training = _training_metadata(config)
    trained_attentions = {native_attention, *training.get("attends", [])}
    others = _other_attentions(forward_config, training, mask_id is not None)
    attentions = {native_attention, *others}
    return LoadedCheckpoint(
        name=loaded.name,
        sources=loaded.sources,
        kind=loaded.kind,
        model=model,
        tokenizer=tokenizer,
        forward_config=forward_config,
        max_length=limit,
        specials=_specials_by_attention(
            tokenizer, attentions, trained_attentions, options.bos, num_embeddings
        ),
        trained_methods=tuple(training.get("methods", [])),
        allowed=loaded.allowed,
        mask_id=mask_id,
        no_mask_reason=no_mask_reason,
    )


def _resolve_max_length(loaded: LoadedModel, options: OpenOptions) -> int | None:
    """Return the maximum length of a row in tokens, and check that a causal model is causal.

    The model's state is restored after the trial forwards, because some change it: BigBird turns
    off sparse attention after one short row.
    """
    model = loaded.model
    state = ModelState.capture(model)
    limit = pretrained.resolve_max_length(model, loaded.tokenizer, options.max_length)
    # "positions": BabyLM's code ignores the declared limit.
    if options.lengths == "positions" and options.max_length is None:
        limit = pretrained.max_runnable_length(model, limit)
    if loaded.kind == "causal":
        forward_trials.check_causality(model, loaded.sources.base)
    state.restore()
    return limit


def _other_attentions(
    forward_config: ForwardConfig, training: Mapping[str, Sequence[str]], has_mask: bool
) -> set[str]:
    """Return the attentions to try besides the native one.

    With training metadata: those that it lists. Without: full attention, if a causal model has a
    mask token, because it may have been trained with both objectives (as GPT-BERT).
    """
    if forward_config.layout != "packed" and not forward_config.obeys_masks:
        return set()
    if not training and has_mask and forward_config.native_attention == "causal":
        return {"full"}
    return {"causal", "full"} & set(training.get("attends", []))


def display_name(ref: str, options: OpenOptions) -> str:
    """Return a checkpoint's name in tables: folder or hub id, revision, adapter."""

    def shorten(source: str) -> str:
        exists = Path(source).exists()
        return _folder_display_name(Path(source).resolve()) if exists else source

    revision = f"@{options.revision}" if options.revision else ""
    return shorten(ref) + revision + (f"+{shorten(options.peft)}" if options.peft else "")


def _specials_by_attention(
    tokenizer: Any,
    attentions: set[str],
    trained_attentions: set[str],
    bos_policy: str,
    num_embeddings: int,
) -> dict[str, Specials]:
    """Return the special tokens of a text under each attention.

    An attention whose special tokens have no embedding is left out; CheckpointError if the model
    was trained with it.
    """
    specials = {
        attention: build_specials(tokenizer, _as_attention(attention), bos_policy)
        for attention in sorted(attentions)
    }
    for attention in list(specials):
        try:
            check_specials(tokenizer, specials[attention], num_embeddings)
        except CheckpointError:
            if attention in trained_attentions:
                raise
            del specials[attention]
    return specials


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens that the tokenizer defines."""
    names = ("pad", "mask", "bos", "eos", "cls", "sep", "unk")
    ids = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return sorted(i for i in ids if i is not None)


def _training_metadata(config: Any) -> dict[str, list[str]]:
    """Return the lists that `train` stored in config.json ("attends", "methods"); {} if there are
    none.
    """
    stored = getattr(config, TRAINING_KEY, None)
    entries = stored.items() if isinstance(stored, dict) else ()
    return {str(key): list(map(str, value)) for key, value in entries if isinstance(value, list)}


def _folder_display_name(folder: Path) -> str:
    """Return the folder's name; for a folder `main` (BabyLM's revisions), its parent's name."""
    return folder.name if folder.name != "main" else folder.parent.name


def describe_checkpoint(ref: str, loaded: LoadedCheckpoint, options: OpenOptions) -> dict[str, Any]:
    """Return the metadata that a run's manifest keeps, in the order in which `doctor` shows it."""
    model, tokenizer = loaded.model, loaded.tokenizer
    metadata = {
        "name": loaded.name,
        "source": ref if not Path(ref).exists() else loaded.name,
        "revision": options.revision,
        "architecture": type(model).__name__,
        "kind": loaded.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        **_weight_metadata(loaded.sources, options),
        "config": resolve.hash_files([loaded.sources.base / "config.json"]),
        "tokenizer": resolve.hash_files(
            resolve.list_files(loaded.sources.tokenizer, resolve.TOKENIZER_PATTERNS)
        ),
        "tokenizer_class": type(tokenizer).__name__ + ("" if tokenizer.is_fast else " (slow)"),
        "vocabulary": model.get_input_embeddings().weight.shape[0],
        "max_length": loaded.max_length,
        "dtype": options.dtype,
        "device": str(next(model.parameters()).device),
        "layout": loaded.forward_config.layout,
        "original_layout": getattr(model.config, "original_layout", None),
        "bos": options.bos,
        "specials": {
            a: _format_specials(tokenizer, specials) for a, specials in loaded.specials.items()
        },
        # The special tokens under each BOS policy of the official pipelines: `submit` compares them
        # with those that were used.
        "specials_under": {
            policy: {
                a: _format_specials(tokenizer, build_specials(tokenizer, _as_attention(a), policy))
                for a in loaded.specials
            }
            for policy in ("auto", "tokenizer")
        },
        "mask": tokenizer.mask_token if loaded.mask_id is not None else None,
        "unk": tokenizer.unk_token,
    }
    if metadata["original_layout"] is None:
        del metadata["original_layout"]
    training = getattr(model.config, TRAINING_KEY, None)
    words_seen = training.get("words_seen") if isinstance(training, dict) else None
    if isinstance(words_seen, int):
        metadata["words_seen"] = words_seen  # the checkpoint's x-value in a learning curve
    if options.tokenizer:
        source = Path(options.tokenizer)
        metadata["tokenizer_source"] = (
            source.resolve().name if source.exists() else options.tokenizer
        )
    if allowed := loaded.allowed.to_record():
        metadata["allowed"] = allowed
    if loaded.sources.notes:
        metadata["notes"] = list(loaded.sources.notes)
    if options.trust_remote_code:
        metadata["code"] = {
            f.name: resolve.hash_files([f])[:16]
            for f in resolve.list_files(loaded.sources.base, resolve.CODE_PATTERNS)
        }
    return metadata


def _weight_metadata(sources: CheckpointSources, options: OpenOptions) -> dict[str, Any]:
    """Return hashes and description of the weight files; with an adapter, of both sets."""
    chosen = select_weights(sources.base, options.allow_pickle)
    base = hash_weights(sources.base, options.allow_pickle)
    hashes = (
        adapter_metadata(sources.adapter, base, options) if sources.adapter else {"weights": base}
    )
    return {
        **hashes,
        "weight_files": _format_weight_files(chosen.name, len(chosen.files)) if chosen else "",
    }


def _format_weight_files(name: str, count: int) -> str:
    """Return `model.safetensors.index.json (4 files)`."""
    return name if count == 1 else f"{name} ({count} files)"


def with_bf16_body(checkpoint: Checkpoint) -> Checkpoint:
    """Return a copy with a bf16 body, for `--precision adaptive`.

    Its LM head is a Bf16LMHead. It stays in fp32 where there are no bf16 kernels, and for models
    that change the head's logits (scaling, soft-capping).
    """
    head = copy.deepcopy(checkpoint.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(
            f"{checkpoint.name} has no LM head, which --precision adaptive needs",
            hint="use --precision exact",
        )
    bf16_head = (
        can_pack_linears(checkpoint.engine.model)
        and isinstance(head, nn.Linear)
        and has_plain_lm_head(checkpoint.engine)
    )
    model = copy.deepcopy(checkpoint.engine.model)
    pretrained.cast_weights(model, torch.bfloat16)
    head_batch_size = checkpoint.engine.head_rows
    model.set_output_embeddings(Bf16LMHead(head, head_batch_size) if bf16_head else head)
    if not bf16_head:
        # The body gives bf16 hidden states; the fp32 head needs fp32 input.
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    engine = (Bf16HeadEngine if bf16_head else Engine)(
        model, checkpoint.name, checkpoint.engine.forward_config, checkpoint.engine.batch_tokens
    )
    if checkpoint.engine.kernels is not None:
        engine.enable_cpu_kernels()
    return replace(checkpoint, engine=engine)


def _default_batch_tokens(device: torch.device) -> int:
    """Return the default number of tokens per forward (a shared prefix counts once): small enough
    for the caches of a CPU, large enough to fill a GPU.
    """
    return 2048 if device.type == "cpu" else 32_768


def _as_attention(name: str) -> Attention:
    # Narrows a str to the Literal, for the type checker.
    return "causal" if name == "causal" else "full"


def _format_specials(tokenizer: Any, special_tokens: Specials) -> str:
    """Return the specials around a text as text: `<s> ... </s>`."""
    return " ".join(
        [
            *tokenizer.convert_ids_to_tokens(special_tokens.before),
            "...",
            *tokenizer.convert_ids_to_tokens(special_tokens.after),
        ]
    )
