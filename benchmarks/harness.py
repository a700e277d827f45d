"""lm-eval's requests answered by our engine and by lm-eval's own model: same checkpoint, requests,
threads, in turns.

    python benchmarks/harness.py [--rounds 3] [--documents 60] [--device cpu]

The requests are those of a multiple-choice task with long contexts that its options share: entity
tracking, a story of some 130 tokens and five answers, made from the local files of the suite. Both
sides get lm-eval's own Instances and end with (log-probability, first choice) per request, in fp32,
each in a process of its own; lm-eval's model runs at the best of several batch sizes, found on a
slice first, with its cache of logits on. Ratios of medians are the result.

It is not called lm_eval.py: a script's folder comes first on the path, and would hide the library
from itself.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from score import checkpoint, table, timed

from antlm_bench.cpu_tuning import limit_thread_spinning
from antlm_bench.lm_eval_bridge.model import AntlmBench
from antlm_bench.suites.loader import load_suite

BATCHES = (4, 8, 16, 32)
FLOOR = 3.0  # what is promised: at least so many times lm-eval's model
LONGEST = 700  # characters of a text: all of them fit into the checkpoint's 256 tokens
Pair = tuple[str, str]
Answers = list[tuple[float, bool]]


def requests(documents: int) -> list[Pair]:
    """(context, continuation) of every option, documents in the suite's order, so that contexts are
    shared by five.
    """
    items = load_suite("entity-tracking-2025", allow_incomplete=True).items
    fitting = [
        item for item in items if all(len(option.text) <= LONGEST for option in item.options)
    ]
    chosen = fitting[:: max(1, len(fitting) // documents)][:documents]
    borders = [
        (option.text, (option.span or (0, 0))[0]) for item in chosen for option in item.options
    ]
    return [(text[:start], text[start:]) for text, start in borders]


def instances(pairs: Sequence[Pair]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def ours(folder: Path, device: str) -> Callable[[Sequence[Pair], int], Answers]:
    model = AntlmBench(str(folder), device=device)
    return lambda pairs, _size: model.loglikelihood(instances(pairs))


def theirs(folder: Path, device: str) -> Callable[[Sequence[Pair], int], Answers]:
    from lm_eval.models.huggingface import HFLM

    made: dict[int, Any] = {}

    def answer(pairs: Sequence[Pair], size: int) -> Answers:
        if size not in made:
            made[size] = HFLM(
                pretrained=str(folder), device=device, dtype="float32", batch_size=size
            )
        return list(made[size].loglikelihood(instances(pairs), disable_tqdm=True))

    return answer


SIDES = {"ours": ours, "lm-eval": theirs}


def serve(pipe: Connection, side: str, folder: Path, device: str) -> None:
    """In a side's own process: (requests, batch size) in, (seconds, answers) out; None ends it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answer = SIDES[side](folder, device)
    while asked := pipe.recv():
        found: Answers = []
        seconds = timed(lambda: found.extend(answer(*asked)), torch.device(device))  # noqa: B023
        pipe.send((seconds, found))


def compare(folder: Path, pairs: list[Pair], rounds: int, device: str) -> list[dict[str, Any]]:
    """A row of the result per side; the first is ours."""
    pipes: dict[str, Connection] = {}
    for side in SIDES:
        pipes[side], inner = multiprocessing.Pipe()
        arguments = (inner, side, folder, device)
        multiprocessing.get_context("spawn").Process(
            target=serve, args=arguments, daemon=True
        ).start()

    def run(side: str, some: list[Pair], size: int) -> tuple[float, Answers]:
        pipes[side].send((some, size))
        seconds, found = pipes[side].recv()
        return seconds, found

    for side in SIDES:
        run(side, pairs[:10], BATCHES[0])  # the first forward of a process is none to measure
    best = min(BATCHES, key=lambda size: run("lm-eval", pairs[:50], size)[0])
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    answers: dict[str, Answers] = {}
    for _ in range(rounds):
        for side in SIDES:
            seconds, answers[side] = run(side, pairs, best)
            times[side].append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    median = {side: statistics.median(taken) for side, taken in times.items()}
    worst = max(abs(a[0] - b[0]) for a, b in zip(answers["ours"], answers["lm-eval"], strict=True))
    differ = sum(a[1] != b[1] for a, b in zip(answers["ours"], answers["lm-eval"], strict=True))
    rate = {side: len(pairs) / seconds for side, seconds in median.items()}
    return [
        {
            "scorer": "ours",
            "requests/s": rate["ours"],
            "x lm-eval": median["lm-eval"] / median["ours"],
        },
        {
            "scorer": f"lm-eval (batch {best})",
            "requests/s": rate["lm-eval"],
            "largest difference": worst,
            "first choices that differ": differ,
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument(
        "--steps",
        type=int,
        default=400,
        help="training steps of a checkpoint that is not there yet",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=60, help="documents of five requests each")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    os.environ.setdefault("ANTLM_BENCH_DATA", "../shared/data")
    warnings.simplefilter("ignore")
    limit_thread_spinning()  # of both sides: they inherit it
    checkpoint("causal", arguments.folder, arguments.steps, arguments.device)
    pairs = requests(arguments.documents)
    rows = compare(arguments.folder / "causal", pairs, arguments.rounds, arguments.device)
    print(f"# {len(pairs)} requests, {len({context for context, _ in pairs})} contexts")
    print(table(rows))
    if rows[0]["x lm-eval"] < FLOOR:
        print(f"below its floor: {rows[0]['x lm-eval']:.2f}x lm-eval, not {FLOOR}x")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
