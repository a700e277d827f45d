"""A report as the front matter of a Hugging Face model card (`model-index`)."""

from __future__ import annotations

from dataclasses import replace

from antlm_bench.errors import UsageError
from antlm_bench.exports.model_index import ModelIndexResult, build_model_index
from antlm_bench.results.collections import ReportedScore, subtasks
from antlm_bench.results.reports import Report, ReportColumn
from antlm_bench.types import task_full_name


def build_model_card(report: Report) -> str:
    """Return the front matter of one checkpoint's model card, with the results of all methods.

    Raises UsageError where the runs are of several checkpoints.
    """
    columns = [column for column in report.columns if not column.source]
    num_runs = len({column.run for column in columns})
    if num_runs > 1:
        hint = "one run folder at a time: a card is of one model"
        raise UsageError(f"{num_runs} checkpoints", location="--model-index", hint=hint)
    results = [result for column in columns for result in _column_results(report, column)]
    missing = [
        f"missing ({column.method}): {', '.join(column.missing_members)}"
        for column in columns
        if column.missing_members
    ]
    return build_model_index(columns[0].model if columns else "", results, missing)


def _column_results(report: Report, column: ReportColumn) -> list[ModelIndexResult]:
    scores: list[tuple[str, str, ReportedScore | None]] = []
    for member, result in zip(report.members, column.results, strict=True):
        scores.append((member.suite, member.name, result.score))
        for task in subtasks(member):
            name = task_full_name(member.suite, task)
            scores.append((name, f"{member.name}: {task}", result.task_scores.get(task)))
    if column.macro and report.collection:
        # A mean over members is no classification, even where some of them were finetuned.
        macro = replace(column.macro, seeds=0)
        scores.append((report.collection.name, report.collection.title, macro))
    return [
        ModelIndexResult(
            suite,
            title,
            column.method,
            score.metric,
            score.value,
            score.low,
            score.high,
            score.n,
            score.seeds,
            score.caveats,
        )
        for suite, title, score in scores
        if score
    ]
