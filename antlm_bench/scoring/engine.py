"""The engine: compute the log-probabilities that probes ask for.

It runs the model's own forward, whatever the architecture, with two interventions:

- Packed rows: a batch's rows are concatenated into one row without padding, in which a shared
  prefix occurs once (scoring.plan). An attention function that is registered with transformers
  computes attention within each row (scoring.attention).
- The LM head, and if possible the last layer, runs only at the positions that are read.

A model whose attention cannot be replaced runs on plain rows of one exact length. `ForwardConfig`
holds what a model can do, which is tested when it is opened. Every shortcut can be turned off
(`Engine.disable_shortcut`). Without shortcuts, the model reads one row, or one prefix, at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from threading import Lock, RLock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antlm_bench.errors import CheckpointError, PluginError
from antlm_bench.scoring.attention import (
    PACKED_ATTENTION,
    BeyondWindowError,
    LastLayer,
    PackedForward,
    PackedLayout,
    current_forward,
    padding_limits,
)
from antlm_bench.scoring.cpu_kernels import RotaryPatch, fuse_layers, pack_linears
from antlm_bench.scoring.devices import copy_together, read_back, to_device
from antlm_bench.scoring.forward_config import CPU_KERNELS, SHORTCUTS, ForwardConfig
from antlm_bench.scoring.logit_readers import DistributionReader, Reads, target_logprobs
from antlm_bench.scoring.model_state import ModelState, ModuleSwaps
from antlm_bench.scoring.plain_forward import (
    attention_mask_inputs,
    no_cache_kwargs,
    plain_logits,
    vocabulary_size,
)
from antlm_bench.scoring.plan import PackedBatch, build_plans
from antlm_bench.types import Attention, Floats, Ints, Probes

# Logits computed at a time. On a CPU 16 MiB in fp32: the system would supply larger blocks anew,
# page by page, at every batch.
MAX_HEAD_LOGITS = {"cpu": 2**22}
DEFAULT_MAX_HEAD_LOGITS = 2**28
# Batches whose values stay on the device until they are read. Reading waits for the device, so on a
# GPU the next batches are queued first.
MAX_PENDING_BATCHES = {"cpu": 1}
DEFAULT_MAX_PENDING_BATCHES = 16


# id of a model's configuration -> the lock of the models that use it.
_locks_by_config: dict[int, RLock] = {}
_locks_guard = Lock()


def lock_model(model: Any) -> RLock:
    """Return the lock that a thread holds while it runs a model.

    A forward sets attributes of the model and the attention implementation in its configuration, so
    models that share a configuration object share a lock.
    """
    config = model.config
    with _locks_guard:
        if id(config) not in _locks_by_config:
            _locks_by_config[id(config)] = RLock()
            finalizer = weakref.finalize(config, _locks_by_config.pop, id(config), None)
            finalizer.atexit = False
        return _locks_by_config[id(config)]


class BatchPlan(Protocol):
    """The rows of some probes, from which batches are taken: a Plan, or a PairPlan."""

    @property
    def num_nodes(self) -> int: ...
    def __len__(self) -> int: ...
    def next_batch(self, start: int, batch_tokens: int) -> tuple[Any, int]: ...


class Engine:
    """Scores probes with a model."""

    def __init__(
        self, model: Any, name: str, forward_config: ForwardConfig, batch_tokens: int
    ) -> None:
        """Create an engine.

        batch_tokens: tokens per forward, a shared prefix counted once. It is halved if a batch does
        not fit into memory.
        """
        self.model, self.name, self.forward_config = model, name, forward_config
        self.batch_tokens = batch_tokens
        max_logits = MAX_HEAD_LOGITS.get(self.device.type, DEFAULT_MAX_HEAD_LOGITS)
        self.head_rows = max(1, max_logits // vocabulary_size(model))
        self.token_sets: tuple[Tensor, ...] = ()
        """The sets of token ids that negative targets stand for; see `set_token_sets`."""
        self._distribution_reader: DistributionReader | None = None
        self.last_layer: LastLayer | None = None
        """The layer that can run only at read positions; found before the first batch."""
        self.rotary_patch = RotaryPatch.for_model(model)
        self.kernels: ModuleSwaps | None = None
        """The layers replaced by CPU kernels; None if the shortcut is off."""
        self.model_state = ModelState.capture(model) if forward_config.restores_state else None
        self._searched_last_layer = False
        self.batches_computed = self.nodes_computed = self.head_rows_computed = 0
        """Batches, tokens and LM-head rows computed so far, from which benchmarks count
        operations."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def enable_cpu_kernels(self) -> None:
        """Replace layers by faster ones with the same outputs (scoring.cpu_kernels)."""

        def swap() -> None:
            pack_linears(self.model, self.batch_tokens, self.head_rows)
            fuse_layers(self.model)

        self.kernels = ModuleSwaps.record(self.model, swap)
        if self.model_state is not None:
            self.model_state = ModelState.capture(self.model)

    @property
    def shortcuts(self) -> list[str]:
        """The shortcuts in use, in the order in which a failed self-test turns them off."""
        unused = set()
        if self.forward_config.native_attention != "causal":
            unused.add("one row per text")  # concerns causal rows only
        if self.forward_config.layout == "packed":
            unused.add("batches")  # concerns plain rows only
        used = [CPU_KERNELS] if self.kernels is not None else []
        for name, changes in SHORTCUTS.items():
            is_on = replace(self.forward_config, **changes) != self.forward_config
            if is_on and name not in unused:
                used.append(name)
        return used

    def disable_shortcut(self, name: str) -> None:
        """Turn one of SHORTCUTS off."""
        if name == CPU_KERNELS:
            if self.kernels is not None:
                self.kernels.undo()
            self.kernels, self.rotary_patch = None, RotaryPatch({})
            if self.model_state is not None:
                self.model_state = ModelState.capture(self.model)
        self.forward_config = replace(self.forward_config, **SHORTCUTS[name])

    @contextmanager
    def without_shortcuts(self, names: Sequence[str]) -> Iterator[None]:
        """Turn shortcuts off within the context, and undo what else is turned off in it."""
        before = self.forward_config, self.kernels, self.rotary_patch, self.batch_tokens
        for name in names:
            self.disable_shortcut(name)
        try:
            yield
        finally:
            were_undone = self.kernels is None
            self.forward_config, self.kernels, self.rotary_patch, self.batch_tokens = before
            if were_undone and self.kernels is not None:
                self.kernels.redo()
            if self.model_state is not None:
                self.model_state = ModelState.capture(self.model)

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: Callable[[float], None] | None = None
    ) -> Floats:
        """Return summed log-probabilities (num_texts,) in nats.

        tick: receives the share (0..1) of the work that was just done. Raises CheckpointError if
        the model returns NaN, or if a single row does not fit into memory, and PluginError for
        token ids that the model does not have.
        """
        probes = list(probes)
        self._check_token_ids(probes)
        scores = self._zeros(num_texts)
        with lock_model(self.model), torch.inference_mode():
            if not self.forward_config.whole_rows:
                causal_probes = [p for p in probes if p.attention == "causal"]
                scores += self._score_prefixes(causal_probes, num_texts)
                probes = [p for p in probes if p.attention != "causal"]
            if probes:
                scores += self._score_plans(self._build_plans(probes), num_texts, tick)
            return scores

    def read_distributions(
        self,
        probes: Iterable[Probes],
        num_reads: int,
        top_k: int = 0,
        tick: Callable[[float], None] | None = None,
    ) -> Floats:
        """Return the values (num_reads, 3 + 2 * top_k) of DistributionReader for each read.

        `text_index` of the probes is the index of the read; each has one. Raises as `score_probes`.
        """
        with lock_model(self.model):
            self._distribution_reader = DistributionReader(top_k)
            try:
                return self.score_probes(probes, num_reads, tick)
            finally:
                self._distribution_reader = None

    def _zeros(self, count: int) -> Floats:
        """Return zeros for `count` sums of values: (count,), or (count, width) of distributions."""
        reader = self._distribution_reader
        return np.zeros(count if reader is None else (count, reader.width))

    def _build_plans(self, probes: Sequence[Probes]) -> Sequence[BatchPlan]:
        return build_plans(probes, padding_limits(self.device))

    def _check_token_ids(self, probes: Sequence[Probes]) -> None:
        """Raise PluginError for rows with token ids that the model has no embedding for."""
        num_tokens = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        if num_tokens is None:
            return
        for ids in (ids for p in probes for ids in (p.ids, p.source_ids) if ids is not None):
            wrong_ids = ids[(ids < 0) | (ids >= num_tokens)]
            if len(wrong_ids):
                raise PluginError(
                    f"{self.name}: a scoring method reads the token id {wrong_ids[0]}, but the "
                    f"model has the ids 0 to {num_tokens - 1}",
                    hint="repair or update the package of the method (--method)",
                )

    def _score_plans(
        self, plans: Sequence[BatchPlan], num_texts: int, tick: Callable[[float], None] | None
    ) -> Floats:
        scores = self._zeros(num_texts)
        total_nodes = sum(plan.num_nodes for plan in plans)
        max_pending = MAX_PENDING_BATCHES.get(self.device.type, DEFAULT_MAX_PENDING_BATCHES)
        pending: list[tuple[Tensor, NDArray[Any], int]] = []
        nodes_left = total_nodes

        def add_pending() -> None:
            """Add the values of the computed batches to the scores."""
            nonlocal nodes_left
            values = read_back([logp for logp, _, _ in pending])
            for logp, (_, text_index, num_nodes) in zip(values, pending, strict=True):
                self._raise_if_nan(logp)
                scores[:] += _sum_by_text(logp, text_index, num_texts)
                # A prefix that two batches share is computed twice and reported once.
                num_nodes = min(num_nodes, nodes_left)
                nodes_left -= num_nodes
                if tick is not None:
                    tick(num_nodes / total_nodes)
            pending.clear()

        for plan in plans:
            start = 0
            while start < len(plan):
                batch, end = plan.next_batch(start, self.batch_tokens)
                try:
                    logp = self._batch_logprobs(batch)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if end == start + 1 or self.batch_tokens <= 1:
                        raise CheckpointError(
                            f"{self.name}: one row of {batch.num_nodes} tokens does not fit into "
                            "memory",
                            hint="use a bigger device, --dtype bfloat16, or --max-length",
                        ) from error
                    self.batch_tokens = max(1, batch.num_nodes // 2)
                    continue
                pending.append((logp, batch.text_index, batch.num_nodes))
                self.batches_computed += 1
                self.nodes_computed += batch.num_nodes
                self.head_rows_computed += len(batch.read_nodes)
                start = end
                if len(pending) == max_pending:
                    add_pending()
        add_pending()
        return scores

    def _raise_if_nan(self, logp: Floats) -> None:
        if np.isnan(logp).any():
            raise CheckpointError(
                f"{self.name} returns NaN",
                hint="the weights are damaged, or the dtype is too small: --dtype float32",
            )

    def _batch_logprobs(self, batch: Any) -> Tensor:
        """Return the k log-probabilities that the batch asks for, (k,) or (k, width), on the
        device.
        """
        longest = max(length for _, length in batch.blocks)
        max_packed = self.forward_config.max_packed_length or longest
        if self.forward_config.layout == "rows" or longest > max_packed:
            self.set_attention(self.forward_config.native_implementation)
            return self._plain_logprobs(batch)
        self.set_attention(PACKED_ATTENTION)
        try:
            return self._packed_logprobs(batch)
        except BeyondWindowError as error:
            is_native = batch.attention == self.forward_config.native_attention
            if not is_native and not self.forward_config.obeys_masks:
                native = self.forward_config.native_attention
                raise CheckpointError(
                    f"{self.name}: rows of {longest} tokens exceed its local attention window",
                    hint=f"longer rows can only be scored with {native} attention",
                ) from error
            self.set_attention(self.forward_config.native_implementation)
            return self._plain_logprobs(batch)

    def set_attention(self, implementation: str) -> None:
        """Choose the model's attention implementation."""
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def _packed_logprobs(self, batch: PackedBatch) -> Tensor:
        if self.forward_config.last_layer_at_reads and not self._searched_last_layer:
            # This forward only finds the layer. The batch is then computed like all others.
            _, modules = self._packed_forward(batch)
            self.last_layer = LastLayer.from_model(self.model, modules)
            self._searched_last_layer = True
        return self._packed_forward(batch)[0]

    def _packed_forward(self, batch: PackedBatch) -> tuple[Tensor, list[nn.Module]]:
        """Return the k log-probabilities that the batch asks for, and the attention modules in the
        order of their calls.
        """
        last_layer = self.last_layer if self._narrowing_pays(batch) else None
        layout = PackedLayout.from_batch(
            batch, padding_limits(self.device), last_layer is not None, self.batch_tokens
        )
        forward = PackedForward(layout)
        ids, positions = layout.arrange(batch.ids), layout.arrange(self._position_ids(batch))
        token = current_forward.set(forward)
        try:
            with nullcontext() if last_layer is None else last_layer.at_reads(forward):
                logp = self._forward_logprobs(
                    {"input_ids": ids, "position_ids": positions},
                    Reads(layout.read_positions, batch.read_index, batch.target),
                    forward,
                )
        finally:
            current_forward.reset(token)
        return logp, forward.attention_modules

    def _position_ids(self, batch: PackedBatch) -> NDArray[np.int64]:
        """Return the position ids (n,) of a batch's nodes, as in plain rows of the model."""
        padding_id = self.forward_config.padding_id
        if padding_id is None:
            return batch.positions + self.forward_config.first_position
        ids = batch.ids if batch.gather_index is None else batch.ids[batch.gather_index]
        positions, start = np.empty(len(ids), np.int64), 0
        for rows, length in batch.blocks:
            end = start + rows * length
            is_counted = ids[start:end].reshape(rows, length) != padding_id
            positions[start:end] = (is_counted.cumsum(1) * is_counted).ravel() + padding_id
            start = end
        return positions if batch.inverse_index is None else positions[batch.inverse_index]

    def _narrowing_pays(self, batch: PackedBatch) -> bool:
        """Return whether running the last layer only at the read positions saves time.

        It does if attention is full, no row is repeated, and some positions are read, but at most
        half of them.
        """
        is_plain = batch.attention == "full" and batch.gather_index is None
        has_few_reads = 0 < 2 * len(batch.read_nodes) <= len(batch.ids)
        return self.forward_config.last_layer_at_reads and is_plain and has_few_reads

    def _plain_logprobs(self, batch: PackedBatch) -> Tensor:
        """Return the k log-probabilities that the batch asks for, from plain rows with the model's
        native attention.
        """
        ids = batch.ids if batch.gather_index is None else batch.ids[batch.gather_index]
        inverse = np.arange(len(batch.ids)) if batch.inverse_index is None else batch.inverse_index
        position = inverse[batch.read_nodes]  # of each read node in the concatenated rows
        parts, start = [], 0
        for rows, length in self._plain_blocks(batch):
            end = start + rows * length
            node_in_block = (position >= start) & (position < end)
            logprob_in_block = node_in_block[batch.read_index]
            if logprob_in_block.any():
                index_in_block = np.cumsum(node_in_block) - 1  # of each read node of the block
                logp = self._forward_logprobs(
                    {"input_ids": ids[start:end].reshape(rows, length)},
                    Reads(
                        position[node_in_block] - start,
                        index_in_block[batch.read_index[logprob_in_block]],
                        batch.target[logprob_in_block],
                    ),
                    **self._mask_inputs(length, batch.attention),
                )
                parts.append((np.flatnonzero(logprob_in_block), logp))
            start = end
        if not parts:
            return torch.zeros(self._zeros(0).shape, device=self.device)
        order = np.argsort(np.concatenate([index for index, _ in parts]))
        values = torch.cat([value for _, value in parts])
        return values.index_select(0, to_device(order, self.device))

    def _mask_inputs(self, length: int, attention: Attention) -> dict[str, Tensor]:
        """Return the inputs that give plain rows an attention; none for the native one."""
        if attention == self.forward_config.native_attention:
            return {}
        return attention_mask_inputs(length, attention)

    def _plain_blocks(self, batch: PackedBatch) -> Iterator[tuple[int, int]]:
        """Yield (rows, length) of each plain forward. A block of the batch is split if rows are not
        batched, or if the logits of all positions would need too much memory.
        """
        for rows, length in batch.blocks:
            max_rows = rows if self.forward_config.batched else 1
            if not self.forward_config.lm_head_at_reads:
                max_rows = min(max_rows, max(1, self.head_rows // length))
            for start in range(0, rows, max_rows):
                yield min(max_rows, rows - start), length

    def _score_prefixes(self, probes: Sequence[Probes], num_texts: int) -> Floats:
        """Return the scores of causal probes, each prediction read at the end of its own prefix.

        This is the definition of the score, and slow.
        """
        targets_by_prefix: dict[bytes, list[tuple[int, int]]] = {}
        for p in probes:
            for row, position, target, text in zip(
                p.row, p.position, p.target, p.text_index, strict=True
            ):
                prefix = np.asarray(p.ids[row, : position + 1], np.int64).tobytes()
                targets_by_prefix.setdefault(prefix, []).append((int(target), int(text)))
        scores = self._zeros(num_texts)
        self.set_attention(self.forward_config.native_implementation)
        for prefix, targets in targets_by_prefix.items():
            ids = np.frombuffer(prefix, np.int64)[None].copy()
            target, text = (np.array(column, np.int64) for column in zip(*targets, strict=True))
            length = ids.shape[1]
            last_position = np.array([length - 1], np.int64)
            values = self._forward_logprobs(
                {"input_ids": ids},
                Reads(last_position, np.zeros(len(target), np.int64), target),
                **self._mask_inputs(length, "causal"),
            )
            [logp] = read_back([values])
            self._raise_if_nan(logp)
            scores += _sum_by_text(logp, text, num_texts)
        return scores

    def _forward_logprobs(
        self,
        input_arrays: Mapping[str, NDArray[Any]],
        reads: Reads,
        packed: PackedForward | None = None,
        **mask_inputs: Tensor,
    ) -> Tensor:
        """Run the model on inputs (r, t) and return the log-probabilities (k,) of the targets, or
        what is read of their distributions (k, width), on the device.

        input_arrays: inputs of the model, (r, t) each. packed: the state of a packed forward, which
        receives its layout's arrays on the device. mask_inputs: other inputs, of any shape.
        """
        layout_arrays = {} if packed is None else packed.layout.arrays
        tensors = copy_together({**input_arrays, **reads.arrays, **layout_arrays}, self.device)
        if packed is not None:
            packed.set_tensors(tensors)
        inputs = {name: tensors[name] for name in input_arrays}
        inputs |= {name: to_device(mask, self.device) for name, mask in mask_inputs.items()}
        output = hidden = None
        try:
            with self.rotary_patch.active():
                if self.forward_config.lm_head_at_reads:
                    output = self.model.base_model(**inputs, **no_cache_kwargs(self.model))
                    hidden = output[0]
                else:  # (r, t, vocabulary)
                    hidden = plain_logits(self.model, **inputs)
        finally:
            if self.model_state is not None:
                self.model_state.restore()
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if len(hidden) != len(reads.positions):  # equal if the last layer ran at these positions
            hidden = hidden.index_select(0, tensors["read_positions"])
        compute_logits = None if output is None else partial(self._lm_head_logits, output)
        return self._read_logprobs(hidden, reads, tensors, compute_logits)

    def _read_logprobs(
        self,
        hidden: Tensor,
        reads: Reads,
        tensors: Mapping[str, Tensor],
        compute_logits: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Return the log-probabilities (k,) of `reads` from hidden states (h, d) at its positions.

        tensors: `reads.arrays` on the device. compute_logits: function from hidden states to
        logits; None = `hidden` already holds the logits.
        """
        read_index, target = tensors["read_index"], tensors["target"]
        parts = []
        for start in range(0, len(hidden), self.head_rows):
            logits, block = hidden, slice(None)
            block_index, block_target = read_index, target
            if len(hidden) > self.head_rows:
                logits = hidden[start : start + self.head_rows]
                block = slice(*np.searchsorted(reads.index, [start, start + self.head_rows]))
                block_index, block_target = read_index[block] - start, target[block]
            if compute_logits is not None:
                logits = compute_logits(logits)
            token_sets = self._token_sets_of(reads.target[block])
            logp = self._target_logprobs(logits, block_index, block_target, token_sets)
            if self._distribution_reader is not None:
                logp = self._distribution_reader.read(logits, block_index, block_target, logp)
            parts.append(logp)
        if not parts:
            return torch.zeros(self._zeros(0).shape, device=self.device)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _token_sets_of(self, target: NDArray[np.int64]) -> dict[int, Tensor]:
        """Return the token sets of the negative ones of some targets, by target."""
        numbers = np.unique(target[target < 0]).tolist()
        assert all(-number <= len(self.token_sets) for number in numbers), "call set_token_sets"
        return {number: self.token_sets[-number - 1] for number in numbers}

    def _target_logprobs(
        self,
        logits: Tensor,
        read_index: Tensor,
        target: Tensor,
        token_sets: Mapping[int, Tensor],
    ) -> Tensor:
        """Return the log-probabilities (k,) of `logit_readers.target_logprobs`."""
        return target_logprobs(logits, read_index, target, token_sets)

    def set_token_sets(self, token_sets: Sequence[Ints]) -> None:
        """Set the sets of token ids that the targets -1, -2, ... stand for."""
        self.token_sets = tuple(
            torch.from_numpy(np.asarray(ids, np.int64)).to(self.device) for ids in token_sets
        )

    def _lm_head_logits(self, output: Any, hidden: Tensor) -> Tensor:
        """Return the logits (h, vocabulary) of hidden states (h, d).

        The model's forward runs with a base model that only returns `output`, with these hidden
        states in it. So all that the model computes between hidden states and logits (transforms,
        biases, scales, soft caps) is applied.
        """
        if isinstance(output, tuple):
            output = (hidden.unsqueeze(0), *output[1:])
        else:
            output["last_hidden_state"] = hidden.unsqueeze(0)
        base_model = self.model.base_model
        decoder = getattr(base_model, "decoder", None)  # OPT's LM head calls it directly
        replaced = [base_model] if decoder is None else [base_model, decoder]
        for module in replaced:
            module.forward = lambda *_args, **_inputs: output
        try:
            unused_ids = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
            model_output = self.model(input_ids=unused_ids, **no_cache_kwargs(self.model))
        finally:
            for module in replaced:
                del module.forward
        logits: Tensor = model_output.logits[0]
        if len(logits) != len(hidden):
            raise CheckpointError(
                f"{self.name}: the LM head of {type(self.model).__name__} cannot be run alone"
            )
        return logits


def _sum_by_text(values: Floats, text_index: NDArray[Any], num_texts: int) -> Floats:
    """Return the sums (num_texts, ...) of values (k, ...) by their text_index (k,)."""
    sums: Floats = np.zeros((num_texts, *values.shape[1:]))
    if values.ndim == 1:
        sums += np.bincount(text_index, weights=values, minlength=num_texts)
    else:
        np.add.at(sums, text_index, values)
    return sums


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(
        error
    )
