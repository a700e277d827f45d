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
    """Return the model's name from the manifest, or else the run folder's name; printable."""
    return make_printable(str(run.manifest.model.get("name") or PurePath(run.path).name))


def model_names(runs: Sequence[Run]) -> list[str]:
    """Return the name of each run's model, without the leading folders that all names share.

    If two names are the same, the name of the run folder is added.
    """
    parts_by_run = [PurePath(model_name(run)).parts or ("",) for run in runs]
    shortest = min(map(len, parts_by_run), default=1)
    num_shared = next(
        (i for i in range(shortest - 1) if len({parts[i] for parts in parts_by_run}) > 1),
        shortest - 1,
    )
    if len(runs) == 1 and not PurePath(*parts_by_run[0]).is_absolute():
        num_shared = 0
    names = ["/".join(parts[num_shared:]) for parts in parts_by_run]
    repeated = {name for name in names if names.count(name) > 1}
    return [
        f"{name} ({PurePath(run.path).name})" if name in repeated else name
        for name, run in zip(names, runs, strict=True)
    ]
