"""Task types: one `TaskType` per kind of suite, with all that the package knows about it.

A declaration in tasks/*.toml names its task type in the key `kind`, for a few of them together with
other keys (SuiteDeclaration.task_type). Data files (pairs, SyntaxGym) and lm-eval tasks have no
declaration: `TaskType.matches` recognises the argument of --suite. `TASK_TYPES` holds the shipped
task types (suites/shipped_task_types.py) and those of packages (docs/how-to/extending.md).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from antlm_bench.declarations import (
    find_declaration,
    is_shipped,
    list_declarations,
    parse_toml,
    read_declarations,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import BenchError, DeclarationError, UsageError
from antlm_bench.prediction_schema import CHOICES, PredictionSchema
from antlm_bench.printable import format_count, make_printable
from antlm_bench.registry import RecordType, Registry, deferred
from antlm_bench.suites.declaration_types import SuiteDeclaration
from antlm_bench.suites.names import slugify_title
from antlm_bench.types import Item, ProgressCallback, Summary

if TYPE_CHECKING:
    from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.predictions import Predictions
    from antlm_bench.suites.formula import Formula

Facts = Mapping[str, Any]
"""Name of a fact -> its value, in the order in which the command `show` prints them."""
CatalogRow = dict[str, object]
"""Column -> value, a row of the table that the commands `list` and `data list` print. Numbers stay
int or float and are formatted later."""
Spec = TypeVar("Spec", bound=SuiteDeclaration)
USER_DEFAULTS = {"version": "user", "licence": "not stated", "citation": "not stated"}
"""Keys that a user's declaration may leave out, as well as `name` and `title`."""


@dataclass(frozen=True, slots=True)
class SuiteRequest:
    """A reference to a suite, and how much of it to load."""

    ref: str
    """A name of the catalog, a path to a TOML, CSV, TSV, JSONL, TXT or JSON file or to a folder of
    pairs, or lm-eval:TASK."""
    limit: int | None = None
    """Maximum number of items of each group of the last level of `Suite.groups`, taken from the
    start; None = all."""
    allow_incomplete: bool = False
    """Whether a suite may hold fewer items than its declaration expects."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column name that the loader expects -> column name in the user's file."""
    layout: str = ""
    """Layout of a user's file of pairs (suites.pair_layouts.LAYOUTS); "" = by the other settings
    and the file's extension (suites.pair_files.choose_format)."""
    good: str = ""
    """Which sentence of a user's file of pairs is right, where the file does not say: "first" or
    "second" of two lines, or the label of the right sentences."""


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
    """Label levels of the macro-average, outermost first: the headline is the unweighted mean over
    the groups of the first level, each of which is the mean over its groups of the next level.
    () = the headline is the mean over items."""
    items: tuple[Item, ...]
    digest: str
    """sha256 of `metric`, `groups`, `macro`, and every item's id, texts, spans, gold and labels."""
    task_type: str = "suite"
    """Name in TASK_TYPES; "suite" = multiple choice. This task type has the functions that predict
    and summarize the items."""
    notes: tuple[str, ...] = ()
    """Sentences that qualify the score."""
    reading_times: ReadingTimes | None = None
    """Human reading times, aligned with `items`; None for other suites."""
    tokenized_separately: bool = False
    """Whether a word is tokenized apart from its context (reading times of BabyLM 2025)."""
    formulas: Mapping[str, Formula] | None = None
    """SyntaxGym: name of a criterion -> its formula over the surprisals of regions."""
    task_metrics: TaskMetrics | None = None
    """lm-eval's metrics of the items. They are views beside our headline; with the task type
    "lm-eval" the first of them is the headline."""
    reduction: str = "sum"
    """Score by which the options of an item are compared: "sum" or "per-token", the sum or the mean
    of their log-probabilities. Means per character are only a view (metrics.records.REDUCTIONS).
    """
    has_delimiters: bool = False
    """Whether the texts are lm-eval requests, which contain lm-eval's target_delimiter between
    context and answer."""
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's files; () = a suite of the catalog or of lm-eval."""
    num_left_out: int | None = None
    """Number of items that the limit of the request left out; None = not counted. A limit that
    leaves none out is no limit."""

    def __repr__(self) -> str:
        """Return one line: name, kind, number of items and metric."""
        kind = make_printable(f"{self.name} ({self.task_type})")
        return f"<Suite {kind}: {format_count(len(self.items), 'item')}, {self.metric}>"


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
    tick: ProgressCallback | None = None
    """See ProgressCallback."""
    unigrams: Any = None
    """UnigramModel of a task type that `uses_unigrams`; None = there is none."""


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

predict_choices: PredictFunction = deferred("antlm_bench.scoring.suite_scoring:predict_choices")
summarize_choices: SummarizeFunction = deferred(
    "antlm_bench.scoring.suite_scoring:summarize_choices"
)


def build_suite_row(
    spec: Any, items: int | None = None, metric: str = "", command: str = "score"
) -> CatalogRow:
    """Return the row of a suite in `list suites`. Its column "by" names the command that computes
    the score.
    """
    metric = metric or str(getattr(spec, "metric", ""))
    return {
        "suite": spec.name,
        "by": command,
        "language": getattr(spec, "language", ""),
        "items": items,
        "metric": metric,
        "title": spec.title,
    }


def describe_declaration(spec: Any) -> Facts:
    """Return the facts that every declaration states, in reading order."""
    keys = ("version", "licence", "citation", "homepage", "metric")
    facts = {key: str(getattr(spec, key, "")) for key in keys}
    return facts | {"notes": "\n".join(spec.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskType:
    """One kind of suite. The defaults are those of multiple choice."""

    name: str
    """The task type's name: the value of `kind` in a TOML, of `Suite.task_type`, and the key in
    TASK_TYPES."""
    noun: str = "a suite that is scored"
    """What an error message calls a suite of this kind."""

    # How a suite of this kind is found and loaded.
    declaration: type[SuiteDeclaration] | None = None
    """Pydantic class of the TOMLs of this kind; None = no TOML declares such a suite."""
    matches: Callable[[str], bool] = lambda _ref: False
    """Return whether a reference other than a TOML (a data file, lm-eval:TASK) is of this kind."""
    members: Callable[[Any, str], Sequence[str]] = lambda _spec, _command: ()
    """(declaration, command) -> the suites of a collection that this command computes, or all its
    suites if the command is "". Returns () if the declaration is not a collection."""
    list_refs: Callable[[str], Sequence[str]] = lambda ref: [ref]
    """Split a reference that `matches` into one reference per suite: an lm-eval group into its
    tasks."""
    load: Callable[[SuiteRequest], Suite] | None = None
    """Load the items; None if `score` does not compute this kind."""

    # How it is scored.
    prediction_schema: PredictionSchema | None = CHOICES
    """Columns of the predictions; None for collections, which have none of their own."""
    predict: PredictFunction = predict_choices
    summarize: SummarizeFunction = summarize_choices
    check_methods: Callable[[str, Sequence[str]], None] = lambda _ref, _names: None
    """(reference, method names): raise MethodNotSupported before data are loaded."""
    scored_noun: str = "choices"
    """What is scored, in messages such as `toy scores words, which peers do not compute`."""
    depends_on_ranks_only: bool = True
    """Whether the metric depends only on the order of an item's scores, so that small rounding
    errors rarely matter. `--precision adaptive` and the command `noise` support only such suites.
    """
    supports_other_engines: bool = True
    """Whether peers can score it: `--engine minicons`, and those of the command `verify`."""
    native_only_reason: str = ""
    """Why only exact scores of the native engine will do. Appended to the hints `use --precision
    exact` and `use --engine native`."""
    scores_spans: bool = False
    """Whether words or regions within texts are scored. The rules of --compat about the context of
    a text (BOS, EOS, delimiter, joiner) do not apply then."""
    scores_documents: bool = False
    """Whether texts are whole documents, scored in windows. No EOS is scored then."""
    uses_unigrams: bool = False
    """Whether the texts are also scored with a unigram model, if `score --unigrams` names one."""
    needs_checkpoint_series: bool = False
    """Whether the score is computed from the runs of a model's checkpoints."""

    planned_unit: str = "items"
    """What the command `power` plans: "items" (right or wrong), "seeds" of a training, or "" if it
    does not plan suites of this kind."""

    # How it is shown.
    command: str = "score"
    """Name of the command that computes the score; "" = none."""
    example_command: str = "antlm-bench score --model {model} --suite {suite}"
    """Command line that computes the score, shown in hints; "" for a collection."""
    missing_score_commands: str = "antlm-bench score --model {model} --suite {suite}{method}{out}"
    """Template of the command lines that add a missing score to a run folder. commands.report fills
    in {model}, {suite}, {tasks}, {method}, {attention}, {out} (`--out` and the run folder) and
    {runs_dir} (the folder of the run folders).
    """
    listing: str = "suites"
    """Argument of the command `list` that lists these suites: suites or collections."""
    list_row: Callable[[Any], CatalogRow] = build_suite_row
    """Declaration -> its row in the table of `list`."""
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
        "acceptability": f"{_SHIPPED}:ACCEPTABILITY",
        "stimuli": f"{_SHIPPED}:STIMULI",
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
    """Read a TOML of tasks/. Raises DeclarationError for an unknown `kind` or a wrong key.

    A process reads each shipped file once.
    """
    return _read_shipped_file(path) if is_shipped(path) else _read_declaration_file(path)


@cache
def _read_shipped_file(path: Path) -> SuiteDeclaration:
    return _read_declaration_file(path)


def _read_declaration_file(path: Path) -> SuiteDeclaration:
    tables = parse_toml(path)
    kind = tables.get("kind")
    if isinstance(kind, str) and kind in TASK_TYPES and (model := TASK_TYPES[kind].declaration):
        if not is_shipped(path):
            tables = {**_list_defaults(model, path), **tables}
        return validate_tables(tables, model, path)
    message = f"unknown kind {kind!r}" if "kind" in tables else "the key `kind` is missing"
    kinds = [record.name for record in TASK_TYPES if record.declaration]
    suggestion = suggest_name(kind, kinds) if isinstance(kind, str) else ""
    names = ", ".join(f'"{name}"' for name in kinds)
    raise DeclarationError(
        message, location=f"{path}: kind", hint=suggestion or f"it is one of {names}"
    )


def _list_defaults(model: type[SuiteDeclaration], path: Path) -> dict[str, str]:
    """Return the values of the keys that a user's declaration leaves out."""
    name = slugify_title(path.stem)
    defaults = {**USER_DEFAULTS, "title": path.stem} | ({"name": name} if name else {})
    return {key: value for key, value in defaults.items() if key in model.model_fields}


def read_catalog() -> tuple[dict[str, SuiteDeclaration], dict[str, BenchError]]:
    """Read the suites and collections of the catalog, as `declarations.read_declarations` does."""
    return read_declarations("tasks", lambda _, path: read_declaration_file(path))


def read_declaration(ref: str) -> tuple[SuiteDeclaration, Path]:
    """Return the declaration of a catalog name or a TOML path, and the folder of its file.

    Raises DeclarationError; UsageError for a file that is a suite without a declaration.
    """
    if record := match_task_type(ref):
        raise UsageError(
            f"{ref!r} is {record.noun}, without a declaration of its own",
            location="--suite",
            hint=fill_command(record.example_command, [ref]),
        )
    path = find_declaration("tasks", ref)
    return read_declaration_file(path), path.parent


def read_declaration_of_type(
    ref: str, spec_class: type[Spec], *, location: str = "--suite", hint: str = ""
) -> tuple[Spec, Path]:
    """Return the declaration of a suite of a certain kind, and the folder of its file.

    Raises UsageError with `hint` for a declaration of another kind. The default hint is the command
    that computes the suite.
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


def read_suite_with_files(ref: str) -> tuple[Any, Path] | None:
    """Return the declaration of a suite whose table [data] lists files, and the folder of its TOML.

    None for a data file or lm-eval:TASK, which have no declaration, and for a declaration without
    files.
    """
    if match_task_type(ref):
        return None
    spec, folder = read_declaration(ref)
    return (spec, folder) if getattr(spec, "data", None) else None


def suggest_commands(ref: str, spec: SuiteDeclaration) -> str:
    """Return the command lines that compute the score of a suite, as a hint."""
    record = TASK_TYPES[spec.task_type]
    # A collection has no command of its own: its members are computed.
    suites = [ref] if record.example_command else record.members(spec, "")
    suites_by_line: dict[str, list[str]] = {}
    for suite in suites:
        line = TASK_TYPES[read_declaration(suite)[0].task_type].example_command
        suites_by_line.setdefault(line, []).append(suite)
    return "; ".join(fill_command(line, names) for line, names in suites_by_line.items())


def fill_command(line: str, suites: Sequence[str]) -> str:
    """Return an example command for some suites, as it can be pasted into a shell."""
    return line.format(model="CKPT", suite=shlex.quote(",".join(suites)))


def match_task_type(ref: str) -> TaskType | None:
    """Return the task type of a suite without a declaration: a data file, or lm-eval:TASK."""
    if ref.endswith(".toml") or ref in list_declarations("tasks"):
        return None
    return next((record for record in TASK_TYPES if record.matches(ref)), None)


def find_task_type(ref: str) -> TaskType:
    """Return the task type of a reference. Raises DeclarationError for an unknown suite."""
    return match_task_type(ref) or TASK_TYPES[read_declaration(ref)[0].task_type]
