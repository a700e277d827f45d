"""Every recipe, trained at a small scale and scored on a fast suite: the table of docs/recipes.md.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --corpus DIR --runs DIR [--scale nano] [--suite NAME] [RECIPE ...]

One recipe after the other, as the commands that it prints; what --runs already holds is not
computed again. Losses are means per objective: of the first step, and of the last twenty that
trained it. Minutes are processor time of the whole command (imports, reading the text, the
tokenizer, teachers trained first): with one thread on an idle machine also the time that passes,
and on a shared one what others do does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from antlm_bench.declarations import catalog
from antlm_bench.training.recipe import read_recipe

LAST = 20  # steps
TAUGHT = {"babyllama-distilled": ("llama-360m", "gpt2-705m")}  # by rows of this very table
COLUMNS = ("recipe", "parameters", "epochs", "tokens seen", "objective", "loss before", "after", "train min",
           "method", "score", "95% interval", "score min")  # fmt: skip


def call(*argv: str | Path) -> tuple[str, float]:
    """What a command of ours prints, and its minutes on a core; the command itself goes to stderr."""
    print("antlm-bench", *argv, file=sys.stderr, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "antlm_bench", *map(str, argv)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return out, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def trained(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a recipe unless that is done; what its log says."""
    folder: Path = options.runs / name
    minutes = folder / "minutes.json"
    teachers = [options.runs / teacher / "main" for teacher in TAUGHT.get(name, ())]
    given = [part for path in teachers if path.exists() for part in ("--teacher", path)]
    if len(given) != 2 * len(teachers):  # not all of them were asked for: the recipe trains its own
        given = []
    if not minutes.exists():
        _, took = call("train", name, "--corpus", options.corpus, "--scale", options.scale, "--device", "cpu",
                       "--out", folder, *given)  # fmt: skip
        minutes.write_text(json.dumps(took), encoding="utf-8")
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


def epochs(name: str, scale: str) -> str:
    """As `show` says it: 4 CLM + 16 MLM + 4 CLM."""
    shown, _ = call("show", name, "--scale", scale)
    line = next(line for line in shown.splitlines() if line.split()[:1] == ["objective"])
    return line.split(maxsplit=1)[1].replace(" epochs", "").replace(" epoch", "")


def rows(name: str, options: argparse.Namespace) -> list[list[str]]:
    """The lines of one recipe: as many as it has methods, or objectives."""
    log = trained(name, options)
    folder = options.runs / name
    methods = ",".join(read_recipe(name, options.scale).methods)
    out, took = call(
        "score",
        "--model",
        folder / "main",
        "--suite",
        options.suite,
        "--method",
        methods,
        # fmt: skip
        "--allow-incomplete",
        "--by",
        "suite",
        "--out",
        folder / "score",
        "--json",
    )
    [run] = json.loads(out)["runs"]
    parameters = f"{run['manifest']['model']['parameters'] / 1e6:.2f}M"
    about = [name, parameters, epochs(name, options.scale), f"{log['tokens'] / 1e6:.1f}M"]
    scored = folder / "scored.json"
    if not scored.exists():
        scored.write_text(json.dumps(took), encoding="utf-8")
    times = [
        f"{minutes:.1f}"
        for minutes in (log["minutes"], json.loads(scored.read_text(encoding="utf-8")))
    ]
    objectives = [
        [which, f"{before:.2f}", f"{after:.2f}"] for which, (before, after) in log["losses"].items()
    ]
    scores = [[cell["method"], *shown(cell["summary"]["headline"])] for cell in run["cells"]]
    height = max(len(objectives), len(scores))
    objectives += [[""] * 3] * (height - len(objectives))
    scores += [[""] * 3] * (height - len(scores))
    lines = zip(objectives, scores, strict=True)
    return [
        [
            *(about if top else [""] * 4),
            *loss,
            times[0] if top else "",
            *score,
            times[1] if top else "",
        ]
        for top, (loss, score) in zip([True, *[False] * height], lines, strict=False)
    ]


def content(name: str, scale: str) -> str:
    """All of a recipe that moves a weight: two that differ in name only make the same model."""
    return read_recipe(name, scale).model_dump_json(exclude={"name", "title", "sources", "notes"})


def shown(estimate: dict[str, float]) -> tuple[str, str]:
    return (
        f"{100 * estimate['value']:.1f}",
        f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and score every recipe; print the table.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes (default: all of them)")
    parser.add_argument("--corpus", required=True, help="folder of text, or `nano`")
    parser.add_argument("--runs", required=True, type=Path, help="receives checkpoints and scores")
    parser.add_argument("--scale", default="nano")
    parser.add_argument("--suite", default="blimp-fast")
    options = parser.parse_args()
    known = sorted(
        options.names or catalog("models"), key=lambda name: (name in TAUGHT, name)
    )  # teachers first
    table: list[list[str]] = []
    made: dict[str, str] = {}
    for name in known:
        same = made.setdefault(content(name, options.scale), name)
        table += (
            rows(name, options) if same == name else [[name, f"as {same}: the same at this scale"]]
        )
    for line in (COLUMNS, ["---"] * len(COLUMNS), *table):
        print(f"| {' | '.join([*line, *[''] * (len(COLUMNS) - len(line))])} |")


if __name__ == "__main__":
    main()
