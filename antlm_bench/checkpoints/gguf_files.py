"""Open GGUF files: transformers dequantises the weights to fp32, and they are kept in the cache.

A GGUF file holds weights, configuration and tokenizer of llama.cpp. transformers turns all three
into its own (`gguf_file=`); the result is saved as an ordinary folder, named after the sha256 of
the file and the versions that converted it, so that everything after that is as for any checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from antlm_bench.atomic_files import replace_folder
from antlm_bench.errors import CheckpointError, first_line
from antlm_bench.packages import missing_package
from antlm_bench.suites.sources import cache_dir
from antlm_bench.weight_files import WeightSet, hash_files

GGUF_SUFFIX = ".gguf"
PARAMETERS_PER_BYTE = 8
"""The smallest quantised types need less than two bits per parameter."""


def find_gguf_file(path: Path) -> Path | None:
    """Return the GGUF file that a path names, or that is alone in a folder without config.json.

    Raises CheckpointError for a folder with several: each is another quantisation of a model.
    """
    if path.is_file():
        return path if path.suffix.lower() == GGUF_SUFFIX else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == GGUF_SUFFIX)
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise CheckpointError(
            f"the folder has {len(files)} GGUF files: {names}",
            location=str(path),
            hint=f"name one: --model {path / files[0].name}",
        )
    return files[0] if files else None


def convert_gguf(file: Path) -> Path:
    """Return the folder with the weights, configuration and tokenizer of a GGUF file, in fp32.

    Raises MissingPackage without the package gguf, and CheckpointError for a file that transformers
    cannot convert.
    """
    digest = hash_files([file])
    gguf_version = _gguf_version(file)
    # The version of transformers, without importing it: the file may have been converted before.
    key = f"{digest} transformers {metadata.version('transformers')} gguf {gguf_version}"
    name = f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = cache_dir() / "gguf" / name
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(folder, lambda target: _write_folder(file, target))
    return folder


def _gguf_version(file: Path) -> str:
    """Return the version of the gguf package. Raises MissingPackage without it."""
    try:
        return metadata.version("gguf")
    except metadata.PackageNotFoundError:
        raise missing_package("gguf", str(file)) from None


def _write_folder(file: Path, target: Path) -> None:
    import torch
    import transformers

    from antlm_bench.checkpoints.build_limits import limit_model_size

    arguments: dict[str, Any] = {"gguf_file": file.name}
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        config = transformers.AutoConfig.from_pretrained(file.parent, **arguments)
        with limit_model_size(file, WeightSet(file.name, (file,)), PARAMETERS_PER_BYTE):
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **arguments,
            )
    except CheckpointError:
        raise
    except Exception as error:  # transformers and gguf raise unrelated types
        raise CheckpointError(
            f"transformers cannot convert this GGUF file: {first_line(error)}",
            location=str(file),
            hint="give the checkpoint from which it was made",
        ) from error
    finally:
        logger.setLevel(level)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"the file gives no value for {len(missing)} parameters ({missing[0]}, ...): they "
            "would be random numbers",
            location=str(file),
            hint="give the checkpoint from which it was made",
        )
    model.hf_quantizer = None  # it marks weights that are now fp32 as quantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **arguments)
    except Exception:  # opening the folder then asks for --tokenizer
        return
    tokenizer.save_pretrained(target)
