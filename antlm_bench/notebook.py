"""Results in notebooks: small HTML tables, and Arrow tables for pandas and polars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from antlm_bench.errors import UsageError
from antlm_bench.packages import require_packages
from antlm_bench.printable import format_count, has_right_to_left, make_printable

MAX_ROWS_SHOWN = 20


def to_html_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str = "",
    notes: Sequence[str] = (),
) -> str:
    """Return a static HTML table. All text is escaped and made printable; numbers are aligned on
    the right.

    Floats are shown with four decimals (below 0.0001 as 1.5e-08), None as an empty cell.
    """
    head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows)
    caption = f"<caption>{_escape(title)}</caption>" if title else ""
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    note_items = "".join(f"<li>{_escape(note)}</li>" for note in notes)
    return f"{table}<ul>{note_items}</ul>" if notes else table


def _escape(text: str) -> str:
    """Escape text. Text that is written from right to left is isolated from what is beside it."""
    escaped = escape(make_printable(text))
    return f"<bdi>{escaped}</bdi>" if has_right_to_left(text) else escaped


def _html_cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{_escape('' if value is None else str(value))}</td>"
    if isinstance(value, float):
        text = f"{value:.1e}" if 0 < abs(value) < 1e-4 else f"{value:.4f}"
    else:
        text = f"{value:,}"
    return f'<td style="text-align: right">{text}</td>'


class ArrowTable:
    """A table of named columns.

    It implements the Arrow PyCapsule interface, so that other libraries read it directly:
    `polars.DataFrame(table)`, `pyarrow.table(table)`, `duckdb.sql("select * from table")`.

        frame = run.predictions("blimp").to_pandas()
        frame.groupby("pred").size()
    """

    def __init__(self, arrow: Any) -> None:
        """Wrap a `pyarrow.Table`."""
        self._arrow = arrow

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._arrow.num_rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self._arrow.column_names)

    def column(self, name: str) -> list[Any]:
        """Return a column as Python objects. Raises UsageError for an unknown name."""
        if name not in self.columns:
            hint = f"there are {', '.join(self.columns)}"
            raise UsageError(f"there is no column {name!r}", hint=hint)
        values: list[Any] = self._arrow[name].to_pylist()
        return values

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one dictionary per row."""
        rows: list[dict[str, Any]] = self._arrow.to_pylist()
        return rows

    def to_arrow(self) -> Any:
        """Return the `pyarrow.Table`."""
        return self._arrow

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`. Raises MissingPackage if pandas is not installed."""
        with require_packages("to_pandas()"):
            import pandas  # noqa: F401  (the error of Arrow does not say how to install it)
        return self._arrow.to_pandas()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the rows as an Arrow C stream (Arrow PyCapsule interface)."""
        return self._arrow.__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        return f"ArrowTable({format_count(len(self), 'row')}: {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        rows = [tuple(row.values()) for row in self._arrow.slice(0, MAX_ROWS_SHOWN).to_pylist()]
        hidden = len(self) - len(rows)
        notes = [format_count(hidden, "more row")] if hidden else []
        return to_html_table(self.columns, rows, title=format_count(len(self), "row"), notes=notes)


class TableResult:
    """A result that is used like its `table`: shown in a notebook, converted to a data frame.

    `result.to_pandas()`, `polars.DataFrame(result)` and `pyarrow.table(result)` give its rows.
    """

    __slots__ = ()

    @property
    def table(self) -> ArrowTable:
        """The rows as columns. Subclasses define it."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return self.table.columns

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`. Raises MissingPackage if pandas is not installed."""
        return self.table.to_pandas()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the rows as an Arrow C stream (Arrow PyCapsule interface)."""
        return self.table.__arrow_c_stream__(requested_schema)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
