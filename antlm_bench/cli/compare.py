"""`compare`: run folders against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import Csv, Json, Markdown, one_format, split, table
from antlm_bench.errors import UsageError

which = partial(typer.Option, rich_help_panel="What is compared")


def method_pairs(values: Sequence[str] | None) -> list[tuple[str, str]]:
    """`causal=mlm` -> ("causal", "mlm"): the reference's method and the run's; `mlm` alone is both."""
    pairs = [value.partition("=") for value in split(values)]
    if wrong := [first for first, equals, second in pairs if not first or (equals and not second)]:
        raise UsageError(f"{wrong[0]!r} is no method", place="--method", hint="mlm, or REFERENCE'S=RUN'S: causal=mlm")
    return [(first, second or first) for first, _, second in pairs]


Suites = Annotated[list[str] | None, which("--suite", metavar="NAME", help="Only these. Repeatable, or a,b.")]
Methods = Annotated[
    list[str] | None,
    which("--method", metavar="NAME", help="Only this; causal=mlm: the reference's against the run's. Repeatable."),
]
Mixed = Annotated[bool, which("--allow-mixed", help="Compare what differing settings share, and say so.")]


def compare_verb(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; the first is the reference.")],
    against: Annotated[Path | None, which(metavar="RUN", help="The reference, instead of the first.")] = None,
    suite: Suites = None,
    method: Methods = None,
    allow_mixed: Mixed = False,
    by: Annotated[
        Literal["suite", "field", "phenomenon", "paradigm"],
        table(metavar="LEVEL", help="Depth: suite, field, phenomenon, paradigm."),
    ] = "phenomenon",
    flips: Annotated[
        int, table(metavar="[N]", min=0, help="List N items (20) per suite that the runs answer differently.")
    ] = 0,
    show_texts: Annotated[bool, table("--show-texts", help="With their texts, looked up in the data here.")] = False,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Compare runs item by item: paired differences with intervals and tests, suite by suite, group by group."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    pairs = method_pairs(method)

    from antlm_bench.commands.compare import compare, own_files, texts
    from antlm_bench.reporting.comparison import show_comparisons

    asked = own_files(split(suite), [*([against] if against else []), *run])
    found = compare(run, against=against or "", suites=list(asked), methods=pairs, allow_mixed=allow_mixed)
    shown = {}
    if show_texts:
        flips = flips or 10
        compared = [found[0].path_a, *(versus.path_b for versus in found)]
        flipped = [c.suite for versus in found for c in versus.comparisons if c.flipped]
        shown = {name: texts(compared, name, asked.get(name, "")) for name in flipped}
    show_comparisons(found, form, by, flips, shown)
