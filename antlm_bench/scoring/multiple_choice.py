"""Multiple choice: which option of an item does the model find most probable?

Items are scored in fixed chunks, so that a killed run resumes at a chunk border with the same
bytes, and memory does not grow with the suite. Several methods share one pass over the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import DataError
from antlm_bench.predictions import FlagColumn, OptionColumns, Predictions, any_option, item_flags
from antlm_bench.scoring.methods import Method
from antlm_bench.types import (
    Encodings,
    Floats,
    Ints,
    Item,
    LanguageModel,
    Probes,
    ProgressCallback,
)


def iter_chunks(items: Sequence[Item], methods: Sequence[Method]) -> Iterator[Sequence[Item]]:
    """Yield fixed chunks of items; masked methods have one row per token, and smaller chunks."""
    size = 512 if any(method.needs_mask for method in methods) else 4096
    for start in range(0, len(items), size):
        yield items[start : start + size]


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None = None,
    reduction: str = "sum",
) -> list[Predictions]:
    """Return the predictions of every method, in item order.

    Raises DataError for an option of which no token can be scored, CheckpointError if the model
    returns NaN.
    """
    texts = [option.text for item in items for option in item.options]
    spans = [option.span for item in items for option in item.options]
    encodings: dict[str, Encodings] = {}
    probes: list[Probes] = []
    for number, method in enumerate(methods):
        for attention, make_probes in method.parts:
            if attention not in encodings:
                encodings[attention] = model.encode(texts, spans, attention)
            for encoded in encodings[attention].batches:
                p = make_probes(encoded, model.mask_id)
                if len(p.row):
                    text_index = p.text_index + np.int32(number * len(texts))
                    probes.append(replace(p, text_index=text_index))
    total = len(methods) * len(texts)
    scores = model.score_probes(probes, total, tick) if probes else np.zeros(total)
    num_reads = np.zeros(total, np.int64)
    for p in probes:
        num_reads += np.bincount(p.text_index, minlength=total)
    targets = _target_bytes(probes, total)
    results = []
    for number, method in enumerate(methods):
        part = slice(number * len(texts), (number + 1) * len(texts))
        results.append(
            build_predictions(
                items,
                scores[part],
                num_reads[part] // len(method.parts),
                targets[part],
                [method.with_relevant_flags(encodings[attention]) for attention, _ in method.parts],
                reduction,
            )
        )
    return results


def build_predictions(
    items: Sequence[Item],
    scores: Floats,
    token_counts: NDArray[np.int64],
    target_bytes: Sequence[bytes],
    encodings_used: Sequence[Encodings],
    reduction: str,
) -> Predictions:
    """Return the predictions of items from the scores of their n options, one after the other.

    scores (n,): summed log-probabilities. token_counts (n,): how many tokens were scored.
    target_bytes (n,): their ids as bytes. encodings_used: the tokenizations that were read. Raises
    DataError for an option of which no token was scored.
    """
    counts = np.array([len(item.options) for item in items], np.int32)
    options = [option for item in items for option in item.options]
    scored = [o.text if o.span is None else o.text[slice(*o.span)] for o in options]
    flags = item_flags(encodings_used, counts)
    text_fits = ~np.any([e.too_long for e in encodings_used], axis=0)
    too_long = any_option(~text_fits, counts)
    text_fits = np.repeat(~too_long, counts)  # an item without one of its options is not scored
    if len(unscored := np.flatnonzero((token_counts == 0) & text_fits)):
        _refuse_unscored(items, counts, int(unscored[0]), flags)
    bounds = list(pairwise([0, *np.cumsum(counts).tolist()]))
    looks_alike = [len(set(target_bytes[a:b])) == 1 < len(set(scored[a:b])) for a, b in bounds]
    texts = [option.text for option in options]
    flags += [
        ("too-long", too_long),
        ("blind", np.array(looks_alike, bool) & ~too_long),
        ("identical", np.array([len(set(texts[a:b])) < b - a for a, b in bounds], bool)),
    ]
    values = np.where(text_fits, scores, -1.0)
    tokens = np.where(text_fits, token_counts, 0)
    normalized = values if reduction == "sum" else values / np.maximum(tokens, 1)
    characters = [
        len(text) if option.length is None else option.length
        for option, text in zip(options, scored, strict=True)
    ]
    return Predictions.build(
        items,
        find_best_options(normalized, counts),
        OptionColumns(counts, values, tokens, np.array(characters, np.int32)),
        flags,
    )


def find_best_options(scores: Floats, option_counts: Ints) -> Ints:
    """Return the index (n,) of each item's best option, the first one of a tie.

    scores: of all options, one item after the other.
    """
    valid = np.arange(int(option_counts.max(initial=1))) < option_counts[:, None]
    padded = np.full(valid.shape, -np.inf)
    padded[valid] = scores
    return np.asarray(padded.argmax(axis=1), np.int32)


def _refuse_unscored(
    items: Sequence[Item], option_counts: Ints, text: int, flags: Sequence[FlagColumn]
) -> NoReturn:
    """Raise DataError for a text of which no token was scored. text: index of the option."""
    ends = np.cumsum(option_counts)
    index = int(np.searchsorted(ends, text, side="right"))
    option = text - int(ends[index] - option_counts[index]) + 1
    is_lost = any(raised[index] for name, raised in flags if name == "lost")
    raise DataError(
        f"no token of option {option} can be scored",
        location=f"item {items[index].id}",
        hint="the tokenizer drops all of its characters"
        if is_lost
        else "it is empty for this tokenizer, or its only token has no BOS before it (see --bos)",
    )


def _target_bytes(probes: Sequence[Probes], num_texts: int) -> list[bytes]:
    """Return the ids scored of each text, as bytes; equal bytes: no scored token differs."""
    if not probes:
        return [b""] * num_texts
    text = np.concatenate([p.text_index for p in probes])
    target = np.concatenate([p.target for p in probes])
    order = np.argsort(text, kind="stable")  # probes list a text's reads left to right
    borders = np.searchsorted(text[order], np.arange(num_texts + 1))
    flat = target[order].astype(np.int32)
    return [flat[borders[i] : borders[i + 1]].tobytes() for i in range(num_texts)]
