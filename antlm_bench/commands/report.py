"""`report`: build a report of runs, with suites, macro-average and missing members.

A column with a missing member has no macro-average; with `partial` it has one, marked. Scores that
must not be compared get a caveat here, and an error from `compare`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench.arguments import check_arguments
from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import IncompleteError, UsageError
from antlm_bench.exports.leaderboard import build_run_model_arguments
from antlm_bench.printable import make_printable
from antlm_bench.results.checkpoint_series import expand_run_dirs
from antlm_bench.results.collections import (
    PUBLISHED,
    MemberResult,
    ReportedScore,
    SeenDigests,
    average_scores,
    exclude_other_versions,
    summarize_finetuned_member,
    summarize_scored_member,
)
from antlm_bench.results.display_names import model_names
from antlm_bench.results.reports import CellProvenance, Report, ReportColumn
from antlm_bench.results.seeds import group_seeds
from antlm_bench.runs.provenance import read_provenance
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites.classification_loader import read_trainings
from antlm_bench.suites.collection import CollectionSpec, MemberSpec, PublishedScoresSpec
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration_of_type
from antlm_bench.types import (
    Attention,
    Names,
    Run,
    RunLike,
    as_list,
    finetune_method,
    list_run_folders,
    task_full_name,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import ReportKeywords


@check_arguments("report")
def build_report(
    *runs: Sequence[RunLike] | RunLike,
    collection: str = "",
    published: Names | bool | None = None,
    stand_ins: Mapping[str, str] | None = None,
    partial: bool = False,
    **_: Unpack[ReportKeywords],
) -> Report:
    """Build the report of some runs, with one column per checkpoint and method.

    runs: opened runs, run folders, or folders of run folders, one by one or in a list. collection:
    a name of the catalog or a TOML; "" = the suites of the runs, without a macro-average.
    published: show the published rows whose name contains one of these words; () or True = all,
    None = none. stand_ins: member -> suite that replaces it; every output names the replacement.
    partial: average the members that are present, with a caveat.

        report = antlm_bench.report(["reports/a", "reports/b"], collection="babylm-2024")
        report.columns[0].macro_average.value  # a fraction

    Raises IncompleteError if a member is missing without `partial` (its `runs` hold the report),
    RunError, NotComparable (seeds of different items), DeclarationError, UsageError.
    """
    if isinstance(published, bool):
        published = () if published else None
    name_parts = None if published is None else as_list(published)
    spec = _load_collection(collection)
    if spec is None and (published is not None or stand_ins or partial):
        raise UsageError(
            "only a collection has members and published rows",
            hint="name a collection, e.g. --collection babylm-2024",
        )
    all_runs = open_verified_runs(expand_run_dirs(list_run_folders(runs)))
    if not all_runs:
        raise UsageError("no run folder given", location="report", hint="antlm-bench report RUN...")
    if spec is None:
        return _report_without_collection(all_runs)
    members = _apply_stand_ins(spec, stand_ins or {})
    seen_digests: SeenDigests = {}
    columns = []
    for opened_run, name in zip(all_runs, model_names(all_runs), strict=True):
        run, caveats = exclude_other_versions(opened_run, members)
        for column in _build_columns(run, name, members, seen_digests, partial=partial):
            column = replace(column, caveats=(*column.caveats, *caveats))
            columns.append(_with_macro_average(column, members, run, partial=partial))
    columns = _flag_unequal_averages(columns)
    rows = _select_published(spec, name_parts)
    published_columns = [_build_published_column(row, spec, members) for row in rows]
    report = Report(spec, members, (*columns, *published_columns))
    if not partial and any(column.missing_members for column in columns):
        raise _build_incomplete_error(columns, report)
    return report


def list_provenance(runs: Sequence[RunLike]) -> list[CellProvenance]:
    """Return how each cell of some runs came about, in the order of runs and cells.

    runs: as for `build_report`. Raises RunError.
    """
    all_runs = open_verified_runs(expand_run_dirs(list_run_folders(runs)))
    return [
        CellProvenance(name, cell, records.get(cell.key, {}))
        for run, name in zip(all_runs, model_names(all_runs), strict=True)
        for records in [read_provenance(run.path)]
        for cell in run
    ]


def _report_without_collection(all_runs: Sequence[Run]) -> Report:
    """Return the report of all suites of some runs."""
    members = _members_from_runs(all_runs)
    seen_digests: SeenDigests = {}
    columns = [
        column
        for run, name in zip(all_runs, model_names(all_runs), strict=True)
        for column in _build_columns(
            run, name, members, seen_digests, partial=True, include_all_finetuned=True
        )
    ]
    return Report(collection=None, members=members, columns=tuple(columns))


def _load_collection(ref: str) -> CollectionSpec | None:
    if not ref:
        return None
    hint = "see `antlm-bench list collections`"
    return read_declaration_of_type(ref, CollectionSpec, location="--collection", hint=hint)[0]


def _apply_stand_ins(spec: CollectionSpec, stand_ins: Mapping[str, str]) -> tuple[MemberSpec, ...]:
    """Return the members with their replaced suites. The label of such a member names its suite."""
    member_names = {
        key.lower(): member.name for member in spec.members for key in (member.suite, member.name)
    }
    suite_by_member: dict[str, str] = {}
    for name, suite in stand_ins.items():
        if name.lower() not in member_names:
            names = [member.name for member in spec.members]
            hint = suggest_name(name, [*names, *member_names])
            hint = hint or f"its members are {', '.join(names)}"
            raise UsageError(f"{spec.name} has no member {name!r}", location="--member", hint=hint)
        suite_by_member[member_names[name.lower()]] = suite
    members = []
    for member in spec.members:
        suite = suite_by_member.get(member.name, member.suite)
        if suite != member.suite:
            label = f"{member.name} ({suite})"
            member = member.model_copy(update={"suite": suite, "suites": (), "label": label})
        members.append(member)
    return tuple(members)


def _members_from_runs(all_runs: Sequence[Run]) -> tuple[MemberSpec, ...]:
    """Return a member per suite of the runs. All tasks of a finetuned suite are one member."""
    tasks_by_suite: dict[tuple[str, bool], list[str]] = {}
    for cell in (cell for run in all_runs for cell in run):
        if cell.seed is None:
            tasks_by_suite.setdefault((cell.suite, False), [])
            continue
        suite, task = cell.finetuned_task
        tasks = tasks_by_suite.setdefault((suite, True), list(read_trainings(suite)))
        if task not in tasks:
            tasks.append(task)
    return tuple(
        MemberSpec(suite=suite, made_by="finetune", tasks=tuple(tasks))
        if is_finetuned
        else MemberSpec(suite=suite)
        for (suite, is_finetuned), tasks in tasks_by_suite.items()
    )


def _build_columns(
    run: Run,
    name: str,
    members: Sequence[MemberSpec],
    seen_digests: SeenDigests,
    *,
    partial: bool,
    include_all_finetuned: bool = False,
) -> Iterator[ReportColumn]:
    """Yield the columns of a run.

    partial: average finetuned tasks even if some are missing. include_all_finetuned: see
    `_pair_methods`.
    """
    cells_by_task = group_seeds(run)
    pairs = list(_pair_methods(run, include_all_finetuned=include_all_finetuned))
    not_shown = {method for _, method in cells_by_task} - {finetuned for _, finetuned, _ in pairs}
    caveats = tuple(
        f"also a classifier on the frozen backbone ({method}), not shown"
        if method.startswith("frozen-")
        else f"also finetuned with {method.removeprefix('finetune-')} attention, not shown"
        for method in sorted(not_shown)
    )
    for method, finetuned, caveat in pairs:
        label = f"{name} ({method or finetuned})"
        scored = {cell.suite: cell for cell in run if (cell.method, cell.seed) == (method, None)}
        results = []
        for member in members:
            if member.tasks:
                cells = {
                    task: cells_by_task.get((task_full_name(member.suite, task), finetuned), [])
                    for task in member.tasks
                }
                result = summarize_finetuned_member(
                    run, member, cells, label, seen_digests, partial=partial
                )
                score = result.score.with_caveats(caveat) if result.score else None
                results.append(replace(result, score=score))
            else:
                results.append(
                    summarize_scored_member(scored, member, label, seen_digests, partial=partial)
                )
        yield ReportColumn(name, method or finetuned, tuple(results), run=run.path, caveats=caveats)


def _pair_methods(run: Run, *, include_all_finetuned: bool) -> Iterator[tuple[str, str, str]]:
    """Yield (scoring method, finetuning method, caveat) for each column of a run.

    Finetuned results stand beside the zero-shot scores of the same attention. If a checkpoint was
    finetuned with one attention only, these results stand beside every scoring method, with a
    caveat. `fused` has both attentions; beside it stand the results with full attention.

    include_all_finetuned: a finetuning method without a scoring method, or a frozen backbone, gets
    a column. In a collection a frozen backbone never replaces a finetuned one.
    """
    scored = list(dict.fromkeys(cell.method for cell in run if cell.seed is None))
    with_seeds = list(dict.fromkeys(cell.method for cell in run if cell.seed is not None))
    finetuned = [method for method in with_seeds if method.startswith("finetune-")]
    if not include_all_finetuned:
        # With only frozen backbones, the column of finetuned results is there, and empty.
        with_seeds = finetuned or [method.replace("frozen-", "finetune-") for method in with_seeds]
    full_first: tuple[Attention, ...] = ("full", "causal")
    paired_methods = set()
    for method in scored:
        attentions = METHODS[method].attentions if method in METHODS else set(full_first)
        fitting = [finetune_method(name) for name in full_first if name in attentions]
        partner = next((name for name in (*fitting, *finetuned) if name in finetuned), "")
        attention = partner.removeprefix("finetune-")
        caveat = f"scored by {method}, finetuned with {attention} attention"
        paired_methods.add(partner)
        yield method, partner, caveat if partner and fitting != [partner] else ""
    for method in with_seeds:
        if not scored or (include_all_finetuned and method not in paired_methods):
            yield "", method, ""


def _with_macro_average(
    column: ReportColumn, members: Sequence[MemberSpec], run: Run, *, partial: bool
) -> ReportColumn:
    """Add the macro-average, the missing members, and the commands that compute these."""
    pairs = list(zip(members, column.results, strict=True))
    incomplete = [(member, result) for member, result in pairs if not result.is_complete]
    missing = tuple(_describe_missing(member, result) for member, result in incomplete)
    commands = tuple(_missing_score_commands(column.method, incomplete, run))
    column = replace(column, missing_members=missing, commands=commands)
    weights = [member.weight for member, result in pairs if result.score]
    scores = [result.score for _, result in pairs if result.score]
    if not scores or (incomplete and not partial):
        return column
    macro_average = average_scores(scores, weights)
    if incomplete:
        macro_average = macro_average.with_caveats(
            f"partial: averaged without {', '.join(missing)}"
        )
    return replace(column, macro_average=macro_average)


def _describe_missing(member: MemberSpec, result: MemberResult) -> str:
    """Return the member's name, with the missing tasks or suites if others are present."""
    if len(result.missing) == len(member.tasks or member.suite_names):
        return member.name
    return f"{member.name} ({', '.join(result.missing)})"


def _flag_unequal_averages(columns: Sequence[ReportColumn]) -> list[ReportColumn]:
    """Add a caveat to the averages if they are not all over the same members."""
    if len({column.missing_members for column in columns if column.macro_average}) <= 1:
        return list(columns)
    caveat = "averaged over other members than another column: do not compare"
    return [
        replace(column, macro_average=column.macro_average.with_caveats(caveat))
        if column.macro_average
        else column
        for column in columns
    ]


def _missing_score_commands(
    scoring_method: str, incomplete_members: Sequence[tuple[MemberSpec, MemberResult]], run: Run
) -> Iterator[str]:
    """Yield the command lines that compute the missing members into the same run folder."""
    is_scored = scoring_method in METHODS
    options = {
        "model": shlex.join(map(make_printable, build_run_model_arguments(run)[1:])),
        "method": f" --method {scoring_method}" if is_scored else "",
        "attention": f" --attention {METHODS[scoring_method].main_attention}" if is_scored else "",
        "out": f" --out {shlex.quote(make_printable(run.path))}",
        "runs_dir": shlex.quote(make_printable(str(Path(run.path).parent))),
    }
    suites_by_template: dict[str, list[str]] = {}  # one command scores several suites
    for member, result in incomplete_members:
        if member.task_type and TASK_TYPES[member.task_type].load:
            template = TASK_TYPES[member.task_type].missing_score_commands
            suites_by_template.setdefault(template, []).extend(result.missing)
    for template, suites in suites_by_template.items():
        names = ",".join(map(shlex.quote, dict.fromkeys(suites)))
        yield template.format(suite=names, tasks="", **options)
    for member, result in incomplete_members:
        if not member.task_type:
            yield f"{member.name}: antlm-bench cannot compute {member.suite} yet"
        elif not TASK_TYPES[member.task_type].load:
            names = ",".join(map(shlex.quote, result.missing))
            lines = TASK_TYPES[member.task_type].missing_score_commands.format(
                suite=shlex.quote(member.suite),
                tasks=f" --task {names}" if result.task_scores else "",
                **options,
            )
            yield from lines.split("\n")


def _select_published(
    spec: CollectionSpec, name_parts: Sequence[str] | None
) -> list[PublishedScoresSpec]:
    """Return the published rows whose names contain one of these words; () = all, None = none.

    Raises UsageError for a word that no name contains.
    """
    if name_parts is None:
        return []
    if name_parts and not spec.published:
        raise UsageError(f"{spec.name} has no published rows", location="--baseline")
    for word in name_parts:
        if not any(word.lower() in row.name.lower() for row in spec.published):
            suggestion = suggest_name(word, [row.name for row in spec.published])
            raise UsageError(
                f"no name of a published row of {spec.name} contains {word!r}",
                location="--baseline",
                hint=suggestion or "--published shows all of them",
            )
    return [
        row
        for row in spec.published
        if not name_parts or any(word.lower() in row.name.lower() for word in name_parts)
    ]


def _build_published_column(
    row: PublishedScoresSpec, spec: CollectionSpec, members: Sequence[MemberSpec]
) -> ReportColumn:
    """Return a published row as a column. Its scores have no interval: their items are unknown."""

    def to_score(percent: float | None) -> ReportedScore | None:
        return None if percent is None else ReportedScore(percent / 100, PUBLISHED)

    results = []
    for declared, shown in zip(spec.members, members, strict=True):
        is_replaced = shown.suite != declared.suite
        results.append(
            MemberResult(to_score(None if is_replaced else row.values.get(declared.name)))
        )
    macro_average = to_score(row.macro_average)
    return ReportColumn(
        model=row.name,
        method="",
        results=tuple(results),
        macro_average=macro_average,
        source=row.source,
        caveats=tuple(row.notes),
    )


def _build_incomplete_error(
    columns: Sequence[ReportColumn], partial_report: Report
) -> IncompleteError:
    """Return the error that lists what each column lacks, with the commands that compute it."""
    lines = []
    for column in columns:
        if column.missing_members:
            lines.append(
                f"  {column.model} ({column.method}) lacks {', '.join(column.missing_members)}"
            )
            lines += [f"    {line}" for line in (*column.caveats, *column.commands)]
    message = "members are missing, and so there is no macro-average:\n" + "\n".join(
        dict.fromkeys(lines)
    )
    return IncompleteError(
        message,
        hint="--partial averages the members that are present, and marks the average",
        runs=[partial_report],
    )
