"""Public checkpoints of LTG-BERT, ELC-BERT and GPT-BERT in their authors' layouts.

Weights are renamed by a table; names of weights and configuration keys are facts about files, read
from the public ones. What neither weights nor configuration tell (`LayoutTraits`) is read from the
folder's Python files, which are never run, or given by `--original-layout`. Nothing is guessed: a
checkpoint whose files do not tell is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor

from antlm_bench.checkpoints.conversion import LAYOUT_OPTION, OWN_CODE_HINT, OriginalCheckpoint
from antlm_bench.checkpoints.resolve import CARD_KEY, CODE_PATTERNS, first_line, list_files
from antlm_bench.errors import CheckpointError, UsageError

# What an original name begins with depends on who wrapped the model; the rest is the same for all.
WRAPPER_PREFIXES = (
    r"(?:(?:module|_orig_mod|model|bert|ltg_?bert|gpt_?bert|transformer|classifier|lm_head)\.)*"
)
ATTENTION = r"(?:layers\.(\d+)\.attention|attention_layers\.(\d+))\."
MLP = r"(?:layers\.(\d+)\.mlp|mlp_layers\.(\d+))\."
WEIGHT = r"(?P<w>weight|bias)"
# Original name without its wrappers -> ours. {n}: number of the layer, {w}: weight or bias.
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
# A buffer that the configuration implies: compared, not loaded.
POSITION_INDEX_BUFFER = re.compile(r"(?:.*\.)?position_indices$")
EMBEDDING, POSITION_TABLE = "model.embedding.weight", "model.positions.table.weight"
FIRST_NARROW = "model.layers.0.feed_forward.narrow.weight"


@dataclass(frozen=True, slots=True)
class LayoutTraits:
    """What one published code computes and neither weights nor configuration tell. None:
    unknown.
    """

    per_head_positions: bool | None = None
    """The projected position table is cut into heads first, and each head into query and key; else
    into all queries and all keys first."""
    layer_mix: str | None = None
    """The variant of ELC-BERT, "" for LTG-BERT."""
    blanked_ids: int | None = None
    """How many ids, from 0 on, get the logit minus infinity."""


# Published code (ltgoslo/ltg-bert and ltgoslo/elc-bert) -> what it computes.
ORIGINAL_LAYOUTS = {
    "ltg-bert-babylm": LayoutTraits(False, "", 0),
    "ltg-bert-bnc": LayoutTraits(True, "", 0),
    "ltg-bert-first-wrapper": LayoutTraits(False, "", 107),
    "elc-bert-base": LayoutTraits(False, "base", 0),
    "elc-bert-zero": LayoutTraits(False, "zero", 0),
    "elc-bert-normalized": LayoutTraits(False, "normalized", 0),
    "elc-bert-weighted-output": LayoutTraits(False, "weighted_output", 0),
}

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
# The one index of a BLANKED_PATTERN that is understood.
FIRST_IDS_PATTERN = re.compile(r":,:,:([\d+]+)")
NORMALIZED_LAYER_PATTERN = re.compile(r"self\.norm=nn\.LayerNorm")
# zero and normalized; base feeds the attention's output alone.
ZERO_LAYER_PATTERN = re.compile(r"\+self\.mlp\(\w+\+\w+\)")


class LtgFamilyOriginal(OriginalCheckpoint):
    """What the layouts of LTG-BERT, ELC-BERT and GPT-BERT share."""

    __slots__ = ()
    layout_names = tuple(ORIGINAL_LAYOUTS)
    layer_norm_eps: ClassVar[float]
    """The value in the authors' training code."""

    @classmethod
    def may_be(cls, settings: Mapping[str, Any]) -> bool:
        return "position_bucket_size" in settings

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
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
        """Sizes come from the weights where they tell, everything else from config.json."""
        new_names = self.rename_weights()
        shapes = {new: self.shapes[old] for old, new in new_names.items()}
        config_class = self.architecture.load_class("AutoConfig")
        settings = self.check_settings(import_module(config_class.__module__).DEFAULTS)
        if "num_attention_heads" not in settings:
            raise self.error(
                "config.json does not say num_attention_heads", "add it: the weights do not tell"
            )
        settings["vocab_size"], settings["hidden_size"] = shapes[EMBEDDING]
        settings["position_bucket_size"] = (shapes[POSITION_TABLE][0] + 1) // 2
        numbers = re.findall(r"model\.layers\.(\d+)", " ".join(shapes))
        settings["num_hidden_layers"] = 1 + max(map(int, numbers))
        if FIRST_NARROW in shapes:
            settings.setdefault("intermediate_size", shapes[FIRST_NARROW][1])
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
        if config.tie_word_embeddings:  # a file holds one of the two names, or both
            shared = state.get(EMBEDDING, state.get("head.decoder.weight"))
            state[EMBEDDING] = state["head.decoder.weight"] = shared
        if blanked := self.resolve_traits().blanked_ids:
            bias = state["head.decoder.bias"] = state["head.decoder.bias"].clone()
            bias[:blanked] = -torch.inf  # to add this is to overwrite the logit
        return self.load_into_model(
            kind, config, state, {new: old for old, new in new_names.items()}
        )

    def rename_weights(self) -> dict[str, str]:
        """Return original name -> ours. CheckpointError for a name that the table does not know."""
        renamed = {
            name: rename_weight(name)
            for name in self.shapes
            if not POSITION_INDEX_BUFFER.match(name)
        }
        if unknown := sorted(name for name, new in renamed.items() if new is None):
            raise self.error(
                f"{len(unknown)} weights have no place in LTG-BERT, ELC-BERT or GPT-BERT "
                f"(e.g. {unknown[0]})",
                "--trust-remote-code runs the checkpoint's own code, if you trust its author",
            )
        new_names = {old: new for old, new in renamed.items() if new is not None}
        if EMBEDDING not in new_names.values():  # tied weights saved under the other name
            new_names = {
                old: new.replace("head.decoder.weight", EMBEDDING) for old, new in new_names.items()
            }
        if len(set(new_names.values())) < len(new_names):
            raise self.error("two weights have the same place in the model", "")
        for needed in (EMBEDDING, POSITION_TABLE, "model.layers.0"):
            if not any(new.startswith(needed) for new in new_names.values()):
                raise self.error(f"no weight for {needed}", "the checkpoint is incomplete")
        return new_names

    def traits_from_code(self) -> LayoutTraits:
        """Return the traits in the folder's Python files, read as text; None where they do not
        tell. CheckpointError for a rule about ids that is not understood.
        """
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
                raise self.error(
                    f"its code never predicts some ids, by a rule unknown here: [{index}]",
                    OWN_CODE_HINT,
                )
            blanked = sum(int(part) for part in match[1].split("+") if part)
        return LayoutTraits(
            heads if heads != halves else None, mix, blanked if heads or halves or blanked else None
        )

    def _describe_layout(self, settings: Mapping[str, Any], traits: LayoutTraits) -> str:
        """Return what the checkpoint was opened as, for `doctor` and a cell's content key."""
        is_configured = self.settings.get("layer_norm_eps") is not None
        source = "config.json" if is_configured else "not in config.json, as the authors trained"
        if settings["layer_norm_eps"] != self.layer_norm_eps:
            source += f"; the authors trained with {self.layer_norm_eps:g}"
        positions = "per head" if traits.per_head_positions else "half by half"
        text = f"{self.describe_family(settings)}; positions {positions}"
        text += f"; layer_norm_eps {settings['layer_norm_eps']:g} ({source})"
        if traits.blanked_ids:
            text += f"; ids 0 to {traits.blanked_ids - 1} are never predicted"
        return text

    def _has_tied_embeddings(self, new_names: Mapping[str, str]) -> bool:
        ends = [old for old, new in new_names.items() if new in (EMBEDDING, "head.decoder.weight")]
        return len(ends) < 2 or torch.equal(*self.load_weights(ends).values())

    def _check_position_index(self, name: str, stored: Tensor, config: Any) -> None:
        """Compare a stored index of relative positions with ours: another one is another model."""
        bucket_index = import_module(type(config).__module__).bucket_index
        expected = bucket_index(
            len(stored), config.position_bucket_size, config.max_position_embeddings
        )
        if not torch.equal(stored, expected):
            raise self.error(
                f"{name} holds other relative positions than ours",
                "--trust-remote-code runs its own code",
            )


class GptBertOriginal(LtgFamilyOriginal):
    """GPT-BERT: attention apart from feed-forward, an optional gate."""

    __slots__ = ()
    layer_norm_eps = 1e-5

    def rename_weights(self) -> dict[str, str]:
        # Without a gate the projection has another name, and the same place.
        return {
            old: new.replace(".attention.value.", ".attention.value_gate.")
            for old, new in LtgFamilyOriginal.rename_weights(self).items()
        }

    def resolve_traits(self) -> LayoutTraits:
        if name := self.options.original_layout:
            raise UsageError(
                f"{self.folder.name} is a GPT-BERT, not {name}",
                location=LAYOUT_OPTION,
                hint="leave it out",
            )
        code = self.traits_from_code()
        if code.per_head_positions:
            raise self.error(
                "its code cuts positions per head, and no published GPT-BERT does", OWN_CODE_HINT
            )
        return LayoutTraits(False, "", code.blanked_ids or 0)

    def family_settings(self, traits: LayoutTraits) -> dict[str, Any]:
        del traits
        return {
            "layer_weights": any("dwa_modules" in name for name in self.shapes),
            "attention_gate": any("in_proj_vg" in name for name in self.shapes),
            # Whatever a wrapper is called, every GPT-BERT was trained both ways.
            CARD_KEY: {"attends": ["causal", "full"], "methods": ["mntp", "causal", "fused"]},
            "architectures": ["GptBertForMaskedLM"],
        }

    def describe_family(self, settings: Mapping[str, Any]) -> str:
        features = ["gate"] * settings["attention_gate"]
        features += ["weighted sums"] * settings["layer_weights"]
        return f"GPT-BERT ({', '.join(features) or 'plain'})"


class LtgBertOriginal(LtgFamilyOriginal):
    """LTG-BERT, and ELC-BERT, which mixes layers."""

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
        """Return what --original-layout, config.json or the folder's code say, in this order.

        Raises CheckpointError where nothing says it or two of them contradict, UsageError for an
        option that cannot be.
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
        per_head, blanked = traits.per_head_positions, traits.blanked_ids
        if per_head is None and mix and not self._missing_code_file():
            per_head = False  # all published code of ELC-BERT halves its positions
        classes = [str(name) for name in self.settings.get("architectures") or ()]
        unknown = blanked is None and any(name.startswith("Norbert") for name in classes)
        if per_head is None or unknown:
            absent = self._missing_code_file()
            file_hint = (
                f", or put {absent} beside the weights (it is read, not run)" if absent else ""
            )
            names = [name for name in ORIGINAL_LAYOUTS if name.startswith("ltg")]
            raise self.error(
                "published codes of LTG-BERT give weights the same names and compute different "
                "numbers, and nothing here says which code wrote these",
                f"{LAYOUT_OPTION} NAME with one of {', '.join(names)}{file_hint}",
            )
        return LayoutTraits(per_head, mix, blanked or 0)

    def _possible_layer_mixes(self) -> tuple[str, ...]:
        """Return the variants of ELC-BERT that the weights can be, ("",) for LTG-BERT.

        The first layer mixes one state alone, so its alpha stays where training began: at 1 in the
        base variant, at 0 in all others.
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
        """Combine what the weights (their possible `mixes`), config.json and the code say.

        Raises CheckpointError if config.json contradicts the weights or the code.
        """
        settings = self.check_settings({"layer_mix": "", "per_head_positions": False})
        configured, per_head = settings.get("layer_mix"), settings.get("per_head_positions")
        if configured is not None and configured not in mixes:
            allowed = " or ".join(map(repr, mixes))
            raise self._contradiction_error("layer_mix", configured, "weights say", allowed)
        mix = mixes[0] if len(mixes) == 1 else code.layer_mix
        for key, value, other in (
            ("layer_mix", configured, mix),
            ("per_head_positions", per_head, code.per_head_positions),
        ):
            if None not in (value, other) and value != other:
                raise self._contradiction_error(key, value, "code says", repr(other))
        return LayoutTraits(
            code.per_head_positions if per_head is None else per_head,
            mix if configured is None else configured,
            code.blanked_ids,
        )

    def _contradiction_error(
        self, key: str, value: object, source: str, other: str
    ) -> CheckpointError:
        message = f"config.json says {key} {value!r}, and the {source} {other}"
        return self.error(message, f"correct or remove {key} in config.json")

    def _check_layout_option(
        self, name: str, mixes: Sequence[str], detected: LayoutTraits
    ) -> LayoutTraits:
        """Return the traits that --original-layout names. UsageError if the files contradict
        them.
        """
        traits = ORIGINAL_LAYOUTS[name]
        for key in LayoutTraits.__slots__:
            expected, value = getattr(traits, key), getattr(detected, key)
            possible = mixes if key == "layer_mix" and value is None else (value,)
            if expected in possible or (value is None and key != "layer_mix"):
                continue
            raise UsageError(
                f"{self.folder.name} is not {name}: its files say {key} "
                f"{' or '.join(map(repr, possible))}, that layout has {expected!r}",
                location=LAYOUT_OPTION,
                hint="leave the option out to open the checkpoint as its files say",
            )
        return traits

    def _missing_code_file(self) -> str:
        """Return the modeling file that config.json names and the folder lacks, "" for none."""
        targets = (self.settings.get("auto_map") or {}).values()  # [repository--]module.Class
        modules = {str(target).rpartition("--")[2].partition(".")[0] for target in targets}
        files = sorted(f"{module}.py" for module in modules if module.startswith("model"))
        return next((file for file in files if not (self.folder / file).is_file()), "")


def _is_gpt_bert(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """GPT-BERT has its attention apart from its feed-forward; a gate is optional, and it has no
    affine norm.
    """
    names = " ".join(shapes)
    plain = "attention_layers." in names and "post_layer_norm" not in names
    return "in_proj_vg" in names or plain


def rename_weight(name: str) -> str | None:
    """Return our name of an original weight, None for one that the table does not know."""
    for pattern, new_name in WEIGHT_NAMES.items():
        if match := re.fullmatch(WRAPPER_PREFIXES + pattern, name):
            n = int(next((g for g in match.groups() if g and g.isdigit()), 0))
            return new_name.format(n=n, half=n // 2, odd=n % 2, w=match.groupdict().get("w"))
    return None
