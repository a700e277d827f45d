"""Do the cells of a leaderboard's file follow the year's conventions?

A deviation is a setting with which the official code could have given another answer. Settings that
provably give the same answers are none: `--bos auto` where the tokenizer adds the same specials by
itself, a delimiter where every text has a context, ties and softmax (the file has the year's,
whatever the run's), adaptive precision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antlm_bench.errors import NotComparable
from antlm_bench.exports.command_hints import finetune_command, score_command
from antlm_bench.exports.leaderboard import LeaderboardSpec
from antlm_bench.metrics import METRICS, ItemKind
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
    """A cell that a part of the file is made of.

    key: the (dotted) part. milestone: millions of words, None = the final model's cell.
    """

    key: str
    run: Run
    cell: Cell
    milestone: int | None = None


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
    found = []
    specs = {
        name: loader.read_suite_spec(name)[0]
        for name in {one.cell.suite for one in sources if one.cell.seed is None}
    }
    for one in sources:
        cell = one.cell
        scored = cell.seed is None
        reasons = (
            _scoring_deviations(board, one.run, cell, specs[cell.suite])
            if scored
            else _finetuning_deviations(board, cell)
        )
        found += [
            Deviation(one, reason)
            for reason in (*reasons, *_tokenizer_deviations(one.run, final_run))
        ]
    return found + list(_milestone_deviations(sources))


def deviation_error(
    board: LeaderboardSpec, deviations: Sequence[Deviation], method: str
) -> NotComparable:
    """Return the error that lists deviations, with the commands that mend them."""
    parts = len({deviation.source.key for deviation in deviations})
    listed = "\n".join(f"    {line}" for line in describe_deviations(deviations))
    message = (
        f"{parts} parts are not by the conventions of {board.name}; nothing was written:\n{listed}"
    )
    commands = _fix_commands(board, deviations, method)
    shown = commands[:MAX_COMMANDS_SHOWN]
    shown += [f"... and {len(commands) - len(shown)} more of this kind"] * (
        len(commands) > len(shown)
    )
    hint = "make them again by these, or write the file all the same, marked, with --allow-conventions:\n      "
    return NotComparable(message, location="RUN", hint=hint + "\n      ".join(shown))


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
        used = deviation.source
        if used.cell.seed is None:
            scored[used.run.path][used.cell.suite] = used.run
        else:
            finetuned[used.cell.suite.partition(".")[0]] = used
    commands = [
        score_command(next(iter(suites.values())), ",".join(suites), method, board)
        for suites in scored.values()
    ]
    return commands + [
        finetune_command(used.run, suite, method, board, seed=used.cell.seed)
        for suite, used in finetuned.items()
    ]


# ---- scored cells
# ------------------------------------------------------------------------------------------------


def _scoring_deviations(
    board: LeaderboardSpec, run: Run, cell: Cell, spec: SuiteSpec
) -> Iterator[str]:
    settings = cell.settings
    if cell.method not in board.methods:
        yield f"scored by {cell.method}; the official code has {', '.join(board.methods)}"
        return
    words = TASK_TYPES[spec.task_type].scores_spans
    policy = (
        PEER_CONVENTIONS[board.name]
        .for_method(METHODS[cell.method])
        .for_suite(spec.reduction, scores_words=words)
    )
    with_context = not words and any(option.context for option in spec.item.options)
    plain = words or not all(option.context for option in spec.item.options)
    if plain and (said := _special_token_deviation(run, cell, settings.get("bos"), policy.bos)):
        yield said
    if with_context:
        ours = settings.get("bos_before_context") or settings.get("bos")
        if said := _special_token_deviation(
            run, cell, ours, policy.bos_before_context or policy.bos
        ):
            yield f"{said}, before a context" if plain else said
    yield from _context_deviations(settings, policy, plain, with_context)
    if (
        METRICS[spec.metric].item_kind is not ItemKind.TEXT
        and not words
        and settings.get("reduction", "sum") != policy.reduction
    ):
        yield f"decided by {settings.get('reduction', 'sum')}, officially {policy.reduction}"
    if settings.get("dtype", "float32") != "float32":
        yield f"scored in {settings['dtype']}, officially float32"
    if settings.get("conventions", CONVENTIONS_VERSION) != CONVENTIONS_VERSION:
        yield f"scored by version {settings['conventions']} of our conventions, now {CONVENTIONS_VERSION}"
    if settings.get("suite_version", spec.version) != spec.version:
        yield f"version {settings['suite_version']} of {spec.name}, now {spec.version}"
    lost = cell.summary.headline.flags.get("too-long", 0)
    if lost and settings.get("lengths", "declared") != policy.lengths:
        yield f"{lost} texts beyond the declared length, which the official code scores where the model can"


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

    mine, theirs = around(actual), around(official)
    if mine is not None and mine == theirs:
        return ""
    spelled = [
        f"{policy} ({known or 'not recorded'})"
        for policy, known in ((actual, mine), (official, theirs))
    ]
    return f"--bos {spelled[0]}, officially {spelled[1]}"


def _context_deviations(
    settings: Mapping[str, Any],
    conventions: ScoringConventions,
    without_context: bool,
    with_context: bool,
) -> Iterator[str]:
    """Yield what stands before or between texts and is not the official."""
    said = {
        "context": ("context of texts without one", without_context),
        "delimiter": ("text before texts without context", without_context),
        "joiner": (
            "text between context and scored part",
            with_context or (without_context and bool(conventions.context)),
        ),
    }
    for name, (what, matters) in said.items():
        ours, official = settings.get(name, ""), getattr(conventions, name)
        if matters and ours != official:
            yield f"{what}: {ours!r}, officially {official!r}"


# ---- finetuned cells
# ---------------------------------------------------------------------------------------------


def _finetuning_deviations(board: LeaderboardSpec, cell: Cell) -> Iterator[str]:
    """Yield what is not as in the official finetuning: hyper-parameters, rows, train set."""
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
        one.says.partition(": ")[2] for one in origin.substitutes if one.says in cell.summary.notes
    )


# ---- one file, one model
# -----------------------------------------------------------------------------------------


def _tokenizer_deviations(run: Run, final_run: Run) -> Iterator[str]:
    if run.manifest.model.get("tokenizer") != final_run.manifest.model.get("tokenizer"):
        yield "another tokenizer than the final model's"


def _milestone_deviations(sources: Sequence[PartSource]) -> Iterator[Deviation]:
    """Yield cells of a part whose data or conventions differ from those of the part's last
    milestone.
    """
    said = {"suite_digest": "other data", "conventions": "another version of our conventions"}
    last = {one.key: one for one in sources if one.milestone is not None}
    for one in sources:
        reference = last.get(one.key, one).cell.settings
        for name, what in said.items():
            if one.cell.settings.get(name) != reference.get(name):
                yield Deviation(one, f"{what} than at chck_{last[one.key].milestone}M")
