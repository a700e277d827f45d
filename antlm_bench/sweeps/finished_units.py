"""Which units are done already: by the journals of a sweep, or in the run folders of a command.

Nothing is opened but run.json and the predictions that it names. A cell counts as done if it was
made from the same files, suite and options; the content key, which also covers what only an opened
checkpoint tells, is compared when the command runs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from antlm_bench.checkpoints.adapter_files import adapter_metadata
from antlm_bench.checkpoints.resolve import (
    CheckpointSources,
    OpenOptions,
    display_name,
    locate_description,
    select_open_options,
    split_revision,
)
from antlm_bench.errors import CheckpointError, RunError
from antlm_bench.runs import open_stored_run, summary_matches
from antlm_bench.runs.layout import run_dir
from antlm_bench.scoring.conventions import CONVENTIONS_VERSION
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.unigrams import open_unigrams
from antlm_bench.suites.task_types import TASK_TYPES
from antlm_bench.sweeps.checkpoint_facts import CheckpointFacts
from antlm_bench.sweeps.expansion import ExpandedSweep
from antlm_bench.sweeps.status import load_state
from antlm_bench.sweeps.store import DamagedSweep, FolderStore
from antlm_bench.sweeps.sweep_texts import load_suite_texts, load_task_texts
from antlm_bench.sweeps.units import Sweep, Unit
from antlm_bench.types import Cell, Run, finetune_method
from antlm_bench.weight_files import hash_files, hash_weights
from antlm_bench.words import describe_word_rule


def find_units_done_by_journals(sweep: Sweep, folder: Path) -> set[str]:
    """Return the ids of the units of a sweep that are done by the journals in its folder.

    Raises RunError for a folder that cannot be read, or that another version has written.
    """
    store = FolderStore(folder)
    if not store.has_sweep():
        return set()
    with suppress(DamagedSweep):  # `run` writes it anew
        store.read_sweep()
    state = load_state(store, sweep)
    return {unit_id for unit_id, entry in state.units.items() if entry.state == "done"}


def find_units_with_results(expanded: ExpandedSweep, out: str | Path | None) -> set[str]:
    """Return the ids of units whose results lie in the run folders that `score` or `finetune`
    would write with this `out`. Every checkpoint of the units exists.
    """
    units = [unit for unit in expanded.sweep.units if (unit.stage, unit.model) in expanded.facts]
    facts = {unit.model: expanded.facts[unit.stage, unit.model] for unit in units}
    finder = _FinishedCells(facts, out, len(facts) > 1)
    return {unit.id for unit in units if finder.has_result(unit)}


class _FinishedCells:
    """Looks up the cells of units in the run folders of their checkpoints."""

    def __init__(
        self, facts: Mapping[str, CheckpointFacts], out: str | Path | None, has_many_models: bool
    ) -> None:
        self.facts, self.out, self.has_many_models = facts, out, has_many_models
        self._find_run = functools.cache(self._open_run)
        self._load_suite = functools.cache(_load_suite_settings)
        self._load_task = functools.cache(_load_task_settings)

    def has_result(self, unit: Unit) -> bool:
        """Return whether the run of the unit's checkpoint has all cells of the unit."""
        options = json.dumps(unit.arguments["options"], sort_keys=True)
        run, checkpoint_settings = self._find_run(unit.model, options)
        if run is None:
            return False
        expected = [{**checkpoint_settings, **cell} for cell in self._list_cells(unit, options)]
        return all(any(_matches(run, cell, each) for cell in run.cells) for each in expected)

    def _open_run(self, model: str, options_text: str) -> tuple[Run | None, dict[str, Any]]:
        """Return the run of a checkpoint, and the settings of its cells that its files decide."""
        ref, options = split_revision(model, select_open_options(json.loads(options_text)))
        sources = locate_description(ref, options)
        try:
            hashes = _hash_sources(sources, options)
        except CheckpointError:  # the weights of a hub id are not here yet
            return None, {}
        name = display_name(ref, options)
        folder = run_dir({"name": name, **hashes}, self.out, self.has_many_models)
        try:
            return open_stored_run(folder), {
                **hashes,
                "config": hash_files([sources.base / "config.json"]),
                "tokenizer": self.facts[model].tokenizer_hash,
                "original_layout": options.original_layout,
            }
        except RunError:
            return None, {}

    def _list_cells(self, unit: Unit, options_text: str) -> list[dict[str, Any]]:
        arguments, facts = unit.arguments, self.facts[unit.model]
        if unit.kind == "score":
            suite = self._load_suite(arguments["suite"], options_text)
            if text := suite.get("unigrams"):
                suite = suite | {"unigrams": open_unigrams(text, facts.folder).digest}
            return [
                {**suite, **_describe_scoring(facts, name, arguments["options"])}
                for name in facts.resolve_methods(arguments["methods"])
            ]
        frozen = bool(arguments["options"].get("frozen"))
        task = self._load_task(arguments["suite"], arguments["task"], options_text)
        return [
            {**task, "method": finetune_method(name, frozen=frozen), "seed": arguments["seed"]}
            for name in facts.resolve_attentions(arguments["attentions"])
        ]


def _hash_sources(sources: CheckpointSources, options: OpenOptions) -> dict[str, Any]:
    """Return the hashes of weights and adapter as a run's manifest has them.

    Raises CheckpointError without weights.
    """
    weights = hash_weights(sources.base, options.allow_pickle)
    if sources.adapter is None:
        return {"weights": weights}
    return {"weights": adapter_metadata(sources.adapter, weights, options)["weights"]}


def _load_suite_settings(suite: str, options_text: str) -> dict[str, Any]:
    """Return the settings of a cell that the texts of a suite decide, and the options."""
    options = json.loads(options_text)
    loaded = load_suite_texts(suite, options)
    settings = {
        "suite": loaded.name,
        "suite_digest": loaded.digest,
        "limit": None if loaded.num_left_out == 0 else options.get("limit"),
    }
    if TASK_TYPES[loaded.task_type].uses_unigrams:
        settings["unigrams"] = options.get("unigrams")  # the text; cells have its digest
    return settings


def _load_task_settings(suite: str, task: str, options_text: str) -> dict[str, Any]:
    """Return the settings of a cell that the texts of a task and the options decide."""
    options = json.loads(options_text)
    loaded = load_task_texts(suite, task, options)
    return {
        "suite": loaded.full_name,
        "suite_digest": loaded.digest,
        "limit": loaded.limits,
        "preset": options.get("preset", ""),
        "pooling": options.get("pooling", "auto"),
        "lora": options.get("lora", 0),
        "dtype": options.get("dtype", "float32"),
        **({} if options.get("frozen") else {"training": loaded.training.settings_for_key()}),
    }


def _describe_scoring(
    facts: CheckpointFacts, method: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a cell that checkpoint and options of `score` decide."""
    from antlm_bench.commands.score_options import ScoreOptions

    score_options = ScoreOptions(**options)
    conventions = score_options.conventions().for_method(METHODS[method])
    settings = {
        "method": method,
        "dtype": score_options.dtype,
        "bos": conventions.bos,
        "ties": conventions.ties,
        "precision": score_options.precision,
        "compat": score_options.compat,
        "conventions": CONVENTIONS_VERSION,
    }
    if conventions.lengths == "declared":
        settings["max_length"] = facts.max_length
    if score_options.words is not None and METHODS[method].needs_words:
        settings["words"] = describe_word_rule(score_options.words)
    return settings


def _matches(run: Run, cell: Cell, expected: Mapping[str, Any]) -> bool:
    """Return whether a cell has these settings, and intact predictions."""
    settings = json.loads(json.dumps(expected))  # lists of tuples, as in run.json
    if any(cell.settings.get(name) != value for name, value in settings.items()):
        return False
    with suppress(RunError):
        return summary_matches(run.path, cell) is not False
    return False
