"""What a process asks of its C libraries before it computes: freed memory stays mapped, idle
threads do not spin long.

Both matter because the models are small. A batch's tensors are blocks that glibc gives back to the
system when they are freed and asks for anew, page by page, at the next batch. And threads meet
hundreds of times a step: where another process has one of the cores, a thread that spins at each
meeting burns the time that the late one needs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
MAX_THRESHOLD = 2**31 - 1  # the largest threshold that mallopt takes
SPIN_COUNT = (
    "20000"  # some ten microseconds: enough for threads that run, little beside a scheduler's slice
)


@cache
def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks for this process. Nothing happens elsewhere, or where the C
    library differs.
    """
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
    """Let GNU OpenMP, which torch computes with on Linux, sleep sooner. Only before torch is
    imported; what the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
