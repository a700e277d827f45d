"""Helpers of the tests of `score`: pair files, counts of model calls, a plain loop as oracle."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from antlm_bench.checkpoints import Checkpoint
from antlm_bench.runs.provenance import PROVENANCE_FILE

NOUNS = ["cat", "dog", "boy", "girl", "house"]
ADJECTIVES = ["old", "small", "near", "every"]


def make_agreement_rows(limit: int = 40) -> list[dict[str, str]]:
    """Make rows of a small suite: two phenomena, three paradigms of unequal size."""
    rows = []
    for number, (adjective, noun, verb) in enumerate(product(ADJECTIVES, NOUNS, ["sleep", "see"])):
        paradigm = ("number", "object", "gender")[number % 7 % 3]
        phenomenon = "binding" if paradigm == "gender" else "agreement"
        good, bad = f"the {adjective} {noun} {verb}s.", f"the {adjective} {noun} {verb}."
        if number % 3 == 0:
            good, bad = f"who {verb}s the {noun}s?", f"who {verb} a {noun}s near the house?"
        rows.append({"good": good, "bad": bad, "phenomenon": phenomenon, "paradigm": paradigm})
    return rows[:limit]


def write_pairs(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_sentence_pairs(path: Path, *pairs: tuple[str, str]) -> Path:
    """Write a file of pairs without labels; `x.csv` holds the items x_0, x_1, ..."""
    return write_pairs(path, [{"good": good, "bad": bad} for good, bad in pairs])


@dataclass
class ModelWork:
    """Counts of scorer calls and of computed tokens after models were opened."""

    calls: int = 0
    nodes: int = 0


def count_work(monkeypatch: pytest.MonkeyPatch) -> ModelWork:
    work, original = ModelWork(), Checkpoint.score_probes

    def score_counted(self: Checkpoint, *args: Any, **options: Any) -> Any:
        before = self.engine.nodes_computed
        result = original(self, *args, **options)
        work.calls, work.nodes = work.calls + 1, work.nodes + self.engine.nodes_computed - before
        return result

    monkeypatch.setattr(Checkpoint, "score_probes", score_counted)
    return work


def hash_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return path -> (time of change, hash) of every file below a folder, without the provenance,
    which holds times.
    """
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != PROVENANCE_FILE
    }


def sum_logprobs_by_hand(
    folder: Path, text: str, *, masked: bool, specials: str, start: int = 0
) -> tuple[float, int]:
    """Return (sum of log-probabilities, number of tokens) by transformers, one row at a time.

    specials: "own" (of the tokenizer), "bos" (one BOS) or "none". start: first scored character.
    """
    import torch
    import transformers

    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoding = tokenizer(text, add_special_tokens=specials == "own", return_offsets_mapping=True)
    ids, offsets = list(encoding["input_ids"]), list(encoding["offset_mapping"])
    if specials == "bos":
        ids, offsets = [tokenizer.bos_token_id, *ids], [(0, 0), *offsets]
    total, count = 0.0, 0
    for position, (token, (_, end)) in enumerate(zip(ids, offsets, strict=True)):
        if end <= start or (position == 0 and not masked):
            continue
        row = torch.tensor([ids])
        if masked:
            row[0, position] = tokenizer.mask_token_id
        with torch.inference_mode():
            logits = model(input_ids=row).logits[0, position if masked else position - 1]
        total, count = total + logits.log_softmax(-1)[token].item(), count + 1
    return total, count
