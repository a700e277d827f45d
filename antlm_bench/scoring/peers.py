"""Score texts with minicons and lm-eval, for tests, benchmarks, `verify` and --engine minicons."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from antlm_bench.errors import CheckpointError, MethodNotSupported, first_line
from antlm_bench.scoring.methods import get_method, peer_methods
from antlm_bench.scoring.text import (
    EosRule,
    Specials,
    detect_template,
    resolve_eos_rule,
    scored_positions_with_eos,
)
from antlm_bench.scoring.tokens import TextTokenizer, Tokenized
from antlm_bench.types import Encodings, Floats, Span

MINICONS, LM_EVAL = "minicons", "lm-eval"  # keys of Method.peer_names
MAX_BATCH_TOKENS = 2048  # tokens per forward of a peer

ModelKind = Literal["causal", "masked", "encoder-decoder"]
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
    """Make a minicons IncrementalLMScorer or MaskedLMScorer.

    model: an opened model, or the path of a folder, which minicons opens with `options` as
    arguments of `from_pretrained`.
    """
    from minicons import scorer

    scorer_class = scorer.IncrementalLMScorer if kind == "causal" else scorer.MaskedLMScorer
    if tokenizer is not None and tokenizer.pad_token is None and tokenizer.eos_token is None:
        # Without a padding token, minicons adds one, and with it a logit to the softmax. Padding is
        # masked, so any token will do.
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    minicons_scorer = scorer_class(model, device, tokenizer=tokenizer, **options)
    tokenizer_class = type(minicons_scorer.tokenizer)
    if not hasattr(tokenizer_class, "batch_encode_plus"):
        # minicons 0.3.39 calls it; transformers 5 removed it in favour of calling the tokenizer.
        tokenizer_class.batch_encode_plus = tokenizer_class.__call__
    return minicons_scorer


def score_with_minicons(
    scorer: Any, texts: list[str], batch_size: int, **options: Any
) -> list[float]:
    """Return the summed log-probability of each text (minicons' default is the mean).

    options: arguments of `sequence_score`. A masked scorer needs PLL_metric="original" or
    "within_word_l2r", because minicons 0.3.39 ignores the constructor's.
    """
    scores: list[float] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        scores += scorer.sequence_score(batch, reduction=lambda x: x.sum(0).item(), **options)
    return scores


def score_with_lm_eval(
    model: Any, tokenizer: Any, texts: list[str], batch_size: int
) -> list[float]:
    """Return the summed log-probability of each text by lm-eval's HFLM, with an empty context (as
    its BLiMP tasks have).
    """
    from lm_eval.models.huggingface import HFLM

    lm = LmEvalScorer(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size))
    return list(map(float, lm.score_tokens(lm.tokenize(texts, [None] * len(texts)))))


@contextmanager
def suppress_output() -> Iterator[None]:
    """Suppress the output, log messages and warnings of peers while they load a model."""
    from antlm_bench.checkpoints.pretrained import silence_transformers  # imports torch

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
    """Scores of n texts by a peer."""

    logp: Floats
    """(n,) summed log-probabilities in nats; 0 for texts that are too long."""
    token_counts: np.ndarray[tuple[int], np.dtype[np.int64]]
    """(n,) number of scored tokens."""
    target_bytes: list[bytes]
    """Per text, the int32 ids of the scored tokens as bytes."""
    encodings: Encodings
    """Flags of the texts, without batches."""


@dataclass(frozen=True, slots=True)
class MiniconsScorer:
    """A minicons scorer whose token scores are summed by the span rule of scoring.text.

    Two options of minicons are not used. `conditional_score` tokenizes the context separately,
    miscounts if a token crosses the border or BOS is also the padding token, and returns the mean
    by default. `bos_token=True` writes a BOS into the text even if the tokenizer adds one. If the
    tokenizer's template differs from `specials`, these are written into the text, after a check
    that this does not change the other tokens.
    """

    scorer: Any
    """The IncrementalLMScorer or MaskedLMScorer of minicons."""
    kind: ModelKind
    specials: Specials
    max_length: int | None
    """Longest row in tokens, special tokens included; None = unbounded."""
    eos: EosRule | None = None
    """Texts whose EOS is scored, too (see scoring.text.resolve_eos_rule); None = no text."""

    def score_spans(
        self,
        texts: Sequence[str],
        spans: Sequence[Span],
        method: str,
        tick: Callable[[float], None] | None = None,
    ) -> PeerScores:
        """Return the summed log-probability of each text's span.

        Raises MethodNotSupported, and CheckpointError if minicons fails, returns NaN, or tokenizes
        a text differently.
        """
        tokenized = self._tokenize(texts, method)
        rows, text_slice = self._build_rows(texts, tokenized.ids)
        positions = [
            self._scored_positions(row, span, text_slice)
            for row, span in zip(rows, spans, strict=True)
        ]
        if self.eos is not None:
            after, num_skipped = resolve_eos_rule(self.scorer.tokenizer, self.eos)
            positions = [
                scored_positions_with_eos(scored, len(row.ids), len(after), num_skipped, span, text)
                for scored, row, span, text in zip(positions, rows, spans, texts, strict=True)
            ]
        too_long = np.array(
            [self.max_length is not None and len(row.ids) > self.max_length for row in rows],
            np.bool_,
        )
        logp = np.zeros(len(texts))
        scorable = [n for n in range(len(texts)) if positions[n] and not too_long[n]]
        for batch in _length_batches(scorable, rows, is_masked=self.kind == "masked"):
            logprobs = self._token_logprobs([rows[n].text for n in batch], method)
            for n, row_logprobs in zip(batch, logprobs, strict=True):
                logp[n] = self._sum_scored(row_logprobs, rows[n].ids, positions[n])
            if tick is not None:
                tick(len(batch) / len(scorable))
        target_bytes = [
            np.array([row.ids[position] for position in scored], np.int32).tobytes()
            for row, scored in zip(rows, positions, strict=True)
        ]
        token_counts = np.array([len(scored) for scored in positions], np.int64)
        flags = {name: mask for name, mask in tokenized.flags.items() if name != "unk"}
        encodings = Encodings(
            batches=(), unk=tokenized.flags["unk"], too_long=too_long, flags=flags
        )
        return PeerScores(logp, token_counts, target_bytes, encodings)

    def _tokenize(self, texts: Sequence[str], method_name: str) -> Tokenized:
        """Tokenize texts without specials.

        Raises MethodNotSupported for methods and tokenizers that minicons does not support, and the
        errors of TextTokenizer.tokenize.
        """
        method = get_method(method_name)
        if MINICONS not in method.peer_names or method.needs_mask != (self.kind == "masked"):
            raise MethodNotSupported(
                f"minicons cannot score a {self.kind} model with {method_name!r}",
                location="--method",
                hint=f"methods of minicons: {', '.join(peer_methods(MINICONS))}; "
                "--engine native has the others",
            )
        if self.eos == "context":
            raise MethodNotSupported(
                "lm-eval replaces the start of the continuation by EOS, which minicons cannot do",
                location="--compat",
                hint="use --engine native, or --bos tokenizer",
            )
        tokenizer = TextTokenizer(self.scorer.tokenizer)
        if method.needs_words and not tokenizer.has_word_ids:
            raise MethodNotSupported(
                "minicons needs to know which word a token belongs to, and this tokenizer does not "
                "say",
                location="--method",
                hint="use --engine native, or --method mlm",
            )
        return tokenizer.tokenize(texts)

    def scores(self, texts: Sequence[str], spans: Sequence[Span], method: str) -> Floats:
        return self.score_spans(texts, spans, method).logp

    @property
    def spells_specials(self) -> bool:
        """Whether the specials are written into the text, because the tokenizer adds others."""
        template = detect_template(self.scorer.tokenizer)
        # Specials after a causal text do not matter: no scored token attends to them.
        return template.before != self.specials.before or (
            self.kind == "masked" and template.after != self.specials.after
        )

    def _build_rows(
        self, texts: Sequence[str], ids_without_specials: Sequence[list[int]]
    ) -> tuple[list[_MiniconsRow], slice]:
        """Return the rows that minicons reads, and the slice of a row without specials."""
        tokenizer, specials, spells = self.scorer.tokenizer, self.specials, self.spells_specials
        prefix = suffix = ""
        after = detect_template(tokenizer).after
        if spells:
            prefix = "".join(tokenizer.convert_ids_to_tokens(specials.before))
            suffix = "".join(tokenizer.convert_ids_to_tokens(specials.after))
            after = specials.after
        row_texts = [prefix + text + suffix for text in texts]
        options = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
        encoded = tokenizer(row_texts, add_special_tokens=not spells, verbose=False, **options)
        offsets = encoded["offset_mapping"] if tokenizer.is_fast else None
        rows = []
        for n, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            if ids != [*specials.before, *ids_without_specials[n], *after]:
                raise CheckpointError(
                    f"this tokenizer reads {text!r} differently between special tokens, which "
                    "minicons needs as part of the text",
                    hint="use --bos tokenizer, or the native engine",
                )
            shifted = None
            if offsets is not None:
                shifted = [(start - len(prefix), end - len(prefix)) for start, end in offsets[n]]
            rows.append(_MiniconsRow(row_texts[n], ids, shifted))
        return rows, slice(len(specials.before), -len(after) or None)

    def _scored_positions(self, row: _MiniconsRow, span: Span, text_slice: slice) -> list[int]:
        """Return the scored positions of a row, by the span rule of scoring.text. The first token
        of a causal row is not scored, because nothing precedes it.
        """
        positions = list(range(len(row.ids))[text_slice])
        if span is not None:
            if row.offsets is None:
                raise CheckpointError(
                    "this slow tokenizer gives no character offsets, so that the context of a text "
                    "cannot be left unscored",
                    hint="save the checkpoint with a fast tokenizer (tokenizer.json)",
                )
            positions = [
                position
                for position in positions
                if row.offsets[position][1] > span[0] and row.offsets[position][0] < span[1]
            ]
        return [position for position in positions if position > 0 or self.kind == "masked"]

    def _token_logprobs(self, texts: list[str], method: str) -> list[list[float]]:
        """Return minicons' log-probabilities of the tokens of texts whose rows have one length."""
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
        """Sum the log-probabilities at `positions`.

        logprobs: what minicons returns for the row: causal: all tokens but the first; masked: all
        tokens but CLS, SEP and PAD.
        """
        returned = list(range(1, len(ids)))
        if self.kind == "masked":
            omitted = (self.scorer.pad_token_id, self.scorer.cls_token_id, self.scorer.sep_token_id)
            returned = [position for position, token in enumerate(ids) if token not in omitted]
        if len(logprobs) != len(returned) or not set(positions) <= set(returned):
            raise CheckpointError(
                "minicons does not score every token, because a text contains a special token",
                hint="use --engine native",
            )
        logprob_by_position = dict(zip(returned, logprobs, strict=True))
        total = float(sum(logprob_by_position[position] for position in positions))
        if np.isnan(total):
            raise CheckpointError("minicons returns NaN", hint="the weights are damaged")
        return total


@dataclass(frozen=True, slots=True)
class _MiniconsRow:
    """A text as minicons reads it."""

    text: str
    """The text; with specials if they are written into it (`spells_specials`)."""
    ids: list[int]
    """Token ids, special tokens included."""
    offsets: list[tuple[int, int]] | None
    """(start, end) of each token in the text without specials; None with a slow tokenizer."""


def _length_batches(
    indices: Sequence[int], rows: Sequence[_MiniconsRow], is_masked: bool
) -> Iterator[list[int]]:
    """Yield the indices of rows of one length, up to MAX_BATCH_TOKENS tokens.

    is_masked: the model reads a copy of a row per token of the row.
    """
    indices_by_length: dict[int, list[int]] = {}
    for n in indices:
        indices_by_length.setdefault(len(rows[n].ids), []).append(n)
    for length, same_length in sorted(indices_by_length.items()):
        size = max(1, MAX_BATCH_TOKENS // (length * length if is_masked else length))
        yield from (same_length[top : top + size] for top in range(0, len(same_length), size))


class TokenRequest(NamedTuple):
    """A text as the token ids that a peer reads."""

    context: list[int]
    """Tokens that are read only, special tokens included."""
    option: list[int]
    """Tokens that are scored."""


@dataclass(frozen=True, slots=True)
class LmEvalScorer:
    """A scorer around lm-eval's HFLM.

    HFLM puts its prefix token (BOS, else EOS) before a text without context, but not before a
    context. There, this scorer writes the token into the context, and lm-eval's tokenizer then adds
    no specials (0.4.13, tok_encode).
    """

    lm: Any
    """The HFLM."""

    @property
    def reads_sources(self) -> bool:
        """Whether the model is an encoder-decoder, which reads a context as its source."""
        return bool(self.lm.config.is_encoder_decoder)

    def tokenize(self, texts: Sequence[str], spans: Sequence[Span]) -> list[TokenRequest]:
        """Return what lm-eval itself reads and scores of each text.

        lm-eval 0.4.13 (`_encode_pair`) moves spaces at the end of a context to the option, and
        starts the option after as many tokens as the context alone has. No token may be left for
        it.
        """
        from lm_eval.api.instance import Instance

        bos = str(self.lm.tokenizer.convert_ids_to_tokens(self.lm.prefix_token_id))
        instances = []
        for text, span in zip(texts, spans, strict=True):
            start, end = span or (0, len(text))
            context = bos + text[:start] if start and not self.reads_sources else text[:start]
            pair = (context, text[start:end])
            instances.append(Instance("loglikelihood", {}, pair, 0))
        # A copy whose last step returns the requests as they are.
        recorder = copy.copy(self.lm)
        recorder._loglikelihood_tokens = lambda requests, **_: requests
        requests = recorder.loglikelihood(instances, disable_tqdm=True)
        return [TokenRequest(context, option) for _, context, option in requests]

    def score_tokens(self, requests: Sequence[TokenRequest]) -> Floats:
        """Return log P(option | context) of each request (n,), in nats.

        Raises CheckpointError if lm-eval fails, as on an option without tokens.
        """
        triples = [(("", ""), context, option) for context, option in requests]
        try:
            results = self.lm._loglikelihood_tokens(triples, disable_tqdm=True)
        except PEER_ERRORS as error:
            raise CheckpointError(
                f"lm-eval fails on this model: {type(error).__name__}: {first_line(error)}"
            ) from error
        return np.array([logprob for logprob, *_ in results], float)

    def decode(self, token_ids: list[int]) -> str:
        return str(self.lm.tokenizer.decode(token_ids))


def open_lm_eval(folder: Path, trusted: bool, source_args: Mapping[str, str]) -> LmEvalScorer:
    """Let lm-eval open a folder in fp32 on the CPU. Raises CheckpointError.

    trusted: the checkpoint's Python code may run. source_args: lm-eval's arguments `peft` and
    `tokenizer` (folders).
    """
    with suppress_output():
        try:
            from lm_eval.models import huggingface

            # lm-eval's bars, even disabled ones, leave a thread.
            huggingface.tqdm.monitor_interval = 0
            options: dict[str, Any] = {"trust_remote_code": True} if trusted else {}
            options |= {"device": "cpu", "batch_size": 8, "dtype": "float32", **source_args}
            return LmEvalScorer(huggingface.HFLM(pretrained=str(folder), **options))
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
    """Let minicons open a folder in fp32 on the CPU. Raises CheckpointError.

    tokenizer: one that replaces the folder's, or one that runs the checkpoint's Python code (to
    load it, minicons 0.3.39 would ask for permission on the terminal); None = the folder's.
    trusted: the checkpoint's Python code may run.
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
