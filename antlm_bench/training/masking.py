"""Which tokens a masked objective hides, and what stands in their place. Pure numpy, keyed by sample.

Selection and corruption use draws that belong to a position of a sample: a row comes out the same whatever batch it
stands in and however far that is padded. The published laws differ in the lengths of spans only, so that hiding
single tokens is hiding spans of length 1.
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

# P(length = 1, 2, ...) of a span. LTG-BERT (arXiv 2303.09859) draws Geometric(1/3) modulo 10; without the zeros, which
# hide nothing, that is P(l) ~ (2/3)^l for l = 1..9 exactly. GPT-BERT (arXiv 2410.24159): 1, 2 or 3, equally probable.
SPANS: dict[str, tuple[float, ...]] = {
    "token": (1.0,),
    "geometric": tuple((2 / 3) ** length for length in range(1, 10)),
    "uniform": (1.0, 1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Corruption:
    """What becomes of a chosen token: the mask, a random word, or nothing (BERT, arXiv 1810.04805: 80/10/10).

    mask_id: the mask's id. words: (w,) the ids a random word is drawn from, specials excluded. spans: a law of SPANS.
    masked, random: shares of the chosen; the rest is kept. by_span: one decision for a whole span (LTG-BERT, GPT-BERT),
    else one per token; random words are drawn for each token either way. Raises DeclarationError.
    """

    mask_id: int
    words: NDArray[Any]
    spans: str = "token"
    by_span: bool = True
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if self.spans not in SPANS:
            place, hint = "masking.spans", f"one of {', '.join(SPANS)}"
            raise DeclarationError(f"unknown law of spans {self.spans!r}", place=place, hint=hint)
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1 + 1e-9:
            message = f"{self.masked} masked and {self.random} random are no shares of one whole"
            raise DeclarationError(message, place="masking", hint="both at least 0, together at most 1")
        if self.random > 0 and len(self.words) == 0:
            raise DeclarationError("no words to draw random tokens from", place="masking.random", hint="set it to 0")


class _Draws(NamedTuple):
    """Uniform numbers in [0, 1), (B, T) each: one of every kind per position of a sample."""

    number: Floats
    order: Floats
    length: Floats
    action: Floats
    word: Floats


def hide(
    rows: Ids, maskable: Bools, segments: Ids, rate: float, keys: Sequence[Sequence[int]], corruption: Corruption
) -> tuple[Ids, Bools]:
    """Choose about rate x n of the n maskable tokens of each row, and corrupt them.

    rows: (B, T) ids. maskable: (B, T), False for specials and padding. segments: (B, T) which document a token belongs
    to; a span never leaves its own. rate: in [0, 1]. keys: (B, k), e.g. (seed, step, sample), integers >= 0: all the
    randomness of a row. Returns (inputs (B, T) with the chosen corrupted, chosen (B, T)); every chosen position is a
    target, also where its token was kept. Raises DeclarationError for a rate outside [0, 1].

    How many are chosen is Binomial(n, rate), as in LTG-BERT: possibly none, and then the row has no target. Spans start
    at positions drawn without replacement, run to the right, end at their drawn length, at a token that is not
    maskable, already chosen or of another segment, and the last is cut where the count is reached.
    """
    if not 0 <= rate <= 1:
        raise DeclarationError(f"a mask rate of {rate}", place="masking.rate", hint="a number from 0 to 1")
    draws = _drawn(keys, rows.shape[1])
    goals = ((draws.number < rate) & maskable).sum(1)
    begun = _choose(maskable, segments, goals, draws, np.asarray(SPANS[corruption.spans]))
    chosen = begun >= 0
    action = draws.action
    if corruption.by_span:
        action = np.take_along_axis(action, np.maximum(begun, 0), 1)
    masked = chosen & (action < corruption.masked)
    replaced = chosen & ~masked & (action < corruption.masked + corruption.random)
    inputs = rows.copy()
    inputs[masked] = corruption.mask_id
    inputs[replaced] = corruption.words[(draws.word[replaced] * len(corruption.words)).astype(np.int64)]
    return inputs, chosen


def _drawn(keys: Sequence[Sequence[int]], width: int) -> _Draws:
    """Numbered by position first, so that padding a row appends draws and changes none."""
    kinds = len(_Draws._fields)
    raw = np.empty((len(keys), width * kinds), np.uint64)
    for row, key in zip(raw, keys, strict=True):
        row[:] = np.random.Philox(np.random.SeedSequence([int(part) for part in key])).random_raw(width * kinds)
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    return _Draws(*np.moveaxis(uniform.reshape(len(keys), width, kinds), 2, 0))


def _choose(maskable: Bools, segments: Ids, goals: NDArray[Any], draws: _Draws, law: Floats) -> NDArray[Any]:
    """(B, T): where the span that hides a position began, -1 where nothing does; goals (B,) positions per row.

    All rows go through their starts in step, the n-th start of every row at a time.
    """
    many, width = maskable.shape
    begun = np.full((many, width + len(law)), -1)  # spans may look past the end of the row, where all is taken
    free = np.zeros(begun.shape, np.bool_)
    free[:, :width] = maskable
    document = np.zeros(begun.shape, segments.dtype)
    document[:, :width] = segments
    order = np.argsort(np.where(maskable, draws.order, 2.0), axis=1, kind="stable")
    lengths = 1 + np.searchsorted(np.cumsum(law)[:-1] / law.sum(), draws.length, side="right")
    reach = np.arange(len(law))
    left = goals.copy()
    for rank in range(width):
        (active,) = np.nonzero(left)
        if not len(active):
            break
        start = order[active, rank]
        row, span = active[:, None], start[:, None] + reach
        fits = free[row, span] & (document[row, span] == document[active, start][:, None])
        fits &= reach < np.minimum(lengths[active, start], left[active])[:, None]
        fits = np.logical_and.accumulate(fits, axis=1)
        hidden = np.broadcast_to(row, span.shape)[fits], span[fits]
        free[hidden] = False
        begun[hidden] = np.broadcast_to(start[:, None], span.shape)[fits]
        left[active] -= fits.sum(1)
    return begun[:, :width]
