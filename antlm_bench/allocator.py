"""Memory that a process has had once stays mapped: on Linux, fresh pages cost a small model more than some products.

glibc gives every large block back to the system when it is freed and asks for it anew at the next batch; each of
its pages is then zeroed and mapped again. Tensors of a batch are such blocks. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
NEVER = 2**31 - 1  # the largest threshold that mallopt takes


@cache
def keep_pages() -> None:
    """Ask glibc to keep freed blocks for this process. Nothing happens elsewhere, or where the C library differs."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, 2**26)):
            library.mallopt(option, value)
