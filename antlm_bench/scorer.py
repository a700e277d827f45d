"""Score texts with a model in Python: the numbers of the command line, without a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antlm_bench.checkpoints import (
    Checkpoint,
    OpenOptions,
    evaluation_mode,
    open_checkpoint,
    open_model,
)
from antlm_bench.errors import UsageError
from antlm_bench.metrics import summarize
from antlm_bench.notebook import ArrowTable, to_html_table
from antlm_bench.predictions import concat_predictions
from antlm_bench.runs.table_files import build_arrow_table
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import Method, default_method, resolve_method
from antlm_bench.scoring.multiple_choice import iter_chunks
from antlm_bench.scoring.text import TextEncoder, build_specials, check_specials
from antlm_bench.types import Encodings, Estimate, Floats, Item, Option, Probes, Summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Unpack

    from antlm_bench.keywords import OpenKeywords

SUITE_NAME = "pairs"
IN_MEMORY_OPTIONS = ("bos", "max_length", "batch_tokens")
REDUCTIONS = ("sum", "per-token")
TokenRow = tuple[int, int, int, str, float | None]
TOKEN_COLUMNS = {
    "text_index": "int32",
    "token_index": "int32",
    "token_id": "int32",
    "token": "string",
    "logprob": "float64",
}


@dataclass(frozen=True, slots=True)
class PairScores:
    """The accuracy of one model on minimal pairs."""

    summary: Summary
    predictions: ArrowTable
    """One row per pair, in order: id, gold (0, the good text), pred, scores (log-probability of
    good and bad text, nats), tokens, characters, flags. See `Run.predictions`."""

    @property
    def estimate(self) -> Estimate:
        """The fraction of pairs whose good text is more probable, with its 95% interval."""
        return self.summary.headline

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy, as fractions (low, high)."""
        return self.estimate.interval

    def _repr_html_(self) -> str:
        estimate = self.estimate
        row = (self.summary.method, estimate.value, estimate.low, estimate.high, estimate.n)
        columns = ("method", "accuracy", "low", "high", "n")
        return to_html_table(columns, [row], notes=self.summary.notes)


class Scorer:
    """A model that gives log-probabilities of texts, from a checkpoint or from objects in memory.

        scorer = Scorer("gpt2")
        scorer.logprobs(["The cats sleep.", "The cats sleeps."])   # array of 2, in nats
        scorer.token_logprobs(["The cats sleep."]).to_pandas()     # one row per token
        scorer.compare([("The cats sleep.", "The cats sleeps.")]).estimate.value

    The numbers are those of `antlm-bench score` and `antlm-bench surprisal`: the same engine,
    tokenization, special tokens and self-test. Several methods of one checkpoint:
    `scorer.logprobs(texts, method="mlm")`; `scorer.methods` lists them.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        **options: Unpack[OpenKeywords],
    ) -> None:
        """Open a checkpoint, or take objects in memory.

        model: path or hub id, or a transformers model with a language-model head. tokenizer: of a
        model in memory, its tokenizer; of a path, another path than the checkpoint's own. options:
        how to open it (revision, device, dtype, bos, max_length, ...); a model in memory takes bos,
        max_length and batch_tokens.

        A model in memory keeps its device, dtype, weights and training mode. It may be trained on
        between two calls. Dropout is off while it is scored.

        Raises CheckpointError (a checkpoint that cannot be opened, a failed self-test), UsageError.
        """
        if isinstance(model, str | Path):
            if tokenizer is not None and not isinstance(tokenizer, str | Path):
                raise UsageError(
                    "a tokenizer in memory goes with a model in memory",
                    location="Scorer",
                    hint="give the tokenizer's path or hub id",
                )
            path = None if tokenizer is None else str(tokenizer)
            self.checkpoint: Checkpoint = open_checkpoint(
                str(model), OpenOptions(tokenizer=path, **options)
            )
            """The opened checkpoint. Its `metadata` holds what `antlm-bench doctor` shows."""
        else:
            if fixed := sorted(options.keys() - IN_MEMORY_OPTIONS):
                raise UsageError(
                    f"{fixed[0]} is an option of a checkpoint in a folder",
                    location="Scorer",
                    hint=f"options of a model in memory: {', '.join(IN_MEMORY_OPTIONS)}",
                )
            if tokenizer is None or isinstance(tokenizer, str | Path):
                raise UsageError(
                    "a model in memory needs its tokenizer in memory",
                    location="Scorer",
                    hint="Scorer(model, tokenizer)",
                )
            self.checkpoint = open_model(model, tokenizer, OpenOptions(**options))
        self._tested_characters: dict[str, int] = {}

    @property
    def name(self) -> str:
        """Name of the checkpoint; of a model in memory, where it came from, or its class."""
        return self.checkpoint.name

    @property
    def methods(self) -> list[str]:
        """Scoring methods that fit the model. The first is the default."""
        return self.checkpoint.methods

    def logprobs(
        self, texts: Sequence[str], *, method: str | None = None, bos: str | None = None
    ) -> Floats:
        """Return the log-probability of each text: float64 (n,), in nats.

        It is the sum over the text's tokens; for masked methods, the pseudo-log-likelihood. Special
        tokens are not scored. NaN where a text does not fit into the model, or has no token that
        can be scored.

        method: one of `methods`, default the first. bos: auto, always, never or tokenizer; default
        as the scorer was opened. See docs/conventions.md.

        Raises UsageError for an unknown method or policy, MethodNotSupported for a method that does
        not fit the model, CheckpointError if the model answers NaN.

            scorer.logprobs(["The cats sleep.", "The cats sleeps."])
        """
        items = _texts_to_items(texts)
        with self._prepare(items, method, bos) as (checkpoint, chosen):
            parts = [
                _score_texts(checkpoint, chunk, chosen) for chunk in iter_chunks(items, [chosen])
            ]
        return np.concatenate([np.zeros(0), *parts])

    def token_logprobs(
        self, texts: Sequence[str], *, method: str | None = None, bos: str | None = None
    ) -> ArrowTable:
        """Return the log-probability of each token, in nats, as a table with one row per token.

        Columns: text_index (which of the texts), token_index (within the text, from 0), token_id,
        token (decoded), logprob. Special tokens have no row. logprob is null where a token cannot
        be scored (the first of a causal text without BOS, or a text that does not fit).

        Arguments and errors are those of `logprobs`. The sum of a text's rows is its `logprobs`.

            scorer.token_logprobs(["The cats sleep."]).to_pandas()
        """
        items, start = _texts_to_items(texts), 0
        rows: list[TokenRow] = []
        with self._prepare(items, method, bos) as (checkpoint, chosen):
            for chunk in iter_chunks(items, [chosen]):
                rows += _score_tokens(checkpoint, chunk, chosen, start)
                start += len(chunk)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(TOKEN_COLUMNS)}
        return ArrowTable(build_arrow_table(columns, TOKEN_COLUMNS))

    def compare(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        method: str | None = None,
        bos: str | None = None,
        ties: str = "half",
        reduction: str = "sum",
    ) -> PairScores:
        """Return how often the first text of a pair is more probable than the second.

        pairs: n pairs (good, bad). ties: what a tie counts: half, strict (0), first (1) or random.
        reduction: compare the sum of log-probabilities, or their mean per-token.

        A text that does not fit into the model makes its pair wrong, and is counted in
        `estimate.flags`. Raises as `logprobs`, and DataError for no pairs, or for a text of which
        no token can be scored.

            result = scorer.compare([("The cats sleep.", "The cats sleeps.")])
            result.estimate.value, result.interval, result.predictions.to_pandas()
        """
        if reduction not in REDUCTIONS:
            hint = f"one of {', '.join(REDUCTIONS)}"
            raise UsageError(f"unknown reduction {reduction!r}", location="compare", hint=hint)
        items = _pairs_to_items(pairs)
        with self._prepare(items, method, bos) as (checkpoint, chosen):
            chunks = [
                multiple_choice.predict(checkpoint, chunk, [chosen], None, reduction)[0]
                for chunk in iter_chunks(items, [chosen])
            ]
        predictions = concat_predictions(chunks)
        summary = summarize(
            predictions,
            suite=SUITE_NAME,
            method=method or default_method(self.checkpoint, self.checkpoint.methods),
            metric="accuracy",
            macro=(),
            groups=(),
            ties=ties,
            reduction=reduction,
        )
        return PairScores(summary, ArrowTable(predictions.table))

    @contextmanager
    def _prepare(
        self, items: Sequence[Item], method: str | None, bos: str | None
    ) -> Iterator[tuple[Checkpoint, Method]]:
        """Choose the method, apply the BOS policy and run the self-test on these texts."""
        checkpoint = self.checkpoint
        chosen = resolve_method(
            method or default_method(checkpoint, checkpoint.methods), checkpoint
        )
        if bos is not None:
            checkpoint = _with_bos(checkpoint, chosen, bos)
        with evaluation_mode(checkpoint.engine.model):
            self._test_longer_texts(checkpoint, items, chosen)
            yield checkpoint, chosen

    def _test_longer_texts(
        self, checkpoint: Checkpoint, items: Sequence[Item], method: Method
    ) -> None:
        """Run the self-test if these texts are longer than all that were tested before."""
        texts = [option.text for item in items for option in item.options]
        longest = max(map(len, texts), default=0)
        if any(longest > self._tested_characters.get(name, 0) for name in method.attentions):
            checkpoint.run_self_test(texts, [method])
            self._tested_characters |= dict.fromkeys(method.attentions, longest)


def _with_bos(checkpoint: Checkpoint, method: Method, bos: str) -> Checkpoint:
    """Return the checkpoint with the special tokens of another BOS policy, for one method."""
    encoders = dict(checkpoint.encoders)
    num_embeddings = checkpoint.engine.model.get_input_embeddings().weight.shape[0]
    for attention, _ in method.parts:
        encoder = encoders[attention]
        specials = build_specials(encoder.tokenizer, attention, bos)
        check_specials(encoder.tokenizer, specials, num_embeddings)
        encoders[attention] = TextEncoder(
            encoder.tokenizer,
            specials,
            max_length=encoder.max_length,
            vocab_size=encoder.vocab_size,
        )
    return replace(checkpoint, encoders=encoders)


def _texts_to_items(texts: Sequence[str]) -> list[Item]:
    if isinstance(texts, str):
        raise UsageError("one text was given, not a list", location="texts", hint="[text]")
    return [_build_item(index, (text,)) for index, text in enumerate(texts)]


def _pairs_to_items(pairs: Sequence[tuple[str, str]]) -> list[Item]:
    for index, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise UsageError(
                "a pair is (good, bad)", location=f"pairs[{index}]", hint="two texts, good first"
            )
    return [_build_item(index, pair) for index, pair in enumerate(pairs)]


def _build_item(index: int, texts: Sequence[str]) -> Item:
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(
                f"{text!r} is not a text", location=f"item {index}", hint="give strings"
            )
    return Item(str(index), tuple(map(Option, texts)), 0)


def _read_method(
    checkpoint: Checkpoint, items: Sequence[Item], method: Method
) -> tuple[list[Encodings], list[Probes]]:
    """Encode the first option of each item, and build the probes of every part of the method.

    Returns the encodings of each part, and probes whose text_index counts the items.
    """
    texts = [item.options[0].text for item in items]
    encodings = [
        checkpoint.encode(texts, [None] * len(texts), attention) for attention, _ in method.parts
    ]
    probes = [
        probe(batch, checkpoint.mask_id)
        for part, (_, probe) in zip(encodings, method.parts, strict=True)
        for batch in part.batches
    ]
    return encodings, [part for part in probes if len(part.row)]


def _score_texts(checkpoint: Checkpoint, items: Sequence[Item], method: Method) -> Floats:
    """Log-probability (n,) of each item's first option, NaN where nothing is read."""
    encodings, probes = _read_method(checkpoint, items, method)
    scores = checkpoint.score_probes(probes, len(items)) if probes else np.zeros(len(items))
    read = np.zeros(len(items), np.bool_)
    for part in probes:
        read[part.text_index] = True
    too_long = np.any([part.too_long for part in encodings], axis=0)
    return np.where(read & ~too_long, scores, np.nan)


def _score_tokens(
    checkpoint: Checkpoint, items: Sequence[Item], method: Method, start: int
) -> Iterator[TokenRow]:
    """Yield a row of TOKEN_COLUMNS for each scored token. start: index of the first text."""
    encodings, probes = _read_method(checkpoint, items, method)
    token_ids: list[list[int]] = [[] for _ in items]
    for batch in encodings[0].batches:
        for row, index in enumerate(batch.text_index):
            token_ids[index] = batch.ids[row][batch.score_mask[row]].tolist()
    counts = np.array([len(ids) for ids in token_ids], np.int64)
    first = np.cumsum(counts) - counts  # number of each text's first token
    by_token = [_probe_tokens(part, counts, first) for part in probes]
    total = int(counts.sum())
    scores = checkpoint.score_probes(by_token, total) if by_token else np.zeros(total)
    read = np.zeros(total, np.bool_)
    for part in by_token:
        read[part.text_index] = True
    too_long = np.any([part.too_long for part in encodings], axis=0)
    for index, ids in enumerate(token_ids):
        for position, token in enumerate(ids):
            number = first[index] + position
            logprob = float(scores[number]) if read[number] and not too_long[index] else None
            yield start + index, position, token, checkpoint.decode_token(token), logprob


def _probe_tokens(probes: Probes, counts: NDArray[np.int64], first: NDArray[np.int64]) -> Probes:
    """Return probes whose text_index counts tokens instead of texts.

    counts (n,): tokens of each text. first (n,): number of each text's first token. Probes list the
    reads of a text from left to right. Where they are fewer than its tokens, the first ones are
    not read.
    """
    texts = probes.text_index
    order = np.argsort(texts, kind="stable")
    reads = np.bincount(texts, minlength=len(counts))
    rank = np.empty(len(texts), np.int64)  # which read of its text
    rank[order] = np.arange(len(texts)) - np.repeat(np.cumsum(reads) - reads, reads)
    numbers = first[texts] + (counts - reads)[texts] + rank
    return replace(probes, text_index=numbers.astype(np.int32))
