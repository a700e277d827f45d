"""What the numbers of a metric are: how they are written, in which words, and what became of texts that did not fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """head: what stands above a column of nothing else. what, interval: as a legend says it, and where its interval
    comes from. times, decimals: how a number is written. lost: what became of items that did not fit into
    the model. chosen: whether options were compared. of: what stands behind a difference. moved: what became of
    items that got better, and worse; () where no single one does."""

    head: str
    what: str
    interval: str
    times: int = 100
    decimals: int = 1
    lost: str = "left out"
    chosen: bool = False
    of: str = "points"
    moved: tuple[str, ...] = ("gained", "lost")

    def written(self, value: float) -> str:
        return f"{self.times * value:.{self.decimals}f}"


MEAN = "items resampled within each group for an unweighted mean of groups, Wilson's for one group"
EXPLAINED = "percent that surprisal explains of what the other predictors leave, sentences resampled"
JUDGED = "items resampled, Wilson's where each is 0 or 1"
LEFT_OUT = "documents left out in turn"
TUNED = "over seeds and items"
WORDS, DOCUMENTS = ("words better", "worse"), ("documents better", "worse")
UNITS: dict[str, Unit] = {
    "accuracy": Unit("accuracy", "Percent right", MEAN, lost="counted wrong", chosen=True),
    "spearman": Unit(
        "Spearman's rho", "Spearman's rho", "items resampled", times=1, decimals=2, chosen=True, of="", moved=()
    ),
    "delta-r2": Unit("100 ΔR²", "100 ΔR²", EXPLAINED, moved=()),
    "surprisal": Unit("nats", "Surprisal in nats", "words as a sample", 1, 2, of="nats", moved=WORDS),
    "task-score": Unit("task's score", "Score as the task judges it", JUDGED, 1, 3, of="", moved=DOCUMENTS),
    "task-penalty": Unit(
        "task's penalty", "Penalty as the task judges it (less is better)", JUDGED, 1, 3, of="", moved=DOCUMENTS
    ),
    "whole-score": Unit("task's score", "Score of all documents, as the task has it", LEFT_OUT, 1, 3, of="", moved=()),
    "whole-penalty": Unit(
        "task's penalty",
        "Penalty of all documents, as the task has it (less is better)",
        LEFT_OUT,
        1,
        3,
        of="",
        moved=(),
    ),
    "bits-per-byte": Unit(
        "bits per byte", "Bits per byte (less is better)", "documents resampled", 1, 3, of="bits", moved=DOCUMENTS
    ),
    "acquisition": Unit("Pearson's r", "Pearson's r", "Fisher's", times=1, decimals=2),
    "f1": Unit("100 F1", "100 F1", TUNED),
    "macro-f1": Unit("100 macro-F1", "100 macro-F1", TUNED),
    "mcc": Unit("100 MCC", "100 times Matthews' correlation", TUNED),
}


def unit(metric: str) -> Unit:
    """The unit of a metric; of one that only a newer version knows, its name and a hundredfold value."""
    return UNITS.get(metric) or Unit(f"100 {metric}", f"100 {metric}", "see the version that wrote it")
