"""One `MetricSpec` per metric: its name, how it is written, computed, compared and exported.

Everything that differs between metrics is a field of MetricSpec; no other module branches on the
name of a metric (tests/test_records.py). Functions are given as "module:attribute" and imported
when they are first used, so that listing suites does not import scipy. They are defined in one
module per family: `accuracy`, `spearman`, `classification`, `item_mean`, `task_metric`,
`bits_per_byte`, `reading_times`, `surprisal`, `acquisition`, `acceptability`.

A package adds a metric with one MetricSpec and one entry point (docs/how-to/extending.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any

from antlm_bench.printable import format_decimals
from antlm_bench.registry import RecordType, Registry

Target = str | Callable[..., Any]
"""A function or class, or its import path "module:attribute"."""

TIE_RULES: dict[str, str] = {
    "half": "an item whose best score is shared by k options gives 1/k "
    "if the right one is among them",
    "strict": "a shared best score is wrong",
    "first": "the first of the best is chosen, as argmax does in lm-eval and BabyLM 2024-2025, "
    "where index 0 is right",
    "random": "one of the best is drawn, as in BabyLM 2026, but seeded by the item's id",
}
REDUCTIONS = ("sum", "per-token", "per-character")
"""How the log-probabilities of an option's tokens become its score: their sum, or their mean per
token or per character. A suite can declare "sum" or "per-token"; "per-character" is only a view."""
ACCEPTABILITY_MEASURES: dict[str, str] = {
    "sum": "LP",
    "per-token": "mean LP",
    "penalised": "PenLP",
    "slor": "SLOR",
}
"""Reduction of a sentence's log-probability -> the acceptability measure that it is
(`PredictionTable.reduced_scores` has the formulas)."""
UNIGRAM_MEASURE = "slor"
"""The measure that needs a unigram model."""
CLASS_REDUCTION = "class"
"""The reduction of classified texts, whose scores are already log-probabilities of classes."""
WORD_LABEL = "word"
"""The label with an item's word, in suites that are samples of words."""


class ItemKind(Enum):
    """What an item of a metric consists of."""

    CHOICE = "options, one of which is right"
    RATING = "options, with a human rating as gold"
    TEXT = "one text without alternatives"
    READING_TIME = "a word and the word before it, with human reading times in the suite's data"
    CLASS = "a text and the classes of a finetuned classifier"
    TASK_VALUE = "requests, and the values that the task's own code computes from the answers"
    DOCUMENT = "a whole document and its lengths"
    CURVE = "a word's surprisal at several checkpoints"
    JUDGEMENT = "a sentence that is acceptable (1) or not (0)"


SCORED_ITEM_KINDS = (ItemKind.CHOICE, ItemKind.RATING, ItemKind.READING_TIME, ItemKind.TEXT)
"""Items of suites that a TOML of kind "suite" can declare."""
OPTION_KINDS = (ItemKind.CHOICE, ItemKind.RATING)
"""Items whose options are compared, so that their `reduction` matters."""
REDUCED_KINDS = (*OPTION_KINDS, ItemKind.JUDGEMENT)
"""Items whose `reduction` matters."""
SINGLE_TEXT_KINDS = (ItemKind.TEXT, ItemKind.JUDGEMENT)
"""Items of one text without alternatives."""
CLUSTERED_KINDS = (ItemKind.CHOICE, ItemKind.JUDGEMENT)
"""Items that a suite can group into clusters."""
SCORE_INTERVAL = "stratified score interval over items"
"""Method of the intervals of means of credits (`statistics.stratified_score`)."""
ITEM_MEAN_INTERVAL = f"{SCORE_INTERVAL} if all values are 0 or 1, else Welch's t over items"
"""Method of the intervals of means of other values."""
SEED_INTERVAL = (
    "t over seeds and items; with one seed, or seeds that do not vary, over items only (score "
    "interval for accuracy, else posterior of the confusion table); if only some seeds collapsed, "
    "interval of a mixture"
)
"""Method of the intervals of finetuned tasks (`classification.summarize_seeds`)."""
MAX_MORE_DECIMALS = 3
"""Largest number of additional decimals of an end of an interval that is near a tested value."""
SEED_DIFFERENCE_INTERVAL = "t over seeds and items; a run of one seed adds no variance over seeds"
"""Method of the intervals of differences of finetuned tasks (`comparison.paired_seeds`)."""


@dataclass(frozen=True, slots=True)
class LmEvalFormat:
    """How lm-eval's result files show a metric."""

    metric: str = ""
    """lm-eval's name. "" = `MetricSpec.name` with underscores."""
    output_type: str = "multiple_choice"
    """lm-eval's `output_type` of a task with this metric."""
    is_item_mean: bool = False
    """Whether the score of a task is the unweighted mean of its items' values."""
    sample_values: bool = True
    """Whether the samples of an exported task have a value of the metric. False = an item's value
    is its contribution to a metric of all items, which lm-eval does not write."""
    equivalents: tuple[str, ...] = ()
    """Metrics of lm-eval that this metric replaces. They are not reported as missing."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """The name, presentation and functions of one metric.

    A new metric needs a name, a label and `item_values`; every other field has a default.
    """

    name: str
    """Name of the metric in a suite's TOML."""
    label: str
    """Title of the scores in a legend: "Percent right"."""
    interval: str = ITEM_MEAN_INTERVAL
    """Method of the 95% interval of one run, for a legend."""
    item_kind: ItemKind = ItemKind.CHOICE
    difference_interval: str = ""
    """Method of the 95% interval of a difference of two runs, for a legend. "" = `interval`."""

    # ---- how a score is written
    heading: str = ""
    """Heading of a column that has only scores of this metric. "" = the name."""
    axis_title: str = ""
    """Title of a chart's axis. "" = the heading."""
    headline_name: str | None = None
    """Name of the metric in a headline. None = the heading; "" = no name."""
    headline_basis: str = "over items"
    """Words that follow a headline without groups. "" = none."""
    scale: int = 1
    """Factor from the stored value to the written one: 100 for percent and correlations."""
    raw_unit: str = ""
    """Unit of the stored value, in JSON. "" = "fraction" if `scale` is 100, else the heading."""
    decimals: int = 3
    difference_unit: str = ""
    """Unit of a difference: "points"."""
    difference_title: str = ""
    """Title of the axis of differences. "" = "difference in" the unit, else the heading."""
    change_labels: tuple[str, ...] = ("items better", "worse")
    """Words for items whose value improved, and for those whose value declined. () = single items
    are not counted."""
    too_long_outcome: str = "left out"
    """Words for what happens to items that do not fit the model."""

    # ---- what a score means
    lower_is_better: bool = False
    value_range: tuple[float, float] = (-math.inf, math.inf)
    """Lowest and highest possible value of an item and of a score."""
    trivial_baseline: str = ""
    """Baseline without any knowledge: "chance" (1 / number of options), "majority" (the most
    frequent class), "half" (scores at random). "" = none."""
    has_test_of_zero: bool = False
    """Whether a score is tested against 0, so that its interval shows whether it holds 0."""
    tie_rule_matters: bool = False
    """Whether the score depends on which of several best options counts as chosen."""
    min_items: int = 0
    """Fewest items for which a score is defined."""
    min_gold_values: int = 0
    """Fewest different gold values for which a score is defined: 2 = both classes, or ratings that
    are not all equal."""

    # ---- how it is computed
    item_values: Target | None = None
    """(PredictionTable, MetricSettings) -> value of each item (n,); nan = left out."""
    aggregation: Target | None = "antlm_bench.metrics.item_mean:ItemMean"
    """(MetricSpec, MetricSettings) -> `summary.Metric`. None = a command computes the score
    from more than one suite's predictions, and `summarize` raises an error."""
    confusion: str | Any | None = None
    """The `classification.ConfusionMetric` of a metric of classified texts, or its import path;
    else None."""
    num_classes: int | None = None
    """Number of classes for which the metric is defined. None = any."""
    averages_groups: bool = True
    """Whether a suite with this metric may declare `macro`."""
    fixed_macro: tuple[str, ...] | None = None
    """Label levels that replace the suite's `macro`. None = the suite's."""

    # ---- how two runs are compared
    comparison: Target | None = "antlm_bench.comparison.paired:compare_item_values"
    """JoinedTables -> PairedResult. None = two runs cannot be compared in this metric."""
    needs_suite_data: bool = False
    """Whether scores and comparisons need the suite's data (reading times) beside predictions."""

    # ---- what exports write
    export_rows: Target | None = "antlm_bench.exports.items_csv:value_rows"
    """(Cell, predictions, PredictionTable) -> columns of each item. None = not exported."""
    lm_eval: LmEvalFormat | None = LmEvalFormat(is_item_mean=True)
    """None = not written to lm-eval's result files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heading", self.heading or self.name)
        default_unit = "fraction" if self.scale == 100 else self.heading
        object.__setattr__(self, "raw_unit", self.raw_unit or default_unit)
        object.__setattr__(self, "difference_interval", self.difference_interval or self.interval)

    @property
    def difference_axis_title(self) -> str:
        """Title of a chart's axis of differences."""
        return self.difference_title or f"difference in {self.difference_unit or self.heading}"

    @property
    def is_bounded(self) -> bool:
        return all(map(math.isfinite, self.value_range))

    def find_undefined_reason(self, golds: Collection[float]) -> str:
        """Return why a score of items with these gold values is undefined, "" if it is defined."""
        is_judgement = self.item_kind is ItemKind.JUDGEMENT
        noun = "sentence" if is_judgement else "item"
        if len(golds) < self.min_items:
            return f"{self.name} needs {self.min_items} {noun}s or more, not {len(golds)}"
        values = {float(gold) for gold in golds} if self.min_gold_values else set()
        if len(values) >= self.min_gold_values:
            return ""
        subject = f"all {len(golds)} {noun}s are" if len(golds) > 1 else f"the only {noun} is"
        if is_judgement:
            names = ("unacceptable", "acceptable")
            (label,) = (int(value) for value in values)
            return f"{subject} {names[label]}, none is {names[1 - label]}"
        return f"all {len(golds)} {noun}s have the rating {min(values):g}"

    def format(self, value: float, sign: str = "") -> str:
        """Return a value as text for all outputs: scaled and rounded, never "-0.0".

        sign: "+" also marks positive numbers.
        """
        return format_decimals(self.scale * value, f"{sign}.{self.decimals}f")

    def format_interval(
        self, low: float, high: float, sign: str = "", tested: Collection[float] = ()
    ) -> str:
        """Return an interval as text for all outputs: `[80.4, 98.2]`.

        tested: values with a test, such as 0 and a margin. An end is written like one of them only
        if the interval holds it; else the end gets up to MAX_MORE_DECIMALS more decimals, or `>0`.
        """
        excluded = [value for value in tested if low > value or high < value]
        ends = (self._format_end(end, sign, excluded) for end in (low, high))
        return f"[{', '.join(ends)}]"

    def _format_end(self, end: float, sign: str, excluded: Collection[float]) -> str:
        """Return an end of an interval as text that differs from that of the excluded values."""
        text = self.format(end, sign)
        for value in excluded:
            if text != self.format(value, sign):
                continue
            for decimals in range(self.decimals + 1, self.decimals + MAX_MORE_DECIMALS + 1):
                text = f"{self.scale * end:{sign}.{decimals}f}"
                if float(text) != round(self.scale * value, decimals):
                    return text
            return f"{'>' if end > value else '<'}{self.format(value, sign)}"
        return text

    def known_interval(
        self, low: float | None, high: float | None
    ) -> tuple[float | None, float | None]:
        """Return the ends of an interval; (None, None) if it is unknown.

        Estimates and run folders have the whole range of the metric for an unknown one. Outputs
        have none, which is null in JSON.
        """
        if low is None or high is None or (low, high) == self.value_range:
            return None, None
        return low, high

    def known_interval_of_difference(
        self, low: float, high: float
    ) -> tuple[float | None, float | None]:
        """Return the ends of a difference's interval; (None, None) if it is unknown."""
        widest = self.value_range[1] - self.value_range[0]
        return (None, None) if (low, high) == (-widest, widest) else (low, high)

    def format_estimate(self, value: float, low: float | None, high: float | None) -> str:
        """Return a value with its interval, `92.5 [80.4, 98.2]`, if it is known."""
        low, high = self.known_interval(low, high)
        if low is None or high is None:
            return self.format(value)
        tested = (0.0,) if self.has_test_of_zero else ()
        return f"{self.format(value)} {self.format_interval(low, high, tested=tested)}"


PERCENT: dict[str, Any] = {
    "scale": 100,
    "decimals": 1,
    "difference_unit": "points",
    "change_labels": ("gained", "lost"),
    "value_range": (0.0, 1.0),
}
CORRELATION: dict[str, Any] = {
    "scale": 100,
    "decimals": 1,
    "difference_unit": "points",
    "headline_basis": "",
    "change_labels": (),
    "value_range": (-1.0, 1.0),
    "has_test_of_zero": True,
    "averages_groups": False,
}
CLASSIFICATION: dict[str, Any] = PERCENT | {
    "item_kind": ItemKind.CLASS,
    "interval": "posterior of the confusion table",
    "difference_interval": SEED_DIFFERENCE_INTERVAL,
    "trivial_baseline": "majority",
    "averages_groups": False,
    "aggregation": None,
    "comparison": "antlm_bench.comparison.paired:compare_accuracy",
    "export_rows": "antlm_bench.exports.items_csv:choice_rows",
    "lm_eval": LmEvalFormat(),
}
ACCURACY = MetricSpec(
    "accuracy",
    "Percent right",
    SCORE_INTERVAL,
    axis_title="% right",
    headline_name="",
    too_long_outcome="counted wrong",
    trivial_baseline="chance",
    tie_rule_matters=True,
    aggregation="antlm_bench.metrics.accuracy:Accuracy",
    confusion="antlm_bench.metrics.classification:ACCURACY",
    comparison="antlm_bench.comparison.paired:compare_accuracy",
    export_rows="antlm_bench.exports.items_csv:choice_rows",
    lm_eval=LmEvalFormat("acc", is_item_mean=True, equivalents=("acc", "acc_norm")),
    **PERCENT,
)
SPEARMAN = MetricSpec(
    "spearman",
    "100 times Spearman's rho",
    "t on Fisher's scale over items",
    ItemKind.RATING,
    heading="100 rho",
    raw_unit="Spearman's rho",
    min_items=3,
    min_gold_values=2,
    aggregation="antlm_bench.metrics.spearman:Spearman",
    comparison="antlm_bench.comparison.paired:compare_correlations",
    export_rows="antlm_bench.exports.items_csv:rating_rows",
    lm_eval=LmEvalFormat(),
    **CORRELATION,
)
F1 = MetricSpec(
    "f1",
    "100 F1",
    heading="100 F1",
    confusion="antlm_bench.metrics.classification:F1",
    num_classes=2,
    **CLASSIFICATION,
)
MACRO_F1 = MetricSpec(
    "macro-f1",
    "100 macro-F1",
    heading="100 macro-F1",
    confusion="antlm_bench.metrics.classification:MACRO_F1",
    **CLASSIFICATION,
)
MCC = MetricSpec(
    "mcc",
    "100 times Matthews' correlation",
    heading="100 MCC",
    raw_unit="Matthews' correlation",
    confusion="antlm_bench.metrics.classification:MCC",
    **CLASSIFICATION | {"value_range": (-1.0, 1.0)},
)
DELTA_R2 = MetricSpec(
    "delta-r2",
    "100 ΔR² (percent that surprisal explains of what the other predictors leave)",
    "jackknife over sentences",
    ItemKind.READING_TIME,
    difference_interval="t over sentences",
    heading="100 ΔR²",
    aggregation=None,
    comparison="antlm_bench.comparison.paired_reading_times:compare_reading_times",
    has_test_of_zero=True,
    needs_suite_data=True,
    export_rows="antlm_bench.exports.items_csv:reading_rows",
    lm_eval=None,
    **PERCENT | {"change_labels": ()},
)
SURPRISAL = MetricSpec(
    "surprisal",
    "Surprisal in nats",
    "t over words",
    ItemKind.TEXT,
    heading="nats",
    decimals=2,
    difference_unit="nats",
    change_labels=("words better", "worse"),
    lower_is_better=True,
    aggregation="antlm_bench.metrics.surprisal:MeanSurprisal",
    fixed_macro=(WORD_LABEL,),
    comparison="antlm_bench.comparison.paired:compare_surprisal",
    export_rows="antlm_bench.exports.items_csv:choice_rows",
    lm_eval=LmEvalFormat(equivalents=("perplexity",)),
)
ACQUISITION = MetricSpec(
    "acquisition",
    "100 times Pearson's r",
    "Fisher's interval over words",
    ItemKind.CURVE,
    heading="100 r",
    raw_unit="Pearson's r",
    aggregation=None,
    comparison=None,
    export_rows=None,
    lm_eval=None,
    **CORRELATION,
)
TASK_VALUE: dict[str, Any] = {
    "item_kind": ItemKind.TASK_VALUE,
    "item_values": "antlm_bench.metrics.task_metric:first_task_value",
    "change_labels": ("documents better", "worse"),
}
TASK_TOTAL: dict[str, Any] = TASK_VALUE | {
    "interval": "jackknife over documents",
    "change_labels": (),
    "export_rows": "antlm_bench.exports.items_csv:preference_rows",
    "lm_eval": LmEvalFormat(is_item_mean=True, sample_values=False),
}
TASK_SCORE = MetricSpec(
    "task-score",
    "Task metric",
    heading="task's score",
    **TASK_VALUE,
)
TASK_PENALTY = MetricSpec(
    "task-penalty",
    "Task metric (less is better)",
    heading="task's penalty",
    lower_is_better=True,
    **TASK_VALUE,
)
WHOLE_SCORE = MetricSpec(
    "whole-score",
    "Task metric of all documents together",
    heading="task's score",
    **TASK_TOTAL,
)
WHOLE_PENALTY = MetricSpec(
    "whole-penalty",
    "Task metric of all documents together (less is better)",
    heading="task's penalty",
    lower_is_better=True,
    **TASK_TOTAL,
)
BITS_PER_BYTE = MetricSpec(
    "bits-per-byte",
    "Bits per byte (less is better)",
    "jackknife over documents",
    ItemKind.DOCUMENT,
    difference_interval="Welch's t over documents",
    heading="bits per byte",
    difference_unit="bits",
    change_labels=("documents better", "worse"),
    lower_is_better=True,
    averages_groups=False,
    aggregation="antlm_bench.metrics.bits_per_byte:BitsPerByte",
    export_rows="antlm_bench.exports.items_csv:document_rows",
    lm_eval=LmEvalFormat(
        output_type="loglikelihood_rolling",
        equivalents=("bits_per_byte", "byte_perplexity", "word_perplexity"),
    ),
)

AUC = MetricSpec(
    "auc",
    "100 times the area under the ROC curve (AUC) of acceptability",
    "DeLong's t on the logit scale over items, at most Wilson's of the smaller class",
    ItemKind.JUDGEMENT,
    difference_interval="DeLong's paired t over items",
    heading="100 AUC",
    raw_unit="AUC",
    trivial_baseline="half",
    min_items=1,
    min_gold_values=2,
    averages_groups=False,
    aggregation="antlm_bench.metrics.acceptability:Auc",
    comparison="antlm_bench.comparison.paired_auc:compare_auc",
    export_rows="antlm_bench.exports.items_csv:judgement_rows",
    lm_eval=LmEvalFormat(),
    **PERCENT | {"change_labels": ()},
)

METRICS: Registry[MetricSpec] = Registry(
    "metric",
    "antlm_bench.metrics",
    {
        name: f"{__name__}:{name.replace('-', '_').upper()}"
        for name in (
            "accuracy",
            "spearman",
            "f1",
            "macro-f1",
            "mcc",
            "delta-r2",
            "surprisal",
            "acquisition",
            "task-score",
            "task-penalty",
            "whole-score",
            "whole-penalty",
            "bits-per-byte",
            "auc",
        )
    },
    "antlm-bench list metrics",
    RecordType(MetricSpec),
)


def get_metric_spec(name: str) -> MetricSpec:
    """Return the MetricSpec of a metric that a run names.

    A metric of another version or of a package that is not installed gets a MetricSpec that writes
    its value times 100, so that the run can still be shown.
    """
    if name in METRICS:
        return METRICS[name]
    return MetricSpec(
        name,
        f"100 {name}",
        "see the version that wrote it",
        heading=f"100 {name}",
        aggregation=None,
        **PERCENT,
    )


def validate_metric(
    name: str, item_kinds: Collection[ItemKind] = (), is_classified: bool = False
) -> str:
    """Return the name of a metric that a suite may declare, unchanged.

    item_kinds: kinds of items that the suite can have. is_classified: whether its texts are
    classified by finetuned models. Raises ValueError, which pydantic turns into an error at the
    key.
    """

    def is_allowed(metric: MetricSpec) -> bool:
        return bool(metric.confusion) if is_classified else metric.item_kind in item_kinds

    if name in METRICS and is_allowed(METRICS[name]):
        return name
    names = [metric.name for metric in METRICS if is_allowed(metric)]
    *others, last = map(repr, names)
    matches = get_close_matches(name, names, 1)
    suggestion = f"; did you mean {matches[0]!r}?" if matches else ""
    raise ValueError(f"unknown metric {name!r}: use {', '.join(others)} or {last}{suggestion}")
