"""Log-probabilities of whole documents of any length, computed in lm-eval's rolling windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from antlm_bench.errors import CheckpointError, MethodNotSupported
from antlm_bench.scoring.methods import get_method
from antlm_bench.scoring.probes import causal as make_causal_probes
from antlm_bench.scoring.text import Specials, build_specials, check_ids, check_specials
from antlm_bench.types import EncodedBatch, Encodings, Floats, Ints, ProgressCallback

if TYPE_CHECKING:
    from antlm_bench.checkpoints import Checkpoint


class Window(NamedTuple):
    """A part of a text, no longer than the model's maximum length."""

    text_index: int
    ids: list[int]
    first_scored: int
    """Index of the first scored token; the tokens before it are context."""


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """The scores of n texts."""

    scores: Floats
    """(n,): log-probability in nats."""
    tokens: Ints
    """(n,): number of tokens, without the BOS before the text."""
    encodings: Encodings
    """Flags of the texts. `batches` is empty: the windows are not kept."""


def require_causal_method(
    method: str, location: str, hint: str = "--method causal, if the model has causal attention"
) -> None:
    """Raise MethodNotSupported unless a method can score documents of any length.

    A masked method cannot: it has no score for a text that is longer than the model's maximum.
    """
    if not get_method(method).is_left_to_right:
        raise MethodNotSupported(
            f"perplexity of whole documents needs the method 'causal', not {method!r}",
            location=location,
            hint=hint,
        )


def score_documents(
    checkpoint: Checkpoint, texts: Sequence[str], tick: ProgressCallback | None = None
) -> DocumentScores:
    """Score every text in lm-eval's windows: each token is scored in one window, and has at least
    the token before it as context.

    Exactly one BOS (or EOS) precedes every text. lm-eval's HFLM puts two there if the tokenizer
    adds one itself. tick: see ProgressCallback.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    encoder = checkpoint.encoders["causal"]
    prefix_ids = build_specials(encoder.tokenizer, "causal", "auto").before
    if not prefix_ids:
        raise CheckpointError(
            "a document needs a BOS or EOS token before it, and the tokenizer has neither",
            location=checkpoint.name,
            hint="use --tokenizer to give a tokenizer that has one",
        )
    check_specials(encoder.tokenizer, Specials(prefix_ids), encoder.vocab_size)
    tokenized = encoder.text_tokenizer.tokenize(texts)
    largest_id = max((max(ids) for ids in tokenized.ids if ids), default=0)
    check_ids(encoder.tokenizer, largest_id, encoder.vocab_size)
    windows: list[Window] = []
    for index, ids in enumerate(tokenized.ids):
        # A model without a maximum length reads each text in one window.
        max_length = checkpoint.max_length or max(len(ids), 1)
        for window in get_rolling_token_windows(ids, prefix_ids[-1], max_length, 1):
            context, scored = make_disjoint_window(window)
            windows.append(Window(index, [*context, *scored], len(context)))
    probes = [make_causal_probes(batch) for batch in _encode_windows(windows)]
    scores = np.zeros(len(texts))
    if probes:
        scores = checkpoint.score_probes(probes, len(texts), tick)
    # "unk" is a field of its own in Encodings. "spans-words" matters only for masked methods.
    flags = {
        name: has_flag
        for name, has_flag in tokenized.flags.items()
        if name not in ("unk", "spans-words")
    }
    none_too_long = np.zeros(len(texts), np.bool_)
    encodings = Encodings(
        batches=(), unk=tokenized.flags["unk"], too_long=none_too_long, flags=flags
    )
    return DocumentScores(scores, np.array(list(map(len, tokenized.ids)), np.int32), encodings)


def _encode_windows(windows: Sequence[Window]) -> Iterator[EncodedBatch]:
    """Yield one batch per window length."""
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(len(window.ids), []).append(window)
    for length, same_length in by_length.items():
        ids: Ints = np.array([window.ids for window in same_length], np.int32)
        first_scored = np.array([window.first_scored for window in same_length])
        score_mask = np.arange(length) >= first_scored[:, None]
        text_index = np.array([window.text_index for window in same_length], np.int32)
        no_words = np.full_like(ids, -1)  # causal scores need no words
        yield EncodedBatch(ids, score_mask, word_ids=no_words, text_index=text_index)
