"""The nano grammar: the same pairs everywhere, contrasts that are real, and training text that
leaks none of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from antlm_bench.declarations import list_declarations
from antlm_bench.errors import DeclarationError
from antlm_bench.suites import loader
from antlm_bench.suites.grammar import generate_pairs, generate_sentences
from antlm_bench.suites.spec import GrammarSpec, SuiteSpec
from antlm_bench.suites.task_types import read_declaration_file


def nano() -> GrammarSpec:
    spec = read_declaration_file(list_declarations("tasks")["nano"])
    assert isinstance(spec, SuiteSpec) and spec.grammar
    return spec.grammar


PAIRS = generate_pairs(nano())
ALL = ({"name": "p", "phenomenon": "q", "field": "r", "pairs": (("{all.sg}", "x"),)},)
MANY = "{cat1.sg} {cat2.sg} {cat3.sg} {cat4.sg}"


def small(**changes: object) -> GrammarSpec:
    tables: dict[str, object] = {
        "seed": 1,
        "pairs": 2,
        "lexicon": {"cat": {"forms": ("sg", "pl"), "words": ("cat cats", "dog dogs", "cow cows")}},
        "paradigm": (
            {
                "name": "p",
                "phenomenon": "q",
                "field": "r",
                "pairs": (("a {cat.sg}", "a {cat.pl}"),),
            },
        ),
    }
    return GrammarSpec.model_validate(tables | changes)


def test_the_pairs_are_these_on_every_version_and_platform() -> None:
    written = json.dumps(PAIRS, sort_keys=True).encode()
    assert (
        hashlib.sha256(written).hexdigest()
        == "93834145ac5e6017db94e3fd1c7f8381aef330e83d50659826100c098e10dcd7"
    )
    assert [PAIRS[0]["sentence_good"], PAIRS[-1]["sentence_bad"]] == [
        "The small uncle sleeps.",
        "The book was waited by the sister.",
    ]


def test_paradigms_suffice_and_no_sentence_repeats() -> None:
    assert Counter(Counter(pair["paradigm"] for pair in PAIRS).values()) == {50: 16}
    assert len({pair["phenomenon"] for pair in PAIRS}) == 7
    sentences = Counter(pair[side] for pair in PAIRS for side in ("sentence_good", "sentence_bad"))
    assert set(sentences.values()) == {1}


@pytest.mark.long
def test_the_training_text_is_held_out_and_repeatable() -> None:
    held_out = {pair[side] for pair in PAIRS for side in ("sentence_good", "sentence_bad")}
    text = list(generate_sentences(nano(), 20_000, seed=3))
    assert len(text) == 20_000
    assert not held_out.intersection(text)
    assert (
        text[:50]
        == list(islice(generate_sentences(nano(), 20_000, seed=3), 50))
        != list(generate_sentences(nano(), 50, seed=4))
    )


@pytest.mark.long
def test_every_test_word_and_construction_occurs_in_training() -> None:
    def words(sentence: str) -> list[str]:
        return re.findall(r"\w+", sentence)

    text = list(generate_sentences(nano(), 20_000, seed=3))
    trained = Counter(word for sentence in text for word in words(sentence))
    tested = {
        word
        for pair in PAIRS
        for side in ("sentence_good", "sentence_bad")
        for word in words(pair[side])
    }
    assert min(trained[word] for word in tested) >= 30


def test_no_bad_sentence_is_grammatical_by_another_rule() -> None:
    grammar = nano()

    def slot(match: re.Match[str]) -> str:
        entry = grammar.lexicon[match[1]]
        lists = [grammar.lexicon[part].words for part in entry.of] or [entry.words]
        return (
            "(?:"
            + "|".join(
                word.split()[entry.forms.index(match[2])] for words in lists for word in words
            )
            + ")"
        )

    good = [good for paradigm in grammar.paradigm for good, _ in paradigm.pairs] + list(
        grammar.also
    )
    parts = [
        re.sub(r"\\\{([a-z]+)\d*\\\.([a-z]+)\\\}", slot, re.escape(template)) for template in good
    ]
    grammatical = re.compile("|".join(f"(?:{part})" for part in parts))
    assert all(grammatical.fullmatch(pair["sentence_good"]) for pair in PAIRS)
    assert [pair for pair in PAIRS if grammatical.fullmatch(pair["sentence_bad"])] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": 4}, "too few sentences for 4 pairs"),
        (
            {
                "paradigm": (
                    {"name": "p", "phenomenon": "q", "field": "r", "pairs": (("{cot.sg}", "x"),)},
                )
            },
            "word class 'cot'",
        ),
        (
            {
                "paradigm": (
                    {"name": "p", "phenomenon": "q", "field": "r", "pairs": (("{cat.du}", "x"),)},
                )
            },
            "no form 'du'",
        ),
        (
            {
                "paradigm": (
                    {"name": "p", "phenomenon": "q", "field": "r", "pairs": (("{cat}", "x"),)},
                )
            },
            "invalid slot",
        ),
        (
            {
                "paradigm": (
                    {"name": "p", "phenomenon": "q", "field": "r", "pairs": ((MANY, "x"),)},
                )
            },
            "more slots of the class 'cat'",
        ),
    ],
)
def test_a_wrong_grammar_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        generate_pairs(small(**changes))


def test_a_class_unites_classes_of_words_with_its_forms() -> None:
    words = {"forms": ("sg",), "words": ("cat",)}
    for lexicon in (
        {"all": {"forms": ("sg",), "of": ("all",)}},
        {"all": {"forms": ("sg",), "of": ("none",)}},
        {"all": {"forms": ("pl",), "of": ("cat",)}, "cat": words},
        {"all": {"forms": ("sg",)}},
        {"all": {"forms": ("sg", "pl"), "words": ("cat",)}},
    ):
        with pytest.raises(
            (ValueError, DeclarationError), match=r"`of` names|either `words` or `of`|2 forms"
        ):
            generate_pairs(small(lexicon=lexicon, paradigm=ALL))


def test_a_grammar_of_one_s_own_is_a_suite(tmp_path: Path) -> None:
    own = (
        list_declarations("tasks")["nano"]
        .read_text(encoding="utf-8")
        .replace('name = "nano"', 'name = "own"')
    )
    path = tmp_path / "own.toml"
    path.write_text(own.replace("seed = 2026", "seed = 7"), encoding="utf-8")
    one, other = loader.load_suite("nano"), loader.load_suite(str(path))
    assert len(one.items) == len(other.items) == 800
    assert one.digest != other.digest
