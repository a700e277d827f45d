"""Find the weight files of a checkpoint, hash them, and read the shapes of their tensors.

Files are preferred in the order of transformers 5
(`modeling_utils._get_resolved_checkpoint_files`). No weights are loaded and no pickled code is run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.errors import CheckpointError
from antlm_bench.safe_files import open_regular_file, read_regular_file
from antlm_bench.safe_json import parse_json

SAFETENSORS_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Adapters, and files that the Trainer saves beside a model, are not weights of the model.
NON_WEIGHT_FILES = (*ADAPTER_WEIGHTS, "training_args.bin", "optimizer.bin", "scheduler.bin")
RESAVE_HINT = "save or download the checkpoint again"
MAX_HEADER_BYTES = 25_000_000
"""Largest header of a safetensors file that is read: about 200,000 tensors."""
MAX_PICKLE_BYTES = 100_000_000
"""Largest unpacked pickle, without tensors, in a file of weights."""
MAX_JSON_BYTES = 100_000_000
"""Largest JSON file of a checkpoint that is read, such as an index of weights."""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """All weights of a model in one format: a single file, or the shards of an index."""

    name: str
    """Name of the single file or of the index, relative to the folder."""
    files: tuple[Path, ...]
    """The files with tensors, in the order in which transformers reads them."""
    is_pickle: bool = False


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Facts about a stored tensor."""

    shape: tuple[int, ...]
    storage: object = None
    """Equal for tensors of a pickled file that share memory; None in safetensors files."""


def list_weight_sets(folder: Path) -> list[WeightSet]:
    """Return the weight sets of a folder in order of preference; transformers reads the first.

    A folder without files of standard names has one set: all *.safetensors, else all
    pytorch_model*.bin, else all other *.bin (published layouts with names such as model.bin).
    Raises CheckpointError for an index that cannot be read.
    """
    names = [
        SAFETENSORS_FILE,
        f"{SAFETENSORS_FILE}.index.json",
        PICKLE_FILE,
        f"{PICKLE_FILE}.index.json",
    ]
    configured = (read_json(folder / "config.json") or {}).get("transformers_weights")
    if isinstance(configured, str) and configured:
        names = list(dict.fromkeys([configured, *names]))
    # A broken link counts: the checkpoint is damaged, and reading other weights would hide that.
    sets = [
        _build_weight_set(folder, name)
        for name in names
        if (folder / name).is_file() or (folder / name).is_symlink()
    ]
    if sets:
        return sets
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.bin"):
        files = sorted(
            file
            for file in folder.glob(pattern)
            if file.is_file() and file.name not in NON_WEIGHT_FILES
        )
        if files:
            return [WeightSet(files[0].name, tuple(files), is_pickle=pattern.endswith(".bin"))]
    return []


def select_weights(folder: Path, allow_pickle: bool = False) -> WeightSet | None:
    """Return the weight set that is loaded, or None if no set has an allowed format."""
    sets = list_weight_sets(folder)
    return next((weights for weights in sets if allow_pickle or not weights.is_pickle), None)


def hash_weights(folder: Path, allow_pickle: bool = True) -> str:
    """Return the sha256 of the weight files that are loaded, one after the other.

    Raises CheckpointError if the folder has no weights, or lacks a file that the index names.
    """
    weights = select_weights(folder, allow_pickle)
    if weights is None:
        raise CheckpointError("no weights: no *.safetensors file", location=str(folder))
    return hash_files(weights.files)


def hash_files(files: Sequence[Path]) -> str:
    """Return the sha256 of files in order. Raises CheckpointError for a missing file."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with open_regular_file(file) as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file.name} is missing", location=str(file.parent), hint=RESAVE_HINT
            ) from error
    return digest.hexdigest()


def read_tensor_headers(weight_set: WeightSet) -> dict[str, TensorHeader]:
    """Return tensor name -> header for a weight set. Raises CheckpointError for an unreadable file.

    Pickled files are read by an unpickler that refuses everything but tensors, so that no code in
    them runs.
    """
    headers: dict[str, TensorHeader] = {}
    for file in weight_set.files:
        try:
            headers |= (
                _read_safetensors_headers(file)
                if file.suffix == ".safetensors"
                else _read_pickle_headers(file)
            )
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file.name} is missing", location=str(file.parent), hint=RESAVE_HINT
            ) from error
        except Exception as error:  # damaged files raise errors of many types
            message = (
                f"{file.name}: cannot read which tensors it holds: {type(error).__name__}: {error}"
            )
            raise CheckpointError(
                message[:300], location=str(file.parent), hint=RESAVE_HINT
            ) from error
    return headers


def read_json(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if the file is missing or holds something else."""
    try:
        content = parse_json(read_regular_file(file, MAX_JSON_BYTES))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _build_weight_set(folder: Path, name: str) -> WeightSet:
    if not name.endswith(".index.json"):
        return WeightSet(name, (folder / name,), name.endswith(".bin"))
    try:
        index = parse_json(read_regular_file(folder / name, MAX_JSON_BYTES))
        shards = sorted(set(index["weight_map"].values()))
        if not isinstance(index["metadata"], dict) or not all(
            isinstance(shard, str) for shard in shards
        ):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = (
            f'{name} is not an index of weights: it needs "metadata", '
            'and "weight_map" from tensor names to files'
        )
        raise CheckpointError(message, location=str(folder), hint=RESAVE_HINT) from error
    return WeightSet(name, tuple(folder / shard for shard in shards), ".bin." in name)


def _read_safetensors_headers(file: Path) -> dict[str, TensorHeader]:
    """Read the JSON header: 8 bytes with its length, then tensor name -> dtype, shape, offsets."""
    with open_regular_file(file) as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(file.stat().st_size, MAX_HEADER_BYTES):
            raise ValueError("the header is longer than the file")
        header = parse_json(handle.read(length))
    return {
        name: TensorHeader(tuple(int(size) for size in entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read_pickle_headers(file: Path) -> dict[str, TensorHeader]:
    """Read a state dict that torch.save wrote, as a zip or in the old format (four pickles)."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entry = next(e for e in archive.infolist() if e.filename.endswith("data.pkl"))
            if entry.file_size > MAX_PICKLE_BYTES:
                raise ValueError(f"data.pkl has {entry.file_size:,} bytes")
            state = _TensorUnpickler(io.BytesIO(archive.read(entry))).load()
    else:
        with file.open("rb") as handle:
            for _ in range(3):  # magic number, protocol, system facts
                _TensorUnpickler(handle).load()
            state = _TensorUnpickler(handle).load()
    return {str(name): value for name, value in state.items() if isinstance(value, TensorHeader)}


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler that turns tensors into headers and refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_header
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *_: data
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("torch", "torch.storage"):
            return f"{module}.{name}"  # a dtype or the class of a storage, which is never called
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, pid: Any) -> Any:
        return pid[2]  # the key of ("storage", class, key, device, length)


def _rebuild_header(storage: object, offset: int, size: Sequence[int], *_: object) -> TensorHeader:
    return TensorHeader(tuple(size), (storage, offset))
