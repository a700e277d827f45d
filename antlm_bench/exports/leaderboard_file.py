"""Build a submission file from run folders, as the official collators write it.

Runs do not store the texts of items. The text of the chosen option is looked up in the suite's
data, after a check that these are the data that were scored (equal digest). Missing parts are
listed and never filled in.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from antlm_bench import runs
from antlm_bench.comparison.summary_check import check_cell
from antlm_bench.errors import BenchError, IncompleteError, UsageError
from antlm_bench.exports.deviations import PartSource
from antlm_bench.exports.external_parts import SuiteLoader, check_external_part
from antlm_bench.exports.leaderboard import (
    LeaderboardSpec,
    PartSpec,
    TieRule,
    build_finetune_command,
    build_score_command,
    count_expected_answers,
    count_expected_subkeys,
    get_model_name,
    get_model_reference,
)
from antlm_bench.exports.leaderboard_answers import (
    TIE_RULE_DESCRIPTIONS,
    LeaderboardAnswers,
    MilestoneScores,
    build_curve_rows,
    build_surprisal_rows,
    build_text_answers,
    compute_milestone_scores,
    require_complete,
)
from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import format_count
from antlm_bench.scoring.conventions import PEER_CONVENTIONS
from antlm_bench.scoring.methods import get_method
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Cell, Run, finetune_method

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MissingPart:
    """A part that cannot be written."""

    key: str
    """The part's (dotted) key in the file."""
    reason: str
    hint: str
    """The command that computes the part."""

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" + (f"\n      {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class LeaderboardFile:
    """The content of a submission file, and where it comes from."""

    document: dict[str, Any]
    """The JSON object to write."""
    missing_parts: tuple[MissingPart, ...]
    notes: tuple[str, ...]
    """Sentences for the user about the content."""
    sources: tuple[PartSource, ...] = ()
    """The cells that were read, including those of parts that turned out to be incomplete."""

    @property
    def written_sources(self) -> list[PartSource]:
        """The cells of the parts that the document contains."""
        return [source for source in self.sources if has_content(self._get_part(source.key))]

    def _get_part(self, key: str) -> Any:
        """Return the value under a (dotted) key, or None."""
        if key in self.document:
            return self.document[key]
        outer, _, inner = key.partition(".")
        return (self.document.get(outer) or {}).get(inner)


def has_content(value: Any) -> bool:
    """Return whether a JSON value contains more than empty objects, empty lists and null."""
    if isinstance(value, dict):
        return any(map(has_content, value.values()))
    if isinstance(value, list):
        return any(map(has_content, value))
    return value is not None


@dataclass(slots=True)
class LeaderboardFileBuilder:
    """Builds a submission file part by part."""

    board: LeaderboardSpec
    track: str
    final_run: Run
    """The run of the final model."""
    milestone_runs: Mapping[int, Run]
    """Millions of words seen -> the run of that checkpoint."""
    load_suite: SuiteLoader
    method: str
    """The scoring method of the zero-shot parts."""
    seed: int | None = None
    """Finetuning seed of the labels. None = the run's only seed, or the official one."""
    tie_rule: TieRule | None = None
    """None = the official rule."""
    missing_parts: list[MissingPart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[PartSource] = field(default_factory=list)

    def build(self, external_parts: Mapping[str, Any]) -> LeaderboardFile:
        """Build the submission file.

        external_parts: (dotted) key -> JSON value of a part that another tool computed; it is
        checked and copied. Raises UsageError for a key that the file does not have, and if the run
        has several seeds and none was chosen; DataError for a wrong external part.
        """
        milestones = self.board.milestones_of_track(self.track)
        milestones_key = self.board.milestones_key
        parts = {part.key: part for part in self.board.parts_of_track(self.track)}
        milestone_parts = {}
        if milestones:
            milestone_parts = {
                f"{milestones_key}.{part.key}": part for part in self.board.milestone_parts
            }
        all_parts = parts | milestone_parts
        if unknown_keys := external_parts.keys() - all_parts.keys():
            message = f"the file has no part {min(unknown_keys)!r}"
            raise UsageError(message, location="--part", hint=f"its parts: {', '.join(all_parts)}")
        for key, value in external_parts.items():
            is_milestone_part = key in milestone_parts
            self.notes += check_external_part(
                key, value, all_parts[key], milestones, self.load_suite, is_milestone_part
            )
        writes_null = self.board.missing_part == "null"
        document: dict[str, Any] = {}
        for key, part in parts.items():
            if key in external_parts:
                value = external_parts[key]
            else:
                value = self._build_or_record_missing(key, partial(self._build_part, part))
            if value is None and writes_null and part.answer_format == "class":
                value = {}  # The official file has {} for labels and null for other parts.
            if writes_null or key in external_parts or has_content(value):
                document[key] = value
        milestone_values = {}
        for key, part in milestone_parts.items():
            if key in external_parts:
                value = external_parts[key]
            else:
                value = self._build_milestone_scores(key, part)
            if (writes_null and value) or key in external_parts or has_content(value):
                milestone_values[part.key] = value
        if milestone_values:
            document[milestones_key] = milestone_values
        notes = tuple(dict.fromkeys([*self.board.notes, *self.notes]))
        return LeaderboardFile(document, tuple(self.missing_parts), notes, tuple(self.sources))

    def _build_or_record_missing(self, key: str, build: Callable[[], T]) -> T | None:
        """Call `build`. If it fails, record a missing part under `key` and return None.

        A UsageError is raised: the user must choose first.
        """
        try:
            return build()
        except UsageError:
            raise
        except BenchError as error:
            self.missing_parts.append(MissingPart(key, format_error(error), error.hint))
            return None

    def _build_part(self, part: PartSpec) -> Mapping[str, Any] | None:
        if part.answer_format == "curves":
            return self._build_curves(part)
        if part.answer_format == "headline":
            return self._build_headline(part)
        if part.answer_format == "class":
            return self._build_all_labels(part)
        cell = self._find_cell(self.final_run, part)
        self.sources.append(PartSource(part.key, self.final_run, cell))
        predictions = runs.read_predictions(self.final_run.path, cell)
        answers: LeaderboardAnswers
        if part.answer_format == "surprisal":
            answers = {part.key: {"predictions": list(build_surprisal_rows(predictions))}}
        else:
            suite = self._load_scored_suite(self.final_run, cell)
            answers, notes = build_text_answers(
                part, predictions, suite, cell, self._resolved_tie_rule, self._softmax
            )
            self.notes += notes
        self._check_counts(part, answers)
        return answers

    def _check_counts(self, part: PartSpec, answers: LeaderboardAnswers) -> None:
        """Raise IncompleteError unless the part has as many answers as the official file."""
        num_subkeys = count_expected_subkeys(self.board.name, part.key)
        expected_counts = count_expected_answers(self.board.name, part.key)
        if num_subkeys is not None:
            expected_counts = dict.fromkeys(answers, 1)
        counts = {key: len(rows["predictions"]) for key, rows in answers.items()}
        problems = [
            f"{key} {counts.get(key, 0)} of {expected}"
            for key, expected in expected_counts.items()
            if counts.get(key, 0) != expected
        ]
        problems += [f"unexpected key {key}" for key in counts.keys() - expected_counts.keys()]
        if num_subkeys is not None and num_subkeys != len(answers):
            problems.append(f"{len(answers)} of {num_subkeys}")
        if problems:
            raise IncompleteError(
                f"incomplete: {', '.join(problems[:3])}{', ...' if len(problems) > 3 else ''}",
                hint=f"get all data (antlm-bench data fetch {shlex.quote(part.suite)}), "
                "then score again",
            )

    def _build_all_labels(self, part: PartSpec) -> LeaderboardAnswers | None:
        """Return the labels of every finetuned task.

        None if labels are missing and the file may not show a missing part as null.
        """
        if not any(cell.suite.startswith(f"{part.suite}.") for cell in self.final_run):
            raise IncompleteError(
                f"{self.final_run.path} has no task of {part.suite}",
                hint=self._build_finetune_command(part.suite),
            )
        expected_counts = count_expected_answers(self.board.name, part.key)
        labels: LeaderboardAnswers = {}
        for task, count in expected_counts.items():
            task_labels = self._build_or_record_missing(
                f"{part.key}.{task}", partial(self._build_labels, part, task, count)
            )
            if task_labels:
                labels[task] = task_labels
        if len(labels) < len(expected_counts) and self.board.missing_part == "omit":
            return None
        return labels

    def _load_scored_suite(self, run: Run, cell: Cell) -> Suite:
        """Load the suite of a cell. Raises IncompleteError if the cell was scored on other data."""
        suite = self.load_suite(cell.suite)
        if cell.settings.get("suite_digest", suite.digest) != suite.digest:
            raise IncompleteError(
                f"the data of {cell.suite} differ from the data that {run.path} was scored on",
                hint=build_score_command(run, cell.suite, self.method, self.board),
            )
        return suite

    def _build_curves(self, part: PartSpec) -> Mapping[str, Any] | None:
        """Return the surprisals of words at every milestone; None if milestones are missing."""

        def build_rows(milestone: int, run: Run) -> list[dict[str, Any]]:
            cell = require_complete(self._find_cell(run, part))
            self.sources.append(PartSource(part.key, run, cell, milestone))
            predictions = runs.read_predictions(run.path, cell)
            return list(
                build_curve_rows(predictions, self._load_scored_suite(run, cell), milestone)
            )

        rows_by_milestone = self._map_milestones(part.key, part, build_rows)
        results = [row for rows in rows_by_milestone if rows is not None for row in rows]
        if num_too_long := sum(math.isnan(row["surprisal"]) for row in results):
            self.notes.append(
                f"{part.key}: NaN, because too long for the model with its context: "
                f"{format_count(num_too_long, 'word')}"
            )
        if None in rows_by_milestone:
            return None
        metadata = {
            "model_name": get_model_name(self.final_run),
            "use_bos_only": False,
            "total_steps": len(rows_by_milestone),
            "completed_steps": len(rows_by_milestone),
        }
        return {"metadata": metadata, "results": results}

    def _build_headline(self, part: PartSpec) -> Mapping[str, Any]:
        """Return {key: score} of a suite that is computed from the surprisals of the milestones.

        Raises IncompleteError unless it was computed from the surprisals of exactly these runs.
        """
        runs_dir = str(Path(self.final_run.path).parent)
        command = shlex.join(["antlm-bench", "acquisition", runs_dir, "--suite", part.suite])
        # The command stores its result in one of the runs.
        latest_first = [run for _, run in sorted(self.milestone_runs.items(), reverse=True)]
        candidates = [
            (run, cell)
            for run in (self.final_run, *latest_first)
            for cell in run
            if cell.suite == part.suite and cell.method == self.method
        ]
        if not candidates:
            raise IncompleteError(f"no run has {part.suite} by {self.method}", hint=command)
        run, cell = candidates[0]
        milestones = self.board.milestones_of_track(self.track)
        word_suites = {spec.suite for spec in self.board.parts if spec.answer_format == "curves"}
        used_checkpoints = [
            (checkpoint["words"], checkpoint["predictions"])
            for checkpoint in cell.settings["checkpoints"]
        ]
        scored_checkpoints = [
            (milestone * 10**6, word_cell.digest)
            for milestone in milestones
            for word_cell in self.milestone_runs.get(milestone, ())
            if word_cell.suite in word_suites
            and word_cell.method == self.method
            and word_cell.settings.get("limit") is None
        ]
        is_current = used_checkpoints == scored_checkpoints
        if not is_current or len(scored_checkpoints) != len(milestones):
            raise IncompleteError(
                f"{part.suite} was computed from "
                f"{format_count(len(used_checkpoints), 'checkpoint')}, not from "
                f"the current surprisals of the {len(milestones)} milestones",
                hint=command,
            )
        check_cell(run, cell)
        return {part.key: cell.summary.headline.value}

    def _find_cell(self, run: Run, part: PartSpec) -> Cell:
        """Return the scored cell of a part. Raises IncompleteError if it is missing or limited."""
        if not part.suite:
            raise IncompleteError("antlm-bench cannot compute this part", hint=part.hint)
        command = build_score_command(run, part.suite, self.method, self.board)
        for cell in run:
            if cell.suite == part.suite and cell.method == self.method:
                if cell.settings.get("limit"):
                    message = f"scored with --limit {cell.settings['limit']}"
                    raise IncompleteError(message, hint=command)
                check_cell(run, cell)
                return cell
        raise IncompleteError(f"no {part.suite} by {self.method}", hint=command)

    def _build_labels(
        self, part: PartSpec, task: str, expected_count: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the labels of one finetuned task, preferably with the zero-shot attention."""
        suite = f"{part.suite}.{task}"
        method = finetune_method(get_method(self.method).main_attention)
        cells = [
            cell
            for cell in self.final_run
            if cell.suite == suite and cell.seed is not None and not cell.is_frozen
        ]
        cells = [cell for cell in cells if cell.method == method] or cells
        seed = self._choose_seed(task, cells)
        command = self._build_finetune_command(part.suite, task)
        cell = next((cell for cell in cells if seed in (None, cell.seed)), None)
        if cell is None:
            name = f"{suite} of seed {seed}" if cells else suite
            raise IncompleteError(f"{self.final_run.path} has no {name}", hint=command)
        self.sources.append(PartSource(f"{part.key}.{task}", self.final_run, cell))
        predictions = runs.read_predictions(self.final_run.path, cell)
        if len(predictions) != expected_count:
            raise IncompleteError(
                f"incomplete: {len(predictions)} of {expected_count} labels", hint=command
            )
        other_method = f", {cell.method} (there is no {method})" if cell.method != method else ""
        self.notes.append(f"{part.key}: the labels of seed {cell.seed}{other_method}")
        if symptoms := cell.history.get("collapsed"):
            self.notes.append(
                f"{part.key}.{task} of seed {cell.seed} collapsed: {'; '.join(map(str, symptoms))}"
            )
        rows = [
            {"id": f"{task}_{n}", "pred": pred} for n, pred in enumerate(predictions.pred.tolist())
        ]
        return {"predictions": rows}

    def _choose_seed(self, task: str, cells: Sequence[Cell]) -> int | None:
        """Return the seed to submit; None = the only one, if there is any.

        Raises UsageError if a choice is needed.
        """
        if self.seed is not None:
            return self.seed
        seeds = sorted(cell.seed for cell in cells if cell.seed is not None)
        if self.board.seed in seeds:
            return self.board.seed
        if len(seeds) > 1:
            raise UsageError(
                f"{task} has the seeds {', '.join(map(str, seeds))}",
                location="--seed",
                hint=f"--seed {seeds[0]}: a file holds the labels of one seed; choose it before "
                "you look at the scores",
            )
        return None

    def _build_finetune_command(self, suite: str, task: str = "") -> str:
        return build_finetune_command(
            self.final_run, suite, self.method, self.board, seed=self.seed, task=task
        )

    def _build_milestone_scores(
        self, key: str, part: PartSpec
    ) -> Sequence[MilestoneScores | None] | None:
        """Return the scores of each milestone, in order.

        If a milestone is missing, its entry is None where the file may hold null; else the whole
        part is None.
        """
        num_ties = 0

        def build_entry(milestone: int, run: Run) -> MilestoneScores:
            nonlocal num_ties
            cell = require_complete(self._find_cell(run, part))
            self.sources.append(PartSource(key, run, cell, milestone))
            if get_metric_spec(cell.summary.metric).tie_rule_matters:
                num_ties += cell.summary.headline.flags.get("tie", 0)
            load_predictions = partial(runs.read_predictions, run.path, cell)
            return compute_milestone_scores(
                cell, part, self._resolved_tie_rule, self._softmax, load_predictions
            )

        entries = self._map_milestones(key, part, build_entry)
        if num_ties:
            rule = TIE_RULE_DESCRIPTIONS[self._resolved_tie_rule]
            self.notes.append(f"{key}: {num_ties} ties at {len(entries)} milestones, {rule}")
        if None in entries and self.board.missing_part == "omit":
            return None
        return entries

    @property
    def _resolved_tie_rule(self) -> TieRule:
        return self.tie_rule or self.board.tie_rule

    @property
    def _softmax(self) -> str:
        """The official precision of probabilities; the run's own may differ."""
        return PEER_CONVENTIONS[self.board.name].softmax

    def _map_milestones(
        self, key: str, part: PartSpec, build: Callable[[int, Run], T]
    ) -> list[T | None]:
        """Call `build` with each milestone and its run; return the results in order.

        The result is None where `build` fails. The failures are recorded as one missing part under
        `key`: each reason with its milestones, and the commands that compute them.
        """
        milestones = self.board.milestones_of_track(self.track)
        results: list[T | None] = []
        milestones_by_reason: dict[str, list[int]] = {}
        hints: list[str] = []
        for milestone in milestones:
            try:
                run = self.milestone_runs.get(milestone)
                if part.suite and run is None:
                    # Trainers write milestones beside the final model.
                    parent, slash, _ = get_model_reference(self.final_run).rpartition("/")
                    pattern = f"{parent}{slash}chck_*"
                    hint = build_score_command(None, part.suite, self.method, self.board, pattern)
                    raise IncompleteError("no run folder", hint=hint)
                results.append(build(milestone, run or self.final_run))
            except UsageError:
                raise
            except BenchError as error:
                results.append(None)
                milestones_by_reason.setdefault(format_error(error), []).append(milestone)
                hints.append(error.hint)
        if milestones_by_reason:
            lines = [
                f"{reason} ({format_milestones(failed, len(milestones))})"
                for reason, failed in milestones_by_reason.items()
            ]
            all_failed = [number for failed in milestones_by_reason.values() for number in failed]
            commands = self._join_commands(part, all_failed) or dict.fromkeys(hints)
            self.missing_parts.append(MissingPart(key, "; ".join(lines), "\n      ".join(commands)))
        return results

    def _join_commands(self, part: PartSpec, milestones: Sequence[int]) -> list[str]:
        """Return one command that scores several milestones; [] if no single command does.

        The checkpoints must lie in one folder, and their runs in another one, under the names that
        `score` gave them. The command keeps finished results.
        """
        milestone_runs = {
            f"chck_{number}M": run
            for number in milestones
            if (run := self.milestone_runs.get(number))
        }
        if not part.suite or len(milestone_runs) < 2:
            return []
        parents = set()
        for name, run in milestone_runs.items():
            checkpoint, run_dir = Path(get_model_reference(run)), Path(run.path)
            if checkpoint.name != name or not run_dir.name.startswith(f"{name}-"):
                return []
            parents.add((str(checkpoint.parent), str(run_dir.parent)))
        if len(parents) > 1:
            return []
        [(models_dir, runs_dir)] = parents
        command = build_score_command(
            None, part.suite, self.method, self.board, f"{models_dir}/chck_*"
        )
        return [f"{command} --out {shlex.quote(runs_dir)}"]


def format_error(error: BenchError) -> str:
    """Return the location and the message of an error in one line."""
    return f"{error.location}: {error.message}" if error.location else error.message


def format_milestones(milestones: Sequence[int], total: int) -> str:
    """Return the names of the milestones, or "all {total} milestones"."""
    names = ", ".join(f"chck_{milestone}M" for milestone in milestones)
    return names if len(milestones) < total else f"all {total} milestones"
