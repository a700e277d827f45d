"""Declarations of leaderboards: which suites and checkpoints a submission file contains.

A leaderboard is declared by exports/leaderboards/<name>.toml, which maps our suites to keys of the
submission file, and exports/schemas/<name>.json, the JSON Schema of that file. To add a year, add
these two files; no Python changes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from antlm_bench.declarations import Declaration, TomlTuple, read_toml, suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.scoring.methods import get_method
from antlm_bench.types import Run

EXPORTS_DIR = Path(__file__).resolve().parent
TieRule = Literal["first", "random"]
"""How one of several best options is chosen: see leaderboard_answers.TIE_RULE_DESCRIPTIONS."""
AnswerFormat = Literal[
    "scored", "continuation", "sentence", "share", "class", "surprisal", "curves", "headline"
]
"""What a part of the submission file holds per item.

scored: the scored part of the chosen text.
continuation: the continuation of the lm-eval request, with its leading space.
sentence: the whole chosen text.
share: the scored part of the chosen text, and the first option's probability (softmax over the
options' scores).
class: the index of the chosen class.
surprisal: the surprisals of a word and of the word before it.

Two formats are not per item.
curves: the surprisal of each word in each of its contexts at every milestone.
headline: one score, computed from the curves.
"""


class PartSpec(Declaration):
    """One part of the submission file: a top-level key, or a key below `milestones_key`."""

    key: str
    suite: str = ""
    """Suite that provides the answers; "" = we cannot compute them (see `hint`)."""
    answer_format: AnswerFormat = Field("scored", alias="writes")
    tracks: TomlTuple[str] = ()
    """Tracks whose files have the part; () = all."""
    group_level: str = Field("", alias="by")
    """Label level whose values are the subkeys of the part; "" = the suite's finest level."""
    subkeys: dict[str, str] = Field({}, alias="names")
    """For milestone parts: our group -> its subkey. {} = our names of the finest groups, or `key`
    for a suite without groups."""
    hint: str = ""
    """Tells the user which tool makes a part without a suite."""
    shapes: dict[str, TomlTuple[int]] = Field({})
    """For parts that hold nested lists of numbers: subkey -> shape of the array."""


class TrackSpec(Declaration):
    """Tracks with the same milestones."""

    tracks: TomlTuple[str] = Field(alias="names")
    milestones: TomlTuple[int] = ()
    """Millions of words seen, in the order of the file; () = the file has no milestones."""


class LeaderboardSpec(Declaration):
    """What the submission file of one leaderboard contains."""

    year: str
    title: str
    source: str
    """The official collator whose output we reproduce."""
    file_name: str = Field(alias="file")
    """Template of the file's name, with {name} or {method}."""
    tie_rule: TieRule = Field(alias="ties")
    """How the official code breaks ties between the best options."""
    seed: int
    """Seed of the official finetuning script."""
    methods: TomlTuple[str]
    """Our scoring methods that correspond to the backends of the official code."""
    finetuning_preset: str = Field(alias="finetune")
    """Name of the preset that reproduces the official finetuning."""
    missing_part: Literal["omit", "null"] = Field(alias="absent")
    """How a partial file (`--allow-partial`) shows a missing part: no key, or null."""
    track_specs: TomlTuple[TrackSpec] = Field(alias="track")
    parts: TomlTuple[PartSpec] = Field(alias="part")
    milestone_parts: TomlTuple[PartSpec] = Field((), alias="fast")
    """Parts of the fast evaluation, reported once per milestone under `milestones_key`."""
    milestones_key: str = Field("", alias="milestones_in")
    """Key of the file that holds the results of the milestones; "" = none."""
    notes: TomlTuple[str] = ()
    """Sentences that every submission prints."""

    @property
    def name(self) -> str:
        """Name of the leaderboard, of its schema and of its scoring conventions."""
        return f"babylm-{self.year}"

    def milestones_of_track(self, track: str) -> tuple[int, ...]:
        """Return the milestones of a track. Raises UsageError for an unknown track."""
        for spec in self.track_specs:
            if track in spec.tracks:
                return spec.milestones
        tracks = [name for spec in self.track_specs for name in spec.tracks]
        hint = suggest_name(track, tracks) or f"tracks of {self.year}: {', '.join(tracks)}"
        raise UsageError(f"unknown track {track!r}", location="--track", hint=hint)

    def parts_of_track(self, track: str) -> tuple[PartSpec, ...]:
        """Return the top-level parts of a track's file."""
        return tuple(part for part in self.parts if not part.tracks or track in part.tracks)


def load_leaderboard(year: str) -> LeaderboardSpec:
    """Load the leaderboard of a year. Raises UsageError for a year without a declaration."""
    years = list_years()
    if year not in years:
        hint = f"known years: {', '.join(years)}"
        raise UsageError(f"unknown year {year!r}", location="--year", hint=hint)
    return read_toml(EXPORTS_DIR / "leaderboards" / f"babylm-{year}.toml", LeaderboardSpec)


def list_years() -> list[str]:
    """Return the years that have a leaderboard."""
    paths = (EXPORTS_DIR / "leaderboards").glob("babylm-*.toml")
    return sorted(path.stem.removeprefix("babylm-") for path in paths)


# ---- JSON Schemas


@cache
def load_schema(name: str) -> dict[str, Any]:
    """Load a JSON Schema of exports/schemas."""
    path = EXPORTS_DIR / "schemas" / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def count_expected_subkeys(schema_name: str, key: str) -> int | None:
    """Return how many subkeys, with one answer each, the schema requires under `key`.

    None: the schema names the subkeys (`count_expected_answers`).
    """
    number: int | None = load_schema(schema_name)["properties"].get(key, {}).get("minProperties")
    return number


def count_expected_answers(schema_name: str, key: str) -> dict[str, int]:
    """Return subkey -> number of answers, for the subkeys under `key` that the schema names."""
    part = load_schema(schema_name)["properties"].get(key, {})
    return {
        subkey: inner["properties"]["predictions"]["minItems"]
        for subkey, inner in part.get("properties", {}).items()
        if "predictions" in inner.get("properties", {})
    }


def validate_document(
    document: Mapping[str, Any], schema_name: str, *, missing_keys: Collection[str] = ()
) -> None:
    """Validate a document against a schema. Raises DataError for the first wrong key.

    missing_keys: (dotted) keys that may be missing although the schema requires them.
    """
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(load_schema(schema_name)).iter_errors(dict(document)):
        location = ".".join(map(str, error.absolute_path))
        if error.validator == "required":
            required = (key for key in error.validator_value if key not in error.instance)
            absent = [f"{location}.{key}".removeprefix(".") for key in required]
            if all(_may_be_missing(key, missing_keys) for key in absent):
                continue
        message = error.message
        if len(message) >= 200:
            message = f"{message[:120]} ... ({error.validator})"
        raise DataError(
            f"does not match the schema {schema_name}.json: {message}",
            location=location or "the document",
            hint=f"see antlm_bench/exports/schemas/{schema_name}.json",
        )


def _may_be_missing(key: str, missing_keys: Collection[str]) -> bool:
    """Return whether `key` is, or contains, a key that may be missing."""
    return any(missing == key or missing.startswith(f"{key}.") for missing in missing_keys)


# ---- commands that compute a part


def get_model_name(run: Run) -> str:
    """Return the name of a run's checkpoint."""
    return str(run.manifest.model.get("name", "MODEL"))


def get_model_reference(run: Run) -> str:
    """Return the checkpoint as the user named it; in older runs its name."""
    return str(run.manifest.model.get("given") or get_model_name(run))


def build_run_model_arguments(run: Run) -> list[str]:
    """Return the options that name a run's checkpoint in a command line."""
    if not run.manifest.model.get("given"):
        return build_model_arguments(get_model_name(run))
    reference, revision = get_model_reference(run), run.manifest.model.get("revision")
    if isinstance(revision, str) and revision and reference.endswith(f"@{revision}"):
        return ["--model", reference.removesuffix(f"@{revision}"), "--revision", revision]
    return ["--model", reference]


def build_score_command(
    run: Run | None, suite: str, method: str, board: LeaderboardSpec, model: str = ""
) -> str:
    """Return the shell command that scores a suite by the conventions of a leaderboard.

    run: the run folder that the command completes; None = a new one. model: the checkpoint;
    "" = the checkpoint of the run.
    """
    model_arguments = build_model_arguments(model)
    if run and not model:
        model_arguments = build_run_model_arguments(run)
    command = ["antlm-bench", "score", *model_arguments, "--suite", suite]
    command += ["--method", method, "--compat", board.name]
    return shlex.join([*command, *(["--out", run.path] if run else [])])


def build_finetune_command(
    run: Run,
    suite: str,
    method: str,
    board: LeaderboardSpec,
    *,
    seed: int | None = None,
    task: str = "",
) -> str:
    """Return the shell command that finetunes a run's checkpoint by the official preset.

    seed: None = the official seed. task: the task of the suite; "" = all.
    """
    model_arguments = build_run_model_arguments(run)
    command = ["antlm-bench", "finetune", *model_arguments, "--suite", suite]
    command += ["--task", task] if task else []
    command += ["--attention", get_method(method).main_attention]
    command += ["--compat", board.finetuning_preset]
    command += ["--seed", str(board.seed if seed is None else seed), "--out", run.path]
    return shlex.join(command)


def build_model_arguments(name: str) -> list[str]:
    """Return the options that name a checkpoint; `repo/name@revision` becomes two options.

    A local checkpoint of an older run is given by its name: such runs do not store its path.
    """
    model, _, revision = name.partition("@")
    if revision and "/" in model:
        return ["--model", model, "--revision", revision]
    return ["--model", name]
