"""Fixtures of all tests: small checkpoints (built once per session), sentences, data folders."""

from __future__ import annotations

import gc
import io
import os
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_models import WORDS, build_model, train_tokenizer

settings.register_profile("any machine", deadline=None)  # a busy machine must not fail a test
settings.load_profile("any machine")


def pytest_collection() -> None:
    gc.disable()  # collecting the tests makes two million objects, all of which stay


def pytest_collection_finish() -> None:
    """Exempt the modules and tests from garbage collection.

    Else every full collection goes through them: statsmodels forces one per correction of p-values.
    """
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _isolate_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give the tests a cache of their own, no network and no terminal width."""
    os.environ.pop("COLUMNS", None)  # xdist passes its own on
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):  # `check --github` would write to them
        os.environ.pop(name, None)
    os.environ["ANTLM_BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """make_checkpoint(kind, adds=True, seed=0, **config) -> folder of a tiny random causal or
    masked checkpoint.

    `adds`: whether the tokenizer adds its specials by itself. Weights are scaled up so that scores
    differ clearly.
    """
    root, folders = tmp_path_factory.mktemp("checkpoints"), {}

    def make(
        kind: str = "causal", adds: bool = True, seed: int = 0, mask: bool = True, **config: object
    ) -> Path:
        key = (kind, adds, seed, mask, repr(sorted(config.items())))
        if key not in folders:
            folders[key] = root / f"{kind}-{len(folders)}"
            # The library's progress bars would appear in the output of the first test.
            with redirect_stderr(io.StringIO()):
                train_tokenizer(kind, adds, mask).save_pretrained(folders[key])
                build_model(kind, seed, **config).save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Random sentences of many lengths, some with shared prefixes, odd characters or line ends."""
    import random

    rng = random.Random(0)
    texts = []
    for _ in range(60):
        stem = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        texts += [f"{stem} {' '.join(rng.choices(WORDS, k=rng.randint(1, 5)))}." for _ in range(2)]
    return [
        *texts,
        "Is it?\nIt is.",
        'She said "no".',
        "naïve café ☕",
        "unbelievably antidisestablishmentarian",
    ]


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real evaluation data; skips the test without it."""
    data_dir = Path(
        os.environ.get("ANTLM_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data"
    )
    if not (data_dir / "blimp").is_dir():
        pytest.skip("needs the real data: set ANTLM_BENCH_DATA")
    return data_dir


@pytest.fixture(scope="session")
def cases_root() -> Path:
    """Folder of recorded official scores of tiny checkpoints; skips the test without it."""
    folder = Path(
        os.environ.get("ANTLM_BENCH_CASES") or Path(__file__).parents[2] / "shared" / "cases"
    )
    if not (folder / "official").is_dir():
        pytest.skip("needs the recorded cases: set ANTLM_BENCH_CASES")
    return folder
