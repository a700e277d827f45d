"""Make batches for the training objectives: inputs, targets and the attention mask.

Under every objective the output at position i predicts targets[i], and -100 means no target.
targets[i] is the token at i + 1 for `clm` and `mntp` (masked next-token prediction), and the token
at i for `mlm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antlm_bench.training.corpus import FIRST_REGULAR_ID, MASK_ID, PAD_ID, Int64
from antlm_bench.training.masking import Corruption, Ids, MaskableRows, apply_masking
from antlm_bench.training.recipe import ObjectiveSpec

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """b rows of t tokens, all with causal or all with full attention."""

    objective: str
    """clm, mlm or mntp."""
    input_ids: Int64
    """(b, t) token ids."""
    targets: Int64
    """(b, t) token ids, or -100."""
    document_ids: Int64
    """(b, t) index of each token's document, counted from 0 in every row."""
    causal: bool
    """Whether attention is causal, else full."""
    row_indices: Int64
    """(b,) index of each row among all rows of the step. It seeds the row's masking and dropout."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())

    @property
    def chosen_positions(self) -> NDArray[np.bool_]:
        """(b, t), True for tokens that were chosen to be predicted from a corrupted input: masked,
        replaced or left unchanged. With mntp their targets are one position before. Only for mlm
        and mntp: clm chooses no tokens.
        """
        has_target: NDArray[np.bool_] = self.targets != IGNORE_INDEX
        if self.objective != "mntp":
            return has_target
        first_column = np.zeros((len(has_target), 1), np.bool_)
        return np.concatenate([first_column, has_target[:, :-1]], axis=1)

    def __getitem__(self, rows: slice) -> TrainingBatch:
        return replace(
            self,
            input_ids=self.input_ids[rows],
            targets=self.targets[rows],
            document_ids=self.document_ids[rows],
            row_indices=self.row_indices[rows],
        )

    @property
    def position_ids(self) -> Int64:
        """(b, t) position of every token, counted from 0 at each start of a document in the row."""
        positions = np.arange(self.input_ids.shape[1])
        is_start = np.diff(self.document_ids, axis=1, prepend=-1) != 0
        starts: Int64 = np.maximum.accumulate(np.where(is_start, positions, 0), axis=1)
        return positions - starts

    def attention_mask(self) -> Tensor | None:
        """Return (b, 1, t, t), True if the query position may attend to the key position.

        A position attends within its document and, if causal, not to later positions. Returns None
        if every row is one document: then `causal` alone determines the attention.
        """
        if (self.document_ids == 0).all():
            return None
        document_ids = torch.from_numpy(self.document_ids)
        same_document = document_ids[:, None, :, None] == document_ids[:, None, None, :]
        return same_document.tril() if self.causal else same_document


def make_clm_batch(ids: Int64, document_ids: Int64, row_indices: Int64) -> TrainingBatch:
    """Make a batch that predicts every token from earlier tokens of its document.

    ids, document_ids: (b, t). The document ids are any numbers that change where a document begins.
    Padding is not a target.
    """
    targets = np.full_like(ids, IGNORE_INDEX)
    is_target = (document_ids[:, 1:] == document_ids[:, :-1]) & (ids[:, 1:] != PAD_ID)
    targets[:, :-1] = np.where(is_target, ids[:, 1:], IGNORE_INDEX)
    return TrainingBatch(
        "clm",
        ids,
        targets,
        _renumber_documents(document_ids),
        causal=True,
        row_indices=row_indices,
    )


@dataclass(frozen=True, slots=True)
class StepMasking:
    """How one step masks tokens."""

    spec: ObjectiveSpec
    mask_rate: float
    """Share of the tokens that are chosen to be predicted, 0 to 1."""
    seed_key: Sequence[int]
    """(seed of the run, step). Together with a row's index it seeds the row's masking."""
    vocab_size: int
    """Random replacement tokens are drawn from FIRST_REGULAR_ID to vocab_size - 1."""
    mask_counts: Ids | None = None
    """(b, t) how often each position of the corpus was chosen before; None = not counted."""


def make_masked_batch(
    ids: Int64, document_ids: Int64, row_indices: Int64, masking: StepMasking
) -> TrainingBatch:
    """Make a batch that predicts masked tokens from their document.

    The prediction is at the token's own position (mlm) or one position before (mntp). Special
    tokens are never masked.
    """
    spec = masking.spec
    maskable = ids >= FIRST_REGULAR_ID
    if spec.masked == "mntp":  # a document's first token has no position before it
        maskable[:, 0] = False
        maskable[:, 1:] &= document_ids[:, 1:] == document_ids[:, :-1]
    mask_share, random_share, _ = spec.corrupt
    corruption = Corruption(
        MASK_ID,
        np.arange(FIRST_REGULAR_ID, masking.vocab_size),
        spec.spans,
        corrupt_whole_spans=spec.spans != "token",
        mask_share=mask_share,
        random_share=random_share,
        min_masked=spec.least,
    )
    row_seeds = [(*masking.seed_key, int(row)) for row in row_indices]
    rows = MaskableRows(ids, maskable, document_ids, masking.mask_counts)
    inputs, chosen = apply_masking(rows, masking.mask_rate, row_seeds, corruption)
    targets = np.where(chosen, ids, IGNORE_INDEX)
    if spec.masked == "mntp":
        targets = np.concatenate([targets[:, 1:], np.full((len(ids), 1), IGNORE_INDEX)], axis=1)
    return TrainingBatch(
        spec.masked,
        inputs,
        targets,
        _renumber_documents(document_ids),
        causal=False,
        row_indices=row_indices,
    )


def truncate_rows(ids: Int64, document_ids: Int64, lengths: Int64) -> tuple[Int64, Int64]:
    """Replace the tokens of row i from position lengths[i] on by padding.

    ids, document_ids: (b, t). lengths: (b,). The padding is a document of its own, so that no token
    attends to it.
    """
    is_padding = np.arange(ids.shape[1]) >= lengths[:, None]
    padding_document = document_ids.max(initial=0) + 1
    return np.where(is_padding, PAD_ID, ids), np.where(is_padding, padding_document, document_ids)


def _renumber_documents(document_ids: Int64) -> Int64:
    """Number the documents of every row from 0."""
    changes: NDArray[np.bool_] = np.diff(document_ids, axis=1, prepend=document_ids[:, :1]) != 0
    return np.cumsum(changes, axis=1)
