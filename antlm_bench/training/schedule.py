"""When what happens: a run's steps as a pure function of recipe and corpus size, so that resuming needs no memory.

A step takes rows of one length out of one pass over the corpus. A pass is an epoch, or the part of one that rows of
that length lasted. Everything here is known before the first step is computed.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.training.recipe import OptimizerSpec, Recipe
from antlm_bench.types import Floats

PIECES = 1000  # equal parts of a run; in each, a step is taken to be the same part of an epoch


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, number 0, 1, ... It takes rows first .. first + rows - 1 of pass number `sweep`.

    causal: how many of them, from the front, are causal rows; the others are masked. shares: weight of the causal and
    of the masked loss. start: tokens seen before this step. switch: the optimizer sees another mixture than before.
    """

    number: int
    phase: int
    sweep: int
    first: int
    rows: int
    length: int
    causal: int
    shares: tuple[float, float]
    lr: float
    mask_rate: float
    start: int
    switch: bool

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def rows_in(tokens: int, length: int, offset: str) -> int:
    """Rows of one pass under a rule of `CorpusSpec.offset`. All passes are as long, whatever offsets are drawn."""
    if offset == "row":  # any row may begin up to length - 1 tokens later
        return tokens // length - 1
    return (tokens - (length - 1 if offset == "random" else 0)) // length


def timeline(recipe: Recipe, tokens: int) -> list[Step]:
    """Every step of a run over a corpus of so many tokens. DataError where the corpus does not fill one row."""
    batch, offset = recipe.batch, recipe.corpus.offset
    if rows_in(tokens, batch.longest, offset) < 1:
        least = "the two rows that offset = 'row' needs, each" if offset == "row" else "one row"
        raise DataError(
            f"the corpus has {tokens:,} tokens, less than {least} of {batch.longest}",
            hint="give a larger --corpus, or a smaller --scale",
        )
    total = total_steps(recipe, tokens)
    ends = _phase_ends(recipe, tokens, total)
    steps: list[Step] = []
    length, wanted, whole, sweep, first, left, phase, seen = 0, 0, 0, -1, 0, 0, 0, 0
    for number in range(total):
        share = number / total
        new = bisect(ends, number)
        if not left or batch.grows == "step":
            wanted = _length(recipe, (number + (batch.grows == "pass")) / total)
            whole = _rows(recipe, share, wanted)
        if not left or wanted != length:
            length, sweep, first, left = wanted, sweep + 1, 0, rows_in(tokens, wanted, offset)
        rows = min(left, whole)
        causal = _split(rows, recipe.phase[new].causal_share)
        steps.append(
            Step(
                number=number,
                phase=new,
                sweep=sweep,
                first=first,
                rows=rows,
                length=length,
                causal=causal,
                shares=_shares(rows, causal, recipe.phase[new].causal_share),
                lr=_rate(recipe.optimizer, number, total, ends, new),
                mask_rate=_between(recipe.objective.rate, recipe.objective.final_rate, share),
                start=seen,
                switch=number > 0 and recipe.phase[new].causal_share != recipe.phase[phase].causal_share,
            )
        )
        phase, first, left, seen = new, first + rows, left - rows, seen + rows * length
    return steps


def total_steps(recipe: Recipe, tokens: int) -> int:
    """Optimizer steps of the run. Epochs of one length and batch are counted exactly, those that grow nearly so."""
    if recipe.phase[0].steps is not None:
        return sum(phase.steps or 0 for phase in recipe.phase)
    return max(1, round(sum(phase.epochs or 0 for phase in recipe.phase) / float(_progress(recipe, tokens)[-1])))


def _progress(recipe: Recipe, tokens: int) -> Floats:
    """What part of an epoch an average step does, added up over PIECES of the run: (PIECES + 1,), rising from 0.

    The last step of a pass takes what is left, so that a step is one part in a whole number, however large a batch is.
    """
    paces = []
    for piece in range(PIECES):
        share = (piece + 0.5) / PIECES
        length = _length(recipe, share)
        rows = rows_in(tokens, length, recipe.corpus.offset)
        paces.append(1 / max(1, math.ceil(rows / _rows(recipe, share, length))))
    return np.concatenate([[0.0], np.cumsum(paces)]) / PIECES


def _phase_ends(recipe: Recipe, tokens: int, total: int) -> list[int]:
    """The step before which each phase ends; by construction the last one's is `total`."""
    lasts = np.cumsum([phase.epochs or phase.steps or 0 for phase in recipe.phase])
    if recipe.phase[0].steps is not None:
        return [int(last) for last in lasts]
    progress = _progress(recipe, tokens)
    shares = np.interp(lasts / lasts[-1] * progress[-1], progress, np.linspace(0, 1, PIECES + 1))
    return [round(total * float(share)) for share in shares]


def _rows(recipe: Recipe, share: float, length: int) -> int:
    """Rows of a whole step, rounded as GPT-BERT's code does where the batch grows."""
    tokens = _between(recipe.batch.tokens, recipe.batch.final_tokens, share)
    return max(1, int(tokens / length) if recipe.batch.final_tokens is None else round(tokens / length))


def _length(recipe: Recipe, share: float) -> int:
    reached = [int(length) for begins, length in recipe.batch.longer if share >= begins]
    return reached[-1] if reached else recipe.batch.length


def _between(start: float, end: float | None, share: float) -> float:
    return start if end is None else start + (end - start) * share


def _split(rows: int, causal_share: float) -> int:
    """Causal rows of a batch; an objective with a share gets a row as soon as there are two."""
    if causal_share in (0.0, 1.0) or rows < 2:
        return rows if causal_share >= 0.5 else 0
    return min(rows - 1, max(1, round(rows * causal_share)))


def _shares(rows: int, causal: int, causal_share: float) -> tuple[float, float]:
    """Weights of the two losses: the phase's, unless a batch is too small to hold both."""
    return (causal_share, 1 - causal_share) if 0 < causal < rows else (float(causal > 0), float(causal == 0))


def _rate(spec: OptimizerSpec, number: int, total: int, ends: Sequence[int], phase: int) -> float:
    """The learning rate of a step: over the run, or over its phase."""
    if spec.restart == "phase":
        begins = ends[phase - 1] if phase else 0
        return learning_rate(spec, number - begins, ends[phase] - begins)
    return learning_rate(spec, number, total)


def learning_rate(spec: OptimizerSpec, step: int, total: int) -> float:
    """Return the rate of optimizer step 0, 1, ... of `total`, as the library's and LTG's schedulers compute it.

    Warm-up: int(share x total) steps that rise linearly from 0, so that the first step does not move. Then `schedule`
    from lr to final x lr over the remaining steps. The last int(cooldown x total) steps fall linearly to 0 from
    final x lr (from lr if the schedule is constant), wherever the schedule stood before.
    """
    warm = spec.warmup_steps if spec.warmup_steps is not None else int((spec.warmup or 0.0) * total)
    cool = int(spec.cooldown * total)
    if step < warm:
        return spec.lr * step / warm
    if step >= total - cool:
        return spec.lr * (1.0 if spec.schedule == "constant" else spec.final) * (total - step) / cool
    done = min(1.0, (step - warm) / max(1, total - warm))
    shape = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done, "constant": 1.0}[spec.schedule]
    return spec.lr * (spec.final + (1 - spec.final) * shape)
