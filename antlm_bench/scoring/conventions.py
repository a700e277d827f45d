"""Scoring conventions: rules that move scores and on which peers differ.

`ScoringConventions` holds one value per rule; its defaults are ours. `PEER_CONVENTIONS` names a
bundle per peer (--compat). Sources, each read in the peer's code or in its recorded scores, stand
in docs/conventions.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.text import EosRule
from antlm_bench.types import Item, ModelInfo, Option

CONVENTIONS_VERSION = 2
"""Part of every cell's content key; raised whenever a score of an unchanged checkpoint and suite
may move."""


@dataclass(frozen=True, slots=True)
class ScoringConventions:
    """One value per rule. A text "has a context" where characters precede its scored span."""

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
        """Return the conventions that apply to one method."""
        if method.needs_mask:
            return replace(self, causal_reduction="", bos_before_context="", eos="")
        decides = self.causal_reduction or self.reduction
        return replace(self, reduction=decides, causal_reduction="", context="", joiner="")

    def for_suite(
        self, default_reduction: str, verbatim: bool = False, scores_words: bool = False
    ) -> ScoringConventions:
        """Return the conventions that apply to one suite.

        default_reduction: the suite's own, which holds unless the peer has one rule for all suites.
        verbatim: the suite's texts are a peer's requests, which hold their delimiters already.
        scores_words: the suite scores words or regions within texts, for which peers have no rules.
        """
        conventions = replace(self, reduction=self.reduction or default_reduction)
        if scores_words:
            return replace(
                conventions, bos_before_context="", eos="", context="", delimiter="", joiner=""
            )
        return replace(conventions, delimiter="") if verbatim else conventions

    def non_default_settings(self, has_ratings: bool) -> dict[str, str]:
        """Return the conventions that differ from the defaults, as settings of a cell.

        has_ratings: the suite correlates probabilities with ratings. A default has no key, so that
        cells from before there was a choice keep their content key.
        """
        names = ["bos_before_context", "delimiter", "joiner", "lengths", *["softmax"] * has_ratings]
        values = {name: str(getattr(self, name)) for name in names}
        return {
            name: value
            for name, value in values.items()
            if value != getattr(DEFAULT_CONVENTIONS, name)
        }


DEFAULT_CONVENTIONS = ScoringConventions()
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


def apply_conventions(
    items: Sequence[Item], conventions: ScoringConventions, model: ModelInfo
) -> Sequence[Item]:
    """Return the items with the texts that a peer puts around their options.

    lm-eval scores `target_delimiter + choice` after an empty context too (0.4.13,
    `ConfigurableTask.construct_requests`; its BLiMP leaves the delimiter at " "). A tokenizer that
    puts no space before a text therefore scores " Who ..." there and "Who ..." at other peers.
    After a context the space is the suite's own. BabyLM 2024's masked backend passes the same
    continuation to minicons, which joins with another space: two spaces in all. The string of the
    EOS token (or "None") becomes the context of texts that have none.
    """
    if not (conventions.context or conventions.delimiter or conventions.joiner):
        return items
    stand_in = model.eos if conventions.context else ""

    def convert(option: Option) -> Option:
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

    return [replace(item, options=tuple(map(convert, item.options))) for item in items]
