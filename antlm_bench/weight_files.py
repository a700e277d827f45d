"""The files that hold a checkpoint's weights: which are read, their hash, names and shapes.

The order of preference is that of transformers 5 (`modeling_utils._get_resolved_checkpoint_files`).
Only headers are read; no weight is loaded and no pickled code is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.errors import CheckpointError

SAFETENSORS_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# Not a model's weights: adapters, and what the Trainer saves beside a model.
NON_WEIGHT_FILES = (*ADAPTER_WEIGHTS, "training_args.bin", "optimizer.bin", "scheduler.bin")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
RESAVE_HINT = "save or download the checkpoint again"
MAX_HEADER_BYTES = 100_000_000  # bytes; safetensors refuses longer headers too


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One complete set of weights in a folder: a single file, or the files that an index names."""

    name: str
    """The file or index that identifies the set, relative to the folder."""
    files: tuple[Path, ...]
    """The files with tensors, in the order in which the library reads them."""
    is_pickle: bool = False


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Shape of a stored tensor. `storage` is equal for tensors of one file that share memory
    (pickles only).
    """

    shape: tuple[int, ...]
    storage: object = None


def list_weight_sets(folder: Path) -> list[WeightSet]:
    """Return the sets of weights in a folder, the one that transformers reads first.

    A folder without any file of a standard name has one set: all its *.safetensors, else all its
    pytorch_model*.bin, else what its authors called RUN.bin or model.bin (original layouts).
    Raises CheckpointError for an index that cannot be read.
    """
    explicit = _configured_weight_file(folder)
    names = [
        SAFETENSORS_FILE,
        f"{SAFETENSORS_FILE}.index.json",
        PICKLE_FILE,
        f"{PICKLE_FILE}.index.json",
    ]
    names = list(dict.fromkeys([*([explicit] if explicit else []), *names]))
    # A link to a file that is gone counts: that is damage, and not a reason to read other weights.
    sets = [
        _build_weight_set(folder, n)
        for n in names
        if (folder / n).is_file() or (folder / n).is_symlink()
    ]
    if sets:
        return sets
    for pattern, pickled in (
        ("*.safetensors", False),
        ("pytorch_model*.bin", True),
        ("*.bin", True),
    ):
        found = sorted(
            file
            for file in folder.glob(pattern)
            if file.is_file() and file.name not in NON_WEIGHT_FILES
        )
        if found:
            return [WeightSet(found[0].name, tuple(found), pickled)]
    return []


def select_weights(folder: Path, allow_pickle: bool = False) -> WeightSet | None:
    """Return the set of weights that is read, or None if there is none of an allowed format."""
    return next(
        (found for found in list_weight_sets(folder) if allow_pickle or not found.is_pickle), None
    )


def hash_weights(folder: Path, allow_pickle: bool = True) -> str:
    """sha256 over the bytes of the files that are loaded, one after the other; no other file
    changes it.

    Raises CheckpointError if the folder has no weights, or lacks a file that the index names.
    """
    chosen = select_weights(folder, allow_pickle)
    if chosen is None:
        raise CheckpointError("no weights: no *.safetensors file", location=str(folder))
    return hash_files(chosen.files)


def hash_files(files: Sequence[Path]) -> str:
    """sha256 over the bytes of files, one after the other. Raises CheckpointError for a file that
    is not there.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file.name} is missing", location=str(file.parent), hint=RESAVE_HINT
            ) from error
    return digest.hexdigest()


def read_tensor_headers(weight_set: WeightSet) -> dict[str, TensorHeader]:
    """Return name -> header of every tensor of a set. Raises CheckpointError for a file that cannot
    be read.

    Pickled files are read by an unpickler that knows tensors only, so nothing in them can run.
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
        except Exception as error:  # a damaged file fails in a dozen ways
            message = (
                f"{file.name}: cannot read which tensors it holds: {type(error).__name__}: {error}"
            )
            raise CheckpointError(
                message[:300], location=str(file.parent), hint=RESAVE_HINT
            ) from error
    return headers


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file or it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _configured_weight_file(folder: Path) -> str:
    """The file that config.json names as the one with the weights (`transformers_weights`), else
    "".
    """
    named = (read_json(folder / "config.json") or {}).get("transformers_weights")
    return named if isinstance(named, str) else ""


def _build_weight_set(folder: Path, name: str) -> WeightSet:
    if not name.endswith(".index.json"):
        return WeightSet(name, (folder / name,), name.endswith(".bin"))
    try:
        index = json.loads((folder / name).read_text(encoding="utf-8"))
        shards = sorted(set(index["weight_map"].values()))
        if not isinstance(index["metadata"], dict) or not all(
            isinstance(shard, str) for shard in shards
        ):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = (
            f'{name} is no index of weights: it needs "metadata", '
            'and "weight_map" from tensors to files'
        )
        raise CheckpointError(message, location=str(folder), hint=RESAVE_HINT) from error
    return WeightSet(name, tuple(folder / shard for shard in shards), ".bin." in name)


def _read_safetensors_headers(file: Path) -> dict[str, TensorHeader]:
    """Read the JSON header: 8 bytes of length, then name -> dtype, shape and offsets."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(file.stat().st_size, MAX_HEADER_BYTES):
            raise ValueError("the header is longer than the file")
        header = json.loads(handle.read(length))
    return {
        name: TensorHeader(tuple(int(size) for size in entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _read_pickle_headers(file: Path) -> dict[str, TensorHeader]:
    """Read a state dict that torch.save wrote, in its zip format or the older one (four pickles in
    a row).
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
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
            return f"{module}.{name}"  # a dtype or the class of a storage: never called
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, pid: Any) -> Any:
        return pid[2]  # ("storage", class, key, device, length)


def _rebuild_header(storage: object, offset: int, size: Sequence[int], *_: object) -> TensorHeader:
    return TensorHeader(tuple(size), (storage, offset))
