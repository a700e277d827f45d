"""Requests of lm-eval on our engine against lm-eval's own model: same checkpoint and threads.

    python benchmarks/harness.py [--rounds 3] [--documents 60] [--device cpu]

The requests are those of a multiple-choice task with long shared contexts: entity tracking, a story
of about 130 tokens and five answers, from the local files of the suite. Both sides run in turns,
each in its own process, in fp32, from Instances of lm-eval to (log-probability, is greedy) per
request. lm-eval runs at its best batch size, found on a sample, with its cache of logits. Results
are ratios of medians.

The file is not called lm_eval.py, since it would hide the library of that name.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from score import format_table, load_or_train_checkpoint, measure_seconds

from antlm_bench.cpu_tuning import limit_thread_spinning
from antlm_bench.lm_eval_bridge.model import AntlmBench
from antlm_bench.suites.loader import load_suite

BATCHES = (4, 8, 16, 32)
FLOOR = 3.0  # required: at least so many times the speed of lm-eval
LONGEST = 700  # characters of a text, so that all fit into the 256 tokens of the checkpoint
Pair = tuple[str, str]
Answers = list[tuple[float, bool]]


def load_requests(documents: int) -> list[Pair]:
    """Return (context, continuation) of every option; five options in a row share a context."""
    items = load_suite("entity-tracking-2025", allow_incomplete=True).items
    short_items = [
        item for item in items if all(len(option.text) <= LONGEST for option in item.options)
    ]
    sample = short_items[:: max(1, len(short_items) // documents)][:documents]
    texts_and_starts = [
        (option.text, (option.span or (0, 0))[0]) for item in sample for option in item.options
    ]
    return [(text[:start], text[start:]) for text, start in texts_and_starts]


def make_instances(pairs: Sequence[Pair]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def build_our_model(folder: Path, device: str) -> Callable[[Sequence[Pair], int], Answers]:
    model = AntlmBench(str(folder), device=device)
    return lambda pairs, _size: model.loglikelihood(make_instances(pairs))


def build_lm_eval_model(folder: Path, device: str) -> Callable[[Sequence[Pair], int], Answers]:
    from lm_eval.models.huggingface import HFLM

    models: dict[int, Any] = {}

    def answer(pairs: Sequence[Pair], size: int) -> Answers:
        if size not in models:
            models[size] = HFLM(
                pretrained=str(folder), device=device, dtype="float32", batch_size=size
            )
        return list(models[size].loglikelihood(make_instances(pairs), disable_tqdm=True))

    return answer


SIDES = {"ours": build_our_model, "lm-eval": build_lm_eval_model}


def serve_side(pipe: Connection, side: str, folder: Path, device: str) -> None:
    """Serve one side in its process: (requests, batch size) in, (seconds, answers) out."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answer = SIDES[side](folder, device)
    while request := pipe.recv():
        answers: Answers = []
        call = partial(answer, *request)
        seconds = measure_seconds(lambda: answers.extend(call()), torch.device(device))  # noqa: B023
        pipe.send((seconds, answers))


def compare(folder: Path, pairs: list[Pair], rounds: int, device: str) -> list[dict[str, Any]]:
    """Return a result row per side; the first is ours."""
    pipes: dict[str, Connection] = {}
    for side in SIDES:
        pipes[side], inner = multiprocessing.Pipe()
        arguments = (inner, side, folder, device)
        multiprocessing.get_context("spawn").Process(
            target=serve_side, args=arguments, daemon=True
        ).start()

    def run(side: str, pairs_of_run: list[Pair], size: int) -> tuple[float, Answers]:
        pipes[side].send((pairs_of_run, size))
        seconds, answers_of_run = pipes[side].recv()
        return seconds, answers_of_run

    for side in SIDES:
        run(side, pairs[:10], BATCHES[0])  # warm-up: the first forward of a process is slow
    best_batch_size = min(BATCHES, key=lambda size: run("lm-eval", pairs[:50], size)[0])
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    answers: dict[str, Answers] = {}
    for _ in range(rounds):
        for side in SIDES:
            seconds, answers[side] = run(side, pairs, best_batch_size)
            times[side].append(seconds)
    for pipe in pipes.values():
        pipe.send(None)
    median = {side: statistics.median(seconds_of_side) for side, seconds_of_side in times.items()}
    max_difference = max(
        abs(a[0] - b[0]) for a, b in zip(answers["ours"], answers["lm-eval"], strict=True)
    )
    num_different = sum(
        a[1] != b[1] for a, b in zip(answers["ours"], answers["lm-eval"], strict=True)
    )
    rate = {side: len(pairs) / seconds for side, seconds in median.items()}
    return [
        {
            "scorer": "ours",
            "requests/s": rate["ours"],
            "x lm-eval": median["lm-eval"] / median["ours"],
        },
        {
            "scorer": f"lm-eval (batch {best_batch_size})",
            "requests/s": rate["lm-eval"],
            "largest difference": max_difference,
            "first choices that differ": num_different,
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
        help="training steps of a missing checkpoint",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=60, help="documents of five requests each")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    os.environ.setdefault("ANTLM_BENCH_DATA", "../shared/data")
    warnings.simplefilter("ignore")
    limit_thread_spinning()  # inherited by both sides
    load_or_train_checkpoint("causal", arguments.folder, arguments.steps, arguments.device)
    pairs = load_requests(arguments.documents)
    rows = compare(arguments.folder / "causal", pairs, arguments.rounds, arguments.device)
    print(f"# {len(pairs)} requests, {len({context for context, _ in pairs})} contexts")
    print(format_table(rows))
    if rows[0]["x lm-eval"] < FLOOR:
        print(f"too slow: {rows[0]['x lm-eval']:.2f}x lm-eval, required {FLOOR}x")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
