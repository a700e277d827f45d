"""A run whose finetuned tasks have one cell each, their seeds averaged: what stands beside scored
suites.

TODO The table of what was finetuned: a row per task and attention, its seeds together; derived
without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from antlm_bench import runs
from antlm_bench.metrics.classification import summarize_seeds
from antlm_bench.suites.classification_loader import SEEN_IN_TRAINING
from antlm_bench.types import Cell, Run, Summary, finetune_method


def average_seeds(run: Run) -> Run:
    """The run with one cell per finetuned task instead of one per seed: the mean, its interval over
    seeds and items.
    """
    cells = [cell for cell in run if cell.seed is None]
    for (suite, method), seeds in group_seeds(run).items():
        metric = seeds[0].summary.metric
        spread = summarize_seeds([runs.read_predictions(run.path, cell) for cell in seeds], metric)
        fallen = [str(cell.seed) for cell in seeds if cell.history.get("collapsed")]
        notes = [note for cell in seeds[:1] for note in cell.summary.notes]
        if spread.num_seeds > 1:
            notes.append(f"mean of {spread.num_seeds} seeds, sd {100 * spread.sd:.1f}")
        elif not seeds[0].is_frozen:
            notes.append("one seed")
        notes += [f"collapsed with seed {', '.join(fallen)}"] if fallen else []
        if any(cell.settings.get("select") == "valid" for cell in seeds):
            notes.append(
                "epochs were selected on the scored examples, as BabyLM's official recipe does"
            )
        summary = Summary(suite, method, metric, (), spread.mean, {}, (), tuple(notes))
        cells.append(Cell(suite, method, seeds[0].key, seeds[0].settings, summary, seeds[0].digest))
    return replace(run, cells=tuple(cells))


FinetuneRow = dict[str, object]


def build_finetune_rows(finetune_runs: Sequence[Run]) -> list[FinetuneRow]:
    """One row per checkpoint, task and attention. Raises RunError where predictions are damaged."""
    made = [row for run in finetune_runs for row in _build_run_rows(run)]
    if len(finetune_runs) < 2:  # a column that says the same in every row says nothing
        made = [{name: value for name, value in row.items() if name != "model"} for row in made]
    return made


def group_seeds(run: Run) -> dict[tuple[str, str], list[Cell]]:
    """(suite, method) -> the cells of its seeds, in order of seed."""
    together: dict[tuple[str, str], list[Cell]] = {}
    for cell in run:
        if cell.seed is not None:
            together.setdefault((cell.suite, cell.method), []).append(cell)
    return {
        name: sorted(cells, key=lambda cell: cell.seed or 0) for name, cells in together.items()
    }


def _build_run_rows(run: Run) -> Iterator[FinetuneRow]:
    for (suite, method), cells in group_seeds(run).items():
        metric = cells[0].summary.metric
        spread = summarize_seeds([runs.read_predictions(run.path, cell) for cell in cells], metric)
        mean, half = spread.mean, (spread.mean.high - spread.mean.low) / 2
        several = spread.num_seeds > 1
        yield {
            "model": str(run.manifest.model.get("name", run.path)),
            "task": suite,
            "attention": method.removeprefix("finetune-"),
            "n": mean.n,
            "metric": metric,
            "score": f"{100 * mean.value:.1f} ±{100 * half:.1f}",
            "sd": f"{100 * spread.sd:.1f}" if several else None,
            "worst": f"{100 * spread.low:.1f}" if several else None,
            "majority": f"{100 * cells[0].summary.views['majority'].value:.1f}",
            "seeds": spread.num_seeds,
            "flags": "; ".join(_collect_flags(cells)),
        }


def _collect_flags(cells: Sequence[Cell]) -> Iterator[str]:
    """What a number must be read with: collapsed seeds, texts that were cut or trained on, how
    epochs were chosen.
    """
    fallen = [cell for cell in cells if cell.history.get("collapsed")]
    if fallen:
        words = dict.fromkeys(str(word) for cell in fallen for word in cell.history["collapsed"])
        yield f"{len(fallen)} of {len(cells)} seeds collapsed ({', '.join(words)})"
    if cut := max(cell.summary.headline.flags.get("cut", 0) for cell in cells):
        yield f"{cut} texts cut"
    if any(cell.settings.get("select") == "valid" for cell in cells):
        yield "selected on the scored examples"
    if any(
        cell.method == finetune_method("causal") and cell.history.get("pooling") == "first"
        for cell in cells
    ):
        yield "position 0 of a causal model, which has seen the first token only"
    if any("substitute" in note for note in cells[0].summary.notes):
        yield "substitute train set"
    yield from dict.fromkeys(
        note for cell in cells for note in cell.summary.notes if SEEN_IN_TRAINING in note
    )
