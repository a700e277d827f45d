"""Core data types shared across modules. All are frozen.

Log-probabilities are natural logarithms (nats) everywhere. Shapes are written (n,), (n, t).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import RunError, UnknownCell
from antlm_bench.notebook import ArrowTable, to_html_table
from antlm_bench.printable import make_printable

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Attention = Literal["causal", "full", "cross", "denoising"]
"""What a prediction may depend on: the tokens before it ("causal"), or the whole row ("full"). In
an encoder-decoder: the source in the encoder and the tokens before it ("cross"), or a text in the
encoder with a masked token, and what the decoder has restored before it ("denoising")."""
Labels = Mapping[str, str]
Span = tuple[int, int] | None
"""(start, end) of the scored characters of a text; None = all."""
Names = Sequence[str | Path] | str | Path
"""One name or path, or several."""
MethodPairs = Sequence[str | tuple[str, str]] | str
"""One scoring method or several: "mlm", or "causal=mlm" or ("causal", "mlm") for the first run's
causal and the second run's mlm."""
ProgressCallback = Callable[[float], None]
"""Receives the share (0..1) of the work that was just done."""
MAX_NAMES_SHOWN = 5
"""Number of suites, models or cells that the repr of a result names."""


def as_list(names: Names) -> list[str]:
    """Return one name, or several, as a list of strings."""
    return [str(name) for name in ([names] if isinstance(names, str | Path) else names)]


@dataclass(frozen=True, slots=True)
class Option:
    """One candidate text of an item."""

    text: str
    span: Span = None
    length: int | None = None
    """Number of characters that a mean per character divides by; None = the scored ones."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question: which option is most probable? Two options make a minimal pair."""

    id: str
    options: tuple[Option, ...]
    gold: int | float
    """Index of the right option (an int), or a human rating in 0..1 (a float)."""
    labels: Labels = field(default_factory=dict)
    """Level -> group, coarse to fine: field, phenomenon, paradigm, ..."""
    cluster: str = ""
    """Items with the same hash belong together (questions on a passage); "" = alone. Intervals
    depend on it, scores do not."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text to be classified, or a pair of texts."""

    id: str
    first: str
    second: str
    """Second text of a pair; "" = a single text."""
    gold: int
    """Index of the class."""
    labels: Labels = field(default_factory=dict)
    """Label level -> label, as in Item."""
    group: str = ""
    """Examples of one group (questions on a paragraph) stay on one side of a split; "" = alone."""
    cluster: str = ""
    """As in Item."""


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """n texts of t tokens, special tokens included: the unit that scoring methods work on."""

    ids: Ints
    """(n, t) token ids."""
    score_mask: Bools
    """(n, t) True where the token is scored."""
    word_ids: Ints
    """(n, t) index of the first word that a token belongs to, -1 for special tokens."""
    text_index: Ints
    """(n,) index of each row in the caller's texts."""
    last_word_ids: Ints | None = None
    """(n, t) index of the last word that a token belongs to; None = as `word_ids`."""
    source_ids: Ints | None = None
    """"cross": (n, s) what the encoder reads; `ids` are what the decoder reads."""
    restoration: Restoration | None = None
    """"denoising": how the decoder restores a text; `ids` are what the encoder reads."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """How the decoder of a denoiser restores a masked token of the encoder's text."""

    prefix: tuple[int, ...]
    """What the decoder reads first: its start token, and the sentinel or the text's specials."""
    repeats_text: bool
    """True: the decoder writes the whole text again (BART). False: only what was masked (T5)."""
    text_start: int
    """Number of special tokens before the text in the encoder's row."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Rows of tokens (r, t) and the k log-probabilities to read from them."""

    ids: Ints
    """(r, t) token ids as the model sees them, hidden tokens replaced by the mask id."""
    attention: Attention
    row: Ints
    """(k,) index into `ids`."""
    position: Ints
    """(k,) position whose logits are read."""
    target: Ints
    """(k,) token id whose log-probability is wanted; -1, -2, ... = a set of tokens
    (Engine.set_token_sets)."""
    text_index: Ints
    """(k,) index of the caller's text to whose score the log-probability is added."""
    source_ids: Ints | None = None
    """(r, s) what the encoder reads; `ids` are then what the decoder reads."""


TOO_LONG_HINT = "shorten the texts, or raise --max-length if you gave it; a token of ByT5 is a byte"
"""What to do about texts that are too long for a model."""
FLAGS: dict[str, str] = {
    "unk": "an option holds a token that the tokenizer does not know",
    "too-long": "an option does not fit the model's max_length; the item is wrong, or left out of a"
    " correlation",
    "blind": "the options differ only in tokens that are not scored",
    "identical": "two options are the same text",
    "float32": "rescored in fp32 by --precision adaptive",
    "cut": "the text to be classified was longer than max_length, and lost its end",
    "lost": "an option holds a character that no token stands for: the model does not see it",
    "spans-words": "an option holds a token that spans two words; mlm-l2r counts it to both",
    "int8": "scored with int8 linear layers by --precision adaptive",
}
"""Facts about items that are counted beside a score."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    """In the unit of the metric: a fraction, a correlation, nats."""
    n: int
    """Number of items."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """A key of FLAGS, or "tie" -> number of items."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval (low, high), in the unit of `value`."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Group:
    """The estimate of one group of items."""

    level: str
    """Level of the label: paradigm, phenomenon, field, ..."""
    name: str
    """Value of the label."""
    estimate: Estimate
    within: str = ""
    """The group one level up, if all items share one."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one suite under one method. They are derived from predictions."""

    suite: str
    """As in Cell."""
    method: str
    """Scoring method, or method of a finetuned cell."""
    metric: str
    """A name of metrics.METRICS."""
    macro: tuple[str, ...]
    """Levels that the headline averages over, outermost first; () = over items."""
    headline: Estimate
    """The number that gets published."""
    views: Mapping[str, Estimate]
    """The headline under other intervals or reductions: closed-form, clustered, per-token, ..."""
    groups: tuple[Group, ...]
    """Coarse to fine."""
    notes: tuple[str, ...] = ()
    """Sentences for a reader."""
    num_clusters: int = 0
    """Number of clusters that the intervals count, 0 = items are treated as independent."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One (suite, method, seed) of a run.

    A finetuned task is a suite of its own ("glue-2025.rte"). Its methods are "finetune-causal" and
    "finetune-full", and it has one cell per seed; a scored cell has no seed. "frozen-causal" and
    "frozen-full" are classifiers on a frozen backbone, whose seed only decides which texts were
    held out.
    """

    suite: str
    """Where runs are read, a name that tells the user's own files apart (runs.suite_names)."""
    method: str
    """Scoring method, or method of a finetuned cell."""
    key: str
    """Content key: the hash of `settings`."""
    settings: Mapping[str, Any]
    """All that the predictions depend on. "suite" is the name under which it was scored."""
    summary: Summary
    """The numbers."""
    digest: str = ""
    """sha256 of the predictions file."""
    seed: int | None = None
    """Seed of a finetuned cell; None = the cell was scored."""
    history: Mapping[str, Any] = field(default_factory=dict)
    """How the cell came about (losses, epochs, failures). No number is derived from it."""
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's own files of the suite; () = the catalog, or lm-eval."""
    file: str = field(default="", compare=False)
    """Predictions file, relative to the run folder; "" = named after suite, method and seed."""

    def __repr__(self) -> str:
        """Return one line: suite, method, seed and number."""
        return f"<Cell {describe_cells([self])}: {self.estimate.value:.4f}>"

    @property
    def estimate(self) -> Estimate:
        """The published number with its 95% interval: a fraction, a correlation or nats."""
        return self.summary.headline

    @property
    def is_finetuned(self) -> bool:
        """Whether a classifier was finetuned: one seed, or the average over seeds."""
        return self.method.startswith("finetune-")

    @property
    def limit(self) -> Any:
        """The limit on its items: a number, or (rows to train on, rows to score) of a finetuned
        task; None = all items.
        """
        limit = self.settings.get("limit")
        if not isinstance(limit, list | tuple):
            return limit
        return tuple(limit) if any(rows is not None for rows in limit) else None

    @property
    def is_frozen(self) -> bool:
        """Whether a classifier was fitted on a frozen backbone, and nothing was finetuned."""
        return self.method.startswith("frozen-")

    @property
    def finetuned_task(self) -> tuple[str, str]:
        """(suite, task) of a finetuned cell: ("glue-2025", "rte"). A user's own file is both."""
        suite = str(self.settings.get("collection") or self.suite.partition(".")[0])
        return suite, self.suite.removeprefix(f"{suite}.")


def describe_cells(cells: Iterable[Cell]) -> str:
    """Return the suites of cells with their methods, shortened."""
    methods_by_suite: dict[str, dict[str, None]] = {}
    for cell in cells:
        seed = "" if cell.seed is None else f" seed {cell.seed}"
        methods_by_suite.setdefault(cell.suite, {})[f"{cell.method}{seed}"] = None
    names = [f"{suite} ({', '.join(methods)})" for suite, methods in methods_by_suite.items()]
    return shorten_list(names)


def shorten_list(names: Sequence[str]) -> str:
    """Return names for the repr of a result, printable, with the number of those left out."""
    num_hidden = len(names) - MAX_NAMES_SHOWN
    shown = [*names[:MAX_NAMES_SHOWN], *([f"{num_hidden} more"] if num_hidden > 0 else [])]
    return make_printable(", ".join(shown))


def finetune_method(attention: Attention, *, frozen: bool = False) -> str:
    """Return the method of a finetuned cell, "finetune-causal", or of one with a frozen backbone,
    "frozen-causal".
    """
    return f"{'frozen' if frozen else 'finetune'}-{attention}"


def task_full_name(suite: str, task: str) -> str:
    """Return the name of a finetuned task as a suite: "glue-2025.rte"; "train" for a train.csv."""
    return task if task == suite else f"{suite}.{task}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The checkpoint and the software of a run, needed to repeat it."""

    schema: int
    """Schema version of run.json."""
    model: Mapping[str, Any]
    """Metadata of the checkpoint (checkpoints.metadata.describe_checkpoint)."""
    software: Mapping[str, str]
    """Package -> version."""
    created: str
    """Time at which the run began, in UTC (ISO 8601)."""


CellKey = str | tuple[str, str] | tuple[str, str, int]
"""Suite; suite and method; or suite, method and seed."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, opened: one checkpoint and its cells.

    A run is a sequence of cells that is indexed by name:

        run = antlm_bench.load_run("reports/gpt2")
        run["blimp"].estimate.value             # 0.834, a fraction
        run["blimp", "mlm"].estimate            # where the suite was scored by several methods
        run.predictions("blimp").to_pandas()    # one row per item
    """

    path: str
    manifest: Manifest
    cells: tuple[Cell, ...]
    read_table: Callable[[str, Cell], Any] | None = field(default=None, compare=False, repr=False)
    """Reads the predictions of a cell of the run folder as a `pyarrow.Table`; set by `runs`."""

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __getitem__(self, key: CellKey) -> Cell:
        """Return the cell of a suite, of (suite, method), or of (suite, method, seed).

        Raises UnknownCell (a UsageError and a KeyError) if there is none, or if several fit.
        """
        parts = key if isinstance(key, tuple) else (key,)
        fitting = [
            cell
            for cell in self.cells
            if (cell.suite, cell.method, cell.seed)[: len(parts)] == parts
        ]
        if len(fitting) == 1:
            return fitting[0]
        shown = ", ".join(map(repr, parts))
        if fitting:
            choices = ", ".join(f"run[{_format_cell_key(cell)}]" for cell in fitting)
            raise UnknownCell(
                f"{len(fitting)} cells are called {shown}",
                location=self.path,
                hint=f"choose one: {choices}",
            )
        existing = ", ".join(dict.fromkeys(f"{c.suite!r} ({c.method})" for c in self.cells))
        hint = f"there are {existing}" if existing else "the run is empty: score it first"
        raise UnknownCell(f"the run has no cell {shown}", location=self.path, hint=hint)

    def __contains__(self, key: object) -> bool:
        """Whether the run has that cell, suite, (suite, method) or (suite, method, seed)."""
        parts = (key,) if isinstance(key, str) else key
        return key in self.cells or any(
            (cell.suite, cell.method, cell.seed)[: len(parts)] == parts
            for cell in self.cells
            if isinstance(parts, tuple)
        )

    def predictions(
        self, suite: str, method: str | None = None, seed: int | None = None
    ) -> ArrowTable:
        """Return the predictions of a cell as an `ArrowTable` with one row per item.

        Columns: id, gold (index of the right option, or a rating), pred (index of the preferred
        option), scores (log-probability of each option, nats), tokens and characters (of each
        option), flags, labels, and cluster if the suite declares clusters. It never holds the text
        of an item.

        Raises UnknownCell as `__getitem__`, and RunError for damaged files.
        """
        parts = tuple(part for part in (suite, method, seed) if part is not None)
        cell = self[suite if len(parts) == 1 else parts]  # type: ignore[index]
        if self.read_table is None:
            raise RunError("this run has no folder to read predictions from", location=self.path)
        return ArrowTable(self.read_table(self.path, cell))

    def __repr__(self) -> str:
        """Return one line: the model's name, its suites and methods, and the folder."""
        model = self.manifest.model
        name = make_printable(str(model.get("label") or model.get("name", "")))
        cells = describe_cells(self.cells) or "no cell"
        return f"<Run {name}: {cells}; {make_printable(self.path)}>"

    def _repr_html_(self) -> str:
        columns = ("suite", "method", "metric", "value", "low", "high", "n")
        rows = []
        for cell in self.cells:
            estimate = cell.estimate
            method = cell.method if cell.seed is None else f"{cell.method}, seed {cell.seed}"
            numbers = (float(estimate.value), float(estimate.low), float(estimate.high), estimate.n)
            rows.append((cell.suite, method, cell.summary.metric, *numbers))
        return to_html_table(columns, rows, title=str(self.manifest.model.get("name", self.path)))


def _format_cell_key(cell: Cell) -> str:
    seed = () if cell.seed is None else (cell.seed,)
    return ", ".join(map(repr, (cell.suite, cell.method, *seed)))


RunLike = str | Path | Run
"""A run folder, or a run that was opened before."""


def run_folder(run: RunLike) -> str:
    """Return the folder of a run."""
    return run.path if isinstance(run, Run) else str(run)


def list_run_folders(runs: Sequence[Sequence[RunLike] | RunLike]) -> list[str]:
    """Return the folders of runs that are given one by one or in lists."""
    return [
        run_folder(run)
        for entry in runs
        for run in ([entry] if isinstance(entry, str | Path | Run) else entry)
    ]


class ModelInfo(Protocol):
    """Properties of a model that are known before it is run, for any engine."""

    @property
    def name(self) -> str: ...

    @property
    def attentions(self) -> frozenset[str]:
        """Attentions that it can be run with: {"causal"}, {"full"} or both."""
        ...

    @property
    def eos(self) -> str:
        """The EOS token as text. "None" if there is none: BabyLM 2024 writes that before a text."""
        ...

    @property
    def mask_id(self) -> int | None: ...

    @property
    def no_mask_reason(self) -> str:
        """Why `mask_id` is None, as the end of a sentence; "" if it is not None."""
        ...

    @property
    def max_length(self) -> int | None:
        """Longest row in tokens, special tokens included; None = unbounded."""
        ...


class LanguageModel(ModelInfo, Protocol):
    """Everything that scoring needs of a model."""

    def encode(
        self,
        texts: Sequence[str],
        spans: Sequence[Span],
        attention: Attention,
        sources: Sequence[str] | None = None,
    ) -> Encodings:
        """Encode texts, with the special tokens that the model needs under that attention.

        spans: the scored characters of each text; None = all. sources: under "cross", what the
        encoder reads before each text; None = nothing.
        """
        ...

    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: ProgressCallback | None = None
    ) -> Floats:
        """Return summed log-probabilities (num_texts,): each read is added to its text.

        tick: receives the share (0..1) of the work that was just done.
        """
        ...


@dataclass(frozen=True, slots=True)
class Encodings:
    """n tokenized texts."""

    batches: tuple[EncodedBatch, ...]
    """One per exact length."""
    unk: Bools
    """(n,) the text has a token that the tokenizer does not know."""
    too_long: Bools
    """(n,) the text does not fit into the model; it is in no batch."""
    flags: Mapping[str, Bools] = field(default_factory=dict)
    """Other keys of FLAGS -> (n,)."""

    def collect_flags(self, texts: Sequence[int]) -> tuple[str, ...]:
        """Return the keys of FLAGS that any of these texts has."""
        flags = {"unk": self.unk, **self.flags}
        return tuple(name for name in FLAGS if name in flags and any(flags[name][i] for i in texts))
