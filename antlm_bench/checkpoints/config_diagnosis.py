"""Find the key of config.json behind an error of transformers or torch, which often names none."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json

MAX_SECONDS = 5
Attempt = Callable[[Path], Any]
"""Repeats the failed step with the config.json of a folder. Raises any exception if it fails."""


def name_wrong_key(message: str, folder: Path, attempt: Attempt) -> str:
    """Return an error's message with the key of config.json, and its value, that caused the error.

    It is the first key without which `attempt` succeeds. The message stays as it is if it names a
    key, if no single key causes the error, or after MAX_SECONDS.
    """
    content = parse_json(read_regular_file(folder / "config.json"), allow_nan=True)
    if any(re.search(rf"\b{re.escape(key)}\b", message) for key in content):
        return message
    if _succeeds(attempt, content):  # the error came from another file
        return message
    deadline = time.monotonic() + MAX_SECONDS
    for key, value in content.items():
        # Without model_type, transformers guesses. A good auto_map names code that may not run.
        if key == "model_type" or (key == "auto_map" and isinstance(value, dict)):
            continue
        if _succeeds(attempt, {name: v for name, v in content.items() if name != key}):
            return f"{key} is {value!r:.40}: {message}"
        if time.monotonic() > deadline:
            break
    return message


def _succeeds(attempt: Attempt, content: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        try:
            attempt(Path(name))
        except Exception:  # whatever a wrong value raises
            return False
    return True
