"""`surprisal`: stimuli in, a table of surprisal in bits out: a row per word, region or sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.checkpoints import Checkpoint, OpenOptions, loading_notes, open_checkpoint
from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.reporting.progress import Progress
from antlm_bench.runs.table_files import TableValue, check_table_suffix, write_table
from antlm_bench.scoring.methods import Method, default_method, get_method, resolve_method
from antlm_bench.scoring.multiple_choice import iter_chunks
from antlm_bench.scoring.surprisal import SpanScores, single_part, span_logprobs
from antlm_bench.scoring.text import word_start_ids
from antlm_bench.suites import stimuli
from antlm_bench.suites.stimuli import ScoringUnit
from antlm_bench.types import FLAGS, Item

SurprisalRow = dict[str, TableValue]


@dataclass(frozen=True, slots=True)
class SurprisalTable:
    """The table that was written."""

    path: Path
    method: str
    rows: tuple[SurprisalRow, ...]
    texts: int
    """How many texts the rows are from."""
    unscored: int
    """Rows without a number because nothing stands before their first token."""
    too_long: int
    """Rows without a number because their text does not fit the model."""
    flags: Mapping[str, int]
    """Name in types.FLAGS -> how many texts raise it."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader needs: checkpoints.loading_notes and Checkpoint.notes."""


def score_stimuli(
    model: str,
    stimuli_path: Path,
    out: Path,
    *,
    method: str | None = None,
    by: str = "word",
    columns: Mapping[str, str] | None = None,
    bow_correction: bool = False,
    options: OpenOptions | None = None,
) -> SurprisalTable:
    """Score the stimuli of a file (suites.stimuli) and write a table (runs.table_files).

    Its columns: item, condition, region, word_index, word, the columns of the input, n_tokens,
    surprisal_bits. surprisal_bits is the sum over tokens of -log2 P(token | what the method shows),
    null where a token cannot be scored. method: default is the checkpoint's own. by: a unit of
    stimuli.UNITS. bow_correction: see scoring.surprisal.span_logprobs, causal only. Raises
    UsageError, MethodNotSupported, CheckpointError, DataError, RunError, and writes nothing then.
    """
    check_table_suffix(out)
    texts = stimuli.read_stimuli(stimuli_path, columns)
    units = stimuli.split_into_units(texts, by)
    if method:
        single_part(get_method(method))
    checkpoint = open_checkpoint(model, options)
    name = method or default_method(checkpoint, checkpoint.methods)
    scoring_method = resolve_method(name, checkpoint)
    single_part(scoring_method)
    if bow_correction:
        _set_word_beginnings(checkpoint, name)
    checkpoint.run_self_test([unit.option.text for unit in units], [scoring_method])
    rows: list[SurprisalRow] = []
    unscored = too_long = 0
    texts_by_flag: dict[str, set[str]] = {}
    with Progress(len(units), f"{checkpoint.name} {stimuli_path.name} {name}") as progress:
        for chunk in _iter_chunks(units, scoring_method):
            chunk_options = [unit.option for unit in chunk]
            scores = span_logprobs(
                checkpoint, chunk_options, scoring_method, bow_correction=bow_correction
            )
            rows += _build_rows(chunk, scores)
            num_too_long = int(scores.too_long.sum())
            too_long += num_too_long
            unscored += sum(map(math.isnan, scores.logp)) - num_too_long
            for index, option in enumerate(chunk_options):
                for flag in scores.encodings.collect_flags([index]):
                    texts_by_flag.setdefault(flag, set()).add(option.text)
            progress.advance(len(chunk))
    if unscored + too_long == len(rows):
        longer = "give texts of more than one token, or see --bos"
        hint = "raise --max-length" if too_long else longer
        raise DataError("nothing can be scored", location=str(stimuli_path), hint=hint)
    write_table(out, rows)
    flags = {flag: len(texts_by_flag[flag]) for flag in FLAGS if flag in texts_by_flag}
    notes = (*loading_notes(checkpoint), *checkpoint.notes(name))
    return SurprisalTable(out, name, tuple(rows), len(texts), unscored, too_long, flags, notes)


def _set_word_beginnings(checkpoint: Checkpoint, method_name: str) -> None:
    """Tell the engine which tokens begin a word.

    Raises MethodNotSupported for masked methods, and for tokenizers whose tokens do not show it.
    """
    if not get_method(method_name).is_left_to_right:
        raise MethodNotSupported(
            "the correction divides by what a left-to-right model expects next; "
            f"{method_name} sees the next word",
            location="--bow-correction",
            hint="use --method causal, or leave it out",
        )
    checkpoint.engine.set_word_start_ids(word_start_ids(checkpoint.encoders["causal"].tokenizer))


def _iter_chunks(units: Sequence[ScoringUnit], method: Method) -> Iterator[Sequence[ScoringUnit]]:
    """Yield chunks of units, cut as those of suites, so that memory does not grow with the file."""
    items = [Item(str(index), (unit.option,), 0) for index, unit in enumerate(units)]
    start = 0
    for chunk in iter_chunks(items, [method]):
        yield units[start : start + len(chunk)]
        start += len(chunk)


def _build_rows(units: Sequence[ScoringUnit], span_scores: SpanScores) -> Iterator[SurprisalRow]:
    columns = (span_scores.logp, span_scores.token_counts, span_scores.too_long)
    for unit, logp, num_tokens, is_too_long in zip(units, *columns, strict=True):
        bits = None if math.isnan(logp) else -float(logp) / math.log(2) + 0.0
        count = None if is_too_long else int(num_tokens)
        yield {**unit.row, "n_tokens": count, "surprisal_bits": bits}
