"""Recipes: every number of a training run, as typed declarations.

A recipe is a TOML in `models/`. It may extend one other recipe, may declare smaller scales of
itself, and can be changed on the command line (`--set optimizer.lr=1e-3`). The result is one flat
declaration, which a run stores whole.
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

Tables = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
# (table, key, key that it excludes)
EXCLUSIVE_KEYS = (("optimizer", "warmup", "warmup_steps"), ("optimizer", "warmup_steps", "warmup"))


class ModelSpec(Declaration):
    """The shape of the network."""

    architecture: str
    """A name of architectures.records.ARCHITECTURES."""
    layers: Count
    hidden: Count
    """Width of hidden states."""
    heads: Count
    """Attention heads per layer."""
    kv_heads: Count | None = None
    """Key and value heads of grouped-query attention (llama); None = as many as heads."""
    ffn: Count
    """Width of the feed-forward layer."""
    positions: Count
    """Tokens of the longest row."""
    tied: bool
    """Whether input and output embeddings are one matrix."""
    dropout: Share = 0.0
    """Dropout rate of hidden states."""
    attention_dropout: Share = 0.0
    """Dropout rate of attention probabilities."""
    norm_eps: Positive
    buckets: Count = 32
    """Buckets of relative positions: 2 x buckets - 1 vectors (ltg-bert, gpt-bert)."""
    layer_mix: Literal["", "base", "zero", "normalized", "weighted_output"] = ""
    """The ELC-BERT variant of ltg-bert; "" = plain LTG-BERT."""
    attention_gate: bool = True
    """Whether attention is gated (gpt-bert)."""
    layer_weights: bool = True
    """Whether each sub-layer reads a learned sum of all earlier states (gpt-bert)."""

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
                owners = [other.name for other in ARCHITECTURES if key in other.optional_keys]
                raise ValueError(
                    f"{key} is for {' and '.join(owners)}, not for {architecture.name}"
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
    """Tokens, special ones included. At least 256 bytes and the five special tokens."""
    alphabet: Literal["bytes", "seen"] = "bytes"
    """Whether every byte has a token, or only the bytes of the corpus."""
    min_frequency: Count = 2
    """How often a pair must occur to be merged."""
    normalizer: Literal["", "NFC", "NFKC"] = "NFKC"
    """Unicode normalisation of the text; "" = none."""
    single_digits: bool = False
    """Whether every digit is a token of its own."""


class CorpusSpec(Declaration):
    """How text becomes rows: windows of one stream of tokens that never attend across documents."""

    layout: Literal["lines", "files"] = "lines"
    """lines: every line begins with <s>, and blank lines are left out. files: a file is encoded
    whole, with its line breaks and without special tokens, as BabyLlama does.
    """
    document: Literal["file", "line", "corpus"]
    """What a document of a text file is. A record of a .jsonl always is one; `corpus` ignores all
    borders.
    """
    eos: bool = False
    """Whether a </s> ends each line."""
    offset: Literal["random", "fixed", "row"] = "fixed"
    """Where a pass over the corpus begins to cut rows: always at token 0 (fixed), at one random
    token (random), or each row at a random token of its own (row, as BabyLlama does).
    """
    words: Count | None = None
    """Train on about so many words; every file keeps its share. None = all."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of every file, its last lines, is not trained on. The loss on it is measured after
    every pass, and the weights of the pass with the lowest loss are the result.
    """

    @model_validator(mode="after")
    def _check_layout(self) -> CorpusSpec:
        if self.layout == "files" and (self.document == "line" or self.eos):
            raise ValueError(
                "layout = 'files' has no lines: document must be 'file' or 'corpus', eos false"
            )
        return self


class PhaseSpec(Declaration):
    """A block of training: its duration, and the mixture of objectives in every batch."""

    epochs: Count | None = None
    steps: Count | None = None
    causal: Annotated[float, Field(ge=0)] = 0.0
    """Parts of a batch that are causal rows; only the ratio to `masked` counts."""
    masked: Annotated[float, Field(ge=0)] = 0.0
    """Parts of a batch that are masked rows."""

    @model_validator(mode="after")
    def _check_phase(self) -> PhaseSpec:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase lasts for either epochs or steps")
        if not self.causal + self.masked:
            raise ValueError("a phase needs causal or masked above 0: it trains nothing")
        return self

    @property
    def causal_share(self) -> float:
        """Share of causal rows in a batch, 0 to 1."""
        return self.causal / (self.causal + self.masked)


class ObjectiveSpec(Declaration):
    """The masked objective: what is predicted, and which tokens are hidden."""

    masked: Literal["mlm", "mntp"] = "mlm"
    """mlm predicts a hidden token at its own position, mntp one position before it."""
    rate: Share = 0.15
    """Share of tokens that are hidden, at the start of training."""
    final_rate: Share | None = None
    """The rate at the end, reached linearly; None = constant."""
    spans: Literal["token", "geometric", "uniform"] = "token"
    """Distribution of span lengths: single tokens, Geometric(1/3) mod 10 (LTG-BERT), or Uniform(1,
    3) (GPT-BERT). See training.masking.
    """
    least: Literal[0, 1] = 1
    """Fewest tokens that geometric spans hide in a row."""
    even: bool = False
    """Whether uniform spans prefer tokens that were hidden less often so far, as GPT-BERT does."""
    corrupt: TomlTuple[Share] = (0.8, 0.1, 0.1)
    """Shares of the hidden tokens that become <mask>, become a random token, or stay."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log-normaliser in the loss: see training.losses."""

    @model_validator(mode="after")
    def _check_objective(self) -> ObjectiveSpec:
        if len(self.corrupt) != 3 or abs(sum(self.corrupt) - 1) > 1e-9:
            raise ValueError("corrupt is [mask, random, kept], adding up to 1")
        if self.even and self.spans != "uniform":
            raise ValueError(f"even = true needs spans = 'uniform', not {self.spans!r}")
        return self


class BatchSpec(Declaration):
    """The size of an optimizer step."""

    tokens: Count
    """Tokens per step, at the start of training."""
    final_tokens: Count | None = None
    """Tokens per step at the end, reached linearly; None = constant."""
    length: Annotated[int, Field(ge=2)]
    """Tokens per row."""
    longer: TomlTuple[TomlTuple[float]] = ()
    """[[share, length], ...]: from this share of training on, rows have this length. The tokens of
    a step stay the same, so there are fewer rows.
    """
    grows: Literal["step", "pass"] = "step"
    """Whether tokens and length change at every step, or when a pass over the corpus begins
    (GPT-BERT).
    """
    short: Share = 0.0
    """This share of the rows is cut to a random number of tokens and padded (LTG-BERT)."""

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
                    "longer is [[share, length], ...]: shares within 0..1, lengths growing"
                )
            lengths.append(pair[1])
        if [p[0] for p in self.longer] != sorted({p[0] for p in self.longer}):
            raise ValueError("longer is [[share, length], ...] with growing shares")
        if min(self.tokens, self.final_tokens or self.tokens) < max(lengths):
            raise ValueError(f"tokens must hold at least one row of {max(lengths):.0f}")
        return self

    @property
    def max_row_length(self) -> int:
        """Tokens of the longest rows of the run."""
        return int(self.longer[-1][1]) if self.longer else self.length


class OptimizerSpec(Declaration):
    """Optimizer and learning-rate schedule.

    The rate rises linearly from 0 to `lr` in the warm-up, then follows `schedule` down to `final` x
    lr. Over the last share `cooldown` of steps it falls linearly to 0.
    """

    name: Literal["adamw", "lamb"]
    lr: Positive
    """The peak learning rate."""
    betas: TomlTuple[Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    exempt: TomlTuple[Literal["embeddings", "positions"]] = ()
    """Weights without decay, beside biases and norms: all embeddings, or those of relative
    positions.
    """
    decay_mixing: bool = False
    """Whether the weights of layer mixes decay, too."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: Share = 0.0
    """Final learning rate of the schedule, as a share of lr."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of the warm-up; excludes `warmup`."""
    warmup: Share | None = None
    """Share of steps of the warm-up; excludes `warmup_steps`."""
    cooldown: Share = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the averaged weights that are saved instead of the last ones; 0 = no average."""
    at_switch: Literal["keep", "reset"] = "keep"
    """What happens to the optimizer's state when the mixture of objectives changes."""
    restart: Literal["run", "phase"] = "run"
    """Whether one schedule covers the whole run, or each phase has its own."""

    @model_validator(mode="after")
    def _check_optimizer(self) -> OptimizerSpec:
        if self.warmup_steps is not None and self.warmup is not None:
            raise ValueError(
                "warmup (a share of the steps) and warmup_steps exclude each other: give one"
            )
        if len(self.betas) != 2:
            raise ValueError("betas are two numbers")
        if self.cooldown and self.schedule != "constant" and not self.final:
            raise ValueError("a cooldown needs final above 0: it falls from there to zero")
        return self


class DistilSpec(Declaration):
    """Distillation: alpha x cross-entropy + (1 - alpha) x temperature^2 x KL to the teachers.

    The teachers' logits are averaged. The cross-entropy is a mean over targets.
    """

    teachers: TomlTuple[str]
    """Names of recipes. A name that is given twice is trained with two seeds."""
    temperature: Positive
    alpha: Share
    """Weight of the cross-entropy."""
    divergence: Literal["per-sequence", "per-token"] = "per-sequence"
    """per-sequence: KL is summed over all positions of a row and averaged over rows, as the code of
    both BabyLlama papers computes it. per-token: it is averaged over targets.
    """

    @model_validator(mode="after")
    def _check_teachers(self) -> DistilSpec:
        if not self.teachers:
            raise ValueError("teachers is empty: name at least one recipe")
        return self


class DifferenceSpec(Declaration):
    """Where a recipe departs from its paper, or decides what the paper leaves open.

    A recipe inherits the differences of the recipe that it extends. An entry with the same `number`
    replaces one; an entry without `ours` removes it.
    """

    number: str
    """The difference; the name of a recipe key where it is one."""
    paper: str = ""
    """The value in the paper."""
    ours: str = ""
    """The value here."""
    why: str = ""
    option: str = ""
    """`--set KEY=VALUE ...` that gives the original or the other choice; "" if there is none."""


class EvaluateSpec(Declaration):
    """What every milestone is scored on, as by `antlm-bench score`."""

    suites: TomlTuple[str]
    limit: Count | None = None
    """Items per paradigm; None = all."""

    @model_validator(mode="after")
    def _check_suites(self) -> EvaluateSpec:
        if not self.suites:
            raise ValueError(
                "suites is empty: name at least one, or leave the table [evaluate] out"
            )
        return self


class Recipe(Declaration):
    """All settings of one training run."""

    name: str
    title: str
    scale: str = ""
    """The scale that was chosen; "" = the recipe itself."""
    sources: TomlTuple[str]
    """Papers and code that the recipe follows."""
    notes: TomlTuple[str] = ()
    difference: TomlTuple[DifferenceSpec] = ()
    """Departures of the recipe from its sources."""
    methods: TomlTuple[str]
    """Scoring methods of its checkpoints; the first is the default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: ModelSpec
    tokenizer: TokenizerSpec
    corpus: CorpusSpec
    phase: TomlTuple[PhaseSpec]
    """Phases in order, all in epochs or all in steps."""
    objective: ObjectiveSpec = ObjectiveSpec()
    batch: BatchSpec
    optimizer: OptimizerSpec
    distil: DistilSpec | None = None
    evaluate: EvaluateSpec | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        has_masked_phase = any(phase.masked for phase in self.phase)
        if not self.phase or len({phase.epochs is None for phase in self.phase}) != 1:
            raise ValueError("phase: at least one, all in epochs or all in steps")
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
                "batch.grows = 'pass' needs phases in steps: passes of unequal batches are not "
                "counted"
            )
        self._check_methods()
        return self

    def _check_methods(self) -> None:
        """Raise ValueError for a scoring method that the trained objectives do not support."""
        for name in self.methods:
            if name not in METHODS:
                hint = suggest_name(name, METHODS.names()) or ", ".join(METHODS.names())
                raise ValueError(f"methods: unknown method {name!r}: {hint}")
        objective, attentions = self.objective.masked, set(self.attentions)
        trained = [method for method in METHODS if method.attentions <= attentions]
        fitting = [method.name for method in trained if method.objective in ("", objective)]
        fix = f"give one or several of methods = {json.dumps(fitting)}"
        if not self.methods:
            raise ValueError(f"methods is empty: {fix}")
        for name in self.methods:
            if METHODS[name] not in trained:
                raise ValueError(
                    f"methods: {name!r} needs an attention that no phase trains; {fix}"
                )
            if name not in fitting:
                needed = METHODS[name].objective
                raise ValueError(
                    f"methods: {name!r} needs objective.masked = {needed!r}, not {objective!r}; "
                    f"{fix}"
                )

    @property
    def attentions(self) -> tuple[str, ...]:
        """The attentions that some phase trains: "causal", "full"."""
        causal = ("causal",) if any(phase.causal for phase in self.phase) else ()
        return (*causal, "full") if any(phase.masked for phase in self.phase) else causal


def read_recipe(ref: str, scale: str = "", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name or .toml, with a scale and `key=value` overrides applied.

    Raises DeclarationError (with file and key) and UsageError (an impossible scale or override).
    """
    path = find_declaration("models", ref)
    tables = _load_tables(path)
    scales: Tables = tables.pop("scale", {})
    if not (isinstance(scales, dict) and all(isinstance(t, dict) for t in scales.values())):
        raise DeclarationError(
            "scales are tables: [scale.nano], [scale.nano.model]", location=f"{path}: scale"
        )
    if scale:
        if scale not in scales:
            known = f"it has {', '.join(scales)}" if scales else "it declares none"
            raise UsageError(f"{path.stem} has no scale {scale!r}: {known}", location="--scale")
        tables = merge_tables(tables, scales[scale])
    tables |= {"name": path.stem, "scale": scale}
    try:
        return validate_tables(_apply_overrides(tables, overrides), Recipe, path)
    except DeclarationError as error:
        raise _blame_overrides(error, tables, overrides, path) from None


def _apply_overrides(tables: Tables, overrides: Sequence[str]) -> Tables:
    """Return a recipe's tables with `--set` overrides applied; later ones win.

    If two keys exclude each other, an override of one removes the recipe's other one.
    """
    changed: Tables = {}
    for change in overrides:
        changed = merge_tables(changed, _parse_override(change))
    out = merge_tables({}, tables)
    for table, key, rival in EXCLUSIVE_KEYS:
        override, original = changed.get(table), out.get(table)
        if isinstance(override, dict) and isinstance(original, dict) and key in override:
            out[table] = {name: value for name, value in original.items() if name != rival}
    return merge_tables(out, changed)


def _blame_overrides(
    error: DeclarationError, tables: Tables, overrides: Sequence[str], path: Path
) -> DeclarationError:
    """Return an error that names the `--set` overrides that cause it, if any do."""
    blamed = list(overrides)
    for change in overrides:
        rest = [other for other in blamed if other is not change]
        try:
            validate_tables(_apply_overrides(tables, rest), Recipe, path)
        except DeclarationError as other_error:
            if (other_error.message, other_error.location) == (error.message, error.location):
                blamed = rest
    if not blamed:
        return error
    key = error.location.removeprefix(str(path)).removeprefix(": ")
    value: Any = tables
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    hint = ""
    if isinstance(value, int | float | str | list):
        hint = f"the recipe has {key} = {json.dumps(value)}"
    location = " ".join(f"--set {change}" for change in blamed)
    message = f"{key}: {error.message}" if key else error.message
    return DeclarationError(message, location=location, hint=hint)


def list_scales(ref: str) -> tuple[str, ...]:
    """Return the names of the scales that a recipe declares."""
    return tuple(_load_tables(find_declaration("models", ref)).get("scale", {}))


def merge_tables(base: Tables, overrides: Tables) -> Tables:
    """Merge nested tables key by key. A list replaces a list: half of a list of phases means
    nothing.
    """
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge_tables(old, value)
        merged[key] = value
    return merged


def _load_tables(path: Path) -> Tables:
    """Read a file's tables, merged over those of the recipe that it extends (one level)."""
    tables = parse_toml(path)
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    if not isinstance(parent, str):
        raise DeclarationError("extends is the name of one recipe", location=f"{path}: extends")
    base = parse_toml(find_declaration("models", parent))
    if "extends" in base:
        raise DeclarationError(
            f"{parent!r} itself extends {base['extends']!r}: one level only",
            location=f"{path}: extends",
        )
    merged = merge_tables(base, tables)
    if isinstance(base.get("difference"), list) and isinstance(tables.get("difference"), list):
        merged["difference"] = _merge_differences(base["difference"], tables["difference"])
    return merged


def _merge_differences(base: list[Any], overrides: list[Any]) -> list[Any]:
    """Replace entries by overrides of the same number; an override without `ours` removes one."""
    rows = {
        row.get("number") if isinstance(row, dict) else number: row
        for number, row in enumerate(base)
    }
    rows |= {
        row.get("number") if isinstance(row, dict) else -1 - number: row
        for number, row in enumerate(overrides)
    }
    return [row for row in rows.values() if not isinstance(row, dict) or len(row) > 1]


def _parse_override(text: str) -> Tables:
    """Parse `optimizer.lr=1e-3` to nested tables."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(
            f"{text!r} is not key=value", location="--set", hint="e.g. --set optimizer.lr=1e-3"
        )
    if parts[0] in ("extends", "scale", "name"):
        raise UsageError(f"{parts[0]!r} cannot be set", location="--set")
    tables: Any = parse_toml_value(value.strip(), location=f"--set {key.strip()}")
    for part in reversed(parts):
        tables = {part: tables}
    return dict(tables)
