"""A SyntaxGym suite (JSON) as a suite of ours: one item per prediction and item, whose options are
the regions that the prediction mentions.

A sentence is its regions joined by one space, empty ones left out (syntaxgym-core,
get_sentences.py); a region counts with the space before it. An empty region has the surprisal 0.
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
from antlm_bench.suites import files
from antlm_bench.suites.formula import WHOLE_SENTENCE, Formula, Region, parse_formula
from antlm_bench.suites.names import slugify_title
from antlm_bench.suites.templates import check_text
from antlm_bench.types import Item, Option

FILE_EXTENSIONS = (".json", ".json.gz")
PREDICTION_LEVEL = "prediction"  # the label that names an item's formula


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an item under a condition, and where each region lies in it: (start, end), the
    space before it included.
    """

    item: str
    condition: str
    text: str
    regions: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class SyntaxGymSuite:
    """A suite as it is written. names: what regions are called. place: the file as errors name it."""

    name: str
    region_names: Mapping[str, str]
    formulas: tuple[Formula, ...]
    sentences: tuple[tuple[Sentence, ...], ...]
    location: str


def is_syntaxgym_file(ref: str) -> bool:
    return ref.lower().endswith(FILE_EXTENSIONS)


def read_suite(path: Path) -> SyntaxGymSuite:
    """The suite in a file. DataError names what is missing or cannot be, and where."""
    place = str(path)
    text = decode_utf8(files.read_bytes(path), place, DataError)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", location=place) from None
    items = _require_list(whole, "items", place)
    if not items:
        raise DataError("0 items", location=place)
    formulas = tuple(_parse_formulas(_require_list(whole, "predictions", place), place))
    meta = whole.get("meta")
    title = meta.get("name") if isinstance(meta, dict) else None
    name = slugify_title(str(title or path.name.partition(".")[0])) or "syntaxgym"
    names = whole.get("region_meta")
    numbered = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
    sentences = tuple(
        tuple(_parse_sentences(item, n, f"{place}: items[{n}]")) for n, item in enumerate(items)
    )
    return SyntaxGymSuite(name, numbered, formulas, sentences, place)


def build_items(suite: SyntaxGymSuite) -> tuple[tuple[Item, ...], dict[str, Formula]]:
    """The items, and what each label of LEVEL says. DataError where a formula names what an item
    has not.
    """
    if not suite.formulas:
        raise DataError(
            "no predictions: there is nothing to be right about", location=suite.location
        )
    said = {
        f"{number}: {formula.text}": formula
        for number, formula in enumerate(suite.formulas, start=1)
    }
    made: list[Item] = []
    numbers = [sentences[0].item for sentences in suite.sentences]
    if twice := next((number for number in numbers if numbers.count(number) > 1), None):
        raise DataError(f"two items have the `item_number` {twice}", location=suite.location)
    for sentences in suite.sentences:
        known = {sentence.condition: sentence for sentence in sentences}
        for number, (label, formula) in enumerate(said.items(), start=1):
            place = f"{suite.location}: item {sentences[0].item}, prediction {number}"
            options = tuple(_build_option(region, known, place) for region in formula.regions)
            made.append(
                Item(f"{sentences[0].item}.{number}", options, 0, {PREDICTION_LEVEL: label})
            )
    return tuple(made), said


def compute_digest(suite: SyntaxGymSuite) -> str:
    """sha256 over every formula, sentence and region."""
    listed = [
        [s.item, s.condition, s.text, sorted(s.regions.items())]
        for item in suite.sentences
        for s in item
    ]
    return hashlib.sha256(
        json.dumps([[f.text for f in suite.formulas], listed]).encode()
    ).hexdigest()


def _build_option(
    region: Region, sentences_by_condition: Mapping[str, Sentence], location: str
) -> Option:
    if region.condition not in sentences_by_condition:
        hint = (
            suggest_name(region.condition, sentences_by_condition)
            or f"there are {', '.join(sentences_by_condition)}"
        )
        raise DataError(f"there is no condition {region.condition!r}", location=location, hint=hint)
    sentence = sentences_by_condition[region.condition]
    if region.number == WHOLE_SENTENCE:
        return Option(sentence.text)
    if region.number not in sentence.regions:
        message = f"there is no region {region.number} in the condition {region.condition!r}"
        raise DataError(message, location=location, hint=f"there are {', '.join(sentence.regions)}")
    return Option(sentence.text, sentence.regions[region.number])


def _parse_formulas(predictions: list[Any], location: str) -> Iterator[Formula]:
    for number, prediction in enumerate(predictions):
        here = f"{location}: predictions[{number}]"
        text = prediction.get("formula") if isinstance(prediction, dict) else prediction
        if not isinstance(text, str):
            raise DataError(
                "`formula` is missing",
                location=here,
                hint='e.g. {"type": "formula", "formula": ...}',
            )
        try:
            yield parse_formula(text)
        except ValueError as error:
            raise DataError(f"no formula: {error}", location=here) from None
        except RecursionError:
            raise DataError("no formula: brackets are nested too deeply", location=here) from None


def _parse_sentences(item: Any, number: int, location: str) -> Iterator[Sentence]:
    conditions = _require_list(item, "conditions", location)
    name = str(item.get("item_number", number + 1))
    seen: set[str] = set()
    for at, condition in enumerate(conditions):
        here = f"{location}.conditions[{at}]"
        pieces = [
            _parse_region(region, f"{here}.regions[{n}]")
            for n, region in enumerate(_require_list(condition, "regions", here))
        ]
        title = str(condition.get("condition_name", ""))
        if not title or title in seen:
            raise DataError(
                "`condition_name` is missing" if not title else f"{title!r} stands here twice",
                location=here,
            )
        seen.add(title)
        text, regions = join_regions(pieces, here)
        yield Sentence(name, title, text, regions)
    if not seen:
        raise DataError("no conditions", location=location)


def join_regions(
    regions: list[tuple[str, str]], location: str
) -> tuple[str, dict[str, tuple[int, int]]]:
    """(name, text) of regions -> their text joined by spaces, and where each lies. DataError: no
    text, a name twice.
    """
    text, spans = "", {}
    for name, content in regions:
        if name in spans:
            raise DataError(f"the region {name!r} stands here twice", location=location)
        start = len(text)
        if content.strip():
            text += (" " if text else "") + check_text(content.strip(), "text", location)
        spans[name] = (start, len(text))
    if not text:
        raise DataError("the text is empty", location=location)
    return text, spans


def _parse_region(region: Any, location: str) -> tuple[str, str]:
    if (
        not isinstance(region, dict)
        or not isinstance(region.get("content"), str)
        or "region_number" not in region
    ):
        raise DataError("a region has `region_number` and `content`, a text", location=location)
    return str(region["region_number"]), region["content"]


def _require_list(table: Any, key: str, location: str) -> list[Any]:
    found = table.get(key) if isinstance(table, dict) else None
    if not isinstance(found, list):
        raise DataError(
            f"the list `{key}` is missing", location=location, hint="is it a SyntaxGym suite?"
        )
    return found
