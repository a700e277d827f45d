"""Public checkpoints of LTG-BERT, ELC-BERT and GPT-BERT in their authors' layouts, opened without their code.

They are recognised by their weights, whatever their configuration calls itself, and renamed by a table. Names of
weights and configuration keys are facts about files, read from the public ones; the models are our architectures.
"""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from antlm_bench.architectures.registration import ARCHITECTURES
from antlm_bench.checkpoints.folders import CODE, OpenOptions, files, first_line, pickled_files, safetensors_files
from antlm_bench.errors import CheckpointError

LTG, GPT = ARCHITECTURES
# What an original name begins with depends on who wrapped the model; what follows is the same for all.
WRAPPERS = r"(?:(?:module|model|bert|ltg_?bert|gpt_?bert|transformer|classifier|lm_head)\.)*"
LAYER = r"(?:layers\.(\d+)\.attention|attention_layers\.(\d+))\."
MLP = r"(?:layers\.(\d+)\.mlp|mlp_layers\.(\d+))\."
# Original name behind its wrappers -> ours. {n}: the number of the layer, {w}: weight or bias.
NAMES = {
    r"embedding\.word_embedding\.weight": "model.embedding.weight",
    r"embedding\.relative_embedding": "model.positions.table.weight",
    r"embedding\.relative_layer_norm\.(?P<w>weight|bias)": "model.positions.norm.{w}",
    LAYER + r"in_proj_qk\.(?P<w>weight|bias)": "model.layers.{n}.attention.query_key.{w}",
    LAYER + r"in_proj_v\.(?P<w>weight|bias)": "model.layers.{n}.attention.value.{w}",
    LAYER + r"in_proj_vg\.(?P<w>weight|bias)": "model.layers.{n}.attention.value_gate.{w}",
    LAYER + r"out_proj\.(?P<w>weight|bias)": "model.layers.{n}.attention.output.{w}",
    LAYER + r"post_layer_norm\.(?P<w>weight|bias)": "model.layers.{n}.attention.norm_out.{w}",
    MLP + r"mlp\.1\.weight": "model.layers.{n}.feed_forward.wide.weight",
    MLP + r"mlp\.4\.weight": "model.layers.{n}.feed_forward.narrow.weight",
    r"layers\.(\d+)\.prev_layer_weights": "model.layers.{n}.mix.alpha",  # ELC-BERT
    r"prev_layer_weights": "model.mix.alpha",  # ELC-BERT with weighted output
    r"dwa_modules\.alphas\.(\d+)": "model.layers.{half}.mixes.{odd}.alpha",  # GPT-BERT: two per layer
    r"nonlinearity\.1\.(?P<w>weight|bias)": "head.transform.1.{w}",
    r"nonlinearity\.5\.(?P<w>weight|bias)": "head.decoder.{w}",
}
BUCKETS = re.compile(r"(?:.*\.)?position_indices$")  # a buffer that the configuration implies: compared, not loaded
# Traits of the wrappers' code that neither configuration nor weights tell.
PER_HEAD_POSITIONS = re.compile(r"2\s*\*\s*self\.head_size\)\.chunk\(2,\s*dim\s*=\s*2")
NORMALIZED_LAYERS = re.compile(r"self\.norm\s*=\s*nn\.LayerNorm")


@dataclass(frozen=True, slots=True)
class Original:
    """A checkpoint in an author's layout. settings: its config.json; shapes: original name -> shape of every weight."""

    folder: Path
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    options: OpenOptions

    @property
    def model_type(self) -> str:
        return GPT if any(".in_proj_vg." in name for name in self.shapes) else LTG

    def configuration(self) -> Any:
        """Our configuration: sizes from the weights where they tell, everything else from config.json."""
        ours = self._renamed()
        shapes = {new: self.shapes[old] for old, new in ours.items()}
        module, prefix = _module_of(self.model_type)
        known = {key: value for key, value in self.settings.items() if key in module.DEFAULTS}
        if "num_attention_heads" not in known:
            raise self._error("config.json does not say num_attention_heads", "add it: the weights do not tell")
        known["vocab_size"], known["hidden_size"] = shapes["model.embedding.weight"]
        known["position_bucket_size"] = (shapes["model.positions.table.weight"][0] + 1) // 2
        known["num_hidden_layers"] = 1 + max(int(n) for n in re.findall(r"model\.layers\.(\d+)", " ".join(shapes)))
        mixed = any(name.endswith("alpha") for name in shapes)
        if self.model_type == GPT:
            known["layer_weights"] = mixed
        else:
            known["layer_mix"] = self._variant(ours) if mixed else ""
            if "per_head_positions" not in known:
                known["per_head_positions"] = self._per_head()
        known["tie_word_embeddings"] = self._tied(ours)
        causal = any(name.endswith("ForCausalLM") for name in self.settings.get("architectures") or ())
        known["architectures"] = [prefix + ("ForCausalLM" if causal else "ForMaskedLM")]
        try:
            return getattr(module, prefix + "Config")(**known)
        except (TypeError, ValueError) as error:
            raise self._error(first_line(error), "") from error

    def model(self, kind: str, config: Any) -> Any:
        """The model in fp32. CheckpointError unless every weight is used and every parameter is filled."""
        module, prefix = _module_of(self.model_type)
        ours = self._renamed()
        state = {new: self._weight(old).float() for old, new in ours.items()}
        for old in sorted(name for name in self.shapes if name not in ours):
            self._compare(old, module.bucket_index, config)
        if config.tie_word_embeddings:  # a file holds one of the two names, or both
            shared = state.get("model.embedding.weight", state.get("head.decoder.weight"))
            state["model.embedding.weight"] = state["head.decoder.weight"] = shared
        with torch.device("meta"):
            model = getattr(module, prefix + {"causal": "ForCausalLM", "masked": "ForMaskedLM"}[kind])(config)
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

    def _renamed(self) -> dict[str, str]:
        """Original name -> ours. Raises CheckpointError for a name that the table does not know."""
        found = {name: _rename(name) for name in self.shapes if not BUCKETS.match(name)}
        unknown = sorted(name for name, new in found.items() if new is None)
        if unknown:
            raise self._error(
                f"{len(unknown)} weights have no place in LTG-BERT, ELC-BERT or GPT-BERT (e.g. {unknown[0]})",
                "--trust-remote-code runs the checkpoint's own code, if you trust its author",
            )
        named = {old: new for old, new in found.items() if new is not None}
        if "model.embedding.weight" not in named.values():  # tied weights may have been saved under the other name
            named = {o: n.replace("head.decoder.weight", "model.embedding.weight") for o, n in named.items()}
        if len(set(named.values())) < len(named):
            raise self._error("two weights have the same place in the model", "")
        for needed in ("model.embedding.weight", "model.positions.table.weight", "model.layers.0"):
            if not any(new.startswith(needed) for new in named.values()):
                raise self._error(f"no weight for {needed}", "the checkpoint is incomplete")
        return named

    def _variant(self, ours: dict[str, str]) -> str:
        """Which ELC-BERT. The first layer mixes one state alone, so its alpha never moves from where training began."""
        if "layer_mix" in self.settings:
            return str(self.settings["layer_mix"])
        if "model.mix.alpha" in ours.values():
            return "weighted_output"
        first = next((old for old, new in ours.items() if new == "model.layers.0.mix.alpha"), None)
        if first is not None and float(self._weight(first)[-1]) != 0.0:
            return "base"
        code = self._code()
        if "prev_layer_weights" not in code:
            raise self._error(
                "ELC-BERT's zero and normalized variants have the same weights, and nothing here says which this is",
                'add "layer_mix": "zero" or "normalized" to config.json',
            )
        return "normalized" if NORMALIZED_LAYERS.search(code) else "zero"

    def _per_head(self) -> bool:
        """How positions are projected. Wrappers differ, with the same weights; the training code goes half by half."""
        named = (self.settings.get("auto_map") or {}).values()  # [repository--]module.Class
        modules = {str(name).rpartition("--")[2].partition(".")[0] for name in named}
        absent = sorted(
            name for name in modules if name.startswith("model") and not (self.folder / f"{name}.py").is_file()
        )
        if absent:
            raise self._error(
                f"public LTG-BERT wrappers differ in how they lay out positions, and {absent[0]}.py is not here to say",
                'put that file beside the weights (it is read, not run), or add "per_head_positions": false (or true) '
                "to config.json",
            )
        return bool(PER_HEAD_POSITIONS.search(self._code()))

    def _tied(self, ours: dict[str, str]) -> bool:
        back = {new: old for old, new in ours.items()}
        both = [back[name] for name in ("model.embedding.weight", "head.decoder.weight") if name in back]
        return len(both) < 2 or torch.equal(*(self._weight(name) for name in both))

    def _compare(self, name: str, bucket_index: Any, config: Any) -> None:
        """Their index of relative positions against ours: a difference would be another model."""
        theirs = self._weight(name).long()
        ours = bucket_index(len(theirs), config.position_bucket_size, config.max_position_embeddings)
        if not torch.equal(theirs, ours):
            raise self._error(
                f"{name} holds other relative positions than ours", "--trust-remote-code runs its own code"
            )

    def _code(self) -> str:
        return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files(self.folder, CODE))

    def _weight(self, name: str) -> Tensor:
        for file in safetensors_files(self.folder):
            with safetensors.safe_open(file, "pt") as handle:
                if name in handle.keys():  # noqa: SIM118 - no mapping
                    return handle.get_tensor(name)
        return next(part[name] for part in _pickled(self.folder, self.options) if name in part)

    def _error(self, message: str, hint: str) -> CheckpointError:
        return CheckpointError(message, place=str(self.folder), hint=hint)


def recognise(folder: Path, options: OpenOptions) -> Original | None:
    """The checkpoint in this folder, if it is in an original layout; with --trust-remote-code its own code is asked.

    Raises CheckpointError for damaged weights.
    """
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
                shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        if not shapes and options.allow_pickle:
            for part in _pickled(folder, options):
                shapes |= {name: tuple(weight.shape) for name, weight in part.items()}
    except Exception as error:  # safetensors and pickle have their own
        raise CheckpointError(f"cannot read the weights: {first_line(error)}", place=str(folder)) from error
    if not any(name.endswith("embedding.relative_embedding") for name in shapes):
        return None
    return Original(folder, settings, shapes, options)


def _pickled(folder: Path, options: OpenOptions) -> list[dict[str, Tensor]]:
    assert options.allow_pickle
    return [torch.load(file, map_location="cpu", weights_only=True) for file in pickled_files(folder)]


def _rename(name: str) -> str | None:
    for pattern, ours in NAMES.items():
        if match := re.fullmatch(WRAPPERS + pattern, name):
            n = int(next((g for g in match.groups() if g and g.isdigit()), 0))
            return ours.format(n=n, half=n // 2, odd=n % 2, w=match.groupdict().get("w"))
    return None


def _module_of(model_type: str) -> tuple[Any, str]:
    file, prefix = ARCHITECTURES[model_type]
    return importlib.import_module(f"antlm_bench.architectures.{file}"), prefix
