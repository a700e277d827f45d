"""run.json: manifest and cells as JSON, and back with every field checked: damage is an error that names its place."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, TypeVar

from antlm_bench.errors import RunError
from antlm_bench.types import Cell, Estimate, Group, Manifest, Summary

SCHEMA = 2  # of run.json and of the predictions; raised when an older program could not read them rightly
PREDICTIONS = re.compile(r"predictions/[^/\\\0]+\.parquet")
T = TypeVar("T")


def to_json(manifest: Manifest, cells: Sequence[Cell], files: Sequence[str]) -> bytes:
    """The bytes of run.json. `files` tells readers where each cell's predictions lie. RunError for NaN or inf."""
    document = {
        "schema": SCHEMA,
        "manifest": {name: value for name, value in asdict(manifest).items() if name != "schema"},
        "cells": [{**cell_fields(cell), "predictions": file} for cell, file in zip(cells, files, strict=True)],
    }
    try:
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        hint = "every number of a run is finite, every text valid Unicode: this is a bug, please report it"
        raise RunError(f"cannot be written as JSON: {error}", place="run.json", hint=hint) from error


def from_json(data: bytes, place: str) -> tuple[Manifest, tuple[Cell, ...]]:
    """Manifest and cells of run.json's bytes; RunError naming `place` and the field for anything that is not one."""
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RunError(f"no JSON: {error}", place=place, hint=DAMAGED) from error
    root = Node(document, place)
    schema = root.get("schema", int)
    if schema > SCHEMA:
        message = f"written by a newer antlm-bench (schema {schema}; this one reads up to {SCHEMA})"
        raise RunError(message, place=place, hint="pip install --upgrade antlm-bench")
    manifest = root.child("manifest")
    return (
        Manifest(
            schema=schema,
            model=manifest.get("model", dict),
            software=manifest.texts("software"),
            created=manifest.get("created", str),
        ),
        tuple(_cell(cell) for cell in root.children("cells")),
    )


def summary_digest(summary: Summary) -> str:
    """sha256 of the numbers of a summary: metric, macro, headline, views and groups, but not its notes.

    The predictions' file carries it (see folder.Writer.enter), so that an edit of run.json alone shows.
    """

    def numbers(estimate: Estimate) -> list[Any]:
        flags = {name: int(count) for name, count in estimate.flags.items()}
        return [float(estimate.value), int(estimate.n), float(estimate.low), float(estimate.high), flags]

    content = {
        "metric": summary.metric,
        "macro": list(summary.macro),
        "headline": numbers(summary.headline),
        "views": {name: numbers(view) for name, view in summary.views.items()},
        "groups": [[group.level, group.name, group.within, numbers(group.estimate)] for group in summary.groups],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


DAMAGED = "the file is damaged: restore it, or move the folder away and score again"


class Node:
    """A JSON value that knows where it stands, so that what is wrong can be said in one line."""

    def __init__(self, value: object, where: str) -> None:
        self.where = where
        if not isinstance(value, dict):
            self.fail("should be an object")
        self.value: dict[str, Any] = value

    def fail(self, message: str, name: str = "") -> NoReturn:
        raise RunError(message, place=f"{self.where}{':' if name else ''} {name}".strip(), hint=DAMAGED)

    def get(self, name: str, kind: type[T]) -> T:
        value = self.value.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(
                f"should be {kind.__name__}, is {type(value).__name__ if name in self.value else 'missing'}", name
            )
        return value

    def number(self, name: str) -> float:
        value = self.value.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail("should be a finite number", name)
        return float(value)

    def child(self, name: str) -> Node:
        return Node(self.value.get(name), f"{self.where}: {name}")

    def children(self, name: str) -> list[Node]:
        return [Node(value, f"{self.where}: {name}.{i}") for i, value in enumerate(self.get(name, list))]

    def texts(self, name: str) -> dict[str, str]:
        node = self.child(name)
        return {key: node.get(key, str) for key in node.value}


def cell_fields(cell: Cell) -> dict[str, Any]:
    """Return the fields of a cell for JSON, without its file. A suite that is no file of the user's has no `origin`."""
    fields = {name: value for name, value in asdict(cell).items() if name not in ("origin", "file")}
    return fields | ({"origin": cell.origin} if cell.origin else {})


def _cell(node: Node) -> Cell:
    """A cell; those of schema 1 had neither seed nor history, and older ones of schema 2 no origin."""
    return Cell(
        suite=node.get("suite", str),
        method=node.get("method", str),
        key=node.get("key", str),
        settings=node.get("settings", dict),
        summary=_summary(node.child("summary")),
        digest=node.get("digest", str),
        seed=None if node.value.get("seed") is None else node.get("seed", int),
        history=node.get("history", dict) if "history" in node.value else {},
        origin=_strings(node, "origin") if "origin" in node.value else (),
        file=_file(node) if "predictions" in node.value else "",
    )


def _file(node: Node) -> str:
    """Return the name of a cell's file of predictions, which never leads out of its folder."""
    file = node.get("predictions", str)
    if not PREDICTIONS.fullmatch(file):
        node.fail("should be the name of a file in predictions/", "predictions")
    return file


def _summary(node: Node) -> Summary:
    views = node.child("views")
    return Summary(
        suite=node.get("suite", str),
        method=node.get("method", str),
        metric=node.get("metric", str),
        macro=_strings(node, "macro"),
        headline=_estimate(node.child("headline")),
        views={name: _estimate(views.child(name)) for name in views.value},
        groups=tuple(_group(group) for group in node.children("groups")),
        notes=_strings(node, "notes"),
    )


def _group(node: Node) -> Group:
    estimate = _estimate(node.child("estimate"))
    return Group(node.get("level", str), node.get("name", str), estimate, node.get("within", str))


def _estimate(node: Node) -> Estimate:
    flags = node.child("flags")
    counts: Mapping[str, int] = {name: flags.get(name, int) for name in flags.value}
    return Estimate(node.number("value"), node.get("n", int), node.number("low"), node.number("high"), counts)


def _strings(node: Node, name: str) -> tuple[str, ...]:
    values = node.get(name, list)
    if not all(isinstance(value, str) for value in values):
        node.fail("should be a list of strings", name)
    return tuple(values)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
