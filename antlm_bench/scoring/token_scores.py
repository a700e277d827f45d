"""Score every token of texts once, also of texts that are longer than the model.

A text that fits into the model is one row. A longer one is read in overlapping windows, each with
the special tokens of a whole text. Every token is scored in one window, in which it has a context
of at least half of the model's length: causal methods score the second half of each window, masked
methods its middle half, so that a quarter remains on either side. The first window scores its
beginning, too, and the last one its end.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from antlm_bench.errors import PluginError
from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.source_text import EncodedSources, PairEncoder
from antlm_bench.scoring.text import TextEncoder, check_ids
from antlm_bench.scoring.tokens import Offsets, Tokenized
from antlm_bench.scoring.word_corrections import (
    WordBorders,
    WordCorrection,
    boundary_reads,
    monotone_offsets,
    starts_with_space,
)
from antlm_bench.types import (
    Attention,
    Bools,
    EncodedBatch,
    Floats,
    Probes,
    ProgressCallback,
)

MAX_CHUNK_TOKENS = 2**21
"""Tokens of the rows that are planned at a time. A masked row counts once per scored token."""
NUM_FACTS = 3
"""Values of a read before its most probable tokens: log-probability, rank, entropy."""


class TokenModel(Protocol):
    """The part of a checkpoint that scores tokens (checkpoints.Checkpoint)."""

    @property
    def encoders(self) -> Mapping[Attention, TextEncoder]: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def max_length(self) -> int | None: ...
    def score_probes(
        self, probes: Iterable[Probes], num_texts: int, tick: ProgressCallback | None = None
    ) -> Floats: ...
    def read_distributions(
        self, probes: Iterable[Probes], num_reads: int, top_k: int, tick: ProgressCallback | None
    ) -> Floats: ...


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """How tokens are scored."""

    method: Method
    correction: WordCorrection | None = None
    """Correction of word probabilities; causal only. The model must know its token sets
    (Engine.set_token_sets)."""
    reads_distributions: bool = False
    """Whether rank, entropy and the most probable tokens are read, too."""
    top_k: int = 0
    """Number of most probable tokens."""
    splits_long_texts: bool = True
    """Whether a text that does not fit is read in windows; False = it is not scored."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The t tokens of a text and their scores."""

    ids: list[int]
    starts: NDArray[np.int64]
    """(t,) first character of each token; empty if the tokenizer has no offsets for the text."""
    ends: NDArray[np.int64]
    """(t,) character after each token; empty as `starts`."""
    logprobs: Floats
    """(t,) log-probability in nats, with its share of the correction; NaN = not scored."""
    facts: Floats
    """(t, 2 + 2 * top_k) rank, entropy in nats, ids and log-probabilities of the most probable
    tokens; (t, 0) if distributions are not read."""
    num_windows: int
    """Number of windows that the text was read in; 0 = it does not fit and was not scored."""
    _starts_so_far: NDArray[np.int64]
    _ends_so_far: NDArray[np.int64]

    @classmethod
    def build(
        cls, ids: list[int], offsets: Offsets, values: Floats, num_windows: int
    ) -> TokenScores:
        """Build the scores of a text. values (t, 1 + facts): log-probability and facts of each
        token.
        """
        starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        facts = values[:, 1:]
        ascending = monotone_offsets(offsets)
        return cls(ids, starts, ends, values[:, 0], facts, num_windows, *ascending)

    def shift(self, num_characters: int) -> TokenScores:
        """Return the scores for a text that has more characters before these tokens."""
        return replace(
            self,
            starts=self.starts + num_characters,
            ends=self.ends + num_characters,
            _starts_so_far=self._starts_so_far + num_characters,
            _ends_so_far=self._ends_so_far + num_characters,
        )

    def select_tokens(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the indices of the tokens of the span text[start:end]: those that end after its
        start and begin before its end.
        """
        first = np.searchsorted(self._ends_so_far, start, side="right")
        candidates = np.arange(first, np.searchsorted(self._starts_so_far, end, side="left"))
        return candidates[(self.ends[candidates] > start) & (self.starts[candidates] < end)]

    def move_border_out_of_tokens(self, border: int) -> int:
        """Return the first index from `border` on that lies inside no token.

        Words with such borders share no token: each token counts to the word in which it begins,
        and a word in which none begins becomes empty.
        """
        while len(tokens := self.select_tokens(border, border)):
            border = int(self.ends[tokens].max())
        return border


class TokenWindow(NamedTuple):
    """A part of the tokens of a text that is read in one row."""

    text: int
    """Index of the text."""
    start: int
    end: int
    """The row holds the tokens start..end-1."""
    first_scored: int
    end_scored: int
    """The tokens first_scored..end_scored-1 are scored in this window."""


class WindowSizes(NamedTuple):
    """Lengths of windows, in tokens without specials."""

    capacity: int | None
    """Longest window; None = unlimited."""
    left: int
    """Tokens before the first scored one of a window that does not begin the text."""
    right: int
    """Tokens after the last scored one of a window that does not end the text."""

    @classmethod
    def for_model(cls, model: TokenModel, attention: Attention) -> WindowSizes:
        """Return the sizes for a model: half of its length before a token under causal attention,
        a quarter on either side under full attention; less if special tokens leave no room.
        """
        if model.max_length is None:
            return cls(None, 0, 0)
        specials = model.encoders[attention].specials
        capacity = model.max_length - len(specials.before) - len(specials.after)
        if capacity < 1:
            return cls(0, 0, 0)
        half, quarter = -(-model.max_length // 2), -(-model.max_length // 4)
        reads_left_context = attention in ("causal", "cross")
        right = 0 if reads_left_context else min(quarter, (capacity - 1) // 2)
        left = half if reads_left_context else quarter
        return cls(capacity, min(left, capacity - 1 - right), right)

    def split(
        self, num_tokens: int, splits_long_texts: bool = True
    ) -> list[tuple[int, int, int, int]]:
        """Return (start, end, first_scored, end_scored) of the windows of a text; none if it does
        not fit and is not to be split.
        """
        if self.capacity is None or num_tokens <= self.capacity:
            return [(0, num_tokens, 0, num_tokens)]
        if not splits_long_texts or not self.capacity:
            return []
        windows, start, first_scored = [], 0, 0
        while start + self.capacity < num_tokens:
            end = start + self.capacity
            windows.append((start, end, first_scored, end - self.right))
            first_scored = end - self.right
            start = first_scored - self.left
        # The last window is as long as the others, so that its tokens have more context.
        windows.append((num_tokens - self.capacity, num_tokens, first_scored, num_tokens))
        return windows


def score_tokens(
    model: TokenModel,
    texts: Sequence[str],
    starts: Sequence[int] | None,
    settings: TokenSettings,
    tick: ProgressCallback | None = None,
) -> tuple[list[TokenScores], Mapping[str, Bools]]:
    """Score the tokens of n texts.

    starts (n,): where the scored part of each text starts; tokens that end before it or there are
    not scored. None = score all tokens, also of texts without character offsets.

    Returns the scores of each text, and the flags of the texts: name of types.FLAGS -> (n,). Raises
    CheckpointError if the model returns NaN, and with `starts` for a text without character
    offsets.
    """
    parts = settings.method.parts
    encoder = model.encoders[parts[0][0]]
    if isinstance(encoder, PairEncoder) and starts is not None and any(starts):
        return _score_after_sources(model, encoder, texts, starts, settings, tick)
    return _score_texts(model, texts, starts, settings, tick)


def _score_after_sources(
    model: TokenModel,
    encoder: PairEncoder,
    texts: Sequence[str],
    starts: Sequence[int],
    settings: TokenSettings,
    tick: ProgressCallback | None,
) -> tuple[list[TokenScores], Mapping[str, Bools]]:
    """Score the texts from `starts` on; the text before `starts` is the source of an
    encoder-decoder. White space between them is left out, as in `multiple_choice.encode_options`.
    """
    sources = encoder.encode_sources(
        [text[:start].rstrip() for text, start in zip(texts, starts, strict=True)]
    )
    targets = [
        text[start:].lstrip() if start else text for text, start in zip(texts, starts, strict=True)
    ]
    scores, flags = _score_texts(model, targets, None, settings, tick, sources)
    shifted = [
        each.shift(len(text) - len(target))
        for each, text, target in zip(scores, texts, targets, strict=True)
    ]
    return shifted, {name: mask | sources.flags.get(name, False) for name, mask in flags.items()}


def _score_texts(
    model: TokenModel,
    texts: Sequence[str],
    starts: Sequence[int] | None,
    settings: TokenSettings,
    tick: ProgressCallback | None,
    sources: EncodedSources | None = None,
) -> tuple[list[TokenScores], Mapping[str, Bools]]:
    parts = settings.method.parts
    encoder = model.encoders[parts[0][0]]
    max_offset_length = None if settings.splits_long_texts else model.max_length
    tokens = encoder.tokenize(texts, max_offset_length)
    part_values: list[Floats] = []
    window_counts = np.full(len(texts), np.iinfo(np.int64).max)
    for attention, make_probes in parts:
        reader = _TokenReader(
            model, texts, starts or [0] * len(texts), tokens, attention, settings, sources
        )
        part_values.append(reader.read(make_probes, tick))
        window_counts = np.minimum(window_counts, reader.count_windows())
    if sources is not None:
        window_counts[sources.too_long] = 0
    values = part_values[0]
    for further_values in part_values[1:]:
        values[:, 0] += further_values[:, 0]
    bounds = np.cumsum([0, *map(len, tokens.ids)])
    scores = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        offsets = tokens.offsets[index]
        if offsets is None:
            if window_counts[index] and starts is not None:
                raise encoder.unknown_offsets_error(texts[index])
            offsets = []
        num_windows = int(window_counts[index])
        scores.append(TokenScores.build(tokens.ids[index], offsets, values[start:end], num_windows))
    flags = dict(tokens.flags)
    if not settings.method.needs_words:
        flags.pop("spans-words", None)
    return scores, flags


class _TokenReader:
    """Reads the tokens of n texts under one attention."""

    def __init__(
        self,
        model: TokenModel,
        texts: Sequence[str],
        starts: Sequence[int],
        tokens: Tokenized,
        attention: Attention,
        settings: TokenSettings,
        sources: EncodedSources | None = None,
    ) -> None:
        """Plan the windows. sources: of an encoder-decoder, one per text; None = empty ones."""
        self.sources = sources
        self.model, self.texts, self.starts, self.tokens = model, texts, starts, tokens
        self.attention, self.settings = attention, settings
        self.encoder = model.encoders[attention]
        self.first_token = np.cumsum([0, *map(len, tokens.ids)])
        """(n + 1,) number of each text's first token among the tokens of all texts."""
        sizes = WindowSizes.for_model(model, attention)
        self.windows = [
            TokenWindow(text, *window)
            for text, ids in enumerate(tokens.ids)
            for window in sizes.split(len(ids), settings.splits_long_texts)
        ]
        self._window_texts = [window.text for window in self.windows]
        self._all_ids = np.fromiter(chain.from_iterable(tokens.ids), np.int64)

    def count_windows(self) -> NDArray[np.int64]:
        """Return the number of windows (n,) of each text."""
        counts: NDArray[np.int64] = np.zeros(len(self.texts), np.int64)
        np.add.at(counts, self._window_texts, 1)
        return counts

    def read(
        self, make_probes: Callable[..., Probes], tick: ProgressCallback | None = None
    ) -> Floats:
        """Return the values (tokens of all texts, 1 + facts) of each token: its log-probability,
        then the facts about its distribution, if they are read. NaN = not scored.
        """
        total = int(self.first_token[-1])
        width = NUM_FACTS + 2 * self.settings.top_k if self.settings.reads_distributions else 1
        values = np.full((total, width), np.nan)
        chunks = list(self._iter_chunks())
        num_windows = sum(map(len, chunks))
        for windows in chunks:
            chunk_tick = tick and partial(_tick_share, tick, len(windows) / num_windows)
            self._read_chunk(windows, make_probes, values, chunk_tick)
        return values

    def _iter_chunks(self) -> Iterator[list[TokenWindow]]:
        """Yield the windows with scored tokens, as many as MAX_CHUNK_TOKENS allows, but at least
        one.
        """
        chunk: list[TokenWindow] = []
        num_tokens = 0
        for window in self.windows:
            scored = self._scored_tokens(window)
            if not len(scored):
                continue
            rows = len(scored) if self.settings.method.needs_mask else 1
            cost = rows * (window.end - window.start)
            if chunk and num_tokens + cost > MAX_CHUNK_TOKENS:
                yield chunk
                chunk, num_tokens = [], 0
            chunk.append(window)
            num_tokens += cost
        if chunk:
            yield chunk

    def _scored_tokens(self, window: TokenWindow) -> NDArray[np.int64]:
        """Return the indices, within the text, of the tokens that are scored in a window."""
        indices = np.arange(window.first_scored, window.end_scored)
        start, offsets = self.starts[window.text], self.tokens.offsets[window.text]
        if start == 0:
            return indices
        if offsets is None:
            raise self.encoder.unknown_offsets_error(self.texts[window.text])
        return np.array([index for index in indices if offsets[index][1] > start], np.int64)

    def _read_chunk(
        self,
        windows: Sequence[TokenWindow],
        make_probes: Callable[..., Probes],
        values: Floats,
        tick: ProgressCallback | None,
    ) -> None:
        """Read the tokens of some windows, and write their values."""
        scored = [self._scored_tokens(window) for window in windows]
        counts = np.array(list(map(len, scored)), np.int64)
        numbers = np.concatenate(
            [self.first_token[w.text] + s for w, s in zip(windows, scored, strict=True)]
        )
        probes = [
            number_by_token(batch_probes, counts)
            for batch in self._build_batches(windows, scored)
            if len((batch_probes := make_probes(batch, self.model.mask_id)).row)
        ]
        self._check_order(probes, numbers)
        changes: list[tuple[int, int]] = []  # (index in `numbers`, sign) of each boundary read
        if self.settings.correction is not None:
            changes, boundary_probes = self._boundary_probes(windows, scored)
            probes += boundary_probes
        if not probes:
            return
        num_reads = len(numbers) + len(changes)
        if self.settings.reads_distributions:
            reads = self.model.read_distributions(probes, num_reads, self.settings.top_k, tick)
        else:
            reads = self.model.score_probes(probes, num_reads, tick)[:, None]
        is_read = np.zeros(num_reads, np.bool_)
        for batch_probes in probes:
            is_read[batch_probes.text_index] = True
        token_reads = reads[: len(numbers)]
        for (index, sign), read in zip(changes, reads[len(numbers) :, 0], strict=True):
            token_reads[index, 0] += sign * read
        token_reads[~is_read[: len(numbers)]] = np.nan
        values[numbers] = token_reads

    def _check_order(self, probes: Sequence[Probes], numbers: NDArray[np.int64]) -> None:
        """Raise PluginError if the targets of the reads are not the tokens with their numbers."""
        if any((p.target != self._all_ids[numbers[p.text_index]]).any() for p in probes):
            raise PluginError(
                f"{self.settings.method.name} does not read tokens from left to right",
                location="--method",
                hint="repair or update the package of the method",
            )

    def _build_batches(
        self, windows: Sequence[TokenWindow], scored: Sequence[NDArray[np.int64]]
    ) -> Iterator[EncodedBatch]:
        """Yield one batch per length of the windows. text_index is the index of the window."""
        indices_by_length: dict[int, list[int]] = {}
        for index, window in enumerate(windows):
            indices_by_length.setdefault(window.end - window.start, []).append(index)
        before, after = self.encoder.specials.before, self.encoder.specials.after
        for length, indices in sorted(indices_by_length.items()):
            columns = slice(len(before), len(before) + length)
            shape = (len(indices), len(before) + length + len(after))
            ids, first_word, last_word = (np.full(shape, -1, np.int32) for _ in range(3))
            score_mask = np.zeros(shape, np.bool_)
            ids[:, : columns.start], ids[:, columns.stop :] = before, after
            for row, index in enumerate(indices):
                window = windows[index]
                part = slice(window.start, window.end)
                ids[row, columns] = self.tokens.ids[window.text][part]
                first_word[row, columns] = self.tokens.words[window.text][part]
                last_word[row, columns] = self.tokens.last_words[window.text][part]
                score_mask[row, len(before) + scored[index] - window.start] = True
            check_ids(self.encoder.tokenizer, int(ids.max()), self.encoder.vocab_size)
            batch = EncodedBatch(
                ids, score_mask, first_word, np.array(indices, np.int32), last_word
            )
            if self.sources is None:
                yield self.encoder.complete_batch(batch)
            else:
                source_index = [windows[index].text for index in indices]
                yield from self.sources.attach_to(batch, source_index)

    def _boundary_probes(
        self, windows: Sequence[TokenWindow], scored: Sequence[NDArray[np.int64]]
    ) -> tuple[list[tuple[int, int]], list[Probes]]:
        """Return what the correction adds to the scored tokens of some windows, and its probes.

        Each change is (index among the scored tokens, sign of the log-probability). The probes'
        text_index of change number i is the number of scored tokens + i.
        """
        token_index: dict[tuple[int, int], int] = {}  # (text, token) -> index
        for window, tokens in zip(windows, scored, strict=True):
            for token in tokens.tolist():
                token_index[window.text, token] = len(token_index)
        changes: list[tuple[int, int]] = []
        reads_by_window: dict[TokenWindow, list[tuple[int, int, int]]] = {}
        for text in dict.fromkeys(window.text for window in windows):
            text_windows = self._windows_of(text)
            first_scored = [window.first_scored for window in text_windows]
            for token, position, target, sign in self._boundary_reads(text):
                window = text_windows[bisect_right(first_scored, position) - 1]
                column = len(self.encoder.specials.before) + position - window.start - 1
                if (text, token) in token_index and column >= 0:
                    read = (column, target, len(token_index) + len(changes))
                    reads_by_window.setdefault(window, []).append(read)
                    changes.append((token_index[text, token], sign))
        unscored = [np.zeros(0, np.int64)] * len(reads_by_window)
        read_lists = list(reads_by_window.values())
        probes = []
        for batch in self._build_batches(list(reads_by_window), unscored):
            reads = [(row, *r) for row, w in enumerate(batch.text_index) for r in read_lists[w]]
            columns = (np.array(column, np.int32) for column in zip(*reads, strict=True))
            probes.append(Probes(batch.ids, "causal", *columns))
        return changes, probes

    def _windows_of(self, text: int) -> list[TokenWindow]:
        bounds = [bisect_left(self._window_texts, number) for number in (text, text + 1)]
        return self.windows[slice(*bounds)]

    def _boundary_reads(self, text: int) -> list[tuple[int, int, int, int]]:
        ids, offsets = self.tokens.ids[text], self.tokens.offsets[text]
        assert self.settings.correction is not None
        if offsets is None:
            raise self.encoder.unknown_offsets_error(self.texts[text])
        is_marked = starts_with_space(self.encoder.tokenizer, ids)
        borders = WordBorders.from_offsets(self.texts[text], offsets)
        return boundary_reads(borders, self.settings.correction, is_marked)


def _tick_share(tick: ProgressCallback, total: float, share: float) -> None:
    tick(total * share)


def number_by_token(probes: Probes, counts: NDArray[np.int64]) -> Probes:
    """Return probes with the index of a token as text_index, instead of the index of a text.

    counts (n,): number of scored tokens of each text. Tokens are numbered through all texts. Probes
    list the reads of a text from left to right; with fewer reads than tokens, the first tokens are
    not read.
    """
    texts = probes.text_index
    order = np.argsort(texts, kind="stable")
    num_reads = np.bincount(texts, minlength=len(counts))
    rank = np.empty(len(texts), np.int64)  # index of each read among the reads of its text
    rank[order] = np.arange(len(texts)) - np.repeat(np.cumsum(num_reads) - num_reads, num_reads)
    first_token = np.cumsum(counts) - counts
    numbers = first_token[texts] + (counts - num_reads)[texts] + rank
    return replace(probes, text_index=numbers.astype(np.int32))
