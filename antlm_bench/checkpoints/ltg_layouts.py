"""Convert public checkpoints of LTG-BERT, ELC-BERT and GPT-BERT from their authors' layouts.

Weights are renamed by a table of names, which were read from the public files. Some traits of a
checkpoint are neither in its weights nor in its configuration (`LayoutTraits`). They are read from
the folder's Python files, which are never run, or given by `--original-layout`. A checkpoint whose
traits stay unknown is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from antlm_bench.checkpoints.conversion import (
    LAYOUT_OPTION,
    REMOTE_CODE_HINT,
    OriginalCheckpoint,
)
from antlm_bench.checkpoints.resolve import CODE_PATTERNS, TRAINING_KEY, list_files
from antlm_bench.errors import CheckpointError, UsageError, first_line

# Prefixes of original names, from the classes that wrap the model. The rest of a name is the same
# in all public files.
WRAPPER_PREFIXES = (
    r"(?:(?:module|_orig_mod|model|bert|ltg_?bert|gpt_?bert|transformer|classifier|lm_head)\.)*"
)
ATTENTION = r"(?:layers\.(\d+)\.attention|attention_layers\.(\d+))\."
MLP = r"(?:layers\.(\d+)\.mlp|mlp_layers\.(\d+))\."
WEIGHT = r"(?P<w>weight|bias)"
# Original name without its prefixes -> new name. {n}: index of the layer, {w}: weight or bias.
# {half}, {odd}: n // 2 and n % 2.
WEIGHT_NAMES = {
    r"embedding\.word_embedding\.weight": "model.embedding.weight",
    r"embedding\.relative_embedding": "model.positions.table.weight",
    rf"embedding\.relative_layer_norm\.{WEIGHT}": "model.positions.norm.{w}",
    rf"{ATTENTION}in_proj_qk\.{WEIGHT}": "model.layers.{n}.attention.query_key.{w}",
    rf"{ATTENTION}in_proj_v\.{WEIGHT}": "model.layers.{n}.attention.value.{w}",
    rf"{ATTENTION}in_proj_vg\.{WEIGHT}": "model.layers.{n}.attention.value_gate.{w}",
    rf"{ATTENTION}out_proj\.{WEIGHT}": "model.layers.{n}.attention.output.{w}",
    rf"{ATTENTION}post_layer_norm\.{WEIGHT}": "model.layers.{n}.attention.norm_out.{w}",
    rf"{MLP}mlp\.1\.weight": "model.layers.{n}.feed_forward.wide.weight",
    rf"{MLP}mlp\.4\.weight": "model.layers.{n}.feed_forward.narrow.weight",
    r"layers\.(\d+)\.prev_layer_weights": "model.layers.{n}.mix.alpha",  # ELC-BERT
    r"prev_layer_weights": "model.mix.alpha",  # ELC-BERT with weighted output
    r"dwa_modules\.alphas\.(\d+)": "model.layers.{half}.mixes.{odd}.alpha",  # GPT-BERT: 2 per layer
    rf"nonlinearity\.1\.{WEIGHT}": "head.transform.1.{w}",
    rf"nonlinearity\.5\.{WEIGHT}": "head.decoder.{w}",
}
# A buffer that is computed from the configuration. The stored one is compared, not loaded.
POSITION_INDEX_BUFFER = re.compile(r"(?:.*\.)?position_indices$")
EMBEDDING, POSITION_TABLE = "model.embedding.weight", "model.positions.table.weight"
FIRST_DOWN_PROJECTION = "model.layers.0.feed_forward.narrow.weight"


@dataclass(frozen=True, slots=True)
class LayoutTraits:
    """What one published code computes, as far as weights and configuration do not show it. None =
    unknown.
    """

    per_head_positions: bool | None = None
    """Order in which the projected position table is cut. True: into heads, then each head into
    query and key. False: into all queries and all keys, then each into heads."""
    layer_mix: str | None = None
    """Variant of ELC-BERT; "" for LTG-BERT."""
    num_blanked_ids: int | None = None
    """The ids below this number get the logit minus infinity."""


# Name of a published code (ltgoslo/ltg-bert and ltgoslo/elc-bert) -> its traits.
ORIGINAL_LAYOUTS = {
    "ltg-bert-babylm": LayoutTraits(per_head_positions=False, layer_mix="", num_blanked_ids=0),
    "ltg-bert-bnc": LayoutTraits(per_head_positions=True, layer_mix="", num_blanked_ids=0),
    "ltg-bert-first-wrapper": LayoutTraits(
        per_head_positions=False, layer_mix="", num_blanked_ids=107
    ),
    "elc-bert-base": LayoutTraits(per_head_positions=False, layer_mix="base", num_blanked_ids=0),
    "elc-bert-zero": LayoutTraits(per_head_positions=False, layer_mix="zero", num_blanked_ids=0),
    "elc-bert-normalized": LayoutTraits(
        per_head_positions=False, layer_mix="normalized", num_blanked_ids=0
    ),
    "elc-bert-weighted-output": LayoutTraits(
        per_head_positions=False, layer_mix="weighted_output", num_blanked_ids=0
    ),
}

# Patterns of traits in the text of a wrapper's code, after comments and white space are removed.
# The position table is viewed as (.., heads, 2 * head size): per head.
PER_HEAD_PATTERN = re.compile(r"num_heads,2\*(?:self\.)?head_(?:size|dim)\)")
# It is viewed as (.., 2, heads, head size), or halved before it is cut into heads: not per head.
HALVES_PATTERN = re.compile(
    r"-1,2,(?:self\.)?num_heads,(?:self\.)?head_(?:size|dim)\)"
    r"|(\w*key_pos\w*)=\1\.(?:view|reshape)\([^()]*num_heads,(?:self\.)?head_(?:size|dim)\)"
    r"|in_proj_qk\((?:self\.dropout\()?\w*relative\w*\)+\.chunk\(2,dim=-1\)"
)
# Logits are set to minus infinity.
BLANKED_PATTERN = re.compile(
    r"\w*(?:prediction|logits)\w*\[([^\]]*)\]=(?:float\([\"']-inf|-(?:math|torch|np|numpy)\.inf)"
)
# The only index in a BLANKED_PATTERN that can be read: ids below a number.
FIRST_IDS_PATTERN = re.compile(r":,:,:([\d+]+)")
NORMALIZED_LAYER_PATTERN = re.compile(r"self\.norm=nn\.LayerNorm")
# The variants zero and normalized add the mixed state to the MLP's input; base does not.
ZERO_LAYER_PATTERN = re.compile(r"\+self\.mlp\(\w+\+\w+\)")


class LtgFamilyOriginal(OriginalCheckpoint):
    """The conversion steps that LTG-BERT, ELC-BERT and GPT-BERT share."""

    __slots__ = ()
    layout_names = tuple(ORIGINAL_LAYOUTS)
    layer_norm_eps: ClassVar[float]
    """The value in the authors' training code."""

    @classmethod
    def accepts_config(cls, settings: Mapping[str, Any]) -> bool:
        return "position_bucket_size" in settings

    @classmethod
    def matches_weights(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        in_family = any(name.endswith("embedding.relative_embedding") for name in shapes)
        return in_family and cls is (GptBertOriginal if _is_gpt_bert(shapes) else LtgBertOriginal)

    def resolve_traits(self) -> LayoutTraits:
        """Return the traits of the code that wrote these weights."""
        raise NotImplementedError

    def family_settings(self, traits: LayoutTraits) -> dict[str, Any]:
        """Return the configuration keys that only this architecture has."""
        raise NotImplementedError

    def describe_family(self, settings: Mapping[str, Any]) -> str:
        """Return the name of the model with its variants, for `doctor`."""
        raise NotImplementedError

    def build_config(self) -> Any:
        """Return the configuration: sizes from the weights if they show them, all other settings
        from config.json.
        """
        new_names = self.rename_weights()
        shapes = {new: self.shapes[old] for old, new in new_names.items()}
        config_class = self.architecture.load_class("AutoConfig")
        settings = self.check_settings(import_module(config_class.__module__).DEFAULTS)
        if "num_attention_heads" not in settings:
            raise self.error(
                "config.json has no num_attention_heads", "add it: the weights do not show it"
            )
        settings["vocab_size"], settings["hidden_size"] = shapes[EMBEDDING]
        settings["position_bucket_size"] = (shapes[POSITION_TABLE][0] + 1) // 2
        layer_indices = re.findall(r"model\.layers\.(\d+)", " ".join(shapes))
        settings["num_hidden_layers"] = 1 + max(map(int, layer_indices))
        if FIRST_DOWN_PROJECTION in shapes:
            settings.setdefault("intermediate_size", shapes[FIRST_DOWN_PROJECTION][1])
        settings.setdefault("layer_norm_eps", self.layer_norm_eps)
        traits = self.resolve_traits()
        settings |= self.family_settings(traits)
        settings["tie_word_embeddings"] = self._has_tied_embeddings(new_names)
        settings["original_layout"] = self._describe_layout(settings, traits)
        try:
            return config_class(**settings)
        except (TypeError, ValueError) as error:
            raise self.error(first_line(error), "") from error

    def build_model(self, kind: str, config: Any) -> Any:
        new_names = self.rename_weights()
        weights = self.load_weights(self.shapes)
        state = {new: weights[old].float() for old, new in new_names.items()}
        for old in sorted(name for name in self.shapes if name not in new_names):
            self._check_position_index(old, weights[old].long(), config)
        if config.tie_word_embeddings:  # the files hold it under one of two names, or under both
            tied = state.get(EMBEDDING, state.get("head.decoder.weight"))
            state[EMBEDDING] = state["head.decoder.weight"] = tied
        if num_blanked_ids := self.resolve_traits().num_blanked_ids:
            bias = state["head.decoder.bias"].clone()
            bias[:num_blanked_ids] = -torch.inf  # the sum with any logit is minus infinity
            state["head.decoder.bias"] = bias
        original_names = {new: old for old, new in new_names.items()}
        return self.load_into_model(kind, config, state, original_names)

    def rename_weights(self) -> dict[str, str]:
        """Return original name -> new name.

        Raises CheckpointError for a name that is not in WEIGHT_NAMES, and if weights are missing.
        """
        renamed = {
            name: rename_weight(name)
            for name in self.shapes
            if not POSITION_INDEX_BUFFER.match(name)
        }
        if unknown := sorted(name for name, new in renamed.items() if new is None):
            raise self.error(
                f"{len(unknown)} weights have no place in LTG-BERT, ELC-BERT or GPT-BERT "
                f"(e.g. {unknown[0]})",
                REMOTE_CODE_HINT,
            )
        new_names = {old: new for old, new in renamed.items() if new is not None}
        if EMBEDDING not in new_names.values():  # tied weights saved under the other name
            new_names = {
                old: new.replace("head.decoder.weight", EMBEDDING) for old, new in new_names.items()
            }
        if len(set(new_names.values())) < len(new_names):
            raise self.error("two weights have the same place in the model", "")
        for prefix in (EMBEDDING, POSITION_TABLE, "model.layers.0"):
            if not any(new.startswith(prefix) for new in new_names.values()):
                raise self.error(f"no weight for {prefix}", "the checkpoint is incomplete")
        return new_names

    def traits_from_code(self) -> LayoutTraits:
        """Return the traits that the text of the folder's Python files shows; the others are None.

        Raises CheckpointError for an unknown rule about ids that are never predicted.
        """
        text = "\n".join(
            file.read_text(encoding="utf-8", errors="replace")
            for file in list_files(self.folder, CODE_PATTERNS)
        )
        text = re.sub(r"\s+", "", re.sub(r"#[^\n]*", "", text))
        halves = bool(HALVES_PATTERN.search(text))
        per_head = bool(PER_HEAD_PATTERN.search(text))
        mix = None
        if "prev_layer_weights" in text and ZERO_LAYER_PATTERN.search(text):
            mix = "normalized" if NORMALIZED_LAYER_PATTERN.search(text) else "zero"
        num_blanked_ids = 0
        for index in BLANKED_PATTERN.findall(text):
            match = FIRST_IDS_PATTERN.fullmatch(index)
            if match is None:
                raise self.error(
                    f"its code never predicts some ids, by an unknown rule: [{index}]",
                    REMOTE_CODE_HINT,
                )
            num_blanked_ids = sum(int(term) for term in match[1].split("+") if term)
        # Text that shows nothing is not a modeling file, so it cannot show that no id is blanked.
        is_modeling_file = per_head or halves or num_blanked_ids
        return LayoutTraits(
            per_head_positions=per_head if per_head != halves else None,
            layer_mix=mix,
            num_blanked_ids=num_blanked_ids if is_modeling_file else None,
        )

    def _describe_layout(self, settings: Mapping[str, Any], traits: LayoutTraits) -> str:
        """Return a description of the layout, for `doctor` and a cell's content key."""
        is_configured = self.settings.get("layer_norm_eps") is not None
        source = "config.json" if is_configured else "not in config.json, as the authors trained"
        if settings["layer_norm_eps"] != self.layer_norm_eps:
            source += f"; the authors trained with {self.layer_norm_eps:g}"
        positions = "per head" if traits.per_head_positions else "half by half"
        text = f"{self.describe_family(settings)}; positions {positions}"
        text += f"; layer_norm_eps {settings['layer_norm_eps']:g} ({source})"
        if traits.num_blanked_ids:
            text += f"; ids 0 to {traits.num_blanked_ids - 1} are never predicted"
        return text

    def _has_tied_embeddings(self, new_names: Mapping[str, str]) -> bool:
        embeddings = (EMBEDDING, "head.decoder.weight")
        names = [old for old, new in new_names.items() if new in embeddings]
        return len(names) < 2 or torch.equal(*self.load_weights(names).values())

    def _check_position_index(self, name: str, stored: Tensor, config: Any) -> None:
        """Raise CheckpointError if a stored index of relative positions is not the one that the
        target model computes.
        """
        bucket_index = import_module(type(config).__module__).bucket_index
        expected = bucket_index(
            len(stored), config.position_bucket_size, config.max_position_embeddings
        )
        if not torch.equal(stored, expected):
            raise self.error(
                f"{name} holds other relative positions than ours",
                REMOTE_CODE_HINT,
            )


class GptBertOriginal(LtgFamilyOriginal):
    """GPT-BERT: separate layers of attention and feed-forward, an optional attention gate."""

    __slots__ = ()
    layer_norm_eps = 1e-5

    def rename_weights(self) -> dict[str, str]:
        # Without a gate the projection has another original name, but the same new name.
        return {
            old: new.replace(".attention.value.", ".attention.value_gate.")
            for old, new in LtgFamilyOriginal.rename_weights(self).items()
        }

    def resolve_traits(self) -> LayoutTraits:
        if self.options.original_layout:
            raise UsageError(
                f"{self.folder.name} is a GPT-BERT, not {self.options.original_layout}",
                location=LAYOUT_OPTION,
                hint="leave it out",
            )
        code = self.traits_from_code()
        if code.per_head_positions:
            raise self.error(
                "its code cuts positions per head, and no published GPT-BERT does", REMOTE_CODE_HINT
            )
        return LayoutTraits(
            per_head_positions=False, layer_mix="", num_blanked_ids=code.num_blanked_ids or 0
        )

    def family_settings(self, traits: LayoutTraits) -> dict[str, Any]:
        del traits
        return {
            "layer_weights": any("dwa_modules" in name for name in self.shapes),
            "attention_gate": any("in_proj_vg" in name for name in self.shapes),
            # Every GPT-BERT was trained with both attentions, whatever its class is called.
            TRAINING_KEY: {"attends": ["causal", "full"], "methods": ["mntp", "causal", "fused"]},
            "architectures": ["GptBertForMaskedLM"],
        }

    def describe_family(self, settings: Mapping[str, Any]) -> str:
        names = {"attention_gate": "gate", "layer_weights": "weighted sums"}
        features = [name for key, name in names.items() if settings[key]]
        return f"GPT-BERT ({', '.join(features) or 'plain'})"


class LtgBertOriginal(LtgFamilyOriginal):
    """LTG-BERT; and ELC-BERT, whose layers read a weighted sum of the earlier layers."""

    __slots__ = ()
    layer_norm_eps = 1e-7

    def family_settings(self, traits: LayoutTraits) -> dict[str, Any]:
        names = self.settings.get("architectures") or ()
        causal = any(name.endswith("ForCausalLM") for name in names)
        return {
            "layer_mix": traits.layer_mix,
            "per_head_positions": traits.per_head_positions,
            "architectures": ["LtgBertForCausalLM" if causal else "LtgBertForMaskedLM"],
        }

    def describe_family(self, settings: Mapping[str, Any]) -> str:
        return f"ELC-BERT {settings['layer_mix']}" if settings["layer_mix"] else "LTG-BERT"

    def resolve_traits(self) -> LayoutTraits:
        """Return each trait from the first source that shows it: --original-layout, config.json, or
        the folder's code.

        Raises CheckpointError if a trait is in none of them or two of them contradict each other,
        and UsageError if the files contradict the option.
        """
        mixes = self._possible_layer_mixes()
        traits = self._traits_from_files(mixes, self.traits_from_code())
        if name := self.options.original_layout:
            return self._check_layout_option(name, mixes, traits)
        mix = traits.layer_mix
        if mix is None:
            raise self.error(
                "ELC-BERT's zero and normalized variants have the same weights, and nothing here "
                "says which this is",
                f"{LAYOUT_OPTION} elc-bert-zero, or {LAYOUT_OPTION} elc-bert-normalized",
            )
        per_head, num_blanked_ids = traits.per_head_positions, traits.num_blanked_ids
        missing_file = self._missing_code_file()
        if per_head is None and mix and not missing_file:
            per_head = False  # all published code of ELC-BERT halves its positions
        classes = [str(name) for name in self.settings.get("architectures") or ()]
        # The code that blanks ids has Norbert classes.
        is_norbert = any(name.startswith("Norbert") for name in classes)
        if per_head is None or (is_norbert and num_blanked_ids is None):
            file_hint = ""
            if missing_file:
                file_hint = f", or put {missing_file} beside the weights (it is read, not run)"
            names = [name for name in ORIGINAL_LAYOUTS if name.startswith("ltg")]
            raise self.error(
                "published codes of LTG-BERT use the same names of weights and compute different "
                "numbers, and nothing here says which code wrote these weights",
                f"{LAYOUT_OPTION} NAME with one of {', '.join(names)}{file_hint}",
            )
        return LayoutTraits(per_head, mix, num_blanked_ids or 0)

    def _possible_layer_mixes(self) -> tuple[str, ...]:
        """Return the variants of ELC-BERT that the weights can belong to; ("",) for LTG-BERT.

        The first layer has only one state to mix, so training never changes its alpha: it is 1 in
        the base variant and 0 in all others.
        """
        new_names = self.rename_weights()
        if not any(new.endswith("alpha") for new in new_names.values()):
            return ("",)
        if "model.mix.alpha" in new_names.values():
            return ("weighted_output",)
        for old, new in new_names.items():
            if new == "model.layers.0.mix.alpha" and float(self.load_weights([old])[old][-1]):
                return ("base",)
        return ("zero", "normalized")

    def _traits_from_files(self, mixes: Sequence[str], code: LayoutTraits) -> LayoutTraits:
        """Combine the traits of the weights (the possible `mixes`), config.json and the `code`.

        Raises CheckpointError if config.json contradicts the weights or the code.
        """
        settings = self.check_settings({"layer_mix": "", "per_head_positions": False})
        configured_mix = settings.get("layer_mix")
        if configured_mix is not None and configured_mix not in mixes:
            possible = " or ".join(map(repr, mixes))
            raise self._contradiction_error("layer_mix", configured_mix, "weights say", possible)
        traits = {
            "layer_mix": mixes[0] if len(mixes) == 1 else code.layer_mix,
            "per_head_positions": code.per_head_positions,
        }
        for key, value in settings.items():
            if traits[key] is not None and value != traits[key]:
                raise self._contradiction_error(key, value, "code says", repr(traits[key]))
        return replace(code, **(traits | settings))

    def _contradiction_error(
        self, key: str, value: object, source: str, other: str
    ) -> CheckpointError:
        message = f"config.json says {key} {value!r}, and the {source} {other}"
        return self.error(message, f"correct or remove {key} in config.json")

    def _check_layout_option(
        self, name: str, mixes: Sequence[str], detected: LayoutTraits
    ) -> LayoutTraits:
        """Return the traits of --original-layout. Raises UsageError if the files contradict it."""
        traits = ORIGINAL_LAYOUTS[name]
        for field in fields(LayoutTraits):
            layout_value = getattr(traits, field.name)
            file_value = getattr(detected, field.name)
            possible_values: Sequence[Any] = (file_value,)
            if file_value is None:
                possible_values = mixes if field.name == "layer_mix" else (layout_value,)
            if layout_value not in possible_values:
                raise UsageError(
                    f"{self.folder.name} is not {name}: its files say {field.name} "
                    f"{' or '.join(map(repr, possible_values))}, that layout has {layout_value!r}",
                    location=LAYOUT_OPTION,
                    hint="leave the option out to open the checkpoint as its files say",
                )
        return traits

    def _missing_code_file(self) -> str:
        """Return the modeling file that config.json names and the folder lacks; "" if none."""
        targets = (self.settings.get("auto_map") or {}).values()  # [repository--]module.Class
        modules = {str(target).rpartition("--")[2].partition(".")[0] for target in targets}
        files = sorted(f"{module}.py" for module in modules if module.startswith("model"))
        return next((file for file in files if not (self.folder / file).is_file()), "")


def _is_gpt_bert(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether these are the weights of a GPT-BERT.

    It has an attention gate, or else separate attention layers whose norms have no weights.
    """
    names = " ".join(shapes)
    has_gate = "in_proj_vg" in names
    return has_gate or ("attention_layers." in names and "post_layer_norm" not in names)


def rename_weight(name: str) -> str | None:
    """Return the new name of an original weight; None if WEIGHT_NAMES lacks it."""
    for pattern, new_name in WEIGHT_NAMES.items():
        match = re.fullmatch(WRAPPER_PREFIXES + pattern, name)
        if match:
            layer = int(next((group for group in match.groups() if group and group.isdigit()), 0))
            return new_name.format(
                n=layer, half=layer // 2, odd=layer % 2, w=match.groupdict().get("w")
            )
    return None
