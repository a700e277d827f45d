"""Log-probability of whole documents of any length, in lm-eval's rolling windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.errors import CheckpointError, MethodNotSupported
from antlm_bench.scoring.methods import get_method
from antlm_bench.scoring.probes import causal
from antlm_bench.scoring.text import Specials, build_specials, check_ids, check_specials
from antlm_bench.types import EncodedBatch, Encodings, Floats, Ints

Window = tuple[int, list[int], int]  # (index of the text, ids, start of the scored part)


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """The scores of n texts."""

    scores: Floats
    """(n,): log-probability in nats."""
    tokens: Ints
    """(n,): number of tokens."""
    encodings: Encodings
    """Flags of the texts; holds no batches."""


def require_causal_method(
    method: str, location: str, hint: str = "--method causal, if the model attends that way"
) -> None:
    """Raise MethodNotSupported unless a method can score documents of any length.

    A text longer than the model's maximum has no pseudo-log-likelihood.
    """
    if not get_method(method).is_left_to_right:
        raise MethodNotSupported(
            f"perplexity of whole documents needs the method 'causal', not {method!r}",
            location=location,
            hint=hint,
        )


def score_documents(
    checkpoint: Checkpoint, texts: Sequence[str], tick: Callable[[float], None] | None = None
) -> DocumentScores:
    """Score every text in windows that overlap by one token (lm-eval's own rule).

    Every text begins after exactly one BOS or EOS; HFLM doubles it where the tokenizer adds one by
    itself.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    encoder = checkpoint.encoders["causal"]
    before = build_specials(encoder.tokenizer, "causal", "auto").before
    if not before:
        raise CheckpointError(
            "the tokenizer knows no BOS or EOS to begin a text with", location=checkpoint.name
        )
    check_specials(encoder.tokenizer, Specials(before), encoder.vocab_size)
    tokenized = encoder.text_tokenizer.tokenize(texts)
    largest_id = max((max(ids) for ids in tokenized.ids if ids), default=0)
    check_ids(encoder.tokenizer, largest_id, encoder.vocab_size)
    windows: list[Window] = []
    for index, ids in enumerate(tokenized.ids):
        max_length = checkpoint.max_length or len(ids) or 1
        for window in get_rolling_token_windows(ids, before[-1], max_length, 1):
            context, scored = make_disjoint_window(window)
            windows.append((index, [*context, *scored], len(context)))
    probes = [causal(batch) for batch in _encode_windows(windows)]
    scores = np.zeros(len(texts))
    if probes:
        scores = checkpoint.score_probes(probes, len(texts), tick)
    flags = {n: raised for n, raised in tokenized.flags.items() if n not in ("unk", "spans-words")}
    none_too_long = np.zeros(len(texts), np.bool_)
    encodings = Encodings((), tokenized.flags["unk"], none_too_long, flags)
    return DocumentScores(scores, np.array(list(map(len, tokenized.ids)), np.int32), encodings)


def _encode_windows(windows: Sequence[Window]) -> Iterator[EncodedBatch]:
    """Yield one batch per length."""
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(len(window[1]), []).append(window)
    for length, same_length in by_length.items():
        texts, rows, starts = zip(*same_length, strict=True)
        ids: Ints = np.array(rows, np.int32)
        scored = np.arange(length) >= np.array(starts)[:, None]
        yield EncodedBatch(ids, scored, np.full_like(ids, -1), np.array(texts, np.int32))
