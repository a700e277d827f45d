"""Keep the checkpoint that was opened last, for calls that need it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from antlm_bench.checkpoints.opening import LocatedCheckpoint
from antlm_bench.checkpoints.resolve import OpenOptions, split_revision
from antlm_bench.declarations import is_folder

Opened = TypeVar("Opened")
FolderState = frozenset[tuple[str, int, int]]
"""(path, size, time of the last change in ns) of each file."""


class LastOpened(Generic[Opened]):
    """Holds one opened checkpoint. It is closed before another one is opened."""

    def __init__(
        self, open_checkpoint: Callable[[str | LocatedCheckpoint, OpenOptions], Opened]
    ) -> None:
        self._open = open_checkpoint
        self._key: tuple[str, OpenOptions, FolderState] | None = None
        self._opened: Opened | None = None

    def open(
        self, ref: str, options: OpenOptions, located: LocatedCheckpoint | None = None
    ) -> Opened:
        """Return the checkpoint, opened once as long as reference, options and files are the same.

        located: the files of the reference; None = they are looked for. Raises as the function that
        opens it.
        """
        key = ref, options, _folder_state(ref, options)
        if self._opened is None or key != self._key:
            self.close()
            self._opened, self._key = self._open(located or ref, options), key
        return self._opened

    def close(self) -> None:
        """Release the checkpoint and its memory."""
        self._opened = self._key = None


def _folder_state(ref: str, options: OpenOptions) -> FolderState:
    """Return the state of the local files of a checkpoint, its tokenizer and its adapter.

    Those of a hub id are left out: a session asks the hub once.
    """
    ref, options = split_revision(ref, options)
    folders = {Path(name) for name in (ref, options.tokenizer, options.peft) if name}
    return frozenset(
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for folder in folders
        if is_folder(folder)
        for file in folder.iterdir()
        if file.is_file()
    )
