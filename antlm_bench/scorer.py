"""Score texts in Python with the scores of the command line, without a run folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antlm_bench.arguments import check_value
from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import TIE_RULES, summarize
from antlm_bench.notebook import ArrowTable, to_html_table
from antlm_bench.packages import require_packages
from antlm_bench.predictions import concat_predictions
from antlm_bench.printable import format_count
from antlm_bench.runs.table_files import build_arrow_table
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import Method, default_method, resolve_method
from antlm_bench.scoring.multiple_choice import iter_chunks
from antlm_bench.scoring.next_tokens import (
    check_word_sets,
    predict_next_tokens,
    word_set_logprobs,
)
from antlm_bench.scoring.text import BOS_POLICIES
from antlm_bench.scoring.token_scores import TokenSettings, score_tokens
from antlm_bench.suites.stimuli import join_prefix
from antlm_bench.text_arguments import (
    check_option_names,
    check_pairs,
    check_string,
    check_texts,
)
from antlm_bench.types import Estimate, Floats, Item, Option, Summary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Unpack

    from antlm_bench.checkpoints import Checkpoint
    from antlm_bench.keywords import OpenKeywords

SUITE_NAME = "pairs"
IN_MEMORY_OPTIONS = ("bos", "max_length", "batch_tokens")
REDUCTIONS = ("sum", "per-token")
TokenRow = tuple[int, int, int, str, float | None]
TOKEN_TYPES = ("int32", "int32", "int32", "string", "float64")
"""Arrow types of the columns of a TokenRow."""
TOKEN_COLUMNS = ("text_index", "token_index", "token_id", "token", "logprob")
NEXT_TOKEN_COLUMNS = ("text_index", "rank", "token_id", "token", "logprob")


@dataclass(frozen=True, slots=True)
class PairScores:
    """The accuracy of one model on minimal pairs."""

    summary: Summary
    """The estimate with its metric, flags and notes."""
    predictions: ArrowTable
    """One row per pair, in order: id, gold (0, the good text), pred, scores (log-probability of
    good and bad text, nats), tokens, characters, flags. See `Run.predictions`."""

    @property
    def estimate(self) -> Estimate:
        """The fraction of pairs whose good text is more probable, with its 95% interval."""
        return self.summary.headline

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval (low, high) of that fraction."""
        return self.estimate.interval

    def __repr__(self) -> str:
        value, (low, high) = self.estimate.value, self.interval
        pairs = format_count(len(self.predictions), "pair")
        return (
            f"<PairScores: {value:.4f} [{low:.4f}, {high:.4f}] of {pairs}, {self.summary.method}>"
        )

    def _repr_html_(self) -> str:
        estimate = self.estimate
        row = (self.summary.method, estimate.value, estimate.low, estimate.high, estimate.n)
        columns = ("method", "accuracy", "low", "high", "n")
        return to_html_table(columns, [row], notes=self.summary.notes)


class Scorer:
    """Log-probabilities of texts under a model, given as a checkpoint or as objects in memory.

        scorer = Scorer("gpt2")
        scorer.logprobs(["The cats sleep.", "The cats sleeps."])   # array of 2, in nats
        scorer.token_logprobs(["The cats sleep."]).to_pandas()     # one row per token
        scorer.compare([("The cats sleep.", "The cats sleeps.")]).estimate.value

    The scores equal those of `antlm-bench score` and `antlm-bench surprisal`: engine,
    tokenization, special tokens and self-test are the same. `scorer.methods` lists the methods
    that the checkpoint supports; `scorer.logprobs(texts, method="mlm")` chooses one.
    """

    @require_packages()
    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        **options: Unpack[OpenKeywords],
    ) -> None:
        """Open a checkpoint, or use a model in memory.

        model: path or hub id, or a transformers model with a language-model head. tokenizer: for a
        model in memory, its tokenizer; for a path, the path of a tokenizer that replaces the
        checkpoint's (None keeps it). options: revision, device, dtype, bos, max_length, ...; a
        model in memory takes bos, max_length and batch_tokens.

        A model in memory keeps its device, dtype, weights and training mode, and may be trained
        further between two calls. Dropout is off during scoring.

        Raises CheckpointError (the checkpoint cannot be opened, the self-test fails), UsageError.
        """
        check_option_names(OpenOptions, options)
        if isinstance(model, str | Path):
            if tokenizer is not None and not isinstance(tokenizer, str | Path):
                raise UsageError(
                    "the model is a path, but the tokenizer is an object in memory",
                    location="tokenizer",
                    hint="give the tokenizer's path or hub id",
                )
            path = None if tokenizer is None else str(tokenizer)
            self.checkpoint: Checkpoint = open_checkpoint(
                str(model), OpenOptions(tokenizer=path, **options)
            )
            """The opened checkpoint. Its `metadata` holds what `antlm-bench doctor` shows."""
        else:
            from antlm_bench.checkpoints import check_model, open_model  # import torch

            check_model(model)
            unsupported = sorted(options.keys() - IN_MEMORY_OPTIONS)
            if unsupported:
                raise UsageError(
                    f"{unsupported[0]} is an option of a checkpoint in a folder",
                    location="Scorer",
                    hint=f"options of a model in memory: {', '.join(IN_MEMORY_OPTIONS)}",
                )
            if tokenizer is None or isinstance(tokenizer, str | Path):
                raise UsageError(
                    "a model in memory needs its tokenizer as an object in memory",
                    location="tokenizer",
                    hint="Scorer(model, tokenizer)",
                )
            self.checkpoint = open_model(model, tokenizer, OpenOptions(**options))
        self._bos = options.get("bos", OpenOptions().bos)
        self._tested_characters: dict[str, int] = {}
        """Attention -> length in characters of the longest text that passed the self-test."""

    def __repr__(self) -> str:
        return f"Scorer({self.name!r}, methods={self.methods!r}, bos={self._bos!r})"

    @property
    def name(self) -> str:
        """Name of the checkpoint; for a model in memory, the name of its source or its class."""
        return self.checkpoint.name

    @property
    def methods(self) -> list[str]:
        """Scoring methods that the model supports. The first is the default."""
        return self.checkpoint.methods

    def logprobs(
        self,
        texts: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        join: str = " ",
        method: str | None = None,
        bos: str | None = None,
    ) -> Floats:
        """Return the log-probability of each text: float64 (n,), in nats.

        It is the sum over the text's tokens; for masked methods, the pseudo-log-likelihood. Special
        tokens are not scored. NaN for a text that is too long for the model, or has no token that
        can be scored.

        prefixes: a text before each text, which the model reads and which is not scored; join: what
        stands between the two, unless the prefix is empty or ends in white space. method: one of
        `methods`, by default the first. bos: BOS policy (auto, always, never or
        tokenizer), by default the one with which the scorer was opened.
        See docs/reference/conventions.md.

        Raises UsageError for an unknown method or policy, MethodNotSupported for a method that the
        model does not support, CheckpointError if the model returns NaN.

            scorer.logprobs(["The cats sleep.", "The cats sleeps."])
            scorer.logprobs(["sleep.", "sleeps."], prefixes=["The cats"] * 2)
        """
        items = _texts_to_items(texts, prefixes, join)
        with self._prepare(items, method, bos) as (checkpoint, resolved):
            logprobs = [
                _score_texts(checkpoint, chunk, resolved)
                for chunk in iter_chunks(items, [resolved])
            ]
        return np.concatenate([np.zeros(0), *logprobs])

    def token_logprobs(
        self,
        texts: Sequence[str],
        *,
        prefixes: Sequence[str] | None = None,
        join: str = " ",
        method: str | None = None,
        bos: str | None = None,
    ) -> ArrowTable:
        """Return the log-probability of each token, in nats, as a table with one row per token.

        Columns: text_index (index into `texts`), token_index (within the text, from 0), token_id,
        token (decoded), logprob. Special tokens have no row. logprob is null for a token that
        cannot be scored (the first of a causal text without BOS; all of a text that is too long).

        Arguments and errors are those of `logprobs`, which is the sum of a text's rows.

            scorer.token_logprobs(["The cats sleep."]).to_pandas()
        """
        items = _texts_to_items(texts, prefixes, join)
        rows: list[TokenRow] = []
        with self._prepare(items, method, bos) as (checkpoint, resolved):
            settings = TokenSettings(resolved, splits_long_texts=False)
            options = [item.options[0] for item in items]
            starts = [o.span[0] if o.span else 0 for o in options] if prefixes is not None else None
            scores_by_text, _ = score_tokens(
                checkpoint, [option.text for option in options], starts, settings
            )
            for index, scores in enumerate(scores_by_text):
                start = starts[index] if starts else 0
                first = int((scores.ends <= start).sum()) if start else 0
                tokens = zip(scores.ids[first:], scores.logprobs[first:].tolist(), strict=True)
                for position, (token, logprob) in enumerate(tokens):
                    value = None if math.isnan(logprob) else logprob
                    rows.append((index, position, token, checkpoint.decode_token(token), value))
        return _build_token_table(rows, TOKEN_COLUMNS)

    def compare(
        self,
        pairs: Any,
        *,
        columns: Mapping[str, str] | None = None,
        method: str | None = None,
        bos: str | None = None,
        ties: str = "half",
        reduction: str = "sum",
    ) -> PairScores:
        """Return how often the first text of a pair is more probable than the second.

        pairs: n pairs (good, bad), or a data frame with these columns. columns: for a frame, our
        column -> its column, as {"good": "grammatical"}. ties: credit for a tie: half, strict (0),
        first (1) or random. reduction: "sum" compares log-probabilities, "per-token" compares their
        means over tokens.

        A text that is too long for the model makes its pair wrong, and is counted in
        `estimate.flags`. Raises the errors of `logprobs`, and DataError if there are no pairs or if
        no token of a text can be scored.

            result = scorer.compare([("The cats sleep.", "The cats sleeps.")])
            result.estimate.value, result.interval, result.predictions.to_pandas()
        """
        check_string(reduction, "reduction", f"one of {', '.join(REDUCTIONS)}")
        if reduction not in REDUCTIONS:
            hint = f"one of {', '.join(REDUCTIONS)}"
            raise UsageError(f"unknown reduction {reduction!r}", location="reduction", hint=hint)
        check_string(ties, "ties", f"one of {', '.join(TIE_RULES)}")
        items = _pairs_to_items(pairs, columns)
        with self._prepare(items, method, bos) as (checkpoint, resolved):
            chunks = [
                multiple_choice.predict(checkpoint, chunk, [resolved], None, reduction)[0]
                for chunk in iter_chunks(items, [resolved])
            ]
        predictions = concat_predictions(chunks)
        summary = summarize(
            predictions,
            suite=SUITE_NAME,
            method=resolved.name,
            metric="accuracy",
            macro=(),
            groups=(),
            ties=ties,
            reduction=reduction,
        )
        return PairScores(summary, ArrowTable(predictions.table))

    def next_tokens(
        self,
        prefixes: Sequence[str],
        k: int = 10,
        *,
        method: str | None = None,
        bos: str | None = None,
    ) -> ArrowTable:
        """Return the k most probable tokens after each prefix, as a table with k rows per prefix.

        Columns: text_index (index into `prefixes`), rank (from 1), token_id, token (decoded),
        logprob (nats). A masked method reads one mask after the prefix. A prefix should not end in
        a space if tokens carry the space before a word.

        Arguments and errors are those of `logprobs`. Raises DataError for a prefix that does not
        fit into the model.

            scorer.next_tokens(["The cats"], 5).to_pandas()
        """
        items = _texts_to_items(prefixes)
        texts = [item.options[0].text for item in items]
        check_value("Scorer.next_tokens", "k", k, int)
        rows: list[TokenRow] = []
        with self._prepare(items, method, bos) as (checkpoint, resolved):
            top = predict_next_tokens(checkpoint, texts, resolved, k)
            for index, (ids, logprobs) in enumerate(zip(top.ids, top.logprobs, strict=True)):
                pairs = zip(ids.tolist(), logprobs.tolist(), strict=True)
                for rank, (token, logprob) in enumerate(pairs, start=1):
                    rows.append((index, rank, token, checkpoint.decode_token(token), logprob))
        return _build_token_table(rows, NEXT_TOKEN_COLUMNS)

    def compare_words(
        self,
        templates: Sequence[str],
        words: Sequence[str],
        other_words: Sequence[str],
        *,
        blank: str = "___",
        method: str | None = None,
        bos: str | None = None,
    ) -> ArrowTable:
        """Return how probable two sets of words are in the blank of each template, in nats.

        Columns: template_index, logprob (log of the sum over `words` of their probabilities),
        other_logprob (the same of `other_words`), difference. Causal methods read the text before
        the blank, masked methods all of it; see scoring.next_tokens.word_set_logprobs for words of
        several tokens. A value is null if a word cannot be scored.

        Arguments and errors are those of `logprobs`. Raises UsageError for a template without one
        blank, an empty set and a word that a set has twice.

            scorer.compare_words(["The cats ___ here."], ["sleep", "run"], ["sleeps", "runs"])
        """
        template_list = check_texts(templates, "templates")
        sets = (check_texts(words, "words"), check_texts(other_words, "other_words"))
        check_string(blank, "blank", 'give the blank, as "___"')
        check_word_sets(template_list, sets, blank)
        with self._prepare(_texts_to_items(template_list), method, bos) as (checkpoint, resolved):
            logprob, other_logprob = (
                word_set_logprobs(checkpoint, template_list, word_set, blank, resolved)
                for word_set in sets
            )
        columns: dict[str, list[object]] = {
            "template_index": [*range(len(template_list))],
            "logprob": _nan_to_none(logprob),
            "other_logprob": _nan_to_none(other_logprob),
            "difference": _nan_to_none(logprob - other_logprob),
        }
        types = dict.fromkeys(columns, "float64") | {"template_index": "int32"}
        return ArrowTable(build_arrow_table(columns, types))

    @contextmanager
    def _prepare(
        self, items: Sequence[Item], method: str | None, bos: str | None
    ) -> Iterator[tuple[Checkpoint, Method]]:
        """Resolve the method, apply the BOS policy and run the self-test on these texts."""
        from antlm_bench.checkpoints import evaluation_mode  # imports torch

        checkpoint = self.checkpoint
        if method is not None:
            check_string(method, "method", f"one of {', '.join(self.methods)}")
        if bos is not None:
            check_string(bos, "bos", f"one of {', '.join(BOS_POLICIES)}")
        resolved = resolve_method(
            method or default_method(checkpoint, checkpoint.methods), checkpoint
        )
        with evaluation_mode(checkpoint.engine.model):
            if bos is not None:
                checkpoint = _with_bos_policy(checkpoint, resolved, bos)
            texts = [option.text for item in items for option in item.options]
            self.test_longer_texts(checkpoint, texts, resolved)
            yield checkpoint, resolved

    def test_longer_texts(
        self, checkpoint: Checkpoint, texts: Sequence[str], method: Method
    ) -> None:
        """Run the self-test if a text is longer than all texts that were tested before."""
        longest = max(map(len, texts), default=0)
        if any(longest > self._tested_characters.get(name, 0) for name in method.attentions):
            checkpoint.run_self_test(texts, [method])
            self._tested_characters |= dict.fromkeys(method.attentions, longest)


def _with_bos_policy(checkpoint: Checkpoint, method: Method, bos: str) -> Checkpoint:
    """Return a copy of the checkpoint with another BOS policy for the attentions of a method."""
    encoders = dict(checkpoint.encoders)
    for attention, _ in method.parts:
        encoders[attention] = encoders[attention].with_bos_policy(attention, bos)
    return replace(checkpoint, encoders=encoders)


def _texts_to_items(
    texts: Sequence[str], prefixes: Sequence[str] | None = None, join: str = " "
) -> list[Item]:
    """Return an item per text, with the prefix before it and the span of the text."""
    checked = check_texts(texts)
    if prefixes is None:
        return [_build_item(index, (text,)) for index, text in enumerate(checked)]
    check_string(join, "join", 'give what stands between prefix and text, as " " or ""')
    befores = [join_prefix(prefix, join) for prefix in check_texts(prefixes, "prefixes")]
    if len(befores) != len(checked):
        message = f"{len(befores)} prefixes for {len(checked)} texts"
        raise UsageError(message, location="prefixes", hint="give one per text")
    # White space after a prefix belongs to the first word of the text.
    spans = [(len(b.rstrip()), len(b + t)) for b, t in zip(befores, checked, strict=True)]
    return [
        Item(str(index), (Option(before + text, span if before else None),), 0)
        for index, (before, text, span) in enumerate(zip(befores, checked, spans, strict=True))
    ]


def _build_token_table(rows: Sequence[TokenRow], names: Sequence[str]) -> ArrowTable:
    types = dict(zip(names, TOKEN_TYPES, strict=True))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return ArrowTable(build_arrow_table(columns, types))


def _nan_to_none(values: Floats) -> list[object]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _pairs_to_items(pairs: Any, columns: Mapping[str, str] | None) -> list[Item]:
    checked = check_pairs(pairs, columns=columns)
    items = [_build_item(index, pair) for index, pair in enumerate(checked)]
    if not items:
        raise DataError("0 pairs", location="pairs", hint="give [(good, bad)]")
    return items


def _build_item(index: int, texts: Sequence[str]) -> Item:
    return Item(str(index), tuple(map(Option, texts)), 0)


def _score_texts(checkpoint: Checkpoint, items: Sequence[Item], method: Method) -> Floats:
    """Return the log-probability (n,) of each item's first option, NaN if it cannot be scored."""
    options, n = [item.options[0] for item in items], len(items)
    has_read, too_long = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    probes = []
    for attention, build_probes in method.parts:
        encodings = multiple_choice.encode_options(checkpoint, options, attention)
        too_long |= encodings.too_long
        for batch in encodings.batches:
            batch_probes = build_probes(batch, checkpoint.mask_id)
            if len(batch_probes.row):
                has_read[batch_probes.text_index] = True
                probes.append(batch_probes)
    scores = checkpoint.score_probes(probes, n) if probes else np.zeros(n)
    return np.where(has_read & ~too_long, scores, np.nan)
