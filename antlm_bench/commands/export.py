"""`export` and `import`: write runs as files of other tools, and lm-eval's results as a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from antlm_bench import runs
from antlm_bench.comparison.summary_check import open_verified_run, open_verified_runs
from antlm_bench.errors import UsageError
from antlm_bench.results.checkpoint_series import expand_run_dirs
from antlm_bench.types import Run

ExportFormat = Literal["lm-eval", "csv", "model-index", "every-eval-ever"]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The files that `export` wrote."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    """Sentences on what was left out."""


def export(
    folders: Sequence[str | Path], export_format: ExportFormat, out: str | Path
) -> ExportResult:
    """Write runs in the format of another tool.

    out: the file for csv and model-index, the folder for other formats. Raises RunError for a
    folder without a run, UsageError for runs without cells, and if two runs would write the same
    file.
    """
    opened = open_verified_runs(expand_run_dirs(folders))
    if not any(run.cells for run in opened):
        raise UsageError(
            "these runs have no finished cell", location="RUN", hint="score them first"
        )
    if export_format == "csv":
        from antlm_bench.exports.items_csv import format_items_csv

        runs.write_file(Path(out), format_items_csv(opened))
        return ExportResult((Path(out),))
    if export_format == "model-index":
        from antlm_bench.commands.report import build_report
        from antlm_bench.results.model_card import build_model_card

        card = build_model_card(build_report([run.path for run in opened]))
        runs.write_file(Path(out), card.encode())
        return ExportResult((Path(out),))
    files: dict[Path, bytes] = {}
    notes: list[str] = []
    for run in opened:
        if export_format == "lm-eval":
            files_of_run = _lm_eval_files(run, notes)
        else:
            files_of_run = _every_eval_ever_files(run)
        for name, data in files_of_run.items():
            if Path(out) / name in files:
                raise UsageError(
                    f"two runs would be written to {name}",
                    location=run.path,
                    hint="export each run into its own folder",
                )
            files[Path(out) / name] = data
    if not files:
        raise UsageError(
            f"nothing can be written as {export_format}: {'; '.join(notes)}",
            location="--format",
            hint="use --format csv",
        )
    files_by_folder: dict[Path, dict[str, bytes]] = {}
    for path, data in files.items():
        files_by_folder.setdefault(path.parent, {})[path.name] = data
    for folder, files_of_folder in files_by_folder.items():
        if export_format == "lm-eval":  # the results and their samples belong together
            runs.write_files(folder, files_of_folder)
        else:
            for name, data in files_of_folder.items():
                runs.write_file(folder / name, data)
    return ExportResult(tuple(files), tuple(notes))


def _lm_eval_files(run: Run, notes: list[str]) -> dict[str, bytes]:
    """Return relative path -> bytes. The files are in a folder with the name of the model.

    lm-eval has one method per model, so each of several methods has its own folder. Sentences on
    what is left out are added to `notes`.
    """
    from antlm_bench.lm_eval_bridge import results_export

    methods = sorted({cell.method for cell in run if results_export.is_exportable(cell)})
    if not all(map(results_export.is_exportable, run)):
        notes.append(
            f"{run.path}: finetuned tasks and reading times are left out, because lm-eval has no"
            " such tasks"
        )
    files: dict[str, bytes] = {}
    for method in methods:
        folder = results_export.sanitize_name(str(run.manifest.model.get("name", "")))
        if len(methods) > 1:
            folder += f"__{results_export.sanitize_name(method)}"
        for name, data in results_export.build_files(run, method).items():
            files[f"{folder}/{name}"] = data
    return files


def _every_eval_ever_files(run: Run) -> dict[str, bytes]:
    from antlm_bench.exports import every_eval_ever, leaderboard

    record = every_eval_ever.build_record(run)
    leaderboard.validate_document(record, "every-eval-ever")
    data = json.dumps(record, indent=1, ensure_ascii=False).encode()
    return {every_eval_ever.build_file_name(run): data + b"\n"}


def import_results(folder: str | Path, out: str | Path) -> tuple[Run, tuple[str, ...]]:
    """Write lm-eval's results with samples as a run folder.

    Returns the run, and the tasks that were left out, with the reason. Raises DataError for absent
    or damaged results, RunError if `out` has another model's run.
    """
    from antlm_bench.lm_eval_bridge import results_import

    imported = results_import.read_results(Path(folder))
    with runs.RunWriter(out, imported.manifest) as writer:
        for cell, predictions in imported.cells:
            writer.write_cell(cell, predictions)
    return open_verified_run(out), imported.skipped_tasks
