"""Checks of the stages of a sweep that need no checkpoint: options, tasks, presets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_type_hints

from antlm_bench.arguments import check_value
from antlm_bench.checkpoints.resolve import DTYPE_NAMES
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.keywords import FinetuneKeywords, ScoreKeywords, TrainKeywords
from antlm_bench.suites import classification_loader
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.pair_files import is_table_file
from antlm_bench.suites.task_types import read_declaration_of_type
from antlm_bench.sweeps.declaration import FinetuneStage, ScoreStage, StageKind, TrainStage
from antlm_bench.training.text_sources import load_text_source

# A stage has keys for these, or they are other names of options, or they do not
# fit a unit, whose results are those of one checkpoint and are computed once.
KEYWORDS_WITHOUT_OPTION = frozenset(
    {
        "method",
        "task",
        "seed",
        "attention",
        "set",
        "compat",
        "teacher",
        "track",
        "compile",
        "revision",
        "name",
        "again",
        "replace",
        "resume",
        "stop_after",
        "shard",
        "scale",
        "changes",
    }
)
STAGE_KEYS: dict[StageKind, Collection[str]] = {
    "train": TrainStage.model_fields,
    "score": ScoreStage.model_fields,
    "finetune": FinetuneStage.model_fields,
}
"""Kind of a stage -> its keys."""


def check_options(
    options: Mapping[str, Any], keywords: type, also: frozenset[str] = frozenset()
) -> None:
    """Raise UsageError for an option that a command does not have, or of a wrong type.

    keywords: TypedDict of the command's options. also: members of
    KEYWORDS_WITHOUT_OPTION that are options of this command.
    """
    hints = get_type_hints(keywords)
    names = [name for name in hints if name not in KEYWORDS_WITHOUT_OPTION or name in also]
    for name, value in options.items():
        if name not in names:
            raise UsageError(
                f"there is no option {name!r}",
                location="options",
                hint=suggest_name(name, names) or f"one of {', '.join(names)}",
            )
        check_value("options", name, value, hints[name], is_toml=True)
    if options.get("dtype", DTYPE_NAMES[0]) not in DTYPE_NAMES:
        raise UsageError(
            f"unknown dtype {options['dtype']!r}",
            location="options: dtype",
            hint=f"one of {', '.join(DTYPE_NAMES)}",
        )


@contextmanager
def locate_option(kind: StageKind) -> Iterator[None]:
    """Let an error of a command name the option as a stage has it."""
    try:
        yield
    except UsageError as error:
        error.location = name_key(error.location, kind)
        raise


def name_key(location: str, kind: StageKind) -> str:
    """Return the key of a stage for an option of the command line, and other locations as they are:
    `models` for --model, `options: limit_train` for --limit-train.
    """
    if not location.startswith("--"):
        return location
    option = location.removeprefix("--")
    name = "changes" if option == "set" else option.replace("-", "_")
    keys = [key for key in (name, f"{name}s") if key in STAGE_KEYS[kind]]
    return keys[0] if keys else f"options: {name}"


def check_train_stage(stage: TrainStage) -> None:
    """Raise BenchError for options or a corpus with which no unit of the stage can train."""
    check_options(stage.options, TrainKeywords)
    try:
        load_text_source(stage.corpus)
    except BenchError as error:
        error.location = f"corpus: {error.location}"
        raise


def check_score_options(options: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Raise UsageError for options and methods that no checkpoint can be scored with."""
    check_options(options, ScoreKeywords, frozenset({"compat"}))
    from antlm_bench.commands.score_options import ScoreOptions

    with locate_option("score"):
        ScoreOptions(**options).validate(methods)


def select_tasks(stage: FinetuneStage) -> list[tuple[str, str]]:
    """Return the (suite, task) pairs of a stage, and check its options.

    Raises UsageError for an unknown task, preset, option or attention. No data are read.
    """
    from antlm_bench.commands import finetune

    check_options(stage.options, FinetuneKeywords, frozenset({"changes"}))
    options = finetune.FinetuneOptions(**stage.options)
    with locate_option("finetune"):
        finetune.check_finetune_options(options, stage.seeds, stage.attentions)
        tasks = finetune.select_tasks(stage.suites, stage.tasks, options)
    if "all" in stage.attentions and len(stage.attentions) > 1:
        raise UsageError(
            "'all' stands for every attention", location="attentions", hint="leave out the others"
        )
    for suite in stage.suites:
        if not is_table_file(suite):
            spec, _ = read_declaration_of_type(suite, ClassificationSpec)
            for task in spec.task:
                settings = spec.resolve_training(task, options.preset)
                classification_loader.apply_changes(settings, options.changes, "options: changes")
    return tasks
