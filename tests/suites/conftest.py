"""A hermetic place for suite tests: own cache, no net, and the real data where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL = Path(
    os.environ.get("ANTLM_BENCH_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
)


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ANTLM_BENCH_DATA", "ANTLM_BENCH_PATH", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANTLM_BENCH_OFFLINE", "1")


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real data, as ANTLM_BENCH_DATA."""
    if not (REAL / "blimp").is_dir():
        pytest.skip("the real data are not at hand (ANTLM_BENCH_DATA)")
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(REAL))
    return REAL
