"""Our scorer against lm-eval and minicons: same checkpoint, sentences and threads, in turns.

    python benchmarks/score.py [--rounds 3] [--causal-pairs 50] [--masked-pairs 3] [--device cpu]
    python benchmarks/score.py --flips 20000    # decisions of adaptive against exact precision

Every scorer goes from sentences to one score per sentence in fp32; tokenization counts, loading
does not. The peers run at their best batch size, found on a sample, in a process of their own,
since our process changes how memory is kept (antlm_bench.cpu_tuning). Results are ratios of
medians; absolute times on a shared machine mean little. The fraction of peak counts only required
arithmetic (the linear layers of distinct nodes, the LM head at distinct positions), against the
best matrix product of this process.
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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from checkpoints import read_lines, train

from antlm_bench.checkpoints import (
    Checkpoint,
    OpenOptions,
    build_adaptive_scorer,
    open_checkpoint,
)
from antlm_bench.runs.provenance import peak_memory_bytes
from antlm_bench.scoring import multiple_choice, peers
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.suites.loader import load_suite
from antlm_bench.types import Item

METHOD = {"causal": "causal", "masked": "mlm"}
PEERS = {"causal": ("lm-eval", "minicons"), "masked": ("minicons",)}
BATCHES = {"causal": (8, 16, 32, 64), "masked": (2, 4, 8, 16)}
FLOORS = {  # required speed per kind and precision, in multiples of each peer
    ("causal", "exact"): {"lm-eval": 2.0, "minicons": 2.7},
    ("causal", "adaptive"): {"lm-eval": 4.0},
    ("masked", "exact"): {"minicons": 2.0},
    ("masked", "adaptive"): {"minicons": 4.0},
}


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 20
) -> float:
    """Measure the best matrix product of this process, in FLOP/s."""
    best = 0.0
    shapes = [(1024, 1024, 1024), (2048, 512, 1024), (4096, 384, 1280)]
    if device.type == "cuda":
        shapes = [(4096, 4096, 4096), (8192, 8192, 8192)]
    for m, k, n in shapes:
        a = torch.randn(m, k, device=device, dtype=dtype)
        b = torch.randn(k, n, device=device, dtype=dtype)
        for _ in range(repeats):
            seconds = measure_seconds(partial(torch.matmul, a, b), device)
            best = max(best, 2 * m * k * n / seconds)
    return best


def peak_memory_gib(device: torch.device) -> float:
    """Return the largest memory of this process so far: of a GPU's tensors, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    return peak_memory_bytes() / 2**30


def measure_seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that `function` takes, the queue of the device included."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def load_plain_model(kind: str, folder: Path, device: str, dtype: str) -> Any:
    """Load a checkpoint by transformers, as a user without this package does."""
    auto = (
        transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForMaskedLM
    )
    return auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)


def build_peer_scorers(
    kind: str, folder: Path, device: str, dtype: str, texts: Sequence[str]
) -> dict[str, Callable[[int, int], list[float]]]:
    """Return name -> run(number of sentences, batch size), on a model loaded by transformers."""
    model = load_plain_model(kind, folder, device, dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    scorer = peers.make_minicons_scorer(
        "causal" if kind == "causal" else "masked", model, tokenizer, device
    )
    options = {} if kind == "causal" else {"PLL_metric": "original"}
    scorers: dict[str, Callable[[int, int], list[float]]] = {
        "minicons": lambda n, size: peers.score_with_minicons(
            scorer, list(texts[:n]), size, **options
        )
    }
    if kind == "causal":
        scorers["lm-eval"] = lambda n, size: peers.score_with_lm_eval(
            model, tokenizer, list(texts[:n]), size
        )
    return scorers


class PeerRun(NamedTuple):
    """What one run of a peer took, and its scores."""

    seconds: float
    """Infinite if the batch did not fit into the memory of a GPU."""
    scores: list[float]
    memory: float
    """Largest memory of the process so far, in GiB."""


def serve_peers(
    pipe: Connection, kind: str, folder: Path, device: str, dtype: str, texts: Sequence[str]
) -> None:
    """Serve the peers in their process: (name, count, batch size) in, a PeerRun out."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    scorers = build_peer_scorers(kind, folder, device, dtype, texts)
    pipe.send(list(scorers))
    while request := pipe.recv():
        name, count, size = request
        scores: list[float] = []
        call = partial(scorers[name], count, size)
        try:
            seconds = measure_seconds(lambda: scores.extend(call()), torch.device(device))  # noqa: B023
        except torch.OutOfMemoryError:
            seconds = float("inf")
        pipe.send(PeerRun(seconds, scores, peak_memory_gib(torch.device(device))))


class PeerProcess:
    """The peers of a kind of model on the same texts, in a process of their own."""

    def __init__(
        self, kind: str, folder: Path, device: str, texts: Sequence[str], dtype: str = "float32"
    ) -> None:
        self._pipe, peer_pipe = multiprocessing.Pipe()
        multiprocessing.get_context("spawn").Process(
            target=serve_peers, args=(peer_pipe, kind, folder, device, dtype, texts), daemon=True
        ).start()
        peer_pipe.close()  # so that the end of the process ends `recv`
        self.names: list[str] = self._pipe.recv()

    def run(self, name: str, count: int, batch_size: int) -> PeerRun:
        """Score the first `count` texts with one peer."""
        self._pipe.send((name, count, batch_size))
        run: PeerRun = self._pipe.recv()
        return run

    def find_batch_size(self, name: str, sizes: Sequence[int], count: int) -> int:
        """Return the size with which the peer scores `count` texts fastest, after a warm-up."""
        self.run(name, 8, sizes[0])
        return min(sizes, key=lambda size: self.run(name, count, size).seconds)

    def close(self) -> None:
        self._pipe.send(None)


def count_required_flops(opened: Checkpoint, nodes: int, heads: int) -> float:
    """Return the FLOP of linear layers for `nodes` and of the LM head for `heads`: 2 per weight."""
    model = opened.engine.model
    head = model.get_output_embeddings().weight.numel()
    embeddings = sum(e.weight.numel() for e in model.modules() if isinstance(e, torch.nn.Embedding))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters()) - embeddings - (0 if tied else head)
    return float(2 * (body * nodes + head * heads))


def compare(
    kind: str, folder: Path, opened: Checkpoint, items: Sequence[Item], rounds: int
) -> list[dict[str, Any]]:
    """Return result rows of one checkpoint: ours exact, ours adaptive, and each peer."""
    device = torch.device(str(opened.metadata["device"]))
    texts = [option.text for item in items for option in item.options]
    methods = [resolve_method(METHOD[kind], opened)]
    exact_scores: list[float] = []

    def exact() -> None:
        exact_scores[:] = multiple_choice.predict(opened, items, methods)[0].flat("scores").tolist()

    # Calibration is a fixed cost, negligible on a whole suite: not measured on this sample.
    adaptive_scorer = build_adaptive_scorer(opened).calibrate(items, methods)

    def adaptive() -> None:
        adaptive_scorer.predict(items, methods)

    peer_process = PeerProcess(kind, folder, str(device), texts)
    peer_names = peer_process.names
    slice_size = min(len(texts), 400 if kind == "causal" else 64)
    best = {  # each peer's best batch size
        name: peer_process.find_batch_size(name, BATCHES[kind], slice_size) for name in peer_names
    }
    exact()
    counts_before = (opened.engine.nodes_computed, opened.engine.head_rows_computed)
    exact()
    nodes, heads = (
        opened.engine.nodes_computed - counts_before[0],
        opened.engine.head_rows_computed - counts_before[1],
    )
    times: dict[str, list[float]] = {
        "ours exact": [],
        "ours adaptive": [],
        **{n: [] for n in peer_names},
    }
    max_difference: dict[str, float] = {}
    for _ in range(rounds):
        times["ours exact"].append(measure_seconds(exact, device))
        for name in peer_names:
            seconds, scores, _ = peer_process.run(name, len(texts), best[name])
            times[name].append(seconds)
            max_difference[name] = max(
                abs(a - b) for a, b in zip(scores, exact_scores, strict=True)
            )
        times["ours adaptive"].append(measure_seconds(adaptive, device))
    peer_process.close()
    tokens = int(multiple_choice.predict(opened, items, methods)[0].flat("tokens").sum())
    median = {name: statistics.median(t) for name, t in times.items()}
    print(
        "# seconds: "
        + "; ".join(f"{name} {' '.join(f'{s:.1f}' for s in t)}" for name, t in times.items()),
        flush=True,
    )
    peak_flops = measure_peak_flops(device)
    rows = []
    for name in ("ours exact", "ours adaptive"):
        rows.append(
            {
                "scorer": name,
                "sentences/s": len(texts) / median[name],
                "tokens/s": tokens / median[name],
                "of fp32 peak": count_required_flops(opened, nodes, heads)
                / median[name]
                / peak_flops
                if name == "ours exact"
                else None,
                **{f"x {peer}": median[peer] / median[name] for peer in peer_names},
            }
        )
    for peer in peer_names:
        row: dict[str, Any] = {
            "scorer": f"{peer} (batch {best[peer]})",
            "sentences/s": len(texts) / median[peer],
        }
        rows.append(
            {**row, "tokens/s": tokens / median[peer], "largest difference": max_difference[peer]}
        )
    rescored = int(adaptive_scorer.predict(items, methods)[0].has_flag("float32").sum())
    print(
        f"# adaptive: {'int8' if adaptive_scorer.is_int8 else 'bf16'}, "
        f"bound {adaptive_scorer.bounds[0]:.3f} nats, "
        f"{rescored} of {len(items)} pairs scored again in fp32",
        flush=True,
    )
    print(
        f"# {kind}: {len(texts)} sentences, {tokens} tokens, {nodes} nodes, "
        f"peak {peak_flops / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    return rows


def count_flips(kind: str, opened: Checkpoint, items: Sequence[Item]) -> dict[str, Any]:
    """Count the decisions that differ between adaptive precision and fp32, and rescored pairs."""
    methods = [resolve_method(METHOD[kind], opened)]
    adaptive = build_adaptive_scorer(opened).calibrate(items, methods)
    changed = rescored = fast_flips = right = 0
    seconds = {"exact": 0.0, "adaptive": 0.0}
    for chunk in multiple_choice.iter_chunks(items, methods):
        start = time.perf_counter()
        exact = multiple_choice.predict(opened, chunk, methods)[0]
        exact_end = time.perf_counter()
        predictions = adaptive.predict(chunk, methods)[0]
        seconds["exact"] += exact_end - start
        seconds["adaptive"] += time.perf_counter() - exact_end
        changed += int((exact.pred != predictions.pred).sum())
        right += int((exact.pred == exact.gold).sum())
        rescored_indices = np.flatnonzero(predictions.has_flag("float32"))
        rescored += len(rescored_indices)
        fast_pred = predictions.pred.copy()  # the others are the fast model's already
        if len(rescored_indices):
            rescored_items = [chunk[index] for index in rescored_indices.tolist()]
            fast = multiple_choice.predict(adaptive.fast_model, rescored_items, methods)[0]
            fast_pred[rescored_indices] = fast.pred
        fast_flips += int((exact.pred != fast_pred).sum())
    return {
        "kind": kind,
        "low precision": "int8" if adaptive.is_int8 else "bf16",
        "pairs": len(items),
        "bound (nats)": adaptive.bounds[0],
        "rescored in fp32": rescored,
        "decisions that differ": changed,
        "decisions that low precision alone would flip": fast_flips,
        "adaptive over exact, x": seconds["exact"] / seconds["adaptive"],
        "accuracy in fp32": right / len(items),
    }


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as a Markdown table."""
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


def load_or_train_checkpoint(kind: str, folder: Path, steps: int, device: str) -> Checkpoint:
    if not (folder / kind / "config.json").is_file():
        train(
            kind, read_lines(Path(os.environ["ANTLM_BENCH_DATA"]) / "corpus"), folder / kind, steps
        )
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
        help="training steps of a missing checkpoint",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--causal-pairs", type=int, default=50, help="pairs per BLiMP paradigm")
    parser.add_argument("--masked-pairs", type=int, default=3, help="pairs per BLiMP paradigm")
    parser.add_argument(
        "--flips",
        type=int,
        default=0,
        help="instead: count flipped decisions over so many BLiMP pairs",
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    os.environ.setdefault("ANTLM_BENCH_DATA", "../shared/data")
    warnings.simplefilter("ignore")
    below_floor = 0
    for kind in arguments.kinds:
        opened = load_or_train_checkpoint(kind, arguments.folder, arguments.steps, arguments.device)
        if arguments.flips:
            limit = -(-arguments.flips // 67)
            items = load_suite("blimp", limit=limit, allow_incomplete=True).items[: arguments.flips]
            print(
                "\n".join(
                    f"{key}: {value}" for key, value in count_flips(kind, opened, items).items()
                )
                + "\n",
                flush=True,
            )
            continue
        pairs = arguments.causal_pairs if kind == "causal" else arguments.masked_pairs
        items = load_suite("blimp", limit=pairs, allow_incomplete=True).items
        rows = compare(kind, arguments.folder / kind, opened, items, arguments.rounds)
        print(format_table(rows) + "\n", flush=True)
        for row, precision in zip(rows, ("exact", "adaptive"), strict=False):
            for peer, floor in FLOORS[kind, precision].items():
                if row[f"x {peer}"] < floor:
                    below_floor += 1
                    speed = f"{row[f'x {peer}']:.2f}x {peer}"
                    print(f"too slow: {kind} {precision} is {speed}, required {floor}x\n")
    return 1 if below_floor else 0


if __name__ == "__main__":
    raise SystemExit(main())
