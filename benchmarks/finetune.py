"""Our finetuning loop against the transformers Trainer: same backbone, head, texts and epochs.

    python benchmarks/finetune.py [babyllama] [ltg-bert] [bert] [--tasks rte,mrpc,qqp]
                                  [--examples 640] [--rounds 3]

Backbones have random weights at a scale of our recipes; `bert` is that of transformers at the same
size. Texts are evenly spaced samples of the data in ANTLM_BENCH_DATA (default:
../shared/data). The Trainer gets token ids, pads each batch to its longest row, groups rows by
length, and uses its fastest optimizer. Both loops run in turns, each in its own process with the
same threads; only training is timed. Ratios of medians are reported. Accuracies show that both
learn.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from score import format_table, peak_memory_gib
from torch import Tensor, nn
from torch.nn import functional

from antlm_bench.checkpoints import open_backbone
from antlm_bench.cpu_tuning import limit_thread_spinning
from antlm_bench.finetuning.data import encode_examples, max_row_length
from antlm_bench.finetuning.heads import ClassificationHead
from antlm_bench.finetuning.loop import FinetuneSettings, finetune
from antlm_bench.suites.classification_loader import ClassificationTask, load_task
from antlm_bench.training.checkpoint_io import save_checkpoint
from antlm_bench.training.corpus import prepare_corpus
from antlm_bench.training.model_factory import build_model
from antlm_bench.training.recipe import read_recipe
from antlm_bench.training.text_sources import load_text_source
from antlm_bench.types import Attention

FLOOR = 1.3  # required: so many times the speed of the Trainer, on every task
SEED = 1
ATTENTION: dict[str, Attention] = {"babyllama": "causal", "ltg-bert": "full", "bert": "full"}


class TrainerModel(nn.Module):  # type: ignore[misc]
    """Model for the Trainer: a backbone with attention mask, our head, and the loss."""

    def __init__(self, folder: Path, causal: bool, dropout: float, classes: int) -> None:
        super().__init__()
        auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
        self.body, self.causal = auto.from_pretrained(folder).base_model, causal
        self.head = ClassificationHead(self.body.config.hidden_size, classes, dropout, SEED)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        options = {"use_cache": False} if self.causal else {}
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **options)[0]
        positions = attention_mask.sum(1) - 1 if self.causal else torch.zeros_like(labels)
        logits = self.head(hidden[torch.arange(len(hidden), device=hidden.device), positions])
        return {"loss": functional.cross_entropy(logits.float(), labels), "logits": logits}


class Clock(transformers.TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.end = time.perf_counter()


def load_benchmark_task(name: str, arguments: argparse.Namespace) -> ClassificationTask:
    """Load a task without a held-out split, so that both loops train on the same texts."""
    changes = [f"epochs={arguments.epochs}", "patience=0", *arguments.set]
    task = load_task(
        arguments.suite,
        name,
        valid=arguments.valid,
        limit_train=arguments.examples,
        limit_valid=200,
        overrides=changes,
    )
    return replace(task, select="valid")


def time_our_loop(
    name: str, task: ClassificationTask, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds of training and the accuracy of the best epoch."""
    backbone = open_backbone(str(Path(arguments.scratch) / name))
    settings = FinetuneSettings(arguments.device, arguments.precision, arguments.batch_tokens)
    outcome = finetune(backbone, task, SEED, ATTENTION[name], settings)
    seconds = sum(epoch["seconds"] for epoch in outcome.history["epochs"])
    return seconds, float((outcome.predictions.pred == outcome.predictions.gold).mean())


def time_trainer(
    name: str, task: ClassificationTask, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return the seconds of training and the accuracy."""
    spec, scratch = task.training, Path(arguments.scratch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(scratch / name)
    rows = torch.load(scratch / f"{name}-{task.name}.pt")
    model = TrainerModel(
        scratch / name, ATTENTION[name] == "causal", spec.dropout, len(task.classes)
    )
    settings = transformers.TrainingArguments(
        output_dir=str(scratch / "trainer"),
        num_train_epochs=spec.epochs,
        per_device_train_batch_size=spec.batch,
        per_device_eval_batch_size=64,
        use_cpu=arguments.device == "cpu",
        bf16=arguments.precision == "bfloat16",
        learning_rate=spec.lr,
        weight_decay=spec.weight_decay,
        optim="adamw_torch_fused",
        max_grad_norm=spec.clip or 0.0,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup,
        report_to="none",
        logging_steps=10**9,
        save_strategy="no",
        disable_tqdm=True,
        seed=SEED,
        label_names=["labels"],
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
    )
    clock = Clock()
    trainer = transformers.Trainer(
        model=model,
        args=settings,
        train_dataset=rows["train"],
        processing_class=tokenizer,
        callbacks=[clock],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    output = trainer.predict(rows["valid"])
    accuracy = (output.predictions.argmax(-1) == output.label_ids).mean()
    return clock.end - clock.start, float(accuracy)


def run_round(name: str, task: str, loop: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one round of one loop in this process."""
    loaded = load_benchmark_task(task, arguments)
    seconds, accuracy = (time_our_loop if loop == "ours" else time_trainer)(name, loaded, arguments)
    on_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    memory = peak_memory_gib(torch.device("cuda" if on_gpu else "cpu"))
    examples = len(loaded.train) * loaded.training.epochs
    return {"seconds": seconds, "examples": examples, "accuracy": accuracy, "memory": memory}


def write_checkpoint(name: str, tasks: list[str], arguments: argparse.Namespace) -> None:
    """Write a checkpoint with random weights, and token ids of every task for the Trainer."""
    scratch = Path(arguments.scratch)
    recipe_name = "ltg-bert" if name == "bert" else name
    recipe = read_recipe(recipe_name, arguments.scale, [f"corpus.words={arguments.words}"])
    corpus = prepare_corpus(
        load_text_source(find_text_source()),
        recipe.corpus,
        recipe.tokenizer,
        recipe.model.positions,
        scratch / f"{name}-text",
    )
    torch.manual_seed(SEED)
    size = len(corpus.tokenizer)
    model = (
        build_bert(recipe.model, size)
        if name == "bert"
        else build_model(recipe.model, size, ATTENTION[name] == "full")
    )
    card = {
        "recipe": name,
        "scale": arguments.scale,
        "attends": [ATTENTION[name]],
        "methods": list(recipe.methods),
        "seed": SEED,
        "words_seen": 0,
        "tokens_seen": 0,
        "steps": 0,
    }
    save_checkpoint(scratch / name, model, corpus.tokenizer, card)
    backbone = open_backbone(str(scratch / name))
    for task in (load_benchmark_task(task_name, arguments) for task_name in tasks):
        size = max_row_length(backbone, task.training.max_length)
        parts = {}
        for split, examples in (("train", task.train), ("valid", task.valid)):
            rows = encode_examples(backbone, ATTENTION[name], examples, size)
            parts[split] = [
                {"input_ids": ids.tolist(), "labels": int(gold)}
                for ids, gold in zip(rows.ids, rows.gold, strict=True)
            ]
        torch.save(parts, scratch / f"{name}-{task.name}.pt")


def build_bert(spec: Any, vocabulary: int) -> Any:
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        intermediate_size=spec.ffn,
        type_vocab_size=1,
    )
    return transformers.BertForMaskedLM(config)


def find_text_source() -> str:
    data = Path(os.environ["ANTLM_BENCH_DATA"]) / "corpus" / "train"
    return str(data) if data.is_dir() else "nano"


def compare(name: str, task: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "Trainer": []}
    for _ in range(arguments.rounds):
        for loop, results in rounds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{name}:{task}:{loop}"]
            command += ["--scratch", arguments.scratch]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    rate = {
        loop: statistics.median(result["examples"] / result["seconds"] for result in results)
        for loop, results in rounds.items()
    }
    return [
        {
            "body": name,
            "task": task,
            "loop": loop,
            "examples/s": rate[loop],
            "x Trainer": rate[loop] / rate["Trainer"] if loop == "ours" else None,
            "accuracy": statistics.median(result["accuracy"] for result in results),
            "peak memory GiB": max(result["memory"] for result in results),
            "seconds per round": " ".join(f"{result['seconds']:.1f}" for result in results),
        }
        for loop, results in rounds.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "bodies", nargs="*", default=["babyllama", "ltg-bert"], metavar="BODY", help="or bert"
    )
    parser.add_argument("--suite", default="glue-2025", help="or a file to train on, with --valid")
    parser.add_argument("--valid", help="the file that is scored")
    parser.add_argument("--tasks", default="rte,mrpc,qqp")
    parser.add_argument("--scale", default="small")
    parser.add_argument("--words", type=int, default=300_000, help="words of the tokenizer's text")
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "auto"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limit_thread_spinning()  # inherited by both loops
    os.environ.setdefault("ANTLM_BENCH_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if arguments.only:
        name, task, loop = arguments.only.split(":")
        print(json.dumps(run_round(name, task, loop, arguments)))
        return 0
    tasks = arguments.tasks.split(",")
    rows: list[dict[str, Any]] = []
    below_floor = []
    with tempfile.TemporaryDirectory() as arguments.scratch:
        for name in arguments.bodies:
            write_checkpoint(name, tasks, arguments)
            for task in tasks:
                rows_of_task = compare(name, task, arguments)
                rows += rows_of_task
                speed = rows_of_task[0]["x Trainer"]
                if speed < FLOOR:
                    below_floor.append(
                        f"{name} {task}: {speed:.2f}x the Trainer, required {FLOOR}x"
                    )
    print(format_table(rows))
    print("\n".join(below_floor))
    return 1 if below_floor else 0


if __name__ == "__main__":
    raise SystemExit(main())
