"""Corrections of word probabilities for tokenizers whose tokens carry the space before a word.

With such a tokenizer (byte-level BPE, SentencePiece), only the token after a word shows that the
word has ended. The sum over the tokens of a word therefore misses the end of the word, and holds
the end of the word before it. A correction moves that end to the word to which it belongs:

    log P(word) = log P(its tokens)
                + log P(a token of B | text up to the end of the word)
                - log P(a token of B | text up to the beginning of the word)

Corrections differ in the set B, and in the last term of the first word of a text (CORRECTIONS). A
word is text between white space here, whatever rule --words names; U+200B is white space, as in
words.CHUNK. If B holds every token that may follow a word, and EOS, the probabilities of all words
after a context and of the end of the text add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.scoring.tokens import Offsets, can_tokenize, probe_texts
from antlm_bench.types import Ints
from antlm_bench.words import CHUNK

# Mark of a space at the start of a token -> all white space that may start a token, as in the
# vocabulary (byte-level BPE, SentencePiece). The last of each is U+200B, which ends a word
# (words.CHUNK).
WORD_START_MARKS: dict[str, tuple[str, ...]] = {
    "\u0120": ("\u0120", "\u010a", "\u0109", "\u010d", "\u00e2\u0122\u012d"),
    "\u2581": ("\u2581", "\n", "\t", "\r", "<0x0A>", "<0x09>", "<0x0D>", "\u200b"),
}
BOUNDARY_TARGET, FIRST_WORD_TARGET = -1, -2
"""Targets of Probes: the set B, and the tokens with which a text may begin."""
NO_CORRECTION = "none"


@dataclass(frozen=True, slots=True)
class WordCorrection:
    """A correction: what may follow a word, and how the first word of a text is treated."""

    counts_eos: bool
    """Whether B holds EOS: a text may end after a word."""
    counts_line_breaks: bool
    """Whether B holds tokens that begin with a line break, tab or U+200B, not only with a space."""
    divides_first_word: bool
    """Whether the first word of a text is divided by the probability of a token that may begin a
    text: one without a space (of B, if the first token begins with a space), or EOS."""


CORRECTIONS: dict[str, WordCorrection] = {
    # A text begins with a word, so that its first word has no last term.
    "word-boundary": WordCorrection(
        counts_eos=True,
        counts_line_breaks=True,
        divides_first_word=False,
    ),
    # Pimentel & Meister 2024, arXiv 2406.14561. Their package wordsprobability counts EOS twice in
    # the last term of the first word.
    "pimentel-meister": WordCorrection(
        counts_eos=True,
        counts_line_breaks=False,
        divides_first_word=True,
    ),
    # Oh & Schuler 2024, arXiv 2406.10851, as minicons 0.3.39 computes it (bow_correction).
    "oh-schuler": WordCorrection(
        counts_eos=False,
        counts_line_breaks=False,
        divides_first_word=False,
    ),
}
"""Value of --correction -> correction. NO_CORRECTION is the sum over the tokens."""


def resolve_correction(name: str) -> WordCorrection | None:
    """Return a correction by name, None for "none". Raises UsageError for an unknown name."""
    if name == NO_CORRECTION:
        return None
    if name not in CORRECTIONS:
        raise UsageError(
            f"unknown correction {name!r}",
            location="--correction",
            hint=f"one of {', '.join((NO_CORRECTION, *CORRECTIONS))}",
        )
    return CORRECTIONS[name]


def build_token_sets(tokenizer: Any, correction: WordCorrection, vocab_size: int) -> list[Ints]:
    """Return the sets of token ids that BOUNDARY_TARGET and FIRST_WORD_TARGET stand for.

    vocab_size: number of embeddings of the model. Raises MethodNotSupported for tokenizers whose
    tokens do not begin with a space (WordPiece, tokens that end in </w>): they need no correction.
    """
    space, white_space = _find_space_mark(tokenizer)
    marks = white_space if correction.counts_line_breaks else (space,)
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if i < vocab_size}
    boundary = {i for token, i in vocabulary.items() if token.startswith(marks)}
    text_start = set(vocabulary.values()) - boundary
    eos = tokenizer.eos_token_id
    if eos is not None and correction.counts_eos:
        boundary.add(eos)
    return [np.array(sorted(ids), np.int32) for ids in (boundary, text_start)]


def _find_space_mark(tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """Return the key and the value of WORD_START_MARKS that fit a tokenizer."""
    pairs = (f"{text} {text}" for text in chain(["a"], probe_texts(tokenizer)))
    pair = next((pair for pair in pairs if can_tokenize(tokenizer, pair)), "")
    pair_ids = tokenizer(pair, add_special_tokens=False)["input_ids"]
    later_tokens = tokenizer.convert_ids_to_tokens(pair_ids)[1:]
    for space, white_space in WORD_START_MARKS.items():
        if any(token.startswith(space) for token in later_tokens):
            return space, white_space
    raise MethodNotSupported(
        "this tokenizer does not mark where words begin, so that there is nothing to correct",
        location="--correction",
        hint="leave it out",
    )


@dataclass(frozen=True, slots=True)
class WordBorders:
    """Tokens of a text at which words begin and end."""

    first_tokens: list[int]
    """Index of the first token of each word, in order."""
    last_tokens: list[int]
    """Index of the last token of each word."""

    @classmethod
    def from_offsets(cls, text: str, offsets: Offsets) -> WordBorders:
        """Find the words of a text, each with the white space before it.

        A token belongs to a word if it overlaps with it, so that a token across a border belongs to
        two words. A word without a token is left out.
        """
        if not offsets:
            return cls([], [])
        starts, ends = monotone_offsets(offsets)
        words = [match.span() for match in CHUNK.finditer(text)]
        first_tokens, last_tokens, start = [], [], 0
        for number, (_, word_end) in enumerate(words):
            end = len(text) if number == len(words) - 1 else word_end
            # A token without characters before the first word (a lone mark) belongs to it.
            first = int(np.searchsorted(ends, start, side="right")) if number else 0
            last = int(np.searchsorted(starts, end, side="left")) - 1
            if first <= last:
                first_tokens.append(first)
                last_tokens.append(last)
            start = word_end
        return cls(first_tokens, last_tokens)


def monotone_offsets(offsets: Offsets) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and ends (t,) of tokens in ascending order, where a normalizer reordered
    characters: the largest end so far, and the smallest start from here on.
    """
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    return np.minimum.accumulate(starts[::-1])[::-1], np.maximum.accumulate(ends)


def boundary_reads(
    borders: WordBorders, correction: WordCorrection, first_is_marked: bool
) -> list[tuple[int, int, int, int]]:
    """Return the log-probabilities that a correction adds to the tokens of a text.

    first_is_marked: whether the first token begins with a space. Each is (token whose score it
    changes, position before which it is read (t = after the last of t tokens), target, sign).
    """
    reads = [(last, last + 1, BOUNDARY_TARGET, 1) for last in borders.last_tokens]
    for first in borders.first_tokens:
        if first > 0:
            reads.append((first, first, BOUNDARY_TARGET, -1))
        elif correction.divides_first_word:
            target = BOUNDARY_TARGET if first_is_marked else FIRST_WORD_TARGET
            reads.append((0, 0, target, -1))
    return reads


def starts_with_space(tokenizer: Any, token_ids: Sequence[int]) -> bool:
    """Return whether the first of some tokens begins with the mark of a space."""
    if not token_ids:
        return False
    token = str(tokenizer.convert_ids_to_tokens(int(token_ids[0])))
    return token.startswith(tuple(WORD_START_MARKS))
