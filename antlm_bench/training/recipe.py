"""Recipes: typed declarations of all settings of a training run.

A recipe is a TOML in `models/`. It may extend another recipe, may declare smaller scales, and can
be changed on the command line (`--set optimizer.lr=1e-3`). `read_recipe` resolves all of these to
one `Recipe`, which the run stores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.declarations import (
    Declaration,
    TomlTuple,
    find_declaration,
    parse_toml,
    parse_toml_value,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import DeclarationError, UsageError
from antlm_bench.scoring.methods import METHODS

Tables = dict[str, Any]  # the content of a TOML
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
# (table, key, key that must not be given with it)
EXCLUSIVE_KEYS = (("optimizer", "warmup", "warmup_steps"), ("optimizer", "warmup_steps", "warmup"))


class ModelSpec(Declaration):
    """The shape of the network."""

    architecture: str
    """A name in architectures.records.ARCHITECTURES."""
    layers: Count
    """Number of layers."""
    hidden: Count
    """Size of the hidden states."""
    heads: Count
    """Attention heads per layer."""
    kv_heads: Count | None = None
    """Key and value heads of grouped-query attention (llama only); None = same as heads."""
    ffn: Count
    """Size of the feed-forward layer."""
    positions: Count
    """Maximum number of tokens per row."""
    tied: bool
    """Whether input and output embeddings are one matrix."""
    dropout: Share = 0.0
    """Dropout rate of hidden states."""
    attention_dropout: Share = 0.0
    """Dropout rate of attention probabilities."""
    norm_eps: Positive
    """Epsilon of the norms."""
    buckets: Count = 32
    """Buckets of relative positions (ltg-bert, gpt-bert), which have 2 x buckets - 1 vectors."""
    layer_mix: Literal["", "base", "zero", "normalized", "weighted_output"] = ""
    """ltg-bert only: the variant of ELC-BERT by which a layer sums the outputs of earlier layers;
    "" = LTG-BERT without such sums.
    """
    attention_gate: bool = True
    """gpt-bert only: whether attention has a gate."""
    layer_weights: bool = True
    """gpt-bert only: whether the input of a sub-layer is a learned weighted sum of all earlier
    outputs.
    """

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            names = ARCHITECTURES.names()
            hint = suggest_name(name, names) or f"one of {', '.join(map(repr, names))}"
            raise ValueError(f"unknown architecture {name!r}: {hint}")
        return name

    @model_validator(mode="after")
    def _check_shape(self) -> ModelSpec:
        if self.hidden % self.heads or self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads = {self.heads} must divide hidden = {self.hidden}, "
                "and kv_heads must divide heads"
            )
        architecture = ARCHITECTURES[self.architecture]
        for key in ("kv_heads", "layer_mix"):
            if getattr(self, key) and key not in architecture.optional_keys:
                supporting = [other.name for other in ARCHITECTURES if key in other.optional_keys]
                raise ValueError(
                    f"{key} is for {' and '.join(supporting)}, not for {architecture.name}"
                )
        if architecture.relative_positions and self.buckets >= self.positions:
            raise ValueError(
                f"buckets = {self.buckets} must be fewer than positions = {self.positions}"
            )
        return self


class TokenizerSpec(Declaration):
    """A byte-level BPE tokenizer that is trained on the corpus of the run.

    Its special tokens are <pad> <s> </s> <mask> <unk>, with the ids 0 to 4.
    """

    vocabulary: Annotated[int, Field(ge=261)]
    """Number of tokens, including 256 bytes and the five special tokens."""
    alphabet: Literal["bytes", "seen"] = "bytes"
    """bytes: every byte has a token. seen: only the bytes that occur in the corpus."""
    min_frequency: Count = 2
    """Minimum frequency of a pair of tokens to be merged."""
    normalizer: Literal["", "NFC", "NFKC"] = "NFKC"
    """Unicode normalisation; "" = none."""
    single_digits: bool = False
    """Whether every digit is a separate token."""


class CorpusSpec(Declaration):
    """How text becomes rows, which are windows of one stream of tokens."""

    layout: Literal["lines", "files"] = "lines"
    """lines: every line begins with <s>, and blank lines are left out. files: each file is encoded
    as one text, with line breaks and without special tokens, as in BabyLlama.
    """
    document: Literal["file", "line", "corpus"]
    """What is one document; attention never crosses documents. corpus: the whole corpus. file or
    line: of a text file; each JSON object of a .jsonl is a document with `file`.
    """
    eos: bool = False
    """Whether each line ends with </s>."""
    offset: Literal["random", "fixed", "row"] = "fixed"
    """Where rows begin. fixed: the first row at token 0, each other where the last one ends.
    random: each pass shifts all rows by the same random offset. row: each row has its own random
    offset, as in BabyLlama.
    """
    words: Count | None = None
    """Approximate number of words to train on; every file is cut by the same share. None = all."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every file, taken from its end, that is not trained on. The loss on it is computed
    after every pass, and the final checkpoint has the weights of the pass with the lowest loss.
    """

    @model_validator(mode="after")
    def _check_layout(self) -> CorpusSpec:
        if self.layout == "files" and (self.document == "line" or self.eos):
            raise ValueError(
                "layout = 'files' needs document = 'file' or 'corpus', and eos = false"
            )
        return self


class PhaseSpec(Declaration):
    """A phase of training: its duration, and the mixture of objectives in every batch."""

    epochs: Count | None = None
    """Duration in epochs; excludes `steps`."""
    steps: Count | None = None
    """Duration in optimizer steps; excludes `epochs`."""
    causal: Annotated[float, Field(ge=0)] = 0.0
    """Relative number of causal rows in a batch."""
    masked: Annotated[float, Field(ge=0)] = 0.0
    """Relative number of masked rows in a batch."""

    @model_validator(mode="after")
    def _check_phase(self) -> PhaseSpec:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if not self.causal + self.masked:
            raise ValueError("a phase needs causal or masked above 0")
        return self

    @property
    def causal_share(self) -> float:
        """Share of causal rows in a batch, 0 to 1."""
        return self.causal / (self.causal + self.masked)


class ObjectiveSpec(Declaration):
    """The masked objective: which tokens are masked, and where they are predicted."""

    masked: Literal["mlm", "mntp"] = "mlm"
    """mlm predicts a masked token at its own position, mntp one position before it."""
    rate: Share = 0.15
    """Share of tokens that are masked at the start of training."""
    final_rate: Share | None = None
    """Share at the end of training, reached linearly; None = same as `rate`."""
    spans: Literal["token", "geometric", "uniform"] = "token"
    """Distribution of the lengths of masked spans: single tokens, geometric (LTG-BERT), or uniform
    in 1 to 3 (GPT-BERT). See training.masking.
    """
    least: Literal[0, 1] = 1
    """Minimum number of tokens that geometric spans mask in a row."""
    even: bool = False
    """Whether uniform spans prefer tokens that were masked less often before, as in GPT-BERT."""
    corrupt: TomlTuple[Share] = (0.8, 0.1, 0.1)
    """Shares of the masked tokens that become <mask>, become a random token, or stay unchanged."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log-sum-exp of the logits in the loss, see training.losses."""

    @model_validator(mode="after")
    def _check_objective(self) -> ObjectiveSpec:
        if len(self.corrupt) != 3 or abs(sum(self.corrupt) - 1) > 1e-9:
            raise ValueError("corrupt is [mask, random, unchanged], three shares with sum 1")
        if self.even and self.spans != "uniform":
            raise ValueError(f"even = true needs spans = 'uniform', not {self.spans!r}")
        return self


class BatchSpec(Declaration):
    """The size of an optimizer step."""

    tokens: Count
    """Tokens per step at the start of training."""
    final_tokens: Count | None = None
    """Tokens per step at the end, reached linearly; None = same as `tokens`."""
    length: Annotated[int, Field(ge=2)]
    """Tokens per row at the start of training."""
    longer: TomlTuple[TomlTuple[float]] = ()
    """[[share, length], ...]: after this share of training, rows have this length. The tokens per
    step stay the same, so a step has fewer rows.
    """
    grows: Literal["step", "pass"] = "step"
    """When tokens and length change: at every step, or when a pass over the corpus begins
    (GPT-BERT).
    """
    short: Share = 0.0
    """Share of the rows that are cut to a random length and padded (LTG-BERT)."""

    @model_validator(mode="after")
    def _check_row_lengths(self) -> BatchSpec:
        lengths = [float(self.length)]
        for pair in self.longer:
            if (
                len(pair) != 2
                or not 0 < pair[0] < 1
                or pair[1] != int(pair[1])
                or pair[1] <= lengths[-1]
            ):
                raise ValueError(
                    "longer is [[share, length], ...]: shares between 0 and 1, "
                    "increasing whole lengths"
                )
            lengths.append(pair[1])
        shares = [share for share, _ in self.longer]
        if shares != sorted(set(shares)):
            raise ValueError("longer is [[share, length], ...] with increasing shares")
        if min(self.tokens, self.final_tokens or self.tokens) < max(lengths):
            raise ValueError(f"tokens must be at least one row of {max(lengths):.0f}")
        return self

    @property
    def max_row_length(self) -> int:
        """Tokens of the longest rows of the run."""
        return int(self.longer[-1][1]) if self.longer else self.length


class OptimizerSpec(Declaration):
    """Optimizer and learning-rate schedule.

    The learning rate rises linearly from 0 to `lr` in the warm-up, then falls to `final` x lr by
    `schedule`. In the cooldown it falls linearly to 0.
    """

    name: Literal["adamw", "lamb"]
    lr: Positive
    """The peak learning rate."""
    betas: TomlTuple[Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    exempt: TomlTuple[Literal["embeddings", "positions"]] = ()
    """Parameters without weight decay in addition to biases and norms: all embeddings, or relative
    position embeddings.
    """
    decay_mixing: bool = False
    """Whether the weights of sums over layer outputs (layer_mix, layer_weights) decay."""
    clip: Positive = 1.0
    """Maximum norm of the gradient; a larger gradient is scaled down."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: Share = 0.0
    """Learning rate at the end of the schedule, as a share of lr."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Number of warm-up steps; excludes `warmup`."""
    warmup: Share | None = None
    """Share of the steps that are warm-up; excludes `warmup_steps`."""
    cooldown: Share = 0.0
    """Share of the steps, at the end, that are cooldown."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of an exponential moving average of the weights. Checkpoints hold the average; 0 =
    none.
    """
    at_switch: Literal["keep", "reset"] = "keep"
    """Whether the optimizer's state is kept or reset when the mixture of objectives changes."""
    restart: Literal["run", "phase"] = "run"
    """Whether one schedule covers the whole run, or each phase has its own."""

    @model_validator(mode="after")
    def _check_optimizer(self) -> OptimizerSpec:
        if self.warmup_steps is not None and self.warmup is not None:
            raise ValueError("give warmup (a share of the steps) or warmup_steps, not both")
        if len(self.betas) != 2:
            raise ValueError("betas are two numbers")
        if self.cooldown and self.schedule != "constant" and not self.final:
            raise ValueError(
                "a cooldown needs final above 0, because it falls from final x lr to 0"
            )
        return self


class DistilSpec(Declaration):
    """Distillation with the loss alpha x CE + (1 - alpha) x temperature^2 x KL(teachers ||
    student).

    The teachers' logits are averaged. The cross-entropy CE is a mean over targets.
    """

    teachers: TomlTuple[str]
    """Names of recipes. A name that occurs twice is trained with two seeds."""
    temperature: Positive
    """Divides the logits of teachers and student."""
    alpha: Share
    """Weight of the cross-entropy."""
    divergence: Literal["per-sequence", "per-token"] = "per-sequence"
    """per-sequence: KL is summed over all positions of a row and averaged over rows, as in the code
    of both BabyLlama papers. per-token: KL is averaged over targets.
    """

    @model_validator(mode="after")
    def _check_teachers(self) -> DistilSpec:
        if not self.teachers:
            raise ValueError("teachers is empty: name at least one recipe")
        return self


class DifferenceSpec(Declaration):
    """A difference between a recipe and its paper, or a choice that the paper leaves open.

    A recipe inherits the differences of the recipe that it extends. An entry with the same `number`
    replaces an inherited entry. An entry with only a `number` removes it.
    """

    number: str
    """What differs: a recipe key, or a short description."""
    paper: str = ""
    """The value in the paper."""
    ours: str = ""
    """The value in this recipe."""
    why: str = ""
    """The reason for the difference."""
    option: str = ""
    """`--set KEY=VALUE ...` that gives the paper's value or the other choice; "" if there is none.
    """


class EvaluateSpec(Declaration):
    """The suites on which `train` scores every milestone checkpoint."""

    suites: TomlTuple[str]
    """Names of suites, as in `antlm-bench score --suite`."""
    limit: Count | None = None
    """Items per paradigm; None = all."""

    @model_validator(mode="after")
    def _check_suites(self) -> EvaluateSpec:
        if not self.suites:
            raise ValueError(
                "suites is empty: name at least one suite, or leave out the table [evaluate]"
            )
        return self


class Recipe(Declaration):
    """All settings of one training run."""

    name: str
    title: str
    scale: str = ""
    """The declared scale to which the recipe was changed; "" = none."""
    sources: TomlTuple[str]
    """Papers and code that the recipe follows."""
    notes: TomlTuple[str] = ()
    difference: TomlTuple[DifferenceSpec] = ()
    """Differences between the recipe and its sources."""
    methods: TomlTuple[str]
    """Scoring methods for the checkpoints of the recipe; the first is the default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: ModelSpec
    tokenizer: TokenizerSpec
    corpus: CorpusSpec
    phase: TomlTuple[PhaseSpec]
    """Phases in order. Either all have `epochs`, or all have `steps`."""
    objective: ObjectiveSpec = ObjectiveSpec()
    batch: BatchSpec
    optimizer: OptimizerSpec
    distil: DistilSpec | None = None
    evaluate: EvaluateSpec | None = None
    milestones: TomlTuple[Annotated[int, Field(ge=1000, multiple_of=1000)]] = ()
    """Words seen at which a checkpoint is saved; () = BabyLM's milestones."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        has_masked_phase = any(phase.masked for phase in self.phase)
        if not self.phase or len({phase.epochs is None for phase in self.phase}) != 1:
            raise ValueError("give at least one phase, and either all in epochs or all in steps")
        if self.batch.max_row_length > self.model.positions:
            raise ValueError(
                f"batch: rows of {self.batch.max_row_length} do not fit "
                f"model.positions = {self.model.positions}"
            )
        if self.distil and has_masked_phase:
            raise ValueError("distil: only causal phases can be distilled")
        if self.corpus.held_out and (self.optimizer.ema or has_masked_phase):
            raise ValueError("corpus.held_out: needs causal phases only, and optimizer.ema = 0")
        if self.batch.grows == "pass" and self.phase[0].steps is None:
            raise ValueError(
                "batch.grows = 'pass' needs phases in steps, because the number of passes is not "
                "known before"
            )
        self._check_methods()
        return self

    def _check_methods(self) -> None:
        """Raise ValueError for a scoring method that the phases and objectives do not train."""
        for name in self.methods:
            if name not in METHODS:
                hint = suggest_name(name, METHODS.names()) or ", ".join(METHODS.names())
                raise ValueError(f"methods: unknown method {name!r}: {hint}")
        objective, attentions = self.objective.masked, set(self.attentions)
        with_attention = [method for method in METHODS if method.attentions <= attentions]
        supported = [
            method.name for method in with_attention if method.objective in ("", objective)
        ]
        fix = f"give one or several of methods = {json.dumps(supported)}"
        if not self.methods:
            raise ValueError(f"methods is empty: {fix}")
        for name in self.methods:
            if METHODS[name] not in with_attention:
                raise ValueError(
                    f"methods: {name!r} needs an attention that no phase trains; {fix}"
                )
            if name not in supported:
                required = METHODS[name].objective
                raise ValueError(
                    f"methods: {name!r} needs objective.masked = {required!r}, not {objective!r}; "
                    f"{fix}"
                )

    @property
    def attentions(self) -> tuple[str, ...]:
        """The attentions that the phases train: "causal", "full" or both, in this order."""
        causal = ("causal",) if any(phase.causal for phase in self.phase) else ()
        full = ("full",) if any(phase.masked for phase in self.phase) else ()
        return (*causal, *full)


def read_recipe(ref: str, scale: str = "", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name or .toml, and apply a scale and `key=value` overrides.

    Raises DeclarationError (with file and key), and UsageError for an impossible scale or override.
    """
    path = find_declaration("models", ref)
    tables = _load_tables(path)
    scales: Tables = tables.pop("scale", {})
    if not (isinstance(scales, dict) and all(isinstance(t, dict) for t in scales.values())):
        raise DeclarationError(
            "scale is not a table of tables",
            location=f"{path}: scale",
            hint="e.g. [scale.nano.model]",
        )
    if scale:
        if scale not in scales:
            available = f"it has {', '.join(scales)}" if scales else "it declares none"
            raise UsageError(f"{path.stem} has no scale {scale!r}: {available}", location="--scale")
        tables = merge_tables(tables, scales[scale])
    tables |= {"name": path.stem, "scale": scale}
    try:
        return validate_tables(_apply_overrides(tables, overrides), Recipe, path)
    except DeclarationError as error:
        raise _blame_overrides(error, tables, overrides, path) from None


def _apply_overrides(tables: Tables, overrides: Sequence[str]) -> Tables:
    """Return the recipe's tables with `--set` overrides applied in order.

    An override of one of two EXCLUSIVE_KEYS removes the other key from the recipe.
    """
    changes: Tables = {}
    for text in overrides:
        changes = merge_tables(changes, _parse_override(text))
    changed = dict(tables)
    for table, key, excluded in EXCLUSIVE_KEYS:
        override, original = changes.get(table), changed.get(table)
        if isinstance(override, dict) and isinstance(original, dict) and key in override:
            changed[table] = {name: value for name, value in original.items() if name != excluded}
    return merge_tables(changed, changes)


def _blame_overrides(
    error: DeclarationError, tables: Tables, overrides: Sequence[str], path: Path
) -> DeclarationError:
    """Return an error that names the `--set` overrides that cause it.

    These are the overrides that remain after removing each override without which the same error
    occurs. Returns `error` itself if none remains.
    """
    causes = list(overrides)
    for override in overrides:
        others = [other for other in causes if other is not override]
        try:
            validate_tables(_apply_overrides(tables, others), Recipe, path)
        except DeclarationError as other_error:
            if (other_error.message, other_error.location) == (error.message, error.location):
                causes = others
    if not causes:
        return error
    key = error.location.removeprefix(str(path)).removeprefix(": ")
    original_value: Any = tables
    for part in key.split("."):
        original_value = original_value.get(part) if isinstance(original_value, dict) else None
    hint = ""
    if isinstance(original_value, int | float | str | list):
        hint = f"the recipe has {key} = {json.dumps(original_value)}"
    location = " ".join(f"--set {override}" for override in causes)
    message = f"{key}: {error.message}" if key else error.message
    return DeclarationError(message, location=location, hint=hint)


def list_scales(ref: str) -> tuple[str, ...]:
    """Return the names of the scales that a recipe declares."""
    return tuple(_load_tables(find_declaration("models", ref)).get("scale", {}))


def merge_tables(base: Tables, overrides: Tables) -> Tables:
    """Merge nested tables key by key. A list replaces the whole list."""
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge_tables(old, value)
        merged[key] = value
    return merged


def _load_tables(path: Path) -> Tables:
    """Read the tables of a recipe, merged into those of the recipe that it extends."""
    tables = parse_toml(path)
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    if not isinstance(parent, str):
        raise DeclarationError(
            f"extends = {parent!r} is not the name of a recipe", location=f"{path}: extends"
        )
    base = parse_toml(find_declaration("models", parent))
    if "extends" in base:
        raise DeclarationError(
            f"{parent!r} itself extends {base['extends']!r}, but only one level is possible",
            location=f"{path}: extends",
        )
    merged = merge_tables(base, tables)
    if isinstance(base.get("difference"), list) and isinstance(tables.get("difference"), list):
        merged["difference"] = _merge_differences(base["difference"], tables["difference"])
    return merged


def _merge_differences(base: list[Any], overrides: list[Any]) -> list[Any]:
    """Merge lists of `difference` tables as `DifferenceSpec` documents.

    Entries that are not tables, or have no number, stay in the list, so that validation reports
    them.
    """
    merged: dict[Any, Any] = {}
    for index, entry in enumerate([*base, *overrides]):
        number = entry.get("number") if isinstance(entry, dict) else None
        merged[number if isinstance(number, str) else index] = entry
    return [entry for entry in merged.values() if not isinstance(entry, dict) or len(entry) > 1]


def _parse_override(text: str) -> Tables:
    """Parse e.g. `optimizer.lr=1e-3` to nested tables."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"{text!r} is not KEY=VALUE", location="--set", hint="e.g. --set optimizer.lr=1e-3"
        )
    if parts[0] in ("extends", "scale", "name"):
        raise UsageError(f"{parts[0]!r} cannot be set", location="--set")
    tables: Any = parse_toml_value(value.strip(), location=f"--set {key.strip()}")
    for part in reversed(parts):
        tables = {part: tables}
    return dict(tables)
