"""Aggregate the seeds of finetuned tasks: as averaged cells of a run, or as summaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from antlm_bench import runs
from antlm_bench.comparison.join import describe_mixed_seeds, group_cells
from antlm_bench.metrics import get_metric_spec
from antlm_bench.metrics.classification import ONE_UNCOLLAPSED_NOTE, SeedSummary, summarize_seeds
from antlm_bench.printable import format_count
from antlm_bench.runs.suite_names import OTHER_LIMITS_PREFIX
from antlm_bench.statistics.intervals import Interval, t_interval_of_means
from antlm_bench.suites.classification_loader import SEEN_IN_TRAINING
from antlm_bench.types import Cell, Estimate, Run, Summary, finetune_method

CAVEAT_BEGINNINGS = ("incomplete: ", "limit: ", "all scored rows ", OTHER_LIMITS_PREFIX)
"""Beginnings of notes on the data that qualify a task's score."""


def summarize_seed_cells(run: Run, cells: Sequence[Cell], metric: str) -> SeedSummary:
    """Return the metric over the seeds of a task. Raises RunError for damaged predictions."""
    return summarize_seeds(
        [runs.read_predictions(run.path, cell) for cell in cells],
        metric,
        collapsed=[bool(cell.history.get("collapsed")) for cell in cells],
    )


def average_seeds(run: Run) -> Run:
    """Return the run with one cell per finetuned task instead of one per seed.

    The cell's value is the mean over seeds; its interval is over seeds and items. Raises RunError
    for damaged predictions.
    """
    averaged_cells = [cell for cell in run if cell.seed is None]
    for (suite, method), cells in group_seeds(run).items():
        first = cells[0]
        metric = first.summary.metric
        seeds = summarize_seed_cells(run, cells, metric)
        collapsed_seeds = [str(cell.seed) for cell in cells if cell.history.get("collapsed")]
        notes = merge_seed_notes(cells)
        if seeds.num_seeds > 1:
            notes.append(f"mean of {seeds.num_seeds} seeds, sd {100 * seeds.sd:.1f}")
        elif not first.is_frozen:
            notes.append("one seed")
        notes += seeds.notes
        if mixed := describe_mixed_seeds(cells):
            notes.append(mixed)
        if collapsed_seeds:
            notes.append(f"collapsed with seed {', '.join(collapsed_seeds)}")
        if 0 < len(collapsed_seeds) == len(cells) - 1:
            notes.append(ONE_UNCOLLAPSED_NOTE)
        if any(cell.settings.get("select") == "valid" for cell in cells):
            notes.append(
                "epochs were selected on the scored examples, as BabyLM's official recipe does"
            )
        summary = Summary(
            suite,
            method,
            metric,
            macro=(),
            headline=seeds.mean,
            views={},
            groups=(),
            notes=tuple(notes),
        )
        averaged_cells.append(Cell(suite, method, first.key, first.settings, summary, first.digest))
    return replace(run, cells=tuple(averaged_cells))


def average_trainings(values: Sequence[float], metric: str) -> tuple[float, Interval | None]:
    """Return the mean of the scores of trainings that differ in their seed, and its 95% interval.

    The trainings are the sample, and the items are fixed: t interval with K - 1 degrees of freedom,
    within the range of the metric. None if all values are equal, or for a single one.
    """
    weights = np.full(len(values), 1 / len(values))
    mean = float(weights @ np.array(values))
    if len(set(values)) < 2:
        return mean, None
    low, high = t_interval_of_means(np.array(values), weights)
    lowest, highest = get_metric_spec(metric).value_range
    return mean, Interval(max(low, lowest), min(high, highest))


def merge_seed_notes(cells: Sequence[Cell]) -> list[str]:
    """Return the notes on the seeds of a task. A note that not all seeds have names its seeds.

    "shown as 0" is true of a seed with an undefined metric, but not of the mean over seeds.
    """
    seeds_by_note: dict[str, list[str]] = {}
    for cell in cells:
        for note in cell.summary.notes:
            seeds_by_note.setdefault(note, []).append(str(cell.seed))
    return [
        note
        if len(seeds) == len(cells)
        else f"{note.replace('shown as 0', 'counts as 0 in the mean')} (seed {', '.join(seeds)})"
        for note, seeds in seeds_by_note.items()
    ]


@dataclass(frozen=True, slots=True)
class FinetunedTaskSummary:
    """Summary of one task under one attention mask over its seeds. Values are fractions."""

    task: str
    """Full name of the task: "glue-2025.rte"."""
    attention: str
    metric: str
    mean: Estimate
    """Mean over seeds; its interval is over seeds and items."""
    sd: float | None
    """Standard deviation over seeds. None if there is one seed."""
    worst: float | None
    """Value of the worst seed. None if there is one seed."""
    majority: float
    """Value of always predicting the most frequent class."""
    num_seeds: int
    flags: tuple[str, ...]
    """Caveats of the mean."""


def group_seeds(run: Run) -> dict[tuple[str, str], list[Cell]]:
    """Return (suite, method) -> its cells with seeds, sorted by seed."""
    return {
        key: [cell for cell in cells if cell.seed is not None]
        for key, cells in group_cells(run).items()
        if any(cell.seed is not None for cell in cells)
    }


def summarize_finetuned_tasks(run: Run) -> Iterator[FinetunedTaskSummary]:
    """Yield one summary per task and attention. Raises RunError for damaged predictions."""
    for (suite, method), cells in group_seeds(run).items():
        metric = cells[0].summary.metric
        seeds = summarize_seed_cells(run, cells, metric)
        has_several_seeds = seeds.num_seeds > 1
        yield FinetunedTaskSummary(
            task=suite,
            attention=method.removeprefix("finetune-"),
            metric=metric,
            mean=seeds.mean,
            sd=seeds.sd if has_several_seeds else None,
            worst=seeds.low if has_several_seeds else None,
            majority=cells[0].summary.views["majority"].value,
            num_seeds=seeds.num_seeds,
            flags=(*_collect_flags(cells), *seeds.notes),
        )


def describe_collapse(cells: Sequence[Cell]) -> str:
    """Return how many seeds of a task collapsed, and why; "" if none did."""
    collapsed = [cell for cell in cells if cell.history.get("collapsed")]
    if not collapsed:
        return ""
    reasons = dict.fromkeys(
        str(reason) for cell in collapsed for reason in cell.history["collapsed"]
    )
    count = "" if cells[0].is_frozen else f"{len(collapsed)} of {len(cells)} seeds "
    interval = f"; {ONE_UNCOLLAPSED_NOTE}" if 0 < len(collapsed) == len(cells) - 1 else ""
    return f"{count}collapsed ({'; '.join(reasons)}){interval}"


def _collect_flags(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the caveats of a task's mean over these cells, which are its seeds."""
    if mixed := describe_mixed_seeds(cells):
        yield mixed
    if collapse := describe_collapse(cells):
        yield collapse
    num_cut = max(cell.summary.headline.flags.get("cut", 0) for cell in cells)
    if num_cut:
        yield f"{format_count(num_cut, 'text')} cut"
    num_train_cut = max(cell.history.get("cut", {}).get("train", 0) for cell in cells)
    if num_train_cut:
        yield f"{format_count(num_train_cut, 'training text')} cut"
    if any(cell.settings.get("select") == "valid" for cell in cells):
        yield "selected on the scored examples"
    causal_methods = (finetune_method("causal"), finetune_method("causal", frozen=True))
    causal_cells = [cell for cell in cells if cell.method in causal_methods]
    if any(cell.history.get("pooling") == "first" for cell in causal_cells):
        yield "position 0 of a causal model, which has seen the first token only"
    if any("substitute" in note for note in cells[0].summary.notes):
        yield "substitute train set"
    yield from dict.fromkeys(
        note
        for cell in cells
        for note in cell.summary.notes
        if SEEN_IN_TRAINING in note or note.startswith(CAVEAT_BEGINNINGS)
    )
