"""Numbers that a task makes of all its documents at once (F1, a bias score, a regression): what
each contributes.

A task's aggregation is code of its own, and may take minutes. It runs when the task is scored and
never when runs are read: what is kept of each document is what the task said (JSON), and its
contribution, which can be averaged, paired and resampled like any number of a document.
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
# parts that documents are left out by, where no two are alike: an aggregation may take half a
# minute
NUM_JACKKNIFE_GROUPS = 10


def to_json(value: Any) -> str:
    """What a task said of a document as JSON, exactly. TypeError for what has none."""
    return json.dumps(value, default=_json_default)


def jackknife_contributions(
    aggregate: Aggregation, document_values: Sequence[str], location: str
) -> Floats:
    """Contribution (n,) of each document, jackknifed: their mean is the task's number, and their
    variance divided by n that of its estimation (Efron & Tibshirani 1993, ch. 11; as
    metrics.classification has it). nan where it is no number.

    said: per document, as `spelt`. Labels and counts come in few kinds, and every document is left
    out in turn. Other values are contributions themselves where the number is their mean; else
    documents are left out in GROUPS random parts, and share their part's. A rest of which there is
    no number is taken to have the whole's. An aggregation may take no fewer documents, because it
    knows each by its place (lm-eval's tinyBenchmarks weigh a hundred): there each is left out, and
    the mean of the others stands in for it. DataError where the code fails, or says what is no
    number.
    """
    values = [_lists_to_tuples(json.loads(text)) for text in document_values]
    n = len(values)

    def of(kept: Sequence[Any]) -> float:
        return _finite_float(aggregate(list(kept)))

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            whole = of(values)
            if math.isnan(whole) or n == 1:
                return np.full(n, whole)
            counted = all(map(_is_discrete, values))
            if not counted:
                with suppress(Exception):  # of one document it need not say anything
                    alone = np.array([of([value]) for value in values])
                    if math.isclose(alone.mean(), whole, rel_tol=1e-9, abs_tol=1e-12):
                        return alone
            parts, which, scale = (
                _group_equal_values(document_values) if counted else _random_groups(n)
            )
            try:
                rests = np.array(
                    [of([v for at, v in enumerate(values) if at not in part]) for part in parts]
                )
            except Exception:
                if not all(isinstance(value, int | float) for value in values):
                    raise
                rests = np.array([of(_replace_with_mean(values, at)) for at in range(n)])
                which, scale = np.arange(n, dtype=np.int32), n - 1.0
    except Exception as error:  # the task's own code may raise anything
        message = f"the task's own aggregation fails: {type(error).__name__}: {error}"
        raise DataError(
            message, location=location, hint="does `lm_eval run --tasks` take it?"
        ) from error
    without = np.where(np.isnan(rests), whole, rests)[which]
    found = whole + scale * (without.mean() - without)
    return np.asarray(
        np.round(found, 12)
    )  # free of noise, so that what is right or wrong is 1 or 0


def _group_equal_values(document_values: Sequence[str]) -> tuple[list[set[int]], Ints, float]:
    """One document of each kind, the kind of each (n,), and by how much more than leaving it out it
    contributes.
    """
    _, first, which = np.unique(np.array(document_values), return_index=True, return_inverse=True)
    return (
        [{int(at)} for at in first],
        which.reshape(-1).astype(np.int32),
        float(len(document_values) - 1),
    )


def _random_groups(n: int) -> tuple[list[set[int]], Ints, float]:
    """The same of random parts, which are always the same: each of a part's documents stands for
    the whole part.
    """
    count = min(NUM_JACKKNIFE_GROUPS, n)
    which = (np.random.default_rng(0).permutation(n) % count).astype(np.int32)
    parts = [set(np.flatnonzero(which == part).tolist()) for part in range(count)]
    return parts, which, (count - 1) * math.sqrt(n / count)


def _replace_with_mean(values: Sequence[float], index: int) -> list[float]:
    """Values, one of them replaced by the mean of the others."""
    others = [*values[:index], *values[index + 1 :]]
    return [*values[:index], float(np.mean(others)), *values[index + 1 :]]


def _finite_float(value: Any) -> float:
    found = float(value)
    if math.isinf(found):
        raise TypeError(f"{value!r} is no finite number")
    return found


def _is_discrete(value: Any) -> bool:
    """Is it made of labels, whole numbers and nothing else?"""
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
    """JSON's lists as the tuples that tasks mostly say, which can be keys."""
    if isinstance(value, dict):
        return {name: _lists_to_tuples(inner) for name, inner in value.items()}
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value
