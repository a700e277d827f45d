"""BabyLM's 2025 zero-shot set on one and on many checkpoints: ours beside the official pipeline.

    BABYLM_EVAL_2025=DIR python benchmarks/challenge.py [causal] [masked] [--size tiny|benchmark]
        [--limit 10] [--checkpoints 1,19] [--more-items 10] [--rounds 1] [--threads 1]

BABYLM_EVAL_2025 is a checkout of babylm/evaluation-pipeline-2025; without it, the columns of the
official pipeline are empty. Data: the suites of the collection zero-shot-2025 whose files are in
ANTLM_BENCH_DATA, cut to the first --limit items of every paradigm. Nothing is downloaded.

Checkpoints have the architecture and the tokenizer of benchmarks/checkpoints.py, random weights
(each its own), and --size benchmark (58M and 24M parameters; 19 Llamas take 5 GB of disk) or tiny.

Ours is one `score` command for all checkpoints, with `--compat babylm-2025`. The official pipeline
runs as shipped: each command of its eval_zero_shot.sh whose data are at hand, for each checkpoint,
one after the other. Both have the same threads and take turns; each process starts fresh, with an
empty cache. Prints per kind:

- seconds, and how many times as long the official pipeline takes, for each number of checkpoints
  (smallest of the rounds; CPU seconds are those of all processes);
- the peak memory of the largest process against the number of checkpoints, and of items
  (--limit and --more-items times as many per paradigm);
- the CPU seconds of each phase of our command (benchmarks/score_profile.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CHECKOUT_VARIABLE = "BABYLM_EVAL_2025"
COLLECTION, COMPAT = "zero-shot-2025", "babylm-2025"
METHODS = {"causal": "causal", "masked": "mlm"}
"""Kind of checkpoint -> our method, which is also the official --backend."""
MIN_LIMIT = 3
"""Items per paradigm: the WUG suites correlate ratings, which fewer items leave undefined."""
TINY_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
OFFICIAL_FOLDERS = {
    "blimp-filtered": "blimp_filtered",
    "supplement": "supplement_filtered",
    "ewok-2025": "ewok_filtered",
    "entity-tracking-2025": "entity_tracking",
    "comps": "comps",
    "wug-adj": "wug_adj_nominalization",
    "wug-past": "wug_past_tense",
}
"""Suite -> its folder in the official evaluation data."""
PROFILE = Path(__file__).with_name("score_profile.py")
LAUNCHER = """\
import json, os, resource, subprocess, sys, time
start = time.perf_counter()
with open(sys.argv[1], "wb") as log:
    code = subprocess.run(sys.argv[2:], stdout=log, stderr=log).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = usage.ru_utime + usage.ru_stime
print(json.dumps([code, time.perf_counter() - start, cpu, usage.ru_maxrss / 1024]))
"""
"""A small process between this one and the measured one: ru_maxrss counts the parent, too."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one or several processes needed."""

    wall: float = 0.0
    """Seconds; the processes ran one after the other."""
    cpu: float = 0.0
    """CPU seconds, user and system."""
    megabytes: float = 0.0
    """Peak memory (resident) of the largest process."""

    def __add__(self, other: Usage) -> Usage:
        peak = max(self.megabytes, other.megabytes)
        return Usage(self.wall + other.wall, self.cpu + other.cpu, peak)

    def smallest(self, other: Usage) -> Usage:
        """Return the smaller value of each field."""
        return Usage(
            min(self.wall, other.wall),
            min(self.cpu, other.cpu),
            min(self.megabytes, other.megabytes),
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """The data that are at hand, cut to a number of items per paradigm."""

    limit: int
    suites: tuple[str, ...]
    num_items: int
    folder: Path
    """The same items as files of the official pipeline."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all measurements share."""

    folder: Path
    checkpoints: tuple[Path, ...]
    method: str
    threads: int
    checkout: Path | None
    """The official pipeline."""

    def run(self, argv: Sequence[str | Path], working_dir: Path) -> Usage:
        """Run a process. Raises RuntimeError with its output if it fails."""
        log = working_dir / "log"
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            environment = {
                **os.environ,
                "ANTLM_BENCH_CACHE": cache,
                "HF_HUB_OFFLINE": "1",
                "HF_DATASETS_OFFLINE": "1",
                "OMP_NUM_THREADS": str(self.threads),
                "TOKENIZERS_PARALLELISM": "false",
            }
            command = [sys.executable, "-c", LAUNCHER, str(log), *map(str, argv)]
            printed = subprocess.run(
                command, cwd=working_dir, env=environment, check=True, stdout=subprocess.PIPE
            ).stdout
        code, wall, cpu, megabytes = json.loads(printed)
        if code:
            text = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"exit code {code}: {shlex.join(command[3:])}\n{text}")
        return Usage(wall, cpu, megabytes)

    def score_words(self, sample: Sample, count: int, out: Path) -> list[str | Path]:
        """Return the words of our command for the first `count` checkpoints."""
        models = [word for path in self.checkpoints[:count] for word in ("--model", path)]
        settings = ("--method", self.method, "--compat", COMPAT, "--limit", str(sample.limit))
        suites = ("--suite", ",".join(sample.suites), "--allow-incomplete")
        return ["score", *models, *suites, *settings, "--out", out, "--by", "suite"]

    def measure_ours(self, sample: Sample, count: int) -> Usage:
        """Run our command."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            words = self.score_words(sample, count, Path(name) / "runs")
            return self.run([sys.executable, "-m", "antlm_bench", *words], Path(name))

    def measure_official(self, sample: Sample, count: int) -> Usage:
        """Run the official commands of each checkpoint, from the checkout."""
        assert self.checkout is not None
        total = Usage()
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            for checkpoint in self.checkpoints[:count]:
                for argv in list_official_commands(
                    self.checkout, checkpoint, self.method, sample.folder
                ):
                    command = [*argv, "--output_dir", str(Path(name) / "results")]
                    # The official modules are found in the working directory of their process.
                    program = (
                        f"import os, sys; os.chdir({str(self.checkout)!r}); "
                        "os.execv(sys.argv[1], sys.argv[1:])"
                    )
                    total += self.run([sys.executable, "-c", program, *command], Path(name))
        return total

    def profile(self, sample: Sample, count: int) -> dict[str, Any]:
        """Return the record of benchmarks/score_profile.py."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            record, out = Path(name) / "profile.json", Path(name) / "runs"
            words = self.score_words(sample, count, out)
            self.run([sys.executable, PROFILE, record, *words], Path(name))
            profile: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
            return profile


def read_official_script(checkout: Path) -> str:
    """Return the script of the zero-shot evaluation. Raises RuntimeError if it is missing."""
    script = checkout / "eval_zero_shot.sh"
    if not script.is_file():
        raise RuntimeError(
            f"{script} is missing: {CHECKOUT_VARIABLE} must name a checkout of "
            "babylm/evaluation-pipeline-2025"
        )
    return script.read_text(encoding="utf-8")


def list_official_commands(
    checkout: Path, checkpoint: Path, backend: str, data: Path
) -> list[list[str]]:
    """Return the commands of eval_zero_shot.sh whose data folders are in `data`."""
    variables = {
        "MODEL_PATH": str(checkpoint),
        "BACKEND": backend,
        "BACKEND_READ": backend,
        "EVAL_DIR": str(data),
    }

    def insert(match: re.Match[str]) -> str:
        return variables.get(match[1], match[0])

    commands = []
    for line in read_official_script(checkout).splitlines():
        if not line.startswith("python -m evaluation_pipeline."):
            continue
        words = [re.sub(r"\$\{?(\w+)\}?", insert, word) for word in shlex.split(line)]
        if Path(words[words.index("--data_path") + 1]).is_dir():
            commands.append([sys.executable, *words[1:]])
    return commands


def iterate_records(suite: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file name, record) of each row of a suite's data files, in order."""
    from antlm_bench.suites import loader, records, sources

    spec, folder = loader.read_suite_spec(suite)
    assert spec.data is not None  # no suite of the collection has a grammar
    for file in spec.data.files:
        content = sources.get_file(spec, file, folder)
        for name, location, raw in records.split_archive(content.raw, file, content.location):
            for _, record in records.read_records(raw, name, location):
                yield name, record


def write_official_files(suite: str, limit: int, folder: Path) -> int:
    """Write the first rows of every paradigm as JSONL files. Return their number."""
    from antlm_bench.suites import loader

    spec, _ = loader.read_suite_spec(suite)
    template = spec.labels[spec.finest_level or ""]
    counts: dict[str, int] = {}
    lines: dict[str, list[str]] = {}
    for file, record in iterate_records(suite):
        name = Path(file.removesuffix(".gz")).name
        paradigm = template.format(**record | {"stem": Path(name).stem})
        counts[paradigm] = counts.get(paradigm, 0) + 1
        if counts[paradigm] <= limit:
            lines.setdefault(name, []).append(json.dumps(record, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True)
    for name, rows in lines.items():
        (folder / name).write_text("".join(rows), encoding="utf-8")
    return sum(map(len, lines.values()))


def make_sample(limit: int, folder: Path, checkout: Path | None) -> Sample:
    """Load the suites whose data are at hand, and write their items for the official pipeline.

    checkout: suites without a command in its script are left out; None = write no files. Raises
    RuntimeError if there are no data, or if the number of rows written is not that of the items.
    """
    from antlm_bench.errors import DataError
    from antlm_bench.suites import loader

    num_items: dict[str, int] = {}
    script = None if checkout is None else read_official_script(checkout)
    for name in loader.list_suite_refs([COLLECTION]):
        if script is not None and f"}}/{OFFICIAL_FOLDERS[name]}" not in script:
            print(f"without {name}: eval_zero_shot.sh has no command for it")
            continue
        try:
            suite = loader.load_suite(name, limit=limit, allow_incomplete=True)
        except DataError as error:
            print(f"without {name}: {str(error).splitlines()[0]}")
            continue
        num_items[name] = len(suite.items)
        if checkout is not None:
            num_rows = write_official_files(name, limit, folder / OFFICIAL_FOLDERS[name])
            if num_rows != len(suite.items):
                raise RuntimeError(f"{name}: {num_rows} rows are not {len(suite.items)} items")
    if not num_items:
        raise RuntimeError(f"no data of {COLLECTION} are at hand: set ANTLM_BENCH_DATA")
    return Sample(limit, tuple(num_items), sum(num_items.values()), folder)


def make_checkpoints(kind: str, size: str, count: int, folder: Path, texts: Sequence[str]) -> None:
    """Save checkpoints 0 to count - 1 with the same tokenizer and different random weights."""
    import checkpoints
    import torch

    from antlm_bench.checkpoints.pretrained import silence_transformers

    tokenizer = checkpoints.train_tokenizer(kind, list(texts))
    for seed in range(count):
        torch.manual_seed(seed)
        with silence_transformers():
            model = checkpoints.build_model(kind, TINY_SIZES if size == "tiny" else {})
            model.save_pretrained(folder / f"{kind}-{seed:02}")
            tokenizer.save_pretrained(folder / f"{kind}-{seed:02}")


def list_texts(sample: Sample) -> list[str]:
    """Return the texts of all options, on which the tokenizer is trained."""
    from antlm_bench.suites import loader

    suites = (
        loader.load_suite(n, limit=sample.limit, allow_incomplete=True) for n in sample.suites
    )
    return [option.text for suite in suites for item in suite.items for option in item.options]


def format_speeds(
    ours: dict[int, Usage], official: dict[int, Usage], sample: Sample, reason: str
) -> list[str]:
    """Return the table of seconds. reason: why the official columns are empty."""
    lines = ["| checkpoints | items | ours, s | ours, CPU s | official, s | official, CPU s |"]
    lines[0] += " official / ours, s | official / ours, CPU s |"
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count, own in ours.items():
        line = f"| {count} | {count * sample.num_items:,} | {own.wall:.1f} | {own.cpu:.1f} "
        if peer := official.get(count):
            line += f"| {peer.wall:.1f} | {peer.cpu:.1f} "
            line += f"| {peer.wall / own.wall:.1f} | {peer.cpu / own.cpu:.1f} |"
        else:
            line += "|  |  |  |  |"
        lines.append(line)
    return [*lines, f"official: empty, because {reason}"] if reason else lines


def format_memory(rows: Sequence[tuple[int, int, Usage, Usage | None]]) -> list[str]:
    """Return the table of (checkpoints, items of each, ours, official)."""
    lines = ["| checkpoints | items of each | ours, peak MB | official, peak MB |"]
    lines.append("| ---: | ---: | ---: | ---: |")
    for count, num_items, own, peer in rows:
        peer_cell = "" if peer is None else f"{peer.megabytes:.0f}"
        lines.append(f"| {count} | {num_items:,} | {own.megabytes:.0f} | {peer_cell} |")
    return lines


def format_phases(profiles: dict[int, dict[str, Any]]) -> list[str]:
    """Return the table of phases: CPU seconds and entries for each number of checkpoints."""
    from score_profile import PHASES

    columns = [f"CPU s, {count} | times, {count}" for count in profiles]
    lines = [f"| phase | {' | '.join(columns)} |", "| --- |" + " ---: |" * 2 * len(columns)]
    for phase in PHASES:
        cells = [
            f"{profile['seconds'].get(phase, 0):.2f} | {profile['calls'].get(phase, 0):,}"
            for profile in profiles.values()
        ]
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    for count, profile in profiles.items():
        total, different = profile["texts"]
        lines.append(f"{count} checkpoints: {total:,} texts tokenized, {different:,} different")
    return lines


def compare(bench: Bench, samples: Sequence[Sample], counts: Sequence[int], rounds: int) -> None:
    """Measure and print the tables. samples: two sizes; the first one is timed."""
    sample, larger = samples
    ours: dict[int, Usage] = {}
    official: dict[int, Usage] = {}
    for _ in range(rounds):
        for count in counts:
            usage = bench.measure_ours(sample, count)
            ours[count] = usage.smallest(ours.get(count, usage))
            if bench.checkout is not None:
                usage = bench.measure_official(sample, count)
                official[count] = usage.smallest(official.get(count, usage))
    reason = "" if bench.checkout else f"{CHECKOUT_VARIABLE} names no checkout of the pipeline"
    print("\n".join(format_speeds(ours, official, sample, reason)), end="\n\n", flush=True)
    rows = [(count, sample.num_items, ours[count], official.get(count)) for count in counts]
    peer = bench.measure_official(larger, counts[0]) if bench.checkout else None
    rows.append((counts[0], larger.num_items, bench.measure_ours(larger, counts[0]), peer))
    print("\n".join(format_memory(rows)), end="\n\n", flush=True)
    profiles = {count: bench.profile(sample, count) for count in counts}
    print("\n".join(format_phases(profiles)), end="\n\n", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=["causal"])
    parser.add_argument("--size", choices=("tiny", "benchmark"), default="tiny")
    parser.add_argument("--limit", type=int, default=10, help="items per paradigm")
    parser.add_argument("--checkpoints", default="1,19", help="numbers of checkpoints")
    parser.add_argument("--more-items", type=int, default=10, help="times --limit, for memory")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.limit < MIN_LIMIT:
        parser.error(f"--limit {arguments.limit}: correlations need {MIN_LIMIT} items or more")
    if unknown := set(arguments.kinds) - set(METHODS):
        parser.error(f"unknown kind {sorted(unknown)[0]!r}; use {' or '.join(METHODS)}")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    os.environ["HF_HUB_OFFLINE"] = "1"
    counts = sorted({int(count) for count in arguments.checkpoints.split(",")})
    checkout_name = os.environ.get(CHECKOUT_VARIABLE)
    checkout = Path(checkout_name).resolve() if checkout_name else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(
            folder, (), "", arguments.threads, Path(checkout).resolve() if checkout else None
        )
        limits = arguments.limit, arguments.limit * arguments.more_items
        samples = [make_sample(n, folder / f"data-{n}", bench.checkout) for n in limits]
        texts = list_texts(samples[0])
        for kind in arguments.kinds:
            make_checkpoints(kind, arguments.size, counts[-1], folder, texts)
            checkpoints = tuple(sorted(folder.glob(f"{kind}-*")))
            print(f"## {kind}, {arguments.size}, {arguments.threads} threads\n", flush=True)
            bench = replace(bench, checkpoints=checkpoints, method=METHODS[kind])
            compare(bench, samples, counts, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
