"""Checkpoints: a folder or hub id in, a LanguageModel out, with everything that was found about it written down.

Nothing is assumed that can be tried: which specials the tokenizer adds, whether the weights fill the whole model,
whether packed rows give the same numbers as plain ones. Weights come from safetensors only, code from transformers
only, unless the user says otherwise.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.auto import modeling_auto

from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.scoring.engine import PACKED, CannotPackError, Engine, Geometry, attend
from antlm_bench.scoring.probes import supported
from antlm_bench.scoring.text import Encoder, Specials, specials
from antlm_bench.types import Attention, Encodings, Floats, Probes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRETRAINING = ("BertForPreTraining", "AlbertForPreTraining")  # a masked LM with one more head
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
WEIGHT_FILES = {"safetensors": "*.safetensors", "pickle": "pytorch_model*.bin"}


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open a checkpoint; every field can change a score or refuse a file. See the command line's help."""

    revision: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    bos: str = "auto"
    max_length: int | None = None
    batch_tokens: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


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
    describe: dict[str, Any] = field(default_factory=dict)

    def encode(self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention) -> Encodings:
        return self.encoders[attention].encode(texts, spans)

    def read(self, probes: Iterable[Probes], texts: int, tick: Callable[[float], None] | None = None) -> Floats:
        return self.engine.read(probes, texts, tick)

    @property
    def methods(self) -> list[str]:
        """What it can be scored with; the first is the default."""
        names = supported(self)
        return names if self.kind == "causal" else [n for n in names if n != "causal"]

    def facts(self) -> Mapping[str, object]:
        """For `doctor`: what was found, in words."""
        return {**self.describe, "methods": ", ".join(self.methods) + f" (default: {self.methods[0]})"}


def open_checkpoint(ref: str, options: OpenOptions | None = None) -> Checkpoint:
    """Open a local folder or a hub id.

    Raises CheckpointError (absent, damaged, incomplete or pickled weights, no tokenizer, an architecture that is
    neither causal nor masked) and UsageError (an option that cannot apply).
    """
    with _quiet():
        return _open(ref, options or OpenOptions())


def _open(ref: str, options: OpenOptions) -> Checkpoint:
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}", place="--dtype", hint=f"one of {', '.join(DTYPES)}")
    device = _device(options.device)
    folder = locate(ref, options)
    name = Path(ref).resolve().name if Path(ref).exists() else ref
    if options.revision:
        name += f"@{options.revision}"
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read the configuration: {_first_line(error)}", place=str(folder)) from error
    kind = _kind(config, folder)
    tokenizer = _tokenizer(folder, options)
    model = _weights(folder, kind, config, options).to(device)
    limit = _max_length(config, tokenizer, options.max_length)
    geometry = _find_geometry(model, kind, name)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    budget = options.batch_tokens or _auto_budget(device)
    attends = {"causal"} if kind == "causal" else {"full"}
    if kind == "causal" and geometry.layout == "packed" and tokenizer.mask_token_id is not None:
        attends.add("full")  # the same weights, attending both ways: a hybrid
    around: dict[str, Specials] = {a: specials(tokenizer, _attention(a), options.bos) for a in sorted(attends)}
    model.to(DTYPES[options.dtype])
    engine = Engine(model, name, geometry, budget)
    opened = Checkpoint(
        name=name,
        kind=kind,
        attends=frozenset(attends),
        eos=str(tokenizer.eos_token),
        mask_id=tokenizer.mask_token_id,
        max_length=limit,
        engine=engine,
        encoders={a: Encoder(tokenizer, s, max_length=limit, vocabulary=vocabulary) for a, s in around.items()},
    )
    opened.describe.update(
        {
            "name": name,
            "source": ref if not Path(ref).exists() else name,
            "revision": options.revision,
            "architecture": type(model).__name__,
            "kind": kind,
            "parameters": sum(p.numel() for p in model.parameters()),
            "weights": weight_hash(folder),
            "tokenizer": _hash(_files(folder, TOKENIZER_FILES)),
            "tokenizer_class": type(tokenizer).__name__ + ("" if tokenizer.is_fast else " (slow)"),
            "vocabulary": vocabulary,
            "max_length": limit,
            "dtype": options.dtype,
            "device": str(device),
            "layout": geometry.layout,
            "bos": options.bos,
            "specials": {a: _spelled(tokenizer, s) for a, s in around.items()},
            "mask": tokenizer.mask_token,
            "unk": tokenizer.unk_token,
        }
    )
    return opened


def quicker(opened: Checkpoint) -> Checkpoint:
    """The same checkpoint with a bf16 body, for `--precision adaptive`.

    The LM head stays fp32: logits near 10 rounded to bf16 would be off by 0.03 each, more than the whole body is.
    """
    model = copy.deepcopy(opened.engine.model)
    head = copy.deepcopy(opened.engine.model.get_output_embeddings())
    if head is None:
        raise CheckpointError(f"{opened.name} has no output embedding to keep in fp32", hint="use --precision exact")
    model.to(torch.bfloat16)
    model.set_output_embeddings(head)
    head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
    return replace(opened, engine=Engine(model, opened.name, opened.engine.geometry, opened.engine.budget))


def expand(refs: Sequence[str]) -> list[str]:
    """Folders, globs, folders of checkpoints (`chck_1M`, `chck_2M`, ...) and hub ids -> one ref per checkpoint.

    Sub-folders are sorted by the number in their name, so that milestones come in order of words seen.
    Raises CheckpointError for a glob or a folder that holds no checkpoint.
    """
    found: list[str] = []
    for ref in refs:
        path = Path(ref)
        if any(c in ref for c in "*?["):
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else ref
            matches = [p for p in root.glob(pattern) if (p / "config.json").is_file()]
        elif path.is_dir() and not (path / "config.json").is_file():
            matches = [p.parent for p in path.glob("*/config.json")]
        else:
            found.append(ref)
            continue
        if not matches:
            raise CheckpointError(
                "no checkpoint here (no config.json, in it or one level down)",
                place=ref,
                hint="give a Hugging Face folder (config.json, model.safetensors, tokenizer.json) or a hub id",
            )
        found += [str(p) for p in sorted(matches, key=_milestone)]
    return list(dict.fromkeys(found))


def _milestone(path: Path) -> tuple[float, str]:
    """Words seen as the folder's name tells them (`chck_1M`, `step-2000`): the last number, K/M/B understood."""
    digits = unit = ""
    for character in reversed(path.name):
        if character.isdigit() or (character == "." and digits):
            digits = character + digits
        elif digits:
            break
        elif character.upper() in "KMB":
            unit = character.upper()
    scale = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}[unit]
    return (float(digits.strip(".") or 0) * scale, path.name)


def locate(ref: str, options: OpenOptions) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (safetensors, configuration and tokenizer only)."""
    path = Path(ref)
    if path.is_dir():
        if options.revision:
            raise UsageError(
                f"a local folder has no revisions: {options.revision!r} would score the same weights again",
                place="--revision",
                hint="give the folder of that checkpoint instead, or the hub id",
            )
        if not (path / "config.json").is_file():
            raise CheckpointError("no config.json: not a Hugging Face checkpoint", place=ref)
        if not _files(path, ("*.safetensors",)):
            _pickled(path, options)
        return path
    if path.exists() or ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        raise CheckpointError(
            "no such folder", place=ref, hint="a checkpoint is a folder with config.json, or a hub id"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", WEIGHT_FILES["safetensors"]]
    patterns += [WEIGHT_FILES["pickle"]] if options.allow_pickle else []
    patterns += ["*.py"] if options.trust_remote_code else []
    try:
        folder = Path(snapshot_download(ref, revision=options.revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"cannot be had from the hub: {_first_line(error)}",
            place=f"{ref}@{options.revision or 'main'}",
            hint="no such local folder either; check the spelling, the network and HF_TOKEN, or unset HF_HUB_OFFLINE",
        ) from error
    if not _files(folder, ("*.safetensors",)):
        _pickled(folder, options)
    return folder


def weight_hash(folder: Path) -> str:
    """sha256 over the bytes of the weight files, shard by shard: what a run, a cache and a duplicate are keyed by."""
    return _hash(_files(folder, ("*.safetensors",)) or _files(folder, (WEIGHT_FILES["pickle"],)))


def _pickled(folder: Path, options: OpenOptions) -> None:
    if not _files(folder, (WEIGHT_FILES["pickle"],)):
        raise CheckpointError("no weights: no *.safetensors file", place=str(folder))
    if not options.allow_pickle:
        raise CheckpointError(
            "the weights are pickled, and unpickling can run code",
            place=str(folder),
            hint="convert them to safetensors, or pass --allow-pickle if you trust their author",
        )


def _kind(config: Any, folder: Path) -> str:
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


def _tokenizer(folder: Path, options: OpenOptions) -> Any:
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
                f"cannot read the tokenizer: {_first_line(error)}",
                place=str(folder),
                hint="save it beside the weights with tokenizer.save_pretrained(folder)",
            ) from error


def _weights(folder: Path, kind: str, config: Any, options: OpenOptions) -> Any:
    """The model in fp32, evaluation mode. Weights that are not in the file would be random: an error, not a warning."""
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
            f"cannot load the weights: {_first_line(error)}",
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


def _max_length(config: Any, tokenizer: Any, wanted: int | None) -> int | None:
    """The longest row: the least of what configuration, tokenizer and user allow."""
    limits: list[Any] = [getattr(config, "max_position_embeddings", None), getattr(config, "n_positions", None)]
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limits[0] = limits[0] - 1 - config.pad_token_id  # positions begin after the padding id
    if tokenizer.model_max_length < 10**9:
        limits.append(tokenizer.model_max_length)
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    if wanted is not None:
        if wanted < 1 or (known and wanted > min(known)):
            raise UsageError(f"{wanted} is not in 1..{min(known, default='?')}", place="--max-length")
        known.append(wanted)
    return min(known, default=None)


def _find_geometry(model: Any, kind: str, name: str) -> Geometry:
    """Packed if packed rows give this model's own numbers, else plain rows: tried, not assumed.

    Tried on random rows of several lengths with a shared beginning; learned positions may begin after a padding id.
    """
    own = Geometry(model.config._attn_implementation, "causal" if kind == "causal" else "full")
    rng = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    probes = []
    stem = rng.integers(0, vocabulary, 9)
    for length in (4, 6, 9):
        ids = np.stack([stem[:length], np.concatenate([stem[:2], rng.integers(0, vocabulary, length - 2)])])
        row, at = (x.ravel() for x in np.meshgrid(np.arange(2), np.arange(length), indexing="ij"))
        reads = (x.astype(np.int32) for x in (row, at, rng.integers(0, vocabulary, len(row)), row * 9 + at))
        probes.append(Probes(ids.astype(np.int32), own.attends, *reads))
    plain = Engine(model, name, own, 64).read(probes, 18)
    pad = model.config.pad_token_id
    for first in dict.fromkeys([0, 1 + pad if pad is not None else 0, 2]):
        packed = replace(own, layout="packed", first_position=first)
        try:
            found = Engine(model, name, packed, 64).read(probes, 18)
        except (CannotPackError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError, IndexError):
            continue  # this architecture's attention cannot be replaced, or has no such position
        if np.allclose(plain, found, rtol=1e-5, atol=1e-4):
            return packed
    model.set_attn_implementation(own.native)
    return own


def _auto_budget(device: torch.device) -> int:
    """Nodes per forward: few enough to stay near the caches of a CPU, enough to fill a GPU."""
    return 1024 if device.type == "cpu" else 32_768


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"unknown device {wanted!r}", place="--device", hint="cpu, cuda, cuda:1, mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here", place="--device", hint="--device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("no MPS device here", place="--device", hint="--device cpu")
    return device


def _attention(name: str) -> Attention:
    return "causal" if name == "causal" else "full"


def _spelled(tokenizer: Any, around: Specials) -> str:
    """The specials as they really come out: `<s> ... </s>`."""
    return " ".join(
        [*tokenizer.convert_ids_to_tokens(around.before), "...", *tokenizer.convert_ids_to_tokens(around.after)]
    )


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def settings(opened: Checkpoint) -> dict[str, Any]:
    """The facts of `describe` that a score depends on, for a cell's content key."""
    keys = ("weights", "tokenizer", "architecture", "dtype", "max_length", "bos", "specials")
    return {key: json.loads(json.dumps(opened.describe[key])) for key in keys}


transformers.AttentionInterface.register(PACKED, attend)
