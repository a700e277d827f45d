"""A leaderboard's file from run folders: what the official collators write, made of ids and texts
looked up locally.

Runs hold no text of a stimulus; the chosen option's text is taken from the suite's data at this
moment, and only if these are the data that were scored (equal digest). What is missing is listed,
never filled in.
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
from antlm_bench.compare.summary_check import check_cell
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
    """The file's content, what is missing in it, what a reader of it must know, and the cells that
    it is made of. No part is half there.
    """

    document: dict[str, Any]
    missing: tuple[MissingPart, ...]
    notes: tuple[str, ...]
    sources: tuple[PartSource, ...] = ()

    @property
    def written_sources(self) -> list[PartSource]:
        """The cells of those parts that the file holds: others were found, and fell out with their
        part.
        """
        return [one for one in self.sources if is_filled(self._part_content(one.key))]

    def _part_content(self, key: str) -> Any:
        """What stands under a dotted key."""
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
    """Collects a leaderboard's file part by part. board, track: which file. final: the run of the
    final model; checkpoints: of each milestone (millions of words). texts: name -> suite, as
    suites.loader.load gives it. method: the zero-shot method of the file. seed: of finetuning, None
    = the only one, or the official one. ties: None = the official rule.
    """

    board: LeaderboardSpec
    track: str
    final_run: Run
    milestone_runs: Mapping[int, Run]
    load_suite: SuiteLoader
    method: str
    seed: int | None = None
    ties: TieRule | None = None
    missing: list[MissingPart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[PartSource] = field(default_factory=list)

    def build(self, external_parts: Mapping[str, Any]) -> LeaderboardFile:
        """The whole file. given: parts made elsewhere, by (dotted) key; they are checked, and taken
        as they are.

        Raises UsageError for a part that the file does not have, and for seeds among which nobody
        chose; DataError for a part made elsewhere that is not the part (see given_parts).
        """
        place, milestones = self.board.milestones_in, self.board.milestones(self.track)
        parts = {part.key: part for part in self.board.parts(self.track)}
        fast = {f"{place}.{part.key}": part for part in self.board.fast if milestones}
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
            value = (
                external_parts[key]
                if key in external_parts
                else self._make_or_record_missing(key, partial(self._build_part, part))
            )
            if value is not None or self.board.absent == "null":
                document[key] = (
                    {} if value is None and part.writes == "class" else value
                )  # no label is {}, officially
        if milestones:
            document[place] = {}
        for key, part in fast.items():
            value = (
                external_parts[key]
                if key in external_parts
                else self._build_milestone_scores(key, part)
            )
            if value is not None:
                document[place][part.key] = value
        notes = tuple(dict.fromkeys([*self.board.notes, *self.notes]))
        return LeaderboardFile(document, tuple(self.missing), notes, tuple(self.sources))

    def _make_or_record_missing(self, key: str, make: Callable[[], T]) -> T | None:
        """What `make` gives; what it lacks is noted under `key`. A wrong option stays an error."""
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
        wanted = expected_counts(self.board.name, part.key)
        if part.writes == "class":
            if not any(cell.suite.startswith(f"{part.suite}.") for cell in self.final_run):
                raise IncompleteError(
                    f"{self.final_run.path} has no task of {part.suite}",
                    hint=self._finetune_command(part.suite),
                )
            found: LeaderboardAnswers = {}
            for task, size in wanted.items():
                rows = self._make_or_record_missing(
                    f"{part.key}.{task}", partial(self._build_labels, part, task, size)
                )
                found |= {task: rows} if rows else {}
            return found if len(found) == len(wanted) or self.board.absent == "null" else None
        cell = self._find_cell(self.final_run, part)
        self.sources.append(PartSource(part.key, self.final_run, cell))
        predictions = runs.read_predictions(self.final_run.path, cell)
        if part.writes == "surprisal":
            answers: LeaderboardAnswers = {
                part.key: {"predictions": list(surprisal_rows(predictions))}
            }
        else:
            suite = self._load_scored_suite(self.final_run, cell)
            answers, notes = build_text_answers(
                part, predictions, suite, cell, self._tie_rule, self._softmax
            )
            self.notes += notes
        each = expected_subkeys(self.board.name, part.key)
        wanted = wanted if each is None else dict.fromkeys(answers, 1)
        short = [
            f"{key} {have} of {n}"
            for key, n in wanted.items()
            if (have := count_answers(answers, key)) != n
        ]
        short += [f"{key} is none of its keys" for key in answers.keys() - wanted.keys()]
        short += [f"{len(answers)} of {each}"] if each not in (None, len(answers)) else []
        if short:
            hint = f"get all data (antlm-bench data fetch {part.suite}), then score again"
            raise IncompleteError(
                f"incomplete: {', '.join(short[:3])}{', ...' * (len(short) > 3)}", hint=hint
            )
        return answers

    def _load_scored_suite(self, run: Run, cell: Cell) -> Suite:
        """The texts of a cell. IncompleteError where the data here are not those that were scored."""
        suite = self.load_suite(cell.suite)
        if cell.settings.get("suite_digest", suite.digest) != suite.digest:
            raise IncompleteError(
                f"the data here are not those that {run.path} was scored on",
                hint=score_command(run, cell.suite, self.method, self.board),
            )
        return suite

    def _build_curves(self, part: PartSpec) -> Mapping[str, Any] | None:
        """The surprisals of words at every milestone, as the official pipeline has them; None after
        saying why not.
        """

        def rows(milestone: int, run: Run) -> list[dict[str, Any]]:
            cell = require_complete(self._find_cell(run, part))
            self.sources.append(PartSource(part.key, run, cell, milestone))
            return list(
                curve_rows(
                    runs.read_predictions(run.path, cell),
                    self._load_scored_suite(run, cell),
                    milestone,
                )
            )

        found = self._map_milestones(part.key, part, rows)
        results = [row for some in found if some is not None for row in some]
        if lost := sum(math.isnan(row["surprisal"]) for row in results):
            self.notes.append(
                f"{part.key}: {lost} words do not fit the model with their contexts, and are NaN"
            )
        steps = {"total_steps": len(found), "completed_steps": len(found)}
        metadata = {"model_name": model_name(self.final_run), "use_bos_only": False, **steps}
        return {"metadata": metadata, "results": results} if None not in found else None

    def _build_headline(self, part: PartSpec) -> Mapping[str, Any]:
        """The number made of the surprisals, {key: number}. IncompleteError unless it is of these
        very milestones.
        """
        again = [
            "antlm-bench",
            "acquisition",
            str(Path(self.final_run.path).parent),
            "--suite",
            part.suite,
        ]
        places = [
            self.final_run,
            *(
                self.milestone_runs[milestone]
                for milestone in sorted(self.milestone_runs, reverse=True)
            ),
        ]
        wanted = (part.suite, self.method)
        found = [
            (run, cell) for run in places for cell in run if (cell.suite, cell.method) == wanted
        ]
        held = [cell for _, cell in found]
        if not held:
            raise IncompleteError(
                f"no run has {part.suite} by {self.method}", hint=shlex.join(again)
            )
        milestones = self.board.milestones(self.track)
        words = {one.suite for one in self.board.part if one.writes == "curves"}
        of = [(one["words"], one["predictions"]) for one in held[0].settings["checkpoints"]]
        there = [
            (milestone * 10**6, cell.digest)
            for milestone in milestones
            for cell in self.milestone_runs.get(milestone, ())
            if cell.suite in words
            and (cell.method, cell.settings.get("limit")) == (self.method, None)
        ]
        if of != there or len(there) != len(milestones):
            why = f"{part.suite} is of {len(of)} checkpoints, not of these {len(milestones)} as they are scored now"
            raise IncompleteError(why, hint=shlex.join(again))
        check_cell(*found[0])
        return {part.key: held[0].summary.headline.value}

    def _find_cell(self, run: Run, part: PartSpec) -> Cell:
        """The scored cell of a part. IncompleteError where there is none, or not all of it."""
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
        """The labels of one finetuned task, by the attention that goes with the zero-shot method."""
        suite, way = f"{part.suite}.{task}", finetune_method(get_method(self.method).main_attention)
        cells = [
            cell
            for cell in self.final_run
            if cell.suite == suite and cell.seed is not None and not cell.is_frozen
        ]
        cells = [cell for cell in cells if cell.method == way] or cells
        seeds = sorted(cell.seed for cell in cells if cell.seed is not None)
        official = self.board.seed if self.board.seed in seeds else None
        seed = self.seed if self.seed is not None else official
        if seed is None and len(seeds) > 1:
            hint = f"--seed {seeds[0]}: the file has room for one; choose before you look at the scores"
            raise UsageError(
                f"{task} has the seeds {', '.join(map(str, seeds))}", location="--seed", hint=hint
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
        other = f", {cell.method} (there is no {way})" if cell.method != way else ""
        self.notes.append(f"{part.key}: the labels of seed {cell.seed}{other}")
        if words := cell.history.get("collapsed"):
            self.notes.append(
                f"{part.key}.{task} of seed {cell.seed} collapsed: {'; '.join(map(str, words))}"
            )
        return {
            "predictions": [
                {"id": f"{task}_{n}", "pred": p.pred} for n, p in enumerate(predictions)
            ]
        }

    def _finetune_command(self, suite: str, task: str = "") -> str:
        """The command that finetunes the final model on a suite, or on one task of it."""
        return finetune_command(
            self.final_run, suite, self.method, self.board, seed=self.seed, task=task
        )

    def _build_milestone_scores(
        self, key: str, part: PartSpec
    ) -> Sequence[MilestoneScores | None] | None:
        """One entry per milestone, in order; None (or a list with nulls) after saying which are
        missing.
        """
        ties = 0

        def entry(milestone: int, run: Run) -> MilestoneScores:
            nonlocal ties
            cell = require_complete(self._find_cell(run, part))
            self.sources.append(PartSource(key, run, cell, milestone))
            ties += (
                cell.summary.headline.flags.get("tie", 0)
                * get_metric_spec(cell.summary.metric).tie_rule_matters
            )
            return milestone_scores(
                cell,
                part,
                self._tie_rule,
                self._softmax,
                lambda: runs.read_predictions(run.path, cell),
            )

        found = self._map_milestones(key, part, entry)
        if ties:
            self.notes.append(
                f"{key}: {ties} ties at {len(found)} milestones, {TIE_RULE_DESCRIPTIONS[self._tie_rule]}"
            )
        return found if None not in found or self.board.absent == "null" else None

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
        """What `make` gives of each milestone and its run, in order; None after saying under `key`
        what is missing: every reason with its milestones, and every command that mends one.
        """
        milestones = self.board.milestones(self.track)
        found: list[T | None] = []
        lacking: dict[str, list[int]] = {}
        hints: list[str] = []
        for milestone in milestones:
            try:
                run = self.milestone_runs.get(milestone)
                if part.suite and run is None:
                    pattern = sibling_path(model_name(self.final_run), "chck_*")
                    hint = score_command(None, part.suite, self.method, self.board, pattern)
                    raise IncompleteError("no run folder", hint=hint)
                found.append(make(milestone, run or self.final_run))
            except UsageError:
                raise
            except BenchError as error:
                found.append(None)
                lacking.setdefault(format_error(error), []).append(milestone)
                hints.append(error.hint)
        if lacking:
            each = (
                f"{why} ({format_milestones(which, len(milestones))})"
                for why, which in lacking.items()
            )
            self.missing.append(
                MissingPart(key, "; ".join(each), "\n      ".join(dict.fromkeys(hints)))
            )
        return found


def format_error(error: BenchError) -> str:
    return f"{error.location}: {error.message}" if error.location else error.message


def format_milestones(milestones: Sequence[int], total: int) -> str:
    each = ", ".join(f"chck_{milestone}M" for milestone in milestones)
    return each if len(milestones) < total else f"all {total} milestones"
