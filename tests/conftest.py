"""Small real checkpoints, made once per session: the models that the scoring tests ask."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_models import WORDS, build_model, train_tokenizer

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _isolate_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache, none reaches a hub, and none prints to the width of
    a terminal.
    """
    os.environ.pop("COLUMNS", None)  # xdist hands its own down
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
            with redirect_stderr(
                io.StringIO()
            ):  # else the first test to ask finds the library's bars among its output
                train_tokenizer(kind, adds, mask).save_pretrained(folders[key])
                build_model(kind, seed, **config).save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Made-up sentences of many lengths with shared beginnings, odd characters and line ends among
    them.
    """
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
    """The real evaluation data, or a skip that says what is missing."""
    data_dir = Path(
        os.environ.get("ANTLM_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data"
    )
    if not (data_dir / "blimp").is_dir():
        pytest.skip("needs the real data: set ANTLM_BENCH_DATA")
    return data_dir


@pytest.fixture(scope="session")
def cases_root() -> Path:
    """The recorded scores of the peers' own code on tiny checkpoints, or a skip that says what is
    missing.
    """
    folder = Path(
        os.environ.get("ANTLM_BENCH_CASES") or Path(__file__).parents[2] / "shared" / "cases"
    )
    if not (folder / "official").is_dir():
        pytest.skip("needs the recorded cases: set ANTLM_BENCH_CASES")
    return folder
