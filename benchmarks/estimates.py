"""Estimated and real times and memory of units: how far a plan can be trusted.

    python benchmarks/estimates.py [--texts 2000]
    python benchmarks/estimates.py --memory [--texts 500]

Saves a Llama and a BERT with random weights, measures this machine (`plan --calibrate`), and prints
for three runs the time that a plan predicts, the time that the run took, and their ratio: scoring
with `causal`, scoring with `mlm`, finetuning one task. Each run opens its checkpoint. Run it on a
machine that does nothing else, if there is one.

--memory does the same for the peak memory of models of several sizes, each in a process of its own.
What Python and its libraries need is left out, as in a plan: the process first does the same work
with the smallest model, and what it has used until then is subtracted from its peak, which is that
of the provenance of the run. With the smallest model itself there is hardly anything left.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

WORDS = ("the", "a", "cat", "dog", "house", "child", "old", "big", "near", "sees", "likes", "who")
HIDDEN, LAYERS = 256, 4
SMALLEST = (32, 1)
MEMORY_SIZES = (SMALLEST, (128, 2), (256, 4), (384, 5), (512, 8))
"""(Hidden units, layers): 0.3, 0.9, 4, 10 and 27 million weights."""
KINDS = ("causal", "mlm", "finetune")


def make_sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(5, 15))) + "."


def write_pairs(path: Path, count: int) -> Path:
    """Write minimal pairs, without equal prefixes by design."""
    rng = random.Random(0)
    rows = "".join(f"{make_sentence(rng)},{make_sentence(rng)}\n" for _ in range(count))
    path.write_text("good,bad\n" + rows)
    return path


def write_texts(path: Path, count: int) -> Path:
    rng = random.Random(1)
    rows = "".join(f"{make_sentence(rng)},{n % 2}\n" for n in range(count))
    path.write_text("text,label\n" + rows)
    return path


def save_masked_model(path: Path, causal: Path, hidden: int, layers: int) -> None:
    """Save a BERT of the same size, with the tokenizer of the Llama."""
    import shutil

    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=4096,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        max_position_embeddings=128,
    )
    BertForMaskedLM(config).save_pretrained(path)
    for file in causal.glob("tokenizer*"):
        shutil.copy(file, path)


def measure(name: str, plan: Any, run: Callable[[], object]) -> None:
    """Print the predicted and the real seconds of a run."""
    [row] = plan.list_rows()
    start_time = time.perf_counter()
    run()
    seconds = time.perf_counter() - start_time
    predicted = row.cost.seconds
    print(
        f"{name:<20} {predicted:9.1f} s predicted {seconds:9.1f} s real {predicted / seconds:6.2f}",
        flush=True,
    )


class Work:
    """The three runs of a size of models: scoring with `causal`, with `mlm`, and finetuning."""

    def __init__(self, root: Path, hidden: int, layers: int, num_texts: int) -> None:
        from antlm_bench.sweeps.calibration import save_random_model

        root.mkdir(parents=True, exist_ok=True)
        self.root, self.causal, self.masked = root, root / "causal", root / "masked"
        if not self.masked.exists():
            save_random_model(self.causal, hidden, layers)
            save_masked_model(self.masked, self.causal, hidden, layers)
        self.pairs = write_pairs(root / "pairs.csv", num_texts)
        self.texts = write_texts(root / "texts.csv", num_texts)
        self.valid = write_texts(root / "valid.csv", max(num_texts // 10, 2))

    def prepare(self, kind: str) -> tuple[Any, Callable[[], Any]]:
        """Return the plan of a run, and a function that carries it out."""
        from antlm_bench.commands.finetune import FinetuneOptions, finetune
        from antlm_bench.commands.plan import plan_finetune, plan_score
        from antlm_bench.commands.score import score
        from antlm_bench.commands.score_options import ScoreOptions

        if kind != "finetune":
            model, pairs = str({"causal": self.causal, "mlm": self.masked}[kind]), str(self.pairs)
            plan = plan_score(model, pairs, kind, ScoreOptions())
            return plan, partial(score, model, pairs, method=kind, out=self.root / kind)
        options = FinetuneOptions(valid=str(self.valid), changes=("epochs=2", "patience=2"))
        arguments: dict[str, Any] = {"options": options, "seeds": [1], "out": self.root / kind}
        plan = plan_finetune(str(self.causal), str(self.texts), **arguments)
        return plan, partial(finetune, str(self.causal), str(self.texts), **arguments)


def read_peak() -> int:
    """Return the largest resident memory that this process has had, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(root: Path, kind: str, size: tuple[int, int], num_texts: int) -> None:
    """Print the predicted and the real peak of a run. Only in a process that has done nothing."""
    from antlm_bench.runs.provenance import read_provenance

    Work(root / "smallest", *SMALLEST, 20).prepare(kind)[1]()
    used_before = read_peak()
    plan, run = Work(root / "-".join(map(str, size)), *size, num_texts).prepare(kind)
    [row] = plan.list_rows()
    [result] = run()
    [record, *_] = read_provenance(result.path).values()
    real = record["peak_memory_bytes"] - used_before
    predicted = row.cost.memory
    print(
        f"{kind:<10} {size[0]:>4} x {size[1]} {predicted / 1e6:8.1f} MB predicted "
        f"{real / 1e6:8.1f} MB real {predicted / max(real, 1):6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--run", nargs=4, metavar=("ROOT", "KIND", "HIDDEN", "LAYERS"))
    options = parser.parse_args()
    if options.run:
        root, kind, hidden, layers = options.run
        measure_memory(Path(root), kind, (int(hidden), int(layers)), options.texts)
        return
    root = Path(tempfile.mkdtemp())
    os.environ["ANTLM_BENCH_CACHE"] = str(root / "cache")
    if options.memory:
        for kind in KINDS:
            for size in MEMORY_SIZES:
                words = [str(root / kind), kind, *map(str, size), "--texts", str(options.texts)]
                subprocess.run([sys.executable, __file__, "--run", *words], check=True)
        return
    from antlm_bench.commands.plan import calibrate_device

    work = Work(root, HIDDEN, LAYERS, options.texts)
    calibrate_device("", ())
    for kind in KINDS:
        measure(kind, *work.prepare(kind))


if __name__ == "__main__":
    main()
