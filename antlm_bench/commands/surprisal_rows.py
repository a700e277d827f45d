"""Build the rows of the table of `surprisal`: a row per token, word, region or sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import UsageError
from antlm_bench.runs.table_files import TableValue
from antlm_bench.scoring.token_scores import TokenScores
from antlm_bench.suites.stimuli import ScoringUnit

SurprisalRow = dict[str, TableValue]
UNITS_BY_BASE = {"2": ("bits", math.log(2)), "e": ("nats", 1.0), "10": ("hartleys", math.log(10))}
"""Base of the logarithm (--base) -> (unit, nats per unit)."""
ADDED_COLUMNS = ("rank", "entropy", "top-K")
MAX_TOP_K = 1000
NO_TOKENS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class AddedColumns:
    """The columns that --add names."""

    rank: bool = False
    entropy: bool = False
    top_k: int = 0

    @classmethod
    def parse(cls, names: Sequence[str]) -> AddedColumns:
        """Parse names such as ("rank", "entropy", "top-5"). Raises UsageError."""
        top_k = 0
        for name in names:
            match = re.fullmatch(r"top-([1-9][0-9]{0,3})", name)
            if match and int(match[1]) <= MAX_TOP_K:
                top_k = int(match[1])
            elif name not in ("rank", "entropy"):
                raise UsageError(
                    f"unknown column {name!r}",
                    location="--add",
                    hint=f"{', '.join(ADDED_COLUMNS)} with K from 1 to {MAX_TOP_K}: "
                    "--add rank,entropy,top-5",
                )
        return cls("rank" in names, "entropy" in names, top_k)

    @property
    def is_empty(self) -> bool:
        return not (self.rank or self.entropy or self.top_k)

    def list_names(self, unit: str) -> list[str]:
        """Return the names of the columns. unit: bits, nats or hartleys."""
        names = [*["rank"] * self.rank, *[f"entropy_{unit}"] * self.entropy]
        for number in range(1, self.top_k + 1):
            names += [f"top_{number}", f"top_{number}_probability"]
        return names


@dataclass(frozen=True, slots=True)
class TableLayout:
    """The columns of the table that hold values, after those of the stimuli."""

    by_token: bool
    """Whether a row is a token."""
    base: str
    """A key of UNITS_BY_BASE."""
    added: AddedColumns

    @property
    def unit(self) -> str:
        """Unit of the surprisal: bits, nats or hartleys."""
        return UNITS_BY_BASE[self.base][0]

    @property
    def column_names(self) -> list[str]:
        """Names of the columns after those of the stimuli."""
        own_names = ["token_index", "token"] if self.by_token else ["n_tokens"]
        return [*own_names, f"surprisal_{self.unit}", *self.added.list_names(self.unit)]

    def build_rows(
        self, units: Sequence[ScoringUnit], scores: TokenScores, decode: Callable[[int], str]
    ) -> Iterator[SurprisalRow]:
        """Yield the rows of the units of one text.

        A value is None if a token of the unit is not scored. decode: token id -> text.
        """
        decode = cache(decode)
        if not self.by_token:
            for unit in units:
                start, end = find_span(unit, scores)
                tokens = scores.select_tokens(start, end) if start < end else NO_TOKENS
                num_tokens = len(tokens) if scores.num_windows else None
                own_columns: SurprisalRow = {"n_tokens": num_tokens}
                yield unit.row | own_columns | self._build_values(unit, scores, tokens, decode)
            return
        for unit, numbered_tokens in _assign_tokens(units, scores):
            for number, token in numbered_tokens:
                own_columns = {"token_index": number, "token": decode(scores.ids[token])}
                values = self._build_values(unit, scores, np.array([token], np.int64), decode)
                yield unit.row | own_columns | values

    def _build_values(
        self,
        unit: ScoringUnit,
        scores: TokenScores,
        tokens: NDArray[np.int64],
        decode: Callable[[int], str],
    ) -> SurprisalRow:
        """Return the surprisal and the added columns of a unit with these tokens."""
        nats_per_unit = UNITS_BY_BASE[self.base][1]
        is_empty = unit.option.span is not None and unit.option.span[0] == unit.option.span[1]
        logprob = float(scores.logprobs[tokens].sum()) if len(tokens) or is_empty else math.nan
        is_scored = not math.isnan(logprob) and bool(scores.num_windows)
        row: SurprisalRow = {
            f"surprisal_{self.unit}": -logprob / nats_per_unit + 0.0 if is_scored else None
        }
        if self.added.is_empty:
            return row
        facts: list[float | None] = [None] * (2 + 2 * self.added.top_k)
        if len(tokens) and not math.isnan(scores.logprobs[tokens[0]]):
            facts = scores.facts[tokens[0]].tolist()
        rank, entropy, *top = facts
        if self.added.rank:
            row["rank"] = int(rank) if rank is not None and len(tokens) == 1 else None
        if self.added.entropy:
            row[f"entropy_{self.unit}"] = None if entropy is None else entropy / nats_per_unit
        top_ids, top_logprobs = top[: len(top) // 2], top[len(top) // 2 :]
        for number, (token, top_logprob) in enumerate(
            zip(top_ids, top_logprobs, strict=True), start=1
        ):
            row[f"top_{number}"] = None if token is None else decode(int(token))
            probability = None if top_logprob is None else math.exp(top_logprob)
            row[f"top_{number}_probability"] = probability
        return row


def find_span(unit: ScoringUnit, scores: TokenScores) -> tuple[int, int]:
    """Return (start, end) of a unit in its text.

    A border of a word that lies inside a token is moved to the token's end, so that words share no
    token: the span of a word in which no token begins is empty.
    """
    start, end = unit.option.span or (0, len(unit.option.text))
    if not unit.is_word:
        return start, end
    return scores.move_border_out_of_tokens(start), scores.move_border_out_of_tokens(end)


def count_words_without_token(units: Sequence[ScoringUnit], scores: TokenScores) -> int:
    """Return the number of words whose tokens begin in an earlier word."""
    spans = [find_span(unit, scores) for unit in units if unit.is_word]
    return sum(start >= end for start, end in spans)


def _assign_tokens(
    units: Sequence[ScoringUnit], scores: TokenScores
) -> Iterator[tuple[ScoringUnit, list[tuple[int, int]]]]:
    """Yield each word of a text with its tokens, as (number from 1, index).

    A token belongs to the first word that it overlaps with, and one without characters to the word
    that follows it.
    """
    is_prefix = scores.ends <= units[0].start if units[0].start else scores.ends < 0
    first = next_token = int(is_prefix.sum())
    for unit in units:
        tokens = scores.select_tokens(*(unit.option.span or (0, len(unit.option.text))))
        end = max(next_token, int(tokens[-1]) + 1 if len(tokens) else 0)
        if unit is units[-1]:
            end = len(scores.ids)
        yield unit, [(token - first + 1, token) for token in range(next_token, end)]
        next_token = end
