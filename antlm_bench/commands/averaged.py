"""A run whose finetuned tasks have one cell each, their seeds averaged: what stands beside scored suites."""

from __future__ import annotations

from dataclasses import replace

from antlm_bench import metrics, runs
from antlm_bench.commands.finetuned import of_seeds
from antlm_bench.types import Cell, Run, Summary


def averaged(run: Run) -> Run:
    """The run with one cell per finetuned task instead of one per seed: the mean, its interval over seeds and items."""
    cells = [cell for cell in run if cell.seed is None]
    for (suite, method), seeds in of_seeds(run).items():
        metric = seeds[0].summary.metric
        spread = metrics.across_seeds([runs.predictions(run.path, cell) for cell in seeds], metric)
        fallen = [str(cell.seed) for cell in seeds if cell.history.get("collapsed")]
        notes = [note for cell in seeds[:1] for note in cell.summary.notes]
        notes += [f"mean of {spread.seeds} seeds, sd {100 * spread.sd:.1f}"] if spread.seeds > 1 else ["one seed"]
        notes += [f"collapsed with seed {', '.join(fallen)}"] if fallen else []
        if any(cell.settings.get("select") == "valid" for cell in seeds):
            notes.append("epochs were selected on the scored examples, as BabyLM's official recipe does")
        summary = Summary(suite, method, metric, (), spread.mean, {}, (), tuple(notes))
        cells.append(Cell(suite, method, seeds[0].key, seeds[0].settings, summary, seeds[0].digest))
    return replace(run, cells=tuple(cells))
