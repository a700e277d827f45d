"""A SyntaxGym suite (JSON) as a suite of ours: one item per prediction and item, whose options are the regions that the
prediction mentions.

A sentence is its regions joined by one space, empty ones left out (syntaxgym-core, get_sentences.py); a region counts
with the space before it. An empty region has the surprisal 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.declarations import decode_utf8, nearest
from antlm_bench.errors import DataError
from antlm_bench.suites import files
from antlm_bench.suites.formula import WHOLE, Formula, Region, parse
from antlm_bench.suites.names import name_of_title
from antlm_bench.suites.templates import clean
from antlm_bench.types import Item, Option

ENDINGS = (".json", ".json.gz")
LEVEL = "prediction"  # the label that names an item's formula


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an item under a condition, and where each region lies in it: (start, end), the space before it
    included."""

    item: str
    condition: str
    text: str
    regions: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Gym:
    """A suite as it is written. names: what regions are called. place: the file as errors name it."""

    name: str
    names: Mapping[str, str]
    formulas: tuple[Formula, ...]
    sentences: tuple[tuple[Sentence, ...], ...]
    place: str


def is_gym_file(ref: str) -> bool:
    return ref.lower().endswith(ENDINGS)


def read(path: Path) -> Gym:
    """The suite in a file. DataError names what is missing or cannot be, and where."""
    place = str(path)
    text = decode_utf8(files.read(path), place, DataError)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", place=place) from None
    items = _list(whole, "items", place)
    if not items:
        raise DataError("0 items", place=place)
    formulas = tuple(_formulas(_list(whole, "predictions", place), place))
    meta = whole.get("meta")
    title = meta.get("name") if isinstance(meta, dict) else None
    name = name_of_title(str(title or path.name.partition(".")[0])) or "syntaxgym"
    names = whole.get("region_meta")
    numbered = {str(k): str(v) for k, v in names.items()} if isinstance(names, dict) else {}
    sentences = tuple(tuple(_sentences(item, n, f"{place}: items[{n}]")) for n, item in enumerate(items))
    return Gym(name, numbered, formulas, sentences, place)


def items(gym: Gym) -> tuple[tuple[Item, ...], dict[str, Formula]]:
    """The items, and what each label of LEVEL says. DataError where a formula names what an item has not."""
    if not gym.formulas:
        raise DataError("no predictions: there is nothing to be right about", place=gym.place)
    said = {f"{number}: {formula.text}": formula for number, formula in enumerate(gym.formulas, start=1)}
    made: list[Item] = []
    numbers = [sentences[0].item for sentences in gym.sentences]
    if twice := next((number for number in numbers if numbers.count(number) > 1), None):
        raise DataError(f"two items have the `item_number` {twice}", place=gym.place)
    for sentences in gym.sentences:
        known = {sentence.condition: sentence for sentence in sentences}
        for number, (label, formula) in enumerate(said.items(), start=1):
            place = f"{gym.place}: item {sentences[0].item}, prediction {number}"
            options = tuple(_option(region, known, place) for region in formula.regions)
            made.append(Item(f"{sentences[0].item}.{number}", options, 0, {LEVEL: label}))
    return tuple(made), said


def digest(gym: Gym) -> str:
    """sha256 over every formula, sentence and region."""
    listed = [[s.item, s.condition, s.text, sorted(s.regions.items())] for item in gym.sentences for s in item]
    return hashlib.sha256(json.dumps([[f.text for f in gym.formulas], listed]).encode()).hexdigest()


def _option(region: Region, known: Mapping[str, Sentence], place: str) -> Option:
    if region.condition not in known:
        hint = nearest(region.condition, known) or f"there are {', '.join(known)}"
        raise DataError(f"there is no condition {region.condition!r}", place=place, hint=hint)
    sentence = known[region.condition]
    if region.number == WHOLE:
        return Option(sentence.text)
    if region.number not in sentence.regions:
        message = f"there is no region {region.number} in the condition {region.condition!r}"
        raise DataError(message, place=place, hint=f"there are {', '.join(sentence.regions)}")
    return Option(sentence.text, sentence.regions[region.number])


def _formulas(predictions: list[Any], place: str) -> Iterator[Formula]:
    for number, prediction in enumerate(predictions):
        here = f"{place}: predictions[{number}]"
        text = prediction.get("formula") if isinstance(prediction, dict) else prediction
        if not isinstance(text, str):
            raise DataError("`formula` is missing", place=here, hint='e.g. {"type": "formula", "formula": ...}')
        try:
            yield parse(text)
        except ValueError as error:
            raise DataError(f"no formula: {error}", place=here) from None
        except RecursionError:
            raise DataError("no formula: brackets are nested too deeply", place=here) from None


def _sentences(item: Any, number: int, place: str) -> Iterator[Sentence]:
    conditions = _list(item, "conditions", place)
    name = str(item.get("item_number", number + 1))
    seen: set[str] = set()
    for at, condition in enumerate(conditions):
        here = f"{place}.conditions[{at}]"
        pieces = [_region(region, f"{here}.regions[{n}]") for n, region in enumerate(_list(condition, "regions", here))]
        title = str(condition.get("condition_name", ""))
        if not title or title in seen:
            raise DataError("`condition_name` is missing" if not title else f"{title!r} stands here twice", place=here)
        seen.add(title)
        text, regions = joined(pieces, here)
        yield Sentence(name, title, text, regions)
    if not seen:
        raise DataError("no conditions", place=place)


def joined(pieces: list[tuple[str, str]], place: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """(name, text) of regions -> their text joined by spaces, and where each lies. DataError: no text, a name twice."""
    text, spans = "", {}
    for name, content in pieces:
        if name in spans:
            raise DataError(f"the region {name!r} stands here twice", place=place)
        start = len(text)
        if content.strip():
            text += (" " if text else "") + clean(content.strip(), "text", place)
        spans[name] = (start, len(text))
    if not text:
        raise DataError("the text is empty", place=place)
    return text, spans


def _region(region: Any, place: str) -> tuple[str, str]:
    if not isinstance(region, dict) or not isinstance(region.get("content"), str) or "region_number" not in region:
        raise DataError("a region has `region_number` and `content`, a text", place=place)
    return str(region["region_number"]), region["content"]


def _list(table: Any, key: str, place: str) -> list[Any]:
    found = table.get(key) if isinstance(table, dict) else None
    if not isinstance(found, list):
        raise DataError(f"the list `{key}` is missing", place=place, hint="is it a SyntaxGym suite?")
    return found
