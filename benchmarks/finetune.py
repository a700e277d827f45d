"""Our finetuning loop against the transformers Trainer: same body, head, texts, epochs and
precision, in turns.

    python benchmarks/finetune.py [babyllama] [ltg-bert] [bert] [--tasks rte,mrpc,qqp] [--examples 640] [--rounds 3]

Bodies have random weights at the small scale of our recipes; `bert` is the library's own of the
same size. Texts are BabyLM's (ANTLM_BENCH_DATA, else those in ../shared/data), evenly spaced. The
Trainer gets the token ids ready, pads every batch to its own longest row, draws batches of like
lengths, and uses its fastest optimizer. Both sides run in a process of their own, in turns, with
the same settings of the system's threads; times are of training alone. Ratios of medians are the
result. Accuracies are of the scored texts: a check that both learn, no comparison of models.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from score import table
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

FLOOR = 1.3  # what is promised: so many times the Trainer, on every task
SEED = 1
ATTENTION: dict[str, Attention] = {"babyllama": "causal", "ltg-bert": "full", "bert": "full"}


class Baseline(nn.Module):  # type: ignore[misc]
    """What one hands to the Trainer: a body, a mask for what is padded, the same head, the loss."""

    def __init__(self, folder: Path, causal: bool, dropout: float, classes: int) -> None:
        super().__init__()
        auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
        self.body, self.causal = auto.from_pretrained(folder).base_model, causal
        self.head = ClassificationHead(self.body.config.hidden_size, classes, dropout, SEED)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        more = {"use_cache": False} if self.causal else {}
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, **more)[0]
        at = attention_mask.sum(1) - 1 if self.causal else torch.zeros_like(labels)
        logits = self.head(hidden[torch.arange(len(hidden), device=hidden.device), at])
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


def task_of(name: str, arguments: argparse.Namespace) -> ClassificationTask:
    """Without a split: both sides train on the very same texts."""
    changes = [f"epochs={arguments.epochs}", "patience=0", *arguments.set]
    task = load_task(
        "glue-2025", name, limit_train=arguments.examples, limit_valid=200, overrides=changes
    )
    return replace(task, select="valid")


def ours(name: str, task: ClassificationTask, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of training, and accuracy of the best epoch."""
    body = open_backbone(str(Path(arguments.scratch) / name))
    conditions = FinetuneSettings(arguments.device, arguments.precision, arguments.batch_tokens)
    outcome = finetune(body, task, SEED, ATTENTION[name], conditions)
    seconds = sum(epoch["seconds"] for epoch in outcome.history["epochs"])
    return seconds, statistics.mean(p.pred == p.gold for p in outcome.predictions)


def theirs(
    name: str, task: ClassificationTask, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Seconds of training, and accuracy."""
    spec, scratch = task.training, Path(arguments.scratch)
    tokenizer = transformers.AutoTokenizer.from_pretrained(scratch / name)
    rows = torch.load(scratch / f"{name}-{task.name}.pt")
    model = Baseline(scratch / name, ATTENTION[name] == "causal", spec.dropout, len(task.classes))
    settings = transformers.TrainingArguments(
        output_dir=str(scratch / "trainer"), num_train_epochs=spec.epochs, per_device_train_batch_size=spec.batch,
        per_device_eval_batch_size=64, use_cpu=arguments.device == "cpu", bf16=arguments.precision == "bfloat16",
        learning_rate=spec.lr, weight_decay=spec.weight_decay, optim="adamw_torch_fused",
        max_grad_norm=spec.clip or 0.0, lr_scheduler_type=spec.schedule, warmup_steps=spec.warmup, report_to="none",
        logging_steps=10**9, save_strategy="no", disable_tqdm=True, seed=SEED, label_names=["labels"],
        train_sampling_strategy="group_by_length", remove_unused_columns=False,
    )  # fmt: skip
    clock = Clock()
    trainer = transformers.Trainer(
        model=model, args=settings, train_dataset=rows["train"], processing_class=tokenizer, callbacks=[clock],
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    found = trainer.predict(rows["valid"])
    return clock.end - clock.start, float((found.predictions.argmax(-1) == found.label_ids).mean())


def once(name: str, task: str, who: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One round of one side, in this process."""
    loaded = task_of(task, arguments)
    seconds, accuracy = (ours if who == "ours" else theirs)(name, loaded, arguments)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available() and arguments.device != "cpu":
        memory = torch.cuda.max_memory_allocated() / 2**30
    shown = len(loaded.train) * loaded.training.epochs
    return {"seconds": seconds, "examples": shown, "accuracy": accuracy, "memory": memory}


def make(name: str, tasks: list[str], arguments: argparse.Namespace) -> None:
    """A checkpoint with random weights, and its token ids of every task for the Trainer."""
    scratch = Path(arguments.scratch)
    recipe = read_recipe("ltg-bert" if name == "bert" else name, "small", ["corpus.words=300_000"])
    corpus = prepare_corpus(
        load_text_source(text()),
        recipe.corpus,
        recipe.tokenizer,
        recipe.model.positions,
        scratch / f"{name}-text",
    )
    torch.manual_seed(SEED)
    size = len(corpus.tokenizer)
    model = (
        bert(recipe.model, size)
        if name == "bert"
        else build_model(recipe.model, size, ATTENTION[name] == "full")
    )
    card = {
        "recipe": name, "scale": "small", "attends": [ATTENTION[name]], "methods": list(recipe.methods), "seed": SEED,
        "words_seen": 0, "tokens_seen": 0, "steps": 0,
    }  # fmt: skip
    save_checkpoint(scratch / name, model, corpus.tokenizer, card)
    body = open_backbone(str(scratch / name))
    for task in (task_of(one, arguments) for one in tasks):
        size = max_row_length(body, task.training.max_length)
        parts = {}
        for split, examples in (("train", task.train), ("valid", task.valid)):
            rows = encode_examples(body, ATTENTION[name], examples, size)
            parts[split] = [
                {"input_ids": ids.tolist(), "labels": int(gold)}
                for ids, gold in zip(rows.ids, rows.gold, strict=True)
            ]
        torch.save(parts, scratch / f"{name}-{task.name}.pt")


def bert(spec: Any, vocabulary: int) -> Any:
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=spec.hidden, num_hidden_layers=spec.layers, num_attention_heads=spec.heads,
        intermediate_size=spec.ffn, type_vocab_size=1,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def text() -> str:
    data = Path(os.environ["ANTLM_BENCH_DATA"]) / "corpus" / "train"
    return str(data) if data.is_dir() else "nano"


def compare(name: str, task: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "Trainer": []}
    for _ in range(arguments.rounds):
        for who, found in rounds.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--only", f"{name}:{task}:{who}"]
            command += ["--scratch", arguments.scratch]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    rate = {
        who: statistics.median(f["examples"] / f["seconds"] for f in found)
        for who, found in rounds.items()
    }
    return [
        {
            "body": name,
            "task": task,
            "loop": who,
            "examples/s": rate[who],
            "x Trainer": rate[who] / rate["Trainer"] if who == "ours" else None,
            "accuracy": statistics.median(f["accuracy"] for f in found),
            "peak memory GiB": max(f["memory"] for f in found),
            "seconds per round": " ".join(f"{f['seconds']:.1f}" for f in found),
        }
        for who, found in rounds.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "bodies", nargs="*", default=["babyllama", "ltg-bert"], metavar="BODY", help="or bert"
    )
    parser.add_argument("--tasks", default="rte,mrpc,qqp")
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
    limit_thread_spinning()  # of both: they inherit it
    os.environ.setdefault("ANTLM_BENCH_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if arguments.only:
        name, task, who = arguments.only.split(":")
        print(json.dumps(once(name, task, who, arguments)))
        return 0
    tasks = arguments.tasks.split(",")
    rows: list[dict[str, Any]] = []
    missed = []
    with tempfile.TemporaryDirectory() as arguments.scratch:
        for name in arguments.bodies:
            make(name, tasks, arguments)
            for task in tasks:
                found = compare(name, task, arguments)
                rows += found
                if found[0]["x Trainer"] < FLOOR:
                    missed.append(
                        f"{name} {task}: {found[0]['x Trainer']:.2f}x the Trainer, promised {FLOOR}x"
                    )
    print(table(rows))
    print("\n".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
