"""Items to predictions: which option does the model find most probable?

Items are worked through in fixed chunks, so that a killed run resumes at a chunk border with the
same bytes, and memory does not grow with the suite. Several methods share one reading of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    """Fixed blocks of items. Masked methods read one row per token, so their chunks are smaller."""
    size = 512 if any(m.needs_mask for m in methods) else 4096
    for start in range(0, len(items), size):
        yield items[start : start + size]


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: ProgressCallback | None = None,
    reduction: str = "sum",
) -> list[list[Prediction]]:
    """One list of Predictions per method, in item order.

    Raises DataError for an option of which no token can be scored, CheckpointError if the model
    says NaN.
    """
    texts = [option.text for item in items for option in item.options]
    spans = [option.span for item in items for option in item.options]
    encodings: dict[str, Encodings] = {}
    read: list[Probes] = []
    for number, method in enumerate(methods):
        for attention, probe in method.parts:
            if attention not in encodings:
                encodings[attention] = model.encode(texts, spans, attention)
            for encoded in encodings[attention].batches:
                p = probe(encoded, model.mask_id)
                if len(p.row):
                    read.append(
                        Probes(
                            p.ids,
                            p.attention,
                            p.row,
                            p.position,
                            p.target,
                            p.text_index + np.int32(number * len(texts)),
                        )
                    )
    total = len(methods) * len(texts)
    scores = model.score_probes(read, total, tick) if read else np.zeros(total)
    reads = sum(
        (np.bincount(p.text_index, minlength=total) for p in read), np.zeros(total, np.int64)
    )
    targets = _target_bytes(read, total)
    results = []
    for number, method in enumerate(methods):
        mine = slice(number * len(texts), (number + 1) * len(texts))
        used = [method.with_relevant_flags(encodings[attention]) for attention, _ in method.parts]
        results.append(
            build_predictions(
                items,
                scores[mine],
                reads[mine] // len(method.parts),
                targets[mine],
                used,
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
    """What was answered about the options of items, one after the other, as Predictions.

    scores (n,): summed log-probabilities of the n options. tokens (n,): how many were scored.
    targets: their ids, as bytes. used: the tokenisations that were read. Raises DataError for an
    option of which no token was scored.
    """
    too_long = np.any([e.too_long for e in encodings_used], axis=0)
    made, top = [], 0
    for item in items:
        here = range(top, top + len(item.options))
        top = here.stop
        flags = list(
            dict.fromkeys(
                name for encodings in encodings_used for name in encodings.collect_flags(here)
            )
        )
        fits = not any(too_long[i] for i in here)
        scored = [o.text if o.span is None else o.text[slice(*o.span)] for o in item.options]
        whole = [o.text for o in item.options]
        if not fits:
            flags.append("too-long")
        elif any(token_counts[i] == 0 for i in here):
            number = next(i for i in here if token_counts[i] == 0) - here.start
            raise DataError(
                f"no token of option {number + 1} can be scored",
                location=f"item {item.id}",
                hint="the tokenizer drops all of its characters"
                if "lost" in flags
                else "it is empty for this tokenizer, or its only token has no BOS before it (see --bos)",
            )
        elif len(set(scored)) > 1 and len({target_bytes[i] for i in here}) == 1:
            flags.append("blind")
        if len(set(whole)) < len(whole):
            flags.append("identical")
        values = [float(scores[i]) if fits else -1.0 for i in here]
        counts = [int(token_counts[i]) if fits else 0 for i in here]
        decides = (
            values
            if reduction == "sum" or not fits
            else [v / c for v, c in zip(values, counts, strict=True)]
        )
        made.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=int(np.argmax(decides)),
                scores=tuple(values),
                tokens=tuple(counts),
                characters=tuple(
                    len(text) if o.length is None else o.length
                    for o, text in zip(item.options, scored, strict=True)
                ),
                labels=item.labels,
                flags=tuple(flags),
            )
        )
    return made


def _target_bytes(probes: Sequence[Probes], num_texts: int) -> list[bytes]:
    """Per text, the ids that were scored, as bytes: equal bytes mean that the score never saw a
    difference.
    """
    if not probes:
        return [b""] * num_texts
    text = np.concatenate([p.text_index for p in probes])
    target = np.concatenate([p.target for p in probes])
    order = np.argsort(text, kind="stable")  # probes list a text's reads left to right
    borders = np.searchsorted(text[order], np.arange(num_texts + 1))
    flat = target[order].astype(np.int32)
    return [flat[borders[i] : borders[i + 1]].tobytes() for i in range(num_texts)]
