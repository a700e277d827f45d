"""Read SyntaxGym suites (JSON).

Each prediction (formula) of the file gives one item per item of the file. The options of an item
are the regions in the formula. A sentence is its non-empty regions joined by spaces
(syntaxgym-core, get_sentences.py). A region is scored with the space before it; the surprisal of an
empty region is 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.declarations import decode_utf8, suggest_name
from antlm_bench.errors import DataError
from antlm_bench.safe_json import parse_json
from antlm_bench.suites import files
from antlm_bench.suites.formula import WHOLE_SENTENCE, Formula, Region, parse_formula
from antlm_bench.suites.names import slugify_title
from antlm_bench.suites.templates import check_text, hash_texts
from antlm_bench.types import Item, Option

FILE_EXTENSIONS = (".json", ".json.gz")
PREDICTION_LEVEL = "prediction"  # the label that names an item's formula


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an item under a condition."""

    item: str
    condition: str
    text: str
    regions: Mapping[str, tuple[int, int]]
    """Region number -> (start, end) in the text, with the space before it."""


@dataclass(frozen=True, slots=True)
class SyntaxGymSuite:
    """The content of a SyntaxGym file."""

    name: str
    region_names: Mapping[str, str]
    """Region number -> its name."""
    formulas: tuple[Formula, ...]
    sentences: tuple[tuple[Sentence, ...], ...]
    """The sentences of each item, one per condition."""
    location: str
    """The file, for error messages."""


def is_syntaxgym_file(ref: str) -> bool:
    return ref.lower().endswith(FILE_EXTENSIONS)


def read_suite(path: Path) -> SyntaxGymSuite:
    """Read a file. Raises DataError as `parse_suite`."""
    return parse_suite(files.read_bytes(path), path.name, str(path))


def parse_suite(raw: bytes, file: str, location: str) -> SyntaxGymSuite:
    """Parse the bytes of a file. file: its name, for a suite without a name of its own.

    Raises DataError, which names the location of a missing or invalid value.
    """
    text = decode_utf8(raw, location, DataError)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", location=location) from None
    if isinstance(content, list):
        raise DataError(
            "a JSON list is not a SyntaxGym suite",
            location=location,
            hint="for rows of pairs or texts, write one JSON object per line into a .jsonl",
        )
    items = _require_list(content, "items", location)
    if not items:
        raise DataError("0 items", location=location)
    formulas = tuple(_parse_formulas(_require_list(content, "predictions", location), location))
    meta = content.get("meta")
    title = meta.get("name") if isinstance(meta, dict) else None
    name = slugify_title(str(title or file.partition(".")[0])) or "syntaxgym"
    names = content.get("region_meta")
    region_names = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
    sentences = tuple(
        tuple(_parse_sentences(item, n, f"{location}: items[{n}]")) for n, item in enumerate(items)
    )
    return SyntaxGymSuite(name, region_names, formulas, sentences, location)


def build_items(
    suite: SyntaxGymSuite, stem: str = "", labels: Mapping[str, str] | None = None
) -> tuple[tuple[Item, ...], dict[str, Formula]]:
    """Return the items, and their labels of PREDICTION_LEVEL -> formula.

    stem, labels: of one of several files that are scored together: the beginning of its ids, and
    the labels of its items. Raises DataError if a formula names a condition or region that an item
    does not have.
    """
    if not suite.formulas:
        raise DataError("the list `predictions` is empty", location=suite.location)
    formulas = {f"{n}: {formula.text}": formula for n, formula in enumerate(suite.formulas, 1)}
    prefix = f"{stem}." if stem else ""
    item_names = [sentences[0].item for sentences in suite.sentences]
    for name in item_names:
        if item_names.count(name) > 1:
            raise DataError(f"two items have the `item_number` {name}", location=suite.location)
    items: list[Item] = []
    for name, sentences in zip(item_names, suite.sentences, strict=True):
        by_condition = {sentence.condition: sentence for sentence in sentences}
        cluster = hash_texts([prefix + name]) if len(formulas) > 1 else ""
        for n, (label, formula) in enumerate(formulas.items(), start=1):
            location = f"{suite.location}: item {name}, prediction {n}"
            options = tuple(_build_option(r, by_condition, location) for r in formula.regions)
            item_labels = {**(labels or {}), PREDICTION_LEVEL: label}
            items.append(Item(f"{prefix}{name}.{n}", options, 0, item_labels, cluster))
    return tuple(items), formulas


def compute_digest(suite: SyntaxGymSuite) -> str:
    """Return the sha256 of every formula, sentence and region."""
    sentences = [
        [s.item, s.condition, s.text, sorted(s.regions.items())]
        for item in suite.sentences
        for s in item
    ]
    content = json.dumps([[formula.text for formula in suite.formulas], sentences])
    return hashlib.sha256(content.encode()).hexdigest()


def _build_option(
    region: Region, sentences_by_condition: Mapping[str, Sentence], location: str
) -> Option:
    sentence = sentences_by_condition.get(region.condition)
    if sentence is None:
        conditions = ", ".join(sentences_by_condition)
        hint = suggest_name(region.condition, sentences_by_condition) or f"there are {conditions}"
        raise DataError(f"there is no condition {region.condition!r}", location=location, hint=hint)
    if region.region_id == WHOLE_SENTENCE:
        return Option(sentence.text)
    if region.region_id not in sentence.regions:
        message = f"there is no region {region.region_id} in the condition {region.condition!r}"
        raise DataError(message, location=location, hint=f"there are {', '.join(sentence.regions)}")
    return Option(sentence.text, sentence.regions[region.region_id])


def _parse_formulas(predictions: list[Any], location: str) -> Iterator[Formula]:
    for index, prediction in enumerate(predictions):
        formula_location = f"{location}: predictions[{index}]"
        text = prediction.get("formula") if isinstance(prediction, dict) else prediction
        if not isinstance(text, str):
            hint = 'e.g. {"type": "formula", "formula": ...}'
            raise DataError("`formula` is missing", location=formula_location, hint=hint)
        try:
            yield parse_formula(text)
        except (ValueError, RecursionError) as error:
            is_too_deep = isinstance(error, RecursionError)
            reason = "brackets are nested too deeply" if is_too_deep else error
            raise DataError(f"invalid formula: {reason}", location=formula_location) from None


def _parse_sentences(item: Any, number: int, location: str) -> Iterator[Sentence]:
    conditions = _require_list(item, "conditions", location)
    item_name = str(item.get("item_number", number + 1))
    condition_names: set[str] = set()
    for index, condition in enumerate(conditions):
        condition_location = f"{location}.conditions[{index}]"
        regions = [
            _parse_region(region, f"{condition_location}.regions[{n}]")
            for n, region in enumerate(_require_list(condition, "regions", condition_location))
        ]
        name = str(condition.get("condition_name", ""))
        if not name:
            raise DataError("`condition_name` is missing", location=condition_location)
        if name in condition_names:
            raise DataError(f"two conditions are called {name!r}", location=condition_location)
        condition_names.add(name)
        yield Sentence(item_name, name, *join_regions(regions, condition_location))
    if not conditions:
        raise DataError("the list `conditions` is empty", location=location)


def join_regions(
    regions: list[tuple[str, str]], location: str
) -> tuple[str, dict[str, tuple[int, int]]]:
    """Join the texts of regions by spaces. regions: (name, text) of each.

    Returns the text, and name -> (start, end) in it. Raises DataError if there is no text, or if
    two regions have the same name.
    """
    text, spans = "", {}
    for name, content in regions:
        if name in spans:
            raise DataError(f"two regions are called {name!r}", location=location)
        start = len(text)
        if content.strip():
            text += (" " if text else "") + check_text(content.strip(), "text", location)
        spans[name] = (start, len(text))
    if not text:
        raise DataError("the text is empty", location=location)
    return text, spans


def _parse_region(region: Any, location: str) -> tuple[str, str]:
    content = region.get("content") if isinstance(region, dict) else None
    if not isinstance(content, str) or "region_number" not in region:
        raise DataError("a region needs `region_number` and `content`, a text", location=location)
    return str(region["region_number"]), content


def _require_list(table: Any, key: str, location: str) -> list[Any]:
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, list):
        hint = "is it a SyntaxGym suite?"
        raise DataError(f"the list `{key}` is missing", location=location, hint=hint)
    return value
