"""Our training loop against the transformers Trainer: same model, rows, batch, precision and
threads, in turns.

    python benchmarks/train.py [babyllama] [ltg-bert] [--scale small] [--steps 8] [--rounds 3] [--device cpu]

Each round trains both for so many optimizer steps from the same initial weights; the first two
steps of a round warm up and are not counted. The Trainer gets ready rows of equal length (nothing
to pad), its own collator for masked rows, and its fastest optimizer. Ratios of medians are the
result. The fraction of peak counts the arithmetic that training asks for
(antlm_bench.training.flops) against the best fp32 matrix product measured in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
from score import peak, table

from antlm_bench.training.corpus import Corpus, prepare_corpus
from antlm_bench.training.flops import forward_flops
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.pretrain import RuntimeSettings, Trainer
from antlm_bench.training.recipe import Recipe, read_recipe
from antlm_bench.training.schedule import Step, plan_steps
from antlm_bench.training.text_sources import load_text_source

FLOORS = {
    ("babyllama", "small"): 1.3,
    ("ltg-bert", "small"): 1.5,
}  # what is promised: so many times the Trainer
TOKENS = 4096  # per optimizer step: babyllama's own, enough to tell loops apart
UNCOUNTED = 2  # steps at the beginning of a round


def ours(training: Trainer, steps: list[Step]) -> float:
    """Seconds for the counted steps."""
    for step in steps[:UNCOUNTED]:
        training.train_step(step)
    start = time.perf_counter()
    for step in steps[UNCOUNTED:]:
        training.train_step(step)
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """The corpus cut into rows, as the Trainer likes them."""

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


def theirs(
    recipe: Recipe, corpus: Corpus, steps: list[Step], cpu: bool, bf16: bool, out: Path
) -> float:
    """Seconds for the counted steps by the Trainer."""
    torch.manual_seed(recipe.seed)
    masked = "full" in recipe.attentions
    model = build_model(recipe.model, len(corpus.tokenizer), masked)
    spec = recipe.optimizer
    arguments = transformers.TrainingArguments(
        output_dir=str(out), max_steps=len(steps), per_device_train_batch_size=steps[0].num_rows, use_cpu=cpu, bf16=bf16,
        learning_rate=spec.lr, weight_decay=spec.weight_decay, optim="adamw_torch_fused", max_grad_norm=spec.clip,
        lr_scheduler_type="cosine", report_to="none", logging_steps=10**9, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, seed=recipe.seed,
    )  # fmt: skip
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


def once(name: str, who: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One round of one loop, in this process: seconds, tokens, FLOPs of the counted steps, and GiB
    at most.
    """
    changes = [f"corpus.words={arguments.words}", f"batch.tokens={TOKENS}", *arguments.set]
    recipe = read_recipe(name, arguments.scale, changes)
    scratch = Path(arguments.scratch)
    corpus = prepare_corpus(
        load_text_source(text()),
        recipe.corpus,
        recipe.tokenizer,
        recipe.model.positions,
        scratch / name,
    )
    steps = plan_steps(recipe, len(corpus))[: arguments.steps + UNCOUNTED]
    cpu, bf16 = arguments.device == "cpu", arguments.precision == "bfloat16"
    if who == "ours":
        conditions = RuntimeSettings(
            arguments.device, arguments.precision, compile_model=arguments.compile
        )
        seconds = ours(Trainer(recipe, corpus, conditions), steps)
    else:
        seconds = theirs(recipe, corpus, steps, cpu, bf16, scratch / "trainer")
    counted = steps[UNCOUNTED:]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available() and not cpu:
        memory = torch.cuda.max_memory_allocated() / 2**30
    tokens = sum(step.num_tokens for step in counted)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "flops": 3 * forward_flops(recipe, counted),
        "memory": memory,
    }


def text() -> str:
    """Real training text where it lies, else the embedded grammar."""
    data = Path(os.environ.get("ANTLM_BENCH_DATA", "../shared/data")) / "corpus" / "train"
    return str(data) if data.is_dir() else "nano"


def compare(name: str, arguments: argparse.Namespace, best: float) -> list[dict[str, Any]]:
    """Rounds of both loops in turns, each in a process of its own: neither inherits the other's
    memory.
    """
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "Trainer": []}
    for _ in range(arguments.rounds):
        for who, found in rounds.items():
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--only",
                f"{name}:{who}",
                "--scratch",
                arguments.scratch,
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    rate = {
        who: statistics.median(f["tokens"] / f["seconds"] for f in found)
        for who, found in rounds.items()
    }
    return [
        {
            "recipe": f"{name} {arguments.scale}",
            "loop": who,
            "tokens/s": rate[who],
            "of fp32 peak": statistics.median(f["flops"] / f["seconds"] for f in found) / best,
            "x Trainer": rate[who] / rate["Trainer"] if who == "ours" else None,
            "peak memory GiB": max(f["memory"] for f in found),
            "seconds per round": " ".join(f"{f['seconds']:.1f}" for f in found),
        }
        for who, found in rounds.items()
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
        name, _, who = arguments.only.partition(":")
        print(json.dumps(once(name, who, arguments)))
        return 0
    rows: list[dict[str, Any]] = []
    missed = []
    best = peak(
        torch.device("cuda" if arguments.device == "auto" and torch.cuda.is_available() else "cpu")
    )
    with tempfile.TemporaryDirectory() as arguments.scratch:
        for name in arguments.recipes:
            found = compare(name, arguments, best)
            rows += found
            floor = FLOORS.get((name, arguments.scale), 1.0)
            if found[0]["x Trainer"] < floor:
                missed.append(
                    f"{name}: {found[0]['x Trainer']:.2f}x the Trainer, promised {floor}x"
                )
    print(f"peak of a fp32 matrix product: {best / 1e9:.0f} GFLOP/s")
    print(table(rows))
    print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
