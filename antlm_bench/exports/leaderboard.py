"""Declarations of leaderboards: which suites and checkpoints a submission file contains.

A leaderboard is exports/leaderboards/<name>.toml (which of our suites goes where) and
exports/schemas/<name>.json (the JSON Schema of the submission file: its keys and exact counts). A
new year is two such files and no line of Python.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from antlm_bench.declarations import Declaration, TomlTuple, read_toml, suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.exports.tie_rules import TieRule

HERE = Path(__file__).resolve().parent
AnswerFormat = Literal[
    "scored", "continuation", "sentence", "share", "class", "surprisal", "curves", "headline"
]
"""Format of a part's answers in the submission file.

scored: the scored part of the chosen text.
continuation: the continuation of the lm-eval request, with its leading space.
sentence: the whole chosen text.
share: the scored part of the chosen text, and the first option's probability (softmax over scores).
class: the index of the chosen class.
surprisal: the surprisals of a word and of the word before it.
curves: the surprisal of each word in each context at every milestone.
headline: one number, computed from the curves.
"""


class PartSpec(Declaration):
    """One part of the submission file: a key and what it holds."""

    key: str
    suite: str = ""
    """Suite that provides the answers; "" = we cannot compute them (see `hint`)."""
    writes: AnswerFormat = "scored"
    tracks: TomlTuple[str] = ()
    """Tracks whose files have the part; () = all."""
    by: str = ""
    """Label level whose values are the subkeys of the part; "" = the suite's finest level."""
    names: dict[str, str] = {}  # noqa: RUF012  (pydantic copies it)
    """For parts under `milestones_in`: our group -> its subkey. {} = our names of the finest
    groups, or `key` for a suite without groups."""
    hint: str = ""
    """Tells the user which tool makes a part without a suite."""
    shapes: dict[str, TomlTuple[int]] = {}  # noqa: RUF012  (pydantic copies it)
    """For parts that hold nested lists of numbers: subkey -> shape of the array."""


class TrackSpec(Declaration):
    """Tracks with the same milestones."""

    names: TomlTuple[str]
    milestones: TomlTuple[int] = ()
    """Millions of words seen, in the order of the file; () = the file has no milestones."""


class LeaderboardSpec(Declaration):
    """What the submission file of one leaderboard contains."""

    year: str
    title: str
    source: str
    """The official collator that the file imitates."""
    file: str
    """Template of the file's name, with {name} or {method}."""
    ties: TieRule
    """How the official code breaks ties between the best options."""
    seed: int
    """Seed of the official finetuning script."""
    methods: TomlTuple[str]
    """Our scoring methods that correspond to the backends of the official code."""
    finetune: str
    """Name of the preset that reproduces the official finetuning."""
    absent: Literal["omit", "null"]
    """How a partial file (`--allow-partial`) shows a missing part: no key, or null."""
    track: TomlTuple[TrackSpec]
    part: TomlTuple[PartSpec]
    fast: TomlTuple[PartSpec] = ()
    """Parts of the fast evaluation, reported once per milestone under `milestones_in`."""
    milestones_in: str = ""
    """Key of the file that holds the results of the milestones; "" = none."""
    notes: TomlTuple[str] = ()

    @property
    def name(self) -> str:
        return f"babylm-{self.year}"

    def milestones(self, track: str) -> tuple[int, ...]:
        """Return the milestones of a track. UsageError for a track that the year does not have."""
        for spec in self.track:
            if track in spec.names:
                return spec.milestones
        known = [name for spec in self.track for name in spec.names]
        hint = suggest_name(track, known) or f"tracks of {self.year}: {', '.join(known)}"
        raise UsageError(f"unknown track {track!r}", location="--track", hint=hint)

    def parts_of_track(self, track: str) -> tuple[PartSpec, ...]:
        """Return the parts of a track's file."""
        return tuple(part for part in self.part if not part.tracks or track in part.tracks)


def load_leaderboard(year: str) -> LeaderboardSpec:
    """Load the leaderboard of a year. UsageError for a year without a declaration."""
    known = list_years()
    if year not in known:
        hint = f"known years: {', '.join(known)}"
        raise UsageError(f"unknown year {year!r}", location="--year", hint=hint)
    return read_toml(HERE / "leaderboards" / f"babylm-{year}.toml", LeaderboardSpec)


def list_years() -> list[str]:
    """Return the years that have a leaderboard."""
    return sorted(
        path.stem.rpartition("-")[2] for path in (HERE / "leaderboards").glob("babylm-*.toml")
    )


@cache
def schema(name: str) -> dict[str, Any]:
    """Load the JSON Schema that is shipped under a name."""
    document = json.loads((HERE / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    return dict(document)


def expected_subkeys(name: str, key: str) -> int | None:
    """Return the number of subkeys under `key`, each with one answer, if the schema fixes only
    their number; else None."""
    number: int | None = schema(name)["properties"].get(key, {}).get("minProperties")
    return number


def expected_counts(name: str, key: str) -> dict[str, int]:
    """Return subkey of `key` -> number of its predictions, for the subkeys whose number the schema
    fixes."""
    part = schema(name)["properties"].get(key, {})
    return {
        subkey: inner["properties"]["predictions"]["minItems"]
        for subkey, inner in part.get("properties", {}).items()
        if "predictions" in inner.get("properties", {})
    }


def validate_document(
    document: Mapping[str, Any], name: str, *, missing_keys: Collection[str] = ()
) -> None:
    """Validate a document against the schema of that name. DataError names the first wrong key.

    missing_keys: (dotted) keys that may be missing; all others are required.
    """
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema(name)).iter_errors(dict(document)):
        location = ".".join(map(str, error.absolute_path))
        if error.validator == "required":
            required = (key for key in error.validator_value if key not in error.instance)
            absent = [f"{location}.{key}".removeprefix(".") for key in required]
            # An absent key is allowed if it is, or contains, a key that may be missing.
            if all(any(f"{m}.".startswith(f"{key}.") for m in missing_keys) for key in absent):
                continue
        message = error.message
        if len(message) >= 200:
            message = f"{message[:120]} ... ({error.validator})"
        raise DataError(
            f"does not match the schema {name}.json: {message}",
            location=location or "the document",
            hint=f"see antlm_bench/exports/schemas/{name}.json",
        )
