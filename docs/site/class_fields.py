"""Read the fields of a class with the documentation that stands below each of them."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassField:
    """A field of a class."""

    name: str
    annotation: str
    """The annotation as it stands in the code."""
    doc: str
    """The docstring below the field, on one line; "" without one."""


def read_fields(record: type) -> list[ClassField]:
    """Return the fields of a class, those of its base classes first."""
    fields: dict[str, ClassField] = {}
    for base in reversed(record.__mro__):
        if base.__module__.startswith("antlm_bench"):
            fields |= {field.name: field for field in _read_own_fields(base)}
    return list(fields.values())


def read_class_docs(record: type) -> str:
    """Return the docstring of a class on one line."""
    return " ".join((record.__doc__ or "").split())


def _read_own_fields(record: type) -> list[ClassField]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(tree, ast.ClassDef)
    fields = []
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        has_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        doc = str(following.value.value) if has_doc else ""  # type: ignore[union-attr]
        annotation = ast.unparse(statement.annotation)
        fields.append(ClassField(statement.target.id, annotation, " ".join(doc.split())))
    return fields
