"""Deviations of a leaderboard file's cells from the year's conventions.

A deviation is a setting with which the official code could have given another answer. A setting
that provably gives the same answers is not one: `--bos auto` where the tokenizer adds the same
specials by itself, a delimiter where every text has a context, ties and softmax (the file has the
year's, whatever the run's), adaptive precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antlm_bench.errors import NotComparable
from antlm_bench.exports.command_hints import finetune_command, score_command
from antlm_bench.exports.leaderboard import LeaderboardSpec
from antlm_bench.metrics import METRICS
from antlm_bench.metrics.records import OPTION_KINDS
from antlm_bench.scoring.conventions import (
    CONVENTIONS_VERSION,
    PEER_CONVENTIONS,
    ScoringConventions,
)
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites import loader
from antlm_bench.suites.classification import ClassificationSpec, TrainingSpec
from antlm_bench.suites.spec import SuiteSpec
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration_as
from antlm_bench.types import Cell, Run

MAX_COMMANDS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class PartSource:
    """A cell that a part of the file is made of."""

    key: str
    """The (dotted) part."""
    run: Run
    cell: Cell
    milestone: int | None = None
    """Millions of words. None = the final model's cell."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A reason why a cell can hold other answers than the official code gives."""

    source: PartSource
    reason: str


def find_deviations(
    board: LeaderboardSpec, sources: Sequence[PartSource], final_run: Run
) -> list[Deviation]:
    """Return every deviation of a file's cells from the year's conventions, and of milestones from
    each other.
    """
    deviations = []
    scored_suites = {source.cell.suite for source in sources if source.cell.seed is None}
    specs = {name: loader.read_suite_spec(name)[0] for name in scored_suites}
    for source in sources:
        run, cell = source.run, source.cell
        if cell.seed is None:
            reasons = [*_scoring_deviations(board, run, cell, specs[cell.suite])]
        else:
            reasons = [*_finetuning_deviations(board, cell)]
        if run.manifest.model.get("tokenizer") != final_run.manifest.model.get("tokenizer"):
            reasons.append("another tokenizer than the final model's")
        deviations += [Deviation(source, reason) for reason in reasons]
    return deviations + list(_milestone_deviations(sources))


def deviation_error(
    board: LeaderboardSpec, deviations: Sequence[Deviation], method: str
) -> NotComparable:
    """Return the error that lists deviations, with the commands that mend them."""
    parts = len({deviation.source.key for deviation in deviations})
    lines = "\n".join(f"    {line}" for line in describe_deviations(deviations))
    commands = _fix_commands(board, deviations, method)
    shown = commands[:MAX_COMMANDS_SHOWN]
    if len(commands) > len(shown):
        shown.append(f"... and {len(commands) - len(shown)} more of this kind")
    hint = (
        "make them again by these, or write the file all the same, marked, with "
        "--allow-conventions:"
    )
    return NotComparable(
        f"{parts} parts are not by the conventions of {board.name}; nothing was written:\n{lines}",
        location="RUN",
        hint="\n      ".join([hint, *shown]),
    )


def describe_deviations(deviations: Sequence[Deviation]) -> list[str]:
    """Return one line per part and reason, with the milestones that it is about."""
    lines: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for deviation in deviations:
        milestones = lines[deviation.source.key, deviation.reason]
        if deviation.source.milestone is not None:
            milestones.append(deviation.source.milestone)
    return [
        f"{key}: {reason}"
        + (f" ({', '.join(f'chck_{number}M' for number in numbers)})" if numbers else "")
        for (key, reason), numbers in lines.items()
    ]


def _fix_commands(
    board: LeaderboardSpec, deviations: Sequence[Deviation], method: str
) -> list[str]:
    """Return one command per run and kind of suite."""
    scored: defaultdict[str, dict[str, Run]] = defaultdict(dict)
    finetuned: dict[str, PartSource] = {}
    for deviation in deviations:
        source = deviation.source
        if source.cell.seed is None:
            scored[source.run.path][source.cell.suite] = source.run
        else:
            finetuned[source.cell.suite.partition(".")[0]] = source
    commands = [
        score_command(next(iter(suites.values())), ",".join(suites), method, board)
        for suites in scored.values()
    ]
    return commands + [
        finetune_command(source.run, suite, method, board, seed=source.cell.seed)
        for suite, source in finetuned.items()
    ]


# ---- scored cells


def _scoring_deviations(
    board: LeaderboardSpec, run: Run, cell: Cell, spec: SuiteSpec
) -> Iterator[str]:
    settings = cell.settings
    if cell.method not in board.methods:
        yield f"scored by {cell.method}; the official code has {', '.join(board.methods)}"
        return
    words = TASK_TYPES[spec.task_type].scores_spans
    official = PEER_CONVENTIONS[board.name].for_method(METHODS[cell.method])
    official = official.for_suite(spec.reduction, scores_words=words)
    contexts = [bool(option.context) for option in spec.item.options]
    with_context, without_context = not words and any(contexts), words or not all(contexts)
    bos = settings.get("bos")
    if without_context and (reason := _special_token_deviation(run, cell, bos, official.bos)):
        yield reason
    if with_context:
        bos = settings.get("bos_before_context") or bos
        official_bos = official.bos_before_context or official.bos
        if reason := _special_token_deviation(run, cell, bos, official_bos):
            yield f"{reason}, before a context" if without_context else reason
    yield from _context_deviations(settings, official, without_context, with_context)
    reduction = settings.get("reduction", "sum")
    is_choice = not words and METRICS[spec.metric].item_kind in OPTION_KINDS
    if is_choice and reduction != official.reduction:
        yield f"decided by {reduction}, officially {official.reduction}"
    if settings.get("dtype", "float32") != "float32":
        yield f"scored in {settings['dtype']}, officially float32"
    version = settings.get("conventions", CONVENTIONS_VERSION)
    if version != CONVENTIONS_VERSION:
        yield f"scored by version {version} of our conventions, now {CONVENTIONS_VERSION}"
    if settings.get("suite_version", spec.version) != spec.version:
        yield f"version {settings['suite_version']} of {spec.name}, now {spec.version}"
    too_long = cell.summary.headline.flags.get("too-long", 0)
    if too_long and settings.get("lengths", "declared") != official.lengths:
        yield (
            f"{too_long} texts beyond the declared length, which the official code scores where "
            "the model can"
        )


def _special_token_deviation(run: Run, cell: Cell, actual: Any, official: str) -> str:
    """Return what is wrong with the specials around a text, "" where they are the official ones."""
    if actual == official:
        return ""
    attention = METHODS[cell.method].main_attention

    def around(policy: Any) -> Any:
        if policy == "never":
            return "..."
        if policy == cell.settings.get("bos"):
            return cell.settings.get("specials", {}).get(attention)
        return run.manifest.model.get("specials_under", {}).get(policy, {}).get(attention)

    ours, theirs = around(actual), around(official)
    if ours is not None and ours == theirs:
        return ""
    return (
        f"--bos {actual} ({ours or 'not recorded'}), "
        f"officially {official} ({theirs or 'not recorded'})"
    )


def _context_deviations(
    settings: Mapping[str, Any],
    conventions: ScoringConventions,
    without_context: bool,
    with_context: bool,
) -> Iterator[str]:
    """Yield texts before or between texts that are not the official ones."""
    descriptions = {
        "context": ("context of texts without one", without_context),
        "delimiter": ("text before texts without context", without_context),
        "joiner": (
            "text between context and scored part",
            with_context or (without_context and bool(conventions.context)),
        ),
    }
    for name, (description, matters) in descriptions.items():
        ours, official = settings.get(name, ""), getattr(conventions, name)
        if matters and ours != official:
            yield f"{description}: {ours!r}, officially {official!r}"


# ---- finetuned cells


def _finetuning_deviations(board: LeaderboardSpec, cell: Cell) -> Iterator[str]:
    """Yield differences from the official finetuning: hyper-parameters, rows, training set."""
    settings = cell.settings
    suite, _, task = cell.suite.partition(".")
    spec, _ = read_declaration_as(suite, ClassificationSpec)
    official = spec.resolve_training(task, board.finetune).model_dump(mode="json")
    preset = spec.preset[board.finetune]
    if "training" not in settings:
        yield "records no hyper-parameters"
        return
    ours = TrainingSpec.model_validate(dict(settings["training"])).model_dump(mode="json")
    other = [
        f"{name} {ours[name]}, officially {official[name]}"
        for name in ours
        if ours[name] != official[name]
    ]
    if other:
        yield "finetuned with " + "; ".join(other)
    if settings.get("select") != preset.select:
        yield f"epochs chosen on {settings.get('select')}, officially on {preset.select}"
    for option, limit in zip(
        ("--limit-train", "--limit-valid"), settings.get("limit") or (), strict=False
    ):
        if limit is not None:
            yield f"finetuned with {option} {limit}"
    if settings.get("pooling", "auto") not in ("auto", ours.get("pooling", "auto")):
        yield f"finetuned with --pooling {settings['pooling']}"
    if settings.get("lora"):
        yield f"finetuned with --lora {settings['lora']}"
    if settings.get("dtype", "float32") != "float32":
        yield f"finetuned in {settings['dtype']}, officially float32"
    origin = spec.task[spec.task[task].trains_with or task]
    yield from (
        substitute.says.partition(": ")[2]
        for substitute in origin.substitutes
        if substitute.says in cell.summary.notes
    )


# ---- milestones


def _milestone_deviations(sources: Sequence[PartSource]) -> Iterator[Deviation]:
    """Yield cells of a part whose data or conventions differ from those of the part's last
    milestone.
    """
    compared = {"suite_digest": "other data", "conventions": "another version of our conventions"}
    last = {source.key: source for source in sources if source.milestone is not None}
    for source in sources:
        reference = last.get(source.key, source).cell.settings
        for name, description in compared.items():
            if source.cell.settings.get(name) != reference.get(name):
                reason = f"{description} than at chck_{last[source.key].milestone}M"
                yield Deviation(source, reason)
