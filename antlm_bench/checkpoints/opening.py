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

from antlm_bench.checkpoints import folders, loading
from antlm_bench.checkpoints.folders import OpenOptions, locate, weight_hash
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.machine import keep_pages
from antlm_bench.scoring.engine import Engine, Geometry
from antlm_bench.scoring.fused import fuse
from antlm_bench.scoring.linear import can_pack, pack_linears
from antlm_bench.scoring.probes import supported
from antlm_bench.scoring.rough import RoughEngine, RoughHead, answers_last
from antlm_bench.scoring.text import ContextEncoder, Encoder, Specials, specials
from antlm_bench.types import Attention, Encodings, Floats, Probes

CARD = "antlm_bench"  # the key of config.json under which a checkpoint of ours says how it was trained
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

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention) -> Encodings:
        return self.encoders[attention].encode(texts, spans)

    def read(self, probes: Iterable[Probes], texts: int, tick: Callable[[float], None] | None = None) -> Floats:
        return self.engine.read(probes, texts, tick)

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

    def facts(self) -> Mapping[str, object]:
        """For `doctor`: what was found, in words."""
        return {**self.describe, "methods": ", ".join(self.methods) + f" (default: {self.methods[0]})"}


def open_checkpoint(ref: str, options: OpenOptions | None = None) -> Checkpoint:
    """Open a local folder or a hub id.

    Raises CheckpointError (absent, damaged, incomplete or pickled weights, no tokenizer, an architecture that is
    neither causal nor masked) and UsageError (an option that cannot apply).
    """
    with loading.quiet():
        return _open(ref, options or OpenOptions())


def _open(ref: str, options: OpenOptions) -> Checkpoint:
    found = find(ref, options)
    budget = options.batch_tokens or _auto_budget(found.model.device)
    vocabulary = found.model.get_input_embeddings().weight.shape[0]
    found.model.to(DTYPES[options.dtype])
    engine = Engine(found.model, found.name, found.geometry, budget)
    pack_linears(found.model, budget, engine.head_rows)
    fuse(found.model)
    tokenizer, limit = found.tokenizer, found.max_length
    return Checkpoint(
        name=found.name,
        kind=found.kind,
        attends=frozenset(found.around),
        eos=str(tokenizer.eos_token),
        mask_id=tokenizer.mask_token_id,
        max_length=limit,
        trained_for=found.trained_for,
        engine=engine,
        encoders={a: Encoder(tokenizer, s, max_length=limit, vocabulary=vocabulary) for a, s in found.around.items()},
        describe=describe(ref, found, options),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint in fp32 on its device, as it lies, and what was found out about it.

    around: the specials of a text per attention that it can be run with. trained_for: the methods on its card.
    """

    name: str
    folder: Path
    kind: str
    model: Any
    tokenizer: Any
    geometry: Geometry
    max_length: int | None
    around: Mapping[str, Specials]
    trained_for: tuple[str, ...]


def find(ref: str, options: OpenOptions, tried: bool = True) -> Found:
    """What scoring and finetuning open alike. Raises as `open_checkpoint`.

    tried: whether our engine's ways to run it are tried; a checkpoint that another engine reads need not run on ours.
    """
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}", place="--dtype", hint=f"one of {', '.join(DTYPES)}")
    device = loading.device_of(options.device)
    keep_pages()
    folder = locate(ref, options)
    name = _name(Path(ref).resolve()) if Path(ref).exists() else ref
    if options.revision:
        name += f"@{options.revision}"
    config = loading.configuration_of(folder, options)
    kind = loading.kind_of(config, folder)
    tokenizer = loading.tokenizer_of(folder, options)
    model = loading.weights_of(folder, kind, config, options)
    limit = loading.max_length_of(config, tokenizer, options.max_length)
    if options.lengths == "positions" and options.max_length is None:
        limit = loading.last_position(model, config, limit)
    model.to(device)
    own: Attention = "causal" if kind == "causal" else "full"
    untried = Geometry(model.config._attn_implementation, own)
    geometry = loading.geometry_of(model, kind, name) if tried else untried
    card = _card(config)
    attends: set[str] = {own}
    both = geometry.layout == "packed" or geometry.masks
    if kind == "causal" and both and tokenizer.mask_token_id is not None and not card:
        attends.add("full")  # the same weights, attending both ways: perhaps a hybrid, who knows
    attends |= {attention for attention in ("causal", "full") if both and attention in card.get("attends", [])}
    around: dict[str, Specials] = {a: specials(tokenizer, _attention(a), options.bos) for a in sorted(attends)}
    return Found(name, folder, kind, model, tokenizer, geometry, limit, around, tuple(card.get("methods", [])))


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
        "weights": weight_hash(found.folder),
        "config": folders.hash_of([found.folder / "config.json"]),
        "tokenizer": folders.hash_of(folders.files(found.folder, folders.TOKENIZER)),
        "tokenizer_class": type(tokenizer).__name__ + ("" if tokenizer.is_fast else " (slow)"),
        "vocabulary": model.get_input_embeddings().weight.shape[0],
        "max_length": found.max_length,
        "dtype": options.dtype,
        "device": str(next(model.parameters()).device),
        "layout": found.geometry.layout,
        "bos": options.bos,
        "specials": {a: _spelled(tokenizer, around) for a, around in found.around.items()},
        # Under the policies of official code, so that `submit` can tell whether they would differ.
        "specials_under": {
            policy: {a: _spelled(tokenizer, specials(tokenizer, _attention(a), policy)) for a in found.around}
            for policy in ("auto", "tokenizer")
        },
        "mask": tokenizer.mask_token,
        "unk": tokenizer.unk_token,
    }
    card = getattr(model.config, CARD, None)
    seen = card.get("words_seen") if isinstance(card, dict) else None
    if isinstance(seen, int):
        facts["words_seen"] = seen  # where a learning curve puts it
    if options.trust_remote_code:
        facts["code"] = {f.name: folders.hash_of([f])[:16] for f in folders.files(found.folder, folders.CODE)}
    return facts


def quicker(opened: Checkpoint) -> Checkpoint:
    """The same checkpoint with a bf16 body, for `--precision adaptive`; its LM head is a RoughHead, or where something
    is done to the logits, fp32."""
    head = copy.deepcopy(opened.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(f"{opened.name} has no output embedding to keep in fp32", hint="use --precision exact")
    rough = can_pack(opened.engine.model) and isinstance(head, nn.Linear) and answers_last(opened.engine)
    model = copy.deepcopy(opened.engine.model)
    model.to(torch.bfloat16)
    rows = opened.engine.head_rows
    model.set_output_embeddings(RoughHead(head, rows) if rough else head)
    if not rough:
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    engine = (RoughEngine if rough else Engine)(model, opened.name, opened.engine.geometry, opened.engine.budget)
    pack_linears(model, engine.budget, rows)
    fuse(model)
    return replace(opened, engine=engine)


class Described(Protocol):
    """A checkpoint opened for scoring, or for finetuning."""

    @property
    def describe(self) -> dict[str, Any]: ...


def settings(opened: Described) -> dict[str, Any]:
    """The facts of `describe` that a score depends on, for a cell's content key."""
    keys = ("weights", "config", "tokenizer", "architecture", "dtype", "max_length", "bos", "specials", "code")
    return {key: json.loads(json.dumps(opened.describe[key])) for key in keys if key in opened.describe}


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
