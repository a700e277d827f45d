"""Estimate what a unit costs: rows, tokens, FLOPs, time, memory. Formulas: docs/how-to/scale.md."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from antlm_bench.checkpoints.resolve import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from antlm_bench.sweeps.calibration import DeviceSpeed
from antlm_bench.sweeps.checkpoint_facts import CheckpointFacts, ForwardSize
from antlm_bench.sweeps.count_requests import (
    CountRequest,
    Counts,
    build_finetune_request,
    build_score_request,
    count_texts,
)
from antlm_bench.sweeps.expansion import ExpandedSweep, TrainedModel, count_corpus_words
from antlm_bench.sweeps.token_counts import CountsCache, TextCounts
from antlm_bench.sweeps.units import Unit
from antlm_bench.training.flops import compute_model_size, training_flops
from antlm_bench.training.recipe import list_scales, read_recipe
from antlm_bench.training.schedule import TOKENS_PER_WORD, plan_steps

BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
SCORING_BATCH_TOKENS = {"cpu": CPU_BATCH_TOKENS}
FINETUNING_BATCH_TOKENS = {"cpu": 1024}
TRAINING_BATCH_TOKENS = {"cpu": 4096}
DEFAULT_TRAINING_BATCH_TOKENS = 65_536
MAX_LOGITS_BYTES = {"cpu": 2**24}
"""Largest block of logits that the engine computes at a time (scoring.engine)."""
DEFAULT_MAX_LOGITS_BYTES = 2**30
FORWARD_VALUES_PER_TOKEN = 16
"""Values of one layer that a forward holds at a time, per token and hidden unit."""
CPU_WEIGHT_COPIES = 3
"""Copies of the weights in memory while a CPU scores: file, model, and packed for its kernels."""
CPU_KERNEL_BYTES = 25e6
"""Memory of compiled kernels, which oneDNN keeps per shape, and of freed memory that stays mapped:
for each doubling of the number of batches (benchmarks/estimates.py --memory)."""
MAX_DOUBLINGS = 8
TRAINING_VALUES_PER_TOKEN = 24
"""Values that the backward pass keeps, per token, layer and hidden unit."""
KINDS_WITH_CHECKPOINT = ("score", "finetune")
"""Kinds of units that open a checkpoint."""


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


def unit_dtype(unit: Unit) -> str:
    """Return the dtype in which a unit runs a model; "" if it runs none."""
    if unit.kind not in (*KINDS_WITH_CHECKPOINT, "train"):
        return ""
    key = "precision" if unit.kind == "train" else "dtype"
    return str(unit.arguments["options"].get(key, "float32"))


class Estimator:
    """Estimates the units of a sweep. Equal work is estimated once."""

    def __init__(
        self,
        expanded: ExpandedSweep,
        find_speed: Callable[[str], DeviceSpeed | None] = lambda _: None,
        device_kind: str = "cpu",
        cache: CountsCache | None = None,
    ) -> None:
        """find_speed: return the speed of the device with a dtype; None = times are unknown.
        device_kind: cpu, cuda or mps.
        """
        self.expanded, self.device_kind = expanded, device_kind
        self.find_speed = functools.cache(find_speed)
        self._cache = cache or CountsCache()
        self._counts: dict[tuple[object, ...], Counts | str] = {}
        """Distinct work and attention -> its counts."""

    def estimate_all(self) -> dict[str, UnitCost]:
        """Return id of a unit -> its cost, without the time to open its checkpoint.

        The cost of collect and report units is not estimated: they run no model.
        """
        units_by_work: dict[tuple[object, ...], list[Unit]] = {}
        for unit in self.expanded.sweep.units:
            units_by_work.setdefault(self._identify_work(unit), []).append(unit)
        self._count({work: units[0] for work, units in units_by_work.items()})
        costs: dict[str, UnitCost] = {}
        for work, units in units_by_work.items():
            cost = self._estimate(work, units[0])
            costs |= dict.fromkeys((unit.id for unit in units), cost)
        return costs

    def opening_seconds(self, unit: Unit) -> float | None:
        """Return the time to open the checkpoint of a unit; None = unknown."""
        facts = self._find_facts(unit)
        if facts is None:
            return 0.0
        speed = self.find_speed(unit_dtype(unit))
        if speed is None or facts.size is None:
            return None
        return speed.opening_seconds(facts.size.parameters)

    def _find_facts(self, unit: Unit) -> CheckpointFacts | None:
        """Return the facts of the checkpoint that a unit opens; None if it opens none."""
        if unit.kind not in KINDS_WITH_CHECKPOINT:
            return None
        return self.expanded.facts[unit.stage, unit.model]

    def _identify_work(self, unit: Unit) -> tuple[object, ...]:
        """Return what the cost of a unit depends on: not its seed or the values of weights."""
        facts = self._find_facts(unit)
        if facts is None:
            return (unit.kind, unit.id)
        identity = replace(facts, ref="", folder=None, tokenizer_dir=None)
        arguments = {key: value for key, value in unit.arguments.items() if key != "seed"}
        return (unit.kind, identity, json.dumps(arguments, sort_keys=True))

    def _count(self, units: Mapping[tuple[object, ...], Unit]) -> None:
        requests: dict[tuple[object, ...], CountRequest] = {}
        for work, unit in units.items():
            facts, arguments = self._find_facts(unit), unit.arguments
            if facts is None:
                continue
            suite, options = arguments["suite"], arguments["options"]
            if unit.kind == "score":
                methods = facts.resolve_methods(arguments["methods"])
                requests[work] = build_score_request(facts, suite, methods, options)
            elif unit.kind == "finetune":
                for attention in facts.resolve_attentions(arguments["attentions"]):
                    requests[(*work, attention)] = build_finetune_request(
                        facts, suite, arguments["task"], attention, options
                    )
        results = count_texts(list(requests.values()), self._cache)
        self._counts = dict(zip(requests, results, strict=True))

    def _estimate(self, work: tuple[object, ...], unit: Unit) -> UnitCost:
        facts = self._find_facts(unit)
        if unit.kind == "train":
            return self._estimate_train(self.expanded.trained_models[unit.id])
        if unit.kind == "score" and facts:
            return self._estimate_score(facts, unit.arguments, self._counts[work])
        if unit.kind == "finetune" and facts:
            return self._estimate_finetune(facts, unit.arguments, work)
        return UnitCost()

    # ---- score

    def _estimate_score(
        self, facts: CheckpointFacts, arguments: Mapping[str, Any], result: Counts | str
    ) -> UnitCost:
        if isinstance(result, str):
            return _not_counted(result)
        [counts] = result
        options = arguments["options"]
        counts = counts.scale(1 / int(str(arguments.get("shard", "1/1")).partition("/")[2]))
        if facts.size is None:
            return _unknown_size(counts)
        dtype = str(options.get("dtype", "float32"))
        flops = facts.size.forward_flops(counts.tokens, counts.reads, counts.attended)
        speed, notes = self.find_speed(dtype), _describe_other_speed(options)
        seconds = None
        if speed is not None and not notes:
            seconds = counts.seconds + flops / speed.forward_rate(facts.size.hidden)
        return UnitCost(
            counts.rows,
            counts.tokens,
            flops,
            seconds,
            self._scoring_memory(facts.size, dtype, options.get("batch_tokens"), counts.tokens),
            counts.is_exact,
            notes,
        )

    def _scoring_memory(
        self, size: ForwardSize, dtype: str, batch_tokens: int | None, num_tokens: int
    ) -> int:
        """Return the bytes of the weights (loaded in float32 first), of one layer's values for a
        batch, and of a block of logits; on a CPU also of kernels.

        num_tokens: of the whole unit.
        """
        tokens = batch_tokens or SCORING_BATCH_TOKENS.get(self.device_kind, GPU_BATCH_TOKENS)
        bytes_per_value = BYTES_PER_WEIGHT[dtype]
        weights = size.parameters * max(4, bytes_per_value)
        activations = tokens * size.hidden * FORWARD_VALUES_PER_TOKEN * bytes_per_value
        max_logits = MAX_LOGITS_BYTES.get(self.device_kind, DEFAULT_MAX_LOGITS_BYTES)
        memory = weights + activations + min(max_logits, tokens * size.vocabulary * 4)
        if self.device_kind == "cpu":
            doublings = min(math.log2(max(num_tokens / tokens, 1)), MAX_DOUBLINGS)
            memory += weights * (CPU_WEIGHT_COPIES - 1) + round(CPU_KERNEL_BYTES * doublings)
        return memory

    # ---- finetune

    def _estimate_finetune(
        self, facts: CheckpointFacts, arguments: Mapping[str, Any], work: tuple[object, ...]
    ) -> UnitCost:
        total = UnitCost()
        for attention in facts.resolve_attentions(arguments["attentions"]):
            result = self._counts[(*work, attention)]
            if isinstance(result, str):
                return _not_counted(result)
            trained, read = result
            total += self._cost_finetuning(facts, trained, read, arguments["options"])
        return total

    def _cost_finetuning(
        self,
        facts: CheckpointFacts,
        trained: TextCounts,
        read: TextCounts,
        options: Mapping[str, Any],
    ) -> UnitCost:
        """Estimate finetuning. trained: counts of the forward passes that a backward pass follows.
        read: of the others.
        """
        counts, size = trained + read, facts.size
        if size is None:
            return _unknown_size(counts)
        training = 3 * size.forward_flops(trained.tokens, 0, trained.attended)
        reading = size.forward_flops(read.tokens, 0, read.attended)
        speed = self.find_speed(str(options.get("dtype", "float32")))
        seconds = None
        if speed is not None:
            # Reading runs the library's layers, which train at this rate, too.
            seconds = counts.seconds + (training + reading) / speed.training_rate(size.hidden)
        default = FINETUNING_BATCH_TOKENS.get(self.device_kind, GPU_BATCH_TOKENS)
        tokens = options.get("batch_tokens") or default
        copies = 1 if options.get("frozen") else 6  # backbone, model, gradients, Adam (2), best
        memory = 4 * (
            copies * size.parameters
            + tokens * size.layers * size.hidden * TRAINING_VALUES_PER_TOKEN
        )
        notes = (
            () if options.get("frozen") else ("of all epochs; early stopping can end it sooner",)
        )
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
        speed = self.find_speed(str(options.get("precision", "float32")))
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
            seconds=flops / speed.training_rate(spec.hidden) if speed else None,
            memory=memory,
            is_exact=False,
        )


def _not_counted(reason: str) -> UnitCost:
    return replace(UNKNOWN_COST, notes=(f"not estimated: {reason}",))


def _describe_other_speed(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return why the measured speed is not that of a score unit; () if it is."""
    if options.get("engine", "native") != "native":
        return (f"the speed of the engine {options['engine']!r} is not known",)
    if options.get("precision", "exact") != "exact":
        return ("the time of adaptive precision depends on how many items are close",)
    return ()


def _unknown_size(counts: TextCounts) -> UnitCost:
    note = "its weights are not here yet, so that FLOPs, time and memory are unknown"
    return UnitCost(counts.rows, counts.tokens, None, None, None, counts.is_exact, (note,))
