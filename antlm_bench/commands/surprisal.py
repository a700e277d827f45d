"""`surprisal`: stimuli -> one row per word, region or sentence, in bits, for a mixed model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench.checkpoints import (
    Checkpoint,
    OpenOptions,
    evaluation_mode,
    loading_notes,
    open_checkpoint,
)
from antlm_bench.errors import DataError, MethodNotSupported, UsageError
from antlm_bench.notebook import ArrowTable
from antlm_bench.progress import Progress
from antlm_bench.runs.table_files import (
    TableValue,
    check_table_suffix,
    rows_to_table,
    write_table,
)
from antlm_bench.scorer import Scorer
from antlm_bench.scoring.methods import Method, default_method, get_method, resolve_method
from antlm_bench.scoring.multiple_choice import iter_chunks
from antlm_bench.scoring.surprisal import SpanScores, single_part, span_logprobs
from antlm_bench.scoring.text import word_start_ids
from antlm_bench.suites.stimuli import (
    ScoringUnit,
    read_stimuli,
    split_into_units,
    stimuli_from_texts,
)
from antlm_bench.types import FLAGS, Item

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import CheckpointKeywords

SurprisalRow = dict[str, TableValue]


@dataclass(frozen=True, slots=True)
class SurprisalTable:
    """The surprisal of words, regions or sentences."""

    path: Path | None
    """The file that was written, if any."""
    method: str
    rows: tuple[SurprisalRow, ...]
    """One row per unit: item, condition, region, word_index, word, the columns of the input,
    n_tokens, surprisal_bits."""
    texts: int
    """Number of texts that the units are parts of."""
    unscored: int
    """Rows without a number because nothing stands before their first token."""
    too_long: int
    """Rows without a number because their text does not fit into the model."""
    flags: Mapping[str, int]
    """Name out of types.FLAGS -> number of different texts with it."""
    notes: tuple[str, ...] = ()
    """What the numbers must be read with: see checkpoints.loading_notes and Checkpoint.notes."""

    @property
    def table(self) -> ArrowTable:
        """The rows as columns, for pandas, polars or Arrow."""
        return ArrowTable(rows_to_table(self.rows))

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def surprisal(
    model: str | Path | Scorer,
    stimuli: str | Path | Sequence[str],
    out: str | Path | None = None,
    *,
    method: str | None = None,
    by: str = "word",
    columns: Mapping[str, str] | None = None,
    bow_correction: bool = False,
    options: OpenOptions | None = None,
    **settings: Unpack[CheckpointKeywords],
) -> SurprisalTable:
    """Compute the surprisal of each word, region or sentence of some stimuli, in bits.

    model: path or hub id of a checkpoint, or a Scorer. stimuli: a file (suites.stimuli), or a list
    of texts. out: a .csv, .tsv or .parquet file to write. method: default the checkpoint's first.
    by: word, region or sentence. columns: for a file, our column -> its column. bow_correction: see
    scoring.surprisal; causal only. settings: how to open a checkpoint, on top of `options`.

    surprisal_bits is the sum over the unit's tokens of -log2 P(token | what the method shows), None
    where one of them cannot be scored.

        antlm_bench.surprisal("gpt2", ["The cats sleep."]).table.to_pandas()

    Raises UsageError, MethodNotSupported, CheckpointError, DataError, RunError. No file is written
    then.
    """
    options = replace(options or OpenOptions(), **settings)
    path = None if out is None else Path(out)
    if path:
        check_table_suffix(path)
    in_memory = not isinstance(stimuli, str | Path)
    if in_memory and columns:
        raise UsageError("a list of texts has no columns", location="columns", hint="leave it out")
    source = "the texts" if in_memory else str(stimuli)
    if method:
        single_part(get_method(method))
    texts = (
        read_stimuli(Path(stimuli), columns)
        if isinstance(stimuli, str | Path)
        else stimuli_from_texts(stimuli)
    )
    units = split_into_units(texts, by)
    if method:
        single_part(get_method(method))
    if isinstance(model, Scorer):
        if options != OpenOptions():
            raise UsageError(
                "a Scorer is open already", location="surprisal", hint="Scorer(model, bos=...)"
            )
        checkpoint = model.checkpoint
    else:
        checkpoint = open_checkpoint(str(model), options)
    with evaluation_mode(checkpoint.engine.model):
        made = _score_units(checkpoint, units, method, source, bow_correction)
    made = replace(made, path=path, texts=len(texts))
    if path:
        write_table(path, made.rows)
    return made


def _score_units(
    checkpoint: Checkpoint,
    units: Sequence[ScoringUnit],
    method: str | None,
    source: str,
    bow_correction: bool,
) -> SurprisalTable:
    name = method or default_method(checkpoint, checkpoint.methods)
    chosen = resolve_method(name, checkpoint)
    single_part(chosen)
    if bow_correction:
        _set_word_beginnings(checkpoint, name)
    checkpoint.run_self_test([unit.option.text for unit in units], [chosen])
    rows: list[SurprisalRow] = []
    unscored = too_long = 0
    texts_by_flag: dict[str, set[str]] = {}
    with Progress(len(units), f"{checkpoint.name} {Path(source).name} {name}") as progress:
        for chunk in _iter_chunks(units, chosen):
            scores = span_logprobs(
                checkpoint, [unit.option for unit in chunk], chosen, bow_correction=bow_correction
            )
            rows += _build_rows(chunk, scores)
            num_too_long = int(scores.too_long.sum())
            too_long += num_too_long
            unscored += sum(math.isnan(number) for number in scores.logp) - num_too_long
            for index, unit in enumerate(chunk):
                for flag in scores.encodings.collect_flags([index]):
                    texts_by_flag.setdefault(flag, set()).add(unit.option.text)
            progress.advance(len(chunk))
    if unscored + too_long == len(rows):
        hint = (
            "raise --max-length" if too_long else "give texts of more than one token, or see --bos"
        )
        raise DataError("nothing can be scored", location=source, hint=hint)
    flags = {flag: len(texts_by_flag[flag]) for flag in FLAGS if flag in texts_by_flag}
    notes = (*loading_notes(checkpoint), *checkpoint.notes(name))
    return SurprisalTable(None, name, tuple(rows), 0, unscored, too_long, flags, notes)


def _set_word_beginnings(checkpoint: Checkpoint, method_name: str) -> None:
    """Tell the engine which tokens begin a word.

    Raises MethodNotSupported for masked methods, and for tokenizers whose tokens do not say so.
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
    """Yield the units in blocks, as those of suites, so that memory does not grow with the file."""
    start = 0
    items = [Item(str(index), (unit.option,), 0) for index, unit in enumerate(units)]
    for part in iter_chunks(items, [method]):
        yield units[start : start + len(part)]
        start += len(part)


def _build_rows(units: Sequence[ScoringUnit], span_scores: SpanScores) -> Iterator[SurprisalRow]:
    for unit, logp, tokens, too_long in zip(
        units, span_scores.logp, span_scores.token_counts, span_scores.too_long, strict=True
    ):
        bits = None if math.isnan(logp) else -float(logp) / math.log(2) + 0.0
        yield {**unit.row, "n_tokens": None if too_long else int(tokens), "surprisal_bits": bits}
