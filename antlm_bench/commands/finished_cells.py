"""Build a finished cell from the predictions of all its chunks, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from antlm_bench.arguments import check_value
from antlm_bench.errors import DataError, RunError, UsageError
from antlm_bench.predictions import Predictions
from antlm_bench.printable import format_count
from antlm_bench.runs import UnfinishedCell
from antlm_bench.scoring.conventions import ScoringConventions
from antlm_bench.suites.task_types import TASK_TYPES, Suite, SummarizeRequest
from antlm_bench.types import TOO_LONG_HINT, Cell

T = TypeVar("T")


def build_finished_cell(
    unfinished: UnfinishedCell, suite: Suite, computed: Predictions
) -> tuple[Cell, Predictions]:
    """Return the cell of a suite with its summary, and the predictions that are stored with it.

    computed: the predictions of all chunks; the same object is returned if nothing is added. Raises
    DataError if no item fits the model, RunError for conventions of a newer version.
    """
    if len(computed) and computed.has_flag("too-long").all():
        raise DataError(
            f"none of {format_count(len(suite.items), 'item')} fits the model, which reads "
            f"{unfinished.settings.get('max_length')} tokens",
            location=suite.origin[0] if suite.origin else suite.name,
            hint=f"leave the suite out, or {TOO_LONG_HINT}",
        )
    predictions = _complete_predictions(computed, suite)
    summary = TASK_TYPES[suite.task_type].summarize(
        SummarizeRequest(
            suite,
            predictions,
            unfinished.method,
            build_from_fields(ScoringConventions, unfinished.conventions, unfinished.name),
            [*suite.notes, *unfinished.notes],
        )
    )
    cell = Cell(
        unfinished.suite,
        unfinished.method,
        unfinished.key,
        unfinished.settings,
        summary,
        history=unfinished.history,
        origin=unfinished.origin,
    )
    return cell, predictions


def build_from_fields(dataclass: type[T], fields: Mapping[str, Any], location: str) -> T:
    """Build a dataclass from the fields in shard.json. Raises RunError."""
    hints = get_type_hints(dataclass)
    try:
        for name, value in fields.items():
            check_value(location, name, value, hints[name])
        return dataclass(**fields)
    except (TypeError, KeyError, UsageError) as error:
        raise RunError(
            f"the fields of its {dataclass.__name__} cannot be read: {error}",
            location=location,
            hint="merge with the version of the package that scored the shards",
        ) from error


def _complete_predictions(predictions: Predictions, suite: Suite) -> Predictions:
    """Return predictions with the columns that need all items; the same object if there are none.

    These are results of metrics over all items, and the clusters of items that belong together.
    """
    if suite.task_metrics and suite.task_metrics.corpus_metrics:
        predictions = suite.task_metrics.with_corpus_metrics(predictions)
    return predictions.with_clusters([item.cluster for item in suite.items])
