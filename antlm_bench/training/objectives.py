"""What a batch asks of the model: rows of text in, inputs with targets and the attention that fits them out.

All objectives share one alignment: the output at position i answers targets[i], and -100 asks nothing. `clm` and
`mntp` ask for the token after i, `mlm` for the token at i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antlm_bench.training.corpus import FIRST_WORD, MASK, PAD, Int64
from antlm_bench.training.masking import Corruption, Ids, Rows, hide
from antlm_bench.training.recipe import ObjectiveSpec

NOT_A_TARGET = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """b rows of one length t, all attending one way.

    inputs (b, t) ids; targets (b, t) ids or -100; segments (b, t) documents, counted from 0 in every row; causal:
    which way rows attend; samples (b,): each row's place in the step, which keys its randomness.
    """

    objective: str
    inputs: Int64
    targets: Int64
    segments: Int64
    causal: bool
    samples: Int64

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def count(self) -> int:
        """How many targets it holds."""
        return int((self.targets != NOT_A_TARGET).sum())

    @property
    def hidden(self) -> NDArray[np.bool_]:
        """(b, t) which tokens were chosen to be hidden; those of mntp are asked for one position before."""
        asked: NDArray[np.bool_] = self.targets != NOT_A_TARGET
        if self.objective != "mntp":
            return asked
        return np.concatenate([np.zeros((len(asked), 1), np.bool_), asked[:, :-1]], axis=1)

    def __getitem__(self, rows: slice) -> Batch:
        inputs, targets, segments = (x[rows] for x in (self.inputs, self.targets, self.segments))
        return Batch(self.objective, inputs, targets, segments, self.causal, self.samples[rows])

    @property
    def positions(self) -> Int64:
        """(b, t) the place of every token within its document's part of the row."""
        place = np.arange(self.inputs.shape[1])
        begins = np.diff(self.segments, axis=1, prepend=-1) != 0
        first: Int64 = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        return place - first

    def attention(self) -> Tensor | None:
        """(b, 1, t, t), True where a position may look: its own document, and if causal nothing behind it.

        None where rows are whole, so that there is nothing to say but the direction.
        """
        if (self.segments == 0).all():
            return None
        segments = torch.from_numpy(self.segments)
        inside = segments[:, None, :, None] == segments[:, None, None, :]
        return inside.tril() if self.causal else inside


def clm(ids: Int64, segments: Int64, samples: Int64) -> Batch:
    """Every token is predicted from those before it in its document. Padding is no target."""
    targets = np.full_like(ids, NOT_A_TARGET)
    asked = (segments[:, 1:] == segments[:, :-1]) & (ids[:, 1:] != PAD)
    targets[:, :-1] = np.where(asked, ids[:, 1:], NOT_A_TARGET)
    return Batch("clm", ids, targets, _counted(segments), True, samples)


@dataclass(frozen=True, slots=True)
class Masking:
    """How a step hides tokens. rate: share of tokens. seed: (seed of the run, step); with a row's sample number it keys
    what is hidden in the row. vocabulary: ids below it are words. counts: (b, t) how often each token was hidden."""

    spec: ObjectiveSpec
    rate: float
    seed: Sequence[int]
    vocabulary: int
    counts: Ids | None = None


def masked(ids: Int64, segments: Int64, samples: Int64, masking: Masking) -> Batch:
    """Hidden tokens are predicted from all others in their document: at their place (mlm), or one before it (mntp).

    Specials are never hidden.
    """
    spec = masking.spec
    candidates = ids >= FIRST_WORD
    if spec.masked == "mntp":  # nothing stands before the first token of a document's part
        candidates[:, 0] = False
        candidates[:, 1:] &= segments[:, 1:] == segments[:, :-1]
    mask, random, _ = spec.corrupt
    law = Corruption(
        MASK,
        np.arange(FIRST_WORD, masking.vocabulary),
        spec.spans,
        by_span=spec.spans != "token",
        masked=mask,
        random=random,
        least=spec.least,
    )
    keys = [(*masking.seed, int(sample)) for sample in samples]
    inputs, chosen = hide(Rows(ids, candidates, segments, masking.counts), masking.rate, keys, law)
    targets = np.where(chosen, ids, NOT_A_TARGET)
    if spec.masked == "mntp":
        targets = np.concatenate([targets[:, 1:], np.full((len(ids), 1), NOT_A_TARGET)], axis=1)
    return Batch(spec.masked, inputs, targets, _counted(segments), False, samples)


def shortened(ids: Int64, segments: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Rows (b, t) of which only the first `lengths` (b,) tokens are text: what follows is padding that text ignores."""
    cut = np.arange(ids.shape[1]) >= lengths[:, None]
    return np.where(cut, PAD, ids), np.where(cut, segments.max(initial=0) + 1, segments)


def _counted(segments: Int64) -> Int64:
    """Documents as they come in a row: 0, 1, ..."""
    changes: NDArray[np.bool_] = np.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return np.cumsum(changes, axis=1)
