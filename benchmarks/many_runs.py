"""Many run folders: time and memory of the commands that read them, over the number of runs.

    python benchmarks/many_runs.py [--runs 50 200 1000] [--only TEXT]

Writes run folders of two suites with 500 minimal pairs each, as `score` writes them, with
predictions drawn at random, and runs each command over the first n of them in a process of its own.
Prints seconds (user and system time; the time with two runs, which is mostly the start of Python
and imports, is subtracted), peak memory, the size of the output, and the ratio of the time with the
most runs to the time with the second most. Linear time is the ratio of the numbers of runs (1000 /
200 = 5.0). Exit code 1: a command takes more than MAX_EXCESS times as long as linear time. Most
of it is for the paired tests of `compare`: --only report leaves them out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from antlm_bench import metrics
from antlm_bench.predictions import OptionColumns, Predictions
from antlm_bench.runs import SCHEMA_VERSION, encode_cell
from antlm_bench.runs.run_json import encode_run_json
from antlm_bench.types import Cell, Item, Manifest, Option

MAX_EXCESS = 1.3
"""Largest factor over linear time that is not called a failure."""
MIN_SECONDS = 0.5
"""Shorter times are mostly noise: they are not judged, and a ratio to them is to this time."""
CHECKPOINTS_PER_MODEL = 20
MILESTONES = [*range(1, 11), *range(20, 101, 10), 200]
PARADIGMS: Mapping[str, int] = {"blimp-fast": 50, "supplement-fast": 5}
"""Suite -> number of paradigms, of equal numbers of items."""
ITEMS_PER_SUITE = 500
NUM_DRAWS = 23
"""Number of different predictions that are drawn for each suite."""
COMPARED_RUNS = 2


class Result(NamedTuple):
    """What one process took."""

    seconds: float
    """User and system time."""
    megabytes: float
    """Peak resident memory."""
    output_megabytes: float


@dataclass(frozen=True)
class Command:
    """A command that is measured."""

    name: str
    arguments: tuple[str, ...]
    """Arguments before the run folders. OUT stands for a file or folder to write."""
    layout: str = "models"
    """`models`: every run is a model of its own. `series`: 20 checkpoints per model."""


COMMANDS = (
    Command("report", ("report",)),
    Command("report --format json", ("report", "--format", "json")),
    Command("report --format csv", ("report", "--format", "csv")),
    Command("report --format markdown", ("report", "--format", "markdown")),
    Command("report --html", ("report", "--html", "OUT.html")),
    Command("report --html, 20 checkpoints per model", ("report", "--html", "OUT.html"), "series"),
    Command("report --svg", ("report", "--svg", "OUT"), "series"),
    Command("report --provenance", ("report", "--provenance")),
    Command("compare, two of n runs", ("compare",)),
    Command("compare, all with the first", ("compare",)),
    Command("compare --format json, all", ("compare", "--format", "json")),
    Command("curve", ("curve",), "series"),
    Command("curve --format csv", ("curve", "--format", "csv"), "series"),
    Command("curve --svg", ("curve", "--svg", "OUT.svg"), "series"),
    Command("export --format csv", ("export", "--format", "csv", "--out", "OUT.csv")),
    Command("export --format lm-eval", ("export", "--format", "lm-eval", "--out", "OUT")),
    Command(
        "export --format every-eval-ever", ("export", "--format", "every-eval-ever", "--out", "OUT")
    ),
)


def make_items(suite: str) -> list[Item]:
    """Make the minimal pairs of a suite, in paradigms of equal size."""
    num_paradigms = PARADIGMS[suite]
    options = (Option("a sentence"), Option("a sentence's"))
    return [
        Item(
            f"{suite}.{index}",
            options,
            gold=0,
            labels={
                "phenomenon": f"phenomenon_{index % num_paradigms % 12}",
                "paradigm": f"paradigm_{index % num_paradigms}",
            },
        )
        for index in range(ITEMS_PER_SUITE)
    ]


def draw_predictions(items: list[Item], skill: float, seed: int) -> Predictions:
    """Draw log-probabilities of minimal pairs, of which a share `skill` is right on average."""
    random = np.random.default_rng(seed)
    gaps = np.abs(random.normal(size=len(items))) + 0.01
    gaps[random.uniform(size=len(items)) > skill] *= -1
    scores = -30 - 5 * np.abs(random.normal(size=len(items)))
    return Predictions.build(
        items,
        (gaps < 0).astype(np.int32),
        OptionColumns(
            counts=np.full(len(items), 2, np.int32),
            scores=np.stack([scores, scores - gaps], axis=1).ravel(),
            tokens=np.full(2 * len(items), 9, np.int32),
            characters=np.full(2 * len(items), 40, np.int32),
        ),
    )


def draw_cells(items_by_suite: Mapping[str, list[Item]], seed: int) -> list[tuple[Cell, bytes]]:
    """Return a cell per suite with the bytes of its predictions, for a model of random skill."""
    skill = 0.55 + 0.3 * np.random.default_rng([seed, 1]).uniform()
    cells = []
    for suite, items in items_by_suite.items():
        predictions = draw_predictions(items, skill, seed)
        summary = metrics.summarize(
            predictions,
            suite=suite,
            method="causal",
            metric="accuracy",
            macro=["paradigm"],
            groups=["phenomenon", "paradigm"],
        )
        settings: dict[str, object] = {
            "suite": suite,
            "suite_digest": suite,
            "ties": "half",
            "dtype": "float32",
        }
        settings |= {"method": "causal", "limit": None, "bos": "auto", "reduction": "sum"}
        cell = Cell(suite, "causal", f"{seed:064x}", settings, summary)
        cells.append(encode_cell(cell, predictions))
    return cells


def write_run(
    run_dir: Path, model: Mapping[str, object], cells: Sequence[tuple[Cell, bytes]]
) -> None:
    """Write a run folder as a RunWriter would, but without waiting for the disk."""
    (run_dir / "predictions").mkdir(parents=True)
    files = [f"predictions/{cell.suite}.{cell.method}.parquet" for cell, _ in cells]
    for file, (_, data) in zip(files, cells, strict=True):
        (run_dir / file).write_bytes(data)
    software = {"antlm-bench": "0", "torch": "2"}
    manifest = Manifest(SCHEMA_VERSION, dict(model), software, "2026-01-01T00:00:00+00:00")
    document = encode_run_json(manifest, [cell for cell, _ in cells], files)
    (run_dir / "run.json").write_bytes(document)


def write_runs(folder: Path, layout: str, num_runs: int) -> list[Path]:
    """Write run folders of NUM_DRAWS models, again and again under other names."""
    items_by_suite = {suite: make_items(suite) for suite in PARADIGMS}
    draws = [draw_cells(items_by_suite, seed) for seed in range(min(NUM_DRAWS, num_runs))]
    run_dirs = []
    for index in range(num_runs):
        model_index, checkpoint = divmod(index, CHECKPOINTS_PER_MODEL)
        if layout == "models":
            name, parent = f"model-{index:04}", "models"
        else:
            name, parent = f"chck_{MILESTONES[checkpoint]}M", f"models/model-{model_index:04}"
        model = {
            "name": name,
            "given": f"{parent}/{name}",
            "weights": f"{index:064x}",
            "architecture": "LlamaForCausalLM",
            "tokenizer": "t",
            "parameters": 24_500_000,
        }
        run_dirs.append(folder / layout / f"run-{index:04}")
        write_run(run_dirs[-1], model, draws[index % len(draws)])
    return run_dirs


def measure(command: Command, run_dirs: list[Path], folder: Path) -> Result:
    """Run a command over run folders in a process of its own, with its output in a file."""
    out = folder / "out"
    arguments = [argument.replace("OUT", str(out)) for argument in command.arguments]
    stdout = folder / "stdout"
    argv = [sys.executable, "-m", "antlm_bench", *arguments, *map(str, run_dirs)]
    with stdout.open("wb") as file:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {' '.join(argv[:8])}")
    files = [path for path in (stdout, *folder.glob("out*"), *out.rglob("*")) if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    return Result(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, num_bytes / 1e6)


def iter_inputs(command: Command, counts: list[int], run_dirs: list[Path]) -> Iterator[list[Path]]:
    """Yield the run folders of each measurement, the first with two runs."""
    for count in (COMPARED_RUNS, *counts):
        if command.name.startswith("compare, two"):
            yield [run_dirs[0], run_dirs[count - 1]]
        else:
            yield run_dirs[:count]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--only", default="", help="commands whose name contains this text")
    options = parser.parse_args()
    counts = sorted(options.runs)
    commands = [command for command in COMMANDS if options.only in command.name]
    failures = 0
    with tempfile.TemporaryDirectory() as root:
        run_dirs = {
            layout: write_runs(Path(root), layout, counts[-1])
            for layout in dict.fromkeys(command.layout for command in commands)
        }
        print(f"{'runs':40}" + "".join(f"{count:>26}" for count in counts) + "      ratio")
        for command in commands:
            results = []
            for dirs in iter_inputs(command, counts, run_dirs[command.layout]):
                with tempfile.TemporaryDirectory(dir=root) as out:
                    results.append(measure(command, dirs, Path(out)))
            start, *results = results
            seconds = [result.seconds - start.seconds for result in results]
            columns = "".join(
                f"{second:7.2f} s {result.megabytes:5.0f} MB {result.output_megabytes:5.1f} MB"
                for second, result in zip(seconds, results, strict=True)
            )
            ratio, verdict = seconds[-1] / max(seconds[-2], MIN_SECONDS), ""
            if seconds[-1] >= MIN_SECONDS:
                is_linear = ratio <= MAX_EXCESS * counts[-1] / counts[-2]
                verdict = "ok" if is_linear else "TOO MUCH"
                failures += not is_linear
            print(f"{command.name:40}{columns} {ratio:6.2f} {verdict}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
