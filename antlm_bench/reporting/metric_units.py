"""What the numbers of a metric are: how they are written, in which words, and what became of texts
that did not fit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricUnit:
    """head: what stands above a column of nothing else. what, interval: as a legend says it, and
    where its interval comes from. times, decimals: how a number is written. lost: what became of
    items that did not fit into the model. chosen: whether options were compared. of: what stands
    behind a difference. moved: what became of items that got better, and worse; () where no single
    one does.
    """

    heading: str
    description: str
    interval_source: str
    scale: int = 100
    decimals: int = 1
    too_long_outcome: str = "left out"
    compares_options: bool = False
    difference_unit: str = "points"
    change_labels: tuple[str, ...] = ("gained", "lost")

    def format(self, value: float) -> str:
        return f"{self.scale * value:.{self.decimals}f}"


MEAN_INTERVAL = (
    "items resampled within each group for an unweighted mean of groups, Wilson's for one group"
)
EXPLAINED_VARIANCE_INTERVAL = (
    "percent that surprisal explains of what the other predictors leave, sentences resampled"
)
TASK_METRIC_INTERVAL = "items resampled, Wilson's where each is 0 or 1"
JACKKNIFE_INTERVAL = "documents left out in turn"
FINETUNED_INTERVAL = "over seeds and items"
WORD_CHANGES, DOCUMENT_CHANGES = ("words better", "worse"), ("documents better", "worse")
UNITS: dict[str, MetricUnit] = {
    "accuracy": MetricUnit(
        "accuracy",
        "Percent right",
        MEAN_INTERVAL,
        too_long_outcome="counted wrong",
        compares_options=True,
    ),
    "spearman": MetricUnit(
        "Spearman's rho",
        "Spearman's rho",
        "items resampled",
        scale=1,
        decimals=2,
        compares_options=True,
        difference_unit="",
        change_labels=(),
    ),
    "delta-r2": MetricUnit("100 ΔR²", "100 ΔR²", EXPLAINED_VARIANCE_INTERVAL, change_labels=()),
    "surprisal": MetricUnit(
        "nats",
        "Surprisal in nats",
        "words as a sample",
        1,
        2,
        difference_unit="nats",
        change_labels=WORD_CHANGES,
    ),
    "task-score": MetricUnit(
        "task's score",
        "Score as the task judges it",
        TASK_METRIC_INTERVAL,
        1,
        3,
        difference_unit="",
        change_labels=DOCUMENT_CHANGES,
    ),
    "task-penalty": MetricUnit(
        "task's penalty",
        "Penalty as the task judges it (less is better)",
        TASK_METRIC_INTERVAL,
        1,
        3,
        difference_unit="",
        change_labels=DOCUMENT_CHANGES,
    ),
    "whole-score": MetricUnit(
        "task's score",
        "Score of all documents, as the task has it",
        JACKKNIFE_INTERVAL,
        1,
        3,
        difference_unit="",
        change_labels=(),
    ),
    "whole-penalty": MetricUnit(
        "task's penalty",
        "Penalty of all documents, as the task has it (less is better)",
        JACKKNIFE_INTERVAL,
        1,
        3,
        difference_unit="",
        change_labels=(),
    ),
    "bits-per-byte": MetricUnit(
        "bits per byte",
        "Bits per byte (less is better)",
        "documents resampled",
        1,
        3,
        difference_unit="bits",
        change_labels=DOCUMENT_CHANGES,
    ),
    "acquisition": MetricUnit("Pearson's r", "Pearson's r", "Fisher's", scale=1, decimals=2),
    "f1": MetricUnit("100 F1", "100 F1", FINETUNED_INTERVAL),
    "macro-f1": MetricUnit("100 macro-F1", "100 macro-F1", FINETUNED_INTERVAL),
    "mcc": MetricUnit("100 MCC", "100 times Matthews' correlation", FINETUNED_INTERVAL),
}


def get_unit(metric: str) -> MetricUnit:
    """The unit of a metric; of one that only a newer version knows, its name and a hundredfold
    value.
    """
    return UNITS.get(metric) or MetricUnit(
        f"100 {metric}", f"100 {metric}", "see the version that wrote it"
    )
