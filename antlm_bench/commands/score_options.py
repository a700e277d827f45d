"""The options of `score`, and how they are written on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from antlm_bench.checkpoints.opening import check_option_values
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.metrics import TIE_RULES
from antlm_bench.runs import Shard
from antlm_bench.scoring.conventions import PEER_CONVENTIONS, ScoringConventions
from antlm_bench.scoring.methods import METHODS, get_method, peer_methods
from antlm_bench.words import check_word_rule

ALL_METHODS = "all"
"""Stands for every method that a checkpoint was trained for."""
PRECISIONS = ("exact", "adaptive")
ENGINES = ("native", "minicons")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Options of `score`: see its --help. None = the value of `compat`, else the default."""

    revision: str | None = None
    name: str | None = None
    """Name of the model in tables; None = that of its folder or hub id."""
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""
    good: str = ""
    """With `layout` and `columns`: how a file of pairs is read (suites.task_types.SuiteRequest)."""
    allow_incomplete: bool = False
    require_all: bool = False
    unigrams: str | None = None
    """Text of a unigram model, for SLOR: see scoring.unigrams.open_unigrams."""
    words: str | None = None
    """Rule of words.WORD_RULES for methods that mask words; None = the words of the tokenizer."""
    bos: str | None = None
    ties: str | None = None
    compat: str | None = None
    max_length: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    precision: str = "exact"
    engine: str = "native"
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    peft: str | None = None
    tokenizer: str | None = None
    allow_unused: bool = False
    allow_missing: bool = False
    original_layout: str | None = None
    again: bool = False
    replace: bool = False
    """Remove the cells of the same suites and methods under other limits."""
    shard: str | None = None
    """"2/4": compute only the second of four parts of every cell (`runs.shards`)."""

    def conventions(self) -> ScoringConventions:
        """Return the conventions of `compat`, with explicitly given options in their place."""
        if self.compat is not None and self.compat not in PEER_CONVENTIONS:
            raise UsageError(
                f"unknown peer {self.compat!r}",
                location="--compat",
                hint=f"one of {', '.join(PEER_CONVENTIONS)}",
            )
        bundle = PEER_CONVENTIONS[self.compat] if self.compat else ScoringConventions()
        if self.ties is not None and self.ties not in TIE_RULES:
            raise UsageError(
                f"unknown tie rule {self.ties!r}",
                location="--ties",
                hint=f"one of {', '.join(TIE_RULES)}",
            )
        return replace(
            bundle,
            bos=self.bos or bundle.bos,
            ties=self.ties or bundle.ties,
            bos_before_context="" if self.bos else bundle.bos_before_context,
            eos="" if self.bos else bundle.eos,
            lengths=bundle.lengths if self.max_length is None else "declared",
        )

    def open_options(self) -> OpenOptions:
        """Return the options for opening a checkpoint."""
        names = {field.name for field in fields(OpenOptions)} - {"bos", "lengths"}
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        conventions = self.conventions()
        return OpenOptions(bos=conventions.bos, lengths=conventions.lengths, **values)

    def validate(self, methods: Sequence[str]) -> None:
        """Raise UsageError for options that contradict each other, before a model is opened."""
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision {self.precision!r}",
                location="--precision",
                hint=" or ".join(PRECISIONS),
            )
        is_adaptive = self.precision == "adaptive"
        if is_adaptive and self.dtype != "float32":
            raise UsageError(
                "adaptive precision uses both bfloat16 and float32",
                location="--dtype",
                hint="leave --dtype out",
            )
        if is_adaptive and self.conventions().for_suite("sum").reduction != "sum":
            message = (
                f"{self.compat} compares means, and adaptive precision bounds the errors of sums"
            )
            raise UsageError(message, location="--compat", hint="use --precision exact")
        if self.shard is not None:
            Shard.parse(self.shard)
            if self.replace:
                raise UsageError(
                    "cannot be combined with --shard, whose folder holds no results yet",
                    location="--replace",
                    hint="leave it out, and merge the shards into a new run folder",
                )
        self._check_engine(methods)
        for name in methods:
            if name != ALL_METHODS:
                get_method(name)
        check_option_values(self.open_options())
        self._validate_words(methods)

    def _validate_words(self, methods: Sequence[str]) -> None:
        """Raise UsageError for an unknown rule for words, and where no method depends on it."""
        if self.words is None:
            return
        check_word_rule(self.words)
        if self.engine != DEFAULT_OPTIONS.engine:
            raise UsageError(
                f"the engine {self.engine} has its own words",
                location="--words",
                hint="use --engine native",
            )
        if methods and ALL_METHODS not in methods:
            require_word_methods(methods)

    def _check_engine(self, methods: Sequence[str]) -> None:
        """Raise UsageError or MethodNotSupported for options that the engine does not have."""
        if self.engine not in ENGINES:
            raise UsageError(
                f"unknown engine {self.engine!r}", location="--engine", hint=" or ".join(ENGINES)
            )
        if self.engine == "native":
            return
        if self.precision != "exact":
            raise UsageError(
                f"{self.engine} has no --precision {self.precision}",
                location="--precision",
                hint="leave --precision out",
            )
        if self.dtype != "float32":
            raise UsageError(
                f"{self.engine} computes the log softmax in {self.dtype}, which is too inexact",
                location="--dtype",
                hint="leave --dtype out",
            )
        if self.batch_tokens is not None:
            raise UsageError(
                f"{self.engine} chooses the batch size itself",
                location="--batch-tokens",
                hint="leave --batch-tokens out",
            )
        supported = peer_methods(self.engine)
        unsupported = [name for name in methods if name in METHODS and name not in supported]
        if unsupported:
            raise MethodNotSupported(
                f"{self.engine} does not know {unsupported[0]!r}",
                location="--method",
                hint=f"one of {', '.join(supported)}, or --engine native",
            )

    def command_words(self) -> list[str]:
        """Return the words of the command line for the options that differ from their defaults,
        without UNREPEATED_OPTIONS.
        """
        words: list[str] = []
        for each in fields(self):
            value, option = getattr(self, each.name), f"--{each.name.replace('_', '-')}"
            if value == getattr(DEFAULT_OPTIONS, each.name) or each.name in UNREPEATED_OPTIONS:
                continue
            if isinstance(value, Mapping):
                value = ",".join(f"{column}={name}" for column, name in value.items())
            words += [option] if value is True else [option, str(value)]
        return words


UNREPEATED_OPTIONS = ("again", "replace", "shard", "require_all")
"""Options that a command to complete a shard leaves out."""


def require_word_methods(methods: Sequence[str]) -> None:
    """Raise UsageError if no score of these methods depends on what a word is."""
    if not any(get_method(name).needs_words for name in methods):
        names = [method.name for method in METHODS if method.needs_words]
        raise UsageError(
            f"no score depends on words: the methods are {', '.join(methods)}",
            location="--words",
            hint=f"leave it out, or use --method {' or '.join(names)}",
        )


DEFAULT_OPTIONS = ScoreOptions()
