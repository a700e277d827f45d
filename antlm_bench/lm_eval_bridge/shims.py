"""Names that lm-eval's tasks import, lent where their libraries no longer have them: else such
tasks cannot be built.

lm_eval 0.4.13's ReCoRD (super_glue/record/util.py), scrolls and a few others import SQuAD's exact
match and F1 from `transformers.data.metrics.squad_metrics`, which transformers 5 removed; its
BasqueGLUE imports `load_metric` from datasets, which datasets 3 removed in favour of
`evaluate.load`. Nothing that is still there is replaced.
"""

from __future__ import annotations

import re
import string
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SQUAD_PACKAGE = "transformers.data.metrics"
SQUAD_MODULE = f"{SQUAD_PACKAGE}.squad_metrics"


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space (Rajpurkar et al. 2016,
    evaluate-v2.0).
    """
    bare = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def compute_exact(gold: str, predicted: str) -> int:
    """1 if the two are one text once they are normalised, else 0."""
    return int(normalize_answer(gold) == normalize_answer(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    """F1 of the words that two texts share, counted as often as both have them; of no words at all,
    are both empty?
    """
    wanted, found = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not wanted or not found:
        return float(wanted == found)
    shared = sum((Counter(wanted) & Counter(found)).values())
    return 2 * shared / (len(wanted) + len(found))


class _ShimFinder(MetaPathFinder, Loader):
    """The last finder that is asked: it knows two names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return (
            ModuleSpec(name, self, is_package=name == SQUAD_PACKAGE)
            if name in (SQUAD_PACKAGE, SQUAD_MODULE)
            else None
        )

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == SQUAD_MODULE:
            for function in (normalize_answer, compute_exact, compute_f1):
                setattr(module, function.__name__, function)


def load_metric(*names: Any, **settings: Any) -> Any:
    """A metric by its name, as datasets 2 had it: `evaluate.load`, which took its place."""
    import evaluate

    return evaluate.load(*names, **settings)


def install_shims() -> None:
    """Make the imports work in this process; called twice it does nothing more."""
    import datasets

    if not any(isinstance(finder, _ShimFinder) for finder in sys.meta_path):
        sys.meta_path.append(_ShimFinder())
    if not hasattr(datasets, "load_metric"):
        datasets.load_metric = load_metric
