"""One process of many threads against many processes of one thread: how workers share a CPU.

    python benchmarks/workers.py [--units 4] [--limit 200] [--rounds 3] [--cores 2]

A unit scores the suite nano with a checkpoint of random weights (a Llama by `causal`, a BERT by
`mlm`): opening it, its self-test and the forward passes. Each round carries out the same units by
one process with a thread per core, and by one process per core with one thread, in turns. The start
of Python is not counted: a worker starts once. Prints the ratio of the medians (above 1: processes
are faster). `sweeps.executors.LocalExecutor` has the default that it supports.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"small": (256, 4), "medium": (512, 8)}
"""Name -> hidden size, layers."""
METHODS = {"causal": "causal", "masked": "mlm"}


def write_checkpoint(folder: Path, kind: str, size: str) -> None:
    """Write a checkpoint of random weights with a tokenizer for the suite nano."""
    from checkpoints import train_tokenizer
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    from antlm_bench.suites.loader import load_suite

    hidden, layers = SIZES[size]
    texts = [option.text for item in load_suite("nano").items for option in item.options]
    tokenizer = train_tokenizer(kind, texts)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "max_position_embeddings": 128,
    }
    if kind == "causal":
        model = LlamaForCausalLM(LlamaConfig(**common))
    else:
        model = BertForMaskedLM(BertConfig(**common))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def carry_out(checkpoint: str, method: str, limit: int, out: str, units: list[str]) -> None:
    """Wait for a line on stdin, then score the checkpoint once per unit."""
    from antlm_bench.commands.score import score

    print("ready", flush=True)
    sys.stdin.readline()
    for unit in units:
        score(checkpoint, ["nano"], methods=method, limit=limit, out=Path(out, unit))
    print("done", flush=True)


def measure(command: list[str], shares: list[list[str]], threads: int) -> float:
    """Return the seconds that processes take for their shares of the units."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "20000"}
    processes = [
        subprocess.Popen(
            [*command, *share],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for share in shares
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    start_time = time.perf_counter()
    for process in processes:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"done\n"
    seconds = time.perf_counter() - start_time
    for process in processes:
        process.communicate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=4)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for kind, method in METHODS.items():
        for size in SIZES:
            with tempfile.TemporaryDirectory() as root:
                write_checkpoint(Path(root, "checkpoint"), kind, size)
                seconds: dict[str, list[float]] = {"threads": [], "processes": []}
                for round_number in range(options.rounds):
                    units = [f"{round_number}-{number}" for number in range(options.units)]
                    for name in seconds:
                        out = str(Path(root, name))
                        fixed = [str(Path(root, "checkpoint")), method, str(options.limit), out]
                        command = [sys.executable, __file__, "--worker", *fixed]
                        split = 1 if name == "threads" else options.cores
                        shares = [units[index::split] for index in range(split)]
                        seconds[name].append(measure(command, shares, options.cores // split))
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            ratio = medians["threads"] / medians["processes"]
            print(
                f"{kind} {size}: 1 process x {options.cores} threads {medians['threads']:.1f} s, "
                f"{options.cores} x 1 {medians['processes']:.1f} s, ratio {ratio:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        checkpoint, method, limit, out, *units = sys.argv[2:]
        carry_out(checkpoint, method, int(limit), out, units)
    else:
        main()
