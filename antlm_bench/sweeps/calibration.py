"""Measure how fast this machine computes, so that a plan can estimate time.

Two small models are saved, opened, run and trained on random tokens. The rates hold for the engine
of this package and for its FLOP formula, so constant factors cancel. They are kept in the user's
cache, by machine, device and dtype.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from antlm_bench.runs.folder_io import write_cache_file
from antlm_bench.suites import sources
from antlm_bench.sweeps.checkpoint_facts import ForwardSize, read_checkpoint_facts
from antlm_bench.sweeps.executors import count_cores, list_gpus
from antlm_bench.training.recipe import CorpusSpec, ModelSpec, TokenizerSpec
from antlm_bench.types import Probes
from antlm_bench.weight_files import read_json

CALIBRATION_VERSION = 2
"""Version of what is measured. Speeds that were stored under another version are ignored."""
SHAPES = ((128, 2), (384, 2))
"""(hidden size, layers) of the measured models."""
DEVICE_KINDS = ("cpu", "cuda", "mps")
ROW_LENGTH = 16
TRAINING_LENGTH = 64
MAX_CPU_TOKENS = 1024
"""Tokens of a measured batch on a CPU, where larger ones are not faster per token."""
MIN_SECONDS = 0.2
"""Duration of one measurement."""


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """The measured speed of one device with one dtype."""

    machine: str
    device: str
    """Kind of device, and its name: cpu, or cuda (NVIDIA H200)."""
    dtype: str
    hidden: tuple[int, ...]
    """Hidden sizes of the measured models, ascending. The other lists are in this order."""
    parameters: tuple[int, ...]
    forward: tuple[float, ...]
    """FLOP/s of scoring."""
    training: tuple[float, ...]
    """FLOP/s of training, forward and backward."""
    opening: tuple[float, ...]
    """Seconds to open the checkpoint."""

    @property
    def kind(self) -> str:
        """cpu, cuda or mps."""
        return self.device.partition(" ")[0]

    def forward_rate(self, hidden: int) -> float:
        """Return the FLOP/s of scoring with a model of some hidden size."""
        return _interpolate(hidden, self.hidden, self.forward)

    def training_rate(self, hidden: int) -> float:
        """Return the FLOP/s of training a model of some hidden size."""
        return _interpolate(hidden, self.hidden, self.training)

    def opening_seconds(self, parameters: int) -> float:
        """Return the seconds to open a checkpoint: a constant plus a rate per parameter."""
        (small, large), (fast, slow) = self.parameters, self.opening
        rate = max(0.0, (slow - fast) / (large - small))
        return max(fast + rate * (parameters - small), 0.0)


def _interpolate(hidden: int, sizes: Sequence[int], rates: Sequence[float]) -> float:
    """Return the rate of a hidden size: linear in both logarithms, constant beyond the ends."""
    logs = np.interp(math.log(hidden), np.log(sizes), np.log(rates))
    return float(math.exp(logs))


def load_speed(device: str, dtype: str) -> DeviceSpeed | None:
    """Return a stored speed: of this machine's cpu, cuda or mps, or of a device or machine whose
    name contains `device`. None if there is none.
    """
    return next((speed for speed in list_speeds(device) if speed.dtype == dtype), None)


def list_speeds(device: str) -> list[DeviceSpeed]:
    """Return the stored speeds of a device, in all dtypes. device: as for load_speed; "" = all."""
    speeds, kind = _read_speeds(), device.partition(":")[0]
    if kind in DEVICE_KINDS:
        machine = name_machine()
        return [each for each in speeds if (each.machine, each.kind) == (machine, kind)]
    return [each for each in speeds if device.lower() in f"{each.machine} {each.device}".lower()]


def guess_device_kind() -> str:
    """Return the kind of device that commands choose on this machine, without torch."""
    if list_gpus():
        return "cuda"
    is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    return "mps" if is_apple else "cpu"


def name_machine() -> str:
    """Return the name of this machine, and how many CPUs this process may use."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return f"{platform.node()} {count_cores()} CPUs" + (f", {threads} threads" if threads else "")


def measure_speed(device: str, dtype: str) -> DeviceSpeed:
    """Measure a device of this machine, and keep the result in the cache.

    device: auto, cpu, cuda or mps. Raises UsageError for a device that is not here.
    """
    from antlm_bench.checkpoints import pretrained

    torch_device = pretrained.resolve_device(device)
    measured = [
        _measure_shape(hidden, layers, str(torch_device), dtype) for hidden, layers in SHAPES
    ]
    parameters, forward, training, opening = zip(*measured, strict=True)
    speed = DeviceSpeed(
        machine=name_machine(),
        device=_describe_device(torch_device),
        dtype=dtype,
        hidden=tuple(hidden for hidden, _ in SHAPES),
        parameters=parameters,
        forward=forward,
        training=training,
        opening=opening,
    )
    _store_speed(speed)
    return speed


def _describe_device(device: Any) -> str:
    import torch

    if device.type != "cuda":
        return str(device.type)
    return f"cuda ({torch.cuda.get_device_name(device)})"


def _measure_shape(
    hidden: int, layers: int, device: str, dtype: str
) -> tuple[int, float, float, float]:
    """Return (parameters, FLOP/s of scoring, FLOP/s of training, seconds to open)."""
    from antlm_bench.checkpoints import OpenOptions, open_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_random_model(path, hidden, layers)
        options = OpenOptions(device=device, dtype=dtype)
        start_time = time.perf_counter()
        checkpoint = open_checkpoint(str(path), options)
        opening = time.perf_counter() - start_time
        size = read_checkpoint_facts(str(path), options).size
    assert size is not None  # it was saved with config.json and weights
    engine = checkpoint.engine
    num_tokens = engine.batch_tokens
    if engine.device.type == "cpu":
        num_tokens = min(num_tokens, MAX_CPU_TOKENS)
    probes = _random_probes(num_tokens, size.vocabulary)
    rows, length = probes.ids.shape
    flops = size.forward_flops(rows * length, rows * length, rows * length**2 / 2)
    seconds = _time_calls(lambda: engine.score_probes([probes], rows))
    model = _build_random_model(hidden, layers, size.vocabulary).to(engine.device)
    training_flops, training_seconds = _measure_training(
        model, size, dtype, rows=max(8, num_tokens // 256)
    )
    return size.parameters, flops / seconds, training_flops / training_seconds, opening


def _build_random_model(hidden: int, layers: int, vocabulary: int) -> Any:
    import torch

    from antlm_bench.training.model_factory import build_model

    spec = ModelSpec(
        architecture="llama",
        layers=layers,
        hidden=hidden,
        heads=hidden // 32,
        ffn=8 * hidden // 3,
        positions=128,
        tied=True,
        norm_eps=1e-6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(spec, vocabulary, masked=False)


def save_random_model(path: Path, hidden: int, layers: int) -> None:
    """Save a Llama with random weights, and a tokenizer."""
    from transformers import PreTrainedTokenizerFast

    from antlm_bench.checkpoints.pretrained import silence_transformers
    from antlm_bench.training.corpus import SPECIAL_TOKENS, train_tokenizer

    words = np.random.default_rng(0).integers(97, 123, (2000, 6), dtype=np.uint8)
    lines = (bytes(word).decode() for word in words)
    tokenizer = train_tokenizer(lines, TokenizerSpec(vocabulary=4096), CorpusSpec(document="line"))
    with silence_transformers():
        model = _build_random_model(hidden, layers, len(tokenizer.get_vocab()))
        model.save_pretrained(path)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS).save_pretrained(path)


def _random_probes(batch_tokens: int, vocabulary: int) -> Probes:
    """Return causal rows for one batch, each token of which is read."""
    rows = batch_tokens // ROW_LENGTH
    rng = np.random.default_rng(0)
    ids = rng.integers(5, vocabulary, (rows, ROW_LENGTH)).astype(np.int32)
    row, position = (array.ravel().astype(np.int32) for array in np.indices(ids.shape))
    targets = rng.integers(5, vocabulary, len(row)).astype(np.int32)
    return Probes(ids, "causal", row, position, targets, row)


def _measure_training(model: Any, size: ForwardSize, dtype: str, rows: int) -> tuple[float, float]:
    """Return (FLOPs, seconds) of an update: forward, backward, optimizer."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(5, size.vocabulary, (rows, TRAINING_LENGTH), device=model.device)

    def make_update() -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    tokens = ids.numel()
    flops = 3 * size.forward_flops(tokens, tokens, tokens * TRAINING_LENGTH / 2)
    return flops, _time_calls(make_update)


def _time_calls(function: Callable[[], object]) -> float:
    """Return the seconds of a call, after a first one that is not counted."""
    function()
    start_time, count = time.perf_counter(), 0
    while time.perf_counter() - start_time < MIN_SECONDS:
        function()
        count += 1
    return (time.perf_counter() - start_time) / count


def _speeds_file() -> Path:
    return sources.cache_dir() / "device-speeds.json"


def _read_speeds() -> list[DeviceSpeed]:
    content = read_json(_speeds_file()) or {}
    entries = content.get("speeds")
    if content.get("version") != CALIBRATION_VERSION or not isinstance(entries, list):
        return []
    speeds = []
    for entry in entries:
        try:
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()
            }
            speeds.append(DeviceSpeed(**values))
        except (AttributeError, TypeError):
            continue  # damaged, or of another version
    return speeds


def _store_speed(speed: DeviceSpeed) -> None:
    """Add a speed to the cache. A cache that cannot be written is left out."""
    key = (speed.machine, speed.device, speed.dtype)
    others = [s for s in _read_speeds() if (s.machine, s.device, s.dtype) != key]
    content = {"version": CALIBRATION_VERSION, "speeds": [asdict(s) for s in [*others, speed]]}
    write_cache_file(_speeds_file(), json.dumps(content, indent=1).encode())
