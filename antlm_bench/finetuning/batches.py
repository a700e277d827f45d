"""Which texts an update sees, and in which company: all that is random about data, keyed by seed
and epoch.

An update is `batch` texts of like length; its rows are sorted by length and cut into parts under a
budget of tokens, so that little is padding. How they are cut changes nothing that is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from antlm_bench.errors import DataError, UsageError
from antlm_bench.finetuning.data import EncodedExamples, Int64
from antlm_bench.types import Example

if TYPE_CHECKING:
    from antlm_bench.suites.classification import TrainingSpec

SPLIT_STREAM, ORDER_STREAM = 0, 1  # what a stream of randomness is for
UPDATES_PER_LENGTH_BLOCK = 32  # updates whose texts are sorted by length together


def split_examples(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, selection): `share` of every class is held out, both in the order given. Groups stay
    on one side.

    In an order keyed by seed, a group is held out if that brings the counts per class nearer to the
    wanted ones: single examples meet them up to rounding. Raises DataError where one side would be
    empty.
    """
    members: dict[str, list[int]] = {}
    for number, example in enumerate(examples):
        members.setdefault(
            f"group {example.group}" if example.group else f"example {number}", []
        ).append(number)
    gold = np.array([example.gold for example in examples], np.int64)
    missing = share * np.bincount(gold)  # of each class, still to be held out
    groups, out = list(members.values()), np.zeros(len(gold), np.bool_)
    for place in np.random.default_rng([seed, SPLIT_STREAM]).permutation(len(groups)):
        brings = np.bincount(gold[groups[place]], minlength=len(missing))
        if np.abs(missing - brings).sum() < np.abs(missing).sum():
            missing = missing - brings
            out[groups[place]] = True
    if not out.any() or out.all():
        raise DataError(
            f"{len(gold)} examples in {len(groups)} groups cannot be split: {share:g} of every class held out",
            hint="give more rows to train on, or another share",
        )
    return [e for e, held in zip(examples, out, strict=True) if not held], [
        e for e, held in zip(examples, out, strict=True) if held
    ]


def updates_per_epoch(num_texts: int, spec: TrainingSpec) -> int:
    """Return the number of updates in an epoch. Raises UsageError where none of them is left."""
    if spec.last_batch == "keep":
        return -(-num_texts // spec.batch)
    if num_texts < spec.batch:
        hint = "give more texts, or a smaller batch: --set batch=N"
        raise UsageError(
            f"{num_texts} texts fill no batch of {spec.batch}",
            location="last_batch = drop",
            hint=hint,
        )
    return num_texts // spec.batch


def epoch_batches(lengths: Int64, spec: TrainingSpec, seed: int, epoch: int) -> Iterator[Int64]:
    """Return the epoch's updates as `spec` orders them: indices of at most spec.batch texts.

    lengths (n,): of all texts, in tokens.
    """
    if spec.order == "by-length":
        found = length_grouped_batches(lengths, spec.batch, seed, epoch)
        return (
            chosen for chosen in found if spec.last_batch == "keep" or len(chosen) == spec.batch
        )
    order = np.random.default_rng([seed, ORDER_STREAM, epoch]).permutation(len(lengths))
    count = updates_per_epoch(len(lengths), spec)
    return (order[number * spec.batch : (number + 1) * spec.batch] for number in range(count))


def length_grouped_batches(
    lengths: Int64, batch_size: int, seed: int, epoch: int
) -> Iterator[Int64]:
    """The epoch's updates: every one of the n texts (their lengths (n,)) once, `batch` at a time,
    fewer in one.

    A convention that moves a score a little: texts of like length stand together. The epoch's
    random order is cut into blocks of at most NEAR updates, each sorted by length, and the updates
    are shuffled again (the idea of fairseq's buckets and of the transformers Trainer's
    `group_by_length`, whose blocks are of 50), so that an update is random but for its texts'
    lengths. Larger blocks pad less and mix less: of mrpc's tokens 6% are padding with 8, 2% with
    32.
    """
    dice = np.random.default_rng([seed, ORDER_STREAM, epoch])
    order = dice.permutation(len(lengths))
    count, made = -(-len(order) // batch_size), []
    for some in np.array_split(
        np.arange(count), -(-count // UPDATES_PER_LENGTH_BLOCK)
    ):  # blocks of nearly equal size
        block = order[some[0] * batch_size : (some[-1] + 1) * batch_size]
        block = block[np.argsort(lengths[block], kind="stable")]
        made += [block[first : first + batch_size] for first in range(0, len(block), batch_size)]
    return (made[place] for place in dice.permutation(len(made)))


def micro_batches(lengths: Int64, indices: Int64, max_tokens: int) -> Iterator[Int64]:
    """`chosen` sorted by length, in parts of at most `budget` tokens, padding included; one row at
    least.
    """
    indices = indices[np.argsort(lengths[indices], kind="stable")]
    start = 0
    while start < len(indices):
        stop = start + 1
        while stop < len(indices) and (stop + 1 - start) * lengths[indices[stop]] <= max_tokens:
            stop += 1
        yield indices[start:stop]
        start = stop


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """b rows padded on the right to one length t.

    ids (b, t); lengths (b,) without padding; types (b, t) 1 = second text, None for models without
    token types; whole: nothing is padded.
    """

    ids: Tensor
    lengths: Tensor
    token_type_ids: Tensor | None
    unpadded: bool

    def token_mask(self) -> Tensor:
        """(b, t), True = a token."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]


def pad_batch(
    rows: EncodedExamples,
    indices: Int64,
    pad_id: int,
    with_token_type_ids: bool,
    device: torch.device,
) -> PaddedBatch:
    """Rows on the right, so that positions count from the text's beginning, and no causal row ever
    sees padding.
    """
    lengths = rows.lengths[indices]
    longest = int(lengths.max())
    ids = np.full((len(indices), longest), pad_id, np.int64)
    for row, i in zip(ids, indices, strict=True):
        row[: len(rows.ids[i])] = rows.ids[i]
    types = None
    if with_token_type_ids:
        place = np.arange(longest)
        second = (place >= rows.second_starts[indices][:, None]) & (place < lengths[:, None])
        types = torch.from_numpy(second.astype(np.int64)).to(device)
    whole = bool((lengths == longest).all())
    return PaddedBatch(
        torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device), types, whole
    )
