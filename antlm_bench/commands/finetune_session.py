"""Finetune checkpoints in one process, a few cells per call: nothing is opened or loaded twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.checkpoints import open_backbone
from antlm_bench.checkpoints.last_opened import LastOpened
from antlm_bench.commands.finetune import (
    FinetuneOptions,
    Finetuner,
    check_finetune_options,
    select_tasks,
)
from antlm_bench.commands.requested_suites import FileCache
from antlm_bench.errors import CheckpointError
from antlm_bench.progress import Progress
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.types import Run

if TYPE_CHECKING:
    from antlm_bench.checkpoints import Backbone

MAX_CACHED_TASKS = 8
"""Number of tasks that a TaskCache keeps: GLUE has seven."""


class TaskCache(FileCache[ClassificationTask]):
    """The tasks that were loaded last, up to MAX_CACHED_TASKS."""

    def __init__(self) -> None:
        super().__init__(MAX_CACHED_TASKS)

    def load(self, suite: str, task: str, **options: Any) -> ClassificationTask:
        """Return a task. Arguments and errors are those of `classification_loader.load_task`."""
        return self.get(
            [suite, task, options],
            lambda: classification_loader.load_task(suite, task, **options),
        )


class FinetuneSession:
    """Finetunes checkpoints, one after the other.

    It keeps the checkpoint that it opened last, and the tasks that it loaded last. Finetuning
    changes neither: it trains a copy of the model.
    """

    def __init__(self) -> None:
        self._backbone: LastOpened[Backbone] = LastOpened(open_backbone)
        self._tasks = TaskCache()

    def finetune(
        self,
        ref: str,
        suite_and_task: tuple[str, str],
        seeds: Sequence[int],
        attentions: Sequence[str],
        out: Path,
        options: FinetuneOptions,
    ) -> Run:
        """Finetune one checkpoint on one task of a suite. Other arguments, the result, the bytes of
        the run folder and the errors are those of `finetune`.
        """
        suite, task = suite_and_task
        check_finetune_options(options, seeds, attentions)
        names = select_tasks([suite], [task], options)
        finetuner = Finetuner(names, attentions, seeds, options)
        # The session's functions return what is open or loaded already.
        finetuner.open_checkpoint = self._backbone.open
        finetuner.load_task = self._tasks.load
        with Progress(f"opening {ref}", "examples") as progress:
            run = finetuner.finetune_checkpoint(ref, out, several=False, progress=progress)
        finetuner.raise_failures([run] if run else [])
        if run is None:
            raise CheckpointError("no cell was computed", location=ref)
        return run

    def close(self) -> None:
        """Release the checkpoint and its memory."""
        self._backbone.close()
