"""Encode run.json (manifest and cells) and decode it, with every field checked."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, TypeVar

from antlm_bench.errors import RunError
from antlm_bench.safe_json import parse_json
from antlm_bench.types import Cell, Estimate, Group, Manifest, Summary

SCHEMA_VERSION = 2
"""Version of run.json and predictions. Increased when older software would misread them."""
PREDICTIONS_PATH = re.compile(r"predictions/[^/\\\0]+\.parquet")
T = TypeVar("T")


def encode_run_json(
    manifest: Manifest, cells: Sequence[Cell], prediction_files: Sequence[str]
) -> bytes:
    """Return the bytes of run.json.

    prediction_files: the file of each cell, relative to the run folder. Raises RunError for a
    number that is not finite, and for text that is not valid Unicode.
    """
    document = {
        "schema": SCHEMA_VERSION,
        "manifest": {name: value for name, value in asdict(manifest).items() if name != "schema"},
        "cells": [
            {**cell_to_dict(cell), "predictions": file}
            for cell, file in zip(cells, prediction_files, strict=True)
        ],
    }
    return encode_json(document, "run.json")


def encode_json(document: Mapping[str, Any], location: str) -> bytes:
    """Return a document as JSON. Raises RunError for text and numbers that JSON does not have."""
    try:
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        hint = (
            "every number of a run is finite, every text valid Unicode: this is a bug,"
            " please report it"
        )
        raise RunError(
            f"cannot be written as JSON: {error}", location=location, hint=hint
        ) from error


def decode_run_json(data: bytes, location: str) -> tuple[Manifest, tuple[Cell, ...]]:
    """Return manifest and cells of run.json.

    Raises RunError, naming `location` and the field, for damaged bytes and for a newer schema.
    """
    root = decode_document(data, location, SCHEMA_VERSION)
    manifest = decode_manifest(root.get_object("manifest"), root.get("schema", int))
    return manifest, tuple(_parse_cell(cell) for cell in root.get_objects("cells"))


def decode_manifest(node: JsonNode, schema: int = SCHEMA_VERSION) -> Manifest:
    """Return the manifest of a JSON object."""
    return Manifest(
        schema=schema,
        model=node.get("model", dict),
        software=node.get_strings("software"),
        created=node.get("created", str),
    )


def summary_digest(summary: Summary) -> str:
    """Return the sha256 of a summary's numbers: metric, macro, headline, views, groups, clusters.

    The predictions file carries it (RunWriter.write_cell), so that an edit of run.json shows. Notes
    are not part of it.
    """

    def numbers(estimate: Estimate) -> list[Any]:
        flags = {name: int(count) for name, count in estimate.flags.items()}
        return [
            float(estimate.value),
            int(estimate.n),
            float(estimate.low),
            float(estimate.high),
            flags,
        ]

    content: dict[str, Any] = {
        "metric": summary.metric,
        "macro": list(summary.macro),
        "headline": numbers(summary.headline),
        "views": {name: numbers(view) for name, view in summary.views.items()},
        "groups": [
            [group.level, group.name, group.within, numbers(group.estimate)]
            for group in summary.groups
        ],
    }
    if summary.num_clusters:
        content["num_clusters"] = summary.num_clusters
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


DAMAGED_HINT = "the file is damaged: restore it, or move the folder away and score again"


class JsonNode:
    """A JSON object with its location, so that an error can name it. Getters raise RunError."""

    def __init__(self, value: object, location: str) -> None:
        self.location = location
        if not isinstance(value, dict):
            self.fail("should be an object")
        self.value: dict[str, Any] = value

    def fail(self, message: str, name: str = "") -> NoReturn:
        raise RunError(
            message,
            location=f"{self.location}{':' if name else ''} {name}".strip(),
            hint=DAMAGED_HINT,
        )

    def get(self, name: str, kind: type[T]) -> T:
        value = self.value.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            actual = type(value).__name__ if name in self.value else "missing"
            self.fail(f"should be {kind.__name__}, is {actual}", name)
        return value

    def get_number(self, name: str) -> float:
        value = self.value.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            self.fail("should be a finite number", name)
        return float(value)

    def get_object(self, name: str) -> JsonNode:
        return JsonNode(self.value.get(name), f"{self.location}: {name}")

    def get_objects(self, name: str) -> list[JsonNode]:
        return [
            JsonNode(value, f"{self.location}: {name}.{i}")
            for i, value in enumerate(self.get(name, list))
        ]

    def get_list(self, name: str, kind: type[T]) -> tuple[T, ...]:
        values = self.get(name, list)
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            noun = "strings" if kind is str else "whole numbers"
            self.fail(f"should be a list of {noun}", name)
        return tuple(values)

    def get_strings(self, name: str) -> dict[str, str]:
        node = self.get_object(name)
        return {key: node.get(key, str) for key in node.value}


def decode_document(
    data: bytes, location: str, version: int, noun: str = "", not_json_hint: str = DAMAGED_HINT
) -> JsonNode:
    """Return the JSON object of a file whose key "schema" has its schema version.

    version: the newest version that this package reads. noun: text after the version in the error
    about a newer one, such as " of shards". not_json_hint: hint of the error about other bytes.
    Raises RunError.
    """
    try:
        root = JsonNode(parse_json(data), location)
    except ValueError as error:
        raise RunError(f"not JSON: {error}", location=location, hint=not_json_hint) from error
    schema = root.get("schema", int)
    if schema > version:
        raise RunError(
            f"written by a newer antlm-bench (schema {schema}{noun}; this one reads up to"
            f" {version})",
            location=location,
            hint="pip install --upgrade antlm-bench",
        )
    return root


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """Return the fields of a cell for JSON, without its file.

    `origin` is left out where it is empty: the suite is no file of the user's. So is the number of
    clusters of a suite without clusters.
    """
    fields = {name: value for name, value in asdict(cell).items() if name not in ("origin", "file")}
    if not cell.summary.num_clusters:
        del fields["summary"]["num_clusters"]
    return fields | ({"origin": cell.origin} if cell.origin else {})


def _parse_cell(node: JsonNode) -> Cell:
    """Parse a cell. Schema 1 has no seed and no history, older cells of schema 2 no origin."""
    for name in ("suite", "method"):
        if not node.get(name, str):  # names of files are built from them
            node.fail("should not be empty", name)
    return Cell(
        suite=node.get("suite", str),
        method=node.get("method", str),
        key=node.get("key", str),
        settings=node.get("settings", dict),
        summary=_parse_summary(node.get_object("summary")),
        digest=node.get("digest", str),
        seed=None if node.value.get("seed") is None else node.get("seed", int),
        history=node.get("history", dict) if "history" in node.value else {},
        origin=node.get_list("origin", str) if "origin" in node.value else (),
        file=_parse_predictions_file(node) if "predictions" in node.value else "",
    )


def _parse_predictions_file(node: JsonNode) -> str:
    """Return the name of a cell's predictions file. A path out of the folder is refused."""
    file = node.get("predictions", str)
    if not PREDICTIONS_PATH.fullmatch(file):
        node.fail("should be the name of a file in predictions/", "predictions")
    return file


def _parse_summary(node: JsonNode) -> Summary:
    views = node.get_object("views")
    return Summary(
        suite=node.get("suite", str),
        method=node.get("method", str),
        metric=node.get("metric", str),
        macro=node.get_list("macro", str),
        headline=_parse_estimate(node.get_object("headline")),
        views={name: _parse_estimate(views.get_object(name)) for name in views.value},
        groups=tuple(_parse_group(group) for group in node.get_objects("groups")),
        notes=node.get_list("notes", str),
        num_clusters=node.get("num_clusters", int) if "num_clusters" in node.value else 0,
    )


def _parse_group(node: JsonNode) -> Group:
    estimate = _parse_estimate(node.get_object("estimate"))
    return Group(node.get("level", str), node.get("name", str), estimate, node.get("within", str))


def _parse_estimate(node: JsonNode) -> Estimate:
    flags = node.get_object("flags")
    counts: Mapping[str, int] = {name: flags.get(name, int) for name in flags.value}
    return Estimate(
        node.get_number("value"),
        node.get("n", int),
        node.get_number("low"),
        node.get_number("high"),
        counts,
    )
