"""What one member of a collection says of one checkpoint: a number, what it rests on, and what it must be read with.

TODO What a collection holds and `score` does not compute: said, so that nobody takes a part of it for the whole.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from antlm_bench import metrics, runs, statistics
from antlm_bench.commands.cells import Names, listed
from antlm_bench.declarations import catalog
from antlm_bench.errors import UsageError
from antlm_bench.reporting import results_table
from antlm_bench.statistics import Interval, Uncertain
from antlm_bench.suites.classification_loader import SHARED
from antlm_bench.suites.collection import CollectionSpec, MemberSpec
from antlm_bench.suites.spec import read
from antlm_bench.types import Cell, Estimate, Run, task_full_name

Marks = tuple[str, ...]  # sentences that a number must be read with; tables show a letter and the sentence below
Seen = dict[str, tuple[str, str]]  # suite -> the digest of its items and whose, of the first column that has it
NOTABLE = re.compile(
    r"^(incomplete|limit|all scored rows|same weights)|undefined|no interval|counts as 0|substitute|position 0|"
    + SHARED
)


@dataclass(frozen=True, slots=True)
class Number:
    """A fraction (or correlation) with its 95% interval. n: items. seeds, sd: of what was finetuned (sd nan: one seed).

    low and high are None where nobody knows them: of published numbers. uncertain: the variance that averages use.
    """

    value: float
    metric: str
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    sd: float = math.nan
    marks: Marks = ()
    uncertain: Uncertain | None = None

    def marked(self, *sentences: str) -> Number:
        return replace(self, marks=tuple(dict.fromkeys((*self.marks, *filter(None, sentences)))))


@dataclass(frozen=True, slots=True)
class Entry:
    """A member in a column; number None: missing. parts: the tasks of what is finetuned; missing: those not there."""

    number: Number | None = None
    parts: Mapping[str, Number] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return self.number is not None and not self.missing


def only_members(run: Run, members: Sequence[MemberSpec]) -> tuple[Run, Marks]:
    """Return the run with no cell under a member's name that is none of it, and a sentence for each suite of these.

    A member is the suite of the catalog, in the version that stands there: no file of the user's, and no other version.
    """
    versions = {suite: version for member in members for suite, version in _versions(member)}
    asked = {suite for member in members for suite in (member.suite, *member.parts)}
    kept, sentences = [], []
    for cell in run:
        name, version = runs.base_name(cell), cell.settings.get("suite_version")
        shown = results_table.printable(cell.suite)
        if name in versions and not runs.is_own(cell) and version not in (None, versions[name]):
            sentences.append(f"{shown} was scored in version {version}, here it is {versions[name]}: not counted")
            kept.append(replace(cell, suite=f"{cell.suite}@{version}"))
            continue
        kept.append(cell)
        if name in versions and runs.is_own(cell) and cell.suite not in asked:
            sentences.append(f"{shown} is a file of the user's and not the suite {name}: not counted")
    return replace(run, cells=tuple(kept)), tuple(dict.fromkeys(sentences))


def _versions(member: MemberSpec) -> Iterator[tuple[str, str]]:
    """The suites (or finetuned tasks) of a member with the versions that the catalog declares."""
    known = catalog("tasks")
    for suite in member.parts:
        if suite in known:
            version = read(known[suite]).version
            yield from ((name, version) for name in (suite, *(task_full_name(suite, task) for task in member.tasks)))


def scored(cells: Mapping[str, Cell], member: MemberSpec, who: str, seen: Seen, *, partial: bool = False) -> Entry:
    """What was scored: the number of its suite, or the unweighted mean over its suites, with `partial` of some of them.

    cells: suite -> its cell. UsageError as `_told`.
    """
    found = [_told(cells[suite], member, who, seen) for suite in member.parts if suite in cells]
    missing = tuple(suite for suite in member.parts if suite not in cells)
    if not found or (missing and not partial):
        return Entry(missing=missing)
    number = found[0] if len(member.parts) == 1 else averaged(found)
    said = f"{member.name}: the mean of {len(found)} of {len(member.parts)} suites, without {', '.join(missing)}"
    return Entry(number.marked(said if missing else ""), missing=missing)


def _told(cell: Cell, member: MemberSpec, who: str, seen: Seen) -> Number:
    """The headline of a suite, or what the member names instead. UsageError if the run has none."""
    summary = cell.summary
    number: Number | None = None
    if member.over:
        found = [group.estimate for group in summary.groups if group.level == member.over]
        if found:
            mean = statistics.mean_of([_uncertain(estimate) for estimate in found])
            number = _number(mean, summary.metric, sum(estimate.n for estimate in found))
    else:
        named = {group.name: group.estimate for group in summary.groups} | dict(summary.views)
        if one := named.get(member.metric) if member.metric else summary.headline:
            number = Number(one.value, summary.metric, one.low, one.high, one.n, uncertain=_uncertain(one))
    if number is None:
        wanted = member.over or member.metric
        levels = dict.fromkeys(group.level for group in summary.groups)
        hint = f"there are the views {', '.join(summary.views)} and the levels {', '.join(levels)}"
        raise UsageError(f"the run has no {wanted!r} of {cell.suite}", place=f"member {member.name}", hint=hint)
    return number.marked(*_remarks([cell], who, seen))


def finetuned(
    run: Run, member: MemberSpec, cells: Mapping[str, Sequence[Cell]], who: str, seen: Seen, *, partial: bool = False
) -> Entry:
    """A suite that was finetuned: the unweighted mean over its tasks of each task's mean over seeds.

    cells: task -> the cells of its seeds. The interval is over seeds and items (metrics.across_seeds), tasks taken as
    independent; of a task with one seed it is over items alone, which is marked. Without `partial` there is no mean of
    some of the tasks. Raises RunError (damaged predictions), NotComparable (seeds that answered different items).
    """
    parts = {}
    for task in member.tasks:
        if there := cells.get(task):
            metric = member.metric or there[0].summary.metric
            spread = metrics.across_seeds([runs.predictions(run.path, cell) for cell in there], metric)
            mean = spread.mean
            number = Number(
                mean.value, metric, mean.low, mean.high, mean.n, spread.seeds, spread.sd, uncertain=spread.uncertain
            )
            parts[task] = number.marked(*_remarks(there, who, seen))
    missing = tuple(task for task in member.tasks if task not in parts)
    if not parts or (missing and not partial):
        return Entry(None, parts, missing)
    mean_of_tasks = averaged(list(parts.values())) if len(member.tasks) > 1 else parts[member.tasks[0]]
    if missing:
        said = f"{member.name}: the mean of {len(parts)} of {len(member.tasks)} tasks, without {', '.join(missing)}"
        mean_of_tasks = mean_of_tasks.marked(said)
    return Entry(mean_of_tasks, parts, missing)


def averaged(numbers: Sequence[Number], weights: Sequence[float] | None = None) -> Number:
    """The weighted mean of independent numbers, Var = sum w^2 var, with all that each must be read with."""
    total = sum(weights) if weights else 0.0
    shares = [weight / total for weight in weights] if weights else None
    mean = statistics.mean_of([one.uncertain or Uncertain(one.value) for one in numbers], shares)
    made = _number(mean, "mean", sum(one.n for one in numbers))
    made = replace(made, seeds=min((one.seeds for one in numbers if one.seeds), default=0))
    return made.marked(*(mark for one in numbers for mark in one.marks))


def _number(mean: Uncertain, metric: str, n: int) -> Number:
    low, high = mean.interval
    return Number(mean.value, metric, low, high, n, uncertain=mean)


def _uncertain(estimate: Estimate) -> Uncertain:
    return statistics.from_interval(estimate.value, Interval(estimate.low, estimate.high))


def _remarks(cells: Sequence[Cell], who: str, seen: Seen) -> Iterator[str]:
    """The sentences that the number of these cells (the seeds of a task, or one scored suite) must be read with."""
    first, suite = cells[0], results_table.printable(cells[0].suite)
    fallen = [cell for cell in cells if cell.history.get("collapsed")]
    if fallen:
        words = dict.fromkeys(str(word) for cell in fallen for word in cell.history["collapsed"])
        yield f"{suite}: {len(fallen)} of {len(cells)} seeds collapsed ({'; '.join(words)})"
    if first.seed is not None and len(cells) in metrics.FEW_SEEDS:
        yield metrics.FEW_SEEDS[len(cells)]
    if any(cell.settings.get("select") == "valid" for cell in cells):
        yield "epochs were selected on the scored split, as in BabyLM's official recipe: optimistic"
    if preset := first.settings.get("preset"):
        yield f"finetuned with the settings of {preset}"
    if any(_but_seed(cell) != _but_seed(first) for cell in cells):
        yield f"{suite}: its seeds were not finetuned with the same settings"
    for note in dict.fromkeys(note for cell in cells for note in cell.summary.notes if NOTABLE.search(note)):
        yield f"{suite}: {note}"
    if compat := first.settings.get("compat"):
        yield f"scored with the conventions of {compat}"
    elif (ties := str(first.settings.get("ties", "half"))) != "half":
        yield f"{suite}: {results_table.TIES.get(ties, ties)}"
    digest = str(first.settings.get("suite_digest", ""))
    known, whose = seen.setdefault(first.suite, (digest, who))
    if known != digest:
        yield f"{suite}: other items than {whose} answered; do not compare"


def _but_seed(cell: Cell) -> dict[str, object]:
    return {name: value for name, value in cell.settings.items() if name not in ("seed", "device")}


COMMANDS = {
    "finetune": "antlm-bench finetune --model {model} --suite {suite}",
    "acquisition": "antlm-bench acquisition RUN... --suite {suite}",
    "nothing": "nothing here computes it yet",
}


def left_out(models: Names, suites: Names) -> Iterator[str]:
    """A line per collection among `suites`: its members that are not scored, each with the command that makes it."""
    model = shlex.quote(listed(models)[0]) if len(listed(models)) == 1 else "CKPT"
    known = catalog("tasks")
    for ref in listed(suites):
        spec = read(known[ref]) if ref in known else None
        if not isinstance(spec, CollectionSpec):
            continue
        others = [
            f"{member.name} ({COMMANDS[member.made_by].format(model=model, suite=member.suite)})"
            for member in spec.members
            if member.made_by != "score"
        ]
        if others:
            yield f"{ref}: not scored, and no part of the table: {'; '.join(others)}"
