"""How far, how fast, how long still: a bar on a terminal, a line every few seconds in a log; always on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from antlm_bench.reporting.results_table import printable
from antlm_bench.reporting.terminal import console

EVERY = 10.0  # seconds between two lines of a log


class Progress:
    """Counts up to `total` units of work. A context manager; `advance(n)` when n units are done.

    `skip(n)` counts units that cost nothing (resumed from disk), so that rate and time left stay true.
    """

    def __init__(self, total: int, label: str, unit: str = "items") -> None:
        self.total, self.label, self.unit = total, printable(label), unit
        self.done = self.worked = 0
        self.out = console(stderr=True)
        self.started = self.spoken = time.monotonic()
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        self.started = self.spoken = time.monotonic()
        if self.out.is_terminal:
            columns = (BarColumn(24), MofNCompleteColumn(), _Rate(self), TimeRemainingColumn(compact=True))
            self.bar = Bar(TextColumn("{task.description}", markup=False), *columns, console=self.out, transient=True)
            self.task = self.bar.add_task(self.label, total=self.total)
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif error is None and self.spoken > self.started:  # it took long enough to have spoken: say that it ended
            self.out.print(f"{self.label}: {self.done:,} {self.unit} in {duration(time.monotonic() - self.started)}")

    def advance(self, n: int = 1) -> None:
        self.worked += n
        self._count(n)

    def skip(self, n: int) -> None:
        self._count(n)

    def describe(self, label: str) -> None:
        """Say something else before the numbers from now on."""
        self.label = printable(label)
        if self.bar:
            self.bar.update(self.task, description=self.label)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        (self.bar.console if self.bar else self.out).print(Text(printable(text)))

    @property
    def rate(self) -> float:
        """Units per second of those that were really worked on."""
        return self.worked / max(time.monotonic() - self.started, 1e-9)

    def _count(self, n: int) -> None:
        self.done += n
        if self.bar:
            self.bar.update(self.task, completed=self.done)
        elif time.monotonic() - self.spoken >= EVERY:
            self.spoken = time.monotonic()
            self.out.print(self.line())

    def line(self) -> str:
        """The state in one line of a log."""
        share = f"{100 * self.done / self.total:.0f}%" if self.total else "100%"
        left = (self.total - self.done) / self.rate if self.rate else None
        ending = f", {self.rate:,.0f} {self.unit}/s, {duration(left)} left" if left is not None else ""
        return f"{self.label}: {self.done:,} of {self.total:,} {self.unit} ({share}){ending}"


class _Rate(ProgressColumn):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def render(self, task: Task) -> Text:
        del task
        return Text(f"{self.progress.rate:,.0f} {self.progress.unit}/s" if self.progress.worked else "", style="dim")


def duration(seconds: float) -> str:
    """`8 s`, `3 min 05 s`, `2 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
