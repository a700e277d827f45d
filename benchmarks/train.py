"""Our training loop against the transformers Trainer: same model, batches, precision and threads.

    python benchmarks/train.py [babyllama] [ltg-bert] [--scale small] [--steps 8] [--rounds 3]

Each round trains both in turns for so many optimizer steps from the same initial weights; the first
two steps warm up and are not counted. The Trainer gets rows of equal length (no padding), its own
collator for masked rows, and its fastest optimizer. Results are ratios of medians. The fraction of
peak counts the arithmetic of training (antlm_bench.training.flops) against the best fp32 matrix
product measured in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from score import format_table, measure_peak_flops, peak_memory_gib

from antlm_bench.training.corpus import Corpus, prepare_corpus
from antlm_bench.training.flops import forward_flops
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.pretrain import RuntimeSettings, Trainer
from antlm_bench.training.recipe import Recipe, read_recipe
from antlm_bench.training.schedule import Step, plan_steps
from antlm_bench.training.text_sources import load_text_source

# Required: so many times the speed of the Trainer.
FLOORS = {("babyllama", "small"): 1.3, ("ltg-bert", "small"): 1.5}
TOKENS = 4096  # per optimizer step, as in the recipe of babyllama
UNCOUNTED = 2  # steps at the beginning of a round


def time_our_loop(training: Trainer, steps: list[Step]) -> float:
    """Return the seconds of the counted steps."""
    for step in steps[:UNCOUNTED]:
        training.train_step(step)
    start = time.perf_counter()
    for step in steps[UNCOUNTED:]:
        training.train_step(step)
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """The corpus cut into rows of equal length."""

    def __init__(self, corpus: Corpus, length: int) -> None:
        count = len(corpus) // length
        self.ids = torch.from_numpy(
            np.asarray(corpus.tokens[: count * length], np.int64).reshape(count, length)
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index]}


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_step_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == UNCOUNTED:
            self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.end = time.perf_counter()


def time_trainer(
    recipe: Recipe, corpus: Corpus, steps: list[Step], cpu: bool, bf16: bool, out: Path
) -> float:
    """Return the seconds of the counted steps of the Trainer."""
    torch.manual_seed(recipe.seed)
    masked = "full" in recipe.attentions
    model = build_model(recipe.model, len(corpus.tokenizer), masked)
    spec = recipe.optimizer
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        max_steps=len(steps),
        per_device_train_batch_size=steps[0].num_rows,
        use_cpu=cpu,
        bf16=bf16,
        learning_rate=spec.lr,
        weight_decay=spec.weight_decay,
        optim="adamw_torch_fused",
        max_grad_norm=spec.clip,
        lr_scheduler_type="cosine",
        report_to="none",
        logging_steps=10**9,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=recipe.seed,
    )
    collator = transformers.DataCollatorForLanguageModeling(
        corpus.tokenizer, mlm=masked, mlm_probability=recipe.objective.rate if masked else None
    )
    clock = Clock()
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=Rows(corpus, steps[0].row_length),
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    return clock.end - clock.start


def run_round(name: str, loop: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one round of one loop in this process.

    Returns seconds, tokens and FLOPs of the counted steps, and peak memory in GiB.
    """
    changes = [f"corpus.words={arguments.words}", f"batch.tokens={TOKENS}", *arguments.set]
    recipe = read_recipe(name, arguments.scale, changes)
    scratch = Path(arguments.scratch)
    corpus = prepare_corpus(
        load_text_source(find_text_source()),
        recipe.corpus,
        recipe.tokenizer,
        recipe.model.positions,
        scratch / name,
    )
    steps = plan_steps(recipe, len(corpus))[: arguments.steps + UNCOUNTED]
    cpu, bf16 = arguments.device == "cpu", arguments.precision == "bfloat16"
    if loop == "ours":
        settings = RuntimeSettings(
            arguments.device, arguments.precision, compile_model=arguments.compile
        )
        seconds = time_our_loop(Trainer(recipe, corpus, settings), steps)
    else:
        seconds = time_trainer(recipe, corpus, steps, cpu, bf16, scratch / "trainer")
    counted = steps[UNCOUNTED:]
    on_gpu = torch.cuda.is_available() and not cpu
    memory = peak_memory_gib(torch.device("cuda" if on_gpu else "cpu"))
    tokens = sum(step.num_tokens for step in counted)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "flops": 3 * forward_flops(recipe, counted),
        "memory": memory,
    }


def find_text_source() -> str:
    """Return the folder of real training text, or `nano` without it."""
    data = Path(os.environ.get("ANTLM_BENCH_DATA", "../shared/data")) / "corpus" / "train"
    return str(data) if data.is_dir() else "nano"


def compare(name: str, arguments: argparse.Namespace, peak_flops: float) -> list[dict[str, Any]]:
    """Run rounds of both loops in turns, each in its own process, so that no memory is shared."""
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "Trainer": []}
    for _ in range(arguments.rounds):
        for loop, results in rounds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{name}:{loop}"]
            command += ["--scratch", arguments.scratch]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    rate = {
        loop: statistics.median(result["tokens"] / result["seconds"] for result in results)
        for loop, results in rounds.items()
    }
    return [
        {
            "recipe": f"{name} {arguments.scale}",
            "loop": loop,
            "tokens/s": rate[loop],
            "of fp32 peak": statistics.median(
                result["flops"] / result["seconds"] for result in results
            )
            / peak_flops,
            "x Trainer": rate[loop] / rate["Trainer"] if loop == "ours" else None,
            "peak memory GiB": max(result["memory"] for result in results),
            "seconds per round": " ".join(f"{result['seconds']:.1f}" for result in results),
        }
        for loop, results in rounds.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", default=["babyllama", "ltg-bert"])
    parser.add_argument("--scale", default="small")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=300_000)
    parser.add_argument("--device", default="cpu", choices=["cpu", "auto"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if arguments.only:
        name, _, loop = arguments.only.partition(":")
        print(json.dumps(run_round(name, loop, arguments)))
        return 0
    rows: list[dict[str, Any]] = []
    below_floor = []
    peak_flops = measure_peak_flops(
        torch.device("cuda" if arguments.device == "auto" and torch.cuda.is_available() else "cpu")
    )
    with tempfile.TemporaryDirectory() as arguments.scratch:
        for name in arguments.recipes:
            rows_of_recipe = compare(name, arguments, peak_flops)
            rows += rows_of_recipe
            floor = FLOORS.get((name, arguments.scale), 1.0)
            speed = rows_of_recipe[0]["x Trainer"]
            if speed < floor:
                below_floor.append(f"{name}: {speed:.2f}x the Trainer, required {floor}x")
    print(f"peak of a fp32 matrix product: {peak_flops / 1e9:.0f} GFLOP/s")
    print(format_table(rows))
    print("\n".join(below_floor))
    return 1 if below_floor else 0


if __name__ == "__main__":
    raise SystemExit(main())
