"""A folder or hub id in, a LanguageModel out, with everything that was found about it written down.

Nothing is assumed that can be tried: which specials the tokenizer adds, whether the weights fill
the whole model, whether packed rows give the same numbers as plain ones. Weights come from
safetensors only, code from transformers only, unless the user says otherwise.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from antlm_bench.checkpoints import pretrained, resolve
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
    """A LanguageModel (see types) on an engine; `describe` is what a run's manifest keeps of it."""

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
        """What it can be scored with; the first is the default. A card's methods go before what
        else is possible.
        """
        names = supported_methods(self)
        return [n for n in self.trained_methods if n in names] + [
            n for n in names if n not in self.trained_methods
        ]

    def with_bos_before_context(self, bos: str) -> Checkpoint:
        """Return the same checkpoint with another BOS policy for causal texts that have a context."""
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
        """For `doctor`: what was found, in words."""
        notes = [note for method in self.methods for note in self.notes(method)]
        if not self.methods:
            return {**self.metadata, "methods": f"none: {self.no_mask_reason}"}
        methods = f"{', '.join(self.methods)} (default: {self.methods[0]})"
        if self.no_mask_reason and "full" in self.attends:
            methods += f"; none that hides tokens: {self.no_mask_reason}"
        return {**self.metadata, **({"words": notes[0]} if notes else {}), "methods": methods}

    def notes(self, method: str) -> tuple[str, ...]:
        """What a reader of scores under this method must know of the tokenizer."""
        told = METHODS[method].needs_words and not self.encoders["full"].text_tokenizer.has_word_ids
        return (WORDS_FROM_OFFSETS_NOTE,) if told else ()


def open_checkpoint(ref: str, options: OpenOptions | None = None) -> Checkpoint:
    """Open a local folder or a hub id.

    Raises CheckpointError (absent, damaged, incomplete or pickled weights, no tokenizer, an
    architecture that is neither causal nor masked) and UsageError (an option that cannot apply).
    """
    with pretrained.silence_transformers():
        return _open_checkpoint(ref, options or OpenOptions())


def _open_checkpoint(ref: str, options: OpenOptions) -> Checkpoint:
    found = load_checkpoint(ref, options)
    budget = options.batch_tokens or _default_batch_tokens(found.model.device)
    vocabulary = pretrained.usable_vocab_size(found.model)
    pretrained.cast_weights(found.model, DTYPES[options.dtype])
    engine = Engine(found.model, found.name, found.forward_config, budget)
    engine.enable_cpu_kernels()
    tokenizer, limit = found.tokenizer, found.max_length
    checkpoint = Checkpoint(
        name=found.name,
        kind=found.kind,
        attends=frozenset(found.specials),
        eos=str(tokenizer.eos_token),
        mask_id=found.mask_id,
        no_mask_reason=found.no_mask_reason,
        max_length=limit,
        trained_methods=found.trained_methods,
        engine=engine,
        encoders={
            a: TextEncoder(tokenizer, s, max_length=limit, vocab_size=vocabulary)
            for a, s in found.specials.items()
        },
        metadata=describe_checkpoint(ref, found, options),
    )
    _self_test_on_opening(checkpoint, found)
    return checkpoint


def _self_test_on_opening(checkpoint: Checkpoint, loaded: LoadedCheckpoint) -> None:
    """Run the self-test on opening and record it.

    A causal model need not be read in both directions: where only the direction fails that it was
    not made for, it is not offered. Raises CheckpointError as `run_self_test`.
    """
    texts = trial_texts(loaded.tokenizer)
    own = {
        loaded.forward_config.native_attention,
        *_training_card(checkpoint.engine.model.config).get("attends", []),
    }
    tested = run_self_test(checkpoint, texts, own & checkpoint.attends, max_predictions=6)
    if others := checkpoint.attends - own:
        try:
            run_self_test(checkpoint, texts, others, max_predictions=6)
        except CheckpointError:
            checkpoint.attends &= own
    checkpoint.metadata |= {
        "shortcuts": checkpoint.engine.shortcuts,
        "self_test": tested.to_record(),
    }


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint in fp32 on its device, as it lies, and what was found out about it.

    around: the specials of a text per attention that it can be run with. trained_for: the methods
    on its card. sources: where its parts lie. allowed: tensors that did not fit and were let pass.
    mask_id: the mask token's id, or None; no_mask: why it is None, "" where it is not.
    """

    name: str
    sources: CheckpointSources
    kind: str
    model: Any
    tokenizer: Any
    forward_config: ForwardConfig
    max_length: int | None
    specials: Mapping[str, Specials]
    trained_methods: tuple[str, ...]
    allowed: AllowedMismatches
    mask_id: int | None
    no_mask_reason: str


def load_checkpoint(ref: str, options: OpenOptions, try_engine: bool = True) -> LoadedCheckpoint:
    """What scoring and finetuning open alike. Raises as `open_checkpoint`.

    tried: whether our engine's ways to run it are tried; a checkpoint that another engine reads
    need not run on ours.
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
    own: Attention = "causal" if kind == "causal" else "full"
    tokenizer = pretrained.load_tokenizer(sources.tokenizer, options)
    model, allowed = pretrained.load_checked_model(sources.base, kind, config, options)
    if sources.adapter is not None:
        model = merge_adapter(model, sources.adapter, options)
    state = ModelState.capture(model)  # BigBird gives up sparse attention after one short row
    limit = pretrained.resolve_max_length(model, tokenizer, options.max_length)
    if options.lengths == "positions" and options.max_length is None:
        limit = pretrained.max_runnable_length(model, limit)
    if own == "causal":
        pretrained.check_causality(model, sources.base)
    state.restore()
    model = model.to(device)
    embeddings = model.get_input_embeddings().weight.shape[0]
    mask_id, no_mask = find_mask_token(tokenizer, embeddings)
    untried = ForwardConfig(model.config._attn_implementation, own)
    geometry = (
        pretrained.detect_forward_config(model, kind, name, special_ids(tokenizer))
        if try_engine
        else untried
    )
    card = _training_card(config)
    attends: set[str] = {own}
    both = geometry.layout == "packed" or geometry.masks
    if kind == "causal" and both and mask_id is not None and not card:
        attends.add("full")  # the same weights, attending both ways: perhaps a hybrid, who knows
    attends |= {
        attention
        for attention in ("causal", "full")
        if both and attention in card.get("attends", [])
    }
    own_ways = {own, *card.get("attends", [])}
    around = _specials_by_attention(tokenizer, attends, own_ways, options.bos, embeddings)
    return LoadedCheckpoint(
        name=name,
        sources=sources,
        kind=kind,
        model=model,
        tokenizer=tokenizer,
        forward_config=geometry,
        max_length=limit,
        specials=around,
        trained_methods=tuple(card.get("methods", [])),
        allowed=allowed,
        mask_id=mask_id,
        no_mask_reason=no_mask,
    )


def display_name(ref: str, options: OpenOptions) -> str:
    """What a checkpoint is called in tables: its folder or hub id, its revision, and its adapter."""

    def short(one: str) -> str:
        return _folder_display_name(Path(one).resolve()) if Path(one).exists() else one

    revision = f"@{options.revision}" if options.revision else ""
    return short(ref) + revision + (f"+{short(options.peft)}" if options.peft else "")


def _specials_by_attention(
    tokenizer: Any, attends: set[str], native_attentions: set[str], bos_policy: str, embeddings: int
) -> dict[str, Specials]:
    """The specials of a text under each attention; an attention beside the model's own ways is left
    out where its specials have no embedding. Raises CheckpointError for those of its own ways.
    """
    around: dict[str, Specials] = {
        a: build_specials(tokenizer, _as_attention(a), bos_policy) for a in sorted(attends)
    }
    for attention in list(around):
        try:
            check_specials(tokenizer, around[attention], embeddings)
        except CheckpointError:
            if attention in native_attentions:
                raise
            del around[attention]  # a causal model need not be read in both directions
    return around


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that a row may hold beside those of its text: what padding, masks and
    separators are.
    """
    names = ("pad", "mask", "bos", "eos", "cls", "sep", "unk")
    ids = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return sorted(i for i in ids if i is not None)


def _training_card(config: Any) -> dict[str, list[str]]:
    """What a checkpoint of ours says it attends and was made for; of anything else under that key,
    nothing.
    """
    said = getattr(config, CARD_KEY, None)
    lists = said.items() if isinstance(said, dict) else ()
    return {
        str(key): [str(one) for one in value] for key, value in lists if isinstance(value, list)
    }


def _folder_display_name(folder: Path) -> str:
    """What a local checkpoint is called in tables; BabyLM's `main` says nothing, the folder around
    it does.
    """
    return folder.name if folder.name != "main" else folder.parent.name


def describe_checkpoint(ref: str, loaded: LoadedCheckpoint, options: OpenOptions) -> dict[str, Any]:
    """The facts that a run's manifest keeps, in the order in which `doctor` shows them."""
    model, tokenizer = loaded.model, loaded.tokenizer
    facts = {
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
            a: _format_specials(tokenizer, around) for a, around in loaded.specials.items()
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
    if facts["original_layout"] is None:
        del facts["original_layout"]
    card = getattr(model.config, CARD_KEY, None)
    seen = card.get("words_seen") if isinstance(card, dict) else None
    if isinstance(seen, int):
        facts["words_seen"] = seen  # where a learning curve puts it
    if options.tokenizer:
        named = Path(options.tokenizer)
        facts["tokenizer_source"] = named.resolve().name if named.exists() else options.tokenizer
    if allowed := loaded.allowed.to_record():
        facts["allowed"] = allowed
    if loaded.sources.notes:
        facts["notes"] = list(loaded.sources.notes)
    if options.trust_remote_code:
        facts["code"] = {
            f.name: resolve.hash_files([f])[:16]
            for f in resolve.list_files(loaded.sources.base, resolve.CODE_PATTERNS)
        }
    return facts


def _weight_metadata(sources: CheckpointSources, options: OpenOptions) -> dict[str, Any]:
    """Hash and names of the files with weights; with an adapter, the hashes of both."""
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
    """The same checkpoint with a bf16 body, for `--precision adaptive`; its LM head is a RoughHead,
    or where something is done to the logits, fp32.
    """
    head = copy.deepcopy(checkpoint.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(
            f"{checkpoint.name} has no output embedding to keep in fp32",
            hint="use --precision exact",
        )
    rough = (
        can_pack_linears(checkpoint.engine.model)
        and isinstance(head, nn.Linear)
        and has_plain_lm_head(checkpoint.engine)
    )
    model = copy.deepcopy(checkpoint.engine.model)
    pretrained.cast_weights(model, torch.bfloat16)
    rows = checkpoint.engine.head_rows
    model.set_output_embeddings(Bf16LMHead(head, rows) if rough else head)
    if not rough:
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    engine = (Bf16HeadEngine if rough else Engine)(
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
    """Return facts of `describe` that also name the scored specials: other numbers, so another key."""
    after, _ = resolve_eos_rule(tokenizer, rule)
    spelled = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(after))))
    return {
        **metadata,
        "scored_specials": f"{spelled} after {'texts with a context' if rule == 'context' else 'texts'}",
    }


def key_settings(checkpoint: HasMetadata) -> dict[str, Any]:
    """The facts of `describe` that a score depends on, for a cell's content key."""
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
    """Sentences that a score must be read with: which weights were read, which tensors did not fit."""
    notes = list(checkpoint.metadata.get("notes", []))
    said = {
        "unused": "the model does not use {} of the files",
        "missing": "{} were in no file and are random",
    }
    for kind, names in checkpoint.metadata.get("allowed", {}).items():
        tensors = f"{names['count']} tensors ({', '.join(names['first'])}{', ...' * (names['count'] > MAX_NAMES_SHOWN)})"
        notes.append(said[kind].format(tensors))
    return notes


def _default_batch_tokens(device: torch.device) -> int:
    """Nodes per forward: few enough to stay near the caches of a CPU, enough to fill a GPU."""
    return 2048 if device.type == "cpu" else 32_768


def _as_attention(name: str) -> Attention:
    return "causal" if name == "causal" else "full"


def _format_specials(tokenizer: Any, special_tokens: Specials) -> str:
    """The specials as they really come out: `<s> ... </s>`."""
    return " ".join(
        [
            *tokenizer.convert_ids_to_tokens(special_tokens.before),
            "...",
            *tokenizer.convert_ids_to_tokens(special_tokens.after),
        ]
    )
