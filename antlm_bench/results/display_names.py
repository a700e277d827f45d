"""Names of models and tie rules for tables and messages: printable and, for models, unique."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from antlm_bench.printable import make_printable
from antlm_bench.types import Run

TIE_RULE_TEXTS: dict[str, str] = {
    "half": "A tie of k options counts 1/k",
    "strict": "A tie counts as wrong",
    "first": "A tie goes to the first option",
    "random": "Ties are drawn, seeded by item",
}


def model_name(run: Run) -> str:
    """Return the model's name, printable: that of --name, else of its checkpoint, else the run
    folder's.
    """
    model = run.manifest.model
    return make_printable(str(model.get("label") or model.get("name") or PurePath(run.path).name))


def model_names(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run's model, without the leading folders that all names share.

    Models of equal names get as many folders of the path that the user gave as make them different,
    or else the name of the run folder.
    """
    parts_by_run = [PurePath(model_name(run)).parts or ("",) for run in runs]
    shortest = min(map(len, parts_by_run), default=1)
    num_shared = next(
        (i for i in range(shortest - 1) if len({parts[i] for parts in parts_by_run}) > 1),
        shortest - 1,
    )
    if len(runs) == 1 and not PurePath(*parts_by_run[0]).is_absolute():
        num_shared = 0
    names = [str(PurePath(*parts[num_shared:])) for parts in parts_by_run]
    return _make_unique(names, runs)


def full_model_names(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run's model, with all its folders, for files that are read again."""
    return _make_unique([model_name(run) for run in runs], runs)


def _make_unique(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Return names of which no two are equal, with the paths that the user gave, or run folders."""
    unique = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        indices = [index for index, other in enumerate(names) if other == name]
        for index, longer in zip(indices, _tell_apart([runs[i] for i in indices]), strict=True):
            unique[index] = longer or f"{name} ({PurePath(runs[index].path).name})"
    return unique


def _tell_apart(runs: Sequence[Run]) -> list[str]:
    """Return the shortest endings of the given paths that all differ; "" for each if none do."""
    references = [make_printable(str(run.manifest.model.get("given") or "")) for run in runs]
    parts_by_run = [PurePath(reference).parts for reference in references]
    for depth in range(1, max(map(len, parts_by_run), default=0) + 1):
        names = [str(PurePath(*parts[-depth:])) if parts else "" for parts in parts_by_run]
        if len(set(names)) == len(names) and all(names):
            return names
    return [""] * len(runs)
