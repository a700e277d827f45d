"""Our `Scorer` and `surprisal` against minicons, as a notebook calls them, on the same sentences.

    python benchmarks/notebook.py [--rounds 3] [--pairs 2] [--folder .bench]

Two jobs: the log-probability of each sentence, and the surprisal of each word. Ours runs on the
objects in memory, `Scorer(model, tokenizer)`, and on the folder, `Scorer(path)`, which has faster
CPU layers. minicons runs at its best batch size, in a process of its own. Loading and the first
call, which runs our self-test, are not measured. Results are ratios of medians. The weights are
random: the speed does not depend on them.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from checkpoints import build_model, read_lines, train_tokenizer
from score import format_table
from transformers import AutoModelForCausalLM, AutoTokenizer

from antlm_bench import Scorer, surprisal
from antlm_bench.suites.loader import load_suite

JOBS = ("sentences", "words")
BATCH_SIZES = (8, 16, 32, 64)
TOKENIZER_LINES = 50_000
Job = Callable[[Sequence[str], int], list[float]]
"""(sentences, batch size) -> a number per sentence or word."""


def build_minicons_jobs(folder: Path) -> dict[str, Job]:
    from minicons import scorer

    model = scorer.IncrementalLMScorer(
        AutoModelForCausalLM.from_pretrained(folder),
        "cpu",
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )

    def score_sentences(texts: Sequence[str], size: int) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            scores += model.sequence_score(batch, reduction=lambda x: x.sum(0).item())
        return scores

    def score_words(texts: Sequence[str], size: int) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(texts), size):
            batch = list(texts[start : start + size])
            for words in model.word_score_tokenized(
                batch, str.split, surprisal=True, base_two=True
            ):
                scores += [bits for _, bits in words]
        return scores

    return {"sentences": score_sentences, "words": score_words}


def serve_minicons(pipe: Connection, folder: Path) -> None:
    """Serve minicons in its process: (job, sentences, batch size) in, (seconds, scores) out."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    jobs = build_minicons_jobs(folder)
    while request := pipe.recv():
        job, texts, size = request
        start = time.perf_counter()
        scores = jobs[job](texts, size)
        pipe.send((time.perf_counter() - start, scores))


def run_ours(scorer: Scorer, job: str, texts: Sequence[str]) -> tuple[float, list[float]]:
    start = time.perf_counter()
    if job == "sentences":
        scores = scorer.logprobs(texts).tolist()
    else:
        scores = surprisal(scorer, texts).table.column("surprisal_bits")
    return time.perf_counter() - start, scores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=2, help="pairs per BLiMP paradigm")
    arguments = parser.parse_args()
    os.environ.setdefault("ANTLM_BENCH_DATA", "../shared/data")
    warnings.simplefilter("ignore")
    folder = arguments.folder / "causal-random"
    if not (folder / "config.json").is_file():
        lines = read_lines(Path(os.environ["ANTLM_BENCH_DATA"]) / "corpus")[:TOKENIZER_LINES]
        tokenizer = train_tokenizer("causal", lines)
        build_model("causal").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    items = load_suite("blimp", limit=arguments.pairs, allow_incomplete=True).items
    texts = [option.text for item in items for option in item.options]
    scorers = {
        "ours, objects": Scorer(
            AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ),
        "ours, folder": Scorer(folder),
    }
    pipe, peer_pipe = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(
        target=serve_minicons, args=(peer_pipe, folder), daemon=True
    ).start()

    def run_minicons(job: str, size: int) -> tuple[float, list[float]]:
        pipe.send((job, texts, size))
        seconds, scores = pipe.recv()
        return seconds, scores

    rows = []
    for job in JOBS:
        run_minicons(job, BATCH_SIZES[0])
        best = min(BATCH_SIZES, key=lambda size: run_minicons(job, size)[0])
        for scorer in scorers.values():
            run_ours(scorer, job, texts)
        times: dict[str, list[float]] = {name: [] for name in (*scorers, "minicons")}
        difference = 0.0
        for _ in range(arguments.rounds):
            seconds, theirs = run_minicons(job, best)
            times["minicons"].append(seconds)
            for name, scorer in scorers.items():
                seconds, ours = run_ours(scorer, job, texts)
                times[name].append(seconds)
                pairs = zip(ours, theirs, strict=True)
                difference = max(difference, *(abs(a - b) for a, b in pairs))
        median = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "job": job,
                "sentences": str(len(texts)),
                "minicons (batch), seconds": f"{median['minicons']:.2f} ({best})",
                **{f"{name}, x minicons": median["minicons"] / median[name] for name in scorers},
                "largest difference": difference,
            }
        )
    pipe.send(None)
    print(format_table(rows))


if __name__ == "__main__":
    main()
