"""Whole documents, however long: their log-probability in windows, as the harness cuts them."""

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

Window = tuple[int, list[int], int]  # the text, ids, and where the scored part begins


@dataclass(frozen=True, slots=True)
class DocumentScores:
    """Of n texts: log-probability (nats), how many tokens, and the facts of the texts (unk, flags)."""

    scores: Floats
    tokens: Ints
    encodings: Encodings


def require_causal_method(
    method: str, location: str, hint: str = "--method causal, if the model attends that way"
) -> None:
    """MethodNotSupported unless documents can be read so: a text has no pseudo-log-likelihood
    beyond the model's length.
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
    """Read every text whole, in windows that overlap by one token (the harness's own rule).

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
    rows: list[Window] = []
    found = encoder.text_tokenizer.tokenize(texts)
    tokens = np.array([len(ids) for ids in found.ids], np.int32)
    check_ids(
        encoder.tokenizer,
        max((max(ids) for ids in found.ids if ids), default=0),
        encoder.vocab_size,
    )
    for number, ids in enumerate(found.ids):
        longest = checkpoint.max_length or len(ids) or 1
        for window in get_rolling_token_windows(ids, before[-1], longest, 1):
            context, scored = make_disjoint_window(window)
            rows.append((number, [*context, *scored], len(context)))
    probes = [causal(encoded) for encoded in _encode_windows(rows)]
    flags = {
        name: raised for name, raised in found.flags.items() if name not in ("unk", "spans-words")
    }
    facts = Encodings((), found.flags["unk"], np.zeros(len(texts), np.bool_), flags)
    return DocumentScores(
        checkpoint.score_probes(probes, len(texts), tick) if probes else np.zeros(len(texts)),
        tokens,
        facts,
    )


def _encode_windows(windows: Sequence[Window]) -> Iterator[EncodedBatch]:
    """Rows of one length each."""
    by_length: dict[int, list[Window]] = {}
    for row in windows:
        by_length.setdefault(len(row[1]), []).append(row)
    for length, mine in by_length.items():
        ids: Ints = np.array([row for _, row, _ in mine], np.int32)
        scored = np.arange(length) >= np.array([start for _, _, start in mine])[:, None]
        yield EncodedBatch(
            ids, scored, np.full_like(ids, -1), np.array([text for text, _, _ in mine], np.int32)
        )
