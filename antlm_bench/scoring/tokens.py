"""Tokenize texts with any tokenizer: ids, character offsets, words, and what the tokenizer cannot
read.

Words. `mlm-l2r` hides the rest of a token's word, so every token needs a word. Fast tokenizers
whose pre-tokenizer splits at white space say which word a token belongs to (`word_ids`); their
answer is used as it is. The others (byte-level BPE without a split, SentencePiece's Metaspace
without a split, superword BPE, slow tokenizers) give one number for the whole text or none. There,
words are those of GPT-2's pre-tokenizer (Radford et al. 2019), found from character offsets:
contractions ('s 't 're 've 'm 'll 'd), runs of letters, runs of digits, and runs of other
characters. Combining marks count as letters, which GPT-2's pattern leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from unicodedata import category, normalize

import numpy as np

from antlm_bench.errors import CheckpointError, DataError
from antlm_bench.types import Bools

Offsets = list[tuple[int, int]]

TOKEN_FLAGS = ("unk", "lost", "spans-words")  # flags of a text that its tokens raise
WORDS_FROM_OFFSETS_NOTE = (
    "the tokenizer does not say which word a token belongs to: words are those of GPT-2's "
    "pre-tokenizer, by characters"
)
PROBE_TEXT = "The cat sat on the mat."  # tokenized to see what a tokenizer does by itself
# Tokens of its own that a tokenizer is tried with if it cannot read PROBE.
MAX_VOCABULARY_PROBES = 1000
# A private character: no vocabulary holds it, so it shows the unknown token.
UNKNOWN_CHARACTER = "\U0010fffd"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # SentencePiece's byte fallback
# Of a text spelled in kinds (see _kind): GPT-2's pre-tokenizer.
GPT2_WORD = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[Lstmdrevl]+| ?N+| ?[o']+")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of n texts, without special tokens around them."""

    ids: list[list[int]]
    offsets: list[Offsets | None]
    """(start, end) of each token, in characters; None where a slow tokenizer cannot say."""
    words: list[list[int]]
    """The index of the first word that each token belongs to; -1 = unknown."""
    last_words: list[list[int]]
    """The index of the last word that each token belongs to."""
    flags: Mapping[str, Bools] = field(default_factory=dict)
    """Each of TOKEN_FLAGS -> (n,)."""


class TextTokenizer:
    """A transformers tokenizer, fast or slow, with facts about it that are found by trying."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._symbols_cache: dict[str, tuple[str, str]] = {}

    @cached_property
    def emitted_unknown_ids(self) -> frozenset[int]:
        """The ids that a fast tokenizer's model gives to what its vocabulary lacks."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return frozenset()
        try:
            tokens = [token.id for token in backend.model.tokenize(UNKNOWN_CHARACTER)]
        except Exception:  # it has no unknown token, and raises
            return frozenset()
        spelled = [str(backend.id_to_token(token)) for token in tokens]
        if len(tokens) != 1 or UNKNOWN_CHARACTER in spelled[0] or BYTE_TOKEN.fullmatch(spelled[0]):
            return frozenset()
        return frozenset(tokens)

    @cached_property
    def unknown_ids(self) -> frozenset[int]:
        """The ids that stand for "unknown", whether or not the tokenizer's configuration names
        them.
        """
        named = self.tokenizer.unk_token_id
        return self.emitted_unknown_ids | ({named} if named is not None else set())

    @cached_property
    def has_word_ids(self) -> bool:
        """Whether `word_ids` distinguish the words of a text with white space."""
        if not self.tokenizer.is_fast:
            return False
        for text in probe_texts(self.tokenizer):
            text = text if text == PROBE_TEXT else f"{text} {text}"
            if not can_tokenize(self.tokenizer, text):
                continue
            encoding = self.tokenizer(text, add_special_tokens=False, verbose=False).encodings[0]
            if encoding.offsets:
                return not _has_space_in_word(text, encoding.offsets, encoding.word_ids)
        return True  # it reads no text at all: there are no words to tell

    @cached_property
    def drops_unknown(self) -> bool:
        """Whether its model drops what its vocabulary lacks (byte-pair encoding without unknown
        token).
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        try:
            return backend is not None and not backend.model.tokenize(UNKNOWN_CHARACTER)
        except Exception:  # it raises instead
            return False

    @cached_property
    def _text_prefix(self) -> str:
        """What the tokenizer puts before every text, such as a space."""
        return _pretokenize(self.tokenizer.backend_tokenizer, "a").partition("a")[0]

    def _vocabulary_symbols(self, character: str) -> tuple[str, str]:
        """Return a character in symbols of the vocabulary, and those that the vocabulary lacks."""
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

        max_offset_length: slow tokenizers get no offsets of longer rows, because the work grows
        with the square. Raises DataError for a text that is not valid Unicode, CheckpointError for
        one that the tokenizer cannot read.
        """
        texts = list(texts)
        if not texts:
            return Tokenized([], [], [], [], {name: np.zeros(0, np.bool_) for name in TOKEN_FLAGS})
        if self.tokenizer.is_fast:
            encodings = self._encodings(texts)
            ids = [list(encoding.ids) for encoding in encodings]
            offsets: list[Offsets | None] = [encoding.offsets for encoding in encodings]
            if self.drops_unknown:
                offsets = [
                    self._correct_offsets(*values)
                    for values in zip(texts, ids, offsets, strict=True)
                ]
            word_ids = [encoding.word_ids for encoding in encodings] if self.has_word_ids else None
        else:
            ids = [self._slow_ids(text) for text in texts]
            offsets = [
                offsets_from_decoding(self.tokenizer, row, text)
                if max_offset_length is None or len(row) <= max_offset_length
                else None
                for row, text in zip(ids, texts, strict=True)
            ]
            word_ids = None
        words: list[list[int]] = []
        last_words: list[list[int]] = []
        for number, (text, text_offsets) in enumerate(zip(texts, offsets, strict=True)):
            own_word_ids = word_ids[number] if word_ids is not None else None
            if (
                own_word_ids is not None
                and text_offsets is not None
                and not _has_space_in_word(text, text_offsets, own_word_ids)
            ):
                first = last = [word if word is not None else -1 for word in own_word_ids]
            elif text_offsets is not None:
                first, last = _words_from_offsets(text, text_offsets)
            else:
                first = last = [-1] * len(ids[number])
            words.append(first)
            last_words.append(last)
        flags = {
            "unk": [not self.unknown_ids.isdisjoint(row) for row in ids],
            "lost": [
                self._loses_characters(*values) for values in zip(texts, ids, offsets, strict=True)
            ],
            "spans-words": [a is not b and a != b for a, b in zip(words, last_words, strict=True)],
        }
        raised = {name: np.array(flags[name], np.bool_) for name in TOKEN_FLAGS}
        return Tokenized(ids, offsets, words, last_words, raised)

    def _encodings(self, texts: list[str]) -> Any:
        try:
            return self.tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            ).encodings
        except Exception as error:
            raise self._unreadable_error(texts, error) from error

    def _slow_ids(self, text: str) -> list[int]:
        try:
            ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            return [int(token) for token in ids]  # None, where neither token nor unknown has an id
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
                message = f"{_truncate(text)!r} holds half of a surrogate pair, which is no text"
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
        """Return the offsets of a text's tokens where the tokenizers library may have miscounted.

        It counts dropped characters as if they had no length, so that the tokens after them, up to
        the end of the pre-tokenizer's piece, lie too far to the left. The tokens spell what is left
        of the text, which gives their offsets. None where they spell something else and pieces are
        not words.
        """
        if not any(self._vocabulary_symbols(character)[1] for character in set(text)):
            return offsets
        spelled, origin = "", []
        for index, character in enumerate(text):
            symbols, missing = self._vocabulary_symbols(character)
            kept = "".join(symbol for symbol in symbols if symbol not in missing)
            spelled += kept
            origin += [index] * len(kept)
        tokens = [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids)]
        joined = "".join(tokens)
        added = len(joined) - len(spelled)
        if added < 0 or joined[:added] != self._text_prefix[:added] or joined[added:] != spelled:
            return offsets if self.has_word_ids else None
        origin = [0] * added + origin
        token_offsets, top = [], 0
        for token in tokens:
            characters = origin[top : top + len(token)]
            token_offsets.append((characters[0], characters[-1] + (top + len(characters) > added)))
            top += len(token)
        return token_offsets

    def _loses_characters(self, text: str, ids: list[int], offsets: Offsets | None) -> bool:
        """Return whether a visible character of the text is in no token."""
        if not self.tokenizer.is_fast:
            is_complete = offsets is not None or not self.unknown_ids.isdisjoint(ids)
            return not is_complete and _decoding_loses_characters(text, self.tokenizer.decode(ids))
        if self.drops_unknown and (
            lacking := [c for c in set(text) if self._vocabulary_symbols(c)[1]]
        ):
            return any(map(_is_visible, lacking))
        covered = 0
        for start, end in offsets or ():
            if start > covered and any(map(_is_visible, text[covered:start])):
                return True
            covered = max(covered, end)
        return any(map(_is_visible, text[covered:]))


def can_tokenize(tokenizer: Any, text: str) -> bool:
    """Return whether the tokenizer encodes a text without raising."""
    try:
        return all(i is not None for i in tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception:  # tokenizers raises plain Exception, slow tokenizers what they like
        return False


def probe_texts(tokenizer: Any) -> Iterator[str]:
    """Yield texts that show what a tokenizer does: PROBE_TEXT, then tokens of its vocabulary."""
    yield PROBE_TEXT
    special = set(tokenizer.all_special_ids)
    for token in range(min(len(tokenizer), MAX_VOCABULARY_PROBES)):
        if token not in special:
            yield from dict.fromkeys(
                text.strip()
                for text in (tokenizer.decode([token]), str(tokenizer.convert_ids_to_tokens(token)))
                if text.strip()
            )


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
    expected, kept = _fold(text), _fold(decoded)
    return any(expected.count(c) > kept.count(c) for c in set(expected))


def _fold(text: str) -> str:
    folded = normalize("NFKD", normalize("NFKD", text).casefold())
    return "".join(c for c in folded if _is_visible(c) and not category(c).startswith("M"))


# ---- words ---------------------------------------------------------------------------------------


def _has_space_in_word(text: str, offsets: Offsets, word_ids: Sequence[int | None]) -> bool:
    """Return whether a word of `word_ids` is unknown (None) or contains white space."""
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
    """Return the class of a character in GPT2_WORD: letters of contractions and "'" stand for
    themselves.
    """
    if character in "'stmdrevl ":
        return character
    if character.isspace():
        return "_"
    major = category(character)[0]
    return "L" if major in "LM" else "N" if major == "N" else "o"


def word_index_per_character(text: str) -> list[int]:
    """Return the word index of each character (see the module's docstring), -1 for white space."""
    numbers = [-1] * len(text)
    for number, match in enumerate(GPT2_WORD.finditer("".join(map(_character_class, text)))):
        start = match.start() + (text[match.start()] == " ")
        numbers[start : match.end()] = [number] * (match.end() - start)
    return numbers


def _words_from_offsets(text: str, offsets: Offsets) -> tuple[list[int], list[int]]:
    """Return the first and the last word of each token.

    A token of white space only, or without characters, belongs to the word that follows, as the
    space before a word does in GPT-2's pre-tokenizer.
    """
    numbers = word_index_per_character(text)
    before, after = [-1], [max(numbers, default=-1) + 1]
    for number in numbers:
        before.append(number if number >= 0 else before[-1])
    for number in reversed(numbers):
        after.append(number if number >= 0 else after[-1])
    after.reverse()
    first = [after[start] for start, _ in offsets]
    return first, [
        max(first_word, before[end]) for first_word, (_, end) in zip(first, offsets, strict=True)
    ]


def offsets_from_decoding(tokenizer: Any, ids: list[int], text: str) -> Offsets | None:
    """Return character offsets for a slow tokenizer, which keeps none: a token ends where the text
    decoded so far ends.

    White space and case are matched loosely (decoders drop and fold them); None if decoding does
    not return the text.
    """
    offsets: Offsets = []
    end, seen, before = 0, "", ""
    for stop in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False)
        expected = "".join(decoded.split())
        start = end
        if (
            len(seen) == len(expected)
            and len(decoded) > len(before)
            and text[end : end + 1].isspace()
        ):
            end += 1  # a token of white space alone
        while end < len(text) and len(seen) < len(expected):
            seen += "" if text[end].isspace() else text[end]
            end += 1
        if not expected.casefold().startswith(seen.casefold()):
            return None
        offsets.append((start, end))
        before = decoded
    for i in reversed(range(len(offsets) - 1)):
        if offsets[i][0] == offsets[i][1]:  # a part of a character lies where the whole does
            offsets[i] = (offsets[i][0], offsets[i + 1][1])
    return offsets if end >= len(text.rstrip()) else None
