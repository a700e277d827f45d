"""Estimated and real times of units: how far a plan can be trusted.

    python benchmarks/estimates.py [--texts 2000]

Saves a Llama and a BERT with random weights, measures this machine (`plan --calibrate`), and prints
for three runs the time that a plan predicts, the time that the run took, and their ratio: scoring
with `causal`, scoring with `mlm`, finetuning one task. Each run opens its checkpoint. Run it on a
machine that does nothing else, if there is one.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

WORDS = ("the", "a", "cat", "dog", "house", "child", "old", "big", "near", "sees", "likes", "who")
HIDDEN, LAYERS = 256, 4


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


def save_masked_model(path: Path, causal: Path) -> None:
    """Save a BERT of the same size, with the tokenizer of the Llama."""
    import shutil

    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=4096,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 32,
        intermediate_size=4 * HIDDEN,
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=2000)
    count = parser.parse_args().texts
    root = Path(tempfile.mkdtemp())
    os.environ["ANTLM_BENCH_CACHE"] = str(root / "cache")
    from antlm_bench.commands.finetune import FinetuneOptions, finetune
    from antlm_bench.commands.plan import calibrate_device, plan_finetune, plan_score
    from antlm_bench.commands.score import score
    from antlm_bench.commands.score_options import ScoreOptions
    from antlm_bench.sweeps.calibration import save_random_model

    causal, masked = root / "causal", root / "masked"
    save_random_model(causal, HIDDEN, LAYERS)
    save_masked_model(masked, causal)
    pairs, texts = write_pairs(root / "pairs.csv", count), write_texts(root / "texts.csv", count)
    valid = write_texts(root / "valid.csv", count // 10)
    calibrate_device("", ())
    for model, method in ((causal, "causal"), (masked, "mlm")):
        plan = plan_score(str(model), str(pairs), method, ScoreOptions())
        run = partial(score, str(model), str(pairs), method=method, out=root / method)
        measure(f"score {method}", plan, run)
    options = FinetuneOptions(valid=str(valid), changes=("epochs=2", "patience=2"))
    arguments: dict[str, Any] = {"options": options, "seeds": [1], "out": root / "finetune"}
    plan = plan_finetune(str(causal), str(texts), **arguments)
    measure("finetune", plan, partial(finetune, str(causal), str(texts), **arguments))


if __name__ == "__main__":
    main()
