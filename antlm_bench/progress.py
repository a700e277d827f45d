"""Show progress on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from antlm_bench.console import open_console
from antlm_bench.printable import clean_lines

LOG_INTERVAL = 10.0
"""Seconds between two log lines."""


class Progress:
    """A context manager that counts units of work up to `total` and shows the count.

    Rate and remaining time are estimated from computed units (`advance`) only; units that were
    resumed from disk (`skip`) take no time.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "items",
        estimate_remaining: Callable[[], float | None] | None = None,
    ) -> None:
        """estimate_remaining: () -> remaining seconds (None = not known), for units that differ so
        much that a rate says nothing.
        """
        self.estimate_remaining = estimate_remaining
        self.total, self.label, self.unit = total, clean_lines(label), unit
        self.num_done = self.num_computed = 0
        self.console = open_console(stderr=True)
        self.start_time = self.last_log_time = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        self.start_time = self.last_log_time = time.monotonic()
        if self.console.is_terminal:
            columns: tuple[ProgressColumn, ...] = (
                (_EstimateColumn(self.estimate_remaining),)
                if self.estimate_remaining
                else (_RateColumn(self), TimeRemainingColumn(compact=True))
            )
            self.bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                MofNCompleteColumn(),
                *columns,
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(self.label, total=self.total)
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif error is None and self.last_log_time > self.start_time:  # only if it took a while
            duration = format_duration(time.monotonic() - self.start_time)
            self.console.print(f"{self.label}: {self.num_done:,} {self.unit} in {duration}")

    def advance(self, n: int = 1) -> None:
        """Count n units that were computed."""
        self.num_computed += n
        self._add(n)

    def skip(self, n: int) -> None:
        """Count n units that were not computed."""
        self._add(n)

    def describe(self, label: str) -> None:
        """Change the label."""
        self.label = clean_lines(label)
        if self.bar:
            self.bar.update(self.task, description=self.label)

    def log(self, text: str) -> None:
        """Print a line above the bar."""
        (self.bar.console if self.bar else self.console).print(Text(clean_lines(text)))

    @property
    def rate(self) -> float:
        """Computed units per second."""
        return self.num_computed / max(time.monotonic() - self.start_time, 1e-9)

    def _add(self, n: int) -> None:
        self.num_done += n
        if self.bar:
            self.bar.update(self.task, completed=self.num_done)
        elif time.monotonic() - self.last_log_time >= LOG_INTERVAL:
            self.last_log_time = time.monotonic()
            self.console.print(self.log_line())

    def log_line(self) -> str:
        """Return a log line with the units done, the rate and the remaining time."""
        percentage = f"{100 * self.num_done / self.total:.0f}%" if self.total else "100%"
        line = f"{self.label}: {self.num_done:,} of {self.total:,} {self.unit} ({percentage})"
        if self.estimate_remaining:
            if (seconds := self.estimate_remaining()) is not None:
                line += f", {format_duration(seconds)} left"
        elif self.rate:
            remaining = format_duration((self.total - self.num_done) / self.rate)
            line += f", {self.rate:,.0f} {self.unit}/s, {remaining} left"
        return line


class _RateColumn(ProgressColumn):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def render(self, task: Task) -> Text:
        del task
        if not self.progress.num_computed:
            return Text("")
        return Text(f"{self.progress.rate:,.0f} {self.progress.unit}/s", style="dim")


class _EstimateColumn(ProgressColumn):
    max_refresh = 1.0  # seconds

    def __init__(self, estimate_remaining: Callable[[], float | None]) -> None:
        super().__init__()
        self.estimate_remaining = estimate_remaining

    def render(self, task: Task) -> Text:
        del task
        seconds = self.estimate_remaining()
        return Text("" if seconds is None else f"{format_duration(seconds)} left", style="dim")


def format_duration(seconds: float) -> str:
    """Return a duration as `8 s`, `3 min 05 s` or `2 h 10 min`."""
    minutes, remaining_seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {remaining_seconds:02} s" if minutes else f"{remaining_seconds} s"
