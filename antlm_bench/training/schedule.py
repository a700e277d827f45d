"""When what happens: a run's steps as a pure function of recipe and corpus size, so that resuming
needs no memory.

A step takes rows of one length out of one pass over the corpus. A pass is an epoch, or the part of
one that rows of that length lasted. Everything here is known before the first step is computed.
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

PROGRESS_BINS = (
    1000  # equal parts of a run; in each, a step is taken to be the same part of an epoch
)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, number 0, 1, ... It takes rows first .. first + rows - 1 of pass number
    `sweep`.

    causal: how many of them, from the front, are causal rows; the others are masked. shares: weight
    of the causal and of the masked loss. start: tokens seen before this step. switch: the optimizer
    sees another mixture than before.
    """

    index: int
    phase: int
    epoch_index: int
    first_row: int
    num_rows: int
    row_length: int
    num_causal_rows: int
    loss_weights: tuple[float, float]
    lr: float
    mask_rate: float
    tokens_before: int
    objective_switch: bool

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.row_length


def count_rows(num_tokens: int, row_length: int, offset: str) -> int:
    """Rows of one pass under a rule of `CorpusSpec.offset`. All passes are as long, whatever
    offsets are drawn.
    """
    if offset == "row":  # any row may begin up to length - 1 tokens later
        return num_tokens // row_length - 1
    return (num_tokens - (row_length - 1 if offset == "random" else 0)) // row_length


def plan_steps(recipe: Recipe, num_tokens: int) -> list[Step]:
    """Every step of a run over a corpus of so many tokens. DataError where the corpus does not fill
    one row.
    """
    batch, offset = recipe.batch, recipe.corpus.offset
    if count_rows(num_tokens, batch.max_row_length, offset) < 1:
        least = "the two rows that offset = 'row' needs, each" if offset == "row" else "one row"
        raise DataError(
            f"the corpus has {num_tokens:,} tokens, less than {least} of {batch.max_row_length}",
            hint="give a larger --corpus, or a smaller --scale",
        )
    total = count_steps(recipe, num_tokens)
    ends = _phase_ends(recipe, num_tokens, total)
    steps: list[Step] = []
    length, wanted, whole, sweep, first, left, phase, seen = 0, 0, 0, -1, 0, 0, 0, 0
    for number in range(total):
        share = number / total
        new = bisect(ends, number)
        if not left or batch.grows == "step":
            wanted = _row_length(recipe, (number + (batch.grows == "pass")) / total)
            whole = _rows_per_step(recipe, share, wanted)
        if not left or wanted != length:
            length, sweep, first, left = (
                wanted,
                sweep + 1,
                0,
                count_rows(num_tokens, wanted, offset),
            )
        rows = min(left, whole)
        causal = _count_causal_rows(rows, recipe.phase[new].causal_share)
        steps.append(
            Step(
                index=number,
                phase=new,
                epoch_index=sweep,
                first_row=first,
                num_rows=rows,
                row_length=length,
                num_causal_rows=causal,
                loss_weights=_loss_weights(rows, causal, recipe.phase[new].causal_share),
                lr=_step_learning_rate(recipe.optimizer, number, total, ends, new),
                mask_rate=_interpolate(recipe.objective.rate, recipe.objective.final_rate, share),
                tokens_before=seen,
                objective_switch=number > 0
                and recipe.phase[new].causal_share != recipe.phase[phase].causal_share,
            )
        )
        phase, first, left, seen = new, first + rows, left - rows, seen + rows * length
    return steps


def count_steps(recipe: Recipe, num_tokens: int) -> int:
    """Optimizer steps of the run. Epochs of one length and batch are counted exactly, those that
    grow nearly so.
    """
    if recipe.phase[0].steps is not None:
        return sum(phase.steps or 0 for phase in recipe.phase)
    return max(
        1,
        round(
            sum(phase.epochs or 0 for phase in recipe.phase)
            / float(_epoch_progress(recipe, num_tokens)[-1])
        ),
    )


def _epoch_progress(recipe: Recipe, num_tokens: int) -> Floats:
    """What part of an epoch an average step does, added up over PIECES of the run: (PIECES + 1,),
    rising from 0.

    The last step of a pass takes what is left, so that a step is one part in a whole number,
    however large a batch is.
    """
    paces = []
    for piece in range(PROGRESS_BINS):
        share = (piece + 0.5) / PROGRESS_BINS
        length = _row_length(recipe, share)
        rows = count_rows(num_tokens, length, recipe.corpus.offset)
        paces.append(1 / max(1, math.ceil(rows / _rows_per_step(recipe, share, length))))
    return np.concatenate([[0.0], np.cumsum(paces)]) / PROGRESS_BINS


def _phase_ends(recipe: Recipe, num_tokens: int, total: int) -> list[int]:
    """The step before which each phase ends; by construction the last one's is `total`."""
    lasts = np.cumsum([phase.epochs or phase.steps or 0 for phase in recipe.phase])
    if recipe.phase[0].steps is not None:
        return [int(last) for last in lasts]
    progress = _epoch_progress(recipe, num_tokens)
    shares = np.interp(
        lasts / lasts[-1] * progress[-1], progress, np.linspace(0, 1, PROGRESS_BINS + 1)
    )
    return [round(total * float(share)) for share in shares]


def _rows_per_step(recipe: Recipe, run_fraction: float, row_length: int) -> int:
    """Rows of a whole step, rounded as GPT-BERT's code does where the batch grows."""
    tokens = _interpolate(recipe.batch.tokens, recipe.batch.final_tokens, run_fraction)
    return max(
        1,
        int(tokens / row_length)
        if recipe.batch.final_tokens is None
        else round(tokens / row_length),
    )


def _row_length(recipe: Recipe, run_fraction: float) -> int:
    reached = [int(length) for begins, length in recipe.batch.longer if run_fraction >= begins]
    return reached[-1] if reached else recipe.batch.length


def _interpolate(start: float, end: float | None, fraction: float) -> float:
    return start if end is None else start + (end - start) * fraction


def _count_causal_rows(num_rows: int, causal_share: float) -> int:
    """Causal rows of a batch; an objective with a share gets a row as soon as there are two."""
    if causal_share in (0.0, 1.0) or num_rows < 2:
        return num_rows if causal_share >= 0.5 else 0
    return min(num_rows - 1, max(1, round(num_rows * causal_share)))


def _loss_weights(num_rows: int, num_causal_rows: int, causal_share: float) -> tuple[float, float]:
    """Weights of the two losses: the phase's, unless a batch is too small to hold both."""
    return (
        (causal_share, 1 - causal_share)
        if 0 < num_causal_rows < num_rows
        else (float(num_causal_rows > 0), float(num_causal_rows == 0))
    )


def _step_learning_rate(
    spec: OptimizerSpec, step: int, total: int, ends: Sequence[int], phase: int
) -> float:
    """The learning rate of a step: over the run, or over its phase."""
    if spec.restart == "phase":
        begins = ends[phase - 1] if phase else 0
        return learning_rate(spec, step - begins, ends[phase] - begins)
    return learning_rate(spec, step, total)


def learning_rate(spec: OptimizerSpec, step: int, total: int) -> float:
    """Return the rate of optimizer step 0, 1, ... of `total`, as the library's and LTG's schedulers
    compute it.

    Warm-up: int(share x total) steps that rise linearly from 0, so that the first step does not
    move. Then `schedule` from lr to final x lr over the remaining steps. The last int(cooldown x
    total) steps fall linearly to 0 from final x lr (from lr if the schedule is constant), wherever
    the schedule stood before.
    """
    warm = spec.warmup_steps if spec.warmup_steps is not None else int((spec.warmup or 0.0) * total)
    cool = int(spec.cooldown * total)
    if step < warm:
        return spec.lr * step / warm
    if step >= total - cool:
        return (
            spec.lr * (1.0 if spec.schedule == "constant" else spec.final) * (total - step) / cool
        )
    done = min(1.0, (step - warm) / max(1, total - warm))
    shape = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done, "constant": 1.0}[
        spec.schedule
    ]
    return spec.lr * (spec.final + (1 - spec.final) * shape)
