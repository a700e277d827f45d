"""report: run folders in, the table that the field publishes out: suites, their macro-average, and
what is missing.

Nothing is averaged over a hole: a member that is missing takes the macro-average with it, unless
`partial` is asked for and then said. A report displays; what must not be compared is marked here
and refused by `compare`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from antlm_bench.commands.curve import expand_run_dirs
from antlm_bench.compare.summary_check import read_runs
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import IncompleteError, UsageError
from antlm_bench.reporting import results_table
from antlm_bench.results.collections import (
    Caveats,
    MemberResult,
    ReportedScore,
    SeenDigests,
    average_scores,
    exclude_other_versions,
    summarize_finetuned_member,
    summarize_scored_member,
)
from antlm_bench.results.seeds import group_seeds
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites.collection import CollectionSpec, MemberSpec, PublishedScoresSpec
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration_as
from antlm_bench.types import Attention, Run, finetune_method, task_full_name


@dataclass(frozen=True, slots=True)
class ReportColumn:
    """One checkpoint as one method reads it, or a published row.

    reading: the scoring method ("" of a published row). entries: one per member. lacks: what is
    missing, by name; commands: the lines that make it. source: of a published row. marks: what
    holds for all of its numbers.
    """

    model: str
    method: str
    results: tuple[MemberResult, ...]
    macro: ReportedScore | None = None
    run: str = ""
    missing_members: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    source: str = ""
    caveats: Caveats = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Columns side by side. collection: None where the suites of the runs stand side by side
    without an average.

    members: the collection's, stand-ins in their place, each under the name that `names` shows.
    """

    collection: CollectionSpec | None
    members: tuple[MemberSpec, ...]
    columns: tuple[ReportColumn, ...]


def build_report(
    paths: Sequence[str | Path],
    *,
    collection: str = "",
    published: Sequence[str] | None = None,
    stand_ins: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Report:
    """The report of run folders (or folders of them), one column per checkpoint and method.

    collection: a name of the catalog or a TOML; "" = the suites of the runs, without a
    macro-average. published: rows of the collection whose name holds one of these words, () = all
    of them, None = none. stand_ins: member -> the suite that is shown in its place, named in every
    output. partial: average what is there, marked.

    Raises IncompleteError, whose `runs` hold the report, where a member is missing and `partial`
    was not asked for; RunError (no run folder, a damaged one), DeclarationError, UsageError, and as
    `members.finetuned` does.
    """
    spec = _load_collection(collection)
    if spec is None and (published is not None or stand_ins or partial):
        raise UsageError(
            "only a collection has members and published rows",
            hint="name one: --collection babylm-2024",
        )
    opened = read_runs(expand_run_dirs(paths))
    if not opened:
        raise UsageError("no run folder given", location="report", hint="antlm-bench report RUN...")
    members = _apply_stand_ins(spec, stand_ins or {}) if spec else _members_from_runs(opened)
    seen: SeenDigests = {}
    columns = []
    for opened_run, name in zip(opened, results_table.model_names(opened), strict=True):
        run, strangers = exclude_other_versions(opened_run, members) if spec else (opened_run, ())
        for column in _build_columns(
            run,
            name,
            members,
            seen,
            partial=partial or spec is None,
            include_all_finetuned=spec is None,
        ):
            column = replace(column, caveats=(*column.caveats, *strangers))
            columns.append(
                _with_macro_average(column, members, run, partial=partial) if spec else column
            )
    columns = _flag_unequal_averages(columns)
    shown = (
        [_build_published_column(row, spec, members) for row in _select_published(spec, published)]
        if spec
        else []
    )
    made = Report(spec, members, (*columns, *shown))
    if spec and not partial and any(column.missing_members for column in columns):
        raise _build_incomplete_error(columns, made)
    return made


def _load_collection(ref: str) -> CollectionSpec | None:
    if not ref:
        return None
    hint = "see `antlm-bench list collections`"
    return read_declaration_as(ref, CollectionSpec, location="--collection", hint=hint)[0]


def _apply_stand_ins(spec: CollectionSpec, stand_ins: Mapping[str, str]) -> tuple[MemberSpec, ...]:
    """The members, those with a stand-in under a label that says so."""
    by_name = {
        key.lower(): member.name for member in spec.members for key in (member.suite, member.name)
    }
    chosen: dict[str, str] = {}
    for name, suite in stand_ins.items():
        if name.lower() not in by_name:
            known = [member.name for member in spec.members]
            hint = suggest_name(name, [*known, *by_name]) or f"its members are {', '.join(known)}"
            raise UsageError(f"{spec.name} has no member {name!r}", location="--member", hint=hint)
        chosen[by_name[name.lower()]] = suite
    return tuple(
        member.model_copy(
            update={"suite": suite, "suites": (), "label": f"{member.name} ({suite})"}
        )
        if (suite := chosen.get(member.name, member.suite)) != member.suite
        else member
        for member in spec.members
    )


def _members_from_runs(all_runs: Sequence[Run]) -> tuple[MemberSpec, ...]:
    """Return every suite of the runs as a member; the tasks of one finetuned suite together."""
    tasks_by_suite: dict[tuple[str, bool], list[str]] = {}
    for cell in (cell for run in all_runs for cell in run):
        is_finetuned = cell.seed is not None
        suite, task = cell.finetuned_task if is_finetuned else (cell.suite, "")
        tasks = tasks_by_suite.setdefault((suite, is_finetuned), [])
        if is_finetuned and task not in tasks:
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
    include_all_finetuned: bool,
) -> Iterator[ReportColumn]:
    """The columns of a run; of what is finetuned the mean of some tasks where `partial`. every: see
    _readings.
    """
    seeds = group_seeds(run)
    readings = list(_pair_methods(run, include_all_finetuned=include_all_finetuned))
    unseen = {way for _, way in seeds} - {way for _, way, _ in readings}
    left_out = [
        f"also a classifier on the frozen backbone ({way}), not shown"
        if way.startswith("frozen-")
        else f"also finetuned with {way.removeprefix('finetune-')} attention, not shown"
        for way in sorted(unseen)
    ]
    for method, way, remark in readings:
        who = f"{name} ({method or way})"
        entries = []
        for member in members:
            if member.tasks:
                cells = {
                    task: seeds.get((task_full_name(member.suite, task), way), [])
                    for task in member.tasks
                }
                made = summarize_finetuned_member(
                    run, member, cells, who, seen_digests, partial=partial
                )
                number = made.score.with_caveats(remark) if made.score else None
                entries.append(replace(made, score=number))
            else:
                there = {
                    cell.suite: cell for cell in run if (cell.method, cell.seed) == (method, None)
                }
                entries.append(
                    summarize_scored_member(there, member, who, seen_digests, partial=partial)
                )
        yield ReportColumn(
            name, method or way, tuple(entries), run=run.path, caveats=tuple(left_out)
        )


def _pair_methods(run: Run, *, include_all_finetuned: bool) -> Iterator[tuple[str, str, str]]:
    """(scoring method, finetuning method, what to say of the pair): a column each.

    GLUE stands beside zero-shot scores of the same attention. A checkpoint that was finetuned one
    way only shows that one beside each of its methods, and says so; `fused` reads both ways and
    takes full attention, never the better one. every: a way of finetuning that goes with none of
    the methods has a column of its own. So has a frozen backbone; it never stands for a finetuned
    one in a collection.
    """
    methods = list(dict.fromkeys(cell.method for cell in run if cell.seed is None))
    ways = list(dict.fromkeys(cell.method for cell in run if cell.seed is not None))
    finetuned = [way for way in ways if way.startswith("finetune-")]
    if not include_all_finetuned:  # a run with frozen cells only lacks what the collection asks for
        ways = finetuned or [way.replace("frozen-", "finetune-") for way in ways]
    shown = set()
    for method in methods:
        attends = METHODS[method].attends if method in METHODS else {"full", "causal"}
        attentions: tuple[Attention, ...] = ("full", "causal")
        fitting = [finetune_method(attention) for attention in attentions if attention in attends]
        way = next((way for way in (*fitting, *finetuned) if way in finetuned), "")
        remark = f"scored by {method}, finetuned with {way.removeprefix('finetune-')} attention"
        shown.add(way)
        yield method, way, remark if way and fitting != [way] else ""
    yield from (
        ("", way, "") for way in ways if not methods or (include_all_finetuned and way not in shown)
    )


def _with_macro_average(
    column: ReportColumn, members: Sequence[MemberSpec], run: Run, *, partial: bool
) -> ReportColumn:
    """The column with its macro-average, and what is missing with the commands that make it."""
    pairs = list(zip(members, column.results, strict=True))
    lost = [(member, entry) for member, entry in pairs if not entry.is_complete]
    there = [(entry.score, member.weight) for member, entry in pairs if entry.score]
    lacks = tuple(
        f"{member.name} ({', '.join(entry.missing)})"
        if len(entry.missing) < len(member.tasks or member.suite_names)
        else member.name
        for member, entry in lost
    )
    column = replace(
        column,
        missing_members=lacks,
        commands=tuple(_completion_commands(column.method, lost, run)),
    )
    if not there or (lost and not partial):
        return column
    macro = average_scores([number for number, _ in there], [weight for _, weight in there])
    if lost:
        macro = macro.with_caveats(f"partial: averaged without {', '.join(lacks)}")
    return replace(column, macro=macro)


def _flag_unequal_averages(columns: Sequence[ReportColumn]) -> list[ReportColumn]:
    """The columns, their averages marked where not all are over the same members: such are no race."""
    averages = {column.missing_members for column in columns if column.macro}
    said = (
        "averaged over other members than some column beside it: do not compare"
        if len(averages) > 1
        else ""
    )
    return [
        replace(column, macro=column.macro.with_caveats(said)) if column.macro else column
        for column in columns
    ]


def _completion_commands(
    scoring_method: str, incomplete_members: Sequence[tuple[MemberSpec, MemberResult]], run: Run
) -> Iterator[str]:
    """Yield the command lines that add what is missing to the same run folder."""
    method = METHODS[scoring_method] if scoring_method in METHODS else None
    options = {
        "model": shlex.quote(
            results_table.make_printable(str(run.manifest.model.get("name", "CKPT")))
        ),
        "method": f" --method {method.name}" if method else "",
        "attention": f" --attention {method.main_attention}" if method else "",
        "out": f" --out {shlex.quote(results_table.make_printable(run.path))}",
        "out_of_all": shlex.quote(results_table.make_printable(str(Path(run.path).parent))),
    }
    scored: dict[str, list[str]] = {}  # the suites of one command, by its template
    for member, entry in incomplete_members:
        if member.task_type and TASK_TYPES[member.task_type].load:
            scored.setdefault(TASK_TYPES[member.task_type].completion, []).extend(entry.missing)
    for template, suites in scored.items():
        names = ",".join(map(shlex.quote, dict.fromkeys(suites)))
        yield template.format(suite=names, tasks="", **options)
    for member, entry in incomplete_members:
        if not member.task_type:
            yield f"{member.name}: nothing here computes {member.suite} yet"
        elif not TASK_TYPES[member.task_type].load:
            names = ",".join(map(shlex.quote, entry.missing))
            lines = TASK_TYPES[member.task_type].completion.format(
                suite=shlex.quote(member.suite),
                tasks=f" --task {names}" if entry.task_scores else "",
                **options,
            )
            yield from lines.split("\n")


def _select_published(
    spec: CollectionSpec, name_parts: Sequence[str] | None
) -> list[PublishedScoresSpec]:
    """The published rows asked for; UsageError where a word is in none of their names."""
    if name_parts is None:
        return []
    if name_parts and not spec.published:
        raise UsageError(f"{spec.name} has no published rows", location="--baseline")
    for word in name_parts:
        if not any(word.lower() in row.name.lower() for row in spec.published):
            hint = (
                suggest_name(word, [row.name for row in spec.published])
                or "--published shows all of them"
            )
            raise UsageError(
                f"no published row of {spec.name} holds {word!r}", location="--baseline", hint=hint
            )
    return [
        row
        for row in spec.published
        if not name_parts or any(word.lower() in row.name.lower() for word in name_parts)
    ]


def _build_published_column(
    row: PublishedScoresSpec, spec: CollectionSpec, members: Sequence[MemberSpec]
) -> ReportColumn:
    """A published row: its own numbers as printed, and no interval, since nobody knows of how many
    items.
    """
    entries = []
    for declared, shown in zip(spec.members, members, strict=True):
        printed = row.values.get(declared.name) if shown.suite == declared.suite else None
        entries.append(
            MemberResult(None if printed is None else ReportedScore(printed / 100, "published"))
        )
    macro = None if row.macro is None else ReportedScore(row.macro / 100, "published")
    return ReportColumn(
        row.name, "", tuple(entries), macro, source=row.source, caveats=tuple(row.notes)
    )


def _build_incomplete_error(
    columns: Sequence[ReportColumn], partial_report: Report
) -> IncompleteError:
    lines = []
    for column in columns:
        if column.missing_members:
            lines.append(
                f"  {column.model} ({column.method}) lacks {', '.join(column.missing_members)}"
            )
            lines += [f"    {line}" for line in (*column.caveats, *column.commands)]
    message = "some of it is missing, and no macro-average is taken over a hole:\n" + "\n".join(
        dict.fromkeys(lines)
    )
    return IncompleteError(
        message, hint="--partial averages what is there, marked", runs=[partial_report]
    )
