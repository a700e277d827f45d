"""benchmarks/gpu.py, which is written for a day with a graphics card, tried without one."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import gpu
import host_work
import pytest
import torch
import transformers

from antlm_bench.scoring.attention import PACKED_ATTENTION, packed_attention_forward
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.forward_config import ForwardConfig

PART = gpu.Part("Scoring", "score", 60, lambda _: iter(()))
ROOT = Path(__file__).parents[1]


def test_a_failed_part_keeps_its_rows_and_says_why() -> None:
    code = "import sys; print('{\"n\": 1}'); print('{\"n'); sys.exit('no memory')"

    result = gpu.run_command(PART, [sys.executable, "-c", code], max_seconds=30)

    assert (result.status, result.rows) == ("failed: no memory", [{"n": 1}])


def test_a_part_out_of_time_is_ended_and_keeps_its_rows() -> None:
    code = "import time; print('{\"n\": 1}', flush=True); time.sleep(600)"

    result = gpu.run_command(PART, [sys.executable, "-c", code], max_seconds=2)

    assert result.status == "out of time after 2 s"
    assert result.rows == [{"n": 1}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", (989.5e12, "data sheet")),
        ("NVIDIA H100 PCIe", (756.5e12, "data sheet")),
        ("NVIDIA L4", (121e12, "data sheet")),
        ("NVIDIA L40S", (362e12, "data sheet")),
        ("Tesla T4", (1.0, "measured")),
        ("NVIDIA H200 MIG 1g.18gb", (1.0, "measured")),
    ],
)
def test_the_peak_is_the_cards_or_measured(name, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(gpu, "measure_peak_flops", lambda *_: 1.0)

    assert gpu.find_peak_flops(torch.device("cuda"), "bfloat16", repeats=1) == expected


def test_tables_compare_each_loop_with_the_trainer() -> None:
    rows = [
        {"model": "a", "loop": "ours", "tokens/s": 3.0},
        {"model": "a", "loop": "Trainer", "tokens/s": 2.0},
    ]
    results = [
        gpu.PartResult("Training", f"train a {row['loop']}", "done", 1.0, [row]) for row in rows
    ]
    results.append(gpu.PartResult("Finetuning", "finetune a", "failed: no memory", 2.0))

    text = gpu.format_markdown(results, "one card")

    assert "| a | ours | 3.00 | 1.50 |" in text and "| a | Trainer | 2.00 |  |" in text
    assert "No part of this table gave a row." in text
    assert "| finetune a | failed: no memory | 2 |" in text


@pytest.mark.slow
def test_the_whole_command_runs_on_a_cpu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "absent"))
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--scale", "nano"]

    process = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )

    assert process.returncode == 0, process.stdout + process.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [part["part"] for part in parts] == [
        "write checkpoints",
        "score causal float32",
        "score masked bfloat16",
        "train babyllama ours",
        "finetune ltg-bert Trainer",
    ]
    assert all(part["status"] == "done" and part["rows"] for part in parts)
    scored = [row for part in parts if part["table"] == "Scoring" for row in part["rows"]]
    exact = [row for row in scored if row["dtype"] == "float32"]
    assert max(row["largest difference from CPU fp32"] for row in exact) < 1e-3
    assert process.stdout.endswith((tmp_path / "gpu.md").read_text() + "\n")


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_operator_calls_are_counted_per_batch(kind) -> None:
    transformers.AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
    config = ForwardConfig("sdpa", "causal" if kind == "causal" else "full", "packed")
    plain_model = host_work.build_model(kind)
    scorer = Engine(host_work.build_model(kind), kind, config, batch_tokens=256)
    probes, num_texts = host_work.make_probes(kind, 1000)
    batches: list[float] = []

    score = partial(scorer.score_probes, probes, num_texts, batches.append)

    counts = host_work.count_operator_calls(scorer, plain_model, score)

    num_batches = len(batches)
    with host_work.OperatorCalls() as calls:
        score()
    assert counts["batches"] == num_batches > 2
    assert counts["operator calls per batch"] == round(calls.calls.total() / num_batches)
