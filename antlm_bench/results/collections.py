"""Scores of one checkpoint on the members of a collection, with the caveats of each score.

A member is one suite, the mean over several, or the mean over the tasks of a finetuned suite.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from antlm_bench import runs, statistics
from antlm_bench.comparison.join import describe_mixed_seeds
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.metrics.classification import FEW_SEEDS_NOTES
from antlm_bench.printable import make_printable
from antlm_bench.results.display_names import TIE_RULE_TEXTS
from antlm_bench.results.seeds import describe_collapse, merge_seed_notes, summarize_seed_cells
from antlm_bench.runs.suite_names import OTHER_LIMITS_PREFIX
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.suites.classification_loader import SEEN_IN_TRAINING, read_trainings
from antlm_bench.suites.collection import MemberSpec
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration
from antlm_bench.types import Cell, Estimate, Names, Run, as_list, task_full_name

Caveats = tuple[str, ...]
"""Sentences that qualify a score."""
SeenDigests = dict[str, tuple[str, str]]
"""Suite -> digest of its items and label of the first column that has it."""
MEAN, PUBLISHED = "mean", "published"
"""Metrics of a mean of several scores and of a published score, whose own metric is unknown."""
CAVEAT_PATTERN = re.compile(
    rf"^(incomplete|limit|all scored rows|same weights|{OTHER_LIMITS_PREFIX})|undefined"
    rf"|no interval|counts as 0|substitute|position 0|{SEEN_IN_TRAINING}"
)
"""Notes of a summary that are caveats of its score."""


@dataclass(frozen=True, slots=True)
class ReportedScore:
    """A score in a report, with its 95% interval."""

    value: float
    """In the unit of the metric: a fraction, a correlation, nats."""
    metric: str
    low: float | None = None
    """Lower end of the interval. None for published scores, whose interval is unknown."""
    high: float | None = None
    """Upper end of the interval."""
    n: int = 0
    """Number of items."""
    seeds: int = 0
    """Number of finetuning seeds; 0 = not finetuned."""
    sd: float = math.nan
    """Standard deviation over seeds; nan for one seed."""
    caveats: Caveats = ()
    value_with_variance: UncertainValue | None = None
    """The same value with its variance, from which averages over members are computed."""
    is_mean: bool = False
    """Whether it is a mean of several scores or groups, whose variances are added."""
    training: str = ""
    """Name of the training of a finetuned task's models: those of mnli-mm are those of mnli."""

    def with_caveats(self, *sentences: str) -> ReportedScore:
        """Return the score with further caveats. Empty sentences are left out."""
        caveats = dict.fromkeys((*self.caveats, *filter(None, sentences)))
        return replace(self, caveats=tuple(caveats))


@dataclass(frozen=True, slots=True)
class MemberResult:
    """The score of one checkpoint on one member."""

    score: ReportedScore | None = None
    """None = missing."""
    task_scores: Mapping[str, ReportedScore] = field(default_factory=dict)
    """The tasks of a finetuned suite."""
    missing: tuple[str, ...] = ()
    """Suites or tasks that the run lacks."""

    @property
    def is_complete(self) -> bool:
        """Whether the score covers all suites or tasks of the member."""
        return self.score is not None and not self.missing


def subtasks(member: MemberSpec) -> tuple[str, ...]:
    """Return the tasks over which a member is averaged. A file of the user is a single task."""
    return tuple(task for task in member.tasks if task != member.suite)


def exclude_other_versions(run: Run, members: Sequence[MemberSpec]) -> tuple[Run, Caveats]:
    """Rename cells that have the name of a member's suite but are not that suite.

    They are other versions than the catalog's, or files of the user. Returns the run, and a
    sentence for each suite that is not counted.
    """
    versions = {name: version for member in members for name, version in _iter_versions(member)}
    member_suites = {suite for member in members for suite in (member.suite, *member.suite_names)}
    cells, sentences = [], []
    for cell in run:
        name, version = runs.base_suite_name(cell), cell.settings.get("suite_version")
        printable_suite = make_printable(cell.suite)
        if name in versions and runs.is_user_suite(cell):
            if cell.suite not in member_suites:
                sentences.append(
                    f"{printable_suite} is a file of the user and not the suite {name}: not counted"
                )
        elif name in versions and version not in (None, versions[name]):
            sentences.append(
                f"{printable_suite} was scored in version {version}, the catalog has version "
                f"{versions[name]}: not counted"
            )
            cell = replace(cell, suite=f"{cell.suite}@{version}")
        cells.append(cell)
    return replace(run, cells=tuple(cells)), tuple(dict.fromkeys(sentences))


def _iter_versions(member: MemberSpec) -> Iterator[tuple[str, str]]:
    """Yield (name, version in the catalog) of each suite of a member and of its finetuned tasks."""
    for suite in member.suite_names:
        if suite in list_declarations("tasks"):
            version = read_declaration(suite)[0].version
            for name in (suite, *(task_full_name(suite, task) for task in member.tasks)):
                yield name, version


def summarize_scored_member(
    cells: Mapping[str, Cell],
    member: MemberSpec,
    column_label: str,
    seen_digests: SeenDigests,
    *,
    partial: bool = False,
) -> MemberResult:
    """Return the result of a scored member: the score of its suite, or the mean over its suites.

    cells: suite -> its cell. partial: average even if suites are missing. Raises UsageError if the
    run lacks the metric or level that the member names.
    """
    scores = [
        _score_cell(cells[suite], member, column_label, seen_digests)
        for suite in member.suite_names
        if suite in cells
    ]
    missing = tuple(suite for suite in member.suite_names if suite not in cells)
    if not scores or (missing and not partial):
        return MemberResult(missing=missing)
    score = scores[0] if len(member.suite_names) == 1 else average_scores(scores)
    caveat = _partial_mean_caveat(member, "suites", len(scores), missing)
    return MemberResult(score.with_caveats(caveat), missing=missing)


def _partial_mean_caveat(
    member: MemberSpec, noun: str, num_present: int, missing: Sequence[str]
) -> str:
    if not missing:
        return ""
    total = num_present + len(missing)
    return (
        f"{member.name}: the mean of {num_present} of {total} {noun}, without {', '.join(missing)}"
    )


def _score_cell(
    cell: Cell, member: MemberSpec, column_label: str, seen_digests: SeenDigests
) -> ReportedScore:
    """Return the score of a member in a cell: the metric or level that it names, or the headline.

    Raises UsageError if the cell lacks that metric or level.
    """
    summary = cell.summary
    if member.average_over:
        estimates = [
            group.estimate for group in summary.groups if group.level == member.average_over
        ]
    elif member.view:
        by_name = {group.name: group.estimate for group in summary.groups} | dict(summary.views)
        estimates = [by_name[member.view]] if member.view in by_name else []
    else:
        estimates = [summary.headline]
    if not estimates:
        levels = dict.fromkeys(group.level for group in summary.groups)
        raise UsageError(
            f"the run has no {member.average_over or member.view!r} of {cell.suite}",
            location=f"member {member.name}",
            hint=f"it has the metrics {', '.join(summary.views)}"
            f" and the levels {', '.join(levels)}",
        )
    values = [_to_value_with_variance(estimate) for estimate in estimates]
    if member.average_over:
        n = sum(estimate.n for estimate in estimates)
        score = _score_from_mean(statistics.weighted_mean(values), summary.metric, n)
    else:
        estimate = estimates[0]
        score = ReportedScore(
            estimate.value,
            summary.metric,
            estimate.low,
            estimate.high,
            estimate.n,
            value_with_variance=values[0],
        )
    return score.with_caveats(*_collect_caveats([cell], column_label, seen_digests))


def summarize_finetuned_member(
    run: Run,
    member: MemberSpec,
    cells: Mapping[str, Sequence[Cell]],
    column_label: str,
    seen_digests: SeenDigests,
    *,
    partial: bool = False,
) -> MemberResult:
    """Return the result of a finetuned member: the mean over tasks of each task's mean over seeds.

    cells: task -> the cells of its seeds. partial: average even if tasks are missing. The interval
    is over seeds and items (metrics.classification); tasks count as independent unless they share
    their trainings. The interval of a task with one seed is over items only, which is a caveat.

    Raises RunError (damaged predictions), NotComparable (seeds that answered different items).
    """
    trainings = read_trainings(member.suite)
    task_scores = {
        task: replace(
            _score_seeds(run, member, cells[task]).with_caveats(
                *_collect_caveats(cells[task], column_label, seen_digests)
            ),
            training=trainings.get(task, task),
        )
        for task in member.tasks
        if cells.get(task)
    }
    missing = tuple(task for task in member.tasks if task not in task_scores)
    if not task_scores or (missing and not partial):
        return MemberResult(score=None, task_scores=task_scores, missing=missing)
    scores = list(task_scores.values())
    mean = average_scores(scores) if len(scores) > 1 else scores[0]
    caveat = _partial_mean_caveat(member, "tasks", len(scores), missing)
    return MemberResult(mean.with_caveats(caveat), task_scores, missing)


def _score_seeds(run: Run, member: MemberSpec, cells: Sequence[Cell]) -> ReportedScore:
    """Return the mean over the seeds of a finetuned task."""
    metric = member.view or cells[0].summary.metric
    seeds = summarize_seed_cells(run, cells, metric)
    return ReportedScore(
        seeds.mean.value,
        metric,
        seeds.mean.low,
        seeds.mean.high,
        seeds.mean.n,
        seeds.num_seeds,
        seeds.sd,
        value_with_variance=seeds.uncertain_mean,
    ).with_caveats(*seeds.notes)


def average_scores(
    scores: Sequence[ReportedScore], weights: Sequence[float] | None = None
) -> ReportedScore:
    """Return the weighted mean of scores, with the caveats of all of them.

    Its variance is the sum of w^2 var over the scores; the weights w add up to 1. Default: equal
    weights. Scores are independent, except over the seeds of a shared training. The interval stays
    in the range that the mean can have.
    """
    weights = weights or [1.0] * len(scores)
    shares = [weight / sum(weights) for weight in weights]
    values = [score.value_with_variance or UncertainValue(score.value) for score in scores]
    n = sum(score.n for score in scores)
    trainings = [score.training or f"score {index}" for index, score in enumerate(scores)]
    mean = _score_from_mean(statistics.weighted_mean(values, shares, trainings), MEAN, n)
    ranges = [get_metric_spec(score.metric).value_range for score in scores]
    lowest, highest = (
        sum(share * ends[side] for share, ends in zip(shares, ranges, strict=True))
        for side in (0, 1)
    )
    mean = replace(
        mean,
        low=max(lowest, mean.low if mean.low is not None else lowest),
        high=min(highest, mean.high if mean.high is not None else highest),
        seeds=min((score.seeds for score in scores if score.seeds), default=0),
    )
    return mean.with_caveats(*(caveat for score in scores for caveat in score.caveats))


def _score_from_mean(mean: UncertainValue, metric: str, n: int) -> ReportedScore:
    low, high = mean.interval
    return ReportedScore(mean.value, metric, low, high, n, value_with_variance=mean, is_mean=True)


def _to_value_with_variance(estimate: Estimate) -> UncertainValue:
    return statistics.uncertain_from_interval(estimate.value, Interval(estimate.low, estimate.high))


def _collect_caveats(
    cells: Sequence[Cell], column_label: str, seen_digests: SeenDigests
) -> Iterator[str]:
    """Yield sentences that qualify the score of these cells.

    cells: the seeds of a finetuned task, or one scored cell. seen_digests is updated.
    """
    first, suite = cells[0], make_printable(cells[0].suite)
    if collapse := describe_collapse(cells):
        yield f"{suite}: {collapse}"
    if first.is_frozen:
        yield "a logistic regression on the features of the frozen backbone, not finetuned"
    elif first.seed is not None and len(cells) in FEW_SEEDS_NOTES:
        yield FEW_SEEDS_NOTES[len(cells)]
    if any(cell.settings.get("select") == "valid" for cell in cells):
        yield "epochs were selected on the scored split, as in BabyLM's official recipe: optimistic"
    if preset := first.settings.get("preset"):
        yield f"finetuned with the settings of {preset}"
    if mixed := describe_mixed_seeds(cells):
        yield f"{suite}: {make_printable(mixed)}"
    for note in merge_seed_notes(cells):
        if CAVEAT_PATTERN.search(note):
            yield f"{suite}: {note}"
    if compat := first.settings.get("compat"):
        yield f"scored with the conventions of {compat}"
    elif (ties := str(first.settings.get("ties", "half"))) != "half":
        yield f"{suite}: {TIE_RULE_TEXTS.get(ties, ties)}"
    digest = str(first.settings.get("suite_digest", ""))
    first_digest, first_label = seen_digests.setdefault(first.suite, (digest, column_label))
    if digest != first_digest:
        yield f"{suite}: not the items of {first_label}; do not compare"


def describe_unscored_members(models: Names, suites: Names) -> Iterator[str]:
    """Yield a line per collection with members that `score` cannot compute, and their commands."""
    names = as_list(models)
    model = shlex.quote(names[0]) if len(names) == 1 else "CKPT"
    for ref in as_list(suites):
        spec = read_declaration(ref)[0] if ref in list_declarations("tasks") else None
        members = [
            f"{member.name} ({_describe_computation(member, model)})"
            for member in getattr(spec, "members", ())
            if not (member.task_type and TASK_TYPES[member.task_type].load)
        ]
        if members:
            yield f"{ref}: not scored, and not in the table: {'; '.join(members)}"


def _describe_computation(member: MemberSpec, model: str) -> str:
    if not member.task_type:
        return "antlm-bench cannot compute it yet"
    return TASK_TYPES[member.task_type].example_command.format(
        model=model, suite=shlex.quote(member.suite)
    )
