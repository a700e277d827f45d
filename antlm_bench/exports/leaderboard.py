"""What a leaderboard wants, as data: which suites and checkpoints its file holds, and its JSON
Schema.

A leaderboard is exports/leaderboards/<name>.toml (what of ours goes where) and
exports/schemas/<name>.json (what the official file is: keys and exact counts). A new year is two
such files and no line of Python.
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
# How an answer stands in the file: the scored part of the chosen text, that as lm-eval asks for it,
# the whole text, the scored part and the first option's softmax share, the index of the class, or
# the surprisals of a word and its predecessor; of no single answer: the surprisals of words in
# contexts at every milestone, and the number made of them.
AnswerFormat = Literal[
    "scored", "continuation", "sentence", "share", "class", "surprisal", "curves", "headline"
]


class PartSpec(Declaration):
    """One key of the file. suite: ours ("" = none: `hint` says what makes it). tracks: only of
    these; () = of all.

    shapes: of a part of nested lists of numbers, key -> lengths. by: the label whose values are the
    keys of the answers; "" = the finest groups. names: of milestones, our groups that stand in the
    file -> what they are called there; {} = the finest groups, or `key` for a suite without any.
    """

    key: str
    suite: str = ""
    writes: AnswerFormat = "scored"
    tracks: TomlTuple[str] = ()
    by: str = ""
    names: dict[str, str] = {}  # noqa: RUF012  (pydantic copies it)
    hint: str = ""
    shapes: dict[str, TomlTuple[int]] = {}  # noqa: RUF012  (pydantic copies it)


class TrackSpec(Declaration):
    """Tracks with the same milestones: millions of words seen, in the order of the file; () = none
    are wanted.
    """

    names: TomlTuple[str]
    milestones: TomlTuple[int] = ()


class LeaderboardSpec(Declaration):
    """A leaderboard's file. absent: what stands for a part that is missing, where that is allowed.
    fast: what `milestones_in` holds of every milestone. source: the collator that the file
    imitates. ties: which of the best options the official code answers with. seed: of the official
    finetuning script. methods: the backends of the official code, as our methods. finetune: the
    preset that is the official finetuning.
    """

    year: str
    title: str
    source: str
    file: str
    ties: TieRule
    seed: int
    methods: TomlTuple[str]
    finetune: str
    absent: Literal["omit", "null"]
    track: TomlTuple[TrackSpec]
    part: TomlTuple[PartSpec]
    fast: TomlTuple[PartSpec] = ()
    milestones_in: str = ""
    notes: TomlTuple[str] = ()

    @property
    def name(self) -> str:
        return f"babylm-{self.year}"

    def milestones(self, track: str) -> tuple[int, ...]:
        """The milestones of a track; UsageError for a track that the year does not have."""
        for spec in self.track:
            if track in spec.names:
                return spec.milestones
        known = [name for spec in self.track for name in spec.names]
        hint = suggest_name(track, known) or f"tracks of {self.year}: {', '.join(known)}"
        raise UsageError(f"unknown track {track!r}", location="--track", hint=hint)

    def parts(self, track: str) -> tuple[PartSpec, ...]:
        """The parts that a track's file has."""
        return tuple(part for part in self.part if not part.tracks or track in part.tracks)


def load_leaderboard(year: str) -> LeaderboardSpec:
    """The leaderboard of a year; UsageError for a year that nobody declared."""
    known = list_years()
    if year not in known:
        hint = f"known years: {', '.join(known)}"
        raise UsageError(f"no leaderboard of {year!r} is known", location="--year", hint=hint)
    return read_toml(HERE / "leaderboards" / f"babylm-{year}.toml", LeaderboardSpec)


def list_years() -> list[str]:
    return sorted(
        path.stem.rpartition("-")[2] for path in (HERE / "leaderboards").glob("babylm-*.toml")
    )


@cache
def schema(name: str) -> dict[str, Any]:
    """The JSON Schema that is shipped under a name."""
    document = json.loads((HERE / "schemas" / f"{name}.json").read_text(encoding="utf-8"))
    return dict(document)


def expected_subkeys(name: str, key: str) -> int | None:
    """How many subkeys of one answer each the official file holds under `key`, where they have no
    names known ahead.
    """
    number: int | None = schema(name)["properties"].get(key, {}).get("minProperties")
    return number


def expected_counts(name: str, key: str) -> dict[str, int]:
    """How many predictions the official file holds under each subkey of `key`; none where the
    schema does not say.
    """
    part = schema(name)["properties"].get(key, {})
    return {
        subkey: inner["properties"]["predictions"]["minItems"]
        for subkey, inner in part.get("properties", {}).items()
        if "predictions" in inner.get("properties", {})
    }


def validate_document(
    document: Mapping[str, Any], name: str, *, missing_keys: Collection[str] = ()
) -> None:
    """Validate a document against the schema of that name. DataError names the first place that is
    wrong.

    absent: (dotted) keys of what is missing, as announced; anything else must be there, and right.
    """
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema(name)).iter_errors(dict(document)):
        place = ".".join(map(str, error.absolute_path))
        if error.validator == "required":
            gone = [
                f"{place}.{key}".removeprefix(".")
                for key in error.validator_value
                if key not in error.instance
            ]
            if all(
                any(f"{known}.".startswith(f"{key}.") for known in missing_keys) for key in gone
            ):
                continue
        message = (
            error.message
            if len(error.message) < 200
            else f"{error.message[:120]} ... ({error.validator})"
        )
        place = place or "the document"
        raise DataError(
            f"not as {name}.json has it: {message}",
            location=place,
            hint=f"the schema: antlm_bench/exports/schemas/{name}.json",
        )
