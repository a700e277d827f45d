"""How models and rules are called in outputs, without control characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from antlm_bench.types import Run

TIE_RULE_TEXTS: dict[str, str] = {
    "half": "A tie of k options counts 1/k",
    "strict": "A tie counts as wrong",
    "first": "A tie goes to the first option",
    "random": "Ties are drawn, seeded by item",
}


def model_name(run: Run) -> str:
    """The model as the manifest names it, printable; the folder's name where it does not."""
    return make_printable(str(run.manifest.model.get("name") or PurePath(run.path).name))


def model_names(runs: Sequence[Run]) -> list[str]:
    """Each run's model, without the folders that all of them share; what is still equal gets its
    run folder's name.
    """
    paths = [PurePath(model_name(run)).parts or ("",) for run in runs]
    shortest = min(map(len, paths), default=1)
    shared = next(
        (i for i in range(shortest - 1) if len({path[i] for path in paths}) > 1), shortest - 1
    )
    shared = 0 if len(paths) == 1 and not PurePath(*paths[0]).is_absolute() else shared
    names = ["/".join(path[shared:]) for path in paths]
    again = {name for name in names if names.count(name) > 1}
    return [
        f"{n} ({PurePath(run.path).name})" if n in again else n
        for n, run in zip(names, runs, strict=True)
    ]


def make_printable(text: str) -> str:
    """The text without control characters: names come from outside and must not steer a terminal or
    break a row.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
