"""Show how far a command is, on stderr: one bar on a terminal, a line a minute in a log.

The work of a command consists of parts (checkpoints, conditions, recipes), a part of pieces (a
suite under some methods), and a piece of units (items, tokens). Pieces differ in cost per unit: an
item of a masked method costs a row per token. So the time left is estimated from costs:

    seconds of computing / cost computed * cost left + seconds of preparing a part * parts left

Preparing is opening a checkpoint. That of the first part is not counted, because it imports
libraries. Units that an earlier call computed cost nothing and count as no time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from antlm_bench.console import open_console
from antlm_bench.printable import clean_lines

FIRST_LINE_SECONDS = 5.0
"""Seconds before the first line in a log. A command that ends earlier prints none."""
LINE_SECONDS = 60.0
"""Seconds between two lines in a log."""
REFRESHES_PER_SECOND = 4.0
MIN_LABEL_WIDTH, MIN_BAR_WIDTH, MAX_BAR_WIDTH = 14, 8, 24
"""Columns of the line on a terminal."""


@dataclass(frozen=True, slots=True)
class Workload:
    """An amount of work: a number of units, and what they cost together."""

    units: int
    cost: float
    """Proportional to time, in one measure for all parts of a command: tokens, FLOPs, ..."""

    @classmethod
    def sum(cls, workloads: Iterable[Workload]) -> Workload:
        """Return the sum of workloads."""
        units, cost = 0, 0.0
        for each in workloads:
            units, cost = units + each.units, cost + each.cost
        return cls(units, cost)


class Progress:
    """A context manager that counts the work of a whole command, and shows the count.

    Inside the context of another Progress it shows nothing of its own: its state stands in the
    line of the outer one.
    """

    _active: ClassVar[Progress | None] = None
    """The outermost Progress of this process."""

    def __init__(
        self,
        label: str = "",
        unit: str = "items",
        *,
        total: int = 0,
        parts: tuple[str, int] = ("", 1),
        estimate_remaining: Callable[[], float | None] | None = None,
    ) -> None:
        """total: units of work; 0 = see `plan`. parts: what a part is, and their number.

        estimate_remaining: () -> remaining seconds (None = not known), for units that differ so
        much that costs say nothing.
        """
        self.unit, self.estimate_remaining = unit, estimate_remaining
        self.part_noun, self.num_parts = parts
        self.part_number = 0 if self.part_noun else 1
        """1 for the first part; 0 before it."""
        self.label, self.detail = clean_lines(label), ""
        self.num_done = self.num_computed = self.num_tokens = 0
        self._planned = Workload(total, total)
        """The work of this part and of the earlier ones."""
        self._later_parts: Sequence[Workload] = ()
        """The work of each later part, and of this part until it is planned."""
        self._done_cost = self._computed_cost = 0.0
        self._piece = Workload(total, total)
        self._piece_done = 0
        self._busy_seconds = self._preparing_seconds = 0.0
        self._part_has_work = False
        self._console = open_console(stderr=True)
        self._live: Live | None = None
        self._outer: Progress | None = None
        self._start_time = self._last_time = time.monotonic()
        self._next_line_time = self._start_time + FIRST_LINE_SECONDS
        self._is_open = self._has_printed = False

    def __enter__(self) -> Progress:
        self._start_time = self._last_time = time.monotonic()
        self._next_line_time = self._start_time + FIRST_LINE_SECONDS
        self._is_open, self._outer = True, Progress._active
        if self._outer is not None:
            return self
        if _can_show_bar(self._console):
            self._live = Live(
                _ProgressLine(self),
                console=self._console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
                # What is printed on stdout appears above the bar; in a file it stays there.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        Progress._active = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_open = False
        if self._outer is not None:
            self._outer.detail = ""
            return
        Progress._active = None
        if self._live:
            self._live.stop()
        elif error is None and self._has_printed:
            self._console.print(Text(self.last_line()))

    # ---- what the command does

    def next_part(self, label: str) -> None:
        """Begin the next part. Its work is what an earlier `plan` expected, until it is planned."""
        self.end_piece()
        self._count_time(is_work=self._part_has_work)
        self.part_number += 1
        self.num_parts = max(self.num_parts, self.part_number)
        self._part_has_work = False
        # A part that could not be opened leaves work that will not be done.
        self._planned = Workload(self.num_done, self._done_cost)
        self._later_parts = self._later_parts[-(self.num_parts - self.part_number + 1) :]
        self.describe(label)

    def plan(self, work: Workload, later: Sequence[Workload] | None = None) -> None:
        """Set the work of this part. later: that of each later part; None = equal to this one."""
        now = time.monotonic()
        self._preparing_seconds = now - self._last_time if self.part_number > 1 else 0.0
        self._last_time = now
        self._planned = Workload.sum([Workload(self.num_done, self._done_cost), work])
        self._later_parts = [work] * (self.num_parts - self.part_number) if later is None else later
        self._piece, self._piece_done = Workload(0, 0.0), 0
        self.refresh()

    def plan_piece(
        self, label: str, work: Workload, later: Sequence[Workload] | None = None
    ) -> None:
        """Plan a part that is one piece, and begin it. later: as for `plan`."""
        self.label = clean_lines(label)
        self.plan(work, later)
        self.start_piece(label, work)

    def start_piece(self, label: str, work: Workload) -> None:
        """End the last piece, and begin another one of this part."""
        self.end_piece()
        self._piece, self._piece_done = work, 0
        self.describe(label)

    def end_piece(self) -> None:
        """End a piece. Units that it has not done (a failure, an early stop) no longer count."""
        undone = max(0, self._piece.units - self._piece_done)
        share = undone / self._piece.units if undone else 0.0
        self._planned = Workload.sum([self._planned, Workload(-undone, -share * self._piece.cost)])
        self._piece, self._piece_done = Workload(0, 0.0), 0

    def advance(self, n: int = 1, tokens: int = 0) -> None:
        """Count n units that were computed, and the tokens that a model read for them."""
        self._count_time(is_work=True)
        self.num_computed += n
        self.num_tokens += tokens
        self._part_has_work = True
        self._computed_cost += self._count_done(n)
        self.refresh()

    def skip(self, n: int) -> None:
        """Count n units that an earlier call computed."""
        self._count_time(is_work=False)
        self._count_done(n)
        self.refresh()

    def describe(self, label: str) -> None:
        """Change the label."""
        self.label = clean_lines(label)
        self.refresh()

    def log(self, text: str) -> None:
        """Print a line above the bar, or into the log."""
        if self._outer is not None:
            self._outer.log(text)
        else:
            (self._live.console if self._live else self._console).print(Text(clean_lines(text)))

    def refresh(self) -> None:
        """Print the next line of a log when it is due. A bar redraws itself."""
        if not self._is_open:
            return
        if self._outer is not None:
            count = f" {self.num_done:,}/{self.total:,}" if self.total else ""
            self._outer.detail = self.label + count
            self._outer.refresh()
        elif self._live is None and (now := time.monotonic()) >= self._next_line_time:
            self._next_line_time, self._has_printed = now + LINE_SECONDS, True
            self._console.print(Text(self.log_line()))

    # ---- what is shown

    @property
    def total(self) -> int:
        """Units of the whole command, of which `num_done` are done."""
        return max(
            self._planned.units + sum(each.units for each in self._later_parts), self.num_done
        )

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the whole command is done; None = not known yet."""
        if self.estimate_remaining:
            return self.estimate_remaining()
        cost_left = Workload.sum([self._planned, *self._later_parts]).cost - self._done_cost
        seconds = self._preparing_seconds * len(self._later_parts)
        if cost_left <= 0 or not self.total:
            return seconds if self.total else None
        if not self._computed_cost:
            return None
        return self._busy_seconds / self._computed_cost * cost_left + seconds

    @property
    def rate(self) -> str:
        """Tokens per second, or else units per second, of computing; "" = not known."""
        if not self._busy_seconds or not self.num_computed:
            return ""
        count = self.num_tokens or self.num_computed
        unit = "tokens" if self.num_tokens else self.unit
        return f"{format_rate(count / self._busy_seconds)} {unit}/s"

    @property
    def title(self) -> str:
        """The number of the part, and what is computed now."""
        part = f"{self.part_number}/{self.num_parts} " if self.num_parts > 1 else ""
        return f"{part}{self.label}{f' · {self.detail}' if self.detail else ''}".strip()

    def log_line(self) -> str:
        """Return a log line: part, label, units done, rate, time left."""
        part = f"{self.part_noun} {self.part_number} of {self.num_parts}, "
        line = (part if self.num_parts > 1 and self.part_noun else "") + self.label
        line += f" ({self.detail})" if self.detail else ""
        if self.total:
            percentage = f"{100 * self.num_done // self.total}%"
            line += f": {self.num_done:,} of {self.total:,} {self.unit} ({percentage})"
            line += f", {self.rate}" if self.rate else ""
        if (seconds := self.seconds_left) is not None:
            line += f", {format_duration(seconds)} left"
        return line

    def last_line(self) -> str:
        """Return the last line of a log: the units that were done, and the duration."""
        label = self.label
        if self.num_parts > 1 and self.part_noun:
            label = f"{self.num_parts:,} {self.part_noun}s"
        of_all = f" of {self.total:,}" if self.num_done < self.total else ""
        duration = format_duration(time.monotonic() - self._start_time)
        line = f"{label}: {self.num_done:,}{of_all} {self.unit} in {duration}"
        num_earlier = self.num_done - self.num_computed
        return line + (f", {num_earlier:,} of them by an earlier call" if num_earlier else "")

    # ---- counts

    def _count_done(self, n: int) -> float:
        """Count n units of the piece as done. Return their cost."""
        self.num_done += n
        self._piece_done += n
        cost = n * self._piece.cost / self._piece.units if self._piece.units else 0.0
        self._done_cost += cost
        return cost

    def _count_time(self, is_work: bool) -> None:
        now = time.monotonic()
        self._busy_seconds += (now - self._last_time) if is_work else 0.0
        self._last_time = now


class ShareCounter:
    """A ProgressCallback that receives shares of some units, and counts whole units."""

    def __init__(
        self, progress: Progress, num_units: int, count_tokens: Callable[[], int] | None = None
    ) -> None:
        """count_tokens: () -> tokens that the model has read so far, for the tokens per second."""
        self.progress, self.num_units, self.count_tokens = progress, num_units, count_tokens
        self.share_done, self.num_reported = 0.0, 0
        self.tokens_before = count_tokens() if count_tokens else 0

    def __call__(self, share: float) -> None:
        self.share_done += share
        self._advance_to(min(self.num_units, round(self.share_done * self.num_units)))

    def finish(self) -> None:
        """Count the remaining units."""
        self._advance_to(self.num_units)

    def _advance_to(self, num_done: int) -> None:
        tokens = self.count_tokens() if self.count_tokens else 0
        self.progress.advance(num_done - self.num_reported, tokens - self.tokens_before)
        self.num_reported, self.tokens_before = num_done, tokens


class _ProgressLine:
    """The line on a terminal. It is never wider than the terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The last column stays free: some terminals begin a new line after it.
        symbols = "=-" if options.ascii_only else "━─"
        yield build_bar_line(self.progress, max(options.max_width - 1, 1), symbols)


def build_bar_line(progress: Progress, width: int, symbols: str = "━─") -> Text:
    """Return the line of a progress in at most `width` columns.

    Counts and time left come first, then the label, the rate, and a bar. symbols: of the bar, for
    what is done and what is left.
    """
    counts = f"{progress.num_done:,}/{progress.total:,} {progress.unit}" if progress.total else ""
    seconds = progress.seconds_left
    time_left = "" if seconds is None else f"{format_duration(seconds)} left"
    label = Text(progress.title)
    facts = [each for each in (counts, time_left) if each]

    def free(min_label_width: int) -> int:
        """Return the columns that remain beside the facts and the label."""
        return width - min_label_width - sum(len(each) + 1 for each in facts)

    label_width = label.cell_len
    if progress.rate and free(min(label_width, MIN_LABEL_WIDTH)) > len(progress.rate):
        facts.insert(len(facts) - bool(time_left), progress.rate)
    bar_width = min(free(label_width) - 1, MAX_BAR_WIDTH)
    label.truncate(max(free(0), 0), overflow="ellipsis")
    line = label
    if bar_width >= MIN_BAR_WIDTH and progress.total:
        filled = bar_width * progress.num_done // progress.total
        line = label + Text(" ") + Text(symbols[0] * filled, "green")
        line += Text(symbols[1] * (bar_width - filled))
    for each in facts:
        line += Text(f" {each}" if len(line) else each)
    line.truncate(width)
    line.no_wrap = True
    return line


def _can_show_bar(console: Console) -> bool:
    """Return whether stderr is a terminal that can redraw a line.

    FORCE_COLOR makes rich take a file for a terminal, and a log would be full of redrawn lines.
    """
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def format_rate(rate: float) -> str:
    """Return a rate as `41,200`, `9.5` or `0.25`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def format_duration(seconds: float) -> str:
    """Return a duration as `8 s`, `3 min 05 s` or `2 h 10 min`."""
    minutes, remaining_seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {remaining_seconds:02} s" if minutes else f"{remaining_seconds} s"
