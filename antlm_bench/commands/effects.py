"""`effects`: means, contrasts and interactions of surprisal over conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.arguments import describe_argument
from antlm_bench.errors import UsageError
from antlm_bench.keywords import COMMAND_LINE_NAMES
from antlm_bench.packages import require_packages
from antlm_bench.results.effects import DesignResult, analyse_design
from antlm_bench.results.experiment_table import (
    DesignOptions,
    LocatedRows,
    build_experiment_table,
)
from antlm_bench.runs.table_files import (
    check_table_suffix,
    frame_rows,
    is_frame,
    read_parquet_rows,
    write_table,
)
from antlm_bench.suites import files, records
from antlm_bench.suites.stimuli_spec import StimuliLayout, is_declared, read_stimuli_spec
from antlm_bench.text_arguments import check_columns, check_option_names, check_path
from antlm_bench.types import as_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.keywords import DesignKeywords

TABLE_COLUMNS = ("item", "condition", "region", "model", "word", "word_index")
"""Columns with a meaning that `columns` renames."""


@require_packages()
def effects(
    table: Any,
    out: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    **settings: Unpack[DesignKeywords],
) -> DesignResult:
    """Compute means, contrasts and interactions of surprisal, paired by items.

    table: what `surprisal` returns, the file that it writes (.csv, .tsv, .jsonl, .parquet), or a
    data frame with the columns item, condition, optionally region, word_index, word and model, and
    one whose name begins with `surprisal`. out: a .csv, .tsv or .parquet file to write, with a row
    per item, condition and region. columns: our column -> the table's. settings: see DesignOptions.

    The value of a region is the sum over its words. Intervals and tests are those of a t
    distribution over items (docs/how-to/effects.md).

        result = antlm_bench.effects(antlm_bench.surprisal("gpt2", "stimuli.csv"))
        result.table("effects").to_pandas()
        antlm_bench.plot(result)

    Raises DataError, UsageError, RunError. After an error no file is written.
    """
    if out is not None:
        check_path(out, "out")
        check_table_suffix(Path(out))
    if columns is not None:
        check_columns(columns)
        records.check_column_names(columns, TABLE_COLUMNS)
    options = build_design_options(settings)
    rows, location = _read_rows(table)
    experiment = build_experiment_table(rows, location, columns or {}, options)
    result = analyse_design(experiment, options)
    if out is not None:
        write_table(Path(out), experiment.long_rows())
    return result


def effects_of_models(
    models: Sequence[str],
    stimuli: str,
    out: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    layout: StimuliLayout | None = None,
    method: str | None = None,
    words: str | None = None,
    options: OpenOptions | None = None,
    settings: DesignKeywords | None = None,
) -> DesignResult:
    """Compute the surprisal of stimuli under one or several models, then its effects.

    models: as in `surprisal`. stimuli, columns, layout, method, words, options: see `surprisal`.
    settings: see `effects`; a declaration of stimuli has defaults for them. Raises the errors of
    both functions.
    """
    from antlm_bench.commands.surprisal import surprisal  # it imports torch

    if out is not None:
        check_table_suffix(out)
    design = build_design_options(settings or {})
    notes: tuple[str, ...] = ()
    if is_declared(stimuli):
        spec, _ = read_stimuli_spec(stimuli)
        declared, notes = spec.design, spec.notes
        design = replace(
            design,
            factors=design.factors or declared.factors,
            baseline=design.baseline or declared.baseline,
            per=design.per or declared.per,
        )
    table = surprisal(
        models,
        stimuli,
        columns=columns,
        text_layout=layout,
        method=method,
        words=words,
        options=options,
    )
    rows = [(stimuli, row) for row in table.rows]
    experiment = build_experiment_table(rows, stimuli, {}, design)
    result = analyse_design(experiment, design)
    if out is not None:
        write_table(out, experiment.long_rows())
    return replace(result, notes=(*notes, *result.notes))


def build_design_options(settings: Mapping[str, Any]) -> DesignOptions:
    """Build the options from keywords. A single name means a sequence with one name.

    Raises UsageError for an unknown keyword or a value of another type.
    """
    own_names = [field.name for field in fields(DesignOptions)]
    renamed = {
        name if name in own_names else COMMAND_LINE_NAMES.get(name, name): value
        for name, value in settings.items()
    }
    check_option_names(DesignOptions, renamed)
    values: dict[str, Any] = {}
    for name, value in renamed.items():
        if name in ("separator", "value"):
            if not isinstance(value, str) or (name == "separator" and not value):
                raise UsageError(
                    f"{describe_argument(value)} is not a text", location=name, hint="give a str"
                )
            values[name] = value
            continue
        is_names = isinstance(value, str) or (
            isinstance(value, Sequence) and all(isinstance(each, str) for each in value)
        )
        if not is_names:
            raise UsageError(
                f"{describe_argument(value)} is neither a name nor a list of names",
                location=name,
                hint="give a str, or a list of them",
            )
        values[name] = tuple(as_list(value))
    return DesignOptions(**values)


def _read_rows(table: Any) -> tuple[LocatedRows, str]:
    """Return (the rows with their locations, the table's name for error messages)."""
    if isinstance(table, str | Path):
        path = Path(table)
        if is_declared(table):
            raise UsageError(
                f"{str(table)!r} names stimuli, which have no surprisals",
                location="table",
                hint="name models: antlm-bench effects --model CKPT, or compute them first: "
                "antlm-bench surprisal --out FILE",
            )
        if path.suffix.lower() == ".parquet":
            return _number_rows(read_parquet_rows(path), f"{path}: "), str(path)
        raw = files.read_bytes(path)
        parsed = records.read_records(raw, path.name.lower(), str(path))
        return ((f"{path}:{line}", row) for line, row in parsed), str(path)
    if is_frame(table):
        return _number_rows(frame_rows(table)), "the table"
    raise UsageError(
        f"{describe_argument(table)} is not a table",
        location="table",
        hint="give a file, the result of `surprisal`, or a data frame",
    )


def _number_rows(
    rows: Sequence[Mapping[str, Any]], prefix: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((f"{prefix}row {number}", row) for number, row in enumerate(rows, start=1))
