"""Task types: what the package knows about one kind of suite, in one record per kind.

The declarations in tasks/*.toml name their task type in the key `kind`; files (pairs, SyntaxGym)
and tasks of lm-eval are recognised by their reference. `TASK_TYPES` holds the records that we ship
(suites/shipped_task_types.py) and those of installed packages (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from antlm_bench.declarations import (
    catalog,
    find_declaration,
    parse_toml,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import DeclarationError, UsageError
from antlm_bench.registry import Registry, deferred
from antlm_bench.suites.declaration_types import SuiteDeclaration
from antlm_bench.types import Item, Prediction, Summary

if TYPE_CHECKING:
    from antlm_bench.lm_eval_bridge.task_metrics import TaskMetrics
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.suites.formula import Formula

Facts = Mapping[str, Any]
CatalogRow = dict[str, object]
"""A row of `list` or `data`: numbers are numbers."""
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
    """Our column -> the column of the user's file."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A loaded suite: its items in file order, and what a score needs of its declaration."""

    name: str
    version: str
    title: str
    licence: str
    metric: str
    groups: tuple[str, ...]
    """Labels that group the items, coarse to fine."""
    macro: tuple[str, ...]
    """Levels that the headline averages over, outermost first; () = the mean over items."""
    items: tuple[Item, ...]
    digest: str
    """sha256 of metric, groups, averaging, and every item's id, texts, spans, gold and labels."""
    task_type: str = "suite"
    """The name of a record of TASK_TYPES, which predicts and summarizes the items."""
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the number needs."""
    times: ReadingTimes | None = None
    """Reading times of people, row by row beside the items."""
    tokenized_separately: bool = False
    """Whether a word is tokenized apart from its context (reading times of BabyLM 2025)."""
    formulas: Mapping[str, Formula] | None = None
    """SyntaxGym: the label of a prediction -> its formula."""
    task_metrics: TaskMetrics | None = None
    """Metrics that lm-eval computes for the items, besides or instead of ours."""
    reduction: str = "sum"
    """Which score of an option decides: its sum of log-probabilities, or their mean per token."""
    verbatim: bool = False
    """Whether texts are another tool's requests, with their delimiters."""
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's own files; () = a suite of the catalog or of lm-eval."""


class PredictFunction(Protocol):
    """Ask a model about a chunk of items."""

    def __call__(
        self,
        scorer: Any,
        suite: Suite,
        items: Sequence[Item],
        methods: Sequence[Any],
        conventions: Any,
        tick: Callable[[float], None] | None = None,
    ) -> list[list[Prediction]]:
        """Return one list of predictions per method.

        scorer: a Checkpoint, AdaptiveScorer or MiniconsCheckpoint. methods: records of
        scoring.probes. conventions: ScoringConventions of this suite. tick: is called with the
        share (0..1) of the work that has just been done.
        """
        ...


class SummarizeFunction(Protocol):
    """Summarize the predictions of one suite under one method."""

    def __call__(
        self,
        suite: Suite,
        predictions: Sequence[Prediction],
        *,
        method: str,
        conventions: Any,
        notes: Sequence[str],
    ) -> Summary: ...


predict_options: PredictFunction = deferred("antlm_bench.scoring.suite_scoring:predict_options")
summarize_options: SummarizeFunction = deferred(
    "antlm_bench.scoring.suite_scoring:summarize_options"
)


def no_match(ref: str) -> bool:
    """Match no reference: the task type is reached through the TOMLs of its kind only."""
    del ref
    return False


def no_parts(spec: Any, command: str = "") -> Sequence[str]:
    """Return no parts: the declaration is of one suite."""
    del spec, command
    return ()


def accept_methods(ref: str, method_names: Sequence[str]) -> None:
    """Accept every scoring method."""


def list_suite(
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
    """Return the facts that any declaration holds, in reading order."""
    names = ("version", "licence", "citation", "homepage", "metric")
    facts = {name: str(getattr(spec, name, "")) for name in names}
    return facts | {"notes": "\n".join(spec.notes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskType:
    """One kind of suite. The defaults are those of multiple choice."""

    name: str
    """What the key `kind` of a TOML says."""
    noun: str = "a suite that is scored"
    """What an error message calls a suite of this kind."""

    # How a suite of this kind is found and loaded.
    declaration: type[SuiteDeclaration] | None = None
    """The model of a TOML of this kind; None = no TOML declares one."""
    matches: Callable[[str], bool] = no_match
    """Whether a reference that is no TOML names a suite of this kind."""
    parts: Callable[[Any, str], Sequence[str]] = no_parts
    """(declaration, command or "" for all) -> the suites that it consists of; () = itself."""
    expand: Callable[[str], Sequence[str]] = lambda ref: [ref]
    """A matching reference -> the references of the suites that it names."""
    load: Callable[[SuiteRequest], Suite] | None = None
    """Load the items; None where `score` does not compute this kind."""

    # How it is scored.
    predict: PredictFunction = predict_options
    summarize: SummarizeFunction = summarize_options
    check_methods: Callable[[str, Sequence[str]], None] = accept_methods
    """(reference, method names): raise MethodNotSupported before data are loaded."""
    asks_for: str = "choices"
    """What a model is asked for, as error messages say it."""
    compares_options: bool = True
    """Whether only the order of an item's scores counts, so that small rounding errors rarely
    matter. `--precision adaptive` and `noise` need it.
    """
    any_engine: bool = True
    """Whether other engines (`--engine minicons`, `verify`) can score it."""
    exact_reason: str = ""
    """Why only exact scores of our engine will do, as the end of a hint."""
    scores_spans: bool = False
    """Whether spans within texts are scored: other tools' rules for contexts do not apply."""
    scores_documents: bool = False
    """Whether texts are whole documents, read in windows: no EOS is scored."""
    over_checkpoints: bool = False
    """Whether the number is derived from the runs of a model's checkpoints."""

    # What the user is told about it.
    command: str = "score"
    """The command that computes the number; "" = none."""
    command_line: str = "antlm-bench score --model {model} --suite {suite}"
    """How to compute the number."""
    completion: str = "antlm-bench score --model {model} --suite {suite}{method}{out}"
    """The lines that add the number to a run folder; templates of {model}, {suite}, {tasks},
    {method}, {attention}, {out} and {out_of_all}, see commands.report.
    """
    listing: str = "suites"
    """The table of `list` that shows it: suites or collections."""
    list_row: Callable[[Any], CatalogRow] = list_suite
    """Declaration -> its row in that table."""
    describe: Callable[[Any], Facts] = describe_declaration
    """Declaration -> facts in reading order, for `show`."""


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
)


def read_spec(path: Path) -> SuiteDeclaration:
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


def read_declaration(ref: str) -> tuple[SuiteDeclaration, Path]:
    """Return what a name of the catalog or a TOML declares, and the folder of that file."""
    path = find_declaration("tasks", ref)
    return read_spec(path), path.parent


def read_declaration_as(
    ref: str, model: type[Spec], *, location: str = "--suite", hint: str = ""
) -> tuple[Spec, Path]:
    """Return the declaration of a suite of a certain kind, and its folder.

    hint: what to do about another kind, by default how such a suite is computed. Raises
    UsageError for a declaration of another kind.
    """
    spec, folder = read_declaration(ref)
    if isinstance(spec, model):
        return spec, folder
    actual = TASK_TYPES[spec.task_type]
    wanted = next(record.noun for record in TASK_TYPES if record.declaration is model)
    raise UsageError(
        f"{ref!r} is {actual.noun}, not {wanted}",
        location=location,
        hint=hint or describe_use(ref, spec),
    )


def describe_use(ref: str, spec: SuiteDeclaration) -> str:
    """Return how the number of a declaration is computed, as a hint."""
    record = TASK_TYPES[spec.task_type]
    parts = [ref] if record.command_line else record.parts(spec, "")
    parts_by_line: dict[str, list[str]] = {}
    for part in parts:
        line = TASK_TYPES[read_declaration(part)[0].task_type].command_line
        parts_by_line.setdefault(line, []).append(part)
    lines = (
        line.format(model="CKPT", suite=",".join(names)) for line, names in parts_by_line.items()
    )
    return "; ".join(lines)


def find_task_type(ref: str) -> TaskType:
    """Return the task type of a reference. Raises DeclarationError for an unknown suite."""
    if not ref.endswith(".toml") and ref not in catalog("tasks"):
        for record in TASK_TYPES:
            if record.matches(ref):
                return record
    return TASK_TYPES[read_declaration(ref)[0].task_type]
