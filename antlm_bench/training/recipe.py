"""Recipes: every number of a training run, as typed declarations.

A recipe is a TOML in `models/`. It may extend one other recipe, declares smaller scales of itself,
and can be varied from the command line (`--set optimizer.lr=1e-3`); what comes out is one flat
declaration that a run stores whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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
from antlm_bench.scoring.probes import METHODS

Tables = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
ENCODERS = ("ltg-bert", "gpt-bert")
# (table, key, key that it excludes)
EXCLUSIVE_KEYS = (("optimizer", "warmup", "warmup_steps"), ("optimizer", "warmup_steps", "warmup"))
# Scoring method -> the masked objective that it needs.
OBJECTIVE_OF_METHOD = {"mlm": "mlm", "mlm-l2r": "mlm", "mntp": "mntp", "fused": "mntp"}


class ModelSpec(Declaration):
    """The shape of the network. kv_heads: fewer than heads for grouped-query attention; None = as
    many.
    """

    architecture: Literal["llama", "gpt2", "ltg-bert", "gpt-bert"]
    layers: Count
    hidden: Count
    heads: Count
    kv_heads: Count | None = None
    ffn: Count
    positions: Count  # the longest row that the model is made for
    tied: bool  # one matrix for input and output embeddings
    dropout: Share = 0.0  # of hidden states
    attention_dropout: Share = 0.0
    norm_eps: Positive
    buckets: Count = 32  # relative positions; 2 x buckets - 1 vectors (ltg-bert, gpt-bert)
    layer_mix: Literal["", "base", "zero", "normalized", "weighted_output"] = (
        ""  # the ELC variants of ltg-bert
    )
    attention_gate: bool = True  # gpt-bert
    layer_weights: bool = True  # gpt-bert

    @model_validator(mode="after")
    def _check_shape(self) -> ModelSpec:
        if self.hidden % self.heads or self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads = {self.heads} must divide hidden = {self.hidden}, and kv_heads must divide heads"
            )
        if self.kv_heads and self.architecture != "llama":
            raise ValueError(f"kv_heads is llama's, not {self.architecture}'s")
        if self.architecture in ENCODERS and self.buckets >= self.positions:
            raise ValueError(
                f"buckets = {self.buckets} must be fewer than positions = {self.positions}"
            )
        if self.layer_mix and self.architecture != "ltg-bert":
            raise ValueError(f"layer_mix is ltg-bert's, not {self.architecture}'s")
        return self


class TokenizerSpec(Declaration):
    """A byte-level BPE, trained on the corpus of the run. Specials: <pad> <s> </s> <mask> <unk>, in
    this order.
    """

    vocabulary: Annotated[int, Field(ge=261)]  # 256 bytes and the five specials
    alphabet: Literal["bytes", "seen"] = (
        "bytes"  # all bytes have a piece, or only those of the corpus
    )
    min_frequency: Count = 2
    normalizer: Literal["", "NFC", "NFKC"] = "NFKC"
    single_digits: bool = False


class CorpusSpec(Declaration):
    """How text becomes rows: windows of a stream of tokens that never attend across documents.

    layout: every line begins with <s> and blank lines are left out (lines), or a file is encoded
    whole, without specials and with its line breaks (files, as BabyLlama does). document: what a
    text file is made of (a record of a .jsonl always is one); `corpus` ignores document borders.
    eos: a </s> ends each line. offset: where a pass over the corpus begins to cut rows: always at
    0, at one random place, or each row at its own (row, as BabyLlama does). words: only that many,
    every file keeping its share. held_out: this share of every file, its last lines, is not trained
    on; after every pass the loss on it is measured, and the weights of the pass with the lowest
    loss are the result.
    """

    layout: Literal["lines", "files"] = "lines"
    document: Literal["file", "line", "corpus"]
    eos: bool = False
    offset: Literal["random", "fixed", "row"] = "fixed"
    words: Count | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _check_layout(self) -> CorpusSpec:
        if self.layout == "files" and (self.document == "line" or self.eos):
            raise ValueError(
                "layout = 'files' has no lines: document must be 'file' or 'corpus', eos false"
            )
        return self


class PhaseSpec(Declaration):
    """A block of training: for how long, and which share of every batch is causal and which masked.
    """

    epochs: Count | None = None
    steps: Count | None = None
    causal: Annotated[float, Field(ge=0)] = 0.0
    masked: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _check_phase(self) -> PhaseSpec:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase lasts for either epochs or steps")
        if not self.causal + self.masked:
            raise ValueError("a phase needs causal or masked above 0: it trains nothing")
        return self

    @property
    def causal_share(self) -> float:
        return self.causal / (self.causal + self.masked)


class ObjectiveSpec(Declaration):
    """What masked rows are asked, and how tokens are hidden.

    masked: `mlm` predicts a hidden token at its own position, `mntp` one position before it. rate
    falls (or rises) linearly to final_rate. spans: hide single tokens, or spans of Geometric(1/3)
    mod 10 or Uniform(1, 3) tokens (the laws of LTG-BERT and GPT-BERT, see `masking`). least: fewest
    tokens that the geometric law hides in a row. even: the uniform law prefers tokens that were
    hidden less often so far, as GPT-BERT does. corrupt: shares of the hidden tokens that become
    <mask>, a random token, or stay.
    """

    masked: Literal["mlm", "mntp"] = "mlm"
    rate: Share = 0.15
    final_rate: Share | None = None
    spans: Literal["token", "geometric", "uniform"] = "token"
    least: Literal[0, 1] = 1
    even: bool = False
    corrupt: TomlTuple[Share] = (0.8, 0.1, 0.1)
    z_loss: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _check_objective(self) -> ObjectiveSpec:
        if len(self.corrupt) != 3 or abs(sum(self.corrupt) - 1) > 1e-9:
            raise ValueError("corrupt is [mask, random, kept], adding up to 1")
        if self.even and self.spans != "uniform":
            raise ValueError(f"even = true needs spans = 'uniform', not {self.spans!r}")
        return self


class BatchSpec(Declaration):
    """tokens per optimizer step, growing linearly to final_tokens; length of a row, and from which
    share of training on it is longer (the tokens of a step stay as they are, so that there are
    fewer rows).

    grows: whether tokens and length change at every step, or are set when a pass over the corpus
    begins (GPT-BERT). short: this share of the rows is cut to a random number of tokens, the rest
    of the row is padding (LTG-BERT).
    """

    tokens: Count
    final_tokens: Count | None = None
    length: Annotated[int, Field(ge=2)]
    longer: TomlTuple[TomlTuple[float]] = ()
    grows: Literal["step", "pass"] = "step"
    short: Share = 0.0

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
        return int(self.longer[-1][1]) if self.longer else self.length


class OptimizerSpec(Declaration):
    """lr rises linearly from 0 over the warm-up, then follows `schedule` down to final x lr, and
    over the last share `cooldown` falls linearly from final x lr to zero. exempt: what weight decay
    leaves alone beside biases and norms: all tables of embeddings, or only that of relative
    positions. decay_mixing: weights of layer mixes decay, too.

    ema: decay of the averaged weights that are saved instead of the last ones, constant from the
    first step; 0 = none. at_switch: whether optimizer state outlives a change of objective.
    restart: one learning-rate schedule for the whole run, or one per phase.
    """

    name: Literal["adamw", "lamb"]
    lr: Positive
    betas: TomlTuple[Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    exempt: TomlTuple[Literal["embeddings", "positions"]] = ()
    decay_mixing: bool = False
    clip: Positive = 1.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: Share = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup: Share | None = None
    cooldown: Share = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    at_switch: Literal["keep", "reset"] = "keep"
    restart: Literal["run", "phase"] = "run"

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
    """alpha x cross-entropy + (1 - alpha) x temperature^2 x KL to the teachers' averaged logits.

    The cross-entropy is a mean over targets. divergence: KL is summed over all positions of a row
    and averaged over rows (per-sequence, what both BabyLlama papers' code computes), or averaged
    over targets (per-token).
    """

    teachers: TomlTuple[str]
    temperature: Positive
    alpha: Share
    divergence: Literal["per-sequence", "per-token"] = "per-sequence"

    @model_validator(mode="after")
    def _check_teachers(self) -> DistilSpec:
        if not self.teachers:
            raise ValueError("teachers is empty: name at least one recipe")
        return self


class DifferenceSpec(Declaration):
    """Where a recipe departs from its paper, or decides what the paper leaves open.

    number: what differs, a key of the recipe where it is one. option: `--set KEY=VALUE ...` that
    gives the original, or the other choice; "" where there is none. A recipe inherits the
    differences of the one that it extends; an entry of the same number replaces one, and an entry
    without `ours` removes it.
    """

    number: str
    paper: str = ""
    ours: str = ""
    why: str = ""
    option: str = ""


class EvaluateSpec(Declaration):
    """What every milestone is scored on, with the scorer of `antlm-bench score`. limit: items per
    paradigm.
    """

    suites: TomlTuple[str]
    limit: Count | None = None

    @model_validator(mode="after")
    def _check_suites(self) -> EvaluateSpec:
        if not self.suites:
            raise ValueError(
                "suites is empty: name at least one, or leave the table [evaluate] out"
            )
        return self


class Recipe(Declaration):
    """One training run, whole."""

    name: str
    title: str
    scale: str = ""
    sources: TomlTuple[str]
    notes: TomlTuple[str] = ()
    difference: TomlTuple[DifferenceSpec] = ()
    methods: TomlTuple[str]  # how its checkpoints are scored; the first by default
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: ModelSpec
    tokenizer: TokenizerSpec
    corpus: CorpusSpec
    phase: TomlTuple[PhaseSpec]
    objective: ObjectiveSpec = ObjectiveSpec()
    batch: BatchSpec
    optimizer: OptimizerSpec
    distil: DistilSpec | None = None
    evaluate: EvaluateSpec | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        if not self.phase or len({phase.epochs is None for phase in self.phase}) != 1:
            raise ValueError("phase: at least one, all in epochs or all in steps")
        if self.batch.max_row_length > self.model.positions:
            raise ValueError(
                f"batch: rows of {self.batch.max_row_length} do not fit model.positions = {self.model.positions}"
            )
        if self.distil and any(phase.masked for phase in self.phase):
            raise ValueError("distil: only causal phases can be distilled")
        if self.corpus.held_out and (
            self.optimizer.ema or any(phase.masked for phase in self.phase)
        ):
            raise ValueError("corpus.held_out: needs causal phases only, and optimizer.ema = 0")
        if self.batch.grows == "pass" and self.phase[0].steps is None:
            raise ValueError(
                "batch.grows = 'pass' needs phases in steps: passes of unequal batches are not counted"
            )
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(
                    f"methods: unknown method {name!r}: {suggest_name(name, METHODS) or ', '.join(METHODS)}"
                )
        objective = self.objective.masked
        trained = [
            name for name, spec in METHODS.items() if set(spec.attends) <= set(self.attentions)
        ]
        fitting = [
            name for name in trained if OBJECTIVE_OF_METHOD.get(name, objective) == objective
        ]
        fix = f"give one or several of methods = {json.dumps(fitting)}"
        if not self.methods:
            raise ValueError(f"methods is empty: {fix}")
        for name in self.methods:
            if name not in trained:
                raise ValueError(
                    f"methods: {name!r} needs an attention that no phase trains; {fix}"
                )
            if name not in fitting:
                needed = OBJECTIVE_OF_METHOD[name]
                raise ValueError(
                    f"methods: {name!r} needs objective.masked = {needed!r}, not {objective!r}; {fix}"
                )
        return self

    @property
    def attentions(self) -> tuple[str, ...]:
        """The attentions that some phase trains: "causal", "full"."""
        both = {
            "causal": any(p.causal for p in self.phase),
            "full": any(p.masked for p in self.phase),
        }
        return tuple(name for name, trained in both.items() if trained)


def read_recipe(ref: str, scale: str = "", overrides: Sequence[str] = ()) -> Recipe:
    """The recipe behind a name or a .toml: what it extends below it, its scale above it,
    `key=value` changes on top.

    Raises DeclarationError (file and key) and UsageError (a scale or a change that cannot be).
    """
    path = find_declaration("models", ref)
    tables = _load_tables(path)
    scales: Tables = tables.pop("scale", {})
    if not isinstance(scales, dict) or not all(
        isinstance(table, dict) for table in scales.values()
    ):
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
    """Return a recipe's tables with `--set` changes on top, later ones over earlier ones.

    A change of one of two keys that exclude each other removes the recipe's other one.
    """
    changed: Tables = {}
    for change in overrides:
        changed = merge_tables(changed, _parse_override(change))
    out = merge_tables({}, tables)
    for table, key, rival in EXCLUSIVE_KEYS:
        above, below = changed.get(table), out.get(table)
        if isinstance(above, dict) and isinstance(below, dict) and key in above:
            out[table] = {name: value for name, value in below.items() if name != rival}
    return merge_tables(out, changed)


def _blame_overrides(
    error: DeclarationError, tables: Tables, overrides: Sequence[str], path: Path
) -> DeclarationError:
    """Name the `--set` changes without which a recipe has no such error; the error itself if none.
    """
    blamed = list(overrides)
    for change in overrides:
        rest = [other for other in blamed if other is not change]
        try:
            validate_tables(_apply_overrides(tables, rest), Recipe, path)
        except DeclarationError as same:
            if (same.message, same.location) == (error.message, error.location):
                blamed = rest
    if not blamed:
        return error
    key = error.location.removeprefix(str(path)).removeprefix(": ")
    value: Any = tables
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    hint = (
        f"the recipe has {key} = {json.dumps(value)}"
        if isinstance(value, int | float | str | list)
        else ""
    )
    place = " ".join(f"--set {change}" for change in blamed)
    return DeclarationError(
        f"{key}: {error.message}" if key else error.message, location=place, hint=hint
    )


def list_scales(ref: str) -> tuple[str, ...]:
    """The names of the scales that a recipe declares."""
    return tuple(_load_tables(find_declaration("models", ref)).get("scale", {}))


def merge_tables(base: Tables, overrides: Tables) -> Tables:
    """Tables on tables, key by key; a list replaces a list, because half of a list of phases means
    nothing.
    """
    out = dict(base)
    for key, value in overrides.items():
        old = out.get(key)
        out[key] = (
            merge_tables(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return out


def _load_tables(path: Path) -> Tables:
    """A file's tables on those of the recipe that it extends, one level deep."""
    tables = parse_toml(path)
    parent = tables.pop("extends", None)
    if parent is None:
        return tables
    if not isinstance(parent, str):
        raise DeclarationError("extends is the name of one recipe", location=f"{path}: extends")
    below = parse_toml(find_declaration("models", parent))
    if "extends" in below:
        raise DeclarationError(
            f"{parent!r} itself extends {below['extends']!r}: one level only",
            location=f"{path}: extends",
        )
    out = merge_tables(below, tables)
    if isinstance(below.get("difference"), list) and isinstance(tables.get("difference"), list):
        out["difference"] = _merge_differences(below["difference"], tables["difference"])
    return out


def _merge_differences(base: list[Any], overrides: list[Any]) -> list[Any]:
    """Entries of `above` over those of the same number; an entry without `ours` removes one."""
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
    """`optimizer.lr=1e-3` as tables."""
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
