"""Multiple choice: which option of an item does the model find most probable?

Items are scored in fixed chunks. Therefore memory does not grow with the suite, and a killed run
resumes at a chunk border and writes the same bytes as a run that was not interrupted. All methods
are scored in one pass over the items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import DataError
from antlm_bench.predictions import (
    UNSCORED_VALUE,
    FlagColumn,
    OptionColumns,
    Predictions,
    any_option,
    item_flags,
)
from antlm_bench.scoring.methods import Method
from antlm_bench.types import (
    Attention,
    Encodings,
    Floats,
    Ints,
    Item,
    LanguageModel,
    Option,
    Probes,
    ProgressCallback,
)


def iter_chunks(items: Sequence[Item], methods: Sequence[Method]) -> Iterator[Sequence[Item]]:
    """Yield fixed chunks of items, smaller ones for masked methods, which run a row per token."""
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

    reduction: "sum" or "per-token", how options are compared. Raises DataError for an option of
    which no token can be scored, CheckpointError if the model returns NaN.
    """
    options = [option for item in items for option in item.options]
    encodings: dict[str, Encodings] = {}
    probes: list[Probes] = []
    # Method m writes its n scores to the indices m * n to (m + 1) * n.
    num_texts, total = len(options), len(methods) * len(options)
    for method_index, method in enumerate(methods):
        for attention, make_probes in method.parts:
            if attention not in encodings:
                encodings[attention] = encode_options(model, options, attention)
            for encoded in encodings[attention].batches:
                p = make_probes(encoded, model.mask_id)
                if len(p.target):
                    score_index = p.text_index + np.int32(method_index * num_texts)
                    probes.append(replace(p, text_index=score_index))
    scores = model.score_probes(probes, total, tick) if probes else np.zeros(total)
    num_logprobs = np.zeros(total, np.int64)
    for p in probes:
        num_logprobs += np.bincount(p.text_index, minlength=total)
    targets = _target_bytes(probes, total)
    results = []
    for method_index, method in enumerate(methods):
        own_scores = slice(method_index * num_texts, (method_index + 1) * num_texts)
        results.append(
            build_predictions(
                items,
                scores[own_scores],
                num_logprobs[own_scores] // len(method.parts),  # each part scores every token once
                targets[own_scores],
                [method.with_relevant_flags(encodings[attention]) for attention, _ in method.parts],
                reduction,
            )
        )
    return results


def encode_options(
    model: LanguageModel, options: Sequence[Option], attention: Attention
) -> Encodings:
    """Encode the texts of options.

    Under "cross", the context of an option (what precedes its scored span) is the source, and the
    rest is the decoder's text, without white space between them.
    """
    if attention != "cross":
        texts, spans = [option.text for option in options], [option.span for option in options]
        return model.encode(texts, spans, attention)
    sources, texts, spans = [], [], []
    for option in options:
        start, end = option.span or (0, len(option.text))
        text = option.text[start:].lstrip() if start else option.text
        num_cut = len(option.text) - len(text)
        sources.append(option.text[:start].rstrip())
        texts.append(text)
        spans.append((0, max(0, end - num_cut)))
    return model.encode(texts, spans, attention, sources)


def build_predictions(
    items: Sequence[Item],
    scores: Floats,
    token_counts: NDArray[np.int64],
    target_bytes: Sequence[bytes],
    encodings_used: Sequence[Encodings],
    reduction: str,
) -> Predictions:
    """Return the predictions of items from the scores of all their options.

    n is the total number of options: those of the first item, then those of the second, ... scores
    (n,): summed log-probabilities. token_counts (n,): how many tokens were scored. target_bytes
    (n,): ids of the scored tokens, as bytes. encodings_used: one per part of the method. reduction:
    "sum" or "per-token". Raises DataError for an option of which no token was scored.
    """
    counts = np.array([len(item.options) for item in items], np.int32)
    options = [option for item in items for option in item.options]
    scored_texts = [o.text if o.span is None else o.text[slice(*o.span)] for o in options]
    flags = item_flags(encodings_used, counts)
    too_long = any_option(np.any([e.too_long for e in encodings_used], axis=0), counts)
    is_scored = np.repeat(~too_long, counts)  # if one option is too long, no option is scored
    unscored_indices = np.flatnonzero((token_counts == 0) & is_scored)
    if len(unscored_indices):
        _refuse_unscored(items, counts, int(unscored_indices[0]), flags)
    bounds = list(pairwise([0, *np.cumsum(counts).tolist()]))
    # "blind": the options differ, but have the same scored tokens.
    is_blind = [
        len(set(target_bytes[start:end])) == 1 and len(set(scored_texts[start:end])) > 1
        for start, end in bounds
    ]
    texts = [option.text for option in options]
    is_identical = [len(set(texts[start:end])) < end - start for start, end in bounds]
    flags += [
        ("too-long", too_long),
        ("blind", np.array(is_blind, bool) & ~too_long),
        ("identical", np.array(is_identical, bool)),
    ]
    values = np.where(is_scored, scores, UNSCORED_VALUE)
    tokens = np.where(is_scored, token_counts, 0)
    compared_values = values / np.maximum(tokens, 1) if reduction == "per-token" else values
    characters = [
        len(text) if option.length is None else option.length
        for option, text in zip(options, scored_texts, strict=True)
    ]
    return Predictions.build(
        items,
        find_best_options(compared_values, counts),
        OptionColumns(counts, values, tokens, np.array(characters, np.int32)),
        flags,
    )


def find_best_options(scores: Floats, option_counts: Ints) -> Ints:
    """Return the index (n,) of each item's best option, the first one of a tie.

    scores: of all options, in the order of the items.
    """
    valid = np.arange(int(option_counts.max(initial=1))) < option_counts[:, None]
    padded = np.full(valid.shape, -np.inf)
    padded[valid] = scores
    return np.asarray(padded.argmax(axis=1), np.int32)


def _refuse_unscored(
    items: Sequence[Item], option_counts: Ints, option_index: int, flags: Sequence[FlagColumn]
) -> NoReturn:
    """Raise DataError for an option of which no token was scored.

    option_index: index of the option among those of all items.
    """
    ends = np.cumsum(option_counts)
    item_index = int(np.searchsorted(ends, option_index, side="right"))
    first_option = int(ends[item_index] - option_counts[item_index])
    is_lost = any(has_flag[item_index] for name, has_flag in flags if name == "lost")
    raise DataError(
        f"no token of option {option_index - first_option + 1} can be scored",
        location=f"item {items[item_index].id}",
        hint="the tokenizer drops every character of the option"
        if is_lost
        else "it is empty for this tokenizer, or its only token has no BOS before it (see --bos)",
    )


def _target_bytes(probes: Sequence[Probes], num_texts: int) -> list[bytes]:
    """Return the ids of each text's scored tokens as bytes. Texts with equal bytes have the same
    scored tokens.
    """
    if not probes:
        return [b""] * num_texts
    text_indices = np.concatenate([p.text_index for p in probes])
    targets = np.concatenate([p.target for p in probes])
    # Within a text the targets are in token order, and a stable sort keeps that order.
    order = np.argsort(text_indices, kind="stable")
    borders = np.searchsorted(text_indices[order], np.arange(num_texts + 1))
    sorted_targets = targets[order].astype(np.int32)
    return [sorted_targets[borders[i] : borders[i + 1]].tobytes() for i in range(num_texts)]
