"""All speed comparisons on one graphics card, in at most 8 minutes.

    python benchmarks/gpu.py                               # results in .bench/gpu.md and gpu.json
    python benchmarks/gpu.py --device cpu --scale nano     # tries the command on a CPU, tiny

Scoring runs against lm-eval and minicons at their best batch size, training and finetuning against
the Trainer of transformers. The models are a BabyLlama, a BERT and an LTG-BERT of the papers'
sizes with random weights. Every part runs in its own process with a limit of seconds. A part that
fails or runs out of time says so, and the others go on; rows that it had printed are kept. Both
result files are written anew after every part. Without the data folder (ANTLM_BENCH_DATA) the
texts are random words and the sentences those of the suite `nano`.

"Of peak" divides the arithmetic that cannot be avoided (for training: model FLOPs utilisation, MFU)
by the peak of the card's data sheet, or by the fastest matrix product of the process where no
peak is listed. The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import finetune
import numpy as np
import torch
import train
import transformers
from host_work import count_operator_calls
from score import (
    METHOD,
    PeerProcess,
    count_required_flops,
    format_table,
    load_plain_model,
    measure_peak_flops,
    measure_seconds,
    peak_memory_gib,
)
from tokenizers.processors import TemplateProcessing

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.suites.loader import load_suite
from antlm_bench.types import Item

# Peak of dense bf16 matrix products in TFLOP/s, by the name that torch.cuda.get_device_name gives.
# Source: NVIDIA's data sheet of each card ("BFLOAT16 Tensor Core"), halved where the sheet counts
# sparsity (H200, H100, L40S, L4); RTX 4090: NVIDIA Ada GPU Architecture, appendix A (fp32
# accumulation, dense). A T4 has no bf16 units, and a slice of a card (MIG) has not the whole peak:
# both are measured. The first pattern that fits counts.
PEAK_TFLOPS = (
    (r"MIG", None),
    (r"H200 NVL", 835.5),
    (r"H200", 989.5),
    (r"H100 PCIe", 756.5),
    (r"H100 NVL", 835.5),
    (r"H100", 989.5),
    (r"A100", 312.0),
    (r"L40S", 362.0),
    (r"L4\b", 121.0),
    (r"A10\b", 125.0),
    (r"RTX 4090", 165.2),
)
MODELS = {"causal": "babyllama", "masked": "bert"}  # scored kind -> folder of its checkpoint
TRAINED = ("babyllama", "ltg-bert")
DTYPES = ("float32", "bfloat16")
LOOPS = ("ours", "Trainer")
TASK = "mrpc"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much each part does."""

    recipe_scale: str
    """Scale of the recipes; "" = the papers' sizes."""
    words: int
    """Words of text for tokenizers and training."""
    items: dict[str, int]
    """Minimal pairs per scored kind."""
    batch_sizes: dict[str, tuple[int, ...]]
    """Batch sizes tried with the peers, per kind."""
    rounds: int
    """Times that a scorer runs; the median counts."""
    reference_items: int
    """Minimal pairs whose scores are compared with those of fp32 on the CPU."""
    train_steps: int
    train_tokens: int
    """Tokens per optimizer step."""
    finetune_examples: int
    peak_repeats: int
    """Matrix products of each size that are timed where a peak is measured."""
    parts: tuple[str, ...] = ("",)
    """Beginnings of the names of the parts that run without --only; ("",) = all parts."""


SCALES = {
    "full": Scale(
        recipe_scale="",
        words=300_000,
        items={"causal": 6_700, "masked": 670},
        batch_sizes={"causal": (32, 64, 128, 256, 512), "masked": (8, 16, 32, 64, 128)},
        rounds=3,
        reference_items=64,
        train_steps=20,
        train_tokens=32_768,
        finetune_examples=2_000,
        peak_repeats=10,
    ),
    "nano": Scale(
        recipe_scale="nano",
        words=5_000,
        items={"causal": 24, "masked": 6},
        batch_sizes={"causal": (8, 16), "masked": (2, 4)},
        rounds=1,
        reference_items=4,
        train_steps=1,
        train_tokens=512,
        finetune_examples=32,
        peak_repeats=1,
        parts=(  # each loop, peer and kind of model once; imports take most of the time
            "score causal float32",
            "score masked bfloat16",
            "train babyllama ours",
            "finetune ltg-bert Trainer",
        ),
    ),
}


class Part(NamedTuple):
    """One process of the command."""

    table: str
    """Name of the result table; "" = prepares files for other parts."""
    name: str
    max_seconds: float
    make_rows: Callable[[argparse.Namespace], Iterator[Row]]


@dataclass(slots=True)
class PartResult:
    """What came of a part."""

    table: str
    part: str
    status: str
    """done, or why not."""
    seconds: float
    rows: list[Row] = field(default_factory=list)


def list_parts(with_compiled: bool = True) -> list[Part]:
    """Return all parts, the most important ones first.

    with_compiled: also train with torch.compile, which takes a minute per model on a CPU.
    """
    scoring = [
        Part("Scoring", f"score {kind} {dtype}", 60, partial(compare_scorers, kind, dtype))
        for kind in MODELS
        for dtype in DTYPES
    ]
    training = [
        Part("Training", f"train {recipe} {loop}", 45, partial(time_training, recipe, loop))
        for recipe in TRAINED
        for loop in LOOPS
    ]
    finetuning = [
        Part("Finetuning", f"finetune {body} {loop}", 40, partial(time_finetuning, body, loop))
        for body in TRAINED
        for loop in LOOPS
    ]
    compiled = [
        Part("Training", f"train {recipe} compiled", 60, partial(time_training, recipe, "compiled"))
        for recipe in TRAINED
    ]
    files = [Part("", "write checkpoints", 100, write_checkpoints)]
    return [*files, *scoring, *training, *finetuning, *(compiled if with_compiled else [])]


def torch_device(arguments: argparse.Namespace) -> torch.device:
    return torch.device("cpu" if arguments.device == "cpu" else "cuda")


def find_peak_flops(device: torch.device, dtype: str, repeats: int) -> tuple[float, str]:
    """Return the peak of matrix products in FLOP/s, and where the number is from."""
    if device.type == "cuda" and dtype == "bfloat16":
        name = torch.cuda.get_device_name(device)
        tflops = next((peak for pattern, peak in PEAK_TFLOPS if re.search(pattern, name)), None)
        if tflops:
            return tflops * 1e12, "data sheet"
    return measure_peak_flops(device, getattr(torch, dtype), repeats), "measured"


# Files that all parts share.


def write_random_text(folder: Path, words: int) -> None:
    """Write sentences of random words. Word number n is drawn with a weight of 1 / n, as in real
    text, so that a tokenizer finds as many pieces as it looks for.
    """
    rng = random.Random(0)
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(40_000)]
    weights = [1 / (index + 1) for index in range(len(vocabulary))]
    drawn = rng.choices(vocabulary, weights, k=words)
    lines = [" ".join(drawn[start : start + 12]) for start in range(0, len(drawn), 12)]
    folder.mkdir(parents=True)
    (folder / "words.train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_random_task(folder: Path) -> None:
    """Write train.csv and valid.csv: sentences of the suite `nano`, right or wrong."""
    options = [
        (option.text, "right" if index == item.gold else "wrong")
        for item in load_suite("nano").items
        for index, option in enumerate(item.options)
    ]
    for name, rows in (("train", options[:-200]), ("valid", options[-200:])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([("text", "label"), *rows])


def load_pairs(count: int) -> list[Item]:
    """Load minimal pairs: of BLiMP, or of the suite `nano` without the data folder."""
    if (Path(os.environ["ANTLM_BENCH_DATA"]) / "blimp").is_dir():
        items = load_suite("blimp", limit=-(-count // 67), allow_incomplete=True).items
    else:
        items = load_suite("nano").items
    return list(items[:: max(1, len(items) // count)][:count])


def finetune_arguments(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of benchmarks/finetune.py."""
    scratch = Path(arguments.scratch) / "finetune"
    scale = SCALES[arguments.scale]
    has_data = (Path(os.environ["ANTLM_BENCH_DATA"]) / "glue").is_dir()
    return argparse.Namespace(
        suite="glue-2025" if has_data else str(scratch / "train.csv"),
        valid=None if has_data else str(scratch / "valid.csv"),
        task=TASK if has_data else "train",
        scale=scale.recipe_scale,
        words=scale.words,
        examples=scale.finetune_examples,
        epochs=1,
        device="cpu" if arguments.device == "cpu" else "auto",
        precision="bfloat16",
        batch_tokens=None,
        set=[],
        scratch=str(scratch),
    )


def write_checkpoints(arguments: argparse.Namespace) -> Iterator[Row]:
    """Write the checkpoints with random weights, and the tasks for the Trainer."""
    settings = finetune_arguments(arguments)
    Path(settings.scratch).mkdir(parents=True)
    if settings.valid:
        write_random_task(Path(settings.scratch))
    for name in (*TRAINED, "bert"):
        finetune.write_checkpoint(name, [settings.task], settings)
        if name in MODELS.values():
            add_special_tokens(Path(settings.scratch) / name, masked=name == MODELS["masked"])
        yield {"checkpoint": name}


def add_special_tokens(folder: Path, masked: bool) -> None:
    """Let a checkpoint's tokenizer add <s>, and </s> for a masked model.

    Our scorer adds them itself where the tokenizer does not, but the peers do not.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    specials = [(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}" if masked else f"{bos} $A",
        special_tokens=specials if masked else specials[:1],
    )
    if masked:  # minicons scores all tokens but these
        tokenizer.cls_token, tokenizer.sep_token = bos, eos
    tokenizer.save_pretrained(folder)


# Scoring.


def compare_scorers(kind: str, dtype: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row of our scorer, then one of each peer."""
    scale, device = SCALES[arguments.scale], torch_device(arguments)
    folder = Path(arguments.scratch) / "finetune" / MODELS[kind]
    items = load_pairs(scale.items[kind])
    texts = [option.text for item in items for option in item.options]
    common: Row = {"model": MODELS[kind], "dtype": dtype}
    opened = open_checkpoint(str(folder), OpenOptions(device=str(device), dtype=dtype))
    row, seconds = time_our_scorer(kind, opened, items, scale)
    row |= count_operator_calls(
        opened.engine,
        load_plain_model(kind, folder, str(device), dtype),
        partial(score_items, kind, opened, items),
    )
    reference = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    reference_items = items[: scale.reference_items]
    expected = score_items(kind, reference, reference_items)
    difference = np.abs(score_items(kind, opened, reference_items) - expected).max()
    yield common | row | {"largest difference from CPU fp32": float(difference)}
    del opened, reference
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the peers' process gets the memory
    peers = PeerProcess(kind, folder, str(device), texts, dtype)
    for name in peers.names:
        sizes = scale.batch_sizes[kind]
        size = peers.find_batch_size(name, sizes, min(len(texts), 2 * sizes[-1]))
        runs = [peers.run(name, len(texts), size) for _ in range(scale.rounds)]
        peer_seconds = statistics.median(run.seconds for run in runs)
        difference = np.abs(np.array(runs[-1].scores[: len(expected)]) - expected).max()
        yield common | {
            "scorer": f"{name} (batch {size})",
            "sentences/s": len(texts) / peer_seconds,
            "ours, x": peer_seconds / seconds,
            "peak memory GiB": runs[-1].memory,
            "largest difference from CPU fp32": float(difference),
        }
    peers.close()


def score_items(kind: str, opened: Checkpoint, items: Sequence[Item]) -> np.ndarray[Any, Any]:
    """Return the score of every sentence, in order."""
    methods = [resolve_method(METHOD[kind], opened)]
    predictions = multiple_choice.predict(opened, items, methods)[0]
    return np.asarray(predictions.flat("scores"), np.float64)


def time_our_scorer(
    kind: str, opened: Checkpoint, items: Sequence[Item], scale: Scale
) -> tuple[Row, float]:
    """Return the table row of our scorer and its median seconds."""
    engine = opened.engine
    device, dtype = torch.device(str(opened.metadata["device"])), str(engine.model.dtype)[6:]
    score = partial(score_items, kind, opened, items)
    score()  # warm-up
    before = engine.nodes_computed, engine.head_rows_computed
    seconds = statistics.median(measure_seconds(score, device) for _ in range(scale.rounds))
    memory = peak_memory_gib(device)
    nodes = (engine.nodes_computed - before[0]) // scale.rounds
    head_rows = (engine.head_rows_computed - before[1]) // scale.rounds
    flops = count_required_flops(opened, nodes, head_rows)
    peak_flops, source = find_peak_flops(device, dtype, scale.peak_repeats)
    row: Row = {
        "scorer": "ours",
        "sentences/s": sum(len(item.options) for item in items) / seconds,
        "of peak": flops / seconds / peak_flops,
        "peak": f"{peak_flops / 1e12:.3g} TFLOP/s, {source}",
        "peak memory GiB": memory,
    }
    return row, seconds


# Training and finetuning.


def time_training(recipe: str, loop: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of one training loop in bf16. loop: ours, compiled (ours, too) or Trainer."""
    scale, device = SCALES[arguments.scale], torch_device(arguments)
    scratch = Path(arguments.scratch) / "train"
    scratch.mkdir(exist_ok=True)
    settings = argparse.Namespace(
        scale=scale.recipe_scale,
        words=scale.words,
        steps=scale.train_steps,
        set=[f"batch.tokens={scale.train_tokens}"],
        device="cpu" if device.type == "cpu" else "auto",
        precision="bfloat16",
        compile=loop == "compiled",
        scratch=str(scratch),
    )
    result = train.run_round(recipe, "Trainer" if loop == "Trainer" else "ours", settings)
    flops_per_second = result["flops"] / result["seconds"]
    peak_flops, source = find_peak_flops(device, "bfloat16", scale.peak_repeats)
    yield {
        "model": recipe,
        "loop": loop,
        "tokens/s": result["tokens"] / result["seconds"],
        "TFLOP/s": flops_per_second / 1e12,
        "of peak (MFU)": flops_per_second / peak_flops,
        "peak": f"{peak_flops / 1e12:.3g} TFLOP/s, {source}",
        "peak memory GiB": result["memory"],
    }


def time_finetuning(body: str, loop: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of one finetuning loop in bf16."""
    settings = finetune_arguments(arguments)
    result = finetune.run_round(body, settings.task, loop, settings)
    yield {
        "model": body,
        "task": settings.task,
        "loop": loop,
        "examples/s": result["examples"] / result["seconds"],
        "accuracy": result["accuracy"],
        "peak memory GiB": result["memory"],
    }


# The process that starts the parts.


def run_command(part: Part, command: Sequence[str], max_seconds: float) -> PartResult:
    """Run a part in its own process and collect the rows that it prints, one JSON per line.

    A process that takes longer than `max_seconds` is killed with all that it has started.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, start_new_session=True)
        try:
            exit_code = process.wait(max(1.0, max_seconds))
            status = "done"
        except subprocess.TimeoutExpired:
            exit_code, status = 0, f"out of time after {max_seconds:.0f} s"
        finally:
            kill_process_group(process)
        output.seek(0)
        errors.seek(0)
        lines = [line for line in output.read().splitlines() if line.startswith("{")]
        error_lines = errors.read().strip().splitlines()
    if exit_code:
        status = f"failed: {error_lines[-1][:300] if error_lines else f'exit code {exit_code}'}"
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off when the process was killed
    return PartResult(part.table, part.name, status, time.monotonic() - start, rows)


def kill_process_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process that was started in its own session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def add_ratios(rows: Sequence[Row]) -> list[Row]:
    """Add each loop's speed as a multiple of the Trainer's, where that has a row."""
    speed = "tokens/s" if rows and "tokens/s" in rows[0] else "examples/s"
    trainer = {row["model"]: row[speed] for row in rows if row.get("loop") == "Trainer"}
    return [
        row | {"x Trainer": row[speed] / trainer[row["model"]]}
        if row.get("loop") in ("ours", "compiled") and row["model"] in trainer
        else row
        for row in rows
    ]


def describe_machine(device: torch.device) -> str:
    """Return the device, its memory and the versions of the libraries."""
    name = "CPU"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        name += f", CUDA {torch.version.cuda}"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}"


def format_markdown(results: Sequence[PartResult], heading: str) -> str:
    """Return one Markdown table per question, and one that lists the parts."""
    sections = [heading]
    for table in dict.fromkeys(result.table for result in results if result.table):
        rows = [row for result in results if result.table == table for row in result.rows]
        body = format_table(add_ratios(rows)) if rows else "No part of this table gave a row."
        sections.append(f"### {table}\n\n{body}")
    parts = [
        {"part": result.part, "status": result.status, "seconds": round(result.seconds)}
        for result in results
    ]
    return "\n\n".join([*sections, f"### Parts\n\n{format_table(parts)}"]) + "\n"


def write_results(results: Sequence[PartResult], heading: str, out: Path) -> None:
    """Write gpu.json and gpu.md; each file is replaced as a whole."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": heading, "parts": [asdict(result) for result in results]}
    texts = {
        "gpu.json": json.dumps(content, indent=1) + "\n",
        "gpu.md": format_markdown(results, heading),
    }
    for name, text in texts.items():
        temporary = out / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / name)


def run_parts(arguments: argparse.Namespace) -> list[PartResult]:
    """Run all parts until the time is over, and write the results after each."""
    end = time.monotonic() + 60 * arguments.minutes
    heading = f"`python benchmarks/gpu.py {' '.join(sys.argv[1:])}`".replace(" `", "`")
    heading += f", {time.strftime('%Y-%m-%d')}, {describe_machine(torch_device(arguments))}"
    results: list[PartResult] = []
    beginnings = tuple(arguments.only or SCALES[arguments.scale].parts)
    for part in list_parts(with_compiled=arguments.device == "cuda"):
        if part.table and not part.name.startswith(beginnings):
            continue
        seconds_left = end - time.monotonic()
        if seconds_left < 5:
            results.append(PartResult(part.table, part.name, "not started: no time left", 0.0))
        else:
            command = [sys.executable, __file__, "--part", part.name]
            command += ["--device", arguments.device, "--scale", arguments.scale]
            command += ["--scratch", arguments.scratch]
            results.append(run_command(part, command, min(part.max_seconds, seconds_left)))
        write_results(results, heading, arguments.out)
        print(f"{part.name}: {results[-1].status} ({results[-1].seconds:.0f} s)", flush=True)
    return results


def run_part(arguments: argparse.Namespace) -> int:
    """Print the rows of one part, each as soon as it is there."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    part = next(part for part in list_parts() if part.name == arguments.part)
    try:
        for row in part.make_rows(arguments):
            print(json.dumps(row), flush=True)
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--scale", default="full", choices=list(SCALES))
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        help='beginnings of names: "score causal"',
    )
    parser.add_argument("--out", type=Path, default=Path(".bench"), help="folder of the results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(__file__).parents[2] / "shared" / "data"
    os.environ.setdefault("ANTLM_BENCH_DATA", str(data))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; try --device cpu --scale nano")
    if arguments.part:
        return run_part(arguments)
    with tempfile.TemporaryDirectory() as arguments.scratch:
        if not (Path(os.environ["ANTLM_BENCH_DATA"]) / "corpus" / "train").is_dir():
            data = Path(arguments.scratch) / "data"
            write_random_text(data / "corpus" / "train", SCALES[arguments.scale].words)
            os.environ["ANTLM_BENCH_DATA"] = str(data)
        results = run_parts(arguments)
    print((arguments.out / "gpu.md").read_text(encoding="utf-8"))
    return int(any(result.status != "done" for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
