"""Tokenize texts with any tokenizer: ids, character offsets, words and flags.

Words: `mlm-l2r` masks the rest of a token's word, so every token needs a word index. A rule of
`antlm_bench.words` gives it if the user chose one. Else fast tokenizers that split texts at white
space give it (`word_ids`). All others (byte-level BPE or SentencePiece's Metaspace without a split,
superword BPE, slow tokenizers) give one index for the whole text, or none. For them, words are
found from character offsets as in GPT-2's pre-tokenizer (Radford et al. 2019): contractions ('s 't
're 've 'm 'll 'd), runs of letters, runs of digits, and runs of other characters. Unlike in GPT-2,
combining marks count as letters.

Whatever gives the words, they are corrected in texts of some scripts (`_correct_words`): no word
ends inside a grapheme, or between a letter's combining mark and the next letter; and in a script
without spaces between words, a word is a grapheme, or the graphemes that share a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any
from unicodedata import category, normalize

import numpy as np
import regex

from antlm_bench.errors import CheckpointError, DataError
from antlm_bench.types import Bools
from antlm_bench.words import GRAPHEME, UNSPACED_LETTER, is_unspaced, word_index_of_characters

Offsets = list[tuple[int, int]]

TOKEN_FLAGS = ("unk", "lost", "spans-words")  # keys of Tokenized.flags, explained in types.FLAGS
WORDS_FROM_OFFSETS_NOTE = (
    "the tokenizer does not say which word a token belongs to: words are those of GPT-2's "
    "pre-tokenizer, by characters"
)
PROBE_TEXT = "The cat sat on the mat."  # tokenized to see what a tokenizer does by itself
# Number of tokens of its vocabulary that a tokenizer is tested on if it cannot read PROBE_TEXT.
MAX_VOCABULARY_PROBES = 1000
# A private-use character: no vocabulary has it, so a tokenizer returns its unknown token.
UNKNOWN_CHARACTER = "\U0010fffd"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # SentencePiece's byte fallback
# Texts whose words are corrected: with combining marks, joiners, letters of scripts without spaces.
NEEDS_CORRECTION = regex.compile(rf"[\p{{M}}\u200c\u200d]|{UNSPACED_LETTER.pattern}", regex.V1)
# A letter with combining marks, or with a joiner, as Persian and the scripts of India use them.
MARKED_LETTER = regex.compile(r"\p{L}.*[\p{M}\u200c\u200d]", regex.DOTALL)
# GPT-2's pattern of words, for a text whose characters are replaced by _character_class.
GPT2_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[Lstmdrevl]+| ?N+| ?[o']+")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of n texts, without special tokens around them."""

    ids: list[list[int]]
    """Token ids of each text."""
    offsets: list[Offsets | None]
    """(start, end) of each token of each text, in characters; None = unknown."""
    words: list[list[int]]
    """Index of the first word that each token belongs to; -1 = unknown."""
    last_words: list[list[int]]
    """Index of the last word that each token belongs to; -1 = unknown."""
    flags: Mapping[str, Bools] = field(default_factory=dict)
    """Each of TOKEN_FLAGS -> (n,)."""


class TextTokenizer:
    """A fast or slow transformers tokenizer, and facts about it that are measured on texts."""

    def __init__(self, tokenizer: Any, word_rule: str | None = None) -> None:
        """word_rule: a key of words.WORD_RULES; None = the words of the tokenizer."""
        self.tokenizer, self.word_rule = tokenizer, word_rule
        self._symbols_cache: dict[str, tuple[str, str]] = {}

    @cached_property
    def emitted_unknown_ids(self) -> frozenset[int]:
        """The id that a fast tokenizer gives to characters outside its vocabulary, if any."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return frozenset()
        try:
            ids = [token.id for token in backend.model.tokenize(UNKNOWN_CHARACTER)]
        except Exception:  # raised by a model without unknown token
            return frozenset()
        tokens = [str(backend.id_to_token(token_id)) for token_id in ids]
        if len(ids) != 1 or UNKNOWN_CHARACTER in tokens[0] or BYTE_TOKEN.fullmatch(tokens[0]):
            return frozenset()
        return frozenset(ids)

    @cached_property
    def unknown_ids(self) -> frozenset[int]:
        """The ids of unknown tokens: the configured one and `emitted_unknown_ids`."""
        configured = self.tokenizer.unk_token_id
        return self.emitted_unknown_ids | ({configured} if configured is not None else set())

    @cached_property
    def has_word_ids(self) -> bool:
        """Whether `word_ids` tell words apart that white space separates."""
        if not self.tokenizer.is_fast:
            return False
        for text in probe_texts(self.tokenizer):
            text = text if text == PROBE_TEXT else f"{text} {text}"
            if not can_tokenize(self.tokenizer, text):
                continue
            encoding = self.tokenizer(text, add_special_tokens=False, verbose=False).encodings[0]
            if encoding.offsets:
                return not _has_space_in_word(text, encoding.offsets, encoding.word_ids)
        return True  # the tokenizer reads no text at all

    @cached_property
    def drops_unknown(self) -> bool:
        """Whether it drops characters outside its vocabulary (BPE without unknown token)."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        try:
            return backend is not None and not backend.model.tokenize(UNKNOWN_CHARACTER)
        except Exception:  # raised by a model without unknown token
            return False

    @cached_property
    def _text_prefix(self) -> str:
        """Characters that the tokenizer puts before every text, such as a space."""
        return _pretokenize(self.tokenizer.backend_tokenizer, "a").partition("a")[0]

    def _vocabulary_symbols(self, character: str) -> tuple[str, str]:
        """Return (symbols, missing): a character after pre-tokenization (as byte-level BPE turns it
        into bytes), and those of its symbols that the vocabulary lacks.
        """
        if character not in self._symbols_cache:
            backend = self.tokenizer.backend_tokenizer
            symbols = _pretokenize(backend, character)
            symbols = symbols if character == " " else symbols.removeprefix(self._text_prefix)
            missing = "".join(
                symbol for symbol in symbols if backend.model.token_to_id(symbol) is None
            )
            self._symbols_cache[character] = symbols, missing
        return self._symbols_cache[character]

    def tokenize(self, texts: Sequence[str], max_offset_length: int | None = None) -> Tokenized:
        """Tokenize n texts in bulk, without special tokens.

        max_offset_length: with a slow tokenizer, longer texts (in tokens) get no offsets, because
        the work grows with the square of the length. Raises DataError for a text that is not valid
        Unicode, CheckpointError for a text that the tokenizer cannot read.
        """
        texts = list(texts)
        if not texts:
            return Tokenized([], [], [], [], {name: np.zeros(0, np.bool_) for name in TOKEN_FLAGS})
        offsets: list[Offsets | None]
        if self.tokenizer.is_fast:
            encodings = self._fast_encodings(texts)
            ids = [list(encoding.ids) for encoding in encodings]
            offsets = [
                self._cover_composed(text, _restore_spaces(text, encoding.offsets))
                for text, encoding in zip(texts, encodings, strict=True)
            ]
            if self.drops_unknown:
                offsets = list(map(self._correct_offsets, texts, ids, offsets))
            word_ids = [encoding.word_ids for encoding in encodings] if self.has_word_ids else None
        else:
            ids = [self._slow_ids(text) for text in texts]
            offsets = [
                offsets_from_decoding(self.tokenizer, text_ids, text)
                if max_offset_length is None or len(text_ids) <= max_offset_length
                else None
                for text_ids, text in zip(ids, texts, strict=True)
            ]
            word_ids = None
        words: list[list[int]] = []
        last_words: list[list[int]] = []
        for index, (text, text_offsets) in enumerate(zip(texts, offsets, strict=True)):
            if text_offsets is None:
                first = last = [-1] * len(ids[index])
            else:
                text_word_ids = None if word_ids is None else word_ids[index]
                first, last = self._words_of_tokens(text, text_offsets, text_word_ids)
            words.append(first)
            last_words.append(last)
        flags = {
            "unk": [not self.unknown_ids.isdisjoint(text_ids) for text_ids in ids],
            "lost": list(map(self._loses_characters, texts, ids, offsets)),
            "spans-words": [
                first is not last and first != last
                for first, last in zip(words, last_words, strict=True)
            ],
        }
        flag_masks = {name: np.array(flags[name], np.bool_) for name in TOKEN_FLAGS}
        return Tokenized(ids, offsets, words, last_words, flag_masks)

    def _words_of_tokens(
        self, text: str, offsets: Offsets, word_ids: list[int] | None
    ) -> tuple[list[int], list[int]]:
        """Return the first and the last word of each token. word_ids: of a fast tokenizer."""
        if self.word_rule is not None:
            words = word_index_of_characters(text, self.word_rule)
            return _words_from_characters(words, offsets)
        if word_ids is not None and _has_space_in_word(text, offsets, word_ids):
            word_ids = None
        needs_correction = has_corrected_words(text)
        if word_ids is not None:
            words = _correct_word_ids(text, offsets, word_ids) if needs_correction else word_ids
            return words, words
        words = word_index_per_character(text)
        if needs_correction:
            words = _correct_words(text, offsets, words)
        return _words_from_characters(words, offsets)

    def _fast_encodings(self, texts: list[str]) -> Any:
        try:
            return self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            ).encodings
        except Exception as error:
            raise self._unreadable_error(texts, error) from error

    def _slow_ids(self, text: str) -> list[int]:
        try:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return [int(token) for token in ids]  # fails for None, the id of an unreadable token
        except Exception as error:
            raise self._unreadable_error([text], error) from error

    def _unreadable_error(
        self, texts: Sequence[str], error: Exception
    ) -> DataError | CheckpointError:
        """Return the error that names the first of these texts that the tokenizer cannot read."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                message = f"{_truncate(text)!r} holds half of a surrogate pair, which is not text"
                return DataError(message, hint="save the file as UTF-8")
        text = next((text for text in texts if not can_tokenize(self.tokenizer, text)), texts[0])
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return CheckpointError(
            f"the tokenizer cannot read {_truncate(text)!r}: {reason}",
            hint="its vocabulary does not cover the text and has no unknown token: add one "
            "(unk_token), or leave such texts out",
        )

    def _correct_offsets(
        self, text: str, ids: list[int], offsets: Offsets | None
    ) -> Offsets | None:
        """Return correct offsets of a text from which the tokenizer dropped characters.

        The tokenizers library counts dropped characters as if they had no length, so that the
        offsets after them are too small, up to the end of the word. The tokens joined together
        equal the text without the dropped characters, which gives their true offsets. If they do
        not equal it, the library's offsets are kept if each word is counted anew, and are unknown
        (None) otherwise.
        """
        if not any(self._vocabulary_symbols(character)[1] for character in set(text)):
            return offsets
        kept_text, kept_indices = "", []
        for index, character in enumerate(text):
            symbols, missing = self._vocabulary_symbols(character)
            kept_symbols = "".join(symbol for symbol in symbols if symbol not in missing)
            kept_text += kept_symbols
            kept_indices += [index] * len(kept_symbols)
        tokens = [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]
        joined = "".join(tokens)
        prefix_length = len(joined) - len(kept_text)
        if prefix_length < 0 or joined != self._text_prefix[:prefix_length] + kept_text:
            return offsets if self.has_word_ids else None
        indices = [0] * prefix_length + kept_indices
        corrected, start = [], 0
        for token in tokens:
            end = start + len(token)
            # A token that only holds the prefix has no characters: it starts and ends at 0.
            width = 1 if end > prefix_length else 0
            corrected.append((indices[start], indices[end - 1] + width))
            start = end
        return corrected

    def _loses_characters(self, text: str, ids: list[int], offsets: Offsets | None) -> bool:
        """Return whether a visible character of the text is in no token."""
        if not self.tokenizer.is_fast:
            if offsets is not None or not self.unknown_ids.isdisjoint(ids):
                return False
            return _decoding_loses_characters(text, self.tokenizer.decode(ids))
        if self.drops_unknown:
            dropped = [c for c in set(text) if self._vocabulary_symbols(c)[1]]
            if dropped:
                return any(map(_is_visible, dropped))
        covered = 0
        for start, end in offsets or ():
            if start > covered and any(map(_is_visible, text[covered:start])):
                return True
            covered = max(covered, end)
        return any(map(_is_visible, text[covered:]))

    def _cover_composed(self, text: str, offsets: Offsets) -> Offsets:
        """Return offsets in which a token also covers the marks that a normalizer joins with its
        last character. The library's offsets are those of the first character only.
        """
        if text.isascii() or self.tokenizer.backend_tokenizer.normalizer is None:
            return offsets
        covered = {index for start, end in offsets for index in range(start, end)}
        for index, character in enumerate(text):
            if index not in covered and _is_visible(character) and self._composes(text, index):
                offsets = [(s, index + 1 if e == index else e) for s, e in offsets]
        return offsets

    def _composes(self, text: str, index: int) -> bool:
        """Return whether the tokenizer's normalizer joins a character with those before it, as a
        combining mark with its letter.
        """
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        start = next(m.start() for m in GRAPHEME.finditer(text) if m.end() > index)
        before = text[start:index]
        joined = str(normalizer.normalize_str(before + text[index]))
        separate = str(normalizer.normalize_str(before))
        return bool(before) and joined != separate and not joined.startswith(separate)


def _restore_spaces(text: str, offsets: Offsets) -> Offsets:
    """Return offsets in which a token of white space covers it.

    With `trim_offsets` (RoBERTa), the library leaves white space out of offsets, so that such a
    token has no characters: it stands after its space, or before it at the start of a text.
    """
    if all(start < end for start, end in offsets):
        return offsets
    restored = []
    for start, end in offsets:
        if start == end and text[start - 1 : start].isspace():
            start -= 1
        elif start == end and text[start : start + 1].isspace():
            end += 1
        restored.append((start, end))
    return restored


def has_corrected_words(text: str) -> bool:
    """Return whether `_correct_words` may change the words of a text."""
    return not text.isascii() and NEEDS_CORRECTION.search(text) is not None


def can_tokenize(tokenizer: Any, text: str) -> bool:
    """Return whether the tokenizer encodes a text without raising."""
    try:
        return all(i is not None for i in tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # fast tokenizers raise plain Exception, slow ones errors of any type
        return False


def probe_texts(tokenizer: Any) -> Iterator[str]:
    """Yield texts to test a tokenizer on: PROBE_TEXT, then tokens of its vocabulary."""
    yield PROBE_TEXT
    special_ids = set(tokenizer.all_special_ids)
    for token_id in range(min(len(tokenizer), MAX_VOCABULARY_PROBES)):
        if token_id not in special_ids:
            decoded = tokenizer.decode([token_id]).strip()
            token = str(tokenizer.convert_ids_to_tokens(token_id)).strip()
            yield from (text for text in dict.fromkeys((decoded, token)) if text)


def _pretokenize(backend: Any, text: str) -> str:
    """Return a text after the normalizer and pre-tokenizer of a fast tokenizer."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return str(text)
    return "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text))


def _truncate(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_visible(character: str) -> bool:
    """Return whether a character is not white space, control or format (which may be dropped)."""
    return not character.isspace() and category(character) not in ("Cc", "Cf")


def _decoding_loses_characters(text: str, decoded: str) -> bool:
    """Return whether the decoded ids of a slow tokenizer lack a visible character of the text.

    Case and compatibility forms are folded, because normalizers change them.
    """
    if decoded == text:
        return False
    original_characters, decoded_characters = _fold(text), _fold(decoded)
    return any(
        original_characters.count(c) > decoded_characters.count(c) for c in set(original_characters)
    )


def _fold(text: str) -> str:
    folded = normalize("NFKD", normalize("NFKD", text).casefold())
    return "".join(c for c in folded if _is_visible(c) and not category(c).startswith("M"))


# ---- words ---------------------------------------------------------------------------------------


def _has_space_in_word(text: str, offsets: Offsets, word_ids: Sequence[int | None]) -> bool:
    """Return whether a word id is None, or a word contains white space."""
    index = 0
    while index < len(word_ids):
        word, start, end = word_ids[index], offsets[index][0], offsets[index][1]
        if word is None:
            return True
        while index < len(word_ids) and word_ids[index] == word:
            end = max(end, offsets[index][1])
            index += 1
        if len(text[start:end].split()) > 1:
            return True
    return False


@lru_cache(maxsize=4096)
def _character_class(character: str) -> str:
    """Return a character of GPT2_WORD: L letter, N number, _ white space, o other. The apostrophe,
    the space and the letters of contractions stand for themselves.
    """
    if character in "'stmdrevl ":
        return character
    if character.isspace():
        return "_"
    unicode_category = category(character)
    if unicode_category.startswith(("L", "M")):
        return "L"
    return "N" if unicode_category.startswith("N") else "o"


def word_index_per_character(text: str) -> list[int]:
    """Return the word index of each character (see the module's docstring), -1 for white space."""
    words = [-1] * len(text)
    for word, match in enumerate(GPT2_WORD.finditer("".join(map(_character_class, text)))):
        start = match.start() + (text[match.start()] == " ")
        words[start : match.end()] = [word] * (match.end() - start)
    return words


def _correct_word_ids(text: str, offsets: Offsets, word_ids: Sequence[int]) -> list[int]:
    """Return the corrected word of each token (see the module's docstring)."""
    graphemes = [*GRAPHEME.findall(text), ""]
    starts = accumulate(map(len, graphemes[:-1]), initial=0)
    # Start of each grapheme -> the grapheme before it and itself.
    neighbours = dict(zip(starts, pairwise(["", *graphemes]), strict=True))
    corrected: list[int] = []
    covered = 0
    for index, (start, end) in enumerate(offsets):
        before, after = neighbours.get(start, ("", ""))
        differs = index > 0 and word_ids[index] != word_ids[index - 1]
        begins = start >= covered and start in neighbours and _separates(before, after, differs)
        corrected.append(corrected[-1] + begins if corrected else 0)
        covered = max(covered, end)
    return corrected


def _correct_words(text: str, offsets: Offsets, words: Sequence[int]) -> list[int]:
    """Return the corrected word of each character (see the module's docstring).

    words: index of each character's word, -1 for white space.
    """
    inside_token = {index for start, end in offsets for index in range(start + 1, end)}
    corrected: list[int] = []
    number, before = -1, " "  # the current word, and the grapheme before
    for match in GRAPHEME.finditer(text):
        grapheme, start = match[0], match.start()
        if not grapheme[-1].isspace():
            differs = before[-1].isspace() or words[start - 1] != words[start]
            is_shared = start in inside_token and not differs
            number += not is_shared and _separates(before, grapheme, differs)
        corrected += [-1 if character.isspace() else number for character in grapheme]
        before = grapheme
    return corrected


def _separates(before: str, after: str, differs: bool) -> bool:
    """Return whether a word ends between two graphemes. differs: whether they are in different
    words of the tokenizer.
    """
    if is_unspaced(before[:1]) or is_unspaced(after[:1]):
        return True
    is_letter = after[:1].isalpha() and MARKED_LETTER.fullmatch(before) is not None
    return differs and not is_letter


def _words_from_characters(words: Sequence[int], offsets: Offsets) -> tuple[list[int], list[int]]:
    """Return the first and the last word of each token.

    words: index of each character's word, -1 for white space. A token without characters, or of
    white space only, belongs to the next word, as the space before a word does in GPT-2's
    pre-tokenizer.
    """
    previous_word, next_word = [-1], [max(words, default=-1) + 1]  # at each border of characters
    for word in words:
        previous_word.append(word if word >= 0 else previous_word[-1])
    for word in reversed(words):
        next_word.append(word if word >= 0 else next_word[-1])
    next_word.reverse()
    first_words = [next_word[start] for start, _ in offsets]
    last_words = [
        max(first, previous_word[end]) for first, (_, end) in zip(first_words, offsets, strict=True)
    ]
    return first_words, last_words


def offsets_from_decoding(tokenizer: Any, ids: list[int], text: str) -> Offsets | None:
    """Return the character offsets of the tokens of a slow tokenizer, from decoded prefixes.

    A token ends where the decoded tokens up to it end in the text. White space and case may differ,
    because decoders change them. None if the decoded tokens are not the text.
    """
    offsets: Offsets = []
    end = 0  # characters of the text that the tokens so far cover
    covered = ""  # those characters without white space
    previous_length = 0
    for num_tokens in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:num_tokens], clean_up_tokenization_spaces=False)
        decoded_characters = "".join(decoded.split())
        start = end
        adds_only_space = len(decoded_characters) == len(covered) and len(decoded) > previous_length
        if adds_only_space and text[end : end + 1].isspace():
            end += 1
        while end < len(text) and len(covered) < len(decoded_characters):
            if not text[end].isspace():
                covered += text[end]
            end += 1
        if not decoded_characters.casefold().startswith(covered.casefold()):
            return None
        offsets.append((start, end))
        previous_length = len(decoded)
    for i in reversed(range(len(offsets) - 1)):
        if offsets[i][0] == offsets[i][1]:  # a token with some bytes of the next token's character
            offsets[i] = (offsets[i][0], offsets[i + 1][1])
    return offsets if end >= len(text.rstrip()) else None
