"""The engine: batches in, log-probabilities out. The only place of scoring that touches torch.

It runs the model's own forward, whatever the architecture, with two interventions: attention is
computed on the rows that a batch's nodes form (scoring.attention_mask, registered with the model's
library), and the LM head, and where it can the last layer, sees only the positions that are read
(`_head`, `_narrows`). Models whose attention cannot be replaced run on plain rows of one exact
length instead. `ForwardConfig` says which; it is found by trying, never assumed. Each of these is a
shortcut that `Engine.disable` turns off; without any, the model reads one row, or one prefix, at a
time.
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
EXP_SUM_RANGE = (1e-30, 1e37)  # sums of exponentials that fp32 holds as exactly as any other number
LOGSUMEXP_ROWS = (
    32  # rows of logits reduced at a time: small enough that the temporaries stay in cache
)
MAX_HEAD_LOGITS = {
    "cpu": 2**22
}  # logits held at a time (16 MiB of fp32: larger blocks are fresh pages at every batch)


@dataclass(frozen=True, slots=True)
class ForwardConfig:
    """How a model takes its rows: facts about the model, and the shortcuts that give its own
    numbers.
    """

    native_implementation: str
    """Name of the model's own attention implementation."""
    native_attention: Attention
    """Direction of that attention: causal or full."""
    layout: Layout = "rows"
    """Packed nodes of a prefix tree, or plain rows of one length."""
    first_position: int = 0
    """Position id of the first token of a packed row."""
    padding_id: int | None = None
    """Token id that does not count as a position in packed rows (RoBERTa's rule); None: every token
    counts.
    """
    packed_length: int | None = None
    """Longest row that may be packed: rotary angles of some models depend on the longest row of a
    batch.
    """
    narrow: bool = False
    """Run the last layer at the read positions only."""
    masks: bool = False
    """A 4-D mask turns plain rows the other way, so that one set of weights can be read in both."""
    split_head: bool = True
    """Run the LM head at the read positions only."""
    batched: bool = True
    """Run several rows of one length in one forward."""
    whole_rows: bool = True
    """Read all causal predictions of a text from one row; False: each from its own prefix."""
    restores: bool = False
    """The model's forward changes the model: put it back after each."""


# Name of each shortcut -> the geometry without it. "CPU kernels" (faster layers) are no part of the
# geometry.
CPU_KERNELS = "CPU kernels"
SHORTCUTS: dict[str, dict[str, Any]] = {
    CPU_KERNELS: {},
    "last layer at read positions": {"narrow": False},
    "packed rows": {"layout": "rows", "narrow": False},
    "LM head at read positions": {"split_head": False, "narrow": False, "layout": "rows"},
    "batches": {"batched": False, "narrow": False, "layout": "rows"},
    "one row per text": {"whole_rows": False},
}


class Engine:
    """A model ready to be read. `budget`: nodes per forward pass; it only ever shrinks (out of
    memory).
    """

    def __init__(self, model: Any, name: str, forward_config: ForwardConfig, budget: int) -> None:
        self.model, self.name, self.forward_config, self.budget = (
            model,
            name,
            forward_config,
            budget,
        )
        device = next(model.parameters()).device.type
        self.head_rows = max(1, MAX_HEAD_LOGITS.get(device, 2**28) // vocabulary_size(model))
        self.word_start_ids: Tensor | None = (
            None  # the ids that WORD_START stands for, where it is asked about
        )
        self.last_layer: LastLayer | None = None  # found before the first batch, if there is one
        self.rotary_patch = RotaryPatch.for_model(model)
        self.kernels: ModuleSwaps | None = None
        self.model_state = ModelState.capture(model) if forward_config.restores else None
        self._lock = RLock()  # a forward sets attributes of its model: one thread at a time
        self._searched_last_layer = False
        self.nodes_computed = self.head_rows_computed = (
            0  # nodes and LM-head rows computed so far, for the benchmark's count of arithmetic
        )

    def enable_cpu_kernels(self) -> None:
        """Swap in faster CPU layers (scoring.cpu_kernels, scoring.cpu_kernels), each tried against
        the plain one.
        """

        def swap() -> None:
            pack_linears(self.model, self.budget, self.head_rows)
            fuse_layers(self.model)

        self.kernels = ModuleSwaps.record(self.model, swap)
        if self.model_state is not None:
            self.model_state = ModelState.capture(self.model)

    @property
    def shortcuts(self) -> list[str]:
        """Names of the shortcuts in use, in the order in which a failed self-test suspects them."""
        unused = {"one row per text"} if self.forward_config.native_attention == "full" else set()
        if (
            self.forward_config.layout == "packed"
        ):  # batches of plain rows come into use when packed rows are off
            unused.add("batches")
        own = [
            n
            for n, off in SHORTCUTS.items()
            if n != CPU_KERNELS and replace(self.forward_config, **off) != self.forward_config
        ]
        return ([CPU_KERNELS] if self.kernels is not None else []) + [
            n for n in own if n not in unused
        ]

    def disable_shortcut(self, name: str) -> None:
        """Turn one shortcut of SHORTCUTS off, for good."""
        if name == CPU_KERNELS:
            if self.kernels is not None:
                self.kernels.undo()
            self.kernels, self.rotary_patch = None, RotaryPatch({})
            if self.model_state is not None:
                self.model_state = ModelState.capture(self.model)
        self.forward_config = replace(self.forward_config, **SHORTCUTS[name])

    @contextmanager
    def without_shortcuts(self, names: Sequence[str]) -> Iterator[None]:
        """Within, these shortcuts are off."""
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
        """Summed log-probabilities (texts,) in nats; `tick` hears the share of the work just done.

        Raises CheckpointError if the model says NaN, or if one single row does not fit into memory.
        """
        probes = list(probes)
        scores = np.zeros(num_texts)
        with self._lock, torch.inference_mode():
            if not self.forward_config.whole_rows:
                prefixes = [p for p in probes if p.attention == "causal"]
                scores += self._score_prefixes(prefixes, num_texts)
                probes = [p for p in probes if p.attention != "causal"]
            return (
                scores + self._score_plans(build_plans(probes), num_texts, tick)
                if probes
                else scores
            )

    def _score_plans(
        self, sorted_plans: Sequence[Plan], num_texts: int, tick: Callable[[float], None] | None
    ) -> Floats:
        scores = np.zeros(num_texts)
        everything = sum(plan.num_nodes for plan in sorted_plans)
        for plan in sorted_plans:
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
                            f"{self.name}: one row of {len(batch.ids)} tokens does not fit into memory",
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
                    tick(len(batch.ids) / everything)
        return scores

    def _batch_logprobs(self, batch: PackedBatch) -> Floats:
        """Log-probabilities of the batch's reads (k,)."""
        longest = max(length for _, length in batch.blocks)
        if self.forward_config.layout == "rows" or longest > (
            self.forward_config.packed_length or longest
        ):
            self.set_attention(self.forward_config.native_implementation)
            return self._plain_logprobs(batch)
        self.set_attention(PACKED_ATTENTION)
        try:
            return self._packed_logprobs(batch)
        except BeyondWindowError as error:
            if batch.attention != self.forward_config.native_attention:
                raise CheckpointError(
                    f"{self.name}: rows of {max(t for _, t in batch.blocks)} tokens exceed its attention window",
                    hint=f"it can only be scored with {self.forward_config.native_attention} attention at that length",
                ) from error
            self.set_attention(self.forward_config.native_implementation)
            return self._plain_logprobs(batch)

    def set_attention(self, implementation: str) -> None:
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def _packed_logprobs(self, batch: PackedBatch) -> Floats:
        if self.forward_config.narrow and not self._searched_last_layer:
            # By a forward of its own: no batch is computed otherwise for being the first one of a
            # process.
            self._searched_last_layer, self.last_layer = (
                True,
                LastLayer.from_model(self.model, self._packed_forward(batch)[1]),
            )
        return self._packed_forward(batch)[0]

    def _packed_forward(self, batch: PackedBatch) -> tuple[Floats, list[nn.Module]]:
        """Log-probabilities of the batch's reads, and the attention modules in the order in which
        they were called.
        """
        device = next(self.model.parameters()).device
        packing = PackedLayout.from_batch(batch, device)
        token = current_layout.set(packing)
        try:
            with ExitStack() as stack:
                if narrow := self._last_layer_for(batch):
                    stack.enter_context(narrow.at_positions(packing, batch.read_nodes, device))
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
        return logp, packing.attention_modules

    def _position_ids(self, batch: PackedBatch) -> NDArray[np.int64]:
        """Position ids of a batch's nodes (n,), as the model would count them in a row of its own."""
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
        """The last layer, where it pays to run it at the read positions alone: few of them, in rows
        as they come.
        """
        few = 2 * len(batch.read_nodes) <= len(batch.ids)
        return (
            self.last_layer
            if self.forward_config.narrow
            and batch.attention == "full"
            and batch.gather_index is None
            and few
            else None
        )

    def _plain_logprobs(self, batch: PackedBatch) -> Floats:
        """One forward per block of equal-length rows: no packing, no padding, the model's native
        attention.
        """
        n = len(batch.ids)
        ids = np.asarray(
            batch.ids if batch.gather_index is None else batch.ids[batch.gather_index], np.int64
        )
        place = (np.arange(n) if batch.inverse_index is None else batch.inverse_index)[
            batch.read_nodes
        ]
        logp, top = np.empty(len(batch.read_index)), 0
        for rows, length in self._plain_blocks(batch):
            end = top + rows * length
            mine = (place >= top) & (place < end)
            reads = mine[batch.read_index]
            if reads.any():
                number = np.cumsum(mine) - 1
                logp[reads] = self._forward_logprobs(
                    ids[top:end].reshape(rows, length),
                    place[mine] - top,
                    number[batch.read_index[reads]],
                    batch.target[reads],
                    None
                    if batch.attention == self.forward_config.native_attention
                    else attention_mask_inputs(length, batch.attention),
                )
            top = end
        return logp

    def _plain_blocks(self, batch: PackedBatch) -> Iterator[tuple[int, int]]:
        """(rows, length) of each plain forward: a batch's pieces, cut where one row, or all logits,
        must fit.
        """
        for rows, length in batch.blocks:
            most = 1 if not self.forward_config.batched else rows
            if not self.forward_config.split_head:
                most = min(most, max(1, self.head_rows // length))
            for top in range(0, rows, most):
                yield min(most, rows - top), length

    def _score_prefixes(self, probes: Sequence[Probes], num_texts: int) -> Floats:
        """Read every causal prediction from a row that ends where it is read: the definition, and
        slow.
        """
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        for p in probes:
            for row, at, target, text in zip(
                p.row, p.position, p.target, p.text_index, strict=True
            ):
                prefix = np.asarray(p.ids[row, : at + 1], np.int64).tobytes()
                wanted.setdefault(prefix, []).append((int(target), int(text)))
        scores = np.zeros(num_texts)
        self.set_attention(self.forward_config.native_implementation)
        for prefix, reads in wanted.items():
            ids = np.frombuffer(prefix, np.int64)[None]
            target, text = (np.array(column, np.int64) for column in zip(*reads, strict=True))
            turned = (
                None
                if self.forward_config.native_attention == "causal"
                else attention_mask_inputs(ids.shape[1], "causal")
            )
            last = np.array([ids.shape[1] - 1], np.int64)
            logp = self._forward_logprobs(
                ids.copy(), last, np.zeros(len(target), np.int64), target, turned
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
        """Run (r, t) ids, read the distributions at the flat places `heads`, return log P(target |
        heads[head]).
        """
        device = next(self.model.parameters()).device
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
            mine = (read_index >= top) & (read_index < top + self.head_rows)
            logits = hidden[top : top + self.head_rows]
            if output is not None:
                logits = self._lm_head_logits(output, logits)
            at, wanted = (torch.from_numpy(x[mine]).to(device) for x in (read_index - top, target))
            several = self._word_start_ids_for(target[mine])
            found = self._target_logprobs(logits, at, wanted, several)
            logp[mine] = found.cpu().double().numpy()
        return logp

    def _target_logprobs(
        self, logits: Tensor, read_index: Tensor, target: Tensor, word_start_ids: Tensor | None
    ) -> Tensor:
        """log softmax of (h, vocabulary) logits at (head, target), reduced in fp32 whatever the
        dtype.

        The target WORD_START stands for the ids `several`, whose probabilities are added up.
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
        """Say which token ids (k,) WORD_START stands for."""
        self.word_start_ids = torch.from_numpy(np.asarray(ids, np.int64)).to(
            next(self.model.parameters()).device
        )

    def _word_start_ids_for(self, target: NDArray[np.int64]) -> Tensor | None:
        if len(target) == 0 or target.min() != WORD_START_TARGET:
            return None
        assert self.word_start_ids is not None  # whoever asks about WORD_START says what it is
        return self.word_start_ids

    def _lm_head_logits(self, output: Any, hidden: Tensor) -> Tensor:
        """Logits (h, vocabulary) of hidden states (h, d): the model's own forward around a body
        that answers with them.

        Whatever lies between body and logits (transforms, biases, scales, caps) is thereby the
        architecture's own.
        """
        if isinstance(output, tuple):
            output = (hidden.unsqueeze(0), *output[1:])
        else:
            output["last_hidden_state"] = hidden.unsqueeze(0)
        # Beside the base model itself: OPT's LM head reads the decoder inside it.
        bodies = [
            b
            for b in (self.model.base_model, getattr(self.model.base_model, "decoder", None))
            if b is not None
        ]
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
    """Logits (r, t, vocabulary) of a model's own forward of (r, t) `input_ids`.

    Raises CheckpointError for a forward that fails or answers with something else.
    """
    try:
        logits: Tensor = model(**inputs, **no_cache_kwargs(model)).logits
        good = logits.shape[:2] == inputs["input_ids"].shape and logits.dim() == 3
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # code of others fails as it likes
        message = (str(error).strip() or "no message").splitlines()[0][:200]
        raise CheckpointError(
            f"the forward of {type(model).__name__} fails on plain token ids: {type(error).__name__}: {message}",
            hint="try the checkpoint in transformers by itself: model(input_ids=...)",
        ) from error
    if not good:
        raise CheckpointError(
            f"{type(model).__name__} answers with logits of shape {tuple(logits.shape)} for input_ids of shape "
            f"{tuple(inputs['input_ids'].shape)}",
            hint="scoring needs the logits of every position, (rows, tokens, vocabulary)",
        )
    return logits


def vocabulary_size(model: Any) -> int:
    """Number of logits of a position: rows of the output embedding, or where there is none, what
    the config says.
    """
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def attention_mask_inputs(length: int, attention: Attention) -> dict[str, Tensor]:
    """The 4-D mask under which every row of one length attends that way, whatever the model does by
    itself.
    """
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    return {"attention_mask": mask.tril() if attention == "causal" else mask}


def fast_logsumexp(logits: Tensor) -> Tensor:
    """log sum exp of each row of (h, v) logits, (h,), in fp32.

    Without looking for the largest first, which would be two more passes over memory: e^x neither
    overflows nor loses digits while the sum stays within SAFE. Rows that leave it are summed again
    in the careful way.
    """
    total = torch.cat([part.float().exp().sum(-1) for part in logits.split(LOGSUMEXP_ROWS)])
    careless = (total > EXP_SUM_RANGE[0]) & (total < EXP_SUM_RANGE[1])
    total = total.log()
    if not careless.all():
        total[~careless] = logits[~careless].float().logsumexp(-1)
    return total


def no_cache_kwargs(model: Any) -> dict[str, bool]:
    """Keep causal models from building a key/value cache that nobody reads."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) else {}


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(
        error
    )
