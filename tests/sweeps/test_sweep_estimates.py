"""Counts and costs of units, against what a real run computes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sweeps.sweep_files import expand_text, write_pairs, write_texts

from antlm_bench.checkpoints import Backbone, Checkpoint, OpenOptions, open_checkpoint
from antlm_bench.checkpoints.resolve import TRAINING_KEY
from antlm_bench.commands.finetune import finetune
from antlm_bench.commands.score import score
from antlm_bench.finetuning import data
from antlm_bench.scoring.engine import Engine
from antlm_bench.sweeps import count_requests
from antlm_bench.sweeps.calibration import DeviceSpeed
from antlm_bench.sweeps.checkpoint_facts import (
    ForwardSize,
    _measure_size,
    _read_tokenizer_config,
    read_checkpoint_facts,
)
from antlm_bench.sweeps.count_requests import build_score_request, count_texts
from antlm_bench.sweeps.estimates import Estimator, UnitCost
from antlm_bench.sweeps.expansion import ExpandedSweep
from antlm_bench.sweeps.token_counts import CountsCache, TextCounts
from antlm_bench.sweeps.units import Sweep

SPEED = DeviceSpeed(
    machine="here",
    device="cpu",
    dtype="float32",
    hidden=(32, 64),
    parameters=(10_000, 20_000),
    forward=(1e6, 4e6),
    training=(1e6, 4e6),
    opening=(1.0, 2.0),
)


def count_real_work(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> list[int]:
    """Score, and return how many tokens were computed and how many positions were read."""
    counts, original = [0, 0], Checkpoint.score_probes

    def score_counted(self: Checkpoint, *args: Any, **settings: Any) -> Any:
        engine: Engine = self.engine
        before = engine.nodes_computed, engine.head_rows_computed
        result = original(self, *args, **settings)
        counts[0] += engine.nodes_computed - before[0]
        counts[1] += engine.head_rows_computed - before[1]
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "score_probes", score_counted)
        # The self-test on the suite's texts is not part of the unit's counts.
        patch.setattr(Checkpoint, "run_self_test", lambda *_: NoSelfTest())
        score(*arguments, **options)
    return counts


class NoSelfTest:
    def to_record(self) -> dict[str, float]:
        return {}


def estimate(expanded: Any, cache: Path) -> list[UnitCost]:
    """Return the costs of the units that run a model."""
    estimator = Estimator(expanded, lambda _: SPEED, "cpu", CountsCache(cache))
    costs = estimator.estimate_all()
    return [costs[unit.id] for unit in expanded.sweep.units if unit.kind != "collect"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "methods", "options"),
    [
        ("causal", ["causal"], {}),
        ("causal", ["causal"], {"compat": "lm-eval"}),
        ("causal", ["causal"], {"bos": "never"}),
        ("masked", ["mlm"], {}),
        ("masked", ["mlm", "mlm-l2r"], {"limit": 3}),
        ("masked", ["mlm"], {"compat": "babylm-2024"}),
    ],
)
def test_counts_are_those_of_a_real_run(
    kind: str,
    methods: Sequence[str],
    options: dict[str, Any],
    tmp_path: Path,
    make_checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, pairs = make_checkpoint(kind), write_pairs(tmp_path / "pairs.csv")
    facts = read_checkpoint_facts(str(model), OpenOptions())
    request = build_score_request(facts, str(pairs), methods, options)

    [(counts,)] = count_texts([request], CountsCache(tmp_path / "cache"))  # type: ignore[misc]

    out = tmp_path / "run"
    settings = {"methods": methods, "out": out, "device": "cpu", **options}
    assert [counts.tokens, counts.reads] == count_real_work(
        monkeypatch, str(model), str(pairs), **settings
    )
    assert counts.is_exact


@pytest.mark.long
def test_a_child_process_counts_the_same(tmp_path: Path, make_checkpoint) -> None:
    model, pairs = make_checkpoint("causal"), write_pairs(tmp_path / "pairs.csv")
    script = (
        "import sys; from pathlib import Path\n"
        "from antlm_bench.checkpoints.resolve import OpenOptions\n"
        "from antlm_bench.sweeps.checkpoint_facts import read_checkpoint_facts\n"
        "from antlm_bench.sweeps.count_requests import build_score_request, count_texts\n"
        "from antlm_bench.sweeps.token_counts import CountsCache\n"
        f"facts = read_checkpoint_facts({str(model)!r}, OpenOptions())\n"
        f"request = build_score_request(facts, {str(pairs)!r}, ['causal'], {{}})\n"
        f"[[counts]] = count_texts([request], CountsCache(Path({str(tmp_path)!r})))\n"
        "print(counts.rows, counts.tokens, counts.reads, 'torch' in sys.modules)\n"
    )

    words = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()

    facts = read_checkpoint_facts(str(model), OpenOptions())
    request = build_score_request(facts, str(pairs), ["causal"], {})
    [(counts,)] = count_texts([request], CountsCache(tmp_path / "other"))  # type: ignore[misc]
    assert words == [str(counts.rows), str(counts.tokens), str(counts.reads), "False"]


def test_counts_that_the_cache_holds_are_not_counted_again(tmp_path: Path, make_checkpoint) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv")
    facts = read_checkpoint_facts(str(make_checkpoint("causal")), OpenOptions())
    request = build_score_request(facts, str(pairs), ["causal"], {})
    cache = CountsCache(tmp_path / "cache")
    key = request.cache_key()
    assert key is not None
    cache.store(key, [TextCounts(rows=7)])

    assert count_texts([request], cache) == [(TextCounts(rows=7),)]


def test_equal_requests_are_counted_once(
    tmp_path: Path, make_checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv")
    facts = read_checkpoint_facts(str(make_checkpoint("causal")), OpenOptions())
    shards = [build_score_request(facts, str(pairs), ["causal"], {"dtype": "x"}) for _ in range(3)]
    other = build_score_request(facts, str(pairs), ["causal"], {"limit": 2})
    counted: list[Any] = []

    def count(requests: Sequence[Any]) -> list[Any]:
        counted.extend(requests)
        return [(TextCounts(rows=index),) for index, _ in enumerate(requests, 1)]

    monkeypatch.setattr(count_requests, "_count_here", count)

    results = count_texts([*shards, other], CountsCache(tmp_path / "cache"))

    assert counted == [shards[0], other]
    assert [counts.rows for (counts,) in results] == [1, 1, 1, 2]  # type: ignore[misc,union-attr]


@pytest.mark.long
def test_a_finetune_unit_reads_each_text_once_per_epoch(
    tmp_path: Path, make_checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_checkpoint("masked")
    train_file, valid_file = write_texts(tmp_path / "t.csv", 40), write_texts(tmp_path / "v.csv", 9)
    options = {"valid": str(valid_file), "changes": ["epochs=2", "patience=2"]}
    expanded = expand_text(
        tmp_path,
        f"[[finetune]]\nmodels = ['{model}']\nsuites = ['{train_file}']\nseeds = [1]\n"
        f"options = {{ valid = '{valid_file}', changes = ['epochs=2', 'patience=2'] }}",
    )
    encoded: list[int] = []
    original = data.encode_examples

    def encode_counted(backbone: Backbone, *args: Any, **settings: Any) -> Any:
        result = original(backbone, *args, **settings)
        encoded.append(int(np.asarray(result.lengths).sum()))
        return result

    [cost] = estimate(expanded, tmp_path / "cache")

    monkeypatch.setattr("antlm_bench.finetuning.loop.encode_examples", encode_counted)
    finetune(str(model), str(train_file), seeds=[1], out=tmp_path / "run", device="cpu", **options)
    *train_tokens, valid_tokens = encoded  # those to train on, and those that select an epoch
    assert cost.tokens == pytest.approx(2 * sum(train_tokens) + valid_tokens, abs=4)
    assert cost.rows == pytest.approx(2 * 40 + 9, abs=2)


def test_flops_of_a_forward_pass() -> None:
    size = ForwardSize(1000, 100, 50, layers=2, hidden=8, vocabulary=5, position_vectors=3)

    # 10 tokens x 100 weights, 4 reads x 50 weights, 2 products of 8 numbers per layer and attended
    # position: 60, and 3 vectors for each token; two FLOPs each.
    assert size.forward_flops(10, 4, 60) == 2 * (1000 + 200 + 2 * 2 * 8 * (60 + 30))


def test_weights_are_those_of_the_model(make_checkpoint) -> None:
    model = make_checkpoint("causal")
    size = read_checkpoint_facts(str(model), OpenOptions()).size
    opened = open_checkpoint(str(model), OpenOptions(device="cpu"))

    assert size is not None
    assert size.parameters == opened.metadata["parameters"]


def test_layers_as_wide_as_the_vocabulary_are_counted(tmp_path: Path) -> None:
    shapes = {
        "model.embed_tokens.weight": (64, 8),
        "model.layers.0.mlp.up_proj.weight": (64, 8),
        "lm_head.weight": (64, 8),
    }
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 64}

    size = _measure_size(tmp_path, config, allow_pickle=False)

    assert size is not None
    assert (size.weights_per_token, size.weights_per_read) == (64 * 8, 64 * 8)


def test_compact_tokenizer_config_is_read(tmp_path: Path) -> None:
    """transformers' number for "no limit" is larger than any 64-bit integer."""
    content = {"model_max_length": 10**30, "mask_token": "<mask>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content, separators=(",", ":")))

    assert _read_tokenizer_config(tmp_path) == {"model_max_length": 10**9, "mask_token": "<mask>"}


def test_rates_are_interpolated_between_measured_sizes() -> None:
    assert SPEED.forward_rate(16) == pytest.approx(1e6)  # beyond the ends, those of the ends
    assert SPEED.forward_rate(128) == pytest.approx(4e6)
    assert SPEED.forward_rate(round(32 * 2**0.5)) == pytest.approx(2e6, rel=0.02)
    assert SPEED.opening_seconds(40_000) == pytest.approx(4.0)


def test_time_is_unknown_without_a_measured_speed(tmp_path: Path, make_checkpoint) -> None:
    expanded = expand_text(
        tmp_path, f"[[score]]\nmodels = ['{make_checkpoint('causal')}']\nsuites = ['nano']"
    )

    costs = Estimator(expanded, cache=CountsCache(tmp_path / "cache")).estimate_all()

    assert [cost.seconds for cost in costs.values()] == [None, 0.0]
    assert all(cost.tokens is not None for cost in costs.values())


def test_checkpoints_of_one_size_with_other_methods_differ(tmp_path: Path, make_checkpoint) -> None:
    model, pairs = make_checkpoint("causal"), write_pairs(tmp_path / "pairs.csv")
    hybrid = shutil.copytree(model, tmp_path / "hybrid")
    config = json.loads((hybrid / "config.json").read_text())
    config[TRAINING_KEY] = {"methods": ["causal", "mntp"], "attends": ["causal", "full"]}
    (hybrid / "config.json").write_text(json.dumps(config))
    stage = f"[[score]]\nmodels = [%s]\nsuites = ['{pairs}']\nmethods = ['all']"
    names = [f"'{hybrid}'", f"'{model}'"]

    costs = estimate(expand_text(tmp_path, stage % ", ".join(names)), tmp_path / "cache")

    alone = [estimate(expand_text(tmp_path, stage % name), tmp_path / "cache") for name in names]
    assert [cost.flops for cost in costs] == [cost.flops for [cost] in alone]
    assert costs[0].flops != costs[1].flops


@pytest.mark.long
def test_a_shard_costs_its_share(tmp_path: Path, make_checkpoint) -> None:
    text = f"[[score]]\nmodels = ['{make_checkpoint('causal')}']\nsuites = ['nano']\n"
    [whole] = estimate(expand_text(tmp_path, text), tmp_path / "cache")

    shards = estimate(expand_text(tmp_path, text + "shards = 4"), tmp_path / "cache")

    assert len(shards) == 4
    assert sum(shard.tokens or 0 for shard in shards) == pytest.approx(whole.tokens, abs=4)


def test_the_memory_of_scoring_counts_copies_and_kernels_of_a_cpu() -> None:
    size = ForwardSize(10**7, 9 * 10**6, 10**6, layers=5, hidden=384, vocabulary=4096)
    expanded = ExpandedSweep(Sweep("x", ()))
    weights, activations = 4 * 10**7, 4 * 16 * 384

    cpu = Estimator(expanded, device_kind="cpu")._scoring_memory(size, "float32", None, 8 * 2048)
    # three copies, 2048 tokens, the largest block of logits, three doublings of batches
    assert cpu == 3 * weights + 2048 * activations + 2**24 + 3 * 25_000_000

    gpu = Estimator(expanded, device_kind="cuda")._scoring_memory(size, "float32", None, 2**20)
    assert gpu == weights + 2**15 * activations + 2**15 * 4096 * 4
