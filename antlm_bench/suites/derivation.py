"""Derive official files from a hub data set: EWoK's vocabulary filter and exchanged twins.

As in evaluation_pipeline/ewok/dl_and_filter.py of BabyLM 2025, a row is kept if every nltk word
token of its lower-cased texts is in the word list, and is written twice, the second time with
contexts and targets exchanged. nltk's sentence splitter needs a model that is fetched separately;
EWoK's texts are plain sentences, so they are split after . ! ? here. The official counts in the
suite's [expect] table would show a difference.
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
    """Return file name -> its bytes (JSONL). Raises DataError where a row lacks a field."""
    words = frozenset(vocabulary)
    tokenize = build_word_tokenizer()
    files: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        partition, *texts = (
            _require_text(row, field, f"{location}:{number}")
            for field in (spec.partition, *spec.fields)
        )
        if words.issuperset(token for text in texts for token in tokenize(text.lower())):
            twin = dict(row)
            for first, second in spec.swap:
                twin[first], twin[second] = row[second], row[first]
            lines = files.setdefault(f"{partition}.jsonl", [])
            lines += [json.dumps(dict(row)), *([json.dumps(twin)] if spec.swap else [])]
    return {name: ("\n".join(lines) + "\n").encode() for name, lines in files.items()}


def build_word_tokenizer() -> Callable[[str], list[str]]:
    """Return nltk's word_tokenize without its sentence model. Importing nltk takes seconds."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    return lambda text: [
        token for part in _SENTENCE_END.split(text) for token in tokenizer.tokenize(part)
    ]


def _require_text(row: Mapping[str, Any], field: str, location: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        raise DataError(f"the field {field!r} is {value!r:.40}, not a text", location=location)
    return value
