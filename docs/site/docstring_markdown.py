"""An extension of griffe that turns docstrings, which are written for editors, into Markdown.

Docstrings name parameters in prose: "models: folders or hub ids. out: the run folder." Such a
paragraph becomes a list with one line per parameter, and an indented example becomes Python code.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe


class DocstringMarkdown(griffe.Extension):
    """Rewrite the docstrings of functions and methods."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the docstring of one function."""
        if func.docstring:
            names = {parameter.name.lstrip("*") for parameter in func.parameters}
            func.docstring.value = list_parameters(func.docstring.value, names)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a class or function."""
        if obj.docstring:
            obj.docstring.value = fence_examples(obj.docstring.value)


def list_parameters(docstring: str, names: set[str]) -> str:
    """Return a docstring whose paragraphs about parameters are Markdown lists."""
    name = rf"(?:{'|'.join(map(re.escape, sorted(names)))})"
    start = rf"({name}(?:, {name})*)(?: \([^)]*\))?: "
    paragraphs = docstring.split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if names and re.match(start, paragraph):
            pieces = re.split(rf"(?:^|(?<=[.;])\s){start}", " ".join(paragraph.split()))
            pairs = zip(pieces[1::2], pieces[2::2], strict=True)
            lines = [f"- `{'`, `'.join(left.split(', '))}`: {right}" for left, right in pairs]
            paragraphs[number] = "\n".join(lines)
    return "\n\n".join(paragraphs)


def fence_examples(docstring: str) -> str:
    """Return a docstring whose indented paragraphs are fenced as Python code."""
    indented = r"(?:^ {4}.*(?:\n\n(?= {4})|\n|$))+"
    return re.sub(
        indented,
        lambda match: f"```python\n{textwrap.dedent(match[0]).rstrip()}\n```\n",
        docstring,
        flags=re.MULTILINE,
    )
