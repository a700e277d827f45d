"""Open a folder or hub id as a LanguageModel, with a record of everything found about it.

Nothing is assumed that can be tried: which specials the tokenizer adds, whether the weights fill
the whole model, whether packed rows give the same numbers as plain ones. Weights come from
safetensors only and code from transformers only, unless the user allows more.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from antlm_bench.checkpoints import forward_trials, pretrained, resolve
from antlm_bench.checkpoints.adapters import adapter_metadata, merge_adapter
from antlm_bench.checkpoints.resolve import (
    CARD_KEY,
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
from antlm_bench.checkpoints.tensor_check import (
    MAX_NAMES_SHOWN,
    AllowedMismatches,
    check_other_weight_sets,
)
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
    resolve_eos_rule,
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
    attends: frozenset[str]
    eos: str
    mask_id: int | None
    max_length: int | None
    engine: Engine
    encoders: Mapping[str, TextEncoder]
    trained_methods: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    no_mask_reason: str = ""

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
            {attention for method in methods for attention in method.attends},
        )

    def decode_token(self, token: int) -> str:
        """A token as text."""
        return str(next(iter(self.encoders.values())).tokenizer.decode(token))

    @property
    def methods(self) -> list[str]:
        """The names of the methods that it can be scored with, the default first: the methods on
        its card, then the others.
        """
        names = supported_methods(self)
        trained = [name for name in self.trained_methods if name in names]
        return [*trained, *(name for name in names if name not in trained)]

    def with_bos_before_context(self, bos: str) -> Checkpoint:
        """Return the checkpoint with another BOS policy for causal texts that have a context."""
        encoders = dict(self.encoders)
        if (causal := encoders.get("causal")) is not None:
            encoders["causal"] = ContextEncoder(
                causal, build_specials(causal.tokenizer, "causal", bos)
            )
        return replace(self, encoders=encoders)

    def with_scored_eos(self, rule: EosRule) -> Checkpoint:
        """Return the same checkpoint with the specials after causal texts scored
        (scoring.text.with_scored_eos).
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
        """Return the facts that `doctor` shows."""
        notes = [note for method in self.methods for note in self.notes(method)]
        if not self.methods:
            return {**self.metadata, "methods": f"none: {self.no_mask_reason}"}
        methods = f"{', '.join(self.methods)} (default: {self.methods[0]})"
        if self.no_mask_reason and "full" in self.attends:
            methods += f"; none that hides tokens: {self.no_mask_reason}"
        return {**self.metadata, **({"words": notes[0]} if notes else {}), "methods": methods}

    def notes(self, method: str) -> tuple[str, ...]:
        """Return what a reader of scores under this method must know of the tokenizer."""
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

    dtype: cast the weights to it, and swap in faster CPU layers that hold copies of them. None =
    leave the model as it is, since it belongs to the caller.
    """
    model, tokenizer, limit = loaded.model, loaded.tokenizer, loaded.max_length
    vocab_size = pretrained.usable_vocab_size(model)
    if dtype is not None:
        pretrained.cast_weights(model, dtype)
    budget = batch_tokens or _default_batch_tokens(model.device)
    engine = Engine(model, loaded.name, loaded.forward_config, budget)
    if dtype is not None:
        engine.enable_cpu_kernels()
    return Checkpoint(
        name=loaded.name,
        kind=loaded.kind,
        attends=frozenset(loaded.specials),
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

    A model need not run with the attention that it was not made for: where the self-test fails with
    that one only, it is not offered.
    """
    texts = trial_texts(loaded.tokenizer)
    own = {
        loaded.forward_config.native_attention,
        *_training_card(checkpoint.engine.model.config).get("attends", []),
    }
    result = run_self_test(checkpoint, texts, own & checkpoint.attends, max_predictions=6)
    if others := checkpoint.attends - own:
        try:
            run_self_test(checkpoint, texts, others, max_predictions=6)
        except CheckpointError:
            checkpoint.attends &= own
    checkpoint.metadata |= {
        "shortcuts": checkpoint.engine.shortcuts,
        "self_test": result.to_record(),
    }


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint in fp32 on its device, and what is known about it."""

    name: str
    sources: CheckpointSources
    """Where its parts lie."""
    kind: str
    """causal or masked."""
    model: Any
    tokenizer: Any
    forward_config: ForwardConfig
    max_length: int | None
    specials: Mapping[str, Specials]
    """Attention that it can run with -> the special tokens around a text."""
    trained_methods: tuple[str, ...]
    """The methods on its card, the default first."""
    allowed: AllowedMismatches
    """Tensors that did not fit and were allowed."""
    mask_id: int | None
    no_mask_reason: str
    """Why `mask_id` is None; "" where it is not."""


class LoadedFiles(NamedTuple):
    """A model and its tokenizer before anything is tried on them."""

    name: str
    sources: CheckpointSources
    kind: str
    model: Any
    tokenizer: Any
    allowed: AllowedMismatches = AllowedMismatches()


def load_checkpoint(ref: str, options: OpenOptions, try_engine: bool = True) -> LoadedCheckpoint:
    """Load what scoring and finetuning both need. Raises as `open_checkpoint`.

    try_engine: try how our engine can run the model; another engine does not need that.
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
    sources = replace(sources, notes=sources.notes + check_other_weight_sets(sources.base, options))
    name = display_name(ref, options)
    config = pretrained.load_config(sources.base, options)
    kind = pretrained.detect_kind(config, sources.base)
    tokenizer = pretrained.load_tokenizer(sources.tokenizer, options)
    model, allowed = pretrained.load_checked_model(sources.base, kind, config, options)
    if sources.adapter is not None:
        model = merge_adapter(model, sources.adapter, options)
    files = LoadedFiles(name, sources, kind, model, tokenizer, allowed)
    return probe_model(files, options, device, try_engine)


def probe_model(
    files: LoadedFiles, options: OpenOptions, device: torch.device, try_engine: bool = True
) -> LoadedCheckpoint:
    """Move a model to its device and find out by trying how it can be run.

    options: bos, max_length and lengths count. Raises CheckpointError for a model that sees later
    tokens or depends on chance, and for special tokens without an embedding.
    """
    model, tokenizer, config = files.model, files.tokenizer, files.model.config
    limit = _resolve_max_length(files, options)
    if model.device != device:
        model = model.to(device)
    embeddings = model.get_input_embeddings().weight.shape[0]
    mask_id, no_mask_reason = find_mask_token(tokenizer, embeddings)
    own: Attention = "causal" if files.kind == "causal" else "full"
    forward_config = ForwardConfig(config._attn_implementation, own)
    if try_engine:
        ids = special_ids(tokenizer)
        forward_config = forward_trials.detect_forward_config(model, files.kind, files.name, ids)
    card = _training_card(config)
    attends = {own, *_other_attentions(forward_config, card, mask_id is not None)}
    own_attentions = {own, *card.get("attends", [])}
    return LoadedCheckpoint(
        name=files.name,
        sources=files.sources,
        kind=files.kind,
        model=model,
        tokenizer=tokenizer,
        forward_config=forward_config,
        max_length=limit,
        specials=_specials_by_attention(
            tokenizer, attends, own_attentions, options.bos, embeddings
        ),
        trained_methods=tuple(card.get("methods", [])),
        allowed=files.allowed,
        mask_id=mask_id,
        no_mask_reason=no_mask_reason,
    )


def _resolve_max_length(files: LoadedFiles, options: OpenOptions) -> int | None:
    """Return the longest row, and check that a causal model is causal. The trials leave the model
    as it was: BigBird gives up sparse attention after one short row.
    """
    model = files.model
    state = ModelState.capture(model)
    limit = pretrained.resolve_max_length(model, files.tokenizer, options.max_length)
    if options.lengths == "positions" and options.max_length is None:
        limit = pretrained.max_runnable_length(model, limit)
    if files.kind == "causal":
        forward_trials.check_causality(model, files.sources.base)
    state.restore()
    return limit


def _other_attentions(
    forward_config: ForwardConfig, card: Mapping[str, Sequence[str]], has_mask: bool
) -> set[str]:
    """Return the attentions beside its own that a model can be tried with: those on its card, or
    without a card full attention for a causal model with a mask token, which may be a hybrid.
    """
    if forward_config.layout != "packed" and not forward_config.masks:
        return set()
    if not card and has_mask and forward_config.native_attention == "causal":
        return {"full"}
    return {"causal", "full"} & set(card.get("attends", []))


def display_name(ref: str, options: OpenOptions) -> str:
    """Return a checkpoint's name in tables: folder or hub id, revision, adapter."""

    def shorten(source: str) -> str:
        exists = Path(source).exists()
        return _folder_display_name(Path(source).resolve()) if exists else source

    revision = f"@{options.revision}" if options.revision else ""
    return shorten(ref) + revision + (f"+{shorten(options.peft)}" if options.peft else "")


def _specials_by_attention(
    tokenizer: Any, attends: set[str], own_attentions: set[str], bos_policy: str, embeddings: int
) -> dict[str, Specials]:
    """Return the specials of a text under each attention.

    An attention is left out where its specials have no embedding, unless it is the model's own:
    then CheckpointError is raised.
    """
    specials = {
        attention: build_specials(tokenizer, _as_attention(attention), bos_policy)
        for attention in sorted(attends)
    }
    for attention in list(specials):
        try:
            check_specials(tokenizer, specials[attention], embeddings)
        except CheckpointError:
            if attention in own_attentions:
                raise
            del specials[attention]
    return specials


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that a row may hold beside those of its text."""
    names = ("pad", "mask", "bos", "eos", "cls", "sep", "unk")
    ids = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return sorted(i for i in ids if i is not None)


def _training_card(config: Any) -> dict[str, list[str]]:
    """Return the lists on the card of a checkpoint of ours ("attends", "methods"); {} without."""
    card = getattr(config, CARD_KEY, None)
    entries = card.items() if isinstance(card, dict) else ()
    return {str(key): list(map(str, value)) for key, value in entries if isinstance(value, list)}


def _folder_display_name(folder: Path) -> str:
    """Return the folder's name, and for BabyLM's `main` that of the folder around it."""
    return folder.name if folder.name != "main" else folder.parent.name


def describe_checkpoint(ref: str, loaded: LoadedCheckpoint, options: OpenOptions) -> dict[str, Any]:
    """Return the facts that a run's manifest keeps, in the order in which `doctor` shows them."""
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
        # Under the policies of official code, so that `submit` can tell whether they would differ.
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
    card = getattr(model.config, CARD_KEY, None)
    seen = card.get("words_seen") if isinstance(card, dict) else None
    if isinstance(seen, int):
        metadata["words_seen"] = seen  # where a learning curve puts it
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
    """Return hash and names of the files with weights; with an adapter, the hashes of both."""
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
    """`model.safetensors.index.json (4 files)`."""
    return name if count == 1 else f"{name} ({count} files)"


def with_bf16_body(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same checkpoint with a bf16 body, for `--precision adaptive`. Its LM head is a
    Bf16LMHead, or fp32 where the model does something to its logits.
    """
    head = copy.deepcopy(checkpoint.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(
            f"{checkpoint.name} has no output embedding to keep in fp32",
            hint="use --precision exact",
        )
    bf16_head = (
        can_pack_linears(checkpoint.engine.model)
        and isinstance(head, nn.Linear)
        and has_plain_lm_head(checkpoint.engine)
    )
    model = copy.deepcopy(checkpoint.engine.model)
    pretrained.cast_weights(model, torch.bfloat16)
    rows = checkpoint.engine.head_rows
    model.set_output_embeddings(Bf16LMHead(head, rows) if bf16_head else head)
    if not bf16_head:
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    engine = (Bf16HeadEngine if bf16_head else Engine)(
        model, checkpoint.name, checkpoint.engine.forward_config, checkpoint.engine.budget
    )
    if checkpoint.engine.kernels is not None:
        engine.enable_cpu_kernels()
    return replace(checkpoint, engine=engine)


class HasMetadata(Protocol):
    """A checkpoint opened for scoring, or for finetuning."""

    @property
    def metadata(self) -> dict[str, Any]: ...


def add_scored_eos(metadata: Mapping[str, Any], tokenizer: Any, rule: EosRule) -> dict[str, Any]:
    """Return the facts with the scored specials among them: they change scores, and so the key."""
    after, _ = resolve_eos_rule(tokenizer, rule)
    spelled = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(after))))
    texts = "texts with a context" if rule == "context" else "texts"
    return {**metadata, "scored_specials": f"{spelled} after {texts}"}


def key_settings(checkpoint: HasMetadata) -> dict[str, Any]:
    """Return the facts that a score depends on, for a cell's content key."""
    keys = [
        *(
            "weights",
            "config",
            "tokenizer",
            "architecture",
            "dtype",
            "max_length",
            "bos",
            "specials",
            "code",
        ),
        "scored_specials",
        *(
            "base_weights",
            "adapter_weights",
            "adapter_config",
            "allowed",
            "original_layout",
        ),  # where there are any
    ]
    return {
        key: json.loads(json.dumps(checkpoint.metadata[key]))
        for key in keys
        if key in checkpoint.metadata
    }


def loading_notes(checkpoint: HasMetadata) -> list[str]:
    """Return what a score must be read with: which weights were read, which tensors did not fit."""
    notes = list(checkpoint.metadata.get("notes", []))
    templates = {
        "unused": "the model does not use {} of the files",
        "missing": "{} were in no file and are random",
    }
    for kind, names in checkpoint.metadata.get("allowed", {}).items():
        tensors = (
            f"{names['count']} tensors "
            f"({', '.join(names['first'])}{', ...' * (names['count'] > MAX_NAMES_SHOWN)})"
        )
        notes.append(templates[kind].format(tensors))
    return notes


def _default_batch_tokens(device: torch.device) -> int:
    """Nodes per forward: few enough to stay near the caches of a CPU, enough to fill a GPU."""
    return 2048 if device.type == "cpu" else 32_768


def _as_attention(name: str) -> Attention:
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
