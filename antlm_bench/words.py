"""Split a text into words, by a rule that depends on its script.

A rule splits what stands between white space; a word never spans white space. The words of a text
are segments that add up to it: a word includes the white space before it, the last word also the
white space after it. Borders of words are borders of extended grapheme clusters (Unicode Standard
Annex 29), the characters that a reader sees: a letter with its combining marks, an emoji sequence,
a flag, a syllable of Hangul jamo. Rules see the text in Normalization Form C, and their borders are
mapped back, so that NFC and NFD of a text have the same words. The text itself is not changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import accumulate
from tempfile import TemporaryDirectory
from unicodedata import category, east_asian_width, normalize

import regex

from antlm_bench.errors import DataError, UsageError
from antlm_bench.packages import require_packages

# Scripts whose text has no space between two words: those between whose letters the line breaking
# algorithm allows a break anywhere, at syllables, or by a dictionary (Unicode Standard Annex 14,
# classes ID, AK and SA), and Tibetan, which marks syllables.
UNSPACED_SCRIPTS = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Tangut", "Nushu"),
    *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom"),
    *("Tibetan", "Javanese", "Balinese"),
)
JAPANESE_SCRIPTS = ("Han", "Hiragana", "Katakana")
ZERO_WIDTH_SPACE = "\u200b"  # separates words in text of Khmer, Thai, Lao and Burmese
# Letters of two scripts, or of none.
SHARED_LETTERS = {"Hiragana": "\u30fc", "Katakana": "\u30fc\uff70", "Han": "\u3006"}
GRAPHEME = regex.compile(r"\X")
WHITE_SPACE = rf"\s\x1c-\x1f{ZERO_WIDTH_SPACE}"  # as str.isspace
CHUNK = regex.compile(rf"[^{WHITE_SPACE}]+")  # what stands between white space
PieceIterator = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class WordRule:
    """A way to split text between white space into words."""

    load: Callable[[], PieceIterator]
    """Import the rule's package and return the function that splits a text without white space
    into pieces, which add up to it. Raises ImportError."""
    packages: tuple[str, ...] = ()
    """The packages on PyPI that it needs."""
    scripts: tuple[str, ...] = UNSPACED_SCRIPTS
    """The scripts of UNSPACED_SCRIPTS that it can split."""


def _load_jieba() -> PieceIterator:
    import jieba

    tokenizer = jieba.Tokenizer()
    jieba.setLogLevel("ERROR")  # it reports on stderr that it loads its dictionary
    with TemporaryDirectory() as folder:  # its cache in /tmp could be another user's file
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return lambda chunk: tokenizer.cut(chunk)


def _load_fugashi() -> PieceIterator:
    import fugashi
    import unidic_lite

    folder = unidic_lite.DICDIR
    tagger = fugashi.GenericTagger(f'-r "{folder}/mecabrc" -d "{folder}"')
    return lambda chunk: (word.surface for word in tagger(chunk))


def _load_pythainlp() -> PieceIterator:
    from pythainlp.tokenize import word_tokenize

    return lambda chunk: word_tokenize(chunk, engine="newmm")


def _load_icu() -> PieceIterator:
    from icu4py.breakers import WordBreaker

    return lambda chunk: WordBreaker(chunk, "en")


WORD_RULES: dict[str, WordRule] = {
    "spaces": WordRule(lambda: lambda chunk: [chunk]),
    "characters": WordRule(lambda: GRAPHEME.findall),
    "icu": WordRule(_load_icu, ("icu4py",), (*JAPANESE_SCRIPTS, "Thai", "Lao", "Khmer", "Myanmar")),
    "jieba": WordRule(_load_jieba, ("jieba",), ("Han",)),
    "fugashi": WordRule(_load_fugashi, ("fugashi", "unidic-lite"), JAPANESE_SCRIPTS),
    "pythainlp": WordRule(_load_pythainlp, ("pythainlp",), ("Thai",)),
}
"""Value of --words -> rule. docs/how-to/languages.md describes them."""
DEFAULT_WORD_RULE = "spaces"


def check_word_rule(name: str) -> None:
    """Raise UsageError for an unknown rule, or one whose package is not installed."""
    if name not in WORD_RULES:
        hint = f"one of {', '.join(WORD_RULES)}"
        raise UsageError(f"unknown rule {name!r}", location="--words", hint=hint)
    with require_packages(f"--words {name}", " ".join(WORD_RULES[name].packages)):
        _load_rule(name)


def describe_word_rule(name: str) -> str:
    """Return a rule with the versions of its packages, such as "jieba 0.42.1"."""
    packages = [f"{package} {version(package)}" for package in WORD_RULES[name].packages]
    return ", ".join(packages) or name


@lru_cache(maxsize=len(WORD_RULES))
def _load_rule(name: str) -> PieceIterator:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that were written for an older Python
        return WORD_RULES[name].load()


def check_splittable(text: str, rule: str | None, location: str) -> None:
    """Raise UsageError if a text has letters of a script without spaces that a rule does not split.

    rule: None = the user has chosen no rule. DEFAULT_WORD_RULE as a choice accepts every text. A
    single letter is a word under any rule. location: the text, for the message.
    """
    letters = find_unsplit_letters(text, rule)[:20]
    if not letters:
        return
    if rule is None:
        message = f"{location} has no spaces between words: {letters!r}"
        hint = (
            f"say what a word is: --words {', '.join(list(WORD_RULES)[1:])}, or --words "
            f"{DEFAULT_WORD_RULE} if the text has spaces between its words"
        )
    else:
        message = f"{location} has text that {rule} does not split into words: {letters!r}"
        hint = f"{rule} splits {', '.join(WORD_RULES[rule].scripts)}; characters splits any text"
    raise UsageError(message, location="--words", hint=hint)


def find_unsplit_letters(text: str, rule: str | None = None) -> str:
    """Return the first letters of a text that a rule takes for one word, although their script is
    written without spaces between words; "" = none. rule: as in `check_splittable`.
    """
    match = None if text.isascii() else _unsplit_pattern(rule).search(text)
    return "" if match is None else match[0]


@lru_cache(maxsize=1 + len(WORD_RULES))
def _unsplit_pattern(rule: str | None) -> regex.Pattern[str]:
    """Return the pattern of two or more letters that a rule does not split."""
    split_scripts = () if rule is None else WORD_RULES[rule].scripts
    unsplit_scripts = [script for script in UNSPACED_SCRIPTS if script not in split_scripts]
    if not unsplit_scripts:
        return regex.compile(r"(?!)")  # matches nothing
    letters = _letter_class(unsplit_scripts)
    if split_scripts:
        letters = f"[{letters}--{_letter_class(split_scripts)}]"
    return regex.compile(rf"(?:{letters}\p{{M}}*+){{2,}}", regex.V1)


def _letter_class(scripts: Iterable[str]) -> str:
    """Return a regular expression for one letter or number of some scripts."""
    ranges = (rf"\p{{Script={name}}}{SHARED_LETTERS.get(name, '')}" for name in scripts)
    return rf"[[{''.join(ranges)}]&&[\p{{L}}\p{{N}}]]"


UNSPACED_LETTER = regex.compile(_letter_class(UNSPACED_SCRIPTS), regex.V1)


def split_words(text: str, rule: str = DEFAULT_WORD_RULE) -> list[tuple[int, int]]:
    """Return (start, end) of each word. The segments add up to the text.

    rule: a key of WORD_RULES. Raises DataError if a segmenter changes the text.
    """
    if not text:
        return []
    graphemes = GRAPHEME.findall(text)
    normalized = [normalize("NFC", grapheme) for grapheme in graphemes]
    # Start in the normalized text -> start in the text, of every grapheme.
    original_starts = dict(zip(_starts(normalized), _starts(graphemes), strict=True))
    starts = [0]
    for start in _iter_word_starts("".join(normalized), _load_rule(rule), rule):
        original_start = original_starts.get(start)
        if original_start is not None and original_start > starts[-1]:
            starts.append(original_start)
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _starts(pieces: Iterable[str]) -> list[int]:
    """Return where each piece begins in the text that they add up to."""
    return [0, *accumulate(map(len, pieces))][:-1]


def _iter_word_starts(text: str, split_chunk: PieceIterator, rule: str) -> Iterator[int]:
    """Yield where each word begins, the white space before it included."""
    end_of_last = 0
    for chunk in CHUNK.finditer(text):
        pieces = list(split_chunk(chunk[0]))
        if "".join(pieces) != chunk[0]:
            raise DataError(
                f"{rule} reads {chunk[0]!r:.60} as other characters",
                location="--words",
                hint="use another rule, such as --words characters",
            )
        inner_starts = [chunk.start() + start for start in _starts(pieces)[1:]]
        yield from (end_of_last, *inner_starts)
        end_of_last = chunk.end()


def strip_space(text: str) -> str:
    """Return a text without the white space around it."""
    return text.strip().strip(ZERO_WIDTH_SPACE).strip()


def word_index_of_characters(text: str, rule: str) -> list[int]:
    """Return the index of the word that each character is in; -1 for white space."""
    words = [-1] * len(text)
    for number, (start, end) in enumerate(split_words(text, rule)):
        for index in range(start, end):
            if CHUNK.match(text[index]):
                words[index] = number
    return words


def joins_without_space(before: str, after: str) -> bool:
    """Return whether two parts of a text are joined without a space: where they meet, both have a
    letter of a script without spaces, or wide punctuation."""
    return is_unspaced(before[-1:]) and is_unspaced(after[:1])


def is_unspaced(character: str) -> bool:
    """Return whether a character is a letter of a script without spaces, or wide punctuation."""
    if not character or UNSPACED_LETTER.match(character):
        return bool(character)
    return category(character).startswith("P") and east_asian_width(character) in "WF"
