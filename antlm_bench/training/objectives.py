"""Make batches for the training objectives: inputs, targets, and the attention between them.

All objectives share one alignment: the output at position i predicts targets[i]; -100 means no
target. `clm` and `mntp` predict the token after i, `mlm` the token at i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antlm_bench.training.corpus import FIRST_TEXT_ID, MASK_ID, PAD_ID, Int64
from antlm_bench.training.masking import Corruption, Ids, MaskableRows, apply_masking
from antlm_bench.training.recipe import ObjectiveSpec

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """b rows of one length t, all causal or all fully attending."""

    objective: str
    """clm, mlm or mntp."""
    input_ids: Int64
    """(b, t)."""
    targets: Int64
    """(b, t) ids, or -100."""
    segments: Int64
    """(b, t) document of each token, counted from 0 in every row."""
    causal: bool
    sample_indices: Int64
    """(b,) each row's position in the step, which keys its randomness."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Number of targets in the batch."""
        return int((self.targets != IGNORE_INDEX).sum())

    @property
    def masked_positions(self) -> NDArray[np.bool_]:
        """(b, t) which tokens were chosen to be hidden; mntp predicts them one position before."""
        has_target: NDArray[np.bool_] = self.targets != IGNORE_INDEX
        if self.objective != "mntp":
            return has_target
        first_column = np.zeros((len(has_target), 1), np.bool_)
        return np.concatenate([first_column, has_target[:, :-1]], axis=1)

    def __getitem__(self, rows: slice) -> TrainingBatch:
        inputs, targets, segments = (x[rows] for x in (self.input_ids, self.targets, self.segments))
        return TrainingBatch(
            self.objective, inputs, targets, segments, self.causal, self.sample_indices[rows]
        )

    @property
    def position_ids(self) -> Int64:
        """(b, t) the position of every token within its document's part of the row."""
        positions = np.arange(self.input_ids.shape[1])
        is_start = np.diff(self.segments, axis=1, prepend=-1) != 0
        starts: Int64 = np.maximum.accumulate(np.where(is_start, positions, 0), axis=1)
        return positions - starts

    def attention_mask(self) -> Tensor | None:
        """Return (b, 1, t, t), True where a position may attend: in its own document, and not after
        itself if causal.

        None if every row is one document: then only the direction matters.
        """
        if (self.segments == 0).all():
            return None
        segments = torch.from_numpy(self.segments)
        same_document = segments[:, None, :, None] == segments[:, None, None, :]
        return same_document.tril() if self.causal else same_document


def make_clm_batch(ids: Int64, segments: Int64, sample_indices: Int64) -> TrainingBatch:
    """Predict every token from those before it in its document. Padding is no target."""
    targets = np.full_like(ids, IGNORE_INDEX)
    is_target = (segments[:, 1:] == segments[:, :-1]) & (ids[:, 1:] != PAD_ID)
    targets[:, :-1] = np.where(is_target, ids[:, 1:], IGNORE_INDEX)
    return TrainingBatch("clm", ids, targets, _renumber_documents(segments), True, sample_indices)


@dataclass(frozen=True, slots=True)
class StepMasking:
    """How a step hides tokens."""

    spec: ObjectiveSpec
    mask_rate: float
    """Share of tokens."""
    seed_key: Sequence[int]
    """(seed of the run, step); with a row's sample index it keys what is hidden in the row."""
    vocab_size: int
    """Random words are drawn from the ids below it."""
    mask_counts: Ids | None = None
    """(b, t) how often each token was hidden before."""


def make_masked_batch(
    ids: Int64, segments: Int64, sample_indices: Int64, masking: StepMasking
) -> TrainingBatch:
    """Predict hidden tokens from all others in their document: at their own position (mlm), or one
    before it (mntp).

    Special tokens are never hidden.
    """
    spec = masking.spec
    candidates = ids >= FIRST_TEXT_ID
    if spec.masked == "mntp":  # the first token of a document's part has no position before it
        candidates[:, 0] = False
        candidates[:, 1:] &= segments[:, 1:] == segments[:, :-1]
    mask, random, _ = spec.corrupt
    corruption = Corruption(
        MASK_ID,
        np.arange(FIRST_TEXT_ID, masking.vocab_size),
        spec.spans,
        corrupt_whole_spans=spec.spans != "token",
        mask_share=mask,
        random_share=random,
        min_masked=spec.least,
    )
    keys = [(*masking.seed_key, int(sample)) for sample in sample_indices]
    rows = MaskableRows(ids, candidates, segments, masking.mask_counts)
    inputs, chosen = apply_masking(rows, masking.mask_rate, keys, corruption)
    targets = np.where(chosen, ids, IGNORE_INDEX)
    if spec.masked == "mntp":
        targets = np.concatenate([targets[:, 1:], np.full((len(ids), 1), IGNORE_INDEX)], axis=1)
    return TrainingBatch(
        spec.masked, inputs, targets, _renumber_documents(segments), False, sample_indices
    )


def truncate_rows(ids: Int64, segments: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Keep the first `lengths` (b,) tokens of rows (b, t); the rest becomes padding, a document of
    its own.
    """
    cut = np.arange(ids.shape[1]) >= lengths[:, None]
    return np.where(cut, PAD_ID, ids), np.where(cut, segments.max(initial=0) + 1, segments)


def _renumber_documents(segments: Int64) -> Int64:
    """Number the documents of every row from 0."""
    changes: NDArray[np.bool_] = np.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return np.cumsum(changes, axis=1)
