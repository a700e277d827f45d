"""`acquisition`: compute when a model acquires each word, and correlate these ages with children's.

The input is the runs of the model's checkpoints. The result is a cell in the run of the final
model; its predictions are the learning curves of the words.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from antlm_bench import runs
from antlm_bench.comparison.join import DECISIVE_SETTINGS
from antlm_bench.comparison.summary_check import open_verified_run
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import ItemKind, get_metric_spec
from antlm_bench.metrics.acquisition import AcquisitionSettings, summarize_acquisition
from antlm_bench.metrics.records import WORD_LABEL
from antlm_bench.predictions import OptionColumns, Predictions
from antlm_bench.progress import Progress
from antlm_bench.results.checkpoint_series import (
    checkpoint_series_key,
    expand_run_dirs,
    format_word_count,
    group_checkpoints,
    milestone_or_words_seen,
    parse_milestone,
)
from antlm_bench.runs.layout import content_key
from antlm_bench.runs.table_files import TableValue
from antlm_bench.safe_files import find_url
from antlm_bench.scoring.multiple_choice import find_best_options
from antlm_bench.statistics import acquisition as curves
from antlm_bench.suites import loader, records, sources
from antlm_bench.suites.acquisition import AcquisitionSpec, ChildVocabularySpec
from antlm_bench.suites.task_types import find_task_type, read_declaration_of_type
from antlm_bench.suites.templates import get_field
from antlm_bench.types import Cell, Item, Run

DEFAULT_SUITE = "aoa-2026"
CONVENTIONS_VERSION = 1
"""Part of the cell's key. Raised if the result of unchanged runs may change."""
SEPARATE_FOLDERS_HINT = "keep the runs of each model in a folder of its own (score --out DIR)"
CheckpointCell = tuple[Run, Cell]
"""The run of a checkpoint, and its cell with the surprisal of the words."""


@dataclass(frozen=True, slots=True)
class AcquisitionResult:
    """The ages of acquisition of one model under one method, and their correlation."""

    model: str
    run_dir: str
    """The run folder that has the cell."""
    cell: Cell
    """The correlation. Its settings name the checkpoints."""

    def word_rows(self) -> list[dict[str, TableValue]]:
        """Return a row per word, with the children's age in months and the model's age.

        The model's age is log10 of the words seen; None if the curve has no age.
        """
        predictions = runs.read_predictions(self.run_dir, self.cell)
        ages = _compute_ages(predictions, _build_curve_model(self.cell.settings), self.model)
        return [
            {
                "word": word,
                "n_tokens": num_tokens,
                "children_months": months,
                "model_log10_words": age,
                "lowest_surprisal_nats": -max(scores),
            }
            for word, num_tokens, months, age, scores in zip(
                predictions.ids,
                predictions.first("tokens").tolist(),
                predictions.gold.tolist(),
                ages,
                predictions.iter_options("scores"),
                strict=True,
            )
        ]


@dataclass(frozen=True, slots=True)
class _ChildData:
    """The declaration of an age-of-acquisition suite, and the children's data."""

    spec: AcquisitionSpec
    word_suite: str
    """Name of the suite of the words' surprisal, on which checkpoints are scored."""
    word_suite_origin: tuple[str, ...]
    """The declaration of that suite, if it is a file of the user."""
    origin: tuple[str, ...]
    """The declarations of both suites, as far as they are files of the user."""
    children_spec: ChildVocabularySpec
    data_file: sources.DataFile
    """Shares of children that know each word, by age."""


def compute_acquisition(
    paths: Sequence[str | Path], suite: str = DEFAULT_SUITE
) -> list[AcquisitionResult]:
    """Compute the ages of acquisition of each model from the runs of its checkpoints.

    paths: run folders, or folders of them, scored on the words of `suite`. The result is stored as
    a cell in the run of the final model, whose name is not the name of a milestone; without a final
    model, in the run of the last checkpoint. A cell under the same content key is not computed
    again. Raises UsageError (no such suite, too few checkpoints, scored with different settings),
    RunError, DataError.
    """
    for path in paths:
        if url := find_url(path):
            raise UsageError(
                "the result is written into a run folder, so it cannot be a URL",
                location=url,
                hint="copy the runs into a local folder: aws s3 sync s3://... DIR",
            )
    child_data = _load_child_data(suite)
    all_runs = [open_verified_run(path) for path in expand_run_dirs(paths)]
    results = []
    for model, series in group_checkpoints(all_runs).items():
        milestones = [run for run in series if parse_milestone(run)]
        members = milestones if len(milestones) >= curves.MIN_POINTS else series
        cells = [
            (run, cell)
            for run in members
            for cell in run
            if runs.cell_has_suite(cell, child_data.word_suite, child_data.word_suite_origin)
        ]
        for method in dict.fromkeys(cell.method for _, cell in cells):
            points = [(run, cell) for run, cell in cells if cell.method == method]
            if len(points) >= curves.MIN_POINTS:
                final_run = _select_final_run(all_runs, members)
                results.append(_load_or_compute(model, points, final_run, child_data))
    if not results:
        raise UsageError(
            f"no model has {curves.MIN_POINTS} checkpoints with known words seen and scores of "
            f"{child_data.word_suite}",
            location=str(paths[0]),
            hint=f"antlm-bench score --model FOLDER_OF_CHECKPOINTS --suite {shlex.quote(suite)}",
        )
    return results


def find_acquisition_suites(refs: Sequence[str], num_checkpoints: int) -> list[str]:
    """Return the references of age-of-acquisition suites.

    Raises UsageError if there are some, and too few checkpoints.
    """
    suites = [ref for ref in dict.fromkeys(refs) if find_task_type(ref).needs_checkpoint_series]
    for ref in suites:
        if num_checkpoints < curves.MIN_POINTS:
            words = read_declaration_of_type(ref, AcquisitionSpec)[0].words
            raise UsageError(
                f"{ref} needs {curves.MIN_POINTS} or more checkpoints of a model; "
                f"{num_checkpoints} is too few",
                location="--suite",
                hint="use --model FOLDER_OF_CHECKPOINTS; or score each checkpoint with "
                f"--suite {shlex.quote(words)}, then antlm-bench acquisition RUN... --suite "
                f"{shlex.quote(ref)}",
            )
    return suites


def _load_child_data(suite: str) -> _ChildData:
    hint = f"e.g. {DEFAULT_SUITE}; the checkpoints are scored on its words"
    spec, _ = read_declaration_of_type(suite, AcquisitionSpec, hint=hint)
    words, folder = loader.read_suite_spec(spec.words)
    if words.children is None:
        raise UsageError(
            f"{spec.words!r} declares no data of children", location=f"{spec.name}: words"
        )
    words_origin = loader.find_origin(spec.words, words)
    origin = (*loader.find_origin(suite, spec), *words_origin)
    data_file = sources.get_file(words, words.children.human, folder)
    return _ChildData(spec, words.name, words_origin, origin, words.children, data_file)


def _select_final_run(all_runs: Sequence[Run], checkpoint_runs: Sequence[Run]) -> Run:
    """Return the run in which the result is stored.

    Raises UsageError if several final models belong to these checkpoints.
    """
    last_checkpoint = checkpoint_runs[-1]
    final_runs = [
        run
        for run in all_runs
        if not parse_milestone(run)
        and run not in checkpoint_runs
        and checkpoint_series_key(run) == checkpoint_series_key(last_checkpoint)
    ]
    if len({run.manifest.model.get("weights") for run in final_runs}) > 1:
        paths = ", ".join(run.path for run in final_runs)
        message = f"{len(final_runs)} final models belong to {last_checkpoint.path}: {paths}"
        raise UsageError(message, location="RUN", hint=SEPARATE_FOLDERS_HINT)
    return final_runs[0] if final_runs else last_checkpoint


def _load_or_compute(
    model: str, checkpoint_cells: Sequence[CheckpointCell], final_run: Run, child_data: _ChildData
) -> AcquisitionResult:
    """Return the cell in the final model's run. Compute it if it is missing."""
    settings = _build_settings(model, checkpoint_cells, child_data)
    suite, method, key = child_data.spec.name, str(settings["method"]), content_key(settings)
    origin = child_data.origin
    with runs.RunWriter(final_run.path, final_run.manifest) as writer:
        if not writer.is_complete(suite, method, key, origin=origin):
            stored = [runs.read_predictions(run.path, cell) for run, cell in checkpoint_cells]
            predictions = _build_predictions(stored, child_data)
            summary = summarize_acquisition(
                predictions.gold,
                _compute_ages(predictions, _build_curve_model(settings), model),
                significance=child_data.spec.significance,
                suite=suite,
                method=method,
                notes=_build_notes(checkpoint_cells),
            )
            new_cell = Cell(suite, method, key, settings, summary, origin=origin)
            writer.write_cell(new_cell, predictions)
        cell = next(c for c in writer.cells if (c.suite, c.method, c.key) == (suite, method, key))
    return AcquisitionResult(model, final_run.path, cell)


def _build_settings(
    model: str, checkpoint_cells: Sequence[CheckpointCell], child_data: _ChildData
) -> dict[str, Any]:
    """Return everything that the result depends on. Its hash is the cell's key.

    Raises UsageError if the cells cannot be points of one learning curve.
    """
    last, cell = checkpoint_cells[-1]
    for run, other in checkpoint_cells:
        if get_metric_spec(other.summary.metric).item_kind is not ItemKind.TEXT:
            message = f"{run.path} has no surprisals of {other.suite}"
            raise UsageError(message, hint="score it again")
        differing = [
            label
            for name, label in DECISIVE_SETTINGS.items()
            if cell.settings.get(name) != other.settings.get(name)
        ]
        if differing:
            raise UsageError(
                f"two checkpoints of {model} were scored with different {', '.join(differing)}",
                location=f"{run.path} / {last.path}",
                hint="score them again, with one command",
            )
    words_seen = [milestone_or_words_seen(run) for run, _ in checkpoint_cells]
    if len(set(words_seen)) < len(words_seen):
        message = f"two checkpoints of {model} have seen the same number of words"
        raise UsageError(message, hint=SEPARATE_FOLDERS_HINT)
    vocabulary = int(last.manifest.model.get("vocabulary") or 0)
    if vocabulary < 2:
        raise UsageError(
            f"the runs of {model} do not record the size of its vocabulary",
            hint="score them again",
        )
    rules = child_data.spec.scoring_settings
    children_digest = hashlib.sha256(child_data.data_file.raw).hexdigest()
    digest = [cell.settings.get("suite_digest"), children_digest, rules]
    return {
        **{name: cell.settings.get(name) for name in ("limit", "bos", "compat", "context")},
        "suite": child_data.spec.name,
        "suite_version": child_data.spec.version,
        "suite_digest": hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest(),
        "method": cell.method,
        "vocabulary": vocabulary,
        "checkpoints": [
            {"words": words, "cell": cell.key, "predictions": cell.digest}
            for words, (_, cell) in zip(words_seen, checkpoint_cells, strict=True)
        ],
        "conventions": CONVENTIONS_VERSION,
        **rules,
    }


def _build_notes(checkpoint_cells: Sequence[CheckpointCell]) -> list[str]:
    """Return sentences that qualify the score."""
    (first_run, _), (last_run, last_cell) = checkpoint_cells[0], checkpoint_cells[-1]
    first, last = (format_word_count(milestone_or_words_seen(run)) for run in (first_run, last_run))
    inherited = [
        note for note in last_cell.summary.notes if note.startswith(("limit", "incomplete"))
    ]
    return [f"over {len(checkpoint_cells)} checkpoints, {first} to {last} words", *inherited]


def _build_curve_model(settings: Mapping[str, Any]) -> AcquisitionSettings:
    words_seen = tuple(int(checkpoint["words"]) for checkpoint in settings["checkpoints"])
    vocabulary, bounded = int(settings["vocabulary"]), bool(settings["bounded"])
    return AcquisitionSettings(words_seen, vocabulary, settings["chance"], bounded)


def _compute_ages(
    predictions: Predictions, curve_model: AcquisitionSettings, model: str
) -> list[float | None]:
    ages = []
    # A curve that does not converge takes seconds.
    with Progress(f"{model} curves", "words", total=len(predictions)) as progress:
        num_tokens = predictions.first("tokens").tolist()
        for scores, tokens in zip(predictions.iter_options("scores"), num_tokens, strict=True):
            ages.append(curve_model.age_of_acquisition(-np.array(scores), tokens))
            progress.advance(1)
    return ages


def _build_predictions(
    predictions_by_checkpoint: Sequence[Predictions], child_data: _ChildData
) -> Predictions:
    """Return the learning curve of each word that half of the children know at some age.

    A context that did not fit one of the checkpoints is left out for all of them.
    """
    children_ages = compute_children_ages(child_data.children_spec, child_data.data_file)
    checkpoints = [group_by_word(predictions) for predictions in predictions_by_checkpoint]
    items, curves, num_tokens = [], [], []
    for word, contexts in checkpoints[-1].items():
        age = children_ages.get(word)
        shared_contexts = [
            name
            for name in contexts
            if all(name in checkpoint.get(word, {}) for checkpoint in checkpoints)
        ]
        if age is None or not shared_contexts:
            continue
        logprobs = np.array(  # (checkpoints, contexts)
            [
                [checkpoint[word][name].logprob for name in shared_contexts]
                for checkpoint in checkpoints
            ]
        )
        if child_data.spec.points == "means":
            logprobs = logprobs.mean(axis=1)
        items.append(Item(word, options=(), gold=age))
        curves.append(logprobs.reshape(-1))
        num_tokens.append(int(np.median([contexts[name].num_tokens for name in shared_contexts])))
    num_points = np.array([len(curve) for curve in curves], np.int32)
    options = OptionColumns(
        num_points,
        np.concatenate([*curves, np.empty(0)]),
        np.repeat(np.array(num_tokens, np.int32), num_points),
        np.repeat(np.array([len(item.id) for item in items], np.int32), num_points),
    )
    return Predictions.build(items, find_best_options(options.scores, num_points), options)


class WordInContext(NamedTuple):
    """The score of a word in one of its contexts."""

    logprob: float
    """Natural log-probability of the word."""
    num_tokens: int


def group_by_word(predictions: Predictions) -> dict[str, dict[str, WordInContext]]:
    """Return word -> item id -> score in that context, without contexts that were too long."""
    by_word: dict[str, dict[str, WordInContext]] = {}
    logprobs = predictions.first("scores").tolist()
    num_tokens = predictions.first("tokens").tolist()
    words = predictions.labels(WORD_LABEL)
    too_long = predictions.has_flag("too-long").tolist()
    rows = zip(predictions.ids, words, logprobs, num_tokens, too_long, strict=True)
    for item_id, word, logprob, tokens, is_too_long in rows:
        if word is not None and not is_too_long:
            by_word.setdefault(word, {})[item_id] = WordInContext(logprob, tokens)
    return by_word


def compute_children_ages(
    spec: ChildVocabularySpec, data_file: sources.DataFile
) -> dict[str, float | None]:
    """Return word -> age in months at which half of the children know it, or None.

    Raises DataError with the line.
    """
    ages = np.arange(spec.ages[0], spec.ages[1] + 1, dtype=float)
    ages_by_word = {}
    for line, record in records.read_records(data_file.raw, spec.human, data_file.location):
        location = f"{data_file.location}:{line}"
        shares = [
            _parse_proportion(get_field(record, f"{age:g}", location), location) for age in ages
        ]
        word = str(get_field(record, "word", location))
        ages_by_word[word] = curves.child_age_of_acquisition(ages, np.array(shares))
    return ages_by_word


def _parse_proportion(value: object, location: str) -> float:
    try:
        share = float(str(value)) if value not in ("", None) else math.nan
    except ValueError:
        share = math.inf
    if share < 0 or share > 1:
        message = f"a share of children must lie in 0..1, not {value!r:.40}"
        raise DataError(message, location=location)
    return share
