"""Items to predictions: which option does the model find most probable?

Items are worked through in fixed chunks, so that a killed run resumes at a chunk border with the same bytes, and
memory does not grow with the suite. Several methods share one reading of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.scoring.probes import Method
from antlm_bench.types import Encodings, Floats, Item, LanguageModel, ModelFacts, Option, Prediction, Probes

Tick = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Policy:
    """What peers do differently from us when they turn scores into choices; a named bundle is in COMPATS.

    bos: see scoring.text. ties: see metrics. reduction: sum | per-token, which score decides; "" = what the suite
    declares. context: text put before every masked sentence ("eos" = the string of the tokenizer's EOS, as BabyLM 2024
    did). delimiter: text put before a sentence that has no context, and scored with it (lm-eval's target_delimiter).
    """

    bos: str = "auto"
    ties: str = "half"
    reduction: str = ""
    context: str = ""
    delimiter: str = ""

    def of(self, method: Method) -> Policy:
        """What it says of one method: a context, and the mean that goes with it, are the masked backend's alone, and
        leave no sentence without a context."""
        if not self.context:
            return self
        return replace(self, delimiter="") if method.masks else replace(self, reduction="sum", context="")

    def on(self, declared: str, verbatim: bool = False) -> Policy:
        """What it says of a suite that declares a reduction: that one, unless the peer has one rule for all suites. A
        suite of requests to the letter (`verbatim`) has its delimiters already."""
        return replace(self, reduction=self.reduction or declared, delimiter="" if verbatim else self.delimiter)


# Sources: reference table in docs/conventions.md, each line read in the peer's code.
COMPATS: dict[str, Policy] = {
    "lm-eval": Policy(bos="auto", ties="first", reduction="sum", delimiter=" "),
    "minicons": Policy(bos="tokenizer", reduction="per-token"),
    "babylm-2024": Policy(bos="auto", ties="first", reduction="per-token", context="eos", delimiter=" "),
    "babylm-2025": Policy(bos="tokenizer", ties="first", reduction="sum"),
    "babylm-2026": Policy(bos="tokenizer", ties="random"),  # the mean in Global PIQA, the sum elsewhere: the suites'
}


def chunks(items: Sequence[Item], methods: Sequence[Method]) -> Iterator[Sequence[Item]]:
    """Fixed blocks of items. Masked methods read one row per token, so their chunks are smaller."""
    size = 512 if any(m.masks for m in methods) else 4096
    for start in range(0, len(items), size):
        yield items[start : start + size]


def as_asked(items: Sequence[Item], policy: Policy, model: ModelFacts) -> Sequence[Item]:
    """The items with a peer's fixed text before their options: a context, which does not count, or a delimiter, which
    does (where it becomes a token of its own, or part of the first), but not among the characters of an option.

    lm-eval asks for `target_delimiter + choice` after an empty context, too (0.4.13, `ConfigurableTask.
    construct_requests`; its BLiMP leaves the delimiter at " "), so that tokenizers which put no space before a text
    score " Who ..." there, and "Who ..." at other peers'. Behind a context the space is a suite's own.
    """
    if not policy.context and not policy.delimiter:
        return items
    text = f"{model.eos} "

    def moved(option: Option) -> Option:
        if policy.context:
            start, end = option.span or (0, len(option.text))
            return replace(option, text=text + option.text, span=(start + len(text), end + len(text)))
        if option.span is not None:
            return option
        return replace(option, text=policy.delimiter + option.text, length=option.length or len(option.text))

    return [replace(item, options=tuple(map(moved, item.options))) for item in items]


def predict(
    model: LanguageModel,
    items: Sequence[Item],
    methods: Sequence[Method],
    tick: Tick | None = None,
    reduction: str = "sum",
) -> list[list[Prediction]]:
    """One list of Predictions per method, in item order.

    Raises DataError for an option of which no token can be scored, CheckpointError if the model says NaN.
    """
    texts = [option.text for item in items for option in item.options]
    spans = [option.span for item in items for option in item.options]
    encodings: dict[str, Encodings] = {}
    read: list[Probes] = []
    for number, method in enumerate(methods):
        for attention, probe in method.parts:
            if attention not in encodings:
                encodings[attention] = model.encode(texts, spans, attention)
            for encoded in encodings[attention].lengths:
                p = probe(encoded, model.mask_id)
                if len(p.row):
                    read.append(
                        Probes(p.ids, p.attention, p.row, p.at, p.target, p.text + np.int32(number * len(texts)))
                    )
    total = len(methods) * len(texts)
    scores = model.read(read, total, tick) if read else np.zeros(total)
    reads = sum((np.bincount(p.text, minlength=total) for p in read), np.zeros(total, np.int64))
    targets = _targets(read, total)
    results = []
    for number, method in enumerate(methods):
        mine = slice(number * len(texts), (number + 1) * len(texts))
        used = [method.relevant(encodings[attention]) for attention, _ in method.parts]
        results.append(
            predictions(items, scores[mine], reads[mine] // len(method.parts), targets[mine], used, reduction)
        )
    return results


def predictions(
    items: Sequence[Item],
    scores: Floats,
    tokens: np.ndarray[tuple[int], np.dtype[np.int64]],
    targets: list[bytes],
    used: Sequence[Encodings],
    reduction: str,
) -> list[Prediction]:
    """What was answered about the options of items, one after the other, as Predictions.

    scores (n,): summed log-probabilities of the n options. tokens (n,): how many were scored. targets: their ids, as
    bytes. used: the tokenisations that were read. Raises DataError for an option of which no token was scored.
    """
    too_long = np.any([e.too_long for e in used], axis=0)
    made, top = [], 0
    for item in items:
        here = range(top, top + len(item.options))
        top = here.stop
        flags = list(dict.fromkeys(name for encodings in used for name in encodings.raised(here)))
        fits = not any(too_long[i] for i in here)
        scored = [o.text if o.span is None else o.text[slice(*o.span)] for o in item.options]
        whole = [o.text for o in item.options]
        if not fits:
            flags.append("too-long")
        elif any(tokens[i] == 0 for i in here):
            number = next(i for i in here if tokens[i] == 0) - here.start
            raise DataError(
                f"no token of option {number + 1} can be scored",
                place=f"item {item.id}",
                hint="the tokenizer drops all of its characters"
                if "lost" in flags
                else "it is empty for this tokenizer, or its only token has no BOS before it (see --bos)",
            )
        elif len(set(scored)) > 1 and len({targets[i] for i in here}) == 1:
            flags.append("blind")
        if len(set(whole)) < len(whole):
            flags.append("identical")
        values = [float(scores[i]) if fits else -1.0 for i in here]
        counts = [int(tokens[i]) if fits else 0 for i in here]
        decides = values if reduction == "sum" or not fits else [v / c for v, c in zip(values, counts, strict=True)]
        made.append(
            Prediction(
                id=item.id,
                gold=item.gold,
                pred=int(np.argmax(decides)),
                scores=tuple(values),
                tokens=tuple(counts),
                characters=tuple(
                    len(text) if o.length is None else o.length for o, text in zip(item.options, scored, strict=True)
                ),
                labels=item.labels,
                flags=tuple(flags),
            )
        )
    return made


def _targets(read: Sequence[Probes], total: int) -> list[bytes]:
    """Per text, the ids that were scored, as bytes: equal bytes mean that the score never saw a difference."""
    if not read:
        return [b""] * total
    text = np.concatenate([p.text for p in read])
    target = np.concatenate([p.target for p in read])
    order = np.argsort(text, kind="stable")  # probes list a text's reads left to right
    borders = np.searchsorted(text[order], np.arange(total + 1))
    flat = target[order].astype(np.int32)
    return [flat[borders[i] : borders[i + 1]].tobytes() for i in range(total)]
