"""Estimate what a unit costs: rows, tokens, FLOPs, time, memory. The formulas: docs/scale.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from antlm_bench.errors import BenchError, DataError
from antlm_bench.scoring.conventions import CONVENTIONS_VERSION
from antlm_bench.sweeps.calibration import DeviceSpeed
from antlm_bench.sweeps.checkpoint_facts import CheckpointFacts, ForwardSize
from antlm_bench.sweeps.expansion import ExpandedSweep, TrainedModel
from antlm_bench.sweeps.future_corpora import count_corpus_words
from antlm_bench.sweeps.sweep_texts import TASK_OPTIONS, fingerprint_suite
from antlm_bench.sweeps.token_counts import CountsCache, TextCounts, count_suite, count_task
from antlm_bench.sweeps.units import Unit
from antlm_bench.training.flops import compute_model_size, training_flops
from antlm_bench.training.recipe import list_scales, read_recipe
from antlm_bench.training.schedule import TOKENS_PER_WORD, plan_steps
from antlm_bench.types import Attention

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
SCORING_BATCH_TOKENS = {"cpu": 2048}
GPU_BATCH_TOKENS = 32_768
FINETUNING_BATCH_TOKENS = {"cpu": 1024}
TRAINING_BATCH_TOKENS = {"cpu": 4096}
DEFAULT_TRAINING_BATCH_TOKENS = 65_536
MAX_LOGITS_BYTES = {"cpu": 2**24}
"""Largest block of logits that the engine computes at a time (scoring.engine)."""
DEFAULT_MAX_LOGITS_BYTES = 2**30
FORWARD_VALUES_PER_TOKEN = 16
"""Values of one layer that a forward holds at a time, per token and hidden unit."""
TRAINING_VALUES_PER_TOKEN = 24
"""Values that the backward pass keeps, per token, layer and hidden unit."""
SCORING_OPTIONS = ("limit", "columns", "allow_incomplete", "bos", "compat", "max_length")
"""Options of `score` that decide what is counted."""


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What a unit costs. None = unknown; `notes` say why."""

    rows: int | None = 0
    tokens: int | None = 0
    flops: float | None = 0.0
    seconds: float | None = 0.0
    memory: int | None = 0
    """Peak in bytes, without what the process needs before it opens a model."""
    is_exact: bool = True
    """Whether rows and tokens were counted with the checkpoint's own tokenizer."""
    notes: tuple[str, ...] = ()

    def __add__(self, other: UnitCost) -> UnitCost:
        """Return the cost of both, one after the other: the memory is that of the larger one."""
        return UnitCost(
            _add(self.rows, other.rows),
            _add(self.tokens, other.tokens),
            _add(self.flops, other.flops),
            _add(self.seconds, other.seconds),
            None if None in (self.memory, other.memory) else max(self.memory, other.memory),  # type: ignore[type-var]
            self.is_exact and other.is_exact,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
        )


def _add(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


UNKNOWN_COST = UnitCost(None, None, None, None, None)


class Estimator:
    """Estimates the units of a sweep. Equal work is estimated once."""

    def __init__(
        self,
        expanded: ExpandedSweep,
        speed: DeviceSpeed | None = None,
        device: str = "cpu",
        counts_cache: CountsCache | None = None,
    ) -> None:
        """speed: that of the device; None = times are unknown. device: cpu, cuda or mps."""
        self.expanded, self.speed = expanded, speed
        self.device_kind = device.partition(":")[0].partition(" ")[0]
        self._counts = counts_cache or CountsCache()
        self._costs: dict[Any, UnitCost] = {}

    def estimate(self, unit: Unit) -> UnitCost:
        """Return the cost of a unit, without the time to open its checkpoint.

        The cost of collect and report units is not estimated: they run no model.
        """
        arguments = {key: value for key, value in unit.arguments.items() if key != "seed"}
        facts = self.expanded.facts.get(unit.model)
        identity = (facts.tokenizer_hash, facts.size, facts.kind) if facts else unit.model
        key = (unit.kind, identity, json.dumps(arguments, sort_keys=True))
        if key not in self._costs:
            try:
                if unit.kind == "train":
                    cost = self._estimate_train(self.expanded.trained_models[unit.id])
                elif unit.kind == "score" and facts:
                    cost = self._estimate_score(facts, unit.arguments)
                elif unit.kind == "finetune" and facts:
                    cost = self._estimate_finetune(facts, unit.arguments)
                else:
                    cost = UnitCost()
            except DataError:
                raise
            except BenchError as error:
                cost = replace(UNKNOWN_COST, notes=(f"not estimated: {error.message}",))
            self._costs[key] = cost
        return self._costs[key]

    def opening_seconds(self, model: str) -> float | None:
        """Return the time to open a checkpoint; None = unknown."""
        facts = self.expanded.facts.get(model)
        if self.speed is None or facts is None or facts.size is None:
            return None
        return self.speed.opening_seconds(facts.size.parameters)

    # ---- score

    def _estimate_score(self, facts: CheckpointFacts, arguments: Mapping[str, Any]) -> UnitCost:
        suite, options = str(arguments["suite"]), arguments["options"]
        methods = facts.resolve_methods(arguments["methods"])
        settings = {name: options[name] for name in SCORING_OPTIONS if name in options}
        key = ["score", facts.tokenizer_hash, facts.max_length, sorted(methods), settings]
        key += [facts.size.vocabulary if facts.size else 0, CONVENTIONS_VERSION]

        def count() -> list[TextCounts]:
            loaded = self.expanded.texts.load_suite(suite, options)
            tokenizer = self._counts.load_tokenizer(facts)
            return [count_suite(facts, loaded, methods, settings, tokenizer)]

        [counts] = self._get_counts([*key, fingerprint_suite(suite)], count)
        shard = str(arguments.get("shard", "1/1"))
        counts = counts.scale(1 / int(shard.partition("/")[2]))
        if facts.size is None:
            return _unknown_size(counts)
        dtype = str(options.get("dtype", "float32"))
        flops = facts.size.forward_flops(counts.tokens, counts.reads, counts.attended)
        seconds = None
        if self.speed is not None:
            seconds = counts.seconds + flops / self.speed.forward_rate(facts.size.hidden)
        return UnitCost(
            counts.rows,
            counts.tokens,
            flops,
            seconds,
            self._scoring_memory(facts.size, dtype, options.get("batch_tokens")),
            counts.is_exact,
        )

    def _get_counts(self, key: Sequence[Any], count: Any) -> list[TextCounts]:
        """Return counts from the cache, or count: always if the texts have no fingerprint."""
        return count() if key[-1] is None else self._counts.get(key, count)

    def _scoring_memory(self, size: ForwardSize, dtype: str, batch_tokens: int | None) -> int:
        """Weights (loaded in float32 first), the values of one layer for a batch, and logits."""
        tokens = batch_tokens or SCORING_BATCH_TOKENS.get(self.device_kind, GPU_BATCH_TOKENS)
        bytes_per_value = BYTES_PER_WEIGHT[dtype]
        weights = size.parameters * max(4, bytes_per_value)
        activations = tokens * size.hidden * FORWARD_VALUES_PER_TOKEN * bytes_per_value
        max_logits = MAX_LOGITS_BYTES.get(self.device_kind, DEFAULT_MAX_LOGITS_BYTES)
        return weights + activations + min(max_logits, tokens * size.vocabulary * 4)

    # ---- finetune

    def _estimate_finetune(self, facts: CheckpointFacts, arguments: Mapping[str, Any]) -> UnitCost:
        suite, task, options = arguments["suite"], arguments["task"], arguments["options"]
        attentions = _resolve_attentions(facts, arguments["attentions"])
        settings = {name: options[name] for name in (*TASK_OPTIONS, "frozen") if name in options}
        total = UnitCost()
        for attention in attentions:
            key = ["finetune", facts.tokenizer_hash, facts.max_length, suite, task, attention]

            def count(attention: Attention = attention) -> list[TextCounts]:
                loaded = self.expanded.texts.load_task(suite, task, settings)
                tokenizer = self._counts.load_tokenizer(facts)
                fitted, selection, valid = count_task(facts, loaded, attention, tokenizer)
                if options.get("frozen"):
                    return [TextCounts(), fitted + selection + valid]
                epochs = loaded.training.epochs
                read = selection.scale(epochs) + valid
                return [fitted.scale(epochs), read]

            fingerprint = fingerprint_suite(suite, settings.get("valid"))
            trained, read = self._get_counts([*key, settings, fingerprint], count)
            total += self._cost_finetuning(facts, trained, read, options)
        return total

    def _cost_finetuning(
        self,
        facts: CheckpointFacts,
        trained: TextCounts,
        read: TextCounts,
        options: Mapping[str, Any],
    ) -> UnitCost:
        """trained: counts of the forward passes with a backward pass. read: of the others."""
        counts, size = trained + read, facts.size
        if size is None:
            return _unknown_size(counts)
        training = 3 * size.forward_flops(trained.tokens, 0, trained.attended)
        reading = size.forward_flops(read.tokens, 0, read.attended)
        seconds = None
        if self.speed is not None:
            # Reading runs the library's layers, which train at this rate, too.
            seconds = counts.seconds + (training + reading) / self.speed.training_rate(size.hidden)
        default = FINETUNING_BATCH_TOKENS.get(self.device_kind, GPU_BATCH_TOKENS)
        tokens = options.get("batch_tokens") or default
        copies = 1 if options.get("frozen") else 6  # backbone, model, gradients, Adam (2), best
        memory = 4 * (
            copies * size.parameters
            + tokens * size.layers * size.hidden * TRAINING_VALUES_PER_TOKEN
        )
        notes = () if options.get("frozen") else ("finetuning: all epochs; patience may end it",)
        return UnitCost(
            counts.rows,
            counts.tokens,
            training + reading,
            seconds,
            memory,
            counts.is_exact,
            notes,
        )

    # ---- train

    def _estimate_train(self, model: TrainedModel) -> UnitCost:
        recipe = model.recipe
        words = count_corpus_words(model.corpus, recipe)
        steps = plan_steps(recipe, round(words * TOKENS_PER_WORD))
        flops = training_flops(recipe, steps)
        options = model.unit.arguments["options"]
        # Teachers that are not given are trained first.
        for name in recipe.distil.teachers if recipe.distil and not options.get("teachers") else ():
            scale = recipe.scale if recipe.scale in list_scales(name) else ""
            teacher = read_recipe(name, scale)
            flops += training_flops(teacher, plan_steps(teacher, round(words * TOKENS_PER_WORD)))
        spec = recipe.model
        parameters = compute_model_size(spec, recipe.tokenizer.vocabulary).parameters
        tokens = options.get("micro_tokens") or TRAINING_BATCH_TOKENS.get(
            self.device_kind, DEFAULT_TRAINING_BATCH_TOKENS
        )
        memory = 4 * (
            5 * parameters  # weights, gradients, Adam (2), average or best
            + tokens * spec.layers * spec.hidden * TRAINING_VALUES_PER_TOKEN
            + 2 * tokens * recipe.tokenizer.vocabulary
        )
        return UnitCost(
            rows=sum(step.num_rows for step in steps),
            tokens=sum(step.num_tokens for step in steps),
            flops=flops,
            seconds=flops / self.speed.training_rate(spec.hidden) if self.speed else None,
            memory=memory,
            is_exact=False,
        )


def _unknown_size(counts: TextCounts) -> UnitCost:
    note = "its weights are not here yet, so that FLOPs, time and memory are unknown"
    return UnitCost(counts.rows, counts.tokens, None, None, None, counts.is_exact, (note,))


def _resolve_attentions(facts: CheckpointFacts, names: Sequence[str]) -> list[Attention]:
    """Return the attentions of a finetune unit: as `finetune` chooses them."""
    available: list[Attention] = ["causal", "full"]
    available = [name for name in available if name in facts.attentions]
    if "all" in names:
        return available
    if names:
        return [name for name in available if name in names]
    first = facts.methods[0] if facts.methods else ""
    return ["causal"] if first == "causal" else available[-1:]
