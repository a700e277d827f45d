"""Keyword options of the Python API, so that editors complete them and type checkers check them.

Each class lists the fields of a dataclass of options (OpenOptions, ScoreOptions, FinetuneOptions,
TrainOptions), which holds the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict


class WeightKeywords(TypedDict, total=False):
    """How to open the files of a checkpoint."""

    revision: str | None
    """Branch, tag or commit of a hub id."""
    device: str
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: str
    """float32 (default), bfloat16 or float16."""
    batch_tokens: int | None
    """Tokens per forward pass. Scores do not depend on it."""
    trust_remote_code: bool
    """Run the checkpoint's own Python code."""
    allow_pickle: bool
    """Load pickled weights."""
    peft: str | None
    """Folder or hub id of a PEFT adapter that is merged into the weights."""
    allow_unused: bool
    """Open a checkpoint some of whose tensors the model does not use."""
    allow_missing: bool
    """Open a checkpoint that lacks parameters of the model; they are random."""
    original_layout: str | None
    """Published layout of the checkpoint, where files do not determine it (docs/layouts.md)."""


class OpenKeywords(WeightKeywords, total=False):
    """How to open a checkpoint for scoring."""

    bos: str
    """BOS policy: auto, always, never or tokenizer."""
    max_length: int | None
    """Longest text in tokens, special tokens included. Longer texts are not scored, never cut."""


class CheckpointKeywords(OpenKeywords, total=False):
    """How to open a checkpoint for scoring, with the tokenizer of another one."""

    tokenizer: str | None
    """Folder or hub id of the tokenizer, instead of the checkpoint's own."""


class ScoreKeywords(WeightKeywords, total=False):
    """Options of `score`."""

    tokenizer: str | None
    """Folder or hub id of the tokenizer, instead of the checkpoint's own."""
    bos: str | None
    """BOS policy: auto, always, never or tokenizer."""
    max_length: int | None
    """Longest text in tokens, special tokens included. Longer texts are counted as wrong."""
    limit: int | None
    """Only the first so many items of every paradigm."""
    columns: Mapping[str, str]
    """For a file of pairs: our column -> its column, as {"good": "grammatical"}."""
    allow_incomplete: bool
    """Score a suite whose files lack items."""
    ties: str | None
    """What a tie counts: half (1/k), strict (0), first or random."""
    compat: str | None
    """Conventions of a peer: lm-eval, minicons, babylm-2024, babylm-2025 or babylm-2026."""
    precision: str
    """exact, or adaptive (bfloat16, and float32 where the margin is small)."""
    engine: str
    """native, or minicons for models that ours cannot run."""
    again: bool
    """Compute cells again that the run folder already has."""


class FinetuneKeywords(WeightKeywords, total=False):
    """Options of `finetune`."""

    tokenizer: str | None
    """Folder or hub id of the tokenizer, instead of the checkpoint's own."""
    valid: str | None
    """File of scored texts that goes with a train file of the user's."""
    limit_train: Mapping[str, int]
    """Task -> number of training texts; "" = every task."""
    limit_valid: Mapping[str, int]
    """Task -> number of scored texts; "" = every task."""
    preset: str
    """Published settings, as babylm-2025."""
    changes: Sequence[str]
    """Single settings, as "lr=1e-5"."""
    pooling: str
    """Position that the classifier reads: auto, first, last or mean."""
    lora: int
    """Rank of a LoRA adapter; 0 = all weights are trained."""
    frozen: bool
    """Train no weights: fit a logistic regression on the backbone's features."""
    again: bool
    """Compute cells again that the run folder already has."""


class TrainKeywords(TypedDict, total=False):
    """Options of `train`."""

    scale: str
    """Size of the recipe, as "nano"."""
    changes: Sequence[str]
    """Single settings of the recipe, as "optimizer.lr=1e-3"."""
    teachers: Sequence[str]
    """Checkpoints for a distilled recipe, in its order; none = they are trained first."""
    resume: bool
    """Refuse to begin: there must be a run to continue."""
    device: str
    """auto or cpu."""
    precision: str
    """float32 or bfloat16."""
    micro_tokens: int | None
    """Tokens per forward pass."""
    compiled: bool
    """Compile the model."""
    save_every: float
    """Minutes between two saved states."""
    stop_after: int | None
    """Stop after so many steps of this call."""
    trackers: Sequence[str]
    """Experiment trackers of Accelerate."""
