"""Plan the steps of a run as a pure function of recipe and corpus size.

A step takes rows of one length out of one pass over the corpus. A pass is an epoch, or the part of
one with rows of that length. Everything is known before the first step, so resuming needs no
memory.
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
    1000  # equal parts of a run, in which every step counts as the same part of an epoch
)


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    index: int
    """0, 1, ..."""
    phase: int
    """Index into Recipe.phase."""
    epoch_index: int
    """Number of the pass over the corpus, from 0."""
    first_row: int
    """The step takes rows first_row .. first_row + num_rows - 1 of the pass."""
    num_rows: int
    row_length: int
    """In tokens."""
    num_causal_rows: int
    """The first rows of the step; the others are masked."""
    loss_weights: tuple[float, float]
    """Of the causal and of the masked loss."""
    lr: float
    mask_rate: float
    tokens_before: int
    """Tokens seen before this step."""
    objective_switch: bool
    """Whether the mixture of objectives differs from that of the step before."""

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.row_length


def count_rows(num_tokens: int, row_length: int, offset: str) -> int:
    """Return the rows of one pass under a rule of `CorpusSpec.offset`, equal for all passes."""
    if offset == "row":  # any row may begin up to length - 1 tokens later
        return num_tokens // row_length - 1
    return (num_tokens - (row_length - 1 if offset == "random" else 0)) // row_length


def plan_steps(recipe: Recipe, num_tokens: int) -> list[Step]:
    """Return every step of a run. Raises DataError if the corpus does not fill one row."""
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
    length, next_length, full_rows = 0, 0, 0
    epoch_index, first_row, rows_left, tokens = -1, 0, 0, 0
    for index in range(total):
        fraction, phase = index / total, bisect(ends, index)
        if not rows_left or batch.grows == "step":
            next_length = _row_length(recipe, (index + (batch.grows == "pass")) / total)
            full_rows = _rows_per_step(recipe, fraction, next_length)
        if not rows_left or next_length != length:
            length, epoch_index, first_row = next_length, epoch_index + 1, 0
            rows_left = count_rows(num_tokens, length, offset)
        causal_share = recipe.phase[phase].causal_share
        num_rows = min(rows_left, full_rows)
        num_causal = _count_causal_rows(num_rows, causal_share)
        step = Step(
            index=index,
            phase=phase,
            epoch_index=epoch_index,
            first_row=first_row,
            num_rows=num_rows,
            row_length=length,
            num_causal_rows=num_causal,
            loss_weights=_loss_weights(num_rows, num_causal, causal_share),
            lr=_step_learning_rate(recipe.optimizer, index, total, ends, phase),
            mask_rate=_interpolate(recipe.objective.rate, recipe.objective.final_rate, fraction),
            tokens_before=tokens,
            objective_switch=bool(steps)
            and causal_share != recipe.phase[steps[-1].phase].causal_share,
        )
        steps.append(step)
        first_row, rows_left = first_row + num_rows, rows_left - num_rows
        tokens += step.num_tokens
    return steps


def count_steps(recipe: Recipe, num_tokens: int) -> int:
    """Return the number of optimizer steps: exact for epochs of one row length and batch size,
    nearly so if they grow.
    """
    if recipe.phase[0].steps is not None:
        return sum(phase.steps or 0 for phase in recipe.phase)
    epochs = sum(phase.epochs or 0 for phase in recipe.phase)
    return max(1, round(epochs / float(_epoch_progress(recipe, num_tokens)[-1])))


def _epoch_progress(recipe: Recipe, num_tokens: int) -> Floats:
    """Return the parts of an epoch that an average step covers, cumulated over the run.

    (PROGRESS_BINS + 1,), rising from 0. The last step of a pass takes the rows that are left, so a
    step is one part in a whole number, however large a batch is.
    """
    epochs_per_step = []
    for index in range(PROGRESS_BINS):
        fraction = (index + 0.5) / PROGRESS_BINS
        length = _row_length(recipe, fraction)
        rows = count_rows(num_tokens, length, recipe.corpus.offset)
        steps_per_pass = math.ceil(rows / _rows_per_step(recipe, fraction, length))
        epochs_per_step.append(1 / max(1, steps_per_pass))
    return np.concatenate([[0.0], np.cumsum(epochs_per_step)]) / PROGRESS_BINS


def _phase_ends(recipe: Recipe, num_tokens: int, total: int) -> list[int]:
    """Return the step before which each phase ends; the last one is `total`."""
    ends = np.cumsum([phase.epochs or phase.steps or 0 for phase in recipe.phase])
    if recipe.phase[0].steps is not None:
        return [int(end) for end in ends]
    progress = _epoch_progress(recipe, num_tokens)
    bins = np.linspace(0, 1, PROGRESS_BINS + 1)
    fractions = np.interp(ends / ends[-1] * progress[-1], progress, bins)
    return [round(total * float(fraction)) for fraction in fractions]


def _rows_per_step(recipe: Recipe, run_fraction: float, row_length: int) -> int:
    """Return the rows of a full step, rounded as in GPT-BERT's code if the batch grows."""
    tokens = _interpolate(recipe.batch.tokens, recipe.batch.final_tokens, run_fraction)
    rows = tokens / row_length
    return max(1, int(rows) if recipe.batch.final_tokens is None else round(rows))


def _row_length(recipe: Recipe, run_fraction: float) -> int:
    lengths = [int(length) for start, length in recipe.batch.longer if run_fraction >= start]
    return lengths[-1] if lengths else recipe.batch.length


def _interpolate(start: float, end: float | None, fraction: float) -> float:
    return start if end is None else start + (end - start) * fraction


def _count_causal_rows(num_rows: int, causal_share: float) -> int:
    """Return the causal rows of a batch; both objectives get a row if there are two rows."""
    if causal_share in (0.0, 1.0) or num_rows < 2:
        return num_rows if causal_share >= 0.5 else 0
    return min(num_rows - 1, max(1, round(num_rows * causal_share)))


def _loss_weights(num_rows: int, num_causal_rows: int, causal_share: float) -> tuple[float, float]:
    """Return the weights of the two losses: the phase's, unless the batch holds one objective."""
    if 0 < num_causal_rows < num_rows:
        return causal_share, 1 - causal_share
    return float(num_causal_rows > 0), float(num_causal_rows == 0)


def _step_learning_rate(
    spec: OptimizerSpec, step: int, total: int, ends: Sequence[int], phase: int
) -> float:
    """Return the learning rate of a step: over the run, or over its phase."""
    if spec.restart == "phase":
        start = ends[phase - 1] if phase else 0
        return learning_rate(spec, step - start, ends[phase] - start)
    return learning_rate(spec, step, total)


def learning_rate(spec: OptimizerSpec, step: int, total: int) -> float:
    """Return the rate of optimizer step 0, 1, ... of `total`, as the schedulers of transformers and
    LTG compute it.

    Warm-up: int(share x total) steps that rise linearly from 0, so the first step moves nothing.
    Then `schedule` from lr to final x lr over the remaining steps. The last int(cooldown x total)
    steps fall linearly to 0 from final x lr (from lr if the schedule is constant), whatever the
    schedule reached before.
    """
    warmup = spec.warmup_steps
    if warmup is None:
        warmup = int((spec.warmup or 0.0) * total)
    cooldown = int(spec.cooldown * total)
    if step < warmup:
        return spec.lr * step / warmup
    if step >= total - cooldown:
        top = 1.0 if spec.schedule == "constant" else spec.final
        return spec.lr * top * (total - step) / cooldown
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    shapes = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done, "constant": 1.0}
    return spec.lr * (spec.final + (1 - spec.final) * shapes[spec.schedule])
