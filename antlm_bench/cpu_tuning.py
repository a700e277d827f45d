"""Settings of the C libraries that make small models faster on a CPU.

- Memory: by default glibc returns a batch's freed tensors to the system, and the next batch gets
  fresh pages one by one. `keep_freed_memory` keeps the pages.
- Threads: OpenMP threads wait for each other hundreds of times per step. While another process
  uses one of the cores, a waiting thread that spins takes time from the thread that it waits for.
  `limit_thread_spinning` makes waiting threads sleep sooner.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
MAX_THRESHOLD = 2**31 - 1  # the largest threshold that mallopt takes
SPIN_COUNT = "20000"  # about ten microseconds: far less than a time slice of the scheduler


@cache
def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory in this process. Does nothing with other C libraries."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in (
            (M_MMAP_THRESHOLD, 2**30),
            (M_TRIM_THRESHOLD, MAX_THRESHOLD),
            (M_TOP_PAD, 2**26),
        ):
            library.mallopt(option, value)


def limit_thread_spinning() -> None:
    """Make idle threads of GNU OpenMP (torch's on Linux) sleep sooner, unless the user set this.

    Has an effect only before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
