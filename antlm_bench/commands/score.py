"""score: checkpoints and suites in, run folders out. Prints nothing but progress; numbers are rendered elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.checkpoints import Checkpoint, OpenOptions, expand, open_checkpoint, opening_notes, quicker, settings
from antlm_bench.checkpoints.minicons_backend import Foreign, open_foreign, refuse
from antlm_bench.commands.acquisition import acquisition, asked
from antlm_bench.commands.cells import Names, distinct, key, listed, manifest, place, say_replaced
from antlm_bench.commands.task_types import Kind, kind_of
from antlm_bench.compare.summary_check import read_run, read_runs
from antlm_bench.errors import BenchError, IncompleteError, UsageError
from antlm_bench.lm_eval_bridge import tasks
from antlm_bench.lm_eval_bridge.rolling import refuse as refuse_to_roll
from antlm_bench.metrics import TIES
from antlm_bench.reporting.progress import Progress
from antlm_bench.scoring import multiple_choice
from antlm_bench.scoring.adaptive import Adaptive
from antlm_bench.scoring.multiple_choice import COMPATS, CONVENTIONS, Policy
from antlm_bench.scoring.peers import peer_version
from antlm_bench.scoring.probes import Method, default_method, known
from antlm_bench.scoring.probes import method as find_method
from antlm_bench.suites import loader as suites
from antlm_bench.suites.loader import Suite
from antlm_bench.suites.pairs_csv import columns_of
from antlm_bench.types import Cell, Item, Prediction, Run

ALL = "all"  # the name that stands for every sensible method of a checkpoint
PRECISIONS = ("exact", "adaptive")
# What a judge's own code makes of an answer is not known: rounding may move it, and others know no first choices.
AS_THEY_ARE = {"judgements": ": its own code reads log-probabilities and first choices as they are"}


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Everything that `score` can be told; None = the default, or what `compat` says. See the command line's help."""

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

    def policy(self) -> Policy:
        """The conventions: a peer's bundle, with what was said explicitly on top."""
        if self.compat is not None and self.compat not in COMPATS:
            raise UsageError(f"unknown peer {self.compat!r}", place="--compat", hint=f"one of {', '.join(COMPATS)}")
        policy = COMPATS[self.compat] if self.compat else Policy()
        if self.ties is not None and self.ties not in TIES:
            raise UsageError(f"unknown tie rule {self.ties!r}", place="--ties", hint=f"one of {', '.join(TIES)}")
        before_context = "" if self.bos else policy.bos_before_context
        return replace(
            policy,
            bos=self.bos or policy.bos,
            ties=self.ties or policy.ties,
            bos_before_context=before_context,
            eos="" if self.bos else policy.eos,
            lengths=policy.lengths if self.max_length is None else "declared",
        )

    def opening(self) -> OpenOptions:
        shared = {f.name for f in fields(OpenOptions)} & {f.name for f in fields(self)} - {"bos", "lengths"}
        policy = self.policy()
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

    models: folders, hub ids, globs, folders of checkpoints. suites: names, collections, files of pairs, TOMLs. methods:
    names out of scoring.probes.METHODS, () = the first that the checkpoint was made for, "all" = each of those. out:
    the run folder (of several checkpoints: the folder that holds theirs), default reports/<name>-<weights>. Keyword
    settings are ScoreOptions.

    A cell that is already there under the same content key is not computed again; a killed call resumes.
    Raises any BenchError of a single checkpoint; of several, the others are scored first and IncompleteError follows.
    """
    options = replace(options or ScoreOptions(), **settings)
    if options.precision not in PRECISIONS:
        raise UsageError(f"unknown precision {options.precision!r}", place="--precision", hint=" or ".join(PRECISIONS))
    if options.precision == "adaptive" and options.dtype != "float32":
        raise UsageError("adaptive precision is bf16 and fp32 already", place="--dtype", hint="leave --dtype out")
    if options.precision == "adaptive" and options.policy().on("sum").reduction != "sum":
        message = f"{options.compat} decides by means, and adaptive precision measures errors of sums"
        raise UsageError(message, place="--compat", hint="use --precision exact")
    refuse(options.engine, listed(methods), options.dtype, options.precision, options.batch_tokens)
    options.policy()  # what no checkpoint can mend is refused before the first is opened
    for name in listed(methods):
        if name != ALL:
            known(name)
    refs = expand(listed(models))
    loader = _Suites(listed(suites), options)
    ages = asked(listed(suites), len(refs))
    finished: list[Run] = []
    failed: list[tuple[str, BenchError]] = []
    seen: dict[str, str] = {}
    for ref in refs:
        try:
            finished.append(_score_one(ref, loader, listed(methods), out, options, seen, len(refs) > 1))
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
        acquisition([run.path for run in finished], name)
    return read_runs(run.path for run in finished)


class _Suites:
    """The suites of a call: references checked at once, items loaded when a model has passed, and only once."""

    def __init__(self, refs: Sequence[str], options: ScoreOptions) -> None:
        if not refs:
            raise UsageError("no suite given", place="--suite", hint="see `antlm-bench list suites`")
        self.refs = list(dict.fromkeys(member for ref in refs for member in suites.members(ref)))
        self.options = options
        self.loaded: list[Suite] | None = None
        self.error: BenchError | None = None

    def load(self, methods: Sequence[str]) -> list[Suite]:
        """Raises MethodNotSupported before any data are looked for."""
        for name in methods:
            if name != "causal" and any(tasks.is_task(ref) and tasks.whole(ref) for ref in self.refs):
                refuse_to_roll(name, "--method")
        if self.loaded is None:
            o = self.options
            try:
                columns = {ref: columns_of(ref, self.refs, o.columns) for ref in self.refs}
                self.loaded = distinct(
                    suites.load(ref, limit=o.limit, allow_incomplete=o.allow_incomplete, columns=columns[ref])
                    for ref in self.refs
                )
            except BenchError as error:
                self.error = error
                raise
        return self.loaded


def _score_one(
    ref: str,
    loader: _Suites,
    methods: Sequence[str],
    out: str | Path | None,
    options: ScoreOptions,
    seen: dict[str, str],
    several: bool,
) -> Run:
    opening = open_checkpoint if options.engine == "native" else open_foreign
    checkpoint: Checkpoint | Foreign = opening(ref, options.opening())
    alike: dict[Policy, list[str]] = {}  # methods that ask about the same texts share a reading of the model
    for name in _methods(methods, checkpoint):
        alike.setdefault(options.policy().of(find_method(name, checkpoint)), []).append(name)
    loaded = loader.load([name for names in alike.values() for name in names])
    weights = str(checkpoint.describe["weights"])
    twin = seen.setdefault(weights, checkpoint.name)
    remarks = [f"same weights as {twin}: this is not another checkpoint"] if twin != checkpoint.name else []
    remarks += opening_notes(checkpoint)
    folder = place(checkpoint.describe, out, several)
    with runs.Writer(folder, manifest(checkpoint.describe)) as writer:
        for suite, names in product(loaded, alike.values()):
            _score_suite(checkpoint, suite, names, writer, options, remarks)
    return read_run(folder)


def _methods(asked: Sequence[str], checkpoint: Checkpoint | Foreign) -> list[str]:
    """The methods of a checkpoint: those asked for, else its default; ALL stands for every one that it was made for."""
    made_for = checkpoint.trained_for or checkpoint.methods
    named = [each for name in asked for each in (made_for if name == ALL else [name])]
    return list(dict.fromkeys(named or [default_method(checkpoint, checkpoint.methods)]))


def _score_suite(
    checkpoint: Checkpoint | Foreign,
    suite: Suite,
    names: Sequence[str],
    writer: runs.Writer,
    options: ScoreOptions,
    remarks: Sequence[str],
) -> None:
    """Methods of one policy on one suite, those not there yet: chunk by chunk, one reading of the model for all."""
    words = suite.times is not None or suite.formulas is not None
    policy = options.policy().of(known(names[0])).on(suite.reduction, suite.verbatim, words)
    if policy.bos_before_context:
        checkpoint = checkpoint.with_bos_before_context(policy.bos_before_context)
    kind = kind_of(suite, policy)
    if policy.eos and kind.asks != "documents":
        checkpoint = checkpoint.with_scored_eos(policy.eos)
    _check_kind(checkpoint, suite, kind, names, options)
    facts = {name: _settings(checkpoint, suite, name, policy, options) for name in names}
    keys = {name: key(fact) for name, fact in facts.items()}
    if options.again:
        for name in names:
            writer.discard(suite.name, name)
    todo = [
        name for name in names if options.again or not writer.done(suite.name, name, keys[name], origin=suite.origin)
    ]
    if not todo:
        return
    methods = [find_method(name, checkpoint) for name in todo]
    items = multiple_choice.as_asked(suite.items, policy, checkpoint)
    history = _self_test(checkpoint, items, methods)
    chunks = list(multiple_choice.chunks(items, methods))
    results: dict[str, list[Prediction]] = {name: [] for name in todo}
    scorer: Adaptive | None = None
    label = f"{checkpoint.name} {suite.name} {'+'.join(todo)}"
    with Progress(len(items), label) as progress:
        say_replaced(progress, writer, suite.origin, [facts[name] for name in todo])
        for number, chunk in enumerate(chunks):
            stored = {name: _stored(writer, suite, name, keys[name], number, chunk) for name in todo}
            # A chunk is computed for all methods or none, so that a resumed run batches as an unbroken one does.
            if any(part is None for part in stored.values()):
                if options.precision == "adaptive" and scorer is None and isinstance(checkpoint, Checkpoint):
                    scorer = Adaptive(quicker(checkpoint), checkpoint).calibrated(items, methods)
                made = kind.predict(scorer or checkpoint, chunk, methods, _Ticker(progress, len(chunk)))
                for name, predictions in zip(todo, made, strict=True):
                    writer.put(suite.name, name, keys[name], number, predictions)
                    stored[name] = predictions
            else:
                progress.skip(len(chunk))
            for name in todo:
                results[name] += stored[name] or []
    for name in todo:
        notes = [*suite.notes, *checkpoint.notes(name), *remarks]
        found = results.pop(name)
        settled = suite.judge.settled(found) if suite.judge and suite.judge.wholes else None
        summary = kind.summarize(settled or found, suite=suite.name, method=name, notes=notes)
        cell = Cell(suite.name, name, keys[name], facts[name], summary, history=history, origin=suite.origin)
        writer.finish(cell, len(chunks), settled)


def _check_kind(
    checkpoint: Checkpoint | Foreign, suite: Suite, kind: Kind, names: Sequence[str], options: ScoreOptions
) -> None:
    """Refuse what this kind of suite asks for and the precision, engine or methods cannot answer."""
    if options.precision == "adaptive" and kind.asks != "choices":
        hint = f"use --precision exact{AS_THEY_ARE.get(kind.asks, '')}"
        raise UsageError(f"{suite.name} asks for probabilities, not choices", place="--precision", hint=hint)
    if isinstance(checkpoint, Foreign) and kind.asks not in ("choices", "texts"):
        hint = f"use --engine native{AS_THEY_ARE.get(kind.asks, '')}"
        raise UsageError(
            f"{suite.name} asks for {kind.asks}, which no other engine answers", place="--engine", hint=hint
        )
    if kind.asks == "documents":
        for name in names:
            refuse_to_roll(name, "--method")


def _self_test(checkpoint: Checkpoint | Foreign, items: Sequence[Item], methods: Sequence[Method]) -> dict[str, Any]:
    """Compare our engine with the model's plain forward on texts of these items; what was found, for the cell."""
    if isinstance(checkpoint, Foreign):
        return {}
    tested = checkpoint.test_on([option.text for item in items for option in item.options], methods)
    return {"self_test": tested.record(), "shortcuts": checkpoint.engine.shortcuts}


def _stored(
    writer: runs.Writer, suite: Suite, name: str, key: str, number: int, chunk: Sequence[Item]
) -> list[Prediction] | None:
    """A chunk of an earlier call, if it holds these very items: beside other methods chunks had another size."""
    found = writer.chunk(suite.name, name, key, number)
    return found if found is not None and [p.id for p in found] == [item.id for item in chunk] else None


class _Ticker:
    """Shares of a chunk's work, as whole items of a progress bar."""

    def __init__(self, progress: Progress, items: int) -> None:
        self.progress, self.items, self.share, self.told = progress, items, 0.0, 0

    def __call__(self, share: float) -> None:
        self.share += share
        now = min(self.items, round(self.share * self.items))
        self.progress.advance(now - self.told)
        self.told = now


def _settings(
    checkpoint: Checkpoint | Foreign, suite: Suite, method: str, policy: Policy, options: ScoreOptions
) -> dict[str, Any]:
    """All that the predictions and the summary of a cell depend on; stored beside them, and hashed into the key."""
    return {
        **settings(checkpoint),
        "suite": suite.name,
        "suite_version": suite.version,
        "suite_digest": suite.digest,
        "method": method,
        "precision": options.precision,
        "ties": policy.ties,
        "reduction": policy.reduction,
        "context": policy.context,
        "compat": options.compat,
        "limit": options.limit,
        "conventions": CONVENTIONS,
        # No keys of their own for ours: runs from before there was a choice stay valid.
        **({"judge": suite.judge.facts()} if suite.judge else {}),
        **policy.settings(rated=suite.metric == "spearman"),
        **({} if options.engine == "native" else {"engine": peer_version(options.engine)}),
    }
