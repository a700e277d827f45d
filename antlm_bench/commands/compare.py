"""`compare`: paired differences of runs. No model, no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench import runs
from antlm_bench.arguments import check_arguments, split_methods
from antlm_bench.comparison import Comparison, RunComparison, compare_runs
from antlm_bench.comparison.join import cache_tables, group_cells, suite_matches
from antlm_bench.comparison.paired_seeds import TASK_LEVEL
from antlm_bench.declarations import is_file, list_declarations
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.results.display_names import model_names
from antlm_bench.types import (
    MethodPairs,
    Names,
    Run,
    RunLike,
    as_list,
    list_run_folders,
    run_folder,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import CompareKeywords

ItemTexts = Mapping[str, tuple[str, ...]]
"""Id of an item -> its texts."""


@check_arguments()
def compare(
    *folders: Sequence[RunLike] | RunLike,
    against: RunLike = "",
    suites: Names = (),
    methods: MethodPairs = (),
    allow_mixed: bool = False,
    **_: Unpack[CompareKeywords],
) -> list[RunComparison]:
    """Compare every run with the reference, item by item. Return one comparison per other run.

    folders: run folders or opened runs, one by one or in a list. against: the reference; default
    the first of `folders`. suites: only these; "glue-2025" stands for its tasks. methods: only
    these, such as "mlm"; "causal=mlm" or ("causal", "mlm") compares the reference's causal with the
    run's mlm; () = every method that both have. allow_mixed: compare runs with different settings
    on the items that they share, with a note.

    Differences are run minus reference, in the unit of the metric (fractions, correlations, nats).

        [comparison] = antlm_bench.compare("reports/a", "reports/b")
        comparison.comparisons[0].headline.value

    Raises RunError, UsageError, NotComparable.
    """
    suites, pairs = as_list(suites), parse_method_pairs(methods)
    reference = run_folder(against)
    others = [folder for folder in list_run_folders(folders) if folder != reference]
    paths = [reference, *others] if reference else others
    if len(paths) < 2:
        raise UsageError(
            "one run cannot be compared",
            hint="give two, the reference first: antlm-bench compare RUN_A RUN_B",
        )
    opened = runs.open_runs(paths)
    names = model_names(opened)
    load_reference_table = cache_tables()
    results = []
    for run, name in zip(opened[1:], names[1:], strict=True):
        comparisons = compare_runs(
            opened[0],
            run,
            suites=suites,
            methods=pairs,
            allow_mixed=allow_mixed,
            load_reference_table=load_reference_table,
        )
        compared_a = {(suite, c.method_a) for c in comparisons for suite in _covered_suites(c)}
        compared_b = {(suite, c.method_b) for c in comparisons for suite in _covered_suites(c)}
        unmatched = [
            *_uncompared_cells(opened[0], names[0], run, compared_a, suites),
            *_uncompared_cells(run, name, opened[0], compared_b, suites),
        ]
        results.append(
            RunComparison(
                names[0],
                name,
                opened[0].path,
                run.path,
                tuple(comparisons),
                tuple(dict.fromkeys(unmatched)),
            )
        )
    return results


def parse_method_pairs(methods: MethodPairs) -> list[tuple[str, str]]:
    """Return a pair for each method: the reference's method, and the run's.

    "causal=mlm" is ("causal", "mlm"), and "mlm" is ("mlm", "mlm"). Raises UsageError.
    """
    pairs: list[tuple[str, str]] = []
    for method in [methods] if isinstance(methods, str) else methods:
        if not isinstance(method, str):
            pairs.append(method)
            continue
        for text in split_methods(method):
            reference_method, equals, run_method = text.partition("=")
            if not reference_method or (equals and not run_method):
                raise UsageError(
                    f"{text!r} needs a method before and after =",
                    location="--method",
                    hint="e.g. mlm, or causal=mlm to compare the reference's causal with the run's "
                    "mlm",
                )
            pairs.append((reference_method, run_method or reference_method))
    return pairs


def resolve_suite_files(refs: Sequence[str], folders: Sequence[str | Path]) -> dict[str, str]:
    """Return name -> reference of each suite.

    refs: names of the catalog, or files of the user (a CSV, a TOML). A file's suite has the name
    under which `compare` shows it. Raises DataError, DeclarationError, RunError.
    """
    from antlm_bench.suites import loader

    known_suites = list_declarations("tasks")
    refs_by_name: dict[str, str] = {}
    for ref in refs:
        if not is_file(ref) or ref in known_suites:
            refs_by_name[ref] = ref
            continue
        suite = loader.load_suite(ref, allow_incomplete=True)
        cells = [
            cell
            for run in runs.open_runs(folders)
            for cell in run
            if runs.base_suite_name(cell) == suite.name
        ]
        same_file = [cell.suite for cell in cells if cell.origin == suite.origin]
        same_items = [
            cell.suite for cell in cells if cell.settings.get("suite_digest") == suite.digest
        ]
        names = same_file or same_items or [cell.suite for cell in cells] or [suite.name]
        refs_by_name |= dict.fromkeys(names, ref)
    return refs_by_name


def load_item_texts(folders: Sequence[str | Path], suite: str, ref: str = "") -> ItemTexts:
    """Load the options of every item of a scored suite; `+` marks the right option.

    A run holds no texts, so they are read from the data. folders: all runs that are compared. ref:
    the suite's file, if neither the catalog nor the run names it.

    Raises DataError if the data is absent or is not what the run was scored on, UsageError if its
    location is unknown.
    """
    from antlm_bench.suites import loader

    cell = next(
        cell for run in runs.open_runs(folders) for cell in run if suite_matches(cell.suite, suite)
    )
    if cell.seed is not None:
        raise UsageError(
            f"{suite} is a finetuning task",
            location="--show-texts",
            hint="only the texts of scored suites can be shown: select them with --suite",
        )
    ref = ref or next(filter(is_file, cell.origin), suite)
    if not is_file(ref) and ref not in list_declarations("tasks"):
        raise UsageError(
            f"no run names the file with the texts of {suite!r}",
            location="--show-texts",
            hint="name it, as for score: --suite FILE",
        )
    limit = cell.settings.get("limit")
    loaded = loader.load_suite(
        ref, limit=limit if isinstance(limit, int) else None, allow_incomplete=True
    )
    if loaded.digest != cell.settings.get("suite_digest"):
        hint = (
            "score again, or find the file that was scored"
            if is_file(ref)
            else f"antlm-bench data verify {shlex.quote(suite)}"
        )
        raise DataError(
            f"the local data of {suite} is not what was scored", location="--show-texts", hint=hint
        )
    return {
        item.id: tuple(
            f"{'+' if index == item.gold else '-'} {option.text}"
            for index, option in enumerate(item.options)
        )
        for item in loaded.items
    }


def is_requested(suite: str, requested_suites: Sequence[str]) -> bool:
    """Return whether a cell's suite, or its collection, is requested; () requests every suite."""
    return not requested_suites or any(suite_matches(suite, name) for name in requested_suites)


def _covered_suites(comparison: Comparison) -> list[str]:
    """Return the suite of a comparison and, if it is a collection, its tasks."""
    tasks = [group.name for group in comparison.groups if group.level == TASK_LEVEL]
    return [f"{comparison.suite}.{task}" for task in tasks] + [comparison.suite]


def _uncompared_cells(
    run: Run, name: str, other: Run, compared: set[tuple[str, str]], suites: Sequence[str]
) -> list[str]:
    """Describe the cells of a run that are in no comparison although `suites` includes them.

    compared: (suite, method) of the cells that were compared. Returns a line per reason.
    """
    cells_by_reason: dict[str, list[str]] = {}
    in_other = group_cells(other)
    for (suite, method), cells in group_cells(run).items():
        if not is_requested(suite, suites) or (suite, method) in compared:
            continue
        metric = get_metric_spec(cells[0].summary.metric)
        if metric.comparison is None:
            reason = f"in {name}, not compared because the metric has no values per item:"
        elif metric.needs_suite_data:
            reason = f"in {name}, not compared because the data is not here:"
        elif (suite, method) in in_other:
            reason = "in both runs, but not compared (--suite NAME may say why):"
        else:
            reason = f"only in {name}:"
        cells_by_reason.setdefault(reason, []).append(f"{suite} · {method}")
    return [f"{reason} {', '.join(cells)}" for reason, cells in cells_by_reason.items()]
