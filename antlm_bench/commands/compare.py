"""compare: run folders in, their paired differences out; no model, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from antlm_bench import runs
from antlm_bench.compare import Comparison, RunComparison
from antlm_bench.compare import compare_runs as differences
from antlm_bench.compare.join import group_cells, suite_matches
from antlm_bench.compare.paired_seeds import TASK_LEVEL
from antlm_bench.declarations import catalog, is_file
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting.results_table import model_names
from antlm_bench.types import Run

ItemTexts = Mapping[str, tuple[str, ...]]  # id of an item -> its texts


def compare(
    folders: Sequence[str | Path],
    *,
    against: str | Path = "",
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> list[RunComparison]:
    """Every run against the reference: `against`, else the first folder. Other arguments: see
    compare.comparison.

    Raises RunError, UsageError, NotComparable.
    """
    listed = [
        str(folder)
        for folder in ([against] if against else [])
        + [f for f in folders if str(f) != str(against)]
    ]
    if len(listed) < 2:
        raise UsageError(
            "one run cannot be compared",
            hint="antlm-bench compare RUN_A RUN_B, the reference first",
        )
    opened = runs.open_runs(listed)
    names = model_names(opened)
    found = []
    for run, name in zip(opened[1:], names[1:], strict=True):
        made = differences(opened[0], run, suites=suites, methods=methods, allow_mixed=allow_mixed)
        used_a = {(suite, c.method_a) for c in made for suite in _covered_suites(c)}
        used_b = {(suite, c.method_b) for c in made for suite in _covered_suites(c)}
        left = [
            *_uncompared_cells(opened[0], names[0], used_a, suites),
            *_uncompared_cells(run, name, used_b, suites),
        ]
        found.append(RunComparison(names[0], name, listed[0], run.path, tuple(made), tuple(left)))
    return found


def resolve_suite_files(refs: Sequence[str], folders: Sequence[str | Path]) -> dict[str, str]:
    """name -> reference of each suite asked for; one of the user's own (a CSV, a TOML) is asked for
    by its file, and has the name under which `compare` shows it.

    Raises DataError, DeclarationError, RunError.
    """
    from antlm_bench.suites import loader

    known = catalog("tasks")
    named: dict[str, str] = {}
    for ref in refs:
        if not is_file(ref) or ref in known:
            named[ref] = ref
            continue
        suite = loader.load_suite(ref, allow_incomplete=True)
        found = [
            cell
            for run in runs.open_runs(folders)
            for cell in run
            if runs.base_suite_name(cell) == suite.name
        ]
        same_file = [cell.suite for cell in found if cell.origin == suite.origin]
        same_items = [
            cell.suite for cell in found if cell.settings.get("suite_digest") == suite.digest
        ]
        names = same_file or same_items or [cell.suite for cell in found] or [suite.name]
        named |= dict.fromkeys(names, ref)
    return named


def load_item_texts(folders: Sequence[str | Path], suite: str, ref: str = "") -> ItemTexts:
    """The options of every item of a scored suite, the right one marked by a plus: looked up in the
    data at hand, because nothing of it is in a run. folders: of all runs that are compared. ref:
    where the suite stands, if neither the catalog nor the run knows.

    Raises DataError where the data is absent or is not what the run was scored on, UsageError where
    it is not known.
    """
    from antlm_bench.suites import loader

    cell = next(
        cell for run in runs.open_runs(folders) for cell in run if suite_matches(cell.suite, suite)
    )
    if cell.seed is not None:
        raise UsageError(
            f"{suite} is finetuned",
            location="--show-texts",
            hint="texts are shown of scored suites",
        )
    ref = ref or next(filter(is_file, cell.origin), suite)
    if not is_file(ref) and ref not in catalog("tasks"):
        hint = "name its file, as for score: --suite FILE"
        raise UsageError(
            f"no run says where the texts of {suite!r} stand", location="--show-texts", hint=hint
        )
    limit = cell.settings.get("limit")
    loaded = loader.load_suite(
        ref, limit=limit if isinstance(limit, int) else None, allow_incomplete=True
    )
    if loaded.digest != cell.settings.get("suite_digest"):
        hint = (
            "score again, or find the file that was scored"
            if is_file(ref)
            else f"antlm-bench data verify {suite}"
        )
        raise DataError(
            f"the data of {suite} here is not what was scored", location="--show-texts", hint=hint
        )
    return {
        item.id: tuple(
            f"{'+' if i == item.gold else '-'} {option.text}"
            for i, option in enumerate(item.options)
        )
        for item in loaded.items
    }


def _covered_suites(comparison: Comparison) -> list[str]:
    """The suites whose cells a comparison may rest on: its own, or the tasks of a collection."""
    tasks = [group.name for group in comparison.groups if group.level == TASK_LEVEL]
    return [f"{comparison.suite}.{task}" for task in tasks] + [comparison.suite]


def _uncompared_cells(
    run: Run, name: str, compared_cells: set[tuple[str, str]], suites: Sequence[str]
) -> list[str]:
    """The cells of a run that went into no comparison although nobody left them out."""
    wanted = [
        found
        for found in group_cells(run)
        if not suites or any(suite_matches(found[0], asked) for asked in suites)
    ]
    left = [found for found in wanted if found not in compared_cells]
    metrics = {found: each[0].summary.metric for found, each in group_cells(run).items()}
    lines: dict[str, list[str]] = {}
    for one in left:
        metric = get_metric_spec(metrics[one])
        if metric.comparison is None:
            reason = "not compared, no metric of single items:"
        elif metric.needs_suite_data:
            reason = "not compared, its data is not at hand:"
        else:
            reason = f"only in {name}:"
        lines.setdefault(reason, []).append(" · ".join(one))
    return [
        f"{why} {', '.join(those)}" + f" of {name}" * (not why.startswith("only"))
        for why, those in lines.items()
    ]
