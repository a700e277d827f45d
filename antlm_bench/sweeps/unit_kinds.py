"""The kinds of units: how each is checked, estimated and carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from antlm_bench.errors import CheckpointError, RunError
from antlm_bench.results.training_log import LOG_FILE
from antlm_bench.sweeps.references import resolve_model
from antlm_bench.sweeps.units import Unit, UnitFiles

if TYPE_CHECKING:
    from antlm_bench.commands.score_session import ScoreSession


class UnitContext(Protocol):
    """What a worker gives to a unit that it carries out."""

    @property
    def sweep_dir(self) -> Path:
        """The sweep's folder, with models/ and runs/."""
        ...

    @property
    def part_dir(self) -> Path:
        """The folder to write the unit's run folder to. It may hold chunks of an earlier attempt.

        Units of the kinds train, collect and report write below `sweep_dir` instead.
        """
        ...

    def log(self, message: str) -> None:
        """Write a line to the worker's log."""

    def find_parts(self, unit_ids: Iterable[str]) -> list[Path]:
        """Return the published part folders of those units that are done, in the given order."""
        ...


@dataclass(frozen=True)
class UnitKind:
    """A kind of unit."""

    name: str
    carry_out: Callable[[Unit, UnitContext], None]
    """Carry out a unit. Raises BenchError if it fails."""
    list_files: Callable[[Unit], UnitFiles] = lambda _: UnitFiles()
    """Return the files of the sweep's folder that a unit uses."""


def _train(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.train import TrainOptions, train

    arguments = unit.arguments
    options = TrainOptions(
        scale=arguments["scale"], changes=tuple(arguments["changes"]), **arguments["options"]
    )
    train(unit.model, arguments["corpus"], context.sweep_dir / arguments["out"], options)


@cache
def _score_session() -> ScoreSession:
    """Return the session of this process, which keeps the checkpoint and the suites open."""
    from antlm_bench.commands.score_session import ScoreSession

    return ScoreSession()


def _score(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.score_options import ScoreOptions

    _score_session().score(
        _locate_checkpoint(unit, context),
        unit.arguments["suite"],
        unit.arguments["methods"],
        context.part_dir,
        ScoreOptions(**unit.arguments["options"]),
        unit.arguments.get("shard"),
    )


def _finetune(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.finetune import finetune

    finetune(
        _locate_checkpoint(unit, context),
        unit.arguments["suite"],
        tasks=unit.arguments["task"],
        seeds=[unit.arguments["seed"]],
        attentions=unit.arguments["attentions"],
        out=context.part_dir,
        **unit.arguments["options"],
    )


def _collect(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.commands.merge import merge_runs

    parts = context.find_parts(unit.waits_for)
    if not parts:
        raise RunError(
            "no part of it is done", location=unit.model, hint="mend the failed units and repeat"
        )
    out = context.sweep_dir / unit.arguments["out"]
    merge_runs([str(part) for part in parts], out, allow_incomplete=True, replace_cells=True)


def _report(unit: Unit, context: UnitContext) -> None:
    from antlm_bench.reporting.html_data import write_page

    training_dirs = sorted(path.parent for path in context.sweep_dir.glob("models/*/*/train.jsonl"))
    page = context.sweep_dir / unit.arguments["html"]
    write_page([context.sweep_dir / "runs"], page, training_dirs=training_dirs)


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
        UnitKind("train", _train, list_files=_list_output_folder),
        UnitKind("score", _score, list_files=_list_scoring_files),
        UnitKind("finetune", _finetune, list_files=_list_scoring_files),
        UnitKind("collect", _collect, list_files=_list_output_folder),
        UnitKind("report", _report, list_files=_list_report_files),
    )
}
"""Name -> record of every kind of unit."""
