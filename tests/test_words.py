"""Words of any script: they add up to the text, never split a character, and NFC is NFD."""

from __future__ import annotations

import importlib.util
import sys
from unicodedata import normalize

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from multilingual_tokenizers import PIECES, SPACES

from antlm_bench import words
from antlm_bench.errors import DataError, MissingPackage, UsageError
from antlm_bench.words import WORD_RULES, WordRule, check_splittable, check_word_rule, split_words

MODULES = {"unidic-lite": "unidic_lite"}  # package on PyPI -> module, where they differ
texts = st.lists(
    st.sampled_from([*PIECES, *SPACES, "\u0301", "\u0600", "\u200d", "\u1112\u1161", "\r\n"]),
    min_size=1,
    max_size=8,
).map("".join)


def rule_or_skip(name: str) -> str:
    for package in WORD_RULES[name].packages:
        if importlib.util.find_spec(MODULES.get(package, package)) is None:
            pytest.skip(f"{package} is not installed")
    return name


def list_words(text: str, rule: str) -> list[str]:
    return [words.strip_space(text[start:end]) for start, end in split_words(text, rule)]


@pytest.mark.long
@pytest.mark.parametrize("name", WORD_RULES)
def test_words_add_up_and_split_no_character(name):
    rule = rule_or_skip(name)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        spans = split_words(text, rule)
        assert "".join(text[start:end] for start, end in spans) == text
        borders = {match.start() for match in regex.finditer(r"\X", text)}
        assert {start for start, _ in spans} <= borders

    check()


@pytest.mark.long
@pytest.mark.parametrize("name", WORD_RULES)
def test_nfc_and_nfd_have_the_same_words(name):
    rule = rule_or_skip(name)

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        composed, decomposed = normalize("NFC", text), normalize("NFD", text)
        composed_words = [normalize("NFC", word) for word in list_words(composed, rule)]
        assert [normalize("NFC", word) for word in list_words(decomposed, rule)] == composed_words

    check()


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("spaces", " The cat\u3000don't  sit. ", ["The", "cat", "don't", "sit."]),
        ("spaces", "한국어 문장", ["한국어", "문장"]),
        ("spaces", "هذا كِتَابٌ", ["هذا", "كِتَابٌ"]),
        ("spaces", "ខ្ញុំ\u200bស្រឡាញ់\u200bឆ្មា", ["ខ្ញុំ", "ស្រឡាញ់", "ឆ្មា"]),
        ("characters", "我用 Py。", ["我", "用", "P", "y", "。"]),
        ("characters", "हिन्दी", ["हि", "न्दी"]),
        ("characters", "e\u0301t", ["e\u0301", "t"]),
        ("characters", "👩‍👩‍👧🇩🇪🇫🇷", ["👩‍👩‍👧", "🇩🇪", "🇫🇷"]),
        ("characters", "น้ำ", ["น้ำ"]),
        ("icu", "我喜欢吃苹果。", ["我", "喜欢", "吃", "苹果", "。"]),
        ("icu", "แมวกินปลาในบ้าน", ["แมว", "กิน", "ปลา", "ใน", "บ้าน"]),
        ("icu", "ຂ້ອຍຮັກແມວ", ["ຂ້ອຍ", "ຮັກ", "ແມວ"]),
        ("icu", "ខ្ញុំស្រឡាញ់ឆ្មា", ["ខ្ញុំ", "ស្រឡាញ់", "ឆ្មា"]),
        ("jieba", "我喜欢吃苹果。", ["我", "喜欢", "吃", "苹果", "。"]),
        ("fugashi", "猫が魚を食べた。", ["猫", "が", "魚", "を", "食べ", "た", "。"]),
        ("pythainlp", "แมวกินปลาในบ้าน", ["แมว", "กิน", "ปลา", "ใน", "บ้าน"]),
    ],
)
def test_a_rule_splits_as_a_reader_would(rule, text, expected):
    assert list_words(text, rule_or_skip(rule)) == expected


def test_white_space_belongs_to_the_word_after_it():
    assert split_words(" a  b ") == [(0, 2), (2, 6)]
    assert split_words("") == [] and split_words("  ") == [(0, 2)]


@pytest.mark.parametrize("text", ["我喜欢猫", "แมวกินปลา", "コーヒー", "ខ្ញុំស្រឡាញ់", "A b 中文"])
def test_text_without_spaces_needs_a_rule(text):
    with pytest.raises(UsageError, match="item 7 has no spaces between words") as caught:
        check_splittable(text, None, "item 7")
    assert all(name in caught.value.hint for name in WORD_RULES)
    check_splittable(text, "spaces", "item 7")
    check_splittable(text, "characters", "item 7")


def test_text_with_spaces_needs_no_rule():
    for text in ("the cat", "한국어 문장", "हिन्दी में", "he wrote 中 here", "שָׁלוֹם", "café 3"):
        check_splittable(text, None, "item 1")


def test_a_segmenter_of_another_language_is_refused():
    check_splittable("猫が魚を食べた", "fugashi", "item 1")
    for rule, text in (("jieba", "猫が魚を食べた"), ("pythainlp", "我喜欢"), ("icu", "བཀྲ་ཤིས")):
        with pytest.raises(UsageError, match=f"item 1 has text that {rule} does not split"):
            check_splittable(text, rule, "item 1")


@pytest.mark.parametrize("name", [name for name, rule in WORD_RULES.items() if rule.packages])
def test_a_missing_package_is_one_sentence_with_the_command(name, monkeypatch):
    words._load_rule.cache_clear()
    for package in WORD_RULES[name].packages:
        monkeypatch.setitem(sys.modules, MODULES.get(package, package), None)
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    monkeypatch.setitem(sys.modules, "pythainlp.tokenize", None)
    with pytest.raises(MissingPackage, match=f"--words {name}: this needs the package") as caught:
        check_word_rule(name)
    assert caught.value.hint == f"pip install {' '.join(WORD_RULES[name].packages)}"


def test_an_unknown_rule_names_all_rules():
    with pytest.raises(UsageError, match="unknown rule 'mecab'") as caught:
        check_word_rule("mecab")
    assert caught.value.hint == f"one of {', '.join(WORD_RULES)}"


def test_a_segmenter_that_changes_the_text_is_refused(monkeypatch):
    lossy = WordRule(lambda: lambda chunk: [chunk.replace("a", "")])
    monkeypatch.setitem(WORD_RULES, "lossy", lossy)
    with pytest.raises(DataError, match="lossy reads 'cat' as other characters"):
        split_words("a cat".replace("a ", "e "), "lossy")


def test_a_segmenter_cannot_split_a_character(monkeypatch):
    rule = WordRule(lambda: list)
    monkeypatch.setitem(WORD_RULES, "code points", rule)
    assert list_words("हिx👩‍👩‍👧", "code points") == ["हि", "x", "👩‍👩‍👧"]
