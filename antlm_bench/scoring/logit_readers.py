"""Read values off logits: log-probabilities of targets, and facts about whole distributions.

The engine calls these functions on each block of logits that its LM head computes, so that no more
logits than one block are in memory, however long the texts are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from antlm_bench.scoring.plan import IndexArray
from antlm_bench.scoring.token_scores import NUM_FACTS

EXP_SUM_RANGE = (1e-30, 1e37)  # sums of exponentials that fp32 represents with full precision
# Logits reduced at a time: on a CPU 32 rows, so that temporaries stay in cache; on a GPU as many as
# keep a temporary below 256 MiB, because each operator call costs time.
ROWS_PER_REDUCTION = {"cpu": 32}
DEFAULT_LOGITS_PER_REDUCTION = 2**26


@dataclass(frozen=True, slots=True)
class Reads:
    """The k log-probabilities to read at h positions of a forward."""

    positions: IndexArray
    """(h,) indices into the positions of the forward's input."""
    index: IndexArray
    """(k,) index into `positions` of each value; ascending."""
    target: IndexArray
    """(k,) token id whose log-probability is read; negative = a set of tokens."""

    @property
    def arrays(self) -> dict[str, IndexArray]:
        """Name -> array, for the device."""
        return {
            "read_positions": self.positions, "read_index": self.index, "target": self.target
        }  # fmt: skip


def rows_per_reduction(logits: Tensor) -> int:
    """Return the number of rows of logits (h, v) that are reduced at a time."""
    default: int = max(1, DEFAULT_LOGITS_PER_REDUCTION // max(1, int(logits.shape[-1])))
    return ROWS_PER_REDUCTION.get(logits.device.type, default)


def widen(logits: Tensor) -> Tensor:
    """Return logits in fp32; in fp64 if they are in fp64."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def reduce_blocks(reduce: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return `reduce` of logits (h, v), called on `rows_per_reduction` rows at a time."""
    size = rows_per_reduction(logits)
    if len(logits) <= size:
        return reduce(logits)
    return torch.cat([reduce(block) for block in logits.split(size)])


def fast_logsumexp(logits: Tensor) -> Tensor:
    """Return the log-sum-exp (h,) of each row of logits (h, v), in fp32 or fp64 (`widen`).

    On a CPU the largest logit is not subtracted first, which would take two more passes over
    memory: e^x neither overflows nor loses digits while the sum stays within EXP_SUM_RANGE. Other
    rows are recomputed with `logsumexp`. A GPU would have to wait for the host to look for them.
    """
    if logits.device.type != "cpu":
        return reduce_blocks(lambda block: widen(block).logsumexp(-1), logits)
    total = reduce_blocks(lambda block: widen(block).exp().sum(-1), logits)
    in_range = (total > EXP_SUM_RANGE[0]) & (total < EXP_SUM_RANGE[1])
    total = total.log()
    if not in_range.all():
        total[~in_range] = widen(logits[~in_range]).logsumexp(-1)
    return total


def target_logprobs(
    logits: Tensor, read_index: Tensor, target: Tensor, token_sets: Mapping[int, Tensor]
) -> Tensor:
    """Return the log-softmax (k,) of logits (h, v) at (read_index, target), in fp32; in fp64 for
    logits in fp64.

    A negative target stands for a set of token ids, whose probabilities are added up. token_sets:
    the ids of each negative target that occurs.
    """
    target_logits = widen(logits[read_index, target.clamp(min=0) if token_sets else target])
    for number, ids in token_sets.items():
        set_logits = fast_logsumexp(logits.index_select(1, ids))[read_index]
        target_logits = torch.where(target == number, set_logits, target_logits)
    return target_logits - fast_logsumexp(logits)[read_index]


class DistributionReader:
    """Reads facts about the distributions from which targets are predicted."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k

    @property
    def width(self) -> int:
        """Number of values of a read."""
        return NUM_FACTS + 2 * self.top_k

    def read(self, logits: Tensor, read_index: Tensor, target: Tensor, logprobs: Tensor) -> Tensor:
        """Return the values (k, width) of k targets, from logits (h, v) and the targets'
        log-probabilities (k,).

        Columns: log-probability, rank of the target (1 + number of tokens that are more probable,
        so that tied tokens share the best rank; 0 for a set of tokens), entropy of the
        distribution in nats, ids of the `top_k` most probable tokens, their log-probabilities.
        """
        entropy, top_ids, top_logprobs = [], [], []
        for block in logits.split(rows_per_reduction(logits)):
            log_distribution = widen(block) - fast_logsumexp(block)[:, None]
            entropy.append(torch.special.entr(log_distribution.exp()).sum(-1))
            best = log_distribution.topk(self.top_k, dim=-1)
            top_ids.append(best.indices)
            top_logprobs.append(best.values)
        columns = [
            logprobs[:, None],
            self._rank(logits, read_index, target).to(logprobs)[:, None],
            torch.cat(entropy)[read_index, None],
            torch.cat(top_ids)[read_index].to(logprobs),
            torch.cat(top_logprobs)[read_index],
        ]
        return torch.cat(columns, dim=1)

    def _rank(self, logits: Tensor, read_index: Tensor, target: Tensor) -> Tensor:
        ranks, size = [], rows_per_reduction(logits)
        for rows, ids in zip(read_index.split(size), target.split(size), strict=True):
            own_logits = logits[rows, ids.clamp(min=0)][:, None]
            rank = (logits[rows] > own_logits).sum(-1) + 1
            ranks.append(torch.where(ids < 0, 0, rank))
        return torch.cat(ranks)
