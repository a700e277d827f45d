"""`score`: score checkpoints on suites, and write run folders. It prints only progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antlm_bench import runs
from antlm_bench.arguments import apply_settings, check_arguments, split_methods
from antlm_bench.checkpoints import (
    Checkpoint,
    OpenOptions,
    expand_refs,
    loading_notes,
    open_checkpoint,
    select_content_key_metadata,
    with_bf16_body,
)
from antlm_bench.checkpoints.minicons_backend import (
    MiniconsCheckpoint,
    open_minicons_checkpoint,
    validate_options,
)
from antlm_bench.commands.acquisition import compute_acquisition, find_acquisition_suites
from antlm_bench.commands.requested_suites import RequestedSuites
from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.errors import BenchError, DataError, IncompleteError, UsageError
from antlm_bench.lm_eval_bridge.rolling import require_causal_method
from antlm_bench.metrics import METRICS, TIE_RULES, ItemKind
from antlm_bench.predictions import Predictions, check_ids, check_predictions, concat_predictions
from antlm_bench.printable import format_count
from antlm_bench.progress import Progress
from antlm_bench.runs.layout import (
    build_manifest,
    check_single_name,
    content_key,
    log_replaced_scores,
    run_dir,
)
from antlm_bench.runs.provenance import ResourceMeter
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.conventions import (
    CONVENTIONS_VERSION,
    PEER_CONVENTIONS,
    ScoringConventions,
    apply_conventions,
)
from antlm_bench.scoring.methods import Method, default_method, get_method, resolve_method
from antlm_bench.scoring.peers import peer_version
from antlm_bench.suites.task_types import (
    TASK_TYPES,
    PredictRequest,
    Suite,
    SummarizeRequest,
    TaskType,
)
from antlm_bench.types import Cell, Item, Names, Run, as_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.keywords import ScoreKeywords

ALL_METHODS = "all"
"""Stands for every method that a checkpoint was trained for."""
PRECISIONS = ("exact", "adaptive")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Options of `score`: see its --help. None = the value of `compat`, else the default."""

    revision: str | None = None
    name: str | None = None
    """Name of the model in tables; None = that of its folder or hub id."""
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    allow_incomplete: bool = False
    require_all: bool = False
    bos: str | None = None
    ties: str | None = None
    compat: str | None = None
    max_length: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    precision: str = "exact"
    engine: str = "native"
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    peft: str | None = None
    tokenizer: str | None = None
    allow_unused: bool = False
    allow_missing: bool = False
    original_layout: str | None = None
    again: bool = False
    replace: bool = False
    """Remove the cells of the same suites and methods under other limits."""

    def conventions(self) -> ScoringConventions:
        """Return the conventions of `compat`, with explicitly given options in their place."""
        if self.compat is not None and self.compat not in PEER_CONVENTIONS:
            raise UsageError(
                f"unknown peer {self.compat!r}",
                location="--compat",
                hint=f"one of {', '.join(PEER_CONVENTIONS)}",
            )
        bundle = PEER_CONVENTIONS[self.compat] if self.compat else ScoringConventions()
        if self.ties is not None and self.ties not in TIE_RULES:
            raise UsageError(
                f"unknown tie rule {self.ties!r}",
                location="--ties",
                hint=f"one of {', '.join(TIE_RULES)}",
            )
        return replace(
            bundle,
            bos=self.bos or bundle.bos,
            ties=self.ties or bundle.ties,
            bos_before_context="" if self.bos else bundle.bos_before_context,
            eos="" if self.bos else bundle.eos,
            lengths=bundle.lengths if self.max_length is None else "declared",
        )

    def open_options(self) -> OpenOptions:
        """Return the options for opening a checkpoint."""
        names = {field.name for field in fields(OpenOptions)} - {"bos", "lengths"}
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        conventions = self.conventions()
        return OpenOptions(bos=conventions.bos, lengths=conventions.lengths, **values)

    def validate(self, methods: Sequence[str]) -> None:
        """Raise UsageError for options that contradict each other, before a model is opened."""
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"unknown precision {self.precision!r}",
                location="--precision",
                hint=" or ".join(PRECISIONS),
            )
        is_adaptive = self.precision == "adaptive"
        if is_adaptive and self.dtype != "float32":
            raise UsageError(
                "adaptive precision uses both bfloat16 and float32",
                location="--dtype",
                hint="leave --dtype out",
            )
        if is_adaptive and self.conventions().for_suite("sum").reduction != "sum":
            message = (
                f"{self.compat} compares means, and adaptive precision bounds the errors of sums"
            )
            raise UsageError(message, location="--compat", hint="use --precision exact")
        validate_options(self.engine, methods, self.dtype, self.precision, self.batch_tokens)
        for name in methods:
            if name != ALL_METHODS:
                get_method(name)


@check_arguments(options=ScoreOptions)
def score(
    models: Names,
    suites: Names,
    *,
    methods: Names = (),
    out: str | Path | None = None,
    options: ScoreOptions | None = None,
    **settings: Unpack[ScoreKeywords],
) -> list[Run]:
    """Score every checkpoint on every suite. Return one run per checkpoint.

    models: folders, hub ids, globs, folders of checkpoints. suites: names, collections, files of
    pairs, TOMLs. methods (or `method`): scoring methods (`antlm-bench list methods`); () =
    the checkpoint's first, "all" = each that it was trained for. out: the run folder, or for
    several checkpoints the folder of their run folders; default reports/<name>-<weights>. settings:
    fields of ScoreOptions, which replace those of `options`.

        [run] = antlm_bench.score("gpt2", "blimp", method="causal", dtype="bfloat16")
        run["blimp"].estimate.value  # a fraction

    A cell that the run folder already has under the same content key is not computed again; a call
    that was killed continues. With one checkpoint and one suite, its BenchError is raised. With
    several, the others are scored first, and then IncompleteError is raised; with `require_all`,
    the DataError of a suite is raised before any is scored.
    """
    options = apply_settings(options or ScoreOptions(), settings)
    method_names = split_methods(methods)
    options.validate(method_names)
    refs = expand_refs(as_list(models), options.revision)
    check_single_name(options.name, refs)
    requested_suites = RequestedSuites(
        as_list(suites),
        limit=options.limit,
        columns=options.columns,
        allow_incomplete=options.allow_incomplete,
        require_all=options.require_all,
    )
    acquisition_suites = find_acquisition_suites(as_list(suites), len(refs))
    finished: list[Run] = []
    failures: list[tuple[str, BenchError]] = []
    refs_by_weights: dict[str, str] = {}
    open_model: Callable[..., Checkpoint | MiniconsCheckpoint] = (
        open_checkpoint if options.engine == "native" else open_minicons_checkpoint
    )
    for ref in refs:
        try:
            checkpoint = open_model(ref, options.open_options())
            notes = _describe_opening(checkpoint, ref, refs_by_weights)
            folder = run_dir(checkpoint.metadata, out, len(refs) > 1)
            run = _score_checkpoint(
                checkpoint, requested_suites, method_names, folder, options, notes
            )
            finished.append(run)
        except BenchError as error:
            # An error of the suites or options would be the same for every checkpoint.
            is_only_error = len(refs) == 1 and not requested_suites.unavailable
            if is_only_error or error is requested_suites.error or isinstance(error, UsageError):
                raise
            failures.append((ref, error))
            finished += getattr(error, "runs", ())
    if failures or requested_suites.unavailable:
        raise requested_suites.describe_failures(
            failures, len(refs), runs.distinguish_suites(finished)
        )
    for name in acquisition_suites:
        compute_acquisition([run.path for run in finished], name)
    keys = {cell.key for run in finished for cell in run}
    return open_verified_runs((run.path for run in finished), keys=keys)


def _describe_opening(
    checkpoint: Checkpoint | MiniconsCheckpoint, ref: str, refs_by_weights: dict[str, str]
) -> list[str]:
    """Return notes on a checkpoint, also if an earlier one has the same weights.

    ref: the checkpoint as the user gave it. refs_by_weights: hash of the weights -> the first
    checkpoint with them; is updated.
    """
    first_ref = refs_by_weights.setdefault(str(checkpoint.metadata["weights"]), ref)
    notes = list(loading_notes(checkpoint))
    if first_ref != ref:
        notes.insert(0, f"same weights as {first_ref}: this is not another checkpoint")
    return notes


def _score_checkpoint(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    requested_suites: RequestedSuites,
    methods: Sequence[str],
    folder: Path,
    options: ScoreOptions,
    notes: Sequence[str],
) -> Run:
    # Methods with the same conventions score the same texts and share the model's forwards.
    method_groups: dict[ScoringConventions, list[str]] = {}
    for name in _resolve_methods(methods, checkpoint):
        conventions = options.conventions().for_method(resolve_method(name, checkpoint))
        method_groups.setdefault(conventions, []).append(name)
    loaded_suites = requested_suites.load(
        [name for names in method_groups.values() for name in names]
    )
    cells = list(product(loaded_suites, method_groups.values()))
    keys: set[str] = set()
    errors: list[DataError] = []
    with runs.RunWriter(folder, build_manifest(checkpoint.metadata, options.name)) as writer:
        for suite, names in cells:
            try:
                suite_keys = _score_suite(checkpoint, suite, names, writer, options, notes)
            except DataError as error:  # the other suites are scored
                if len(cells) == 1:
                    raise
                errors.append(error)
                continue
            keys.update(suite_keys)
            for key in suite_keys if options.replace else ():
                writer.remove_other_limits(key)
    finished = [] if len(errors) == len(cells) else open_verified_runs([folder], keys=keys)
    if errors:
        raise IncompleteError("\n".join(dict.fromkeys(map(str, errors))), runs=finished)
    return finished[0]


def _resolve_methods(
    requested_methods: Sequence[str], checkpoint: Checkpoint | MiniconsCheckpoint
) -> list[str]:
    """Return the requested methods, or else the checkpoint's default method.

    "all" is replaced by every method that the checkpoint was trained for.
    """
    if not requested_methods:
        return [default_method(checkpoint, checkpoint.methods)]
    names: list[str] = []
    for name in requested_methods:
        trained_methods = checkpoint.trained_methods or checkpoint.methods
        names += trained_methods if name == ALL_METHODS else [name]
    return list(dict.fromkeys(names))


def _score_suite(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    suite: Suite,
    method_names: Sequence[str],
    writer: runs.RunWriter,
    options: ScoreOptions,
    notes: Sequence[str],
) -> list[str]:
    """Compute the missing cells of one suite under methods with the same conventions.

    Return the content keys of its cells, those that were there included.
    """
    task_type = TASK_TYPES[suite.task_type]
    conventions = (
        options.conventions()
        .for_method(get_method(method_names[0]))
        .for_suite(suite.reduction, suite.has_delimiters, task_type.scores_spans)
    )
    if conventions.bos_before_context:
        checkpoint = checkpoint.with_context_bos_policy(conventions.bos_before_context)
    if conventions.eos and not task_type.scores_documents:
        checkpoint = checkpoint.with_scored_eos(conventions.eos)
    _check_supported(checkpoint, suite, task_type, method_names, options)
    settings = {
        name: _build_settings(checkpoint, suite, name, conventions, options)
        for name in method_names
    }
    keys = {name: content_key(values) for name, values in settings.items()}
    if options.again:
        for name in method_names:
            writer.discard_chunks(suite.name, name)
    pending_names = [
        name
        for name in method_names
        if options.again
        or not writer.is_complete(suite.name, name, keys[name], origin=suite.origin)
    ]
    if not pending_names:
        return list(keys.values())
    meter = ResourceMeter()
    methods = [resolve_method(name, checkpoint) for name in pending_names]
    items = apply_conventions(suite.items, conventions, checkpoint)
    history = _self_test(checkpoint, items, methods)
    chunks = list(multiple_choice.iter_chunks(items, methods))
    pending = _PendingCells(
        suite, task_type, items, pending_names, methods, keys, conventions, chunks
    )
    label = f"{checkpoint.name} {suite.name} {'+'.join(pending_names)}"
    with Progress(len(items), label) as progress:
        new_settings = [settings[name] for name in pending_names]
        log_replaced_scores(progress.log, writer, suite.origin, new_settings)
        predictions_by_method = _predict_chunks(checkpoint, pending, writer, options, progress)
    for name in pending_names:
        computed = predictions_by_method.pop(name)
        if len(computed) and computed.has_flag("too-long").all():
            writer.discard_chunks(suite.name, name)
            raise _nothing_fits_error(suite, checkpoint.max_length)
        predictions = _complete_predictions(computed, suite)
        changed_predictions = None if predictions is computed else predictions
        reader_notes = [*suite.notes, *checkpoint.notes(name), *notes]
        summary = task_type.summarize(
            SummarizeRequest(suite, predictions, name, conventions, reader_notes)
        )
        key, values = keys[name], settings[name]
        cell = Cell(suite.name, name, key, values, summary, history=history, origin=suite.origin)
        writer.finish_cell(cell, len(chunks), changed_predictions)
    _record_provenance(writer, meter, checkpoint, [keys[name] for name in pending_names])
    return list(keys.values())


def _record_provenance(
    writer: runs.RunWriter,
    meter: ResourceMeter,
    checkpoint: Checkpoint | MiniconsCheckpoint,
    keys: Sequence[str],
) -> None:
    """Record how cells came about that were computed together. keys: their content keys."""
    facts = {"device": checkpoint.metadata.get("device", ""), "computed_together": len(keys)}
    writer.record_provenance(meter.build_record(key, **facts) for key in keys)


def _nothing_fits_error(suite: Suite, max_length: int | None) -> DataError:
    items = format_count(len(suite.items), "item")
    return DataError(
        f"none of {items} fits the model, which reads {max_length} tokens",
        location=suite.origin[0] if suite.origin else suite.name,
        hint="leave the suite out, or raise --max-length if the model reads longer texts",
    )


def _complete_predictions(predictions: Predictions, suite: Suite) -> Predictions:
    """Return predictions with the columns that need all items; the same object if there are none.

    These are results of metrics over all items, and the clusters of items that belong together.
    """
    if suite.task_metrics and suite.task_metrics.corpus_metrics:
        predictions = suite.task_metrics.with_corpus_metrics(predictions)
    return predictions.with_clusters([item.cluster for item in suite.items])


@dataclass(frozen=True, slots=True)
class _PendingCells:
    """The cells of one suite that are computed together."""

    suite: Suite
    task_type: TaskType
    items: Sequence[Item]
    """The suite's items under `conventions`."""
    method_names: Sequence[str]
    methods: Sequence[Method]
    keys: Mapping[str, str]
    """Method name -> content key."""
    conventions: ScoringConventions
    chunks: Sequence[Sequence[Item]]

    def check_predictions(
        self, predictions: Predictions, method_name: str, items: Sequence[Item]
    ) -> None:
        """Raise DataError for predictions without the columns that the task type declares, or
        without a row for each item, in the order of the items.
        """
        location = f"{self.suite.name}.{method_name}, predicted by {self.task_type.name!r}"
        schema = self.task_type.prediction_schema
        if schema is not None:
            check_predictions(predictions, schema, location)
        check_ids(predictions, [item.id for item in items], location)


def _predict_chunks(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    pending: _PendingCells,
    writer: runs.RunWriter,
    options: ScoreOptions,
    progress: Progress,
) -> dict[str, Predictions]:
    """Return method name -> predictions. Each chunk comes from the run folder or from the model.

    A chunk is computed for all methods or none, so that a resumed run has the same batches as an
    uninterrupted one.
    """
    chunks: dict[str, list[Predictions]] = {name: [] for name in pending.method_names}
    adaptive: AdaptiveScorer | None = None
    for number, chunk in enumerate(pending.chunks):
        stored = {
            name: _load_stored_chunk(writer, pending, name, number, chunk)
            for name in pending.method_names
        }
        if all(predictions is not None for predictions in stored.values()):
            progress.skip(len(chunk))
        else:
            if (
                options.precision == "adaptive"
                and adaptive is None
                and isinstance(checkpoint, Checkpoint)
            ):
                adaptive = AdaptiveScorer(with_bf16_body(checkpoint), checkpoint).calibrate(
                    pending.items, pending.methods
                )
            request = PredictRequest(
                adaptive or checkpoint,
                pending.suite,
                chunk,
                pending.methods,
                pending.conventions,
                _ChunkProgress(progress, len(chunk)),
            )
            computed = pending.task_type.predict(request)
            for name, batch in zip(pending.method_names, computed, strict=True):
                pending.check_predictions(batch, name, chunk)
                writer.save_chunk(pending.suite.name, name, pending.keys[name], number, batch)
                stored[name] = batch
        for name, predictions in stored.items():
            if predictions is not None:
                chunks[name].append(predictions)
    return {name: concat_predictions(batches) for name, batches in chunks.items()}


def _check_supported(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    suite: Suite,
    task_type: TaskType,
    method_names: Sequence[str],
    options: ScoreOptions,
) -> None:
    """Raise UsageError or MethodNotSupported if the options cannot score this kind of suite."""
    if options.precision == "adaptive" and not task_type.depends_on_ranks_only:
        raise UsageError(
            f"{suite.name} needs exact probabilities, not choices between options",
            location="--precision",
            hint=f"use --precision exact{task_type.native_only_reason}",
        )
    if isinstance(checkpoint, MiniconsCheckpoint) and not task_type.supports_other_engines:
        raise UsageError(
            f"{suite.name} scores {task_type.scored_noun}, which only the native engine does",
            location="--engine",
            hint=f"use --engine native{task_type.native_only_reason}",
        )
    if task_type.scores_documents:
        for name in method_names:
            require_causal_method(name, "--method")


def _self_test(
    checkpoint: Checkpoint | MiniconsCheckpoint, items: Sequence[Item], methods: Sequence[Method]
) -> dict[str, Any]:
    """Compare our engine with the model's plain forward on texts of these items.

    Returns the result, as the cell's history stores it.
    """
    if isinstance(checkpoint, MiniconsCheckpoint):
        return {}
    texts = [option.text for item in items for option in item.options]
    result = checkpoint.run_self_test(texts, methods)
    return {"self_test": result.to_record(), "shortcuts": checkpoint.engine.shortcuts}


def _load_stored_chunk(
    writer: runs.RunWriter,
    pending: _PendingCells,
    method_name: str,
    chunk_index: int,
    chunk: Sequence[Item],
) -> Predictions | None:
    """Return the predictions of a chunk that an earlier call stored, or None.

    A call with other methods may have had chunks of another size; they are not used.
    """
    key = pending.keys[method_name]
    stored = writer.load_chunk(pending.suite.name, method_name, key, chunk_index)
    if stored is None or stored.ids != tuple(item.id for item in chunk):
        return None
    return stored


class _ChunkProgress:
    """A progress callback: converts fractions of a chunk into items of the progress bar."""

    def __init__(self, progress: Progress, num_items: int) -> None:
        self.progress, self.num_items = progress, num_items
        self.completed_fraction, self.num_reported = 0.0, 0

    def __call__(self, fraction: float) -> None:
        self.completed_fraction += fraction
        num_done = min(self.num_items, round(self.completed_fraction * self.num_items))
        self.progress.advance(num_done - self.num_reported)
        self.num_reported = num_done


def _build_settings(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    suite: Suite,
    method: str,
    conventions: ScoringConventions,
    options: ScoreOptions,
) -> dict[str, Any]:
    """Return everything that the predictions of a cell depend on. Its hash is the cell's key."""
    return {
        **select_content_key_metadata(checkpoint),
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_digest": suite.digest,
        "method": method,
        "precision": options.precision,
        "ties": conventions.ties,
        "reduction": conventions.reduction,
        "context": conventions.context,
        "compat": options.compat,
        "limit": None if suite.num_left_out == 0 else options.limit,
        "conventions": CONVENTIONS_VERSION,
        # Defaults add no keys, so that the keys of runs from before an option existed stay valid.
        **({"judge": suite.task_metrics.key_parts()} if suite.task_metrics else {}),
        **conventions.non_default_settings(
            has_ratings=METRICS[suite.metric].item_kind is ItemKind.RATING
        ),
        **({} if options.engine == "native" else {"engine": peer_version(options.engine)}),
    }
