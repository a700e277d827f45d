"""Small grammars: generate minimal pairs, and training text without their sentences.

All random choices use `random.Random(int).random()`. Python guarantees the sequence of this
function for a seed, so that the pairs are the same in every version and on every platform.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DeclarationError
from antlm_bench.printable import format_count
from antlm_bench.suites.spec import GrammarSpec

WordForms = dict[str, str]  # name of a form (singular) -> its spelling (dog)
MAX_DRAWS = 1000  # of words for one pair
_SLOT_PATTERN = re.compile(r"\{([a-z_]+)(\d*)\.([a-z_]+)\}")  # {class.form}, {class1.form}


def generate_pairs(spec: GrammarSpec) -> list[dict[str, str]]:
    """Return records with the fields sentence_good, sentence_bad, paradigm, phenomenon, field.

    No sentence is in two pairs. Raises DeclarationError if a template is invalid or has too few
    sentences for `spec.pairs`.
    """
    records: list[dict[str, str]] = []
    used_sentences: set[str] = set()
    for index, paradigm in enumerate(spec.paradigm):
        rng = random.Random(spec.seed * 1000 + index)
        slots_by_template = {
            templates: _parse_slots(spec, " ".join(templates)) for templates in paradigm.pairs
        }
        for number in range(spec.pairs):
            templates = paradigm.pairs[number % len(paradigm.pairs)]
            pair = _draw_pair(templates, slots_by_template[templates], used_sentences, rng)
            if pair is None:
                message = (
                    f"{templates[0]!r} has too few sentences for {format_count(spec.pairs, 'pair')}"
                )
                raise DeclarationError(message, location=f"grammar.{paradigm.name}")
            used_sentences.update(pair)
            records.append(
                {
                    "sentence_good": pair[0],
                    "sentence_bad": pair[1],
                    "paradigm": paradigm.name,
                    "phenomenon": paradigm.phenomenon,
                    "field": paradigm.field,
                }
            )
    return records


def _draw_pair(
    templates: tuple[str, str],
    slots: Mapping[str, tuple[str, list[WordForms]]],
    used_sentences: set[str],
    rng: random.Random,
) -> tuple[str, str] | None:
    """Return a pair of two different, unused sentences; None if MAX_DRAWS draws give none."""
    good, bad = templates
    for _ in range(MAX_DRAWS):
        words = _choose_words(slots, rng)
        pair = _fill_slots(good, words), _fill_slots(bad, words)
        if pair[0] != pair[1] and not used_sentences.intersection(pair):
            return pair
    return None


def generate_sentences(spec: GrammarSpec, count: int, seed: int) -> Iterator[str]:
    """Yield `count` grammatical sentences of the grammar, none of which is in a pair.

    The templates (the good sentences of pairs, and `spec.also`) have equal probabilities, and so
    have the words of a class.
    """
    pairs = generate_pairs(spec)
    held_out = {pair[field] for pair in pairs for field in ("sentence_good", "sentence_bad")}
    templates = [good for paradigm in spec.paradigm for good, _ in paradigm.pairs] + list(spec.also)
    parsed = [(template, _parse_slots(spec, template)) for template in templates]
    rng = random.Random(seed)
    remaining = count
    while remaining > 0:
        template, slots = parsed[int(rng.random() * len(parsed))]
        sentence = _fill_slots(template, _choose_words(slots, rng))
        if sentence not in held_out:
            remaining -= 1
            yield sentence


def _parse_slots(spec: GrammarSpec, template: str) -> dict[str, tuple[str, list[WordForms]]]:
    """Return slot -> (word class, its words). A slot is named by class and number: noun1."""
    slots: dict[str, tuple[str, list[WordForms]]] = {}
    for word_class, number, form in _SLOT_PATTERN.findall(template):
        words = _list_class_words(spec, word_class, template)
        if form not in words[0]:
            message = f"{word_class!r} has no form {form!r}; it has {', '.join(words[0])}"
            raise DeclarationError(message, location=f"grammar: {template!r}")
        slots[word_class + number] = word_class, words
    if "{" in _SLOT_PATTERN.sub("", template):
        raise DeclarationError(
            "invalid slot: write {class.form} or {class1.form}", location=f"grammar: {template!r}"
        )
    return slots


def _list_class_words(spec: GrammarSpec, word_class: str, template: str) -> list[WordForms]:
    if word_class not in spec.lexicon:
        hint = suggest_name(word_class, spec.lexicon) or f"there are {', '.join(spec.lexicon)}"
        raise DeclarationError(
            f"no word class {word_class!r}", location=f"grammar: {template!r}", hint=hint
        )
    entry = spec.lexicon[word_class]
    words = list(entry.words)
    for subclass in entry.of:
        subclass_entry = spec.lexicon.get(subclass)
        if not subclass_entry or not subclass_entry.words or subclass_entry.forms != entry.forms:
            raise DeclarationError(
                f"`of` names {subclass!r}, which is not a class with `words` in the same forms",
                location=f"grammar.lexicon.{word_class}",
            )
        words += subclass_entry.words
    return [dict(zip(entry.forms, word.split(), strict=True)) for word in words]


def _choose_words(
    slots: Mapping[str, tuple[str, list[WordForms]]], rng: random.Random
) -> dict[str, WordForms]:
    """Return a random word for every slot. Slots of the same class get different words."""
    word_by_slot: dict[str, WordForms] = {}
    for slot, (word_class, words) in slots.items():
        used = [word for other, word in word_by_slot.items() if slots[other][0] == word_class]
        unused = [word for word in words if word not in used]
        if not unused:
            raise DeclarationError(
                f"a template has more slots of the class {word_class!r} than it has words",
                location=f"grammar.lexicon.{word_class}",
            )
        word_by_slot[slot] = unused[int(rng.random() * len(unused))]
    return word_by_slot


def _fill_slots(template: str, words: Mapping[str, WordForms]) -> str:
    return _SLOT_PATTERN.sub(lambda slot: words[slot[1] + slot[2]][slot[3]], template)
