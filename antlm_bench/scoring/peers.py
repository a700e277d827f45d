"""The scorers of minicons and lm-eval: oracles of tests, benchmarks and `verify`, and on request an
engine.

minicons 0.3.39 calls `tokenizer.batch_encode_plus`, which transformers 5 removed.
`make_minicons_scorer` restores that name as an alias of calling the tokenizer.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from antlm_bench.checkpoints.pretrained import silence_transformers
from antlm_bench.checkpoints.resolve import first_line
from antlm_bench.errors import CheckpointError, MethodNotSupported
from antlm_bench.scoring.methods import get_method, peer_methods
from antlm_bench.scoring.text import (
    EosRule,
    Specials,
    detect_template,
    resolve_eos_rule,
    scored_positions_with_eos,
)
from antlm_bench.scoring.tokens import TextTokenizer, Tokenized
from antlm_bench.types import Encodings, Floats

MINICONS, LM_EVAL = "minicons", "lm-eval"  # keys of Method.peer_names
MAX_BATCH_TOKENS = 2048  # tokens per forward of a peer

Span = tuple[int, int] | None
ModelKind = Literal["causal", "masked"]
PEER_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    OSError,
    NotImplementedError,
)


def make_minicons_scorer(
    kind: ModelKind, model: Any, tokenizer: Any = None, device: str = "cpu", **options: Any
) -> Any:
    """Make a minicons IncrementalLMScorer or MaskedLMScorer around an opened model and tokenizer,
    or one that opens the folder `model` itself; `options` then go to `from_pretrained`.
    """
    from minicons import scorer

    scorer_class = scorer.IncrementalLMScorer if kind == "causal" else scorer.MaskedLMScorer
    if tokenizer is not None and tokenizer.pad_token is None and tokenizer.eos_token is None:
        # Else minicons would add a <pad> and with it a row to the softmax. Which token it is, the
        # mask makes no matter.
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    wrapped = scorer_class(model, device, tokenizer=tokenizer, **options)
    if not hasattr(type(wrapped.tokenizer), "batch_encode_plus"):
        type(wrapped.tokenizer).batch_encode_plus = lambda self, *args, **kwargs: self(
            *args, **kwargs
        )
    return wrapped


def score_with_minicons(
    scorer: Any, texts: list[str], batch_size: int, **options: Any
) -> list[float]:
    """Return the summed log-probability of each text (minicons' own default is the mean).

    For masked scorers pass PLL_metric="original" or "within_word_l2r" here: the constructor's is
    ignored (0.3.39).
    """
    scores: list[float] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        scores += scorer.sequence_score(batch, reduction=lambda x: x.sum(0).item(), **options)
    return scores


def score_with_lm_eval(
    model: Any, tokenizer: Any, texts: list[str], batch_size: int
) -> list[float]:
    """Return the summed log-probability of each text as lm-eval's HFLM gives it for an empty
    context (BLiMP's form).
    """
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    return _lm_eval_loglikelihoods(harness, [("", text) for text in texts])


def _lm_eval_loglikelihoods(lm: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return log P(continuation | context) of each pair by an lm-eval model."""
    from lm_eval.api.instance import Instance

    answers = lm.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True
    )
    if len(answers) != len(pairs):
        raise CheckpointError(f"lm-eval answered {len(answers)} of {len(pairs)} texts")
    return [float(answer[0]) for answer in answers]


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress what peers print, log and warn of while they load. What matters of it is checked
    where they score.
    """
    before, sink = logging.root.manager.disable, io.StringIO()
    with (
        silence_transformers(),
        warnings.catch_warnings(),
        redirect_stdout(sink),
        redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@dataclass(frozen=True, slots=True)
class PeerScores:
    """The scores of n texts by a peer."""

    logp: Floats
    """(n,) sums in nats."""
    token_counts: np.ndarray[tuple[int], np.dtype[np.int64]]
    """(n,) tokens that the sums are over."""
    target_bytes: list[bytes]
    """Their ids as bytes."""
    facts: Encodings
    """The facts of the texts; those that are too long were not scored."""


@dataclass(frozen=True, slots=True)
class MiniconsScorer:
    """A minicons scorer whose token scores are summed here, by the span rule of scoring.text.

    Its conditional_score is not used: it tokenises the context apart, miscounts where a token
    straddles the border or where BOS is also PAD, and takes the mean by default. Its bos_token=True
    is not used either: it spells a BOS in front of a tokenizer that also adds one. Where the
    tokenizer's own template differs from `specials`, these are spelled into the text, and it is
    checked that the text is still tokenised alike.
    """

    scorer: Any
    kind: ModelKind
    specials: Specials
    max_length: int | None
    eos: EosRule | None = None  # texts of which the specials after them are scored, too

    def score_spans(
        self,
        texts: Sequence[str],
        spans: Sequence[Span],
        method: str,
        tick: Callable[[float], None] | None = None,
    ) -> PeerScores:
        """Return the summed log-probability of each text's span.

        Raises MethodNotSupported, and CheckpointError where minicons fails, returns NaN, or
        tokenises a text differently.
        """
        record, is_masked = get_method(method), self.kind == "masked"
        if MINICONS not in record.peer_names or record.needs_mask != is_masked:
            raise MethodNotSupported(
                f"minicons cannot score a {self.kind} model with {method!r}",
                location="--method",
                hint=f"methods that it knows: {', '.join(peer_methods(MINICONS))}; "
                "--engine native knows the others",
            )
        tokenized = self._tokenize(texts, method)
        rows, inner = self._build_rows(texts, tokenized.ids)
        positions = [
            self._scored_positions(row, span, inner) for row, span in zip(rows, spans, strict=True)
        ]
        if self.eos == "context":
            raise MethodNotSupported(
                "lm-eval puts EOS after the context, over the start of the continuation: no row of "
                "minicons",
                location="--compat",
                hint="use --engine native, or --bos tokenizer",
            )
        if self.eos is not None:
            after, skipped = resolve_eos_rule(self.scorer.tokenizer, self.eos)
            positions = [
                scored_positions_with_eos(scored, len(row.ids), len(after), skipped, span, text)
                for scored, row, span, text in zip(positions, rows, spans, texts, strict=True)
            ]
        too_long = np.array(
            [self.max_length is not None and len(row.ids) > self.max_length for row in rows],
            np.bool_,
        )
        logp = np.zeros(len(texts))
        todo = [n for n in range(len(texts)) if positions[n] and not too_long[n]]
        for batch in _length_batches(todo, rows, square=self.kind == "masked"):
            scores = self._token_logprobs([rows[n].text for n in batch], method)
            for n, answer in zip(batch, scores, strict=True):
                logp[n] = self._sum_scored(answer, rows[n].ids, positions[n])
            if tick is not None:
                tick(len(batch) / len(todo))
        ids = [
            np.array([row.ids[position] for position in scored], np.int32)
            for row, scored in zip(rows, positions, strict=True)
        ]
        tokens = np.array([len(scored) for scored in positions], np.int64)
        flags = {name: raised for name, raised in tokenized.flags.items() if name != "unk"}
        encodings = Encodings((), tokenized.flags["unk"], too_long, flags)
        return PeerScores(logp, tokens, [scored.tobytes() for scored in ids], encodings)

    def _tokenize(self, texts: Sequence[str], method: str) -> Tokenized:
        """Tokenise as minicons does. Raises as TextTokenizer.tokenize, and MethodNotSupported where
        minicons would find no words.
        """
        tokenizer = TextTokenizer(self.scorer.tokenizer)
        if get_method(method).needs_words and not tokenizer.has_word_ids:
            raise MethodNotSupported(
                "minicons asks the tokenizer which word a token belongs to, and this one does not "
                "say",
                location="--method",
                hint="use --engine native, or --method mlm",
            )
        return tokenizer.tokenize(texts)

    def scores(self, texts: Sequence[str], spans: Sequence[Span], method: str) -> Floats:
        return self.score_spans(texts, spans, method).logp

    @property
    def spells_specials(self) -> bool:
        """Whether the specials must be spelled into the text, because the tokenizer adds others."""
        template = detect_template(self.scorer.tokenizer)
        # A causal row may end in whatever the template puts there: nothing that is scored sees it.
        return template.before != self.specials.before or (
            self.kind == "masked" and template.after != self.specials.after
        )

    def _build_rows(
        self, texts: Sequence[str], ids_without_specials: Sequence[list[int]]
    ) -> tuple[list[_MiniconsRow], slice]:
        """Return the texts as minicons will read them, and the slice of a row that holds the text
        itself.
        """
        tokenizer, specials, spells = self.scorer.tokenizer, self.specials, self.spells_specials
        head, tail = (
            "".join(tokenizer.convert_ids_to_tokens(ids)) if spells else ""
            for ids in (specials.before, specials.after)
        )
        after = specials.after if spells else detect_template(tokenizer).after
        inner = slice(len(specials.before), -len(after) or None)
        fast = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
        spelled_texts = [head + text + tail for text in texts]
        encoded = tokenizer(spelled_texts, add_special_tokens=not spells, verbose=False, **fast)
        for text, row, bare_ids in zip(
            texts, encoded["input_ids"], ids_without_specials, strict=True
        ):
            expected = [*specials.before, *bare_ids, *after]
            if row != expected:
                raise CheckpointError(
                    f"this tokenizer reads {text!r} differently between special tokens, which "
                    "minicons needs spelled",
                    hint="use --bos tokenizer, or the native engine",
                )
        offsets = encoded["offset_mapping"] if fast else [None] * len(spelled_texts)
        shift = len(head)
        return [
            _MiniconsRow(
                text,
                ids,
                None
                if row_offsets is None
                else [(start - shift, end - shift) for start, end in row_offsets],
            )
            for text, ids, row_offsets in zip(
                spelled_texts, encoded["input_ids"], offsets, strict=True
            )
        ], inner

    def _scored_positions(self, row: _MiniconsRow, span: Span, text_slice: slice) -> list[int]:
        """Return the positions of a row that count. A causal model never scores the first: nothing
        precedes it.
        """
        positions = list(range(len(row.ids))[text_slice])
        if span is not None:
            if row.offsets is None:
                raise CheckpointError(
                    "this slow tokenizer does not say where its tokens stand, so that a context "
                    "cannot be left out",
                    hint="save the checkpoint with a fast tokenizer (tokenizer.json)",
                )
            positions = [
                at
                for at in positions
                if row.offsets[at][1] > span[0] and row.offsets[at][0] < span[1]
            ]
        return [at for at in positions if at or self.kind == "masked"]

    def _token_logprobs(self, texts: list[str], method: str) -> list[list[float]]:
        """Return the log-probabilities of the tokens that minicons scores; all texts have one
        length.
        """
        metric = get_method(method).peer_names[MINICONS]
        options = {"PLL_metric": metric} if metric else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                encoded = self.scorer.tokenizer(
                    texts,
                    add_special_tokens=not self.spells_specials,
                    return_tensors="pt",
                    return_token_type_ids=False,
                    return_attention_mask=True,
                    verbose=False,
                )
                logprobs = self.scorer.sequence_score(
                    encoded, reduction=lambda scores: scores.tolist(), **options
                )
            except PEER_ERRORS as error:
                raise CheckpointError(
                    f"minicons fails on this model: {type(error).__name__}: {first_line(error)}",
                    hint="use --engine native, if it can be opened there",
                ) from error
        return list(logprobs)

    def _sum_scored(self, logprobs: list[float], ids: list[int], positions: list[int]) -> float:
        """Sum the scores at `positions` out of those that minicons returns for a row (causal: all
        but the first token; masked: all but CLS, SEP and PAD).
        """
        scored = list(range(1, len(ids)))
        if self.kind == "masked":
            left = (self.scorer.pad_token_id, self.scorer.cls_token_id, self.scorer.sep_token_id)
            scored = [position for position, token in enumerate(ids) if token not in left]
        if len(logprobs) != len(scored) or not set(positions) <= set(scored):
            raise CheckpointError(
                "minicons leaves out tokens that count: a text spells a special token",
                hint="use --engine native",
            )
        total = float(
            sum(dict(zip(scored, logprobs, strict=True))[position] for position in positions)
        )
        if np.isnan(total):
            raise CheckpointError("minicons answers NaN", hint="the weights are damaged")
        return total


@dataclass(frozen=True, slots=True)
class _MiniconsRow:
    """A text with the specials spelled around it."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]] | None


def _length_batches(
    indices: Sequence[int], rows: Sequence[_MiniconsRow], square: bool
) -> Iterator[list[int]]:
    """Yield batches of rows of one length within MAX_BATCH_TOKENS. square: a row is read once per
    token.
    """
    by_length: dict[int, list[int]] = {}
    for n in indices:
        by_length.setdefault(len(rows[n].ids), []).append(n)
    for length, members in sorted(by_length.items()):
        size = max(1, MAX_BATCH_TOKENS // (length * length if square else length))
        yield from (members[top : top + size] for top in range(0, len(members), size))


@dataclass(frozen=True, slots=True)
class LmEvalScorer:
    """A scorer around lm-eval's HFLM.

    HFLM puts its prefix token (BOS, else EOS) before a text without a context, but not before a
    context. There the same token is spelled in front, which also keeps the tokenizer from adding
    its own specials (0.4.13, tok_encode).
    """

    lm: Any
    max_length: int | None = None

    def scores(self, texts: Sequence[str], spans: Sequence[Span], method: str) -> Floats:
        """Return log P(span | what precedes it) of each text; lm-eval itself splits a text into
        context and continuation.
        """
        del method  # it knows one
        bos = str(self.lm.tokenizer.convert_ids_to_tokens(self.lm.prefix_token_id))
        pairs = []
        for text, span in zip(texts, spans, strict=True):
            start, end = span or (0, len(text))
            pairs.append((bos + text[:start] if start else "", text[start:end]))
        try:
            return np.array(_lm_eval_loglikelihoods(self.lm, pairs))
        except PEER_ERRORS as error:
            raise CheckpointError(
                f"lm-eval fails on this model: {type(error).__name__}: {first_line(error)}"
            ) from error


def open_lm_eval(folder: Path, trusted: bool, source_args: Mapping[str, str]) -> LmEvalScorer:
    """Open lm-eval, which loads the folder itself in fp32 on the CPU, as its users do. Raises
    CheckpointError.

    source_args: its arguments `peft` and `tokenizer`, folders. trusted: the checkpoint's own Python
    may run.
    """
    with suppress_output():
        try:
            from lm_eval.models.huggingface import HFLM

            options = {"trust_remote_code": True} if trusted else {}
            return LmEvalScorer(
                HFLM(
                    pretrained=str(folder),
                    device="cpu",
                    batch_size=8,
                    dtype="float32",
                    **source_args,
                    **options,
                )
            )
        except PEER_ERRORS as error:
            raise _open_error("lm-eval", folder, error) from error


def open_minicons(
    folder: Path,
    kind: ModelKind,
    specials: Specials,
    max_length: int | None,
    tokenizer: Any,
    trusted: bool,
) -> MiniconsScorer:
    """Open minicons, which loads the folder itself in fp32 on the CPU, as its users do. Raises
    CheckpointError.

    tokenizer: another one than the folder's, or one that runs the checkpoint's own Python, for
    which minicons would wait for an answer on the terminal (0.3.39).
    """
    with suppress_output():
        try:
            options: dict[str, Any] = {"trust_remote_code": True} if trusted else {}
            scorer = make_minicons_scorer(
                kind, str(folder), copy.deepcopy(tokenizer), dtype="float32", **options
            )
            return MiniconsScorer(scorer, kind, specials, max_length)
        except PEER_ERRORS as error:
            raise _open_error("minicons", folder, error) from error


def _open_error(peer: str, folder: Path, error: BaseException) -> CheckpointError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return CheckpointError(f"{peer} cannot open this checkpoint: {reason}", location=str(folder))


def peer_version(name: str) -> str:
    """Return name and version: `minicons 0.3.39`."""
    return f"{name} {version(name.replace('-', '_'))}"
