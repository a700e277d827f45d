"""Errors of the disk: the reason and the hint are those of what was tried."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from antlm_bench.runs.folder_io import os_failure


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EISDIR, errno.ENOTDIR])
def test_a_failed_read_has_no_hint_on_writing(number: int) -> None:
    error = os_failure(Path("x"), OSError(number, os.strerror(number)), "read")

    assert error.message == f"cannot be read: {os.strerror(number)}"
    assert "--out" not in error.hint
    assert "room" not in error.hint


def test_a_missing_file_is_missing_only_when_read() -> None:
    missing = OSError(errno.ENOENT, "No such file or directory")

    assert "the file is missing" in os_failure(Path("x"), missing, "read").message
    assert "a folder above it" in os_failure(Path("x"), missing, "created").message
