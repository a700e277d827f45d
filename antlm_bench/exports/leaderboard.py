"""Leaderboards as data: which suites and checkpoints the file holds, and its JSON Schema.

A leaderboard is exports/leaderboards/<name>.toml (which of our suites goes where) and
exports/schemas/<name>.json (the official file's keys and exact counts). A new year is two such
files and no line of Python.
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
"""How an answer stands in the file.

scored: the scored part of the chosen text; continuation: the same as lm-eval requests it; sentence:
the whole text; share: the scored part, and the first option's softmax share; class: the index of
the class; surprisal: the surprisals of a word and of the word before it. Not of single answers:
curves, the surprisals of words in contexts at every milestone; headline, the number made of them.
"""


class PartSpec(Declaration):
    """One key of the file."""

    key: str
    suite: str = ""
    """Our suite. "" = none: `hint` says what makes the part."""
    writes: AnswerFormat = "scored"
    tracks: TomlTuple[str] = ()
    """The tracks that have the part; () = all."""
    by: str = ""
    """The label whose values are the keys of the answers; "" = the finest groups."""
    names: dict[str, str] = {}  # noqa: RUF012  (pydantic copies it)
    """Of milestones: our group -> its name in the file; {} = the finest groups, or `key` for a
    suite without groups."""
    hint: str = ""
    shapes: dict[str, TomlTuple[int]] = {}  # noqa: RUF012  (pydantic copies it)
    """Of a part with nested lists of numbers: key -> their lengths."""


class TrackSpec(Declaration):
    """Tracks with the same milestones."""

    names: TomlTuple[str]
    milestones: TomlTuple[int] = ()
    """Millions of words seen, in the order of the file; () = the file holds none."""


class LeaderboardSpec(Declaration):
    """A leaderboard's file."""

    year: str
    title: str
    source: str
    """The official collator that the file imitates."""
    file: str
    ties: TieRule
    """Which of several best options the official code answers with."""
    seed: int
    """Seed of the official finetuning script."""
    methods: TomlTuple[str]
    """The backends of the official code, as our methods."""
    finetune: str
    """The preset that is the official finetuning."""
    absent: Literal["omit", "null"]
    """What stands for a missing part, where that is allowed."""
    track: TomlTuple[TrackSpec]
    part: TomlTuple[PartSpec]
    fast: TomlTuple[PartSpec] = ()
    """The parts that `milestones_in` holds of every milestone."""
    milestones_in: str = ""
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

    def parts(self, track: str) -> tuple[PartSpec, ...]:
        """Return the parts that a track's file has."""
        return tuple(part for part in self.part if not part.tracks or track in part.tracks)


def load_leaderboard(year: str) -> LeaderboardSpec:
    """Load the leaderboard of a year. UsageError for a year without a declaration."""
    known = list_years()
    if year not in known:
        hint = f"known years: {', '.join(known)}"
        raise UsageError(f"no leaderboard of {year!r} is known", location="--year", hint=hint)
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
    """Return how many subkeys of one answer each the official file holds under `key`, where their
    names are not fixed."""
    number: int | None = schema(name)["properties"].get(key, {}).get("minProperties")
    return number


def expected_counts(name: str, key: str) -> dict[str, int]:
    """Return how many predictions the official file holds under each subkey of `key`, as far as the
    schema says."""
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

    missing_keys: (dotted) keys that may be missing; everything else must be there, and right.
    """
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema(name)).iter_errors(dict(document)):
        location = ".".join(map(str, error.absolute_path))
        if error.validator == "required":
            required = (key for key in error.validator_value if key not in error.instance)
            absent = [f"{location}.{key}".removeprefix(".") for key in required]
            if all(any(f"{m}.".startswith(f"{key}.") for m in missing_keys) for key in absent):
                continue
        message = error.message
        if len(message) >= 200:
            message = f"{message[:120]} ... ({error.validator})"
        raise DataError(
            f"not as {name}.json has it: {message}",
            location=location or "the document",
            hint=f"the schema: antlm_bench/exports/schemas/{name}.json",
        )
