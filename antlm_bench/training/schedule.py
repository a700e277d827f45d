"""Plan all steps of a run from its recipe and the size of its corpus.

All rows of a step have one length and belong to one pass over the corpus. A pass is an epoch; if
the row length changes within an epoch, a new pass begins. The plan is known before the first step,
so a resumed run needs only the number of the steps that it has done.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.printable import format_count
from antlm_bench.training.recipe import OptimizerSpec, Recipe
from antlm_bench.types import Floats

# A run is cut into this many equal bins to integrate how much of an epoch its steps cover. Batch
# size and row length count as constant within a bin.
MAX_STEPS = 1_000_000  # all are planned before the first, about 400 bytes each
PROGRESS_BINS = 1000
MILLION = 1_000_000
# BabyLM's checkpoints in words seen: every 1M up to 10M, every 10M up to 100M, every 100M up to 1B.
MILESTONES = (
    *(n * scale for scale in (MILLION, 10 * MILLION, 100 * MILLION) for n in range(1, 10)),
    1000 * MILLION,
)
# At its end, a run has reached a milestone if at most this share of the words is missing: ten
# passes over "10M words" are 99.9M words. BabyLM has no such rule.
MILESTONE_TOLERANCE = 0.02
TOKENS_PER_WORD = 1.4
"""Approximate number of tokens per word of BabyLM's corpus, with a BPE vocabulary of 16,000. It is
assumed for a corpus whose tokenizer does not exist yet."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step."""

    index: int
    """Index of the step in the run, from 0."""
    phase: int
    """Index into Recipe.phase."""
    pass_index: int
    """Index of the pass over the corpus, from 0."""
    first_row: int
    """The step has rows first_row .. first_row + num_rows - 1 of the pass."""
    num_rows: int
    row_length: int
    """Tokens per row."""
    num_causal_rows: int
    """Number of causal rows. They come first; the others are masked."""
    loss_weights: tuple[float, float]
    """Weights of the mean causal and the mean masked loss."""
    lr: float
    mask_rate: float
    """Share of the tokens of masked rows that are masked."""
    tokens_before: int
    """Tokens in all earlier steps."""
    objective_switch: bool
    """Whether the share of causal rows that the phase declares differs from the previous step's."""

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.row_length


def count_rows(num_tokens: int, row_length: int, offset: str) -> int:
    """Return the number of rows of every pass. offset: see `CorpusSpec.offset`."""
    if offset == "row":  # each row begins up to row_length - 1 tokens later
        return num_tokens // row_length - 1
    max_offset = row_length - 1 if offset == "random" else 0
    return (num_tokens - max_offset) // row_length


def plan_steps(recipe: Recipe, num_tokens: int) -> list[Step]:
    """Return every step of a run.

    Raises DataError if the corpus does not fill one row, and for more than MAX_STEPS steps.
    """
    batch, offset = recipe.batch, recipe.corpus.offset
    if count_rows(num_tokens, batch.max_row_length, offset) < 1:
        minimum = "the two rows that offset = 'row' needs, each" if offset == "row" else "one row"
        raise DataError(
            f"the corpus has {format_count(num_tokens, 'token')}, less than {minimum} of "
            f"{batch.max_row_length}",
            hint="give a larger --corpus, or a smaller --scale",
        )
    total = count_steps(recipe, num_tokens)
    if total > MAX_STEPS:
        raise DataError(
            f"the recipe takes {total:,} optimizer steps, more than {MAX_STEPS:,}",
            hint="set fewer epochs or steps, or a larger batch",
        )
    phase_ends = _phase_ends(recipe, num_tokens, total)
    steps: list[Step] = []
    pass_index, first_row, rows_left, tokens_before = -1, 0, 0, 0
    row_length = next_row_length = max_rows = 0
    for index in range(total):
        fraction, phase = index / total, bisect(phase_ends, index)
        if not rows_left or batch.grows == "step":
            # As in GPT-BERT's code, a pass looks up the length at index + 1.
            length_fraction = (index + 1) / total if batch.grows == "pass" else fraction
            next_row_length = _row_length(recipe, length_fraction)
            max_rows = _rows_per_step(recipe, fraction, next_row_length)
        if not rows_left or next_row_length != row_length:  # a new pass begins
            row_length, pass_index, first_row = next_row_length, pass_index + 1, 0
            rows_left = count_rows(num_tokens, row_length, offset)
        causal_share = recipe.phase[phase].causal_share
        num_rows = min(rows_left, max_rows)
        num_causal = _count_causal_rows(num_rows, causal_share)
        step = Step(
            index=index,
            phase=phase,
            pass_index=pass_index,
            first_row=first_row,
            num_rows=num_rows,
            row_length=row_length,
            num_causal_rows=num_causal,
            loss_weights=_loss_weights(num_rows, num_causal, causal_share),
            lr=_step_learning_rate(recipe.optimizer, index, phase_ends, phase),
            mask_rate=_interpolate(recipe.objective.rate, recipe.objective.final_rate, fraction),
            tokens_before=tokens_before,
            objective_switch=bool(steps)
            and causal_share != recipe.phase[steps[-1].phase].causal_share,
        )
        steps.append(step)
        first_row, rows_left = first_row + num_rows, rows_left - num_rows
        tokens_before += step.num_tokens
    return steps


def list_milestones(
    recipe: Recipe, words_before: float, words_seen: float, at_end: bool
) -> list[int]:
    """Return the milestones, in words, that are reached after `words_before` words.

    at_end: `words_seen` is the number at the end of the run (see MILESTONE_TOLERANCE).
    """
    if at_end:
        words_seen /= 1 - MILESTONE_TOLERANCE
    milestones = sorted(set(recipe.milestones)) or MILESTONES
    return [words for words in milestones if words_before < words <= words_seen]


def milestone_name(words: int) -> str:
    """Return the name of the checkpoint of a milestone: chck_10M, or chck_100k."""
    return f"chck_{words // MILLION}M" if words % MILLION == 0 else f"chck_{words // 1000}k"


def predict_milestones(recipe: Recipe, corpus_words: int) -> list[str]:
    """Return the names of the milestones that a run on a corpus will write, without `main`.

    corpus_words: words to train on, without those held out. A run counts the words of its rows.
    They are predicted from the share of the corpus that its steps read; rows that are cut at random
    (batch.short) have half their length on average. So the last milestone can be wrong if the run
    ends within about 1% of it.
    """
    num_tokens = round(corpus_words * TOKENS_PER_WORD)
    last = plan_steps(recipe, num_tokens)[-1]
    share_read = (last.tokens_before + last.num_tokens) / num_tokens
    words_seen = corpus_words * share_read * (1 - recipe.batch.short / 2)
    return [milestone_name(words) for words in list_milestones(recipe, 0, words_seen, at_end=True)]


def describe_plan(recipe: Recipe, num_tokens: int) -> dict[str, str | int]:
    """Return the tokens and steps of a run on a corpus of this size, for a reader.

    The key "warm-up" is there if the warm-up is longer than the run or a phase of its own schedule.
    """
    steps = plan_steps(recipe, num_tokens)
    total = steps[-1].tokens_before + steps[-1].num_tokens
    plan: dict[str, str | int] = {
        "tokens": f"{num_tokens:,} per epoch, {total:,} in all ({total / num_tokens:,.1f} epochs)",
        "steps": len(steps),
    }
    highest = max(step.lr for step in steps)
    warmup = recipe.optimizer.warmup_steps or 0
    schedule_steps = len(steps)
    if recipe.optimizer.restart == "phase":
        schedule_steps = max(Counter(step.phase for step in steps).values())
    if warmup >= schedule_steps:
        plan["warm-up"] = (
            f"{format_count(warmup, 'step')}, but there are {schedule_steps:,}: the learning rate "
            "reaches "
            f"{highest:.3g}, not {recipe.optimizer.lr:.3g}"
        )
    return plan


def count_steps(recipe: Recipe, num_tokens: int) -> int:
    """Return the number of optimizer steps of a run.

    For phases in epochs with a growing batch or row length the run covers nearly these epochs, else
    exactly.
    """
    if recipe.phase[0].steps is not None:
        return sum(phase.steps or 0 for phase in recipe.phase)
    epochs = sum(phase.epochs or 0 for phase in recipe.phase)
    return max(1, round(epochs / float(_epoch_progress(recipe, num_tokens)[-1])))


def _epoch_progress(recipe: Recipe, num_tokens: int) -> Floats:
    """Return the cumulative sum over bins of the share of an epoch that a step covers.

    (PROGRESS_BINS + 1,), from 0 to the mean share per step. Times the number of steps it gives the
    epochs done. A step covers 1 / (steps per pass), and a pass has a whole number of steps, because
    its last step has the remaining rows.
    """
    epochs_per_step = []  # for each bin
    for index in range(PROGRESS_BINS):
        fraction = (index + 0.5) / PROGRESS_BINS
        length = _row_length(recipe, fraction)
        rows = count_rows(num_tokens, length, recipe.corpus.offset)
        steps_per_pass = math.ceil(rows / _rows_per_step(recipe, fraction, length))
        epochs_per_step.append(1 / max(1, steps_per_pass))
    return np.concatenate([[0.0], np.cumsum(epochs_per_step)]) / PROGRESS_BINS


def _phase_ends(recipe: Recipe, num_tokens: int, total: int) -> list[int]:
    """Return for each phase the index of the first step after it; the last entry is `total`."""
    ends = np.cumsum([phase.epochs or phase.steps or 0 for phase in recipe.phase])
    if recipe.phase[0].steps is not None:
        return [int(end) for end in ends]
    progress = _epoch_progress(recipe, num_tokens)
    bins = np.linspace(0, 1, PROGRESS_BINS + 1)
    fractions = np.interp(ends / ends[-1] * progress[-1], progress, bins)
    return [round(total * float(fraction)) for fraction in fractions]


def _rows_per_step(recipe: Recipe, run_fraction: float, row_length: int) -> int:
    """Return the maximum rows of a step. A growing batch is rounded as in GPT-BERT's code."""
    tokens = _interpolate(recipe.batch.tokens, recipe.batch.final_tokens, run_fraction)
    rows = tokens / row_length
    return max(1, int(rows) if recipe.batch.final_tokens is None else round(rows))


def _row_length(recipe: Recipe, run_fraction: float) -> int:
    lengths = [int(length) for start, length in recipe.batch.longer if run_fraction >= start]
    return lengths[-1] if lengths else recipe.batch.length


def _interpolate(start: float, end: float | None, fraction: float) -> float:
    return start if end is None else start + (end - start) * fraction


def _count_causal_rows(num_rows: int, causal_share: float) -> int:
    """Return the number of causal rows. With two or more rows, each objective has at least one."""
    if causal_share in (0.0, 1.0) or num_rows < 2:
        return num_rows if causal_share >= 0.5 else 0
    return min(num_rows - 1, max(1, round(num_rows * causal_share)))


def _loss_weights(num_rows: int, num_causal_rows: int, causal_share: float) -> tuple[float, float]:
    """Return the weights of the causal and the masked loss.

    They are the shares of the phase, or 1 and 0 if all rows have the same objective.
    """
    if 0 < num_causal_rows < num_rows:
        return causal_share, 1 - causal_share
    return float(num_causal_rows > 0), float(num_causal_rows == 0)


def _step_learning_rate(
    spec: OptimizerSpec, step: int, phase_ends: Sequence[int], phase: int
) -> float:
    """Return the learning rate of a step. Its schedule covers the phase or the whole run."""
    if spec.restart == "phase":
        start = phase_ends[phase - 1] if phase else 0
        return learning_rate(spec, step - start, phase_ends[phase] - start)
    return learning_rate(spec, step, phase_ends[-1])


def learning_rate(spec: OptimizerSpec, step: int, total: int) -> float:
    """Return the learning rate of step 0, 1, ... of `total` steps.

    The rules are those of the schedulers of transformers and LTG. Warm-up: int(share x total) steps
    rise linearly from 0, so the first step changes no weight. Then `schedule` goes from lr to final
    x lr over the remaining steps. In the last int(cooldown x total) steps the rate falls linearly
    to 0; it starts at final x lr (at lr if the schedule is constant), which need not be the value
    of the schedule before.
    """
    warmup = spec.warmup_steps
    if warmup is None:
        warmup = int((spec.warmup or 0.0) * total)
    cooldown = int(spec.cooldown * total)
    if step < warmup:
        return spec.lr * step / warmup
    if step >= total - cooldown:
        cooldown_start = 1.0 if spec.schedule == "constant" else spec.final
        return spec.lr * cooldown_start * (total - step) / cooldown
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    factors = {
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
        "linear": 1 - progress,
        "constant": 1.0,
    }
    return spec.lr * (spec.final + (1 - spec.final) * factors[spec.schedule])
