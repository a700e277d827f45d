"""The processes that torchrun has started, and the texts that they exchange."""

from __future__ import annotations

import os
from datetime import timedelta
from types import TracebackType

from antlm_bench.errors import BenchError, RunError

MAX_WAIT = timedelta(days=30)
"""How long a process waits for the slowest one. torchrun ends all if one dies."""
END = "end"


class GroupEnded(Exception):
    """The first process has ended its work, with an error or without."""


class ProcessGroup:
    """A context manager in which the processes of a torchrun exchange texts.

    At its exit, the first process ends the work of all. The others wait for that, and their errors
    go no further: what another process needs to know, it gets by `exchange`.
    """

    def __init__(self) -> None:
        """Read torchrun's environment variables."""
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self._has_ended = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def __enter__(self) -> ProcessGroup:
        from torch import distributed

        distributed.init_process_group("gloo", timeout=MAX_WAIT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        from torch import distributed

        while not self._has_ended:
            self._gather(END if self.is_first else "")
        distributed.destroy_process_group()
        return not self.is_first and isinstance(error, GroupEnded | BenchError)

    def exchange(self, text: str) -> list[str]:
        """Return the texts of all processes, by rank, when all have called this.

        Raises GroupEnded if the first process has ended, RunError if one has died.
        """
        texts = self._gather(f"+{text}")
        if self._has_ended:
            raise GroupEnded
        return [each.removeprefix("+") for each in texts]

    def _gather(self, text: str) -> list[str]:
        from torch import distributed

        texts: list[str] = [""] * self.size
        try:
            distributed.all_gather_object(texts, text)
        except RuntimeError as error:
            self._has_ended = True
            raise RunError(
                "another process of this torchrun has died",
                location=f"process {self.rank}",
                hint="torchrun's summary names it; the same command continues",
            ) from error
        self._has_ended = texts[0] == END
        return texts

    def choose_device(self, device: str) -> str:
        """Return the device of this process: "auto" and "cuda" are a GPU of its own."""
        import torch

        num_gpus = torch.cuda.device_count()
        if device not in ("auto", "cuda") or num_gpus < 2 or self.local_rank == 0:
            return device
        return f"cuda:{self.local_rank % num_gpus}"
