"""Contributions of documents to corpus metrics (F1, a bias score, a regression), by the jackknife.

A task's aggregation is code of its own, and may take minutes. It runs when the task is scored, and
never when runs are read: of each document its raw value (JSON) is kept, and its contribution, which
can be averaged, paired and resampled like any metric of a document.
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
# Groups that are left out where no two documents are alike: an aggregation may take half a minute.
NUM_JACKKNIFE_GROUPS = 10


def to_json(value: Any) -> str:
    """Return a task's result for a document as JSON. Raises TypeError for what has no JSON."""
    return json.dumps(value, default=_json_default)


def jackknife_contributions(
    aggregate: Aggregation, document_values: Sequence[str], location: str
) -> Floats:
    """Return the jackknife contribution (n,) of each document; NaN where the metric is no number.

    Their mean is the metric, and their variance divided by n the variance of its estimate (Efron &
    Tibshirani 1993, ch. 11). document_values: per document, as `to_json` gives it.

    Labels and counts take few values, so that every document is left out in turn, once per distinct
    value. Other values are contributions themselves where the metric is their mean; else documents
    are left out in NUM_JACKKNIFE_GROUPS random groups and share their group's contribution. Where
    the metric of the remaining documents is NaN, the whole's is used. An aggregation may refuse
    fewer documents, because it knows each by its position (lm-eval's tinyBenchmarks weigh a
    hundred): then the mean of the others replaces the document that is left out. Raises DataError
    where the aggregation fails or returns no number.
    """
    values = [_lists_to_tuples(json.loads(text)) for text in document_values]
    n = len(values)

    def compute_metric(kept: Sequence[Any]) -> float:
        return _finite_float(aggregate(list(kept)))

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            whole = compute_metric(values)
            if math.isnan(whole) or n == 1:
                return np.full(n, whole)
            is_discrete = all(map(_is_discrete, values))
            if not is_discrete:
                with suppress(Exception):  # an aggregation may fail for one document
                    singles = np.array([compute_metric([value]) for value in values])
                    if math.isclose(singles.mean(), whole, rel_tol=1e-9, abs_tol=1e-12):
                        return singles
            groups, group_index, scale = (
                _group_equal_values(document_values) if is_discrete else _random_groups(n)
            )
            try:
                rests = [
                    compute_metric([v for i, v in enumerate(values) if i not in group])
                    for group in groups
                ]
            except Exception:
                if not all(isinstance(value, int | float) for value in values):
                    raise
                rests = [compute_metric(_replace_with_mean(values, i)) for i in range(n)]
                group_index, scale = np.arange(n, dtype=np.int32), n - 1.0
    except Exception as error:  # the task's own code may raise anything
        message = f"the task's own aggregation fails: {type(error).__name__}: {error}"
        hint = "does `lm_eval run --tasks` take it?"
        raise DataError(message, location=location, hint=hint) from error
    without = np.where(np.isnan(rests), whole, rests)[group_index]
    contributions = whole + scale * (without.mean() - without)
    # Rounded, so that right and wrong are exactly 1 and 0.
    return np.asarray(np.round(contributions, 12))


def _group_equal_values(document_values: Sequence[str]) -> tuple[list[set[int]], Ints, float]:
    """Return one document of each distinct value, the group index (n,) of every document, and the
    factor from the effect of leaving one out to its contribution.
    """
    _, first, group_index = np.unique(
        np.array(document_values), return_index=True, return_inverse=True
    )
    scale = float(len(document_values) - 1)
    return [{int(i)} for i in first], group_index.reshape(-1).astype(np.int32), scale


def _random_groups(n: int) -> tuple[list[set[int]], Ints, float]:
    """Return random groups that only depend on n, the group index (n,), and the factor as above."""
    count = min(NUM_JACKKNIFE_GROUPS, n)
    group_index = (np.random.default_rng(0).permutation(n) % count).astype(np.int32)
    groups = [set(np.flatnonzero(group_index == group).tolist()) for group in range(count)]
    return groups, group_index, (count - 1) * math.sqrt(n / count)


def _replace_with_mean(values: Sequence[float], index: int) -> list[float]:
    """Return the values, one of them replaced by the mean of the others."""
    others = [*values[:index], *values[index + 1 :]]
    return [*values[:index], float(np.mean(others)), *values[index + 1 :]]


def _finite_float(value: Any) -> float:
    number = float(value)
    if math.isinf(number):
        raise TypeError(f"{value!r} is no finite number")
    return number


def _is_discrete(value: Any) -> bool:
    """Return whether a value consists of labels and whole numbers only."""
    if isinstance(value, tuple):
        return all(map(_is_discrete, value))
    if isinstance(value, dict):
        return all(map(_is_discrete, value.values()))
    return not isinstance(value, float) or math.isnan(value) or value.is_integer()


def _json_default(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} cannot be kept")


def _lists_to_tuples(value: Any) -> Any:
    """Return JSON's lists as tuples, which most tasks return and which can be keys."""
    if isinstance(value, dict):
        return {name: _lists_to_tuples(inner) for name, inner in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value
