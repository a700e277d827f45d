"""The vocabulary of the house: every value that crosses a module border is one of these frozen
types.

Log-probabilities are natural logarithms (nats) everywhere. Shapes are written (n,), (n, t).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Attention = Literal["causal", "full"]
Labels = Mapping[str, str]
ProgressCallback = Callable[[float], None]  # receives the share (0..1) of the work just done
WORD_START_TARGET = (
    -1
)  # a target of Probes: not one token, but any that begins a word (`Engine.beginnings`)


@dataclass(frozen=True, slots=True)
class Option:
    """One candidate text of an item; `span` holds the (start, end) characters that count, None =
    all of them.

    length: how many characters a mean per character divides by, None = those that count.
    """

    text: str
    span: tuple[int, int] | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One question put to a model: which option is most probable? Two options make a minimal pair.

    `gold` is the index of the right option (an int), or a human rating in 0..1 (a float) for
    `preference` suites. `labels` are the groups it belongs to, coarse to fine: field, phenomenon,
    paradigm, ...
    """

    id: str
    options: tuple[Option, ...]
    gold: int | float
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One text to be classified, or a pair of texts (`second` != ""); `gold` is the index of its
    class.

    `labels` are groups, as of an Item; `group` names what must stay on one side of a split (a
    paragraph with many questions), "" = the example alone.
    """

    id: str
    first: str
    second: str
    gold: int
    labels: Labels = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Texts of one exact length as token ids, specials included: the unit that scoring methods work
    on.

    ids: (n, t) token ids. scored: (n, t) True where the token counts. words: (n, t) index of the
    first word that a token belongs to, -1 for specials. text: (n,) which text of the caller each
    row is. last_words: (n, t) index of the last word that a token belongs to; None = no token
    belongs to more than one.
    """

    ids: Ints
    score_mask: Bools
    word_ids: Ints
    text_index: Ints
    last_word_ids: Ints | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """What a model must be shown and where its answer is read: rows of one exact length and
    attention.

    ids: (r, t) rows as the model sees them (hidden tokens already replaced by the mask id). For
    each of k reads: row (k,) into ids, at (k,) the position whose logits are read, target (k,) the
    token id whose log-probability is wanted (or WORD_START), text (k,) the caller's text whose
    score it adds to.
    """

    ids: Ints
    attention: Attention
    row: Ints
    position: Ints
    target: Ints
    text_index: Ints


@dataclass(frozen=True, slots=True)
class Prediction:
    """The durable artefact: what a model said of one item. Holds ids and numbers, never the text of
    the stimulus.

    gold: see Item. pred: index of the preferred option (the first of the best; ties show in
    `scores`). scores: summed log-probability per option. tokens / characters: how many of them each
    score sums over, or the characters that its Option says. Of a classified text the options are
    the classes, the scores their log-probabilities, and tokens and characters how much of the text
    was read. flags: facts about the item under this model, out of FLAGS. judged: what the suite's
    own judge makes of the answer (lm_eval_bridge.task_metrics), nan where it says nothing; () = no
    judge. kept: what it says, as JSON, of which only all items together make a number (`judged`
    then holds what the item contributes to it); "" where it says nothing.
    """

    id: str
    gold: int | float
    pred: int
    scores: tuple[float, ...]
    tokens: tuple[int, ...]
    characters: tuple[int, ...]
    labels: Labels = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    judged: tuple[float, ...] = ()
    kept: tuple[str, ...] = ()


# Facts that an accuracy must be read with; counted beside it.
FLAGS: dict[str, str] = {
    "unk": "an option holds a token that the tokenizer does not know",
    "too-long": "an option does not fit the model's max_length; the item is wrong, or left out of a correlation",
    "blind": "the options differ only in tokens that are not scored",
    "identical": "two options are the same text",
    "float32": "rescored in fp32 by --precision adaptive",
    "cut": "the text to be classified was longer than max_length, and lost its end",
    "lost": "an option holds a character that no token stands for: the model does not see it",
    "spans-words": "an option holds a token that spans two words; mlm-l2r counts it to both",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with what it rests on: n items and a 95% interval [low, high]. `flags` counts FLAGS
    and ties.
    """

    value: float
    n: int
    low: float
    high: float
    flags: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """One line of a result: `level` names the label (paradigm, phenomenon, field, ...), `name` its
    value.

    within: the value one level up, where all its items share one; else "".
    """

    level: str
    name: str
    estimate: Estimate
    within: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """What one suite says of one checkpoint under one method; derived from predictions, never the
    other way round.

    metric: accuracy | spearman | f1 | macro-f1 | mcc | delta-r2 | surprisal | acquisition |
    task-score | task-penalty | whole-score | whole-penalty | bits-per-byte
    (reporting.metric_units). macro: the levels that the headline averages over, outermost first.
    headline: the number that gets published. views: the same number under other intervals or
    reductions (closed-form, clustered, per-token, per-character, micro). groups: coarse to fine.
    notes: sentences for a reader.
    """

    suite: str
    method: str
    metric: str
    macro: tuple[str, ...]
    headline: Estimate
    views: Mapping[str, Estimate]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One (suite, method, seed) of a run: its content key, its summary, and the sha256 of its file
    of predictions.

    A task that is finetuned is a suite of its own ("glue-2025.rte"), its methods are
    "finetune-causal" and "finetune-full", and it has one cell per seed; a scored cell has no seed.
    "frozen-causal" and "frozen-full" are classifiers on a frozen backbone; their seed only decides
    which texts were held out.
    settings: all that the predictions depend on. history: how the cell came about (losses, epochs,
    what went wrong); no number is derived from it. suite: where runs are read, a name that tells
    the user's own files apart (runs.suite_names); settings["suite"] is the name under which the
    suite was scored.
    """

    suite: str
    method: str
    key: str
    settings: Mapping[str, Any]
    summary: Summary
    digest: str = ""
    seed: int | None = None
    history: Mapping[str, Any] = field(default_factory=dict)
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's own files that the suite was read from; () = the catalog, or
    lm-eval.
    """
    file: str = field(default="", compare=False)
    """The file of predictions, relative to the run folder; "" = named after suite, method and seed.
    """

    @property
    def is_frozen(self) -> bool:
        """Whether a classifier was fitted on a frozen backbone, and nothing was finetuned."""
        return self.method.startswith("frozen-")

    @property
    def finetuned_task(self) -> tuple[str, str]:
        """(suite, task) of a finetuned cell: ("glue-2025", "rte"). A user's own file is both."""
        suite = str(self.settings.get("collection") or self.suite.partition(".")[0])
        return suite, self.suite.removeprefix(f"{suite}.")


def finetune_method(attention: Attention) -> str:
    """Return the method of a cell that was finetuned with that attention: "finetune-causal"."""
    return f"finetune-{attention}"


def task_full_name(suite: str, task: str) -> str:
    """Return the name of a finetuned task as a suite: "glue-2025.rte"; "train" for a train.csv."""
    return task if task == suite else f"{suite}.{task}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything needed to repeat a run: which checkpoint (as `checkpoints.describe` found it) and
    which software.
    """

    schema: int
    model: Mapping[str, Any]
    software: Mapping[str, str]
    created: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, opened: one checkpoint, its cells, and its predictions on demand
    (`runs.predictions`).
    """

    path: str
    manifest: Manifest
    cells: tuple[Cell, ...]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)


class ModelInfo(Protocol):
    """What must be known of a model before it can be asked anything, whatever engine reads it."""

    @property
    def name(self) -> str: ...

    @property
    def attends(self) -> frozenset[str]:
        """The attentions it can be run with: {"causal"}, {"full"} or both."""
        ...

    @property
    def eos(self) -> str:
        """The EOS token as text; "None" where there is none, which is what one peer then writes
        before a sentence.
        """
        ...

    @property
    def mask_id(self) -> int | None: ...

    @property
    def no_mask_reason(self) -> str:
        """Why `mask_id` is None, as the end of a sentence; "" where it is not."""
        ...

    @property
    def max_length(self) -> int | None:
        """Longest row in tokens, specials included; None = unbounded."""
        ...


class LanguageModel(ModelInfo, Protocol):
    """What the scorer needs from a model, and all it needs: a test double is twenty lines."""

    def encode(
        self, texts: Sequence[str], spans: Sequence[tuple[int, int] | None], attention: Attention
    ) -> Encodings:
        """Token ids with the specials that this model wants under that attention."""
        ...

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: Callable[[float], None] | None = None
    ) -> Floats:
        """Summed log-probabilities (texts,): each probe read is added to the text it belongs to.

        `tick` is told the share (0..1) of the work that has just been done.
        """
        ...


@dataclass(frozen=True, slots=True)
class Encodings:
    """A bulk of n texts, tokenised: one Encoded per exact length, and facts per text.

    unk (n,): holds a token that the tokenizer does not know. too_long (n,): does not fit into the
    model; such texts are in no Encoded. flags: further names out of FLAGS -> (n,).
    """

    batches: tuple[EncodedBatch, ...]
    unk: Bools
    too_long: Bools
    flags: Mapping[str, Bools] = field(default_factory=dict)

    def collect_flags(self, texts: Sequence[int]) -> tuple[str, ...]:
        """Names out of FLAGS that any of these texts raises by its tokens."""
        found = {"unk": self.unk, **self.flags}
        return tuple(name for name in FLAGS if name in found and any(found[name][i] for i in texts))
