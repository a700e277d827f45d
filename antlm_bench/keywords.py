"""Types of the keyword options of the Python API, for editors and type checkers.

A class for a function lists the fields of its dataclass of options (OpenOptions, ScoreOptions,
FinetuneOptions, TrainOptions), which holds the defaults, and other names of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from antlm_bench.types import MethodPairs, Names

COMMAND_LINE_NAMES = {
    "attention": "attentions",
    "bad_first": "good",
    "baseline": "published",
    "batch_tokens": "micro_tokens",
    "compat": "preset",
    "compile": "compiled",
    "contrast": "contrasts",
    "good_first": "good",
    "member": "stand_ins",
    "method": "methods",
    "model": "models",
    "region": "regions",
    "seed": "seeds",
    "set": "changes",
    "suite": "suites",
    "task": "tasks",
    "teacher": "teachers",
    "track": "trackers",
}
"""Option of the command line -> keyword, where the names differ. Functions take both."""
OUTPUT_OPTIONS = (
    *("format", "json", "csv", "latex", "markdown", "html", "svg", "png", "junit", "github"),
    *("by", "flips", "show_texts", "model_index", "training", "strict", "provenance"),
    *("dry_run", "executor", "executor_option", "script_only"),
)
"""Options that decide what a command prints or writes, or where it runs. Functions return data
instead, and run where they are called."""


class WeightKeywords(TypedDict, total=False):
    """Options for loading the files of a checkpoint."""

    revision: str | None
    """Branch, tag or commit on the Hugging Face Hub."""
    device: str
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: str
    """float32 (default), bfloat16, float16 or float64."""
    batch_tokens: int | None
    """Tokens per forward pass. Scores do not depend on it."""
    trust_remote_code: bool
    """Run the checkpoint's own Python code."""
    allow_pickle: bool
    """Load pickled weights."""
    peft: str | None
    """Folder or hub id of a PEFT adapter that is merged into the weights."""
    allow_unused: bool
    """Open a checkpoint even if the model does not use some of its tensors."""
    allow_missing: bool
    """Open a checkpoint even if it lacks parameters of the model, which are then random."""
    original_layout: str | None
    """Published layout, if the checkpoint's files leave it open (docs/reference/layouts.md)."""


class OpenKeywords(WeightKeywords, total=False):
    """Options for opening a checkpoint to score texts."""

    bos: str
    """BOS policy: auto, always, never or tokenizer."""
    max_length: int | None
    """Longest text in tokens, special tokens included. Longer texts are neither scored nor cut."""


class CheckpointKeywords(OpenKeywords, total=False):
    """Options for opening a checkpoint to score texts, including another tokenizer."""

    tokenizer: str | None
    """Folder or hub id of a tokenizer that replaces the checkpoint's."""


class SurprisalKeywords(CheckpointKeywords, total=False):
    """Options of `surprisal`: those for opening a checkpoint, and the layout of a user's table."""

    conditions: Names
    """Columns that hold a text per row each. The name of the column is the condition."""
    position: Names
    """Column with the number of the critical word, from 1: one, or one per condition."""
    spillover: int | None
    """Number of words after the critical one that are regions; default: 2."""


class ScoreKeywords(WeightKeywords, total=False):
    """Options of `score`."""

    tokenizer: str | None
    """Folder or hub id of a tokenizer that replaces the checkpoint's."""
    bos: str | None
    """BOS policy: auto, always, never or tokenizer."""
    max_length: int | None
    """Longest text in tokens, special tokens included. Longer texts are never cut: they are wrong
    in an accuracy, and left out of other numbers.
    """
    limit: int | None
    """Score only the first `limit` items of every paradigm."""
    columns: Mapping[str, str]
    """For a file of pairs: our column -> its column, as {"good": "grammatical"}."""
    layout: str
    """Layout of a user's file: columns, alternating, labelled, long or judgements."""
    good: str
    """Which sentences of a user's file are right: first, second (of two lines), or a label."""
    allow_incomplete: bool
    """Score a suite even if its files lack items."""
    unigrams: str | None
    """For suites of judgements: a text whose tokens are counted for SLOR (a file, a folder, a hub
    dataset), or "training" = the text that a checkpoint of `train` was trained on."""
    words: str | None
    """For mlm-l2r, which masks the rest of a word: the rule that splits a text into words (spaces,
    characters, icu, jieba, fugashi, pythainlp); default: the words of the tokenizer."""
    require_all: bool
    """Score nothing if the data of one of several suites are absent; default: score the others."""
    ties: str | None
    """Credit for a tie: half (1/k of k tied options), strict (0), first or random."""
    compat: str | None
    """Scoring conventions of lm-eval, minicons, babylm-2024, babylm-2025 or babylm-2026."""
    precision: str
    """exact, or adaptive (bfloat16 or int8, and float32 for items with a small log-probability gap;
    some choices may differ from float32)."""
    engine: str
    """native, or minicons for models that the native engine cannot run."""
    name: str | None
    """Name of the model in tables; default: that of its folder or hub id."""
    again: bool
    """Recompute cells that the run folder already has."""
    replace: bool
    """Remove results of the same suites under other limits."""
    shard: str | None
    """"2/4": compute only the second of four parts of the predictions; `merge` joins them."""
    method: Names
    """The same as `methods`."""


class FinetuneKeywords(WeightKeywords, total=False):
    """Options of `finetune`."""

    tokenizer: str | None
    """Folder or hub id of a tokenizer that replaces the checkpoint's."""
    valid: str | None
    """File of texts to score, for a training file of the user's."""
    columns: Mapping[str, str]
    """For files of texts: our column -> its column, as {"text": "sentence"}."""
    limit_train: Mapping[str, int]
    """Task -> number of training texts; "" = every task."""
    limit_valid: Mapping[str, int]
    """Task -> number of scored texts; "" = every task."""
    preset: str
    """Name of published settings, for example babylm-2025."""
    changes: Sequence[str]
    """Changes of single settings, for example "lr=1e-5"."""
    pooling: str
    """Hidden states that the classifier reads: auto, first, last or mean."""
    lora: int
    """Rank of a LoRA adapter; 0 = all weights are trained."""
    frozen: bool
    """Train no weights of the model: fit a logistic regression on its hidden states."""
    name: str | None
    """Name of the model in tables; default: that of its folder or hub id."""
    again: bool
    """Recompute cells that the run folder already has."""
    replace: bool
    """Remove results of the same suites under other limits."""
    task: Names
    """The same as `tasks`."""
    seed: Sequence[int] | int
    """The same as `seeds`."""
    attention: Names
    """The same as `attentions`."""
    compat: str
    """The same as `preset`."""
    set: Sequence[str]
    """The same as `changes`."""


class TrainKeywords(TypedDict, total=False):
    """Options of `train`."""

    scale: str
    """Size of the recipe, for example "nano"."""
    changes: Sequence[str]
    """Changes of single settings of the recipe, for example "optimizer.lr=1e-3"."""
    teachers: Sequence[str]
    """Teacher checkpoints of a distillation recipe, in its order; () = train them first."""
    resume: bool
    """Continue an interrupted run; fail if there is none."""
    device: str
    """auto or cpu."""
    precision: str
    """float32 or bfloat16."""
    micro_tokens: int | None
    """Tokens per forward pass."""
    compiled: bool
    """Compile the model."""
    save_every: float
    """Minutes between two saved training states."""
    stop_after: int | None
    """Number of steps after which this call stops."""
    trackers: Sequence[str]
    """Experiment trackers of Accelerate, for example "tensorboard"."""
    set: Sequence[str]
    """The same as `changes`."""
    teacher: Sequence[str]
    """The same as `teachers`."""
    batch_tokens: int | None
    """The same as `micro_tokens`."""
    compile: bool
    """The same as `compiled`."""
    track: Sequence[str]
    """The same as `trackers`."""


class CompareKeywords(TypedDict, total=False):
    """Other names of the keywords of `compare` and `check`."""

    suite: Names
    """The same as `suites`."""
    method: MethodPairs
    """The same as `methods`."""


class ReportKeywords(TypedDict, total=False):
    """Other names of the keywords of `report`."""

    member: Mapping[str, str]
    """The same as `stand_ins`."""
    baseline: Names
    """The same as `published`."""


class DesignKeywords(TypedDict, total=False):
    """Options of `effects`."""

    factors: Names
    """Factors: columns, or names for the parts of `condition`; default: `condition`."""
    separator: str
    """Characters at which `condition` is split into the levels of the factors; default: "_"."""
    per: Names
    """Columns; effects are computed separately for each of their values, as for each model."""
    regions: Names
    """Regions, in the order of results; default: all that have a name."""
    baseline: Names
    """Levels that are subtracted from the others of their factor."""
    contrasts: Names
    """Contrasts of conditions, as "a - b" or "a - 0.5*b - 0.5*c"; default: all main effects and
    interactions."""
    value: str
    """Column of the values; default: the first whose name begins with `surprisal`."""
    region: Names
    """The same as `regions`."""
    contrast: Names
    """The same as `contrasts`."""
