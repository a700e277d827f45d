"""Columns of predictions: what each of them holds, as every task type declares it.

A task type has one `PredictionSchema`. What its `predict` returns is an Arrow table with these
columns (predictions.Predictions), and so is the Parquet file of a run folder. Beside them a table
has the column `labels`: a struct of texts, one field per label level of the suite.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PredictionColumn:
    """One column of a table of predictions."""

    name: str
    type: str
    """Arrow type of a cell: "string", "float64", "int32", or a list such as "list<float64>"."""
    meaning: str
    """What a cell holds, with its unit."""
    is_optional: bool = False
    """Whether a table may lack the column."""


@dataclass(frozen=True, slots=True)
class PredictionSchema:
    """All columns of a table of predictions except `labels`, in the order of the file."""

    columns: tuple[PredictionColumn, ...]

    def __getitem__(self, name: str) -> PredictionColumn:
        """Return a column. Raises KeyError for a name that the schema does not declare."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


CLUSTER = PredictionColumn(
    "cluster",
    "string",
    'hash of what the item shares with the items that it belongs to; "" = alone',
    is_optional=True,
)
"""The column of suites that declare clusters. It is filled from the items, not by `predict`."""

UNIGRAM = PredictionColumn(
    "unigram",
    "float64",
    "log-probability of the sentence's tokens under a unigram model (nats)",
    is_optional=True,
)
"""The column of judgements that are scored with a unigram model (SLOR)."""


def declare_columns(
    *,
    gold: str,
    pred: str,
    scores: str,
    tokens: str,
    characters: str,
    more: tuple[PredictionColumn, ...] = (),
) -> PredictionSchema:
    """Return the schema of a task type: the columns that every reader needs, and `more`.

    gold, pred, scores, tokens, characters: what the columns hold for suites of this type.
    """
    return PredictionSchema(
        (
            PredictionColumn("id", "string", "id of the item, unique within the suite"),
            PredictionColumn("gold", "float64", gold),
            PredictionColumn("pred", "int32", pred),
            PredictionColumn("scores", "list<float64>", scores),
            PredictionColumn("tokens", "list<int32>", tokens),
            PredictionColumn("characters", "list<int32>", characters),
            PredictionColumn("flags", "list<string>", "names out of types.FLAGS"),
            *more,
            CLUSTER,
        )
    )


def declare_task_values(judged: str) -> tuple[PredictionColumn, ...]:
    """Return the columns of suites whose lm-eval task computes metrics of its own.

    judged: what the values of an item are.
    """
    return (
        PredictionColumn("judged", "list<float64>", judged, is_optional=True),
        PredictionColumn(
            "kept",
            "list<string>",
            'JSON of the item\'s results that a metric over all items needs; "" = none',
            is_optional=True,
        ),
    )


CHOICES = declare_columns(
    gold="index of the right option, or a human rating in 0..1",
    pred="index of the preferred option, the first one of a tie",
    scores="summed log-probability of each option (nats)",
    tokens="number of tokens that each score sums over",
    characters="number of scored characters of each option",
    more=declare_task_values("values of the lm-eval task's own metrics, nan = no value"),
)
"""Predictions of multiple choice."""
