"""Where the CPU time of one `score` command goes: each phase, and how often it is entered.

    python benchmarks/score_profile.py OUT.json score --model CKPT --suite nano --out run

Runs the command in this process and writes {"seconds": {phase: CPU seconds}, "calls": {phase:
number}, "texts": [tokenized texts, different ones]} as JSON. CPU seconds are those of the whole
process, all threads included, and count once: for the innermost phase. Phases are measured by
wrapping functions of the package from outside. Python's time before the first import is `other`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

OTHER, IMPORT, LOAD, HASH, OPEN = "other", "import", "load data", "hash files", "open checkpoint"
SELF_TEST, TOKENIZE, COMPUTE = "self-test", "tokenize", "compute"
SUMMARIZE, WRITE, VERIFY = "summarize", "write", "read back and verify"
PHASES = (
    IMPORT,
    LOAD,
    HASH,
    OPEN,
    SELF_TEST,
    TOKENIZE,
    COMPUTE,
    SUMMARIZE,
    WRITE,
    VERIFY,
    OTHER,
)
WHOLE_PHASES = (SELF_TEST, VERIFY)
"""Phases that keep the time of other phases within them."""
FUNCTIONS = {
    "commands.requested_suites:SuiteCache.load": LOAD,
    "weight_files:hash_files": HASH,
    "checkpoints.metadata:hash_files": HASH,
    "checkpoints.checkpoint_records:hash_files": HASH,
    "commands.score_session:ScoreSession.open": OPEN,
    "checkpoints.checkpoint:run_self_test": SELF_TEST,
    "scoring.tokens:TextTokenizer.tokenize": TOKENIZE,
    "scoring.engine:Engine.score_probes": COMPUTE,
    "commands.score_cells:build_finished_cell": SUMMARIZE,
    "runs.chunks:ChunkFolder.save_chunk": WRITE,
    "runs.store:RunWriter.__enter__": WRITE,
    "runs.store:RunWriter.finish_cell": WRITE,
    "runs.store:RunWriter.record_provenance": WRITE,
    "commands.score:open_verified_runs": VERIFY,
    "commands.score_session:open_verified_runs": VERIFY,
}
"""Module of the package and function -> phase."""


class PhaseTimer:
    """CPU seconds of the process in each phase. Phases nest; other threads enter none."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._phases, self._since = [OTHER], 0.0  # the process started at 0

    def add_elapsed(self) -> None:
        """Add the time since the last call to the current phase."""
        now = time.process_time()
        self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the context as this phase, unless a phase around it keeps all time."""
        if current_thread() is not main_thread() or self._phases[-1] in WHOLE_PHASES:
            yield
            return
        self.calls[phase] += self._phases[-1] != phase
        self.add_elapsed()
        self._phases.append(phase)
        try:
            yield
        finally:
            self.add_elapsed()
            self._phases.pop()

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Replace a function of a module or class by one that is measured."""
        original: Callable[..., Any] = getattr(owner, name)

        @wraps(original)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(phase):
                return original(*args, **kwargs)

        setattr(owner, name, measured)


class TextCounter:
    """Counts the texts that are tokenized, and how many differ. Texts are kept as hashes."""

    def __init__(self) -> None:
        self.total = 0
        self._hashes: set[int] = set()

    def watch(self, tokenizer_class: Any) -> None:
        """Count the texts of every call of `tokenize`."""
        original = tokenizer_class.tokenize

        @wraps(original)
        def tokenize(tokenizer: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
            texts = list(texts)
            self.total += len(texts)
            self._hashes.update(map(hash, texts))
            return original(tokenizer, texts, *args, **kwargs)

        tokenizer_class.tokenize = tokenize

    @property
    def num_different(self) -> int:
        return len(self._hashes)


def install(timer: PhaseTimer) -> TextCounter:
    """Measure imports from now on, import the package, and wrap FUNCTIONS."""
    timer.wrap(SourceFileLoader, "exec_module", IMPORT)
    timer.wrap(ExtensionFileLoader, "create_module", IMPORT)
    timer.wrap(ExtensionFileLoader, "exec_module", IMPORT)
    counter = TextCounter()
    counter.watch(importlib.import_module("antlm_bench.scoring.tokens").TextTokenizer)
    for function, phase in FUNCTIONS.items():
        module, _, path = function.partition(":")
        owner: Any = importlib.import_module(f"antlm_bench.{module}")
        *classes, name = path.split(".")
        for class_name in classes:
            owner = getattr(owner, class_name)
        timer.wrap(owner, name, phase)
    return counter


def main() -> int:
    out, *words = sys.argv[1:]
    timer = PhaseTimer()
    counter = install(timer)
    app = importlib.import_module("antlm_bench.cli.app")
    exit_code: int = app.run(words)
    timer.add_elapsed()
    record = {
        "seconds": timer.seconds,
        "calls": timer.calls,
        "texts": [counter.total, counter.num_different],
    }
    Path(out).write_text(json.dumps(record), encoding="utf-8")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
