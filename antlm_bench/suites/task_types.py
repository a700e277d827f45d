"""Task types: one `TaskType` per kind of suite, with all that the package knows about it.

A declaration in tasks/*.toml names its task type in the key `kind` (for the few exceptions see
SuiteDeclaration.task_type). Files (pairs, SyntaxGym) and tasks of lm-eval have no declaration; a
task type matches their reference. `TASK_TYPES` holds the task types that we ship
(suites/shipped_task_types.py) and those of installed packages (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from antlm_bench.declarations import (
    catalog,
    find_declaration,
    parse_toml,
    shipped_declaration,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import BenchError, DeclarationError, UsageError
from antlm_bench.prediction_schema import CHOICES, PredictionSchema
from antlm_bench.registry import RecordType, Registry, deferred
from antlm_bench.suites.declaration_types import SuiteDeclaration
from antlm_bench.types import Item, Summary

if TYPE_CHECKING:
    from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.predictions import Predictions
    from antlm_bench.suites.formula import Formula

Facts = Mapping[str, Any]
CatalogRow = dict[str, object]
"""A row of the `list` or `data` table. Numbers stay int or float and are formatted later."""
Spec = TypeVar("Spec", bound=SuiteDeclaration)


@dataclass(frozen=True, slots=True)
class SuiteRequest:
    """A reference to a suite, and how much of it to load."""

    ref: str
    """A name of the catalog, a path to a TOML, CSV, TSV, JSONL or JSON file, or lm-eval:TASK."""
    limit: int | None = None
    """Items per finest group, counted from the first; None = all."""
    allow_incomplete: bool = False
    """Whether a suite may hold fewer items than its declaration expects."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column name that the loader expects -> column name in the user's file."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A loaded suite: its items in file order, and the settings that its score needs."""

    name: str
    version: str
    title: str
    licence: str
    metric: str
    groups: tuple[str, ...]
    """Label levels that group the items, coarse to fine."""
    macro: tuple[str, ...]
    """Label levels that the headline averages over, outermost first; () = the mean over items."""
    items: tuple[Item, ...]
    digest: str
    """sha256 of metric, groups, averaging, and every item's id, texts, spans, gold and labels."""
    task_type: str = "suite"
    """Name in TASK_TYPES. That task type predicts and summarizes the items."""
    notes: tuple[str, ...] = ()
    """Sentences that qualify the score."""
    reading_times: ReadingTimes | None = None
    """Human reading times, aligned with `items`; None for other suites."""
    tokenized_separately: bool = False
    """Whether a word is tokenized apart from its context (reading times of BabyLM 2025)."""
    formulas: Mapping[str, Formula] | None = None
    """SyntaxGym: the label of a prediction -> its formula."""
    task_metrics: TaskMetrics | None = None
    """Metrics that lm-eval computes for the items, besides or instead of ours."""
    reduction: str = "sum"
    """How an option's log-probabilities are normalised: sum, per-token or per-character."""
    has_delimiters: bool = False
    """Whether the texts are lm-eval requests, which contain the delimiter after the context."""
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's files; () = a suite of the catalog or of lm-eval."""


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A chunk of items to be scored."""

    scorer: Any
    """The model: a Checkpoint, AdaptiveScorer or MiniconsCheckpoint."""
    suite: Suite
    items: Sequence[Item]
    """Items of the suite, under `conventions`."""
    methods: Sequence[Any]
    """scoring.methods.Method records. All of them score the items."""
    conventions: Any
    """ScoringConventions of the suite."""
    tick: Callable[[float], None] | None = None
    """Called with the share (0..1) of the work that has just been done."""


@dataclass(frozen=True, slots=True)
class SummarizeRequest:
    """The predictions of a whole suite under one method, to be summarized."""

    suite: Suite
    predictions: Predictions
    method: str
    conventions: Any
    """ScoringConventions of the suite."""
    notes: Sequence[str] = ()
    """Sentences for a reader of the score."""


PredictFunction = Callable[[PredictRequest], "list[Predictions]"]
"""Returns the predictions of the items under each method, with the columns of the task type's
`prediction_schema`."""
SummarizeFunction = Callable[[SummarizeRequest], Summary]

predict_options: PredictFunction = deferred("antlm_bench.scoring.suite_scoring:predict_options")
summarize_options: SummarizeFunction = deferred(
    "antlm_bench.scoring.suite_scoring:summarize_options"
)


def no_match(ref: str) -> bool:
    """Return False. The default `matches`, for kinds whose suites are all declared in TOMLs."""
    del ref
    return False


def no_members(spec: Any, command: str = "") -> Sequence[str]:
    """Return (). The default `members`, for declarations of a single suite."""
    del spec, command
    return ()


def accept_methods(ref: str, method_names: Sequence[str]) -> None:
    """Accept every scoring method."""


def build_suite_row(
    spec: Any, items: int | None = None, metric: str = "", command: str = "score"
) -> CatalogRow:
    """Return the row of a suite in `list suites`."""
    metric = metric or str(getattr(spec, "metric", ""))
    return {
        "suite": spec.name,
        "by": command,
        "items": items,
        "metric": metric,
        "title": spec.title,
    }


def describe_declaration(spec: Any) -> Facts:
    """Return the facts that every declaration states, in reading order."""
    names = ("version", "licence", "citation", "homepage", "metric")
    facts = {name: str(getattr(spec, name, "")) for name in names}
    return facts | {"notes": "\n".join(spec.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskType:
    """One kind of suite. The defaults are those of multiple choice."""

    name: str
    """Value of the key `kind` in a TOML."""
    noun: str = "a suite that is scored"
    """What an error message calls a suite of this kind."""

    # How a suite of this kind is found and loaded.
    declaration: type[SuiteDeclaration] | None = None
    """Pydantic class of the TOMLs of this kind; None = no TOML declares such a suite."""
    matches: Callable[[str], bool] = no_match
    """Return whether a reference other than a TOML (a data file, lm-eval:TASK) is of this kind."""
    members: Callable[[Any, str], Sequence[str]] = no_members
    """(declaration, command) -> the suites of a collection that `command` computes, "" = all of
    them; () for a single suite."""
    list_refs: Callable[[str], Sequence[str]] = lambda ref: [ref]
    """A matching reference -> the references of its suites: an lm-eval group -> its tasks."""
    load: Callable[[SuiteRequest], Suite] | None = None
    """Load the items; None if `score` does not compute this kind."""

    # How it is scored.
    prediction_schema: PredictionSchema | None = CHOICES
    """Columns of the predictions; None for collections, which have none of their own."""
    predict: PredictFunction = predict_options
    summarize: SummarizeFunction = summarize_options
    check_methods: Callable[[str, Sequence[str]], None] = accept_methods
    """(reference, method names): raise MethodNotSupported before data are loaded."""
    answer_noun: str = "choices"
    """Noun for the model's answers in error messages."""
    compares_options: bool = True
    """Whether the metric depends only on the order of an item's scores, so that small rounding
    errors rarely matter. `--precision adaptive` and `noise` support only such suites.
    """
    any_engine: bool = True
    """Whether other engines (`--engine minicons`, `verify`) can score it."""
    exact_reason: str = ""
    """Reason at the end of the hints `use --precision exact` and `use --engine native`."""
    scores_spans: bool = False
    """Whether spans within texts are scored. Other tools' context rules do not apply then."""
    scores_documents: bool = False
    """Whether texts are whole documents, scored in windows. No EOS is scored then."""
    needs_checkpoint_series: bool = False
    """Whether the score is computed from the runs of a model's checkpoints."""

    # How it is shown.
    command: str = "score"
    """Name of the command that computes the score; "" = none."""
    example_command: str = "antlm-bench score --model {model} --suite {suite}"
    """Command line that computes the score, shown in hints; "" for a collection."""
    completion_commands: str = "antlm-bench score --model {model} --suite {suite}{method}{out}"
    """Template of the command lines that add a missing score to a run folder. Placeholders:
    {model}, {suite}, {tasks}, {method}, {attention}, {out}, and {out_of_all} (the folder of all
    runs), see commands.report.
    """
    listing: str = "suites"
    """Name of the `list` table that shows it: suites or collections."""
    list_row: Callable[[Any], CatalogRow] = build_suite_row
    """Declaration -> its row in that table."""
    describe: Callable[[Any], Facts] = describe_declaration
    """Declaration -> the facts that `show` prints, in reading order."""


def _find_wrong_suite(suite: Any, _: SuiteRequest) -> str:
    return "" if isinstance(suite, Suite) else f"a {type(suite).__name__}, not a Suite"


def _find_wrong_predictions(predictions: Any, request: PredictRequest) -> str:
    if not isinstance(predictions, list | tuple):
        return f"a {type(predictions).__name__}, not a list of Predictions"
    expected, actual = len(request.methods), len(predictions)
    return "" if actual == expected else f"{actual} Predictions for {expected} methods"


def _find_wrong_summary(summary: Any, _: SummarizeRequest) -> str:
    return "" if isinstance(summary, Summary) else f"a {type(summary).__name__}, not a Summary"


_SHIPPED = "antlm_bench.suites.shipped_task_types"
TASK_TYPES: Registry[TaskType] = Registry(
    "kind of suite",
    "antlm_bench.task_types",
    {
        "suite": f"{_SHIPPED}:MULTIPLE_CHOICE",
        "surprisal": f"{_SHIPPED}:SURPRISAL",
        "reading-times": f"{_SHIPPED}:READING_TIMES",
        "syntaxgym": f"{_SHIPPED}:SYNTAXGYM",
        "lm-eval": f"{_SHIPPED}:LM_EVAL",
        "lm-eval-documents": f"{_SHIPPED}:LM_EVAL_DOCUMENTS",
        "classification": f"{_SHIPPED}:CLASSIFICATION",
        "collection": f"{_SHIPPED}:COLLECTION",
        "acquisition": f"{_SHIPPED}:ACQUISITION",
    },
    "antlm-bench list task-types",
    RecordType(
        TaskType,
        {
            "load": _find_wrong_suite,
            "predict": _find_wrong_predictions,
            "summarize": _find_wrong_summary,
        },
    ),
)


def read_declaration_file(path: Path) -> SuiteDeclaration:
    """Read a TOML of tasks/. Raises DeclarationError for an unknown `kind` or a wrong key."""
    tables = parse_toml(path)
    kind = tables.get("kind")
    if isinstance(kind, str) and kind in TASK_TYPES and (model := TASK_TYPES[kind].declaration):
        return validate_tables(tables, model, path)
    message = f"kind is {kind!r}" if "kind" in tables else "the key `kind` is missing"
    kinds = [record.name for record in TASK_TYPES if record.declaration]
    close = suggest_name(kind, kinds) if isinstance(kind, str) else ""
    names = ", ".join(f'"{name}"' for name in kinds)
    raise DeclarationError(message, location=f"{path}: kind", hint=close or f"it is one of {names}")


def read_catalog() -> tuple[dict[str, SuiteDeclaration], dict[str, BenchError]]:
    """Read all declarations of the catalog. Return name -> declaration, and name -> error.

    Only declarations of users may be invalid: they do not hide the others. Raises the error of a
    shipped one.
    """
    specs: dict[str, SuiteDeclaration] = {}
    errors: dict[str, BenchError] = {}
    for name, path in catalog("tasks").items():
        try:
            specs[name] = read_declaration_file(path)
        except BenchError as error:
            if path == shipped_declaration("tasks", name):
                raise
            errors[name] = error
    return specs, errors


def read_declaration(ref: str) -> tuple[SuiteDeclaration, Path]:
    """Return the declaration of a catalog name or a TOML path, and the folder of its file."""
    path = find_declaration("tasks", ref)
    return read_declaration_file(path), path.parent


def read_declaration_of_type(
    ref: str, spec_class: type[Spec], *, location: str = "--suite", hint: str = ""
) -> tuple[Spec, Path]:
    """Return the declaration of a suite of a certain kind, and the folder of its file.

    Raises UsageError for a declaration of another kind. hint: the hint of that error, by default
    the command that computes the suite.
    """
    spec, folder = read_declaration(ref)
    if isinstance(spec, spec_class):
        return spec, folder
    actual = TASK_TYPES[spec.task_type]
    wanted = next(record.noun for record in TASK_TYPES if record.declaration is spec_class)
    raise UsageError(
        f"{ref!r} is {actual.noun}, not {wanted}",
        location=location,
        hint=hint or suggest_commands(ref, spec),
    )


def suggest_commands(ref: str, spec: SuiteDeclaration) -> str:
    """Return the command lines that compute the score of a suite, as a hint."""
    record = TASK_TYPES[spec.task_type]
    # A collection has no command of its own: its members are computed.
    suites = [ref] if record.example_command else record.members(spec, "")
    suites_by_line: dict[str, list[str]] = {}
    for suite in suites:
        line = TASK_TYPES[read_declaration(suite)[0].task_type].example_command
        suites_by_line.setdefault(line, []).append(suite)
    lines = (
        line.format(model="CKPT", suite=",".join(names)) for line, names in suites_by_line.items()
    )
    return "; ".join(lines)


def find_task_type(ref: str) -> TaskType:
    """Return the task type of a reference. Raises DeclarationError for an unknown suite."""
    if not ref.endswith(".toml") and ref not in catalog("tasks"):
        for record in TASK_TYPES:
            if record.matches(ref):
                return record
    return TASK_TYPES[read_declaration(ref)[0].task_type]
