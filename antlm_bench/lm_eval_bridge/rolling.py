"""Whole documents, however long: their log-probability in windows, as the harness cuts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.errors import CheckpointError, MethodNotSupported
from antlm_bench.scoring.probes import causal
from antlm_bench.scoring.text import Specials, check_ids, check_specials, specials
from antlm_bench.types import Encoded, Encodings, Floats, Ints

Row = tuple[int, list[int], int]  # the text, ids, and where the scored part begins


@dataclass(frozen=True, slots=True)
class Rolled:
    """Of n texts: log-probability (nats), how many tokens, and the facts of the texts (unk, flags)."""

    scores: Floats
    tokens: Ints
    facts: Encodings


def refuse(method: str, place: str, hint: str = "--method causal, if the model attends that way") -> None:
    """MethodNotSupported unless documents can be read so: a text has no pseudo-log-likelihood beyond the model's
    length."""
    if method != "causal":
        raise MethodNotSupported(
            f"perplexity of whole documents needs the method 'causal', not {method!r}", place=place, hint=hint
        )


def roll(checkpoint: Checkpoint, texts: Sequence[str], tick: Callable[[float], None] | None = None) -> Rolled:
    """Read every text whole, in windows that overlap by one token (the harness's own rule).

    Every text begins after exactly one BOS or EOS; HFLM doubles it where the tokenizer adds one by itself.
    """
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    encoder = checkpoint.encoders["causal"]
    before = specials(encoder.tokenizer, "causal", "auto").before
    if not before:
        raise CheckpointError("the tokenizer knows no BOS or EOS to begin a text with", place=checkpoint.name)
    check_specials(encoder.tokenizer, Specials(before), encoder.vocabulary)
    rows: list[Row] = []
    found = encoder.text_tokenizer.tokenize(texts)
    tokens = np.array([len(ids) for ids in found.ids], np.int32)
    check_ids(encoder.tokenizer, max((max(ids) for ids in found.ids if ids), default=0), encoder.vocabulary)
    for number, ids in enumerate(found.ids):
        longest = checkpoint.max_length or len(ids) or 1
        for window in get_rolling_token_windows(ids, before[-1], longest, 1):
            context, scored = make_disjoint_window(window)
            rows.append((number, [*context, *scored], len(context)))
    probes = [causal(encoded) for encoded in _encoded(rows)]
    flags = {name: raised for name, raised in found.flags.items() if name not in ("unk", "spans-words")}
    facts = Encodings((), found.flags["unk"], np.zeros(len(texts), np.bool_), flags)
    return Rolled(checkpoint.read(probes, len(texts), tick) if probes else np.zeros(len(texts)), tokens, facts)


def _encoded(rows: Sequence[Row]) -> Iterator[Encoded]:
    """Rows of one length each."""
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(len(row[1]), []).append(row)
    for length, mine in by_length.items():
        ids: Ints = np.array([row for _, row, _ in mine], np.int32)
        scored = np.arange(length) >= np.array([start for _, _, start in mine])[:, None]
        yield Encoded(ids, scored, np.full_like(ids, -1), np.array([text for text, _, _ in mine], np.int32))
