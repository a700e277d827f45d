"""The engine: batches in, log-probabilities out. The only place of scoring that touches torch.

It runs the model's own forward, whatever the architecture, with two interventions: attention is computed on the rows
that a batch's nodes form (`attend`, which `checkpoints` registers with the model's library), and the LM head sees only
the positions that are read (`_head`). Models whose attention cannot be replaced run on plain rows of one
exact length instead; `Geometry.layout` says which, and it is found by trying (`checkpoints`), never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.plan import Batch, Plan, plans
from antlm_bench.types import Attention, Floats, Probes

Layout = Literal["packed", "rows"]
PACKED = "antlm_packed"  # the name under which `attend` is registered
REDUCED_ROWS = 32  # rows of logits reduced at a time: small enough that the temporaries stay in cache
HEAD_LOGITS = {"cpu": 2**22}  # logits held at a time (16 MiB of fp32: larger blocks are fresh pages at every batch)


class CannotPackError(Exception):
    """The model's attention needs something that packed rows do not give; never reaches a user."""


@dataclass(frozen=True, slots=True)
class _Packing:
    """A Batch's geometry as tensors, for the attention function that runs inside the model."""

    causal: bool
    pieces: tuple[tuple[int, int], ...]
    gather: Tensor | None
    take: Tensor | None


class BeyondWindowError(CannotPackError):
    """This row is longer than the model's local attention; shorter ones can be packed."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a model takes its rows. native: its own attention's name; attends: which way that looks.

    layout: packed nodes, or plain rows of one length. first_position: the id of a row's first position when packed.
    """

    native: str
    attends: Attention
    layout: Layout = "rows"
    first_position: int = 0


_packing: ContextVar[_Packing] = ContextVar("packing")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of packed nodes: (1, heads, n, d) in, (1, n, heads, d) out; each row attends to itself alone.

    Raises CannotPackError where the architecture asks for what this does not do (soft caps, sinks, local windows).
    """
    packing = _packing.get()
    del module
    if attention_mask is not None or any(extra.get(k) is not None for k in ("softcap", "s_aux", "position_bias")):
        raise CannotPackError
    window = extra.get("sliding_window")
    if window is not None and max(t for _, t in packing.pieces) > window:
        raise BeyondWindowError

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    q, k, v = (_rows(x, packing.gather) for x in (query, key, value))
    outputs, top = [], 0
    for rows, length in packing.pieces:
        end = top + rows * length
        qs, ks, vs = (x[top:end].view(rows, length, heads, -1).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=packing.causal, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(rows * length, heads, -1))
        top = end
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if packing.take is not None:
        merged = merged.index_select(0, packing.take)
    return merged.unsqueeze(0), None


def _rows(x: Tensor, gather: Tensor | None) -> Tensor:
    """(1, heads, n, d) -> (m, heads, d), contiguous."""
    flat = x[0].transpose(0, 1).contiguous()
    return flat if gather is None else flat.index_select(0, gather)


class Engine:
    """A model ready to be read. `budget`: nodes per forward pass; it only ever shrinks (out of memory)."""

    def __init__(self, model: Any, name: str, geometry: Geometry, budget: int) -> None:
        self.model, self.name, self.geometry, self.budget = model, name, geometry, budget
        device = next(model.parameters()).device.type
        self.head_rows = max(1, HEAD_LOGITS.get(device, 2**28) // model.get_output_embeddings().weight.shape[0])
        self.nodes = self.heads = 0  # nodes and LM-head rows computed so far, for the benchmark's count of arithmetic

    def read(self, probes: Iterable[Probes], texts: int, tick: Callable[[float], None] | None = None) -> Floats:
        """Summed log-probabilities (texts,) in nats; `tick` hears the share of the work just done.

        Raises CheckpointError if the model says NaN, or if one single row does not fit into memory.
        """
        with torch.inference_mode():
            return self._read(plans(list(probes)), texts, tick)

    def _read(self, todo: Sequence[Plan], texts: int, tick: Callable[[float], None] | None) -> Floats:
        scores = np.zeros(texts)
        everything = sum(plan.nodes for plan in todo)
        for plan in todo:
            start = 0
            while start < len(plan):
                batch, end = plan.cut(start, self.budget)
                try:
                    logp = self._batch(batch)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not _out_of_memory(error):
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
                scores += np.bincount(batch.text, weights=logp, minlength=texts)
                self.nodes += len(batch.ids)
                self.heads += len(batch.heads)
                start = end
                if tick is not None:
                    tick(len(batch.ids) / everything)
        return scores

    def _batch(self, batch: Batch) -> Floats:
        """Log-probabilities of the batch's reads (k,)."""
        if self.geometry.layout == "rows":
            return self._plain(batch)
        self._attend_with(PACKED)
        try:
            return self._packed(batch)
        except BeyondWindowError as error:
            if batch.attention != self.geometry.attends:
                raise CheckpointError(
                    f"{self.name}: rows of {max(t for _, t in batch.pieces)} tokens exceed its attention window",
                    hint=f"it can only be scored with {self.geometry.attends} attention at that length",
                ) from error
            self._attend_with(self.geometry.native)
            return self._plain(batch)

    def _attend_with(self, implementation: str) -> None:
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def _packed(self, batch: Batch) -> Floats:
        device = next(self.model.parameters()).device
        gather, take = (None if i is None else torch.from_numpy(i).to(device) for i in (batch.gather, batch.take))
        token = _packing.set(_Packing(batch.attention == "causal", batch.pieces, gather, take))
        try:
            return self._forward(
                np.asarray(batch.ids, np.int64)[None], batch.heads, batch.head, batch.target, batch.positions[None]
            )
        finally:
            _packing.reset(token)

    def _plain(self, batch: Batch) -> Floats:
        """One forward per block of equal-length rows: no packing, no padding, the model's native attention."""
        n = len(batch.ids)
        ids = np.asarray(batch.ids if batch.gather is None else batch.ids[batch.gather], np.int64)
        place = (np.arange(n) if batch.take is None else batch.take)[batch.heads]
        logp, top = np.empty(len(batch.head)), 0
        for rows, length in batch.pieces:
            end = top + rows * length
            mine = (place >= top) & (place < end)
            reads = mine[batch.head]
            if reads.any():
                number = np.cumsum(mine) - 1
                logp[reads] = self._forward(
                    ids[top:end].reshape(rows, length),
                    place[mine] - top,
                    number[batch.head[reads]],
                    batch.target[reads],
                    None,
                )
            top = end
        return logp

    def _forward(
        self,
        ids: NDArray[np.int64],
        heads: NDArray[np.int64],
        head: NDArray[np.int64],
        target: NDArray[np.int64],
        positions: NDArray[np.int64] | None,
    ) -> Floats:
        """Run (r, t) ids, read the distributions at the flat places `heads`, return log P(target | heads[head])."""
        device = next(self.model.parameters()).device
        inputs = {"input_ids": torch.from_numpy(ids).to(device)}
        if positions is not None:
            inputs["position_ids"] = torch.from_numpy(positions + self.geometry.first_position).to(device)
        output = self.model.base_model(**inputs, **_no_cache(self.model))
        hidden = output[0].reshape(-1, output[0].shape[-1]).index_select(0, torch.from_numpy(heads).to(device))
        logp = np.empty(len(head))
        for top in range(0, len(heads), self.head_rows):
            mine = (head >= top) & (head < top + self.head_rows)
            logits = self._head(output, hidden[top : top + self.head_rows])
            at, wanted = (torch.from_numpy(x[mine]).to(device) for x in (head - top, target))
            logp[mine] = _log_probabilities(logits, at, wanted)
        return logp

    def _head(self, output: Any, hidden: Tensor) -> Tensor:
        """Logits (h, vocabulary) of hidden states (h, d): the model's own forward around a body that answers with them.

        Whatever lies between body and logits (transforms, biases, scales, caps) is thereby the architecture's own.
        """
        if isinstance(output, tuple):
            output = (hidden.unsqueeze(0), *output[1:])
        else:
            output["last_hidden_state"] = hidden.unsqueeze(0)
        # Beside the base model itself: OPT's LM head reads the decoder inside it.
        bodies = [b for b in (self.model.base_model, getattr(self.model.base_model, "decoder", None)) if b is not None]
        for body in bodies:
            body.forward = lambda *_args, **_inputs: output
        try:
            unused = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
            logits: Tensor = self.model(input_ids=unused, **_no_cache(self.model)).logits[0]
        finally:
            for body in bodies:
                del body.forward
        if len(logits) != len(hidden):
            raise CheckpointError(f"{self.name}: {type(self.model).__name__} has no body apart from its LM head")
        return logits


def _log_probabilities(logits: Tensor, head: Tensor, target: Tensor) -> Floats:
    """log softmax of (h, vocabulary) logits at (head, target), reduced in fp32 whatever the dtype."""
    total = torch.cat([part.float().logsumexp(-1) for part in logits.split(REDUCED_ROWS)])
    return np.asarray((logits[head, target].float() - total[head]).cpu().double().numpy(), np.float64)


def _no_cache(model: Any) -> dict[str, bool]:
    """Keep causal models from building a key/value cache that nobody reads."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) else {}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
