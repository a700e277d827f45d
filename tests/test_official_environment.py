"""Checkpoints of our trainers behave the same in the official environment (transformers 4.51.3).

pip creates the environment once, or `ANTLM_BENCH_OFFICIAL_PYTHON` names a Python that has it. The
tests are skipped where no package registry can be reached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import official_environment
import pytest
import torch
from peer_helpers import sum_logprobs
from recipe_helpers import make_recipe
from tiny_models import train_tokenizer

from antlm_bench.commands.portability import NEWER_MODULES, NEWER_NAMES
from antlm_bench.commands.portability import official_environment as listed_environment
from antlm_bench.training.checkpoint_io import save_checkpoint
from antlm_bench.training.model_factory import build_model

pytestmark = pytest.mark.slow
PINNED = ("transformers==4.51.3", "tokenizers==0.21.1")
SCRIPT = Path(official_environment.__file__)
BOTH = {"attends": ["causal", "full"]}
# Name -> model table of the recipe, and how its card says that it was trained.
TRAINED = {
    "llama": ({"architecture": "llama"}, {"attends": ["causal"], "methods": ["causal"]}),
    "llama-hybrid": (
        {"architecture": "llama", "tied": True},
        BOTH | {"methods": ["causal", "mlm"]},
    ),
    "gpt2": (
        {"architecture": "gpt2", "tied": True},
        {"attends": ["causal"], "methods": ["causal"]},
    ),
    "ltg-bert": (
        {"architecture": "ltg-bert", "tied": True},
        {"attends": ["full"], "methods": ["mlm"]},
    ),
    "elc-bert": (
        {"architecture": "ltg-bert", "layer_mix": "weighted_output"},
        BOTH | {"methods": ["mlm", "causal"]},
    ),
    "gpt-bert": (
        {"architecture": "gpt-bert", "tied": True},
        BOTH | {"methods": ["mntp", "causal"]},
    ),
}


@pytest.fixture(scope="module")
def official_python(tmp_path_factory):
    given = os.environ.get("ANTLM_BENCH_OFFICIAL_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("official") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    python = folder / "bin" / "python"
    torch_version = version("torch").partition("+")[0]
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-qq",
        f"torch=={torch_version}",
        "numpy",
        *PINNED,
    ]
    process = subprocess.run(install, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"no environment with {PINNED[0]}: {process.stderr.strip().splitlines()[-1]}")
    return str(python)


def run_official(python, *arguments, **options):
    """Return the JSON that the script prints in the official environment, run without a network."""
    home = str(Path(os.environ["ANTLM_BENCH_CACHE"]) / "official-home")
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": home, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    process = subprocess.run(
        [python, str(SCRIPT), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **variables}, **options,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    facts = {"recipe": "toy", "scale": "", "words_seen": 1, "tokens_seen": 1, "steps": 1, "seed": 1}
    for name, (model, card) in TRAINED.items():
        torch.manual_seed(0)
        masked = "full" in card["attends"] and "bert" in name
        built = build_model(make_recipe(model=model).model, 400, masked=masked)
        save_checkpoint(root / name, built, train_tokenizer("causal", adds=True), card | facts)
    return root


def test_architectures_work_in_both_environments(official_python, checkpoints):
    folders = [str(checkpoints / name) for name in TRAINED]
    official = run_official(official_python, *folders)
    assert official["transformers"] == "4.51.3"
    for name, folder, answers in zip(TRAINED, folders, official["answers"], strict=True):
        local = official_environment.query_checkpoint(
            folder, trusted=False
        )  # this package's own classes
        assert answers["keys"] == local["keys"] == ["attention_mask", "input_ids"]
        assert answers["specials"] == local["specials"] == [1]
        for method in TRAINED[name][1]["methods"]:
            assert answers[method] == pytest.approx(local[method], abs=1e-3), (name, method)
            assert answers[method] == pytest.approx(
                sum_logprobs(folder, official_environment.TEXTS, method), abs=1e-3
            )
        assert answers["losses"] == pytest.approx(local["losses"], rel=1e-3), name
        assert answers["losses"][-1] < answers["losses"][0]


def test_the_lists_of_preflight_are_those_of_that_version(official_python):
    lists = json.dumps([sorted(NEWER_MODULES), sorted(NEWER_NAMES)])
    names = run_official(official_python, "--known", input=lists)
    assert names.pop("present") == []
    assert names == listed_environment()
