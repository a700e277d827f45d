"""Files of a PEFT adapter: its weights, their hashes, and a folder without it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antlm_bench.atomic_files import temporary_path
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import CheckpointError
from antlm_bench.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, hash_files


def adapter_weights(adapter: Path, options: OpenOptions) -> Path:
    """Return the file with an adapter's tensors.

    Raises CheckpointError if there is none, or only a pickled one without --allow-pickle.
    """
    safetensors_file, pickled_file = (adapter / name for name in ADAPTER_WEIGHTS)
    if safetensors_file.is_file():
        return safetensors_file
    if not pickled_file.is_file():
        raise CheckpointError(
            f"no weights: no {safetensors_file.name}",
            location=str(adapter),
            hint="save the adapter again",
        )
    if not options.allow_pickle:
        raise CheckpointError(
            "the weights of the adapter are pickled, and unpickling can run code",
            location=str(adapter),
            hint="convert them to safetensors, or pass --allow-pickle if you trust their author",
        )
    return pickled_file


def adapter_metadata(adapter: Path, base_hash: str, options: OpenOptions) -> dict[str, Any]:
    """Return hashes for the run's manifest: of base weights, adapter weights and adapter
    configuration, and one ("weights") that is computed from these three.
    """
    component_hashes = {
        "base_weights": base_hash,
        "adapter_weights": hash_files([adapter_weights(adapter, options)]),
        "adapter_config": hash_files([adapter / ADAPTER_CONFIG]),
    }
    combined = hashlib.sha256(json.dumps(component_hashes, sort_keys=True).encode()).hexdigest()
    return {"weights": combined, "adapter": adapter.resolve().name, **component_hashes}


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """Yield a folder with the same files but without the adapter, because transformers loads an
    adapter that lies beside the weights.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        yield folder
        return
    with temporary_path(Path(tempfile.mkdtemp())) as temporary:
        copy = temporary / folder.resolve().name
        copy.mkdir()
        for path in folder.iterdir():
            if path.name not in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS):
                (copy / path.name).symlink_to(path.resolve())
        yield copy
