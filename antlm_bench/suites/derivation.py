"""Derive EWoK's official files from a hub dataset, with BabyLM's vocabulary filter.

As in evaluation_pipeline/ewok/dl_and_filter.py of BabyLM 2025, a row is kept if every nltk word
token of its lower-cased texts is in the vocabulary, and is written twice, the second time with
contexts and targets exchanged. nltk's sentence splitter needs a model that must be downloaded, so
texts are split after . ! ? instead, which suffices for EWoK's plain sentences. The [expect] table
of the suite has the official number of items, so that a difference would be noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from antlm_bench.errors import DataError
from antlm_bench.suites.declaration_types import DerivationSpec

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def derive_files(
    rows: Iterable[Mapping[str, Any]],
    spec: DerivationSpec,
    vocabulary: Iterable[str],
    location: str,
) -> dict[str, bytes]:
    """Return file name -> its bytes (JSONL). Raises DataError if a row lacks a field."""
    words = frozenset(vocabulary)
    tokenize = build_word_tokenizer()
    lines_by_file: dict[str, list[str]] = {}
    for index, row in enumerate(rows):
        row_location = f"{location}:{index}"
        partition = _require_text(row, spec.partition, row_location)
        texts = [_require_text(row, field, row_location) for field in spec.fields]
        if not words.issuperset(token for text in texts for token in tokenize(text.lower())):
            continue
        lines = lines_by_file.setdefault(f"{partition}.jsonl", [])
        lines.append(json.dumps(dict(row)))
        if spec.swap:
            swapped = dict(row)
            for first, second in spec.swap:
                swapped[first], swapped[second] = row[second], row[first]
            lines.append(json.dumps(swapped))
    return {file: ("\n".join(lines) + "\n").encode() for file, lines in lines_by_file.items()}


def build_word_tokenizer() -> Callable[[str], list[str]]:
    """Return a function that works as nltk's word_tokenize, without a model for sentences."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    return lambda text: [
        token for sentence in _SENTENCE_END.split(text) for token in tokenizer.tokenize(sentence)
    ]


def _require_text(row: Mapping[str, Any], field: str, location: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise DataError(f"the field {field!r} is {value!r:.40}, not a text", location=location)
    return value
