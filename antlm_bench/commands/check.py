"""`check` and `baseline`: check a run for a regression against a saved run. Loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench import runs
from antlm_bench.arguments import check_arguments
from antlm_bench.atomic_files import replace_folder
from antlm_bench.commands.compare import is_requested, parse_method_pairs
from antlm_bench.comparison import Comparison, RunComparison, compare_runs
from antlm_bench.comparison.compare import is_paired
from antlm_bench.comparison.join import group_cells
from antlm_bench.comparison.margins import (
    check_margin_names,
    compared_suite,
    load_margins,
    load_suite_margins,
)
from antlm_bench.comparison.summary_check import open_verified_stored_run
from antlm_bench.comparison.verdict import (
    CheckResult,
    FailOn,
    Margins,
    adjust_for_multiple_suites,
    judge,
    mark_drops,
)
from antlm_bench.errors import RunError, UsageError
from antlm_bench.results.display_names import model_name, model_names
from antlm_bench.safe_files import find_url
from antlm_bench.types import Manifest, MethodPairs, Names, Run, RunLike, as_list, run_folder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import CompareKeywords

BASELINES_DIR = Path("reports/baselines")
MACHINE_KEYS = ("source", "given", "device", "layout", "path", "hostname")
"""Facts of a manifest about the machine and its files, which a baseline does not keep."""


@check_arguments()
def check(
    run: RunLike,
    against: RunLike,
    *,
    margin: float | None = None,
    group_margin: float | None = None,
    policy: str | Path = "",
    suites: Names = (),
    methods: MethodPairs = (),
    allow_mixed: bool = False,
    fail_on: FailOn = "regression",
    **_: Unpack[CompareKeywords],
) -> CheckResult:
    """Check, suite by suite, whether a run is worse than a baseline by more than a margin.

    against: a run, its folder, or the name of a saved baseline. margin: how much worse a suite may
    be, in points. One point is 0.01 in the unit of the metric: 1% of accuracy, 0.01 of a
    correlation, 0.01 nats. By default the margin of the policy, else of the suite's TOML, else 1
    point. group_margin: how much worse each phenomenon may be, in points. By default the margin of
    the policy, else of the suite's TOML; without a margin, phenomena are not checked. policy: a
    TOML of margins by suite and group. suites, methods, allow_mixed: see `compare`; the baseline
    is the reference. fail_on: "drop" also gives a suite without a regression the status "drop" if
    it is significantly worse by any amount.

        result = antlm_bench.check("reports/new", against="main", margin=0.5)
        result.status  # "pass", "regression", "drop" or "undecided"

    Raises RunError, UsageError, DeclarationError, NotComparable. A regression is a result,
    not an error.
    """
    suites, pairs = as_list(suites), parse_method_pairs(methods)
    margins = load_margins(policy, margin, group_margin)
    baseline, new_run = runs.open_runs([find_run_or_baseline(against), run_folder(run)])
    _check_suite_names(suites, baseline)
    for source in margins:
        check_margin_names(source, (*baseline, *new_run), source.source)
    missing, unpaired, comparable_suites = _classify_cells(baseline, new_run, suites, pairs)
    comparisons = []
    if comparable_suites:
        comparisons = compare_runs(
            baseline, new_run, suites=comparable_suites, methods=pairs, allow_mixed=allow_mixed
        )
    baseline_name, new_name = model_names([baseline, new_run])
    run_comparison = RunComparison(
        baseline_name, new_name, baseline.path, new_run.path, tuple(comparisons)
    )
    # The first source that declares a margin wins: options, policy file, the suite's TOML.
    verdicts = adjust_for_multiple_suites(
        [
            judge(comparison, *margins, _load_suite_margins(comparison, [baseline, new_run]))
            for comparison in comparisons
        ]
    )
    if fail_on == "drop":
        verdicts = mark_drops(verdicts)
    return CheckResult(run_comparison, verdicts, tuple(missing), tuple(unpaired))


def _load_suite_margins(comparison: Comparison, compared_runs: Sequence[Run]) -> Margins:
    """Return the margins of a suite's TOML. Raises DeclarationError for an unknown group."""
    margins = load_suite_margins(comparison.suite)
    cells = [
        cell for run in compared_runs for cell in run if compared_suite(cell) == comparison.suite
    ]
    check_margin_names(margins, cells, margins.source)
    return margins


def _check_suite_names(suites: Sequence[str], baseline: Run) -> None:
    """Raise UsageError for a suite that the baseline lacks."""
    suites_of_baseline = sorted({cell.suite for cell in baseline})
    for suite in suites:
        if not any(is_requested(name, [suite]) for name in suites_of_baseline):
            raise UsageError(
                f"the baseline has no suite {suite!r}",
                location="--suite",
                hint=f"its suites are {', '.join(suites_of_baseline) or 'none'}",
            )


def _classify_cells(
    baseline: Run, new_run: Run, suites: Sequence[str], methods: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str], list[str]]:
    """Return (missing cells, unpaired cells, comparable suites) of the baseline.

    Missing: the new run lacks the cell. Unpaired: the metric has no values per item. Both are
    lists of "suite · method".
    """
    new_cells = group_cells(new_run)
    new_method_by_baseline_method = dict(methods)
    missing, unpaired, comparable_suites = [], [], []
    for (suite, method), cells in group_cells(baseline).items():
        if not is_requested(suite, suites):
            continue
        if methods and method not in new_method_by_baseline_method:
            continue
        new_method = new_method_by_baseline_method.get(method, method)
        if (suite, new_method) not in new_cells:
            missing.append(f"{suite} · {new_method}")
        elif not is_paired(cells[0].summary.metric):
            unpaired.append(f"{suite} · {new_method}")
        else:
            comparable_suites.append(suite)
    return missing, unpaired, list(dict.fromkeys(comparable_suites))


def save_baseline(
    run: str | Path,
    name: str = "",
    *,
    baselines_dir: str | Path = BASELINES_DIR,
    overwrite: bool = False,
) -> Path:
    """Write a small copy of a run and return its folder.

    The copy has every cell with its predictions (ids and numbers, no texts). It has no training
    histories and no facts about the machine. Paths of the user's files are shortened to the
    shortest endings that still differ. name: name of the new folder in `baselines_dir`. Default:
    the name of the run's folder.

    Raises RunError (not a run folder, damaged predictions, a full disk), UsageError (a name that
    no folder can have, an existing baseline).
    """
    opened_run = open_verified_stored_run(run)
    name = name or Path(run).resolve().name
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"{name!r} cannot be the name of a folder",
            location="--name",
            hint="use letters, digits, - and _",
        )
    if not opened_run.cells:
        raise RunError("the run has no finished cell", location=str(run), hint="score it first")
    baseline_dir = Path(baselines_dir) / name
    if baseline_dir.exists() and not overwrite:
        raise UsageError(
            f"there is a baseline {name!r} already",
            location=str(baseline_dir),
            hint="--overwrite replaces it",
        )
    try:
        replace_folder(baseline_dir, partial(_write_baseline, opened_run))
    except OSError as error:
        raise RunError(
            f"cannot be written: {error.strerror}",
            location=str(baseline_dir),
            hint="is it in use?",
        ) from error
    return baseline_dir


def _write_baseline(run: Run, baseline_dir: Path) -> None:
    manifest = run.manifest
    model = {key: value for key, value in manifest.model.items() if key not in MACHINE_KEYS}
    manifest = Manifest(runs.SCHEMA_VERSION, model, manifest.software, manifest.created)
    with runs.RunWriter(baseline_dir, manifest) as writer:
        for cell in runs.shorten_cell_paths(run):
            # Reports warn about finetuning that collapsed, so this entry of the history is kept.
            history = {key: cell.history[key] for key in ("collapsed",) if key in cell.history}
            writer.write_cell(replace(cell, history=history), runs.read_predictions(run.path, cell))


def list_baselines(baselines_dir: str | Path = BASELINES_DIR) -> list[dict[str, str]]:
    """Return one row per baseline. The row of a damaged baseline has the error in column model."""
    rows: list[dict[str, str]] = []
    for path in sorted(Path(baselines_dir).glob("[!.]*/run.json")):
        row = {"baseline": path.parent.name, "model": "", "suites": "", "created": ""}
        try:
            run = runs.open_run(path.parent)
        except RunError as error:
            row["model"] = f"unreadable: {error.message}"
        else:
            row["model"] = model_name(run)
            row["suites"] = ", ".join(dict.fromkeys(cell.suite for cell in run))
            row["created"] = run.manifest.created[:10]
        rows.append(row)
    return rows


def find_run_or_baseline(run_or_name: RunLike) -> Path:
    """Return the folder of a run, or of the baseline of that name.

    Raises UsageError, with the names of the baselines, if there is none.
    """
    path_or_name = run_folder(run_or_name)
    if find_url(path_or_name):
        return runs.download_runs(path_or_name)
    for folder in (Path(path_or_name), BASELINES_DIR / path_or_name):
        if (folder / "run.json").exists():
            return folder
    names = [row["baseline"] for row in list_baselines()]
    if names:
        hint = f"baselines are {', '.join(names)}"
    else:
        hint = f"{BASELINES_DIR} has no baseline; antlm-bench baseline save RUN saves one"
    raise UsageError(
        f"there is no run folder and no baseline {str(path_or_name)!r}",
        location="--against",
        hint=hint,
    )
