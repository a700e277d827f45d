"""Expand the declaration of a sweep to its units, after checking all that can be wrong with it.

Names, options, models, methods and data are checked once per stage or checkpoint, before anything
starts, so that no unit fails later because of a typo. Nothing is opened per unit.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from antlm_bench.checkpoints.resolve import HUB_ID, expand_refs, select_open_options
from antlm_bench.declarations import list_declarations, suggest_name
from antlm_bench.errors import BenchError, DataError, DeclarationError, UsageError
from antlm_bench.suites.loader import list_suite_refs
from antlm_bench.suites.task_types import find_task_type
from antlm_bench.sweeps import stage_checks
from antlm_bench.sweeps.checkpoint_facts import (
    CheckpointFacts,
    describe_future_checkpoint,
    read_checkpoint_facts,
)
from antlm_bench.sweeps.declaration import (
    CheckpointStage,
    FinetuneStage,
    ScoreStage,
    StageKind,
    SweepDeclaration,
    TrainStage,
    check_executors,
    read_sweep_file,
)
from antlm_bench.sweeps.references import (
    MODELS_DIR,
    RUNS_DIR,
    STAGE_PREFIX,
    make_absolute,
    make_options_absolute,
)
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.sweep_texts import find_suite_problem, find_task_problem
from antlm_bench.sweeps.token_counts import CountsCache
from antlm_bench.sweeps.units import Sweep, Unit, group_units
from antlm_bench.training.recipe import Recipe, read_recipe
from antlm_bench.training.schedule import predict_milestones
from antlm_bench.training.text_sources import count_words, load_text_source

FINAL_CHECKPOINT = "main"


@dataclass(frozen=True)
class TrainedModel:
    """A model that a train stage of the sweep trains."""

    unit: Unit
    recipe: Recipe
    corpus: str

    @property
    def name(self) -> str:
        """Its name in references to its checkpoints: <stage>/<recipe>-<seed>."""
        return str(self.unit.arguments["out"]).removeprefix(f"{MODELS_DIR}/")


@dataclass
class ExpandedSweep:
    """The units of a sweep, and what was learned on the way."""

    sweep: Sweep
    facts: dict[tuple[str, str], CheckpointFacts] = field(default_factory=dict)
    """(Stage, model) of a unit -> facts of the checkpoint, as the stage's options open it."""
    trained_models: dict[str, TrainedModel] = field(default_factory=dict)
    """Id of a train unit -> its model."""
    missing_data: dict[str, str] = field(default_factory=dict)
    """Suite or task without units -> why its data cannot be read."""
    labels: dict[str, str] = field(default_factory=dict)
    """Model of a unit -> its short name, which for a checkpoint also names its run folder."""


def load_sweep(path: Path) -> tuple[ExpandedSweep, Path]:
    """Read the TOML of a sweep. Return its units and its folder, both checked.

    `plan` and `run` begin with it, so that a sweep that was planned can start. Writes nothing.
    Raises the errors of `read_sweep_file` and `expand_sweep`, and RunError for a folder that cannot
    be written to.
    """
    declaration = read_sweep_file(path)
    FolderStore(declaration.folder).check_is_writable()
    return expand_sweep(declaration, str(path)), declaration.folder


def expand_sweep(declaration: SweepDeclaration, location: str) -> ExpandedSweep:
    """Return the units of a sweep, in the order in which they start.

    location: the file, for errors. Relative paths start at the working directory. Raises the errors
    that a unit would raise, located by file, stage and key, and DataError for missing data, unless
    the declaration allows it.
    """
    check_executors(declaration, location)
    return _Expansion(declaration, location).run()


class _Expansion:
    def __init__(self, declaration: SweepDeclaration, location: str) -> None:
        self.declaration, self.location = declaration, location
        self.units: dict[str, Unit] = {}
        self.trained_models: dict[str, list[TrainedModel]] = {}
        """Name of a train stage -> its models."""
        self.model_folders: set[str] = set()
        """Folders that the train units write."""
        self.facts: dict[tuple[str, str], CheckpointFacts] = {}
        self.read_facts = functools.cache(read_checkpoint_facts)
        self.needs: dict[str, tuple[str, ...]] = {}
        """Checkpoint -> the unit that trains it."""
        self.cache = CountsCache()
        self.missing_data: dict[str, str] = {}
        self.suites_to_fetch: dict[str, None] = {}
        self.cells: dict[tuple[str, str, str, int | None], Unit] = {}
        """(checkpoint, suite, method, seed) -> a unit that computes it."""
        self.units_by_model: dict[str, list[str]] = {}
        """Checkpoint -> ids of the units whose parts its run folder collects."""

    def run(self) -> ExpandedSweep:
        expanders: dict[StageKind, Callable[[str, Any], None]] = {
            "train": self._expand_train,
            "score": self._expand_score,
            "finetune": self._expand_finetune,
        }
        for kind, expand in expanders.items():
            for name, stage in self.declaration.name_stages(kind):
                with self._locate(kind, name):
                    expand(name, stage)
        self._refuse_missing_data()
        self._add_collect_units()
        groups = group_units(iter(self.units.values()))
        sweep = Sweep(self.declaration.name, groups, self.declaration.executor)
        models = [model for models in self.trained_models.values() for model in models]
        by_unit = {model.unit.id: model for model in models}
        return ExpandedSweep(sweep, self.facts, by_unit, self.missing_data, self._name_models())

    @contextmanager
    def _locate(self, kind: StageKind, name: str, key: str = "") -> Iterator[None]:
        """Put file, stage and key before the location of an error."""
        try:
            yield
        except BenchError as error:
            stage_location = f"{self.location}: {kind} {name!r}"
            if not error.location.startswith(stage_location):
                detail = stage_checks.name_key(error.location, kind)
                is_key = detail.startswith("options") or detail in stage_checks.STAGE_KEYS[kind]
                parts = [stage_location, "" if is_key else key, detail]
                error.location = ": ".join(dict.fromkeys(filter(None, parts)))
            raise

    def _name_models(self) -> dict[str, str]:
        """Return model of a unit -> its short name."""
        recipes = {
            model.unit.model: model.recipe.name
            for models in self.trained_models.values()
            for model in models
        }
        return {**recipes, **name_runs(list(self.units_by_model))}

    # ---- train

    def _expand_train(self, name: str, stage: TrainStage) -> None:
        stage_checks.check_train_stage(stage)
        models = self.trained_models[name] = []
        for ref in stage.recipes:
            for seed in stage.seeds or (None,):
                changes = [*stage.changes, *([] if seed is None else [f"seed={seed}"])]
                with self._locate("train", name, "recipes"):
                    recipe = read_recipe(ref, stage.scale, changes)
                folder = f"{MODELS_DIR}/{name}/{recipe.name}-{recipe.seed}"
                unit = Unit(
                    "train",
                    name,
                    make_absolute(ref, "models"),
                    {
                        "corpus": make_absolute(stage.corpus),
                        "scale": stage.scale,
                        "changes": changes,
                        "out": folder,
                        "options": make_options_absolute(stage.options),
                    },
                )
                if folder in self.model_folders:
                    raise DeclarationError(
                        f"two units train {folder}",
                        location="recipes",
                        hint="give other recipes or seeds, or put one of them into another stage",
                    )
                self.model_folders.add(folder)
                self.units[unit.id] = unit
                models.append(TrainedModel(unit, recipe, stage.corpus))

    def _list_trained_checkpoints(self, ref: str, stage: str) -> Iterator[str]:
        """Yield the checkpoints of stage:NAME/PATTERN, and note their facts and needs.

        stage: the stage that opens them.
        """
        name, _, pattern = ref.removeprefix(STAGE_PREFIX).partition("/")
        if name not in self.trained_models:
            stages = ", ".join(self.trained_models) or "none"
            raise UsageError(
                f"there is no train stage {name!r}",
                hint=suggest_name(name, self.trained_models) or f"train stages: {stages}",
            )
        for model in self.trained_models[name]:
            checkpoints = [FINAL_CHECKPOINT]
            if pattern not in ("", FINAL_CHECKPOINT):
                words = count_corpus_words(model.corpus, model.recipe)
                milestones = [*predict_milestones(model.recipe, words), FINAL_CHECKPOINT]
                checkpoints = fnmatch.filter(milestones, pattern)
                if not checkpoints:
                    raise UsageError(
                        f"no checkpoint of {model.name} matches {pattern!r}",
                        hint=f"it will have {', '.join(milestones)}",
                    )
            for checkpoint in checkpoints:
                model_ref = f"{STAGE_PREFIX}{model.name}/{checkpoint}"
                facts = describe_future_checkpoint(model_ref, model.recipe)
                self.facts[stage, model_ref] = facts
                self.needs[model_ref] = (model.unit.id,)
                yield model_ref

    # ---- checkpoints

    def _list_models(self, name: str, stage: CheckpointStage) -> list[str]:
        """Return the checkpoints of a stage, and read the facts of those that exist.

        `id@revision` is a checkpoint of a hub id.
        """
        refs: list[str] = []
        has_hub_id = False
        for model in stage.models:
            if model.startswith(STAGE_PREFIX):
                refs += self._list_trained_checkpoints(model, name)
                continue
            is_hub_id = bool(HUB_ID.fullmatch(model)) and not Path(model).exists()
            has_hub_id |= is_hub_id
            if stage.revisions and is_hub_id:
                # The final comma makes a list of a single revision, which becomes id@revision.
                refs += expand_refs([model], ",".join([*stage.revisions, ""]))
            else:
                refs += expand_refs([model])
        if stage.revisions and not has_hub_id:
            raise UsageError(
                "no model of the stage is a hub id, and only hub ids have revisions",
                location="revisions",
                hint="leave out `revisions`; checkpoints in folders can be given as a pattern",
            )
        open_options = select_open_options(stage.options)
        refs = list(map(make_absolute, refs))
        for ref in refs:
            if not ref.startswith(STAGE_PREFIX):
                self.facts[name, ref] = self.read_facts(ref, open_options)
        return list(dict.fromkeys(refs))

    # ---- score

    def _expand_score(self, name: str, stage: ScoreStage) -> None:
        stage_checks.check_score_options(stage.options, stage.methods)
        with self._locate("score", name, "suites"):
            suites = [make_absolute(suite, "tasks") for suite in list_suite_refs(stage.suites)]
            for suite in suites:
                find_task_type(suite).check_methods(suite, [m for m in stage.methods if m != "all"])
        with self._locate("score", name, "models"):
            models = self._list_models(name, stage)
        options = make_options_absolute(stage.options)
        present_suites = [suite for suite in suites if not self._is_data_missing(suite, options)]
        for model in models:
            with self._locate("score", name, "methods"):
                methods = self.facts[name, model].resolve_methods(stage.methods)
            for suite in present_suites:
                for number in range(1, stage.shards + 1):
                    arguments: dict[str, Any] = {
                        "suite": suite,
                        "methods": list(stage.methods),
                        "options": options,
                    }
                    if stage.shards > 1:
                        arguments["shard"] = f"{number}/{stage.shards}"
                    unit = Unit("score", name, model, arguments, self.needs.get(model, ()))
                    self._add_part(unit, [(model, suite, method, None) for method in methods])

    def _is_data_missing(self, suite: str, options: Mapping[str, Any]) -> bool:
        if suite not in self.missing_data:
            reason = find_suite_problem(suite, options, self.cache)
            if reason:
                self.missing_data[suite] = reason
                self.suites_to_fetch[suite] = None
        return suite in self.missing_data

    # ---- finetune

    def _expand_finetune(self, name: str, stage: FinetuneStage) -> None:
        tasks = stage_checks.select_tasks(stage)
        with self._locate("finetune", name, "models"):
            models = self._list_models(name, stage)
        seeds = stage.seeds[:1] if stage.options.get("frozen") else stage.seeds
        options = make_options_absolute(stage.options)
        present = []
        for ref, task in tasks:
            suite = make_absolute(ref, "tasks")
            reason = find_task_problem(suite, task, options, self.cache)
            if reason:
                self.missing_data[f"{suite}.{task}"] = reason
                self.suites_to_fetch[suite] = None
            else:
                present.append((suite, task))
        for model in models:
            with self._locate("finetune", name, "attentions"):
                facts = self.facts[name, model]
                attentions = {
                    attention: facts.resolve_attentions([attention] * bool(attention))
                    for attention in stage.attentions or ("",)
                }
            for suite, task in present:
                for attention, resolved in attentions.items():
                    for seed in seeds:
                        arguments = {
                            "suite": suite,
                            "task": task,
                            "attentions": [attention] if attention else [],
                            "seed": seed,
                            "options": options,
                        }
                        unit = Unit("finetune", name, model, arguments, self.needs.get(model, ()))
                        cells = [(model, f"{suite}.{task}", each, seed) for each in resolved]
                        self._add_part(unit, cells)

    def _add_part(self, unit: Unit, cells: Sequence[tuple[str, str, str, int | None]]) -> None:
        """Add a unit that computes cells of a run folder. Equal units are computed once.

        Raises DeclarationError if a unit of another stage computes one of the cells with other
        settings: they would replace each other.
        """
        if unit.id in self.units:
            return
        for cell in cells:
            other = self.cells.setdefault(cell, unit)
            if other.stage != unit.stage:
                model, suite, method, seed = cell
                seed_text = "" if seed is None else f" with seed {seed}"
                raise DeclarationError(
                    f"{suite} ({method}) of {model}{seed_text} is also "
                    f"computed by the stage {other.stage!r}",
                    hint="leave it out of one of them, or write another sweep with its own `out`",
                )
        self.units[unit.id] = unit
        self.units_by_model.setdefault(unit.model, []).append(unit.id)

    # ---- data, collect and report

    def _refuse_missing_data(self) -> None:
        if not self.missing_data or self.declaration.allow_missing_data:
            return
        names = [name for name in self.suites_to_fetch if name in list_declarations("tasks")]
        fetch = f"antlm-bench data fetch {' '.join(names)}; or " if names else ""
        lines = "\n".join(f"  {name}: {reason}" for name, reason in self.missing_data.items())
        raise DataError(
            f"suites or tasks without data ({len(self.missing_data)}):\n{lines}",
            location=self.location,
            hint=f"{fetch}allow_missing_data = true runs what is here",
        )

    def _add_collect_units(self) -> None:
        run_names = name_runs(list(self.units_by_model))
        collect_units = []
        for model, parts in self.units_by_model.items():
            # The digest of the parts gives the unit another id when the parts change.
            arguments = {"out": f"{RUNS_DIR}/{run_names[model]}", "parts": _digest_ids(parts)}
            collect_units.append(
                Unit("collect", "collect", model, arguments, waits_for=tuple(parts))
            )
        if collect_units and self.declaration.report:
            ids = tuple(unit.id for unit in collect_units)
            html = PurePath(self.declaration.report.html).as_posix()  # "./x" is "x"
            arguments = {"html": html, "runs": _digest_ids(ids)}
            collect_units.append(Unit("report", "report", "", arguments, waits_for=ids))
        self.units |= {unit.id: unit for unit in collect_units}


def count_corpus_words(corpus: str, recipe: Recipe) -> int:
    """Return the number of words that a recipe trains on, without those that it holds out.

    Raises DataError if there is no text.
    """
    words = _count_words(corpus)
    words = min(words, recipe.corpus.words or words)
    return round(words * (1 - recipe.corpus.held_out))


@functools.cache
def _count_words(corpus: str) -> int:
    source = load_text_source(corpus)
    return sum(count_words(text) for file in source.files for _, text in file.iter_lines())


def _digest_ids(ids: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]


def name_runs(models: Sequence[str]) -> dict[str, str]:
    """Return checkpoint -> the name of its run folder.

    The name is the last folder of the checkpoint's path, with as many folders before it as tell the
    checkpoints apart. A final checkpoint `main` also has the name of its parent folder. A digest is
    added where two whole paths give the same name (a--b/c and a/b--c, or two links to one folder).
    """
    parts = {model: _split_model(model) for model in models}
    depths = {model: 2 if parts[model][-1] == FINAL_CHECKPOINT else 1 for model in models}
    while True:
        names = {model: "--".join(parts[model][-depths[model] :]) for model in models}
        models_by_name: dict[str, list[str]] = {}
        for model, name in names.items():
            models_by_name.setdefault(name, []).append(model)
        ambiguous = [
            model
            for group in models_by_name.values()
            if len(group) > 1
            for model in group
            if depths[model] < len(parts[model])
        ]
        if not ambiguous:
            break
        for model in ambiguous:
            depths[model] += 1
    return {
        model: name if len(models_by_name[name]) == 1 else f"{name}-{_digest_ids([model])}"
        for model, name in names.items()
    }


def _split_model(model: str) -> list[str]:
    if model.startswith(STAGE_PREFIX):
        return model.removeprefix(STAGE_PREFIX).split("/")
    path = Path(model)
    if not path.exists():
        return [model.replace("/", "--")]
    return [part for part in path.resolve().parts if part != path.anchor]
