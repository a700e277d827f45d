"""The TOML of a sweep: stages that train, score, finetune and a report (docs/how-to/scale.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

from antlm_bench.declarations import Declaration, TomlTuple, read_toml, suggest_name
from antlm_bench.errors import DeclarationError
from antlm_bench.sweeps.executors import EXECUTORS

TomlTable = dict[str, Any]
EMPTY_TABLE: TomlTable = {}
StageKind = Literal["train", "score", "finetune"]
SWEEPS_DIR = Path("reports")
"""Where the folder of a sweep lies without `out`."""
NAME = re.compile(r"[\w][\w.-]*")


class TrainStage(Declaration):
    """The table [[train]]: recipes x seeds, each trained by one unit."""

    name: str
    """Name of the stage, and of the folder of its checkpoints: models/<name>/."""
    recipes: TomlTuple[str]
    """Names of recipes, or TOMLs."""
    corpus: str
    """A folder of texts, a hub dataset, or "nano"."""
    scale: str = ""
    """A scale that the recipes declare."""
    seeds: TomlTuple[int] = ()
    """Seeds; () = the recipe's."""
    changes: TomlTuple[str] = ()
    """Changes of the recipes, each as "optimizer.lr=1e-3"."""
    options: TomlTable = EMPTY_TABLE
    """Other options of `train` by their names: device, precision, ..."""


class CheckpointStage(Declaration):
    """Keys that [[score]] and [[finetune]] share: name, checkpoints, suites and options."""

    name: str = ""
    """Name of the stage; "" = score, score-2, ..., or finetune, finetune-2, ..."""
    models: TomlTuple[str]
    """Folders, globs, hub ids, and checkpoints of train stages (STAGE_PREFIX)."""
    revisions: TomlTuple[str] = ()
    """Revisions of the hub ids, also as patterns: chck_*M."""
    suites: TomlTuple[str]
    options: TomlTable = EMPTY_TABLE
    """Options of `score` or `finetune` by their names."""


class ScoreStage(CheckpointStage):
    """The table [[score]]: checkpoints x suites, each scored with all methods by one unit."""

    methods: TomlTuple[str] = ()
    """Scoring methods; () = the checkpoint's first, "all" = each that it was trained for."""
    shards: int = 1
    """Number of units into which each suite is split."""


class FinetuneStage(CheckpointStage):
    """The table [[finetune]]: checkpoints x tasks x attentions x seeds, a unit each."""

    tasks: TomlTuple[str] = ()
    """Tasks of the suites; () = all."""
    attentions: TomlTuple[str] = ()
    """causal, full or all; () = the attention of the checkpoint's first method."""
    seeds: TomlTuple[int] = (1, 2, 3)


class ReportSpec(Declaration):
    """The table [report]: a page over all runs of the sweep."""

    html: str
    """File of the page, in the sweep's folder."""


class SweepDeclaration(Declaration):
    """A sweep, as its TOML or the command line declares it."""

    name: str = ""
    """Name of the sweep; "" = that of its file."""
    out: str = ""
    """Folder of the sweep; "" = reports/<name>."""
    allow_missing_data: bool = False
    """Run the units whose data are here, and leave out the others."""
    train: TomlTuple[TrainStage] = ()
    score: TomlTuple[ScoreStage] = ()
    finetune: TomlTuple[FinetuneStage] = ()
    report: ReportSpec | None = None
    executor: dict[str, TomlTable] = EMPTY_TABLE
    """Name of an executor -> its settings: [executor.slurm]."""

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return Path(self.out) if self.out else SWEEPS_DIR / self.name

    def name_stages(self, kind: StageKind) -> Iterator[tuple[str, Any]]:
        """Yield (name, stage) for the stages of a kind, in order."""
        for number, stage in enumerate(getattr(self, kind), 1):
            yield stage.name or (kind if number == 1 else f"{kind}-{number}"), stage


def read_sweep_file(path: Path) -> SweepDeclaration:
    """Read the TOML of a sweep.

    Raises DeclarationError, with the file and the key, for an unknown key, a value of a wrong type,
    an invalid or repeated name, and an empty list.
    """
    declaration = read_toml(path, SweepDeclaration)
    name = declaration.name or path.stem
    declaration = declaration.model_copy(update={"name": name})
    check_declaration(declaration, str(path))
    return declaration


def check_declaration(declaration: SweepDeclaration, location: str) -> None:
    """Raise DeclarationError for what needs no other file: names, empty lists, numbers."""
    _check_name(declaration.name, location)
    kinds: tuple[StageKind, ...] = ("train", "score", "finetune")
    stages = [
        (kind, name, stage) for kind in kinds for name, stage in declaration.name_stages(kind)
    ]
    if not stages:
        raise DeclarationError(
            "the sweep has no stage",
            location=location,
            hint="add a table [[train]], [[score]] or [[finetune]] (docs/how-to/scale.md)",
        )
    if declaration.report:
        _check_page(declaration.report.html, f"{location}: report: html")
    _check_stages(stages, location)


def check_executors(declaration: SweepDeclaration, location: str) -> None:
    """Raise DeclarationError for an executor that is not installed, and the errors of its settings.

    Only commands that start or plan the sweep need it; `status` works without a package of theirs.
    """
    for name, settings in declaration.executor.items():
        if name not in EXECUTORS:
            names = ", ".join(EXECUTORS.names())
            raise DeclarationError(
                f"unknown executor {name!r}",
                location=f"{location}: executor.{name}",
                hint=suggest_name(name, EXECUTORS.names()) or f"installed: {names}",
            )
        if check_options := EXECUTORS[name].check_options:
            check_options(settings, f"{location}: executor.{name}")


def _check_name(name: str, location: str) -> None:
    if not NAME.fullmatch(name):
        raise DeclarationError(
            f"{name!r} is not a name",
            location=f"{location}: name",
            hint="use letters, digits, '.', '_' and '-'",
        )


def _check_page(html: str, location: str) -> None:
    """Raise DeclarationError for a page that would not lie in the sweep's folder."""
    path = PurePath(html)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise DeclarationError(
            f"{html!r} is not a file in the sweep's folder",
            location=location,
            hint='e.g. html = "report.html"',
        )


def _check_stages(stages: Sequence[tuple[StageKind, str, Any]], location: str) -> None:
    names: set[str] = set()
    for kind, name, stage in stages:
        stage_location = f"{location}: {kind} {name!r}"
        _check_name(name, stage_location)
        if name in names:
            raise DeclarationError(
                f"two stages are called {name!r}",
                location=f"{stage_location}: name",
                hint="give each stage its own name",
            )
        names.add(name)
        for key in ("recipes", "models", "suites"):
            if getattr(stage, key, None) == ():
                raise DeclarationError(f"{key} is empty", location=f"{stage_location}: {key}")
        if kind == "finetune" and not stage.seeds:
            raise DeclarationError("seeds is empty", location=f"{stage_location}: seeds")
        if any(seed < 0 for seed in getattr(stage, "seeds", ())):
            raise DeclarationError("a seed is 0 or more", location=f"{stage_location}: seeds")
        if getattr(stage, "shards", 1) < 1:
            raise DeclarationError(
                f"shards is {stage.shards}; it must be 1 or more",
                location=f"{stage_location}: shards",
            )
