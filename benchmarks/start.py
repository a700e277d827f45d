"""What starting a command costs: CPU seconds until help, an error or finished results are printed.

    python benchmarks/start.py [--rounds 5] [--model CKPT]

Prints a table: CPU seconds (user and system, of the process and its children, the smallest of the
rounds) and wall-clock seconds (likewise) of each start, and the ratios of its CPU seconds to those
of `python -c pass` and `python -c "import torch"`. Starts take turns, so that all see the same load
of the machine. Exits with 1 if a start needs more CPU seconds than its target.

--model: a checkpoint to score; default: a tiny Llama with random weights, which is saved first. The
first `score` is not measured; the second one finds its results finished, and is: on `nano` and,
where ANTLM_BENCH_DATA holds its files, on BLiMP. Runs lie in a temporary folder, with a cache of
their own.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

PYTHON, COMMAND = (sys.executable, "-c"), (sys.executable, "-m", "antlm_bench")
BARE, TORCH = "python -c pass", "import torch"
HELP_TARGET, NAME_TARGET, FINISHED_TARGET, IMPORT_TARGET = 0.5, 1.0, 1.5, 0.1
"""CPU seconds."""
GROUPS = {"data": ("list", "fetch", "verify", "where"), "baseline": ("save", "list")}


@dataclass
class Start:
    """A process that is started several times."""

    name: str
    argv: tuple[str, ...]
    exit_code: int = 0
    target: float | None = None
    """Largest CPU seconds; None = no target."""
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        """Run the process once. Raises RuntimeError for another exit code."""
        before, start_time = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment = {**os.environ, "ANTLM_BENCH_CACHE": str(folder / "cache")}
        process = subprocess.run(
            self.argv, cwd=folder, capture_output=True, text=True, env=environment, check=False
        )
        self.wall.append(time.perf_counter() - start_time)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if process.returncode != self.exit_code:
            raise RuntimeError(f"{self.name}: exit code {process.returncode}\n{process.stderr}")

    @property
    def misses_target(self) -> bool:
        return self.target is not None and min(self.cpu) > self.target


def list_starts(model: str) -> list[Start]:
    """Return what is measured. Its commands run in a folder with `run`, `empty` and `pairs.csv`."""
    from antlm_bench.cli.app import COMMANDS

    help_pages = [(), *((name,) for name in COMMANDS)]
    help_pages += [(group, name) for group, names in GROUPS.items() for name in names]
    score, score_blimp = build_score(model, "nano"), build_score(model, "blimp")
    finetune = ("finetune", "--suite", "glue-2025")
    surprisal = ("surprisal", "--in", "texts.txt", "--out", "table.csv")
    commands: list[tuple[str, tuple[str, ...], int, float | None]] = [
        ("suite misspelt", ("score", "--model", model, "--suite", "blimb"), 2, NAME_TARGET),
        ("model misspelt", ("score", "--model", "./nope", "--suite", "nano"), 3, NAME_TARGET),
        ("no config.json", ("score", "--model", "empty", "--suite", "nano"), 3, NAME_TARGET),
        ("method misspelt", (*score, "--method", "mlmm"), 2, NAME_TARGET),
        ("device misspelt", (*score, "--device", "gpu"), 2, NAME_TARGET),
        ("option misspelt", (*score, "--limits", "3"), 2, NAME_TARGET),
        ("task misspelt", (*finetune, "--model", model, "--task", "rtee"), 2, NAME_TARGET),
        ("model misspelt", (*finetune, "--model", "./nope"), 3, NAME_TARGET),
        ("recipe misspelt", ("train", "nanoo", "--corpus", "nano", "--out", "o"), 2, NAME_TARGET),
        ("model misspelt", (*surprisal, "--model", "./nope"), 3, NAME_TARGET),
        ("suite misspelt", ("verify", "--model", model, "--suite", "nanoo"), 2, NAME_TARGET),
        ("suite misspelt", ("noise", "--model", model, "--suite", "nanoo"), 2, NAME_TARGET),
        ("suite misspelt", ("plan", "--model", model, "--suite", "nanoo"), 2, NAME_TARGET),
        ("run misspelt", ("compare", "runn", "run"), 3, NAME_TARGET),
        ("run misspelt", ("check", "runn", "--against", "run"), 3, NAME_TARGET),
        ("run misspelt", ("report", "runn"), 3, NAME_TARGET),
        ("list", ("list",), 0, NAME_TARGET),
        ("finished", score, 0, FINISHED_TARGET),
        *[("BLiMP, finished", score_blimp, 0, FINISHED_TARGET)] * has_blimp(),
        ("finished", ("report", "run"), 0, FINISHED_TARGET),
        ("finished", ("compare", "run", "run"), 0, FINISHED_TARGET),
        ("finished", ("check", "run", "--against", "run"), 0, FINISHED_TARGET),
        ("everything again", (*score, "--again"), 0, None),
    ]
    return [
        Start(BARE, (*PYTHON, "pass")),
        Start("import antlm_bench", (*PYTHON, "import antlm_bench"), target=IMPORT_TARGET),
        Start(TORCH, (*PYTHON, "import torch")),
        Start("import torch, transformers", (*PYTHON, "import torch, transformers")),
        *(
            Start(" ".join((*words, "--help")), (*COMMAND, *words, "--help"), target=HELP_TARGET)
            for words in help_pages
        ),
        *(
            Start(f"{words[0]}: {case}" if case != words[0] else case, (*COMMAND, *words), code, t)
            for case, words, code, t in commands
        ),
    ]


def has_blimp() -> bool:
    """Return whether the files of BLiMP are here."""
    folder = os.environ.get("ANTLM_BENCH_DATA")
    return folder is not None and (Path(folder) / "blimp").is_dir()


def build_score(model: str, suite: str) -> tuple[str, ...]:
    """Return the command that scores a suite, which need not be complete."""
    out = "run" if suite == "nano" else f"run-{suite}"
    words = ("score", "--model", model, "--suite", suite, "--out", out)
    return (*words, "--allow-incomplete") if suite == "blimp" else words


def prepare(folder: Path, model: str) -> str:
    """Make the files that the commands read. Return the checkpoint."""
    (folder / "empty").mkdir()
    (folder / "texts.txt").write_text("The cats sleep.\n")
    if not model:
        from antlm_bench.sweeps.calibration import save_random_model

        model = str(folder / "model")
        save_random_model(Path(model), 32, 1)
    for suite in ("nano", *["blimp"] * has_blimp()):
        Start("score", (*COMMAND, *build_score(model, suite))).run(folder)
    return model


def format_table(starts: list[Start]) -> list[str]:
    """Return the table in Markdown. The help pages of commands are one row: the slowest."""
    bare, torch = (next(min(s.cpu) for s in starts if s.name == name) for name in (BARE, TORCH))
    help_pages = [start for start in starts if start.name.endswith("--help")]
    slowest = max(help_pages, key=lambda start: min(start.cpu))
    lines = ["| start | CPU s | target | wall s | x python | x torch |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for start in starts:
        if start in help_pages and start is not slowest:
            continue
        name = start.name
        if start is slowest:
            name = f"slowest of {len(help_pages)} help pages: {name}"
        cpu, target = min(start.cpu), "" if start.target is None else f"{start.target:g}"
        lines.append(
            f"| {name} | {cpu:.2f} | {target} | {min(start.wall):.2f} | {cpu / bare:.0f} "
            f"| {cpu / torch:.2f} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="", metavar="CKPT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts = list_starts(prepare(folder, options.model))
        for _ in range(options.rounds):
            for start in starts:
                start.run(folder)
        print("\n".join(format_table(starts)))
    missed = [start for start in starts if start.misses_target]
    for start in missed:
        print(f"missed: {start.name}: {min(start.cpu):.2f} CPU s", file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
