"""Compute each document's contribution to a corpus metric by the jackknife.

A corpus metric (F1, a bias score, a regression) is computed from all documents by code of the task,
which may take minutes. So it runs once, when the task is scored. A run stores each document's raw
value (JSON) and its contribution. Contributions can be averaged, paired and resampled like the
values of any per-document metric.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.types import Floats, Ints

Aggregation = Callable[[list[Any]], Any]
# Few groups, because one aggregation may take half a minute.
NUM_JACKKNIFE_GROUPS = 10


def to_json(value: Any) -> str:
    """Return a raw value as JSON. Raises TypeError for a value that has no JSON form."""
    return json.dumps(value, default=_json_default)


def jackknife_contributions(
    aggregate: Aggregation, document_values: Sequence[str], location: str
) -> Floats:
    """Return the jackknife contribution (n,) of each document; all NaN if the metric is NaN.

    The mean of the contributions is the metric. Their variance divided by n estimates the variance
    of the metric (Efron & Tibshirani 1993, ch. 11). document_values: raw values (`to_json`).

    The first matching rule holds:

    - All values are labels or whole numbers: each document is left out in turn. Documents with
      equal values have equal contributions, so each distinct value is left out only once.
    - The metric is the mean of the metrics of the single documents: these are the contributions.
    - Else NUM_JACKKNIFE_GROUPS random groups of documents are left out, and the documents of a
      group share its contribution.

    If the metric of the remaining documents is NaN, the metric of all documents is used. Some
    aggregations fail for fewer documents, because they know each by its position (lm-eval's
    tinyBenchmarks): then each document is not left out but replaced by the mean of the others.
    Raises DataError if the aggregation fails or does not return a number.
    """
    values = [_lists_to_tuples(json.loads(text)) for text in document_values]
    n = len(values)

    def compute_metric(subset: Sequence[Any]) -> float:
        return _finite_float(aggregate(list(subset)))

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            full_metric = compute_metric(values)
            if math.isnan(full_metric) or n == 1:
                return np.full(n, full_metric)
            is_discrete = all(map(_is_discrete, values))
            if not is_discrete:
                with suppress(Exception):  # an aggregation may fail for one document
                    singles = np.array([compute_metric([value]) for value in values])
                    if math.isclose(singles.mean(), full_metric, rel_tol=1e-9, abs_tol=1e-12):
                        return singles
            groups, group_index, scale = (
                _group_equal_values(document_values) if is_discrete else _random_groups(n)
            )
            try:
                metrics_without_group = [
                    compute_metric([v for i, v in enumerate(values) if i not in group])
                    for group in groups
                ]
            except Exception:
                if not all(isinstance(value, int | float) for value in values):
                    raise
                metrics_without_group = [
                    compute_metric(_replace_with_mean(values, i)) for i in range(n)
                ]
                group_index, scale = np.arange(n, dtype=np.int32), n - 1.0
    except Exception as error:  # the task's own code may raise anything
        message = f"the task's own aggregation fails: {type(error).__name__}: {error}"
        hint = "check whether `lm_eval run --tasks` can score the task"
        raise DataError(message, location=location, hint=hint) from error
    is_nan = np.isnan(metrics_without_group)
    metrics_without = np.where(is_nan, full_metric, metrics_without_group)[group_index]
    return _combine(full_metric, metrics_without, scale)


def _combine(full_metric: float, metrics_without: Floats, scale: float) -> Floats:
    """Return the contributions (n,), rounded so that those to an accuracy are exactly 1 and 0."""
    contributions = full_metric + scale * (metrics_without.mean() - metrics_without)
    return np.asarray(np.round(contributions, 12))


def _group_equal_values(document_values: Sequence[str]) -> tuple[list[set[int]], Ints, float]:
    """Group documents with equal values. Return (groups to leave out, group_index, scale).

    A group to leave out holds one document of each distinct value. group_index: (n,). scale: factor
    between the change of the metric without a group and a document's contribution.
    """
    _, first, group_index = np.unique(
        np.array(document_values), return_index=True, return_inverse=True
    )
    scale = float(len(document_values) - 1)
    return [{int(i)} for i in first], group_index.reshape(-1).astype(np.int32), scale


def _random_groups(n: int) -> tuple[list[set[int]], Ints, float]:
    """Group documents at random (depends on n only). Return as `_group_equal_values` does."""
    count = min(NUM_JACKKNIFE_GROUPS, n)
    group_index = (np.random.default_rng(0).permutation(n) % count).astype(np.int32)
    groups = [set(np.flatnonzero(group_index == group).tolist()) for group in range(count)]
    return groups, group_index, (count - 1) * math.sqrt(n / count)


def _replace_with_mean(values: Sequence[float], index: int) -> list[float]:
    """Return the values with the one at `index` replaced by the mean of the others."""
    others = [*values[:index], *values[index + 1 :]]
    return [*values[:index], float(np.mean(others)), *values[index + 1 :]]


def _finite_float(value: Any) -> float:
    number = float(value)
    if math.isinf(number):
        raise TypeError(f"{value!r} is not a finite number")
    return number


def _is_discrete(value: Any) -> bool:
    """Return whether a raw value holds only labels and whole numbers."""
    if isinstance(value, tuple):
        return all(map(_is_discrete, value))
    if isinstance(value, dict):
        return all(map(_is_discrete, value.values()))
    return not isinstance(value, float) or math.isnan(value) or value.is_integer()


def _json_default(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} has no JSON form")


def _lists_to_tuples(value: Any) -> Any:
    """Return JSON's lists as tuples: most tasks return tuples, and these can be dict keys."""
    if isinstance(value, dict):
        return {name: _lists_to_tuples(inner) for name, inner in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value
