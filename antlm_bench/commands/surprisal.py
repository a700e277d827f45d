"""surprisal: stimuli in, one row per word (region, sentence) out, in bits, ready for a mixed model.
Prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.checkpoints import Checkpoint, OpenOptions, loading_notes, open_checkpoint
from antlm_bench.errors import DataError, MethodNotSupported
from antlm_bench.reporting.progress import Progress
from antlm_bench.runs.table_files import TableValue, check_table_suffix, write_table
from antlm_bench.scoring.methods import Method, default_method, get_method
from antlm_bench.scoring.methods import resolve_method as find_method
from antlm_bench.scoring.multiple_choice import iter_chunks
from antlm_bench.scoring.surprisal import SpanScores, single_part, span_logprobs
from antlm_bench.scoring.text import word_start_ids
from antlm_bench.suites import stimuli
from antlm_bench.suites.stimuli import ScoringUnit
from antlm_bench.types import FLAGS, Item

SurprisalRow = dict[str, TableValue]


@dataclass(frozen=True, slots=True)
class SurprisalTable:
    """What was written. rows: n stretches of `texts` texts. unscored: rows without a number because
    nothing stands before their first token, too_long: because their text does not fit into the
    model. flags: names out of types.FLAGS
    -> how many texts raise them by their tokens. notes: what a reader must know of the tokenizer."""

    path: Path
    method: str
    rows: tuple[SurprisalRow, ...]
    texts: int
    unscored: int
    too_long: int
    flags: Mapping[str, int]
    notes: tuple[str, ...] = ()
    """What the numbers must be read with: see checkpoints.loading_notes and Checkpoint.notes."""


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
    """Score the stimuli of a file (suites.stimuli) and write a table (runs.table_files): item,
    condition, region, word_index, word, the columns of the input, n_tokens, surprisal_bits.

    surprisal_bits is the sum over the tokens of -log2 P(token | what the method shows), null where
    one of them cannot be scored. method: default is the checkpoint's own. bow_correction: see
    scoring.score_stimuli, causal only. Raises UsageError, MethodNotSupported, CheckpointError,
    DataError, RunError; nothing is written then.
    """
    check_table_suffix(out)
    texts = stimuli.read_stimuli(stimuli_path, columns)
    asked = stimuli.split_into_units(texts, by)
    if method:
        single_part(get_method(method))
    checkpoint = open_checkpoint(model, options)
    name = method or default_method(checkpoint, checkpoint.methods)
    chosen = find_method(name, checkpoint)
    single_part(chosen)
    if bow_correction:
        _set_word_beginnings(checkpoint, name)
    checkpoint.run_self_test([one.option.text for one in asked], [chosen])
    rows: list[SurprisalRow] = []
    unscored = too_long = 0
    flagged: dict[str, set[str]] = {}
    with Progress(len(asked), f"{checkpoint.name} {stimuli_path.name} {name}") as progress:
        for chunk in _iter_chunks(asked, chosen):
            read = span_logprobs(
                checkpoint, [one.option for one in chunk], chosen, bow_correction=bow_correction
            )
            rows += _build_rows(chunk, read)
            too_long += int(read.too_long.sum())
            unscored += sum(math.isnan(number) for number in read.logp) - int(read.too_long.sum())
            for n, one in enumerate(chunk):
                for flag in read.encodings.collect_flags([n]):
                    flagged.setdefault(flag, set()).add(one.option.text)
            progress.advance(len(chunk))
    if unscored + too_long == len(rows):
        hint = (
            "raise --max-length" if too_long else "give texts of more than one token, or see --bos"
        )
        raise DataError("nothing can be scored", location=str(stimuli_path), hint=hint)
    write_table(out, rows)
    flags = {flag: len(flagged[flag]) for flag in FLAGS if flag in flagged}
    notes = (*loading_notes(checkpoint), *checkpoint.notes(name))
    return SurprisalTable(out, name, tuple(rows), len(texts), unscored, too_long, flags, notes)


def _set_word_beginnings(checkpoint: Checkpoint, method_name: str) -> None:
    """Tell the engine which tokens begin a word. MethodNotSupported for masked methods, and for
    tokenizers that do not say so.
    """
    if not get_method(method_name).is_left_to_right:
        raise MethodNotSupported(
            f"the correction divides by what a left-to-right model expects next; {method_name} sees the next word",
            location="--bow-correction",
            hint="use --method causal, or leave it out",
        )
    checkpoint.engine.set_word_start_ids(word_start_ids(checkpoint.encoders["causal"].tokenizer))


def _iter_chunks(units: Sequence[ScoringUnit], method: Method) -> Iterator[Sequence[ScoringUnit]]:
    """As suites are cut, so that memory does not grow with the file."""
    top = 0
    for part in iter_chunks(
        [Item(str(n), (one.option,), 0) for n, one in enumerate(units)], [method]
    ):
        yield units[top : top + len(part)]
        top += len(part)


def _build_rows(units: Sequence[ScoringUnit], span_scores: SpanScores) -> Iterator[SurprisalRow]:
    for one, logp, tokens, long in zip(
        units, span_scores.logp, span_scores.token_counts, span_scores.too_long, strict=True
    ):
        bits = None if math.isnan(logp) else -float(logp) / math.log(2) + 0.0
        yield {**one.row, "n_tokens": None if long else int(tokens), "surprisal_bits": bits}
