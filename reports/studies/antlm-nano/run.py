"""The study in one command: train and score every cell, and print the tables of the README.

    OMP_NUM_THREADS=1 python reports/studies/antlm-nano/run.py --runs DIR    # train and score
    python reports/studies/antlm-nano/run.py                 # only the tables, from decisions.csv

Cells that DIR already holds are not computed again. decisions.csv has one row per cell with one
character per minimal pair (1 right, 0 wrong, h a tie), which is all that the intervals need.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

HERE = Path(__file__).resolve().parent
DECISIONS, SCORES, CONTRASTS = HERE / "decisions.csv", HERE / "scores.csv", HERE / "contrasts.csv"
SEEDS, SIZES, RESAMPLES = (1, 2, 3), (4000, 8000), 10_000
# Equal within a pair: text, tokenizer, masking, tokens per step, epochs, learning rate, schedule.
SHARED_SETTINGS = ("batch.tokens=512",)
LLAMA_SETTINGS = (*SHARED_SETTINGS, "optimizer.warmup_steps=8")
LTG_SETTINGS = (
    *SHARED_SETTINGS,
    "objective.spans=token",
)  # as the hybrid; the recipe of the backbone masks spans
SYSTEMS = {  # name -> (recipe, settings, methods)
    "babyllama": ("babyllama", (*LLAMA_SETTINGS, "phase=[{epochs=6,causal=1}]"), "causal"),
    "antlm-babyllama": (
        "antlm-babyllama",
        (*LLAMA_SETTINGS, "phase=[{epochs=1,causal=1},{epochs=4,masked=1},{epochs=1,causal=1}]"),
        "causal,mlm,mlm-l2r",
    ),
    "ltg-bert": ("ltg-bert", (*LTG_SETTINGS, "phase=[{epochs=12,masked=1}]"), "mlm,mlm-l2r"),
    "antlm-ltg-bert": (
        "antlm-ltg-bert",
        (*LTG_SETTINGS, "phase=[{epochs=1,causal=1},{epochs=10,masked=1},{epochs=1,causal=1}]"),
        "mlm,mlm-l2r,causal",
    ),
    "gpt-bert-10m": (
        "gpt-bert-10m",
        (*SHARED_SETTINGS, "batch.final_tokens=2048", "phase=[{epochs=12,causal=1,masked=3}]"),
        "mntp,causal,fused",
    ),
    # Controls: only the epochs of the backbone's own objective, on their own schedule.
    "babyllama-2-epochs": ("babyllama", (*LLAMA_SETTINGS, "phase=[{epochs=2,causal=1}]"), "causal"),
    "ltg-bert-10-epochs": (
        "ltg-bert",
        (*LTG_SETTINGS, "phase=[{epochs=10,masked=1}]"),
        "mlm,mlm-l2r",
    ),
    "ltg-bert-spans": (
        "ltg-bert",
        (*SHARED_SETTINGS, "phase=[{epochs=12,masked=1}]"),
        "mlm,mlm-l2r",
    ),
}
# (hybrid, its method, plain, its method): the same method where both have it, then the others.
PAIRS = (
    ("antlm-babyllama", "causal", "babyllama", "causal"),
    ("antlm-babyllama", "mlm", "babyllama", "causal"),
    ("antlm-babyllama", "mlm-l2r", "babyllama", "causal"),
    ("antlm-ltg-bert", "mlm", "ltg-bert", "mlm"),
    ("antlm-ltg-bert", "mlm-l2r", "ltg-bert", "mlm-l2r"),
    ("antlm-ltg-bert", "causal", "ltg-bert", "mlm"),
    ("antlm-babyllama", "causal", "babyllama-2-epochs", "causal"),
    ("antlm-ltg-bert", "mlm", "ltg-bert-10-epochs", "mlm"),
    ("antlm-ltg-bert", "mlm", "ltg-bert-spans", "mlm"),
)


class Decisions(NamedTuple):
    """One cell: credit per minimal pair, sorted by paradigm."""

    words: int
    seed: int
    system: str
    method: str
    steps: int
    loss: str
    credits: str

    @property
    def credit(self) -> np.ndarray:
        return np.array([{"1": 1.0, "0": 0.0, "h": 0.5}[mark] for mark in self.credits])


def train_and_score(runs: Path, words: int, seed: int, system: str) -> Iterator[Decisions]:
    """Train and score one model unless its folder exists; yield its cells."""
    recipe, settings, methods = SYSTEMS[system]
    folder = runs / f"{system}-{words}-{seed}"
    settings_options = [
        part
        for setting in (f"seed={seed}", f"corpus.words={words}", *settings)
        for part in ("--set", setting)
    ]
    if not (folder / "main" / "config.json").exists():
        argv = ["--corpus", "nano", "--scale", "nano", "--device", "cpu", "--out", folder]
        run_command("train", recipe, *argv, *settings_options)
    if not all(
        (folder / "score" / "predictions" / f"nano.{method}.parquet").exists()
        for method in methods.split(",")
    ):
        argv = ["--suite", "nano", "--method", methods, "--out", folder / "score"]
        run_command("score", "--model", folder / "main", *argv)
    log = [
        json.loads(line)
        for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    last = {name: loss for record in log for name, loss in record["loss"].items()}
    final_losses = " ".join(f"{name} {loss:.3f}" for name, loss in last.items())
    for method in methods.split(","):
        table = pd.read_parquet(folder / "score" / "predictions" / f"nano.{method}.parquet")
        table["paradigm"] = [labels["paradigm"] for labels in table["labels"]]
        table = table.sort_values(["paradigm", "id"])
        good, bad = np.array(table["scores"].tolist()).T
        credits = "".join(np.where(good == bad, "h", np.where(good > bad, "1", "0")))
        yield Decisions(words, seed, system, method, log[-1]["step"], final_losses, credits)


def run_command(*argv: str | Path) -> None:
    print("+ antlm-bench", *argv, flush=True, file=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "antlm_bench", *map(str, argv)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def compute_contrast(
    cells: dict[tuple[str, str], list[Decisions]], pair: tuple[str, str, str, str]
) -> dict[str, object]:
    """Return hybrid minus plain in points, with intervals over seeds and over minimal pairs.

    Seeds: Student's t. Minimal pairs: a bootstrap within paradigms that draws the same pairs for
    both models and all seeds, so it holds for these three seeds only.
    """
    hybrid, plain = cells[pair[0], pair[1]], cells[pair[2], pair[3]]
    assert [decisions.seed for decisions in hybrid] == [decisions.seed for decisions in plain]
    gains = 100 * np.array([a.credit - b.credit for a, b in zip(hybrid, plain, strict=True)])
    per_seed = gains.mean(axis=1)
    half = stats.t.ppf(0.975, len(per_seed) - 1) * per_seed.std(ddof=1) / len(per_seed) ** 0.5
    paradigms = gains.mean(axis=0).reshape(16, 50)  # every paradigm of the suite has 50 pairs
    indices = np.random.default_rng(2026).integers(50, size=(RESAMPLES, 16, 50))
    means = np.take_along_axis(paradigms[None], indices, axis=2).mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    centre = per_seed.mean()
    return {
        "words": hybrid[0].words,
        "hybrid": pair[0],
        "hybrid_method": pair[1],
        "plain": pair[2],
        "plain_method": pair[3],
        "difference": round(centre, 2),
        "per_seed": " ".join(f"{gain:+.2f}" for gain in per_seed),
        "t_low": round(centre - half, 2),
        "t_high": round(centre + half, 2),
        "items_low": round(low, 2),
        "items_high": round(high, 2),
    }


def build_tables(cells: list[Decisions]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Build the tables of scores (a column per seed) and of contrasts."""
    scores, contrasts = [], []
    for words in sorted({decisions.words for decisions in cells}):
        decisions_by_cell: dict[tuple[str, str], list[Decisions]] = {}
        for cell in sorted(cells, key=lambda cell: cell.seed):
            if cell.words == words:
                decisions_by_cell.setdefault((cell.system, cell.method), []).append(cell)
        for system, (_, _, methods) in SYSTEMS.items():
            for method in methods.split(","):
                seeds = decisions_by_cell[system, method]
                accuracy = [100 * decisions.credit.mean() for decisions in seeds]
                row: dict[str, object] = {"words": words, "system": system, "method": method}
                row |= {
                    "steps": seeds[0].steps,
                    "mean": round(float(np.mean(accuracy)), 2),
                }
                scores.append(
                    row | {f"seed {s}": round(a, 2) for s, a in zip(SEEDS, accuracy, strict=True)}
                )
        contrasts += [compute_contrast(decisions_by_cell, pair) for pair in PAIRS]
    return pd.DataFrame(scores), pd.DataFrame(contrasts)


def format_markdown(table: pd.DataFrame) -> str:
    rows = [
        list(table.columns),
        ["---"] * len(table.columns),
        *table.astype(str).to_numpy().tolist(),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="AntLM at toy scale: train, score, compare.")
    parser.add_argument(
        "--runs",
        type=Path,
        help="folder for checkpoints and scores (default: only make the tables)",
    )
    runs = parser.parse_args().runs
    if runs:
        models = product(SIZES, SEEDS, SYSTEMS)
        cells = [
            cell
            for words, seed, system in models
            for cell in train_and_score(runs, words, seed, system)
        ]
        with DECISIONS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([Decisions._fields, *cells])
    with DECISIONS.open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    decisions_of_cells = [
        Decisions(int(words), int(seed), system, method, int(steps), loss, credits)
        for words, seed, system, method, steps, loss, credits in rows
    ]
    scores, contrasts = build_tables(decisions_of_cells)
    for table, path in ((scores, SCORES), (contrasts, CONTRASTS)):
        table.to_csv(path, index=False, lineterminator="\n")
        print(format_markdown(table), end="\n\n")


if __name__ == "__main__":
    main()
