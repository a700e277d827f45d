"""Choose the tokens that a masked objective hides, and corrupt them. Needs numpy only.

There are three distributions of spans. Each follows the code of its authors, with which the tests
compare it:

- `token`: every token is chosen independently, with probability `mask_rate` (BERT, arXiv
  1810.04805).
- `geometric`: spans are drawn until at least Binomial(n, rate) tokens of a row are chosen
  (LTG-BERT, arXiv 2303.09859, and ELC-BERT, arXiv 2311.02265). Spans may overlap and may begin
  before the row. The last span is not shortened, so in short rows more than the nominal share is
  chosen.
- `uniform`: a document is cut into spans of 1, 2 or 3 tokens, each span gets a random value, and
  the spans with the lowest values are chosen (GPT-BERT, arXiv 2410.24159). The value grows with the
  number of times a token was chosen before, so that all tokens are chosen equally often.

All randomness is keyed by the sample, so a row is masked in the same way in any batch and with any
padding.
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
# P(length <= 1, ..., 9) of a `geometric` span. The authors' code draws Geometric(1/3) modulo 10. A
# length of 0 hides nothing; the other lengths have P(l) proportional to (2/3)^l.
GEOMETRIC_LENGTH_CDF = np.cumsum((2 / 3) ** np.arange(1, 10)) / ((2 / 3) ** np.arange(1, 10)).sum()
MAX_UNIFORM_SPAN_LENGTH = 3  # a `uniform` span has 1, 2 or 3 tokens with equal probability
SPANS_PER_DRAW = 16  # number of `geometric` spans that a row's generator draws at once


@dataclass(frozen=True, slots=True)
class Corruption:
    """How tokens are chosen, and how chosen tokens are corrupted: masked, randomised or unchanged.

    The default shares are those of BERT, 80/10/10 (arXiv 1810.04805). Raises DeclarationError for
    impossible values.
    """

    mask_id: int
    random_token_ids: NDArray[Any]
    """(w,) ids from which random tokens are drawn; excludes special tokens."""
    span_length_distribution: str = "token"
    """One of SPAN_LENGTH_DISTRIBUTIONS."""
    corrupt_whole_spans: bool = True
    """Whether all tokens of a span are corrupted in the same way (LTG-BERT, GPT-BERT), or each
    token in its own. A random token is drawn for each position in both cases.
    """
    mask_share: float = 0.8
    """Share of the chosen tokens that become the mask token."""
    random_share: float = 0.1
    """Share of the chosen tokens that become a random token. The others stay unchanged."""
    min_masked: int = 1
    """Minimum number of tokens that geometric spans choose in a row: 1 (LTG-BERT) or 0 (ELC-BERT).
    """

    def __post_init__(self) -> None:
        if self.span_length_distribution not in SPAN_LENGTH_DISTRIBUTIONS:
            raise DeclarationError(
                f"unknown span distribution {self.span_length_distribution!r}",
                location="masking.spans",
                hint=f"one of {', '.join(SPAN_LENGTH_DISTRIBUTIONS)}",
            )
        shares = self.mask_share, self.random_share
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise DeclarationError(
                f"shares of {shares[0]} masked and {shares[1]} random tokens are impossible",
                location="masking",
                hint="give shares of at least 0 whose sum is at most 1",
            )
        if self.random_share > 0 and len(self.random_token_ids) == 0:
            raise DeclarationError(
                "there are no ids to draw random tokens from",
                location="masking.random",
                hint="set it to 0",
            )


class MaskableRows(NamedTuple):
    """b rows of t tokens, in which some tokens may be masked."""

    ids: Ids
    """(b, t) token ids."""
    maskable: Bools
    """(b, t), False for special tokens and padding."""
    document_ids: Ids
    """(b, t) index of each token's document."""
    mask_counts: Ids | None = None
    """(b, t) how often each token was chosen before; None = never."""


class _Draws(NamedTuple):
    """Five independent uniform numbers in [0, 1) per position; each field is (b, t)."""

    choice: Floats
    """Chooses single tokens, and the number of tokens to choose in a row or document."""
    order: Floats
    """Orders the uniform spans of a document."""
    length: Floats
    """Length of a uniform span."""
    action: Floats
    """How a chosen token is corrupted."""
    word: Floats
    """Which random token replaces the token."""


class _MaskSelection(NamedTuple):
    chosen: Bools
    """(b, t), True for chosen tokens."""
    action: Floats
    """(b, t) as `_Draws.action`, but equal within a span."""


def apply_masking(
    rows: MaskableRows, mask_rate: float, row_seeds: Sequence[Sequence[int]], corruption: Corruption
) -> tuple[Ids, Bools]:
    """Choose about mask_rate x n of the n maskable tokens of each row, and corrupt them.

    mask_rate: in [0, 1]; 0 chooses no token. row_seeds: (b, k) integers >= 0, e.g. (seed, step,
    sample); they determine all randomness of a row. Returns the inputs (b, t) in which the chosen
    tokens are corrupted, and a bool array (b, t) of the chosen positions, which are the targets,
    including unchanged tokens. Raises DeclarationError for a rate outside [0, 1].
    """
    if not 0 <= mask_rate <= 1:
        raise DeclarationError(
            f"{mask_rate} is not a mask rate",
            location="masking.rate",
            hint="give a number from 0 to 1",
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
        selection = _MaskSelection((draws.choice < mask_rate) & rows.maskable, draws.action)
    chosen = selection.chosen
    action = selection.action if corruption.corrupt_whole_spans else draws.action
    is_masked = chosen & (action < corruption.mask_share)
    is_random = chosen & ~is_masked & (action < corruption.mask_share + corruption.random_share)
    inputs = rows.ids.copy()
    inputs[is_masked] = corruption.mask_id
    token_ids = corruption.random_token_ids
    inputs[is_random] = token_ids[(draws.word[is_random] * len(token_ids)).astype(np.int64)]
    return inputs, chosen


def _make_generator(row_seed: Sequence[int], stream: int) -> np.random.Philox:
    """Return one of the independent generators (stream 0, 1, ...) of a row."""
    return np.random.Philox(np.random.SeedSequence([*(int(part) for part in row_seed), stream]))


def _to_unit_interval(raw: NDArray[np.uint64]) -> Floats:
    """Map raw 64-bit draws to [0, 1), as numpy's Generator.random does."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _draw_uniforms(row_seeds: Sequence[Sequence[int]], width: int) -> _Draws:
    """Draw numbers position by position, so that padding a row does not change earlier draws."""
    num_fields = len(_Draws._fields)
    raw = np.empty((len(row_seeds), width, num_fields), np.uint64)
    for row, row_seed in zip(raw, row_seeds, strict=True):
        row[:] = _make_generator(row_seed, 0).random_raw(row.size).reshape(row.shape)
    return _Draws(*np.moveaxis(_to_unit_interval(raw), 2, 0))


def _select_geometric_spans(
    rows: MaskableRows,
    mask_rate: float,
    row_seeds: Sequence[Sequence[int]],
    draws: _Draws,
    min_masked: int,
) -> _MaskSelection:
    """Choose span after span in every row, until the number of chosen tokens reaches its goal.

    The start of a span of length l in a row of t tokens is uniform in -(l - 1), ..., t + l - 1.
    This chooses all positions equally often; long spans miss a short row more often than short
    spans. If spans overlap, the later span decides how the token is corrupted.
    """
    maskable, positions = rows.maskable, np.arange(rows.maskable.shape[1])
    row_ends = np.where(maskable, positions + 1, 0).max(1)
    binomial = ((draws.choice < mask_rate) & maskable).sum(1)
    goals = np.maximum(binomial, np.minimum(min_masked, maskable.sum(1)))
    chosen, action = np.zeros_like(maskable), draws.action.copy()
    generators = [_make_generator(row_seed, 1) for row_seed in row_seeds]
    active = np.nonzero(goals)[0]  # rows that have not reached their goal
    num_spans = 0
    spans = np.empty((len(row_seeds), SPANS_PER_DRAW, 3))
    while len(active):
        if num_spans % SPANS_PER_DRAW == 0:
            for row in active:
                raw = generators[row].random_raw(SPANS_PER_DRAW * 3)
                spans[row] = _to_unit_interval(raw).reshape(-1, 3)
        lengths, starts, actions = spans[active, num_spans % SPANS_PER_DRAW].T
        length = 1 + np.searchsorted(GEOMETRIC_LENGTH_CDF[:-1], lengths, side="right")
        start = np.floor(starts * (row_ends[active] + 2 * length - 1)) - (length - 1)
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
    """Choose the spans with the lowest values, separately in every group.

    A group is the n maskable tokens of one document in one row. At least max(1, floor(n x rate +
    u)) of them are chosen, u uniform in [0, 1). A token's value is the random order of its span
    times e^(how often the token was chosen before). Tokens with equal values are chosen together,
    so a span is chosen as a whole unless its tokens have different counts.
    """
    # Arrays over all maskable tokens: row, column, group, rank in the group.
    row, column = np.nonzero(rows.maskable)
    document = rows.document_ids[row, column]
    is_first = np.append(True, (np.diff(row) != 0) | (np.diff(document) != 0))
    group = np.cumsum(is_first) - 1
    first = np.nonzero(is_first)[0]  # of each group
    rank = np.arange(len(row)) - first[group]
    sizes = np.diff(np.append(first, len(row)))
    span_start = first[group] + _span_starts(draws.length[row, column], rank, group, sizes)
    values = draws.order[row, column][span_start]
    if rows.mask_counts is not None:
        counts = rows.mask_counts[row, column].astype(np.float64)
        lowest = np.minimum.reduceat(counts, first)
        # The largest double is about e^709.
        values = values * np.exp(np.minimum(counts - lowest[group], 700.0))
    values_by_group = np.full((len(first), sizes.max()), np.inf)
    values_by_group[group, rank] = values
    goals = np.floor(sizes * mask_rate + draws.choice[row, column][first])
    goals = np.maximum(1, goals).astype(np.int64)
    sorted_values = np.sort(values_by_group, axis=1)
    thresholds = sorted_values[np.arange(len(first)), np.minimum(goals, sizes) - 1]
    chosen, action = np.zeros_like(rows.maskable), draws.action.copy()
    chosen[row, column] = values <= thresholds[group]
    action[row, column] = draws.action[row, column][span_start]
    return _MaskSelection(chosen, action)


def _span_starts(
    draws: Floats, rank: NDArray[Any], group: NDArray[Any], sizes: NDArray[Any]
) -> NDArray[Any]:
    """Cut each group into spans from the left; return the rank of each token's span start.

    draws, rank, group: one entry per token. sizes: number of tokens per group.
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
