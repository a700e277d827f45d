"""Items to predictions: which option does the model find most probable?

Items are worked through in fixed chunks, so that a killed run resumes at a chunk border with the
same bytes, and memory does not grow with the suite. Several methods share one reading of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.scoring.probes import Method
from antlm_bench.scoring.text import EosRule
from antlm_bench.types import (
    Encodings,
    Floats,
    Item,
    LanguageModel,
    ModelInfo,
    Option,
    Prediction,
    Probes,
)

# raised whenever a score of an unchanged checkpoint and suite may move; part of every cell's key
CONVENTIONS_VERSION = 2
ProgressCallback = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class ScoringConventions:
    """Conventions of scoring that peers do not share; COMPATS names a bundle of them per peer.

    A text "has a context" where characters stand before its scored span. Sources:
    docs/conventions.md.
    """

    bos: str = "auto"
    """BOS policy of every text (scoring.text.BOS_POLICIES)."""
    ties: str = "half"
    """Tie rule (metrics.TIES)."""
    reduction: str = ""
    """Which score decides: sum or per-token; "" = what the suite declares."""
    causal_reduction: str = ""
    """The same for causal methods; "" = as `reduction`."""
    bos_before_context: str = ""
    """BOS policy of causal texts that have a context; "" = as `bos`."""
    eos: EosRule | Literal[""] = ""
    """Causal texts of which the special tokens that the tokenizer adds at their end are scored:
    "all", or those with a "context"; "" = none."""
    context: str = ""
    """Context of masked texts that have none: "eos" = the string of the EOS token, or "None"."""
    delimiter: str = ""
    """Put before a text that has no context, and scored with it (lm-eval's target_delimiter)."""
    joiner: str = ""
    """Put between the context and the scored span of masked texts, and scored with the span."""
    lengths: str = "declared"
    """Longest text: "declared" = what configuration and tokenizer say; "positions" = that only
    where the model has no positions beyond (as code that never looks at the limit).
    """
    softmax: str = "float64"
    """Precision of the probabilities that a correlation with ratings ranks: float64 or float32."""

    def for_method(self, method: Method) -> ScoringConventions:
        """The conventions that apply to one method."""
        if method.needs_mask:
            return replace(self, causal_reduction="", bos_before_context="", eos="")
        decides = self.causal_reduction or self.reduction
        return replace(self, reduction=decides, causal_reduction="", context="", joiner="")

    def for_suite(
        self, default_reduction: str, verbatim: bool = False, scores_words: bool = False
    ) -> ScoringConventions:
        """The conventions that apply to one suite.

        declared: the suite's own reduction, which holds unless the peer has one rule for all
        suites. verbatim: the suite's texts are a peer's requests and hold their delimiters already.
        words: the suite asks for words or regions within texts, which no peer's requests are about.
        """
        policy = replace(self, reduction=self.reduction or default_reduction)
        if scores_words:
            return replace(
                policy, bos_before_context="", eos="", context="", delimiter="", joiner=""
            )
        return replace(policy, delimiter="") if verbatim else policy

    def non_default_settings(self, has_ratings: bool) -> dict[str, str]:
        """Return the conventions that are not ours, as settings of a cell.

        rated: the suite correlates probabilities with ratings. What is as ours has no key, so that
        cells from before there was a choice keep theirs.
        """
        names = ["bos_before_context", "delimiter", "joiner", "lengths", *["softmax"] * has_ratings]
        values = {name: str(getattr(self, name)) for name in names}
        return {
            name: value
            for name, value in values.items()
            if value != getattr(DEFAULT_CONVENTIONS, name)
        }


DEFAULT_CONVENTIONS = ScoringConventions()
# Sources: reference table in docs/conventions.md, each line read in the peer's code or in its
# recorded scores.
PEER_CONVENTIONS: dict[str, ScoringConventions] = {
    "lm-eval": ScoringConventions(
        ties="first", reduction="sum", bos_before_context="tokenizer", eos="context", delimiter=" "
    ),
    "minicons": ScoringConventions(bos="tokenizer", reduction="per-token", eos="all"),
    "babylm-2024": ScoringConventions(
        ties="first",
        reduction="per-token",
        causal_reduction="sum",
        bos_before_context="never",
        context="eos",
        delimiter=" ",
        joiner=" ",
    ),
    "babylm-2025": ScoringConventions(
        bos="tokenizer", ties="first", reduction="sum", lengths="positions", softmax="float32"
    ),
    # The mean decides in Global PIQA, the sum elsewhere: the suites say so.
    "babylm-2026": ScoringConventions(
        bos="tokenizer", ties="random", lengths="positions", softmax="float32"
    ),
}


def iter_chunks(items: Sequence[Item], methods: Sequence[Method]) -> Iterator[Sequence[Item]]:
    """Fixed blocks of items. Masked methods read one row per token, so their chunks are smaller."""
    size = 512 if any(m.needs_mask for m in methods) else 4096
    for start in range(0, len(items), size):
        yield items[start : start + size]


def apply_conventions(
    items: Sequence[Item], conventions: ScoringConventions, model: ModelInfo
) -> Sequence[Item]:
    """Return the items with the texts that a peer puts before their options.

    lm-eval asks for `target_delimiter + choice` after an empty context, too (0.4.13,
    `ConfigurableTask. construct_requests`; its BLiMP leaves the delimiter at " "), so that
    tokenizers which put no space before a text score " Who ..." there, and "Who ..." at other
    peers'. Behind a context the space is a suite's own. BabyLM 2024's masked backend asks minicons
    for the same continuation, and minicons joins with a space of its own: two spaces in all. Only
    texts without a context get the string of the EOS token, or "None", for one.
    """
    if not (conventions.context or conventions.delimiter or conventions.joiner):
        return items
    stand_in = model.eos if conventions.context else ""

    def asked(option: Option) -> Option:
        start, end = option.span or (0, len(option.text))
        length = option.length or end - start
        if start:
            text = option.text[:start] + conventions.joiner + option.text[start:]
            span: tuple[int, int] | None = (start, end + len(conventions.joiner))
        elif stand_in:
            text = stand_in + conventions.joiner + conventions.delimiter + option.text
            span = (len(stand_in), len(text) - len(option.text) + end)
        elif option.span is None:
            text, span = conventions.delimiter + option.text, None
        else:
            return option
        return (
            option if text == option.text else replace(option, text=text, span=span, length=length)
        )

    return [replace(item, options=tuple(map(asked, item.options))) for item in items]


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
