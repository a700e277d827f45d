"""Which tokens a masked objective hides, and what stands in their place. Pure numpy, keyed by
sample.

Three laws, each as its authors' code hides tokens (distributions of the originals are the tests'
oracle):

- `token`: every token by itself, at the nominal rate (BERT, arXiv 1810.04805).
- `geometric`: LTG-BERT (arXiv 2303.09859) and ELC-BERT (arXiv 2311.02265). Spans are drawn until at
  least Binomial(n, rate) tokens of a row are hidden. They begin anywhere, also before the row, may
  overlap, and the last one is not cut: on short rows more than the nominal share is hidden.
- `uniform`: GPT-BERT (arXiv 2410.24159). A document is cut into spans of 1, 2 or 3 tokens, and
  spans with the lowest draws are hidden. Draws rise with how often a token was hidden before, so
  that all are hidden equally often.

All draws belong to a sample: a row comes out the same whatever batch it stands in and however far
it is padded.
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
# P(length = 1, ..., 9) of a `geometric` span. The code draws Geometric(1/3) modulo 10; without the
# zeros, which hide nothing, that is P(l) ~ (2/3)^l exactly.
GEOMETRIC_LENGTH_CDF = np.cumsum((2 / 3) ** np.arange(1, 10)) / ((2 / 3) ** np.arange(1, 10)).sum()
MAX_UNIFORM_SPAN_LENGTH = 3  # tokens of a `uniform` span, 1 to 3 with equal probability
SPANS_PER_DRAW = 16  # of the geometric law, per call of a row's generator


@dataclass(frozen=True, slots=True)
class Corruption:
    """What becomes of a chosen token: the mask, a random word, or nothing (BERT, arXiv 1810.04805:
    80/10/10).

    mask_id: the mask's id. words: (w,) the ids a random word is drawn from, specials excluded.
    spans: one of LAWS. least: fewest tokens that the geometric law hides in a row, 1 (LTG-BERT) or
    0 (ELC-BERT). masked, random: shares of the chosen; the rest is kept. by_span: one decision for
    a whole span (LTG-BERT, GPT-BERT), else one per token; random words are drawn for each token
    either way. Raises DeclarationError.
    """

    mask_id: int
    random_token_ids: NDArray[Any]
    span_length_distribution: str = "token"
    corrupt_whole_spans: bool = True
    mask_share: float = 0.8
    random_share: float = 0.1
    min_masked: int = 1

    def __post_init__(self) -> None:
        if self.span_length_distribution not in SPAN_LENGTH_DISTRIBUTIONS:
            place, hint = "masking.spans", f"one of {', '.join(SPAN_LENGTH_DISTRIBUTIONS)}"
            raise DeclarationError(
                f"unknown law of spans {self.span_length_distribution!r}", location=place, hint=hint
            )
        if (
            min(self.mask_share, self.random_share) < 0
            or self.mask_share + self.random_share > 1 + 1e-9
        ):
            message = f"{self.mask_share} masked and {self.random_share} random are no shares of one whole"
            raise DeclarationError(
                message, location="masking", hint="both at least 0, together at most 1"
            )
        if self.random_share > 0 and len(self.random_token_ids) == 0:
            raise DeclarationError(
                "no words to draw random tokens from", location="masking.random", hint="set it to 0"
            )


class MaskableRows(NamedTuple):
    """Rows to hide tokens in: ids (B, T); maskable (B, T), False for specials and padding; segments
    (B, T), the document of each token; counts (B, T), how often each token was hidden before (None:
    never).
    """

    ids: Ids
    maskable: Bools
    segments: Ids
    mask_counts: Ids | None = None


class _Draws(NamedTuple):
    """Uniform numbers in [0, 1), (B, T) each: one of every kind per position of a sample."""

    number: Floats
    order: Floats
    length: Floats
    action: Floats
    word: Floats


class _MaskSelection(NamedTuple):
    """chosen: (B, T). action: (B, T) uniform numbers that decide what becomes of a chosen token,
    equal in a span.
    """

    chosen: Bools
    action: Floats


def apply_masking(
    rows: MaskableRows, mask_rate: float, row_seeds: Sequence[Sequence[int]], corruption: Corruption
) -> tuple[Ids, Bools]:
    """Choose about rate x n of the n maskable tokens of each row, and corrupt them.

    rate: in [0, 1]; at 0 nothing is hidden. keys: (B, k), e.g. (seed, step, sample), integers >= 0:
    all the randomness of a row. Returns (inputs (B, T) with the chosen corrupted, chosen (B, T));
    every chosen position is a target, also where its token was kept. A row without a maskable token
    has no target. Raises DeclarationError for a rate outside [0, 1].
    """
    if not 0 <= mask_rate <= 1:
        raise DeclarationError(
            f"a mask rate of {mask_rate}", location="masking.rate", hint="a number from 0 to 1"
        )
    draws = _draw_uniforms(row_seeds, rows.ids.shape[1])
    if mask_rate == 0 or not rows.maskable.any():
        choice = _MaskSelection(np.zeros_like(rows.maskable), draws.action)
    elif corruption.span_length_distribution == "geometric":
        choice = _select_geometric_spans(rows, mask_rate, row_seeds, draws, corruption.min_masked)
    elif corruption.span_length_distribution == "uniform":
        choice = _select_least_masked_spans(rows, mask_rate, draws)
    else:
        choice = _MaskSelection((draws.number < mask_rate) & rows.maskable, draws.action)
    chosen, action = (
        choice.chosen,
        choice.action if corruption.corrupt_whole_spans else draws.action,
    )
    masked = chosen & (action < corruption.mask_share)
    replaced = chosen & ~masked & (action < corruption.mask_share + corruption.random_share)
    inputs = rows.ids.copy()
    inputs[masked] = corruption.mask_id
    inputs[replaced] = corruption.random_token_ids[
        (draws.word[replaced] * len(corruption.random_token_ids)).astype(np.int64)
    ]
    return inputs, chosen


def _make_generator(row_seed: Sequence[int], stream: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([*(int(part) for part in row_seed), stream]))


def _to_unit_interval(raw: NDArray[np.uint64]) -> Floats:
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw_uniforms(row_seeds: Sequence[Sequence[int]], width: int) -> _Draws:
    """Numbered by position first, so that padding a row appends draws and changes none."""
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
    """The geometric law: span after span in every row, until as many tokens are hidden as the row
    asks for.

    A span of length l in a row of T tokens begins at -(l - 1), ..., T + l - 1 with equal
    probability: positions are hidden equally often, and long spans fall beside a short row more
    often. A later span decides what becomes of a token that an earlier one has hidden.
    """
    maskable, width = rows.maskable, rows.maskable.shape[1]
    place = np.arange(width)
    extent = np.where(maskable, place + 1, 0).max(1)
    goals = np.maximum(
        ((draws.number < mask_rate) & maskable).sum(1), np.minimum(min_masked, maskable.sum(1))
    )
    chosen, action = np.zeros_like(maskable), draws.action.copy()
    streams = [_make_generator(key, 1) for key in row_seeds]
    active, turn = np.nonzero(goals)[0], 0
    spans = np.empty((len(row_seeds), SPANS_PER_DRAW, 3))
    while len(active):
        if turn % SPANS_PER_DRAW == 0:
            for row in active:
                spans[row] = _to_unit_interval(streams[row].random_raw(SPANS_PER_DRAW * 3)).reshape(
                    -1, 3
                )
        lengths, begins, actions = spans[active, turn % SPANS_PER_DRAW].T
        length = 1 + np.searchsorted(GEOMETRIC_LENGTH_CDF[:-1], lengths, side="right")
        begin = np.floor(begins * (extent[active] + 2 * length - 1)) - (length - 1)
        covered = (place >= begin[:, None]) & (place < (begin + length)[:, None]) & maskable[active]
        chosen[active] |= covered
        action[active] = np.where(covered, actions[:, None], action[active])
        active = active[chosen[active].sum(1) < goals[active]]
        turn += 1
    return _MaskSelection(chosen, action)


def _select_least_masked_spans(
    rows: MaskableRows, mask_rate: float, draws: _Draws
) -> _MaskSelection:
    """The uniform law: every document's part of a row by itself.

    Of its n maskable tokens at least max(1, floor(n x rate + u)) are hidden, u uniform in [0, 1):
    those with the lowest values, where a value is the draw of the token's span times e^(how often
    the token was hidden). Equal values are hidden together, so that a span that was never hidden is
    not cut.
    """
    row, column = np.nonzero(rows.maskable)
    segment = rows.segments[row, column]
    begins = np.append(True, (np.diff(row) != 0) | (np.diff(segment) != 0))
    group = np.cumsum(begins) - 1
    first = np.nonzero(begins)[0]
    rank = np.arange(len(row)) - first[group]
    sizes = np.diff(np.append(first, len(row)))
    begun = first[group] + _span_starts(draws.length[row, column], rank, group, sizes)
    values = draws.order[row, column][begun]
    if rows.mask_counts is not None:
        counts = rows.mask_counts[row, column].astype(np.float64)
        lowest = np.minimum.reduceat(counts, first)
        values = values * np.exp(
            np.minimum(counts - lowest[group], 700.0)
        )  # e^700: the largest float is e^709
    table = np.full((len(first), sizes.max()), np.inf)
    table[group, rank] = values
    hidden = np.maximum(1, np.floor(sizes * mask_rate + draws.number[row, column][first])).astype(
        np.int64
    )
    limit = np.sort(table, axis=1)[np.arange(len(first)), np.minimum(hidden, sizes) - 1]
    chosen, action = np.zeros_like(rows.maskable), draws.action.copy()
    chosen[row, column] = values <= limit[group]
    action[row, column] = draws.action[row, column][begun]
    return _MaskSelection(chosen, action)


def _span_starts(
    draws: Floats, rank: NDArray[Any], group: NDArray[Any], sizes: NDArray[Any]
) -> NDArray[Any]:
    """For each token (by rank in its group) the rank at which its span begins: groups are cut from
    the left.
    """
    lengths = np.ones((len(sizes), sizes.max()), np.int64)
    lengths[group, rank] = 1 + np.floor(draws * MAX_UNIFORM_SPAN_LENGTH).astype(np.int64)
    begins = np.zeros(lengths.shape, np.int64)
    current, following = np.zeros(len(sizes), np.int64), lengths[:, 0]
    for place in range(1, lengths.shape[1]):
        new = following == place
        current = np.where(new, place, current)
        following = np.where(new, place + lengths[:, place], following)
        begins[:, place] = current
    begun: NDArray[Any] = begins[group, rank]
    return begun
