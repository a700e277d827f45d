"""Commands that open no model, with small inputs: what an installation without torch can do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import report_runs
from pair_runs import draw_logprob_gaps, write_toy_run
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
SURPRISALS = "item,condition,region,word_index,word,surprisal_bits\n" + "".join(
    f"{item},{condition},critical,1,word,{bits + item / 10}\n"
    for item in range(1, 5)
    for condition, bits in (("plain", 4.0), ("odd", 9.0 - item / 7))
)
SLIM_COMMANDS = {
    "list": 0,
    "list methods": 0,
    "list models": 0,
    "show nano": 0,
    "show antlm-babyllama --scale nano": 0,
    "doctor": 0,
    "data list nano": 0,
    "data where": 0,
    "suggest pairs.csv": 0,
    "report trusted new": 0,
    "report trusted --markdown": 0,
    "report trusted --csv": 0,
    "report trusted --latex": 0,
    "report glue --json": 0,
    "report trusted --provenance": 0,
    "compare trusted new": 0,
    "compare glue glue-b": 0,
    "check new --against trusted --margin 20 --junit junit.xml --github": 0,
    "check glue-b --against glue --margin 50": 0,
    "baseline save trusted --name main": 0,
    "baseline list": 0,
    "power --suite nano --flips 2%": 0,
    "curve chck_1M chck_2M": 0,
    "effects surprisal.csv": 0,
    "export trusted --format csv --out items.csv": 0,
    "export trusted --format model-index --out card.yaml": 0,
    "export trusted --format every-eval-ever --out eee": 0,
    "export trusted --format lm-eval --out results": 0,
    "import results --out imported": 0,
    "merge trusted --out merged": 0,
    "submit trusted --year 2025 --track strict-small --out submission.json --allow-partial": 5,
    "preflight . --track strict-small": 5,
}
"""Command -> its exit code. 5: the submission lacks parts, and the folder lacks milestones."""
MODEL_COMMANDS = {
    "score --model checkpoint --suite nano": "antlm-bench",
    "finetune --model checkpoint --suite glue-2024": "antlm-bench",
    "surprisal --model checkpoint --in texts.txt --out out.csv": "antlm-bench",
    "train babyllama --scale nano --corpus nano --out trained": "antlm-bench",
    "verify --model checkpoint --suite nano": "antlm-bench",
    "noise --model checkpoint --suite nano": "antlm-bench",
    "doctor --model checkpoint": "antlm-bench",
    "report trusted --html page.html": "altair vl-convert-python",
    "track trusted --to wandb": "wandb",
}
"""Command that a slim installation cannot carry out -> what `pip install` takes to change that."""


def write_inputs(folder: Path) -> None:
    """Write the runs and files that the commands above read."""
    gaps = draw_logprob_gaps(12)
    write_toy_run(folder / "trusted", gaps)
    write_toy_run(folder / "new", {name: values + 0.1 for name, values in gaps.items()})
    for step in (1, 2):
        write_toy_run(folder / f"chck_{step}M", draw_logprob_gaps(12, seed=step))
    for name, right in (("glue", 30), ("glue-b", 28)):
        cells = [
            report_runs.make_finetuned_cell(task, seed, right)
            for task in ("mrpc", "cola", "boolq")
            for seed in (1, 2)
        ]
        report_runs.write_run(folder / name, cells)
    (folder / "surprisal.csv").write_text(SURPRISALS, encoding="utf-8")
    (folder / "pairs.csv").write_text("good,bad\nHe sleeps.,He sleep.\n", encoding="utf-8")
    (folder / "texts.txt").write_text("He sleeps.\n", encoding="utf-8")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1}',
        encoding="utf-8",
    )
    save_file({"lm_head.weight": np.zeros((9, 4), np.float32)}, checkpoint / "model.safetensors")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a fresh process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}
