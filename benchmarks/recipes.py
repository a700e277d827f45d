"""Every recipe, trained at a small scale and scored on a fast suite.

It prints the table of docs/explanation/recipes.md.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --corpus DIR --runs DIR [--scale nano]
                                                   [--suite NAME] [RECIPE ...]

The recipes run one after the other, as printed commands; existing results in --runs are reused.
Losses are means per objective of the first step and of the last twenty steps. Minutes are processor
time of the whole command (imports, text, tokenizer, teachers), so that other work on a shared
machine does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from antlm_bench.declarations import list_declarations
from antlm_bench.training.recipe import read_recipe

LAST = 20  # steps
TAUGHT = {"babyllama-distilled": ("llama-360m", "gpt2-705m")}  # recipes of the same table
COLUMNS = [
    "recipe",
    "parameters",
    "epochs",
    "tokens seen",
    "objective",
    "loss before",
    "after",
    "train min",
    "method",
    "score",
    "95% interval",
    "score min",
]


def run_command(*argv: str | Path) -> tuple[str, float]:
    """Run an antlm-bench command; return its output and its minutes of processor time."""
    print("antlm-bench", *argv, file=sys.stderr, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "antlm_bench", *map(str, argv)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return out, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def train_recipe(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a recipe unless its folder exists; return minutes, tokens and losses of its log."""
    folder: Path = options.runs / name
    minutes = folder / "minutes.json"
    teachers = [options.runs / teacher / "main" for teacher in TAUGHT.get(name, ())]
    teacher_options = [part for path in teachers if path.exists() for part in ("--teacher", path)]
    if len(teacher_options) != 2 * len(
        teachers
    ):  # not all of them were asked for: the recipe trains its own
        teacher_options = []
    if not minutes.exists():
        argv = ["--corpus", options.corpus, "--scale", options.scale, "--device", "cpu"]
        _, minutes_taken = run_command("train", name, *argv, "--out", folder, *teacher_options)
        minutes.write_text(json.dumps(minutes_taken), encoding="utf-8")
    records = [
        json.loads(line)
        for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    curves: dict[str, list[float]] = {}
    for record in records:
        for objective, loss in record["loss"].items():
            curves.setdefault(objective, []).append(loss)
    return {
        "minutes": json.loads(minutes.read_text(encoding="utf-8")),
        "tokens": records[-1]["tokens"],
        "losses": {
            name: (curve[0], sum(curve[-LAST:]) / len(curve[-LAST:]))
            for name, curve in curves.items()
        },
    }


def read_epochs(name: str, scale: str) -> str:
    """Return the epochs as `show` prints them: 4 CLM + 16 MLM + 4 CLM."""
    output, _ = run_command("show", name, "--scale", scale)
    line = next(line for line in output.splitlines() if line.split()[:1] == ["objective"])
    return line.split(maxsplit=1)[1].replace(" epochs", "").replace(" epoch", "")


def make_rows(name: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the table rows of one recipe: one per method or objective."""
    log = train_recipe(name, options)
    folder = options.runs / name
    methods = ",".join(read_recipe(name, options.scale).methods)
    argv = ["--model", folder / "main", "--suite", options.suite, "--method", methods]
    argv += ["--allow-incomplete", "--by", "suite", "--out", folder / "score", "--json"]
    out, minutes_taken = run_command("score", *argv)
    [run] = json.loads(out)["runs"]
    parameters = f"{run['manifest']['model']['parameters'] / 1e6:.2f}M"
    description = [
        name,
        parameters,
        read_epochs(name, options.scale),
        f"{log['tokens'] / 1e6:.1f}M",
    ]
    scored = folder / "scored.json"
    if not scored.exists():
        scored.write_text(json.dumps(minutes_taken), encoding="utf-8")
    times = [
        f"{minutes:.1f}"
        for minutes in (log["minutes"], json.loads(scored.read_text(encoding="utf-8")))
    ]
    objectives = [
        [which, f"{before:.2f}", f"{after:.2f}"] for which, (before, after) in log["losses"].items()
    ]
    scores = [
        [cell["method"], *format_estimate(cell["summary"]["headline"])] for cell in run["cells"]
    ]
    height = max(len(objectives), len(scores))
    objectives += [[""] * 3] * (height - len(objectives))
    scores += [[""] * 3] * (height - len(scores))
    lines = zip(objectives, scores, strict=True)
    return [
        [
            *(description if is_first else [""] * 4),
            *loss,
            times[0] if is_first else "",
            *score,
            times[1] if is_first else "",
        ]
        for is_first, (loss, score) in zip([True, *[False] * height], lines, strict=False)
    ]


def dump_recipe(name: str, scale: str) -> str:
    """Return the part of a recipe that affects its weights, without names and notes."""
    return read_recipe(name, scale).model_dump_json(exclude={"name", "title", "sources", "notes"})


def format_estimate(estimate: dict[str, float]) -> tuple[str, str]:
    return (
        f"{100 * estimate['value']:.1f}",
        f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and score every recipe; print the table.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes (default: all)")
    parser.add_argument("--corpus", required=True, help="folder of text, or `nano`")
    parser.add_argument("--runs", required=True, type=Path, help="receives checkpoints and scores")
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--suite", default="blimp-fast")
    options = parser.parse_args()
    names = sorted(
        options.names or list_declarations("models"), key=lambda name: (name in TAUGHT, name)
    )  # teachers first
    table: list[list[str]] = []
    name_by_content: dict[str, str] = {}
    for name in names:
        first_name = name_by_content.setdefault(dump_recipe(name, options.scale), name)
        table += (
            make_rows(name, options)
            if first_name == name
            else [[name, f"as {first_name}: the same at this scale"]]
        )
    for line in (COLUMNS, ["---"] * len(COLUMNS), *table):
        print(f"| {' | '.join([*line, *[''] * (len(COLUMNS) - len(line))])} |")


if __name__ == "__main__":
    main()
