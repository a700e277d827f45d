"""What a batch asks of the model: rows of text in, inputs with targets and the attention that fits
them out.

All objectives share one alignment: the output at position i answers targets[i], and -100 asks
nothing. `clm` and `mntp` ask for the token after i, `mlm` for the token at i.
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
    """b rows of one length t, all attending one way.

    inputs (b, t) ids; targets (b, t) ids or -100; segments (b, t) documents, counted from 0 in
    every row; causal: which way rows attend; samples (b,): each row's place in the step, which keys
    its randomness.
    """

    objective: str
    input_ids: Int64
    targets: Int64
    segments: Int64
    causal: bool
    sample_indices: Int64

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """How many targets it holds."""
        return int((self.targets != IGNORE_INDEX).sum())

    @property
    def masked_positions(self) -> NDArray[np.bool_]:
        """(b, t) which tokens were chosen to be hidden; those of mntp are asked for one position
        before.
        """
        asked: NDArray[np.bool_] = self.targets != IGNORE_INDEX
        if self.objective != "mntp":
            return asked
        return np.concatenate([np.zeros((len(asked), 1), np.bool_), asked[:, :-1]], axis=1)

    def __getitem__(self, rows: slice) -> TrainingBatch:
        inputs, targets, segments = (x[rows] for x in (self.input_ids, self.targets, self.segments))
        return TrainingBatch(
            self.objective, inputs, targets, segments, self.causal, self.sample_indices[rows]
        )

    @property
    def position_ids(self) -> Int64:
        """(b, t) the place of every token within its document's part of the row."""
        place = np.arange(self.input_ids.shape[1])
        begins = np.diff(self.segments, axis=1, prepend=-1) != 0
        first: Int64 = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        return place - first

    def attention_mask(self) -> Tensor | None:
        """(b, 1, t, t), True where a position may look: its own document, and if causal nothing
        behind it.

        None where rows are whole, so that there is nothing to say but the direction.
        """
        if (self.segments == 0).all():
            return None
        segments = torch.from_numpy(self.segments)
        inside = segments[:, None, :, None] == segments[:, None, None, :]
        return inside.tril() if self.causal else inside


def make_clm_batch(ids: Int64, segments: Int64, sample_indices: Int64) -> TrainingBatch:
    """Every token is predicted from those before it in its document. Padding is no target."""
    targets = np.full_like(ids, IGNORE_INDEX)
    asked = (segments[:, 1:] == segments[:, :-1]) & (ids[:, 1:] != PAD_ID)
    targets[:, :-1] = np.where(asked, ids[:, 1:], IGNORE_INDEX)
    return TrainingBatch("clm", ids, targets, _renumber_documents(segments), True, sample_indices)


@dataclass(frozen=True, slots=True)
class StepMasking:
    """How a step hides tokens. rate: share of tokens. seed: (seed of the run, step); with a row's
    sample number it keys what is hidden in the row. vocabulary: ids below it are words. counts: (b,
    t) how often each token was hidden.
    """

    spec: ObjectiveSpec
    mask_rate: float
    seed_key: Sequence[int]
    vocab_size: int
    mask_counts: Ids | None = None


def make_masked_batch(
    ids: Int64, segments: Int64, sample_indices: Int64, masking: StepMasking
) -> TrainingBatch:
    """Hidden tokens are predicted from all others in their document: at their place (mlm), or one
    before it (mntp).

    Specials are never hidden.
    """
    spec = masking.spec
    candidates = ids >= FIRST_TEXT_ID
    if spec.masked == "mntp":  # nothing stands before the first token of a document's part
        candidates[:, 0] = False
        candidates[:, 1:] &= segments[:, 1:] == segments[:, :-1]
    mask, random, _ = spec.corrupt
    law = Corruption(
        MASK_ID,
        np.arange(FIRST_TEXT_ID, masking.vocab_size),
        spec.spans,
        corrupt_whole_spans=spec.spans != "token",
        mask_share=mask,
        random_share=random,
        min_masked=spec.least,
    )
    keys = [(*masking.seed_key, int(sample)) for sample in sample_indices]
    inputs, chosen = apply_masking(
        MaskableRows(ids, candidates, segments, masking.mask_counts), masking.mask_rate, keys, law
    )
    targets = np.where(chosen, ids, IGNORE_INDEX)
    if spec.masked == "mntp":
        targets = np.concatenate([targets[:, 1:], np.full((len(ids), 1), IGNORE_INDEX)], axis=1)
    return TrainingBatch(
        spec.masked, inputs, targets, _renumber_documents(segments), False, sample_indices
    )


def truncate_rows(ids: Int64, segments: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Rows (b, t) of which only the first `lengths` (b,) tokens are text: what follows is padding
    that text ignores.
    """
    cut = np.arange(ids.shape[1]) >= lengths[:, None]
    return np.where(cut, PAD_ID, ids), np.where(cut, segments.max(initial=0) + 1, segments)


def _renumber_documents(segments: Int64) -> Int64:
    """Documents as they come in a row: 0, 1, ..."""
    changes: NDArray[np.bool_] = np.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return np.cumsum(changes, axis=1)
