"""Scoring conventions: rules that change scores, and on which lm-eval, minicons and BabyLM differ.

`ScoringConventions` holds one value per rule; the defaults are ours. `PEER_CONVENTIONS` holds those
of each peer (--compat). docs/reference/conventions.md gives the source of every value in a
peer's code or recorded scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.text import EosRule
from antlm_bench.types import Item, ModelInfo, Option

CONVENTIONS_VERSION = 2
"""Part of every cell's content key. Raised when a code change may change scores of an unchanged
checkpoint and suite. Scores of `--precision adaptive` are left out of this: the bits of those that
are not rescored depend on the machine, and only the choices are those of fp32, up to its bound."""


@dataclass(frozen=True, slots=True)
class ScoringConventions:
    """One value per rule. The context of a text is what precedes its scored span; a text whose span
    begins at its first character has no context.
    """

    bos: str = "auto"
    """BOS policy of every text (scoring.text.BOS_POLICIES)."""
    ties: str = "half"
    """Tie rule (metrics.TIES)."""
    reduction: str = ""
    """How log-probabilities are normalised: sum or per-token; "" = as the suite declares."""
    causal_reduction: str = ""
    """`reduction` for causal methods; "" = as `reduction`."""
    bos_before_context: str = ""
    """BOS policy of causal texts with a context; "" = as `bos`."""
    eos: EosRule | Literal[""] = ""
    """Causal texts whose EOS (any special token that the tokenizer appends) is scored: "all", or
    those with a "context"; "" = none."""
    context: str = ""
    """Context added to masked texts without one: "eos" = the EOS token as a string, or "None" if
    the tokenizer has no EOS; "" = no context."""
    delimiter: str = ""
    """Put before a text without context, and scored with it (lm-eval's target_delimiter)."""
    joiner: str = ""
    """Put between context and scored span of masked texts, and scored with the span."""
    lengths: str = "declared"
    """Maximum length of a text: "declared" = by configuration and tokenizer; "positions" = by what
    the model can run, as in peers that ignore the declared maximum."""
    softmax: str = "float64"
    """Precision of the probabilities that are correlated with ratings: float64 or float32."""

    def for_method(self, method: Method) -> ScoringConventions:
        """Return the conventions that apply to one method; rules for other methods are reset."""
        if method.needs_mask:
            return replace(self, causal_reduction="", bos_before_context="", eos="")
        reduction = self.causal_reduction or self.reduction
        conventions = replace(self, reduction=reduction, causal_reduction="", context="", joiner="")
        if method.is_left_to_right:
            return conventions
        return replace(conventions, bos_before_context="", eos="")  # of causal rows

    def for_suite(
        self, default_reduction: str, has_delimiters: bool = False, scores_words: bool = False
    ) -> ScoringConventions:
        """Return the conventions that apply to one suite.

        default_reduction: the suite's reduction, used if `reduction` is "". has_delimiters: the
        texts are lm-eval requests, which already contain the delimiter. scores_words: the suite
        scores words or regions within texts, for which peers have no rules.
        """
        conventions = replace(self, reduction=self.reduction or default_reduction)
        if scores_words:
            return replace(
                conventions, bos_before_context="", eos="", context="", delimiter="", joiner=""
            )
        return replace(conventions, delimiter="") if has_delimiters else conventions

    def non_default_settings(self, has_ratings: bool) -> dict[str, str]:
        """Return the conventions that differ from the defaults, as settings of a cell.

        has_ratings: the suite correlates probabilities with ratings. Defaults are left out, so that
        cells from before a convention was added keep their content key.
        """
        names = ["bos_before_context", "delimiter", "joiner", "lengths"]
        if has_ratings:
            names.append("softmax")
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
    # No reduction: Global PIQA declares the mean in its TOML, all other suites the sum.
    "babylm-2026": ScoringConventions(
        bos="tokenizer", ties="random", lengths="positions", softmax="float32"
    ),
}


def apply_conventions(
    items: Sequence[Item], conventions: ScoringConventions, model: ModelInfo
) -> Sequence[Item]:
    """Return the items with context, delimiter and joiner added to the texts of their options.

    - lm-eval scores `target_delimiter + choice` even after an empty context (0.4.13,
      `ConfigurableTask.construct_requests`; its BLiMP keeps the default delimiter " "). With a
      tokenizer that adds no space before a text, lm-eval therefore scores " Who ..." and other
      peers "Who ...". After a context, the space is part of the suite's text.
    - BabyLM 2024's masked backend passes the same continuation to minicons, which joins it to the
      context with another space (two in all). Texts without context get the EOS token, or "None",
      as context.
    """
    if not (conventions.context or conventions.delimiter or conventions.joiner):
        return items
    added_context = model.eos if conventions.context else ""

    def convert(option: Option) -> Option:
        start, end = option.span or (0, len(option.text))
        length = option.length or end - start
        if start:
            text = option.text[:start] + conventions.joiner + option.text[start:]
            span: tuple[int, int] | None = (start, end + len(conventions.joiner))
        elif added_context:
            text = added_context + conventions.joiner + conventions.delimiter + option.text
            span = (len(added_context), len(text) - len(option.text) + end)
        elif option.span is None:
            text, span = conventions.delimiter + option.text, None
        else:
            return option
        if text == option.text:
            return option
        return replace(option, text=text, span=span, length=length)

    return [replace(item, options=tuple(map(convert, item.options))) for item in items]
