"""Our scorer against lm-eval and minicons: same checkpoint, same sentences, same threads, in turns
in one run.

    python benchmarks/score.py [--rounds 3] [--causal-pairs 50] [--masked-pairs 3] [--device cpu] [--markdown]
    python benchmarks/score.py --flips 20000     # instead: decisions of adaptive against exact precision

Every scorer starts from sentences and ends with one number per sentence (tokenising in, loading
out), in fp32. Each peer runs at the best of several batch sizes, found on a slice first, in a
process of its own, as its users run it: ours changes how memory is kept (antlm_bench.cpu_tuning),
and they shall neither gain nor lose by that. Ratios of medians are the result: absolute times on a
shared machine are not. The fraction of peak counts only arithmetic that cannot be avoided: the
linear layers of distinct nodes and the LM head of distinct read positions, against the best matrix
product of this process.
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
from typing import Any

import torch
import transformers
from checkpoints import lines, train

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint, with_bf16_body
from antlm_bench.scoring import multiple_choice, peers
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.suites.loader import load_suite
from antlm_bench.types import Item

METHOD = {"causal": "causal", "masked": "mlm"}
PEERS = {"causal": ("lm-eval", "minicons"), "masked": ("minicons",)}
BATCHES = {"causal": (8, 16, 32, 64), "masked": (2, 4, 8, 16)}
FLOORS = {  # what is promised, per kind and precision: at least so many times each peer
    ("causal", "exact"): {"lm-eval": 2.0, "minicons": 2.7},
    ("causal", "adaptive"): {"lm-eval": 4.0},
    ("masked", "exact"): {"minicons": 2.0},
    ("masked", "adaptive"): {"minicons": 4.0},
}


def peak(device: torch.device) -> float:
    """The best fp32 matrix product of this process, in FLOP/s: square-ish shapes with hot operands,
    best of many.
    """
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (2048, 512, 1024), (4096, 384, 1280)):
        a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        for _ in range(20):
            best = max(best, 2 * m * k * n / timed(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return best


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, the device's queue included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peer_scorers(
    kind: str, folder: Path, device: str, texts: Sequence[str]
) -> dict[str, Callable[[int, int], list[float]]]:
    """name -> run(how many sentences, batch size), on a model of their own as the library loads it."""
    auto = (
        transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForMaskedLM
    )
    model = auto.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scorer = peers.make_minicons_scorer(
        "causal" if kind == "causal" else "masked", model, tokenizer, device
    )
    options = {} if kind == "causal" else {"PLL_metric": "original"}
    made: dict[str, Callable[[int, int], list[float]]] = {
        "minicons": lambda n, size: peers.score_with_minicons(
            scorer, list(texts[:n]), size, **options
        )
    }
    if kind == "causal":
        made["lm-eval"] = lambda n, size: peers.score_with_lm_eval(
            model, tokenizer, list(texts[:n]), size
        )
    return made


def serve(pipe: Connection, kind: str, folder: Path, device: str, texts: Sequence[str]) -> None:
    """In the peers' process: (name, how many, batch size) in, (seconds, scores) out; None ends it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    made = peer_scorers(kind, folder, device, texts)
    pipe.send(list(made))
    while asked := pipe.recv():
        name, many, size = asked
        found: list[float] = []
        seconds = timed(lambda: found.extend(made[name](many, size)), torch.device(device))  # noqa: B023
        pipe.send((seconds, found))


def necessary(opened: Checkpoint, nodes: int, heads: int) -> float:
    """FLOP of the linear layers for `nodes` and of the LM head for `heads`: 2 per weight; attention
    itself left out.
    """
    model = opened.engine.model
    head = model.get_output_embeddings().weight.numel()
    embeddings = sum(e.weight.numel() for e in model.modules() if isinstance(e, torch.nn.Embedding))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters()) - embeddings - (0 if tied else head)
    return float(2 * (body * nodes + head * heads))


def compare(
    kind: str, folder: Path, opened: Checkpoint, items: Sequence[Item], rounds: int
) -> list[dict[str, Any]]:
    """Rows of the result for one checkpoint: ours exact, ours adaptive, and each peer."""
    device = torch.device(str(opened.metadata["device"]))
    texts = [option.text for item in items for option in item.options]
    methods = [resolve_method(METHOD[kind], opened)]
    exact_scores: list[float] = []

    def exact() -> None:
        exact_scores[:] = [
            s for p in multiple_choice.predict(opened, items, methods)[0] for s in p.scores
        ]

    quick = with_bf16_body(opened)

    # Calibration is a fixed cost that a real suite hides and this slice of one would not: done
    # once, outside the clock.
    both = AdaptiveScorer(quick, opened).calibrate(items, methods)

    def adaptive() -> None:
        both.predict(items, methods)

    pipe, theirs = multiprocessing.Pipe()
    arguments = (theirs, kind, folder, str(device), texts)
    multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True).start()
    others = pipe.recv()

    def run(name: str, many: int, size: int) -> tuple[float, list[float]]:
        pipe.send((name, many, size))
        seconds, found = pipe.recv()
        return seconds, found

    slice_ = min(len(texts), 400 if kind == "causal" else 64)
    best: dict[str, int] = {}  # each peer's best batch size
    for name in others:
        run(name, 8, BATCHES[kind][0])
        best[name] = min(BATCHES[kind], key=lambda size: run(name, slice_, size)[0])
    exact()
    before = (opened.engine.nodes_computed, opened.engine.head_rows_computed)
    exact()
    nodes, heads = (
        opened.engine.nodes_computed - before[0],
        opened.engine.head_rows_computed - before[1],
    )
    times: dict[str, list[float]] = {
        "ours exact": [],
        "ours adaptive": [],
        **{n: [] for n in others},
    }
    worst: dict[str, float] = {}
    for _ in range(rounds):
        times["ours exact"].append(timed(exact, device))
        for name in others:
            seconds, found = run(name, len(texts), best[name])
            times[name].append(seconds)
            worst[name] = max(abs(a - b) for a, b in zip(found, exact_scores, strict=True))
        times["ours adaptive"].append(timed(adaptive, device))
    pipe.send(None)
    tokens = sum(sum(p.tokens) for p in multiple_choice.predict(opened, items, methods)[0])
    median = {name: statistics.median(t) for name, t in times.items()}
    print(
        "# seconds: "
        + "; ".join(f"{name} {' '.join(f'{s:.1f}' for s in t)}" for name, t in times.items()),
        flush=True,
    )
    top = peak(device)
    rows = []
    for name in ("ours exact", "ours adaptive"):
        rows.append(
            {
                "scorer": name,
                "sentences/s": len(texts) / median[name],
                "tokens/s": tokens / median[name],
                "of fp32 peak": necessary(opened, nodes, heads) / median[name] / top
                if name == "ours exact"
                else None,
                **{f"x {peer}": median[peer] / median[name] for peer in others},
            }
        )
    for peer in others:
        row: dict[str, Any] = {
            "scorer": f"{peer} (batch {best[peer]})",
            "sentences/s": len(texts) / median[peer],
        }
        rows.append({**row, "tokens/s": tokens / median[peer], "largest difference": worst[peer]})
    rescored = sum("float32" in p.flags for p in both.predict(items, methods)[0])
    print(
        f"# adaptive: bound {both.bounds[0]:.3f} nats, {rescored} of {len(items)} pairs scored again in fp32",
        flush=True,
    )
    print(
        f"# {kind}: {len(texts)} sentences, {tokens} tokens, {nodes} nodes, peak {top / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    return rows


def flips(kind: str, opened: Checkpoint, items: Sequence[Item]) -> dict[str, Any]:
    """How many decisions adaptive precision takes otherwise than fp32, and what it rescored."""
    methods = [resolve_method(METHOD[kind], opened)]
    adaptive = AdaptiveScorer(with_bf16_body(opened), opened).calibrate(items, methods)
    different = rescored = quick_flips = right = 0
    spent = {"exact": 0.0, "adaptive": 0.0}
    for chunk in multiple_choice.iter_chunks(items, methods):
        start = time.perf_counter()
        exact = multiple_choice.predict(opened, chunk, methods)[0]
        middle = time.perf_counter()
        found = adaptive.predict(chunk, methods)[0]
        spent["exact"] += middle - start
        spent["adaptive"] += time.perf_counter() - middle
        different += sum(a.pred != b.pred for a, b in zip(exact, found, strict=True))
        right += sum(p.pred == p.gold for p in exact)
        again = [
            number for number, p in enumerate(found) if "float32" in p.flags
        ]  # the others are bf16's already
        rescored += len(again)
        quick = (
            multiple_choice.predict(
                adaptive.bf16_model, [chunk[number] for number in again], methods
            )[0]
            if again
            else []
        )
        for number, prediction in zip(again, quick, strict=True):
            found[number] = prediction
        quick_flips += sum(a.pred != b.pred for a, b in zip(exact, found, strict=True))
    return {
        "kind": kind, "pairs": len(items), "bound (nats)": adaptive.bounds[0], "rescored in fp32": rescored,
        "decisions that differ": different, "decisions that bf16 alone would flip": quick_flips,
        "adaptive over exact, x": spent["exact"] / spent["adaptive"], "accuracy in fp32": right / len(items),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def cell(value: Any) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        return (
            f"{value:.2g}" if value < 1e-2 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"
        )

    body = [[cell(row.get(c)) for c in columns] for row in rows]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *body]
    )


def checkpoint(kind: str, folder: Path, steps: int, device: str) -> Checkpoint:
    if not (folder / kind / "config.json").is_file():
        train(kind, lines(Path(os.environ["ANTLM_BENCH_DATA"]) / "corpus"), folder / kind, steps)
    return open_checkpoint(str(folder / kind), OpenOptions(device=device))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=["causal", "masked"])
    parser.add_argument("--folder", type=Path, default=Path(".bench"))
    parser.add_argument(
        "--steps",
        type=int,
        default=400,
        help="training steps of a checkpoint that is not there yet",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--causal-pairs", type=int, default=50, help="pairs per BLiMP paradigm")
    parser.add_argument("--masked-pairs", type=int, default=3, help="pairs per BLiMP paradigm")
    parser.add_argument(
        "--flips",
        type=int,
        default=0,
        help="count flipped decisions over so many BLiMP pairs instead",
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    os.environ.setdefault("ANTLM_BENCH_DATA", "../shared/data")
    warnings.simplefilter("ignore")
    failed = 0
    for kind in arguments.kinds:
        opened = checkpoint(kind, arguments.folder, arguments.steps, arguments.device)
        if arguments.flips:
            each = -(-arguments.flips // 67)
            items = load_suite("blimp", limit=each, allow_incomplete=True).items[: arguments.flips]
            print(
                "\n".join(f"{key}: {value}" for key, value in flips(kind, opened, items).items())
                + "\n",
                flush=True,
            )
            continue
        pairs = arguments.causal_pairs if kind == "causal" else arguments.masked_pairs
        items = load_suite("blimp", limit=pairs, allow_incomplete=True).items
        rows = compare(kind, arguments.folder / kind, opened, items, arguments.rounds)
        print(table(rows) + "\n", flush=True)
        for row, precision in zip(rows, ("exact", "adaptive"), strict=False):
            for peer, floor in FLOORS[kind, precision].items():
                if row[f"x {peer}"] < floor:
                    failed += 1
                    print(
                        f"below its floor: {kind} {precision} is {row[f'x {peer}']:.2f}x {peer}, not {floor}x\n"
                    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
