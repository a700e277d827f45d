"""Build a leaderboard's file from run folders, as the official collators write it.

Runs hold no text of a stimulus. The chosen option's text is looked up in the suite's data, and only
if these are the data that were scored (equal digest). What is missing is listed, never filled in.
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
from antlm_bench.exports.command_hints import (
    finetune_command,
    model_name,
    score_command,
    sibling_path,
)
from antlm_bench.exports.conventions import PartSource
from antlm_bench.exports.given_parts import check_external_part
from antlm_bench.exports.leaderboard import (
    LeaderboardSpec,
    PartSpec,
    expected_counts,
    expected_subkeys,
)
from antlm_bench.exports.leaderboard_answers import (
    LeaderboardAnswers,
    MilestoneScores,
    build_text_answers,
    count_answers,
    curve_rows,
    milestone_scores,
    require_complete,
    surprisal_rows,
)
from antlm_bench.exports.tie_rules import TIE_RULE_DESCRIPTIONS, TieRule
from antlm_bench.metrics import get_metric_spec
from antlm_bench.scoring.conventions import PEER_CONVENTIONS
from antlm_bench.scoring.methods import get_method
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Cell, Run, finetune_method

T = TypeVar("T")
SuiteLoader = Callable[[str], Suite]


@dataclass(frozen=True, slots=True)
class MissingPart:
    """A part that cannot be written: where it belongs, why, and the command that makes it."""

    key: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" + (f"\n      {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class LeaderboardFile:
    """A leaderboard's file. A part is complete or missing."""

    document: dict[str, Any]
    """The file's content."""
    missing: tuple[MissingPart, ...]
    notes: tuple[str, ...]
    """Sentences that qualify the file."""
    sources: tuple[PartSource, ...] = ()
    """The cells that were used, those of parts that turned out incomplete among them."""

    @property
    def written_sources(self) -> list[PartSource]:
        """The cells of the parts that the file holds."""
        return [source for source in self.sources if is_filled(self._part_content(source.key))]

    def _part_content(self, key: str) -> Any:
        """Return what stands under a dotted key."""
        if key in self.document:
            return self.document[key]
        outer, _, inner = key.partition(".")
        return (self.document.get(outer) or {}).get(inner)


def is_filled(value: Any) -> bool:
    """Whether a part of the file holds anything but empty tables, empty lists and null."""
    if isinstance(value, dict | list):
        return any(map(is_filled, value.values() if isinstance(value, dict) else value))
    return value is not None


@dataclass(slots=True)
class LeaderboardFileBuilder:
    """Builds a leaderboard's file part by part."""

    board: LeaderboardSpec
    track: str
    final_run: Run
    """The run of the final model."""
    milestone_runs: Mapping[int, Run]
    """Millions of words -> the run of that checkpoint."""
    load_suite: SuiteLoader
    method: str
    """The zero-shot method of the file."""
    seed: int | None = None
    """Seed of finetuning. None = the only one, or the official one."""
    ties: TieRule | None = None
    """None = the official rule."""
    missing: list[MissingPart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[PartSource] = field(default_factory=list)

    def build(self, external_parts: Mapping[str, Any]) -> LeaderboardFile:
        """Build the whole file.

        external_parts: parts made elsewhere, by (dotted) key; they are checked and taken as they
        are. Raises UsageError for a part that the file does not have, and for several seeds without
        a choice; DataError for a part made elsewhere that is wrong (see given_parts).
        """
        milestones_key, milestones = self.board.milestones_in, self.board.milestones(self.track)
        parts = {part.key: part for part in self.board.parts_of_track(self.track)}
        fast = {f"{milestones_key}.{part.key}": part for part in self.board.fast if milestones}
        if unknown := external_parts.keys() - parts.keys() - fast.keys():
            hint = f"its parts: {', '.join([*parts, *fast])}"
            raise UsageError(f"the file has no part {min(unknown)!r}", location="--part", hint=hint)
        for key, value in external_parts.items():
            spec = parts.get(key) or fast[key]
            self.notes += check_external_part(
                key, value, spec, milestones, self.load_suite, is_milestone_part=key in fast
            )
        document: dict[str, Any] = {}
        for key, part in parts.items():
            if key in external_parts:
                value = external_parts[key]
            else:
                value = self._make_or_record_missing(key, partial(self._build_part, part))
            if value is None and self.board.absent == "null" and part.writes == "class":
                value = {}  # the official file's null for labels
            if value is not None or self.board.absent == "null":
                document[key] = value
        if milestones:
            document[milestones_key] = {}
        for key, part in fast.items():
            if key in external_parts:
                value = external_parts[key]
            else:
                value = self._build_milestone_scores(key, part)
            if value is not None:
                document[milestones_key][part.key] = value
        notes = tuple(dict.fromkeys([*self.board.notes, *self.notes]))
        return LeaderboardFile(document, tuple(self.missing), notes, tuple(self.sources))

    def _make_or_record_missing(self, key: str, make: Callable[[], T]) -> T | None:
        """Return what `make` returns; record under `key` what it lacks. A UsageError is raised."""
        try:
            return make()
        except UsageError:
            raise
        except BenchError as error:
            self.missing.append(MissingPart(key, format_error(error), error.hint))
            return None

    def _build_part(self, part: PartSpec) -> Mapping[str, Any] | None:
        if part.writes == "curves":
            return self._build_curves(part)
        if part.writes == "headline":
            return self._build_headline(part)
        if part.writes == "class":
            return self._build_all_labels(part)
        cell = self._find_cell(self.final_run, part)
        self.sources.append(PartSource(part.key, self.final_run, cell))
        predictions = runs.read_predictions(self.final_run.path, cell)
        answers: LeaderboardAnswers
        if part.writes == "surprisal":
            answers = {part.key: {"predictions": list(surprisal_rows(predictions))}}
        else:
            suite = self._load_scored_suite(self.final_run, cell)
            answers, notes = build_text_answers(
                part, predictions, suite, cell, self._tie_rule, self._softmax
            )
            self.notes += notes
        self._check_counts(part, answers)
        return answers

    def _check_counts(self, part: PartSpec, answers: LeaderboardAnswers) -> None:
        """Raise IncompleteError unless the part has as many answers as the official file."""
        num_subkeys = expected_subkeys(self.board.name, part.key)
        expected = expected_counts(self.board.name, part.key)
        if num_subkeys is not None:
            expected = dict.fromkeys(answers, 1)
        counts = {key: count_answers(answers, key) for key in expected}
        short = [f"{key} {counts[key]} of {n}" for key, n in expected.items() if counts[key] != n]
        short += [f"{key} is none of its keys" for key in answers.keys() - expected.keys()]
        if num_subkeys not in (None, len(answers)):
            short.append(f"{len(answers)} of {num_subkeys}")
        if short:
            raise IncompleteError(
                f"incomplete: {', '.join(short[:3])}{', ...' * (len(short) > 3)}",
                hint=f"get all data (antlm-bench data fetch {part.suite}), then score again",
            )

    def _build_all_labels(self, part: PartSpec) -> LeaderboardAnswers | None:
        """Return the labels of every finetuned task; None where some are missing and the file has
        no place for a hole."""
        if not any(cell.suite.startswith(f"{part.suite}.") for cell in self.final_run):
            raise IncompleteError(
                f"{self.final_run.path} has no task of {part.suite}",
                hint=self._finetune_command(part.suite),
            )
        expected = expected_counts(self.board.name, part.key)
        labels: LeaderboardAnswers = {}
        for task, count in expected.items():
            rows = self._make_or_record_missing(
                f"{part.key}.{task}", partial(self._build_labels, part, task, count)
            )
            if rows:
                labels[task] = rows
        return labels if len(labels) == len(expected) or self.board.absent == "null" else None

    def _load_scored_suite(self, run: Run, cell: Cell) -> Suite:
        """Load the suite of a cell. IncompleteError where the data differ from those scored."""
        suite = self.load_suite(cell.suite)
        if cell.settings.get("suite_digest", suite.digest) != suite.digest:
            raise IncompleteError(
                f"the data here are not those that {run.path} was scored on",
                hint=score_command(run, cell.suite, self.method, self.board),
            )
        return suite

    def _build_curves(self, part: PartSpec) -> Mapping[str, Any] | None:
        """Return the surprisals of words at every milestone; None after recording what is
        missing."""

        def build_rows(milestone: int, run: Run) -> list[dict[str, Any]]:
            cell = require_complete(self._find_cell(run, part))
            self.sources.append(PartSource(part.key, run, cell, milestone))
            predictions = runs.read_predictions(run.path, cell)
            return list(curve_rows(predictions, self._load_scored_suite(run, cell), milestone))

        by_milestone = self._map_milestones(part.key, part, build_rows)
        results = [row for rows in by_milestone if rows is not None for row in rows]
        if lost := sum(math.isnan(row["surprisal"]) for row in results):
            self.notes.append(
                f"{part.key}: {lost} words do not fit the model with their contexts, and are NaN"
            )
        steps = {"total_steps": len(by_milestone), "completed_steps": len(by_milestone)}
        metadata = {"model_name": model_name(self.final_run), "use_bos_only": False, **steps}
        return None if None in by_milestone else {"metadata": metadata, "results": results}

    def _build_headline(self, part: PartSpec) -> Mapping[str, Any]:
        """Return the number made of the surprisals, {key: number}. IncompleteError unless it was
        made of exactly these milestones."""
        folder = str(Path(self.final_run.path).parent)
        command = shlex.join(["antlm-bench", "acquisition", folder, "--suite", part.suite])
        latest_first = sorted(self.milestone_runs, reverse=True)
        run, cell = next(
            (
                (run, cell)
                for run in (self.final_run, *map(self.milestone_runs.__getitem__, latest_first))
                for cell in run
                if (cell.suite, cell.method) == (part.suite, self.method)
            ),
            (None, None),
        )
        if run is None or cell is None:
            raise IncompleteError(f"no run has {part.suite} by {self.method}", hint=command)
        milestones = self.board.milestones(self.track)
        word_suites = {spec.suite for spec in self.board.part if spec.writes == "curves"}
        used = [(used["words"], used["predictions"]) for used in cell.settings["checkpoints"]]
        scored = [
            (milestone * 10**6, words.digest)
            for milestone in milestones
            for words in self.milestone_runs.get(milestone, ())
            if words.suite in word_suites
            and (words.method, words.settings.get("limit")) == (self.method, None)
        ]
        if used != scored or len(scored) != len(milestones):
            raise IncompleteError(
                f"{part.suite} is of {len(used)} checkpoints, not of these {len(milestones)} as "
                "they are scored now",
                hint=command,
            )
        check_cell(run, cell)
        return {part.key: cell.summary.headline.value}

    def _find_cell(self, run: Run, part: PartSpec) -> Cell:
        """Return the scored cell of a part. IncompleteError where it is missing or incomplete."""
        if not part.suite:
            raise IncompleteError("no suite of ours computes it", hint=part.hint)
        again = score_command(run, part.suite, self.method, self.board)
        for cell in run:
            if (cell.suite, cell.method) == (part.suite, self.method):
                if cell.settings.get("limit"):
                    raise IncompleteError(
                        f"scored with --limit {cell.settings['limit']}", hint=again
                    )
                check_cell(run, cell)
                return cell
        raise IncompleteError(f"no {part.suite} by {self.method}", hint=again)

    def _build_labels(
        self, part: PartSpec, task: str, expected_count: int
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the labels of one finetuned task, by the attention of the zero-shot method."""
        suite = f"{part.suite}.{task}"
        method = finetune_method(get_method(self.method).main_attention)
        cells = [
            cell
            for cell in self.final_run
            if cell.suite == suite and cell.seed is not None and not cell.is_frozen
        ]
        cells = [cell for cell in cells if cell.method == method] or cells
        seeds = sorted(cell.seed for cell in cells if cell.seed is not None)
        official = self.board.seed if self.board.seed in seeds else None
        seed = self.seed if self.seed is not None else official
        if seed is None and len(seeds) > 1:
            raise UsageError(
                f"{task} has the seeds {', '.join(map(str, seeds))}",
                location="--seed",
                hint=f"--seed {seeds[0]}: the file has room for one; choose before you look at "
                "the scores",
            )
        again = self._finetune_command(part.suite, task)
        cell = next((cell for cell in cells if seed in (None, cell.seed)), None)
        if cell is None:
            of = f" of seed {seed}" if seeds else ""
            raise IncompleteError(f"{self.final_run.path} has no {suite}{of}", hint=again)
        self.sources.append(PartSource(f"{part.key}.{task}", self.final_run, cell))
        predictions = runs.read_predictions(self.final_run.path, cell)
        if len(predictions) != expected_count:
            raise IncompleteError(
                f"incomplete: {len(predictions)} of {expected_count} labels", hint=again
            )
        other = f", {cell.method} (there is no {method})" if cell.method != method else ""
        self.notes.append(f"{part.key}: the labels of seed {cell.seed}{other}")
        if words := cell.history.get("collapsed"):
            self.notes.append(
                f"{part.key}.{task} of seed {cell.seed} collapsed: {'; '.join(map(str, words))}"
            )
        return {
            "predictions": [
                {"id": f"{task}_{n}", "pred": pred}
                for n, pred in enumerate(predictions.pred.tolist())
            ]
        }

    def _finetune_command(self, suite: str, task: str = "") -> str:
        """Return the command that finetunes the final model on a suite, or on one task of it."""
        return finetune_command(
            self.final_run, suite, self.method, self.board, seed=self.seed, task=task
        )

    def _build_milestone_scores(
        self, key: str, part: PartSpec
    ) -> Sequence[MilestoneScores | None] | None:
        """Return an entry per milestone, in order; None (or a list with nulls) after recording
        which are missing."""
        ties = 0

        def build_entry(milestone: int, run: Run) -> MilestoneScores:
            nonlocal ties
            cell = require_complete(self._find_cell(run, part))
            self.sources.append(PartSource(key, run, cell, milestone))
            if get_metric_spec(cell.summary.metric).tie_rule_matters:
                ties += cell.summary.headline.flags.get("tie", 0)
            load_predictions = partial(runs.read_predictions, run.path, cell)
            return milestone_scores(cell, part, self._tie_rule, self._softmax, load_predictions)

        entries = self._map_milestones(key, part, build_entry)
        if ties:
            rule = TIE_RULE_DESCRIPTIONS[self._tie_rule]
            self.notes.append(f"{key}: {ties} ties at {len(entries)} milestones, {rule}")
        return entries if None not in entries or self.board.absent == "null" else None

    @property
    def _tie_rule(self) -> TieRule:
        return self.ties or self.board.ties

    @property
    def _softmax(self) -> str:
        """The precision of probabilities in the year's file, whatever the run's own."""
        return PEER_CONVENTIONS[self.board.name].softmax

    def _map_milestones(
        self, key: str, part: PartSpec, make: Callable[[int, Run], T]
    ) -> list[T | None]:
        """Return what `make` returns for each milestone and its run, in order; None where it fails.

        Records under `key` what is missing: every reason with its milestones, and every command
        that mends one.
        """
        milestones = self.board.milestones(self.track)
        results: list[T | None] = []
        reasons: dict[str, list[int]] = {}
        hints: list[str] = []
        for milestone in milestones:
            try:
                run = self.milestone_runs.get(milestone)
                if part.suite and run is None:
                    pattern = sibling_path(model_name(self.final_run), "chck_*")
                    hint = score_command(None, part.suite, self.method, self.board, pattern)
                    raise IncompleteError("no run folder", hint=hint)
                results.append(make(milestone, run or self.final_run))
            except UsageError:
                raise
            except BenchError as error:
                results.append(None)
                reasons.setdefault(format_error(error), []).append(milestone)
                hints.append(error.hint)
        if reasons:
            lines = [
                f"{reason} ({format_milestones(numbers, len(milestones))})"
                for reason, numbers in reasons.items()
            ]
            hint = "\n      ".join(dict.fromkeys(hints))
            self.missing.append(MissingPart(key, "; ".join(lines), hint))
        return results


def format_error(error: BenchError) -> str:
    """Return location and message in one line."""
    return f"{error.location}: {error.message}" if error.location else error.message


def format_milestones(milestones: Sequence[int], total: int) -> str:
    """Return the names of milestones, or that it is all of them."""
    names = ", ".join(f"chck_{milestone}M" for milestone in milestones)
    return names if len(milestones) < total else f"all {total} milestones"
