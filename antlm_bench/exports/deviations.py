"""Find cells of a submission file that were not computed by the leaderboard's conventions.

A deviation is a setting with which the official code could have given another answer. Settings that
provably give the same answers are not deviations: `--bos auto` if the tokenizer adds the same
special tokens by itself, a delimiter if every text has a context. Neither are the tie rule and the
softmax precision, because the file is computed with the official ones. Adaptive precision is
accepted too: a few choices may differ from fp32, as those of two machines may.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from antlm_bench.errors import NotComparable
from antlm_bench.exports.leaderboard import (
    LeaderboardSpec,
    build_finetune_command,
    build_score_command,
)
from antlm_bench.metrics import METRICS
from antlm_bench.metrics.records import OPTION_KINDS
from antlm_bench.printable import format_count
from antlm_bench.scoring.conventions import (
    CONVENTIONS_VERSION,
    PEER_CONVENTIONS,
    ScoringConventions,
)
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites import loader
from antlm_bench.suites.classification import ClassificationSpec, TrainingSpec
from antlm_bench.suites.spec import SuiteSpec
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration_of_type
from antlm_bench.types import Cell, Run

MAX_COMMANDS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class PartSource:
    """A cell from which a part of the submission file is computed."""

    key: str
    """The part's (dotted) key in the file."""
    run: Run
    cell: Cell
    milestone: int | None = None
    """Millions of words seen. None = the final model."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A reason why the answers of a cell can differ from those of the official code."""

    source: PartSource
    reason: str


def find_deviations(
    board: LeaderboardSpec, sources: Sequence[PartSource], final_run: Run
) -> list[Deviation]:
    """Return the deviations of cells from the conventions, and of milestones from each other."""
    deviations = []
    scored_suites = {source.cell.suite for source in sources if source.cell.seed is None}
    specs = {name: loader.read_suite_spec(name)[0] for name in scored_suites}
    for source in sources:
        run, cell = source.run, source.cell
        if cell.seed is None:
            reasons = list(_describe_scoring_deviations(board, run, cell, specs[cell.suite]))
        else:
            reasons = list(_describe_finetuning_deviations(board, cell))
        if run.manifest.model.get("tokenizer") != final_run.manifest.model.get("tokenizer"):
            reasons.append("another tokenizer than the final model's")
        deviations += [Deviation(source, reason) for reason in reasons]
    return deviations + list(_find_milestone_deviations(sources))


def build_deviation_error(
    board: LeaderboardSpec, deviations: Sequence[Deviation], method: str
) -> NotComparable:
    """Return the error that lists deviations, with the commands that compute the cells again."""
    num_parts = len({deviation.source.key for deviation in deviations})
    lines = "\n".join(f"    {line}" for line in describe_deviations(deviations))
    commands = _build_fix_commands(board, deviations, method)
    shown = commands[:MAX_COMMANDS_SHOWN]
    if len(commands) > len(shown):
        shown.append(f"... and {len(commands) - len(shown)} more of this kind")
    hint = (
        "compute them again by the commands below, or write the file, with the deviations in its "
        "notes, by --allow-conventions:"
    )
    return NotComparable(
        f"{num_parts} parts are not by the conventions of {board.name}; "
        f"nothing was written:\n{lines}",
        location="RUN",
        hint="\n      ".join([hint, *shown]),
    )


def describe_deviations(deviations: Sequence[Deviation]) -> list[str]:
    """Return one line per part and reason, with the milestones that deviate."""
    milestones_by_line: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for deviation in deviations:
        milestones = milestones_by_line[deviation.source.key, deviation.reason]
        if deviation.source.milestone is not None:
            milestones.append(deviation.source.milestone)
    return [
        f"{key}: {reason}"
        + (f" ({', '.join(f'chck_{number}M' for number in milestones)})" if milestones else "")
        for (key, reason), milestones in milestones_by_line.items()
    ]


def _build_fix_commands(
    board: LeaderboardSpec, deviations: Sequence[Deviation], method: str
) -> list[str]:
    """Return one command per run with scored suites and one per finetuned collection."""
    scored_suites: defaultdict[str, dict[str, Run]] = defaultdict(dict)  # run path -> suite -> run
    finetuned_sources: dict[str, PartSource] = {}
    for deviation in deviations:
        source = deviation.source
        if source.cell.seed is None:
            scored_suites[source.run.path][source.cell.suite] = source.run
        else:
            finetuned_sources[source.cell.suite.partition(".")[0]] = source
    commands = [
        build_score_command(next(iter(suites.values())), ",".join(suites), method, board)
        for suites in scored_suites.values()
    ]
    return commands + [
        build_finetune_command(source.run, suite, method, board, seed=source.cell.seed)
        for suite, source in finetuned_sources.items()
    ]


# ---- scored cells


def _describe_scoring_deviations(
    board: LeaderboardSpec, run: Run, cell: Cell, spec: SuiteSpec
) -> Iterator[str]:
    settings = cell.settings
    if cell.method not in board.methods:
        yield f"scored by {cell.method}; the official code has {', '.join(board.methods)}"
        return
    scores_words = TASK_TYPES[spec.task_type].scores_spans
    official = PEER_CONVENTIONS[board.name].for_method(METHODS[cell.method])
    official = official.for_suite(spec.reduction, scores_words=scores_words)
    yield from _describe_prefix_deviations(run, cell, spec, official, scores_words)
    reduction = settings.get("reduction", "sum")
    is_choice = not scores_words and METRICS[spec.metric].item_kind in OPTION_KINDS
    if is_choice and reduction != official.reduction:
        yield f"options compared by {reduction} scores, officially by {official.reduction} scores"
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
            f"{format_count(too_long, 'text')} beyond the declared length, which the official "
            "code scores where the model can"
        )


def _describe_prefix_deviations(
    run: Run, cell: Cell, spec: SuiteSpec, official: ScoringConventions, scores_words: bool
) -> Iterator[str]:
    """Yield differences in what precedes a scored text: special tokens, context, delimiter."""
    settings = cell.settings
    contexts = [bool(option.context) for option in spec.item.options]
    has_texts_with_context = not scores_words and any(contexts)
    has_texts_without_context = scores_words or not all(contexts)
    bos = settings.get("bos")
    if has_texts_without_context:
        yield from _describe_special_tokens(run, cell, bos, official.bos)
    if has_texts_with_context:
        bos = settings.get("bos_before_context") or bos
        official_bos = official.bos_before_context or official.bos
        for reason in _describe_special_tokens(run, cell, bos, official_bos):
            yield f"{reason}, before a context" if has_texts_without_context else reason
    gets_context = has_texts_without_context and bool(official.context)
    descriptions = {
        "context": ("context of texts without one", has_texts_without_context),
        "delimiter": ("text before texts without context", has_texts_without_context),
        "joiner": ("text between context and scored part", has_texts_with_context or gets_context),
    }
    for name, (description, is_used) in descriptions.items():
        actual_text, official_text = settings.get(name, ""), getattr(official, name)
        if is_used and actual_text != official_text:
            yield f"{description}: {actual_text!r}, officially {official_text!r}"


def _describe_special_tokens(run: Run, cell: Cell, bos: Any, official_bos: str) -> Iterator[str]:
    """Yield the difference between two BOS policies if they add other special tokens to a text."""
    if bos == official_bos:
        return
    attention = METHODS[cell.method].main_attention

    def special_tokens(policy: Any) -> Any:
        if policy == "never":
            return "..."
        if policy == cell.settings.get("bos"):
            return cell.settings.get("specials", {}).get(attention)
        return run.manifest.model.get("specials_under", {}).get(policy, {}).get(attention)

    actual, official = special_tokens(bos), special_tokens(official_bos)
    if actual is None or actual != official:
        yield (
            f"--bos {bos} ({actual or 'not recorded'}), "
            f"officially {official_bos} ({official or 'not recorded'})"
        )


# ---- finetuned cells


def _describe_finetuning_deviations(board: LeaderboardSpec, cell: Cell) -> Iterator[str]:
    """Yield differences from the official finetuning: hyper-parameters, limits, training set."""
    settings = cell.settings
    suite, _, task = cell.suite.partition(".")
    spec, _ = read_declaration_of_type(suite, ClassificationSpec)
    official = spec.resolve_training(task, board.finetuning_preset).model_dump(mode="json")
    preset = spec.preset[board.finetuning_preset]
    if "training" not in settings:
        yield "its hyper-parameters are not recorded"
        return
    actual = TrainingSpec.model_validate(dict(settings["training"])).model_dump(mode="json")
    differences = [
        f"{name} {actual[name]}, officially {official[name]}"
        for name in actual
        if actual[name] != official[name]
    ]
    if differences:
        yield "finetuned with " + "; ".join(differences)
    if settings.get("select") != preset.select:
        yield f"epochs chosen on {settings.get('select')}, officially on {preset.select}"
    for option, limit in zip(
        ("--limit-train", "--limit-valid"), settings.get("limit") or (), strict=False
    ):
        if limit is not None:
            yield f"finetuned with {option} {limit}"
    if settings.get("pooling", "auto") not in ("auto", actual.get("pooling", "auto")):
        yield f"finetuned with --pooling {settings['pooling']}"
    if settings.get("lora"):
        yield f"finetuned with --lora {settings['lora']}"
    if settings.get("dtype", "float32") != "float32":
        yield f"finetuned in {settings['dtype']}, officially float32"
    training_task = spec.task[spec.task[task].trains_with or task]
    for substitute in training_task.substitutes:
        if substitute.says in cell.summary.notes:
            yield substitute.says.partition(": ")[2]


# ---- milestones


def _find_milestone_deviations(sources: Sequence[PartSource]) -> Iterator[Deviation]:
    """Yield cells whose data or conventions differ from those of the part's last milestone."""
    descriptions = {
        "suite_digest": "other data",
        "conventions": "another version of our conventions",
    }
    last_sources = {source.key: source for source in sources if source.milestone is not None}
    for source in sources:
        last = last_sources.get(source.key, source)
        for name, description in descriptions.items():
            if source.cell.settings.get(name) != last.cell.settings.get(name):
                yield Deviation(source, f"{description} than at chck_{last.milestone}M")
