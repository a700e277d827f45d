"""What one member of a collection says of one checkpoint: a number, what it rests on, and what it
must be read with.

TODO What a collection holds and `score` does not compute: said, so that nobody takes a part of it
for the whole.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from antlm_bench import runs, statistics
from antlm_bench.commands.cells import Names, as_list
from antlm_bench.declarations import catalog
from antlm_bench.errors import UsageError
from antlm_bench.metrics.classification import FEW_SEEDS_NOTES, summarize_seeds
from antlm_bench.reporting import results_table
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.suites.classification_loader import SEEN_IN_TRAINING
from antlm_bench.suites.collection import MemberSpec
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration
from antlm_bench.types import Cell, Estimate, Run, task_full_name

Caveats = tuple[
    str, ...
]  # sentences that a number must be read with; tables show a letter and the sentence below
SeenDigests = dict[
    str, tuple[str, str]
]  # suite -> the digest of its items and whose, of the first column that has it
CAVEAT_PATTERN = re.compile(
    r"^(incomplete|limit|all scored rows|same weights)|undefined|no interval|counts as 0|substitute|position 0|"
    + SEEN_IN_TRAINING
)


@dataclass(frozen=True, slots=True)
class ReportedScore:
    """A fraction (or correlation) with its 95% interval. n: items. seeds, sd: of what was finetuned
    (sd nan: one seed).

    low and high are None where nobody knows them: of published numbers. uncertain: the variance
    that averages use.
    """

    value: float
    metric: str
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: int = 0
    sd: float = math.nan
    caveats: Caveats = ()
    value_with_variance: UncertainValue | None = None

    def with_caveats(self, *sentences: str) -> ReportedScore:
        return replace(
            self, caveats=tuple(dict.fromkeys((*self.caveats, *filter(None, sentences))))
        )


@dataclass(frozen=True, slots=True)
class MemberResult:
    """A member in a column; number None: missing. parts: the tasks of what is finetuned; missing:
    those not there.
    """

    score: ReportedScore | None = None
    task_scores: Mapping[str, ReportedScore] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        return self.score is not None and not self.missing


def exclude_other_versions(run: Run, members: Sequence[MemberSpec]) -> tuple[Run, Caveats]:
    """Return the run with no cell under a member's name that is none of it, and a sentence for each
    suite of these.

    A member is the suite of the catalog, in the version that stands there: no file of the user's,
    and no other version.
    """
    versions = {
        suite: version for member in members for suite, version in _iter_member_versions(member)
    }
    asked = {suite for member in members for suite in (member.suite, *member.suite_names)}
    kept, sentences = [], []
    for cell in run:
        name, version = runs.base_suite_name(cell), cell.settings.get("suite_version")
        shown = results_table.make_printable(cell.suite)
        if (
            name in versions
            and not runs.is_user_suite(cell)
            and version not in (None, versions[name])
        ):
            sentences.append(
                f"{shown} was scored in version {version}, here it is {versions[name]}: not counted"
            )
            kept.append(replace(cell, suite=f"{cell.suite}@{version}"))
            continue
        kept.append(cell)
        if name in versions and runs.is_user_suite(cell) and cell.suite not in asked:
            sentences.append(
                f"{shown} is a file of the user's and not the suite {name}: not counted"
            )
    return replace(run, cells=tuple(kept)), tuple(dict.fromkeys(sentences))


def _iter_member_versions(member: MemberSpec) -> Iterator[tuple[str, str]]:
    """The suites (or finetuned tasks) of a member with the versions that the catalog declares."""
    known = catalog("tasks")
    for suite in member.suite_names:
        if suite in known:
            version = read_declaration(suite)[0].version
            yield from (
                (name, version)
                for name in (suite, *(task_full_name(suite, task) for task in member.tasks))
            )


def summarize_scored_member(
    cells: Mapping[str, Cell],
    member: MemberSpec,
    column_label: str,
    seen_digests: SeenDigests,
    *,
    partial: bool = False,
) -> MemberResult:
    """What was scored: the number of its suite, or the unweighted mean over its suites, with
    `partial` of some of them.

    cells: suite -> its cell. UsageError as `_collection_entry`.
    """
    found = [
        _collection_entry(cells[suite], member, column_label, seen_digests)
        for suite in member.suite_names
        if suite in cells
    ]
    missing = tuple(suite for suite in member.suite_names if suite not in cells)
    if not found or (missing and not partial):
        return MemberResult(missing=missing)
    number = found[0] if len(member.suite_names) == 1 else average_scores(found)
    said = f"{member.name}: the mean of {len(found)} of {len(member.suite_names)} suites, without {', '.join(missing)}"
    return MemberResult(number.with_caveats(said if missing else ""), missing=missing)


def _collection_entry(
    cell: Cell, member: MemberSpec, column_label: str, seen_digests: SeenDigests
) -> ReportedScore:
    """The headline of a suite, or what the member names instead. UsageError if the run has none."""
    summary = cell.summary
    number: ReportedScore | None = None
    if member.over:
        found = [group.estimate for group in summary.groups if group.level == member.over]
        if found:
            mean = statistics.weighted_mean(
                [_to_value_with_variance(estimate) for estimate in found]
            )
            number = _score_from_mean(mean, summary.metric, sum(estimate.n for estimate in found))
    else:
        named = {group.name: group.estimate for group in summary.groups} | dict(summary.views)
        if one := named.get(member.metric) if member.metric else summary.headline:
            number = ReportedScore(
                one.value,
                summary.metric,
                one.low,
                one.high,
                one.n,
                value_with_variance=_to_value_with_variance(one),
            )
    if number is None:
        wanted = member.over or member.metric
        levels = dict.fromkeys(group.level for group in summary.groups)
        hint = f"there are the views {', '.join(summary.views)} and the levels {', '.join(levels)}"
        raise UsageError(
            f"the run has no {wanted!r} of {cell.suite}",
            location=f"member {member.name}",
            hint=hint,
        )
    return number.with_caveats(*_collect_caveats([cell], column_label, seen_digests))


def summarize_finetuned_member(
    run: Run,
    member: MemberSpec,
    cells: Mapping[str, Sequence[Cell]],
    column_label: str,
    seen_digests: SeenDigests,
    *,
    partial: bool = False,
) -> MemberResult:
    """A suite that was finetuned: the unweighted mean over its tasks of each task's mean over
    seeds.

    cells: task -> the cells of its seeds. The interval is over seeds and items
    (metrics.classification), tasks taken as independent; of a task with one seed it is over items
    alone, which is marked. Without `partial` there is no mean of some of the tasks. Raises RunError
    (damaged predictions), NotComparable (seeds that answered different items).
    """
    parts = {}
    for task in member.tasks:
        if there := cells.get(task):
            metric = member.metric or there[0].summary.metric
            spread = summarize_seeds(
                [runs.read_predictions(run.path, cell) for cell in there], metric
            )
            mean = spread.mean
            number = ReportedScore(
                mean.value,
                metric,
                mean.low,
                mean.high,
                mean.n,
                spread.num_seeds,
                spread.sd,
                value_with_variance=spread.uncertain_mean,
            )
            parts[task] = number.with_caveats(*_collect_caveats(there, column_label, seen_digests))
    missing = tuple(task for task in member.tasks if task not in parts)
    if not parts or (missing and not partial):
        return MemberResult(None, parts, missing)
    mean_of_tasks = (
        average_scores(list(parts.values())) if len(member.tasks) > 1 else parts[member.tasks[0]]
    )
    if missing:
        said = f"{member.name}: the mean of {len(parts)} of {len(member.tasks)} tasks, without {', '.join(missing)}"
        mean_of_tasks = mean_of_tasks.with_caveats(said)
    return MemberResult(mean_of_tasks, parts, missing)


def average_scores(
    scores: Sequence[ReportedScore], weights: Sequence[float] | None = None
) -> ReportedScore:
    """The weighted mean of independent numbers, Var = sum w^2 var, with all that each must be read
    with.
    """
    total = sum(weights) if weights else 0.0
    shares = [weight / total for weight in weights] if weights else None
    mean = statistics.weighted_mean(
        [one.value_with_variance or UncertainValue(one.value) for one in scores], shares
    )
    made = _score_from_mean(mean, "mean", sum(one.n for one in scores))
    made = replace(made, seeds=min((one.seeds for one in scores if one.seeds), default=0))
    return made.with_caveats(*(mark for one in scores for mark in one.caveats))


def _score_from_mean(mean: UncertainValue, metric: str, n: int) -> ReportedScore:
    low, high = mean.interval
    return ReportedScore(mean.value, metric, low, high, n, value_with_variance=mean)


def _to_value_with_variance(estimate: Estimate) -> UncertainValue:
    return statistics.uncertain_from_interval(estimate.value, Interval(estimate.low, estimate.high))


def _collect_caveats(
    cells: Sequence[Cell], column_label: str, seen_digests: SeenDigests
) -> Iterator[str]:
    """The sentences that the number of these cells (the seeds of a task, or one scored suite) must
    be read with.
    """
    first, suite = cells[0], results_table.make_printable(cells[0].suite)
    fallen = [cell for cell in cells if cell.history.get("collapsed")]
    if fallen:
        words = dict.fromkeys(str(word) for cell in fallen for word in cell.history["collapsed"])
        yield f"{suite}: {len(fallen)} of {len(cells)} seeds collapsed ({'; '.join(words)})"
    if first.is_frozen:
        yield "a logistic regression on the features of the frozen backbone, not finetuned"
    elif first.seed is not None and len(cells) in FEW_SEEDS_NOTES:
        yield FEW_SEEDS_NOTES[len(cells)]
    if any(cell.settings.get("select") == "valid" for cell in cells):
        yield "epochs were selected on the scored split, as in BabyLM's official recipe: optimistic"
    if preset := first.settings.get("preset"):
        yield f"finetuned with the settings of {preset}"
    if any(_settings_without_seed(cell) != _settings_without_seed(first) for cell in cells):
        yield f"{suite}: its seeds were not finetuned with the same settings"
    for note in dict.fromkeys(
        note for cell in cells for note in cell.summary.notes if CAVEAT_PATTERN.search(note)
    ):
        yield f"{suite}: {note}"
    if compat := first.settings.get("compat"):
        yield f"scored with the conventions of {compat}"
    elif (ties := str(first.settings.get("ties", "half"))) != "half":
        yield f"{suite}: {results_table.TIE_RULE_TEXTS.get(ties, ties)}"
    digest = str(first.settings.get("suite_digest", ""))
    known, whose = seen_digests.setdefault(first.suite, (digest, column_label))
    if known != digest:
        yield f"{suite}: other items than {whose} answered; do not compare"


def _settings_without_seed(cell: Cell) -> dict[str, object]:
    return {name: value for name, value in cell.settings.items() if name not in ("seed", "device")}


def describe_unscored_members(models: Names, suites: Names) -> Iterator[str]:
    """Yield a line per collection among `suites`: the members that `score` does not compute, each
    with the command that does.
    """
    model = shlex.quote(as_list(models)[0]) if len(as_list(models)) == 1 else "CKPT"
    for ref in as_list(suites):
        spec = read_declaration(ref)[0] if ref in catalog("tasks") else None
        members = [
            f"{member.name} ({_describe_computation(member, model)})"
            for member in getattr(spec, "members", ())
            if not (member.task_type and TASK_TYPES[member.task_type].load)
        ]
        if members:
            yield f"{ref}: not scored, and no part of the table: {'; '.join(members)}"


def _describe_computation(member: MemberSpec, model: str) -> str:
    if not member.task_type:
        return "nothing here computes it yet"
    return TASK_TYPES[member.task_type].command_line.format(model=model, suite=member.suite)
