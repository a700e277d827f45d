"""acquisition: run folders of a model's checkpoints -> when it acquired each word, and whether
children agree.

The number is an ordinary cell, kept in the run of the final model: its predictions are the words'
curves.
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
from antlm_bench.commands.cells import content_key
from antlm_bench.commands.curve import (
    checkpoint_series_key,
    expand_run_dirs,
    format_word_count,
    group_checkpoints,
    milestone_or_words_seen,
    parse_milestone,
)
from antlm_bench.compare.join import DECISIVE_SETTINGS
from antlm_bench.compare.summary_check import read_run
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import ItemKind, get_metric_spec
from antlm_bench.metrics.acquisition import AcquisitionCurves, summarize_acquisition
from antlm_bench.metrics.surprisal import group_by_word
from antlm_bench.reporting.progress import Progress
from antlm_bench.runs.table_files import TableValue
from antlm_bench.statistics import acquisition as curves
from antlm_bench.suites import loader, records, sources
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.reading_times_spec import ChildVocabularySpec
from antlm_bench.suites.task_types import find_task_type, read_declaration_as
from antlm_bench.suites.templates import get_field
from antlm_bench.types import Cell, Prediction, Run

DEFAULT_SUITE = "aoa-2026"
CONVENTIONS_VERSION = (
    1  # raised whenever the number of unchanged runs may move; part of the cell's key
)
CheckpointCell = tuple[Run, Cell]  # a checkpoint, and its surprisals of the words


@dataclass(frozen=True, slots=True)
class AcquisitionResult:
    """One model under one method. run: the folder that keeps the number. cell: its settings name
    the checkpoints.
    """

    model: str
    run_dir: str
    cell: Cell

    def word_rows(self) -> list[dict[str, TableValue]]:
        """Per word its age in months (children) and log10 of the words seen (model), None where its
        curve has none.
        """
        predictions = runs.read_predictions(self.run_dir, self.cell)
        ages = _compute_ages(predictions, _build_learner(self.cell.settings), self.model)
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
class _ChildData:
    """An age of acquisition and the human side of it: where children's ages stand."""

    spec: AcquisitionSpec
    word_suite: str
    word_suite_origin: tuple[str, ...]
    origin: tuple[
        str, ...
    ]  # of the declaration and of its words, as far as they are files of the user's
    children_spec: ChildVocabularySpec
    data_file: sources.DataFile


def compute_acquisition(
    paths: Sequence[str | Path], suite: str = DEFAULT_SUITE
) -> list[AcquisitionResult]:
    """What the checkpoints of each model, scored on the words of `suite`, say together; kept as a
    cell.

    paths: run folders, or folders of them. The cell goes to the run of the final model, whose name
    is no milestone's, else to the last checkpoint's; one that is there under the same content key
    is not computed again. Raises UsageError (no such suite, too few checkpoints, not scored alike),
    RunError, DataError.
    """
    human = _load_child_data(suite)
    opened = [read_run(path) for path in expand_run_dirs(paths)]
    found = []
    for model, family in group_checkpoints(opened).items():
        named = [run for run in family if parse_milestone(run)]
        members = named if len(named) >= curves.MIN_POINTS else family
        points = [
            (r, cell)
            for r in members
            for cell in r
            if runs.cell_has_suite(cell, human.word_suite, human.word_suite_origin)
        ]
        for method in dict.fromkeys(cell.method for _, cell in points):
            some = [(run, cell) for run, cell in points if cell.method == method]
            if len(some) >= curves.MIN_POINTS:
                found.append(
                    _load_or_compute(model, some, _select_final_run(opened, members), human)
                )
    if not found:
        hint = f"antlm-bench score --model FOLDER_OF_CHECKPOINTS --suite {suite}"
        message = f"no model has {curves.MIN_POINTS} checkpoints, named by words seen, with {human.word_suite}"
        raise UsageError(message, location=str(paths[0]), hint=hint)
    return found


def find_acquisition_suites(refs: Sequence[str], num_checkpoints: int) -> list[str]:
    """Return the references that name an age of acquisition.

    Raises UsageError where the checkpoints are too few for one.
    """
    suites = [ref for ref in dict.fromkeys(refs) if find_task_type(ref).over_checkpoints]
    for ref in suites:
        if num_checkpoints < curves.MIN_POINTS:
            words = read_declaration_as(ref, AcquisitionSpec)[0].words
            raise UsageError(
                f"{ref} is of {curves.MIN_POINTS} or more checkpoints of a model, "
                f"not of {num_checkpoints}",
                location="--suite",
                hint="--model FOLDER_OF_CHECKPOINTS; or one by one: "
                f"--suite {words}, then antlm-bench acquisition RUN... --suite {ref}",
            )
    return suites


def _load_child_data(suite: str) -> _ChildData:
    hint = f"e.g. {DEFAULT_SUITE}; the checkpoints are scored on its words"
    spec, _ = read_declaration_as(suite, AcquisitionSpec, hint=hint)
    words, folder = loader.read_suite_spec(spec.words)
    if words.children is None:
        raise UsageError(f"{spec.words!r} says nothing of children", location=f"{spec.name}: words")
    words_origin = loader.find_origin(spec.words, words)
    origin = (*loader.find_origin(suite, spec), *words_origin)
    found = sources.get_file(words, words.children.human, folder)
    return _ChildData(spec, words.name, words_origin, origin, words.children, found)


def _select_final_run(all_runs: Sequence[Run], checkpoint_runs: Sequence[Run]) -> Run:
    """The run that keeps the number. UsageError where several final models stand beside these
    checkpoints.
    """
    last = checkpoint_runs[-1]
    finals = [
        run
        for run in all_runs
        if not parse_milestone(run)
        and run not in checkpoint_runs
        and checkpoint_series_key(run) == checkpoint_series_key(last)
    ]
    if len({run.manifest.model.get("weights") for run in finals}) > 1:
        both = ", ".join(run.path for run in finals)
        hint = "keep the runs of each model in a folder of its own (score --out DIR)"
        raise UsageError(
            f"{len(finals)} final models beside {last.path}: {both}", location="RUN", hint=hint
        )
    return finals[0] if finals else last


def _load_or_compute(
    model: str, checkpoint_cells: Sequence[CheckpointCell], final_run: Run, child_data: _ChildData
) -> AcquisitionResult:
    """The cell in the final model's run, computed where it is not there yet."""
    facts = _build_settings(model, checkpoint_cells, child_data)
    suite, method, name = child_data.spec.name, str(facts["method"]), content_key(facts)
    with runs.RunWriter(final_run.path, final_run.manifest) as writer:
        if not writer.is_complete(suite, method, name, origin=child_data.origin):
            predictions = _build_predictions(
                [runs.read_predictions(run.path, cell) for run, cell in checkpoint_cells],
                child_data,
            )
            summary = summarize_acquisition(
                predictions,
                _compute_ages(predictions, _build_learner(facts), model),
                significance=child_data.spec.significance,
                suite=suite,
                method=method,
                notes=_build_notes(checkpoint_cells),
            )
            writer.write_cell(
                Cell(suite, method, name, facts, summary, origin=child_data.origin), predictions
            )
        cell = next(c for c in writer.cells if (c.suite, c.method, c.key) == (suite, method, name))
    return AcquisitionResult(model, final_run.path, cell)


def _build_settings(
    model: str, checkpoint_cells: Sequence[CheckpointCell], child_data: _ChildData
) -> dict[str, Any]:
    """All that the number depends on; stored beside it, hashed into the key. UsageError for what is
    no curve.
    """
    last, cell = checkpoint_cells[-1]
    for run, other in checkpoint_cells:
        if get_metric_spec(other.summary.metric).item_kind is not ItemKind.TEXT:
            raise UsageError(
                f"{other.suite} is no suite of surprisals in {run.path}", hint="score it again"
            )
        pairs = (
            (said, cell.settings.get(name), other.settings.get(name))
            for name, said in DECISIVE_SETTINGS.items()
        )
        if unlike := [said for said, one, another in pairs if one != another]:
            message = f"two checkpoints of {model} were not scored alike: {', '.join(unlike)}"
            raise UsageError(
                message,
                location=f"{run.path} / {last.path}",
                hint="score them again, with one command",
            )
    seen = [milestone_or_words_seen(run) for run, _ in checkpoint_cells]
    if len(set(seen)) < len(seen):
        hint = "keep the runs of each model in a folder of its own (score --out DIR)"
        raise UsageError(f"two checkpoints of {model} have seen as many words", hint=hint)
    vocabulary = int(last.manifest.model.get("vocabulary") or 0)
    if vocabulary < 2:
        raise UsageError(
            f"the runs of {model} do not say how large its vocabulary is", hint="score them again"
        )
    rule = child_data.spec.scoring_settings
    digest = [
        cell.settings.get("suite_digest"),
        hashlib.sha256(child_data.data_file.raw).hexdigest(),
        rule,
    ]
    return {
        **{name: cell.settings.get(name) for name in ("limit", "bos", "compat", "context")},
        "suite": child_data.spec.name,
        "suite_version": child_data.spec.version,
        "suite_digest": hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest(),
        "method": cell.method,
        "vocabulary": vocabulary,
        "checkpoints": [
            {"words": words, "cell": cell.key, "predictions": cell.digest}
            for words, (_, cell) in zip(seen, checkpoint_cells, strict=True)
        ],
        "conventions": CONVENTIONS_VERSION,
        **rule,
    }


def _build_notes(checkpoint_cells: Sequence[CheckpointCell]) -> list[str]:
    """What a reader must know of the checkpoints."""
    first, last = (
        format_word_count(milestone_or_words_seen(checkpoint_cells[index][0])) for index in (0, -1)
    )
    carried = [
        note
        for note in checkpoint_cells[-1][1].summary.notes
        if note.startswith(("limit", "incomplete"))
    ]
    return [f"over {len(checkpoint_cells)} checkpoints, {first} to {last} words", *carried]


def _build_learner(settings: dict[str, Any] | Any) -> AcquisitionCurves:
    seen = tuple(int(one["words"]) for one in settings["checkpoints"])
    return AcquisitionCurves(
        seen, int(settings["vocabulary"]), settings["chance"], bool(settings["bounded"])
    )


def _compute_ages(
    predictions: Sequence[Prediction], learner: AcquisitionCurves, model: str
) -> list[float | None]:
    found = []
    with Progress(
        len(predictions), f"{model} curves", "words"
    ) as progress:  # one that does not converge takes seconds
        for prediction in predictions:
            found.append(learner.age_of_acquisition(prediction))
            progress.advance(1)
    return found


def _build_predictions(
    predictions_by_checkpoint: Sequence[Sequence[Prediction]], child_data: _ChildData
) -> list[Prediction]:
    """A curve per word that children were asked about and half of them came to know, in the order
    of the data.

    A context that did not fit into some checkpoint is left out of all.
    """
    children = compute_children_ages(child_data.children_spec, child_data.data_file)
    each = [group_by_word(predictions) for predictions in predictions_by_checkpoint]
    made = []
    for word, contexts in each[-1].items():
        age = children.get(word)
        shared = [name for name in contexts if all(name in found.get(word, {}) for found in each)]
        if age is None or not shared:
            continue
        heights = np.array([[found[word][name].scores[0] for name in shared] for found in each])
        scores = (
            heights.mean(axis=1, keepdims=True) if child_data.spec.points == "means" else heights
        ).reshape(-1)
        tokens = int(np.median([contexts[name].tokens[0] for name in shared]))
        k = len(scores)
        made.append(
            Prediction(
                word,
                age,
                int(scores.argmax()),
                tuple(map(float, scores)),
                (tokens,) * k,
                (len(word),) * k,
            )
        )
    return made


def compute_children_ages(
    spec: ChildVocabularySpec, data_file: sources.DataFile
) -> dict[str, float | None]:
    """word -> age in months at which half of the children know it. DataError names the line."""
    ages = np.arange(spec.ages[0], spec.ages[1] + 1, dtype=float)
    known = {}
    for line, record in records.read_records(data_file.raw, spec.human, data_file.location):
        place = f"{data_file.location}:{line}"
        shares = [_parse_proportion(get_field(record, f"{age:g}", place), place) for age in ages]
        known[str(get_field(record, "word", place))] = curves.child_age_of_acquisition(
            ages, np.array(shares)
        )
    return known


def _parse_proportion(value: object, location: str) -> float:
    try:
        share = float(str(value)) if value not in ("", None) else math.nan
    except ValueError:
        share = math.inf
    if share < 0 or share > 1:
        raise DataError(
            f"a share of children must lie in 0..1, not {value!r:.40}", location=location
        )
    return share
