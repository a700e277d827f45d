"""Public checkpoints of LTG-BERT, ELC-BERT and GPT-BERT in their authors' layouts, opened without
their code.

They are recognised by their weights, whatever their configuration calls itself, and renamed by a
table. Names of weights and configuration keys are facts about files, read from the public ones; the
models are our architectures. What neither weights nor configuration tell (`LayoutTraits`) is read
from the folder's Python files, which are never run, or given by `--original-layout`. Nothing is
guessed: where neither says it, the checkpoint is refused.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from antlm_bench.architectures.registration import ARCHITECTURES
from antlm_bench.checkpoints.resolve import (
    CARD_KEY,
    CODE_PATTERNS,
    OpenOptions,
    first_line,
    list_files,
    pickled_files,
    safetensors_files,
)
from antlm_bench.errors import CheckpointError, UsageError

LTG_BERT, GPT_BERT = ARCHITECTURES
# What an original name begins with depends on who wrapped the model; what follows is the same for
# all.
WRAPPER_PREFIXES = (
    r"(?:(?:module|_orig_mod|model|bert|ltg_?bert|gpt_?bert|transformer|classifier|lm_head)\.)*"
)
ATTENTION_PREFIX = r"(?:layers\.(\d+)\.attention|attention_layers\.(\d+))\."
MLP_PREFIX = r"(?:layers\.(\d+)\.mlp|mlp_layers\.(\d+))\."
# Original name behind its wrappers -> ours. {n}: the number of the layer, {w}: weight or bias.
WEIGHT_NAMES = {
    r"embedding\.word_embedding\.weight": "model.embedding.weight",
    r"embedding\.relative_embedding": "model.positions.table.weight",
    r"embedding\.relative_layer_norm\.(?P<w>weight|bias)": "model.positions.norm.{w}",
    ATTENTION_PREFIX
    + r"in_proj_qk\.(?P<w>weight|bias)": "model.layers.{n}.attention.query_key.{w}",
    ATTENTION_PREFIX + r"in_proj_v\.(?P<w>weight|bias)": "model.layers.{n}.attention.value.{w}",
    ATTENTION_PREFIX
    + r"in_proj_vg\.(?P<w>weight|bias)": "model.layers.{n}.attention.value_gate.{w}",
    ATTENTION_PREFIX + r"out_proj\.(?P<w>weight|bias)": "model.layers.{n}.attention.output.{w}",
    ATTENTION_PREFIX
    + r"post_layer_norm\.(?P<w>weight|bias)": "model.layers.{n}.attention.norm_out.{w}",
    MLP_PREFIX + r"mlp\.1\.weight": "model.layers.{n}.feed_forward.wide.weight",
    MLP_PREFIX + r"mlp\.4\.weight": "model.layers.{n}.feed_forward.narrow.weight",
    r"layers\.(\d+)\.prev_layer_weights": "model.layers.{n}.mix.alpha",  # ELC-BERT
    r"prev_layer_weights": "model.mix.alpha",  # ELC-BERT with weighted output
    # GPT-BERT: two per layer
    r"dwa_modules\.alphas\.(\d+)": "model.layers.{half}.mixes.{odd}.alpha",
    r"nonlinearity\.1\.(?P<w>weight|bias)": "head.transform.1.{w}",
    r"nonlinearity\.5\.(?P<w>weight|bias)": "head.decoder.{w}",
}
POSITION_INDEX_BUFFER = re.compile(
    r"(?:.*\.)?position_indices$"
)  # a buffer that the configuration implies: compared, not loaded
HYBRID_CARD = {
    "attends": ["causal", "full"],
    "methods": ["mntp", "causal", "fused"],
}  # what every GPT-BERT was trained for
GPT_BERT_FEATURES = {
    "gate": "attention_gate",
    "weighted sums": "layer_weights",
}  # in words -> configuration key
LAYER_NORM_EPS = {
    LTG_BERT: 1e-7,
    GPT_BERT: 1e-5,
}  # of the layer norms, in the authors' training code


@dataclass(frozen=True, slots=True)
class LayoutTraits:
    """What one published code computes and neither weights nor configuration tell. None: not known.

    per_head_positions: the projected position table is cut into heads first, and each head into
    query and key; else into all queries and all keys first. layer_mix: the variant of ELC-BERT, ""
    for none. blanked_ids: so many ids, from 0 on, get the logit minus infinity.
    """

    per_head_positions: bool | None = None
    layer_mix: str | None = None
    blanked_ids: int | None = None


# --original-layout: the published code that wrote the weights (ltgoslo/ltg-bert and
# ltgoslo/elc-bert).
ORIGINAL_LAYOUTS = {
    "ltg-bert-babylm": LayoutTraits(False, "", 0),
    "ltg-bert-bnc": LayoutTraits(True, "", 0),
    "ltg-bert-first-wrapper": LayoutTraits(False, "", 107),
    "elc-bert-base": LayoutTraits(False, "base", 0),
    "elc-bert-zero": LayoutTraits(False, "zero", 0),
    "elc-bert-normalized": LayoutTraits(False, "normalized", 0),
    "elc-bert-weighted-output": LayoutTraits(False, "weighted_output", 0),
}
LAYOUT_OPTION = "--original-layout"
# Traits in the text of a wrapper's code, without comments and white space. The heads of the
# position table: a view of (.., heads, 2 * head size), or (.., 2, heads, head size), or one that is
# halved before it is cut into heads.
PER_HEAD_PATTERN = re.compile(r"num_heads,2\*(?:self\.)?head_(?:size|dim)\)")
BY_HALF_PATTERN = re.compile(
    r"-1,2,(?:self\.)?num_heads,(?:self\.)?head_(?:size|dim)\)"
    r"|(\w*key_pos\w*)=\1\.(?:view|reshape)\([^()]*num_heads,(?:self\.)?head_(?:size|dim)\)"
    r"|in_proj_qk\((?:self\.dropout\()?\w*relative\w*\)+\.chunk\(2,dim=-1\)"
)
BLANKED_PATTERN = re.compile(
    r"\w*(?:prediction|logits)\w*\[([^\]]*)\]=(?:float\([\"']-inf|-(?:math|torch|np|numpy)\.inf)"
)
FIRST_IDS_PATTERN = re.compile(
    r":,:,:([\d+]+)"
)  # the index of a BLANKED assignment that is understood
NORMALIZED_LAYER_PATTERN = re.compile(r"self\.norm=nn\.LayerNorm")
ZERO_LAYER_PATTERN = re.compile(
    r"\+self\.mlp\(\w+\+\w+\)"
)  # zero and normalized; base feeds the attention's output alone


@dataclass(frozen=True, slots=True)
class OriginalCheckpoint:
    """A checkpoint in an author's layout. settings: its config.json; shapes: original name -> shape
    of every weight.
    """

    folder: Path
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    options: OpenOptions

    @property
    def model_type(self) -> str:
        """GPT-BERT has its attention apart from its feed-forward; a gate is optional, an affine
        norm is not its own.
        """
        names = " ".join(self.shapes)
        plain = "attention_layers." in names and "post_layer_norm" not in names
        return GPT_BERT if "in_proj_vg" in names or plain else LTG_BERT

    def build_config(self) -> Any:
        """Our configuration: sizes from the weights where they tell, everything else from
        config.json.
        """
        ours = self._rename_weights()
        shapes = {new: self.shapes[old] for old, new in ours.items()}
        module, prefix = _load_architecture(self.model_type)
        known = self._check_settings(module.DEFAULTS)
        if "num_attention_heads" not in known:
            raise self._error(
                "config.json does not say num_attention_heads", "add it: the weights do not tell"
            )
        known["vocab_size"], known["hidden_size"] = shapes["model.embedding.weight"]
        known["position_bucket_size"] = (shapes["model.positions.table.weight"][0] + 1) // 2
        known["num_hidden_layers"] = 1 + max(
            int(n) for n in re.findall(r"model\.layers\.(\d+)", " ".join(shapes))
        )
        if "model.layers.0.feed_forward.narrow.weight" in shapes:
            known.setdefault(
                "intermediate_size", shapes["model.layers.0.feed_forward.narrow.weight"][1]
            )
        known.setdefault("layer_norm_eps", LAYER_NORM_EPS[self.model_type])
        traits = self._resolve_traits(ours)
        if self.model_type == GPT_BERT:
            known["layer_weights"] = any(name.endswith("alpha") for name in shapes)
            known["attention_gate"] = any("in_proj_vg" in name for name in self.shapes)
            known[CARD_KEY] = HYBRID_CARD
        else:
            known["layer_mix"], known["per_head_positions"] = (
                traits.layer_mix,
                traits.per_head_positions,
            )
        known["tie_word_embeddings"] = self._has_tied_embeddings(ours)
        causal = any(
            name.endswith("ForCausalLM") for name in self.settings.get("architectures") or ()
        )
        # A GPT-BERT's wrapper may be called causal or masked: the weights were trained both ways.
        known["architectures"] = [
            prefix + ("ForCausalLM" if causal and self.model_type == LTG_BERT else "ForMaskedLM")
        ]
        known["original_layout"] = self._describe_layout(known, traits)
        try:
            return getattr(module, prefix + "Config")(**known)
        except (TypeError, ValueError) as error:
            raise self._error(first_line(error), "") from error

    def build_model(self, kind: str, config: Any) -> Any:
        """The model in fp32. CheckpointError unless every weight is used and every parameter is
        filled.
        """
        module, prefix = _load_architecture(self.model_type)
        ours = self._rename_weights()
        weights = self._load_weights(self.shapes)
        state = {new: weights[old].float() for old, new in ours.items()}
        for old in sorted(name for name in self.shapes if name not in ours):
            self._check_position_index(old, weights[old].long(), module.bucket_index, config)
        if config.tie_word_embeddings:  # a file holds one of the two names, or both
            shared = state.get("model.embedding.weight", state.get("head.decoder.weight"))
            state["model.embedding.weight"] = state["head.decoder.weight"] = shared
        if blanked := self._resolve_traits(ours).blanked_ids:
            bias = state["head.decoder.bias"] = state["head.decoder.bias"].clone()
            bias[:blanked] = -torch.inf  # to add this is to overwrite the logit
        with torch.device("meta"):
            model = getattr(
                module, prefix + {"causal": "ForCausalLM", "masked": "ForMaskedLM"}[kind]
            )(config)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        back = {new: old for old, new in ours.items()}
        for name in sorted(wanted.keys() | state.keys()):
            found = tuple(state[name].shape) if name in state else None
            if found != wanted.get(name):
                raise self._error(
                    f"{back.get(name, name)} is {found or 'absent'}, and the model wants {wanted.get(name, 'none')}",
                    "the checkpoint is incomplete, or a variant unknown here: --trust-remote-code runs its own code",
                )
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model.eval()

    def _rename_weights(self) -> dict[str, str]:
        """Original name -> ours. Raises CheckpointError for a name that the table does not know."""
        found = {
            name: _rename_weight(name)
            for name in self.shapes
            if not POSITION_INDEX_BUFFER.match(name)
        }
        unknown = sorted(name for name, new in found.items() if new is None)
        if unknown:
            raise self._error(
                f"{len(unknown)} weights have no place in LTG-BERT, ELC-BERT or GPT-BERT (e.g. {unknown[0]})",
                "--trust-remote-code runs the checkpoint's own code, if you trust its author",
            )
        named = {old: new for old, new in found.items() if new is not None}
        if (
            self.model_type == GPT_BERT
        ):  # without a gate the projection has another name, and the same place
            named = {
                old: new.replace(".attention.value.", ".attention.value_gate.")
                for old, new in named.items()
            }
        if (
            "model.embedding.weight" not in named.values()
        ):  # tied weights may have been saved under the other name
            named = {
                o: n.replace("head.decoder.weight", "model.embedding.weight")
                for o, n in named.items()
            }
        if len(set(named.values())) < len(named):
            raise self._error("two weights have the same place in the model", "")
        for needed in ("model.embedding.weight", "model.positions.table.weight", "model.layers.0"):
            if not any(new.startswith(needed) for new in named.values()):
                raise self._error(f"no weight for {needed}", "the checkpoint is incomplete")
        return named

    def _resolve_traits(self, new_names: dict[str, str]) -> LayoutTraits:
        """What --original-layout, config.json or the folder's code say, in this order; see
        `LayoutTraits`.

        Raises CheckpointError where nothing says it or two of them contradict, UsageError for an
        option that cannot be.
        """
        code = self._traits_from_code()
        if self.model_type == GPT_BERT and not self.options.original_layout:
            if code.per_head_positions:
                hint = "--trust-remote-code runs its own code, if you trust its author"
                raise self._error(
                    "its code cuts positions per head, and no published GPT-BERT does", hint
                )
            return LayoutTraits(False, "", code.blanked_ids or 0)
        mixes = self._possible_layer_mixes(new_names)
        known = self._traits_from_files(mixes, code)
        if name := self.options.original_layout:
            return self._check_layout_option(name, mixes, known)
        mix = known.layer_mix
        if mix is None:
            raise self._error(
                "ELC-BERT's zero and normalized variants have the same weights, and nothing here says which this is",
                f"{LAYOUT_OPTION} elc-bert-zero, or {LAYOUT_OPTION} elc-bert-normalized",
            )
        per_head, blanked = known.per_head_positions, known.blanked_ids
        if per_head is None and mix and not self._missing_code_file():
            per_head = False  # all published code of ELC-BERT halves its positions
        classes = [str(name) for name in self.settings.get("architectures") or ()]
        unknown = blanked is None and any(name.startswith("Norbert") for name in classes)
        if per_head is None or unknown:
            absent = self._missing_code_file()
            also = f", or put {absent} beside the weights (it is read, not run)" if absent else ""
            raise self._error(
                "published codes of LTG-BERT give weights the same names and compute different numbers, "
                "and nothing here says which code wrote these",
                f"{LAYOUT_OPTION} NAME with one of {', '.join(name for name in ORIGINAL_LAYOUTS if name.startswith('ltg'))}{also}",
            )
        return LayoutTraits(per_head, mix, blanked or 0)

    def _check_settings(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of config.json that the model reads; null counts as not given.

        Raises CheckpointError for a value of another type than the default's.
        """
        known = {
            key: value
            for key, value in self.settings.items()
            if key in defaults and value is not None
        }
        for key, value in known.items():
            default = defaults[key]
            if key.endswith("_token_id"):
                fits, wanted = _is_number(value, int) or isinstance(value, list), "a whole number"
            elif isinstance(default, bool):
                fits, wanted = isinstance(value, bool), "true or false"
            elif isinstance(default, str):
                fits, wanted = isinstance(value, str), "a string"
            elif isinstance(default, int):
                fits, wanted = _is_number(value, int), "a whole number"
            else:
                fits, wanted = _is_number(value, int | float), "a number"
            if not fits:
                raise self._wrong_value_error(key, value, wanted)
        return known

    def _wrong_value_error(self, key: str, value: Any, expected: str) -> CheckpointError:
        message = f"{key} is {json.dumps(value)}, not {expected}"
        hint = "correct the value" + (", without quotes" if isinstance(value, str) else "")
        return CheckpointError(message, location=str(self.folder / "config.json"), hint=hint)

    def _possible_layer_mixes(self, new_names: dict[str, str]) -> tuple[str, ...]:
        """Return the variants of ELC-BERT that the weights can be, ("",) for LTG-BERT.

        The first layer mixes one state alone, so its alpha stays where training began: at 1 in the
        base variant, at 0 in all others.
        """
        if not any(new.endswith("alpha") for new in new_names.values()):
            return ("",)
        if "model.mix.alpha" in new_names.values():
            return ("weighted_output",)
        first = next(
            (old for old, new in new_names.items() if new == "model.layers.0.mix.alpha"), None
        )
        return (
            ("base",)
            if first is not None and float(self._load_weight(first)[-1]) != 0.0
            else ("zero", "normalized")
        )

    def _traits_from_files(self, mixes: tuple[str, ...], code_traits: LayoutTraits) -> LayoutTraits:
        """Combine what weights (their possible `mixes`), config.json and code say. None: not known.

        Raises CheckpointError if config.json contradicts the weights or the code.
        """
        given = self._check_settings({"layer_mix": "", "per_head_positions": False})
        configured, per_head = given.get("layer_mix"), given.get("per_head_positions")
        if configured is not None and configured not in mixes:
            raise self._contradiction_error(
                "layer_mix", configured, "weights say", " or ".join(map(repr, mixes))
            )
        mix = mixes[0] if len(mixes) == 1 else code_traits.layer_mix
        for key, value, other in (
            ("layer_mix", configured, mix),
            ("per_head_positions", per_head, code_traits.per_head_positions),
        ):
            if None not in (value, other) and value != other:
                raise self._contradiction_error(key, value, "code says", repr(other))
        return LayoutTraits(
            code_traits.per_head_positions if per_head is None else per_head,
            mix if configured is None else configured,
            code_traits.blanked_ids,
        )

    def _contradiction_error(
        self, key: str, value: object, source: str, other: str
    ) -> CheckpointError:
        message = f"config.json says {key} {value!r}, and the {source} {other}"
        return self._error(message, f"correct or remove {key} in config.json")

    def _check_layout_option(
        self, name: str, mixes: tuple[str, ...], detected_traits: LayoutTraits
    ) -> LayoutTraits:
        """Return the traits that --original-layout names. Raises UsageError if the files contradict
        them.
        """
        if self.model_type == GPT_BERT:
            raise UsageError(
                f"{self.folder.name} is a GPT-BERT, not {name}",
                location=LAYOUT_OPTION,
                hint="leave it out",
            )
        traits = ORIGINAL_LAYOUTS[name]
        for key in LayoutTraits.__slots__:
            expected, detected = getattr(traits, key), getattr(detected_traits, key)
            possible = mixes if key == "layer_mix" and detected is None else (detected,)
            if detected is not None or key == "layer_mix":
                if expected in possible:
                    continue
                raise UsageError(
                    f"{self.folder.name} is not {name}: its files say {key} {' or '.join(map(repr, possible))}, "
                    f"that layout has {expected!r}",
                    location=LAYOUT_OPTION,
                    hint="leave the option out to open the checkpoint as its files say",
                )
        return traits

    def _traits_from_code(self) -> LayoutTraits:
        """Traits in the folder's Python files, read as text. None where they do not tell."""
        text = "\n".join(
            file.read_text(encoding="utf-8", errors="replace")
            for file in list_files(self.folder, CODE_PATTERNS)
        )
        text = re.sub(r"\s+", "", re.sub(r"#[^\n]*", "", text))
        halves, heads = bool(BY_HALF_PATTERN.search(text)), bool(PER_HEAD_PATTERN.search(text))
        mix = None
        if "prev_layer_weights" in text and ZERO_LAYER_PATTERN.search(text):
            mix = "normalized" if NORMALIZED_LAYER_PATTERN.search(text) else "zero"
        blanked = 0
        for index in BLANKED_PATTERN.findall(text):
            match = FIRST_IDS_PATTERN.fullmatch(index)
            if match is None:
                hint = "--trust-remote-code runs its own code, if you trust its author"
                raise self._error(
                    f"its code never predicts some ids, by a rule unknown here: [{index}]", hint
                )
            blanked = sum(int(part) for part in match[1].split("+") if part)
        return LayoutTraits(
            heads if heads != halves else None, mix, blanked if heads or halves or blanked else None
        )

    def _missing_code_file(self) -> str:
        """The modeling file that config.json names and the folder lacks, "" for none."""
        named = (self.settings.get("auto_map") or {}).values()  # [repository--]module.Class
        modules = {str(name).rpartition("--")[2].partition(".")[0] for name in named}
        absent = sorted(
            f"{m}.py"
            for m in modules
            if m.startswith("model") and not (self.folder / f"{m}.py").is_file()
        )
        return absent[0] if absent else ""

    def _describe_layout(self, settings: dict[str, Any], traits: LayoutTraits) -> str:
        """What the checkpoint was opened as, for `doctor` and for a cell's content key."""
        if self.model_type == GPT_BERT:
            parts = [name for name, key in GPT_BERT_FEATURES.items() if settings[key]]
            family = f"GPT-BERT ({', '.join(parts) or 'plain'})"
        else:
            family = f"ELC-BERT {traits.layer_mix}" if traits.layer_mix else "LTG-BERT"
        given = self.settings.get("layer_norm_eps") is not None
        epsilon_source = "config.json" if given else "not in config.json, as the authors trained"
        if settings["layer_norm_eps"] != LAYER_NORM_EPS[self.model_type]:
            epsilon_source += f"; the authors trained with {LAYER_NORM_EPS[self.model_type]:g}"
        positions = "per head" if traits.per_head_positions else "half by half"
        blanked = (
            f"; ids 0 to {traits.blanked_ids - 1} are never predicted" if traits.blanked_ids else ""
        )
        return f"{family}; positions {positions}; layer_norm_eps {settings['layer_norm_eps']:g} ({epsilon_source}){blanked}"

    def _has_tied_embeddings(self, new_names: dict[str, str]) -> bool:
        back = {new: old for old, new in new_names.items()}
        both = [
            back[name] for name in ("model.embedding.weight", "head.decoder.weight") if name in back
        ]
        return len(both) < 2 or torch.equal(*(self._load_weight(name) for name in both))

    def _check_position_index(
        self, name: str, stored_index: Tensor, bucket_index: Any, config: Any
    ) -> None:
        """Their index of relative positions against ours: a difference would be another model."""
        ours = bucket_index(
            len(stored_index), config.position_bucket_size, config.max_position_embeddings
        )
        if not torch.equal(stored_index, ours):
            raise self._error(
                f"{name} holds other relative positions than ours",
                "--trust-remote-code runs its own code",
            )

    def _load_weight(self, name: str) -> Tensor:
        return self._load_weights([name])[name]

    def _load_weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these original names."""
        wanted, found = set(names), dict[str, Tensor]()
        safe = safetensors_files(self.folder)
        for file in safe:
            with safetensors.safe_open(file, "pt") as handle:
                found |= {name: handle.get_tensor(name) for name in wanted & set(handle.keys())}
        for part in [] if safe else _load_pickled(self.folder, self.options):
            found |= {name: part[name] for name in wanted & part.keys()}
        return found

    def _error(self, message: str, hint: str) -> CheckpointError:
        return CheckpointError(message, location=str(self.folder), hint=hint)


def detect_original(folder: Path, options: OpenOptions) -> OriginalCheckpoint | None:
    """The checkpoint in this folder, if it is in an original layout; with --trust-remote-code its
    own code is asked.

    Raises CheckpointError for damaged weights, UsageError for an unknown --original-layout, or one
    with any other checkpoint.
    """
    if options.original_layout and options.original_layout not in ORIGINAL_LAYOUTS:
        hint = f"one of {', '.join(ORIGINAL_LAYOUTS)}"
        raise UsageError(
            f"unknown layout {options.original_layout!r}", location=LAYOUT_OPTION, hint=hint
        )
    original = _detect_original(folder, options)
    if original is None and options.original_layout:
        why = (
            "its own code runs"
            if options.trust_remote_code
            else "it is not in a layout of LTG-BERT or ELC-BERT"
        )
        message = f"{options.original_layout!r} says nothing about {folder.name}: {why}"
        raise UsageError(message, location=LAYOUT_OPTION, hint="leave it out")
    return original


def _detect_original(folder: Path, options: OpenOptions) -> OriginalCheckpoint | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the library says what is wrong with it
    ours = not isinstance(settings, dict) or settings.get("model_type") in ARCHITECTURES
    if ours or options.trust_remote_code or "position_bucket_size" not in settings:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in safetensors_files(folder):
            with safetensors.safe_open(file, "pt") as handle:
                shapes |= {
                    name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()
                }
        if not shapes and options.allow_pickle:
            for part in _load_pickled(folder, options):
                shapes |= {name: tuple(weight.shape) for name, weight in part.items()}
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and pickle have their own
        raise CheckpointError(
            f"cannot read the weights: {first_line(error)}", location=str(folder)
        ) from error
    if not any(name.endswith("embedding.relative_embedding") for name in shapes):
        return None
    original = OriginalCheckpoint(folder, settings, shapes, options)
    names, modules = settings.get("architectures"), settings.get("auto_map")
    if not (
        names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))
    ):
        raise original._wrong_value_error("architectures", names, "a list of class names")
    if not (modules is None or isinstance(modules, dict)):
        raise original._wrong_value_error("auto_map", modules, "an object")
    return original


def _load_pickled(folder: Path, options: OpenOptions) -> list[dict[str, Tensor]]:
    """The tensors of each pickled file. Authors save them bare, or beside the optimizer's state
    under the key `model`.

    Raises CheckpointError where two files each hold a whole model.
    """
    assert options.allow_pickle
    paths = pickled_files(folder)
    if len(paths) > 1 and not all(path.name.startswith("pytorch_model") for path in paths):
        names = ", ".join(path.name for path in paths)
        hint = "leave the one to be scored in the folder"
        message = f"{len(paths)} files of weights, and nothing says which to score: {names}"
        raise CheckpointError(message, location=str(folder), hint=hint)
    parts = []
    for path in paths:
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # the authors' arguments lie beside the weights
            content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("model", content)
        parts.append(
            {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
        )
    return parts


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _rename_weight(name: str) -> str | None:
    for pattern, ours in WEIGHT_NAMES.items():
        if match := re.fullmatch(WRAPPER_PREFIXES + pattern, name):
            n = int(next((g for g in match.groups() if g and g.isdigit()), 0))
            return ours.format(n=n, half=n // 2, odd=n % 2, w=match.groupdict().get("w"))
    return None


def _load_architecture(model_type: str) -> tuple[Any, str]:
    file, prefix = ARCHITECTURES[model_type]
    return importlib.import_module(f"antlm_bench.architectures.{file}"), prefix
