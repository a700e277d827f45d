"""`surprisal`: compute the surprisal of tokens, words, regions or sentences, e.g. for R."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench.arguments import check_value, describe_argument
from antlm_bench.checkpoints import OpenOptions, expand_refs, loading_notes, open_checkpoint
from antlm_bench.checkpoints.resolve import locate_sources, split_revision
from antlm_bench.commands.surprisal_rows import (
    UNITS_BY_BASE,
    AddedColumns,
    SurprisalRow,
    TableLayout,
    count_words_without_token,
)
from antlm_bench.commands.work_estimates import build_token_counter, estimate_tokens
from antlm_bench.errors import BenchError, DataError, MethodNotSupported, UsageError
from antlm_bench.notebook import ArrowTable, TableResult
from antlm_bench.packages import require_packages
from antlm_bench.printable import format_count, make_printable
from antlm_bench.progress import Progress, ShareCounter, Workload
from antlm_bench.runs.table_files import (
    check_table_suffix,
    frame_rows,
    is_frame,
    rows_to_table,
    write_table,
)
from antlm_bench.scorer import Scorer
from antlm_bench.scoring.methods import default_method, get_method, resolve_method
from antlm_bench.scoring.surprisal import single_part
from antlm_bench.scoring.token_scores import (
    TokenSettings,
    WindowSizes,
    score_tokens,
)
from antlm_bench.scoring.word_corrections import (
    NO_CORRECTION,
    build_token_sets,
    resolve_correction,
)
from antlm_bench.suites.stimuli import (
    UNITS,
    ScoringUnit,
    Stimulus,
    split_into_units,
    stimuli_from_texts,
)
from antlm_bench.suites.stimuli_spec import StimuliLayout, load_stimuli, read_stimuli_rows
from antlm_bench.suites.templates import check_text
from antlm_bench.text_arguments import (
    check_columns,
    check_options,
    check_path,
    check_string,
    check_texts,
)
from antlm_bench.types import FLAGS, TOO_LONG_HINT, Attention
from antlm_bench.words import WORD_RULES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.checkpoints import Checkpoint
    from antlm_bench.keywords import SurprisalKeywords

MAX_BLOCK_CHARACTERS = 2**19
"""Largest number of characters of the texts that are tokenized at a time."""
LONG_TEXTS = ("window", "leave")
LAYOUT_KEYWORDS = ("conditions", "position", "spillover")
"""Keywords that give a StimuliLayout."""
BOW_CORRECTION = "word-boundary"
"""The correction that --bow-correction applies."""


@dataclass(frozen=True, slots=True)
class SurprisalTable(TableResult):
    """The surprisal of tokens, words, regions or sentences under one or several models."""

    path: Path | None
    """The file that was written, if any."""
    method: str
    """Scoring method; of several models with different ones, all of them."""
    rows: tuple[SurprisalRow, ...]
    """One row per unit and model: model (if there are several), item, condition, region,
    word_index, word, the columns of the input, n_tokens, surprisal_bits, added columns."""
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
    """Name of types.FLAGS -> number of different texts with that flag, under any model."""
    notes: tuple[str, ...] = ()
    """Sentences that qualify the values: see checkpoints.loading_notes and Checkpoint.notes."""
    models: tuple[str, ...] = ()
    """Names of the models."""
    windowed: int = 0
    """Number of texts that do not fit into a model and were read in windows."""

    @property
    def table(self) -> ArrowTable:
        """The rows as columns, for pandas, polars or Arrow."""
        return ArrowTable(rows_to_table(self.rows))

    def __repr__(self) -> str:
        rows, texts = format_count(len(self.rows), "row"), format_count(self.texts, "text")
        models = ", ".join(self.models)
        return make_printable(f"<SurprisalTable: {rows} of {texts}, {models}, {self.method}>")


@dataclass(frozen=True, slots=True)
class _Request:
    """Checked arguments and loaded stimuli, the same for all models."""

    source: str
    """Name of the stimuli in messages."""
    units: Sequence[ScoringUnit]
    num_texts: int
    layout: TableLayout
    method: str | None
    words: str | None
    """A key of words.WORD_RULES; None = text between white space."""
    correction: str
    """NO_CORRECTION, or a key of CORRECTIONS."""
    splits_long_texts: bool


@dataclass(slots=True)
class _ModelResult:
    """Rows and counts of one model."""

    name: str
    ref: str
    """The path or hub id that the user gave; of a Scorer, its name."""
    method: str
    rows: list[SurprisalRow] = field(default_factory=list)
    unscored: int = 0
    too_long: int = 0
    shares_token: int = 0
    windowed: int = 0
    texts_by_flag: dict[str, set[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


ModelLike = str | Path | Scorer


@require_packages()
def surprisal(
    model: ModelLike | Sequence[ModelLike],
    stimuli: Any,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    by: str = "word",
    words: str | None = None,
    columns: Mapping[str, str] | None = None,
    text_layout: StimuliLayout | None = None,
    correction: str | None = None,
    bow_correction: bool = False,
    add: str | Sequence[str] = (),
    base: str | int = "2",
    context: str | None = None,
    join: str = " ",
    long_texts: str = "window",
    options: OpenOptions | None = None,
    **settings: Unpack[SurprisalKeywords],
) -> SurprisalTable:
    """Compute the surprisal of each token, word, region or sentence of some stimuli.

    model: path or hub id of a checkpoint, or a Scorer; or several.
    stimuli: a file (suites.stimuli), the name of declared stimuli (suites.stimuli_spec), a data
    frame with the columns of such a file, or a list of texts.
    out: a .csv, .tsv or .parquet file to write. by: token, word, region or sentence.
    method: scoring method; None = each checkpoint's first.
    words: a key of words.WORD_RULES, which says what a word is; None = text between white space,
    which refuses texts of scripts without spaces.
    columns: for a file or frame, our column -> its column.
    text_layout: for a file or frame with a critical word, or with a text per condition in a row;
    conditions, position and spillover say the same.
    correction: a name of scoring.word_corrections.CORRECTIONS (causal only); None or "none" = no
    correction. bow_correction: short for correction="word-boundary".
    add: columns rank, entropy and top-K (commands.surprisal_rows.AddedColumns).
    base: base of the logarithm: 2 (bits), e (nats) or 10 (hartleys).
    context: a text that the model reads before each text, and that is not scored. join: characters
    between it, or a file's column `prefix`, and the scored text.
    long_texts: "window" = overlapping windows (scoring.token_scores); "leave" = no values.
    options: for opening a checkpoint. settings: conditions, position, spillover, and options for
    opening a checkpoint, which replace those of `options`.

    The surprisal of a unit is the sum of -log2 P(token | what the method lets the model see) over
    its tokens. It is None if a token cannot be scored. Words that share a token have one surprisal,
    at the first of them; it is None at the others, with n_tokens 0.

        antlm_bench.surprisal("gpt2", ["The cats sleep."]).to_pandas()

    Raises UsageError, MethodNotSupported, CheckpointError, DataError, RunError. After an error no
    file is written.
    """
    models = _list_models(model)
    _check_arguments(stimuli, out, method, by, words, columns, join)
    opening, text_layout = _split_layout(settings, text_layout)
    check_options(options, OpenOptions, opening)
    options = replace(options or OpenOptions(), **opening)
    path = None if out is None else Path(out)
    if path:
        check_table_suffix(path)
    if method:
        single_part(get_method(method))
    layout = _build_layout(by, base, add)
    source, texts = _read_texts(stimuli, columns, text_layout)
    _check_extra_columns(texts, source, layout)
    texts = _add_context(texts, context)
    request = _Request(
        source=source,
        units=split_into_units(texts, by, join, words),
        num_texts=len(texts),
        layout=layout,
        method=method,
        words=words,
        correction=_choose_correction(correction, bow_correction),
        splits_long_texts=_choose(long_texts, LONG_TEXTS, "--long-texts") == "window",
    )
    results = list(_score_models(models, request, options))
    table = _merge_results(results, len(texts))
    if path:
        write_table(path, table.rows)
    return replace(table, path=path)


def _list_models(model: object) -> list[ModelLike]:
    """Return one model, or several, as a list. Raises UsageError for objects of other types."""
    is_several = isinstance(model, Sequence) and not isinstance(model, str | bytes)
    models: list[ModelLike] = []
    for each in model if isinstance(model, Sequence) and is_several else [model]:
        if not isinstance(each, str | Path | Scorer):
            raise UsageError(
                f"{describe_argument(each)} is not a path, a hub id or a Scorer",
                location="model",
                hint="wrap a model in memory: Scorer(model, tokenizer)",
            )
        models.append(each)
    if not models:
        raise UsageError("0 models", location="model", hint="give a path, a hub id or a Scorer")
    return models


def _check_arguments(
    stimuli: object,
    out: object,
    method: object,
    by: object,
    words: object,
    columns: object,
    join: object,
) -> None:
    """Raise UsageError for arguments of other types. Lists of texts are checked when read."""
    if isinstance(stimuli, str) and not stimuli.strip():
        raise UsageError(
            f"{stimuli!r} is not a file", location="stimuli", hint="give a file, or a list of texts"
        )
    if out is not None:
        check_path(out, "out")
    if method is not None:
        check_string(method, "method", "give the name of one method")
    check_string(by, "by", f"one of {', '.join(UNITS)}")
    if words is not None:
        check_string(words, "words", f"one of {', '.join(WORD_RULES)}")
    check_string(join, "join", 'give what stands between prefix and text, as " " or ""')
    if columns is not None:
        check_columns(columns)


def _split_layout(
    settings: Mapping[str, Any], text_layout: StimuliLayout | None
) -> tuple[dict[str, Any], StimuliLayout | None]:
    """Return the settings for opening a checkpoint, and the layout that the others describe.

    Raises UsageError for a value of another type, and if the layout is given twice.
    """
    opening = dict(settings)
    given = {name: opening.pop(name) for name in LAYOUT_KEYWORDS if name in opening}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return opening, text_layout
    if text_layout:
        raise UsageError(
            "text_layout is given, too", location=next(iter(given)), hint="leave one of them out"
        )
    names = {
        name: tuple(check_texts([value] if isinstance(value, str) else value, name))
        for name, value in given.items()
        if name != "spillover"
    }
    spillover = check_value("surprisal", "spillover", given.get("spillover"), int | None)
    layout = StimuliLayout(names.get("conditions", ()), names.get("position", ()), spillover)
    return opening, layout


def _choose(value: object, choices: Sequence[str], location: str) -> str:
    """Return one of `choices` as a string. Raises UsageError for another value."""
    hint = f"one of {', '.join(choices)}"
    check_string(value, location, hint)
    if value not in choices:
        raise UsageError(f"{value!r} is unknown", location=location, hint=hint)
    return str(value)


def _build_layout(by: str, base: str | int, add: str | Sequence[str]) -> TableLayout:
    names = check_texts(add.split(",") if isinstance(add, str) else add, "add")
    if isinstance(base, int) and base in (2, 10):
        base = str(base)
    unit_base = _choose(base, list(UNITS_BY_BASE), "--base")
    return TableLayout(by == "token", unit_base, AddedColumns.parse(names))


def _choose_correction(correction: str | None, bow_correction: bool) -> str:
    """Return the name of the correction. Raises UsageError for an unknown one, or two."""
    if correction is not None:
        check_string(correction, "correction", "give the name of one correction")
        resolve_correction(correction)
        if bow_correction and correction != BOW_CORRECTION:
            raise UsageError(
                f"--bow-correction is short for --correction {BOW_CORRECTION}",
                location="--correction",
                hint="give one of the two",
            )
        return correction
    return BOW_CORRECTION if bow_correction else NO_CORRECTION


def _read_texts(
    stimuli: Any, columns: Mapping[str, str] | None, text_layout: StimuliLayout | None
) -> tuple[str, list[Stimulus]]:
    """Return the name of the stimuli, and their texts."""
    if isinstance(stimuli, str | Path):
        return str(stimuli), load_stimuli(stimuli, columns, text_layout)
    if is_frame(stimuli):
        return "the table", read_stimuli_rows(frame_rows(stimuli), columns, text_layout)
    if columns or text_layout:
        name = "columns" if columns else "text_layout"
        raise UsageError("a list of texts has no columns", location=name, hint="leave it out")
    return "the texts", stimuli_from_texts(check_texts(stimuli, "stimuli"))


def _check_extra_columns(texts: Sequence[Stimulus], source: str, layout: TableLayout) -> None:
    """Raise DataError if a column that is copied has the name of a column of the result."""
    names = {name for text in texts for part in text.segments for name in part.extra_columns}
    for name in layout.column_names:
        if name in names:
            message = f"the result has a column {name!r}, too"
            raise DataError(message, location=source, hint="rename the column in the file")


def _add_context(texts: list[Stimulus], context: str | None) -> list[Stimulus]:
    """Return the texts with `context` as their prefix. Raises UsageError if they have prefixes."""
    if context is None:
        return texts
    check_texts([context], "context")
    check_text(context, "the context", "--context")
    if any(text.prefix for text in texts):
        raise UsageError(
            "the stimuli have a column `prefix`, too", location="--context", hint="leave it out"
        )
    return [replace(text, prefix=context) for text in texts]


def _score_models(
    models: Sequence[ModelLike], request: _Request, options: OpenOptions
) -> Iterator[_ModelResult]:
    """Score the stimuli with each model. All files are located before any is scored."""
    scorers = [model for model in models if isinstance(model, Scorer)]
    if scorers and options != OpenOptions():
        raise UsageError(
            "options of an open Scorer cannot be changed",
            location="surprisal",
            hint="give them to the Scorer: Scorer(model, bos=...)",
        )
    expanded = _expand_models(models, options)
    several = len(expanded) > 1
    if several and any("model" in unit.row for unit in request.units):
        message = "the result of several models has a column 'model', too"
        raise DataError(message, location=request.source, hint="rename the column in the file")
    for model in expanded:
        if several and isinstance(model, str):
            with _named_errors(model):
                locate_sources(*split_revision(model, options))
    with Progress(unit="characters", parts=("model", len(expanded))) as progress:
        for model in expanded:
            ref = model if isinstance(model, str) else model.name
            progress.next_part(ref)
            with _named_errors(ref if several else ""):
                if isinstance(model, Scorer):
                    checkpoint = model.checkpoint
                else:
                    checkpoint = open_checkpoint(model, options)
                from antlm_bench.checkpoints import evaluation_mode  # imports torch

                with evaluation_mode(checkpoint.engine.model):
                    yield _score_model(checkpoint, request, ref, model, progress)


def _expand_models(models: Sequence[ModelLike], options: OpenOptions) -> list[str | Scorer]:
    """Return each Scorer and each checkpoint of a reference (checkpoints.expand_refs) once."""
    paths = [str(model) for model in models if not isinstance(model, Scorer)]
    if len(paths) == len(models):
        return [*expand_refs(paths, options.revision)]
    expanded: list[str | Scorer] = []
    for model in models:
        if isinstance(model, Scorer):
            expanded.append(model)
        else:
            expanded += expand_refs([str(model)], options.revision)
    return list(dict.fromkeys(expanded))


@contextmanager
def _named_errors(model: str) -> Iterator[None]:
    """Add the name of a model to errors that do not contain it. "" = add nothing."""
    try:
        yield
    except BenchError as error:
        if model and model not in str(error):
            error.message = f"{model}: {error.message}"
        raise


def _score_model(
    checkpoint: Checkpoint, request: _Request, ref: str, model: str | Scorer, progress: Progress
) -> _ModelResult:
    """Score the stimuli with one model. ref: as in _ModelResult."""
    if request.words is not None:
        checkpoint = checkpoint.with_word_rule(request.words)
    name = request.method or default_method(checkpoint, checkpoint.methods)
    method = resolve_method(name, checkpoint)
    attention, _ = single_part(method)
    correction = resolve_correction(request.correction)
    encoder, added = checkpoint.encoders[attention], request.layout.added
    if correction is not None:
        if not method.is_left_to_right:
            raise MethodNotSupported(
                f"corrections for the end of a word are computed for causal, not for {name}",
                location="--correction",
                hint="use --method causal, or leave it out",
            )
        sets = build_token_sets(encoder.tokenizer, correction, encoder.vocab_size)
        checkpoint.engine.set_token_sets(sets)
    if added.top_k > encoder.vocab_size:
        hint = f"the model has {encoder.vocab_size} tokens"
        raise UsageError(f"top-{added.top_k} is too many", location="--add", hint=hint)
    settings = TokenSettings(
        method,
        correction,
        reads_distributions=not added.is_empty,
        top_k=added.top_k,
        splits_long_texts=request.splits_long_texts,
    )
    units_by_text = [list(group) for _, group in groupby(request.units, lambda u: u.text_index)]
    texts = [units[0].option.text for units in units_by_text]
    trial_texts = _trial_texts(checkpoint, texts, attention)
    if isinstance(model, Scorer):
        model.test_longer_texts(checkpoint, trial_texts, method)
    else:
        checkpoint.run_self_test(trial_texts, [method])
    notes = (*loading_notes(checkpoint), *checkpoint.notes(name))
    result = _ModelResult(checkpoint.name, ref, name, notes=notes)
    label = f"{checkpoint.name} {Path(request.source).name} {name}"
    work = Workload(sum(map(len, texts)), estimate_tokens(texts, method))
    progress.plan_piece(label, work)
    for block in _iter_blocks(units_by_text):
        _score_block(checkpoint, block, settings, request.layout, result, progress)
    if all(row[f"surprisal_{request.layout.unit}"] is None for row in result.rows):
        hint = "use longer texts, or --bos always"
        if result.too_long:
            hint = f"{TOO_LONG_HINT}; or use --long-texts window"
        raise DataError("no unit can be scored", location=request.source, hint=hint)
    _add_window_note(checkpoint, attention, result)
    return result


def _trial_texts(checkpoint: Checkpoint, texts: Sequence[str], attention: Attention) -> list[str]:
    """Return texts for the self-test. One that does not fit into the model loses its end."""
    from antlm_bench.checkpoints.self_test import select_texts_by_length  # imports torch

    encoder, trial_texts = checkpoint.encoders[attention], []
    capacity = WindowSizes.for_model(checkpoint, attention).capacity
    for text in select_texts_by_length(texts):
        if capacity and len(text) > capacity:
            [offsets] = encoder.tokenize([text[: 100 * capacity]], capacity).offsets
            if offsets is not None and len(offsets) > capacity:
                text = text[: offsets[capacity - 1][1]]
        trial_texts.append(text)
    return trial_texts


def _iter_blocks(units_by_text: Sequence[list[ScoringUnit]]) -> Iterator[list[list[ScoringUnit]]]:
    """Yield texts in blocks, so that the memory of tokens does not grow with the file."""
    block: list[list[ScoringUnit]] = []
    num_characters = 0
    for units in units_by_text:
        length = len(units[0].option.text)
        if block and num_characters + length > MAX_BLOCK_CHARACTERS:
            yield block
            block, num_characters = [], 0
        block.append(units)
        num_characters += length
    if block:
        yield block


def _score_block(
    checkpoint: Checkpoint,
    block: Sequence[list[ScoringUnit]],
    settings: TokenSettings,
    layout: TableLayout,
    result: _ModelResult,
    progress: Progress,
) -> None:
    """Score some texts, and add their rows and counts to a result."""
    texts = [units[0].option.text for units in block]
    starts = [units[0].start for units in block]
    counter = ShareCounter(progress, sum(map(len, texts)), build_token_counter(checkpoint))
    scores_by_text, flags = score_tokens(checkpoint, texts, starts, settings, counter)
    counter.finish()
    for index, (units, scores) in enumerate(zip(block, scores_by_text, strict=True)):
        rows = list(layout.build_rows(units, scores, checkpoint.decode_token))
        result.rows += rows
        result.windowed += scores.num_windows > 1
        num_empty = sum(row[f"surprisal_{layout.unit}"] is None for row in rows)
        if scores.num_windows:
            num_sharing = 0 if layout.by_token else count_words_without_token(units, scores)
            result.shares_token += num_sharing
            result.unscored += num_empty - num_sharing
        else:
            result.too_long += num_empty
        for flag, mask in flags.items():
            if mask[index]:
                result.texts_by_flag.setdefault(flag, set()).add(texts[index])


def _add_window_note(checkpoint: Checkpoint, attention: Attention, result: _ModelResult) -> None:
    """Add a note on the context of tokens in texts that were read in windows."""
    if not result.windowed:
        return
    sizes = WindowSizes.for_model(checkpoint, attention)
    note = (
        f"{format_count(result.windowed, 'text')} longer than the {checkpoint.max_length:,} tokens "
        f"of the model, read in windows: the first {(sizes.capacity or 0) - sizes.right:,} tokens "
        f"have all tokens before them as context, each later one at least {sizes.left:,}"
    )
    if attention == "full":
        note += f", and {sizes.right:,} after it, except at the end"
    result.notes = (*result.notes, note)


def _merge_results(results: Sequence[_ModelResult], num_texts: int) -> SurprisalTable:
    """Return the table of all models. With several, rows and notes name their model."""
    names = [result.name for result in results]
    if len(set(names)) < len(names):  # checkpoints of two runs: seed_1/last, seed_2/last
        names = [result.ref for result in results]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two models are called {name}", location="model", hint="give it once")
    rows: list[SurprisalRow] = []
    notes: list[str] = []
    for name, result in zip(names, results, strict=True):
        label: SurprisalRow = {"model": name} if len(results) > 1 else {}
        rows += [label | row for row in result.rows] if label else result.rows
        notes += [f"{name}: {note}" if label else note for note in result.notes]
    texts_by_flag = {
        flag: set().union(*(result.texts_by_flag.get(flag, set()) for result in results))
        for flag in FLAGS
    }
    return SurprisalTable(
        path=None,
        method=", ".join(dict.fromkeys(result.method for result in results)),
        rows=tuple(rows),
        texts=num_texts,
        unscored=sum(result.unscored for result in results),
        too_long=sum(result.too_long for result in results),
        shares_token=sum(result.shares_token for result in results),
        flags={flag: len(texts) for flag, texts in texts_by_flag.items() if texts},
        notes=tuple(notes),
        models=tuple(names),
        windowed=max(result.windowed for result in results),
    )
