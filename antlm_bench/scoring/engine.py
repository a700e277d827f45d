"""The engine: probes in, log-probabilities out.

It runs the model's own forward, whatever the architecture, with two interventions. Attention is
computed on the rows that a batch's nodes form (scoring.attention, registered with transformers).
The LM head, and the last layer where possible, runs at the positions that are read only. Models
whose attention cannot be replaced run on plain rows of one exact length instead. Which of this a
model can do is tried when it is opened (`ForwardConfig`). Each of these shortcuts can be turned off
(`Engine.disable_shortcut`); without any, the model reads one row, or one prefix, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.attention import (
    PACKED_ATTENTION,
    BeyondWindowError,
    LastLayer,
    PackedLayout,
    current_layout,
)
from antlm_bench.scoring.cpu_kernels import RotaryPatch, fuse_layers, pack_linears
from antlm_bench.scoring.model_state import ModelState, ModuleSwaps
from antlm_bench.scoring.plan import PackedBatch, Plan, build_plans
from antlm_bench.types import WORD_START_TARGET, Attention, Floats, Ints, Probes

Layout = Literal["packed", "rows"]
EXP_SUM_RANGE = (1e-30, 1e37)  # sums of exponentials that fp32 holds without loss of precision
LOGSUMEXP_ROWS = 32  # rows of logits reduced at a time, so that temporaries stay in cache
# Logits held at a time. On a CPU 16 MiB of fp32: larger blocks are fresh pages at every batch.
MAX_HEAD_LOGITS = {"cpu": 2**22}
DEFAULT_MAX_HEAD_LOGITS = 2**28


@dataclass(frozen=True, slots=True)
class ForwardConfig:
    """How a model's forward is run: facts about it, and the shortcuts that keep its numbers."""

    native_implementation: str
    """Name of the model's own attention implementation."""
    native_attention: Attention
    """The attention that it has by itself: causal or full."""
    layout: Layout = "rows"
    """packed: nodes of a prefix tree in one row; rows: plain rows of one length."""
    first_position: int = 0
    """Position id of the first token of a packed row."""
    padding_id: int | None = None
    """Token id that does not count as a position (RoBERTa's rule); None: every token counts."""
    packed_length: int | None = None
    """Longest row that may be packed, for models whose rotary angles depend on the longest row of a
    batch; None: any."""
    narrow: bool = False
    """Run the last layer at the read positions only."""
    masks: bool = False
    """A 4-D mask decides which way plain rows attend."""
    split_head: bool = True
    """Run the LM head at the read positions only."""
    batched: bool = True
    """Run several rows of one length in one forward."""
    whole_rows: bool = True
    """Read all causal predictions of a text from one row; False: each from its own prefix."""
    restores: bool = False
    """The forward changes the model, so that its state is restored after each."""


CPU_KERNELS = "CPU kernels"
# Name of each shortcut -> changes of the ForwardConfig that turn it off.
SHORTCUTS: dict[str, dict[str, Any]] = {
    CPU_KERNELS: {},
    "last layer at read positions": {"narrow": False},
    "packed rows": {"layout": "rows", "narrow": False},
    "LM head at read positions": {"split_head": False, "narrow": False, "layout": "rows"},
    "batches": {"batched": False, "narrow": False, "layout": "rows"},
    "one row per text": {"whole_rows": False},
}


class Engine:
    """A model that scores probes."""

    def __init__(self, model: Any, name: str, forward_config: ForwardConfig, budget: int) -> None:
        """Create an engine. budget: nodes per forward; halved when a batch does not fit into
        memory.
        """
        self.model, self.name, self.forward_config = model, name, forward_config
        self.budget = budget
        max_logits = MAX_HEAD_LOGITS.get(self.device.type, DEFAULT_MAX_HEAD_LOGITS)
        self.head_rows = max(1, max_logits // vocabulary_size(model))
        self.word_start_ids: Tensor | None = None
        """The token ids (k,) that WORD_START_TARGET stands for; see `set_word_start_ids`."""
        self.last_layer: LastLayer | None = None
        """The layer that can run at read positions only; searched before the first batch."""
        self.rotary_patch = RotaryPatch.for_model(model)
        self.kernels: ModuleSwaps | None = None
        self.model_state = ModelState.capture(model) if forward_config.restores else None
        self._lock = RLock()  # a forward sets attributes of its model: one thread at a time
        self._searched_last_layer = False
        self.nodes_computed = self.head_rows_computed = 0
        """Nodes and LM-head rows computed so far, for the benchmark's count of arithmetic."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def enable_cpu_kernels(self) -> None:
        """Replace layers by faster ones (scoring.cpu_kernels), each tried against the plain one."""

        def swap() -> None:
            pack_linears(self.model, self.budget, self.head_rows)
            fuse_layers(self.model)

        self.kernels = ModuleSwaps.record(self.model, swap)
        if self.model_state is not None:
            self.model_state = ModelState.capture(self.model)

    @property
    def shortcuts(self) -> list[str]:
        """The names of the shortcuts in use, in the order in which a failed self-test turns them
        off.
        """
        unused = {"one row per text"} if self.forward_config.native_attention == "full" else set()
        if self.forward_config.layout == "packed":
            unused.add("batches")  # of plain rows, which come into use when packed rows are off
        used = [CPU_KERNELS] if self.kernels is not None else []
        for name, changes in SHORTCUTS.items():
            if (
                name not in unused
                and replace(self.forward_config, **changes) != self.forward_config
            ):
                used.append(name)
        return used

    def disable_shortcut(self, name: str) -> None:
        """Turn one of SHORTCUTS off, for good."""
        if name == CPU_KERNELS:
            if self.kernels is not None:
                self.kernels.undo()
            self.kernels, self.rotary_patch = None, RotaryPatch({})
            if self.model_state is not None:
                self.model_state = ModelState.capture(self.model)
        self.forward_config = replace(self.forward_config, **SHORTCUTS[name])

    @contextmanager
    def without_shortcuts(self, names: Sequence[str]) -> Iterator[None]:
        """Turn shortcuts off for the duration of the context."""
        before = self.forward_config, self.kernels, self.rotary_patch
        for name in names:
            self.disable_shortcut(name)
        try:
            yield
        finally:
            self.forward_config, self.kernels, self.rotary_patch = before
            if CPU_KERNELS in names and self.kernels is not None:
                self.kernels.redo()
            if self.model_state is not None:
                self.model_state = ModelState.capture(self.model)

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: Callable[[float], None] | None = None
    ) -> Floats:
        """Return summed log-probabilities (num_texts,) in nats. tick: receives the share of the
        work just done.

        Raises CheckpointError if the model returns NaN, or if a single row does not fit into
        memory.
        """
        probes = list(probes)
        scores = np.zeros(num_texts)
        with self._lock, torch.inference_mode():
            if not self.forward_config.whole_rows:
                prefixes = [p for p in probes if p.attention == "causal"]
                scores += self._score_prefixes(prefixes, num_texts)
                probes = [p for p in probes if p.attention != "causal"]
            if probes:
                scores += self._score_plans(build_plans(probes), num_texts, tick)
            return scores

    def _score_plans(
        self, plans: Sequence[Plan], num_texts: int, tick: Callable[[float], None] | None
    ) -> Floats:
        scores = np.zeros(num_texts)
        total_nodes = sum(plan.num_nodes for plan in plans)
        for plan in plans:
            start = 0
            while start < len(plan):
                batch, end = plan.next_batch(start, self.budget)
                try:
                    logp = self._batch_logprobs(batch)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not _is_out_of_memory(error):
                        raise
                    if end == start + 1 or self.budget <= 1:
                        raise CheckpointError(
                            f"{self.name}: one row of {len(batch.ids)} tokens does not fit into "
                            "memory",
                            hint="use a bigger device, --dtype bfloat16, or --max-length",
                        ) from error
                    self.budget = max(1, len(batch.ids) // 2)
                    continue
                if np.isnan(logp).any():
                    raise CheckpointError(
                        f"{self.name} answers NaN",
                        hint="the weights are damaged, or the dtype is too small: --dtype float32",
                    )
                scores += np.bincount(batch.text, weights=logp, minlength=num_texts)
                self.nodes_computed += len(batch.ids)
                self.head_rows_computed += len(batch.read_nodes)
                start = end
                if tick is not None:
                    tick(len(batch.ids) / total_nodes)
        return scores

    def _batch_logprobs(self, batch: PackedBatch) -> Floats:
        """Return the log-probabilities of the batch's reads (k,)."""
        longest = max(length for _, length in batch.blocks)
        max_packed = self.forward_config.packed_length or longest
        if self.forward_config.layout == "rows" or longest > max_packed:
            self.set_attention(self.forward_config.native_implementation)
            return self._plain_logprobs(batch)
        self.set_attention(PACKED_ATTENTION)
        try:
            return self._packed_logprobs(batch)
        except BeyondWindowError as error:
            if batch.attention != self.forward_config.native_attention:
                native = self.forward_config.native_attention
                raise CheckpointError(
                    f"{self.name}: rows of {longest} tokens exceed its attention window",
                    hint=f"it can only be scored with {native} attention at that length",
                ) from error
            self.set_attention(self.forward_config.native_implementation)
            return self._plain_logprobs(batch)

    def set_attention(self, implementation: str) -> None:
        """Choose the model's attention implementation."""
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def _packed_logprobs(self, batch: PackedBatch) -> Floats:
        if self.forward_config.narrow and not self._searched_last_layer:
            # A forward of its own, so that the first batch is computed like all others.
            _, modules = self._packed_forward(batch)
            self.last_layer = LastLayer.from_model(self.model, modules)
            self._searched_last_layer = True
        return self._packed_forward(batch)[0]

    def _packed_forward(self, batch: PackedBatch) -> tuple[Floats, list[nn.Module]]:
        """Return the log-probabilities of the batch's reads, and the attention modules in the order
        of their calls.
        """
        layout = PackedLayout.from_batch(batch, self.device)
        token = current_layout.set(layout)
        try:
            with ExitStack() as stack:
                if last_layer := self._last_layer_for(batch):
                    stack.enter_context(
                        last_layer.at_positions(layout, batch.read_nodes, self.device)
                    )
                ids = np.asarray(batch.ids, np.int64)[None]
                positions = torch.from_numpy(self._position_ids(batch)[None])
                logp = self._forward_logprobs(
                    ids,
                    batch.read_nodes,
                    batch.read_index,
                    batch.target,
                    {"position_ids": positions},
                )
        finally:
            current_layout.reset(token)
        return logp, layout.attention_modules

    def _position_ids(self, batch: PackedBatch) -> NDArray[np.int64]:
        """Position ids of a batch's nodes (n,), as the model would count them in a row of its
        own.
        """
        first, padding = self.forward_config.first_position, self.forward_config.padding_id
        if padding is None:
            return batch.positions + first
        ids = batch.ids if batch.gather_index is None else batch.ids[batch.gather_index]
        positions, top = np.empty(len(ids), np.int64), 0
        for rows, length in batch.blocks:
            counts = ids[top : top + rows * length].reshape(rows, length) != padding
            positions[top : top + rows * length] = (counts.cumsum(1) * counts).ravel() + padding
            top += rows * length
        return positions if batch.inverse_index is None else positions[batch.inverse_index]

    def _last_layer_for(self, batch: PackedBatch) -> LastLayer | None:
        """Return the last layer if it pays to run it at the read positions only: where they are
        few, in unshared rows that attend in full.
        """
        pays = 2 * len(batch.read_nodes) <= len(batch.ids)
        unshared = batch.attention == "full" and batch.gather_index is None
        return self.last_layer if self.forward_config.narrow and unshared and pays else None

    def _plain_logprobs(self, batch: PackedBatch) -> Floats:
        """Score a batch with one forward per block of equal-length rows: no packing, no padding,
        the model's own attention.
        """
        ids = batch.ids if batch.gather_index is None else batch.ids[batch.gather_index]
        inverse = np.arange(len(batch.ids)) if batch.inverse_index is None else batch.inverse_index
        position = inverse[batch.read_nodes]  # of each read node, in the rows one after the other
        turned = batch.attention != self.forward_config.native_attention
        logp, top = np.empty(len(batch.read_index)), 0
        for rows, length in self._plain_blocks(batch):
            end = top + rows * length
            in_block = (position >= top) & (position < end)
            reads = in_block[batch.read_index]
            if reads.any():
                number = np.cumsum(in_block) - 1
                logp[reads] = self._forward_logprobs(
                    np.asarray(ids[top:end], np.int64).reshape(rows, length),
                    position[in_block] - top,
                    number[batch.read_index[reads]],
                    batch.target[reads],
                    attention_mask_inputs(length, batch.attention) if turned else None,
                )
            top = end
        return logp

    def _plain_blocks(self, batch: PackedBatch) -> Iterator[tuple[int, int]]:
        """Return the (rows, length) of each plain forward: a batch's blocks, cut into single rows
        or where all logits are held at once.
        """
        for rows, length in batch.blocks:
            max_rows = rows if self.forward_config.batched else 1
            if not self.forward_config.split_head:
                max_rows = min(max_rows, max(1, self.head_rows // length))
            for top in range(0, rows, max_rows):
                yield min(max_rows, rows - top), length

    def _score_prefixes(self, probes: Sequence[Probes], num_texts: int) -> Floats:
        """Read each causal prediction from a row that ends there: the definition, and slow."""
        reads_by_prefix: dict[bytes, list[tuple[int, int]]] = {}
        for p in probes:
            for row, position, target, text in zip(
                p.row, p.position, p.target, p.text_index, strict=True
            ):
                prefix = np.asarray(p.ids[row, : position + 1], np.int64).tobytes()
                reads_by_prefix.setdefault(prefix, []).append((int(target), int(text)))
        scores = np.zeros(num_texts)
        self.set_attention(self.forward_config.native_implementation)
        for prefix, reads in reads_by_prefix.items():
            ids = np.frombuffer(prefix, np.int64)[None]
            target, text = (np.array(column, np.int64) for column in zip(*reads, strict=True))
            turned = self.forward_config.native_attention != "causal"
            last = np.array([ids.shape[1] - 1], np.int64)
            logp = self._forward_logprobs(
                ids.copy(),
                last,
                np.zeros(len(target), np.int64),
                target,
                attention_mask_inputs(ids.shape[1], "causal") if turned else None,
            )
            if np.isnan(logp).any():
                raise CheckpointError(
                    f"{self.name} answers NaN", hint="the weights are damaged: --dtype float32"
                )
            scores += np.bincount(text, weights=logp, minlength=num_texts)
        return scores

    def _forward_logprobs(
        self,
        ids: NDArray[np.int64],
        read_positions: NDArray[np.int64],
        read_index: NDArray[np.int64],
        target: NDArray[np.int64],
        extra_inputs: Mapping[str, Tensor] | None,
    ) -> Floats:
        """Run ids (r, t) and return the log-probabilities (k,) of the targets.

        read_positions (h,): indices into the r * t positions whose distributions are needed,
        sorted.
        read_index (k,): which of them each target (k,) is read from.
        """
        device = self.device
        inputs = {"input_ids": torch.from_numpy(ids)} | dict(extra_inputs or {})
        inputs = {name: value.to(device) for name, value in inputs.items()}
        output = hidden = None
        try:
            with self.rotary_patch.active():
                if self.forward_config.split_head:
                    output = self.model.base_model(**inputs, **no_cache_kwargs(self.model))
                    hidden = output[0]
                else:  # (r, t, vocabulary)
                    hidden = plain_logits(self.model, **inputs)
        finally:
            if self.model_state is not None:
                self.model_state.restore()
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if len(hidden) != len(read_positions):  # else the last layer has left out the rest already
            hidden = hidden.index_select(0, torch.from_numpy(read_positions).to(device))
        logp = np.empty(len(read_index))
        for top in range(0, len(read_positions), self.head_rows):
            in_block = (read_index >= top) & (read_index < top + self.head_rows)
            logits = hidden[top : top + self.head_rows]
            if output is not None:
                logits = self._lm_head_logits(output, logits)
            index, targets = (
                torch.from_numpy(x[in_block]).to(device) for x in (read_index - top, target)
            )
            word_starts = self._word_start_ids_for(target[in_block])
            block_logp = self._target_logprobs(logits, index, targets, word_starts)
            logp[in_block] = block_logp.cpu().double().numpy()
        return logp

    def _target_logprobs(
        self, logits: Tensor, read_index: Tensor, target: Tensor, word_start_ids: Tensor | None
    ) -> Tensor:
        """Return the log softmax of logits (h, vocabulary) at (read_index, target), (k,), reduced
        in fp32 whatever the dtype.

        WORD_START_TARGET stands for `word_start_ids`, whose probabilities are added up.
        """
        chosen = logits[
            read_index, target if word_start_ids is None else target.clamp(min=0)
        ].float()
        if word_start_ids is not None:
            chosen = torch.where(
                target == WORD_START_TARGET,
                fast_logsumexp(logits[:, word_start_ids])[read_index],
                chosen,
            )
        return chosen - fast_logsumexp(logits)[read_index]

    def set_word_start_ids(self, ids: Ints) -> None:
        """Set the token ids (k,) that WORD_START_TARGET stands for."""
        self.word_start_ids = torch.from_numpy(np.asarray(ids, np.int64)).to(self.device)

    def _word_start_ids_for(self, target: NDArray[np.int64]) -> Tensor | None:
        if len(target) == 0 or target.min() != WORD_START_TARGET:
            return None
        assert self.word_start_ids is not None, "call set_word_start_ids first"
        return self.word_start_ids

    def _lm_head_logits(self, output: Any, hidden: Tensor) -> Tensor:
        """Return the logits (h, vocabulary) of hidden states (h, d).

        The model's own forward runs around a body that returns `output` with these states, so that
        whatever lies between body and logits (transforms, biases, scales, caps) is its own.
        """
        if isinstance(output, tuple):
            output = (hidden.unsqueeze(0), *output[1:])
        else:
            output["last_hidden_state"] = hidden.unsqueeze(0)
        # OPT's LM head calls the decoder inside the base model.
        base_model = self.model.base_model
        decoder = getattr(base_model, "decoder", None)
        bodies = [base_model] if decoder is None else [base_model, decoder]
        for body in bodies:
            body.forward = lambda *_args, **_inputs: output
        try:
            unused = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
            logits: Tensor = self.model(input_ids=unused, **no_cache_kwargs(self.model)).logits[0]
        finally:
            for body in bodies:
                del body.forward
        if len(logits) != len(hidden):
            raise CheckpointError(
                f"{self.name}: {type(self.model).__name__} has no body apart from its LM head"
            )
        return logits


def plain_logits(model: Any, **inputs: Tensor) -> Tensor:
    """Return the logits (r, t, vocabulary) of a model's own forward of `input_ids` (r, t).

    Raises CheckpointError for a forward that fails or returns something else.
    """
    try:
        logits: Tensor = model(**inputs, **no_cache_kwargs(model)).logits
        has_shape = logits.shape[:2] == inputs["input_ids"].shape and logits.dim() == 3
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # code of others fails as it likes
        message = (str(error).strip() or "no message").splitlines()[0][:200]
        raise CheckpointError(
            f"the forward of {type(model).__name__} fails on plain token ids: "
            f"{type(error).__name__}: {message}",
            hint="try the checkpoint in transformers by itself: model(input_ids=...)",
        ) from error
    if not has_shape:
        raise CheckpointError(
            f"{type(model).__name__} answers with logits of shape {tuple(logits.shape)} for "
            "input_ids of shape "
            f"{tuple(inputs['input_ids'].shape)}",
            hint="scoring needs the logits of every position, (rows, tokens, vocabulary)",
        )
    return logits


def vocabulary_size(model: Any) -> int:
    """Return the number of logits of a position: the rows of the output embedding, or where there
    is none, the configured size.
    """
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def attention_mask_inputs(length: int, attention: Attention) -> dict[str, Tensor]:
    """Return the 4-D mask under which rows of one length attend that way, as model inputs."""
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    return {"attention_mask": mask.tril() if attention == "causal" else mask}


def fast_logsumexp(logits: Tensor) -> Tensor:
    """Return the log-sum-exp of each row of logits (h, v), (h,), in fp32.

    The largest logit is not subtracted first, which would take two more passes over memory: e^x
    neither overflows nor loses digits while the sum stays within EXP_SUM_RANGE. Rows that leave it
    are computed again with `logsumexp`.
    """
    total = torch.cat([part.float().exp().sum(-1) for part in logits.split(LOGSUMEXP_ROWS)])
    in_range = (total > EXP_SUM_RANGE[0]) & (total < EXP_SUM_RANGE[1])
    total = total.log()
    if not in_range.all():
        total[~in_range] = logits[~in_range].float().logsumexp(-1)
    return total


def no_cache_kwargs(model: Any) -> dict[str, bool]:
    """Keep causal models from building a key/value cache that nobody reads."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) else {}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(
        error
    )
