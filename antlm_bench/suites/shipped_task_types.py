"""The task types that we ship, and what `list` and `show` say of their declarations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from antlm_bench.lm_eval_bridge import tasks
from antlm_bench.metrics.records import ACCEPTABILITY_MEASURES
from antlm_bench.metrics.records import ACQUISITION as ACQUISITION_METRIC
from antlm_bench.prediction_schema import UNIGRAM, declare_columns, declare_task_values
from antlm_bench.registry import deferred
from antlm_bench.suites import loader, sources, syntaxgym
from antlm_bench.suites.acceptability import AcceptabilitySpec
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.classification import ClassificationSpec, TaskSpec
from antlm_bench.suites.collection import CollectionSpec, MemberSpec
from antlm_bench.suites.pair_files import is_pairs_ref
from antlm_bench.suites.spec import ExampleSpec, SuiteSpec, SyntaxGymSpec
from antlm_bench.suites.stimuli_spec import StimuliSpec
from antlm_bench.suites.task_types import (
    TASK_TYPES,
    CatalogRow,
    Facts,
    TaskType,
    build_suite_row,
    fill_command,
)

_SCORING = "antlm_bench.scoring.suite_scoring"
MAX_MEMBERS_LISTED = 12  # names in a cell of `list collections`
NO_GOLD = "0: no answer is right"
NO_PRED = "0: no answer is preferred to another one"
_require_causal_method = deferred("antlm_bench.lm_eval_bridge.rolling:require_causal_method")


# ---- suites that are scored


def _count_items(spec: SuiteSpec) -> int | None:
    """Return the items of the complete suite, None where its declaration does not say."""
    if spec.expect:
        return spec.expect.items
    return spec.grammar.pairs * len(spec.grammar.paradigm) if spec.grammar else None


def _list_suite(spec: SuiteSpec) -> CatalogRow:
    return build_suite_row(spec, _count_items(spec), spec.metric)


def _describe_origin(spec: SuiteSpec | SyntaxGymSpec | ClassificationSpec) -> Facts:
    names = ("version", "language", "licence", "citation", "homepage")
    return {name: getattr(spec, name) for name in names}


def _describe_suite(spec: SuiteSpec) -> Facts:
    rule = f", by log-probability {spec.reduction}" if spec.reduction != "sum" else ""
    return {
        **_describe_origin(spec),
        "items": _count_items(spec),
        "metric": spec.metric + rule,
        "headline": describe_aggregation(spec.metric, spec.macro),
        "groups": " > ".join(spec.groups),
        "example": _format_example(spec.example[0]) if spec.example else "",
        "data": sources.describe_files(spec),
        "notes": "\n".join(spec.notes),
    }


def describe_aggregation(metric: str, macro: Sequence[str]) -> str:
    """Return what the headline averages, as a sentence. metric, macro: as in SuiteSpec."""
    if not macro:
        return f"{metric} over all items"
    *outer, innermost = macro
    sentence = (
        f"{metric} over the items of each {innermost}, then the unweighted mean over {innermost}s"
    )
    return sentence + "".join(f", then over {level}s" for level in reversed(outer))


def _list_syntaxgym(spec: SyntaxGymSpec) -> CatalogRow:
    return build_suite_row(spec, metric="accuracy")


def _describe_syntaxgym(spec: SyntaxGymSpec) -> Facts:
    return {
        **_describe_origin(spec),
        "metric": "accuracy: an item is right if its formula holds",
        "headline": describe_aggregation("accuracy", spec.macro),
        "groups": " > ".join(spec.groups),
        "data": sources.describe_files(spec),
        "notes": "\n".join(spec.notes),
    }


def _format_example(example: ExampleSpec) -> str:
    """Return the options of a self-test, one per line, the right one marked by "+"."""
    return "\n".join(
        f"{'+' if index == example.gold else '-'} {text}"
        for index, text in enumerate(example.options)
    )


def _check_lm_eval_methods(ref: str, method_names: Sequence[str]) -> None:
    if tasks.requests_documents(ref):
        for name in method_names:
            _require_causal_method(name, "--method")


def _describe_judgements(spec: AcceptabilitySpec) -> Facts:
    measure = f"{spec.metric} of {ACCEPTABILITY_MEASURES[spec.reduction]}"
    example = ""
    if spec.example:
        example = "*" * (spec.example[0].gold == 0) + spec.example[0].options[0]
    facts = {"metric": measure, "headline": f"{measure} over all items", "example": example}
    return {**_describe_suite(spec), **facts}


MULTIPLE_CHOICE = TaskType(
    name="suite",
    declaration=SuiteSpec,
    matches=is_pairs_ref,
    load=loader.load_declared_suite,
    list_row=_list_suite,
    describe=_describe_suite,
)
SURPRISAL = TaskType(
    name="surprisal",
    load=loader.load_declared_suite,
    prediction_schema=declare_columns(
        gold=NO_GOLD,
        pred=NO_PRED,
        scores="log-probability of the word or continuation, given its context (nats)",
        tokens="number of tokens that the score sums over",
        characters="number of scored characters",
        more=declare_task_values("values of the lm-eval task's own metrics, nan = no value"),
    ),
    scored_noun="texts",
    depends_on_ranks_only=False,
    list_row=_list_suite,
    describe=_describe_suite,
)
ACCEPTABILITY = TaskType(
    name="acceptability",
    declaration=AcceptabilitySpec,
    load=loader.load_declared_suite,
    prediction_schema=declare_columns(
        gold="1: acceptable, 0: not",
        pred=NO_PRED,
        scores="log-probability of the sentence (nats)",
        tokens="number of tokens that the score sums over",
        characters="number of characters of the sentence",
        more=(UNIGRAM,),
    ),
    predict=deferred(f"{_SCORING}:predict_judgements"),
    summarize=deferred(f"{_SCORING}:summarize_metric"),
    scored_noun="sentences",
    depends_on_ranks_only=False,
    uses_unigrams=True,
    planned_unit="",
    list_row=_list_suite,
    describe=_describe_judgements,
)
READING_TIMES = TaskType(
    name="reading-times",
    load=loader.load_declared_suite,
    prediction_schema=declare_columns(
        gold=NO_GOLD,
        pred=NO_PRED,
        scores="log-probability (nats) of the word given its context, and of the word before it "
        "where there is one",
        tokens="number of tokens that each score sums over",
        characters="number of characters of each word",
    ),
    predict=deferred(f"{_SCORING}:predict_words"),
    summarize=deferred(f"{_SCORING}:summarize_reading_times"),
    scored_noun="words",
    depends_on_ranks_only=False,
    supports_other_engines=False,
    scores_spans=True,
    list_row=_list_suite,
    describe=_describe_suite,
)
SYNTAXGYM = TaskType(
    name="syntaxgym",
    declaration=SyntaxGymSpec,
    matches=syntaxgym.is_syntaxgym_file,
    load=loader.load_syntaxgym_suite,
    prediction_schema=declare_columns(
        gold="0: the formula holds",
        pred="0 where the formula holds, 1 where it does not",
        scores="gap between the sides of the formula (nats), and 0",
        tokens="number of tokens of all regions of the formula, twice",
        characters="number of characters of all regions of the formula, twice",
    ),
    predict=deferred(f"{_SCORING}:predict_formulas"),
    scored_noun="words",
    depends_on_ranks_only=False,
    supports_other_engines=False,
    scores_spans=True,
    list_row=_list_syntaxgym,
    describe=_describe_syntaxgym,
)
# Tasks of lm-eval that report accuracy are of the type "suite", those that report the perplexity
# of a continuation of the type "surprisal"; this type has another metric of lm-eval as headline.
LM_EVAL = TaskType(
    name="lm-eval",
    matches=tasks.is_lm_eval_ref,
    list_refs=tasks.list_suite_refs,
    load=tasks.load_suite,
    check_methods=_check_lm_eval_methods,
    summarize=deferred(f"{_SCORING}:summarize_task_metrics"),
    scored_noun="judgements",
    depends_on_ranks_only=False,
    supports_other_engines=False,
    native_only_reason=": its own code reads log-probabilities and first choices as they are",
)
LM_EVAL_DOCUMENTS = TaskType(
    name="lm-eval-documents",
    load=tasks.load_suite,
    prediction_schema=declare_columns(
        gold=NO_GOLD,
        pred=NO_PRED,
        scores="summed log-probability of the document (nats)",
        tokens="number of tokens of the document",
        characters="number of characters of the document",
        more=declare_task_values("number of bytes and of words of the document, as its task says"),
    ),
    predict=deferred(f"{_SCORING}:predict_documents"),
    summarize=deferred(f"{_SCORING}:summarize_metric"),
    scored_noun="documents",
    depends_on_ranks_only=False,
    supports_other_engines=False,
    scores_documents=True,
)


# ---- classification


def _count_texts(spec: ClassificationSpec) -> int | None:
    """Return the texts that all tasks score, None where a file's rows are unknown."""
    rows = [spec.data.files[task.valid].rows for task in spec.task.values()]
    return None if None in rows else sum(count or 0 for count in rows)


def _list_classification(spec: ClassificationSpec) -> CatalogRow:
    metrics = dict.fromkeys(task.metric for task in spec.task.values())
    return build_suite_row(spec, _count_texts(spec), ", ".join(metrics), "finetune")


def _describe_classification(spec: ClassificationSpec) -> Facts:
    default = spec.training
    return {
        **_describe_origin(spec),
        "items": _count_texts(spec),
        "headline": "mean over the tasks, each in its own metric",
        "tasks": {name: _describe_task(spec, task) for name, task in spec.task.items()},
        "training": default.model_dump(exclude_none=True),
        "per task": {
            name: _describe_task_training(spec, name)
            for name in spec.task
            if spec.resolve_training(name) != default
        },
        "selection": f"the epoch that is best on {spec.held_out:.0%} of train, held out",
        "presets": {name: preset.source for name, preset in spec.preset.items()},
        "data": sources.describe_files(spec),
        "notes": "\n".join(spec.notes),
    }


def _describe_task(spec: ClassificationSpec, task: TaskSpec) -> str:
    """Return a line such as `accuracy of no, yes; 9,427 rows train, 1,635 are scored`."""
    counts = []
    if task.train and (rows := spec.data.files[task.train].rows):
        counts.append(f"{rows:,} rows train")
    elif task.trains_with:
        counts.append(f"trains with {task.trains_with}")
    if rows := spec.data.files[task.valid].rows:
        counts.append(f"{rows:,} are scored")
    return "; ".join(
        filter(None, (f"{task.metric} of {', '.join(task.classes)}", ", ".join(counts)))
    )


def _describe_task_training(spec: ClassificationSpec, name: str) -> str:
    """Return the settings of a task that differ from the suite's."""
    default = spec.training.model_dump()
    settings = spec.resolve_training(name).model_dump()
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value != default[key])


CLASSIFICATION = TaskType(
    name="classification",
    noun="a suite that is finetuned",
    declaration=ClassificationSpec,
    prediction_schema=declare_columns(
        gold="index of the class",
        pred="index of the predicted class, the first one of a tie",
        scores="log-probability of each class (nats)",
        tokens="number of tokens of the text that were read, once per class",
        characters="number of characters of the text that were read, once per class",
    ),
    planned_unit="seeds",
    command="finetune",
    example_command="antlm-bench finetune --model {model} --suite {suite}",
    missing_score_commands=(
        "antlm-bench finetune --model {model} --suite {suite}{tasks}{attention}{out}"
    ),
    list_row=_list_classification,
    describe=_describe_classification,
)


# ---- collections


def _list_collection(spec: CollectionSpec) -> CatalogRow:
    names = [suite for member in spec.members for suite in member.suite_names]
    hidden = len(names) - MAX_MEMBERS_LISTED
    if hidden > 1:
        names = [*names[:MAX_MEMBERS_LISTED], f"{hidden} more"]
    return {"collection": spec.name, "members": ", ".join(names), "title": spec.title}


def _describe_published(spec: CollectionSpec) -> Iterator[str]:
    """Yield a line per source of published rows, with the names of its rows."""
    names_by_source: dict[str, list[str]] = {}
    for row in spec.published:
        names_by_source.setdefault(row.source, []).append(row.name)
    for source, names in names_by_source.items():
        yield f"{source}: {'; '.join(names)}"


def _describe_collection(spec: CollectionSpec) -> Facts:
    return {
        "version": spec.version,
        "members": "\n".join(map(_describe_member, spec.members)),
        "headline": "mean of the members by their weights",
        "homepage": spec.homepage,
        "published": "\n".join(_describe_published(spec)),
        "notes": "\n".join(spec.notes),
    }


def _describe_member(member: MemberSpec) -> str:
    """Return a line such as `GLUE: glue-2024 (finetune: boolq, cola), weight 0.5`."""
    suites = " and ".join(member.suite_names)
    line = f"{member.label}: {suites}" if member.label else suites
    if member.tasks:
        line += f" (finetune: {', '.join(member.tasks)})"
    elif not member.task_type:
        line += " (nothing computes it yet)"
    elif TASK_TYPES[member.task_type].needs_checkpoint_series:
        line += " (over checkpoints)"
    if member.view:
        line += f", {member.view}"
    elif member.average_over:
        line += f", mean over {member.average_over} groups"
    return line + (f", weight {member.weight:g}" if member.weight != 1 else "")


COLLECTION = TaskType(
    name="collection",
    noun="a collection",
    declaration=CollectionSpec,
    members=CollectionSpec.list_suites,
    prediction_schema=None,
    planned_unit="",
    command="",
    example_command="",
    missing_score_commands="",
    listing="collections",
    list_row=_list_collection,
    describe=_describe_collection,
)


# ---- age of acquisition


def _list_acquisition(spec: AcquisitionSpec) -> CatalogRow:
    words, _ = loader.read_suite_spec(spec.words)
    return build_suite_row(spec, _count_items(words), ACQUISITION_METRIC.name)


def _describe_acquisition(spec: AcquisitionSpec) -> Facts:
    threshold = f", 0 where p > {spec.significance:g}" if spec.significance else ""
    points = "the mean over contexts" if spec.points == "means" else "every context"
    bounds = "bounded" if spec.bounded else "unbounded"
    chance = f"{spec.chance:.4g} nats" if spec.chance else "tokens of the word * ln(vocabulary)"
    return {
        "version": spec.version,
        "citation": spec.citation,
        "homepage": spec.homepage,
        "words": f"{spec.words}, at every checkpoint",
        "headline": "Pearson's correlation of the ages at which children and the model know a word"
        + threshold,
        "curve": f"a sigmoid through {points} at each checkpoint, its parameters {bounds}",
        "chance": chance,
        "notes": "\n".join(spec.notes),
    }


ACQUISITION = TaskType(
    name="acquisition",
    noun="an age of acquisition",
    planned_unit="",
    declaration=AcquisitionSpec,
    members=lambda spec, _command: [spec.words],
    needs_checkpoint_series=True,
    prediction_schema=declare_columns(
        gold="age in months at which half of the children know the word",
        pred="index of the highest score, the first one of a tie",
        scores="log-probability of the word (nats) at each checkpoint, increasing in words seen: "
        "the mean over its contexts, or every context",
        tokens="number of tokens of the word, once per score",
        characters="number of characters of the word, once per score",
    ),
    example_command="antlm-bench acquisition RUN... --suite {suite}",
    missing_score_commands="antlm-bench score --model FOLDER_OF_CHECKPOINTS --suite {suite}{method}"
    " --out {runs_dir}\nantlm-bench acquisition {runs_dir} --suite {suite}",
    list_row=_list_acquisition,
    describe=_describe_acquisition,
)


# ---- stimuli


def _count_stimuli(spec: StimuliSpec) -> int | None:
    """Return the texts of the complete files, None where the declaration does not say."""
    return spec.expect.texts if spec.expect else None


def _list_stimuli(spec: StimuliSpec) -> CatalogRow:
    return build_suite_row(spec, _count_stimuli(spec), "", "surprisal")


def _describe_stimuli(spec: StimuliSpec) -> Facts:
    conditions = [text.condition for text in spec.text if text.condition]
    return {
        "version": spec.version,
        "licence": spec.licence,
        "citation": spec.citation,
        "homepage": spec.homepage,
        "texts": _count_stimuli(spec),
        "conditions": ", ".join(conditions or sorted(spec.rename.get("condition", {}).values())),
        "columns": ", ".join(spec.copy_columns),
        "example": "\n".join(spec.example[0].texts) if spec.example else "",
        "run": fill_command(STIMULI.example_command, [spec.name]),
        "data": sources.describe_files(spec),
        "notes": "\n".join(spec.notes),
    }


STIMULI = TaskType(
    name="stimuli",
    noun="a set of stimuli",
    declaration=StimuliSpec,
    prediction_schema=None,
    planned_unit="",
    command="surprisal",
    example_command="antlm-bench surprisal --model {model} --in {suite} --out surprisal.csv",
    missing_score_commands="",
    list_row=_list_stimuli,
    describe=_describe_stimuli,
)
