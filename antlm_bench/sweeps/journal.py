"""Journals: what happened to the units of a sweep, one file per process that takes part.

A journal is JSON lines, appended by one process only. A reader needs no lock: it takes complete
lines, and keeps the position up to which it has read each file. The order of events in different
journals is not known, so that whoever reads them relies on attempt numbers, not on order or time.
"""

from __future__ import annotations

import errno
import json
import os
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


_DEFAULTS = {field.name: field.default for field in fields(Event) if field.default is not MISSING}


def encode_event(event: Event) -> bytes:
    """Return the line of an event. Fields that have their default are omitted."""
    record: dict[str, Any] = {"event": event.event}
    for name, default in _DEFAULTS.items():
        if (value := getattr(event, name)) != default:
            record[name] = value
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def decode_event(line: bytes) -> Event | None:
    """Return the event of a line; None for a line that is damaged, or of an unknown event."""
    try:
        record: dict[str, Any] = json.loads(line)
        event = Event(**record)
    except (ValueError, TypeError, RecursionError):
        return None
    is_valid = all(
        type(value) is type(default) or (type(default) is float and type(value) is int)
        for name, value in record.items()
        if (default := _DEFAULTS.get(name)) is not None
    )
    return event if is_valid and event.event in EVENT_NAMES else None


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

    def append(self, event: Event) -> None:
        """Append a line with a single write, and wait until it is on the disk. Raises RunError.

        A signal handler can call it at any moment: there is no lock and no buffer.
        """
        line = encode_event(event)
        try:
            if os.write(self._descriptor, line) < len(line):
                with suppress(OSError):  # the next line must not be glued to this one
                    os.write(self._descriptor, b"\n")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            raise RunError(
                f"the journal cannot be written: {error.strerror or error}",
                location=str(self.path),
                hint="make room and repeat the command: nothing finished is lost",
            ) from error


class JournalReader:
    """Reads what is new in the journals of a folder."""

    def __init__(self, folder: Path, skip: str = "") -> None:
        """skip: name of a journal that is not read, e.g. the reader's own."""
        self.folder = folder
        self.skip = skip
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
            for line in complete.splitlines():
                if (event := decode_event(line)) is not None:
                    yield event
