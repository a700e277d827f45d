"""score: checkpoints and suites in, run folders out. Prints nothing but progress; numbers are
rendered elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.checkpoints import (
    Checkpoint,
    OpenOptions,
    expand_refs,
    key_settings,
    loading_notes,
    open_checkpoint,
    with_bf16_body,
)
from antlm_bench.checkpoints.minicons_backend import (
    MiniconsCheckpoint,
    open_minicons_checkpoint,
    validate_options,
)
from antlm_bench.commands.acquisition import compute_acquisition, find_acquisition_suites
from antlm_bench.commands.cells import (
    Names,
    announce_replaced_scores,
    as_list,
    build_manifest,
    content_key,
    deduplicate_suites,
    run_dir,
)
from antlm_bench.commands.task_types import TaskType, get_task_type
from antlm_bench.compare.summary_check import read_run, read_runs
from antlm_bench.errors import BenchError, IncompleteError, UsageError
from antlm_bench.lm_eval_bridge import tasks
from antlm_bench.lm_eval_bridge.rolling import require_causal_method as refuse_to_roll
from antlm_bench.metrics import TIE_RULES
from antlm_bench.reporting.progress import Progress
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.multiple_choice import (
    CONVENTIONS_VERSION,
    PEER_CONVENTIONS,
    ScoringConventions,
)
from antlm_bench.scoring.peers import peer_version
from antlm_bench.scoring.probes import Method, default_method, get_method
from antlm_bench.scoring.probes import resolve_method as find_method
from antlm_bench.suites import loader as suites
from antlm_bench.suites.loader import Suite
from antlm_bench.suites.pairs_csv import columns_for_ref
from antlm_bench.types import Cell, Item, Prediction, Run

ALL_METHODS = "all"  # the name that stands for every sensible method of a checkpoint
PRECISIONS = ("exact", "adaptive")
# What a judge's own code makes of an answer is not known: rounding may move it, and others know no
# first choices.
EXACT_SCORES_HINTS = {
    "judgements": ": its own code reads log-probabilities and first choices as they are"
}


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Everything that `score` can be told; None = the default, or what `compat` says. See the
    command line's help.
    """

    revision: str | None = None
    limit: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    allow_incomplete: bool = False
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

    def conventions(self) -> ScoringConventions:
        """The conventions: a peer's bundle, with what was said explicitly on top."""
        if self.compat is not None and self.compat not in PEER_CONVENTIONS:
            raise UsageError(
                f"unknown peer {self.compat!r}",
                location="--compat",
                hint=f"one of {', '.join(PEER_CONVENTIONS)}",
            )
        policy = PEER_CONVENTIONS[self.compat] if self.compat else ScoringConventions()
        if self.ties is not None and self.ties not in TIE_RULES:
            raise UsageError(
                f"unknown tie rule {self.ties!r}",
                location="--ties",
                hint=f"one of {', '.join(TIE_RULES)}",
            )
        before_context = "" if self.bos else policy.bos_before_context
        return replace(
            policy,
            bos=self.bos or policy.bos,
            ties=self.ties or policy.ties,
            bos_before_context=before_context,
            eos="" if self.bos else policy.eos,
            lengths=policy.lengths if self.max_length is None else "declared",
        )

    def open_options(self) -> OpenOptions:
        shared = {f.name for f in fields(OpenOptions)} & {f.name for f in fields(self)} - {
            "bos",
            "lengths",
        }
        policy = self.conventions()
        given = {name: getattr(self, name) for name in shared}
        return OpenOptions(bos=policy.bos, lengths=policy.lengths, **given)


def score(
    models: Names,
    suites: Names,
    *,
    methods: Names = (),
    out: str | Path | None = None,
    options: ScoreOptions | None = None,
    **settings: Any,
) -> list[Run]:
    """Score every checkpoint on every suite, each loaded once; one run folder per checkpoint.

    models: folders, hub ids, globs, folders of checkpoints. suites: names, collections, files of
    pairs, TOMLs. methods: names out of scoring.probes.METHODS, () = the first that the checkpoint
    was made for, "all" = each of those. out: the run folder (of several checkpoints: the folder
    that holds theirs), default reports/<name>-<weights>. Keyword settings are ScoreOptions.

    A cell that is already there under the same content key is not computed again; a killed call
    resumes. Raises any BenchError of a single checkpoint; of several, the others are scored first
    and IncompleteError follows.
    """
    options = replace(options or ScoreOptions(), **settings)
    if options.precision not in PRECISIONS:
        raise UsageError(
            f"unknown precision {options.precision!r}",
            location="--precision",
            hint=" or ".join(PRECISIONS),
        )
    if options.precision == "adaptive" and options.dtype != "float32":
        raise UsageError(
            "adaptive precision is bf16 and fp32 already",
            location="--dtype",
            hint="leave --dtype out",
        )
    if (
        options.precision == "adaptive"
        and options.conventions().for_suite("sum").reduction != "sum"
    ):
        message = (
            f"{options.compat} decides by means, and adaptive precision measures errors of sums"
        )
        raise UsageError(message, location="--compat", hint="use --precision exact")
    validate_options(
        options.engine, as_list(methods), options.dtype, options.precision, options.batch_tokens
    )
    options.conventions()  # what no checkpoint can mend is refused before the first is opened
    for name in as_list(methods):
        if name != ALL_METHODS:
            get_method(name)
    refs = expand_refs(as_list(models))
    loader = _LazySuites(as_list(suites), options)
    ages = find_acquisition_suites(as_list(suites), len(refs))
    finished: list[Run] = []
    failed: list[tuple[str, BenchError]] = []
    seen: dict[str, str] = {}
    for ref in refs:
        try:
            finished.append(
                _score_checkpoint(ref, loader, as_list(methods), out, options, seen, len(refs) > 1)
            )
        except BenchError as error:
            # The same suites and options for all: no checkpoint's failure.
            if len(refs) == 1 or error is loader.error or isinstance(error, UsageError):
                raise
            failed.append((ref, error))
    if failed:
        raise IncompleteError(
            f"{len(failed)} of {len(refs)} checkpoints were not scored:\n"
            + "\n".join(f"  {ref}: {error}" for ref, error in failed),
            hint="mend them and repeat the command: what is finished is kept",
            runs=runs.distinguish_suites(finished),
        )
    for name in ages:
        compute_acquisition([run.path for run in finished], name)
    return read_runs(run.path for run in finished)


class _LazySuites:
    """The suites of a call: references checked at once, items loaded when a model has passed, and
    only once.
    """

    def __init__(self, refs: Sequence[str], options: ScoreOptions) -> None:
        if not refs:
            raise UsageError(
                "no suite given", location="--suite", hint="see `antlm-bench list suites`"
            )
        self.refs = list(
            dict.fromkeys(member for ref in refs for member in suites.list_suite_refs(ref))
        )
        self.options = options
        self.suites: list[Suite] | None = None
        self.error: BenchError | None = None

    def load(self, methods: Sequence[str]) -> list[Suite]:
        """Raises MethodNotSupported before any data are looked for."""
        for name in methods:
            if name != "causal" and any(
                tasks.is_lm_eval_ref(ref) and tasks.requests_documents(ref) for ref in self.refs
            ):
                refuse_to_roll(name, "--method")
        if self.suites is None:
            o = self.options
            try:
                columns = {ref: columns_for_ref(ref, self.refs, o.columns) for ref in self.refs}
                self.suites = deduplicate_suites(
                    suites.load_suite(
                        ref,
                        limit=o.limit,
                        allow_incomplete=o.allow_incomplete,
                        columns=columns[ref],
                    )
                    for ref in self.refs
                )
            except BenchError as error:
                self.error = error
                raise
        return self.suites


def _score_checkpoint(
    ref: str,
    loader: _LazySuites,
    methods: Sequence[str],
    out: str | Path | None,
    options: ScoreOptions,
    names_by_weights: dict[str, str],
    multiple_checkpoints: bool,
) -> Run:
    opening = open_checkpoint if options.engine == "native" else open_minicons_checkpoint
    checkpoint: Checkpoint | MiniconsCheckpoint = opening(ref, options.open_options())
    alike: dict[
        ScoringConventions, list[str]
    ] = {}  # methods that ask about the same texts share a reading of the model
    for name in _resolve_methods(methods, checkpoint):
        alike.setdefault(
            options.conventions().for_method(find_method(name, checkpoint)), []
        ).append(name)
    loaded = loader.load([name for names in alike.values() for name in names])
    weights = str(checkpoint.metadata["weights"])
    twin = names_by_weights.setdefault(weights, checkpoint.name)
    remarks = (
        [f"same weights as {twin}: this is not another checkpoint"]
        if twin != checkpoint.name
        else []
    )
    remarks += loading_notes(checkpoint)
    folder = run_dir(checkpoint.metadata, out, multiple_checkpoints)
    with runs.RunWriter(folder, build_manifest(checkpoint.metadata)) as writer:
        for suite, names in product(loaded, alike.values()):
            _score_suite(checkpoint, suite, names, writer, options, remarks)
    return read_run(folder)


def _resolve_methods(
    requested_methods: Sequence[str], checkpoint: Checkpoint | MiniconsCheckpoint
) -> list[str]:
    """The methods of a checkpoint: those asked for, else its default; ALL stands for every one that
    it was made for.
    """
    made_for = checkpoint.trained_methods or checkpoint.methods
    named = [
        each for name in requested_methods for each in (made_for if name == ALL_METHODS else [name])
    ]
    return list(dict.fromkeys(named or [default_method(checkpoint, checkpoint.methods)]))


def _score_suite(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    suite: Suite,
    method_names: Sequence[str],
    writer: runs.RunWriter,
    options: ScoreOptions,
    remarks: Sequence[str],
) -> None:
    """Methods of one policy on one suite, those not there yet: chunk by chunk, one reading of the
    model for all.
    """
    words = suite.times is not None or suite.formulas is not None
    policy = (
        options.conventions()
        .for_method(get_method(method_names[0]))
        .for_suite(suite.reduction, suite.verbatim, words)
    )
    if policy.bos_before_context:
        checkpoint = checkpoint.with_bos_before_context(policy.bos_before_context)
    kind = get_task_type(suite, policy)
    if policy.eos and kind.output_type != "documents":
        checkpoint = checkpoint.with_scored_eos(policy.eos)
    _check_supported(checkpoint, suite, kind, method_names, options)
    facts = {
        name: _build_settings(checkpoint, suite, name, policy, options) for name in method_names
    }
    keys = {name: content_key(fact) for name, fact in facts.items()}
    if options.again:
        for name in method_names:
            writer.discard_chunks(suite.name, name)
    todo = [
        name
        for name in method_names
        if options.again
        or not writer.is_complete(suite.name, name, keys[name], origin=suite.origin)
    ]
    if not todo:
        return
    methods = [find_method(name, checkpoint) for name in todo]
    items = multiple_choice.apply_conventions(suite.items, policy, checkpoint)
    history = _self_test(checkpoint, items, methods)
    chunks = list(multiple_choice.iter_chunks(items, methods))
    results: dict[str, list[Prediction]] = {name: [] for name in todo}
    scorer: AdaptiveScorer | None = None
    label = f"{checkpoint.name} {suite.name} {'+'.join(todo)}"
    with Progress(len(items), label) as progress:
        announce_replaced_scores(progress, writer, suite.origin, [facts[name] for name in todo])
        for number, chunk in enumerate(chunks):
            stored = {
                name: _load_stored_chunk(writer, suite, name, keys[name], number, chunk)
                for name in todo
            }
            # A chunk is computed for all methods or none, so that a resumed run batches as an
            # unbroken one does.
            if any(part is None for part in stored.values()):
                if (
                    options.precision == "adaptive"
                    and scorer is None
                    and isinstance(checkpoint, Checkpoint)
                ):
                    scorer = AdaptiveScorer(with_bf16_body(checkpoint), checkpoint).calibrate(
                        items, methods
                    )
                made = kind.predict(
                    scorer or checkpoint, chunk, methods, _ChunkProgress(progress, len(chunk))
                )
                for name, predictions in zip(todo, made, strict=True):
                    writer.save_chunk(suite.name, name, keys[name], number, predictions)
                    stored[name] = predictions
            else:
                progress.skip(len(chunk))
            for name in todo:
                results[name] += stored[name] or []
    for name in todo:
        notes = [*suite.notes, *checkpoint.notes(name), *remarks]
        found = results.pop(name)
        settled = (
            suite.judge.with_corpus_metrics(found)
            if suite.judge and suite.judge.corpus_metrics
            else None
        )
        summary = kind.summarize(settled or found, suite=suite.name, method=name, notes=notes)
        cell = Cell(
            suite.name, name, keys[name], facts[name], summary, history=history, origin=suite.origin
        )
        writer.finish_cell(cell, len(chunks), settled)


def _check_supported(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    suite: Suite,
    task_type: TaskType,
    method_names: Sequence[str],
    options: ScoreOptions,
) -> None:
    """Refuse what this kind of suite asks for and the precision, engine or methods cannot answer.
    """
    if options.precision == "adaptive" and task_type.output_type != "choices":
        hint = f"use --precision exact{EXACT_SCORES_HINTS.get(task_type.output_type, '')}"
        raise UsageError(
            f"{suite.name} asks for probabilities, not choices", location="--precision", hint=hint
        )
    if isinstance(checkpoint, MiniconsCheckpoint) and task_type.output_type not in (
        "choices",
        "texts",
    ):
        hint = f"use --engine native{EXACT_SCORES_HINTS.get(task_type.output_type, '')}"
        raise UsageError(
            f"{suite.name} asks for {task_type.output_type}, which no other engine answers",
            location="--engine",
            hint=hint,
        )
    if task_type.output_type == "documents":
        for name in method_names:
            refuse_to_roll(name, "--method")


def _self_test(
    checkpoint: Checkpoint | MiniconsCheckpoint, items: Sequence[Item], methods: Sequence[Method]
) -> dict[str, Any]:
    """Compare our engine with the model's plain forward on texts of these items; what was found,
    for the cell.
    """
    if isinstance(checkpoint, MiniconsCheckpoint):
        return {}
    tested = checkpoint.run_self_test(
        [option.text for item in items for option in item.options], methods
    )
    return {"self_test": tested.to_record(), "shortcuts": checkpoint.engine.shortcuts}


def _load_stored_chunk(
    writer: runs.RunWriter,
    suite: Suite,
    method_name: str,
    cell_key: str,
    chunk_index: int,
    chunk: Sequence[Item],
) -> list[Prediction] | None:
    """A chunk of an earlier call, if it holds these very items: beside other methods chunks had
    another size.
    """
    found = writer.load_chunk(suite.name, method_name, cell_key, chunk_index)
    return (
        found
        if found is not None and [p.id for p in found] == [item.id for item in chunk]
        else None
    )


class _ChunkProgress:
    """Shares of a chunk's work, as whole items of a progress bar."""

    def __init__(self, progress: Progress, items: int) -> None:
        self.progress, self.items, self.completed_fraction, self.num_reported = (
            progress,
            items,
            0.0,
            0,
        )

    def __call__(self, fraction: float) -> None:
        self.completed_fraction += fraction
        now = min(self.items, round(self.completed_fraction * self.items))
        self.progress.advance(now - self.num_reported)
        self.num_reported = now


def _build_settings(
    checkpoint: Checkpoint | MiniconsCheckpoint,
    suite: Suite,
    method: str,
    conventions: ScoringConventions,
    options: ScoreOptions,
) -> dict[str, Any]:
    """All that the predictions and the summary of a cell depend on; stored beside them, and hashed
    into the key.
    """
    return {
        **key_settings(checkpoint),
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_digest": suite.digest,
        "method": method,
        "precision": options.precision,
        "ties": conventions.ties,
        "reduction": conventions.reduction,
        "context": conventions.context,
        "compat": options.compat,
        "limit": options.limit,
        "conventions": CONVENTIONS_VERSION,
        # No keys of their own for ours: runs from before there was a choice stay valid.
        **({"judge": suite.judge.key_parts()} if suite.judge else {}),
        **conventions.non_default_settings(has_ratings=suite.metric == "spearman"),
        **({} if options.engine == "native" else {"engine": peer_version(options.engine)}),
    }
