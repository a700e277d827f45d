"""acquisition: run folders of a model's checkpoints -> when it acquired each word, and whether children agree.

The number is an ordinary cell, kept in the run of the final model: its predictions are the words' curves.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from antlm_bench import runs
from antlm_bench.commands.cells import key
from antlm_bench.commands.curve import amount, expand, grouped, lineage, mark, milestone
from antlm_bench.compare.join import DECISIVE
from antlm_bench.compare.summary_check import read_run
from antlm_bench.declarations import catalog
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics.acquisition import Learner, summarize_acquisition
from antlm_bench.metrics.surprisal import SURPRISAL, by_context
from antlm_bench.reporting.progress import Progress
from antlm_bench.runs.table_files import Value
from antlm_bench.statistics import acquisition as curves
from antlm_bench.suites import loader, records, sources
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.reading_times_spec import ChildrenSpec
from antlm_bench.suites.templates import value_of
from antlm_bench.types import Cell, Prediction, Run

SUITE = "aoa-2026"
CONVENTIONS = 1  # raised whenever the number of unchanged runs may move; part of the cell's key
Point = tuple[Run, Cell]  # a checkpoint, and its surprisals of the words


@dataclass(frozen=True, slots=True)
class Acquired:
    """One model under one method. run: the folder that keeps the number. cell: its settings name the checkpoints."""

    model: str
    run: str
    cell: Cell

    def rows(self) -> list[dict[str, Value]]:
        """Per word its age in months (children) and log10 of the words seen (model), None where its curve has none."""
        predictions = runs.predictions(self.run, self.cell)
        ages = _ages(predictions, _learner(self.cell.settings), self.model)
        return [
            {
                "word": p.id,
                "n_tokens": p.tokens[-1],
                "children_months": p.gold,
                "model_log10_words": age,
                "lowest_surprisal_nats": -max(p.scores),
            }
            for p, age in zip(predictions, ages, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Human:
    """An age of acquisition and the human side of it: where children's ages stand."""

    spec: AcquisitionSpec
    words: str
    words_origin: tuple[str, ...]
    origin: tuple[str, ...]  # of the declaration and of its words, as far as they are files of the user's
    children: ChildrenSpec
    found: sources.Found


def acquisition(paths: Sequence[str | Path], suite: str = SUITE) -> list[Acquired]:
    """What the checkpoints of each model, scored on the words of `suite`, say together; kept as a cell.

    paths: run folders, or folders of them. The cell goes to the run of the final model, whose name is no milestone's,
    else to the last checkpoint's; one that is there under the same content key is not computed again.
    Raises UsageError (no such suite, too few checkpoints, not scored alike), RunError, DataError.
    """
    human = _human(suite)
    opened = [read_run(path) for path in expand(paths)]
    found = []
    for model, family in grouped(opened).items():
        named = [run for run in family if milestone(run)]
        members = named if len(named) >= curves.LEAST else family
        points = [(r, cell) for r in members for cell in r if runs.holds(cell, human.words, human.words_origin)]
        for method in dict.fromkeys(cell.method for _, cell in points):
            some = [(run, cell) for run, cell in points if cell.method == method]
            if len(some) >= curves.LEAST:
                found.append(_kept(model, some, _final(opened, members), human))
    if not found:
        hint = f"antlm-bench score --model FOLDER_OF_CHECKPOINTS --suite {suite}"
        message = f"no model has {curves.LEAST} checkpoints, named by words seen, with {human.words}"
        raise UsageError(message, place=str(paths[0]), hint=hint)
    return found


def asked(refs: Sequence[str], checkpoints: int) -> list[str]:
    """The ages of acquisition among references to suites. UsageError where the checkpoints are too few for one."""
    declared = [ref for ref in dict.fromkeys(refs) if ref in catalog("tasks") or ref.endswith(".toml")]
    found = {ref: spec for ref in declared if isinstance(spec := loader.declared(ref)[0], AcquisitionSpec)}
    for ref, spec in found.items():
        if checkpoints < curves.LEAST:
            hint = "--model FOLDER_OF_CHECKPOINTS; or one by one: "
            hint += f"--suite {spec.words}, then antlm-bench acquisition RUN... --suite {ref}"
            message = f"{ref} is of {curves.LEAST} or more checkpoints of a model, not of {checkpoints}"
            raise UsageError(message, place="--suite", hint=hint)
    return list(found)


def _human(suite: str) -> _Human:
    spec, _ = loader.declared(suite)
    if not isinstance(spec, AcquisitionSpec):
        hint = f"e.g. {SUITE}; the checkpoints are scored on its words"
        raise UsageError(f"{suite!r} is no age of acquisition", place="--suite", hint=hint)
    words, folder = loader.suite(spec.words)
    if words.children is None:
        raise UsageError(f"{spec.words!r} says nothing of children", place=f"{spec.name}: words")
    words_origin = loader.origin_of(spec.words, words)
    origin = (*loader.origin_of(suite, spec), *words_origin)
    found = sources.locate(words, words.children.human, folder)
    return _Human(spec, words.name, words_origin, origin, words.children, found)


def _final(opened: Sequence[Run], members: Sequence[Run]) -> Run:
    """The run that keeps the number. UsageError where several final models stand beside these checkpoints."""
    last = members[-1]
    finals = [run for run in opened if not milestone(run) and run not in members and lineage(run) == lineage(last)]
    if len({run.manifest.model.get("weights") for run in finals}) > 1:
        both = ", ".join(run.path for run in finals)
        hint = "keep the runs of each model in a folder of its own (score --out DIR)"
        raise UsageError(f"{len(finals)} final models beside {last.path}: {both}", place="RUN", hint=hint)
    return finals[0] if finals else last


def _kept(model: str, points: Sequence[Point], final: Run, human: _Human) -> Acquired:
    """The cell in the final model's run, computed where it is not there yet."""
    facts = _settings(model, points, human)
    suite, method, name = human.spec.name, str(facts["method"]), key(facts)
    with runs.Writer(final.path, final.manifest) as writer:
        if not writer.done(suite, method, name, origin=human.origin):
            predictions = _predictions([runs.predictions(run.path, cell) for run, cell in points], human)
            summary = summarize_acquisition(
                predictions,
                _ages(predictions, _learner(facts), model),
                significance=human.spec.significance,
                suite=suite,
                method=method,
                notes=_notes(points),
            )
            writer.enter(Cell(suite, method, name, facts, summary, origin=human.origin), predictions)
        cell = next(c for c in writer.cells if (c.suite, c.method, c.key) == (suite, method, name))
    return Acquired(model, final.path, cell)


def _settings(model: str, points: Sequence[Point], human: _Human) -> dict[str, Any]:
    """All that the number depends on; stored beside it, hashed into the key. UsageError for what is no curve."""
    last, cell = points[-1]
    for run, other in points:
        if other.summary.metric != SURPRISAL:
            raise UsageError(f"{other.suite} is no suite of surprisals in {run.path}", hint="score it again")
        pairs = ((said, cell.settings.get(name), other.settings.get(name)) for name, said in DECISIVE.items())
        if unlike := [said for said, one, another in pairs if one != another]:
            message = f"two checkpoints of {model} were not scored alike: {', '.join(unlike)}"
            raise UsageError(message, place=f"{run.path} / {last.path}", hint="score them again, with one command")
    seen = [mark(run) for run, _ in points]
    if len(set(seen)) < len(seen):
        hint = "keep the runs of each model in a folder of its own (score --out DIR)"
        raise UsageError(f"two checkpoints of {model} have seen as many words", hint=hint)
    vocabulary = int(last.manifest.model.get("vocabulary") or 0)
    if vocabulary < 2:
        raise UsageError(f"the runs of {model} do not say how large its vocabulary is", hint="score them again")
    rule = human.spec.rule
    digest = [cell.settings.get("suite_digest"), hashlib.sha256(human.found.raw).hexdigest(), rule]
    return {
        **{name: cell.settings.get(name) for name in ("limit", "bos", "compat", "context")},
        "suite": human.spec.name,
        "suite_version": human.spec.version,
        "suite_digest": hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest(),
        "method": cell.method,
        "vocabulary": vocabulary,
        "checkpoints": [
            {"words": words, "cell": cell.key, "predictions": cell.digest}
            for words, (_, cell) in zip(seen, points, strict=True)
        ],
        "conventions": CONVENTIONS,
        **rule,
    }


def _notes(points: Sequence[Point]) -> list[str]:
    """What a reader must know of the checkpoints."""
    first, last = (amount(mark(points[index][0])) for index in (0, -1))
    carried = [note for note in points[-1][1].summary.notes if note.startswith(("limit", "incomplete"))]
    return [f"over {len(points)} checkpoints, {first} to {last} words", *carried]


def _learner(settings: dict[str, Any] | Any) -> Learner:
    seen = tuple(int(one["words"]) for one in settings["checkpoints"])
    return Learner(seen, int(settings["vocabulary"]), settings["chance"], bool(settings["bounded"]))


def _ages(predictions: Sequence[Prediction], learner: Learner, model: str) -> list[float | None]:
    found = []
    with Progress(len(predictions), f"{model} curves", "words") as progress:  # one that does not converge takes seconds
        for prediction in predictions:
            found.append(learner.age(prediction))
            progress.advance(1)
    return found


def _predictions(points: Sequence[Sequence[Prediction]], human: _Human) -> list[Prediction]:
    """A curve per word that children were asked about and half of them came to know, in the order of the data.

    A context that did not fit into some checkpoint is left out of all.
    """
    children = ages_of_children(human.children, human.found)
    each = [by_context(predictions) for predictions in points]
    made = []
    for word, contexts in each[-1].items():
        age = children.get(word)
        shared = [name for name in contexts if all(name in found.get(word, {}) for found in each)]
        if age is None or not shared:
            continue
        heights = np.array([[found[word][name].scores[0] for name in shared] for found in each])
        scores = (heights.mean(axis=1, keepdims=True) if human.spec.points == "means" else heights).reshape(-1)
        tokens = int(np.median([contexts[name].tokens[0] for name in shared]))
        k = len(scores)
        made.append(
            Prediction(word, age, int(scores.argmax()), tuple(map(float, scores)), (tokens,) * k, (len(word),) * k)
        )
    return made


def ages_of_children(spec: ChildrenSpec, found: sources.Found) -> dict[str, float | None]:
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
