"""Choose the tokens that a masked objective hides, and corrupt them. Pure numpy, keyed by sample.

Three distributions of spans, each as its authors' code hides tokens (the originals are the oracle
of the tests):

- `token`: every token independently, at the nominal rate (BERT, arXiv 1810.04805).
- `geometric`: LTG-BERT (arXiv 2303.09859) and ELC-BERT (arXiv 2311.02265). Spans are drawn until at
  least Binomial(n, rate) tokens of a row are hidden. They begin anywhere, also before the row, may
  overlap, and the last one is not cut: on short rows more than the nominal share is hidden.
- `uniform`: GPT-BERT (arXiv 2410.24159). A document is cut into spans of 1, 2 or 3 tokens, and the
  spans with the lowest draws are hidden. Draws rise with how often a token was hidden before, so
  that all are hidden equally often.

All draws belong to a sample: a row comes out the same in any batch and with any padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import DeclarationError
from antlm_bench.types import Bools, Floats

Ids = NDArray[Any]  # (B, T) of any integer type

SPAN_LENGTH_DISTRIBUTIONS = ("token", "geometric", "uniform")
# P(length <= 1, ..., 9) of a `geometric` span. The code draws Geometric(1/3) modulo 10; without the
# zeros, which hide nothing, that is P(l) ~ (2/3)^l exactly.
GEOMETRIC_LENGTH_CDF = np.cumsum((2 / 3) ** np.arange(1, 10)) / ((2 / 3) ** np.arange(1, 10)).sum()
MAX_UNIFORM_SPAN_LENGTH = 3  # tokens of a `uniform` span, 1 to 3 with equal probability
SPANS_PER_DRAW = 16  # `geometric` spans per call of a row's generator


@dataclass(frozen=True, slots=True)
class Corruption:
    """How tokens are chosen and corrupted: masked, replaced at random, or kept.

    BERT's shares are 80/10/10 (arXiv 1810.04805). Raises DeclarationError for impossible values.
    """

    mask_id: int
    random_token_ids: NDArray[Any]
    """(w,) the ids that random words are drawn from, without special tokens."""
    span_length_distribution: str = "token"
    """One of SPAN_LENGTH_DISTRIBUTIONS."""
    corrupt_whole_spans: bool = True
    """Whether one decision holds for a whole span (LTG-BERT, GPT-BERT), or one per token. Random
    words are drawn for each token either way.
    """
    mask_share: float = 0.8
    random_share: float = 0.1
    """Shares of the chosen tokens; the rest is kept."""
    min_masked: int = 1
    """Fewest tokens that geometric spans hide in a row: 1 (LTG-BERT) or 0 (ELC-BERT)."""

    def __post_init__(self) -> None:
        if self.span_length_distribution not in SPAN_LENGTH_DISTRIBUTIONS:
            raise DeclarationError(
                f"unknown distribution of spans {self.span_length_distribution!r}",
                location="masking.spans",
                hint=f"one of {', '.join(SPAN_LENGTH_DISTRIBUTIONS)}",
            )
        shares = self.mask_share, self.random_share
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise DeclarationError(
                f"{shares[0]} masked and {shares[1]} random are not shares of a whole",
                location="masking",
                hint="both at least 0, together at most 1",
            )
        if self.random_share > 0 and len(self.random_token_ids) == 0:
            raise DeclarationError(
                "no words to draw random tokens from", location="masking.random", hint="set it to 0"
            )


class MaskableRows(NamedTuple):
    """b rows of t tokens to hide tokens in."""

    ids: Ids
    """(b, t)."""
    maskable: Bools
    """(b, t), False for special tokens and padding."""
    segments: Ids
    """(b, t) document of each token."""
    mask_counts: Ids | None = None
    """(b, t) how often each token was hidden before; None = never."""


class _Draws(NamedTuple):
    """Uniform numbers in [0, 1), (b, t) each: one of every kind per position of a sample."""

    number: Floats
    order: Floats
    length: Floats
    action: Floats
    word: Floats


class _MaskSelection(NamedTuple):
    chosen: Bools
    """(b, t)."""
    action: Floats
    """(b, t) uniform numbers that decide how a chosen token is corrupted, equal within a span."""


def apply_masking(
    rows: MaskableRows, mask_rate: float, row_seeds: Sequence[Sequence[int]], corruption: Corruption
) -> tuple[Ids, Bools]:
    """Choose about mask_rate x n of the n maskable tokens of each row, and corrupt them.

    mask_rate: in [0, 1]; at 0 nothing is hidden. row_seeds: (b, k), e.g. (seed, step, sample),
    integers >= 0: all randomness of a row. Return (inputs (b, t) with the chosen tokens corrupted,
    chosen (b, t)). Every chosen position is a target, also if its token was kept. A row without a
    maskable token has no target. Raises DeclarationError for a rate outside [0, 1].
    """
    if not 0 <= mask_rate <= 1:
        raise DeclarationError(
            f"a mask rate of {mask_rate}", location="masking.rate", hint="a number from 0 to 1"
        )
    draws = _draw_uniforms(row_seeds, rows.ids.shape[1])
    if mask_rate == 0 or not rows.maskable.any():
        selection = _MaskSelection(np.zeros_like(rows.maskable), draws.action)
    elif corruption.span_length_distribution == "geometric":
        min_masked = corruption.min_masked
        selection = _select_geometric_spans(rows, mask_rate, row_seeds, draws, min_masked)
    elif corruption.span_length_distribution == "uniform":
        selection = _select_least_masked_spans(rows, mask_rate, draws)
    else:
        selection = _MaskSelection((draws.number < mask_rate) & rows.maskable, draws.action)
    chosen = selection.chosen
    action = selection.action if corruption.corrupt_whole_spans else draws.action
    masked = chosen & (action < corruption.mask_share)
    replaced = chosen & ~masked & (action < corruption.mask_share + corruption.random_share)
    inputs = rows.ids.copy()
    inputs[masked] = corruption.mask_id
    words = corruption.random_token_ids
    inputs[replaced] = words[(draws.word[replaced] * len(words)).astype(np.int64)]
    return inputs, chosen


def _make_generator(row_seed: Sequence[int], stream: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([*(int(part) for part in row_seed), stream]))


def _to_unit_interval(raw: NDArray[np.uint64]) -> Floats:
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw_uniforms(row_seeds: Sequence[Sequence[int]], width: int) -> _Draws:
    """Draw by position first: padding a row appends draws and changes none."""
    kinds = len(_Draws._fields)
    raw = np.empty((len(row_seeds), width * kinds), np.uint64)
    for row, key in zip(raw, row_seeds, strict=True):
        row[:] = _make_generator(key, 0).random_raw(width * kinds)
    return _Draws(*np.moveaxis(_to_unit_interval(raw).reshape(len(row_seeds), width, kinds), 2, 0))


def _select_geometric_spans(
    rows: MaskableRows,
    mask_rate: float,
    row_seeds: Sequence[Sequence[int]],
    draws: _Draws,
    min_masked: int,
) -> _MaskSelection:
    """Hide span after span in every row, until as many tokens are hidden as the row's goal.

    A span of length l in a row of t tokens begins at -(l - 1), ..., t + l - 1 with equal
    probability: all positions are hidden equally often, and long spans miss a short row more often.
    A later span decides how a token is corrupted that an earlier one has hidden.
    """
    maskable, positions = rows.maskable, np.arange(rows.maskable.shape[1])
    extent = np.where(maskable, positions + 1, 0).max(1)
    drawn = ((draws.number < mask_rate) & maskable).sum(1)
    goals = np.maximum(drawn, np.minimum(min_masked, maskable.sum(1)))
    chosen, action = np.zeros_like(maskable), draws.action.copy()
    generators = [_make_generator(key, 1) for key in row_seeds]
    active, num_spans = np.nonzero(goals)[0], 0
    spans = np.empty((len(row_seeds), SPANS_PER_DRAW, 3))
    while len(active):
        if num_spans % SPANS_PER_DRAW == 0:
            for row in active:
                raw = generators[row].random_raw(SPANS_PER_DRAW * 3)
                spans[row] = _to_unit_interval(raw).reshape(-1, 3)
        lengths, starts, actions = spans[active, num_spans % SPANS_PER_DRAW].T
        length = 1 + np.searchsorted(GEOMETRIC_LENGTH_CDF[:-1], lengths, side="right")
        start = np.floor(starts * (extent[active] + 2 * length - 1)) - (length - 1)
        covered = (positions >= start[:, None]) & (positions < (start + length)[:, None])
        covered &= maskable[active]
        chosen[active] |= covered
        action[active] = np.where(covered, actions[:, None], action[active])
        active = active[chosen[active].sum(1) < goals[active]]
        num_spans += 1
    return _MaskSelection(chosen, action)


def _select_least_masked_spans(
    rows: MaskableRows, mask_rate: float, draws: _Draws
) -> _MaskSelection:
    """Hide the spans with the lowest values, in every document's part of a row separately.

    Of its n maskable tokens at least max(1, floor(n x rate + u)) are hidden, u uniform in [0, 1). A
    token's value is the draw of its span times e^(how often the token was hidden). Equal values are
    hidden together, so a span that was never hidden is not cut.
    """
    row, column = np.nonzero(rows.maskable)
    segment = rows.segments[row, column]
    is_first = np.append(True, (np.diff(row) != 0) | (np.diff(segment) != 0))
    group = np.cumsum(is_first) - 1
    first = np.nonzero(is_first)[0]
    rank = np.arange(len(row)) - first[group]
    sizes = np.diff(np.append(first, len(row)))
    span_start = first[group] + _span_starts(draws.length[row, column], rank, group, sizes)
    values = draws.order[row, column][span_start]
    if rows.mask_counts is not None:
        counts = rows.mask_counts[row, column].astype(np.float64)
        lowest = np.minimum.reduceat(counts, first)
        # e^700 is finite: the largest double is about e^709.
        values = values * np.exp(np.minimum(counts - lowest[group], 700.0))
    table = np.full((len(first), sizes.max()), np.inf)
    table[group, rank] = values
    goals = np.floor(sizes * mask_rate + draws.number[row, column][first])
    goals = np.maximum(1, goals).astype(np.int64)
    limit = np.sort(table, axis=1)[np.arange(len(first)), np.minimum(goals, sizes) - 1]
    chosen, action = np.zeros_like(rows.maskable), draws.action.copy()
    chosen[row, column] = values <= limit[group]
    action[row, column] = draws.action[row, column][span_start]
    return _MaskSelection(chosen, action)


def _span_starts(
    draws: Floats, rank: NDArray[Any], group: NDArray[Any], sizes: NDArray[Any]
) -> NDArray[Any]:
    """Return the rank at which each token's span begins. Groups are cut from the left.

    rank: of each token in its group.
    """
    lengths = np.ones((len(sizes), sizes.max()), np.int64)
    lengths[group, rank] = 1 + np.floor(draws * MAX_UNIFORM_SPAN_LENGTH).astype(np.int64)
    starts = np.zeros(lengths.shape, np.int64)
    current, following = np.zeros(len(sizes), np.int64), lengths[:, 0]
    for position in range(1, lengths.shape[1]):
        is_start = following == position
        current = np.where(is_start, position, current)
        following = np.where(is_start, position + lengths[:, position], following)
        starts[:, position] = current
    return np.asarray(starts[group, rank])
