"""acquisition: run folders of a model's checkpoints -> when it acquired each word, and whether children agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from antlm_bench import runs
from antlm_bench.commands.curve import expand, grouped, mark
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics.surprisal import SURPRISAL, by_word
from antlm_bench.rendering.progress import Progress
from antlm_bench.runs.long import Value
from antlm_bench.statistics import acquisition as curves
from antlm_bench.suites import items, records, sources
from antlm_bench.suites.psycholinguistic import AcquisitionSpec
from antlm_bench.suites.templates import value_of
from antlm_bench.types import Estimate, Run

SUITE = "aoa-words-2026"
Row = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Acquired:
    """One model under one method. score: as BabyLM 2026 publishes it, Pearson's r, or 0 where p > ALPHA or words are
    lacking. correlation: r itself over the n words with both ages; None where undefined. rows: per word its age in
    months (children) and log10 words seen (model), None where a curve has no answer."""

    model: str
    method: str
    checkpoints: int
    score: float
    correlation: Estimate | None
    p: float
    rows: tuple[Row, ...]


def acquisition(paths: Sequence[str | Path], suite: str = SUITE) -> list[Acquired]:
    """What `antlm-bench score --suite aoa-words-2026` of at least three checkpoints says together.

    Chance is tokens of the word * ln(vocabulary), all in nats (2025 mixed bits and nats, and is another number).
    Raises UsageError (no suite of words, too few checkpoints), RunError, DataError.
    """
    spec, folder = items.suite(suite)
    if spec.acquisition is None:
        raise UsageError(f"{suite!r} says nothing of children", place="--suite", hint=f"e.g. {SUITE}")
    children = ages_of_children(spec.acquisition, sources.locate(spec, spec.acquisition.human, folder))
    opened = [runs.read(path) for path in expand(paths)]
    found = []
    for model, family in grouped(opened).items():
        for method in dict.fromkeys(c.method for run in family for c in run if c.suite == spec.name):
            members = [run for run in family if any((c.suite, c.method) == (spec.name, method) for c in run)]
            if len(members) >= curves.LEAST:
                found.append(_acquired(model, members, spec.name, method, children))
    if not found:
        hint = f"antlm-bench score --model FOLDER_OF_CHECKPOINTS --suite {suite}"
        message = f"no model has {curves.LEAST} checkpoints, named by words seen, with {spec.name}"
        raise UsageError(message, place=str(paths[0]), hint=hint)
    return found


def ages_of_children(spec: AcquisitionSpec, found: sources.Found) -> dict[str, float | None]:
    """word -> age in months at which half of the children know it. DataError names the line."""
    ages = np.arange(spec.ages[0], spec.ages[1] + 1, dtype=float)
    known = {}
    for line, record in records.read(found.raw, spec.human, found.place):
        place = f"{found.place}:{line}"
        shares = [_share(value_of(record, f"{age:g}", place), place) for age in ages]
        known[str(value_of(record, "word", place))] = curves.of_children(ages, np.array(shares))
    return known


def _share(value: object, place: str) -> float:
    try:
        share = float(str(value)) if value not in ("", None) else math.nan
    except ValueError:
        share = math.inf
    if share < 0 or share > 1:
        raise DataError(f"a share of children must lie in 0..1, not {value!r:.40}", place=place)
    return share


def _acquired(
    model: str, family: Sequence[Run], suite: str, method: str, children: Mapping[str, float | None]
) -> Acquired:
    points = [(mark(run), _words(run, suite, method)) for run in family]
    seen = np.array([words for words, _ in points], float)
    if len(set(seen)) < len(seen):
        raise UsageError(f"two checkpoints of {model} have seen as many words", hint="leave one of them out")
    vocabulary = float(family[-1].manifest.model.get("vocabulary") or 0)
    if vocabulary < 2:
        raise UsageError(f"the runs of {model} do not say how large its vocabulary is", hint="score them again")
    rows = []
    with Progress(len(points[-1][1]), f"{model} curves") as progress:  # one that does not converge takes seconds
        for row in _rows(points, seen, math.log(vocabulary), children):
            rows.append(row)
            progress.advance(1)
    both = [(row["children_months"], row["model_log10_words"]) for row in rows]
    x, y = np.array([pair for pair in both if None not in pair], float).reshape(-1, 2).T
    found = curves.correlation(y, x)
    if found is None:
        return Acquired(model, method, len(points), 0.0, None, math.nan, tuple(rows))
    r, p, (low, high) = found
    score = 0.0 if p > curves.ALPHA else r
    return Acquired(model, method, len(points), score, Estimate(r, len(x), low, high), p, tuple(rows))


def _words(run: Run, suite: str, method: str) -> dict[str, tuple[float, int]]:
    cell = next(c for c in run if (c.suite, c.method) == (suite, method))
    if cell.summary.metric != SURPRISAL:
        raise UsageError(f"{suite} is no suite of surprisals in {run.path}", hint="score it again")
    return by_word(runs.predictions(run.path, cell))


def _rows(
    points: Sequence[tuple[int, Mapping[str, tuple[float, int]]]],
    seen: np.ndarray[tuple[int], np.dtype[np.float64]],
    nats: float,
    children: Mapping[str, float | None],
) -> Iterator[Row]:
    """One row per word that children were asked about and the last checkpoint was, in the order of the data."""
    for word in points[-1][1]:
        if word not in children:
            continue
        surprisal = np.array([known[word][0] if word in known else np.nan for _, known in points])
        tokens = points[-1][1][word][1]
        yield {
            "word": word,
            "n_tokens": tokens,
            "children_months": children[word],
            "model_log10_words": curves.of_model(seen, surprisal, tokens * nats),
            "last_surprisal_nats": float(surprisal[-1]),
        }
