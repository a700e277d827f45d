"""A package of somebody else's, installed for one test: a module and its entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from antlm_bench.registry import Registry


def install_package(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str, entry_points: str
) -> None:
    """Write `module`.py and its dist-info into a folder and put the folder on the path."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module, raising=False)


@contextmanager
def rescanned(registry: Registry[Any]) -> Iterator[None]:
    """Within, a registry looks for installed packages again; afterwards it is as before."""
    before: Mapping[str, Any] = {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in vars(registry).items()
    }
    registry._scanned = False
    try:
        yield
    finally:
        vars(registry).update(before)
