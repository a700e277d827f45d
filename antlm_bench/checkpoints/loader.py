"""A folder or hub id in, a LanguageModel out, with everything that was found about it written down.

Nothing is assumed that can be tried: which specials the tokenizer adds, whether the weights fill the whole model,
whether packed rows give the same numbers as plain ones. Weights come from safetensors only, code from transformers
only, unless the user says otherwise.
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
from antlm_bench.checkpoints.adapters import adapter_facts, merge_adapter
from antlm_bench.checkpoints.resolve import CARD, OpenOptions, Sources, locate_sources, weight_hash
from antlm_bench.checkpoints.self_test import SelfTest, self_test, spread_texts, trial_texts
from antlm_bench.checkpoints.tensor_check import SHOWN, Allowed, check_other_sets
from antlm_bench.cpu_tuning import keep_pages
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.cpu_kernels import can_pack
from antlm_bench.scoring.engine import Engine, Geometry
from antlm_bench.scoring.mixed_precision_head import RoughEngine, RoughHead, answers_last
from antlm_bench.scoring.model_state import ModelState
from antlm_bench.scoring.probes import METHODS, Method, supported
from antlm_bench.scoring.text import (
    ContextEncoder,
    Encoder,
    EosRule,
    Specials,
    check_specials,
    eos_rule,
    mask_token,
    scoring_eos,
    specials,
)
from antlm_bench.scoring.tokens import WORDS_FROM_OFFSETS
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
    encoders: Mapping[str, Encoder]
    trained_for: tuple[str, ...] = ()
    describe: dict[str, Any] = field(default_factory=dict)
    no_mask: str = ""

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention) -> Encodings:
        return self.encoders[attention].encode(texts, spans)

    def read(self, probes: Iterable[Probes], texts: int, tick: Callable[[float], None] | None = None) -> Floats:
        return self.engine.read(probes, texts, tick)

    def test_on(self, texts: Sequence[str], methods: Sequence[Method]) -> SelfTest:
        """Compare the engine with the model's plain forward on a handful of these texts, from the shortest to the
        longest; see self_test."""
        return self_test(self, spread_texts(texts), {attention for method in methods for attention in method.attends})

    def spell(self, token: int) -> str:
        """A token as text."""
        return str(next(iter(self.encoders.values())).tokenizer.decode(token))

    @property
    def methods(self) -> list[str]:
        """What it can be scored with; the first is the default. A card's methods go before what else is possible."""
        names = supported(self)
        return [n for n in self.trained_for if n in names] + [n for n in names if n not in self.trained_for]

    def with_bos_before_context(self, bos: str) -> Checkpoint:
        """Return the same checkpoint with another BOS policy for causal texts that have a context."""
        encoders = dict(self.encoders)
        if (causal := encoders.get("causal")) is not None:
            encoders["causal"] = ContextEncoder(causal, specials(causal.tokenizer, "causal", bos))
        return replace(self, encoders=encoders)

    def with_scored_eos(self, rule: EosRule) -> Checkpoint:
        """Return the same checkpoint with the specials after causal texts scored (scoring.text.scoring_eos)."""
        causal = self.encoders.get("causal")
        if causal is None or (changed := scoring_eos(causal, rule)) is causal:
            return self
        return replace(
            self,
            encoders={**self.encoders, "causal": changed},
            describe=describe_scored_eos(self.describe, causal.tokenizer, rule),
        )

    def facts(self) -> Mapping[str, object]:
        """For `doctor`: what was found, in words."""
        notes = self.notes("mlm-l2r") if "mlm-l2r" in self.methods else ()
        if not self.methods:
            return {**self.describe, "methods": f"none: {self.no_mask}"}
        methods = f"{', '.join(self.methods)} (default: {self.methods[0]})"
        if self.no_mask and "full" in self.attends:
            methods += f"; none that hides tokens: {self.no_mask}"
        return {**self.describe, **({"words": notes[0]} if notes else {}), "methods": methods}

    def notes(self, method: str) -> tuple[str, ...]:
        """What a reader of scores under this method must know of the tokenizer."""
        told = METHODS[method].words and not self.encoders["full"].text_tokenizer.tells_words
        return (WORDS_FROM_OFFSETS,) if told else ()


def open_checkpoint(ref: str, options: OpenOptions | None = None) -> Checkpoint:
    """Open a local folder or a hub id.

    Raises CheckpointError (absent, damaged, incomplete or pickled weights, no tokenizer, an architecture that is
    neither causal nor masked) and UsageError (an option that cannot apply).
    """
    with pretrained.quiet():
        return _open(ref, options or OpenOptions())


def _open(ref: str, options: OpenOptions) -> Checkpoint:
    found = find(ref, options)
    budget = options.batch_tokens or _auto_budget(found.model.device)
    vocabulary = pretrained.vocabulary_of(found.model)
    pretrained.cast_weights(found.model, DTYPES[options.dtype])
    engine = Engine(found.model, found.name, found.geometry, budget)
    engine.use_kernels()
    tokenizer, limit = found.tokenizer, found.max_length
    checkpoint = Checkpoint(
        name=found.name,
        kind=found.kind,
        attends=frozenset(found.around),
        eos=str(tokenizer.eos_token),
        mask_id=found.mask_id,
        no_mask=found.no_mask,
        max_length=limit,
        trained_for=found.trained_for,
        engine=engine,
        encoders={a: Encoder(tokenizer, s, max_length=limit, vocabulary=vocabulary) for a, s in found.around.items()},
        describe=describe(ref, found, options),
    )
    _test(checkpoint, found)
    return checkpoint


def _test(checkpoint: Checkpoint, found: Found) -> None:
    """Run the self-test on opening and record it.

    A causal model need not be read in both directions: where only the direction fails that it was
    not made for, it is not offered. Raises CheckpointError as `self_test`.
    """
    texts = trial_texts(found.tokenizer)
    own = {found.geometry.attends, *_card(checkpoint.engine.model.config).get("attends", [])}
    tested = self_test(checkpoint, texts, own & checkpoint.attends, most_predictions=6)
    if others := checkpoint.attends - own:
        try:
            self_test(checkpoint, texts, others, most_predictions=6)
        except CheckpointError:
            checkpoint.attends &= own
    checkpoint.describe |= {"shortcuts": checkpoint.engine.shortcuts, "self_test": tested.record()}


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint in fp32 on its device, as it lies, and what was found out about it.

    around: the specials of a text per attention that it can be run with. trained_for: the methods on its card.
    sources: where its parts lie. allowed: tensors that did not fit and were let pass.
    mask_id: the mask token's id, or None; no_mask: why it is None, "" where it is not.
    """

    name: str
    sources: Sources
    kind: str
    model: Any
    tokenizer: Any
    geometry: Geometry
    max_length: int | None
    around: Mapping[str, Specials]
    trained_for: tuple[str, ...]
    allowed: Allowed
    mask_id: int | None
    no_mask: str


def find(ref: str, options: OpenOptions, tried: bool = True) -> Found:
    """What scoring and finetuning open alike. Raises as `open_checkpoint`.

    tried: whether our engine's ways to run it are tried; a checkpoint that another engine reads need not run on ours.
    """
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}", place="--dtype", hint=f"one of {', '.join(DTYPES)}")
    device = pretrained.device_of(options.device)
    keep_pages()
    sources = locate_sources(ref, options)
    sources = replace(sources, notes=sources.notes + check_other_sets(sources.base, options))
    name = display_name(ref, options)
    config = pretrained.configuration_of(sources.base, options)
    kind = pretrained.kind_of(config, sources.base)
    own: Attention = "causal" if kind == "causal" else "full"
    tokenizer = pretrained.tokenizer_of(sources.tokenizer, options)
    model, allowed = pretrained.load_weights(sources.base, kind, config, options)
    if sources.adapter is not None:
        model = merge_adapter(model, sources.adapter, options)
    state = ModelState.of(model)  # BigBird gives up sparse attention after one short row
    limit = pretrained.max_length_of(model, tokenizer, options.max_length)
    if options.lengths == "positions" and options.max_length is None:
        limit = pretrained.last_position(model, limit)
    if own == "causal":
        pretrained.check_causality(model, sources.base)
    state.restore()
    model = model.to(device)
    embeddings = model.get_input_embeddings().weight.shape[0]
    mask_id, no_mask = mask_token(tokenizer, embeddings)
    untried = Geometry(model.config._attn_implementation, own)
    geometry = pretrained.geometry_of(model, kind, name, special_ids(tokenizer)) if tried else untried
    card = _card(config)
    attends: set[str] = {own}
    both = geometry.layout == "packed" or geometry.masks
    if kind == "causal" and both and mask_id is not None and not card:
        attends.add("full")  # the same weights, attending both ways: perhaps a hybrid, who knows
    attends |= {attention for attention in ("causal", "full") if both and attention in card.get("attends", [])}
    own_ways = {own, *card.get("attends", [])}
    around = _specials_by_attention(tokenizer, attends, own_ways, options.bos, embeddings)
    return Found(
        name=name,
        sources=sources,
        kind=kind,
        model=model,
        tokenizer=tokenizer,
        geometry=geometry,
        max_length=limit,
        around=around,
        trained_for=tuple(card.get("methods", [])),
        allowed=allowed,
        mask_id=mask_id,
        no_mask=no_mask,
    )


def display_name(ref: str, options: OpenOptions) -> str:
    """What a checkpoint is called in tables: its folder or hub id, its revision, and its adapter."""

    def short(one: str) -> str:
        return _name(Path(one).resolve()) if Path(one).exists() else one

    revision = f"@{options.revision}" if options.revision else ""
    return short(ref) + revision + (f"+{short(options.peft)}" if options.peft else "")


def _specials_by_attention(
    tokenizer: Any, attends: set[str], own_ways: set[str], bos: str, embeddings: int
) -> dict[str, Specials]:
    """The specials of a text under each attention; an attention beside the model's own ways is left
    out where its specials have no embedding. Raises CheckpointError for those of its own ways.
    """
    around: dict[str, Specials] = {a: specials(tokenizer, _attention(a), bos) for a in sorted(attends)}
    for attention in list(around):
        try:
            check_specials(tokenizer, around[attention], embeddings)
        except CheckpointError:
            if attention in own_ways:
                raise
            del around[attention]  # a causal model need not be read in both directions
    return around


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens that a row may hold beside those of its text: what padding, masks and separators are."""
    names = ("pad", "mask", "bos", "eos", "cls", "sep", "unk")
    ids = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    return sorted(i for i in ids if i is not None)


def _card(config: Any) -> dict[str, list[str]]:
    """What a checkpoint of ours says it attends and was made for; of anything else under that key, nothing."""
    said = getattr(config, CARD, None)
    lists = said.items() if isinstance(said, dict) else ()
    return {str(key): [str(one) for one in value] for key, value in lists if isinstance(value, list)}


def _name(folder: Path) -> str:
    """What a local checkpoint is called in tables; BabyLM's `main` says nothing, the folder around it does."""
    return folder.name if folder.name != "main" else folder.parent.name


def describe(ref: str, found: Found, options: OpenOptions) -> dict[str, Any]:
    """The facts that a run's manifest keeps, in the order in which `doctor` shows them."""
    model, tokenizer = found.model, found.tokenizer
    facts = {
        "name": found.name,
        "source": ref if not Path(ref).exists() else found.name,
        "revision": options.revision,
        "architecture": type(model).__name__,
        "kind": found.kind,
        "parameters": sum(p.numel() for p in model.parameters()),
        **_weight_facts(found.sources, options),
        "config": resolve.hash_of([found.sources.base / "config.json"]),
        "tokenizer": resolve.hash_of(resolve.files(found.sources.tokenizer, resolve.TOKENIZER)),
        "tokenizer_class": type(tokenizer).__name__ + ("" if tokenizer.is_fast else " (slow)"),
        "vocabulary": model.get_input_embeddings().weight.shape[0],
        "max_length": found.max_length,
        "dtype": options.dtype,
        "device": str(next(model.parameters()).device),
        "layout": found.geometry.layout,
        "original_layout": getattr(model.config, "original_layout", None),
        "bos": options.bos,
        "specials": {a: _spelled(tokenizer, around) for a, around in found.around.items()},
        # Under the policies of official code, so that `submit` can tell whether they would differ.
        "specials_under": {
            policy: {a: _spelled(tokenizer, specials(tokenizer, _attention(a), policy)) for a in found.around}
            for policy in ("auto", "tokenizer")
        },
        "mask": tokenizer.mask_token if found.mask_id is not None else None,
        "unk": tokenizer.unk_token,
    }
    if facts["original_layout"] is None:
        del facts["original_layout"]
    card = getattr(model.config, CARD, None)
    seen = card.get("words_seen") if isinstance(card, dict) else None
    if isinstance(seen, int):
        facts["words_seen"] = seen  # where a learning curve puts it
    if options.tokenizer:
        named = Path(options.tokenizer)
        facts["tokenizer_source"] = named.resolve().name if named.exists() else options.tokenizer
    if allowed := found.allowed.facts():
        facts["allowed"] = allowed
    if found.sources.notes:
        facts["notes"] = list(found.sources.notes)
    if options.trust_remote_code:
        facts["code"] = {f.name: resolve.hash_of([f])[:16] for f in resolve.files(found.sources.base, resolve.CODE)}
    return facts


def _weight_facts(sources: Sources, options: OpenOptions) -> dict[str, Any]:
    """Hash and names of the files with weights; with an adapter, the hashes of both."""
    chosen = select_weights(sources.base, options.allow_pickle)
    base = weight_hash(sources.base, options.allow_pickle)
    hashes = adapter_facts(sources.adapter, base, options) if sources.adapter else {"weights": base}
    return {**hashes, "weight_files": _file_names(chosen.name, len(chosen.files)) if chosen else ""}


def _file_names(name: str, count: int) -> str:
    """`model.safetensors.index.json (4 files)`."""
    return name if count == 1 else f"{name} ({count} files)"


def quicker(opened: Checkpoint) -> Checkpoint:
    """The same checkpoint with a bf16 body, for `--precision adaptive`; its LM head is a RoughHead, or where something
    is done to the logits, fp32."""
    head = copy.deepcopy(opened.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(f"{opened.name} has no output embedding to keep in fp32", hint="use --precision exact")
    rough = can_pack(opened.engine.model) and isinstance(head, nn.Linear) and answers_last(opened.engine)
    model = copy.deepcopy(opened.engine.model)
    pretrained.cast_weights(model, torch.bfloat16)
    rows = opened.engine.head_rows
    model.set_output_embeddings(RoughHead(head, rows) if rough else head)
    if not rough:
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    engine = (RoughEngine if rough else Engine)(model, opened.name, opened.engine.geometry, opened.engine.budget)
    if opened.engine.kernels is not None:
        engine.use_kernels()
    return replace(opened, engine=engine)


class Described(Protocol):
    """A checkpoint opened for scoring, or for finetuning."""

    @property
    def describe(self) -> dict[str, Any]: ...


def describe_scored_eos(facts: Mapping[str, Any], tokenizer: Any, rule: EosRule) -> dict[str, Any]:
    """Return facts of `describe` that also name the scored specials: other numbers, so another key."""
    after, _ = eos_rule(tokenizer, rule)
    spelled = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(after))))
    return {**facts, "scored_specials": f"{spelled} after {'texts with a context' if rule == 'context' else 'texts'}"}


def settings(opened: Described) -> dict[str, Any]:
    """The facts of `describe` that a score depends on, for a cell's content key."""
    keys = [
        *("weights", "config", "tokenizer", "architecture", "dtype", "max_length", "bos", "specials", "code"),
        "scored_specials",
        *("base_weights", "adapter_weights", "adapter_config", "allowed", "original_layout"),  # where there are any
    ]
    return {key: json.loads(json.dumps(opened.describe[key])) for key in keys if key in opened.describe}


def opening_notes(opened: Described) -> list[str]:
    """Sentences that a score must be read with: which weights were read, which tensors did not fit."""
    notes = list(opened.describe.get("notes", []))
    said = {"unused": "the model does not use {} of the files", "missing": "{} were in no file and are random"}
    for kind, names in opened.describe.get("allowed", {}).items():
        tensors = f"{names['count']} tensors ({', '.join(names['first'])}{', ...' * (names['count'] > SHOWN)})"
        notes.append(said[kind].format(tensors))
    return notes


def _auto_budget(device: torch.device) -> int:
    """Nodes per forward: few enough to stay near the caches of a CPU, enough to fill a GPU."""
    return 2048 if device.type == "cpu" else 32_768


def _attention(name: str) -> Attention:
    return "causal" if name == "causal" else "full"


def _spelled(tokenizer: Any, around: Specials) -> str:
    """The specials as they really come out: `<s> ... </s>`."""
    return " ".join(
        [*tokenizer.convert_ids_to_tokens(around.before), "...", *tokenizer.convert_ids_to_tokens(around.after)]
    )
