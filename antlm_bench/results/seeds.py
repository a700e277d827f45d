"""Aggregate the seeds of finetuned tasks: as averaged cells of a run, or as summaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from antlm_bench import runs
from antlm_bench.metrics.classification import SeedSummary, summarize_seeds
from antlm_bench.suites.classification_loader import SEEN_IN_TRAINING
from antlm_bench.types import Cell, Estimate, Run, Summary, finetune_method


def summarize_seed_cells(run: Run, cells: Sequence[Cell], metric: str) -> SeedSummary:
    """Return the metric over the seeds of a task. Raises RunError where predictions are damaged."""
    return summarize_seeds(
        [runs.read_predictions(run.path, cell) for cell in cells],
        metric,
        collapsed=[bool(cell.history.get("collapsed")) for cell in cells],
    )


def average_seeds(run: Run) -> Run:
    """Return the run with one cell per finetuned task instead of one per seed.

    Its value is the mean over seeds, its interval is over seeds and items. Raises RunError where
    predictions are damaged.
    """
    cells = [cell for cell in run if cell.seed is None]
    for (suite, method), seeds in group_seeds(run).items():
        metric = seeds[0].summary.metric
        spread = summarize_seed_cells(run, seeds, metric)
        collapsed_seeds = [str(cell.seed) for cell in seeds if cell.history.get("collapsed")]
        notes = [note for cell in seeds[:1] for note in cell.summary.notes]
        if spread.num_seeds > 1:
            notes.append(f"mean of {spread.num_seeds} seeds, sd {100 * spread.sd:.1f}")
        elif not seeds[0].is_frozen:
            notes.append("one seed")
        if collapsed_seeds:
            notes.append(f"collapsed with seed {', '.join(collapsed_seeds)}")
        if any(cell.settings.get("select") == "valid" for cell in seeds):
            notes.append(
                "epochs were selected on the scored examples, as BabyLM's official recipe does"
            )
        summary = Summary(suite, method, metric, (), spread.mean, {}, (), tuple(notes))
        cells.append(Cell(suite, method, seeds[0].key, seeds[0].settings, summary, seeds[0].digest))
    return replace(run, cells=tuple(cells))


@dataclass(frozen=True, slots=True)
class FinetunedTaskSummary:
    """Summary of one task under one attention mask over its seeds. Values are fractions."""

    model: str
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
    """Return the cells of each (suite, method), sorted by seed."""
    cells_by_task: dict[tuple[str, str], list[Cell]] = {}
    for cell in run:
        if cell.seed is not None:
            cells_by_task.setdefault((cell.suite, cell.method), []).append(cell)
    return {
        task: sorted(cells, key=lambda cell: cell.seed or 0)
        for task, cells in cells_by_task.items()
    }


def summarize_finetuned_tasks(run: Run) -> Iterator[FinetunedTaskSummary]:
    """Yield one summary per task and attention. Raises RunError where predictions are damaged."""
    for (suite, method), cells in group_seeds(run).items():
        metric = cells[0].summary.metric
        spread = summarize_seed_cells(run, cells, metric)
        has_several_seeds = spread.num_seeds > 1
        yield FinetunedTaskSummary(
            model=str(run.manifest.model.get("name", run.path)),
            task=suite,
            attention=method.removeprefix("finetune-"),
            metric=metric,
            mean=spread.mean,
            sd=spread.sd if has_several_seeds else None,
            worst=spread.low if has_several_seeds else None,
            majority=cells[0].summary.views["majority"].value,
            num_seeds=spread.num_seeds,
            flags=tuple(_collect_flags(cells)),
        )


def _collect_flags(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the caveats of a mean: collapsed seeds, texts cut or trained on, choice of epochs."""
    collapsed = [cell for cell in cells if cell.history.get("collapsed")]
    if collapsed:
        reasons = dict.fromkeys(
            str(text) for cell in collapsed for text in cell.history["collapsed"]
        )
        count = "" if cells[0].is_frozen else f"{len(collapsed)} of {len(cells)} seeds "
        yield f"{count}collapsed ({', '.join(reasons)})"
    if cut := max(cell.summary.headline.flags.get("cut", 0) for cell in cells):
        yield f"{cut} texts cut"
    if any(cell.settings.get("select") == "valid" for cell in cells):
        yield "selected on the scored examples"
    if any(
        cell.method in (finetune_method("causal"), finetune_method("causal", frozen=True))
        and cell.history.get("pooling") == "first"
        for cell in cells
    ):
        yield "position 0 of a causal model, which has seen the first token only"
    if any("substitute" in note for note in cells[0].summary.notes):
        yield "substitute train set"
    yield from dict.fromkeys(
        note for cell in cells for note in cell.summary.notes if SEEN_IN_TRAINING in note
    )
