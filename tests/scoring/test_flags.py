"""What an accuracy must be read with: the facts that scoring writes beside an item."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from prediction_rows import predict_rows

from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import EncodedBatch, Encodings, Floats, Item, Option, Probes


class Words:
    """A test double: one token per word, no specials, every token costs one nat."""

    name, attentions, mask_id, eos = "words", frozenset({"causal", "full"}), 0, "</s>"
    max_length: int | None = 4

    def __init__(self) -> None:
        self.ids: dict[str, int] = {"<mask>": 0, "<unk>": 1}

    def encode(self, texts: Sequence[str], spans: Sequence[Any], attention: str) -> Encodings:
        del attention
        assert not any(spans)
        rows = [
            [1 if w == "?" else self.ids.setdefault(w, len(self.ids)) for w in text.split()]
            for text in texts
        ]
        fits = [n for n, row in enumerate(rows) if len(row) <= 4]
        lengths = []
        for length in sorted({len(rows[n]) for n in fits}):
            here = [n for n in fits if len(rows[n]) == length]
            block = np.array([rows[n] for n in here], np.int32)
            words = np.broadcast_to(np.arange(length, dtype=np.int32), block.shape)
            lengths.append(
                EncodedBatch(block, np.ones(block.shape, np.bool_), words, np.array(here, np.int32))
            )
        unk = np.array([1 in row for row in rows])
        return Encodings(tuple(lengths), unk, np.array([len(row) > 4 for row in rows]))

    def score_probes(self, probes: Iterable[Probes], num_texts: int, tick: Any = None) -> Floats:
        del tick
        scores = np.zeros(num_texts)
        for p in probes:
            np.subtract.at(scores, p.text_index, 1.0)
        return scores


def flags(method: str, *options: str) -> tuple[str, ...]:
    item = Item("i", tuple(map(Option, options)), 0)
    [[prediction]] = predict_rows(Words(), [item], [METHODS[method]])
    return prediction.flags


def test_a_difference_that_is_never_scored_is_called_blind() -> None:
    assert flags("causal", "a x y", "b x y") == (
        "blind",
    )  # nothing stands before the first word to predict it from
    assert flags("mlm", "a x y", "b x y") == ()
    assert flags("causal", "a x y", "a x z") == ()


def test_equal_options_are_identical_and_not_blind() -> None:
    assert flags("causal", "a x", "a x") == ("identical",)


def test_unknown_words_are_flagged() -> None:
    assert flags("mlm", "a ? y", "a x y") == ("unk",)


def test_an_item_that_does_not_fit_is_not_scored() -> None:
    item = Item("i", (Option("a b c d e"), Option("a b")), 0)
    [[prediction]] = predict_rows(Words(), [item], [METHODS["mlm"]])
    assert prediction.flags == ("too-long",) and prediction.tokens == (0, 0)
