"""`surprisal`: compute the surprisal of words, regions or sentences, e.g. for a mixed model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench.arguments import describe_argument
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
from antlm_bench.scoring.text import move_borders_out_of_tokens, word_start_ids
from antlm_bench.suites.stimuli import (
    UNITS,
    ScoringUnit,
    read_stimuli,
    split_into_units,
    stimuli_from_texts,
)
from antlm_bench.text_arguments import (
    check_columns,
    check_options,
    check_path,
    check_string,
    check_texts,
)
from antlm_bench.types import FLAGS, Bools, Item
from antlm_bench.words import WORD_RULES

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
    """Number of texts of the stimuli."""
    unscored: int
    """Number of rows without a surprisal because their first token has no context."""
    too_long: int
    """Number of rows without a surprisal because their text does not fit into the model."""
    shares_token: int
    """Number of words without a surprisal because they share a token with an earlier word, whose
    surprisal is that of these words together."""
    flags: Mapping[str, int]
    """Name of types.FLAGS -> number of different texts with that flag."""
    notes: tuple[str, ...] = ()
    """Sentences that qualify the values: see checkpoints.loading_notes and Checkpoint.notes."""

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
    words: str | None = None,
    columns: Mapping[str, str] | None = None,
    bow_correction: bool = False,
    options: OpenOptions | None = None,
    **settings: Unpack[CheckpointKeywords],
) -> SurprisalTable:
    """Compute the surprisal of each word, region or sentence of some stimuli, in bits.

    model: path or hub id of a checkpoint, or a Scorer. stimuli: a file (suites.stimuli), or a list
    of texts. out: a .csv, .tsv or .parquet file to write. method: scoring method; None = the
    checkpoint's first. by: word, region or sentence. words: what a word is, a key of
    words.WORD_RULES; None = text between white space. columns: for a file, our column -> its
    column. bow_correction: see scoring.surprisal; causal only. settings: options for opening a
    checkpoint, which replace those of `options`.

    surprisal_bits is the sum of -log2 P(token | context) over the unit's tokens; the context is
    what the method lets the model see. It is None if a token cannot be scored. Words that share a
    token have one surprisal, at the first of them; it is None at the others, with n_tokens 0.

        antlm_bench.surprisal("gpt2", ["The cats sleep."]).table.to_pandas()

    Raises UsageError, MethodNotSupported, CheckpointError, DataError, RunError. After an error no
    file is written.
    """
    _check_arguments(model, stimuli, out, method, by, columns)
    if words is not None:
        check_string(words, "words", f"one of {', '.join(WORD_RULES)}")
    check_options(options, OpenOptions, settings)
    options = replace(options or OpenOptions(), **settings)
    path = None if out is None else Path(out)
    if path:
        check_table_suffix(path)
    if method:
        single_part(get_method(method))
    if isinstance(stimuli, str | Path):
        source, texts = str(stimuli), read_stimuli(Path(stimuli), columns)
    elif columns:
        raise UsageError("a list of texts has no columns", location="columns", hint="leave it out")
    else:
        source, texts = "the texts", stimuli_from_texts(check_texts(stimuli, "stimuli"))
    units = split_into_units(texts, by, words)
    if isinstance(model, Scorer):
        if options != OpenOptions():
            raise UsageError(
                "options of an open Scorer cannot be changed",
                location="surprisal",
                hint="give them to the Scorer: Scorer(model, bos=...)",
            )
        checkpoint = model.checkpoint
    else:
        checkpoint = open_checkpoint(str(model), options)
    if words is not None:
        checkpoint = checkpoint.with_word_rule(words)
    with evaluation_mode(checkpoint.engine.model):
        result = _score_units(checkpoint, units, method, source, bow_correction)
    if path:
        write_table(path, result.rows)
    return replace(result, path=path, texts=len(texts))


def _check_arguments(
    model: object, stimuli: object, out: object, method: object, by: object, columns: object
) -> None:
    """Raise UsageError for arguments of other types. Lists of texts are checked when read."""
    if not isinstance(model, str | Path | Scorer):
        raise UsageError(
            f"{describe_argument(model)} is not a path, a hub id or a Scorer",
            location="model",
            hint="wrap a model in memory: Scorer(model, tokenizer)",
        )
    if isinstance(stimuli, str) and not stimuli.strip():
        raise UsageError(
            f"{stimuli!r} is not a file", location="stimuli", hint="give a file, or a list of texts"
        )
    if out is not None:
        check_path(out, "out")
    if method is not None:
        check_string(method, "method", "give the name of one method")
    check_string(by, "by", f"one of {', '.join(UNITS)}")
    if columns is not None:
        check_columns(columns)


def _score_units(
    checkpoint: Checkpoint,
    units: Sequence[ScoringUnit],
    method_name: str | None,
    source: str,
    bow_correction: bool,
) -> SurprisalTable:
    """Return the table of some units, without its path and number of texts."""
    name = method_name or default_method(checkpoint, checkpoint.methods)
    method = resolve_method(name, checkpoint)
    attention, _ = single_part(method)
    if any("word" in unit.row for unit in units):
        options = move_borders_out_of_tokens(
            checkpoint.encoders[attention], [unit.option for unit in units]
        )
        units = [replace(unit, option=o) for unit, o in zip(units, options, strict=True)]
    if bow_correction:
        _set_word_beginnings(checkpoint, name)
    checkpoint.run_self_test([unit.option.text for unit in units], [method])
    rows: list[SurprisalRow] = []
    unscored = too_long = shares_token = 0
    texts_by_flag: dict[str, set[str]] = {}
    with Progress(len(units), f"{checkpoint.name} {Path(source).name} {name}") as progress:
        for chunk in _iter_chunks(units, method):
            scores = span_logprobs(
                checkpoint, [unit.option for unit in chunk], method, bow_correction=bow_correction
            )
            rows += _build_rows(chunk, scores)
            num_too_long = int(scores.too_long.sum())
            too_long += num_too_long
            unscored += sum(math.isnan(logp) for logp in scores.logp) - num_too_long
            shares_token += _count_shared(chunk, scores.too_long)
            for index, unit in enumerate(chunk):
                for flag in scores.encodings.collect_flags([index]):
                    texts_by_flag.setdefault(flag, set()).add(unit.option.text)
            progress.advance(len(chunk))
    if unscored + too_long + shares_token == len(rows):
        hint = "raise --max-length" if too_long else "use longer texts, or --bos always"
        raise DataError("no unit can be scored", location=source, hint=hint)
    flags = {flag: len(texts_by_flag[flag]) for flag in FLAGS if flag in texts_by_flag}
    notes = (*loading_notes(checkpoint), *checkpoint.notes(name))
    return SurprisalTable(
        path=None,
        method=name,
        rows=tuple(rows),
        texts=0,
        unscored=unscored,
        too_long=too_long,
        shares_token=shares_token,
        flags=flags,
        notes=notes,
    )


def _set_word_beginnings(checkpoint: Checkpoint, method_name: str) -> None:
    """Tell the engine which tokens begin a word.

    Raises MethodNotSupported for masked methods, and for tokenizers whose tokens do not mark the
    beginnings of words.
    """
    if not get_method(method_name).is_left_to_right:
        raise MethodNotSupported(
            "the correction divides by the probability that a left-to-right model gives to a new "
            f"word; {method_name} sees the next word",
            location="--bow-correction",
            hint="use --method causal, or leave it out",
        )
    checkpoint.engine.set_word_start_ids(word_start_ids(checkpoint.encoders["causal"].tokenizer))


def _iter_chunks(units: Sequence[ScoringUnit], method: Method) -> Iterator[Sequence[ScoringUnit]]:
    """Yield the units in chunks, so that memory does not grow with the file."""
    start = 0
    items = [Item(str(index), (unit.option,), 0) for index, unit in enumerate(units)]
    for chunk in iter_chunks(items, [method]):
        yield units[start : start + len(chunk)]
        start += len(chunk)


def _build_rows(units: Sequence[ScoringUnit], span_scores: SpanScores) -> Iterator[SurprisalRow]:
    for unit, logp, tokens, too_long in zip(
        units, span_scores.logp, span_scores.token_counts, span_scores.too_long, strict=True
    ):
        is_unknown = math.isnan(logp) or _is_empty(unit)
        bits = None if is_unknown else -float(logp) / math.log(2) + 0.0
        yield {**unit.row, "n_tokens": None if too_long else int(tokens), "surprisal_bits": bits}


def _count_shared(units: Sequence[ScoringUnit], too_long: Bools) -> int:
    """Return the number of units whose tokens are counted to an earlier unit."""
    return sum(
        _is_empty(unit) and not is_long for unit, is_long in zip(units, too_long, strict=True)
    )


def _is_empty(unit: ScoringUnit) -> bool:
    span = unit.option.span
    return span is not None and span[0] == span[1]
