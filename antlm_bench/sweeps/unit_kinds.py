"""The kinds of units: how each is described and carried out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench.errors import CheckpointError, RunError
from antlm_bench.results.training_log import LOG_FILE
from antlm_bench.sweeps.references import (
    MODELS_DIR,
    STAGE_PREFIX,
    locate_output,
    resolve_model,
)
from antlm_bench.sweeps.status import SweepState
from antlm_bench.sweeps.store import SweepStore
from antlm_bench.sweeps.units import Sweep, Unit, UnitFiles

if TYPE_CHECKING:
    from antlm_bench.commands.finetune_session import FinetuneSession
    from antlm_bench.commands.score_session import ScoreSession

MAX_DESCRIPTION_LENGTH = 60


@dataclass(frozen=True)
class UnitContext:
    """What a worker gives to a unit that it carries out."""

    store: SweepStore
    state: SweepState
    part_dir: Path
    """The unit's run folder, which may hold chunks of an earlier attempt. Units of the kinds train,
    collect and report write below `sweep_dir` instead."""
    unit_id: str

    @property
    def sweep_dir(self) -> Path:
        """The sweep's folder, with models/ and runs/."""
        return self.store.folder

    @property
    def sweep(self) -> Sweep:
        """All units of the sweep."""
        return self.state.sweep

    def log(self, message: str) -> None:
        """Write a line to the worker's log."""
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.unit_id} {message}"
        print(text, file=sys.stderr, flush=True)

    def find_parts(self, unit_ids: Iterable[str]) -> list[Path]:
        """Return the published part folders of those units that are done, in the given order."""
        done = (self.state.units[each].done_event for each in unit_ids if each in self.state.units)
        return [self.store.find_part(event.part) for event in done if event and event.part]


@dataclass(frozen=True)
class UnitKind:
    """A kind of unit."""

    name: str
    carry_out: Callable[[Unit, UnitContext], None]
    """Carry out a unit. Raises BenchError if it fails."""
    describe: Callable[[Unit], str] = lambda unit: _describe_arguments(unit)
    """Describe in a few words what a unit computes, without its model."""
    list_files: Callable[[Unit], UnitFiles] = lambda _: UnitFiles()
    """Return the files of the sweep's folder that a unit uses."""


@cache
def _score_session() -> ScoreSession:
    """Return the session of this process, which keeps the checkpoint and the suites open."""
    from antlm_bench.commands.score_session import ScoreSession
    from antlm_bench.scoring.shared_encodings import EncodingCache

    return ScoreSession(encodings=EncodingCache())


@cache
def _finetune_session() -> FinetuneSession:
    """Return the session of this process, which keeps the checkpoint and the task open."""
    from antlm_bench.commands.finetune_session import FinetuneSession

    return FinetuneSession()


def _close_sessions(*sessions: Callable[[], ScoreSession | FinetuneSession]) -> None:
    """Release the checkpoints that the units before have opened."""
    for session in sessions:
        session().close()


def _train(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.train import TrainOptions, train

    _close_sessions(_score_session, _finetune_session)
    arguments = unit.arguments
    options = TrainOptions(
        scale=arguments["scale"], changes=tuple(arguments["changes"]), **arguments["options"]
    )
    out = locate_output(context.sweep_dir, arguments["out"])
    train(unit.model, arguments["corpus"], out, options)


def _describe_training(unit: Unit) -> str:
    arguments = unit.arguments
    changes = sorted(arguments["changes"], key=lambda change: not change.startswith("seed="))
    return " ".join(
        filter(None, [arguments["scale"], *changes, _shorten_path(arguments["corpus"])])
    )


def _score(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.score_options import ScoreOptions

    _close_sessions(_finetune_session)
    _score_session().score(
        _locate_checkpoint(unit, context),
        unit.arguments["suite"],
        unit.arguments["methods"],
        context.part_dir,
        ScoreOptions(**unit.arguments["options"], shard=unit.arguments.get("shard")),
    )


def _describe_scoring(unit: Unit) -> str:
    methods, shard = ", ".join(unit.arguments["methods"]), unit.arguments.get("shard")
    texts = [_shorten_path(unit.arguments["suite"]), f"({methods})" if methods else ""]
    return " ".join(filter(None, [*texts, f"shard {shard}" if shard else ""]))


def _finetune(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.finetune import FinetuneOptions

    _close_sessions(_score_session)
    arguments = unit.arguments
    _finetune_session().finetune(
        _locate_checkpoint(unit, context),
        (arguments["suite"], arguments["task"]),
        [arguments["seed"]],
        arguments["attentions"],
        context.part_dir,
        FinetuneOptions(**arguments["options"]),
    )


def _describe_finetuning(unit: Unit) -> str:
    arguments = unit.arguments
    words = [_shorten_path(arguments["suite"]), arguments["task"], *arguments["attentions"]]
    return f"{' '.join(words)} seed {arguments['seed']}"


def _collect(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.merge import merge_runs

    parts = context.find_parts(unit.waits_for)
    if not parts:
        raise RunError("none of its units is done", location=unit.model)
    out = locate_output(context.sweep_dir, unit.arguments["out"])
    merge_runs([str(part) for part in parts], out, allow_incomplete=True, replace_cells=True)


def _report(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.reporting.html_data import write_page

    outputs = [
        locate_output(context.sweep_dir, other.arguments["out"])
        for other in context.sweep.units
        if "out" in other.arguments
    ]
    run_dirs = [path for path in outputs if (path / "run.json").is_file()]
    if not run_dirs:
        raise RunError("there is no run folder to report", location=str(context.sweep_dir))
    training_dirs = [path for path in outputs if (path / LOG_FILE).is_file()]
    page = locate_output(context.sweep_dir, unit.arguments["html"])
    write_page(
        run_dirs,
        page,
        training_dirs=training_dirs,
        title=context.sweep.name,
        recipes=_list_recipes(context),
    )


def _list_recipes(context: UnitContext) -> dict[Path, str]:
    """Return run folder -> recipe of its model, for the models that the sweep trains.

    If the sweep has several train stages, a recipe's name begins with the name of its stage.
    """
    recipe_by_model: dict[str, tuple[str, str]] = {}
    for unit in context.sweep.units:
        if unit.kind == "train":
            model = str(unit.arguments["out"]).removeprefix(f"{MODELS_DIR}/")
            recipe = model.rpartition("-")[0]  # without the seed
            recipe_by_model[model] = unit.stage, recipe
    has_one_stage = len({stage for stage, _ in recipe_by_model.values()}) == 1
    recipes = {}
    for unit in context.sweep.units:
        model = unit.model.removeprefix(STAGE_PREFIX).rpartition("/")[0]
        if unit.kind == "collect" and model in recipe_by_model:
            stage, recipe = recipe_by_model[model]
            name = recipe.removeprefix(f"{stage}/") if has_one_stage else recipe
            recipes[locate_output(context.sweep_dir, unit.arguments["out"])] = name
    return recipes


def _shorten_path(ref: str) -> str:
    """Return the name of a file that is given by its absolute path; other references unchanged."""
    return Path(ref).name if Path(ref).is_absolute() else ref


def _list_scoring_files(unit: Unit) -> UnitFiles:
    """Return the trained checkpoint, if the unit's is one."""
    sweep_dir = Path()
    model = resolve_model(unit.model, sweep_dir)
    return UnitFiles(reads=() if model == unit.model else (model,))


def _list_output_folder(unit: Unit) -> UnitFiles:
    return UnitFiles(writes=(unit.arguments["out"],))


def _list_report_files(unit: Unit) -> UnitFiles:
    return UnitFiles(("runs", f"models/*/*/{LOG_FILE}"), (unit.arguments["html"],))


def _locate_checkpoint(unit: Unit, context: UnitContext) -> str:
    """Return the checkpoint as commands take it. Raises CheckpointError for one of a train stage
    that the training did not write.
    """
    ref = resolve_model(unit.model, context.sweep_dir)
    if ref != unit.model and not (Path(ref) / "config.json").is_file():
        raise CheckpointError(
            "the training did not write this checkpoint",
            location=ref,
            hint="look at train.jsonl beside it; the recipe decides its milestones",
        )
    return ref


UNIT_KINDS: Mapping[str, UnitKind] = {
    kind.name: kind
    for kind in (
        UnitKind("train", _train, _describe_training, _list_output_folder),
        UnitKind("score", _score, _describe_scoring, _list_scoring_files),
        UnitKind("finetune", _finetune, _describe_finetuning, _list_scoring_files),
        UnitKind("collect", _collect, lambda unit: str(unit.arguments["out"]), _list_output_folder),
        UnitKind("report", _report, lambda unit: str(unit.arguments["html"]), _list_report_files),
    )
}
"""Name -> record of every kind of unit."""


def describe_unit(unit: Unit) -> str:
    """Describe in a few words what a unit computes, without its model: `blimp (mlm) shard 2/4`."""
    try:
        text = UNIT_KINDS[unit.kind].describe(unit)
    except (KeyError, TypeError, AttributeError):  # of another version
        text = _describe_arguments(unit)
    is_short = len(text) <= MAX_DESCRIPTION_LENGTH
    return text if is_short else text[: MAX_DESCRIPTION_LENGTH - 3] + "..."


def _describe_arguments(unit: Unit) -> str:
    texts = []
    for name, value in unit.arguments.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value not in ("", None) and not isinstance(value, Mapping):
            texts.append(f"{name} {value}")
    return ", ".join(texts)
