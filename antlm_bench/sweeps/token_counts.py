"""Count what a unit computes: rows, tokens and read positions, from the tokenizer and the texts.

A suite is prepared exactly as `score` prepares it, by the functions of its task type, for an engine
that counts the batches instead of running a model. Counts depend on tokenizer, suite, methods and
options, and not on weights: they are kept in the user's cache and shared by all checkpoints with
that tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from antlm_bench.checkpoints.resolve import CPU_BATCH_TOKENS, NO_MAX_LENGTH
from antlm_bench.runs.folder_io import write_cache_file
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.pair_plan import PairPlan
from antlm_bench.scoring.plan import build_plans
from antlm_bench.suites import sources
from antlm_bench.sweeps.checkpoint_facts import CheckpointFacts
from antlm_bench.training.schedule import TOKENS_PER_WORD
from antlm_bench.types import Attention, Floats, Probes
from antlm_bench.weight_files import read_json

if TYPE_CHECKING:
    from antlm_bench.checkpoints import Backbone, Checkpoint
    from antlm_bench.suites.classification_loader import ClassificationTask
    from antlm_bench.suites.task_types import Suite

COUNTS_VERSION = 2
"""Part of the key of cached counts. Increased when a change of the code changes the counts."""


@dataclass(frozen=True, slots=True)
class TextCounts:
    """What a model computes for some texts."""

    rows: int = 0
    """Rows of the batches: texts, or one per masked token. Equal rows count once."""
    tokens: int = 0
    """Computed tokens. A prefix that causal rows of a batch share counts once."""
    reads: int = 0
    """Positions at which the LM head runs."""
    attended: int = 0
    """Sum over tokens of the positions that each attends to."""
    seconds: float = 0.0
    """Time that the preparation took when it was counted: tokenizing and planning, no model."""
    is_exact: bool = True
    """False = the tokenizer does not exist yet, and the tokens are estimated from words."""

    def __add__(self, other: TextCounts) -> TextCounts:
        return TextCounts(
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.reads + other.reads,
            self.attended + other.attended,
            self.seconds + other.seconds,
            self.is_exact and other.is_exact,
        )

    def scale(self, factor: float) -> TextCounts:
        """Return a share of the counts: of one of several shards, or of several epochs."""
        rows, tokens, reads, attended = (
            round(value * factor) for value in (self.rows, self.tokens, self.reads, self.attended)
        )
        return TextCounts(rows, tokens, reads, attended, self.seconds * factor, self.is_exact)


class CountingEngine:
    """Stands in for scoring.engine.Engine: counts batches and returns zeros."""

    def __init__(self) -> None:
        self.counts = TextCounts()

    def score_probes(
        self,
        probes: Iterable[Probes],
        num_texts: int,
        tick: Callable[[float], None] | None = None,
    ) -> Floats:
        """Count the batches that the engine would run."""
        del tick
        probes = [p for p in probes if len(p.ids)]
        with_source = [p for p in probes if p.attention == "cross"]
        if with_source:
            self._count_encoder_decoder(PairPlan(with_source))
            probes = [p for p in probes if p.attention != "cross"]
        for plan in build_plans(probes) if probes else ():
            start = 0
            while start < len(plan):
                batch, start = plan.next_batch(start, CPU_BATCH_TOKENS)
                lengths = np.array([length for _, length in batch.blocks])
                rows = np.array([number for number, _ in batch.blocks])
                squares = int((rows * lengths**2).sum())
                self.counts += TextCounts(
                    rows=int(rows.sum()),
                    tokens=len(batch.ids),
                    reads=len(batch.read_nodes),
                    attended=squares if batch.attention == "full" else squares // 2,
                )
        return np.zeros(num_texts)

    def _count_encoder_decoder(self, plan: PairPlan) -> None:
        """Count the batches of an encoder-decoder; its decoder's rows attend to their sources."""
        start = 0
        while start < len(plan):
            batch, start = plan.next_batch(start, CPU_BATCH_TOKENS)
            (num_rows, row_length), source_length = (
                batch.decoder_ids.shape,
                batch.source_ids.shape[1],
            )
            self.counts += TextCounts(
                rows=num_rows,
                tokens=batch.num_nodes,
                reads=len(batch.read_nodes),
                attended=batch.source_ids.size * source_length
                + num_rows * row_length * (source_length + row_length // 2),
            )


def count_suite(
    facts: CheckpointFacts,
    suite: Suite,
    methods: Sequence[str],
    options: Mapping[str, Any],
    tokenizer: Any = None,
) -> TextCounts:
    """Count a suite as `score` would compute it with some methods and options.

    tokenizer: that of the checkpoint; None = load it. Raises BenchError for texts that the
    tokenizer cannot read.
    """
    from antlm_bench.commands.score_options import ScoreOptions
    from antlm_bench.scoring.conventions import apply_conventions
    from antlm_bench.scoring.multiple_choice import iter_chunks
    from antlm_bench.suites.task_types import TASK_TYPES, PredictRequest

    if not facts.tokenizer_hash:
        return _estimate_counts(suite, methods)
    start_time = time.perf_counter()
    names = set(ScoreOptions.__dataclass_fields__)
    score_options = ScoreOptions(**{k: v for k, v in options.items() if k in names})
    engine = CountingEngine()
    task_type = TASK_TYPES[suite.task_type]
    groups: dict[Any, list[str]] = {}
    for name in methods:
        groups.setdefault(score_options.conventions().for_method(METHODS[name]), []).append(name)
    for conventions, group in groups.items():
        model = build_counting_checkpoint(facts, engine, conventions.bos, tokenizer)
        if score_options.words is not None:
            model = model.with_word_rule(score_options.words)
        conventions = conventions.for_suite(
            suite.reduction, suite.has_delimiters, task_type.scores_spans
        )
        if conventions.bos_before_context:
            model = model.with_context_bos_policy(conventions.bos_before_context)
        if conventions.eos and not task_type.scores_documents:
            model = model.with_scored_eos(conventions.eos)
        records = [METHODS[name] for name in group]
        items = apply_conventions(suite.items, conventions, model)
        for chunk in iter_chunks(items, records):
            task_type.predict(PredictRequest(model, suite, chunk, records, conventions))
    return replace(engine.counts, seconds=time.perf_counter() - start_time)


def build_counting_checkpoint(
    facts: CheckpointFacts, engine: CountingEngine, bos: str, tokenizer: Any = None
) -> Checkpoint:
    """Return a checkpoint without a model: tokenizer, special tokens and limits are the real ones.

    The longest text is that of config.json and tokenizer; the loader may find a lower one.
    """
    from antlm_bench.checkpoints import Checkpoint
    from antlm_bench.checkpoints.loader import build_encoder_decoder_encoders
    from antlm_bench.scoring.source_text import find_denoiser
    from antlm_bench.scoring.text import TextEncoder, build_specials, find_mask_token

    tokenizer = tokenizer or load_tokenizer(facts)
    vocab_size = facts.size.vocabulary if facts.size else len(tokenizer)
    max_length = _limit_length(facts, tokenizer)
    mask_id, no_mask_reason = find_mask_token(tokenizer, vocab_size)
    limits: Any = {"max_length": max_length, "vocab_size": max(vocab_size, len(tokenizer))}
    encoders: dict[Attention, TextEncoder] = {}
    if facts.kind == "encoder-decoder":
        denoiser = find_denoiser(tokenizer, vocab_size)
        mask_id, no_mask_reason = denoiser.mask_id, denoiser.no_mask_reason
        encoders = build_encoder_decoder_encoders(tokenizer, 0, denoiser, bos, **limits)
    else:
        for attention in facts.attentions:
            specials = build_specials(tokenizer, attention, bos)
            encoders[attention] = TextEncoder(tokenizer, specials, **limits)
    return Checkpoint(
        name=facts.ref,
        kind=facts.kind,
        attentions=frozenset(encoders),
        eos=str(tokenizer.eos_token),
        mask_id=mask_id,
        max_length=max_length,
        engine=engine,  # type: ignore[arg-type]  # it has the one method that scoring calls
        encoders=encoders,
        trained_methods=facts.trained_methods,
        no_mask_reason=no_mask_reason,
    )


def load_tokenizer(facts: CheckpointFacts) -> Any:
    """Load the tokenizer of a checkpoint. Raises CheckpointError."""
    from antlm_bench.checkpoints import OpenOptions, pretrained

    assert facts.tokenizer_dir is not None  # callers check tokenizer_hash
    with pretrained.silence_transformers():
        return pretrained.load_tokenizer(facts.tokenizer_dir, OpenOptions())


def count_task(
    facts: CheckpointFacts, task: ClassificationTask, attention: Attention, tokenizer: Any = None
) -> tuple[TextCounts, TextCounts, TextCounts]:
    """Count one pass over (the texts to train on, those that select an epoch, the scored ones)."""
    start_time = time.perf_counter()
    held_out = 0.0 if task.select == "valid" else task.held_out
    if facts.tokenizer_hash:
        lengths = [
            _measure_lengths(facts, examples, attention, task, tokenizer)
            for examples in (task.train, task.valid)
        ]
    else:
        lengths = [
            np.array(
                [len(f"{e.first} {e.second}".split()) * TOKENS_PER_WORD + 3 for e in examples]
            ).clip(max=task.training.max_length)
            for examples in (task.train, task.valid)
        ]
    seconds = time.perf_counter() - start_time
    train, valid = (
        TextCounts(
            rows=len(row_lengths),
            tokens=round(float(row_lengths.sum())),
            attended=round(float((row_lengths**2).sum() / (1 if attention == "full" else 2))),
            is_exact=bool(facts.tokenizer_hash),
        )
        for row_lengths in lengths
    )
    selection = valid if task.select == "valid" else train.scale(held_out)
    return replace(train.scale(1 - held_out), seconds=seconds), selection, valid


def _measure_lengths(
    facts: CheckpointFacts,
    examples: Sequence[Any],
    attention: Attention,
    task: ClassificationTask,
    tokenizer: Any,
) -> Any:
    """Return the number of tokens of each row, as finetuning reads it."""
    from antlm_bench.finetuning.data import encode_examples
    from antlm_bench.scoring.text import build_specials

    tokenizer = tokenizer or load_tokenizer(facts)
    # Encoding uses only these attributes of a Backbone.
    backbone: Backbone | Any = SimpleNamespace(
        name=facts.ref,
        tokenizer=tokenizer,
        specials={attention: build_specials(tokenizer, attention, "auto")},
        vocab_size=max(facts.size.vocabulary if facts.size else 0, len(tokenizer)),
        max_length=_limit_length(facts, tokenizer),
        has_token_type_ids=False,
    )
    max_length = min(task.training.max_length, backbone.max_length or task.training.max_length)
    return encode_examples(backbone, attention, examples, max_length).lengths


def _limit_length(facts: CheckpointFacts, tokenizer: Any) -> int | None:
    limits = [facts.max_length, tokenizer.model_max_length]
    return min((int(n) for n in limits if n is not None and n < NO_MAX_LENGTH), default=None)


def _estimate_counts(suite: Suite, methods: Sequence[str]) -> TextCounts:
    """Estimate counts from words, for a tokenizer that is trained later. Nothing is shared."""
    texts = [option.text for item in suite.items for option in item.options]
    lengths = np.array([len(text.split()) * TOKENS_PER_WORD for text in texts])
    total = TextCounts(is_exact=False)
    for name in methods:
        for attention, _ in METHODS[name].parts:
            rows_per_text = lengths if attention == "full" else np.ones(len(lengths))
            tokens = rows_per_text * (lengths + 1)
            attended = tokens * (lengths + 1) / (1 if attention == "full" else 2)
            total += TextCounts(
                rows=round(float(rows_per_text.sum())),
                tokens=round(float(tokens.sum())),
                reads=round(float(lengths.sum())),
                attended=round(float(attended.sum())),
                is_exact=False,
            )
    return total


class CountsCache:
    """Counts in the user's cache: one small file per tokenizer, texts, methods and options."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or sources.cache_dir() / "token-counts"

    def find(self, key: Sequence[Any]) -> tuple[TextCounts, ...] | None:
        """Return the counts that are stored under a key; None if there are none."""
        stored = read_json(self._path(key))
        try:
            return tuple(TextCounts(**entry) for entry in stored["counts"]) if stored else None
        except (KeyError, TypeError):
            return None  # of another version

    def store(self, key: Sequence[Any], counts: Sequence[TextCounts]) -> None:
        """Store counts under a key. A cache that cannot be written is left out."""
        content = json.dumps({"counts": [asdict(each) for each in counts]})
        write_cache_file(self._path(key), content.encode())

    def _path(self, key: Sequence[Any]) -> Path:
        text = json.dumps([COUNTS_VERSION, *key], sort_keys=True, default=str)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
