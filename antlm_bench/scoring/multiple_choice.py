"""Multiple choice: which option of an item does the model find most probable?

Items are scored in fixed chunks, so that a killed run resumes at a chunk border with the same
bytes, and memory does not grow with the suite. Several methods share one pass over the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.scoring.methods import Method
from antlm_bench.types import (
    Encodings,
    Floats,
    Item,
    LanguageModel,
    Prediction,
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
) -> list[list[Prediction]]:
    """Return one list of Predictions per method, in item order.

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
    token_counts: np.ndarray[tuple[int], np.dtype[np.int64]],
    target_bytes: list[bytes],
    encodings_used: Sequence[Encodings],
    reduction: str,
) -> list[Prediction]:
    """Return the Predictions of items from the scores of their n options, one after the other.

    scores (n,): summed log-probabilities. token_counts (n,): how many tokens were scored.
    target_bytes (n,): their ids as bytes. encodings_used: the tokenisations that were read. Raises
    DataError for an option of which no token was scored.
    """
    too_long = np.any([e.too_long for e in encodings_used], axis=0)
    predictions, top = [], 0
    for item in items:
        texts = range(top, top + len(item.options))
        top = texts.stop
        flags = list(dict.fromkeys(flag for e in encodings_used for flag in e.collect_flags(texts)))
        fits = not any(too_long[i] for i in texts)
        scored = [o.text if o.span is None else o.text[slice(*o.span)] for o in item.options]
        if not fits:
            flags.append("too-long")
        elif unscored := [i for i in texts if token_counts[i] == 0]:
            raise DataError(
                f"no token of option {unscored[0] - texts.start + 1} can be scored",
                location=f"item {item.id}",
                hint="the tokenizer drops all of its characters"
                if "lost" in flags
                else "it is empty for this tokenizer, or its only token has no BOS before it "
                "(see --bos)",
            )
        elif len(set(scored)) > 1 and len({target_bytes[i] for i in texts}) == 1:
            flags.append("blind")
        if len({option.text for option in item.options}) < len(item.options):
            flags.append("identical")
        values = [float(scores[i]) if fits else -1.0 for i in texts]
        counts = [int(token_counts[i]) if fits else 0 for i in texts]
        decides = values
        if fits and reduction != "sum":
            decides = [value / count for value, count in zip(values, counts, strict=True)]
        predictions.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=int(np.argmax(decides)),
                scores=tuple(values),
                tokens=tuple(counts),
                characters=tuple(
                    len(text) if option.length is None else option.length
                    for option, text in zip(item.options, scored, strict=True)
                ),
                labels=item.labels,
                flags=tuple(flags),
            )
        )
    return predictions


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
