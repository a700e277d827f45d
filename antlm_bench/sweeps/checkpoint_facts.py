"""What a checkpoint's files tell without opening it: its methods, its size, its tokenizer.

No weight is loaded and torch is not imported. Shapes of tensors come from the headers of the weight
files, everything else from JSON files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.checkpoints.resolve import (
    LENGTH_KEYS,
    NO_MAX_LENGTH,
    TOKENIZER_PATTERNS,
    TRAINING_KEY,
    OpenOptions,
    list_files,
    locate_description,
)
from antlm_bench.errors import MethodNotSupported
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.scoring.methods import METHODS, Method
from antlm_bench.training.flops import compute_model_size
from antlm_bench.training.recipe import Recipe
from antlm_bench.types import Attention
from antlm_bench.weight_files import (
    MAX_JSON_BYTES,
    hash_files,
    read_json,
    read_tensor_headers,
    select_weights,
)

Kind = Literal["causal", "masked", "encoder-decoder", ""]
CAUSAL_CLASSES = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel")
MASKED_CLASSES = ("ForMaskedLM", "ForPreTraining")
ENCODER_DECODER_CLASSES = ("ForConditionalGeneration", "MTModel", "EncoderDecoderModel")
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "dim")
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LOOKUP_WORDS = ("embed", "wte", "wpe", "position")
"""Words in the names of tensors that are looked up and not multiplied."""
HEAD_WORDS = ("lm_head", "cls.", "classifier")
"""Words in the names of tensors of the LM head."""
IN_LAYER = re.compile(r"\.\d+\.")
"""Names of tensors of a layer: layers.0.mlp. The LM head and the embeddings are in no layer."""
TOKENIZERS_WITHOUT_MASK = (
    "PreTrainedTokenizer",
    "TokenizersBackend",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "GPTNeoX",
)
"""Classes of tokenizers that have no mask token unless their files name one."""


@dataclass(frozen=True, slots=True)
class ForwardSize:
    """Numbers that decide how many FLOPs a forward pass takes (docs/how-to/scale.md)."""

    parameters: int
    weights_per_token: int
    """Weights of the matrices that process every token."""
    weights_per_read: int
    """Weights of the LM head, which runs only at positions whose logits are needed."""
    layers: int
    hidden: int
    vocabulary: int
    position_vectors: int = 0
    """Number of vectors of relative positions. Each is multiplied by every query and every key."""

    def forward_flops(self, tokens: float, reads: float, attended: float) -> float:
        """Return the FLOPs of a forward pass.

        tokens: computed tokens. reads: positions at which the LM head runs. attended: sum over
        tokens of the positions that each attends to. Two FLOPs per weight and token, and two
        products per attended position and layer (training.flops).
        """
        attended += tokens * self.position_vectors
        return 2 * (
            self.weights_per_token * tokens
            + self.weights_per_read * reads
            + 2 * self.layers * self.hidden * attended
        )


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What is known of a checkpoint before it is opened."""

    ref: str
    folder: Path | None
    """Folder of its configuration; None = it is trained first."""
    kind: Kind
    """"" = unknown: its configuration names no class that is known."""
    attentions: frozenset[Attention]
    """The attentions with which it may run."""
    has_mask_token: bool | None
    """None = unknown from its files."""
    trained_methods: tuple[str, ...]
    """The methods that its configuration records, the default first."""
    max_length: int | None
    """Tokens of the longest text, special tokens included; None = unknown or unlimited."""
    size: ForwardSize | None
    """None = its weights are not here yet, or it is an encoder-decoder: a token runs through one of
    its two parts only."""
    tokenizer_dir: Path | None = None
    tokenizer_hash: str = ""
    """sha256 of the tokenizer's files; "" = it does not exist yet."""

    @property
    def methods(self) -> list[str]:
        """The scoring methods that it may support, the default first."""
        supported = [method.name for method in METHODS if not self.find_obstacle(method)]
        trained = [name for name in self.trained_methods if name in supported]
        return [*trained, *(name for name in supported if name not in trained)]

    def find_obstacle(self, method: Method) -> str:
        """Return why the checkpoint does not support a method; "" if nothing speaks against it."""
        if not self.kind:
            return ""
        if method.needs_mask and self.has_mask_token is False:
            return "its tokenizer has no mask token"
        missing = sorted(method.attentions - self.attentions)
        return f"it does not run with {' and '.join(missing)} attention" if missing else ""

    def resolve_methods(self, requested: Sequence[str]) -> list[str]:
        """Return the methods that a unit computes. Raises MethodNotSupported.

        "all" = the trained methods; () = the default method.
        """
        names: list[str] = []
        for name in requested or self.methods[:1]:
            names += (self.trained_methods or self.methods) if name == "all" else [name]
        for name in names:
            if obstacle := self.find_obstacle(METHODS[name]):
                raise MethodNotSupported(
                    f"{self.ref} cannot be scored with {name!r}: {obstacle}",
                    hint=f"it supports {', '.join(self.methods)}",
                )
        return list(dict.fromkeys(names))

    def resolve_attentions(self, requested: Sequence[str]) -> list[Attention]:
        """Return the attentions with which a unit finetunes. Raises MethodNotSupported.

        "all" = each with which the checkpoint can run; () = that of its first method.
        """
        all_attentions: tuple[Attention, ...] = ("causal", "full")
        available = [name for name in all_attentions if name in self.attentions]
        for name in requested:
            if name != "all" and name not in available and self.kind:
                raise MethodNotSupported(
                    f"{self.ref} cannot run with {name} attention",
                    hint=f"it can run with {' and '.join(available)} attention",
                )
        if requested:
            return available if "all" in requested else [*requested]  # type: ignore[list-item]
        first = self.methods[0] if self.methods else ""
        return ["causal"] if first == "causal" else available[-1:]


def read_checkpoint_facts(ref: str, options: OpenOptions) -> CheckpointFacts:
    """Read the facts of a folder or a hub id.

    Of a hub id, the small files are downloaded, and no weights. Raises CheckpointError for a folder
    without configuration or weights, and for a hub id that cannot be found.
    """
    sources = locate_description(ref, options)
    config = read_json(sources.base / "config.json") or {}
    training = config.get(TRAINING_KEY)
    record: Mapping[str, Any] = training if isinstance(training, dict) else {}
    kind = _detect_kind(config)
    is_encoder_decoder = kind == "encoder-decoder"
    has_mask_token = None if is_encoder_decoder else _has_mask_token(sources.tokenizer)
    attentions: set[Attention] = {"causal"} if kind == "causal" else {"full"}
    if is_encoder_decoder:
        attentions = {"cross", "denoising"}
    attentions |= {name for name in ("causal", "full") if name in record.get("attends", [])}
    if kind == "causal" and not record and has_mask_token is not False:
        attentions.add("full")  # the loader tries it, as the model may be a hybrid
    lengths = [config.get(key) for key in LENGTH_KEYS]
    tokenizer_config = _read_tokenizer_config(sources.tokenizer)
    lengths += [tokenizer_config.get("model_max_length"), options.max_length]
    known_lengths = [n for n in lengths if isinstance(n, int) and 0 < n < NO_MAX_LENGTH]
    size = None
    if not is_encoder_decoder:
        size = _measure_size(sources.base, config, options.allow_pickle)
    return CheckpointFacts(
        ref=ref,
        folder=sources.base,
        kind=kind,
        attentions=frozenset(attentions),
        has_mask_token=has_mask_token,
        trained_methods=tuple(name for name in record.get("methods", []) if name in METHODS),
        max_length=min(known_lengths, default=None),
        size=size,
        tokenizer_dir=sources.tokenizer,
        tokenizer_hash=hash_files(list_files(sources.tokenizer, TOKENIZER_PATTERNS)),
    )


def describe_future_checkpoint(ref: str, recipe: Recipe) -> CheckpointFacts:
    """Return the facts of a checkpoint that a recipe will train."""
    spec = recipe.model
    size = compute_model_size(spec, recipe.tokenizer.vocabulary)
    has_vectors = ARCHITECTURES[spec.architecture].relative_positions
    attentions: list[Attention] = ["causal"] * ("causal" in recipe.attentions)
    attentions += ["full"] * ("full" in recipe.attentions)
    return CheckpointFacts(
        ref=ref,
        folder=None,
        kind="causal" if "causal" in attentions else "masked",
        attentions=frozenset(attentions),
        has_mask_token=True,
        trained_methods=recipe.methods,
        max_length=spec.positions,
        size=ForwardSize(
            size.parameters,
            size.weights_per_token,
            size.weights_per_target,
            spec.layers,
            spec.hidden,
            recipe.tokenizer.vocabulary,
            2 * spec.buckets - 1 if has_vectors else 0,
        ),
    )


def _detect_kind(config: Mapping[str, Any]) -> Kind:
    """Return the kind of the first known class in `architectures` of config.json; "" if there is
    none.
    """
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if config.get("is_encoder_decoder") and str(name).endswith(ENCODER_DECODER_CLASSES):
            return "encoder-decoder"
        if str(name).endswith(CAUSAL_CLASSES):
            return "causal"
        if str(name).endswith(MASKED_CLASSES):
            return "masked"
    return ""


def _read_tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """Return tokenizer_config.json; {} if there is none.

    transformers writes 10**30 as model_max_length for "no limit", which no 64-bit integer holds.
    """
    try:
        data = read_regular_file(folder / "tokenizer_config.json", MAX_JSON_BYTES)
        content = parse_json(re.sub(rb"(:\s*)\d{19,}", rb"\g<1>%d" % NO_MAX_LENGTH, data))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _has_mask_token(folder: Path) -> bool | None:
    """Return whether a tokenizer has a mask token; None = its files do not tell."""
    settings = _read_tokenizer_config(folder)
    special_tokens = read_json(folder / "special_tokens_map.json") or {}
    if settings.get("mask_token") or special_tokens.get("mask_token"):
        return True
    class_name = str(settings.get("tokenizer_class", ""))
    return False if class_name.startswith(TOKENIZERS_WITHOUT_MASK) else None


def _measure_size(
    folder: Path, config: Mapping[str, Any], allow_pickle: bool
) -> ForwardSize | None:
    """Return the size from the shapes of the tensors; None without weights, or if config.json does
    not state layers and hidden size.
    """
    weights = select_weights(folder, allow_pickle)
    layers, hidden = (
        next((config[key] for key in keys if isinstance(config.get(key), int)), 0)
        for keys in (LAYER_KEYS, HIDDEN_KEYS)
    )
    if weights is None or not layers or not hidden:
        return None
    shapes = {name: header.shape for name, header in read_tensor_headers(weights).items()}
    vocabulary = config.get("vocab_size")
    if not isinstance(vocabulary, int):
        vocabulary = max((shape[0] for shape in shapes.values() if len(shape) == 2), default=0)
    matrices = {
        name: math.prod(shape)
        for name, shape in shapes.items()
        if len(shape) > 1
        and (vocabulary not in shape or IN_LAYER.search(name))
        and not any(word in name.lower() for word in LOOKUP_WORDS)
    }
    head_weights = sum(
        count for name, count in matrices.items() if any(word in name for word in HEAD_WORDS)
    )
    buckets = config.get("position_bucket_size")
    return ForwardSize(
        parameters=sum(map(math.prod, shapes.values())),
        weights_per_token=sum(matrices.values()) - head_weights,
        weights_per_read=vocabulary * hidden + head_weights,
        layers=layers,
        hidden=hidden,
        vocabulary=vocabulary,
        position_vectors=2 * buckets - 1 if isinstance(buckets, int) else 0,
    )
