"""Small grammars: generate minimal pairs, and training text that holds none of their sentences.

Random choices only use `random.Random(int).random()`, the one call whose sequence Python promises
to keep for a seed, so that the pairs are the same on every version and platform.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DeclarationError
from antlm_bench.suites.spec import GrammarSpec

WordForms = dict[str, str]  # form -> how it is written
_SLOT_PATTERN = re.compile(r"\{([a-z_]+)(\d*)\.([a-z_]+)\}")  # {class.form}, {class1.form}


def generate_pairs(spec: GrammarSpec) -> list[dict[str, str]]:
    """Return records of sentence_good, sentence_bad, paradigm, phenomenon, field.

    No sentence stands in two pairs. Raises DeclarationError where a template is wrong or has too
    few sentences for `pairs`.
    """
    records: list[dict[str, str]] = []
    seen: set[str] = set()
    for index, paradigm in enumerate(spec.paradigm):
        rng = random.Random(spec.seed * 1000 + index)
        templates = [
            (good, bad, _parse_slots(spec, f"{good} {bad}")) for good, bad in paradigm.pairs
        ]
        for number in range(spec.pairs):
            good, bad, slots = templates[number % len(templates)]
            for _ in range(1000):
                words = _choose_words(slots, rng)
                pair = _fill_slots(good, words), _fill_slots(bad, words)
                if pair[0] != pair[1] and not seen.intersection(pair):
                    break
            else:
                message = f"{good!r} has too few sentences for {spec.pairs} pairs"
                raise DeclarationError(message, location=f"grammar.{paradigm.name}")
            seen.update(pair)
            record = {"sentence_good": pair[0], "sentence_bad": pair[1], "paradigm": paradigm.name}
            record |= {"phenomenon": paradigm.phenomenon, "field": paradigm.field}
            records.append(record)
    return records


def generate_sentences(spec: GrammarSpec, count: int, seed: int) -> Iterator[str]:
    """Yield `count` grammatical sentences of the same grammar, none of which is in a pair.

    Every template (the good side of each pair, and `also`) has the same share, and so has every
    word of a class.
    """
    pairs = generate_pairs(spec)
    held_out = {pair[side] for pair in pairs for side in ("sentence_good", "sentence_bad")}
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
    """Return the slots of a template: name without the form -> (class, its words)."""
    slots: dict[str, tuple[str, list[WordForms]]] = {}
    for cls, number, form in _SLOT_PATTERN.findall(template):
        words = _list_class_words(spec, cls, template)
        if form not in words[0]:
            message = f"{cls!r} has no form {form!r}; it has {', '.join(words[0])}"
            raise DeclarationError(message, location=f"grammar: {template!r}")
        slots[cls + number] = cls, words
    if "{" in _SLOT_PATTERN.sub("", template):
        raise DeclarationError(
            "a slot is written {class.form} or {class1.form}", location=f"grammar: {template!r}"
        )
    return slots


def _list_class_words(spec: GrammarSpec, word_class: str, template: str) -> list[WordForms]:
    if word_class not in spec.lexicon:
        hint = suggest_name(word_class, spec.lexicon) or f"there are {', '.join(spec.lexicon)}"
        raise DeclarationError(
            f"no word class {word_class!r}", location=f"grammar: {template!r}", hint=hint
        )
    entry = spec.lexicon[word_class]
    for part in entry.of:
        united = spec.lexicon.get(part)
        if united is None or not united.words or united.forms != entry.forms:
            raise DeclarationError(
                f"{word_class!r} unites {part!r}, "
                "which is no class with words of its own in the same forms",
                location=f"grammar.lexicon.{word_class}",
            )
    lists = [spec.lexicon[part].words for part in entry.of] or [entry.words]
    return [dict(zip(entry.forms, word.split(), strict=True)) for words in lists for word in words]


def _choose_words(
    slots: Mapping[str, tuple[str, list[WordForms]]], rng: random.Random
) -> dict[str, WordForms]:
    """Choose a word for every slot; slots of one class get different words."""
    chosen: dict[str, WordForms] = {}
    for slot, (cls, words) in slots.items():
        taken = [chosen[other] for other in chosen if slots[other][0] == cls]
        free = [word for word in words if word not in taken]
        if not free:
            raise DeclarationError(
                f"a template has more slots of {cls!r} than there are words", location="grammar"
            )
        chosen[slot] = free[int(rng.random() * len(free))]
    return chosen


def _fill_slots(template: str, words: Mapping[str, WordForms]) -> str:
    return _SLOT_PATTERN.sub(lambda slot: words[slot[1] + slot[2]][slot[3]], template)
