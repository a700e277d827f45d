"""export and import: run folders as other tools' files, and lm-eval's results as a run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from antlm_bench import runs
from antlm_bench.commands.submit import open_runs
from antlm_bench.compare.summary_check import read_run
from antlm_bench.errors import UsageError
from antlm_bench.types import Run

ExportFormat = Literal["lm-eval", "csv", "model-index", "every-eval-ever"]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written, and what was left out."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def export(
    folders: Sequence[str | Path], export_format: ExportFormat, out: str | Path
) -> ExportResult:
    """Write runs in another tool's format: csv and model-index into the file `out`, the others into
    the folder `out`.

    Raises RunError for a folder that is no run, UsageError for two runs that would overwrite each
    other.
    """
    found = runs.distinguish_suites(
        [run for folder in folders for run in open_runs(folder, read_run)]
    )
    if not any(run.cells for run in found):
        raise UsageError("nothing is scored in these runs", location="RUN")
    if export_format == "csv":
        from antlm_bench.exports import items_csv

        return ExportResult((_write_file(Path(out), items_csv.format_items_csv(found)),))
    if export_format == "model-index":
        from antlm_bench.commands.report import build_report
        from antlm_bench.reporting.report_table import to_model_card

        return ExportResult(
            (
                _write_file(
                    Path(out),
                    to_model_card(build_report([run.path for run in found])).encode(),
                ),
            )
        )
    files: dict[Path, bytes] = {}
    notes: list[str] = []
    for run in found:
        for name, data in (
            _lm_eval_files(run, notes)
            if export_format == "lm-eval"
            else _every_eval_ever_files(run)
        ).items():
            if Path(out) / name in files:
                raise UsageError(
                    f"two runs want to be {name}",
                    location=run.path,
                    hint="export them into folders of their own",
                )
            files[Path(out) / name] = data
    if not files:
        raise UsageError(
            f"nothing to write as {export_format}: {'; '.join(notes)}",
            location="--format",
            hint="use --format csv",
        )
    return ExportResult(
        tuple(_write_file(path, data) for path, data in files.items()), tuple(notes)
    )


def _lm_eval_files(run: Run, notes: list[str]) -> dict[str, bytes]:
    """Files below the folder of the model, one folder per method where there are several: lm-eval
    knows one.
    """
    from antlm_bench.lm_eval_bridge import results_export

    methods = sorted({cell.method for cell in run if results_export.is_exportable(cell)})
    if not all(map(results_export.is_exportable, run)):
        notes.append(
            f"{run.path}: finetuned tasks and reading times are left out: the harness has no such thing"
        )
    made: dict[str, bytes] = {}
    for method in methods:
        folder = results_export.sanitize_name(str(run.manifest.model.get("name", "")))
        folder += f"__{results_export.sanitize_name(method)}" if len(methods) > 1 else ""
        made |= {
            f"{folder}/{name}": data
            for name, data in results_export.build_files(run, method).items()
        }
    return made


def _every_eval_ever_files(run: Run) -> dict[str, bytes]:
    from antlm_bench.exports import every_eval_ever, leaderboard

    record = every_eval_ever.build_record(run)
    leaderboard.validate_document(record, "every-eval-ever")
    data = json.dumps(record, indent=1, ensure_ascii=False).encode()
    return {every_eval_ever.file_name(run): data + b"\n"}


def import_results(folder: str | Path, out: str | Path) -> tuple[Run, tuple[str, ...]]:
    """lm-eval's results with samples as a run folder; the run, and the tasks that were left out
    with the reason.

    Raises DataError for results that are absent or damaged, RunError for an `out` that holds
    another model's run.
    """
    from antlm_bench.lm_eval_bridge import results_import

    imported = results_import.read_results(Path(folder))
    with runs.RunWriter(out, imported.manifest) as writer:
        for cell, predictions in imported.cells:
            writer.write_cell(cell, predictions)
    return read_run(out), imported.skipped_tasks


def _write_file(path: Path, data: bytes) -> Path:
    runs.make_folder(path.parent)
    runs.write_atomically(path, data)
    return path
