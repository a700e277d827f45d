"""A leaderboard's file from run folders: what the official collators write, made of ids and texts looked up locally.

Runs hold no text of a stimulus; the chosen option's text is taken from the suite's data at this moment, and only if
these are the data that were scored (equal digest). What is missing is listed, never filled in.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from antlm_bench import runs
from antlm_bench.errors import BenchError, IncompleteError, UsageError
from antlm_bench.exports.leaderboard import LeaderboardSpec, PartSpec, Writes, sizes
from antlm_bench.metrics.measures import Spearman
from antlm_bench.metrics.table import chosen, tabulate
from antlm_bench.suites.items import Suite
from antlm_bench.types import Cell, Item, Prediction, Run

OFFICIAL_SEED = 42  # of the official finetuning script; taken where several seeds are there and none is asked for
Answers = dict[str, dict[str, list[dict[str, Any]]]]  # subkey -> {"predictions": rows}
Entry = dict[str, float]
T = TypeVar("T")
Texts = Callable[[str], Suite]


@dataclass(frozen=True, slots=True)
class Missing:
    """A part that cannot be written: where it belongs, why, and the command that makes it."""

    key: str
    why: str
    hint: str

    def __str__(self) -> str:
        return f"{self.key}: {self.why}" + (f"\n      {self.hint}" if self.hint else "")


@dataclass(frozen=True, slots=True)
class Collation:
    """The file's content, what is missing in it, and what a reader of it must know. No part is half there."""

    document: dict[str, Any]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class Collator:
    """Collects a leaderboard's file part by part. board, track: which file. final: the run of the final model;
    checkpoints: of each milestone (millions of words). texts: name -> suite, as suites.items.load gives it. method: the
    zero-shot method of the file. seed: of finetuning, None = the only one, or the official one.
    """

    board: LeaderboardSpec
    track: str
    final: Run
    checkpoints: Mapping[int, Run]
    texts: Texts
    method: str
    seed: int | None = None
    missing: list[Missing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def collate(self, given: Mapping[str, Any]) -> Collation:
        """The whole file. given: parts made elsewhere, by (dotted) key; they are taken as they are.

        Raises UsageError for a part that the file does not have, and for seeds among which nobody chose.
        """
        place, milestones = self.board.milestones_in, self.board.milestones(self.track)
        parts = {part.key: part for part in self.board.parts(self.track)}
        fast = {f"{place}.{part.key}": part for part in self.board.fast if milestones}
        if unknown := given.keys() - parts.keys() - fast.keys():
            hint = f"its parts: {', '.join([*parts, *fast])}"
            raise UsageError(f"the file has no part {min(unknown)!r}", place="--part", hint=hint)
        document: dict[str, Any] = {}
        for key, part in parts.items():
            value = given[key] if key in given else self._or_missing(key, partial(self._part, part))
            if value is not None or self.board.absent == "null":
                document[key] = value
        if milestones:
            document[place] = {}
        for key, part in fast.items():
            value = given[key] if key in given else self._fast(key, part, milestones)
            if value is not None:
                document[place][part.key] = value
        return Collation(document, tuple(self.missing), tuple(dict.fromkeys([*self.board.notes, *self.notes])))

    def _or_missing(self, key: str, make: Callable[[], T]) -> T | None:
        """What `make` gives; what it lacks is noted under `key`. A wrong option stays an error."""
        try:
            return make()
        except UsageError:
            raise
        except BenchError as error:
            where = f"{error.place}: " if error.place else ""
            self.missing.append(Missing(key, where + error.message, error.hint))
            return None

    def _part(self, part: PartSpec) -> Answers | None:
        wanted = sizes(self.board.name, part.key)
        if part.writes == "class":
            if not any(cell.suite.startswith(f"{part.suite}.") for cell in self.final):
                raise IncompleteError(f"{self.final.path} has no task of {part.suite}", hint=self._finetune(part.suite))
            found: Answers = {}
            for task, size in wanted.items():
                rows = self._or_missing(f"{part.key}.{task}", partial(self._labels, part, task, size))
                found |= {task: rows} if rows else {}
            return found if len(found) == len(wanted) or self.board.absent == "null" else None
        cell = self._cell(self.final, part)
        predictions = runs.predictions(self.final.path, cell)
        if part.writes == "surprisal":
            answers: Answers = {part.key: {"predictions": list(surprisals(predictions))}}
        else:
            suite = self.texts(part.suite)
            if cell.settings.get("suite_digest", suite.digest) != suite.digest:
                raise IncompleteError(
                    f"the data here are not those that {self.final.path} was scored on",
                    hint=score_command(self.final, part.suite, self.method),
                )
            answers, notes = texts_chosen(part.writes, predictions, suite, cell)
            self.notes += notes
        short = [f"{key} {have} of {n}" for key, n in wanted.items() if (have := count(answers, key)) != n]
        short += [f"{key} is none of its keys" for key in answers.keys() - wanted.keys()]
        if short:
            hint = f"get all data (antlm-bench data fetch {part.suite}), then score again"
            raise IncompleteError(f"incomplete: {', '.join(short[:3])}{', ...' * (len(short) > 3)}", hint=hint)
        return answers

    def _cell(self, run: Run, part: PartSpec) -> Cell:
        """The scored cell of a part. IncompleteError where there is none, or not all of it."""
        if not part.suite:
            raise IncompleteError("no suite of ours computes it", hint=part.hint)
        again = score_command(run, part.suite, self.method)
        for cell in run:
            if (cell.suite, cell.method) == (part.suite, self.method):
                if cell.settings.get("limit"):
                    raise IncompleteError(f"scored with --limit {cell.settings['limit']}", hint=again)
                return cell
        raise IncompleteError(f"{run.path} has no {part.suite} by {self.method}", hint=again)

    def _labels(self, part: PartSpec, task: str, wanted: int) -> dict[str, list[dict[str, Any]]]:
        """The labels of one finetuned task, by the attention that goes with the zero-shot method."""
        suite, way = f"{part.suite}.{task}", "finetune-causal" if self.method == "causal" else "finetune-full"
        cells = [cell for cell in self.final if cell.suite == suite and cell.seed is not None]
        cells = [cell for cell in cells if cell.method == way] or cells
        seeds = sorted(cell.seed for cell in cells if cell.seed is not None)
        seed = self.seed if self.seed is not None else OFFICIAL_SEED if OFFICIAL_SEED in seeds else None
        if seed is None and len(seeds) > 1:
            hint = f"--seed {seeds[0]}: the file has room for one; choose before you look at the scores"
            raise UsageError(f"{task} has the seeds {', '.join(map(str, seeds))}", place="--seed", hint=hint)
        again = self._finetune(part.suite, task)
        cell = next((cell for cell in cells if seed in (None, cell.seed)), None)
        if cell is None:
            of = f" of seed {seed}" if seeds else ""
            raise IncompleteError(f"{self.final.path} has no {suite}{of}", hint=again)
        predictions = runs.predictions(self.final.path, cell)
        if len(predictions) != wanted:
            raise IncompleteError(f"incomplete: {len(predictions)} of {wanted} labels", hint=again)
        other = f", {cell.method} (there is no {way})" if cell.method != way else ""
        self.notes.append(f"{part.key}: the labels of seed {cell.seed}{other}")
        if words := cell.history.get("collapsed"):
            self.notes.append(f"{part.key}.{task} of seed {cell.seed} collapsed: {'; '.join(map(str, words))}")
        return {"predictions": [{"id": f"{task}_{n}", "pred": p.pred} for n, p in enumerate(predictions)]}

    def _finetune(self, suite: str, task: str = "") -> str:
        """The command that finetunes the final model on a suite, or on one task of it."""
        attention = "causal" if self.method == "causal" else "full"
        command = ["antlm-bench", "finetune", *named(name_of(self.final)), "--suite", suite]
        command += ["--task", task] * bool(task) + ["--attention", attention]
        return shlex.join([*command, "--seed", str(self.seed or OFFICIAL_SEED), "--out", self.final.path])

    def _fast(self, key: str, part: PartSpec, milestones: Sequence[int]) -> Sequence[Entry | None] | None:
        """One entry per milestone, in order; None (or a list with nulls) after saying which are missing."""
        entries: list[Entry | None] = []
        lacking: list[int] = []
        why = hint = ""
        for milestone in milestones:
            try:
                run = self.checkpoints.get(milestone)
                if part.suite and run is None:
                    pattern = replaced_end(name_of(self.final), "chck_*")
                    raise IncompleteError("no run folder", hint=score_command(None, part.suite, self.method, pattern))
                entries.append(numbers(self._cell(run or self.final, part), part))
            except IncompleteError as error:
                entries.append(None)
                lacking.append(milestone)
                why, hint = error.message, error.hint
        if lacking:
            each = ", ".join(f"chck_{milestone}M" for milestone in lacking)
            which = each if len(lacking) < len(milestones) else f"all {len(lacking)} milestones"
            self.missing.append(Missing(key, f"{why} ({which})", hint))
        return entries if not lacking or self.board.absent == "null" else None


def numbers(cell: Cell, part: PartSpec) -> Entry:
    """What a fast suite says of a milestone, in 0..1: accuracies (a tie counts 1/k), Spearman's rho, partial R2.

    Numbers have room for half a tie; only answers have not. IncompleteError where items are missing.
    """
    if short := [note for note in cell.summary.notes if note.startswith("incomplete")]:
        raise IncompleteError(short[0], hint="get all data (antlm-bench data fetch), then score again")
    groups = cell.summary.groups
    if part.names:
        return {part.names[group.name]: group.estimate.value for group in groups if group.name in part.names}
    if cell.summary.metric == "spearman":
        return {part.key: cell.summary.headline.value}
    return {group.name: group.estimate.value for group in groups if group.level == groups[-1].level}


def texts_chosen(
    writes: Writes, predictions: Sequence[Prediction], suite: Suite, cell: Cell
) -> tuple[Answers, list[str]]:
    """The chosen texts of a suite under their groups, in the suite's order, and notes about ties and lost items.

    The file can hold one answer. A tie never goes silently to the right one, as the collator of 2025 has it
    (torch.max: first index, and index 0 is right): it is drawn, by the item's id (metrics: ties = random; 2026's
    official code draws too, unseeded). A run that was scored with --ties first says so and keeps that rule. An item
    that does not fit the model counts as wrong, and is written so.
    """
    rule = "first" if cell.settings.get("ties") == "first" else "random"
    reduction = str(cell.settings.get("reduction", "sum"))
    table = tabulate(predictions, set(), reduction)
    picks = chosen(table, rule, reduction).argmax(axis=1)
    lost = table.flag("too-long")
    share = Spearman("half", reduction).values(table, reduction) if writes == "share" else np.zeros(len(picks))
    items = {item.id: item for item in suite.items}
    answers: Answers = defaultdict(lambda: {"predictions": []})
    for n, prediction in enumerate(predictions):
        item = items[prediction.id]
        right = item.gold if isinstance(item.gold, int) else 0
        pick = int(picks[n]) if not lost[n] else int(right == 0)
        row: dict[str, Any] = {"id": item.id, "pred": written(writes, item, pick)}
        if writes == "share":
            row["prob"] = float(share[n])
        answers[item.labels[suite.groups[-1]]]["predictions"].append(row)
    ties, twins = int(table.flag("tie").sum()), int(table.flag("identical").sum())
    notes = []
    if ties:
        how = "given to the first option (--ties first)" if rule == "first" else "drawn by the item's id"
        notes.append(
            f"{suite.name}: {ties} ties, {how}" + (f"; {twins} of one text count as right there" if twins else "")
        )
    if lost.any():
        notes.append(f"{suite.name}: {int(lost.sum())} items do not fit the model and are written as wrong")
    return dict(answers), notes


def written(writes: Writes, item: Item, pick: int) -> str:
    """The text that stands for an option: all of it, or the part that was scored."""
    option = item.options[pick]
    if writes == "sentence" or option.span is None:
        return option.text
    scored = option.text[slice(*option.span)]
    return scored.strip() if writes == "stripped" else scored


def surprisals(predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """Surprisals in nats of each word and of the word before it; NaN where there is none, as officially.

    IncompleteError for words that do not fit the model: the file has no way to say so.
    """
    if lost := [p.id for p in predictions if "too-long" in p.flags]:
        raise IncompleteError(f"{len(lost)} words do not fit the model", hint=f"the first is {lost[0]}")
    for n, prediction in enumerate(predictions):
        before = -prediction.scores[1] if len(prediction.scores) > 1 else float("nan")
        yield {"id": n, "pred": -prediction.scores[0], "prev_pred": before}


def count(answers: Answers, key: str) -> int:
    return len(answers[key]["predictions"]) if key in answers else 0


def name_of(run: Run) -> str:
    return str(run.manifest.model.get("name", "MODEL"))


def replaced_end(name: str, end: str) -> str:
    """The path beside `name`: our trainers write milestones beside the final model."""
    folder, slash, _ = name.rpartition("/")
    return folder + slash + end


def score_command(run: Run | None, suite: str, method: str, model: str = "") -> str:
    """The command that scores a run's checkpoint (or `model`) on a suite, ready for a shell."""
    command = ["antlm-bench", "score", *named(model or (name_of(run) if run else "")), "--suite", suite]
    return shlex.join([*command, "--method", method, *(["--out", run.path] if run else [])])


def named(name: str) -> list[str]:
    """A checkpoint's name as options: hub@revision in two; a run knows a local checkpoint's name, not its path."""
    model, _, revision = name.partition("@")
    return ["--model", model, "--revision", revision] if revision and "/" in model else ["--model", name]
