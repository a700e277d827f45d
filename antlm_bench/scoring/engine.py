"""The engine: batches in, log-probabilities out. The only place of scoring that touches torch.

It runs the model's own forward, whatever the architecture, with two interventions: attention is computed on the rows
that a batch's nodes form (scoring.attention, registered with the model's library), and the LM head, and where it can
the last layer, sees only the positions that are read (`_head`, `_narrows`). Models whose attention cannot be replaced
run on plain rows of one exact length instead. `Geometry` says which; it is found by trying, never assumed. Each of
these is a shortcut that `Engine.disable` turns off; without any, the model reads one row, or one prefix, at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.attention import PACKED, BeyondWindowError, LastLayer, Packing, current
from antlm_bench.scoring.cpu_kernels import Rotations, fuse, pack_linears
from antlm_bench.scoring.model_state import ModelState, ModuleSwaps
from antlm_bench.scoring.plan import Batch, Plan, plans
from antlm_bench.types import WORD_START, Attention, Floats, Ints, Probes

Layout = Literal["packed", "rows"]
SAFE = (1e-30, 1e37)  # sums of exponentials that fp32 holds as exactly as any other number
REDUCED_ROWS = 32  # rows of logits reduced at a time: small enough that the temporaries stay in cache
HEAD_LOGITS = {"cpu": 2**22}  # logits held at a time (16 MiB of fp32: larger blocks are fresh pages at every batch)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a model takes its rows: facts about the model, and the shortcuts that give its own numbers."""

    native: str
    """Name of the model's own attention implementation."""
    attends: Attention
    """Direction of that attention: causal or full."""
    layout: Layout = "rows"
    """Packed nodes of a prefix tree, or plain rows of one length."""
    first_position: int = 0
    """Position id of the first token of a packed row."""
    padding_id: int | None = None
    """Token id that does not count as a position in packed rows (RoBERTa's rule); None: every token counts."""
    packed_length: int | None = None
    """Longest row that may be packed: rotary angles of some models depend on the longest row of a batch."""
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


# Name of each shortcut -> the geometry without it. "CPU kernels" (faster layers) are no part of the geometry.
KERNELS = "CPU kernels"
SHORTCUTS: dict[str, dict[str, Any]] = {
    KERNELS: {},
    "last layer at read positions": {"narrow": False},
    "packed rows": {"layout": "rows", "narrow": False},
    "LM head at read positions": {"split_head": False, "narrow": False, "layout": "rows"},
    "batches": {"batched": False, "narrow": False, "layout": "rows"},
    "one row per text": {"whole_rows": False},
}


class Engine:
    """A model ready to be read. `budget`: nodes per forward pass; it only ever shrinks (out of memory)."""

    def __init__(self, model: Any, name: str, geometry: Geometry, budget: int) -> None:
        self.model, self.name, self.geometry, self.budget = model, name, geometry, budget
        device = next(model.parameters()).device.type
        self.head_rows = max(1, HEAD_LOGITS.get(device, 2**28) // vocabulary_size(model))
        self.beginnings: Tensor | None = None  # the ids that WORD_START stands for, where it is asked about
        self.last: LastLayer | None = None  # found before the first batch, if there is one
        self.rotations = Rotations.of(model)
        self.kernels: ModuleSwaps | None = None
        self.state = ModelState.of(model) if geometry.restores else None
        self._looked = False
        self.nodes = self.heads = 0  # nodes and LM-head rows computed so far, for the benchmark's count of arithmetic

    def use_kernels(self) -> None:
        """Swap in faster CPU layers (scoring.linear, scoring.fused), each tried against the plain one."""

        def swap() -> None:
            pack_linears(self.model, self.budget, self.head_rows)
            fuse(self.model)

        self.kernels = ModuleSwaps.made_by(self.model, swap)
        if self.state is not None:
            self.state = ModelState.of(self.model)

    @property
    def shortcuts(self) -> list[str]:
        """Names of the shortcuts in use, in the order in which a failed self-test suspects them."""
        unused = {"one row per text"} if self.geometry.attends == "full" else set()
        if self.geometry.layout == "packed":  # batches of plain rows come into use when packed rows are off
            unused.add("batches")
        own = [n for n, off in SHORTCUTS.items() if n != KERNELS and replace(self.geometry, **off) != self.geometry]
        return ([KERNELS] if self.kernels is not None else []) + [n for n in own if n not in unused]

    def disable(self, name: str) -> None:
        """Turn one shortcut of SHORTCUTS off, for good."""
        if name == KERNELS:
            if self.kernels is not None:
                self.kernels.undo()
            self.kernels, self.rotations = None, Rotations([])
            if self.state is not None:
                self.state = ModelState.of(self.model)
        self.geometry = replace(self.geometry, **SHORTCUTS[name])

    @contextmanager
    def without(self, names: Sequence[str]) -> Iterator[None]:
        """Within, these shortcuts are off."""
        before = self.geometry, self.kernels, self.rotations
        for name in names:
            self.disable(name)
        try:
            yield
        finally:
            self.geometry, self.kernels, self.rotations = before
            if KERNELS in names and self.kernels is not None:
                self.kernels.redo()
            if self.state is not None:
                self.state = ModelState.of(self.model)

    def read(self, probes: Iterable[Probes], texts: int, tick: Callable[[float], None] | None = None) -> Floats:
        """Summed log-probabilities (texts,) in nats; `tick` hears the share of the work just done.

        Raises CheckpointError if the model says NaN, or if one single row does not fit into memory.
        """
        probes = list(probes)
        scores = np.zeros(texts)
        with torch.inference_mode():
            if not self.geometry.whole_rows:
                prefixes = [p for p in probes if p.attention == "causal"]
                scores += self._read_prefixes(prefixes, texts)
                probes = [p for p in probes if p.attention != "causal"]
            return scores + self._read(plans(probes), texts, tick) if probes else scores

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
        longest = max(length for _, length in batch.pieces)
        if self.geometry.layout == "rows" or longest > (self.geometry.packed_length or longest):
            self.attend_with(self.geometry.native)
            return self._plain(batch)
        self.attend_with(PACKED)
        try:
            return self._packed(batch)
        except BeyondWindowError as error:
            if batch.attention != self.geometry.attends:
                raise CheckpointError(
                    f"{self.name}: rows of {max(t for _, t in batch.pieces)} tokens exceed its attention window",
                    hint=f"it can only be scored with {self.geometry.attends} attention at that length",
                ) from error
            self.attend_with(self.geometry.native)
            return self._plain(batch)

    def attend_with(self, implementation: str) -> None:
        if self.model.config._attn_implementation != implementation:
            self.model.set_attn_implementation(implementation)

    def _packed(self, batch: Batch) -> Floats:
        if self.geometry.narrow and not self._looked:
            # By a forward of its own: no batch is computed otherwise for being the first one of a process.
            self._looked, self.last = True, LastLayer.of(self.model, self._through(batch)[1])
        return self._through(batch)[0]

    def _through(self, batch: Batch) -> tuple[Floats, list[nn.Module]]:
        """Log-probabilities of the batch's reads, and the attention modules in the order in which they were called."""
        device = next(self.model.parameters()).device
        packing = Packing.of(batch, device)
        token = current.set(packing)
        try:
            with ExitStack() as stack:
                if narrow := self._narrows(batch):
                    stack.enter_context(narrow.only(packing, batch.heads, device))
                ids = np.asarray(batch.ids, np.int64)[None]
                positions = torch.from_numpy(self._positions(batch)[None])
                logp = self._forward(ids, batch.heads, batch.head, batch.target, {"position_ids": positions})
        finally:
            current.reset(token)
        return logp, packing.callers

    def _positions(self, batch: Batch) -> NDArray[np.int64]:
        """Position ids of a batch's nodes (n,), as the model would count them in a row of its own."""
        first, padding = self.geometry.first_position, self.geometry.padding_id
        if padding is None:
            return batch.positions + first
        ids = batch.ids if batch.gather is None else batch.ids[batch.gather]
        positions, top = np.empty(len(ids), np.int64), 0
        for rows, length in batch.pieces:
            counts = ids[top : top + rows * length].reshape(rows, length) != padding
            positions[top : top + rows * length] = (counts.cumsum(1) * counts).ravel() + padding
            top += rows * length
        return positions if batch.take is None else positions[batch.take]

    def _narrows(self, batch: Batch) -> LastLayer | None:
        """The last layer, where it pays to run it at the read positions alone: few of them, in rows as they come."""
        few = 2 * len(batch.heads) <= len(batch.ids)
        return (
            self.last if self.geometry.narrow and batch.attention == "full" and batch.gather is None and few else None
        )

    def _plain(self, batch: Batch) -> Floats:
        """One forward per block of equal-length rows: no packing, no padding, the model's native attention."""
        n = len(batch.ids)
        ids = np.asarray(batch.ids if batch.gather is None else batch.ids[batch.gather], np.int64)
        place = (np.arange(n) if batch.take is None else batch.take)[batch.heads]
        logp, top = np.empty(len(batch.head)), 0
        for rows, length in self._blocks(batch):
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
                    None if batch.attention == self.geometry.attends else whole_rows(length, batch.attention),
                )
            top = end
        return logp

    def _blocks(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """(rows, length) of each plain forward: a batch's pieces, cut where one row, or all logits, must fit."""
        for rows, length in batch.pieces:
            most = 1 if not self.geometry.batched else rows
            if not self.geometry.split_head:
                most = min(most, max(1, self.head_rows // length))
            for top in range(0, rows, most):
                yield min(most, rows - top), length

    def _read_prefixes(self, probes: Sequence[Probes], texts: int) -> Floats:
        """Read every causal prediction from a row that ends where it is read: the definition, and slow."""
        wanted: dict[bytes, list[tuple[int, int]]] = {}
        for p in probes:
            for row, at, target, text in zip(p.row, p.at, p.target, p.text, strict=True):
                prefix = np.asarray(p.ids[row, : at + 1], np.int64).tobytes()
                wanted.setdefault(prefix, []).append((int(target), int(text)))
        scores = np.zeros(texts)
        self.attend_with(self.geometry.native)
        for prefix, reads in wanted.items():
            ids = np.frombuffer(prefix, np.int64)[None]
            target, text = (np.array(column, np.int64) for column in zip(*reads, strict=True))
            turned = None if self.geometry.attends == "causal" else whole_rows(ids.shape[1], "causal")
            last = np.array([ids.shape[1] - 1], np.int64)
            logp = self._forward(ids.copy(), last, np.zeros(len(target), np.int64), target, turned)
            if np.isnan(logp).any():
                raise CheckpointError(f"{self.name} answers NaN", hint="the weights are damaged: --dtype float32")
            scores += np.bincount(text, weights=logp, minlength=texts)
        return scores

    def _forward(
        self,
        ids: NDArray[np.int64],
        heads: NDArray[np.int64],
        head: NDArray[np.int64],
        target: NDArray[np.int64],
        more: Mapping[str, Tensor] | None,
    ) -> Floats:
        """Run (r, t) ids, read the distributions at the flat places `heads`, return log P(target | heads[head])."""
        device = next(self.model.parameters()).device
        inputs = {"input_ids": torch.from_numpy(ids)} | dict(more or {})
        inputs = {name: value.to(device) for name, value in inputs.items()}
        output = hidden = None
        try:
            with self.rotations.quick():
                if self.geometry.split_head:
                    output = self.model.base_model(**inputs, **no_cache(self.model))
                    hidden = output[0]
                else:  # (r, t, vocabulary)
                    hidden = plain_logits(self.model, **inputs)
        finally:
            if self.state is not None:
                self.state.restore()
        hidden = hidden.reshape(-1, hidden.shape[-1])
        if len(hidden) != len(heads):  # else the last layer has left out the rest already
            hidden = hidden.index_select(0, torch.from_numpy(heads).to(device))
        logp = np.empty(len(head))
        for top in range(0, len(heads), self.head_rows):
            mine = (head >= top) & (head < top + self.head_rows)
            logits = hidden[top : top + self.head_rows]
            if output is not None:
                logits = self._head(output, logits)
            at, wanted = (torch.from_numpy(x[mine]).to(device) for x in (head - top, target))
            several = self._word_starts(target[mine])
            found = self._log_probabilities(logits, at, wanted, several)
            logp[mine] = found.cpu().double().numpy()
        return logp

    def _log_probabilities(self, logits: Tensor, head: Tensor, target: Tensor, several: Tensor | None) -> Tensor:
        """log softmax of (h, vocabulary) logits at (head, target), reduced in fp32 whatever the dtype.

        The target WORD_START stands for the ids `several`, whose probabilities are added up.
        """
        chosen = logits[head, target if several is None else target.clamp(min=0)].float()
        if several is not None:
            chosen = torch.where(target == WORD_START, normaliser(logits[:, several])[head], chosen)
        return chosen - normaliser(logits)[head]

    def begin(self, ids: Ints) -> None:
        """Say which token ids (k,) WORD_START stands for."""
        self.beginnings = torch.from_numpy(np.asarray(ids, np.int64)).to(next(self.model.parameters()).device)

    def _word_starts(self, target: NDArray[np.int64]) -> Tensor | None:
        if len(target) == 0 or target.min() != WORD_START:
            return None
        assert self.beginnings is not None  # whoever asks about WORD_START says what it is
        return self.beginnings

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
            logits: Tensor = self.model(input_ids=unused, **no_cache(self.model)).logits[0]
        finally:
            for body in bodies:
                del body.forward
        if len(logits) != len(hidden):
            raise CheckpointError(f"{self.name}: {type(self.model).__name__} has no body apart from its LM head")
        return logits


def plain_logits(model: Any, **inputs: Tensor) -> Tensor:
    """Logits (r, t, vocabulary) of a model's own forward of (r, t) `input_ids`.

    Raises CheckpointError for a forward that fails or answers with something else.
    """
    try:
        logits: Tensor = model(**inputs, **no_cache(model)).logits
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
    """Number of logits of a position: rows of the output embedding, or where there is none, what the config says."""
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


def whole_rows(length: int, attention: Attention) -> dict[str, Tensor]:
    """The 4-D mask under which every row of one length attends that way, whatever the model does by itself."""
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    return {"attention_mask": mask.tril() if attention == "causal" else mask}


def normaliser(logits: Tensor) -> Tensor:
    """log sum exp of each row of (h, v) logits, (h,), in fp32.

    Without looking for the largest first, which would be two more passes over memory: e^x neither overflows nor loses
    digits while the sum stays within SAFE. Rows that leave it are summed again in the careful way.
    """
    total = torch.cat([part.float().exp().sum(-1) for part in logits.split(REDUCED_ROWS)])
    careless = (total > SAFE[0]) & (total < SAFE[1])
    total = total.log()
    if not careless.all():
        total[~careless] = logits[~careless].float().logsumexp(-1)
    return total


def no_cache(model: Any) -> dict[str, bool]:
    """Keep causal models from building a key/value cache that nobody reads."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) else {}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)
