"""Count the texts of many units, each distinct work once, in a process that may import torch.

Tokenizers need transformers, and with it torch, which takes hundreds of megabytes. A plan counts in
a child process, so that its own memory stays small, and keeps the counts in the user's cache.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from antlm_bench.errors import BenchError, MissingPackage
from antlm_bench.packages import require_packages
from antlm_bench.scoring.conventions import CONVENTIONS_VERSION
from antlm_bench.sweeps.checkpoint_facts import CheckpointFacts
from antlm_bench.sweeps.sweep_texts import (
    SUITE_OPTIONS,
    TASK_OPTIONS,
    fingerprint_suite,
    load_suite_texts,
    load_task_texts,
)
from antlm_bench.sweeps.token_counts import (
    CountsCache,
    TextCounts,
    count_suite,
    count_task,
    load_tokenizer,
)
from antlm_bench.types import Attention

SCORING_OPTIONS = (*SUITE_OPTIONS, "bos", "compat", "max_length")
"""Options of `score` that decide what is counted."""
Counts = tuple[TextCounts, ...]


@dataclass(frozen=True, slots=True)
class CountRequest:
    """Texts that a checkpoint reads, to be counted."""

    facts: CheckpointFacts
    suite: str
    methods: tuple[str, ...] = ()
    """Methods of a score unit."""
    task: str = ""
    """Task of a finetune unit; "" = a suite is scored."""
    attention: Attention = "full"
    """Attention of a finetune unit."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of SCORING_OPTIONS, or of TASK_OPTIONS and `frozen`."""

    def cache_key(self) -> list[Any] | None:
        """Return what the counts depend on; None if they cannot be kept."""
        fingerprint = fingerprint_suite(self.suite, self.options.get("valid"))
        if fingerprint is None:  # texts without files, such as those of lm-eval
            return None
        facts = self.facts
        vocabulary = facts.size.vocabulary if facts.size else 0
        key = [facts.tokenizer_hash, facts.max_length, vocabulary, fingerprint, self.options]
        if self.task:
            return ["finetune", self.suite, self.task, self.attention, *key]
        attentions = sorted(facts.attentions)
        return ["score", sorted(self.methods), attentions, CONVENTIONS_VERSION, *key]


def build_score_request(
    facts: CheckpointFacts, suite: str, methods: Sequence[str], options: Mapping[str, Any]
) -> CountRequest:
    """Return the request of a score unit. options: all of `score`."""
    settings = {name: options[name] for name in SCORING_OPTIONS if name in options}
    return CountRequest(facts, suite, tuple(methods), options=settings)


def build_finetune_request(
    facts: CheckpointFacts,
    suite: str,
    task: str,
    attention: Attention,
    options: Mapping[str, Any],
) -> CountRequest:
    """Return the request of a finetune unit. options: all of `finetune`."""
    settings = {name: options[name] for name in (*TASK_OPTIONS, "frozen") if name in options}
    return CountRequest(facts, suite, task=task, attention=attention, options=settings)


def count_texts(requests: Sequence[CountRequest], cache: CountsCache) -> list[Counts | str]:
    """Return the counts of each request, or why they cannot be counted.

    The counts of a score request have one entry; those of a finetune request have two: the forward
    passes that a backward pass follows, and the others.
    """
    names = []
    requests_by_name: dict[str, tuple[CountRequest, list[Any] | None]] = {}
    for index, request in enumerate(requests):
        key = request.cache_key()
        # Requests with equal keys, such as those of the shards of a suite, are counted once.
        name = f"request {index}" if key is None else json.dumps(key, sort_keys=True, default=str)
        requests_by_name.setdefault(name, (request, key))
        names.append(name)
    results: dict[str, Counts | str] = {}
    missing: list[tuple[str, CountRequest, list[Any] | None]] = []
    for name, (request, key) in requests_by_name.items():
        if key is not None and (stored := cache.find(key)):
            results[name] = stored
        else:
            missing.append((name, request, key))
    missing.sort(key=lambda entry: (entry[1].suite, entry[1].task))  # load each once
    if missing:
        count = _count_here if "torch" in sys.modules else _count_in_child_process
        new_results = count([request for _, request, _ in missing])
        for (name, _, key), counts in zip(missing, new_results, strict=True):
            results[name] = counts
            if key is not None and not isinstance(counts, str):
                cache.store(key, counts)
    return [results[name] or "it was not counted" for name in names]


def _count_here(requests: Sequence[CountRequest]) -> list[Counts | str]:
    counter = _Counter()
    results: list[Counts | str] = []
    for request in requests:
        try:
            results.append(counter.count(request))
        except BenchError as error:
            results.append(error.message)
    return results


class _Counter:
    """Counts requests. Tokenizers, and the texts of the last suite or task, are loaded once."""

    def __init__(self) -> None:
        self.tokenizers: dict[str, Any] = {}
        """Hash of a tokenizer -> the tokenizer."""
        self.texts: tuple[object, Any] = (None, None)
        """What was loaded last, and the suite or task."""

    def count(self, request: CountRequest) -> Counts:
        facts, options = request.facts, request.options
        texts, tokenizer = self._load_texts(request), self._load_tokenizer(facts)
        if not request.task:
            return (count_suite(facts, texts, request.methods, options, tokenizer),)
        fitted, selection, valid = count_task(facts, texts, request.attention, tokenizer)
        if options.get("frozen"):
            return TextCounts(), fitted + selection + valid
        epochs = texts.training.epochs
        return fitted.scale(epochs), selection.scale(epochs) + valid

    def _load_texts(self, request: CountRequest) -> Any:
        key = (request.suite, request.task, request.options)
        if self.texts[0] != key:
            if request.task:
                texts: Any = load_task_texts(request.suite, request.task, request.options)
            else:
                texts = load_suite_texts(request.suite, request.options)
            self.texts = key, texts
        return self.texts[1]

    def _load_tokenizer(self, facts: CheckpointFacts) -> Any:
        if not facts.tokenizer_hash:
            return None
        if facts.tokenizer_hash not in self.tokenizers:
            self.tokenizers[facts.tokenizer_hash] = load_tokenizer(facts)
        return self.tokenizers[facts.tokenizer_hash]


def _count_in_child_process(requests: Sequence[CountRequest]) -> list[Counts | str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(requests),
        capture_output=True,
        env=environment,
    )
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {process.returncode}"
        return [f"counting its tokens failed: {reason}"] * len(requests)
    results: list[Counts | str] = pickle.loads(process.stdout)  # of our own process
    return results


def _main() -> None:
    """Count the pickled requests of stdin, and write the pickled counts to stdout."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not get between the bytes
        requests = pickle.loads(sys.stdin.buffer.read())
        try:
            with require_packages():
                counts = _count_here(requests)
        except MissingPackage as error:
            sys.exit(f"{error.message}: {error.hint}")
        out.write(pickle.dumps(counts))


if __name__ == "__main__":
    _main()
