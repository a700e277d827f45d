"""Journals: what happened to the units of a sweep, one file per process that takes part.

A journal is JSON lines, appended by one process only. A reader needs no lock: it takes complete
lines, and keeps the position up to which it has read each file. The order of events in different
journals is not known, so that whoever reads them relies on attempt numbers, not on order or time.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from antlm_bench.errors import RunError
from antlm_bench.safe_files import open_for_writing, open_regular_file

EventName = Literal["started", "done", "failed", "stopped", "released", "ended", "repeat"]
EVENT_NAMES = frozenset(get_args(EventName))
JOURNAL_SUFFIX = ".jsonl"


@dataclass(slots=True)
class Event:
    """A line of a journal."""

    event: EventName
    """started, done, failed: an attempt at a unit. stopped: an attempt that ended for a reason
    outside the unit. released: a claim is free. ended: a worker has ended, as its executor reports.
    repeat: attempts up to this one do not count any more."""
    unit: str = ""
    attempt: int = 0
    time: float = 0.0
    """Seconds since 1970 by the clock of the node. For people only: clocks differ."""
    seconds: float = 0.0
    """How long the attempt took."""
    worker: str = ""
    node: str = ""
    pid: int = 0
    claim: str = ""
    """Claim under which an attempt was started, or which is released."""
    part: str = ""
    """Folder with the results of a unit that is done, below the sweep's folder; "" = none."""
    error: str = ""
    """A sentence for people."""
    log: str = ""
    """File with the output of the attempt, below the sweep's folder."""
    final: bool = False
    """failed: whether no further attempt follows."""


MAX_ATTEMPT, MAX_SECONDS = 1_000_000, 1e11
"""Events with larger numbers are damaged."""
_CLAIM_ID = re.compile(r"[\w.-]*")
"""The name of a file."""
_ENDS = frozenset({"done", "failed", "stopped"})
_NUMBERS, _TEXT = (int, float), {str}
_DEFAULTS = {field.name: field.default for field in fields(Event) if field.default is not MISSING}


def encode_event(event: Event) -> bytes:
    """Return the line of an event. Fields that have their default are omitted."""
    record: dict[str, Any] = {"event": event.event}
    for name, default in _DEFAULTS.items():
        if (value := getattr(event, name)) != default:
            record[name] = value
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def decode_events(data: bytes) -> list[Event]:
    """Return the events of complete lines, without those that are damaged or of unknown kinds.

    Of an attempt that has started and ended, only the end is returned.
    """
    lines = data.splitlines()
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")
        if len(records) != len(lines):
            raise ValueError
    except (ValueError, RecursionError):  # line by line, to find the damaged ones
        records = [record for line in lines if (record := _parse_line(line)) is not None]
    with suppress(AttributeError, TypeError):  # a line that is no object, or has odd values
        ended = {
            (each.get("unit"), each.get("attempt"))
            for each in records
            if each.get("event") in _ENDS
        }
        records = [
            each
            for each in records
            if each.get("event") != "started"
            or (each.get("unit"), each.get("attempt")) not in ended
        ]
    return [event for record in records if (event := _build_event(record)) is not None]


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _build_event(record: Any) -> Event | None:
    try:
        event = Event(**record)
    except TypeError:
        return None
    texts = (event.unit, event.worker, event.node, event.claim, event.part, event.error, event.log)
    is_valid = (
        type(event.attempt) is type(event.pid) is int
        and type(event.time) in _NUMBERS
        and type(event.seconds) in _NUMBERS
        and type(event.final) is bool
        and set(map(type, texts)) == _TEXT
        and type(event.event) is str
        and event.event in EVENT_NAMES
        and 0 <= event.attempt <= MAX_ATTEMPT
        and 0 <= event.time < MAX_SECONDS  # False for NaN
        and 0 <= event.seconds < MAX_SECONDS
        and _CLAIM_ID.fullmatch(event.claim)
    )
    return event if is_valid else None


class JournalWriter:
    """The journal of this process. It never continues the journal of another process."""

    def __init__(self, folder: Path, name: str) -> None:
        """Create the journal `name`, or `name`.2, `name`.3, ... if it exists. Raises OSError."""
        number = 1
        while True:
            self.name = name if number == 1 else f"{name}.{number}"
            self.path = folder / f"{self.name}{JOURNAL_SUFFIX}"
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
            try:
                self._descriptor = open_for_writing(self.path, flags)
                return
            except FileExistsError:
                number += 1

    def append(self, *events: Event) -> None:
        """Append lines with a single write, and wait until they are on the disk. Raises RunError.

        A signal handler can call it at any moment: there is no lock and no buffer.
        """
        lines = b"".join(map(encode_event, events))
        try:
            num_written = os.write(self._descriptor, lines)
            if num_written < len(lines):
                self._finish_lines(lines[num_written:])
            os.fsync(self._descriptor)
        except OSError as error:
            raise RunError(
                f"the journal cannot be written: {error.strerror or error}",
                location=str(self.path),
                hint="make room and repeat the command: nothing finished is lost",
            ) from error

    def _finish_lines(self, rest: bytes) -> None:
        """Write the rest of lines. Raises OSError if it does not fit, after ending the last line,
        so that the next one is not glued to it.
        """
        try:
            if os.write(self._descriptor, rest) < len(rest):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.write(self._descriptor, b"\n")
            raise


class JournalReader:
    """Reads what is new in the journals of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.skip = ""
        """Name of a journal that is not read: the reader's own."""
        self._positions: dict[str, int] = {}
        """File -> bytes that were read."""

    def read_new_events(self) -> Iterator[Event]:
        """Yield events that were appended since the last call; incomplete last lines come later.

        Raises OSError.
        """
        with os.scandir(self.folder) as entries:
            names = sorted(each.name for each in entries if each.name.endswith(JOURNAL_SUFFIX))
        for name in names:
            if name == self.skip + JOURNAL_SUFFIX:
                continue
            with open_regular_file(self.folder / name) as file:
                position = self._positions.get(name, 0)
                if os.fstat(file.fileno()).st_size <= position:
                    continue
                file.seek(position)
                data = file.read()
            complete = data[: data.rfind(b"\n") + 1]
            self._positions[name] = position + len(complete)
            yield from decode_events(complete)
